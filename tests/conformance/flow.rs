//! Flow control, bounds and sharing: every rule of an edge as the plan states it, between real actors.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use proptest::{prelude::*, test_runner::TestRunner};
use rspp_host::{
    Tags,
    node::{NodeContext, Step},
};
use rspp_proto::{
    Payload, SampleIndex,
    abi::{ControlSignal, Emitter, Signal},
};
use rspp_tests::{
    call::{Builder, Cast, Ended, first, says},
    nodes::{Probes, Taken, branch, edge, words},
};
use rspp_timeline::Entry;
use rspp_transport_api::Outgoing;
use serde_json::{Value, json};
use tokio::time::Instant;

const EDGE: &str = "source->sink:text";

/// Long enough for a call not to break any of them.
fn roomy() -> Value {
    json!({ "max_queue_ms": 600_000, "max_queue_bytes": 10_000_000,
            "max_latency_contribution_ms": 600_000 })
}

fn with(buffer: Value, more: Value) -> Value {
    let (Value::Object(mut fields), Value::Object(more)) = (buffer, more) else {
        panic!("a buffer is written as a map");
    };
    fields.extend(more);
    Value::Object(fields)
}

/// A source that says something at each frame, one edge, a sink that takes its time.
async fn one_edge(
    buffer: Value,
    pace: Duration,
    say: impl Fn(u32, &mut NodeContext) + Send + Sync + 'static,
) -> (Taken, Ended) {
    let mut probes = Probes::default();
    probes.source("source", say);
    let (taken, _) = probes.sink("sink", pace);
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            let edge =
                json!({ "from": "source", "to": "sink", "carries": "text", "buffer": buffer });
            branch(spec, "source", &[edge]);
        })
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"], "the call does not notice");
    (taken, ended)
}

fn signals(ended: &Ended, kind: Signal) -> Vec<ControlSignal> {
    let of_edge = |signal: &ControlSignal| {
        signal
            .envelope
            .edge_id
            .as_ref()
            .is_some_and(|id| id.as_str() == EDGE)
    };
    let signals = ended.log.signals_of(kind).into_iter();
    signals.filter(of_edge).collect()
}

/// Sequence numbers that drop notices speak of.
#[track_caller]
fn dropped(ended: &Ended) -> BTreeSet<u64> {
    let mut dropped = BTreeSet::new();
    for notice in signals(ended, Signal::DropNotice) {
        assert_eq!(notice.emitted_by, Emitter::EdgeBufferManager);
        let range = notice.seq_range.unwrap();
        for sequence in range.start..=range.end {
            assert!(dropped.insert(sequence), "{sequence} was dropped twice");
        }
    }
    dropped
}

fn one(_nth: u32, cx: &mut NodeContext) {
    cx.emit(words(0, "word", false));
}

/// The same, once the call is placed and somebody hears what the edge says first.
fn one_later(nth: u32, cx: &mut NodeContext) {
    if nth > 2 {
        one(nth, cx);
    }
}

/// When a source has sent.
type Times = Arc<Mutex<Vec<Instant>>>;

/// Counts what a source has sent and when, so that a test sees it held back.
fn counting() -> (Times, impl Fn(u32, &mut NodeContext)) {
    let sent = Arc::<Mutex<Vec<Instant>>>::default();
    let noted = Arc::clone(&sent);
    let say = move |nth: u32, cx: &mut NodeContext| {
        noted.lock().unwrap().push(Instant::now());
        one(nth, cx);
    };
    (sent, say)
}

/// F-145: under `signal` a fast sender stops at the high mark and goes on at the low one; nothing
/// is lost.
#[tokio::test(start_paused = true)]
async fn under_signal_a_sender_stops_between_the_marks() {
    let marks = json!({ "queue_items": { "high": 6, "low": 2 } });
    let buffer = json!({ "strategy": "block", "max_queue_items": 20, "flow_mode": "signal",
                         "max_block_time_ms": 5_000, "watermarks": marks });
    let (sent, say) = counting();
    let pace = Duration::from_millis(50);
    let (taken, ended) = one_edge(with(roomy(), buffer), pace, say).await;
    assert_eq!(dropped(&ended), BTreeSet::new());
    let sequences = taken.sequences();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
    // At most the high mark waits, one is being taken and one is held by its sender.
    let sent = sent.lock().unwrap().clone();
    for (at, _) in taken
        .events()
        .iter()
        .enumerate()
        .map(|(n, (at, _))| (*at, n))
    {
        let before = sent.iter().filter(|time| **time <= at).count();
        let done = taken
            .events()
            .iter()
            .filter(|(time, _)| *time <= at)
            .count();
        assert!(
            before <= done + 7,
            "{before} were sent when {done} were taken"
        );
    }
    let (off, on) = (
        signals(&ended, Signal::FlowXoff),
        signals(&ended, Signal::FlowXon),
    );
    assert!(off.len() > 5, "{}", off.len());
    assert!(off.len() - on.len() <= 1);
    assert!(
        off.iter()
            .all(|signal| signal.emitted_by == Emitter::FlowControl)
    );
    assert_eq!(signals(&ended, Signal::CreditGrant), []);
}

