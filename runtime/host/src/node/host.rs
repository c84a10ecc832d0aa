//! The node host: the actor that one node lives in.
//!
//! Events come by the data lane, one at a time; what the node emits goes straight to the hosts
//! downstream. The control lane is looked at between any two events and at every await of a
//! handler: a cancel drops the handler where it waits (design §4).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_actors::{
    Actor, ActorId, CancellationToken, ChildExit, ChildSpec, Clock, Context, ControlRef,
    ControlRefused, DataRef, ExitReason, Failure, TelemetryRef,
};
use rspp_kernel::{
    CancelReason,
    authority::{AuthorityFault, Checkpoint},
    budget::{BudgetEvent, BudgetKey, Threshold},
    edge::{BreakReason, EdgeNotice},
    fence::OutputFence,
    graph::{EdgeIx, Ended, Ends, Graph, Stream},
    tool::ToolRequest,
    turn::Ending,
};
use rspp_proto::{
    EdgeId, Epoch, InvocationId, Monotonic, Payload,
    abi::{CancelMode, OutcomeScope},
    spec::{ErrorAction, NodeKind, PressureAction},
};
use tokio::{sync::Notify, time::Instant};

use super::{
    CallRequest, EdgeReport, Hook, Inputs, MAX_RESTING, Node, NodeContext, NodeError, NodeReport,
    NodeSettings, Step, Succession, WorkBook,
    context::Ask,
    effort::Effort,
    handler::{Handled, Watch, finish, guarded},
    outlet::{Blocked, Outlet},
};
use crate::{
    event::{Arrival, CallKey, Event, Port},
    invoke::{CallSite, Invocation, InvocationSetup},
    meters::{Meters, NodeMeter},
    observe::Observed,
    overhead::Overhead,
    providers::Listed,
    pulse::{HandlerInProgress, Pulse},
    schedule::Shed,
    scope,
    session::SessionControl,
    watchdog::Watched,
};
use tracing::Span;

/// What a node host is told by its supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NodeControl {
    /// Drop what you are doing, abort your calls, forget what waits.
    Cancel {
        /// Why.
        reason: CancelReason,
        /// When the cancel was accepted.
        at: Monotonic,
    },
    /// Give up this provider call, if it is yours; what it has brought so far stands.
    CancelCall(InvocationId),
    /// The turn has gone mute: if a handler is waiting, it hangs, and is given up; so is a provider that
    /// says nothing.
    Unstick,
    /// Go on under a newer epoch.
    Rotate(Epoch),
    /// Something of a sync domain was lost on another of its edges.
    Sync(Port, Torn),
    /// The guess was right: what is held for the user may leave (P9).
    Promote,
    /// What this node has handed over was taken, or its taker rests.
    Taken,
    /// The host's own note: an edge that leads here wants the standby to take over.
    Pressed,
    /// The host's own note: the session had no room for a report.
    Unheard,
}

/// What a loss on one edge of a sync domain means for the others (`scope: plan_wide`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Torn {
    /// Give up your part of the group.
    Lose(u64),
    /// Reset before the next event.
    Reset(BreakReason),
}

impl Torn {
    pub(crate) fn apply(self, inputs: &mut Inputs, port: Port) {
        match self {
            Self::Lose(group) => inputs.lose_group(port, group),
            Self::Reset(reason) => inputs.reset(port, reason),
        }
    }
}

/// An edge that leads away from a node, to a host that exists.
#[derive(Clone)]
pub(crate) struct OutEdge {
    pub(crate) ix: EdgeIx,
    pub(crate) to: DataRef<Arrival>,
    pub(crate) port: Port,
    /// Whether it leads to the user.
    pub(crate) to_user: bool,
    /// How long the edge may hold this node back.
    pub(crate) max_block_time: Duration,
    /// How long an event may wait on it.
    pub(crate) max_queue_time: Duration,
}

/// Why a standby takes over from a node that cannot keep up.
pub(crate) const PRESSURE: &str = "edge_watermark_high";

/// Makes a node; called again if it has to be restarted.
pub(crate) type NodeMaker = Arc<dyn Fn() -> Box<dyn Node> + Send + Sync>;

/// Everything a node host needs; shared by its incarnations.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone)]
pub(crate) struct NodeSetup {
    pub(crate) settings: NodeSettings,
    pub(crate) graph: Arc<Graph>,
    pub(crate) make: NodeMaker,
    pub(crate) outputs: Vec<OutEdge>,
    pub(crate) clock: Clock,
    pub(crate) fence: Arc<OutputFence>,
    pub(crate) session: ControlRef<SessionControl>,
    pub(crate) telemetry: TelemetryRef<Observed>,
    pub(crate) overhead: Arc<Overhead>,
    /// What the session measures, if it does, and this node's own.
    pub(crate) meters: Option<(Arc<Meters>, Arc<NodeMeter>)>,
    /// What nodes do for each turn, where that is looked at.
    pub(crate) work: Option<Arc<WorkBook>>,
    pub(crate) watched: Arc<Watched>,
    /// Fires when the session or turn is cancelled.
    pub(crate) cancel: CancellationToken,
    /// The edges that lead here, by port; for what they have to report.
    pub(crate) input_edges: Arc<[EdgeId]>,
    /// The ends that are still to come by them, where more than one may, or one of nothing (F-004, F-018). What
    /// has come has come, whoever stands here now.
    pub(crate) ends: Option<Arc<Mutex<Ends>>>,
    /// Whether ends come by them at all: else the turn's words are all that does.
    pub(crate) is_told_of_ends: bool,
    /// Whether somebody who is waited for together with others hears from here.
    pub(crate) is_waited_for: bool,
    /// The edges of all who may stand here, if they have some of their own: an end goes along each.
    pub(crate) branches: Arc<[(Stream, OutEdge)]>,
    /// Whether one of them holds partial results back.
    pub(crate) coalesces: bool,
    /// Its turn is a guess yet.
    pub(crate) provisional: bool,
    pub(crate) pulse: Arc<Pulse>,
    /// Whether what it says may reach the user.
    pub(crate) leads_to_user: bool,
    pub(crate) succession: Succession,
}

