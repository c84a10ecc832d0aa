//! One connection's two ends. The runtime's Connection actor stands between them and the session:
//! it paces and fences what goes out, so a transport only carries.

use std::{pin::Pin, time::Duration};

use bytes::Bytes;
use futures::Stream;
use rspp_proto::{AudioChunk, SampleRate, TextChunk, TurnNumber};
use serde::{Deserialize, Serialize};
use thiserror::Error;

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

/// What comes in from the user's side.
#[derive(Clone, Debug, PartialEq)]
pub enum Ingress {
    /// Mono 16-bit PCM at the source's rate; any length, whole samples.
    Audio(Bytes),
    /// The user says that the utterance is over (push to talk, F-042).
    EndOfUtterance,
    /// The user's client cancels the running turn.
    Cancel,
    /// The user typed instead of speaking.
    Text(String),
}

/// What comes in, until the user hangs up.
pub type Source = Pin<Box<dyn Stream<Item = Ingress> + Send>>;

/// What goes out besides audio; carried on a best-effort basis.
#[derive(Clone, Debug, PartialEq)]
pub enum Outgoing {
    /// Partial and final text, both ways.
    Text(TextChunk),
    /// The turn's audio is complete.
    AudioEnd(TurnNumber),
    /// Whether the agent has its voice; without, it goes on in text (F-137).
    Voice {
        /// Whether it has.
        available: bool,
    },
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
}

/// Where audio goes. Never blocks: a sink has a bounded buffer of its own and says when it is full.
pub trait Sink: Send + 'static {
    /// The rate it wants its audio in.
    fn sample_rate(&self) -> SampleRate;

    /// Most audio that it may hold unplayed, at most 200 ms (P5).
    fn lead(&self) -> Duration;

    /// Plays a chunk (mono PCM at `sample_rate`, 20 ms). Called on the paced output clock, already fenced.
    fn play(&mut self, turn: TurnNumber, chunk: &AudioChunk) -> Result<(), SinkError>;

    /// Forgets what it holds of `turn` and all turns before it (P5).
    fn clear(&mut self, turn: TurnNumber);

    /// Sends something besides audio.
    fn send(&mut self, outgoing: Outgoing) -> Result<(), SinkError>;
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
}
