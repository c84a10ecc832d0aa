//! Leaving a provider alone that keeps failing (F-057).

use std::{collections::VecDeque, time::Duration};

use rspp_proto::{Monotonic, OutcomeClass, spec::CircuitPolicy};
use serde::{Deserialize, Serialize};

/// Where a circuit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitState {
    /// Calls pass.
    Closed,
    /// No call passes.
    Open,
    /// One call passes, for trial.
    HalfOpen,
}

impl CircuitState {
    /// The state's name, as reasons and labels write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// A circuit changed: to be emitted as `circuit_event`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitChange {
    /// From where.
    pub from: CircuitState,
    /// To where.
    pub to: CircuitState,
    /// Why.
    pub cause: CircuitCause,
}

/// Why a circuit changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitCause {
    /// The rate of faults reached its threshold.
    Faults {
        /// Calls that failed, of those looked back on.
        faults: usize,
        /// Calls looked back on.
        calls: usize,
        /// The threshold, in percent.
        percent: u32,
        /// How the last of them failed.
        code: &'static str,
    },
    /// The provider asked to be left alone.
    AskedFor {
        /// For how long.
        wait: Duration,
        /// How it said so.
        code: &'static str,
    },
    /// The trial failed.
    Relapse {
        /// How.
        code: &'static str,
    },
    /// It was left alone for long enough.
    CooledDown,
    /// The trial went well.
    Healed,
}

impl CircuitChange {
    /// The reason as the signal carries it: states, thresholds and code, and nothing of what was
    /// asked (F-136).
    pub fn reason(&self) -> String {
        let (from, to) = (self.from.as_str(), self.to.as_str());
        let cause = match self.cause {
            CircuitCause::Faults {
                faults,
                calls,
                percent,
                code,
            } => format!(" faults={faults}/{calls} threshold={percent}% code={code}"),
            CircuitCause::AskedFor { wait, code } => {
                format!(" wait_ms={} code={code}", wait.as_millis())
            }
            CircuitCause::Relapse { code } => format!(" code={code}"),
            CircuitCause::CooledDown | CircuitCause::Healed => String::new(),
        };
        format!("from={from} to={to}{cause}")
    }
}

/// Whether a call may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a trial that is not reported keeps the circuit half open"]
pub enum Admission {
    /// Yes.
    Pass,
    /// Yes; how it ends decides about the circuit.
    Trial,
    /// No.
    Refuse,
}

/// One provider's circuit, for all sessions of a process.
///
/// Counts faults of the provider only: a call that was cancelled, or refused because of what it
/// asked for, says nothing about it (P27).
#[derive(Clone, Debug)]
pub struct CircuitBreaker {
    policy: CircuitPolicy,
    state: State,
    recent: VecDeque<(Monotonic, bool)>,
    /// Trials that failed in a row.
    relapses: u32,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open { until: Monotonic },
    HalfOpen { trial_since: Option<Monotonic> },
}

impl CircuitBreaker {
    /// A closed circuit.
    pub fn new(policy: CircuitPolicy) -> Self {
        Self {
            policy,
            state: State::Closed,
            recent: VecDeque::new(),
            relapses: 0,
        }
    }

    /// Asks to make a call; report how it ends by [`Self::record`]. The change, if there is one,
    /// is that an open circuit has cooled down.
    pub fn admit(&mut self, now: Monotonic) -> (Admission, Option<CircuitChange>) {
        match self.state {
            State::Closed => (Admission::Pass, None),
            State::Open { until } if now < until => (Admission::Refuse, None),
            State::Open { .. } => {
                let trial_since = Some(now);
                let change = self.go(State::HalfOpen { trial_since }, CircuitCause::CooledDown);
                (Admission::Trial, change)
            }
            // A trial whose end nobody reported does not block the next for ever.
            State::HalfOpen {
                trial_since: Some(since),
            } if now.since(since) < self.window_time() => (Admission::Refuse, None),
            State::HalfOpen { .. } => {
                self.state = State::HalfOpen {
                    trial_since: Some(now),
                };
                (Admission::Trial, None)
            }
        }
    }

