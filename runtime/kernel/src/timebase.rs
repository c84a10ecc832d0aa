//! Three times as one: where in the user's audio, when on this machine, when on the calendar (NF-018).
//!
//! Media time is the sender's own clock, counted in samples. It is tied to the runtime's clock at an
//! anchor; from there each can be told from the other. A sender whose clock runs away is tied anew,
//! which breaks its media time and has to be said.

use std::time::Duration;

use rspp_proto::{Monotonic, SampleIndex, SampleRate, WallClock};

/// A moment in all three times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// In the user's audio.
    pub media: SampleIndex,
    /// On the runtime's clock.
    pub at: Monotonic,
    /// On the calendar.
    pub wall: WallClock,
}

/// What an observation came to.
#[must_use = "a rebase breaks media time and has to be said"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// The first one: all others are told from it.
    Anchored,
    /// As expected but for this much.
    Within {
        /// How far the two clocks are apart.
        error: Duration,
    },
    /// Further apart than is borne: the anchor is another one from here on.
    Rebased {
        /// How far the two clocks were apart.
        skew: Duration,
    },
    /// The runtime's clock does not go back: the observation is refused.
    Refused,
}

/// Errors are kept in steps of a millisecond, up to this.
const STEPS: usize = 256;
/// Observations that a verdict about the mapping is made of: ten seconds of frames.
const WINDOW: usize = 500;

/// How well media time could be told from the runtime's clock, over the last stretch of observations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The error that 99 of 100 observations keep to, in milliseconds, rounded up.
    pub p99_ms: u64,
    /// Whether that is what it may be.
    pub within: bool,
}

/// What a timebase is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most that clocks may run apart before the anchor is moved.
    pub max_skew: Duration,
    /// Most that 99 of 100 observations may be apart.
    pub max_error_p99: Duration,
}

/// A session's times. Projections never go back, whatever happens.
#[derive(Clone, Debug)]
pub struct Timebase {
    rate: SampleRate,
    bounds: Bounds,
    anchor: Option<Anchor>,
    /// The latest observation: nothing after it is projected before it.
    latest: Option<(SampleIndex, Monotonic)>,
    rebases: u64,
    /// How often the error was so many milliseconds; made with the first observation.
    errors: Vec<u32>,
    /// By how much each observation since the last verdict came late; negative where it came early. Enough for
    /// the next once it is [`WINDOW`] long.
    recent: Vec<i16>,
}

impl Timebase {
    /// A timebase for audio at `rate`.
    pub fn new(rate: SampleRate, bounds: Bounds) -> Self {
        Self {
            rate,
            bounds,
            anchor: None,
            latest: None,
            rebases: 0,
            errors: Vec::new(),
            recent: Vec::new(),
        }
    }

    /// Ties the three times together.
    pub fn calibrate(&mut self, anchor: Anchor) {
        self.anchor = Some(anchor);
    }

    /// When a position in the user's audio is on the runtime's clock; `None` before the first anchor.
    pub fn project(&self, media: SampleIndex) -> Option<Monotonic> {
        let projected = self.raw(media)?;
        Some(match self.latest {
            Some((seen, at)) if media >= seen => projected.max(at),
            Some((_, at)) => projected.min(at),
            None => projected,
        })
    }

    /// The same on the calendar.
    pub fn project_wall(&self, media: SampleIndex) -> Option<WallClock> {
        let anchor = self.anchor?;
        let at = self.project(media)?;
        let ahead = at.since(anchor.at).as_millis() as u64;
        let behind = anchor.at.since(at).as_millis() as u64;
        Some(WallClock((anchor.wall.0 + ahead).saturating_sub(behind)))
    }

    /// Where in the user's audio a moment of the runtime's clock is.
    pub fn media_at(&self, at: Monotonic) -> Option<SampleIndex> {
        let anchor = self.anchor?;
        let ahead = self.rate.samples_in(at.since(anchor.at));
        let behind = self.rate.samples_in(anchor.at.since(at));
        Some(SampleIndex((anchor.media.0 + ahead).saturating_sub(behind)))
    }

    /// A position was seen at `at`.
    pub fn observe(&mut self, media: SampleIndex, at: Monotonic, wall: WallClock) -> Observed {
        if self.latest.is_some_and(|(_, latest)| at < latest) {
            return Observed::Refused;
        }
        let anchor = Anchor { media, at, wall };
        let Some(expected) = self.raw(media) else {
            self.calibrate(anchor);
            self.latest = Some((media, at));
            self.note(Duration::ZERO, Duration::ZERO);
            return Observed::Anchored;
        };
        let (late, early) = (at.since(expected), expected.since(at));
        let error = late.max(early);
        let went_back = self.latest.is_some_and(|(latest, _)| media < latest);
        self.latest = Some((media, at));
        self.note(late, early);
        if error > self.bounds.max_skew || went_back {
            self.calibrate(anchor);
            self.rebases += 1;
            // What was off from the old anchor says nothing about the new one.
            self.recent.clear();
            return Observed::Rebased { skew: error };
        }
        Observed::Within { error }
    }

