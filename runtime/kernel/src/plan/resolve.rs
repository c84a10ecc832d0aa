//! From layers to one plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rspp_proto::{
    EdgeId, Epoch, NodeId, ProviderId, TurnId,
    abi::CancelMode,
    spec::{
        AdaptiveAction, Budgets, BudgetsSpec, BufferSpec, DataHandling, DefaultingSource,
        DegradeSpec, EdgeBufferPolicy, FlowControl, Marks, Modality, NodeExecutionPolicy,
        PipelineSpec, PolicyBundle, PortType, PressureAction, Priority, ProfileName,
        ProviderPolicy, ProvidersSpec, RecordingLevel, RecordingPolicy, StatePolicy, Strategy,
        SyncGroup, SyncPolicy, SyncScope, TurnPolicy, Watermarks, may_fold, smallest_frame,
    },
};

use super::{
    Capabilities, ChoiceReason, ChosenProvider, Extent, Handoff, Layer, LayeredSettings, Origin,
    PlanError, ProviderChoice, ProviderInputs, ResolvedPolicy, ResolvedTurnPlan, Settings,
    SnapshotProvenance, StreamingHandoff, profile,
};
use crate::graph::Graph;

/// Everything a plan follows from.
#[derive(Clone, Copy, Debug)]
pub struct PlanInputs<'a> {
    /// The pipeline.
    pub spec: &'a PipelineSpec,
    /// The pipeline's graph.
    pub graph: &'a Graph,
    /// The fingerprint of the graph that the session runs.
    pub graph_fingerprint: &'a str,
    /// The profile that was asked for, in any accepted spelling.
    pub profile: &'a str,
    /// Settings by layer.
    pub settings: &'a LayeredSettings,
    /// Overrides, if there are any.
    pub policy: Option<&'a PolicyBundle>,
    /// The snapshots in force.
    pub snapshots: &'a SnapshotProvenance,
    /// Whether the caller holds those snapshots for fresh enough.
    pub snapshots_fresh: bool,
    /// What the choice of providers follows from.
    pub providers: ProviderInputs<'a>,
    /// Whether the pipeline's degrade posture is in force (F-048).
    pub degraded: bool,
}

/// The profile of that name: `simple/v1`, or `simple` and `simple-v1`, which mean it.
pub fn normalize_profile(name: &str) -> Result<ProfileName, PlanError> {
    match name {
        "simple/v1" | "simple" | "simple-v1" => Ok(ProfileName::SimpleV1),
        _unsupported => Err(PlanError::UnsupportedProfile {
            name: name.to_owned(),
        }),
    }
}

/// Resolves a turn's plan, for whatever transport. Equal inputs give equal plans, to the byte.
pub fn resolve(
    inputs: &PlanInputs<'_>,
    turn: &TurnId,
    epoch: Epoch,
) -> Result<ResolvedTurnPlan, PlanError> {
    let policy = resolve_policy(inputs)?;
    Ok(ResolvedTurnPlan::of(Arc::new(policy), turn, epoch, None))
}

/// Resolves what holds for any turn.
pub fn resolve_policy(inputs: &PlanInputs<'_>) -> Result<ResolvedPolicy, PlanError> {
    let execution_profile = normalize_profile(inputs.profile)?;
    check_versions(inputs)?;
    let overrides = Overrides::of(inputs.policy)?;
    let mut draft = Draft {
        inputs,
        provenance: BTreeMap::new(),
    };

    let budgets = match &overrides {
        Some(over) => draft.overridden("budgets", over.budgets.clone()),
        None => draft.budgets(),
    };
    let mut provider_bindings = match &overrides {
        Some(over) => draft.overridden("provider_bindings", over.provider_bindings.clone()),
        None => draft.provider_bindings(),
    };
    draft.cheaper_bindings(&mut provider_bindings);
    let provider_policy = draft.provider_policy();
    let provider_choices = draft.provider_choices(&provider_policy, &provider_bindings)?;
    let mut edge_buffer_policies =
        draft.edge_buffers(overrides.as_ref().map(|over| over.edge_buffer_policies))?;
    let node_execution_policies = draft.node_execution()?;
    draft.limit_buffers(&node_execution_policies, &mut edge_buffer_policies);
    check_edges(inputs.graph, &edge_buffer_policies)?;
    let flow_control = match &overrides {
        Some(over) => draft.overridden("flow_control", *over.flow_control),
        None => draft.flow_control(),
    };
    let mut recording_policy = match &overrides {
        Some(over) => draft.overridden("recording_policy", over.recording_policy.clone()),
        None => draft.recording_policy(),
    };
    draft.less_recording(&mut recording_policy);
    let mut resolved = ResolvedPolicy {
        pipeline_version: inputs.spec.version.clone(),
        graph_definition_ref: format!("graph/sha256:{}", inputs.graph.fingerprint()),
        execution_profile,
        policy_hash: String::new(),
        budgets,
        node_budgets_ms: draft.node_budgets(),
        provider_bindings,
        node_bindings: bindings_of(&provider_choices),
        provider_capabilities: draft.capabilities(&provider_choices),
        provider_policy,
        edge_buffer_policies,
        node_execution_policies,
        flow_control,
        allowed_adaptive_actions: draft.adaptive_actions(),
        snapshot_provenance: snapshots(inputs),
        recording_policy,
        streaming_handoff: draft.streaming_handoff(),
        cancel_mode: draft.cancel_mode(),
        cancel_modes: draft.cancel_modes(),
        turns: draft.turns(),
        state: draft.state(),
        priority: draft.priority(),
        extent: draft.extent(),
        provider_choices,
        provenance: draft.provenance,
    };
    check(&resolved)?;
    resolved.policy_hash = resolved.content_hash();
    Ok(resolved)
}

