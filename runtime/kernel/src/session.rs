//! The session machine: when a turn opens, when the user interrupts it, how it ends.
//!
//! Inputs and the time go in, effects and a deadline come out. Knows nothing of actors, audio or
//! models; the host carries out the effects, in order, and answers the ones that ask.

mod moves;
mod speculation;
mod tools;

use std::{cmp::Ordering, collections::VecDeque, time::Duration};

use rspp_proto::{
    Epoch, Monotonic, SampleIndex, TurnNumber,
    abi::{CancelMode, CancelScope, Emitter, Signal, TurnTransition, TurnTrigger},
    spec::{ConnectionPolicy, LateEventPolicy, PlanFailurePolicy, TurnPolicy},
};

use crate::{
    admission::{self, Cause, Limit},
    authority::{Authority, AuthorityFault, Checkpoint, LeaseDuty, Tenure},
    budget::{BudgetEvent, BudgetKey, BudgetManager, BudgetVerdict},
    continuation::Continuation,
    conversation::{Conversation, Reply, Said},
    effect::{Effect, Emission, LateAction, SessionState},
    input::{CancelReason, Gates, Input, Part, Placement, PlanFacts, Unrecognised},
    interruption::{Interruption, Verdict},
    journal::{Decision, Journal, Line},
    link::{Link, LinkEnd, LinkEvent},
    recovery::{Course, Task, Voice},
    session::{moves::NeverOpened, tools::Tools},
    speculation::{Discarded, Speculation},
    tool::ToolTable,
    turn::{
        AbortReason, Ending, Refusal, RefusalReason, Terminal, Turn, TurnEffect, TurnInput,
        TurnState,
    },
};

/// Words that wait for room are not proposed again sooner than this.
const LEAST_WAIT: Duration = Duration::from_millis(10);
/// Longest text of the user that waits for the running turn to end, in bytes.
const MAX_WAITING_TEXT: usize = 4_096;

/// Why the connection's end takes a turn with it (lifecycle.md §5).
const GONE: &str = AbortReason::TransportDisconnectOrStall.as_str();

/// Why the epoch is another one.
const ROTATED: &str = "authority_epoch_rotation";

/// The turn that the session is busy with.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug)]
struct Running {
    number: TurnNumber,
    turn: Turn,
    user_text: String,
    /// First sample after the speech that it answers; `None` if that was typed.
    until: Option<SampleIndex>,
    reply: Reply,
    /// What was decided about letting it in.
    admission: admission::Decision,
    budget: Option<BudgetManager>,
    cancel_mode: CancelMode,
    /// A soft cancel was accepted; what is in flight is being finished.
    softening: Option<Softening>,
    watch: Watch,
    /// The strongest ending since the last arbitration point.
    pending: Option<Ending>,
    progressed: bool,
    audible: bool,
    /// Output frames accepted, once the fence has fallen.
    accepted: Option<u32>,
    course: Course,
    tools: ToolTable,
    /// It was begun as a guess.
    promoted: bool,
    /// Its words wait for room, as was said when they were first proposed.
    waits: bool,
}

/// A soft cancel whose fence has not fallen.
#[derive(Clone, Copy, Debug)]
struct Softening {
    reason: CancelReason,
    /// When the fence falls at the latest.
    until: Monotonic,
}

/// Watches that a turn that has begun to speak does not go mute (P13).
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    gap: Duration,
    /// The longest that who is at work may be silent.
    most: Duration,
    /// The newest sign of life: somebody was heard, or has brought a piece of what is to be heard.
    alive: Monotonic,
    /// From where the gap is counted: beyond the sign of life while somebody is at work.
    sign: Monotonic,
    /// A stage that hangs was looked for already.
    unstuck: bool,
    /// It ran out.
    expired: bool,
}

/// When a turn is proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// At once.
    AtOnce,
    /// Once it is known whether what was guessed can be the turn.
    Guessed,
    /// Once there is news: its words wait for room.
    Waiting,
}

/// Words that wait for room, because the policy is to throttle (F-050).
#[derive(Clone, Copy, Debug)]
struct Throttled {
    since: Monotonic,
    until: Monotonic,
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

/// Words of the user that are to be answered when the running turn has ended.
#[derive(Debug)]
struct Waiting {
    text: String,
    until: Option<SampleIndex>,
}

/// One conversation's decisions.
#[derive(Debug)]
pub struct Session {
    policy: TurnPolicy,
    connection: ConnectionPolicy,
    link: Link,
    /// Since when nobody takes what is said: time stands still for the turn.
    away_since: Option<Monotonic>,
    state: SessionState,
    epoch: Epoch,
    authority: Authority,
    /// The lease, if it has an end.
    tenure: Option<Tenure>,
    /// Whether the session has come from another placement, and its user not yet.
    arriving: bool,
    /// Whether the session is about to be handed over: until then it does not end by itself.
    moving: bool,
    next_turn: TurnNumber,
    /// Numbers that were given away, and did not become turns.
    never_opened: NeverOpened,
    running: Option<Running>,
    /// What the user said meanwhile.
    waiting: Option<Waiting>,
    /// Whether speech over the agent interrupts it.
    interruption: Interruption,
    /// The newest closed turn, and where in the user's audio the speech that it answered ended.
    answered: Option<(TurnNumber, SampleIndex)>,
    /// The newest closed turn's reply, and what is held to be heard of it.
    replied: Option<(TurnNumber, Reply, String)>,
    throttled: Option<Throttled>,
    conversation: Conversation,
    voice: Voice,
    /// What follows the turn that failed.
    apology: Option<Task>,
    tools: Tools,
    speculation: Speculation,
    effects: VecDeque<Effect>,
    /// What it is told and decides, for a replay; if somebody keeps it.
    journal: Option<Journal>,
}

impl Session {
    /// A session that waits for its transport.
    pub fn new(policy: TurnPolicy, epoch: Epoch) -> Self {
        let conversation = Conversation::new(policy.max_context_messages);
        let interruption = Interruption::new(&policy);
        // By then the turn would have been detected, and its words recognised or given up.
        let patience = policy
            .max_turn_silence_ms
            .saturating_add(policy.transcript_timeout_ms)
            .saturating_add(1_000);
        let speculation =
            Speculation::new(policy.speculation.clone(), Duration::from_millis(patience));
        Self {
            policy,
            connection: ConnectionPolicy::default(),
            link: Link::default(),
            away_since: None,
            state: SessionState::Connecting,
            epoch,
            authority: Authority::new(epoch),
            tenure: None,
            arriving: false,
            moving: false,
            next_turn: TurnNumber::FIRST,
            never_opened: NeverOpened::default(),
            running: None,
            waiting: None,
            interruption,
            answered: None,
            replied: None,
            throttled: None,
            conversation,
            voice: Voice::default(),
            apology: None,
            tools: Tools::default(),
            speculation,
            effects: VecDeque::new(),
            journal: None,
        }
    }

