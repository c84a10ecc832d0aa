//! E-mail addresses, links and host names.

use super::{Spoken, figure, say};

/// Reads an address; `false` if the text is none.
pub(super) fn read(text: &str, out: &mut Vec<Spoken>) -> bool {
    let bare = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .or_else(|| text.strip_prefix("mailto:"))
        .unwrap_or(text);
    let host = bare.split(['/', '?', '#', ':']).next().unwrap_or_default();
    let is_mail = host
        .split_once('@')
        .is_some_and(|(user, host)| !user.is_empty() && is_host(host));
    let is_link = bare.len() < text.len() || is_host(host) && has_known_ending(host);
    if !(is_mail || is_link) {
        return false;
    }
    let mut rest = bare.trim_end_matches('/');
    while let Some(first) = rest.chars().next() {
        let length = rest
            .find(|c: char| !c.is_ascii_alphanumeric())
            .unwrap_or(rest.len())
            .max(first.len_utf8());
        let (part, after) = rest.split_at(length);
        rest = after;
        match part {
            "." => say("dot", out),
            "@" => say("at", out),
            "/" => say("slash", out),
            "-" => say("dash", out),
            "_" => say("underscore", out),
            ":" => say("colon", out),
            "?" => say("question mark", out),
            "=" => say("equals", out),
            "&" => say("and", out),
            "#" => say("hash", out),
            "+" => say("plus", out),
            _ if part.bytes().any(|b| b.is_ascii_digit()) => figure::mixed(part, out),
            _ if part.bytes().all(|b| b.is_ascii_alphabetic()) => part_of_name(part, out),
            _ => {}
        }
    }
    true
}

fn part_of_name(part: &str, out: &mut Vec<Spoken>) {
    let lower = part.to_ascii_lowercase();
    let has_vowel = lower
        .bytes()
        .any(|b| matches!(b, b'a' | b'e' | b'i' | b'o' | b'u' | b'y'));
    if !has_vowel || matches!(lower.as_str(), "io" | "ai" | "uk" | "us" | "eu" | "au") {
        out.push(Spoken::Letters(lower));
    } else {
        out.push(Spoken::Word(lower));
    }
}

/// Labels with dots between them, the last of letters.
fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.rsplit_once('.').is_some_and(|(labels, last)| {
        labels.split('.').all(is_label)
            && last.len() > 1
            && last.bytes().all(|b| b.is_ascii_alphabetic())
    })
}

/// Without one of these, "word.word" is a missing blank after a full stop.
fn has_known_ending(host: &str) -> bool {
    const ENDINGS: &[&str] = &[
        "com", "org", "net", "io", "ai", "dev", "app", "edu", "gov", "co", "uk", "us", "de", "fr",
        "eu", "info", "biz", "me", "tv", "rs",
    ];
    host.rsplit_once('.')
        .is_some_and(|(_, last)| ENDINGS.contains(&last.to_ascii_lowercase().as_str()))
}
