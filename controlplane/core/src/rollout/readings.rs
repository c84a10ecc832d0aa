//! What a line's versions were measured to do, over all runtimes together: counted by the control plane from
//! what each of them tells, once each, and judged from there (NF-030).

use std::collections::{BTreeMap, VecDeque};

use rspp_proto::{
    WallClock,
    control::{Holder, Incarnation},
    reading::{VersionCount, latency_bound},
};
use serde::{Deserialize, Serialize};

use super::{
    Breach, BudgetReading, BurnAlert, Change, ErrorBudget, Freeze, Reading, Rollout, Window,
};
use crate::registry::VersionName;

/// What a runtime told last of a line: what comes again was counted already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reported {
    /// In which of its lives.
    pub incarnation: Incarnation,
    /// Which of its reports; rises over its lives too, as long as its process lasts.
    pub number: u64,
}

impl Reported {
    /// A report, as its runtime names it.
    pub fn new(by: &Holder, number: u64) -> Self {
        Self {
            incarnation: by.incarnation,
            number,
        }
    }
}

/// What was counted of one version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Counts {
    sessions: u64,
    failed: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    first_audio: BTreeMap<u32, u64>,
}

impl Counts {
    fn add(&mut self, more: &VersionCount) {
        self.sessions = self.sessions.saturating_add(more.sessions);
        self.failed = self.failed.saturating_add(more.failed.min(more.sessions));
        for (bound, turns) in &more.first_audio {
            // Whatever was told: there are no other bounds.
            let known = self.first_audio.entry(latency_bound(u64::from(*bound)));
            let known = known.or_default();
            *known = known.saturating_add(*turns);
        }
    }

    /// The bound that 95 of 100 turns kept: nearest rank, as the gates have it.
    fn first_audio_p95(&self) -> Option<u64> {
        let turns: u128 = self.first_audio.values().map(|it| u128::from(*it)).sum();
        let rank = (turns * 95).div_ceil(100);
        let mut seen = 0;
        self.first_audio.iter().find_map(|(bound, turns)| {
            seen += u128::from(*turns);
            (turns > &0 && seen >= rank).then_some(u64::from(*bound))
        })
    }

    fn reading(&self) -> Reading {
        Reading {
            sessions: self.sessions,
            failed: self.failed,
            first_audio_p95_ms: self.first_audio_p95(),
        }
    }
}

/// How a window slides: in so many steps, each so long.
#[derive(Clone, Copy, Debug)]
struct Steps {
    long_ms: u64,
    many: u64,
}

const FIVE_MINUTES: Steps = Steps {
    long_ms: 30_000,
    many: 10,
};
const HOUR: Steps = Steps {
    long_ms: 5 * 60_000,
    many: 12,
};
const SIX_HOURS: Steps = Steps {
    long_ms: 30 * 60_000,
    many: 12,
};
const MONTH: Steps = Steps {
    long_ms: 24 * 60 * 60_000,
    many: 30,
};

/// Counts within a window, by step; as many as the window has steps, at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Sliding(VecDeque<(u64, Window)>);

impl Sliding {
    fn add(&mut self, steps: Steps, now: WallClock, more: &VersionCount) {
        // A clock that is behind counts into the newest step there is.
        let step = now.0 / steps.long_ms;
        let step = self.0.back().map_or(step, |(newest, _)| step.max(*newest));
        if self.0.back().is_none_or(|(newest, _)| *newest < step) {
            self.0.push_back((step, Window::default()));
        }
        if let Some((_, window)) = self.0.back_mut() {
            window.sessions = window.sessions.saturating_add(more.sessions);
            window.failed = window.failed.saturating_add(more.failed.min(more.sessions));
        }
        self.0.retain(|(it, _)| it + steps.many > step);
    }

    fn within(&self, steps: Steps, now: WallClock) -> Window {
        let step = now.0 / steps.long_ms;
        let within = self.0.iter().filter(|(it, _)| it + steps.many > step);
        within.fold(Window::default(), |sum, (_, it)| Window {
            sessions: sum.sessions.saturating_add(it.sessions),
            failed: sum.failed.saturating_add(it.failed),
        })
    }
}

/// What is counted while a version is tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trial {
    version: VersionName,
    since: WallClock,
    candidate: Counts,
    stable: Counts,
}

/// What was measured of a line: of the trial that runs, and against the error budget. One record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Readings {
    #[serde(skip_serializing_if = "Option::is_none")]
    trial: Option<Trial>,
    five_minutes: Sliding,
    hour: Sliding,
    six_hours: Sliding,
    month: Sliding,
}