    /// The same with a journal, to be taken with [`poll_journal`](Self::poll_journal).
    #[must_use]
    pub fn journaled(mut self, now: Monotonic) -> Self {
        let mut journal = Journal::default();
        let opened = Line::Opened {
            policy: Box::new(self.policy.clone()),
            connection: Box::new(self.connection),
            epoch: self.epoch,
        };
        journal.note(Some(now), opened);
        self.journal = Some(journal);
        self
    }

    /// The next line of the journal; call until `None`.
    pub fn poll_journal(&mut self) -> Option<(Monotonic, Line)> {
        self.journal.as_mut()?.take()
    }

    /// The same with another way of treating its connection.
    #[must_use]
    pub fn with_connection(mut self, policy: ConnectionPolicy) -> Self {
        self.connection = policy;
        self
    }

    /// How the connection stands.
    pub fn link(&self) -> Link {
        self.link
    }

    /// Where the session stands.
    pub fn state(&self) -> SessionState {
        self.state
    }

    /// The epoch under which the session speaks.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// When the session falls silent unless its lease is renewed; `None` if it does not by itself.
    pub fn silent_at(&self) -> Option<Monotonic> {
        self.tenure.as_ref().map(Tenure::silent_at)
    }

    /// The turn in progress, if any.
    pub fn current_turn(&self) -> Option<TurnNumber> {
        self.running.as_ref().map(|running| running.number)
    }

    /// The running turn, unless something is about to end it.
    pub fn open_turn(&self) -> Option<TurnNumber> {
        let running = self.running.as_ref().filter(|running| running.is_bound())?;
        Some(running.number)
    }

    /// Whether the agent is being heard: derived from what was accepted for playout, not from what
    /// anybody meant to say (P13).
    pub fn is_speaking(&self) -> bool {
        self.interruption.held_since().is_none()
            && self
                .running
                .as_ref()
                .is_some_and(|running| running.audible && running.pending.is_none())
    }

    /// What was said so far, as heard.
    pub fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// What another placement needs to go on from here, with what was heard of the running turn. That is
    /// known once the fence has been answered, as it is when [`Effect::Seal`] is carried out.
    pub fn continuation(&self) -> Continuation {
        let mut conversation = self.conversation.clone();
        if let Some(running) = &self.running {
            for call in running.tools.calls() {
                conversation.tool_was_called(call.exchange(running.number));
            }
            let heard = running.reply.heard(running.accepted.unwrap_or(0));
            let interrupted = heard.len() < running.reply.text().len();
            conversation.agent_was_heard(heard, interrupted);
        }
        let unanswered = self.waiting.as_ref().filter(|_| self.moving);
        Continuation {
            next_turn: self.next_turn,
            said: conversation.iter().cloned().collect(),
            unanswered: unanswered.map(|waiting| waiting.text.clone()),
        }
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
        let effect = self.effects.pop_front()?;
        if let Some(journal) = &mut self.journal
            && let Some(decision) = Decision::of(&effect)
        {
            journal.note(None, Line::Decided(decision));
        }
        Some(effect)
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
        let held = self.interruption.held_since().is_some() || self.away_since.is_some();
        // What has ended waits for nothing but its arbitration.
        let running = self.running.as_ref();
        let running = running.filter(|running| running.pending.is_none());
        let budget = running.filter(|_| !held).and_then(Running::next_deadline);
        let softening = running.and_then(|running| running.softening);
        let fence = softening.map(|softening| softening.until);
        let doubt = running.and_then(|_| self.interruption.next_deadline());
        let lease = self.tenure.as_ref().map(Tenure::next_deadline);
        let link = self.link.deadline();
        let guess = self.speculation.deadline();
        let throttled = self.throttled.filter(|_| self.running.is_none() && !held);
        let again = throttled.map(|throttled| throttled.until);
        let deadlines = [doubt, budget, fence, lease, link, guess, again];
        deadlines.into_iter().flatten().min()
    }

