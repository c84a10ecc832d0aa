//! Speech recognition.

mod decoder;
mod moonshine;
mod quiet;
mod recognition;
mod resample;
mod stop;
mod vocabulary;

pub use moonshine::Moonshine;
