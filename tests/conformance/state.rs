//! What nodes remember: each scope survives what it is declared to survive, and nothing else.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_controlplane_api::{LocalLeases, MemoryStore, StateStore, Version};
use rspp_host::{
    Event,
    node::{NodeContext, Step},
};
use rspp_kernel::state::StateError;
use rspp_proto::{
    Payload, SessionId, SpeechMark,
    abi::Signal,
    spec::{Consistency, PipelineSpec, SpeculationPolicy},
};
use rspp_provider_api::scripted::{ScriptedEndOfTurn, ScriptedLlm};
use rspp_tests::{
    call::{Builder, Cast, Ended, LONG, after_reply, first, over_reply, says, tone},
    nodes::{Probes, custom, insert},
};
use rspp_transport_api::loopback::{Start, Utterance};
use serde_json::json;

/// What a test's nodes have seen, in order.
type Seen = Arc<Mutex<Vec<String>>>;

fn note(seen: &Seen, what: impl Into<String>) {
    seen.lock().unwrap().push(what.into());
}

fn taken(seen: &Seen) -> Vec<String> {
    std::mem::take(&mut *seen.lock().unwrap())
}

/// Counts up, and says how often it was there.
fn count(read: Option<serde_json::Value>) -> u64 {
    read.and_then(|value| value.as_u64()).unwrap_or(0) + 1
}

fn between_model_and_voice(spec: &mut PipelineSpec) {
    insert(spec, "segmenter", custom("counter"), "tts");
}

/// F-155: turn-ephemeral state goes with its turn, session-hot state stays.
#[tokio::test(start_paused = true)]
async fn a_turns_state_ends_with_it_and_the_sessions_does_not() {
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let mut probes = Probes::default();
    probes.add(
        "counter",
        move |_nth, cx: &mut NodeContext, event: Event| {
            if let Payload::Text(_) = &event.payload {
                let turn = cx.turn_state().expect("it is of a turn");
                let (of_turn, of_session) = (count(turn.get("n")), count(cx.hot_state().get("n")));
                turn.put("n", &json!(of_turn)).unwrap();
                cx.hot_state().put("n", &json!(of_session)).unwrap();
                note(&log, format!("{of_turn} {of_session}"));
            }
            cx.forward(event);
            Step::OK
        },
    );
    // Two clauses a turn.
    let ended = Builder::new(&Cast::default(), vec![says(first()), says(after_reply())])
        .pipeline(between_model_and_voice)
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit", "commit"]);
    assert_eq!(taken(&seen), ["1 1", "2 2", "1 3", "2 4"]);
    assert_eq!(ended.report.hot_state_bytes, 2);
}

/// A node that listens is of no turn, and so there is no state of one for it. What it keeps in the
/// session survives its own crash.
#[tokio::test(start_paused = true)]
async fn hot_state_survives_the_restart_of_its_node() {
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let mut probes = Probes::default();
    probes.add("counter", move |nth, cx: &mut NodeContext, event: Event| {
        if let Payload::Speech(SpeechMark::Started { .. }) = &event.payload {
            assert!(cx.turn_state().is_none());
            let n = count(cx.hot_state().get("n"));
            cx.hot_state().put("n", &json!(n)).unwrap();
            note(&log, format!("{nth} {n}"));
            assert!(n != 1, "its first utterance is too much for it");
        }
        cx.forward(event);
        Step::OK
    });
    let ended = Builder::new(
        &Cast::default(),
        vec![says(first()), says(Start::At(Duration::from_secs(6)))],
    )
    .pipeline(|spec| insert(spec, "vad", custom("counter"), "stt"))
    .configure(probes.install())
    .hold()
    .await;
    assert_eq!(ended.report.node_failures, 1);
    // It counts its own events anew after the crash; what it had kept is there.
    let seen = taken(&seen);
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(
        seen[0].ends_with(" 1") && seen[1].ends_with(" 2"),
        "{seen:?}"
    );
}

/// F-155, P19: state is bounded, and a value that is too large is refused, not cut.
#[tokio::test(start_paused = true)]
async fn state_is_bounded() {
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let mut probes = Probes::default();
    probes.add("counter", move |nth, cx: &mut NodeContext, event: Event| {
        if nth == 1 {
            let large = json!("x".repeat(100));
            let turn = cx.turn_state().expect("it is of a turn");
            note(&log, turn.put("k", &large).unwrap_err().to_string());
            note(
                &log,
                cx.hot_state().put("k", &large).unwrap_err().to_string(),
            );
            assert_eq!((turn.bytes(), cx.hot_state().bytes()), (0, 0));
            let (durable, log) = (cx.durable_state(), Arc::clone(&log));
            cx.forward(event);
            return Step::Wait(Box::pin(async move {
                let refused = durable.put("k", &large).await.unwrap_err();
                note(&log, refused.to_string());
                Ok(())
            }));
        }
        cx.forward(event);
        Step::OK
    });
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(between_model_and_voice)
        .pipeline(|spec| {
            spec.state.turn_max_bytes = 50;
            spec.state.hot_max_bytes = 60;
            spec.state.durable_max_bytes = 70;
        })
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(
        taken(&seen),
        [
            "`k` would make it 103 bytes; at most 50 are kept",
            "`k` would make it 103 bytes; at most 60 are kept",
            "`k` would make it 102 bytes; at most 70 are kept",
        ]
    );
}

