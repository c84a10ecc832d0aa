//! What a session really runs, for whoever asks while it does (F-081).

use std::sync::Arc;

use rspp_kernel::{graph::GraphView, plan::ResolvedPolicy};
use rspp_proto::SessionId;
use serde::Serialize;

/// The pipeline of one session after policies, inserted nodes, chosen providers and defaults.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EffectivePipeline {
    /// The session that runs it.
    pub session_id: SessionId,
    /// The graph, with what a policy put there.
    pub graph: GraphView,
    /// What the newest turn runs with, each value with its origin; before the first turn, what the
    /// listening side runs with.
    pub policy: Arc<ResolvedPolicy>,
}
