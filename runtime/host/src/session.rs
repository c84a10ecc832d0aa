//! The session actor: feeds the kernel with what happens and carries out what it decides.

mod message;
mod setup;

mod reports;

mod edges;

mod telemetry;

mod acknowledge;

mod health;

mod limits;
mod lost;

pub(crate) mod commands;

mod effects;

mod latest;

mod words;

mod remembrance;

mod speculation;

mod succession;

mod tools;
mod traces;

mod evidence;

mod publish;

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
    time::Duration,
};

use rspp_actors::{
    Actor, ActorId, CancellationToken, ChildExit, Clock, Context, ControlRef, ControlRefused,
    ExitReason, Failure, NoData, Stopwatch, Verdict,
};
use rspp_controlplane_api::Terms;
use rspp_kernel::{
    Input, Placement, SessionState,
    authority::{CheckCount, Checkpoint},
    conversation::Said,
    cost::Meter,
    dedupe::{Registry, Seen},
    fence::OutputFence,
    graph::{NodeIx, Scope},
    invocation::Overruns,
    plan::ResolvedTurnPlan,
    turn::Ending,
};
use rspp_proto::{
    EventId, IdempotencyKey, InvocationId, Monotonic, NodeId, Payload, Speaker, TurnNumber,
    abi::OutcomeScope, reason, spec::PortType,
};
use tokio::{sync::oneshot, time::Instant};

pub(crate) use commands::MOVED;
pub(crate) use health::Health;
pub use health::SessionStatus;
pub(crate) use latest::Receipt;
pub use message::{CancelReceipt, CancelTarget, Foreign};
pub(crate) use message::{Command, Playback, SessionControl, TransportEvent};
pub(crate) use remembrance::KEY as KEPT;
pub(crate) use setup::{LISTENING, OpenAnswer, Opening, SessionSetup};
use tracing::Span;

use crate::{
    admission::TurnPlace,
    assembly::{Assembly, Hosts, IngressEdge},
    capture::Capture,
    connection::{Attachment, ConnectionControl, LineStats},
    memory::Share,
    node::{NodeStates, StateAccess},
    observe::Observed,
    plane::Placed,
    providers::{AtWork, Bound, CallRules},
    pulse::Pulse,
    report::{AuthorityReport, ByCheckpoint, SessionReport},
    runtime::Place,
    schedule::Scheduling,
    scope,
    tool::crashed,
    turn::TurnControl,
};
use acknowledge::Unheard;
use edges::{ControlLane, Domains, Stops};
use evidence::Ledger;
use latest::Latest;
use publish::Publisher;
use speculation::Guesses;
use succession::Succession;
use telemetry::Telemetry;
pub(crate) use telemetry::measurement;
use tools::Tools;
use words::Words;

/// Why a session ended of which nothing else is known.
const STOPPED: &str = "the session was stopped";

/// Keys of events, and provider calls, that are remembered for when they come again.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(512).expect("not zero");