/// The actor.
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts about the host that hold independently of each other"
)]
pub(crate) struct NodeHost {
    pub(super) setup: NodeSetup,
    pub(super) node: Box<dyn Node>,
    pub(super) cx: NodeContext,
    /// Fires when what the node is doing is no longer wanted; a new one after each cancel.
    pub(super) work: CancellationToken,
    /// Calls whose answers are still wanted.
    calls: BTreeMap<CallKey, Running>,
    /// Control messages that came while a handler ran and did not stop it.
    deferred: VecDeque<NodeControl>,
    armed: Option<Monotonic>,
    /// Arrivals so far, for choosing those whose cost is measured.
    taken: u32,
    /// When what downstream kept it waiting for was over last.
    free_since: Monotonic,
    /// The edges that lead here of which was told that words wait too long on them.
    late_edges: u64,
    /// Whether a report found no room.
    unheard: bool,
    /// What the standby has yet to be told.
    replay: VecDeque<Arrival>,
    /// Whether an edge that leads here wants the standby to take over.
    under_pressure: bool,
    /// How often this host had been started before.
    life: u32,
    /// Whether it was told that work was refused for its epoch.
    refused: bool,
    /// Whether the node was force-stopped by the cancel at hand.
    is_forced: bool,
    /// What is on its way out.
    outlet: Outlet,
    /// Whether the node has begun; a foreign one does not for a guess.
    pub(super) begun: bool,
    /// Whether what waits here is being shed.
    shedding: bool,
    pub(super) effort: Effort,
    pub(super) ended: bool,
    /// Whether nothing more comes for it in its turn, and it has not said so itself yet.
    is_fed: bool,
    /// Whether a stream that could have come to it went another way: it is not told of its end.
    is_left_out: bool,
}

struct Running {
    actor: ActorId,
    id: InvocationId,
    cancel: CancellationToken,
    /// Tells it that the turn has gone mute.
    unstick: Arc<Notify>,
    _listed: Listed,
}

impl NodeHost {
    pub(crate) fn new(mut setup: NodeSetup) -> Self {
        // An incarnation after a crash goes on as whoever ran then.
        if let Some(standby) = setup.succession.clone().current() {
            setup.settings = standby.settings.clone();
            setup.make = Arc::clone(&standby.make);
            setup.outputs.clone_from(&standby.outputs);
        }
        // A node that listens may be restarted after the lease has moved on.
        if setup.settings.turn.is_none()
            && let Some(epoch) = setup.fence.epoch()
        {
            setup.settings.epoch = epoch;
        }
        let mut outlet = Outlet::new(setup.provisional);
        outlet.open_stream(&mut setup.settings);
        let work = setup.cancel.child_token();
        let cx = NodeContext::new(setup.settings.clone(), setup.clock, work.clone());
        Self {
            node: (setup.make)(),
            cx,
            work,
            outlet,
            setup,
            calls: BTreeMap::new(),
            deferred: VecDeque::new(),
            armed: None,
            taken: 0,
            free_since: Monotonic::ZERO,
            late_edges: 0,
            unheard: false,
            replay: VecDeque::new(),
            under_pressure: false,
            is_forced: false,
            life: 0,
            refused: false,
            begun: false,
            shedding: false,
            effort: Effort::default(),
            ended: false,
            is_fed: false,
            is_left_out: false,
        }
    }

    /// Whether work under `epoch` may begin here. Audio that was heard under an earlier epoch of this
    /// placement is the user's all the same; what a turn makes is bound to the turn's own epoch.
    fn is_authorized(&mut self, epoch: Epoch) -> bool {
        let own = self.setup.settings.epoch;
        let listens = self.setup.settings.turn.is_none();
        if epoch == own || (listens && epoch < own) {
            return true;
        }
        let verdict = self.setup.fence.check(Checkpoint::Dispatch, epoch);
        // Nobody else can have rotated to it: a turn's plan is frozen, its epoch with it.
        let fault = verdict.err().unwrap_or(AuthorityFault::Stale {
            held: epoch,
            offered: own,
        });
        self.refuse(fault);
        false
    }

    fn refuse(&mut self, fault: AuthorityFault) {
        if !std::mem::replace(&mut self.refused, true) {
            self.report(NodeReport::StaleEpoch { fault });
        }
    }

    /// Tells the session. One whose control lane is exhausted must not miss a report silently: this
    /// host fails instead (design §4).
    pub(super) fn report(&mut self, report: NodeReport) {
        self.unheard |= !self.setup.tell(report);
    }

