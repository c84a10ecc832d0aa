//! What events carry: audio, text, speech marks, metrics, debug notes and errors.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    NodeId, SampleIndex, SampleRate,
    metric::{Metric, MetricLabel},
};

/// The six event types by which consumers subscribe (F-022).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// Audio chunks and the end of a stream.
    Audio,
    /// Transcripts and generated text.
    Text,
    /// Control signals.
    Control,
    /// Measurements, speech activity among them.
    Metrics,
    /// Notes for a developer; off unless a session turns them on (F-027).
    Debug,
    /// Normalised failures (F-131).
    Error,
}

/// How audio samples are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// Signed 16-bit little-endian samples, channels interleaved.
    Pcm16,
    /// One Opus packet.
    Opus,
    /// G.711 mu-law, one byte a sample.
    Pcmu,
    /// G.711 A-law, one byte a sample.
    Pcma,
}

/// Rate, channels and codec of a chunk (F-023).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AudioFormat {
    /// Samples per second and channel.
    pub sample_rate: SampleRate,
    /// Interleaved channels, at least 1.
    pub channels: u8,
    /// Encoding of the samples.
    pub codec: Codec,
}

impl AudioFormat {
    /// Mono 16-bit PCM: what flows inside the runtime.
    pub const fn pcm16(sample_rate: SampleRate) -> Self {
        Self {
            sample_rate,
            channels: 1,
            codec: Codec::Pcm16,
        }
    }
}

/// A stretch of audio; 20 ms unless a node says otherwise. Cloning shares the samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AudioChunk {
    /// How to read `data`.
    pub format: AudioFormat,
    /// The encoded samples.
    #[schemars(with = "Vec<u8>")]
    pub data: Bytes,
}

impl AudioChunk {
    /// A mono PCM chunk.
    pub fn pcm16(sample_rate: SampleRate, data: Bytes) -> Self {
        Self {
            format: AudioFormat::pcm16(sample_rate),
            data,
        }
    }

    /// Samples per channel; 0 for codecs whose packets do not tell.
    pub fn samples(&self) -> u64 {
        let channels = u64::from(self.format.channels.max(1));
        match self.format.codec {
            Codec::Pcm16 => self.data.len() as u64 / 2 / channels,
            Codec::Pcmu | Codec::Pcma => self.data.len() as u64 / channels,
            Codec::Opus => 0,
        }
    }

    /// How long the chunk plays; zero for codecs whose packets do not tell.
    pub fn duration(&self) -> Duration {
        self.format.sample_rate.duration_of(self.samples())
    }
}

/// Who said a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Speaker {
    /// The person on the line.
    User,
    /// The voice agent.
    Agent,
}

/// A piece of text: a transcript, a token, a clause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TextChunk {
    /// Whose words.
    pub speaker: Speaker,
    /// The words. For a partial transcript the whole segment so far; for generated text the
    /// piece since the last chunk.
    #[schemars(with = "String")]
    pub text: Arc<str>,
    /// Counts segments (utterances, clauses) within the turn, from 0.
    pub segment: u32,
    /// Rises with each partial of a segment (F-024).
    pub revision: u32,
    /// Final text appears once for a segment and never changes (F-024).
    pub is_final: bool,
    /// The recogniser's confidence, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
    /// BCP 47 tag, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub language: Option<Arc<str>>,
}

impl TextChunk {
    /// A segment whose words are all there.
    pub fn whole(speaker: Speaker, segment: u32, text: impl Into<Arc<str>>) -> Self {
        Self {
            speaker,
            text: text.into(),
            segment,
            revision: 1,
            is_final: true,
            confidence: None,
            language: None,
        }
    }
}

/// What voice activity and turn detection found in the user's audio.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "mark", rename_all = "snake_case", deny_unknown_fields)]
pub enum SpeechMark {
    /// Speech began at this sample of the user's audio.
    Started {
        /// First sample of speech.
        at: SampleIndex,
    },
    /// Speech stopped at this sample; the detector waited `hangover` more to be sure.
    Stopped {
        /// First sample after speech.
        at: SampleIndex,
    },
    /// The user has finished the turn.
    EndOfTurn {
        /// First sample after the turn's last speech.
        at: SampleIndex,
        /// How sure the detector is, 0 to 1.
        confidence: f32,
    },
}

