//! Listening in: subscribers by type, in-band measurements, debug events; and that none of it is felt.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rspp_host::{
    Capture, CaptureBounds, CaptureEnd, CpuProbe, Filter, Latency, LatencySeries, Notice,
    node::NodeContext,
};
use rspp_kernel::CancelReason;
use rspp_proto::{
    ErrorCode, ErrorNote, EventType, MetricSample, Monotonic, NodeId, Payload, SessionId, Speaker,
    abi::{EventRecord, Signal},
    metric::{Metric, MetricLabel},
    spec::{RecordingLevel, Threshold},
};
use rspp_tests::{
    call::{Builder, Call, Cast, Ended, after_reply, first, over_reply, says},
    nodes::{Probes, branch, custom, edge, words},
};
use rspp_timeline::{Entry, Options, Recorder};
use serde_json::json;
use tokio::sync::broadcast::{Receiver, error::TryRecvError};

/// All that a subscriber has heard so far.
fn heard(notices: &mut Receiver<Notice>) -> Vec<Notice> {
    let mut heard = Vec::new();
    loop {
        match notices.try_recv() {
            Ok(notice) => heard.push(notice),
            Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return heard,
        }
    }
}

fn kind(notice: &Notice) -> EventType {
    match notice {
        Notice::Event(event) => event
            .payload
            .as_ref()
            .map_or(EventType::Metrics, Payload::event_type),
        Notice::Foreign(_) => EventType::Debug,
        Notice::Signal(_) | Notice::State(_) | Notice::Turn(_) => EventType::Control,
    }
}

fn events(notices: &[Notice]) -> Vec<&EventRecord> {
    let events = notices.iter().filter_map(|notice| match notice {
        Notice::Event(event) => Some(&**event),
        Notice::Signal(_) | Notice::State(_) | Notice::Turn(_) | Notice::Foreign(_) => None,
    });
    events.collect()
}

fn node(id: &str) -> NodeId {
    NodeId::new(id).unwrap()
}

/// A call with a node that says something of each kind that nobody downstream asks for.
fn chatty(builder: Builder) -> Builder {
    let mut probes = Probes::default();
    probes.source("chatty", |nth, cx: &mut NodeContext| {
        if !nth.is_multiple_of(10) {
            return;
        }
        cx.emit(Payload::Metrics(Box::new(MetricSample {
            name: "probe_count".to_owned(),
            value: f64::from(nth),
            labels: BTreeMap::new(),
        })));
        cx.debug("a tenth frame", &[("nth", &nth.to_string())]);
        cx.emit(Payload::Error(Box::new(ErrorNote {
            error_code: ErrorCode::ProviderOverload,
            node_id: None,
            message: "as an example".to_owned(),
            retryable: true,
        })));
    });
    builder
        .pipeline(|spec| {
            spec.observe.debug = Some(true);
            branch(spec, "chatty", &[]);
        })
        .configure(probes.install())
}

/// F-022: of the six types each reaches those who asked for it and nobody else; who asks for nothing
/// in particular hears all but audio.
#[tokio::test(start_paused = true)]
async fn subscribers_hear_the_types_they_asked_for() {
    let types = [
        EventType::Audio,
        EventType::Text,
        EventType::Control,
        EventType::Metrics,
        EventType::Debug,
        EventType::Error,
    ];
    let call = chatty(Builder::new(&Cast::default(), vec![says(first())]))
        .start()
        .await;
    let mut usual = call.session.subscribe();
    let mut each: Vec<_> = types
        .iter()
        .map(|of| call.session.subscribe_to(Filter::of([*of])))
        .collect();
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["commit"]);
    for (of, notices) in types.iter().zip(&mut each) {
        let heard = heard(notices);
        let kinds: BTreeSet<_> = heard.iter().map(kind).collect();
        assert_eq!(kinds, BTreeSet::from([*of]));
        assert!(heard.len() > 2, "{of:?}: {}", heard.len());
        if *of == EventType::Audio {
            let made = events(&heard)
                .into_iter()
                .filter_map(|event| event.envelope.node_id.clone());
            let made: BTreeSet<_> = made.collect();
            assert_eq!(made, BTreeSet::from([node("ingress"), node("tts")]));
        }
    }
    let kinds: BTreeSet<_> = heard(&mut usual).iter().map(kind).collect();
    let all_but_audio: BTreeSet<_> = types.into_iter().skip(1).collect();
    assert_eq!(kinds, all_but_audio);
}