    /// Hands an arrival to the node and does what follows from it.
    ///
    /// Most handlers and all they lead to run straight through. Futures of those that do not are
    /// boxed: what one host has room for, each of thousands has room for.
    async fn take(&mut self, ctx: &mut Context<Self>, arrival: Arrival) -> Result<(), Failure> {
        if !self.setup.is_wanted() {
            return Ok(()); // The turn is dead: nothing that waits for it is worth doing.
        }
        if let Arrival::Event { event, .. } = &arrival
            && !self.is_authorized(event.stamp.epoch)
        {
            return Ok(());
        }
        if self.sheds(&arrival) {
            return Ok(());
        }
        match self.setup.note_stream(&arrival) {
            None | Some(Ended::Over) => {}
            Some(Ended::Early) => return Ok(()),
            Some(Ended::Unbegun) => {
                self.is_left_out = true;
                self.is_fed |= self.setup.is_last(&arrival);
                return Box::pin(self.conclude(ctx, Handled::Done(Ok(())), None)).await;
            }
        }
        if !self.begun && !Box::pin(self.wait_to_begin(ctx)).await {
            while let Some(message) = self.deferred.pop_front() {
                Box::pin(self.obey(ctx, message)).await;
            }
            return Ok(());
        }
        if !self.effort.is_free(&self.setup) && !Box::pin(self.wait_for_time(ctx)).await? {
            return Ok(());
        }
        self.note_wait(&arrival);
        self.setup.succession.note(&arrival);
        let is_closed = self.setup.is_waited_for || self.is_left_out;
        self.is_fed |= is_closed && self.setup.is_last(&arrival);
        let began = self.began(&arrival);
        self.effort.begins(&self.setup);
        self.taken = self.taken.wrapping_add(1);
        let whole = Overhead::sample(self.taken);
        let soft = self.setup.is_soft();
        let letter = self.letter(&arrival);
        self.outlet.settles = Succession::keeps(&arrival);
        let beat = self.setup.watched.enter();
        let step = match arrival {
            Arrival::Event { port, event, .. } => {
                let (node, cx) = (&mut self.node, &mut self.cx);
                if letter.is_some() {
                    guarded(move || node.on_event(cx, port, event))
                } else {
                    Ok(node.on_event(cx, port, event))
                }
            }
            Arrival::Chunk { call, chunk } => {
                if !self.calls.contains_key(&call) {
                    return Ok(()); // Of a call that was given up.
                }
                Ok(self.node.on_chunk(&mut self.cx, call, chunk))
            }
            Arrival::CallEnded { call, end } => {
                if self.calls.remove(&call).is_none() {
                    return Ok(());
                }
                Ok(self.node.on_call_end(&mut self.cx, call, end))
            }
            Arrival::Break { port, reason } => {
                self.node.on_break(&mut self.cx, port, reason);
                Ok(Step::OK)
            }
            Arrival::ToolAnswer { call, content } => {
                Ok(self.node.on_tool_answer(&mut self.cx, &call, content))
            }
        };
        drop(beat);
        // Only what ran straight through is measured: waiting is not the runtime's own cost.
        let at_once = matches!(step, Ok(Step::Done(_)));
        let own = match &step {
            Ok(Step::Done(_)) => whole.map(|watch| (watch, watch.elapsed())),
            Ok(Step::Wait(_) | Step::Work(_)) | Err(_) => None,
        };
        let watch = Watch {
            setup: &self.setup,
            token: &self.work,
            budget: self.effort.left(&self.setup),
            is_limited: self.setup.succession.has_next(),
            is_guarded: letter.is_some(),
            is_soft: soft,
        };
        let (handled, overran) =
            finish(step, ctx, &mut self.deferred, &mut self.outlet, watch).await;
        self.effort
            .ends(&self.setup, self.cx.take_charged(), overran);
        if overran {
            // That was told: it is not told again of what waited for it.
            self.free_since = Monotonic::from_duration(self.setup.clock.now());
            Box::pin(self.notify(ctx, Hook::BudgetExhausted)).await;
        }
        self.outlet.waited = false;
        self.conclude(ctx, handled, letter).await?;
        // Under load the lanes are never empty: what edges have to say must not wait for that.
        if !at_once || self.outlet.waited {
            self.report_edges(ctx);
            if self.under_pressure {
                Box::pin(self.relieve(ctx)).await;
            }
        }
        if let Some((_, meter)) = &self.setup.meters
            && let Some(took) = self.cx.take_started()
        {
            meter.started(took);
        }
        if let Some(began) = began {
            let (now, settings) = (self.cx.now(), &self.setup.settings);
            if let Some((_, meter)) = &self.setup.meters {
                meter.handled(now.since(began));
            }
            if let Some(work) = &self.setup.work {
                work.did(settings.turn, settings.node(), began, now);
            }
        }
        if let Some((watch, node)) = own
            && !self.outlet.waited
        {
            self.setup
                .overhead
                .add(watch.elapsed().saturating_sub(node), node);
        }
        Ok(())
    }

    /// Tells of words that have waited too long for this node to take them. What kept the node itself
    /// waiting is none of it, such as a line that plays no faster than one speaks.
    fn note_wait(&mut self, arrival: &Arrival) {
        let Arrival::Event {
            port,
            event,
            arrived,
            ..
        } = arrival
        else {
            return;
        };
        let is_text = Stream::of(&event.payload) == Some(Stream::Text);
        let told = 1u64.checked_shl(u32::from(port.0)).unwrap_or(0);
        let settings = &self.setup.settings;
        if !is_text || settings.turn.is_none() || self.late_edges & told != 0 {
            return;
        }
        let now = Monotonic::from_duration(self.setup.clock.now());
        let waited = now.since((*arrived).max(self.free_since));
        let limit = Duration::from_millis(settings.budgets.edge_budget_ms_default);
        let actions = &settings.calls.actions;
        let Some(event) = BudgetEvent::of_part(BudgetKey::Edge, waited, limit, actions) else {
            return;
        };
        match event.threshold {
            Threshold::Warn => {}
            Threshold::Exhaust => self.late_edges |= told,
        }
        let edge = self.setup.input_edges[usize::from(port.0)].clone();
        self.report(NodeReport::EdgeBudget { edge, event });
    }

    /// When a handler begins, where that is of interest; and a note of it for who debugs.
    fn began(&mut self, arrival: &Arrival) -> Option<Monotonic> {
        if self.cx.is_debugging() {
            self.say_taken(arrival);
        }
        let matters = self.setup.meters.is_some() || self.setup.work.is_some();
        matters.then(|| self.cx.now())
    }

