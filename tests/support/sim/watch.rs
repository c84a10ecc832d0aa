//! Looks on: puts everything that a session says and plays in one order, hashes it, and checks what
//! must hold at every step.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
    hash::{DefaultHasher, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rspp_host::{Notice, Stamp};
use rspp_kernel::{SessionState, invariant};
use rspp_proto::{
    AudioChunk, Epoch, IdempotencyKey, InvocationId, Payload, SampleRate, SessionId, Speaker,
    TurnNumber,
    abi::{ControlSignal, EventRecord, Signal},
};
use rspp_provider_api::ToolRun;
use rspp_timeline::{
    EventEntry,
    verify::{Rule, Verifier},
};
use rspp_transport_api::Outgoing;
use tokio::{sync::broadcast, time::Instant};

use super::{Plant, Tally};

/// A rule that simulations keep to. Where the kernel or the timeline has it by name, it is theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// One of the kernel's.
    Kernel(invariant::Invariant),
    /// One of the timeline's.
    Recorded(Rule),
    /// Signals and events are valid by the ABI.
    ValidByTheAbi,
    /// Nothing of a turn is played once it is fenced, cancelled or over (F-175, P1).
    SilentAfterTheFence,
    /// Nothing made under an older epoch is played after a newer one was granted, or none (F-156).
    SilentForOldEpochs,
    /// Each frame is played once, in the order in which it was made.
    FramesInOrder,
    /// Each event passes an edge once, in the order in which it was made (event-abi.md §5, 1).
    EdgesInOrder,
    /// Playback is never further ahead than the peer's lead (P5).
    LeadIsKept,
    /// A turn runs one plan, whose hash holds, from its opening to its evidence (F-149).
    PlanIsFrozen,
    /// The model is told what was heard, and nothing else (P2, P3).
    ToldIsHeard,
    /// An order is answered in bounded time, whatever else goes on (P16).
    ControlIsNotStarved,
    /// A session is over in bounded time after its last word (P17, P26).
    TeardownIsBounded,
    /// Nothing is left of a session: no actor, task, provider stream or place (P20).
    NothingIsLeft,
    /// The report says what the signals say.
    ReportAgrees,
    /// A recording reads back whole, up to where its storage failed.
    RecordingReadsBack,
    /// An accepted turn has its evidence, or is aborted for want of it (OR-02, T9).
    EvidenceOrAbort,
    /// No session dies without a report.
    ReportIsLeft,
    /// Where nothing fails, every turn is answered unless the user does not let it (P11, P14).
    NothingFailsByItself,
    /// A model that fails before its first word is stood in for within the turn (F-007).
    StandbysAnswer,
    /// What the user typed is the matter of a turn (F-025).
    WordsAreAnswered,
    /// A tool has its effect once, whoever asks for it how often (P7, F-158).
    EffectsHappenOnce,
    /// A tool begins for a turn that lives, under its epoch, and for no other (P1).
    EffectsOfTheLiving,
    /// Nothing of a guess is heard, shown or done before it is a turn; a wrong one never becomes one
    /// (P9).
    GuessesAreMute,
    /// Of two placements of a session the newer speaks, and no other (F-156, AE-003).
    OneWriter,
    /// Who is refused at the door costs nobody inside, and leaves nothing (F-049, F1).
    RefusalsCostNothing,
    /// A session that holds more than it may ends (P19).
    MemoryIsBounded,
    /// What is told of a provider call names the turn that it was made for, be that over or not (F-160).
    CallsNameTheirTurn,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(rule) => f.write_str(rule.id()),
            Self::Recorded(rule) => f.write_str(rule.id()),
            Self::ValidByTheAbi => f.write_str("valid-by-the-abi"),
            Self::SilentAfterTheFence => f.write_str("silent-after-the-fence"),
            Self::SilentForOldEpochs => f.write_str("silent-for-old-epochs"),
            Self::FramesInOrder => f.write_str("frames-in-order"),
            Self::EdgesInOrder => f.write_str("edges-in-order"),
            Self::LeadIsKept => f.write_str("lead-is-kept"),
            Self::PlanIsFrozen => f.write_str("plan-is-frozen"),
            Self::ToldIsHeard => f.write_str("told-is-heard"),
            Self::ControlIsNotStarved => f.write_str("control-is-not-starved"),
            Self::TeardownIsBounded => f.write_str("teardown-is-bounded"),
            Self::NothingIsLeft => f.write_str("nothing-is-left"),
            Self::ReportAgrees => f.write_str("report-agrees"),
            Self::RecordingReadsBack => f.write_str("recording-reads-back"),
            Self::EvidenceOrAbort => f.write_str("evidence-or-abort"),
            Self::ReportIsLeft => f.write_str("report-is-left"),
            Self::NothingFailsByItself => f.write_str("nothing-fails-by-itself"),
            Self::StandbysAnswer => f.write_str("standbys-answer"),
            Self::WordsAreAnswered => f.write_str("words-are-answered"),
            Self::EffectsHappenOnce => f.write_str("effects-happen-once"),
            Self::EffectsOfTheLiving => f.write_str("effects-of-the-living"),
            Self::GuessesAreMute => f.write_str("guesses-are-mute"),
            Self::OneWriter => f.write_str("one-writer"),
            Self::RefusalsCostNothing => f.write_str("refusals-cost-nothing"),
            Self::MemoryIsBounded => f.write_str("memory-is-bounded"),
            Self::CallsNameTheirTurn => f.write_str("calls-name-their-turn"),
        }
    }
}

