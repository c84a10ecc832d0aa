//! What a node asks a provider for.

use std::{pin::Pin, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use rspp_proto::spec::Modality;
use rspp_provider_api::{AudioStream, LlmRequest, SttRequest, TtsRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::memory::Share;

/// Audio that may wait for a recogniser, in frames.
const AUDIO_FRAMES: usize = 4_096;

/// A provider call that a node asks for.
pub(crate) enum CallRequest {
    Stt(Box<Dictation>),
    Llm(LlmRequest),
    Tts(TtsRequest),
}

/// An utterance to recognise. Its audio is kept, so that another attempt can hear it too.
pub(crate) struct Dictation {
    pub(crate) request: SttRequest,
    source: Option<Pin<Box<dyn Stream<Item = Bytes> + Send>>>,
    heard: Vec<Bytes>,
    heard_bytes: usize,
    share: Share,
    to: Option<mpsc::Sender<Bytes>>,
}

impl CallRequest {
    pub(crate) fn modality(&self) -> Modality {
        match self {
            Self::Stt(_) => Modality::Stt,
            Self::Llm(_) => Modality::Llm,
            Self::Tts(_) => Modality::Tts,
        }
    }

    /// Bytes of what is asked, as far as it is known: text, or audio.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = match self {
            Self::Stt(dictation) => dictation.heard_bytes,
            Self::Llm(request) => {
                let messages = request.messages.iter();
                messages.map(|message| message.content.len()).sum()
            }
            Self::Tts(request) => request.text.len(),
        };
        bytes as u64
    }

    /// Whether more input may come.
    pub(crate) fn is_listening(&self) -> bool {
        match self {
            Self::Stt(dictation) => dictation.source.is_some(),
            Self::Llm(_) | Self::Tts(_) => false,
        }
    }

    /// Takes in one more piece of input. Cancel safe.
    pub(crate) async fn listen(&mut self) {
        match self {
            Self::Stt(dictation) => dictation.listen().await,
            Self::Llm(_) | Self::Tts(_) => {}
        }
    }
}

impl Dictation {
    pub(crate) fn new(request: SttRequest, audio: AudioStream, share: Share) -> Self {
        Self {
            request,
            source: Some(audio),
            heard: Vec::new(),
            heard_bytes: 0,
            share,
            to: None,
        }
    }

    /// The audio for one attempt: what was heard so far, then what is still to come.
    pub(crate) fn audio(&mut self) -> AudioStream {
        let (to, from) = mpsc::channel(AUDIO_FRAMES);
        for frame in &self.heard {
            let _bounded = to.try_send(frame.clone());
        }
        self.to = self.source.is_some().then_some(to);
        Box::pin(ReceiverStream::new(from))
    }

    /// How much was heard so far.
    pub(crate) fn heard(&self) -> Duration {
        self.request
            .sample_rate
            .duration_of(self.heard_bytes as u64 / 2)
    }

    async fn listen(&mut self) {
        let Some(source) = &mut self.source else {
            return;
        };
        match source.next().await {
            Some(frame) if self.heard.len() < AUDIO_FRAMES => {
                if let Some(to) = &self.to {
                    let _bounded = to.try_send(frame.clone());
                }
                self.heard_bytes += frame.len();
                self.share.hold(self.heard_bytes);
                self.heard.push(frame);
            }
            // Longer than anybody listens: the rest is not recognised.
            Some(_) => {}
            None => {
                self.source = None;
                self.to = None;
            }
        }
    }
}
