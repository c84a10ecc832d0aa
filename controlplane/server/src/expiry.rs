//! Removes what is over of tenants' timelines, as the rules say: a duty of the leader's, beside its others, since
//! archives may be slow (F-116).
//!
//! Why the leader and not the runtimes that recorded: there is always one and only one, it outlives every runtime,
//! it has the rules at first hand, and what it does is in the audit trail of the same store. It needs no key: what
//! is over is told by names and ages. What is about to go is put down before it goes, under the leader's fence,
//! so that nothing goes without a trace; then what became of it. What cannot go is put down too, once for as long
//! as nothing about it changes.
//!
//! What waits in a runtime's spool is removed by that runtime, which puts it down here in the same words, before and
//! after.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use rspp_controlplane::{
    access::Principal,
    audit::{Outcome, Record},
    keeping::{Keeping, Lot},
    keys,
    store::{Compare, StoreError, Txn},
};
use rspp_controlplane_storage::election::Office;
use rspp_proto::{
    Region, SessionId, TenantId,
    control::{Holder, Removal, RemovalStep},
};
use rspp_timeline::export::{
    ArchiveFault, FaultKind, Patrol, Perishable, Stored, key_part, key_tenant,
};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    audit::done,
    commit::wait_a_little,
    failure::Failure,
    plane::{Plane, wall_clock},
};

/// How long an archive may take for one answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Recordings that one entry of the trail names, so that it stays small.
const AT_ONCE: usize = 32;
/// Recordings that are remembered as what could not go, of each tenant in each archive; others are told again.
const MOST_STUCK: usize = 1_024;
/// How often it is tried to put something down that others were in the way of.
const TRIES: u32 = 20;
/// In the trail: recordings are about to go because they are over.
const EXPIRE: &str = "timelines_expire";
/// In the trail: they are gone.
const REMOVED: &str = "timelines_removed";
/// In the trail: they should be gone, and are not.
const NOT_REMOVED: &str = "timelines_not_removed";

/// An archive of tenants' timelines.
#[derive(Clone)]
pub struct KeptIn {
    /// The region that it lies in.
    pub region: Region,
    /// The archive.
    pub archive: Arc<dyn Perishable>,
}

impl fmt::Debug for KeptIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.archive.place(), self.region)
    }
}

/// What a leader remembers from one pass to the next.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// By archive and tenant.
    stays: BTreeMap<(usize, String), Stays>,
    /// Archives that did not answer, and what they said instead.
    faults: BTreeMap<usize, String>,
}

/// What of a tenant's stays in an archive though it should not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stays {
    /// Recordings that somebody holds.
    held: usize,
    /// Recordings that lie in a region where they may not.
    elsewhere: usize,
    /// Recordings that the archive does not let go.
    stuck: BTreeSet<String>,
    /// What it says.
    why: Option<String>,
}

/// What of a tenant's was found in one look.
#[derive(Default)]
struct Found {
    held: usize,
    elsewhere: usize,
    over: Vec<Stored>,
}

/// Why a pass ends early.
enum Stop {
    /// Somebody else has the duties.
    NotOurs,
    /// The archive does not answer.
    Archive(ArchiveFault),
    /// What goes cannot be put down, so it stays.
    Trail(Failure),
}

impl From<ArchiveFault> for Stop {
    fn from(fault: ArchiveFault) -> Self {
        Self::Archive(fault)
    }
}

impl Plane {
    /// Goes through all archives once, and removes what is over.
    pub(crate) async fn expire(self, office: Office, mut told: Told) -> Told {
        let archives = self.settings().archives.clone();
        for (number, kept_in) in archives.iter().enumerate() {
            let mut stays = BTreeMap::new();
            let passed = self
                .pass(&office, (number, kept_in), &told, &mut stays)
                .await;
            let place = kept_in.archive.place();
            let outcome = match passed {
                Ok(()) => {
                    told.faults.remove(&number);
                    self.tell(&office, (number, kept_in), &mut told, stays)
                        .await
                }
                Err(Stop::Archive(fault)) => {
                    self.tell_fault(&office, (number, kept_in), &mut told, fault)
                        .await
                }
                Err(stop @ (Stop::NotOurs | Stop::Trail(_))) => Err(stop),
            };
            match outcome {
                Ok(()) => {}
                Err(Stop::NotOurs) => return told,
                Err(Stop::Archive(fault)) => tracing::error!(place, %fault, "the archive was left"),
                Err(Stop::Trail(failure)) => {
                    tracing::error!(place, %failure, "what is over stays: it could not be put down");
                }
            }
        }
        told
    }

