//! How much an edge may hold, and what gives when it is full.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FlowMode, NodeKind, PortType, also_accept};

/// What an edge does with an item that finds it full (F-044).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The sender waits, at most `max_block_time_ms`, then the item is shed.
    Block,
    /// The oldest item makes room.
    DropOldest,
    /// The new item is refused.
    DropNewest,
    /// The new item is folded into the newest of its kind (partials of one segment).
    Merge,
    /// Every second item is thinned out.
    Sample,
    /// Only the newest item is kept.
    LatestOnly,
}

/// Data-lane handling when an edge is full; the authored `drop` means drop-oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = accept_aliases)]
pub enum DataHandling {
    /// See [`Strategy::Block`].
    Block,
    /// See [`Strategy::DropOldest`].
    #[serde(alias = "drop")]
    DropOldest,
    /// See [`Strategy::DropNewest`].
    DropNewest,
    /// See [`Strategy::Merge`].
    Merge,
    /// See [`Strategy::Sample`].
    Sample,
    /// See [`Strategy::LatestOnly`].
    LatestOnly,
}

fn accept_aliases(schema: &mut schemars::Schema) {
    also_accept(schema, &["drop"]);
}

/// Telemetry-lane handling when an edge is full; it never blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TelemetryHandling {
    /// The item is dropped.
    Drop,
    /// Items are thinned out.
    Sample,
    /// Dropped, with a drop notice.
    BestEffortDrop,
}

/// Handling by lane; the control lane is always served and never shed (design §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LaneHandling {
    /// Audio and text.
    #[serde(rename = "DataLane")]
    pub data: DataHandling,
    /// Metrics and debug events.
    #[serde(rename = "TelemetryLane")]
    pub telemetry: TelemetryHandling,
}

/// A pair of marks: crossing `high` asserts back-pressure, falling to `low` releases it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Marks {
    /// At least 1.
    #[schemars(range(min = 1))]
    pub high: u64,
    /// Less than `high`.
    pub low: u64,
}

/// At least one of the two is present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Watermarks {
    /// In items.
    pub queue_items: Option<Marks>,
    /// In milliseconds of waiting.
    pub queue_ms: Option<Marks>,
}

/// What gives when one bound is broken, where it differs from the edge's strategy (F-143).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BoundAction {
    /// The sender waits, at most `max_block_time_ms`.
    Block,
    /// The oldest item goes.
    DropOldest,
    /// The new item is refused.
    DropNewest,
}

/// Bounds with an action of their own; the others follow the edge's strategy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BoundActions {
    /// `max_queue_items` is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<BoundAction>,
    /// `max_queue_bytes` would be passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<BoundAction>,
    /// The oldest item has waited longer than `max_queue_ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<BoundAction>,
    /// The edge adds more than `max_latency_contribution_ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<BoundAction>,
}

impl BoundActions {
    /// The four, in the order in which bounds are looked at.
    pub fn all(&self) -> [Option<BoundAction>; 4] {
        [self.items, self.bytes, self.latency, self.age]
    }

    /// Whether a bound makes the sender wait.
    pub fn block(&self) -> bool {
        self.all().contains(&Some(BoundAction::Block))
    }
}

/// What else follows when an edge comes under pressure; the plan has to allow it (F-144).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PressureAction {
    /// Until the pressure is gone, every second item is thinned out.
    Degrade,
    /// The standby of the node that the edge leads to takes over.
    Fallback,
}

/// Where an edge's policy came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DefaultingSource {
    /// The pipeline says so on this edge.
    ExplicitEdgeConfig,
    /// The execution profile's default.
    ExecutionProfileDefault,
}

/// How synchronised items are grouped when some must be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SyncGroup {
    /// By `sync_id`.
    SyncId,
    /// By event id.
    EventId,
    /// By a key of the node's own.
    Custom,
}

/// What happens to the rest of a group when one item is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SyncPolicy {
    /// The whole group goes.
    AtomicDrop,
    /// The item goes and downstream is told to reset.
    DropWithDiscontinuity,
    /// Items are independent.
    NoSync,
}

/// How far a drop reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SyncScope {
    /// This edge.
    EdgeLocal,
    /// Every edge of the domain.
    PlanWide,
}

/// Dropping in groups (turn-plan.md §2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SyncDropPolicy {
    /// Mandatory for `atomic_drop` and `drop_with_discontinuity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_by: Option<SyncGroup>,
    /// What happens to the group.
    pub policy: SyncPolicy,
    /// How far it reaches.
    pub scope: SyncScope,
    /// Mandatory for `drop_with_discontinuity` and `plan_wide`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync_domain: Option<String>,
}

impl SyncDropPolicy {
    /// What is wrong with a grouping that changes nothing.
    pub fn stray_group(&self) -> Option<&'static str> {
        let group = self.group_by?;
        match (self.policy, self.scope, group) {
            (SyncPolicy::NoSync, _, _) => Some("items are independent under `no_sync`"),
            (SyncPolicy::AtomicDrop, SyncScope::EdgeLocal, SyncGroup::EventId) => {
                Some("an event is a group of its own on one edge, so nothing goes with it")
            }
            (
                SyncPolicy::AtomicDrop,
                SyncScope::EdgeLocal,
                SyncGroup::SyncId | SyncGroup::Custom,
            )
            | (SyncPolicy::AtomicDrop, SyncScope::PlanWide, _)
            | (SyncPolicy::DropWithDiscontinuity, _, _) => None,
        }
    }
}

