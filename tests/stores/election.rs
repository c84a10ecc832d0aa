//! Two replicas, one leader.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use rspp_controlplane::{
    authority::Term,
    keys,
    store::{Compare, Key, Revision, Store, StoreError, Txn},
};
use rspp_controlplane_storage::election::{Candidate, Duties, Leader, Office};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::both::{Severable, on_both};

fn term() -> Term {
    Term::new(Duration::from_secs(1)).unwrap()
}

/// Where the leaders write one after the other.
fn ledger() -> Key {
    Key::of(["rspp", "test", "ledger"])
}

/// What both replicas did.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Done>>>);

struct Done {
    replica: &'static str,
    office: Office,
    outcome: Result<Revision, StoreError>,
}

impl Log {
    fn push(&self, done: Done) {
        self.0.lock().unwrap().push(done);
    }

    /// How often a replica wrote as leader.
    fn written(&self, replica: &str) -> usize {
        let log = self.0.lock().unwrap();
        let of = |done: &&Done| done.replica == replica && done.outcome.is_ok();
        log.iter().filter(of).count()
    }

    fn last_office(&self, replica: &str) -> Office {
        let log = self.0.lock().unwrap();
        let last = log.iter().rfind(|done| done.replica == replica);
        last.unwrap().office.clone()
    }

    /// Whose office lasts, by their own clocks.
    fn leading(&self) -> Vec<&'static str> {
        let log = self.0.lock().unwrap();
        let mut found: Vec<_> = log
            .iter()
            .filter(|done| done.office.lasts())
            .map(|done| done.replica)
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Later writes are never those of an earlier office.
    fn check(&self) {
        let log = self.0.lock().unwrap();
        let mut written: Vec<_> = log
            .iter()
            .filter_map(|done| Some((*done.outcome.as_ref().ok()?, done.office.elected())))
            .collect();
        written.sort_unstable();
        assert!(written.is_sorted_by_key(|(_, elected)| *elected));
    }
}

/// Writes into the ledger whenever it leads.
struct Clerk {
    replica: &'static str,
    store: Arc<dyn Store>,
    log: Log,
}

impl Duties for Clerk {
    fn round<'a>(&'a mut self, office: &'a Office) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let txn = Txn::default()
                .when(office.fence())
                .put(ledger(), self.replica);
            let outcome = self.store.commit(txn).await;
            self.log.push(Done {
                replica: self.replica,
                office: office.clone(),
                outcome,
            });
        })
    }

    fn every(&self) -> Duration {
        Duration::from_millis(20)
    }
}

struct Replica {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn start(replica: &'static str, store: Arc<dyn Store>, log: &Log) -> Replica {
    let stop = CancellationToken::new();
    let clerk = Clerk {
        replica,
        store: Arc::clone(&store),
        log: log.clone(),
    };
    let stopped = stop.clone();
    let task = tokio::spawn(async move {
        let candidate = Candidate::new(store, replica, term());
        candidate.serve(clerk, &stopped).await;
    });
    Replica { stop, task }
}

/// Waits until a replica has written some more, and looks all the time whether two lead.
async fn until_writes(log: &Log, replica: &str) -> Duration {
    let (begun, before) = (Instant::now(), log.written(replica));
    while log.written(replica) < before + 3 {
        let leading = log.leading();
        assert!(leading.len() <= 1, "{leading:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{replica}");
        sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}

/// One of two leads. When it is stopped it resigns, and the other one need not wait for its lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_and_hands_over_when_it_stops() {
    on_both(async |stage| {
        let log = Log::default();
        let first = start("first", stage.store(), &log);
        until_writes(&log, "first").await;
        let second = start("second", stage.store(), &log);
        until_writes(&log, "first").await;
        assert_eq!(log.written("second"), 0);
        let entry = stage.store().get(&keys::leader()).await.unwrap().unwrap();
        let leader: Leader = serde_json::from_slice(&entry.value).unwrap();
        assert_eq!(leader.replica, "first");

        first.stop.cancel();
        first.task.await.unwrap();
        let took = until_writes(&log, "second").await;
        println!("handed over in {took:?}");
        assert!(log.last_office("second").elected() > log.last_office("first").elected());
        log.check();
        second.stop.cancel();
        second.task.await.unwrap();
        assert_eq!(stage.store().get(&keys::leader()).await.unwrap(), None);
    })
    .await;
}

/// F-095, NF-027: a leader that the store does not hear of any more stops believing before another one
/// is elected; what it sent in good faith writes nothing; and when it is back it does not lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_cut_off_falls_silent_before_another_leads() {
    on_both(async |stage| {
        let log = Log::default();
        let severed = Severable::new(stage.store());
        let first = start("first", Arc::clone(&severed) as Arc<dyn Store>, &log);
        until_writes(&log, "first").await;
        let second = start("second", stage.store(), &log);

        severed.cut(true);
        let took = until_writes(&log, "second").await;
        println!("taken over in {took:?}");
        assert!(took <= term().kept() + Duration::from_secs(3), "{took:?}");
        let deposed = log.last_office("first");
        assert!(!deposed.lasts());
        let late = Txn::default().when(deposed.fence()).put(ledger(), "late");
        let late = stage.store().commit(late).await;
        assert_eq!(late, Err(StoreError::Conflict));

        severed.cut(false);
        let before = log.written("first");
        until_writes(&log, "second").await;
        assert_eq!(log.written("first"), before);
        log.check();

        // Nobody says goodbye: it is as if the process were killed.
        second.task.abort();
        let took = until_writes(&log, "first").await;
        println!("taken over from the dead in {took:?}");
        log.check();
        first.stop.cancel();
        first.task.await.unwrap();
    })
    .await;
}

/// Somebody else's record is never taken for one's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_office_is_fenced_by_its_election() {
    on_both(async |stage| {
        let store = stage.store();
        let log = Log::default();
        let first = start("first", Arc::clone(&store), &log);
        until_writes(&log, "first").await;
        let office = log.last_office("first");
        assert!(matches!(office.fence(), Compare::At(key, _) if key == keys::leader()));
        // An operator who deletes the record deposes the leader's transactions at once.
        let deposed = Txn::default().delete(keys::leader());
        store.commit(deposed).await.unwrap();
        let late = Txn::default().when(office.fence()).put(ledger(), "late");
        assert_eq!(store.commit(late).await, Err(StoreError::Conflict));
        first.stop.cancel();
        first.task.await.unwrap();
    })
    .await;
}
