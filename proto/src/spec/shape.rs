//! Checks a tree against the published JSON Schema, so that what is checked is what is published.
//!
//! Understands the part of JSON Schema that our types produce; a test holds it to that.

use serde_json::{Map, Value};

use super::{
    diagnostic::{Severity, suggest},
    report::Report,
    source::{Entry, Kind, Node},
};

/// A schema and its definitions.
pub(super) struct Shape<'a> {
    pub(super) root: &'a Value,
    /// Whether unknown fields are errors, or dropped with a warning.
    pub(super) unknown_fields: Severity,
}

impl Shape<'_> {
    /// Reports what does not fit, and takes unknown fields out of the tree.
    pub(super) fn check(&self, node: &mut Node, report: &mut Report<'_>) {
        self.value(self.root, node, "", report);
    }

    fn value(&self, schema: &Value, node: &mut Node, path: &str, report: &mut Report<'_>) {
        // `true` stands for anything.
        let Value::Object(schema) = schema else {
            return;
        };
        if let Some(Value::String(reference)) = schema.get("$ref") {
            self.value(self.resolve(reference), node, path, report);
            return;
        }
        if let Some(branches) = alternatives(schema) {
            self.one_of(branches, node, path, report);
            return;
        }
        if let Some(Value::Array(words)) = schema.get("enum") {
            word(
                &words.iter().filter_map(Value::as_str).collect::<Vec<_>>(),
                node,
                path,
                report,
            );
            return;
        }
        if !has_type(schema, node, path, report) {
            return;
        }
        match &mut node.kind {
            Kind::Map(entries) => {
                let at = node.at;
                self.fields(schema, entries, at, path, report);
            }
            Kind::List(items) => {
                self.items(schema, items, node.at, path, report);
            }
            Kind::Number(number) => {
                let minimum = schema.get("minimum").and_then(Value::as_f64);
                let maximum = schema.get("maximum").and_then(Value::as_f64);
                let value = number.as_f64().unwrap_or(f64::MAX);
                let (message, hint) = match (minimum, maximum) {
                    (Some(minimum), _) if value < minimum => {
                        (format!("must be at least {minimum}"), None)
                    }
                    (_, Some(maximum)) if value > maximum => {
                        let least = minimum.unwrap_or_default();
                        let range = format!("from {least} to {maximum}");
                        (format!("must be at most {maximum}"), Some(range))
                    }
                    _ => return,
                };
                let message = format!("`{number}` {message}");
                report.error("out_of_range", node.at, path, message, hint);
            }
            Kind::Text(text) => {
                let length = text.len() as u64;
                let limit = |name: &str| schema.get(name).and_then(Value::as_u64);
                if limit("minLength").is_some_and(|least| length < least) {
                    report.error("blank", node.at, path, "must not be empty".to_owned(), None);
                } else if let Some(most) = limit("maxLength").filter(|most| length > *most) {
                    let message = format!("has {length} bytes; at most {most} are allowed");
                    report.error("too_long", node.at, path, message, None);
                }
            }
            Kind::Null | Kind::Bool(_) => {}
        }
    }

    fn fields(
        &self,
        schema: &Map<String, Value>,
        entries: &mut Vec<Entry>,
        at: super::source::Place,
        path: &str,
        report: &mut Report<'_>,
    ) {
        let none = Map::new();
        let known = schema
            .get("properties")
            .and_then(Value::as_object)
            .unwrap_or(&none);
        let others = schema.get("additionalProperties");
        let required = schema
            .get("required")
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        for field in required.iter().filter_map(Value::as_str) {
            if !entries.iter().any(|entry| entry.key == field) {
                let message = format!("missing field `{field}`");
                report.error("missing_field", at, path, message, None);
            }
        }
        let names = schema.get("propertyNames").and_then(|s| s.get("enum"));
        let names: Option<Vec<&str>> = names
            .and_then(|words| Some(words.as_array()?.iter().filter_map(Value::as_str).collect()));
        entries.retain_mut(|entry| {
            let path = join(path, &entry.key);
            if let Some(names) = &names
                && !names.contains(&entry.key.as_str())
            {
                let hint = suggest(&entry.key, names, "expected one of");
                let message = format!("`{}` is not possible here", entry.key);
                report.error("unknown_value", entry.at, &path, message, Some(hint));
                return true;
            }
            if let Some(schema) = known.get(&entry.key) {
                self.value(schema, &mut entry.value, &path, report);
                return true;
            }
            match others {
                Some(Value::Bool(false)) => {
                    let names: Vec<&str> = known.keys().map(String::as_str).collect();
                    let hint = suggest(&entry.key, &names, "known fields");
                    let message = format!("unknown field `{}`", entry.key);
                    report.add(
                        self.unknown_fields,
                        "unknown_field",
                        entry.at,
                        &path,
                        message,
                        Some(hint),
                    );
                    false
                }
                Some(schema) => {
                    self.value(schema, &mut entry.value, &path, report);
                    true
                }
                None => true,
            }
        });
    }

    fn items(
        &self,
        schema: &Map<String, Value>,
        items: &mut [Node],
        at: super::source::Place,
        path: &str,
        report: &mut Report<'_>,
    ) {
        let least = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
        if (items.len() as u64) < least {
            let message = format!("needs {least} or more entries");
            report.error("too_few", at, path, message, None);
        }
        let most = schema.get("maxItems").and_then(Value::as_u64);
        if let Some(most) = most.filter(|most| items.len() as u64 > *most) {
            let message = format!("may have {most} entries at most");
            report.error("too_many", at, path, message, None);
        }
        if schema.get("uniqueItems") == Some(&Value::Bool(true)) {
            let mut seen: Vec<Value> = Vec::with_capacity(items.len());
            for (index, item) in items.iter().enumerate() {
                let value = item.to_json();
                if seen.contains(&value) {
                    let path = format!("{path}[{index}]");
                    let message = format!("{} is listed twice", item.describe());
                    report.error("duplicate", item.at, &path, message, None);
                }
                seen.push(value);
            }
        }
        if let Some(schema) = schema.get("items") {
            for (index, item) in items.iter_mut().enumerate() {
                self.value(schema, item, &format!("{path}[{index}]"), report);
            }
        }
    }

    /// Either a choice of words and single-field maps, or something that may be absent.
    fn one_of(&self, branches: &[Value], node: &mut Node, path: &str, report: &mut Report<'_>) {
        let resolved: Vec<&Value> = branches.iter().map(|branch| self.deref(branch)).collect();
        let is_null = |schema: &Value| schema.get("type") == Some(&Value::from("null"));
        if matches!(node.kind, Kind::Null) && resolved.iter().any(|schema| is_null(schema)) {
            return;
        }
        let choices: Vec<&Value> = resolved.into_iter().filter(|s| !is_null(s)).collect();
        if let [only] = choices[..] {
            self.value(only, node, path, report);
            return;
        }
        if let Kind::Map(entries) = &node.kind
            && let [entry] = &entries[..]
            && let Some(schema) = choices.iter().find(|schema| {
                schema
                    .get("properties")
                    .is_some_and(|fields| fields.get(&entry.key).is_some())
            })
        {
            self.value(schema, node, path, report);
            return;
        }
        let mut words = Vec::new();
        for choice in choices {
            words.extend(choice.get("const").and_then(Value::as_str));
            if let Some(list) = choice.get("enum").and_then(Value::as_array) {
                words.extend(list.iter().filter_map(Value::as_str));
            }
            if let Some(fields) = choice.get("properties").and_then(Value::as_object) {
                words.extend(fields.keys().map(String::as_str));
            }
        }
        word(&words, node, path, report);
    }

    fn deref<'s>(&'s self, schema: &'s Value) -> &'s Value {
        match schema.get("$ref").and_then(Value::as_str) {
            Some(reference) => self.resolve(reference),
            None => schema,
        }
    }

    fn resolve(&self, reference: &str) -> &Value {
        reference
            .strip_prefix('#')
            .and_then(|pointer| self.root.pointer(pointer))
            .unwrap_or(&Value::Null)
    }
}

