//! Control plane and runtimes together: who may speak for a session, whatever breaks.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose ground gives way should fail"
)]

mod accounts;
mod away;
mod backends;
mod callers;
mod expiry;
mod faults;
mod feeds;
mod lease_protocol;
mod outages;
mod processes;
mod rolling;
mod survival;
mod up;
