//! Carries conversations over WebSockets: audio, text and controls both ways, through dropped links.
//!
#![doc = include_str!("../PROTOCOL.md")]

mod call;
mod codec;
mod config;
mod crossing;
mod encoding;
mod handshake;
mod outbox;
pub mod protocol;
mod rate;
pub mod realtime;
mod recording;
mod server;
mod socket;
#[cfg(feature = "testing")]
pub mod testing;

pub use codec::CodecTally;
pub use config::{Config, Limits, Origins};
pub use handshake::{PATH, RESUME_PREFIX, TOKEN_PREFIX};
pub use server::{Server, Tally, listen};
