//! Language models over real sockets, and the suite that every language model runs.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

mod dialogue;
mod openai;
mod server;
