//! Session-durable state: what outlives a placement, written by the holder of the newest lease and
//! nobody else (design §5).

use std::{collections::BTreeMap, fmt, future::Future, pin::Pin, sync::Arc, sync::Mutex};

use rspp_proto::{Epoch, SessionId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Lease, LeaseError, Leases};

/// Counts the writes of one key, from 1.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Version(pub u64);

/// A value as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// JSON text.
    pub value: Arc<str>,
    /// Which write it is.
    pub version: Version,
    /// The epoch that it was written under.
    pub epoch: Epoch,
}

/// A write, and what it depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Unique within the session.
    pub key: String,
    /// JSON text.
    pub value: Arc<str>,
    /// The version that it replaces: `None` writes whatever is there, `Some` of version 0 only what is not.
    pub expected: Option<Version>,
}

/// Why a store did not do it. Nothing was written then.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// The writer is not the session's one writer.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// Somebody else wrote first.
    #[error("`{key}` is at version {}, not {}", found.0, expected.0)]
    Conflict {
        /// The key.
        key: String,
        /// What was expected.
        expected: Version,
        /// What is there; version 0 if nothing is.
        found: Version,
    },
    /// The store does not answer.
    #[error("the state store does not answer: {0}")]
    Unavailable(String),
}

/// What a store answers, some time.
pub type StoreFuture<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// Keeps session-durable state. A write is one transaction with the check of its lease: a stale writer
/// is refused by the store, not by good manners.
pub trait StateStore: Send + Sync + 'static {
    /// The newest value of a key; `None` if there is none.
    fn read(&self, session: &SessionId, key: &str) -> StoreFuture<Option<Stored>>;

    /// Writes, if `lease` is the session's newest and nothing came in between.
    fn write(&self, lease: &Lease, write: Write) -> StoreFuture<Version>;

    /// Forgets a session that is over for good, if `lease` is its newest; `why` it is over is all that may be
    /// kept.
    fn close(&self, lease: &Lease, why: &str) -> StoreFuture<()>;

    /// Bytes kept of a session.
    fn bytes(&self, session: &SessionId) -> StoreFuture<usize>;
}

/// The store of a process that stands alone: gone with the process.
pub struct MemoryStore {
    leases: Arc<dyn Leases>,
    sessions: Mutex<BTreeMap<SessionId, BTreeMap<String, Stored>>>,
}

impl MemoryStore {
    /// An empty store that asks `leases` who may write.
    pub fn new(leases: Arc<dyn Leases>) -> Self {
        Self {
            leases,
            sessions: Mutex::default(),
        }
    }

    fn close_now(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut sessions = self.sessions.lock().expect("no code panics while locked");
        self.leases.check(lease)?;
        sessions.remove(&lease.session);
        Ok(())
    }

    fn write_now(&self, lease: &Lease, write: Write) -> Result<Version, StoreError> {
        let mut sessions = self.sessions.lock().expect("no code panics while locked");
        // Under the lock: no newer lease's write can come between check and write.
        self.leases.check(lease)?;
        let values = sessions.entry(lease.session.clone()).or_default();
        let found = values.get(&write.key).map_or(Version(0), |it| it.version);
        if let Some(expected) = write.expected.filter(|expected| *expected != found) {
            let key = write.key;
            return Err(StoreError::Conflict {
                key,
                expected,
                found,
            });
        }
        let version = Version(found.0 + 1);
        let stored = Stored {
            value: write.value,
            version,
            epoch: lease.epoch,
        };
        values.insert(write.key, stored);
        Ok(version)
    }
}

impl StateStore for MemoryStore {
    fn read(&self, session: &SessionId, key: &str) -> StoreFuture<Option<Stored>> {
        let sessions = self.sessions.lock().expect("no code panics while locked");
        let found = sessions.get(session).and_then(|values| values.get(key));
        let found = found.cloned();
        Box::pin(async move { Ok(found) })
    }

    fn write(&self, lease: &Lease, write: Write) -> StoreFuture<Version> {
        let written = self.write_now(lease, write);
        Box::pin(async move { written })
    }

    fn close(&self, lease: &Lease, _why: &str) -> StoreFuture<()> {
        let closed = self.close_now(lease);
        Box::pin(async move { closed })
    }

    fn bytes(&self, session: &SessionId) -> StoreFuture<usize> {
        let sessions = self.sessions.lock().expect("no code panics while locked");
        let values = sessions.get(session).into_iter().flatten();
        let bytes = values
            .map(|(key, stored)| key.len() + stored.value.len())
            .sum();
        Box::pin(async move { Ok(bytes) })
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sessions = self.sessions.lock().expect("no code panics while locked");
        f.debug_struct("MemoryStore")
            .field("sessions", &sessions.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LocalLeases;

    /// F-155, F-156: the store itself refuses a writer that was replaced.
    #[test]
    fn only_the_newest_lease_writes() {
        let leases = Arc::new(LocalLeases::default());
        let store = MemoryStore::new(Arc::<LocalLeases>::clone(&leases));
        let session = SessionId::new("s").unwrap();
        let write = |value: &str, expected| Write {
            key: "k".to_owned(),
            value: value.into(),
            expected,
        };
        let old = leases.acquire(&session).unwrap();
        assert_eq!(store.write_now(&old, write("1", None)), Ok(Version(1)));
        let new = leases.acquire(&session).unwrap();
        let refused = store.write_now(&old, write("2", None)).unwrap_err();
        assert!(matches!(
            refused,
            StoreError::Lease(LeaseError::Stale { .. })
        ));
        assert_eq!(
            store.write_now(&new, write("3", Some(Version(0)))),
            Err(StoreError::Conflict {
                key: "k".to_owned(),
                expected: Version(0),
                found: Version(1),
            })
        );
        let version = store.write_now(&new, write("3", Some(Version(1))));
        assert_eq!(version, Ok(Version(2)));
        let sessions = store.sessions.lock().unwrap();
        let stored = &sessions[&session]["k"];
        assert_eq!((&*stored.value, stored.epoch), ("3", new.epoch));
    }
}
