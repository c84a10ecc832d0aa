//! Session and turn decisions as plain values, free of clocks, tasks and I/O.
//!
//! Inputs and the time go in; effects and a deadline come out. The host runs this inside actors and
//! carries the effects out; replay and simulation feed the same code from a recording or a seed.

mod effect;
mod input;

pub mod turn;

pub mod refused;

pub mod session;

pub mod interruption;

pub mod conversation;

pub mod continuation;

pub mod tool;

pub mod speculation;

pub mod state;

pub mod fence;

pub mod edge;

pub mod handoff;

pub mod graph;

pub mod plan;

pub mod budget;

pub mod invocation;

pub mod cost;

pub mod recovery;

pub mod authority;
pub mod keeper;

pub mod limit;
pub mod link;

pub mod dedupe;

pub mod timebase;

pub mod jitter;

pub mod admission;
pub mod echo;
pub mod reading;

pub mod determinism;

pub mod journal;

pub mod invariant;

pub use effect::{Effect, Emission, LateAction, SessionState};
pub use input::{
    CancelReason, Gates, Inheritance, Input, Part, Placement, PlanFacts, Unrecognised,
};
pub use session::{Exchange, Session};
