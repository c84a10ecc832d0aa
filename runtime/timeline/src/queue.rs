//! Entries that wait to be written: bounded, with reserved room for what may not be lost.

use std::collections::VecDeque;

use rspp_proto::spec::RecordingLevel;
use thiserror::Error;

use crate::{Entry, EntryClass};

/// Some entries and their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// How many.
    pub entries: usize,
    /// How large together.
    pub bytes: usize,
}

/// No room at all.
pub(crate) const NONE: Room = Room {
    entries: 0,
    bytes: 0,
};

/// How much may wait to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Everything together.
    pub total: Room,
    /// Of that, what details may not use.
    pub baseline_reserve: Room,
    /// Of that, what neither details nor baseline may use.
    pub terminal_reserve: Room,
}

impl Default for Capacity {
    /// Two seconds of full capture in both directions, and 128 turns' worth of endings.
    fn default() -> Self {
        Self {
            total: Room {
                entries: 2_048,
                bytes: 4 << 20,
            },
            baseline_reserve: Room {
                entries: 256,
                bytes: 512 << 10,
            },
            terminal_reserve: Room {
                entries: 128,
                bytes: 1 << 20,
            },
        }
    }
}

/// What a turn may add that no turn can do without: its opening, with the frozen plan, and its end. A
/// turn opens only where there is room for that (T9, invariant 16).
pub const TURN_ROOM: Room = Room {
    entries: 24,
    bytes: 24 << 10,
};

/// A queue that cannot hold what is reserved in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a queue of {found} {unit} has no room beside its reserves, {reserved}: it needs {least} or more"
)]
pub struct CapacityError {
    /// What is counted: entries or bytes.
    pub unit: &'static str,
    /// How many may wait.
    pub found: usize,
    /// How many of them are reserved.
    pub reserved: usize,
    /// The fewest that would do.
    pub least: usize,
}

impl Capacity {
    /// Whether details, evidence and a turn's end each find room.
    pub fn check(&self) -> Result<(), CapacityError> {
        let least = |baseline: usize, terminal: usize, turn: usize| {
            baseline
                .saturating_add(1)
                .max(turn)
                .saturating_add(terminal)
        };
        let (total, baseline, terminal) =
            (self.total, self.baseline_reserve, self.terminal_reserve);
        let counts = [
            (
                "entries",
                total.entries,
                baseline.entries.saturating_add(terminal.entries),
                least(baseline.entries, terminal.entries, TURN_ROOM.entries),
            ),
            (
                "bytes",
                total.bytes,
                baseline.bytes.saturating_add(terminal.bytes),
                least(baseline.bytes, terminal.bytes, TURN_ROOM.bytes),
            ),
        ];
        match counts
            .into_iter()
            .find(|(_, found, _, least)| found < least)
        {
            Some((unit, found, reserved, least)) => Err(CapacityError {
                unit,
                found,
                reserved,
                least,
            }),
            None => Ok(()),
        }
    }

    /// What entries of `class` and all dearer ones may use together.
    fn limit(&self, class: EntryClass) -> Room {
        let minus = |a: Room, b: Room| Room {
            entries: a.entries.saturating_sub(b.entries),
            bytes: a.bytes.saturating_sub(b.bytes),
        };
        let baseline = minus(self.total, self.terminal_reserve);
        match class {
            EntryClass::Terminal => self.total,
            EntryClass::Baseline => baseline,
            EntryClass::Journal | EntryClass::Detail => minus(baseline, self.baseline_reserve),
        }
    }
}

/// An entry and the level it was recorded at.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) entry: Entry,
    pub(crate) class: EntryClass,
    pub(crate) level: RecordingLevel,
    pub(crate) weight: usize,
}

/// What became of an offered entry.
#[derive(Debug, PartialEq)]
#[must_use = "a displaced or refused entry is evidence; count it"]
pub(crate) enum Offer {
    Queued,
    /// Queued in the place of these details.
    Displaced(Room),
    /// There is no room for its class; with it goes what made way in vain.
    Full(Room),
}

