//! An actor whose life is one long future, for selecting between its lanes and its I/O.

use std::future::poll_fn;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{self, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use ractor::{ActorProcessingErr, ActorRef};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::clock::Clock;
use crate::coordinator::start_failure;
use crate::exit::ExitReason;
use crate::id::ActorId;
use crate::incarnation::{
    Farewell, Incarnation, Line, Respawn, Running, Start, Wake, guarded, make,
};
use crate::lane::Buffer;
use crate::lanes::Item;
use crate::mailbox::{Mailbox, Taken};
use crate::refs::{Address, ControlRef, DataRef, TelemetryRef};
use crate::system::System;
use crate::tree::{ActorState, Node};

/// Where a pump can be reached.
pub type PumpHandle<P> =
    Address<<P as Pump>::Control, <<P as Pump>::Data as Buffer>::Item, <P as Pump>::Telemetry>;

/// An actor whose life is one long future.
///
/// It selects between its lanes and its I/O, and returns when done or when [`PumpContext::cancellation`] fires: a pump
/// that does neither is killed after its grace, which drops the future where it awaits.
pub trait Pump: Send + Sized + 'static {
    /// What its parent and peers tell it; never shed.
    type Control: Send + 'static;
    /// What its data lane keeps its items in; [`NoData`](crate::NoData) for none.
    type Data: Buffer;
    /// What may be lost under load; [`NoTelemetry`](crate::NoTelemetry) for none.
    type Telemetry: Send + 'static;
    /// What it is, in reports.
    const KIND: &'static str;

    /// Whose the pump is: what is logged while it works is said to be within. Made within its parent's.
    fn scope(&self) -> Span {
        Span::none()
    }

    /// The pump's life; what it returns is why it ended.
    fn run(&mut self, ctx: &mut PumpContext<Self>) -> impl Future<Output = ExitReason> + Send;
}

/// What a pump can do.
pub struct PumpContext<P: Pump> {
    inbox: Inbox<P::Control, P::Data, P::Telemetry>,
    life: Incarnation,
}

/// The receiving end of a pump's lanes.
///
/// Apart from the context, so that a `select!` can wait for it while it uses the rest.
pub struct Inbox<C, D: Buffer, T> {
    mailbox: Arc<Mailbox<C, D, T>>,
    node: Arc<Node>,
}

impl<P: Pump> PumpContext<P> {
    /// The receiving end of the lanes.
    pub fn inbox(&mut self) -> &mut Inbox<P::Control, P::Data, P::Telemetry> {
        &mut self.inbox
    }

    /// The next item: control before data before telemetry. Cancel safe: nothing is lost when the wait is given up.
    pub async fn next(&mut self) -> Item<P::Control, <P::Data as Buffer>::Item, P::Telemetry> {
        self.inbox.next().await
    }

    /// The next control message; the other lanes wait. Cancel safe.
    pub async fn next_control(&mut self) -> P::Control {
        self.inbox.next_control().await
    }

    /// Takes a control message that waits, if one does.
    pub fn try_control(&mut self) -> Option<P::Control> {
        self.inbox.try_control()
    }

    /// Takes a data item that waits, if one does.
    pub fn try_data(&mut self) -> Option<<P::Data as Buffer>::Item> {
        self.inbox.try_data()
    }

    /// Who this is.
    pub fn id(&self) -> ActorId {
        self.life.node.id
    }

    /// The names from the root to this actor, joined by `/`.
    pub fn path(&self) -> &str {
        &self.life.node.path
    }

    /// The system's clock.
    pub fn clock(&self) -> Clock {
        self.life.system.clock()
    }

    /// The system this actor lives in.
    pub fn system(&self) -> &System {
        &self.life.system
    }

    /// Fires when this pump is asked to stop, and when it has ended.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.life.line.cancel
    }

    /// What it was asked to stop for, once it was; for the [`ExitReason::Stopped`] to return.
    pub fn stop_reason(&self) -> Option<String> {
        self.life.line.stop_order().map(|order| order.reason)
    }

    /// This pump's own control lane, to hand out.
    pub fn control_ref(&self) -> ControlRef<P::Control> {
        ControlRef::new(Arc::clone(&self.inbox.mailbox))
    }

    /// This pump's own data lane, to hand out.
    pub fn data_ref(&self) -> DataRef<<P::Data as Buffer>::Item> {
        DataRef::new(Arc::clone(&self.inbox.mailbox))
    }

    /// This pump's own telemetry lane, to hand out.
    pub fn telemetry_ref(&self) -> TelemetryRef<P::Telemetry> {
        TelemetryRef::new(Arc::clone(&self.inbox.mailbox))
    }
}