pub(super) fn check_versions(inputs: &PlanInputs<'_>) -> Result<(), PlanError> {
    if !inputs.snapshots_fresh {
        return Err(PlanError::StaleSnapshots);
    }
    for (name, reference) in inputs.snapshots.refs() {
        if reference.trim().is_empty() {
            return Err(PlanError::MissingSnapshot { name });
        }
    }
    if let Some(policy) = inputs.policy {
        let snapshot = &inputs.snapshots.policy_resolution_snapshot;
        if policy.policy_resolution_snapshot != *snapshot {
            return Err(PlanError::PolicyVersion {
                bundle: policy.policy_resolution_snapshot.clone(),
                snapshot: snapshot.clone(),
            });
        }
    }
    if inputs.graph.fingerprint() != inputs.graph_fingerprint {
        return Err(PlanError::GraphVersion {
            graph: inputs.graph.fingerprint().to_owned(),
            expected: inputs.graph_fingerprint.to_owned(),
        });
    }
    Ok(())
}

/// The five surfaces of a policy that has them all.
struct Overrides<'a> {
    budgets: &'a Budgets,
    provider_bindings: &'a BTreeMap<Modality, Vec<ProviderId>>,
    edge_buffer_policies: &'a BTreeMap<String, EdgeBufferPolicy>,
    flow_control: &'a FlowControl,
    recording_policy: &'a RecordingPolicy,
}

impl<'a> Overrides<'a> {
    fn of(policy: Option<&'a PolicyBundle>) -> Result<Option<Self>, PlanError> {
        let Some(policy) = policy else {
            return Ok(None);
        };
        let present = [
            ("budgets", policy.budgets.is_some()),
            ("provider_bindings", policy.provider_bindings.is_some()),
            (
                "edge_buffer_policies",
                policy.edge_buffer_policies.is_some(),
            ),
            ("flow_control", policy.flow_control.is_some()),
            ("recording_policy", policy.recording_policy.is_some()),
        ];
        if let (
            Some(budgets),
            Some(provider_bindings),
            Some(edge_buffer_policies),
            Some(flow_control),
            Some(recording_policy),
        ) = (
            &policy.budgets,
            &policy.provider_bindings,
            &policy.edge_buffer_policies,
            &policy.flow_control,
            &policy.recording_policy,
        ) {
            return Ok(Some(Self {
                budgets,
                provider_bindings,
                edge_buffer_policies,
                flow_control,
                recording_policy,
            }));
        }
        if present.iter().all(|(_, there)| !there) {
            return Ok(None);
        }
        let missing = present.iter().filter(|(_, there)| !there);
        Err(PlanError::PartialOverride {
            missing: missing.map(|(name, _)| *name).collect(),
        })
    }
}

struct Draft<'a> {
    inputs: &'a PlanInputs<'a>,
    provenance: BTreeMap<String, Origin>,
}

