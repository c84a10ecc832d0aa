//! A part of a store, kept at hand: listed once, then followed, and listed again when the store has
//! forgotten what came between.

use std::{collections::BTreeMap, sync::Arc};

use futures::StreamExt;

use super::{
    Batch, Change, Changes, Entry, Key, Prefix, Query, Revision, Store, StoreError, WatchError,
};

/// What a mirror has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Some records changed.
    Changed(Batch),
    /// The mirror caught up after a gap. These records differ from what it showed before; states
    /// between may be missing.
    CaughtUp(Batch),
    /// The store does not answer. What is shown may be old; ask again after a while.
    Stale(String),
}

/// Follows all records that begin alike.
pub struct Mirror {
    store: Arc<dyn Store>,
    prefix: Prefix,
    shown: BTreeMap<Key, Entry>,
    revision: Revision,
    changes: Option<Changes>,
    /// Whether it was last told that the store does not answer.
    stale: bool,
}

impl Mirror {
    /// Lists what is there; follows it from then on.
    pub async fn open(store: Arc<dyn Store>, prefix: Prefix) -> Result<Self, StoreError> {
        let listing = list_all(&*store, &prefix, None).await?;
        Ok(Self {
            store,
            prefix,
            shown: listing.records,
            revision: listing.revision,
            changes: None,
            stale: false,
        })
    }

    /// The records as they were at [`Self::revision`].
    pub fn records(&self) -> &BTreeMap<Key, Entry> {
        &self.shown
    }

    /// What it shows the state of.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Waits for the next change; after [`News::Stale`] for the store to answer, whether anything has
    /// changed or not. May be dropped while it waits; nothing is lost then.
    pub async fn next(&mut self) -> News {
        let news = if self.stale {
            self.caught_up().await
        } else {
            self.changed().await
        };
        self.stale = matches!(news, News::Stale(_));
        news
    }

    async fn caught_up(&mut self) -> News {
        match self.list_again().await {
            Ok(Some(batch)) => News::CaughtUp(batch),
            Ok(None) => News::CaughtUp(Batch {
                revision: self.revision,
                changes: Vec::new(),
            }),
            Err(error) => News::Stale(error.to_string()),
        }
    }

    async fn changed(&mut self) -> News {
        loop {
            let changes = self
                .changes
                .get_or_insert_with(|| self.store.watch(self.prefix.clone(), self.revision));
            let ended = match changes.next().await {
                Some(Ok(batch)) => {
                    for change in &batch.changes {
                        apply(&mut self.shown, change);
                    }
                    self.revision = self.revision.max(batch.revision);
                    return News::Changed(batch);
                }
                Some(Err(error)) => error,
                None => WatchError::Unavailable("the watch ended".to_owned()),
            };
            self.changes = None;
            match ended {
                WatchError::Compacted { .. } => match self.list_again().await {
                    Ok(None) => {}
                    Ok(Some(batch)) => return News::CaughtUp(batch),
                    Err(error) => return News::Stale(error.to_string()),
                },
                // From the last revision on again; if that is gone by now, the store will say so.
                WatchError::Lagged => {}
                WatchError::Unavailable(reason) => return News::Stale(reason),
            }
        }
    }

    async fn list_again(&mut self) -> Result<Option<Batch>, StoreError> {
        let Listing {
            records: now,
            revision,
        } = list_all(&*self.store, &self.prefix, None).await?;
        let gone = self.shown.keys().filter(|key| !now.contains_key(*key));
        let mut changes: Vec<_> = gone.cloned().map(Change::Deleted).collect();
        let written = now
            .values()
            .filter(|entry| self.shown.get(&entry.key) != Some(*entry));
        changes.extend(written.cloned().map(Change::Put));
        self.shown = now;
        self.revision = revision;
        Ok((!changes.is_empty()).then_some(Batch { revision, changes }))
    }
}

fn apply(shown: &mut BTreeMap<Key, Entry>, change: &Change) {
    match change {
        Change::Put(entry) => {
            shown.insert(entry.key.clone(), entry.clone());
        }
        Change::Deleted(key) => {
            shown.remove(key);
        }
    }
}

/// All records that begin alike, as they stood at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// By key.
    pub records: BTreeMap<Key, Entry>,
    /// What it shows the state of.
    pub revision: Revision,
}

/// Lists all records that begin alike, as they stood at a revision; without one, now. Begins anew if that
/// moment is forgotten while it asks page by page.
pub async fn list_all(
    store: &dyn Store,
    prefix: &Prefix,
    at: Option<Revision>,
) -> Result<Listing, StoreError> {
    'anew: loop {
        let mut records = BTreeMap::new();
        let mut query = Query {
            at,
            ..Query::first(prefix.clone())
        };
        loop {
            let page = match store.list(query.clone()).await {
                Ok(page) => page,
                Err(StoreError::Compacted { .. }) if at.is_none() && query.at.is_some() => {
                    continue 'anew;
                }
                Err(error) => return Err(error),
            };
            let revision = *query.at.get_or_insert(page.revision);
            query.after = page.entries.last().map(|entry| entry.key.clone());
            records.extend(page.entries.into_iter().map(|e| (e.key.clone(), e)));
            if !page.more {
                return Ok(Listing { records, revision });
            }
        }
    }
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirror")
            .field("prefix", &self.prefix)
            .field("records", &self.shown.len())
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}
