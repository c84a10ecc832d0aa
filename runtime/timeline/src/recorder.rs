//! Takes entries without ever waiting, and holds less when the storage cannot keep up.
//!
//! What reaches the storage and when is the [`writer`](crate::Recording)'s business: between the
//! two lies one bounded queue under a lock that is only held to push or take.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rspp_proto::{
    Monotonic,
    spec::{RecordingLevel, RecordingPolicy},
};
use thiserror::Error;
use tokio::sync::Notify;

use crate::{
    Capacity, DropNote, Entry, EntryClass, Fidelity, FidelityPolicy, LevelChange, Pressure,
    Redaction,
    queue::{NONE, Offer, Queue, Room, Slot, TURN_ROOM},
    sampling,
};

/// How a recording is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much may wait to be written.
    pub capacity: Capacity,
    /// The level that the plan asks for.
    pub level: RecordingLevel,
    /// When to record less.
    pub fidelity: FidelityPolicy,
    /// What of a payload is kept.
    pub redaction: Redaction,
    /// When the storage has to have everything.
    pub sync: SyncPolicy,
    /// How long entries may wait to be written together; endings of turns do not wait.
    pub linger: Duration,
}

impl Default for Options {
    /// L0, as production records.
    fn default() -> Self {
        Self {
            capacity: Capacity::default(),
            level: RecordingLevel::L0,
            fidelity: FidelityPolicy::default(),
            redaction: Redaction::default(),
            sync: SyncPolicy::AtTurnEnd,
            linger: Duration::from_millis(20),
        }
    }
}

impl Options {
    /// As a plan's recording policy says.
    pub fn under(policy: &RecordingPolicy) -> Self {
        Self {
            level: policy.recording_level,
            redaction: Redaction::of(policy),
            ..Self::default()
        }
    }
}

/// When written bytes are forced to the storage (`fsync`); the runtime never waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// When the recording is closed: a power cut may cost the session.
    OnClose,
    /// When a turn's evidence is written: a power cut costs the running turn at most.
    AtTurnEnd,
    /// After each batch: costs at most what had not been written.
    EachBatch,
}

/// Evidence could not be kept: the turn has to end with `recording_evidence_unavailable` (T9).
///
/// Only for baseline and terminal entries. Details that find no room are dropped and counted, which
/// is no error.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AppendError {
    /// The room for this class of entries is used up: the storage is too slow.
    #[error(
        "no room for a {kind} entry: {waiting} entries wait for the storage; use a faster one or \
         raise the recorder's capacity"
    )]
    Full {
        /// The entry's kind.
        kind: &'static str,
        /// Entries that wait.
        waiting: usize,
    },
    /// The storage failed, now or before; nothing more is written.
    #[error("the recording could not be written: {reason}; free space or fix the storage")]
    Storage {
        /// What the storage said.
        reason: Arc<str>,
    },
    /// The recording was closed.
    #[error("the recording is closed")]
    Closed,
}

/// How a recorder fares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecorderStats {
    /// What it holds now.
    pub level: RecordingLevel,
    /// Share of the queue in use (`timeline_queue_fill_ratio`).
    pub fill: f64,
    /// Details dropped for want of room, in all.
    pub details_dropped: u64,
    /// Details that the level does not hold, in all.
    pub details_omitted: u64,
    /// Evidence that was refused, for want of room or because the storage had failed (T9).
    pub evidence_refused: u64,
    /// How often the level went down (`recording_downgrade_total`).
    pub downgrades: u64,
    /// Whether the storage has failed.
    pub has_failed: bool,
}

/// Bytes that a storage keeps free for each recording beyond what is written: the opening and the end
/// of a turn, and what may wait while one batch is being written.
pub const KEPT_FREE: u64 = 96 << 10;

/// How much longer entries are when they are written than they are estimated to be: never more.
pub(crate) const WRITTEN: u64 = 2;

/// What a turn may need on the storage, with the recording's own end.
pub(crate) const TURN_BYTES: u64 = TURN_ROOM.bytes as u64 * WRITTEN;

/// Told when evidence can no longer be kept.
pub type Alarm = Box<dyn Fn() + Send + Sync>;

