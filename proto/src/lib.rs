//! What crosses a process boundary: ids, events, specs and their codecs.
//!
//! Knows nothing of tasks, sockets or clocks. Everything here is refused when it is wrong, never
//! repaired: a clamped number hides the fault that made it.

mod epoch;
mod id;
mod lane;
mod outcome;
mod payload;
pub mod spec;
mod time;

pub use epoch::Epoch;
pub use id::{
    EdgeId, EventId, IdError, InvocationId, MAX_ID_BYTES, NodeId, PipelineVersion, ProviderId,
    SessionId, TenantId, TurnId, TurnNumber, sanitize_part,
};
pub use lane::Lane;
pub use outcome::OutcomeClass;
pub use payload::{
    AudioChunk, AudioFormat, Codec, DebugNote, ErrorCode, ErrorNote, EventType, Extension,
    MetricSample, Payload, Speaker, SpeechMark, TextChunk,
};
pub use time::{Monotonic, SampleIndex, SampleRate, WallClock};
