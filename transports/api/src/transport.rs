//! One connection's two ends. The runtime's Connection actor stands between them and the session:
//! it paces and fences what goes out, so a transport only carries.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::Stream;
use rspp_proto::{
    AudioChunk, Codec, Epoch, Extension, IdempotencyKey, SampleIndex, SampleRate, SpeechMark,
    TextChunk, TraceParent, TurnNumber,
    abi::{Encoding, Signal},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::wire::WireReport;

/// The kinds of transport (transports.md §1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransportKind {
    /// In process, for tests and the command line.
    Loopback,
    /// A WebSocket.
    Websocket,
    /// A telephone line's media stream.
    Telephony,
    /// A LiveKit room.
    Livekit,
}

impl TransportKind {
    /// The kind's name, as specs and recordings write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Websocket => "websocket",
            Self::Telephony => "telephony",
            Self::Livekit => "livekit",
        }
    }

    /// Whether a lost link of this kind may come back to its session.
    pub fn reconnects(self) -> bool {
        match self {
            // In this process nothing is lost that is not meant to be; a test may mean it.
            Self::Loopback | Self::Websocket | Self::Livekit => true,
            Self::Telephony => false,
        }
    }

    /// The connection signals that a session says of such a transport.
    pub fn signals(self) -> &'static [Signal] {
        const ALL: &[Signal] = &[
            Signal::Connected,
            Signal::Disconnected,
            Signal::Ended,
            Signal::Silence,
            Signal::Stall,
            Signal::Reconnecting,
        ];
        match self {
            Self::Loopback | Self::Websocket | Self::Livekit => ALL,
            Self::Telephony => ALL.split_at(ALL.len() - 1).0,
        }
    }
}

/// What a transport knows about its link. A source that ends is a user who hung up; whoever may come
/// back keeps its source open and says so here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// The link is lost, and the transport tries to get it back.
    Reconnecting,
    /// The link is lost; it may come back, but nobody tries.
    Lost,
    /// The link is there again.
    Back,
    /// The link goes on, and carries the agent's audio otherwise: the sink says how (F-161).
    Changed,
}

impl Link {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Reconnecting, Self::Lost, Self::Back, Self::Changed];

    /// The name that recordings have for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reconnecting => "reconnecting",
            Self::Lost => "lost",
            Self::Back => "back",
            Self::Changed => "changed",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|link| link.as_str() == name)
    }
}

/// A piece of the user's audio that says where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Rises by one with each frame that the sender makes; never wraps around.
    pub sequence: u64,
    /// Position of the first sample in the sender's audio, at the source's rate.
    pub position: SampleIndex,
    /// The epoch that the sender speaks under, if it says; else the session's.
    pub epoch: Option<Epoch>,
    /// Mono 16-bit PCM at the source's rate; whole samples, at most a second.
    pub pcm: Bytes,
}

/// An event with what its sender says about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stamped {
    /// The epoch that the sender speaks under, if it says; else the session's.
    pub epoch: Option<Epoch>,
    /// Under one key an event has one effect, however often it is sent (F-158).
    pub key: Option<IdempotencyKey>,
    /// The event: one that the user causes, or a record. What is said of others is not looked at.
    pub event: Ingress,
}

/// A call of a tool that the client runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCall {
    /// The turn that asks for it.
    pub turn: TurnNumber,
    /// The call, unique within its turn.
    pub call: Arc<str>,
    /// Which tool.
    pub tool: Arc<str>,
    /// JSON text; fits what the tool declares.
    pub arguments: Arc<str>,
}

/// What came of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientResult {
    /// The turn that asked for it.
    pub turn: TurnNumber,
    /// The call.
    pub call: Arc<str>,
    /// What the model is told: a result, or what went wrong.
    pub outcome: Result<String, String>,
}

