//! Leaving a provider alone that keeps failing (F-057).

use std::{collections::VecDeque, time::Duration};

use rspp_proto::{Monotonic, OutcomeClass};
use serde::{Deserialize, Serialize};

/// When a circuit opens and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CircuitPolicy {
    /// Calls looked back on, at most.
    pub window: usize,
    /// How far back.
    pub window_time: Duration,
    /// Calls needed before a rate means anything.
    pub least_calls: usize,
    /// Share of faults at which the circuit opens, 0 to 1.
    pub fault_rate: f64,
    /// How long it stays open; doubles each time a trial fails, up to 16 times as long.
    pub cool_down: Duration,
}

impl Default for CircuitPolicy {
    fn default() -> Self {
        Self {
            window: 20,
            window_time: Duration::from_secs(30),
            least_calls: 5,
            fault_rate: 0.5,
            cool_down: Duration::from_secs(2),
        }
    }
}

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitChange {
    /// From where.
    pub from: CircuitState,
    /// To where.
    pub to: CircuitState,
}

impl CircuitChange {
    /// The reason as the signal carries it.
    pub fn reason(&self) -> String {
        format!("from={} to={}", self.from.as_str(), self.to.as_str())
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
            recent: VecDeque::with_capacity(policy.window),
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
                let change = self.go(State::HalfOpen { trial_since });
                (Admission::Trial, change)
            }
            // A trial whose end nobody reported does not block the next for ever.
            State::HalfOpen {
                trial_since: Some(since),
            } if now.since(since) < self.policy.window_time => (Admission::Refuse, None),
            State::HalfOpen { .. } => {
                self.state = State::HalfOpen {
                    trial_since: Some(now),
                };
                (Admission::Trial, None)
            }
        }
    }

    /// Notes how a call ended. `leave_alone` is the time for which the provider asked not to be
    /// called, if it did.
    #[must_use = "a change of the circuit is evidence"]
    pub fn record(
        &mut self,
        now: Monotonic,
        class: OutcomeClass,
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
                self.open(now, leave_alone)
            }
            State::HalfOpen { .. } => {
                self.relapses = 0;
                self.recent.clear();
                self.go(State::Closed)
            }
            State::Closed if fault && (leave_alone.is_some() || self.is_bad()) => {
                self.open(now, leave_alone)
            }
            // A late answer to a call from before the circuit opened changes nothing.
            State::Closed | State::Open { .. } => None,
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

    fn note(&mut self, now: Monotonic, fault: bool) {
        if self.recent.len() >= self.policy.window.max(1) {
            self.recent.pop_front();
        }
        self.recent.push_back((now, fault));
        let oldest = self.policy.window_time;
        self.recent.retain(|(at, _)| now.since(*at) <= oldest);
    }

    fn is_bad(&self) -> bool {
        let faults = self.recent.iter().filter(|(_, fault)| *fault).count();
        let calls = self.recent.len();
        calls >= self.policy.least_calls.max(1)
            && faults as f64 >= self.policy.fault_rate * calls as f64
    }

    fn open(&mut self, now: Monotonic, leave_alone: Option<Duration>) -> Option<CircuitChange> {
        let own = self.policy.cool_down * (1 << self.relapses.min(4));
        // What the provider asks for is enough the first time; a relapse waits for the longer.
        let wait = match leave_alone {
            Some(asked) if self.relapses == 0 => asked,
            Some(asked) => asked.max(own),
            None => own,
        };
        self.go(State::Open { until: now + wait })
    }

    fn go(&mut self, to: State) -> Option<CircuitChange> {
        let from = self.state();
        self.state = to;
        let to = self.state();
        (from != to).then_some(CircuitChange { from, to })
    }
}
