//! What a turn leaves behind: its anchors, its OR-02 baseline and its report.

use std::{collections::BTreeMap, time::Duration};

use rspp_kernel::{
    Emission, Exchange,
    determinism::{InputSource, MAX_NONDETERMINISTIC_INPUTS, OrderingMarker},
    plan::ResolvedTurnPlan,
    tool::{ToolEvent, ToolStep},
    turn::Terminal,
};
use rspp_proto::{
    Epoch, IdempotencyKey, Lane, Monotonic, PipelineVersion, Reason, SessionId, SpeechMark,
    Spending, TenantId, TurnNumber,
    abi::{CancelMode, CancelScope, DecisionOutcome, EventScope, PayloadClass, Signal, Stamp},
};
use rspp_timeline::{
    Anchor, Anchors, CancelEvidence, InvocationOutcome, NondeterminismSource,
    NondeterministicInput, Redaction, SnapshotRefs, TerminalOutcome, TurnBaseline,
};

use super::SessionSetup;
use crate::{
    connection::LineStats,
    report::{ToolReport, TurnReport},
};

/// Turn reports kept of one session; the oldest go first.
const MAX_REPORTS: usize = 1_024;

/// The turn that is being written up.
struct Open {
    turn: TurnNumber,
    anchors: Anchors,
    baseline: TurnBaseline,
    cancel_fence: Option<Duration>,
    dropped_before: BTreeMap<Lane, u64>,
    /// Outputs that were not played: queued when the turn was cut off, or come too late for it.
    rejected: u64,
    report: Option<TurnReport>,
    tools: Vec<ToolReport>,
}

impl Open {
    /// Something came from outside that a replay takes from the recording; once per key and reference.
    fn outside(&mut self, input_key: String, evidence_ref: String) {
        let inputs = &mut self.baseline.nondeterministic_inputs;
        let input = NondeterministicInput {
            input_key,
            source: NondeterminismSource::ExternalCall,
            evidence_ref,
        };
        if inputs.len() < MAX_NONDETERMINISTIC_INPUTS && !inputs.contains(&input) {
            inputs.push(input);
        }
    }
}

/// A session's book of turns.
pub(super) struct Ledger {
    session: SessionId,
    /// The epoch under which the placement began.
    placed: Epoch,
    tenant: TenantId,
    version: PipelineVersion,
    opened_at: Monotonic,
    /// What is known of the utterance that may become a turn.
    listening: Anchors,
    open: Option<Open>,
    reports: Vec<TurnReport>,
    refused: u64,
    shed: u64,
    dropped: BTreeMap<Lane, u64>,
}

impl Ledger {
    pub(super) fn new(setup: &SessionSetup) -> Self {
        Self {
            session: setup.place.lease.session.clone(),
            placed: setup.place.lease.epoch,
            tenant: setup.tenant.clone(),
            version: setup.blueprint.spec.version.clone(),
            opened_at: Monotonic::ZERO,
            listening: Anchors::default(),
            open: None,
            reports: Vec::new(),
            refused: 0,
            shed: 0,
            dropped: Lane::ALL.iter().map(|lane| (*lane, 0)).collect(),
        }
    }

    pub(super) fn opened(&mut self, at: Monotonic) {
        self.opened_at = at;
    }

    pub(super) fn opened_at(&self) -> Monotonic {
        self.opened_at
    }

    pub(super) fn refusals(&self) -> u64 {
        self.refused
    }

    pub(super) fn sheds(&self) -> u64 {
        self.shed
    }

    /// Work was shed; if it was a turn's, that belongs to its evidence.
    pub(super) fn shed(&mut self, turn: Option<TurnNumber>, outcome: DecisionOutcome) {
        self.shed += 1;
        if let Some(open) = turn.and_then(|turn| self.of(turn)) {
            open.baseline.decision_outcomes.push(outcome);
        }
    }

    pub(super) fn take_reports(&mut self) -> Vec<TurnReport> {
        std::mem::take(&mut self.reports)
    }

    // --- listening ---------------------------------------------------------------------------