/// F-145: under `credit` nothing is sent that was not granted, and grants are on the wire.
#[tokio::test(start_paused = true)]
async fn under_credit_nothing_is_sent_without_a_grant() {
    let buffer = json!({ "strategy": "drop_newest", "max_queue_items": 8, "flow_mode": "credit",
                         "max_block_time_ms": 5_000 });
    let pace = Duration::from_millis(50);
    let (taken, ended) = one_edge(with(roomy(), buffer), pace, one_later).await;
    assert_eq!(
        dropped(&ended),
        BTreeSet::new(),
        "the sender waits for credit"
    );
    let grants = signals(&ended, Signal::CreditGrant);
    let amounts: Vec<u64> = grants.iter().map(|signal| signal.amount.unwrap()).collect();
    // First all that the edge can hold, then half of it each time that so much has left.
    assert!([8, 12].contains(&amounts[0]), "{amounts:?}");
    assert!(
        amounts[1..].iter().all(|amount| *amount == 4),
        "{amounts:?}"
    );
    assert!(amounts.len() > 5);
    let granted: u64 = amounts.iter().sum();
    let got = taken.sequences();
    assert!(got.len() as u64 <= granted, "{} of {granted}", got.len());
    assert!(
        got.len() as u64 + 8 >= granted,
        "{} of {granted}",
        got.len()
    );
    assert_eq!(signals(&ended, Signal::FlowXoff), []);
}

/// F-145: `hybrid` enforces both: the stop comes first where the mark is below the credit.
#[tokio::test(start_paused = true)]
async fn under_hybrid_both_hold_a_sender_back() {
    let marks = json!({ "queue_items": { "high": 3, "low": 1 } });
    let buffer = json!({ "strategy": "drop_newest", "max_queue_items": 8, "flow_mode": "hybrid",
                         "max_block_time_ms": 5_000, "watermarks": marks });
    let pace = Duration::from_millis(50);
    let (taken, ended) = one_edge(with(roomy(), buffer), pace, one_later).await;
    assert_eq!(dropped(&ended), BTreeSet::new());
    assert!(signals(&ended, Signal::FlowXoff).len() > 5);
    let granted: u64 = signals(&ended, Signal::CreditGrant)
        .iter()
        .map(|signal| signal.amount.unwrap())
        .sum();
    assert!(taken.sequences().len() as u64 <= granted);
}

/// F-145: the plan's mode holds for edges that have none of their own, and is read from the frozen
/// plan.
#[tokio::test(start_paused = true)]
async fn the_plans_flow_control_holds_for_every_edge() {
    let mut probes = Probes::default();
    probes.source("source", one);
    probes.sink("sink", Duration::from_millis(50));
    let mut builder = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            let edge = json!({ "from": "source", "to": "sink", "carries": "text" });
            branch(spec, "source", &[edge]);
        })
        .configure(probes.install());
    let flow = json!({ "data_mode": "credit", "data_marks": { "high": 100, "low": 50 },
        "control_marks": { "high": 20, "low": 10 }, "telemetry_marks": { "high": 200, "low": 100 } });
    builder.settings.session.flow_control = Some(serde_json::from_value(flow).unwrap());
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, ended.turn(1).agent_text);
    assert!(!signals(&ended, Signal::CreditGrant).is_empty());
    assert_eq!(signals(&ended, Signal::FlowXoff), []);
    let plan = ended.entries.iter().find_map(|entry| match entry {
        Entry::Plan(plan) => Some(plan.plan.to_value()),
        _something_else => None,
    });
    assert_eq!(plan.unwrap()["flow_control"]["data_mode"], "credit");
}

