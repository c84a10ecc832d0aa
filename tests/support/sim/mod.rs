//! Sessions that are broken on purpose: everything random about them comes from one seed.
//!
//! A [`Scenario`] is a list of [`Piece`]s: who calls, what they do, what operators do, what fails and
//! when. [`play`] holds it with real actors, scripted providers, a transport and a disk of its own, on
//! one thread and a paused clock, and looks at all invariants after every step. The same scenario goes
//! the same way each time, which a hash over everything that was said and heard shows. A scenario that
//! breaks an invariant is [shrunk](shrink) to the pieces that it takes.

mod dice;
mod disk;
mod generate;
mod leases;
mod line;
mod pipeline;
mod providers;
mod scenario;
mod shrink;
mod tally;
mod tools;
mod watch;
mod world;

pub use dice::Dice;
pub use leases::SimLeases;
pub use scenario::{
    Chore, ChoreFault, Counted, Departure, DiskFault, LineFault, Order, Part, Piece, Scenario,
    Twist, UserAct,
};
pub use shrink::shrink;
pub use tally::Tally;
pub use watch::{Broken, Invariant};
pub use world::{Plant, Played, play};
