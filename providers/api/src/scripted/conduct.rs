//! How one attempt goes, whatever it says.

use std::time::Duration;

use crate::Fault;

/// What goes wrong in an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing comes any more, and the stream does not end (P14).
    Stall,
    /// The stream ends with this fault.
    Fail(Fault),
    /// The stream ends as if it were complete.
    Truncate,
    /// Polling the stream panics (F-134).
    Panic,
}

/// What an attempt does when its call is cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnCancel {
    /// Ends at once, with a fault of class `cancelled`.
    #[default]
    Stop,
    /// Ends after a while, without another chunk.
    StopAfter(Duration),
    /// Goes on as if nothing had happened (F-037); only dropping the stream stops it.
    Ignore,
}

/// How one attempt goes; well by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conduct {
    /// Waited before the first chunk, on top of the provider's own pace.
    pub first_chunk_after: Duration,
    /// What goes wrong once that many chunks are out. As many as the answer has: in place of its end.
    pub trouble: Option<(u32, Trouble)>,
    /// What a cancel does.
    pub on_cancel: OnCancel,
}

impl Conduct {
    /// Nothing goes wrong.
    pub fn good() -> Self {
        Self::default()
    }

    /// Is late with its first chunk.
    #[must_use]
    pub fn late(mut self, first_chunk_after: Duration) -> Self {
        self.first_chunk_after = first_chunk_after;
        self
    }

    /// Stalls for ever after `chunks` chunks.
    #[must_use]
    pub fn stalling_after(self, chunks: u32) -> Self {
        self.in_trouble(chunks, Trouble::Stall)
    }

    /// Fails after `chunks` chunks.
    #[must_use]
    pub fn failing_after(self, chunks: u32, fault: Fault) -> Self {
        self.in_trouble(chunks, Trouble::Fail(fault))
    }

    /// Ends after `chunks` chunks as if that were all.
    #[must_use]
    pub fn truncated_after(self, chunks: u32) -> Self {
        self.in_trouble(chunks, Trouble::Truncate)
    }

    /// Panics after `chunks` chunks.
    #[must_use]
    pub fn panicking_after(self, chunks: u32) -> Self {
        self.in_trouble(chunks, Trouble::Panic)
    }

    /// Ignores cancellation.
    #[must_use]
    pub fn deaf(mut self) -> Self {
        self.on_cancel = OnCancel::Ignore;
        self
    }

    /// Takes its time to stop.
    #[must_use]
    pub fn stopping_after(mut self, delay: Duration) -> Self {
        self.on_cancel = OnCancel::StopAfter(delay);
        self
    }

    fn in_trouble(mut self, chunks: u32, trouble: Trouble) -> Self {
        self.trouble = Some((chunks, trouble));
        self
    }
}