    fn say_taken(&mut self, arrival: &Arrival) {
        let (what, number) = match arrival {
            Arrival::Event { port, event, .. } => {
                let edge = &self.setup.input_edges[usize::from(port.0)];
                (edge.to_string(), event.stamp.sequence)
            }
            Arrival::Break { port, .. } => {
                let edge = &self.setup.input_edges[usize::from(port.0)];
                (format!("a break of {edge}"), 0)
            }
            Arrival::Chunk { call, .. } => ("a piece of an answer".to_owned(), u64::from(call.0)),
            Arrival::CallEnded { call, .. } => {
                ("the end of an answer".to_owned(), u64::from(call.0))
            }
            Arrival::ToolAnswer { call, .. } => (format!("what came of {call}"), 0),
        };
        let number = number.to_string();
        self.cx
            .debug("taken", &[("what", &what), ("number", &number)]);
    }

    /// What goes to the dead-letter stream if the node cannot deal with it (F-132).
    fn letter(&self, arrival: &Arrival) -> Option<Box<Event>> {
        match (self.setup.settings.spec.on_error, arrival) {
            (ErrorAction::DeadLetter, Arrival::Event { event, .. }) => {
                Some(Box::new(event.clone()))
            }
            (
                ErrorAction::DeadLetter,
                Arrival::Chunk { .. }
                | Arrival::CallEnded { .. }
                | Arrival::Break { .. }
                | Arrival::ToolAnswer { .. },
            )
            | (ErrorAction::Abort, _) => None,
        }
    }

    /// After any handler: what it asked for is done, what it emitted is sent, what came meanwhile
    /// is heard.
    pub(super) async fn conclude(
        &mut self,
        ctx: &mut Context<Self>,
        handled: Handled,
        letter: Option<Box<Event>>,
    ) -> Result<(), Failure> {
        if !self.outlet.provisional && self.outlet.holds() {
            Box::pin(self.release(ctx)).await;
        }
        match self.weighed(handled) {
            Handled::Done(Ok(())) => {
                let speaks = self.speaks();
                if self.carry_out_at_once(ctx) {
                    if let Some(blocked) = self.flush_at_once() {
                        Box::pin(self.flush(ctx, blocked)).await;
                    }
                } else {
                    Box::pin(self.carry_out(ctx)).await;
                }
                let settled = self.cx.take_settled();
                if speaks {
                    self.setup.succession.settle_all();
                } else if settled > 0 {
                    self.setup.succession.settle(settled);
                }
            }
            trouble => Box::pin(self.face(ctx, trouble, letter)).await?,
        }
        while let Some(message) = self.deferred.pop_front() {
            Box::pin(self.obey(ctx, message)).await;
        }
        if !self.outlet.provisional && self.outlet.holds() {
            Box::pin(self.release(ctx)).await;
        }
        if self.is_fed {
            self.close(ctx).await;
        }
        self.arm(ctx);
        if self.unheard || self.outlet.unheard {
            return Err(Failure::new("the session's control lane is full"));
        }
        Ok(())
    }

    /// Whether what the handler emitted stands for all that the node was told before: what a standby were
    /// told of it again it might say again (P14). A voice says itself what it has dealt with.
    fn speaks(&self) -> bool {
        self.setup.succession.is_kept()
            && self.setup.settings.spec.kind != NodeKind::Tts
            && self
                .cx
                .emitted
                .iter()
                .any(|event| Stream::of(&event.payload).is_some())
    }

    /// A foreign node for which nothing more comes, and that waits for nothing, is at its end, whether or
    /// not it says so: others are waited for together with it (F-004). So is any node that was not told of
    /// an end (F-018).
    async fn close(&mut self, ctx: &mut Context<Self>) {
        let is_foreign = matches!(self.setup.settings.spec.kind, NodeKind::Custom(_));
        let is_at_work = !self.calls.is_empty() || self.cx.wake_at().is_some();
        if !(is_foreign || self.is_left_out)
            || is_at_work
            || !self.replay.is_empty()
            || !self.setup.is_wanted()
        {
            return;
        }
        self.is_fed = false;
        for stream in [Stream::Text, Stream::Audio] {
            let mut outputs = self.setup.outputs.iter();
            let brings = outputs.any(|edge| self.setup.graph.brings_end(edge.ix, stream));
            if brings && !self.outlet.has_ended(stream) {
                self.cx.emit(stream.end());
            }
        }
        if let Some(blocked) = self.flush_at_once() {
            Box::pin(self.flush(ctx, blocked)).await;
        }
    }

    /// After a handler that did not end well: what it asked for is not done.
    async fn face(
        &mut self,
        ctx: &mut Context<Self>,
        trouble: Handled,
        letter: Option<Box<Event>>,
    ) -> Result<(), Failure> {
        match trouble {
            Handled::Done(Ok(())) | Handled::Cancelled => {}
            Handled::Shed(Shed { point, reason }) => {
                self.report(NodeReport::Shed { point, reason });
            }
            Handled::Done(Err(error)) => match letter {
                Some(event) => self.bury(event, &error.message),
                None => self.fail(ctx, &error).await,
            },
            Handled::Panicked(message) => {
                if let Some(event) = letter {
                    self.bury(event, &format!("panicked: {message}"));
                }
                // Its state is not to be trusted, not even for its end.
                self.ended = true;
                self.renew(ctx).await;
            }
            Handled::Deaf(after) => {
                self.is_forced = true;
                self.report(NodeReport::ForceStopped { after });
            }
            Handled::TooLarge(error) => {
                self.fail(ctx, &error).await;
                // A node that listens is made anew, without what it kept.
                if self.setup.settings.turn.is_none() && self.cx.keeps_too_much().is_some() {
                    return Err(error.into());
                }
            }
            Handled::Hung(after) => {
                self.report(NodeReport::Hung { after });
                let hung = format!("a handler hung for {} ms", after.as_millis());
                return Err(Failure::new(hung));
            }
        }
        Ok(())
    }

    /// The node goes on without this event (F-132).
    fn bury(&mut self, event: Box<Event>, reason: &str) {
        self.forget_wishes();
        self.report(NodeReport::DeadLetter {
            event,
            reason: reason.into(),
        });
    }

    fn forget_wishes(&mut self) {
        self.cx.emitted.clear();
        self.cx.asked.clear();
    }

