//! What many want is shared by tenant and session, queue or not; nobody starves, and who does not
//! want it notices nothing.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, future::join_all, stream};
use rspp_host::{
    Event, Runtime,
    node::{NodeContext, NodeError, Step},
};
use rspp_proto::{
    NodeId, Payload, SessionId, TenantId,
    abi::{DecisionOutcome, Emitter, OutcomeKind, OutcomePhase, OutcomeScope, Signal},
    spec::{CallPolicy, CircuitPolicy, Modality, NodeExecutionPolicy, PipelineSpec, QuotasSpec},
};
use rspp_provider_api::{
    Call as ProviderCall, ChunkStream, Description, FinishReason, InferencePool, LanguageModel,
    LlmChunk, LlmRequest,
    scripted::{Conduct, Script, ScriptedLlm},
};
use rspp_tests::{
    call::{Builder, Cast, Ended, Placed, REPLY, after_reply, first, says},
    nodes::{Probes, custom, insert},
};
use rspp_timeline::{Anchor, Entry};

/// What the language model takes for each answer.
const ANSWER: Duration = Duration::from_millis(400);

/// A cast whose model takes its time.
fn slow() -> Cast {
    let script = Script::default().then(Conduct::good().late(ANSWER));
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([REPLY]).script(script)),
        ..Cast::default()
    }
}

/// No turn runs out of time while it waits.
fn patient(spec: &mut PipelineSpec) {
    spec.budgets.turn_budget_ms = Some(60_000);
    spec.budgets.path_budget_ms_default = Some(60_000);
}

fn execution(limit: u32, key: Option<&str>) -> NodeExecutionPolicy {
    NodeExecutionPolicy {
        concurrency_limit: limit,
        fairness_key: key.map(ToOwned::to_owned),
        ..Default::default()
    }
}

/// Lets so many calls of the model run at once.
fn limited(spec: &mut PipelineSpec, limit: u32, key: Option<&str>) {
    let id = NodeId::new("llm").unwrap();
    let node = spec.nodes.iter_mut().find(|node| node.id == id).unwrap();
    node.execution = Some(execution(limit, key));
}

/// A call of one utterance, which all calls begin at the same moment.
fn call(cast: &Cast, tenant: &str, session: &str, limit: u32, key: Option<&str>) -> Builder {
    let mut builder = Builder::new(cast, vec![says(first())]).pipeline(|spec| {
        patient(spec);
        limited(spec, limit, key);
    });
    builder.tenant = TenantId::new(tenant).unwrap();
    builder.session = SessionId::new(session).unwrap();
    builder.script.reply_timeout = Duration::from_mins(1);
    builder
}

/// Places the calls at one moment, and waits for all of them.
async fn hold(runtime: &Runtime, calls: Vec<Builder>) -> Vec<Ended> {
    let mut placed: Vec<Placed> = Vec::new();
    for call in calls {
        placed.push(call.open(runtime).await.expect("there is room"));
    }
    join_all(placed.into_iter().map(Placed::end)).await
}

fn between(ended: &Ended, from: Anchor, to: Anchor) -> Duration {
    let anchors = &ended.turn(1).anchors;
    let (from, to) = (anchors.get(from), anchors.get(to));
    to.expect("marked").since(from.expect("marked"))
}

fn first_token(ended: &Ended) -> Duration {
    between(ended, Anchor::TurnOpenEmitted, Anchor::LlmFirstToken)
}

fn sheds(ended: &Ended) -> Vec<DecisionOutcome> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Outcome(outcome) if outcome.outcome_kind == OutcomeKind::Shed => {
                Some((**outcome).clone())
            }
            _something_else => None,
        })
        .collect()
}

