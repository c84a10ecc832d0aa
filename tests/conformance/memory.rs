//! What a session holds in memory, and what it may.

use std::sync::{Arc, atomic::AtomicU32};

use rspp_host::{
    Event,
    node::{NodeContext, Step},
};
use rspp_kernel::SessionState;
use rspp_proto::{
    MetricSample, Payload, SessionId, Speaker, TextChunk,
    abi::Signal,
    spec::{MemoryLimits, PipelineSpec},
};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Cast, Ended, REPLY, after_reply, assert_nothing_left, first, says},
    nodes::{Probes, add, custom, forward, insert},
};
use serde_json::json;

const KIB: usize = 1024;

fn limited(spec: &mut PipelineSpec, soft: usize, cap: usize) {
    spec.memory = MemoryLimits {
        soft_bytes: (soft * KIB) as u64,
        cap_bytes: (cap * KIB) as u64,
    };
}

/// A call whose node `probe`, behind the model, holds 100 KiB more with each word.
async fn hoarding(soft: usize, cap: usize) -> Ended {
    let mut probes = Probes::default();
    probes.add("probe", |nth, cx: &mut NodeContext, event: Event| {
        cx.hold(nth as usize * 100 * KIB);
        forward(nth, cx, event)
    });
    let said = vec![says(first()), says(after_reply())];
    Builder::new(&Cast::default(), said)
        .pipeline(|spec| {
            insert(spec, "llm", custom("probe"), "segmenter");
            limited(spec, soft, cap);
        })
        .configure(probes.install())
        .hold()
        .await
}

/// P19, F-107: a session over its cap ends in order, and says what was too much; what it held is given
/// back.
#[tokio::test(start_paused = true)]
async fn a_session_over_its_cap_ends_and_says_why() {
    let ended = hoarding(500, 700).await;
    assert_eq!(ended.report.state, SessionState::Ended);
    let why = &ended.report.ended;
    assert!(why.starts_with("session_memory_cap: "), "{why}");
    assert!(why.ends_with("716800 may be"), "{why}");
    assert_eq!(ended.endings(), ["budget_exhausted"]);
    assert_eq!(ended.log.reasons_of(Signal::Shed), ["session_memory_cap"]);
    assert_eq!(
        ended.log.reasons_of(Signal::Degrade),
        ["session_memory_soft_mark", "session_memory_cap"]
    );
    let memory = ended.report.memory.expect("it is told");
    assert!(memory.peak > 700 * KIB as u64, "{memory:?}");
    // The turn's nodes are gone, and what they held with them.
    assert!(memory.held < 300 * KIB as u64, "{memory:?}");
}

/// P19: between the soft mark and the cap a session goes on, degraded.
#[tokio::test(start_paused = true)]
async fn a_session_over_its_soft_mark_goes_on() {
    let ended = hoarding(500, 10_000).await;
    assert_eq!(ended.endings(), ["commit", "commit"]);
    assert_eq!(ended.turn(2).agent_text_played, REPLY);
    assert_eq!(ended.report.degraded.len(), 1, "it is said once");
    assert_eq!(ended.report.degraded[0].reason, "session_memory_soft_mark");
}

/// F-107: the operator's limit holds whatever the pipeline allows itself, and what one session holds is
/// no other's trouble.
#[tokio::test(start_paused = true)]
async fn a_session_over_its_cap_is_no_others_trouble() {
    let mut probes = Probes::default();
    let seen = AtomicU32::new(0);
    probes.add("probe", move |nth, cx: &mut NodeContext, event: Event| {
        if add(&seen) == 3 {
            cx.hold(5_000 * KIB);
        }
        forward(nth, cx, event)
    });
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm")),
        ..Cast::default()
    };
    let install = probes.install();
    let mut host = Builder::new(&cast, vec![]).configure(|config| {
        install(config);
        config.session_memory = MemoryLimits {
            soft_bytes: 1_000 * KIB as u64,
            cap_bytes: 2_000 * KIB as u64,
        };
    });
    let runtime = host.runtime().await;
    let mut calls = Vec::new();
    for name in ["greedy", "modest"] {
        let mut builder = Builder::new(&cast, vec![says(first())]);
        builder.session = SessionId::new(name).unwrap();
        if name == "greedy" {
            builder = builder.pipeline(|spec| insert(spec, "llm", custom("probe"), "segmenter"));
        }
        calls.push(builder.open(&runtime).await.expect("the session opens"));
    }
    let modest = calls.pop().expect("two calls");
    let greedy = calls.pop().expect("two calls");
    assert_eq!(greedy.session.memory().cap, 2_000 * KIB as u64);
    let greedy = greedy.end().await;
    assert!(greedy.report.ended.contains("session_memory_cap"));
    let modest = modest.end().await;
    assert_eq!(modest.endings(), ["commit"]);
    assert!(modest.report.degraded.is_empty());
    assert_nothing_left(&runtime);
}

