//! Archives on a disk and behind a socket, and exports to them that are disturbed.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod conformance;
mod export;
mod removal;
mod sealing;
mod server;
