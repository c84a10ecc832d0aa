//! Putting nodes together: from a place in the graph and a frozen plan to a node host's setup.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_actors::{
    Backoff, CancellationToken, ChildSpec, Clock, ControlRef, DataRef, Failure, Restart,
    TelemetryRef,
};
use rspp_kernel::{
    conversation::Said,
    fence::OutputFence,
    graph::{EdgeIx, Ends, Graph, NodeIx, Scope, Stream, holds},
    plan::{Handoff, ResolvedTurnPlan},
};
use rspp_proto::{
    EdgeId, Epoch, Monotonic, NodeId, SessionId, TurnNumber,
    spec::{Budgets, EdgeBufferPolicy, NodeKind, NodeSpec, PortType, Strategy, TurnPolicy},
};
use rspp_provider_api::{InferencePool, Providers, fair};

use crate::{
    capture::Capture,
    event::{Arrival, Port},
    memory::{Meter, Share},
    meters::{EdgeMeter, Meters},
    node::{
        Handing, InputEdge, Inputs, Limits, NodeHost, NodeMaker, NodeReport, NodeSettings,
        NodeSetup, OutEdge, Speech, Standby, StateAccess, Succession, Taking, WorkBook,
        builtin::NodeRegistry,
    },
    observe::{Observed, Observers},
    overhead::Overhead,
    providers::{CallRules, Candidates},
    pulse::Pulse,
    schedule::Scheduling,
    session::SessionControl,
    turn::HostHandle,
    watchdog::Watchdog,
};

/// What all nodes of one session or one turn share.
#[derive(Clone)]
pub(crate) struct Assembly {
    pub(crate) graph: Arc<Graph>,
    pub(crate) plan: Arc<ResolvedTurnPlan>,
    pub(crate) nodes: Arc<NodeRegistry>,
    pub(crate) providers: Arc<Providers>,
    pub(crate) calls: Arc<CallRules>,
    pub(crate) pools: Pools,
    pub(crate) session_id: SessionId,
    pub(crate) turn: Option<TurnNumber>,
    /// Nothing is to be spoken.
    pub(crate) mute: bool,
    pub(crate) epoch: Epoch,
    pub(crate) turns: Arc<TurnPolicy>,
    pub(crate) handoff: Arc<Handoff>,
    pub(crate) instructions: Option<Arc<str>>,
    pub(crate) conversation: Arc<[Said]>,
    pub(crate) attributes: Arc<BTreeMap<String, serde_json::Value>>,
    pub(crate) clock: Clock,
    pub(crate) fence: Arc<OutputFence>,
    pub(crate) session: ControlRef<SessionControl>,
    pub(crate) telemetry: TelemetryRef<Observed>,
    pub(crate) overhead: Arc<Overhead>,
    pub(crate) observers: Arc<Observers>,
    /// What the session measures, if it does.
    pub(crate) meters: Option<Arc<Meters>>,
    /// What nodes do for each turn, where that is looked at.
    pub(crate) work: Option<Arc<WorkBook>>,
    pub(crate) memory: Arc<Meter>,
    pub(crate) watchdog: Watchdog,
    pub(crate) scheduling: Arc<Scheduling>,
    /// Fires when what is put together is no longer wanted.
    pub(crate) cancel: CancellationToken,
    /// Where audio and text for the user go.
    pub(crate) egress: DataRef<Arrival>,
    /// Signs of life of the turn.
    pub(crate) pulse: Arc<Pulse>,
    /// It is a guess yet: nothing leaves, and foreign nodes do not begin, before the promotion.
    pub(crate) provisional: bool,
    pub(crate) state: Arc<StateAccess>,
    pub(crate) capture: Option<Capture>,
}

/// Where inference runs. Listening has threads of its own, so that it never waits for thinking.
#[derive(Clone, Debug)]
pub struct Pools {
    /// Recognition, synthesis, language.
    pub work: InferencePool,
    /// Voice activity and end of turn.
    pub listening: InferencePool,
    /// Whether time is the wall's, so that work which holds its thread takes some.
    real_time: bool,
}

