//! Definitions of the registry as types for Python (F-032): a dictionary type for each object, with what its
//! fields mean.

use std::{collections::BTreeMap, fmt::Write as _};

use rspp_proto::schema::Registry;
use serde_json::Value;

/// A module that needs nothing but the standard library.
pub(crate) fn types(registry: &Registry) -> String {
    let mut types = BTreeMap::<String, String>::new();
    for definition in &registry.definitions {
        let named = definition.schema["$defs"].as_object();
        for (name, schema) in named.into_iter().flatten() {
            types
                .entry(name.clone())
                .or_insert_with(|| declared(name, schema));
        }
        let title = definition.schema["title"].as_str();
        let title = title.unwrap_or(definition.name);
        types.insert(title.to_owned(), declared(title, &definition.schema));
    }
    let version = registry.version;
    let mut text = format!(
        "# Types of rspp {version}, made by `rspp schema show {version} --python`.\n# sha256 {}\n\n\
         from typing import Any, Literal, NotRequired, TypedDict, Union\n",
        registry.digest()
    );
    for declared in types.values() {
        text.push_str("\n\n");
        text.push_str(declared);
    }
    text.truncate(text.trim_end().len());
    text
}

fn comment(about: &str, indent: &str) -> String {
    let lines = about
        .lines()
        .map(|line| format!("{indent}# {line}").trim_end().to_owned() + "\n");
    lines.collect()
}

/// All types are texts: they may name each other in any order, and names of fields may be words of Python.
fn declared(name: &str, schema: &Value) -> String {
    let about = schema["description"].as_str().unwrap_or(name);
    let fields = schema["properties"].as_object();
    let Some(fields) = fields.filter(|fields| !fields.is_empty()) else {
        return format!("{}{name} = \"{}\"\n", comment(about, ""), of(schema));
    };
    let required = schema["required"].as_array();
    let is_required = |field: &str| required.is_some_and(|all| all.iter().any(|it| it == field));
    let mut text = comment(about, "");
    writeln!(text, "{name} = TypedDict(\n    \"{name}\",\n    {{")
        .expect("a string takes what is written");
    for (field, schema) in fields {
        let about = schema["description"].as_str().unwrap_or_default();
        text.push_str(&comment(about, "        "));
        let holds = of(schema);
        let line = if is_required(field) {
            format!("        \"{field}\": \"{holds}\",\n")
        } else {
            format!("        \"{field}\": \"NotRequired[{holds}]\",\n")
        };
        text.push_str(&line);
    }
    text.push_str("    },\n)\n");
    text
}

/// What a part of a schema lets something hold.
fn of(schema: &Value) -> String {
    if let Some(named) = schema["$ref"].as_str() {
        return named.rsplit('/').next().unwrap_or(named).to_owned();
    }
    for several in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[several].as_array() {
            return union(choices.iter().map(of));
        }
    }
    if let Some(value) = schema.get("const") {
        return literal(value);
    }
    if let Some(values) = schema["enum"].as_array() {
        return union(values.iter().map(literal));
    }
    let one = |word: &str| match word {
        "string" => "str".to_owned(),
        "integer" => "int".to_owned(),
        "number" => "float".to_owned(),
        "boolean" => "bool".to_owned(),
        "null" => "None".to_owned(),
        "array" => format!("list[{}]", of(&schema["items"])),
        "object" => "dict[str, Any]".to_owned(),
        _another => "Any".to_owned(),
    };
    match &schema["type"] {
        Value::String(word) => one(word),
        Value::Array(words) => union(words.iter().filter_map(Value::as_str).map(one)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => "Any".to_owned(),
    }
}

fn union(choices: impl Iterator<Item = String>) -> String {
    let choices: Vec<_> = choices.collect();
    match &*choices {
        [] => "Any".to_owned(),
        [one] => one.clone(),
        several => format!("Union[{}]", several.join(", ")),
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::String(text) => format!("Literal['{text}']"),
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "Literal[True]".to_owned(),
        Value::Bool(false) => "Literal[False]".to_owned(),
        Value::Number(number) => format!("Literal[{number}]"),
        Value::Array(_) | Value::Object(_) => "Any".to_owned(),
    }
}
