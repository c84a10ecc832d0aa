//! What a control plane keeps its records in: an ordered map with revisions, transactions, watches and
//! leases (design §6).
//!
//! Every change has a [`Revision`], one after the other, for the whole store. A transaction compares
//! revisions and writes all or nothing. A lease deletes what hangs on it when its time is up *by the
//! store's own clock*, so nothing here ever compares wall clocks. All implementations pass one suite
//! (`rspp-controlplane-storage`).

mod mirror;
mod record;

use std::{fmt, num::NonZeroU64, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use mirror::{Listing, Mirror, News, list_all};
pub use record::{bytes, json, parse};

/// Longest key, in bytes: three escaped ids and their place.
pub const MAX_KEY_BYTES: usize = 2_560;
/// Largest value, in bytes. A request of several has to fit into what etcd takes at once, 1.5 MiB.
pub const MAX_VALUE_BYTES: usize = 512 * 1024;
/// Largest sum of keys and values of one transaction, in bytes.
pub const MAX_TXN_BYTES: usize = 1024 * 1024;
/// Most comparisons, and most writes, of one transaction; etcd takes 128.
pub const MAX_TXN_OPS: usize = 100;
/// Most entries of one page.
pub const MAX_PAGE: usize = 1_000;
/// Most bytes of one page's values, but for a single entry.
pub const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;
/// Shortest lease that every store keeps exactly: etcd counts whole seconds, and not fewer than its
/// members need to elect a leader.
pub const MIN_LEASE: Duration = Duration::from_secs(2);

/// Where a record lies: segments between slashes, each escaped, so that no id can reach out of its place.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(Arc<str>);

impl Key {
    /// The key of a path of segments. A key of one path is never the beginning of that of another
    /// unless its path is.
    pub fn of<'a>(segments: impl IntoIterator<Item = &'a str>) -> Self {
        let mut text = String::new();
        for segment in segments {
            text.push('/');
            escape(segment, &mut text);
        }
        Self(text.into())
    }

    /// Wraps a key as a store holds it.
    pub fn stored(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// All keys below this one.
    pub fn below(&self) -> Prefix {
        Prefix(format!("{}/", self.0).into())
    }

    /// The last segment, as it was given.
    pub fn last(&self) -> String {
        unescape(self.0.rsplit('/').next().unwrap_or_default())
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Lets through what every tool shows as it is; all else becomes `%` and two hex digits.
fn escape(segment: &str, text: &mut String) {
    use fmt::Write as _;
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte) {
            text.push(byte as char);
        } else {
            write!(text, "%{byte:02X}").expect("writing to a string cannot fail");
        }
    }
}

fn unescape(segment: &str) -> String {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = (byte == b'%').then(|| after.get(..2)).flatten();
        let decoded =
            hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        if let Some(decoded) = decoded {
            bytes.push(decoded);
            rest = &after[2..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The beginning that keys have in common.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(Arc<str>);

impl Prefix {
    /// Every key there is.
    pub fn all() -> Self {
        Self("/".into())
    }

    /// A record itself, and whatever has a key that begins like it.
    pub fn of(key: &Key) -> Self {
        Self(Arc::clone(&key.0))
    }

    /// The beginning itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a key begins with it.
    pub fn holds(&self, key: &Key) -> bool {
        key.0.starts_with(&*self.0)
    }
}

/// Counts all changes of a store; rises by one with each transaction that wrote something.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// A lease of a store; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub NonZeroU64);

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub key: Key,
    /// What.
    pub value: Bytes,
    /// The change that made it.
    pub created: Revision,
    /// The change that last wrote it.
    pub modified: Revision,
    /// The lease that it hangs on.
    pub lease: Option<LeaseId>,
}

/// What has to be so for a transaction to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// There is no such record.
    Absent(Key),
    /// There is one, whatever it says.
    Exists(Key),
    /// It was last written by this very change.
    At(Key, Revision),
}

impl Compare {
    /// Holds as long as nothing came in between: the revision that was read, or still nothing there.
    pub fn unchanged(key: &Key, read: Option<&Entry>) -> Self {
        match read {
            Some(entry) => Self::At(key.clone(), entry.modified),
            None => Self::Absent(key.clone()),
        }
    }

    /// The record that it is about.
    pub fn key(&self) -> &Key {
        match self {
            Self::Absent(key) | Self::Exists(key) | Self::At(key, _) => key,
        }
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Puts a record, in place of what was there.
    Put {
        /// Where.
        key: Key,
        /// What.
        value: Bytes,
        /// Deleted together with this lease.
        lease: Option<LeaseId>,
    },
    /// Deletes a record; nothing happens if there is none.
    Delete(Key),
    /// Deletes all records that begin so.
    DeleteAll(Prefix),
}

/// All or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// What has to be so.
    pub when: Vec<Compare>,
    /// What is written then. No key may be written twice.
    pub then: Vec<Op>,
}

impl Txn {
    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.when.push(compare);
        self
    }

    /// Adds a write of a record.
    #[must_use]
    pub fn put(mut self, key: Key, value: impl Into<Bytes>) -> Self {
        self.then.push(Op::Put {
            key,
            value: value.into(),
            lease: None,
        });
        self
    }

    /// Adds a write of a record that goes with a lease.
    #[must_use]
    pub fn put_leased(mut self, key: Key, value: impl Into<Bytes>, lease: LeaseId) -> Self {
        self.then.push(Op::Put {
            key,
            value: value.into(),
            lease: Some(lease),
        });
        self
    }

    /// Adds a deletion.
    #[must_use]
    pub fn delete(mut self, key: Key) -> Self {
        self.then.push(Op::Delete(key));
        self
    }

    /// Refuses what not every store would take. Every implementation asks this first.
    pub fn validate(&self) -> Result<(), StoreError> {
        if self.when.len() > MAX_TXN_OPS || self.then.len() > MAX_TXN_OPS {
            return Err(StoreError::TooManyOps {
                found: self.when.len().max(self.then.len()),
            });
        }
        let mut written = std::collections::BTreeSet::new();
        let mut bytes = 0;
        for key in self.when.iter().map(Compare::key) {
            check_key(key)?;
        }
        for op in &self.then {
            match op {
                Op::Put { key, value, .. } => {
                    check_key(key)?;
                    if value.len() > MAX_VALUE_BYTES {
                        return Err(StoreError::TooLarge {
                            what: "value",
                            bytes: value.len(),
                            limit: MAX_VALUE_BYTES,
                        });
                    }
                    bytes += key.0.len() + value.len();
                    if !written.insert(key.clone()) {
                        return Err(StoreError::WrittenTwice { key: key.clone() });
                    }
                }
                Op::Delete(key) => {
                    check_key(key)?;
                    if !written.insert(key.clone()) {
                        return Err(StoreError::WrittenTwice { key: key.clone() });
                    }
                }
                Op::DeleteAll(_) => {}
            }
        }
        for op in &self.then {
            if let Op::DeleteAll(prefix) = op
                && let Some(key) = written.iter().find(|key| prefix.holds(key))
            {
                return Err(StoreError::WrittenTwice { key: key.clone() });
            }
        }
        if bytes > MAX_TXN_BYTES {
            return Err(StoreError::TooLarge {
                what: "transaction",
                bytes,
                limit: MAX_TXN_BYTES,
            });
        }
        Ok(())
    }
}

fn check_key(key: &Key) -> Result<(), StoreError> {
    if key.0.len() > MAX_KEY_BYTES {
        return Err(StoreError::TooLarge {
            what: "key",
            bytes: key.0.len(),
            limit: MAX_KEY_BYTES,
        });
    }
    Ok(())
}

/// A part of the store, page by page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// What keys begin with.
    pub prefix: Prefix,
    /// Only keys after this one: the last of the page before.
    pub after: Option<Key>,
    /// Most entries; at most [`MAX_PAGE`]. Fewer come where they would be more than [`MAX_PAGE_BYTES`].
    pub limit: usize,
    /// As things stood then; `None`: now. The pages of one listing ask for the first one's revision.
    pub at: Option<Revision>,
}

