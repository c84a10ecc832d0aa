//! Custom nodes: their hooks, their panics, their long work.

use std::{
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use rspp_host::{
    Event,
    node::{NodeContext, NodeError, Step},
};
use rspp_kernel::CancelReason;
use rspp_proto::{Payload, abi::Signal};
use rspp_provider_api::{
    Fault,
    scripted::{Conduct, Script, ScriptedLlm, ScriptedVoice},
};
use rspp_tests::{
    call::{Builder, Cast, REPLY, after_reply, first, says},
    nodes::{Hooks, Probes, add, custom, forward, get, insert, node},
};
use rspp_transport_api::loopback::Start;
use serde_json::json;

const LONG: &str = "Well, let me tell you a very long story. It begins in a small town by the sea, where \
     nobody was ever in a hurry, and it ends a great many years later in the very same place.";
fn counts(hooks: &Hooks) -> [u32; 3] {
    [get(&hooks.init), get(&hooks.start), get(&hooks.stop)]
}

/// A call with a node `probe` on the edge between the model and the segmenter.
fn with_probe(cast: &Cast, probes: Probes, starts: &[Start]) -> Builder {
    let said = starts.iter().map(|start| says(*start)).collect();
    Builder::new(cast, said)
        .pipeline(|spec| insert(spec, "llm", custom("probe"), "segmenter"))
        .configure(probes.install())
}

/// F-011, F-012: each instance is initialised, started and stopped once; a turn has its own.
#[tokio::test(start_paused = true)]
async fn each_instance_of_a_node_is_initialised_started_and_stopped_once() {
    let mut probes = Probes::default();
    let hooks = probes.add("probe", forward);
    let cast = Cast::default();
    let ended = with_probe(&cast, probes, &[first(), after_reply()])
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit", "commit"]);
    assert_eq!(counts(&hooks), [2, 2, 2], "one instance a turn");
    assert_eq!(
        get(&hooks.events),
        2 * (8 + 1),
        "eight words and their end, each turn"
    );
    assert_eq!(get(&hooks.cancel), 0);
}

/// F-012: a node of the session lives as long as it does.
#[tokio::test(start_paused = true)]
async fn a_session_node_is_initialised_started_and_stopped_once() {
    let mut probes = Probes::default();
    let hooks = probes.add("probe", forward);
    let cast = Cast::default();
    let ended = Builder::new(&cast, vec![says(first()), says(after_reply())])
        .pipeline(|spec| insert(spec, "stt", custom("probe"), "turn"))
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit", "commit"]);
    assert_eq!(counts(&hooks), [1, 1, 1]);
}

/// P16, T10: a node that never comes back is not waited for: the turn's time is up.
#[tokio::test(start_paused = true)]
async fn a_node_that_hangs_costs_its_turn_alone() {
    let mut probes = Probes::default();
    let hangs = AtomicU32::new(0);
    probes.add("probe", move |_nth, cx: &mut NodeContext, event: Event| {
        if add(&hangs) == 1 {
            return Step::Wait(Box::pin(std::future::pending()));
        }
        cx.forward(event);
        Step::OK
    });
    let cast = Cast::default();
    let starts = [first(), Start::At(Duration::from_secs(9))];
    let ended = with_probe(&cast, probes, &starts).hold().await;
    assert_eq!(ended.endings().len(), 2);
    assert_eq!(ended.turn(1).outcome, "abort");
    assert_eq!(ended.turn(2).agent_text_played, REPLY);
}

/// F-134, F2: a node of a turn that panics ends the turn; the call goes on.
#[tokio::test(start_paused = true)]
async fn a_node_that_panics_ends_its_turn_and_the_call_goes_on() {
    for nth_event in [1, 4] {
        let mut probes = Probes::default();
        let seen = AtomicU32::new(0);
        let hooks = probes.add("probe", move |_nth, cx: &mut NodeContext, event: Event| {
            assert_ne!(add(&seen), nth_event, "a planted fault");
            cx.forward(event);
            Step::OK
        });
        let cast = Cast::default();
        let starts = [first(), Start::At(Duration::from_secs(6))];
        let ended = with_probe(&cast, probes, &starts).hold().await;
        assert_eq!(ended.endings(), ["node_timeout_or_failure", "commit"]);
        assert_eq!(ended.turn(2).agent_text_played, REPLY);
        assert!(ended.report.node_failures >= 1);
        let signals = ended.signals_of(1);
        assert_eq!(signals[signals.len() - 2..], ["abort", "close"]);
        assert_eq!(get(&hooks.start), 2);
        // The failure names the node (F-131).
        let errors: Vec<_> = ended
            .log
            .payloads()
            .into_iter()
            .filter_map(|payload| match payload {
                Payload::Error(note) => note.node_id.map(|node| node.to_string()),
                _something_else => None,
            })
            .collect();
        assert!(errors.contains(&"probe".to_owned()), "{errors:?}");
    }
}

/// F-134: a node that returns an error ends its turn too, without its host dying.
#[tokio::test(start_paused = true)]
async fn a_node_that_gives_up_ends_its_turn() {
    let mut probes = Probes::default();
    let seen = AtomicU32::new(0);
    let hooks = probes.add("probe", move |_nth, cx: &mut NodeContext, event: Event| {
        if add(&seen) == 3 {
            return Step::Done(Err(NodeError::new("a planted fault")));
        }
        cx.forward(event);
        Step::OK
    });
    let cast = Cast::default();
    let starts = [first(), Start::At(Duration::from_secs(6))];
    let ended = with_probe(&cast, probes, &starts).hold().await;
    assert_eq!(ended.endings(), ["node_timeout_or_failure", "commit"]);
    assert_eq!(counts(&hooks), [2, 2, 2]);
}

/// F-134: a listening node that panics is restarted, and the call goes on.
#[tokio::test(start_paused = true)]
async fn a_detector_that_panics_is_restarted_and_the_call_goes_on() {
    // Each detector lives for 2 s of audio.
    let cast = Cast {
        voice: Arc::new(ScriptedVoice::by_energy("vad").panicking_after(100)),
        ..Cast::default()
    };
    let said = vec![says(first()), says(after_reply())];
    let ended = Builder::new(&cast, said).hold().await;
    assert_eq!(ended.endings(), ["commit", "commit"], "{:#?}", ended.report);
    assert!(ended.report.node_failures >= 1);
    assert!(cast.voice.tally().made >= 2);
}

/// F-134: one that cannot be kept running ends its session, in order, and says which it was.
#[tokio::test(start_paused = true)]
async fn a_detector_that_cannot_be_kept_running_ends_its_session() {
    let cast = Cast {
        voice: Arc::new(ScriptedVoice::by_energy("vad").panicking_after(5)),
        ..Cast::default()
    };
    let mut builder = Builder::new(&cast, vec![says(first())]);
    builder.script.hang_up_after = Duration::from_mins(1);
    let ended = builder.hold().await;
    assert!(ended.report.ended.contains("vad"), "{}", ended.report.ended);
    assert!(ended.report.turns.is_empty());
    assert!(ended.report.ended_at.since(ended.report.opened_at) < Duration::from_secs(5));
}

/// F-045: a handler that takes longer than its budget is told, and so is the operator.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_slower_than_its_budget_is_told() {
    fn slowly(cx: &mut NodeContext, event: Event) -> Step<'_> {
        Step::Wait(Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(60)).await;
            cx.forward(event);
            Ok(())
        }))
    }
    let mut probes = Probes::default();
    let hooks = probes.add("probe", |nth, cx, event| {
        if nth == 1 {
            slowly(cx, event)
        } else {
            forward(nth, cx, event)
        }
    });
    let cast = Cast::default();
    let mut probe = custom("probe");
    probe.budget_ms = Some(50);
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| insert(spec, "llm", probe, "segmenter"))
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(get(&hooks.budget), 1);
    assert_eq!(
        ended.log.reasons_of(Signal::BudgetWarning),
        ["node_budget_threshold_exceeded"]
    );
}

