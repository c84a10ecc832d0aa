//! The four scopes of a cancel, against real actors.

use std::time::Duration;

use rspp_host::CancelTarget;
use rspp_kernel::CancelReason;
use rspp_proto::{EventId, InvocationId, NodeId, SessionId, TurnNumber};
use rspp_tests::call::{Builder, Call, Cast, says};
use rspp_transport_api::loopback::Start;

async fn talking(cast: &Cast) -> Call {
    let start = Start::At(Duration::from_millis(300));
    let call = Builder::new(cast, vec![says(start)]).start().await;
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    call
}

fn call_of(node: &str, ordinal: u32, modality: &str) -> InvocationId {
    let session = SessionId::new("call").unwrap();
    let event = EventId::new(format!("{node}-{ordinal}")).unwrap();
    InvocationId::canonical(&session, Some(&TurnNumber::FIRST.id()), &event, modality)
}

/// lifecycle.md §6: scope `session` ends the turn and the session.
#[tokio::test(start_paused = true)]
async fn a_cancelled_session_says_no_more() {
    let call = talking(&Cast::default()).await;
    let reason = CancelReason::UserCancel;
    let receipt = call
        .session
        .cancel_part(CancelTarget::Session, reason)
        .await;
    assert_eq!(receipt.unwrap().turn, Some(TurnNumber::FIRST));
    let ended = call.end().await;
    assert_eq!(ended.report.turns[0].outcome, "abort");
    assert_eq!(ended.line.leaked(), 0);
}

/// F-034: cancelling a node that the user hears is cancelling the turn, and only that.
#[tokio::test(start_paused = true)]
async fn a_cancelled_node_silences_what_is_downstream_of_it() {
    let cast = Cast::default();
    let call = talking(&cast).await;
    let target = CancelTarget::Node(NodeId::new("tts").unwrap());
    let receipt = call
        .session
        .cancel_part(target, CancelReason::UserCancel)
        .await;
    assert_eq!(receipt.unwrap().turn, Some(TurnNumber::FIRST));
    let ended = call.end().await;
    assert_eq!(ended.report.turns[0].reason.as_deref(), Some("cancelled"));
}

/// F-160: a provider call is a scope of its own; the reply goes on without the rest of that clause.
#[tokio::test(start_paused = true)]
async fn a_cancelled_call_costs_its_clause_and_not_the_turn() {
    let cast = Cast::default();
    let call = talking(&cast).await;
    let target = CancelTarget::Invocation(call_of("tts", 1, "tts"));
    let reason = CancelReason::UserCancel;
    let receipt = call.session.cancel_part(target, reason).await.unwrap();
    assert_eq!(receipt.fence, Duration::ZERO, "nothing was fenced");
    let ended = call.end().await;
    assert_eq!(ended.report.turns[0].outcome, "commit");
    assert!(ended.signals().contains(&"cancel"));
}
