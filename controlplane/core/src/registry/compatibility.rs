//! What of a new version would break whoever uses the one before.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use rspp_proto::spec::{EGRESS, INGRESS, PipelineSpec, PortType, ToolDeclaration};
use serde_json::Value;

/// One thing that breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Break {
    /// Clients may send this, and it would go nowhere.
    InputGone(PortType),
    /// Clients wait for this, and it would never come.
    OutputGone(PortType),
    /// A payload of this tool that was good is good no longer, or what was promised is missing.
    Schema {
        /// The tool.
        tool: String,
        /// Where in its schema.
        path: String,
        /// What.
        what: SchemaBreak,
    },
    /// Whoever carries out this tool would no longer be called.
    ToolGone(String),
}

/// How a payload's schema breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchemaBreak {
    /// The field is gone.
    FieldGone,
    /// The field must be there now, and need not before.
    NowRequired,
    /// It is of another type.
    TypeChanged {
        /// Before.
        from: String,
        /// Now.
        to: String,
    },
    /// Words that were allowed are not.
    WordsGone(Vec<String>),
    /// A limit is tighter.
    Tightened(&'static str),
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InputGone(port) => {
                write!(f, "it takes no {} from clients any more", port.as_str())
            }
            Self::OutputGone(port) => write!(f, "it gives clients no {} any more", port.as_str()),
            Self::ToolGone(tool) => write!(f, "tool `{tool}` is gone"),
            Self::Schema { tool, path, what } => {
                write!(f, "tool `{tool}`, `{path}`: ")?;
                match what {
                    SchemaBreak::FieldGone => f.write_str("the field is gone"),
                    SchemaBreak::NowRequired => f.write_str("the field is required now"),
                    SchemaBreak::TypeChanged { from, to } => {
                        write!(f, "the type was {from} and is {to}")
                    }
                    SchemaBreak::WordsGone(words) => write!(f, "no longer allowed: {words:?}"),
                    SchemaBreak::Tightened(limit) => write!(f, "`{limit}` is tighter"),
                }
            }
        }
    }
}

/// What breaks for clients and for whoever carries out tools.
pub fn breaks_of_pipeline(old: &PipelineSpec, new: &PipelineSpec) -> Vec<Break> {
    let inputs = |spec: &PipelineSpec| -> BTreeSet<_> {
        let edges = spec
            .edges
            .iter()
            .filter(|edge| edge.from.as_str() == INGRESS);
        edges.map(|edge| edge.carries).collect()
    };
    let outputs = |spec: &PipelineSpec| -> BTreeSet<_> {
        let edges = spec.edges.iter().filter(|edge| edge.to.as_str() == EGRESS);
        edges.map(|edge| edge.carries).collect()
    };
    let mut breaks = Vec::new();
    let gone = inputs(old)
        .difference(&inputs(new))
        .copied()
        .map(Break::InputGone)
        .collect::<Vec<_>>();
    breaks.extend(gone);
    let gone = outputs(old)
        .difference(&outputs(new))
        .copied()
        .map(Break::OutputGone)
        .collect::<Vec<_>>();
    breaks.extend(gone);
    let new_tools = tools(new);
    for (name, tool) in tools(old) {
        match new_tools.get(name) {
            None => breaks.push(Break::ToolGone(name.to_owned())),
            Some(newer) => {
                let found = breaks_of_schema(&tool.parameters, &newer.parameters);
                breaks.extend(found.into_iter().map(|(path, what)| Break::Schema {
                    tool: name.to_owned(),
                    path,
                    what,
                }));
            }
        }
    }
    breaks
}

fn tools(spec: &PipelineSpec) -> BTreeMap<&str, &ToolDeclaration> {
    let tools = spec.nodes.iter().flat_map(|node| &node.tools);
    tools.map(|tool| (tool.name.as_str(), tool)).collect()
}

/// What of a JSON schema breaks, and where: readers of the old payload must be able to read the new,
/// and what was good before must stay good.
pub fn breaks_of_schema(old: &Value, new: &Value) -> Vec<(String, SchemaBreak)> {
    let mut found = Vec::new();
    compare(old, new, "", &mut found);
    found
}

