//! Traces, logs, events and measurements of a real runtime, and that all of them are of the same turns.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::{Span, span::SpanKind, status::StatusCode as Ended},
};
use prost::Message as _;
use rspp_proto::{SessionId, SpanId, TraceId, TurnNumber, spec::PipelineSpec};
use rspp_tests::call::tone;
use rspp_websocket::{
    protocol::{Hello, ServerMessage},
    testing::{Client, typed},
};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::process::{Program, Running};

/// What a collector was given.
#[derive(Clone, Default)]
struct Collected {
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    /// Whether it answers.
    is_silent: bool,
}

impl Collected {
    fn take(&self, request: ExportTraceServiceRequest) {
        self.requests.lock().unwrap().push(request);
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.requests.lock().unwrap();
        let scopes = requests.iter().flat_map(|it| &it.resource_spans);
        let scopes = scopes.flat_map(|it| &it.scope_spans);
        scopes.flat_map(|it| it.spans.clone()).collect()
    }

    /// What all requests say of who sent them.
    fn resource(&self) -> BTreeMap<String, String> {
        let requests = self.requests.lock().unwrap();
        let resource = requests[0].resource_spans[0].resource.clone().unwrap();
        resource.attributes.iter().map(attribute).collect()
    }
}

#[tonic::async_trait]
impl TraceService for Collected {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.take(request.into_inner());
        if self.is_silent {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector that speaks gRPC; its address.
async fn collector(collected: &Collected) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let service = TraceServiceServer::new(collected.clone());
    let serving = Server::builder()
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serving);
    format!("http://{at}")
}

fn attribute(pair: &opentelemetry_proto::tonic::common::v1::KeyValue) -> (String, String) {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    let value = match pair.value.as_ref().and_then(|it| it.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        other => panic!("no text: {other:?}"),
    };
    (pair.key.clone(), value)
}

fn attributes(span: &Span) -> BTreeMap<String, String> {
    span.attributes.iter().map(attribute).collect()
}

/// A runtime that sends traces there.
async fn runtime(dir: &std::path::Path, more: &[&str], environment: &[(&str, &str)]) -> Running {
    let pipeline = dir.join("pipeline.json");
    let mut spec = serde_json::to_value(PipelineSpec::simple()).unwrap();
    spec["observe"] = serde_json::json!({"debug": true, "metrics_every_ms": 100});
    std::fs::write(&pipeline, spec.to_string()).unwrap();
    let pipeline = format!("pipeline={}", pipeline.display());
    let settings = [
        "listen.calls=127.0.0.1:0",
        "listen.health=127.0.0.1:0",
        "providers.scripted=true",
        "name=teller",
        &pipeline,
    ];
    let settings = settings.into_iter().chain(more.iter().copied());
    let arguments: Vec<&str> = settings.flat_map(|it| ["--set", it]).collect();
    Running::start(Program::Runtime, dir, "runtime", &arguments, environment).await
}

async fn client(running: &Running) -> (Client, SessionId) {
    let hello = Hello {
        events: true,
        ..Hello::default()
    };
    let client = Client::begin(running.at("calls"), hello).await;
    let session = client.ready.as_ref().unwrap().session.clone();
    (client, session)
}

async fn turn_of(client: &mut Client) -> Vec<ServerMessage> {
    client
        .until(|message| matches!(message, ServerMessage::Turn(_)))
        .await
}

async fn types(client: &mut Client, text: &str) -> Vec<ServerMessage> {
    client.say(typed(text)).await;
    turn_of(client).await
}

