//! What flows along edges inside a process: a stamp and a payload, light enough for audio.
//!
//! The full Event ABI envelope is put around it where an event leaves the process or is recorded.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use rspp_kernel::edge::{BreakReason, Load, Patience};
use rspp_proto::{
    Epoch, Lane, Monotonic, OutcomeClass, Payload, SampleIndex, Speaker, SyncDomain, SyncId,
    TurnNumber,
    spec::{EdgeBufferPolicy, SyncGroup},
};
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

/// What else a node may say about an event; most say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// The moment it belongs to, together with events of other streams.
    pub sync_id: Option<SyncId>,
    /// The streams that are kept in step.
    pub sync_domain: Option<SyncDomain>,
    /// A key of the node's own, to group by (`group_by: custom`) or to share an edge by
    /// (`fairness_key`).
    pub key: Option<Arc<str>>,
}

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Where and when it was made.
    pub stamp: Stamp,
    /// What it carries.
    pub payload: Payload,
    /// What else its maker said of it.
    pub tags: Option<Arc<Tags>>,
}

impl Event {
    /// An event of which nothing else is to be said.
    pub fn new(stamp: Stamp, payload: Payload) -> Self {
        Self {
            stamp,
            payload,
            tags: None,
        }
    }
}

/// The lane that an event rides within its edge.
pub(crate) fn lane_of(payload: &Payload) -> Lane {
    match payload {
        Payload::Metrics(_) | Payload::Debug(_) => Lane::Telemetry,
        Payload::AudioChunk(_)
        | Payload::AudioEnd
        | Payload::Text(_)
        | Payload::TextEnd
        | Payload::Speech(_)
        | Payload::Error(_)
        | Payload::Extension(_) => Lane::Data,
    }
}

/// An input of a node: the edge's place among those that lead to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u16);

/// A provider call of a node, by its place among the calls that the node has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallKey(pub u32);

impl CallKey {
    /// A node's first call.
    pub const FIRST: Self = Self(1);
}

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
        /// Whether its sender can wait for the edge.
        patience: Patience,
    },
    /// What follows on an edge does not join what came before: reset what is kept of it.
    Break {
        /// Which edge.
        port: Port,
        /// Why.
        reason: BreakReason,
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
    /// What came of a tool call.
    ToolAnswer {
        /// The call, as the node asked for it.
        call: Arc<str>,
        /// What the model is told.
        content: Arc<str>,
    },
}

impl Arrival {
    /// What it holds in memory, beside itself.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Event { event, .. } => event.payload.weight(),
            Self::Chunk { chunk, .. } => match chunk {
                Chunk::Stt(SttChunk::Partial { text } | SttChunk::Final { text, .. })
                | Chunk::Llm(LlmChunk::Delta(text)) => text.len(),
                Chunk::Llm(LlmChunk::ToolCall(call)) => call.arguments.len(),
                Chunk::Llm(LlmChunk::Finished { .. }) => 0,
                Chunk::Tts(chunk) => chunk.pcm.len(),
            },
            Self::ToolAnswer { content, .. } => content.len(),
            Self::CallEnded { .. } | Self::Break { .. } => 0,
        }
    }
}

/// An event as an edge's buffer weighs it.
#[derive(Debug)]
pub(crate) struct Queued {
    /// The event.
    pub event: Event,
    /// When it came to the edge.
    pub arrived: Monotonic,
    /// What the edge tells events apart by, where it does.
    marks: Option<Box<Marks>>,
}

#[derive(Debug)]
struct Marks {
    group: Option<u64>,
    share: Option<u64>,
}

/// What an edge tells events apart by: synchronised groups, and those who share it.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    group_by: Option<SyncGroup>,
    share_by: Option<ShareBy>,
}

#[derive(Debug)]
enum ShareBy {
    Turn,
    Speaker,
    Language,
    /// A key that events are tagged with.
    Key,
}

impl Keys {
    pub(crate) fn new(policy: &EdgeBufferPolicy) -> Self {
        let share_by = policy.fairness_key.as_deref().and_then(|key| match key {
            // An edge belongs to one session, so nobody shares it.
            "tenant" | "session" => None,
            "turn" => Some(ShareBy::Turn),
            "speaker" => Some(ShareBy::Speaker),
            "language" => Some(ShareBy::Language),
            _own => Some(ShareBy::Key),
        });
        Self {
            group_by: policy
                .sync_drop_policy
                .as_ref()
                .and_then(|sync| sync.group_by),
            share_by,
        }
    }

    pub(crate) fn queued(&self, event: Event, arrived: Monotonic) -> Queued {
        let marks = (self.group_by.is_some() || self.share_by.is_some()).then(|| {
            Box::new(Marks {
                group: self.group(&event),
                share: self.share(&event),
            })
        });
        Queued {
            event,
            arrived,
            marks,
        }
    }

    fn group(&self, event: &Event) -> Option<u64> {
        let tags = event.tags.as_deref();
        match self.group_by? {
            SyncGroup::SyncId => tags?.sync_id.as_ref().map(hash),
            // The event itself: a group is made of its copies on other edges.
            SyncGroup::EventId => {
                let stamp = &event.stamp;
                Some(hash(&(stamp.turn, stamp.sequence, stamp.made)))
            }
            SyncGroup::Custom => tags?.key.as_ref().map(hash),
        }
    }

    fn share(&self, event: &Event) -> Option<u64> {
        let text = event.payload.text();
        match self.share_by.as_ref()? {
            ShareBy::Turn => event.stamp.turn.as_ref().map(hash),
            ShareBy::Speaker => text.map(|text| hash(&text.speaker)),
            ShareBy::Language => text?.language.as_ref().map(hash),
            ShareBy::Key => event.tags.as_deref()?.key.as_ref().map(hash),
        }
    }
}

/// Tells keys apart within an edge; never leaves the process.
fn hash(key: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
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

    /// The newer one says all that the older did, so that is what counts, its age included.
    fn merge(&mut self, newer: Self) {
        *self = newer;
    }

    fn turn(&self) -> Option<TurnNumber> {
        self.event.stamp.turn
    }

    fn sync_group(&self) -> Option<u64> {
        self.marks.as_ref()?.group
    }

    fn fair_key(&self) -> Option<u64> {
        self.marks.as_ref()?.share
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
