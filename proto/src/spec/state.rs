//! How much state nodes may keep, and how fresh what they read has to be (F-155).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a reader of durable state is promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// The newest write, whoever made it.
    #[default]
    Strong,
    /// A value that was the newest not longer ago than that.
    BoundedStaleness {
        /// In milliseconds.
        max_staleness_ms: u64,
    },
}

/// Bounds of the three scopes of node state, each by node, and the consistency of the durable one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StatePolicy {
    /// Most bytes of turn-ephemeral state; gone when its turn ends.
    pub turn_max_bytes: usize,
    /// Most bytes of session-hot state; may be lost when the session moves.
    pub hot_max_bytes: usize,
    /// Most bytes of one session-durable value; kept by the control plane.
    pub durable_max_bytes: usize,
    /// How fresh durable state is when it is read.
    pub durable_consistency: Consistency,
}

impl Default for StatePolicy {
    fn default() -> Self {
        Self {
            turn_max_bytes: 65_536,
            hot_max_bytes: 65_536,
            durable_max_bytes: 65_536,
            durable_consistency: Consistency::Strong,
        }
    }
}
