//! What a session was opened with, and what came to it from outside: what it takes to run it again
//! without its users and without its providers (F-029, F-151).
//!
//! Kept at L2 alone, whole where the recording policy has full capture of the class; else it is
//! [`Captured::Withheld`], so that a playback can say what it lacks.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use rspp_proto::{
    Epoch, Extension, IdempotencyKey, InvocationId, Monotonic, NodeId, OutcomeClass, ProviderId,
    SampleIndex, SessionId, TenantId, TraceParent, TurnId, TurnNumber,
    abi::{CancelScope, Encoding, PayloadClass},
    spec::{Modality, RecordingLevel},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Redaction, RedactionAction, pii::Patterns};

/// What a session was opened with: pipeline and policy as they were given, before anything was inserted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpeningEntry {
    /// When.
    pub at: Monotonic,
    /// The conversation.
    pub session_id: SessionId,
    /// Who is accounted for it.
    pub tenant_id: TenantId,
    /// The epoch that it began under.
    pub authority_epoch: Epoch,
    /// Whether its lease was taken from another placement.
    #[serde(default)]
    pub taken_over: bool,
    /// How long its lease lasts without renewal, in microseconds, if it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ttl_us: Option<u64>,
    /// The view of the fleet that it was taken on by, if there is a fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing_view: Option<ViewNote>,
    /// The pipeline; this and what follows from it is in memory once for all sessions of one pipeline.
    pub pipeline: Arc<Value>,
    /// The policy bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<Value>>,
    /// The settings, layer by layer.
    pub settings: Arc<Value>,
    /// What conditions may ask of the session; below L2 only if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Value>,
    /// The providers that were there.
    pub providers: Vec<ProviderNote>,
    /// The connection.
    pub line: LineNote,
}

impl OpeningEntry {
    pub(crate) fn withhold(&mut self, redaction: &Redaction, level: RecordingLevel) {
        let says_nothing = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
        if level < RecordingLevel::L2 {
            self.attributes = self.attributes.take().filter(says_nothing);
        }
        if let (Some(attributes), Some(patterns)) = (&mut self.attributes, redaction.patterns()) {
            patterns.apply_to_json(attributes);
        }
    }
}

/// A view of the fleet, when something was done by it (F-159).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewNote {
    /// Its name; absent if nothing was ever heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How old it was, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// Whether it was fetched first, because the one before was too old.
    pub refreshed: bool,
}

/// A provider as it described itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderNote {
    /// What it does.
    pub modality: Modality,
    /// Its id.
    pub id: ProviderId,
    /// Its model or voice.
    pub model: String,
    /// Whether results arrive before the input is complete.
    pub streaming: bool,
}

/// A connection as its transport announced it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineNote {
    /// Which transport.
    pub transport: String,
    /// Rate of the user's audio, in hertz.
    pub source_rate: u32,
    /// Rate of the agent's audio, in hertz.
    pub sink_rate: u32,
    /// How far ahead of its playout the agent's audio is sent, in microseconds.
    pub sink_lead_us: u64,
    /// Where in whose trace it was asked for, if the client said so (P30).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<TraceParent>,
}

/// Something from outside, and when it came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaptureEntry {
    /// When.
    pub at: Monotonic,
    /// The turn that it is of, if it is of one's work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<TurnId>,
    /// What.
    pub what: Captured,
}

