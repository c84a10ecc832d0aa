//! Plays recorded sessions again, and says where runs differ.
//!
//! A [`Replay`] tells a fresh session machine what the recorded one was told and compares what both
//! decided, line by line, from any [`Cursor`]. A [`Recorded`] session is [run again](rerun) whole, nodes
//! and host, with the providers' recorded answers or with providers. [`compare`] sets two recordings
//! against each other: plans, outcomes, outputs, providers, order, times, authority.

mod compare;
mod divergence;
mod replay;
mod rerun;
mod version;

pub use compare::{Tolerance, compare};
pub use divergence::{Divergence, DivergenceClass, Expected, Verdict, judge};
pub use replay::{Cursor, Replay, ReplayError, Step};
pub use rerun::{Recorded, Rerun, RerunError, Stage, rerun};
