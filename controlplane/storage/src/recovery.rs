//! Whether what is stored is whole, and whether it can be had back in time (F-166, NF-031).

use std::{collections::BTreeMap, fmt, time::Duration};

use rspp_controlplane::{
    audit::{Broken, Head},
    authority::{Placement, Standing},
    keys,
    store::{Entry, Query, Store, StoreError},
};
use thiserror::Error;
use tokio::time::Instant;

use crate::{
    backup::{self, BackupError, Summary},
    trail,
};

/// What a recovery has to keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Objectives {
    /// Recovery time: from an empty store to one that is whole again.
    pub time: Duration,
    /// Recovery point: what was written so long before the loss is there again.
    pub point: Duration,
}

/// What we promise of a control plane whose store was lost whole, with a backup every five minutes. A
/// lost member of a cluster, or a process that died, loses nothing and needs no recovery.
pub const OBJECTIVES: Objectives = Objectives {
    time: Duration::from_mins(5),
    point: Duration::from_mins(6),
};

/// What is wrong with a store's content.
#[derive(Debug, Error)]
pub enum Unsound {
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audit trail is not as it was written.
    #[error("the audit trail: {0}")]
    Trail(#[from] Broken),
    /// A record cannot be read, or is not what was backed up.
    #[error("`{key}`: {what}")]
    Record {
        /// Where.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// The backup cannot be used.
    #[error(transparent)]
    Backup(#[from] BackupError),
}

/// Follows the audit trail from its beginning to its end as it stands at one moment, and says where it
/// ends (F-170).
pub async fn verify_trail(store: &dyn Store) -> Result<Head, Unsound> {
    let followed = trail::follow(store).await?;
    match followed.broken {
        Some(broken) => Err(broken.into()),
        None => Ok(followed.head),
    }
}

fn parse<T: serde::de::DeserializeOwned>(entry: &Entry) -> Result<T, Unsound> {
    serde_json::from_slice(&entry.value).map_err(|error| Unsound::Record {
        key: entry.key.as_str().to_owned(),
        what: error.to_string(),
    })
}

/// A recovery as it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The backup that it began with.
    pub from: Summary,
    /// Where the audit trail ends now.
    pub trail: Head,
    /// Sessions that anybody may take up again.
    pub sessions: u64,
    /// How long writing it all took.
    pub restored_in: Duration,
    /// How long comparing it all took.
    pub verified_in: Duration,
    /// How old the backup was when the store was lost.
    pub lost: Duration,
}

impl Recovery {
    /// From an empty store to one that is whole.
    pub fn time(&self) -> Duration {
        self.restored_in + self.verified_in
    }

    /// Whether it was good enough.
    pub fn keeps(&self, objectives: Objectives) -> bool {
        self.time() <= objectives.time && self.lost <= objectives.point
    }
}

/// Brings a backup back into an empty store and compares everything: each record is there and says what
/// it said, no session has a writer, the audit trail is unbroken to its end. `lost_at_ms` is when the
/// store was lost, on the clock that the backup was dated with.
pub async fn recover(store: &dyn Store, file: &[u8], lost_at_ms: u64) -> Result<Recovery, Unsound> {
    let begun = Instant::now();
    let from = backup::restore(store, &mut { file }).await?;
    let restored_in = begun.elapsed();
    let begun = Instant::now();
    let sessions = compare(store, file).await?;
    let trail = verify_trail(store).await?;
    Ok(Recovery {
        from,
        trail,
        sessions,
        restored_in,
        verified_in: begun.elapsed(),
        lost: Duration::from_millis(lost_at_ms.saturating_sub(from.at_ms)),
    })
}

async fn compare(store: &dyn Store, file: &[u8]) -> Result<u64, Unsound> {
    let (_, records) = backup::read(&mut { file })?;
    let mut expected: BTreeMap<_, _> = records.into_iter().collect();
    let placements = keys::placements();
    let mut sessions = 0;
    let mut query = Query::first(keys::all());
    let wrong = |entry: &Entry, what: &str| Unsound::Record {
        key: entry.key.as_str().to_owned(),
        what: what.to_owned(),
    };
    loop {
        let page = store.list(query.clone()).await?;
        query.at = Some(page.revision);
        query.after = page.entries.last().map(|entry| entry.key.clone());
        // What hangs on leases is not backed up; a replica that runs already may have written some.
        for entry in page.entries.iter().filter(|it| it.lease.is_none()) {
            let was = expected.remove(&entry.key);
            let was = was.ok_or_else(|| wrong(entry, "was not in the backup"))?;
            if !placements.holds(&entry.key) {
                if entry.value != was {
                    return Err(wrong(entry, "does not say what was backed up"));
                }
                continue;
            }
            let now: Placement = parse(entry)?;
            let was: Placement =
                serde_json::from_slice(&was).map_err(|error| wrong(entry, &error.to_string()))?;
            if now.holder().is_some() || now.epoch <= was.epoch || now.binding != was.binding {
                return Err(wrong(entry, "a lease granted since may still be good"));
            }
            match now.standing {
                Standing::Ended { .. } => {}
                Standing::Held { .. } | Standing::Revoking { .. } | Standing::Vacant { .. } => {
                    sessions += 1;
                }
            }
        }
        if !page.more {
            break;
        }
    }
    match expected.keys().next() {
        None => Ok(sessions),
        Some(key) => Err(Unsound::Record {
            key: key.as_str().to_owned(),
            what: "is missing".to_owned(),
        }),
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} records, {} sessions, audit trail unbroken to entry {}",
            self.from.records, self.sessions, self.trail.sequence
        )?;
        writeln!(
            f,
            "RTO {:.3} s: restored in {:.3} s, verified in {:.3} s (objective {} s)",
            self.time().as_secs_f64(),
            self.restored_in.as_secs_f64(),
            self.verified_in.as_secs_f64(),
            OBJECTIVES.time.as_secs()
        )?;
        write!(
            f,
            "RPO {:.3} s between the backup and the loss (objective {} s)",
            self.lost.as_secs_f64(),
            OBJECTIVES.point.as_secs()
        )
    }
}
