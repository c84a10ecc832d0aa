//! `simple/v1`: every default, in one place. A new value needs a new profile version.

use std::collections::BTreeSet;

use rspp_proto::spec::{
    AdaptiveAction, Budgets, BufferTuning, DataHandling, DefaultingSource, EdgeBufferPolicy,
    FlowControl, FlowMode, LaneHandling, Marks, PortType, RecordingLevel, RecordingPolicy,
    RedactSpec, ReplayMode, Strategy, TelemetryHandling, Watermarks,
};

use super::{Handoff, StreamingHandoff};
use crate::graph::{Edge, Graph, Scope};

/// How provenance names what comes from here.
pub const SOURCE: &str = "execution_profile/simple/v1";

/// Time budgets (design §7).
pub fn budgets() -> Budgets {
    Budgets {
        turn_budget_ms: 2_000,
        node_budget_ms_default: 800,
        path_budget_ms_default: 1_800,
        edge_budget_ms_default: 250,
        provider_first_byte_ms: 1_000,
        provider_inter_chunk_ms: 700,
        cancel_grace_ms: 75,
        hook_timeout_ms: 250,
        max_turn_duration_ms: 60_000,
        output_gap_ms: Budgets::OUTPUT_GAP_MS,
        max_silence_ms: Budgets::MAX_SILENCE_MS,
    }
}

/// Marks by lane; all lanes are held back by signal.
pub fn flow_control() -> FlowControl {
    let marks = |high, low| Marks { high, low };
    FlowControl {
        data_mode: FlowMode::Signal,
        data_marks: marks(100, 50),
        control_marks: marks(20, 10),
        telemetry_marks: marks(200, 100),
    }
}

/// Baseline evidence is mandatory, more is a choice.
pub fn recording_policy() -> RecordingPolicy {
    RecordingPolicy {
        recording_level: RecordingLevel::L0,
        allowed_replay_modes: BTreeSet::from([ReplayMode::ReplayDecisions]),
        full_capture: BTreeSet::new(),
        redact: RedactSpec::default(),
    }
}

/// What a plan may do on its own.
pub fn adaptive_actions() -> BTreeSet<AdaptiveAction> {
    BTreeSet::from([
        AdaptiveAction::Retry,
        AdaptiveAction::ProviderSwitch,
        AdaptiveAction::Fallback,
    ])
}

/// Generated text is spoken clause by clause as it comes; the model starts on final transcripts.
pub fn streaming_handoff() -> StreamingHandoff {
    let edge = |enabled| Handoff {
        enabled,
        min_partial_chars: 12,
        trigger_on_punctuation: true,
        // Less would tear sentences of slow models apart for the sake of their first words.
        max_partial_age_ms: 2_000,
        max_pending_revisions: 4,
        max_pending_segments: 8,
        coalesce_latest_only: true,
        emit_flow_control_signals: true,
        degrade_on_threshold_breach: false,
    };
    StreamingHandoff {
        enabled: true,
        stt_to_llm: edge(false),
        llm_to_tts: edge(true),
    }
}

/// An edge's buffer, by what flows there.
pub fn edge_buffer(graph: &Graph, edge: &Edge) -> EdgeBufferPolicy {
    let to_user = edge.to == graph.egress();
    match edge.carries {
        // Playback is slower than synthesis: the synthesiser waits, nothing is lost.
        PortType::Audio if to_user => EdgeBufferPolicy {
            max_queue_items: 150,
            max_queue_ms: 3_000,
            max_queue_bytes: 1_048_576,
            max_latency_contribution_ms: 3_000,
            watermarks: marks(100, 50),
            ..blocking()
        },
        // A dropped token is a hole in a sentence. Clauses wait for as long as the turn speaks.
        PortType::Text if edge.scope == Scope::Turn && !to_user => EdgeBufferPolicy {
            max_queue_items: 256,
            max_queue_ms: budgets().max_turn_duration_ms,
            watermarks: marks(192, 96),
            ..blocking()
        },
        PortType::Audio
        | PortType::Text
        | PortType::Speech
        | PortType::Metrics
        | PortType::Debug
        | PortType::Error
        | PortType::Any => EdgeBufferPolicy {
            strategy: Strategy::DropOldest,
            max_queue_items: 64,
            max_queue_ms: 300,
            max_queue_bytes: 262_144,
            max_latency_contribution_ms: 120,
            max_block_time_ms: None,
            actions: None,
            flow_mode: None,
            coalesce_ms: None,
            on_high: None,
            watermarks: marks(48, 24),
            lane_handling: LaneHandling {
                data: DataHandling::DropOldest,
                telemetry: TelemetryHandling::BestEffortDrop,
            },
            fairness_key: None,
            defaulting_source: DefaultingSource::ExecutionProfileDefault,
            sync_drop_policy: None,
        },
    }
}

/// Tunes an edge for latency or for accuracy (F-054), and names what that changed.
pub fn tune(policy: &mut EdgeBufferPolicy, tuning: BufferTuning) -> [&'static str; 8] {
    let (items, ms, bytes, latency) = match tuning {
        BufferTuning::LatencyFirst => (5, 100, 65_536, 60),
        BufferTuning::AccuracyFirst => (500, 10_000, 1_048_576, 10_000),
    };
    policy.strategy = Strategy::DropOldest;
    policy.lane_handling.data = DataHandling::DropOldest;
    policy.max_block_time_ms = None;
    policy.max_queue_items = items;
    policy.max_queue_ms = ms;
    policy.max_queue_bytes = bytes;
    policy.max_latency_contribution_ms = latency;
    policy.watermarks = marks(items - items / 4, items * 3 / 8);
    [
        "strategy",
        "lane_handling/DataLane",
        "max_block_time_ms",
        "max_queue_items",
        "max_queue_ms",
        "max_queue_bytes",
        "max_latency_contribution_ms",
        "watermarks",
    ]
}

fn blocking() -> EdgeBufferPolicy {
    EdgeBufferPolicy {
        strategy: Strategy::Block,
        max_queue_items: 256,
        max_queue_ms: 300,
        max_queue_bytes: 262_144,
        max_latency_contribution_ms: 120,
        max_block_time_ms: Some(2_000),
        actions: None,
        flow_mode: None,
        coalesce_ms: None,
        on_high: None,
        watermarks: marks(192, 96),
        lane_handling: LaneHandling {
            data: DataHandling::Block,
            telemetry: TelemetryHandling::BestEffortDrop,
        },
        fairness_key: None,
        defaulting_source: DefaultingSource::ExecutionProfileDefault,
        sync_drop_policy: None,
    }
}

fn marks(high: u64, low: u64) -> Watermarks {
    Watermarks {
        queue_items: Some(Marks { high, low }),
        queue_ms: None,
    }
}
