//! What edges have to say is said when it happens, whether or not anybody takes anything off them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rspp_host::node::NodeContext;
use rspp_kernel::CancelReason;
use rspp_proto::{
    Lane, MetricSample, Payload, Speaker,
    abi::{ControlSignal, Signal},
};
use rspp_provider_api::scripted::{ScriptedLlm, ScriptedStt};
use rspp_tests::{
    call::{Builder, Cast, Ended, LONG, first, over_reply, says},
    nodes::{Probes, branch, edge, get, words},
};
use rspp_transport_api::Outgoing;
use serde_json::{Value, json};

fn of_edge(ended: &Ended, kind: Signal, name: &str) -> Vec<ControlSignal> {
    let signals = ended.log.signals_of(kind).into_iter();
    let is_there = |signal: &ControlSignal| {
        signal
            .envelope
            .edge_id
            .as_ref()
            .is_some_and(|id| id.as_str() == name)
    };
    signals.filter(is_there).collect()
}

fn at(signal: &ControlSignal) -> u64 {
    signal.envelope.runtime_timestamp_ms
}

/// A pipeline whose edge from one node to another has this buffer.
fn buffered(builder: Builder, from: &str, to: &str, carries: &str, buffer: &Value) -> Builder {
    builder.pipeline(|spec| {
        let there = |edge: &rspp_proto::spec::EdgeSpec| {
            (edge.from.as_str(), edge.to.as_str(), edge.carries.as_str()) == (from, to, carries)
        };
        let place = spec
            .edges
            .iter()
            .position(there)
            .expect("there is such an edge");
        let written = json!({ "from": from, "to": to, "carries": carries, "buffer": buffer });
        spec.edges[place] = edge(written);
    })
}

/// ML-001, F-044: an edge that no frame fits loses all of a reply, and each frame of it is told of before the
/// turn ends: not when the player next has something to do, which is never.
#[tokio::test(start_paused = true)]
async fn frames_that_no_edge_takes_are_told_of_before_their_turn_ends() {
    let buffer = json!({ "max_queue_bytes": 600, "strategy": "drop_newest" });
    let builder = Builder::new(&Cast::default(), vec![says(first())]);
    let ended = buffered(builder, "tts", "egress", "audio", &buffer)
        .hold()
        .await;
    let lost = of_edge(&ended, Signal::DropNotice, "tts->egress:audio");
    let over = ended.log.signals_of(Signal::Close);
    assert!(!lost.is_empty() && over.len() == 1);
    assert!(
        lost.iter().all(|notice| at(notice) <= at(&over[0])),
        "{lost:?}"
    );
    let frames: u64 = lost
        .iter()
        .map(|notice| notice.seq_range.unwrap())
        .map(|range| range.end - range.start + 1)
        .sum();
    assert!(frames > 20, "{frames}");
    assert_eq!(ended.turn(1).agent_text_played, "");
}

/// ML-001, F-044: what is lost for a node that is busy with something else is told of meanwhile.
#[tokio::test(start_paused = true)]
async fn a_busy_node_keeps_no_loss_to_itself() {
    let mut probes = Probes::default();
    probes.source("source", |_nth, cx: &mut NodeContext| {
        cx.emit(words(0, "word", false));
    });
    let (_taken, _) = probes.sink("sink", Duration::from_secs(2));
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            let buffer = json!({ "strategy": "drop_newest", "max_queue_items": 4, "max_queue_ms": 600_000,
                                 "max_latency_contribution_ms": 600_000 });
            let edge = json!({ "from": "source", "to": "sink", "carries": "text", "buffer": buffer });
            branch(spec, "source", &[edge]);
        })
        .configure(probes.install())
        .hold()
        .await;
    let lost = of_edge(&ended, Signal::DropNotice, "source->sink:text");
    // One is taken at once, four wait; the sixth of the frames, which come every 20 ms, is lost first.
    let first = at(&lost[0]);
    assert!((80..=140).contains(&first), "{first}");
    let longest = lost
        .windows(2)
        .map(|pair| at(&pair[1]) - at(&pair[0]))
        .max();
    let longest = longest.unwrap();
    assert!(
        lost.len() > 20 && longest <= 60,
        "{longest} of {}",
        lost.len()
    );
}

