//! The harness itself: whatever can become of a node can be brought about, the same way each time.

use std::sync::Arc;
use std::time::Duration;

use rspp_kernel::CancelReason;
use rspp_proto::{Payload, spec::NodeKind};
use rspp_provider_api::{Providers, scripted::ScriptedLlm};
use serde_json::json;

use super::{Harness, Output, Rig, clause, custom, final_words, generated, silence};
use crate::{
    event::{Event, Port},
    node::{Hook, Node, NodeContext, NodeError, NodeReport, Step},
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Does what the text that it is given says.
#[derive(Default)]
struct Obedient;

impl Node for Obedient {
    fn init<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        match cx.settings().text("init") {
            Some("refuse") => Step::Done(Err(NodeError::new("it will not begin"))),
            Some("hang") => Step::Wait(Box::pin(std::future::pending())),
            Some(_) | None => Step::OK,
        }
    }

    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        let Payload::Text(chunk) = &event.payload else {
            cx.forward(event);
            return Step::OK;
        };
        match &*chunk.text {
            "wait" => Step::Wait(Box::pin(async move {
                tokio::time::sleep(ms(300)).await;
                cx.forward(event);
                Ok(())
            })),
            "wind up" => Step::Work(Box::pin(async move {
                cx.cancellation().clone().cancelled().await;
                Ok(())
            })),
            "be deaf" => Step::Work(Box::pin(std::future::pending())),
            "fail" => Step::Done(Err(NodeError::new("told to"))),
            "panic" => panic!("told to"),
            "remember" => {
                let at = json!("here");
                cx.hot_state().put("it", &at).expect("there is room");
                if let Some(turn) = cx.turn_state() {
                    turn.put("it", &at).expect("there is room");
                }
                Step::Wait(Box::pin(async move {
                    let written = cx.durable_state().put("it", &at).await;
                    written.map_err(|error| NodeError::new(error.to_string()))?;
                    Ok(())
                }))
            }
            "recall" => Step::Wait(Box::pin(async move {
                let turn = cx.turn_state().is_some_and(|turn| turn.get("it").is_some());
                let hot = cx.hot_state().get("it").is_some();
                let durable = cx.durable_state().get("it").await;
                let durable = durable.is_ok_and(|it| it.is_some());
                cx.emit(clause(&format!("{turn} {hot} {durable}")));
                Ok(())
            })),
            _else => {
                cx.forward(event);
                Step::OK
            }
        }
    }

    fn on_cancel<'a>(&'a mut self, cx: &'a mut NodeContext, _reason: CancelReason) -> Step<'a> {
        match cx.settings().text("on_cancel") {
            Some("hang") => Step::Wait(Box::pin(std::future::pending())),
            Some(_) | None => Step::OK,
        }
    }
}

fn obedient() -> Harness {
    Harness::new(|_spec| Box::new(Obedient))
}

fn rig() -> Rig {
    obedient().start().unwrap()
}

/// F-128: audio, text, final words and data of one's own go in, and what the node makes of them comes
/// out in its order.
#[test]
fn events_of_all_kinds_go_in_and_the_sequence_comes_out() {
    let mut rig = rig();
    let fed = [
        silence(ms(20)),
        generated("Good day"),
        final_words("hello there"),
        custom("test.mark", json!({ "n": 7 })),
        Payload::TextEnd,
        Payload::AudioEnd,
    ];
    for payload in &fed {
        rig.feed(payload.clone());
    }
    assert_eq!(rig.emitted(), fed);
    assert!(rig.stop().is_empty(), "a node that is stopped says nothing");
}

/// F-128, F-036: a handler that waits is dropped by a cancel, at its moment; what was waiting is gone.
#[test]
fn a_cancel_comes_in_the_middle_of_a_handler() {
    let mut rig = rig();
    rig.feed(generated("wait"));
    rig.feed(generated("queued"));
    rig.advance(ms(299));
    rig.cancel_work(CancelReason::UserCancel);
    assert_eq!(
        rig.reports(),
        [NodeReport::CancelAcknowledged {
            reason: CancelReason::UserCancel,
            after: Duration::ZERO,
            is_forced: false,
            provider: None,
        }]
    );
    rig.advance(ms(1_000));
    rig.feed(generated("goes on"));
    assert_eq!(rig.texts(), ["goes on"]);
    rig.stop();
}