/// Where entries go; cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    shared: Option<Arc<Shared>>,
}

impl Recorder {
    /// Records nothing, at no cost.
    pub fn null() -> Self {
        Self { shared: None }
    }

    /// Records into memory, within the same bounds as into a file.
    pub fn in_memory(options: Options) -> (Self, MemoryRecording) {
        let shared = Arc::new(Shared::new(options, u64::MAX));
        (
            Self {
                shared: Some(Arc::clone(&shared)),
            },
            MemoryRecording { shared },
        )
    }

    pub(crate) fn of(shared: Arc<Shared>) -> Self {
        Self {
            shared: Some(shared),
        }
    }

    /// Whether anything is recorded at all.
    pub fn is_recording(&self) -> bool {
        self.shared.is_some()
    }

    /// Adds `entry`, never waits.
    ///
    /// An error means that evidence was lost (T9). Details that find no room, or that the recording
    /// level does not hold, are counted and not an error.
    pub fn append(&self, entry: impl Into<Entry>) -> Result<(), AppendError> {
        self.append_with(|| entry.into())
    }

    /// Adds what `entry` makes; it is not called if nothing is recorded.
    pub fn append_with(&self, entry: impl FnOnce() -> Entry) -> Result<(), AppendError> {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let entry = entry();
        let class = entry.class();
        shared.append(entry, class)
    }

    /// Adds an entry that ends something, into the room reserved for endings (invariant 16): a
    /// turn's evidence, its last transitions and signals.
    pub fn append_terminal(&self, entry: impl Into<Entry>) -> Result<(), AppendError> {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        shared.append(entry.into(), EntryClass::Terminal)
    }

    /// Whether a turn may open: whatever becomes of it, there is room for its opening and its end where
    /// entries wait and where they are written. An error is not counted as evidence lost: there is none.
    ///
    /// Never waits. What was said no to for want of room on the storage is looked for again.
    pub fn takes_turn(&self) -> Result<(), AppendError> {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let answer = shared.lock().takes_turn();
        if answer.is_err() {
            shared.work.notify_one();
            shared.hurry.notify_one();
        }
        answer
    }

    /// Has `alarm` called, once each time, when evidence can no longer be kept (T9); nobody else from
    /// then on. `None` ends that.
    pub fn set_alarm(&self, alarm: Option<Alarm>) {
        if let Some(shared) = &self.shared {
            shared.alarm.set(alarm);
        }
    }

    /// Says that a turn begins: the one moment when more may be recorded again.
    pub fn turn_boundary(&self, now: Monotonic) -> Option<LevelChange> {
        self.shared.as_ref()?.turn_boundary(now)
    }

    /// Says how far the durable export lags, and how full its spool is, 0 to 1: at 1, details are dropped.
    pub fn set_export(&self, now: Monotonic, lag: Duration, spool_fill: f64) {
        if let Some(shared) = &self.shared {
            shared.set_export(now, lag, spool_fill);
        }
    }

    /// The next step down of the recording level that OR-02 has not yet announced with
    /// `recording_level_downgraded`.
    pub fn poll_downgrade(&self) -> Option<LevelChange> {
        self.shared.as_ref()?.lock().unannounced.pop_front()
    }

    /// The level that entries are recorded at now; a null recorder's is the lowest.
    pub fn level(&self) -> RecordingLevel {
        self.shared
            .as_ref()
            .map_or(RecordingLevel::L0, |shared| shared.lock().fidelity.level())
    }

    /// The level that was asked for; what is recorded now may be less. Costs nothing.
    pub fn wanted(&self) -> Option<RecordingLevel> {
        Some(self.shared.as_ref()?.options.level)
    }

    /// Whether words that were said may be written down as they are, at the level that is recorded now.
    pub fn keeps_words(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| {
            let level = shared.lock().fidelity.level();
            shared.options.redaction.keeps_words(level)
        })
    }

    /// How the recorder fares; `None` if it records nothing.
    pub fn stats(&self) -> Option<RecorderStats> {
        Some(self.shared.as_ref()?.lock().stats())
    }
}

/// What an in-memory recorder holds.
#[derive(Debug)]
pub struct MemoryRecording {
    shared: Arc<Shared>,
}

