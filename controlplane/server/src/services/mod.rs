//! One service a file: reads the request, lets the caller in, asks what is decided, writes it.

pub(crate) mod admission;
pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod fleet;
pub(crate) mod keys;
pub(crate) mod placements;
pub(crate) mod registry;
pub(crate) mod rollouts;
pub(crate) mod sessions;
pub(crate) mod snapshots;
pub(crate) mod state;
