//! The whole vocabulary: every control signal on the wire of running sessions, each by who may say it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rspp_controlplane_api::LocalLeases;
use rspp_host::{
    Event, Snapshots, Tags,
    node::{NodeContext, NodeError, Step},
};
use rspp_kernel::CancelReason;
use rspp_proto::{
    ProviderId, SampleIndex, SyncDomain, SyncId,
    abi::{Emitter, Signal},
    spec::{CircuitPolicy, Modality, Priority, Quota, RecordingLevel},
};
use rspp_provider_api::{
    Fault,
    scripted::{Conduct, Script, ScriptedLlm},
};
use rspp_tests::{
    call::{Builder, Cast, LONG, REPLY, after_reply, first, over_reply, says},
    load::Cpu,
    nodes::{Probes, branch, custom, forward, insert, words},
    wire::{Opening, Wire},
};
use rspp_timeline::{Capacity, Entry, Options, Recorder, Room};
use rspp_transport_api::{Ingress, Link};
use serde_json::{Value, json};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What event-abi.md §4 says about the reason of a signal.
enum Reason {
    /// It may have one.
    Free,
    /// It has one, and names what it is about.
    Some,
    /// It is one of these.
    Of(&'static [&'static str]),
}

/// The table of event-abi.md §4, with the reasons of §4 and lifecycle.md §5.
fn table() -> Vec<(Signal, &'static [&'static str], Reason)> {
    use Reason::{Free, Of};
    use Signal as S;
    const INTENT: &[&str] = &["session_turn_intent"];
    const ABORTS: &[&str] = &[
        "cancelled",
        "authority_loss",
        "recording_evidence_unavailable",
        "provider_failure",
        "node_timeout_or_failure",
        "transport_disconnect_or_stall",
        "budget_exhausted",
    ];
    const CANCELS: &[&str] = &["barge_in", "user_cancel", "timeout", "provider_error"];
    const ADMITTED: &[&str] = &["admission_capacity_allow"];
    const REFUSED: &[&str] = &[
        "admission_capacity_reject",
        "admission_capacity_defer",
        "snapshot_invalid_or_missing",
        "plan_materialization_failed",
    ];
    const SHEDS: &[&str] = &[
        "scheduling_point_shed",
        "execution_pool_saturated",
        "execution_pool_closed",
        "node_concurrency_limited",
    ];
    const DRAINS: &[&str] = &["authority_revoked_before_open", "authority_revoked_in_turn"];
    const PRESSED: &[&str] = &["edge_watermark_high", "lane_queue_high_watermark"];
    const LOST: &[&str] = &[
        "queue_pressure_drop",
        "telemetry_best_effort_drop",
        "sync_atomic_drop",
        "sync_drop_with_discontinuity",
        "merge_sources_not_named",
    ];
    const TORN: &[&str] = &["sync_drop_with_discontinuity", "sync_domain_partial_loss"];
    vec![
        (S::TurnOpenProposed, &["RK-02"], Of(INTENT)),
        (S::TurnOpen, &["RK-03"], Free),
        (S::Commit, &["RK-03"], Free),
        (S::Abort, &["RK-03"], Of(ABORTS)),
        (S::Close, &["RK-03"], Free),
        (S::BargeIn, &["RK-06", "RK-16"], Free),
        (S::Stop, &["RK-06", "RK-16"], Free),
        (S::Cancel, &["RK-06", "RK-16"], Of(CANCELS)),
        (S::Watermark, &["RK-13"], Of(PRESSED)),
        (S::BudgetWarning, &["RK-17"], Reason::Some),
        (S::BudgetExhausted, &["RK-17"], Reason::Some),
        (S::Degrade, &["RK-13", "RK-17"], Reason::Some),
        (S::Fallback, &["RK-13", "RK-17"], Reason::Some),
        (S::Discontinuity, &["RK-15"], Of(TORN)),
        (S::DropNotice, &["RK-12", "RK-13"], Of(LOST)),
        (S::FlowXoff, &["RK-14"], Reason::Some),
        (S::FlowXon, &["RK-14"], Free),
        (S::CreditGrant, &["RK-14"], Free),
        (S::ProviderError, &["RK-11"], Reason::Some),
        (S::CircuitEvent, &["RK-11"], Reason::Some),
        (S::ProviderSwitch, &["RK-11"], Reason::Some),
        (S::LeaseIssued, &["CP-07", "CP-08"], Free),
        (
            S::LeaseRotated,
            &["CP-07", "CP-08"],
            Of(&["authority_epoch_rotation"]),
        ),
        (
            S::MigrationStart,
            &["CP-07", "CP-08"],
            Of(&["region_failover_start"]),
        ),
        (
            S::MigrationFinish,
            &["CP-07", "CP-08"],
            Of(&["region_failover_complete"]),
        ),
        (
            S::SessionHandoff,
            &["CP-07", "CP-08"],
            Of(&["authoritative_handoff"]),
        ),
        (S::Admit, &["RK-25", "CP-05"], Of(ADMITTED)),
        (S::Reject, &["RK-25", "CP-05"], Of(REFUSED)),
        (S::Defer, &["RK-25", "CP-05"], Of(REFUSED)),
        (S::Shed, &["RK-25"], Of(SHEDS)),
        (
            S::StaleEpochReject,
            &["RK-24"],
            Of(&["authority_epoch_mismatch"]),
        ),
        (S::DeauthorizedDrain, &["RK-24"], Of(DRAINS)),
        (S::Connected, &["RK-23"], Free),
        (S::Reconnecting, &["RK-23"], Free),
        (S::Disconnected, &["RK-23"], Free),
        (S::Ended, &["RK-23"], Free),
        (S::Silence, &["RK-23"], Free),
        (S::Stall, &["RK-23"], Free),
        (
            S::OutputAccepted,
            &["RK-22", "RK-23"],
            Of(&["output_accepted"]),
        ),
        (S::PlaybackStarted, &["RK-22", "RK-23"], Free),
        (S::PlaybackCompleted, &["RK-22", "RK-23"], Free),
        (
            S::PlaybackCancelled,
            &["RK-22", "RK-23"],
            Of(&["cancel_fence_applied"]),
        ),
        (
            S::RecordingLevelDowngraded,
            &["OR-02"],
            Of(&["stage_a_detail_overflow"]),
        ),
    ]
}