/// What readings led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The rollout as it is now.
    pub rollout: Rollout,
    /// What ended the trial, if it was ended.
    pub breach: Option<Breach>,
    /// Why nothing new may be rolled out, if that is new.
    pub freeze: Option<Freeze>,
    /// Whether somebody should look.
    pub alert: Option<BurnAlert>,
}

impl Readings {
    /// Counts what a runtime tells of versions of this line.
    pub fn count(&mut self, rollout: &Rollout, told: &[VersionCount], now: WallClock) {
        let tried = rollout.candidate.as_ref();
        let goes_on = |trial: &Trial| {
            tried.is_some_and(|it| (&it.version, it.since) == (&trial.version, trial.since))
        };
        // The trial that ended is still to be seen until another begins.
        if let Some(tried) = tried
            && !self.trial.as_ref().is_some_and(goes_on)
        {
            self.trial = Some(Trial {
                version: tried.version.clone(),
                since: tried.since,
                candidate: Counts::default(),
                stable: Counts::default(),
            });
        }
        for more in told {
            if let (Some(tried), Some(trial)) = (tried, &mut self.trial) {
                if more.version == tried.version.as_str() {
                    trial.candidate.add(more);
                } else if more.version == rollout.stable.as_str() {
                    trial.stable.add(more);
                }
            }
            self.five_minutes.add(FIVE_MINUTES, now, more);
            self.hour.add(HOUR, now, more);
            self.six_hours.add(SIX_HOURS, now, more);
            self.month.add(MONTH, now, more);
        }
    }

    /// The version that is or was tried last, and what it and the stable one did meanwhile.
    pub fn trial(&self) -> Option<(&VersionName, Reading, Reading)> {
        let trial = self.trial.as_ref()?;
        let (candidate, stable) = (trial.candidate.reading(), trial.stable.reading());
        Some((&trial.version, candidate, stable))
    }

    /// How the error budget is being spent.
    pub fn budget(&self, now: WallClock) -> BudgetReading {
        BudgetReading {
            five_minutes: self.five_minutes.within(FIVE_MINUTES, now),
            hour: self.hour.within(HOUR, now),
            six_hours: self.six_hours.within(SIX_HOURS, now),
            month: self.month.within(MONTH, now),
        }
    }

    /// What they lead to: the end of the trial, if its gate is breached; a freeze, if the budget is spent.
    pub fn judge(&self, rollout: &Rollout, budget: &ErrorBudget, now: WallClock) -> Judged {
        let spending = self.budget(now);
        let mut judged = Judged {
            rollout: rollout.clone(),
            breach: None,
            freeze: None,
            alert: budget.alert(&spending),
        };
        let tried = rollout.candidate.as_ref();
        if let Some((version, candidate, stable)) = self.trial()
            && tried.is_some_and(|it| it.version == *version)
            && let Some((back, breach)) = rollout.judge(candidate, stable, now)
        {
            judged.rollout = back;
            judged.breach = Some(breach);
        }
        if let Some(why) = budget.freeze(&spending)
            && judged.rollout.frozen.is_none()
        {
            let frozen = judged.rollout.change(&Change::Freeze { why }, now);
            judged.rollout = frozen.expect("a freeze is always possible");
            judged.freeze = Some(why);
        }
        judged
    }

