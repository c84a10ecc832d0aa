//! Restart policy as data, and the decision it leads to as a function of the exit and the time.

use std::collections::VecDeque;
use std::time::Duration;

use crate::exit::ExitReason;
use crate::id::ActorId;
use crate::lane::LaneLimits;

/// How a parent keeps one child.
#[derive(Clone, Debug, PartialEq)]
pub struct ChildSpec {
    /// The last part of the child's path; any string, unique among its siblings for readable reports.
    pub name: String,
    /// Which exits are answered with a restart.
    pub restart: Restart,
    /// How many restarts are too many.
    pub intensity: Intensity,
    /// How long to wait before a restart.
    pub backoff: Backoff,
    /// How long the child, with all below it, may take to stop before it is killed.
    pub grace: Duration,
    /// Bounds of the child's control and telemetry lanes.
    pub limits: LaneLimits,
    /// Whether the end of this child, once it is not restarted, ends its parent.
    pub significant: bool,
}

/// Which exits are answered with a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// All of them.
    Permanent,
    /// The disorderly ones: failed, panicked, killed.
    Transient,
    /// None.
    Temporary,
}

/// At most `restarts` within any span of `within`; one more and the parent gives up.
///
/// A sliding log, not a counter that is reset: the limit holds over every window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intensity {
    /// Restarts allowed.
    pub restarts: u32,
    /// The window they are counted in.
    pub within: Duration,
}

/// Waits before restarts: doubling from `first` to `max`, each shortened by chance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// Before the first restart. Zero restarts at once, every time.
    pub first: Duration,
    /// The longest wait.
    pub max: Duration,
    /// The share of the wait, 0 to 1, that chance may take off, so that children do not come back in step.
    pub jitter: f32,
    /// A child that ran this long counts as healthy: the next wait is `first` again.
    pub reset_after: Duration,
}

/// A child's end, as its parent hears of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildExit {
    /// Who ended.
    pub child: ActorId,
    /// Its name among its siblings.
    pub name: String,
    /// Its [`Actor::KIND`](crate::Actor::KIND) or [`Pump::KIND`](crate::Pump::KIND).
    pub kind: &'static str,
    /// Why it ended.
    pub reason: ExitReason,
    /// What the restart policy made of it.
    pub verdict: Verdict,
}

/// What the restart policy made of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No restart: the policy says so, or the parent had asked for the end.
    Ended,
    /// It runs again.
    Restarted {
        /// Restarts in a row, this one included, since the child was last healthy for [`Backoff::reset_after`].
        attempt: u32,
    },
    /// It will be started again.
    Restarting {
        /// From now.
        after: Duration,
    },
    /// No restart: [`Intensity`] is used up.
    GaveUp,
}

impl ChildSpec {
    /// Never restarted.
    pub fn temporary(name: impl Into<String>) -> Self {
        Self::new(name, Restart::Temporary)
    }

    /// Restarted when it fails, panics or is killed.
    pub fn transient(name: impl Into<String>) -> Self {
        Self::new(name, Restart::Transient)
    }

    /// Restarted whenever it ends.
    pub fn permanent(name: impl Into<String>) -> Self {
        Self::new(name, Restart::Permanent)
    }

    /// Five restarts in 30 s with default backoff, 2 s of grace, default lanes, not significant.
    fn new(name: impl Into<String>, restart: Restart) -> Self {
        Self {
            name: name.into(),
            restart,
            intensity: Intensity::default(),
            backoff: Backoff::default(),
            grace: Duration::from_secs(2),
            limits: LaneLimits::default(),
            significant: false,
        }
    }
}

impl Default for Intensity {
    /// Five restarts in 30 s.
    fn default() -> Self {
        Self {
            restarts: 5,
            within: Duration::from_secs(30),
        }
    }
}

impl Default for Backoff {
    /// From 50 ms to 5 s, up to a fifth of it taken off, healthy after a minute.
    fn default() -> Self {
        Self {
            first: Duration::from_millis(50),
            max: Duration::from_secs(5),
            jitter: 0.2,
            reset_after: Duration::from_mins(1),
        }
    }
}

impl Backoff {
    /// No wait at all.
    pub fn none() -> Self {
        Self {
            first: Duration::ZERO,
            max: Duration::ZERO,
            jitter: 0.0,
            reset_after: Duration::from_mins(1),
        }
    }

    /// The wait before the restart number `attempt` (from 1) in a row; `chance` is drawn from 0 to 1.
    fn wait(&self, attempt: u32, chance: f32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        let full = self.first.saturating_mul(1 << doublings).min(self.max);
        let taken_off = self.jitter.clamp(0.0, 1.0) * chance.clamp(0.0, 1.0);
        full.mul_f32(1.0 - taken_off)
    }
}

/// What to do about an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    End,
    GiveUp,
    Restart { attempt: u32, after: Duration },
}

/// What is remembered of one child between its incarnations.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// When restarts were decided, oldest first; never more than the intensity allows.
    log: VecDeque<Duration>,
    /// Restarts since the child was last healthy.
    in_a_row: u32,
    /// When the present incarnation was started.
    started: Duration,
}

