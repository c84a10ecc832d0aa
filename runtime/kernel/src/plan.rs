//! The plan a turn runs: resolved once, frozen, hashed, recorded.
//!
//! Everything that policy, profile and layers say about a turn ends here; nothing that runs a turn
//! looks anywhere else. How providers are called and edges filled under it is for others.

mod error;
mod insert;
mod known;
pub mod profile;
mod providers;
mod resolve;
mod settings;
mod transport;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
    sync::Arc,
    time::Duration,
};

use rspp_proto::{
    EdgeId, Epoch, NodeId, PipelineVersion, ProviderId, TurnId,
    abi::CancelMode,
    canonical,
    spec::{
        AdaptiveAction, Budgets, EdgeBufferPolicy, FlowControl, Modality, NodeExecutionPolicy,
        Priority, ProfileName, ProviderPolicy, RecordingPolicy, StatePolicy, TurnPolicy,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

use crate::{PlanFacts, determinism::DeterminismContext};

pub use error::PlanError;
pub use insert::{MAX_INSERTIONS, inserted, with_insertions};
pub use known::KnownPolicies;
pub use providers::{
    Capabilities, Catalogue, ChoiceReason, ChosenProvider, Health, News, ProviderChoice,
    ProviderInputs, ProviderNews, ProviderSignals, SignalSource,
};
pub use resolve::{PlanInputs, normalize_profile, resolve, resolve_policy};
pub use settings::{Layer, LayeredSettings, ProviderSettings, Settings};
pub use transport::{TransportCapabilities, TransportSays};

/// The control plane's snapshots that a plan rests on; none is blank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotProvenance {
    /// Who serves the session.
    pub routing_view_snapshot: String,
    /// Who is let in.
    pub admission_policy_snapshot: String,
    /// Which ABI versions go together.
    pub abi_compatibility_snapshot: String,
    /// Which pipeline version a name means.
    pub version_resolution_snapshot: String,
    /// Which policy holds.
    pub policy_resolution_snapshot: String,
    /// Which providers are well.
    pub provider_health_snapshot: String,
}

impl SnapshotProvenance {
    /// References of a process that stands alone, without a control plane.
    pub fn local() -> Self {
        let local = |what: &str| format!("local/{what}");
        Self {
            routing_view_snapshot: local("routing"),
            admission_policy_snapshot: local("admission"),
            abi_compatibility_snapshot: local("abi"),
            version_resolution_snapshot: local("version"),
            policy_resolution_snapshot: local("policy"),
            provider_health_snapshot: local("provider-health"),
        }
    }

    /// The references by name.
    pub fn refs(&self) -> [(&'static str, &str); 6] {
        [
            ("routing_view_snapshot", &self.routing_view_snapshot),
            ("admission_policy_snapshot", &self.admission_policy_snapshot),
            (
                "abi_compatibility_snapshot",
                &self.abi_compatibility_snapshot,
            ),
            (
                "version_resolution_snapshot",
                &self.version_resolution_snapshot,
            ),
            (
                "policy_resolution_snapshot",
                &self.policy_resolution_snapshot,
            ),
            ("provider_health_snapshot", &self.provider_health_snapshot),
        ]
    }
}

/// When the next stage starts before the one above it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamingHandoff {
    /// Whether there is any; then at least one of the two is enabled.
    pub enabled: bool,
    /// From transcripts to the model.
    pub stt_to_llm: Handoff,
    /// From generated text to speech.
    pub llm_to_tts: Handoff,
}

/// One hand-over of partial results. The four numbers are at least 1 if enabled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four independent switches, named by the recorded plan's schema"
)]
pub struct Handoff {
    /// Whether partial results are handed over.
    pub enabled: bool,
    /// Shortest partial worth handing over, in characters.
    pub min_partial_chars: u64,
    /// Whether the end of a sentence hands over at once.
    pub trigger_on_punctuation: bool,
    /// Longest that a partial waits for more, in milliseconds.
    pub max_partial_age_ms: u64,
    /// Revisions of a partial that may wait.
    pub max_pending_revisions: u64,
    /// Segments that may be handed over and not taken; what is beyond them waits where it was made.
    pub max_pending_segments: u64,
    /// Whether what waits is folded into the latest: a newer revision of a transcript replaces the
    /// older, generated text is joined, since each segment says only what the one before did not.
    pub coalesce_latest_only: bool,
    /// Whether the stages tell each other to stop and go. The bound holds without, in silence.
    pub emit_flow_control_signals: bool,
    /// Whether a full hand-over makes the rest of the turn go stage by stage. Needs `degrade` among
    /// the allowed adaptive actions.
    pub degrade_on_threshold_breach: bool,
}

