//! Keeps timelines in a directory or in an object store.
//!
//! A [`Place`] says where, as people write it; an [`ObjectArchive`] is one of either sort, since one library
//! speaks to both: the same code runs on a laptop and against a bucket. When to try again is not decided here
//! but by the exporter, which knows what else waits. A [`SealedArchive`] keeps what only the holders of a
//! [`KeyRing`]'s keys can read.

mod archive;
mod keys;
mod place;
mod seal;
mod sealed;
mod time;

pub use archive::ObjectArchive;
pub use keys::{KeyDuty, KeyError, KeyRing, KeyState, sealed_under};
pub use place::{Place, PlaceError};
pub use seal::{HEAD_BYTES, SealError};
pub use sealed::SealedArchive;