impl<'a> Draft<'a> {
    /// The layers above the profile, weakest first; the pipeline's place is empty here.
    fn layers(&self) -> [(Layer, &'a Settings); 4] {
        let settings = self.inputs.settings;
        [
            (Layer::Defaults, &settings.defaults),
            (Layer::Environment, &settings.environment),
            (Layer::Tenant, &settings.tenant),
            (Layer::Session, &settings.session),
        ]
    }

    fn note(&mut self, path: impl Into<String>, layer: Layer) {
        let source = match layer {
            Layer::ExecutionProfile => profile::SOURCE.to_owned(),
            Layer::Defaults => "defaults".to_owned(),
            Layer::Pipeline => format!("pipeline/{}", self.inputs.spec.version),
            Layer::Environment => "environment".to_owned(),
            Layer::Tenant => "tenant".to_owned(),
            Layer::Session => "session".to_owned(),
            Layer::PolicyBundle => self.inputs.policy.map_or_else(String::new, |policy| {
                format!("policy/{}", policy.policy_resolution_snapshot)
            }),
            Layer::ProviderSettings => {
                let published = self.inputs.settings.published.as_ref();
                published.map_or_else(String::new, |it| format!("providers/{}", it.version))
            }
            Layer::Posture => format!("pipeline/{}/degrade", self.inputs.spec.version),
        };
        self.provenance
            .insert(path.into(), Origin { layer, source });
    }

    fn overridden<T>(&mut self, path: &str, value: T) -> T {
        self.note(path, Layer::PolicyBundle);
        value
    }

    fn budgets(&mut self) -> Budgets {
        let mut budgets = profile::budgets();
        self.note("budgets", Layer::ExecutionProfile);
        let [defaults, later @ ..] = self.layers().map(|(layer, s)| (layer, &s.budgets));
        let own = (Layer::Pipeline, &self.inputs.spec.budgets);
        for (layer, spec) in [defaults, own].into_iter().chain(later) {
            for name in lay_budgets(&mut budgets, spec) {
                self.note(format!("budgets/{name}"), layer);
            }
        }
        budgets
    }

    fn node_budgets(&mut self) -> BTreeMap<NodeId, u64> {
        let mut budgets = BTreeMap::new();
        for node in &self.inputs.spec.nodes {
            if let Some(ms) = node.budget_ms {
                self.note(
                    format!("node_budgets_ms/{}", part(&node.id)),
                    Layer::Pipeline,
                );
                budgets.insert(node.id.clone(), ms);
            }
        }
        budgets
    }

    /// How a cancel ends what can be heard: softly if a node that speaks says so.
    fn cancel_mode(&mut self) -> CancelMode {
        self.note("cancel_mode", Layer::Pipeline);
        let graph = self.inputs.graph;
        let heard = graph.edges().map(|(_, edge)| edge);
        let mut speakers = heard
            .filter(|edge| edge.to == graph.egress() && edge.carries == PortType::Audio)
            .filter_map(|edge| graph.node(edge.from).spec());
        if speakers.any(|node| node.cancel == CancelMode::Soft) {
            CancelMode::Soft
        } else {
            CancelMode::Hard
        }
    }

    /// The nodes whose work a cancel ends softly.
    fn cancel_modes(&mut self) -> BTreeMap<NodeId, CancelMode> {
        self.note("cancel_modes", Layer::Pipeline);
        let nodes = self.inputs.spec.nodes.iter();
        nodes
            .filter(|node| node.cancel == CancelMode::Soft)
            .map(|node| (node.id.clone(), node.cancel))
            .collect()
    }

    fn turns(&mut self) -> TurnPolicy {
        self.note("turns", Layer::Pipeline);
        self.inputs.spec.turns.clone()
    }

    fn provider_bindings(&mut self) -> BTreeMap<Modality, Vec<ProviderId>> {
        let mut bindings = BTreeMap::new();
        for (layer, settings) in self.layers() {
            for (modality, providers) in &settings.provider_bindings {
                self.note(format!("provider_bindings/{}", modality.as_str()), layer);
                bindings.insert(*modality, providers.clone());
            }
        }
        bindings
    }

    /// Part by part, as the layers say.
    fn provider_policy(&mut self) -> ProviderPolicy {
        let mut policy = ProviderPolicy::default();
        self.note("provider_policy", Layer::ExecutionProfile);
        let spec = self.inputs.spec;
        let [defaults, later @ ..] = self.layers().map(|(layer, s)| (layer, &s.providers));
        let own = (Layer::Pipeline, &spec.providers);
        let bundle = self.inputs.policy.map(|policy| &policy.providers);
        let bundle = bundle.map(|providers| (Layer::PolicyBundle, providers));
        let published = self.inputs.settings.published.as_ref();
        let published = published.map(|it| (Layer::ProviderSettings, &it.providers));
        let strongest = bundle.into_iter().chain(published);
        for (layer, spec) in [defaults, own].into_iter().chain(later).chain(strongest) {
            for name in lay_providers(&mut policy, spec) {
                self.note(format!("provider_policy/{name}"), layer);
            }
        }
        policy
    }

    /// A node's own choice, then its own fallbacks; without one what the rules name, in the order
    /// that news of health and price suggest.
    fn provider_choices(
        &mut self,
        policy: &ProviderPolicy,
        by_modality: &BTreeMap<Modality, Vec<ProviderId>>,
    ) -> Result<BTreeMap<NodeId, ProviderChoice>, PlanError> {
        let inputs = self.inputs.providers;
        let rules = &policy.choice;
        let mut choices = BTreeMap::new();
        for node in &self.inputs.spec.nodes {
            let Some(modality) = Modality::of(&node.kind) else {
                continue;
            };
            // The posture's go before the node's own and the rules (F-048).
            let posture = self.posture();
            let cheaper = posture.and_then(|it| it.provider_bindings.get(&modality));
            let named = match (cheaper, &node.provider) {
                (Some(cheaper), _) => Some((ChoiceReason::Default, cheaper.clone())),
                (None, Some(_)) => None,
                (None, None) => inputs.named(rules, modality, by_modality.get(&modality)),
            };
            let (reason, named) = named.unwrap_or((ChoiceReason::Pinned, Vec::new()));
            let (signal_source, mut candidates) = inputs.order(rules, modality, named);
            // The preferred one first: chosen by the node or the rules, then the node's fallbacks.
            let own = node.provider.iter().chain(&node.fallback_providers);
            for own in own.filter(|_| cheaper.is_none()) {
                if candidates.iter().all(|known| known.provider != *own) {
                    let (_, own) = inputs.order(rules, modality, vec![own.clone()]);
                    candidates.extend(own);
                }
            }
            if candidates.is_empty() {
                return Err(PlanError::Unbound {
                    node: node.id.clone(),
                    modality,
                });
            }
            self.note_choice(&node.id, modality, reason);
            let choice = ProviderChoice {
                modality,
                reason,
                signal_source,
                candidates,
            };
            choices.insert(node.id.clone(), choice);
        }
        Ok(choices)
    }

    fn note_choice(&mut self, node: &NodeId, modality: Modality, reason: ChoiceReason) {
        let path = format!("node_bindings/{}", part(node));
        let origin = |path: &str| self.provenance.get(path).map(|origin| origin.layer);
        let layer = match reason {
            ChoiceReason::Pinned => Layer::Pipeline,
            ChoiceReason::Default => origin(&format!("provider_bindings/{}", modality.as_str()))
                .or_else(|| origin("provider_bindings"))
                .unwrap_or(Layer::Defaults),
            ChoiceReason::Tenant
            | ChoiceReason::Language
            | ChoiceReason::Region
            | ChoiceReason::CostTier
            | ChoiceReason::CatalogDefault => {
                origin("provider_policy/choice").unwrap_or(Layer::Defaults)
            }
        };
        self.note(path.as_str(), layer);
        match reason {
            ChoiceReason::Pinned | ChoiceReason::Default => {}
            ChoiceReason::Tenant
            | ChoiceReason::Language
            | ChoiceReason::Region
            | ChoiceReason::CostTier
            | ChoiceReason::CatalogDefault => {
                if let Some(origin) = self.provenance.get_mut(&path) {
                    origin.source = format!("{} {}", origin.source, reason.as_str());
                }
            }
        }
    }

    /// What the chosen providers can do, where that is known.
    fn capabilities(
        &self,
        choices: &BTreeMap<NodeId, ProviderChoice>,
    ) -> BTreeMap<Modality, BTreeMap<ProviderId, Capabilities>> {
        let mut known: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for choice in choices.values() {
            for ChosenProvider { provider, .. } in &choice.candidates {
                let inputs = self.inputs.providers;
                if let Some(capabilities) = inputs.capabilities(choice.modality, provider) {
                    let of = known.entry(choice.modality).or_default();
                    of.insert(provider.clone(), capabilities);
                }
            }
        }
        known
    }

    fn edge_buffers(
        &mut self,
        overrides: Option<&BTreeMap<String, EdgeBufferPolicy>>,
    ) -> Result<BTreeMap<EdgeId, EdgeBufferPolicy>, PlanError> {
        let graph = self.inputs.graph;
        let known: BTreeSet<&str> = graph.edges().map(|(_, edge)| edge.id.as_str()).collect();
        let named = self.layers().into_iter().flat_map(|(layer, settings)| {
            let name = layer_name(layer);
            settings
                .edge_buffers
                .keys()
                .map(move |id| (format!("{name}.edge_buffers"), id))
        });
        let overridden = overrides.into_iter().flat_map(BTreeMap::keys);
        let overridden = overridden.map(|id| ("policy.edge_buffer_policies".to_owned(), id));
        for (path, id) in named.chain(overridden) {
            if id != DEFAULT_EDGE && !known.contains(id.as_str()) {
                return Err(PlanError::UnknownName {
                    path: format!("{path}.{id}"),
                    known: known.iter().map(ToString::to_string).collect(),
                });
            }
        }
        // The authored buffer of an edge, by the edge's id in the graph.
        let mut policies = BTreeMap::new();
        for ((_, edge), authored) in graph.edges().zip(&self.inputs.spec.edges) {
            let path = format!("edge_buffer_policies/{}", part(&edge.id));
            let by_policy = overrides
                .and_then(|all| all.get(edge.id.as_str()).or_else(|| all.get(DEFAULT_EDGE)));
            if let Some(policy) = by_policy {
                policies.insert(edge.id.clone(), self.overridden(&path, policy.clone()));
                continue;
            }
            let mut policy = profile::edge_buffer(graph, edge);
            self.note(path.as_str(), Layer::ExecutionProfile);
            let [defaults, later @ ..] = self.layers().map(|(layer, settings)| {
                let own = settings.edge_buffers.get(edge.id.as_str());
                (
                    layer,
                    own.or_else(|| settings.edge_buffers.get(DEFAULT_EDGE)),
                )
            });
            let own = (Layer::Pipeline, authored.buffer.as_ref());
            for (layer, spec) in [defaults, own].into_iter().chain(later) {
                let Some(spec) = spec else { continue };
                for name in lay_buffer(&mut policy, spec) {
                    self.note(format!("{path}/{name}"), layer);
                }
                // Says that the profile no longer has the last word on this edge.
                self.note(format!("{path}/defaulting_source"), layer);
                policy.defaulting_source = DefaultingSource::ExplicitEdgeConfig;
            }
            policies.insert(edge.id.clone(), policy);
        }
        Ok(policies)
    }

    fn node_execution(&mut self) -> Result<BTreeMap<NodeId, NodeExecutionPolicy>, PlanError> {
        let mut policies = BTreeMap::new();
        let by_policy = self
            .inputs
            .policy
            .map(|policy| &policy.node_execution_policies);
        let layers = self
            .layers()
            .map(|(layer, s)| (layer, Some(&s.node_execution)));
        let layers = layers.into_iter().chain([(Layer::PolicyBundle, by_policy)]);
        for (layer, named) in layers {
            for (name, policy) in named.into_iter().flatten() {
                let known = self
                    .inputs
                    .spec
                    .nodes
                    .iter()
                    .find(|n| n.id.as_str() == name);
                let Some(node) = known else {
                    let nodes = self.inputs.spec.nodes.iter();
                    return Err(PlanError::UnknownName {
                        path: format!("{}.node_execution.{name}", layer_name(layer)),
                        known: nodes.map(|node| node.id.to_string()).collect(),
                    });
                };
                let path = format!("node_execution_policies/{}", part(&node.id));
                self.note(path, layer);
                policies.insert(node.id.clone(), policy.clone());
            }
        }
        // The pipeline's explicit word on its own node wins (turn-plan.md §2).
        for node in &self.inputs.spec.nodes {
            if let Some(policy) = &node.execution {
                let path = format!("node_execution_policies/{}", part(&node.id));
                self.note(path, Layer::Pipeline);
                policies.insert(node.id.clone(), policy.clone());
            }
        }
        Ok(policies)
    }

    /// What waits for a node whose memory is limited: its edges share what it may have, evenly (F-107).
    fn limit_buffers(
        &mut self,
        nodes: &BTreeMap<NodeId, NodeExecutionPolicy>,
        edges: &mut BTreeMap<EdgeId, EdgeBufferPolicy>,
    ) {
        let graph = self.inputs.graph;
        for (node, policy) in nodes {
            let (Some(most), Some(ix)) = (policy.memory_bytes, graph.find(node.as_str())) else {
                continue;
            };
            let inputs = &graph.node(ix).inputs;
            let share = (most / inputs.len().max(1) as u64).max(1);
            let path = format!("node_execution_policies/{}", part(node));
            let layer = self.provenance.get(&path).map(|origin| origin.layer);
            for edge in inputs {
                let id = &graph.edge(*edge).id;
                if let Some(buffer) = edges.get_mut(id)
                    && buffer.max_queue_bytes > share
                {
                    buffer.max_queue_bytes = share;
                    let path = format!("edge_buffer_policies/{}/max_queue_bytes", part(id));
                    self.note(path, layer.unwrap_or(Layer::Pipeline));
                }
            }
        }
    }

    fn flow_control(&mut self) -> FlowControl {
        self.whole("flow_control", profile::flow_control(), |s| s.flow_control)
    }

    fn recording_policy(&mut self) -> RecordingPolicy {
        self.whole("recording_policy", profile::recording_policy(), |s| {
            s.recording_policy.clone()
        })
    }

    fn streaming_handoff(&mut self) -> StreamingHandoff {
        self.whole("streaming_handoff", profile::streaming_handoff(), |s| {
            s.streaming_handoff.clone()
        })
    }

    fn state(&mut self) -> StatePolicy {
        let own = &self.inputs.spec.state;
        let layer = if *own == StatePolicy::default() {
            Layer::ExecutionProfile
        } else {
            Layer::Pipeline
        };
        self.note("state", layer);
        own.clone()
    }

    /// What is done without, if the posture is in force.
    fn posture(&self) -> Option<&'a DegradeSpec> {
        let spec: &'a PipelineSpec = self.inputs.spec;
        spec.degrade.as_ref().filter(|_| self.inputs.degraded)
    }

