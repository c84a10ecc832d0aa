//! What was spent on providers.

use std::ops::AddAssign;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What provider calls were charged for (F-058, F-075): attempts that lost or failed included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Spending {
    /// Tokens that models read, where they said.
    pub tokens_read: u64,
    /// Tokens that models wrote.
    pub tokens_written: u64,
    /// The user's audio that was recognised, in milliseconds.
    pub audio_ms: u64,
    /// Characters that voices were given to speak.
    pub tts_characters: u64,
}

impl Spending {
    /// Whether nothing was spent.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

impl AddAssign for Spending {
    fn add_assign(&mut self, more: Self) {
        self.tokens_read = self.tokens_read.saturating_add(more.tokens_read);
        self.tokens_written = self.tokens_written.saturating_add(more.tokens_written);
        self.audio_ms = self.audio_ms.saturating_add(more.audio_ms);
        self.tts_characters = self.tts_characters.saturating_add(more.tts_characters);
    }
}
