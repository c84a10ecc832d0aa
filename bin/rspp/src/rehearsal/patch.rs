//! A pipeline as a scenario gives it: a file, a whole one, or what differs from the built-in one.

use std::path::Path;

use rspp_proto::spec::{Mode, PipelineSpec, PolicyBundle};
use serde_json::Value;

use crate::{problem::Problem, specs};

/// The pipeline that `given` stands for.
pub(super) fn pipeline(given: &Value, folder: &Path) -> Result<PipelineSpec, Problem> {
    if given.is_null() {
        return Ok(PipelineSpec::simple());
    }
    if let Value::String(file) = given {
        let parsed = specs::pipeline(&folder.join(file), Mode::Strict);
        return parsed
            .map(|(parsed, _)| parsed.spec)
            .map_err(|refused| refused.into_problem("rspp validate spec"));
    }
    let whole = given.get("schema").is_some();
    let value = if whole {
        given.clone()
    } else {
        let mut simple = serde_json::to_value(PipelineSpec::simple()).map_err(Problem::failure)?;
        merge(&mut simple, given);
        simple
    };
    let text = value.to_string();
    PipelineSpec::parse("pipeline", &text, Mode::Strict)
        .map(|parsed| parsed.spec)
        .map_err(|wrong| Problem::input(specs::wrong_within("pipeline", &wrong)))
}

/// The policy that `given` stands for; none without.
pub(super) fn policy(given: &Value, folder: &Path) -> Result<Option<PolicyBundle>, Problem> {
    let parsed = match given {
        Value::Null => return Ok(None),
        Value::String(file) => specs::policy(&folder.join(file), Mode::Strict),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            return PolicyBundle::parse("policy", &given.to_string(), Mode::Strict)
                .map(|parsed| Some(parsed.spec))
                .map_err(|wrong| Problem::input(specs::wrong_within("policy", &wrong)));
        }
    };
    parsed
        .map(|parsed| Some(parsed.spec))
        .map_err(|refused| refused.into_problem("rspp validate policy"))
}

/// Lays `over` over `base`: maps are merged, lists of nodes and edges entry by entry, all else is
/// replaced; `null` removes.
fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    base.remove(key);
                } else {
                    merge(base.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (Value::Array(base), Value::Array(over)) if over.iter().all(|it| name(it).is_some()) => {
            for entry in over {
                match base.iter_mut().find(|it| name(it) == name(entry)) {
                    Some(found) => merge(found, entry),
                    None => base.push(entry.clone()),
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// By what a node or an edge is recognised.
fn name(entry: &Value) -> Option<(&Value, Option<&Value>, Option<&Value>)> {
    let by_id = entry.get("id").map(|id| (id, None, None));
    by_id.or_else(|| {
        let from = entry.get("from")?;
        Some((from, entry.get("to"), entry.get("carries")))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_differs_is_laid_over_the_built_in_pipeline() {
        let given = json!({
            "nodes": [
                { "id": "tts", "budget_ms": 300 },
                { "id": "echo", "kind": "passthrough" },
            ],
            "edges": [
                { "from": "tts", "to": "egress", "carries": "audio", "buffer": { "max_queue_items": 7 } },
                { "from": "ingress", "to": "echo", "carries": "audio" },
            ],
            "turns": { "barge_in": false },
            "instructions": null,
        });
        let spec = pipeline(&given, Path::new(".")).unwrap();
        let simple = PipelineSpec::simple();
        assert_eq!(spec.nodes.len(), simple.nodes.len() + 1);
        assert_eq!(spec.edges.len(), simple.edges.len() + 1);
        assert!(!spec.turns.barge_in);
        assert_eq!(spec.instructions, None);
        let tts = spec.nodes.iter().find(|node| node.id.as_str() == "tts");
        assert_eq!(tts.unwrap().budget_ms, Some(300));
        let buffers = spec.edges.iter().filter(|edge| edge.buffer.is_some());
        assert_eq!(buffers.count(), 1);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let given = json!({ "turns": { "barge_inn": true } });
        let Err(Problem::Input(told)) = pipeline(&given, Path::new(".")) else {
            panic!("a misspelt field is no pipeline");
        };
        let message = told.to_string();
        assert!(
            message.starts_with("pipeline.turns.barge_inn: "),
            "{message}"
        );
    }
}
