//! Who may say what, and what has to be said with it: event-abi §4 as one table.

use super::{Emitter, Signal};

/// What a signal may be scoped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScopeRule {
    /// Always the session.
    Session,
    /// Always a turn.
    Turn,
    /// Whichever is meant.
    Any,
}

/// A field that some signals require.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// `turn_id`
    TurnId,
    /// `reason`
    Reason,
    /// `scope`
    Scope,
    /// `edge_id`
    EdgeId,
    /// `target_lane`
    TargetLane,
    /// `sync_domain`
    SyncDomain,
    /// `discontinuity_id`
    DiscontinuityId,
    /// `seq_range`
    SeqRange,
    /// `amount`
    Amount,
}

impl Field {
    /// The field's name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TurnId => "turn_id",
            Self::Reason => "reason",
            Self::Scope => "scope",
            Self::EdgeId => "edge_id",
            Self::TargetLane => "target_lane",
            Self::SyncDomain => "sync_domain",
            Self::DiscontinuityId => "discontinuity_id",
            Self::SeqRange => "seq_range",
            Self::Amount => "amount",
        }
    }
}

/// One row of the table. Every signal also requires the control lane, `metadata` and an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalRule {
    /// Who may say it.
    pub emitters: &'static [Emitter],
    /// What it may be scoped to.
    pub scope: ScopeRule,
    /// What it requires.
    pub requires: &'static [Field],
}

const fn row(
    emitters: &'static [Emitter],
    scope: ScopeRule,
    requires: &'static [Field],
) -> SignalRule {
    SignalRule {
        emitters,
        scope,
        requires,
    }
}

impl Signal {
    /// The signal's row of event-abi §4.
    pub const fn rule(self) -> SignalRule {
        use Emitter as E;
        use Field as F;
        use ScopeRule::{Any, Session, Turn};

        const INTERRUPT: &[E] = &[E::LaneRouter, E::CancellationManager];
        const ADAPT: &[E] = &[E::WatermarkEngine, E::BudgetManager];
        const PLACEMENT: &[E] = &[E::PlacementLease, E::RoutingView];
        const ADMISSION: &[E] = &[E::LocalAdmission, E::ControlPlaneAdmission];
        const DELIVERY: &[E] = &[E::TransportMapping, E::ConnectionAdapter];

        match self {
            Self::TurnOpenProposed => row(&[E::PreludeEngine], Session, &[]),
            Self::TurnOpen | Self::Commit | Self::Close => {
                row(&[E::TurnArbiter], Turn, &[F::TurnId])
            }
            Self::Abort => row(&[E::TurnArbiter], Turn, &[F::TurnId, F::Reason]),
            Self::BargeIn | Self::Stop => row(INTERRUPT, Any, &[]),
            Self::Cancel => row(INTERRUPT, Any, &[F::Scope]),
            Self::Watermark => row(
                &[E::WatermarkEngine],
                Any,
                &[F::EdgeId, F::TargetLane, F::Reason],
            ),
            Self::BudgetWarning | Self::BudgetExhausted => {
                row(&[E::BudgetManager], Any, &[F::Reason])
            }
            Self::Degrade | Self::Fallback => row(ADAPT, Any, &[F::Reason]),
            Self::Discontinuity => row(
                &[E::SyncIntegrity],
                Any,
                &[F::SyncDomain, F::DiscontinuityId, F::Reason],
            ),
            Self::DropNotice => row(
                &[E::EdgeBufferManager, E::WatermarkEngine],
                Any,
                &[F::EdgeId, F::TargetLane, F::Reason, F::SeqRange],
            ),
            Self::FlowXoff => row(
                &[E::FlowControl],
                Any,
                &[F::EdgeId, F::TargetLane, F::Reason],
            ),
            Self::FlowXon => row(&[E::FlowControl], Any, &[F::EdgeId, F::TargetLane]),
            Self::CreditGrant => row(
                &[E::FlowControl],
                Any,
                &[F::EdgeId, F::TargetLane, F::Amount],
            ),
            Self::ProviderError | Self::CircuitEvent | Self::ProviderSwitch => {
                row(&[E::ProviderInvocationController], Any, &[F::Reason])
            }
            Self::LeaseIssued
            | Self::LeaseRotated
            | Self::MigrationStart
            | Self::MigrationFinish
            | Self::SessionHandoff => row(PLACEMENT, Any, &[]),
            Self::Admit | Self::Reject | Self::Defer => row(ADMISSION, Session, &[F::Reason]),
            Self::Shed => row(&[E::LocalAdmission], Any, &[F::Reason]),
            Self::StaleEpochReject | Self::DeauthorizedDrain => {
                row(&[E::ContractGuard], Any, &[F::Reason])
            }
            Self::Connected
            | Self::Reconnecting
            | Self::Disconnected
            | Self::Ended
            | Self::Silence
            | Self::Stall => row(&[E::ConnectionAdapter], Any, &[]),
            Self::OutputAccepted
            | Self::PlaybackStarted
            | Self::PlaybackCompleted
            | Self::PlaybackCancelled => row(DELIVERY, Turn, &[F::TurnId]),
            Self::RecordingLevelDowngraded => row(&[E::TimelineRecorder], Any, &[F::Reason]),
        }
    }

    /// Who may say the signal.
    pub const fn emitters(self) -> &'static [Emitter] {
        self.rule().emitters
    }

    /// What the signal may be scoped to.
    pub const fn scope_rule(self) -> ScopeRule {
        self.rule().scope
    }

    /// What has to be said with the signal.
    pub const fn required_fields(self) -> &'static [Field] {
        self.rule().requires
    }
}