    fn cheaper_bindings(&mut self, bindings: &mut BTreeMap<Modality, Vec<ProviderId>>) {
        let Some(posture) = self.posture() else {
            return;
        };
        for (modality, providers) in &posture.provider_bindings {
            self.note(
                format!("provider_bindings/{}", modality.as_str()),
                Layer::Posture,
            );
            bindings.insert(*modality, providers.clone());
        }
    }

    /// Less evidence than asked for, never more.
    fn less_recording(&mut self, policy: &mut RecordingPolicy) {
        let level = self.posture().and_then(|posture| posture.recording_level);
        if let Some(level) = level.filter(|level| *level < policy.recording_level) {
            policy.recording_level = level;
            policy.full_capture.clear();
            self.note("recording_policy/recording_level", Layer::Posture);
        }
    }

    fn priority(&mut self) -> Priority {
        let mut priority = self.inputs.spec.priority;
        self.note("priority", Layer::Pipeline);
        for (layer, settings) in self.layers() {
            if let Some(later) = settings.priority {
                priority = later;
                self.note("priority", layer);
            }
        }
        priority
    }

    /// As much as the pipeline says, or less where the posture says less.
    fn extent(&mut self) -> Extent {
        self.note("extent", Layer::Pipeline);
        let mut extent = Extent {
            max_context_messages: self.inputs.spec.turns.max_context_messages as u64,
            max_tokens: None,
            max_sample_rate: None,
        };
        let Some(posture) = self.posture() else {
            return extent;
        };
        if let Some(fewer) = posture.max_context_messages
            && fewer < extent.max_context_messages
        {
            extent.max_context_messages = fewer;
            self.note("extent/max_context_messages", Layer::Posture);
        }
        if posture.max_tokens.is_some() {
            extent.max_tokens = posture.max_tokens;
            self.note("extent/max_tokens", Layer::Posture);
        }
        if posture.sample_rate.is_some() {
            extent.max_sample_rate = posture.sample_rate;
            self.note("extent/max_sample_rate", Layer::Posture);
        }
        extent
    }

