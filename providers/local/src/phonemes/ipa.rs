//! Writes phones as the IPA that espeak's `en-us` voice uses, which is what Piper's English voices
//! were trained on.
//!
//! Stress marks stand directly before the vowel, not before the syllable: that is how those voices
//! saw them. Reduced vowels depend on the letter they are spelled with, so the spelling is aligned.

use super::phone::{Phone, Sound, Stress};

/// The IPA of one word.
pub(super) fn word(phones: &[Phone], spelling: &str) -> String {
    let letters = vowel_letters(spelling, phones);
    let writer = Writer {
        phones,
        spelling,
        primary: phones.iter().position(|p| p.stress == Stress::Primary),
    };
    let mut out = String::with_capacity(phones.len() * 3);
    let mut vowels = 0;
    let mut index = 0;
    while let Some(&phone) = phones.get(index) {
        if phone.sound.is_vowel() {
            let letter = letters.as_ref().map_or("", |l| l[vowels]);
            vowels += 1;
            index += writer.vowel(&mut out, index, letter);
        } else {
            index += writer.consonant(&mut out, index);
        }
    }
    out
}

/// The IPA of letters named one by one: whole vowels, no flaps.
pub(super) fn letters(phones: &[Phone]) -> String {
    let mut out = String::new();
    for phone in phones {
        match phone.stress {
            Stress::Primary => out.push('ˈ'),
            Stress::Secondary => out.push('ˌ'),
            Stress::None => {}
        }
        out.push_str(match phone.sound {
            Sound::Ah if phone.stress == Stress::None => "ə",
            sound => sound.ipa(),
        });
    }
    out
}

struct Writer<'a> {
    phones: &'a [Phone],
    spelling: &'a str,
    primary: Option<usize>,
}

