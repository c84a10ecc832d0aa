//! How a session is doing, for whoever asks from outside.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use rspp_kernel::{SessionState, plan::ResolvedPolicy};
use rspp_proto::NodeId;

use crate::report::{DeadLetter, Degradation};

/// Degradations that are kept of one session; more kinds of trouble than that are one.
const MAX_DEGRADATIONS: usize = 32;
/// Dead letters that are kept of one session; the rest is counted.
pub(super) const MAX_DEAD_LETTERS: usize = 64;

/// How a session stands.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionStatus {
    /// Where it is in its life.
    pub state: SessionState,
    /// What is not as it should be; empty if all is well.
    pub degraded: Vec<Degradation>,
    /// The first events that nodes could not deal with (F-132).
    pub dead_letters: Vec<DeadLetter>,
    /// How many of these there were.
    pub dead_lettered: u64,
    /// Moves that session or turns were asked to make where they could not, by code (F-138, F-139,
    /// F-141); the codes are the kernel's own words.
    pub moves_refused: BTreeMap<&'static str, u64>,
}

impl SessionStatus {
    /// Whether something is not as it should be.
    pub fn is_degraded(&self) -> bool {
        !self.degraded.is_empty()
    }
}

/// The status that a session and those who look at it share.
#[derive(Debug)]
pub(crate) struct Health {
    status: Mutex<SessionStatus>,
    /// What the newest turn runs with.
    policy: Mutex<Option<Arc<ResolvedPolicy>>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            status: Mutex::new(SessionStatus {
                state: SessionState::Connecting,
                degraded: Vec::new(),
                dead_letters: Vec::new(),
                dead_lettered: 0,
                moves_refused: BTreeMap::new(),
            }),
            policy: Mutex::default(),
        }
    }
}

impl Health {
    fn status(&self) -> MutexGuard<'_, SessionStatus> {
        self.status.lock().expect("no code panics while locked")
    }

    pub(crate) fn read(&self) -> SessionStatus {
        self.status().clone()
    }

    /// The session runs with this from now on.
    pub(crate) fn runs(&self, policy: &Arc<ResolvedPolicy>) {
        *self.policy.lock().expect("no code panics while locked") = Some(Arc::clone(policy));
    }

    /// What the session runs with.
    pub(crate) fn policy(&self) -> Option<Arc<ResolvedPolicy>> {
        self.policy
            .lock()
            .expect("no code panics while locked")
            .clone()
    }

    pub(super) fn enter(&self, state: SessionState) {
        self.status().state = state;
    }

    /// Notes a degradation; `false` if it is known already.
    pub(super) fn degrade(&self, degradation: Degradation) -> bool {
        let mut status = self.status();
        let is_known = |known: &Degradation| {
            known.reason == degradation.reason && known.node == degradation.node
        };
        if status.degraded.len() == MAX_DEGRADATIONS || status.degraded.iter().any(is_known) {
            return false;
        }
        status.degraded.push(degradation);
        true
    }

    /// Whether a node is not as it should be for that reason.
    pub(super) fn is_degraded_by(&self, node: &NodeId, reason: &str) -> bool {
        let status = self.status();
        let mut degraded = status.degraded.iter();
        degraded.any(|it| it.node.as_ref() == Some(node) && it.reason == reason)
    }

    /// Whether another dead letter would be kept.
    pub(super) fn takes_letters(&self) -> bool {
        self.status().dead_letters.len() < MAX_DEAD_LETTERS
    }

    /// Counts a move that was refused; how many there have been.
    pub(crate) fn refuse_move(&self, code: &'static str) -> u64 {
        let mut status = self.status();
        *status.moves_refused.entry(code).or_default() += 1;
        status.moves_refused.values().sum()
    }

    pub(super) fn bury(&self, letter: Option<DeadLetter>) {
        let mut status = self.status();
        status.dead_lettered += 1;
        status.dead_letters.extend(letter);
    }
}
