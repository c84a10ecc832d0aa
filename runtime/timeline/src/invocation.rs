//! What providers did: attempts, outcomes and hand-overs between stages (observability.md §2).

use std::{collections::BTreeMap, time::Duration};

use rspp_proto::{
    EdgeId, Epoch, InvocationId, Monotonic, NodeId, OutcomeClass, ProviderId, RetryDecision,
    Spending, TurnId, spec::Modality,
};
use serde::{Deserialize, Serialize};

/// One attempt of a provider call.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts of the specification's record"
)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// The call, over all its attempts.
    pub provider_invocation_id: InvocationId,
    /// The turn it worked for; `None` for session-scoped work such as recognition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<TurnId>,
    /// The node that asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// What the provider does.
    pub modality: Modality,
    /// Who was asked.
    pub provider_id: ProviderId,
    /// Counts the attempts at this provider, from 1.
    pub attempt: u32,
    /// How it ended.
    pub outcome_class: OutcomeClass,
    /// A stable code such as `provider_timeout`; empty on success.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Whether another attempt might have succeeded.
    pub retryable: bool,
    /// What followed.
    pub retry_decision: RetryDecision,
    /// The authority under which the call was made.
    pub authority_epoch: Epoch,
    /// When the request was made.
    pub started_at: Monotonic,
    /// When the attempt ended.
    pub ended_at: Monotonic,
    /// When the first chunk came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_chunk_at: Option<Monotonic>,
    /// Whether the answer came in pieces.
    pub streaming_used: bool,
    /// Chunks received.
    pub chunk_count: u64,
    /// Bytes received.
    pub bytes_out: u64,
    /// Bytes of what was asked: text, or audio.
    #[serde(default)]
    pub bytes_in: u64,
    /// How long the request waited for this machine before the provider had it.
    #[serde(default)]
    pub queue_wait_ms: u64,
    /// What the vendor counts beside what all count.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extras: BTreeMap<String, f64>,
    /// The provider asked not to be called for a while.
    pub circuit_open: bool,
    /// How long the runtime waited before the next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff_ms: Option<u64>,
    /// HTTP or gRPC status, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_status_code: Option<u16>,
    /// Request as captured; absent unless capture is on (providers.md §2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_payload: Option<String>,
    /// Answer as captured; absent unless capture is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_payload: Option<String>,
    /// Whether a captured payload was cut at the capture limit.
    #[serde(default)]
    pub payload_truncated: bool,
}

impl AttemptRecord {
    /// From request to end.
    pub fn latency(&self) -> Duration {
        self.ended_at.since(self.started_at)
    }

    /// From request to the first chunk.
    pub fn first_chunk_latency(&self) -> Option<Duration> {
        self.first_chunk_at.map(|at| at.since(self.started_at))
    }
}

/// How a provider call ended, over all its attempts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InvocationOutcome {
    /// The call.
    pub provider_invocation_id: InvocationId,
    /// The turn it worked for; `None` for session-scoped work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<TurnId>,
    /// What the provider does.
    pub modality: Modality,
    /// Who answered, or was asked last; who would have been asked first if nobody was.
    pub provider_id: ProviderId,
    /// How the call ended.
    pub outcome_class: OutcomeClass,
    /// A stable code such as `provider_budget_exhausted`; empty on success.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why these providers were asked in this order (F-056), e.g. `rule:tenant`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub routing_reason: String,
    /// Whether news of health and price had a part in it (F-066).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub signal_source: String,
    /// Whether another attempt might have succeeded.
    pub retryable: bool,
    /// What the last decision was.
    pub retry_decision: RetryDecision,
    /// Attempts over all providers; 0 if there was no time left for any, or nobody to ask.
    pub attempt_count: u32,
    /// How long the last attempt took.
    pub final_attempt_latency_ms: u64,
    /// How long all of them took, waits included; at least the final attempt's.
    pub total_invocation_latency_ms: u64,
    /// What it cost, over all attempts.
    #[serde(default, skip_serializing_if = "Spending::is_zero")]
    pub spending: Spending,
    /// When the call ended.
    pub ended_at: Monotonic,
}

impl InvocationOutcome {
    /// Whether the counts and latencies agree with each other. Nothing comes of no attempt, but for
    /// a reason that is named.
    pub fn is_valid(&self) -> bool {
        let tried = self.attempt_count >= 1;
        let said_why = self.outcome_class != OutcomeClass::Success && !self.reason.is_empty();
        (tried || said_why) && self.final_attempt_latency_ms <= self.total_invocation_latency_ms
    }
}

/// What a stage did with a new revision of its input (turn-plan.md §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandoffAction {
    /// Passed it on.
    Forward,
    /// Passed it on folded together with what was waiting.
    Coalesce,
    /// Replaced what had been passed on.
    Supersede,
    /// Passed on the final text only, since nothing had gone before.
    FinalFallback,
}

/// A partial result handed from one stage to the next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HandoffRecord {
    /// Names the hand-over.
    pub handoff_id: String,
    /// The turn it belongs to.
    pub turn_id: TurnId,
    /// The edge it went over.
    pub edge_id: EdgeId,
    /// Revision of the upstream result, from 1.
    pub upstream_revision: u32,
    /// What was done with it.
    pub action: HandoffAction,
    /// When the partial was accepted.
    pub partial_accepted_at: Monotonic,
    /// When the next stage began with it; never before it was accepted.
    pub downstream_started_at: Monotonic,
    /// Items handed over and not taken yet, this one included.
    pub queue_depth: u32,
    /// Whether those were as many as there may be.
    pub watermark_high: bool,
}
