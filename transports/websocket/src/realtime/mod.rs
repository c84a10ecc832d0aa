//! The OpenAI Realtime protocol, for clients that speak it already.
//!
#![doc = include_str!("../../REALTIME.md")]

mod client;
mod door;
mod feed;
mod fields;
mod items;
mod line;
mod machine;
mod settings;
mod socket;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use door::PATH;
pub(crate) use door::router;
pub(crate) use line::Line;
pub use settings::Allowed;

/// How clients of this protocol are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realtime {
    /// What they may set up.
    pub allowed: Allowed,
    /// The longest message that is taken, in bytes: they may send a recording in one.
    pub message_bytes: usize,
    /// Audio that may wait to be heard, of a client that sends it faster than it is spoken.
    pub backlog: Duration,
}

impl Default for Realtime {
    fn default() -> Self {
        Self {
            allowed: Allowed::default(),
            message_bytes: 4 << 20,
            backlog: Duration::from_mins(1),
        }
    }
}