/// A measurement published in band (F-026).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricSample {
    /// Metric name, e.g. `node_latency_ms`.
    pub name: String,
    /// The value, in the unit that the name ends with.
    pub value: f64,
    /// Bounded labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl MetricSample {
    /// A measurement in the words of [`metric`](crate::metric).
    pub fn of<'a>(
        metric: Metric,
        value: f64,
        labels: impl IntoIterator<Item = (MetricLabel, &'a str)>,
    ) -> Self {
        let labels = labels.into_iter().map(|(label, value)| {
            debug_assert!(metric.labels().contains(&label), "{metric:?} {label:?}");
            (label.as_str().to_owned(), value.to_owned())
        });
        Self {
            name: metric.as_str().to_owned(),
            value,
            labels: labels.collect(),
        }
    }
}

/// A note for a developer (F-027).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DebugNote {
    /// What to know.
    pub message: String,
    /// Details.
    #[serde(default)]
    pub fields: BTreeMap<String, String>,
}

/// The closed error taxonomy (F-131, providers.md §3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// An event or spec broke its schema: refused, never retried.
    SchemaValidationError,
    /// A writer of another epoch: refused, never retried.
    AuthorityEpochMismatch,
    /// A provider was too slow.
    ProviderTimeout,
    /// A provider had no capacity.
    ProviderOverload,
    /// Something of ours broke.
    RuntimeInternalError,
}

/// What an error leads to unless policy knows better (providers.md §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DefaultAction {
    /// The event or session is refused.
    Reject,
    /// What was written is not let in or out.
    Refuse,
    /// Another attempt within what is left of the budget, else an alternative, else lower quality.
    RetryElseFallback,
    /// Another provider, if policy has one, else lower quality.
    SwitchElseDegrade,
    /// What failed is isolated; its turn aborts if it cannot go on without.
    Isolate,
}

impl ErrorCode {
    /// Every code, in the order of the taxonomy.
    pub const ALL: [Self; 5] = [
        Self::SchemaValidationError,
        Self::AuthorityEpochMismatch,
        Self::ProviderTimeout,
        Self::ProviderOverload,
        Self::RuntimeInternalError,
    ];

    /// What it leads to.
    pub fn default_action(self) -> DefaultAction {
        match self {
            Self::SchemaValidationError => DefaultAction::Reject,
            Self::AuthorityEpochMismatch => DefaultAction::Refuse,
            Self::ProviderTimeout => DefaultAction::RetryElseFallback,
            Self::ProviderOverload => DefaultAction::SwitchElseDegrade,
            Self::RuntimeInternalError => DefaultAction::Isolate,
        }
    }

    /// Whether trying again may help.
    pub fn is_retryable(self) -> bool {
        match self.default_action() {
            DefaultAction::RetryElseFallback | DefaultAction::SwitchElseDegrade => true,
            DefaultAction::Reject | DefaultAction::Refuse | DefaultAction::Isolate => false,
        }
    }
}

/// A failure that consumers may see; holds no payload and no secret (F-131, F-136).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorNote {
    /// Which failure.
    pub error_code: ErrorCode,
    /// Where it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// What happened and what helps.
    pub message: String,
    /// Whether trying again may help.
    pub retryable: bool,
}

/// Namespaced data of a transport or custom node, e.g. `telephony.dtmf` (F-089).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Extension {
    /// Dotted name with at least one dot.
    pub name: String,
    /// Its own fields.
    #[schemars(with = "serde_json::Value")]
    pub fields: serde_json::Value,
}

impl Extension {
    /// Whether its name has a namespace, so that two who extend do not meet.
    pub fn is_namespaced(&self) -> bool {
        let mut parts = self.name.split('.');
        self.name.contains('.') && parts.all(|part| !part.trim().is_empty())
    }
}

/// What one event carries. Large and rare variants are boxed: audio stays small to move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", content = "body", rename_all = "snake_case")]
pub enum Payload {
    /// Some audio.
    AudioChunk(AudioChunk),
    /// The turn's audio stream is complete (F-023).
    AudioEnd,
    /// Some text.
    Text(Box<TextChunk>),
    /// The turn's text stream is complete.
    TextEnd,
    /// Speech activity.
    Speech(SpeechMark),
    /// A measurement.
    Metrics(Box<MetricSample>),
    /// A developer's note.
    Debug(Box<DebugNote>),
    /// A failure.
    Error(Box<ErrorNote>),
    /// Data this runtime does not interpret.
    Extension(Box<Extension>),
}

