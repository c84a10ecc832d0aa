//! Several who share one edge: each is served once a round, and whoever has most there gives first.

use super::{EdgeBuffer, Load, Slot};

impl<T: Load> EdgeBuffer<T> {
    /// The item that goes first. Where several share the edge it is one of whoever has most there,
    /// so that nobody loses their share to a busier one.
    pub(super) fn oldest_droppable(&self) -> Option<usize> {
        let greediest = self.greediest();
        self.slots.iter().position(|slot| {
            !slot.item.keep() && greediest.is_none_or(|key| slot.item.fair_key() == key)
        })
    }

    /// The item that goes for a newcomer where the newest give way; `None` if that is the newcomer.
    pub(super) fn newest_droppable(&self, newcomer: &T) -> Option<usize> {
        let greediest = self.greediest();
        let outdone = greediest.is_some_and(|key| {
            let of = |key| self.share(key);
            key != newcomer.fair_key() && of(key) > of(newcomer.fair_key()) + 1
        });
        if !newcomer.keep() && !outdone {
            return None;
        }
        self.slots.iter().rposition(|slot| {
            !slot.item.keep() && greediest.is_none_or(|key| slot.item.fair_key() == key)
        })
    }

    /// What an item supersedes under `latest_only`: whatever is older and of its own key.
    pub(super) fn older_of(&self, item: &T) -> Option<usize> {
        let fair = self.limits.fair;
        self.slots.iter().position(|slot| {
            !slot.item.keep() && (!fair || slot.item.fair_key() == item.fair_key())
        })
    }

    /// Who has most items that may go; the first of equals. `None` where nobody shares.
    #[expect(
        clippy::option_option,
        reason = "nobody shares, against: those without a key"
    )]
    pub(super) fn greediest(&self) -> Option<Option<u64>> {
        if !self.limits.fair {
            return None;
        }
        let mut most = None;
        for slot in self.slots.iter().filter(|slot| !slot.item.keep()) {
            let key = slot.item.fair_key();
            let share = self.share(key);
            if most.is_none_or(|(known, _)| share > known) {
                most = Some((share, key));
            }
        }
        most.map(|(_, key)| key)
    }

    pub(super) fn share(&self, key: Option<u64>) -> usize {
        let of_key = |slot: &&Slot<T>| !slot.item.keep() && slot.item.fair_key() == key;
        self.slots.iter().filter(of_key).count()
    }

    /// One round more than the newest item of the same key: so each key has one item a round. Who has
    /// nothing waiting joins in the next round, or it would go first each time it comes back.
    pub(super) fn round_of(&self, item: &T) -> u64 {
        if !self.limits.fair {
            return 0;
        }
        let key = item.fair_key();
        let newest = self.slots.iter().rfind(|slot| slot.item.fair_key() == key);
        newest.map_or(self.round, |slot| slot.round) + 1
    }

    /// Lets the items behind one that is gone, of the same key, move up by a round.
    pub(super) fn close_up(&mut self, at: usize, key: Option<u64>) {
        if self.limits.fair {
            let behind = self.slots.iter_mut().skip(at);
            for slot in behind.filter(|slot| slot.item.fair_key() == key) {
                slot.round = slot.round.saturating_sub(1);
            }
        }
    }
}
