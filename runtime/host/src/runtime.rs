//! One node: the root of the supervision tree, and the door to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rspp_actors::{
    Actor, ActorInfo, ChildExit, ChildSpec, Clock, Context, ControlRef, ControlRefused, DataRef,
    ExitReason, Failure, Handle, NoData, NoTelemetry, PumpHandle, SpawnError, System,
};
use rspp_controlplane_api::{
    Lease, Leases, LocalLeases, MemoryStore, StateStore, StoreError, Terms, Wanted,
};
use rspp_kernel::{
    CancelReason, Gates,
    admission::AdmissionReport,
    continuation::Continuation,
    graph::GraphError,
    plan::{LayeredSettings, PlanError, ProviderInputs, ResolvedTurnPlan, with_insertions},
};
use rspp_proto::{
    Epoch, Monotonic, PipelineVersion, ProviderId, SessionId, TenantId, TurnNumber,
    control::{Binding, Emptying, Versions},
    spec::{
        LimitsSpec, MemoryLimits, Modality, NodeKind, PipelineSpec, PolicyBundle, Quota,
        RecordingPolicy,
    },
};
use rspp_provider_api::Providers;
use rspp_timeline::{
    LineNote, OpeningEntry, ProviderNote, Recorder, ViewNote,
    export::{ExportStats, Exports},
    trace::SpanSink,
};
use rspp_transport_api::Transport;
use thiserror::Error;
use tokio::sync::{broadcast, oneshot};
use tracing::Span;

use crate::{
    admission::{Entry, Gatekeeper, Newcomer, SessionRefused},
    assembly::{Graces, Pools},
    blueprint::{Blueprint, Blueprints, written},
    capacity::{CapacityEvent, CpuProbe, Monitor, ProcessCpu},
    carriage::Carriage,
    clip::Clip,
    connection::{Connection, ConnectionControl},
    effective::EffectivePipeline,
    event::Arrival,
    exporter::TimelineExporter,
    memory::{MemoryUse, Meter, Share},
    meters::{Measurements, Metered},
    node::{
        InputEdge, Inputs, WorkBook,
        builtin::{NodeRegistry, PinError},
    },
    observe::{Capture, CaptureBounds, Filter, Notice, Observers},
    overhead::Overhead,
    plane::{
        ControlPlaneLink, PlaneConfig, PlaneHandle, PlaneLeases, PlaneStore, Roster, Shared,
        Surroundings, Tried,
    },
    providers::{ProviderBoard, catalogue},
    report::SessionReport,
    scope,
    session::{
        CancelReceipt, CancelTarget, Command, Health, KEPT, LISTENING, OpenAnswer, Opening,
        Session, SessionControl, SessionSetup, SessionStatus,
    },
    snapshots::Snapshots,
    tool::ToolRegistry,
    totals::LatencySeries,
    view::{SessionView, Viewed, Views},
    watchdog::Watchdog,
};

/// Reports of nodes that may wait for a session; memory is taken as they come. A session that is
/// further behind than this is lost, and its nodes fail loudly.
const REPORTS: NonZeroUsize = NonZeroUsize::new(1_024).expect("not zero");
/// Further ones of its connection and its provider calls, and commands.
const RESERVED_REPORTS: NonZeroUsize = NonZeroUsize::new(128).expect("not zero");

/// Orders that the doors hold where the number of sessions is not limited.
const MANY: usize = 100_000;

/// What a runtime is made of.
#[derive(Clone)]
pub struct Config {
    /// Who serves speech and language.
    pub providers: Arc<Providers>,
    /// Where inference runs.
    pub pools: Pools,
    /// Kinds of nodes beside the built-in ones.
    pub nodes: Arc<NodeRegistry>,
    /// Tools that pipelines may declare.
    pub tools: Arc<ToolRegistry>,
    /// Who grants leases.
    pub leases: Arc<dyn Leases>,
    /// Which of the control plane's snapshots are in force.
    pub snapshots: Arc<Snapshots>,
    /// Recordings by name, for policies to refer to (F-135).
    pub clips: Arc<BTreeMap<String, Clip>>,
    /// Where session-durable state is kept; in memory, under `leases`, if nothing else is.
    pub store: Option<Arc<dyn StateStore>>,
    /// Where timelines are exported to; nowhere if `None`.
    pub exports: Option<Exports>,
    /// Who takes turns as traces while calls go on; nobody if `None`, and then nothing is made (F-070).
    pub spans: Option<Arc<dyn SpanSink>>,
    /// The fleet that the node belongs to, which grants its leases and keeps its state then.
    pub plane: Option<PlaneConfig>,
    /// Most that any session may hold in memory, whatever its pipeline allows itself.
    pub session_memory: MemoryLimits,
    /// What the node takes on.
    pub limits: LimitsSpec,
    /// Who knows how busy the processors are.
    pub cpu: Arc<dyn CpuProbe>,
    /// The node's clock.
    pub clock: Clock,
    /// What was found when turns were to open, where a session is run again: who else was there then is not
    /// there now, the load is another, and so is the holder of the leases (F-151).
    pub decided: BTreeMap<TurnNumber, Gates>,
    /// Whether nodes that block their thread are looked for by the wall's clock (P16): where time is the
    /// wall's. In virtual time how long something takes on this machine decides nothing.
    pub notices_blocking: bool,
    /// What jitter is drawn from; chance if `None`. A simulation sets it, to be run again.
    pub seed: Option<u64>,
}

impl Config {
    /// A runtime that stands alone, with the built-in nodes.
    pub fn new(providers: Providers, pools: Pools) -> Self {
        Self {
            providers: Arc::new(providers),
            notices_blocking: pools.are_in_real_time(),
            pools,
            nodes: Arc::default(),
            tools: Arc::default(),
            leases: Arc::new(LocalLeases::default()),
            snapshots: Arc::default(),
            clips: Arc::default(),
            store: None,
            exports: None,
            spans: None,
            plane: None,
            session_memory: MemoryLimits::default(),
            limits: LimitsSpec::default(),
            cpu: Arc::new(ProcessCpu::default()),
            clock: Clock::start(),
            decided: BTreeMap::new(),
            seed: None,
        }
    }
}

