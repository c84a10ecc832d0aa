//! Whether a recording keeps the invariants that every recording has to keep.
//!
//! One pass in the order of the file, so that it serves tests, simulation and `rspp timeline show
//! --check` alike. It judges what was recorded; that a level left out details is not a violation.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use rspp_proto::{
    EdgeId, Epoch, IdempotencyKey, InvocationId, Lane, Monotonic, NodeId, SessionId, TurnId,
    abi::{CancelScope, ControlSignal, Envelope, EventRecord, Signal, TurnState, TurnTransition},
};
use serde::Serialize;

use crate::{Entry, TerminalOutcome, ToolEntry, ToolStep, TurnBaseline};

macro_rules! rules {
    ($($(#[$doc:meta])* $variant:ident = $id:literal;)*) => {
        /// An invariant, by a name that stays.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub enum Rule {
            $($(#[$doc])* #[serde(rename = $id)] $variant,)*
        }

        impl Rule {
            /// All rules.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The rule's name in reports.
            pub fn id(self) -> &'static str {
                match self { $(Self::$variant => $id,)* }
            }
        }
    };
}

rules! {
    /// An accepted turn is committed or aborted, once (gate 6; lifecycle §4, 1).
    TerminalOnce = "terminal-once";
    /// An accepted turn is closed, once, after its terminal (gate 6; lifecycle §4, 2).
    CloseAfterTerminal = "close-after-terminal";
    /// A turn that never opened is neither aborted nor closed (lifecycle §4, 3).
    EndWithoutOpen = "end-without-open";
    /// A turn opens once.
    OpenOnce = "open-once";
    /// A turn makes only the moves of the table (lifecycle §1).
    TransitionLegal = "transition-legal";
    /// No fresh output is accepted for what was cancelled (event-abi §5, 2 and 3).
    NothingAfterFence = "nothing-after-fence";
    /// A node gives no output for a turn that has ended (lifecycle §4, 12).
    NothingAfterTerminal = "nothing-after-terminal";
    /// Each accepted turn has its OR-02 evidence (gate 5).
    EvidencePresent = "or02-present";
    /// That evidence has every required field (gate 5, NF-028).
    EvidenceComplete = "or02-complete";
    /// The evidence says what the signals say.
    EvidenceAgrees = "or02-agrees";
    /// A turn's plan is recorded under the hash that its evidence names (F-149).
    PlanRecorded = "plan-recorded";
    /// Sequences rise per session, edge and lane (event-abi §5, 1).
    SequenceRises = "sequence-rises";
    /// Epochs of a session never go back (lifecycle §7).
    EpochRises = "epoch-rises";
    /// No output of a stale epoch was accepted (gate 4).
    NoStaleOutput = "no-stale-output";
    /// A tool call that was requested ends, once (P8).
    ToolEndOnce = "tool-end-once";
    /// A tool begins once, and not after its turn was cancelled or has ended (P1).
    ToolBeginsInTime = "tool-begins-in-time";
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// An invariant that a recording breaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// Which turn, if it is about one.
    pub turn_id: Option<TurnId>,
    /// When.
    pub at: Monotonic,
    /// What was found.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rule,
            turn_id,
            at,
            detail,
        } = self;
        let turn = turn_id.as_ref().map_or("-", TurnId::as_str);
        write!(
            f,
            "{rule}  {turn}  at {:.3} s: {detail}",
            at.as_millis_f64() / 1e3
        )
    }
}

/// Most violations that are listed; a broken recording breaks a rule at every entry.
const MAX_LISTED: usize = 1_000;

/// Checks entries in the order of their recording.
#[derive(Debug, Default)]
pub struct Verifier {
    turns: BTreeMap<TurnId, Turn>,
    sequences: HashMap<(SessionId, Option<EdgeId>, Lane), u64>,
    epochs: HashMap<SessionId, Epoch>,
    nodes_fenced: HashSet<(Option<TurnId>, NodeId)>,
    calls_fenced: HashSet<InvocationId>,
    violations: Vec<Violation>,
    tools: BTreeMap<IdempotencyKey, Tool>,
    latest: Monotonic,
}

#[derive(Debug)]
struct Tool {
    turn: TurnId,
    begins: u32,
    ends: u32,
}

#[derive(Debug, Default)]
struct Turn {
    opens: u32,
    terminals: Vec<TerminalOutcome>,
    closes: u32,
    is_fenced: bool,
    /// When it was first known to be cancelled or to have ended.
    over_at: Option<Monotonic>,
    state: Option<TurnState>,
    plan_hashes: Vec<String>,
    has_evidence: bool,
}

