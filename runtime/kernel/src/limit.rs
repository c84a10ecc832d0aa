//! How much processor time a node may take: what it overdraws, it has to wait for (F-107).

use std::time::Duration;

use rspp_proto::Monotonic;

/// How often a node that is held again and again is told of.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// A node's processor time: so much of each second, at most a second's worth at once.
///
/// What a handler takes is known when it has ended, so the account may be overdrawn; then the node
/// takes nothing more before the debt is paid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuAllowance {
    per_second: Duration,
    /// In nanoseconds; below zero when overdrawn.
    left: i64,
    /// Up to when time has been given.
    given_at: Monotonic,
    told_at: Option<Monotonic>,
}

/// A node is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Until when.
    pub until: Monotonic,
    /// Whether it is to be told of; once a second is often enough.
    pub is_news: bool,
}

impl CpuAllowance {
    /// An account with a second's worth in it.
    pub fn new(per_second: Duration, now: Monotonic) -> Self {
        Self {
            per_second,
            left: nanos(per_second),
            given_at: now,
            told_at: None,
        }
    }

    /// Processor time was taken.
    pub fn spend(&mut self, now: Monotonic, busy: Duration) {
        self.give(now);
        self.left = self.left.saturating_sub(nanos(busy));
    }

    /// Whether, and until when, the node has to wait.
    pub fn hold(&mut self, now: Monotonic) -> Option<Hold> {
        self.give(now);
        if self.left >= 0 {
            return None;
        }
        let debt = self.left.unsigned_abs() as f64;
        let wait = Duration::from_secs_f64(debt / nanos(self.per_second).max(1) as f64);
        let is_news = self
            .told_at
            .is_none_or(|told| now.since(told) >= TOLD_EVERY);
        if is_news {
            self.told_at = Some(now);
        }
        Some(Hold {
            until: now + wait + Duration::from_millis(1),
            is_news,
        })
    }

    fn give(&mut self, now: Monotonic) {
        let given = now.since(self.given_at).as_secs_f64() * nanos(self.per_second) as f64;
        self.left = self
            .left
            .saturating_add(given as i64)
            .min(nanos(self.per_second));
        self.given_at = now;
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn at(ms: u64) -> Monotonic {
        Monotonic::from_millis(ms)
    }

    /// F-107: a second's worth may be taken at once; what is beyond it is waited for, and no more.
    #[test]
    fn what_is_overdrawn_is_waited_for() {
        let mut account = CpuAllowance::new(ms(100), at(0));
        account.spend(at(0), ms(100));
        assert_eq!(account.hold(at(0)), None);
        account.spend(at(0), ms(50));
        let hold = account.hold(at(0)).expect("it is overdrawn");
        assert_eq!((hold.until, hold.is_news), (at(501), true));
        assert!(account.hold(at(400)).is_some_and(|hold| !hold.is_news));
        assert_eq!(account.hold(at(501)), None);
        // Time that is not taken is not saved up.
        account.spend(at(60_000), ms(150));
        let hold = account.hold(at(60_000)).expect("it is overdrawn");
        assert_eq!((hold.until, hold.is_news), (at(60_501), true));
    }

    /// F-107: over any long span a greedy node gets its share and a second's worth.
    #[test]
    fn a_greedy_node_gets_its_share() {
        let mut account = CpuAllowance::new(ms(100), at(0));
        let (mut now, mut taken, mut told) = (at(0), Duration::ZERO, 0);
        while now < at(60_000) {
            if let Some(hold) = account.hold(now) {
                told += u32::from(hold.is_news);
                now = hold.until;
            } else {
                account.spend(now, ms(30));
                taken += ms(30);
                now = now + ms(30);
            }
        }
        assert!(taken <= ms(100) * 61 + ms(30), "{taken:?}");
        assert!(taken >= ms(100) * 57, "{taken:?}");
        assert!((20..=60).contains(&told), "{told}");
    }
}
