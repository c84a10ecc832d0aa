//! Under overload a node takes on less, and sheds what matters least; what it does is undone when the
//! load is gone.

use std::{sync::Arc, time::Duration};

use rspp_host::{
    CapacityKind, Event, OpenError, Runtime,
    node::{NodeContext, NodeError, Step},
};
use rspp_kernel::admission::{Limit, Load, Resource};
use rspp_proto::{
    Payload, PipelineVersion, ProviderId, SampleRate, SessionId, TenantId,
    abi::{OutcomeKind, OutcomePhase, OutcomeScope, Signal},
    spec::{DegradeSpec, Modality, Priority, RecordingLevel, Threshold},
};
use rspp_provider_api::scripted::{Conduct, Script, ScriptedLlm};
use rspp_tests::{
    call::{Builder, Cast, Ended, LONG, Placed, REPLY, after_reply, first, says},
    load::Cpu,
    nodes::{Probes, custom, edge, node},
};
use rspp_timeline::Entry;
use rspp_transport_api::{Ingress, loopback::Start};
use serde_json::json;

fn named(cast: &Cast, name: &str, starts: Vec<Start>) -> Builder {
    let mut builder = Builder::new(cast, starts.into_iter().map(says).collect());
    builder.session = SessionId::new(name).unwrap();
    builder.script.reply_timeout = Duration::from_secs(20);
    builder
}

fn background(mut builder: Builder) -> Builder {
    builder.settings.session.priority = Some(Priority::Background);
    builder
}

/// The next load that is measured.
async fn measured() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

async fn is_let_in(runtime: &Runtime, cast: &Cast) -> bool {
    let newcomer = named(cast, "newcomer", vec![]);
    match newcomer.open(runtime).await {
        Ok(placed) => {
            placed.session.drain();
            placed.end().await;
            true
        }
        Err(OpenError::Refused(refused)) => {
            assert_eq!(refused.cause.unwrap().limit, Limit::Load);
            assert_eq!(refused.outcome.outcome_kind, OutcomeKind::Defer);
            assert!(refused.retry_after.is_some());
            false
        }
        Err(other) => panic!("{other}"),
    }
}

/// The changes of load so far.
fn changes(runtime: &Runtime) -> Vec<(Resource, Load)> {
    let events = runtime.capacity_events().into_iter();
    events
        .filter_map(|event| match event.kind {
            CapacityKind::Load(change) => Some((change.resource, change.to)),
            CapacityKind::OverheadAboveBudget { .. }
            | CapacityKind::OverheadWithinBudget { .. } => None,
        })
        .collect()
}

/// F-172: a busy processor defers newcomers before it is exhausted, and lets them in again only once
/// it has had room for a while; each change is an event.
#[tokio::test(start_paused = true)]
async fn a_busy_processor_defers_newcomers_with_hysteresis() {
    let cast = Cast::default();
    let cpu = Arc::<Cpu>::default();
    let runtime = named(&cast, "host", vec![])
        .configure(cpu.watched())
        .runtime()
        .await;
    let mut news = runtime.watch_capacity();
    assert!(is_let_in(&runtime, &cast).await);
    cpu.set(79);
    measured().await;
    assert!(is_let_in(&runtime, &cast).await, "below the high mark");
    cpu.set(80);
    measured().await;
    assert_eq!(runtime.load(), Load::High);
    assert!(!is_let_in(&runtime, &cast).await);
    cpu.set(60);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!is_let_in(&runtime, &cast).await, "above the low mark");
    cpu.set(50);
    measured().await;
    assert!(!is_let_in(&runtime, &cast).await, "not for long enough");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(is_let_in(&runtime, &cast).await);
    assert_eq!(
        changes(&runtime),
        [(Resource::Cpu, Load::High), (Resource::Cpu, Load::Normal)]
    );
    assert!(matches!(news.try_recv().unwrap().kind, CapacityKind::Load(c) if c.value == 80));
    assert_eq!(runtime.admission().node.sessions.deferred, 3);
}