    /// A mark was found at `at`; the audio that it speaks of came in earlier.
    pub(super) fn heard_mark(&mut self, line: &LineStats, mark: SpeechMark, at: Monotonic) {
        match mark {
            SpeechMark::Started { at: position } => {
                if self.listening.speech_end_ts.is_none() {
                    self.listening.audio_first_input_ingress_ts = line.arrival_of(position);
                }
                // The user goes on: what ended was not the turn.
                self.listening.audio_input_ingress_ts = None;
                self.listening.speech_end_ts = None;
                self.listening.end_of_turn_ts = None;
                self.listening.transcript_final_ts = None;
            }
            SpeechMark::Stopped { at: position } => {
                self.listening.audio_input_ingress_ts = line.arrival_of(position);
                self.listening.speech_end_ts = Some(at);
            }
            SpeechMark::EndOfTurn { at: position, .. } => {
                // Who let the button go may still be speaking.
                let listening = &mut self.listening;
                let ingress = &mut listening.audio_input_ingress_ts;
                *ingress = ingress.or_else(|| line.arrival_of(position));
                listening.end_of_turn_ts = Some(at);
            }
        }
    }

    pub(super) fn heard_transcript(&mut self, at: Monotonic) {
        self.listening.transcript_final_ts = Some(at);
    }

    // --- a turn ------------------------------------------------------------------------------

    pub(super) fn proposed(&mut self, turn: TurnNumber, at: Monotonic) {
        let mut anchors = std::mem::take(&mut self.listening);
        // Found by whichever came last; an end of turn is never found after the turn it ended.
        anchors.end_of_turn_ts = anchors.end_of_turn_ts.or(Some(at));
        anchors.mark(Anchor::TurnOpenProposed, at);
        let event = rspp_proto::EventId::canonical(&self.session, Some(&turn.id()), 0);
        let baseline =
            TurnBaseline::new(self.session.clone(), turn.id(), self.version.clone(), event);
        self.open = Some(Open {
            turn,
            anchors,
            baseline,
            cancel_fence: None,
            dropped_before: self.dropped.clone(),
            rejected: 0,
            report: None,
            tools: Vec::new(),
        });
    }

    pub(super) fn refused(&mut self) {
        self.refused += 1;
        self.open = None;
    }

    fn of(&mut self, turn: TurnNumber) -> Option<&mut Open> {
        self.open.as_mut().filter(|open| open.turn == turn)
    }

    fn mark(&mut self, turn: TurnNumber, anchor: Anchor, at: Monotonic) {
        if let Some(open) = self.of(turn) {
            open.anchors.mark(anchor, at);
        }
    }

    pub(super) fn planned(&mut self, turn: TurnNumber, plan: &ResolvedTurnPlan) {
        let Some(open) = self.of(turn) else { return };
        let baseline = &mut open.baseline;
        baseline.resolved_turn_plan_id = format!("plan/{}", &plan.plan_hash[..12]);
        baseline.plan_hash.clone_from(&plan.plan_hash);
        plan.execution_profile
            .as_str()
            .clone_into(&mut baseline.execution_profile_version);
        let refs = &plan.snapshot_provenance;
        baseline.snapshots = SnapshotRefs {
            routing_view_snapshot: refs.routing_view_snapshot.clone(),
            admission_policy_snapshot: refs.admission_policy_snapshot.clone(),
            abi_compatibility_snapshot: refs.abi_compatibility_snapshot.clone(),
            version_resolution_snapshot: refs.version_resolution_snapshot.clone(),
            policy_resolution_snapshot: refs.policy_resolution_snapshot.clone(),
            provider_health_snapshot: refs.provider_health_snapshot.clone(),
        };
        baseline.authority_epoch = Some(plan.authority_epoch);
        baseline.lease_epoch_at_turn_open = Some(plan.authority_epoch);
        let determinism = &plan.determinism;
        baseline.determinism_seed = Some(determinism.seed);
        let markers = determinism.ordering_markers.iter();
        baseline.ordering_markers = markers
            .map(|marker| match marker {
                OrderingMarker::RuntimeSequence => "runtime_sequence".to_owned(),
                OrderingMarker::EventId => "event_id".to_owned(),
            })
            .collect();
        baseline
            .merge_rule_id
            .clone_from(&determinism.merge_rule_id);
        baseline
            .merge_rule_version
            .clone_from(&determinism.merge_rule_version);
        let inputs = determinism.nondeterministic_inputs.iter();
        baseline.nondeterministic_inputs = inputs
            .map(|input| NondeterministicInput {
                input_key: input.input_key.clone(),
                source: match input.source {
                    InputSource::ExternalCall => NondeterminismSource::ExternalCall,
                    InputSource::SystemTime => NondeterminismSource::SystemTime,
                    InputSource::Random => NondeterminismSource::Random,
                    InputSource::OperatorOverride => NondeterminismSource::OperatorOverride,
                    InputSource::Other => NondeterminismSource::Other,
                },
                evidence_ref: input.evidence_ref.clone(),
            })
            .collect();
        // What a turn always touches: the user's words and voice, and the agent's.
        baseline.payload_tags = vec![
            PayloadClass::AudioRaw,
            PayloadClass::TextRaw,
            PayloadClass::Metadata,
        ];
        let policy = &plan.recording_policy;
        let tags = baseline.payload_tags.iter().copied();
        baseline.redaction_decisions =
            Redaction::of(policy).decisions(tags, policy.recording_level);
    }