impl Payload {
    /// The wire names of the payloads that this build knows.
    pub const TYPES: [&str; 9] = [
        "audio_chunk",
        "audio_end",
        "text",
        "text_end",
        "speech",
        "metrics",
        "debug",
        "error",
        "extension",
    ];

    /// The type that consumers filter by.
    pub fn event_type(&self) -> EventType {
        match self {
            Self::AudioChunk(_) | Self::AudioEnd => EventType::Audio,
            Self::Text(_) | Self::TextEnd => EventType::Text,
            // A mark is a measurement of the audio; what follows from it is a control signal.
            Self::Speech(_) | Self::Metrics(_) => EventType::Metrics,
            Self::Debug(_) | Self::Extension(_) => EventType::Debug,
            Self::Error(_) => EventType::Error,
        }
    }

    /// The text that it is, if it is any.
    pub fn text(&self) -> Option<&TextChunk> {
        match self {
            Self::Text(chunk) => Some(chunk),
            Self::AudioChunk(_)
            | Self::AudioEnd
            | Self::TextEnd
            | Self::Speech(_)
            | Self::Metrics(_)
            | Self::Debug(_)
            | Self::Error(_)
            | Self::Extension(_) => None,
        }
    }

    /// Bytes that count against an edge's `max_queue_bytes`.
    pub fn weight(&self) -> usize {
        match self {
            Self::AudioChunk(chunk) => chunk.data.len(),
            Self::Text(chunk) => chunk.text.len(),
            Self::AudioEnd | Self::TextEnd | Self::Speech(_) => 0,
            Self::Metrics(sample) => sample.name.len() + 8,
            Self::Debug(note) => note.message.len(),
            Self::Error(note) => note.message.len(),
            Self::Extension(extension) => extension.name.len() + 64,
        }
    }

    /// How long it plays; zero for what is not audio.
    pub fn duration(&self) -> Duration {
        match self {
            Self::AudioChunk(chunk) => chunk.duration(),
            Self::AudioEnd
            | Self::Text(_)
            | Self::TextEnd
            | Self::Speech(_)
            | Self::Metrics(_)
            | Self::Debug(_)
            | Self::Error(_)
            | Self::Extension(_) => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-020: what is called unknown is unknown.
    #[test]
    fn the_list_of_types_is_the_list_of_payloads() {
        let text = TextChunk {
            speaker: Speaker::User,
            text: "hello".into(),
            segment: 0,
            revision: 0,
            is_final: true,
            confidence: None,
            language: None,
        };
        let payloads = [
            Payload::AudioChunk(AudioChunk::pcm16(SampleRate::HZ_16000, Bytes::new())),
            Payload::AudioEnd,
            Payload::Text(Box::new(text)),
            Payload::TextEnd,
            Payload::Speech(SpeechMark::Started { at: SampleIndex(0) }),
            Payload::Metrics(Box::new(MetricSample {
                name: "node_latency_ms".to_owned(),
                value: 1.0,
                labels: BTreeMap::new(),
            })),
            Payload::Debug(Box::new(DebugNote {
                message: String::new(),
                fields: BTreeMap::new(),
            })),
            Payload::Error(Box::new(ErrorNote {
                error_code: ErrorCode::ProviderTimeout,
                node_id: None,
                message: String::new(),
                retryable: true,
            })),
            Payload::Extension(Box::new(Extension {
                name: "telephony.dtmf".to_owned(),
                fields: serde_json::Value::Null,
            })),
        ];
        let types: Vec<String> = payloads
            .iter()
            .map(|payload| {
                let value = serde_json::to_value(payload).unwrap();
                value["type"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(types, Payload::TYPES);
        let schema = serde_json::to_value(schemars::schema_for!(Payload)).unwrap();
        assert_eq!(
            schema["oneOf"].as_array().unwrap().len(),
            Payload::TYPES.len(),
            "a variant is missing in this test"
        );
    }
}
