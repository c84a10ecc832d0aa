//! Three lanes on one edge, and control before all: each keeps its own rules when all are full.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_host::node::NodeContext;
use rspp_kernel::CancelReason;
use rspp_proto::{
    Lane, MetricSample, Payload,
    abi::{ControlSignal, Emitter, Signal},
};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Cast, Ended, LONG, first, says},
    nodes::{Probes, branch, words},
};
use serde_json::json;
use tokio::time::Instant;

fn measurement(n: u32) -> Payload {
    Payload::Metrics(Box::new(MetricSample {
        name: "probe_count".to_owned(),
        value: f64::from(n),
        labels: BTreeMap::new(),
    }))
}

fn notices(ended: &Ended, lane: Lane) -> Vec<ControlSignal> {
    let signals = ended.log.signals_of(Signal::DropNotice).into_iter();
    signals
        .filter(|signal| signal.target_lane == Some(lane))
        .collect()
}

/// F-147, F-143: on one edge, data waits and loses nothing while telemetry never waits, is
/// dropped, and says so with its own reason and lane.
#[tokio::test(start_paused = true)]
async fn each_lane_of_an_edge_keeps_its_own_rules() {
    let run = async |per_frame: u32| {
        let mut probes = Probes::default();
        probes.source("source", move |nth, cx: &mut NodeContext| {
            for n in 0..per_frame {
                cx.emit(measurement(n));
            }
            if nth.is_multiple_of(4) {
                cx.emit(words(0, "word", false));
            }
        });
        let (taken, _) = probes.sink("sink", Duration::from_millis(10));
        let ended = Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(|spec| {
                let buffer = json!({ "strategy": "block", "max_queue_items": 16,
                    "max_block_time_ms": 10_000, "max_queue_ms": 600_000,
                    "max_latency_contribution_ms": 600_000 });
                let edge =
                    json!({ "from": "source", "to": "sink", "carries": "any", "buffer": buffer });
                branch(spec, "source", &[edge]);
            })
            .configure(probes.install())
            .hold()
            .await;
        assert_eq!(ended.endings(), ["commit"]);
        let events = taken.events();
        let is_data = |payload: &Payload| matches!(payload, Payload::Text(_));
        let data: Vec<_> = events
            .iter()
            .filter(|(_, event)| is_data(&event.payload))
            .collect();
        let late = data.iter().map(|(at, event)| {
            let origin = events[0].0 - events[0].1.stamp.made.as_duration();
            (*at - origin).saturating_sub(event.stamp.made.as_duration())
        });
        let late = late.max().unwrap();
        (data.len(), events.len() - data.len(), late, ended)
    };
    let (data, telemetry, late, calm) = run(1).await;
    assert!(data > 40 && telemetry > 150, "{data} and {telemetry}");
    assert_eq!(notices(&calm, Lane::Telemetry), []);
    assert!(late <= Duration::from_millis(20), "{late:?}");

    let (data_under_load, telemetry, late, loaded) = run(20).await;
    assert_eq!(data_under_load, data, "data loses nothing to telemetry");
    assert!(late <= Duration::from_millis(20), "{late:?}");
    assert!(
        telemetry > 40,
        "what is left of the time is telemetry's: {telemetry}"
    );
    assert_eq!(notices(&loaded, Lane::Data), []);
    let dropped = notices(&loaded, Lane::Telemetry);
    assert!(!dropped.is_empty());
    for notice in dropped {
        assert_eq!(notice.emitted_by, Emitter::EdgeBufferManager);
        assert_eq!(
            notice.reason.unwrap().as_str(),
            "telemetry_best_effort_drop"
        );
        assert!(notice.seq_range.is_some());
    }
}

/// F-147: where the edge says so, telemetry is thinned out instead.
#[tokio::test(start_paused = true)]
async fn telemetry_may_be_sampled_instead() {
    let mut probes = Probes::default();
    probes.source("source", |nth, cx: &mut NodeContext| {
        cx.emit(measurement(nth));
    });
    let (taken, _) = probes.sink("sink", Duration::from_millis(30));
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            let buffer =
                json!({ "telemetry": "sample", "max_queue_items": 8, "max_queue_ms": 600_000 });
            let edge =
                json!({ "from": "source", "to": "sink", "carries": "any", "buffer": buffer });
            branch(spec, "source", &[edge]);
        })
        .configure(probes.install())
        .hold()
        .await;
    let sequences = taken.sequences();
    // Thinned: in the end every second one comes, and none is far behind.
    let steps: Vec<u64> = sequences.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        steps.iter().skip(20).filter(|step| **step == 2).count() > 20,
        "{steps:?}"
    );
    assert!(notices(&ended, Lane::Telemetry).len() > 10);
}

