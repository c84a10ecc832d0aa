//! Supervised actors with three bounded priority lanes, on ractor.
//!
//! Each actor is a ractor actor that waits at lanes of its own, beside ractor's ports: three bounded ones, control before
//! data before telemetry, looked at anew between any two items. ractor starts it, stops and kills it, and tells its
//! parent of its end. Who starts an actor supervises it: restart policy is data, stopping goes in reverse start order,
//! and time follows tokio's clock.
//!
//! Two kinds of actors share all of this: an [`Actor`] handles one item at a time (a coordinator), a [`Pump`] is one
//! long future that selects between its lanes and its I/O.
//!
//! This crate knows nothing of speech, sessions or the wire.
//!
//! The lanes and the wake protocol are model-checked with loom:
//! `RUSTFLAGS="--cfg loom" cargo test -p rspp-actors --lib --target-dir target/loom`.

#![cfg_attr(
    loom,
    allow(
        dead_code,
        reason = "under loom only the protocol is built, without those who use it"
    )
)]

mod id;
mod lane;
mod lanes;
mod mailbox;
mod refs;
mod sync;

#[cfg(all(test, loom))]
mod models;

#[cfg(not(loom))]
mod actor;
#[cfg(not(loom))]
mod children;
#[cfg(not(loom))]
mod clock;
#[cfg(not(loom))]
mod context;
#[cfg(not(loom))]
mod coordinator;
#[cfg(not(loom))]
mod exit;
#[cfg(not(loom))]
mod incarnation;
#[cfg(not(loom))]
mod pump;
#[cfg(not(loom))]
mod supervisor;
#[cfg(not(loom))]
mod system;
#[cfg(not(loom))]
mod tasks;
#[cfg(not(loom))]
mod tree;

pub use id::ActorId;
pub use lane::{Bounded, Buffer, LaneLimits, NoData, NoTelemetry, Offer, Overflow};
pub use lanes::{ControlRefused, Item};
pub use refs::{Address, ControlRef, DataRef, TelemetryRef};

#[cfg(not(loom))]
pub use actor::{Actor, Handle};
#[cfg(not(loom))]
pub use children::{ChildInfo, SpawnError};
#[cfg(not(loom))]
pub use clock::{Clock, Stopwatch};
#[cfg(not(loom))]
pub use context::Context;
#[cfg(not(loom))]
pub use exit::{ExitReason, Failure};
#[cfg(not(loom))]
pub use pump::{Inbox, Pump, PumpContext, PumpHandle};
#[cfg(not(loom))]
pub use supervisor::{Backoff, ChildExit, ChildSpec, Intensity, Restart, Verdict};
#[cfg(not(loom))]
pub use system::System;
#[cfg(not(loom))]
pub use tokio_util::sync::CancellationToken;
#[cfg(not(loom))]
pub use tree::{ActorInfo, ActorState, Depths};
