//! Behaviour that the specification fixes, driven through real actors.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by its panic"
)]

mod admission;
mod attribution;
mod authority;
mod batching;
mod budgets;
mod cancels;
mod classes;
mod conversation;
mod costs;
mod deaf;
mod delivery;
mod echo;
mod edges;
mod exporting;
mod extremes;
mod failure;
mod fairness;
mod flow;
mod gates;
mod handoff;
mod hooks;
mod hostile;
mod ingress;
mod interruption;
mod invocations;
mod isolation;
mod lanes;
mod late;
mod leases;
mod letters;
mod lifecycle;
mod limits;
mod link;
mod liveness;
mod measuring;
mod memory;
mod moves;
mod nodes;
mod observing;
mod overload;
mod packages;
mod pauses;
mod plane;
mod plans;
mod processes;
mod providers;
mod recording;
mod recovery;
mod refusals;
mod replay;
mod rerun;
mod routing;
mod scopes;
mod sdk;
mod secrets;
mod servers;
mod shutdown;
mod signals;
mod speculation;
mod standbys;
mod state;
mod succession;
mod sweeps;
mod switching;
mod sync;
mod teardown;
mod tools;
mod traces;
mod versions;
mod watchdog;
mod wire;
