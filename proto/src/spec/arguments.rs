//! The part of JSON Schema that tools' arguments are held to.
//!
//! Models follow it without a regular expression engine at hand, and so do we: what a spec asks for
//! beyond it is refused when the spec is read, instead of being ignored when a call comes.

use std::fmt;

use serde_json::{Map, Value};

/// Deepest nesting of a schema.
const MAX_DEPTH: usize = 16;
/// Problems of one call that are told; a model mends them one by one anyway.
const MAX_PROBLEMS: usize = 8;

/// What is wrong, and where: a path like `items[2].size`, empty for the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgumentProblem {
    /// Where.
    pub path: String,
    /// What.
    pub message: String,
}

impl fmt::Display for ArgumentProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, message } = self;
        if path.is_empty() {
            f.write_str(message)
        } else {
            write!(f, "`{path}` {message}")
        }
    }
}

/// A schema of arguments: `type`, `properties`, `required`, `additionalProperties: true|false`,
/// `items`, `enum`, `const`, `anyOf`, and the bounds of numbers, texts and lists.
#[derive(Clone, Copy, Debug)]
pub struct ArgumentSchema<'a>(&'a Value);

impl<'a> ArgumentSchema<'a> {
    /// The schema as a spec writes it.
    pub fn new(schema: &'a Value) -> Self {
        Self(schema)
    }

    /// What in the schema itself is not understood.
    pub fn problems(self) -> Vec<ArgumentProblem> {
        let mut found = Vec::new();
        let kind = self.0.get("type").and_then(Value::as_str);
        if kind != Some("object") {
            found.push(problem(
                "",
                "must have `type: object`: arguments have names",
            ));
        }
        understand(self.0, "", 0, &mut found);
        found
    }

    /// What is wrong with `arguments`; empty if they fit.
    pub fn check(self, arguments: &Value) -> Vec<ArgumentProblem> {
        let mut found = Vec::new();
        check(self.0, arguments, "", &mut found);
        found.truncate(MAX_PROBLEMS);
        found
    }
}

fn problem(path: &str, message: impl Into<String>) -> ArgumentProblem {
    ArgumentProblem {
        path: path.to_owned(),
        message: message.into(),
    }
}

fn inside(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

const TYPES: [&str; 7] = [
    "object", "array", "string", "integer", "number", "boolean", "null",
];

/// The types that `type` names: one, or a list of them.
fn types(schema: &Map<String, Value>) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => {
            Vec::new()
        }
    }
}

fn understand(schema: &Value, path: &str, depth: usize, found: &mut Vec<ArgumentProblem>) {
    let Value::Object(fields) = schema else {
        found.push(problem(path, "is no schema: a schema is a mapping"));
        return;
    };
    if depth > MAX_DEPTH {
        found.push(problem(path, "is nested too deep"));
        return;
    }
    for (keyword, value) in fields {
        let at = inside(path, keyword);
        let fits = match keyword.as_str() {
            "type" => {
                let names = types(fields);
                !names.is_empty() && names.iter().all(|name| TYPES.contains(name))
            }
            "properties" => {
                if let Value::Object(properties) = value {
                    for (name, schema) in properties {
                        understand(schema, &inside(&at, name), depth + 1, found);
                    }
                }
                value.is_object()
            }
            "items" => {
                understand(value, &at, depth + 1, found);
                true
            }
            "required" => value
                .as_array()
                .is_some_and(|names| names.iter().all(Value::is_string)),
            "enum" => value.as_array().is_some_and(|choices| !choices.is_empty()),
            "anyOf" => {
                let choices = value.as_array().map(Vec::as_slice).unwrap_or_default();
                for (index, choice) in choices.iter().enumerate() {
                    understand(choice, &format!("{at}[{index}]"), depth + 1, found);
                }
                !choices.is_empty()
            }
            "additionalProperties" => value.is_boolean(),
            "minimum" | "maximum" => value.is_number(),
            "minLength" | "maxLength" | "minItems" | "maxItems" => value.is_u64(),
            // All but `const` are said to the model, not checked.
            "const" | "title" | "description" | "default" | "examples" | "format" => true,
            _ => {
                let message = "is not enforced here; say it in the description instead";
                found.push(problem(&at, message));
                true
            }
        };
        if !fits {
            found.push(problem(&at, "has a value that means nothing"));
        }
    }
}

