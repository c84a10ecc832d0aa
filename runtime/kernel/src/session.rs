//! The session machine: when a turn opens, when the user interrupts it, how it ends.
//!
//! Inputs and the time go in, effects and a deadline come out. Knows nothing of actors, audio or
//! models; the host carries out the effects, in order, and answers the ones that ask.

use std::collections::VecDeque;
use std::time::Duration;

use rspp_proto::{
    Epoch, Monotonic, TurnNumber,
    abi::{CancelScope, Emitter, Signal, TurnTransition, TurnTrigger},
    spec::{LateEventPolicy, PlanFailurePolicy, TurnPolicy},
};

use crate::{
    authority::{Authority, AuthorityFault, Checkpoint},
    budget::{BudgetEvent, BudgetKey, BudgetManager, BudgetVerdict},
    conversation::{Conversation, Reply},
    effect::{Effect, Emission, SessionState},
    input::{CancelReason, Gates, Input, PlanFacts},
    turn::{Ending, Refusal, RefusalReason, Terminal, Turn, TurnEffect, TurnInput, TurnState},
};

/// Longest text of the user that waits for the running turn to end, in bytes.
const MAX_WAITING_TEXT: usize = 4_096;

/// The turn that the session is busy with.
#[derive(Debug)]
struct Running {
    number: TurnNumber,
    turn: Turn,
    user_text: String,
    reply: Reply,
    budget: Option<BudgetManager>,
    /// The strongest ending since the last arbitration point.
    pending: Option<Ending>,
    progressed: bool,
    audible: bool,
    /// Output frames accepted, once the fence has fallen.
    accepted: Option<u32>,
}

/// What was said in a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The turn.
    pub turn: TurnNumber,
    /// The user's words.
    pub user_text: String,
    /// The agent's words, as they were to be said.
    pub agent_text: String,
    /// The agent's words, as far as they were heard.
    pub heard: String,
}

/// One conversation's decisions.
#[derive(Debug)]
pub struct Session {
    policy: TurnPolicy,
    state: SessionState,
    epoch: Epoch,
    authority: Authority,
    next_turn: TurnNumber,
    running: Option<Running>,
    /// What the user said meanwhile.
    waiting: Option<String>,
    /// When speech over the agent counts as an interruption.
    barge_in_at: Option<Monotonic>,
    conversation: Conversation,
    effects: VecDeque<Effect>,
}

impl Session {
    /// A session that waits for its transport.
    pub fn new(policy: TurnPolicy, epoch: Epoch) -> Self {
        let conversation = Conversation::new(policy.max_context_messages);
        Self {
            policy,
            state: SessionState::Connecting,
            epoch,
            authority: Authority::new(epoch),
            next_turn: TurnNumber::FIRST,
            running: None,
            waiting: None,
            barge_in_at: None,
            conversation,
            effects: VecDeque::new(),
        }
    }

    /// Where the session stands.
    pub fn state(&self) -> SessionState {
        self.state
    }

    /// The epoch under which the session speaks.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The turn in progress, if any.
    pub fn current_turn(&self) -> Option<TurnNumber> {
        self.running.as_ref().map(|running| running.number)
    }

    /// What was said so far, as heard.
    pub fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// What the running turn is about, for its evidence. What was heard is known once the fence has
    /// been answered, as it is when [`Effect::Seal`] is carried out.
    pub fn exchange(&self) -> Option<Exchange> {
        self.running.as_ref().map(|running| Exchange {
            turn: running.number,
            user_text: running.user_text.clone(),
            agent_text: running.reply.text(),
            heard: running.reply.heard(running.accepted.unwrap_or(0)),
        })
    }

    /// The next thing the host has to do; call until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Takes the fence out of turn if it is what is to be done next, so that it need not wait for
    /// whoever carries effects out.
    pub fn take_fence(&mut self) -> Option<TurnNumber> {
        match self.effects.front() {
            Some(Effect::Fence {
                turn,
                cancelled: true,
            }) => {
                let turn = *turn;
                self.effects.pop_front();
                Some(turn)
            }
            Some(_) | None => None,
        }
    }

