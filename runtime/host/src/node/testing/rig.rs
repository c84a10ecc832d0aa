//! A node on test: a real host under a real plan, driven step by step.

use std::{collections::BTreeMap, fmt, num::NonZeroUsize, sync::Arc, time::Duration};

use rspp_actors::{
    ActorId, Bounded, CancellationToken, ChildSpec, Clock, Handle, Overflow, System,
};
use rspp_controlplane_api::{Lease, Leases, LocalLeases, MemoryStore, StateStore};
use rspp_kernel::{
    CancelReason,
    edge::Patience,
    fence::OutputFence,
    graph::NodeIx,
    invocation::TurnDeadlines,
    plan::{ProviderInputs, ProviderSignals, ResolvedTurnPlan},
};
use rspp_proto::{
    Epoch, Monotonic, Payload, SampleIndex, SessionId, TenantId, TurnNumber,
    spec::{LimitsSpec, MemoryLimits, PipelineSpec},
};
use tokio::sync::{Notify, oneshot};

use super::{
    Harness, NODE, Output,
    stand::{Order, Receiver, Record, Stand},
};
use crate::{
    admission::Gatekeeper,
    assembly::{Assembly, Hosts, Pools},
    blueprint::Blueprint,
    event::{Arrival, Event, Port, Stamp},
    memory::Meter,
    node::{NodeControl, NodeReport, NodeStates, StateAccess, builtin::NodeRegistry},
    overhead::Overhead,
    providers::{Bound, CallRules, ProviderBoard, catalogue},
    runtime::OpenError,
    schedule::Scheduling,
    session::LISTENING,
    snapshots::Snapshots,
    turn::HostHandle,
    watchdog::Watchdog,
};

/// Threads that inference has, and what a piece of it costs.
const POOL: (usize, Duration) = (2, Duration::from_millis(1));
/// What may wait between the node and whoever looks at what it does: more than a test looks at.
const ROOM: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// What jitter is drawn from.
const SEED: u64 = 1;
/// How long everything may take to end; in virtual time.
const END: Duration = Duration::from_mins(1);

/// A node on test.
///
/// Whatever is to be done at the present moment is done when a method returns; time passes in
/// [`advance`](Self::advance) alone.
pub struct Rig {
    tokio: tokio::runtime::Runtime,
    /// Told when there is nothing left to do at this moment.
    idle: Arc<Notify>,
    world: World,
}

/// What the node's host needs, and what drives it.
struct World {
    registry: Arc<NodeRegistry>,
    providers: Arc<rspp_provider_api::Providers>,
    blueprint: Blueprint,
    node: NodeIx,
    listens: bool,
    system: System,
    stand: Handle<Stand>,
    receiver: HostHandle,
    record: Record,
    clock: Clock,
    session: SessionId,
    leases: Arc<LocalLeases>,
    store: Arc<dyn StateStore>,
    board: Arc<ProviderBoard>,
    scheduling: Arc<Scheduling>,
    watchdog: Watchdog,
    place: Place,
    turn: TurnNumber,
    host: Option<Host>,
    fed: Fed,
}

/// Where the session is, and what it remembers there.
struct Place {
    lease: Lease,
    fence: Arc<OutputFence>,
    states: Arc<NodeStates>,
}

/// The node's host, as long as there is one.
struct Host {
    handle: HostHandle,
    cancel: CancellationToken,
}

/// What was fed so far.
#[derive(Default)]
struct Fed {
    events: u64,
    /// Of audio.
    samples: u64,
}

impl Rig {
    pub(super) fn start(harness: &Harness) -> Result<Self, OpenError> {
        let idle = Arc::<Notify>::default();
        let resting = Arc::clone(&idle);
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .on_thread_park(move || resting.notify_waiters())
            .build()
            .map_err(|error| OpenError::Start(error.to_string()))?;
        let world = tokio.block_on(World::new(harness))?;
        let mut rig = Self { tokio, idle, world };
        rig.begin()?;
        Ok(rig)
    }

