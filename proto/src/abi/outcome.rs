//! Decisions about admission, load and authority, as evidence (controlplane §2).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Emitter, Stamp, vocabulary::vocabulary};
use crate::{Epoch, EventId, Reason, SessionId, TurnId, WallClock};

vocabulary! {
    /// What was decided.
    OutcomeKind {
        /// Go ahead.
        Admit = "admit",
        /// No.
        Reject = "reject",
        /// Not now.
        Defer = "defer",
        /// Given up for lack of room.
        Shed = "shed",
        /// Refused: the writer's epoch is not the session's.
        StaleEpochReject = "stale_epoch_reject",
        /// Drained: the writer's authority is gone.
        DeauthorizedDrain = "deauthorized_drain",
    }
}

vocabulary! {
    /// When it was decided.
    OutcomePhase {
        /// Before a turn opened.
        PreTurn = "pre_turn",
        /// Where work is scheduled.
        SchedulingPoint = "scheduling_point",
        /// While a turn ran.
        ActiveTurn = "active_turn",
    }
}

vocabulary! {
    /// What it was decided about.
    OutcomeScope {
        /// A tenant.
        Tenant = "tenant",
        /// A session.
        Session = "session",
        /// A turn.
        Turn = "turn",
        /// An item offered to an edge.
        EdgeEnqueue = "edge_enqueue",
        /// An item taken from an edge.
        EdgeDequeue = "edge_dequeue",
        /// A node about to run.
        NodeDispatch = "node_dispatch",
    }
}

/// A decision and everything needed to explain it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DecisionOutcome {
    /// What was decided.
    pub outcome_kind: OutcomeKind,
    /// When.
    pub phase: OutcomePhase,
    /// About what.
    pub scope: OutcomeScope,
    /// The session.
    pub session_id: SessionId,
    /// The turn; required when it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<TurnId>,
    /// The decision itself.
    pub event_id: EventId,
    /// The single time stamp of older writers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp_ms: Option<u64>,
    /// Milliseconds on the node's monotonic clock.
    pub runtime_timestamp_ms: u64,
    /// Milliseconds since the Unix epoch.
    pub wall_clock_timestamp_ms: WallClock,
    /// Who decided: RK-24, RK-25 or CP-05.
    pub emitted_by: Emitter,
    /// The epoch in question; required for decisions about authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority_epoch: Option<Epoch>,
    /// Why.
    pub reason: Reason,
}

/// A rule of controlplane §2 that an outcome breaks; the text begins with the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutcomeRule {
    /// Only three modules decide.
    #[error("emitted_by: decisions are RK-24's, RK-25's and CP-05's, not {0}'s")]
    Emitter(Emitter),
    /// Each kind has its deciders.
    #[error("emitted_by: {kind} is not decided by {emitter}")]
    EmitterOfKind {
        /// What was decided.
        kind: OutcomeKind,
        /// By whom.
        emitter: Emitter,
    },
    /// Each kind has its phases.
    #[error("phase: {kind} is not decided in {phase}")]
    PhaseOfKind {
        /// What was decided.
        kind: OutcomeKind,
        /// When.
        phase: OutcomePhase,
    },
    /// The control plane decides before turns, and about tenants and sessions only.
    #[error("scope: CP-05 decides before turns, about tenants and sessions")]
    ControlPlane,
    /// Each phase has its scopes.
    #[error("scope: {scope} is not decided about in {phase}")]
    ScopeOfPhase {
        /// About what.
        scope: OutcomeScope,
        /// When.
        phase: OutcomePhase,
    },
    /// Authority belongs to sessions and turns.
    #[error("scope: {kind} in {phase} is about a session or turn, not about {scope}")]
    ScopeOfAuthority {
        /// What was decided.
        kind: OutcomeKind,
        /// When.
        phase: OutcomePhase,
        /// About what.
        scope: OutcomeScope,
    },
    /// A decision about a turn names it.
    #[error("turn_id: required for scope turn and phase active_turn")]
    TurnRequired,
    /// A decision about authority names the epoch.
    #[error("authority_epoch: required for {0}")]
    EpochRequired(OutcomeKind),
}