impl MemoryRecording {
    /// Everything recorded so far, as a file would hold it.
    pub fn entries(&self) -> Vec<Entry> {
        let redaction = &self.shared.options.redaction;
        let state = self.shared.lock();
        let slots = state.queue.iter();
        slots
            .map(|slot| prepare(slot.entry.clone(), slot.level, redaction))
            .collect()
    }

    /// Takes everything recorded so far, which makes room.
    pub fn take(&self) -> Vec<Entry> {
        let batch = self.shared.take();
        let redaction = &self.shared.options.redaction;
        let notes = batch.note.map(Entry::from);
        let slots = batch.slots.into_iter();
        slots
            .map(|slot| prepare(slot.entry, slot.level, redaction))
            .chain(notes)
            .collect()
    }
}

/// Makes an entry fit to be written: payloads by level, no secrets.
pub(crate) fn prepare(mut entry: Entry, level: RecordingLevel, redaction: &Redaction) -> Entry {
    match &mut entry {
        Entry::Event(event) => {
            event.record.envelope.lease_token = None;
            if event.redacted.is_none() {
                event.redacted = redaction.apply(&mut event.record, level);
            }
        }
        Entry::Signal(signal) => signal.envelope.lease_token = None,
        Entry::Attempt(attempt) => {
            let salt = attempt.provider_invocation_id.as_str();
            redaction.apply_to_text(&mut attempt.input_payload, salt, level);
            redaction.apply_to_text(&mut attempt.output_payload, salt, level);
        }
        Entry::Tool(step) => {
            let salt = step.session_id.as_str();
            redaction.apply_to_text(&mut step.arguments, salt, level);
            redaction.apply_to_text(&mut step.result, salt, level);
        }
        Entry::Turn(turn) => {
            if let Some(envelope) = &mut turn.envelope_snapshot {
                envelope.lease_token = None;
            }
        }
        Entry::Capture(capture) => capture.withhold(redaction, level),
        Entry::Opening(opening) => opening.withhold(redaction, level),
        Entry::Header(_)
        | Entry::Plan(_)
        | Entry::Outcome(_)
        | Entry::Transition(_)
        | Entry::Invocation(_)
        | Entry::Handoff(_)
        | Entry::Playout(_)
        | Entry::Level(_)
        | Entry::Dropped(_)
        | Entry::Journal(_)
        | Entry::Footer(_) => {}
    }
    entry
}

/// What recorder and writer share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    state: Mutex<State>,
    alarm: Bell,
    /// Something waits to be written.
    pub(crate) work: Notify,
    /// Something must not wait for more.
    pub(crate) hurry: Notify,
}

/// Most steps of the level that wait to be announced; there are two at most between two turns.
const MAX_UNANNOUNCED: usize = 16;

#[derive(Debug)]
struct State {
    queue: Queue,
    fidelity: Fidelity,
    unannounced: VecDeque<LevelChange>,
    life: Life,
    /// Bytes that the storage keeps free beyond what is written.
    kept_free: u64,
    /// What evidence is being written, as it is estimated.
    writing: usize,
    /// Why the storage keeps no more free, if it does not: endings use up what it has kept.
    full: Option<Arc<str>>,
    export_lag: Duration,
    spool_fill: f64,
    /// The latest time seen: entries of several emitters may come slightly out of order.
    latest: Monotonic,
    unnoted: Room,
    dropped: u64,
    omitted: u64,
    refused: u64,
    downgrades: u64,
}

/// Whether a recorder still takes entries.
#[derive(Clone, Debug)]
enum Life {
    Open,
    Closed,
    Failed(Arc<str>),
}

/// Entries on their way to the storage.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) slots: VecDeque<Slot>,
    pub(crate) note: Option<DropNote>,
    /// Whether no other batch follows.
    pub(crate) is_last: bool,
}

impl Shared {
    pub(crate) fn new(options: Options, kept_free: u64) -> Self {
        let state = State {
            queue: Queue::new(options.capacity),
            fidelity: Fidelity::new(options.fidelity.clone(), options.level),
            unannounced: VecDeque::new(),
            life: Life::Open,
            kept_free,
            writing: 0,
            full: None,
            export_lag: Duration::ZERO,
            spool_fill: 0.0,
            latest: Monotonic::ZERO,
            unnoted: NONE,
            dropped: 0,
            omitted: 0,
            refused: 0,
            downgrades: 0,
        };
        Self {
            options,
            state: Mutex::new(state),
            alarm: Bell::default(),
            work: Notify::new(),
            hurry: Notify::new(),
        }
    }

