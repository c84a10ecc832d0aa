//! One life of an actor, from start to end; a restart is the next one behind the same mailbox.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use pin_project_lite::pin_project;
use ractor::ActorCell;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::warn;

use crate::exit::{ExitReason, panic_message};
use crate::system::System;
use crate::tree::{ActorState, Node};

/// ractor's message to every actor: there is something in your lanes.
pub(crate) struct Wake;

/// How long a killed actor may take to let go. A handler that never awaits cannot be killed.
const KILL_WAIT: Duration = Duration::from_secs(1);

/// What an incarnation and its parent share.
#[derive(Default)]
pub(crate) struct Line {
    /// Fires when the incarnation is asked to stop, and when it ends.
    pub(crate) cancel: CancellationToken,
    /// The same for a look between two items, without the token's lock.
    stop_asked: AtomicBool,
    order: Mutex<Option<StopOrder>>,
    exit: Mutex<Option<ExitReason>>,
    /// Whether the end was orderly to the last: not cut short by a kill.
    ended_well: AtomicBool,
    /// Whether it got through its start.
    started: AtomicBool,
    /// Incarnations of children that started and have gone, each told of in ractor's supervision port.
    children_gone: AtomicU64,
}

/// A parent's request to stop.
#[derive(Clone, Debug)]
pub(crate) struct StopOrder {
    pub(crate) reason: String,
    pub(crate) deadline: Instant,
}

impl Line {
    /// Asks to stop. The first order stands.
    fn order(&self, reason: &str, deadline: Instant) {
        lock(&self.order).get_or_insert_with(|| StopOrder {
            reason: reason.to_owned(),
            deadline,
        });
        self.announce_end();
    }

    /// Tells tasks and long handlers that this incarnation is ending.
    pub(crate) fn announce_end(&self) {
        self.stop_asked.store(true, Ordering::Relaxed);
        self.cancel.cancel();
    }

    pub(crate) fn stop_asked(&self) -> bool {
        self.stop_asked.load(Ordering::Relaxed)
    }

    pub(crate) fn stop_order(&self) -> Option<StopOrder> {
        lock(&self.order).clone()
    }

    /// Notes why the incarnation is ending; what is noted last stands.
    pub(crate) fn note_exit(&self, reason: ExitReason) {
        *lock(&self.exit) = Some(reason);
    }

    pub(crate) fn note_started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    pub(crate) fn children_gone(&self) -> u64 {
        self.children_gone.load(Ordering::Acquire)
    }

    pub(crate) fn note_ended_well(&self) {
        self.ended_well.store(true, Ordering::Release);
    }

    /// Why it ended. An orderly reason counts only if the end was not cut short.
    pub(crate) fn exit(&self) -> ExitReason {
        match lock(&self.exit).clone() {
            Some(reason) if !reason.is_orderly() || self.ended_well.load(Ordering::Acquire) => {
                reason
            }
            Some(_) | None => ExitReason::Killed,
        }
    }
}

fn lock<T>(field: &Mutex<T>) -> MutexGuard<'_, T> {
    field.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running incarnation as its parent holds it.
pub(crate) struct Running {
    pub(crate) cell: ActorCell,
    pub(crate) join: JoinHandle<()>,
    pub(crate) line: Arc<Line>,
    pub(crate) node: Arc<Node>,
}

impl Running {
    /// Asks to stop until `deadline`, without waiting.
    pub(crate) fn ask_to_stop(&self, reason: &str, deadline: Instant) {
        self.line.order(reason, deadline);
        self.cell.stop(None);
        // It waits at its mailbox, not at ractor's ports.
        self.node.mailbox().nudge();
    }

    /// Waits for the end, and kills at `deadline`; bounded even for what cannot be killed. `true` if no kill was needed.
    pub(crate) async fn ended_by(&mut self, path: &str, deadline: Instant) -> bool {
        let ended = tokio::time::timeout_at(deadline, &mut self.join).await;
        if ended.is_err() {
            warn!(actor = path, "did not stop within its grace: killed");
            self.kill();
            if !self.gone().await {
                warn!(
                    actor = path,
                    "does not react to kill: some handler blocks its thread"
                );
            }
        }
        ended.is_ok()
    }

    pub(crate) fn kill(&self) {
        self.line.announce_end();
        self.cell.kill();
    }

