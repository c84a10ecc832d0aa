//! The messages of `rspp.v1`.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use rspp_proto::{IdempotencyKey, SampleRate, SessionId, Speaker, TurnId, TurnNumber, abi::Signal};
use rspp_transport_api::{Elsewhere, TurnNews};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::codec::OPUS_RATES;

/// The protocol's name and version.
pub const VERSION: &str = "rspp.v1";

/// What a client says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// The first message on every socket: begins a session, or comes back to one.
    Hello(Hello),
    /// The user's audio in the announced format. In `rspp.v1.json` audio
    /// travels in binary messages instead, which hold nothing else.
    Audio(AudioData),
    /// The user typed instead of speaking.
    Text(Typed),
    /// The utterance is over (push to talk): the answer does not wait for silence.
    EndOfUtterance(Keyed),
    /// The agent is to fall silent.
    Cancel(Keyed),
    /// A key was pressed on a telephone.
    Dtmf(Dtmf),
    /// Data that nodes of the pipeline understand.
    Extension(ExtensionData),
    /// How much of a turn the user has heard so far.
    Played(Played),
    /// What came of a tool's call that the client was told of.
    ToolResult(ToolResult),
    /// Asks for a `pong`.
    Ping(Ping),
    /// Hangs up.
    Bye(Nothing),
}

/// Begins a session, or comes back to one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hello {
    /// How the user's audio is written. Fixed for the whole session.
    pub input: Format,
    /// How the agent's audio is wanted. Fixed for the whole session.
    pub output: Format,
    /// Whether signals and closed turns are to be told.
    pub events: bool,
    /// Comes back to a session whose socket broke.
    pub resume: Option<Resume>,
}

/// How audio is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Format {
    /// Samples per second, from 8000 to 48000; of Opus 8000, 12000, 16000, 24000 or 48000.
    pub rate: u32,
    /// How samples are encoded.
    pub codec: AudioCodec,
}

impl Default for Format {
    fn default() -> Self {
        Self {
            rate: 16_000,
            codec: AudioCodec::Pcm16,
        }
    }
}

impl Format {
    /// The rate; what is served instead, if it is not.
    pub(crate) fn checked(self) -> Result<SampleRate, &'static str> {
        let (is_served, served) = match self.codec {
            AudioCodec::Pcm16 | AudioCodec::Pcmu => (
                (8_000..=48_000).contains(&self.rate),
                "rates from 8000 to 48000 Hz are",
            ),
            AudioCodec::Opus => (
                OPUS_RATES.contains(&self.rate),
                "for Opus 8000, 12000, 16000, 24000 and 48000 Hz are",
            ),
        };
        SampleRate::new(self.rate)
            .filter(|_| is_served)
            .ok_or(served)
    }
}

/// How samples are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AudioCodec {
    /// Mono 16-bit little-endian PCM.
    Pcm16,
    /// Mono G.711 mu-law, a byte a sample.
    Pcmu,
    /// Mono Opus, a packet a message, without a container. A stream begins with each socket, and of the
    /// agent's with each `audio_start`.
    Opus,
}

impl From<AudioCodec> for rspp_proto::Codec {
    fn from(codec: AudioCodec) -> Self {
        match codec {
            AudioCodec::Pcm16 => Self::Pcm16,
            AudioCodec::Pcmu => Self::Pcmu,
            AudioCodec::Opus => Self::Opus,
        }
    }
}

/// Comes back to a session whose socket broke.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// The session, as `ready` named it.
    pub session: SessionId,
    /// The secret that `ready` gave.
    pub key: String,
    /// Which connection broke, as its `ready` counted it.
    pub connection: u32,
    /// Messages that came from the server on it after its `ready`, of any kind.
    pub received: u64,
}

/// Some audio.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AudioData {
    /// The samples, or a packet.
    #[schemars(with = "Vec<u8>")]
    pub data: Bytes,
}

/// Typed words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Typed {
    /// The words.
    pub text: String,
    /// Under one key a message has one effect, however often it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<IdempotencyKey>,
}

/// A control that may be sent twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Keyed {
    /// Under one key a message has one effect, however often it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<IdempotencyKey>,
}

/// A key was pressed on a telephone: nodes see it as the extension `telephony.dtmf`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dtmf {
    /// `0` to `9`, `*`, `#`, `A` to `D`.
    pub digit: char,
    /// Under one key a message has one effect, however often it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<IdempotencyKey>,
}

/// Data that nodes of the pipeline understand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtensionData {
    /// A dotted name with at least one dot.
    pub name: String,
    /// Its own fields.
    #[serde(default)]
    pub fields: BTreeMap<String, Value>,
    /// Under one key a message has one effect, however often it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<IdempotencyKey>,
}

/// How much of a turn the user has heard so far. What is cut off is told by the newest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Played {
    /// The turn.
    pub turn: TurnNumber,
    /// Milliseconds of its audio.
    pub ms: u64,
}

/// What came of a tool's call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolResult {
    /// The turn of the call.
    pub turn: TurnNumber,
    /// The call.
    pub call: String,
    /// What the model is told: JSON or plain words; what went wrong, if it `failed`.
    pub content: String,
    /// Whether the tool could not do what it was asked for.
    #[serde(default)]
    pub failed: bool,
    /// Under one key a message has one effect, however often it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<IdempotencyKey>,
}

