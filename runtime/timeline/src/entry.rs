//! What a timeline is made of: one entry a fact.

use std::collections::BTreeMap;

use rspp_proto::{
    Epoch, EventType, Lane, Monotonic, NodeId, Payload, PipelineVersion, SessionId, TenantId,
    TurnId, WallClock,
    abi::{
        ControlSignal, DecisionOutcome, Envelope, EventRecord, PayloadClass, SchemaVersion, Signal,
        TurnTransition,
    },
    schema,
    spec::{RecordingLevel, ReplayMode},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    AttemptRecord, CaptureEntry, HandoffRecord, InvocationOutcome, LevelChange,
    OR02_EVIDENCE_SCHEMA_VERSION, OpeningEntry, PlanRecord, Redacted, ToolEntry, TurnBaseline,
};

/// One fact on the timeline. Large ones are boxed: an entry is cheap to move.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// Who recorded what; first in every file.
    Header(Box<FileHeader>),
    /// A turn's frozen plan.
    Plan(Box<PlanEntry>),
    /// A control signal as it was emitted.
    Signal(Box<ControlSignal>),
    /// An event of the data or telemetry lane.
    Event(Box<EventEntry>),
    /// An admission, shedding or authority decision.
    Outcome(Box<DecisionOutcome>),
    /// A step of a turn's state machine.
    Transition(Box<TransitionEntry>),
    /// One attempt at a provider.
    Attempt(Box<AttemptRecord>),
    /// How a provider call ended.
    Invocation(Box<InvocationOutcome>),
    /// A partial result handed to the next stage.
    Handoff(Box<HandoffRecord>),
    /// How much of the reply was heard.
    Playout(Box<PlayoutEntry>),
    /// The recorder holds less, or more again.
    Level(LevelChange),
    /// Detail that was not kept.
    Dropped(DropNote),
    /// A turn's OR-02 evidence.
    Turn(Box<TurnBaseline>),
    /// A line of the session machine's journal, for replay.
    Journal(Box<JournalEntry>),
    /// The recording was closed; last in a whole file.
    Footer(Summary),
    /// A step of a tool call's life.
    Tool(Box<ToolEntry>),
    /// What the session was opened with.
    Opening(Box<OpeningEntry>),
    /// Something from outside, kept for playback; at L2 only.
    Capture(Box<CaptureEntry>),
}

/// How dear an entry is when room runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryClass {
    /// Ends a turn or the recording: has reserved room.
    Terminal,
    /// Evidence that OR-02 asks for: losing it fails the turn (T9).
    Baseline,
    /// What a replay decides from: goes when details are gone, counted.
    Journal,
    /// Goes first, counted.
    Detail,
}

impl EntryClass {
    /// Whether it may not be lost.
    pub(crate) fn is_evidence(self) -> bool {
        match self {
            Self::Terminal | Self::Baseline => true,
            Self::Journal | Self::Detail => false,
        }
    }
}

/// Declares the frame kinds once: number, name, variant.
macro_rules! kinds {
    ($($number:literal $name:literal $variant:ident: $type:ty,)*) => {
        /// The kind of an entry, as frames number it. Numbers are never used again.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum EntryKind {
            $(
                #[doc = concat!("`", $name, "`: see [`Entry::", stringify!($variant), "`].")]
                $variant = $number,
            )*
        }

        impl EntryKind {
            /// All kinds, by number.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The kind with this number; `None` for one of a newer format.
            pub fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The kind's number in frames.
            pub fn number(self) -> u8 {
                self as u8
            }

            /// The kind's name, as filters and reports write it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }

        impl Entry {
            /// What kind of fact this is.
            pub fn kind(&self) -> EntryKind {
                match self { $(Self::$variant(_) => EntryKind::$variant,)* }
            }

            /// The fact as a MessagePack map.
            pub(crate) fn encode(&self) -> Result<Vec<u8>, rmp_serde::encode::Error> {
                match self { $(Self::$variant(inner) => rmp_serde::to_vec_named(inner),)* }
            }

            /// Reads a fact of `kind`.
            pub(crate) fn decode(
                kind: EntryKind,
                payload: &[u8],
            ) -> Result<Self, rmp_serde::decode::Error> {
                Ok(match kind {
                    $(EntryKind::$variant => Self::$variant(read::<$type>(payload)?),)*
                })
            }

            /// The fact as a JSON value, without its kind.
            pub(crate) fn to_json(&self) -> serde_json::Result<serde_json::Value> {
                match self { $(Self::$variant(inner) => serde_json::to_value(inner),)* }
            }
        }
    };
}