    fn adaptive_actions(&mut self) -> BTreeSet<AdaptiveAction> {
        let path = "allowed_adaptive_actions";
        if let Some(policy) = self.inputs.policy {
            return self.overridden(path, policy.allowed_adaptive_actions.clone());
        }
        self.note(path, Layer::ExecutionProfile);
        profile::adaptive_actions()
    }

    /// A setting that a layer gives as a whole or not at all.
    fn whole<T>(&mut self, path: &str, default: T, get: impl Fn(&Settings) -> Option<T>) -> T {
        let mut value = default;
        self.note(path, Layer::ExecutionProfile);
        for (layer, settings) in self.layers() {
            if let Some(later) = get(settings) {
                value = later;
                self.note(path, layer);
            }
        }
        value
    }
}

/// Stands for every edge that is not named.
const DEFAULT_EDGE: &str = "default";

fn layer_name(layer: Layer) -> &'static str {
    match layer {
        Layer::ExecutionProfile => "profile",
        Layer::Defaults => "defaults",
        Layer::Pipeline => "pipeline",
        Layer::Environment => "environment",
        Layer::Tenant => "tenant",
        Layer::Session => "session",
        Layer::PolicyBundle => "policy",
        Layer::ProviderSettings => "providers",
        Layer::Posture => "degrade",
    }
}

/// An id as one part of a field path.
fn part(id: &impl ToString) -> String {
    id.to_string()
}

/// The snapshots in force; news of providers names itself.
fn snapshots(inputs: &PlanInputs<'_>) -> SnapshotProvenance {
    let mut snapshots = inputs.snapshots.clone();
    if let Some(named) = inputs.providers.signals.snapshot_ref() {
        snapshots.provider_health_snapshot = named;
    }
    snapshots
}

