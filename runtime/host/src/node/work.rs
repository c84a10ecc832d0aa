//! What nodes did for a turn: since when, until when, how often, for how long (F-070).
//!
//! Looked at only where traces or measurements are made; then each handler costs one short lock.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rspp_proto::{Monotonic, NodeId, TurnNumber};
use rspp_timeline::NodeWork;

/// What the nodes of one session did since the turn before.
#[derive(Debug, Default)]
pub(crate) struct WorkBook {
    /// By the turn that they are of, or the session.
    turns: Mutex<BTreeMap<Option<TurnNumber>, BTreeMap<NodeId, Work>>>,
}

#[derive(Debug)]
struct Work {
    began: Monotonic,
    ended: Monotonic,
    handled: u64,
    busy_us: u64,
}

impl WorkBook {
    /// A handler is over.
    pub(crate) fn did(
        &self,
        turn: Option<TurnNumber>,
        node: &NodeId,
        began: Monotonic,
        ended: Monotonic,
    ) {
        let mut turns = self.lock();
        let nodes = turns.entry(turn).or_default();
        let busy_us = ended.since(began).as_micros() as u64;
        if let Some(work) = nodes.get_mut(node) {
            work.ended = ended;
            work.handled += 1;
            work.busy_us += busy_us;
        } else {
            let work = Work {
                began,
                ended,
                handled: 1,
                busy_us,
            };
            nodes.insert(node.clone(), work);
        }
    }

    /// What was done for a turn that is over: by its own nodes, and by those that listen since the turn
    /// before. What guesses before it did is forgotten.
    pub(crate) fn take(&self, turn: TurnNumber) -> Vec<NodeWork> {
        let mut turns = self.lock();
        let later = turns.split_off(&Some(turn.next()));
        let over = std::mem::replace(&mut *turns, later);
        drop(turns);
        let wanted = |of: &Option<TurnNumber>| of.is_none_or(|it| it == turn);
        let nodes = over.into_iter().filter(|(of, _)| wanted(of));
        nodes
            .flat_map(|(_, nodes)| nodes)
            .map(|(node_id, work)| NodeWork {
                node_id,
                began_at: work.began,
                ended_at: work.ended,
                handled: work.handled,
                busy_us: work.busy_us,
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Option<TurnNumber>, BTreeMap<NodeId, Work>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-070: work is of one turn; what listens, of the turn that it led to.
    #[test]
    fn work_is_counted_once() {
        let book = WorkBook::default();
        let node = |name: &str| NodeId::new(name).unwrap();
        let at = Monotonic::from_millis;
        let (first, second) = (TurnNumber(1), TurnNumber(2));
        book.did(None, &node("vad"), at(0), at(1));
        book.did(None, &node("vad"), at(20), at(22));
        book.did(Some(first), &node("llm"), at(30), at(40));
        book.did(Some(second), &node("llm"), at(35), at(36));
        let names = |work: &[NodeWork]| -> Vec<(String, u64, u64)> {
            let told = |it: &NodeWork| (it.node_id.to_string(), it.handled, it.busy_us);
            work.iter().map(told).collect()
        };
        let of_first = book.take(first);
        assert_eq!(
            names(&of_first),
            [("vad".to_owned(), 2, 3_000), ("llm".to_owned(), 1, 10_000)]
        );
        assert_eq!(
            (of_first[0].began_at, of_first[0].ended_at),
            (at(0), at(22))
        );
        assert_eq!(names(&book.take(second)), [("llm".to_owned(), 1, 1_000)]);
        assert_eq!(names(&book.take(second)), []);
    }
}
