//! Stamping, recording and publishing what a session says and does.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{Foreign, SessionSetup, traces::Traces, words::HandedWords};
use crate::{
    admission::scope_of,
    blueprint::Blueprint,
    event::{Event, lane_of},
    observe::{About, Notice, Observed, Observers},
    report::{DeadLetter, TurnReport},
    schedule::Shed,
};
use rspp_actors::Clock;
use rspp_kernel::{
    CancelReason, Emission, LateAction, Part, SessionState,
    admission::{Decision, Load},
    authority::{AuthorityFault, Checkpoint},
    budget::BudgetEvent,
    edge::{EdgeNotice, Lineage, Mark},
    journal::Line,
    plan::ResolvedTurnPlan,
    refused::RefusedMove,
    timebase::Mapping,
    tool::{ToolEnd, ToolEvent, ToolStep},
    turn::Refusal,
};
use rspp_proto::{
    DebugNote, DiscontinuityId, EdgeId, Epoch, ErrorCode, ErrorNote, EventId, EventType,
    IdempotencyKey, InvocationId, Lane, MergeGroupId, MetricSample, Monotonic, NodeId, Payload,
    PipelineVersion, ProviderId, Reason, SampleIndex, SessionId, Speaker, SyncDomain, TextChunk,
    TurnNumber, WallClock,
    abi::{
        ControlSignal, DecisionOutcome, Emitter, EventRecord, EventScope, MediaTime, OutcomeKind,
        OutcomePhase, OutcomeScope, PayloadClass, SeqRange, Signal, Stamp, TurnState,
        TurnTransition, UnknownEvent, UnknownEventAction,
    },
    metric::{Metric, MetricLabel},
    spec::{INGRESS, PressureAction, RecordingLevel},
};
use rspp_timeline::{
    AppendError, AttemptRecord, Entry, EventEntry, HandoffRecord, InvocationOutcome, JournalEntry,
    OpeningEntry, PlanEntry, Recorder, Redaction, ToolEntry, TransitionEntry,
    gates::{AFTER_MS, PROVIDER_ID, SLOW_CANCEL},
};

/// What is about the session as such.
const CONTROL: About<'static> = About {
    kind: EventType::Control,
    node: None,
    signal: None,
};

/// Whether the evidence since the last turn is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kept {
    #[default]
    Whole,
    Lost,
    /// It is not, and the kernel knows.
    Told,
}

/// Stamps, records and publishes.
pub(super) struct Publisher {
    session: SessionId,
    version: PipelineVersion,
    epoch: Epoch,
    /// The epoch under which the placement began.
    placed: Epoch,
    /// The calendar time at the clock's beginning.
    wall_origin_ms: u64,
    ordinal: u64,
    sequence: u64,
    /// Breaks of sync domains so far.
    breaks: u64,
    recorder: Recorder,
    /// Where turns are told of as traces too.
    traces: Option<Traces>,
    kept: Kept,
    /// How much the running plan lets be recorded, and what it takes away of that.
    level: RecordingLevel,
    redaction: Redaction,
    observers: Arc<Observers>,
    /// Where what comes from outside enters, for errors of nobody else's.
    ingress: NodeId,
    /// Where the agent leaves.
    egress: NodeId,
}

impl Publisher {
    pub(super) fn new(setup: &SessionSetup, clock: Clock) -> Self {
        let graph = &setup.blueprint.graph;
        let wall_ms = WallClock::from(SystemTime::now()).0;
        let wall_origin_ms = wall_ms.saturating_sub(clock.now().as_millis() as u64);
        Self {
            traces: Traces::of(setup, WallClock(wall_origin_ms)),
            ingress: graph.node(graph.ingress()).id.clone(),
            egress: graph.node(graph.egress()).id.clone(),
            session: setup.place.lease.session.clone(),
            version: setup.blueprint.spec.version.clone(),
            epoch: setup.place.lease.epoch,
            placed: setup.place.lease.epoch,
            wall_origin_ms,
            ordinal: 0,
            sequence: 0,
            breaks: 0,
            recorder: setup.recorder.clone(),
            kept: Kept::Whole,
            level: RecordingLevel::L0,
            redaction: Redaction::default(),
            observers: Arc::clone(&setup.observers),
        }
    }

    /// The epoch under which the placement began.
    pub(super) fn placed(&self) -> Epoch {
        self.placed
    }

    pub(super) fn rotated(&mut self, epoch: Epoch) {
        self.epoch = epoch;
    }

    fn stamp(&mut self, turn: Option<TurnNumber>, at: Monotonic) -> Stamp {
        self.ordinal += 1;
        self.sequence += 1;
        Stamp {
            session_id: self.session.clone(),
            turn_id: turn.map(TurnNumber::id),
            pipeline_version: self.version.clone(),
            authority_epoch: self.epoch,
            ordinal: self.ordinal,
            runtime_sequence: self.sequence,
            transport_sequence: None,
            at,
            wall: WallClock(self.wall_origin_ms + at.as_millis()),
        }
    }

    /// Keeps an entry. Evidence that cannot be kept is remembered: the turn that it belongs to is not
    /// committed (T9).
    fn record(&mut self, entry: impl Into<Entry>) {
        let kept = self.recorder.append(entry);
        self.remember(kept);
    }

    fn remember(&mut self, kept: Result<(), AppendError>) {
        match (kept, self.kept) {
            (Err(error), Kept::Whole) => {
                tracing::warn!(session_id = %self.session, %error, "evidence was not kept");
                self.kept = Kept::Lost;
            }
            // Said once a turn: what follows is lost with it.
            (Err(_), Kept::Lost | Kept::Told) | (Ok(()), _) => {}
        }
    }

