//! English text as phonemes: what a voice needs to be told.
//!
//! Text becomes words (`text`), words become sounds (`lexicon.dict`, a pronouncing dictionary,
//! `morphology`, and `letters` with `stress` for what is left), sounds become the IPA of espeak's
//! `en-us` voice (`ipa`), and words in a phrase lean on each other (`weak`). No part of espeak is
//! used. The dictionary is CMUdict and optional: without it, spelling alone must do.

mod dictionary;
mod ipa;
mod letters;
mod morphology;
mod phone;
mod stress;
mod text;
mod weak;

pub use dictionary::Dictionary;

use letters::Rules;
use phone::{Phone, Stress};
use text::Spoken;

/// Says how English text is pronounced. Cheap to use, expensive to make: one a process.
#[derive(Clone, Debug)]
pub struct Phonemizer {
    lexicon: Dictionary,
    dictionary: Dictionary,
    rules: Rules,
}

/// One word of a phrase.
#[derive(Debug)]
struct Uttered {
    ipa: String,
    /// How it is spelled; empty for letters that are named.
    word: String,
}

impl Phonemizer {
    /// A phonemizer with a dictionary, or with `Dictionary::default()` and rules alone.
    pub fn new(dictionary: Dictionary) -> Self {
        Self {
            lexicon: Dictionary::parse(include_str!("lexicon.dict")),
            dictionary,
            rules: Rules::english(),
        }
    }

    /// The IPA of a clause, words separated by blanks, with the marks `, . ? ! ; :` after the word
    /// they follow. Empty if there is nothing to say. Looks at the clause's first 2000 characters.
    pub fn phonemize(&self, clause: &str) -> String {
        let mut out = String::new();
        let mut phrase: Vec<Uttered> = Vec::new();
        for spoken in text::read(clause) {
            match spoken {
                Spoken::Word(word) if word == "'s" => add_s(&mut phrase),
                Spoken::Word(word) => phrase.push(self.utter(word)),
                Spoken::Letters(letters) => phrase.extend(spell(&letters)),
                Spoken::Mark(mark) => {
                    finish_phrase(&mut phrase, &mut out);
                    if out.ends_with(char::is_alphabetic) || out.ends_with(['ː', '̩']) {
                        out.push(mark);
                    }
                }
            }
        }
        finish_phrase(&mut phrase, &mut out);
        out
    }

    fn utter(&self, word: String) -> Uttered {
        let phones = self.pronounce(&word);
        Uttered {
            ipa: ipa::word(&phones, &word),
            word,
        }
    }

    /// The sounds of a word in lower case.
    fn pronounce(&self, word: &str) -> Vec<Phone> {
        let known = |word: &str| {
            self.lexicon
                .lookup(word)
                .or_else(|| self.dictionary.lookup(word))
        };
        let mut phones = known(word)
            .or_else(|| morphology::analyse(word, &known))
            .or_else(|| morphology::clitic(word, &|host| Some(self.by_rules(host))))
            .unwrap_or_else(|| self.by_rules(word));
        if !morphology::is_stressed(&phones)
            && let Some(vowel) = phones.iter_mut().find(|phone| phone.sound.is_vowel())
        {
            vowel.stress = Stress::Primary;
        }
        one_primary_stress(&mut phones);
        phones
    }

    fn by_rules(&self, word: &str) -> Vec<Phone> {
        let word: String = word.chars().filter(char::is_ascii_lowercase).collect();
        let drafts = self.rules.read(&word);
        if !drafts.iter().any(|draft| draft.phone.sound.is_vowel()) {
            // Nobody can say "hmpf" or "brr"; letters can always be named.
            return word
                .chars()
                .filter_map(letter_name)
                .flat_map(|name| Phone::parse_all(name).unwrap_or_default())
                .collect();
        }
        stress::place(&word, &drafts)
    }
}

