//! A short conversation as it would be recorded: one turn committed, one cancelled.

use std::{collections::BTreeMap, num::NonZeroU32};

use bytes::Bytes;
use rspp_proto::{
    AudioChunk, EdgeId, Epoch, EventId, InvocationId, Lane, MetricSample, Monotonic, NodeId,
    OutcomeClass, Payload, PipelineVersion, ProviderId, Reason, RetryDecision, SampleRate,
    SessionId, Speaker, Spending, TextChunk, TurnId, TurnNumber, WallClock,
    abi::{
        CancelScope, ControlSignal, DecisionOutcome, Emitter, EventRecord, MediaTime, OutcomeKind,
        OutcomePhase, OutcomeScope, PayloadClass, Signal, Stamp, TurnState, TurnTransition,
        TurnTrigger,
    },
    spec::{Modality, RecordingLevel},
};
use rspp_timeline::*;

pub(crate) const STARTED_MS: u64 = 1_000;

pub(crate) fn session() -> SessionId {
    SessionId::new("call-7").unwrap()
}

pub(crate) fn version() -> PipelineVersion {
    PipelineVersion::new("support-bot/3").unwrap()
}

pub(crate) fn turn(number: u32) -> TurnId {
    TurnNumber(number).id()
}

pub(crate) fn header(level: RecordingLevel) -> FileHeader {
    FileHeader::new(
        session(),
        version(),
        "runtime-a",
        level,
        Monotonic::from_millis(STARTED_MS),
        WallClock(1_790_000_000_000),
    )
}

/// Hands out stamps as a session would: every sequence number once.
pub(crate) struct Script {
    pub(crate) sequence: u64,
    pub(crate) entries: Vec<Entry>,
}

impl Script {
    pub(crate) fn new() -> Self {
        Self {
            sequence: 0,
            entries: Vec::new(),
        }
    }

    pub(crate) fn stamp(&mut self, turn: Option<TurnId>, ms: u64) -> Stamp {
        self.sequence += 1;
        Stamp {
            session_id: session(),
            turn_id: turn,
            pipeline_version: version(),
            authority_epoch: Epoch::FIRST,
            ordinal: self.sequence,
            runtime_sequence: self.sequence,
            transport_sequence: None,
            at: Monotonic::from_millis(STARTED_MS + ms),
            wall: WallClock(1_790_000_000_000 + ms),
        }
    }

