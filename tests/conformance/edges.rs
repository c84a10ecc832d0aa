//! Edges are bounded, and account for every item that they do not deliver.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_host::{
    Event,
    node::{NodeContext, Step},
};
use rspp_proto::{
    Payload,
    abi::Signal,
    spec::{BufferSpec, DataHandling},
};
use rspp_tests::{
    call::{Builder, Cast, Ended, first, says},
    nodes::{Probes, custom, insert},
};

/// What came through an edge to a node that takes 50 ms for a frame of 20 ms, and the call.
async fn overflow(strategy: DataHandling, items: u64) -> (Vec<u64>, Ended) {
    fn slowly(seen: Arc<Mutex<Vec<u64>>>, event: Event) -> Step<'static> {
        Step::Wait(Box::pin(async move {
            if let Payload::AudioChunk(_) = event.payload {
                seen.lock().unwrap().push(event.stamp.sequence);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        }))
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let mut probes = Probes::default();
    probes.add("slow", move |_nth, _cx: &mut NodeContext, event| {
        slowly(Arc::clone(&noted), event)
    });
    let cast = Cast::default();
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| {
            // A listener of its own, so that nobody else misses the audio.
            insert(spec, "ingress", custom("slow"), "turn");
            let edge = spec
                .edges
                .iter_mut()
                .find(|edge| edge.to.as_str() == "slow")
                .unwrap();
            edge.buffer = Some(BufferSpec {
                strategy: Some(strategy),
                max_queue_items: Some(items),
                max_queue_ms: Some(60_000),
                max_latency_contribution_ms: Some(60_000),
                max_block_time_ms: matches!(strategy, DataHandling::Block).then_some(100),
                ..BufferSpec::default()
            });
        })
        .configure(probes.install())
        .hold()
        .await;
    let seen = seen.lock().unwrap().clone();
    (seen, ended)
}

/// The sequence numbers that drop notices speak of, each once.
#[track_caller]
fn dropped(ended: &Ended) -> BTreeSet<u64> {
    let mut dropped = BTreeSet::new();
    for notice in ended.log.signals_of(Signal::DropNotice) {
        assert_eq!(
            notice.envelope.edge_id.as_ref().unwrap().as_str(),
            "ingress->slow:audio"
        );
        assert_eq!(
            notice.reason.as_ref().unwrap().as_str(),
            "queue_pressure_drop"
        );
        let range = notice
            .seq_range
            .expect("a drop notice says what was dropped");
        for sequence in range.start..=range.end {
            assert!(dropped.insert(sequence), "{sequence} was dropped twice");
        }
    }
    dropped
}

/// F-043, F-044, P23: an edge that overflows drops by its strategy, and its notices and what came
/// through add up to all that was sent.
#[tokio::test(start_paused = true)]
async fn an_overflowing_edge_accounts_for_every_frame() {
    for (strategy, newest_survive) in [
        (DataHandling::DropOldest, true),
        (DataHandling::DropNewest, false),
        (DataHandling::LatestOnly, true),
        (DataHandling::Sample, true),
        (DataHandling::Block, false),
    ] {
        let (seen, ended) = overflow(strategy, 4).await;
        let dropped = dropped(&ended);
        assert!(dropped.len() > 50, "{strategy:?}: {}", dropped.len());
        assert!(seen.is_sorted(), "{strategy:?}: {seen:?}");
        let came: BTreeSet<u64> = seen.iter().copied().collect();
        assert_eq!(came.len(), seen.len(), "{strategy:?}: one came twice");
        assert!(came.is_disjoint(&dropped), "{strategy:?}");
        // Everything but what still waited when the user hung up.
        let all: BTreeSet<u64> = came.union(&dropped).copied().collect();
        let sent = ended
            .report
            .ended_at
            .since(ended.report.opened_at)
            .as_millis() as u64
            / 20;
        let missing: Vec<u64> = (1..=sent)
            .filter(|sequence| !all.contains(sequence))
            .collect();
        assert!(
            missing.len() <= 6,
            "{strategy:?}: {missing:?} of {sent} are unexplained"
        );
        assert!(
            missing.iter().all(|sequence| *sequence + 20 > sent),
            "{strategy:?}: {missing:?}"
        );
        let last = *seen.last().unwrap();
        if newest_survive {
            assert!(last + 12 > sent, "{strategy:?}: {last} of {sent}");
        }
        // The call did not notice.
        assert_eq!(ended.endings(), ["commit"], "{strategy:?}");
        assert_eq!(ended.turn(1).agent_text_played, ended.turn(1).agent_text);
    }
}

/// Event ABI §4: pressure is asserted before it is released, and comes with its mark.
#[tokio::test(start_paused = true)]
async fn pressure_is_asserted_and_released_in_turn() {
    let (_, ended) = overflow(DataHandling::DropOldest, 4).await;
    let signals = ended.log.signals();
    let of_edge = signals
        .iter()
        .filter(|signal| signal.envelope.edge_id.is_some());
    let flow: Vec<_> = of_edge
        .map(|signal| signal.signal)
        .filter(|signal| [Signal::FlowXoff, Signal::FlowXon, Signal::Watermark].contains(signal))
        .collect();
    assert!(flow.contains(&Signal::FlowXoff), "{flow:?}");
    let mut held = false;
    for (at, signal) in flow.iter().enumerate() {
        match signal {
            Signal::FlowXoff => {
                assert!(!held, "asserted twice");
                assert_eq!(flow[at - 1], Signal::Watermark);
                held = true;
            }
            Signal::FlowXon => {
                assert!(held, "released twice");
                held = false;
            }
            _mark => {}
        }
    }
}

/// P23: however slow a listener is, replies come on time.
#[tokio::test(start_paused = true)]
async fn a_slow_listener_makes_no_reply_late() {
    let usual = Builder::new(&Cast::default(), vec![says(first())])
        .hold()
        .await;
    let (_, ended) = overflow(DataHandling::DropOldest, 64).await;
    let first_audio = |ended: &Ended| ended.turn(1).first_audio_ms.expect("it was answered");
    assert!((first_audio(&usual) - first_audio(&ended)).abs() < 1.0);
}