/// Who gave each signal, and why, in all recordings.
#[derive(Default)]
struct Seen(BTreeMap<Signal, BTreeSet<(Emitter, String)>>);

impl Seen {
    fn add(&mut self, entries: &[Entry]) {
        for entry in entries {
            let Entry::Signal(signal) = entry else {
                continue;
            };
            assert_eq!(signal.validate(), Ok(()), "{signal:?}");
            let reason = signal.reason.as_ref();
            let reason = reason.map_or_else(String::new, ToString::to_string);
            let given = self.0.entry(signal.signal).or_default();
            given.insert((signal.emitted_by, reason));
        }
    }

    fn by(&self, signal: Signal) -> BTreeSet<&'static str> {
        let given = self.0.get(&signal).into_iter().flatten();
        given.map(|(emitter, _)| emitter.as_str()).collect()
    }
}

fn talkative() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "All right."])),
        ..Cast::default()
    }
}

/// A conversation: an interruption, a client's stop, an operator's stop, an answer to the end.
async fn conversation(seen: &mut Seen) {
    let wire = Wire::open(&talkative(), Opening::default()).await;
    wire.types("tell me a story");
    wire.until(Signal::PlaybackStarted, 1).await;
    wire.types("another one");
    wire.until(Signal::PlaybackStarted, 2).await;
    wire.send(Ingress::Cancel);
    wire.until(Signal::Close, 2).await;
    wire.types("and now");
    wire.until(Signal::PlaybackStarted, 3).await;
    wire.session.cancel(CancelReason::UserCancel).await;
    wire.types("the end");
    wire.until(Signal::Close, 4).await;
    seen.add(&wire.end().await.entries);
    // By voice, with a silence of doubt before it.
    let said = vec![says(first()), says(over_reply(700)), says(after_reply())];
    seen.add(&Builder::new(&talkative(), said).hold().await.entries);
}

/// A line on which nothing is heard, that is lost and comes back, and whose peer then takes nothing.
async fn bad_line(seen: &mut Seen) {
    let mut opening = Opening::default();
    opening.pipeline.connection.silence_after_ms = 1_000;
    opening.pipeline.connection.stall_cleanup_ms = 2_000;
    let wire = Wire::open(&talkative(), opening).await;
    wire.until(Signal::Silence, 1).await;
    wire.send(Ingress::Link(Link::Reconnecting));
    tokio::time::sleep(ms(200)).await;
    wire.send(Ingress::Link(Link::Back));
    wire.types("tell me a story");
    wire.until(Signal::PlaybackStarted, 1).await;
    wire.peer.refuses_one_of(1);
    seen.add(&wire.end_by_itself().await.entries);
}

fn roomy(more: &Value) -> Value {
    let mut buffer = json!({ "max_queue_items": 8, "max_queue_ms": 600_000,
        "max_queue_bytes": 1_000_000, "max_latency_contribution_ms": 600_000 });
    let into = buffer.as_object_mut().expect("an object");
    into.extend(more.as_object().expect("an object").clone());
    buffer
}

