//! Brings timelines from this machine's disk to an archive, while they are still being written (F-154).
//!
//! A recorder's file is the spool: appending never waits for the archive, and what the archive has not
//! acknowledged is never deleted. [`Exports`] ships each file in segments, in order, and remembers beside the
//! file how far it came, so that a process that was killed goes on where it stood. What is shipped next, and
//! when after a failure, is decided by a plain value; an [`Archive`] is anything that keeps objects under keys.

mod agenda;
mod archive;
mod expiry;
mod exports;
mod fetch;
mod policy;
mod progress;
mod spooled;

pub use archive::{Answer, Archive, ArchiveFault, FaultKind, Kept};
pub use expiry::{Aged, Look, Patrol, Perishable, Stored};
pub use exports::{ExportStats, Exports, Left, Over, Recovery, SpoolError};
pub use fetch::{Archived, FetchError, Fetched, fetch, list};
pub use policy::{ExportPolicy, PolicyError};
pub use progress::{Exported, exported, part as key_part, tenant_of as key_tenant};