    pub(super) fn admitted(&mut self, turn: TurnNumber, outcome: DecisionOutcome, stamp: Stamp) {
        let tenant = self.tenant.clone();
        let Some(open) = self.of(turn) else { return };
        let envelope = stamp.into_envelope(EventScope::Turn, Lane::Control, PayloadClass::Metadata);
        open.baseline.event_id = envelope.event_id.clone();
        open.baseline.envelope_snapshot = Some(Box::new(envelope));
        open.baseline.tenant_id = Some(tenant);
        open.baseline.admission_outcome = Some(Box::new(outcome.clone()));
        open.baseline.decision_outcomes.push(outcome);
    }

    pub(super) fn first_token(&mut self, turn: TurnNumber, at: Monotonic) {
        self.mark(turn, Anchor::LlmFirstToken, at);
    }

    pub(super) fn first_clause(&mut self, turn: TurnNumber, at: Monotonic) {
        self.mark(turn, Anchor::FirstClause, at);
    }

    pub(super) fn first_audio(&mut self, turn: TurnNumber, at: Monotonic) {
        self.mark(turn, Anchor::TtsFirstAudio, at);
    }

    pub(super) fn playback_started(&mut self, turn: TurnNumber, at: Monotonic) {
        self.mark(turn, Anchor::FirstOutput, at);
        self.mark(turn, Anchor::PlaybackStarted, at);
    }

    pub(super) fn playback_finished(&mut self, turn: TurnNumber, at: Monotonic) {
        if let Some(open) = self.of(turn)
            && open.anchors.assistant_audio_playback_started_ts.is_some()
        {
            open.anchors.mark(Anchor::PlaybackCompleted, at);
        }
    }

    pub(super) fn signalled(&mut self, emission: &Emission, at: Monotonic) {
        let Some(turn) = emission.turn else { return };
        match emission.signal {
            Signal::TurnOpen => self.mark(turn, Anchor::TurnOpenEmitted, at),
            // What was said is what happened: evidence that was not kept has changed the ending (T9).
            Signal::Commit => self.ended(turn, TerminalOutcome::Commit, None),
            Signal::Abort => self.ended(turn, TerminalOutcome::Abort, emission.reason),
            // The fence falls first; a cancel without one was of a part that the turn can spare.
            Signal::Cancel => {
                let Some(open) = self.of(turn) else { return };
                // That of a soft one falls later.
                if emission.mode == Some(CancelMode::Soft) {
                    open.anchors.mark(Anchor::CancelAccepted, at);
                    let cancel = open.baseline.cancel.get_or_insert_with(no_cancel);
                    cancel.cancel_accepted_at = Some(at);
                }
                if let Some(cancel) = &mut open.baseline.cancel {
                    cancel.cancel_scope = emission.scope.or(Some(CancelScope::Turn));
                    cancel.cancel_reason = emission.reason.map(Reason::from_static);
                    cancel.cancel_mode = emission.mode;
                    cancel.cancel_sent_at = Some(at);
                }
            }
            _others_have_no_anchor => {}
        }
    }