/// P23, F-142: what the user says is on the screen while the agent's audio waits for its time.
#[tokio::test(start_paused = true)]
async fn words_for_the_screen_do_not_wait_behind_audio() {
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "All right."])),
        stt: Arc::new(ScriptedStt::new("stt").utterances(["hello there", "one two three four"])),
        ..Cast::default()
    };
    for barge_in in [true, false] {
        let mut builder = Builder::new(&cast, vec![says(first()), says(over_reply(500))]);
        builder.pipeline.turns.barge_in = barge_in;
        builder.pipeline.turns.barge_in_min_speech_ms = 800;
        let mut screen = builder.screen();
        let ended = builder.hold().await;
        let lost = of_edge(&ended, Signal::DropNotice, "stt->egress:text");
        assert_eq!(lost, [], "{barge_in}");
        let mut shown = BTreeSet::new();
        while let Ok(outgoing) = screen.try_recv() {
            if let Outgoing::Text { text, .. } = outgoing
                && text.speaker == Speaker::User
            {
                shown.insert(text.text.to_string());
            }
        }
        for part in ["one", "one two", "one two three", "one two three four"] {
            assert!(shown.contains(part), "{barge_in}: {shown:?}");
        }
    }
}

/// F-144, F-145: a flush lets the sender go at once, and for the turn in which it was stopped.
#[tokio::test(start_paused = true)]
async fn a_cancel_lets_the_sender_go_at_once() {
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "All right."])),
        ..Cast::default()
    };
    let call = Builder::new(&cast, vec![says(first())]).start().await;
    call.log.until(Signal::FlowXoff, 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    call.session.cancel(CancelReason::UserCancel).await.unwrap();
    let ended = call.end().await;
    let on = |kind| of_edge(&ended, kind, "tts->egress:audio");
    let (off, xon) = (on(Signal::FlowXoff), on(Signal::FlowXon));
    assert_eq!((off.len(), xon.len()), (1, 1));
    let cancelled = ended.log.signals_of(Signal::Cancel);
    assert_eq!(at(&xon[0]), at(&cancelled[0]), "{xon:?}");
    assert_eq!(xon[0].envelope.turn_id, off[0].envelope.turn_id);
    assert!(xon[0].envelope.turn_id.is_some());
}

/// F-145, F-148: under `credit` the sender waits for as long as the edge allows, and what has left the edge until
/// then is granted: nothing of a long reply is lost, though a whole batch plays for longer than that.
#[tokio::test(start_paused = true)]
async fn a_grant_comes_before_a_sender_gives_up() {
    let long = LONG.repeat(3);
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([long.as_str()])),
        ..Cast::default()
    };
    for block in [40, 2_000] {
        let buffer = json!({ "flow_mode": "credit", "max_queue_items": 256, "max_queue_ms": 60_000,
                             "max_latency_contribution_ms": 60_000, "max_block_time_ms": block });
        let builder = Builder::new(&cast, vec![says(first())]);
        let ended = buffered(builder, "tts", "egress", "audio", &buffer)
            .hold()
            .await;
        assert_eq!(
            of_edge(&ended, Signal::DropNotice, "tts->egress:audio"),
            [],
            "{block}"
        );
        assert_eq!(
            ended.turn(1).agent_text_played,
            ended.turn(1).agent_text,
            "{block}"
        );
        assert!(of_edge(&ended, Signal::CreditGrant, "tts->egress:audio").len() > 2);
    }
}

/// F-144, F-147: the marks of a lane hold on each of its edges, unless the edge's own are lower; the signal says
/// whose they are.
#[tokio::test(start_paused = true)]
async fn the_marks_of_the_data_lane_hold_on_its_edges() {
    for (lane, reason) in [
        (5, "lane_queue_high_watermark"),
        (100, "edge_watermark_high"),
    ] {
        let mut builder = Builder::new(&Cast::default(), vec![says(first())]);
        let flow = json!({ "data_mode": "signal", "data_marks": { "high": lane, "low": 2 },
            "control_marks": { "high": 20, "low": 10 }, "telemetry_marks": { "high": 200, "low": 100 } });
        builder.settings.session.flow_control = Some(serde_json::from_value(flow).unwrap());
        let buffer = json!({ "watermarks": { "queue_items": { "high": 40, "low": 20 } } });
        let ended = buffered(builder, "tts", "egress", "audio", &buffer)
            .hold()
            .await;
        let marks = of_edge(&ended, Signal::Watermark, "tts->egress:audio");
        assert!(!marks.is_empty());
        for mark in marks {
            assert_eq!(mark.reason.unwrap().as_str(), reason);
        }
    }
}

