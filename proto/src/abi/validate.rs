//! What makes a record well formed. Refuses; never clamps, fills in or guesses.

use std::{borrow::Cow, collections::HashSet};

use super::{
    ControlSignal, Emitter, Envelope, EventRecord, EventScope, Field, MAX_MERGE_SOURCES,
    PayloadClass, Record, SchemaVersion, ScopeRule, Signal, VersionWindow,
};
use crate::{EventId, Lane, Payload, TextChunk};

/// One broken rule: which field, and what it should have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {rule}")]
pub struct AbiViolation {
    /// The field, as a path within the record.
    pub path: Cow<'static, str>,
    /// The rule that it breaks.
    pub rule: AbiRule,
}

/// The rules of event-abi §2, §4 and §5.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AbiRule {
    /// Versions outside the window are not read.
    #[error("version {found} is not read here; {hint}")]
    UnsupportedVersion {
        /// The record's version.
        found: SchemaVersion,
        /// What to do.
        hint: String,
    },
    /// A turn's event names the turn.
    #[error("required when event_scope is turn")]
    RequiredInTurn,
    /// An epoch is required of a turn's events and of control signals.
    #[error("required in a turn and on the control lane")]
    EpochRequired,
    /// Raw audio has a place in its stream.
    #[error("required for raw audio; give sample_index or pts_ms")]
    MediaTimeRequired,
    /// A break is a break of some domain.
    #[error("required with discontinuity_id")]
    DomainRequired,
    /// A list of merged events names the merge.
    #[error("required with merged_from_event_ids")]
    MergeGroupRequired,
    /// A merge has sources, and not too many.
    #[error("names {0} events; a merge names 1 to {MAX_MERGE_SOURCES}")]
    MergeSources(usize),
    /// A source is merged once.
    #[error("names {0:?} twice")]
    MergeSourceRepeated(EventId),
    /// Only a turn's output can be late.
    #[error("needs event_scope turn and a turn_id")]
    LateWithoutTurn,
    /// Events with a payload stay off the control lane.
    #[error("an event is not on the control lane; send a control signal")]
    EventOnControlLane,
    /// Signals ride the control lane.
    #[error("a control signal is on ControlLane, not on {0}")]
    SignalOffControlLane(Lane),
    /// Signals carry nothing of what was said.
    #[error("a control signal is classed metadata, not {0}")]
    SignalNotMetadata(PayloadClass),
    /// What was said is never classed as harmless.
    #[error("{payload} cannot be classed {class}")]
    UnderClassified {
        /// What the event carries.
        payload: &'static str,
        /// What it claims to be.
        class: PayloadClass,
    },
    /// A payload's own bounds.
    #[error("{0}")]
    Payload(&'static str),
    /// Each signal has its emitters.
    #[error("{signal} is said by {}, not by {emitter}", join(signal.emitters()))]
    WrongEmitter {
        /// What was said.
        signal: Signal,
        /// By whom.
        emitter: Emitter,
    },
    /// Some signals speak only of the session, some only of a turn.
    #[error("{signal} cannot be scoped to a {found}")]
    WrongScope {
        /// What was said.
        signal: Signal,
        /// What it was scoped to.
        found: EventScope,
    },
    /// Each signal has its fields.
    #[error("required for {0}")]
    RequiredFor(Signal),
    /// Some fields mean something with one signal only.
    #[error("has no meaning with {0}")]
    MeaninglessWith(Signal),
    /// A span does not run backwards.
    #[error("ends at {end}, before its start {start}")]
    RangeReversed {
        /// The span's first.
        start: u64,
        /// The span's last.
        end: u64,
    },
    /// Credit of nothing is no grant.
    #[error("must be at least 1")]
    AmountZero,
    /// Sequences rise strictly, per session, edge and lane.
    #[error("{found} follows {previous}; it must be greater on one session, edge and lane")]
    OutOfOrder {
        /// The sequence before.
        previous: u64,
        /// The sequence that should be greater.
        found: u64,
    },
    /// The order of the transport holds on an edge.
    #[error("{found} follows {previous}; the transport's order must not go back on an edge")]
    TransportOrder {
        /// The sequence before.
        previous: u64,
        /// The sequence that went back.
        found: u64,
    },
    /// Behind the fence nothing is accepted.
    #[error("{0} after a cancel of its scope was accepted")]
    BehindFence(Signal),
}

