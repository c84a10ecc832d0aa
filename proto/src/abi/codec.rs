//! Records as bytes: MessagePack between machines, JSON for people.
//!
//! MessagePack is written with field names, not as positional arrays. 20 ms of 16 kHz audio, 640 bytes
//! of samples, measure 1029 bytes with names and 773 without. For the difference absent fields cost
//! nothing, older bytes decode after a field is added, and a reader can say which field it does not
//! know. Records are encoded
//! where they leave the process or enter a file, never between two nodes of one process.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

use super::{
    AbiRule, AbiViolation, Envelope, EventScope, MediaTime, PayloadClass, Record, SchemaVersion,
    Signal, VersionWindow,
    envelope::{envelope_of, with_envelope},
};
use crate::{
    DiscontinuityId, EdgeId, Epoch, EventId, IdempotencyKey, InvocationId, Lane, LeaseToken,
    MergeGroupId, NodeId, Payload, PipelineVersion, SessionId, SyncDomain, SyncId, TurnId,
    WallClock,
};

/// Most bytes of one record: 20 ms of 48 kHz stereo PCM fit 60 times over.
pub const MAX_RECORD_BYTES: usize = 256 * 1024;

/// How deep a record's values may nest; an extension's fields are the deepest.
const MAX_DEPTH: usize = 32;

/// How records are written (F-030).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// MessagePack maps with field names.
    MessagePack,
    /// JSON, for people and browsers.
    Json,
}

impl Encoding {
    /// The encoding's name in a negotiation.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::MessagePack => "application/vnd.rspp.v1+msgpack",
            Self::Json => "application/vnd.rspp.v1+json",
        }
    }

    /// The first of what the other side offers, in its order of preference, that is known here.
    pub fn negotiate<'a>(offered: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        offered.into_iter().find_map(|name| {
            [Self::MessagePack, Self::Json]
                .into_iter()
                .find(|encoding| encoding.media_type() == name.trim())
        })
    }
}

/// What becomes of an event whose payload type is not known here (F-020). Each leaves an audit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownEventAction {
    /// It is dropped.
    Drop,
    /// It goes on untouched, as bytes.
    PassThrough,
    /// It is an error.
    #[default]
    Reject,
}

/// The audit record of an event that this build could not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnknownEvent {
    /// What it says about itself; checked like any other.
    pub envelope: Envelope,
    /// The payload type that is not known.
    pub payload_type: String,
    /// Its size.
    pub bytes: usize,
    /// What became of it.
    pub action: UnknownEventAction,
}

/// What some bytes turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// A record that is well formed.
    Record(Box<Record>),
    /// An unknown event to hand on as it came.
    PassThrough {
        /// What to note.
        audit: Box<UnknownEvent>,
        /// The whole record, in the encoding it came in.
        raw: Bytes,
    },
    /// An unknown event that is gone.
    Dropped {
        /// What to note.
        audit: Box<UnknownEvent>,
    },
}

/// Why a record was not written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// It breaks a rule.
    #[error(transparent)]
    Invalid(#[from] AbiViolation),
    /// It is too large.
    #[error("the record has {found} bytes; at most {limit} are sent")]
    TooLarge {
        /// The record's size.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// It cannot be written, e.g. a number that JSON does not know.
    #[error("the record cannot be written: {0}")]
    Unwritable(String),
}

/// Why some bytes are no record.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// There are too many of them; they were not looked at.
    #[error("the record has {found} bytes; at most {limit} are read")]
    TooLarge {
        /// The record's size.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The version is outside the window, or a rule is broken.
    #[error(transparent)]
    Invalid(#[from] AbiViolation),
    /// The payload type is not known and the session does not take such events.
    #[error(
        "payload.type: `{}` is not known; known are {}, or set unknown_event_action to drop or \
         pass_through",
        .0.payload_type, Payload::TYPES.join(", ")
    )]
    UnknownType(Box<UnknownEvent>),
    /// The vocabulary of signals is closed, and control is never dropped in silence.
    #[error("signal: `{0}` is not in the vocabulary of this build; upgrade it")]
    UnknownSignal(String),
    /// Not a record at all.
    #[error("{path}: {message}")]
    Malformed {
        /// Where.
        path: String,
        /// What is wrong there.
        message: String,
    },
}

/// Reads and writes records with one encoding, a size limit and a way with unknown events.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// How records are written.
    pub encoding: Encoding,
    /// Most bytes of a record.
    pub max_bytes: usize,
    /// What becomes of unknown events.
    pub unknown_events: UnknownEventAction,
}