fn compare(old: &Value, new: &Value, path: &str, found: &mut Vec<(String, SchemaBreak)>) {
    let mut add = |path: &str, what| found.push((path.to_owned(), what));
    let types = |schema: &Value| -> BTreeSet<String> {
        match &schema["type"] {
            Value::String(name) => BTreeSet::from([name.clone()]),
            Value::Array(names) => names
                .iter()
                .filter_map(|n| Some(n.as_str()?.to_owned()))
                .collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => BTreeSet::new(),
        }
    };
    let (old_types, new_types) = (types(old), types(new));
    // No type is any type: to name one, or another, shuts something out.
    if !new_types.is_empty() && (old_types.is_empty() || !old_types.is_subset(&new_types)) {
        let text = |types: &BTreeSet<String>| {
            let words: Vec<_> = types.iter().map(String::as_str).collect();
            if words.is_empty() {
                "anything".to_owned()
            } else {
                words.join(" or ")
            }
        };
        add(
            path,
            SchemaBreak::TypeChanged {
                from: text(&old_types),
                to: text(&new_types),
            },
        );
        return;
    }
    let words = |schema: &Value| schema["enum"].as_array().cloned();
    match (words(old), words(new)) {
        (Some(old), Some(new)) => {
            let gone: Vec<_> = old.iter().filter(|word| !new.contains(word)).collect();
            if !gone.is_empty() {
                let gone = gone.into_iter().map(ToString::to_string).collect();
                add(path, SchemaBreak::WordsGone(gone));
            }
        }
        (None, Some(_)) => add(path, SchemaBreak::Tightened("enum")),
        (Some(_) | None, None) => {}
    }
    for (limit, is_upper) in [
        ("maximum", true),
        ("maxLength", true),
        ("maxItems", true),
        ("minimum", false),
        ("minLength", false),
        ("minItems", false),
    ] {
        let tighter = match (old[limit].as_f64(), new[limit].as_f64()) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(old), Some(new)) if is_upper => new < old,
            (Some(old), Some(new)) => new > old,
        };
        if tighter {
            add(path, SchemaBreak::Tightened(limit));
        }
    }
    let required = |schema: &Value| -> BTreeSet<String> {
        let names = schema["required"].as_array().into_iter().flatten();
        names
            .filter_map(|name| Some(name.as_str()?.to_owned()))
            .collect()
    };
    let below = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    for name in required(new).difference(&required(old)) {
        add(&below(name), SchemaBreak::NowRequired);
    }
    let empty = serde_json::Map::new();
    let fields = |schema: &'_ Value| schema["properties"].as_object().cloned();
    let new_fields = fields(new).unwrap_or_else(|| empty.clone());
    for (name, old_field) in fields(old).unwrap_or(empty) {
        match new_fields.get(&name) {
            None => found.push((below(&name), SchemaBreak::FieldGone)),
            Some(new_field) => compare(&old_field, new_field, &below(&name), found),
        }
    }
    if old["items"].is_object() && new["items"].is_object() {
        compare(&old["items"], &new["items"], &format!("{path}[]"), found);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(old: &Value, new: &Value, expected: &[(&str, SchemaBreak)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(p, w)| ((*p).to_owned(), w.clone()))
            .collect();
        assert_eq!(breaks_of_schema(old, new), expected);
    }

    /// F-028: dropped fields, changed types and new demands break; additions do not.
    #[test]
    fn a_schema_breaks_where_something_that_was_good_is_not() {
        let old = json!({"type": "object", "required": ["day"], "properties": {
            "day": {"type": "string"}, "size": {"type": "integer", "maximum": 9},
            "place": {"type": "object", "properties": {"room": {"enum": ["a", "b"]}}}
        }});
        check(&old, &old, &[]);
        let mut more = old.clone();
        more["properties"]["note"] = json!({"type": "string"});
        more["properties"]["size"] = json!({"type": ["integer", "null"]});
        check(&old, &more, &[]);
        check(
            &more,
            &old,
            &[
                ("note", SchemaBreak::FieldGone),
                (
                    "size",
                    SchemaBreak::TypeChanged {
                        from: "integer or null".into(),
                        to: "integer".into(),
                    },
                ),
            ],
        );
        let mut stricter = old.clone();
        stricter["required"] = json!(["day", "size"]);
        stricter["properties"]["size"]["maximum"] = json!(5);
        stricter["properties"]["place"]["properties"]["room"]["enum"] = json!(["a"]);
        check(
            &old,
            &stricter,
            &[
                ("size", SchemaBreak::NowRequired),
                ("place.room", SchemaBreak::WordsGone(vec!["\"b\"".into()])),
                ("size", SchemaBreak::Tightened("maximum")),
            ],
        );
        check(
            &json!({}),
            &json!({"type": "string"}),
            &[(
                "",
                SchemaBreak::TypeChanged {
                    from: "anything".into(),
                    to: "string".into(),
                },
            )],
        );
    }

    #[test]
    fn a_pipeline_breaks_when_clients_miss_something() {
        let old = PipelineSpec::simple();
        let mut new = old.clone();
        assert_eq!(breaks_of_pipeline(&old, &new), []);
        new.edges.retain(|edge| edge.to.as_str() != EGRESS);
        let gone = breaks_of_pipeline(&old, &new);
        assert!(
            gone.contains(&Break::OutputGone(PortType::Audio)),
            "{gone:?}"
        );
        // More than before is no break.
        assert_eq!(breaks_of_pipeline(&new, &old), []);
    }
}