fn bindings_of(choices: &BTreeMap<NodeId, ProviderChoice>) -> BTreeMap<NodeId, Vec<ProviderId>> {
    choices
        .iter()
        .map(|(node, choice)| {
            let ids = choice
                .candidates
                .iter()
                .map(|chosen| chosen.provider.clone());
            (node.clone(), ids.collect())
        })
        .collect()
}

/// Lays what `spec` says over `policy` and names what it changed.
fn lay_providers(policy: &mut ProviderPolicy, spec: &ProvidersSpec) -> Vec<&'static str> {
    fn lay<T: Clone>(
        name: &'static str,
        field: &mut T,
        value: Option<&T>,
        laid: &mut Vec<&'static str>,
    ) {
        if let Some(value) = value {
            field.clone_from(value);
            laid.push(name);
        }
    }
    let mut laid = Vec::new();
    lay(
        "choice",
        &mut policy.choice,
        spec.choice.as_deref(),
        &mut laid,
    );
    lay("calls", &mut policy.calls, spec.calls.as_deref(), &mut laid);
    lay(
        "circuit",
        &mut policy.circuit,
        spec.circuit.as_deref(),
        &mut laid,
    );
    lay("caps", &mut policy.caps, spec.caps.as_deref(), &mut laid);
    lay(
        "failure",
        &mut policy.failure,
        spec.failure.as_deref(),
        &mut laid,
    );
    laid
}

/// Lays what `spec` says over `budgets` and names what it changed.
fn lay_budgets(budgets: &mut Budgets, spec: &BudgetsSpec) -> Vec<&'static str> {
    let fields = [
        (
            "turn_budget_ms",
            &mut budgets.turn_budget_ms,
            spec.turn_budget_ms,
        ),
        (
            "node_budget_ms_default",
            &mut budgets.node_budget_ms_default,
            spec.node_budget_ms_default,
        ),
        (
            "path_budget_ms_default",
            &mut budgets.path_budget_ms_default,
            spec.path_budget_ms_default,
        ),
        (
            "edge_budget_ms_default",
            &mut budgets.edge_budget_ms_default,
            spec.edge_budget_ms_default,
        ),
        (
            "provider_first_byte_ms",
            &mut budgets.provider_first_byte_ms,
            spec.provider_first_byte_ms,
        ),
        (
            "provider_inter_chunk_ms",
            &mut budgets.provider_inter_chunk_ms,
            spec.provider_inter_chunk_ms,
        ),
        (
            "cancel_grace_ms",
            &mut budgets.cancel_grace_ms,
            spec.cancel_grace_ms,
        ),
        (
            "hook_timeout_ms",
            &mut budgets.hook_timeout_ms,
            spec.hook_timeout_ms,
        ),
        (
            "max_turn_duration_ms",
            &mut budgets.max_turn_duration_ms,
            spec.max_turn_duration_ms,
        ),
        (
            "output_gap_ms",
            &mut budgets.output_gap_ms,
            spec.output_gap_ms,
        ),
        (
            "max_silence_ms",
            &mut budgets.max_silence_ms,
            spec.max_silence_ms,
        ),
    ];
    let mut laid = Vec::new();
    for (name, field, value) in fields {
        if let Some(value) = value {
            *field = value;
            laid.push(name);
        }
    }
    laid
}

/// Lays what `spec` says over `policy` and names what it changed.
fn lay_buffer(policy: &mut EdgeBufferPolicy, spec: &BufferSpec) -> Vec<&'static str> {
    let mut laid = Vec::new();
    if let Some(tuning) = spec.tune {
        laid.extend(profile::tune(policy, tuning));
    }
    if let Some(handling) = spec.strategy {
        policy.strategy = strategy_of(handling);
        policy.lane_handling.data = handling;
        laid.extend(["strategy", "lane_handling/DataLane"]);
    }
    for (name, field, value) in [
        (
            "max_queue_items",
            &mut policy.max_queue_items,
            spec.max_queue_items,
        ),
        ("max_queue_ms", &mut policy.max_queue_ms, spec.max_queue_ms),
        (
            "max_queue_bytes",
            &mut policy.max_queue_bytes,
            spec.max_queue_bytes,
        ),
        (
            "max_latency_contribution_ms",
            &mut policy.max_latency_contribution_ms,
            spec.max_latency_contribution_ms,
        ),
    ] {
        if let Some(value) = value {
            *field = value;
            laid.push(name);
        }
    }
    if spec.max_block_time_ms.is_some() {
        policy.max_block_time_ms = spec.max_block_time_ms;
        laid.push("max_block_time_ms");
    }
    if spec.actions.is_some() {
        policy.actions = spec.actions;
        laid.push("actions");
    }
    if spec.flow_mode.is_some() {
        policy.flow_mode = spec.flow_mode;
        laid.push("flow_mode");
    }
    if spec.on_high.is_some() {
        policy.on_high = spec.on_high;
        laid.push("on_high");
    }
    if spec.coalesce_ms.is_some() {
        policy.coalesce_ms = spec.coalesce_ms;
        laid.push("coalesce_ms");
    }
    if let Some(telemetry) = spec.telemetry {
        policy.lane_handling.telemetry = telemetry;
        laid.push("lane_handling/TelemetryLane");
    }
    if spec.fairness_key.is_some() {
        policy.fairness_key.clone_from(&spec.fairness_key);
        laid.push("fairness_key");
    }
    if spec.sync_drop_policy.is_some() {
        policy.sync_drop_policy.clone_from(&spec.sync_drop_policy);
        laid.push("sync_drop_policy");
    }
    if let Some(marks) = spec.watermarks {
        policy.watermarks = marks;
        laid.push("watermarks");
    } else if let Some(items) = spec.max_queue_items {
        // Marks of a longer queue could never be reached in this one.
        policy.watermarks = Watermarks {
            queue_items: Some(Marks {
                high: (items - items / 4).max(1),
                low: items.saturating_mul(3) / 8,
            }),
            queue_ms: policy.watermarks.queue_ms,
        };
        laid.push("watermarks");
    }
    laid
}

