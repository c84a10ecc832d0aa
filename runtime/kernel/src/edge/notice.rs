//! What an edge has to report, kept until the host takes it.

use std::collections::{VecDeque, vec_deque};

use rspp_proto::{EventId, SyncDomain, TurnNumber, spec::PressureAction};

use super::BreakReason;

/// Most sources that one merge names (event-abi.md §2).
pub const MAX_MERGE_SOURCES: usize = 64;

/// Notices kept before similar ones are folded together.
const SOFT_LIMIT: usize = 64;

/// Sequence numbers from `start` to `end`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceSpan {
    /// The first.
    pub start: u64,
    /// The last, at least `start`.
    pub end: u64,
}

impl SequenceSpan {
    fn of(sequence: u64) -> Self {
        Self {
            start: sequence,
            end: sequence,
        }
    }

    fn cover(&mut self, sequence: u64) {
        self.start = self.start.min(sequence);
        self.end = self.end.max(sequence);
    }
}

/// Which rule an item fell to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// `max_queue_items` was reached.
    Items,
    /// `max_queue_bytes` would have been passed.
    Bytes,
    /// The item waited longer than `max_queue_ms`.
    Age,
    /// The consumer lagged by more than `max_latency_contribution_ms`.
    Latency,
    /// Thinned out by `sample`.
    Sampled,
    /// A newer item took its place under `latest_only`.
    Superseded,
    /// The item alone is larger than `max_queue_bytes`.
    Oversized,
    /// The sender waited for `max_block_time_ms` in vain.
    BlockTimeout,
    /// The sender had no credit, and no time left to wait for it.
    NoCredit,
    /// Its synchronised group lost another member (`atomic_drop`).
    GroupLost,
}

impl DropReason {
    /// The rule's name, for evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Items => "max_queue_items",
            Self::Bytes => "max_queue_bytes",
            Self::Age => "max_queue_ms",
            Self::Latency => "max_latency_contribution_ms",
            Self::Sampled => "sample",
            Self::Superseded => "latest_only",
            Self::Oversized => "larger_than_max_queue_bytes",
            Self::BlockTimeout => "max_block_time_ms",
            Self::NoCredit => "no_credit",
            Self::GroupLost => "sync_atomic_drop",
        }
    }

    /// The reason that a `drop_notice` signal carries (event-abi.md §4).
    pub fn signal_reason(self) -> &'static str {
        match self {
            Self::GroupLost => "sync_atomic_drop",
            Self::Items
            | Self::Bytes
            | Self::Age
            | Self::Latency
            | Self::Sampled
            | Self::Superseded
            | Self::Oversized
            | Self::BlockTimeout
            | Self::NoCredit => "queue_pressure_drop",
        }
    }
}

/// Which mark was crossed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    /// Items queued.
    Items,
    /// Milliseconds that the oldest item has waited.
    Millis,
    /// Items queued, by the marks of the lane.
    Lane,
}

/// One event that went into a merge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MergeSource {
    /// Its runtime sequence.
    pub sequence: u64,
    /// Its id, if the item knows it.
    pub event: Option<EventId>,
}

/// What a merged item was made of: 2 to [`MAX_MERGE_SOURCES`] sources, sorted by sequence, then id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    sources: Vec<MergeSource>,
}

impl Lineage {
    pub(super) fn new(first: MergeSource) -> Self {
        Self {
            sources: vec![first],
        }
    }

    /// Adds a source; `false` if there is no room for it.
    pub(super) fn add(&mut self, source: MergeSource) -> bool {
        if self.sources.len() >= MAX_MERGE_SOURCES {
            return false;
        }
        if let Err(at) = self.sources.binary_search(&source) {
            self.sources.insert(at, source);
        }
        true
    }

    pub(super) fn is_full(&self) -> bool {
        self.sources.len() >= MAX_MERGE_SOURCES
    }

    /// The sources, in order.
    pub fn sources(&self) -> &[MergeSource] {
        &self.sources
    }