kinds! {
    1 "header" Header: Box<FileHeader>,
    2 "plan" Plan: Box<PlanEntry>,
    3 "signal" Signal: Box<ControlSignal>,
    4 "event" Event: Box<EventEntry>,
    5 "outcome" Outcome: Box<DecisionOutcome>,
    6 "transition" Transition: Box<TransitionEntry>,
    7 "attempt" Attempt: Box<AttemptRecord>,
    8 "invocation" Invocation: Box<InvocationOutcome>,
    9 "handoff" Handoff: Box<HandoffRecord>,
    10 "playout" Playout: Box<PlayoutEntry>,
    11 "level" Level: LevelChange,
    12 "dropped" Dropped: DropNote,
    13 "turn" Turn: Box<TurnBaseline>,
    14 "footer" Footer: Summary,
    20 "journal" Journal: Box<JournalEntry>,
    15 "tool" Tool: Box<ToolEntry>,
    21 "opening" Opening: Box<OpeningEntry>,
    22 "capture" Capture: Box<CaptureEntry>,
}

fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, rmp_serde::decode::Error> {
    rmp_serde::from_slice(payload)
}

/// Who recorded what, with what; makes a file explain itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileHeader {
    /// What this is: `rspp-timeline`.
    pub format: String,
    /// The program that wrote it, with its version.
    pub written_by: String,
    /// The Event ABI of its signals and events.
    pub event_abi: SchemaVersion,
    /// SHA-256 over the definitions of that version that the writer had (F-032); absent in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_digest: Option<String>,
    /// The field list of its turns.
    pub or02_evidence_schema_version: String,
    /// Names of the frame kinds by number, for readers without this crate.
    pub kinds: BTreeMap<u8, String>,
    /// The conversation.
    pub session_id: SessionId,
    /// Who is accounted for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<TenantId>,
    /// The pipeline it runs.
    pub pipeline_version: PipelineVersion,
    /// The process that recorded it, as the control plane names it.
    pub runtime: String,
    /// The epoch it was recorded under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority_epoch: Option<Epoch>,
    /// How much it was meant to hold.
    pub recording_level: RecordingLevel,
    /// Which replay made it (F-151); `None` of a call that was held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_mode: Option<ReplayMode>,
    /// When recording began, on the clock of all other times in the file.
    pub started_at: Monotonic,
    /// The same moment on the calendar.
    pub started_wall: WallClock,
}

impl FileHeader {
    /// A header of this build.
    pub fn new(
        session_id: SessionId,
        pipeline_version: PipelineVersion,
        runtime: impl Into<String>,
        recording_level: RecordingLevel,
        started_at: Monotonic,
        started_wall: WallClock,
    ) -> Self {
        let kinds = EntryKind::ALL
            .iter()
            .map(|kind| (kind.number(), kind.as_str().to_owned()));
        Self {
            format: "rspp-timeline".to_owned(),
            written_by: concat!("rspp ", env!("CARGO_PKG_VERSION")).to_owned(),
            event_abi: SchemaVersion::CURRENT,
            schema_digest: Some(schema::DIGEST.to_owned()),
            or02_evidence_schema_version: OR02_EVIDENCE_SCHEMA_VERSION.to_owned(),
            kinds: kinds.collect(),
            session_id,
            tenant_id: None,
            pipeline_version,
            runtime: runtime.into(),
            authority_epoch: None,
            recording_level,
            replay_mode: None,
            started_at,
            started_wall,
        }
    }
}

