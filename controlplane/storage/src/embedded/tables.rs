//! How records lie in the file: as they are, as they were, and what each revision changed.

use bytes::Bytes;
use redb::{
    Database, MultimapTable, MultimapTableDefinition, ReadOnlyTable, ReadableDatabase as _,
    ReadableTable as _, Table, TableDefinition, WriteTransaction,
};
use rspp_controlplane::store::{
    Change, Entry, Key, LeaseId, MAX_PAGE_BYTES, Page, Prefix, Query, Revision, StoreError,
};

use super::corrupt;

/// What one revision changed.
pub(super) type Changed = (Revision, Vec<Change>);
/// A record, and what it is to be and which lease it hangs on; or nothing.
pub(super) type Write = (Key, Option<(Bytes, Option<LeaseId>)>);

/// What this build writes.
pub(super) const FORMAT: u64 = 1;

/// Key to record, as of now.
const RECORDS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("records");
/// Key and revision to record, or to nothing if it was deleted then.
const VERSIONS: TableDefinition<'static, (&str, u64), &[u8]> = TableDefinition::new("versions");
/// Revision and a number to the key that it changed.
const CHANGES: TableDefinition<'static, (u64, u32), &str> = TableDefinition::new("changes");
/// Lease to its length in milliseconds.
const LEASES: TableDefinition<'static, u64, u64> = TableDefinition::new("leases");
/// Lease to the keys that hang on it.
const HANGING: MultimapTableDefinition<'static, u64, &str> =
    MultimapTableDefinition::new("hanging");
const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");

const META_FORMAT: &str = "format";
const META_REVISION: &str = "revision";
/// Nothing before this revision can be read.
const META_OLDEST: &str = "oldest";
const META_LEASE: &str = "lease";

/// Created, modified, lease: 8 bytes each, before the value.
const HEADER: usize = 24;

pub(super) fn damaged(error: &redb::Error) -> StoreError {
    match error {
        redb::Error::Io(error) => StoreError::Unavailable(error.to_string()),
        error => StoreError::Corrupt(error.to_string()),
    }
}

/// Makes the tables if they are not there, and says which format they have.
pub(super) fn prepare(database: &Database) -> Result<u64, redb::Error> {
    let write = database.begin_write()?;
    let format = {
        write.open_table(RECORDS)?;
        write.open_table(VERSIONS)?;
        write.open_table(CHANGES)?;
        write.open_table(LEASES)?;
        write.open_multimap_table(HANGING)?;
        let mut meta = write.open_table(META)?;
        let found = meta.get(META_FORMAT)?.map(|found| found.value());
        if let Some(found) = found {
            found
        } else {
            meta.insert(META_FORMAT, FORMAT)?;
            FORMAT
        }
    };
    write.commit()?;
    Ok(format)
}

fn encode(entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + entry.value.len());
    bytes.extend(entry.created.0.to_be_bytes());
    bytes.extend(entry.modified.0.to_be_bytes());
    bytes.extend(entry.lease.map_or(0, |lease| lease.0.get()).to_be_bytes());
    bytes.extend(&entry.value);
    bytes
}

fn decode(key: &str, bytes: &[u8]) -> Result<Entry, StoreError> {
    let number = |at: usize| {
        let part = bytes.get(at..at + 8)?;
        Some(u64::from_be_bytes(part.try_into().ok()?))
    };
    let (Some(created), Some(modified), Some(lease)) = (number(0), number(8), number(16)) else {
        return Err(StoreError::Corrupt(format!("`{key}` is cut short")));
    };
    Ok(Entry {
        key: Key::stored(key),
        value: Bytes::copy_from_slice(&bytes[HEADER..]),
        created: Revision(created),
        modified: Revision(modified),
        lease: std::num::NonZeroU64::new(lease).map(LeaseId),
    })
}

/// The first text behind all that begin so.
fn behind(prefix: &str) -> String {
    // All keys are plain text, so that there is a next character.
    let mut end = prefix.to_owned();
    match end.pop() {
        Some(last) => end.push(char::from_u32(u32::from(last) + 1).unwrap_or(char::MAX)),
        None => end.push(char::MAX),
    }
    end
}

