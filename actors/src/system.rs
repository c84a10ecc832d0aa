//! One tree of actors. A process has one, a test makes its own; there are no globals.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::actor::{Actor, Handle};
use crate::children::SpawnError;
use crate::clock::Clock;
use crate::context::Context;
use crate::coordinator::ActorMaker;
use crate::exit::Failure;
use crate::id::ActorId;
use crate::incarnation::{Respawn, Running, Start};
use crate::lane::{LaneLimits, NoData, NoTelemetry};
use crate::mailbox::Mailbox;
use crate::refs::ControlRef;
use crate::supervisor::ChildSpec;
use crate::tree::{ActorInfo, Node};

/// One tree of actors.
///
/// Cheap to clone; all clones are the same system. End it with [`shut_down`](Self::shut_down): dropping the last handle
/// does not stop the actors.
#[derive(Clone)]
pub struct System {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Clock,
    next_id: AtomicU64,
    /// Counts the incarnations that have not been dropped yet.
    actors: TaskTracker,
    chance: Mutex<StdRng>,
    closed: AtomicBool,
    /// Actors that did not stop within the time they had.
    killed: AtomicU64,
    /// Started with the first root.
    guardian: tokio::sync::Mutex<Option<Running>>,
    guardian_control: ControlRef<Order>,
    guardian_mailbox: Arc<GuardianMailbox>,
    guardian_node: Arc<Node>,
}

type GuardianMailbox = Mailbox<Order, NoData, NoTelemetry>;

impl System {
    /// A system without actors.
    pub fn new(clock: Clock) -> Self {
        Self::seeded(clock, rand::random())
    }

    /// The same, whose backoff jitter is drawn from `seed`, so that a simulation can be run again.
    pub fn seeded(clock: Clock, seed: u64) -> Self {
        let mailbox = Arc::new(Mailbox::new(LaneLimits::default(), NoData));
        let node = Node::new(
            ActorId(0),
            "".into(),
            Guardian::KIND,
            None,
            Arc::clone(&mailbox) as _,
            clock.now(),
        );
        Self {
            inner: Arc::new(Inner {
                clock,
                next_id: AtomicU64::new(1),
                actors: TaskTracker::new(),
                chance: Mutex::new(StdRng::seed_from_u64(seed)),
                closed: AtomicBool::new(false),
                killed: AtomicU64::new(0),
                guardian: tokio::sync::Mutex::new(None),
                guardian_control: ControlRef::new(Arc::clone(&mailbox)),
                guardian_mailbox: mailbox,
                guardian_node: Arc::new(node),
            }),
        }
    }

    /// The clock all actors of this system go by.
    pub fn clock(&self) -> Clock {
        self.inner.clock
    }

    /// Starts an actor without a parent, and waits until it has started.
    pub async fn spawn_root<A: Actor>(
        &self,
        spec: ChildSpec,
        data: A::Data,
        make: impl FnMut() -> A + Send + 'static,
    ) -> Result<Handle<A>, SpawnError> {
        let stopping = SpawnError::Stopping {
            path: spec.name.clone(),
        };
        self.start_guardian().await.map_err(|()| stopping.clone())?;
        let (tell, told) = oneshot::channel();
        let order: Order = Box::new(move |guardian| {
            Box::pin(async move {
                // Nobody listens when the caller gave up waiting; the root runs nevertheless, as it was asked to.
                let _ = tell.send(guardian.spawn(spec, data, make).await);
            })
        });
        self.inner
            .guardian_control
            .send(order)
            .map_err(|_| stopping.clone())?;
        told.await.unwrap_or(Err(stopping))
    }

    /// Stops everything, the last started root first; `true` if all of it ended by itself within `grace`.
    ///
    /// What does not end within its own grace, or within this one, is killed. The system starts nothing afterwards.
    pub async fn shut_down(&self, grace: Duration) -> bool {
        let deadline = Instant::now() + grace;
        self.inner.closed.store(true, Ordering::SeqCst);
        let guardian = self.inner.guardian.lock().await.take();
        let killed_before = self.inner.killed.load(Ordering::Relaxed);
        let mut orderly = true;
        if let Some(mut guardian) = guardian {
            guardian.ask_to_stop("the system shuts down", deadline);
            orderly = guardian.ended_by("the system's guardian", deadline).await;
        }
        self.inner.guardian_mailbox.close();
        self.inner.actors.close();
        let all_ended = tokio::time::timeout_at(deadline, self.inner.actors.wait()).await;
        orderly && all_ended.is_ok() && self.inner.killed.load(Ordering::Relaxed) == killed_before
    }

    /// All actors, parents before children, siblings in start order.
    pub fn tree(&self) -> Vec<ActorInfo> {
        let mut found = Vec::new();
        self.inner.guardian_node.below(self.inner.clock, &mut found);
        found
    }

    /// Actors that run: started and not yet ended to the last.
    pub fn live(&self) -> usize {
        self.inner.actors.len()
    }

    pub(crate) fn next_id(&self) -> ActorId {
        ActorId(self.inner.next_id.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn count_actor(&self) -> TaskTrackerToken {
        self.inner.actors.token()
    }

    /// Counts an actor that had to be killed.
    pub(crate) fn count_killed(&self) {
        self.inner.killed.fetch_add(1, Ordering::Relaxed);
    }

    /// A number from 0 to 1.
    pub(crate) fn chance(&self) -> f32 {
        self.inner
            .chance
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .random()
    }

    async fn start_guardian(&self) -> Result<(), ()> {
        let mut guardian = self.inner.guardian.lock().await;
        if self.inner.closed.load(Ordering::SeqCst) {
            return Err(());
        }
        if guardian.is_none() {
            let mut maker = ActorMaker {
                mailbox: Arc::clone(&self.inner.guardian_mailbox),
                make: || Guardian,
            };
            let start = Start {
                supervisor: None,
                system: self.clone(),
                node: Arc::clone(&self.inner.guardian_node),
                grace: Duration::from_secs(5),
            };
            *guardian = Some(maker.spawn(start).await.map_err(drop)?);
        }
        Ok(())
    }
}

/// Work for the guardian, which alone may start roots.
type Order = Box<dyn for<'a> FnOnce(&'a mut Context<Guardian>) -> BoxFuture<'a, ()> + Send>;

/// Supervises the roots; not part of the tree that is shown.
struct Guardian;

impl Actor for Guardian {
    type Control = Order;
    type Data = NoData;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "guardian";

    async fn on_control(&mut self, ctx: &mut Context<Self>, order: Order) -> Result<(), Failure> {
        order(ctx).await;
        Ok(())
    }

    async fn on_data(
        &mut self,
        _ctx: &mut Context<Self>,
        item: std::convert::Infallible,
    ) -> Result<(), Failure> {
        match item {}
    }
}
