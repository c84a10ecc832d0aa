//! A turn's signs of life, as cheap as one store each; looked at only when the turn seems mute.

use std::{
    sync::{
        Arc,
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
}

impl Pulse {
    /// A call has begun that keeps time itself: providers and tools have deadlines of their own. It
    /// lasts until what is returned is dropped.
    pub(crate) fn call(self: &Arc<Self>) -> CallInProgress {
        self.calls.fetch_add(1, Relaxed);
        CallInProgress(Arc::clone(self))
    }

    /// A handler begins to wait, and may for so long.
    pub(crate) fn waits(&self, now: Monotonic, budget: Duration) {
        let until = now + budget;
        self.busy_until.fetch_max(until.as_millis(), Relaxed);
    }

    /// A provider has brought a piece of an answer.
    pub(crate) fn answers(&self, now: Monotonic) {
        self.answered_at.store(now.as_millis(), Relaxed);
    }

    /// When a provider last brought one.
    pub(crate) fn answered(&self) -> Option<Monotonic> {
        let at = self.answered_at.load(Relaxed);
        (at > 0).then(|| Monotonic::from_millis(at))
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
        pulse.waits(ms(100), Duration::from_millis(50));
        pulse.waits(ms(110), Duration::from_millis(10));
        assert!(pulse.is_at_work(ms(149)));
        assert!(!pulse.is_at_work(ms(150)));
        assert_eq!(pulse.answered(), None);
        pulse.answers(ms(120));
        assert_eq!(pulse.answered(), Some(ms(120)));
    }
}