fn check(schema: &Value, value: &Value, path: &str, found: &mut Vec<ArgumentProblem>) {
    let Value::Object(schema) = schema else {
        return; // Refused when the spec was read.
    };
    let types = types(schema);
    if !types.is_empty() && !types.iter().any(|name| is_a(value, name)) {
        let message = format!(
            "must be of type {}, not {}",
            types.join(" or "),
            kind(value)
        );
        found.push(problem(path, message));
        return;
    }
    if let Some(Value::Array(choices)) = schema.get("enum")
        && !choices.contains(value)
    {
        let choices: Vec<_> = choices.iter().map(ToString::to_string).collect();
        found.push(problem(
            path,
            format!("must be one of {}", choices.join(", ")),
        ));
    }
    if let Some(Value::Array(choices)) = schema.get("anyOf") {
        fits_one(choices, value, path, found);
    }
    if let Some(only) = schema.get("const").filter(|only| *only != value) {
        found.push(problem(path, format!("must be {only}")));
    }
    match value {
        Value::Object(fields) => check_fields(schema, fields, path, found),
        Value::Array(items) => {
            bounds(schema, "Items", items.len(), "items", path, found);
            if let Some(of) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    check(of, item, &format!("{path}[{index}]"), found);
                }
            }
        }
        Value::String(text) => {
            let length = text.chars().count();
            bounds(schema, "Length", length, "characters", path, found);
        }
        Value::Number(number) => {
            let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
            let number = number.as_f64().unwrap_or(f64::NAN);
            if let Some(least) = bound("minimum").filter(|least| number < *least) {
                found.push(problem(path, format!("must be at least {least}")));
            }
            if let Some(most) = bound("maximum").filter(|most| number > *most) {
                found.push(problem(path, format!("must be at most {most}")));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

/// One of several schemas is enough; if none fits, each says what it misses first.
fn fits_one(choices: &[Value], value: &Value, path: &str, found: &mut Vec<ArgumentProblem>) {
    let mut missed = Vec::new();
    for choice in choices {
        let mut of_this = Vec::new();
        check(choice, value, path, &mut of_this);
        match of_this.into_iter().next() {
            None => return,
            Some(first) => missed.push(first.message),
        }
    }
    found.push(problem(path, missed.join(", or ")));
}

fn check_fields(
    schema: &Map<String, Value>,
    fields: &Map<String, Value>,
    path: &str,
    found: &mut Vec<ArgumentProblem>,
) {
    let none = Map::new();
    let known = match schema.get("properties") {
        Some(Value::Object(known)) => known,
        _nothing_is_named => &none,
    };
    let required = schema.get("required").and_then(Value::as_array);
    for name in required.into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            found.push(problem(&inside(path, name), "is missing"));
        }
    }
    let closed = schema.get("additionalProperties") == Some(&Value::Bool(false));
    for (name, value) in fields {
        let at = inside(path, name);
        match known.get(name) {
            Some(of) => check(of, value, &at, found),
            None if closed => {
                let names: Vec<_> = known.keys().map(String::as_str).collect();
                let names = if names.is_empty() {
                    "there are no arguments".to_owned()
                } else {
                    format!("there are {}", names.join(", "))
                };
                found.push(problem(&at, format!("is unknown; {names}")));
            }
            None => {}
        }
    }
}

