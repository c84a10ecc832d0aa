//! YAML or JSON text as a tree that remembers where everything stood.
//!
//! JSON is read as the YAML that it is. Plain scalars follow YAML 1.2's core schema, so `no` and `on`
//! are text. Size, depth and alias expansion are bounded.

use std::collections::{BTreeMap, HashMap};

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Number, Value};

/// Longest text that is read, in bytes.
const MAX_TEXT_BYTES: usize = 1024 * 1024;
/// Deepest nesting.
const MAX_DEPTH: usize = 32;
/// Most values, counting what aliases repeat.
const MAX_VALUES: usize = 50_000;

/// A place in the text, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Place {
    const START: Self = Self { line: 1, column: 1 };

    fn of(span: &Span) -> Self {
        Self {
            line: span.start.line().max(1),
            column: span.start.col() + 1,
        }
    }
}

/// A value and where it begins.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: Place,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A field of a map.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) at: Place,
    pub(super) key: String,
    pub(super) value: Node,
}

/// Why a text is no tree.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) at: Place,
    pub(super) message: String,
    pub(super) hint: Option<&'static str>,
}

impl Unreadable {
    fn new(at: Place, message: impl Into<String>) -> Self {
        Self {
            at,
            message: message.into(),
            hint: None,
        }
    }

    fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }
}

/// Reads one document.
pub(super) fn read(text: &str) -> Result<Node, Unreadable> {
    if text.len() > MAX_TEXT_BYTES {
        let message = format!(
            "the text has {} bytes; at most {MAX_TEXT_BYTES} are read",
            text.len()
        );
        return Err(Unreadable::new(Place::START, message));
    }
    let mut composer = Composer::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let at = Place {
                line: error.marker().line().max(1),
                column: error.marker().col() + 1,
            };
            Unreadable::new(at, format!("not readable as YAML: {}", error.info()))
        })?;
        composer.take(event, Place::of(&span))?;
    }
    composer
        .document
        .ok_or_else(|| Unreadable::new(Place::START, "the document is empty"))
}

/// Builds the tree from the parser's events, without recursion.
#[derive(Default)]
struct Composer {
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    values: usize,
    document: Option<Node>,
}

/// A list or map whose end has not come yet.
struct Open {
    at: Place,
    anchor: usize,
    /// How many values there were before it.
    values_before: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        places: BTreeMap<String, Place>,
        key: Option<(String, Place)>,
    },
}

impl Composer {
    fn take(&mut self, event: Event<'_>, at: Place) -> Result<(), Unreadable> {
        match event {
            Event::DocumentStart(_) if self.document.is_some() => {
                Err(Unreadable::new(at, "a second document begins here")
                    .hint("a file holds one spec"))
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
            Event::Scalar(text, style, anchor, tag) => {
                refuse_tag(tag.is_some(), at)?;
                let kind = match style {
                    ScalarStyle::Plain => plain(&text),
                    ScalarStyle::SingleQuoted
                    | ScalarStyle::DoubleQuoted
                    | ScalarStyle::Literal
                    | ScalarStyle::Folded => Kind::Text(text.clone().into_owned()),
                };
                // A key is its text, whatever that would be as a value.
                if let Some(Open {
                    content: Content::Map { key, places, .. },
                    ..
                }) = self.open.last_mut()
                    && key.is_none()
                {
                    return name(key, places, text.into_owned(), at);
                }
                self.count(1, at)?;
                self.finish(Node { at, kind }, anchor, 1)
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_tag(tag.is_some(), at)?;
                self.enter(at, anchor, Content::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                refuse_tag(tag.is_some(), at)?;
                let content = Content::Map {
                    entries: Vec::new(),
                    places: BTreeMap::new(),
                    key: None,
                };
                self.enter(at, anchor, content)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else {
                    return Err(Unreadable::new(at, "an end without a beginning"));
                };
                let kind = match open.content {
                    Content::List(items) => Kind::List(items),
                    Content::Map { entries, .. } => Kind::Map(entries),
                };
                let size = self.values - open.values_before;
                self.finish(Node { at: open.at, kind }, open.anchor, size)
            }
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(Unreadable::new(
                        at,
                        "the alias stands inside its own anchor",
                    ));
                };
                self.count(size, at)?;
                self.finish(node, 0, size)
            }
        }
    }