    fn ended(&mut self, turn: TurnNumber, outcome: TerminalOutcome, reason: Option<&str>) {
        if let Some(report) = self.of(turn).and_then(|open| open.report.as_mut()) {
            outcome.as_str().clone_into(&mut report.outcome);
            report.reason = reason.map(ToOwned::to_owned);
        }
    }

    pub(super) fn fenced(&mut self, turn: TurnNumber, at: Monotonic, took: Duration) {
        let Some(open) = self.of(turn) else { return };
        open.anchors.mark(Anchor::CancelAccepted, at);
        open.anchors.mark(Anchor::CancelFence, at + took);
        open.cancel_fence = Some(took);
        let cancel = open.baseline.cancel.get_or_insert_with(no_cancel);
        cancel.cancel_accepted_at.get_or_insert(at);
        cancel.cancel_fence_applied_at = Some(at + took);
    }

    /// The last of the turn's nodes has heard of the cancel (F-036).
    pub(super) fn acknowledged(&mut self, turn: TurnNumber, at: Monotonic) {
        if let Some(open) = self.of(turn)
            && let Some(cancel) = &mut open.baseline.cancel
        {
            cancel.cancel_ack_at = Some(at);
        }
    }

    pub(super) fn invoked(&mut self, turn: Option<TurnNumber>, outcome: &InvocationOutcome) {
        let Some(open) = turn.and_then(|turn| self.of(turn)) else {
            return;
        };
        let id = outcome.provider_invocation_id.clone();
        // What it answered cannot be derived (F-150).
        open.outside(
            format!("provider/{}", outcome.modality.as_str()),
            id.to_string(),
        );
        open.baseline.provider_invocation_ids.push(id);
        open.baseline.invocation_outcomes.push(outcome.clone());
    }

    pub(super) fn tool(&mut self, step: &ToolStep) {
        let (session, placed) = (self.session.clone(), self.placed);
        let outcome = match &step.what {
            ToolEvent::Requested { .. } => "requested",
            ToolEvent::Ended { end, .. } => end.as_str(),
            ToolEvent::Detached => "detached",
            ToolEvent::Began
            | ToolEvent::Late { .. }
            | ToolEvent::ActionCommitted(_)
            | ToolEvent::ActionRefused(_) => return,
        };
        let Some(open) = self.of(step.turn) else {
            return;
        };
        match open.tools.iter_mut().find(|tool| *tool.call == *step.call) {
            Some(tool) => {
                outcome.clone_into(&mut tool.outcome);
                let key = IdempotencyKey::of_tool(&session, placed, &step.turn.id(), &step.call);
                open.outside(format!("tool/{}", step.tool), key.to_string());
            }
            None => open.tools.push(ToolReport {
                call: step.call.to_string(),
                tool: step.tool.to_string(),
                outcome: outcome.to_owned(),
            }),
        }
    }

    /// Items of a turn, or of none, were dropped. What comes out only when the turn is written up is
    /// added to what was written: it is no other turn's.
    pub(super) fn dropped(&mut self, turn: Option<TurnNumber>, lane: Lane, count: u64) {
        let open = self
            .open
            .as_mut()
            .filter(|open| turn.is_none_or(|turn| open.turn == turn));
        let written = match (open, turn) {
            (Some(open), _) => open.report.as_mut(),
            (None, None) => None,
            (None, Some(turn)) => {
                let id = turn.id();
                let mut reports = self.reports.iter_mut().rev();
                match reports.find(|report| report.turn_id == id) {
                    Some(report) => Some(report),
                    None => return, // Forgotten, or a guess: nobody asks.
                }
            }
        };
        match written {
            Some(report) => *report.dropped.entry(lane).or_default() += count,
            None => *self.dropped.entry(lane).or_default() += count,
        }
    }