fn bounds(
    schema: &Map<String, Value>,
    suffix: &str,
    length: usize,
    unit: &str,
    path: &str,
    found: &mut Vec<ArgumentProblem>,
) {
    let bound = |name: &str| {
        schema
            .get(&format!("{name}{suffix}"))
            .and_then(Value::as_u64)
    };
    if let Some(least) = bound("min").filter(|least| (length as u64) < *least) {
        found.push(problem(path, format!("must have at least {least} {unit}")));
    }
    if let Some(most) = bound("max").filter(|most| length as u64 > *most) {
        found.push(problem(path, format!("must have at most {most} {unit}")));
    }
}

fn is_a(value: &Value, name: &str) -> bool {
    match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::Number(number) => {
            // 3.0 is a whole number, as JSON Schema has it.
            let whole = number.is_i64()
                || number.is_u64()
                || number.as_f64().is_some_and(|number| number.fract() == 0.0);
            name == "number" || (name == "integer" && whole)
        }
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(problems: &[ArgumentProblem]) -> Vec<String> {
        problems.iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn check(schema: ArgumentSchema<'_>, arguments: &Value, expected: &[&str]) {
        assert_eq!(said(&schema.check(arguments)), expected);
    }

    #[test]
    fn what_is_wrong_with_arguments_is_said_with_its_place() {
        let schema = json!({
            "type": "object",
            "properties": {
                "size": { "type": "string", "enum": ["small", "large"] },
                "count": { "type": "integer", "minimum": 1, "maximum": 9 },
                "notes": { "type": "array", "items": { "type": "string", "maxLength": 3 }, "maxItems": 2 },
            },
            "required": ["size"],
            "additionalProperties": false,
        });
        let schema = ArgumentSchema::new(&schema);
        assert_eq!(schema.problems(), []);
        check(
            schema,
            &json!({ "size": "small", "count": 2.0, "notes": ["abc"] }),
            &[],
        );
        check(schema, &json!({}), &["`size` is missing"]);
        check(schema, &json!([]), &["must be of type object, not array"]);
        check(
            schema,
            &json!({ "size": "huge", "count": 0 }),
            &[
                "`count` must be at least 1",
                "`size` must be one of \"small\", \"large\"",
            ],
        );
        check(
            schema,
            &json!({ "size": "small", "count": 1.5, "notes": ["abcd"], "colour": 1 }),
            &[
                "`colour` is unknown; there are count, notes, size",
                "`count` must be of type integer, not number",
                "`notes[0]` must have at most 3 characters",
            ],
        );
    }

    /// What may be left out is written so by those who make schemas of types.
    #[test]
    fn one_of_several_schemas_is_enough() {
        let schema = json!({
            "type": "object",
            "properties": {
                "room": { "anyOf": [{ "type": "integer", "minimum": 1 }, { "type": "null" }] },
            },
        });
        let schema = ArgumentSchema::new(&schema);
        assert_eq!(schema.problems(), []);
        check(schema, &json!({ "room": 3 }), &[]);
        check(schema, &json!({ "room": null }), &[]);
        check(
            schema,
            &json!({ "room": 0 }),
            &["`room` must be at least 1, or must be of type null, not number"],
        );
        let wrong = json!({ "type": "object", "anyOf": [{ "pattern": "a" }] });
        assert_eq!(
            said(&ArgumentSchema::new(&wrong).problems()),
            ["`anyOf[0].pattern` is not enforced here; say it in the description instead"]
        );
    }

    #[test]
    fn what_would_not_be_enforced_is_refused_with_the_spec() {
        let schema = json!({
            "type": "object",
            "properties": { "when": { "type": "text", "pattern": "^[0-9]+$" } },
        });
        assert_eq!(
            said(&ArgumentSchema::new(&schema).problems()),
            [
                "`properties.when.pattern` is not enforced here; say it in the description instead",
                "`properties.when.type` has a value that means nothing",
            ]
        );
        let problems = ArgumentSchema::new(&Value::Null).problems();
        assert_eq!(problems.len(), 2);
    }
}
