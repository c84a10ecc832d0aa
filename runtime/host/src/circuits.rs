//! The circuits of all providers, for all sessions of a process (F-057).

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use rspp_kernel::invocation::{
    Admission, CircuitBreaker, CircuitChange, CircuitPolicy, InvocationPolicy,
};
use rspp_proto::{Monotonic, OutcomeClass, ProviderId, spec::Modality};

/// One breaker a provider; a look at it is a short lock, once an attempt.
#[derive(Debug, Default)]
pub(crate) struct Circuits {
    breakers: Mutex<BTreeMap<(Modality, ProviderId), CircuitBreaker>>,
}

/// The rules under which a node's provider calls are made.
#[derive(Debug)]
pub(crate) struct CallRules {
    pub(crate) policy: InvocationPolicy,
    pub(crate) circuits: std::sync::Arc<Circuits>,
}

impl Circuits {
    fn breakers(&self) -> MutexGuard<'_, BTreeMap<(Modality, ProviderId), CircuitBreaker>> {
        self.breakers.lock().expect("no code panics while locked")
    }

    /// Whether a call may be made now; a trial is spent by asking.
    pub(crate) fn admits(&self, modality: Modality, provider: &ProviderId, now: Monotonic) -> bool {
        let mut breakers = self.breakers();
        let breaker = breakers
            .entry((modality, provider.clone()))
            .or_insert_with(|| CircuitBreaker::new(CircuitPolicy::default()));
        match breaker.admit(now).0 {
            Admission::Pass | Admission::Trial => true,
            Admission::Refuse => false,
        }
    }

    /// How an attempt ended; a change is to be told.
    pub(crate) fn record(
        &self,
        modality: Modality,
        provider: &ProviderId,
        now: Monotonic,
        class: OutcomeClass,
        leave_alone: Option<Duration>,
    ) -> Option<CircuitChange> {
        let mut breakers = self.breakers();
        breakers
            .get_mut(&(modality, provider.clone()))?
            .record(now, class, leave_alone)
    }
}