/// F-172, NF-006: provider calls and queues of real traffic trip their thresholds; who is in is served
/// to the end.
#[tokio::test(start_paused = true)]
async fn real_traffic_trips_the_thresholds_of_calls_and_queues() {
    let marks = Some(Threshold {
        low: 0,
        high: 3,
        severe: 50,
    });
    for (resource, limit) in [(Resource::ProviderCalls, 0), (Resource::Queue, 1)] {
        let script = Script::default().then(Conduct::good().late(Duration::from_millis(900)));
        let cast = Cast {
            llm: Arc::new(ScriptedLlm::new("llm").answers([REPLY]).script(script)),
            ..Cast::default()
        };
        let mut host = named(&cast, "host", vec![]).configure(move |config| {
            let overload = &mut config.limits.overload;
            match resource {
                Resource::ProviderCalls => overload.provider_calls = marks,
                _another => overload.queue_depth = marks,
            }
            overload.recover_after_ms = 500;
        });
        let runtime = host.runtime().await;
        let mut inside: Vec<Placed> = Vec::new();
        for n in 0..4 {
            let call = named(&cast, &format!("call-{n}"), vec![first()]).pipeline(|spec| {
                spec.budgets.turn_budget_ms = Some(60_000);
                spec.budgets.path_budget_ms_default = Some(60_000);
                let llm = spec.nodes.iter_mut().find(|n| n.id.as_str() == "llm");
                llm.unwrap().execution = Some(rspp_proto::spec::NodeExecutionPolicy {
                    concurrency_limit: limit,
                    fairness_key: None,
                    ..Default::default()
                });
            });
            inside.push(call.open(&runtime).await.expect("there is room"));
        }
        for call in &inside {
            call.log.until(Signal::TurnOpen, 1).await;
        }
        measured().await;
        assert!(!is_let_in(&runtime, &cast).await, "{resource:?}");
        for call in inside {
            assert_eq!(call.end().await.endings(), ["commit"]);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(is_let_in(&runtime, &cast).await);
        let seen = changes(&runtime);
        assert_eq!(seen, [(resource, Load::High), (resource, Load::Normal)]);
    }
}

/// P22, F-172: when frames begin to leave late, newcomers are refused before the 99th percentile of
/// lateness has reached a frame's length; who is in is heard to the end, and newcomers are let in
/// again once frames are on time.
#[tokio::test(start_paused = true)]
async fn newcomers_are_refused_before_frames_leave_too_late() {
    let long = [LONG; 4].join(" ");
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([long.clone()])),
        ..Cast::default()
    };
    let runtime = named(&cast, "host", vec![]).runtime().await;
    let call = named(&cast, "call", vec![first()]);
    let call = call.open(&runtime).await.expect("there is room");
    call.log.until(Signal::PlaybackStarted, 1).await;
    // The threads are held up for 12 ms at a time, out of step with the frames: late, but not late
    // enough to be refused for.
    for _ in 0..40 {
        tokio::time::advance(Duration::from_millis(12)).await;
        tokio::time::sleep(Duration::from_millis(9)).await;
    }
    assert!(is_let_in(&runtime, &cast).await);
    for _ in 0..40 {
        tokio::time::advance(Duration::from_millis(18)).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    assert_eq!(
        runtime.load(),
        Load::High,
        "{:?}",
        runtime.capacity_events()
    );
    assert!(!is_let_in(&runtime, &cast).await);
    let lateness: Vec<_> = runtime
        .capacity_events()
        .iter()
        .filter_map(|event| match event.kind {
            CapacityKind::Load(change) => Some((change.resource, change.value)),
            _another => None,
        })
        .collect();
    assert_eq!(lateness[0].0, Resource::Output);
    assert!((15..20).contains(&lateness[0].1), "{lateness:?}");
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, long);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(runtime.load(), Load::Normal);
    assert!(is_let_in(&runtime, &cast).await);
}

fn sheds(ended: &Ended) -> Vec<(OutcomeScope, String)> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Outcome(outcome) if outcome.outcome_kind == OutcomeKind::Shed => {
                assert_eq!(outcome.phase, OutcomePhase::SchedulingPoint);
                Some((outcome.scope, outcome.reason.to_string()))
            }
            _something_else => None,
        })
        .collect()
}