/// One for voice activity, so that it does not wait while an end of turn is being judged.
const LISTENING_THREADS: usize = 2;

impl Pools {
    /// Pools for real time.
    pub fn new(size: usize) -> Self {
        Self {
            work: InferencePool::new(size),
            listening: InferencePool::new(LISTENING_THREADS),
            real_time: true,
        }
    }

    /// Pools for a paused clock; see [`InferencePool::in_virtual_time`].
    pub fn in_virtual_time(size: usize) -> Self {
        Self {
            work: InferencePool::in_virtual_time(size),
            listening: InferencePool::in_virtual_time(LISTENING_THREADS),
            real_time: false,
        }
    }

    /// Pools without threads for a paused clock; see [`InferencePool::simulated`].
    pub fn simulated(size: usize, cost: Duration) -> Self {
        Self {
            work: InferencePool::simulated(size, cost),
            listening: InferencePool::simulated(LISTENING_THREADS, cost),
            real_time: false,
        }
    }

    /// Whether time is the wall's.
    pub(crate) fn are_in_real_time(&self) -> bool {
        self.real_time
    }
}

/// How long whoever is below may take to end before it is killed: what its hooks and its deaf work
/// may take, and some more (P15, P17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Graces {
    pub(crate) node: Duration,
    pub(crate) turn: Duration,
    pub(crate) session: Duration,
}

impl Graces {
    /// A node may be told of a cancel and of its end, after work that is deaf to both. Its turn gives
    /// all of its nodes twice that, its session gives its turn that twice over.
    pub(crate) fn under(budgets: &Budgets) -> Self {
        let hook = Duration::from_millis(budgets.hook_timeout_ms);
        let cancel = Duration::from_millis(budgets.cancel_grace_ms);
        let node = hook * 2 + cancel * 2;
        Self {
            node,
            turn: node * 2,
            session: node * 4,
        }
    }
}

/// The node hosts that are there.
#[derive(Default)]
pub(crate) struct Hosts {
    by_node: BTreeMap<NodeIx, HostHandle>,
    takings: BTreeMap<NodeIx, Arc<Taking>>,
}

impl Hosts {
    pub(crate) fn add(&mut self, ix: NodeIx, handle: HostHandle) {
        self.by_node.insert(ix, handle);
    }

    /// What a voice has taken; for those who hand it text, and are started after it.
    pub(crate) fn add_taking(&mut self, ix: NodeIx, taking: Option<Arc<Taking>>) {
        if let Some(taking) = taking {
            self.takings.insert(ix, taking);
        }
    }

    pub(crate) fn get(&self, ix: NodeIx) -> Option<&HostHandle> {
        self.by_node.get(&ix)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &HostHandle> {
        self.by_node.values()
    }
}

/// A node host that is ready to be started.
pub(crate) struct Made<F> {
    pub(crate) spec: ChildSpec,
    pub(crate) inputs: Inputs,
    pub(crate) make: F,
    /// What it has taken of what it is handed, if it is a voice.
    pub(crate) taking: Option<Arc<Taking>>,
}

impl Assembly {
    pub(crate) fn now(&self) -> Monotonic {
        Monotonic::from_duration(self.clock.now())
    }

    /// The policy of an edge in the frozen plan.
    pub(crate) fn policy(&self, ix: EdgeIx) -> &EdgeBufferPolicy {
        self.plan
            .edge_buffer_policies
            .get(&self.graph.edge(ix).id)
            .expect("a plan has a policy for every edge of its graph")
    }

    /// The data lane of a place in the graph, by its input edges.
    pub(crate) fn inputs(&self, ix: NodeIx) -> Inputs {
        let edges = &self.graph.node(ix).inputs;
        let policies: Vec<_> = edges.iter().map(|edge| self.buffer(*edge)).collect();
        let inputs = policies.iter().zip(edges).map(|(policy, edge)| InputEdge {
            policy,
            carries: self.graph.edge(*edge).carries,
            meter: self.edge_meter(*edge, policy),
        });
        let share = Share::of(&self.memory);
        Inputs::new(self.clock, share, &self.plan.flow_control, inputs)
    }