    fn append(&self, entry: Entry, class: EntryClass) -> Result<(), AppendError> {
        let mut state = self.lock();
        let outcome = state.append(entry, class);
        state.refused += u64::from(outcome.is_err());
        let hurry = class == EntryClass::Terminal || state.queue.fill() >= 0.5;
        drop(state);
        self.work.notify_one();
        if hurry {
            self.hurry.notify_one();
        }
        outcome
    }

    fn turn_boundary(&self, now: Monotonic) -> Option<LevelChange> {
        let mut state = self.lock();
        state.latest = state.latest.max(now);
        state.observe();
        let now = state.latest;
        let change = state.fidelity.turn_boundary(now)?;
        state.mark(change.clone());
        drop(state);
        self.work.notify_one();
        Some(change)
    }

    fn set_export(&self, now: Monotonic, lag: Duration, spool_fill: f64) {
        let mut state = self.lock();
        state.latest = state.latest.max(now);
        state.export_lag = lag;
        state.spool_fill = spool_fill;
        state.observe();
        drop(state);
        self.work.notify_one();
    }

    /// Takes what waits; the pressure is gone with it.
    pub(crate) fn take(&self) -> Batch {
        let mut state = self.lock();
        state.writing += state.queue.evidence().bytes;
        let slots = state.queue.take();
        let note = state.take_note();
        state.observe();
        let is_last = match state.life {
            Life::Open => false,
            Life::Closed | Life::Failed(_) => state.queue.is_empty(),
        };
        Batch {
            slots,
            note,
            is_last,
        }
    }

