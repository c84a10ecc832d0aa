//! The transport alone, over real sockets; the tests are the runtime.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by its panic"
)]

mod codecs;
mod conformance;
mod door;
mod faults;
mod house;
mod interop;
mod realtime;
mod recording;
mod resuming;
mod schema;
