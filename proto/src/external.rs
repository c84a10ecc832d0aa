//! The protocol of nodes that run outside the runtime's process (F-122).
//!
//! The runtime starts the node's process and talks to it over the process's standard input and
//! output. What the process writes to its standard error goes to the runtime's log.
//!
//! # Frames
//!
//! Either side sends frames: four bytes that say how long the rest is, most significant first, then
//! that many bytes of MessagePack: one map with a field `frame` that names the kind. A frame is at
//! most as long as the operator allows, [`MAX_FRAME_BYTES`] unless set lower; a longer one ends the
//! process, unread.
//!
//! # From the runtime
//!
//! | `frame` | fields | meaning |
//! | --- | --- | --- |
//! | `hello` | `protocol`, `session_id`, `turn_id`?, `node_id`, `config` | the first frame; what the node is and serves |
//! | `event` | `id`, `port`, `event` | an event from the edge at `port`, an Event ABI record; to be answered with `done` |
//! | `cancel` | `reason` | the event at hand is no longer wanted: stop, then say `done` |
//! | `stop` | | the end: standard input is closed after it, and the process has its grace to exit |
//!
//! # From the node
//!
//! | `frame` | fields | meaning |
//! | --- | --- | --- |
//! | `ready` | `protocol` | the answer to `hello` |
//! | `emit` | `payload`, `segment`?, `media`? | emits an event; the runtime stamps it with ids, turn, authority and time |
//! | `done` | `id`, `error`? | the event is dealt with; with `error` it could not be |
//! | `log` | `message` | for the runtime's log; no payload, no secret |
//!
//! One event is at hand at a time: the next comes after `done`. What is emitted in answer to an event
//! leaves the node when it is done with it. `emit` outside of an event is an error of the node's.
//!
//! # Time and trouble
//!
//! The node has the operator's start time from `hello` to `ready`, and the operator's event time from
//! `event` to `done`. After `cancel` it has the plan's cancel grace to say `done`. Whoever is late is
//! killed with SIGKILL, its whole process group with it, and its session counts as degraded. A
//! process that dies, answers out of turn or sends what cannot be read fails the event at hand; the
//! next event finds a new process, as often as the operator allows.
//!
//! # A node in Rust
//!
//! ```no_run
//! use rspp_proto::external::{Down, Up, read, write};
//!
//! let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
//! while let Some(frame) = read(&mut input)? {
//!     match frame {
//!         Down::Hello(_) => write(&mut output, &Up::ready())?,
//!         Down::Event { id, event, .. } => {
//!             if let Some(payload) = event.payload {
//!                 write(&mut output, &Up::emit(payload))?;
//!             }
//!             write(&mut output, &Up::Done { id, error: None })?;
//!         }
//!         Down::Cancel { .. } => {} // What it had been doing was done at once.
//!         Down::Stop => break,
//!     }
//! }
//! # Ok::<(), std::io::Error>(())
//! ```

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{NodeId, Payload, SampleIndex, SessionId, TurnId, abi::EventRecord};

/// The protocol's name and version.
pub const PROTOCOL: &str = "rspp.external.v1";

/// Most bytes of a frame, without its length.
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;

/// What a node is told first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: String,
    /// The session that it works for.
    pub session_id: SessionId,
    /// The turn, for nodes that live as long as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<TurnId>,
    /// Which node of the pipeline it is.
    pub node_id: NodeId,
    /// Its settings, as the pipeline has them.
    #[serde(default)]
    pub config: BTreeMap<String, serde_json::Value>,
}

/// What the runtime tells a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "snake_case")]
pub enum Down {
    /// What it is and serves.
    Hello(Hello),
    /// An event to deal with.
    Event {
        /// Counts the events that this process was given.
        id: u64,
        /// The edge's place among those that lead to the node.
        port: u16,
        /// The event.
        event: Box<EventRecord>,
    },
    /// The event at hand is no longer wanted.
    Cancel {
        /// Why.
        reason: String,
    },
    /// The end.
    Stop,
}

