//! The failure matrix, row by row (failures.md §1), as far as one node shows it.
//!
//! One failure at a time, in real actors on a virtual clock. Each test asserts the whole row: the
//! control outcomes, how the turn ends, and the OR-02 evidence that is left.

mod admission;
mod authority;
mod handoff;
mod nodes;
mod pressure;
mod providers;
mod row;
mod sync;
mod takeover;
mod transport;