/// The file as it was when it was taken.
pub(super) struct Snapshot {
    records: ReadOnlyTable<&'static str, &'static [u8]>,
    versions: ReadOnlyTable<(&'static str, u64), &'static [u8]>,
    changes: ReadOnlyTable<(u64, u32), &'static str>,
    pub(super) revision: Revision,
    pub(super) oldest: Revision,
}

impl Snapshot {
    pub(super) fn take(database: &Database) -> Result<Self, StoreError> {
        let read = database.begin_read().map_err(corrupt)?;
        let meta = read.open_table(META).map_err(corrupt)?;
        let number = |name| -> Result<u64, StoreError> {
            let found = meta.get(name).map_err(corrupt)?;
            Ok(found.map_or(0, |found| found.value()))
        };
        Ok(Self {
            revision: Revision(number(META_REVISION)?),
            oldest: Revision(number(META_OLDEST)?),
            records: read.open_table(RECORDS).map_err(corrupt)?,
            versions: read.open_table(VERSIONS).map_err(corrupt)?,
            changes: read.open_table(CHANGES).map_err(corrupt)?,
        })
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let found = self.records.get(key.as_str()).map_err(corrupt)?;
        found
            .map(|found| decode(key.as_str(), found.value()))
            .transpose()
    }

    pub(super) fn list(&self, query: &Query) -> Result<Page, StoreError> {
        match query.at {
            None => self.list_now(query),
            Some(at) if at == self.revision => self.list_now(query),
            Some(at) if at > self.revision => Err(StoreError::Future { asked: at }),
            Some(at) if at < self.oldest => Err(StoreError::Compacted {
                oldest: self.oldest,
            }),
            Some(at) => self.list_then(query, at),
        }
    }

    fn list_now(&self, query: &Query) -> Result<Page, StoreError> {
        let start = start(query);
        let end = behind(query.prefix.as_str());
        let mut page = Page {
            revision: self.revision,
            ..Page::default()
        };
        if start >= end {
            return Ok(page);
        }
        let range = self.records.range(start.as_str()..end.as_str());
        let mut room = Room::of(query);
        for item in range.map_err(corrupt)? {
            let (key, value) = item.map_err(corrupt)?;
            if !room.take(value.value().len()) {
                page.more = true;
                break;
            }
            page.entries.push(decode(key.value(), value.value())?);
        }
        Ok(page)
    }

    /// Looks at each key's versions up to then; the last one counts, if it is not a deletion.
    fn list_then(&self, query: &Query, at: Revision) -> Result<Page, StoreError> {
        let start = start(query);
        let end = behind(query.prefix.as_str());
        let mut page = Page {
            revision: at,
            ..Page::default()
        };
        if start >= end {
            return Ok(page);
        }
        let mut room = Room::of(query);
        let mut last: Option<(String, Vec<u8>)> = None;
        let mut finish = |last: Option<(String, Vec<u8>)>| -> Result<bool, StoreError> {
            let Some((key, bytes)) = last.filter(|(_, bytes)| !bytes.is_empty()) else {
                return Ok(true);
            };
            if !room.take(bytes.len()) {
                page.more = true;
                return Ok(false);
            }
            page.entries.push(decode(&key, &bytes)?);
            Ok(true)
        };
        let range = self.versions.range((start.as_str(), 0)..(end.as_str(), 0));
        for item in range.map_err(corrupt)? {
            let (key, value) = item.map_err(corrupt)?;
            let (key, revision) = key.value();
            if last.as_ref().is_some_and(|(before, _)| before != key) && !finish(last.take())? {
                return Ok(page);
            }
            if revision <= at.0 {
                last = Some((key.to_owned(), value.value().to_vec()));
            }
        }
        finish(last)?;
        Ok(page)
    }

