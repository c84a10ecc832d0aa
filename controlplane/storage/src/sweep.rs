//! Ends what nobody speaks for any more, and removes the records of what is long over: a duty of the
//! leader's, a part at a time.
//!
//! Every transaction carries the leader's fence, compares what was read, and holds the audit entry that
//! says what goes; so nothing goes that somebody has taken up meanwhile, and nothing without a trace.

use std::time::Duration;

use rspp_controlplane::{
    audit::Record,
    authority::Placement,
    fleet::Runtime,
    keys,
    retention::{Fate, Retention, Vigil, fate},
    store::{Compare, Entry, Key, Op, Prefix, Query, Store, StoreError, Txn, bytes, parse},
};
use rspp_proto::{
    Epoch, Monotonic, SessionId, WallClock,
    control::{Holder, Incarnation},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{counters::Counters, trail};

/// Most records that one round looks at.
const PAGE: usize = 500;
/// Most abandoned sessions that one round ends; each is a transaction, for it is counted.
const MOST_ENDED: usize = 32;
/// Sessions whose records go in one transaction: two comparisons and two writes each have to fit.
const SESSIONS_AT_ONCE: usize = 40;
/// Runtimes whose records go in one transaction.
const RUNTIMES_AT_ONCE: usize = 20;

/// Whether a holder renews, as far as is known.
pub type IsAlive<'a> = &'a (dyn Fn(&Holder) -> bool + Sync);

/// The two clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Dates records.
    pub wall: WallClock,
    /// Counts how long something has been gone.
    pub monotonic: Monotonic,
}

/// What a round did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Sessions that were ended because nobody spoke for them for too long.
    pub abandoned: usize,
    /// Sessions whose records were removed.
    pub sessions: usize,
    /// Runtimes whose records were removed.
    pub runtimes: usize,
}

impl Swept {
    /// Whether there was nothing to do.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Where a sweep stands. What it has seen dead for a while is its own memory: another leader begins to
/// count anew.
#[derive(Debug)]
pub struct Sweep {
    retention: Retention,
    sessions: Pass<(SessionId, Epoch)>,
    runtimes: Pass<Holder>,
}

/// Looks at all records that begin alike, page by page, again and again.
#[derive(Debug)]
struct Pass<K> {
    after: Option<Key>,
    vigil: Vigil<K>,
}

impl<K> Default for Pass<K> {
    fn default() -> Self {
        Self {
            after: None,
            vigil: Vigil::default(),
        }
    }
}

impl<K: Ord> Pass<K> {
    async fn page(&self, store: &dyn Store, prefix: Prefix) -> Result<Page, StoreError> {
        let query = Query {
            after: self.after.clone(),
            limit: PAGE,
            ..Query::first(prefix)
        };
        let page = store.list(query).await?;
        let next = page.entries.last().filter(|_| page.more);
        Ok(Page {
            next: next.map(|entry| entry.key.clone()),
            entries: page.entries,
        })
    }

    fn looked_at(&mut self, next: Option<Key>) {
        if next.is_none() {
            self.vigil.passed();
        }
        self.after = next;
    }
}

struct Page {
    entries: Vec<Entry>,
    next: Option<Key>,
}

impl Sweep {
    /// Begins to look.
    pub fn new(retention: Retention) -> Self {
        Self {
            retention,
            sessions: Pass::default(),
            runtimes: Pass::default(),
        }
    }

    /// Looks at the next part of what there is. What somebody else wrote to meanwhile is left for the
    /// next time. `is_alive` may be a moment old: transactions compare.
    pub async fn round(
        &mut self,
        store: &dyn Store,
        counters: &Counters,
        fence: &Compare,
        is_alive: IsAlive<'_>,
        now: Now,
    ) -> Result<Swept, StoreError> {
        let round = Round {
            store,
            counters,
            fence,
            is_alive,
            now,
            retention: self.retention,
        };
        let (abandoned, sessions) = round.sessions(&mut self.sessions).await?;
        let runtimes = round.runtimes(&mut self.runtimes).await?;
        Ok(Swept {
            abandoned,
            sessions,
            runtimes,
        })
    }
}

struct Round<'a> {
    store: &'a dyn Store,
    counters: &'a Counters,
    fence: &'a Compare,
    is_alive: IsAlive<'a>,
    now: Now,
    retention: Retention,
}

