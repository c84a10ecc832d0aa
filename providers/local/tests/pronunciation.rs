//! How far our pronunciation is from that of espeak, whose phonemes the voice was trained on.
//!
//! A check for whoever works on the rules. It starts the `espeak-ng` program (`apt-get install
//! espeak-ng`), which is no part of this crate and which nothing here is taken from:
//! `cargo test -p rspp-local --test pronunciation -- --ignored --nocapture`.

#![expect(clippy::unwrap_used, reason = "a check that cannot go on may panic")]

use std::{fs, process::Command};

use rspp_local::{
    models::{ModelId, Store},
    phonemes::{Dictionary, Phonemizer},
};

const WORDS: &str = include_str!("pronunciation/words.txt");
const SENTENCES: &str = include_str!("pronunciation/sentences.txt");

fn espeak(text: &str) -> String {
    let output = Command::new("espeak-ng")
        .args(["-q", "-v", "en-us", "--ipa=3", text])
        .output()
        .expect("run `apt-get install espeak-ng`");
    String::from_utf8(output.stdout).unwrap()
}

/// The sounds alone: no stress, no marks, a vowel's length with it.
fn sounds(ipa: &str) -> Vec<String> {
    let mut sounds: Vec<String> = Vec::new();
    for c in ipa.chars() {
        match c {
            'ː' | '\u{329}' => sounds.last_mut().unwrap().push(c),
            c if c.is_alphabetic() && !"ˈˌ".contains(c) => sounds.push(c.into()),
            _ => {}
        }
    }
    sounds
}

/// Sounds to add, drop or change to make one of the other.
fn distance(a: &[String], b: &[String]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The phoneme error rate over some texts, in percent; prints the worst.
fn error_rate(name: &str, phonemizer: &Phonemizer, texts: &[&str]) -> f64 {
    let mut rows = Vec::new();
    let (mut errors, mut total) = (0, 0);
    for text in texts {
        let (theirs, ours) = (espeak(text), phonemizer.phonemize(text));
        let expected = sounds(&theirs);
        let wrong = distance(&expected, &sounds(&ours));
        errors += wrong;
        total += expected.len();
        rows.push((wrong, *text, theirs, ours));
    }
    let rate = 100.0 * errors as f64 / total as f64;
    println!("{name}: {rate:.1} % of {total} sounds differ");
    rows.sort_by_key(|row| std::cmp::Reverse(row.0));
    for (wrong, text, theirs, ours) in rows.iter().take(15).filter(|row| row.0 > 0) {
        println!("  {wrong} {text}: {} / {ours}", theirs.trim());
    }
    rate
}

#[test]
#[ignore = "needs models and espeak-ng: rspp models pull cmudict"]
fn few_sounds_differ_from_those_the_voice_was_trained_on() {
    let words: Vec<&str> = WORDS.lines().collect();
    let sentences: Vec<&str> = SENTENCES.lines().collect();
    assert!(words.len() >= 300 && sentences.len() >= 50);
    let path = Store::open(None).unwrap().dir(ModelId::CmuDict);
    let dictionary = fs::read_to_string(path.join("cmudict.dict")).unwrap();
    let known = Phonemizer::new(Dictionary::parse(dictionary));
    let rules = Phonemizer::new(Dictionary::default());
    assert!(error_rate("words", &known, &words) < 4.0);
    assert!(error_rate("sentences", &known, &sentences) < 2.5);
    assert!(error_rate("words without a dictionary", &rules, &words) < 10.0);
    assert!(error_rate("sentences without a dictionary", &rules, &sentences) < 5.0);
}
