//! The session actor: feeds the kernel with what happens and carries out what it decides.

mod evidence;
mod publish;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rspp_actors::{
    Actor, ActorId, CancellationToken, ChildExit, ChildSpec, Context, ControlRef, ControlRefused,
    DataRef, ExitReason, Failure, NoData, Stopwatch, Verdict,
};
use rspp_kernel::{
    CancelReason, Effect, Gates, Input, SessionState,
    conversation::Said,
    edge::EdgeNotice,
    fence::OutputFence,
    graph::{Graph, NodeIx, Scope},
    plan::{PlanInputs, ResolvedTurnPlan, SnapshotProvenance, resolve},
    turn::Ending,
};
use rspp_proto::{
    Epoch, ErrorCode, InvocationId, Lane, Monotonic, NodeId, OutcomeClass, Payload, SampleIndex,
    Speaker, SpeechMark, TenantId, TurnNumber,
    abi::{CancelScope, Emitter, Signal},
    spec::{NodeKind, PipelineSpec, PolicyBundle},
};
use rspp_timeline::{AttemptRecord, InvocationOutcome, Recorder};
use tokio::{sync::oneshot, time::Instant};

pub use publish::Notice;
pub(crate) use publish::Notices;

use crate::{
    assembly::{Assembly, Hosts, Pools},
    circuits::{CallRules, Circuits},
    connection::{Attachment, ConnectionControl, LineStats},
    event::{Arrival, Event, Port, Stamp},
    node::{NodeControl, NodeReport, builtin::NodeRegistry},
    overhead::Overhead,
    report::{SessionReport, TurnReport},
    runtime::{Place, TurnPlace},
    turn::{Turn, TurnControl, TurnSetup},
};
use evidence::Ledger;
use publish::Publisher;

/// What happened at the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Playback {
    /// A turn's first frame was accepted.
    Started,
    /// A turn's last frame was accepted, or it ended without any.
    Finished,
    /// A frame was made under another epoch and refused.
    Stale,
}

/// What happened at the transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TransportEvent {
    Connected,
    Disconnected,
    EndOfUtterance,
    Cancel,
    Text(String),
}

/// What an operator or the control plane asks of a session.
#[derive(Debug)]
pub(crate) enum Command {
    Cancel {
        target: CancelTarget,
        reason: CancelReason,
        answer: oneshot::Sender<CancelReceipt>,
    },
    Rotate(Epoch),
    Revoke,
    Drain,
}

/// What to cancel: the four scopes of a cancel (event-abi.md §1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CancelTarget {
    /// The running turn, and the session with it.
    Session,
    /// The running turn.
    Turn,
    /// One node's work and everything downstream of it. If the user would hear of it, that is the
    /// turn.
    Node(NodeId),
    /// One provider call; its node goes on without the rest of the answer.
    Invocation(InvocationId),
}

impl CancelTarget {
    fn scope(&self) -> CancelScope {
        match self {
            Self::Session => CancelScope::Session,
            Self::Turn => CancelScope::Turn,
            Self::Node(_) => CancelScope::Node,
            Self::Invocation(_) => CancelScope::ProviderInvocation,
        }
    }
}

/// How a cancel went, for whoever asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CancelReceipt {
    /// The turn that was cancelled; `None` if none was running.
    pub turn: Option<TurnNumber>,
    /// From acceptance to the fence, in real time.
    pub fence: Duration,
}

/// Everything that a session is told.
pub(crate) enum SessionControl {
    Node {
        turn: Option<TurnNumber>,
        node: NodeId,
        at: Monotonic,
        report: NodeReport,
    },
    Invocation {
        turn: Option<TurnNumber>,
        attempts: Vec<AttemptRecord>,
        outcome: Box<InvocationOutcome>,
    },
    ProviderSignal {
        turn: Option<TurnNumber>,
        signal: Signal,
        reason: String,
        at: Monotonic,
    },
    Playback {
        turn: TurnNumber,
        playback: Playback,
        at: Monotonic,
    },
    Transport {
        event: TransportEvent,
    },
    Command(Command),
}