    /// Takes in one input at `now`. What ends a turn is only noted: [`settle`](Self::settle)
    /// decides over everything that is pending at one arbitration point.
    pub fn handle(&mut self, now: Monotonic, input: Input) {
        if let Some(journal) = &mut self.journal {
            journal.note(Some(now), Line::Input(Box::new(input.clone())));
        }
        if self.refuses(&input) {
            return;
        }
        if self.state == SessionState::Ended && !matches!(input, Input::GuessSpent { .. }) {
            return; // ENDED is for good (F-138), but a bill may come late.
        }
        match input {
            Input::Connected => self.connection(now, LinkEvent::Up),
            Input::Disconnected => self.connection(now, LinkEvent::HungUp),
            Input::Reconnecting => self.connection(now, LinkEvent::Reconnecting),
            Input::ConnectionLost => self.connection(now, LinkEvent::Lost),
            Input::LineSilent => self.connection(now, LinkEvent::Silent),
            Input::LineStalled => self.connection(now, LinkEvent::Stalled),
            Input::LineFlowing => {
                self.arrived();
                self.connection(now, LinkEvent::Flowing);
            }
            Input::Drain => self.drain(),
            Input::SpeechStarted { at } => {
                self.discard(Discarded::UserWentOn);
                self.heard(now, |judge| judge.started(now, at));
            }
            Input::SpeechResumed { at } => self.heard(now, |judge| judge.resumed(now, at)),
            Input::SpeechStopped { at: _ } => self.interruption.stopped(now),
            Input::Recognised { at, text, is_final } => {
                self.heard(now, |judge| judge.recognised(at, &text, is_final));
            }
            Input::UserTurn { text } => self.user_turn(now, text, None),
            Input::Spoken { text, from, until } => self.spoken(now, text, from, until),
            Input::UserPaused { text } => self.user_paused(now, text),
            Input::WordsHanded { text } => self.words_handed(now, text),
            Input::GuessFailed { turn } => {
                if self.speculation.guess().is_some_and(|it| it.number == turn) {
                    self.discard(Discarded::Failed);
                }
            }
            Input::GuessSpent { tokens, characters } => {
                self.speculation.spent(now, tokens, characters);
            }
            Input::Unrecognised { why, apology } => self.unrecognised(why, apology),
            Input::Stop => {
                let reason = CancelReason::UserCancel;
                self.cancel(now, reason, CancelScope::Turn, Emitter::LaneRouter);
            }
            Input::Cancel { reason, scope } => {
                self.cancel(now, reason, scope, Emitter::CancellationManager);
                if scope == CancelScope::Session {
                    self.drain();
                }
            }
            Input::CancelPart {
                reason,
                part,
                silences: true,
            } => self.cancel_by(now, reason, part.scope(), None, Some(part)),
            Input::CancelPart {
                reason,
                part,
                silences: false,
            } => self.cancelled(reason, part.scope(), Some(part), None),
            Input::Resumed(continuation) => self.resumed(*continuation),
            Input::Placed(placement) => self.placed(placement),
            Input::Leased { asked, ttl } => self.tenure = Some(Tenure::new(asked, ttl)),
            Input::Renewed { ttl } => self.renewed(now, ttl),
            Input::Leaving => self.leaving(),
            Input::Inherited(inheritance) => self.inherit(*inheritance),
            Input::HandedOver => self.handed_over(),
            Input::Rotated { epoch } => self.rotated(epoch),
            Input::Revoked => self.revoked(),
            Input::Gates { turn, gates } => self.judge(now, turn, gates),
            Input::Plan { turn, facts } => self.planned(now, turn, facts),
            Input::Fenced { turn, accepted } => self.of_turn(turn, |running| {
                // A second fence finds nothing left to count.
                running.accepted.get_or_insert(accepted);
            }),
            Input::Heard { turn, frames } => self.was_heard(turn, frames),
            Input::Sealed { turn, stored } => self.sealed(turn, stored),
            Input::Progress { turn } => self.of_turn(turn, |running| running.progress(now)),
            Input::ClauseBegun {
                turn,
                segment,
                text,
            } => self.of_turn(turn, |running| {
                running.progress(now);
                running.reply.begin(segment, text);
            }),
            Input::FramesMade {
                turn,
                segment,
                frames,
            } => {
                self.of_turn(turn, |running| {
                    running.progress(now);
                    running.reply.add_frames(segment, frames);
                });
            }
            Input::ClauseMade { turn, segment } => {
                self.of_turn(turn, |running| {
                    running.progress(now);
                    running.reply.complete(segment);
                });
            }
            Input::ClauseOver { turn } => self.of_turn(turn, |running| {
                if running.softening.is_some() {
                    running.end(Ending::Cancelled);
                }
            }),
            Input::Pulse {
                turn,
                heard,
                answered,
                at_work,
            } => self.pulse(now, turn, (heard, answered), at_work),
            Input::TookOver { turn, is_voice } => self.of_turn(turn, |running| {
                if is_voice {
                    running.reply.break_off();
                }
                running.watch.unstuck = false;
                running.show_life(now);
            }),
            Input::ClauseShown {
                turn,
                segment,
                text,
            } => self.shown(now, turn, segment, text),
            Input::VoiceLost { turn } => self.voice_lost(now, turn),
            Input::PlaybackStarted { turn } => self.playback_started(now, turn),
            Input::PlaybackFinished { turn } => self.playback_finished(turn),
            Input::TurnFailed { turn, ending } => {
                self.of_turn(turn, |running| running.end(ending));
            }
            Input::ToolsCalled { turn, node, calls } => {
                self.tools_called(now, turn, &node, calls);
            }
            Input::ToolBegan { turn, call } => self.tool_began(turn, &call),
            Input::ToolEnded {
                turn,
                call,
                outcome,
            } => {
                self.tool_ended(turn, &call, &outcome);
                self.tool_answered(now, turn);
            }
            Input::ToolInterrupted { turn, call, began } => {
                self.tool_interrupted(turn, &call, began);
            }
            Input::ToolsGivenUp => self.give_tools_up(),
            Input::Tick => self.tick(now),
        }
    }

    /// Ends an arbitration point: of all endings noted since the last one, the strongest wins
    /// (design §7). Call when the control lane has been drained.
    pub fn settle(&mut self) {
        if let Some(journal) = &mut self.journal
            && self.running.is_some()
        {
            journal.note(None, Line::Settled);
        }
        let Some(running) = &mut self.running else {
            return;
        };
        let Some(ending) = running.pending.take() else {
            return;
        };
        if running.turn.state() != TurnState::Active {
            return;
        }
        let turn = running.number;
        let audible = running.audible;
        let softened = running.softening.take().map(|softening| softening.reason);
        let system = running.cancelled_by(ending);
        // A soft cancel has been told when it was accepted; its fence falls now.
        let cancelled = softened.is_some() || system.is_some();
        self.effects.push_back(Effect::Fence { turn, cancelled });
        self.interrupt_tools();
        self.let_go(turn, "turn_ended");
        if let Some(reason) = system.filter(|_| softened.is_none()) {
            self.cancelled(reason, CancelScope::Turn, None, Some(CancelMode::Hard));
        }
        if let Some(reason) = softened.or(system) {
            self.stop_work(turn, reason, audible);
        }
        self.step(TurnInput::Ended(ending));
    }

    // --- transport ---------------------------------------------------------------------------

    fn connection(&mut self, now: Monotonic, event: LinkEvent) {
        let (link, signal) = self.link.step(now, event, &self.connection);
        if link == std::mem::replace(&mut self.link, link) {
            return;
        }
        self.note_away(now);
        let emitter = Emitter::ConnectionAdapter;
        if let Link::Ended(end) = link {
            match end {
                LinkEnd::HungUp => self.signal(Signal::Disconnected, emitter, None),
                LinkEnd::Lost | LinkEnd::Stalled => {
                    self.signal_because(Signal::Disconnected, emitter, None, GONE);
                }
            }
            self.disconnected();
            return;
        }
        if self.state == SessionState::Connecting && link == Link::Connected {
            self.enter(SessionState::Active);
        }
        if let Some(signal) = signal {
            self.signal(signal, emitter, None);
        }
        self.answer_what_waited();
        self.leave_unheard();
    }

    /// Nobody waits where the session leaves for the end of what nobody hears.
    fn leave_unheard(&mut self) {
        if self.moving
            && !self.link.takes_output()
            && let Some(running) = &mut self.running
        {
            running.end(Ending::TransportLost);
        }
    }

    /// A turn is not charged for the time in which nobody took what it said.
    fn note_away(&mut self, now: Monotonic) {
        match (self.away_since, self.link.takes_output()) {
            (None, false) => self.away_since = Some(now),
            (Some(since), true) => {
                self.away_since = None;
                if let Some(running) = &mut self.running {
                    if let Some(budget) = &mut running.budget {
                        budget.postpone(now.since(since));
                    }
                    running.show_life(now);
                }
            }
            (None, true) | (Some(_), false) => {}
        }
    }

    /// The connection is over: a turn in progress is told apart from a quiet end by `stall` (F6).
    fn disconnected(&mut self) {
        self.waiting = None;
        self.moving = false;
        if let Some(running) = &mut self.running {
            running.end(Ending::TransportLost);
            let emitter = Emitter::ConnectionAdapter;
            self.signal_because(Signal::Stall, emitter, None, GONE);
        }
        self.drain();
    }

