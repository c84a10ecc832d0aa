//! How much a client may send.

use std::time::Duration;

/// A bucket that fills with time: what is taken out of it may come in bursts, but not for long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    /// Most that it holds.
    most: f64,
    /// What it gains in a second.
    per_second: f64,
    level: f64,
    at: Duration,
}

impl Bucket {
    pub(crate) fn full(most: f64, per_second: f64) -> Self {
        Self {
            most,
            per_second,
            level: most,
            at: Duration::ZERO,
        }
    }

    /// Takes so much out at `now`, a time that never goes back. `false` if there is not enough.
    pub(crate) fn take(&mut self, now: Duration, amount: f64) -> bool {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.level = (self.level + passed * self.per_second).min(self.most);
        let enough = amount <= self.level;
        if enough {
            self.level -= amount;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_pass_and_floods_do_not() {
        let mut bucket = Bucket::full(3.0, 1.0);
        let at = Duration::from_secs;
        let taken: Vec<bool> = (0..5).map(|_| bucket.take(at(0), 1.0)).collect();
        assert_eq!(taken, [true, true, true, false, false]);
        assert!(bucket.take(at(1), 1.0));
        assert!(!bucket.take(at(1), 1.0));
        assert!(
            bucket.take(at(100), 3.0),
            "it never holds more than its most"
        );
        assert!(!bucket.take(at(100), 0.5));
        assert!(!bucket.take(at(50), 0.5), "time does not go back");
    }
}
