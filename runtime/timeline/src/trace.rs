//! A timeline as traces: one for each turn, with its stages, its nodes and their provider calls, in the form
//! that OpenTelemetry's collectors take (F-070, P30).

use std::{collections::BTreeMap, time::Duration};

use rspp_proto::{
    Monotonic, NodeId, OutcomeClass, SessionId, SpanId, TraceId, TraceParent, TurnId, WallClock,
};
use serde_json::{Value, json};

use crate::{AttemptRecord, Entry, Segment, TerminalOutcome, ToolEntry, ToolStep, TurnBaseline};

/// A stretch of time with a name, in a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Its trace.
    pub trace: TraceId,
    /// Itself.
    pub id: SpanId,
    /// What it is a part of.
    pub parent: Option<SpanId>,
    /// What it is, in few words: `turn`, `node llm`, `llm dialogue`.
    pub name: String,
    /// Whether somebody outside was asked.
    pub is_call: bool,
    /// When it began.
    pub began: Monotonic,
    /// When it ended.
    pub ended: Monotonic,
    /// What is known of it, by OpenTelemetry's names where these have one.
    pub attributes: BTreeMap<&'static str, String>,
    /// Traces that it has to do with: that of whoever called.
    pub links: Vec<TraceParent>,
    /// Why it did not end well, if it did not.
    pub fault: Option<String>,
}

impl Span {
    /// How long it took.
    pub fn duration(&self) -> Duration {
        self.ended.since(self.began)
    }
}

/// The spans of a recorded session, turn by turn. Stages of a turn follow each other without a gap and add up
/// to it.
pub fn spans(entries: &[Entry]) -> Vec<Span> {
    let caller = entries.iter().find_map(|entry| match entry {
        Entry::Opening(opening) => opening.line.traceparent,
        _another_entry => None,
    });
    let session = entries.iter().find_map(|entry| match entry {
        Entry::Opening(opening) => Some(opening.session_id.clone()),
        Entry::Header(header) => Some(header.session_id.clone()),
        _another_entry => None,
    });
    let Some(session) = session else {
        return Vec::new();
    };
    let mut work = Work::default();
    for entry in entries {
        match entry {
            Entry::Attempt(attempt) => work.attempt(attempt),
            Entry::Tool(step) => work.tool(step),
            _no_work => {}
        }
    }
    let turns = entries.iter().filter_map(|entry| match entry {
        Entry::Turn(turn) => Some(&**turn),
        _another_entry => None,
    });
    let mut spans = Vec::new();
    for turn in turns {
        let trace = TraceId::of(&session, Some(&turn.turn_id));
        let segments = turn.anchors.waterfall().segments;
        let Some(root) = root(turn, &segments, trace, caller) else {
            continue;
        };
        let of_turn = work.take(Some(&turn.turn_id));
        spans.extend(segments.iter().map(|segment| stage(turn, segment, &root)));
        of_turn.tell(&session, Some(&turn.turn_id), Some(&root), &mut spans);
        spans.push(root);
    }
    // Recognition works for the session, and for turns that were refused nobody else has a trace.
    let rest: Vec<Option<TurnId>> = work.turns.keys().cloned().collect();
    for turn in rest {
        let of_turn = work.take(turn.as_ref());
        of_turn.tell(&session, turn.as_ref(), None, &mut spans);
    }
    for span in &mut spans {
        span.attributes.insert("session.id", session.to_string());
    }
    spans
}

fn root(
    turn: &TurnBaseline,
    segments: &[Segment],
    trace: TraceId,
    caller: Option<TraceParent>,
) -> Option<Span> {
    let (began, ended) = match (segments.first(), segments.last()) {
        (Some(first), Some(last)) => (first.start, last.end),
        (None, _) | (_, None) => (turn.turn_open_at?, turn.turn_terminal_at?),
    };
    let mut attributes = BTreeMap::from([
        ("rspp.turn.id", turn.turn_id.to_string()),
        ("rspp.pipeline.version", turn.pipeline_version.to_string()),
        ("rspp.plan.hash", turn.plan_hash.clone()),
    ]);
    if let Some(tenant) = &turn.tenant_id {
        attributes.insert("rspp.tenant.id", tenant.to_string());
    }
    let fault = match turn.terminal_outcome {
        Some(TerminalOutcome::Commit) => None,
        Some(TerminalOutcome::Abort) | None => {
            let reason = turn.terminal_reason.as_ref();
            Some(reason.map_or_else(|| "no end".to_owned(), ToString::to_string))
        }
    };
    // The user who speaks over the agent is no fault of anybody's.
    let fault = fault.filter(|reason| reason != "cancelled");
    Some(Span {
        trace,
        id: SpanId::of_turn(trace),
        parent: None,
        name: "turn".to_owned(),
        is_call: false,
        began,
        ended,
        attributes,
        links: caller.into_iter().collect(),
        fault,
    })
}