    async fn fail(&mut self, ctx: &mut Context<Self>, error: &NodeError) {
        self.forget_wishes();
        if self.take_over(ctx, &error.message).await {
            return;
        }
        let ending = if error.provider {
            Ending::ProviderFailed
        } else {
            Ending::NodeFailed
        };
        self.report(NodeReport::Failed {
            ending,
            code: error.code,
            message: error.message.as_str().into(),
        });
    }

    /// Lets the next standby go on with what was not settled; `false` if there is none or it is too
    /// late.
    async fn take_over(&mut self, ctx: &mut Context<Self>, reason: &str) -> bool {
        let succession = self.setup.succession.clone();
        let mut reason: Arc<str> = reason.into();
        while let Some(standby) = succession.advance() {
            self.abort_all(ctx);
            self.end_node(ctx).await;
            if let Some(taking) = &self.setup.settings.taking {
                taking.leave();
            }
            self.report(NodeReport::TookOver {
                standby: standby.settings.node().clone(),
                reason,
            });
            let epoch = self.setup.settings.epoch;
            self.setup.settings = standby.settings.clone();
            self.setup.settings.epoch = epoch;
            self.setup.outputs.clone_from(&standby.outputs);
            self.setup.make = Arc::clone(&standby.make);
            match self.make_anew(ctx).await {
                Ok(()) => {
                    self.replay = succession.take_journal();
                    return true;
                }
                Err(error) => reason = error.message.into(),
            }
        }
        false
    }

    /// A new node in place of one that had to be stopped.
    async fn renew(&mut self, ctx: &mut Context<Self>) {
        self.abort_all(ctx);
        self.end_node(ctx).await;
        if let Err(error) = self.make_anew(ctx).await {
            self.fail(ctx, &error).await;
        }
    }

    /// Hands over to the standby, if an edge that leads here asked for it (F-144).
    async fn relieve(&mut self, ctx: &mut Context<Self>) {
        if std::mem::take(&mut self.under_pressure) {
            let _nobody_stands_by = self.take_over(ctx, PRESSURE).await;
        }
    }

    async fn make_anew(&mut self, ctx: &mut Context<Self>) -> Result<(), NodeError> {
        self.node = (self.setup.make)();
        self.effort = Effort::default();
        self.ended = false;
        self.begun = false;
        self.outlet.open_stream(&mut self.setup.settings);
        self.cx = NodeContext::new(
            self.setup.settings.clone(),
            self.setup.clock,
            self.work.clone(),
        );
        if !self.may_begin() {
            return Ok(());
        }
        self.begin(ctx).await
    }

    /// What a foreign node does nobody here knows: it does not begin for a guess (P9).
    fn may_begin(&self) -> bool {
        let is_foreign = matches!(self.setup.settings.spec.kind, NodeKind::Custom(_));
        !(self.outlet.provisional && is_foreign)
    }

    /// A foreign node's input waits for the promotion with it; `false` if that does not come.
    async fn wait_to_begin(&mut self, ctx: &mut Context<Self>) -> bool {
        if !self.promoted(ctx).await {
            return false;
        }
        if let Err(error) = self.begin(ctx).await {
            Box::pin(self.fail(ctx, &error)).await;
            return false;
        }
        self.free_since = Monotonic::from_duration(self.setup.clock.now());
        true
    }

    /// Waits for the promotion; `false` if a cancel or the end comes instead.
    async fn promoted(&mut self, ctx: &mut Context<Self>) -> bool {
        let stopped = ctx.cancellation().clone();
        while self.outlet.provisional {
            tokio::select! {
                biased;
                () = stopped.cancelled() => return false,
                () = ctx.stirred() => {}
            }
            self.setup.listen(ctx, &mut self.deferred);
            if self.deferred.contains(&NodeControl::Promote) {
                self.deferred
                    .retain(|message| *message != NodeControl::Promote);
                self.outlet.provisional = false;
            }
            if self.deferred.iter().any(|message| message.stops(false)) {
                return false;
            }
        }
        true
    }

    /// Takes in what was said while the node waits for its time; whether it waits too long for the turn.
    pub(super) fn gives_up_waiting(&mut self, ctx: &mut Context<Self>) -> bool {
        self.setup.listen(ctx, &mut self.deferred);
        self.deferred.contains(&NodeControl::Unstick)
    }

    /// Whether what was said meanwhile ends the work at hand, which has not begun.
    pub(super) fn hears_of_a_stop(&self) -> bool {
        self.deferred.iter().any(|message| message.stops(false))
    }

    /// Lets out what was held; stops when a cancel comes.
    async fn release(&mut self, ctx: &mut Context<Self>) {
        let (setup, deferred) = (&self.setup, &mut self.deferred);
        self.outlet.release(ctx, deferred, setup).await;
    }

    /// Tells the standby what its predecessor had been told.
    async fn catch_up(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        while let Some(arrival) = self.replay.pop_front() {
            self.take(ctx, arrival).await?;
        }
        Ok(())
    }

    /// Whether an arrival is shed where it is taken from its edge (RK-25): the user's audio for
    /// background work, in severe overload. Said once each time that it begins.
    fn sheds(&mut self, arrival: &Arrival) -> bool {
        let schedule = &self.setup.settings.schedule;
        let is_shed = schedule.session().is_shed();
        if !is_shed {
            self.shedding = false;
            return false;
        }
        let spoken = self.setup.settings.turn.is_none()
            && matches!(arrival, Arrival::Event { event, .. }
                if matches!(event.payload, Payload::AudioChunk(_)));
        if spoken && !self.shedding {
            self.shedding = true;
            self.report(NodeReport::Shed {
                point: OutcomeScope::EdgeDequeue,
                reason: "scheduling_point_shed",
            });
        }
        spoken
    }