impl DecisionOutcome {
    /// A decision made where and when the stamp says.
    pub fn new(
        outcome_kind: OutcomeKind,
        phase: OutcomePhase,
        scope: OutcomeScope,
        emitted_by: Emitter,
        reason: Reason,
        stamp: Stamp,
    ) -> Self {
        Self {
            outcome_kind,
            phase,
            scope,
            event_id: stamp.event_id(),
            session_id: stamp.session_id,
            turn_id: stamp.turn_id,
            timestamp_ms: None,
            runtime_timestamp_ms: stamp.at.as_millis(),
            wall_clock_timestamp_ms: stamp.wall,
            emitted_by,
            authority_epoch: Some(stamp.authority_epoch),
            reason,
        }
    }

    /// Checks every rule of controlplane §2.
    pub fn validate(&self) -> Result<(), OutcomeRule> {
        use Emitter::{ContractGuard, ControlPlaneAdmission, LocalAdmission};
        use OutcomeKind as K;
        use OutcomePhase as P;
        use OutcomeScope as S;

        let (kind, phase, scope) = (self.outcome_kind, self.phase, self.scope);
        let emitter = self.emitted_by;
        if !matches!(
            emitter,
            ContractGuard | LocalAdmission | ControlPlaneAdmission
        ) {
            return Err(OutcomeRule::Emitter(emitter));
        }
        let decides = match kind {
            K::Admit | K::Reject | K::Defer => emitter != ContractGuard,
            K::Shed => emitter == LocalAdmission,
            K::StaleEpochReject | K::DeauthorizedDrain => emitter == ContractGuard,
        };
        if !decides {
            return Err(OutcomeRule::EmitterOfKind { kind, emitter });
        }
        let in_phase = match kind {
            K::Admit | K::Reject | K::Defer => true,
            K::Shed => phase == P::SchedulingPoint,
            K::StaleEpochReject => phase != P::ActiveTurn,
            K::DeauthorizedDrain => phase != P::SchedulingPoint,
        };
        if !in_phase {
            return Err(OutcomeRule::PhaseOfKind { kind, phase });
        }
        let about_owner = matches!(scope, S::Tenant | S::Session);
        if emitter == ControlPlaneAdmission && !(phase == P::PreTurn && about_owner) {
            return Err(OutcomeRule::ControlPlane);
        }
        let at_point = matches!(scope, S::EdgeEnqueue | S::EdgeDequeue | S::NodeDispatch);
        let about = match phase {
            P::PreTurn => about_owner || scope == S::Turn,
            P::SchedulingPoint => at_point,
            P::ActiveTurn => at_point || scope == S::Turn,
        };
        if !about {
            return Err(OutcomeRule::ScopeOfPhase { scope, phase });
        }
        let about_authority = match (kind, phase) {
            (K::StaleEpochReject | K::DeauthorizedDrain, P::PreTurn) => scope != S::Tenant,
            (K::DeauthorizedDrain, P::ActiveTurn) => scope == S::Turn,
            (K::Admit | K::Reject | K::Defer | K::Shed, _)
            | (K::StaleEpochReject, P::SchedulingPoint | P::ActiveTurn)
            | (K::DeauthorizedDrain, P::SchedulingPoint) => true,
        };
        if !about_authority {
            return Err(OutcomeRule::ScopeOfAuthority { kind, phase, scope });
        }
        if (scope == S::Turn || phase == P::ActiveTurn) && self.turn_id.is_none() {
            return Err(OutcomeRule::TurnRequired);
        }
        let needs_epoch = matches!(kind, K::StaleEpochReject | K::DeauthorizedDrain);
        if needs_epoch && self.authority_epoch.is_none() {
            return Err(OutcomeRule::EpochRequired(kind));
        }
        Ok(())
    }
}