/// F-173, F1: in severe overload background work is shed where it is queued, taken from its queue and
/// dispatched, and its turns are deferred before they exist; a live call beside it is served as if
/// nothing were the matter, and is cancelled as promptly.
#[tokio::test(start_paused = true)]
async fn severe_overload_sheds_background_work_first() {
    let cast = Cast::default();
    let cpu = Arc::<Cpu>::default();
    let mut probes = Probes::default();
    // Listens slowly, so that audio waits for it.
    probes.add("ear", |_nth, _cx: &mut NodeContext, event: Event| {
        Step::Wait(Box::pin(async move {
            if let Payload::AudioChunk(_) = event.payload {
                tokio::time::sleep(Duration::from_millis(60)).await;
            }
            Ok::<(), NodeError>(())
        }))
    });
    let install = probes.install();
    let watch = cpu.watched();
    let mut host = named(&cast, "host", vec![]).configure(move |config| {
        install(config);
        watch(config);
    });
    let runtime = host.runtime().await;
    let listening = |builder: Builder| {
        builder.pipeline(|spec| {
            spec.nodes.push(custom("ear"));
            let to_ear = json!({ "from": "ingress", "to": "ear", "carries": "audio" });
            spec.edges.push(edge(to_ear));
        })
    };
    let mut idle = background(listening(named(&cast, "background", vec![first()])));
    idle.script.hang_up_after = Duration::from_secs(20);
    let typing = idle.client();
    let idle = idle.open(&runtime).await.expect("there is room");
    let live = named(&cast, "live", vec![first(), after_reply(), after_reply()]);
    let live = live.open(&runtime).await.expect("there is room");
    idle.log.until(Signal::Close, 1).await;
    cpu.set(99);
    measured().await;
    assert_eq!(runtime.load(), Load::Severe);
    typing.send(Ingress::Text("hello?".into())).unwrap();
    let live = live.end().await;
    assert_eq!(live.endings(), ["commit"; 3]);
    assert!(sheds(&live).is_empty());
    let first_audio = |turn: u32| live.turn(turn).first_audio_ms.expect("it was heard");
    assert!((first_audio(3) - first_audio(1)).abs() < 5.0);
    let idle = idle.end().await;
    assert_eq!(idle.endings(), ["commit"], "as long as there was room");
    assert_eq!(idle.report.refused, 1);
    assert_eq!(
        idle.log.reasons_of(Signal::Defer),
        ["admission_capacity_defer"]
    );
    let shed = sheds(&idle);
    for point in [OutcomeScope::EdgeEnqueue, OutcomeScope::EdgeDequeue] {
        let said = (point, "scheduling_point_shed".to_owned());
        assert!(shed.contains(&said), "{shed:?}");
    }
    assert!(
        shed.len() < 10,
        "once an episode, not once a frame: {shed:?}"
    );
    assert_eq!(idle.log.signals_of(Signal::Shed).len(), shed.len());
}

/// F-173, F1: work of a background turn that is under way is shed where it is dispatched; its turn has
/// its one end.
#[tokio::test(start_paused = true)]
async fn severe_overload_sheds_the_calls_of_a_background_turn() {
    let cast = Cast {
        // Its last clause comes seconds after its first.
        llm: Arc::new(
            ScriptedLlm::new("llm")
                .answers([LONG])
                .token_every(Duration::from_millis(150)),
        ),
        ..Cast::default()
    };
    let cpu = Arc::<Cpu>::default();
    let mut host = named(&cast, "host", vec![]).configure(cpu.watched());
    let runtime = host.runtime().await;
    let call = background(named(&cast, "background", vec![first()]));
    let call = call.open(&runtime).await.expect("there is room");
    call.log.until(Signal::PlaybackStarted, 1).await;
    cpu.set(99);
    let ended = call.end().await;
    assert_eq!(ended.report.turns.len(), 1);
    assert_ne!(ended.endings(), ["commit"]);
    let shed = sheds(&ended);
    let said = (
        OutcomeScope::NodeDispatch,
        "scheduling_point_shed".to_owned(),
    );
    assert!(shed.contains(&said), "{shed:?}");
    let signals = ended.signals_of(1);
    assert_eq!(signals.iter().filter(|s| **s == "abort").count(), 1);
    assert_eq!(signals.iter().filter(|s| **s == "close").count(), 1);
}

/// The plans of a call, by turn.
fn plans(ended: &Ended) -> Vec<serde_json::Value> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Plan(plan) => Some(plan.plan.to_value()),
            _something_else => None,
        })
        .collect()
}

