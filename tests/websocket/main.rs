//! Conversations over real sockets, with scripted providers; the clock is the wall's.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by its panic"
)]

mod clients;
mod conversation;
mod line;
mod realtime;
mod tokens;
mod tools;
mod transports;