/// F-109: with one slot, calls of a node wait for each other across sessions; the other nodes keep
/// their latency.
#[tokio::test(start_paused = true)]
async fn a_saturated_node_queues_and_the_others_keep_their_latency() {
    let alone = {
        let cast = slow();
        let runtime = Builder::new(&cast, vec![]).runtime().await;
        hold(&runtime, vec![call(&cast, "t", "alone", 1, None)]).await
    };
    let cast = slow();
    let runtime = Builder::new(&cast, vec![]).runtime().await;
    let calls = (0..6).map(|n| call(&cast, "t", &format!("call-{n}"), 1, None));
    let all = hold(&runtime, calls.collect()).await;
    assert_eq!(cast.llm.tally().calls, 6);
    let mut waits: Vec<_> = all.iter().map(first_token).collect();
    waits.sort();
    for (n, wait) in waits.iter().enumerate() {
        let expected = ANSWER * (n as u32 + 1);
        assert!(
            *wait >= expected && *wait < expected + Duration::from_millis(100),
            "{n}: {waits:?}"
        );
    }
    for ended in &all {
        assert_eq!(ended.endings(), ["commit"]);
        assert!(sheds(ended).is_empty());
        for (from, to) in [
            (Anchor::AudioInputIngress, Anchor::TranscriptFinal),
            (Anchor::LlmFirstToken, Anchor::PlaybackStarted),
        ] {
            let (now, before) = (between(ended, from, to), between(&alone[0], from, to));
            let slower = now.saturating_sub(before);
            assert!(slower <= Duration::from_millis(2), "{from:?}: {slower:?}");
        }
    }
    assert!(runtime.shut_down(Duration::from_secs(5)).await);
}

/// Who was answered, first to last.
fn order(all: &[Ended]) -> Vec<String> {
    let mut order: Vec<_> = all
        .iter()
        .map(|ended| (first_token(ended), ended))
        .collect();
    order.sort_by_key(|(at, _)| *at);
    let names = order
        .into_iter()
        .map(|(_, ended)| ended.report.session_id.to_string());
    names.collect()
}

/// F-174, NF-033, F-105: a tenant with one call is not last in line behind one with eight; by default
/// tenants share, whatever they ask for.
#[tokio::test(start_paused = true)]
async fn a_small_tenant_is_not_starved_by_a_big_one() {
    for key in [None, Some("tenant")] {
        let cast = slow();
        let runtime = Builder::new(&cast, vec![]).runtime().await;
        let mut calls: Vec<_> = (0..8)
            .map(|n| call(&cast, "big", &format!("big-{n}"), 1, key))
            .collect();
        calls.push(call(&cast, "small", "small", 1, key));
        let all = hold(&runtime, calls).await;
        let order = order(&all);
        let place = order.iter().position(|name| name == "small").unwrap();
        assert!(place <= 1, "{order:?}");
    }
}

/// F-174: sessions that share a custom key share as one; a turn or session key shares as such.
#[tokio::test(start_paused = true)]
async fn a_node_s_own_key_says_who_shares() {
    let place = async |key: &str| {
        let cast = slow();
        let runtime = Builder::new(&cast, vec![]).runtime().await;
        let mut calls: Vec<_> = (0..6)
            .map(|n| call(&cast, "big", &format!("big-{n}"), 1, Some(key)))
            .collect();
        calls.push(call(&cast, "small", "small", 1, Some(key)));
        let order = order(&hold(&runtime, calls).await);
        order.iter().position(|name| name == "small").unwrap()
    };
    assert_eq!(place("tenant").await, 1);
    // As one of seven, and the last to have come.
    assert_eq!(place("session").await, 6);
    assert_eq!(place("turn").await, 6);
    assert_eq!(place("premium").await, 6);
}

/// F-174: weights and slots of a tenant hold at every node.
#[tokio::test(start_paused = true)]
async fn a_tenant_holds_no_more_than_its_slots() {
    let cast = slow();
    let mut host = Builder::new(&cast, vec![]).configure(|config| {
        let own = QuotasSpec {
            slots: Some(1),
            ..QuotasSpec::default()
        };
        config
            .limits
            .tenants
            .insert(TenantId::new("big").unwrap(), own);
    });
    let runtime = host.runtime().await;
    let mut calls: Vec<_> = (0..3)
        .map(|n| call(&cast, "big", &format!("big-{n}"), 2, None))
        .collect();
    calls.push(call(&cast, "small", "small", 2, None));
    let all = hold(&runtime, calls).await;
    let mut big: Vec<_> = all[..3].iter().map(first_token).collect();
    big.sort();
    for (n, wait) in big.iter().enumerate() {
        assert!(*wait >= ANSWER * (n as u32 + 1), "{big:?}");
    }
    assert!(first_token(&all[3]) < ANSWER + Duration::from_millis(50));
}

