//! A timeline as traces: one for each turn, with its stages, its nodes and their provider calls, in the form
//! that OpenTelemetry's collectors take (F-070, P30).

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use rspp_proto::{
    Monotonic, NodeId, OutcomeClass, PipelineVersion, SessionId, SpanId, TenantId, TraceId,
    TraceParent, TurnId, WallClock,
};
use serde_json::{Value, json};

use crate::{
    AttemptRecord, Entry, NodeWork, Segment, TerminalOutcome, ToolEntry, ToolStep, TurnBaseline,
};

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

/// Spans of a call that goes on, on their way to a collector.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanBatch {
    /// The spans.
    pub spans: Vec<Span>,
    /// A moment of their clock, and when that was on the calendar.
    pub tied: (Monotonic, WallClock),
}

/// Takes spans of calls that go on.
///
/// It never waits, whoever calls it is a session: what it has no room for is lost, and counted.
pub trait SpanSink: Send + Sync + 'static {
    /// Takes them, or loses them.
    fn offer(&self, batch: SpanBatch);
}

/// Attempts for no turn, and for turns that never came to an end, that are kept for the next turn.
const MOST_KEPT: usize = 64;
/// Turns that are over of which it is known that they were told.
const MOST_TOLD: usize = 16;

/// Whose spans are: every one says it, so that a collector can keep each tenant's for as long as it may (F-116).
#[derive(Clone, Debug)]
pub struct Whose {
    /// The tenant, where it is known.
    pub tenant: Option<TenantId>,
    /// The session.
    pub session: SessionId,
    /// The version of its pipeline.
    pub version: PipelineVersion,
}

/// Makes spans of what a session does, turn by turn.
#[derive(Debug)]
pub struct Tracer {
    whose: Whose,
    caller: Option<TraceParent>,
    work: Work,
    /// When nodes asked somebody for no turn, first and last: their spans end with the session.
    listening: BTreeMap<NodeId, (Monotonic, Monotonic)>,
    /// Turns that were told lately: what comes for them now comes late.
    told: VecDeque<TurnId>,
    spans: Vec<Span>,
}

impl Tracer {
    /// Makes the spans of a session; each turn's trace links to that of whoever called.
    pub fn new(whose: Whose, caller: Option<TraceParent>) -> Self {
        Self {
            whose,
            caller,
            work: Work::default(),
            listening: BTreeMap::new(),
            told: VecDeque::new(),
            spans: Vec::new(),
        }
    }

    /// A request to a provider is over.
    pub fn attempt(&mut self, attempt: &AttemptRecord) {
        match &attempt.turn_id {
            Some(turn) if self.told.contains(turn) => {
                let trace = TraceId::of(&self.whose.session, Some(turn));
                let parent = attempt.node_id.as_ref().map_or_else(
                    || SpanId::of_turn(trace),
                    |node| SpanId::of_node(trace, node),
                );
                self.spans.push(call(trace, Some(parent), attempt));
            }
            Some(_) | None => self.work.attempt(attempt),
        }
        if self.work.attempts() > MOST_KEPT {
            self.tell_others(None);
        }
    }

    /// A step of a tool call's life.
    pub fn tool(&mut self, step: &ToolEntry) {
        if !self.told.contains(&step.turn_id) {
            self.work.tool(step);
        }
    }

    /// A turn is over: its trace is told, and what was done for no turn since the one before.
    pub fn turn(&mut self, turn: &TurnBaseline) {
        let id = &turn.turn_id;
        let trace = TraceId::of(&self.whose.session, Some(id));
        let segments = turn.anchors.waterfall().segments;
        let links = self.tell_others(Some(id));
        if let Some(mut root) = root(turn, &segments, trace, self.caller) {
            root.links.extend(links);
            let stages = segments.iter().map(|segment| stage(turn, segment, &root));
            self.spans.extend(stages);
            let of_turn = self.work.take(Some(id));
            of_turn.tell(
                trace,
                Some(id),
                Some(&root),
                &turn.node_work,
                &mut self.spans,
            );
            self.spans.push(root);
        }
        if self.told.len() == MOST_TOLD {
            self.told.pop_front();
        }
        self.told.push_back(id.clone());
    }

