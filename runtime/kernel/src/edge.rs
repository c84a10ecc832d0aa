//! One edge's buffer: how much it may hold, what gives when it is full, and what it reports.
//!
//! A plain queue with rules. Waiting (under `block`) is the host's business, and so is sending the
//! signals that the notices ask for.

mod credit;
mod gauge;
mod groups;
mod limits;
mod notice;
mod share;
mod torn;

#[cfg(test)]
mod tests;

use std::{
    collections::{VecDeque, vec_deque},
    time::Duration,
};

use rspp_proto::{
    EventId, Monotonic, TurnNumber,
    spec::{EdgeBufferPolicy, FlowMode, Marks, PressureAction, Strategy, TelemetryHandling},
};

pub use credit::{Credit, NoCredit, Patience};
pub use gauge::Gauge;
pub use groups::BreakReason;
use groups::{Breaks, Recent};
use limits::{Give, Limits};
use notice::Notices;
pub use notice::{
    DropReason, EdgeNotice, Lineage, MAX_MERGE_SOURCES, Mark, MergeSource, SequenceSpan,
};

/// Places that a queue begins with, and that one has which has run empty after it had [`MANY`].
const FEW: usize = 4;
const MANY: usize = 32;

/// What a buffer has to know about an item.
pub trait Load: Sized {
    /// Bytes that count against `max_queue_bytes`.
    fn bytes(&self) -> usize;

    /// How long it plays; zero for what is not audio.
    fn media(&self) -> Duration;

    /// Its runtime sequence, rising from item to item.
    fn sequence(&self) -> u64;

    /// When it came to this edge. Age is counted from here.
    fn arrived(&self) -> Monotonic;

    /// Items of one key may be folded together, e.g. the partial transcripts of a segment.
    fn merge_key(&self) -> Option<u64>;

    /// Takes in a newer item of the same key.
    fn merge(&mut self, newer: Self);

    /// Final text and stream ends: never given up to sampling, merging, latest-only or age, and to
    /// a full edge only when nothing else is left on it.
    fn keep(&self) -> bool;

    /// Its event's id, for merge lineage.
    fn event(&self) -> Option<&EventId> {
        None
    }

    /// The turn that it is of.
    fn turn(&self) -> Option<TurnNumber> {
        None
    }

    /// The synchronised group it belongs to, for `sync_drop_policy`.
    fn sync_group(&self) -> Option<u64> {
        None
    }

    /// To whom of those who share the edge it belongs, for `fairness_key`.
    fn fair_key(&self) -> Option<u64> {
        None
    }
}

/// What became of an offered item.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a blocked item is the sender's again; a displaced or shed one is evidence"]
pub enum Offered<T> {
    /// It waits its turn.
    Queued,
    /// It was folded into an item of its kind.
    Merged,
    /// It waits its turn, and this one had to go. Where several had to, the notices count them all
    /// and this is the newest of them.
    Displaced(T),
    /// The edge is full and its strategy is `block`: offer it again when there is space, or
    /// [`EdgeBuffer::give_up`] after `max_block_time`.
    Blocked(T),
    /// It was refused and counted.
    Shed(T),
}

/// What has happened on an edge so far.
///
/// `offered == popped + dropped + merged + queued + cleared` at all times; a blocked item was not
/// offered yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeCounters {
    /// Items that were decided on.
    pub offered: u64,
    /// Items that were delivered.
    pub popped: u64,
    /// Items given up; every one is in a notice.
    pub dropped: u64,
    /// Items folded into others.
    pub merged: u64,
    /// Items taken back by a cancel.
    pub cleared: u64,
    /// The most items there ever were.
    pub deepest: u64,
}