/// What a node tells the runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "snake_case", deny_unknown_fields)]
pub enum Up {
    /// It is there.
    Ready {
        /// [`PROTOCOL`].
        protocol: String,
    },
    /// It emits.
    Emit {
        /// What.
        payload: Payload,
        /// The clause or utterance that it is part of.
        #[serde(default)]
        segment: u32,
        /// Position in the user's audio.
        #[serde(default)]
        media: SampleIndex,
    },
    /// It has dealt with an event.
    Done {
        /// Which.
        id: u64,
        /// Why it could not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// For the runtime's log.
    Log {
        /// What to know.
        message: String,
    },
}

impl Up {
    /// The answer to [`Down::Hello`].
    pub fn ready() -> Self {
        Self::Ready {
            protocol: PROTOCOL.to_owned(),
        }
    }

    /// Emits a payload that belongs to no clause and no place in the audio.
    pub fn emit(payload: Payload) -> Self {
        Self::Emit {
            payload,
            segment: 0,
            media: SampleIndex(0),
        }
    }
}

/// A frame as bytes, its length first.
pub fn encode(frame: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    rmp_serde::encode::write_named(&mut bytes, frame).map_err(io::Error::other)?;
    let length = bytes.len() - 4;
    if length > MAX_FRAME_BYTES {
        let message = format!("the frame has {length} bytes; at most {MAX_FRAME_BYTES} are sent");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(bytes)
}

/// What a frame's bytes say, without its length.
pub fn decode<F: DeserializeOwned>(bytes: &[u8]) -> io::Result<F> {
    rmp_serde::from_slice(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

/// Reads a frame, for nodes; `None` at the end.
pub fn read<F: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<F>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FRAME_BYTES {
        let message = format!("a frame of {length} bytes; at most {MAX_FRAME_BYTES} are read");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    decode(&bytes).map(Some)
}

/// Writes a frame, for nodes.
pub fn write(to: &mut impl Write, frame: &impl Serialize) -> io::Result<()> {
    to.write_all(&encode(frame)?)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn same<F: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(frame: &F) {
        let bytes = encode(frame).expect("it can be written");
        let mut from = bytes.as_slice();
        let read: F = read(&mut from).expect("it can be read").expect("a frame");
        assert_eq!(&read, frame);
        assert!(from.is_empty());
    }

    /// F-122: what one side writes, the other reads, audio and nested settings included.
    #[test]
    fn frames_survive_the_way() {
        let audio = crate::AudioChunk::pcm16(
            crate::SampleRate::HZ_16000,
            bytes::Bytes::from(vec![1, 2, 255, 0]),
        );
        same(&Up::ready());
        same(&Up::emit(Payload::AudioChunk(audio)));
        same(&Up::emit(Payload::TextEnd));
        same(&Up::Done {
            id: 7,
            error: Some("no such word".into()),
        });
        same(&Down::Hello(Hello {
            protocol: PROTOCOL.into(),
            session_id: SessionId::new("call").expect("not blank"),
            turn_id: None,
            node_id: NodeId::new("echo").expect("not blank"),
            config: [("nested".to_owned(), serde_json::json!({"a": [1, 2.5, "x"]}))].into(),
        }));
        same(&Down::Cancel {
            reason: "barge_in".into(),
        });
        same(&Down::Stop);
    }

    /// Everything is bounded: a length beyond the limit is refused before anything is read for it.
    #[test]
    fn a_frame_that_is_too_long_is_refused_unread() {
        let mut endless = u32::MAX.to_be_bytes().to_vec();
        endless.extend([0; 16]);
        let refused = read::<Up>(&mut endless.as_slice()).expect_err("it is too long");
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        let long = Up::Log {
            message: "x".repeat(MAX_FRAME_BYTES),
        };
        assert!(encode(&long).is_err());
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [&[0xc1][..], &[0x80], b"\x81\xa5frame\xa4what"] {
            assert!(decode::<Up>(bytes).is_err(), "{bytes:?}");
        }
    }
}
