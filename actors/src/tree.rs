//! What can be seen of the actors of a system from outside: one record per actor, in the shape of the tree.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use serde::Serialize;
use tracing::Span;

use crate::clock::Clock;
use crate::exit::ExitReason;
use crate::id::ActorId;
use crate::lane::Buffer;
use crate::mailbox::Mailbox;

/// One actor as [`System::tree`](crate::System::tree) reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ActorInfo {
    /// Its identity, kept over restarts.
    pub id: ActorId,
    /// Who supervises it; none for a root.
    pub parent: Option<ActorId>,
    /// The names from the root to it, joined by `/`.
    pub path: String,
    /// What it is.
    pub kind: &'static str,
    /// What it is doing.
    pub state: ActorState,
    /// Restarts since it was spawned.
    pub restarts: u32,
    /// What waits in its lanes.
    pub depths: Depths,
    /// Items newer ones pushed out of its data lane since it was spawned.
    pub data_displaced: u64,
    /// Items newer ones pushed out of its telemetry lane since it was spawned.
    pub telemetry_dropped: u64,
    /// Items taken from its lanes since it was spawned.
    pub handled: u64,
    /// Time since it was spawned.
    pub uptime_ms: u64,
    /// Why its last incarnation ended, if there was one.
    pub last_exit: Option<String>,
}

/// What an actor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorState {
    /// Not yet through `started`.
    Starting,
    /// Waiting for something to do.
    Idle,
    /// In a handler.
    Busy,
    /// Asked to stop, not yet ended.
    Stopping,
    /// Ended, and waiting to be started again.
    Restarting,
    /// Ended.
    Ended,
}

/// Items waiting in the lanes of one actor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Depths {
    /// Control messages.
    pub control: usize,
    /// Data items.
    pub data: usize,
    /// Telemetry items.
    pub telemetry: usize,
}

/// An actor's place in the tree, shared between it, its parent and whoever looks.
pub(crate) struct Node {
    pub(crate) id: ActorId,
    pub(crate) path: Arc<str>,
    pub(crate) kind: &'static str,
    parent: Option<Weak<Node>>,
    mailbox: Arc<dyn Post>,
    children: Mutex<BTreeMap<ActorId, Arc<Node>>>,
    state: AtomicU8,
    restarts: AtomicU32,
    handled: AtomicU64,
    spawned: Duration,
    last_exit: Mutex<Option<String>>,
    scope: OnceLock<Span>,
}

/// A mailbox, whatever it carries.
pub(crate) trait Post: Send + Sync {
    fn nudge(&self);
    fn detach(&self);
    fn close(&self);
    fn depths(&self) -> Depths;
    fn losses(&self) -> (u64, u64);
}

impl<C: Send, D: Buffer, T: Send> Post for Mailbox<C, D, T> {
    fn nudge(&self) {
        self.nudge();
    }

    fn detach(&self) {
        self.detach();
    }

    fn close(&self) {
        self.close();
    }

    fn depths(&self) -> Depths {
        let (control, data, telemetry) = self.depths();
        Depths {
            control,
            data,
            telemetry,
        }
    }

    fn losses(&self) -> (u64, u64) {
        self.losses()
    }
}

impl Node {
    pub(crate) fn new(
        id: ActorId,
        path: Arc<str>,
        kind: &'static str,
        parent: Option<&Arc<Node>>,
        mailbox: Arc<dyn Post>,
        now: Duration,
    ) -> Self {
        Self {
            id,
            path,
            kind,
            parent: parent.map(Arc::downgrade),
            mailbox,
            children: Mutex::default(),
            state: AtomicU8::new(ActorState::Starting as u8),
            restarts: AtomicU32::new(0),
            handled: AtomicU64::new(0),
            spawned: now,
            last_exit: Mutex::default(),
            scope: OnceLock::new(),
        }
    }

    /// What is logged while the actor works is said to be within `scope`.
    pub(crate) fn works_in(&self, scope: impl FnOnce() -> Span) {
        self.scope.get_or_init(scope);
    }

    /// Where the actor works; nowhere in particular if nobody said.
    pub(crate) fn scope(&self) -> &Span {
        self.scope.get_or_init(Span::none)
    }

    pub(crate) fn mailbox(&self) -> &Arc<dyn Post> {
        &self.mailbox
    }

    pub(crate) fn parent(&self) -> Option<Arc<Node>> {
        self.parent.as_ref().and_then(Weak::upgrade)
    }

    pub(crate) fn set_state(&self, state: ActorState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub(crate) fn count_restart(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one item. Only the actor itself calls this, so a load and a store do.
    pub(crate) fn count_handled(&self) {
        let handled = self.handled.load(Ordering::Relaxed);
        self.handled.store(handled + 1, Ordering::Relaxed);
    }

    pub(crate) fn set_last_exit(&self, reason: &ExitReason) {
        *self
            .last_exit
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(reason.to_string());
    }

    /// The actors below this one, parents before children, siblings in start order.
    pub(crate) fn below(&self, clock: Clock, found: &mut Vec<ActorInfo>) {
        // Cloned, so that a deep tree is not walked with all its locks held.
        let children: Vec<_> = self.children().values().cloned().collect();
        for child in children {
            found.push(child.info(clock));
            child.below(clock, found);
        }
    }

    fn info(&self, clock: Clock) -> ActorInfo {
        let (data_displaced, telemetry_dropped) = self.mailbox.losses();
        ActorInfo {
            id: self.id,
            // The parent of a root is the system's own guardian, which is nobody's business.
            parent: self
                .parent()
                .filter(|parent| parent.parent.is_some())
                .map(|parent| parent.id),
            path: self.path.to_string(),
            kind: self.kind,
            state: self.state(),
            restarts: self.restarts.load(Ordering::Relaxed),
            depths: self.mailbox.depths(),
            data_displaced,
            telemetry_dropped,
            handled: self.handled.load(Ordering::Relaxed),
            uptime_ms: u64::try_from(clock.now().saturating_sub(self.spawned).as_millis())
                .unwrap_or(u64::MAX),
            last_exit: self
                .last_exit
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }

    fn state(&self) -> ActorState {
        [
            ActorState::Starting,
            ActorState::Idle,
            ActorState::Busy,
            ActorState::Stopping,
            ActorState::Restarting,
        ]
        .into_iter()
        .find(|&state| state as u8 == self.state.load(Ordering::Relaxed))
        .unwrap_or(ActorState::Ended)
    }

    fn children(&self) -> MutexGuard<'_, BTreeMap<ActorId, Arc<Node>>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a node in the tree and its mailbox open; held by the parent, so both end when the parent lets go.
pub(crate) struct Place {
    pub(crate) node: Arc<Node>,
}

impl Place {
    pub(crate) fn take(node: Arc<Node>) -> Self {
        if let Some(parent) = node.parent() {
            parent.children().insert(node.id, Arc::clone(&node));
        }
        Self { node }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.node.set_state(ActorState::Ended);
        if let Some(parent) = self.node.parent() {
            parent.children().remove(&self.node.id);
        }
        self.node.mailbox.close();
    }
}
