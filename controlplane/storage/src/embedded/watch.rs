//! Whoever follows changes: first what is in the file, then what the writer tells.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{StreamExt as _, stream};
use redb::Database;
use rspp_controlplane::store::{Batch, Changes, Prefix, Revision, StoreError, WatchError};
use tokio::sync::mpsc;

use super::tables::Snapshot;

/// Batches that may wait for one watcher; one that falls further behind is told so, and begins again
/// from the file.
const MAX_BEHIND: usize = 1_024;
/// Revisions that are read from the file at once.
const CHUNK: u64 = 500;

struct Watcher {
    prefix: Prefix,
    batches: mpsc::Sender<Batch>,
    lagged: Arc<AtomicBool>,
}

#[derive(Default)]
pub(super) struct Watchers(Mutex<Vec<Watcher>>);

impl Watchers {
    /// Tells everybody who follows. Never waits: whoever is too slow is left behind.
    pub(super) fn publish(&self, batches: &[Batch]) {
        if batches.is_empty() {
            return;
        }
        let mut watchers = self.0.lock().expect("no code panics while locked");
        watchers.retain(|watcher| {
            for batch in batches {
                let of_it = |change: &&_| {
                    watcher
                        .prefix
                        .holds(rspp_controlplane::store::Change::key(change))
                };
                let changes: Vec<_> = batch.changes.iter().filter(of_it).cloned().collect();
                if changes.is_empty() {
                    continue;
                }
                let batch = Batch {
                    revision: batch.revision,
                    changes,
                };
                match watcher.batches.try_send(batch) {
                    Ok(()) => {}
                    Err(mpsc::error::TrySendError::Full(_)) => {
                        watcher.lagged.store(true, Ordering::Release);
                        return false;
                    }
                    Err(mpsc::error::TrySendError::Closed(_)) => return false,
                }
            }
            !watcher.batches.is_closed()
        });
    }

    pub(super) fn follow(
        &self,
        database: Arc<Database>,
        prefix: Prefix,
        after: Revision,
    ) -> Changes {
        let (batches, live) = mpsc::channel(MAX_BEHIND);
        let lagged = Arc::new(AtomicBool::new(false));
        let watcher = Watcher {
            prefix: prefix.clone(),
            batches,
            lagged: Arc::clone(&lagged),
        };
        // Before the file is read: what is written in between comes twice, and is told once.
        let mut watchers = self.0.lock().expect("no code panics while locked");
        watchers.retain(|watcher| !watcher.batches.is_closed());
        watchers.push(watcher);
        drop(watchers);
        let follower = Follower {
            database,
            prefix,
            told: after,
            stored: VecDeque::new(),
            from_file: true,
            live,
            lagged,
        };
        stream::unfold(Some(follower), |follower| async move {
            let mut follower = follower?;
            match follower.next().await {
                Ok(batch) => Some((Ok(batch), Some(follower))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }
}

struct Follower {
    database: Arc<Database>,
    prefix: Prefix,
    /// All up to this was told, or was none of ours.
    told: Revision,
    stored: VecDeque<Batch>,
    from_file: bool,
    live: mpsc::Receiver<Batch>,
    lagged: Arc<AtomicBool>,
}

impl Follower {
    async fn next(&mut self) -> Result<Batch, WatchError> {
        loop {
            if let Some(batch) = self.stored.pop_front() {
                return Ok(batch);
            }
            if self.from_file {
                self.read().await?;
                continue;
            }
            match self.live.recv().await {
                Some(batch) if batch.revision > self.told => {
                    self.told = batch.revision;
                    return Ok(batch);
                }
                Some(_) => {}
                None if self.lagged.load(Ordering::Acquire) => return Err(WatchError::Lagged),
                None => return Err(WatchError::Unavailable("the store has stopped".to_owned())),
            }
        }
    }

    async fn read(&mut self) -> Result<(), WatchError> {
        let (database, prefix, told) = (Arc::clone(&self.database), self.prefix.clone(), self.told);
        let read = tokio::task::spawn_blocking(move || {
            let snapshot = Snapshot::take(&database)?;
            if told < snapshot.oldest {
                let oldest = snapshot.oldest;
                return Err(StoreError::Compacted { oldest });
            }
            let (found, last) = snapshot.changes(&prefix, told, CHUNK)?;
            Ok((found, last, last >= snapshot.revision))
        });
        let read = read
            .await
            .map_err(|error| WatchError::Unavailable(error.to_string()))?;
        let (found, last, all) = read.map_err(|error| match error {
            StoreError::Compacted { oldest } => WatchError::Compacted { oldest },
            error => WatchError::Unavailable(error.to_string()),
        })?;
        let batches = found
            .into_iter()
            .map(|(revision, changes)| Batch { revision, changes });
        self.stored.extend(batches);
        self.told = self.told.max(last);
        self.from_file = !all;
        Ok(())
    }
}
