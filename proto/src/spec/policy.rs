//! What may be decided while a session runs, and by whom.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Budgets, EdgeBufferPolicy, Marks, NodeKind, NodeSpec, PortType, ProvidersSpec, RedactSpec,
    SpeculationPolicy,
};
use crate::{NodeId, ProviderId, abi::PayloadClass};

/// What a provider does.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Modality {
    /// Speech to text.
    Stt,
    /// Language model.
    Llm,
    /// Text to speech.
    Tts,
    /// Voice activity.
    Vad,
    /// End of turn.
    EndOfTurn,
    /// A node outside the process.
    External,
}

impl Modality {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Stt,
        Self::Llm,
        Self::Tts,
        Self::Vad,
        Self::EndOfTurn,
        Self::External,
    ];

    /// The one of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.as_str() == name)
    }

    /// The modality's name, as ids and labels write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stt => "stt",
            Self::Llm => "llm",
            Self::Tts => "tts",
            Self::Vad => "vad",
            Self::EndOfTurn => "end_of_turn",
            Self::External => "external",
        }
    }

    /// What a node of this kind needs a provider for.
    pub fn of(kind: &NodeKind) -> Option<Self> {
        match kind {
            NodeKind::Vad => Some(Self::Vad),
            NodeKind::TurnDetector => Some(Self::EndOfTurn),
            NodeKind::Stt => Some(Self::Stt),
            NodeKind::Llm => Some(Self::Llm),
            NodeKind::Tts => Some(Self::Tts),
            NodeKind::Segmenter
            | NodeKind::Guard
            | NodeKind::Passthrough
            | NodeKind::Merge
            | NodeKind::Select
            | NodeKind::Custom(_) => None,
        }
    }
}

/// A change of course that a plan authorises beforehand; canonical order as written.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum AdaptiveAction {
    /// Ask the same provider again.
    Retry,
    /// Ask the next provider.
    ProviderSwitch,
    /// Lower the quality.
    Degrade,
    /// Take the alternative path.
    Fallback,
}

/// How a lane's senders are held back (turn-plan.md §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowMode {
    /// Send until `flow_xoff`.
    Signal,
    /// Send only with granted credit.
    Credit,
    /// Coarse signal plus burst credit.
    Hybrid,
}

/// Flow control by lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowControl {
    /// Mode of the data lane.
    pub data_mode: FlowMode,
    /// Marks of the data lane, in items: an edge's own marks may be lower, and count then.
    pub data_marks: Marks,
    /// Marks of the control lane, in items.
    pub control_marks: Marks,
    /// Marks of the telemetry lane, in items; as for the data lane.
    pub telemetry_marks: Marks,
}

/// Concurrency and fairness of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeExecutionPolicy {
    /// Most invocations at once; 0 means no limit.
    pub concurrency_limit: u32,
    /// Who shares.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fairness_key: Option<String>,
    /// Most processor time that it may take of each second, in milliseconds; beyond it its events wait
    /// (F-107). Absent means no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub cpu_ms_per_second: Option<u64>,
    /// Most bytes that may wait for it, and most that it may keep; one that keeps more is stopped
    /// (F-107). Absent means no limit of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub memory_bytes: Option<u64>,
    /// What its time budget counts by (F-045).
    #[serde(skip_serializing_if = "BudgetPer::is_event")]
    pub budget_per: BudgetPer,
    /// What it is kept from; for kinds that run in a process of their own, which are refused where that
    /// cannot be done. Absent leaves it to the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxPolicy>,
}

/// How a node in a process of its own is kept from what is not its own: files first of all (F-124).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxPolicy {
    /// Whether it may open sockets. Denied if the operator denies it.
    pub network: NetworkAccess,
}

/// Whether a sandbox lets its process open sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkAccess {
    /// Of no kind.
    #[default]
    Denied,
    /// Of every kind.
    Allowed,
}

impl NetworkAccess {
    /// What two parties allow, who both have to.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Allowed, Self::Allowed) => Self::Allowed,
            (Self::Denied, _) | (_, Self::Denied) => Self::Denied,
        }
    }
}

/// What a node's time budget counts by (F-045).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BudgetPer {
    /// Each event has all of it.
    #[default]
    Event,
    /// All events of a turn share it; of a node that listens, each has all of it.
    Turn,
}

impl BudgetPer {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde hands over a reference"
    )]
    fn is_event(&self) -> bool {
        match self {
            Self::Event => true,
            Self::Turn => false,
        }
    }
}

/// How much a recording holds (observability.md §3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum RecordingLevel {
    /// Baseline evidence and summaries.
    L0,
    /// And sampled partials and chosen chunks.
    L1,
    /// And full capture in approved scopes.
    L2,
}

/// How a recording may be replayed; the list is closed (design §7).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ReplayMode {
    /// Run the nodes again.
    ReSimulateNodes,
    /// Run with the providers' recorded answers.
    PlaybackRecordedProviderOutputs,
    /// Compare recorded decisions.
    ReplayDecisions,
    /// Decide again from recorded inputs.
    RecomputeDecisions,
}

impl ReplayMode {
    /// The mode's name, as specs write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReSimulateNodes => "re_simulate_nodes",
            Self::PlaybackRecordedProviderOutputs => "playback_recorded_provider_outputs",
            Self::ReplayDecisions => "replay_decisions",
            Self::RecomputeDecisions => "recompute_decisions",
        }
    }
}

