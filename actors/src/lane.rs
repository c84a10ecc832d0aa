//! One bounded queue: what it does when full, and what became of an item.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::num::NonZeroUsize;

/// What became of an item that was offered to a lane.
#[must_use = "a displaced or refused item is evidence: record it or send it elsewhere"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer<T> {
    /// The item is in and nothing fell out.
    Queued,
    /// The item is in; this older one fell out for it.
    Displaced(T),
    /// There was no room: the item comes back.
    Full(T),
    /// The receiver has ended for good: the item comes back.
    Closed(T),
}

/// What a data lane keeps its items in.
///
/// Each method is called under the mailbox's short lock, by senders and by the receiver: it must not block, and should
/// take well under a microsecond.
pub trait Buffer: Send + 'static {
    /// What is kept.
    type Item: Send + 'static;

    /// Takes an item in, and says what became of it.
    fn offer(&mut self, item: Self::Item) -> Offer<Self::Item>;

    /// Hands out the next item.
    fn pop(&mut self) -> Option<Self::Item>;

    /// Items that [`pop`](Self::pop) would hand out.
    fn len(&self) -> usize;

    /// Whether nothing is kept.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether what is kept is worth waking the receiver for. What is not waits until it is woken for something else,
    /// or until an offer makes it so.
    fn is_pressing(&self) -> bool {
        !self.is_empty()
    }

    /// Whether there is something for the receiver to look at that is no item of its own, e.g. that an item was given
    /// up: it is woken for that whatever waits.
    fn has_news(&self) -> bool {
        false
    }

    /// The receiver is told that there is, once.
    fn take_news(&mut self) -> bool {
        false
    }

    /// Whether a sender that waits for space should try again now.
    ///
    /// A buffer with watermarks says `false` from its high mark down to its low one, so that senders do not wake for
    /// one free place at a time.
    fn has_space(&self) -> bool;

    /// The same for a sender on one part of the buffer, in a buffer that has several.
    fn has_space_at(&self, part: usize) -> bool {
        let _ = part;
        self.has_space()
    }
}

/// What a full lane does with the next item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The new item comes back to its sender.
    Refuse,
    /// The oldest item makes room.
    DropOldest,
}

/// A first-in first-out queue of at most `capacity` items. Memory is taken as items arrive.
#[derive(Debug)]
pub struct Bounded<T> {
    items: VecDeque<T>,
    capacity: NonZeroUsize,
    overflow: Overflow,
}

impl<T> Bounded<T> {
    /// An empty queue.
    pub fn new(capacity: NonZeroUsize, overflow: Overflow) -> Self {
        Self {
            items: VecDeque::new(),
            capacity,
            overflow,
        }
    }

    /// Items the queue may hold.
    pub fn capacity(&self) -> NonZeroUsize {
        self.capacity
    }

    /// Takes everything out at once, oldest first.
    pub fn take_all(&mut self) -> VecDeque<T> {
        std::mem::take(&mut self.items)
    }
}

impl<T: Send + 'static> Buffer for Bounded<T> {
    type Item = T;

    fn offer(&mut self, item: T) -> Offer<T> {
        if self.items.len() < self.capacity.get() {
            self.items.push_back(item);
            return Offer::Queued;
        }
        match self.overflow {
            Overflow::Refuse => Offer::Full(item),
            Overflow::DropOldest => {
                let oldest = self.items.pop_front();
                self.items.push_back(item);
                oldest.map_or(Offer::Queued, Offer::Displaced)
            }
        }
    }

    fn pop(&mut self) -> Option<T> {
        self.items.pop_front()
    }

    fn len(&self) -> usize {
        self.items.len()
    }

    fn has_space(&self) -> bool {
        self.items.len() < self.capacity.get()
    }
}

/// The data lane of an actor that takes no data.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoData;

impl Buffer for NoData {
    type Item = Infallible;

    fn offer(&mut self, item: Infallible) -> Offer<Infallible> {
        match item {}
    }

    fn pop(&mut self) -> Option<Infallible> {
        None
    }

    fn len(&self) -> usize {
        0
    }

    fn has_space(&self) -> bool {
        true
    }
}

/// The telemetry of an actor that takes none.
pub type NoTelemetry = Infallible;

/// How many items the lanes beside data may hold; the data lane's bound is its [`Buffer`]'s own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneLimits {
    /// Control messages any holder of a [`ControlRef`](crate::ControlRef) may have waiting.
    pub control: NonZeroUsize,
    /// Places on top of `control` that only supervision may use, so that a flood of control cannot keep out a cancel.
    pub control_reserve: NonZeroUsize,
    /// Telemetry items; the oldest falls out beyond that.
    pub telemetry: NonZeroUsize,
}

impl Default for LaneLimits {
    /// 64 control messages, 16 in reserve, 256 telemetry items.
    fn default() -> Self {
        Self {
            control: at_least_one(64),
            control_reserve: at_least_one(16),
            telemetry: at_least_one(256),
        }
    }
}

fn at_least_one(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn full(overflow: Overflow) -> Bounded<u32> {
        let mut lane = Bounded::new(at_least_one(2), overflow);
        assert_eq!(lane.offer(1), Offer::Queued);
        assert_eq!(lane.offer(2), Offer::Queued);
        lane
    }

    #[test]
    fn a_full_lane_gives_the_new_item_back() {
        let mut lane = full(Overflow::Refuse);
        assert!(!lane.has_space());
        assert_eq!(lane.offer(3), Offer::Full(3));
        assert_eq!(lane.take_all(), [1, 2]);
    }

    #[test]
    fn a_full_lane_displaces_its_oldest_item() {
        let mut lane = full(Overflow::DropOldest);
        assert_eq!(lane.offer(3), Offer::Displaced(1));
        assert_eq!(lane.take_all(), [2, 3]);
        assert!(lane.has_space());
    }

    #[test]
    fn an_empty_lane_takes_no_memory() {
        assert_eq!(
            Bounded::<[u8; 64]>::new(at_least_one(1_000_000), Overflow::Refuse)
                .items
                .capacity(),
            0
        );
    }
}