/// F-148, P16: a sender is blocked for `max_block_time` at most, however long its receiver is stuck,
/// and what it then gives up is said; an edge beside the stuck one is not held up with it.
#[tokio::test(start_paused = true)]
async fn no_sender_is_blocked_for_longer_than_its_time() {
    let mut probes = Probes::default();
    let (sent, say) = counting();
    probes.source("source", say);
    let (stuck, _) = probes.sink("sink", Duration::from_secs(3));
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            let buffer = with(
                roomy(),
                json!({ "strategy": "block", "max_queue_items": 4, "max_block_time_ms": 100 }),
            );
            let edge =
                json!({ "from": "source", "to": "sink", "carries": "text", "buffer": buffer });
            branch(spec, "source", &[edge]);
        })
        .configure(probes.install())
        .hold()
        .await;
    let sent = sent.lock().unwrap().clone();
    let waits: Vec<_> = sent.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let longest = waits.iter().max().unwrap();
    assert!(*longest <= Duration::from_millis(101), "{longest:?}");
    assert!(*longest >= Duration::from_millis(99), "{longest:?}");
    let (got, dropped) = (stuck.sequences(), dropped(&ended));
    assert!(dropped.len() > 10, "{dropped:?}");
    assert!(got.iter().all(|sequence| !dropped.contains(sequence)));
    let known = got.len() + dropped.len();
    // The edge holds four when the user hangs up, and the sender one more.
    assert!((sent.len() - known) <= 5, "{} of {}", known, sent.len());
    let reasons = signals(&ended, Signal::DropNotice);
    let reasons: BTreeSet<_> = reasons.iter().map(|s| s.reason.clone().unwrap()).collect();
    assert_eq!(
        reasons.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["queue_pressure_drop"]
    );
}

/// P16: where two edges lead to one node, a full one holds back its own sender and not the other.
#[tokio::test(start_paused = true)]
async fn a_full_edge_holds_back_its_own_sender_only() {
    let mut probes = Probes::default();
    let (busy_sent, busy) = counting();
    let (calm_sent, calm) = counting();
    probes.source("busy", busy);
    probes.source("calm", move |nth, cx: &mut NodeContext| {
        if nth.is_multiple_of(10) {
            calm(nth, cx);
        }
    });
    let (taken, _) = probes.sink("sink", Duration::from_millis(60));
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            let buffer = with(
                roomy(),
                json!({ "strategy": "block", "max_queue_items": 4, "max_block_time_ms": 10_000 }),
            );
            for source in ["busy", "calm"] {
                let edge =
                    json!({ "from": source, "to": "sink", "carries": "text", "buffer": buffer });
                branch(spec, source, &[edge]);
            }
        })
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.log.signals_of(Signal::DropNotice).len(), 0);
    let longest = |sent: &Mutex<Vec<Instant>>| {
        let sent = sent.lock().unwrap().clone();
        sent.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
    };
    assert!(
        longest(&busy_sent) >= Duration::from_millis(50),
        "it is held back"
    );
    assert_eq!(
        longest(&calm_sent),
        Duration::from_millis(200),
        "it never waits"
    );
    assert!(taken.sequences().len() > 20);
}

/// F-144: where the plan says so, a crossed mark degrades the edge until it is released, and says so;
/// without the plan's leave the session does not open.
#[tokio::test(start_paused = true)]
async fn a_crossed_mark_degrades_where_the_plan_allows_it() {
    let marks = json!({ "queue_items": { "high": 6, "low": 2 } });
    let buffer = json!({ "strategy": "drop_oldest", "max_queue_items": 100, "watermarks": marks,
                         "on_high": "degrade" });
    let buffer = with(roomy(), buffer);
    let build = |actions: Value| {
        let mut probes = Probes::default();
        probes.source("source", one);
        let (taken, _) = probes.sink("sink", Duration::from_millis(25));
        let mut builder = Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(|spec| {
                let edge =
                    json!({ "from": "source", "to": "sink", "carries": "text", "buffer": buffer });
                branch(spec, "source", &[edge]);
            })
            .configure(probes.install());
        let policy = json!({ "schema": "rspp.policy.bundle.v1",
            "policy_resolution_snapshot": "policy/test", "allowed_adaptive_actions": actions });
        builder.policy = Some(serde_json::from_value(policy).unwrap());
        (builder, taken)
    };
    let (builder, taken) = build(json!(["degrade"]));
    let ended = builder.hold().await;
    let degraded = signals(&ended, Signal::Degrade);
    assert_eq!(degraded.len(), signals(&ended, Signal::FlowXoff).len());
    assert!(degraded.len() > 3, "{}", degraded.len());
    for signal in degraded {
        assert_eq!(signal.emitted_by, Emitter::WatermarkEngine);
        assert_eq!(signal.target_lane, Some(rspp_proto::Lane::Data));
        assert_eq!(signal.reason.unwrap().as_str(), "edge_watermark_high");
    }
    // Thinned out under pressure, whole without.
    let lost = dropped(&ended);
    let got = taken.sequences();
    assert!(
        lost.len() > 10 && lost.len() < got.len(),
        "{} of {}",
        lost.len(),
        got.len()
    );
    assert!(
        lost.iter()
            .zip(lost.iter().skip(1))
            .all(|(a, b)| b - a >= 2),
        "{lost:?}"
    );

    let (mut builder, _) = build(json!(["retry"]));
    let runtime = builder.runtime().await;
    let refused = builder.open(&runtime).await.err().unwrap().to_string();
    assert!(
        refused.contains("on_high") && refused.contains("allowed_adaptive_actions"),
        "{refused}"
    );
}