/// A rule that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub invariant: Invariant,
    /// Whose session, if it is about one.
    pub caller: Option<u8>,
    /// When, in virtual time.
    pub at: Duration,
    /// What was found.
    pub detail: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let caller = self
            .caller
            .map_or_else(|| "-".into(), |of| format!("c{of}"));
        let (rule, detail) = (self.invariant, &self.detail);
        write!(f, "{rule}  {caller}  at {:?}: {detail}", self.at)
    }
}

/// Most rules broken that are kept of one scenario.
const MOST_BROKEN: usize = 20;

/// What all watchers of a scenario write to.
#[derive(Clone)]
pub(super) struct Trace(Arc<Mutex<State>>);

pub(super) struct State {
    began: Instant,
    hash: DefaultHasher,
    /// The same for each caller alone, whenever it was looked at.
    of_callers: BTreeMap<u8, DefaultHasher>,
    lines: Option<Vec<String>>,
    pub(super) broken: Vec<Broken>,
    pub(super) tally: Tally,
    /// Placements of sessions, by the epoch under which each began.
    pub(super) placed: BTreeSet<(SessionId, Epoch)>,
    /// The newest sequence that passed a tap, by placement, tap and turn.
    passed: BTreeMap<Passed, u64>,
    /// Who has begun to have an effect under each key: caller, placement and call.
    keys: BTreeMap<IdempotencyKey, (u8, Option<Epoch>, String)>,
    /// Callers who were refused at the door.
    pub(super) refused: BTreeSet<u8>,
}

impl Trace {
    pub(super) fn new(keep_lines: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            began: Instant::now(),
            hash: DefaultHasher::new(),
            of_callers: BTreeMap::new(),
            lines: keep_lines.then(Vec::new),
            broken: Vec::new(),
            tally: Tally::default(),
            placed: BTreeSet::new(),
            passed: BTreeMap::new(),
            keys: BTreeMap::new(),
            refused: BTreeSet::new(),
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event passes a tap.
    pub(super) fn passes(&self, session: &SessionId, tap: &str, stamp: &Stamp) {
        let (turn, sequence) = (stamp.turn, stamp.sequence);
        let mut state = self.lock();
        let mut placed = state.placed.range((session.clone(), Epoch::FIRST)..);
        let placed = placed
            .by_ref()
            .take_while(|(of, began)| of == session && *began <= stamp.epoch)
            .last()
            .cloned();
        let key = (placed, tap.to_owned(), turn);
        let before = state.passed.insert(key, sequence);
        if before >= Some(sequence) {
            let detail = format!("{sequence} after {before:?} at {tap} of {session}, {turn:?}");
            state.broken(Invariant::EdgesInOrder, None, detail);
        }
    }
}

/// A tap of a placement, and a turn.
type Passed = (Option<(SessionId, Epoch)>, String, Option<TurnNumber>);

/// Takes text in without keeping it.
struct Hashing<'a>(&'a mut DefaultHasher);