/// What a session runs, resolved and checked before it opens; shared by sessions of one pipeline.
pub(crate) struct Blueprint {
    pub(crate) spec: PipelineSpec,
    pub(crate) graph: Arc<Graph>,
    pub(crate) policy: Option<PolicyBundle>,
    pub(crate) settings: rspp_kernel::plan::LayeredSettings,
    pub(crate) snapshots: SnapshotProvenance,
}

impl Blueprint {
    pub(crate) fn plan(
        &self,
        turn: TurnNumber,
        epoch: Epoch,
    ) -> Result<ResolvedTurnPlan, rspp_kernel::plan::PlanError> {
        let inputs = PlanInputs {
            spec: &self.spec,
            graph: &self.graph,
            graph_fingerprint: self.graph.fingerprint(),
            profile: self.spec.profile.as_str(),
            settings: &self.settings,
            policy: self.policy.as_ref(),
            snapshots: &self.snapshots,
            snapshots_fresh: true,
        };
        resolve(&inputs, &turn.id(), epoch)
    }
}

/// The number of the plan that a session's own nodes run under; turns count from 1.
pub(crate) const LISTENING: TurnNumber = TurnNumber(0);

/// What a session needs to run.
pub(crate) struct SessionSetup {
    pub(crate) place: Place,
    pub(crate) tenant: TenantId,
    pub(crate) blueprint: Arc<Blueprint>,
    pub(crate) attributes: Arc<BTreeMap<String, serde_json::Value>>,
    pub(crate) connection: ControlRef<ConnectionControl>,
    pub(crate) egress: DataRef<Arrival>,
    pub(crate) nodes: Arc<NodeRegistry>,
    pub(crate) providers: Arc<rspp_provider_api::Providers>,
    pub(crate) circuits: Arc<Circuits>,
    pub(crate) pools: Pools,
    pub(crate) recorder: Recorder,
    pub(crate) overhead: Arc<Overhead>,
    pub(crate) notices: Arc<Notices>,
    pub(crate) done: oneshot::Sender<SessionReport>,
}

impl Drop for SessionSetup {
    /// However the session ends, nobody is left on a dead line.
    fn drop(&mut self) {
        let _hung_up = self.connection.send_reserved(ConnectionControl::Close);
    }
}

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
    cancel: CancellationToken,
    /// The plan that was resolved for the turn being opened.
    plan: Option<Arc<ResolvedTurnPlan>>,
    /// Since when the message at hand is being handled.
    handling: Stopwatch,
    fence_took: Option<Duration>,
    ended: String,
    node_failures: u64,
}

struct RunningTurn {
    number: TurnNumber,
    _place: TurnPlace,
    actor: ActorId,
    control: ControlRef<TurnControl>,
    cancel: CancellationToken,
}

impl Session {
    pub(crate) fn new(setup: SessionSetup, clock: rspp_actors::Clock) -> Self {
        let epoch = setup.place.lease.epoch;
        let turns = setup.blueprint.spec.turns.clone();
        let publisher = Publisher::new(&setup, clock);
        Self {
            kernel: rspp_kernel::Session::new(turns, epoch),
            fence: Arc::new(OutputFence::new(epoch)),
            line: Arc::default(),
            ledger: Ledger::new(&setup),
            publisher,
            hosts: Hosts::default(),
            turn: None,
            cancel: CancellationToken::new(),
            plan: None,
            handling: Stopwatch::start(),
            fence_took: None,
            ended: "the session was stopped".to_owned(),
            node_failures: 0,
            setup,
        }
    }

