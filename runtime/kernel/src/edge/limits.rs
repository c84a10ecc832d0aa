//! A policy as a buffer checks it.

use std::time::Duration;

use rspp_proto::{
    SyncDomain,
    spec::{
        BoundAction, BoundActions, EdgeBufferPolicy, Marks, PressureAction, Strategy, SyncPolicy,
        SyncScope, Watermarks,
    },
};

use super::DropReason;

#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) strategy: Strategy,
    actions: BoundActions,
    /// Whether any bound stops the sender.
    pub(super) blocks: bool,
    pub(super) items: usize,
    pub(super) bytes: usize,
    pub(super) age: Duration,
    pub(super) latency: Duration,
    pub(super) block_time: Duration,
    pub(super) cadence: Option<Duration>,
    pub(super) marks: Watermarks,
    /// Whether the marks in items are the lane's, and not the edge's own.
    pub(super) is_lane_marked: bool,
    pub(super) on_high: Option<PressureAction>,
    pub(super) sync: Option<Sync>,
    /// Whether those who share the edge are served in turn.
    pub(super) fair: bool,
}

/// How groups are dropped.
#[derive(Clone, Debug)]
pub(super) struct Sync {
    pub(super) policy: SyncPolicy,
    pub(super) domain: Option<SyncDomain>,
    pub(super) wide: bool,
}

/// Which end of the queue gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Give {
    Oldest,
    Newest,
}

impl Limits {
    /// The edge's bounds. Of its own marks in items and the lane's, the lower ones count.
    pub(super) fn new(policy: &EdgeBufferPolicy, strategy: Strategy, lane: Option<Marks>) -> Self {
        let items = usize::try_from(policy.max_queue_items).unwrap_or(usize::MAX);
        let items = items.max(1);
        let own = policy.watermarks.queue_items;
        let lower = lane.filter(|lane| own.is_none_or(|own| lane.high < own.high));
        // A mark above the bound could never be reached.
        let queue_items = lower.or(own).map(|marks| Marks {
            high: marks.high.min(items as u64),
            low: marks.low.min((items as u64) - 1),
        });
        let actions = policy.actions.unwrap_or_default();
        Self {
            strategy,
            actions,
            blocks: strategy == Strategy::Block || actions.block(),
            items,
            bytes: usize::try_from(policy.max_queue_bytes).unwrap_or(usize::MAX),
            age: Duration::from_millis(policy.max_queue_ms),
            latency: Duration::from_millis(policy.max_latency_contribution_ms),
            block_time: Duration::from_millis(policy.max_block_time_ms.unwrap_or(0)),
            cadence: policy.coalesce_ms.map(Duration::from_millis),
            marks: Watermarks {
                queue_items,
                queue_ms: policy.watermarks.queue_ms,
            },
            is_lane_marked: lower.is_some(),
            on_high: policy.on_high,
            sync: policy.sync_drop_policy.as_ref().map(|sync| Sync {
                policy: sync.policy,
                domain: sync
                    .sync_domain
                    .as_deref()
                    .and_then(|domain| SyncDomain::new(domain).ok()),
                wide: match sync.scope {
                    SyncScope::EdgeLocal => false,
                    SyncScope::PlanWide => true,
                },
            }),
            fair: policy.fairness_key.is_some(),
        }
    }

    /// The same without what only data has: nobody waits for telemetry, or pairs it up.
    pub(super) fn for_telemetry(
        policy: &EdgeBufferPolicy,
        strategy: Strategy,
        lane: Option<Marks>,
    ) -> Self {
        Self {
            actions: BoundActions::default(),
            blocks: false,
            cadence: None,
            on_high: None,
            sync: None,
            ..Self::new(policy, strategy, lane)
        }
    }

    /// What a bound does that does not follow the strategy.
    fn own(&self, bound: DropReason) -> Option<BoundAction> {
        match bound {
            DropReason::Items => self.actions.items,
            DropReason::Bytes => self.actions.bytes,
            DropReason::Latency => self.actions.latency,
            DropReason::Age => self.actions.age,
            DropReason::Sampled
            | DropReason::Superseded
            | DropReason::Oversized
            | DropReason::BlockTimeout
            | DropReason::NoCredit
            | DropReason::GroupLost => None,
        }
    }

    /// Whether a broken bound stops the sender.
    pub(super) fn stops(&self, bound: DropReason) -> bool {
        match self.own(bound) {
            Some(action) => action == BoundAction::Block,
            None => self.strategy == Strategy::Block,
        }
    }

    /// Which end gives where a bound has its own word on it.
    pub(super) fn gives(&self, bound: DropReason) -> Option<Give> {
        match self.own(bound)? {
            // A blocked item is not placed; one that grew by folding has to fit somehow.
            BoundAction::Block | BoundAction::DropOldest => Some(Give::Oldest),
            BoundAction::DropNewest => Some(Give::Newest),
        }
    }

    /// Whether items that wait too long are dropped. Under `block` age stops the sender instead:
    /// what a slow player has not reached yet is late, not useless.
    pub(super) fn expires(&self) -> bool {
        match self.actions.age {
            Some(BoundAction::Block | BoundAction::DropNewest) => false,
            Some(BoundAction::DropOldest) => true,
            None => self.strategy != Strategy::Block,
        }
    }

    /// Whether an old item keeps new ones out.
    pub(super) fn age_refuses(&self) -> bool {
        self.actions.age == Some(BoundAction::DropNewest)
    }
}
