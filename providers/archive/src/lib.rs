//! Keeps timelines in a directory or in an object store.
//!
//! A [`Place`] says where, as people write it; an [`ObjectArchive`] is one of either sort, since one library
//! speaks to both: the same code runs on a laptop and against a bucket. When to try again is not decided here
//! but by the exporter, which knows what else waits.

mod archive;
mod place;

pub use archive::ObjectArchive;
pub use place::{Place, PlaceError};
