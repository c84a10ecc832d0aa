//! The audit trail as it is stored: every entry in the transaction of what it tells of, none without
//! the one before (F-097, F-170).

use rspp_controlplane::{
    audit::{self, Broken, Head, Record, Verifier},
    keys,
    store::{Compare, Entry, Prefix, Query, Store, StoreError, Txn, bytes, parse},
};

/// The trail's end, and its record.
pub async fn head(store: &dyn Store) -> Result<(Head, Option<Entry>), StoreError> {
    let entry = store.get(&keys::audit_head()).await?;
    let head = match &entry {
        Some(entry) => parse(entry)?,
        None => Head::empty(),
    };
    Ok((head, entry))
}

/// Adds records to the trail's end, in the transaction of what they tell of.
pub async fn append(
    store: &dyn Store,
    mut txn: Txn,
    records: impl IntoIterator<Item = Record>,
) -> Result<Txn, StoreError> {
    let (mut end, entry) = head(store).await?;
    txn = txn.when(Compare::unchanged(&keys::audit_head(), entry.as_ref()));
    for record in records {
        let (entry, next) = audit::append(&end, record);
        txn = txn.put(keys::audit(entry.sequence), bytes(&entry));
        end = next;
    }
    Ok(txn.put(keys::audit_head(), bytes(&end)))
}

/// How far a trail can be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Its end, as it says of itself.
    pub head: Head,
    /// The last entry that stands as it was written.
    pub last: u64,
    /// What is wrong with the next.
    pub broken: Option<Broken>,
}

/// Follows the trail from its beginning to its end, as it stood at one moment.
pub async fn follow(store: &dyn Store) -> Result<Followed, StoreError> {
    let mut query = Query::first(keys::audits());
    let mut verifier = Verifier::default();
    let mut last = 0;
    loop {
        let page = store.list(query.clone()).await?;
        let at = *query.at.get_or_insert(page.revision);
        query.after = page.entries.last().map(|entry| entry.key.clone());
        let mut broken = None;
        for entry in &page.entries {
            let found: audit::Entry = parse(entry)?;
            if let Err(error) = verifier.push(&found) {
                broken = Some(error);
                break;
            }
            last = found.sequence;
        }
        if page.more && broken.is_none() {
            continue;
        }
        // The end as it stood then; nothing else is called as it is.
        let key = keys::audit_head();
        let query = Query {
            at: Some(at),
            ..Query::first(Prefix::of(&key))
        };
        let page = store.list(query).await?;
        let entry = page.entries.iter().find(|entry| entry.key == key);
        let head = entry.map_or_else(|| Ok(Head::empty()), parse)?;
        let broken = broken.or_else(|| verifier.finish(&head).err());
        return Ok(Followed { head, last, broken });
    }
}
