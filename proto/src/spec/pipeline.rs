//! A pipeline as people write it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    BudgetsSpec, BufferSpec, ConnectionPolicy, DegradeSpec, MemoryLimits, NodeExecutionPolicy,
    Priority, ProvidersSpec, StatePolicy, ToolDeclaration, TurnPolicy, also_accept,
};
use crate::abi::CancelMode;
use crate::{EdgeId, IdError, NodeId, PipelineVersion, ProviderId};

/// The pseudo-node where the user's audio and text enter.
pub const INGRESS: &str = "ingress";
/// The pseudo-node where audio and text leave for the user.
pub const EGRESS: &str = "egress";

/// A named, versioned set of defaults; only `simple/v1` exists (F-078).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = accept_aliases)]
pub enum ProfileName {
    /// The one profile; `simple` and `simple-v1` are accepted and normalised.
    #[serde(rename = "simple/v1", alias = "simple", alias = "simple-v1")]
    SimpleV1,
}

fn accept_aliases(schema: &mut schemars::Schema) {
    also_accept(schema, &["simple", "simple-v1"]);
}

impl ProfileName {
    /// The canonical name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SimpleV1 => "simple/v1",
        }
    }
}

/// What flows through a port.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum PortType {
    /// Audio chunks and their end.
    Audio,
    /// Text chunks and their end.
    Text,
    /// Speech marks.
    Speech,
    /// Measurements.
    Metrics,
    /// Notes for a developer; nothing flows unless the session turns them on (F-027).
    Debug,
    /// Normalised failures.
    Error,
    /// Anything; only custom and pass-through nodes have such ports.
    Any,
}

impl PortType {
    /// The type's name, as specs write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Audio => "audio",
            Self::Text => "text",
            Self::Speech => "speech",
            Self::Metrics => "metrics",
            Self::Debug => "debug",
            Self::Error => "error",
            Self::Any => "any",
        }
    }

    /// Whether a port that declares `ports` can carry this.
    pub fn fits(self, ports: &[Self]) -> bool {
        ports.contains(&self) || ports.contains(&Self::Any)
    }
}

/// What a node does.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// Voice activity: audio in, speech marks out.
    Vad,
    /// End of turn: audio, marks and transcripts in; marks and the user's finished text out.
    TurnDetector,
    /// Speech recognition: audio and marks in, transcripts out.
    Stt,
    /// Language model: the user's text in, generated text out.
    Llm,
    /// Cuts generated text into clauses that can be spoken.
    Segmenter,
    /// Masks or replaces clauses that must not be said: `terms`, `action: mask | block`, `instead` (F-062).
    Guard,
    /// Speech synthesis: clauses in, audio out.
    Tts,
    /// Forwards what it gets; for measurements and tests.
    Passthrough,
    /// Folds several inputs into one ordered stream (F-005).
    Merge,
    /// Forwards one of several inputs (F-006).
    Select,
    /// A node registered by name (F-011).
    Custom(String),
}

impl NodeKind {
    /// What nodes of this kind take in (F-003).
    pub fn inputs(&self) -> &'static [PortType] {
        match self {
            Self::Vad => &[PortType::Audio],
            Self::TurnDetector => &[PortType::Audio, PortType::Speech, PortType::Text],
            Self::Stt => &[PortType::Audio, PortType::Speech],
            Self::Llm | Self::Segmenter | Self::Guard | Self::Tts => &[PortType::Text],
            Self::Passthrough | Self::Merge | Self::Select | Self::Custom(_) => &[PortType::Any],
        }
    }

    /// What nodes of this kind give out (F-003).
    pub fn outputs(&self) -> &'static [PortType] {
        match self {
            Self::Vad => &[PortType::Speech],
            Self::TurnDetector => &[PortType::Speech, PortType::Text],
            Self::Stt | Self::Llm | Self::Segmenter | Self::Guard => &[PortType::Text],
            Self::Tts => &[PortType::Audio],
            Self::Passthrough | Self::Merge | Self::Select | Self::Custom(_) => &[PortType::Any],
        }
    }

    /// The kind's name, as specs write it; a custom node's own name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Vad => "vad",
            Self::TurnDetector => "turn_detector",
            Self::Stt => "stt",
            Self::Llm => "llm",
            Self::Segmenter => "segmenter",
            Self::Guard => "guard",
            Self::Tts => "tts",
            Self::Passthrough => "passthrough",
            Self::Merge => "merge",
            Self::Select => "select",
            Self::Custom(name) => name,
        }
    }
}

/// How a merge node orders its inputs (F-005).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MergeOrder {
    /// By the time an event was made, then by source.
    #[default]
    Timestamp,
    /// By the source's place in the spec, then by arrival.
    SourcePriority,
}

/// How a condition compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less than.
    Lt,
    /// At most.
    Le,
    /// Greater than.
    Gt,
    /// At least.
    Ge,
}

/// A test of an event's attribute that an edge or select node makes (F-018), e.g.
/// `{attribute: confidence, is: lt, value: 0.6}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// `confidence`, `language`, `speaker`, `is_final` or a session attribute.
    pub attribute: String,
    /// How to compare.
    pub is: Comparison,
    /// What to compare with: a number, a text or a truth value.
    pub value: serde_json::Value,
}

