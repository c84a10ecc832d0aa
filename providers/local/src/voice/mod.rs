//! Voice activity: is someone speaking?

mod earshot;
mod energy;
mod silero;
mod weights;

pub use earshot::Earshot;
pub use energy::Energy;
pub use silero::Silero;
