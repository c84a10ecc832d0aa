//! How a session treats its connection: what comes in, what goes out, and what becomes of a lost one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::abi::UnknownEventAction;

/// What the buffer for jitter and loss favours (F-054, F-087).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JitterProfile {
    /// A short wait; what comes later than that is lost.
    #[default]
    LatencyFirst,
    /// A long wait, so that recognition hears as much as possible.
    AccuracyFirst,
}

/// Keeps the agent's own voice, come back through a loudspeaker, from counting as the user's (P28).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EchoGuardPolicy {
    /// Whether it listens at all.
    pub enabled: bool,
    /// Longest way from the loudspeaker back, in milliseconds.
    #[schemars(range(min = 20, max = 1_000))]
    pub max_delay_ms: u64,
    /// How much louder than the expected echo the user has to be, in decibels.
    #[schemars(range(min = 1, max = 40))]
    pub margin_db: u32,
}

impl Default for EchoGuardPolicy {
    fn default() -> Self {
        Self {
            enabled: false,
            max_delay_ms: 400,
            margin_db: 6,
        }
    }
}

/// How a session treats its connection. All times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectionPolicy {
    /// How long a lost connection may take to come back before the session is torn down (F-091).
    #[schemars(range(min = 1))]
    pub cleanup_ms: u64,
    /// Without any audio from the user for this long, `silence` is said.
    #[schemars(range(min = 1))]
    pub silence_after_ms: u64,
    /// When the peer takes no output for this long, `stall` is said.
    #[schemars(range(min = 20))]
    pub stall_after_ms: u64,
    /// How long a stall may last before the session is torn down.
    #[schemars(range(min = 1))]
    pub stall_cleanup_ms: u64,
    /// Audio older than this is not played any more (P23).
    #[schemars(range(min = 100))]
    pub max_output_age_ms: u64,
    /// What becomes of events of an unknown type (F-020).
    pub unknown_event_action: UnknownEventAction,
    /// How audio that may come late or not at all is buffered (F-054, F-087).
    pub jitter: JitterProfile,
    /// Most that media time and the runtime's clock may run apart before they are set anew (NF-018).
    #[schemars(range(min = 1))]
    pub max_skew_ms: u64,
    /// Most that 99 of 100 frames may be off where media time is told from the runtime's clock, over
    /// ten seconds; beyond it the mapping is corrected and the session counts as degraded (NF-018). To
    /// ever be met it has to be less than `max_skew_ms`, from which on media time is set anew.
    #[schemars(range(min = 1, max = 254))]
    pub max_mapping_error_p99_ms: u64,
    /// The agent's own voice in the user's microphone (P28).
    pub echo_guard: EchoGuardPolicy,
}

impl Default for ConnectionPolicy {
    fn default() -> Self {
        Self {
            cleanup_ms: 30_000,
            silence_after_ms: 10_000,
            stall_after_ms: 1_000,
            stall_cleanup_ms: 5_000,
            max_output_age_ms: 10_000,
            unknown_event_action: UnknownEventAction::Reject,
            jitter: JitterProfile::LatencyFirst,
            max_skew_ms: 200,
            max_mapping_error_p99_ms: 100,
            echo_guard: EchoGuardPolicy::default(),
        }
    }
}
