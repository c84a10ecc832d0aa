//! Watches over connections that break, while the store forgets.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use rspp_controlplane::store::{
    Change, Key, Mirror, News, Query, Revision, Store, Txn, WatchError,
};
use rspp_controlplane_storage::{Etcd, EtcdConfig};
use rspp_tests::{
    etcd::{Cluster, PROGRESS},
    link::{Link, Weather},
};
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(15);

fn key(place: &str, name: &str) -> Key {
    Key::of(["rspp", place, name])
}

async fn put(store: &dyn Store, key: &Key, text: &str) -> Revision {
    let txn = Txn::default().put(key.clone(), text.to_owned());
    store.commit(txn).await.unwrap()
}

async fn now(store: &dyn Store) -> Revision {
    let nothing = Query::first(Key::of(["nothing"]).below());
    store.list(nothing).await.unwrap().revision
}

async fn scene() -> (Cluster, Link, Arc<dyn Store>, Etcd) {
    let cluster = Cluster::start(1).await;
    let link = Link::to(cluster.address(0)).await;
    let ours = Etcd::new(&EtcdConfig {
        endpoints: vec![format!("http://{}", link.address())],
        ..cluster.config()
    });
    let truth = cluster.store();
    (cluster, link, Arc::new(ours.unwrap()), truth)
}

/// While the connection is gone the store changes and forgets it: the watch says so, and a mirror
/// catches up by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_forgotten_while_nobody_looked_is_caught_up_with() {
    let (_cluster, link, ours, truth) = scene().await;
    let a = key("watched", "a");
    put(&truth, &a, "1").await;
    let below = Key::of(["rspp", "watched"]).below();
    let mut changes = ours.watch(below.clone(), now(&truth).await);
    let mut mirror = Mirror::open(Arc::clone(&ours), below).await.unwrap();
    put(&truth, &a, "2").await;
    let batch = timeout(SOON, changes.next()).await.unwrap().unwrap();
    let seen = batch.unwrap().revision;
    assert!(matches!(
        timeout(SOON, mirror.next()).await.unwrap(),
        News::Changed(_)
    ));

    link.set(Weather::Cut);
    for text in ["3", "4", "5"] {
        put(&truth, &a, text).await;
    }
    let last = put(&truth, &key("watched", "b"), "1").await;
    truth.compact(last).await.unwrap();
    link.set(Weather::Fair);

    let ended = timeout(SOON, changes.next()).await.unwrap().unwrap();
    let Err(WatchError::Compacted { oldest }) = ended else {
        panic!("{ended:?}");
    };
    assert!(oldest > seen);
    let news = timeout(SOON, mirror.next()).await.unwrap();
    let News::CaughtUp(batch) = news else {
        panic!("{news:?}");
    };
    assert_eq!(batch.changes.len(), 2);
    put(&truth, &a, "6").await;
    assert!(matches!(
        timeout(SOON, mirror.next()).await.unwrap(),
        News::Changed(_)
    ));
}

/// A store that was gone for long and is back is heard to be so, though nothing has changed: what is shown
/// is as good as ever then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_back_is_heard_to_be_so() {
    let (_cluster, link, ours, truth) = scene().await;
    let below = Key::of(["rspp", "steady"]).below();
    put(&truth, &key("steady", "a"), "1").await;
    let mut mirror = Mirror::open(Arc::clone(&ours), below).await.unwrap();
    link.set(Weather::Cut);
    let news = timeout(SOON, mirror.next()).await.unwrap();
    assert!(matches!(news, News::Stale(_)), "{news:?}");
    link.set(Weather::Fair);
    loop {
        match timeout(SOON, mirror.next()).await.unwrap() {
            News::Stale(_) => {}
            News::CaughtUp(batch) => {
                assert!(batch.changes.is_empty(), "{batch:?}");
                break;
            }
            News::Changed(batch) => panic!("nobody wrote: {batch:?}"),
        }
    }
}

/// Nothing of what is watched changes for long, much else does, and all that is forgotten. The members
/// said meanwhile how far they had looked, so the watch goes on over a new connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_watch_is_not_overtaken_by_what_is_forgotten() {
    let (_cluster, link, ours, truth) = scene().await;
    let quiet = key("quiet", "a");
    let mut changes = ours.watch(Key::of(["rspp", "quiet"]).below(), now(&truth).await);
    // It has to be looking for its answers to be heard.
    let reading = tokio::spawn(async move {
        let next = changes.next().await;
        (next, changes)
    });
    sleep(PROGRESS).await;
    let mut last = Revision(0);
    for number in 0..50 {
        last = put(&truth, &key("loud", "x"), &number.to_string()).await;
    }
    sleep(PROGRESS * 4).await;
    truth.compact(last).await.unwrap();
    link.set(Weather::Cut);
    sleep(Duration::from_millis(100)).await;
    link.set(Weather::Fair);
    let told = put(&truth, &quiet, "1").await;
    let (next, _changes) = timeout(SOON, reading).await.unwrap().unwrap();
    let batch = next.unwrap().unwrap();
    assert_eq!(batch.revision, told);
}

/// The connection breaks in the middle of many changes, again and again: each is told once, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_over_a_bad_connection_tells_everything_once() {
    const COUNT: usize = 400;
    let (_cluster, link, ours, truth) = scene().await;
    let busy = key("busy", "n");
    let mut changes = ours.watch(Key::of(["rspp", "busy"]).below(), now(&truth).await);
    let truth = Arc::new(truth);
    let writing = {
        let (truth, busy) = (Arc::clone(&truth), busy.clone());
        tokio::spawn(async move {
            for number in 0..COUNT {
                put(&*truth, &busy, &number.to_string()).await;
            }
        })
    };
    let breaking = tokio::spawn(async move {
        for weather in [Weather::Cut, Weather::AnswersLost, Weather::Cut] {
            sleep(Duration::from_millis(150)).await;
            link.set(weather);
            sleep(Duration::from_millis(50)).await;
            link.set(Weather::Fair);
        }
        link
    });
    let mut seen = Vec::new();
    while seen.len() < COUNT {
        let batch = timeout(SOON, changes.next()).await.unwrap().unwrap();
        for change in batch.unwrap().changes {
            let Change::Put(entry) = change else {
                panic!("nothing is deleted");
            };
            let number: usize = String::from_utf8_lossy(&entry.value).parse().unwrap();
            seen.push(number);
        }
    }
    assert_eq!(seen, (0..COUNT).collect::<Vec<_>>());
    writing.await.unwrap();
    breaking.await.unwrap();
}

/// A revision that is larger than what is told at once comes whole all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_revision_comes_in_one_batch() {
    let (_cluster, _link, ours, truth) = scene().await;
    let begun = now(&truth).await;
    let mut last = Revision(0);
    // All of it is told to a watcher that begins afterwards, in answers of many revisions.
    for round in 0..12 {
        let txn = (0..2).fold(Txn::default(), |txn, half| {
            let value = vec![b'x'; 500 * 1024];
            txn.put(key("large", &format!("{half}-{}", round % 3)), value)
        });
        last = truth.commit(txn).await.unwrap();
    }
    let mut changes = ours.watch(Key::of(["rspp", "large"]).below(), begun);
    for _ in 0..12 {
        let batch = timeout(SOON, changes.next()).await.unwrap().unwrap();
        let batch = batch.unwrap();
        assert_eq!(
            batch.changes.len(),
            2,
            "at {:?} of {last:?}",
            batch.revision
        );
    }
}
