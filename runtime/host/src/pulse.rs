//! A turn's signs of life, as cheap as one store each, or one lock where a handler waits; looked at only when the
//! turn seems mute.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rspp_proto::Monotonic;

/// What shows that somebody is at work for a turn.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    calls: AtomicU32,
    /// Until when, in milliseconds of the node's clock, some node's handler is within its budget.
    busy_until: AtomicU64,
    /// When a provider last brought a piece of an answer, in milliseconds; 0 if none has.
    answered_at: AtomicU64,
    /// The handlers on the way to the user that go on, with when each last let something pass.
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    since: BTreeMap<u64, Monotonic>,
}

impl Pulse {
    /// A call has begun that keeps time itself: providers and tools have deadlines of their own. It
    /// lasts until what is returned is dropped.
    pub(crate) fn call(self: &Arc<Self>) -> CallInProgress {
        self.calls.fetch_add(1, Relaxed);
        CallInProgress(Arc::clone(self))
    }

    /// A handler begins to wait, and may for so long. It lasts until what is returned is dropped.
    pub(crate) fn waits(
        self: &Arc<Self>,
        now: Monotonic,
        budget: Duration,
        leads_to_user: bool,
    ) -> HandlerInProgress {
        let until = now + budget;
        self.busy_until.fetch_max(until.as_millis(), Relaxed);
        let place = leads_to_user.then(|| {
            let mut waiting = self.waiting();
            let place = waiting.next;
            waiting.next += 1;
            waiting.since.insert(place, now);
            place
        });
        HandlerInProgress {
            pulse: Arc::clone(self),
            place,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A provider has brought a piece of an answer.
    pub(crate) fn answers(&self, now: Monotonic) {
        self.answered_at.store(now.as_millis(), Relaxed);
    }

    /// When a provider last brought one that may reach the user: what comes while a handler on the way goes
    /// on is kept behind it.
    pub(crate) fn answered(&self) -> Option<Monotonic> {
        let at = self.answered_at.load(Relaxed);
        let at = (at > 0).then(|| Monotonic::from_millis(at))?;
        let kept_since = self.waiting().since.values().min().copied();
        Some(kept_since.map_or(at, |since| at.min(since)))
    }

    /// Whether something is at work that will end by itself.
    pub(crate) fn is_at_work(&self, now: Monotonic) -> bool {
        self.calls.load(Relaxed) > 0 || self.busy_until.load(Relaxed) > now.as_millis()
    }
}

/// A call that is in progress as long as this lives.
#[derive(Debug)]
pub(crate) struct CallInProgress(Arc<Pulse>);

impl Drop for CallInProgress {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Relaxed);
    }
}

/// A handler that goes on as long as this lives.
#[derive(Debug)]
pub(crate) struct HandlerInProgress {
    pulse: Arc<Pulse>,
    /// Among those on the way to the user, if it is.
    place: Option<u64>,
}

impl HandlerInProgress {
    /// It has let something pass.
    pub(crate) fn emits(&self, now: Monotonic) {
        if let Some(place) = self.place {
            self.pulse.waiting().since.insert(place, now);
        }
    }
}

impl Drop for HandlerInProgress {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.pulse.waiting().since.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Monotonic {
        Monotonic::from_millis(ms)
    }

    /// P13: a call counts while it lasts, a handler as long as its budget does.
    #[test]
    fn work_that_keeps_time_is_a_sign_of_life() {
        let pulse = Arc::new(Pulse::default());
        assert!(!pulse.is_at_work(ms(0)));
        let (one, two) = (pulse.call(), pulse.call());
        drop(one);
        assert!(pulse.is_at_work(ms(0)));
        drop(two);
        assert!(!pulse.is_at_work(ms(0)));
        let budgets = [(100, 50), (110, 10)];
        for (now, budget) in budgets {
            drop(pulse.waits(ms(now), Duration::from_millis(budget), true));
        }
        assert!(pulse.is_at_work(ms(149)));
        assert!(!pulse.is_at_work(ms(150)));
        assert_eq!(pulse.answered(), None);
        pulse.answers(ms(120));
        assert_eq!(pulse.answered(), Some(ms(120)));
    }

    /// P13: what a provider brings shows life only as far as it gets: a handler on its way keeps what comes
    /// after it has begun.
    #[test]
    fn what_is_kept_behind_a_handler_is_no_sign_of_life() {
        let pulse = Arc::new(Pulse::default());
        let budget = Duration::from_secs(30);
        let aside = pulse.waits(ms(50), budget, false);
        pulse.answers(ms(90));
        assert_eq!(pulse.answered(), Some(ms(90)));
        let (first, second) = (
            pulse.waits(ms(100), budget, true),
            pulse.waits(ms(110), budget, true),
        );
        assert_eq!(pulse.answered(), Some(ms(90)));
        pulse.answers(ms(500));
        assert_eq!(pulse.answered(), Some(ms(100)));
        first.emits(ms(300));
        assert_eq!(pulse.answered(), Some(ms(110)));
        drop(second);
        assert_eq!(pulse.answered(), Some(ms(300)));
        drop((first, aside));
        assert_eq!(pulse.answered(), Some(ms(500)));
    }
}
