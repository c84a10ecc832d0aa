//! The suite of the server, which runs on a file where it lives, on etcd as well.

#[path = "../../../controlplane/server/tests/server/audit.rs"]
mod audit;
#[path = "../../../controlplane/server/tests/server/draining.rs"]
mod draining;
#[path = "../../../controlplane/server/tests/server/leases.rs"]
mod leases;
#[path = "../../../controlplane/server/tests/server/placing.rs"]
mod placing;
#[path = "../../../controlplane/server/tests/server/registry.rs"]
mod registry;
#[path = "../../../controlplane/server/tests/server/retention.rs"]
mod retention;
#[path = "../../../controlplane/server/tests/server/rollouts.rs"]
mod rollouts;
#[path = "../../../controlplane/server/tests/server/sessions.rs"]
mod sessions;