    fn enter(&mut self, at: Place, anchor: usize, content: Content) -> Result<(), Unreadable> {
        if self.open.len() >= MAX_DEPTH {
            let message = format!("nested more than {MAX_DEPTH} deep");
            return Err(Unreadable::new(at, message));
        }
        if let Some(Open {
            content: Content::Map { key: None, .. },
            ..
        }) = self.open.last()
        {
            return Err(Unreadable::new(at, "a field name must be plain text"));
        }
        let values_before = self.values;
        self.count(1, at)?;
        self.open.push(Open {
            at,
            anchor,
            values_before,
            content,
        });
        Ok(())
    }

    /// Puts a complete value where it belongs.
    fn finish(&mut self, node: Node, anchor: usize, size: usize) -> Result<(), Unreadable> {
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), size));
        }
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.document = Some(node),
            Some(Content::List(items)) => items.push(node),
            Some(Content::Map { entries, key, .. }) => match key.take() {
                Some((key, at)) => entries.push(Entry {
                    at,
                    key,
                    value: node,
                }),
                None => return Err(Unreadable::new(node.at, "a field name must be plain text")),
            },
        }
        Ok(())
    }

    fn count(&mut self, values: usize, at: Place) -> Result<(), Unreadable> {
        self.values += values;
        if self.values > MAX_VALUES {
            let message = format!("more than {MAX_VALUES} values, aliases expanded");
            return Err(Unreadable::new(at, message));
        }
        Ok(())
    }
}

fn refuse_tag(tagged: bool, at: Place) -> Result<(), Unreadable> {
    if tagged {
        return Err(Unreadable::new(at, "tags are not supported")
            .hint("write the value without `!`, quoted if it is text"));
    }
    Ok(())
}

/// Takes a field's name; each comes once.
fn name(
    key: &mut Option<(String, Place)>,
    places: &mut BTreeMap<String, Place>,
    text: String,
    at: Place,
) -> Result<(), Unreadable> {
    if text == "<<" {
        return Err(Unreadable::new(at, "merge keys are not supported")
            .hint("use an alias for the whole value, or repeat the fields"));
    }
    if let Some(first) = places.insert(text.clone(), at) {
        let message = format!("field `{text}` stands twice, first on line {}", first.line);
        return Err(Unreadable::new(at, message));
    }
    *key = Some((text, at));
    Ok(())
}

/// An unquoted scalar by YAML 1.2's core schema.
fn plain(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Kind::Null,
        "true" | "True" | "TRUE" => Kind::Bool(true),
        "false" | "False" | "FALSE" => Kind::Bool(false),
        _ => number(text).map_or_else(|| Kind::Text(text.to_owned()), Kind::Number),
    }
}

fn number(text: &str) -> Option<Number> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    // `inf`, `nan` and `0x…` parse in Rust or YAML, but are no JSON numbers.
    let is_decimal = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '-' | '+'));
    if !is_decimal {
        return None;
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Ok(whole) = text.parse::<u64>() {
        return Some(whole.into());
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Some(whole.into());
    }
    Number::from_f64(text.parse().ok()?)
}