fn alternatives(schema: &Map<String, Value>) -> Option<&Vec<Value>> {
    schema
        .get("oneOf")
        .or_else(|| schema.get("anyOf"))
        .and_then(Value::as_array)
}

/// Checks a word of a closed list.
fn word(words: &[&str], node: &Node, path: &str, report: &mut Report<'_>) {
    let found = match &node.kind {
        Kind::Text(text) if words.contains(&text.as_str()) => return,
        Kind::Text(text) => text.clone(),
        Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::List(_) | Kind::Map(_) => {
            String::new()
        }
    };
    // A profile is refused by a code of its own (F-078).
    if path == "profile" {
        let message = match &node.kind {
            Kind::Text(_) => format!("unknown profile `{found}`"),
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::List(_) | Kind::Map(_) => {
                format!("expected a profile's name, found {}", node.describe())
            }
        };
        let hint = "only `simple/v1` exists".to_owned();
        report.error("unknown_profile", node.at, path, message, Some(hint));
        return;
    }
    let hint = suggest(&found, words, "expected one of");
    let message = format!("{} is not possible here", node.describe());
    report.error("unknown_value", node.at, path, message, Some(hint));
}

/// Checks a value's type, and says so if it is another.
fn has_type(schema: &Map<String, Value>, node: &Node, path: &str, report: &mut Report<'_>) -> bool {
    let wanted: Vec<&str> = match schema.get("type") {
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        Some(_) | None => return true,
    };
    let fits = |name: &&str| match &node.kind {
        Kind::Null => *name == "null",
        Kind::Bool(_) => *name == "boolean",
        Kind::Number(number) => {
            *name == "number" || (*name == "integer" && (number.is_u64() || number.is_i64()))
        }
        Kind::Text(_) => *name == "string",
        Kind::List(_) => *name == "array",
        Kind::Map(_) => *name == "object",
    };
    if wanted.iter().any(fits) {
        return true;
    }
    let names: Vec<&str> = wanted
        .iter()
        .filter(|name| **name != "null")
        .map(|name| match *name {
            "boolean" => "true or false",
            "integer" => "a whole number",
            "number" => "a number",
            "string" => "text",
            "array" => "a list",
            _ => "a map",
        })
        .collect();
    let message = format!("expected {}, found {}", names.join(" or "), node.describe());
    let hint = match (&node.kind, names.contains(&"text")) {
        (Kind::Number(_) | Kind::Bool(_), true) => Some("put it in quotes".to_owned()),
        _ => None,
    };
    report.error("wrong_type", node.at, path, message, hint);
    false
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        schema,
        spec::{PipelineSpec, PolicyBundle},
    };

    use super::*;

    /// A keyword that the types begin to use must not go unchecked.
    #[test]
    fn every_keyword_of_our_schemas_is_understood() {
        const CHECKED: &[&str] = &[
            "$ref",
            "oneOf",
            "anyOf",
            "enum",
            "const",
            "type",
            "properties",
            "required",
            "additionalProperties",
            "propertyNames",
            "items",
            "minItems",
            "maxItems",
            "uniqueItems",
            "minimum",
            "maximum",
            "minLength",
            "maxLength",
        ];
        // `format` only repeats the integer's width, which `maximum` and serde check.
        const SAID: &[&str] = &[
            "$schema",
            "$defs",
            "title",
            "description",
            "default",
            "format",
        ];
        fn walk(schema: &Value) {
            let Value::Object(fields) = schema else {
                return;
            };
            for (keyword, value) in fields {
                assert!(
                    CHECKED.contains(&keyword.as_str()) || SAID.contains(&keyword.as_str()),
                    "nobody checks `{keyword}`"
                );
                match (keyword.as_str(), value) {
                    ("properties" | "$defs", Value::Object(parts)) => parts.values().for_each(walk),
                    ("oneOf" | "anyOf", Value::Array(parts)) => parts.iter().for_each(walk),
                    ("items" | "additionalProperties" | "propertyNames", part) => walk(part),
                    _ => {}
                }
            }
        }
        walk(&schema::of::<PipelineSpec>());
        walk(&schema::of::<PolicyBundle>());
    }
}