/// A number that comes back in the `pong`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ping {
    /// The number.
    #[serde(default)]
    pub id: u64,
}

/// A message that says all by its type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// What the server says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// The answer to `hello`; always the first message.
    Ready(Box<Ready>),
    /// The agent begins to speak; audio that follows is of this turn, until another begins.
    AudioStart(OfTurn),
    /// The agent's audio, 20 ms of it. In `rspp.v1.json` it travels in binary messages instead.
    Audio(AudioData),
    /// The agent has said all of this turn.
    AudioEnd(OfTurn),
    /// What was not played yet of this turn and all before it is not to be played any more.
    Clear(OfTurn),
    /// What was said, so far or for good.
    Text(Said),
    /// Whether the agent has its voice; without, it goes on in text.
    Voice(Voice),
    /// The client is to run a tool, and to say what came of it.
    ToolCall(ToolCall),
    /// The session says something of itself; only to clients that asked for events.
    Signal(SignalTold),
    /// A turn is over; only to clients that asked for events.
    Turn(Box<TurnNews>),
    /// The answer to `ping`.
    Pong(Ping),
    /// Something is wrong.
    Error(Trouble),
    /// The server stops soon: what is being said is finished, then the session ends.
    Draining(Nothing),
    /// The session is over here; the socket closes.
    End(Ended),
}

/// The session is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// `rspp.v1`.
    pub protocol: String,
    /// The session.
    pub session: SessionId,
    /// Whoever knows it may come back to the session: keep it to yourself.
    pub key: String,
    /// Counts the session's connections, from 1.
    pub connection: u32,
    /// Messages of the client's that came on the connection that broke; send again what is missing.
    pub received: u64,
    /// Messages of the server's that were lost and are not sent again: never any, unless they were too
    /// many to be kept.
    pub lost: u64,
    /// How the user's audio is written.
    pub input: Format,
    /// How the agent's audio is written.
    pub output: Format,
    /// The longest message that is taken, in bytes.
    pub max_message_bytes: usize,
}

/// About a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OfTurn {
    /// The turn.
    pub turn: TurnNumber,
}

/// What was said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Said {
    /// Whose words.
    pub speaker: Speaker,
    /// The words: of the user all of the segment so far, of the agent what is new.
    #[schemars(with = "String")]
    pub text: Arc<str>,
    /// Counts the pieces of what the speaker says, from 0.
    pub segment: u32,
    /// Whether this is the segment's last word.
    #[serde(rename = "final")]
    pub is_final: bool,
}

/// Whether the agent has its voice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Voice {
    /// Whether it has.
    pub available: bool,
}

/// The client is to run a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// The turn that asks for it.
    pub turn: TurnNumber,
    /// The call, unique within its turn.
    pub call: String,
    /// Which tool.
    pub tool: String,
    /// What the model wrote; fits what the tool declares.
    pub arguments: Value,
}

/// A signal of the session's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalTold {
    /// What is said.
    pub signal: Signal,
    /// Of which turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<TurnId>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When, in milliseconds of the session's clock.
    pub at_ms: u64,
}

/// Something is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Trouble {
    /// What, for programs.
    pub code: ErrorCode,
    /// What, for people, with the fix in it where there is one.
    pub message: String,
    /// Whether the socket closes because of it.
    pub fatal: bool,
    /// Where to go instead, with the code `elsewhere`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<Elsewhere>,
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The message is not JSON or MessagePack, or not one of ours.
    BadMessage,
    /// The message is longer than is taken.
    TooLarge,
    /// Audio that is no whole samples.
    OddLength,
    /// Audio that is not in the announced codec.
    BadAudio,
    /// A rate or codec that is not served.
    BadFormat,
    /// A value that makes no sense.
    BadValue,
    /// `hello` did not come first, not in time, or came twice.
    HelloExpected,
    /// There is no such session, or the key is wrong.
    CannotResume,
    /// More messages than a person makes.
    TooManyMessages,
    /// More audio than time has passed.
    TooMuchAudio,
    /// Too many messages were wrong.
    TooManyErrors,
    /// The token was used before, or is not for this.
    Unauthorized,
    /// The session was not opened.
    NotOpened,
    /// There is no room; try again.
    Busy,
    /// The session is to be had elsewhere: connect there.
    Elsewhere,
    /// Nothing was heard of the client, or it did not read, for too long.
    Unresponsive,
    /// Another socket has come for the session.
    Replaced,
}

/// The session is over here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Why.
    pub reason: String,
    /// Where it goes on, if it does: connect there with the token, as to a new session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<Elsewhere>,
}

/// The JSON Schema of both sides' messages.
pub fn schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let client = generator.subschema_for::<ClientMessage>();
    let server = generator.subschema_for::<ServerMessage>();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:rspp:schema:websocket:v1",
        "title": "Messages of rspp.v1, the WebSocket protocol",
        "anyOf": [client.as_value(), server.as_value()],
        "$defs": generator.definitions(),
    })
}