    async fn pass(
        &self,
        office: &Office,
        (number, kept_in): (usize, &KeptIn),
        told: &Told,
        stays: &mut BTreeMap<String, Stays>,
    ) -> Result<(), Stop> {
        let archive = &*kept_in.archive;
        let mut patrol = Patrol::default();
        loop {
            if !office.lasts() {
                return Err(Stop::NotOurs);
            }
            let look = in_time(patrol.look(archive)).await?;
            let rules = self.governance();
            let now = wall_clock();
            let mut found: BTreeMap<String, Found> = BTreeMap::new();
            for stored in look.recordings {
                let tenant = whose(&rules.retention, &stored.tenant);
                let is_session = |id: &SessionId| key_part(id.as_str()) == stored.session;
                let lot = rules
                    .retention
                    .lot(tenant.as_ref(), is_session, stored.last, now);
                let of_tenant = found.entry(stored.tenant.clone()).or_default();
                let may_lie_here = tenant
                    .as_ref()
                    .is_none_or(|tenant| rules.residency.allows(tenant, &kept_in.region));
                of_tenant.elsewhere += usize::from(!may_lie_here);
                match lot {
                    Lot::Kept => {}
                    Lot::Held => of_tenant.held += 1,
                    Lot::Over => of_tenant.over.push(stored),
                }
            }
            for (part, found) in found {
                let stays = stays.entry(part.clone()).or_default();
                stays.held += found.held;
                stays.elsewhere += found.elsewhere;
                let before = told.stays.get(&(number, part));
                for batch in found.over.chunks(AT_ONCE) {
                    self.remove(office, kept_in, batch, before, stays).await?;
                }
            }
            if look.is_last {
                return Ok(());
            }
        }
    }

    /// Removes some of a tenant's recordings, each with a trace of it.
    async fn remove(
        &self,
        office: &Office,
        kept_in: &KeptIn,
        batch: &[Stored],
        before: Option<&Stays>,
        stays: &mut Stays,
    ) -> Result<(), Stop> {
        let Some(first) = batch.first() else {
            return Ok(());
        };
        let archive = &*kept_in.archive;
        let rules = self.governance().retention;
        let part = &first.tenant;
        let tenant = whose(&rules, part);
        let keep = rules.keep(tenant.as_ref());
        let place = archive.place();
        // Those that were tried before are in the trail already.
        let is_new = |it: &&Stored| before.is_none_or(|known| !known.stuck.contains(&it.recording));
        let new: Vec<&str> = batch
            .iter()
            .filter(is_new)
            .map(|it| it.recording.as_str())
            .collect();
        if !new.is_empty() {
            let what = json!({
                "archive": place,
                "region": kept_in.region,
                "kept_ms": keep.map(|it| it.as_millis() as u64),
                "recordings": new,
            });
            let record = about(part, tenant.as_ref(), EXPIRE, what);
            self.put_down(office, record).await?;
        }
        let (mut removed, mut bytes) = (0_usize, 0);
        let mut until = 0;
        let mut ended = Ok(());
        for stored in batch {
            if !office.lasts() {
                ended = Err(Stop::NotOurs);
                break;
            }
            match in_time(stored.remove(archive)).await {
                Ok(()) => {
                    removed += 1;
                    bytes += stored.bytes;
                    until = until.max(stored.last.0);
                }
                Err(fault) => {
                    if stays.stuck.len() < MOST_STUCK {
                        stays.stuck.insert(stored.recording.clone());
                    }
                    stays.why = Some(fault.message.clone());
                    match fault.kind {
                        // Others may go.
                        FaultKind::Refused => {}
                        FaultKind::Unavailable => {
                            ended = Err(Stop::Archive(fault));
                            break;
                        }
                    }
                }
            }
        }
        if removed > 0 {
            tracing::info!(
                place,
                tenant = part,
                removed,
                bytes,
                "timelines that were over were removed"
            );
            let what = json!({
                "archive": place,
                "region": kept_in.region,
                "recordings": removed,
                "bytes": bytes,
                "newest_ms": until,
            });
            let record = about(part, tenant.as_ref(), REMOVED, what);
            self.put_down(office, record).await?;
        }
        ended
    }

    /// Puts down what stays, where that is news.
    async fn tell(
        &self,
        office: &Office,
        (number, kept_in): (usize, &KeptIn),
        told: &mut Told,
        stays: BTreeMap<String, Stays>,
    ) -> Result<(), Stop> {
        told.stays
            .retain(|(archive, part), _| *archive != number || stays.contains_key(part));
        let place = kept_in.archive.place();
        for (part, now) in stays {
            let key = (number, part.clone());
            let before = told.stays.get(&key).cloned().unwrap_or_default();
            if before == now {
                continue;
            }
            let tenant = whose(&self.governance().retention, &part);
            let mut news = Vec::new();
            if now.held != before.held && now.held > 0 {
                let what = json!({ "archive": place, "recordings": now.held, "why": "held" });
                news.push(("timelines_held", what));
            }
            if (&now.stuck, &now.why) != (&before.stuck, &before.why) && !now.stuck.is_empty() {
                let some: Vec<_> = now.stuck.iter().take(AT_ONCE).collect();
                let why = now.why.as_deref().unwrap_or_default();
                tracing::error!(
                    place,
                    tenant = part,
                    count = now.stuck.len(),
                    why,
                    "timelines that are over cannot be removed"
                );
                let what = json!({ "archive": place, "recordings": now.stuck.len(), "some": some, "why": why });
                news.push((NOT_REMOVED, what));
            }
            if now.elsewhere != before.elsewhere && now.elsewhere > 0 {
                tracing::error!(place, tenant = part, count = now.elsewhere, region = %kept_in.region, "timelines lie where they may not");
                let what = json!({ "archive": place, "region": kept_in.region, "recordings": now.elsewhere });
                news.push(("timelines_out_of_place", what));
            }
            for (operation, what) in news {
                let mut record = about(&part, tenant.as_ref(), operation, what);
                record.outcome = Outcome::Refused;
                self.put_down(office, record).await?;
            }
            told.stays.insert(key, now);
        }
        Ok(())
    }

