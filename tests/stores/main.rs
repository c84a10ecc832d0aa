//! What holds for every store, on the file and on a real etcd cluster, and what a cluster has to stand.
//!
//! Needs the program `etcd` (Debian: `apt-get install etcd-server`).

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by its panic"
)]

mod both;
mod cluster;
mod counters;
mod election;
mod ground;
mod lost;
mod members;
mod recovery;
mod replicas;
mod served;
mod slow;
mod sweep;
mod watches;

#[path = "../../controlplane/server/tests/server/rig.rs"]
#[allow(dead_code, reason = "other tests of the server need the rest")]
mod rig;