impl Write for Hashing<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

impl State {
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Notes what happened; it becomes part of the hash.
    pub(super) fn note(&mut self, caller: Option<u8>, what: fmt::Arguments<'_>) {
        let at = self.now();
        self.hash.write_u64(at.as_micros() as u64);
        self.hash.write_u8(caller.unwrap_or(u8::MAX));
        let _infallible = Hashing(&mut self.hash).write_fmt(what);
        if let Some(caller) = caller {
            let of_caller = self.of_callers.entry(caller).or_default();
            let _infallible = Hashing(of_caller).write_fmt(what);
        }
        if let Some(lines) = &mut self.lines {
            let caller = caller.map_or_else(String::new, |caller| format!("c{caller} "));
            lines.push(format!("{:>9.3} {caller}{what}", at.as_secs_f64() * 1e3));
        }
    }

    pub(super) fn broken(
        &mut self,
        invariant: Invariant,
        caller: Option<u8>,
        detail: impl Into<String>,
    ) {
        let (at, detail) = (self.now(), detail.into());
        self.note(caller, format_args!("BROKEN {invariant}: {detail}"));
        if self.broken.len() < MOST_BROKEN {
            self.broken.push(Broken {
                invariant,
                caller,
                at,
                detail,
            });
        }
    }

    /// How each call went, as a number, whenever it was looked at.
    pub(super) fn of_callers(&self) -> BTreeMap<u8, u64> {
        let hashes = self.of_callers.iter();
        hashes.map(|(of, hash)| (*of, hash.finish())).collect()
    }

    pub(super) fn finish(&mut self) -> (u64, Vec<String>) {
        (self.hash.finish(), self.lines.take().unwrap_or_default())
    }
}

fn refuses(signal: Signal) -> bool {
    matches!(
        signal,
        Signal::Reject | Signal::Defer | Signal::StaleEpochReject | Signal::DeauthorizedDrain
    )
}

/// Whether it tells that something of a turn was cancelled, stood in for or lost.
fn is_blemish(signal: Signal) -> bool {
    matches!(
        signal,
        Signal::Cancel
            | Signal::Fallback
            | Signal::ProviderSwitch
            | Signal::DropNotice
            | Signal::Discontinuity
    )
}

/// Looks on at one session.
pub(super) struct Watch {
    plant: Option<Plant>,
    caller: u8,
    trace: Trace,
    notices: Option<broadcast::Receiver<Notice>>,
    verifier: Verifier,
    violations: usize,
    lifecycle: invariant::Lifecycle,
    /// Under which epoch each turn opened.
    opened: BTreeMap<TurnNumber, Epoch>,
    over: BTreeSet<TurnNumber>,
    cancelled: BTreeSet<TurnNumber>,
    cleared: Option<TurnNumber>,
    epoch: Option<Epoch>,
    revoked: bool,
    draining: bool,
    /// The turn and the mark of the frame that was played last.
    played: Option<(TurnNumber, u16)>,
    pub(super) ended: bool,
    /// The epoch under which the placement began, once it is known.
    pub(super) placed: Option<Epoch>,
    /// The epoch under which the session's newest placement began.
    pub(super) newest: Box<dyn Fn() -> Option<Epoch> + Send>,
    /// Turns of which something was cancelled, stood in for or lost, as was told.
    blemished: BTreeSet<TurnNumber>,
    /// Turns that a model was asked for before they opened.
    guessed: BTreeSet<TurnNumber>,
    /// Guesses that were thrown away.
    discarded: BTreeSet<TurnNumber>,
    /// Attempts at each call that has begun.
    begun: BTreeMap<IdempotencyKey, u32>,
    /// Effects, by what was asked for.
    effects: BTreeMap<String, u32>,
    /// What was heard of the turns so far.
    pub(super) heard: BTreeSet<String>,
    /// How turns ended, by their signals.
    pub(super) endings: Vec<(TurnNumber, String)>,
    pub(super) refused: u64,
    /// Of these, turns that were refused since their evidence had no room, and their words with them.
    pub(super) unkept: usize,
    was_played: BTreeSet<TurnNumber>,
    said: Vec<rspp_proto::EventId>,
    /// Evidence that was refused so far.
    pub(super) refused_evidence: Box<dyn Fn() -> u64 + Send>,
    /// The same when the open turn opened.
    refused_before: u64,
    /// The same at the last look.
    refused_seen: u64,
}