/// P1: a node of a turn that was interrupted changes nothing any more.
#[tokio::test(start_paused = true)]
async fn a_dead_turn_writes_nothing() {
    let (seen, store) = (Seen::default(), Arc::new(Mutex::new(None)));
    let (log, kept) = (Arc::clone(&seen), Arc::clone(&store));
    let mut probes = Probes::default();
    probes.add("counter", move |nth, cx: &mut NodeContext, event: Event| {
        if nth == 1 {
            kept.lock()
                .unwrap()
                .get_or_insert_with(|| cx.durable_state());
        }
        cx.forward(event);
        note(&log, "event");
        Step::OK
    });
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "All right."])),
        ..Cast::default()
    };
    let call = Builder::new(&cast, vec![says(first()), says(over_reply(700))])
        .pipeline(between_model_and_voice)
        .configure(probes.install())
        .start()
        .await;
    call.log.until(Signal::TurnOpen, 2).await;
    let of_first = store
        .lock()
        .unwrap()
        .clone()
        .expect("the first turn's node kept it");
    let late = of_first.put("k", &json!("too late")).await;
    assert_eq!(late, Err(StateError::TurnOver));
    assert_eq!(of_first.get("k").await, Ok(None));
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
}

/// A call whose node counts its turns in the session and in the conversation.
fn counting(leases: &Arc<LocalLeases>, store: &Arc<MemoryStore>, seen: &Seen) -> Builder {
    let log = Arc::clone(seen);
    let mut probes = Probes::default();
    probes.add("counter", move |nth, cx: &mut NodeContext, event: Event| {
        let durable = cx.durable_state();
        let hot = count(cx.hot_state().get("n"));
        if nth == 1 {
            cx.hot_state().put("n", &json!(hot)).unwrap();
        }
        cx.forward(event);
        if nth > 1 {
            return Step::OK;
        }
        let log = Arc::clone(&log);
        Step::Wait(Box::pin(async move {
            let known = durable.get("turns").await.unwrap();
            let (value, version) = known.map_or((None, Version(0)), |(v, n)| (Some(v), n));
            let turns = count(value);
            match durable.replace("turns", &json!(turns), version).await {
                Ok(version) => note(&log, format!("hot {hot} durable {turns} at {}", version.0)),
                Err(error) => note(&log, error.to_string()),
            }
            Ok(())
        }))
    });
    let (leases, store) = (Arc::clone(leases), Arc::clone(store));
    let install = probes.install();
    Builder::new(&Cast::default(), vec![says(first()), says(after_reply())])
        .pipeline(between_model_and_voice)
        .configure(move |config| {
            install(config);
            config.leases = leases;
            config.store = Some(store);
        })
}

/// F-155, F-156: a session that is taken over loses what was hot and keeps what was durable; the
/// placement that was replaced writes nothing any more, and that is told.
#[tokio::test(start_paused = true)]
async fn durable_state_moves_with_the_session_and_hot_state_does_not() {
    let leases = Arc::new(LocalLeases::default());
    let store = Arc::new(MemoryStore::new(Arc::<LocalLeases>::clone(&leases)));
    let seen = Seen::default();
    let before = counting(&leases, &store, &seen).start().await;
    before.log.until(Signal::TurnOpen, 1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(taken(&seen), ["hot 1 durable 1 at 1"]);

    // Another placement takes the session over while the first one still talks.
    let after = counting(&leases, &store, &seen).start().await;
    after.log.until(Signal::TurnOpen, 1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(taken(&seen), ["hot 1 durable 2 at 2"]);

    // The first one does not know yet: it may not open a turn, and so asks to write nothing.
    let before: Ended = before.end().await;
    assert_eq!(before.endings()[0], "commit");
    let after = after.end().await;
    assert_eq!(after.endings(), ["commit", "commit"]);
    assert_eq!(taken(&seen), ["hot 2 durable 3 at 3"]);

    // The conversation is over for good, and nothing is left of it (P20).
    let session = SessionId::new("call").unwrap();
    assert_eq!(store.bytes(&session).await, Ok(0));
}

/// F-156, T12: a write that is on its way while the session is taken over is refused by the store.
#[tokio::test(start_paused = true)]
async fn a_stale_writer_is_refused_by_the_store_and_told_of() {
    let leases = Arc::new(LocalLeases::default());
    let store = Arc::new(MemoryStore::new(Arc::<LocalLeases>::clone(&leases)));
    let kept = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&kept);
    let mut probes = Probes::default();
    probes.add(
        "counter",
        move |_nth, cx: &mut NodeContext, event: Event| {
            keep.lock()
                .unwrap()
                .get_or_insert_with(|| cx.durable_state());
            cx.forward(event);
            Step::OK
        },
    );
    let install = probes.install();
    let (granted, shared) = (Arc::clone(&leases), Arc::clone(&store));
    let call = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| insert(spec, "vad", custom("counter"), "stt"))
        .configure(move |config| {
            install(config);
            config.leases = granted;
            config.store = Some(shared);
        })
        .start()
        .await;
    call.log.until(Signal::TurnOpen, 1).await;
    let durable = kept.lock().unwrap().clone().expect("speech was marked");
    assert_eq!(durable.put("k", &json!(1)).await, Ok(Version(1)));
    leases.acquire(&SessionId::new("call").unwrap()).unwrap();
    let refused = durable.put("k", &json!(2)).await.unwrap_err();
    assert_eq!(refused.to_string(), "session call is held at e2, not e1");
    let value = durable.get("k").await.unwrap();
    assert_eq!(value, Some((json!(1), Version(1))));
    let ended = call.end().await;
    let reasons = ended.log.reasons_of(Signal::StaleEpochReject);
    assert!(
        reasons.contains(&"authority_epoch_mismatch".to_owned()),
        "{reasons:?}"
    );
}

