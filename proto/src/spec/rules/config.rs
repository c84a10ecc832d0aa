//! The rules of a node's own settings: what each built-in kind knows, and what fits there.
//!
//! A custom kind takes what it likes: what it knows is for it to say.

use serde_json::Value;

use super::super::{NodeKind, NodeSpec, diagnostic::nearest, parse::Check};

/// What fits a setting.
#[derive(Clone, Copy)]
enum Fits {
    /// A number of at least that.
    From(f64),
    /// A number within bounds.
    Within(f64, f64),
    /// A whole number of at least that.
    Whole(u64),
    /// A text.
    Text,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// True or false.
    Truth,
    /// Looked at by a rule of its own.
    Own,
}

/// Settings of whoever calls a provider.
const FIRST_BYTE: (&str, Fits) = ("first_byte_ms", Fits::Whole(1));
const INTER_CHUNK: (&str, Fits) = ("inter_chunk_ms", Fits::Whole(1));

/// What nodes of a kind can be told; `None` if the kind is not ours.
fn known(kind: &NodeKind) -> Option<&'static [(&'static str, Fits)]> {
    match kind {
        NodeKind::Vad => Some(&[
            ("speech_from", Fits::Within(0.0, 1.0)),
            ("speech_while", Fits::Within(0.0, 1.0)),
            ("min_speech_ms", Fits::From(0.0)),
        ]),
        NodeKind::TurnDetector => Some(&[("complete_from", Fits::From(0.0))]),
        NodeKind::Stt => Some(&[("language", Fits::Text), FIRST_BYTE, INTER_CHUNK]),
        NodeKind::Llm => Some(&[
            ("max_tokens", Fits::Whole(1)),
            ("max_tool_rounds", Fits::Whole(0)),
            ("temperature", Fits::From(0.0)),
            FIRST_BYTE,
            INTER_CHUNK,
        ]),
        NodeKind::Guard => Some(&[
            ("terms", Fits::Own),
            ("action", Fits::OneOf(&["mask", "block"])),
            ("instead", Fits::Text),
        ]),
        NodeKind::Tts => Some(&[
            ("voice", Fits::Text),
            ("speaks", Fits::Truth),
            FIRST_BYTE,
            INTER_CHUNK,
        ]),
        NodeKind::Merge => Some(&[
            ("order", Fits::OneOf(&["timestamp", "source_priority"])),
            ("hold_ms", Fits::Whole(0)),
        ]),
        NodeKind::Segmenter | NodeKind::Passthrough | NodeKind::Select => Some(&[]),
        NodeKind::Custom(_) => None,
    }
}

impl Fits {
    fn takes(self, value: &Value) -> bool {
        match self {
            Self::From(least) => value.as_f64().is_some_and(|it| it >= least),
            Self::Within(least, most) => value
                .as_f64()
                .is_some_and(|it| (least..=most).contains(&it)),
            Self::Whole(least) => {
                // A whole number may be written with a point.
                let whole = value.as_f64().filter(|it| it.fract() == 0.0 && *it >= 0.0);
                whole.is_some_and(|it| it >= least as f64)
            }
            Self::Text => value.is_string(),
            Self::OneOf(words) => value.as_str().is_some_and(|it| words.contains(&it)),
            Self::Truth => value.is_boolean(),
            Self::Own => true,
        }
    }

    fn describe(self) -> String {
        match self {
            Self::From(least) => format!("a number of at least {least}"),
            Self::Within(least, most) => format!("a number from {least} to {most}"),
            Self::Whole(least) => format!("a whole number of at least {least}"),
            Self::Text => "a text".to_owned(),
            Self::OneOf(words) => format!("one of {}", words.join(", ")),
            Self::Truth => "true or false".to_owned(),
            Self::Own => "as its kind has it".to_owned(),
        }
    }
}

/// Checks `config` of the node at `path`.
pub(super) fn config(path: &str, node: &NodeSpec, check: &mut Check<'_, '_>) {
    let Some(known) = known(&node.kind) else {
        return;
    };
    let kind = node.kind.as_str();
    for (name, value) in &node.config {
        let path = format!("{path}.config.{name}");
        let Some((_, fits)) = known.iter().find(|(key, _)| key == name) else {
            let names = || known.iter().map(|(key, _)| *key);
            let hint = match nearest(name, names()) {
                Some(name) => format!("did you mean `{name}`?"),
                None if known.is_empty() => "leave it out; it has no settings".to_owned(),
                None => format!("it knows {}", names().collect::<Vec<_>>().join(", ")),
            };
            let message = format!("a {kind} node has no setting `{name}`");
            check.error("unknown_setting", &path, message, hint);
            continue;
        };
        if !fits.takes(value) {
            let message = format!("`{name}` of a {kind} node is no {value}");
            let hint = format!("write {}", fits.describe());
            check.error("wrong_type", &path, message, hint);
        }
    }
}
