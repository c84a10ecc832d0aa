//! What a voice has taken of the text that it is handed, told to whoever hands it over.
//!
//! Not by the edge between them: a voice takes text off it at once, and other nodes may stand between.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use rspp_actors::ControlRef;
use rspp_proto::spec::FlowMode;

use super::NodeControl;

/// Whom text is handed to.
#[derive(Clone)]
pub(crate) struct Handing {
    pub(crate) taking: Arc<Taking>,
    /// How the two tell each other to stop and go.
    pub(crate) mode: FlowMode,
}

/// What the voice at one place of the graph has taken, whoever stands there.
#[derive(Default)]
pub(crate) struct Taking {
    /// Segments that were begun, from the first.
    begun: AtomicU64,
    /// Whether somebody is there who says what is taken.
    present: AtomicBool,
    /// Whether there is nothing to do for it.
    rests: AtomicBool,
    /// Whether the one who hands over wants to be told what is new.
    awaited: AtomicBool,
    from: Mutex<Option<ControlRef<NodeControl>>>,
}

/// What there is to know of a voice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Segments that were begun, from the first; `None` if nobody says.
    pub(crate) begun: Option<u64>,
    /// Whether it waits for text.
    pub(crate) rests: bool,
}

impl Taking {
    /// The voice begins with a segment; those before it are done with.
    pub(super) fn begin(&self, segment: u32) {
        self.rests.store(false, Ordering::SeqCst);
        self.begun
            .fetch_max(u64::from(segment) + 1, Ordering::SeqCst);
        self.tell();
    }

    /// The voice is there, and has nothing to do.
    pub(super) fn rest(&self) {
        let was_present = self.present.swap(true, Ordering::SeqCst);
        let rested = self.rests.swap(true, Ordering::SeqCst);
        if !(was_present && rested) {
            self.tell();
        }
    }

    /// The voice is gone: whoever comes in its place may not say what it takes.
    pub(super) fn leave(&self) {
        self.present.store(false, Ordering::SeqCst);
        self.tell();
    }

    /// Who is told when there is news and it waits for some.
    pub(super) fn attach(&self, from: ControlRef<NodeControl>) {
        *self.from.lock().unwrap_or_else(PoisonError::into_inner) = Some(from);
    }

    /// What is known now.
    pub(super) fn look(&self) -> Taken {
        let present = self.present.load(Ordering::SeqCst);
        Taken {
            begun: present.then(|| self.begun.load(Ordering::SeqCst)),
            rests: self.rests.load(Ordering::SeqCst),
        }
    }

    /// Asks to be woken once there is more to know than `known`; `false` if there is already.
    pub(super) fn wait_for_more(&self, known: Taken) -> bool {
        self.awaited.store(true, Ordering::SeqCst);
        self.look() == known
    }

    fn tell(&self) {
        if !self.awaited.swap(false, Ordering::SeqCst) {
            return;
        }
        let from = self.from.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(from) = &*from
            && from.send_reserved(NodeControl::Taken).is_err()
        {
            tracing::debug!("who hands text over is gone");
        }
    }
}
