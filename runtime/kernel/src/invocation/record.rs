//! How attempts and calls end: failures, records, and what each kind of failure leads to.

use std::time::Duration;

use rspp_proto::{ErrorCode, InvocationId, Monotonic, OutcomeClass, ProviderId, RetryDecision};

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
    fn plain(class: OutcomeClass, retryable: bool, reason: &'static str) -> Self {
        Self {
            class,
            retryable,
            reason,
            circuit_open: false,
            backoff: None,
        }
    }

    /// None: the attempt went well.
    pub(super) fn none() -> Self {
        Self::plain(OutcomeClass::Success, false, super::OK)
    }

    /// A provider that did not answer in time.
    pub fn timeout() -> Self {
        Self::plain(OutcomeClass::Timeout, true, "provider_timeout")
    }

    /// A provider that was silent for as long as its turn may be: it is not asked again.
    pub(super) fn mute() -> Self {
        Self::plain(OutcomeClass::Timeout, false, "provider_timeout")
    }

    /// There was no time for the provider to answer in, since so much was spent waiting for this machine.
    pub(super) fn no_time() -> Self {
        Self::plain(OutcomeClass::Timeout, true, super::BUDGET_EXHAUSTED)
    }

    /// An attempt that was stopped because the result is no longer wanted.
    pub fn cancelled() -> Self {
        Self::plain(OutcomeClass::Cancelled, false, "provider_cancelled")
    }

    /// An attempt that was stopped because another spoke first.
    pub fn overtaken() -> Self {
        Self::plain(OutcomeClass::Cancelled, false, "provider_overtaken")
    }
}

/// What became of one attempt; evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRecord {
    /// Which.
    pub key: super::AttemptKey,
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
    /// Whether another attempt might have succeeded.
    pub retryable: bool,
    /// The provider asked to be left alone.
    pub circuit_open: bool,
    /// For how long.
    pub backoff: Option<Duration>,
    /// What it led to.
    pub decision: RetryDecision,
    /// How long it waited for this machine.
    pub queued: Duration,
    /// It was given up before its provider had had the time that it is given: the rest was spent in
    /// queues of this machine. Says nothing about the provider.
    pub excused: bool,
}

impl AttemptRecord {
    /// Whether the provider was given up for another, by its own fault (F-047).
    pub fn was_given_up(&self) -> bool {
        let moved_on = match self.decision {
            RetryDecision::ProviderSwitch | RetryDecision::Fallback => true,
            RetryDecision::None | RetryDecision::Retry => false,
        };
        let at_fault = match self.class {
            OutcomeClass::Timeout
            | OutcomeClass::Overload
            | OutcomeClass::InfrastructureFailure => true,
            OutcomeClass::Success | OutcomeClass::Blocked | OutcomeClass::Cancelled => false,
        };
        moved_on && at_fault && !self.excused
    }

    /// For how long the provider asked to be left alone, if it did.
    pub fn leave_alone(&self) -> Option<Duration> {
        self.backoff.filter(|_| self.circuit_open)
    }
}

/// How a call ended; evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvocationOutcome {
    /// The call.
    pub invocation: InvocationId,
    /// Who answered, or was asked last, or would have been asked; `None` if nobody is bound.
    pub provider: Option<ProviderId>,
    /// How it ended.
    pub class: OutcomeClass,
    /// Why; `ok` for a success.
    pub reason: &'static str,
    /// The last decision between attempts.
    pub decision: RetryDecision,
    /// All attempts, in the order in which they began.
    pub attempts: Vec<AttemptRecord>,
    /// From the call's beginning to its end.
    pub latency: Duration,
    /// From an accepted cancel to the end.
    pub cancel_latency: Option<Duration>,
}

/// The taxonomy's word for a call that ended like this (F-131); `None` for what is no error.
pub fn error_code(class: OutcomeClass) -> Option<ErrorCode> {
    match class {
        OutcomeClass::Timeout => Some(ErrorCode::ProviderTimeout),
        OutcomeClass::Overload => Some(ErrorCode::ProviderOverload),
        OutcomeClass::Blocked | OutcomeClass::InfrastructureFailure => {
            Some(ErrorCode::RuntimeInternalError)
        }
        OutcomeClass::Success | OutcomeClass::Cancelled => None,
    }
}
