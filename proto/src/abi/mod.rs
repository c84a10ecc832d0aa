//! The Event ABI: one envelope for everything that nodes exchange, and a closed vocabulary of
//! control signals.
//!
//! Says what is well formed and who may say it; when something is said is the kernel's business.

mod envelope;
mod record;
mod signal;
mod stamp;
mod version;

pub use envelope::{Envelope, MAX_MERGE_SOURCES, MediaTime};
pub use record::{ControlSignal, EventRecord, SeqRange};
pub use signal::{CancelScope, Emitter, EventScope, PayloadClass, Signal};
pub use stamp::Stamp;
pub use version::{SchemaVersion, SchemaVersionError};