fn join(emitters: &[Emitter]) -> String {
    let names: Vec<&str> = emitters.iter().map(|e| e.as_str()).collect();
    names.join(" or ")
}

pub(super) fn broken(path: &'static str, rule: AbiRule) -> AbiViolation {
    AbiViolation {
        path: Cow::Borrowed(path),
        rule,
    }
}

/// Passes if `holds`; otherwise names the field and the rule.
fn require(
    holds: bool,
    path: &'static str,
    rule: impl FnOnce() -> AbiRule,
) -> Result<(), AbiViolation> {
    if holds {
        Ok(())
    } else {
        Err(broken(path, rule()))
    }
}

impl Envelope {
    /// Checks what holds for every record (event-abi §2).
    pub fn validate(&self) -> Result<(), AbiViolation> {
        let in_turn = self.event_scope == EventScope::Turn;
        VersionWindow::CURRENT.check(self.schema_version)?;
        require(!in_turn || self.turn_id.is_some(), "turn_id", || {
            AbiRule::RequiredInTurn
        })?;
        let needs_epoch = in_turn || self.lane == Lane::Control;
        require(
            !needs_epoch || self.authority_epoch.is_some(),
            "authority_epoch",
            || AbiRule::EpochRequired,
        )?;
        let needs_media_time = self.payload_class == PayloadClass::AudioRaw;
        require(
            !needs_media_time || self.media_time.is_some(),
            "media_time",
            || AbiRule::MediaTimeRequired,
        )?;
        require(
            self.discontinuity_id.is_none() || self.sync_domain.is_some(),
            "sync_domain",
            || AbiRule::DomainRequired,
        )?;
        require(
            !self.late_after_cancel || (in_turn && self.turn_id.is_some()),
            "late_after_cancel",
            || AbiRule::LateWithoutTurn,
        )?;
        self.validate_merge()
    }

    fn validate_merge(&self) -> Result<(), AbiViolation> {
        let Some(sources) = &self.merged_from_event_ids else {
            return Ok(());
        };
        require(self.merge_group_id.is_some(), "merge_group_id", || {
            AbiRule::MergeGroupRequired
        })?;
        require(
            (1..=MAX_MERGE_SOURCES).contains(&sources.len()),
            "merged_from_event_ids",
            || AbiRule::MergeSources(sources.len()),
        )?;
        let mut seen = HashSet::with_capacity(sources.len());
        for (index, source) in sources.iter().enumerate() {
            if !seen.insert(source) {
                return Err(AbiViolation {
                    path: format!("merged_from_event_ids[{index}]").into(),
                    rule: AbiRule::MergeSourceRepeated(source.clone()),
                });
            }
        }
        Ok(())
    }
}

impl EventRecord {
    /// Checks the envelope, the lane and the payload.
    pub fn validate(&self) -> Result<(), AbiViolation> {
        require(self.envelope.lane != Lane::Control, "lane", || {
            AbiRule::EventOnControlLane
        })?;
        self.envelope.validate()?;
        let Some(payload) = &self.payload else {
            return Ok(());
        };
        validate_payload(payload)?;
        // A class that is too low would carry speech past redaction.
        let class = self.envelope.payload_class;
        let (holds, name) = match payload {
            Payload::AudioChunk(_) => (
                matches!(
                    class,
                    PayloadClass::AudioRaw | PayloadClass::Pii | PayloadClass::Phi
                ),
                "audio",
            ),
            Payload::Text(_) => (class != PayloadClass::Metadata, "text"),
            Payload::AudioEnd
            | Payload::TextEnd
            | Payload::Speech(_)
            | Payload::Metrics(_)
            | Payload::Debug(_)
            | Payload::Error(_)
            | Payload::Extension(_) => (true, ""),
        };
        require(holds, "payload_class", || AbiRule::UnderClassified {
            payload: name,
            class,
        })
    }
}

