//! Traces: one for each turn, shared with no other call, and all of it adds up.

use std::{collections::BTreeSet, time::Duration};

use rspp_proto::{SessionId, SpanId, TraceId, TurnNumber};
use rspp_tests::{
    call::{Builder, Cast, Placed, after_reply, first, says},
    wire::{Opening, Wire},
};
use rspp_timeline::trace::{Span, otlp, spans};

/// P30, F-013, F-070: calls that go on at once share no trace; each turn has its own, whose stages follow each other
/// without a gap and add up to the turn, and in which each attempt at a provider hangs below its node, and the
/// node below the turn.
#[tokio::test(start_paused = true)]
async fn calls_share_no_trace_and_their_spans_add_up() {
    const CALLS: usize = 6;
    let cast = Cast::default();
    let mut host = Builder::new(&cast, vec![]);
    let runtime = host.runtime().await;
    let mut placed: Vec<Placed> = Vec::new();
    for n in 0..CALLS {
        let mut builder = Builder::new(&cast, vec![says(first()), says(after_reply())]);
        builder.session = SessionId::new(format!("call-{n}")).unwrap();
        placed.push(builder.open(&runtime).await.expect("there is room"));
    }
    let all = futures::future::join_all(placed.into_iter().map(Placed::end)).await;
    let mut seen = BTreeSet::new();
    for (n, ended) in all.iter().enumerate() {
        assert_eq!(ended.endings(), ["commit", "commit"], "{n}");
        let session = SessionId::new(format!("call-{n}")).unwrap();
        let spans = spans(&ended.entries);
        for turn in [TurnNumber(1), TurnNumber(2)] {
            let trace = TraceId::of(&session, Some(&turn.id()));
            assert!(seen.insert(trace), "{n}: {trace} is another turn's");
            let of_turn: Vec<&Span> = spans.iter().filter(|span| span.trace == trace).collect();
            let ids: BTreeSet<SpanId> = of_turn.iter().map(|span| span.id).collect();
            assert_eq!(ids.len(), of_turn.len(), "each has an id of its own");
            let root = SpanId::of_turn(trace);
            let root = of_turn.iter().find(|span| span.id == root).unwrap();
            assert_eq!((root.parent, &*root.name), (None, "turn"));
            let mut stages = of_turn
                .iter()
                .filter(|span| span.attributes.contains_key("rspp.stage"));
            let first = stages.next().expect("there are stages");
            assert_eq!(first.began, root.began);
            let over = stages.fold(first.ended, |ended, stage| {
                assert_eq!((stage.began, stage.parent), (ended, Some(root.id)));
                stage.ended
            });
            assert_eq!(over, root.ended, "they add up to the turn");
            let calls: Vec<_> = of_turn.iter().filter(|span| span.is_call).collect();
            assert!(
                calls.len() >= 2,
                "a model and a voice were asked: {calls:?}"
            );
            for call in calls {
                let node = call.parent.expect("a node asked");
                let node = of_turn.iter().find(|span| span.id == node).unwrap();
                assert_eq!(node.parent, Some(root.id));
                assert!(node.began <= call.began && call.ended <= node.ended);
                assert_eq!(call.attributes["session.id"], session.as_str());
                assert_eq!(call.fault, None);
            }
        }
        assert!(
            spans
                .iter()
                .all(|span| span.attributes["session.id"] == session.as_str())
        );
    }
}

/// P30: a client that takes part in a trace finds its turns linked to it, in the form that collectors take.
#[tokio::test(start_paused = true)]
async fn turns_link_to_the_trace_of_whoever_called() {
    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let opening = Opening {
        caller: CALLER.parse().ok(),
        ..Opening::default()
    };
    let wire = Wire::open(&Cast::default(), opening).await;
    wire.types("hello");
    wire.until(rspp_proto::abi::Signal::Close, 1).await;
    let over = wire.end().await;
    let spans = spans(&over.entries);
    let root = spans.iter().find(|span| span.name == "turn").unwrap();
    assert_eq!(root.links, [CALLER.parse().unwrap()]);
    assert!(root.duration() > Duration::ZERO);
    let told = otlp(
        &spans,
        (root.began, rspp_proto::WallClock(1_700_000_000_000)),
    );
    let told = &told["resourceSpans"][0]["scopeSpans"][0]["spans"];
    let turn = told
        .as_array()
        .unwrap()
        .iter()
        .find(|span| span["name"] == "turn");
    let turn = turn.unwrap();
    assert_eq!(turn["startTimeUnixNano"], "1700000000000000000");
    assert_eq!(turn["links"][0]["traceId"], &CALLER[3..35]);
    assert_eq!(turn["links"][0]["spanId"], &CALLER[36..52]);
    assert_eq!(turn["traceId"], root.trace.to_string());
    assert_eq!(turn["parentSpanId"], "");
}
