//! F7: authority conflict (CP-07, RK-24).

use std::{sync::Arc, time::Duration};

use rspp_controlplane_api::LocalLeases;
use rspp_host::{
    Event,
    node::{NodeContext, Step},
};
use rspp_kernel::CancelReason;
use rspp_proto::{
    Epoch, SessionId,
    abi::{Emitter, OutcomeKind, OutcomePhase, Signal},
};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Call, Cast, LONG, first, says},
    nodes::{Probes, custom, insert},
};

use crate::row::{assert_aborted, assert_committed, assert_stayed_pre_turn, evidence, outcomes};

/// A call in the middle of a reply.
async fn speaking() -> Call {
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG])),
        ..Cast::default()
    };
    let call = Builder::new(&cast, vec![says(first())]).start().await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    call
}

/// F7, T8, AE-002: a revoke in a turn drains, aborts and closes it, also when a cancel comes at the
/// same point; the evidence carries the epochs.
#[tokio::test(start_paused = true)]
async fn a_revoke_ends_the_turn_and_beats_a_cancel() {
    for with_cancel in [false, true] {
        let call = speaking().await;
        call.session.revoke();
        if with_cancel {
            call.session.cancel(CancelReason::UserCancel).await;
        }
        let ended = call.end().await;
        assert_aborted(&ended, 1, "authority_loss");
        let signals = ended.steps_of(1);
        let drained = signals.iter().position(|s| *s == "deauthorized_drain");
        let drained = drained.expect("a drain is told");
        assert_eq!(signals[drained..], ["deauthorized_drain", "abort", "close"]);
        let told = &ended.log.signals_of(Signal::DeauthorizedDrain)[0];
        assert_eq!(told.emitted_by, Emitter::ContractGuard);
        let baseline = evidence(&ended, 1);
        assert_eq!(baseline.lease_epoch_at_turn_open, Some(Epoch::FIRST));
        assert_eq!(baseline.lease_epoch_at_terminal, Some(Epoch::FIRST));
        assert_eq!(baseline.accepted_stale_epoch_outputs, 0);
    }
}

/// F7, T3: a lease that is somebody else's under a newer epoch refuses the intent before anything opens, by
/// a decision of the contract guard.
#[tokio::test(start_paused = true)]
async fn a_conflict_before_the_turn_stays_before_it() {
    let leases = Arc::new(LocalLeases::default());
    let granted = Arc::clone(&leases);
    let call = Builder::new(&Cast::default(), vec![says(first())])
        .configure(move |config| config.leases = granted)
        .start()
        .await;
    leases.acquire(&SessionId::new("call").unwrap()).unwrap();
    let ended = call.end().await;
    assert_stayed_pre_turn(&ended);
    let decided = outcomes(&ended);
    let refusal = decided.last().expect("the decision was recorded");
    assert_eq!(refusal.outcome_kind, OutcomeKind::StaleEpochReject);
    assert_eq!(refusal.phase, OutcomePhase::PreTurn);
    assert_eq!(refusal.emitted_by, Emitter::ContractGuard);
}

/// F7, T12, AE-003: output of another epoch is refused where it would leave, which is told and ends
/// nothing.
#[tokio::test(start_paused = true)]
async fn a_stale_output_is_refused_and_ends_nothing() {
    let mut probes = Probes::default();
    probes.add("forger", |_nth, cx: &mut NodeContext, event: Event| {
        let mut forged = event.clone();
        forged.stamp.epoch = event.stamp.epoch.next();
        cx.forward(forged);
        cx.forward(event);
        Step::OK
    });
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| insert(spec, "tts", custom("forger"), "egress"))
        .configure(probes.install())
        .hold()
        .await;
    assert_committed(&ended, 1);
    let told = ended.log.reasons_of(Signal::StaleEpochReject);
    assert_eq!(told, ["authority_epoch_mismatch"]);
    assert_eq!(evidence(&ended, 1).accepted_stale_epoch_outputs, 0);
}