/// The actor. Never restarted: a session that panics ends that call (design §2).
pub(crate) struct Session {
    setup: SessionSetup,
    kernel: rspp_kernel::Session,
    fence: Arc<OutputFence>,
    line: Arc<LineStats>,
    publisher: Publisher,
    ledger: Ledger,
    hosts: Hosts,
    turn: Option<RunningTurn>,
    domains: Domains,
    stops: Stops,
    /// The session's own control lane, once it is known how deep it may become.
    control_lane: Option<ControlLane>,
    /// When the debug events of a capture end.
    captured_until: Option<Monotonic>,
    /// Items of the telemetry lane so far: heard, and lost before they were.
    telemetry: Telemetry,
    cancel: CancellationToken,
    /// The plan that was resolved for the turn being opened.
    plan: Option<Arc<ResolvedTurnPlan>>,
    /// The place of the turn being opened.
    admitted: Option<TurnPlace>,
    scheduling: Arc<Scheduling>,
    /// Whether the last turn ran in the degrade posture.
    was_degraded: bool,
    /// Since when the message at hand is being handled.
    handling: Stopwatch,
    fence_took: Option<Duration>,
    /// The nodes that the end of a cancelled turn waits for.
    unheard: Option<Unheard>,
    /// Whether what the user is saying is lost.
    lost: lost::Lost,
    /// What the conversation takes.
    conversation: Share,
    /// Keys under which clients have sent events, with the event that took effect.
    keys: Registry<IdempotencyKey, EventId>,
    /// Edges that carry whatever comes in, for what is no audio.
    taps: Vec<IngressEdge>,
    /// What of the user's words was handed to the model before all of them were known.
    words: Words,
    /// The rate that the connection was last told to carry the agent's audio at.
    carried_at: u32,
    /// Provider calls that have reported how they ended.
    calls: Registry<InvocationId, ()>,
    tools: Tools,
    succession: Succession,
    guesses: Guesses,
    state: Arc<NodeStates>,
    /// The conversation as it is kept, if it is.
    remembrance: Option<Latest>,
    /// Until when the session is to be let go, if it is.
    letting_go: Option<Monotonic>,
    /// Whether its hand-over is under way.
    hands_over: bool,
    /// Whether it is to end because its node is: it may go on elsewhere (P26).
    is_drained: bool,
    /// Why it ends, as soon as it does.
    ended: Option<String>,
    node_failures: u64,
    /// Providers that had to be given up lately.
    overruns: Arc<Mutex<Overruns>>,
    at_work: Arc<AtWork>,
    meter: Arc<Mutex<Meter>>,
    clock: Clock,
}

struct RunningTurn {
    number: TurnNumber,
    /// Taken when the turn opens.
    _place: Option<TurnPlace>,
    actor: ActorId,
    control: ControlRef<TurnControl>,
    cancel: CancellationToken,
    pulse: Arc<Pulse>,
    cancel_grace: Duration,
}

/// What nodes are assembled for: a turn, a guess at one, or the session's own listening.
#[derive(Default)]
struct Occasion {
    turn: Option<TurnNumber>,
    /// Nothing of it is spoken.
    mute: bool,
    /// What its calls are held to.
    bound: Bound,
}

impl Occasion {
    fn of(turn: TurnNumber) -> Self {
        Self {
            turn: Some(turn),
            ..Self::default()
        }
    }
}

impl Session {
    pub(crate) fn new(setup: SessionSetup, clock: Clock) -> Self {
        let epoch = setup.place.lease.epoch;
        let turns = setup.blueprint.spec.turns.clone();
        let connection = setup.blueprint.spec.connection;
        let publisher = Publisher::new(&setup, clock);
        let policy = setup.blueprint.spec.state.clone();
        let state = Arc::new(NodeStates::new(policy, Arc::clone(&setup.store)));
        let mut kernel = rspp_kernel::Session::new(turns, epoch).with_connection(connection);
        if setup.recorder.is_recording() {
            kernel = kernel.journaled(Monotonic::from_duration(clock.now()));
        }
        let entry = &setup.place.entry;
        let scheduling = Scheduling::new(
            entry.gatekeeper(),
            entry.tenant(),
            entry.version(),
            entry.priority(),
            &setup.place.lease.session,
        );
        Self {
            kernel,
            fence: Arc::new(OutputFence::new(epoch)),
            line: Arc::default(),
            ledger: Ledger::new(&setup),
            publisher,
            hosts: Hosts::default(),
            turn: None,
            domains: Domains::default(),
            stops: Stops::default(),
            control_lane: None,
            captured_until: None,
            telemetry: Telemetry::default(),
            cancel: CancellationToken::new(),
            plan: None,
            admitted: None,
            scheduling: Arc::new(scheduling),
            was_degraded: false,
            handling: Stopwatch::start(),
            fence_took: None,
            unheard: None,
            lost: lost::Lost::default(),
            conversation: Share::of(&setup.memory),
            keys: Registry::new(REMEMBERED),
            taps: Vec::new(),
            calls: Registry::new(REMEMBERED),
            words: Words::default(),
            carried_at: setup.carriage.now().sink_rate,
            tools: Tools::default(),
            succession: Succession::default(),
            guesses: Guesses::default(),
            state,
            remembrance: setup.keeps.then(|| Latest::new(KEPT)),
            letting_go: None,
            hands_over: false,
            is_drained: false,
            ended: None,
            node_failures: 0,
            overruns: Arc::default(),
            at_work: Arc::default(),
            meter: Arc::default(),
            clock,
            setup,
        }
    }