/// Where a part of the turn's time went.
fn stage(turn: &TurnBaseline, segment: &Segment, root: &Span) -> Span {
    let stage = segment.until;
    Span {
        trace: root.trace,
        id: SpanId::of_stage(root.trace, stage.as_str()),
        parent: Some(root.id),
        name: format!("until {}", stage.label()),
        is_call: false,
        began: segment.start,
        ended: segment.end,
        attributes: BTreeMap::from([
            ("rspp.turn.id", turn.turn_id.to_string()),
            ("rspp.stage", stage.as_str().to_owned()),
        ]),
        links: Vec::new(),
        fault: None,
    }
}

/// What was asked of others, by turn.
#[derive(Default)]
struct Work {
    turns: BTreeMap<Option<TurnId>, OfTurn>,
}

#[derive(Default)]
struct OfTurn {
    attempts: Vec<AttemptRecord>,
    tools: BTreeMap<String, Vec<ToolEntry>>,
}

impl Work {
    fn attempt(&mut self, attempt: &AttemptRecord) {
        let of_turn = self.turns.entry(attempt.turn_id.clone()).or_default();
        of_turn.attempts.push(attempt.clone());
    }

    fn tool(&mut self, step: &ToolEntry) {
        let of_turn = self.turns.entry(Some(step.turn_id.clone())).or_default();
        let steps = of_turn.tools.entry(step.call_id.clone()).or_default();
        steps.push(step.clone());
    }

    fn take(&mut self, turn: Option<&TurnId>) -> OfTurn {
        self.turns.remove(&turn.cloned()).unwrap_or_default()
    }
}

impl OfTurn {
    fn tell(
        self,
        session: &SessionId,
        turn: Option<&TurnId>,
        root: Option<&Span>,
        spans: &mut Vec<Span>,
    ) {
        let trace = TraceId::of(session, turn);
        let parent = root.map(|root| root.id);
        let named = || turn.map(|turn| ("rspp.turn.id", turn.to_string()));
        let mut nodes = BTreeMap::<NodeId, Span>::new();
        for attempt in &self.attempts {
            let mut attributes: BTreeMap<_, _> = named().into_iter().collect();
            attributes.extend([
                ("rspp.provider.id", attempt.provider_id.to_string()),
                ("rspp.modality", attempt.modality.as_str().to_owned()),
                ("rspp.attempt", attempt.attempt.to_string()),
                (
                    "rspp.invocation.id",
                    attempt.provider_invocation_id.to_string(),
                ),
                ("rspp.outcome", attempt.outcome_class.as_str().to_owned()),
                ("rspp.queue_wait_ms", attempt.queue_wait_ms.to_string()),
            ]);
            if let Some(status) = attempt.output_status_code {
                attributes.insert("http.response.status_code", status.to_string());
            }
            if let Some(latency) = attempt.first_chunk_latency() {
                let ms = latency.as_secs_f64() * 1e3;
                attributes.insert("rspp.first_chunk_ms", ms.to_string());
            }
            let fault = match attempt.outcome_class {
                OutcomeClass::Success | OutcomeClass::Cancelled => None,
                OutcomeClass::Timeout
                | OutcomeClass::Overload
                | OutcomeClass::Blocked
                | OutcomeClass::InfrastructureFailure => Some(attempt.reason.clone()),
            };
            let node = attempt.node_id.as_ref().map(|node| {
                let span = nodes.entry(node.clone()).or_insert_with(|| Span {
                    trace,
                    id: SpanId::of_node(trace, node),
                    parent,
                    name: format!("node {node}"),
                    is_call: false,
                    began: attempt.started_at,
                    ended: attempt.ended_at,
                    attributes: named()
                        .into_iter()
                        .chain([("rspp.node.id", node.to_string())])
                        .collect(),
                    links: Vec::new(),
                    fault: None,
                });
                span.began = span.began.min(attempt.started_at);
                span.ended = span.ended.max(attempt.ended_at);
                span.id
            });
            spans.push(Span {
                trace,
                id: SpanId::of_attempt(
                    &attempt.provider_invocation_id,
                    &attempt.provider_id,
                    attempt.attempt,
                ),
                parent: node.or(parent),
                name: format!("{} {}", attempt.modality.as_str(), attempt.provider_id),
                is_call: true,
                began: attempt.started_at,
                ended: attempt.ended_at,
                attributes,
                links: Vec::new(),
                fault,
            });
        }
        spans.extend(nodes.into_values());
        for (call, steps) in self.tools {
            let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
                continue;
            };
            let mut attributes: BTreeMap<_, _> = named().into_iter().collect();
            attributes.insert("rspp.tool.call", call.clone());
            spans.push(Span {
                trace,
                id: SpanId::of_tool(trace, &call),
                parent,
                name: format!("tool {}", first.tool),
                is_call: true,
                began: first.at,
                ended: last.at,
                attributes,
                links: Vec::new(),
                fault: tool_fault(last.step),
            });
        }
    }
}