/// F-144, F-007: or it lets the node's standby take over from one that cannot keep up.
#[tokio::test(start_paused = true)]
async fn a_crossed_mark_calls_the_standby_where_the_plan_says_so() {
    let mut probes = Probes::default();
    probes.source("source", one);
    let (slow, _) = probes.sink("sink", Duration::from_millis(60));
    let (quick, _) = probes.sink("spare", Duration::from_millis(5));
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            let marks = json!({ "queue_items": { "high": 6, "low": 2 } });
            let buffer = with(
                roomy(),
                json!({ "strategy": "drop_oldest", "max_queue_items": 100, "watermarks": marks,
                        "on_high": "fallback" }),
            );
            let edge =
                json!({ "from": "source", "to": "sink", "carries": "text", "buffer": buffer });
            branch(spec, "source", &[edge]);
            spec.nodes.push(rspp_tests::nodes::custom("spare"));
            let sink = spec
                .nodes
                .iter_mut()
                .find(|node| node.id.as_str() == "sink");
            sink.unwrap().fallback = Some(rspp_proto::NodeId::new("spare").unwrap());
        })
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(dropped(&ended), BTreeSet::new());
    let fallback = ended.log.signals_of(Signal::Fallback);
    let [fallback] = fallback.as_slice() else {
        panic!("once: {fallback:?}");
    };
    assert_eq!(fallback.emitted_by, Emitter::WatermarkEngine);
    let reason = fallback.reason.as_ref().unwrap().as_str();
    assert_eq!(reason, "from=sink to=spare: edge_watermark_high");
    assert_eq!(ended.report.node_failures, 0, "nobody has failed");
    let (before, after) = (slow.sequences(), quick.sequences());
    assert!(
        before.len() < 10 && after.len() > 100,
        "{} and {}",
        before.len(),
        after.len()
    );
    // What the one was given and had not settled, the other is told again.
    assert!(
        *after.first().unwrap() <= before.last().unwrap() + 1,
        "no gap"
    );
}

/// F-143: each bound alone, broken alone, with an action of its own; the plan says who set it.
#[tokio::test(start_paused = true)]
async fn each_bound_acts_alone_and_says_who_set_it() {
    let slow = Duration::from_millis(100);
    let frame = |cx: &mut NodeContext| cx.emit(words(0, "twelve bytes", false));
    for (bound, buffer, newest_survive) in [
        ("max_queue_items", json!({ "max_queue_items": 4 }), true),
        (
            "max_queue_bytes",
            json!({ "max_queue_bytes": 48, "max_queue_items": 1_000 }),
            true,
        ),
        (
            "max_queue_ms",
            json!({ "max_queue_ms": 100, "max_queue_items": 1_000 }),
            true,
        ),
        (
            "max_queue_bytes",
            json!({ "max_queue_bytes": 48, "max_queue_items": 1_000,
                    "actions": { "bytes": "drop_newest" } }),
            false,
        ),
        (
            "max_queue_items",
            json!({ "max_queue_items": 4, "actions": { "items": "drop_newest" } }),
            false,
        ),
        (
            "max_queue_ms",
            json!({ "max_queue_ms": 400, "max_queue_items": 1_000,
                    "actions": { "age": "drop_newest" } }),
            false,
        ),
    ] {
        let name = format!("{bound} of {buffer}");
        let buffer = with(roomy(), with(json!({ "strategy": "drop_oldest" }), buffer));
        let (taken, ended) = one_edge(buffer, slow, move |_, cx| frame(cx)).await;
        let (got, lost) = (taken.sequences(), dropped(&ended));
        assert!(lost.len() > 50, "{name}: {}", lost.len());
        assert!(
            got.iter().all(|sequence| !lost.contains(sequence)),
            "{name}"
        );
        // Where the newest survive the sink is never far behind; else it takes what came long ago.
        let (_, last) = taken.events().last().cloned().unwrap();
        let sent = lost.iter().chain(&got).max().copied().unwrap();
        assert_eq!(
            sent - last.stamp.sequence <= 12,
            newest_survive,
            "{name}: {} of {sent}",
            last.stamp.sequence
        );
        let plan = ended.entries.iter().find_map(|entry| match entry {
            Entry::Plan(plan) => Some(plan.plan.to_value()),
            _something_else => None,
        });
        let plan = plan.unwrap();
        let policies = &plan["edge_buffer_policies"];
        assert_eq!(policies[EDGE]["defaulting_source"], "explicit_edge_config");
        let usual = &policies["llm->segmenter:text"]["defaulting_source"];
        assert_eq!(usual, "execution_profile_default");
        let origin = &plan["provenance"][format!("edge_buffer_policies/{EDGE}/{bound}")];
        assert_eq!(origin["layer"], "pipeline", "{name}");
    }
}