    pub(crate) fn signal(
        &mut self,
        ms: u64,
        turn: Option<&TurnId>,
        signal: Signal,
        by: Emitter,
    ) -> &mut ControlSignal {
        let stamp = self.stamp(turn.cloned(), ms);
        self.entries
            .push(ControlSignal::new(signal, by, stamp).into());
        match self.entries.last_mut() {
            Some(Entry::Signal(signal)) => signal,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn text(
        &mut self,
        ms: u64,
        turn: Option<&TurnId>,
        speaker: Speaker,
        text: &str,
        is_final: bool,
    ) {
        let stamp = self.stamp(turn.cloned(), ms);
        let chunk = TextChunk {
            speaker,
            text: text.into(),
            segment: 0,
            revision: 0,
            is_final,
            confidence: None,
            language: None,
        };
        let node = match speaker {
            Speaker::User => "stt",
            Speaker::Agent => "llm",
        };
        self.entries.push(
            EventRecord::new(stamp, Lane::Data, Payload::Text(Box::new(chunk)))
                .from_node(NodeId::new(node).unwrap())
                .on_edge(EdgeId::new(format!("{node}-out")).unwrap())
                .into(),
        );
    }

    pub(crate) fn audio(&mut self, ms: u64, turn: Option<&TurnId>, node: Option<&str>) {
        let stamp = self.stamp(turn.cloned(), ms);
        let sample = rspp_proto::SampleIndex(ms * 16);
        let chunk = AudioChunk::pcm16(SampleRate::HZ_16000, Bytes::from(vec![7; 640]));
        let mut record = EventRecord::new(stamp, Lane::Data, Payload::AudioChunk(chunk))
            .at(MediaTime::SampleIndex(sample));
        if let Some(node) = node {
            record = record.from_node(NodeId::new(node).unwrap());
        }
        self.entries.push(record.into());
    }

    pub(crate) fn step(&mut self, ms: u64, turn: &TurnId, from: TurnState, trigger: TurnTrigger) {
        self.entries.push(
            TransitionEntry {
                at: Monotonic::from_millis(STARTED_MS + ms),
                turn_id: turn.clone(),
                step: TurnTransition::new(from, trigger).unwrap(),
            }
            .into(),
        );
    }

    pub(crate) fn open(&mut self, ms: u64, turn: &TurnId) {
        self.step(ms, turn, TurnState::Idle, TurnTrigger::TurnOpenProposed);
        self.signal(ms, None, Signal::TurnOpenProposed, Emitter::PreludeEngine);
        let stamp = self.stamp(Some(turn.clone()), ms + 1);
        self.entries.push(admission(stamp).into());
        self.entries.push(
            PlanEntry {
                at: Monotonic::from_millis(STARTED_MS + ms + 2),
                turn_id: turn.clone(),
                plan_hash: plan_hash(),
                plan: serde_json::from_value(serde_json::json!({"execution_profile": "simple/v1", "budgets": {"turn_budget_ms": 2000}})).unwrap(),
            }
            .into(),
        );
        self.step(ms + 3, turn, TurnState::Opening, TurnTrigger::TurnOpen);
        self.signal(ms + 3, Some(turn), Signal::TurnOpen, Emitter::TurnArbiter);
    }

    pub(crate) fn end(&mut self, ms: u64, turn: &TurnId, abort: Option<&str>) {
        let (signal, trigger) = match abort {
            Some(_) => (Signal::Abort, TurnTrigger::Abort),
            None => (Signal::Commit, TurnTrigger::Commit),
        };
        self.step(ms, turn, TurnState::Active, trigger);
        let said = self.signal(ms, Some(turn), signal, Emitter::TurnArbiter);
        said.reason = abort.map(|reason| Reason::new(reason).unwrap());
        self.step(ms, turn, TurnState::Terminal, TurnTrigger::Close);
        self.signal(ms, Some(turn), Signal::Close, Emitter::TurnArbiter);
    }
}

pub(crate) fn plan_hash() -> String {
    "0123456789abcdef".repeat(4)
}

pub(crate) fn admission(stamp: Stamp) -> DecisionOutcome {
    DecisionOutcome::new(
        OutcomeKind::Admit,
        OutcomePhase::PreTurn,
        OutcomeScope::Session,
        Emitter::LocalAdmission,
        Reason::new("admission_capacity_allow").unwrap(),
        stamp,
    )
}

pub(crate) fn call(turn: &TurnId) -> InvocationId {
    let event = EventId::canonical(&session(), Some(turn), 1);
    InvocationId::canonical(&session(), Some(turn), &event, "llm")
}

pub(crate) fn invocation(turn: &TurnId, ms: u64) -> InvocationOutcome {
    InvocationOutcome {
        provider_invocation_id: call(turn),
        turn_id: Some(turn.clone()),
        modality: Modality::Llm,
        provider_id: ProviderId::new("llm-local").unwrap(),
        outcome_class: OutcomeClass::Success,
        reason: String::new(),
        routing_reason: String::new(),
        signal_source: String::new(),
        retryable: false,
        retry_decision: RetryDecision::None,
        attempt_count: 2,
        final_attempt_latency_ms: 180,
        total_invocation_latency_ms: 310,
        spending: Spending::default(),
        ended_at: Monotonic::from_millis(STARTED_MS + ms),
    }
}

pub(crate) fn attempt(turn: &TurnId, ms: u64) -> AttemptRecord {
    AttemptRecord {
        provider_invocation_id: call(turn),
        turn_id: Some(turn.clone()),
        node_id: None,
        modality: Modality::Llm,
        provider_id: ProviderId::new("llm-local").unwrap(),
        attempt: NonZeroU32::MIN.get(),
        outcome_class: OutcomeClass::Overload,
        reason: "provider_overload".into(),
        retryable: true,
        retry_decision: RetryDecision::Retry,
        authority_epoch: Epoch::FIRST,
        started_at: Monotonic::from_millis(STARTED_MS + ms - 130),
        ended_at: Monotonic::from_millis(STARTED_MS + ms),
        first_chunk_at: None,
        streaming_used: true,
        chunk_count: 0,
        bytes_out: 0,
        bytes_in: 18,
        queue_wait_ms: 0,
        extras: std::collections::BTreeMap::new(),
        circuit_open: true,
        backoff_ms: Some(50),
        output_status_code: Some(429),
        input_payload: Some("what is my balance".into()),
        output_payload: None,
        payload_truncated: false,
    }
}

/// Evidence to which nothing is missing.
pub(crate) fn evidence(turn: &TurnId, open_ms: u64, end_ms: u64, cancelled: bool) -> TurnBaseline {
    let mut script = Script::new();
    let stamp = script.stamp(Some(turn.clone()), open_ms);
    let opening = ControlSignal::new(Signal::TurnOpen, Emitter::TurnArbiter, stamp.clone());
    let at = |ms: u64| Some(Monotonic::from_millis(STARTED_MS + ms));
    let tags = [
        PayloadClass::AudioRaw,
        PayloadClass::TextRaw,
        PayloadClass::Metadata,
    ];
    let mut baseline = TurnBaseline::new(
        session(),
        turn.clone(),
        version(),
        opening.envelope.event_id.clone(),
    );
    baseline.envelope_snapshot = Some(Box::new(opening.envelope));
    baseline.redaction_decisions = Redaction::default().decisions(tags, RecordingLevel::L0);
    baseline.payload_tags = tags.to_vec();
    baseline.resolved_turn_plan_id = format!("plan/{turn}");
    baseline.plan_hash = plan_hash();
    baseline.execution_profile_version = "simple/v1".into();
    baseline.snapshots = SnapshotRefs {
        routing_view_snapshot: "routing/12".into(),
        admission_policy_snapshot: "admission/3".into(),
        abi_compatibility_snapshot: "abi/1".into(),
        version_resolution_snapshot: "version/5".into(),
        policy_resolution_snapshot: "policy/9".into(),
        provider_health_snapshot: "health/77".into(),
    };
    baseline.authority_epoch = Some(Epoch::FIRST);
    baseline.lease_epoch_at_turn_open = Some(Epoch::FIRST);
    baseline.lease_epoch_at_terminal = Some(Epoch::FIRST);
    baseline.admission_outcome = Some(Box::new(admission(stamp.clone())));
    baseline.decision_outcomes = vec![admission(stamp)];
    baseline.determinism_seed = Some(42);
    baseline.ordering_markers = vec!["runtime_sequence".into(), "event_id".into()];
    baseline.merge_rule_id = "default-merge-rule".into();
    baseline.merge_rule_version = "v1.0.0".into();
    baseline.nondeterministic_inputs = vec![NondeterministicInput {
        input_key: "llm".into(),
        source: NondeterminismSource::ExternalCall,
        evidence_ref: call(turn).to_string(),
    }];
    baseline.turn_open_proposed_at = at(open_ms - 3);
    baseline.turn_open_at = at(open_ms);
    baseline.turn_terminal_at = at(end_ms);
    baseline.turn_close_at = at(end_ms);
    baseline.close_emitted = true;
    baseline.terminal_outcome = Some(TerminalOutcome::Commit);
    baseline.provider_invocation_ids = vec![call(turn)];
    baseline.invocation_outcomes = vec![invocation(turn, end_ms)];
    baseline.anchors.mark(
        Anchor::TurnOpenEmitted,
        Monotonic::from_millis(STARTED_MS + open_ms),
    );
    if cancelled {
        baseline.terminal_outcome = Some(TerminalOutcome::Abort);
        baseline.terminal_reason = Some(Reason::new("cancelled").unwrap());
        baseline.cancel = Some(CancelEvidence {
            cancel_scope: Some(CancelScope::Turn),
            cancel_accepted_at: at(end_ms - 2),
            cancel_fence_applied_at: at(end_ms - 2),
            cancel_reason: Some(rspp_proto::Reason::from_static("barge_in")),
            cancel_mode: Some(rspp_proto::abi::CancelMode::Hard),
            cancel_sent_at: at(end_ms - 1),
            cancel_ack_at: None,
            rejection_markers: Vec::new(),
            late_outputs_rejected: Some(0),
        });
    }
    baseline
}

/// The conversation, without header and footer.
pub(crate) fn entries() -> Vec<Entry> {
    let mut script = Script::new();
    let (one, two) = (turn(1), turn(2));
    script.signal(0, None, Signal::Connected, Emitter::ConnectionAdapter);
    script.audio(20, None, None);
    script.text(400, None, Speaker::User, "what is my", false);
    script.text(600, None, Speaker::User, "What is my balance?", true);
    script.open(610, &one);
    script.entries.push(attempt(&one, 743).into());
    script.entries.push(invocation(&one, 920).into());
    script.text(930, Some(&one), Speaker::Agent, "It is twelve euros.", true);
    script.audio(1_050, Some(&one), Some("tts"));
    script.signal(
        1_052,
        Some(&one),
        Signal::OutputAccepted,
        Emitter::TransportMapping,
    );
    script.signal(
        1_060,
        Some(&one),
        Signal::PlaybackStarted,
        Emitter::TransportMapping,
    );
    script.entries.push(
        PlayoutEntry {
            at: Monotonic::from_millis(STARTED_MS + 1_080),
            turn_id: one.clone(),
            played_us: 20_000,
            pending_us: 0,
            is_final: true,
        }
        .into(),
    );
    script.end(1_090, &one, None);
    script
        .entries
        .push(evidence(&one, 613, 1_090, false).into());

    script.open(2_000, &two);
    let cancel = script.signal(
        2_300,
        Some(&two),
        Signal::Cancel,
        Emitter::CancellationManager,
    );
    cancel.scope = Some(CancelScope::Turn);
    script.end(2_302, &two, Some("cancelled"));
    script
        .entries
        .push(evidence(&two, 2_003, 2_302, true).into());
    let stamp = script.stamp(None, 2_400);
    let sample = MetricSample {
        name: "node_latency_ms".into(),
        value: 3.5,
        labels: BTreeMap::new(),
    };
    let metric = EventRecord::new(stamp, Lane::Telemetry, Payload::Metrics(Box::new(sample)));
    script.entries.push(metric.into());
    script.entries
}