/// F-128, F-036, F-037: who winds up has the plan's grace; who is deaf is cut off when it ends.
#[test]
fn a_deaf_handler_is_cut_off_when_its_grace_ends() {
    for (told, forced) in [("wind up", false), ("be deaf", true)] {
        let mut rig = rig();
        rig.feed(generated(told));
        rig.cancel(CancelReason::BargeIn);
        rig.advance(ms(74));
        assert_eq!(rig.reports().is_empty(), forced);
        rig.advance(ms(1));
        let reports = rig.reports();
        assert_eq!(reports.len(), if forced { 2 } else { 0 }, "{reports:?}");
        if forced {
            assert_eq!(reports[0], NodeReport::ForceStopped { after: ms(75) });
        }
        rig.stop();
    }
}

/// F-128, F-045: a handler over its budget is told of at its moment; with a standby it is given up.
#[test]
fn a_budget_runs_out_at_its_moment() {
    let mut rig = obedient().budget(ms(200)).start().unwrap();
    rig.feed(generated("wait"));
    rig.advance(ms(199));
    assert!(rig.reports().is_empty());
    rig.advance(ms(1));
    let told = NodeReport::OverBudget { is_given_up: false };
    assert_eq!(rig.reports(), [told]);
    rig.advance(ms(100));
    assert_eq!(rig.texts(), ["wait"], "nobody stands by: it goes on");
    rig.stop();

    let harness = obedient().budget(ms(200)).standby(|_spec| Box::new(Echo));
    let mut rig = harness.start().unwrap();
    rig.feed(generated("wait"));
    rig.advance(ms(200));
    let reports = rig.reports();
    assert!(
        matches!(&reports[..], [NodeReport::OverBudget { is_given_up: true }, NodeReport::TookOver { standby, .. }]
            if standby.as_str() == "standby-1"),
        "{reports:?}"
    );
    assert_eq!(rig.texts(), ["wait"], "the standby was told it again");
    rig.stop();
}

/// Gives back what it is given.
struct Echo;

impl Node for Echo {
    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        cx.forward(event);
        Step::OK
    }
}

/// F-128, F-134: a panic ends a turn's node; a node that listens is made anew, and remembers what its
/// session does.
#[test]
fn a_panic_ends_a_turns_node_and_restarts_one_that_listens() {
    let mut rig = rig();
    rig.feed(generated("panic"));
    let outputs = rig.outputs();
    assert!(
        matches!(&outputs[..], [Output::Crashed { reason, is_restarted: false }]
            if reason.contains("told to")),
        "{outputs:?}"
    );
    rig.feed(generated("nobody hears it"));
    rig.next_turn().unwrap();
    rig.feed(generated("another does"));
    assert_eq!(rig.texts(), ["another does"]);
    rig.stop();

    let mut rig = obedient().listening().start().unwrap();
    rig.feed(generated("remember"));
    rig.feed(generated("panic"));
    let outputs = rig.outputs();
    assert!(
        matches!(
            &outputs[..],
            [Output::Crashed {
                is_restarted: true,
                ..
            }]
        ),
        "{outputs:?}"
    );
    rig.advance(ms(1_000));
    rig.feed(generated("recall"));
    assert_eq!(rig.texts(), ["false true true"]);
    rig.stop();
}

/// F-128, F-132: an error ends the node's turn, or goes to the dead letters where the pipeline says so.
#[test]
fn an_error_is_reported_or_buried() {
    let mut rig = rig();
    rig.feed(generated("fail"));
    let reports = rig.reports();
    assert!(
        matches!(&reports[..], [NodeReport::Failed { message, .. }] if &**message == "told to"),
        "{reports:?}"
    );
    rig.stop();

    let buries = obedient().node(|spec| {
        spec.on_error = rspp_proto::spec::ErrorAction::DeadLetter;
    });
    let mut rig = buries.start().unwrap();
    for told in ["fail", "panic", "go on"] {
        rig.feed(generated(told));
    }
    let reports = rig.reports();
    assert!(
        matches!(
            &reports[..],
            [NodeReport::DeadLetter { .. }, NodeReport::DeadLetter { .. }]
        ),
        "{reports:?}"
    );
    assert_eq!(rig.texts(), ["go on"]);
    rig.stop();
}