/// A bounded queue between two nodes.
///
/// Every bound of the policy holds at every moment: items, bytes, age and latency contribution.
/// Under `block` a bound stops the sender; under the other strategies it costs an item. Latency
/// contribution is the media queued (what a listener would wait). Strategies that drop wait until
/// the oldest item has really waited that long, since a burst that arrived a moment ago has not
/// delayed anyone yet.
///
/// Does not allocate per item once the queue has grown to its working size; only merges do, and a queue that goes from
/// empty to more than 32 and back.
#[derive(Debug)]
pub struct EdgeBuffer<T> {
    limits: Limits,
    slots: VecDeque<Slot<T>>,
    bytes: usize,
    media: Duration,
    counters: EdgeCounters,
    pressed: bool,
    /// Under `sample`: whether the next item is the one to thin out.
    thin_next: bool,
    flow: FlowMode,
    /// The sender's end: inside one process it is told at once what the notices say.
    sender: Credit,
    /// Credit that popped items have freed and that was not granted yet.
    freed: u64,
    /// What synchronises; most edges do not.
    groups: Option<Box<Groups>>,
    /// The round in which those who share the edge are being served.
    round: u64,
    /// The key that was delivered last and is to be delivered at most once in a while, and when.
    coalesced: Option<(u64, Monotonic)>,
    notices: Notices,
    /// Bytes and media of the item that was blocked last: less room than that is no space.
    wanted: (usize, Duration),
    /// Until when the consumer wanted nothing of what waits: none of it is late for that long.
    unwanted_until: Monotonic,
}

/// Groups that lost a member lately, groups that had one delivered, and what to tell the consumer.
#[derive(Debug, Default)]
struct Groups {
    lost: Recent,
    delivered: Recent,
    breaks: Breaks,
}

#[derive(Debug)]
struct Slot<T> {
    /// Counts the items offered to this edge.
    ordinal: u64,
    /// Where several share the edge: the round in which it is served.
    round: u64,
    item: T,
    lineage: Option<Box<Lineage>>,
}

impl<T: Load> EdgeBuffer<T> {
    /// An empty buffer for data under `policy`, with `flow_xoff` and `flow_xon`.
    pub fn new(policy: &EdgeBufferPolicy) -> Self {
        Self::with_flow(policy, FlowMode::Signal, None)
    }

    /// An empty buffer for data whose sender is held back by `flow`, unless the edge has a mode of
    /// its own, and at the marks of the `lane` in items, unless its own are lower.
    pub fn with_flow(policy: &EdgeBufferPolicy, flow: FlowMode, lane: Option<Marks>) -> Self {
        let flow = policy.flow_mode.unwrap_or(flow);
        Self::with(Limits::new(policy, policy.strategy, lane), flow)
    }

    /// An empty buffer for the edge's telemetry, which never blocks.
    pub fn for_telemetry(policy: &EdgeBufferPolicy, lane: Option<Marks>) -> Self {
        let strategy = match policy.lane_handling.telemetry {
            TelemetryHandling::Drop | TelemetryHandling::BestEffortDrop => Strategy::DropNewest,
            TelemetryHandling::Sample => Strategy::Sample,
        };
        let limits = Limits::for_telemetry(policy, strategy, lane);
        Self::with(limits, FlowMode::Signal)
    }

    fn with(limits: Limits, flow: FlowMode) -> Self {
        let mut notices = Notices::default();
        let mut sender = Credit::new(flow);
        let credit = limits.items as u64;
        match flow {
            FlowMode::Signal => {}
            FlowMode::Credit | FlowMode::Hybrid => {
                notices.credit(credit);
                sender.granted(credit);
            }
        }
        Self {
            slots: VecDeque::new(),
            bytes: 0,
            media: Duration::ZERO,
            counters: EdgeCounters::default(),
            pressed: false,
            thin_next: false,
            flow,
            sender,
            freed: 0,
            groups: limits.sync.is_some().then(Box::default),
            round: 0,
            coalesced: None,
            notices,
            wanted: (1, Duration::ZERO),
            unwanted_until: Monotonic::ZERO,
            limits,
        }
    }

    /// The consumer has let what is here wait until `now`, because it has no use for it yet. Age is
    /// counted from here: it is the consumer's choice, and nobody's lateness.
    pub fn rested(&mut self, now: Monotonic) {
        self.unwanted_until = now;
    }