/// F-022, NF-008: by node and by signal; what is copied carries the session's ids.
#[tokio::test(start_paused = true)]
async fn subscribers_hear_the_nodes_and_signals_they_asked_for() {
    let call = Builder::new(&Cast::default(), vec![says(first())])
        .start()
        .await;
    let of_model = Filter::of([EventType::Text]).from_nodes([node("llm")]);
    let mut of_model = call.session.subscribe_to(of_model);
    let endings = Filter::of([EventType::Control]).only_signals([Signal::Commit, Signal::Abort]);
    let mut endings = call.session.subscribe_to(endings);
    let ended = call.end().await;
    let heard_of_model = heard(&mut of_model);
    let tokens = events(&heard_of_model);
    let said: String = tokens
        .iter()
        .filter_map(|event| match &event.payload {
            Some(Payload::Text(text)) => Some(text.text.to_string()),
            _the_end => None,
        })
        .collect();
    assert_eq!(said, ended.turn(1).agent_text);
    for token in tokens {
        assert_eq!(token.envelope.node_id, Some(node("llm")));
        assert_eq!(token.envelope.session_id.as_str(), "call");
        assert_eq!(token.envelope.turn_id, Some(ended.turn(1).turn_id.clone()));
        assert_eq!(
            token.envelope.pipeline_version,
            ended.report.pipeline_version
        );
    }
    let endings = heard(&mut endings);
    let [Notice::Signal(only)] = endings.as_slice() else {
        panic!("one ending: {endings:?}");
    };
    assert_eq!(only.signal, Signal::Commit);
}

/// F-022: a node gets what its edges declare, measurements included, and nothing else.
#[tokio::test(start_paused = true)]
async fn a_node_receives_the_types_that_its_edges_declare() {
    let mut probes = Probes::default();
    probes.source("source", |nth, cx: &mut NodeContext| {
        cx.emit(words(0, "word", false));
        cx.emit(Payload::Metrics(Box::new(MetricSample {
            name: "probe_count".to_owned(),
            value: f64::from(nth),
            labels: BTreeMap::new(),
        })));
    });
    let (texts, _) = probes.sink("reader", Duration::ZERO);
    let (metrics, _) = probes.sink("gauge", Duration::ZERO);
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            let edges = [
                json!({ "from": "source", "to": "reader", "carries": "text" }),
                json!({ "from": "source", "to": "gauge", "carries": "metrics" }),
            ];
            branch(spec, "source", &edges);
        })
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    let kinds = |of: Vec<(tokio::time::Instant, rspp_host::Event)>| -> BTreeSet<EventType> {
        of.iter()
            .map(|(_, event)| event.payload.event_type())
            .collect()
    };
    assert!(texts.events().len() > 50 && metrics.events().len() > 50);
    assert_eq!(kinds(texts.events()), BTreeSet::from([EventType::Text]));
    assert_eq!(
        kinds(metrics.events()),
        BTreeSet::from([EventType::Metrics])
    );
}

fn measured(every_ms: Option<u64>) -> Builder {
    Builder::new(
        &Cast::default(),
        vec![says(first()), says(over_reply(300)), says(after_reply())],
    )
    .pipeline(|spec| spec.observe.metrics_every_ms = every_ms)
}

