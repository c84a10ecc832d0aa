//! One call to a provider as a machine: candidates, attempts, verdicts, evidence.
//!
//! Says when to try whom, when to wait and when to stop. Making the call, and stopping it, is the
//! host's business.

mod circuit;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, time::Duration};

use rspp_proto::{
    InvocationId, Monotonic, OutcomeClass, ProviderId, abi::Signal, spec::AdaptiveAction,
};
use serde::{Deserialize, Serialize};

pub use circuit::{Admission, CircuitBreaker, CircuitChange, CircuitPolicy, CircuitState};

/// How a call may be repeated and moved; frozen with the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvocationPolicy {
    /// Attempts at one provider.
    pub attempts_per_provider: u32,
    /// Providers tried, at most.
    pub max_providers: usize,
    /// What the plan authorises.
    pub actions: BTreeSet<AdaptiveAction>,
    /// Whether a refused request may be put to another provider.
    pub switch_on_blocked: bool,
    /// Wait before the second attempt; doubles with each further one. A provider's own wish wins.
    pub backoff: Duration,
    /// Least time that makes another attempt worth while.
    pub least_useful: Duration,
    /// From an attempt's start to its first chunk.
    pub first_byte: Duration,
    /// Between two chunks.
    pub inter_chunk: Duration,
}

impl Default for InvocationPolicy {
    fn default() -> Self {
        let budgets = crate::plan::profile::budgets();
        Self {
            attempts_per_provider: 2,
            max_providers: 5,
            actions: crate::plan::profile::adaptive_actions(),
            switch_on_blocked: false,
            backoff: Duration::from_millis(50),
            least_useful: Duration::from_millis(100),
            first_byte: Duration::from_millis(budgets.provider_first_byte_ms),
            inter_chunk: Duration::from_millis(budgets.provider_inter_chunk_ms),
        }
    }
}

/// How an attempt failed, as the provider's adapter reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The class; never `Success`.
    pub class: OutcomeClass,
    /// Whether the same request may work next time.
    pub retryable: bool,
    /// A stable code, e.g. `provider_overload`.
    pub reason: &'static str,
    /// The provider asked to be left alone for a while.
    pub circuit_open: bool,
    /// For how long.
    pub backoff: Option<Duration>,
}

impl Failure {
    /// A provider that did not answer in time.
    pub fn timeout() -> Self {
        Self {
            class: OutcomeClass::Timeout,
            retryable: true,
            reason: "provider_timeout",
            circuit_open: false,
            backoff: None,
        }
    }
}

/// What a failure led to (providers.md §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryDecision {
    /// Nothing further.
    None,
    /// The same provider again.
    Retry,
    /// The next provider.
    ProviderSwitch,
    /// The next provider, as the plan's alternative path.
    Fallback,
}

/// What became of one attempt; evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttemptRecord {
    /// Who was asked.
    pub provider: ProviderId,
    /// Counts attempts at this provider, from 1.
    pub attempt: u32,
    /// When it was to begin.
    pub began: Monotonic,
    /// When the first chunk came.
    pub first_chunk: Option<Monotonic>,
    /// When it ended.
    pub ended: Monotonic,
    /// Chunks that came.
    pub chunks: u64,
    /// How it ended.
    pub class: OutcomeClass,
    /// Why; `ok` for a success.
    pub reason: &'static str,
    /// What it led to.
    pub decision: RetryDecision,
}

/// A signal that a verdict asks for; all have scope `provider_invocation`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvocationSignal {
    /// Which.
    pub signal: Signal,
    /// Its reason.
    pub reason: String,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Begin an attempt at `at`, which may lie ahead, and stop it at the latest at the machine's
    /// deadline.
    Attempt {
        /// Whom to ask.
        provider: ProviderId,
        /// Counts attempts at this provider, from 1.
        attempt: u32,
        /// When.
        at: Monotonic,
    },
    /// The call is over.
    Finish(Box<InvocationOutcome>),
}

/// A decision with the signals that tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "an order not carried out leaves the call hanging"]
pub struct Verdict {
    /// To be emitted, in order, before the order is carried out.
    pub signals: Vec<InvocationSignal>,
    /// What to do next.
    pub order: Order,
}

/// How a call ended; evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InvocationOutcome {
    /// The call.
    pub invocation: InvocationId,
    /// Who answered, or was asked last.
    pub provider: Option<ProviderId>,
    /// How it ended.
    pub class: OutcomeClass,
    /// Why; `ok` for a success.
    pub reason: &'static str,
    /// The last decision between attempts.
    pub decision: RetryDecision,
    /// All attempts, in order.
    pub attempts: Vec<AttemptRecord>,
    /// From the call's beginning to its end.
    pub latency: Duration,
    /// From an accepted cancel to the end.
    pub cancel_latency: Option<Duration>,
}