    /// Puts down that an archive does not answer, where that is news.
    async fn tell_fault(
        &self,
        office: &Office,
        (number, kept_in): (usize, &KeptIn),
        told: &mut Told,
        fault: ArchiveFault,
    ) -> Result<(), Stop> {
        let place = kept_in.archive.place();
        tracing::error!(place, %fault, "what is over was not removed; it will be tried again");
        if told.faults.get(&number) == Some(&fault.message) {
            return Ok(());
        }
        let what = json!({ "archive": place, "region": kept_in.region, "why": fault.message });
        let mut record = Record::automatic(wall_clock(), NOT_REMOVED, place, what);
        record.outcome = Outcome::Refused;
        self.put_down(office, record).await?;
        told.faults.insert(number, fault.message);
        Ok(())
    }

    /// Adds to the trail for as long as the office lasts.
    async fn put_down(&self, office: &Office, record: Record) -> Result<(), Stop> {
        let mut tries = 0;
        loop {
            let txn = Txn::default().when(office.fence());
            let written = match self.with_audit(txn, vec![record.clone()]).await {
                Ok(txn) => self.store().commit(txn).await,
                Err(error) => Err(error),
            };
            match written {
                Ok(_) => return Ok(()),
                Err(_) if !office.lasts() => return Err(Stop::NotOurs),
                // It may be there already; twice is better than not at all.
                Err(error)
                    if tries < TRIES && (error.is_transient() || error == StoreError::Conflict) =>
                {
                    tries += 1;
                    wait_a_little(tries).await;
                }
                Err(error) => return Err(Stop::Trail(error.into())),
            }
        }
    }
}

impl Plane {
    /// Puts down what a runtime removes from its spool, or could not: the recordings of each tenant apart.
    pub(crate) async fn note_removal(
        &self,
        who: &Principal,
        by: &Holder,
        removal: &Removal,
    ) -> Result<(), Failure> {
        let mut of_tenants: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for recording in &removal.recordings {
            let part = recording.split('/').next().unwrap_or_default();
            of_tenants.entry(part).or_default().push(recording);
        }
        let rules = self.governance().retention;
        let records = of_tenants.into_iter().map(|(part, recordings)| {
            let (operation, outcome) = match removal.step {
                RemovalStep::Planned => (EXPIRE, Outcome::Done),
                RemovalStep::Done => (REMOVED, Outcome::Done),
                RemovalStep::Failed => (NOT_REMOVED, Outcome::Refused),
            };
            let mut what = json!({ "spool": by, "recordings": recordings });
            if removal.step == RemovalStep::Failed {
                what["why"] = json!(removal.why);
            }
            let tenant = whose(&rules, part);
            let subject = tenant.as_ref().map_or(part, TenantId::as_str);
            Record {
                tenant: tenant.clone(),
                outcome,
                ..done(wall_clock(), who, operation, subject, what)
            }
        });
        let records: Vec<_> = records.collect();
        self.settle(|| async {
            let alive = Compare::Exists(keys::liveness(by));
            let txn = self
                .with_audit(Txn::default().when(alive), records.clone())
                .await?;
            Ok((Some(txn), ()))
        })
        .await
    }
}

/// Whose a recording is. Names that are too long for a key are known from the rules only.
fn whose(rules: &Keeping, part: &str) -> Option<TenantId> {
    let known = || {
        let mut tenants = rules.tenants.keys();
        tenants.find(|it| key_part(it.as_str()) == part).cloned()
    };
    key_tenant(part).or_else(known)
}

fn about(
    part: &str,
    tenant: Option<&TenantId>,
    operation: &str,
    what: serde_json::Value,
) -> Record {
    let subject = tenant.map_or(part, TenantId::as_str);
    Record {
        tenant: tenant.cloned(),
        ..Record::automatic(wall_clock(), operation, subject, what)
    }
}

async fn in_time<T>(
    answer: impl Future<Output = Result<T, ArchiveFault>>,
) -> Result<T, ArchiveFault> {
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(ArchiveFault::unavailable(format!(
            "no answer within {PATIENCE:?}"
        ))),
    }
}