    /// Hands an event in by the first input.
    pub fn feed(&mut self, payload: Payload) {
        self.feed_at(Port(0), payload);
    }

    /// Hands an event in by an input. It is stamped as the next of its sender, in the user's audio
    /// where all that was fed so far ends.
    pub fn feed_at(&mut self, port: Port, payload: Payload) {
        let event = {
            let _clock = self.tokio.enter();
            self.world.event(payload)
        };
        self.feed_event(port, event);
    }

    /// Hands in an event that is stamped already.
    pub fn feed_event(&mut self, port: Port, event: Event) {
        {
            let _clock = self.tokio.enter();
            self.world.offer(port, event);
        }
        self.settle();
    }

    /// Lets time pass, and all happen that is due meanwhile.
    pub fn advance(&mut self, time: Duration) {
        self.tokio
            .block_on(async { tokio::time::sleep(time).await });
        self.settle();
    }

    /// Time since the rig was started.
    pub fn now(&self) -> Duration {
        // Outside of its runtime a clock would read real time.
        let _clock = self.tokio.enter();
        self.world.clock.now()
    }

    /// Cancels the node's turn as a session does: the fence falls, then the node is told. What the
    /// node makes afterwards is nobody's business until [`next_turn`](Self::next_turn).
    pub fn cancel(&mut self, reason: CancelReason) {
        if !self.world.listens {
            let _nothing_is_heard_here = self.world.place.fence.raise(self.world.turn);
            if let Some(host) = &self.world.host {
                host.cancel.cancel();
            }
        }
        self.cancel_work(reason);
    }

    /// Cancels the work of the node alone; its turn goes on, and so does the node (F-034).
    pub fn cancel_work(&mut self, reason: CancelReason) {
        let at = Monotonic::from_duration(self.now());
        self.tell(NodeControl::Cancel { reason, at });
    }

    /// Ends the turn and opens the next: the node is stopped, and another is made. What goes with a
    /// turn is gone; what the session remembers is not.
    pub fn next_turn(&mut self) -> Result<(), OpenError> {
        self.end_host();
        self.world.turn = self.world.turn.next();
        self.begin()
    }

    /// Moves the session to another placement: the node is stopped here and made anew there, under a
    /// newer lease. Only what is durable is left.
    pub fn move_session(&mut self) -> Result<(), OpenError> {
        self.end_host();
        self.world.place = self.world.take_place()?;
        self.world.turn = self.world.turn.next();
        self.begin()
    }

    /// Another placement takes the session's lease, of which this one does not know yet: what is
    /// written to the store from now on is refused.
    pub fn lose_lease(&mut self) -> Result<(), OpenError> {
        self.world.leases.acquire(&self.world.session)?;
        Ok(())
    }

    /// Says what came of a tool call that the node asked for.
    pub fn answer_tool(&mut self, call: &str, content: &str) {
        {
            let _clock = self.tokio.enter();
            self.world.send(Arrival::ToolAnswer {
                call: call.into(),
                content: content.into(),
            });
        }
        self.settle();
    }

    /// All that the node did and that was not looked at yet, in order.
    pub fn outputs(&mut self) -> Vec<Output> {
        self.world.record.take(|_at, output| Ok(output))
    }

    /// The same, with when it was.
    pub fn timed_outputs(&mut self) -> Vec<(Duration, Output)> {
        self.world.record.take(|at, output| Ok((at, output)))
    }

    /// What the node emitted and what was not looked at yet, in order; everything else is left.
    pub fn emitted(&mut self) -> Vec<Payload> {
        self.world.record.take(|_at, output| match output {
            Output::Emitted(event) => Ok(event.payload),
            other @ (Output::Shown(_)
            | Output::Reported(_)
            | Output::Tools(_)
            | Output::Called(_)
            | Output::Crashed { .. }) => Err(other),
        })
    }