/// F-155: how old a durable value may be is declared, and held to.
#[tokio::test(start_paused = true)]
async fn durable_reads_are_as_fresh_as_declared() {
    let bounded = Consistency::BoundedStaleness {
        max_staleness_ms: 1_000,
    };
    for (consistency, after_half, after_two) in [(Consistency::Strong, 2, 2), (bounded, 1, 2)] {
        let leases = Arc::new(LocalLeases::default());
        let store = Arc::new(MemoryStore::new(Arc::<LocalLeases>::clone(&leases)));
        let kept = Arc::new(Mutex::new(None));
        let keep = Arc::clone(&kept);
        let mut probes = Probes::default();
        probes.add(
            "counter",
            move |_nth, cx: &mut NodeContext, event: Event| {
                keep.lock()
                    .unwrap()
                    .get_or_insert_with(|| cx.durable_state());
                cx.forward(event);
                Step::OK
            },
        );
        let install = probes.install();
        let (granted, shared) = (Arc::clone(&leases), Arc::clone(&store));
        let call = Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(|spec| insert(spec, "vad", custom("counter"), "stt"))
            .pipeline(move |spec| spec.state.durable_consistency = consistency)
            .configure(move |config| {
                install(config);
                config.leases = granted;
                config.store = Some(shared);
            })
            .start()
            .await;
        call.log.until(Signal::TurnOpen, 1).await;
        let durable = kept.lock().unwrap().clone().expect("speech was marked");
        durable.put("k", &json!(1)).await.unwrap();
        // Somebody else writes, under the same lease: the control plane itself, say.
        let lease = rspp_controlplane_api::Lease::new(
            SessionId::new("call").unwrap(),
            rspp_proto::Epoch::FIRST,
        );
        let write = rspp_controlplane_api::Write {
            key: "counter/k".to_owned(),
            value: "2".into(),
            expected: None,
        };
        store.write(&lease, write).await.unwrap();
        let read = async || durable.get("k").await.unwrap().map(|(value, _)| value);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(read().await, Some(json!(after_half)));
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(read().await, Some(json!(after_two)));
        call.end().await;
    }
}

/// P9: a guess that is wrong leaves no state behind; one that is right keeps what it wrote.
#[tokio::test(start_paused = true)]
async fn what_a_wrong_guess_remembers_never_was() {
    let length = Duration::from_secs(1);
    let begins = |ms| Utterance {
        audio: tone(length),
        start: Start::At(Duration::from_millis(ms)),
    };
    let cast = Cast {
        end_of_turn: Arc::new(ScriptedEndOfTurn::always("eot", 0.2)),
        ..Cast::default()
    };
    let leases = Arc::new(LocalLeases::default());
    let store = Arc::new(MemoryStore::new(Arc::<LocalLeases>::clone(&leases)));
    let seen = Seen::default();
    let mut builder = counting(&leases, &store, &seen);
    builder.providers = cast.providers();
    builder.script.utterances = vec![begins(300), begins(2_200)];
    let ended = builder
        .pipeline(|spec| {
            spec.turns.speculation = SpeculationPolicy {
                enabled: true,
                ..SpeculationPolicy::default()
            };
        })
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.report.speculation.discarded, 1);
    assert_eq!(taken(&seen), ["hot 1 durable 1 at 1"]);
}
