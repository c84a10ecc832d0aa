//! Who holds, and which request it was.

use std::{fmt, num::NonZeroU64};

use rspp_proto::RuntimeId;
use serde::{Deserialize, Serialize};

/// Counts the times that a runtime registered, from 1: what ran before a restart is somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(NonZeroU64);

impl Incarnation {
    /// A runtime's first.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// An incarnation as received; `None` for zero, which is none.
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// As a number.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The one after.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One incarnation of a runtime.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// The runtime.
    pub runtime: RuntimeId,
    /// Which of its lives.
    pub incarnation: Incarnation,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.runtime, self.incarnation)
    }
}

/// Counts the requests for leases that one life of a runtime makes, so that one that is repeated after
/// a lost answer has no second effect, and one that was overtaken by a later one has none at all.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Attempt(pub u64);