impl History {
    pub(crate) fn started(&mut self, now: Duration) {
        self.started = now;
    }

    pub(crate) fn decide(
        &mut self,
        spec: &ChildSpec,
        reason: &ExitReason,
        now: Duration,
        chance: f32,
    ) -> Decision {
        let again = match spec.restart {
            Restart::Permanent => true,
            Restart::Transient => !reason.is_orderly(),
            Restart::Temporary => false,
        };
        if !again {
            return Decision::End;
        }
        let Intensity { restarts, within } = spec.intensity;
        while self
            .log
            .front()
            .is_some_and(|&at| now.saturating_sub(at) >= within)
        {
            self.log.pop_front();
        }
        if self.log.len() >= restarts as usize {
            return Decision::GiveUp;
        }
        self.log.push_back(now);
        if now.saturating_sub(self.started) >= spec.backoff.reset_after {
            self.in_a_row = 0;
        }
        self.in_a_row += 1;
        Decision::Restart {
            attempt: self.in_a_row,
            after: spec.backoff.wait(self.in_a_row, chance),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn spec(restart: Restart) -> ChildSpec {
        ChildSpec {
            restart,
            intensity: Intensity {
                restarts: 2,
                within: 10 * SECOND,
            },
            backoff: Backoff {
                first: SECOND,
                max: 5 * SECOND,
                jitter: 0.0,
                reset_after: 100 * SECOND,
            },
            ..ChildSpec::temporary("child")
        }
    }

    #[test]
    fn restart_policy_by_exit_reason() {
        #[track_caller]
        fn check(restart: Restart, reason: &ExitReason, restarts: bool) {
            let decision = History::default().decide(&spec(restart), reason, SECOND, 0.0);
            let expected = if restarts {
                Decision::Restart {
                    attempt: 1,
                    after: SECOND,
                }
            } else {
                Decision::End
            };
            assert_eq!(decision, expected, "{restart:?} after {reason:?}");
        }
        let stopped = ExitReason::Stopped("why".into());
        let failed = ExitReason::Failed("why".into());
        let panicked = ExitReason::Panicked("why".into());

        check(Restart::Permanent, &ExitReason::Finished, true);
        check(Restart::Permanent, &stopped, true);
        check(Restart::Permanent, &failed, true);
        check(Restart::Permanent, &panicked, true);
        check(Restart::Permanent, &ExitReason::Killed, true);

        check(Restart::Transient, &ExitReason::Finished, false);
        check(Restart::Transient, &stopped, false);
        check(Restart::Transient, &failed, true);
        check(Restart::Transient, &panicked, true);
        check(Restart::Transient, &ExitReason::Killed, true);

        check(Restart::Temporary, &ExitReason::Finished, false);
        check(Restart::Temporary, &stopped, false);
        check(Restart::Temporary, &failed, false);
        check(Restart::Temporary, &panicked, false);
        check(Restart::Temporary, &ExitReason::Killed, false);
    }

    #[test]
    fn intensity_is_a_sliding_window() {
        let spec = spec(Restart::Permanent);
        let mut history = History::default();
        let mut at = |seconds: u32| {
            history.decide(&spec, &ExitReason::Killed, SECOND * seconds, 0.0) != Decision::GiveUp
        };
        assert!(at(0));
        assert!(at(9));
        assert!(!at(9), "two in ten seconds are the limit");
        // The restart at 0 has left the window, the one at 9 has not. A counter reset at 10 would allow both.
        assert!(at(10));
        assert!(!at(18));
        assert!(at(19));
    }

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew_after_a_healthy_time() {
        let spec = ChildSpec {
            intensity: Intensity {
                restarts: 100,
                within: SECOND,
            },
            ..spec(Restart::Permanent)
        };
        let mut history = History::default();
        let mut wait =
            |now: u32| match history.decide(&spec, &ExitReason::Killed, SECOND * now, 0.0) {
                Decision::Restart { after, .. } => after.as_secs(),
                decision @ (Decision::End | Decision::GiveUp) => panic!("{decision:?}"),
            };
        assert_eq!([wait(1), wait(2), wait(3), wait(4)], [1, 2, 4, 5]);
        history.started(SECOND * 10);
        let mut wait =
            |now: u32| match history.decide(&spec, &ExitReason::Killed, SECOND * now, 0.0) {
                Decision::Restart { attempt, after } => (attempt, after.as_secs()),
                decision @ (Decision::End | Decision::GiveUp) => panic!("{decision:?}"),
            };
        assert_eq!(wait(109), (5, 5));
        assert_eq!(wait(110), (1, 1));
    }

    #[test]
    fn jitter_only_shortens_a_wait_and_by_no_more_than_its_share() {
        let backoff = Backoff {
            first: SECOND,
            max: 5 * SECOND,
            jitter: 0.5,
            reset_after: SECOND,
        };
        assert_eq!(backoff.wait(1, 0.0), SECOND);
        assert_eq!(backoff.wait(1, 1.0), SECOND / 2);
        assert_eq!(backoff.wait(u32::MAX, 0.0), 5 * SECOND);
        assert_eq!(Backoff::none().wait(7, 0.3), Duration::ZERO);
    }
}