/// F-070, F-067, F-013, F-116, NF-008: a real runtime pushes its traces to a collector: one trace a turn, with a span for
/// each node of the pipeline and each provider call, each within its parent, tied to tenant, session, turn and
/// pipeline version; what still waits when it is asked to end is sent. Its log is JSON line by line, each with the ids,
/// and what a client hears of turns, what is logged, traced and measured is of the same ids.
#[tokio::test(flavor = "multi_thread")]
async fn traces_logs_events_and_measurements_are_of_the_same_turns() {
    let dir = tempfile::tempdir().unwrap();
    let collected = Collected::default();
    let url = format!("telemetry.otlp.url={}", collector(&collected).await);
    let log = "log={format: json, filter: 'debug,rspp_host=trace,rspp_actors=trace'}";
    let running = runtime(dir.path(), &[&url, log], &[]).await;
    let (mut caller, session) = client(&running).await;
    caller.speak_slowly(&tone(Duration::from_secs(1))).await;
    caller.speak_slowly(&vec![0; 16_000 * 2]).await;
    let mut came = turn_of(&mut caller).await;
    came.extend(types(&mut caller, "My name is Ada.").await);
    let measured = running.get("/metrics").await;
    // The second turn has just ended: its spans wait to be sent with others.
    caller.bye().await;
    drop(caller);
    let log = running.end().await;

    // Events that the client was told of.
    let turns: BTreeSet<String> = came
        .iter()
        .filter_map(|message| match message {
            ServerMessage::Turn(turn) => Some(turn.turn.to_string()),
            _another_message => None,
        })
        .collect();
    let expected = [TurnNumber(1), TurnNumber(2)].map(|turn| turn.id().to_string());
    assert_eq!(turns, expected.iter().cloned().collect());

    // Traces.
    let version = PipelineSpec::simple().version.to_string();
    let spans = collected.spans();
    let resource = collected.resource();
    assert_eq!(resource["service.name"], "rspp-runtime");
    assert_eq!(resource["service.instance.id"], "teller");
    let mut ids = BTreeSet::new();
    for span in &spans {
        let known = attributes(span);
        assert_eq!(known["session.id"], session.as_str(), "{span:?}");
        assert_eq!(known["rspp.pipeline.version"], version, "{span:?}");
        assert_eq!(known["rspp.tenant.id"], "local", "{span:?}");
        assert!(
            span.start_time_unix_nano <= span.end_time_unix_nano,
            "{span:?}"
        );
        assert!(ids.insert(span.span_id.clone()), "told twice: {span:?}");
        let status = span.status.as_ref().unwrap();
        assert_eq!(status.code, Ended::Ok as i32, "{span:?}");
    }
    // Per turn a handful, and none for a frame.
    assert!(spans.len() < 80, "{} spans of two turns", spans.len());
    for number in [TurnNumber(1), TurnNumber(2)] {
        let turn = number.id();
        let trace = TraceId::of(&session, Some(&turn));
        let of_turn: Vec<&Span> = spans
            .iter()
            .filter(|span| span.trace_id == trace.bytes())
            .collect();
        let root = SpanId::of_turn(trace).bytes();
        let root = of_turn.iter().find(|span| span.span_id == root);
        let root = root.unwrap_or_else(|| panic!("{turn} has no root: {spans:?}"));
        assert!(root.parent_span_id.is_empty());
        let by_id: BTreeMap<_, _> = of_turn.iter().map(|span| (&span.span_id, span)).collect();
        let mut stages = Vec::new();
        let mut nodes = BTreeMap::new();
        let mut calls = Vec::new();
        for span in &of_turn {
            let known = attributes(span);
            assert_eq!(known["rspp.turn.id"], turn.as_str(), "{span:?}");
            if span.span_id == root.span_id {
                continue;
            }
            let parent = by_id.get(&span.parent_span_id);
            let parent = parent.unwrap_or_else(|| panic!("nobody's: {span:?}"));
            assert!(
                parent.start_time_unix_nano <= span.start_time_unix_nano
                    && span.end_time_unix_nano <= parent.end_time_unix_nano,
                "{span:?} leads out of {parent:?}"
            );
            if known.contains_key("rspp.stage") {
                stages.push(*span);
            } else if span.kind == SpanKind::Client as i32 {
                assert!(parent.name.starts_with("node "), "{parent:?}");
                calls.push(span.name.clone());
            } else {
                let handled: u64 = known["rspp.node.handled"].parse().unwrap();
                assert!(handled > 0, "{span:?}");
                assert_eq!(parent.span_id, root.span_id);
                nodes.insert(known["rspp.node.id"].clone(), *span);
            }
        }
        // Where the turn's time went adds up to the turn.
        stages.sort_by_key(|span| (span.start_time_unix_nano, span.end_time_unix_nano));
        let took: u64 = stages
            .iter()
            .map(|span| span.end_time_unix_nano - span.start_time_unix_nano)
            .sum();
        assert_eq!(took, root.end_time_unix_nano - root.start_time_unix_nano);
        let wanted: &[&str] = match number {
            // Spoken: all six nodes had something to do. Typed: whoever listens may have been idle.
            TurnNumber(1) => &["llm", "segmenter", "stt", "tts", "turn", "vad"],
            _typed => &["llm", "segmenter", "tts"],
        };
        for node in wanted {
            assert!(nodes.contains_key(*node), "{node} of {turn}: {nodes:?}");
        }
        assert!(calls.iter().any(|it| it == "llm dialogue"), "{calls:?}");
        assert!(calls.iter().any(|it| it == "tts scripted"), "{calls:?}");
    }
    // Recognition works for the session, and the turn that it led to links to it.
    let listening = TraceId::of(&session, None).bytes();
    let heard = spans.iter().find(|span| span.name == "stt scripted");
    let heard = heard.expect("somebody recognised the user's words");
    assert_eq!(heard.trace_id, listening);
    let mut linked = spans.iter().flat_map(|span| &span.links);
    assert!(linked.any(|it| it.span_id == heard.span_id));

    // Logs.
    let mut logged = BTreeMap::<&str, BTreeSet<String>>::new();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        for key in [
            "tenant_id",
            "session_id",
            "turn_id",
            "node_id",
            "pipeline_version",
        ] {
            let value = line.get(key).unwrap_or_else(|| panic!("no {key}: {line}"));
            logged
                .entry(key)
                .or_default()
                .extend(value.as_str().map(str::to_owned));
        }
        if line["node_id"].is_string() || line["turn_id"].is_string() {
            assert!(line["session_id"].is_string(), "{line}");
        }
    }
    assert_eq!(logged["tenant_id"], ["local".to_owned()].into());
    assert_eq!(logged["session_id"], [session.to_string()].into());
    assert_eq!(logged["pipeline_version"], [version.clone()].into());
    assert!(
        logged["turn_id"].iter().all(|turn| turns.contains(turn)),
        "{logged:?}"
    );
    assert!(logged["node_id"].len() >= 3, "{logged:?}");

    // Measurements: by version, and by nothing that there may be any number of.
    let of_nodes = measured
        .lines()
        .filter(|it| it.starts_with("node_latency_ms{"));
    let of_nodes: Vec<_> = of_nodes.collect();
    assert!(!of_nodes.is_empty(), "{measured}");
    for line in of_nodes {
        assert!(
            line.contains(&format!("pipeline_version=\"{version}\"")),
            "{line}"
        );
    }
    for unbounded in [session.as_str(), "turn-0", "session_id", "turn_id"] {
        assert!(!measured.contains(unbounded), "{unbounded} in {measured}");
    }
    let exported = measured
        .lines()
        .find(|it| it.starts_with("telemetry_spans_total{"));
    assert!(exported.is_some(), "{measured}");
}

