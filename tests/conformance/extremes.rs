//! The extremes of everything that can be configured.

use std::{collections::BTreeSet, time::Duration};

use rspp_proto::{
    schema,
    spec::{Diagnostics, Mode, PipelineSpec},
};
use rspp_tests::call::{Builder, Cast, first, says};
use serde_json::{Map, Value, json};

/// A number of the schema: where it stands in a pipeline, and what it may be.
#[derive(Clone, Debug)]
struct Number {
    path: Vec<String>,
    most: Option<u64>,
}

/// All numbers of a schema, with what a map or list that has to be there for them holds beside them.
fn numbers(root: &Value) -> Vec<Number> {
    let mut found = Vec::new();
    walk(
        root,
        root,
        &mut Vec::new(),
        &mut BTreeSet::new(),
        &mut found,
    );
    found
}

fn deref<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

fn walk(
    root: &Value,
    schema: &Value,
    path: &mut Vec<String>,
    inside: &mut BTreeSet<String>,
    found: &mut Vec<Number>,
) {
    let name = schema["$ref"].as_str().map(str::to_owned);
    if name
        .as_ref()
        .is_some_and(|name| !inside.insert(name.clone()))
    {
        return;
    }
    let part = deref(root, schema);
    let is = |word: &str| match &part["type"] {
        Value::String(of) => of == word,
        Value::Array(of) => of.iter().any(|it| it == word),
        _untyped => false,
    };
    if is("integer") {
        let most = part["maximum"].as_u64();
        found.push(Number {
            path: path.clone(),
            most,
        });
    }
    let mut step = |name: &str, inner: &Value| {
        path.push(name.to_owned());
        walk(root, inner, path, inside, found);
        path.pop();
    };
    for (name, inner) in part["properties"].as_object().into_iter().flatten() {
        step(name, inner);
    }
    if part["items"].is_object() {
        step("0", &part["items"]);
    }
    if part["additionalProperties"].is_object() {
        step("llm", &part["additionalProperties"]);
    }
    for several in ["anyOf", "oneOf"] {
        for inner in part[several].as_array().into_iter().flatten() {
            walk(root, inner, path, inside, found);
        }
    }
    if let Some(name) = name {
        inside.remove(&name);
    }
}

/// Writes `value` where the number stands. A pair of marks has both.
fn with(pipeline: &Value, path: &[String], value: u64) -> Value {
    let mut changed = pipeline.clone();
    let mut here = &mut changed;
    for (at, name) in path.iter().enumerate() {
        if here.is_null() || here.is_string() {
            *here = Value::Object(Map::new());
        }
        if matches!(name.as_str(), "high" | "low") {
            let other = if name == "high" { "low" } else { "high" };
            here[other] = json!(if other == "low" { 0 } else { 1_000_000 });
        }
        here = match here {
            Value::Array(items) => &mut items[name.parse::<usize>().unwrap()],
            other => &mut other[name.as_str()],
        };
        if at + 1 == path.len() {
            *here = json!(value);
        }
    }
    changed
}

/// F-001, F-078: every number of every schema that people write has a largest value.
#[test]
fn every_number_that_is_written_has_a_largest_value() {
    let mut seen = 0;
    for written in ["pipeline", "policy", "limits", "package"] {
        let published = schema::published();
        let schema = published.iter().find(|it| it.name == written).unwrap();
        for number in numbers(&schema.schema) {
            let most = number.most;
            assert!(
                most.is_some_and(|most| most <= 1 << 40),
                "{written}: {number:?}"
            );
            seen += 1;
        }
    }
    assert!(seen > 100, "{seen}");
}

/// F-001, F-078, P16: whatever number a pipeline has, at its extremes and beyond, it is refused where it
/// stands or a call runs with it to its end.
#[tokio::test(start_paused = true)]
async fn every_number_is_refused_in_its_place_or_runs_a_call() {
    let published = schema::published();
    let schema = published.iter().find(|it| it.name == "pipeline").unwrap();
    let pipeline = serde_json::to_value(PipelineSpec::simple()).unwrap();
    let (mut ran, mut refused) = (0, 0);
    for Number { path, most } in numbers(&schema.schema) {
        let most = most.expect("every number has one");
        for value in [0, 1, most, most + 1, u64::MAX] {
            let written = with(&pipeline, &path, value);
            let parsed = PipelineSpec::parse("p.json", &written.to_string(), Mode::Strict);
            match parsed {
                Ok(parsed) => {
                    assert!(value <= most, "{path:?}: {value} is beyond");
                    let mut builder =
                        Builder::new(&Cast::default(), vec![says(first())]).pipeline(|spec| {
                            *spec = parsed.spec;
                        });
                    builder.script.reply_timeout = Duration::from_secs(20);
                    let runtime = builder.runtime().await;
                    // What only a runtime can judge, it may refuse too.
                    if let Ok(placed) = builder.open(&runtime).await {
                        let report = placed.session.wait().await;
                        assert!(report.is_some(), "{path:?} = {value}: the session crashed");
                        ran += 1;
                    }
                    assert!(
                        runtime.shut_down(Duration::from_mins(1)).await,
                        "{path:?} = {value}: it does not end"
                    );
                }
                Err(Diagnostics(found)) => {
                    // Where the number stands, or at what holds it.
                    let field = path.iter().find(|name| name.parse::<usize>().is_err());
                    let at = field.expect("a number has a name");
                    assert!(
                        found.iter().any(|it| it.path.starts_with(at.as_str())),
                        "{path:?} = {value}: {found:?}"
                    );
                    refused += 1;
                }
            }
        }
    }
    assert!(ran > 60 && refused > 100, "{ran} calls, {refused} refusals");
}

/// F-078: parts that could never come to bear beside others are refused, each where it stands.
#[test]
fn parts_that_do_not_go_together_are_refused() {
    let pipeline = serde_json::to_value(PipelineSpec::simple()).unwrap();
    for (part, value, place) in [
        (
            "budgets",
            json!({ "turn_budget_ms": 10, "path_budget_ms_default": 5_000, "max_turn_duration_ms": 5 }),
            vec!["budgets.path_budget_ms_default", "budgets.turn_budget_ms"],
        ),
        (
            "connection",
            json!({ "max_mapping_error_p99_ms": 250, "max_skew_ms": 200 }),
            vec!["connection.max_mapping_error_p99_ms"],
        ),
    ] {
        let mut written = pipeline.clone();
        written[part] = value;
        let Diagnostics(found) =
            PipelineSpec::parse("p.json", &written.to_string(), Mode::Strict).unwrap_err();
        let places: Vec<_> = found.iter().map(|it| it.path.as_str()).collect();
        assert_eq!(places, place);
    }
}