impl Query {
    /// The first page of what begins so.
    pub fn first(prefix: Prefix) -> Self {
        Self {
            prefix,
            after: None,
            limit: MAX_PAGE,
            at: None,
        }
    }
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// By key.
    pub entries: Vec<Entry>,
    /// Whether more follows.
    pub more: bool,
    /// What it shows the state of.
    pub revision: Revision,
}

/// One record changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was written.
    Put(Entry),
    /// It is gone: deleted, or its lease ended.
    Deleted(Key),
}

impl Change {
    /// The record.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Deleted(key) => key,
        }
    }
}

/// What one revision changed, of that which is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The revision.
    pub revision: Revision,
    /// Its changes.
    pub changes: Vec<Change>,
}

/// Why a watch ended. It can be begun again after the last batch that came.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WatchError {
    /// What happened between is forgotten: list again, then watch from the list's revision.
    #[error("changes before revision {} are forgotten", oldest.0)]
    Compacted {
        /// From here on is all there.
        oldest: Revision,
    },
    /// The watcher was too slow for what is kept for it.
    #[error("the watcher fell behind")]
    Lagged,
    /// The store does not answer.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
}

/// A lease as it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The lease.
    pub id: LeaseId,
    /// How long it lasts from when the store granted it; never shorter than asked for.
    pub ttl: Duration,
}

