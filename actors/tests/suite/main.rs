//! What the crate promises, tried on whole trees of actors.
#![cfg(not(loom))]

mod kit;

mod lanes;
mod leaks;
mod pumps;
mod stopping;
mod stress;
mod supervision;
mod time;
mod tree;
