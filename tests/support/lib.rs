//! Behaviour across crates: one suite, one binary.
//!
//! This library holds what the suites share: scripted calls, fixtures, the feature table.

pub mod bench;
pub mod call;
pub mod debian;
pub mod etcd;
pub mod faketime;
pub mod features;
pub mod fleet;
pub mod frames;
pub mod fuzz;
#[path = "../nodes/greeter.rs"]
pub mod greeter;
pub mod link;
pub mod load;
pub mod nodes;
mod peers;
pub mod plane;
pub mod programs;
pub mod sim;
pub mod web;
pub mod wire;
