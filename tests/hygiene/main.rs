//! What operators see of the programs themselves: real processes, with all that they write looked at.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose ground gives way should fail"
)]

mod process;
mod secrets;
mod settings;
mod telemetry;
mod template;
