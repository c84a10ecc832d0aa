//! Notices handlers that block their thread (P16, P18).
//!
//! A handler that waits can be given up; one that blocks or computes on a worker's thread cannot be
//! reached from that thread. So a thread of its own looks, ten times a second of real time, at what
//! each node host is in the middle of: whoever is still in the same call after half a second blocks
//! its worker, and its session is told. What such a call cost otherwise is one load and two stores.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use futures::FutureExt;
use rspp_actors::ControlRef;
use rspp_proto::{NodeId, TurnNumber};
use rustix::time::{ClockId, clock_gettime};

use crate::session::SessionControl;

/// How often is looked.
const TICK: Duration = Duration::from_millis(100);
/// Ticks after which a call counts as blocking; noticed within a tick more.
const BLOCKS_AFTER: u32 = 5;
/// Ticks after which a session is given up whose listening node blocks.
const LOST_AFTER: u32 = 20;

/// Looks after all node hosts of a runtime, by the wall's clock alone. The thread ends soon after the last of these is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Counts ticks, from 1.
    now: AtomicU32,
    watched: Mutex<Vec<Weak<Watched>>>,
}

/// What one node host is in the middle of.
#[derive(Debug)]
pub(crate) struct Watched {
    shared: Arc<Shared>,
    /// The tick in which the call at hand began; 0 between calls.
    since: AtomicU32,
    is_told: AtomicBool,
    /// Processor time of calls since somebody asked, in nanoseconds; of a node whose time is limited.
    busy: Option<AtomicU64>,
    turn: Option<TurnNumber>,
    node: NodeId,
    session: ControlRef<SessionControl>,
}

impl Watchdog {
    /// One that never looks, for where what takes real time is nobody's business.
    pub(crate) fn asleep() -> Self {
        let shared = Arc::new(Shared {
            now: AtomicU32::new(1),
            watched: Mutex::default(),
        });
        Self { shared }
    }

    /// Starts to look.
    pub(crate) fn start() -> Self {
        let Self { shared } = Self::asleep();
        let watched = Arc::downgrade(&shared);
        let look = move || {
            while let Some(shared) = watched.upgrade() {
                shared.tick();
                drop(shared);
                thread::park_timeout(TICK);
            }
        };
        let started = thread::Builder::new()
            .name("rspp-watchdog".to_owned())
            .spawn(look);
        if let Err(error) = started {
            tracing::error!(%error, "blocking nodes will not be noticed");
        }
        Self { shared }
    }

    /// Looks after one more node host.
    pub(crate) fn watch(
        &self,
        turn: Option<TurnNumber>,
        node: NodeId,
        session: ControlRef<SessionControl>,
        measured: bool,
    ) -> Arc<Watched> {
        let pulse = Arc::new(Watched {
            shared: Arc::clone(&self.shared),
            since: AtomicU32::new(0),
            is_told: AtomicBool::new(false),
            busy: measured.then(AtomicU64::default),
            turn,
            node,
            session,
        });
        self.shared.watched().push(Arc::downgrade(&pulse));
        pulse
    }
}

impl Shared {
    fn watched(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Watched>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) {
        let now = self.now.fetch_add(1, Relaxed).wrapping_add(1);
        self.watched().retain(|pulse| {
            let Some(pulse) = pulse.upgrade() else {
                return false;
            };
            pulse.look(now);
            true
        });
    }
}

impl Watched {
    /// A call into the node begins; it ends with what is returned.
    pub(crate) fn enter(&self) -> Beat<'_> {
        self.since.store(self.shared.now.load(Relaxed), Relaxed);
        Beat {
            watched: self,
            since: self.busy.is_some().then(processor_time),
        }
    }

    /// Adds processor time that was taken for the node elsewhere.
    pub(crate) fn charge(&self, time: Duration) {
        if let Some(busy) = &self.busy {
            let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            busy.fetch_add(nanos, Relaxed);
        }
    }

    /// The processor time that the node has taken since this was asked last; zero if it is not limited.
    pub(crate) fn take_busy(&self) -> Duration {
        let nanos = self.busy.as_ref().map_or(0, |busy| busy.swap(0, Relaxed));
        Duration::from_nanos(nanos)
    }

    /// The same for each time that a future of the node is polled.
    pub(crate) fn watch<F: Future + Unpin>(&self, mut work: F) -> impl Future<Output = F::Output> {
        poll_fn(move |cx| {
            let _beat = self.enter();
            work.poll_unpin(cx)
        })
    }

    fn look(&self, now: u32) {
        let since = self.since.load(Relaxed);
        let ticks = now.wrapping_sub(since);
        if since == 0 || ticks < BLOCKS_AFTER {
            return;
        }
        let is_first = !self.is_told.swap(true, Relaxed);
        let is_lost = ticks == LOST_AFTER;
        if is_first || is_lost {
            let message = SessionControl::Blocked {
                turn: self.turn,
                node: self.node.clone(),
                for_at_least: TICK * ticks,
                is_lost,
            };
            let _it_is_over = self.session.send_reserved(message);
        }
    }
}

/// A call into a node.
pub(crate) struct Beat<'a> {
    watched: &'a Watched,
    /// The thread's processor time when it began, where that is measured.
    since: Option<Duration>,
}

impl Drop for Beat<'_> {
    fn drop(&mut self) {
        self.watched.since.store(0, Relaxed);
        if let Some(since) = self.since {
            self.watched.charge(processor_time().saturating_sub(since));
        }
    }
}

/// What this thread has computed so far: what else runs on the machine does not count.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // The clock counts from the thread's begin, so it is never below zero.
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs() as u32,
    )
}
