//! What people author: pipelines, execution profiles, edge buffers, budgets and policies.

mod budget;
mod buffer;
mod pipeline;
mod policy;

pub use budget::{Budgets, BudgetsSpec};
pub use buffer::{
    BufferSpec, DataHandling, DefaultingSource, EdgeBufferPolicy, LaneHandling, Marks, Strategy,
    SyncDropPolicy, SyncGroup, SyncPolicy, SyncScope, TelemetryHandling, Watermarks,
};
pub use pipeline::{
    Comparison, Condition, EGRESS, EdgeSpec, ErrorAction, INGRESS, MergeOrder, NodeKind, NodeSpec,
    PipelineSpec, PortType, ProfileName,
};
pub use policy::{
    AdaptiveAction, FlowControl, FlowMode, LateEventPolicy, Modality, NodeExecutionPolicy,
    PlanFailurePolicy, PolicyBundle, RecordingLevel, RecordingPolicy, ReplayMode, TurnPolicy,
};