impl Node {
    /// The tree without its places.
    pub(super) fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(value) => Value::Bool(*value),
            Kind::Number(value) => Value::Number(value.clone()),
            Kind::Text(value) => Value::String(value.clone()),
            Kind::List(items) => items.iter().map(Self::to_json).collect(),
            Kind::Map(entries) => entries
                .iter()
                .map(|entry| (entry.key.clone(), entry.value.to_json()))
                .collect(),
        }
    }

    /// What the value is, in a reader's words.
    pub(super) fn describe(&self) -> String {
        match &self.kind {
            Kind::Null => "nothing".to_owned(),
            Kind::Bool(value) => format!("`{value}`"),
            Kind::Number(value) => format!("`{value}`"),
            Kind::Text(value) => {
                let short: String = value.chars().take(40).collect();
                format!("text `{short}`")
            }
            Kind::List(_) => "a list".to_owned(),
            Kind::Map(_) => "a map".to_owned(),
        }
    }

    /// Where the field at `path` begins; the closest that exists, if it does not.
    pub(super) fn locate(&self, path: &str) -> Place {
        let mut node = self;
        let mut rest = path.trim_start_matches('.');
        loop {
            let (next, tail) = match &node.kind {
                Kind::Map(entries) => {
                    // Names may hold dots and brackets themselves, so the tree tells where they end.
                    let found = entries
                        .iter()
                        .filter_map(|entry| {
                            let tail = rest.strip_prefix(entry.key.as_str())?;
                            (tail.is_empty() || tail.starts_with(['.', '[']))
                                .then_some((&entry.value, tail))
                        })
                        .min_by_key(|(_, tail)| tail.len());
                    match found {
                        Some(found) => found,
                        None => return node.at,
                    }
                }
                Kind::List(items) => {
                    let index = rest
                        .strip_prefix('[')
                        .and_then(|rest| rest.split_once(']'))
                        .and_then(|(index, tail)| Some((index.parse::<usize>().ok()?, tail)));
                    match index.and_then(|(index, tail)| Some((items.get(index)?, tail))) {
                        Some(found) => found,
                        None => return node.at,
                    }
                }
                Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) => return node.at,
            };
            node = next;
            rest = tail.strip_prefix('.').unwrap_or(tail);
            if rest.is_empty() {
                return node.at;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scalars_follow_the_core_schema() {
        let text = "[no, on, 1, -2, 1.5, 1e3, 0x10, 1_000, '1', true, ~, .inf, 007]";
        assert_eq!(
            read(text).unwrap().to_json(),
            json!([
                "no", "on", 1, -2, 1.5, 1000.0, "0x10", "1_000", "1", true, null, ".inf", 7
            ])
        );
    }

    #[test]
    fn json_is_read_as_the_yaml_that_it_is() {
        let text = "{\"a\": [1, {\"b\": \"x\\ny\"}],\n \"c\": null}";
        assert_eq!(
            read(text).unwrap().to_json(),
            json!({"a": [1, {"b": "x\ny"}], "c": null})
        );
    }

    #[test]
    fn places_are_counted_from_one() {
        let tree = read("a:\n  - b: 1\n    c.d: 2\n").unwrap();
        let place = |path: &str| {
            let Place { line, column } = tree.locate(path);
            (line, column)
        };
        assert_eq!(place("a[0].b"), (2, 8));
        assert_eq!(place("a[0].c.d"), (3, 10));
        assert_eq!(place("a[0].missing"), (2, 5));
    }

    #[test]
    fn aliases_repeat_values_but_cannot_explode() {
        assert_eq!(
            read("a: &x [1, 2]\nb: *x\n").unwrap().to_json(),
            json!({"a": [1, 2], "b": [1, 2]})
        );
        let level = |n: u32| {
            let before = n
                .checked_sub(1)
                .map_or("x, ".into(), |n| format!("*l{n}, "));
            format!("l{n}: &l{n} [{}]\n", before.repeat(10))
        };
        let bomb: String = (0..12).map(level).collect();
        assert!(read(&bomb).unwrap_err().message.contains("more than 50000"));
    }

    #[test]
    fn what_cannot_be_a_spec_is_refused_with_its_place() {
        let message = |text: &str| {
            let error = read(text).unwrap_err();
            format!("{}:{} {}", error.at.line, error.at.column, error.message)
        };
        assert_eq!(message(""), "1:1 the document is empty");
        assert_eq!(
            message("a: 1\nb: 2\na: 3\n"),
            "3:1 field `a` stands twice, first on line 1"
        );
        assert_eq!(message("a: !!str 1\n"), "1:4 tags are not supported");
        assert_eq!(
            message("? [a]\n: 1\n"),
            "1:3 a field name must be plain text"
        );
        assert!(message(&"[".repeat(40)).ends_with("nested more than 32 deep"));
        assert!(message("a: 1\n---\nb: 2\n").ends_with("a second document begins here"));
        assert!(message("<<: {a: 1}\n").ends_with("merge keys are not supported"));
        assert!(message("a: [1, 2\nb: 3\n").contains("not readable as YAML"));
        assert!(message(&"x".repeat(MAX_TEXT_BYTES + 1)).contains("at most"));
    }

    proptest::proptest! {
        /// Whatever the text, reading ends with a tree or an error.
        #[test]
        fn reading_never_panics(text in "[-\\[\\]{}:,&*!|>?#'\"%@` \na-c0-9.~<]{0,60}") {
            let _ = read(&text);
        }
    }
}