    /// The session's lease, as the kernel and the timeline learn of it.
    fn placed(&mut self, now: Monotonic) {
        if let Some(kept) = self.setup.resumed.take() {
            self.kernel.handle(now, Input::Resumed(kept));
        }
        let place = &self.setup.place;
        let placement = if place.lease.taken_over {
            Placement::TakenOver
        } else {
            Placement::Issued
        };
        self.kernel.handle(now, Input::Placed(placement));
        let (asked, ttl) = (place.asked, place.lease.ttl);
        if let Some(ttl) = ttl {
            self.leased(now, Input::Leased { asked, ttl });
        }
    }

    /// A session that was let in with less, or by nobody, is not as it should be; whoever asks is told
    /// (F-098, F-101).
    fn on_terms(&mut self, now: Monotonic) {
        let (reason, scope) = match self.setup.place.lease.terms {
            Terms::Full => return,
            Terms::Less => (reason::CP_ADMISSION_ALLOWED_DEGRADED, OutcomeScope::Tenant),
            Terms::Unasked => (
                reason::CP_ADMISSION_ALLOWED_UNCOUNTED,
                OutcomeScope::Session,
            ),
        };
        self.publisher.let_in(reason.clone(), scope, now);
        self.degrade(reason.as_str(), None, None, now);
    }

    fn assembly(
        &self,
        ctx: &Context<Self>,
        plan: Arc<ResolvedTurnPlan>,
        occasion: Occasion,
        cancel: CancellationToken,
    ) -> Assembly {
        let Occasion { turn, mute, bound } = occasion;
        let promotion = bound.promotion();
        let blueprint = &self.setup.blueprint;
        let calls = Arc::new(CallRules {
            calls: plan.provider_policy.calls.clone(),
            circuit: plan.provider_policy.circuit,
            caps: plan.provider_policy.caps,
            actions: plan.allowed_adaptive_actions.clone(),
            bound,
            board: Arc::clone(&self.setup.board),
            overruns: Arc::clone(&self.overruns),
            at_work: Arc::clone(&self.at_work),
            meter: Arc::clone(&self.meter),
        });
        let conversation: Arc<[Said]> = match turn {
            // The newest contribution is what the user has just said; the turn is handed it apart. A
            // guess is none of the conversation's business yet.
            Some(_) => {
                let mut said: Vec<Said> = self.kernel.conversation().iter().cloned().collect();
                if promotion.is_none() {
                    said.pop();
                }
                let most = plan.extent.max_context_messages.saturating_sub(1) as usize;
                said.drain(..said.len().saturating_sub(most));
                said.into()
            }
            None => Arc::default(),
        };
        let handoff = Arc::new(plan.llm_to_tts());
        let state_cancel = cancel.clone();
        Assembly {
            graph: Arc::clone(&blueprint.graph),
            plan,
            nodes: Arc::clone(&self.setup.nodes),
            providers: Arc::clone(&self.setup.providers),
            calls,
            pools: self.setup.pools.clone(),
            session_id: self.setup.place.lease.session.clone(),
            turn,
            mute,
            epoch: self.kernel.epoch(),
            turns: Arc::new(blueprint.spec.turns.clone()),
            handoff,
            instructions: blueprint.instructions.clone(),
            conversation,
            attributes: Arc::clone(&self.setup.attributes),
            clock: ctx.clock(),
            fence: Arc::clone(&self.fence),
            session: ctx.control_ref(),
            telemetry: ctx.telemetry_ref(),
            overhead: Arc::clone(&self.setup.overhead),
            observers: Arc::clone(&self.setup.observers),
            meters: self.setup.meters.clone(),
            work: self.setup.work.clone(),
            memory: Arc::clone(&self.setup.memory),
            watchdog: self.setup.watchdog.clone(),
            scheduling: Arc::clone(&self.scheduling),
            cancel,
            egress: self.setup.egress.clone(),
            pulse: Arc::default(),
            provisional: promotion.is_some(),
            capture: Capture::of(&self.setup.recorder, ctx.clock()),
            state: Arc::new(StateAccess {
                session: Arc::clone(&self.state),
                turn: turn.map(|turn| (turn, Arc::default())),
                session_id: self.setup.place.lease.session.clone(),
                epoch: self.kernel.epoch(),
                fence: Arc::clone(&self.fence),
                promoted: promotion.map(|promotion| promotion.token().clone()),
                cancel: state_cancel,
                clock: ctx.clock(),
                control: ctx.control_ref(),
            }),
        }
    }

