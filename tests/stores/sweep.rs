//! Records of what is over go, in their time; nothing else does. Time is an argument here, so hours pass
//! at once.

use std::{sync::Arc, time::Duration};

use rspp_controlplane::{
    admission::{Mode, Policy, Usage},
    audit,
    authority::{Attempt, Binding, Fuse, Holder, Incarnation, Placement, Standing, WhyRevoked},
    fleet::{self, Description, Endpoint, PROTOCOL},
    keys,
    retention::Retention,
    status::{Phase, Report},
    store::{Compare, Key, Store, Txn, list_all},
};
use rspp_controlplane_storage::{
    counters::Counters,
    recovery::verify_trail,
    sweep::{Now, Sweep, Swept},
};
use rspp_proto::{
    Epoch, Monotonic, PipelineVersion, Region, RuntimeId, SessionId, TenantId, WallClock,
};
use serde_json::json;

use super::both::{Stage, on_both, wall_clock};

/// When the tests begin, on the wall clock.
const BEGIN: u64 = 1_800_000_000_000;

fn at(minutes: u64) -> Now {
    Now {
        wall: WallClock(BEGIN + minutes * 60_000),
        monotonic: Monotonic::from_duration(Duration::from_mins(minutes)),
    }
}

fn holder(name: &str, life: u64) -> Holder {
    let mut incarnation = Incarnation::FIRST;
    for _ in 1..life {
        incarnation = incarnation.next();
    }
    Holder {
        runtime: RuntimeId::new(name).unwrap(),
        incarnation,
    }
}

fn placement(name: &str, standing: Standing) -> Placement {
    Placement {
        session: SessionId::new(name).unwrap(),
        binding: Binding {
            tenant: TenantId::new("acme").unwrap(),
            pipeline: PipelineVersion::new("desk-1").unwrap(),
            policy: None,
            providers: None,
        },
        epoch: Epoch::FIRST,
        attempt: Attempt(1),
        standing,
        since: WallClock(BEGIN),
        past: Vec::new(),
        over: None,
    }
}

fn held(by: &str) -> Standing {
    Standing::Held { by: holder(by, 1) }
}

fn vacant() -> Standing {
    Standing::Vacant {
        last: holder("gone", 1),
        how: rspp_controlplane::authority::Vacated::Released,
        to: None,
    }
}

fn ended(minutes: u64) -> Standing {
    Standing::Ended {
        last: holder("gone", 1),
        at: at(minutes).wall,
    }
}

/// A store with a leader, and what it counts with.
struct Place {
    store: Arc<dyn Store>,
    counters: Counters,
    fence: Compare,
    sweep: Sweep,
}

impl Place {
    async fn on(stage: &Stage) -> Self {
        let store = stage.store();
        Self {
            counters: Counters::new(Arc::clone(&store), Arc::new(wall_clock)),
            fence: elect(&*store).await,
            sweep: Sweep::new(Retention::default()),
            store,
        }
    }

    async fn put(&self, placement: &Placement) {
        let key = keys::placement(&placement.session);
        self.write(Txn::default().put(key, json!(placement).to_string()))
            .await;
    }

    async fn write(&self, txn: Txn) {
        self.store.commit(txn).await.unwrap();
    }

    async fn is_there(&self, key: Key) -> bool {
        self.store.get(&key).await.unwrap().is_some()
    }

    async fn session(&self, name: &str) -> Option<Placement> {
        let key = keys::placement(&SessionId::new(name).unwrap());
        let entry = self.store.get(&key).await.unwrap()?;
        Some(serde_json::from_slice(&entry.value).unwrap())
    }

    async fn round(&mut self, minutes: u64) -> Swept {
        let alive = list_all(&*self.store, &keys::livenesses(), None).await;
        let alive = alive.unwrap().records;
        let is_alive = |it: &Holder| alive.contains_key(&keys::liveness(it));
        let (store, fence) = (&*self.store, &self.fence);
        self.sweep
            .round(store, &self.counters, fence, &is_alive, at(minutes))
            .await
            .unwrap()
    }

    /// What the trail says was done, in order; it must stand.
    async fn trail(&self) -> Vec<(String, String)> {
        verify_trail(&*self.store).await.unwrap();
        let entries = list_all(&*self.store, &keys::audits(), None).await.unwrap();
        let entries = entries.records.values().map(|entry| {
            let entry: audit::Entry = serde_json::from_slice(&entry.value).unwrap();
            (entry.record.operation, entry.record.subject)
        });
        entries.collect()
    }
}