/// Something from outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Captured {
    /// From the user's side.
    Came(Came),
    /// From an operator or the control plane.
    Ordered(Ordered),
    /// A node asked a provider: what it wanted is the node's output.
    Asked {
        /// The attempt.
        call: CallRef,
        /// The request, as JSON.
        request: Value,
    },
    /// The provider's answer, piece by piece.
    Answered {
        /// The attempt.
        call: CallRef,
        /// Counts the pieces of the answer, from 0.
        index: u64,
        /// The piece.
        piece: Piece,
    },
    /// What a detector heard, window by window or question by question.
    Detected {
        /// Which detector.
        provider: ProviderId,
        /// What it detects.
        modality: Modality,
        /// The rate that it wants, in hertz.
        sample_rate: u32,
        /// Samples that it looks at, at a time.
        window: u64,
        /// Counts what it has heard, from 0.
        first: u64,
        /// The probabilities, 0 to 1.
        values: Vec<f32>,
    },
    /// It was here, and may not be kept.
    Withheld {
        /// What it would have been.
        what: String,
        /// The class of payload that it reveals.
        class: PayloadClass,
        /// What the recording policy does with that class.
        action: RedactionAction,
    },
}

/// What came in from the user's side, as the transport handed it over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Came {
    /// Audio without a gap.
    Audio(Bytes),
    /// Audio that says where it belongs.
    Frame {
        /// Counts the frames.
        sequence: u64,
        /// Where it belongs.
        position: SampleIndex,
        /// The epoch that the sender speaks under.
        epoch: Option<Epoch>,
        /// The samples.
        pcm: Bytes,
    },
    /// An event under an epoch and a key.
    Stamped {
        /// The epoch that the sender speaks under.
        epoch: Option<Epoch>,
        /// The idempotency key.
        key: Option<IdempotencyKey>,
        /// The event.
        event: Box<Came>,
    },
    /// A record of the Event ABI.
    Record {
        /// How it is written.
        encoding: Encoding,
        /// The record.
        bytes: Bytes,
    },
    /// News of the link: `reconnecting`, `lost` or `back`.
    Link(String),
    /// Push to talk: the utterance is over.
    EndOfUtterance,
    /// The client cancels.
    Cancel,
    /// Typed words.
    Text(String),
    /// Data that only a transport or a client understands.
    Extension(Box<Extension>),
    /// The client's receipt for what was heard.
    Played {
        /// The turn.
        turn: TurnNumber,
        /// Milliseconds of it that were heard.
        ms: u64,
    },
    /// The user hung up.
    HungUp,
}

/// What somebody ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ordered {
    /// A cancel.
    Cancel {
        /// How far it reaches.
        scope: CancelScope,
        /// The node, if it is about one.
        node: Option<NodeId>,
        /// The call, if it is about one.
        invocation: Option<InvocationId>,
        /// Why.
        reason: String,
    },
    /// A newer epoch.
    Rotate(Epoch),
    /// The session begins to move.
    Leave,
    /// Another placement speaks for it.
    HandOver,
    /// Its authority is gone.
    Revoke,
    /// It ends after its turn.
    Drain,
}

/// One attempt at one provider.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CallRef {
    /// The call, over all its attempts.
    pub invocation: InvocationId,
    /// Who was asked.
    pub provider: ProviderId,
    /// What the provider does.
    pub modality: Modality,
    /// Counts the attempts at this provider, from 1.
    pub attempt: u32,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Piece {
    /// The transcript so far.
    Partial(String),
    /// The transcript.
    Final {
        /// The words.
        text: String,
        /// How sure the provider is.
        confidence: Option<f32>,
    },
    /// Generated text.
    Delta(String),
    /// A call of a tool.
    ToolCall {
        /// Unique within the turn.
        id: String,
        /// Which tool.
        name: String,
        /// JSON text.
        arguments: String,
    },
    /// Generation is over.
    Finished {
        /// Why, as `stop`.
        reason: String,
        /// Tokens read and written, if the provider says.
        usage: Option<(u64, u64)>,
    },
    /// Synthesised speech.
    Audio {
        /// Its rate, in hertz.
        sample_rate: u32,
        /// The samples.
        pcm: Bytes,
    },
    /// It went wrong, and nothing follows.
    Fault {
        /// The class.
        class: OutcomeClass,
        /// A stable code.
        reason: String,
        /// What happened, for people.
        message: String,
        /// Whether another attempt might succeed.
        retryable: bool,
        /// Whether the provider asked to be left alone.
        circuit_open: bool,
        /// For how long, in microseconds.
        backoff_us: Option<u64>,
        /// HTTP status.
        status: Option<u16>,
    },
    /// The provider has said all.
    Ended,
}