/// Names letters one by one, the last with the stress.
fn spell(letters: &str) -> Option<Uttered> {
    let mut phones: Vec<Phone> = letters
        .chars()
        .filter_map(letter_name)
        .flat_map(|name| Phone::parse_all(name).unwrap_or_default())
        .collect();
    let last = phones.iter().rposition(|p| p.stress == Stress::Primary)?;
    let mut first = true;
    for phone in &mut phones[..last] {
        if phone.stress == Stress::Primary {
            // Names are of equal weight; marks far from the last are heard as secondary.
            phone.stress = if first {
                Stress::Secondary
            } else {
                Stress::None
            };
            first = !first;
        }
    }
    let ipa = ipa::letters(&phones);
    Some(Uttered {
        ipa,
        word: String::new(),
    })
}

/// Of several primary stresses the last stays one, as in compounds read letter by letter.
fn one_primary_stress(phones: &mut [Phone]) {
    if let Some(first) = phones
        .iter()
        .position(|phone| phone.stress == Stress::Primary)
    {
        phone::subdue(&mut phones[first + 1..]);
    }
}

/// Adds the phrase's words to the output as they sound side by side.
fn finish_phrase(phrase: &mut Vec<Uttered>, out: &mut String) {
    let words = std::mem::take(phrase);
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let next = words.get(at + 1);
        if !out.is_empty() {
            out.push(' ');
        }
        if let Some(joined) = next.and_then(|next| weak::run_together(&word.word, &next.word)) {
            at += 2;
            let before_vowel = words
                .get(at)
                .is_some_and(|after| starts_with_vowel(&after.ipa));
            match joined.strip_suffix("ðə").filter(|_| before_vowel) {
                Some(stem) => out.extend([stem, "ðɪ"]),
                None => out.push_str(joined),
            }
            continue;
        }
        let before_vowel = next.is_some_and(|next| starts_with_vowel(&next.ipa));
        let weak = weak::forms(&word.word);
        match weak {
            None => out.push_str(&word.ipa),
            // Alone, a function word is said in full.
            Some(_) if words.len() == 1 => out.push_str(&word.ipa),
            Some(forms) if next.is_none() => out.push_str(forms.last),
            Some(forms) if before_vowel => out.push_str(forms.before_vowel),
            Some(forms) => out.push_str(forms.inside),
        }
        // An r that ends a word is heard before a vowel.
        if before_vowel && out.ends_with('ɚ') {
            out.push('ɹ');
        }
        at += 1;
    }
}

/// The plural of letters that were spelled.
fn add_s(phrase: &mut [Uttered]) {
    let Some(last) = phrase.last_mut() else {
        return;
    };
    let ending = match last.ipa.chars().next_back() {
        Some('s' | 'z' | 'ʃ' | 'ʒ') => "ᵻz",
        Some('p' | 't' | 'k' | 'f' | 'θ') => "s",
        _ => "z",
    };
    last.ipa.push_str(ending);
}

fn starts_with_vowel(ipa: &str) -> bool {
    let first = ipa.chars().find(|c| !matches!(c, 'ˈ' | 'ˌ'));
    first.is_some_and(|c| "aeiouæɐɑɒɔəɚɛɜɪʊʌᵻ".contains(c))
}

/// The name of a letter or digit.
fn letter_name(letter: char) -> Option<&'static str> {
    Some(match letter {
        'a' => "EY1",
        'b' => "B IY1",
        'c' => "S IY1",
        'd' => "D IY1",
        'e' => "IY1",
        'f' => "EH1 F",
        'g' => "JH IY1",
        'h' => "EY1 CH",
        'i' => "AY1",
        'j' => "JH EY1",
        'k' => "K EY1",
        'l' => "EH1 L",
        'm' => "EH1 M",
        'n' => "EH1 N",
        'o' => "OW1",
        'p' => "P IY1",
        'q' => "K Y UW1",
        'r' => "AA1 R",
        's' => "EH1 S",
        't' => "T IY1",
        'u' => "Y UW1",
        'v' => "V IY1",
        'w' => "D AH1 B AH0 L Y UW0",
        'x' => "EH1 K S",
        'y' => "W AY1",
        'z' => "Z IY1",
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
