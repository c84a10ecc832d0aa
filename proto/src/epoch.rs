//! Who may write: epochs, and the lease tokens that prove them.

use std::{fmt, num::NonZeroU64};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Fences stale placements: of two writers, the one with the higher epoch is right.
///
/// Granted by the control plane, never derived from a clock (design §5).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Epoch(NonZeroU64);

impl Epoch {
    /// The epoch of a session's first placement.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// Wraps an epoch as received; `None` for zero, which is no epoch.
    pub fn new(epoch: u64) -> Option<Self> {
        NonZeroU64::new(epoch).map(Self)
    }

    /// The epoch as a number.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The epoch of the next placement.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}", self.0)
    }
}
