//! Who goes on when a node fails: its standbys, in order, and what they have to be told.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
};

use rspp_kernel::graph::Stream;

use super::{NodeMaker, NodeSettings, OutEdge};
use crate::{
    event::Arrival,
    memory::{Meter, Share},
};

/// A node that takes over when the one before it fails (F-007, F-133).
#[derive(Clone)]
pub(crate) struct Standby {
    pub(crate) settings: NodeSettings,
    pub(crate) make: NodeMaker,
    pub(crate) outputs: Vec<OutEdge>,
}

/// Texts kept for a standby; a node that leaves more unsettled cannot be stood in for.
const JOURNAL: usize = 256;

/// A node's standbys, shared by all incarnations of its host.
#[derive(Clone, Default)]
pub(crate) struct Succession {
    standbys: Arc<[Standby]>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// How many times the host was started.
    lives: u32,
    /// Standbys that have been called upon.
    used: usize,
    /// Whether text of the model was passed on: that cannot be said again by another.
    said: bool,
    /// Text that the node was given and has not settled; what its standby is told again.
    journal: VecDeque<Arrival>,
    share: Option<Share>,
}

impl Succession {
    pub(crate) fn new(standbys: Vec<Standby>, meter: &Arc<Meter>) -> Self {
        let share = (!standbys.is_empty()).then(|| Share::of(meter));
        let state = State {
            share,
            ..State::default()
        };
        Self {
            standbys: standbys.into(),
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while locked")
    }

    /// Counts a start of the host. Returns how many there were before.
    pub(super) fn begin_life(&self) -> u32 {
        let mut state = self.state();
        let before = state.lives;
        state.lives += 1;
        before
    }

    /// The standby that runs now; `None` while the first node does.
    pub(super) fn current(&self) -> Option<&Standby> {
        let used = self.state().used;
        used.checked_sub(1).map(|at| &self.standbys[at])
    }

    /// Whether somebody could take over now.
    pub(super) fn has_next(&self) -> bool {
        if self.standbys.is_empty() {
            return false;
        }
        let state = self.state();
        !state.said && state.used < self.standbys.len()
    }

    /// Calls upon the next standby; `None` if there is none or it is too late.
    pub(super) fn advance(&self) -> Option<&Standby> {
        if !self.has_next() {
            return None;
        }
        self.state().used += 1;
        self.current()
    }

    /// Text of the model was passed on.
    pub(super) fn said(&self) {
        if !self.standbys.is_empty() {
            self.state().said = true;
        }
    }

    /// Whether a standby is told of an arrival again.
    pub(super) fn keeps(arrival: &Arrival) -> bool {
        matches!(arrival, Arrival::Event { event, .. }
            if Stream::of(&event.payload) == Some(Stream::Text))
    }

    /// Keeps what the node is given, for whoever may have to go on.
    pub(super) fn note(&self, arrival: &Arrival) {
        if self.standbys.is_empty() {
            return;
        }
        if Self::keeps(arrival) {
            let mut state = self.state();
            if state.journal.len() < JOURNAL {
                state.journal.push_back(arrival.clone());
                state.account();
            }
        }
    }

    /// Whether anything is kept: there are standbys.
    pub(super) fn is_kept(&self) -> bool {
        !self.standbys.is_empty()
    }

    /// Forgets all that was kept: what the node has said since stands for it.
    pub(super) fn settle_all(&self) {
        if self.is_kept() {
            self.take_journal();
        }
    }

    /// Forgets the oldest `count` of what was kept.
    pub(super) fn settle(&self, count: usize) {
        let mut state = self.state();
        let count = count.min(state.journal.len());
        state.journal.drain(..count);
        state.account();
    }

    /// What was kept, for the node that goes on.
    pub(super) fn take_journal(&self) -> VecDeque<Arrival> {
        let mut state = self.state();
        let journal = std::mem::take(&mut state.journal);
        state.account();
        journal
    }

    /// A cancelled node leaves nothing to be told again.
    pub(super) fn forget(&self) {
        self.settle_all();
    }
}

impl State {
    fn account(&mut self) {
        let bytes = self.journal.iter().map(Arrival::bytes).sum();
        if let Some(share) = &mut self.share {
            share.hold(bytes);
        }
    }
}