    /// So many outputs of a turn were not played: it ended early, or they came too late for it.
    pub(super) fn flushed(&mut self, turn: TurnNumber, count: u64) {
        self.dropped(Some(turn), Lane::Data, count);
        if let Some(open) = self.of(turn) {
            open.rejected += count;
        }
    }

    /// Takes over what the connection has counted since the last time.
    pub(super) fn count_line(&mut self, line: &LineStats) {
        for (turn, count) in line.take_lost() {
            self.flushed(turn, count);
        }
        if let Some(open) = &mut self.open
            && let Some(cancel) = &mut open.baseline.cancel
        {
            cancel.late_outputs_rejected = Some(open.rejected);
        }
    }

    /// The turn's evidence, complete but for the signals that say so.
    pub(super) fn seal(
        &mut self,
        exchange: &Exchange,
        terminal: Terminal,
        epoch: Epoch,
        wall: rspp_proto::WallClock,
        at: Monotonic,
    ) -> Option<TurnBaseline> {
        let dropped = self.dropped.clone();
        let open = self.of(exchange.turn)?;
        let baseline = &mut open.baseline;
        baseline.turn_open_proposed_at = open.anchors.turn_open_proposed_ingress_accepted_ts;
        baseline.turn_open_at = open.anchors.turn_open_emitted_ts;
        baseline.turn_open_wall = Some(wall);
        baseline.first_output_at = open.anchors.first_datalane_output_emitted_ts;
        let (outcome, reason) = match terminal {
            Terminal::Commit => (TerminalOutcome::Commit, None),
            Terminal::Abort(reason) => (TerminalOutcome::Abort, Some(reason.as_str())),
        };
        baseline.terminal_outcome = Some(outcome);
        baseline.terminal_reason = reason.map(Reason::from_static);
        baseline.turn_terminal_at = Some(at);
        baseline.turn_close_at = Some(at);
        baseline.close_emitted = true;
        baseline.lease_epoch_at_terminal = Some(epoch);
        baseline.anchors = open.anchors.clone();
        let end_of_speech = open
            .anchors
            .audio_input_ingress_ts
            .or(open.anchors.turn_open_proposed_ingress_accepted_ts);
        let first_audio = open.anchors.assistant_audio_playback_started_ts;
        let before = &open.dropped_before;
        let dropped = dropped
            .into_iter()
            .map(|(lane, count)| (lane, count - before.get(&lane).copied().unwrap_or(0)));
        open.report = Some(TurnReport {
            turn_id: exchange.turn.id(),
            plan_hash: baseline.plan_hash.clone(),
            outcome: outcome.as_str().to_owned(),
            reason: reason.map(ToOwned::to_owned),
            user_text: exchange.user_text.clone(),
            agent_text: exchange.agent_text.clone(),
            agent_text_played: exchange.heard.clone(),
            anchors: open.anchors.clone(),
            first_audio_ms: end_of_speech
                .zip(first_audio)
                .map(|(from, to)| to.since(from).as_secs_f64() * 1e3),
            cancel_fence_us: open.cancel_fence.map(|took| took.as_secs_f64() * 1e6),
            dropped: dropped.collect(),
            spending: Spending::default(),
            tools: Vec::new(),
        });
        Some(baseline.clone())
    }

    /// The turn is over: its report goes into the book.
    pub(super) fn close(&mut self, turn: TurnNumber, spending: Spending) -> Option<&TurnReport> {
        let open = self.open.take_if(|open| open.turn == turn)?;
        let report = TurnReport {
            spending,
            tools: open.tools,
            ..open.report?
        };
        if self.reports.len() == MAX_REPORTS {
            self.reports.remove(0);
        }
        self.reports.push(report);
        self.reports.last()
    }
}

fn no_cancel() -> CancelEvidence {
    CancelEvidence {
        cancel_scope: None,
        cancel_reason: None,
        cancel_mode: None,
        cancel_accepted_at: None,
        cancel_fence_applied_at: None,
        cancel_sent_at: None,
        cancel_ack_at: None,
        rejection_markers: Vec::new(),
        late_outputs_rejected: None,
    }
}
