//! Abbreviations and acronyms.

use super::Spoken;

/// What an abbreviation says that stands before a dot. `next` is the text after it.
pub(super) fn expand(body: &str, next: Option<&str>, before: &[Spoken]) -> Option<&'static str> {
    let lower = body.to_ascii_lowercase();
    let before_name = next.is_some_and(|next| next.starts_with(|c: char| c.is_ascii_uppercase()));
    let before_figure = next.is_some_and(|next| next.starts_with(|c: char| c.is_ascii_digit()));
    let after_word = matches!(before.last(), Some(Spoken::Word(_)));
    Some(match lower.as_str() {
        "mr" => "mister",
        "mrs" => "missus",
        "ms" if before_name => "miz",
        "dr" if before_name || !after_word => "doctor",
        "dr" => "drive",
        "st" if before_name => "saint",
        "st" => "street",
        "prof" => "professor",
        "rev" => "reverend",
        "gen" if before_name => "general",
        "gov" if before_name => "governor",
        "sen" if before_name => "senator",
        "capt" => "captain",
        "lt" if before_name => "lieutenant",
        "jr" => "junior",
        "sr" => "senior",
        "vs" => "versus",
        "etc" => "et cetera",
        "e.g" => "for example",
        "i.e" => "that is",
        "a.m" => "AM",
        "p.m" => "PM",
        "approx" => "approximately",
        "dept" => "department",
        "est" if before_figure => "established",
        "ext" if before_figure => "extension",
        "no" | "nr" if before_figure => "number",
        "fig" if before_figure => "figure",
        "vol" if before_figure => "volume",
        "inc" => "incorporated",
        "ltd" => "limited",
        "corp" => "corporation",
        "co" if before_name || after_word => "company",
        "ave" => "avenue",
        "blvd" => "boulevard",
        "rd" => "road",
        "apt" => "apartment",
        "mt" if before_name => "mount",
        "ft" if before_name => "fort",
        "min" => "minutes",
        "sec" => "seconds",
        "hr" => "hour",
        "hrs" => "hours",
        "u.s" => "US",
        "u.s.a" => "USA",
        "u.k" => "UK",
        "e.u" => "EU",
        "u.n" => "UN",
        "p.s" => "PS",
        "ph.d" => "PHD",
        "d.c" => "DC",
        other => return month(other).or_else(|| weekday(other)),
    })
}

/// Abbreviations that need no dot.
pub(super) fn expand_undotted(body: &str) -> Option<&'static str> {
    Some(match body {
        "Mr" => "mister",
        "Mrs" => "missus",
        "Dr" => "doctor",
        "vs" => "versus",
        "a.m" => "AM",
        "p.m" => "PM",
        "w/o" => "without",
        "w/" => "with",
        "U.S" => "US",
        "U.K" => "UK",
        _ => return None,
    })
}

/// The month of "nov"; whole names too.
pub(super) fn month(word: &str) -> Option<&'static str> {
    const MONTHS: [&str; 12] = [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ];
    if word == "sept" {
        return Some("september");
    }
    MONTHS
        .into_iter()
        .find(|month| *month == word || word.len() == 3 && month.starts_with(word))
}

fn weekday(word: &str) -> Option<&'static str> {
    Some(match word {
        "mon" => "monday",
        "tue" | "tues" => "tuesday",
        "wed" => "wednesday",
        "thu" | "thur" | "thurs" => "thursday",
        "fri" => "friday",
        _ => return None,
    })
}

/// Whether a word in capitals is named letter by letter.
pub(super) fn is_spelled(word: &str) -> bool {
    const SPOKEN: &[&str] = &[
        "AND", "ARE", "ALL", "ASAP", "BUT", "CAN", "COVID", "DO", "FAQ", "FOR", "GET", "GIF", "GO",
        "HAS", "HE", "HOW", "IF", "IN", "IS", "JPEG", "JSON", "LAN", "LIDAR", "ME", "MUST", "MY",
        "NASA", "NATO", "NEVER", "NO", "NOT", "NOW", "OF", "OFF", "ON", "ONE", "ONLY", "OR", "OUR",
        "OUT", "PIN", "RAM", "ROM", "SIM", "SHE", "SO", "SQL", "THE", "THIS", "THAT", "TO", "TWO",
        "UNESCO", "UNICEF", "UP", "VERY", "WE", "WHO", "WHY", "WIFI", "WILL", "YES", "YOU", "YOUR",
        "ZIP", "AM", "BE", "BY", "AN", "AS", "AT", "IT", "OH", "HI", "STOP", "HELP", "WAIT",
        "OPEN", "WITH", "FROM", "NEW", "OK",
    ];
    const LONGEST_SPELLED: usize = 5;
    let letters = word.trim_matches('\'');
    // "AM" is a time after a figure, but figures are read before they get here.
    let has_vowel = letters
        .bytes()
        .any(|b| matches!(b, b'A' | b'E' | b'I' | b'O' | b'U' | b'Y'));
    if SPOKEN.contains(&letters) || letters.contains('\'') {
        return false;
    }
    letters.len() < 4
        || !has_vowel
        || letters.len() <= LONGEST_SPELLED && !is_pronounceable(letters)
}

/// Consonants and vowels take turns, more or less: "CUDA", but not "HTTPA".
fn is_pronounceable(letters: &str) -> bool {
    let mut run = 0;
    for letter in letters.bytes() {
        run = if matches!(letter, b'A' | b'E' | b'I' | b'O' | b'U' | b'Y') {
            0
        } else {
            run + 1
        };
        if run > 2 {
            return false;
        }
    }
    true
}