    /// Takes an item from a sender that heeds flow control: without the right to send, or where the
    /// edge blocks, a sender with patience gets it back. One without leaves the decision to the
    /// edge: a stop was a wish then, credit and a full edge that blocks were not.
    pub fn send(&mut self, now: Monotonic, item: T, patience: Patience) -> Offered<T> {
        if self.pressed {
            // What has left or grown too old may have released the sender.
            self.expire(now);
            self.note_pressure(now);
        }
        match patience {
            Patience::Left => {
                if self.sender.may_send().is_err() {
                    self.wanted = (item.bytes(), item.media());
                    return Offered::Blocked(item);
                }
            }
            Patience::Spent => {
                // A batch may take longer to fill than a sender has time to wait.
                if !self.sender.is_covered() {
                    self.grant();
                }
                // What must not be lost is sent on credit to come.
                if !self.sender.is_covered() && !item.keep() {
                    self.sender.charge();
                    let ordinal = self.next_ordinal();
                    return self.refuse(ordinal, item, DropReason::NoCredit);
                }
            }
        }
        match self.offer(now, item) {
            Offered::Blocked(item) => match patience {
                Patience::Left => Offered::Blocked(item),
                Patience::Spent => {
                    self.sender.charge();
                    self.give_up(&item);
                    Offered::Shed(item)
                }
            },
            taken => {
                self.sender.charge();
                taken
            }
        }
    }

    /// Whether the sender may send: it was not told to stop, has credit, and is not blocked.
    pub fn is_open(&self, now: Monotonic) -> bool {
        self.sender.may_send().is_ok() && self.has_space(now)
    }

    /// Offers an item at `now`. Look at what became of it, then at [`Self::take_notices`].
    pub fn offer(&mut self, now: Monotonic, item: T) -> Offered<T> {
        self.expire(now);
        self.note_pressure(now);
        if self.limits.blocks
            && item.bytes() <= self.limits.bytes
            && !self.is_lost(&item)
            && self.is_stopped(now, item.bytes(), item.media())
        {
            self.assert_pressure(now);
            self.wanted = (item.bytes(), item.media());
            return Offered::Blocked(item);
        }
        self.wanted = (1, Duration::ZERO);
        let ordinal = self.next_ordinal();
        let outcome = self.place(now, ordinal, item);
        self.counters.deepest = self.counters.deepest.max(self.slots.len() as u64);
        self.note_pressure(now);
        outcome
    }

    /// Counts a blocked item as dropped, after `max_block_time`.
    pub fn give_up(&mut self, item: &T) {
        let ordinal = self.next_ordinal();
        self.note_drop(ordinal, item, DropReason::BlockTimeout);
    }

    /// Takes the next item, unless it is too old to be of use or held back for more of its kind:
    /// the oldest, or where several share the edge the oldest of whose turn it is.
    pub fn pop(&mut self, now: Monotonic) -> Option<T> {
        self.expire(now);
        let item = match self.next_slot(now) {
            None => None,
            Some(at) => {
                let slot = self.take(at);
                self.counters.popped += 1;
                self.free_credit(1);
                self.note_delivery(now, &slot);
                if let Some(lineage) = slot.lineage {
                    self.notices.merged(*lineage);
                }
                Some(slot.item)
            }
        };
        self.note_pressure(now);
        item
    }

    /// What [`Self::pop`] would take, unless it turns out too old.
    pub fn next(&self, now: Monotonic) -> Option<&T> {
        let slot = self.slots.get(self.next_slot(now)?)?;
        Some(&slot.item)
    }

    /// Whether the consumer has to reset what it keeps of the edge's sync domain before the next
    /// item, and why. Ask before each [`Self::pop`]; it is said once.
    pub fn take_break(&mut self, now: Monotonic) -> Option<BreakReason> {
        let groups = self.groups.as_ref()?;
        if groups.breaks.is_empty() {
            return None;
        }
        self.expire(now);
        let next = self.slots.get(self.next_slot(now)?)?.ordinal;
        self.groups.as_mut()?.breaks.before(next)
    }

    /// Takes everything back, on a cancel: nothing of it is delivered. Counted apart from drops.
    pub fn clear(&mut self, now: Monotonic) -> u64 {
        let cleared = self.slots.len() as u64;
        self.slots.clear();
        self.bytes = 0;
        self.media = Duration::ZERO;
        self.counters.cleared += cleared;
        self.coalesced = None;
        if let Some(groups) = &mut self.groups {
            groups.lost.clear();
            groups.delivered.clear();
            groups.breaks.clear();
        }
        self.free_credit(cleared);
        self.note_pressure(now);
        cleared
    }

    /// Takes back what is not wanted any more, on a cancel, and leaves the rest as it is. Counted as in
    /// [`Self::clear`].
    pub fn forget(&mut self, now: Monotonic, mut unwanted: impl FnMut(&T) -> bool) -> u64 {
        let mut forgotten = 0;
        let mut at = 0;
        while let Some(slot) = self.slots.get(at) {
            if unwanted(&slot.item) {
                let slot = self.take(at);
                self.close_up(at, slot.item.fair_key());
                forgotten += 1;
            } else {
                at += 1;
            }
        }
        self.counters.cleared += forgotten;
        self.free_credit(forgotten);
        self.note_pressure(now);
        forgotten
    }

