//! One edge's buffer: how much it may hold, what gives when it is full, and what it reports.
//!
//! A plain queue with rules. Waiting (under `block`) is the host's business, and so is sending the
//! signals that the notices ask for.

mod credit;
mod notice;

#[cfg(test)]
mod tests;

use std::{
    collections::{VecDeque, vec_deque},
    time::Duration,
};

use rspp_proto::{
    EventId, Monotonic,
    spec::{
        EdgeBufferPolicy, FlowMode, Marks, Strategy, SyncDropPolicy, SyncPolicy, TelemetryHandling,
        Watermarks,
    },
};

pub use credit::{Credit, NoCredit};
use notice::Notices;
pub use notice::{
    DropReason, EdgeNotice, Lineage, MAX_MERGE_SOURCES, Mark, MergeSource, SequenceSpan,
};

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

    /// The synchronised group it belongs to, for `sync_drop_policy`.
    fn sync_group(&self) -> Option<u64> {
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
/// Does not allocate per item once the queue has grown to its working size; only merges do.
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
    /// Credit that popped items have freed and that was not granted yet.
    freed: u64,
    /// Groups that lost a member lately, newest last.
    lost_groups: VecDeque<u64>,
    notices: Notices,
    /// Bytes and media of the item that was blocked last: less room than that is no space.
    wanted: (usize, Duration),
}

/// Lost groups remembered, so that their late members go the same way.
const LOST_GROUPS: usize = 16;

/// A policy as the buffer checks it.
#[derive(Clone, Debug)]
struct Limits {
    strategy: Strategy,
    items: usize,
    bytes: usize,
    age: Duration,
    latency: Duration,
    block_time: Duration,
    marks: Watermarks,
    sync: Option<SyncDropPolicy>,
}

#[derive(Debug)]
struct Slot<T> {
    /// Counts the items offered to this edge.
    ordinal: u64,
    item: T,
    lineage: Option<Box<Lineage>>,
}

impl<T: Load> EdgeBuffer<T> {
    /// An empty buffer for data under `policy`, with `flow_xoff` and `flow_xon`.
    pub fn new(policy: &EdgeBufferPolicy) -> Self {
        Self::with(policy, policy.strategy, FlowMode::Signal)
    }

    /// An empty buffer for data whose sender is held back by `flow`.
    pub fn with_flow(policy: &EdgeBufferPolicy, flow: FlowMode) -> Self {
        Self::with(policy, policy.strategy, flow)
    }

    /// An empty buffer for the edge's telemetry, which never blocks.
    pub fn for_telemetry(policy: &EdgeBufferPolicy) -> Self {
        let strategy = match policy.lane_handling.telemetry {
            TelemetryHandling::Drop | TelemetryHandling::BestEffortDrop => Strategy::DropNewest,
            TelemetryHandling::Sample => Strategy::Sample,
        };
        Self::with(policy, strategy, FlowMode::Signal)
    }

    fn with(policy: &EdgeBufferPolicy, strategy: Strategy, flow: FlowMode) -> Self {
        let limits = Limits::new(policy, strategy);
        let mut notices = Notices::default();
        let credit = limits.items as u64;
        match flow {
            FlowMode::Signal => {}
            FlowMode::Credit | FlowMode::Hybrid => notices.credit(credit),
        }
        Self {
            limits,
            slots: VecDeque::new(),
            bytes: 0,
            media: Duration::ZERO,
            counters: EdgeCounters::default(),
            pressed: false,
            thin_next: false,
            flow,
            freed: 0,
            lost_groups: VecDeque::new(),
            notices,
            wanted: (1, Duration::ZERO),
        }
    }

    /// Offers an item at `now`. Look at what became of it, then at [`Self::take_notices`].
    pub fn offer(&mut self, now: Monotonic, item: T) -> Offered<T> {
        self.expire(now);
        self.note_pressure(now);
        if self.limits.strategy == Strategy::Block
            && item.bytes() <= self.limits.bytes
            && !self.is_lost(&item)
            && self.lacks(now, item.bytes(), item.media()).is_some()
        {
            self.assert_pressure(now);
            self.wanted = (item.bytes(), item.media());
            return Offered::Blocked(item);
        }
        self.wanted = (1, Duration::ZERO);
        let ordinal = self.counters.offered;
        self.counters.offered += 1;
        let outcome = self.place(now, ordinal, item);
        self.counters.deepest = self.counters.deepest.max(self.slots.len() as u64);
        self.note_pressure(now);
        outcome
    }