    fn assembly(
        &self,
        ctx: &Context<Self>,
        plan: Arc<ResolvedTurnPlan>,
        turn: Option<TurnNumber>,
        cancel: CancellationToken,
    ) -> Assembly {
        let blueprint = &self.setup.blueprint;
        let calls = Arc::new(CallRules {
            policy: plan.invocation_policy(),
            circuits: Arc::clone(&self.setup.circuits),
        });
        let conversation: Arc<[Said]> = match turn {
            // The newest contribution is what the user has just said; the turn is handed it apart.
            Some(_) => {
                let mut said: Vec<Said> = self.kernel.conversation().iter().cloned().collect();
                said.pop();
                said.into()
            }
            None => Arc::default(),
        };
        Assembly {
            graph: Arc::clone(&blueprint.graph),
            plan,
            nodes: Arc::clone(&self.setup.nodes),
            providers: Arc::clone(&self.setup.providers),
            calls,
            pools: self.setup.pools.clone(),
            session_id: self.setup.place.lease.session.clone(),
            turn,
            epoch: self.kernel.epoch(),
            turns: Arc::new(blueprint.spec.turns.clone()),
            instructions: blueprint.spec.instructions.as_deref().map(Into::into),
            conversation,
            attributes: Arc::clone(&self.setup.attributes),
            clock: ctx.clock(),
            fence: Arc::clone(&self.fence),
            session: ctx.control_ref(),
            telemetry: ctx.telemetry_ref(),
            overhead: Arc::clone(&self.setup.overhead),
            cancel,
            egress: self.setup.egress.clone(),
        }
    }

