//! How a rollout changes.

use rspp_proto::WallClock;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    Breach, Candidate, Freeze, Judgement, MAX_ALLOWLIST, MAX_HISTORY, Reading, Rollout, Strategy,
};
use crate::registry::VersionName;

/// What somebody, or a gate, does with a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// Everybody gets this version from now on.
    Direct {
        /// Which.
        version: VersionName,
    },
    /// Some get this version.
    Try {
        /// Which.
        version: VersionName,
        /// Who.
        strategy: Strategy,
    },
    /// Everybody gets the candidate.
    Promote,
    /// Nobody new gets the candidate for now.
    Pause,
    /// They do again.
    Resume,
    /// Away with the candidate; without one, back to the version before, or to a given one.
    RollBack {
        /// Where to; must have been stable before.
        to: Option<VersionName>,
    },
    /// Nothing new may be rolled out.
    Freeze {
        /// Why.
        why: Freeze,
    },
    /// It may again.
    Thaw,
}

impl Change {
    /// Its name in the audit trail.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Direct { .. } => "rollout_direct",
            Self::Try { .. } => "rollout_try",
            Self::Promote => "rollout_promote",
            Self::Pause => "rollout_pause",
            Self::Resume => "rollout_resume",
            Self::RollBack { .. } => "rollout_rollback",
            Self::Freeze { .. } => "rollout_freeze",
            Self::Thaw => "rollout_thaw",
        }
    }

    /// Whether it only makes things safer: needs no approval, and no freeze is in its way.
    pub fn is_retreat(&self) -> bool {
        match self {
            Self::Pause | Self::RollBack { .. } | Self::Freeze { .. } => true,
            Self::Direct { .. } | Self::Try { .. } | Self::Promote | Self::Resume | Self::Thaw => {
                false
            }
        }
    }

    /// The version that it brings, which has to be published.
    pub fn version(&self) -> Option<&VersionName> {
        match self {
            Self::Direct { version } | Self::Try { version, .. } => Some(version),
            Self::RollBack { to } => to.as_ref(),
            Self::Promote | Self::Pause | Self::Resume | Self::Freeze { .. } | Self::Thaw => None,
        }
    }
}

/// Why a rollout stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChangeError {
    /// Nothing new may be rolled out.
    #[error("rollouts are frozen: {0}; pausing and rolling back are still possible")]
    Frozen(Freeze),
    /// It is about another line.
    #[error("`{version}` is no version of `{line}`")]
    OtherLine {
        /// The version.
        version: VersionName,
        /// The rollout's line.
        line: String,
    },
    /// Nothing is on trial.
    #[error("no version of `{0}` is on trial")]
    NoCandidate(String),
    /// It is what everybody gets already.
    #[error("`{0}` is what everybody gets already")]
    AlreadyStable(VersionName),
    /// There is nothing to go back to.
    #[error("`{0}` has no earlier version to go back to")]
    NoHistory(String),
    /// It was never what everybody got.
    #[error("`{0}` was never rolled out")]
    NeverStable(VersionName),
    /// A share is at most everything.
    #[error("{0} % is more than all")]
    Percent(u8),
    /// An allowlist has somebody on it, and not too many.
    #[error("an allowlist has 1 to {MAX_ALLOWLIST} tenants")]
    Allowlist,
}

impl Rollout {
    /// The rollout after a change.
    pub fn change(&self, change: &Change, now: WallClock) -> Result<Self, ChangeError> {
        if let Some(why) = self.frozen
            && !change.is_retreat()
            && *change != Change::Thaw
        {
            return Err(ChangeError::Frozen(why));
        }
        if let Some(version) = change.version()
            && version.line() != self.line
        {
            return Err(ChangeError::OtherLine {
                version: version.clone(),
                line: self.line.clone(),
            });
        }
        let mut next = self.clone();
        match change {
            Change::Direct { version } => next.make_stable(version.clone())?,
            Change::Try { version, strategy } => {
                check(strategy)?;
                if *version == self.stable {
                    return Err(ChangeError::AlreadyStable(version.clone()));
                }
                next.candidate = Some(Candidate {
                    version: version.clone(),
                    strategy: strategy.clone(),
                    paused: false,
                    since: now,
                });
            }
            Change::Promote => {
                let candidate = next.candidate.take().ok_or_else(|| self.no_candidate())?;
                next.make_stable(candidate.version)?;
            }
            Change::Pause => next.pause(true)?,
            Change::Resume => next.pause(false)?,
            Change::RollBack { to: None } => {
                if next.candidate.take().is_none() {
                    if next.history.is_empty() {
                        return Err(ChangeError::NoHistory(self.line.clone()));
                    }
                    next.stable = next.history.remove(0);
                }
            }
            Change::RollBack { to: Some(version) } => {
                next.candidate = None;
                if *version != self.stable {
                    let Some(at) = next.history.iter().position(|it| it == version) else {
                        return Err(ChangeError::NeverStable(version.clone()));
                    };
                    next.stable = next.history.remove(at);
                    // What came after it was what is fled from.
                    next.history.drain(..at);
                } else if self.candidate.is_none() {
                    return Err(ChangeError::AlreadyStable(version.clone()));
                }
            }
            Change::Freeze { why } => next.frozen = Some(*why),
            Change::Thaw => next.frozen = None,
        }
        next.generation += 1;
        Ok(next)
    }

