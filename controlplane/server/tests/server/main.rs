//! A control plane over real sockets, on its real store: what each service does, and each refusal with
//! its code and its reason.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose ground gives way should fail"
)]

mod access;
mod audit;
mod draining;
mod expiry;
mod ground;
mod leases;
mod outages;
mod placing;
mod registry;
mod retention;
mod rig;
mod rollouts;
mod sessions;
mod tls;
mod wires;