    /// Starts the nodes that listen, downstream first, and lets the connection begin.
    async fn listen(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        let plan = Arc::new(self.setup.blueprint.plan(LISTENING, self.kernel.epoch())?);
        let assembly = self.assembly(ctx, plan, None, self.cancel.clone());
        let order: Vec<NodeIx> = assembly.graph.of_scope(Scope::Session).collect();
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
                () = stopped.cancelled() => {}
                () = tell => {}
            }
        });
        let attachment = Attachment {
            _gone: gone.drop_guard(),
            session: ctx.control_ref(),
            fence: Arc::clone(&self.fence),
            epoch: self.kernel.epoch(),
            ingress: assembly.ingress(&self.hosts),
            line: Arc::clone(&self.line),
        };
        let attach = ConnectionControl::Attach(Box::new(attachment));
        self.setup
            .connection
            .send_reserved(attach)
            .map_err(|_| Failure::new("the connection ended before the session began"))
    }

    // --- what happens ------------------------------------------------------------------------

    fn node_reported(
        &mut self,
        now: Monotonic,
        turn: Option<TurnNumber>,
        node: &NodeId,
        at: Monotonic,
        report: NodeReport,
    ) {
        let input = match report {
            NodeReport::Speech(mark) => {
                self.ledger.heard_mark(&self.line, mark, at);
                match mark {
                    SpeechMark::Started { at } => Some(Input::SpeechStarted { at }),
                    SpeechMark::Stopped { at } => Some(Input::SpeechStopped { at }),
                    SpeechMark::EndOfTurn { .. } => None,
                }
            }
            // Silence that is waited out is not speech: a cough is as long as it sounds (P11).
            NodeReport::SpeechPaused { at } => Some(Input::SpeechStopped { at }),
            NodeReport::SpeechResumed { at } => Some(Input::SpeechStarted { at }),
            NodeReport::Transcript {
                segment,
                text,
                is_final,
            } => {
                if is_final {
                    self.ledger.heard_transcript(at);
                }
                self.publisher.transcript(segment, &text, is_final, at);
                None
            }
            NodeReport::UserTurn { text } => Some(Input::UserTurn {
                text: text.to_string(),
            }),
            NodeReport::FirstToken => turn.map(|turn| {
                self.ledger.first_token(turn, at);
                Input::Progress { turn }
            }),
            NodeReport::ClauseBegun { segment, text } => turn.map(|turn| {
                self.ledger.first_clause(turn, at);
                self.publisher.agent_text(turn, segment, &text, at);
                Input::ClauseBegun {
                    turn,
                    segment,
                    text: text.to_string(),
                }
            }),
            NodeReport::FramesMade { segment, frames } => turn.map(|turn| {
                self.ledger.first_audio(turn, at);
                Input::FramesMade {
                    turn,
                    segment,
                    frames,
                }
            }),
            NodeReport::ClauseMade { segment } => {
                turn.map(|turn| Input::ClauseMade { turn, segment })
            }
            NodeReport::CallFailed { end } => {
                let code = error_code(end.class);
                self.publisher.error(turn, node, code, end.describe(), at);
                None
            }
            NodeReport::EdgeNotice { edge, notice } => {
                if let EdgeNotice::Drop { count, .. } = &notice {
                    self.ledger.dropped(Lane::Data, *count);
                }
                self.publisher.edge(turn, &edge, &notice, at);
                None
            }
            NodeReport::Routed { edge, taken } => {
                self.publisher.note(
                    turn,
                    node,
                    "route",
                    &[
                        ("edge", edge.as_str()),
                        ("taken", if taken { "yes" } else { "no" }),
                    ],
                    at,
                );
                None
            }
            NodeReport::Selected { input } => {
                let input = input.as_deref().unwrap_or("none");
                self.publisher
                    .note(turn, node, "select", &[("input", input)], at);
                None
            }
            NodeReport::OverBudget => {
                self.publisher.signal(
                    Signal::BudgetWarning,
                    Emitter::BudgetManager,
                    turn,
                    Some("node_budget_threshold_exceeded"),
                    at,
                );
                None
            }
            NodeReport::TookOver { standby, reason } => {
                self.node_failures += 1;
                let reason = format!("from={node} to={standby}: {reason}");
                self.publisher.signal(
                    Signal::Fallback,
                    Emitter::BudgetManager,
                    turn,
                    Some(&reason),
                    at,
                );
                None
            }
            NodeReport::Failed { ending, message } => {
                self.node_failures += 1;
                tracing::warn!(session = %self.setup.place.lease.session, %node, %message, "a node failed");
                let code = ErrorCode::RuntimeInternalError;
                self.publisher.error(turn, node, code, &message, at);
                turn.map(|turn| Input::TurnFailed { turn, ending })
            }
        };
        if let Some(input) = input {
            self.kernel.handle(now, input);
        }
    }

    fn playback(&mut self, now: Monotonic, turn: TurnNumber, playback: Playback, at: Monotonic) {
        match playback {
            Playback::Started => {
                self.ledger.playback_started(turn, at);
                self.kernel.handle(now, Input::PlaybackStarted { turn });
            }
            Playback::Finished => {
                self.ledger.playback_finished(turn, at);
                self.kernel.handle(now, Input::PlaybackFinished { turn });
            }
            Playback::Stale => self.publisher.signal(
                Signal::StaleEpochReject,
                Emitter::ContractGuard,
                None,
                Some("authority_epoch_mismatch"),
                at,
            ),
        }
    }

    fn transport(&mut self, now: Monotonic, event: TransportEvent) {
        match event {
            TransportEvent::Connected => self.kernel.handle(now, Input::Connected),
            TransportEvent::Disconnected => {
                "the user hung up".clone_into(&mut self.ended);
                self.kernel.handle(now, Input::Disconnected);
            }
            TransportEvent::EndOfUtterance => self.end_utterance(now),
            TransportEvent::Cancel => {
                self.kernel.handle(
                    now,
                    Input::Cancel {
                        reason: CancelReason::UserCancel,
                        scope: CancelScope::Turn,
                    },
                );
            }
            TransportEvent::Text(text) => self.kernel.handle(now, Input::UserTurn { text }),
        }
    }

    /// Push to talk (F-042): recognition and turn detection need not wait for silence.
    fn end_utterance(&mut self, now: Monotonic) {
        let graph = &self.setup.blueprint.graph;
        for (ix, node) in graph.nodes() {
            let listens = matches!(node.kind(), Some(NodeKind::Stt | NodeKind::TurnDetector));
            let Some(handle) = self.hosts.get(ix).filter(|_| listens) else {
                continue;
            };
            let at = SampleIndex(0);
            let mark = SpeechMark::EndOfTurn {
                at,
                confidence: 1.0,
            };
            let event = Event {
                stamp: Stamp {
                    turn: None,
                    epoch: self.kernel.epoch(),
                    sequence: 0,
                    made: now,
                    media: at,
                    segment: 0,
                },
                payload: Payload::Speech(mark),
            };
            let arrival = Arrival::Event {
                port: Port(0),
                event,
                arrived: now,
            };
            // Marks are kept by every edge; only a host that has ended does not take one.
            let _ended = handle.data.offer(arrival);
        }
    }

    fn command(&mut self, now: Monotonic, command: Command) {
        match command {
            Command::Cancel {
                target,
                reason,
                answer,
            } => {
                let receipt = self.cancel(now, &target, reason);
                let _nobody_waits = answer.send(receipt);
            }
            Command::Rotate(epoch) => self.kernel.handle(now, Input::Rotated { epoch }),
            Command::Revoke => self.kernel.handle(now, Input::Revoked),
            Command::Drain => {
                "the session was drained".clone_into(&mut self.ended);
                self.kernel.handle(now, Input::Drain);
            }
        }
    }

    /// Carries a cancel out as far as it must not wait; the effects do the rest.
    fn cancel(
        &mut self,
        now: Monotonic,
        target: &CancelTarget,
        reason: CancelReason,
    ) -> CancelReceipt {
        let turn = self.kernel.current_turn();
        let scope = target.scope();
        let reaches_user = match target {
            CancelTarget::Session | CancelTarget::Turn => true,
            CancelTarget::Node(node) => self.cancel_node(node, reason),
            CancelTarget::Invocation(invocation) => {
                self.cancel_invocation(invocation);
                false
            }
        };
        self.fence_took = None;
        if reaches_user {
            self.kernel.handle(now, Input::Cancel { reason, scope });
        } else {
            self.kernel.handle(now, Input::CancelPart { reason, scope });
        }
        if let Some(turn) = self.kernel.take_fence() {
            self.raise_fence(now, turn, true);
        }
        let fence = self.fence_took.unwrap_or_default();
        CancelReceipt { turn, fence }
    }

    /// Cancels a node's work along its edges (F-034). Whether that silences the turn.
    fn cancel_node(&self, node: &NodeId, reason: CancelReason) -> bool {
        let graph = &self.setup.blueprint.graph;
        let Some(ix) = graph.find(node.as_str()) else {
            return false;
        };
        let scope = graph.node(ix).scope;
        let mut reached = graph.downstream(ix);
        // The words of the running turn were handed over: nothing of it depends on who listens.
        reached.retain(|of| scope == Scope::Turn || graph.node(*of).scope == Scope::Session);
        if graph.node(ix).scope == Scope::Turn && reached.contains(&graph.egress()) {
            return true;
        }
        for handle in reached.iter().filter_map(|ix| self.hosts.get(*ix)) {
            if handle
                .control
                .send_reserved(NodeControl::Cancel(reason))
                .is_err()
            {
                tracing::debug!(%node, "a node host takes no cancel");
            }
        }
        if let Some(running) = &self.turn {
            let part = TurnControl::CancelNodes(reached, reason);
            if running.control.send_reserved(part).is_err() {
                tracing::debug!(%node, "the turn takes no cancel");
            }
        }
        false
    }

    /// Cancels one provider call, wherever it runs.
    fn cancel_invocation(&self, invocation: &InvocationId) {
        for handle in self.hosts.iter() {
            let cancel = NodeControl::CancelCall(invocation.clone());
            if handle.control.send_reserved(cancel).is_err() {
                tracing::debug!(%invocation, "a node host takes no cancel");
            }
        }
        if let Some(running) = &self.turn {
            let cancel = TurnControl::CancelCall(invocation.clone());
            if running.control.send_reserved(cancel).is_err() {
                tracing::debug!(%invocation, "the turn takes no cancel");
            }
        }
    }

    // --- what is decided ---------------------------------------------------------------------

    fn raise_fence(&mut self, now: Monotonic, turn: TurnNumber, cancelled: bool) {
        let accepted = self.fence.raise(turn);
        if let Some(running) = self.turn.as_ref().filter(|running| running.number == turn) {
            running.cancel.cancel();
        }
        if cancelled {
            let took = self.handling.elapsed();
            self.fence_took = Some(took);
            self.ledger.fenced(turn, now, took);
        }
        self.kernel.handle(now, Input::Fenced { turn, accepted });
    }

    async fn carry_out(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        while let Some(effect) = self.kernel.poll_effect() {
            let now = time(ctx);
            match effect {
                Effect::Fence { turn, cancelled } => self.raise_fence(now, turn, cancelled),
                Effect::Signal(emission) => {
                    self.ledger.signalled(&emission, now);
                    self.publisher.emit(&emission, now);
                }
                Effect::Transition { turn, step } => self.publisher.transition(turn, step, now),
                Effect::Refused { turn: _, refusal } => {
                    self.ledger.refused();
                    self.publisher.refused(refusal, now);
                }
                Effect::Judge { turn } => {
                    // What was lost before is no fault of this turn.
                    self.publisher.take_lost();
                    self.ledger.proposed(turn, now);
                    let gates = self.judge();
                    self.kernel.handle(now, Input::Gates { turn, gates });
                }
                Effect::Resolve { turn, epoch } => self.resolve(now, turn, epoch),
                Effect::Start { turn, user_text } => {
                    Box::pin(self.start(ctx, turn, user_text)).await;
                }
                Effect::Cancel { turn, reason } => self.stop_work(turn, reason),
                Effect::Seal { turn, terminal } => {
                    let stored = self.seal(now, turn, terminal);
                    self.kernel.handle(now, Input::Sealed { turn, stored });
                }
                Effect::Stop { turn } => self.take_down(ctx, turn),
                Effect::Late { turn } => {
                    self.publisher.signal(
                        Signal::StaleEpochReject,
                        Emitter::ContractGuard,
                        Some(turn),
                        Some("late_event_of_closed_turn"),
                        now,
                    );
                }
                Effect::Revoke => {
                    let accepted = self.fence.revoke();
                    if let Some(turn) = self.kernel.current_turn() {
                        self.kernel.handle(now, Input::Fenced { turn, accepted });
                    }
                    self.cancel.cancel();
                }
                Effect::Rotate { epoch } => {
                    self.fence.rotate(epoch);
                    self.setup.place.lease.epoch = epoch;
                    self.publisher.rotated(epoch);
                }
                Effect::Session(state) => self.enter(ctx, state),
            }
        }
        self.arm(ctx);
        Ok(())
    }

    fn judge(&self) -> Gates {
        Gates {
            snapshot_valid: true,
            capacity: self.setup.place.gatekeeper.has_room_for_turn(),
            epoch: self.setup.place.lease.epoch,
            authorized: self
                .setup
                .place
                .leases
                .check(&self.setup.place.lease)
                .is_ok(),
        }
    }

    fn resolve(&mut self, now: Monotonic, turn: TurnNumber, epoch: Epoch) {
        let facts = match self.setup.blueprint.plan(turn, epoch) {
            Ok(plan) => {
                let facts = plan.facts();
                self.publisher.plan(turn, &plan, now);
                self.ledger.planned(turn, &plan);
                let (outcome, stamp) = self.publisher.admission(turn, now);
                self.ledger.admitted(turn, outcome, stamp);
                self.plan = Some(Arc::new(plan));
                Some(facts)
            }
            Err(error) => {
                tracing::warn!(session = %self.setup.place.lease.session, %error, "no plan");
                None
            }
        };
        self.kernel.handle(now, Input::Plan { turn, facts });
    }

    async fn start(&mut self, ctx: &mut Context<Self>, turn: TurnNumber, user_text: String) {
        let now = time(ctx);
        let Some(plan) = self.plan.take() else {
            return;
        };
        self.fence_took = None;
        let cancel = self.cancel.child_token();
        let grace = Duration::from_millis(plan.budgets.cancel_grace_ms);
        let setup = TurnSetup {
            number: turn,
            assembly: self.assembly(ctx, plan, Some(turn), cancel.clone()),
            user_text: user_text.into(),
            session: ctx.control_ref(),
        };
        let mut spec = ChildSpec::temporary(turn.to_string());
        spec.grace = grace * 4;
        let mut setup = Some(setup);
        match ctx
            .spawn(spec, NoData, move || Turn::new(setup.take()))
            .await
        {
            Ok(handle) => {
                self.turn = Some(RunningTurn {
                    number: turn,
                    _place: self.setup.place.turn(),
                    actor: handle.id,
                    control: handle.control,
                    cancel,
                });
            }
            Err(error) => {
                tracing::warn!(session = %self.setup.place.lease.session, %turn, %error, "no turn");
                let ending = Ending::NodeFailed;
                self.kernel.handle(now, Input::TurnFailed { turn, ending });
            }
        }
    }

    /// The fence has fallen; now everybody is told, best effort and observable (lifecycle.md §6).
    fn stop_work(&mut self, turn: TurnNumber, reason: CancelReason) {
        let Some(running) = self.turn.as_ref().filter(|running| running.number == turn) else {
            return;
        };
        running.cancel.cancel();
        if running
            .control
            .send_reserved(TurnControl::Cancel(reason))
            .is_err()
        {
            tracing::debug!(%turn, "the turn takes no cancel");
        }
        self.clear_line(turn);
    }

    fn clear_line(&self, turn: TurnNumber) {
        let clear = ConnectionControl::Clear(turn);
        if self.setup.connection.send_reserved(clear).is_err() {
            tracing::debug!(%turn, "the connection is gone");
        }
    }

    fn seal(
        &mut self,
        now: Monotonic,
        turn: TurnNumber,
        terminal: rspp_kernel::turn::Terminal,
    ) -> bool {
        let Some(exchange) = self.kernel.exchange().filter(|said| said.turn == turn) else {
            return false;
        };
        self.ledger.count_line(&self.line);
        let wall = self.publisher.wall(now);
        let epoch = self.kernel.epoch();
        let baseline = self.ledger.seal(&exchange, terminal, epoch, wall, now);
        // Evidence lost on the way cannot be made up for at the end.
        let lost = self.publisher.take_lost();
        baseline.is_some_and(|baseline| {
            debug_assert!(baseline.is_complete(), "OR-02: {:?}", baseline.missing());
            self.setup.recorder.append_terminal(baseline).is_ok() && !lost
        })
    }

    fn take_down(&mut self, ctx: &mut Context<Self>, turn: TurnNumber) {
        let report = self.ledger.close(turn);
        let committed = report.is_some_and(TurnReport::is_commit);
        if let Some(report) = report {
            self.publisher.turn(report);
        }
        if let Some(running) = self.turn.take_if(|running| running.number == turn) {
            running.cancel.cancel();
            if !committed {
                // What it has queued is of no use. The last frames of a committed turn may still
                // wait at the peer, and are to be heard.
                self.clear_line(turn);
            }
            if running.control.send_reserved(TurnControl::Close).is_err() {
                ctx.stop_child_soon(running.actor, "the turn is closed");
            }
        }
    }

    fn enter(&mut self, ctx: &mut Context<Self>, state: SessionState) {
        self.publisher.state(state);
        if state == SessionState::Ended {
            ctx.stop(ExitReason::Finished);
        }
    }

    fn arm(&self, ctx: &mut Context<Self>) {
        ctx.clear_wake();
        if let Some(at) = self.kernel.next_deadline() {
            let at = ctx.clock().instant_at(at.as_duration());
            ctx.wake_at(at);
        }
    }
}

