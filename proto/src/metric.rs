//! The words that measurements are told in: names, units and labels (F-065, observability.md §5).
//!
//! A dashboard goes by these. Each metric has one set of labels, whoever is measured, and each label
//! takes its values from something bounded: ids of a pipeline, registered providers, closed enums and
//! codes that are written in code.

use std::fmt::Write as _;

use crate::MetricSample;

/// Measurements in the text format that metrics backends scrape.
///
/// # Panics
/// Never: a string takes all that is written to it.
pub fn text(samples: &[MetricSample]) -> String {
    let mut text = String::new();
    let mut last = "";
    for sample in samples {
        let name = sample.name.as_str();
        if name != last {
            let kind = if name.ends_with("_total") {
                "counter"
            } else {
                "gauge"
            };
            writeln!(text, "# TYPE {name} {kind}").expect("a string takes it");
            last = name;
        }
        let labels = sample.labels.iter();
        let labels = labels.map(|(label, value)| format!("{label}=\"{}\"", escaped(value)));
        let labels = labels.collect::<Vec<_>>().join(",");
        writeln!(text, "{name}{{{labels}}} {}", sample.value).expect("a string takes it");
    }
    text
}

/// A label's value as that format writes it between quotes.
pub fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// What is measured; the unit is at the name's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// From the begin of a handler until all that it emitted is sent.
    NodeLatency,
    /// From the start of a node's own process until it is ready, its sandbox included.
    NodeStart,
    /// From the acceptance of a cancel until a node has let go.
    CancelLatency,
    /// From the acceptance of a cancel until a node has heard of it.
    CancelAck,
    /// Times that a node took longer than it may to let go.
    SlowCancels,
    /// Times that a node was found beyond what it may take.
    NodeLimitViolations,
    /// Events that wait on an edge.
    EdgeQueueDepth,
    /// Events that an edge gave up.
    EdgeDrops,
    /// Events that an edge folded into others.
    EdgeMerges,
    /// From an event's arrival on an edge until its node takes it.
    EdgeLatency,
    /// From a request to a provider until its answer is over.
    ProviderRtt,
    /// From a request to a provider until the first piece of its answer.
    ProviderFirstChunk,
    /// What a request waited for this machine before its provider had it.
    ProviderQueueWait,
    /// Requests by how they ended.
    ProviderAttempts,
    /// Requests that led to another, at the same provider or elsewhere.
    ProviderRetries,
    /// Requests that failed, by code.
    ProviderErrors,
    /// Payload of requests: text, or audio.
    ProviderRequestBytes,
    /// Payload of answers.
    ProviderResponseBytes,
    /// What one vendor counts and another does not.
    ProviderExtra,
    /// Decisions about a tenant's sessions and turns.
    AdmissionDecisions,
    /// Where new sessions were sent.
    RoutePlacings,
    /// Providers that fail in a region.
    ProviderOutages,
    /// Tokens that language models read and wrote for a tenant.
    TenantTokens,
    /// Tokens that the fleet will never count against limits.
    TokensUncounted,
    /// Sessions that the fleet will never count for their versions.
    SessionsUncounted,
    /// Work of a tenant that was shed where it is scheduled.
    WorkShed,
    /// How far media time and the runtime's clock are apart.
    MappingError,
    /// Spans for a collector, by what became of them.
    TelemetrySpans,
}