    /// What up to `most` revisions after one changed, of that which begins so. Each revision that
    /// changed something of it is there; the last one that was looked at is said.
    pub(super) fn changes(
        &self,
        prefix: &Prefix,
        after: Revision,
        most: u64,
    ) -> Result<(Vec<Changed>, Revision), StoreError> {
        let last = Revision(self.revision.0.min(after.0.saturating_add(most)));
        let mut found: Vec<Changed> = Vec::new();
        let range = self.changes.range((after.0 + 1, 0)..=(last.0, u32::MAX));
        for item in range.map_err(corrupt)? {
            let (at, key) = item.map_err(corrupt)?;
            let (revision, _) = at.value();
            let key = Key::stored(key.value());
            if !prefix.holds(&key) {
                continue;
            }
            let version = self
                .versions
                .get((key.as_str(), revision))
                .map_err(corrupt)?;
            let version = version.ok_or_else(|| {
                StoreError::Corrupt(format!("`{key}` has no version of revision {revision}"))
            })?;
            let change = if version.value().is_empty() {
                Change::Deleted(key)
            } else {
                Change::Put(decode(key.as_str(), version.value())?)
            };
            match found.last_mut() {
                Some((before, changes)) if before.0 == revision => changes.push(change),
                Some(_) | None => found.push((Revision(revision), vec![change])),
            }
        }
        Ok((found, last))
    }
}

/// What a page has room for.
struct Room {
    entries: usize,
    bytes: usize,
    is_empty: bool,
}

impl Room {
    fn of(query: &Query) -> Self {
        Self {
            entries: query.limit,
            bytes: MAX_PAGE_BYTES,
            is_empty: true,
        }
    }

