//! The closed vocabulary: signals, who emits them, and what they are about.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::vocabulary::vocabulary;
use crate::Payload;

vocabulary! {
    /// A control signal (event-abi §4). The list is closed: a new one is a new schema version.
    Signal {
        /// Someone means to open a turn; decides nothing.
        TurnOpenProposed = "turn_open_proposed",
        /// The turn is authoritative and its plan frozen.
        TurnOpen = "turn_open",
        /// Generation is finished; no more data-lane output.
        Commit = "commit",
        /// The turn ended before it was committed.
        Abort = "abort",
        /// The turn is final; always after `commit` or `abort`.
        Close = "close",
        /// The user interrupts.
        BargeIn = "barge_in",
        /// Someone asked to stop.
        Stop = "stop",
        /// A cancel was accepted for a scope.
        Cancel = "cancel",
        /// A queue crossed its high mark.
        Watermark = "watermark",
        /// A soft budget was crossed.
        BudgetWarning = "budget_warning",
        /// A budget is used up.
        BudgetExhausted = "budget_exhausted",
        /// A quality reduction that the plan allows was chosen.
        Degrade = "degrade",
        /// An alternative path that the plan allows was chosen.
        Fallback = "fallback",
        /// Downstream must reset what it decodes of a sync domain.
        Discontinuity = "discontinuity",
        /// Items were dropped or merged, with their lineage.
        DropNotice = "drop_notice",
        /// Stop sending.
        FlowXoff = "flow_xoff",
        /// Go on sending.
        FlowXon = "flow_xon",
        /// So many more items may be sent.
        CreditGrant = "credit_grant",
        /// A provider failed, normalised.
        ProviderError = "provider_error",
        /// A circuit breaker changed state.
        CircuitEvent = "circuit_event",
        /// The next candidate provider took over.
        ProviderSwitch = "provider_switch",
        /// A lease was granted.
        LeaseIssued = "lease_issued",
        /// A lease moved to a new epoch.
        LeaseRotated = "lease_rotated",
        /// A placement begins to move.
        MigrationStart = "migration_start",
        /// A placement has moved.
        MigrationFinish = "migration_finish",
        /// A session was handed over.
        SessionHandoff = "session_handoff",
        /// Admitted.
        Admit = "admit",
        /// Refused.
        Reject = "reject",
        /// Not now.
        Defer = "defer",
        /// Load was shed at a scheduling point.
        Shed = "shed",
        /// A writer of another epoch was refused.
        StaleEpochReject = "stale_epoch_reject",
        /// A writer lost its authority and drains.
        DeauthorizedDrain = "deauthorized_drain",
        /// The transport is connected.
        Connected = "connected",
        /// The transport is trying again.
        Reconnecting = "reconnecting",
        /// The transport is gone for now.
        Disconnected = "disconnected",
        /// The transport has ended for good.
        Ended = "ended",
        /// Nothing is heard.
        Silence = "silence",
        /// Media stopped flowing though connected.
        Stall = "stall",
        /// The transport took output for delivery.
        OutputAccepted = "output_accepted",
        /// The user began to hear it.
        PlaybackStarted = "playback_started",
        /// The user heard all of it.
        PlaybackCompleted = "playback_completed",
        /// The rest will not be heard.
        PlaybackCancelled = "playback_cancelled",
        /// Recording holds less than asked for.
        RecordingLevelDowngraded = "recording_level_downgraded",
    }
}

vocabulary! {
    /// The module that says a signal; named by its role, numbered on the wire.
    Emitter {
        /// Proposes turns.
        PreludeEngine = "RK-02",
        /// Opens and ends turns.
        TurnArbiter = "RK-03",
        /// Routes events by lane.
        LaneRouter = "RK-06",
        /// Runs provider calls.
        ProviderInvocationController = "RK-11",
        /// Holds edge queues.
        EdgeBufferManager = "RK-12",
        /// Watches queue marks.
        WatermarkEngine = "RK-13",
        /// Holds senders back.
        FlowControl = "RK-14",
        /// Keeps streams in step.
        SyncIntegrity = "RK-15",
        /// Cancels.
        CancellationManager = "RK-16",
        /// Counts time.
        BudgetManager = "RK-17",
        /// Maps output to the transport.
        TransportMapping = "RK-22",
        /// Holds the connection.
        ConnectionAdapter = "RK-23",
        /// Checks epochs and contracts.
        ContractGuard = "RK-24",
        /// Admits and schedules locally.
        LocalAdmission = "RK-25",
        /// Records the timeline.
        TimelineRecorder = "OR-02",
        /// Admits for the control plane.
        ControlPlaneAdmission = "CP-05",
        /// Grants leases.
        PlacementLease = "CP-07",
        /// Publishes routes.
        RoutingView = "CP-08",
    }
}

vocabulary! {
    /// What a cancel reaches.
    CancelScope {
        /// The whole session.
        Session = "session",
        /// One turn.
        Turn = "turn",
        /// One node's work.
        Node = "node",
        /// One provider call.
        ProviderInvocation = "provider_invocation",
    }
}

vocabulary! {
    /// How a cancel ends what it reaches (F-041).
    CancelMode {
        /// At once: what is buffered is discarded.
        Hard = "hard",
        /// What is in flight is finished, nothing else is begun.
        Soft = "soft",
    }
}

#[expect(
    clippy::derivable_impls,
    reason = "the vocabulary's macro leaves no place to mark a variant"
)]
impl Default for CancelMode {
    fn default() -> Self {
        Self::Hard
    }
}

vocabulary! {
    /// What an event belongs to.
    EventScope {
        /// The session, whatever turn is running.
        Session = "session",
        /// One turn.
        Turn = "turn",
    }
}

vocabulary! {
    /// What a payload reveals; exactly one class per event, and redaction goes by it.
    PayloadClass {
        /// Identifies a person.
        Pii = "PII",
        /// Health information.
        Phi = "PHI",
        /// A person's voice, or the agent's.
        AudioRaw = "audio_raw",
        /// What was said or written.
        TextRaw = "text_raw",
        /// Derived from what was said.
        DerivedSummary = "derived_summary",
        /// Nothing of what was said.
        Metadata = "metadata",
    }
}

impl PayloadClass {
    /// The least that may be claimed of a payload that nobody has looked into.
    pub fn of(payload: &Payload) -> Self {
        match payload {
            Payload::AudioChunk(_) => Self::AudioRaw,
            // Extensions are opaque and may carry typed digits: a card number, a PIN.
            Payload::Text(_) | Payload::Extension(_) => Self::TextRaw,
            Payload::Debug(_) => Self::DerivedSummary,
            Payload::AudioEnd
            | Payload::TextEnd
            | Payload::Speech(_)
            | Payload::Metrics(_)
            | Payload::Error(_) => Self::Metadata,
        }
    }
}