impl Config {
    /// Has the control plane grant leases and keep state, if there is one.
    fn join(&mut self, gatekeeper: &Arc<Gatekeeper>, roster: &Arc<Roster>) -> Option<Surroundings> {
        let plane = self.plane.as_ref()?;
        let boot = self.seed.unwrap_or_else(|| {
            let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
            since.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(48)
        });
        let shared = Shared::new(self.clock, plane, boot);
        gatekeeper.fleet().join();
        self.leases = Arc::new(PlaneLeases::new(Arc::clone(&shared), plane.mode));
        let store = PlaneStore::new(
            Arc::clone(&shared),
            Arc::clone(&plane.plane),
            Arc::clone(&self.leases),
        );
        self.store = Some(Arc::new(store));
        Some(Surroundings {
            shared,
            roster: Arc::clone(roster),
            gatekeeper: Arc::clone(gatekeeper),
            cpu: Arc::clone(&self.cpu),
            snapshots: Arc::clone(&self.snapshots),
        })
    }

    /// Lets the language models gather calls that are to (F-051).
    fn gather(&mut self) -> Result<(), SpawnError> {
        if self.limits.batching.is_empty() {
            return Ok(());
        }
        let mut providers = (*self.providers).clone();
        for (id, spec) in &self.limits.batching {
            providers
                .batch(id, *spec)
                .map_err(|error| SpawnError::Failed {
                    path: "node".to_owned(),
                    message: error.to_string(),
                })?;
        }
        self.providers = Arc::new(providers);
        Ok(())
    }
}

/// A session to open.
pub struct SessionRequest {
    /// Who it is accounted to.
    pub tenant: TenantId,
    /// Its id.
    pub session: SessionId,
    /// What it runs.
    pub pipeline: PipelineSpec,
    /// Overrides of the pipeline's defaults.
    pub policy: Option<PolicyBundle>,
    /// Settings by layer (F-080).
    pub settings: LayeredSettings,
    /// Which published versions policy and provider settings are (F-102).
    pub versions: Versions,
    /// What conditions may ask of the session.
    pub attributes: BTreeMap<String, serde_json::Value>,
    /// Its connection.
    pub transport: Transport,
    /// Where its timeline goes.
    pub recorder: Recorder,
}

/// Why a session did not open. Nothing has been started then.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The session was not let in (F-049, F-050).
    #[error("this node takes no more: {0}")]
    Refused(Box<SessionRefused>),
    /// The pipeline cannot run.
    #[error("the pipeline cannot run: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Graph(Vec<GraphError>),
    /// The pipeline names a kind of node that nobody registered.
    #[error("node `{node}` is of kind `{kind}`, which is not registered; known: {known}")]
    UnknownNode {
        /// The node.
        node: String,
        /// Its kind.
        kind: String,
        /// What there is.
        known: String,
    },
    /// A node is of a package that is not there as it should be (F-121).
    #[error("node `{node}`: {error}")]
    Package {
        /// The node.
        node: String,
        /// What is wrong.
        error: PinError,
    },
    /// A node cannot be kept in the sandbox that is asked for (F-124).
    #[error("node `{node}`: {error}")]
    Sandbox {
        /// The node.
        node: String,
        /// Why not.
        error: String,
    },
    /// The pipeline declares a tool that nobody runs.
    #[error("node `{node}`, tool `{tool}`: {error}")]
    UnknownTool {
        /// The node.
        node: String,
        /// The tool.
        tool: String,
        /// Why nobody runs it.
        error: String,
    },
    /// No plan can be made of pipeline, policy and settings.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A provider that the plan names is not there.
    #[error("node `{node}`: {error}")]
    Provider {
        /// The node.
        node: String,
        /// What is wrong.
        error: String,
    },
    /// A recording that the policy refers to is not there.
    #[error("providers.failure.recording: unknown recording `{name}`; known: {known}")]
    UnknownRecording {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The session's lease was not granted.
    #[error(transparent)]
    Lease(#[from] rspp_controlplane_api::LeaseError),
    /// The session is bound to other versions than those that it was to run.
    #[error(
        "the session is bound to {}, not to {}; ask for a route again",
        named(.bound),
        named(.asked)
    )]
    BoundOtherwise {
        /// What it is bound to.
        bound: Box<Binding>,
        /// What it was to run.
        asked: Box<Binding>,
    },
    /// An actor did not start.
    #[error("the session did not start: {0}")]
    Start(String),
    /// Too many sessions are being opened at this moment.
    #[error("too many sessions are being opened at once; try again in a moment")]
    Busy,
    /// The node takes no new sessions any more.
    #[error("this node is being emptied; ask for another one")]
    Emptying,
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    Closed,
}

/// A binding as people read it.
fn named(binding: &Binding) -> String {
    let part = |what: &str, version: &Option<String>| {
        let version = version.as_ref();
        version.map_or_else(String::new, |it| format!(" with {what} `{it}`"))
    };
    format!(
        "pipeline `{}`{}{}",
        binding.pipeline,
        part("policy", &binding.policy),
        part("providers", &binding.providers)
    )
}

/// A session's place in its node, and its lease: given back when it is dropped, however the session
/// ends, a panic included.
pub(crate) struct Place {
    pub(crate) lease: Lease,
    /// When the lease was asked for: it may have begun then.
    pub(crate) asked: Monotonic,
    pub(crate) leases: Arc<dyn Leases>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) entry: Entry,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.roster.leave(&self.lease.session, self.lease.epoch);
        if self.leases.release(&self.lease).is_err() {
            tracing::debug!(session_id = %self.lease.session, "the lease had been taken away");
        }
    }
}

