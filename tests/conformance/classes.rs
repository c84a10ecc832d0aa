//! The five classes of state, all in use while a session is taken over: each fares as it is declared (F-155).

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_controlplane_api::{LocalLeases, MemoryStore, Version};
use rspp_host::{
    Event, Snapshots,
    node::{NodeContext, Step},
};
use rspp_kernel::plan::{Health, ProviderNews, SnapshotProvenance};
use rspp_proto::{
    Epoch, Payload, ProviderId, SessionId,
    abi::Signal,
    spec::{ChoicePolicy, Consistency, Modality, ReplayMode},
};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_replay::Replay;
use rspp_tests::{
    call::{Builder, Call, Cast, Ended},
    nodes::{Probes, custom, insert},
};
use rspp_timeline::{AttemptRecord, Entry, PlanEntry, TurnBaseline};
use rspp_transport_api::Ingress;
use serde_json::{Value, json};
use tokio::sync::mpsc;

type Seen = Arc<Mutex<Vec<String>>>;

/// What a session keeps beyond its placement.
struct Shared {
    leases: Arc<LocalLeases>,
    store: Arc<MemoryStore>,
    seen: Seen,
}

/// A placement of the session, with a runtime of its own.
struct Placement {
    call: Call,
    client: mpsc::UnboundedSender<Ingress>,
    snapshots: Arc<Snapshots>,
}

fn count(read: Option<&Value>) -> u64 {
    read.and_then(Value::as_u64).unwrap_or(0) + 1
}

/// The control plane's snapshots of that revision.
fn revision(n: u32) -> SnapshotProvenance {
    SnapshotProvenance {
        routing_view_snapshot: format!("routing-view/{n}"),
        policy_resolution_snapshot: format!("policy/{n}"),
        ..SnapshotProvenance::local()
    }
}

impl Shared {
    fn new() -> Self {
        let leases = Arc::new(LocalLeases::default());
        Self {
            store: Arc::new(MemoryStore::new(Arc::<LocalLeases>::clone(&leases))),
            leases,
            seen: Seen::default(),
        }
    }

    /// A placement whose node counts, once a turn, in each scope that nodes can keep state in.
    async fn placed(&self, known: SnapshotProvenance) -> Placement {
        let log = Arc::clone(&self.seen);
        let mut probes = Probes::default();
        probes.add("counter", move |nth, cx: &mut NodeContext, event: Event| {
            let is_text = matches!(&event.payload, Payload::Text(_));
            cx.forward(event);
            if !is_text {
                return Step::OK;
            }
            let turn = cx.turn_state().expect("it is of a turn");
            let of_turn = count(turn.get("n").as_ref());
            turn.put("n", &json!(of_turn)).unwrap();
            if nth > 1 {
                return Step::OK;
            }
            let of_session = count(cx.hot_state().get("n").as_ref());
            cx.hot_state().put("n", &json!(of_session)).unwrap();
            let (durable, log) = (cx.durable_state(), Arc::clone(&log));
            Step::Wait(Box::pin(async move {
                let known = durable.get("n").await.unwrap();
                let (value, version) = known.map_or((None, Version(0)), |(v, n)| (Some(v), n));
                let kept = count(value.as_ref());
                let version = durable.replace("n", &json!(kept), version).await.unwrap();
                let told = format!(
                    "turn {of_turn} hot {of_session} durable {kept} at {}",
                    version.0
                );
                log.lock().unwrap().push(told);
                Ok(())
            }))
        });
        let snapshots = Arc::new(Snapshots::default());
        snapshots.publish(known);
        let install = probes.install();
        let (leases, store) = (Arc::clone(&self.leases), Arc::clone(&self.store));
        let in_force = Arc::clone(&snapshots);
        let mut builder = Builder::new(&Cast::default(), vec![])
            .pipeline(|spec| {
                insert(spec, "segmenter", custom("counter"), "tts");
                spec.state.durable_consistency = Consistency::Strong;
                spec.providers.choice = Some(Box::new(ChoicePolicy {
                    max_signal_age_ms: 20_000,
                    ..ChoicePolicy::default()
                }));
            })
            .configure(move |config| {
                install(config);
                config.leases = leases;
                config.store = Some(store);
                config.snapshots = in_force;
            });
        let spare = ScriptedLlm::new("spare").answers(["It is the spare one."]);
        builder.providers.add_llm(Arc::new(spare));
        let bound = &mut builder.settings.defaults.provider_bindings;
        bound.insert(Modality::Llm, vec![id("llm"), id("spare")]);
        builder.script.hang_up_after = Duration::from_mins(2);
        builder.script.reply_timeout = Duration::from_mins(2);
        let client = builder.client();
        Placement {
            call: builder.start().await,
            client,
            snapshots,
        }
    }