/// P19, P23: what waits on edges is accounted too, without a node saying so: a stuck node behind a
/// prolific one fills its edge, and the session ends at its cap instead of growing.
#[tokio::test(start_paused = true)]
async fn what_waits_on_edges_counts() {
    let mut probes = Probes::default();
    probes.add("prolific", |_nth, cx: &mut NodeContext, _event: Event| {
        let text = "x".repeat(100 * KIB);
        for _ in 0..3 {
            cx.emit(Payload::Text(Box::new(TextChunk::whole(
                Speaker::Agent,
                0,
                text.as_str(),
            ))));
        }
        Step::OK
    });
    probes.add("stuck", |_nth, _cx: &mut NodeContext, _event: Event| {
        Step::Wait(Box::pin(std::future::pending()))
    });
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            insert(spec, "llm", custom("prolific"), "segmenter");
            insert(spec, "prolific", custom("stuck"), "segmenter");
            let wide = spec
                .edges
                .iter_mut()
                .find(|edge| edge.to.as_str() == "stuck");
            wide.expect("there is one").buffer = Some(
                serde_json::from_value(json!({
                    "strategy": "drop_newest", "max_queue_bytes": 1 << 30,
                    "max_queue_items": 10_000, "max_queue_ms": 60_000,
                    "max_latency_contribution_ms": 60_000,
                }))
                .expect("a buffer"),
            );
            limited(spec, 1_000, 2_000);
        })
        .configure(probes.install())
        .hold()
        .await;
    let why = &ended.report.ended;
    assert!(why.starts_with("session_memory_cap: "), "{why}");
    let peak = ended.report.memory.expect("it is told").peak as usize;
    assert!((2_000 * KIB..4_000 * KIB).contains(&peak), "{peak}");
}

/// P19: over the soft mark notes and measurements that nobody asked for are the first to go.
#[tokio::test(start_paused = true)]
async fn notes_go_first_when_memory_is_tight() {
    async fn notes(held: usize) -> (Ended, usize) {
        let mut probes = Probes::default();
        probes.add("probe", move |nth, cx: &mut NodeContext, event: Event| {
            cx.hold(held * KIB);
            cx.emit(Payload::Metrics(Box::new(MetricSample {
                name: "words".into(),
                value: f64::from(nth),
                labels: std::collections::BTreeMap::new(),
            })));
            forward(nth, cx, event)
        });
        let ended = Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(|spec| {
                insert(spec, "llm", custom("probe"), "segmenter");
                limited(spec, 1_000, 10_000);
            })
            .configure(probes.install())
            .hold()
            .await;
        let payloads = ended.log.payloads().into_iter();
        let notes = payloads.filter(|payload| match payload {
            Payload::Metrics(sample) => sample.name == "words",
            _something_else => false,
        });
        let count = notes.count();
        (ended, count)
    }
    let (roomy, told) = notes(10).await;
    assert_eq!((roomy.endings(), told), (vec!["commit"], 9));
    let (tight, told) = notes(2_000).await;
    assert_eq!((tight.endings(), told), (vec!["commit"], 0));
}

/// P19, P21: a session in conversation holds little, and after a long one no more than after a short
/// one.
#[tokio::test(start_paused = true)]
async fn a_conversation_does_not_grow() {
    async fn held_after(turns: usize) -> u64 {
        let mut said = vec![says(first())];
        said.extend((1..turns).map(|_| says(after_reply())));
        let ended = Builder::new(&Cast::default(), said).hold().await;
        assert_eq!(ended.endings().len(), turns);
        ended.report.memory.expect("it is told").peak
    }
    let (short, long) = (held_after(2).await, held_after(30).await);
    assert!(long < 1_500 * KIB as u64, "{long}");
    assert!(long < short * 2, "{short} after 2 turns, {long} after 30");
}