    /// Evidence of the running turn was lost elsewhere.
    pub(super) fn lose(&mut self) {
        self.kept = Kept::Lost;
    }

    /// Whether evidence was lost of which the kernel does not know yet.
    pub(super) fn has_news_of_loss(&mut self) -> bool {
        let is_news = self.kept == Kept::Lost;
        if is_news {
            self.kept = Kept::Told;
        }
        is_news
    }

    /// Whether evidence was lost since the last time of asking.
    pub(super) fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.kept) != Kept::Whole
    }

    fn publish(&self, about: &About<'_>, notice: impl FnOnce() -> Notice) {
        self.observers.publish(about, notice);
    }

    fn say(&mut self, signal: ControlSignal) -> EventId {
        let id = signal.envelope.event_id.clone();
        if let Err(error) = signal.validate() {
            debug_assert!(false, "an invalid signal was made: {error}");
            tracing::error!(session_id = %self.session, %error, "an invalid signal was made");
        }
        let about = About {
            kind: EventType::Control,
            node: signal.envelope.node_id.as_ref(),
            signal: Some(signal.signal),
        };
        self.publish(&about, || Notice::Signal(Box::new(signal.clone())));
        match signal.signal {
            // There is room kept for how a turn ends.
            Signal::Commit | Signal::Abort | Signal::Close => {
                let kept = self.recorder.append_terminal(signal);
                self.remember(kept);
            }
            _can_find_no_room => self.record(signal),
        }
        id
    }

    /// A signal that the kernel decided on.
    pub(super) fn emit(&mut self, emission: &Emission, at: Monotonic) -> EventId {
        let stamp = self.stamp(emission.turn, at);
        let mut signal = ControlSignal::new(emission.signal, emission.emitter, stamp);
        if let Some(reason) = emission.reason {
            signal = signal.because(Reason::from_static(reason));
        }
        if let Some(scope) = emission.scope {
            signal = signal.scoped(scope);
        }
        signal = match &emission.part {
            Some(Part::Node(node)) => signal.on_node(node.clone()),
            Some(Part::Invocation(call)) => signal.of_invocation(call.clone()),
            None => signal,
        };
        if let Some(mode) = emission.mode {
            signal = signal.ending(mode);
        }
        self.say(signal)
    }

    /// A signal that an actor decided on.
    pub(super) fn signal(
        &mut self,
        signal: Signal,
        emitter: Emitter,
        turn: Option<TurnNumber>,
        reason: Option<&str>,
        at: Monotonic,
    ) {
        let stamp = self.stamp(turn, at);
        let mut signal = ControlSignal::new(signal, emitter, stamp);
        if let Some(reason) = reason {
            signal = signal.because(bounded(reason));
        }
        self.say(signal);
    }

    /// A signal that an actor decided on about a node, if it is about one.
    pub(super) fn of_node(
        &mut self,
        signal: Signal,
        emitter: Emitter,
        turn: Option<TurnNumber>,
        node: Option<&NodeId>,
        reason: &str,
        at: Monotonic,
    ) {
        let stamp = self.stamp(turn, at);
        let mut signal = ControlSignal::new(signal, emitter, stamp).because(bounded(reason));
        if let Some(node) = node {
            signal = signal.on_node(node.clone());
        }
        self.say(signal);
    }

    /// How a provider fares, by the call that shows it and the node that asked.
    pub(super) fn of_call(
        &mut self,
        signal: Signal,
        turn: Option<TurnNumber>,
        (node, call): (NodeId, InvocationId),
        reason: &str,
        at: Monotonic,
    ) {
        let by_budget = signal.emitters().contains(&Emitter::BudgetManager);
        let emitter = if by_budget {
            Emitter::BudgetManager
        } else {
            Emitter::ProviderInvocationController
        };
        let stamp = self.stamp(turn, at);
        let signal = ControlSignal::new(signal, emitter, stamp)
            .because(bounded(reason))
            .on_node(node)
            .of_invocation(call);
        self.say(signal);
    }

    /// Words have waited too long on an edge (F-045).
    pub(super) fn edge_budget(
        &mut self,
        turn: Option<TurnNumber>,
        edge: &EdgeId,
        event: &BudgetEvent,
        at: Monotonic,
    ) {
        for signal in event.signals() {
            let stamp = self.stamp(turn, at);
            let signal = ControlSignal::new(signal, Emitter::BudgetManager, stamp)
                .on_edge(edge.clone(), Lane::Data)
                .because(Reason::from_static(event.key.as_str()));
            self.say(signal);
        }
    }

    /// What an edge reports, as the signals that stand for it (event-abi.md §4).
    pub(super) fn edge(
        &mut self,
        turn: Option<TurnNumber>,
        edge: &EdgeId,
        lane: Lane,
        notice: &EdgeNotice,
        at: Monotonic,
    ) {
        match notice {
            EdgeNotice::Merge { lineage, unnamed } => {
                self.merged(turn, edge, lane, lineage, *unnamed, at);
                return;
            }
            // For the other edges of the domain; here its drop notices say it.
            EdgeNotice::GroupLost { .. }
            // Said by who takes over, if somebody does.
            | EdgeNotice::Act(PressureAction::Fallback) => return,
            EdgeNotice::Watermark { .. }
            | EdgeNotice::Act(PressureAction::Degrade)
            | EdgeNotice::FlowXoff
            | EdgeNotice::FlowXon
            | EdgeNotice::Credit { .. }
            | EdgeNotice::Drop { .. }
            | EdgeNotice::Discontinuity { .. } => {}
        }
        let breaks = self.breaks + 1;
        let stamp = self.stamp(turn, at);
        let make = |signal, emitter| {
            ControlSignal::new(signal, emitter, stamp).on_edge(edge.clone(), lane)
        };
        let signal = match notice {
            EdgeNotice::Watermark { mark, .. } => make(Signal::Watermark, Emitter::WatermarkEngine)
                .because(Reason::from_static(match mark {
                    Mark::Items | Mark::Millis => "edge_watermark_high",
                    Mark::Lane => "lane_queue_high_watermark",
                })),
            EdgeNotice::Act(PressureAction::Degrade) => {
                make(Signal::Degrade, Emitter::WatermarkEngine)
                    .because(Reason::from_static("edge_watermark_high"))
            }
            EdgeNotice::FlowXoff => make(Signal::FlowXoff, Emitter::FlowControl)
                .because(Reason::from_static("backpressure_asserted")),
            EdgeNotice::FlowXon => make(Signal::FlowXon, Emitter::FlowControl),
            EdgeNotice::Credit { amount } => {
                make(Signal::CreditGrant, Emitter::FlowControl).granting(*amount)
            }
            EdgeNotice::Drop { range, reason, .. } => {
                make(Signal::DropNotice, Emitter::EdgeBufferManager)
                    .because(Reason::from_static(match lane {
                        Lane::Telemetry => "telemetry_best_effort_drop",
                        Lane::Control | Lane::Data => reason.signal_reason(),
                    }))
                    .dropping(range.start, range.end)
            }
            EdgeNotice::Discontinuity { domain, reason, .. } => {
                self.breaks = breaks;
                let id = format!("dsc/{domain}/{breaks:06}");
                let Ok(id) = DiscontinuityId::new(id) else {
                    return; // Longer than any id may be.
                };
                make(Signal::Discontinuity, Emitter::SyncIntegrity)
                    .because(Reason::from_static(reason.as_str()))
                    .breaking(domain.clone(), id)
            }
            EdgeNotice::Act(PressureAction::Fallback)
            | EdgeNotice::GroupLost { .. }
            | EdgeNotice::Merge { .. } => return,
        };
        self.say(signal);
    }

    /// What a merged event was made of (ML-002). The event itself stays on its edge.
    fn merged(
        &mut self,
        turn: Option<TurnNumber>,
        edge: &EdgeId,
        lane: Lane,
        lineage: &Lineage,
        unnamed: u64,
        at: Monotonic,
    ) {
        let span = lineage.span();
        let turn_id = turn.map(TurnNumber::id);
        let ids = lineage.sources().iter().map(|source| match &source.event {
            Some(id) => id.clone(),
            None => EventId::on_edge(&self.session, turn_id.as_ref(), edge, source.sequence),
        });
        let ids: Vec<EventId> = ids.collect();
        let group = format!("mrg/{edge}/{:06}-{:06}", span.start, span.end);
        let scope = match turn {
            Some(_) => EventScope::Turn,
            None => EventScope::Session,
        };
        let stamp = self.stamp(turn, at);
        let mut envelope = stamp.into_envelope(scope, lane, PayloadClass::Metadata);
        envelope.edge_id = Some(edge.clone());
        envelope.merge_group_id = MergeGroupId::new(group).ok();
        envelope.merged_from_event_ids = Some(ids);
        self.event_record(EventRecord {
            envelope,
            payload: None,
        });
        if unnamed > 0 {
            // More than can be named: the span stands for the rest.
            let stamp = self.stamp(turn, at);
            let signal = ControlSignal::new(Signal::DropNotice, Emitter::EdgeBufferManager, stamp)
                .on_edge(edge.clone(), lane)
                .because(Reason::from_static("merge_sources_not_named"))
                .dropping(span.start, span.end);
            self.say(signal);
        }
    }

    /// Says an event to who wants to hear it.
    fn show(&self, record: &EventRecord) {
        let about = About {
            // What was merged is a measurement of the edge.
            kind: record
                .payload
                .as_ref()
                .map_or(EventType::Metrics, Payload::event_type),
            node: record.envelope.node_id.as_ref(),
            signal: None,
        };
        self.publish(&about, || Notice::Event(Box::new(record.clone())));
    }

    /// An edge is held back or let go for another reason than its own fill.
    pub(super) fn flow(
        &mut self,
        signal: Signal,
        turn: TurnNumber,
        edge: &EdgeId,
        reason: &str,
        at: Monotonic,
    ) {
        let stamp = self.stamp(Some(turn), at);
        let signal = ControlSignal::new(signal, Emitter::FlowControl, stamp)
            .on_edge(edge.clone(), Lane::Data)
            .because(bounded(reason));
        self.say(signal);
    }

    /// Something came for a turn that is over, and this became of it (T11). After its terminal only
    /// telemetry is of a turn (lifecycle.md §4, 12).
    pub(super) fn late(&mut self, turn: TurnNumber, action: LateAction, at: Monotonic) {
        let note = DebugNote {
            message: "late_event_of_closed_turn".to_owned(),
            fields: [("action".to_owned(), action.as_str().to_owned())].into(),
        };
        let stamp = self.stamp(Some(turn), at);
        let payload = Payload::Debug(Box::new(note));
        self.event_record(EventRecord::new(stamp, Lane::Telemetry, payload));
    }

    fn event_record(&mut self, record: EventRecord) {
        self.show(&record);
        let entry = EventEntry {
            record,
            redacted: None,
        };
        self.record(entry);
    }

    /// The user's words of an utterance so far.
    pub(super) fn transcript(&mut self, segment: u32, text: &str, is_final: bool, at: Monotonic) {
        self.text(None, Speaker::User, segment, text, is_final, at);
    }

    /// A clause of the agent.
    pub(super) fn agent_text(&mut self, turn: TurnNumber, segment: u32, text: &str, at: Monotonic) {
        self.text(Some(turn), Speaker::Agent, segment, text, true, at);
    }

    fn text(
        &mut self,
        turn: Option<TurnNumber>,
        speaker: Speaker,
        segment: u32,
        text: &str,
        is_final: bool,
        at: Monotonic,
    ) {
        let chunk = TextChunk {
            is_final,
            ..TextChunk::whole(speaker, segment, text)
        };
        let stamp = self.stamp(turn, at);
        let payload = Payload::Text(Box::new(chunk));
        self.event_record(EventRecord::new(stamp, Lane::Data, payload));
    }

    /// Something that nobody downstream of a node asked for, or a copy for who listens in. Copies,
    /// measurements and debug notes are for them alone: the timeline holds what was decided.
    pub(super) fn observed(&mut self, observed: Observed) {
        let Observed {
            node,
            edge,
            event,
            copied,
        } = observed;
        let stamp = self.stamp(event.stamp.turn, event.stamp.made);
        let lane = if copied {
            lane_of(&event.payload)
        } else {
            Lane::Telemetry
        };
        let kind = event.payload.event_type();
        let mut record = EventRecord::new(stamp, lane, event.payload)
            .at(media_time(event.stamp.media))
            .from_node(node);
        if let Some(edge) = edge {
            record = record.on_edge(edge);
        }
        if let Some(tags) = &event.tags {
            record.envelope.sync_id.clone_from(&tags.sync_id);
            record.envelope.sync_domain.clone_from(&tags.sync_domain);
        }
        // What a debugging session has to say of each event, and what a session measures of itself, is kept
        // where everything is.
        let is_fine = kind == EventType::Debug || is_own_measurement(&record);
        if copied || is_fine && self.recorder.level() < RecordingLevel::L2 {
            self.show(&record);
        } else {
            self.event_record(record);
        }
    }

    /// A choice that a node made (F-006, F-018): an audit event, said whether or not the session
    /// debugs.
    pub(super) fn note(
        &mut self,
        turn: Option<TurnNumber>,
        node: &NodeId,
        message: &str,
        fields: &[(&str, &str)],
        at: Monotonic,
    ) {
        let fields = fields.iter();
        let note = DebugNote {
            message: message.to_owned(),
            fields: fields
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let stamp = self.stamp(turn, at);
        let payload = Payload::Debug(Box::new(note));
        let record = EventRecord::new(stamp, Lane::Telemetry, payload).from_node(node.clone());
        self.event_record(record);
    }

    /// How long a node took to hear of a cancel (F-036, NF-003).
    pub(super) fn acknowledged(
        &mut self,
        turn: Option<TurnNumber>,
        node: &NodeId,
        (reason, after, is_forced): (CancelReason, Duration, bool),
        at: Monotonic,
    ) {
        let forced = if is_forced { "yes" } else { "no" };
        let labels = [
            (MetricLabel::NodeId, node.as_str()),
            (MetricLabel::PipelineVersion, self.version.as_str()),
            (MetricLabel::Reason, reason.as_str()),
            (MetricLabel::Forced, forced),
        ];
        let sample = MetricSample::of(Metric::CancelAck, after.as_secs_f64() * 1e3, labels);
        let stamp = self.stamp(turn, at);
        let payload = Payload::Metrics(Box::new(sample));
        let record = EventRecord::new(stamp, Lane::Telemetry, payload).from_node(node.clone());
        self.event_record(record);
    }

    /// A node, or whoever serves it, took longer than it may to let go of cancelled work.
    pub(super) fn slow_cancel(
        &mut self,
        turn: Option<TurnNumber>,
        node: &NodeId,
        provider: Option<&ProviderId>,
        (after, is_forced): (Duration, bool),
        at: Monotonic,
    ) {
        let forced = if is_forced { "yes" } else { "no" };
        let mut fields = vec![
            (AFTER_MS, after.as_millis().to_string()),
            ("forced", forced.to_owned()),
        ];
        fields.extend(provider.map(|provider| (PROVIDER_ID, provider.to_string())));
        fields.extend(turn.map(|turn| ("turn", turn.to_string())));
        let record = self.remark(SLOW_CANCEL, &fields, at);
        self.event_record(record.from_node(node.clone()));
    }

    /// What became of a guess; it belongs to no turn unless it becomes one (P9).
    pub(super) fn guess(
        &mut self,
        turn: TurnNumber,
        message: &str,
        fields: &[(&str, &str)],
        at: Monotonic,
    ) {
        let fields = fields.iter();
        let fields = fields.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let note = DebugNote {
            message: message.to_owned(),
            fields: fields
                .chain([("provisional_turn".to_owned(), turn.to_string())])
                .collect(),
        };
        let stamp = self.stamp(None, at);
        let payload = Payload::Debug(Box::new(note));
        self.event_record(EventRecord::new(stamp, Lane::Telemetry, payload));
    }

    /// A measurement of the session (F-026).
    pub(super) fn metric(&mut self, name: &str, value: f64, at: Monotonic) {
        let sample = MetricSample {
            name: name.to_owned(),
            value,
            labels: BTreeMap::new(),
        };
        let stamp = self.stamp(None, at);
        let payload = Payload::Metrics(Box::new(sample));
        self.event_record(EventRecord::new(stamp, Lane::Telemetry, payload));
    }

    /// A node's failure (F-131).
    pub(super) fn error(
        &mut self,
        turn: Option<TurnNumber>,
        node: &NodeId,
        error_code: ErrorCode,
        message: &str,
        at: Monotonic,
    ) {
        let note = ErrorNote {
            error_code,
            node_id: Some(node.clone()),
            message: message.to_owned(),
            retryable: error_code.is_retryable(),
        };
        let stamp = self.stamp(turn, at);
        let payload = Payload::Error(Box::new(note));
        let record = EventRecord::new(stamp, Lane::Telemetry, payload).from_node(node.clone());
        self.event_record(record);
    }

    /// An event that a node could not deal with: the event, as far as the level lets it be seen, then
    /// an error that it is the cause of.
    pub(super) fn dead_letter(
        &mut self,
        turn: Option<TurnNumber>,
        node: &NodeId,
        event: Event,
        reason: &str,
        at: Monotonic,
    ) -> DeadLetter {
        let stamp = self.stamp(turn, at);
        let media = media_time(event.stamp.media);
        let mut record = EventRecord::new(stamp, Lane::Telemetry, event.payload)
            .at(media)
            .from_node(node.clone());
        let event_id = record.envelope.event_id.clone();
        let redacted = self.redaction.apply(&mut record, self.level);
        self.show(&record);
        let mut kept = record.clone();
        if redacted.is_some() {
            // What stands in for a payload may be more than the level holds; that there was an event
            // is held at every level.
            kept.payload = None;
        }
        self.record(EventEntry {
            record: kept,
            redacted: redacted.clone(),
        });
        let note = ErrorNote {
            error_code: ErrorCode::RuntimeInternalError,
            node_id: Some(node.clone()),
            message: format!("dead letter: {reason}"),
            retryable: false,
        };
        let stamp = self.stamp(turn, at);
        let payload = Payload::Error(Box::new(note));
        let mut verdict = EventRecord::new(stamp, Lane::Telemetry, payload).from_node(node.clone());
        verdict.envelope.causal_parent_id = Some(event_id.clone());
        self.event_record(verdict);
        DeadLetter {
            event_id,
            node: node.clone(),
            turn_id: turn.map(TurnNumber::id),
            reason: reason.to_owned(),
            at,
            event: record,
            redacted,
        }
    }

    pub(super) fn transition(&mut self, turn: TurnNumber, step: TurnTransition, at: Monotonic) {
        let turn_id = turn.id();
        let entry = TransitionEntry { at, turn_id, step };
        match step.to_state {
            // There is room kept for how a turn ends.
            TurnState::Terminal | TurnState::Closed => {
                let kept = self.recorder.append_terminal(entry);
                self.remember(kept);
            }
            TurnState::Idle | TurnState::Opening | TurnState::Active => self.record(entry),
        }
    }

    /// How the session was let in (RK-25).
    pub(super) fn entered(&mut self, decision: Decision, at: Monotonic) {
        let reason = Reason::from_static("admission_capacity_allow");
        let scope = scope_of(decision);
        let outcome = self.pre_turn(
            OutcomeKind::Admit,
            Emitter::LocalAdmission,
            reason,
            scope,
            at,
        );
        self.record(outcome);
    }

    /// On which terms the control plane let the session in (CP-05).
    pub(super) fn let_in(&mut self, reason: Reason, scope: OutcomeScope, at: Monotonic) {
        let emitter = Emitter::ControlPlaneAdmission;
        let outcome = self.pre_turn(OutcomeKind::Admit, emitter, reason, scope, at);
        self.record(outcome);
    }

    /// The degrade posture is in force from this turn on, or no longer (F-048).
    pub(super) fn posture(&mut self, turn: TurnNumber, on: bool, load: Load, at: Monotonic) {
        let posture = if on { "on" } else { "off" };
        self.capacity(
            Some(turn),
            &[("posture", posture), ("load", load.as_str())],
            at,
        );
    }

    /// Something about the node's capacity that a session has to do with (F-172).
    fn capacity(&mut self, turn: Option<TurnNumber>, fields: &[(&str, &str)], at: Monotonic) {
        let note = DebugNote {
            message: "capacity_control".to_owned(),
            fields: fields
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let stamp = self.stamp(turn, at);
        let payload = Payload::Debug(Box::new(note));
        self.event_record(EventRecord::new(stamp, Lane::Telemetry, payload));
    }

    /// Work that was shed where it is scheduled (RK-25).
    pub(super) fn shed(
        &mut self,
        turn: Option<TurnNumber>,
        node: Option<&NodeId>,
        shed: Shed,
        at: Monotonic,
    ) -> DecisionOutcome {
        let stamp = self.stamp(turn, at);
        let mut signal = ControlSignal::new(Signal::Shed, Emitter::LocalAdmission, stamp)
            .because(Reason::from_static(shed.reason));
        if let Some(node) = node {
            signal = signal.on_node(node.clone());
        }
        self.say(signal);
        let outcome = DecisionOutcome::new(
            OutcomeKind::Shed,
            OutcomePhase::SchedulingPoint,
            shed.point,
            Emitter::LocalAdmission,
            Reason::from_static(shed.reason),
            self.stamp(turn, at),
        );
        self.record(outcome.clone());
        outcome
    }

    /// An intent that did not become a turn.
    pub(super) fn refused(&mut self, refusal: Refusal, decision: Decision, at: Monotonic) {
        let (kind, emitter) = match refusal {
            Refusal::Defer(_) => (OutcomeKind::Defer, Emitter::LocalAdmission),
            Refusal::Reject(_) => (OutcomeKind::Reject, Emitter::LocalAdmission),
            Refusal::StaleEpoch => (OutcomeKind::StaleEpochReject, Emitter::ContractGuard),
            Refusal::Deauthorized => (OutcomeKind::DeauthorizedDrain, Emitter::ContractGuard),
        };
        let reason = Reason::from_static(refusal.as_str());
        let scope = scope_of(decision);
        let outcome = self.pre_turn(kind, emitter, reason, scope, at);
        self.record(outcome);
        if refusal == Refusal::StaleEpoch {
            let (node, code) = (self.ingress.clone(), ErrorCode::AuthorityEpochMismatch);
            let message = "this placement's lease was replaced; the turn does not open";
            self.error(None, &node, code, message, at);
        }
        if let Some(cause) = decision.cause {
            let wait = decision.verdict.retry_after().unwrap_or_default();
            let wait = wait.as_millis().to_string();
            let mut fields = vec![
                ("limit", cause.limit.as_str()),
                ("whose", cause.whose.as_str()),
            ];
            if decision.verdict.retry_after().is_some() {
                fields.push(("retry_after_ms", &wait));
            }
            self.capacity(None, &fields, at);
        }
    }

    /// The admission of a turn, as its evidence keeps it.
    pub(super) fn admission(
        &mut self,
        turn: TurnNumber,
        at: Monotonic,
    ) -> (DecisionOutcome, Stamp) {
        let reason = Reason::from_static("admission_capacity_allow");
        let kind = OutcomeKind::Admit;
        let stamp = self.stamp(Some(turn), at);
        let (phase, scope) = (OutcomePhase::PreTurn, OutcomeScope::Turn);
        let outcome =
            DecisionOutcome::new(kind, phase, scope, Emitter::LocalAdmission, reason, stamp);
        self.record(outcome.clone());
        let stamp = self.stamp(Some(turn), at);
        (outcome, stamp)
    }

    /// A decision about a session or its tenant, before any turn.
    fn pre_turn(
        &mut self,
        kind: OutcomeKind,
        emitter: Emitter,
        reason: Reason,
        scope: OutcomeScope,
        at: Monotonic,
    ) -> DecisionOutcome {
        let stamp = self.stamp(None, at);
        DecisionOutcome::new(kind, OutcomePhase::PreTurn, scope, emitter, reason, stamp)
    }

    /// What the session was opened with.
    pub(super) fn opened(&mut self, mut opening: OpeningEntry, at: Monotonic) {
        opening.at = at;
        self.record(opening);
    }

    pub(super) fn plan(
        &mut self,
        turn: TurnNumber,
        plan: &ResolvedTurnPlan,
        blueprint: &Blueprint,
        at: Monotonic,
    ) {
        self.level = plan.recording_policy.recording_level;
        self.redaction = Redaction::of(&plan.recording_policy);
        if !self.recorder.is_recording() {
            return;
        }
        match blueprint.record(plan) {
            Ok(record) => self.record(PlanEntry {
                at,
                turn_id: turn.id(),
                plan_hash: plan.plan_hash.clone(),
                plan: record,
            }),
            Err(error) => tracing::error!(%error, "a plan could not be written down"),
        }
    }

    /// Text that went on before all of it was there (turn-plan.md §7).
    pub(super) fn handed_over(
        &mut self,
        stage: &str,
        turn: TurnNumber,
        edge: &EdgeId,
        words: HandedWords,
    ) {
        self.record(HandoffRecord {
            handoff_id: format!("{}-{stage}-r{}", turn.id(), words.revision),
            turn_id: turn.id(),
            edge_id: edge.clone(),
            upstream_revision: words.revision,
            action: words.action,
            partial_accepted_at: words.accepted,
            downstream_started_at: words.started,
            queue_depth: u32::try_from(words.pending).unwrap_or(u32::MAX),
            watermark_high: words.is_full,
        });
    }

    /// A step of a tool call's life (P7).
    pub(super) fn tool(&mut self, step: &ToolStep, at: Monotonic) {
        let turn_id = step.turn.id();
        let mut entry = ToolEntry {
            at,
            session_id: self.session.clone(),
            authority_epoch: self.epoch,
            call_id: step.call.to_string(),
            idempotency_key: IdempotencyKey::of_tool(
                &self.session,
                self.placed,
                &turn_id,
                &step.call,
            ),
            turn_id,
            tool: step.tool.to_string(),
            step: recorded(&step.what),
            attempts: 0,
            arguments: None,
            result: None,
        };
        match &step.what {
            ToolEvent::Requested { arguments, .. } => {
                entry.arguments = Some(arguments.to_string());
            }
            ToolEvent::Ended {
                content, attempts, ..
            } => {
                entry.attempts = *attempts;
                entry.result = Some(content.to_string());
            }
            ToolEvent::Late { content } => entry.result = Some(content.to_string()),
            ToolEvent::Began
            | ToolEvent::Detached
            | ToolEvent::ActionCommitted(_)
            | ToolEvent::ActionRefused(_) => {}
        }
        if let Some(traces) = &mut self.traces {
            traces.tool(&entry);
        }
        self.record(entry);
    }

    /// What the session's turns are told of as, beside their evidence.
    pub(super) fn traces(&mut self) -> Option<&mut Traces> {
        self.traces.as_mut()
    }

    pub(super) fn attempt(&mut self, attempt: &AttemptRecord) {
        if let Some(traces) = &mut self.traces {
            traces.attempt(attempt);
        }
        self.record(attempt.clone());
    }

    /// A line for replay. Words are kept where the recording keeps them as they were said (F-073, F-153).
    pub(super) fn journal(&mut self, at: Monotonic, line: Line) {
        let line = if self.recorder.keeps_words() {
            line
        } else {
            line.without_words()
        };
        match serde_json::to_value(line) {
            Ok(line) => self.record(JournalEntry { at, line }),
            Err(error) => {
                tracing::error!(%error, "a line of the journal could not be written down");
            }
        }
    }

    pub(super) fn invocation(&mut self, outcome: InvocationOutcome) {
        self.record(outcome);
    }

    /// Something under another epoch was refused: a diagnostic that changes no turn (T12).
    pub(super) fn stale(
        &mut self,
        fault: AuthorityFault,
        checkpoint: Checkpoint,
        turn: Option<TurnNumber>,
        at: Monotonic,
    ) {
        match fault {
            AuthorityFault::Stale { .. } | AuthorityFault::WithoutLease { .. } => {}
            // Lost authority is told where it was lost; what it refuses after that is only counted.
            AuthorityFault::Revoked { .. } => return,
        }
        let reason = fault.reason(turn.is_some());
        self.signal(
            fault.signal(),
            Emitter::ContractGuard,
            None,
            Some(reason),
            at,
        );
        let (scope, node) = match checkpoint {
            Checkpoint::Ingress => (OutcomeScope::EdgeEnqueue, &self.ingress),
            // A whole turn is not dispatched: it begins where what was said came in.
            Checkpoint::Dispatch => (OutcomeScope::NodeDispatch, &self.ingress),
            Checkpoint::Egress => (OutcomeScope::EdgeDequeue, &self.egress),
        };
        let (node, message) = (node.clone(), fault.to_string());
        self.error(turn, &node, ErrorCode::AuthorityEpochMismatch, &message, at);
        let stamp = self.stamp(turn, at);
        let outcome = DecisionOutcome::new(
            OutcomeKind::StaleEpochReject,
            OutcomePhase::SchedulingPoint,
            scope,
            Emitter::ContractGuard,
            Reason::from_static(reason),
            stamp,
        );
        self.record(outcome);
    }

    /// The session was to move to an epoch that is not the one in force: it stays where it is (F-156, T12).
    pub(super) fn rotation_refused(&mut self, held: Epoch, offered: Epoch, at: Monotonic) {
        let fault = AuthorityFault::of(Some(held), offered);
        self.signal(
            fault.signal(),
            Emitter::ContractGuard,
            None,
            Some(fault.reason(false)),
            at,
        );
        let (node, message) = (self.ingress.clone(), fault.to_string());
        self.error(None, &node, ErrorCode::AuthorityEpochMismatch, &message, at);
    }

    /// Somebody asked for a move that cannot be made: nothing changed (F-138, F-139, F-141).
    pub(super) fn move_refused(&mut self, refused: RefusedMove, at: Monotonic) {
        let mut fields = vec![
            ("code", refused.code().to_owned()),
            ("stands", refused.stands().to_owned()),
            ("asked", refused.asked().to_owned()),
        ];
        fields.extend(refused.turn().map(|turn| ("turn", turn.to_string())));
        let record = self.remark("move_refused", &fields, at);
        self.event_record(record);
    }

    /// The store has refused a durable write of a node's: this placement was replaced (T12).
    pub(super) fn stale_write(&mut self, node: &NodeId, at: Monotonic) {
        self.signal(
            Signal::StaleEpochReject,
            Emitter::ContractGuard,
            None,
            Some("authority_epoch_mismatch"),
            at,
        );
        let message = "the store holds a newer lease; the write was refused";
        self.error(None, node, ErrorCode::AuthorityEpochMismatch, message, at);
    }

    /// An event was sent under a key for the first time: the id by which its repetitions name it.
    pub(super) fn first_of(&mut self, key: &IdempotencyKey, at: Monotonic) -> EventId {
        let mut record = self.remark("client_event", &[], at);
        record.envelope.idempotency_key = Some(key.clone());
        let id = record.envelope.event_id.clone();
        self.event_record(record);
        id
    }

    /// The placement before this one has left word of what it did.
    pub(super) fn took_over(&mut self, fields: &[(&str, String)], at: Monotonic) {
        let record = self.remark("succession", fields, at);
        self.event_record(record);
    }

    /// An event was sent again under the same key, and had no effect.
    pub(super) fn repeated(
        &mut self,
        key: &IdempotencyKey,
        first: EventId,
        times: u64,
        at: Monotonic,
    ) {
        let mut record = self.remark("duplicate_event", &[("times", times.to_string())], at);
        record.envelope.idempotency_key = Some(key.clone());
        record.envelope.causal_parent_id = Some(first);
        self.event_record(record);
    }

    /// A provider call was reported again under the same id, and counts once.
    pub(super) fn repeated_call(&mut self, call: &InvocationId, at: Monotonic) {
        let mut record = self.remark("duplicate_invocation", &[], at);
        record.envelope.provider_invocation_id = Some(call.clone());
        self.event_record(record);
    }

    /// Something came in that is not what it should be.
    pub(super) fn malformed(&mut self, message: &str, at: Monotonic) {
        let (node, code) = (self.ingress.clone(), ErrorCode::SchemaValidationError);
        self.error(None, &node, code, bounded(message).as_str(), at);
    }

    /// The audit of an event of an unknown type, and the event itself if it is passed through.
    pub(super) fn foreign(&mut self, foreign: Foreign, at: Monotonic) {
        let UnknownEvent {
            envelope,
            payload_type,
            bytes,
            action,
        } = &foreign.audit;
        let action = match action {
            UnknownEventAction::Drop => "drop",
            UnknownEventAction::PassThrough => "pass_through",
            UnknownEventAction::Reject => "reject",
        };
        let fields = [
            ("payload_type", bounded(payload_type).to_string()),
            ("bytes", bytes.to_string()),
            ("action", action.to_owned()),
        ];
        let mut record = self.remark("unknown_event", &fields, at);
        record.envelope.causal_parent_id = Some(envelope.event_id.clone());
        self.event_record(record);
        if foreign.raw.is_some() {
            let about = About {
                kind: EventType::Debug,
                ..CONTROL
            };
            self.publish(&about, || Notice::Foreign(Box::new(foreign)));
        }
    }

    /// The user's audio broke off: whoever decodes it with a memory has to begin anew.
    pub(super) fn discontinuity(&mut self, reason: &'static str, at: Monotonic) {
        let stamp = self.stamp(None, at);
        let id = format!("dsc/{}", stamp.event_id());
        let (Ok(domain), Ok(id)) = (SyncDomain::new(INGRESS), DiscontinuityId::new(id)) else {
            return; // Ids are longer than they may be: so is the session's own.
        };
        let signal = ControlSignal::new(Signal::Discontinuity, Emitter::SyncIntegrity, stamp)
            .because(Reason::from_static(reason))
            .breaking(domain, id);
        self.say(signal);
    }

    /// How well media time is told from the runtime's clock, where that has become another matter
    /// (NF-018).
    pub(super) fn mapping(&mut self, mapping: Mapping, bound_ms: u64, at: Monotonic) {
        let verdict = if mapping.within { "within" } else { "beyond" };
        let fields = [
            ("p99_ms", mapping.p99_ms.to_string()),
            ("max_p99_ms", bound_ms.to_string()),
            ("verdict", verdict.to_owned()),
        ];
        let record = self.remark(Metric::MappingError.as_str(), &fields, at);
        self.event_record(record);
    }

    /// Output that was too old to be played (P23).
    pub(super) fn aged(&mut self, turn: TurnNumber, edge: EdgeId, range: SeqRange, at: Monotonic) {
        let stamp = self.stamp(Some(turn), at);
        let signal = ControlSignal::new(Signal::DropNotice, Emitter::EdgeBufferManager, stamp)
            .on_edge(edge, Lane::Data)
            .because(Reason::from_static("queue_pressure_drop"))
            .dropping(range.start, range.end);
        self.say(signal);
    }

    fn remark(&mut self, message: &str, fields: &[(&str, String)], at: Monotonic) -> EventRecord {
        let fields = fields.iter();
        let note = DebugNote {
            message: message.to_owned(),
            fields: fields
                .map(|(key, value)| ((*key).to_owned(), value.clone()))
                .collect(),
        };
        let stamp = self.stamp(None, at);
        // Nothing of what was said is in it, and an audit is kept at every level.
        EventRecord::new(stamp, Lane::Telemetry, Payload::Debug(Box::new(note)))
            .classed(PayloadClass::Metadata)
    }

    pub(super) fn state(&mut self, state: SessionState) {
        self.publish(&CONTROL, || Notice::State(state));
    }

    pub(super) fn turn(&mut self, report: &TurnReport) {
        self.publish(&CONTROL, || Notice::Turn(Box::new(report.clone())));
    }

    /// A time of the node's clock, on the calendar.
    pub(super) fn wall(&self, at: Monotonic) -> WallClock {
        WallClock(self.wall_origin_ms + at.as_millis())
    }
}

/// Whether it is one of the session's own measurements, one of many at every tick.
fn is_own_measurement(record: &EventRecord) -> bool {
    match &record.payload {
        Some(Payload::Metrics(sample)) => sample.labels.contains_key("pipeline_version"),
        Some(_) | None => false,
    }
}

/// The step as the timeline writes it.
fn recorded(event: &ToolEvent) -> rspp_timeline::ToolStep {
    use rspp_timeline::ToolStep as S;
    match event {
        ToolEvent::Requested { .. } => S::Requested,
        ToolEvent::Began => S::Began,
        ToolEvent::Ended { end, .. } => match end {
            ToolEnd::Finished => S::Finished,
            ToolEnd::Failed => S::Failed,
            ToolEnd::TimedOut => S::TimedOut,
            ToolEnd::Abandoned => S::Abandoned,
            ToolEnd::Refused => S::Refused,
        },
        ToolEvent::Detached => S::Detached,
        ToolEvent::Late { .. } => S::Late,
        ToolEvent::ActionCommitted(_) => S::ActionCommitted,
        ToolEvent::ActionRefused(_) => S::ActionRefused,
    }
}

fn media_time(position: SampleIndex) -> MediaTime {
    MediaTime::SampleIndex(position)
}

/// A reason from elsewhere, cut to what a reason may hold.
fn bounded(reason: &str) -> Reason {
    let end = reason.floor_char_boundary(rspp_proto::MAX_REASON_BYTES);
    Reason::new(&reason[..end]).unwrap_or(Reason::from_static("unspecified"))
}