/// What comes in from the user's side.
#[derive(Clone, Debug, PartialEq)]
pub enum Ingress {
    /// Mono 16-bit PCM at the source's rate; any length, whole samples. Nothing is missing between
    /// one and the next.
    Audio(Bytes),
    /// Audio from a transport that may lose it or change its order.
    Frame(Frame),
    /// An event under an epoch and an idempotency key.
    Stamped(Box<Stamped>),
    /// A record of the Event ABI, as it came.
    Record {
        /// How it is written.
        encoding: Encoding,
        /// The whole record.
        bytes: Bytes,
    },
    /// Something happened to the link.
    Link(Link),
    /// The user says that the utterance is over (push to talk, F-042).
    EndOfUtterance,
    /// The user's client cancels the running turn.
    Cancel,
    /// The user typed instead of speaking.
    Text(String),
    /// Namespaced data that only a transport or a client understands, such as a pressed key (F-089).
    Extension(Box<Extension>),
    /// The client says how much of a turn its user has heard so far.
    Played(Receipt),
    /// The client says what came of a tool's call that it was told of.
    ToolResult(Box<ClientResult>),
}

/// How much of a turn was really played, as the client reports it: what was accepted for playout may wait
/// in a buffer, or behind a phone that rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The turn.
    pub turn: TurnNumber,
    /// Played of its audio so far, from its beginning.
    pub played: Duration,
}

/// What comes in, until the user hangs up.
pub type Source = Pin<Box<dyn Stream<Item = Ingress> + Send>>;

/// What goes out besides audio; carried on a best-effort basis.
#[derive(Clone, Debug, PartialEq)]
pub enum Outgoing {
    /// Partial and final text, both ways.
    Text {
        /// The turn that says it; the user's own words belong to none.
        turn: Option<TurnNumber>,
        /// What is said.
        text: TextChunk,
    },
    /// The user began to speak, fell silent, or has finished; positions count at 16 kHz.
    Speech(SpeechMark),
    /// The turn's audio is complete.
    AudioEnd(TurnNumber),
    /// Whether the agent has its voice; without, it goes on in text (F-137).
    Voice {
        /// Whether it has.
        available: bool,
    },
    /// The client is to run a tool.
    ToolCall(Box<ClientCall>),
}

/// Why a sink did not take something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SinkError {
    /// The peer is gone.
    #[error("the peer is gone")]
    Closed,
    /// The peer reads too slowly; what was offered is dropped by the caller, who counts it.
    #[error("the peer reads too slowly")]
    Full,
    /// The link is lost and may come back; the source says what becomes of it.
    #[error("the link to the peer is lost")]
    Lost,
    /// The peer has no way to take it.
    #[error("the peer cannot take it")]
    Unsupported,
}

/// Where audio goes. Never blocks: a sink has a bounded buffer of its own and says when it is full.
pub trait Sink: Send + 'static {
    /// The rate it wants its audio in. It may change while a session runs; the source says so then, by
    /// [`Link::Changed`]. A turn that has opened goes on in the rate that it opened with (F-161).
    fn sample_rate(&self) -> SampleRate;

    /// How the agent's audio is written on the line. It is handed over as PCM whatever that is.
    fn codec(&self) -> Codec;

    /// Most audio that it may hold unplayed, at most 200 ms (P5).
    fn lead(&self) -> Duration;

    /// Plays a chunk (mono PCM at what `sample_rate` was when the turn opened, 20 ms). Called on the paced output clock, already fenced.
    fn play(&mut self, turn: TurnNumber, chunk: &AudioChunk) -> Result<(), SinkError>;

    /// Forgets what it holds of `turn` and all turns before it (P5).
    fn clear(&mut self, turn: TurnNumber);

    /// Sends something besides audio.
    fn send(&mut self, outgoing: Outgoing) -> Result<(), SinkError>;

    /// What is played next does not join what was played before: the agent pauses, and means to (P11).
    fn pause(&mut self);

    /// How what was played crossed the wire so far, if that is watched where it leaves (P29).
    fn wire(&self) -> Option<WireReport>;
}

/// A connection that a transport hands to the runtime.
pub struct Transport {
    /// Which transport.
    pub kind: TransportKind,
    /// Rate of the source's audio.
    pub source_rate: SampleRate,
    /// The user's side.
    pub source: Source,
    /// The agent's side.
    pub sink: Box<dyn Sink>,
    /// Where in a trace the client is that connects, if it says so: traces of the session's turns link to
    /// it (P30).
    pub caller: Option<TraceParent>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_of_a_link_is_found_by_its_name() {
        for link in Link::ALL {
            assert_eq!(Link::named(link.as_str()), Some(link));
        }
        assert_eq!(Link::named("gone"), None);
    }
}