/// F-070: a collector that takes connections and never answers delays no turn; what it cannot be given is lost and
/// counted, and the runtime ends in time all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_costs_spans_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let collected = Collected {
        is_silent: true,
        ..Collected::default()
    };
    let url = format!("telemetry.otlp.url={}", collector(&collected).await);
    let running = runtime(dir.path(), &[&url, "telemetry.otlp.queue=1"], &[]).await;
    let (mut caller, _session) = client(&running).await;
    for turn in 0..6 {
        let came = types(&mut caller, &format!("Hello, number {turn}.")).await;
        let Some(ServerMessage::Turn(over)) = came.last() else {
            panic!("{came:?}")
        };
        assert_eq!(over.outcome, "commit", "{over:?}");
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    let measured = running.get("/metrics").await;
    let dropped = measured
        .lines()
        .find_map(|line| line.strip_prefix("telemetry_spans_total{outcome=\"dropped\"} "));
    let dropped: f64 = dropped.expect(&measured).parse().unwrap();
    assert!(dropped > 0.0, "{measured}");
    caller.bye().await;
    let asked = tokio::time::Instant::now();
    let _log = running.end().await;
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(12), "{took:?}");
}

/// F-070, F-117: over HTTP as well, to a collector that lets in only whoever shows its token; which is in no log.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_over_http_sees_its_token() {
    const TOKEN: &str = "canary-collector-0815";
    let dir = tempfile::tempdir().unwrap();
    let collected = Collected::default();
    let taken = collected.clone();
    let take = move |headers: HeaderMap, body: Bytes| async move {
        let shown = headers.get("authorization").and_then(|it| it.to_str().ok());
        if shown != Some(&format!("Bearer {TOKEN}")) {
            return StatusCode::UNAUTHORIZED;
        }
        assert_eq!(headers["content-type"], "application/x-protobuf");
        taken.take(ExportTraceServiceRequest::decode(body).unwrap());
        StatusCode::OK
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let router = Router::new().route("/v1/traces", post(take));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let otlp = format!(
        "telemetry.otlp={{url: 'http://{at}', protocol: http, token: env://COLLECTOR_TOKEN, queue: 64}}"
    );
    let settings = [&*otlp, "log={filter: trace, format: json}"];
    let running = runtime(dir.path(), &settings, &[("COLLECTOR_TOKEN", TOKEN)]).await;
    let (mut caller, session) = client(&running).await;
    let _came = types(&mut caller, "Hello.").await;
    let answers = [
        running.get("/metrics").await,
        running.get("/status").await,
        running.end().await,
    ];
    let trace = TraceId::of(&session, Some(&TurnNumber(1).id()));
    let spans = collected.spans();
    assert!(
        spans.iter().any(|span| span.trace_id == trace.bytes()),
        "{spans:?}"
    );
    for answer in answers {
        assert!(!answer.contains("canary"), "{answer}");
    }
}
