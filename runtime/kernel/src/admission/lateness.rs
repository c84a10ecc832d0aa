//! How late things happen, over the last few readings.

use std::collections::VecDeque;

/// Buckets of one millisecond; the last stands for all beyond.
pub const BUCKETS: usize = 128;

/// Readings that are looked at together.
const READINGS: usize = 8;

/// Counts by whole milliseconds of lateness, over the last readings.
#[derive(Clone, Debug, Default)]
pub struct LatenessWindow {
    readings: VecDeque<[u32; BUCKETS]>,
}

impl LatenessWindow {
    /// Takes in what was counted since the last reading; the oldest reading is forgotten.
    pub fn push(&mut self, counts: [u32; BUCKETS]) {
        if self.readings.len() == READINGS {
            self.readings.pop_front();
        }
        self.readings.push_back(counts);
    }

    /// The 99th percentile, in milliseconds; zero if nothing was counted.
    pub fn p99_ms(&self) -> u64 {
        let at = |bucket: usize| -> u64 {
            let of = self.readings.iter();
            of.map(|counts| u64::from(counts[bucket])).sum()
        };
        let total: u64 = (0..BUCKETS).map(at).sum();
        // The rank of the percentile, counted from the latest.
        let mut above = total / 100;
        for bucket in (0..BUCKETS).rev() {
            let count = at(bucket);
            if count > above {
                return bucket as u64;
            }
            above -= count;
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(usize, u32)]) -> [u32; BUCKETS] {
        let mut counts = [0; BUCKETS];
        for (bucket, count) in of {
            counts[*bucket] = *count;
        }
        counts
    }

    #[test]
    fn one_in_a_hundred_is_above_the_percentile() {
        let mut window = LatenessWindow::default();
        assert_eq!(window.p99_ms(), 0);
        window.push(counts(&[(0, 990), (30, 10)]));
        assert_eq!(window.p99_ms(), 0);
        window.push(counts(&[(30, 1)]));
        assert_eq!(window.p99_ms(), 30);
    }

    #[test]
    fn what_is_long_past_is_forgotten() {
        let mut window = LatenessWindow::default();
        window.push(counts(&[(90, 5)]));
        for _ in 0..READINGS - 1 {
            window.push(counts(&[(1, 5)]));
            assert_eq!(window.p99_ms(), 90);
        }
        window.push(counts(&[(1, 5)]));
        assert_eq!(window.p99_ms(), 1);
    }
}
