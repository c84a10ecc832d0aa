//! What a coordinator can do from inside its handlers.

use std::borrow::Cow;
use std::future::poll_fn;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::actor::{Actor, Handle};
use crate::children::{ChildInfo, Children, NewChild, SpawnError};
use crate::clock::Clock;
use crate::coordinator::ActorMaker;
use crate::exit::ExitReason;
use crate::id::ActorId;
use crate::incarnation::{Incarnation, Respawn, Supervisor};
use crate::lane::Buffer;
use crate::mailbox::Mailbox;
use crate::pump::{Pump, PumpHandle, PumpMaker};
use crate::refs::{Address, ControlRef, DataRef, TelemetryRef};
use crate::supervisor::ChildSpec;
use crate::system::System;
use crate::tasks::Tasks;
use crate::tree::{Node, Post};

/// The mailbox of a coordinator.
pub(crate) type MailboxOf<A> =
    Mailbox<<A as Actor>::Control, <A as Actor>::Data, <A as Actor>::Telemetry>;

/// What a coordinator can do from inside its handlers.
pub struct Context<A: Actor> {
    pub(crate) mailbox: Arc<MailboxOf<A>>,
    pub(crate) core: Core,
}

/// The part of a context that does not depend on what the actor handles.
pub(crate) struct Core {
    pub(crate) children: Children,
    pub(crate) tasks: Tasks,
    alarm: Alarm,
    pub(crate) stop: Option<ExitReason>,
    // Last, so that children and tasks are gone before the mailbox is let go.
    pub(crate) life: Incarnation,
}

impl<A: Actor> Context<A> {
    pub(crate) fn new(mailbox: Arc<MailboxOf<A>>, life: Incarnation) -> Self {
        Self {
            mailbox,
            core: Core {
                children: Children::new(life.system.clone()),
                tasks: Tasks::default(),
                alarm: Alarm::default(),
                stop: None,
                life,
            },
        }
    }

    /// Who this is.
    pub fn id(&self) -> ActorId {
        self.core.life.node.id
    }

    /// The names from the root to this actor, joined by `/`.
    pub fn path(&self) -> &str {
        &self.core.life.node.path
    }

    /// The system's clock.
    pub fn clock(&self) -> Clock {
        self.core.life.system.clock()
    }

    /// The system this actor lives in.
    pub fn system(&self) -> &System {
        &self.core.life.system
    }

    /// This actor's own control lane, to hand out.
    pub fn control_ref(&self) -> ControlRef<A::Control> {
        ControlRef::new(Arc::clone(&self.mailbox))
    }

    /// This actor's own data lane, to hand out.
    pub fn data_ref(&self) -> DataRef<<A::Data as Buffer>::Item> {
        DataRef::new(Arc::clone(&self.mailbox))
    }

    /// This actor's own telemetry lane, to hand out.
    pub fn telemetry_ref(&self) -> TelemetryRef<A::Telemetry> {
        TelemetryRef::new(Arc::clone(&self.mailbox))
    }

    // --- children ---

    /// Starts a child and waits until it has started. `make` makes it anew for each restart; `data` is kept over them.
    pub async fn spawn<B: Actor>(
        &mut self,
        spec: ChildSpec,
        data: B::Data,
        make: impl FnMut() -> B + Send + 'static,
    ) -> Result<Handle<B>, SpawnError> {
        let mailbox = Arc::new(Mailbox::new(spec.limits, data));
        let respawn = ActorMaker {
            mailbox: Arc::clone(&mailbox),
            make,
        };
        let post = Arc::clone(&mailbox) as _;
        // Boxed, here and below: whoever starts children has room for this in its own future all its life.
        let id = Box::pin(self.core.adopt(spec, B::KIND, post, Box::new(respawn))).await?;
        Ok(Address::new(id, &mailbox))
    }

    /// The same for a pump.
    pub async fn spawn_pump<P: Pump>(
        &mut self,
        spec: ChildSpec,
        data: P::Data,
        make: impl FnMut() -> P + Send + 'static,
    ) -> Result<PumpHandle<P>, SpawnError> {
        let mailbox = Arc::new(Mailbox::new(spec.limits, data));
        let respawn = PumpMaker {
            mailbox: Arc::clone(&mailbox),
            make,
        };
        let post = Arc::clone(&mailbox) as _;
        let id = Box::pin(self.core.adopt(spec, P::KIND, post, Box::new(respawn))).await?;
        Ok(Address::new(id, &mailbox))
    }

    /// Asks a child to stop and waits for its end; kills it after its grace. It is not restarted.
    ///
    /// Its end is also reported to [`Actor::on_child_exit`], after the present handler.
    pub async fn stop_child(&mut self, id: ActorId, reason: &str) {
        self.core.children.stop(id, reason, None).await;
    }

    /// Asks a child to stop without waiting; kills it after its grace. It is not restarted.
    pub fn stop_child_soon(&mut self, id: ActorId, reason: &str) {
        self.core.children.stop_soon(id, reason);
    }

    /// The children that were not asked to stop, in start order; those that wait for a restart too.
    pub fn children(&self) -> impl Iterator<Item = &ChildInfo> {
        self.core.children.infos()
    }

    // --- time ---

    /// Asks for [`Actor::on_deadline`] at `at`. There is one deadline: of two, the earlier wins.
    pub fn wake_at(&mut self, at: Instant) {
        let at = self.core.alarm.deadline.map_or(at, |other| other.min(at));
        self.core.alarm.deadline = Some(at);
        self.core.set_alarm();
    }

    /// Takes the deadline back.
    pub fn clear_wake(&mut self) {
        self.core.alarm.deadline = None;
    }

