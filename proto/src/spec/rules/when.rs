//! The rules of conditions (F-018): what can be compared, and whether it is ever there.

use serde_json::Value;

use super::super::{Comparison, Condition, NodeKind, PortType, parse::Check};

/// Checks a condition on an edge that comes from a node of that kind, or from the user, and carries that.
pub(super) fn condition(
    path: &str,
    when: &Condition,
    (from, carries): (Option<&NodeKind>, PortType),
    check: &mut Check<'_, '_>,
) {
    if when.attribute.trim().is_empty() {
        check.error(
            "blank",
            &format!("{path}.attribute"),
            "must not be blank",
            None,
        );
    }
    let is_order = match when.is {
        Comparison::Lt | Comparison::Le | Comparison::Gt | Comparison::Ge => true,
        Comparison::Eq | Comparison::Ne => false,
    };
    let wanted = match (when.attribute.as_str(), is_order) {
        ("confidence", _) | (_, true) => "a number",
        ("is_final", false) => "true or false",
        ("language" | "speaker", false) => "text",
        (_, false) => "a number, a text, true or false",
    };
    let fits = match (&when.value, wanted) {
        (Value::Number(_), "a number")
        | (Value::Bool(_), "true or false")
        | (Value::String(_), "text") => true,
        (Value::Number(_) | Value::Bool(_) | Value::String(_), wanted) => {
            wanted.starts_with("a number,")
        }
        (Value::Null | Value::Array(_) | Value::Object(_), _) => false,
    };
    if !fits {
        let message = format!("`{}` is compared with {wanted}", when.attribute);
        check.error("wrong_type", &format!("{path}.value"), message, None);
    }
    if let Some((message, hint)) = never_there(&when.attribute, from, carries) {
        let path = format!("{path}.attribute");
        check.error("never_there", &path, message, hint);
    }
}

/// Why no event of an edge ever has an attribute that only events have, and what helps. What is no event's
/// own is the session's.
fn never_there(
    attribute: &str,
    from: Option<&NodeKind>,
    carries: PortType,
) -> Option<(String, String)> {
    let is_texts = ["confidence", "is_final", "speaker"].contains(&attribute);
    let carries_text = matches!(carries, PortType::Text | PortType::Any);
    if is_texts && !carries_text {
        let message = format!("{} has no `{attribute}`", carries.as_str());
        let hint = "test it on an edge that carries text, or test a session attribute".to_owned();
        return Some((message, hint));
    }
    let is_recognised = match from {
        Some(
            NodeKind::Stt
            | NodeKind::Passthrough
            | NodeKind::Merge
            | NodeKind::Select
            | NodeKind::Custom(_),
        ) => true,
        Some(
            NodeKind::Vad
            | NodeKind::TurnDetector
            | NodeKind::Llm
            | NodeKind::Segmenter
            | NodeKind::Guard
            | NodeKind::Tts,
        )
        | None => false,
    };
    if attribute == "confidence" && !is_recognised {
        let kind = from.map_or("ingress", NodeKind::as_str);
        let message = format!("what comes from {kind} has no `confidence`");
        let hint = "only recognised text has: test it on an edge from an stt node".to_owned();
        return Some((message, hint));
    }
    None
}
