//! One replica at a time has the duties that only one may have.
//!
//! Whoever writes the leader's record first is elected; the record hangs on a lease of the store. The
//! elected one believes in its office only on its own monotonic clock, counted from before each renewal
//! was asked for, and for less long than the store waits: so it has stopped believing before anybody
//! else can be elected. A transaction of a duty also carries [`Office::fence`], so that one which was
//! sent in good faith and arrives too late writes nothing.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, future::BoxFuture};
use rspp_controlplane::{
    authority::Term,
    keys,
    store::{Change, Compare, LeaseId, Prefix, Revision, Store, StoreError, Txn},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// Pause after a store that does not answer.
const PAUSE: Duration = Duration::from_millis(250);
/// How long resigning may take.
const RESIGN: Duration = Duration::from_secs(2);

/// Who has the duties of all, as everybody reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leader {
    /// The replica's name.
    pub replica: String,
}

/// The right to the duties of all, for as long as it lasts.
#[derive(Clone, Debug)]
pub struct Office {
    elected: Revision,
    lease: LeaseId,
    until: watch::Receiver<Instant>,
}

impl Office {
    /// Counts elections: a later one has a higher number.
    pub fn elected(&self) -> Revision {
        self.elected
    }

    /// Holds while nobody was elected since. Belongs into every transaction of a duty.
    pub fn fence(&self) -> Compare {
        Compare::At(keys::leader(), self.elected)
    }

    /// Whether it lasts still, by our own clock.
    pub fn lasts(&self) -> bool {
        Instant::now() < *self.until.borrow()
    }
}

/// What only one replica does.
pub trait Duties: Send {
    /// Does some of it. Called again and again while in office; what it starts must be over when it
    /// returns, or be fenced.
    fn round<'a>(&'a mut self, office: &'a Office) -> BoxFuture<'a, ()>;

    /// How long to wait between rounds.
    fn every(&self) -> Duration;
}

/// A replica that stands for election.
#[derive(Clone)]
pub struct Candidate {
    store: Arc<dyn Store>,
    replica: String,
    term: Term,
}

impl Candidate {
    /// Stands for election with a name that people recognise. Of two offices in a row, the second
    /// begins after the first one's `term` has ended.
    pub fn new(store: Arc<dyn Store>, replica: impl Into<String>, term: Term) -> Self {
        Self {
            store,
            replica: replica.into(),
            term,
        }
    }

    /// Has the duties whenever it is elected, until told to stop; then it resigns, so that another one
    /// need not wait.
    pub async fn serve(&self, mut duties: impl Duties, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            let Some(Some(office)) = stop.run_until_cancelled(self.stand()).await else {
                continue;
            };
            tracing::info!(replica = %self.replica, elected = office.office.elected.0, "leads");
            self.hold(office, &mut duties, stop).await;
            tracing::info!(replica = %self.replica, "leads no longer");
        }
    }

    /// Waits until it is elected; `None` if it has to be tried again.
    async fn stand(&self) -> Option<Held> {
        match self.try_stand().await {
            Ok(elected) => elected,
            Err(error) => {
                tracing::debug!(%error, "nobody can be elected");
                sleep(PAUSE).await;
                None
            }
        }
    }

    async fn try_stand(&self) -> Result<Option<Held>, StoreError> {
        let key = keys::leader();
        if let Some(entry) = self.store.get(&key).await? {
            self.until_gone(entry.modified).await;
            return Ok(None);
        }
        // Before the lease begins, so before anything that the store may count from.
        let asked = Instant::now();
        let lease = self.store.grant(self.term.kept()).await?.id;
        let leader = Leader {
            replica: self.replica.clone(),
        };
        let value = serde_json::to_vec(&leader).expect("a name is plain data");
        let txn = Txn::default()
            .when(Compare::Absent(key.clone()))
            .put_leased(key.clone(), value, lease);
        let elected = match self.store.commit(txn).await {
            Ok(revision) => Some(revision),
            Err(StoreError::Conflict) => None,
            Err(StoreError::Uncertain(_)) => {
                // If it was done, the record hangs on our lease.
                let entry = self.store.get(&key).await?;
                let ours = entry.filter(|entry| entry.lease == Some(lease));
                ours.map(|entry| entry.modified)
            }
            Err(error) => return Err(error),
        };
        let Some(elected) = elected else {
            // It would end by itself as well.
            let _ = timeout(RESIGN, self.store.revoke(lease)).await;
            return Ok(None);
        };
        let (renewed, until) = watch::channel(asked + self.term.told());
        let office = Office {
            elected,
            lease,
            until,
        };
        Ok(Some(Held { office, renewed }))
    }

    /// Waits until the leader's record is gone, or for as long as an office lasts: whoever wakes up too
    /// early looks again.
    async fn until_gone(&self, seen: Revision) {
        let mut changes = self.store.watch(Prefix::of(&keys::leader()), seen);
        let gone = async {
            while let Some(Ok(batch)) = changes.next().await {
                let is_gone = |change: &Change| matches!(change, Change::Deleted(_));
                if batch.changes.iter().any(is_gone) {
                    return;
                }
            }
            sleep(PAUSE).await;
        };
        let _ = timeout(self.term.kept(), gone).await;
    }

    async fn hold(&self, held: Held, duties: &mut impl Duties, stop: &CancellationToken) {
        let office = held.office.clone();
        let work = async {
            loop {
                duties.round(&office).await;
                sleep(duties.every()).await;
            }
        };
        let resigns = tokio::select! {
            // Its office ends before its duties go on.
            biased;
            () = self.keep(&held) => false,
            () = stop.cancelled() => true,
            () = work => false,
        };
        held.renewed.send_replace(Instant::now());
        if resigns {
            let _ = timeout(RESIGN, self.store.revoke(office.lease)).await;
        }
    }

    /// Renews until that is too late, or somebody else was elected.
    async fn keep(&self, held: &Held) {
        // As holders of sessions do: at two fifths, and again until nine tenths.
        let told = self.term.told();
        loop {
            let until = *held.renewed.borrow();
            sleep_until(until - told * 3 / 5).await;
            loop {
                let asked = Instant::now();
                let latest = until - told / 10;
                let renewed = tokio::time::timeout_at(
                    latest.max(asked),
                    self.store.keep_alive(held.office.lease),
                )
                .await;
                match renewed {
                    Ok(Ok(_)) => {
                        held.renewed.send_replace(asked + told);
                        break;
                    }
                    Ok(Err(StoreError::LeaseGone { .. })) | Err(_) => return,
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "the leader could not renew");
                        sleep(PAUSE).await;
                        if Instant::now() >= latest {
                            return;
                        }
                    }
                }
            }
        }
    }
}

/// An office and the hand that prolongs it.
struct Held {
    office: Office,
    renewed: watch::Sender<Instant>,
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidate")
            .field("replica", &self.replica)
            .field("term", &self.term)
            .finish_non_exhaustive()
    }
}