    fn drain(&mut self) {
        if self.state == SessionState::Ended {
            return;
        }
        self.discard(Discarded::SessionOver);
        self.throttled = None; // What waits for room waits for a turn that will not come.
        if self.state != SessionState::Draining {
            self.enter(SessionState::Draining);
        }
        if self.running.is_none() {
            self.end();
        }
    }

    fn end(&mut self) {
        if self.tools.are_under_way() {
            return; // What was begun on the user's behalf is seen through, within its deadline (P7).
        }
        if self.moving {
            self.effects.push_back(Effect::HandOver);
            return; // Until it is handed over.
        }
        self.signal(Signal::Ended, Emitter::ConnectionAdapter, None);
        self.enter(SessionState::Ended);
    }

    fn enter(&mut self, state: SessionState) {
        self.state = state;
        self.effects.push_back(Effect::Session(state));
    }

    // --- the user ----------------------------------------------------------------------------

    /// Has what was heard over an interruptible turn judged, and does what follows.
    fn heard(&mut self, now: Monotonic, judge: impl FnOnce(&mut Interruption) -> Verdict) {
        let interruptible = self.running.as_ref().is_some_and(Running::is_bound);
        if !self.policy.barge_in || !interruptible {
            return;
        }
        let since = self.interruption.held_since();
        let verdict = judge(&mut self.interruption);
        self.follow(now, since, verdict);
    }

    /// `since` is when playout was held before the verdict.
    fn follow(&mut self, now: Monotonic, since: Option<Monotonic>, verdict: Verdict) {
        let Some(running) = &mut self.running else {
            return;
        };
        let turn = running.number;
        match verdict {
            Verdict::Nothing => {}
            Verdict::Hold => self.effects.push_back(Effect::Hold { turn }),
            Verdict::Release => {
                // The agent was kept waiting: that is none of its own time.
                let pause = now.since(since.unwrap_or(now));
                if let Some(budget) = &mut running.budget {
                    budget.postpone(pause);
                }
                running.show_life(now);
                let reason = "false_interruption";
                self.effects.push_back(Effect::Release { turn, reason });
            }
            Verdict::Interrupt => {
                let (reason, by) = (CancelReason::BargeIn, Emitter::CancellationManager);
                self.cancel(now, reason, CancelScope::Turn, by);
            }
        }
    }

    /// Forgets about a suspicion; what is held of the turn, which is over, is let go.
    fn let_go(&mut self, turn: TurnNumber, reason: &'static str) {
        if self.interruption.held_since().is_some() {
            self.effects.push_back(Effect::Release { turn, reason });
        }
        self.interruption.forget();
    }

    /// Words whose speech began before the end of what a closed turn has answered come too late for
    /// it (T11): it stays closed, and the policy says what becomes of them.
    fn spoken(&mut self, now: Monotonic, text: String, from: SampleIndex, until: SampleIndex) {
        let late = self.answered.filter(|(_, answered)| from < *answered);
        let Some((turn, _)) = late else {
            self.user_turn(now, text, Some(until));
            return;
        };
        match self.policy.late_events {
            LateEventPolicy::Drop => self.effects.push_back(Effect::Late {
                turn,
                action: LateAction::Drop,
            }),
            LateEventPolicy::Diagnostics => self.effects.push_back(Effect::Late {
                turn,
                action: LateAction::Diagnostics,
            }),
            LateEventPolicy::Repropose => {
                self.effects.push_back(Effect::Late {
                    turn,
                    action: LateAction::Repropose,
                });
                self.user_turn(now, text, Some(until));
            }
        }
    }

    /// Something was said. It opens a turn now, or as soon as the running one has ended; with
    /// barge-in, words are reason enough to end it.
    fn user_turn(&mut self, now: Monotonic, text: String, until: Option<SampleIndex>) {
        // Nothing is opened where the session leaves; what is said there goes along, and interrupts all the same.
        let leaves = self.moving && self.state == SessionState::Draining;
        if text.trim().is_empty() || !(leaves || self.state == SessionState::Active) {
            return;
        }
        self.arrived();
        let Some(running) = &self.running else {
            if leaves || self.throttled.is_some() {
                self.discard(Discarded::WordsDiffer);
                self.keep(text, until);
            } else {
                self.open_with(now, text, until);
            }
            return;
        };
        let interruptible = self.policy.barge_in && running.is_bound();
        if interruptible && until.is_some() && !self.interruption.are_enough(&text) {
            // "Mm-hm": said to an agent that is to go on.
            self.heard(now, Interruption::dismissed);
            return;
        }
        self.keep(text, until);
        if self.policy.barge_in {
            let (reason, by) = (CancelReason::BargeIn, Emitter::CancellationManager);
            self.cancel(now, reason, CancelScope::Turn, by);
        }
    }

    /// What the user has said is given up: that is said, and the user is told, unless somebody talks.
    fn unrecognised(&mut self, why: Unrecognised, apology: Option<String>) {
        if self.state != SessionState::Active {
            return;
        }
        let is_free = self.running.is_none() && self.waiting.is_none() && self.throttled.is_none();
        let apology = apology.filter(|_| is_free);
        let signal = if apology.is_some() {
            Signal::Fallback
        } else {
            Signal::Degrade
        };
        self.signal_because(signal, Emitter::BudgetManager, None, why.as_str());
        if let Some(words) = apology {
            self.apologise(Task::Say { words });
        }
    }

    /// Keeps words for the next turn.
    fn keep(&mut self, text: String, until: Option<SampleIndex>) {
        match &mut self.waiting {
            Some(waiting) if waiting.text.len() + text.len() < MAX_WAITING_TEXT => {
                waiting.text.push(' ');
                waiting.text.push_str(&text);
                waiting.until = waiting.until.max(until);
            }
            Some(_) | None => self.waiting = Some(Waiting { text, until }),
        }
    }

    /// Accepts a cancel: the fence falls before anything else is said or done (lifecycle.md §6). A
    /// soft one lets the clause that is being heard end first (F-041).
    fn cancel(&mut self, now: Monotonic, reason: CancelReason, scope: CancelScope, by: Emitter) {
        let asked = match reason {
            CancelReason::BargeIn => Some((Signal::BargeIn, by)),
            CancelReason::UserCancel => Some((Signal::Stop, by)),
            CancelReason::Timeout | CancelReason::ProviderError => None,
        };
        self.cancel_by(now, reason, scope, asked, None);
    }

