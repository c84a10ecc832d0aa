//! The two kinds of records: events with a payload, and control signals.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    CancelMode, CancelScope, Emitter, Envelope, EventScope, MediaTime, PayloadClass, SchemaVersion,
    ScopeRule, Signal, Stamp,
    envelope::{envelope_of, with_envelope},
};
use crate::{
    DiscontinuityId, EdgeId, Epoch, EventId, IdempotencyKey, InvocationId, Lane, LeaseToken,
    MergeGroupId, NodeId, Payload, PipelineVersion, Reason, SessionId, SyncDomain, SyncId, TurnId,
    WallClock,
};

/// A span of sequence numbers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SeqRange {
    /// The first.
    pub start: u64,
    /// The last; at least `start`.
    pub end: u64,
}

/// An event on the data or telemetry lane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "FlatEvent")]
pub struct EventRecord {
    /// What it says about itself.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// What it carries; absent when it was redacted or never recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Payload>,
}

/// A signal on the control lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "FlatSignal")]
pub struct ControlSignal {
    /// What it says about itself.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// What is said.
    pub signal: Signal,
    /// Who says it.
    pub emitted_by: Emitter,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// What was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq_range: Option<SeqRange>,
    /// What a cancel reaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<CancelScope>,
    /// How a cancel ends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<CancelMode>,
    /// The lane under pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_lane: Option<Lane>,
    /// Items of credit, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount: Option<u64>,
}

/// Either kind, for what holds both: timelines, batches, the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, try_from = "FlatRecord")]
pub enum Record {
    /// An event on the data or telemetry lane.
    Event(EventRecord),
    /// A signal on the control lane.
    Signal(ControlSignal),
}

impl Record {
    /// What the record says about itself.
    pub fn envelope(&self) -> &Envelope {
        match self {
            Self::Event(event) => &event.envelope,
            Self::Signal(signal) => &signal.envelope,
        }
    }
}

impl From<EventRecord> for Record {
    fn from(event: EventRecord) -> Self {
        Self::Event(event)
    }
}

impl From<ControlSignal> for Record {
    fn from(signal: ControlSignal) -> Self {
        Self::Signal(signal)
    }
}

impl ControlSignal {
    /// A signal on the control lane; in a turn if the stamp is and the signal may be.
    pub fn new(signal: Signal, emitter: Emitter, stamp: Stamp) -> Self {
        let scope = if stamp.turn_id.is_some() && !matches!(signal.scope_rule(), ScopeRule::Session)
        {
            EventScope::Turn
        } else {
            EventScope::Session
        };
        Self {
            envelope: stamp.into_envelope(scope, Lane::Control, PayloadClass::Metadata),
            signal,
            emitted_by: emitter,
            reason: None,
            seq_range: None,
            scope: None,
            mode: None,
            target_lane: None,
            amount: None,
        }
    }

    /// Says why.
    #[must_use]
    pub fn because(mut self, reason: impl Into<Reason>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Says what a cancel reaches.
    #[must_use]
    pub fn scoped(mut self, scope: CancelScope) -> Self {
        self.scope = Some(scope);
        self
    }

    /// Says how a cancel ends what it reaches.
    #[must_use]
    pub fn ending(mut self, mode: CancelMode) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Names the edge and the lane that the signal is about.
    #[must_use]
    pub fn on_edge(mut self, edge: EdgeId, lane: Lane) -> Self {
        self.envelope.edge_id = Some(edge);
        self.target_lane = Some(lane);
        self
    }

    /// Names the node that the signal is about.
    #[must_use]
    pub fn on_node(mut self, node: NodeId) -> Self {
        self.envelope.node_id = Some(node);
        self
    }

    /// Says what was dropped: `start..=end`.
    #[must_use]
    pub fn dropping(mut self, start: u64, end: u64) -> Self {
        self.seq_range = Some(SeqRange { start, end });
        self
    }

    /// Grants so many items of credit.
    #[must_use]
    pub fn granting(mut self, amount: u64) -> Self {
        self.amount = Some(amount);
        self
    }

    /// Names the break and the streams that have to reset at it.
    #[must_use]
    pub fn breaking(mut self, domain: SyncDomain, discontinuity: DiscontinuityId) -> Self {
        self.envelope.sync_domain = Some(domain);
        self.envelope.discontinuity_id = Some(discontinuity);
        self
    }

    /// Names the provider call that the signal is about.
    #[must_use]
    pub fn of_invocation(mut self, invocation: InvocationId) -> Self {
        self.envelope.provider_invocation_id = Some(invocation);
        self
    }

    /// Names the event that led to this signal.
    #[must_use]
    pub fn caused_by(mut self, parent: EventId) -> Self {
        self.envelope.causal_parent_id = Some(parent);
        self
    }
}

impl EventRecord {
    /// An event on `lane`, classed by what its payload is; in a turn if the stamp is.
    pub fn new(stamp: Stamp, lane: Lane, payload: Payload) -> Self {
        let scope = match stamp.turn_id {
            Some(_) => EventScope::Turn,
            None => EventScope::Session,
        };
        Self {
            envelope: stamp.into_envelope(scope, lane, PayloadClass::of(&payload)),
            payload: Some(payload),
        }
    }