    /// From the first source to the last.
    pub fn span(&self) -> SequenceSpan {
        let first = self.sources.first().map_or(0, |source| source.sequence);
        let last = self.sources.last().map_or(first, |source| source.sequence);
        SequenceSpan {
            start: first,
            end: last,
        }
    }
}

/// One fact about an edge that must reach its sender or the timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EdgeNotice {
    /// A high mark was crossed; comes just before [`EdgeNotice::FlowXoff`].
    Watermark {
        /// Which mark.
        mark: Mark,
        /// Where the edge stood, in the mark's unit.
        level: u64,
    },
    /// What the edge's policy wants to follow from the pressure; comes just after it.
    Act(PressureAction),
    /// Stop sending.
    FlowXoff,
    /// Go on sending.
    FlowXon,
    /// The sender may send this many more items (credit and hybrid modes).
    Credit {
        /// At least 1.
        amount: u64,
    },
    /// Items were dropped.
    Drop {
        /// Their sequence numbers. Solid unless notices were left lying around for so long that
        /// some had to be folded together.
        range: SequenceSpan,
        /// The rule they fell to.
        reason: DropReason,
        /// How many; always exact.
        count: u64,
        /// The turn that they were of; `None` if of none, or if notices of several were folded.
        turn: Option<TurnNumber>,
    },
    /// A drop tore what is synchronised: downstream must reset that domain.
    Discontinuity {
        /// The streams that have to reset.
        domain: SyncDomain,
        /// The last sequence number that was lost.
        at: u64,
        /// Why.
        reason: BreakReason,
        /// Whether every edge of the domain has to (`scope: plan_wide`).
        wide: bool,
    },
    /// A synchronised group is lost, and every other edge of its domain has to give up its part
    /// (`scope: plan_wide`).
    GroupLost {
        /// The domain.
        domain: SyncDomain,
        /// The group.
        group: u64,
        /// The sequence number of the member that was lost first.
        at: u64,
    },
    /// An item that left the edge was made of several.
    Merge {
        /// Of which.
        lineage: Lineage,
        /// Sources that lineages folded into this notice could no longer name.
        unnamed: u64,
    },
}

/// A bounded list of notices that never loses a count.
#[derive(Debug, Default)]
pub(super) struct Notices {
    list: VecDeque<EdgeNotice>,
    /// The edge-local ordinal of the newest reported drop, to tell neighbours from strangers.
    last_drop: Option<u64>,
}

impl Notices {
    pub(super) fn drain(&mut self) -> vec_deque::Drain<'_, EdgeNotice> {
        self.last_drop = None;
        self.list.drain(..)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Reports the drop of the `ordinal`-th item offered to the edge.
    pub(super) fn dropped(
        &mut self,
        ordinal: u64,
        sequence: u64,
        of: Option<TurnNumber>,
        why: DropReason,
    ) {
        let adjacent = self.last_drop.is_some_and(|last| last + 1 == ordinal);
        let full = self.list.len() >= SOFT_LIMIT;
        let open = self.list.iter_mut().rev().find_map(|notice| match notice {
            EdgeNotice::Drop {
                range,
                reason,
                count,
                turn,
            } => Some((range, *reason, count, *turn)),
            EdgeNotice::Watermark { .. }
            | EdgeNotice::Act(_)
            | EdgeNotice::FlowXoff
            | EdgeNotice::FlowXon
            | EdgeNotice::Credit { .. }
            | EdgeNotice::Discontinuity { .. }
            | EdgeNotice::GroupLost { .. }
            | EdgeNotice::Merge { .. } => None,
        });
        self.last_drop = Some(ordinal);
        if let Some((range, reason, count, turn)) = open
            && reason == why
            && turn == of
            && adjacent
        {
            range.cover(sequence);
            *count += 1;
            return;
        }
        if full {
            for notice in self.list.iter_mut().rev() {
                if let EdgeNotice::Drop {
                    range,
                    reason,
                    count,
                    turn,
                } = notice
                    && *reason == why
                {
                    range.cover(sequence);
                    *count += 1;
                    *turn = turn.filter(|turn| Some(*turn) == of);
                    return;
                }
            }
        }
        self.list.push_back(EdgeNotice::Drop {
            range: SequenceSpan::of(sequence),
            reason: why,
            count: 1,
            turn: of,
        });
    }

