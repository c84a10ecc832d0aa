//! What flows along edges inside a process: a stamp and a payload, light enough for audio.
//!
//! The full Event ABI envelope is put around it where an event leaves the process or is recorded.

use std::{sync::Arc, time::Duration};

use rspp_kernel::edge::Load;
use rspp_proto::{Epoch, Monotonic, OutcomeClass, Payload, SampleIndex, Speaker, TurnNumber};
use rspp_provider_api::{LlmChunk, SttChunk, TtsChunk};

/// Where and when an event was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The turn it belongs to; `None` for what the user says before a turn opens.
    pub turn: Option<TurnNumber>,
    /// The authority it was made under.
    pub epoch: Epoch,
    /// Rises with every event that its maker emits on an edge.
    pub sequence: u64,
    /// When its maker emitted it.
    pub made: Monotonic,
    /// Position in the user's audio, for audio and what was derived from it.
    pub media: SampleIndex,
    /// The clause or utterance it is part of.
    pub segment: u32,
}

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Where and when it was made.
    pub stamp: Stamp,
    /// What it carries.
    pub payload: Payload,
}

/// An input of a node: the edge's place among those that lead to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u16);

/// A provider call of a node, by its place among the calls that the node has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallKey(pub u32);

/// A piece of a provider's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Chunk {
    /// Of a transcript.
    Stt(SttChunk),
    /// Of generated text.
    Llm(LlmChunk),
    /// Of speech.
    Tts(TtsChunk),
}

/// How a provider call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallEnd {
    /// The class.
    pub class: OutcomeClass,
    /// The reason code of a failure.
    pub reason: Option<&'static str>,
    /// What happened, for people; never payload, never a secret.
    pub message: Option<Arc<str>>,
}

impl CallEnd {
    /// The whole answer came.
    pub const SUCCESS: Self = Self {
        class: OutcomeClass::Success,
        reason: None,
        message: None,
    };

    /// What happened, in words.
    pub fn describe(&self) -> &str {
        self.message
            .as_deref()
            .or(self.reason)
            .unwrap_or(self.class.as_str())
    }

    /// Whether the whole answer came.
    pub fn is_success(&self) -> bool {
        self.class == OutcomeClass::Success
    }
}

/// Something on a node's data lane.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrival {
    /// An event from an edge.
    Event {
        /// Which edge.
        port: Port,
        /// The event.
        event: Event,
        /// When it came to the edge.
        arrived: Monotonic,
    },
    /// A piece of an answer.
    Chunk {
        /// Which call.
        call: CallKey,
        /// The piece.
        chunk: Chunk,
    },
    /// A call is over; the last thing that arrives of it.
    CallEnded {
        /// Which call.
        call: CallKey,
        /// How it ended.
        end: CallEnd,
    },
}

/// An event as an edge's buffer weighs it.
#[derive(Debug)]
pub(crate) struct Queued {
    /// The event.
    pub event: Event,
    /// When it came to the edge.
    pub arrived: Monotonic,
}

impl Load for Queued {
    fn bytes(&self) -> usize {
        self.event.payload.weight()
    }

    fn media(&self) -> Duration {
        self.event.payload.duration()
    }

    fn sequence(&self) -> u64 {
        self.event.stamp.sequence
    }

    fn arrived(&self) -> Monotonic {
        self.arrived
    }

    /// Partial transcripts of one utterance fold into one (F-053); generated text never does, since
    /// each of its pieces is only the text since the last.
    fn merge_key(&self) -> Option<u64> {
        match &self.event.payload {
            Payload::Text(text) if text.speaker == Speaker::User => Some(u64::from(text.segment)),
            Payload::Text(_)
            | Payload::AudioChunk(_)
            | Payload::AudioEnd
            | Payload::TextEnd
            | Payload::Speech(_)
            | Payload::Metrics(_)
            | Payload::Debug(_)
            | Payload::Error(_)
            | Payload::Extension(_) => None,
        }
    }

    fn merge(&mut self, newer: Self) {
        self.event = newer.event;
    }

    fn keep(&self) -> bool {
        match &self.event.payload {
            Payload::Text(text) => text.is_final,
            Payload::AudioEnd | Payload::TextEnd | Payload::Speech(_) | Payload::Error(_) => true,
            Payload::AudioChunk(_)
            | Payload::Metrics(_)
            | Payload::Debug(_)
            | Payload::Extension(_) => false,
        }
    }
}