/// F-143, F-054: latency that an edge adds is bounded by itself, in played time.
#[tokio::test(start_paused = true)]
async fn added_latency_is_bounded_in_played_time() {
    let mut probes = Probes::default();
    let (taken, _) = probes.sink("ear", Duration::from_millis(60));
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            let buffer = with(
                json!({ "strategy": "drop_oldest", "max_queue_items": 1_000 }),
                with(roomy(), json!({ "max_latency_contribution_ms": 100 })),
            );
            spec.nodes.push(rspp_tests::nodes::custom("ear"));
            spec.edges.push(rspp_tests::nodes::edge(json!({
                "from": "ingress", "to": "ear", "carries": "audio", "buffer": buffer })));
        })
        .configure(probes.install())
        .hold()
        .await;
    let events = taken.events();
    let late = events.iter().map(|(at, event)| {
        let began = events[0].0 - events[0].1.stamp.made.as_duration();
        (*at - began).saturating_sub(event.stamp.made.as_duration())
    });
    let latest = late.max().unwrap();
    let ms = Duration::from_millis;
    assert!((ms(60)..=ms(200)).contains(&latest), "{latest:?} late");
    assert!(ended.log.signals_of(Signal::DropNotice).len() > 10);
}

/// F-150: a turn with merges and provider calls exports its seed, its order, the merge rule with its
/// version, and every outside input with where the recording holds it.
#[tokio::test(start_paused = true)]
async fn a_turn_with_merges_and_calls_exports_what_a_replay_needs() {
    let buffer = with(
        roomy(),
        json!({ "strategy": "merge", "max_queue_items": 8 }),
    );
    let (_, ended) = one_edge(buffer, Duration::from_millis(90), |nth, cx| {
        cx.emit(words(nth / 20, "so far", nth % 20 == 19));
    })
    .await;
    let merges = ended.entries.iter().filter(|entry| match entry {
        Entry::Event(event) => event.record.envelope.merge_group_id.is_some(),
        _no_event => false,
    });
    assert!(merges.count() > 10);
    let calls: BTreeSet<(String, String)> = ended
        .entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Invocation(outcome) if outcome.turn_id.is_some() => Some((
                format!("provider/{}", outcome.modality.as_str()),
                outcome.provider_invocation_id.to_string(),
            )),
            _no_call_of_a_turn => None,
        })
        .collect();
    assert!(!calls.is_empty());
    let turns = ended.entries.iter().filter_map(|entry| match entry {
        Entry::Turn(turn) => Some(turn),
        _no_turn => None,
    });
    let mut exported = BTreeSet::new();
    for turn in turns {
        let epoch = turn.lease_epoch_at_turn_open.unwrap();
        let seed = rspp_kernel::determinism::seed(&turn.plan_hash, epoch);
        assert_eq!(turn.determinism_seed, Some(seed));
        assert_eq!(turn.ordering_markers, ["runtime_sequence", "event_id"]);
        assert_eq!(turn.merge_rule_id, "default-merge-rule");
        assert_eq!(turn.merge_rule_version, "v1.0.0");
        let inputs = turn.nondeterministic_inputs.iter();
        let outside = inputs.filter(|input| input.input_key.starts_with("provider/"));
        exported.extend(outside.map(|it| (it.input_key.clone(), it.evidence_ref.clone())));
        assert!(turn.is_complete(), "{:?}", turn.missing());
    }
    assert_eq!(exported, calls);
}