    /// The texts that the node emitted and that were not looked at yet, in order; everything else is
    /// left.
    pub fn texts(&mut self) -> Vec<String> {
        self.world.record.take(|_at, output| match output {
            Output::Emitted(Event {
                payload: Payload::Text(chunk),
                ..
            }) => Ok(chunk.text.to_string()),
            other @ (Output::Emitted(_)
            | Output::Shown(_)
            | Output::Reported(_)
            | Output::Tools(_)
            | Output::Called(_)
            | Output::Crashed { .. }) => Err(other),
        })
    }

    /// What the node's session was told and what was not looked at yet, in order; everything else is
    /// left.
    pub fn reports(&mut self) -> Vec<NodeReport> {
        self.world.record.take(|_at, output| match output {
            Output::Reported(report) => Ok(report),
            other @ (Output::Emitted(_)
            | Output::Shown(_)
            | Output::Tools(_)
            | Output::Called(_)
            | Output::Crashed { .. }) => Err(other),
        })
    }

    /// Stops the node, and everything around it. Returns what it did that was not looked at yet.
    ///
    /// # Panics
    ///
    /// If something of the node does not end in the time that it has.
    #[track_caller]
    pub fn stop(mut self) -> Vec<Output> {
        self.end_host();
        let system = self.world.system.clone();
        let in_order = self.tokio.block_on(system.shut_down(END));
        assert!(
            in_order,
            "the node, or something that it began, had to be killed"
        );
        self.outputs()
    }

    fn begin(&mut self) -> Result<(), OpenError> {
        self.tokio.block_on(self.world.begin())?;
        self.settle();
        Ok(())
    }

    /// The node ends as it does with its turn or session: what it is busy with is not waited for.
    fn end_host(&mut self) {
        if let Some(host) = self.world.host.take() {
            host.cancel.cancel();
            self.tokio.block_on(self.world.end(host.handle.id));
        }
        self.settle();
    }

    fn tell(&mut self, message: NodeControl) {
        if let Some(host) = &self.world.host {
            let _it_has_crashed = host.handle.control.send_reserved(message);
        }
        self.settle();
    }

    /// Waits until there is nothing to do but to let time pass.
    fn settle(&mut self) {
        self.tokio.block_on(self.idle.notified());
    }
}

impl fmt::Debug for Rig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rig")
            .field("now", &self.now())
            .field("turn", &self.world.of_turn())
            .finish_non_exhaustive()
    }
}

impl World {
    async fn new(harness: &Harness) -> Result<Self, OpenError> {
        let spec = harness.spec();
        let snapshots = Arc::<Snapshots>::default();
        let blueprint =
            Blueprint::new(spec, None, harness.settings(), snapshots).map_err(OpenError::Graph)?;
        let node = blueprint.graph.find(NODE);
        let spec = &blueprint.spec;
        let clock = Clock::start();
        let record = Record::new(clock);
        let system = System::seeded(clock, SEED);
        let did_not_start = |error: rspp_actors::SpawnError| OpenError::Start(error.to_string());
        let mut place = ChildSpec::temporary("stand");
        place.limits.control = ROOM;
        place.limits.telemetry = ROOM;
        let own = record.clone();
        let orders = Bounded::new(ROOM, Overflow::Refuse);
        let stand = system.spawn_root(place, orders, move || Stand {
            record: own.clone(),
        });
        let stand = stand.await.map_err(did_not_start)?;
        let own = record.clone();
        let arrivals = Bounded::new(ROOM, Overflow::Refuse);
        let behind = ChildSpec::temporary("receiver");
        let receiver = system.spawn_root(behind, arrivals, move || Receiver {
            record: own.clone(),
        });
        let receiver = receiver.await.map_err(did_not_start)?;

        let leases = Arc::<LocalLeases>::default();
        let store: Arc<dyn StateStore> =
            Arc::new(MemoryStore::new(Arc::clone(&leases) as Arc<dyn Leases>));
        let session = SessionId::new("test").expect("not blank");
        let tenant = TenantId::new("test").expect("not blank");
        let gatekeeper = Arc::new(Gatekeeper::new(
            LimitsSpec::default(),
            clock,
            BTreeMap::new(),
        ));
        let scheduling =
            Scheduling::new(&gatekeeper, &tenant, &spec.version, spec.priority, &session);
        let place = take_place(&leases, &store, &session, spec)?;
        Ok(Self {
            registry: Arc::new(harness.registry.clone()),
            providers: Arc::new(harness.providers.clone()),
            node: node.expect("the harness put it there"),
            blueprint,
            listens: harness.listens,
            system,
            stand,
            receiver,
            record,
            clock,
            session,
            leases,
            store,
            board: Arc::new(ProviderBoard::new(clock)),
            scheduling: Arc::new(scheduling),
            // What blocks its thread blocks the test, which shows it.
            watchdog: Watchdog::asleep(),
            place,
            turn: TurnNumber::FIRST,
            host: None,
            fed: Fed::default(),
        })
    }