/// The waiting entries, in order.
#[derive(Debug)]
pub(crate) struct Queue {
    capacity: Capacity,
    slots: VecDeque<Slot>,
    bytes: usize,
    /// How much of that is details.
    details: Room,
    /// How much of that is the journal.
    journal: Room,
}

impl Queue {
    pub(crate) fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            slots: VecDeque::new(),
            bytes: 0,
            details: NONE,
            journal: NONE,
        }
    }

    pub(crate) fn offer(
        &mut self,
        entry: Entry,
        class: EntryClass,
        level: RecordingLevel,
    ) -> Offer {
        let weight = entry.weight();
        let mut displaced = NONE;
        while !self.fits(class, weight) {
            if !self.displace(class, &mut displaced) {
                return Offer::Full(Room {
                    entries: displaced.entries + 1,
                    bytes: displaced.bytes + weight,
                });
            }
        }
        self.bytes += weight;
        if let Some(share) = self.share(class) {
            share.entries += 1;
            share.bytes += weight;
        }
        self.slots.push_back(Slot {
            entry,
            class,
            level,
            weight,
        });
        if displaced.entries == 0 {
            Offer::Queued
        } else {
            Offer::Displaced(displaced)
        }
    }

    /// Takes everything that waits.
    pub(crate) fn take(&mut self) -> VecDeque<Slot> {
        self.bytes = 0;
        (self.details, self.journal) = (NONE, NONE);
        std::mem::take(&mut self.slots)
    }

    /// Share of the room for details that is in use: at 1 details are dropped, so the thresholds
    /// of the recording level lie before any loss.
    pub(crate) fn fill(&self) -> f64 {
        let limit = self.capacity.limit(EntryClass::Detail);
        let share = |used: usize, limit: usize| used as f64 / limit.max(1) as f64;
        share(self.slots.len(), limit.entries)
            .max(share(self.bytes, limit.bytes))
            .min(1.0)
    }

    /// What waits and may not be lost.
    pub(crate) fn evidence(&self) -> Room {
        Room {
            entries: self.slots.len() - self.details.entries - self.journal.entries,
            bytes: self.bytes - self.details.bytes - self.journal.bytes,
        }
    }

    /// Whether a turn could open and end with what waits now: details make way for it, and its end has
    /// the room for endings to itself.
    pub(crate) fn takes_turn(&self) -> bool {
        let (waits, limit) = (self.evidence(), self.capacity.limit(EntryClass::Baseline));
        waits.entries + TURN_ROOM.entries <= limit.entries
            && waits.bytes + TURN_ROOM.bytes <= limit.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    fn fits(&self, class: EntryClass, weight: usize) -> bool {
        let limit = self.capacity.limit(class);
        self.slots.len() < limit.entries && self.bytes + weight <= limit.bytes
    }

    /// How much of what may be lost is of `class`.
    fn share(&mut self, class: EntryClass) -> Option<&mut Room> {
        match class {
            EntryClass::Terminal | EntryClass::Baseline => None,
            EntryClass::Journal => Some(&mut self.journal),
            EntryClass::Detail => Some(&mut self.details),
        }
    }

    /// Drops the oldest of what is less dear than `class`, details before the journal; `false` if nothing of that
    /// waits.
    fn displace(&mut self, class: EntryClass, displaced: &mut Room) -> bool {
        let cheapest = if self.details.entries > 0 {
            EntryClass::Detail
        } else if self.journal.entries > 0 {
            EntryClass::Journal
        } else {
            return false;
        };
        if cheapest <= class {
            return false;
        }
        let oldest = self.slots.iter().position(|slot| slot.class == cheapest);
        let Some(slot) = oldest.and_then(|index| self.slots.remove(index)) else {
            return false;
        };
        if let Some(share) = self.share(cheapest) {
            share.entries -= 1;
            share.bytes -= slot.weight;
        }
        self.bytes -= slot.weight;
        displaced.entries += 1;
        displaced.bytes += slot.weight;
        true
    }
}
