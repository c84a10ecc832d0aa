//! What a speech, language or voice provider promises, and the suites that check it.
//!
//! Adapters know this crate and their vendor; the runtime knows this crate and no vendor.
//! A call is a stream: dropping it aborts the call at the provider, its first error ends it.

mod batching;
mod call;
#[cfg(feature = "testing")]
pub mod conformance;
mod extras;
pub mod fair;
mod fault;
mod gate;
mod llm;
mod pool;
mod queue;
mod registry;
pub mod scripted;
mod stt;
mod tool;
mod tts;
mod voice;
mod worker;

pub use batching::{BatchCounters, BatchLanguageModel, Batching};
pub use call::{Attempt, Call, ChunkStream, Deadlines, Description};
pub use extras::Extras;
pub use fault::Fault;
pub use gate::{FairGate, GateCounters, GateError, GatePermit};
pub use llm::{
    FinishReason, LanguageModel, LlmChunk, LlmRequest, Message, Role, ToolCall, ToolSpec, Usage,
};
pub use pool::{InferencePool, LostWorkers, PoolError};
pub use queue::{QueueTime, Queueing};
pub use registry::{Providers, RegistryError};
pub use rspp_proto::OutcomeClass;
pub use stt::{AudioStream, SpeechToText, SttChunk, SttRequest};
pub use tool::{Permit, Tool, ToolFault, ToolFuture, ToolOutput, ToolRun, function};
pub use tts::{TextToSpeech, TtsChunk, TtsRequest};
pub use voice::{Cost, EndOfTurn, EndOfTurnModel, VoiceActivity, VoiceDetector};