fn validate_payload(payload: &Payload) -> Result<(), AbiViolation> {
    match payload {
        Payload::AudioChunk(chunk) => require(
            chunk.format.channels > 0,
            "payload.body.format.channels",
            || AbiRule::Payload("must be at least 1"),
        ),
        Payload::Text(text) => {
            let TextChunk { confidence, .. } = **text;
            require(
                confidence.is_none_or(|c| (0.0..=1.0).contains(&c)),
                "payload.body.confidence",
                || AbiRule::Payload("must be from 0 to 1"),
            )
        }
        Payload::Extension(extension) => {
            require(extension.is_namespaced(), "payload.body.name", || {
                AbiRule::Payload("must be a dotted name, e.g. telephony.dtmf")
            })
        }
        Payload::AudioEnd
        | Payload::TextEnd
        | Payload::Speech(_)
        | Payload::Metrics(_)
        | Payload::Debug(_)
        | Payload::Error(_) => Ok(()),
    }
}

impl ControlSignal {
    /// Checks the envelope and the signal's row of event-abi §4.
    pub fn validate(&self) -> Result<(), AbiViolation> {
        let signal = self.signal;
        let envelope = &self.envelope;
        require(envelope.lane == Lane::Control, "lane", || {
            AbiRule::SignalOffControlLane(envelope.lane)
        })?;
        require(
            envelope.payload_class == PayloadClass::Metadata,
            "payload_class",
            || AbiRule::SignalNotMetadata(envelope.payload_class),
        )?;
        let rule = signal.rule();
        require(
            rule.emitters.contains(&self.emitted_by),
            "emitted_by",
            || AbiRule::WrongEmitter {
                signal,
                emitter: self.emitted_by,
            },
        )?;
        let scope_fits = match rule.scope {
            ScopeRule::Session => envelope.event_scope == EventScope::Session,
            ScopeRule::Turn => envelope.event_scope == EventScope::Turn,
            ScopeRule::Any => true,
        };
        require(scope_fits, "event_scope", || AbiRule::WrongScope {
            signal,
            found: envelope.event_scope,
        })?;
        for field in rule.requires {
            require(self.has(*field), field.as_str(), || {
                AbiRule::RequiredFor(signal)
            })?;
        }
        if let Some(range) = self.seq_range {
            require(
                rule.requires.contains(&Field::SeqRange),
                "seq_range",
                || AbiRule::MeaninglessWith(signal),
            )?;
            require(range.start <= range.end, "seq_range.end", || {
                AbiRule::RangeReversed {
                    start: range.start,
                    end: range.end,
                }
            })?;
        }
        if let Some(amount) = self.amount {
            require(rule.requires.contains(&Field::Amount), "amount", || {
                AbiRule::MeaninglessWith(signal)
            })?;
            require(amount > 0, "amount", || AbiRule::AmountZero)?;
        }
        if self.mode.is_some() {
            require(signal == Signal::Cancel, "mode", || {
                AbiRule::MeaninglessWith(signal)
            })?;
        }
        envelope.validate()
    }

    fn has(&self, field: Field) -> bool {
        match field {
            Field::TurnId => self.envelope.turn_id.is_some(),
            Field::Reason => self.reason.is_some(),
            Field::Scope => self.scope.is_some(),
            Field::EdgeId => self.envelope.edge_id.is_some(),
            Field::TargetLane => self.target_lane.is_some(),
            Field::SyncDomain => self.envelope.sync_domain.is_some(),
            Field::DiscontinuityId => self.envelope.discontinuity_id.is_some(),
            Field::SeqRange => self.seq_range.is_some(),
            Field::Amount => self.amount.is_some(),
        }
    }
}

impl Record {
    /// Checks the event or signal.
    pub fn validate(&self) -> Result<(), AbiViolation> {
        match self {
            Self::Event(event) => event.validate(),
            Self::Signal(signal) => signal.validate(),
        }
    }
}