    /// The rollout may go on: what was spent of the budget is let go, or it would freeze again at once.
    pub fn forgive(&mut self) {
        *self = Self {
            trial: self.trial.take(),
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rspp_proto::control::Kind;

    use super::{
        super::{
            Gate, Strategy,
            tests::{trying, version},
        },
        *,
    };

    const NOW: WallClock = WallClock(40 * 24 * 60 * 60_000);

    fn told(version: &str, sessions: u64, failed: u64, first_audio: &[(u32, u64)]) -> VersionCount {
        VersionCount {
            kind: Kind::Pipeline,
            version: version.to_owned(),
            sessions,
            failed,
            first_audio: first_audio.iter().copied().collect(),
        }
    }

    fn canary() -> Rollout {
        trying(Strategy::Canary {
            tenants: BTreeSet::new(),
            percent: 50,
            gate: Gate::default(),
        })
    }

    /// NF-030: what several runtimes tell is judged together: none of them alone has seen enough.
    #[test]
    fn the_fleet_is_judged_as_a_whole() {
        let rollout = canary();
        let mut readings = Readings::default();
        for runtime in 0..3 {
            let candidate = told("desk-2", 8, 4, &[(900, 8)]);
            let stable = told("desk-1", 8, 0, &[(900, 8)]);
            readings.count(&rollout, &[candidate, stable], NOW);
            let judged = readings.judge(&rollout, &ErrorBudget::default(), NOW);
            assert_eq!(judged.breach.is_some(), runtime == 2, "{judged:?}");
            if runtime == 2 {
                let found = Breach::Failures {
                    found: 5_000,
                    limit: 200,
                };
                assert_eq!(judged.breach, Some(found));
                assert_eq!(judged.rollout.candidate, None);
                assert_eq!(judged.rollout.stable, version("desk-1"));
            }
        }
    }

    /// NF-030: the 95th of 100 turns decides, over all runtimes; each version by itself, each trial anew.
    #[test]
    fn a_version_is_slow_if_a_twentieth_of_its_turns_is() {
        let rollout = canary();
        let mut readings = Readings::default();
        let p95 = |readings: &Readings| readings.trial().unwrap().1.first_audio_p95_ms;
        readings.count(&rollout, &[told("desk-2", 50, 0, &[(900, 95)])], NOW);
        readings.count(&rollout, &[told("desk-2", 50, 0, &[(4_000, 5)])], NOW);
        readings.count(&rollout, &[told("desk-1", 50, 0, &[(60_000, 99)])], NOW);
        assert_eq!(p95(&readings), Some(900));
        let fine = readings.judge(&rollout, &ErrorBudget::default(), NOW);
        assert_eq!((fine.breach, fine.rollout), (None, rollout.clone()));
        readings.count(&rollout, &[told("desk-2", 0, 0, &[(4_000, 1)])], NOW);
        assert_eq!(p95(&readings), Some(4_000));
        let slow = readings.judge(&rollout, &ErrorBudget::default(), NOW);
        let breach = Breach::FirstAudio {
            found: 4_000,
            limit: 2_000,
        };
        assert_eq!(slow.breach, Some(breach));
        let mut again = rollout;
        again.candidate.as_mut().unwrap().since = NOW;
        readings.count(&again, &[told("desk-2", 1, 0, &[])], NOW);
        assert_eq!(readings.trial().unwrap().1.sessions, 1);
    }

    /// NF-030: a budget that is spent freezes; forgiven, it is spent anew before it freezes again; and what is
    /// older than a window does not count in it.
    #[test]
    fn a_spent_budget_freezes_until_it_is_forgiven() {
        let calm = Rollout {
            candidate: None,
            ..canary()
        };
        let budget = ErrorBudget::default();
        let mut readings = Readings::default();
        readings.count(&calm, &[told("desk-1", 1_000, 12, &[])], NOW);
        let frozen = readings.judge(&calm, &budget, NOW);
        assert_eq!(
            (frozen.freeze, frozen.alert),
            (Some(Freeze::BudgetSpent), None)
        );
        let again = readings.judge(&frozen.rollout, &budget, NOW);
        assert_eq!((again.freeze, again.rollout), (None, frozen.rollout));
        let at = |minutes: u64| WallClock(NOW.0 + minutes * 60_000);
        let sessions = |it: BudgetReading| {
            [it.five_minutes, it.hour, it.six_hours, it.month].map(|it| it.sessions)
        };
        assert_eq!(sessions(readings.budget(at(0))), [1_000; 4]);
        assert_eq!(sessions(readings.budget(at(6))), [0, 1_000, 1_000, 1_000]);
        assert_eq!(sessions(readings.budget(at(61))), [0, 0, 1_000, 1_000]);
        assert_eq!(sessions(readings.budget(at(361))), [0, 0, 0, 1_000]);
        assert_eq!(sessions(readings.budget(at(31 * 24 * 60))), [0; 4]);
        readings.forgive();
        assert_eq!(readings.judge(&calm, &budget, NOW).freeze, None);
        readings.count(&calm, &[told("desk-1", 1_000, 200, &[])], NOW);
        let fast = readings.judge(&calm, &budget, NOW);
        assert_eq!(fast.alert, Some(BurnAlert::Fast));
        assert_eq!(fast.freeze, Some(Freeze::BudgetSpent));
    }

    /// NF-004: a record stays small, however long a line is measured and whatever is told of it.
    #[test]
    fn a_record_does_not_grow() {
        let rollout = canary();
        let mut readings = Readings::default();
        for hour in 0..2_000_u64 {
            let now = WallClock(NOW.0 + hour * 60 * 60_000);
            let odd = (hour as u32).wrapping_mul(2_654_435_761);
            readings.count(&rollout, &[told("desk-2", 3, 9, &[(odd, 1)])], now);
        }
        let record = serde_json::to_string(&readings).unwrap();
        assert!(record.len() < 8_192, "{}", record.len());
        let (_, candidate, _) = readings.trial().unwrap();
        assert_eq!((candidate.sessions, candidate.failed), (6_000, 6_000));
        assert_eq!(serde_json::from_str::<Readings>(&record).unwrap(), readings);
    }
}
