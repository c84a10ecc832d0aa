//! Words that the dictionary knows only in part: inflected, derived, compound.

use super::phone::{Phone, Sound, Stress, subdue};

/// The pronunciation of a word from those of its parts, which `lookup` gives.
pub(super) fn analyse(
    word: &str,
    lookup: &dyn Fn(&str) -> Option<Vec<Phone>>,
) -> Option<Vec<Phone>> {
    clitic(word, lookup)
        .or_else(|| inflection(word, lookup))
        .or_else(|| derivation(word, lookup))
        .or_else(|| prefixed(word, lookup))
        .or_else(|| compound(word, lookup))
}

/// "'s", "'ll" and the like after any word.
pub(super) fn clitic(
    word: &str,
    lookup: &dyn Fn(&str) -> Option<Vec<Phone>>,
) -> Option<Vec<Phone>> {
    let (host, tail) = word.rsplit_once('\'')?;
    if tail == "t" {
        let mut phones = lookup(host.strip_suffix('n')?)?;
        append(&mut phones, "AH0 N T");
        return Some(phones);
    }
    let mut phones = lookup(host)?;
    match tail {
        "s" => add_s(&mut phones),
        "" => {}
        "ll" => append(&mut phones, "AH0 L"),
        "d" => append(&mut phones, "D"),
        "ve" => append(&mut phones, "AH0 V"),
        "re" => append(&mut phones, "ER0"),
        "m" => append(&mut phones, "M"),
        _ => return None,
    }
    Some(phones)
}

/// Plurals, third persons, past tenses, participles, comparatives.
fn inflection(word: &str, lookup: &dyn Fn(&str) -> Option<Vec<Phone>>) -> Option<Vec<Phone>> {
    if let Some(stem) = word.strip_suffix("ies").filter(|stem| stem.len() > 1) {
        let mut phones = lookup(&format!("{stem}y"))?;
        add_s(&mut phones);
        return Some(phones);
    }
    if let Some(mut phones) = word
        .strip_suffix("es")
        .filter(|s| s.ends_with(['s', 'x', 'z', 'h']))
        .and_then(lookup)
    {
        add_s(&mut phones);
        return Some(phones);
    }
    if let Some(mut phones) = word
        .strip_suffix('s')
        .filter(|s| !s.ends_with(['s', 'u', 'i']) && s.len() > 1)
        .and_then(lookup)
    {
        add_s(&mut phones);
        return Some(phones);
    }
    if let Some(stem) = word.strip_suffix("ied").filter(|stem| stem.len() > 1) {
        let mut phones = lookup(&format!("{stem}y"))?;
        append(&mut phones, "D");
        return Some(phones);
    }
    if let Some(mut phones) = word
        .strip_suffix("ed")
        .and_then(|stem| before_vowel(stem, lookup))
    {
        add_ed(&mut phones);
        return Some(phones);
    }
    for (ending, sounds) in [
        ("ing", "IH0 NG"),
        ("ings", "IH0 NG Z"),
        ("er", "ER0"),
        ("ers", "ER0 Z"),
        ("est", "AH0 S T"),
        ("able", "AH0 B AH0 L"),
        ("ish", "IH0 SH"),
    ] {
        if let Some(mut phones) = word
            .strip_suffix(ending)
            .and_then(|stem| before_vowel(stem, lookup))
        {
            append(&mut phones, sounds);
            return Some(phones);
        }
    }
    None
}

/// "-ly", "-ness", "-ment" and the like.
fn derivation(word: &str, lookup: &dyn Fn(&str) -> Option<Vec<Phone>>) -> Option<Vec<Phone>> {
    for (ending, sounds) in [
        ("ly", "L IY0"),
        ("ness", "N AH0 S"),
        ("nesses", "N AH0 S IH0 Z"),
        ("ment", "M AH0 N T"),
        ("ments", "M AH0 N T S"),
        ("ful", "F AH0 L"),
        ("fully", "F AH0 L IY0"),
        ("less", "L AH0 S"),
        ("ship", "SH IH0 P"),
        ("wise", "W AY2 Z"),
        ("like", "L AY2 K"),
        ("y", "IY0"),
    ] {
        let Some(stem) = word.strip_suffix(ending).filter(|stem| stem.len() > 2) else {
            continue;
        };
        let base = match (ending, stem.strip_suffix('i')) {
            ("y", _) => before_vowel(stem, lookup),
            (_, Some(stem)) => lookup(&format!("{stem}y")),
            _ => lookup(stem),
        };
        if let Some(mut phones) = base {
            append(&mut phones, sounds);
            return Some(phones);
        }
    }
    None
}