    /// Tells what was done for others than this turn; where it is.
    fn tell_others(&mut self, but: Option<&TurnId>) -> Vec<TraceParent> {
        let mut links = Vec::new();
        // Recognition works for the session, and for turns that were refused nobody else has a trace.
        for of_turn in self.work.others(but) {
            let (turn, work) = of_turn;
            let trace = TraceId::of(&self.whose.session, turn.as_ref());
            if turn.is_some() {
                work.tell(trace, turn.as_ref(), None, &[], &mut self.spans);
                continue;
            }
            for attempt in &work.attempts {
                let node = attempt.node_id.as_ref();
                if let Some(node) = node {
                    let began_and_ended = (attempt.started_at, attempt.ended_at);
                    let (began, ended) = self
                        .listening
                        .entry(node.clone())
                        .or_insert(began_and_ended);
                    *began = attempt.started_at.min(*began);
                    *ended = attempt.ended_at.max(*ended);
                }
                let node = node.map(|node| SpanId::of_node(trace, node));
                let span = call(trace, node, attempt);
                links.push(TraceParent::new(trace, span.id));
                self.spans.push(span);
            }
        }
        links
    }

    /// The session is over.
    pub fn end(&mut self) {
        let _for_no_turn = self.tell_others(None);
        let trace = TraceId::of(&self.whose.session, None);
        for (node, (began, ended)) in std::mem::take(&mut self.listening) {
            self.spans
                .push(of_node(trace, None, None, &node, (began, ended)));
        }
    }