/// F-026, F-068, F-069: on request, latency and depth of nodes and edges come in band, tagged and
/// named as documented; and are there to be asked for and in the report. Else there are none.
#[tokio::test(start_paused = true)]
async fn a_session_measures_itself_on_request() {
    let ended = measured(Some(200)).hold().await;
    let samples = ended.log.samples();
    let names: BTreeSet<_> = samples.iter().map(|sample| sample.name.as_str()).collect();
    for name in [
        "node_latency_ms",
        "edge_latency_ms",
        "edge_queue_depth",
        "cancel_latency_ms",
    ] {
        assert!(names.contains(name), "{names:?}");
    }
    for sample in &samples {
        assert!(sample.labels.contains_key("node_id"), "{sample:?}");
        assert_eq!(
            sample.labels["pipeline_version"],
            ended.report.pipeline_version.as_str()
        );
        if sample.name.starts_with("edge_") {
            assert!(sample.labels.contains_key("edge_id"), "{sample:?}");
        }
    }
    let of_model = samples
        .iter()
        .find(|s| s.labels["node_id"] == "llm" && s.name == "node_latency_ms");
    assert_eq!(of_model.unwrap().labels["provider_id"], "llm");
    let to_model = samples
        .iter()
        .find(|s| s.labels["node_id"] == "llm" && s.name == "edge_latency_ms");
    assert_eq!(to_model.unwrap().labels["provider_id"], "llm");
    let quantiles = samples
        .iter()
        .filter(|s| s.name == "node_latency_ms" && s.labels["node_id"] == "llm")
        .map(|s| s.labels["quantile"].as_str());
    let quantiles: BTreeSet<_> = quantiles.collect();
    assert_eq!(quantiles, BTreeSet::from(["0.5", "0.95", "0.99"]));
    // A series: each edge tells its depth each time.
    let series = samples.iter().filter(|sample| {
        sample.name == "edge_queue_depth" && sample.labels["edge_id"] == "tts->egress:audio"
    });
    let series: Vec<f64> = series.map(|sample| sample.value).collect();
    assert!(series.len() > 15, "{}", series.len());
    assert!(
        series.iter().any(|depth| *depth > 10.0),
        "synthesis is ahead: {series:?}"
    );
    assert!(series.contains(&0.0));

    let report = ended.report.measurements.as_ref().unwrap();
    assert_eq!(report.nodes[&node("llm")].node_type, "llm");
    let to_egress = report
        .edges
        .iter()
        .find(|(id, _)| id.as_str() == "tts->egress:audio")
        .unwrap();
    let latency = to_egress.1.latency;
    assert!(latency.samples > 50);
    // Synthesis is faster than speech: a frame waits for those before it.
    assert!(
        latency.p95_ms >= latency.p50_ms && latency.p95_ms > 100.0,
        "{latency:?}"
    );
    assert!(latency.p99_ms >= latency.p95_ms && latency.max_ms + 0.1 >= latency.p99_ms);

    let silent = measured(None).hold().await;
    assert_eq!(silent.log.samples(), []);
    assert!(silent.report.measurements.is_none());
    assert_eq!(
        silent.line.moments(),
        ended.line.moments(),
        "nobody hears a difference"
    );
}

/// F-069: the counters of an edge move only where its strategy does.
#[tokio::test(start_paused = true)]
async fn drop_and_merge_counters_move_on_their_own_edges_only() {
    let mut probes = Probes::default();
    probes.source("source", |_, cx: &mut NodeContext| {
        cx.emit(words(0, "word", false));
    });
    for sink in ["drops", "merges"] {
        probes.sink(sink, Duration::from_millis(60));
    }
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            spec.observe.metrics_every_ms = Some(500);
            let edge = |to: &str, strategy: &str| {
                json!({ "from": "source", "to": to, "carries": "text",
                        "buffer": { "strategy": strategy, "max_queue_items": 4 } })
            };
            branch(
                spec,
                "source",
                &[edge("drops", "drop_oldest"), edge("merges", "merge")],
            );
        })
        .configure(probes.install())
        .hold()
        .await;
    let edges = &ended.report.measurements.as_ref().unwrap().edges;
    let of = |to: &str| {
        edges
            .iter()
            .find(|(_, edge)| edge.node_id.as_str() == to)
            .unwrap()
            .1
    };
    assert!(
        of("drops").dropped > 50 && of("drops").merged == 0,
        "{:?}",
        of("drops")
    );
    assert!(
        of("merges").merged > 50 && of("merges").dropped == 0,
        "{:?}",
        of("merges")
    );
    assert!(of("drops").deepest == 4 && of("merges").deepest <= 4);
    let samples = ended.log.samples();
    let moved = |name: &str| -> BTreeSet<String> {
        let of = samples.iter().filter(|sample| sample.name == name);
        of.map(|sample| sample.labels["edge_id"].clone()).collect()
    };
    assert_eq!(
        moved("edge_drops_total"),
        BTreeSet::from(["source->drops:text".to_owned()])
    );
    assert_eq!(
        moved("edge_merges_total"),
        BTreeSet::from(["source->merges:text".to_owned()])
    );
}

