//! What the session machine was told and decided, in words.

use std::fmt::Write as _;

use serde_json::Value;

use super::escaped;

/// Longest line of a journal that is shown, in characters.
const MAX_LINE: usize = 240;

/// A line of a journal as it is said to people; its form is the kernel's.
pub(super) fn words(line: &Value) -> String {
    let mut text = match named(line) {
        Some(("settled", _)) => "settled: what was pending is carried out".to_owned(),
        Some(("lost", _)) => "lines of the journal are lost before this".to_owned(),
        Some(("opened", opened)) => {
            let epoch = &opened["epoch"];
            let policy = said(&opened["policy"]);
            format!("begun under epoch {epoch}: {policy}")
        }
        Some(("input", input)) => format!("told: {}", event(input)),
        Some(("decided", decision)) => format!("decided: {}", event(decision)),
        Some((name, value)) => format!("{}: {}", spaced(name), said(value)),
        None => said(line),
    };
    if let Some((at, _)) = text.char_indices().nth(MAX_LINE) {
        text.truncate(at);
        text.push('…');
    }
    text
}

/// A variant by its name, and what it holds.
fn named(value: &Value) -> Option<(&str, &Value)> {
    match value {
        Value::String(name) => Some((name, &Value::Null)),
        Value::Object(fields) => {
            let mut fields = fields.iter();
            match (fields.next(), fields.next()) {
                (Some((name, value)), None) => Some((name, value)),
                (Some(_) | None, _) => None,
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    }
}

/// What happened, and its particulars.
fn event(value: &Value) -> String {
    match named(value) {
        Some((name, Value::Null)) => spaced(name),
        Some((name, inner)) => format!("{} {}", spaced(name), said(inner)),
        None => said(value),
    }
}

/// Whatever it is, without its brackets; what is absent is not mentioned.
fn said(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(is) => (if *is { "yes" } else { "no" }).to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => escaped(text),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => {
            let each: Vec<_> = items.iter().map(said).collect();
            each.join(" and ")
        }
        Value::Object(fields) => {
            let mut text = String::new();
            for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                let comma = if text.is_empty() { "" } else { ", " };
                let inner = match value {
                    Value::Object(_) => format!("({})", said(value)),
                    Value::Null
                    | Value::Bool(_)
                    | Value::Number(_)
                    | Value::String(_)
                    | Value::Array(_) => said(value),
                };
                write!(text, "{comma}{} {inner}", spaced(name)).expect("a String takes everything");
            }
            text
        }
    }
}

fn spaced(name: &str) -> String {
    escaped(&name.replace('_', " "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// F-074: nobody has to read JSON between the lines of a timeline, and what a caller has said cannot move
    /// the cursor.
    #[test]
    fn a_journal_is_words() {
        for (line, expected) in [
            (json!("settled"), "settled: what was pending is carried out"),
            (json!({ "input": "tick" }), "told: tick"),
            (
                json!({ "input": { "speech_started": { "at": 1600 } } }),
                "told: speech started at 1600",
            ),
            (
                json!({ "input": { "recognised": { "at": 0, "text": "hi\u{1b}[2J", "is_final": true } } }),
                "told: recognised at 0, is final yes, text hi\\u{1b}[2J",
            ),
            (
                json!({ "decided": { "signal": {
                    "signal": "turn_open", "emitter": "RK-03", "turn": 1, "reason": null, "scope": null,
                } } }),
                "decided: signal emitter RK-03, signal turn_open, turn 1",
            ),
            (
                json!({ "decided": { "session": "ACTIVE" } }),
                "decided: session ACTIVE",
            ),
            (
                json!({ "input": { "plan": { "turn": 1, "facts": { "hash": "ab", "actions": [] } } } }),
                "told: plan facts (actions none, hash ab), turn 1",
            ),
        ] {
            let found = words(&line);
            assert_eq!(found, expected);
            assert!(
                !found.contains(['{', '}', '"']) || found.contains("\\u{"),
                "{found}"
            );
        }
        let long = words(&json!({ "input": { "user_turn": { "text": "a ".repeat(900) } } }));
        assert!(long.chars().count() <= MAX_LINE + 1);
    }
}