    /// Gives up the rest of a synchronised group that lost a member on another edge
    /// (`scope: plan_wide`). `false` if it was lost here before.
    pub fn lose_group(&mut self, group: u64) -> bool {
        let Some(groups) = &mut self.groups else {
            return false;
        };
        if !groups.lost.note(group) {
            return false;
        }
        let torn = groups.delivered.contains(group);
        let mut lost_at = None;
        let mut at = 0;
        while at < self.slots.len() {
            let Slot { item, ordinal, .. } = &self.slots[at];
            if item.sync_group() == Some(group) && !item.keep() {
                lost_at = Some((*ordinal, item.sequence()));
                self.remove(at, DropReason::GroupLost);
            } else {
                at += 1;
            }
        }
        if torn {
            let (ordinal, sequence) = lost_at.unwrap_or((self.counters.offered, 0));
            self.break_at(ordinal, sequence, BreakReason::PartialLoss);
        }
        true
    }

    /// Tells the consumer to reset before the next item: another edge of the domain has a break.
    pub fn reset(&mut self, reason: BreakReason) {
        let next = self
            .slots
            .front()
            .map_or(self.counters.offered, |slot| slot.ordinal);
        if let Some(groups) = &mut self.groups {
            // Ordinals are counted from 0; what is before the first is before everything.
            groups
                .breaks
                .note(next.saturating_sub(1), reason, |_, _| false);
        }
    }

    /// Items queued.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes queued.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Media queued: how long it takes to play it.
    pub fn media(&self) -> Duration {
        self.media
    }

    /// How long the oldest item has waited for a consumer that wants it.
    pub fn waited(&self, now: Monotonic) -> Duration {
        self.slots
            .front()
            .map_or(Duration::ZERO, |slot| self.age(now, &slot.item))
    }

    /// How long an item has waited for a consumer that wants it.
    pub fn age(&self, now: Monotonic, item: &T) -> Duration {
        now.since(item.arrived().max(self.unwanted_until))
    }

    /// When the oldest item came.
    pub fn oldest(&self) -> Option<Monotonic> {
        self.slots.front().map(|slot| slot.item.arrived())
    }

    /// Whether an ordinary item would be taken without anything having to go.
    pub fn has_space(&self, now: Monotonic) -> bool {
        let (bytes, media) = self.wanted;
        if self.limits.blocks && self.is_stopped(now, bytes, media) {
            return false;
        }
        self.lacks(now, bytes).is_none()
    }

    /// Whether every bound is far enough for what is here to rest: at most three quarters of each are used.
    pub fn is_roomy(&self) -> bool {
        let Limits {
            items,
            bytes,
            latency,
            marks,
            ..
        } = &self.limits;
        let mark = marks.queue_items.map_or(u64::MAX, |marks| marks.high);
        !self.pressed
            && self.slots.len() <= items / 4 * 3
            && self.bytes <= bytes / 4 * 3
            && self.media <= *latency / 4 * 3
            && (self.slots.len() as u64) < mark
    }

    /// Whether the sender was told to stop.
    pub fn is_pressed(&self) -> bool {
        self.pressed
    }

    /// How long a sender may wait with a blocked item.
    pub fn max_block_time(&self) -> Duration {
        self.limits.block_time
    }

    /// When the oldest item becomes too old, for a host that wants to say so in time.
    pub fn next_expiry(&self) -> Option<Monotonic> {
        if !self.limits.expires() {
            return None;
        }
        self.slots
            .iter()
            .find(|slot| !slot.item.keep())
            .map(|slot| slot.item.arrived().max(self.unwanted_until) + self.limits.age)
    }

    /// Whether an item may be taken, unless it turns out too old.
    pub fn is_ready(&self, now: Monotonic) -> bool {
        !self.slots.is_empty() && self.held_until(now).is_none()
    }

    /// When an item that is held back for more of its kind is due.
    pub fn next_due(&self, now: Monotonic) -> Option<Monotonic> {
        self.held_until(now)
    }

    /// What has happened so far.
    pub fn counters(&self) -> EdgeCounters {
        self.counters
    }