/// What the fleet should have counted of a node and never will: it could not be told for too long, or was refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uncounted {
    /// Tokens, against their tenants' limits.
    pub tokens: u64,
    /// Sessions, for their versions.
    pub sessions: u64,
}

/// One node.
pub struct Runtime {
    config: Config,
    system: System,
    root: Handle<Node>,
    gatekeeper: Arc<Gatekeeper>,
    board: Arc<ProviderBoard>,
    blueprints: Blueprints,
    overhead: Arc<Overhead>,
    metered: Metered,
    views: Arc<Views>,
    watchdog: Watchdog,
    store: Arc<dyn StateStore>,
    roster: Arc<Roster>,
    /// What the node and its link have in common.
    shared: Option<Arc<Shared>>,
    emptying: AtomicBool,
}

/// How often what a session kept is asked for.
const READ_TRIES: u32 = 4;

impl Runtime {
    /// Starts the node's supervision tree.
    pub async fn start(mut config: Config) -> Result<Self, SpawnError> {
        config.gather()?;
        let clock = config.clock;
        let system = match config.seed {
            Some(seed) => System::seeded(clock, seed),
            None => System::new(clock),
        };
        let max_sessions = config
            .limits
            .node
            .sessions
            .map_or(MANY, |Quota { limit, .. }| limit as usize);
        let gatekeeper = Arc::new(Gatekeeper::new(
            config.limits.clone(),
            clock,
            config.decided.clone(),
        ));
        let overhead = Arc::<Overhead>::default();
        let roster = Arc::<Roster>::default();
        let shared = config.join(&gatekeeper, &roster);
        let monitor = {
            let gatekeeper = Arc::clone(&gatekeeper);
            let overhead = Arc::clone(&overhead);
            let (pools, cpu) = (config.pools.clone(), Arc::clone(&config.cpu));
            move || Monitor {
                gatekeeper: Arc::clone(&gatekeeper),
                pools: pools.clone(),
                overhead: Arc::clone(&overhead),
                cpu: Arc::clone(&cpu),
            }
        };
        let exports = config.exports.clone();
        let link = config.plane.clone().zip(shared.clone());
        let root = system
            .spawn_root(door("node", max_sessions), NoData, move || Node {
                max_sessions,
                exports: exports.clone(),
                link: link.clone(),
                monitor: Some(monitor()),
                listener: None,
            })
            .await?;
        let store = match &config.store {
            Some(store) => Arc::clone(store),
            None => Arc::new(MemoryStore::new(Arc::clone(&config.leases))),
        };
        let watchdog = if config.notices_blocking {
            Watchdog::start()
        } else {
            Watchdog::asleep()
        };
        Ok(Self {
            roster,
            shared: shared.map(|around| around.shared),
            emptying: AtomicBool::new(false),
            store,
            blueprints: Blueprints::new(Arc::clone(&config.snapshots)),
            config,
            system,
            root,
            gatekeeper,
            board: Arc::new(ProviderBoard::new(clock)),
            overhead,
            metered: Metered::default(),
            views: Arc::default(),
            watchdog,
        })
    }

    /// Opens a session; it runs until its user hangs up, it is drained, or the runtime shuts down.
    pub async fn open(&self, request: SessionRequest) -> Result<SessionHandle, OpenError> {
        self.open_planned(self.plan(request)?).await
    }

    /// Plans a session, up to where anybody else is asked: what cannot run is refused here.
    pub fn plan(&self, mut request: SessionRequest) -> Result<Box<PlannedSession>, OpenError> {
        if self.emptying.load(Ordering::Relaxed) {
            return Err(OpenError::Emptying);
        }
        // Before anything follows from the pipeline, so that plan, hash and recording say what runs.
        self.pin(&mut request.pipeline, request.policy.as_mut())?;
        let (policy, settings) = (request.policy.as_ref(), &request.settings);
        let blueprint = self.blueprint(&request.pipeline, policy, settings)?;
        let catalogue = catalogue(&self.config.providers);
        let inputs = ProviderInputs {
            tenant: request.tenant.as_str(),
            attributes: &request.attributes,
            catalogue: &catalogue,
            ..ProviderInputs::unknown()
        };
        let carriage = Arc::new(Carriage::of(&request.transport));
        let transport = || Some(carriage.now());
        let plan = blueprint.plan(LISTENING, Epoch::FIRST, transport(), inputs, false)?;
        self.check_providers(&blueprint, &plan)?;
        self.check_recording(&plan)?;
        self.check_sandboxes(&blueprint, &plan)?;
        let can_degrade = blueprint.spec.degrade.is_some();
        if can_degrade {
            let less = blueprint.plan(LISTENING, Epoch::FIRST, transport(), inputs, true)?;
            self.check_providers(&blueprint, &less)?;
            self.check_recording(&less)?;
        }
        let newcomer = Newcomer {
            tenant: request.tenant.clone(),
            session: request.session.clone(),
            version: blueprint.spec.version.clone(),
            priority: plan.priority,
            can_degrade,
        };
        Ok(Box::new(PlannedSession {
            request,
            blueprint,
            carriage,
            plan,
            newcomer,
        }))
    }

