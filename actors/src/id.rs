//! The name of an actor within its system.

use std::fmt;

/// Names an actor within its [`System`](crate::System); kept over restarts, ascending in start order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(not(loom), derive(serde::Serialize))]
pub struct ActorId(pub(crate) u64);

impl ActorId {
    /// The number inside, for reports.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a{}", self.0)
    }
}