    fn now(&self) -> Monotonic {
        Monotonic::from_duration(self.clock.now())
    }

    fn take_place(&self) -> Result<Place, OpenError> {
        take_place(
            &self.leases,
            &self.store,
            &self.session,
            &self.blueprint.spec,
        )
    }

    /// The turn that the node works for, if it is a turn's.
    fn of_turn(&self) -> Option<TurnNumber> {
        (!self.listens).then_some(self.turn)
    }

    fn plan(&self) -> Result<ResolvedTurnPlan, OpenError> {
        let catalogue = catalogue(&self.providers);
        let signals: ProviderSignals = self
            .board
            .signals(rspp_proto::spec::CircuitPolicy::default());
        let inputs = ProviderInputs {
            tenant: "test",
            attributes: &BTreeMap::new(),
            catalogue: &catalogue,
            signals: &signals,
            now: self.now(),
        };
        let turn = self.of_turn().unwrap_or(LISTENING);
        let plan = self
            .blueprint
            .plan(turn, self.place.lease.epoch, None, inputs, false)?;
        Ok(plan)
    }

    async fn begin(&mut self) -> Result<(), OpenError> {
        let cancel = CancellationToken::new();
        let assembly = self.assembly(self.plan()?, cancel.clone());
        let mut hosts = Hosts::default();
        let graph = &self.blueprint.graph;
        for edge in &graph.node(self.node).outputs {
            hosts.add(graph.edge(*edge).to, self.receiver.clone());
        }
        let made = assembly
            .node(self.node, &hosts)
            .map_err(|failure| OpenError::Start(failure.message))?
            .expect("a node of a pipeline is no pseudo-node");
        let (answer, started) = oneshot::channel();
        self.order(Box::new(move |ctx| {
            Box::pin(async move {
                let started = ctx.spawn(made.spec, made.inputs, made.make).await;
                let _waits = answer.send(started);
            })
        }));
        let started = started.await.map_err(|_| OpenError::Closed)?;
        let handle = started.map_err(|error| OpenError::Start(error.to_string()))?;
        self.host = Some(Host { handle, cancel });
        Ok(())
    }

    async fn end(&self, host: ActorId) {
        let (answer, ended) = oneshot::channel();
        self.order(Box::new(move |ctx| {
            Box::pin(async move {
                ctx.stop_child(host, "the test is over with it").await;
                let _waits = answer.send(());
            })
        }));
        let _ended = ended.await;
    }

    fn order(&self, order: Order) {
        let _there_is_room = self.stand.data.offer(order);
    }

