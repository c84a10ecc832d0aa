//! What people author: pipelines, execution profiles, edge buffers, budgets and policies.

mod arguments;
mod budget;
mod buffer;
mod connection;
mod diagnostic;
mod limits;
pub mod most;
mod package;
mod parse;
mod pipeline;
mod policy;
mod provider;
mod redaction;
mod report;
mod rules;
mod shape;
mod source;
mod speculation;
mod state;
mod tool;

pub use arguments::{ArgumentProblem, ArgumentSchema};
pub use budget::{Budgets, BudgetsSpec, MemoryLimits};
pub use buffer::{
    BoundAction, BoundActions, BufferSpec, BufferTuning, DataHandling, DefaultingSource,
    EdgeBufferPolicy, LaneHandling, Marks, PressureAction, Strategy, SyncDropPolicy, SyncGroup,
    SyncPolicy, SyncScope, TelemetryHandling, Watermarks, may_fold, smallest_frame,
};
pub use connection::{ConnectionPolicy, EchoGuardPolicy, JitterProfile};
pub use diagnostic::{Diagnostic, Diagnostics, Severity};
pub use limits::{
    BatchingSpec, DegradeSpec, LimitsSpec, OverLimit, OverloadSpec, Priority, Quota, QuotasSpec,
    Threshold,
};
pub use package::{PACKAGE_FILE, PackageLimits, PackageSpec};
pub use parse::{LIMITS_SCHEMA, Mode, PACKAGE_SCHEMA, PIPELINE_SCHEMA, POLICY_SCHEMA, Parsed};
pub use pipeline::{
    Comparison, Condition, EGRESS, EdgeSpec, ErrorAction, INGRESS, MergeOrder, NodeKind, NodeSpec,
    ObserveSpec, PipelineSpec, PortType, ProfileName,
};
pub use policy::{
    AdaptiveAction, BargeInConfirm, BudgetPer, FlowControl, FlowMode, Insertion, LateEventPolicy,
    Modality, NetworkAccess, NodeExecutionPolicy, PlanFailurePolicy, PolicyBundle, RecordingLevel,
    RecordingPolicy, ReplayMode, SandboxPolicy, TurnPolicy,
};
pub use provider::{
    Bindings, CallPolicy, Cap, CapAction, ChoicePolicy, CircuitPolicy, CostCaps, FailurePolicy,
    ProviderPolicy, ProvidersSpec,
};
pub use redaction::{AudioRedaction, PiiPattern, RedactSpec};
pub use speculation::SpeculationPolicy;
pub use state::{Consistency, StatePolicy};
pub use tool::{
    HttpExecutor, OnInterruption, SessionAction, ToolDeclaration, ToolEffects, ToolExecutor,
};

/// Lets a schema accept words that are read but never written.
fn also_accept(schema: &mut schemars::Schema, words: &[&str]) {
    if let Some(choices) = schema
        .get_mut("oneOf")
        .and_then(serde_json::Value::as_array_mut)
    {
        choices.extend(
            words
                .iter()
                .map(|word| serde_json::json!({ "type": "string", "const": word })),
        );
    }
}