/// One call to a provider.
///
/// Attempts at the first candidate come first, then those at the next. What is tried again has to
/// fit what is left of the budget, waiting included. Once a piece of an answer was passed on
/// ([`Invocation::commit`]) there is no other attempt: the listener would hear it twice (P6).
#[derive(Debug)]
pub struct Invocation {
    id: InvocationId,
    policy: InvocationPolicy,
    candidates: Vec<ProviderId>,
    began: Monotonic,
    deadline: Monotonic,
    /// Which candidate is being asked.
    at: usize,
    attempt: u32,
    current: Option<Running>,
    committed: bool,
    cancelled: Option<Monotonic>,
    decision: RetryDecision,
    attempts: Vec<AttemptRecord>,
    is_over: bool,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    began: Monotonic,
    first_chunk: Option<Monotonic>,
    last_chunk: Monotonic,
    chunks: u64,
}

impl Invocation {
    /// A call that may try `candidates`, in that order, until `deadline`.
    pub fn new(
        id: InvocationId,
        candidates: Vec<ProviderId>,
        policy: InvocationPolicy,
        now: Monotonic,
        deadline: Monotonic,
    ) -> Self {
        let mut candidates = candidates;
        candidates.truncate(policy.max_providers.max(1));
        Self {
            id,
            policy,
            candidates,
            began: now,
            deadline,
            at: 0,
            attempt: 0,
            current: None,
            committed: false,
            cancelled: None,
            decision: RetryDecision::None,
            attempts: Vec::new(),
            is_over: false,
        }
    }

    /// The first order. `admits` asks the circuit of a provider whether it may be called.
    pub fn begin(&mut self, now: Monotonic, admits: impl FnMut(&ProviderId) -> bool) -> Verdict {
        if self.candidates.is_empty() {
            return self.finish(
                now,
                Vec::new(),
                OutcomeClass::Blocked,
                "provider_endpoint_missing",
            );
        }
        if self.left(now) < self.policy.least_useful {
            return self.finish(now, Vec::new(), OutcomeClass::Timeout, BUDGET_EXHAUSTED);
        }
        match self.next_candidate(0, admits) {
            Some(at) => self.start(now, Vec::new(), at, 1),
            None => self.finish(now, Vec::new(), OutcomeClass::Overload, CIRCUIT_OPEN),
        }
    }

    /// A chunk came. Not of an attempt that has ended: the host has dropped its stream.
    pub fn chunk(&mut self, now: Monotonic) {
        if let Some(running) = &mut self.current {
            running.first_chunk.get_or_insert(now);
            running.last_chunk = now;
            running.chunks += 1;
        }
    }

    /// A piece of this attempt's answer was passed on.
    pub fn commit(&mut self) {
        self.committed = true;
    }

    /// The attempt ended well.
    pub fn succeeded(&mut self, now: Monotonic) -> Verdict {
        self.record(now, OutcomeClass::Success, OK, RetryDecision::None);
        self.finish(now, Vec::new(), OutcomeClass::Success, OK)
    }

    /// The attempt failed.
    pub fn failed(
        &mut self,
        now: Monotonic,
        failure: &Failure,
        admits: impl FnMut(&ProviderId) -> bool,
    ) -> Verdict {
        if self.cancelled.is_some() || failure.class == OutcomeClass::Cancelled {
            self.cancelled.get_or_insert(now);
            self.record(now, OutcomeClass::Cancelled, CANCELLED, RetryDecision::None);
            return self.finish(now, Vec::new(), OutcomeClass::Cancelled, CANCELLED);
        }
        let asked = self.candidates.get(self.at).cloned();
        let name = asked.as_ref().map_or("", ProviderId::as_str);
        let mut signals = vec![InvocationSignal {
            signal: Signal::ProviderError,
            reason: format!("{name} {} {}", failure.class.as_str(), failure.reason),
        }];
        let retry_at = self.retry_at(now, failure);
        // One that asked for peace is left in peace if there is another. A circuit is asked only
        // when its provider would really be called: the question may spend its one trial.
        let next = if retry_at.is_some() && !failure.circuit_open {
            None
        } else {
            self.switch_to(now, failure, admits)
        };
        match (retry_at, next) {
            (Some(at), None) => {
                self.record(now, failure.class, failure.reason, RetryDecision::Retry);
                let attempt = self.attempt + 1;
                self.start(at, signals, self.at, attempt)
            }
            (_, Some(to)) => {
                let decision = if self.may(AdaptiveAction::ProviderSwitch) {
                    RetryDecision::ProviderSwitch
                } else {
                    RetryDecision::Fallback
                };
                self.record(now, failure.class, failure.reason, decision);
                signals.push(InvocationSignal {
                    signal: Signal::ProviderSwitch,
                    reason: format!("from={name} to={}", self.candidates[to]),
                });
                self.start(now, signals, to, 1)
            }
            (None, None) => {
                self.record(now, failure.class, failure.reason, RetryDecision::None);
                let out_of_time = self.left(now) < self.policy.least_useful;
                let reason = if out_of_time && !self.committed && failure.retryable {
                    BUDGET_EXHAUSTED
                } else {
                    failure.reason
                };
                self.finish(now, signals, failure.class, reason)
            }
        }
    }