/// F-144, F-142: how deep the session's control lane is, is said by its own marks, and nothing of it is kept waiting
/// or lost for that.
#[tokio::test(start_paused = true)]
async fn the_marks_of_the_control_lane_are_told_of() {
    let told = async |high: u64| {
        let mut builder = Builder::new(&Cast::default(), vec![says(first())]);
        let flow = json!({ "data_mode": "signal", "data_marks": { "high": 100, "low": 50 },
            "control_marks": { "high": high, "low": high - 1 }, "telemetry_marks": { "high": 200, "low": 100 } });
        builder.settings.session.flow_control = Some(serde_json::from_value(flow).unwrap());
        let ended = builder.hold().await;
        assert_eq!(ended.turn(1).agent_text_played, ended.turn(1).agent_text);
        let of_lane = |kind| {
            let signals = ended.log.signals_of(kind).into_iter();
            let signals = signals.filter(|signal| signal.target_lane == Some(Lane::Control));
            signals.collect::<Vec<_>>()
        };
        let marks = of_lane(Signal::Watermark);
        for mark in &marks {
            let reason = mark.reason.as_ref().unwrap();
            assert_eq!(reason.as_str(), "lane_queue_high_watermark");
            let name = mark.envelope.edge_id.as_ref().unwrap().as_str();
            assert!(
                name.starts_with("plan/") && name.ends_with("/control"),
                "{name}"
            );
        }
        let (off, on) = (of_lane(Signal::FlowXoff), of_lane(Signal::FlowXon));
        assert_eq!(off.len(), marks.len());
        assert!(off.len() - on.len() <= 1);
        marks.len()
    };
    assert!(told(1).await > 0);
    assert_eq!(told(60).await, 0);
}

/// F-144, F-147, F-142: the marks of the telemetry lane hold on the telemetry side of each edge, unless the edge's own
/// are lower; the signal says which lane it is about, and neither sender nor data waits for what is measured.
#[tokio::test(start_paused = true)]
async fn the_marks_of_the_telemetry_lane_hold_on_its_edges() {
    for (lane, own, reason) in [
        (5, 15, "lane_queue_high_watermark"),
        (100, 8, "edge_watermark_high"),
    ] {
        let mut probes = Probes::default();
        let measured = probes.source("source", |nth, cx: &mut NodeContext| {
            cx.emit(Payload::Metrics(Box::new(MetricSample {
                name: "frames_heard".to_owned(),
                value: f64::from(nth),
                labels: BTreeMap::new(),
            })));
        });
        let (taken, _) = probes.sink("gauge", Duration::from_millis(300));
        let mut builder = Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(|spec| {
                let marks = json!({ "queue_items": { "high": own, "low": own - 2 } });
                let buffer = json!({ "max_queue_items": 20, "watermarks": marks });
                let edge = json!({ "from": "source", "to": "gauge", "carries": "metrics", "buffer": buffer });
                branch(spec, "source", &[edge]);
            })
            .configure(probes.install());
        let flow = json!({ "data_mode": "signal", "data_marks": { "high": 100, "low": 50 },
            "control_marks": { "high": 20, "low": 10 }, "telemetry_marks": { "high": lane, "low": 2 } });
        builder.settings.session.flow_control = Some(serde_json::from_value(flow).unwrap());
        let ended = builder.hold().await;
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.turn(1).agent_text_played, ended.turn(1).agent_text);
        let marks = of_edge(&ended, Signal::Watermark, "source->gauge:metrics");
        assert!(!marks.is_empty(), "{lane}");
        for mark in marks {
            assert_eq!(mark.target_lane, Some(Lane::Telemetry));
            assert_eq!(mark.reason.unwrap().as_str(), reason);
        }
        // What finds no room is lost, and its sender heard every frame all the same.
        let (made, kept) = (get(&measured.events), taken.events().len());
        assert!(made > 100 && kept < made as usize, "{kept} of {made}");
    }
}
