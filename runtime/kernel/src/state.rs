//! What nodes remember, by scope (F-155): within bounds, and apart while their turn is a guess.
//!
//! Three scopes, told apart by type where nodes get at them: turn-ephemeral values go with their turn,
//! session-hot ones survive turns and restarts of their node but no migration, durable ones belong to
//! a store. Knows nothing of locks, tasks or stores.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rspp_proto::{Monotonic, NodeId, TurnNumber, spec::Consistency};
use thiserror::Error;

/// Most keys of one node in one scope.
pub const MAX_KEYS: usize = 256;

/// Why a value is not kept.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// The node's values would be too large.
    #[error("`{key}` would make it {bytes} bytes; at most {limit} are kept")]
    TooLarge {
        /// The key.
        key: String,
        /// What it would come to.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// The node has too many keys.
    #[error("`{key}` is one key too many; at most {MAX_KEYS} are kept")]
    TooMany {
        /// The key.
        key: String,
    },
    /// The writer's turn is over: what it writes now is nobody's business (P1).
    #[error("the turn is over")]
    TurnOver,
    /// The writer's placement was replaced, or the store did not take it.
    #[error("{0}")]
    Store(String),
}

/// One node's values in one scope; JSON texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values {
    values: BTreeMap<String, Arc<str>>,
    bytes: usize,
}

impl Values {
    /// A value.
    pub fn get(&self, key: &str) -> Option<Arc<str>> {
        self.values.get(key).cloned()
    }

    /// Keeps a value, if all together stay within `limit` bytes.
    pub fn put(&mut self, key: &str, value: Arc<str>, limit: usize) -> Result<(), StateError> {
        let replaced = self.values.get(key).map(|old| key.len() + old.len());
        if replaced.is_none() && self.values.len() == MAX_KEYS {
            return Err(StateError::TooMany {
                key: key.to_owned(),
            });
        }
        let bytes = self.bytes - replaced.unwrap_or(0) + key.len() + value.len();
        if bytes > limit {
            return Err(StateError::TooLarge {
                key: key.to_owned(),
                bytes,
                limit,
            });
        }
        self.bytes = bytes;
        self.values.insert(key.to_owned(), value);
        Ok(())
    }

    /// Forgets a value.
    pub fn remove(&mut self, key: &str) {
        if let Some(old) = self.values.remove(key) {
            self.bytes -= key.len() + old.len();
        }
    }

    /// How much is kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Turn-ephemeral state: of one turn, by node.
#[derive(Debug, Default)]
pub struct TurnValues {
    nodes: BTreeMap<NodeId, Values>,
}

impl TurnValues {
    /// A node's values.
    pub fn of(&mut self, node: &NodeId) -> &mut Values {
        self.nodes.entry(node.clone()).or_default()
    }

    /// How much is kept.
    pub fn bytes(&self) -> usize {
        self.nodes.values().map(Values::bytes).sum()
    }
}

/// Session-hot state: of one session, by node. What a guess writes is kept apart until it is right (P9).
#[derive(Debug, Default)]
pub struct HotValues {
    nodes: BTreeMap<NodeId, Values>,
    guess: Option<(TurnNumber, BTreeMap<NodeId, Values>)>,
}

impl HotValues {
    /// A node's values, as a turn sees them; `None` is the session itself.
    pub fn of(&self, node: &NodeId, turn: Option<TurnNumber>) -> Option<&Values> {
        let staged = self
            .guess
            .as_ref()
            .filter(|(guess, _)| Some(*guess) == turn);
        let staged = staged.and_then(|(_, nodes)| nodes.get(node));
        staged.or_else(|| self.nodes.get(node))
    }

    /// A node's values, for a turn to change.
    pub fn of_mut(&mut self, node: &NodeId, turn: Option<TurnNumber>) -> &mut Values {
        match &mut self.guess {
            Some((guess, staged)) if Some(*guess) == turn => {
                let before = self.nodes.get(node);
                staged
                    .entry(node.clone())
                    .or_insert_with(|| before.cloned().unwrap_or_default())
            }
            Some(_) | None => self.nodes.entry(node.clone()).or_default(),
        }
    }

