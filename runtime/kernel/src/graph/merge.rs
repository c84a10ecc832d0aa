//! Folding several inputs into one ordered stream (F-005).

use std::{collections::VecDeque, time::Duration};

use rspp_proto::{Monotonic, spec::MergeOrder};
use thiserror::Error;

/// When an event was made, for ordering. Within a source it never falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Made {
    /// The time.
    pub at: Monotonic,
    /// The runtime sequence, for events of one instant.
    pub sequence: u64,
}

/// The source's queue is full; take what is ready first.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("source {source_index} of the merge already holds {held} events")]
pub struct MergeFull<T> {
    /// Which source, counted in the order of the spec.
    pub source_index: usize,
    /// How many events it holds.
    pub held: usize,
    /// The refused event.
    pub event: T,
}

/// Puts the events of several sources in one order.
///
/// By timestamp, an event is handed out once no open source can still bring an earlier one, or
/// once it has been held back for `hold`: a silent source delays the others, it does not stop
/// them. By source priority, the first source in the spec that has something goes first.
#[derive(Debug)]
pub struct Merge<T> {
    order: MergeOrder,
    hold: Duration,
    capacity: usize,
    sources: Vec<Source<T>>,
}

#[derive(Debug)]
struct Source<T> {
    queue: VecDeque<Held<T>>,
    ended: bool,
}

#[derive(Debug)]
struct Held<T> {
    made: Made,
    came: Monotonic,
    event: T,
}

impl<T> Merge<T> {
    /// A merge of `sources` inputs that holds an event back for at most `hold`, and holds at most
    /// `capacity` events of each source.
    pub fn new(order: MergeOrder, sources: usize, hold: Duration, capacity: usize) -> Self {
        let source = || Source {
            queue: VecDeque::new(),
            ended: false,
        };
        Self {
            order,
            hold,
            capacity: capacity.max(1),
            sources: std::iter::repeat_with(source).take(sources).collect(),
        }
    }

    /// Takes an event from a source, which has not ended.
    pub fn push(
        &mut self,
        now: Monotonic,
        source: usize,
        made: Made,
        event: T,
    ) -> Result<(), MergeFull<T>> {
        let queue = &mut self.sources[source].queue;
        if queue.len() >= self.capacity {
            return Err(MergeFull {
                source_index: source,
                held: queue.len(),
                event,
            });
        }
        queue.push_back(Held {
            made,
            came: now,
            event,
        });
        Ok(())
    }

    /// Notes that a source brings nothing more.
    pub fn end(&mut self, source: usize) {
        self.sources[source].ended = true;
    }

    /// The next event and its source, if it is its turn.
    pub fn poll(&mut self, now: Monotonic) -> Option<(usize, T)> {
        let at = match self.order {
            MergeOrder::SourcePriority => self.sources.iter().position(|s| !s.queue.is_empty()),
            MergeOrder::Timestamp => self.earliest().filter(|_| {
                let settled = self.sources.iter().all(|s| s.ended || !s.queue.is_empty());
                settled || self.is_crowded() || self.next_deadline().is_some_and(|due| due <= now)
            }),
        }?;
        let held = self.sources[at].queue.pop_front()?;
        Some((at, held.event))
    }

    /// When something is due although a source is silent.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        match self.order {
            MergeOrder::SourcePriority => None,
            MergeOrder::Timestamp => {
                let heads = self.sources.iter().filter_map(|s| s.queue.front());
                heads.map(|held| held.came + self.hold).min()
            }
        }
    }

    /// Whether all sources have ended and everything was handed out.
    pub fn is_finished(&self) -> bool {
        self.sources.iter().all(|s| s.ended && s.queue.is_empty())
    }

    /// A full source may not wait any longer, or its sender would.
    fn is_crowded(&self) -> bool {
        self.sources.iter().any(|s| s.queue.len() >= self.capacity)
    }

    fn earliest(&self) -> Option<usize> {
        let heads = self.sources.iter().enumerate();
        let heads = heads.filter_map(|(at, s)| s.queue.front().map(|held| (held.made.at, at)));
        heads.min().map(|(_, at)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_millis(40);

    fn made(ms: u64) -> Made {
        Made {
            at: Monotonic::from_millis(ms),
            sequence: ms,
        }
    }

    fn at(ms: u64) -> Monotonic {
        Monotonic::from_millis(ms)
    }

    fn drain(merge: &mut Merge<&'static str>, now: u64) -> Vec<&'static str> {
        std::iter::from_fn(|| merge.poll(at(now)))
            .map(|(_, event)| event)
            .collect()
    }

    /// F-005: interleaved sources, in the predicted order under each policy.
    #[test]
    fn each_policy_orders_as_it_says() {
        for (order, expected) in [
            (MergeOrder::Timestamp, ["a1", "b2", "a3", "b4", "a5"]),
            (MergeOrder::SourcePriority, ["a1", "a3", "a5", "b2", "b4"]),
        ] {
            let mut merge = Merge::new(order, 2, HOLD, 8);
            for (source, ms, event) in [
                (1, 2, "b2"),
                (1, 4, "b4"),
                (0, 1, "a1"),
                (0, 3, "a3"),
                (0, 5, "a5"),
            ] {
                merge.push(at(10), source, made(ms), event).unwrap();
            }
            merge.end(0);
            merge.end(1);
            assert_eq!(drain(&mut merge, 10), expected);
            assert!(merge.is_finished());
        }
    }

    /// F-005: one instant is decided by the source's place in the spec.
    #[test]
    fn ties_go_to_the_first_source() {
        let mut merge = Merge::new(MergeOrder::Timestamp, 2, HOLD, 8);
        merge.push(at(0), 1, made(7), "b").unwrap();
        merge.push(at(0), 0, made(7), "a").unwrap();
        merge.end(0);
        merge.end(1);
        assert_eq!(drain(&mut merge, 0), ["a", "b"]);
    }

    #[test]
    fn a_silent_source_delays_but_does_not_stop() {
        let mut merge = Merge::new(MergeOrder::Timestamp, 2, HOLD, 8);
        merge.push(at(0), 0, made(0), "a").unwrap();
        assert_eq!(drain(&mut merge, 39), Vec::<&str>::new());
        assert_eq!(merge.next_deadline(), Some(at(40)));
        assert_eq!(drain(&mut merge, 40), ["a"]);
        assert_eq!(merge.next_deadline(), None);
    }

    #[test]
    fn a_full_source_is_served_or_refused_but_never_grows() {
        let mut merge = Merge::new(MergeOrder::Timestamp, 2, HOLD, 2);
        merge.push(at(0), 0, made(0), "a").unwrap();
        merge.push(at(0), 0, made(1), "b").unwrap();
        let refused = merge.push(at(0), 0, made(2), "c").unwrap_err();
        assert_eq!((refused.event, refused.held), ("c", 2));
        assert_eq!(drain(&mut merge, 0), ["a"], "room is made without waiting");
    }
}
