//! Puts the user's audio back in order, and decides when a frame counts as lost (F-054, F-087).
//!
//! What comes in order goes on at once: there is nothing to wait for. Only at a gap is anything held,
//! for as long as the profile waits, and never more than it has room for.

use std::{collections::BTreeMap, time::Duration};

use rspp_proto::{Monotonic, spec::JitterProfile};

/// How long a missing frame is waited for, and how many may wait behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JitterLimits {
    /// From when the first frame after the gap came.
    pub patience: Duration,
    /// Frames held at most.
    pub frames: usize,
}

impl JitterLimits {
    /// The limits of a profile.
    pub const fn of(profile: JitterProfile) -> Self {
        match profile {
            JitterProfile::LatencyFirst => Self {
                patience: Duration::from_millis(40),
                frames: 8,
            },
            JitterProfile::AccuracyFirst => Self {
                patience: Duration::from_millis(240),
                frames: 32,
            },
        }
    }
}

/// What became of a frame that came in.
#[must_use = "a frame that was not kept is evidence; count it"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is held, or next.
    Kept,
    /// It had come before.
    Duplicate,
    /// It had been given up.
    Late,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Popped<T> {
    /// A frame, in order.
    Frame(T),
    /// So many frames were not there in time.
    Lost {
        /// The first of them.
        first: u64,
        /// How many.
        count: u64,
    },
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JitterCounters {
    /// Frames that went on in order.
    pub delivered: u64,
    /// Frames that came after one that was made later.
    pub reordered: u64,
    /// Frames that came twice.
    pub duplicates: u64,
    /// Frames that came when they had been given up.
    pub late: u64,
    /// Frames that were given up.
    pub lost: u64,
    /// The longest that a frame was held.
    pub longest: Duration,
}

/// The buffer.
#[derive(Clone, Debug)]
pub struct JitterBuffer<T> {
    limits: JitterLimits,
    /// The sequence number that goes on next; `None` before the first frame.
    next: Option<u64>,
    held: BTreeMap<u64, (Monotonic, T)>,
    counters: JitterCounters,
}

impl<T> JitterBuffer<T> {
    /// An empty buffer.
    pub fn new(limits: JitterLimits) -> Self {
        Self {
            limits,
            next: None,
            held: BTreeMap::new(),
            counters: JitterCounters::default(),
        }
    }

    /// A frame came in at `now`.
    pub fn push(&mut self, now: Monotonic, sequence: u64, frame: T) -> Pushed {
        let next = *self.next.get_or_insert(sequence);
        if sequence < next {
            self.counters.late += 1;
            return Pushed::Late;
        }
        if self.held.contains_key(&sequence) {
            self.counters.duplicates += 1;
            return Pushed::Duplicate;
        }
        let overtaken = self
            .held
            .last_key_value()
            .is_some_and(|(last, _)| *last > sequence);
        self.counters.reordered += u64::from(overtaken);
        self.held.insert(sequence, (now, frame));
        Pushed::Kept
    }

    /// What goes on at `now`; call until `None`.
    pub fn pop(&mut self, now: Monotonic) -> Option<Popped<T>> {
        let next = self.next?;
        let (&first, &(arrived, _)) = self.held.first_key_value()?;
        if first == next {
            let (arrived, frame) = self.held.remove(&first)?;
            self.next = Some(next + 1);
            self.counters.delivered += 1;
            self.counters.longest = self.counters.longest.max(now.since(arrived));
            return Some(Popped::Frame(frame));
        }
        let full = self.held.len() > self.limits.frames;
        if !full && now < self.oldest().unwrap_or(arrived) + self.limits.patience {
            return None;
        }
        self.next = Some(first);
        self.counters.lost += first - next;
        Some(Popped::Lost {
            first: next,
            count: first - next,
        })
    }

    /// When to [`pop`](Self::pop) at the latest; `None` if nothing is waited for.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        Some(self.oldest()? + self.limits.patience)
    }

    /// Forgets what is held and where it stood: a new stream begins.
    pub fn reset(&mut self) {
        self.next = None;
        self.held.clear();
    }

    /// What has happened so far.
    pub fn counters(&self) -> JitterCounters {
        self.counters
    }

    /// When the frame that has been held longest came.
    fn oldest(&self) -> Option<Monotonic> {
        self.held.values().map(|(arrived, _)| *arrived).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic::from_millis(ms)
    }

    fn buffer(profile: JitterProfile) -> JitterBuffer<u64> {
        JitterBuffer::new(JitterLimits::of(profile))
    }

    fn drain(buffer: &mut JitterBuffer<u64>, now: Monotonic) -> Vec<Popped<u64>> {
        std::iter::from_fn(|| buffer.pop(now)).collect()
    }

    /// F-087: nothing is added to the delay of frames that come in order.
    #[test]
    fn frames_in_order_go_on_at_once() {
        let mut buffer = buffer(JitterProfile::AccuracyFirst);
        for n in 7..20 {
            assert_eq!(buffer.push(at(n * 20), n, n), Pushed::Kept);
            assert_eq!(drain(&mut buffer, at(n * 20)), [Popped::Frame(n)]);
        }
        assert_eq!(buffer.counters().longest, Duration::ZERO);
        assert_eq!(buffer.next_deadline(), None);
    }

    /// F-087: what changed places is put back, what comes twice or too late is counted.
    #[test]
    fn frames_out_of_order_are_put_back() {
        let mut buffer = buffer(JitterProfile::LatencyFirst);
        for (ms, n) in [(0, 1), (20, 3), (25, 2), (30, 3), (31, 2)] {
            let _counted = buffer.push(at(ms), n, n);
        }
        let frames = [1, 2, 3].map(Popped::Frame);
        assert_eq!(drain(&mut buffer, at(31)), frames);
        assert_eq!(buffer.push(at(40), 1, 1), Pushed::Late);
        let counters = buffer.counters();
        assert_eq!((counters.reordered, counters.duplicates), (1, 2));
        assert_eq!((counters.late, counters.lost), (1, 0));
    }

    /// F-054: one profile gives a frame up early, the other waits for it.
    #[test]
    fn a_missing_frame_is_waited_for_as_long_as_the_profile_says() {
        for (profile, patience) in [
            (JitterProfile::LatencyFirst, 40),
            (JitterProfile::AccuracyFirst, 240),
        ] {
            let mut buffer = buffer(profile);
            let _kept = (buffer.push(at(0), 1, 1), buffer.push(at(40), 3, 3));
            assert_eq!(drain(&mut buffer, at(40)), [Popped::Frame(1)]);
            assert_eq!(buffer.next_deadline(), Some(at(40 + patience)));
            assert_eq!(drain(&mut buffer, at(39 + patience)), []);
            assert_eq!(
                drain(&mut buffer, at(40 + patience)),
                [Popped::Lost { first: 2, count: 1 }, Popped::Frame(3)]
            );
            assert_eq!(buffer.push(at(500), 2, 2), Pushed::Late);
        }
    }

    #[test]
    fn a_new_stream_may_count_from_anywhere() {
        let mut buffer = buffer(JitterProfile::LatencyFirst);
        let _kept = buffer.push(at(0), 900, 900);
        let _popped = drain(&mut buffer, at(0));
        buffer.reset();
        assert_eq!(buffer.push(at(1), 1, 1), Pushed::Kept);
        assert_eq!(drain(&mut buffer, at(1)), [Popped::Frame(1)]);
    }

    proptest! {
        /// F-087: whatever the network does, order is kept, each frame goes on once or is counted as
        /// lost, and neither the delay nor the memory is more than the profile allows.
        #[test]
        fn order_delay_and_memory_are_kept(
            delays in prop::collection::vec((0u64..300, 0u8..10), 1..120),
            accurate: bool,
        ) {
            let profile = if accurate { JitterProfile::AccuracyFirst } else { JitterProfile::LatencyFirst };
            let limits = JitterLimits::of(profile);
            let mut arrivals: Vec<(u64, u64)> = Vec::new();
            for (n, (delay, luck)) in delays.iter().enumerate() {
                let n = n as u64;
                if *luck > 0 {
                    arrivals.push((n * 20 + delay, n));
                }
                if *luck == 9 {
                    arrivals.push((n * 20 + delay + 5, n));
                }
            }
            arrivals.sort_unstable();
            let mut buffer = buffer(profile);
            let (mut out, mut lost) = (Vec::new(), 0);
            let mut arrivals = arrivals.into_iter().peekable();
            for ms in 0..4_000 {
                while let Some((_, n)) = arrivals.next_if(|(due, _)| *due <= ms) {
                    let _counted = buffer.push(at(ms), n, n);
                    prop_assert!(buffer.held.len() <= limits.frames + 1);
                    while let Some(popped) = buffer.pop(at(ms)) {
                        match popped {
                            Popped::Frame(n) => out.push(n),
                            Popped::Lost { count, .. } => lost += count,
                        }
                    }
                }
                while let Some(popped) = buffer.pop(at(ms)) {
                    match popped {
                        Popped::Frame(n) => out.push(n),
                        Popped::Lost { count, .. } => lost += count,
                    }
                }
            }
            prop_assert!(buffer.held.is_empty());
            prop_assert!(out.is_sorted_by(|a, b| a < b));
            if let (Some(first), Some(last)) = (out.first(), out.last()) {
                prop_assert_eq!(last - first + 1, out.len() as u64 + lost);
            }
            prop_assert_eq!(buffer.counters().lost, lost);
            prop_assert!(buffer.counters().longest <= limits.patience);
        }
    }
}
