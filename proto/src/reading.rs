//! What runtimes measure of the versions that their sessions run, as they tell it to the control plane
//! (NF-030).

use std::collections::BTreeMap;

use crate::control::Kind;

/// Above this, all that is known of a latency is that it was longer.
const LONGEST_MS: u32 = 60_000;

/// What was seen of one version, of a node or of a fleet, since it was last told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionCount {
    /// Of what.
    pub kind: Kind,
    /// The version.
    pub version: String,
    /// Sessions that ended.
    pub sessions: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Turns by how long it took from the end of speech to the first audio, in milliseconds, each counted under its
    /// [bound](latency_bound).
    pub first_audio: BTreeMap<u32, u64>,
}

/// The bound that a latency is counted under: not below it, at most a tenth above from half a second on, and one of about
/// a hundred. Round numbers, which limits are, are bounds themselves.
pub fn latency_bound(ms: u64) -> u32 {
    let ms = u32::try_from(ms).unwrap_or(u32::MAX);
    let step = match ms {
        0..=2_000 => 25,
        2_001..=4_000 => 100,
        4_001..=10_000 => 250,
        10_001..=30_000 => 1_000,
        _ => return LONGEST_MS,
    };
    ms.div_ceil(step) * step
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// NF-030: what is told of latencies is bounded, and a limit that a turn has kept it keeps there too.
    #[test]
    fn latencies_are_counted_under_few_bounds() {
        let mut bounds = BTreeSet::new();
        for ms in 0..100_000 {
            let bound = latency_bound(ms);
            bounds.insert(bound);
            assert_eq!(latency_bound(u64::from(bound)), bound, "{ms}");
            if ms <= 30_000 {
                assert!(u64::from(bound) >= ms, "{ms}: {bound}");
            }
            if (500..=30_000).contains(&ms) {
                assert!(u64::from(bound) * 100 <= ms * 110, "{ms}: {bound}");
            }
        }
        assert!(bounds.len() < 150, "{}", bounds.len());
        for limit in [500, 800, 1_500, 2_000, 2_500] {
            assert_eq!(u64::from(latency_bound(limit)), limit);
        }
    }
}