    /// The same, with the signal of who asked for it, or the one part that was meant: who cancels a node
    /// has not asked the agent to stop.
    fn cancel_by(
        &mut self,
        now: Monotonic,
        reason: CancelReason,
        scope: CancelScope,
        asked: Option<(Signal, Emitter)>,
        part: Option<Part>,
    ) {
        let running = self
            .running
            .as_mut()
            .filter(|running| running.turn.state() == TurnState::Active);
        let Some(running) = running else {
            if scope == CancelScope::Session {
                if let Some((asked, by)) = asked {
                    self.signal(asked, by, None);
                }
                self.cancelled(reason, scope, None, Some(CancelMode::Hard));
            }
            return;
        };
        if running.pending >= Some(Ending::Cancelled) {
            return;
        }
        let turn = running.number;
        let audible = running.audible;
        if running.softening.is_some() {
            // Asked again to be silent: what is in flight is not finished either.
            if reason != CancelReason::BargeIn {
                running.end(Ending::Cancelled);
            }
            return;
        }
        let held = self.interruption.held_since().is_some();
        let mode = running.mode_of(reason, scope, held);
        match mode {
            CancelMode::Hard => {
                running.end(Ending::Cancelled);
                let cancelled = true;
                self.effects.push_back(Effect::Fence { turn, cancelled });
            }
            CancelMode::Soft => {
                let until = now + Duration::from_millis(self.policy.soft_cancel_ms);
                running.softening = Some(Softening { reason, until });
            }
        }
        self.interrupt_tools();
        self.let_go(
            turn,
            match reason {
                CancelReason::BargeIn => "barge_in_confirmed",
                // Whether the user meant to interrupt is not known: something else was quicker.
                CancelReason::UserCancel | CancelReason::Timeout | CancelReason::ProviderError => {
                    reason.as_str()
                }
            },
        );
        if let Some((asked, by)) = asked {
            self.signal(asked, by, Some(turn));
        }
        self.cancelled(reason, scope, part, Some(mode));
        match mode {
            CancelMode::Hard => self.stop_work(turn, reason, audible),
            CancelMode::Soft => self.effects.push_back(Effect::Soften { turn, reason }),
        }
    }