    /// Opens a session that was planned.
    pub async fn open_planned(
        &self,
        planned: Box<PlannedSession>,
    ) -> Result<SessionHandle, OpenError> {
        let PlannedSession {
            request,
            blueprint,
            carriage,
            plan,
            newcomer,
        } = *planned;
        let mut entry = self.gatekeeper.enter(&newcomer).await.map_err(|decision| {
            let refused = self
                .gatekeeper
                .refuse(&newcomer, decision, &request.recorder);
            OpenError::Refused(Box::new(refused))
        })?;
        // A lease takes the session from whoever has it, so it comes last.
        let asked = Monotonic::from_duration(self.config.clock.now());
        let asked_for = Binding {
            tenant: request.tenant.clone(),
            pipeline: blueprint.spec.version.clone(),
            policy: request.versions.policy.clone(),
            providers: request.versions.providers.clone(),
        };
        let wanted = Wanted::from(&asked_for);
        let mut lease = self.config.leases.take(&request.session, &wanted).await?;
        // Whoever goes has told by now what it has: this one is for somebody else.
        if self.is_emptying() {
            self.give_back(&lease);
            return Err(OpenError::Emptying);
        }
        // What another placement was bound to meanwhile it keeps; nobody runs it as something else.
        let bound = lease.binding.take();
        if let Some(bound) = bound.as_ref().filter(|it| ***it != asked_for) {
            self.give_back(&lease);
            return Err(OpenError::BoundOtherwise {
                bound: Box::new(Binding::clone(bound)),
                asked: Box::new(asked_for),
            });
        }
        let readings = self.shared.as_ref().map(|it| Arc::clone(&it.readings));
        match lease.terms {
            Terms::Less => entry.degrade(),
            Terms::Full | Terms::Unasked => {}
        }
        let opening = request
            .recorder
            .is_recording()
            .then(|| opening(&request, &blueprint, &lease, &self.config.providers, asked));
        let place = Place {
            asked: lease.asked.unwrap_or(asked),
            lease,
            leases: Arc::clone(&self.config.leases),
            roster: Arc::clone(&self.roster),
            entry,
        };
        let epoch = place.lease.epoch;
        let keeps = self.keeps(&place.lease);
        let resumed = if keeps {
            self.kept(&place.lease).await?
        } else {
            None
        };

        let observe = blueprint.settings.observe(blueprint.spec.observe);
        let measures = observe.metrics_every_ms.is_some_and(|every| every > 0);
        let slow_cancel = observe.slow_cancel();
        let meters = measures.then(|| {
            let version = blueprint.spec.version.clone();
            let session = request.session.clone();
            self.metered.add(session, version, slow_cancel)
        });
        let spans = self.config.spans.clone();
        let work = (measures || spans.is_some()).then(Arc::<WorkBook>::default);
        let scope = scope::of_session(&request.tenant, &request.session, &blueprint.spec.version);
        let caller = request.transport.caller;
        let egress = blueprint.graph.node(blueprint.graph.egress());
        let edges = egress.inputs.iter().map(|edge| {
            let edge = blueprint.graph.edge(*edge);
            let policy = &plan.edge_buffer_policies[&edge.id];
            let to = &blueprint.graph.node(edge.to).id;
            InputEdge {
                policy,
                carries: edge.carries,
                meter: meters
                    .as_ref()
                    .map(|meters| meters.edge(&edge.id, to, policy.strategy)),
            }
        });
        let limits = blueprint.spec.memory.within(self.config.session_memory);
        let memory = Arc::new(Meter::new(limits));
        let share = Share::of(&memory);
        let inputs = Inputs::new(self.config.clock, share, &plan.flow_control, edges);
        let observers = Arc::<Observers>::default();
        let health = Arc::<Health>::default();
        health.runs(&plan.policy);
        let runs = Arc::clone(&blueprint);
        let grace = Graces::under(&plan.budgets).session;
        let (done, report) = oneshot::channel();
        let (answer, opened) = oneshot::channel();
        let order = Order {
            name: request.session.to_string(),
            scope,
            transport: request.transport,
            inputs,
            grace,
            session: Box::new({
                let config = self.config.clone();
                let board = Arc::clone(&self.board);
                let circuit = plan.provider_policy.circuit;
                let overhead = self.overhead.of_pipeline(&blueprint.spec.version);
                let observers = Arc::clone(&observers);
                let meters = meters.clone();
                let health = Arc::clone(&health);
                let memory = Arc::clone(&memory);
                let watchdog = self.watchdog.clone();
                let store = Arc::clone(&self.store);
                let tenant = request.tenant;
                let recorder = request.recorder;
                let attributes = Arc::new(request.attributes);
                move |connection, egress| SessionSetup {
                    tried: readings.zip(bound).map(|(it, of)| Tried::new(it, of)),
                    place,
                    tenant,
                    blueprint,
                    attributes,
                    connection,
                    egress,
                    carriage,
                    nodes: config.nodes,
                    tools: config.tools,
                    store,
                    keeps,
                    resumed,
                    providers: config.providers,
                    board,
                    clips: config.clips,
                    circuit,
                    pools: config.pools,
                    recorder,
                    opening,
                    overhead,
                    observers,
                    observe,
                    meters,
                    spans,
                    work,
                    caller,
                    health,
                    memory,
                    watchdog,
                    opened: Opening::default(),
                    done,
                }
            }),
            answer,
        };
        let started = match self.root.control.send(NodeOrder::Open(Box::new(order))) {
            Ok(()) => opened.await.unwrap_or(Err(OpenError::Closed)),
            Err(refused) => Err(refusal(&refused)),
        };
        started.map(|control| {
            let view = SessionView {
                session: request.session,
                clock: self.config.clock,
                control,
                blueprint: runs,
                observers,
                meters,
                health,
            };
            SessionHandle {
                viewed: self.views.enter(view),
                epoch,
                memory,
                report,
            }
        })
    }

    /// Lets a session go that does not begin here.
    fn give_back(&self, lease: &Lease) {
        if self.config.leases.release(lease).is_err() {
            tracing::debug!(session_id = %lease.session, "the lease had been taken away");
        }
    }

    /// Says of each node out of a package which version of it runs.
    fn pin(
        &self,
        pipeline: &mut PipelineSpec,
        policy: Option<&mut PolicyBundle>,
    ) -> Result<(), OpenError> {
        let inserted = policy.into_iter().flat_map(|it| &mut it.insert_nodes);
        let inserted = inserted.map(|insertion| &mut insertion.node);
        let pinned = self
            .config
            .nodes
            .pin(pipeline.nodes.iter_mut().chain(inserted));
        pinned.map_err(|(node, error)| OpenError::Package {
            node: node.to_string(),
            error,
        })
    }

