//! What a runtime asks of a control plane: who may speak for a session, and what of it is kept.

mod lease;
mod state;

pub use lease::{Lease, LeaseError, Leases, LocalLeases, Renewal};
pub use state::{MemoryStore, StateStore, StoreError, StoreFuture, Stored, Version, Write};
