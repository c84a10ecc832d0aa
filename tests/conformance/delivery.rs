//! What edges, merges and selects deliver in a running session: to whom, in which order, how often; the
//! same again after a restart and in a replay.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::Relaxed},
};
use std::time::Duration;

use rspp_host::{
    Event,
    node::{NodeContext, NodeError, Step, builtin::NodeRegistry},
};
use rspp_proto::{
    Payload, Speaker, TextChunk,
    spec::{EdgeSpec, PipelineSpec},
};
use rspp_provider_api::scripted::ScriptedStt;
use rspp_replay::Stage;
use rspp_tests::{
    call::{Builder, Cast, Ended, first, says},
    nodes::{Probes, Taken, branch, custom, edge, node, words},
};
use serde_json::{Value, json};

use crate::rerun::{PLAYBACK, again, record, whole};

/// Audit notes of a kind, with one of their fields.
fn audited(ended: &Ended, message: &str) -> Vec<std::collections::BTreeMap<String, String>> {
    let payloads = ended.log.payloads().into_iter();
    payloads
        .filter_map(|payload| match payload {
            Payload::Debug(note) if note.message == message => Some(note.fields),
            _something_else => None,
        })
        .collect()
}

/// Who got what, in the order in which it was handled.
type Handled = Arc<Mutex<Vec<(u64, &'static str)>>>;

/// F-004: one output goes to every node behind it, every event, in the order of the spec's edges; written
/// in another order they deliver in that one, and the same call delivers the same each time.
#[tokio::test(start_paused = true)]
async fn a_fan_out_delivers_in_the_order_of_its_edges() {
    async fn delivered(order: [&'static str; 3]) -> Vec<(u64, &'static str)> {
        let handled = Handled::default();
        let mut probes = Probes::default();
        for name in ["x", "y", "z"] {
            let to = Arc::clone(&handled);
            probes.add(name, move |_nth, _cx: &mut NodeContext, event: Event| {
                to.lock().unwrap().push((event.stamp.sequence, name));
                Step::OK
            });
        }
        probes.source("source", |nth, cx| {
            for n in 0..3 {
                cx.emit(words(nth, &format!("word {n}"), false));
            }
        });
        let edges = order.map(|name| json!({ "from": "source", "to": name, "carries": "text" }));
        let ended = Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(|spec| branch(spec, "source", &edges))
            .configure(probes.install())
            .hold()
            .await;
        assert_eq!(ended.endings(), ["commit"]);
        std::mem::take(&mut *handled.lock().unwrap())
    }
    for order in [["x", "y", "z"], ["z", "x", "y"]] {
        let got = delivered(order).await;
        assert!(got.len() > 300, "{}", got.len());
        let of = |name: &str| -> Vec<u64> {
            let of = got.iter().filter(|(_, to)| *to == name);
            of.map(|(sequence, _)| *sequence).collect()
        };
        let all: Vec<u64> = (1..=of("x").len() as u64).collect();
        for name in order {
            assert_eq!(of(name), all, "{name}");
        }
        for sequence in all {
            let to = got.iter().filter(|(of, _)| *of == sequence);
            let to: Vec<_> = to.map(|(_, name)| *name).collect();
            assert_eq!(to, order, "{sequence}");
        }
        assert_eq!(delivered(order).await, got);
    }
}

/// Two sources that take turns, of which the first one's way is the longer by 30 ms, and a merge.
async fn merged(order: &str) -> Vec<(Duration, String)> {
    let mut probes = Probes::default();
    for (name, at) in [("a", 0), ("b", 1)] {
        probes.source(name, move |nth, cx| {
            if nth <= 120 && nth % 6 == at * 3 {
                cx.emit(words(nth, &format!("{name}{nth}"), false));
            }
        });
    }
    probes.add("detour", |_nth, cx: &mut NodeContext, event: Event| {
        Step::Wait(Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(70)).await;
            cx.forward(event);
            Ok::<(), NodeError>(())
        }))
    });
    let (taken, _) = probes.sink("sink", Duration::ZERO);
    let heard = json!({ "max_queue_items": 10_000, "max_queue_ms": 600_000,
                        "max_queue_bytes": 100_000_000, "max_latency_contribution_ms": 600_000 });
    let began = tokio::time::Instant::now();
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            branch(
                spec,
                "a",
                &[json!({ "from": "a", "to": "detour", "carries": "text" })],
            );
            spec.nodes.push(custom("b"));
            spec.nodes.push(custom("sink"));
            let config = json!({ "order": order, "hold_ms": 200 });
            spec.nodes.push(node(
                json!({ "id": "join", "kind": "merge", "config": config }),
            ));
            for written in [
                json!({ "from": "ingress", "to": "b", "carries": "audio", "buffer": heard }),
                json!({ "from": "detour", "to": "join", "carries": "text" }),
                json!({ "from": "b", "to": "join", "carries": "text" }),
                json!({ "from": "join", "to": "sink", "carries": "text" }),
            ] {
                spec.edges.push(edge(written));
            }
        })
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    let taken = taken.events().into_iter();
    taken
        .filter_map(|(at, event)| match event.payload {
            Payload::Text(text) => Some((at - began, text.text.to_string())),
            _the_end => None,
        })
        .collect()
}