/// F-040: each cancel is measured at each node that it reached and over the whole path, while the
/// session runs and in its report.
#[tokio::test(start_paused = true)]
async fn cancellation_latency_can_be_asked_for_by_node_and_session() {
    let call: Call = measured(Some(1_000)).start().await;
    call.log.until(Signal::Cancel, 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let so_far = call.session.measurements().unwrap();
    assert_eq!(so_far.cancel.samples, 1);
    let of_runtime = call.runtime.measurements();
    assert_eq!(
        of_runtime[call.session.id()],
        so_far,
        "the same, asked for by session"
    );
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["cancelled", "commit", "commit"]);
    let report = ended.report.measurements.as_ref().unwrap();
    for id in ["llm", "segmenter", "tts"] {
        let cancel = report.nodes[&node(id)].cancel;
        assert_eq!(cancel.samples, 1, "{id}");
        assert!(cancel.p99_ms <= 75.0, "{id}: within the grace");
    }
    assert_eq!(
        report.nodes[&node("stt")].cancel.samples,
        0,
        "listening goes on"
    );
    assert_eq!(report.cancel.samples, 1);
    assert!(report.cancel.p95_ms <= 150.0);
}

/// F-054: the same slow recognition behind a short and behind a long buffer: the one answers sooner
/// and hears less, the other hears all; and the measurements show both.
#[tokio::test(start_paused = true)]
async fn audio_buffering_trades_latency_for_accuracy() {
    let run = async |buffer: serde_json::Value| {
        let mut probes = Probes::default();
        let (taken, _) = probes.sink("slow_ear", Duration::from_millis(30));
        let ended = Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(|spec| {
                spec.observe.metrics_every_ms = Some(500);
                spec.nodes.push(custom("slow_ear"));
                spec.edges
                    .push(edge(json!({ "from": "ingress", "to": "slow_ear",
                    "carries": "audio", "buffer": buffer })));
            })
            .configure(probes.install())
            .hold()
            .await;
        let edges = &ended.report.measurements.as_ref().unwrap().edges;
        let of_ear = edges
            .iter()
            .find(|(_, edge)| edge.node_id.as_str() == "slow_ear")
            .unwrap();
        let of_ear = of_ear.1.clone();
        (taken.sequences().len(), of_ear)
    };
    let (_, quick) = run(json!({ "tune": "latency_first" })).await;
    let (_, exact) = run(json!({ "tune": "accuracy_first" })).await;
    assert!(quick.latency.p95_ms <= 120.0, "{quick:?}");
    assert!(
        exact.latency.p95_ms > 3.0 * quick.latency.p95_ms,
        "{exact:?}"
    );
    assert!(
        quick.dropped > 20 && exact.dropped == 0,
        "{} and {}",
        quick.dropped,
        exact.dropped
    );
    assert!(exact.deepest > 4 * quick.deepest);
}

/// What a caller and a log notice of a call.
fn business(ended: &Ended) -> impl PartialEq + std::fmt::Debug {
    let texts: Vec<_> = [Speaker::User, Speaker::Agent]
        .map(|speaker| ended.log.texts(speaker))
        .into_iter()
        .flatten()
        .map(|text| (text.text.to_string(), text.is_final))
        .collect();
    let turns: Vec<_> = ended
        .report
        .turns
        .iter()
        .map(|turn| {
            let mut anchors = turn.anchors_ms(Monotonic::ZERO);
            // How long a fence takes is real time.
            anchors.retain(|name, _| !name.contains("fence"));
            (
                anchors,
                turn.agent_text_played.clone(),
                turn.plan_hash.clone(),
            )
        })
        .collect();
    (ended.line.moments(), ended.signals(), texts, turns)
}

fn debug_events(ended: &Ended) -> usize {
    let of = |payload: &Payload| payload.event_type() == EventType::Debug;
    ended
        .log
        .payloads()
        .iter()
        .filter(|payload| of(payload))
        .count()
}

fn debug_entries(entries: &[Entry]) -> usize {
    let debug = entries.iter().filter(|entry| match entry {
        Entry::Event(event) => matches!(event.record.payload, Some(Payload::Debug(_))),
        _something_else => false,
    });
    debug.count()
}