    /// A guess begins: what it writes is kept apart.
    pub fn stage(&mut self, turn: TurnNumber) {
        self.guess = Some((turn, BTreeMap::new()));
    }

    /// The guess was right: what it wrote counts.
    pub fn promote(&mut self, turn: TurnNumber) {
        if let Some((_, staged)) = self.guess.take_if(|(guess, _)| *guess == turn) {
            self.nodes.extend(staged);
        }
    }

    /// The guess was wrong: what it wrote never was.
    pub fn discard(&mut self, turn: TurnNumber) {
        self.guess.take_if(|(guess, _)| *guess == turn);
    }

    /// How much is kept.
    pub fn bytes(&self) -> usize {
        let staged = self.guess.iter().flat_map(|(_, nodes)| nodes.values());
        let all = self.nodes.values().chain(staged);
        all.map(Values::bytes).sum()
    }
}

/// Whether what was read at `read_at` may be given out at `now`.
pub fn is_fresh(consistency: Consistency, read_at: Monotonic, now: Monotonic) -> bool {
    match consistency {
        Consistency::Strong => false,
        Consistency::BoundedStaleness { max_staleness_ms } => {
            now.since(read_at) <= Duration::from_millis(max_staleness_ms)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> NodeId {
        NodeId::new(id).unwrap()
    }

    #[test]
    fn values_are_bounded_and_counted() {
        let mut values = Values::default();
        assert_eq!(values.put("ab", "12345678".into(), 10), Ok(()));
        assert_eq!(values.bytes(), 10);
        let too_large = StateError::TooLarge {
            key: "c".to_owned(),
            bytes: 12,
            limit: 10,
        };
        assert_eq!(values.put("c", "1".into(), 10), Err(too_large));
        assert_eq!(values.put("ab", "1".into(), 10), Ok(()));
        assert_eq!(values.bytes(), 3);
        values.remove("ab");
        assert_eq!(values.bytes(), 0);
        for nth in 0..MAX_KEYS {
            assert_eq!(values.put(&nth.to_string(), "0".into(), 10_000), Ok(()));
        }
        let error = values.put("more", "0".into(), 10_000);
        assert!(matches!(error, Err(StateError::TooMany { .. })));
    }

    /// P9: a guess sees what it writes, and nobody else does before it is right.
    #[test]
    fn what_a_guess_writes_is_kept_apart() {
        let (a, turn) = (node("a"), Some(TurnNumber(2)));
        let mut hot = HotValues::default();
        hot.of_mut(&a, None).put("k", "1".into(), 100).unwrap();
        hot.stage(TurnNumber(2));
        hot.of_mut(&a, turn).put("k", "2".into(), 100).unwrap();
        let read = |hot: &HotValues, turn| hot.of(&a, turn).unwrap().get("k").unwrap().to_string();
        assert_eq!(
            (read(&hot, turn).as_str(), read(&hot, None).as_str()),
            ("2", "1")
        );
        assert_eq!(hot.bytes(), 4);
        hot.discard(TurnNumber(2));
        assert_eq!(read(&hot, turn), "1");
        hot.stage(TurnNumber(3));
        let turn = Some(TurnNumber(3));
        hot.of_mut(&a, turn).put("k", "3".into(), 100).unwrap();
        hot.promote(TurnNumber(3));
        assert_eq!(read(&hot, None), "3");
    }

    /// F-155: how old a value may be is declared.
    #[test]
    fn freshness_is_what_was_declared() {
        let at = Monotonic::from_millis;
        assert!(!is_fresh(Consistency::Strong, at(5), at(5)));
        let bounded = Consistency::BoundedStaleness {
            max_staleness_ms: 100,
        };
        assert!(is_fresh(bounded, at(0), at(100)));
        assert!(!is_fresh(bounded, at(0), at(101)));
    }
}