/// Bytes of the smallest frame of audio that leaves a place, the user's end for `None`: 20 ms of 16-bit
/// samples, which the runtime takes from the user in 16 kHz, and from voices in 8 kHz or more. `None` if none
/// does, or if a frame may have any length.
pub fn smallest_frame(from: Option<&NodeKind>, carries: PortType) -> Option<u64> {
    match carries {
        PortType::Audio => {}
        PortType::Text
        | PortType::Speech
        | PortType::Metrics
        | PortType::Debug
        | PortType::Error
        | PortType::Any => return None,
    }
    match from {
        None => Some(640),
        Some(NodeKind::Tts) => Some(320),
        Some(_) => None,
    }
}

/// Whether strategy `merge` finds anything to fold together: the partial transcripts of one utterance.
pub fn may_fold(carries: PortType) -> bool {
    match carries {
        PortType::Text | PortType::Any => true,
        PortType::Audio
        | PortType::Speech
        | PortType::Metrics
        | PortType::Debug
        | PortType::Error => false,
    }
}

/// An edge's resolved buffer (turn-plan.md §2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EdgeBufferPolicy {
    /// What gives when the edge is full.
    pub strategy: Strategy,
    /// At least 1.
    #[schemars(range(min = 1))]
    pub max_queue_items: u64,
    /// Oldest item's age in milliseconds, at least 1.
    #[schemars(range(min = 1))]
    pub max_queue_ms: u64,
    /// Sum of payload bytes, at least 1.
    #[schemars(range(min = 1))]
    pub max_queue_bytes: u64,
    /// How much latency the edge may add, in milliseconds, at least 1.
    #[schemars(range(min = 1))]
    pub max_latency_contribution_ms: u64,
    /// How long a full edge or flow control may hold the sender back, at least 1; mandatory with
    /// `block`. Without it a sender never waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_block_time_ms: Option<u64>,
    /// Bounds with an action of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actions: Option<BoundActions>,
    /// How the sender is held back; absent means as the plan's flow control says for the lane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_mode: Option<FlowMode>,
    /// With `merge`: a partial is delivered at most once in this time; final text never waits
    /// (F-053).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub coalesce_ms: Option<u64>,
    /// When back-pressure starts and ends.
    pub watermarks: Watermarks,
    /// What else follows when a high mark is crossed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_high: Option<PressureAction>,
    /// By lane.
    pub lane_handling: LaneHandling,
    /// Who shares the edge and is served in turn: `turn`, `speaker`, `language`, or a key that the
    /// events were tagged with. `tenant` and `session` have their edges to themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fairness_key: Option<String>,
    /// Where this policy came from.
    pub defaulting_source: DefaultingSource,
    /// Dropping in groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync_drop_policy: Option<SyncDropPolicy>,
}

/// What an edge is tuned for, in one word; its own fields are laid over it (F-054).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BufferTuning {
    /// Short: a slow consumer hears less, and what it hears is new.
    LatencyFirst,
    /// Long: a slow consumer hears everything, late.
    AccuracyFirst,
}

/// An edge's buffer as authored: what is absent comes from the profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BufferSpec {
    /// What the edge is tuned for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tune: Option<BufferTuning>,
    /// See [`EdgeBufferPolicy::strategy`].
    pub strategy: Option<DataHandling>,
    /// See [`EdgeBufferPolicy::max_queue_items`].
    #[schemars(range(min = 1))]
    pub max_queue_items: Option<u64>,
    /// See [`EdgeBufferPolicy::max_queue_ms`].
    #[schemars(range(min = 1))]
    pub max_queue_ms: Option<u64>,
    /// See [`EdgeBufferPolicy::max_queue_bytes`].
    #[schemars(range(min = 1))]
    pub max_queue_bytes: Option<u64>,
    /// See [`EdgeBufferPolicy::max_latency_contribution_ms`].
    #[schemars(range(min = 1))]
    pub max_latency_contribution_ms: Option<u64>,
    /// See [`EdgeBufferPolicy::max_block_time_ms`].
    #[schemars(range(min = 1))]
    pub max_block_time_ms: Option<u64>,
    /// See [`EdgeBufferPolicy::actions`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actions: Option<BoundActions>,
    /// See [`EdgeBufferPolicy::flow_mode`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_mode: Option<FlowMode>,
    /// See [`EdgeBufferPolicy::coalesce_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub coalesce_ms: Option<u64>,
    /// See [`LaneHandling::telemetry`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<TelemetryHandling>,
    /// See [`EdgeBufferPolicy::watermarks`].
    pub watermarks: Option<Watermarks>,
    /// See [`EdgeBufferPolicy::on_high`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_high: Option<PressureAction>,
    /// See [`EdgeBufferPolicy::fairness_key`].
    pub fairness_key: Option<String>,
    /// See [`EdgeBufferPolicy::sync_drop_policy`].
    pub sync_drop_policy: Option<SyncDropPolicy>,
}