    /// Takes nothing more; what waits is still written.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.life = match &state.life {
            Life::Open | Life::Closed => Life::Closed,
            Life::Failed(reason) => Life::Failed(Arc::clone(reason)),
        };
        drop(state);
        self.work.notify_one();
        self.hurry.notify_one();
    }

    /// What was taken is written, and so much is kept free beyond it; or why no more is.
    pub(crate) fn wrote(&self, kept_free: u64, full: Option<Arc<str>>) {
        let mut state = self.lock();
        state.writing = 0;
        state.kept_free = kept_free;
        let is_news = full.is_some() && state.full.is_none();
        state.full = full;
        drop(state);
        if is_news {
            self.alarm.ring();
        }
    }

    /// Takes nothing more, and what waits is lost.
    pub(crate) fn fail(&self, reason: &Arc<str>) {
        let mut state = self.lock();
        state.life = Life::Failed(Arc::clone(reason));
        let _ = state.queue.take();
        drop(state);
        self.alarm.ring();
    }

    /// Evidence that was taken and then found no room on the storage.
    pub(crate) fn count_refused(&self) {
        self.lock().refused += 1;
    }

    /// A detail that was taken and then could not be written.
    pub(crate) fn count_dropped(&self, details: u64) {
        let mut state = self.lock();
        state.dropped += details;
        state.unnoted.entries += details as usize;
    }

    pub(crate) fn stats(&self) -> (RecorderStats, Monotonic) {
        let state = self.lock();
        (state.stats(), state.latest)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn append(&mut self, entry: Entry, class: EntryClass) -> Result<(), AppendError> {
        match (&self.life, class) {
            (Life::Open, _) => {}
            (Life::Closed | Life::Failed(_), EntryClass::Journal | EntryClass::Detail) => {
                self.drop_detail(Room {
                    entries: 1,
                    bytes: entry.weight(),
                });
                return Ok(());
            }
            (Life::Closed, EntryClass::Baseline | EntryClass::Terminal) => {
                return Err(AppendError::Closed);
            }
            (Life::Failed(reason), EntryClass::Baseline | EntryClass::Terminal) => {
                return Err(AppendError::Storage {
                    reason: Arc::clone(reason),
                });
            }
        }
        self.latest = self.latest.max(entry.at());
        if let (Some(reason), EntryClass::Baseline) = (&self.full, class) {
            return Err(AppendError::Storage {
                reason: Arc::clone(reason),
            });
        }
        let is_full = self.full.is_some() || self.spool_fill >= 1.0;
        if !class.is_evidence() && is_full {
            self.drop_detail(Room {
                entries: 1,
                bytes: entry.weight(),
            });
            return Ok(());
        }
        let level = self.fidelity.level();
        if let Entry::Event(event) = &entry
            && class == EntryClass::Detail
            && !sampling::holds(level, &event.record)
        {
            self.omitted += 1;
            return Ok(());
        }
        if matches!(entry, Entry::Capture(_)) && level < RecordingLevel::L2 {
            self.omitted += 1;
            return Ok(());
        }
        let kind = entry.kind();
        let offer = self.queue.offer(entry, class, level);
        self.observe();
        match (offer, class) {
            (Offer::Queued, _) => Ok(()),
            (Offer::Displaced(room), _)
            | (Offer::Full(room), EntryClass::Journal | EntryClass::Detail) => {
                self.drop_detail(room);
                Ok(())
            }
            (Offer::Full(_), EntryClass::Baseline | EntryClass::Terminal) => {
                let waiting = self.queue.iter().count();
                Err(AppendError::Full {
                    kind: kind.as_str(),
                    waiting,
                })
            }
        }
    }

    fn takes_turn(&self) -> Result<(), AppendError> {
        match &self.life {
            Life::Open => {}
            Life::Closed => return Err(AppendError::Closed),
            Life::Failed(reason) => {
                return Err(AppendError::Storage {
                    reason: Arc::clone(reason),
                });
            }
        }
        if let Some(reason) = &self.full {
            return Err(AppendError::Storage {
                reason: Arc::clone(reason),
            });
        }
        let unwritten = (self.queue.evidence().bytes + self.writing) as u64 * WRITTEN;
        if self.queue.takes_turn() && unwritten.saturating_add(TURN_BYTES) <= self.kept_free {
            Ok(())
        } else {
            Err(AppendError::Full {
                kind: "turn",
                waiting: self.queue.evidence().entries,
            })
        }
    }

    fn observe(&mut self) {
        let pressure = Pressure {
            fill: self.queue.fill().max(self.spool_fill),
            export_lag: self.export_lag,
        };
        if let Some(change) = self.fidelity.observe(self.latest, pressure) {
            self.downgrades += 1;
            if self.unannounced.len() < MAX_UNANNOUNCED {
                self.unannounced.push_back(change.clone());
            }
            self.mark(change);
        }
    }

    /// Records a change of level; from the room for endings, since it comes when room is short.
    fn mark(&mut self, change: LevelChange) {
        let level = change.to;
        match self
            .queue
            .offer(Entry::Level(change), EntryClass::Terminal, level)
        {
            Offer::Queued => {}
            Offer::Displaced(room) => self.drop_detail(room),
            Offer::Full(_) => tracing::warn!("no room for a change of the recording level"),
        }
    }

    fn drop_detail(&mut self, room: Room) {
        self.dropped += room.entries as u64;
        self.unnoted.entries += room.entries;
        self.unnoted.bytes += room.bytes;
    }

    fn take_note(&mut self) -> Option<DropNote> {
        let Room { entries, bytes } = std::mem::replace(&mut self.unnoted, NONE);
        (entries > 0).then_some(DropNote {
            at: self.latest,
            details: entries as u64,
            bytes: bytes as u64,
        })
    }

    fn stats(&self) -> RecorderStats {
        RecorderStats {
            level: self.fidelity.level(),
            fill: self.queue.fill(),
            details_dropped: self.dropped,
            details_omitted: self.omitted,
            evidence_refused: self.refused,
            downgrades: self.downgrades,
            has_failed: matches!(self.life, Life::Failed(_)),
        }
    }
}

/// Who is told when evidence can no longer be kept.
#[derive(Default)]
struct Bell(Mutex<Option<Alarm>>);

impl Bell {
    fn set(&self, alarm: Option<Alarm>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = alarm;
    }

    fn ring(&self) {
        if let Some(alarm) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            alarm();
        }
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bell")
    }
}
