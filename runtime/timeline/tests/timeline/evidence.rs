use rspp_proto::{Epoch, EventId, Monotonic, Reason};
use rspp_timeline::*;

use crate::conversation::{evidence, session, turn};

fn complete(cancelled: bool) -> TurnBaseline {
    evidence(&turn(1), 100, 900, cancelled)
}

#[test]
fn a_complete_turn_misses_nothing() {
    assert_eq!(complete(false).missing(), Vec::<&str>::new());
    assert_eq!(complete(true).missing(), Vec::<&str>::new());
    assert!(complete(false).is_accepted());
}

/// NF-028, RD-003: each required field, removed or corrupted alone, is named alone.
#[test]
fn every_required_field_is_missed() {
    #[track_caller]
    fn check(field: &str, spoil: impl FnOnce(&mut TurnBaseline)) {
        let mut turn = complete(false);
        spoil(&mut turn);
        assert_eq!(turn.missing(), [field]);
    }
    check("or02_evidence_schema_version", |t| {
        t.or02_evidence_schema_version = "or02/v0.9".into()
    });
    check("envelope_snapshot", |t| t.envelope_snapshot = None);
    check("payload_tags", |t| t.payload_tags.clear());
    check("payload_tags", |t| t.payload_tags.push(t.payload_tags[0]));
    check("redaction_decisions", |t| t.redaction_decisions.truncate(1));
    check("redaction_decisions", |t| {
        t.redaction_decisions.push(t.redaction_decisions[0])
    });
    check("resolved_turn_plan_id", |t| {
        t.resolved_turn_plan_id = " ".into()
    });
    check("plan_hash", |t| t.plan_hash = "plan/turn-0001".into());
    check("plan_hash", |t| t.plan_hash = "A".repeat(64));
    check("execution_profile_version", |t| {
        t.execution_profile_version.clear()
    });
    check("routing_view_snapshot", |t| {
        t.snapshots.routing_view_snapshot.clear()
    });
    check("admission_policy_snapshot", |t| {
        t.snapshots.admission_policy_snapshot.clear()
    });
    check("abi_compatibility_snapshot", |t| {
        t.snapshots.abi_compatibility_snapshot.clear()
    });
    check("version_resolution_snapshot", |t| {
        t.snapshots.version_resolution_snapshot.clear()
    });
    check("policy_resolution_snapshot", |t| {
        t.snapshots.policy_resolution_snapshot.clear()
    });
    check("provider_health_snapshot", |t| {
        t.snapshots.provider_health_snapshot.clear()
    });
    check("authority_epoch", |t| t.authority_epoch = None);
    check("lease_epoch_at_turn_open", |t| {
        t.lease_epoch_at_turn_open = None
    });
    check("lease_epoch_at_terminal", |t| {
        t.lease_epoch_at_terminal = None
    });
    check("lease_epoch_at_terminal", |t| {
        t.lease_epoch_at_turn_open = Epoch::new(9)
    });
    check("admission_outcome", |t| t.admission_outcome = None);
    check("decision_outcomes", |t| t.decision_outcomes.clear());
    check("decision_outcomes", |t| {
        t.decision_outcomes[0].emitted_by = rspp_proto::abi::Emitter::TurnArbiter;
    });
    check("determinism_seed", |t| t.determinism_seed = None);
    check("ordering_markers", |t| t.ordering_markers.clear());
    check("ordering_markers", |t| {
        t.ordering_markers.push("event_id".into())
    });
    check("merge_rule_id", |t| t.merge_rule_id.clear());
    check("merge_rule_version", |t| t.merge_rule_version.clear());
    check("nondeterministic_inputs", |t| {
        t.nondeterministic_inputs[0].evidence_ref.clear()
    });
    check("turn_open_at", |t| t.turn_open_at = None);
    check("terminal_outcome", |t| t.terminal_outcome = None);
    check("terminal_reason", |t| {
        t.terminal_outcome = Some(TerminalOutcome::Abort)
    });
    check("terminal_reason", |t| {
        t.terminal_reason = Some(Reason::new("odd").unwrap())
    });
    check("turn_terminal_at", |t| t.turn_terminal_at = None);
    check("turn_terminal_at", |t| {
        t.turn_terminal_at = Some(Monotonic::ZERO)
    });
    check("turn_close_at", |t| t.turn_close_at = None);
    check("close_emitted", |t| t.close_emitted = false);
    check("invocation_outcomes", |t| t.invocation_outcomes.clear());
    check("invocation_outcomes", |t| {
        t.invocation_outcomes[0].attempt_count = 0
    });
    check("invocation_outcomes", |t| {
        t.invocation_outcomes[0].final_attempt_latency_ms = 311
    });
}

/// CF-004: a cancelled turn also proves its cancel.
#[test]
fn every_field_of_a_cancel_is_missed() {
    #[track_caller]
    fn check(field: &str, spoil: impl FnOnce(&mut CancelEvidence)) {
        let mut turn = complete(true);
        spoil(turn.cancel.as_mut().unwrap());
        assert_eq!(turn.missing(), [field]);
    }
    check("cancel_scope", |c| c.cancel_scope = None);
    check("cancel_accepted_at", |c| c.cancel_accepted_at = None);
    check("cancel_fence_applied_at", |c| {
        c.cancel_fence_applied_at = None
    });
    check("cancel_fence_applied_at", |c| {
        c.cancel_fence_applied_at = Some(Monotonic::ZERO)
    });
    check("cancel_sent_at", |c| c.cancel_sent_at = None);
    check("post_cancel_rejection_markers", |c| {
        c.late_outputs_rejected = None
    });
    check("post_cancel_rejection_markers", |c| {
        c.rejection_markers = vec![EventId::canonical(&session(), None, 1)];
    });
}

#[test]
fn a_turn_that_never_opened_was_not_accepted() {
    let mut turn = complete(false);
    turn.turn_open_at = None;
    assert!(!turn.is_accepted());
}