/// What a measurement is told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MetricLabel {
    /// The pipeline's version.
    PipelineVersion,
    /// The node.
    NodeId,
    /// What the node does.
    NodeType,
    /// What a node may take only so much of: `cpu` or `memory`.
    Limit,
    /// The edge.
    EdgeId,
    /// The edge's lane.
    Lane,
    /// What became of what is counted.
    Status,
    /// What gives when an edge is full.
    Strategy,
    /// Why a cancel was accepted.
    Reason,
    /// Whether a node had to be stopped.
    Forced,
    /// The provider.
    ProviderId,
    /// What the provider does.
    Modality,
    /// The class of an outcome.
    Outcome,
    /// What a failed request led to.
    RetryDecision,
    /// The code of a failure.
    ErrorCode,
    /// What a vendor counts beside what all count.
    Extra,
    /// Which quantile of a latency.
    Quantile,
    /// The tenant; those that ask least share a name.
    TenantId,
    /// What was asked for: `session` or `turn`.
    Subject,
    /// What was decided.
    Decision,
    /// The region.
    Region,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 28] = [
        Self::NodeLatency,
        Self::NodeStart,
        Self::CancelLatency,
        Self::CancelAck,
        Self::SlowCancels,
        Self::NodeLimitViolations,
        Self::EdgeQueueDepth,
        Self::EdgeDrops,
        Self::EdgeMerges,
        Self::EdgeLatency,
        Self::ProviderRtt,
        Self::ProviderFirstChunk,
        Self::ProviderQueueWait,
        Self::ProviderAttempts,
        Self::ProviderRetries,
        Self::ProviderErrors,
        Self::ProviderRequestBytes,
        Self::ProviderResponseBytes,
        Self::ProviderExtra,
        Self::AdmissionDecisions,
        Self::RoutePlacings,
        Self::ProviderOutages,
        Self::TenantTokens,
        Self::TokensUncounted,
        Self::SessionsUncounted,
        Self::WorkShed,
        Self::MappingError,
        Self::TelemetrySpans,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NodeLatency => "node_latency_ms",
            Self::NodeStart => "node_start_ms",
            Self::CancelLatency => "cancel_latency_ms",
            Self::CancelAck => "cancel_ack_ms",
            Self::SlowCancels => "slow_cancels_total",
            Self::NodeLimitViolations => "node_limit_violations_total",
            Self::EdgeQueueDepth => "edge_queue_depth",
            Self::EdgeDrops => "edge_drops_total",
            Self::EdgeMerges => "edge_merges_total",
            Self::EdgeLatency => "edge_latency_ms",
            Self::ProviderRtt => "provider_rtt_ms",
            Self::ProviderFirstChunk => "provider_first_chunk_ms",
            Self::ProviderQueueWait => "provider_queue_wait_ms",
            Self::ProviderAttempts => "provider_attempts_total",
            Self::ProviderRetries => "provider_retries_total",
            Self::ProviderErrors => "provider_errors_total",
            Self::ProviderRequestBytes => "provider_request_bytes_total",
            Self::ProviderResponseBytes => "provider_response_bytes_total",
            Self::ProviderExtra => "provider_extra_total",
            Self::AdmissionDecisions => "admission_decisions_total",
            Self::RoutePlacings => "route_placings_total",
            Self::ProviderOutages => "provider_outages",
            Self::TenantTokens => "tenant_tokens_total",
            Self::TokensUncounted => "tokens_uncounted_total",
            Self::SessionsUncounted => "sessions_uncounted_total",
            Self::WorkShed => "work_shed_total",
            Self::MappingError => "media_runtime_mapping_error_ms",
            Self::TelemetrySpans => "telemetry_spans_total",
        }
    }

    /// All labels that it may have. A node that no provider serves has no `provider_id`; every other
    /// metric has all of its labels each time.
    pub const fn labels(self) -> &'static [MetricLabel] {
        use MetricLabel as L;
        match self {
            Self::NodeLatency | Self::NodeStart | Self::CancelLatency => &[
                L::PipelineVersion,
                L::NodeId,
                L::NodeType,
                L::ProviderId,
                L::Quantile,
            ],
            Self::CancelAck => &[L::PipelineVersion, L::NodeId, L::Reason, L::Forced],
            Self::SlowCancels => &[L::PipelineVersion, L::NodeId, L::NodeType, L::ProviderId],
            Self::NodeLimitViolations => &[
                L::PipelineVersion,
                L::NodeId,
                L::NodeType,
                L::ProviderId,
                L::Limit,
            ],
            Self::EdgeQueueDepth => &[
                L::PipelineVersion,
                L::NodeId,
                L::EdgeId,
                L::Lane,
                L::ProviderId,
                L::Status,
            ],
            Self::EdgeDrops => &[
                L::PipelineVersion,
                L::NodeId,
                L::EdgeId,
                L::Lane,
                L::ProviderId,
                L::Strategy,
            ],
            Self::EdgeMerges => &[
                L::PipelineVersion,
                L::NodeId,
                L::EdgeId,
                L::Lane,
                L::ProviderId,
            ],
            Self::EdgeLatency => &[
                L::PipelineVersion,
                L::NodeId,
                L::EdgeId,
                L::Lane,
                L::ProviderId,
                L::Quantile,
            ],
            Self::ProviderRtt | Self::ProviderFirstChunk | Self::ProviderQueueWait => &[
                L::PipelineVersion,
                L::NodeId,
                L::ProviderId,
                L::Modality,
                L::Quantile,
            ],
            Self::ProviderAttempts => &[
                L::PipelineVersion,
                L::NodeId,
                L::ProviderId,
                L::Modality,
                L::Outcome,
            ],
            Self::ProviderRetries => &[
                L::PipelineVersion,
                L::NodeId,
                L::ProviderId,
                L::Modality,
                L::RetryDecision,
            ],
            Self::ProviderErrors => &[
                L::PipelineVersion,
                L::NodeId,
                L::ProviderId,
                L::Modality,
                L::ErrorCode,
            ],
            Self::ProviderRequestBytes | Self::ProviderResponseBytes => {
                &[L::PipelineVersion, L::NodeId, L::ProviderId, L::Modality]
            }
            Self::ProviderExtra => &[
                L::PipelineVersion,
                L::NodeId,
                L::ProviderId,
                L::Modality,
                L::Extra,
            ],
            Self::AdmissionDecisions => &[L::TenantId, L::Subject, L::Decision],
            Self::RoutePlacings => &[L::Region, L::Reason],
            Self::ProviderOutages => &[L::Region, L::Modality, L::ProviderId],
            Self::TenantTokens | Self::WorkShed => &[L::TenantId],
            Self::TokensUncounted | Self::SessionsUncounted => &[],
            Self::MappingError => &[L::PipelineVersion, L::NodeId, L::Quantile],
            Self::TelemetrySpans => &[L::Outcome],
        }
    }
}

impl MetricLabel {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PipelineVersion => "pipeline_version",
            Self::NodeId => "node_id",
            Self::NodeType => "node_type",
            Self::Limit => "limit",
            Self::EdgeId => "edge_id",
            Self::Lane => "lane",
            Self::Status => "status",
            Self::Strategy => "strategy",
            Self::Reason => "reason",
            Self::Forced => "forced",
            Self::ProviderId => "provider_id",
            Self::Modality => "modality",
            Self::Outcome => "outcome",
            Self::RetryDecision => "retry_decision",
            Self::ErrorCode => "error_code",
            Self::Extra => "extra",
            Self::Quantile => "quantile",
            Self::TenantId => "tenant_id",
            Self::Subject => "subject",
            Self::Decision => "decision",
            Self::Region => "region",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// F-065: one name for one thing, and no label twice.
    #[test]
    fn names_are_told_apart() {
        let names: BTreeSet<_> = Metric::ALL.iter().map(|metric| metric.as_str()).collect();
        assert_eq!(names.len(), Metric::ALL.len());
        for metric in Metric::ALL {
            let labels: BTreeSet<_> = metric.labels().iter().map(|label| label.as_str()).collect();
            assert_eq!(labels.len(), metric.labels().len(), "{metric:?}");
        }
    }
}