    /// Takes an entry in, if there is room. There always is for the first.
    fn take(&mut self, bytes: usize) -> bool {
        let fits = self.entries > 0 && bytes <= self.bytes;
        if !fits && !self.is_empty {
            return false;
        }
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.is_empty = false;
        true
    }
}

fn start(query: &Query) -> String {
    match &query.after {
        // No key is between a key and itself with the least byte behind it.
        Some(after) => format!("{}\0", after.as_str()),
        None => query.prefix.as_str().to_owned(),
    }
}

/// The file while it is being written.
pub(super) struct Tables<'t> {
    records: Table<'t, &'static str, &'static [u8]>,
    versions: Table<'t, (&'static str, u64), &'static [u8]>,
    changes: Table<'t, (u64, u32), &'static str>,
    leases: Table<'t, u64, u64>,
    hanging: MultimapTable<'t, u64, &'static str>,
    meta: Table<'t, &'static str, u64>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(write: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            records: write.open_table(RECORDS).map_err(corrupt)?,
            versions: write.open_table(VERSIONS).map_err(corrupt)?,
            changes: write.open_table(CHANGES).map_err(corrupt)?,
            leases: write.open_table(LEASES).map_err(corrupt)?,
            hanging: write.open_multimap_table(HANGING).map_err(corrupt)?,
            meta: write.open_table(META).map_err(corrupt)?,
        })
    }

    fn number(&self, name: &str) -> Result<u64, StoreError> {
        let found = self.meta.get(name).map_err(corrupt)?;
        Ok(found.map_or(0, |found| found.value()))
    }

    fn set(&mut self, name: &str, number: u64) -> Result<(), StoreError> {
        self.meta.insert(name, number).map_err(corrupt)?;
        Ok(())
    }

    pub(super) fn revision(&self) -> Result<Revision, StoreError> {
        self.number(META_REVISION).map(Revision)
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let found = self.records.get(key.as_str()).map_err(corrupt)?;
        found
            .map(|found| decode(key.as_str(), found.value()))
            .transpose()
    }

    pub(super) fn keys(&self, prefix: &Prefix) -> Result<Vec<Key>, StoreError> {
        let end = behind(prefix.as_str());
        let range = self.records.range(prefix.as_str()..end.as_str());
        let keys = range.map_err(corrupt)?.map(|item| {
            let (key, _) = item.map_err(corrupt)?;
            Ok(Key::stored(key.value()))
        });
        keys.collect()
    }

    /// Writes changes as one revision. `None` as a value deletes.
    pub(super) fn write(&mut self, changes: Vec<Write>) -> Result<Changed, StoreError> {
        let before = self.revision()?;
        let revision = Revision(before.0 + 1);
        let mut written = Vec::new();
        for (key, value) in changes {
            let old = self.get(&key)?;
            if let Some(lease) = old.as_ref().and_then(|old| old.lease) {
                let removed = self.hanging.remove(lease.0.get(), key.as_str());
                removed.map_err(corrupt)?;
            }
            let change = match value {
                Some((value, lease)) => {
                    let entry = Entry {
                        key: key.clone(),
                        value,
                        created: old.map_or(revision, |old| old.created),
                        modified: revision,
                        lease,
                    };
                    let bytes = encode(&entry);
                    let put = self.records.insert(key.as_str(), bytes.as_slice());
                    put.map_err(corrupt)?;
                    if let Some(lease) = lease {
                        let hung = self.hanging.insert(lease.0.get(), key.as_str());
                        hung.map_err(corrupt)?;
                    }
                    let version = (key.as_str(), revision.0);
                    let put = self.versions.insert(version, bytes.as_slice());
                    put.map_err(corrupt)?;
                    Change::Put(entry)
                }
                None if old.is_some() => {
                    self.records.remove(key.as_str()).map_err(corrupt)?;
                    let version = (key.as_str(), revision.0);
                    let put = self.versions.insert(version, [].as_slice());
                    put.map_err(corrupt)?;
                    Change::Deleted(key.clone())
                }
                None => continue,
            };
            let at = (revision.0, written.len() as u32);
            self.changes.insert(at, key.as_str()).map_err(corrupt)?;
            written.push(change);
        }
        if written.is_empty() {
            return Ok((before, written));
        }
        self.set(META_REVISION, revision.0)?;
        Ok((revision, written))
    }

    pub(super) fn grant(&mut self, ttl_ms: u64) -> Result<LeaseId, StoreError> {
        let number = self.number(META_LEASE)? + 1;
        self.set(META_LEASE, number)?;
        self.leases.insert(number, ttl_ms).map_err(corrupt)?;
        let number = std::num::NonZeroU64::new(number).expect("counted from 1");
        Ok(LeaseId(number))
    }

    /// Every lease and its length in milliseconds.
    pub(super) fn leases(&self) -> Result<Vec<(LeaseId, u64)>, StoreError> {
        let all = self.leases.iter().map_err(corrupt)?;
        let all = all.map(|item| {
            let (lease, ttl) = item.map_err(corrupt)?;
            let lease = std::num::NonZeroU64::new(lease.value());
            let lease = lease.ok_or_else(|| StoreError::Corrupt("a lease is 0".to_owned()))?;
            Ok((LeaseId(lease), ttl.value()))
        });
        all.collect()
    }

    pub(super) fn has_lease(&self, lease: LeaseId) -> Result<bool, StoreError> {
        let found = self.leases.get(lease.0.get()).map_err(corrupt)?;
        Ok(found.is_some())
    }

    /// Forgets a lease; what hung on it is returned, to be deleted.
    pub(super) fn end_lease(&mut self, lease: LeaseId) -> Result<Vec<Key>, StoreError> {
        self.leases.remove(lease.0.get()).map_err(corrupt)?;
        let keys = self.hanging.remove_all(lease.0.get()).map_err(corrupt)?;
        let keys = keys.map(|key| Ok(Key::stored(key.map_err(corrupt)?.value())));
        keys.collect()
    }

    /// Forgets how things stood before a revision: versions that a newer one of no later than then
    /// replaced, and what the revisions up to then changed.
    pub(super) fn compact(&mut self, before: Revision) -> Result<(), StoreError> {
        let oldest = self.number(META_OLDEST)?;
        let revision = self.revision()?;
        if before > revision {
            return Err(StoreError::Future { asked: before });
        }
        if before.0 <= oldest {
            return Ok(());
        }
        // What changed up to then is where something can have been replaced.
        let mut touched = Vec::new();
        let range = self.changes.range((0, 0)..=(before.0, u32::MAX));
        for item in range.map_err(corrupt)? {
            let (at, key) = item.map_err(corrupt)?;
            touched.push((at.value(), key.value().to_owned()));
        }
        for (at, _) in &touched {
            self.changes.remove(*at).map_err(corrupt)?;
        }
        let keys: std::collections::BTreeSet<_> = touched.into_iter().map(|(_, key)| key).collect();
        for key in keys {
            let mut versions = Vec::new();
            let range = self
                .versions
                .range((key.as_str(), 0)..=(key.as_str(), before.0));
            for item in range.map_err(corrupt)? {
                let (at, value) = item.map_err(corrupt)?;
                versions.push((at.value().1, value.value().is_empty()));
            }
            // The last one is how it stood then; if that was a deletion, it stood not at all.
            let keep = versions
                .last()
                .filter(|(_, deleted)| !deleted)
                .map(|(at, _)| *at);
            for (at, _) in versions {
                if Some(at) != keep {
                    self.versions.remove((key.as_str(), at)).map_err(corrupt)?;
                }
            }
        }
        self.set(META_OLDEST, before.0)
    }

    pub(super) fn oldest(&self) -> Result<Revision, StoreError> {
        self.number(META_OLDEST).map(Revision)
    }
}