/// The number of a turn, by its id.
pub(super) fn number(turn: &rspp_proto::TurnId) -> TurnNumber {
    let digits = turn.as_str().rsplit('-').next();
    TurnNumber(digits.and_then(|digits| digits.parse().ok()).unwrap_or(0))
}

/// The turn that a call was made for, by the call's id.
fn turn_of(call: &InvocationId) -> Option<TurnNumber> {
    let turn = call.as_str().split('/').nth(2)?;
    turn.rsplit('-').next()?.parse().ok().map(TurnNumber)
}

impl Watch {
    pub(super) fn new(caller: u8, trace: Trace, plant: Option<Plant>) -> Self {
        Self {
            plant,
            caller,
            trace,
            notices: None,
            verifier: Verifier::default(),
            violations: 0,
            lifecycle: invariant::Lifecycle::default(),
            opened: BTreeMap::new(),
            over: BTreeSet::new(),
            cancelled: BTreeSet::new(),
            cleared: None,
            epoch: None,
            revoked: false,
            draining: false,
            played: None,
            ended: false,
            placed: None,
            newest: Box::new(|| None),
            blemished: BTreeSet::new(),
            guessed: BTreeSet::new(),
            discarded: BTreeSet::new(),
            begun: BTreeMap::new(),
            effects: BTreeMap::new(),
            heard: BTreeSet::new(),
            endings: Vec::new(),
            refused: 0,
            unkept: 0,
            was_played: BTreeSet::new(),
            said: Vec::new(),
            refused_evidence: Box::new(|| 0),
            refused_before: 0,
            refused_seen: 0,
        }
    }

    pub(super) fn follow(&mut self, notices: broadcast::Receiver<Notice>) {
        self.notices = Some(notices);
    }

