//! What of a new version would break whoever uses the one before.

use std::{
    cell::RefCell,
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
    /// None of the shapes that it may have now takes one that it might have before.
    ShapeGone(String),
}

impl fmt::Display for SchemaBreak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FieldGone => f.write_str("the field is gone"),
            Self::NowRequired => f.write_str("the field is required now"),
            Self::TypeChanged { from, to } => write!(f, "the type was {from} and is {to}"),
            Self::WordsGone(words) => write!(f, "no longer allowed: {words:?}"),
            Self::Tightened(limit) => write!(f, "`{limit}` is tighter"),
            Self::ShapeGone(shape) => write!(f, "no longer allowed: {shape}"),
        }
    }
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
                write!(f, "tool `{tool}`, `{path}`: {what}")
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

/// What of a schema breaks those who rely on the one that was released, unless it has the number of the next
/// version in its `$id` (F-028). A schema without a name is held to what was released.
pub fn breaks_of_release(released: &Value, now: &Value) -> Vec<(String, SchemaBreak)> {
    let version = |schema: &Value| {
        let id = schema["$id"].as_str()?;
        let (_, number) = id.rsplit_once(":v")?;
        number.parse::<u64>().ok()
    };
    if version(now) > version(released) {
        return Vec::new();
    }
    breaks_of_schema(released, now)
}

/// Most references to references that are followed.
const MAX_HOPS: usize = 16;

/// Two schemas that are compared: the documents that their references are looked up in.
struct Comparison<'a> {
    old: &'a Value,
    new: &'a Value,
    /// What is referred to that is being compared, or was found to be good: schemas may name themselves.
    looked_into: RefCell<BTreeSet<(String, String)>>,
}

/// What a schema that only refers to another means.
fn resolved<'a>(root: &'a Value, mut schema: &'a Value) -> &'a Value {
    for _ in 0..MAX_HOPS {
        let name = schema["$ref"].as_str().and_then(|it| it.strip_prefix('#'));
        match name.and_then(|pointer| root.pointer(pointer)) {
            Some(meant) => schema = meant,
            None => break,
        }
    }
    schema
}

fn types(schema: &Value) -> BTreeSet<String> {
    match &schema["type"] {
        Value::String(name) => BTreeSet::from([name.clone()]),
        Value::Array(names) => names
            .iter()
            .filter_map(|n| Some(n.as_str()?.to_owned()))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => BTreeSet::new(),
    }
}

/// The only values that it takes, if it names them.
fn words(schema: &Value) -> Option<Vec<Value>> {
    match schema.get("const") {
        Some(only) => Some(vec![only.clone()]),
        None => schema["enum"].as_array().cloned(),
    }
}

/// The shapes of which it has one, if it may have several.
fn shapes(schema: &Value) -> Option<&Vec<Value>> {
    schema["oneOf"]
        .as_array()
        .or_else(|| schema["anyOf"].as_array())
}

/// How a break calls a shape.
fn called(root: &Value, shape: &Value) -> String {
    let meant = resolved(root, shape);
    let only = words(meant).map(|words| Value::Array(words).to_string());
    let tagged = || {
        let fields = meant["properties"].as_object()?;
        let tags = fields.iter().filter_map(|(name, field)| {
            Some(format!("{name} {}", resolved(root, field).get("const")?))
        });
        Some(tags.collect::<Vec<_>>().join(", ")).filter(|tags| !tags.is_empty())
    };
    let reference = || Some(shape["$ref"].as_str()?.rsplit('/').next()?.to_owned());
    let found = only.or_else(tagged).or_else(reference);
    found.unwrap_or_else(|| types(meant).into_iter().collect::<Vec<_>>().join(" or "))
}

fn compare(old: &Value, new: &Value, path: &str, found: &mut Vec<(String, SchemaBreak)>) {
    let whole = Comparison {
        old,
        new,
        looked_into: RefCell::default(),
    };
    whole.compare(old, new, path, found);
}