/// F-007, F-133: a node that fails is stood in for within the turn, and an event says so.
#[tokio::test(start_paused = true)]
async fn a_standby_takes_over_within_the_turn() {
    let fails = Conduct::good().failing_after(0, Fault::model("out of memory"));
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").script(Script::always(fails))),
        ..Cast::default()
    };
    let second = Arc::new(ScriptedLlm::new("llm-2").answers([REPLY]));
    let mut builder = Builder::new(&cast, vec![says(first())]).pipeline(|spec| {
        let llm = spec
            .nodes
            .iter_mut()
            .find(|node| node.id.as_str() == "llm")
            .unwrap();
        llm.fallback = Some("backup".parse().unwrap());
        spec.nodes.push(node(
            json!({ "id": "backup", "kind": "llm", "provider": "llm-2" }),
        ));
    });
    builder.providers.add_llm(second.clone());
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, REPLY);
    assert_eq!(second.tally().calls, 1);
    let fallback = ended.log.reasons_of(Signal::Fallback);
    assert_eq!(fallback.len(), 1);
    assert!(
        fallback[0].starts_with("from=llm to=backup"),
        "{fallback:?}"
    );
}

/// F-007, F-134: a standby also takes over from a node that panics.
#[tokio::test(start_paused = true)]
async fn a_standby_takes_over_from_a_node_that_panics() {
    let mut probes = Probes::default();
    let broken = probes.add("probe", |nth, cx: &mut NodeContext, event: Event| {
        assert_ne!(nth, 3, "a planted fault");
        cx.forward(event);
        Step::OK
    });
    let backup = probes.add("backup", forward);
    let cast = Cast::default();
    let mut probe = custom("probe");
    probe.fallback = Some("backup".parse().unwrap());
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| {
            insert(spec, "llm", probe, "segmenter");
            spec.nodes.push(custom("backup"));
        })
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"], "{:#?}", ended.report);
    assert_eq!(get(&broken.events), 3);
    assert_eq!(get(&backup.init), 1);
    assert_eq!(ended.log.signals_of(Signal::Fallback).len(), 1);
}