/// A turn's frozen plan, whole, so that replay can resolve the turn again (F-149).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanEntry {
    /// When it was frozen.
    pub at: Monotonic,
    /// The turn it is for.
    pub turn_id: TurnId,
    /// SHA-256 of the plan.
    pub plan_hash: String,
    /// The plan.
    pub plan: PlanRecord,
}

/// An event as recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventEntry {
    /// The event; its payload may be gone.
    pub record: EventRecord,
    /// What was done to the payload, if anything was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redacted: Option<Redacted>,
}

/// A step of a turn's state machine (lifecycle.md §1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransitionEntry {
    /// When.
    pub at: Monotonic,
    /// Of which turn.
    pub turn_id: TurnId,
    /// From where to where, and why.
    pub step: TurnTransition,
}

/// What the session machine was told, or decided: in order, enough to decide it again (F-140, F-152).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// When.
    pub at: Monotonic,
    /// The line, as the kernel writes it; without the words that were said below level L2.
    pub line: serde_json::Value,
}

/// How much of a reply was heard, by the transport's receipts (P2, P3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlayoutEntry {
    /// When the receipt came.
    pub at: Monotonic,
    /// Of which turn.
    pub turn_id: TurnId,
    /// Audio of this turn played so far, in microseconds of media time.
    pub played_us: u64,
    /// Audio of this turn sent but not played, in microseconds.
    pub pending_us: u64,
    /// Whether playback ended here for good: all played, or cut.
    pub is_final: bool,
}

/// Detail that was not kept since the last note, so that an absence can be told from a loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropNote {
    /// When it was noted.
    pub at: Monotonic,
    /// Details dropped because there was no room.
    pub details: u64,
    /// Bytes they would have taken, estimated.
    pub bytes: u64,
}

/// The recording in numbers; ends a file that was closed properly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// When recording ended: the time of its last entry.
    pub at: Monotonic,
    /// Entries written, without header and footer.
    pub entries: u64,
    /// Turns whose evidence was written.
    pub turns: u64,
    /// Of those, how many were accepted.
    pub accepted_turns: u64,
    /// Of the accepted, how many were complete (gate 5).
    pub complete_turns: u64,
    /// Details left out because the recording level does not hold them.
    pub details_omitted: u64,
    /// Details dropped because there was no room.
    pub details_dropped: u64,
    /// How often the recording level went down.
    pub downgrades: u64,
}

impl Entry {
    /// When it happened, on the node's monotonic clock.
    pub fn at(&self) -> Monotonic {
        match self {
            Self::Header(header) => header.started_at,
            Self::Plan(plan) => plan.at,
            Self::Signal(signal) => Monotonic::from_millis(signal.envelope.runtime_timestamp_ms),
            Self::Event(event) => {
                Monotonic::from_millis(event.record.envelope.runtime_timestamp_ms)
            }
            Self::Outcome(outcome) => Monotonic::from_millis(outcome.runtime_timestamp_ms),
            Self::Transition(step) => step.at,
            Self::Attempt(attempt) => attempt.ended_at,
            Self::Invocation(outcome) => outcome.ended_at,
            Self::Handoff(handoff) => handoff.downstream_started_at,
            Self::Playout(playout) => playout.at,
            Self::Level(change) => change.at,
            Self::Dropped(note) => note.at,
            Self::Turn(turn) => {
                let ends = [turn.turn_close_at, turn.turn_terminal_at, turn.turn_open_at];
                ends.into_iter().flatten().next().unwrap_or_default()
            }
            Self::Footer(summary) => summary.at,
            Self::Journal(line) => line.at,
            Self::Tool(step) => step.at,
            Self::Opening(opening) => opening.at,
            Self::Capture(capture) => capture.at,
        }
    }