    // --- the end ---

    /// Ends this actor after the present handler. Of several reasons the first stands.
    pub fn stop(&mut self, reason: ExitReason) {
        self.core.stop.get_or_insert(reason);
    }

    /// Fires when this actor is asked to stop, when it begins to end by itself, and when it is killed.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.core.life.line.cancel
    }

    /// Runs a task that belongs to this actor.
    ///
    /// It is told to stop by [`cancellation`](Self::cancellation), waited for within the grace when the actor stops and
    /// aborted after that; aborted at once when the actor is killed or panics.
    pub fn spawn_task(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.core.tasks.spawn(&self.core.life.node.path, name, task);
    }

    // --- the lanes, from inside a handler ---

    /// Takes a control message that waits, if one does.
    pub fn try_control(&mut self) -> Option<A::Control> {
        let message = self.mailbox.try_control();
        if message.is_some() {
            self.core.life.node.count_handled();
        }
        message
    }

    /// Control messages that wait; one atomic load.
    pub fn control_depth(&self) -> usize {
        self.mailbox.control_depth()
    }

    /// Whether a control message waits; one atomic load.
    pub fn control_pending(&self) -> bool {
        self.mailbox.control_pending()
    }

    /// Waits until a control message waits, or the data lane [has news](Buffer::has_news): the other branch of a
    /// `select!` around a long wait. Take both, or it is ready at once the next time.
    pub async fn stirred(&self) {
        poll_fn(|cx| self.mailbox.poll_stirred(cx)).await;
    }

    /// Holds data back, or lets it flow again. While held, control, telemetry, children and deadlines are served.
    pub fn pause_data(&mut self, paused: bool) {
        self.mailbox.pause_data(paused);
    }

    /// Looks into the data lane, under the lock its senders need: briefly, and without sending.
    pub fn with_data<R>(&self, look: impl FnOnce(&mut A::Data) -> R) -> R {
        self.mailbox.with_data(look)
    }
}

impl Core {
    /// Has started as this ractor actor.
    pub(crate) fn attach(&mut self, cell: ractor::ActorCell) {
        let line = Arc::clone(&self.life.line);
        self.children.supervised_by(Supervisor { cell, line });
    }

    async fn adopt(
        &mut self,
        spec: ChildSpec,
        kind: &'static str,
        mailbox: Arc<dyn Post>,
        respawn: Box<dyn Respawn>,
    ) -> Result<ActorId, SpawnError> {
        let parent = &self.life.node;
        let path = if parent.path.is_empty() {
            spec.name.clone()
        } else {
            format!("{}/{}", parent.path, spec.name)
        };
        if self.stop.is_some() || self.life.line.stop_asked() {
            return Err(SpawnError::Stopping { path });
        }
        let system = &self.life.system;
        let id = system.next_id();
        let now = system.clock().now();
        let node = Node::new(id, path.into(), kind, Some(parent), mailbox, now);
        self.children
            .spawn(NewChild {
                spec,
                node: Arc::new(node),
                respawn,
            })
            .await?;
        Ok(id)
    }

    /// Whether this actor is about to end.
    pub(crate) fn is_ending(&self) -> bool {
        self.stop.is_some() || self.life.line.stop_asked()
    }

    /// Does what is due beside the lanes; says whether the actor's own deadline is.
    pub(crate) async fn alarm_rang(&mut self) -> Option<Instant> {
        let now = Instant::now();
        // Rung: its task may still be on its way out, and must not pass for a bell to come.
        self.alarm.armed = None;
        self.children.restart_due(now).await;
        let due = self.alarm.deadline.is_some_and(|at| at <= now);
        if due {
            self.alarm.deadline = None;
        }
        self.set_alarm();
        due.then_some(now)
    }

    /// Sees to it that the mailbox is nudged at the next thing that is due.
    pub(crate) fn set_alarm(&mut self) {
        let next = [self.alarm.deadline, self.children.next_restart()]
            .into_iter()
            .flatten()
            .min();
        if let Some(at) = next {
            self.alarm.ring_by(at, self.life.node.mailbox());
        }
    }

    /// Ends children and tasks: gently, or at once after a panic.
    ///
    /// Seven eighths of the time left are for the children, half of the rest for tasks, the remainder for `stopped`.
    pub(crate) async fn wind_down(&mut self, reason: &ExitReason, deadline: Instant) {
        self.alarm = Alarm::default();
        match reason {
            ExitReason::Panicked(_) | ExitReason::Killed => self.children.kill_all().await,
            ExitReason::Finished | ExitReason::Stopped(_) | ExitReason::Failed(_) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let parent_ends = format!("its parent {reason}");
                self.children
                    .stop_all(&parent_ends, deadline - left / 8)
                    .await;
                self.tasks
                    .wind_down(&self.life.node.path, deadline - left / 16)
                    .await;
            }
        }
    }
}

/// One timer for everything an actor waits for in time.
#[derive(Default)]
struct Alarm {
    deadline: Option<Instant>,
    armed: Option<Armed>,
}

struct Armed {
    at: Instant,
    task: JoinHandle<()>,
}

impl Alarm {
    /// Rings by `at`. An earlier bell is left as it is: when it rings, the next is set.
    fn ring_by(&mut self, at: Instant, mailbox: &Arc<dyn Post>) {
        if let Some(armed) = &self.armed
            && armed.at <= at
            && !armed.task.is_finished()
        {
            return;
        }
        let mailbox = Arc::clone(mailbox);
        self.armed = Some(Armed {
            at,
            task: tokio::spawn(async move {
                tokio::time::sleep_until(at).await;
                mailbox.nudge();
            }),
        });
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        self.task.abort();
    }
}