fn strategy_of(handling: DataHandling) -> Strategy {
    match handling {
        DataHandling::Block => Strategy::Block,
        DataHandling::DropOldest => Strategy::DropOldest,
        DataHandling::DropNewest => Strategy::DropNewest,
        DataHandling::Merge => Strategy::Merge,
        DataHandling::Sample => Strategy::Sample,
        DataHandling::LatestOnly => Strategy::LatestOnly,
    }
}

/// Checks what edges may hold and fold against what flows there, whoever said so.
fn check_edges(
    graph: &Graph,
    policies: &BTreeMap<EdgeId, EdgeBufferPolicy>,
) -> Result<(), PlanError> {
    for (_, edge) in graph.edges() {
        let policy = &policies[&edge.id];
        // Nothing comes from the user's other end.
        let frame = smallest_frame(graph.node(edge.from).kind(), edge.carries);
        let (field, problem) = if frame.is_some_and(|frame| policy.max_queue_bytes < frame) {
            ("max_queue_bytes", NO_FRAME_FITS)
        } else if policy.strategy == Strategy::Merge && !may_fold(edge.carries) {
            ("strategy", NOTHING_FOLDS)
        } else {
            continue;
        };
        return Err(PlanError::Invalid {
            path: format!("edge_buffer_policies.{}.{field}", edge.id),
            problem,
        });
    }
    Ok(())
}

const NO_FRAME_FITS: &str = "holds no frame of audio: 20 ms have 640 bytes from the user, \
    and 320 or more from a voice";
const NOTHING_FOLDS: &str = "`merge` folds partial transcripts, and none flow there; \
    use `drop_oldest`";

/// Checks the values themselves, whoever set them (turn-plan.md §2).
fn check(plan: &ResolvedPolicy) -> Result<(), PlanError> {
    let invalid = |path: String, problem| Err(PlanError::Invalid { path, problem });
    let budgets = &plan.budgets;
    for (name, value) in [
        ("turn_budget_ms", budgets.turn_budget_ms),
        ("node_budget_ms_default", budgets.node_budget_ms_default),
        ("path_budget_ms_default", budgets.path_budget_ms_default),
        ("edge_budget_ms_default", budgets.edge_budget_ms_default),
        ("provider_first_byte_ms", budgets.provider_first_byte_ms),
        ("provider_inter_chunk_ms", budgets.provider_inter_chunk_ms),
        ("cancel_grace_ms", budgets.cancel_grace_ms),
        ("hook_timeout_ms", budgets.hook_timeout_ms),
        ("max_turn_duration_ms", budgets.max_turn_duration_ms),
        ("output_gap_ms", budgets.output_gap_ms),
        ("max_silence_ms", budgets.max_silence_ms),
    ] {
        if value == 0 {
            return invalid(format!("budgets.{name}"), AT_LEAST_ONE);
        }
    }
    for (node, ms) in &plan.node_budgets_ms {
        if *ms == 0 {
            return invalid(format!("nodes.{node}.budget_ms"), AT_LEAST_ONE);
        }
    }
    for (node, policy) in &plan.node_execution_policies {
        for (name, limit) in [
            ("cpu_ms_per_second", policy.cpu_ms_per_second),
            ("memory_bytes", policy.memory_bytes),
        ] {
            if limit == Some(0) {
                return invalid(
                    format!("node_execution_policies.{node}.{name}"),
                    AT_LEAST_ONE,
                );
            }
        }
    }
    for (modality, providers) in &plan.provider_bindings {
        let path = || format!("provider_bindings.{}", modality.as_str());
        if providers.is_empty() {
            return invalid(path(), "names no provider; leave it out or name one");
        }
        let unique: BTreeSet<_> = providers.iter().collect();
        if unique.len() < providers.len() {
            return invalid(path(), "names a provider twice");
        }
    }
    for (edge, policy) in &plan.edge_buffer_policies {
        if let Some((field, problem)) = buffer_problem(policy) {
            return invalid(format!("edge_buffer_policies.{edge}.{field}"), problem);
        }
        let needed = policy.on_high.map(|action| match action {
            PressureAction::Degrade => AdaptiveAction::Degrade,
            PressureAction::Fallback => AdaptiveAction::Fallback,
        });
        if needed.is_some_and(|action| !plan.allowed_adaptive_actions.contains(&action)) {
            let problem = "is not among the plan's allowed_adaptive_actions; add it there, in the policy bundle, \
                or leave `on_high` out";
            return invalid(format!("edge_buffer_policies.{edge}.on_high"), problem);
        }
    }
    for (node, policy) in &plan.node_execution_policies {
        if policy
            .fairness_key
            .as_ref()
            .is_some_and(|key| key.trim().is_empty())
        {
            return invalid(
                format!("node_execution_policies.{node}.fairness_key"),
                "is blank",
            );
        }
    }
    for (lane, marks) in [
        ("data_marks", plan.flow_control.data_marks),
        ("control_marks", plan.flow_control.control_marks),
        ("telemetry_marks", plan.flow_control.telemetry_marks),
    ] {
        if marks.low >= marks.high {
            return invalid(format!("flow_control.{lane}"), LOW_BELOW_HIGH);
        }
    }
    if plan.recording_policy.allowed_replay_modes.is_empty() {
        let path = "recording_policy.allowed_replay_modes".to_owned();
        return invalid(path, "at least one mode is needed, e.g. replay_decisions");
    }
    let recording = &plan.recording_policy;
    if !recording.full_capture.is_empty() && recording.recording_level < RecordingLevel::L2 {
        let path = "recording_policy.full_capture".to_owned();
        return invalid(path, "payloads are kept whole at L2 only");
    }
    if let Some(problem) = recording.redact.problem() {
        return invalid("recording_policy.redact.terms".to_owned(), problem);
    }
    handoff_problem(&plan.streaming_handoff, &plan.allowed_adaptive_actions)
}