    fn seen(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

fn id(id: &str) -> ProviderId {
    ProviderId::new(id).unwrap()
}

impl Placement {
    /// What a probe of the whole fleet has found out.
    fn hears_that_llm_is_unwell(&self) {
        let news = ProviderNews {
            health: Health::Unhealthy,
            price_micros: None,
        };
        let board = self.call.runtime.provider_board();
        board.publish([((Modality::Llm, id("llm")), news)].into());
    }

    fn says(&self, text: &str) {
        let text = Ingress::Text(text.to_owned());
        self.client.send(text).expect("the session goes on");
    }

    /// A turn, from what the user says to its end.
    async fn turn(&self, nth: usize) {
        self.says("go on");
        self.call.log.until(Signal::Commit, nth).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    async fn over(self) -> Ended {
        self.call.session.drain();
        self.call.end().await
    }
}

fn plans(ended: &Ended) -> Vec<&PlanEntry> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Plan(plan) => Some(&**plan),
            _another_entry => None,
        })
        .collect()
}

fn evidence(ended: &Ended) -> Vec<&TurnBaseline> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Turn(turn) => Some(&**turn),
            _another_entry => None,
        })
        .collect()
}

/// Who was asked, turn by turn.
fn asked(ended: &Ended) -> Vec<&str> {
    let of_model = |attempt: &&AttemptRecord| attempt.modality == Modality::Llm;
    let entries = ended.entries.iter();
    let attempts = entries.filter_map(|entry| match entry {
        Entry::Attempt(attempt) => Some(&**attempt),
        _another_entry => None,
    });
    attempts
        .filter(of_model)
        .map(|attempt| attempt.provider_id.as_str())
        .collect()
}

/// F-155: a session is taken over with state of every class in use.
///
/// Turn-ephemeral state begins anew with each turn, on either side. Session-hot state lasts from turn to turn and
/// is lost with its placement. Session-durable state is there on the other side, under its version, read strongly,
/// and the old side writes it no more. The control plane's configuration is what each side's snapshot says: named
/// in plan and evidence, frozen for a turn, and of no use once it is stale. Health of providers is the fleet's: both
/// sides keep away from who is unwell, until the news is too old to go by. All of it is in the recording, from which
/// the same decisions follow again.
#[tokio::test(start_paused = true)]
async fn each_class_of_state_fares_as_declared_when_a_session_moves() {
    let shared = Shared::new();
    let before = shared.placed(revision(7)).await;
    before.hears_that_llm_is_unwell();
    before.turn(1).await;
    before.turn(2).await;
    assert_eq!(
        shared.seen(),
        ["turn 1 hot 1 durable 1 at 1", "turn 1 hot 2 durable 2 at 2"]
    );

    let after = shared.placed(revision(8)).await;
    after.hears_that_llm_is_unwell();
    after.turn(1).await;
    assert_eq!(shared.seen(), ["turn 1 hot 1 durable 3 at 3"]);
    // The old side may not speak any more, and what it might write is refused by the store.
    before.says("are you still there");
    before.call.log.until(Signal::StaleEpochReject, 1).await;
    assert_eq!(shared.seen(), [] as [&str; 0]);
    let before = before.over().await;

    // What is stale opens no turn; what comes in its place does, under its own name.
    after.snapshots.expire();
    after.says("and now");
    after.call.log.until(Signal::Defer, 1).await;
    after.snapshots.publish(revision(9));
    tokio::time::sleep(Duration::from_secs(25)).await;
    after.turn(2).await;
    assert_eq!(shared.seen(), ["turn 1 hot 2 durable 4 at 4"]);
    let after = after.over().await;

    assert_eq!(before.endings(), ["commit"; 2]);
    assert_eq!(after.endings(), ["commit"; 2]);
    let epochs = |ended: &Ended| -> Vec<_> {
        let turns = evidence(ended).into_iter();
        turns.map(|turn| turn.lease_epoch_at_turn_open).collect()
    };
    assert_eq!(epochs(&before), [Some(Epoch::FIRST); 2]);
    assert_eq!(epochs(&after), [Some(Epoch::FIRST.next()); 2]);
    let named = |ended: &Ended| -> Vec<String> {
        for (plan, turn) in plans(ended).iter().zip(evidence(ended)) {
            let refs = &plan.plan["snapshot_provenance"];
            assert_eq!(
                refs["routing_view_snapshot"],
                turn.snapshots.routing_view_snapshot
            );
            assert_eq!(
                refs["policy_resolution_snapshot"],
                turn.snapshots.policy_resolution_snapshot
            );
        }
        let turns = evidence(ended).into_iter();
        turns
            .map(|turn| turn.snapshots.routing_view_snapshot.clone())
            .collect()
    };
    assert_eq!(named(&before), ["routing-view/7"; 2]);
    assert_eq!(named(&after), ["routing-view/8", "routing-view/9"]);
    assert_eq!(asked(&before), ["spare", "spare"]);
    assert_eq!(asked(&after), ["spare", "llm"], "the news had grown old");
    for ended in [&before, &after] {
        let session = SessionId::new("call").unwrap();
        let mode = ReplayMode::RecomputeDecisions;
        let mut replay = Replay::new(session, &ended.entries, mode).unwrap();
        let steps = std::iter::from_fn(|| replay.step().unwrap());
        let differences: Vec<_> = steps.filter_map(|step| step.divergence).collect();
        assert_eq!(differences, []);
    }
}