/// F-048, NF-006: under load a call is served with less from its next turn on: a shorter context, a
/// simpler model and voice, lower audio, less evidence; the plan says so and where it comes from, a
/// signal says why; when the load is gone, so is all of it.
#[tokio::test(start_paused = true)]
async fn a_degrade_posture_applies_from_the_next_turn_and_is_undone() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let small =
        ScriptedLlm::new("small").answer_with(move |request: &rspp_provider_api::LlmRequest| {
            told.lock().unwrap().push(request.messages.len());
            "Short words only please."
        });
    let (cast, small) = (Cast::default(), Arc::new(small));
    let cpu = Arc::<Cpu>::default();
    let mut builder = named(
        &cast,
        "call",
        vec![first(), after_reply(), after_reply(), after_reply()],
    )
    .configure(cpu.watched())
    .pipeline(|spec| {
        spec.degrade = Some(DegradeSpec {
            max_context_messages: Some(1),
            max_tokens: Some(3),
            sample_rate: Some(8_000),
            provider_bindings: [(Modality::Llm, vec![ProviderId::new("small").unwrap()])].into(),
            recording_level: Some(RecordingLevel::L0),
        });
        spec.instructions = None;
    });
    builder.providers.add_llm(small.clone());
    builder.script.sink_rate = SampleRate::HZ_16000;
    let runtime = builder.runtime().await;
    let call = builder.open(&runtime).await.expect("there is room");
    call.log.until(Signal::PlaybackStarted, 1).await;
    cpu.set(85);
    call.log.until(Signal::PlaybackStarted, 3).await;
    cpu.set(10);
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["commit"; 4]);
    let heard: Vec<_> = (1..=4)
        .map(|turn| ended.turn(turn).agent_text_played.clone())
        .collect();
    assert_eq!(heard[0], REPLY, "a turn runs the plan that it opened with");
    assert_eq!(heard[1], "Short words only");
    assert_eq!(heard[2], "Short words only");
    assert_eq!(heard[3], REPLY, "undone");
    assert_eq!(
        *seen.lock().unwrap(),
        [1, 1],
        "the user's words and no more"
    );
    assert_eq!(
        ended.log.reasons_of(Signal::Degrade),
        ["overload_degrade_posture"; 2]
    );
    let plans = plans(&ended);
    let layer = |plan: &serde_json::Value| plan["provenance"]["node_bindings/llm"]["layer"].clone();
    assert_eq!(layer(&plans[0]), "defaults");
    assert_eq!(layer(&plans[1]), "posture");
    assert_eq!(plans[1]["extent"]["max_sample_rate"], 8_000);
    assert_eq!(plans[1]["extent"]["max_context_messages"], 1);
    assert_eq!(layer(&plans[3]), "defaults");
    assert_eq!(plans[3]["policy_hash"], plans[0]["policy_hash"]);
    let posture: Vec<_> = ended
        .log
        .payloads()
        .into_iter()
        .filter_map(|payload| match payload {
            Payload::Debug(note) => note.fields.get("posture").cloned(),
            _something_else => None,
        })
        .collect();
    assert_eq!(posture, ["on", "off"]);
}

/// F-052, NF-002: the runtime's own cost is told apart from its nodes', kept by pipeline look by look,
/// and alerts when it is above its budget.
#[tokio::test(start_paused = true)]
async fn the_runtime_s_own_cost_has_a_budget_and_an_alert() {
    let held = async |budget: u64| {
        let cast = Cast::default();
        let mut probes = Probes::default();
        probes.add("burner", |_nth, _cx: &mut NodeContext, _event: Event| {
            let watch = rspp_actors::Stopwatch::start();
            while watch.elapsed() < Duration::from_millis(2) {
                std::hint::spin_loop();
            }
            Step::OK
        });
        let install = probes.install();
        let mut builder = named(&cast, "call", vec![first(), after_reply()])
            .configure(move |config| {
                install(config);
                config.limits.kernel_overhead_p99_us = Some(budget);
            })
            .pipeline(|spec| {
                spec.nodes.push(node(json!({
                    "id": "burner", "kind": { "custom": "burner" }
                })));
                let to = json!({ "from": "ingress", "to": "burner", "carries": "audio" });
                spec.edges.push(edge(to));
            });
        let runtime = builder.runtime().await;
        let placed = builder.open(&runtime).await.expect("there is room");
        (placed.end().await, runtime)
    };
    let (ended, runtime) = held(0).await;
    let handlers = ended.report.node_handlers_us;
    let own = ended.report.kernel_overhead_us;
    assert!(handlers.max >= 2_000.0, "{handlers:?}");
    assert!(own.p50 < 2_000.0 && own.p50 > 0.0, "{own:?}");
    assert!(runtime.overhead_alerts() > 0);
    assert_eq!(ended.report.kernel_overhead_budget_us, Some(0));
    assert!(ended.report.kernel_overhead_alerts > 0);
    let alerts = runtime.capacity_events();
    let alerts = alerts.iter().filter(|event| {
        matches!(
            event.kind,
            CapacityKind::OverheadAboveBudget { budget_us: 0, .. }
        )
    });
    assert_eq!(alerts.count(), 1, "told once, until it is within again");
    let by_pipeline = runtime.overhead().by_pipeline();
    assert_eq!(by_pipeline.len(), 1);
    assert!(by_pipeline.values().all(|own| !own.series().is_empty()));

    let (ended, runtime) = held(60_000_000).await;
    assert_eq!(runtime.overhead_alerts(), 0);
    assert_eq!(ended.report.kernel_overhead_alerts, 0);
}

