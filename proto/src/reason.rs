//! Why something was decided: short machine-readable words, each with one meaning.
//!
//! The constants are the words that this runtime says itself (event-abi §4, lifecycle §5). A control
//! plane may answer with words of its own, so the set is open.

use std::{borrow::Cow, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// Longest reason accepted, in bytes.
pub const MAX_REASON_BYTES: usize = 256;

/// A reason: never blank, at most [`MAX_REASON_BYTES`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Reason(#[schemars(length(min = 1, max = 256))] Cow<'static, str>);

/// Why a text is no reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReasonError {
    /// A reason says something.
    #[error("a reason must not be blank")]
    Blank,
    /// A reason is a word, not an essay.
    #[error("a reason is {0} bytes long; at most {MAX_REASON_BYTES} are allowed")]
    TooLong(usize),
}

impl Reason {
    /// A reason that is known when the program is written.
    ///
    /// # Panics
    /// If it is empty or too long; in a `const`, that is a compile error.
    pub const fn from_static(reason: &'static str) -> Self {
        assert!(!reason.is_empty() && reason.len() <= MAX_REASON_BYTES);
        Self(Cow::Borrowed(reason))
    }

    /// Checks and wraps a reason that came from elsewhere.
    pub fn new(reason: impl Into<String>) -> Result<Self, ReasonError> {
        let reason = reason.into();
        if reason.trim().is_empty() {
            Err(ReasonError::Blank)
        } else if reason.len() > MAX_REASON_BYTES {
            Err(ReasonError::TooLong(reason.len()))
        } else {
            Ok(Self(Cow::Owned(reason)))
        }
    }

    /// The reason's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl PartialEq<str> for Reason {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let reason = String::deserialize(deserializer)?;
        Self::new(reason).map_err(serde::de::Error::custom)
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: Reason = Reason::from_static($text);)*

        /// Every reason of this module.
        pub const ALL: &[Reason] = &[$($name,)*];
    };
}