impl Actor for Session {
    type Control = SessionControl;
    type Data = NoData;
    type Telemetry = Event;
    const KIND: &'static str = "session";

    async fn started(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        self.ledger.opened(time(ctx));
        Box::pin(self.listen(ctx)).await
    }

    async fn on_control(
        &mut self,
        ctx: &mut Context<Self>,
        message: SessionControl,
    ) -> Result<(), Failure> {
        self.handling = Stopwatch::start();
        let now = time(ctx);
        match message {
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
                for attempt in &attempts {
                    self.publisher.attempt(attempt);
                }
                self.ledger.invoked(turn, &outcome);
                self.publisher.invocation(*outcome);
            }
            SessionControl::ProviderSignal {
                turn,
                signal,
                reason,
                at,
            } => {
                let emitter = Emitter::ProviderInvocationController;
                self.publisher
                    .signal(signal, emitter, turn, Some(&reason), at);
            }
            SessionControl::Playback { turn, playback, at } => {
                self.playback(now, turn, playback, at);
            }
            SessionControl::Transport { event } => self.transport(now, event),
            SessionControl::Command(command) => self.command(now, command),
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
    async fn on_telemetry(&mut self, _ctx: &mut Context<Self>, item: Event) -> Result<(), Failure> {
        let heard_before =
            matches!(&item.payload, Payload::Text(text) if text.speaker == Speaker::User);
        if !heard_before {
            self.publisher.event(item);
        }
        Ok(())
    }

    /// The end of one drain of the control lane is the arbitration point (design §7).
    async fn on_drained(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        self.kernel.settle();
        self.carry_out(ctx).await
    }

    async fn on_deadline(&mut self, ctx: &mut Context<Self>, _now: Instant) -> Result<(), Failure> {
        self.handling = Stopwatch::start();
        let now = time(ctx);
        self.kernel.handle(now, Input::Tick);
        self.carry_out(ctx).await?;
        self.kernel.settle();
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
            self.kernel.handle(now, Input::TurnFailed { turn, ending });
        } else {
            self.node_failures += 1;
            let node = NodeId::new(exit.name.as_str())?;
            let message = format!("the node host {}", exit.reason);
            self.publisher
                .error(None, &node, ErrorCode::RuntimeInternalError, &message, now);
            match exit.verdict {
                Verdict::Restarted { .. } | Verdict::Restarting { .. } => {}
                Verdict::Ended | Verdict::GaveUp => {
                    self.ended = format!("node `{node}` could not be kept running");
                    self.kernel.handle(now, Input::Drain);
                }
            }
        }
        self.carry_out(ctx).await?;
        self.kernel.settle();
        self.carry_out(ctx).await
    }