    /// Whether it hears what the session says.
    pub(super) fn is_followed(&self) -> bool {
        self.notices.is_some()
    }

    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        self.trace.lock().note(Some(self.caller), what);
    }

    pub(super) fn broken(&self, invariant: Invariant, detail: impl Into<String>) {
        let caller = Some(self.caller);
        self.trace.lock().broken(invariant, caller, detail);
    }

    /// Takes in all that was said since the last time.
    pub(super) fn look(&mut self) {
        self.trace.lock().tally.checks += 1;
        while let Some(notices) = &mut self.notices {
            match notices.try_recv() {
                Ok(notice) => self.hear(notice),
                Err(broadcast::error::TryRecvError::Lagged(missed)) => {
                    self.note(format_args!("missed {missed}"));
                }
                Err(broadcast::error::TryRecvError::Empty) => break,
                Err(broadcast::error::TryRecvError::Closed) => self.notices = None,
            }
        }
        self.refused_seen = (self.refused_evidence)();
        let violations = self.verifier.violations();
        let new: Vec<_> = violations[self.violations..].to_vec();
        self.violations += new.len();
        for violation in new {
            self.broken(Invariant::Recorded(violation.rule), violation.to_string());
        }
    }

    fn hear(&mut self, notice: Notice) {
        match notice {
            Notice::Signal(signal) => self.signal(*signal),
            Notice::Event(event) => self.event(*event),
            // What is passed through is none of the session's own.
            Notice::Foreign(_) => {}
            Notice::State(state) => {
                self.note(format_args!("state {state:?}"));
                self.ended |= state == SessionState::Ended;
                self.draining |= state >= SessionState::Draining;
            }
            Notice::Turn(report) => {
                self.note(format_args!(
                    "turn {} {} {:?} user {:?} agent {:?} heard {:?}",
                    report.turn_id,
                    report.outcome,
                    report.reason,
                    report.user_text,
                    report.agent_text,
                    report.agent_text_played,
                ));
                self.heard.insert(report.agent_text_played);
            }
        }
    }

    fn signal(&mut self, signal: ControlSignal) {
        if self.plant == Some(Plant::EndsTwice) && signal.signal == Signal::Commit {
            self.plant = None;
            self.signal(signal.clone());
        }
        let envelope = &signal.envelope;
        let turn = envelope.turn_id.as_ref().map(number);
        let reason = signal.reason.as_ref().map_or("", |reason| reason.as_str());
        self.note(format_args!(
            "{} {} {turn:?} {reason:?} {:?} {:?} {:?} {:?} {} {}",
            signal.signal,
            envelope.event_id,
            signal.scope,
            envelope.edge_id,
            signal.seq_range,
            envelope.authority_epoch,
            envelope.runtime_sequence,
            envelope.runtime_timestamp_ms,
        ));
        {
            let mut state = self.trace.lock();
            *state
                .tally
                .signals
                .entry(signal.signal.as_str())
                .or_default() += 1;
        }
        if let Err(error) = signal.validate() {
            self.broken(
                Invariant::ValidByTheAbi,
                format!("{}: {error}", signal.signal),
            );
        }
        if turn.is_none() && self.lifecycle.is_proposed() && refuses(signal.signal) {
            self.refused += 1;
        }
        if let Some(call) = &envelope.provider_invocation_id
            && let Some(of) = turn_of(call).filter(|of| self.opened.contains_key(of))
            && turn != Some(of)
        {
            let detail = format!("{} of {call} names {turn:?}", signal.signal);
            self.broken(Invariant::CallsNameTheirTurn, detail);
        }
        if is_blemish(signal.signal) {
            self.blemished.extend(turn.or(self.lifecycle.open_turn()));
        }
        self.said.push(envelope.event_id.clone());
        if let Err(error) = self.lifecycle.signal(signal.signal, turn) {
            self.broken(Invariant::Kernel(error.invariant), error.detail);
        }
        self.epoch = self.epoch.max(envelope.authority_epoch);
        match (signal.signal, turn) {
            (Signal::TurnOpen, Some(turn)) => {
                if self.draining {
                    let rule = invariant::Invariant::StatesGoOneWay;
                    self.broken(
                        Invariant::Kernel(rule),
                        format!("{turn} opens while draining"),
                    );
                }
                // The authority that was lost was that of an older epoch.
                self.revoked = false;
                if self.discarded.contains(&turn) {
                    let detail = format!("{turn} opens, whose guess was thrown away");
                    self.broken(Invariant::GuessesAreMute, detail);
                }
                self.speaks(format_args!("opens {turn}"));
                let epoch = envelope.authority_epoch.unwrap_or(Epoch::FIRST);
                self.opened.insert(turn, epoch);
                self.refused_before = (self.refused_evidence)();
                self.trace.lock().tally.turns += 1;
            }
            (Signal::Cancel, Some(turn))
                if matches!(
                    signal.scope,
                    Some(
                        rspp_proto::abi::CancelScope::Turn | rspp_proto::abi::CancelScope::Session
                    ) | None
                ) =>
            {
                self.cancelled.insert(turn);
            }
            (Signal::Commit | Signal::Abort, Some(turn)) => {
                self.over.insert(turn);
                let ending = if signal.signal == Signal::Commit {
                    "commit"
                } else {
                    reason
                };
                self.endings.push((turn, ending.to_owned()));
                self.trace.lock().tally.outcome(ending);
                // What was refused after the opening and before the last look is this turn's.
                let lost = self.refused_seen > self.refused_before;
                if lost && ending == "commit" {
                    let detail = format!("{turn} is committed, and its evidence was refused");
                    self.broken(Invariant::EvidenceOrAbort, detail);
                }
            }
            (Signal::DeauthorizedDrain, _) => self.revoked = true,
            (Signal::Reject | Signal::Defer | Signal::StaleEpochReject, None) => {
                let outcome = format!("{} {reason}", signal.signal);
                self.trace.lock().tally.outcome(outcome);
                self.unkept += usize::from(reason == "recording_evidence_unavailable");
            }
            _of_no_consequence_here => {}
        }
        if signal.signal == Signal::DeauthorizedDrain {
            let outcome = format!("{} {reason}", signal.signal);
            self.trace.lock().tally.outcome(outcome);
        }
        self.verifier.observe(&signal.into());
    }

    fn event(&mut self, record: EventRecord) {
        let envelope = &record.envelope;
        if let Some(Payload::Debug(note)) = &record.payload
            && note.message.starts_with("speculation")
        {
            let reason = note.fields.get("reason").map_or("", String::as_str);
            let outcome = format!("{} {reason}", note.message);
            self.trace.lock().tally.outcome(outcome.trim());
            let turn = note.fields.get("provisional_turn");
            let turn = turn.and_then(|turn| turn.rsplit('-').next()?.parse().ok());
            if let Some(turn) = turn.filter(|_| note.message == "speculation_discarded") {
                self.discarded.insert(TurnNumber(turn));
            }
        }
        if let Some(Payload::Text(text)) = &record.payload
            && text.speaker == Speaker::Agent
            && let Some(turn) = envelope.turn_id.as_ref().map(number)
        {
            self.not_guessed(turn, format_args!("{:?} is said of {turn}", text.text));
        }
        match &record.payload {
            Some(Payload::Text(text)) => self.note(format_args!(
                "text {} {:?} {:?} {} {} {:?}",
                envelope.event_id,
                envelope.turn_id,
                text.speaker,
                text.segment,
                text.is_final,
                text.text
            )),
            payload => self.note(format_args!(
                "event {} {:?} {:?}",
                envelope.event_id, envelope.turn_id, payload
            )),
        }
        if let Err(error) = record.validate() {
            self.broken(Invariant::ValidByTheAbi, error.to_string());
        }
        let entry = EventEntry {
            record,
            redacted: None,
        };
        self.verifier.observe(&entry.into());
    }

    /// The peer is given a frame.
    pub(super) fn plays(&mut self, turn: TurnNumber, chunk: &AudioChunk, taken: bool) {
        self.look();
        let mark = chunk
            .data
            .get(..2)
            .map_or(0, |at| u16::from_le_bytes([at[0], at[1]]));
        let now = self.trace.lock().now();
        self.note(format_args!("plays {turn} {mark} {taken} {now:?}"));
        self.speaks(format_args!("plays {turn}"));
        self.not_guessed(turn, format_args!("frame {mark} of {turn} is heard"));
        let opened = self.opened.get(&turn).copied();
        let is_over = self.over.contains(&turn);
        if is_over || self.cancelled.contains(&turn) || self.cleared >= Some(turn) {
            let why = if is_over { "over" } else { "fenced" };
            self.broken(
                Invariant::SilentAfterTheFence,
                format!("frame {mark} of {turn}, which is {why}"),
            );
        }
        if opened.is_none() && !self.guessed.contains(&turn) {
            let detail = format!("frame {mark} of {turn}, which never opened");
            self.broken(Invariant::SilentAfterTheFence, detail);
        }
        if self.revoked || opened.is_some_and(|of| Some(of) < self.epoch) {
            self.broken(
                Invariant::SilentForOldEpochs,
                format!(
                    "frame {mark} of {turn} opened under {opened:?}, now {:?}",
                    self.epoch
                ),
            );
        }
        if let Some((of, last)) = self.played
            && mark != 0
            && (turn < of || (turn == of && mark <= last))
        {
            let detail = format!("frame {mark} of {turn} after {last} of {of}");
            self.broken(Invariant::FramesInOrder, detail);
        }
        if taken {
            self.was_played.insert(turn);
        }
        if mark != 0 {
            self.played = Some((turn, mark));
        }
    }

    /// The peer is told something.
    pub(super) fn sends(&mut self, outgoing: &Outgoing) {
        self.look();
        self.note(format_args!("sends {outgoing:?}"));
    }

    /// A model is asked for a turn's reply.
    pub(super) fn thinks(&mut self, turn: TurnNumber) {
        if self.opened.contains_key(&turn) {
            return;
        }
        self.guessed.insert(turn);
        if self.plant == Some(Plant::GuessHeard) {
            let silence = AudioChunk::pcm16(SampleRate::HZ_16000, vec![0; 640].into());
            self.plays(turn, &silence, true);
        }
    }

    /// Whoever is another placement's predecessor is quiet.
    fn speaks(&self, how: fmt::Arguments<'_>) {
        if let Some(placed) = self.placed
            && let Some(newest) = (self.newest)().filter(|newest| *newest > placed)
        {
            let detail = format!("placed at {placed}, now held at {newest}: {how}");
            self.broken(Invariant::OneWriter, detail);
        }
    }

    /// A guess is no turn yet.
    fn not_guessed(&self, turn: TurnNumber, what: fmt::Arguments<'_>) {
        if self.guessed.contains(&turn) && !self.opened.contains_key(&turn) {
            self.broken(Invariant::GuessesAreMute, what.to_string());
        }
    }

    /// A tool's attempt passes the gate.
    pub(super) fn begins(&mut self, run: &ToolRun, idempotent: bool) {
        self.look();
        let turn = number(&run.turn);
        let what = run.arguments.to_string();
        self.note(format_args!("begins {} {turn} {what}", run.call));
        let attempts = self.begun.entry(run.key.clone()).or_default();
        *attempts += 1;
        let attempts = *attempts;
        let once = attempts == 1;
        if !once && !idempotent || attempts != run.attempt.get() {
            let detail = format!("{} of {turn} begins {attempts} times", run.call);
            self.broken(Invariant::EffectsHappenOnce, detail);
        }
        let mine = (self.caller, self.placed, format!("{} {what}", run.call));
        let before = self.trace.lock().keys.insert(run.key.clone(), mine.clone());
        if let Some(before) = before.filter(|before| *before != mine) {
            let detail = format!("{before:?} and {mine:?} have the key {}", run.key);
            self.broken(Invariant::EffectsHappenOnce, detail);
        }
        if !once {
            return; // What has begun is seen through.
        }
        let broken = |why: &str| {
            let detail = format!("{} of {turn} begins, {why}", run.call);
            self.broken(Invariant::EffectsOfTheLiving, detail);
        };
        match self.opened.get(&turn) {
            None => broken("which never opened"),
            Some(_) if self.over.contains(&turn) => broken("which is over"),
            Some(_) if self.cancelled.contains(&turn) || self.cleared >= Some(turn) => {
                broken("which is fenced");
            }
            Some(_) if self.revoked => broken("which has no authority"),
            Some(opened) if *opened != run.epoch || Some(run.epoch) < self.epoch => {
                broken("of an old epoch");
            }
            Some(_) => {}
        }
        self.speaks(format_args!("begins {} of {turn}", run.call));
    }

    /// A tool has its effect.
    pub(super) fn takes_effect(&mut self, run: &ToolRun) {
        let what = run.arguments.to_string();
        self.note(format_args!("does {} {what}", run.call));
        self.trace.lock().tally.act("tool: effect");
        let effects = self.effects.entry(what.clone()).or_default();
        *effects += 1;
        let effects = *effects;
        if effects > 1 {
            let detail = format!("{what} is ordered {effects} times, now by {}", run.call);
            self.broken(Invariant::EffectsHappenOnce, detail);
        }
    }

    /// The peer is told to forget a turn.
    pub(super) fn clears(&mut self, turn: TurnNumber) {
        self.look();
        let now = self.trace.lock().now();
        self.note(format_args!("clears {turn} {now:?}"));
        self.cleared = self.cleared.max(Some(turn));
    }

    /// The turn that is open.
    pub(super) fn open_turn(&self) -> Option<TurnNumber> {
        self.lifecycle.open_turn()
    }

    /// The newest epoch that something was said under.
    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// Whether something of a turn was played.
    pub(super) fn was_played(&self, turn: TurnNumber) -> bool {
        self.was_played.contains(&turn)
    }

    /// Whether it was told that something of a turn was cancelled, stood in for or lost.
    pub(super) fn is_blemished(&self, turn: TurnNumber) -> bool {
        self.blemished.contains(&turn)
    }

    /// The ids of the signals that were said.
    pub(super) fn signals_said(&self) -> &[rspp_proto::EventId] {
        &self.said
    }
}