impl Handoff {
    /// Shortest partial worth handing over, in characters.
    pub fn least_chars(&self) -> usize {
        usize::try_from(self.min_partial_chars).unwrap_or(usize::MAX)
    }

    /// Longest that a partial waits for more.
    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.max_partial_age_ms)
    }
}

/// How much a turn takes of what may become scarce (F-048).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// Messages of the conversation that the model is shown.
    pub max_context_messages: u64,
    /// Most tokens of a reply; `None` leaves it to the node.
    pub max_tokens: Option<u64>,
    /// Highest rate of the agent's audio, in hertz; `None` leaves it to the voice.
    pub max_sample_rate: Option<u32>,
}

/// Where a value of the plan came from (F-078, F-080).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The layer that had the last word.
    pub layer: Layer,
    /// The layer's own name, e.g. `execution_profile/simple/v1`.
    pub source: String,
}

/// A turn's plan. Never changes; a change of policy waits for the next turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedTurnPlan {
    /// The turn.
    pub turn_id: TurnId,
    /// SHA-256 over everything that decides how this turn runs: its policy, itself, its epoch and its
    /// transport.
    pub plan_hash: String,
    /// The authority under which the turn runs.
    pub authority_epoch: Epoch,
    /// What the session's transport could do when the turn opened (F-161); `None` where there is none.
    #[serde(default)]
    pub transport_capabilities: Option<Arc<TransportCapabilities>>,
    /// What makes the turn repeatable. Not part of the hash: its seed follows from it.
    pub determinism: DeterminismContext,
    /// What is equal for all turns that equal inputs are resolved for, and shared by them.
    #[serde(flatten)]
    pub policy: Arc<ResolvedPolicy>,
}

/// What a plan says whichever turn it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedPolicy {
    /// The pipeline's version.
    pub pipeline_version: PipelineVersion,
    /// Names the compiled graph: `graph/sha256:<fingerprint>`.
    pub graph_definition_ref: String,
    /// The profile that the defaults are from.
    pub execution_profile: ProfileName,
    /// SHA-256 over what it decides: equal policy, equal hash.
    pub policy_hash: String,
    /// Time budgets.
    pub budgets: Budgets,
    /// Soft budgets of nodes that have their own, in milliseconds.
    pub node_budgets_ms: BTreeMap<NodeId, u64>,
    /// Providers by modality, preferred first.
    pub provider_bindings: BTreeMap<Modality, Vec<ProviderId>>,
    /// Providers of each node that needs one, preferred first.
    pub node_bindings: BTreeMap<NodeId, Vec<ProviderId>>,
    /// What the bound providers can do, where that is known.
    pub provider_capabilities: BTreeMap<Modality, BTreeMap<ProviderId, Capabilities>>,
    /// How providers are called, left alone and paid for, and what follows when none is left.
    pub provider_policy: ProviderPolicy,
    /// Buffers of every edge.
    pub edge_buffer_policies: BTreeMap<EdgeId, EdgeBufferPolicy>,
    /// Concurrency and fairness of nodes that have such limits.
    pub node_execution_policies: BTreeMap<NodeId, NodeExecutionPolicy>,
    /// Flow control by lane.
    pub flow_control: FlowControl,
    /// What may be changed in mid-turn, in canonical order.
    pub allowed_adaptive_actions: BTreeSet<AdaptiveAction>,
    /// The snapshots it rests on.
    pub snapshot_provenance: SnapshotProvenance,
    /// What is recorded.
    pub recording_policy: RecordingPolicy,
    /// When stages overlap.
    pub streaming_handoff: StreamingHandoff,
    /// How a cancel ends what can be heard of the turn (F-041).
    pub cancel_mode: CancelMode,
    /// How a cancel ends the work of nodes that do not stop at once.
    pub cancel_modes: BTreeMap<NodeId, CancelMode>,
    /// When the turn may be interrupted and what becomes of what comes late.
    pub turns: TurnPolicy,
    /// How much nodes may remember, and how fresh it is.
    #[serde(default)]
    pub state: StatePolicy,
    /// Who comes first when there is not enough for all.
    pub priority: Priority,
    /// How much it takes.
    pub extent: Extent,
    /// How the node bindings came about. Not part of the hash: the bindings are.
    pub provider_choices: BTreeMap<NodeId, ProviderChoice>,
    /// Where each value came from, by field path. Not part of the hash.
    pub provenance: BTreeMap<String, Origin>,
}

/// The part of a plan that is the turn's own.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TurnFields<'a> {
    turn_id: &'a TurnId,
    plan_hash: &'a str,
    authority_epoch: Epoch,
    transport_capabilities: Option<&'a TransportCapabilities>,
    determinism: &'a DeterminismContext,
}

impl Deref for ResolvedTurnPlan {
    type Target = ResolvedPolicy;

