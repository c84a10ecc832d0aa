//! The Event ABI: one envelope for everything that nodes exchange, and a closed vocabulary of
//! control signals.
//!
//! Says what is well formed and who may say it; when something is said is the kernel's business.

mod codec;
mod envelope;
mod order;
mod outcome;
mod record;
mod rules;
mod schema;
mod signal;
mod stamp;
mod transition;
mod validate;
mod version;
mod vocabulary;

pub use codec::{
    DecodeError, Decoded, EncodeError, Encoding, MAX_RECORD_BYTES, UnknownEvent,
    UnknownEventAction, Wire,
};
pub use envelope::{Envelope, MAX_MERGE_SOURCES, MediaTime};
pub use order::{BatchViolation, check_batch};
pub use outcome::{DecisionOutcome, OutcomeKind, OutcomePhase, OutcomeRule, OutcomeScope};
pub use record::{ControlSignal, EventRecord, Record, SeqRange};
pub use rules::{Field, ScopeRule, SignalRule};
pub use signal::{CancelMode, CancelScope, Emitter, EventScope, PayloadClass, Signal};
pub use stamp::Stamp;
pub use transition::{IllegalTransition, TurnState, TurnTransition, TurnTrigger};
pub use validate::{AbiRule, AbiViolation};
pub use version::{SchemaVersion, SchemaVersionError, VersionWindow};
