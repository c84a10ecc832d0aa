//! The largest values that authored numbers may have: one place, which the schemas and settings read.
//!
//! Each is far above what anybody needs, and far below where times, sizes and counts stop adding up.

use serde_json::{Value, json};

/// A day: nothing in a conversation is waited for longer.
const LONGEST_MS: u64 = 86_400_000;
/// Thirty days: what is kept over conversations may be that old.
const OLDEST_MS: u64 = 30 * LONGEST_MS;
/// A terabyte.
const MOST_BYTES: u64 = 1 << 40;
/// More than a queue ever holds.
const MOST_ITEMS: u64 = 1_000_000;
/// Of whatever is counted.
const MOST: u64 = 1_000_000_000;

/// The largest value of the field of that name; each unit has one, a few fields their own.
pub(crate) fn of(field: &str) -> u64 {
    match field {
        "max_staleness_ms" | "max_signal_age_ms" => OLDEST_MS,
        "max_queue_items" | "max_context_messages" | "max_waiting" => MOST_ITEMS,
        "sample_rate" => 192_000,
        "cpu_percent" => 100,
        // What a queue holds at most is also what a mark of it may be.
        time if time.ends_with("_ms") || time == "hedge_after_ms" => LONGEST_MS,
        time if time.ends_with("_us") => LONGEST_MS * 1_000,
        size if size.ends_with("_bytes") => MOST_BYTES,
        size if size.ends_with("_mib") => MOST_BYTES >> 20,
        _count => MOST,
    }
}

/// Writes the largest value into every number of a schema that names none.
pub(crate) fn bound(schema: &mut Value) {
    part("", schema);
}

fn part(field: &str, schema: &mut Value) {
    let Value::Object(keywords) = schema else {
        return;
    };
    let is_number = keywords.get("type").is_some_and(|of| {
        let is = |word: &Value| word == "integer";
        is(of) || of.as_array().is_some_and(|words| words.iter().any(is))
    });
    if is_number && !keywords.contains_key("maximum") {
        keywords.insert("maximum".to_owned(), json!(of(field)));
    }
    for (keyword, inner) in keywords.iter_mut() {
        match (keyword.as_str(), inner) {
            ("properties" | "$defs", Value::Object(parts)) => {
                for (name, inner) in parts.iter_mut() {
                    part(name, inner);
                }
            }
            ("oneOf" | "anyOf", Value::Array(parts)) => {
                for inner in parts {
                    part(field, inner);
                }
            }
            // What a map or list is called is what its values are.
            ("items" | "additionalProperties", inner) => part(field, inner),
            _ => {}
        }
    }
}

/// The first number in what was written that is above its largest value: where, what it is, and what it may
/// be. For settings that no schema was asked about.
pub fn beyond(written: &Value) -> Option<(String, u64, u64)> {
    find("", "", written)
}

fn find(path: &str, field: &str, written: &Value) -> Option<(String, u64, u64)> {
    match written {
        Value::Number(number) => {
            let (found, most) = (number.as_u64()?, of(field));
            (found > most).then(|| (path.to_owned(), found, most))
        }
        Value::Array(items) => {
            let mut each = items.iter().enumerate();
            each.find_map(|(index, item)| find(&format!("{path}[{index}]"), field, item))
        }
        Value::Object(fields) => fields.iter().find_map(|(name, inner)| {
            let place = match path {
                "" => name.clone(),
                path => format!("{path}.{name}"),
            };
            // In a map by name, such as `hedge_after_ms`, it is the map that says what is meant.
            let field = if has_unit(field) { field } else { name };
            find(&place, field, inner)
        }),
        Value::Null | Value::Bool(_) | Value::String(_) => None,
    }
}

fn has_unit(field: &str) -> bool {
    ["_ms", "_us", "_bytes"]
        .iter()
        .any(|unit| field.ends_with(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings are held to what the schemas say, wherever in them a number stands.
    #[test]
    fn a_number_beyond_is_found_where_it_stands() {
        let good = json!({ "budgets": { "turn_budget_ms": 86_400_000 }, "x": [1, 2] });
        assert_eq!(beyond(&good), None);
        let late = json!({ "budgets": { "turn_budget_ms": u64::MAX } });
        let found = ("budgets.turn_budget_ms".to_owned(), u64::MAX, LONGEST_MS);
        assert_eq!(beyond(&late), Some(found));
        let hedge = json!({ "calls": [{ "hedge_after_ms": { "llm": 1e9 as u64 } }] });
        let place = beyond(&hedge).map(|(path, ..)| path);
        assert_eq!(place.as_deref(), Some("calls[0].hedge_after_ms.llm"));
    }
}