/// Edges under pressure, each with a contract of its own.
async fn pressure(seen: &mut Seen) {
    let mut probes = Probes::default();
    probes.source("source", |nth, cx| cx.emit(words(nth, "word", false)));
    // Nothing holds this one back.
    probes.source("moments", |nth, cx: &mut NodeContext| {
        let moment = nth / 4;
        let tags = Tags {
            sync_id: Some(SyncId::new(format!("moment-{moment}")).unwrap()),
            sync_domain: Some(SyncDomain::new("av").unwrap()),
            key: None,
        };
        let word = words(moment, "word", false);
        cx.emit_tagged(word, SampleIndex(0), moment, Arc::new(tags));
    });
    for name in ["torn", "told", "granted", "thinned", "replaced"] {
        let _given = probes.sink(name, ms(50));
    }
    let _given = probes.sink("spare", ms(1));
    let marks = json!({ "queue_items": { "high": 6, "low": 2 } });
    let edge = |to: &str, more: Value| json!({ "from": "source", "to": to, "carries": "text", "buffer": roomy(&more) });
    let torn = json!({ "group_by": "sync_id", "policy": "drop_with_discontinuity",
        "scope": "edge_local", "sync_domain": "av" });
    let more = roomy(&json!({ "strategy": "drop_oldest", "sync_drop_policy": torn }));
    let to_torn = json!({ "from": "moments", "to": "torn", "carries": "text", "buffer": more });
    let edges = [
        edge(
            "told",
            json!({ "strategy": "block", "flow_mode": "signal", "max_block_time_ms": 60_000 }),
        ),
        edge(
            "granted",
            json!({ "strategy": "block", "flow_mode": "credit", "max_block_time_ms": 60_000 }),
        ),
        edge(
            "thinned",
            json!({ "strategy": "drop_oldest", "watermarks": marks, "on_high": "degrade" }),
        ),
        edge(
            "replaced",
            json!({ "strategy": "drop_oldest", "watermarks": marks, "on_high": "fallback" }),
        ),
    ];
    let mut builder = Builder::new(&Cast::default(), vec![says(first())]);
    let policy = json!({ "schema": "rspp.policy.bundle.v1",
        "policy_resolution_snapshot": "policy/test",
        "allowed_adaptive_actions": ["degrade", "fallback"] });
    builder.policy = Some(serde_json::from_value(policy).unwrap());
    let ended = builder
        .pipeline(|spec| {
            branch(spec, "moments", &[to_torn]);
            branch(spec, "source", &edges);
            spec.nodes.push(custom("spare"));
            let replaced = spec
                .nodes
                .iter_mut()
                .find(|it| it.id.as_str() == "replaced");
            replaced.unwrap().fallback = Some("spare".parse().unwrap());
        })
        .configure(probes.install())
        .hold()
        .await;
    seen.add(&ended.entries);
}

/// A provider that fails and one that takes over; then a model that never answers.
async fn providers(seen: &mut Seen) {
    let gone = Conduct::good().failing_after(0, Fault::transport("gone"));
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").script(Script::always(gone))),
        ..Cast::default()
    };
    let mut builder = Builder::new(&cast, vec![says(first()), says(after_reply())]);
    let second = Arc::new(ScriptedLlm::new("llm-2").answers([REPLY]));
    builder.providers.add_llm(second);
    let ids = ["llm", "llm-2"].map(|id| ProviderId::new(id).unwrap());
    let bound = &mut builder.settings.defaults.provider_bindings;
    bound.insert(Modality::Llm, ids.into());
    let touchy = CircuitPolicy {
        least_calls: 1,
        fault_percent: 1,
        ..CircuitPolicy::default()
    };
    let ended = builder
        .pipeline(|spec| spec.providers.circuit = Some(Box::new(touchy)))
        .hold()
        .await;
    seen.add(&ended.entries);

    let never = Script::always(Conduct::good().stalling_after(0));
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").script(never)),
        ..Cast::default()
    };
    let ended = Builder::new(&cast, vec![says(first())]).hold().await;
    seen.add(&ended.entries);
}

/// A node that overruns its budget, with a standby and without.
async fn budgets(seen: &mut Seen) {
    for stood_in_for in [true, false] {
        let mut probes = Probes::default();
        probes.add("slow", |nth, cx: &mut NodeContext, event: Event| {
            Step::Wait(Box::pin(async move {
                if nth == 1 {
                    tokio::time::sleep(ms(300)).await;
                }
                cx.forward(event);
                Ok::<(), NodeError>(())
            }))
        });
        probes.add("backup", forward);
        let mut slow = custom("slow");
        slow.budget_ms = Some(200);
        if stood_in_for {
            slow.fallback = Some("backup".parse().unwrap());
        }
        let ended = Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(|spec| {
                insert(spec, "llm", slow, "segmenter");
                if stood_in_for {
                    spec.nodes.push(custom("backup"));
                }
            })
            .configure(probes.install())
            .hold()
            .await;
        seen.add(&ended.entries);
    }
}