async fn elect(store: &dyn Store) -> Compare {
    let txn = Txn::default().put(keys::leader(), "{}");
    Compare::At(keys::leader(), store.commit(txn).await.unwrap())
}

/// Issue 4: a session that ended goes after its time, with its status; one that somebody speaks for
/// stays however old it is, and the trail says what went.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_session_goes_after_its_time_and_a_live_one_never() {
    on_both(async |stage| {
        let mut place = Place::on(&stage).await;
        let live = keys::liveness(&holder("a", 1));
        place.write(Txn::default().put(live, "alive")).await;
        place.put(&placement("spoken", held("a"))).await;
        let letting_go = Standing::Revoking {
            from: holder("a", 1),
            why: WhyRevoked::Drain,
            finish_within: Duration::ZERO,
            fuse: Fuse::Lit,
            to: None,
        };
        place.put(&placement("letting-go", letting_go)).await;
        place.put(&placement("early", ended(0))).await;
        place.put(&placement("late", ended(30))).await;
        let early = SessionId::new("early").unwrap();
        let report = Report {
            phase: Phase::Ended,
            at: at(0).wall,
            reason: None,
            epoch: Epoch::FIRST,
        };
        let status = keys::status(&early);
        place
            .write(Txn::default().put(status.clone(), json!(report).to_string()))
            .await;

        assert!(place.round(59).await.is_nothing());
        assert!(place.is_there(status.clone()).await);
        assert_eq!(place.round(60).await.sessions, 1);
        assert_eq!(place.session("early").await, None);
        assert!(!place.is_there(status).await);
        assert!(place.session("late").await.is_some());
        assert_eq!(place.round(90).await.sessions, 1);
        // A year later, with a runtime that renews.
        assert!(place.round(525_600).await.is_nothing());
        for name in ["spoken", "letting-go"] {
            assert!(place.session(name).await.is_some(), "{name}");
        }
        let gone = || ("records_expired".to_owned(), "sessions".to_owned());
        assert_eq!(place.trail().await, [gone(), gone()]);
    })
    .await;
}

/// F-098, F-111: what nobody speaks for is ended after its time and no longer counts against its tenant;
/// the time begins anew whenever somebody takes it up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_session_is_ended_and_counted_out() {
    on_both(async |stage| {
        let mut place = Place::on(&stage).await;
        let tenant = TenantId::new("acme").unwrap();
        let policy = Arc::new(Policy {
            mode: Mode::Strict,
            ..Policy::default()
        });
        for (name, standing) in [
            ("left", vacant()),
            ("orphan", held("gone")),
            ("taken", vacant()),
        ] {
            let record = placement(name, standing);
            let state = keys::state(&record.session, "memory");
            let txn = Txn::default()
                .put(keys::placement(&record.session), json!(record).to_string())
                .put(state, "what was said");
            let opened = place
                .counters
                .open(Arc::clone(&policy), &tenant, "desk", txn);
            assert!(opened.await.unwrap().written.is_some());
        }
        let open = async |place: &Place| {
            let entry = place.store.get(&keys::usage(&tenant)).await.unwrap();
            let usage: Usage = serde_json::from_slice(&entry.unwrap().value).unwrap();
            usage.open
        };
        assert!(place.round(0).await.is_nothing());
        assert!(place.round(59).await.is_nothing());
        // Somebody took it up, and lost it.
        let again = Placement {
            epoch: Epoch::FIRST.next(),
            ..placement("taken", vacant())
        };
        place.put(&again).await;
        assert_eq!(open(&place).await, 3);
        assert_eq!(place.round(60).await.abandoned, 2);
        assert_eq!(open(&place).await, 1);
        for name in ["left", "orphan"] {
            let over = place.session(name).await.unwrap();
            assert!(
                matches!(over.standing, Standing::Ended { at: when, .. } if when == at(60).wall),
                "{over:?}"
            );
            assert!(!place.is_there(keys::state(&over.session, "memory")).await);
        }
        let taken = place.session("taken").await.unwrap();
        assert!(matches!(taken.standing, Standing::Vacant { .. }));
        assert!(place.is_there(keys::state(&taken.session, "memory")).await);
        assert!(place.round(119).await.is_nothing());
        let last = place.round(120).await;
        assert_eq!((last.abandoned, last.sessions), (1, 2));
        assert_eq!(open(&place).await, 0);
        let trail = place.trail().await;
        let abandoned = trail.iter().filter(|it| it.0 == "session_abandoned");
        let names: Vec<_> = abandoned.map(|it| it.1.as_str()).collect();
        assert_eq!(names, ["left", "orphan", "taken"]);
    })
    .await;
}

