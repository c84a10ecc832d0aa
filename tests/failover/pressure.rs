//! F4: edge pressure (RK-12, RK-13, RK-14).

use std::{collections::BTreeSet, time::Duration};

use rspp_host::{
    Event,
    node::{NodeContext, Step},
};
use rspp_proto::{
    Payload,
    abi::{Emitter, Signal},
    spec::{BufferSpec, DataHandling, Marks, Watermarks},
};
use rspp_tests::{
    call::{Builder, Cast, Ended, REPLY, first, says},
    nodes::{Probes, custom, insert},
};

use crate::row::assert_committed;

/// A call with a listener that takes 50 ms for each of the first frames of 20 ms, behind that buffer.
async fn pressed(buffer: BufferSpec) -> Ended {
    let mut probes = Probes::default();
    probes.add("slow", |nth, _cx: &mut NodeContext, event: Event| {
        Step::Wait(Box::pin(async move {
            if let Payload::AudioChunk(_) = event.payload
                && nth < 40
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        }))
    });
    Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            insert(spec, "ingress", custom("slow"), "turn");
            let mut edges = spec.edges.iter_mut();
            let edge = edges.find(|edge| edge.to.as_str() == "slow");
            edge.expect("just put there").buffer = Some(buffer);
        })
        .configure(probes.install())
        .hold()
        .await
}

#[track_caller]
fn assert_told(ended: &Ended) {
    assert_committed(ended, 1);
    assert_eq!(ended.turn(1).agent_text_played, REPLY);
    let rows = [
        (
            Signal::Watermark,
            Emitter::WatermarkEngine,
            Some("edge_watermark_high"),
        ),
        (
            Signal::FlowXoff,
            Emitter::FlowControl,
            Some("backpressure_asserted"),
        ),
        (Signal::FlowXon, Emitter::FlowControl, None),
        (
            Signal::DropNotice,
            Emitter::EdgeBufferManager,
            Some("queue_pressure_drop"),
        ),
    ];
    for (name, emitter, reason) in rows {
        let said = ended.log.signals_of(name);
        let first = said.first().unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(first.emitted_by, emitter);
        let edge = first.envelope.edge_id.as_ref().expect("it is of an edge");
        assert_eq!(edge.as_str(), "ingress->slow:audio");
        if let Some(reason) = reason {
            assert_eq!(
                first.reason.as_ref().map(rspp_proto::Reason::as_str),
                Some(reason)
            );
        }
        assert_eq!(first.validate(), Ok(()));
    }
    let mut dropped = BTreeSet::new();
    for notice in ended.log.signals_of(Signal::DropNotice) {
        let range = notice.seq_range.expect("a notice says what was dropped");
        for sequence in range.start..=range.end {
            assert!(dropped.insert(sequence), "{sequence} was dropped twice");
        }
    }
}

/// F4, F-043, F-044: an edge under pressure of depth says so, drops by its strategy, accounts for it,
/// and costs nobody else.
#[tokio::test(start_paused = true)]
async fn pressure_of_depth_is_told_and_accounted_for() {
    assert_told(
        &pressed(BufferSpec {
            strategy: Some(DataHandling::DropOldest),
            max_queue_items: Some(6),
            max_queue_ms: Some(60_000),
            max_latency_contribution_ms: Some(60_000),
            ..BufferSpec::default()
        })
        .await,
    );
}

/// F4, F-043, F-044: so does one under pressure of time.
#[tokio::test(start_paused = true)]
async fn pressure_of_time_is_told_and_accounted_for() {
    assert_told(
        &pressed(BufferSpec {
            strategy: Some(DataHandling::DropOldest),
            max_queue_items: Some(1_000),
            max_queue_ms: Some(120),
            max_latency_contribution_ms: Some(60_000),
            watermarks: Some(Watermarks {
                queue_items: None,
                queue_ms: Some(Marks { high: 80, low: 40 }),
            }),
            ..BufferSpec::default()
        })
        .await,
    );
}
