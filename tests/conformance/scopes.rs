//! The four scopes of a cancel, against real actors.

use std::{
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use rspp_host::{
    CancelTarget, Event,
    node::{NodeContext, NodeError, Step},
};
use rspp_kernel::{CancelReason, refused::RefusedMove};
use rspp_proto::{
    EventId, InvocationId, NodeId, SessionId, TurnNumber,
    abi::{CancelScope, ControlSignal, Signal},
};
use rspp_provider_api::{
    Fault,
    scripted::{Conduct, Script, ScriptedLlm, ScriptedTts},
};
use rspp_tests::{
    call::{Builder, Call, Cast, Ended, says},
    nodes::{Probes, add, custom, insert},
};
use rspp_transport_api::loopback::Start;

async fn talking(cast: &Cast) -> Call {
    let start = Start::At(Duration::from_millis(300));
    let call = Builder::new(cast, vec![says(start)]).start().await;
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    call
}

/// A voice that is no faster than it speaks: its calls are at work while they are heard.
fn at_its_pace() -> Cast {
    Cast {
        tts: Arc::new(ScriptedTts::new("tts").real_time_factor(1.0)),
        ..Cast::default()
    }
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
    let cast = at_its_pace();
    let call = talking(&cast).await;
    let target = CancelTarget::Invocation(call_of("tts", 1, "tts"));
    let reason = CancelReason::UserCancel;
    let receipt = call.session.cancel_part(target, reason).await.unwrap();
    assert_eq!(receipt.fence, Duration::ZERO, "nothing was fenced");
    let ended = call.end().await;
    assert_eq!(ended.report.turns[0].outcome, "commit");
    assert!(ended.signals().contains(&"cancel"));
}

fn signals_of(ended: &Ended, kind: Signal) -> Vec<ControlSignal> {
    ended.log.signals_of(kind)
}

/// event-abi §4, F-034, F-160: the cancel of a part says which, and nobody has pressed stop.
#[tokio::test(start_paused = true)]
async fn the_cancel_of_a_part_names_it() {
    let node = NodeId::new("tts").unwrap();
    let invocation = call_of("tts", 1, "tts");
    for target in [
        CancelTarget::Node(node.clone()),
        CancelTarget::Invocation(invocation.clone()),
    ] {
        let call = talking(&at_its_pace()).await;
        let reason = CancelReason::UserCancel;
        let receipt = call.session.cancel_part(target.clone(), reason).await;
        assert_eq!(receipt.unwrap().refused, None);
        let ended = call.end().await;
        assert_eq!(signals_of(&ended, Signal::Stop), []);
        let [cancel] = &signals_of(&ended, Signal::Cancel)[..] else {
            panic!("{:#?}", signals_of(&ended, Signal::Cancel));
        };
        let envelope = &cancel.envelope;
        let (of_node, of_call) = match &target {
            CancelTarget::Node(node) => (Some(node), None),
            CancelTarget::Invocation(call) => (None, Some(call)),
            CancelTarget::Session | CancelTarget::Turn => (None, None),
        };
        assert_eq!(envelope.node_id.as_ref(), of_node);
        assert_eq!(envelope.provider_invocation_id.as_ref(), of_call);
    }
}

/// F-034, F-141: what there is not cannot be cancelled: that is refused by a code, and nothing changes. A call
/// that is over is as little there as one that never was.
#[tokio::test(start_paused = true)]
async fn what_there_is_not_is_not_cancelled() {
    let call = talking(&Cast::default()).await;
    let refused = |scope| Some(RefusedMove::Cancel { scope });
    for (target, expected) in [
        (
            CancelTarget::Node(NodeId::new("nope").unwrap()),
            refused(CancelScope::Node),
        ),
        (
            CancelTarget::Node(NodeId::new("egress").unwrap()),
            refused(CancelScope::Node),
        ),
        (
            CancelTarget::Invocation(call_of("llm", 1, "llm")),
            refused(CancelScope::ProviderInvocation),
        ),
    ] {
        let reason = CancelReason::UserCancel;
        let receipt = call.session.cancel_part(target, reason).await.unwrap();
        assert_eq!((receipt.turn, receipt.refused), (None, expected));
    }
    let ended = call.end().await;
    assert_eq!(ended.report.turns[0].outcome, "commit");
    assert_eq!(signals_of(&ended, Signal::Cancel), []);
    let codes = [
        ("no_such_call".to_owned(), 1),
        ("no_such_node".to_owned(), 2),
    ];
    assert_eq!(ended.report.moves_refused, codes.into());
}

/// F-034, F-037, P11: whoever listens is cancelled in the middle of an utterance: what is lost by that is told,
/// and the next utterance is understood.
#[tokio::test(start_paused = true)]
async fn an_utterance_that_a_cancel_takes_is_told() {
    let cast = Cast::default();
    let starts = [300, 6_000].map(|ms| Start::At(Duration::from_millis(ms)));
    let call = Builder::new(&cast, starts.map(says).into()).start().await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    let stt = CancelTarget::Node(NodeId::new("stt").unwrap());
    let reason = CancelReason::UserCancel;
    call.session.cancel_part(stt, reason).await.unwrap();
    let ended = call.end().await;
    let reasons = ended.log.reasons_of(Signal::Degrade);
    assert_eq!(reasons, ["utterance_lost"]);
    let turns = ended.report.turns.iter();
    let understood: Vec<_> = turns.map(|turn| turn.user_text.as_str()).collect();
    assert_eq!(understood, ["and again"]);
}

/// F-131, F-160, event-abi §4: a failure of a provider says which call it was, and of which node.
#[tokio::test(start_paused = true)]
async fn a_provider_error_names_its_call_and_node() {
    let mut cast = Cast::default();
    let fails = Conduct::good().failing_after(0, Fault::model("a planted fault"));
    cast.llm = Arc::new(ScriptedLlm::new("llm").script(Script::always(fails)));
    let start = Start::At(Duration::from_millis(300));
    let ended = Builder::new(&cast, vec![says(start)]).hold().await;
    let errors = signals_of(&ended, Signal::ProviderError);
    assert!(!errors.is_empty());
    for error in errors {
        let envelope = &error.envelope;
        assert_eq!(envelope.node_id, Some(NodeId::new("llm").unwrap()));
        assert_eq!(
            envelope.provider_invocation_id,
            Some(call_of("llm", 1, "llm"))
        );
    }
}

/// F-131, F-134: a node that listens and panics, or gives up, is told by a signal; the call goes on.
#[tokio::test(start_paused = true)]
async fn a_listening_node_that_fails_is_told() {
    for panics in [true, false] {
        let mut probes = Probes::default();
        let seen = AtomicU32::new(0);
        probes.add("probe", move |_nth, cx: &mut NodeContext, event: Event| {
            if add(&seen) == 30 {
                assert!(!panics, "a planted fault");
                return Step::Done(Err(NodeError::new("a planted fault")));
            }
            cx.forward(event);
            Step::OK
        });
        let starts = [300, 8_000].map(|ms| Start::At(Duration::from_millis(ms)));
        let ended = Builder::new(&Cast::default(), starts.map(says).into())
            .pipeline(|spec| insert(spec, "ingress", custom("probe"), "stt"))
            .configure(probes.install())
            .hold()
            .await;
        let warnings = signals_of(&ended, Signal::BudgetWarning);
        let [warning] = &warnings[..] else {
            panic!("{panics}: {warnings:#?}");
        };
        assert_eq!(
            warning.envelope.node_id,
            Some(NodeId::new("probe").unwrap())
        );
        let reason = warning.reason.as_ref().map(ToString::to_string);
        assert_eq!(reason.as_deref(), Some("node_timeout_or_failure"));
        assert_eq!(ended.log.reasons_of(Signal::Degrade), ["node_failed"]);
        assert_eq!(ended.endings().last(), Some(&"commit"), "{panics}");
    }
}