    /// Waits until nothing of the incarnation is left; `false` if that takes too long.
    pub(crate) async fn gone(&mut self) -> bool {
        self.join.is_finished()
            || tokio::time::timeout(KILL_WAIT, &mut self.join)
                .await
                .is_ok()
    }
}

/// The parent of an incarnation: as ractor knows it, and as we do.
#[derive(Clone)]
pub(crate) struct Supervisor {
    pub(crate) cell: ActorCell,
    pub(crate) line: Arc<Line>,
}

/// What a parent hands to a new incarnation.
pub(crate) struct Start {
    pub(crate) supervisor: Option<Supervisor>,
    pub(crate) system: System,
    pub(crate) node: Arc<Node>,
    pub(crate) grace: Duration,
}

/// Makes incarnations of one child, all behind the same mailbox.
pub(crate) trait Respawn: Send {
    /// Starts one; what keeps it from starting comes back as an exit.
    fn spawn(&mut self, start: Start) -> BoxFuture<'_, Result<Running, ExitReason>>;
}

/// Runs a maker of actors, which is the user's and may panic.
pub(crate) fn make<B>(maker: &mut impl FnMut() -> B) -> Result<B, ExitReason> {
    std::panic::catch_unwind(AssertUnwindSafe(maker))
        .map_err(|panic| ExitReason::Panicked(panic_message(panic)))
}

pin_project! {
    /// A handler that works in the scope of its actor.
    struct Scoped<'a, F> {
        node: &'a Node,
        #[pin]
        handler: F,
    }
}

impl<F: Future> Future for Scoped<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = this.node.scope().enter();
        this.handler.poll(cx)
    }
}

/// Runs a handler, which is the user's and may panic, in the scope of its actor. Not an `async fn`: that would keep room
/// for the handler twice, and move it.
pub(crate) fn guarded<T>(
    node: &Node,
    handler: impl Future<Output = T>,
) -> impl Future<Output = Result<T, ExitReason>> {
    let handler = AssertUnwindSafe(handler).catch_unwind();
    Scoped { node, handler }.map_err(|panic| ExitReason::Panicked(panic_message(panic)))
}

/// What each incarnation knows of itself. Dropping it lets go of the mailbox and fires the token, however it ended.
pub(crate) struct Incarnation {
    pub(crate) system: System,
    pub(crate) node: Arc<Node>,
    pub(crate) line: Arc<Line>,
    grace: Duration,
    /// The guardian is not counted: it is no actor of the user's.
    _counted: Option<TaskTrackerToken>,
}

impl Incarnation {
    pub(crate) fn new(start: Start, line: Arc<Line>) -> Self {
        Self {
            _counted: start
                .supervisor
                .is_some()
                .then(|| start.system.count_actor()),
            system: start.system,
            node: start.node,
            line,
            grace: start.grace,
        }
    }

    /// When everything of this incarnation has to have ended.
    pub(crate) fn deadline(&self) -> Instant {
        match self.line.stop_order() {
            Some(order) => order.deadline,
            None => Instant::now() + self.grace,
        }
    }
}

impl Drop for Incarnation {
    fn drop(&mut self) {
        self.line.announce_end();
        self.node.mailbox().detach();
        self.node.set_state(ActorState::Ended);
    }
}

/// Calls a parent to ractor's ports, where the end of this child waits for it.
///
/// Part of the handler, which ractor drops last of all of an actor, however it ended.
pub(crate) struct Farewell {
    parent: Option<Arc<Line>>,
    line: Arc<Line>,
    node: Arc<Node>,
}

impl Farewell {
    pub(crate) fn new(start: &Start, line: &Arc<Line>) -> Self {
        Self {
            parent: start
                .supervisor
                .as_ref()
                .map(|supervisor| Arc::clone(&supervisor.line)),
            line: Arc::clone(line),
            node: Arc::clone(&start.node),
        }
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        // A start that failed is an error of whoever started it, and in no port.
        if !self.line.started.load(Ordering::Relaxed) {
            return;
        }
        if let Some(parent) = &self.parent {
            parent.children_gone.fetch_add(1, Ordering::AcqRel);
        }
        if let Some(node) = self.node.parent() {
            node.mailbox().nudge();
        }
    }
}
