//! Who may write: epochs, and the lease tokens that prove them.

use std::{fmt, num::NonZeroU64, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

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

/// Longest lease token accepted, in bytes.
pub const MAX_LEASE_TOKEN_BYTES: usize = 4096;

/// The signed proof that its bearer holds an epoch. Opaque here; prints redacted.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct LeaseToken(#[schemars(with = "String", length(min = 1, max = 4096))] Arc<str>);

/// A text that cannot be a lease token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a lease token has 1 to {MAX_LEASE_TOKEN_BYTES} bytes, this one {0}")]
pub struct LeaseTokenError(usize);

impl LeaseToken {
    /// Wraps a token as received; its signature is the authority's business.
    pub fn new(token: impl Into<Arc<str>>) -> Result<Self, LeaseTokenError> {
        let token = token.into();
        if token.is_empty() || token.len() > MAX_LEASE_TOKEN_BYTES {
            return Err(LeaseTokenError(token.len()));
        }
        Ok(Self(token))
    }

    /// The token itself, to be verified or sent, never printed.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseToken(redacted)")
    }
}

impl<'de> Deserialize<'de> for LeaseToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let token = String::deserialize(deserializer)?;
        Self::new(token).map_err(serde::de::Error::custom)
    }
}
