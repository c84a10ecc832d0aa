//! From what the kernel decided about a call to what the timeline keeps of it.

use std::collections::BTreeMap;

use rspp_kernel::invocation::{self as kernel, AttemptKey};
use rspp_proto::{OutcomeClass, Spending, TurnNumber, spec::Modality};
use rspp_timeline::{AttemptRecord, InvocationOutcome};

use super::{CallSite, attempt::Facts};

/// The records of a call: its attempts, and how it ended; `None` if nobody is bound to its node.
pub(super) fn records(
    site: &CallSite,
    modality: Modality,
    routing_reason: String,
    outcome: &kernel::InvocationOutcome,
    facts: &BTreeMap<AttemptKey, Facts>,
    ended_at: rspp_proto::Monotonic,
) -> Option<(Vec<AttemptRecord>, InvocationOutcome)> {
    let none = Facts::default();
    let of = |key: AttemptKey| facts.get(&key).unwrap_or(&none);
    let attempts: Vec<_> = outcome
        .attempts
        .iter()
        .map(|attempt| record(site, modality, outcome, attempt, of(attempt.key)))
        .collect();
    let mut spending = Spending::default();
    for attempt in &outcome.attempts {
        spending += of(attempt.key).spending;
    }
    let last = outcome.attempts.last();
    let millis = |duration: std::time::Duration| duration.as_millis() as u64;
    let candidates = site.settings.candidates.as_ref();
    let invocation = InvocationOutcome {
        provider_invocation_id: outcome.invocation.clone(),
        turn_id: site.settings.turn.map(TurnNumber::id),
        modality,
        provider_id: outcome.provider.clone()?,
        outcome_class: outcome.class,
        reason: reason(outcome.class, outcome.reason),
        routing_reason,
        signal_source: candidates.map_or_else(String::new, |candidates| {
            candidates.signal_source.as_str().to_owned()
        }),
        retryable: last.is_some_and(|last| last.retryable),
        retry_decision: outcome.decision,
        attempt_count: outcome.attempts.len() as u32,
        final_attempt_latency_ms: last.map_or(0, |last| millis(last.ended.since(last.began))),
        total_invocation_latency_ms: millis(outcome.latency),
        spending,
        ended_at,
    };
    Some((attempts, invocation))
}

fn record(
    site: &CallSite,
    modality: Modality,
    outcome: &kernel::InvocationOutcome,
    attempt: &kernel::AttemptRecord,
    facts: &Facts,
) -> AttemptRecord {
    AttemptRecord {
        provider_invocation_id: outcome.invocation.clone(),
        turn_id: site.settings.turn.map(TurnNumber::id),
        node_id: Some(site.settings.node().clone()),
        modality,
        provider_id: attempt.provider.clone(),
        attempt: attempt.attempt,
        outcome_class: attempt.class,
        reason: reason(attempt.class, attempt.reason),
        retryable: attempt.retryable,
        retry_decision: attempt.decision,
        authority_epoch: site.settings.epoch,
        started_at: attempt.began,
        ended_at: attempt.ended,
        first_chunk_at: attempt.first_chunk,
        streaming_used: facts.streaming,
        chunk_count: attempt.chunks,
        bytes_out: facts.bytes,
        bytes_in: facts.asked,
        queue_wait_ms: attempt.queued.as_millis() as u64,
        extras: facts.extras(),
        circuit_open: attempt.circuit_open,
        backoff_ms: attempt.backoff.map(|backoff| backoff.as_millis() as u64),
        output_status_code: facts.status,
        input_payload: None,
        output_payload: None,
        payload_truncated: false,
    }
}

/// A success needs no reason.
fn reason(class: OutcomeClass, reason: &str) -> String {
    match class {
        OutcomeClass::Success => String::new(),
        OutcomeClass::Timeout
        | OutcomeClass::Overload
        | OutcomeClass::Blocked
        | OutcomeClass::InfrastructureFailure
        | OutcomeClass::Cancelled => reason.to_owned(),
    }
}
