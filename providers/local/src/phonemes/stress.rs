//! Places stress in words that were read letter by letter, and weakens what is left unstressed.

use super::letters::Draft;
use super::phone::{Phone, Sound, Stress};

/// Endings that decide where the stress goes: syllables after the stressed one.
const ENDINGS: &[(&str, usize)] = &[
    ("ality", 2),
    ("bility", 2),
    ("ography", 2),
    ("ology", 2),
    ("onomy", 2),
    ("ometry", 2),
    ("ation", 1),
    ("ition", 1),
    ("ution", 1),
    ("tion", 1),
    ("sion", 1),
    ("cian", 1),
    ("ically", 2),
    ("ical", 2),
    ("icle", 2),
    ("ics", 1),
    ("ic", 1),
    ("ity", 2),
    ("ety", 2),
    ("ify", 2),
    ("ious", 1),
    ("eous", 1),
    ("tial", 1),
    ("cial", 1),
    ("cient", 1),
    ("tient", 1),
    ("gion", 1),
    ("ual", 2),
    ("ian", 2),
    ("ium", 2),
    ("ia", 2),
    ("ial", 2),
    ("ee", 0),
    ("eer", 0),
    ("ese", 0),
    ("ette", 0),
    ("oon", 0),
    ("ique", 0),
    ("elle", 0),
    ("ize", 2),
    ("ise", 2),
    ("ate", 2),
    ("ute", 2),
    ("tude", 2),
];

/// Endings that leave the stress of the word before them alone, with their syllables.
const NEUTRAL: &[(&str, usize)] = &[
    ("fully", 2),
    ("lessly", 2),
    ("ously", 2),
    ("ness", 1),
    ("less", 1),
    ("ment", 1),
    ("ments", 1),
    ("ful", 1),
    ("ship", 1),
    ("able", 2),
    ("ably", 2),
    ("ing", 1),
    ("ings", 1),
    ("ly", 1),
    ("ers", 1),
    ("er", 1),
    ("ous", 1),
];

/// Prefixes that a two-syllable word rather does not stress.
const LIGHT_PREFIXES: &[&str] = &[
    "be", "de", "re", "pre", "pro", "con", "com", "ex", "en", "em", "un", "dis", "mis", "ad", "ac",
    "ap", "at", "as", "al", "ar", "sub", "sur", "for", "a",
];

/// The word with its stress.
pub(super) fn place(spelling: &str, drafts: &[Draft]) -> Vec<Phone> {
    let vowels: Vec<usize> = drafts
        .iter()
        .enumerate()
        .filter(|(_, draft)| draft.phone.sound.is_vowel())
        .map(|(index, _)| index)
        .collect();
    let stressed = stressed_vowel(spelling, drafts, &vowels);
    drafts
        .iter()
        .enumerate()
        .map(|(index, draft)| {
            let mut phone = draft.phone;
            if !phone.sound.is_vowel() {
                return phone;
            }
            if Some(index) == stressed {
                phone.stress = Stress::Primary;
            } else if phone.stress == Stress::None && !draft.weak {
                let last = vowels.last() == Some(&index);
                let ends_word = index + 1 == drafts.len();
                phone.sound = weakened(phone.sound, draft.letter, last, ends_word);
            }
            phone
        })
        .collect()
}

fn stressed_vowel(spelling: &str, drafts: &[Draft], vowels: &[usize]) -> Option<usize> {
    let count = vowels.len();
    if count < 2 {
        return vowels.first().copied();
    }
    let from_end = |syllables: usize| vowels[count - 1 - syllables.min(count - 1)];
    for &(ending, after) in ENDINGS {
        if spelling.ends_with(ending) && count > after {
            return Some(from_end(after));
        }
    }
    let neutral = NEUTRAL
        .iter()
        .find(|(ending, syllables)| spelling.ends_with(ending) && count > *syllables);
    let (stem, count) = match neutral {
        Some((ending, syllables)) => (
            &spelling[..spelling.len() - ending.len()],
            count - syllables,
        ),
        None => (spelling, count),
    };
    let is_heavy = |nth: usize| {
        let index = vowels[nth];
        let next = vowels.get(nth + 1).copied().unwrap_or(drafts.len());
        let last = nth + 1 == count;
        drafts[index].phone.sound.is_long() || next - index > if last { 3 } else { 2 }
    };
    let is_weak = |nth: usize| drafts[vowels[nth]].weak;
    let chosen = match count {
        1 => 0,
        2 => {
            let light = LIGHT_PREFIXES
                .iter()
                .any(|prefix| stem.len() > prefix.len() + 2 && stem.starts_with(prefix));
            let ends_in_vowel =
                stem.ends_with(['a', 'e', 'i', 'o', 'u', 'y']) && !stem.ends_with('e');
            usize::from(light && is_heavy(1) && !is_weak(1) && !ends_in_vowel)
        }
        _ if stem.ends_with(['a', 'o', 'i']) => count - 2,
        _ if is_heavy(count - 2) && !is_weak(count - 2) => count - 2,
        _ => count - 3,
    };
    // A weak vowel is never stressed while another can be.
    let chosen = if is_weak(chosen) {
        (0..count).find(|&nth| !is_weak(nth)).unwrap_or(chosen)
    } else {
        chosen
    };
    Some(vowels[chosen])
}

/// What a vowel becomes without stress.
fn weakened(sound: Sound, letter: u8, last: bool, ends_word: bool) -> Sound {
    match sound {
        Sound::Aa if !last => Sound::Ah,
        Sound::Eh if letter == b'e' && !last => Sound::Ih,
        Sound::Ae | Sound::Ah | Sound::Eh => Sound::Ah,
        Sound::Ow if !ends_word && !last => Sound::Ah,
        other => other,
    }
}