impl<C: Send, D: Buffer, T: Send> Inbox<C, D, T> {
    /// The next item: control before data before telemetry. Cancel safe: nothing is lost when the wait is given up.
    pub async fn next(&mut self) -> Item<C, D::Item, T> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next control message; the other lanes wait. Cancel safe.
    pub async fn next_control(&mut self) -> C {
        let message = poll_fn(|cx| self.mailbox.poll_control(cx)).await;
        self.node.count_handled();
        message
    }

    /// Takes a control message that waits, if one does.
    pub fn try_control(&mut self) -> Option<C> {
        let message = self.mailbox.try_control()?;
        self.node.count_handled();
        Some(message)
    }

    /// Takes a data item that waits, if one does.
    pub fn try_data(&mut self) -> Option<D::Item> {
        let item = self.mailbox.try_data()?;
        self.node.count_handled();
        Some(item)
    }

    /// Whether a control message waits; one atomic load.
    pub fn control_pending(&self) -> bool {
        self.mailbox.control_pending()
    }

    /// Looks into the data lane, under the lock its senders need: briefly, and without sending.
    ///
    /// Ask for the [next](Self::next) item afterwards: nobody is woken for what may be taken now.
    pub fn with_data<R>(&self, look: impl FnOnce(&mut D) -> R) -> R {
        self.mailbox.look_at_data(look)
    }

    fn poll_next(&mut self, cx: &mut task::Context<'_>) -> Poll<Item<C, D::Item, T>> {
        // Under a stream of items this never waits, so it has to give the thread's other tasks their turn by itself.
        let coop = std::task::ready!(tokio::task::coop::poll_proceed(cx));
        loop {
            match self.mailbox.take_or_sleep(cx.waker()) {
                Taken::Item(item) => {
                    coop.made_progress();
                    self.node.count_handled();
                    self.node.set_state(ActorState::Busy);
                    return Poll::Ready(item);
                }
                // A pump has its own timers.
                Taken::Nudge => {}
                Taken::Asleep => {
                    self.node.set_state(ActorState::Idle);
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Makes the incarnations of a pump.
pub(crate) struct PumpMaker<P: Pump, F> {
    pub(crate) mailbox: Arc<Mailbox<P::Control, P::Data, P::Telemetry>>,
    pub(crate) make: F,
}

impl<P: Pump, F: FnMut() -> P + Send> Respawn for PumpMaker<P, F> {
    fn spawn(&mut self, start: Start) -> BoxFuture<'_, Result<Running, ExitReason>> {
        async move {
            let supervisor = start.supervisor.clone();
            let line = Arc::new(Line::default());
            let node = Arc::clone(&start.node);
            let farewell = Farewell::new(&start, &line);
            let life = Incarnation::new(start, Arc::clone(&line));
            let pump = make(&mut self.make)?;
            node.works_in(|| pump.scope());
            let live = Box::new(Live {
                pump,
                ctx: PumpContext {
                    inbox: Inbox {
                        mailbox: Arc::clone(&self.mailbox),
                        node: Arc::clone(&node),
                    },
                    life,
                },
            });
            let shell = Shell {
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

/// ractor's view of a pump: one message, whose handler is the pump's whole life.
struct Shell<P> {
    _farewell: Farewell,
    of: PhantomData<fn() -> P>,
}

/// A pump that runs.
struct Live<P: Pump> {
    pump: P,
    ctx: PumpContext<P>,
}

impl<P: Pump> ractor::Actor for Shell<P> {
    type Msg = Wake;
    type State = Option<Box<Live<P>>>;
    type Arguments = Box<Live<P>>;

    async fn pre_start(
        &self,
        myself: ActorRef<Wake>,
        live: Box<Live<P>>,
    ) -> Result<Self::State, ActorProcessingErr> {
        live.ctx.life.line.note_started();
        myself.cast(Wake)?;
        Ok(Some(live))
    }

    async fn handle(
        &self,
        myself: ActorRef<Wake>,
        Wake: Wake,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let Some(mut live) = state.take() else {
            return Ok(());
        };
        live.ctx.life.node.set_state(ActorState::Busy);
        let line = Arc::clone(&live.ctx.life.line);
        let node = Arc::clone(&live.ctx.life.node);
        let reason = match guarded(&node, live.pump.run(&mut live.ctx)).await {
            Ok(reason) | Err(reason) => reason,
        };
        line.note_exit(reason);
        drop(live);
        line.note_ended_well();
        myself.stop(None);
        Ok(())
    }

    /// Reached with the pump still here when it was stopped before it ran.
    async fn post_stop(
        &self,
        _myself: ActorRef<Wake>,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(live) = state.take() {
            let reason = live.ctx.stop_reason().unwrap_or_default();
            let line = Arc::clone(&live.ctx.life.line);
            line.note_exit(ExitReason::Stopped(reason));
            line.note_ended_well();
        }
        Ok(())
    }
}