    /// The result is no longer wanted: accepted at once, in whatever state. The host stops the
    /// attempt and reports nothing more.
    pub fn cancel(&mut self, accepted: Monotonic, now: Monotonic) -> Verdict {
        self.cancelled.get_or_insert(accepted);
        self.record(now, OutcomeClass::Cancelled, CANCELLED, RetryDecision::None);
        self.finish(now, Vec::new(), OutcomeClass::Cancelled, CANCELLED)
    }

    /// Whether the running attempt has been silent for too long (P14). The host stops it and
    /// reports [`Failure::timeout`].
    pub fn is_silent(&self, now: Monotonic) -> bool {
        self.next_deadline().is_some_and(|due| due <= now)
    }

    /// When the running attempt is given up unless it says something. The budget bounds the wait
    /// for the first chunk only: an answer that flows is bounded by the turn.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        let running = self.current?;
        Some(match running.first_chunk {
            None => (running.began + self.policy.first_byte).min(self.deadline),
            Some(_) => running.last_chunk + self.policy.inter_chunk,
        })
    }

    /// Whether the call has ended.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// The attempts so far.
    pub fn attempts(&self) -> &[AttemptRecord] {
        &self.attempts
    }

    fn may(&self, action: AdaptiveAction) -> bool {
        self.policy.actions.contains(&action)
    }

    fn left(&self, now: Monotonic) -> Duration {
        self.deadline.since(now)
    }

    /// When to ask the same provider again, if that is allowed and fits.
    fn retry_at(&self, now: Monotonic, failure: &Failure) -> Option<Monotonic> {
        let allowed = failure.retryable
            && !self.committed
            && self.may(AdaptiveAction::Retry)
            && self.attempt < self.policy.attempts_per_provider;
        if !allowed {
            return None;
        }
        let doublings = self.attempt.saturating_sub(1).min(16);
        let own = self.policy.backoff.saturating_mul(1 << doublings);
        let at = now + failure.backoff.unwrap_or(own);
        (self.left(at) >= self.policy.least_useful).then_some(at)
    }

    /// The provider to move to, if that is allowed and fits.
    fn switch_to(
        &self,
        now: Monotonic,
        failure: &Failure,
        admits: impl FnMut(&ProviderId) -> bool,
    ) -> Option<usize> {
        let allowed = !self.committed
            && (self.may(AdaptiveAction::ProviderSwitch) || self.may(AdaptiveAction::Fallback))
            && (failure.class != OutcomeClass::Blocked || self.policy.switch_on_blocked)
            && self.left(now) >= self.policy.least_useful;
        if !allowed {
            return None;
        }
        self.next_candidate(self.at + 1, admits)
    }

    fn next_candidate(
        &self,
        from: usize,
        mut admits: impl FnMut(&ProviderId) -> bool,
    ) -> Option<usize> {
        (from..self.candidates.len()).find(|at| admits(&self.candidates[*at]))
    }

    fn start(
        &mut self,
        at: Monotonic,
        signals: Vec<InvocationSignal>,
        candidate: usize,
        attempt: u32,
    ) -> Verdict {
        self.at = candidate;
        self.attempt = attempt;
        self.current = Some(Running {
            began: at,
            first_chunk: None,
            last_chunk: at,
            chunks: 0,
        });
        let order = Order::Attempt {
            provider: self.candidates[candidate].clone(),
            attempt,
            at,
        };
        Verdict { signals, order }
    }

    fn record(
        &mut self,
        now: Monotonic,
        class: OutcomeClass,
        reason: &'static str,
        decision: RetryDecision,
    ) {
        let Some(running) = self.current.take() else {
            return;
        };
        if decision != RetryDecision::None {
            self.decision = decision;
        }
        self.attempts.push(AttemptRecord {
            provider: self.candidates[self.at].clone(),
            attempt: self.attempt,
            began: running.began,
            first_chunk: running.first_chunk,
            // One that was cancelled while it waited for its turn never began.
            ended: now.max(running.began),
            chunks: running.chunks,
            class,
            reason,
            decision,
        });
    }

    fn finish(
        &mut self,
        now: Monotonic,
        signals: Vec<InvocationSignal>,
        class: OutcomeClass,
        reason: &'static str,
    ) -> Verdict {
        self.is_over = true;
        let outcome = InvocationOutcome {
            invocation: self.id.clone(),
            provider: self.attempts.last().map(|attempt| attempt.provider.clone()),
            class,
            reason,
            decision: self.decision,
            attempts: self.attempts.clone(),
            latency: now.since(self.began),
            cancel_latency: self.cancelled.map(|accepted| now.since(accepted)),
        };
        Verdict {
            signals,
            order: Order::Finish(Box::new(outcome)),
        }
    }
}

const OK: &str = "ok";
const CANCELLED: &str = "provider_cancelled";
const BUDGET_EXHAUSTED: &str = "provider_budget_exhausted";
const CIRCUIT_OPEN: &str = "provider_circuit_open";