/// Issue 4: a runtime that is gone is forgotten, but for the number of its life: who comes back under
/// its name is somebody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gone_runtime_is_forgotten_and_its_life_never_lived_again() {
    on_both(async |stage| {
        let mut place = Place::on(&stage).await;
        let describe = || Description {
            region: Region::new("eu").unwrap(),
            endpoints: vec![Endpoint {
                transport: "websocket".to_owned(),
                url: "ws://node.test/call".to_owned(),
            }],
            capacity: 1,
            build: "test".to_owned(),
            protocol: PROTOCOL,
            events: "v1.0".to_owned(),
            labels: std::collections::BTreeMap::new(),
        };
        for (name, life, alive) in [("a", 1, true), ("b", 3, false), ("c", 2, false)] {
            let mut before = None;
            for _ in 0..life {
                let id = RuntimeId::new(name).unwrap();
                let now = WallClock(BEGIN);
                let joined = fleet::register(before.as_ref(), None, id, describe(), now);
                before = Some(joined.unwrap());
            }
            let runtime = before.unwrap();
            let by = runtime.holder.clone();
            assert_eq!(by, holder(name, life));
            let order = keys::revocation(&by, &SessionId::new("s").unwrap());
            let mut txn = Txn::default()
                .put(keys::runtime(&by.runtime), json!(runtime).to_string())
                .put(order, "{}");
            if alive {
                txn = txn.put(keys::liveness(&by), "alive");
            }
            place.write(txn).await;
        }
        let there = async |place: &Place, name: &str| {
            place
                .is_there(keys::runtime(&RuntimeId::new(name).unwrap()))
                .await
        };
        assert!(place.round(0).await.is_nothing());
        // One comes back in between.
        let back = keys::liveness(&holder("c", 2));
        place.write(Txn::default().put(back.clone(), "alive")).await;
        assert!(place.round(30).await.is_nothing());
        place.write(Txn::default().delete(back)).await;
        assert_eq!(place.round(60).await.runtimes, 1);
        assert!(!there(&place, "b").await && there(&place, "a").await && there(&place, "c").await);
        let orders = keys::revocations_of(&RuntimeId::new("b").unwrap());
        let orders = list_all(&*place.store, &orders, None).await.unwrap();
        assert!(orders.records.is_empty());
        let lives = place.store.get(&keys::removed_lives()).await.unwrap();
        let latest: Incarnation = serde_json::from_slice(&lives.unwrap().value).unwrap();
        assert_eq!(latest, holder("b", 3).incarnation);
        let id = RuntimeId::new("b").unwrap();
        let again = fleet::register(None, Some(latest), id, describe(), WallClock(BEGIN)).unwrap();
        assert_eq!(again.holder, holder("b", 4));
        assert_eq!(place.round(120).await.runtimes, 1);
        assert!(there(&place, "a").await && !there(&place, "c").await);
        // The later life stays the latest.
        let lives = place.store.get(&keys::removed_lives()).await.unwrap();
        assert_eq!(
            serde_json::from_slice::<Incarnation>(&lives.unwrap().value).unwrap(),
            latest
        );
    })
    .await;
}

/// Issue 4: a round does so much and no more, comes to all in the end, and a leader that was deposed
/// removes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_is_bounded_and_a_deposed_leader_removes_nothing() {
    on_both(async |stage| {
        let mut place = Place::on(&stage).await;
        for batch in 0..12 {
            let mut txn = Txn::default();
            for n in 0..100 {
                let record = placement(&format!("s-{batch}-{n}"), ended(0));
                txn = txn.put(keys::placement(&record.session), json!(record).to_string());
            }
            place.write(txn).await;
        }
        let deposed = place.fence.clone();
        place.fence = elect(&*place.store).await;
        let mut late = Sweep::new(Retention::default());
        let (store, nobody) = (&*place.store, |_: &Holder| false);
        let nothing = late.round(store, &place.counters, &deposed, &nobody, at(61));
        assert!(nothing.await.unwrap().is_nothing());
        assert!(place.trail().await.is_empty());
        let rounds = [
            place.round(61).await.sessions,
            place.round(61).await.sessions,
            place.round(61).await.sessions,
            place.round(61).await.sessions,
        ];
        assert_eq!(rounds, [500, 500, 200, 0]);
        let left = list_all(&*place.store, &keys::placements(), None).await;
        assert!(left.unwrap().records.is_empty());
        assert_eq!(place.trail().await.len(), 13 + 13 + 5);
    })
    .await;
}
