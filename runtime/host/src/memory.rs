//! What a session holds in memory, and how much of it is too much (P19, F-107).
//!
//! Whoever holds something of a session has a [`Share`] of its [`Meter`]. A share tells the meter in
//! steps, so that a frame costs a subtraction and, now and then, one atomic addition; nothing is
//! locked. Crossing the soft mark or the cap is told to the session at once, by whoever crosses it.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use rspp_actors::ControlRef;
use rspp_proto::spec::MemoryLimits;
use serde::{Deserialize, Serialize};

use crate::session::SessionControl;

/// What a share may hold more or less than the meter knows.
const STEP: usize = 4 * 1024;

/// What a session holds, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// Now; 4 KiB for each holder may be missing.
    pub held: u64,
    /// The most so far.
    pub peak: u64,
    /// From where on it sheds what it can do without.
    pub soft: u64,
    /// Where it ends.
    pub cap: u64,
}

/// A limit that a session has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    Soft,
    Cap,
}

/// A session's account.
#[derive(Debug)]
pub(crate) struct Meter {
    held: AtomicUsize,
    peak: AtomicUsize,
    soft: usize,
    cap: usize,
    session: OnceLock<ControlRef<SessionControl>>,
}

impl Meter {
    pub(crate) fn new(limits: MemoryLimits) -> Self {
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Self {
            held: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            soft: bytes(limits.soft_bytes),
            cap: bytes(limits.cap_bytes),
            session: OnceLock::new(),
        }
    }

    /// Says who is told of marks.
    pub(crate) fn report_to(&self, session: ControlRef<SessionControl>) {
        let _told_once = self.session.set(session);
    }

    pub(crate) fn read(&self) -> MemoryUse {
        MemoryUse {
            held: self.held.load(Relaxed) as u64,
            peak: self.peak.load(Relaxed) as u64,
            soft: self.soft as u64,
            cap: self.cap as u64,
        }
    }

    /// Whether what the session can do without is to be shed; one load.
    pub(crate) fn is_tight(&self) -> bool {
        self.held.load(Relaxed) > self.soft
    }

    fn grow(&self, bytes: usize) {
        let before = self.held.fetch_add(bytes, Relaxed);
        let now = before + bytes;
        self.peak.fetch_max(now, Relaxed);
        for (mark, limit) in [(Mark::Soft, self.soft), (Mark::Cap, self.cap)] {
            if before <= limit && now > limit {
                self.tell(mark, now);
            }
        }
    }

    fn shrink(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Relaxed);
    }

    /// A session that has no room for this even in its reserve is ending by that alone.
    fn tell(&self, mark: Mark, held: usize) {
        if let Some(session) = self.session.get() {
            let message = SessionControl::Memory {
                mark,
                held: held as u64,
            };
            let _it_ends_anyway = session.send_reserved(message);
        }
    }
}

/// What one holder has of a session's memory; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    meter: Arc<Meter>,
    told: usize,
}

impl Share {
    pub(crate) fn of(meter: &Arc<Meter>) -> Self {
        Self {
            meter: Arc::clone(meter),
            told: 0,
        }
    }

    /// Says what is held now. Steps are told, and that nothing is.
    pub(crate) fn hold(&mut self, bytes: usize) {
        if bytes.abs_diff(self.told) < STEP && (bytes > 0 || self.told == 0) {
            return;
        }
        if bytes > self.told {
            self.meter.grow(bytes - self.told);
        } else {
            self.meter.shrink(self.told - bytes);
        }
        self.told = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.meter.shrink(self.told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter() -> Arc<Meter> {
        Arc::new(Meter::new(MemoryLimits {
            soft_bytes: 64 * 1024,
            cap_bytes: 128 * 1024,
        }))
    }

    /// P19: what is held is known to a step for each holder, and nothing is left when they are gone.
    #[test]
    fn shares_add_up_to_what_is_held_and_leave_nothing() {
        let meter = meter();
        let mut shares: Vec<_> = (0..10).map(|_| Share::of(&meter)).collect();
        let mut seed = 7_u64;
        for _ in 0..10_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (at, bytes) = ((seed >> 33) as usize % 10, (seed >> 40) as usize % 20_000);
            shares[at].hold(bytes);
            let told: usize = shares.iter().map(|share| share.told).sum();
            assert_eq!(meter.read().held, told as u64);
            assert!(shares[at].told.abs_diff(bytes) < STEP);
        }
        assert!(meter.read().peak >= meter.read().held);
        drop(shares);
        assert_eq!(meter.read().held, 0);
    }

    #[test]
    fn the_soft_mark_is_crossed_both_ways() {
        let meter = meter();
        let mut share = Share::of(&meter);
        share.hold(65 * 1024);
        assert!(meter.is_tight());
        share.hold(60 * 1024);
        assert!(!meter.is_tight());
    }
}
