//! How timelines are exported.

use std::{num::NonZeroUsize, time::Duration};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How timelines are exported. Fields that are left out have their default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportPolicy {
    /// How long what was written may wait for more before it is shipped, in milliseconds. The recording level
    /// falls when the export lags by two seconds, so this is well below.
    pub linger_ms: u64,
    /// Bytes that are shipped without waiting for more, and the most that are shipped at once.
    pub segment_bytes: u64,
    /// Segments under way at once, each of another recording; one while the archive fails.
    pub uploads: NonZeroUsize,
    /// How long the archive may take for one segment, in milliseconds.
    pub timeout_ms: u64,
    /// How long to wait after a failure, in milliseconds; doubled with each further one …
    pub first_retry_ms: u64,
    /// … up to this. It is never given up.
    pub last_retry_ms: u64,
    /// Bytes that may wait for the archive. Above it, recordings keep their evidence and drop details.
    pub spool_bytes: u64,
    /// Bytes of evidence that may wait beyond that. Above it, recordings fail, as with a full disk.
    pub spool_reserve_bytes: u64,
}

impl Default for ExportPolicy {
    fn default() -> Self {
        Self {
            linger_ms: 500,
            segment_bytes: 1 << 20,
            uploads: NonZeroUsize::new(8).expect("not zero"),
            timeout_ms: 10_000,
            first_retry_ms: 100,
            last_retry_ms: 30_000,
            spool_bytes: 4 << 30,
            spool_reserve_bytes: 1 << 30,
        }
    }
}

/// A policy that cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// A value that has to be above zero is zero.
    #[error("{field}: must be above 0")]
    Zero {
        /// Which.
        field: &'static str,
    },
    /// The last wait is shorter than the first.
    #[error("last_retry_ms: {last} is less than first_retry_ms, {first}; raise it")]
    Retries {
        /// The first wait.
        first: u64,
        /// The last.
        last: u64,
    },
}

impl ExportPolicy {
    /// Whether it can be kept.
    pub fn check(&self) -> Result<(), PolicyError> {
        let above_zero = [
            ("segment_bytes", self.segment_bytes),
            ("timeout_ms", self.timeout_ms),
            ("first_retry_ms", self.first_retry_ms),
            ("spool_bytes", self.spool_bytes),
        ];
        if let Some((field, _)) = above_zero.into_iter().find(|(_, value)| *value == 0) {
            return Err(PolicyError::Zero { field });
        }
        if self.last_retry_ms < self.first_retry_ms {
            return Err(PolicyError::Retries {
                first: self.first_retry_ms,
                last: self.last_retry_ms,
            });
        }
        Ok(())
    }

    pub(super) fn linger(&self) -> Duration {
        Duration::from_millis(self.linger_ms)
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// How long to wait after that many failures in a row, less up to a quarter of it: nodes that lost the same
    /// archive at once do not come back to it at once.
    pub(super) fn wait_after(&self, failures: u32, chance: u64) -> Duration {
        let doubled = 1_u64
            .checked_shl(failures.saturating_sub(1))
            .unwrap_or(u64::MAX);
        let longest = self
            .first_retry_ms
            .saturating_mul(doubled)
            .min(self.last_retry_ms);
        Duration::from_millis(longest - chance % (longest / 4 + 1))
    }

    /// The longest wait, for what does not help itself.
    pub(super) fn longest_wait(&self) -> Duration {
        Duration::from_millis(self.last_retry_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_last_and_are_spread() {
        let policy = ExportPolicy::default();
        let wait = |failures, chance| policy.wait_after(failures, chance).as_millis();
        assert_eq!([wait(1, 0), wait(2, 0), wait(3, 0)], [100, 200, 400]);
        assert_eq!([wait(10, 0), wait(99, 0), wait(u32::MAX, 0)], [30_000; 3]);
        assert!((0..1_000).all(|chance| (150..=200).contains(&wait(2, chance))));
    }

    #[test]
    fn a_policy_that_cannot_be_kept_is_told_by_its_field() {
        let policy = ExportPolicy {
            segment_bytes: 0,
            ..ExportPolicy::default()
        };
        let error = policy.check().unwrap_err();
        assert_eq!(error.to_string(), "segment_bytes: must be above 0");
        let policy = ExportPolicy {
            last_retry_ms: 5,
            ..ExportPolicy::default()
        };
        let error = policy.check().unwrap_err();
        assert_eq!(
            error.to_string(),
            "last_retry_ms: 5 is less than first_retry_ms, 100; raise it"
        );
        assert_eq!(ExportPolicy::default().check(), Ok(()));
    }
}
