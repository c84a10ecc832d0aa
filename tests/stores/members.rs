//! Members that die, freeze, are cut off and come back, under load.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use rspp_controlplane::store::{
    Change, Compare, Key, MIN_LEASE, Query, Revision, Store, StoreError, Txn,
};
use rspp_tests::etcd::{Cluster, Setup};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

const WRITERS: usize = 4;

fn place() -> Key {
    Key::of(["rspp", "members"])
}

/// What one writer went through.
struct Wrote {
    count: u64,
    longest: Duration,
    uncertain: u64,
}

/// Counts up in a record that nobody else writes, each time under the condition that it stands as this
/// writer left it: so a conflict means that a write was done twice, or done and denied.
fn write(store: Arc<dyn Store>, name: String, stop: Arc<AtomicBool>) -> JoinHandle<Wrote> {
    tokio::spawn(async move {
        let key = Key::of(["rspp", "members", &name]);
        let mut wrote = Wrote {
            count: 0,
            longest: Duration::ZERO,
            uncertain: 0,
        };
        let mut stands: Option<Revision> = None;
        while !stop.load(Ordering::Relaxed) {
            let compare = match stands {
                Some(revision) => Compare::At(key.clone(), revision),
                None => Compare::Absent(key.clone()),
            };
            let next = wrote.count + 1;
            let begun = Instant::now();
            let txn = Txn::default()
                .when(compare)
                .put(key.clone(), next.to_string());
            match store.commit(txn).await {
                Ok(revision) => {
                    stands = Some(revision);
                    wrote.count = next;
                    wrote.longest = wrote.longest.max(begun.elapsed());
                }
                Err(StoreError::Unavailable(_)) => {}
                Err(StoreError::Uncertain(_)) => {
                    // What nobody could tell is read, as the store says one has to.
                    wrote.uncertain += 1;
                    let entry = loop {
                        match store.get(&key).await {
                            Ok(entry) => break entry,
                            Err(_) => sleep(Duration::from_millis(50)).await,
                        }
                    };
                    stands = entry.as_ref().map(|entry| entry.modified);
                    let text = entry.map(|entry| entry.value);
                    let text = text.map(|text| String::from_utf8_lossy(&text).into_owned());
                    wrote.count = text.map_or(0, |text| text.parse().expect("a number"));
                }
                Err(error) => panic!("{name} at {next}: {error}"),
            }
        }
        wrote
    })
}

/// NF-016: leaders are killed, frozen and cut off one after the other while four writers count, a lease is renewed and a
/// watcher looks on. No write is lost, none is done twice, none is denied that was done; the watcher
/// sees every number of every writer once and in order; the lease lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_die_freeze_and_are_cut_off_and_nothing_is_lost() {
    let setup = Setup {
        members: 3,
        is_divisible: true,
        ..Setup::default()
    };
    let mut cluster = Cluster::start_as(&setup).await;
    let store: Arc<dyn Store> = Arc::new(cluster.store());
    let begun = store.list(Query::first(place().below())).await.unwrap();
    let mut changes = store.watch(place().below(), begun.revision);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            // Two share a client, as the requests of one replica do.
            let store: Arc<dyn Store> = match writer {
                0 | 1 => Arc::clone(&store),
                _ => Arc::new(cluster.store()),
            };
            write(store, writer.to_string(), Arc::clone(&stop))
        })
        .collect();
    let renewing = renew(Arc::new(cluster.store()), Arc::clone(&stop));

    for round in 0..2 {
        sleep(Duration::from_millis(500)).await;
        let leader = cluster.leader().await;
        cluster.kill(leader);
        sleep(Duration::from_millis(2_500)).await;
        cluster.restart(leader).await;
        sleep(Duration::from_millis(500)).await;
        // Frozen, it still holds its connections, and wakes up believing that it leads.
        let leader = cluster.leader().await;
        cluster.freeze(leader);
        sleep(Duration::from_secs(3)).await;
        cluster.thaw(leader);
        sleep(Duration::from_millis(500)).await;
        // Cut off, it hears its clients and nobody else; the others make do without it.
        let leader = cluster.leader().await;
        cluster.cut_off(leader);
        sleep(Duration::from_secs(3)).await;
        assert_ne!(cluster.leader().await, leader);
        cluster.rejoin(leader);
        println!("round {round}: three leaders gone");
    }
    sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let mut last = Vec::new();
    for (writer, wrote) in writers.into_iter().enumerate() {
        let wrote = wrote.await.expect("no write was lost or done twice");
        println!(
            "writer {writer}: {} writes, the longest {:?}, {} uncertain",
            wrote.count, wrote.longest, wrote.uncertain
        );
        assert!(wrote.count > 20, "it goes on");
        assert!(wrote.longest < Duration::from_secs(20));
        last.push(wrote.count);
    }
    renewing.await.expect("the lease lasted");

    let mut seen = vec![0; WRITERS];
    while seen != last {
        let batch = timeout(Duration::from_secs(20), changes.next()).await;
        let batch = batch.expect("the watch catches up").expect("it goes on");
        let batch = batch.unwrap_or_else(|error| panic!("{error}"));
        for change in batch.changes {
            let Change::Put(entry) = change else {
                panic!("nothing is deleted: {change:?}");
            };
            let writer: usize = entry.key.last().parse().unwrap();
            let number: u64 = String::from_utf8_lossy(&entry.value).parse().unwrap();
            assert_eq!(number, seen[writer] + 1, "writer {writer}");
            seen[writer] = number;
        }
    }
}

/// Renews a lease, as a replica does, and sees to it that what hangs on it is there all the time.
fn renew(store: Arc<dyn Store>, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let lease = store.grant(MIN_LEASE * 4).await.unwrap().id;
        let key = Key::of(["rspp", "alive"]);
        let txn = Txn::default().put_leased(key.clone(), "1", lease);
        store.commit(txn).await.unwrap();
        while !stop.load(Ordering::Relaxed) {
            sleep(MIN_LEASE / 2).await;
            match store.keep_alive(lease).await {
                Ok(_) => {}
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
            match store.get(&key).await {
                Ok(found) => assert!(found.is_some(), "it hangs on a lease that is renewed"),
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    })
}

/// Two of three members are gone: nothing can be written, which is said in time, and nothing is made
/// up; as soon as one is back all goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_written() {
    let mut cluster = Cluster::start(3).await;
    let store = cluster.store();
    let key = Key::of(["rspp", "majority"]);
    let put = |text: &'static str| Txn::default().put(key.clone(), text);
    store.commit(put("1")).await.unwrap();
    cluster.kill(0);
    cluster.kill(1);
    let begun = Instant::now();
    let error = store.commit(put("2")).await.unwrap_err();
    let waited = begun.elapsed();
    assert!(error.is_transient(), "{error}");
    assert!(waited < Duration::from_secs(20), "{waited:?}");
    assert!(store.get(&key).await.is_err(), "what was read might be old");
    cluster.restart(0).await;
    store.commit(put("3")).await.unwrap();
    let found = store.get(&key).await.unwrap().unwrap();
    assert_eq!(found.value, "3");
}
