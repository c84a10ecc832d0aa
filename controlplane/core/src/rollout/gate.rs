//! What must not happen while a version is on trial.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bounds that a candidate is held to, and how much has to be seen before it is judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// Sessions that must have ended before anything is judged.
    pub min_sessions: u64,
    /// Most failed ones, per 10,000.
    pub max_failed_per_10k: u32,
    /// From the end of speech to the first audio, 95th percentile in milliseconds; `None`: not judged.
    pub max_first_audio_p95_ms: Option<u64>,
    /// How much worse than the stable version it may be in either, in percent of that; `None`: not compared.
    pub max_regression_percent: Option<u32>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            min_sessions: 20,
            max_failed_per_10k: 200,
            max_first_audio_p95_ms: Some(2_000),
            max_regression_percent: None,
        }
    }
}

/// What was measured of one version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// Sessions that ended.
    pub sessions: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// From the end of speech to the first audio, 95th percentile in milliseconds.
    pub first_audio_p95_ms: Option<u64>,
}

impl Reading {
    fn failed_per_10k(self) -> u64 {
        match self.sessions {
            0 => 0,
            sessions => (u128::from(self.failed) * 10_000 / u128::from(sessions)) as u64,
        }
    }
}

/// What is wrong with a candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Breach {
    /// Too many sessions failed.
    Failures {
        /// Per 10,000.
        found: u64,
        /// Most allowed.
        limit: u64,
    },
    /// Too slow.
    FirstAudio {
        /// Milliseconds.
        found: u64,
        /// Most allowed.
        limit: u64,
    },
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failures { found, limit } => {
                write!(f, "{found} of 10000 sessions failed, at most {limit} may")
            }
            Self::FirstAudio { found, limit } => {
                write!(
                    f,
                    "first audio took {found} ms (p95), at most {limit} ms may it"
                )
            }
        }
    }
}

/// What a gate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Too little has been seen.
    Waiting,
    /// Nothing is wrong.
    Passing,
    /// The rollout has to end.
    Breached(Breach),
}

impl Gate {
    /// Judges a candidate, beside what the stable version does meanwhile.
    pub fn judge(&self, candidate: Reading, stable: Reading) -> Judgement {
        if candidate.sessions < self.min_sessions.max(1) {
            return Judgement::Waiting;
        }
        let comparable = stable.sessions >= self.min_sessions.max(1);
        let regression = self.max_regression_percent.filter(|_| comparable);
        let tightest = |limit: u64, stable: u64| match regression {
            // Nothing can be a percentage worse than nothing; then the fixed limit alone counts.
            Some(percent) if stable > 0 => limit.min(stable + stable * u64::from(percent) / 100),
            Some(_) | None => limit,
        };
        let found = candidate.failed_per_10k();
        let limit = tightest(u64::from(self.max_failed_per_10k), stable.failed_per_10k());
        if found > limit {
            return Judgement::Breached(Breach::Failures { found, limit });
        }
        let limit = match (self.max_first_audio_p95_ms, stable.first_audio_p95_ms) {
            (Some(limit), stable) => Some(tightest(limit, stable.unwrap_or(0))),
            (None, Some(stable)) if regression.is_some() => Some(tightest(u64::MAX, stable)),
            (None, Some(_) | None) => None,
        };
        if let (Some(found), Some(limit)) = (candidate.first_audio_p95_ms, limit)
            && found > limit
        {
            return Judgement::Breached(Breach::FirstAudio { found, limit });
        }
        Judgement::Passing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(sessions: u64, failed: u64, p95: u64) -> Reading {
        Reading {
            sessions,
            failed,
            first_audio_p95_ms: Some(p95),
        }
    }

    #[track_caller]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a row of the table reads better"
    )]
    fn check(gate: &Gate, candidate: Reading, stable: Reading, expected: Judgement) {
        assert_eq!(gate.judge(candidate, stable), expected);
    }

    #[test]
    fn a_gate_waits_then_judges() {
        let gate = Gate::default();
        let good = reading(100, 0, 900);
        check(&gate, reading(19, 19, 9_000), good, Judgement::Waiting);
        check(&gate, reading(20, 0, 2_000), good, Judgement::Passing);
        check(&gate, reading(100, 2, 900), good, Judgement::Passing);
        let failures = Breach::Failures {
            found: 300,
            limit: 200,
        };
        check(
            &gate,
            reading(100, 3, 900),
            good,
            Judgement::Breached(failures),
        );
        let slow = Breach::FirstAudio {
            found: 2_001,
            limit: 2_000,
        };
        check(
            &gate,
            reading(100, 0, 2_001),
            good,
            Judgement::Breached(slow),
        );
        let compared = Gate {
            max_regression_percent: Some(20),
            ..gate
        };
        let slow = Breach::FirstAudio {
            found: 1_100,
            limit: 1_080,
        };
        check(
            &compared,
            reading(100, 0, 1_100),
            good,
            Judgement::Breached(slow),
        );
        // Too little of the stable version was seen to compare with.
        check(
            &compared,
            reading(100, 0, 1_100),
            reading(3, 0, 900),
            Judgement::Passing,
        );
        check(&compared, reading(100, 2, 1_000), good, Judgement::Passing);
    }
}
