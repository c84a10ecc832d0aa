//! What a runtime asks of a control plane: who may speak for a session.

mod lease;

pub use lease::{Lease, LeaseError, Leases, LocalLeases, Renewal};
