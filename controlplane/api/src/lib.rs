//! What a runtime asks of a control plane: who may speak for a session, and what of it is kept.

mod client;
mod convert;
mod error;
mod lease;
mod link;
mod plane;
mod proof;
pub mod reason;
mod state;
pub mod tls;
pub mod wire;

pub use client::{Bearer, Client, ClientConfig, ConfigError, Dial};
pub use convert::{WireError, millis, optional, text};
pub use error::{ControlError, DOMAIN};
pub use lease::{Lease, LeaseError, Leases, LocalLeases, Renewal, Taking, Terms, UsedView};
pub use link::Link;
pub use plane::{
    Acquire, Answer, Artifact, Beyond, ControlPlane, Duty, Granted, HeldSession, Joined, Leave,
    Lost, Order, Orders, Renewed, Revocation, Route, RouteAsk, SessionToken, Snapshot,
    SnapshotKind, SnapshotUpdate, Snapshots, StatusReport, UsageReport, Wanted, Writer,
};
pub use proof::{Claimed, Proofs, Unproven};
pub use state::{MemoryStore, StateStore, StoreError, StoreFuture, Stored, Version, Write};
