//! What crosses a process boundary: ids, events, specs and their codecs.
//!
//! Knows nothing of tasks, sockets or clocks. Everything here is refused when it is wrong, never
//! repaired: a clamped number hides the fault that made it.

pub mod abi;
pub mod canonical;
pub mod control;
mod epoch;
pub mod external;
mod hex;
mod id;
mod lane;
pub mod metric;
mod outcome;
mod payload;
pub mod reading;
pub mod reason;
pub mod schema;
pub mod spec;
mod spending;
mod time;
mod trace;

pub use epoch::{Epoch, LeaseToken, LeaseTokenError, MAX_LEASE_TOKEN_BYTES};
pub use hex::Hex;
pub use id::{
    Actor, CorrelationId, DiscontinuityId, EdgeId, EventId, IdError, IdempotencyKey, InvocationId,
    MAX_ID_BYTES, MergeGroupId, NodeId, PipelineVersion, ProviderId, Region, RuntimeId, SessionId,
    SyncDomain, SyncId, TenantId, TurnId, TurnNumber, sanitize_part,
};
pub use lane::Lane;
pub use outcome::{OutcomeClass, RetryDecision};
pub use payload::{
    AudioChunk, AudioFormat, Codec, DebugNote, DefaultAction, ErrorCode, ErrorNote, EventType,
    Extension, MetricSample, Payload, Speaker, SpeechMark, TextChunk,
};
pub use reason::{MAX_REASON_BYTES, Reason, ReasonError};
pub use spending::Spending;
pub use time::{Monotonic, SampleIndex, SampleRate, WallClock, parse_age};
pub use trace::{SpanId, TraceId, TraceParent, TraceParentError};
