//! Speech synthesis.

use bytes::Bytes;
use rspp_proto::SampleRate;
use serde::Serialize;

use crate::{Call, ChunkStream, Description};

/// What to say. One call is one clause, so that a dead provider costs one clause (P14).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TtsRequest {
    /// The clause, with its punctuation; never blank.
    pub text: String,
    /// The clause before it, for voices that carry intonation over.
    pub previous_text: Option<String>,
    /// A voice of the provider's; `None` for its default.
    pub voice: Option<String>,
}

/// Some audio: mono 16-bit PCM, of any length but not empty, whole samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TtsChunk {
    /// Rate of the audio; the same for all chunks of a call.
    pub sample_rate: SampleRate,
    /// The samples, little-endian.
    pub pcm: Bytes,
}

/// A voice.
pub trait TextToSpeech: Send + Sync + 'static {
    /// What this is.
    fn describe(&self) -> &Description;

    /// Speaks: at least one chunk on success.
    fn synthesize(&self, call: Call, request: TtsRequest) -> ChunkStream<TtsChunk>;
}
