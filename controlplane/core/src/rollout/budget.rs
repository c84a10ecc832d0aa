//! Error budgets: how many failures an objective leaves, how fast they are used up, and when nothing
//! new may be rolled out any more (NF-030).

use std::fmt;

use serde::{Deserialize, Serialize};

/// An objective and its alerts. The pairs of windows and the factors are those that site-reliability
/// practice settled on: 14.4 times as fast spends 2 % of a month's budget in an hour, 6 times 5 % in six.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ErrorBudget {
    /// Sessions that may fail, per 10,000: 100 is an objective of 99 %.
    pub allowed_per_10k: u32,
    /// Sessions that must have been seen before anything is said.
    pub min_sessions: u64,
    /// How many times as fast as allowed is an alert in the short windows, in tenths.
    pub fast_burn_tenths: u32,
    /// The same in the long windows.
    pub slow_burn_tenths: u32,
}

impl Default for ErrorBudget {
    fn default() -> Self {
        Self {
            allowed_per_10k: 100,
            min_sessions: 50,
            fast_burn_tenths: 144,
            slow_burn_tenths: 60,
        }
    }
}

/// Sessions that ended and failed within a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// How many ended.
    pub sessions: u64,
    /// How many of those failed.
    pub failed: u64,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetReading {
    /// The last five minutes.
    pub five_minutes: Window,
    /// The last hour.
    pub hour: Window,
    /// The last six hours.
    pub six_hours: Window,
    /// The last 30 days: the budget's own time.
    pub month: Window,
}

/// Failures come too fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BurnAlert {
    /// Somebody should look: six hours and the last hour.
    Slow,
    /// Somebody should be woken: the last hour and five minutes.
    Fast,
}

/// Why nothing new may be rolled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freeze {
    /// The month's budget is spent.
    BudgetSpent,
    /// It is being spent fast.
    FastBurn,
    /// An operator said so.
    Operator,
}

impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BudgetSpent => "the error budget is spent",
            Self::FastBurn => "the error budget is being spent fast",
            Self::Operator => "an operator said so",
        })
    }
}

impl ErrorBudget {
    /// How many times as fast as allowed sessions fail, in tenths.
    fn burn_tenths(&self, window: Window) -> u64 {
        if window.sessions < self.min_sessions.max(1) || self.allowed_per_10k == 0 {
            return if self.allowed_per_10k == 0 && window.failed > 0 {
                u64::MAX
            } else {
                0
            };
        }
        let failed_per_10k = u128::from(window.failed) * 10_000 * 10 / u128::from(window.sessions);
        (failed_per_10k / u128::from(self.allowed_per_10k)) as u64
    }

    /// Whether somebody should look. Both windows of a pair have to agree: the long one that it
    /// matters, the short one that it has not stopped.
    pub fn alert(&self, reading: &BudgetReading) -> Option<BurnAlert> {
        let burns = |window, tenths: u32| self.burn_tenths(window) >= u64::from(tenths);
        if burns(reading.hour, self.fast_burn_tenths)
            && burns(reading.five_minutes, self.fast_burn_tenths)
        {
            Some(BurnAlert::Fast)
        } else if burns(reading.six_hours, self.slow_burn_tenths)
            && burns(reading.hour, self.slow_burn_tenths)
        {
            Some(BurnAlert::Slow)
        } else {
            None
        }
    }

    /// Whether rollouts freeze.
    pub fn freeze(&self, reading: &BudgetReading) -> Option<Freeze> {
        if self.burn_tenths(reading.month) >= 10 {
            Some(Freeze::BudgetSpent)
        } else if self.alert(reading) == Some(BurnAlert::Fast) {
            Some(Freeze::FastBurn)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(sessions: u64, failed: u64) -> Window {
        Window { sessions, failed }
    }

    #[track_caller]
    fn check(windows: [Window; 4], alert: Option<BurnAlert>, freeze: Option<Freeze>) {
        let [five_minutes, hour, six_hours, month] = windows;
        let reading = BudgetReading {
            five_minutes,
            hour,
            six_hours,
            month,
        };
        let budget = ErrorBudget::default();
        assert_eq!(
            (budget.alert(&reading), budget.freeze(&reading)),
            (alert, freeze)
        );
    }

    /// NF-030: at 1 % allowed, 14.4 % of failures is fast, 6 % slow, and 1 % of the month all there is.
    #[test]
    fn alerts_and_freezes_come_at_their_rates() {
        let calm = window(1_000, 5);
        check([calm; 4], None, None);
        let fast = window(1_000, 144);
        check(
            [fast, fast, calm, calm],
            Some(BurnAlert::Fast),
            Some(Freeze::FastBurn),
        );
        // It has stopped since.
        check([calm, fast, calm, calm], None, None);
        let slow = window(1_000, 60);
        check([calm, slow, slow, calm], Some(BurnAlert::Slow), None);
        check(
            [calm, calm, calm, window(1_000, 10)],
            None,
            Some(Freeze::BudgetSpent),
        );
        check([calm, calm, calm, window(1_000, 9)], None, None);
        // Three calls say nothing.
        check([window(3, 3); 4], None, None);
    }
}
