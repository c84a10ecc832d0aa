//! Behaviour that the specification fixes, driven through real actors.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by its panic"
)]

mod authority;
mod budgets;
mod cancels;
mod conversation;
mod costs;
mod deaf;
mod echo;
mod edges;
mod failure;
mod flow;
mod hooks;
mod hostile;
mod ingress;
mod interruption;
mod isolation;
mod lanes;
mod late;
mod leases;
mod letters;
mod lifecycle;
mod link;
mod liveness;
mod memory;
mod nodes;
mod observing;
mod pauses;
mod plans;
mod processes;
mod providers;
mod recording;
mod recovery;
mod refusals;
mod replay;
mod routing;
mod scopes;
mod shutdown;
mod standbys;
mod sweeps;
mod sync;
mod teardown;
mod watchdog;
