//! Speech recognition.

use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use rspp_proto::SampleRate;
use serde::Serialize;

use crate::{Call, ChunkStream, Description};

/// Mono 16-bit PCM at the request's rate, in pieces of any length; ends with the utterance.
pub type AudioStream = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// How to recognise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SttRequest {
    /// Rate of the audio.
    pub sample_rate: SampleRate,
    /// BCP 47 tag; `None` lets the provider decide.
    pub language: Option<String>,
    /// Whether partial results are wanted.
    pub partials: bool,
}

/// A piece of a transcript.
#[derive(Clone, Debug, PartialEq)]
pub enum SttChunk {
    /// The whole utterance so far; may still change.
    Partial {
        /// The words so far.
        text: String,
    },
    /// The last chunk of a successful call, once the audio has ended. Blank if nothing was said.
    Final {
        /// The words.
        text: String,
        /// 0 to 1, when the provider says.
        confidence: Option<f32>,
    },
}

/// A recogniser; one call is one utterance (F-009).
pub trait SpeechToText: Send + Sync + 'static {
    /// What this is.
    fn describe(&self) -> &Description;

    /// Transcribes: partials while `audio` runs, then exactly one `Final`.
    fn transcribe(
        &self,
        call: Call,
        request: SttRequest,
        audio: AudioStream,
    ) -> ChunkStream<SttChunk>;
}