/// F-012, F-038: an interruption is told to the nodes of the turn once, and they are stopped once.
#[tokio::test(start_paused = true)]
async fn an_interruption_is_told_to_every_node_of_the_turn_once() {
    let mut probes = Probes::default();
    let hooks = probes.add("probe", forward);
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, REPLY])),
        ..Cast::default()
    };
    let ended = with_probe(
        &cast,
        probes,
        &[
            first(),
            Start::BargeIn {
                after_reply_audio: Duration::from_millis(900),
            },
        ],
    )
    .hold()
    .await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_eq!(counts(&hooks), [2, 2, 2]);
    assert_eq!(get(&hooks.barge_in), 1);
    assert_eq!(get(&hooks.cancel), 1);
}

/// Counts when it is dropped.
struct Guard(Arc<AtomicU32>);

impl Drop for Guard {
    fn drop(&mut self) {
        add(&self.0);
    }
}

/// Waits for an hour, unless it is dropped.
fn wait(guard: Guard) -> Step<'static> {
    Step::Wait(Box::pin(async move {
        let _guard = guard;
        tokio::time::sleep(Duration::from_hours(1)).await;
        Ok(())
    }))
}

/// F-036, P16: a handler that waits is dropped where it waits.
#[tokio::test(start_paused = true)]
async fn a_handler_that_waits_is_dropped_by_a_cancel() {
    let dropped = Arc::new(AtomicU32::new(0));
    let mut probes = Probes::default();
    let guards = Arc::clone(&dropped);
    let hooks = probes.add("probe", move |_nth, _cx: &mut NodeContext, _event| {
        wait(Guard(Arc::clone(&guards)))
    });
    let cast = Cast::default();
    let call = with_probe(&cast, probes, &[first()]).start().await;
    call.log.until(Signal::TurnOpen, 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(get(&hooks.events), 1, "it waits on the first word");
    assert_eq!(get(&dropped), 0);
    let receipt = call.session.cancel(CancelReason::UserCancel).await;
    assert!(receipt.is_some_and(|receipt| receipt.turn.is_some()));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(get(&dropped), 1, "the handler was not dropped");
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["cancelled"]);
    assert_eq!(get(&hooks.cancel), 1);
    assert_eq!(get(&hooks.events), 1, "what waited for it was not handled");
    assert_eq!(counts(&hooks), [1, 1, 1]);
}

/// F-007: a standby also takes over from a node that overruns its budget, with what it had been told.
#[tokio::test(start_paused = true)]
async fn a_standby_takes_over_from_a_node_that_overruns() {
    let mut probes = Probes::default();
    let slow = probes.add("probe", |_nth, _cx: &mut NodeContext, _event| {
        Step::Wait(Box::pin(async {
            tokio::time::sleep(Duration::from_hours(1)).await;
            Ok(())
        }))
    });
    let backup = probes.add("backup", forward);
    let mut probe = custom("probe");
    probe.fallback = Some("backup".parse().unwrap());
    probe.budget_ms = Some(200);
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            insert(spec, "llm", probe, "segmenter");
            spec.nodes.push(custom("backup"));
        })
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"], "{:#?}", ended.report);
    assert_eq!(ended.turn(1).agent_text_played, REPLY);
    assert_eq!(get(&slow.events), 1);
    assert!(get(&backup.events) > 1);
    assert_eq!(ended.log.signals_of(Signal::Fallback).len(), 1);
}
