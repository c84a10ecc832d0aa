//! What the crate promises, tried on whole trees of actors.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "all of this is a test, its helpers too")]

mod kit;

mod lanes;
mod pumps;
mod stopping;
mod stress;
mod supervision;
mod time;
mod tree;
