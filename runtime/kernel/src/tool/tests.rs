//! The table of calls, row by row, and over generated histories.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn node(tools: &[ToolDeclaration]) -> NodeSpec {
    let node = json!({ "id": "llm", "kind": "llm", "tools": tools });
    serde_json::from_value(node).unwrap()
}

fn order() -> ToolDeclaration {
    ToolDeclaration {
        parameters: json!({
            "type": "object",
            "properties": { "count": { "type": "integer", "minimum": 1 } },
            "required": ["count"],
            "additionalProperties": false,
        }),
        ..ToolDeclaration::new("order", "Orders.")
    }
}

fn look() -> ToolDeclaration {
    ToolDeclaration {
        effects: ToolEffects::None,
        max_result_bytes: 64,
        ..ToolDeclaration::new("look", "Looks up.")
    }
}

fn request(call: &str, tool: &str, arguments: &str) -> ToolRequest {
    ToolRequest {
        call: call.into(),
        tool: tool.into(),
        arguments: arguments.into(),
        round: 0,
    }
}

fn outcome(end: ToolEnd, content: &str) -> ToolOutcome {
    ToolOutcome {
        end,
        content: content.to_owned(),
        action: None,
        attempts: 1,
    }
}

/// Arguments are held to their schema, and the model is told precisely what is wrong.
#[test]
fn what_cannot_be_run_is_answered_at_once_with_the_reason() {
    #[track_caller]
    fn check(tool: &str, arguments: &str, expected: Option<&str>) {
        let spec = node(&[order(), look()]);
        let asked = ToolTable::default().ask(&spec.id, &spec, request("c", tool, arguments));
        match (asked, expected) {
            (Asked::Run, None) => {}
            (
                Asked::Answered {
                    end,
                    content,
                    is_new,
                },
                Some(expected),
            ) => {
                assert_eq!((end, is_new), (ToolEnd::Failed, true));
                assert_eq!(&*content, expected);
            }
            (asked, _) => panic!("{asked:?}"),
        }
    }
    check("order", r#"{"count": 2}"#, None);
    check("look", "{}", None);
    check(
        "book",
        "{}",
        Some("there is no tool `book`; there are order, look"),
    );
    check(
        "order",
        r#"{"count": 0, "size": "big"}"#,
        Some("invalid arguments: `count` must be at least 1; `size` is unknown; there are count"),
    );
    check(
        "order",
        "{count: 1}",
        Some("the arguments are no JSON: key must be a string at line 1 column 2"),
    );
    let long = format!("{{\"count\": 1{}}}", " ".repeat(MAX_ARGUMENT_BYTES));
    check(
        "order",
        &long,
        Some("the arguments are longer than 65536 bytes"),
    );
}

/// F-158: the same call asked for again is the same call.
#[test]
fn a_call_is_run_once_however_often_it_is_asked_for() {
    let spec = node(&[look()]);
    let mut table = ToolTable::default();
    let ask = |table: &mut ToolTable| table.ask(&spec.id, &spec, request("c", "look", "{}"));
    assert_eq!(ask(&mut table), Asked::Run);
    assert_eq!(ask(&mut table), Asked::Running);
    assert!(
        table
            .ended("c", &outcome(ToolEnd::Finished, "here"))
            .is_some()
    );
    let answered = Asked::Answered {
        end: ToolEnd::Finished,
        content: "here".into(),
        is_new: false,
    };
    assert_eq!(ask(&mut table), answered);
    assert_eq!(table.ended("c", &outcome(ToolEnd::Failed, "again")), None);
    assert_eq!(table.calls().len(), 1);
}

/// What a turn's end makes of an open call: by whether it had begun, and what its tool says.
#[test]
fn every_way_a_turn_leaves_an_open_call() {
    #[track_caller]
    fn check(tool: &str, began: bool, may_finish: bool, end: Option<ToolEnd>) {
        let spec = node(&[order(), look()]);
        let mut table = ToolTable::default();
        let arguments = if tool == "order" {
            r#"{"count":1}"#
        } else {
            "{}"
        };
        assert_eq!(
            table.ask(&spec.id, &spec, request("c", tool, arguments)),
            Asked::Run
        );
        let became = table.interrupted("c", began, may_finish).unwrap();
        match (became, end) {
            (Interrupted::Detached, None) => assert!(table.calls()[0].is_detached()),
            (Interrupted::Ended(found, _), Some(end)) => assert_eq!(found, end),
            (became, end) => panic!("{became:?}, not {end:?}"),
        }
        assert_eq!(table.interrupted("c", began, may_finish), None, "once");
    }
    check("order", false, true, Some(ToolEnd::Refused));
    check("order", true, true, None);
    check("order", true, false, Some(ToolEnd::Abandoned));
    check("look", false, true, Some(ToolEnd::Refused));
    check("look", true, true, Some(ToolEnd::Abandoned));
    check("look", true, false, Some(ToolEnd::Abandoned));
}

#[test]
fn results_and_calls_are_bounded() {
    let spec = node(&[look()]);
    let mut table = ToolTable::default();
    for nth in 0..MAX_CALLS {
        let asked = table.ask(&spec.id, &spec, request(&format!("c{nth}"), "look", "{}"));
        assert_eq!(asked, Asked::Run);
    }
    let asked = table.ask(&spec.id, &spec, request("more", "look", "{}"));
    assert!(matches!(
        asked,
        Asked::Answered {
            end: ToolEnd::Failed,
            ..
        }
    ));
    assert_eq!(table.calls().len(), MAX_CALLS);
    let content = table.ended("c0", &outcome(ToolEnd::Finished, &"ü".repeat(400)));
    let content = content.unwrap();
    assert!(content.len() <= 64, "{}", content.len());
    assert!(content.ends_with("… [cut: 800 bytes in all]"), "{content}");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Ask(u8, bool),
    End(u8, ToolEnd),
    Interrupt(u8, bool, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = prop_oneof![
        Just(ToolEnd::Finished),
        Just(ToolEnd::Failed),
        Just(ToolEnd::TimedOut),
        Just(ToolEnd::Refused),
    ];
    let step = prop_oneof![
        (0..6u8, any::<bool>()).prop_map(|(call, effects)| Step::Ask(call, effects)),
        (0..6u8, end).prop_map(|(call, end)| Step::End(call, end)),
        (0..6u8, any::<bool>(), any::<bool>()).prop_map(|(c, b, f)| Step::Interrupt(c, b, f)),
    ];
    proptest::collection::vec(step, 0..40)
}

proptest! {
    /// P8: over any history a call has at most one end, keeps it, and is run at most once; once its
    /// turn is over and its deadline has passed it has exactly one.
    #[test]
    fn a_call_has_exactly_one_end(steps in steps()) {
        let spec = node(&[order(), look()]);
        let mut table = ToolTable::default();
        let mut ends = std::collections::BTreeMap::<String, Vec<ToolEnd>>::new();
        let mut runs = std::collections::BTreeMap::<String, u32>::new();
        for step in steps {
            match step {
                Step::Ask(call, effects) => {
                    let call = format!("c{call}");
                    let (tool, arguments) = if effects { ("order", r#"{"count":1}"#) } else { ("look", "{}") };
                    if table.ask(&spec.id, &spec, request(&call, tool, arguments)) == Asked::Run {
                        *runs.entry(call).or_default() += 1;
                    }
                }
                Step::End(call, end) => {
                    let call = format!("c{call}");
                    if table.ended(&call, &outcome(end, "x")).is_some() {
                        ends.entry(call).or_default().push(end);
                    }
                }
                Step::Interrupt(call, began, may_finish) => {
                    let call = format!("c{call}");
                    if let Some(Interrupted::Ended(end, _)) = table.interrupted(&call, began, may_finish) {
                        ends.entry(call).or_default().push(end);
                    }
                }
            }
        }
        // The turn ends, and then the deadlines of what goes on without it.
        let open: Vec<_> = table.calls().iter().map(|call| call.request.call.to_string()).collect();
        for call in open {
            if let Some(Interrupted::Ended(end, _)) = table.interrupted(&call, true, true) {
                ends.entry(call.clone()).or_default().push(end);
            }
            if table.ended(&call, &outcome(ToolEnd::TimedOut, "late")).is_some() {
                ends.entry(call).or_default().push(ToolEnd::TimedOut);
            }
        }
        for call in table.calls() {
            let id = call.request.call.to_string();
            let end: Vec<_> = call.end().into_iter().collect();
            prop_assert_eq!(ends.get(&id), Some(&end));
            prop_assert_eq!(runs.get(&id), Some(&1));
        }
        prop_assert_eq!(ends.len(), table.calls().len());
    }
}