/// F-128, F-155: each scope of state lasts as long as it does in a call.
#[test]
fn state_lasts_as_long_as_its_scope() {
    let mut rig = rig();
    rig.feed(generated("remember"));
    rig.feed(generated("recall"));
    rig.next_turn().unwrap();
    rig.feed(generated("recall"));
    rig.move_session().unwrap();
    rig.feed(generated("recall"));
    assert_eq!(
        rig.texts(),
        ["true true true", "false true true", "false false true"]
    );
    // A writer that was replaced is refused.
    rig.lose_lease().unwrap();
    rig.feed(generated("remember"));
    let reports = rig.reports();
    assert!(
        matches!(&reports[..], [NodeReport::Failed { .. }]),
        "{reports:?}"
    );
    rig.stop();
}

/// F-128, F-012: a node that does not begin is refused with its words; a hook has its time.
#[test]
fn a_hook_that_fails_or_hangs_is_told() {
    let refused = obedient().config("init", "refuse").start();
    let refused = refused.expect_err("it refuses").to_string();
    assert!(refused.contains("it will not begin"), "{refused}");
    let hangs = obedient().config("init", "hang").start();
    let hangs = hangs.expect_err("it hangs").to_string();
    assert!(hangs.contains("`init` took longer than"), "{hangs}");

    let mut rig = obedient().config("on_cancel", "hang").start().unwrap();
    rig.cancel(CancelReason::UserCancel);
    assert!(rig.reports().is_empty());
    rig.advance(Duration::from_secs(1));
    let reports = rig.reports();
    assert!(
        matches!(
            &reports[0],
            NodeReport::HookFailed {
                hook: Hook::Cancel(_),
                ..
            }
        ),
        "{reports:?}"
    );
    rig.stop();
}

/// F-128: what a pipeline's author got wrong is refused as a session's opening would be.
#[test]
fn a_pipeline_that_makes_no_sense_is_refused() {
    let unknown = Harness::of_kind(NodeKind::Custom("nobody's".to_owned()));
    let error = unknown.start().expect_err("nobody makes it").to_string();
    assert!(error.contains("nobody's"), "{error}");
    let unserved = Harness::of_kind(NodeKind::Llm);
    let error = unserved.start().expect_err("nobody serves it").to_string();
    assert!(error.contains("llm"), "{error}");
}

/// F-128: a node's provider calls are made as in a call, by scripted providers or others.
#[test]
fn provider_calls_are_made() {
    let model = Arc::new(ScriptedLlm::new("llm").answers(["Good day."]));
    let mut providers = Providers::new();
    providers.add_llm(model.clone());
    let harness = Harness::of_kind(NodeKind::Llm).providers(providers);
    let mut rig = harness.start().unwrap();
    rig.feed(final_words("hello"));
    rig.advance(Duration::from_secs(5));
    assert_eq!(rig.texts().concat(), "Good day.");
    let outputs = rig.outputs();
    let called = outputs.iter().filter(|it| matches!(it, Output::Called(_)));
    assert_eq!(called.count(), 1, "{outputs:?}");
    assert_eq!(model.tally().running(), 0);
    rig.stop();
}

/// F-128: the same test goes the same way each time, to the moment and the order.
#[test]
fn the_same_test_goes_the_same_way_each_time() {
    let once = || {
        let harness = obedient()
            .listening()
            .budget(ms(200))
            .standby(|_spec| Box::new(Obedient));
        let mut rig = harness.start().unwrap();
        for told in ["a", "wait", "remember", "panic", "b", "recall", "wait", "c"] {
            rig.feed(generated(told));
            rig.advance(ms(70));
        }
        rig.cancel(CancelReason::BargeIn);
        rig.advance(Duration::from_secs(2));
        let mut outputs = rig.timed_outputs();
        outputs.extend(rig.stop().into_iter().map(|output| (ms(0), output)));
        outputs
    };
    let first = once();
    assert!(first.len() >= 5, "{first:?}");
    for _ in 0..25 {
        assert_eq!(once(), first);
    }
}
