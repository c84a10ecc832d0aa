//! What an edge remembers of synchronised groups and of breaks in its stream.

use std::collections::VecDeque;

/// Groups remembered, so that late members go the same way as the first.
const REMEMBERED: usize = 16;
/// Breaks that a consumer has not come to yet; beyond that neighbours are one.
const MAX_BREAKS: usize = 64;

/// Why a sync domain has to reset (event-abi.md §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BreakReason {
    /// The whole group is gone, on all edges of the domain.
    AtomicDrop,
    /// An item is gone and the policy wants downstream to reset.
    DropWithDiscontinuity,
    /// A part of a group was delivered before the rest was lost.
    PartialLoss,
}

impl BreakReason {
    /// The reason that a `discontinuity` signal carries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AtomicDrop => "sync_atomic_drop",
            Self::DropWithDiscontinuity => "sync_drop_with_discontinuity",
            Self::PartialLoss => "sync_domain_partial_loss",
        }
    }
}

/// The newest few groups of one sort.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<u64>);

impl Recent {
    pub(super) fn contains(&self, group: u64) -> bool {
        self.0.contains(&group)
    }

    /// Remembers a group; `false` if it is remembered already.
    pub(super) fn note(&mut self, group: u64) -> bool {
        if self.contains(group) {
            return false;
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(group);
        true
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Places in the stream where something is missing and the consumer has to be told so, by the
/// ordinals of what is missing, rising.
#[derive(Debug, Default)]
pub(super) struct Breaks(VecDeque<(u64, BreakReason)>);

impl Breaks {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes that the `ordinal`-th item is missing. `is_between` says whether an item is still
    /// queued between two ordinals: without one, two breaks are one.
    pub(super) fn note(
        &mut self,
        ordinal: u64,
        reason: BreakReason,
        is_between: impl Fn(u64, u64) -> bool,
    ) {
        let at = self.0.partition_point(|(other, _)| *other < ordinal);
        let neighbours = [at.checked_sub(1), Some(at)].into_iter().flatten();
        for neighbour in neighbours {
            if let Some((other, known)) = self.0.get_mut(neighbour)
                && !is_between((*other).min(ordinal), (*other).max(ordinal))
            {
                *known = (*known).max(reason);
                return;
            }
        }
        if self.0.len() >= MAX_BREAKS {
            if let Some((_, known)) = self.0.back_mut() {
                *known = (*known).max(reason);
            }
            return;
        }
        self.0.insert(at, (ordinal, reason));
    }

    /// Takes the breaks before the `next`-th item: for the consumer they are one.
    pub(super) fn before(&mut self, next: u64) -> Option<BreakReason> {
        let mut found = None;
        while let Some((_, reason)) = self.0.front().copied().filter(|(at, _)| *at < next) {
            self.0.pop_front();
            found = found.max(Some(reason));
        }
        found
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
