//! Cancels under load: how long they take, and whose fault it is (F-040, NF-003).

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use rspp_host::{
    Event, Measurements,
    node::{NodeContext, Step},
};
use rspp_proto::{Payload, SessionId, spec::PipelineSpec};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Cast, Ended, LONG, assert_nothing_left, first, over_reply, says},
    nodes::{Probes, custom, insert},
};
use serde_json::json;

const SESSIONS: usize = 30;
/// Every fifth session has a node that takes long to let go.
const SLOW_EVERY: usize = 5;
/// How long such a node takes.
const SLOW: Duration = Duration::from_millis(40);
/// How long it may take, in milliseconds.
const LIMIT: u64 = 25;

/// Holds frames back for a while, and takes its time when it is cancelled.
fn slow_to_let_go(cx: &mut NodeContext, event: Event) -> Step<'_> {
    Step::Work(Box::pin(async move {
        let cancelled = cx.cancellation().clone();
        tokio::select! {
            () = cancelled.cancelled() => tokio::time::sleep(SLOW).await,
            () = tokio::time::sleep(Duration::from_millis(15)) => cx.forward(event),
        }
        Ok(())
    }))
}

/// Puts the slow node before the output. Synthesis is faster than it is, and waits for it.
fn with_slow_node(spec: &mut PipelineSpec) {
    insert(spec, "tts", custom("slow"), "egress");
    let into = spec.edges.iter_mut().find(|it| it.to.as_str() == "slow");
    let buffer = json!({ "strategy": "block", "max_block_time_ms": 60_000 });
    into.unwrap().buffer = Some(serde_json::from_value(buffer).unwrap());
}

/// Many calls at once, each interrupted again and again.
async fn interrupted() -> Vec<Ended> {
    let mut probes = Probes::default();
    probes.add("slow", |_nth, cx, event| slow_to_let_go(cx, event));
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG])),
        ..Cast::default()
    };
    let mut host = Builder::new(&cast, Vec::new()).configure(probes.install());
    let runtime = host.runtime().await;
    let mut ending = Vec::new();
    for n in 0..SESSIONS {
        let said = vec![says(first()), says(over_reply(600)), says(over_reply(600))];
        let mut builder = Builder::new(&cast, said).pipeline(|spec| {
            spec.observe.metrics_every_ms = Some(1_000);
            spec.observe.slow_cancel_ms = Some(LIMIT);
            if n % SLOW_EVERY == 0 {
                with_slow_node(spec);
            }
        });
        builder.session = SessionId::new(format!("call-{n:02}")).unwrap();
        builder.script.reply_timeout = Duration::from_secs(6);
        ending.push(builder.open(&runtime).await.expect("it opens").end());
    }
    let ended = join_all(ending).await;
    assert_nothing_left(&runtime);
    ended
}

/// The nodes that were too slow, with how often and whose they are.
fn slow_nodes(measured: &Measurements) -> Vec<(&str, u64, &str)> {
    let nodes = measured.nodes.iter();
    nodes
        .filter(|(_, node)| node.slow_cancels > 0)
        .map(|(id, node)| (id.as_str(), node.slow_cancels, node.node_type.as_str()))
        .collect()
}

/// NF-003, F-040: in many calls at once that are interrupted again and again, what is heard stops within the
/// threshold at p95 and p99, whoever is slow to let go; where a node takes longer than the configured
/// limit, it is counted against that node by name, in the session's measurements and in band, and against
/// nobody else.
#[tokio::test(start_paused = true)]
async fn slow_cancels_are_attributed_under_load() {
    let all = interrupted().await;
    let mut cancels = 0;
    for (n, ended) in all.iter().enumerate() {
        let measured = ended.report.measurements.as_ref().expect("it is measured");
        cancels += measured.cancel.samples;
        assert_eq!(measured.cancel.samples, 2, "{n}: {:?}", ended.endings());
        let limit = LIMIT as f64;
        assert!(
            measured.cancel.p95_ms <= limit,
            "{n}: {:?}",
            measured.cancel
        );
        assert!(
            measured.cancel.p99_ms <= limit,
            "{n}: {:?}",
            measured.cancel
        );
        assert_eq!(measured.slow_cancels, 0, "{n}: the output is never slow");
        let told = ended.log.samples().into_iter();
        let told: Vec<_> = told
            .filter(|sample| sample.name == "slow_cancels_total")
            .map(|sample| (sample.labels["node_id"].clone(), sample.value))
            .collect();
        if n % SLOW_EVERY == 0 {
            assert_eq!(slow_nodes(measured), [("slow", 2, "slow")], "{n}");
            let node = &measured.nodes["slow"];
            assert!(node.cancel.max_ms >= 40.0, "{:?}", node.cancel);
            assert_eq!(node.provider, None);
            assert_eq!(told.last(), Some(&("slow".to_owned(), 2.0)), "{n}");
            assert!(told.iter().all(|(node, _)| node == "slow"), "{told:?}");
        } else {
            assert_eq!(slow_nodes(measured), [], "{n}");
            assert_eq!(told, [], "{n}");
        }
        // Who serves a node is known, so that a provider can be blamed.
        let voice = measured.nodes["tts"].provider.as_ref();
        assert_eq!(voice.map(rspp_proto::ProviderId::as_str), Some("tts"));
        let heard: Vec<_> = ended.log.payloads();
        assert!(heard.iter().any(|it| matches!(it, Payload::Metrics(_))));
    }
    assert_eq!(cancels, 2 * SESSIONS as u64);
}
