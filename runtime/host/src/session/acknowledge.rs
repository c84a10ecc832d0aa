//! Waiting for the nodes of a cancelled turn to say that they have heard.
//!
//! The fence has fallen by then: what is waited for is evidence (lifecycle.md §6), and no longer
//! than the grace.

use std::time::Duration;

use rspp_kernel::graph::Scope;
use rspp_proto::{Monotonic, TurnNumber};

use super::Session;

/// The nodes of a cancelled turn that have not answered.
pub(super) struct Unheard {
    turn: TurnNumber,
    /// Older cancels, of a part of the turn, have acknowledgements of their own.
    accepted_at: Monotonic,
    nodes: usize,
    /// When it is no longer waited for them.
    until: Monotonic,
}

impl Unheard {
    pub(super) fn until(&self) -> Monotonic {
        self.until
    }
}

impl Session {
    /// The turn was cancelled at `at`: its end is arbitrated once its nodes have acknowledged that,
    /// or their grace is over.
    pub(super) fn await_acknowledgement(&mut self, at: Monotonic, turn: TurnNumber) {
        let Some(running) = self.turn.as_ref().filter(|running| running.number == turn) else {
            return;
        };
        let graph = &self.setup.blueprint.graph;
        self.unheard = Some(Unheard {
            turn,
            accepted_at: at,
            nodes: graph.hosts(Scope::Turn).count(),
            until: at + running.cancel_grace,
        });
    }

    /// A node heard of a cancel at `at`, `after` it was accepted.
    pub(super) fn acknowledged(&mut self, turn: TurnNumber, at: Monotonic, after: Duration) {
        let Some(unheard) = self.unheard.as_mut().filter(|unheard| unheard.turn == turn) else {
            return;
        };
        if at < unheard.accepted_at + after {
            return;
        }
        unheard.nodes = unheard.nodes.saturating_sub(1);
        if unheard.nodes == 0 {
            self.ledger.acknowledged(turn, at);
            self.unheard = None;
        }
    }

    /// A node of the turn is gone and will not answer, nor will the rest of it in order.
    pub(super) fn give_up_acknowledgement(&mut self, turn: TurnNumber) {
        self.unheard.take_if(|unheard| unheard.turn == turn);
    }

    /// Ends an arbitration point, unless it is still waited for a cancelled turn's nodes.
    pub(super) fn settle(&mut self, now: Monotonic) {
        self.unheard.take_if(|unheard| unheard.until <= now);
        if self.unheard.is_none() {
            self.kernel.settle();
        }
    }
}