    /// What a gate's readings lead to: the end of the trial, if they are bad.
    pub fn judge(
        &self,
        candidate: Reading,
        stable: Reading,
        now: WallClock,
    ) -> Option<(Self, Breach)> {
        let trial = self.candidate.as_ref()?;
        let gate = match &trial.strategy {
            Strategy::Canary { gate, .. } => gate,
            Strategy::Allowlist { .. } | Strategy::Percentage { .. } => return None,
        };
        match gate.judge(candidate, stable) {
            Judgement::Waiting | Judgement::Passing => None,
            Judgement::Breached(breach) => {
                let back = self.change(&Change::RollBack { to: None }, now);
                Some((back.expect("a trial can always be ended"), breach))
            }
        }
    }

    fn make_stable(&mut self, version: VersionName) -> Result<(), ChangeError> {
        if version == self.stable && self.candidate.is_none() {
            return Err(ChangeError::AlreadyStable(version));
        }
        self.candidate = None;
        if version != self.stable {
            self.history.retain(|it| *it != version);
            let before = std::mem::replace(&mut self.stable, version);
            self.history.insert(0, before);
            self.history.truncate(MAX_HISTORY);
        }
        Ok(())
    }

    fn pause(&mut self, paused: bool) -> Result<(), ChangeError> {
        let error = self.no_candidate();
        let candidate = self.candidate.as_mut().ok_or(error)?;
        candidate.paused = paused;
        Ok(())
    }

    fn no_candidate(&self) -> ChangeError {
        ChangeError::NoCandidate(self.line.clone())
    }
}