/// F-109, F1: who waits for a slot for too long is shed, with signal and outcome; the turn ends in its
/// one way.
#[tokio::test(start_paused = true)]
async fn who_waits_in_vain_for_a_slot_is_shed() {
    let stuck = Script::default().then(Conduct::good().late(Duration::from_secs(30)));
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([REPLY]).script(stuck)),
        ..Cast::default()
    };
    let runtime = Builder::new(&cast, vec![]).runtime().await;
    let impatient = |name: &str| {
        call(&cast, "t", name, 1, None).pipeline(|spec| {
            spec.budgets.path_budget_ms_default = Some(1_000);
            spec.budgets.provider_first_byte_ms = Some(500);
        })
    };
    let calls = vec![impatient("first"), impatient("second")];
    let all = hold(&runtime, calls).await;
    let shed: Vec<_> = all
        .iter()
        .filter(|ended| !sheds(ended).is_empty())
        .collect();
    assert_eq!(shed.len(), 1, "one held the slot, the other waited");
    assert_eq!(shed[0].endings(), ["provider_failure"]);
    let decided = sheds(shed[0]);
    assert_eq!(decided.len(), 1);
    assert_eq!(decided[0].phase, OutcomePhase::SchedulingPoint);
    assert_eq!(decided[0].scope, OutcomeScope::NodeDispatch);
    assert_eq!(decided[0].emitted_by, Emitter::LocalAdmission);
    assert_eq!(decided[0].reason.as_str(), "node_concurrency_limited");
    let said = shed[0].log.signals_of(Signal::Shed);
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].emitted_by, Emitter::LocalAdmission);
    assert_eq!(said[0].envelope.node_id.as_ref().unwrap().as_str(), "llm");
    assert_eq!(shed[0].report.shed, 1);
    assert_eq!(runtime.admission().tenant("t").shed, 1);
}

/// F-109: handlers of a custom node take turns too, and nobody else waits for them.
#[tokio::test(start_paused = true)]
async fn handlers_of_a_limited_node_take_turns() {
    let cast = Cast::default();
    let mut probes = Probes::default();
    let took = Duration::from_millis(300);
    probes.add("filter", move |_nth, cx: &mut NodeContext, event: Event| {
        let slow = matches!(&event.payload, Payload::Text(text) if !text.text.trim().is_empty());
        Step::Wait(Box::pin(async move {
            if slow && !matches!(event.payload, Payload::TextEnd) {
                tokio::time::sleep(took).await;
            }
            cx.forward(event);
            Ok::<(), NodeError>(())
        }))
    });
    let mut host = Builder::new(&cast, vec![]).configure(probes.install());
    let runtime = host.runtime().await;
    let filtered = |name: &str, limit: u32| {
        let mut node = custom("filter");
        node.execution = Some(execution(limit, None));
        call(&cast, "t", name, 0, None).pipeline(|spec| insert(spec, "segmenter", node, "tts"))
    };
    let calls = (0..4).map(|n| filtered(&format!("call-{n}"), 1)).collect();
    let all = hold(&runtime, calls).await;
    let mut opened: Vec<_> = all
        .iter()
        .map(|ended| between(ended, Anchor::TurnOpenEmitted, Anchor::PlaybackStarted))
        .collect();
    opened.sort();
    for (n, wait) in opened.iter().enumerate() {
        assert!(*wait >= took * (n as u32 + 1), "{n}: {opened:?}");
    }
    for ended in &all {
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.turn(1).agent_text_played, REPLY);
    }
}

/// A model that thinks on a pool, as local ones do.
struct Pooled {
    description: Description,
    pool: InferencePool,
}

impl LanguageModel for Pooled {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn generate(&self, call: ProviderCall, _request: LlmRequest) -> ChunkStream<LlmChunk> {
        let pool = self.pool.for_call(&call);
        let thought = async move {
            match pool.run(|| REPLY.to_owned()).await {
                Ok(text) => vec![
                    Ok(LlmChunk::Delta(text)),
                    Ok(LlmChunk::Finished {
                        reason: FinishReason::Stop,
                        usage: None,
                    }),
                ],
                Err(error) => vec![Err(error.into_fault())],
            }
        };
        stream::once(thought).flat_map(stream::iter).boxed()
    }
}

