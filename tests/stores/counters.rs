//! What tenants use, counted by two replicas at once.

use std::{collections::BTreeMap, sync::Arc};

use rspp_controlplane::{
    admission::{Mode, Policy, Usage},
    authority::{Attempt, Binding, Holder, Incarnation, Placement, Standing},
    keys,
    store::{Compare, Key, Query, Store, StoreError, Txn},
};
use rspp_controlplane_storage::counters::{Counters, Recounted, recount};
use rspp_proto::{
    Epoch, PipelineVersion, RuntimeId, SessionId, TenantId, WallClock,
    abi::OutcomeKind,
    reason,
    spec::{Quota, QuotasSpec},
};

use super::both::{Severable, on_both, wall_clock};

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

fn counters(store: Arc<dyn Store>) -> Arc<Counters> {
    Arc::new(Counters::new(store, Arc::new(wall_clock)))
}

fn policy(limits: QuotasSpec, mode: Mode) -> Arc<Policy> {
    Arc::new(Policy {
        default: limits,
        mode,
        ..Policy::default()
    })
}

fn at_most(sessions: u64) -> QuotasSpec {
    QuotasSpec {
        sessions: Some(Quota::at(sessions)),
        ..QuotasSpec::default()
    }
}

/// What places a session, if nobody has placed it yet.
fn place(tenant: &TenantId, name: &str) -> Txn {
    let placement = Placement {
        session: session(name),
        binding: Binding {
            tenant: tenant.clone(),
            pipeline: PipelineVersion::new("desk-v1").unwrap(),
            policy: None,
            providers: None,
        },
        epoch: Epoch::FIRST,
        attempt: Attempt(1),
        standing: Standing::Held {
            by: Holder {
                runtime: RuntimeId::new("runtime-a").unwrap(),
                incarnation: Incarnation::FIRST,
            },
        },
        since: WallClock(1),
        past: Vec::new(),
        over: None,
    };
    let key = keys::placement(&placement.session);
    Txn::default()
        .when(Compare::Absent(key.clone()))
        .put(key, serde_json::to_vec(&placement).unwrap())
}

async fn usage(store: &dyn Store, tenant: &TenantId) -> Usage {
    let entry = store.get(&keys::usage(tenant)).await.unwrap();
    entry.map_or_else(Usage::default, |entry| {
        serde_json::from_slice(&entry.value).unwrap()
    })
}

async fn placed(store: &dyn Store) -> usize {
    let query = Query::first(keys::placements());
    store.list(query).await.unwrap().entries.len()
}

/// F-098: 240 sessions come at once to two replicas, and 150 are allowed: 150 get in, not one more or
/// less, and 90 are told why not. Those who came together were written together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_let_in_as_many_as_are_allowed() {
    on_both(async |stage| {
        let replicas = [counters(stage.store()), counters(stage.store())];
        let store = stage.store();
        let acme = tenant("acme");
        let policy = policy(at_most(150), Mode::Strict);
        let before = store.list(Query::first(keys::usages())).await.unwrap();
        let opening: Vec<_> = (0..240)
            .map(|number| {
                let replica = Arc::clone(&replicas[number % 2]);
                let (acme, policy) = (acme.clone(), Arc::clone(&policy));
                tokio::spawn(async move {
                    let txn = place(&acme, &format!("session-{number}"));
                    replica.open(policy, &acme, "desk", txn).await.unwrap()
                })
            })
            .collect();
        let mut outcomes = BTreeMap::<_, usize>::new();
        for opening in opening {
            let opened = opening.await.unwrap();
            let is_in = opened.decision.outcome == OutcomeKind::Admit;
            assert_eq!(opened.written.is_some(), is_in);
            let why = opened.decision.reason.as_str().to_owned();
            *outcomes.entry(why).or_default() += 1;
        }
        let expected = [
            (reason::CP_ADMISSION_ALLOWED, 150),
            (reason::CP_ADMISSION_REJECT_QUOTA, 90),
        ];
        let expected = expected.map(|(why, count)| (why.as_str().to_owned(), count));
        assert_eq!(outcomes, expected.into());
        assert_eq!(usage(&*store, &acme).await.open, 150);
        assert_eq!(placed(&*store).await, 150);
        let after = store.list(Query::first(keys::usages())).await.unwrap();
        let transactions = after.revision.0 - before.revision.0;
        println!("150 sessions in {transactions} transactions");
        assert!(transactions < 75, "{transactions}");
        for replica in replicas {
            replica.finish().await;
        }
    })
    .await;
}

