//! Cuts generated text into clauses that can be spoken: the first as soon as there is one.

use rspp_kernel::CancelReason;
use rspp_proto::{Payload, Speaker, TextChunk};

use crate::{
    event::{Event, Port},
    node::{Node, NodeContext, Step},
};

/// Shortest first clause that is cut at a comma, in characters (turn-plan.md §7).
const MIN_FIRST_CLAUSE: usize = 12;
/// Shortest later clause that is cut at a comma, in characters: longer ones sound better.
const MIN_CLAUSE: usize = 60;
/// Longest clause, in characters.
const MAX_CLAUSE: usize = 240;

/// Words that end in a full stop without ending a sentence, in lower case.
const ABBREVIATIONS: &[&str] = &[
    "mr.", "mrs.", "ms.", "dr.", "prof.", "st.", "e.g.", "i.e.", "etc.", "vs.", "no.", "a.m.",
    "p.m.", "inc.", "ltd.",
];

/// The node.
#[derive(Default)]
pub(super) struct Segmenter {
    pending: String,
    segments: u32,
}

/// Where the first clause of `text` ends, in bytes; `None` if more text may still belong to it.
fn clause_end(text: &str, first: bool) -> Option<usize> {
    let shortest = if first { MIN_FIRST_CLAUSE } else { MIN_CLAUSE };
    let mut last_space = None;
    for (count, (at, c)) in text.char_indices().enumerate() {
        let end = at + c.len_utf8();
        let next = text[end..].chars().next();
        let breaks = next.is_some_and(char::is_whitespace);
        match c {
            '\n' if !text[..at].trim().is_empty() => return Some(end),
            '!' | '?' | '…' if breaks => return Some(end),
            '.' if breaks && !is_abbreviation(&text[..end]) => return Some(end),
            ',' | ';' | ':' | '—' | '–' if breaks && count + 1 >= shortest => return Some(end),
            c if c.is_whitespace() => last_space = Some(at),
            _no_boundary => {}
        }
        if count + 1 >= MAX_CLAUSE {
            return Some(last_space.filter(|at| *at > 0).unwrap_or(end));
        }
    }
    None
}

fn is_abbreviation(text: &str) -> bool {
    let word = text.rsplit(char::is_whitespace).next().unwrap_or_default();
    let word = word.to_lowercase();
    let initial = word.chars().count() == 2 && word.starts_with(char::is_alphabetic);
    ABBREVIATIONS.contains(&word.as_str()) || (initial && word != "i.")
}

impl Segmenter {
    fn cut(&mut self, cx: &mut NodeContext) {
        while let Some(end) = clause_end(&self.pending, self.segments == 0) {
            let rest = self.pending.split_off(end);
            let clause = std::mem::replace(&mut self.pending, rest);
            self.say(cx, &clause);
        }
    }

    fn say(&mut self, cx: &mut NodeContext, clause: &str) {
        let clause = clause.trim();
        if !clause.chars().any(char::is_alphanumeric) {
            return; // Nothing that could be pronounced.
        }
        let segment = self.segments;
        self.segments += 1;
        let chunk = TextChunk {
            speaker: Speaker::Agent,
            text: clause.into(),
            segment,
            revision: 1,
            is_final: true,
            confidence: None,
            language: None,
        };
        cx.emit_at(
            Payload::Text(Box::new(chunk)),
            rspp_proto::SampleIndex(0),
            segment,
        );
    }
}

impl Node for Segmenter {
    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        match event.payload {
            Payload::Text(chunk) => {
                self.pending.push_str(&chunk.text);
                self.cut(cx);
            }
            Payload::TextEnd => {
                let rest = std::mem::take(&mut self.pending);
                self.say(cx, &rest);
                cx.emit(Payload::TextEnd);
            }
            Payload::AudioChunk(_)
            | Payload::AudioEnd
            | Payload::Speech(_)
            | Payload::Metrics(_)
            | Payload::Debug(_)
            | Payload::Error(_)
            | Payload::Extension(_) => {}
        }
        Step::OK
    }

    fn on_cancel(&mut self, _cx: &mut NodeContext, _reason: CancelReason) {
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clauses(text: &str) -> Vec<String> {
        let mut pending = text.to_owned();
        let mut found = Vec::new();
        while let Some(end) = clause_end(&pending, found.is_empty()) {
            let rest = pending.split_off(end);
            found.push(std::mem::replace(&mut pending, rest).trim().to_owned());
        }
        found.push(pending.trim().to_owned());
        found
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        assert_eq!(clauses(text), expected);
    }

    #[test]
    fn clauses_end_where_people_breathe() {
        check(
            "Hello there. How are you?",
            &["Hello there.", "How are you?"],
        );
        check(
            "Good morning Sam, what can I do?",
            &["Good morning Sam,", "what can I do?"],
        );
        check("Yes, of course.", &["Yes, of course."]);
        check(
            "It costs 3.50 euros, no more.",
            &["It costs 3.50 euros,", "no more."],
        );
        check(
            "Ask Dr. Brown at 5 p.m. today.",
            &["Ask Dr. Brown at 5 p.m. today."],
        );
        check("One\ntwo", &["One", "two"]);
    }

    #[test]
    fn a_clause_is_never_longer_than_its_limit() {
        for text in ["word ".repeat(200), "w".repeat(1_000)] {
            assert!(
                clauses(&text)
                    .iter()
                    .all(|c| c.chars().count() <= MAX_CLAUSE)
            );
        }
    }
}