    pub(super) fn merged(&mut self, lineage: Lineage) {
        if self.list.len() >= SOFT_LIMIT {
            for notice in self.list.iter_mut().rev() {
                if let EdgeNotice::Merge {
                    lineage: open,
                    unnamed,
                } = notice
                {
                    for source in lineage.sources {
                        *unnamed += u64::from(!open.add(source));
                    }
                    return;
                }
            }
        }
        self.list.push_back(EdgeNotice::Merge {
            lineage,
            unnamed: 0,
        });
    }

    pub(super) fn discontinuity(
        &mut self,
        domain: &SyncDomain,
        sequence: u64,
        why: BreakReason,
        wide: bool,
    ) {
        // A reset asked for twice in a row is one reset.
        let reach = if self.list.len() >= SOFT_LIMIT {
            self.list.len()
        } else {
            1
        };
        for notice in self.list.iter_mut().rev().take(reach) {
            if let EdgeNotice::Discontinuity { at, reason, .. } = notice {
                *at = (*at).max(sequence);
                *reason = (*reason).max(why);
                return;
            }
        }
        self.list.push_back(EdgeNotice::Discontinuity {
            domain: domain.clone(),
            at: sequence,
            reason: why,
            wide,
        });
    }

    /// A group is not worth more than the others: of too many the newest are spread.
    pub(super) fn group_lost(&mut self, domain: SyncDomain, group: u64, at: u64) {
        if self.list.len() >= SOFT_LIMIT {
            let oldest = self
                .list
                .iter()
                .position(|notice| matches!(notice, EdgeNotice::GroupLost { .. }));
            if let Some(oldest) = oldest {
                self.list.remove(oldest);
            }
        }
        self.list
            .push_back(EdgeNotice::GroupLost { domain, group, at });
    }

    /// Credit that nobody has fetched yet adds up.
    pub(super) fn credit(&mut self, more: u64) {
        for notice in self.list.iter_mut().rev() {
            if let EdgeNotice::Credit { amount } = notice {
                *amount += more;
                return;
            }
        }
        self.list.push_back(EdgeNotice::Credit { amount: more });
    }

    /// A mark was crossed where credit holds the sender back.
    pub(super) fn marked(&mut self, mark: Mark, level: u64) {
        if self.list.len() < SOFT_LIMIT {
            self.list.push_back(EdgeNotice::Watermark { mark, level });
        }
    }

    pub(super) fn acted(&mut self, action: PressureAction) {
        if self.list.len() < SOFT_LIMIT {
            self.list.push_back(EdgeNotice::Act(action));
        }
    }

    pub(super) fn pressed(&mut self, mark: Mark, level: u64) {
        // A release that nobody has seen yet is taken back, so that the two keep alternating.
        if self.list.len() >= SOFT_LIMIT && self.take_back(&EdgeNotice::FlowXon) {
            return;
        }
        self.list.push_back(EdgeNotice::Watermark { mark, level });
        self.list.push_back(EdgeNotice::FlowXoff);
    }

    pub(super) fn released(&mut self) {
        if self.list.len() >= SOFT_LIMIT && self.take_back(&EdgeNotice::FlowXoff) {
            return;
        }
        self.list.push_back(EdgeNotice::FlowXon);
    }

    /// Removes `flow` if it is the newest flow notice.
    fn take_back(&mut self, flow: &EdgeNotice) -> bool {
        let newest = self
            .list
            .iter()
            .rposition(|n| matches!(n, EdgeNotice::FlowXoff | EdgeNotice::FlowXon));
        match newest {
            Some(at) if self.list[at] == *flow => {
                self.list.remove(at);
                // A stop is announced by the watermark just before it.
                if *flow == EdgeNotice::FlowXoff && at > 0 {
                    self.list.remove(at - 1);
                }
                true
            }
            Some(_) | None => false,
        }
    }
}
