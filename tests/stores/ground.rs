//! The server's suite stands on etcd here: one member for all of its tests, each in a place of its own.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use rspp_controlplane::store::{
    Answer, Batch, Change, Changes, Compare, Entry, Granted, Key, LeaseId, Op, Page, Prefix, Query,
    Revision, Store, Txn,
};
use rspp_controlplane_storage::Etcd;
use rspp_tests::etcd::Cluster;
use tokio::sync::OnceCell;

static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
static PLACES: AtomicU64 = AtomicU64::new(0);

/// An empty store.
pub(crate) async fn fresh(_dir: &Path) -> Arc<dyn Store> {
    let place = Place::new(PLACES.fetch_add(1, Ordering::Relaxed)).await;
    Arc::new(place.store().await)
}

/// Where nobody else keeps anything.
#[derive(Clone, Debug)]
pub(crate) struct Place(Arc<str>);

impl Place {
    async fn new(number: u64) -> Self {
        CLUSTER.get_or_init(|| Cluster::start(1)).await;
        Self(format!("/place-{number}").into())
    }

    /// One that nobody has had.
    pub(crate) async fn fresh() -> Self {
        Self::new(PLACES.fetch_add(1, Ordering::Relaxed)).await
    }

    /// A client of its own, as another replica has it.
    pub(crate) async fn store(&self) -> Within {
        let cluster = CLUSTER.get_or_init(|| Cluster::start(1)).await;
        Within {
            inner: cluster.store(),
            place: self.clone(),
        }
    }

    fn out(&self, key: &Key) -> Key {
        Key::stored(format!("{}{}", self.0, key.as_str()))
    }

    fn back(&self, key: &Key) -> Key {
        let text = key.as_str().strip_prefix(&*self.0);
        Key::stored(text.expect("nothing else is listed"))
    }

    fn below(&self, prefix: &Prefix) -> Prefix {
        Prefix::of(&Key::stored(format!("{}{}", self.0, prefix.as_str())))
    }

    fn entry(&self, entry: Entry) -> Entry {
        Entry {
            key: self.back(&entry.key),
            ..entry
        }
    }

    fn txn(&self, txn: Txn) -> Txn {
        let when = txn.when.into_iter().map(|compare| match compare {
            Compare::Absent(key) => Compare::Absent(self.out(&key)),
            Compare::Exists(key) => Compare::Exists(self.out(&key)),
            Compare::At(key, at) => Compare::At(self.out(&key), at),
        });
        let then = txn.then.into_iter().map(|op| match op {
            Op::Put { key, value, lease } => Op::Put {
                key: self.out(&key),
                value,
                lease,
            },
            Op::Delete(key) => Op::Delete(self.out(&key)),
            Op::DeleteAll(prefix) => Op::DeleteAll(self.below(&prefix)),
        });
        Txn {
            when: when.collect(),
            then: then.collect(),
        }
    }
}

/// A part of a store, as if it were all of it.
pub(crate) struct Within {
    inner: Etcd,
    place: Place,
}

impl Store for Within {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        Box::pin(async move {
            let found = self.inner.get(&self.place.out(key)).await?;
            Ok(found.map(|entry| self.place.entry(entry)))
        })
    }

    fn list(&self, query: Query) -> Answer<'_, Page> {
        let query = Query {
            prefix: self.place.below(&query.prefix),
            after: query.after.as_ref().map(|key| self.place.out(key)),
            ..query
        };
        Box::pin(async move {
            let page = self.inner.list(query).await?;
            let entries = page.entries.into_iter().map(|it| self.place.entry(it));
            Ok(Page {
                entries: entries.collect(),
                ..page
            })
        })
    }

    fn commit(&self, txn: Txn) -> Answer<'_, Revision> {
        self.inner.commit(self.place.txn(txn))
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> Changes {
        let place = self.place.clone();
        let changes = self.inner.watch(place.below(&prefix), after);
        let batches = changes.map(move |batch| {
            let batch = batch?;
            let changes = batch.changes.into_iter().map(|change| match change {
                Change::Put(entry) => Change::Put(place.entry(entry)),
                Change::Deleted(key) => Change::Deleted(place.back(&key)),
            });
            Ok(Batch {
                changes: changes.collect(),
                ..batch
            })
        });
        batches.boxed()
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, Granted> {
        self.inner.grant(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, Duration> {
        self.inner.keep_alive(lease)
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        self.inner.revoke(lease)
    }

    fn compact(&self, before: Revision) -> Answer<'_, ()> {
        self.inner.compact(before)
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }
}