impl Comparison<'_> {
    fn compare(
        &self,
        old: &Value,
        new: &Value,
        path: &str,
        found: &mut Vec<(String, SchemaBreak)>,
    ) {
        let pair = match (old["$ref"].as_str(), new["$ref"].as_str()) {
            (Some(old), Some(new)) => Some((old.to_owned(), new.to_owned())),
            (_, _) => None,
        };
        if let Some(pair) = &pair
            && !self.looked_into.borrow_mut().insert(pair.clone())
        {
            return;
        }
        let before = found.len();
        self.parts(
            resolved(self.old, old),
            resolved(self.new, new),
            path,
            found,
        );
        // What breaks is told wherever it is referred to.
        if let Some(pair) = pair
            && found.len() > before
        {
            self.looked_into.borrow_mut().remove(&pair);
        }
    }

    fn parts(&self, old: &Value, new: &Value, path: &str, found: &mut Vec<(String, SchemaBreak)>) {
        let before = found.len();
        Self::types(old, new, path, found);
        if found.len() > before {
            return;
        }
        Self::limits(old, new, path, found);
        self.shapes(old, new, path, found);
        self.fields(old, new, path, found);
        if old["items"].is_object() && new["items"].is_object() {
            self.compare(&old["items"], &new["items"], &format!("{path}[]"), found);
        }
        let others = |schema: &Value| schema["additionalProperties"].clone();
        match (others(old), others(new)) {
            (Value::Bool(false), _) | (_, Value::Null | Value::Bool(true)) => {}
            (Value::Null | Value::Bool(true), _) => {
                found.push((
                    path.to_owned(),
                    SchemaBreak::Tightened("additionalProperties"),
                ));
            }
            (old, new) => self.compare(&old, &new, &format!("{path}{{}}"), found),
        }
    }

    fn types(old: &Value, new: &Value, path: &str, found: &mut Vec<(String, SchemaBreak)>) {
        let (old, new) = (types(old), types(new));
        // No type is any type: to name one, or another, shuts something out.
        if new.is_empty() || (!old.is_empty() && old.is_subset(&new)) {
            return;
        }
        let text = |types: &BTreeSet<String>| {
            let words: Vec<_> = types.iter().map(String::as_str).collect();
            if words.is_empty() {
                "anything".to_owned()
            } else {
                words.join(" or ")
            }
        };
        let what = SchemaBreak::TypeChanged {
            from: text(&old),
            to: text(&new),
        };
        found.push((path.to_owned(), what));
    }

    fn limits(old: &Value, new: &Value, path: &str, found: &mut Vec<(String, SchemaBreak)>) {
        let mut add = |what| found.push((path.to_owned(), what));
        match (words(old), words(new)) {
            (Some(old), Some(new)) => {
                let gone: Vec<_> = old.iter().filter(|word| !new.contains(word)).collect();
                if !gone.is_empty() {
                    let gone = gone.into_iter().map(ToString::to_string).collect();
                    add(SchemaBreak::WordsGone(gone));
                }
            }
            (None, Some(_)) => add(SchemaBreak::Tightened("enum")),
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
                add(SchemaBreak::Tightened(limit));
            }
        }
        // Which of two such rules lets more in cannot be seen: another one is taken for a tighter one.
        for rule in ["pattern", "propertyNames", "uniqueItems", "allOf", "not"] {
            if !new[rule].is_null() && new[rule] != old[rule] {
                add(SchemaBreak::Tightened(rule));
            }
        }
    }

    /// Each shape that was good must be good as one of those there are now.
    fn shapes(&self, old: &Value, new: &Value, path: &str, found: &mut Vec<(String, SchemaBreak)>) {
        let Some(new_shapes) = shapes(new) else {
            return;
        };
        let one = [old.clone()];
        let old_shapes = shapes(old).map_or(&one[..], Vec::as_slice);
        for shape in old_shapes {
            let mut least: Option<Vec<_>> = None;
            for newer in new_shapes {
                let mut breaks = Vec::new();
                self.compare(shape, newer, path, &mut breaks);
                if least
                    .as_ref()
                    .is_none_or(|least| breaks.len() < least.len())
                {
                    least = Some(breaks);
                }
            }
            match least {
                Some(breaks) if breaks.is_empty() => {}
                // Of a shape that is still there by its name, what has become of it.
                Some(breaks)
                    if new_shapes
                        .iter()
                        .any(|newer| called(self.new, newer) == called(self.old, shape)) =>
                {
                    found.extend(breaks);
                }
                Some(_) | None => {
                    let shape = called(self.old, shape);
                    found.push((path.to_owned(), SchemaBreak::ShapeGone(shape)));
                }
            }
        }
    }

    fn fields(&self, old: &Value, new: &Value, path: &str, found: &mut Vec<(String, SchemaBreak)>) {
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
            found.push((below(name), SchemaBreak::NowRequired));
        }
        let empty = serde_json::Map::new();
        let fields = |schema: &Value| schema["properties"].as_object().cloned();
        let new_fields = fields(new).unwrap_or_else(|| empty.clone());
        for (name, old_field) in fields(old).unwrap_or(empty) {
            match new_fields.get(&name) {
                None => found.push((below(&name), SchemaBreak::FieldGone)),
                Some(new_field) => self.compare(&old_field, new_field, &below(&name), found),
            }
        }
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

    /// F-028: what schemas refer to, and the shapes of which a payload has one, are looked into.
    #[test]
    fn references_and_shapes_are_looked_into() {
        let old = json!({
            "properties": {"event": {"$ref": "#/$defs/Event"}},
            "$defs": {
                "Event": {"oneOf": [
                    {"type": "object", "properties": {"kind": {"const": "text"}, "text": {"type": "string"}}},
                    {"type": "object", "properties": {"kind": {"const": "end"}}},
                ]},
                "Tree": {"properties": {"next": {"$ref": "#/$defs/Tree"}}},
            },
        });
        check(&old, &old, &[]);
        let shape = |at: usize| format!("/$defs/Event/oneOf/{at}");
        let mut dropped = old.clone();
        let fields = dropped.pointer_mut(&(shape(0) + "/properties")).unwrap();
        fields.as_object_mut().unwrap().remove("text");
        check(&old, &dropped, &[("event.text", SchemaBreak::FieldGone)]);
        check(&dropped, &old, &[]);
        let mut fewer = old.clone();
        let all = fewer.pointer_mut("/$defs/Event/oneOf").unwrap();
        all.as_array_mut().unwrap().pop();
        let gone = SchemaBreak::ShapeGone("kind \"end\"".into());
        check(&old, &fewer, &[("event", gone)]);
        check(&fewer, &old, &[]);
        let closed = json!({"type": "object", "additionalProperties": false});
        let open = json!({"type": "object"});
        let tighter = SchemaBreak::Tightened("additionalProperties");
        check(&open, &closed, &[("", tighter)]);
        check(&closed, &open, &[]);
    }

    /// F-028: the next version of a schema may break what it likes, and an older one nothing.
    #[test]
    fn the_next_version_may_break() {
        let of = |version: u32, fields: Value| json!({"$id": format!("urn:x:v{version}"), "properties": fields});
        let old = of(1, json!({"a": {}}));
        let gone = [("a".to_owned(), SchemaBreak::FieldGone)];
        assert_eq!(breaks_of_release(&old, &of(1, json!({}))), gone);
        assert_eq!(breaks_of_release(&old, &of(2, json!({}))), []);
        assert_eq!(
            breaks_of_release(&of(2, json!({"a": {}})), &of(1, json!({}))),
            gone
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