    /// What sessions of these run, made once.
    fn blueprint(
        &self,
        pipeline: &PipelineSpec,
        policy: Option<&PolicyBundle>,
        settings: &LayeredSettings,
    ) -> Result<Arc<Blueprint>, OpenError> {
        let pipeline = with_insertions(pipeline, policy)?;
        self.blueprints
            .find(pipeline, policy, settings, |pipeline| {
                self.check_nodes(pipeline)?;
                self.check_tools(pipeline)
            })
    }

    /// Whether the session's conversation is kept for others: not if nobody else can ever have it.
    fn keeps(&self, lease: &Lease) -> bool {
        let fleet = self.shared.as_ref();
        fleet.is_some_and(|shared| !shared.is_own(&lease.session))
    }

    /// What an earlier placement of the session has kept, for this one to go on from.
    async fn kept(&self, lease: &Lease) -> Result<Option<Box<Continuation>>, OpenError> {
        if lease.epoch == Epoch::FIRST {
            return Ok(None);
        }
        let mut tries = 0;
        loop {
            tries += 1;
            match self.store.read(&lease.session, KEPT).await {
                Ok(None) => return Ok(None),
                Ok(Some(stored)) => match serde_json::from_str(&stored.value) {
                    Ok(kept) => return Ok(Some(Box::new(going_on(kept, lease)))),
                    // Better a conversation that has forgotten than none at all.
                    Err(error) => {
                        tracing::error!(session_id = %lease.session, %error, "what was kept cannot be read");
                        return Ok(None);
                    }
                },
                Err(StoreError::Lease(error)) => return Err(error.into()),
                Err(error) if tries == READ_TRIES => {
                    let why = format!("what the session kept could not be read: {error}");
                    return Err(OpenError::Start(why));
                }
                Err(StoreError::Unavailable(_) | StoreError::Conflict { .. }) => {
                    tokio::time::sleep(Duration::from_millis(100) * tries).await;
                }
            }
        }
    }

    fn check_nodes(&self, pipeline: &PipelineSpec) -> Result<(), OpenError> {
        for node in &pipeline.nodes {
            if let NodeKind::Custom(kind) = &node.kind
                && !self.config.nodes.knows(&node.kind)
            {
                return Err(OpenError::UnknownNode {
                    node: node.id.to_string(),
                    kind: kind.clone(),
                    known: self.config.nodes.names().collect::<Vec<_>>().join(", "),
                });
            }
        }
        Ok(())
    }

    /// Better no session than one with a node that is not kept as it is to be.
    fn check_sandboxes(
        &self,
        blueprint: &Blueprint,
        plan: &ResolvedTurnPlan,
    ) -> Result<(), OpenError> {
        for (_, node) in blueprint.graph.nodes() {
            let Some(kind) = node.kind() else { continue };
            let policy = plan.node_execution_policies.get(&node.id);
            let asked = policy.and_then(|policy| policy.sandbox);
            let checked = self.config.nodes.check_sandbox(kind, asked);
            checked.map_err(|error| OpenError::Sandbox {
                node: node.id.to_string(),
                error,
            })?;
        }
        Ok(())
    }

    /// Better no session than one that promises what nobody does.
    fn check_tools(&self, pipeline: &PipelineSpec) -> Result<(), OpenError> {
        for node in &pipeline.nodes {
            for tool in &node.tools {
                if let Err(error) = self.config.tools.find(tool) {
                    return Err(OpenError::UnknownTool {
                        node: node.id.to_string(),
                        tool: tool.name.clone(),
                        error,
                    });
                }
            }
        }
        Ok(())
    }

    /// Every provider that the plan names must be there: better no session than a mute one.
    fn check_providers(
        &self,
        blueprint: &Blueprint,
        plan: &ResolvedTurnPlan,
    ) -> Result<(), OpenError> {
        use rspp_proto::spec::Modality;
        for node in &blueprint.spec.nodes {
            let Some(modality) = Modality::of(&node.kind) else {
                continue;
            };
            for id in plan.node_bindings.get(&node.id).into_iter().flatten() {
                let known = self.config.providers.ids(modality);
                if !known.contains(id) {
                    let known: Vec<_> = known.iter().map(ToString::to_string).collect();
                    return Err(OpenError::Provider {
                        node: node.id.to_string(),
                        error: format!(
                            "unknown {} provider `{id}`; known: {}",
                            modality.as_str(),
                            known.join(", ")
                        ),
                    });
                }
            }
        }
        Ok(())
    }