/// F-044, ML-002, ML-003: each merge leaves the group and its sources in the record; a final text is
/// never merged away.
#[tokio::test(start_paused = true)]
async fn every_merge_leaves_its_lineage() {
    let buffer = with(
        roomy(),
        json!({ "strategy": "merge", "max_queue_items": 8 }),
    );
    let (taken, ended) = one_edge(buffer, Duration::from_millis(90), |nth, cx| {
        let segment = nth / 20;
        cx.emit(words(segment, "so far", nth % 20 == 19));
    })
    .await;
    let mut merged = BTreeSet::new();
    let mut groups = BTreeSet::new();
    for entry in &ended.entries {
        let Entry::Event(event) = entry else { continue };
        let envelope = &event.record.envelope;
        let Some(group) = &envelope.merge_group_id else {
            continue;
        };
        assert!(groups.insert(group.clone()), "{group} twice");
        assert_eq!(envelope.edge_id.as_ref().unwrap().as_str(), EDGE);
        let from = envelope.merged_from_event_ids.as_ref().unwrap();
        assert!((2..=64).contains(&from.len()));
        assert!(from.is_sorted(), "{from:?}");
        // The last of them is what was delivered; the others are explained by it.
        for id in &from[..from.len() - 1] {
            let sequence = id.as_str().rsplit(':').next().unwrap();
            assert!(
                merged.insert(sequence.parse::<u64>().unwrap()),
                "{id} twice"
            );
        }
        event.record.validate().unwrap();
    }
    assert!(groups.len() > 10, "{groups:?}");
    let got: BTreeSet<u64> = taken.sequences().into_iter().collect();
    assert!(got.is_disjoint(&merged));
    let last = *got.last().unwrap();
    let missing: Vec<u64> = (1..=last)
        .filter(|s| !got.contains(s) && !merged.contains(s))
        .collect();
    assert_eq!(
        missing,
        Vec::<u64>::new(),
        "every partial is delivered or explained"
    );
    assert_eq!(
        dropped(&ended),
        BTreeSet::new(),
        "only edges that drop count drops"
    );
    let finals = taken
        .events()
        .into_iter()
        .filter(|(_, event)| matches!(&event.payload, Payload::Text(text) if text.is_final));
    let finals: Vec<u64> = finals.map(|(_, event)| event.stamp.sequence).collect();
    let expected: Vec<u64> = (1..=last).filter(|sequence| sequence % 20 == 19).collect();
    assert_eq!(finals, expected);
}

/// F-053: partials come at the configured cadence to a consumer that is always ready, and the final
/// text comes at once.
#[tokio::test(start_paused = true)]
async fn partials_come_at_the_configured_cadence() {
    let buffer = with(
        roomy(),
        json!({ "strategy": "merge", "max_queue_items": 8, "coalesce_ms": 150 }),
    );
    let (taken, _) = one_edge(buffer, Duration::ZERO, |nth, cx| {
        let segment = nth / 50;
        cx.emit(words(segment, "so far", nth % 50 == 49));
    })
    .await;
    let events = taken.events();
    assert!(events.len() > 15, "{}", events.len());
    let mut last: Option<(Instant, u32)> = None;
    for (at, event) in &events {
        let Payload::Text(text) = &event.payload else {
            unreachable!()
        };
        if text.is_final {
            let (began, first) = &events[0];
            let origin = *began - first.stamp.made.as_duration();
            let made = event.stamp.made.as_duration();
            assert_eq!(*at - origin, made, "a final text does not wait");
            last = None;
            continue;
        }
        if let Some((before, segment)) = last
            && segment == text.segment
        {
            let gap = *at - before;
            assert!(gap >= Duration::from_millis(149), "{gap:?}");
            assert!(gap <= Duration::from_millis(171), "{gap:?}");
        }
        last = Some((*at, text.segment));
    }
}

