//! Runs an [`Actor`] as a ractor actor: drains its lanes on each wake-up, within a budget.
//!
//! Most of its life is one call of ractor's handler, which waits at the lanes themselves: a wake-up then costs no way
//! through ractor's ports. The handler returns when a child has gone ([`Farewell`]), for ractor to tell of it. A stop
//! comes with a nudge, a kill drops the handler.

use std::future::poll_fn;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use ractor::{ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::time::Instant;

use crate::actor::Actor;
use crate::context::{Context, MailboxOf};
use crate::exit::{ExitReason, Failure};
use crate::incarnation::{
    Farewell, Incarnation, Line, Respawn, Running, Start, Wake, guarded, make,
};
use crate::lanes::Item;
use crate::mailbox::Taken;
use crate::tree::ActorState;

/// Items of one drain, before stop orders, children and other tasks of the thread get their turn.
const DRAIN_ITEMS: u32 = 128;
/// The same in time, for items that take long. Looked at every [`CLOCK_EVERY`] items. On tokio's clock: in virtual time
/// handling takes none, so that a simulation's schedule does not depend on the machine that it runs on.
const DRAIN_TIME: Duration = Duration::from_micros(500);
const CLOCK_EVERY: u32 = 4;

/// Makes the incarnations of a coordinator.
pub(crate) struct ActorMaker<A: Actor, F> {
    pub(crate) mailbox: Arc<MailboxOf<A>>,
    pub(crate) make: F,
}

impl<A: Actor, F: FnMut() -> A + Send> Respawn for ActorMaker<A, F> {
    fn spawn(&mut self, start: Start) -> BoxFuture<'_, Result<Running, ExitReason>> {
        async move {
            let supervisor = start.supervisor.clone();
            let node = Arc::clone(&start.node);
            let line = Arc::new(Line::default());
            let farewell = Farewell::new(&start, &line);
            let life = Incarnation::new(start, Arc::clone(&line));
            let actor = make(&mut self.make)?;
            node.works_in(|| actor.scope());
            let live = Box::new(Live {
                actor,
                ctx: Context::new(Arc::clone(&self.mailbox), life),
            });
            let shell = Coordinator {
                _farewell: farewell,
                of: PhantomData,
            };
            let spawned = match supervisor {
                Some(supervisor) => {
                    ractor::Actor::spawn_linked(None, shell, live, supervisor.cell).await
                }
                None => ractor::Actor::spawn(None, shell, live).await,
            };
            let (actor, join) = spawned.map_err(|error| start_failure(&line, &error))?;
            Ok(Running {
                cell: actor.get_cell(),
                join,
                line,
                node,
            })
        }
        .boxed()
    }
}

/// Why a start failed: as noted by the actor, else as ractor tells it.
pub(crate) fn start_failure(line: &Line, error: &SpawnErr) -> ExitReason {
    match line.exit() {
        // Nothing noted: ractor refused, because the parent is ending.
        ExitReason::Killed => {
            tracing::debug!(%error, "not started");
            ExitReason::Killed
        }
        reason @ (ExitReason::Failed(_)
        | ExitReason::Panicked(_)
        | ExitReason::Finished
        | ExitReason::Stopped(_)) => reason,
    }
}

/// ractor's view of a coordinator.
struct Coordinator<A> {
    _farewell: Farewell,
    of: PhantomData<fn() -> A>,
}

/// A coordinator that runs.
struct Live<A: Actor> {
    // First, so that the actor is dropped before what its context holds.
    actor: A,
    ctx: Context<A>,
}

/// How a drain came to its end.
enum Drained {
    /// All lanes are empty and the task's waker is in place.
    Dry,
    /// The budget is used up; more may wait.
    Budget,
    /// The actor is about to end.
    Ending,
}

impl<A: Actor> ractor::Actor for Coordinator<A> {
    type Msg = Wake;
    type State = Option<Box<Live<A>>>;
    type Arguments = Box<Live<A>>;

    async fn pre_start(
        &self,
        myself: ActorRef<Wake>,
        mut live: Box<Live<A>>,
    ) -> Result<Self::State, ActorProcessingErr> {
        live.ctx.core.attach(myself.get_cell());
        let node = Arc::clone(&live.ctx.core.life.node);
        let started = guarded(&node, live.actor.started(&mut live.ctx)).await;
        if let Err(reason) = flatten(started) {
            let message = reason.to_string();
            live.ctx.core.life.line.note_exit(reason);
            live.ctx.core.children.kill_all().await;
            return Err(message.into());
        }
        live.ctx.core.life.line.note_started();
        live.ctx.core.life.node.set_state(ActorState::Idle);
        // Items may wait from before, or from an incarnation before this one.
        myself.cast(Wake)?;
        Ok(Some(live))
    }