// Edges and lanes (event-abi §4).
reasons! {
    /// A lane of an actor reached its high mark.
    LANE_QUEUE_HIGH_WATERMARK = "lane_queue_high_watermark";
    /// An edge reached its high mark.
    EDGE_WATERMARK_HIGH = "edge_watermark_high";
    /// A receiver held its sender back.
    BACKPRESSURE_ASSERTED = "backpressure_asserted";
    /// The edge's strategy dropped an item.
    QUEUE_PRESSURE_DROP = "queue_pressure_drop";
    /// A full telemetry lane dropped an item.
    TELEMETRY_BEST_EFFORT_DROP = "telemetry_best_effort_drop";
    /// A lane holds all it may.
    LANE_QUEUE_CAPACITY_EXCEEDED = "lane_queue_capacity_exceeded";

    /// A synchronised group was dropped whole.
    SYNC_ATOMIC_DROP = "sync_atomic_drop";
    /// An item was dropped and its domain told to reset.
    SYNC_DROP_WITH_DISCONTINUITY = "sync_drop_with_discontinuity";
    /// Part of a sync domain is gone.
    SYNC_DOMAIN_PARTIAL_LOSS = "sync_domain_partial_loss";

    /// Load was shed where work is scheduled.
    SCHEDULING_POINT_SHED = "scheduling_point_shed";
    /// No execution slot is free.
    EXECUTION_POOL_SATURATED = "execution_pool_saturated";
    /// Execution has stopped.
    EXECUTION_POOL_CLOSED = "execution_pool_closed";
    /// The node is overloaded, and serves with less (F-048).
    OVERLOAD_DEGRADE_POSTURE = "overload_degrade_posture";
    /// A quota is used up, and is served with less (F-050).
    QUOTA_DEGRADE_POSTURE = "quota_degrade_posture";
    /// The node already runs as often as it may.
    NODE_CONCURRENCY_LIMITED = "node_concurrency_limited";
    /// A node used up its soft budget.
    NODE_BUDGET_THRESHOLD_EXCEEDED = "node_budget_threshold_exceeded";
    /// A node used up its processor time, and is held (F-107).
    NODE_CPU_LIMIT_EXCEEDED = "node_cpu_limit_exceeded";
    /// A node keeps more memory than it may, and is stopped (F-107).
    NODE_MEMORY_LIMIT_EXCEEDED = "node_memory_limit_exceeded";
    /// Media time is told from the runtime's clock less well than it has to be (NF-018).
    MEDIA_RUNTIME_MAPPING_ERROR = "media_runtime_mapping_error";
    /// A node failed or never came back.
    NODE_TIMEOUT_OR_FAILURE = "node_timeout_or_failure";

    /// The writer's epoch is not the session's.
    AUTHORITY_EPOCH_MISMATCH = "authority_epoch_mismatch";
    /// Authority was lost before the turn opened.
    AUTHORITY_REVOKED_BEFORE_OPEN = "authority_revoked_before_open";
    /// Authority was lost while the turn ran.
    AUTHORITY_REVOKED_IN_TURN = "authority_revoked_in_turn";
    /// The lease moved to a new epoch.
    AUTHORITY_EPOCH_ROTATION = "authority_epoch_rotation";
    /// A region is being left.
    REGION_FAILOVER_START = "region_failover_start";
    /// A region has been left.
    REGION_FAILOVER_COMPLETE = "region_failover_complete";
    /// The session went to another holder in good order.
    AUTHORITATIVE_HANDOFF = "authoritative_handoff";

    /// Output behind the fence of a cancel was withheld.
    CANCEL_FENCE_APPLIED = "cancel_fence_applied";
    /// The transport took the output.
    OUTPUT_ACCEPTED = "output_accepted";

    /// Detail did not fit; baseline evidence did.
    STAGE_A_DETAIL_OVERFLOW = "stage_a_detail_overflow";
    /// The transport is gone or stuck.
    TRANSPORT_DISCONNECT_OR_STALL = "transport_disconnect_or_stall";
    /// What a proposal says when it has no better reason.
    SESSION_TURN_INTENT = "session_turn_intent";

    /// A snapshot is missing, stale or incompatible (lifecycle §5).
    SNAPSHOT_INVALID_OR_MISSING = "snapshot_invalid_or_missing";
    /// No room, and none expected.
    ADMISSION_CAPACITY_REJECT = "admission_capacity_reject";
    /// No room now.
    ADMISSION_CAPACITY_DEFER = "admission_capacity_defer";
    /// There is room.
    ADMISSION_CAPACITY_ALLOW = "admission_capacity_allow";
    /// What a turn starts from could not be gathered.
    TURN_START_BUNDLE_RESOLUTION_FAILED = "turn_start_bundle_resolution_failed";
    /// The plan could not be built.
    PLAN_MATERIALIZATION_FAILED = "plan_materialization_failed";

    /// A cancel was accepted before the turn was done.
    CANCELLED = "cancelled";
    /// The session is someone else's now.
    AUTHORITY_LOSS = "authority_loss";
    /// The evidence of the turn could not be kept.
    RECORDING_EVIDENCE_UNAVAILABLE = "recording_evidence_unavailable";
    /// Providers failed and none was left.
    PROVIDER_FAILURE = "provider_failure";
    /// Nothing that the plan allows was left to do.
    DETERMINISTIC_REASON = "deterministic_reason";
    /// A budget ran out with nothing left to reduce.
    BUDGET_EXHAUSTED = "budget_exhausted";
    /// The control lane's reserve is full (design §4).
    CONTROL_LANE_EXHAUSTED = "control_lane_exhausted";

    /// The user spoke over the agent (F-035).
    BARGE_IN = "barge_in";
    /// Something took too long (F-035).
    TIMEOUT = "timeout";
    /// The user or client asked to stop (F-035).
    USER_CANCEL = "user_cancel";
    /// A provider's failure ended the work (F-035).
    PROVIDER_ERROR = "provider_error";

    /// The control plane admits (controlplane §6).
    CP_ADMISSION_ALLOWED = "cp_admission_allowed";
    /// The control plane admits, to be served with less.
    CP_ADMISSION_ALLOWED_DEGRADED = "cp_admission_allowed_degraded";
    /// Nobody could be asked, and then everybody is let in.
    CP_ADMISSION_ALLOWED_UNCOUNTED = "cp_admission_allowed_uncounted";
    /// Nobody could be asked, and then nobody is let in.
    CP_ADMISSION_DEFER_UNAVAILABLE = "cp_admission_defer_unavailable";
    /// The control plane has no room now.
    CP_ADMISSION_DEFER_CAPACITY = "cp_admission_defer_capacity";
    /// Policy refuses.
    CP_ADMISSION_REJECT_POLICY = "cp_admission_reject_policy";
    /// A quota is used up.
    CP_ADMISSION_REJECT_QUOTA = "cp_admission_reject_quota";
    /// The request makes no sense.
    CP_ADMISSION_INVALID_INPUT = "cp_admission_invalid_input";
    /// The lease stands (controlplane §7).
    LEASE_AUTHORIZED = "lease_authorized";
    /// The lease has moved on.
    LEASE_STALE_EPOCH = "lease_stale_epoch";
    /// The lease was taken away.
    LEASE_DEAUTHORIZED = "lease_deauthorized";
    /// The lease request makes no sense.
    LEASE_INVALID_INPUT = "lease_invalid_input";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_reasons_share_a_word() {
        let words: BTreeSet<&str> = ALL.iter().map(Reason::as_str).collect();
        assert_eq!(words.len(), ALL.len());
        for word in words {
            assert!(
                word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{word} is not snake_case"
            );
        }
    }

    #[test]
    fn blank_and_giant_reasons_are_refused() {
        assert_eq!(Reason::new(" "), Err(ReasonError::Blank));
        assert_eq!(Reason::new("x".repeat(257)), Err(ReasonError::TooLong(257)));
        assert!(serde_json::from_str::<Reason>("\"\"").is_err());
    }
}