    /// From here on the session can be reached by its name; and what became of its lease before that is
    /// looked up.
    fn enter_roster(&self, ctx: &Context<Self>) {
        let Place {
            lease,
            leases,
            roster,
            ..
        } = &self.setup.place;
        let placed = Placed {
            epoch: lease.epoch,
            control: ctx.control_ref(),
            fence: Arc::clone(&self.fence),
            health: Arc::clone(&self.setup.health),
            told: None,
        };
        roster.enter(lease.session.clone(), placed);
        // Who holds nothing any more is told so before the first turn. A lease that counts since its holder
        // says so is one of a fleet, and may have been taken back by now.
        if lease.asked.is_some() && leases.check(lease).is_err() {
            roster.silence(&lease.session, lease.epoch);
        }
    }

    /// Begins to listen, and tells whoever opened the session how that went.
    async fn begin(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        self.succeed(time(ctx)).await;
        match self.listen(ctx).await {
            Ok(()) => self.setup.opened.succeed(ctx.control_ref()),
            Err(failure) => {
                self.ends_because(failure.message.as_str());
                self.setup.opened.fail(failure.message);
                ctx.stop(ExitReason::Finished);
            }
        }
        Ok(())
    }

    /// What the checks of epochs have come to.
    fn authority(&self) -> AuthorityReport {
        let count = |of: fn(CheckCount) -> u64| {
            let at = |checkpoint| of(self.fence.counts(checkpoint));
            ByCheckpoint {
                ingress: at(Checkpoint::Ingress),
                dispatch: at(Checkpoint::Dispatch),
                egress: at(Checkpoint::Egress),
            }
        };
        AuthorityReport {
            authority_epoch_check_total: count(|counts| counts.checked),
            authority_epoch_reject_total: count(|counts| counts.refused),
            stale_epoch_outputs_accepted: self.line.stale_accepted.load(Ordering::Relaxed),
        }
    }