impl CaptureEntry {
    /// Takes away what `redaction` does not allow whole.
    pub(crate) fn withhold(&mut self, redaction: &Redaction, level: RecordingLevel) {
        let class = self.what.class();
        let action = redaction.action(class, level);
        let is_kept = match action {
            RedactionAction::Allow => redaction
                .patterns()
                .is_none_or(|patterns| self.what.hide(patterns)),
            RedactionAction::Mask => self.what.silence(),
            RedactionAction::Hash | RedactionAction::Drop | RedactionAction::Tokenize => false,
        };
        if !is_kept {
            self.what = Captured::Withheld {
                what: self.what.name().to_owned(),
                class,
                action: match action {
                    RedactionAction::Allow => RedactionAction::Mask,
                    action => action,
                },
            };
        }
    }
}

impl Captured {
    /// Takes out what is personal; `false` if that cannot be told apart in it.
    fn hide(&mut self, patterns: &Patterns) -> bool {
        match self {
            Self::Came(came) => return came.hide(patterns),
            Self::Asked { request, .. } => {
                patterns.apply_to_json(request);
            }
            Self::Answered { piece, .. } => match piece {
                Piece::Partial(text) => {
                    patterns.apply(text, false);
                }
                Piece::Final { text, .. } => {
                    patterns.apply(text, true);
                }
                // A number may be spread over several pieces.
                Piece::Delta(_) => return false,
                Piece::ToolCall { arguments, .. } => {
                    patterns.apply(arguments, true);
                }
                Piece::Fault { message, .. } => {
                    patterns.apply(message, true);
                }
                Piece::Finished { .. } | Piece::Audio { .. } | Piece::Ended => {}
            },
            Self::Ordered(_) | Self::Detected { .. } | Self::Withheld { .. } => {}
        }
        true
    }

    /// Makes it silence of the same length; `false` if it is no sound.
    fn silence(&mut self) -> bool {
        match self {
            Self::Came(came) => came.silence(),
            Self::Answered {
                piece: Piece::Audio { pcm, .. },
                ..
            } => {
                *pcm = silence(pcm);
                true
            }
            Self::Answered { .. }
            | Self::Asked { .. }
            | Self::Ordered(_)
            | Self::Detected { .. }
            | Self::Withheld { .. } => false,
        }
    }

    /// What it reveals.
    fn class(&self) -> PayloadClass {
        match self {
            Self::Came(came) => came.class(),
            Self::Ordered(_) | Self::Detected { .. } | Self::Withheld { .. } => {
                PayloadClass::Metadata
            }
            Self::Asked { call, .. } => match call.modality {
                Modality::Stt | Modality::Vad | Modality::EndOfTurn => PayloadClass::Metadata,
                Modality::Llm | Modality::Tts | Modality::External => PayloadClass::TextRaw,
            },
            Self::Answered { piece, .. } => match piece {
                Piece::Partial(_)
                | Piece::Final { .. }
                | Piece::Delta(_)
                | Piece::ToolCall { .. } => PayloadClass::TextRaw,
                Piece::Audio { .. } => PayloadClass::AudioRaw,
                Piece::Finished { .. } | Piece::Fault { .. } | Piece::Ended => {
                    PayloadClass::Metadata
                }
            },
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Came(_) => "what came from the user",
            Self::Ordered(_) => "an order",
            Self::Asked { .. } => "what a provider was asked",
            Self::Answered { .. } => "what a provider answered",
            Self::Detected { .. } => "what a detector heard",
            Self::Withheld { .. } => "something",
        }
    }