    /// Does what the handler asked for, up to a call that has to be started; `false` if there is one.
    fn carry_out_at_once(&mut self, ctx: &mut Context<Self>) -> bool {
        while let Some(ask) = self.cx.asked.pop_front() {
            match ask {
                Ask::Report(report) => self.report(report),
                Ask::Abort(call) => self.abort(ctx, call),
                Ask::Tools(calls) => self.call_tools(ctx, calls),
                call @ Ask::Call(..) => {
                    self.cx.asked.push_front(call);
                    return false;
                }
            }
        }
        true
    }

    /// Does all that the handler asked for, and sends what it emitted.
    async fn carry_out(&mut self, ctx: &mut Context<Self>) {
        while !self.carry_out_at_once(ctx) {
            if let Some(Ask::Call(key, request)) = self.cx.asked.pop_front() {
                self.call(ctx, key, request).await;
            }
        }
        if let Some(blocked) = self.flush_at_once() {
            self.flush(ctx, blocked).await;
        }
    }

    async fn call(&mut self, ctx: &mut Context<Self>, key: CallKey, request: CallRequest) {
        // Between the plan and this moment the lease may have moved on (turn-plan.md §5 rule 6).
        let epoch = self.setup.settings.epoch;
        if let Err(fault) = self.setup.fence.check(Checkpoint::Dispatch, epoch) {
            self.refuse(fault);
            self.fail(ctx, &NodeError::new(fault.to_string())).await;
            return;
        }
        let cancel = self.work.child_token();
        let unstick = Arc::<Notify>::default();
        let site = CallSite {
            key,
            life: self.life,
            settings: self.setup.settings.clone(),
            to: ctx.data_ref(),
            session: self.setup.session.clone(),
            cancel: cancel.clone(),
            unstick: Arc::clone(&unstick),
            clock: self.setup.clock,
            pulse: Arc::clone(&self.setup.pulse),
        };
        let setup = InvocationSetup::new(site, request);
        let id = setup.id();
        let name = format!("{}-{}", setup.modality().as_str(), key.0);
        let mut spec = ChildSpec::temporary(name);
        spec.grace = Duration::from_millis(self.setup.settings.budgets.cancel_grace_ms);
        let mut setup = Some(setup);
        let started = ctx
            .spawn_pump(spec, rspp_actors::NoData, move || {
                Invocation::new(setup.take())
            })
            .await;
        match started {
            Ok(handle) => {
                let actor = handle.id;
                let listed = self.setup.settings.calls.at_work.list(id.clone());
                let running = Running {
                    actor,
                    id,
                    cancel,
                    unstick,
                    _listed: listed,
                };
                self.calls.insert(key, running);
            }
            Err(error) => Box::pin(self.fail(ctx, &NodeError::new(error.to_string()))).await,
        }
    }

    /// Tools are the turn's: its session holds the calls, and answers here.
    fn call_tools(&mut self, ctx: &mut Context<Self>, calls: Vec<ToolRequest>) {
        let settings = &self.setup.settings;
        let Some(turn) = settings.turn else {
            tracing::warn!(node = %settings.node(), "tools are called in turns only");
            return;
        };
        let message = SessionControl::Tools {
            turn,
            node: Arc::clone(&settings.spec),
            calls,
            to: ctx.data_ref(),
        };
        match self.setup.session.send(message) {
            Ok(()) | Err(ControlRefused::Closed(_)) => {}
            Err(ControlRefused::Overflow(_)) => self.unheard = true,
        }
    }

    fn abort(&mut self, ctx: &mut Context<Self>, call: CallKey) {
        if let Some(running) = self.calls.remove(&call) {
            running.cancel.cancel();
            ctx.stop_child_soon(running.actor, "aborted");
        }
    }

    fn abort_all(&mut self, ctx: &mut Context<Self>) {
        let calls: Vec<_> = self.calls.keys().copied().collect();
        for call in calls {
            self.abort(ctx, call);
        }
    }

    /// Sends what was emitted along the edges that carry it, up to an edge that has no room.
    fn flush_at_once(&mut self) -> Option<Blocked> {
        while let Some(event) = self.cx.emitted.pop_front() {
            let blocked = self.outlet.send(&self.setup, event, 0);
            if blocked.is_some() {
                return blocked;
            }
        }
        None
    }

    /// Sends all that was emitted, and waits where there is no room; stops when a cancel comes.
    async fn flush(&mut self, ctx: &mut Context<Self>, blocked: Blocked) {
        let mut blocked = Some(blocked);
        while let Some(Blocked { at, arrival, rest }) = blocked {
            if self.outlet.provisional {
                if !self.promoted(ctx).await {
                    return;
                }
                self.release(ctx).await;
            }
            let (setup, deferred) = (&self.setup, &mut self.deferred);
            let taken = self
                .outlet
                .wait_for_space(ctx, deferred, setup, at, arrival);
            if !taken.await {
                return;
            }
            let others = rest.and_then(|event| self.outlet.send(&self.setup, event, at + 1));
            blocked = others.or_else(|| self.flush_at_once());
            self.free_since = Monotonic::from_duration(self.setup.clock.now());
        }
    }