    /// The fence has fallen: everybody who works for the turn is told.
    fn stop_work(&mut self, turn: TurnNumber, reason: CancelReason, audible: bool) {
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
    fn cancelled(
        &mut self,
        reason: CancelReason,
        scope: CancelScope,
        part: Option<Part>,
        mode: Option<CancelMode>,
    ) {
        let turn = self.current_turn();
        self.effects.push_back(Effect::Signal(Emission {
            signal: Signal::Cancel,
            emitter: Emitter::CancellationManager,
            turn,
            reason: Some(reason.as_str()),
            scope: Some(scope),
            part,
            mode,
        }));
    }

    // --- opening a turn ----------------------------------------------------------------------

    fn propose(&mut self, user_text: String, until: Option<SampleIndex>) {
        let number = self.number_turn();
        self.propose_as(number, Task::Answer { user_text }, until, Manner::AtOnce);
    }

    /// The number of the turn that comes next, which no other gets.
    fn number_turn(&mut self) -> TurnNumber {
        let next = self.next_turn.next();
        std::mem::replace(&mut self.next_turn, next)
    }

    /// An apology for the turn that failed; it answers nobody.
    fn apologise(&mut self, task: Task) {
        let number = self.number_turn();
        self.propose_as(number, task, None, Manner::AtOnce);
    }

    fn propose_as(
        &mut self,
        number: TurnNumber,
        task: Task,
        until: Option<SampleIndex>,
        manner: Manner,
    ) {
        let user_text = task.user_text().to_owned();
        self.running = Some(Running {
            number,
            course: Course::new(task),
            turn: Turn::default(),
            user_text,
            until,
            reply: Reply::default(),
            admission: admission::Decision::ADMIT,
            budget: None,
            cancel_mode: CancelMode::Hard,
            softening: None,
            watch: Watch::default(),
            pending: None,
            progressed: false,
            audible: false,
            accepted: None,
            tools: ToolTable::default(),
            promoted: manner == Manner::Guessed,
            waits: manner == Manner::Waiting,
        });
        if manner == Manner::AtOnce {
            self.proposed();
        }
        self.effects.push_back(Effect::Judge { turn: number });
    }

    fn proposed(&mut self) {
        self.signal_because(
            Signal::TurnOpenProposed,
            Emitter::PreludeEngine,
            None,
            "session_turn_intent",
        );
        self.step(TurnInput::Proposed);
    }

    /// Snapshot validity, epoch validity, authorisation, room for evidence, in this order; the plan comes
    /// last.
    fn judge(&mut self, now: Monotonic, turn: TurnNumber, gates: Gates) {
        if self.waits_on(now, turn, &gates) {
            return;
        }
        let Some(turn) = self.confirm(turn, gates.guess_holds) else {
            return;
        };
        let throttled = self.throttled.take();
        let full = match gates.admission.verdict {
            admission::Verdict::Admit | admission::Verdict::Degrade => None,
            // Waited in vain: nobody asks again.
            admission::Verdict::Defer { .. } if throttled.is_some() => {
                Some(Refusal::Reject(RefusalReason::Capacity))
            }
            admission::Verdict::Throttle { .. } | admission::Verdict::Defer { .. } => {
                Some(Refusal::Defer(RefusalReason::Capacity))
            }
            admission::Verdict::Reject => Some(Refusal::Reject(RefusalReason::Capacity)),
        };
        let refusal = if !gates.snapshot_valid {
            Some(Refusal::Defer(RefusalReason::Snapshot)) // T2
        } else if full.is_some() {
            self.throttle(now, throttled, gates.admission.verdict);
            full // T2
        } else {
            match self.authority.check(Checkpoint::Dispatch, gates.epoch) {
                Err(AuthorityFault::Stale { .. } | AuthorityFault::WithoutLease { .. }) => {
                    Some(Refusal::StaleEpoch) // T3
                }
                Err(AuthorityFault::Revoked { .. }) => Some(Refusal::Deauthorized), // T4
                Ok(()) if !gates.authorized => Some(Refusal::Deauthorized),         // T4
                // Its end could not be told: it does not begin (T9, invariant 16).
                Ok(()) if !gates.evidence => Some(Refusal::Defer(RefusalReason::Evidence)),
                Ok(()) => None,
            }
        };
        self.of_turn(turn, |running| running.admission = gates.admission);
        match refusal {
            Some(refusal) => self.step(TurnInput::Refused(refusal)),
            None => self.effects.push_back(Effect::Resolve {
                turn,
                epoch: self.epoch,
                degraded: gates.admission.verdict == admission::Verdict::Degrade,
            }),
        }
    }

    /// Whether the words that wait for room go on waiting: that was said when they began to, and there is
    /// nothing new to say.
    fn waits_on(&mut self, now: Monotonic, turn: TurnNumber, gates: &Gates) -> bool {
        let waits = |running: &Running| running.number == turn && running.waits;
        let still = matches!(gates.admission.verdict, admission::Verdict::Throttle { .. });
        if !still || !gates.snapshot_valid || !self.running.as_ref().is_some_and(waits) {
            return false;
        }
        let throttled = self.throttled.take();
        self.throttle(now, throttled, gates.admission.verdict);
        self.running = None;
        self.next_turn = turn; // It has meant nothing to anybody.
        true
    }

    /// Keeps the words of an intent that was refused only for now, to propose them again.
    fn throttle(&mut self, now: Monotonic, before: Option<Throttled>, verdict: admission::Verdict) {
        let admission::Verdict::Throttle { retry_after } = verdict else {
            return;
        };
        let Some(running) = &self.running else {
            return;
        };
        match running.course.task {
            Task::Answer { .. } => {}
            Task::Say { .. } | Task::Play { .. } => return, // Nobody waits for an apology.
        }
        // What was said since comes after it.
        let later = self.waiting.replace(Waiting {
            text: running.user_text.clone(),
            until: running.until,
        });
        if let Some(Waiting { text, until }) = later {
            self.keep(text, until);
        }
        self.throttled = Some(Throttled {
            since: before.map_or(now, |before| before.since),
            until: now + retry_after.max(LEAST_WAIT),
        });
    }

    /// How long the words of the turn that is being opened were kept waiting for room.
    pub fn waited(&self, now: Monotonic) -> Duration {
        self.throttled
            .map_or(Duration::ZERO, |throttled| now.since(throttled.since))
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
        let mute = self.voice.is_mute(now);
        self.of_turn(turn, |running| {
            running.watch.gap = Duration::from_millis(facts.budgets.output_gap_ms);
            running.watch.most = Duration::from_millis(facts.budgets.max_silence_ms);
            running.budget = Some(BudgetManager::new(&facts.budgets, facts.actions, now));
            running.cancel_mode = facts.cancel_mode;
            running.course.policy = facts.failure;
            running.course.mute = mute && !running.promoted;
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
            // Only words can propose a turn: see `spoken`.
            LateEventPolicy::Drop | LateEventPolicy::Repropose => {}
            LateEventPolicy::Diagnostics => self.effects.push_back(Effect::Late {
                turn,
                action: LateAction::Diagnostics,
            }),
        }
    }

    fn playback_started(&mut self, now: Monotonic, turn: TurnNumber) {
        let mut first = false;
        let mut spoken = false;
        self.of_turn(turn, |running| {
            first = !running.audible && running.pending.is_none() && running.softening.is_none();
            running.progress(now);
            running.audible = true;
            spoken = match running.course.task {
                Task::Answer { .. } | Task::Say { .. } => true,
                Task::Play { .. } => false,
            };
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
        if spoken && self.voice.regain() {
            self.effects.push_back(Effect::Voice { available: true });
        }
    }

    fn playback_finished(&mut self, turn: TurnNumber) {
        let mut completed = false;
        self.of_turn(turn, |running| {
            completed = running.audible && running.pending.is_none() && running.softening.is_none();
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
        if self.link.deadline().is_some_and(|at| at <= now) {
            self.connection(now, LinkEvent::Expired);
        }
        match self.tenure.as_mut().and_then(|tenure| tenure.poll(now)) {
            Some(LeaseDuty::Renew) => self.effects.push_back(Effect::Renew),
            Some(LeaseDuty::FallSilent) => self.revoked(),
            None => {}
        }
        self.guess_is_due(now);
        self.heard(now, |judge| judge.tick(now));
        if self.interruption.held_since().is_some() || self.away_since.is_some() {
            return; // Time stands still for the turn.
        }
        let Some(running) = &mut self.running else {
            self.try_again(now);
            return;
        };
        if running
            .softening
            .is_some_and(|softening| softening.until <= now)
        {
            running.end(Ending::Cancelled);
        }
        if running.tools.is_waiting() {
            // The user waits for something that is being done, within its own deadline.
            running.show_life(now);
        }
        if running.seems_mute(now) {
            let turn = running.number;
            self.effects.push_back(Effect::Probe { turn });
        } else {
            self.spend(now);
        }
    }

    /// How the turn that seems mute really is.
    fn pulse(
        &mut self,
        now: Monotonic,
        turn: TurnNumber,
        (heard, answered): (Option<Monotonic>, Option<Monotonic>),
        at_work: bool,
    ) {
        self.of_turn(turn, |running| {
            let watch = &mut running.watch;
            if let Some(alive) = heard.max(answered).filter(|at| *at > watch.alive) {
                watch.alive = alive;
                watch.unstuck = false;
            }
            // Whoever is at work is waited for, but not for ever: by what it does it lives (P13).
            let patience = watch.most.saturating_sub(watch.gap);
            let excused = at_work.then(|| now.min(watch.alive + patience));
            if let Some(sign) = heard.max(excused).filter(|sign| *sign > watch.sign) {
                running.hold_off(sign);
            }
        });
        self.spend(now);
    }

    /// Tells of budgets that run low or out, and does what follows.
    fn spend(&mut self, now: Monotonic) {
        let Some(mut running) = self.running.as_mut() else {
            return;
        };
        let turn = running.number;
        while let Some(event) = running.poll_budget(now) {
            let reason = event.key.as_str();
            let mut signals: Vec<_> = event.signals().collect();
            let ending = running.ended_by(&event);
            if let Some(ending) = ending {
                running.end(ending);
            }
            let unstick =
                event.key == BudgetKey::Output && event.verdict == BudgetVerdict::Fallback;
            if unstick {
                // Who takes over says so itself, if there is somebody.
                signals.truncate(1);
                running.watch.unstuck = true;
                running.hold_off(now);
            }
            for signal in signals {
                self.signal_because(signal, Emitter::BudgetManager, Some(turn), reason);
            }
            if unstick {
                self.effects.push_back(Effect::Unstick { turn });
            }
            let Some(next) = self.running.as_mut().filter(|_| ending.is_none()) else {
                return;
            };
            running = next;
        }
    }

    /// Proposes words again that waited for room.
    fn try_again(&mut self, now: Monotonic) {
        let due = self
            .throttled
            .is_some_and(|throttled| throttled.until <= now);
        if !due {
            return;
        }
        match self.waiting.take() {
            Some(Waiting { text, until }) if self.state == SessionState::Active => {
                let number = self.number_turn();
                let task = Task::Answer { user_text: text };
                self.propose_as(number, task, until, Manner::Waiting);
            }
            Some(_) | None => self.throttled = None,
        }
    }

    // --- authority ---------------------------------------------------------------------------

    fn placed(&mut self, placement: Placement) {
        let lease = Emitter::PlacementLease;
        match placement {
            Placement::Issued => self.signal(Signal::LeaseIssued, lease, None),
            Placement::TakenOver => {
                self.arriving = true;
                self.signal_because(Signal::LeaseRotated, lease, None, ROTATED);
            }
        }
    }

    /// The user is heard here: a session that came from elsewhere has moved (F-157).
    fn arrived(&mut self) {
        if std::mem::take(&mut self.arriving) {
            let route = Emitter::RoutingView;
            let reason = "region_failover_complete";
            self.signal_because(Signal::MigrationFinish, route, None, reason);
        }
    }

    /// Goes on where another placement was; one that has begun itself knows better.
    fn resumed(&mut self, continuation: Continuation) {
        if self.next_turn == TurnNumber::FIRST && self.running.is_none() {
            self.next_turn = continuation.next_turn;
            let said = continuation.said.into_iter().map(|mut said| {
                if let Said::Tool(exchange) = &mut said {
                    tools::moved(exchange);
                }
                said
            });
            self.conversation.go_on(said);
            let unanswered = continuation.unanswered;
            self.waiting = unanswered.map(|text| Waiting { text, until: None });
            self.answer_what_waited();
        }
    }

    /// What was said where the session left is answered here, once its user is here too.
    fn answer_what_waited(&mut self) {
        let is_free = self.running.is_none() && self.throttled.is_none();
        if is_free
            && self.state == SessionState::Active
            && let Some(Waiting { text, until }) = self.waiting.take()
        {
            self.propose(text, until);
        }
    }

    fn renewed(&mut self, now: Monotonic, ttl: Option<Duration>) {
        let Some(tenure) = &mut self.tenure else {
            return;
        };
        match ttl {
            Some(ttl) => tenure.renewed(ttl),
            None => tenure.unanswered(now),
        }
    }

    /// Drains, but stays until the other side has taken over: the conversation is still here.
    fn leaving(&mut self) {
        if self.moving || self.state != SessionState::Active {
            return;
        }
        self.moving = true;
        let emitter = Emitter::RoutingView;
        self.signal_because(
            Signal::MigrationStart,
            emitter,
            None,
            "region_failover_start",
        );
        self.leave_unheard();
        self.drain();
    }

    fn handed_over(&mut self) {
        let emitter = Emitter::RoutingView;
        self.signal_because(
            Signal::SessionHandoff,
            emitter,
            None,
            "authoritative_handoff",
        );
        self.revoked();
    }

    /// A turn that opened under the older epoch cannot be continued: what it says would be refused.
    fn rotated(&mut self, epoch: Epoch) {
        match epoch.cmp(&self.epoch) {
            Ordering::Greater => {}
            Ordering::Equal => return, // It is there already.
            // Epochs only rise.
            Ordering::Less => {
                let guard = Emitter::ContractGuard;
                let fault = AuthorityFault::of(Some(self.epoch), epoch);
                self.signal_because(fault.signal(), guard, None, fault.reason(false));
                return;
            }
        }
        self.authority
            .grant(epoch)
            .expect("the session and its authority are at one epoch");
        self.epoch = epoch;
        self.discard(Discarded::SessionOver);
        if let Some(running) = &mut self.running {
            running.end(Ending::AuthorityLost);
        }
        self.effects.push_back(Effect::Rotate { epoch });
        self.signal_because(Signal::LeaseRotated, Emitter::PlacementLease, None, ROTATED);
    }

    /// Nothing may be said any more: what runs ends, and the session with it (T8, lifecycle.md §7).
    fn revoked(&mut self) {
        self.authority.revoke();
        self.tenure = None;
        self.moving = false;
        self.waiting = None;
        self.effects.push_back(Effect::Revoke);
        self.give_tools_up();
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
                    if self.running.take().is_some_and(|running| running.promoted) {
                        self.speculation.take_back();
                        let reason = Discarded::Refused;
                        self.effects.push_back(Effect::Discard { turn, reason });
                    }
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
            TurnEffect::Seal(terminal) => {
                match terminal {
                    // The last frames may still wait at the peer, and are to be heard.
                    Terminal::Commit => {}
                    Terminal::Abort(_) => self.effects.push_back(Effect::Flush { turn }),
                }
                self.effects.push_back(Effect::Seal { turn, terminal });
            }
            TurnEffect::End(Terminal::Commit) => {
                self.act(turn, true);
                self.signal(Signal::Commit, Emitter::TurnArbiter, Some(turn));
                self.transition(turn, TurnState::Active, TurnTrigger::Commit);
            }
            TurnEffect::End(Terminal::Abort(reason)) => {
                self.act(turn, false);
                self.of_turn(turn, |running| running.course.aborted = Some(reason));
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
        self.never_opened.note(turn);
        let running = self.running.as_ref();
        let decision = running.map_or(admission::Decision::ADMIT, |running| running.admission);
        self.effects.push_back(Effect::Refused {
            turn,
            refusal,
            decision,
        });
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
        let admission = running.admission;
        let promoted = running.promoted;
        let budget = running.budget.as_ref();
        let deadlines = budget
            .and_then(BudgetManager::deadlines)
            .expect("a turn opens with its budgets, and unheard");
        let (task, mute) = (running.course.task.clone(), running.course.mute);
        if admission.verdict == admission::Verdict::Degrade {
            let (emitter, reason) = degraded_by(admission.cause);
            self.signal_because(Signal::Degrade, emitter, Some(turn), reason);
        }
        // An apology answers nobody.
        if let Task::Answer { user_text } = &task {
            self.conversation.tools_are_known();
            self.conversation.user_said(user_text.clone());
        }
        self.effects.push_back(if promoted {
            Effect::Promote { turn, deadlines }
        } else {
            Effect::Start {
                turn,
                task,
                mute,
                deadlines,
            }
        });
    }

    fn transition(&mut self, turn: TurnNumber, from: TurnState, trigger: TurnTrigger) {
        let step = TurnTransition::new(from, trigger)
            .expect("the turn machine makes the moves of the table and no others");
        self.effects.push_back(Effect::Transition { turn, step });
    }

    fn closed(&mut self, turn: TurnNumber) {
        self.effects.push_back(Effect::Stop { turn });
        if let Some(running) = self.running.take() {
            let answered = running.until.map(|until| (turn, until));
            self.answered = answered.or(self.answered);
            self.keep_tools(turn, &running.tools);
            let heard = running.reply.heard(running.accepted.unwrap_or(0));
            let interrupted = heard.len() < running.reply.text().len();
            self.replied = Some((turn, running.reply, heard.clone()));
            self.conversation.agent_was_heard(heard, interrupted);
            self.apology = running.course.apology();
        }
        self.turn_is_over();
    }

    /// The client says how much was heard of a reply. It may be less than was sent, never more (P2).
    fn was_heard(&mut self, turn: TurnNumber, frames: u32) {
        if let Some(running) = self.running.as_mut().filter(|it| it.number == turn) {
            running.accepted = running.accepted.map(|accepted| accepted.min(frames));
            return;
        }
        let Some((_, reply, before)) = self.replied.as_mut().filter(|it| it.0 == turn) else {
            return;
        };
        let heard = reply.heard(frames);
        if heard.len() < before.len() {
            self.conversation.agent_was_heard_less(before, &heard);
            *before = heard;
        }
    }

    fn turn_is_over(&mut self) {
        // Who has said something meanwhile gets an answer to that instead.
        let apology = self.apology.take();
        self.interruption.forget();
        if self.tools.take_hang_up() {
            self.moving = false; // There is nothing left to hand over.
            self.drain();
        } else if self.state == SessionState::Draining {
            self.end();
        } else if self.throttled.is_none()
            && let Some(Waiting { text, until }) = self.waiting.take()
        {
            self.propose(text, until);
        } else if let Some(apology) = apology {
            self.apologise(apology);
        }
    }

    /// A clause was sent as text: that is output too.
    fn shown(&mut self, now: Monotonic, turn: TurnNumber, segment: u32, text: String) {
        let mut first = false;
        self.of_turn(turn, |running| {
            running.progress(now);
            running.reply.show(segment, text);
            let news = !running.course.shown && !running.audible;
            first = news && running.pending.is_none();
            running.course.shown = true;
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
        }
    }

    /// The voice is gone for good: the turn goes on without, or its apology does (F-135, F-137).
    fn voice_lost(&mut self, now: Monotonic, turn: TurnNumber) {
        if self.speculation.guess().is_some_and(|it| it.number == turn) {
            self.discard(Discarded::Failed);
            return;
        }
        let mut text_only = None;
        self.of_turn(turn, |running| {
            running.course.voice_failed = true;
            let policy = &running.course.policy;
            text_only = policy.text_only.then(|| policy.clone());
        });
        let Some(policy) = text_only else { return };
        if self.voice.lose(now, &policy) {
            self.signal_because(
                Signal::Degrade,
                Emitter::BudgetManager,
                Some(turn),
                "voice_unavailable_text_only",
            );
            self.effects.push_back(Effect::Voice { available: false });
        }
    }

    fn signal(&mut self, signal: Signal, emitter: Emitter, turn: Option<TurnNumber>) {
        self.effects.push_back(Effect::Signal(Emission {
            signal,
            emitter,
            turn,
            reason: None,
            scope: None,
            part: None,
            mode: None,
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
            part: None,
            mode: None,
        }));
    }
}

/// Who chose the degrade posture, and why (event-abi.md §4).
fn degraded_by(cause: Option<Cause>) -> (Emitter, &'static str) {
    match cause.map(|cause| cause.limit) {
        Some(Limit::Load) | None => (Emitter::WatermarkEngine, "overload_degrade_posture"),
        Some(
            Limit::Sessions
            | Limit::SessionsPerMinute
            | Limit::Turns
            | Limit::TurnsPerMinute
            | Limit::TokensPerMinute,
        ) => (Emitter::BudgetManager, "quota_degrade_posture"),
    }
}

// === impl Running ===

impl Running {
    /// Once a cancel was accepted, nothing weaker ends the turn (T7).
    fn end(&mut self, ending: Ending) {
        let least = self.softening.map(|_| Ending::Cancelled);
        self.pending = self.pending.max(Some(ending)).max(least);
    }

    /// How a cancel for `reason` ends what is heard. Softly only what is really being heard, and what
    /// a person asked for: a session that ends, and a turn that has failed, end at once.
    fn mode_of(&self, reason: CancelReason, scope: CancelScope, held: bool) -> CancelMode {
        let asked = match reason {
            CancelReason::BargeIn | CancelReason::UserCancel => true,
            CancelReason::Timeout | CancelReason::ProviderError => false,
        };
        if asked && self.audible && !held && scope != CancelScope::Session {
            self.cancel_mode
        } else {
            CancelMode::Hard
        }
    }

    /// The reason that nobody but the system had to cancel the turn.
    fn cancelled_by(&self, ending: Ending) -> Option<CancelReason> {
        match ending {
            Ending::BudgetTerminated => Some(CancelReason::Timeout),
            Ending::NodeFailed if self.watch.expired => Some(CancelReason::Timeout),
            Ending::ProviderFailed => Some(CancelReason::ProviderError),
            Ending::Finished
            | Ending::TransportLost
            | Ending::NodeFailed
            | Ending::EvidenceFailed
            | Ending::Cancelled
            | Ending::AuthorityLost => None,
        }
    }

    /// The model or a voice has produced something for the turn. Once it is being heard, only what is
    /// heard shows that it lives: what is made may be stuck on its way.
    fn progress(&mut self, now: Monotonic) {
        self.progressed = true;
        if !self.audible {
            self.show_life(now);
        }
    }

    /// A sign of life: the turn may be mute for a while.
    fn show_life(&mut self, at: Monotonic) {
        self.watch.alive = self.watch.alive.max(at);
        self.hold_off(at);
    }

    /// The gap is counted from here.
    fn hold_off(&mut self, at: Monotonic) {
        if self.progressed && at >= self.watch.sign {
            self.watch.sign = at;
            if let Some(budget) = &mut self.budget {
                budget.start(at, BudgetKey::Output, self.watch.gap);
            }
        }
    }

    fn seems_mute(&self, now: Monotonic) -> bool {
        self.is_bound()
            && self
                .budget
                .as_ref()
                .is_some_and(|budget| budget.is_due(now, BudgetKey::Output))
    }

    fn is_bound(&self) -> bool {
        self.turn.state() == TurnState::Active && self.pending.is_none() && self.softening.is_none()
    }

    fn next_deadline(&self) -> Option<Monotonic> {
        let budget = self.budget.as_ref().filter(|_| self.is_bound())?;
        budget.next_deadline()
    }

    fn poll_budget(&mut self, now: Monotonic) -> Option<BudgetEvent> {
        if !self.is_bound() {
            return None;
        }
        // Nodes take their own fallbacks; a whole turn has none. But a stage that hangs can be
        // looked for, once.
        let may_unstick = !self.watch.unstuck;
        let budget = self.budget.as_mut()?;
        budget.poll(now, |key| key == BudgetKey::Output && may_unstick)
    }

    /// How the turn ends by this, if it does. A first output that is late but on its way is waited
    /// for: ending the turn would only put silence in its place (T10 asks that nothing legal be left).
    fn ended_by(&mut self, event: &BudgetEvent) -> Option<Ending> {
        match event.verdict {
            BudgetVerdict::Continue | BudgetVerdict::Degrade | BudgetVerdict::Fallback => None,
            BudgetVerdict::Terminate => match event.key {
                BudgetKey::Turn if self.progressed => None,
                BudgetKey::Output => {
                    self.watch.expired = true;
                    Some(Ending::NodeFailed)
                }
                BudgetKey::Turn
                | BudgetKey::Duration
                | BudgetKey::Path
                | BudgetKey::Node(_)
                | BudgetKey::Edge
                | BudgetKey::Provider => Some(Ending::BudgetTerminated),
            },
        }
    }
}

#[cfg(test)]
mod tests;