/// F-027: debug events are off, and turning them on changes nothing else: same audio at the same
/// times, same words, same signals, same plan.
#[tokio::test(start_paused = true)]
async fn debug_events_change_nothing_else() {
    let said = || vec![says(first()), says(over_reply(300)), says(after_reply())];
    let run = async |debug: Option<bool>, level| {
        let mut builder = chatty(Builder::new(&Cast::default(), said()));
        builder.pipeline.observe.debug = None;
        builder.settings.session.observe.debug = debug;
        let (recorder, recording) = Recorder::in_memory(Options {
            level,
            ..Options::default()
        });
        builder.recorder = Some(recorder);
        (builder.hold().await, debug_entries(&recording.entries()))
    };
    // What each event goes through is written down where everything is.
    let (off, none) = run(None, RecordingLevel::L2).await;
    let (some, unkept) = run(Some(true), RecordingLevel::L1).await;
    let (on, kept) = run(Some(true), RecordingLevel::L2).await;
    assert_eq!((none, unkept), (0, 0));
    assert!(kept > 20, "{kept}");
    assert_eq!(business(&off), business(&some));
    assert_eq!(business(&off), business(&on));
    assert_eq!(debug_events(&off), 0);
    assert!(debug_events(&on) > 20, "{}", debug_events(&on));
}