/// F-142, F-038, P16: with all data and telemetry queues of a session full and every node busy, a
/// cancel is accepted and the user hears silence at once, and turn signals are not late.
#[tokio::test(start_paused = true)]
async fn control_is_never_behind_data_or_telemetry() {
    let run = async |flood: u32| {
        let mut probes = Probes::default();
        probes.source("source", move |nth, cx: &mut NodeContext| {
            for n in 0..flood {
                cx.emit(measurement(n));
                cx.emit(words(nth, "word", false));
            }
        });
        probes.sink("sink", Duration::from_millis(700));
        let cast = Cast {
            llm: Arc::new(ScriptedLlm::new("llm").answers([LONG])),
            ..Cast::default()
        };
        let call = Builder::new(&cast, vec![says(first())])
            .pipeline(|spec| {
                let edge = json!({ "from": "source", "to": "sink", "carries": "any",
                                   "buffer": { "max_queue_items": 64 } });
                branch(spec, "source", &[edge]);
            })
            .configure(probes.install())
            .start()
            .await;
        call.log.until(Signal::PlaybackStarted, 1).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let asked = Instant::now();
        let receipt = call.session.cancel(CancelReason::UserCancel).await.unwrap();
        let accepted = asked.elapsed();
        assert!(receipt.turn.is_some());
        let ended = call.end().await;
        assert_eq!(ended.endings(), ["cancelled"]);
        let opened = ended.turn(1).anchors.clone();
        (accepted, ended.heard(), opened.turn_open_emitted_ts, ended)
    };
    let (_, heard, opened, _) = run(0).await;
    let (accepted, heard_under_load, opened_under_load, ended) = run(50).await;
    assert_eq!(accepted, Duration::ZERO, "the cancel waits for nothing");
    assert_eq!(heard_under_load, heard, "the user hears the same");
    assert_eq!(opened_under_load, opened, "and turns open when they would");
    assert!(
        !notices(&ended, Lane::Telemetry).is_empty(),
        "it was a flood"
    );
    assert!(!notices(&ended, Lane::Data).is_empty());
}

/// F-142, F-147, ML-001: what the session itself has no room for of telemetry is lost, oldest first,
/// and said: the notices and what was heard add up to all that was made.
#[tokio::test(start_paused = true)]
async fn telemetry_that_nobody_has_room_for_is_accounted_for() {
    const BURST: u32 = 400;
    let mut probes = Probes::default();
    probes.source("source", |nth, cx: &mut NodeContext| {
        if nth.is_multiple_of(10) {
            for n in 0..BURST {
                cx.emit(measurement(nth / 10 * BURST + n));
            }
        }
    });
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| branch(spec, "source", &[]))
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    let heard = ended.log.payloads().into_iter().filter(
        |payload| matches!(payload, Payload::Metrics(sample) if sample.name == "probe_count"),
    );
    let heard = heard.count() as u64;
    let mut lost = 0;
    let mut last = 0;
    for notice in notices(&ended, Lane::Telemetry) {
        let edge = notice.envelope.edge_id.as_ref().unwrap().as_str();
        assert_eq!(edge, "nodes->session:telemetry");
        assert_eq!(
            notice.reason.unwrap().as_str(),
            "telemetry_best_effort_drop"
        );
        let range = notice.seq_range.unwrap();
        assert!(range.start > last, "{range:?} after {last}");
        last = range.end;
        lost += range.end - range.start + 1;
    }
    assert!(lost > 1_000 && heard > 1_000, "{lost} and {heard}");
    let frames = ended
        .report
        .ended_at
        .since(ended.report.opened_at)
        .as_millis() as u64
        / 20;
    let made = frames / 10 * u64::from(BURST);
    // Marks of speech ride the same lane; the last burst may come with the end.
    assert!(
        (lost + heard).abs_diff(made) <= u64::from(BURST) + 20,
        "{lost} and {heard} of {made}"
    );
}