    /// What was made since the last time of asking.
    pub fn take(&mut self) -> Vec<Span> {
        let whose = &self.whose;
        let mut spans = std::mem::take(&mut self.spans);
        for span in &mut spans {
            let ids = [
                ("session.id", whose.session.to_string()),
                ("rspp.pipeline.version", whose.version.to_string()),
            ];
            span.attributes.extend(ids);
            let tenant = whose.tenant.as_ref();
            span.attributes
                .extend(tenant.map(|it| ("rspp.tenant.id", it.to_string())));
        }
        spans
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
    let version = entries.iter().find_map(|entry| match entry {
        Entry::Header(header) => Some(&header.pipeline_version),
        Entry::Turn(turn) => Some(&turn.pipeline_version),
        _another_entry => None,
    });
    let (Some(session), Some(version)) = (session, version) else {
        return Vec::new();
    };
    let tenant = entries.iter().find_map(|entry| match entry {
        Entry::Header(header) => header.tenant_id.clone(),
        Entry::Turn(turn) => turn.tenant_id.clone(),
        _another_entry => None,
    });
    let whose = Whose {
        tenant,
        session,
        version: version.clone(),
    };
    let mut tracer = Tracer::new(whose, caller);
    // What comes late in a recording is there all the same.
    for entry in entries {
        match entry {
            Entry::Attempt(attempt) => tracer.work.attempt(attempt),
            Entry::Tool(step) => tracer.work.tool(step),
            _no_work => {}
        }
    }
    for entry in entries {
        if let Entry::Turn(turn) = entry {
            tracer.turn(turn);
        }
    }
    tracer.end();
    tracer.take()
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
    let attributes = BTreeMap::from([
        ("rspp.turn.id", turn.turn_id.to_string()),
        ("rspp.plan.hash", turn.plan_hash.clone()),
    ]);
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
#[derive(Debug, Default)]
struct Work {
    turns: BTreeMap<Option<TurnId>, OfTurn>,
}

#[derive(Debug, Default)]
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

    /// Attempts that nobody was told of.
    fn attempts(&self) -> usize {
        let turns = self.turns.values();
        turns.map(|of_turn| of_turn.attempts.len()).sum()
    }

    /// All that is not of this turn, nor of a later one.
    fn others(&mut self, but: Option<&TurnId>) -> BTreeMap<Option<TurnId>, OfTurn> {
        let turns = std::mem::take(&mut self.turns);
        let (others, kept) = turns.into_iter().partition(|(turn, _)| match (turn, but) {
            (Some(turn), Some(but)) => turn.as_str() < but.as_str(),
            (None, _) | (Some(_), None) => true,
        });
        self.turns = kept;
        others
    }
}

/// What a node did for a turn, or for none, in that time.
fn of_node(
    trace: TraceId,
    turn: Option<&TurnId>,
    parent: Option<SpanId>,
    node: &NodeId,
    (began, ended): (Monotonic, Monotonic),
) -> Span {
    let mut attributes = BTreeMap::from([("rspp.node.id", node.to_string())]);
    attributes.extend(turn.map(|turn| ("rspp.turn.id", turn.to_string())));
    Span {
        trace,
        id: SpanId::of_node(trace, node),
        parent,
        name: format!("node {node}"),
        is_call: false,
        began,
        ended,
        attributes,
        links: Vec::new(),
        fault: None,
    }
}

/// One attempt at a provider.
fn call(trace: TraceId, parent: Option<SpanId>, attempt: &AttemptRecord) -> Span {
    let turn = attempt.turn_id.as_ref();
    let mut attributes: BTreeMap<_, _> = turn
        .map(|turn| ("rspp.turn.id", turn.to_string()))
        .into_iter()
        .collect();
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
    if let Some(node) = &attempt.node_id {
        attributes.insert("rspp.node.id", node.to_string());
    }
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
    Span {
        trace,
        id: SpanId::of_attempt(
            &attempt.provider_invocation_id,
            &attempt.provider_id,
            attempt.attempt,
        ),
        parent,
        name: format!("{} {}", attempt.modality.as_str(), attempt.provider_id),
        is_call: true,
        began: attempt.started_at,
        ended: attempt.ended_at,
        attributes,
        links: Vec::new(),
        fault,
    }
}

impl OfTurn {
    fn tell(
        self,
        trace: TraceId,
        turn: Option<&TurnId>,
        root: Option<&Span>,
        worked: &[NodeWork],
        spans: &mut Vec<Span>,
    ) {
        let parent = root.map(|root| root.id);
        let mut nodes = BTreeMap::<NodeId, Span>::new();
        for work in worked {
            let node = &work.node_id;
            let mut span = of_node(trace, turn, parent, node, (work.began_at, work.ended_at));
            // What listens does so all the time; of that, this is the turn's.
            if let Some(root) = root {
                span.began = span.began.clamp(root.began, root.ended);
                span.ended = span.ended.clamp(root.began, root.ended);
            }
            let busy = work.busy_us as f64 / 1e3;
            span.attributes.extend([
                ("rspp.node.handled", work.handled.to_string()),
                ("rspp.node.busy_ms", busy.to_string()),
            ]);
            nodes.insert(node.clone(), span);
        }
        for attempt in &self.attempts {
            let node = attempt.node_id.as_ref().map(|node| {
                let asked = (attempt.started_at, attempt.ended_at);
                let span = nodes
                    .entry(node.clone())
                    .or_insert_with(|| of_node(trace, turn, parent, node, asked));
                span.began = span.began.min(attempt.started_at);
                span.ended = span.ended.max(attempt.ended_at);
                span.id
            });
            spans.push(call(trace, node.or(parent), attempt));
        }
        spans.extend(nodes.into_values());
        for (call, steps) in self.tools {
            let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
                continue;
            };
            let mut attributes = BTreeMap::from([("rspp.tool.call", call.clone())]);
            attributes.extend(turn.map(|turn| ("rspp.turn.id", turn.to_string())));
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
