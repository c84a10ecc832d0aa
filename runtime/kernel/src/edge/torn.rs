//! What a loss means for the rest of a synchronised group, and for whoever decodes the stream.

use rspp_proto::spec::SyncPolicy;

use super::{BreakReason, DropReason, EdgeBuffer, Load};

impl<T: Load> EdgeBuffer<T> {
    /// What a drop means for the rest of the item's group.
    pub(super) fn note_torn(&mut self, ordinal: u64, item: &T, reason: DropReason) {
        let Some(sync) = &self.limits.sync else {
            return;
        };
        match sync.policy {
            SyncPolicy::NoSync => {}
            SyncPolicy::DropWithDiscontinuity => {
                let reason = BreakReason::DropWithDiscontinuity;
                self.break_at(ordinal, item.sequence(), reason);
            }
            SyncPolicy::AtomicDrop => {
                let spreads = sync.wide.then(|| sync.domain.clone()).flatten();
                let Some(group) = item
                    .sync_group()
                    .filter(|_| reason != DropReason::GroupLost)
                else {
                    return;
                };
                if self.lose_group(group)
                    && let Some(domain) = spreads
                {
                    self.break_at(ordinal, item.sequence(), BreakReason::AtomicDrop);
                    self.notices.group_lost(domain, group, item.sequence());
                }
            }
        }
    }

    /// Notes a break for the consumer, and for whoever else has to know of it.
    pub(super) fn break_at(&mut self, ordinal: u64, sequence: u64, reason: BreakReason) {
        let slots = &self.slots;
        if let Some(groups) = &mut self.groups {
            groups.breaks.note(ordinal, reason, |from, to| {
                let queued = slots.iter().map(|slot| slot.ordinal);
                queued.into_iter().any(|at| from < at && at < to)
            });
        }
        if let Some(sync) = &self.limits.sync
            && let Some(domain) = &sync.domain
        {
            self.notices
                .discontinuity(domain, sequence, reason, sync.wide);
        }
    }

    pub(super) fn is_lost(&self, item: &T) -> bool {
        let Some(groups) = &self.groups else {
            return false;
        };
        !item.keep()
            && item
                .sync_group()
                .is_some_and(|group| groups.lost.contains(group))
    }
}
