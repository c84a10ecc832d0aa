//! The scripted providers, the suites they pass, and the suites' own sharpness.

#![expect(
    clippy::float_cmp,
    reason = "scripted probabilities are exactly what was scripted"
)]
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

mod broken;
mod conforming;
mod scripted;
