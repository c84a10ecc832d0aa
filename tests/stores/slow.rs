//! A control plane on a store that is slow, or does not say what became of a write.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rspp_controlplane::store::{
    Answer, Changes, Entry, Granted, Key, LeaseId, Page, Prefix, Query, Revision, Store,
    StoreError, Txn,
};
use rspp_controlplane_api::{ControlPlane as _, HeldSession, Leave, wire};
use rspp_controlplane_storage::Embedded;
use rspp_proto::Epoch;

use crate::rig::{Rig, TTL, settings};

/// A store that takes its time, and keeps to itself what became of some writes.
struct Slow {
    inner: Arc<dyn Store>,
    pause_ms: AtomicU64,
    /// Of so many writes, the answer to one is lost; 0: of none.
    loses_one_of: AtomicU64,
    writes: AtomicU64,
}

impl Slow {
    fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            pause_ms: 0.into(),
            loses_one_of: 0.into(),
            writes: 0.into(),
        })
    }

    fn late<'a, T: Send + 'static>(&'a self, answer: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async move {
            let pause = Duration::from_millis(self.pause_ms.load(Ordering::SeqCst));
            tokio::time::sleep(pause / 2).await;
            let answer = answer.await;
            tokio::time::sleep(pause / 2).await;
            answer
        })
    }
}

impl Store for Slow {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        self.late(self.inner.get(key))
    }

    fn list(&self, query: Query) -> Answer<'_, Page> {
        self.late(self.inner.list(query))
    }

    fn commit(&self, txn: Txn) -> Answer<'_, Revision> {
        Box::pin(async move {
            let answer = self.late(self.inner.commit(txn)).await;
            let number = self.writes.fetch_add(1, Ordering::SeqCst);
            let every = self.loses_one_of.load(Ordering::SeqCst);
            if answer.is_ok() && every > 0 && number.is_multiple_of(every) {
                return Err(StoreError::Uncertain("the answer was lost".to_owned()));
            }
            answer
        })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> Changes {
        self.inner.watch(prefix, after)
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, Granted> {
        self.late(self.inner.grant(ttl))
    }

    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, Duration> {
        self.late(self.inner.keep_alive(lease))
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        self.late(self.inner.revoke(lease))
    }

    fn compact(&self, before: Revision) -> Answer<'_, ()> {
        self.late(self.inner.compact(before))
    }

    fn name(&self) -> &'static str {
        "slow"
    }
}

async fn start() -> (Rig, Arc<Slow>) {
    let dir = tempfile::tempdir().unwrap();
    let file = Embedded::open(&dir.path().join("store")).unwrap();
    let slow = Slow::new(Arc::new(file));
    let rig = Rig::with(dir, Arc::clone(&slow) as Arc<dyn Store>, settings()).await;
    rig.pipeline("desk-1").await;
    (rig, slow)
}

/// F-095, F-159: a store that takes a fifth of a second for each answer costs nobody a lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_store_costs_nobody_a_lease() {
    let (rig, slow) = start().await;
    let a = rig.node("a").await;
    let lease = a.acquire("s", 1).await.unwrap();
    slow.pause_ms.store(200, Ordering::SeqCst);
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < TTL * 3 {
        let asked = tokio::time::Instant::now();
        let held = vec![HeldSession {
            session: lease.session.clone(),
            epoch: lease.epoch,
            prove: false,
        }];
        let renewed = a.client.renew(&a.holder(), held).await.unwrap();
        assert!(renewed.lost.is_empty());
        assert!(asked.elapsed() < TTL / 2, "in time to be repeated");
        tokio::time::sleep(TTL / 5).await;
    }
    assert_eq!(rig.route("new", "").await.unwrap().runtime, "a");
    let writer = a.writer(&lease);
    assert!(a.client.load_state(writer, Vec::new()).await.is_ok());
}

/// F-158, F-098, NF-027: of every third write the answer is lost; each request has one effect, and the
/// count of sessions comes out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_have_one_effect() {
    let (rig, slow) = start().await;
    let a = rig.node("a").await;
    slow.loses_one_of.store(3, Ordering::SeqCst);
    let mut leases = Vec::new();
    for number in 0..12 {
        let lease = a.acquire(&format!("s-{number}"), 1).await.unwrap();
        assert_eq!(lease.epoch, Epoch::FIRST, "granted once");
        leases.push(lease);
    }
    for lease in &leases[..6] {
        a.client
            .release(a.writer(lease), Leave::end("the user hung up"))
            .await
            .unwrap();
    }
    slow.loses_one_of.store(0, Ordering::SeqCst);
    let usage = wire::GetUsageRequest {
        tenant: "acme".to_owned(),
    };
    let used = rig.client("operator/otto").get_usage(usage).await.unwrap();
    assert_eq!((used.open, used.opened_per_minute), (6, 12));
    let trail = rig.admin().verify_trail(wire::VerifyTrailRequest {}).await;
    assert_eq!(trail.unwrap().broken, "");
}
