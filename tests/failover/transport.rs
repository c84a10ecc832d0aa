//! F6: transport loss or stall (RK-23, RK-03).

use std::{sync::Arc, time::Duration};

use rspp_proto::abi::{ControlSignal, Emitter, Signal};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Cast, LONG, first, says},
    wire::{Opening, Over, Wire},
};
use rspp_timeline::{Entry, TerminalOutcome};
use rspp_transport_api::{Ingress, Link};

use crate::row::assert_aborted;

/// F6, F-138: a line that is cut in the middle of a reply is told of, ends the turn and then the
/// session; what was heard until then is what is remembered, and nothing is left.
#[tokio::test(start_paused = true)]
async fn a_line_that_is_cut_aborts_the_turn_and_ends_the_session() {
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG])),
        ..Cast::default()
    };
    let call = Builder::new(&cast, vec![says(first())]).start().await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    call.line.hang_up();
    let ended = call.end().await;
    assert_aborted(&ended, 1, "transport_disconnect_or_stall");
    let signals = ended.signals();
    let at = |name: &str| {
        let found = signals.iter().position(|signal| *signal == name);
        found.unwrap_or_else(|| panic!("no {name} among {signals:?}"))
    };
    assert!(at("disconnected") < at("abort"));
    assert!(at("close") < at("ended"));
    let gone = ended.log.signals_of(Signal::Disconnected);
    assert_eq!(gone[0].emitted_by, Emitter::ConnectionAdapter);
    let report = ended.turn(1);
    assert!(report.agent_text.starts_with(&report.agent_text_played));
    assert!(report.agent_text_played.len() < LONG.len());
}

/// What the connection's adapter said, with its reasons.
fn of_the_line(over: &Over) -> Vec<String> {
    let signals = over.entries.iter().filter_map(|entry| match entry {
        Entry::Signal(signal) if signal.emitted_by == Emitter::ConnectionAdapter => Some(signal),
        _another_entry => None,
    });
    let say = |signal: &ControlSignal| match &signal.reason {
        Some(reason) => format!("{} {reason}", signal.signal),
        None => signal.signal.to_string(),
    };
    signals.map(|signal| say(signal)).collect()
}

/// F6: every state of a transport that fails is told by its adapter: nothing is heard, the link is tried
/// for, the peer takes nothing; when that lasts, the turn is aborted with its reason and closed, then the
/// session ends; the evidence says the same, and nothing of what nobody took was said.
#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_for_good_aborts_the_turn_and_ends_the_session() {
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG])),
        ..Cast::default()
    };
    let mut opening = Opening::default();
    opening.pipeline.connection.silence_after_ms = 1_000;
    opening.pipeline.connection.stall_cleanup_ms = 3_000;
    let wire = Wire::open(&cast, opening).await;
    wire.until(Signal::Silence, 1).await;
    wire.send(Ingress::Link(Link::Reconnecting));
    tokio::time::sleep(Duration::from_millis(300)).await;
    wire.send(Ingress::Link(Link::Back));
    wire.types("tell me a story");
    wire.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    wire.peer.refuses_one_of(1);
    let over = wire.end_by_itself().await;
    let gone = "transport_disconnect_or_stall";
    assert_eq!(over.endings(), [gone]);
    let told = of_the_line(&over);
    let story = [
        "connected".to_owned(),
        "silence".to_owned(),
        "reconnecting".to_owned(),
        "connected".to_owned(),
        "silence".to_owned(),
        "stall".to_owned(),
        format!("disconnected {gone}"),
        format!("stall {gone}"),
        "ended".to_owned(),
    ];
    assert_eq!(told, story);
    let signals = over.signals();
    assert!(
        signals.ends_with(&["disconnected", "stall", "abort", "close", "ended"]),
        "{signals:?}"
    );
    let mut baselines = over.entries.iter().filter_map(|entry| match entry {
        Entry::Turn(baseline) => Some(baseline),
        _another_entry => None,
    });
    let baseline = baselines.next().expect("the turn left evidence");
    assert!(baseline.is_complete(), "{:?}", baseline.missing());
    assert_eq!(baseline.terminal_outcome, Some(TerminalOutcome::Abort));
    assert!(baseline.close_emitted);
    let report = &over.report.turns[0];
    assert!(LONG.starts_with(&report.agent_text_played));
    assert!(report.agent_text_played.len() < LONG.len() / 2);
    assert!(over.report.line.unplayed > 0);
}
