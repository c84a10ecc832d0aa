//! How long things may take.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Resolved time budgets of a turn, in milliseconds, each at least 1 (turn-plan.md §2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// From turn open to the first output heard.
    #[schemars(range(min = 1))]
    pub turn_budget_ms: u64,
    /// Soft budget of one node's work on one event or turn.
    #[schemars(range(min = 1))]
    pub node_budget_ms_default: u64,
    /// From a path's first node to its last.
    #[schemars(range(min = 1))]
    pub path_budget_ms_default: u64,
    /// How long an event may wait on one edge.
    #[schemars(range(min = 1))]
    pub edge_budget_ms_default: u64,
    /// From a provider call to its first byte.
    #[schemars(range(min = 1))]
    pub provider_first_byte_ms: u64,
    /// Between two chunks of a provider's stream.
    #[schemars(range(min = 1))]
    pub provider_inter_chunk_ms: u64,
    /// From a cancel to the forced stop of a node that ignores it.
    #[schemars(range(min = 1))]
    pub cancel_grace_ms: u64,
    /// Longest that a hook of a node may be waited for.
    #[serde(default = "hook_timeout_ms")]
    #[schemars(range(min = 1))]
    pub hook_timeout_ms: u64,
    /// Longest a turn may run, speech included.
    #[schemars(range(min = 1))]
    pub max_turn_duration_ms: u64,
    /// Longest silence in the middle of a reply that no call in progress accounts for: then the stage
    /// that hangs is replaced, or the turn ends (P13).
    #[serde(default = "output_gap_ms")]
    #[schemars(range(min = 1))]
    pub output_gap_ms: u64,
    /// Longest silence towards the user that somebody at work accounts for, counted from the turn's last
    /// sign of life: a piece of an answer, or sound. Who says nothing for longer is given up (P13).
    #[serde(default = "max_silence_ms")]
    #[schemars(range(min = 1))]
    pub max_silence_ms: u64,
}

/// `max_silence_ms` of `simple/v1`, for policies that were written before there was one.
fn max_silence_ms() -> u64 {
    Budgets::MAX_SILENCE_MS
}

/// `output_gap_ms` of `simple/v1`, for policies that were written before there was one.
fn output_gap_ms() -> u64 {
    Budgets::OUTPUT_GAP_MS
}

impl Budgets {
    /// `output_gap_ms` under `simple/v1`.
    pub const OUTPUT_GAP_MS: u64 = 1_500;
    /// `max_silence_ms` under `simple/v1`.
    pub const MAX_SILENCE_MS: u64 = 4_000;
}

/// What holds where a policy from before this budget says nothing (turn-plan.md §8).
fn hook_timeout_ms() -> u64 {
    250
}

/// Budgets as authored: what is absent comes from the profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetsSpec {
    /// See [`Budgets::turn_budget_ms`].
    #[schemars(range(min = 1))]
    pub turn_budget_ms: Option<u64>,
    /// See [`Budgets::node_budget_ms_default`].
    #[schemars(range(min = 1))]
    pub node_budget_ms_default: Option<u64>,
    /// See [`Budgets::path_budget_ms_default`].
    #[schemars(range(min = 1))]
    pub path_budget_ms_default: Option<u64>,
    /// See [`Budgets::edge_budget_ms_default`].
    #[schemars(range(min = 1))]
    pub edge_budget_ms_default: Option<u64>,
    /// See [`Budgets::provider_first_byte_ms`].
    #[schemars(range(min = 1))]
    pub provider_first_byte_ms: Option<u64>,
    /// See [`Budgets::provider_inter_chunk_ms`].
    #[schemars(range(min = 1))]
    pub provider_inter_chunk_ms: Option<u64>,
    /// See [`Budgets::cancel_grace_ms`].
    #[schemars(range(min = 1))]
    pub cancel_grace_ms: Option<u64>,
    /// See [`Budgets::hook_timeout_ms`].
    #[schemars(range(min = 1))]
    pub hook_timeout_ms: Option<u64>,
    /// See [`Budgets::max_turn_duration_ms`].
    #[schemars(range(min = 1))]
    pub max_turn_duration_ms: Option<u64>,
    /// See [`Budgets::output_gap_ms`].
    #[schemars(range(min = 1))]
    pub output_gap_ms: Option<u64>,
    /// See [`Budgets::max_silence_ms`].
    #[schemars(range(min = 1))]
    pub max_silence_ms: Option<u64>,
}

/// How much a session may hold in memory, in bytes (P19, F-107).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryLimits {
    /// From here on the session sheds what it can do without; at most the cap.
    pub soft_bytes: u64,
    /// Here the session ends.
    #[schemars(range(min = 1))]
    pub cap_bytes: u64,
}

impl Default for MemoryLimits {
    /// 48 and 64 MiB: a session in conversation holds less than one.
    fn default() -> Self {
        Self {
            soft_bytes: 48 * 1024 * 1024,
            cap_bytes: 64 * 1024 * 1024,
        }
    }
}

impl MemoryLimits {
    /// The tighter of both, each in turn.
    #[must_use]
    pub fn within(self, outer: Self) -> Self {
        let cap_bytes = self.cap_bytes.min(outer.cap_bytes);
        Self {
            soft_bytes: self.soft_bytes.min(outer.soft_bytes).min(cap_bytes),
            cap_bytes,
        }
    }
}