/// ML-001: the same calls with the same bursts drop the same: notice by notice the same edge, lane, reason, range
/// and time, on the data lane as on the telemetry lane.
#[tokio::test(start_paused = true)]
async fn drops_are_told_the_same_each_time() {
    let told = async || {
        let mut probes = Probes::default();
        probes.source("source", |nth, cx: &mut NodeContext| {
            // Every second's worth of frames more at once than the edge has room for.
            if nth.is_multiple_of(50) {
                for n in 0..121 {
                    cx.emit(words(n, "word", false));
                    cx.emit(measurement(n));
                }
            }
        });
        probes.sink("sink", Duration::from_millis(1));
        let ended = Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(|spec| {
                let buffer = json!({ "strategy": "drop_newest", "max_queue_items": 99 });
                let edge =
                    json!({ "from": "source", "to": "sink", "carries": "any", "buffer": buffer });
                branch(spec, "source", &[edge]);
            })
            .configure(probes.install())
            .hold()
            .await;
        assert_eq!(ended.endings(), ["commit"]);
        let signals = ended.log.signals_of(Signal::DropNotice).into_iter();
        let signals = signals.map(|signal| {
            let range = signal.seq_range.expect("a notice says what was dropped");
            assert!(range.start <= range.end, "{range:?}");
            let envelope = signal.envelope;
            (
                envelope.edge_id.expect("and where").to_string(),
                signal.target_lane.expect("and on which lane"),
                signal.reason.expect("and why").to_string(),
                (range.start, range.end),
                envelope.runtime_timestamp_ms,
            )
        });
        signals.collect::<Vec<_>>()
    };
    let once = told().await;
    for lane in [Lane::Data, Lane::Telemetry] {
        let of_lane = once.iter().filter(|notice| notice.1 == lane);
        assert!(of_lane.count() >= 2, "{lane:?}: {once:?}");
    }
    for _again in 0..3 {
        assert_eq!(told().await, once);
    }
}

/// Where several edges lead to one node, none starves: whoever has waited longest is next.
#[tokio::test(start_paused = true)]
async fn no_edge_of_a_node_starves() {
    let mut probes = Probes::default();
    for (source, burst) in [("loud", 30), ("calm", 1)] {
        probes.source(source, move |nth, cx: &mut NodeContext| {
            for _ in 0..burst {
                cx.emit(words(nth, source, false));
            }
        });
    }
    let seen = Arc::<Mutex<BTreeMap<String, Vec<(Instant, Duration)>>>>::default();
    let noted = Arc::clone(&seen);
    let (taken, _) = probes.sink("sink", Duration::from_millis(5));
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            for source in ["loud", "calm"] {
                let edge = json!({ "from": source, "to": "sink", "carries": "text",
                    "buffer": { "max_queue_items": 20, "max_queue_ms": 600_000 } });
                branch(spec, source, &[edge]);
            }
        })
        .configure(probes.install())
        .hold()
        .await;
    let events = taken.events();
    let origin = events[0].0 - events[0].1.stamp.made.as_duration();
    for (at, event) in events {
        let Payload::Text(text) = &event.payload else {
            unreachable!()
        };
        let waited = (at - origin).saturating_sub(event.stamp.made.as_duration());
        let mut noted = noted.lock().unwrap();
        noted
            .entry(text.text.to_string())
            .or_default()
            .push((at, waited));
    }
    let seen = seen.lock().unwrap().clone();
    let calm = &seen["calm"];
    let lost = ended.log.signals_of(Signal::DropNotice).into_iter();
    let lost = lost.filter(|signal| {
        signal
            .envelope
            .edge_id
            .as_ref()
            .is_some_and(|id| id.as_str().starts_with("calm"))
    });
    assert_eq!(lost.count(), 0, "a calm edge loses nothing to a loud one");
    let longest = calm.iter().map(|(_, waited)| *waited).max().unwrap();
    // Twenty of the loud one may be older.
    assert!(longest <= Duration::from_millis(21 * 5), "{longest:?}");
    assert!(seen["loud"].len() > calm.len());
}
