//! Plays recordings again through the kernel, and says where runs differ.
//!
//! A [`Replay`] tells a fresh session machine what the recorded one was told and compares what both
//! decided, line by line, from any [`Cursor`]. [`compare`] sets two recordings against each other: plans,
//! outcomes, providers, order, times, authority. Running nodes again is the host's business.

mod compare;
mod divergence;
mod replay;

pub use compare::{Tolerance, compare};
pub use divergence::{Divergence, DivergenceClass, Expected, Verdict, judge};
pub use replay::{Cursor, Replay, ReplayError, Step};