/// NF-002, F-052: what the runtime takes for itself is kept for each of several pipelines in a series of its own,
/// look by look, and for all of them; a budget that it breaks is told, once.
#[tokio::test(start_paused = true)]
async fn each_pipeline_has_a_series_of_what_the_runtime_took_for_it() {
    let cast = Cast::default();
    let mut host = named(&cast, "host", vec![]).configure(|config| {
        config.limits.kernel_overhead_p99_us = Some(0);
    });
    let runtime = host.runtime().await;
    let versions = ["greeter-1", "greeter-2", "helper-1"];
    let mut placed = Vec::new();
    for version in versions {
        for n in 0..3 {
            let said = vec![first(), after_reply(), after_reply(), after_reply()];
            let call = named(&cast, &format!("{version}-{n}"), said).pipeline(|spec| {
                spec.version = PipelineVersion::new(version).unwrap();
            });
            placed.push(call.open(&runtime).await.expect("there is room"));
        }
    }
    for call in placed {
        assert_eq!(call.end().await.endings(), ["commit"; 4]);
    }
    let by_pipeline = runtime.overhead().by_pipeline();
    let known: Vec<_> = by_pipeline.keys().map(PipelineVersion::as_str).collect();
    assert_eq!(known, versions);
    let mut samples = 0;
    for (version, own) in &by_pipeline {
        let series = own.series();
        assert!(series.len() >= 2, "{version}: {series:?}");
        assert!(series.windows(2).all(|looks| looks[0].0 < looks[1].0));
        for (_, look) in &series {
            assert!(look.p50 > 0.0 && look.p50 <= look.p99 && look.p99 <= look.max);
        }
        samples += own.percentiles().samples;
    }
    assert_eq!(runtime.overhead().percentiles().samples, samples);
    let above = runtime.capacity_events().into_iter().filter(|event| {
        matches!(event.kind, CapacityKind::OverheadAboveBudget { budget_us: 0, p99_us } if p99_us > 0.0)
    });
    assert_eq!(above.count(), 1, "told once, until it is within again");
    assert!(runtime.overhead_alerts() > 0);
}

/// NF-006: driven to three times of what it takes on, a node does not collapse: who is beyond its room is refused at
/// once, who is inside is answered as quickly as if alone, the counters say how many were let in and how many were
/// not, and when the rush is over newcomers are served as before.
#[tokio::test(start_paused = true)]
async fn past_its_room_a_node_refuses_and_serves_who_is_inside() {
    let cast = Cast::default();
    let alone = named(&cast, "alone", vec![first(), after_reply()])
        .hold()
        .await;
    let mut host = named(&cast, "host", vec![]).configure(|config| {
        config.limits.node.sessions = Some(rspp_proto::spec::Quota::at(10));
    });
    let runtime = host.runtime().await;
    let (mut inside, mut refused) = (Vec::new(), 0);
    for n in 0..30 {
        let call = named(&cast, &format!("call-{n}"), vec![first(), after_reply()]);
        match call.open(&runtime).await {
            Ok(placed) => inside.push(placed),
            Err(OpenError::Refused(told)) => {
                assert_eq!(told.cause.unwrap().limit, Limit::Sessions);
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((inside.len(), refused), (10, 20));
    let first_audio = |ended: &Ended, turn| ended.turn(turn).first_audio_ms.expect("heard");
    let all = futures::future::join_all(inside.into_iter().map(Placed::end)).await;
    for ended in &all {
        assert_eq!(ended.endings(), ["commit", "commit"]);
        for turn in [1, 2] {
            let slower = first_audio(ended, turn) - first_audio(&alone, turn);
            assert!(slower.abs() < 2.0, "{slower} ms");
        }
    }
    let told = runtime.admission().node.sessions;
    assert_eq!((told.admitted, told.rejected + told.deferred), (10, 20));
    assert!(is_let_in(&runtime, &cast).await);
}

/// F-050: a tenant that is background by its settings is one for all its sessions.
#[tokio::test(start_paused = true)]
async fn a_layer_says_who_comes_first() {
    let cast = Cast::default();
    let cpu = Arc::<Cpu>::default();
    let mut builder = named(&cast, "call", vec![]).configure(cpu.watched());
    builder.tenant = TenantId::new("batch").unwrap();
    builder.settings.tenant.priority = Some(Priority::Background);
    builder.script.hang_up_after = Duration::from_secs(10);
    let typing = builder.client();
    let runtime = builder.runtime().await;
    let call = builder.open(&runtime).await.expect("there is room");
    cpu.set(99);
    measured().await;
    typing.send(Ingress::Text("hello?".into())).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ended = call.end().await;
    assert_eq!(ended.report.refused, 1);
    assert_eq!(runtime.admission().tenant("batch").turns.deferred, 1);
}
