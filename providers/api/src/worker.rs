//! Workers that are lost: work that nobody waits for any more, and that keeps its thread.
//!
//! A thread cannot be stopped from outside. What can be done is to count it as lost and let another take
//! its place, so that the pool's capacity comes back; and to bound how often.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::gate::GatePermit;

/// How long work may go on after the last one who waited for it has left. Honest work of a model takes
/// less: it is cut into pieces, and looks at its cancellation between them.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Who is told of a lost worker.
#[derive(Clone)]
pub(crate) struct Told(pub(crate) Arc<dyn Fn(Duration) + Send + Sync>);

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Told")
    }
}

/// How many workers of a pool are lost, and how many may be.
#[derive(Debug)]
pub(crate) struct Losses {
    most: usize,
    now: AtomicUsize,
    ever: AtomicUsize,
}

impl Losses {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            now: AtomicUsize::new(0),
            ever: AtomicUsize::new(0),
        }
    }

    /// Lost now, and ever.
    pub(crate) fn count(&self) -> (usize, usize) {
        let (now, ever) = (&self.now, &self.ever);
        (now.load(Ordering::Relaxed), ever.load(Ordering::Relaxed))
    }

    /// Counts one more, if there may be.
    fn add(&self) -> bool {
        let more = |now: usize| (now < self.most).then_some(now + 1);
        let added = self
            .now
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok();
        if added {
            self.ever.fetch_add(1, Ordering::Relaxed);
        }
        added
    }

    fn remove(&self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The place of one piece of work, which its worker gives back, or another takes once it is lost.
#[derive(Clone)]
pub(crate) struct Held(Arc<Mutex<Place>>);

enum Place {
    /// The work holds it.
    Taken(GatePermit),
    /// It was given to another worker.
    Replaced,
    /// The work is done.
    Done,
}

impl Held {
    pub(crate) fn new(slot: GatePermit) -> Self {
        Self(Arc::new(Mutex::new(Place::Taken(slot))))
    }

    fn change(&self, to: Place) -> Place {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *place, to)
    }

    /// The work is done, and has taken that long.
    pub(crate) fn done(&self, took: Duration, losses: &Losses) {
        match self.change(Place::Done) {
            Place::Taken(slot) => slot.done(took),
            Place::Replaced => losses.remove(),
            Place::Done => {}
        }
    }

    /// Gives the place of a worker that is lost to another; `false` if the work is done, or no more may be
    /// lost.
    fn replace(&self, losses: &Losses) -> bool {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*place, Place::Taken(_)) || !losses.add() {
            return false;
        }
        let slot = std::mem::replace(&mut *place, Place::Replaced);
        drop(place);
        drop(slot);
        true
    }
}

/// Somebody waits for a piece of work. Dropped before it is done, its worker is watched.
pub(crate) struct Waits {
    pub(crate) held: Held,
    pub(crate) losses: Arc<Losses>,
    pub(crate) told: Option<Told>,
    pub(crate) is_over: bool,
}

impl Drop for Waits {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return; // The runtime ends; nobody will ask for a place any more.
        };
        let (held, losses) = (self.held.clone(), Arc::clone(&self.losses));
        let told = self.told.take();
        // Ends by itself, and as many as the pool has places.
        runtime.spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            if held.replace(&losses)
                && let Some(Told(tell)) = told
            {
                tell(PATIENCE);
            }
        });
    }
}