/// F-005: a merge of two sources gives everything of both in one stream, in the order that its policy
/// predicts: by timestamp the order in which things were made, whatever way they took; by priority the
/// order in which they come, since none waits for the other. The same each time.
#[tokio::test(start_paused = true)]
async fn a_merge_orders_as_its_policy_says() {
    let names = |got: &[(Duration, String)]| -> Vec<String> {
        got.iter().map(|(_, text)| text.clone()).collect()
    };
    let number = |name: &String| name[1..].parse::<u32>().unwrap();
    let by_time = merged("timestamp").await;
    let made = names(&by_time);
    assert_eq!(made.len(), 40);
    assert!(made.iter().map(number).is_sorted(), "{made:?}");
    assert!(
        made.windows(2).all(|two| two[0][..1] != two[1][..1]),
        "{made:?}"
    );
    assert_eq!(merged("timestamp").await, by_time);

    let by_source = merged("source_priority").await;
    let came = names(&by_source);
    assert_eq!(came.len(), 40);
    for source in ["a", "b"] {
        let of: Vec<_> = came.iter().filter(|it| it.starts_with(source)).collect();
        assert_eq!(of.len(), 20);
        assert!(of.iter().map(|it| number(it)).is_sorted(), "{of:?}");
    }
    // Made at 60 ms and 120 ms: the first takes 70 ms longer, and is not waited for.
    let at = |name: &str| came.iter().position(|it| it == name).unwrap();
    assert!(at("b9") < at("a6"), "{came:?}");
    assert_ne!(came, made);
    assert_eq!(merged("source_priority").await, by_source);
}

/// What a user says in the language of the hour, and in the other one.
fn in_language(segment: u32, text: &str, language: &str) -> Payload {
    let mut chunk = TextChunk::whole(Speaker::User, segment, text);
    chunk.language = Some(language.into());
    Payload::Text(Box::new(chunk))
}

/// F-006: a select reached from a spec forwards one of its inputs by the language that is spoken, changes
/// over in mid-session when that changes, and leaves an audit event for each change.
#[tokio::test(start_paused = true)]
async fn a_select_changes_over_in_mid_session_and_says_so() {
    let mut probes = Probes::default();
    probes.source("source", |nth, cx| {
        let language = if (30..60).contains(&nth) { "de" } else { "en" };
        if nth <= 90 && nth % 3 == 0 {
            cx.emit(in_language(nth, &format!("{language}{nth}"), language));
        }
    });
    for (name, mark) in [("english", "E:"), ("german", "G:")] {
        probes.add(name, move |_nth, cx: &mut NodeContext, event: Event| {
            let Payload::Text(text) = &event.payload else {
                cx.forward(event);
                return Step::OK;
            };
            let mut marked = (**text).clone();
            marked.text = format!("{mark}{}", marked.text).into();
            let mut event = event.clone();
            event.payload = Payload::Text(Box::new(marked));
            cx.forward(event);
            Step::OK
        });
    }
    let (taken, _) = probes.sink("sink", Duration::ZERO);
    let speaks = |language: &str| json!({ "attribute": "language", "is": "eq", "value": language });
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            let to = |name: &str| json!({ "from": "source", "to": name, "carries": "text" });
            branch(spec, "source", &[to("english"), to("german")]);
            spec.nodes
                .push(node(json!({ "id": "join", "kind": "select" })));
            spec.nodes.push(custom("sink"));
            for (from, language) in [("english", "en"), ("german", "de")] {
                spec.edges
                    .push(edge(json!({ "from": from, "to": "join", "carries": "text",
                    "when": speaks(language) })));
            }
            spec.edges.push(edge(
                json!({ "from": "join", "to": "sink", "carries": "text" }),
            ));
        })
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    let got = texts(&taken);
    let expected: Vec<String> = (1..=30)
        .map(|n| n * 3)
        .map(|n| {
            if (30..60).contains(&n) {
                format!("G:de{n}")
            } else {
                format!("E:en{n}")
            }
        })
        .collect();
    assert_eq!(got, expected);
    let chosen: Vec<_> = audited(&ended, "select")
        .into_iter()
        .map(|fields| fields["input"].clone())
        .collect();
    let (english, german) = ("english->join:text", "german->join:text");
    assert_eq!(chosen, [english, german, english]);
}

fn texts(taken: &Taken) -> Vec<String> {
    let events = taken.events().into_iter();
    events
        .filter_map(|(_, event)| match event.payload {
            Payload::Text(text) => Some(text.text.to_string()),
            _the_end => None,
        })
        .collect()
}