impl Writer<'_> {
    fn sound(&self, index: usize) -> Option<Sound> {
        self.phones.get(index).map(|phone| phone.sound)
    }

    fn is_vowel(&self, index: usize) -> bool {
        self.sound(index).is_some_and(Sound::is_vowel)
    }

    /// Writes the vowel at `index`, spelled `letter`; says how many phones that took.
    fn vowel(&self, out: &mut String, index: usize, letter: &str) -> usize {
        let phone = self.phones[index];
        let next = self.sound(index + 1);
        let before_r = next == Some(Sound::R);
        // "nobody", "library": a last i is never more than weak.
        let last_i = phone.sound == Sound::Iy && next.is_none();
        let secondary = phone.stress == Stress::Secondary;
        let subdued = secondary && (last_i || !self.is_far_from_primary(index));
        match phone.stress {
            Stress::Primary => out.push('ˈ'),
            Stress::Secondary if !subdued => out.push('ˌ'),
            Stress::Secondary | Stress::None => {}
        }
        let may_weaken = matches!(phone.sound, Sound::Ih | Sound::Iy);
        let unstressed = phone.stress == Stress::None || subdued && may_weaken;
        // "actual", "usually": what some write as a schwa and a w.
        if phone.sound == Sound::Ah
            && unstressed
            && next == Some(Sound::W)
            && self.is_vowel(index + 2)
        {
            out.push_str("uː");
            return 2;
        }
        let before_vowel = self.is_vowel(index + 1);
        let ipa = match phone.sound {
            // A schwa and an r become one vowel, and the r stays as a link.
            Sound::Ah if unstressed && before_r => "ɚ",
            Sound::Ah if unstressed => self.schwa(index, letter),
            Sound::Aa if letter == "o" && self.ends_in_s_cluster(index) => "ɔ",
            Sound::Ao => self.open_o(index, letter),
            Sound::Eh if before_r && self.spelling.contains("arr") => "æ",
            Sound::Er if unstressed && before_vowel => "ɚɹ",
            Sound::Er if unstressed => "ɚ",
            Sound::Er if before_vowel => "ɜːɹ",
            Sound::Ih if unstressed => self.short_i(index, letter),
            Sound::Iy if unstressed && self.is_weak_prefix(index, letter) => "ᵻ",
            Sound::Iy if unstressed && letter == "i" && next.is_some_and(|n| !n.is_vowel()) => "ɪ",
            Sound::Iy if unstressed || self.opens_a_schwa(index) => "i",
            Sound::Iy if before_r => "ɪ",
            // "during", "security": a stressed ʊ keeps an r of its own before another vowel.
            Sound::Uh if !unstressed && before_r && self.is_vowel(index + 2) => "ʊɹ",
            sound => sound.ipa(),
        };
        out.push_str(ipa);
        1
    }

    /// Writes the consonant at `index`; says how many phones that took.
    fn consonant(&self, out: &mut String, index: usize) -> usize {
        let sound = self.phones[index].sound;
        let ipa = match sound {
            Sound::T if self.is_before_syllabic_n(index) => {
                out.push_str("ʔn̩");
                return 3;
            }
            Sound::T if self.is_flapped(index) => "ɾ",
            // "million", "opinion": the glide is a vowel.
            Sound::Y if self.is_glide_vowel(index) => "i",
            sound => sound.ipa(),
        };
        out.push_str(ipa);
        1
    }

    /// Secondary stress is heard only with a syllable between it and the primary one.
    fn is_far_from_primary(&self, index: usize) -> bool {
        let Some(primary) = self.primary else {
            return true;
        };
        let (from, to) = (index.min(primary), index.max(primary));
        self.phones[from + 1..to]
            .iter()
            .any(|phone| phone.sound.is_vowel())
    }

    fn is_before_primary(&self, index: usize) -> bool {
        self.primary.is_some_and(|primary| index < primary)
    }

    fn is_first_vowel(&self, index: usize) -> bool {
        !self.phones[..index].iter().any(|p| p.sound.is_vowel())
    }

    fn schwa(&self, index: usize, letter: &str) -> &'static str {
        let previous = index.checked_sub(1).and_then(|i| self.sound(i));
        if letter.starts_with('u') {
            match previous {
                Some(Sound::Y) => return "ʊ",
                Some(Sound::Jh) => return "uː",
                None if self.spelling.starts_with("un") => return "ʌ",
                _ => {}
            }
        }
        if self.is_inflection(index, letter) {
            return "ᵻ";
        }
        if self.is_weak_prefix(index, letter) {
            return "ᵻ";
        }
        let rest = &self.phones[index + 1..];
        let ends_in_bl =
            matches!(rest, [b, _, l, ..] if b.sound == Sound::B && l.sound == Sound::L);
        match letter {
            "a" if index == 0 => "ɐ",
            "a" if self.is_before_primary(index) && self.is_first_vowel(index) => {
                match previous {
                    // After these the voice's own schwa is the plain one.
                    Some(Sound::M | Sound::K | Sound::F) => "ə",
                    _ => "ɐ",
                }
            }
            "a" if self.spelling.ends_with("ace") => "ɪ",
            "a" if matches!(rest, [last, ..] if last.sound == Sound::Jh) => "ɪ",
            "e" if index == 0 => "ɪ",
            "i" if ends_in_bl
                || self.spelling.ends_with("ity")
                || self.spelling.ends_with("ities") =>
            {
                "ᵻ"
            }
            "i" if !self.is_before_primary(index) && !rest.is_empty() => "ɪ",
            "e" if self.spelling.ends_with("est") && rest.len() == 2 => "ɪ",
            _ => "ə",
        }
    }

    fn short_i(&self, index: usize, letter: &str) -> &'static str {
        if self.is_inflection(index, letter) || self.is_weak_prefix(index, letter) {
            return "ᵻ";
        }
        if letter == "e" && matches!(&self.phones[index + 1..], [n] if n.sound == Sound::N) {
            return "ə";
        }
        let starts = |prefix| index == 0 && self.spelling.starts_with(prefix);
        if starts("ex") || starts("en") && !starts("enou") || starts("em") {
            return "ɛ";
        }
        "ɪ"
    }

    /// The vowel of "-ed" and "-es".
    fn is_inflection(&self, index: usize, letter: &str) -> bool {
        letter == "e"
            && self.phones.len() == index + 2
            && match self.phones[index + 1].sound {
                Sound::D => matches!(self.sound(index.wrapping_sub(1)), Some(Sound::T | Sound::D)),
                sound => sound == Sound::Z,
            }
    }

    /// "cost", "boss".
    fn ends_in_s_cluster(&self, index: usize) -> bool {
        match &self.phones[index + 1..] {
            [s] => s.sound == Sound::S,
            [s, t] => s.sound == Sound::S && t.sound == Sound::T,
            _ => false,
        }
    }

    /// The vowel of "be-", "de-", "re-", "se-", "e-" before the stress.
    fn is_weak_prefix(&self, index: usize, letter: &str) -> bool {
        let onset = &self.phones[..index];
        let one_consonant = matches!(onset, [one] if matches!(
            one.sound,
            Sound::B | Sound::D | Sound::R | Sound::S | Sound::L
        ));
        letter == "e"
            && one_consonant
            && self.is_before_primary(index)
            && self
                .sound(index + 1)
                .is_some_and(|next| !next.is_vowel() && next != Sound::G)
    }

    /// "idea", "really": a stressed i before a schwa is short.
    fn opens_a_schwa(&self, index: usize) -> bool {
        self.sound(index + 1) == Some(Sound::Ah)
    }

    /// The vowel of "law" and "off": long unless spelled `o`.
    fn open_o(&self, index: usize, letter: &str) -> &'static str {
        let spelled_o = letter == "o";
        match self.sound(index + 1) {
            Some(Sound::R) => {
                let is_forced = ["ore", "our", "oar", "oor", "port", "ory", "orce"]
                    .iter()
                    .any(|letters| self.spelling.contains(letters))
                    || self.is_vowel(index + 2);
                if is_forced { "oː" } else { "ɔː" }
            }
            Some(Sound::F | Sound::Th | Sound::S | Sound::Ng) if spelled_o || letter == "ou" => "ɔ",
            Some(Sound::N) if spelled_o || letter == "a" => "ɔ",
            Some(_) if spelled_o => "ɑː",
            Some(_) | None => "ɔː",
        }
    }

    /// "button", "certain": the t is held and the n makes the syllable.
    fn is_before_syllabic_n(&self, index: usize) -> bool {
        let after_vowel = index
            .checked_sub(1)
            .is_some_and(|previous| self.is_vowel(previous));
        let rest = &self.phones[index + 1..];
        after_vowel
            && matches!(rest, [schwa, n, ..] if schwa.sound == Sound::Ah
                && schwa.stress == Stress::None
                && n.sound == Sound::N)
            && matches!(rest.len(), 2 | 3)
            && rest.get(2).is_none_or(|last| last.sound == Sound::Z)
    }

    /// "water", "party": a t between vowels, the second of them weak.
    fn is_flapped(&self, index: usize) -> bool {
        let Some(previous) = index.checked_sub(1).and_then(|i| self.sound(i)) else {
            return false;
        };
        let next = self.phones.get(index + 1);
        let before_n =
            self.sound(index + 1) == Some(Sound::Ah) && self.sound(index + 2) == Some(Sound::N);
        (previous.is_vowel() || previous == Sound::R)
            && !before_n
            && next.is_some_and(|next| next.sound.is_vowel() && next.stress == Stress::None)
    }

    fn is_glide_vowel(&self, index: usize) -> bool {
        let after = index.checked_sub(1).and_then(|i| self.sound(i));
        let weak = |phone: &Phone| phone.sound == Sound::Ah && phone.stress == Stress::None;
        matches!(after, Some(Sound::L | Sound::N))
            && self.phones.get(index + 1).is_some_and(weak)
            && !self.spelling.contains('u')
    }
}

/// The letters that each vowel sound is spelled with; `None` if the two do not pair up.
fn vowel_letters<'a>(spelling: &'a str, phones: &[Phone]) -> Option<Vec<&'a str>> {
    let vowels = phones.iter().filter(|p| p.sound.is_vowel()).count();
    let mut groups: Vec<(usize, &str)> = Vec::new();
    let bytes = spelling.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let is_vowel = |i: usize| {
            bytes.get(i).is_some_and(|b| match b {
                b'a' | b'e' | b'i' | b'o' => true,
                b'u' => i == 0 || bytes[i - 1] != b'q',
                b'y' => i > 0,
                _ => false,
            })
        };
        let start = at;
        while is_vowel(at) {
            at += 1;
        }
        if start == at {
            at += 1;
        } else {
            groups.push((start, &spelling[start..at]));
        }
    }
    if groups.len() > vowels
        && let Some(&(start, "e")) = groups.last()
    {
        let tail = &spelling[start..];
        let only_es = groups.len() > 1 && matches!(tail, "e" | "es" | "ed");
        if only_es {
            groups.pop();
        }
    }
    (groups.len() == vowels).then(|| groups.into_iter().map(|(_, letters)| letters).collect())
}