impl Round<'_> {
    async fn sessions(
        &self,
        pass: &mut Pass<(SessionId, Epoch)>,
    ) -> Result<(usize, usize), StoreError> {
        let page = pass.page(self.store, keys::placements()).await?;
        let (mut over, mut abandoned) = (Vec::new(), Vec::new());
        for entry in &page.entries {
            let Some(placement) = read::<Placement>(entry) else {
                continue;
            };
            let holder_alive = placement.holder().is_some_and(self.is_alive);
            match fate(
                &placement,
                holder_alive,
                self.retention.ended,
                self.now.wall,
            ) {
                Fate::Keep => {}
                Fate::Remove => over.push((entry, placement.session)),
                Fate::Abandoned(after) => {
                    let name = (placement.session.clone(), placement.epoch);
                    let gone_for = pass.vigil.saw(name, self.now.monotonic);
                    if gone_for >= self.retention.abandoned && abandoned.len() < MOST_ENDED {
                        abandoned.push((entry, placement, after, gone_for));
                    }
                }
            }
        }
        let (mut ended, mut removed) = (0, 0);
        for (entry, before, after, gone_for) in abandoned {
            ended += usize::from(self.end(entry, &before, &after, gone_for).await?);
        }
        for batch in over.chunks(SESSIONS_AT_ONCE) {
            if self.remove_sessions(batch).await? {
                removed += batch.len();
            }
        }
        pass.looked_at(page.next);
        Ok((ended, removed))
    }

    /// Ends a session that nobody speaks for, and counts it out of what its tenant uses.
    async fn end(
        &self,
        entry: &Entry,
        before: &Placement,
        after: &Placement,
        gone_for: Duration,
    ) -> Result<bool, StoreError> {
        let mut txn = Txn::default()
            .when(self.fence.clone())
            .when(Compare::unchanged(&entry.key, Some(entry)))
            .put(entry.key.clone(), bytes(after));
        if let Some(holder) = before.holder() {
            txn = txn
                .when(Compare::Absent(keys::liveness(holder)))
                .delete(keys::revocation(holder, &before.session));
        }
        txn.then.push(Op::DeleteAll(keys::states(&before.session)));
        let detail = json!({ "epoch": before.epoch, "unheld_seconds": gone_for.as_secs() });
        let mut record = self.record("session_abandoned", before.session.as_str(), detail);
        record.tenant = Some(before.binding.tenant.clone());
        let txn = trail::append(self.store, txn, [record]).await?;
        let tenant = &before.binding.tenant;
        is_written(self.counters.close(tenant, txn).await)
    }

    async fn remove_sessions(&self, batch: &[(&Entry, SessionId)]) -> Result<bool, StoreError> {
        let mut txn = Txn::default().when(self.fence.clone());
        for (entry, session) in batch {
            txn = txn
                .when(Compare::unchanged(&entry.key, Some(entry)))
                .delete(entry.key.clone())
                .delete(keys::status(session));
        }
        let names: Vec<_> = batch.iter().map(|(_, session)| session).collect();
        let record = self.record("records_expired", "sessions", json!({ "sessions": names }));
        let txn = trail::append(self.store, txn, [record]).await?;
        is_written(self.store.commit(txn).await)
    }

    async fn runtimes(&self, pass: &mut Pass<Holder>) -> Result<usize, StoreError> {
        let page = pass.page(self.store, keys::runtimes()).await?;
        let mut gone = Vec::new();
        for entry in &page.entries {
            let Some(runtime) = read::<Runtime>(entry) else {
                continue;
            };
            if (self.is_alive)(&runtime.holder) {
                continue;
            }
            let gone_for = pass.vigil.saw(runtime.holder.clone(), self.now.monotonic);
            if gone_for >= self.retention.runtimes {
                gone.push((entry, runtime.holder));
            }
        }
        let mut removed = 0;
        for batch in gone.chunks(RUNTIMES_AT_ONCE) {
            if self.remove_runtimes(batch).await? {
                removed += batch.len();
            }
        }
        pass.looked_at(page.next);
        Ok(removed)
    }

    /// Removes runtimes, and keeps the latest of their lives: whoever comes back under one of these names
    /// has to be somebody else.
    async fn remove_runtimes(&self, batch: &[(&Entry, Holder)]) -> Result<bool, StoreError> {
        let key = keys::removed_lives();
        let entry = self.store.get(&key).await?;
        let before: Option<Incarnation> = entry.as_ref().map(parse).transpose()?;
        let mut latest = before.unwrap_or(Incarnation::FIRST);
        let mut txn = Txn::default()
            .when(self.fence.clone())
            .when(Compare::unchanged(&key, entry.as_ref()));
        for (entry, holder) in batch {
            latest = latest.max(holder.incarnation);
            txn = txn
                .when(Compare::unchanged(&entry.key, Some(entry)))
                .when(Compare::Absent(keys::liveness(holder)))
                .delete(entry.key.clone());
            let orders = keys::revocations_of(&holder.runtime);
            txn.then.push(Op::DeleteAll(orders));
            txn.then
                .push(Op::DeleteAll(keys::reported_by(&holder.runtime)));
        }
        txn = txn.put(key, bytes(&latest));
        let names: Vec<_> = batch.iter().map(|(_, holder)| &holder.runtime).collect();
        let record = self.record("records_expired", "runtimes", json!({ "runtimes": names }));
        let txn = trail::append(self.store, txn, [record]).await?;
        is_written(self.store.commit(txn).await)
    }

    fn record(&self, operation: &str, subject: &str, detail: Value) -> Record {
        Record::automatic(self.now.wall, operation, subject, detail)
    }
}

/// Somebody who wrote first is looked at again in the next pass, as is what became of a transaction that
/// was not answered.
fn is_written<T>(answer: Result<T, StoreError>) -> Result<bool, StoreError> {
    match answer {
        Ok(_) => Ok(true),
        Err(StoreError::Conflict | StoreError::Uncertain(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A record that makes no sense is left for people to look at.
fn read<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    let read = parse(entry);
    read.inspect_err(|error| tracing::warn!(key = %entry.key, %error, "a record makes no sense"))
        .ok()
}
