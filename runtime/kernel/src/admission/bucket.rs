//! A rate limit: so many a minute, in bursts of no more than that.

use std::time::Duration;

use rspp_proto::Monotonic;

/// Nanoseconds in a minute: a bucket counts in units of 1/`MINUTE`, so that refilling is exact.
const MINUTE: i128 = 60_000_000_000;

/// A bucket that fills evenly and is never fuller than a minute's worth. It may be overdrawn by what
/// is known only afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    per_minute: u64,
    level: i128,
    at: Monotonic,
}

impl TokenBucket {
    /// A full bucket.
    pub fn full(per_minute: u64, now: Monotonic) -> Self {
        Self {
            per_minute,
            level: i128::from(per_minute) * MINUTE,
            at: now,
        }
    }

    fn refill(&mut self, now: Monotonic) {
        let full = i128::from(self.per_minute) * MINUTE;
        let elapsed = now.since(self.at).as_nanos();
        // A minute fills it from empty; longer than a year fills it from any debt we can owe.
        let elapsed = i128::try_from(elapsed).unwrap_or(i128::MAX).min(1 << 60);
        let gained = i128::from(self.per_minute).saturating_mul(elapsed);
        self.level = self.level.saturating_add(gained).min(full);
        self.at = self.at.max(now);
    }

    /// How long until `amount` is there; `None` if it never will be.
    pub fn wait(&mut self, now: Monotonic, amount: u64) -> Option<Duration> {
        self.refill(now);
        let missing = i128::from(amount) * MINUTE - self.level;
        if missing <= 0 {
            return Some(Duration::ZERO);
        }
        if amount > self.per_minute {
            return None;
        }
        let rate = i128::from(self.per_minute);
        let nanos = (missing + rate - 1) / rate;
        Some(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }

    /// Takes `amount`, whether it is there or not.
    pub fn take(&mut self, now: Monotonic, amount: u64) {
        self.refill(now);
        self.level = self
            .level
            .saturating_sub(i128::from(amount).saturating_mul(MINUTE));
    }

    /// Whether nothing is owed and nothing was taken lately.
    pub fn is_full(&mut self, now: Monotonic) -> bool {
        self.refill(now);
        self.level == i128::from(self.per_minute) * MINUTE
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Monotonic {
        Monotonic::from_millis(ms)
    }

    #[test]
    fn a_minute_s_worth_at_once_then_one_by_one() {
        let mut bucket = TokenBucket::full(3, ms(0));
        for _ in 0..3 {
            assert_eq!(bucket.wait(ms(0), 1), Some(Duration::ZERO));
            bucket.take(ms(0), 1);
        }
        assert_eq!(bucket.wait(ms(0), 1), Some(Duration::from_secs(20)));
        assert_eq!(bucket.wait(ms(19_999), 1), Some(Duration::from_millis(1)));
        assert_eq!(bucket.wait(ms(20_000), 1), Some(Duration::ZERO));
    }

    #[test]
    fn what_was_overdrawn_is_owed() {
        let mut bucket = TokenBucket::full(60, ms(0));
        bucket.take(ms(0), 180);
        assert_eq!(bucket.wait(ms(0), 1), Some(Duration::from_secs(121)));
        assert!(!bucket.is_full(ms(60_000)));
        assert_eq!(bucket.wait(ms(121_000), 1), Some(Duration::ZERO));
    }

    #[test]
    fn more_than_it_ever_holds_is_never_there() {
        assert_eq!(TokenBucket::full(0, ms(0)).wait(ms(9), 1), None);
        assert_eq!(TokenBucket::full(5, ms(0)).wait(ms(9), 6), None);
    }

    proptest! {
        /// F-050: over any stretch of time no more passes than the burst and what the time is worth;
        /// whoever waits as long as told is let in.
        #[test]
        fn no_more_passes_than_the_rate(
            per_minute in 1_u64..500,
            steps in prop::collection::vec((0_u64..5_000, 1_u64..4), 1..200),
        ) {
            let mut bucket = TokenBucket::full(per_minute, Monotonic::ZERO);
            let (mut now, mut passed) = (Monotonic::ZERO, 0);
            for (gap, amount) in steps {
                now = now + Duration::from_millis(gap);
                match bucket.wait(now, amount) {
                    Some(Duration::ZERO) => {
                        bucket.take(now, amount);
                        passed += amount;
                    }
                    Some(wait) => {
                        let mut later = bucket;
                        prop_assert_eq!(later.wait(now + wait, amount), Some(Duration::ZERO));
                    }
                    None => prop_assert!(amount > per_minute),
                }
                let worth = per_minute as f64 * now.as_millis_f64() / 60_000.0;
                prop_assert!(passed as f64 <= per_minute as f64 + worth + 1e-6);
            }
        }
    }
}