    async fn stopped(&mut self, ctx: &mut Context<Self>, reason: &ExitReason) {
        self.cancel.cancel();
        // What nodes say while they stop belongs to the session too, such as what their edges lost.
        while let Some(message) = ctx.try_control() {
            if let Err(error) = self.on_control(ctx, message).await {
                tracing::warn!(error = %error.message, "a last message could not be handled");
            }
        }
        let now = time(ctx);
        if self.kernel.state() != SessionState::Ended {
            self.ended = reason.to_string();
            self.kernel.handle(now, Input::Disconnected);
            self.kernel.settle();
            if let Err(error) = self.carry_out(ctx).await {
                tracing::warn!(error = %error.message, "the session's last effects failed");
            }
        }
        let report = SessionReport {
            session_id: self.setup.place.lease.session.clone(),
            tenant_id: self.setup.tenant.clone(),
            pipeline_version: self.setup.blueprint.spec.version.clone(),
            epoch: self.kernel.epoch(),
            state: self.kernel.state(),
            ended: self.ended.clone(),
            opened_at: self.ledger.opened_at(),
            ended_at: now,
            turns: self.ledger.take_reports(),
            refused: self.ledger.refusals(),
            node_failures: self.node_failures,
            underruns: self.line.underruns.load(Ordering::Relaxed),
            kernel_overhead_us: self.setup.overhead.percentiles(),
        };
        let (done, _) = oneshot::channel();
        let done = std::mem::replace(&mut self.setup.done, done);
        let _nobody_waits = done.send(report);
    }
}

fn time(ctx: &Context<Session>) -> Monotonic {
    Monotonic::from_duration(ctx.clock().now())
}

/// The taxonomy's word for how a call ended (F-131).
fn error_code(class: OutcomeClass) -> ErrorCode {
    match class {
        OutcomeClass::Timeout => ErrorCode::ProviderTimeout,
        OutcomeClass::Overload => ErrorCode::ProviderOverload,
        OutcomeClass::Success
        | OutcomeClass::Blocked
        | OutcomeClass::InfrastructureFailure
        | OutcomeClass::Cancelled => ErrorCode::RuntimeInternalError,
    }
}