/// A node whose model thinks on a pool.
async fn thinking_on(cast: &Cast, pool: &InferencePool) -> Runtime {
    let mut providers = cast.providers();
    providers.add_llm(Arc::new(Pooled {
        description: Description {
            id: rspp_proto::ProviderId::new("llm").unwrap(),
            model: "pooled".into(),
            streaming: true,
            networked: false,
        },
        pool: pool.clone(),
    }));
    let mut host = Builder::new(cast, vec![]);
    host.providers = providers;
    host.runtime().await
}

/// F-172, F1: a pool that is full, with nobody allowed to wait, is said where work is dispatched, and is not
/// held against the provider.
#[tokio::test(start_paused = true)]
async fn a_pool_that_is_saturated_is_said_so() {
    let cast = Cast::default();
    let pool = InferencePool::simulated(1, Duration::from_mins(1)).with_waiting_room(1, 0);
    let runtime = thinking_on(&cast, &pool).await;
    let busy = tokio::spawn({
        let pool = pool.clone();
        async move { pool.run(|| ()).await }
    });
    tokio::task::yield_now().await;
    let all = hold(&runtime, vec![call(&cast, "t", "turned-away", 0, None)]).await;
    assert_eq!(all[0].endings(), ["provider_failure"]);
    let decided = sheds(&all[0]);
    assert_eq!(decided[0].scope, OutcomeScope::NodeDispatch);
    assert_eq!(decided[0].reason.as_str(), "execution_pool_saturated");
    assert_eq!(
        all[0].log.reasons_of(Signal::Shed),
        ["execution_pool_saturated"]
    );
    assert!(all[0].log.signals_of(Signal::CircuitEvent).is_empty());
    busy.abort();
}

/// F-105, F1: a pool that takes no more is said where work is dispatched, and is not held against the
/// provider; while it does, its counters say what it has done.
#[tokio::test(start_paused = true)]
async fn a_pool_that_takes_no_more_is_said_so() {
    let cast = Cast::default();
    let pool = InferencePool::in_virtual_time(1);
    let runtime = thinking_on(&cast, &pool).await;
    let calls = (0..3).map(|n| call(&cast, "t", &format!("call-{n}"), 0, None));
    let all = hold(&runtime, calls.collect()).await;
    assert!(all.iter().all(|ended| ended.endings() == ["commit"]));
    let counters = pool.counters();
    assert_eq!((counters.passed, counters.refused), (3, 0));
    assert_eq!((counters.inside, counters.most_inside), (0, 1), "reused");

    pool.close();
    let calls = vec![call(&cast, "t", "closed", 0, None)];
    let all = hold(&runtime, calls).await;
    assert_eq!(all[0].endings(), ["provider_failure"]);
    let decided = sheds(&all[0]);
    assert_eq!(decided[0].scope, OutcomeScope::NodeDispatch);
    assert_eq!(decided[0].reason.as_str(), "execution_pool_closed");
    assert_eq!(
        all[0].log.reasons_of(Signal::Shed),
        ["execution_pool_closed"]
    );
    assert!(all[0].log.signals_of(Signal::CircuitEvent).is_empty());
}

/// F-105: eight calls at once think on two workers, turn after turn: the counters say that it was these two all the
/// time and how much waited for them; nobody waits longer than the others' work takes, and each call's first word
/// comes within the threshold that follows from it.
#[tokio::test(start_paused = true)]
async fn many_calls_share_few_workers_within_their_thresholds() {
    const WORK: Duration = Duration::from_millis(25);
    const CALLS: u64 = 8;
    let cast = Cast::default();
    let pool = InferencePool::simulated(2, WORK);
    let runtime = thinking_on(&cast, &pool).await;
    let calls = (0..CALLS).map(|n| {
        let mut call = call(&cast, "t", &format!("call-{n}"), 0, None)
            .pipeline(|spec| spec.observe.metrics_every_ms = Some(1_000));
        call.script.utterances.push(says(after_reply()));
        call
    });
    let all = hold(&runtime, calls.collect()).await;
    let longest = WORK * (CALLS as u32 / 2);
    for ended in &all {
        assert_eq!(ended.endings(), ["commit", "commit"]);
        let within = longest + Duration::from_millis(5);
        assert!(first_token(ended) <= within, "{:?}", first_token(ended));
        let measured = ended.report.measurements.as_ref().expect("it is measured");
        let asked = measured.providers.values().flat_map(|by| by.values());
        let waited = asked.map(|provider| provider.queue_wait.max_ms);
        let waited = waited.fold(0.0, f64::max);
        assert!(
            waited <= longest.saturating_sub(WORK).as_secs_f64() * 1e3 + 1.0,
            "{waited}"
        );
    }
    let counters = pool.counters();
    assert_eq!((counters.passed, counters.refused), (2 * CALLS, 0));
    assert_eq!((counters.inside, counters.most_inside), (0, 2), "reused");
    assert!(counters.waited >= CALLS - 2 && counters.most_waiting <= CALLS as usize - 2);
    assert!(runtime.shut_down(Duration::from_secs(5)).await);
}