    fn edge_meter(&self, ix: EdgeIx, policy: &EdgeBufferPolicy) -> Option<Arc<EdgeMeter>> {
        let meters = self.meters.as_ref()?;
        let edge = self.graph.edge(ix);
        let to = &self.graph.node(edge.to).id;
        Some(meters.edge(&edge.id, to, policy.strategy))
    }

    /// The edges that lead out to the user, by port.
    pub(crate) fn egress_edges(&self) -> Arc<[EdgeId]> {
        let edges = self.graph.node(self.graph.egress()).inputs.iter();
        edges.map(|ix| self.graph.edge(*ix).id.clone()).collect()
    }

    /// An edge's policy as its buffer keeps it. A microphone cannot be made to wait: where a node
    /// would block, what finds no room is lost at once, and counted.
    fn buffer(&self, ix: EdgeIx) -> Cow<'_, EdgeBufferPolicy> {
        let policy = self.policy(ix);
        let spoken = self.graph.edge(ix).from == self.graph.ingress();
        if spoken && policy.strategy == Strategy::Block {
            Cow::Owned(EdgeBufferPolicy {
                strategy: Strategy::DropNewest,
                ..policy.clone()
            })
        } else {
            Cow::Borrowed(policy)
        }
    }

    /// Everything for the host of `ix`; `None` for ingress and egress, where no node of ours stands.
    pub(crate) fn node(
        &self,
        ix: NodeIx,
        hosts: &Hosts,
    ) -> Result<Option<Made<impl FnMut() -> NodeHost + Send + 'static>>, Failure> {
        let node = self.graph.node(ix);
        let Some(spec) = node.spec() else {
            return Ok(None);
        };
        let mut settings = self.settings(spec);
        settings.taking = is_voice(spec).then(Arc::default);
        settings.handing = self.handing(ix, spec, hosts);
        let taking = settings.taking.clone();
        let measured = self.has_limited_time(ix);
        let meters = self.meters.as_ref().map(|meters| {
            let provider = settings.providers.first();
            let own = meters.node(&spec.id, spec.kind.as_str(), provider);
            (Arc::clone(meters), own)
        });
        let succession = self.succession(ix, hosts, &settings)?;
        let setup = NodeSetup {
            settings,
            meters,
            work: self.work.clone(),
            graph: Arc::clone(&self.graph),
            make: self.maker(ix, spec)?,
            outputs: self.outputs(&node.outputs, hosts),
            clock: self.clock,
            fence: Arc::clone(&self.fence),
            session: self.session.clone(),
            telemetry: self.telemetry.clone(),
            overhead: Arc::clone(&self.overhead),
            watched: self.watchdog.watch(
                self.turn,
                spec.id.clone(),
                self.session.clone(),
                measured,
            ),
            cancel: self.cancel.clone(),
            input_edges: node
                .inputs
                .iter()
                .map(|edge| self.graph.edge(*edge).id.clone())
                .collect(),
            ends: self.ends(ix).map(|ends| Arc::new(Mutex::new(ends))),
            is_told_of_ends: !self.graph.ends(ix).is_over(),
            is_waited_for: node.scope == Scope::Turn && self.is_joined(ix),
            branches: self.branches(ix, hosts).into(),
            coalesces: node
                .inputs
                .iter()
                .any(|edge| self.policy(*edge).coalesce_ms.is_some()),
            provisional: self.provisional,
            pulse: Arc::clone(&self.pulse),
            leads_to_user: self.graph.downstream(ix).contains(&self.graph.egress()),
            succession,
        };
        Ok(Some(Made {
            spec: self.child_spec(ix, spec),
            inputs: self.inputs(ix),
            make: move || NodeHost::new(setup.clone()),
            taking,
        }))
    }

    /// The ends that the node at `ix` has to see before it is told of one; `None` if each is told.
    fn ends(&self, ix: NodeIx) -> Option<Ends> {
        if self.graph.sees_each_end(ix) {
            return None;
        }
        let ends = self.graph.ends(ix);
        let is_joined = self.graph.node(ix).inputs.len() > 1 && !ends.is_over();
        (is_joined || self.graph.may_be_left_out(ix)).then_some(ends)
    }

    /// Whether what the node there says comes together with what others say.
    fn is_joined(&self, primary: NodeIx) -> bool {
        let all = std::iter::once(primary).chain(self.standbys(primary));
        let mut edges = all.flat_map(|ix| &self.graph.node(ix).outputs);
        edges.any(|edge| self.graph.ends(self.graph.edge(*edge).to).due().count() > 1)
    }

    /// The edges that ends go along whoever of `primary` and its standbys runs, where they have edges of
    /// their own.
    fn branches(&self, primary: NodeIx, hosts: &Hosts) -> Vec<(Stream, OutEdge)> {
        let own = |ix: NodeIx| &self.graph.node(ix).outputs;
        if self
            .standbys(primary)
            .all(|standby| own(standby).is_empty())
        {
            return Vec::new();
        }
        let all = std::iter::once(primary).chain(self.standbys(primary));
        let edges = all.flat_map(|ix| self.outputs(own(ix), hosts));
        let ended = edges.flat_map(|edge| {
            let streams = [Stream::Text, Stream::Audio].into_iter();
            let brought = streams.filter(|stream| self.graph.brings_end(edge.ix, *stream));
            let brought: Vec<Stream> = brought.collect();
            brought
                .into_iter()
                .map(move |stream| (stream, edge.clone()))
        });
        ended.collect()
    }

    /// Whom a segmenter hands its text to: the first voice downstream, whatever stands between.
    fn handing(&self, ix: NodeIx, spec: &NodeSpec, hosts: &Hosts) -> Option<Handing> {
        if spec.kind != NodeKind::Segmenter {
            return None;
        }
        let mut downstream = self.graph.downstream(ix).into_iter();
        let taking = downstream.find_map(|ix| hosts.takings.get(&ix))?;
        let edge = self.graph.node(ix).outputs.first()?;
        let own = self.policy(*edge).flow_mode;
        Some(Handing {
            taking: Arc::clone(taking),
            mode: own.unwrap_or(self.plan.flow_control.data_mode),
        })
    }

    /// A node that listens is restarted as often as is reasonable, at growing intervals; a node of a
    /// turn only to let its standbys take over, since what it had been told is gone with it.
    fn child_spec(&self, ix: NodeIx, spec: &NodeSpec) -> ChildSpec {
        let standbys = self.standbys(ix).count() as u32;
        let mut child = match self.graph.node(ix).scope {
            Scope::Session => {
                let mut child = ChildSpec::transient(spec.id.as_str());
                child.intensity.restarts = 5 + standbys;
                child.backoff = Backoff {
                    first: Duration::from_millis(20),
                    max: Duration::from_secs(1),
                    ..Backoff::default()
                };
                child
            }
            Scope::Turn => {
                let mut child = ChildSpec::temporary(spec.id.as_str());
                if standbys > 0 {
                    child.restart = Restart::Transient;
                }
                child.intensity.restarts = standbys;
                child.backoff = Backoff::none();
                child
            }
        };
        child.grace = Graces::under(&self.plan.budgets).node;
        child
    }

    /// Whether the processor time of the node there, or of a standby of it, is limited.
    fn has_limited_time(&self, ix: NodeIx) -> bool {
        let mut all = std::iter::once(ix).chain(self.standbys(ix));
        all.any(|ix| {
            let id = &self.graph.node(ix).id;
            Limits::of(self.plan.node_execution_policies.get(id))
                .cpu
                .is_some()
        })
    }

    /// The nodes that stand by for the one at `ix`, in the order in which they take over.
    fn standbys(&self, ix: NodeIx) -> impl Iterator<Item = NodeIx> {
        std::iter::successors(self.graph.node(ix).fallback, |ix| {
            self.graph.node(*ix).fallback
        })
    }

    fn succession(
        &self,
        primary: NodeIx,
        hosts: &Hosts,
        of: &NodeSettings,
    ) -> Result<Succession, Failure> {
        let mut standbys = Vec::new();
        for standby in self.standbys(primary) {
            let Some(spec) = self.graph.node(standby).spec() else {
                continue;
            };
            let edges = self.graph.outputs_in_place_of(standby, primary);
            let mut settings = self.settings(spec);
            settings.numbers = Arc::clone(&of.numbers);
            settings.taking = of.taking.clone().filter(|_| is_voice(spec));
            settings.handing.clone_from(&of.handing);
            standbys.push(Standby {
                settings,
                make: self.maker(standby, spec)?,
                outputs: self.outputs(edges, hosts),
            });
        }
        Ok(Succession::new(standbys, &self.memory))
    }

    fn maker(&self, ix: NodeIx, spec: &NodeSpec) -> Result<NodeMaker, Failure> {
        let registry = Arc::clone(&self.nodes);
        let graph = Arc::clone(&self.graph);
        let spec = spec.clone();
        if !registry.knows(&spec.kind) {
            return Err(Failure::new(format!(
                "no node of kind {:?} is registered",
                spec.kind
            )));
        }
        Ok(Arc::new(move || {
            registry
                .make(&graph, ix, &spec)
                .expect("the kind is registered, and kinds are never removed")
        }))
    }

    fn settings(&self, spec: &NodeSpec) -> NodeSettings {
        let pool = match spec.kind {
            NodeKind::Vad | NodeKind::TurnDetector => &self.pools.listening,
            NodeKind::Stt
            | NodeKind::Llm
            | NodeKind::Segmenter
            | NodeKind::Guard
            | NodeKind::Tts
            | NodeKind::Passthrough
            | NodeKind::Merge
            | NodeKind::Select
            | NodeKind::Custom(_) => &self.pools.work,
        };
        let edge_key = self.edge_key(&spec.id);
        let schedule = self.scheduling.node(
            (&self.plan.pipeline_version, &spec.id),
            self.plan.node_execution_policies.get(&spec.id),
            edge_key,
            (&self.session_id, self.turn),
            Duration::from_millis(self.plan.budgets.path_budget_ms_default),
        );
        NodeSettings {
            pool: self.pool(pool, spec, schedule.share()),
            schedule,
            extent: self.plan.extent,
            spec: Arc::new(spec.clone()),
            session: self.session_id.clone(),
            turn: self.turn,
            epoch: self.epoch,
            turns: Arc::clone(&self.turns),
            budgets: Arc::new(self.plan.budgets.clone()),
            budget: Duration::from_millis(self.plan.node_budget_ms(&spec.id)),
            limits: Limits::of(self.plan.node_execution_policies.get(&spec.id)),
            providers: self
                .plan
                .node_bindings
                .get(&spec.id)
                .map_or_else(Arc::default, |ids| ids.as_slice().into()),
            registry: Arc::clone(&self.providers),
            calls: Arc::clone(&self.calls),
            speech: if self.mute || is_written(spec) {
                Speech::Text
            } else if self.plan.provider_policy.failure.text_only {
                Speech::VoiceElseText
            } else {
                Speech::Voice
            },
            candidates: Candidates::of(&self.plan, spec).map(Arc::new),
            handoff: if spec.kind == NodeKind::TurnDetector {
                Arc::new(self.plan.stt_to_llm())
            } else {
                Arc::clone(&self.handoff)
            },
            flow_mode: self.plan.flow_control.data_mode,
            handing: None,
            taking: None,
            way_out: None,
            instructions: self.instructions.clone(),
            conversation: Arc::clone(&self.conversation),
            attributes: Arc::clone(&self.attributes),
            numbers: Arc::default(),
            observers: Arc::clone(&self.observers),
            pipeline_version: self.plan.pipeline_version.clone(),
            memory: Arc::clone(&self.memory),
            state: Arc::clone(&self.state),
            capture: self.capture.clone(),
        }
    }

    /// A pool for the work of a node, whose session is told when it has cost a thread.
    fn pool(
        &self,
        pool: &InferencePool,
        spec: &NodeSpec,
        share: &Arc<fair::Share>,
    ) -> InferencePool {
        let pool = pool.on_behalf_of(Arc::clone(share));
        let (session, clock, turn) = (self.session.clone(), self.clock, self.turn);
        let node = spec.id.clone();
        pool.telling(move |after| {
            let _over_meanwhile = session.send_reserved(SessionControl::Node {
                turn,
                node: node.clone(),
                at: Monotonic::from_duration(clock.now()),
                report: NodeReport::WorkerLost { after },
            });
        })
    }

    /// The fairness key of the edges that lead to a node, for a node without its own (turn-plan.md §2).
    fn edge_key(&self, node: &NodeId) -> Option<&str> {
        let ix = self.graph.find(node.as_str())?;
        let mut edges = self.graph.node(ix).inputs.iter();
        edges.find_map(|edge| self.policy(*edge).fairness_key.as_deref())
    }

    fn outputs(&self, edges: &[EdgeIx], hosts: &Hosts) -> Vec<OutEdge> {
        let mut outputs = Vec::with_capacity(edges.len());
        for ix in edges {
            let edge = self.graph.edge(*ix);
            let to_user = edge.to == self.graph.egress();
            let to = if to_user {
                self.egress.clone()
            } else if let Some(handle) = hosts.get(edge.to) {
                handle.data.clone()
            } else {
                continue; // Into a turn that is not there: the session hands the words over itself.
            };
            outputs.push(OutEdge {
                ix: *ix,
                to,
                to_user,
                port: self.port(*ix),
                max_block_time: Duration::from_millis(
                    self.policy(*ix).max_block_time_ms.unwrap_or(0),
                ),
                max_queue_time: Duration::from_millis(self.policy(*ix).max_queue_ms),
            });
        }
        outputs
    }

    /// The port by which an edge comes to its end.
    pub(crate) fn port(&self, ix: EdgeIx) -> Port {
        let inputs = &self.graph.node(self.graph.edge(ix).to).inputs;
        let at = inputs.iter().position(|input| *input == ix);
        Port(at.expect("an edge is among the inputs of its end") as u16)
    }

    /// Where the agent's audio leaves: the port of the first edge that brings any.
    pub(crate) fn egress_port(&self) -> Port {
        let inputs = &self.graph.node(self.graph.egress()).inputs;
        let audio = |ix: &EdgeIx| self.graph.edge(*ix).carries == PortType::Audio;
        Port(inputs.iter().position(audio).unwrap_or(0) as u16)
    }

    /// Where goes what comes in from the user, by what each edge carries. What the user says has no
    /// attributes but its session's, and those stay: a condition is decided once, for all of it.
    pub(crate) fn ingress(&self, hosts: &Hosts) -> Vec<IngressEdge> {
        let edges = &self.graph.node(self.graph.ingress()).outputs;
        let outputs = self.outputs(edges, hosts);
        let taken = |edge: &OutEdge| {
            let edge = self.graph.edge(edge.ix);
            let when = edge.when.as_ref().filter(|_| !self.graph.selects(edge.to));
            when.is_none_or(|when| holds(when, &*self.attributes))
        };
        outputs
            .into_iter()
            .filter(taken)
            .map(|edge| IngressEdge {
                carries: self.graph.edge(edge.ix).carries,
                to: edge.to,
                port: edge.port,
            })
            .collect()
    }
}

/// Whether a node says what it takes of the text that it is handed.
fn is_voice(spec: &NodeSpec) -> bool {
    spec.kind == NodeKind::Tts
}

/// An edge that leads away from the user.
#[derive(Clone)]
pub(crate) struct IngressEdge {
    pub(crate) carries: PortType,
    pub(crate) to: DataRef<Arrival>,
    pub(crate) port: Port,
}
/// Whether a voice's text is shown instead of spoken, as its pipeline has it.
fn is_written(voice: &NodeSpec) -> bool {
    voice.config.get("speaks") == Some(&serde_json::Value::Bool(false))
}