/// Why a store did not do it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// A condition of the transaction does not hold; nothing was written.
    #[error("somebody else wrote first")]
    Conflict,
    /// The revision that was asked for is forgotten.
    #[error("what was before revision {} is forgotten", oldest.0)]
    Compacted {
        /// From here on can be read.
        oldest: Revision,
    },
    /// The revision that was asked for is not there yet.
    #[error("revision {} is yet to come", asked.0)]
    Future {
        /// What was asked for.
        asked: Revision,
    },
    /// Nothing of that size is stored.
    #[error("the {what} has {bytes} bytes; at most {limit} are stored")]
    TooLarge {
        /// `key`, `value` or `transaction`.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// What is taken.
        limit: usize,
    },
    /// A transaction of that many parts is not taken.
    #[error("a transaction has {found} parts; at most {MAX_TXN_OPS} are taken")]
    TooManyOps {
        /// How many.
        found: usize,
    },
    /// A transaction writes a record once.
    #[error("`{key}` is written twice in one transaction")]
    WrittenTwice {
        /// The record.
        key: Key,
    },
    /// The lease has ended, or never was.
    #[error("the store's lease {} has ended", lease.0)]
    LeaseGone {
        /// The lease.
        lease: LeaseId,
    },
    /// The store could not be asked; nothing was written.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// The store was asked and did not answer: it may have been done or not. Read before you do it again.
    #[error("the store did not say what became of it: {0}")]
    Uncertain(String),
    /// The store's file or answer is not what it should be.
    #[error("the store is damaged: {0}")]
    Corrupt(String),
}

impl StoreError {
    /// Whether the same may work soon. What is uncertain has to be read first.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Conflict | Self::Unavailable(_) | Self::Uncertain(_) => true,
            Self::Compacted { .. }
            | Self::Future { .. }
            | Self::TooLarge { .. }
            | Self::TooManyOps { .. }
            | Self::WrittenTwice { .. }
            | Self::LeaseGone { .. }
            | Self::Corrupt(_) => false,
        }
    }
}

/// What a store answers, some time.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;
/// Batches in the order of their revisions, until an error ends it.
pub type Changes = BoxStream<'static, Result<Batch, WatchError>>;

