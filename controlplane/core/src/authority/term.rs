//! How long a lease lasts, here and there.

use std::time::Duration;

use thiserror::Error;

use crate::store::MIN_LEASE;

/// What a holder is told unless the operator says otherwise.
///
/// A dead runtime's sessions are silent for as long as the store waits, 1 s more than this, so shorter
/// is better for callers. But a holder that cannot renew within nine tenths of it falls silent for
/// nothing. It asks at two fifths and again until nine tenths, so at 4 s there are 2 s in which a
/// renewal may fail and be repeated: longer than etcd needs to elect a leader (1 s), longer than a
/// control-plane replica's restart behind a balancer takes, and three times what we saw in the worst
/// pause of an overloaded machine of two cores. At 2 s one leader election would silence the fleet.
pub const DEFAULT_TTL: Duration = Duration::from_secs(4);
/// Shortest that is accepted.
pub const MIN_TTL: Duration = Duration::from_secs(1);
/// How much longer the store waits than the holder believes.
///
/// A renewal may be taken by a store's leader that has been deposed and does not know it yet: the new
/// leader counts from its election, which is earlier than that renewal by an election's time at most.
const GUARD: Duration = Duration::from_secs(1);

/// A lease's length as its two sides count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    told: Duration,
}

/// A length that no lease can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a lease of {0:?} is shorter than {MIN_TTL:?}, or no whole number of seconds")]
pub struct TermError(Duration);

impl Term {
    /// A lease whose holder is told `ttl`: whole seconds, because stores count in them.
    pub fn new(ttl: Duration) -> Result<Self, TermError> {
        if ttl < MIN_TTL || ttl.subsec_nanos() != 0 {
            return Err(TermError(ttl));
        }
        Ok(Self { told: ttl })
    }

    /// What the holder is told, to count from before it asked.
    pub fn told(self) -> Duration {
        self.told
    }

    /// What the store waits before somebody else may hold.
    pub fn kept(self) -> Duration {
        (self.told + GUARD).max(MIN_LEASE)
    }

    /// How long the fuse of a holder burns that was told to let go and may take `finish_within` for it,
    /// counted as its leases are; never less than a lease, which it may not have heard the end of.
    pub fn fuse(self, finish_within: Duration) -> Duration {
        self.kept().max(finish_within + GUARD)
    }
}

impl Default for Term {
    fn default() -> Self {
        Self { told: DEFAULT_TTL }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_waits_longer_than_the_holder_believes() {
        for seconds in 1..100 {
            let term = Term::new(Duration::from_secs(seconds)).unwrap();
            assert!(term.kept() >= term.told() + GUARD && term.kept() >= MIN_LEASE);
            for within in [0, 1_500, 4_000, 30_000].map(Duration::from_millis) {
                let fuse = term.fuse(within);
                assert!(fuse >= term.kept() && fuse >= within + GUARD, "{within:?}");
            }
        }
        assert!(Term::new(Duration::from_millis(1_500)).is_err());
        assert!(Term::new(Duration::ZERO).is_err());
        assert_eq!(Term::default().kept(), Duration::from_secs(5));
    }
}
