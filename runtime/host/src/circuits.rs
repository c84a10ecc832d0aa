//! The circuits of all providers, for all sessions of a process (F-057).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard},
};

use rspp_kernel::invocation::{Admission, AttemptRecord, CircuitBreaker, CircuitChange};
use rspp_proto::{
    Monotonic, OutcomeClass, ProviderId,
    spec::{CircuitPolicy, Modality},
};

/// Circuits kept; policies are their sessions' own, so that their number has to have an end.
const MAX_CIRCUITS: usize = 4_096;

/// One breaker a provider and policy: sessions that judge alike share what they have seen, and none
/// has to live by another's judgement. A look at it is a short lock, once an attempt.
#[derive(Debug, Default)]
pub(crate) struct Circuits {
    breakers: Mutex<BTreeMap<Key, CircuitBreaker>>,
}

type Key = (CircuitPolicy, Modality, ProviderId);

impl Circuits {
    fn breakers(&self) -> MutexGuard<'_, BTreeMap<Key, CircuitBreaker>> {
        self.breakers.lock().expect("no code panics while locked")
    }

    /// Whether a call may be made now, and what changed by asking: a trial is spent by it.
    pub(crate) fn admits(
        &self,
        policy: CircuitPolicy,
        modality: Modality,
        provider: &ProviderId,
        now: Monotonic,
    ) -> (bool, Option<CircuitChange>) {
        let mut breakers = self.breakers();
        let mut key = (policy, modality, provider.clone());
        if !breakers.contains_key(&key) && breakers.len() >= MAX_CIRCUITS {
            key.0 = CircuitPolicy::default();
        }
        let breaker = breakers
            .entry(key)
            .or_insert_with_key(|(policy, ..)| CircuitBreaker::new(*policy));
        let (admission, change) = breaker.admit(now);
        let admitted = match admission {
            Admission::Pass | Admission::Trial => true,
            Admission::Refuse => false,
        };
        (admitted, change)
    }

    /// How an attempt ended; a change is to be told.
    pub(crate) fn record(
        &self,
        policy: CircuitPolicy,
        modality: Modality,
        attempt: &AttemptRecord,
    ) -> Option<CircuitChange> {
        let mut breakers = self.breakers();
        let mut key = (policy, modality, attempt.provider.clone());
        if !breakers.contains_key(&key) {
            key.0 = CircuitPolicy::default();
        }
        let wish = attempt.leave_alone();
        let breaker = breakers.get_mut(&key)?;
        let class = if attempt.excused {
            OutcomeClass::Cancelled // By us: it had no time to answer in.
        } else {
            attempt.class
        };
        breaker.record(attempt.ended, class, attempt.reason, wish)
    }

    /// Who is left alone by any policy.
    pub(crate) fn resting_by_any(&self, now: Monotonic) -> BTreeSet<(Modality, ProviderId)> {
        let breakers = self.breakers();
        let resting = breakers
            .iter()
            .filter(|(_, breaker)| breaker.is_resting(now));
        resting
            .map(|((_, modality, provider), _)| (*modality, provider.clone()))
            .collect()
    }

    /// Who is to be left alone, by that policy.
    pub(crate) fn resting(
        &self,
        policy: CircuitPolicy,
        now: Monotonic,
    ) -> BTreeSet<(Modality, ProviderId)> {
        let breakers = self.breakers();
        let resting = breakers.iter().filter(|((of, ..), breaker)| {
            let judged_alike = *of == policy;
            judged_alike && breaker.is_resting(now)
        });
        resting
            .map(|((_, modality, provider), _)| (*modality, provider.clone()))
            .collect()
    }
}