/// What is recorded of a turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RecordingPolicy {
    /// How much.
    pub recording_level: RecordingLevel,
    /// At least one, unique.
    #[schemars(length(min = 1))]
    pub allowed_replay_modes: BTreeSet<ReplayMode>,
    /// Classes of payload that L2 keeps whole, as the tenant agreed; what playback answers from.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub full_capture: BTreeSet<PayloadClass>,
    /// What is made unreadable although its class is kept.
    #[serde(default, skip_serializing_if = "RedactSpec::is_empty")]
    pub redact: RedactSpec,
}

/// What a failed plan leads to, before any turn opened (T5a).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlanFailurePolicy {
    /// Ask again later.
    #[default]
    Defer,
    /// Refuse.
    Reject,
}

/// What becomes of an event for a closed turn (T11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LateEventPolicy {
    /// Nothing.
    #[default]
    Drop,
    /// It proposes a new turn.
    Repropose,
    /// It is noted.
    Diagnostics,
}

/// What proves that the user means to interrupt the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BargeInConfirm {
    /// Speech that lasts for `barge_in_min_speech_ms`.
    #[default]
    Speech,
    /// Words. Speech over the agent holds its playout at once, `barge_in_min_words` words end the
    /// turn, and without them it goes on where it was held (P11, P12).
    Words,
}

/// When a turn may open, be interrupted and be resumed. All times in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TurnPolicy {
    /// Whether the user's speech interrupts the agent.
    pub barge_in: bool,
    /// What proves that the user means it.
    pub barge_in_confirm: BargeInConfirm,
    /// Speech shorter than this does not interrupt (P11: a cough).
    pub barge_in_min_speech_ms: u64,
    /// Under `words`: fewer than this are no interruption and no turn ("mm-hm").
    #[schemars(range(min = 1))]
    pub barge_in_min_words: u32,
    /// Under `words`: how long words are waited for once the speech has stopped.
    #[schemars(range(min = 1))]
    pub false_interruption_ms: u64,
    /// Under `words`: how long speech that has no words yet may hold the agent; what goes on is noise.
    #[schemars(range(min = 1))]
    pub max_hold_ms: u64,
    /// The commit point of the output: audio that is due within this time is committed, and heard
    /// although its turn is cancelled (F-039).
    #[schemars(range(max = 200))]
    pub commit_ahead_ms: u64,
    /// Longest that what is in flight goes on after a soft cancel (F-041).
    #[schemars(range(min = 1))]
    pub soft_cancel_ms: u64,
    /// Silence after which speech counts as stopped.
    pub vad_hangover_ms: u64,
    /// Longest silence inside a turn that the end-of-turn model calls unfinished.
    pub max_turn_silence_ms: u64,
    /// An utterance without a transcript after this long is given up (P11).
    pub transcript_timeout_ms: u64,
    /// Late events of a closed turn.
    pub late_events: LateEventPolicy,
    /// A plan that cannot be built.
    pub plan_failure: PlanFailurePolicy,
    /// Messages of the conversation that the model is shown.
    pub max_context_messages: usize,
    /// Whether an answer may be begun before it is certain that the user has finished.
    pub speculation: SpeculationPolicy,
}

impl Default for TurnPolicy {
    fn default() -> Self {
        Self {
            barge_in: true,
            barge_in_confirm: BargeInConfirm::Speech,
            barge_in_min_speech_ms: 200,
            barge_in_min_words: 1,
            false_interruption_ms: 1_500,
            max_hold_ms: 5_000,
            commit_ahead_ms: 0,
            soft_cancel_ms: 3_000,
            vad_hangover_ms: 240,
            max_turn_silence_ms: 1_500,
            transcript_timeout_ms: 4_000,
            late_events: LateEventPolicy::Drop,
            plan_failure: PlanFailurePolicy::Defer,
            max_context_messages: 64,
            speculation: SpeculationPolicy::default(),
        }
    }
}

/// A node that a policy puts into a pipeline (F-062).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Insertion {
    /// The node after which it stands; the pipeline must name it in `open_to_policy`.
    pub after: NodeId,
    /// All edges of this type that left that node leave the inserted one.
    pub carries: PortType,
    /// The node.
    pub node: NodeSpec,
}

/// Overrides for a tenant or session: the five surfaces all together or none (design §7).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyBundle {
    /// `rspp.policy.bundle.v1`.
    pub schema: String,
    /// Names this version of the policy, e.g. `policy/2026-11-01`.
    pub policy_resolution_snapshot: String,
    /// What the plan may do on its own.
    pub allowed_adaptive_actions: BTreeSet<AdaptiveAction>,
    /// Surface 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budgets: Option<Budgets>,
    /// Surface 2: modality to providers, preferred first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("propertyNames" = {
        "enum": ["stt", "llm", "tts", "vad", "end_of_turn", "external"]
    }))]
    pub provider_bindings: Option<BTreeMap<Modality, Vec<ProviderId>>>,
    /// Surface 3: by edge id; `default` stands for all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge_buffer_policies: Option<BTreeMap<String, EdgeBufferPolicy>>,
    /// Surface 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_control: Option<FlowControl>,
    /// Surface 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recording_policy: Option<RecordingPolicy>,
    /// Optional: by node id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_execution_policies: BTreeMap<String, NodeExecutionPolicy>,
    /// Nodes that it inserts, in their order (F-062).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub insert_nodes: Vec<Insertion>,
    /// Optional, part by part: how providers are chosen, called and paid for.
    #[serde(default, skip_serializing_if = "ProvidersSpec::is_empty")]
    pub providers: ProvidersSpec,
}