/// What a node's unrecoverable error leads to (F-132).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorAction {
    /// The turn aborts.
    #[default]
    Abort,
    /// The event goes to the dead-letter stream and the node goes on.
    DeadLetter,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// Unique within the pipeline.
    pub id: NodeId,
    /// What it does.
    pub kind: NodeKind,
    /// SHA-256 of the package that does it, if its kind is one's (F-121). Nothing else will do; absent is
    /// filled in with what the runtime has, so that a plan and its hash say what ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The provider that serves it; absent means the policy's binding for its modality.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<ProviderId>,
    /// Tried in order after the first (F-007, F-133).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallback_providers: Vec<ProviderId>,
    /// A node that takes over when this one fails or overruns (F-007).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<NodeId>,
    /// Soft budget of this node, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub budget_ms: Option<u64>,
    /// Concurrency and fairness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<NodeExecutionPolicy>,
    /// What an unrecoverable error leads to.
    #[serde(default)]
    pub on_error: ErrorAction,
    /// How a cancel ends its work (F-041). The turn's own mode is that of the nodes that are heard.
    #[serde(default)]
    pub cancel: CancelMode,
    /// What its model may call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<ToolDeclaration>,
    /// The node's own settings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, serde_json::Value>,
    /// For people; never alters execution (F-082).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// One edge: `from` and `to` name nodes, `ingress` or `egress`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EdgeSpec {
    /// Unique; absent means `<from>-><to>:<carries>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<EdgeId>,
    /// Where events come from.
    pub from: NodeId,
    /// Where they go.
    pub to: NodeId,
    /// What flows; must be among the types that both ends declare (F-003).
    pub carries: PortType,
    /// Only events that pass flow here (F-018).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Condition>,
    /// The buffer at the receiving end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffer: Option<BufferSpec>,
}

impl EdgeSpec {
    /// The edge's own id, or `<from>-><to>:<carries>`.
    pub fn edge_id(&self) -> Result<EdgeId, IdError> {
        match &self.id {
            Some(id) => Ok(id.clone()),
            None => EdgeId::new(format!(
                "{}->{}:{}",
                self.from,
                self.to,
                self.carries.as_str()
            )),
        }
    }
}

/// What a session says about itself beside its work; never alters what it does. Absent is left to
/// the layer before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ObserveSpec {
    /// How often latency and queue depth of nodes and edges are published in band, in milliseconds;
    /// 0 is never, which is the default (F-026).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_every_ms: Option<u64>,
    /// Whether debug events are made; by default not (F-027).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug: Option<bool>,
    /// How long a cancel may take until a node has let go, or the user hears nothing more, in
    /// milliseconds; what takes longer is counted against the node and its provider. 150 by default
    /// (NF-003, NF-026).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_cancel_ms: Option<u64>,
}

impl ObserveSpec {
    /// How long a cancel may take before it is told to be slow.
    pub fn slow_cancel(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.slow_cancel_ms.unwrap_or(150))
    }

    /// Whether it leaves everything to others.
    pub fn is_silent(&self) -> bool {
        *self == Self::default()
    }

    /// This layer over a weaker one.
    #[must_use]
    pub fn over(self, weaker: Self) -> Self {
        Self {
            metrics_every_ms: self.metrics_every_ms.or(weaker.metrics_every_ms),
            debug: self.debug.or(weaker.debug),
            slow_cancel_ms: self.slow_cancel_ms.or(weaker.slow_cancel_ms),
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
fn is_interactive(priority: &Priority) -> bool {
    *priority == Priority::Interactive
}

/// A pipeline, as authored and published (F-001).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PipelineSpec {
    /// `rspp.pipeline.v1`.
    pub schema: String,
    /// Immutable once published (F-015).
    pub version: PipelineVersion,
    /// Defaults for everything not said here.
    pub profile: ProfileName,
    /// What the agent is told it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    /// The nodes.
    pub nodes: Vec<NodeSpec>,
    /// The edges.
    pub edges: Vec<EdgeSpec>,
    /// Time budgets.
    #[serde(default)]
    pub budgets: BudgetsSpec,
    /// When a turn may open, be interrupted and be resumed.
    #[serde(default)]
    pub turns: TurnPolicy,
    /// What a session says about itself.
    #[serde(default, skip_serializing_if = "ObserveSpec::is_silent")]
    pub observe: ObserveSpec,
    /// Nodes after which a policy may insert others, such as a guard (F-062).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open_to_policy: Vec<NodeId>,
    /// How much a session may hold in memory; the operator's limits hold besides.
    #[serde(default)]
    pub memory: MemoryLimits,
    /// How providers are chosen, called and paid for.
    #[serde(default, skip_serializing_if = "ProvidersSpec::is_empty")]
    pub providers: ProvidersSpec,
    /// How the connection is treated.
    #[serde(default)]
    pub connection: ConnectionPolicy,
    /// How much nodes may remember, and how fresh it is.
    #[serde(default)]
    pub state: StatePolicy,
    /// Who comes first when there is not enough for all (F-173).
    #[serde(default, skip_serializing_if = "is_interactive")]
    pub priority: Priority,
    /// What is done without under overload (F-048).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degrade: Option<DegradeSpec>,
    /// For people; never alters execution (F-082).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}