    fn deref(&self) -> &ResolvedPolicy {
        &self.policy
    }
}

/// Why a plan is not the one to run (turn-plan.md §5 rule 6).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanMismatch {
    /// It is another turn's.
    #[error("the plan is for turn {planned}, not {asked}")]
    Turn {
        /// What the plan says.
        planned: TurnId,
        /// What was asked for.
        asked: TurnId,
    },
    /// It is another pipeline's.
    #[error("the plan is for pipeline version {planned}, not {asked}")]
    Version {
        /// What the plan says.
        planned: PipelineVersion,
        /// What was asked for.
        asked: PipelineVersion,
    },
    /// It was made under another authority.
    #[error("the plan was made at {planned}, not {asked}")]
    Epoch {
        /// What the plan says.
        planned: Epoch,
        /// What was asked for.
        asked: Epoch,
    },
    /// It was changed since it was made.
    #[error("the plan's content hashes to {content}, but it says {stated}")]
    Hash {
        /// What it hashes to.
        content: String,
        /// What it says.
        stated: String,
    },
}

/// Whether `plan` is the one to run that turn with. Compares exactly.
pub fn matches(
    plan: &ResolvedTurnPlan,
    turn: &TurnId,
    version: &PipelineVersion,
    epoch: Epoch,
) -> Result<(), PlanMismatch> {
    if plan.turn_id != *turn {
        return Err(PlanMismatch::Turn {
            planned: plan.turn_id.clone(),
            asked: turn.clone(),
        });
    }
    if plan.pipeline_version != *version {
        return Err(PlanMismatch::Version {
            planned: plan.pipeline_version.clone(),
            asked: version.clone(),
        });
    }
    if plan.authority_epoch != epoch {
        return Err(PlanMismatch::Epoch {
            planned: plan.authority_epoch,
            asked: epoch,
        });
    }
    Ok(())
}

impl ResolvedTurnPlan {
    /// The plan of a turn that this policy was resolved for.
    pub fn of(
        policy: Arc<ResolvedPolicy>,
        turn: &TurnId,
        epoch: Epoch,
        transport: Option<Arc<TransportCapabilities>>,
    ) -> Self {
        let plan_hash = plan_hash(&policy.policy_hash, turn, epoch, transport.as_deref());
        Self {
            turn_id: turn.clone(),
            authority_epoch: epoch,
            transport_capabilities: transport,
            determinism: DeterminismContext::new(&plan_hash, epoch),
            plan_hash,
            policy,
        }
    }

    /// What is not of its policy.
    pub fn turn_fields(&self) -> TurnFields<'_> {
        TurnFields {
            turn_id: &self.turn_id,
            plan_hash: &self.plan_hash,
            authority_epoch: self.authority_epoch,
            transport_capabilities: self.transport_capabilities.as_deref(),
            determinism: &self.determinism,
        }
    }

    /// Whether both let a turn run in the same way, whatever news they were made by.
    pub fn decides_like(&self, other: &Self) -> bool {
        self.transport_capabilities == other.transport_capabilities
            && self.policy.decides_like(&other.policy)
    }

    /// Checks that a plan read from a recording is what was hashed, e.g. that no profile default
    /// was changed since (F-078).
    pub fn verify(&self) -> Result<(), PlanMismatch> {
        let policy = self.policy.content_hash();
        let transport = self.transport_capabilities.as_deref();
        let plan = plan_hash(&policy, &self.turn_id, self.authority_epoch, transport);
        for (content, stated) in [(policy, &self.policy_hash), (plan, &self.plan_hash)] {
            if content != *stated {
                let stated = stated.clone();
                return Err(PlanMismatch::Hash { content, stated });
            }
        }
        Ok(())
    }

    /// What the session machine needs to know of it.
    pub fn facts(&self) -> PlanFacts {
        PlanFacts {
            hash: self.plan_hash.clone(),
            budgets: self.budgets.clone(),
            actions: self.allowed_adaptive_actions.clone(),
            cancel_mode: self.cancel_mode,
            failure: self.provider_policy.failure.clone(),
        }
    }
}

impl ResolvedPolicy {
    /// What a provider can do. One that nothing is known of counts as networked, since it gets less
    /// time then.
    pub fn capabilities(&self, modality: Modality, provider: &ProviderId) -> Capabilities {
        let known = self.provider_capabilities.get(&modality);
        let known = known.and_then(|known| known.get(provider)).copied();
        known.unwrap_or(Capabilities {
            streaming: false,
            networked: true,
        })
    }

    /// Whether the degrade posture had a say in it (F-048).
    pub fn is_degraded(&self) -> bool {
        let mut origins = self.provenance.values();
        origins.any(|origin| origin.layer == Layer::Posture)
    }