    /// Notes how a call ended, by class and code. `leave_alone` is the time for which the provider
    /// asked not to be called, if it did.
    #[must_use = "a change of the circuit is evidence"]
    pub fn record(
        &mut self,
        now: Monotonic,
        class: OutcomeClass,
        code: &'static str,
        leave_alone: Option<Duration>,
    ) -> Option<CircuitChange> {
        let fault = match class {
            OutcomeClass::Success => false,
            OutcomeClass::Timeout
            | OutcomeClass::Overload
            | OutcomeClass::InfrastructureFailure => true,
            OutcomeClass::Blocked | OutcomeClass::Cancelled => {
                if let State::HalfOpen { .. } = self.state {
                    self.state = State::HalfOpen { trial_since: None };
                }
                return None;
            }
        };
        self.note(now, fault);
        match self.state {
            State::HalfOpen { .. } if fault => {
                self.relapses += 1;
                self.open(now, leave_alone, CircuitCause::Relapse { code })
            }
            State::HalfOpen { .. } => {
                self.relapses = 0;
                self.recent.clear();
                self.go(State::Closed, CircuitCause::Healed)
            }
            State::Closed if fault => {
                let cause = match leave_alone {
                    Some(wait) => CircuitCause::AskedFor { wait, code },
                    None => self.faults(code)?,
                };
                self.open(now, leave_alone, cause)
            }
            // A late answer to a call from before the circuit opened changes nothing.
            State::Closed | State::Open { .. } => None,
        }
    }

    /// Whether no call would pass now. Asking spends no trial: for choosing whom to ask, not for
    /// asking.
    pub fn is_resting(&self, now: Monotonic) -> bool {
        match self.state {
            State::Closed => false,
            State::Open { until } => now < until,
            State::HalfOpen { trial_since } => {
                trial_since.is_some_and(|since| now.since(since) < self.window_time())
            }
        }
    }

    /// Where the circuit stands.
    pub fn state(&self) -> CircuitState {
        match self.state {
            State::Closed => CircuitState::Closed,
            State::Open { .. } => CircuitState::Open,
            State::HalfOpen { .. } => CircuitState::HalfOpen,
        }
    }

    fn window_time(&self) -> Duration {
        Duration::from_millis(self.policy.window_ms)
    }

    fn note(&mut self, now: Monotonic, fault: bool) {
        if self.recent.len() >= self.policy.window.max(1) as usize {
            self.recent.pop_front();
        }
        self.recent.push_back((now, fault));
        let oldest = self.window_time();
        self.recent.retain(|(at, _)| now.since(*at) <= oldest);
    }

    /// The faults, if they are too many.
    fn faults(&self, code: &'static str) -> Option<CircuitCause> {
        let faults = self.recent.iter().filter(|(_, fault)| *fault).count();
        let calls = self.recent.len();
        let percent = self.policy.fault_percent;
        let is_bad = calls >= self.policy.least_calls.max(1) as usize
            && faults * 100 >= percent as usize * calls;
        is_bad.then_some(CircuitCause::Faults {
            faults,
            calls,
            percent,
            code,
        })
    }

    fn open(
        &mut self,
        now: Monotonic,
        leave_alone: Option<Duration>,
        cause: CircuitCause,
    ) -> Option<CircuitChange> {
        let own = Duration::from_millis(self.policy.cool_down_ms) * (1 << self.relapses.min(4));
        // What the provider asks for is enough the first time; a relapse waits for the longer.
        let wait = match leave_alone {
            Some(asked) if self.relapses == 0 => asked,
            Some(asked) => asked.max(own),
            None => own,
        };
        self.go(State::Open { until: now + wait }, cause)
    }

    fn go(&mut self, to: State, cause: CircuitCause) -> Option<CircuitChange> {
        let from = self.state();
        self.state = to;
        let to = self.state();
        (from != to).then_some(CircuitChange { from, to, cause })
    }
}