    /// How the mapping was over the last stretch of observations, once at the end of each. Beyond the
    /// bound the anchor is moved to where half of them came later and half earlier: what is off by the
    /// same amount each time is corrected so, and media time itself goes on without a break. What comes
    /// now early and now late cannot be, and is told again with the next stretch.
    pub fn verdict(&mut self) -> Option<Mapping> {
        if self.recent.len() < WINDOW {
            return None;
        }
        let mut errors: Vec<u16> = self.recent.iter().map(|off| off.unsigned_abs()).collect();
        let rank = WINDOW * 99 / 100 - 1;
        let (_, p99, _) = errors.select_nth_unstable(rank);
        let p99_ms = u64::from(*p99);
        let verdict = Mapping {
            p99_ms,
            within: Duration::from_millis(p99_ms) <= self.bounds.max_error_p99,
        };
        if let Some(anchor) = self.anchor.as_mut().filter(|_| !verdict.within) {
            let off = median(&mut self.recent);
            let by = Duration::from_millis(u64::from(off.unsigned_abs()));
            let moved = if off < 0 {
                anchor.at.as_duration().saturating_sub(by)
            } else {
                anchor.at.as_duration() + by
            };
            let wall = i64::from(off).saturating_add_unsigned(anchor.wall.0);
            anchor.at = Monotonic::from_duration(moved);
            anchor.wall = WallClock(u64::try_from(wall).unwrap_or(0));
        }
        self.recent.clear();
        Some(verdict)
    }

    /// How often the anchor had to be moved.
    pub fn rebases(&self) -> u64 {
        self.rebases
    }

