//! What became of the calls.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What became of a provider's calls so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Attempts begun.
    pub calls: u64,
    /// Streams that ran to their end.
    pub completed: u64,
    /// Streams that ended with a fault, `cancelled` included.
    pub failed: u64,
    /// Calls whose cancellation reached the provider, by token, while they ran.
    pub cancelled: u64,
    /// Streams dropped before they ended.
    pub dropped: u64,
    /// Chunks handed out.
    pub chunks: u64,
    /// Chunks handed out although the call had been cancelled.
    pub chunks_after_cancel: u64,
}

impl Tally {
    /// Streams neither ended nor dropped: what a session left behind (P20).
    pub fn running(&self) -> u64 {
        // `cancelled` is no end of its own: such a stream has failed or was dropped.
        self.calls
            .saturating_sub(self.completed + self.failed + self.dropped)
    }
}

/// What became of a scripted detector's or end-of-turn model's work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VoiceTally {
    /// Detectors or models made.
    pub made: u64,
    /// Those still alive.
    pub alive: u64,
    /// Windows or questions answered.
    pub answered: u64,
    /// Resets.
    pub resets: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) calls: Counter,
    pub(super) completed: Counter,
    pub(super) failed: Counter,
    pub(super) cancelled: Counter,
    pub(super) dropped: Counter,
    pub(super) chunks: Counter,
    pub(super) chunks_after_cancel: Counter,
}

impl Counters {
    pub(super) fn tally(&self) -> Tally {
        Tally {
            calls: self.calls.get(),
            completed: self.completed.get(),
            failed: self.failed.get(),
            cancelled: self.cancelled.get(),
            dropped: self.dropped.get(),
            chunks: self.chunks.get(),
            chunks_after_cancel: self.chunks_after_cancel.get(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct VoiceCounters {
    pub(super) made: Counter,
    pub(super) gone: Counter,
    pub(super) answered: Counter,
    pub(super) resets: Counter,
}

impl VoiceCounters {
    pub(super) fn tally(&self) -> VoiceTally {
        VoiceTally {
            made: self.made.get(),
            alive: self.made.get().saturating_sub(self.gone.get()),
            answered: self.answered.get(),
            resets: self.resets.get(),
        }
    }
}

/// Counts up; read only to be shown, so it orders nothing.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Adds one; how many there were before.
    pub(super) fn add(&self) -> u64 {
        self.0.fetch_add(1, Relaxed)
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