/// Who fails in company does not take the others along, and is told that it was its own condition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_in_the_way_fails_alone() {
    on_both(async |stage| {
        let store = stage.store();
        let counters = counters(stage.store());
        let acme = tenant("acme");
        let policy = policy(QuotasSpec::default(), Mode::Strict);
        store.commit(place(&acme, "taken")).await.unwrap();
        let names = ["a", "b", "taken", "c", "d", "e"];
        let opening = names.map(|name| {
            let (counters, policy) = (Arc::clone(&counters), Arc::clone(&policy));
            let acme = acme.clone();
            tokio::spawn(async move {
                counters
                    .open(policy, &acme, "desk", place(&acme, name))
                    .await
            })
        });
        for (name, opening) in names.into_iter().zip(opening) {
            let opened = opening.await.unwrap();
            if name == "taken" {
                assert_eq!(opened, Err(StoreError::Conflict));
            } else {
                assert!(opened.unwrap().written.is_some(), "{name}");
            }
        }
        assert_eq!(usage(&*store, &acme).await.open, 5);

        // Out again, with tokens counted in between.
        counters.spend(&acme, 700, Txn::default()).await.unwrap();
        for name in ["a", "b"] {
            let gone = Txn::default().delete(keys::placement(&session(name)));
            counters.close(&acme, gone).await.unwrap();
        }
        let counted = usage(&*store, &acme).await;
        assert_eq!(counted.open, 3);
        assert_eq!(counted.opened.within(wall_clock()), 5);
        assert_eq!(counted.tokens.within(wall_clock()), 700);
    })
    .await;
}

/// F-098: what is done when nothing can be counted is the operator's choice, and the decision says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_store_the_operators_choice_counts() {
    on_both(async |stage| {
        let severed = Severable::new(stage.store());
        let counters = counters(Arc::clone(&severed) as Arc<dyn Store>);
        let acme = tenant("acme");
        severed.cut(true);
        for (mode, outcome, why) in [
            (
                Mode::Strict,
                OutcomeKind::Defer,
                reason::CP_ADMISSION_DEFER_UNAVAILABLE,
            ),
            (
                Mode::Availability,
                OutcomeKind::Admit,
                reason::CP_ADMISSION_ALLOWED_UNCOUNTED,
            ),
        ] {
            let policy = policy(at_most(1), mode);
            let opened = counters
                .open(policy, &acme, "desk", place(&acme, "a"))
                .await;
            let opened = opened.unwrap();
            let decision = &opened.decision;
            assert_eq!((decision.outcome, &decision.reason), (outcome, &why));
            assert_eq!((decision.mode, decision.counted), (mode, false));
            assert_eq!(opened.written, None);
        }
        let closed = counters.close(&acme, Txn::default()).await;
        assert!(matches!(closed, Err(StoreError::Unavailable(_))));
    })
    .await;
}

/// Somebody wrote past the count, as a restore does: the leader sets it right, and a deposed leader
/// cannot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_count_is_set_right_by_the_leader() {
    on_both(async |stage| {
        let store = stage.store();
        let (acme, bolt) = (tenant("acme"), tenant("bolt"));
        let counters = counters(stage.store());
        let policy = policy(QuotasSpec::default(), Mode::Strict);
        for name in ["a", "b", "c"] {
            let opened = counters.open(Arc::clone(&policy), &acme, "desk", place(&acme, name));
            opened.await.unwrap();
        }
        // One goes uncounted, one comes uncounted.
        let gone = Txn::default().delete(keys::placement(&session("c")));
        store.commit(gone).await.unwrap();
        store.commit(place(&bolt, "d")).await.unwrap();

        let office: Key = keys::leader();
        let elected = Txn::default().put(office.clone(), "{}");
        let elected = store.commit(elected).await.unwrap();
        let deposed = Compare::At(
            office.clone(),
            rspp_controlplane::store::Revision(elected.0 - 1),
        );
        assert_eq!(recount(&*store, &deposed).await.unwrap(), []);
        assert_eq!(usage(&*store, &acme).await.open, 3);

        let fence = Compare::At(office, elected);
        let found = recount(&*store, &fence).await.unwrap();
        let right = |tenant: &TenantId, before, after| Recounted {
            tenant: tenant.clone(),
            before,
            after,
        };
        assert_eq!(found, [right(&acme, 3, 2), right(&bolt, 0, 1)]);
        assert_eq!(usage(&*store, &acme).await.open, 2);
        assert_eq!(usage(&*store, &acme).await.opened.within(wall_clock()), 3);
        assert_eq!(recount(&*store, &fence).await.unwrap(), []);
    })
    .await;
}
