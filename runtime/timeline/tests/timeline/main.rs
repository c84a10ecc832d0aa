//! Recordings from their recorder through their file to their reader.

#![expect(
    clippy::unwrap_used,
    clippy::semicolon_if_nothing_returned,
    reason = "helpers of tests fail like tests; a row of a table is one expression"
)]

mod conversation;
mod evidence;
mod export;
mod fidelity;
mod file;
mod full;
mod gates;
mod recorder;
mod redaction;
mod show;
mod verify;
