//! Answers begun before it is certain that the user has finished.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether and how often an answer may be begun on a guess (P9, P10).
///
/// While the user pauses and the end-of-turn model is not sure, a provisional turn starts with the
/// words so far. It is promoted if the user's final words are the same, and discarded otherwise;
/// until then nothing of it is heard, kept or done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SpeculationPolicy {
    /// Whether there is any.
    pub enabled: bool,
    /// Fewest characters of the user's words that are worth a guess.
    pub min_characters: usize,
    /// Most guesses of a session within a minute.
    pub max_per_minute: u32,
    /// Most tokens of a session that may be wasted on guesses within a minute.
    pub max_wasted_tokens_per_minute: u64,
}

impl Default for SpeculationPolicy {
    fn default() -> Self {
        Self {
            enabled: false,
            min_characters: 4,
            max_per_minute: 6,
            max_wasted_tokens_per_minute: 2_000,
        }
    }
}