impl Wire {
    /// A wire with the usual limit that refuses unknown events.
    pub const fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            max_bytes: MAX_RECORD_BYTES,
            unknown_events: UnknownEventAction::Reject,
        }
    }

    /// Treats unknown events so.
    #[must_use]
    pub const fn with_unknown_events(mut self, action: UnknownEventAction) -> Self {
        self.unknown_events = action;
        self
    }

    /// Checks a record and writes it.
    pub fn encode(&self, record: &Record) -> Result<Vec<u8>, EncodeError> {
        record.validate()?;
        let bytes = match self.encoding {
            Encoding::MessagePack => rmp_serde::to_vec_named(record)
                .map_err(|error| EncodeError::Unwritable(error.to_string()))?,
            Encoding::Json => serde_json::to_vec(record)
                .map_err(|error| EncodeError::Unwritable(error.to_string()))?,
        };
        if bytes.len() > self.max_bytes {
            return Err(EncodeError::TooLarge {
                found: bytes.len(),
                limit: self.max_bytes,
            });
        }
        Ok(bytes)
    }

    /// Reads a record and checks it.
    pub fn decode(&self, bytes: &[u8]) -> Result<Decoded, DecodeError> {
        if bytes.len() > self.max_bytes {
            return Err(DecodeError::TooLarge {
                found: bytes.len(),
                limit: self.max_bytes,
            });
        }
        match self.read::<Record>(bytes) {
            Ok(record) => {
                record.validate()?;
                Ok(Decoded::Record(Box::new(record)))
            }
            // Only what could not be read is looked at twice, so the usual path stays short.
            Err(malformed) => self.explain(bytes, malformed),
        }
    }

    /// Tells an old or new writer from a broken one.
    fn explain(&self, bytes: &[u8], malformed: DecodeError) -> Result<Decoded, DecodeError> {
        let Ok(glance) = self.read::<Glance>(bytes) else {
            return Err(malformed);
        };
        if let Some(version) = glance.schema_version {
            VersionWindow::CURRENT.check(version)?;
        }
        if let Some(signal) = glance.signal
            && !Signal::ALL.iter().any(|known| known.as_str() == signal)
        {
            return Err(DecodeError::UnknownSignal(signal));
        }
        let is_unknown = glance
            .payload
            .is_some_and(|payload| !Payload::TYPES.contains(&payload.name.as_str()));
        if !is_unknown {
            return Err(malformed);
        }
        // The rest of the record must be sound: an unknown payload is no way around the rules.
        let flat: FlatUnknown = self.read(bytes)?;
        let payload_type = flat.payload.name;
        let envelope: Envelope = envelope_of!(flat);
        if envelope.lane == Lane::Control {
            return Err(DecodeError::Invalid(AbiViolation {
                path: "lane".into(),
                rule: AbiRule::EventOnControlLane,
            }));
        }
        envelope.validate()?;
        let audit = Box::new(UnknownEvent {
            envelope,
            payload_type,
            bytes: bytes.len(),
            action: self.unknown_events,
        });
        match self.unknown_events {
            UnknownEventAction::Drop => Ok(Decoded::Dropped { audit }),
            UnknownEventAction::PassThrough => Ok(Decoded::PassThrough {
                audit,
                raw: Bytes::copy_from_slice(bytes),
            }),
            UnknownEventAction::Reject => Err(DecodeError::UnknownType(audit)),
        }
    }

    /// Reads all of `bytes` as one value.
    fn read<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, DecodeError> {
        // Keeping track of the path takes longer than reading, so only an error is traced.
        match self.encoding {
            Encoding::MessagePack => {
                let reader = || {
                    let mut reader = rmp_serde::Deserializer::new(bytes);
                    reader.set_max_depth(MAX_DEPTH);
                    reader
                };
                let mut rest = reader();
                let Ok(value) = T::deserialize(&mut rest) else {
                    return Err(trace::<T, _>(&mut reader()));
                };
                match rest.get_ref().len() {
                    0 => Ok(value),
                    more => Err(trailing_bytes(&format!("{more} bytes follow the record"))),
                }
            }
            Encoding::Json => {
                let mut rest = serde_json::Deserializer::from_slice(bytes);
                let Ok(value) = T::deserialize(&mut rest) else {
                    let mut again = serde_json::Deserializer::from_slice(bytes);
                    return Err(trace::<T, _>(&mut again));
                };
                match rest.end() {
                    Ok(()) => Ok(value),
                    Err(error) => Err(trailing_bytes(&error.to_string())),
                }
            }
        }
    }
}

/// Reads what could not be read once more, to say where it broke.
fn trace<'de, T: Deserialize<'de>, D: Deserializer<'de>>(reader: D) -> DecodeError {
    match serde_path_to_error::deserialize::<D, T>(reader) {
        Ok(_) => trailing_bytes("not readable"),
        Err(error) => DecodeError::Malformed {
            path: error.path().to_string(),
            message: error.into_inner().to_string(),
        },
    }
}

fn trailing_bytes(message: &str) -> DecodeError {
    DecodeError::Malformed {
        path: ".".to_owned(),
        message: message.to_owned(),
    }
}

/// Just enough of a record to say why it cannot be read.
#[derive(Deserialize)]
struct Glance {
    #[serde(default)]
    schema_version: Option<SchemaVersion>,
    #[serde(default)]
    signal: Option<String>,
    #[serde(default)]
    payload: Option<GlancePayload>,
}

#[derive(Deserialize)]
struct GlancePayload {
    #[serde(rename = "type")]
    name: String,
}

/// A payload of a type that is not known.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OpaquePayload {
    #[serde(rename = "type")]
    name: String,
    #[serde(default, rename = "body")]
    _body: serde::de::IgnoredAny,
}

with_envelope! {
    /// An event whose payload is not known.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct FlatUnknown {
        payload: OpaquePayload,
    }
}