impl Turn {
    fn fence(&mut self, at: Monotonic) {
        self.is_fenced = true;
        self.over_at.get_or_insert(at);
    }
}

/// Checks a whole recording.
pub fn verify<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Vec<Violation> {
    let mut verifier = Verifier::default();
    for entry in entries {
        verifier.observe(entry);
    }
    verifier.finish()
}

impl Verifier {
    /// Takes in the next entry.
    pub fn observe(&mut self, entry: &Entry) {
        self.latest = self.latest.max(entry.at());
        if let Some(envelope) = entry.envelope() {
            self.envelope(envelope, entry.at());
        }
        match entry {
            Entry::Signal(signal) => self.signal(signal, entry.at()),
            Entry::Event(event) => self.event(&event.record, entry.at()),
            Entry::Transition(moved) => self.transition(&moved.turn_id, moved.step, moved.at),
            Entry::Plan(plan) => {
                self.turn(&plan.turn_id)
                    .plan_hashes
                    .push(plan.plan_hash.clone());
            }
            Entry::Turn(evidence) => self.evidence(evidence, entry.at()),
            Entry::Tool(step) => self.tool(step),
            Entry::Header(_)
            | Entry::Outcome(_)
            | Entry::Attempt(_)
            | Entry::Invocation(_)
            | Entry::Handoff(_)
            | Entry::Playout(_)
            | Entry::Level(_)
            | Entry::Dropped(_)
            | Entry::Journal(_)
            | Entry::Opening(_)
            | Entry::Capture(_)
            | Entry::Footer(_) => {}
        }
    }