    fn assembly(&self, plan: ResolvedTurnPlan, cancel: CancellationToken) -> Assembly {
        let plan = Arc::new(plan);
        let (turn, epoch) = (self.of_turn(), self.place.lease.epoch);
        let now = self.now();
        let bound = match turn {
            Some(_) => Bound::Turn(TurnDeadlines {
                first_output: now + Duration::from_millis(plan.budgets.turn_budget_ms),
                end: now + Duration::from_millis(plan.budgets.max_turn_duration_ms),
            }),
            None => Bound::Listening,
        };
        let calls = CallRules {
            calls: plan.provider_policy.calls.clone(),
            circuit: plan.provider_policy.circuit,
            caps: plan.provider_policy.caps,
            actions: plan.allowed_adaptive_actions.clone(),
            bound,
            board: Arc::clone(&self.board),
            overruns: Arc::default(),
            at_work: Arc::default(),
            meter: Arc::default(),
        };
        let spec = &self.blueprint.spec;
        Assembly {
            capture: None,
            graph: Arc::clone(&self.blueprint.graph),
            nodes: Arc::clone(&self.registry),
            providers: Arc::clone(&self.providers),
            calls: Arc::new(calls),
            pools: Pools::simulated(POOL.0, POOL.1),
            session_id: self.session.clone(),
            turn,
            mute: false,
            epoch,
            turns: Arc::new(spec.turns.clone()),
            handoff: Arc::new(plan.llm_to_tts()),
            plan,
            instructions: self.blueprint.instructions.clone(),
            conversation: Arc::default(),
            attributes: Arc::default(),
            clock: self.clock,
            fence: Arc::clone(&self.place.fence),
            session: self.stand.control.clone(),
            telemetry: self.stand.telemetry.clone(),
            overhead: Arc::<Overhead>::default(),
            observers: Arc::default(),
            meters: None,
            work: None,
            memory: Arc::new(Meter::new(MemoryLimits::default())),
            watchdog: self.watchdog.clone(),
            scheduling: Arc::clone(&self.scheduling),
            egress: self.receiver.data.clone(),
            pulse: Arc::default(),
            provisional: false,
            state: Arc::new(StateAccess {
                session: Arc::clone(&self.place.states),
                turn: turn.map(|turn| (turn, Arc::default())),
                session_id: self.session.clone(),
                epoch,
                fence: Arc::clone(&self.place.fence),
                promoted: None,
                cancel: cancel.clone(),
                clock: self.clock,
                control: self.stand.control.clone(),
            }),
            cancel,
        }
    }

    fn event(&mut self, payload: Payload) -> Event {
        self.fed.events += 1;
        let media = SampleIndex(self.fed.samples);
        if let Payload::AudioChunk(chunk) = &payload {
            self.fed.samples += chunk.samples();
        }
        let stamp = Stamp {
            turn: self.of_turn(),
            epoch: self.place.lease.epoch,
            sequence: self.fed.events,
            made: self.now(),
            media,
            segment: payload.text().map_or(0, |chunk| chunk.segment),
        };
        Event::new(stamp, payload)
    }

    fn offer(&self, port: Port, event: Event) {
        let arrived = self.now();
        self.send(Arrival::Event {
            port,
            event,
            arrived,
            // Nobody stands behind the edge who could wait for it.
            patience: Patience::Spent,
        });
    }

    fn send(&self, arrival: Arrival) {
        if let Some(host) = &self.host {
            // What an edge has no room for it counts, and reports.
            let _told_by_the_edge = host.handle.data.offer(arrival);
        }
    }
}

fn take_place(
    leases: &Arc<LocalLeases>,
    store: &Arc<dyn StateStore>,
    session: &SessionId,
    spec: &PipelineSpec,
) -> Result<Place, OpenError> {
    let lease = leases.acquire(session)?;
    let epoch: Epoch = lease.epoch;
    Ok(Place {
        fence: Arc::new(OutputFence::new(epoch)),
        states: Arc::new(NodeStates::new(spec.state.clone(), Arc::clone(store))),
        lease,
    })
}