    async fn handle(
        &self,
        myself: ActorRef<Wake>,
        Wake: Wake,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let Some(live) = state else {
            return Ok(());
        };
        let node = Arc::clone(&live.ctx.core.life.node);
        loop {
            node.set_state(ActorState::Busy);
            // Boxed: each layer of ractor around this handler would keep room for the future, and move it.
            let drained = Box::pin(guarded(&node, live.drain())).await;
            match live.settle(drained) {
                Drained::Dry | Drained::Budget if live.ctx.core.children.end_unheard() => {
                    // Behind what is in the supervision port.
                    myself.cast(Wake)?;
                    return Ok(());
                }
                Drained::Dry => {
                    node.set_state(ActorState::Idle);
                    live.ctx.mailbox.woken().await;
                }
                Drained::Budget => tokio::task::yield_now().await,
                Drained::Ending => {
                    myself.stop(None);
                    return Ok(());
                }
            }
        }
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Wake>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let Some(live) = state else {
            return Ok(());
        };
        let ended = match event {
            SupervisionEvent::ActorTerminated(child, _, _)
            | SupervisionEvent::ActorFailed(child, _) => child.get_id(),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {
                return Ok(());
            }
        };
        let node = Arc::clone(&live.ctx.core.life.node);
        let told = Box::pin(guarded(&node, live.child_ended(ended))).await;
        match live.settle(told) {
            Drained::Dry | Drained::Budget => {}
            Drained::Ending => myself.stop(None),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Wake>,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(live) = state.take() {
            live.end().await;
        }
        Ok(())
    }
}

impl<A: Actor> Live<A> {
    /// Handles what waits, best lane first, until nothing does or the budget is used up.
    async fn drain(&mut self) -> Result<Drained, Failure> {
        let began = Instant::now();
        let mut handled: u32 = 0;
        let drained = loop {
            if self.ctx.core.stop.is_some() {
                break Drained::Ending;
            }
            let taken = poll_fn(|cx| Poll::Ready(self.ctx.mailbox.take_or_sleep(cx.waker())));
            match taken.await {
                Taken::Item(item) => {
                    self.ctx.core.life.node.count_handled();
                    match item {
                        Item::Control(message) => {
                            self.actor.on_control(&mut self.ctx, message).await?;
                        }
                        // `on_drained` comes soon.
                        Item::News => {}
                        Item::Data(item) => self.actor.on_data(&mut self.ctx, item).await?,
                        Item::Telemetry(item) => {
                            self.actor.on_telemetry(&mut self.ctx, item).await?;
                        }
                    }
                }
                // Boxed, as is the other rare path below: what a handler's future has room for, each actor has room for.
                Taken::Nudge => {
                    // A stop comes with a nudge.
                    if self.ctx.core.is_ending() {
                        break Drained::Ending;
                    }
                    if let Some(now) = Box::pin(self.ctx.core.alarm_rang()).await {
                        self.actor.on_deadline(&mut self.ctx, now).await?;
                    }
                }
                Taken::Asleep => break Drained::Dry,
            }
            self.tell_exits().await?;
            handled += 1;
            if handled >= DRAIN_ITEMS
                || (handled.is_multiple_of(CLOCK_EVERY) && began.elapsed() >= DRAIN_TIME)
            {
                break Drained::Budget;
            }
        };
        if handled > 0 {
            self.actor.on_drained(&mut self.ctx).await?;
            self.tell_exits().await?;
        }
        Ok(drained)
    }

    async fn child_ended(&mut self, child: ractor::ActorId) -> Result<Drained, Failure> {
        self.ctx.core.children.ended(child).await;
        self.ctx.core.set_alarm();
        self.tell_exits().await?;
        self.actor.on_drained(&mut self.ctx).await?;
        self.tell_exits().await?;
        Ok(Drained::Dry)
    }

    /// Tells the actor which children have ended, and ends it if one of them was significant.
    async fn tell_exits(&mut self) -> Result<(), Failure> {
        while let Some(exit) = self.ctx.core.children.take_exit() {
            self.actor.on_child_exit(&mut self.ctx, exit).await?;
        }
        if let Some(reason) = self.ctx.core.children.take_verdict_on_parent() {
            self.ctx.stop(reason);
        }
        Ok(())
    }

    /// Notes what ends the actor, if something did.
    fn settle(&mut self, outcome: Result<Result<Drained, Failure>, ExitReason>) -> Drained {
        match flatten(outcome) {
            Ok(drained) if self.ctx.core.stop.is_none() => drained,
            Ok(_) => Drained::Ending,
            Err(reason) => {
                self.ctx.core.stop = Some(reason);
                Drained::Ending
            }
        }
    }

    /// Ends children, tasks and the actor itself, in this order, within the grace.
    async fn end(mut self: Box<Self>) {
        let core = &mut self.ctx.core;
        let line = Arc::clone(&core.life.line);
        let reason = core.stop.take().unwrap_or_else(|| {
            ExitReason::Stopped(line.stop_order().map_or_else(
                || "its parent let go of it".to_owned(),
                |order| order.reason,
            ))
        });
        core.life.node.set_state(ActorState::Stopping);
        line.note_exit(reason.clone());
        line.announce_end();
        let deadline = core.life.deadline();
        core.wind_down(&reason, deadline).await;

        match reason {
            // The actor's state is not to be trusted.
            ExitReason::Panicked(_) | ExitReason::Killed => {}
            ExitReason::Finished | ExitReason::Stopped(_) | ExitReason::Failed(_) => {
                let node = Arc::clone(&self.ctx.core.life.node);
                let stopped = guarded(&node, self.actor.stopped(&mut self.ctx, &reason));
                match tokio::time::timeout_at(deadline, stopped).await {
                    Ok(Ok(())) => {}
                    Ok(Err(panic)) => line.note_exit(panic),
                    Err(_) => return,
                }
            }
        }
        line.note_ended_well();
    }
}

fn flatten<T>(outcome: Result<Result<T, Failure>, ExitReason>) -> Result<T, ExitReason> {
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(failure)) => Err(ExitReason::Failed(failure.message)),
        Err(panic) => Err(panic),
    }
}