    /// The recording that the policy refers to must be there too.
    fn check_recording(&self, plan: &ResolvedTurnPlan) -> Result<(), OpenError> {
        let clips = &self.config.clips;
        match &plan.provider_policy.failure.recording {
            Some(name) if !clips.contains_key(name) => {
                let known = clips.keys().map(String::as_str);
                Err(OpenError::UnknownRecording {
                    name: name.clone(),
                    known: known.collect::<Vec<_>>().join(", "),
                })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The supervision tree, parents before children.
    pub fn tree(&self) -> Vec<ActorInfo> {
        self.system.tree()
    }

    /// The node's link to its control plane, if it belongs to a fleet.
    pub fn plane(&self) -> Option<PlaneHandle> {
        let plane = self.config.plane.as_ref()?;
        let shared = Arc::clone(self.shared.as_ref()?);
        Some(PlaneHandle::new(shared, Arc::clone(&plane.plane)))
    }

    /// Takes no new session any more, and gets rid of those that are open as far as that can be done
    /// `within` some time. How far it has come tells [`sessions`](Self::sessions).
    pub fn empty(&self, how: Emptying, within: Duration) {
        self.emptying.store(true, Ordering::Relaxed);
        match how {
            Emptying::Wait => {}
            Emptying::Finish => self.roster.drain_all(),
            Emptying::Move => {
                let until = Monotonic::from_duration(self.config.clock.now()) + within;
                self.roster.let_all_go(until);
            }
        }
    }

    /// Whether it takes no new sessions any more.
    pub fn is_emptying(&self) -> bool {
        self.emptying.load(Ordering::Relaxed)
    }

    /// Takes new sessions again.
    pub fn serve(&self) {
        self.emptying.store(false, Ordering::Relaxed);
    }

    /// Sessions that are open.
    pub fn sessions(&self) -> usize {
        self.gatekeeper.sessions()
    }

    /// The names of those that run.
    pub fn session_names(&self) -> Vec<SessionId> {
        self.roster.names()
    }

    /// What was decided about sessions and turns so far, by tenant.
    pub fn admission(&self) -> AdmissionReport {
        self.gatekeeper.report()
    }

    /// What the fleet should have counted of this node and never will.
    pub fn uncounted(&self) -> Uncounted {
        let readings = self.shared.as_ref().map(|it| it.readings());
        Uncounted {
            tokens: self.gatekeeper.fleet().given_up(),
            sessions: readings.map_or(0, |it| it.given_up()),
        }
    }

    /// What was gathered of a language model's calls; `None` if it answers each alone (F-051).
    pub fn batches(
        &self,
        model: &rspp_proto::ProviderId,
    ) -> Option<rspp_provider_api::BatchCounters> {
        self.config.providers.batches(model)
    }

    /// Providers that are left alone just now because calls of them failed, by whichever session's rules
    /// (F-057, F-108).
    pub fn resting(&self) -> BTreeSet<(Modality, ProviderId)> {
        let now = Monotonic::from_duration(self.config.clock.now());
        self.board.circuits.resting_by_any(now)
    }

    /// How loaded the node is.
    pub fn load(&self) -> rspp_kernel::admission::Load {
        self.gatekeeper.load()
    }

    /// What has become of the node's capacity: the newest events, oldest first.
    pub fn capacity_events(&self) -> Vec<CapacityEvent> {
        self.gatekeeper.events()
    }

    /// What becomes of the node's capacity from now on.
    pub fn watch_capacity(&self) -> broadcast::Receiver<CapacityEvent> {
        self.gatekeeper.subscribe()
    }

    /// Times that the runtime's own cost was found above its budget (F-052).
    pub fn overhead_alerts(&self) -> u64 {
        let alerts = &self.gatekeeper.overhead_alerts;
        alerts.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// What the runtime itself has cost so far.
    pub fn overhead(&self) -> &Overhead {
        &self.overhead
    }

    /// What the open sessions that are measured have measured so far, session by session (F-040,
    /// F-068).
    pub fn measurements(&self) -> BTreeMap<SessionId, Measurements> {
        self.metered.measurements()
    }

    /// Latencies over all sessions that were measured since the node started, those that are over
    /// included: of nodes, edges and providers, by pipeline version and provider (F-068).
    pub fn latencies(&self) -> Vec<LatencySeries> {
        self.metered.latencies()
    }

    /// An open session, for whoever does not hold its handle.
    pub fn session(&self, session: &SessionId) -> Option<Arc<SessionView>> {
        self.views.find(session)
    }

    /// The ids of at most `most` open sessions.
    pub fn session_ids(&self, most: usize) -> Vec<SessionId> {
        self.views.ids(most)
    }

    /// How the export of timelines fares; `None` if there is none.
    pub fn export_stats(&self) -> Option<ExportStats> {
        let now = Monotonic::from_duration(self.config.clock.now());
        Some(self.config.exports.as_ref()?.stats(now))
    }

    /// What is known of the providers; a probe or a price feed publishes its news there.
    pub fn provider_board(&self) -> &ProviderBoard {
        &self.board
    }

    /// Ends all sessions and everything else; `false` if something had to be killed.
    pub async fn shut_down(&self, grace: Duration) -> bool {
        self.system.shut_down(grace).await
    }
}

/// A session that could be run here, and that nobody else has been asked about yet.
pub struct PlannedSession {
    request: SessionRequest,
    blueprint: Arc<Blueprint>,
    carriage: Arc<Carriage>,
    /// What it listens by.
    plan: ResolvedTurnPlan,
    newcomer: Newcomer,
}

impl PlannedSession {
    /// What it runs.
    pub fn pipeline(&self) -> &PipelineVersion {
        &self.blueprint.spec.version
    }

    /// How it is to be recorded.
    pub fn recording_policy(&self) -> &RecordingPolicy {
        &self.plan.recording_policy
    }

    /// Has its timeline go there.
    pub fn record(&mut self, recorder: Recorder) {
        self.request.recorder = recorder;
    }
}

impl fmt::Debug for PlannedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlannedSession")
            .field("session", &self.request.session)
            .finish_non_exhaustive()
    }
}

/// An open session.
pub struct SessionHandle {
    viewed: Viewed,
    epoch: Epoch,
    memory: Arc<Meter>,
    report: oneshot::Receiver<SessionReport>,
}

impl SessionHandle {
    /// Its id.
    pub fn id(&self) -> &SessionId {
        self.view().id()
    }

    fn view(&self) -> &SessionView {
        &self.viewed.view
    }

    /// The epoch under which it was placed here.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What it says from now on, but for audio. A subscriber that falls far behind misses the oldest
    /// and is told.
    pub fn subscribe(&self) -> broadcast::Receiver<Notice> {
        self.subscribe_to(Filter::default())
    }

    /// What it says from now on and passes a filter (F-022).
    pub fn subscribe_to(&self, filter: Filter) -> broadcast::Receiver<Notice> {
        self.view().observers.subscribe(filter)
    }

    /// Has debug events made, and hands them out, until one of the bounds is met (F-076).
    pub fn capture(&self, bounds: CaptureBounds) -> Capture {
        self.view().capture(bounds)
    }

    /// Latencies and depths so far, by node, by edge and of the whole session (F-040); `None` unless
    /// pipeline or settings have it measured.
    pub fn measurements(&self) -> Option<Measurements> {
        self.view().measurements()
    }

    /// The pipeline that it really runs, as it runs it now (F-081).
    pub fn effective(&self) -> EffectivePipeline {
        self.view().effective()
    }

    /// How it stands; also once it is over.
    pub fn status(&self) -> SessionStatus {
        self.view().status()
    }

    /// What it holds in memory, and what it may (P19).
    pub fn memory(&self) -> MemoryUse {
        self.memory.read()
    }

    /// Cancels the running turn; returns once the fence has fallen. `None` if the session is over.
    pub async fn cancel(&self, reason: CancelReason) -> Option<CancelReceipt> {
        self.cancel_part(CancelTarget::Turn, reason).await
    }

    /// Cancels the session, a turn, a node's work or one provider call; returns once it is accepted
    /// and, where the user would hear it, the fence has fallen. `None` if the session is over.
    pub async fn cancel_part(
        &self,
        target: CancelTarget,
        reason: CancelReason,
    ) -> Option<CancelReceipt> {
        let (answer, receipt) = oneshot::channel();
        self.command(Command::Cancel {
            target,
            reason,
            answer,
        });
        receipt.await.ok()
    }

    /// Moves the session to a newer epoch.
    pub fn rotate(&self, epoch: Epoch) {
        self.command(Command::Rotate(epoch));
    }

    /// The session begins to move to another placement: `migration_start`. It opens no turn any more,
    /// ends the running one, and stays until [`hand_over`](Self::hand_over).
    pub fn leave(&self) {
        self.command(Command::Leave);
    }

    /// Another placement speaks for the session now: `session_handoff`, and nothing more from here.
    pub fn hand_over(&self) {
        self.command(Command::HandOver);
    }

    /// Does as [`drain`](Self::drain), for whoever has given the handle away to wait for the end.
    pub fn drainer(&self) -> impl Fn() + Send + Sync + 'static {
        let control = self.view().control.clone();
        move || {
            let message = SessionControl::Command(Command::Drain);
            if control.send_reserved(message).is_err() {
                tracing::debug!("a session that is over is not drained");
            }
        }
    }

    /// Takes the session's authority away.
    pub fn revoke(&self) {
        self.command(Command::Revoke);
    }

    /// Lets the running turn end, then ends the session.
    pub fn drain(&self) {
        self.command(Command::Drain);
    }

    pub(crate) fn command(&self, command: Command) {
        self.view().command(command);
    }

    /// Waits for the session's end; `None` if it died without a report.
    pub async fn wait(self) -> Option<SessionReport> {
        self.report.await.ok()
    }
}

/// What providers of a process do.
const MODALITIES: [Modality; 5] = [
    Modality::Vad,
    Modality::EndOfTurn,
    Modality::Stt,
    Modality::Llm,
    Modality::Tts,
];

/// What a session is opened with, for who replays it or asks what it runs.
fn opening(
    request: &SessionRequest,
    blueprint: &Blueprint,
    lease: &Lease,
    providers: &Providers,
    at: Monotonic,
) -> Box<OpeningEntry> {
    let notes = MODALITIES.iter().flat_map(|modality| {
        let ids = providers.ids(*modality).into_iter();
        ids.filter_map(|id| {
            let description = providers.describe(*modality, &id)?;
            Some(ProviderNote {
                modality: *modality,
                model: description.model.clone(),
                streaming: description.streaming,
                id,
            })
        })
    });
    let transport = &request.transport;
    let given = blueprint.given(&request.pipeline);
    Box::new(OpeningEntry {
        at,
        session_id: request.session.clone(),
        tenant_id: request.tenant.clone(),
        authority_epoch: lease.epoch,
        taken_over: lease.taken_over,
        lease_ttl_us: lease.ttl.map(|ttl| ttl.as_micros() as u64),
        routing_view: lease.view.as_ref().map(|view| ViewNote {
            name: view.name.clone(),
            age_ms: view.age.map(|age| age.as_millis() as u64),
            refreshed: view.refreshed,
        }),
        pipeline: given.pipeline,
        policy: given.policy,
        settings: given.settings,
        attributes: Some(written(&request.attributes)),
        providers: notes.collect(),
        line: LineNote {
            transport: transport.kind.as_str().to_owned(),
            source_rate: transport.source_rate.hertz(),
            sink_rate: transport.sink.sample_rate().hertz(),
            sink_lead_us: transport.sink.lead().as_micros() as u64,
            traceparent: transport.caller,
        },
    })
}

/// A session to start, as the tree hands it down.
struct Order {
    name: String,
    /// Whose the lines are that its connection logs.
    scope: Span,
    transport: Transport,
    inputs: Inputs,
    /// How long the session may take to end.
    grace: Duration,
    session:
        Box<dyn FnOnce(ControlRef<ConnectionControl>, DataRef<Arrival>) -> SessionSetup + Send>,
    answer: OpenAnswer,
}

/// Why an order was not taken.
/// What was kept, as a placement goes on from it. A turn that was under way where the session was lost has
/// taken its number along: no other turn of the session is called by it (NF-008).
fn going_on(mut kept: Continuation, lease: &Lease) -> Continuation {
    if lease.taken_over {
        kept.next_turn = kept.next_turn.next();
    }
    kept
}

fn refusal<C>(refused: &ControlRefused<C>) -> OpenError {
    match refused {
        ControlRefused::Overflow(_) => OpenError::Busy,
        ControlRefused::Closed(_) => OpenError::Closed,
    }
}

/// An actor through which sessions are opened; its control lane may hold as many orders as the node
/// may hold sessions, and takes memory as they come.
fn door(name: &str, max_sessions: usize) -> ChildSpec {
    let mut spec = ChildSpec::permanent(name);
    spec.limits.control = NonZeroUsize::new(max_sessions).unwrap_or(NonZeroUsize::MIN);
    spec
}

enum NodeOrder {
    Open(Box<Order>),
}

/// The root: one per process.
struct Node {
    max_sessions: usize,
    exports: Option<Exports>,
    link: Option<(PlaneConfig, Surroundings)>,
    monitor: Option<Monitor>,
    listener: Option<Handle<Listener>>,
}

impl Actor for Node {
    type Control = NodeOrder;
    type Data = NoData;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "node";

