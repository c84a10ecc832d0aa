//! A session as its versions are judged by it (NF-030).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rspp_kernel::{
    reading::{ReadingsBook, is_failure},
    turn::Terminal,
};
use rspp_proto::control::Binding;
use rspp_timeline::Anchors;

/// What all sessions of a node add to.
pub(crate) type Readings = Arc<Mutex<ReadingsBook>>;

/// What a session shows of its versions; counted when it is over. One that breaks has failed.
pub(crate) struct Tried {
    readings: Readings,
    of: Arc<Binding>,
    has_failed: bool,
    end: End,
}

/// How a session went from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nobody said: it broke.
    Unknown,
    /// For good.
    Over,
    /// Elsewhere, perhaps: whoever ends it counts it.
    Elsewhere,
}

impl Tried {
    pub(crate) fn new(readings: Readings, of: Arc<Binding>) -> Self {
        Self {
            readings,
            of,
            has_failed: false,
            end: End::Unknown,
        }
    }

    /// A turn is over.
    pub(crate) fn turn(&mut self, terminal: Terminal, anchors: &Anchors) {
        self.has_failed |= is_failure(terminal);
        let from = anchors
            .audio_input_ingress_ts
            .or(anchors.turn_open_proposed_ingress_accepted_ts);
        let first_audio = anchors.assistant_audio_playback_started_ts;
        if let Some((from, to)) = from.zip(first_audio) {
            let ms = to.since(from).as_micros().div_ceil(1_000);
            let ms = u64::try_from(ms).unwrap_or(u64::MAX);
            self.readings().first_audio(&self.of, ms);
        }
    }

    /// Something else of it failed for good.
    pub(crate) fn fails(&mut self) {
        self.has_failed = true;
    }

    /// It is over for good.
    pub(crate) fn over(&mut self) {
        self.end = End::Over;
    }

    /// It goes on elsewhere, or may.
    pub(crate) fn leaves(&mut self) {
        self.end = End::Elsewhere;
    }

    fn readings(&self) -> MutexGuard<'_, ReadingsBook> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Tried {
    fn drop(&mut self) {
        let failed = match self.end {
            End::Unknown => true,
            End::Over => self.has_failed,
            End::Elsewhere => return,
        };
        self.readings().session(&self.of, failed);
    }
}