fn check(strategy: &Strategy) -> Result<(), ChangeError> {
    let (tenants, percent) = strategy.parts();
    if percent > 100 {
        return Err(ChangeError::Percent(percent));
    }
    let listed = tenants.map_or(0, std::collections::BTreeSet::len);
    let must_list = matches!(strategy, Strategy::Allowlist { .. });
    if listed > MAX_ALLOWLIST || (must_list && listed == 0) {
        return Err(ChangeError::Allowlist);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::{
        super::{
            Gate, Strategy,
            tests::{tenant, trying, version},
        },
        *,
    };
    use crate::registry::Kind;

    const NOW: WallClock = WallClock(1);

    fn some() -> Strategy {
        Strategy::Percentage { percent: 10 }
    }

    /// The stable version, the candidate and the history after a change.
    #[track_caller]
    fn check_change(
        before: &Rollout,
        change: &Change,
        expected: Result<(&str, Option<&str>, &[&str]), ChangeError>,
    ) {
        let found = before.change(change, NOW);
        if let Ok(after) = &found {
            assert_eq!(after.generation, before.generation + 1);
        }
        let found = found.map(|it| (it.stable, it.candidate.map(|c| c.version), it.history));
        let expected = expected.map(|(stable, candidate, history)| {
            let history = history.iter().copied().map(version).collect();
            (version(stable), candidate.map(version), history)
        });
        assert_eq!(found, expected);
    }

    /// F-093, F-100: every change, on trial and not.
    #[test]
    fn a_rollout_changes_as_it_is_told() {
        let trial = trying(some());
        let calm = Rollout {
            candidate: None,
            ..trial.clone()
        };
        let direct = |name| Change::Direct {
            version: version(name),
        };
        let back = |to: Option<&str>| Change::RollBack {
            to: to.map(version),
        };
        check_change(
            &calm,
            &direct("desk-3"),
            Ok(("desk-3", None, &["desk-1", "desk-0"])),
        );
        check_change(&calm, &direct("desk-0"), Ok(("desk-0", None, &["desk-1"])));
        check_change(
            &calm,
            &direct("desk-1"),
            Err(ChangeError::AlreadyStable(version("desk-1"))),
        );
        let other = ChangeError::OtherLine {
            version: version("shop-1"),
            line: "desk".into(),
        };
        check_change(&calm, &direct("shop-1"), Err(other));
        let attempt = Change::Try {
            version: version("desk-2"),
            strategy: some(),
        };
        check_change(&calm, &attempt, Ok(("desk-1", Some("desk-2"), &["desk-0"])));
        check_change(
            &trial,
            &Change::Promote,
            Ok(("desk-2", None, &["desk-1", "desk-0"])),
        );
        check_change(
            &trial,
            &Change::Pause,
            Ok(("desk-1", Some("desk-2"), &["desk-0"])),
        );
        check_change(&trial, &back(None), Ok(("desk-1", None, &["desk-0"])));
        check_change(
            &trial,
            &back(Some("desk-1")),
            Ok(("desk-1", None, &["desk-0"])),
        );
        check_change(&calm, &back(None), Ok(("desk-0", None, &[])));
        check_change(&calm, &back(Some("desk-0")), Ok(("desk-0", None, &[])));
        check_change(
            &calm,
            &back(Some("desk-7")),
            Err(ChangeError::NeverStable(version("desk-7"))),
        );
        let none = || ChangeError::NoCandidate("desk".into());
        check_change(&calm, &Change::Promote, Err(none()));
        check_change(&calm, &Change::Pause, Err(none()));
        let first = Rollout::first(Kind::Pipeline, version("desk-1"));
        check_change(
            &first,
            &back(None),
            Err(ChangeError::NoHistory("desk".into())),
        );
        let wrong = |strategy| Change::Try {
            version: version("desk-2"),
            strategy,
        };
        let percent = wrong(Strategy::Percentage { percent: 101 });
        check_change(&calm, &percent, Err(ChangeError::Percent(101)));
        let empty = wrong(Strategy::Allowlist {
            tenants: BTreeSet::new(),
        });
        check_change(&calm, &empty, Err(ChangeError::Allowlist));
    }

    /// NF-030: what is frozen goes back and not forward.
    #[test]
    fn a_freeze_lets_nothing_new_through() {
        let frozen = trying(some())
            .change(
                &Change::Freeze {
                    why: Freeze::BudgetSpent,
                },
                NOW,
            )
            .unwrap();
        for change in [
            Change::Promote,
            Change::Resume,
            Change::Direct {
                version: version("desk-3"),
            },
            Change::Try {
                version: version("desk-3"),
                strategy: some(),
            },
        ] {
            let refused = frozen.change(&change, NOW);
            assert_eq!(refused, Err(ChangeError::Frozen(Freeze::BudgetSpent)));
        }
        assert!(frozen.change(&Change::Pause, NOW).is_ok());
        assert!(frozen.change(&Change::RollBack { to: None }, NOW).is_ok());
        let thawed = frozen.change(&Change::Thaw, NOW).unwrap();
        assert!(thawed.change(&Change::Promote, NOW).is_ok());
    }

    /// NF-030.
    #[test]
    fn a_breached_gate_ends_the_trial() {
        let canary = trying(Strategy::Canary {
            tenants: BTreeSet::from([tenant("acme")]),
            percent: 10,
            gate: Gate::default(),
        });
        let good = Reading {
            sessions: 100,
            failed: 1,
            first_audio_p95_ms: Some(900),
        };
        let bad = Reading { failed: 50, ..good };
        assert_eq!(canary.judge(good, good, NOW), None);
        let (after, breach) = canary.judge(bad, good, NOW).unwrap();
        assert_eq!((after.stable, after.candidate), (version("desk-1"), None));
        assert_eq!(
            breach,
            Breach::Failures {
                found: 5_000,
                limit: 200
            }
        );
        // Without a gate nothing is judged.
        assert_eq!(trying(some()).judge(bad, good, NOW), None);
    }

    proptest! {
        /// Whatever is done: a stable version is never also its own candidate or history, the history
        /// is bounded and holds nothing twice, and generations rise.
        #[test]
        fn a_rollout_stays_in_order(changes in proptest::collection::vec((0..8u8, 0..30u8), 1..80)) {
            let mut rollout = Rollout::first(Kind::Pipeline, version("desk-0"));
            for (what, n) in changes {
                let version = version(&format!("desk-{n}"));
                let change = match what {
                    0 | 1 => Change::Direct { version },
                    2 | 3 => Change::Try { version, strategy: some() },
                    4 => Change::Promote,
                    5 => Change::Pause,
                    6 => Change::RollBack { to: None },
                    _ => Change::RollBack { to: Some(version) },
                };
                if let Ok(next) = rollout.change(&change, NOW) {
                    prop_assert!(next.generation > rollout.generation);
                    prop_assert!(next.history.len() <= MAX_HISTORY);
                    let unique: BTreeSet<_> = next.history.iter().chain([&next.stable]).collect();
                    prop_assert_eq!(unique.len(), next.history.len() + 1);
                    let candidate = next.candidate.as_ref().map(|c| &c.version);
                    prop_assert!(candidate != Some(&next.stable));
                    rollout = next;
                }
            }
        }
    }
}