    async fn obey(&mut self, ctx: &mut Context<Self>, message: NodeControl) {
        match message {
            NodeControl::Sync(port, torn) => {
                ctx.with_data(|inputs| torn.apply(inputs, port));
            }
            // The call itself says that it was cancelled, and so the node learns of it in order.
            NodeControl::CancelCall(invocation) => {
                let mine = self.calls.values().find(|call| call.id == invocation);
                if let Some(call) = mine {
                    call.cancel.cancel();
                }
            }
            NodeControl::Rotate(epoch) => {
                self.setup.settings.epoch = epoch;
                self.cx.rotate(epoch);
            }
            NodeControl::Promote => {
                self.outlet.provisional = false;
                if !self.begun
                    && let Err(error) = self.begin(ctx).await
                {
                    Box::pin(self.fail(ctx, &error)).await;
                }
            }
            // No handler hangs any more, but somebody who was asked may.
            NodeControl::Unstick => {
                for call in self.calls.values() {
                    call.unstick.notify_one();
                }
            }
            NodeControl::Taken => self.cx.wake_within(Duration::ZERO),
            NodeControl::Pressed => self.under_pressure = true,
            NodeControl::Unheard => self.unheard = true,
            NodeControl::Cancel { reason, at: _ } if self.setup.is_soft() => {
                ctx.with_data(Inputs::clear_edges);
                self.node.on_soft_cancel(&mut self.cx, reason);
            }
            NodeControl::Cancel { reason, at } => {
                self.work.cancel();
                // Of what the user was saying nothing more is known.
                if self.setup.settings.turn.is_none() && !self.calls.is_empty() {
                    self.report(NodeReport::UtteranceLost);
                }
                self.abort_all(ctx);
                self.forget_wishes();
                self.outlet.forget_held();
                ctx.with_data(Inputs::clear);
                self.setup.succession.forget();
                if reason == CancelReason::BargeIn {
                    self.notify(ctx, Hook::BargeIn).await;
                }
                self.notify(ctx, Hook::Cancel(reason)).await;
                if let Some((meters, meter)) = &self.setup.meters
                    && let Some(took) = meters.since_cancel(self.cx.now())
                {
                    meter.let_go(took);
                }
                // Nothing that a hook of a cancelled node emits is anybody's business.
                self.forget_wishes();
                self.work = self.setup.cancel.child_token();
                self.cx.renew_cancellation(self.work.clone());
                let is_forced = std::mem::take(&mut self.is_forced);
                self.report(NodeReport::CancelAcknowledged {
                    reason,
                    after: self.cx.now().since(at),
                    is_forced,
                    provider: self.setup.settings.providers.first().cloned(),
                });
                // What was cut off where it stood is not to be trusted with more work.
                if is_forced && self.setup.is_wanted() {
                    self.renew(ctx).await;
                }
            }
        }
    }

    /// Sees to it that the host is woken for what is due: the node's own wish, or a partial that an
    /// edge holds back.
    fn arm(&mut self, ctx: &mut Context<Self>) {
        let held = if self.setup.coalesces {
            ctx.with_data(|inputs| inputs.next_due())
        } else {
            None
        };
        let wanted = [self.cx.wake_at(), held].into_iter().flatten().min();
        if wanted == self.armed {
            return;
        }
        self.armed = wanted;
        ctx.clear_wake();
        if let Some(at) = wanted {
            ctx.wake_at(self.setup.clock.instant_at(at.as_duration()));
        }
    }

    fn report_edges(&mut self, ctx: &Context<Self>) {
        let rests = self.node.rests().min(MAX_RESTING);
        let reports = ctx.with_data(|inputs| {
            inputs.rest(rests);
            inputs.take_notices()
        });
        for report in reports {
            self.under_pressure |= wants_the_standby(&report);
            self.unheard |= !self.setup.tell_of_edge(report);
        }
    }
}

fn wants_the_standby(report: &EdgeReport) -> bool {
    report.notice == EdgeNotice::Act(PressureAction::Fallback)
}

impl NodeControl {
    /// Whether a handler that waits is dropped for it.
    pub(super) fn stops(&self, soft: bool) -> bool {
        match self {
            Self::Cancel { .. } => !soft,
            Self::CancelCall(_)
            | Self::Unstick
            | Self::Rotate(_)
            | Self::Sync(..)
            | Self::Promote
            | Self::Taken
            | Self::Pressed
            | Self::Unheard => false,
        }
    }
}

impl NodeSetup {
    /// Takes in what is said to a host in the middle of something, for after it. What the edges that lead here have to
    /// report does not wait for that.
    pub(super) fn listen(&self, ctx: &mut Context<NodeHost>, deferred: &mut VecDeque<NodeControl>) {
        while let Some(message) = ctx.try_control() {
            deferred.push_back(message);
        }
        for report in ctx.with_data(Inputs::take_notices) {
            if wants_the_standby(&report) {
                deferred.push_back(NodeControl::Pressed);
            }
            if !self.tell_of_edge(report) {
                deferred.push_back(NodeControl::Unheard);
            }
        }
    }

    fn tell_of_edge(&self, report: EdgeReport) -> bool {
        let EdgeReport { port, lane, notice } = report;
        let edge = self.input_edges[usize::from(port.0)].clone();
        self.tell(NodeReport::EdgeNotice { edge, lane, notice })
    }

    /// Whether a cancel lets what is in flight end (F-041). Once the fence has fallen nothing of a turn
    /// is worth that.
    pub(super) fn is_soft(&self) -> bool {
        self.settings.spec.cancel == CancelMode::Soft && self.is_wanted()
    }

    /// Takes in that a piece of a stream has come, or says what its end means: the node is told of an end once
    /// nothing more comes, or it would end before another branch has said its part; and only of what has
    /// come to it.
    fn note_stream(&self, arrival: &Arrival) -> Option<Ended> {
        let ends = self.ends.as_ref()?;
        let Arrival::Event { port, event, .. } = arrival else {
            return None;
        };
        let stream = Stream::of(&event.payload)?;
        let mut ends = ends.lock().expect("no code panics while locked");
        if Stream::ended_by(&event.payload).is_some() {
            return Some(ends.ended(port.0, stream));
        }
        ends.came(port.0, stream);
        None
    }

    /// Whether nothing more comes for the node after an arrival.
    fn is_last(&self, arrival: &Arrival) -> bool {
        let Arrival::Event { event, .. } = arrival else {
            return false;
        };
        match (&self.ends, Stream::ended_by(&event.payload)) {
            (_, None) => !self.is_told_of_ends,
            (None, Some(_)) => true,
            (Some(ends), Some(_)) => ends.lock().expect("no code panics while locked").is_over(),
        }
    }