/// F-053: what is held back on its way to the user comes when its time is up, and not only with what is said
/// next.
#[tokio::test(start_paused = true)]
async fn a_partial_for_the_user_comes_when_its_time_is_up() {
    let mut probes = Probes::default();
    probes.source("source", |nth, cx| {
        let said = ["so", "so far"];
        if let Some(text) = said.get(nth as usize - 1) {
            cx.emit(words(0, text, false));
        }
    });
    let mut builder = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            let buffer = json!({ "strategy": "merge", "max_queue_items": 8, "coalesce_ms": 150 });
            branch(spec, "source", &[]);
            spec.edges.push(edge(
                json!({ "from": "source", "to": "egress", "carries": "text",
                        "buffer": with(roomy(), buffer) }),
            ));
        })
        .configure(probes.install());
    let mut screen = builder.screen();
    let shown = tokio::spawn(async move {
        let mut shown = Vec::new();
        while let Some(sent) = screen.recv().await {
            if let Outgoing::Text { text, .. } = sent
                && text.text.starts_with("so")
            {
                shown.push((text.text.to_string(), Instant::now()));
            }
        }
        shown
    });
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    let shown = shown.await.unwrap();
    let texts: Vec<_> = shown.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!(texts, ["so", "so far"]);
    let gap = shown[1].1 - shown[0].1;
    assert!((149..=151).contains(&gap.as_millis()), "{gap:?}");
}

/// Several who share one edge are served in turn, and none is crowded out by a busier one.
#[tokio::test(start_paused = true)]
async fn a_shared_edge_serves_its_users_in_turn() {
    let run = async |fairness: Option<&str>| {
        let mut buffer = with(
            roomy(),
            json!({ "strategy": "drop_oldest", "max_queue_items": 12 }),
        );
        if let Some(key) = fairness {
            buffer["fairness_key"] = key.into();
        }
        let (taken, ended) = one_edge(buffer, Duration::from_millis(20), |nth, cx| {
            let say = |cx: &mut NodeContext, key: &str| {
                let tags = Tags {
                    key: Some(key.into()),
                    ..Tags::default()
                };
                cx.emit_tagged(words(0, key, false), SampleIndex(0), 0, Arc::new(tags));
            };
            // One talks all the time, the other says a word now and then.
            for _ in 0..4 {
                say(cx, "busy");
            }
            if nth % 4 == 0 {
                say(cx, "calm");
            }
        })
        .await;
        let mut counts = BTreeMap::<String, Vec<u64>>::new();
        for (_, event) in taken.events() {
            let key = event
                .tags
                .as_ref()
                .unwrap()
                .key
                .as_ref()
                .unwrap()
                .to_string();
            counts.entry(key).or_default().push(event.stamp.sequence);
        }
        assert!(
            counts.values().all(|of| of.is_sorted()),
            "each in its own order"
        );
        (counts, dropped(&ended))
    };
    let (shared, lost) = run(Some("device")).await;
    let calm = &shared["calm"];
    assert!(calm.iter().all(|sequence| !lost.contains(sequence)));
    let (unfair, _) = run(None).await;
    let of = |counts: &BTreeMap<String, Vec<u64>>| counts.get("calm").map_or(0, Vec::len);
    assert!(
        of(&shared) > of(&unfair) + 10,
        "{} and {}",
        of(&shared),
        of(&unfair)
    );
    // All that it said, but for what may wait when the user hangs up.
    let frames = shared["busy"].last().unwrap() / 17 * 4;
    assert!(
        of(&shared) as u64 + 3 >= frames / 4,
        "{} of {}",
        of(&shared),
        frames / 4
    );
}

/// F-069: drops and merges are counted on edges of that strategy and on no other.
#[tokio::test(start_paused = true)]
async fn only_the_edge_that_lost_something_says_so() {
    let mut probes = Probes::default();
    probes.source("source", |_, cx: &mut NodeContext| {
        cx.emit(words(0, "word", false));
    });
    let slow = Duration::from_millis(60);
    for sink in ["drops", "merges", "roomy"] {
        probes.sink(sink, slow);
    }
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            let edge = |to: &str, more: Value| {
                json!({ "from": "source", "to": to, "carries": "text", "buffer": with(roomy(), more) })
            };
            let edges = [
                edge("drops", json!({ "strategy": "drop_oldest", "max_queue_items": 4 })),
                edge("merges", json!({ "strategy": "merge", "max_queue_items": 4 })),
                edge("roomy", json!({ "strategy": "drop_oldest", "max_queue_items": 4_000 })),
            ];
            branch(spec, "source", &edges);
        })
        .configure(probes.install())
        .hold()
        .await;
    let drops: BTreeSet<_> = ended
        .log
        .signals_of(Signal::DropNotice)
        .into_iter()
        .map(|signal| signal.envelope.edge_id.unwrap().to_string())
        .collect();
    assert_eq!(
        drops.into_iter().collect::<Vec<_>>(),
        ["source->drops:text"]
    );
    let merges = ended.entries.iter().filter_map(|entry| match entry {
        Entry::Event(event) => {
            let envelope = &event.record.envelope;
            envelope.merge_group_id.as_ref()?;
            envelope.edge_id.as_ref().map(ToString::to_string)
        }
        _something_else => None,
    });
    let merges: BTreeSet<_> = merges.collect();
    assert_eq!(
        merges.into_iter().collect::<Vec<_>>(),
        ["source->merges:text"]
    );
}

