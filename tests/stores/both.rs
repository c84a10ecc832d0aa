//! The same test on a file and on etcd, and a store that can be cut off.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures::StreamExt as _;
use rspp_controlplane::store::{
    Answer, Changes, Entry, Granted, Key, LeaseId, Page, Prefix, Query, Revision, Store,
    StoreError, Txn, WatchError,
};
use rspp_controlplane_storage::Embedded;
use rspp_proto::WallClock;
use rspp_tests::etcd::Cluster;
use tempfile::TempDir;

/// A place for records.
pub(crate) enum Stage {
    File {
        dir: TempDir,
        store: Option<Arc<dyn Store>>,
    },
    Etcd(Cluster),
}

impl Stage {
    pub(crate) fn file() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Embedded::open(&dir.path().join("store")).unwrap());
        Self::File {
            dir,
            store: Some(store),
        }
    }

    pub(crate) async fn etcd() -> Self {
        Self::Etcd(Cluster::start(1).await)
    }

    /// The store as another replica has it: of etcd a client of its own.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::File { store, .. } => Arc::clone(store.as_ref().unwrap()),
            Self::Etcd(cluster) => Arc::new(cluster.store()),
        }
    }

    /// What keeps the records dies and comes back. Nobody may hold a store of it meanwhile.
    pub(crate) async fn restart(&mut self) {
        match self {
            Self::File { dir, store } => {
                *store = None;
                *store = Some(Arc::new(Embedded::open(&dir.path().join("store")).unwrap()));
            }
            Self::Etcd(cluster) => {
                cluster.kill(0);
                cluster.restart(0).await;
            }
        }
    }

    /// Everything is lost, and an empty one is set up in its place.
    pub(crate) async fn lose(self) -> Self {
        match self {
            Self::File { dir, store } => {
                drop(store);
                drop(dir);
                Self::file()
            }
            Self::Etcd(cluster) => {
                drop(cluster);
                Self::etcd().await
            }
        }
    }
}

/// Runs a test on both.
pub(crate) async fn on_both(test: impl AsyncFn(Stage)) {
    println!("on a file");
    test(Stage::file()).await;
    println!("on etcd");
    test(Stage::etcd().await).await;
}

pub(crate) fn wall_clock() -> WallClock {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    WallClock(since.unwrap().as_millis() as u64)
}

/// A store that a replica can be cut off from.
pub(crate) struct Severable {
    inner: Arc<dyn Store>,
    is_cut: AtomicBool,
}

impl Severable {
    pub(crate) fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        let is_cut = false.into();
        Arc::new(Self { inner, is_cut })
    }

    pub(crate) fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::SeqCst);
    }

    fn reach<'a, T: Send + 'static>(&'a self, answer: Answer<'a, T>) -> Answer<'a, T> {
        let away = || StoreError::Unavailable("cut off".to_owned());
        Box::pin(async move {
            if self.is_cut.load(Ordering::SeqCst) {
                return Err(away());
            }
            answer.await
        })
    }
}

impl Store for Severable {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        self.reach(self.inner.get(key))
    }

    fn list(&self, query: Query) -> Answer<'_, Page> {
        self.reach(self.inner.list(query))
    }

    fn commit(&self, txn: Txn) -> Answer<'_, Revision> {
        self.reach(self.inner.commit(txn))
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> Changes {
        if self.is_cut.load(Ordering::SeqCst) {
            let error = WatchError::Unavailable("cut off".to_owned());
            return futures::stream::once(async { Err(error) }).boxed();
        }
        self.inner.watch(prefix, after)
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, Granted> {
        self.reach(self.inner.grant(ttl))
    }

    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, Duration> {
        self.reach(self.inner.keep_alive(lease))
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        self.reach(self.inner.revoke(lease))
    }

    fn compact(&self, before: Revision) -> Answer<'_, ()> {
        self.reach(self.inner.compact(before))
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }
}
