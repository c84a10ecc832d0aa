//! A part of the store, decoded and kept at hand by a task of its own.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, RwLock, RwLockReadGuard},
    time::Duration,
};

use rspp_controlplane::store::{Change, Entry, Key, Mirror, News, Prefix, Store, StoreError};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long to wait before a store that did not answer is asked again.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How a record is read; `None` for one that makes no sense, which is told and left out.
pub(crate) type Decode<T> = fn(&Entry) -> Option<T>;

/// A record that makes no sense is told of, for people to look at.
fn read<T>(entry: &Entry, decode: Decode<T>) -> Option<T> {
    let record = decode(entry);
    if record.is_none() {
        tracing::warn!(key = %entry.key, "a record makes no sense");
    }
    record
}

/// Records as they were lately.
pub(crate) struct Followed<T> {
    records: RwLock<BTreeMap<Key, T>>,
    stale_since: Mutex<Option<Instant>>,
    revision: watch::Sender<u64>,
}

impl<T: Send + Sync + 'static> Followed<T> {
    /// Lists what is there, and follows it in a task until `stop`.
    pub(crate) async fn open(
        store: &Arc<dyn Store>,
        prefix: Prefix,
        decode: Decode<T>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, StoreError> {
        let mirror = Mirror::open(Arc::clone(store), prefix).await?;
        let records = mirror.records().values();
        let records = records.filter_map(|entry| Some((entry.key.clone(), read(entry, decode)?)));
        let this = Arc::new(Self {
            records: RwLock::new(records.collect()),
            stale_since: Mutex::default(),
            revision: watch::Sender::new(mirror.revision().0),
        });
        let follow = Arc::clone(&this).follow(mirror, decode);
        tasks.spawn(async move {
            stop.run_until_cancelled(follow).await;
        });
        Ok(this)
    }

    async fn follow(self: Arc<Self>, mut mirror: Mirror, decode: Decode<T>) {
        loop {
            match mirror.next().await {
                News::Changed(batch) | News::CaughtUp(batch) => {
                    let mut records = self.records.write().expect("no code panics while locked");
                    for change in &batch.changes {
                        match change {
                            Change::Put(entry) => {
                                match read(entry, decode) {
                                    Some(record) => records.insert(entry.key.clone(), record),
                                    None => records.remove(&entry.key),
                                };
                            }
                            Change::Deleted(key) => {
                                records.remove(key);
                            }
                        }
                    }
                    drop(records);
                    *self.stale() = None;
                    self.revision.send_replace(batch.revision.0);
                }
                News::Stale(reason) => {
                    let since = *self.stale().get_or_insert_with(Instant::now);
                    if since.elapsed() < AGAIN_AFTER {
                        tracing::warn!(%reason, "the store does not answer");
                    }
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        }
    }

    fn stale(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.stale_since
            .lock()
            .expect("no code panics while locked")
    }

    /// The records. Not to be held over an await.
    pub(crate) fn records(&self) -> RwLockReadGuard<'_, BTreeMap<Key, T>> {
        self.records.read().expect("no code panics while locked")
    }

    /// How long ago the store was last heard to be so.
    pub(crate) fn age(&self) -> Duration {
        self.stale().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The newest change among them.
    pub(crate) fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Tells of changes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}

impl<T: Clone> Followed<T> {
    /// One record.
    pub(crate) fn get(&self, key: &Key) -> Option<T> {
        let records = self.records.read().expect("no code panics while locked");
        records.get(key).cloned()
    }
}