/// What happens at each frame of a generated history: how much is said, and how long the sink takes.
type History = Vec<u8>;

/// A sink that takes so many frames' time over each event, and is done between two frames: what
/// happens at one instant has no order that could be the same again.
fn between_frames(probes: &mut Probes, frames: u32) -> Arc<Mutex<Vec<u64>>> {
    let first = Mutex::new(None);
    let seen = Arc::<Mutex<Vec<u64>>>::default();
    let noted = Arc::clone(&seen);
    probes.add("sink", move |_nth, _cx: &mut NodeContext, event| {
        let now = Instant::now();
        let began = *first.lock().unwrap().get_or_insert(now);
        noted.lock().unwrap().push(event.stamp.sequence);
        let into_frame = (now - began).as_millis() as u64 % 20;
        let pause = u64::from(frames) * 20 + (27 - into_frame) % 20;
        Step::Wait(Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            Ok(())
        }))
    });
    seen
}

fn run_history(buffer: &Value, history: &History, pace: u32) -> (Vec<u64>, BTreeSet<u64>, u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let history = history.clone();
    let said = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&said);
    let mut probes = Probes::default();
    probes.source("source", move |nth, cx: &mut NodeContext| {
        let burst = history[nth as usize % history.len()];
        for n in 0..burst {
            cx.emit(words(nth / 7, "word", n == 3));
        }
        *counted.lock().unwrap() += u64::from(burst);
    });
    let seen = between_frames(&mut probes, pace);
    let ended = runtime.block_on(
        Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(|spec| {
                let edge =
                    json!({ "from": "source", "to": "sink", "carries": "text", "buffer": buffer });
                branch(spec, "source", &[edge]);
            })
            .configure(probes.install())
            .hold(),
    );
    let (seen, said) = (seen.lock().unwrap().clone(), *said.lock().unwrap());
    (seen, dropped(&ended), said)
}

/// F-008: over generated histories of bursts and any strategy, between real actors: what is sent is
/// delivered at most once and in order, what was dropped is not delivered, and the same input in a
/// new process of the runtime gives the same sequence again.
#[test]
fn edges_deliver_at_most_once_in_order_and_again() {
    let strategies = prop::sample::select(vec![
        "block",
        "drop_oldest",
        "drop_newest",
        "merge",
        "sample",
        "latest_only",
    ]);
    let flows = prop::sample::select(vec!["signal", "credit", "hybrid"]);
    let histories = prop::collection::vec(prop::sample::select(vec![0u8, 0, 0, 1, 1, 2, 9]), 8..40);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 16,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(
            &(strategies, flows, 2u64..12, 0u32..3, histories),
            |(strategy, flow, items, pace, history)| {
                let mut buffer = with(
                    roomy(),
                    json!({ "strategy": strategy, "flow_mode": flow, "max_queue_items": items }),
                );
                if strategy == "block" {
                    buffer["max_block_time_ms"] = 100_000.into();
                }
                let (got, lost, said) = run_history(&buffer, &history, pace);
                prop_assert!(got.is_sorted_by(|a, b| a < b), "{got:?}");
                prop_assert!(got.iter().all(|sequence| !lost.contains(sequence)));
                prop_assert!(got.iter().all(|sequence| *sequence <= said));
                if strategy != "merge" {
                    let known = (got.len() + lost.len()) as u64;
                    // What still waits when the user hangs up, with the sender's last burst.
                    prop_assert!(
                        known <= said && said - known <= items + 10,
                        "{known} of {said}"
                    );
                }
                let (again, lost_again, _) = run_history(&buffer, &history, pace);
                prop_assert_eq!(got, again);
                prop_assert_eq!(lost, lost_again);
                Ok(())
            },
        )
        .unwrap();
}