    /// `media_runtime_mapping_error_ms` at a share of the observations, e.g. 0.99: nearest rank, in
    /// whole milliseconds, rounded up; `None` without any.
    pub fn mapping_error_ms(&self, share: f64) -> Option<u64> {
        let total: u64 = self.errors.iter().map(|count| u64::from(*count)).sum();
        let rank = ((total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        self.errors
            .iter()
            .position(|count| {
                seen += u64::from(*count);
                seen >= rank
            })
            .map(|step| step as u64)
    }

    fn raw(&self, media: SampleIndex) -> Option<Monotonic> {
        let anchor = self.anchor?;
        let ahead = self
            .rate
            .duration_of(media.0.saturating_sub(anchor.media.0));
        let behind = self
            .rate
            .duration_of(anchor.media.0.saturating_sub(media.0));
        let at = anchor.at + ahead;
        Some(Monotonic::from_duration(
            at.as_duration().saturating_sub(behind),
        ))
    }

    fn note(&mut self, late: Duration, early: Duration) {
        if self.errors.is_empty() {
            self.errors = vec![0; STEPS];
            self.recent.reserve_exact(WINDOW);
        }
        let step = step_of(late.max(early));
        self.errors[step] = self.errors[step].saturating_add(1);
        // If nobody asks for a verdict, that is enough.
        if self.recent.len() < WINDOW {
            let off = i16::try_from(step).expect("steps are few");
            self.recent.push(if early > late { -off } else { off });
        }
    }
}

/// An error in whole milliseconds, rounded up; what is beyond the steps is the last one.
fn step_of(error: Duration) -> usize {
    (error.as_micros().div_ceil(1_000) as usize).min(STEPS - 1)
}

fn median(offs: &mut [i16]) -> i16 {
    let middle = offs.len() / 2;
    if middle == 0 {
        return 0;
    }
    *offs.select_nth_unstable(middle).1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: SampleRate = SampleRate::HZ_16000;
    const NOON: WallClock = WallClock(1_700_000_000_000);

    fn ms(ms: u64) -> Monotonic {
        Monotonic::from_millis(ms)
    }

    fn timebase() -> Timebase {
        bounded(100)
    }

    fn bounded(max_error_p99_ms: u64) -> Timebase {
        let bounds = Bounds {
            max_skew: Duration::from_millis(100),
            max_error_p99: Duration::from_millis(max_error_p99_ms),
        };
        Timebase::new(RATE, bounds)
    }

    /// A window of frames of 20 ms, each as late as it is said; what was found of it.
    fn stretch(timebase: &mut Timebase, from: u64, late: impl Fn(u64) -> u64) -> Mapping {
        for n in from..from + WINDOW as u64 {
            assert_eq!(timebase.verdict(), None, "before the end of the stretch");
            let _within = timebase.observe(SampleIndex(n * 320), ms(n * 20 + late(n)), NOON);
        }
        timebase.verdict().expect("a stretch is over")
    }

    /// NF-018: from an anchor on each of the three times is told from any other.
    #[test]
    fn each_time_is_told_from_the_others() {
        let mut timebase = timebase();
        assert_eq!(timebase.project(SampleIndex(0)), None);
        let first = timebase.observe(SampleIndex(16_000), ms(5_000), NOON);
        assert_eq!(first, Observed::Anchored);
        assert_eq!(timebase.project(SampleIndex(32_000)), Some(ms(6_000)));
        assert_eq!(timebase.project(SampleIndex(0)), Some(ms(4_000)));
        let wall = timebase.project_wall(SampleIndex(24_000));
        assert_eq!(wall, Some(WallClock(NOON.0 + 500)));
        assert_eq!(timebase.media_at(ms(5_250)), Some(SampleIndex(20_000)));
    }

    /// NF-018: skew within the bound is measured, beyond it the anchor moves, once.
    #[test]
    fn skew_beyond_the_bound_moves_the_anchor() {
        let mut timebase = timebase();
        let _anchored = timebase.observe(SampleIndex(0), ms(0), NOON);
        let error = Duration::from_millis(100);
        let within = timebase.observe(SampleIndex(16_000), ms(1_100), NOON);
        assert_eq!(within, Observed::Within { error });
        let skew = Duration::from_millis(101);
        let rebased = timebase.observe(SampleIndex(32_000), ms(2_101), NOON);
        assert_eq!(rebased, Observed::Rebased { skew });
        let error = Duration::ZERO;
        let after = timebase.observe(SampleIndex(48_000), ms(3_101), NOON);
        assert_eq!(after, Observed::Within { error });
        assert_eq!(timebase.rebases(), 1);
        assert_eq!(timebase.mapping_error_ms(0.5), Some(0));
        assert_eq!(timebase.mapping_error_ms(0.99), Some(101));
    }

    /// NF-018: the error that 99 of 100 frames keep to is held against the bound that was set, stretch by
    /// stretch. What is off by the same each time is corrected; what is now off and now not is told again.
    #[test]
    fn a_mapping_beyond_its_bound_is_told_and_corrected() {
        let verdict = |p99_ms, within| Mapping { p99_ms, within };
        let window = WINDOW as u64;
        let mut steady = bounded(30);
        // The first frame came early: all the others are late by it.
        let late = |n: u64| if n == 0 { 0 } else { 60 };
        assert_eq!(stretch(&mut steady, 0, late), verdict(60, false));
        assert_eq!(stretch(&mut steady, window, late), verdict(0, true));
        let wall = steady.project_wall(SampleIndex(16_000));
        assert_eq!(wall, Some(WallClock(NOON.0 + 1_060)));
        assert_eq!(steady.rebases(), 0, "media time goes on without a break");

        // Held up and then all at once, again and again.
        let mut wild = bounded(30);
        let late = |n: u64| [0, 90, 70, 50, 30, 10, 0, 0, 0, 0][n as usize % 10];
        assert_eq!(stretch(&mut wild, 0, late), verdict(90, false));
        assert!(!stretch(&mut wild, window, late).within);

        // One in a hundred may be later than that.
        let mut rare = bounded(30);
        let late = |n: u64| match n {
            0 => 0,
            250..254 => 90 - (n - 250) * 20,
            _ => 30,
        };
        assert_eq!(stretch(&mut rare, 0, late), verdict(30, true));
        assert_eq!(rare.mapping_error_ms(1.0), Some(90));
    }

    /// NF-018: a runtime clock that goes back is a fault, and changes nothing.
    #[test]
    fn the_runtime_clock_does_not_go_back() {
        let mut timebase = timebase();
        let _anchored = timebase.observe(SampleIndex(0), ms(1_000), NOON);
        assert_eq!(
            timebase.observe(SampleIndex(320), ms(999), NOON),
            Observed::Refused
        );
        assert_eq!(timebase.project(SampleIndex(320)), Some(ms(1_020)));
    }

    proptest! {
        /// NF-018: whatever the sender's clock does, projections rise with media time, what is yet to
        /// come is never projected before what has come, and within the bound the error is bounded.
        #[test]
        fn projections_are_monotonic(steps in prop::collection::vec((0u64..4_000, 0u64..400), 1..60)) {
            let mut timebase = timebase();
            let (mut media, mut now) = (0, 0);
            for (samples, later) in steps {
                media += samples;
                now += later;
                let observed = timebase.observe(SampleIndex(media), ms(now), NOON);
                let error = match observed {
                    Observed::Within { error } => error,
                    Observed::Anchored | Observed::Rebased { .. } => Duration::ZERO,
                    Observed::Refused => return Err(TestCaseError::fail("time went on")),
                };
                prop_assert!(error <= Duration::from_millis(100));
                let at = |ahead: u64| timebase.project(SampleIndex(media + ahead)).unwrap();
                prop_assert!(at(0) >= ms(now));
                let ahead: Vec<_> = (0..50).map(|n| at(n * 320)).collect();
                prop_assert!(ahead.is_sorted());
                let before: Vec<_> = (0..50)
                    .map(|n| timebase.project(SampleIndex(media.saturating_sub(n * 320))).unwrap())
                    .collect();
                prop_assert!(before.is_sorted_by(|a, b| a >= b));
            }
        }
    }
}
