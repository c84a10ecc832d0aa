//! The user's audio where it says where it belongs: put in order, tied to the runtime's clock, and its
//! gaps told apart: what can be filled with silence, and what cannot.

use bytes::Bytes;
use rspp_kernel::{
    jitter::{JitterBuffer, JitterLimits, Popped, Pushed},
    timebase::{Bounds, Mapping, Observed, Timebase},
};
use rspp_proto::{Monotonic, SampleIndex, SampleRate, WallClock, spec::ConnectionPolicy};

use crate::report::MediaReport;

/// Why media time is not continuous (event-abi.md §4).
const LOST: &str = "sync_domain_partial_loss";
const MOVED: &str = "media_time_rebased";

/// A frame in its place.
pub(super) struct Placed {
    /// Samples before it that are missing, to be heard as silence.
    pub(super) missing: usize,
    /// Samples before it that are skipped: too many to sit through.
    pub(super) skipped: u64,
    /// Why media time breaks before it, if it does.
    pub(super) broken: Option<&'static str>,
    /// How well it could be told when it was said, once for each stretch of frames.
    pub(super) mapping: Option<Verdict>,
    pub(super) pcm: Bytes,
}

/// How well media time was told from the runtime's clock.
#[derive(Clone, Copy)]
pub(super) struct Verdict {
    pub(super) mapping: Mapping,
    /// Whether that is another matter than it was before.
    pub(super) is_news: bool,
}

pub(super) struct MediaStream {
    rate: SampleRate,
    jitter: JitterBuffer<(SampleIndex, Bytes)>,
    timebase: Timebase,
    /// Where the next frame belongs if nothing is missing.
    expected: Option<SampleIndex>,
    /// Whether frames were given up since the last one.
    lost: bool,
    /// Whether media time was told from the runtime's clock as well as it has to be, when last looked.
    maps: bool,
    /// How often it was not.
    beyond: u64,
}

impl MediaStream {
    pub(super) fn new(policy: &ConnectionPolicy, rate: SampleRate) -> Self {
        let ms = std::time::Duration::from_millis;
        let bounds = Bounds {
            max_skew: ms(policy.max_skew_ms),
            max_error_p99: ms(policy.max_mapping_error_p99_ms),
        };
        Self {
            rate,
            jitter: JitterBuffer::new(JitterLimits::of(policy.jitter)),
            timebase: Timebase::new(rate, bounds),
            expected: None,
            lost: false,
            maps: true,
            beyond: 0,
        }
    }

    pub(super) fn push(
        &mut self,
        now: Monotonic,
        sequence: u64,
        position: SampleIndex,
        pcm: Bytes,
    ) {
        match self.jitter.push(now, sequence, (position, pcm)) {
            // Counted by the buffer, and reported with the rest.
            Pushed::Kept | Pushed::Duplicate | Pushed::Late => {}
        }
    }

    /// The next frame, in its place.
    pub(super) fn pop(&mut self, now: Monotonic, wall: WallClock) -> Option<Placed> {
        loop {
            match self.jitter.pop(now)? {
                Popped::Lost { .. } => self.lost = true,
                Popped::Frame((position, pcm)) => {
                    return Some(self.place(now, wall, position, pcm));
                }
            }
        }
    }

    fn place(
        &mut self,
        now: Monotonic,
        wall: WallClock,
        position: SampleIndex,
        pcm: Bytes,
    ) -> Placed {
        let lost = std::mem::take(&mut self.lost);
        let expected = self.expected.unwrap_or(position);
        let samples = pcm.len() as u64 / 2;
        self.expected = Some(SampleIndex(position.0 + samples));
        let gap = position.0.saturating_sub(expected.0);
        let second = u64::from(self.rate.hertz());
        let moved = match self.timebase.observe(position, now, wall) {
            Observed::Rebased { .. } => true,
            Observed::Anchored | Observed::Within { .. } | Observed::Refused => false,
        };
        let mapping = self.timebase.verdict().map(|mapping| {
            self.beyond += u64::from(!mapping.within);
            let before = std::mem::replace(&mut self.maps, mapping.within);
            Verdict {
                mapping,
                is_news: before != mapping.within,
            }
        });
        let broken = if lost {
            Some(LOST)
        } else if moved || position < expected {
            Some(MOVED)
        } else {
            None
        };
        let (missing, skipped) = if gap <= second { (gap, 0) } else { (0, gap) };
        Placed {
            missing: missing as usize,
            skipped,
            broken,
            mapping,
            pcm,
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        self.jitter.next_deadline()
    }

    pub(super) fn restart(&mut self) {
        self.jitter.reset();
        self.expected = None;
        self.lost = true;
    }

    pub(super) fn report(&self) -> MediaReport {
        let counters = self.jitter.counters();
        MediaReport {
            delivered: counters.delivered,
            reordered: counters.reordered,
            duplicates: counters.duplicates,
            late: counters.late,
            lost: counters.lost,
            longest_held_ms: counters.longest.as_millis() as u64,
            rebases: self.timebase.rebases(),
            media_runtime_mapping_error_ms: self.timebase.mapping_error_ms(0.99).unwrap_or(0),
            mapping_beyond_bound: self.beyond,
        }
    }
}