/// Keeps records. All reads and writes are linearizable: what was answered is seen by whoever asks next.
pub trait Store: Send + Sync + 'static {
    /// One record.
    fn get<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Entry>>;

    /// A page of records, by key.
    fn list(&self, query: Query) -> Answer<'_, Page>;

    /// Compares and writes as one, and says at which revision. Writes nothing on any error but
    /// [`StoreError::Uncertain`].
    fn commit(&self, txn: Txn) -> Answer<'_, Revision>;

    /// All changes of what begins so, after a revision.
    fn watch(&self, prefix: Prefix, after: Revision) -> Changes;

    /// Begins a lease; at least [`MIN_LEASE`].
    fn grant(&self, ttl: Duration) -> Answer<'_, Granted>;

    /// Begins the lease's time again, and says how long it is.
    fn keep_alive(&self, lease: LeaseId) -> Answer<'_, Duration>;

    /// Ends a lease and deletes what hangs on it.
    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()>;

    /// Forgets how things stood before a revision.
    fn compact(&self, before: Revision) -> Answer<'_, ()>;

    /// Its name, for people: `embedded`, `etcd`.
    fn name(&self) -> &'static str;
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}*\"", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_id_reaches_out_of_its_place() {
        let key = Key::of(["sessions", "a/../b", "%2F é"]);
        assert_eq!(key.as_str(), "/sessions/a%2F..%2Fb/%252F%20%C3%A9");
        assert_eq!(key.last(), "%2F é");
        assert!(
            !Key::of(["sessions"])
                .below()
                .holds(&Key::of(["sessions-2", "a"]))
        );
        assert!(Key::of(["sessions"]).below().holds(&key));
    }

    #[test]
    fn a_transaction_that_not_every_store_takes_is_refused_by_all() {
        let key = |n: usize| Key::of([n.to_string().as_str()]);
        let twice = Txn::default().put(key(1), "a").delete(key(1));
        assert_eq!(
            twice.validate(),
            Err(StoreError::WrittenTwice { key: key(1) })
        );
        let mut below = Txn::default().put(Key::of(["a", "b"]), "x");
        below.then.push(Op::DeleteAll(Key::of(["a"]).below()));
        assert!(matches!(
            below.validate(),
            Err(StoreError::WrittenTwice { .. })
        ));
        let many = (0..=MAX_TXN_OPS).fold(Txn::default(), |txn, n| txn.put(key(n), "a"));
        assert_eq!(many.validate(), Err(StoreError::TooManyOps { found: 101 }));
        let large = Txn::default().put(key(1), vec![0; MAX_VALUE_BYTES + 1]);
        assert!(matches!(
            large.validate(),
            Err(StoreError::TooLarge { what: "value", .. })
        ));
        let sum = (0..3).fold(Txn::default(), |txn, n| {
            txn.put(key(n), vec![0; MAX_VALUE_BYTES])
        });
        assert!(matches!(
            sum.validate(),
            Err(StoreError::TooLarge {
                what: "transaction",
                ..
            })
        ));
        let long = Txn::default().when(Compare::Absent(Key::stored("k".repeat(MAX_KEY_BYTES + 1))));
        assert!(matches!(
            long.validate(),
            Err(StoreError::TooLarge { what: "key", .. })
        ));
    }

    proptest! {
        /// Whatever an id says, it comes back as it was, in a key that no other path has.
        #[test]
        fn segments_survive_their_escaping(a in "\\PC{1,20}", b in "\\PC{1,20}", c in "\\PC{1,20}") {
            let key = Key::of([a.as_str(), b.as_str()]);
            prop_assert_eq!(key.last(), b.clone());
            prop_assert_eq!(key.as_str().matches('/').count(), 2);
            prop_assert_eq!(key == Key::of([a.as_str(), c.as_str()]), b == c);
            prop_assert!(Key::of([a.as_str()]).below().holds(&key));
        }
    }
}