fn attempts(ended: &Ended) -> Vec<(String, String)> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Attempt(attempt) if attempt.modality == Modality::Llm => {
                Some((attempt.provider_id.to_string(), attempt.reason.clone()))
            }
            _something_else => None,
        })
        .collect()
}

/// F-105, F-057: a call that waits in a pool of this machine does not wait for its provider, which is
/// given its time once it has the work; nobody is asked again, and no circuit hears of it.
#[tokio::test(start_paused = true)]
async fn who_waits_in_our_own_pool_is_not_too_slow() {
    let cast = Cast::default();
    let pool = InferencePool::simulated(1, Duration::from_millis(1_500));
    let mut host = Builder::new(&cast, vec![]);
    host.providers.add_llm(Arc::new(Pooled {
        description: Description {
            id: rspp_proto::ProviderId::new("pooled").unwrap(),
            model: "pooled".into(),
            streaming: true,
            networked: true,
        },
        pool: pool.clone(),
    }));
    let runtime = host.runtime().await;
    let calls = (0..3).map(|n| {
        let mut one = call(&cast, "t", &format!("call-{n}"), 0, None)
            .pipeline(|spec| spec.budgets.provider_first_byte_ms = Some(2_000));
        let ids = [rspp_proto::ProviderId::new("pooled").unwrap()];
        let bound = &mut one.settings.defaults.provider_bindings;
        bound.insert(Modality::Llm, ids.into());
        one
    });
    let all = hold(&runtime, calls.collect()).await;
    for ended in &all {
        assert_eq!(ended.endings(), ["commit"]);
        let once = ("pooled".to_owned(), String::new());
        assert_eq!(attempts(ended), [once]);
        assert!(ended.log.signals_of(Signal::ProviderError).is_empty());
        assert!(ended.log.signals_of(Signal::CircuitEvent).is_empty());
    }
    let slowest = all.iter().map(first_token).max().unwrap();
    assert!(slowest >= Duration::from_millis(4_500), "{slowest:?}");
    assert_eq!(
        (pool.counters().passed, pool.counters().most_waiting),
        (3, 2)
    );
}

/// F-109, F-047: the turn's time runs on while its call waits for a slot, so that another provider may
/// have to be asked; but the first is not held to blame, and has the next turn's call.
#[tokio::test(start_paused = true)]
async fn who_was_given_no_time_is_not_stayed_away_from() {
    let after = |ms| Conduct::good().late(Duration::from_millis(ms));
    let script = Script::calls([after(1_500)]).then(after(600));
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([REPLY]).script(script)),
        ..Cast::default()
    };
    let mut host = Builder::new(&cast, vec![]);
    let spare = ScriptedLlm::new("spare").answers(["It is the spare one."]);
    host.providers.add_llm(Arc::new(spare));
    let runtime = host.runtime().await;
    let strict = |spec: &mut PipelineSpec| {
        spec.budgets.turn_budget_ms = Some(2_000);
        spec.budgets.provider_first_byte_ms = Some(1_800);
        spec.providers.circuit = Some(Box::new(CircuitPolicy {
            least_calls: 1,
            fault_percent: 1,
            ..CircuitPolicy::default()
        }));
        spec.providers.calls = Some(Box::new(CallPolicy {
            attempts_per_provider: 1,
            ..CallPolicy::default()
        }));
    };
    let holds = call(&cast, "t", "first", 1, None).pipeline(strict);
    let mut waits = call(&cast, "t", "second", 1, None).pipeline(strict);
    let ids = ["llm", "spare"].map(|id| rspp_proto::ProviderId::new(id).unwrap());
    let bound = &mut waits.settings.defaults.provider_bindings;
    bound.insert(Modality::Llm, ids.into());
    waits.script.utterances.push(says(after_reply()));
    let all = hold(&runtime, vec![holds, waits]).await;
    assert_eq!(all[0].endings(), ["commit"]);
    assert_eq!(all[1].endings(), ["commit", "commit"]);
    let asked = attempts(&all[1]);
    let asked: Vec<_> = asked.iter().map(|(who, why)| (&**who, &**why)).collect();
    assert_eq!(
        asked,
        [
            ("llm", "provider_budget_exhausted"),
            ("spare", ""),
            ("llm", "")
        ]
    );
    assert!(all[1].log.signals_of(Signal::CircuitEvent).is_empty());
}