    /// The turn it belongs to.
    pub fn turn_id(&self) -> Option<&TurnId> {
        match self {
            Self::Plan(plan) => Some(&plan.turn_id),
            Self::Signal(signal) => signal.envelope.turn_id.as_ref(),
            Self::Event(event) => event.record.envelope.turn_id.as_ref(),
            Self::Outcome(outcome) => outcome.turn_id.as_ref(),
            Self::Transition(step) => Some(&step.turn_id),
            Self::Attempt(attempt) => attempt.turn_id.as_ref(),
            Self::Invocation(outcome) => outcome.turn_id.as_ref(),
            Self::Handoff(handoff) => Some(&handoff.turn_id),
            Self::Playout(playout) => Some(&playout.turn_id),
            Self::Turn(turn) => Some(&turn.turn_id),
            Self::Tool(step) => Some(&step.turn_id),
            Self::Capture(capture) => capture.turn_id.as_ref(),
            Self::Header(_)
            | Self::Opening(_)
            | Self::Level(_)
            | Self::Dropped(_)
            | Self::Journal(_)
            | Self::Footer(_) => None,
        }
    }

    /// The graph node that made it or that it is about.
    pub fn node_id(&self) -> Option<&NodeId> {
        self.envelope()?.node_id.as_ref()
    }

    /// The type of the event; a signal's is `control`.
    pub fn event_type(&self) -> Option<EventType> {
        match self {
            Self::Signal(_) => Some(EventType::Control),
            Self::Event(event) => {
                // Of a payload that is gone, its class still tells what it was.
                let class = event.record.envelope.payload_class;
                let payload = event.record.payload.as_ref();
                payload.map(Payload::event_type).or(match class {
                    PayloadClass::AudioRaw => Some(EventType::Audio),
                    PayloadClass::TextRaw => Some(EventType::Text),
                    PayloadClass::Pii
                    | PayloadClass::Phi
                    | PayloadClass::DerivedSummary
                    | PayloadClass::Metadata => None,
                })
            }
            Self::Header(_)
            | Self::Plan(_)
            | Self::Outcome(_)
            | Self::Transition(_)
            | Self::Attempt(_)
            | Self::Invocation(_)
            | Self::Handoff(_)
            | Self::Playout(_)
            | Self::Level(_)
            | Self::Dropped(_)
            | Self::Turn(_)
            | Self::Journal(_)
            | Self::Tool(_)
            | Self::Opening(_)
            | Self::Capture(_)
            | Self::Footer(_) => None,
        }
    }

    /// The control signal it is.
    pub fn signal(&self) -> Option<Signal> {
        match self {
            Self::Signal(signal) => Some(signal.signal),
            Self::Header(_)
            | Self::Plan(_)
            | Self::Event(_)
            | Self::Outcome(_)
            | Self::Transition(_)
            | Self::Attempt(_)
            | Self::Invocation(_)
            | Self::Handoff(_)
            | Self::Playout(_)
            | Self::Level(_)
            | Self::Dropped(_)
            | Self::Turn(_)
            | Self::Journal(_)
            | Self::Tool(_)
            | Self::Opening(_)
            | Self::Capture(_)
            | Self::Footer(_) => None,
        }
    }

    /// The envelope of a signal or event.
    pub fn envelope(&self) -> Option<&Envelope> {
        match self {
            Self::Signal(signal) => Some(&signal.envelope),
            Self::Event(event) => Some(&event.record.envelope),
            Self::Header(_)
            | Self::Plan(_)
            | Self::Outcome(_)
            | Self::Transition(_)
            | Self::Attempt(_)
            | Self::Invocation(_)
            | Self::Handoff(_)
            | Self::Playout(_)
            | Self::Level(_)
            | Self::Dropped(_)
            | Self::Turn(_)
            | Self::Journal(_)
            | Self::Tool(_)
            | Self::Opening(_)
            | Self::Capture(_)
            | Self::Footer(_) => None,
        }
    }