    /// Bytes that it takes, estimated.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Came(came) => came.weight(),
            Self::Asked { request, .. } => request.to_string().len(),
            Self::Answered { piece, .. } => match piece {
                Piece::Partial(text) | Piece::Delta(text) | Piece::Final { text, .. } => text.len(),
                Piece::ToolCall { arguments, .. } => arguments.len(),
                Piece::Audio { pcm, .. } => pcm.len(),
                Piece::Finished { .. } | Piece::Fault { .. } | Piece::Ended => 0,
            },
            Self::Detected { values, .. } => values.len() * 4,
            Self::Ordered(_) | Self::Withheld { .. } => 0,
        }
    }

    /// The provider that it is of.
    pub(crate) fn who(&self) -> &str {
        match self {
            Self::Asked { call, .. } | Self::Answered { call, .. } => call.provider.as_str(),
            Self::Detected { provider, .. } => provider.as_str(),
            Self::Came(_) | Self::Ordered(_) | Self::Withheld { .. } => "-",
        }
    }
}

impl fmt::Display for Captured {
    /// Without what was said.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Came(came) => write!(f, "{}, {} bytes", self.name(), came.weight()),
            Self::Ordered(order) => write!(f, "ordered: {order:?}"),
            Self::Asked { call, .. } => write!(f, "asked, attempt {}", call.attempt),
            Self::Answered { index, .. } => {
                write!(f, "piece {index} of the answer, {} bytes", self.weight())
            }
            Self::Detected { first, values, .. } => {
                write!(f, "heard {} windows from {first}", values.len())
            }
            Self::Withheld {
                what,
                class,
                action,
            } => write!(f, "{what} [{class}: {action:?}]"),
        }
    }
}

fn silence(pcm: &Bytes) -> Bytes {
    Bytes::from(vec![0; pcm.len()])
}

impl Came {
    fn hide(&mut self, patterns: &Patterns) -> bool {
        match self {
            Self::Text(text) => {
                patterns.apply(text, true);
                true
            }
            Self::Extension(extension) => {
                patterns.apply_to_json(&mut extension.fields);
                true
            }
            Self::Stamped { event, .. } => event.hide(patterns),
            // Bytes that are read elsewhere.
            Self::Record { .. } => false,
            Self::Audio(_)
            | Self::Frame { .. }
            | Self::Link(_)
            | Self::EndOfUtterance
            | Self::Cancel
            | Self::Played { .. }
            | Self::HungUp => true,
        }
    }

    fn silence(&mut self) -> bool {
        match self {
            Self::Audio(pcm) | Self::Frame { pcm, .. } => {
                *pcm = silence(pcm);
                true
            }
            Self::Stamped { event, .. } => event.silence(),
            Self::Record { .. }
            | Self::Link(_)
            | Self::EndOfUtterance
            | Self::Cancel
            | Self::Text(_)
            | Self::Extension(_)
            | Self::Played { .. }
            | Self::HungUp => false,
        }
    }

    fn class(&self) -> PayloadClass {
        match self {
            Self::Audio(_) | Self::Frame { .. } => PayloadClass::AudioRaw,
            // Keys that were pressed may be a secret number.
            Self::Text(_) | Self::Record { .. } | Self::Extension(_) => PayloadClass::TextRaw,
            Self::Stamped { event, .. } => event.class(),
            Self::Link(_)
            | Self::EndOfUtterance
            | Self::Cancel
            | Self::Played { .. }
            | Self::HungUp => PayloadClass::Metadata,
        }
    }

    fn weight(&self) -> usize {
        match self {
            Self::Audio(pcm) | Self::Frame { pcm, .. } => pcm.len(),
            Self::Record { bytes, .. } => bytes.len(),
            Self::Text(text) => text.len(),
            Self::Stamped { event, .. } => event.weight(),
            Self::Extension(extension) => extension.name.len() + extension.fields.to_string().len(),
            Self::Link(_)
            | Self::EndOfUtterance
            | Self::Cancel
            | Self::Played { .. }
            | Self::HungUp => 0,
        }
    }
}