    /// Counts a blocked item as dropped, after `max_block_time`.
    pub fn give_up(&mut self, item: &T) {
        let ordinal = self.counters.offered;
        self.counters.offered += 1;
        self.note_drop(ordinal, item, DropReason::BlockTimeout);
    }

    /// Takes the oldest item, unless it is too old to be of use.
    pub fn pop(&mut self, now: Monotonic) -> Option<T> {
        self.expire(now);
        let slot = self.slots.pop_front();
        let item = slot.map(|slot| {
            self.bytes -= slot.item.bytes();
            self.media = self.media.saturating_sub(slot.item.media());
            self.counters.popped += 1;
            self.free_credit(1);
            if let Some(lineage) = slot.lineage {
                self.notices.merged(*lineage);
            }
            slot.item
        });
        self.note_pressure(now);
        item
    }

    /// Takes everything back, on a cancel: nothing of it is delivered. Counted apart from drops.
    pub fn clear(&mut self, now: Monotonic) -> u64 {
        let cleared = self.slots.len() as u64;
        self.slots.clear();
        self.bytes = 0;
        self.media = Duration::ZERO;
        self.counters.cleared += cleared;
        self.lost_groups.clear();
        self.free_credit(cleared);
        self.note_pressure(now);
        cleared
    }

    /// Gives up the rest of a synchronised group that lost a member on another edge
    /// (`scope: plan_wide`).
    pub fn lose_group(&mut self, group: u64) {
        self.remember_lost(group);
        let mut at = 0;
        while at < self.slots.len() {
            let item = &self.slots[at].item;
            if item.sync_group() == Some(group) && !item.keep() {
                self.remove(at, DropReason::GroupLost);
            } else {
                at += 1;
            }
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

    /// How long the oldest item has waited.
    pub fn waited(&self, now: Monotonic) -> Duration {
        self.slots
            .front()
            .map_or(Duration::ZERO, |slot| now.since(slot.item.arrived()))
    }

    /// Whether an ordinary item would be taken without anything having to go.
    pub fn has_space(&self, now: Monotonic) -> bool {
        self.lacks(now, self.wanted.0, self.wanted.1).is_none()
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
        if self.limits.strategy == Strategy::Block {
            return None;
        }
        self.slots
            .iter()
            .find(|slot| !slot.item.keep())
            .map(|slot| slot.item.arrived() + self.limits.age)
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

    fn place(&mut self, now: Monotonic, ordinal: u64, item: T) -> Offered<T> {
        if item.bytes() > self.limits.bytes {
            return self.refuse(ordinal, item, DropReason::Oversized);
        }
        if self.is_lost(&item) {
            return self.refuse(ordinal, item, DropReason::GroupLost);
        }
        match self.limits.strategy {
            // A blocked item never comes here, so there is room.
            Strategy::Block | Strategy::DropOldest => self.displace_oldest(now, ordinal, item),
            Strategy::DropNewest => self.displace_newest(now, ordinal, item),
            Strategy::Merge => self.fold(now, ordinal, item),
            Strategy::Sample => {
                let scarce = self.pressed || self.lacks(now, item.bytes(), item.media()).is_some();
                if scarce && !item.keep() {
                    self.thin_next = !self.thin_next;
                    if self.thin_next {
                        return self.refuse(ordinal, item, DropReason::Sampled);
                    }
                }
                self.displace_oldest(now, ordinal, item)
            }
            Strategy::LatestOnly => {
                let mut superseded = None;
                while let Some(at) = self.oldest_droppable() {
                    superseded = Some(self.remove(at, DropReason::Superseded));
                }
                let outcome = self.displace_oldest(now, ordinal, item);
                match superseded {
                    Some(item) if matches!(outcome, Offered::Queued) => Offered::Displaced(item),
                    Some(_) | None => outcome,
                }
            }
        }
    }

    fn displace_oldest(&mut self, now: Monotonic, ordinal: u64, item: T) -> Offered<T> {
        let mut displaced = None;
        while let Some(reason) = self.lacks(now, item.bytes(), item.media()) {
            let victim = self.oldest_droppable().or(
                // A final text gives way only to another one.
                (item.keep() && !self.slots.is_empty()).then_some(0),
            );
            let Some(at) = victim else {
                return self.refuse(ordinal, item, reason);
            };
            displaced = Some(self.remove(at, reason));
        }
        self.admit(ordinal, item, displaced)
    }

    fn displace_newest(&mut self, now: Monotonic, ordinal: u64, item: T) -> Offered<T> {
        let mut displaced = None;
        while let Some(reason) = self.lacks(now, item.bytes(), item.media()) {
            let newest = self.slots.iter().rposition(|slot| !slot.item.keep());
            match newest {
                Some(at) if item.keep() => displaced = Some(self.remove(at, reason)),
                Some(_) | None => return self.refuse(ordinal, item, reason),
            }
        }
        self.admit(ordinal, item, displaced)
    }

    fn admit(&mut self, ordinal: u64, item: T, displaced: Option<T>) -> Offered<T> {
        // What had to go may have torn the newcomer's own group.
        if self.is_lost(&item) {
            return self.refuse(ordinal, item, DropReason::GroupLost);
        }
        self.push(ordinal, item, None);
        displaced.map_or(Offered::Queued, Offered::Displaced)
    }

    /// Folds `item` into the newest item of its key. The result stands where the newer one would:
    /// at the end, so that delivery stays in order.
    fn fold(&mut self, now: Monotonic, ordinal: u64, item: T) -> Offered<T> {
        let partner = item.merge_key().filter(|_| !item.keep()).and_then(|key| {
            self.slots.iter().rposition(|slot| {
                slot.item.merge_key() == Some(key)
                    && !slot.item.keep()
                    && !slot.lineage.as_ref().is_some_and(|l| l.is_full())
            })
        });
        let Some(at) = partner else {
            return self.displace_oldest(now, ordinal, item);
        };
        let Slot {
            item: mut older,
            lineage,
            ..
        } = self.take(at);
        let mut lineage = lineage.unwrap_or_else(|| Box::new(Lineage::new(source(&older))));
        lineage.add(source(&item));
        older.merge(item);
        self.counters.merged += 1;
        self.free_credit(1);
        // Folding may grow an item, so what is around it may have to give way.
        let mut displaced = None;
        while let Some(reason) = self.lacks(now, older.bytes(), older.media()) {
            let Some(victim) = self.oldest_droppable() else {
                self.notices.merged(*lineage);
                self.note_drop(ordinal, &older, reason);
                return Offered::Shed(older);
            };
            displaced = Some(self.remove(victim, reason));
        }
        self.push(ordinal, older, Some(lineage));
        displaced.map_or(Offered::Merged, Offered::Displaced)
    }

    /// Which bound an item of that size would break.
    fn lacks(&self, now: Monotonic, bytes: usize, media: Duration) -> Option<DropReason> {
        if self.slots.len() >= self.limits.items {
            return Some(DropReason::Items);
        }
        if self.bytes + bytes > self.limits.bytes {
            return Some(DropReason::Bytes);
        }
        if self.limits.strategy == Strategy::Block {
            // One item always passes, or a long one would wait for ever.
            if !self.slots.is_empty() && self.media + media > self.limits.latency {
                return Some(DropReason::Latency);
            }
            if self.waited(now) > self.limits.age {
                return Some(DropReason::Age);
            }
            return None;
        }
        let lagging = self.media > self.limits.latency
            && self
                .oldest_droppable()
                .is_some_and(|at| now.since(self.slots[at].item.arrived()) > self.limits.latency);
        lagging.then_some(DropReason::Latency)
    }

    /// Drops what waited too long. Under `block` age stops the sender instead: what a slow player
    /// has not reached yet is late, not useless.
    fn expire(&mut self, now: Monotonic) {
        if self.limits.strategy == Strategy::Block {
            return;
        }
        let mut at = 0;
        while let Some(slot) = self.slots.get(at) {
            if slot.item.keep() {
                at += 1;
            } else if now.since(slot.item.arrived()) > self.limits.age {
                self.remove(at, DropReason::Age);
            } else {
                // Items arrive in order, so what follows is younger.
                return;
            }
        }
    }

    fn oldest_droppable(&self) -> Option<usize> {
        self.slots.iter().position(|slot| !slot.item.keep())
    }

    fn push(&mut self, ordinal: u64, item: T, lineage: Option<Box<Lineage>>) {
        self.bytes += item.bytes();
        self.media += item.media();
        self.slots.push_back(Slot {
            ordinal,
            item,
            lineage,
        });
    }

    fn take(&mut self, at: usize) -> Slot<T> {
        let slot = self.slots.remove(at).expect("the caller found it there");
        self.bytes -= slot.item.bytes();
        self.media = self.media.saturating_sub(slot.item.media());
        slot
    }

    /// Takes an item out and reports it as dropped.
    fn remove(&mut self, at: usize, reason: DropReason) -> T {
        let slot = self.take(at);
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
        self.notices.dropped(ordinal, item.sequence(), reason);
        let Some(sync) = self.limits.sync.as_ref().map(|sync| sync.policy) else {
            return;
        };
        match sync {
            SyncPolicy::NoSync => {}
            SyncPolicy::DropWithDiscontinuity => self.notices.discontinuity(item.sequence()),
            SyncPolicy::AtomicDrop => {
                if let Some(group) = item.sync_group()
                    && !self.lost_groups.contains(&group)
                {
                    self.lose_group(group);
                }
            }
        }
    }

    fn is_lost(&self, item: &T) -> bool {
        !item.keep()
            && item
                .sync_group()
                .is_some_and(|group| self.lost_groups.contains(&group))
    }

    fn remember_lost(&mut self, group: u64) {
        if self.lost_groups.contains(&group) {
            return;
        }
        if self.lost_groups.len() == LOST_GROUPS {
            self.lost_groups.pop_front();
        }
        self.lost_groups.push_back(group);
    }

    /// Grants freed credit in batches of half the queue, so that grants do not outnumber items.
    fn free_credit(&mut self, items: u64) {
        match self.flow {
            FlowMode::Signal => {}
            FlowMode::Credit | FlowMode::Hybrid => {
                self.freed += items;
                let batch = (self.limits.items as u64 / 2).max(1);
                if self.freed >= batch {
                    self.notices.credit(self.freed);
                    self.freed = 0;
                }
            }
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
                match self.flow {
                    FlowMode::Signal | FlowMode::Hybrid => self.notices.released(),
                    FlowMode::Credit => {}
                }
            }
            return;
        }
        let reached = |marks: Option<Marks>, level| marks.is_some_and(|marks| level >= marks.high);
        if reached(self.limits.marks.queue_items, depth) {
            self.press(Mark::Items, depth);
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
        match self.flow {
            FlowMode::Signal | FlowMode::Hybrid => self.notices.pressed(mark, level),
            FlowMode::Credit => {}
        }
    }
}

impl Limits {
    fn new(policy: &EdgeBufferPolicy, strategy: Strategy) -> Self {
        let items = usize::try_from(policy.max_queue_items).unwrap_or(usize::MAX);
        let items = items.max(1);
        // A mark above the bound could never be reached.
        let queue_items = policy.watermarks.queue_items.map(|marks| Marks {
            high: marks.high.min(items as u64),
            low: marks.low.min((items as u64) - 1),
        });
        Self {
            strategy,
            items,
            bytes: usize::try_from(policy.max_queue_bytes).unwrap_or(usize::MAX),
            age: Duration::from_millis(policy.max_queue_ms),
            latency: Duration::from_millis(policy.max_latency_contribution_ms),
            block_time: Duration::from_millis(policy.max_block_time_ms.unwrap_or(0)),
            marks: Watermarks {
                queue_items,
                queue_ms: policy.watermarks.queue_ms,
            },
            sync: policy.sync_drop_policy.clone(),
        }
    }
}

fn source<T: Load>(item: &T) -> MergeSource {
    MergeSource {
        sequence: item.sequence(),
        event: item.event().cloned(),
    }
}