    /// Starts the nodes that listen, downstream first, and lets the connection begin.
    async fn listen(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        let plan = Arc::new(self.setup.plan(LISTENING, self.kernel.epoch(), false)?);
        self.lost
            .apology
            .clone_from(&plan.provider_policy.failure.reply);
        let assembly = self.assembly(ctx, plan, Occasion::default(), self.cancel.clone());
        let order: Vec<NodeIx> = assembly.graph.hosts(Scope::Session).collect();
        for ix in order.into_iter().rev() {
            if let Some(made) = assembly.node(ix, &self.hosts)? {
                let handle = ctx.spawn(made.spec, made.inputs, made.make).await?;
                self.hosts.add(ix, handle);
            }
        }
        // However the connection ends, panic and kill included, the session learns of it.
        let gone = CancellationToken::new();
        let (hung_up, stopped) = (gone.clone(), ctx.cancellation().clone());
        let session = ctx.control_ref();
        ctx.spawn_task("line", async move {
            let tell = async {
                hung_up.cancelled().await;
                let event = TransportEvent::Disconnected;
                let mut message = SessionControl::Transport { event };
                while let Err(ControlRefused::Overflow(back)) = session.send_reserved(message) {
                    message = back;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::select! {
                biased;
                () = stopped.cancelled() => {}
                () = tell => {}
            }
        });
        self.domains = Domains::new(&assembly.graph, &assembly.plan);
        self.control_lane = ControlLane::new(&assembly.plan);
        let ingress = assembly.ingress(&self.hosts);
        let taps = ingress.iter().filter(|edge| edge.carries == PortType::Any);
        self.taps = taps.cloned().collect();
        let attachment = Attachment {
            _gone: gone.drop_guard(),
            session: ctx.control_ref(),
            fence: Arc::clone(&self.fence),
            policy: self.setup.blueprint.spec.connection,
            session_id: self.setup.place.lease.session.clone(),
            wall_origin: self.publisher.wall(Monotonic::ZERO),
            ingress,
            egress: assembly.egress_edges(),
            ends: assembly.graph.ends(assembly.graph.egress()),
            telemetry: ctx.telemetry_ref(),
            observers: Arc::clone(&self.setup.observers),
            meters: self.setup.meters.clone(),
            ingress_node: assembly.graph.node(assembly.graph.ingress()).id.clone(),
            line: Arc::clone(&self.line),
            carriage: Arc::clone(&self.setup.carriage),
            commit_ahead: Duration::from_millis(self.setup.blueprint.spec.turns.commit_ahead_ms),
            scheduling: Arc::clone(&self.scheduling),
            capture: assembly.capture.clone(),
        };
        let attach = ConnectionControl::Attach(Box::new(attachment));
        self.setup
            .connection
            .send_reserved(attach)
            .map_err(|_| Failure::new("the connection ended before the session began"))
    }
}

impl Session {
    /// Takes in what the session is told.
    fn dispatch(&mut self, now: Monotonic, message: SessionControl) {
        match message {
            // That is done where it comes in.
            SessionControl::Begin => {}
            SessionControl::Node {
                turn,
                node,
                at,
                report,
            } => self.node_reported(now, turn, &node, at, report),
            SessionControl::Invocation {
                turn,
                attempts,
                outcome,
            } => {
                // A call is one call, however often it is told of (F-158).
                let call = outcome.provider_invocation_id.clone();
                if self.calls.see(call.clone(), || ()) != Seen::First {
                    self.publisher.repeated_call(&call, now);
                    return;
                }
                self.attempts_ended(&attempts);
                self.ledger.invoked(turn, &outcome);
                self.publisher.invocation(*outcome);
            }
            SessionControl::ProviderSignal {
                turn,
                node,
                call,
                signal,
                reason,
                at,
            } => {
                // What is told when the turn is over is told of it all the same; one that never came to be has
                // no name.
                let turn = turn.filter(|turn| {
                    self.kernel.current_turn() == Some(*turn) || self.kernel.has_closed(*turn)
                });
                self.publisher
                    .of_call(signal, turn, (node, call), &reason, at);
            }
            SessionControl::Shed {
                turn,
                node,
                shed,
                at,
            } => {
                self.shed(turn, node.as_ref(), shed, at);
            }
            SessionControl::Playback { turn, playback, at } => {
                self.playback(now, turn, playback, at);
            }
            SessionControl::Transport { event } => self.transport(now, event),
            SessionControl::Edge {
                edge,
                lane,
                notice,
                at,
            } => {
                let turn = self.kernel.current_turn();
                self.edge_reported(turn, &edge, lane, &notice, at);
            }
            SessionControl::Memory { mark, held } => self.came_to(now, mark, held),
            SessionControl::EvidenceLost => self.publisher.lose(),
            SessionControl::Blocked {
                turn,
                node,
                for_at_least,
                is_lost,
            } => self.blocked(now, turn, &node, for_at_least, is_lost),
            SessionControl::Lease(answer) => self.lease(now, answer),
            SessionControl::Tools {
                turn,
                node,
                calls,
                to,
            } => self.tools_called(now, turn, node, calls, to),
            SessionControl::ToolBegan { turn, call, at } => self.tool_began(now, turn, call, at),
            SessionControl::ToolEnded {
                turn,
                call,
                outcome,
            } => self.tool_ended(now, turn, call, outcome),
            SessionControl::StaleWrite { node, at } => self.publisher.stale_write(&node, at),
            SessionControl::Command(command) => self.command(now, command),
        }
    }
}

impl Actor for Session {
    type Control = SessionControl;
    type Data = NoData;
    type Telemetry = Observed;
    const KIND: &'static str = "session";

    fn scope(&self) -> Span {
        scope::of_session(
            &self.setup.tenant,
            &self.setup.place.lease.session,
            &self.setup.blueprint.spec.version,
        )
    }

    async fn started(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        let now = time(ctx);
        tracing::info!(epoch = %self.kernel.epoch(), "a session begins");
        self.ledger.opened(now);
        if let Some(opening) = self.setup.opening.take() {
            self.publisher.opened(*opening, now);
        }
        self.publisher.entered(self.setup.place.entry.decision, now);
        self.on_terms(now);
        self.observe(ctx);
        self.placed(now);
        self.enter_roster(ctx);
        self.setup.memory.report_to(ctx.control_ref());
        self.watch_recording(ctx.control_ref());
        ctx.control_ref()
            .send_reserved(SessionControl::Begin)
            .map_err(|_| Failure::new("a new control lane has room"))
    }

    async fn on_control(
        &mut self,
        ctx: &mut Context<Self>,
        message: SessionControl,
    ) -> Result<(), Failure> {
        self.handling = Stopwatch::start();
        let now = time(ctx);
        self.gauge_control(now, ctx.control_depth());
        if matches!(message, SessionControl::Begin) {
            Box::pin(self.begin(ctx)).await?;
        } else if let Some(message) = self.hold(now, message) {
            self.dispatch(now, message);
        }
        self.carry_out(ctx).await
    }

    async fn on_data(
        &mut self,
        _ctx: &mut Context<Self>,
        item: std::convert::Infallible,
    ) -> Result<(), Failure> {
        match item {}
    }

    /// What nobody downstream asked for: an observer may have. The user's words are no such thing:
    /// they were published when they were recognised, and a final text is said once (F-024).
    async fn on_telemetry(
        &mut self,
        ctx: &mut Context<Self>,
        item: Observed,
    ) -> Result<(), Failure> {
        self.count_unseen(ctx);
        if self.captured_until.is_some() && self.scheduling.is_loaded() {
            self.end_captures(time(ctx));
        }
        let heard_before = !item.copied
            && matches!(&item.event.payload, Payload::Text(text) if text.speaker == Speaker::User);
        if !heard_before {
            self.publisher.observed(item);
        }
        Ok(())
    }

    /// The end of one drain of the control lane is the arbitration point (design §7).
    async fn on_drained(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        self.settle(time(ctx));
        self.carry_out(ctx).await
    }

    async fn on_deadline(&mut self, ctx: &mut Context<Self>, _now: Instant) -> Result<(), Failure> {
        self.handling = Stopwatch::start();
        let now = time(ctx);
        if self.captured_until.is_some_and(|until| until <= now) {
            self.end_captures(now);
        }
        self.kernel.handle(now, Input::Tick);
        self.carry_out(ctx).await?;
        self.settle(now);
        self.carry_out(ctx).await
    }

    /// A turn that crashed is aborted; a node that listens and gave up ends the session.
    async fn on_child_exit(
        &mut self,
        ctx: &mut Context<Self>,
        exit: ChildExit,
    ) -> Result<(), Failure> {
        if exit.reason.is_orderly() {
            return Ok(());
        }
        let now = time(ctx);
        let running = self.turn.as_ref().filter(|turn| turn.actor == exit.child);
        if let Some(running) = running {
            let turn = running.number;
            let ending = Ending::NodeFailed;
            self.give_up_acknowledgement(turn);
            self.kernel.handle(now, Input::TurnFailed { turn, ending });
        } else if let Some(turn) = self.guesses.of(exit.child) {
            self.kernel.handle(now, Input::GuessFailed { turn });
        } else if let Some((turn, call)) = self.tools.of(exit.child) {
            self.tool_ended(now, turn, call, crashed());
        } else {
            let node = NodeId::new(exit.name.as_str())?;
            let message = format!("the node host {}", exit.reason);
            self.node_failed(None, &node, &message, now);
            match exit.verdict {
                Verdict::Restarted { .. } | Verdict::Restarting { .. } => {}
                Verdict::Ended | Verdict::GaveUp => {
                    if let Some(tried) = &mut self.setup.tried {
                        tried.fails();
                    }
                    self.ends_because(format!("node `{node}` could not be kept running"));
                    self.kernel.handle(now, Input::Drain);
                }
            }
        }
        self.carry_out(ctx).await?;
        self.settle(now);
        self.carry_out(ctx).await
    }

    async fn stopped(&mut self, ctx: &mut Context<Self>, reason: &ExitReason) {
        // One that is stopped or drained, or has lost its authority, may go on elsewhere.
        let is_over = self.kernel.state() == SessionState::Ended && !self.is_drained;
        let for_good = is_over && self.fence.epoch().is_some();
        self.cancel.cancel();
        // What nodes say while they stop belongs to the session too, such as what their edges lost.
        while let Some(message) = ctx.try_control() {
            if let Err(error) = self.on_control(ctx, message).await {
                tracing::warn!(error = %error.message, "a last message could not be handled");
            }
        }
        let now = time(ctx);
        if self.kernel.state() != SessionState::Ended {
            self.kernel.handle(now, Input::ToolsGivenUp);
            self.kernel.handle(now, Input::Disconnected);
            self.kernel.settle();
            if let Err(error) = self.carry_out(ctx).await {
                tracing::warn!(error = %error.message, "the session's last effects failed");
            }
            self.ends_because(reason.to_string());
        }
        if let Some(traces) = self.publisher.traces() {
            traces.end();
        }
        self.ledger.count_line(&self.line);
        if let Some(tried) = &mut self.setup.tried {
            if for_good {
                tried.over();
            } else if reason.is_orderly() {
                tried.leaves();
            }
        }
        let status = self.setup.health.read();
        let report = SessionReport {
            session_id: self.setup.place.lease.session.clone(),
            tenant_id: self.setup.tenant.clone(),
            pipeline_version: self.setup.blueprint.spec.version.clone(),
            epoch: self.kernel.epoch(),
            state: self.kernel.state(),
            ended: self.ended.take().unwrap_or_else(|| STOPPED.to_owned()),
            opened_at: self.ledger.opened_at(),
            ended_at: now,
            turns: self.ledger.take_reports(),
            spending: self.meter().session(),
            refused: self.ledger.refusals(),
            moves_refused: status
                .moves_refused
                .iter()
                .map(|(code, count)| ((*code).to_owned(), *count))
                .collect(),
            speculation: self.kernel.speculation(),
            hot_state_bytes: self.state.hot().bytes(),
            node_failures: self.node_failures,
            degraded: status.degraded,
            dead_letters: status.dead_letters,
            dead_lettered: status.dead_lettered,
            memory: Some(self.setup.memory.read()),
            underruns: self.line.underruns.load(Ordering::Relaxed),
            authority: self.authority(),
            line: self.line.report(),
            kernel_overhead_us: self.setup.overhead.percentiles(),
            measurements: self
                .setup
                .meters
                .as_ref()
                .map(|meters| meters.measurements()),
            node_handlers_us: self.setup.overhead.nodes(),
            kernel_overhead_budget_us: self.scheduling.gatekeeper.limits().kernel_overhead_p99_us,
            kernel_overhead_alerts: self
                .scheduling
                .gatekeeper
                .overhead_alerts
                .load(Ordering::Relaxed),
            shed: self.ledger.sheds(),
        };
        tracing::info!(
            why = report.ended,
            turns = report.turns.len(),
            "a session is over"
        );
        let remembered = async {
            if let Some(remembrance) = &mut self.remembrance {
                remembrance.finish().await;
            }
        };
        tokio::join!(remembered, self.succession.finish());
        if for_good {
            tracing::debug!(session_id = %self.setup.place.lease.session, why = report.ended, "over for good");
            let lease = &self.setup.place.lease;
            self.state.close(lease, &report.ended).await;
        }
        self.setup.recorder.set_alarm(None);
        let (done, _) = oneshot::channel();
        let done = std::mem::replace(&mut self.setup.done, done);
        let _nobody_waits = done.send(report);
    }
}

impl Session {
    /// Notes why the session ends. What ended it first is the reason, whatever follows while it winds
    /// up: whoever hangs up while the agent's last order is still being seen through was hung up on.
    fn ends_because(&mut self, why: impl Into<String>) {
        self.ended.get_or_insert_with(|| why.into());
    }

    /// A storage may fail between two entries: the session is told, and the turn does not go on without
    /// evidence until the next.
    fn watch_recording(&self, session: ControlRef<SessionControl>) {
        self.setup.recorder.set_alarm(Some(Box::new(move || {
            if session.send_reserved(SessionControl::EvidenceLost).is_err() {
                tracing::debug!("the session is gone before its recording");
            }
        })));
    }

    fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock().expect("no code panics while locked")
    }
}

fn time(ctx: &Context<Session>) -> Monotonic {
    Monotonic::from_duration(ctx.clock().now())
}
