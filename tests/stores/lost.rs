//! Answers that get lost. Whoever asked still learns what became of it.

use std::{sync::Arc, time::Duration};

use rspp_controlplane::store::{Compare, Entry, Key, Revision, Store, StoreError, Txn};
use rspp_controlplane_storage::{Etcd, EtcdConfig};
use rspp_tests::{
    etcd::Cluster,
    link::{Link, Weather},
};
use tokio::time::{Instant, sleep};

fn key(name: &str) -> Key {
    Key::of(["rspp", "test", name])
}

/// One member, ways to it that break, and a way that does not.
struct Scene {
    /// The way that is tried out.
    link: Link,
    /// Another one, for those who have two.
    detour: Link,
    /// Over the links.
    ours: Arc<Etcd>,
    /// Not over them.
    truth: Etcd,
    _cluster: Cluster,
}

impl Scene {
    async fn new(give_up_ms: u64, ways: usize) -> Self {
        let cluster = Cluster::start(1).await;
        let link = Link::to(cluster.address(0)).await;
        let detour = Link::to(cluster.address(0)).await;
        let endpoints = [&link, &detour].map(|link| format!("http://{}", link.address()));
        let config = EtcdConfig {
            endpoints: endpoints.into_iter().take(ways).collect(),
            timeout_ms: 400,
            give_up_ms,
            ..cluster.config()
        };
        let ours = Arc::new(Etcd::new(&config).unwrap());
        // Receipts, lease and connection are there before anything breaks.
        ours.commit(Txn::default().put(key("warm"), "1"))
            .await
            .unwrap();
        Self {
            link,
            detour,
            ours,
            truth: cluster.store(),
            _cluster: cluster,
        }
    }

    /// Sees to it that the next request goes over the link, not over the detour.
    async fn prefer_link(&self) {
        self.detour.set(Weather::Cut);
        self.ours.get(&key("warm")).await.unwrap();
        self.detour.set(Weather::Fair);
    }

    async fn seen(&self, name: &str) -> Option<Entry> {
        self.truth.get(&key(name)).await.unwrap()
    }

    /// Waits until a record is there, whoever knows of it.
    async fn until_written(&self, name: &str) -> Entry {
        let begun = Instant::now();
        loop {
            if let Some(entry) = self.seen(name).await {
                return entry;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "{name} never came"
            );
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn commit(&self, txn: Txn) -> tokio::task::JoinHandle<Result<Revision, StoreError>> {
        let ours = Arc::clone(&self.ours);
        tokio::spawn(async move { ours.commit(txn).await })
    }
}

/// NF-027: a transaction was done, and its answer is lost. The one who asked is told that it was done and
/// when, not that somebody else wrote first, though its own condition does not hold any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_learnt_later() {
    let scene = Scene::new(8_000, 1).await;
    for round in 0..3 {
        let name = format!("lost-{round}");
        scene.link.set(Weather::AnswersLost);
        let txn = Txn::default()
            .when(Compare::Absent(key(&name)))
            .put(key(&name), "ours");
        let asked = scene.commit(txn);
        let written = scene.until_written(&name).await;
        assert!(!asked.is_finished(), "nobody told it yet");
        scene.link.set(Weather::Fair);
        assert_eq!(asked.await.unwrap(), Ok(written.modified));
        let found = scene.seen(&name).await.unwrap();
        assert_eq!(found, written, "it was written once");
    }
}

/// A transaction that never arrived is sent again, and done once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_request_is_sent_again() {
    let scene = Scene::new(8_000, 1).await;
    scene.link.set(Weather::RequestsLost);
    let asked = scene.commit(Txn::default().put(key("once"), "ours"));
    sleep(Duration::from_millis(600)).await;
    assert_eq!(scene.seen("once").await, None);
    scene.link.set(Weather::Fair);
    let revision = asked.await.unwrap().unwrap();
    let found = scene.seen("once").await.unwrap();
    assert_eq!((found.created, found.modified), (revision, revision));
}

/// NF-027: a transaction is under way for so long that it was given up and done over another member. When it
/// arrives after all, and its own conditions would hold, nothing is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_request_comes_too_late() {
    let scene = Scene::new(8_000, 2).await;
    let mut detours = 0;
    for round in 0..5 {
        let name = format!("late-{round}");
        scene.prefer_link().await;
        scene.link.set(Weather::RequestsLate);
        let begun = Instant::now();
        let txn = Txn::default().put(key(&name), "first");
        let revision = scene.commit(txn).await.unwrap().unwrap();
        // Now and then another member is asked first: what follows holds all the same.
        detours += usize::from(begun.elapsed() >= Duration::from_millis(400));
        let other = Txn::default().put(key(&name), "second");
        scene.truth.commit(other).await.unwrap();
        scene.link.set(Weather::Fair);
        sleep(Duration::from_millis(300)).await;
        let found = scene.seen(&name).await.unwrap();
        assert_eq!((&*found.value, found.created), (&b"second"[..], revision));
    }
    assert!(detours > 0, "nothing was ever late");
}

/// If nobody answers for as long as all are tried, it is said to be uncertain, never that it was not
/// done; and if nobody was there from the beginning, that nothing was done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_can_know_is_said_to_be_uncertain() {
    let scene = Scene::new(1_000, 1).await;
    scene.link.set(Weather::AnswersLost);
    let asked = scene.commit(Txn::default().put(key("gone"), "ours"));
    scene.until_written("gone").await;
    let error = asked.await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Uncertain(_)), "{error}");

    scene.link.set(Weather::Cut);
    // Only the connection that was cut in the middle can be in doubt; this one is refused.
    let error = loop {
        let asked = scene.commit(Txn::default().put(key("never"), "ours"));
        match asked.await.unwrap().unwrap_err() {
            StoreError::Uncertain(_) => {}
            error => break error,
        }
    };
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert_eq!(scene.seen("never").await, None);

    // And afterwards all is well, with the same receipts.
    scene.link.set(Weather::Fair);
    scene
        .commit(Txn::default().put(key("after"), "ours"))
        .await
        .unwrap()
        .unwrap();
}

/// Whoever stops waiting in the middle spoils nothing for those who come after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_went_away_spoils_nothing() {
    let scene = Scene::new(8_000, 1).await;
    for round in 0..20 {
        let name = format!("went-{round}");
        scene.link.set(Weather::AnswersLost);
        let asked = scene.commit(Txn::default().put(key(&name), "left"));
        sleep(Duration::from_millis(5 * round)).await;
        asked.abort();
        scene.link.set(Weather::Fair);
        let txn = Txn::default().put(key("next"), name.clone());
        let revision = scene.commit(txn).await.unwrap().unwrap();
        let found = scene.seen("next").await.unwrap();
        assert_eq!((found.modified, &*found.value), (revision, name.as_bytes()));
    }
}