const AT_LEAST_ONE: &str = "must be at least 1";
const LOW_BELOW_HIGH: &str = "the low mark must be below the high mark, which is at least 1";

/// The field of a buffer that cannot work, and why.
fn buffer_problem(policy: &EdgeBufferPolicy) -> Option<(&'static str, &'static str)> {
    for (name, value) in [
        ("max_queue_items", policy.max_queue_items),
        ("max_queue_ms", policy.max_queue_ms),
        ("max_queue_bytes", policy.max_queue_bytes),
        (
            "max_latency_contribution_ms",
            policy.max_latency_contribution_ms,
        ),
    ] {
        if value == 0 {
            return Some((name, AT_LEAST_ONE));
        }
    }
    let blocks =
        policy.strategy == Strategy::Block || policy.actions.is_some_and(|actions| actions.block());
    match policy.max_block_time_ms {
        None if blocks => {
            return Some(("max_block_time_ms", "is mandatory where something blocks"));
        }
        Some(0) => return Some(("max_block_time_ms", AT_LEAST_ONE)),
        Some(_) | None => {}
    }
    match policy.coalesce_ms {
        Some(0) => return Some(("coalesce_ms", AT_LEAST_ONE)),
        Some(_) if policy.strategy != Strategy::Merge => {
            return Some((
                "coalesce_ms",
                "only strategy `merge` folds partials together",
            ));
        }
        Some(_) | None => {}
    }
    let marks = [policy.watermarks.queue_items, policy.watermarks.queue_ms];
    if marks.iter().all(Option::is_none) {
        return Some(("watermarks", "queue_items or queue_ms is needed"));
    }
    if marks.iter().flatten().any(|marks| marks.low >= marks.high) {
        return Some(("watermarks", LOW_BELOW_HIGH));
    }
    let sync = policy.sync_drop_policy.as_ref()?;
    let needs_group = match sync.policy {
        SyncPolicy::AtomicDrop | SyncPolicy::DropWithDiscontinuity => true,
        SyncPolicy::NoSync => false,
    };
    let group: Option<SyncGroup> = sync.group_by;
    if needs_group && group.is_none() {
        return Some(("sync_drop_policy.group_by", "is mandatory for this policy"));
    }
    if let Some(problem) = sync.stray_group() {
        return Some(("sync_drop_policy.group_by", problem));
    }
    let needs_domain = sync.policy == SyncPolicy::DropWithDiscontinuity
        || (needs_group && sync.scope == SyncScope::PlanWide);
    if needs_domain && sync.sync_domain.is_none() {
        let problem = "is mandatory for drop_with_discontinuity and for scope plan_wide";
        return Some(("sync_drop_policy.sync_domain", problem));
    }
    None
}

fn handoff_problem(
    handoff: &StreamingHandoff,
    actions: &BTreeSet<AdaptiveAction>,
) -> Result<(), PlanError> {
    let edges = [
        ("stt_to_llm", &handoff.stt_to_llm),
        ("llm_to_tts", &handoff.llm_to_tts),
    ];
    if handoff.enabled && edges.iter().all(|(_, edge)| !edge.enabled) {
        return Err(PlanError::Invalid {
            path: "streaming_handoff".to_owned(),
            problem: "is enabled, but neither stt_to_llm nor llm_to_tts is",
        });
    }
    for (name, edge) in edges {
        let Handoff {
            enabled,
            min_partial_chars,
            max_partial_age_ms,
            max_pending_revisions,
            max_pending_segments,
            degrade_on_threshold_breach,
            trigger_on_punctuation: _,
            coalesce_latest_only: _,
            emit_flow_control_signals: _,
        } = edge;
        for (field, value) in [
            ("min_partial_chars", min_partial_chars),
            ("max_partial_age_ms", max_partial_age_ms),
            ("max_pending_revisions", max_pending_revisions),
            ("max_pending_segments", max_pending_segments),
        ] {
            if *enabled && *value == 0 {
                return Err(PlanError::Invalid {
                    path: format!("streaming_handoff.{name}.{field}"),
                    problem: AT_LEAST_ONE,
                });
            }
        }
        if *enabled && *degrade_on_threshold_breach && !actions.contains(&AdaptiveAction::Degrade) {
            return Err(PlanError::Invalid {
                path: format!("streaming_handoff.{name}.degrade_on_threshold_breach"),
                problem: "needs `degrade` among the plan's allowed_adaptive_actions",
            });
        }
    }
    Ok(())
}