/// A session that moves, and one whose lease another has taken.
async fn authority(seen: &mut Seen) {
    let leases = Arc::new(LocalLeases::default());
    let opening = || {
        let leases = Arc::clone(&leases);
        Opening {
            configure: Box::new(move |config| config.leases = leases),
            ..Opening::default()
        }
    };
    let old = Wire::open(&talkative(), opening()).await;
    old.types("tell me a story");
    old.until(Signal::PlaybackStarted, 1).await;
    old.session.leave();
    let new = Wire::open(&Cast::default(), opening()).await;
    old.session.hand_over();
    new.types("hello again");
    new.until(Signal::Close, 1).await;
    leases.acquire(new.session.id()).unwrap();
    new.types("and again");
    new.until(Signal::StaleEpochReject, 1).await;
    seen.add(&old.end_by_itself().await.entries);
    seen.add(&new.end().await.entries);
}

/// Intents and work that a node has no room for.
async fn admission(seen: &mut Seen) {
    let full = Opening {
        configure: Box::new(|config| config.limits.node.turns = Some(Quota::at(0))),
        ..Opening::default()
    };
    let board = Arc::new(Snapshots::default());
    let read = Arc::clone(&board);
    let stale = Opening {
        configure: Box::new(move |config| config.snapshots = read),
        ..Opening::default()
    };
    for (opening, answer) in [(full, Signal::Reject), (stale, Signal::Defer)] {
        let wire = Wire::open(&Cast::default(), opening).await;
        if answer == Signal::Defer {
            board.expire();
        }
        wire.types("hello");
        wire.until(answer, 1).await;
        seen.add(&wire.end().await.entries);
    }
    let cpu = Arc::<Cpu>::default();
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG]).token_every(ms(150))),
        ..Cast::default()
    };
    let mut builder = Builder::new(&cast, vec![says(first())]).configure(cpu.watched());
    builder.settings.session.priority = Some(Priority::Background);
    let call = builder.start().await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    cpu.set(99);
    seen.add(&call.end().await.entries);
}

/// A timeline whose storage stands still for a while.
async fn recording(seen: &mut Seen) {
    let room = |entries| Room {
        entries,
        bytes: entries << 14,
    };
    let (recorder, storage) = Recorder::in_memory(Options {
        level: RecordingLevel::L2,
        capacity: Capacity {
            total: room(240),
            baseline_reserve: room(12),
            terminal_reserve: room(12),
        },
        ..Options::default()
    });
    let said = vec![says(first()), says(after_reply()), says(after_reply())];
    let mut builder = Builder::new(&Cast::default(), said);
    builder.recorder = Some(recorder.clone());
    let call = builder.start().await;
    let mut kept = Vec::new();
    while call.runtime.sessions() > 0 {
        tokio::time::sleep(ms(10)).await;
        if recorder.stats().expect("it records").downgrades > 0 {
            kept.extend(storage.take());
        }
    }
    tokio::time::sleep(ms(100)).await;
    kept.extend(storage.take());
    seen.add(&kept);
}

/// CT-002: all 43 control signals are on the wire of running sessions, each from an emitter that it
/// belongs to and from no other, with a reason wherever one is due, and with those that are written down.
#[tokio::test(start_paused = true)]
async fn every_signal_is_given_by_its_emitters_and_nobody_else() {
    let mut seen = Seen::default();
    conversation(&mut seen).await;
    bad_line(&mut seen).await;
    pressure(&mut seen).await;
    providers(&mut seen).await;
    budgets(&mut seen).await;
    authority(&mut seen).await;
    Box::pin(admission(&mut seen)).await;
    recording(&mut seen).await;

    let table = table();
    assert_eq!(table.len(), 43);
    assert_eq!(Signal::ALL.len(), 43);
    let missing: Vec<_> = Signal::ALL
        .iter()
        .filter(|signal| !seen.0.contains_key(signal))
        .map(|signal| signal.as_str())
        .collect();
    assert!(missing.is_empty(), "never given: {missing:?}");
    for (signal, emitters, reasons) in &table {
        for (emitter, reason) in &seen.0[signal] {
            assert!(
                emitters.contains(&emitter.as_str()),
                "{signal} by {emitter}"
            );
            let fits = match reasons {
                Reason::Free => true,
                Reason::Some => !reason.is_empty(),
                Reason::Of(known) => known.contains(&reason.as_str()),
            };
            assert!(fits, "{signal} by {emitter} because of {reason:?}");
        }
    }
    // Who shares a signal says it where it is theirs to say.
    for (signal, both) in [
        (Signal::Stop, ["RK-06", "RK-16"]),
        (Signal::Degrade, ["RK-13", "RK-17"]),
        (Signal::Fallback, ["RK-13", "RK-17"]),
    ] {
        assert_eq!(seen.by(signal), BTreeSet::from(both), "{signal}");
    }
}