    /// What is broken so far.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    fn tool(&mut self, step: &ToolEntry) {
        let turn = self.turns.get(&step.turn_id);
        // Signals are stamped in whole milliseconds.
        let over_at = turn.and_then(|turn| turn.over_at);
        let is_over = over_at.is_some_and(|over| step.at.as_millis() > over.as_millis());
        let tool = self
            .tools
            .entry(step.idempotency_key.clone())
            .or_insert_with(|| Tool {
                turn: step.turn_id.clone(),
                begins: 0,
                ends: 0,
            });
        tool.ends += u32::from(step.step.is_end());
        let (call, at) = (&step.call_id, step.at);
        let mut detail = None;
        if step.step == ToolStep::Began {
            tool.begins += 1;
            if tool.begins > 1 {
                detail = Some(format!("call {call} began twice"));
            } else if tool.ends > 0 {
                detail = Some(format!("call {call} began after its end"));
            } else if is_over {
                detail = Some(format!("call {call} began for a turn that was over"));
            }
        }
        if let Some(detail) = detail {
            self.report(Rule::ToolBeginsInTime, Some(&step.turn_id), at, detail);
        }
    }

    /// What is broken, now that nothing more comes.
    #[must_use]
    pub fn finish(mut self) -> Vec<Violation> {
        let at = self.latest;
        for (key, tool) in std::mem::take(&mut self.tools) {
            if tool.ends != 1 {
                let detail = format!("the call with key {key} has {} ends", tool.ends);
                self.report(Rule::ToolEndOnce, Some(&tool.turn), at, detail);
            }
        }
        for (id, turn) in std::mem::take(&mut self.turns) {
            if turn.opens == 0 {
                continue;
            }
            let id = Some(&id);
            if turn.terminals.is_empty() {
                self.report(Rule::TerminalOnce, id, at, "the turn never ended");
            }
            if turn.closes == 0 {
                self.report(
                    Rule::CloseAfterTerminal,
                    id,
                    at,
                    "the turn was never closed",
                );
            }
            if !turn.has_evidence {
                self.report(
                    Rule::EvidencePresent,
                    id,
                    at,
                    "the accepted turn left no evidence",
                );
            }
        }
        self.violations
    }

    fn envelope(&mut self, envelope: &Envelope, at: Monotonic) {
        let session = &envelope.session_id;
        let turn = envelope.turn_id.as_ref();
        let key = (session.clone(), envelope.edge_id.clone(), envelope.lane);
        let found = envelope.runtime_sequence;
        if let Some(last) = self.sequences.insert(key, found)
            && found <= last
        {
            let edge = envelope.edge_id.as_ref().map_or("no edge", EdgeId::as_str);
            let detail = format!("{found} after {last} on {edge}, {}", envelope.lane);
            self.report(Rule::SequenceRises, turn, at, detail);
        }
        if let Some(found) = envelope.authority_epoch {
            let known = self.epochs.entry(session.clone()).or_insert(found);
            let last = *known;
            *known = last.max(found);
            if found < last {
                let detail = format!(
                    "{} was written under {found} after {last}",
                    envelope.event_id
                );
                self.report(Rule::EpochRises, turn, at, detail);
            }
        }
    }

    fn signal(&mut self, signal: &ControlSignal, at: Monotonic) {
        let envelope = &signal.envelope;
        match signal.signal {
            Signal::Cancel => self.fence(signal, at),
            Signal::OutputAccepted | Signal::PlaybackStarted => {
                self.output(envelope, at, signal.signal.as_str());
            }
            Signal::TurnOpen | Signal::Commit | Signal::Abort | Signal::Close => {
                self.boundary(signal, at);
            }
            // None of these begins, ends or outputs anything.
            Signal::TurnOpenProposed
            | Signal::BargeIn
            | Signal::Stop
            | Signal::Watermark
            | Signal::BudgetWarning
            | Signal::BudgetExhausted
            | Signal::Degrade
            | Signal::Fallback
            | Signal::Discontinuity
            | Signal::DropNotice
            | Signal::FlowXoff
            | Signal::FlowXon
            | Signal::CreditGrant
            | Signal::ProviderError
            | Signal::CircuitEvent
            | Signal::ProviderSwitch
            | Signal::LeaseIssued
            | Signal::LeaseRotated
            | Signal::MigrationStart
            | Signal::MigrationFinish
            | Signal::SessionHandoff
            | Signal::Admit
            | Signal::Reject
            | Signal::Defer
            | Signal::Shed
            | Signal::StaleEpochReject
            | Signal::DeauthorizedDrain
            | Signal::Connected
            | Signal::Reconnecting
            | Signal::Disconnected
            | Signal::Ended
            | Signal::Silence
            | Signal::Stall
            | Signal::PlaybackCompleted
            | Signal::PlaybackCancelled
            | Signal::RecordingLevelDowngraded => {}
        }
    }

    fn boundary(&mut self, signal: &ControlSignal, at: Monotonic) {
        let Some(id) = &signal.envelope.turn_id else {
            return;
        };
        let name = signal.signal;
        let turn = self.turn(id);
        let before = (turn.opens, turn.terminals.len(), turn.closes);
        if name == Signal::TurnOpen {
            turn.opens += 1;
            if before.0 > 0 {
                self.report(Rule::OpenOnce, Some(id), at, "the turn opens again");
            }
            return;
        }
        turn.over_at.get_or_insert(at);
        if name == Signal::Close {
            turn.closes += 1;
        } else if name == Signal::Commit {
            turn.terminals.push(TerminalOutcome::Commit);
        } else {
            turn.terminals.push(TerminalOutcome::Abort);
        }
        let (opens, terminals, closes) = before;
        if opens == 0 {
            let detail = format!("{name} for a turn that never opened");
            self.report(Rule::EndWithoutOpen, Some(id), at, detail);
        } else if name == Signal::Close && terminals == 0 {
            self.report(
                Rule::CloseAfterTerminal,
                Some(id),
                at,
                "close before commit or abort",
            );
        } else if name == Signal::Close && closes > 0 {
            self.report(
                Rule::CloseAfterTerminal,
                Some(id),
                at,
                "the turn is closed again",
            );
        } else if name != Signal::Close && terminals > 0 {
            let detail = format!("{name} after the turn had ended");
            self.report(Rule::TerminalOnce, Some(id), at, detail);
        } else if name != Signal::Close && closes > 0 {
            let detail = format!("{name} after close");
            self.report(Rule::CloseAfterTerminal, Some(id), at, detail);
        }
    }

    fn fence(&mut self, signal: &ControlSignal, at: Monotonic) {
        let envelope = &signal.envelope;
        match signal.scope {
            Some(CancelScope::Session) => {
                // What had been opened; a later turn is not cancelled by it.
                self.turns.values_mut().for_each(|turn| turn.fence(at));
            }
            Some(CancelScope::Turn) | None => {
                if let Some(turn) = &envelope.turn_id {
                    self.turn(turn).fence(at);
                }
            }
            Some(CancelScope::Node) => {
                let node = envelope.node_id.clone();
                self.nodes_fenced
                    .extend(node.map(|node| (envelope.turn_id.clone(), node)));
            }
            Some(CancelScope::ProviderInvocation) => {
                self.calls_fenced
                    .extend(envelope.provider_invocation_id.clone());
            }
        }
    }

    fn event(&mut self, record: &EventRecord, at: Monotonic) {
        let envelope = &record.envelope;
        // What a node made is output; what the transport brought in is not.
        if envelope.lane != Lane::Data || envelope.node_id.is_none() {
            return;
        }
        let Some(id) = &envelope.turn_id else { return };
        let has_ended = self
            .turns
            .get(id)
            .is_some_and(|turn| !turn.terminals.is_empty());
        if has_ended && !envelope.late_after_cancel {
            let detail = format!("{} is output of an ended turn", envelope.event_id);
            self.report(Rule::NothingAfterTerminal, Some(id), at, detail);
        }
        self.output(envelope, at, "output");
    }

    fn output(&mut self, envelope: &Envelope, at: Monotonic, what: &str) {
        // Noted as late and refused by policy: that is the fence at work.
        if envelope.late_after_cancel {
            return;
        }
        let turn = envelope.turn_id.as_ref();
        let turn_fenced = turn
            .and_then(|id| self.turns.get(id))
            .is_some_and(|turn| turn.is_fenced);
        let node_fenced = envelope
            .node_id
            .as_ref()
            .is_some_and(|node| self.nodes_fenced.contains(&(turn.cloned(), node.clone())));
        let call = envelope.provider_invocation_id.as_ref();
        let call_fenced = call.is_some_and(|call| self.calls_fenced.contains(call));
        if turn_fenced || node_fenced || call_fenced {
            let detail = format!("{what} {} after the cancel", envelope.event_id);
            self.report(Rule::NothingAfterFence, turn, at, detail);
        }
    }

    fn transition(&mut self, id: &TurnId, step: TurnTransition, at: Monotonic) {
        let turn = self.turn(id);
        let last = turn.state.replace(step.to_state);
        if let Err(error) = step.validate() {
            self.report(Rule::TransitionLegal, Some(id), at, error.to_string());
        } else if let Some(last) = last
            && last != step.from_state
        {
            let detail = format!("the turn was in {last}, not in {}", step.from_state);
            self.report(Rule::TransitionLegal, Some(id), at, detail);
        }
    }

    fn evidence(&mut self, evidence: &TurnBaseline, at: Monotonic) {
        let id = Some(&evidence.turn_id);
        let turn = self.turn(&evidence.turn_id);
        turn.has_evidence = true;
        let opened = turn.opens > 0;
        let terminal = turn.terminals.first().copied();
        let plan_known = turn.plan_hashes.contains(&evidence.plan_hash);
        if evidence.accepted_stale_epoch_outputs > 0 {
            let detail = format!("{} were accepted", evidence.accepted_stale_epoch_outputs);
            self.report(Rule::NoStaleOutput, id, at, detail);
        }
        if !opened && !evidence.is_accepted() {
            return;
        }
        let missing = evidence.missing();
        if !missing.is_empty() {
            let detail = format!("missing: {}", missing.join(", "));
            self.report(Rule::EvidenceComplete, id, at, detail);
        }
        if !plan_known {
            let detail = format!("no plan with hash `{}` was recorded", evidence.plan_hash);
            self.report(Rule::PlanRecorded, id, at, detail);
        }
        if opened != evidence.is_accepted() {
            let detail = "evidence and signals differ on whether the turn opened";
            self.report(Rule::EvidenceAgrees, id, at, detail);
        } else if let (Some(said), Some(claimed)) = (terminal, evidence.terminal_outcome)
            && said != claimed
        {
            let (said, claimed) = (said.as_str(), claimed.as_str());
            let detail = format!("the signal says {said}, the evidence {claimed}");
            self.report(Rule::EvidenceAgrees, id, at, detail);
        }
    }

    fn turn(&mut self, id: &TurnId) -> &mut Turn {
        self.turns.entry(id.clone()).or_default()
    }

    fn report(
        &mut self,
        rule: Rule,
        turn: Option<&TurnId>,
        at: Monotonic,
        detail: impl Into<String>,
    ) {
        if self.violations.len() < MAX_LISTED {
            let (turn_id, detail) = (turn.cloned(), detail.into());
            self.violations.push(Violation {
                rule,
                turn_id,
                at,
                detail,
            });
        }
    }
}