    /// When to call [`handle`](Self::handle) with [`Input::Tick`] at the latest.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        let budget = self.running.as_ref().and_then(Running::next_deadline);
        [self.barge_in_at, budget].into_iter().flatten().min()
    }

    /// Takes in one input at `now`. What ends a turn is only noted: [`settle`](Self::settle)
    /// decides over everything that is pending at one arbitration point.
    pub fn handle(&mut self, now: Monotonic, input: Input) {
        if self.state == SessionState::Ended {
            return; // ENDED is for good (F-138).
        }
        match input {
            Input::Connected => self.connected(),
            Input::Disconnected => self.disconnected(),
            Input::Drain => self.drain(),
            Input::SpeechStarted { at: _ } => self.speech_started(now),
            Input::SpeechStopped { at: _ } => self.barge_in_at = None,
            Input::UserTurn { text } => self.user_turn(text),
            Input::Cancel { reason, scope } => {
                self.cancel(reason, scope);
                if scope == CancelScope::Session {
                    self.drain();
                }
            }
            Input::CancelPart { reason, scope } => self.cancelled(reason, scope),
            Input::Rotated { epoch } => self.rotated(epoch),
            Input::Revoked => self.revoked(),
            Input::Gates { turn, gates } => self.judge(turn, gates),
            Input::Plan { turn, facts } => self.planned(now, turn, facts),
            Input::Fenced { turn, accepted } => self.of_turn(turn, |running| {
                // A second fence finds nothing left to count.
                running.accepted.get_or_insert(accepted);
            }),
            Input::Sealed { turn, stored } => self.sealed(turn, stored),
            Input::Progress { turn } => self.of_turn(turn, |running| running.progressed = true),
            Input::ClauseBegun {
                turn,
                segment,
                text,
            } => self.of_turn(turn, |running| {
                running.progressed = true;
                running.reply.begin(segment, text);
            }),
            Input::FramesMade {
                turn,
                segment,
                frames,
            } => {
                self.of_turn(turn, |running| running.reply.add_frames(segment, frames));
            }
            Input::ClauseMade { turn, segment } => {
                self.of_turn(turn, |running| running.reply.complete(segment));
            }
            Input::PlaybackStarted { turn } => self.playback_started(now, turn),
            Input::PlaybackFinished { turn } => self.playback_finished(turn),
            Input::TurnFailed { turn, ending } => {
                self.of_turn(turn, |running| running.end(ending));
            }
            Input::Tick => self.tick(now),
        }
    }

    /// Ends an arbitration point: of all endings noted since the last one, the strongest wins
    /// (design §7). Call when the control lane has been drained.
    pub fn settle(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        let Some(ending) = running.pending.take() else {
            return;
        };
        if running.turn.state() == TurnState::Active {
            let turn = running.number;
            let cancelled = false;
            self.effects.push_back(Effect::Fence { turn, cancelled });
            self.step(TurnInput::Ended(ending));
        }
    }

    // --- transport ---------------------------------------------------------------------------

    fn connected(&mut self) {
        if self.state == SessionState::Connecting {
            self.enter(SessionState::Active);
        }
        self.signal(Signal::Connected, Emitter::ConnectionAdapter, None);
    }

    fn disconnected(&mut self) {
        self.signal(Signal::Disconnected, Emitter::ConnectionAdapter, None);
        self.waiting = None;
        if let Some(running) = &mut self.running {
            running.end(Ending::TransportLost);
        }
        self.drain();
    }

    fn drain(&mut self) {
        if self.state != SessionState::Draining {
            self.enter(SessionState::Draining);
        }
        if self.running.is_none() {
            self.end();
        }
    }

    fn end(&mut self) {
        self.signal(Signal::Ended, Emitter::ConnectionAdapter, None);
        self.enter(SessionState::Ended);
    }

    fn enter(&mut self, state: SessionState) {
        self.state = state;
        self.effects.push_back(Effect::Session(state));
    }

    // --- the user ----------------------------------------------------------------------------

    fn speech_started(&mut self, now: Monotonic) {
        let interruptible = self
            .running
            .as_ref()
            .is_some_and(|running| running.turn.state() == TurnState::Active);
        if self.policy.barge_in && interruptible {
            let sure = Duration::from_millis(self.policy.barge_in_min_speech_ms);
            self.barge_in_at.get_or_insert(now + sure);
        }
    }

    /// Something was said. It opens a turn now, or as soon as the running one has ended; with
    /// barge-in, words are reason enough to end it.
    fn user_turn(&mut self, text: String) {
        if text.trim().is_empty() || self.state != SessionState::Active {
            return;
        }
        if self.running.is_none() {
            self.propose(text);
            return;
        }
        match &mut self.waiting {
            Some(waiting) if waiting.len() + text.len() < MAX_WAITING_TEXT => {
                waiting.push(' ');
                waiting.push_str(&text);
            }
            Some(_) | None => self.waiting = Some(text),
        }
        if self.policy.barge_in {
            self.cancel(CancelReason::BargeIn, CancelScope::Turn);
        }
    }

    /// Accepts a cancel: the fence falls before anything else is said or done (lifecycle.md §6).
    fn cancel(&mut self, reason: CancelReason, scope: CancelScope) {
        self.barge_in_at = None;
        let Some(running) = &mut self.running else {
            return;
        };
        let already = running.pending >= Some(Ending::Cancelled);
        if running.turn.state() != TurnState::Active || already {
            return;
        }
        let turn = running.number;
        let audible = running.audible;
        running.end(Ending::Cancelled);
        let cancelled = true;
        self.effects.push_back(Effect::Fence { turn, cancelled });
        if reason == CancelReason::BargeIn {
            self.signal(Signal::BargeIn, Emitter::CancellationManager, Some(turn));
        }
        self.cancelled(reason, scope);
        self.effects.push_back(Effect::Cancel { turn, reason });
        if audible {
            self.signal_because(
                Signal::PlaybackCancelled,
                Emitter::TransportMapping,
                Some(turn),
                "cancel_fence_applied",
            );
        }
    }

    /// Says that a cancel was accepted, and of what (event-abi.md §4).
    fn cancelled(&mut self, reason: CancelReason, scope: CancelScope) {
        let turn = self.current_turn();
        self.effects.push_back(Effect::Signal(Emission {
            signal: Signal::Cancel,
            emitter: Emitter::CancellationManager,
            turn,
            reason: Some(reason.as_str()),
            scope: Some(scope),
        }));
    }

    // --- opening a turn ----------------------------------------------------------------------

    fn propose(&mut self, user_text: String) {
        let number = self.next_turn;
        self.next_turn = number.next();
        self.running = Some(Running {
            number,
            turn: Turn::default(),
            user_text,
            reply: Reply::default(),
            budget: None,
            pending: None,
            progressed: false,
            audible: false,
            accepted: None,
        });
        self.signal_because(
            Signal::TurnOpenProposed,
            Emitter::PreludeEngine,
            None,
            "session_turn_intent",
        );
        self.step(TurnInput::Proposed);
        self.effects.push_back(Effect::Judge { turn: number });
    }

    /// Snapshot validity, epoch validity, authorisation, in this order; the plan comes last.
    fn judge(&mut self, turn: TurnNumber, gates: Gates) {
        if !self.is_opening(turn) {
            return;
        }
        let refusal = if !gates.snapshot_valid {
            Some(Refusal::Defer(RefusalReason::Snapshot)) // T2
        } else if !gates.capacity {
            Some(Refusal::Reject(RefusalReason::Capacity)) // T2
        } else {
            match self.authority.check(Checkpoint::Dispatch, gates.epoch) {
                Err(AuthorityFault::Stale { .. } | AuthorityFault::WithoutLease { .. }) => {
                    Some(Refusal::StaleEpoch) // T3
                }
                Err(AuthorityFault::Revoked { .. }) => Some(Refusal::Deauthorized), // T4
                Ok(()) if !gates.authorized => Some(Refusal::Deauthorized),         // T4
                Ok(()) => None,
            }
        };
        match refusal {
            Some(refusal) => self.step(TurnInput::Refused(refusal)),
            None => self.effects.push_back(Effect::Resolve {
                turn,
                epoch: self.epoch,
            }),
        }
    }

    fn planned(&mut self, now: Monotonic, turn: TurnNumber, facts: Option<PlanFacts>) {
        if !self.is_opening(turn) {
            return;
        }
        // Authority may have gone while the plan was built (T4 still holds).
        if self.authority.epoch().is_none() {
            self.step(TurnInput::Refused(Refusal::Deauthorized));
            return;
        }
        let Some(facts) = facts else {
            let refusal = match self.policy.plan_failure {
                PlanFailurePolicy::Defer => Refusal::Defer(RefusalReason::Plan),
                PlanFailurePolicy::Reject => Refusal::Reject(RefusalReason::Plan),
            };
            self.step(TurnInput::Refused(refusal)); // T5a
            return;
        };
        self.of_turn(turn, |running| {
            running.budget = Some(BudgetManager::new(&facts.budgets, facts.actions, now));
        });
        self.step(TurnInput::PlanResolved); // T5
    }

    fn is_opening(&self, turn: TurnNumber) -> bool {
        self.running.as_ref().is_some_and(|running| {
            running.number == turn && running.turn.state() == TurnState::Opening
        })
    }

    // --- a running turn ----------------------------------------------------------------------

    /// Runs `change` on the turn if it is the running one; everything else is late (T11).
    fn of_turn(&mut self, turn: TurnNumber, change: impl FnOnce(&mut Running)) {
        match &mut self.running {
            Some(running) if running.number == turn => change(running),
            Some(_) | None => self.late(turn),
        }
    }

    fn late(&mut self, turn: TurnNumber) {
        match self.policy.late_events {
            // Words of a closed turn cannot propose a new one: what the user says arrives as
            // `UserTurn` and opens its own.
            LateEventPolicy::Drop | LateEventPolicy::Repropose => {}
            LateEventPolicy::Diagnostics => self.effects.push_back(Effect::Late { turn }),
        }
    }

    fn playback_started(&mut self, now: Monotonic, turn: TurnNumber) {
        let mut first = false;
        self.of_turn(turn, |running| {
            first = !running.audible && running.pending.is_none();
            running.audible = true;
            if let Some(budget) = &mut running.budget {
                budget.first_output(now);
            }
        });
        if first {
            self.signal_because(
                Signal::OutputAccepted,
                Emitter::TransportMapping,
                Some(turn),
                "output_accepted",
            );
            self.signal(
                Signal::PlaybackStarted,
                Emitter::TransportMapping,
                Some(turn),
            );
        }
    }

    fn playback_finished(&mut self, turn: TurnNumber) {
        let mut completed = false;
        self.of_turn(turn, |running| {
            completed = running.audible && running.pending.is_none();
            running.end(Ending::Finished);
        });
        if completed {
            self.signal(
                Signal::PlaybackCompleted,
                Emitter::TransportMapping,
                Some(turn),
            );
        }
    }

    fn tick(&mut self, now: Monotonic) {
        if self.barge_in_at.is_some_and(|at| at <= now) {
            self.cancel(CancelReason::BargeIn, CancelScope::Turn);
        }
        let Some(mut running) = self.running.as_mut() else {
            return;
        };
        let turn = running.number;
        while let Some(event) = running.poll_budget(now) {
            let reason = event.key.as_str();
            let signals: Vec<_> = event.signals().collect();
            let ends = running.is_ended_by(&event);
            if ends {
                running.end(Ending::BudgetTerminated);
            }
            for signal in signals {
                self.signal_because(signal, Emitter::BudgetManager, Some(turn), reason);
            }
            if ends {
                let reason = CancelReason::Timeout;
                self.effects.push_back(Effect::Cancel { turn, reason });
                return;
            }
            let Some(next) = &mut self.running else {
                return;
            };
            running = next;
        }
    }

    // --- authority ---------------------------------------------------------------------------

    /// A turn that opened under the older epoch cannot be continued: what it says would be refused.
    fn rotated(&mut self, epoch: Epoch) {
        if self.authority.grant(epoch).is_err() {
            return; // Epochs only rise; an older one is stale news.
        }
        self.epoch = epoch;
        if let Some(running) = &mut self.running {
            running.end(Ending::AuthorityLost);
        }
        self.effects.push_back(Effect::Rotate { epoch });
    }

    /// Nothing may be said any more: what runs ends, and the session with it (T8, lifecycle.md §7).
    fn revoked(&mut self) {
        self.authority.revoke();
        self.waiting = None;
        self.effects.push_back(Effect::Revoke);
        if let Some(running) = &mut self.running {
            running.end(Ending::AuthorityLost);
            if running.turn.state() == TurnState::Opening {
                self.step(TurnInput::Refused(Refusal::Deauthorized)); // T4
            }
        } else {
            let reason = Refusal::Deauthorized.as_str();
            self.signal_because(
                Signal::DeauthorizedDrain,
                Emitter::ContractGuard,
                None,
                reason,
            );
        }
        self.drain();
    }

    // --- carrying out what the turn machine says ---------------------------------------------

    fn sealed(&mut self, turn: TurnNumber, stored: bool) {
        if self.current_turn() == Some(turn) {
            self.step(TurnInput::Sealed { stored });
        }
    }

    fn step(&mut self, input: TurnInput) {
        let Some(running) = &mut self.running else {
            return;
        };
        let (turn, from) = (running.number, running.turn.state());
        let mut out = Vec::new();
        running.turn = running.turn.step(input, &mut out);
        let to = running.turn.state();
        if from == TurnState::Idle && to == TurnState::Opening {
            self.transition(turn, from, TurnTrigger::TurnOpenProposed);
        }
        for effect in out {
            self.turn_effect(turn, effect);
        }
        if from != to {
            match to {
                TurnState::Closed => self.closed(turn),
                // A refused intent leaves no turn behind.
                TurnState::Idle => {
                    self.running = None;
                    self.turn_is_over();
                }
                TurnState::Opening | TurnState::Active | TurnState::Terminal => {}
            }
        }
    }

    fn turn_effect(&mut self, turn: TurnNumber, effect: TurnEffect) {
        match effect {
            TurnEffect::Refuse(refusal) => self.refuse(turn, refusal),
            TurnEffect::Open => self.open(turn),
            TurnEffect::Drain => self.signal_because(
                Signal::DeauthorizedDrain,
                Emitter::ContractGuard,
                Some(turn),
                "authority_revoked_in_turn",
            ),
            TurnEffect::Seal(terminal) => self.effects.push_back(Effect::Seal { turn, terminal }),
            TurnEffect::End(Terminal::Commit) => {
                self.signal(Signal::Commit, Emitter::TurnArbiter, Some(turn));
                self.transition(turn, TurnState::Active, TurnTrigger::Commit);
            }
            TurnEffect::End(Terminal::Abort(reason)) => {
                let reason = reason.as_str();
                self.signal_because(Signal::Abort, Emitter::TurnArbiter, Some(turn), reason);
                self.transition(turn, TurnState::Active, TurnTrigger::Abort);
            }
            TurnEffect::Close => {
                self.signal(Signal::Close, Emitter::TurnArbiter, Some(turn));
                self.transition(turn, TurnState::Terminal, TurnTrigger::Close);
            }
            TurnEffect::Late => self.late(turn),
        }
    }

    fn refuse(&mut self, turn: TurnNumber, refusal: Refusal) {
        use TurnTrigger as T;
        let (signal, emitter, trigger) = match refusal {
            Refusal::Defer(_) => (Signal::Defer, Emitter::LocalAdmission, T::Defer),
            Refusal::Reject(_) => (Signal::Reject, Emitter::LocalAdmission, T::Reject),
            Refusal::StaleEpoch => {
                let guard = Emitter::ContractGuard;
                (Signal::StaleEpochReject, guard, T::StaleEpochReject)
            }
            Refusal::Deauthorized => {
                let guard = Emitter::ContractGuard;
                (Signal::DeauthorizedDrain, guard, T::DeauthorizedDrain)
            }
        };
        self.signal_because(signal, emitter, None, refusal.as_str());
        self.transition(turn, TurnState::Opening, trigger);
        self.effects.push_back(Effect::Refused { turn, refusal });
    }

    fn open(&mut self, turn: TurnNumber) {
        self.signal_because(
            Signal::Admit,
            Emitter::LocalAdmission,
            None,
            "admission_capacity_allow",
        );
        self.signal(Signal::TurnOpen, Emitter::TurnArbiter, Some(turn));
        self.transition(turn, TurnState::Opening, TurnTrigger::TurnOpen);
        let Some(running) = &self.running else {
            return;
        };
        let user_text = running.user_text.clone();
        self.conversation.user_said(user_text.clone());
        self.effects.push_back(Effect::Start { turn, user_text });
    }

    fn transition(&mut self, turn: TurnNumber, from: TurnState, trigger: TurnTrigger) {
        let step = TurnTransition::new(from, trigger)
            .expect("the turn machine makes the moves of the table and no others");
        self.effects.push_back(Effect::Transition { turn, step });
    }

    fn closed(&mut self, turn: TurnNumber) {
        self.effects.push_back(Effect::Stop { turn });
        if let Some(running) = self.running.take() {
            let heard = running.reply.heard(running.accepted.unwrap_or(0));
            let interrupted = heard.len() < running.reply.text().len();
            self.conversation.agent_was_heard(heard, interrupted);
        }
        self.turn_is_over();
    }

    fn turn_is_over(&mut self) {
        self.barge_in_at = None;
        if self.state == SessionState::Draining {
            self.end();
        } else if let Some(text) = self.waiting.take() {
            self.propose(text);
        }
    }

    fn signal(&mut self, signal: Signal, emitter: Emitter, turn: Option<TurnNumber>) {
        self.effects.push_back(Effect::Signal(Emission {
            signal,
            emitter,
            turn,
            reason: None,
            scope: None,
        }));
    }

    fn signal_because(
        &mut self,
        signal: Signal,
        emitter: Emitter,
        turn: Option<TurnNumber>,
        reason: &'static str,
    ) {
        self.effects.push_back(Effect::Signal(Emission {
            signal,
            emitter,
            turn,
            reason: Some(reason),
            scope: None,
        }));
    }
}

// === impl Running ===

impl Running {
    fn end(&mut self, ending: Ending) {
        self.pending = self.pending.max(Some(ending));
    }

    fn is_bound(&self) -> bool {
        self.turn.state() == TurnState::Active && self.pending.is_none()
    }

    fn next_deadline(&self) -> Option<Monotonic> {
        let budget = self.budget.as_ref().filter(|_| self.is_bound())?;
        budget.next_deadline()
    }

    fn poll_budget(&mut self, now: Monotonic) -> Option<BudgetEvent> {
        if !self.is_bound() {
            return None;
        }
        // Nodes take their own fallbacks; a whole turn has none.
        self.budget.as_mut()?.poll(now, |_| false)
    }

    /// A first output that is late but on its way is waited for: ending the turn would only put
    /// silence in its place (T10 asks that nothing legal be left).
    fn is_ended_by(&self, event: &BudgetEvent) -> bool {
        match event.verdict {
            BudgetVerdict::Continue | BudgetVerdict::Degrade | BudgetVerdict::Fallback => false,
            BudgetVerdict::Terminate => event.key != BudgetKey::Turn || !self.progressed,
        }
    }
}

#[cfg(test)]
mod tests;