    /// The lane it rode.
    pub fn lane(&self) -> Option<Lane> {
        self.envelope().map(|envelope| envelope.lane)
    }

    /// How dear it is when room runs out.
    pub fn class(&self) -> EntryClass {
        match self {
            Self::Turn(_) | Self::Footer(_) => EntryClass::Terminal,
            Self::Header(_)
            | Self::Plan(_)
            | Self::Signal(_)
            | Self::Outcome(_)
            | Self::Transition(_)
            | Self::Invocation(_)
            | Self::Playout(_)
            | Self::Level(_)
            | Self::Tool(_)
            | Self::Opening(_)
            | Self::Dropped(_) => EntryClass::Baseline,
            Self::Journal(_) => EntryClass::Journal,
            Self::Event(_) | Self::Attempt(_) | Self::Handoff(_) | Self::Capture(_) => {
                EntryClass::Detail
            }
        }
    }

    /// Bytes it takes while it waits to be written, estimated without encoding it.
    pub(crate) fn weight(&self) -> usize {
        /// An envelope, encoded.
        const ENVELOPE: usize = 512;
        match self {
            Self::Event(event) => {
                ENVELOPE + event.record.payload.as_ref().map_or(0, Payload::weight)
            }
            Self::Signal(_) | Self::Outcome(_) | Self::Header(_) => ENVELOPE,
            Self::Plan(plan) => plan.plan.weight() + ENVELOPE,
            Self::Opening(opening) => {
                json_weight(&opening.pipeline)
                    + json_weight(&opening.settings)
                    + opening.policy.as_deref().map_or(0, json_weight)
                    + opening.attributes.as_ref().map_or(0, json_weight)
                    + ENVELOPE
            }
            Self::Capture(capture) => capture.what.weight() + 128,
            Self::Journal(line) => json_weight(&line.line) + 16,
            Self::Attempt(attempt) => {
                let captured = |text: &Option<String>| text.as_ref().map_or(0, String::len);
                ENVELOPE + captured(&attempt.input_payload) + captured(&attempt.output_payload)
            }
            Self::Tool(step) => {
                let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
                ENVELOPE + text(&step.arguments) + text(&step.result)
            }
            Self::Turn(turn) => {
                let lists = turn.decision_outcomes.len()
                    + turn.invocation_outcomes.len()
                    + turn.nondeterministic_inputs.len();
                (8 + lists) * ENVELOPE
            }
            Self::Transition(_)
            | Self::Invocation(_)
            | Self::Handoff(_)
            | Self::Playout(_)
            | Self::Level(_)
            | Self::Dropped(_)
            | Self::Footer(_) => ENVELOPE / 2,
        }
    }
}

pub(crate) fn json_weight(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len() + 4,
        Value::Array(items) => items.iter().map(json_weight).sum::<usize>() + 4,
        Value::Object(fields) => {
            fields
                .iter()
                .map(|(name, value)| name.len() + json_weight(value))
                .sum::<usize>()
                + 4
        }
    }
}

macro_rules! entry_from {
    ($($type:ty => $variant:ident,)*) => {$(
        impl From<$type> for Entry {
            fn from(inner: $type) -> Self {
                Self::$variant(inner.into())
            }
        }
    )*};
}

entry_from! {
    FileHeader => Header,
    PlanEntry => Plan,
    ControlSignal => Signal,
    EventEntry => Event,
    DecisionOutcome => Outcome,
    TransitionEntry => Transition,
    AttemptRecord => Attempt,
    InvocationOutcome => Invocation,
    HandoffRecord => Handoff,
    PlayoutEntry => Playout,
    LevelChange => Level,
    DropNote => Dropped,
    TurnBaseline => Turn,
    JournalEntry => Journal,
    Summary => Footer,
    ToolEntry => Tool,
    OpeningEntry => Opening,
    CaptureEntry => Capture,
}

impl From<EventRecord> for Entry {
    fn from(record: EventRecord) -> Self {
        EventEntry {
            record,
            redacted: None,
        }
        .into()
    }
}