fn tool_fault(step: ToolStep) -> Option<String> {
    match step {
        ToolStep::Requested
        | ToolStep::Began
        | ToolStep::Finished
        | ToolStep::Detached
        | ToolStep::Late
        | ToolStep::ActionCommitted => None,
        ToolStep::Failed => Some("failed".to_owned()),
        ToolStep::TimedOut => Some("timed_out".to_owned()),
        ToolStep::Abandoned => Some("abandoned".to_owned()),
        ToolStep::Refused | ToolStep::ActionRefused => Some("refused".to_owned()),
    }
}

/// Spans as OTLP's JSON, which collectors take at `/v1/traces`. `tied` says when a moment of the recording's
/// clock was on the calendar.
pub fn otlp(spans: &[Span], tied: (Monotonic, WallClock)) -> Value {
    let (at, wall) = tied;
    let nanos = |moment: Monotonic| {
        let origin = u128::from(wall.0) * 1_000_000;
        let (ahead, behind) = (moment.since(at).as_nanos(), at.since(moment).as_nanos());
        (origin + ahead).saturating_sub(behind).to_string()
    };
    let pair =
        |(key, value): (&&str, &String)| json!({ "key": key, "value": { "stringValue": value } });
    let told: Vec<Value> = spans
        .iter()
        .map(|span| {
            let links = span.links.iter();
            let links: Vec<Value> = links
                .map(|it| json!({ "traceId": it.trace.to_string(), "spanId": it.span.to_string() }))
                .collect();
            json!({
                "traceId": span.trace.to_string(),
                "spanId": span.id.to_string(),
                "parentSpanId": span.parent.map(|id| id.to_string()).unwrap_or_default(),
                "name": span.name,
                // SPAN_KIND_CLIENT and SPAN_KIND_INTERNAL.
                "kind": if span.is_call { 3 } else { 1 },
                "startTimeUnixNano": nanos(span.began),
                "endTimeUnixNano": nanos(span.ended),
                "attributes": span.attributes.iter().map(pair).collect::<Vec<_>>(),
                "links": links,
                // STATUS_CODE_ERROR and STATUS_CODE_OK.
                "status": match &span.fault {
                    Some(fault) => json!({ "code": 2, "message": fault }),
                    None => json!({ "code": 1 }),
                },
            })
        })
        .collect();
    let name = "rspp".to_owned();
    let version = env!("CARGO_PKG_VERSION");
    json!({
        "resourceSpans": [{
            "resource": { "attributes": [pair((&"service.name", &name))] },
            "scopeSpans": [{ "scope": { "name": name, "version": version }, "spans": told }],
        }],
    })
}