    /// Says where in its stream the payload belongs.
    #[must_use]
    pub fn at(mut self, media_time: MediaTime) -> Self {
        self.envelope.media_time = Some(media_time);
        self
    }

    /// Says what the payload reveals, when more is known than its type.
    #[must_use]
    pub fn classed(mut self, class: PayloadClass) -> Self {
        self.envelope.payload_class = class;
        self
    }

    /// Names the node that made the event.
    #[must_use]
    pub fn from_node(mut self, node: NodeId) -> Self {
        self.envelope.node_id = Some(node);
        self
    }

    /// Names the edge that the event rides.
    #[must_use]
    pub fn on_edge(mut self, edge: EdgeId) -> Self {
        self.envelope.edge_id = Some(edge);
        self
    }
}

with_envelope! {
    /// An event on the data or telemetry lane.
    #[derive(Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[schemars(rename = "EventRecord")]
    pub(super) struct FlatEvent {
        /// What it carries; absent when it was redacted or never recorded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        payload: Option<Payload>,
    }
}

impl From<FlatEvent> for EventRecord {
    fn from(flat: FlatEvent) -> Self {
        Self {
            envelope: envelope_of!(flat),
            payload: flat.payload,
        }
    }
}

with_envelope! {
    /// A signal on the control lane.
    #[derive(Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[schemars(rename = "ControlSignal")]
    pub(super) struct FlatSignal {
        /// What is said.
        signal: Signal,
        /// Who says it.
        emitted_by: Emitter,
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<Reason>,
        /// What was dropped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seq_range: Option<SeqRange>,
        /// What a cancel reaches.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scope: Option<CancelScope>,
        /// How a cancel ends it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<CancelMode>,
        /// The lane under pressure.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_lane: Option<Lane>,
        /// Items of credit, at least 1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        amount: Option<u64>,
    }
}

impl From<FlatSignal> for ControlSignal {
    fn from(flat: FlatSignal) -> Self {
        Self {
            envelope: envelope_of!(flat),
            signal: flat.signal,
            emitted_by: flat.emitted_by,
            reason: flat.reason,
            seq_range: flat.seq_range,
            scope: flat.scope,
            mode: flat.mode,
            target_lane: flat.target_lane,
            amount: flat.amount,
        }
    }
}

with_envelope! {
    /// Either kind: read in one pass, then told apart by whether it says a signal.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct FlatRecord {
        #[serde(default)]
        payload: Option<Payload>,
        #[serde(default)]
        signal: Option<Signal>,
        #[serde(default)]
        emitted_by: Option<Emitter>,
        #[serde(default)]
        reason: Option<Reason>,
        #[serde(default)]
        seq_range: Option<SeqRange>,
        #[serde(default)]
        scope: Option<CancelScope>,
        #[serde(default)]
        mode: Option<CancelMode>,
        #[serde(default)]
        target_lane: Option<Lane>,
        #[serde(default)]
        amount: Option<u64>,
    }
}

/// A record that is neither an event nor a signal, but something of both.
#[derive(Debug, thiserror::Error)]
enum Mixed {
    #[error("signal `{0}` without emitted_by")]
    NoEmitter(Signal),
    #[error("signal `{0}` with a payload; a control signal carries none")]
    Payload(Signal),
    #[error("field `{0}` without a signal; only control signals have it")]
    NoSignal(&'static str),
}

impl TryFrom<FlatRecord> for Record {
    type Error = Mixed;

    fn try_from(flat: FlatRecord) -> Result<Self, Mixed> {
        let Some(signal) = flat.signal else {
            let stray = [
                ("emitted_by", flat.emitted_by.is_some()),
                ("reason", flat.reason.is_some()),
                ("seq_range", flat.seq_range.is_some()),
                ("scope", flat.scope.is_some()),
                ("mode", flat.mode.is_some()),
                ("target_lane", flat.target_lane.is_some()),
                ("amount", flat.amount.is_some()),
            ];
            if let Some((field, _)) = stray.into_iter().find(|(_, present)| *present) {
                return Err(Mixed::NoSignal(field));
            }
            return Ok(Self::Event(EventRecord {
                envelope: envelope_of!(flat),
                payload: flat.payload,
            }));
        };
        if flat.payload.is_some() {
            return Err(Mixed::Payload(signal));
        }
        Ok(Self::Signal(ControlSignal {
            signal,
            emitted_by: flat.emitted_by.ok_or(Mixed::NoEmitter(signal))?,
            reason: flat.reason,
            seq_range: flat.seq_range,
            scope: flat.scope,
            mode: flat.mode,
            target_lane: flat.target_lane,
            amount: flat.amount,
            envelope: envelope_of!(flat),
        }))
    }
}