/// F-018: what a recogniser is not sure of takes another way than what it is sure of, by the confidence of
/// its words; each choice is on the record, and says the same as what arrived where.
#[tokio::test(start_paused = true)]
async fn doubtful_words_take_another_way_and_every_choice_is_recorded() {
    for (confidence, sure) in [(0.9, true), (0.4, false)] {
        let cast = Cast {
            stt: Arc::new(
                ScriptedStt::new("stt")
                    .utterances(["hello there"])
                    .confidence(confidence),
            ),
            ..Cast::default()
        };
        let mut probes = Probes::default();
        let (trusted, _) = probes.sink("trusted", Duration::ZERO);
        let (checked, _) = probes.sink("checked", Duration::ZERO);
        let ended = Builder::new(&cast, vec![says(first())])
            .pipeline(|spec| {
                for (name, is) in [("trusted", "ge"), ("checked", "lt")] {
                    spec.nodes.push(custom(name));
                    let sure = json!({ "attribute": "confidence", "is": is, "value": 0.6 });
                    spec.edges
                        .push(edge(json!({ "from": "stt", "to": name, "carries": "text",
                        "when": sure })));
                }
            })
            .configure(probes.install())
            .hold()
            .await;
        assert_eq!(ended.endings(), ["commit"]);
        let (got, other) = if sure {
            (trusted, checked)
        } else {
            (checked, trusted)
        };
        assert!(
            texts(&got).contains(&"hello there".to_owned()),
            "{:?}",
            texts(&got)
        );
        assert!(!texts(&other).contains(&"hello there".to_owned()));
        let choices = audited(&ended, "route");
        let of = |name: &str, taken: &str| {
            let edge = format!("stt->{name}:text");
            choices
                .iter()
                .filter(|fields| fields["edge"] == edge && fields["taken"] == taken)
                .count()
        };
        for (name, arrived) in [("trusted", sure), ("checked", !sure)] {
            assert!(
                of(name, if arrived { "yes" } else { "no" }) > 0,
                "{choices:?}"
            );
        }
        let taken = of("trusted", "yes") + of("checked", "yes");
        assert_eq!(taken, texts(&got).len() + texts(&other).len());
        assert_eq!(
            of("trusted", "yes") + of("trusted", "no"),
            of("checked", "yes") + of("checked", "no")
        );
    }
}

/// What each sink was given.
type Delivered = Vec<Vec<u64>>;

/// A source that crashes once in the middle of its bursts, and three sinks behind edges of their own kind.
fn crashing() -> (Probes, Vec<Taken>) {
    let mut probes = Probes::default();
    let crashed = AtomicBool::new(false);
    probes.source("source", move |nth, cx| {
        assert!(
            nth < 40 || crashed.swap(true, Relaxed),
            "scripted panic of a source"
        );
        for n in 0..nth % 5 {
            cx.emit(words(nth, &format!("word {n}"), false));
        }
    });
    let paces = [("keeps", 0), ("drops", 45), ("waits", 5)];
    let taken = paces.map(|(name, pace)| probes.sink(name, Duration::from_millis(pace)).0);
    (probes, taken.into())
}

fn crashing_graph(spec: &mut PipelineSpec) {
    let to = |name: &str, buffer: Value| json!({ "from": "source", "to": name, "carries": "text", "buffer": buffer });
    branch(
        spec,
        "source",
        &[
            to("keeps", json!({ "max_queue_items": 1_000 })),
            to(
                "drops",
                json!({ "strategy": "drop_oldest", "max_queue_items": 4 }),
            ),
            to(
                "waits",
                json!({ "strategy": "block", "max_queue_items": 4,
                "max_block_time_ms": 60_000 }),
            ),
        ],
    );
    let written = |edge: &EdgeSpec| edge.from.as_str() == "source";
    assert_eq!(spec.edges.iter().filter(|edge| written(edge)).count(), 3);
}

fn registry(probes: Probes) -> Arc<NodeRegistry> {
    let mut config = rspp_host::Config::new(
        rspp_provider_api::Providers::new(),
        rspp_host::Pools::in_virtual_time(1),
    );
    probes.install()(&mut config);
    config.nodes
}

/// F-008: bursts over edges that keep, drop and block: in order and at most once each, also over the
/// crash and restart of who sends them; and a replay of the recorded call delivers the same sequences
/// again.
#[tokio::test(start_paused = true)]
async fn edges_deliver_the_same_after_a_restart_and_in_a_replay() {
    let sequences = |taken: &[Taken]| -> Delivered { taken.iter().map(Taken::sequences).collect() };
    let (probes, taken) = crashing();
    let (recorder, entries) = record(&whole());
    let mut builder = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(crashing_graph)
        .configure(probes.install());
    builder.settings.session.recording_policy = Some(whole());
    builder.recorder = Some(recorder);
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert!(ended.report.node_failures >= 1, "it crashed");
    let delivered = sequences(&taken);
    for got in &delivered {
        assert!(got.len() > 20, "{}", got.len());
        assert!(got.is_sorted_by(|a, b| a < b), "{got:?}");
    }
    assert!(
        delivered[1].len() < delivered[0].len(),
        "something was dropped"
    );

    let baseline = entries.await.unwrap();
    let (probes, taken) = crashing();
    let stage = Stage {
        nodes: registry(probes),
        ..Stage::default()
    };
    let (rerun, _) = again(&baseline, PLAYBACK, stage).await.unwrap();
    assert_eq!(rerun.divergences, []);
    assert_eq!(sequences(&taken), delivered);
}