    /// Whether there is something to report.
    pub fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// What there is to report, oldest first. Bounded however long it is left: notices of one
    /// sort are folded together then, and their counts stay exact.
    pub fn take_notices(&mut self) -> vec_deque::Drain<'_, EdgeNotice> {
        self.notices.drain()
    }

    fn next_ordinal(&mut self) -> u64 {
        let ordinal = self.counters.offered;
        self.counters.offered += 1;
        ordinal
    }

    fn place(&mut self, now: Monotonic, ordinal: u64, item: T) -> Offered<T> {
        if item.bytes() > self.limits.bytes {
            return self.refuse(ordinal, item, DropReason::Oversized);
        }
        if self.is_lost(&item) {
            return self.refuse(ordinal, item, DropReason::GroupLost);
        }
        let degraded = self.pressed && self.limits.on_high == Some(PressureAction::Degrade);
        let strategy = if degraded {
            Strategy::Sample
        } else {
            self.limits.strategy
        };
        match strategy {
            // A blocked item never comes here, so there is room.
            Strategy::Block | Strategy::DropOldest => self.insert(now, ordinal, item, Give::Oldest),
            Strategy::DropNewest => self.insert(now, ordinal, item, Give::Newest),
            Strategy::Merge => self.fold(now, ordinal, item),
            Strategy::Sample => {
                let scarce = self.pressed || self.lacks(now, item.bytes()).is_some();
                if scarce && !item.keep() {
                    self.thin_next = !self.thin_next;
                    if self.thin_next {
                        return self.refuse(ordinal, item, DropReason::Sampled);
                    }
                }
                self.insert(now, ordinal, item, Give::Oldest)
            }
            Strategy::LatestOnly => {
                let mut superseded = None;
                while let Some(at) = self.older_of(&item) {
                    superseded = Some(self.remove(at, DropReason::Superseded));
                }
                let outcome = self.insert(now, ordinal, item, Give::Oldest);
                match superseded {
                    Some(item) if matches!(outcome, Offered::Queued) => Offered::Displaced(item),
                    Some(_) | None => outcome,
                }
            }
        }
    }

    /// Puts an item at the end, and takes out what it costs.
    fn insert(&mut self, now: Monotonic, ordinal: u64, item: T, usual: Give) -> Offered<T> {
        let displaced = match self.make_room(now, &item, usual) {
            Ok(displaced) => displaced,
            Err(reason) => return self.refuse(ordinal, item, reason),
        };
        // What had to go may have torn the newcomer's own group.
        if self.is_lost(&item) {
            return self.refuse(ordinal, item, DropReason::GroupLost);
        }
        self.push(ordinal, item, None);
        displaced.map_or(Offered::Queued, Offered::Displaced)
    }

    /// Takes items out until `item` fits: those that the broken bound, or else the edge's strategy,
    /// gives up. Says which bound refuses it.
    fn make_room(
        &mut self,
        now: Monotonic,
        item: &T,
        usual: Give,
    ) -> Result<Option<T>, DropReason> {
        let mut displaced = None;
        while let Some(reason) = self.lacks(now, item.bytes()) {
            let victim = match self.limits.gives(reason).unwrap_or(usual) {
                Give::Oldest => self.oldest_droppable().or(
                    // A final text gives way only to another one.
                    (item.keep() && !self.slots.is_empty()).then_some(0),
                ),
                Give::Newest => self.newest_droppable(item),
            };
            let Some(at) = victim else {
                return Err(reason);
            };
            displaced = Some(self.remove(at, reason));
        }
        Ok(displaced)
    }

    /// Folds `item` into the newest item of its key. The result stands where the newer one would:
    /// at the end, so that delivery stays in order.
    fn fold(&mut self, now: Monotonic, ordinal: u64, item: T) -> Offered<T> {
        // A partial that is held back for more has no use once the final text is there.
        let folds = !item.keep() || self.limits.cadence.is_some();
        let partner = item.merge_key().filter(|_| folds).and_then(|key| {
            self.slots.iter().rposition(|slot| {
                slot.item.merge_key() == Some(key)
                    && !slot.item.keep()
                    && !slot.lineage.as_ref().is_some_and(|l| l.is_full())
            })
        });
        let Some(at) = partner else {
            return self.insert(now, ordinal, item, Give::Oldest);
        };
        let Slot {
            item: mut older,
            lineage,
            ..
        } = self.take(at);
        self.close_up(at, older.fair_key());
        let mut lineage = lineage.unwrap_or_else(|| Box::new(Lineage::new(source(&older))));
        lineage.add(source(&item));
        older.merge(item);
        self.counters.merged += 1;
        self.free_credit(1);
        // Folding may grow an item, so what is around it may have to give way.
        let displaced = match self.make_room(now, &older, Give::Oldest) {
            Ok(displaced) => displaced,
            Err(reason) => {
                self.notices.merged(*lineage);
                self.note_drop(ordinal, &older, reason);
                return Offered::Shed(older);
            }
        };
        self.push(ordinal, older, Some(lineage));
        displaced.map_or(Offered::Merged, Offered::Displaced)
    }

    /// Whether a bound that makes the sender wait would be broken by an item of that size.
    fn is_stopped(&self, now: Monotonic, bytes: usize, media: Duration) -> bool {
        let limits = &self.limits;
        (self.slots.len() >= limits.items && limits.stops(DropReason::Items))
            || (self.bytes + bytes > limits.bytes && limits.stops(DropReason::Bytes))
            // One item always passes, or a long one would wait for ever.
            || (!self.slots.is_empty()
                && self.media + media > limits.latency
                && limits.stops(DropReason::Latency))
            || (limits.stops(DropReason::Age) && self.waited(now) > limits.age)
    }

    /// Which bound an item of that size would break; one that blocks is broken by none.
    fn lacks(&self, now: Monotonic, bytes: usize) -> Option<DropReason> {
        if self.slots.len() >= self.limits.items {
            return Some(DropReason::Items);
        }
        if self.bytes + bytes > self.limits.bytes {
            return Some(DropReason::Bytes);
        }
        if self.media > self.limits.latency
            && !self.limits.stops(DropReason::Latency)
            && self
                .oldest_droppable()
                .is_some_and(|at| self.age(now, &self.slots[at].item) > self.limits.latency)
        {
            return Some(DropReason::Latency);
        }
        (self.limits.age_refuses() && self.waited(now) > self.limits.age).then_some(DropReason::Age)
    }

    /// Drops what waited too long.
    fn expire(&mut self, now: Monotonic) {
        if !self.limits.expires() {
            return;
        }
        let mut at = 0;
        while let Some(slot) = self.slots.get(at) {
            if slot.item.keep() {
                at += 1;
            } else if self.age(now, &slot.item) > self.limits.age {
                self.remove(at, DropReason::Age);
            } else {
                // Items arrive in order, so what follows is younger.
                return;
            }
        }
    }

    /// Which item is next, if it may go now.
    fn next_slot(&self, now: Monotonic) -> Option<usize> {
        if self.held_until(now).is_some() {
            return None;
        }
        if !self.limits.fair {
            return (!self.slots.is_empty()).then_some(0);
        }
        let rounds = self.slots.iter().enumerate();
        rounds.min_by_key(|(_, slot)| slot.round).map(|(at, _)| at)
    }

    /// Until when the only item waits for more of its kind to fold into it.
    fn held_until(&self, now: Monotonic) -> Option<Monotonic> {
        let cadence = self.limits.cadence?;
        let (key, at) = self.coalesced?;
        let slot = self.slots.front().filter(|_| self.slots.len() == 1)?;
        let waits = !slot.item.keep() && slot.item.merge_key() == Some(key);
        let until = at + cadence;
        (waits && now < until).then_some(until)
    }

    fn note_delivery(&mut self, now: Monotonic, slot: &Slot<T>) {
        if self.limits.fair {
            self.round = slot.round;
        }
        if self.limits.cadence.is_some() {
            let key = slot.item.merge_key().filter(|_| !slot.item.keep());
            self.coalesced = key.map(|key| (key, now));
        }
        if let Some(groups) = &mut self.groups
            && let Some(group) = slot.item.sync_group()
        {
            groups.delivered.note(group);
        }
    }

    fn push(&mut self, ordinal: u64, item: T, lineage: Option<Box<Lineage>>) {
        self.bytes += item.bytes();
        self.media += item.media();
        grow(&mut self.slots, self.limits.items);
        self.slots.push_back(Slot {
            ordinal,
            round: self.round_of(&item),
            item,
            lineage,
        });
    }

    fn take(&mut self, at: usize) -> Slot<T> {
        let slot = self.slots.remove(at).expect("the caller found it there");
        self.bytes -= slot.item.bytes();
        self.media = self.media.saturating_sub(slot.item.media());
        // What one burst took is not kept for good.
        if self.slots.is_empty() && self.slots.capacity() > MANY {
            self.slots.shrink_to(FEW);
        }
        slot
    }

    /// Takes an item out and reports it as dropped.
    fn remove(&mut self, at: usize, reason: DropReason) -> T {
        let slot = self.take(at);
        self.close_up(at, slot.item.fair_key());
        if let Some(lineage) = slot.lineage {
            self.notices.merged(*lineage);
        }
        self.note_drop(slot.ordinal, &slot.item, reason);
        slot.item
    }

    fn refuse(&mut self, ordinal: u64, item: T, reason: DropReason) -> Offered<T> {
        self.note_drop(ordinal, &item, reason);
        Offered::Shed(item)
    }

    fn note_drop(&mut self, ordinal: u64, item: &T, reason: DropReason) {
        self.counters.dropped += 1;
        self.free_credit(1);
        self.notices
            .dropped(ordinal, item.sequence(), item.turn(), reason);
        if self.groups.is_some() {
            self.note_torn(ordinal, item, reason);
        }
    }

    /// Grants freed credit in batches of half the queue, so that grants do not outnumber items.
    fn free_credit(&mut self, items: u64) {
        match self.flow {
            FlowMode::Signal => {}
            FlowMode::Credit | FlowMode::Hybrid => {
                self.freed += items;
                let batch = (self.limits.items as u64 / 2).max(1);
                if self.freed >= batch {
                    self.grant();
                }
            }
        }
    }

    fn grant(&mut self) {
        let freed = std::mem::take(&mut self.freed);
        if freed > 0 {
            self.notices.credit(freed);
            self.sender.granted(freed);
        }
    }

    fn note_pressure(&mut self, now: Monotonic) {
        let depth = self.slots.len() as u64;
        // Looked at only where a mark asks for it: this runs several times for each item.
        let waited = if self.limits.marks.queue_ms.is_some() {
            self.waited(now).as_millis() as u64
        } else {
            0
        };
        if self.pressed {
            let below = |marks: Option<Marks>, level| marks.is_none_or(|marks| level <= marks.low);
            let marks = self.limits.marks;
            if self.slots.is_empty()
                || (below(marks.queue_items, depth) && below(marks.queue_ms, waited))
            {
                self.pressed = false;
                self.sender.told(false);
                match self.flow {
                    FlowMode::Signal | FlowMode::Hybrid => self.notices.released(),
                    FlowMode::Credit => {}
                }
            }
            return;
        }
        let reached = |marks: Option<Marks>, level| marks.is_some_and(|marks| level >= marks.high);
        if reached(self.limits.marks.queue_items, depth) {
            let lane = self.limits.is_lane_marked;
            self.press(if lane { Mark::Lane } else { Mark::Items }, depth);
        } else if !self.slots.is_empty() && reached(self.limits.marks.queue_ms, waited) {
            self.press(Mark::Millis, waited);
        }
    }

    /// A full edge is under pressure whatever its marks say.
    fn assert_pressure(&mut self, now: Monotonic) {
        self.note_pressure(now);
        if !self.pressed {
            self.press(Mark::Items, self.slots.len() as u64);
        }
    }

    fn press(&mut self, mark: Mark, level: u64) {
        self.pressed = true;
        self.sender.told(true);
        match self.flow {
            FlowMode::Signal | FlowMode::Hybrid => self.notices.pressed(mark, level),
            FlowMode::Credit => self.notices.marked(mark, level),
        }
        if let Some(action) = self.limits.on_high {
            self.notices.acted(action);
        }
    }
}

/// Makes room for one more in a queue that never has more than `most`: twice as much as there was, but not twice as much
/// as it may ever hold, since there are thousands.
pub fn grow<T>(queue: &mut VecDeque<T>, most: usize) {
    let has = queue.len();
    if has == queue.capacity() {
        let most = most.max(has + 1);
        queue.reserve_exact(has.max(FEW).min(most - has));
    }
}

fn source<T: Load>(item: &T) -> MergeSource {
    MergeSource {
        sequence: item.sequence(),
        event: item.event().cloned(),
    }
}