    /// How what the user says is handed to the model before all of it is known; disabled if all hand-overs
    /// are.
    pub fn stt_to_llm(&self) -> Handoff {
        self.handoff(&self.streaming_handoff.stt_to_llm)
    }

    /// How generated text is handed to synthesis; disabled if all hand-overs are.
    pub fn llm_to_tts(&self) -> Handoff {
        self.handoff(&self.streaming_handoff.llm_to_tts)
    }

    fn handoff(&self, of: &Handoff) -> Handoff {
        Handoff {
            enabled: self.streaming_handoff.enabled && of.enabled,
            ..of.clone()
        }
    }

    /// The soft budget of a node, in milliseconds.
    pub fn node_budget_ms(&self, node: &NodeId) -> u64 {
        let own = self.node_budgets_ms.get(node);
        own.copied().unwrap_or(self.budgets.node_budget_ms_default)
    }

    /// The share of resolved values whose origin is known, 0 to 1; anything below 1 is a fault
    /// (AC-078-1).
    pub fn provenance_coverage(&self) -> f64 {
        let leaves = self.resolved_values();
        let known = leaves
            .iter()
            .filter(|path| self.origin(path).is_some())
            .count();
        if leaves.is_empty() {
            1.0
        } else {
            known as f64 / leaves.len() as f64
        }
    }

    /// Where the value at a field path came from: its own origin, or that of what it is part of.
    pub fn origin(&self, path: &str) -> Option<&Origin> {
        let mut path = path;
        loop {
            if let Some(origin) = self.provenance.get(path) {
                return Some(origin);
            }
            path = &path[..path.rfind('/')?];
        }
    }

    /// The paths of all values that some layer decided, `/` between the parts.
    pub fn resolved_values(&self) -> Vec<String> {
        let mut paths = Vec::new();
        for (name, value) in self.policy() {
            leaves(name, &value, &mut paths);
        }
        paths
    }

    fn decides_like(&self, other: &Self) -> bool {
        self.pipeline_version == other.pipeline_version
            && self.graph_definition_ref == other.graph_definition_ref
            && self.execution_profile == other.execution_profile
            && self.provider_capabilities == other.provider_capabilities
            && self.policy() == other.policy()
    }

    fn content_hash(&self) -> String {
        let mut fields = serde_json::Map::new();
        for (name, value) in self.policy() {
            fields.insert(name.to_owned(), value);
        }
        for (name, value) in [
            ("pipeline_version", text(&self.pipeline_version)),
            ("graph_definition_ref", text(&self.graph_definition_ref)),
            ("execution_profile", text(self.execution_profile)),
            ("snapshot_provenance", text(&self.snapshot_provenance)),
            ("provider_capabilities", text(&self.provider_capabilities)),
        ] {
            fields.insert(name.to_owned(), value);
        }
        hash(&Value::Object(fields))
    }

    /// The values that layers decide.
    fn policy(&self) -> [(&'static str, Value); 17] {
        [
            ("budgets", text(&self.budgets)),
            ("node_budgets_ms", text(&self.node_budgets_ms)),
            ("provider_bindings", text(&self.provider_bindings)),
            ("node_bindings", text(&self.node_bindings)),
            ("provider_policy", text(&self.provider_policy)),
            ("edge_buffer_policies", text(&self.edge_buffer_policies)),
            (
                "node_execution_policies",
                text(&self.node_execution_policies),
            ),
            ("flow_control", text(self.flow_control)),
            (
                "allowed_adaptive_actions",
                text(&self.allowed_adaptive_actions),
            ),
            ("recording_policy", text(&self.recording_policy)),
            ("streaming_handoff", text(&self.streaming_handoff)),
            ("cancel_mode", text(self.cancel_mode)),
            ("cancel_modes", text(&self.cancel_modes)),
            ("turns", text(&self.turns)),
            ("state", text(&self.state)),
            ("priority", text(self.priority)),
            ("extent", text(self.extent)),
        ]
    }
}

/// The policy is hashed once for all turns that it is resolved for, each turn only by itself.
fn plan_hash(
    policy_hash: &str,
    turn: &TurnId,
    epoch: Epoch,
    transport: Option<&TransportCapabilities>,
) -> String {
    hash(&json!({
        "policy_hash": policy_hash,
        "turn_id": turn,
        "authority_epoch": epoch,
        "transport_capabilities": transport,
    }))
}

fn text(value: impl Serialize) -> Value {
    serde_json::to_value(value).expect("every key of a plan is a text")
}

fn hash(value: &Value) -> String {
    canonical::hash(value).expect("a JSON value is JSON")
}

fn leaves(path: &str, value: &Value, paths: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                leaves(&format!("{path}/{name}"), value, paths);
            }
        }
        // A list is one decision: its order is.
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            paths.push(path.to_owned());
        }
    }
}
