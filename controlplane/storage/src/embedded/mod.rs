//! One file with transactions, for a control plane of one process.
//!
//! A thread of its own writes. It takes what has come meanwhile, applies it one after the other in one
//! transaction of the file, syncs that once and then answers everybody: many writers share one sync,
//! and nobody is answered before it is on the disk. Readers take a snapshot and never wait for it.
//! Leases count this process's monotonic time; after a restart each begins anew in full, as etcd's do
//! when the leader changes: too long is safe, too short is not.

mod tables;
mod watch;
mod writer;

use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    path::Path,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use redb::backends::FileBackend;
use rspp_controlplane::store::{
    Answer, Changes, Entry, Granted, Key, LeaseId, MAX_PAGE, MIN_LEASE, Page, Prefix, Query,
    Revision, Store, StoreError, Txn,
};
use thiserror::Error;
use tokio::sync::{Semaphore, oneshot};

use self::{
    tables::{Snapshot, damaged},
    watch::Watchers,
    writer::{Request, Writer},
};

/// Requests that may wait for the writer; more wait for room, without a place in its queue.
const MAX_WAITING: usize = 1_024;

/// Why a file cannot be used.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process uses it, or it is no store.
    #[error("cannot open {path}: {reason}")]
    Open {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// It was written by a build that keeps records otherwise.
    #[error("{path} holds format {found}, this build reads {expected}")]
    Format {
        /// The file.
        path: String,
        /// What it is.
        found: u64,
        /// What it should be.
        expected: u64,
    },
}

/// Opens or begins a file that nobody else on the machine reads.
fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// A store in one file.
pub struct Embedded {
    database: Arc<redb::Database>,
    watchers: Arc<Watchers>,
    queue: Option<mpsc::Sender<Request>>,
    room: Arc<Semaphore>,
    writer: Option<JoinHandle<()>>,
}

impl Embedded {
    /// Opens a file, or begins one.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |error: &dyn fmt::Display| OpenError::Open {
            path: path.display().to_string(),
            reason: error.to_string(),
        };
        // Sessions' state is in it, and with it what people said.
        let file = private(path).map_err(|error| failed(&error))?;
        let backend = FileBackend::new(file).map_err(|error| failed(&error))?;
        let database = redb::Builder::new()
            .create_with_backend(backend)
            .map_err(|error| failed(&error))?;
        let database = Arc::new(database);
        let format = tables::prepare(&database).map_err(|error| failed(&error))?;
        if format != tables::FORMAT {
            return Err(OpenError::Format {
                path: path.display().to_string(),
                found: format,
                expected: tables::FORMAT,
            });
        }
        let watchers = Arc::new(Watchers::default());
        let (queue, requests) = mpsc::channel();
        let writer = Writer::new(Arc::clone(&database), Arc::clone(&watchers))
            .map_err(|error| failed(&error))?;
        let thread = std::thread::Builder::new()
            .name("rspp-store".to_owned())
            .spawn(move || writer.run(&requests))
            .map_err(|error| failed(&error))?;
        Ok(Self {
            database,
            watchers,
            queue: Some(queue),
            room: Arc::new(Semaphore::new(MAX_WAITING)),
            writer: Some(thread),
        })
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let stopped = || StoreError::Unavailable("the store has stopped".to_owned());
        let permit = self.room.acquire().await.map_err(|_| stopped())?;
        let (reply, answer) = oneshot::channel();
        let queue = self
            .queue
            .as_ref()
            .expect("it is taken only when the store is dropped");
        queue.send(request(reply)).map_err(|_| stopped())?;
        let answer = answer.await;
        drop(permit);
        answer.unwrap_or_else(|_| {
            Err(StoreError::Uncertain(
                "the store stopped before it answered".to_owned(),
            ))
        })
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Snapshot) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = Arc::clone(&self.database);
        let task = tokio::task::spawn_blocking(move || read(&Snapshot::take(&database)?));
        task.await
            .unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
    }
}

impl Store for Embedded {
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>> {
        let key = key.clone();
        Box::pin(self.read(move |snapshot| snapshot.get(&key)))
    }

    fn list(&self, query: Query) -> Answer<'_, Page> {
        let query = Query {
            limit: query.limit.clamp(1, MAX_PAGE),
            ..query
        };
        Box::pin(self.read(move |snapshot| snapshot.list(&query)))
    }

    fn commit(&self, txn: Txn) -> Answer<'_, Revision> {
        Box::pin(async move {
            txn.validate()?;
            self.ask(|reply| Request::Commit { txn, reply }).await
        })
    }

    fn watch(&self, prefix: Prefix, after: Revision) -> Changes {
        self.watchers
            .follow(Arc::clone(&self.database), prefix, after)
    }

    fn grant(&self, ttl: Duration) -> Answer<'_, Granted> {
        let ttl = ttl.max(MIN_LEASE);
        Box::pin(self.ask(move |reply| Request::Grant { ttl, reply }))
    }

    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, Duration> {
        Box::pin(self.ask(move |reply| Request::KeepAlive { lease, reply }))
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        Box::pin(self.ask(move |reply| Request::Revoke { lease, reply }))
    }

    fn compact(&self, before: Revision) -> Answer<'_, ()> {
        Box::pin(self.ask(move |reply| Request::Compact { before, reply }))
    }

    fn name(&self) -> &'static str {
        "embedded"
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // The writer ends when nobody can ask it any more; the file is closed behind it.
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer had panicked");
        }
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").finish_non_exhaustive()
    }
}

/// Says what is wrong with the file.
fn corrupt(error: impl Into<redb::Error>) -> StoreError {
    damaged(&error.into())
}