/// "un-", "re-" and the like before a known word.
fn prefixed(word: &str, lookup: &dyn Fn(&str) -> Option<Vec<Phone>>) -> Option<Vec<Phone>> {
    for (prefix, sounds) in [
        ("un", "AH0 N"),
        ("re", "R IY2"),
        ("non", "N AA2 N"),
        ("pre", "P R IY2"),
        ("mis", "M IH0 S"),
        ("dis", "D IH0 S"),
        ("over", "OW2 V ER0"),
        ("under", "AH2 N D ER0"),
        ("inter", "IH2 N T ER0"),
        ("multi", "M AH2 L T IY0"),
        ("micro", "M AY2 K R OW0"),
        ("auto", "AO2 T OW0"),
        ("anti", "AE2 N T IY0"),
        ("super", "S UW2 P ER0"),
        ("semi", "S EH2 M IY0"),
        ("cyber", "S AY2 B ER0"),
        ("tele", "T EH2 L AH0"),
        ("bio", "B AY2 OW0"),
    ] {
        let Some(rest) = word.strip_prefix(prefix).filter(|rest| rest.len() > 2) else {
            continue;
        };
        let known = lookup(rest)
            .or_else(|| inflection(rest, lookup))
            .or_else(|| derivation(rest, lookup));
        if let Some(rest) = known {
            let mut phones = Phone::parse_all(sounds)?;
            phones.extend(rest);
            return Some(phones);
        }
    }
    None
}

/// Two words written as one; the stress is on the first.
fn compound(word: &str, lookup: &dyn Fn(&str) -> Option<Vec<Phone>>) -> Option<Vec<Phone>> {
    const SHORTEST: usize = 3;
    if !word.is_ascii() || word.len() > 32 {
        return None;
    }
    let splits = SHORTEST..=word.len().checked_sub(SHORTEST)?;
    // The more even the halves, the more likely they are words and not accidents.
    let mut splits: Vec<usize> = splits.collect();
    splits.sort_by_key(|at| at.abs_diff(word.len() / 2));
    splits.into_iter().find_map(|at| {
        let mut phones = lookup(&word[..at])?;
        let mut second = lookup(&word[at..])?;
        subdue(&mut second);
        phones.extend(second);
        Some(phones)
    })
}

/// The word that loses a mute e, or doubles its last letter, before a vowel.
fn before_vowel(stem: &str, lookup: &dyn Fn(&str) -> Option<Vec<Phone>>) -> Option<Vec<Phone>> {
    if stem.len() < 2 || !stem.is_ascii() {
        return None;
    }
    let bytes = stem.as_bytes();
    let (last, before) = (bytes[bytes.len() - 1], bytes[bytes.len() - 2]);
    let doubled = (last == before && !matches!(last, b'a' | b'e' | b'i' | b'o' | b'u'))
        .then(|| &stem[..stem.len() - 1]);
    let changed_y = stem.strip_suffix('i').map(|stem| format!("{stem}y"));
    lookup(stem)
        .or_else(|| lookup(&format!("{stem}e")))
        .or_else(|| doubled.and_then(lookup))
        .or_else(|| changed_y.and_then(|stem| lookup(&stem)))
}

/// The plural, possessive or third-person s.
pub(super) fn add_s(phones: &mut Vec<Phone>) {
    let Some(last) = phones.last().map(|phone| phone.sound) else {
        return;
    };
    if last.is_sibilant() {
        phones.push(Phone::plain(Sound::Ih));
        phones.push(Phone::plain(Sound::Z));
    } else if last.is_voiceless() {
        phones.push(Phone::plain(Sound::S));
    } else {
        phones.push(Phone::plain(Sound::Z));
    }
}

fn add_ed(phones: &mut Vec<Phone>) {
    let Some(last) = phones.last().map(|phone| phone.sound) else {
        return;
    };
    if matches!(last, Sound::T | Sound::D) {
        phones.push(Phone::plain(Sound::Ih));
        phones.push(Phone::plain(Sound::D));
    } else if last.is_voiceless() {
        phones.push(Phone::plain(Sound::T));
    } else {
        phones.push(Phone::plain(Sound::D));
    }
}

fn append(phones: &mut Vec<Phone>, sounds: &'static str) {
    debug_assert!(Phone::parse_all(sounds).is_some(), "{sounds}");
    phones.extend(Phone::parse_all(sounds).unwrap_or_default());
}

/// Whether some vowel carries the word's stress.
pub(super) fn is_stressed(phones: &[Phone]) -> bool {
    phones.iter().any(|phone| phone.stress == Stress::Primary)
}