/// F-076: debug events of one session are captured for a while and up to a number; the other
/// sessions of the runtime feel nothing, and neither does the one.
#[tokio::test(start_paused = true)]
async fn a_capture_reaches_one_session_and_ends_by_itself() {
    let run = async |capture: bool| {
        let mut builder = Builder::new(&Cast::default(), Vec::new());
        let runtime = builder.runtime().await;
        let mut placed = Vec::new();
        for n in 0..8 {
            let mut builder =
                Builder::new(&Cast::default(), vec![says(first()), says(after_reply())]);
            builder.session = SessionId::new(format!("call-{n}")).unwrap();
            placed.push(builder.open(&runtime).await.unwrap());
        }
        let mut captures = Vec::new();
        if capture {
            let bounds = |length, events, bytes| CaptureBounds {
                length,
                events,
                bytes,
            };
            let long = Duration::from_mins(1);
            let timed = bounds(Duration::from_secs(1), 10_000, u64::MAX);
            captures.push(placed[3].session.capture(timed));
            captures.push(placed[5].session.capture(bounds(long, 50, u64::MAX)));
            // Two of one session, each with an end of its own.
            captures.push(placed[5].session.capture(bounds(long, 10_000, 9_000)));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let within: Vec<_> = captures.iter_mut().map(captured).collect();
        let mut felt = Vec::new();
        for placed in placed {
            let ended = placed.end().await;
            felt.push((ended.line.moments(), debug_events(&ended)));
        }
        let after: Vec<_> = captures.iter_mut().map(captured).collect();
        let ends: Vec<_> = captures.iter().map(Capture::ended).collect();
        (felt, within, after, ends)
    };
    let (usual, ..) = run(false).await;
    let (felt, within, after, ends) = run(true).await;
    let expected = [CaptureEnd::Time, CaptureEnd::Events, CaptureEnd::Bytes];
    assert_eq!(ends, expected.map(Some));
    for (n, (usual, felt)) in usual.iter().zip(&felt).enumerate() {
        assert_eq!(usual.0, felt.0, "call {n} is heard as ever");
        assert_eq!(
            felt.1 > 0,
            n == 3 || n == 5,
            "call {n}: {} debug events",
            felt.1
        );
    }
    assert!(within[0].len() > 100, "{}", within[0].len());
    assert!(
        within[0]
            .iter()
            .all(|notice| kind(notice) == EventType::Debug)
    );
    let last = events(&within[0])
        .last()
        .unwrap()
        .envelope
        .runtime_timestamp_ms;
    assert!((900..=1_001).contains(&last), "until {last} ms");
    assert_eq!(after[0].len(), 0, "it has ended by itself");
    assert_eq!(
        within[1].len() + after[1].len(),
        50,
        "bounded in number too"
    );
    let third = within[2].len() + after[2].len();
    assert!((10..=36).contains(&third), "and in bytes: {third}");
}

/// F-076: a node with too much to do has nothing to spare for who looks on.
#[tokio::test(start_paused = true)]
async fn a_capture_ends_where_it_would_be_at_the_cost_of_others() {
    let busy = Arc::new(AtomicU64::new(10));
    let probe = Arc::clone(&busy);
    let call = Builder::new(&Cast::default(), vec![says(first()), says(after_reply())])
        .configure(move |config| {
            config.cpu = Arc::new(Busy(probe));
            config.limits.overload.cpu_percent = Some(Threshold {
                low: 60,
                high: 80,
                severe: 101,
            });
        })
        .start()
        .await;
    let mut capture = call.session.capture(CaptureBounds {
        length: Duration::from_mins(1),
        events: u32::MAX,
        bytes: u64::MAX,
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(captured(&mut capture).len() > 10);
    assert_eq!(capture.ended(), None);
    busy.store(100, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    captured(&mut capture);
    assert_eq!(capture.ended(), Some(CaptureEnd::Overload));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(captured(&mut capture).len(), 0);
    call.end().await;
}

/// How busy the processors are, as a test says.
struct Busy(Arc<AtomicU64>);

impl CpuProbe for Busy {
    fn cpu_percent(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed))
    }
}

/// F-068: latencies of nodes and edges are one series by version and provider over all calls, those that
/// are over included: what a metrics backend asks for.
#[tokio::test(start_paused = true)]
async fn latencies_of_all_calls_are_series_by_version_and_provider() {
    let mut builder = measured(Some(1_000));
    let runtime = builder.runtime().await;
    let mut counts = Vec::new();
    for n in 0..3 {
        let mut builder = measured(Some(1_000));
        builder.session = SessionId::new(format!("call-{n}")).unwrap();
        let ended = builder.open(&runtime).await.unwrap().end().await;
        let version = ended.report.pipeline_version.to_string();
        let series = runtime.latencies();
        let find = |metric, node: &str| {
            let found = series.iter().find(|series| {
                series.metric == metric
                    && series.labels.contains(&(MetricLabel::NodeId, node.into()))
            });
            found.unwrap_or_else(|| panic!("{metric:?} of {node}"))
        };
        for (metric, node) in [
            (Metric::NodeLatency, "llm"),
            (Metric::EdgeLatency, "llm"),
            (Metric::ProviderRtt, "llm"),
        ] {
            let series = find(metric, node);
            let labels: BTreeMap<_, _> = series.labels.iter().cloned().collect();
            assert_eq!(labels[&MetricLabel::PipelineVersion], version);
            assert_eq!(labels[&MetricLabel::ProviderId], node);
            let Latency {
                p50_ms,
                p95_ms,
                p99_ms,
                max_ms,
                ..
            } = series.latency;
            assert!(p50_ms <= p95_ms && p95_ms <= p99_ms && p99_ms <= max_ms + 0.1);
        }
        // Synthesis is faster than speech: its frames wait.
        let waited = |it: &LatencySeries| it.metric == Metric::EdgeLatency && it.sum_ms > 1_000.0;
        assert!(series.iter().any(waited));
        counts.push(find(Metric::ProviderRtt, "llm").latency.samples);
    }
    assert_eq!(counts, [counts[0], 2 * counts[0], 3 * counts[0]]);
    assert!(runtime.measurements().is_empty(), "no call is open");
}

fn captured(capture: &mut Capture) -> Vec<Notice> {
    std::iter::from_fn(|| capture.try_next()).collect()
}

/// F-142, P22: a subscriber who never reads holds nobody up and costs nobody else a notice.
#[tokio::test(start_paused = true)]
async fn a_subscriber_who_never_reads_holds_nobody_up() {
    let call = Builder::new(&Cast::default(), vec![says(first()), says(after_reply())])
        .start()
        .await;
    let everything = [
        EventType::Audio,
        EventType::Text,
        EventType::Control,
        EventType::Metrics,
    ];
    let mut lazy = call.session.subscribe_to(Filter::of(everything));
    let receipt = call.session.cancel(CancelReason::UserCancel).await;
    assert!(receipt.is_some());
    let ended = call.end().await;
    let usual = Builder::new(&Cast::default(), vec![says(first()), says(after_reply())])
        .hold()
        .await;
    assert_eq!(ended.line.moments(), usual.line.moments());
    assert!(lazy.len() <= 1_024);
    assert!(matches!(
        lazy.try_recv(),
        Ok(_) | Err(TryRecvError::Lagged(_))
    ));
}
