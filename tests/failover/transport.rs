//! F6: transport loss or stall (RK-23, RK-03).

use std::{sync::Arc, time::Duration};

use rspp_proto::abi::{Emitter, Signal};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::call::{Builder, Cast, LONG, first, says};

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
