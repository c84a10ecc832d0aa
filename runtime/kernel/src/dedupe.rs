//! One effect for what is sent more than once (F-158).
//!
//! Whoever sends an event again under the same key, after a timeout or a reconnect, means the same
//! event. Keys come from outside, so only the newest are remembered.

use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZeroUsize,
};

/// Whether a key was seen before.
#[must_use = "an event that was seen before must have no second effect"]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen<L> {
    /// Never, as far as is remembered: the event takes effect.
    First,
    /// Before; what it says of the first time.
    Again {
        /// What was noted the first time: the lineage of the repetition.
        first: L,
        /// How often it was sent, the first time included.
        times: u64,
    },
}

/// Remembers keys, and what was noted when they were first seen.
#[derive(Clone, Debug)]
pub struct Registry<K, L> {
    seen: BTreeMap<K, (L, u64)>,
    /// Keys, oldest first.
    order: VecDeque<K>,
    capacity: NonZeroUsize,
    forgotten: u64,
}

impl<K: Ord + Clone, L: Clone> Registry<K, L> {
    /// A registry that remembers so many keys.
    pub fn new(capacity: NonZeroUsize) -> Self {
        Self {
            seen: BTreeMap::new(),
            order: VecDeque::new(),
            capacity,
            forgotten: 0,
        }
    }

    /// Asks for a key, and remembers it with its lineage if it is new.
    pub fn see(&mut self, key: K, lineage: impl FnOnce() -> L) -> Seen<L> {
        if let Some((first, times)) = self.seen.get_mut(&key) {
            *times += 1;
            return Seen::Again {
                first: first.clone(),
                times: *times,
            };
        }
        if self.order.len() == self.capacity.get()
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
            self.forgotten += 1;
        }
        self.order.push_back(key.clone());
        self.seen.insert(key, (lineage(), 1));
        Seen::First
    }

    /// Keys that are remembered.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Keys that had to be forgotten: a repetition of theirs would take effect again.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn registry(capacity: usize) -> Registry<u8, usize> {
        Registry::new(NonZeroUsize::new(capacity).unwrap())
    }

    /// F-158: a repetition names the first time.
    #[test]
    fn a_repetition_is_told_from_the_first_time() {
        let mut registry = registry(4);
        assert_eq!(registry.see(1, || 10), Seen::First);
        assert_eq!(registry.see(2, || 11), Seen::First);
        let again = |times| Seen::Again { first: 10, times };
        assert_eq!(registry.see(1, || 12), again(2));
        assert_eq!(registry.see(1, || 13), again(3));
    }

    proptest! {
        /// F-158: within what is remembered each key takes effect exactly once, and memory is bounded.
        #[test]
        fn each_key_takes_effect_once(keys in prop::collection::vec(0u8..30, 0..300)) {
            let (mut wide, mut narrow) = (registry(30), registry(5));
            let mut effects = BTreeSet::new();
            for (at, key) in keys.into_iter().enumerate() {
                if wide.see(key, || at) == Seen::First {
                    prop_assert!(effects.insert(key), "{} twice", key);
                }
                let _bounded = narrow.see(key, || at);
                prop_assert!(narrow.len() <= 5);
                prop_assert_eq!(narrow.seen.len(), narrow.order.len());
            }
            prop_assert_eq!(wide.forgotten(), 0);
        }
    }
}
