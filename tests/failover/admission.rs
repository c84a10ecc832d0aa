//! F1: admission overload (CP-05, RK-25).

use rspp_host::OpenError;
use rspp_proto::{
    SessionId,
    abi::{Emitter, OutcomeKind, OutcomePhase, OutcomeScope, Signal},
    spec::Quota,
};
use rspp_tests::call::{Builder, Cast, first, says};

use crate::row::{assert_committed, assert_stayed_pre_turn, evidence, outcomes};

/// F1, T2: an intent that finds no room is refused before anything opens, by a decision that names
/// itself; the session lives on.
#[tokio::test(start_paused = true)]
async fn an_intent_beyond_the_nodes_room_is_rejected_before_anything_opens() {
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .configure(|config| config.limits.node.turns = Some(Quota::at(0)))
        .hold()
        .await;
    assert_stayed_pre_turn(&ended);
    let said = ended.log.signals_of(Signal::Reject);
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].emitted_by, Emitter::LocalAdmission);
    let decided = outcomes(&ended);
    let refusal = decided.last().expect("the decision was recorded");
    assert_eq!(refusal.outcome_kind, OutcomeKind::Reject);
    assert_eq!(refusal.phase, OutcomePhase::PreTurn);
    assert_eq!(refusal.scope, OutcomeScope::Session);
    assert_eq!(refusal.emitted_by, Emitter::LocalAdmission);
    assert_eq!(refusal.reason.as_str(), "admission_capacity_reject");
    assert_eq!(refusal.validate(), Ok(()));
    assert_eq!(ended.report.refused, 1);
}

/// F1: a session that finds no room is refused at the door; who is inside notices nothing, and each
/// turn's evidence holds its own admission.
#[tokio::test(start_paused = true)]
async fn a_session_beyond_the_nodes_room_is_refused_and_costs_nobody_inside() {
    let cast = Cast::default();
    let mut inside = Builder::new(&cast, vec![says(first())])
        .configure(|config| config.limits.node.sessions = Some(Quota::at(1)));
    let runtime = inside.runtime().await;
    let placed = inside.open(&runtime).await.expect("there is room for one");
    let mut outside = Builder::new(&cast, vec![]);
    outside.session = SessionId::new("outside").expect("not blank");
    let refused = outside.open(&runtime).await;
    assert!(matches!(refused, Err(OpenError::Refused(_))));
    let ended = placed.end().await;
    assert_committed(&ended, 1);
    let admission = evidence(&ended, 1).admission_outcome.as_ref();
    let admission = admission.expect("the admission is evidence");
    assert_eq!(admission.outcome_kind, OutcomeKind::Admit);
    assert_eq!(admission.reason.as_str(), "admission_capacity_allow");
    assert_eq!(admission.validate(), Ok(()));
}