/// NF-033, F-174: minutes of contention for one slot, by tenants of ten, three and one calls: each gets at
/// least its share of what is served, or all that it asks for if that is less; nobody waits longer than a
/// turn of everybody else takes, so that nobody starves.
#[tokio::test(start_paused = true)]
async fn in_long_contention_every_tenant_keeps_its_minimum() {
    /// Turns that each call asks for.
    const TURNS: usize = 12;
    /// What the model takes for each.
    const ANSWER: Duration = Duration::from_millis(1_500);
    let script = Script::default().then(Conduct::good().late(ANSWER));
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers(["Yes."]).script(script)),
        ..Cast::default()
    };
    let runtime = Builder::new(&cast, vec![]).runtime().await;
    let tenants = [("big", 10), ("middle", 3), ("small", 1)];
    let mut calls = Vec::new();
    for (tenant, count) in tenants {
        for n in 0..count {
            let mut one = call(&cast, tenant, &format!("{tenant}-{n}"), 1, None);
            let more = (1..TURNS).map(|_| says(after_reply()));
            one.script.utterances.extend(more);
            calls.push(one);
        }
    }
    let all = hold(&runtime, calls).await;
    // Seconds into the run, and how long it had waited.
    let served = |tenant: &str| -> Vec<(f64, Duration)> {
        let of = all
            .iter()
            .filter(|it| it.report.tenant_id.as_str() == tenant);
        let turns = of.flat_map(|ended| {
            let began = ended.report.opened_at;
            ended.report.turns.iter().map(move |turn| {
                let at = |anchor| turn.anchors.get(anchor).expect("marked");
                let wait = at(Anchor::LlmFirstToken).since(at(Anchor::TurnOpenEmitted));
                let when = at(Anchor::LlmFirstToken).since(began).as_secs_f64();
                (when, wait)
            })
        });
        turns.collect()
    };
    for ended in &all {
        assert_eq!(
            ended.endings(),
            vec!["commit"; TURNS],
            "{}",
            ended.report.session_id
        );
    }
    // While all three still ask.
    let until = tenants
        .iter()
        .map(|(tenant, _)| served(tenant).iter().map(|(at, _)| *at).fold(0.0, f64::max))
        .fold(f64::MAX, f64::min);
    assert!(until > 40.0, "contended for {until} s");
    let count = |tenant: &str| served(tenant).iter().filter(|(at, _)| *at <= until).count();
    let share = until / ANSWER.as_secs_f64() / 3.0;
    for (tenant, _) in tenants {
        let demand = served(tenant).len() as f64;
        let minimum = (share * 0.8).min(demand);
        let got = count(tenant) as f64;
        assert!(got >= minimum, "{tenant}: {got} of at least {minimum}");
    }
    // Who has one call waits for one of each other tenant at most, and for the one that runs.
    let longest = |tenant: &str| served(tenant).into_iter().map(|(_, wait)| wait).max();
    let bound = ANSWER * 4 + Duration::from_millis(200);
    assert!(longest("small") <= Some(bound), "{:?}", longest("small"));
    // Of ten calls the last waits for nine others, between two of each other tenant: no longer.
    let bound = ANSWER * 31 + Duration::from_millis(200);
    assert!(longest("big") <= Some(bound), "{:?}", longest("big"));
    assert_eq!(runtime.admission().node.shed, 0);
}