    /// A handler begins to wait.
    pub(super) fn waits(&self) -> HandlerInProgress {
        let now = Monotonic::from_duration(self.clock.now());
        self.pulse
            .waits(now, self.settings.budget, self.leads_to_user)
    }

    /// Whether anybody still wants what this node does.
    pub(super) fn is_wanted(&self) -> bool {
        match self.settings.turn {
            Some(turn) => self.fence.is_live(turn),
            None => true,
        }
    }

    /// Whether the line holds what is for it back.
    pub(super) fn is_held(&self) -> bool {
        let turn = self.settings.turn;
        turn.is_some_and(|turn| self.fence.is_held(turn))
    }

    /// Whether it did.
    pub(super) fn was_held(&self) -> bool {
        let turn = self.settings.turn;
        turn.is_some_and(|turn| self.fence.was_held(turn))
    }

    /// Tells the session; `false` if its control lane is exhausted. One that has ended needs no
    /// report.
    pub(super) fn tell(&self, report: NodeReport) -> bool {
        let last_words = matches!(report, NodeReport::Failed { .. });
        let message = SessionControl::Node {
            turn: self.settings.turn,
            node: self.settings.node().clone(),
            at: Monotonic::from_duration(self.clock.now()),
            report,
        };
        let sent = if last_words {
            self.session.send_reserved(message)
        } else {
            self.session.send(message)
        };
        match sent {
            Ok(()) | Err(ControlRefused::Closed(_)) => true,
            Err(ControlRefused::Overflow(_)) => false,
        }
    }
}

impl Actor for NodeHost {
    type Control = NodeControl;
    type Data = Inputs;
    type Telemetry = rspp_actors::NoTelemetry;
    const KIND: &'static str = "node-host";

    fn scope(&self) -> Span {
        scope::of_node(self.setup.settings.node())
    }

    async fn started(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        self.life = self.setup.succession.begin_life();
        tracing::debug!(life = self.life, "a node begins");
        if let Some(handing) = &self.setup.settings.handing {
            handing.taking.attach(ctx.control_ref());
        }
        let is_first = self.life == 0;
        Box::pin(async {
            let took_over = if is_first {
                false
            } else {
                // The node that crashed was not this one, and needs no stop.
                self.ended = true;
                let took_over = self.take_over(ctx, "its node host crashed").await;
                self.ended = false;
                took_over
            };
            if !took_over
                && self.may_begin()
                && let Err(error) = self.begin(ctx).await
                && !self.take_over(ctx, &error.message).await
            {
                return Err(error.into());
            }
            self.conclude(ctx, Handled::Done(Ok(())), None).await?;
            self.catch_up(ctx).await
        })
        .await
    }

    async fn on_control(
        &mut self,
        ctx: &mut Context<Self>,
        message: NodeControl,
    ) -> Result<(), Failure> {
        let promoted = message == NodeControl::Promote;
        Box::pin(self.obey(ctx, message)).await;
        self.arm(ctx);
        if promoted {
            return Box::pin(self.conclude(ctx, Handled::Done(Ok(())), None)).await;
        }
        Ok(())
    }

    async fn on_data(&mut self, ctx: &mut Context<Self>, item: Arrival) -> Result<(), Failure> {
        self.take(ctx, item).await?;
        if self.replay.is_empty() {
            return Ok(());
        }
        Box::pin(self.catch_up(ctx)).await
    }

    async fn on_deadline(&mut self, ctx: &mut Context<Self>, _now: Instant) -> Result<(), Failure> {
        self.armed = None;
        if !self.cx.take_due_wake() || !self.setup.is_wanted() {
            self.arm(ctx);
            return Ok(());
        }
        let soft = self.setup.is_soft();
        self.outlet.settles = false;
        self.effort.begins(&self.setup);
        let beat = self.setup.watched.enter();
        let step = self.node.on_wake(&mut self.cx);
        drop(beat);
        let watch = Watch {
            setup: &self.setup,
            token: &self.work,
            budget: self.effort.left(&self.setup),
            is_limited: false,
            is_guarded: false,
            is_soft: soft,
        };
        let (handled, overran) =
            finish(Ok(step), ctx, &mut self.deferred, &mut self.outlet, watch).await;
        self.effort
            .ends(&self.setup, self.cx.take_charged(), overran);
        if overran {
            Box::pin(self.notify(ctx, Hook::BudgetExhausted)).await;
        }
        self.conclude(ctx, handled, None).await?;
        Box::pin(self.catch_up(ctx)).await
    }

    /// A call that panicked never said how it ended: say it for it.
    async fn on_child_exit(
        &mut self,
        ctx: &mut Context<Self>,
        exit: ChildExit,
    ) -> Result<(), Failure> {
        let call = self
            .calls
            .iter()
            .find(|(_, running)| running.actor == exit.child)
            .map(|(call, _)| *call);
        if let Some(call) = call
            && !exit.reason.is_orderly()
        {
            let end = crate::invoke::crashed(&exit.reason);
            Box::pin(self.take(ctx, Arrival::CallEnded { call, end })).await?;
            // A standby that took over because of it has yet to be told what to do.
            Box::pin(self.catch_up(ctx)).await?;
        }
        Ok(())
    }

    async fn on_drained(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        self.report_edges(ctx);
        if self.under_pressure {
            Box::pin(self.relieve(ctx)).await;
        }
        if self.setup.coalesces {
            self.arm(ctx);
        }
        if self.replay.is_empty() {
            return Ok(());
        }
        Box::pin(self.catch_up(ctx)).await
    }

    async fn stopped(&mut self, ctx: &mut Context<Self>, _reason: &ExitReason) {
        // A cancel that came just before is still to be told (F-012).
        while let Some(message) = ctx.try_control() {
            self.obey(ctx, message).await;
        }
        self.end_node(ctx).await;
        self.report_edges(ctx);
    }
}