    async fn started(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        // First to begin and last to end: it gives up what the sessions have let go of.
        if let Some((config, around)) = self.link.take() {
            let spec = ChildSpec::permanent("control-plane");
            let link = move || ControlPlaneLink::new(config.clone(), around.clone());
            let _reached_by_its_requests: PumpHandle<ControlPlaneLink> =
                ctx.spawn_pump(spec, NoData, link).await?;
        }
        if let Some(monitor) = self.monitor.take() {
            let stopped = ctx.cancellation().clone();
            ctx.spawn_task("capacity", monitor.run(stopped));
        }
        if let Some(exports) = &self.exports {
            let exports = exports.clone();
            let spec = ChildSpec::permanent("timeline-exporter");
            let exporter = move || TimelineExporter {
                exports: exports.clone(),
            };
            ctx.spawn_pump(spec, NoData, exporter).await?;
        }
        let sessions = ctx
            .spawn(door("sessions", self.max_sessions), NoData, || Sessions)
            .await?;
        let sessions = sessions.control;
        let listener = ctx
            .spawn(door("listener", self.max_sessions), NoData, move || {
                Listener {
                    sessions: sessions.clone(),
                }
            })
            .await?;
        self.listener = Some(listener);
        Ok(())
    }

    async fn on_control(
        &mut self,
        _ctx: &mut Context<Self>,
        message: NodeOrder,
    ) -> Result<(), Failure> {
        let NodeOrder::Open(order) = message;
        let listener = self.listener.as_ref().map(|listener| &listener.control);
        if let Some(listener) = listener
            && let Err(refused) = listener.send(ListenerOrder::Open(order))
        {
            let why = refusal(&refused);
            let ListenerOrder::Open(order) = refused.into_inner();
            let _caller_is_gone = order.answer.send(Err(why));
        }
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

enum ListenerOrder {
    Open(Box<Order>),
}

/// Holds the connections.
struct Listener {
    sessions: ControlRef<SessionsOrder>,
}

impl Actor for Listener {
    type Control = ListenerOrder;
    type Data = NoData;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "listener";

    async fn on_control(
        &mut self,
        ctx: &mut Context<Self>,
        message: ListenerOrder,
    ) -> Result<(), Failure> {
        let ListenerOrder::Open(order) = message;
        let Order {
            name,
            scope,
            transport,
            inputs,
            grace,
            session,
            answer,
        } = *order;
        let mut spec = ChildSpec::temporary(name.as_str());
        spec.grace = Duration::from_millis(200);
        let mut transport = Some(transport);
        let line: PumpHandle<Connection> = match ctx
            .spawn_pump(spec, inputs, move || {
                Connection::new(transport.take(), scope.clone())
            })
            .await
        {
            Ok(line) => line,
            Err(error) => {
                let _caller_is_gone = answer.send(Err(OpenError::Start(error.to_string())));
                return Ok(());
            }
        };
        let setup = session(line.control, line.data);
        let order = SessionsOrder {
            name,
            setup: Box::new(setup),
            grace,
            answer,
        };
        if let Err(refused) = self.sessions.send(order) {
            let why = refusal(&refused);
            let _caller_is_gone = refused.into_inner().answer.send(Err(why));
            ctx.stop_child_soon(line.id, "no session");
        }
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

struct SessionsOrder {
    name: String,
    setup: Box<SessionSetup>,
    grace: Duration,
    answer: OpenAnswer,
}

/// Holds the sessions.
struct Sessions;

impl Actor for Sessions {
    type Control = SessionsOrder;
    type Data = NoData;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "sessions";

    async fn on_control(
        &mut self,
        ctx: &mut Context<Self>,
        order: SessionsOrder,
    ) -> Result<(), Failure> {
        let clock = ctx.clock();
        let SessionsOrder {
            name,
            mut setup,
            grace,
            answer,
        } = order;
        setup.opened = Opening::new(answer);
        let mut setup = Some(setup);
        let mut spec = ChildSpec::temporary(name);
        spec.grace = grace;
        spec.limits.control = REPORTS;
        spec.limits.control_reserve = RESERVED_REPORTS;
        let started = ctx
            .spawn(spec, NoData, move || {
                let setup = setup.take().expect("a session is never restarted");
                Session::new(*setup, clock)
            })
            .await;
        // The session itself says how it began; one that never came to that has let go of the answer.
        if let Err(error) = started {
            tracing::error!(%error, "a session did not start");
        }
        Ok(())
    }

    async fn on_data(
        &mut self,
        _ctx: &mut Context<Self>,
        item: std::convert::Infallible,
    ) -> Result<(), Failure> {
        match item {}
    }

    async fn on_child_exit(
        &mut self,
        _ctx: &mut Context<Self>,
        exit: ChildExit,
    ) -> Result<(), Failure> {
        match exit.reason {
            ExitReason::Finished | ExitReason::Stopped(_) => {}
            ExitReason::Failed(_) | ExitReason::Panicked(_) | ExitReason::Killed => {
                tracing::error!(session_id = exit.name, reason = %exit.reason, "a session crashed");
            }
        }
        Ok(())
    }
}
