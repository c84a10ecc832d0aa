//! What one replica does for all: it is elected by a record of the store that goes with its lease.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use rspp_controlplane::{
    audit::Record,
    authority::{Fuse, Placement, Standing, WhyRevoked},
    failover::{self, Duties as RegionDuties, FailoverMode, Look, RegionDuty, Watch},
    fleet::Presence,
    keys,
    outage::{self, Calm, Incident},
    store::{Compare, Revision, StoreError, Txn, bytes},
};
use rspp_controlplane_storage::{
    counters::{Recounted, recount},
    election::{Candidate, Duties, Office},
    sweep::{Now, Sweep},
};
use rspp_proto::{
    Monotonic, Region, RuntimeId, SessionId,
    control::{Holder, Outage},
};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    audit::Note,
    expiry::Told,
    failure::Failure,
    plane::{Plane, RegionRecord, wall_clock},
};

/// How often there is looked for something to do.
const EVERY: Duration = Duration::from_millis(500);
/// Most orders of one round: the rest follows in the next.
const MOST: usize = 64;
/// How often the store may forget how things stood before.
const COMPACT_EVERY: Duration = Duration::from_mins(5);
/// How often open sessions are counted anew.
const RECOUNT_EVERY: Duration = Duration::from_mins(1);
/// How often the next part of all records is looked at for what is over.
const SWEEP_EVERY: Duration = Duration::from_secs(2);

impl Plane {
    /// Stands for election, and has the duties whenever it is elected, until the control plane is
    /// closed; then it resigns.
    pub(crate) async fn have_duties(self) {
        let settings = self.settings();
        let store = Arc::clone(&self.shared.store);
        let candidate = Candidate::new(store, settings.replica.clone(), settings.term);
        let now = Instant::now();
        let rounds = Rounds {
            plane: self.clone(),
            compacted: (now, Revision(0)),
            recounted: now,
            swept: now,
            sweep: Sweep::new(settings.retention),
            expired: now,
            expiring: Expiring::Rests(Told::default()),
            memory: Memory::default(),
        };
        candidate.serve(rounds, &self.shared.stop).await;
    }
}

/// The duties, and when the rare ones were done last.
struct Rounds {
    plane: Plane,
    compacted: (Instant, Revision),
    recounted: Instant,
    swept: Instant,
    sweep: Sweep,
    expired: Instant,
    expiring: Expiring,
    memory: Memory,
}

/// What judging the fleet has to remember from one round to the next.
#[derive(Default)]
struct Memory {
    /// Since when providers are not told of that count as failing.
    calm: Calm,
    /// Since when regions are ill and well.
    watch: Watch,
}

/// Whether archives are being gone through.
enum Expiring {
    /// Until it is time again.
    Rests(Told),
    /// By a task that is fenced with our office, and ends by itself.
    Goes(AbortOnDropHandle<Told>),
}

impl Duties for Rounds {
    fn round<'a>(&'a mut self, office: &'a Office) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Err(failure) = self.plane.round(office, &mut self.memory).await {
                tracing::warn!(%failure, "a duty was not done; it will be tried again");
            }
            self.compact().await;
            self.recount(office).await;
            self.sweep(office).await;
            self.expire(office).await;
        })
    }

    fn every(&self) -> Duration {
        EVERY
    }
}

impl Rounds {
    async fn compact(&mut self) {
        let (since, before) = self.compacted;
        if since.elapsed() < COMPACT_EVERY {
            return;
        }
        self.compacted = (
            Instant::now(),
            Revision(self.plane.shared.placements.revision()),
        );
        if before.0 > 0
            && let Err(error) = self.plane.store().compact(before).await
        {
            tracing::warn!(%error, "the store was not compacted");
        }
    }

    /// Sets right what a restore, or somebody who wrote past the count, left wrong (F-098).
    async fn recount(&mut self, office: &Office) {
        if self.recounted.elapsed() < RECOUNT_EVERY {
            return;
        }
        self.recounted = Instant::now();
        match recount(self.plane.store(), &office.fence()).await {
            Ok(found) => {
                for Recounted {
                    tenant,
                    before,
                    after,
                } in found
                {
                    tracing::warn!(%tenant, before, after, "open sessions were counted wrongly");
                }
            }
            Err(error) => tracing::warn!(%error, "open sessions were not counted anew"),
        }
    }

    /// Ends what nobody speaks for, and removes the records of what is long over.
    async fn sweep(&mut self, office: &Office) {
        if self.swept.elapsed() < SWEEP_EVERY {
            return;
        }
        self.swept = Instant::now();
        let shared = &self.plane.shared;
        let now = Now {
            wall: wall_clock(),
            monotonic: Monotonic::from_duration(shared.began.elapsed()),
        };
        let fence = office.fence();
        let is_alive = |holder: &Holder| self.plane.seems_alive(holder);
        let round = self
            .sweep
            .round(&*shared.store, &shared.counters, &fence, &is_alive, now);
        match round.await {
            Ok(swept) if swept.is_nothing() => {}
            Ok(swept) => tracing::info!(
                abandoned = swept.abandoned,
                sessions = swept.sessions,
                runtimes = swept.runtimes,
                "records of what is over were removed"
            ),
            Err(error) => tracing::warn!(%error, "records of what is over were not removed"),
        }
    }

    /// Has what is over removed from archives, beside all else: they may be slow (F-116).
    async fn expire(&mut self, office: &Office) {
        let settings = self.plane.settings();
        if settings.archives.is_empty() {
            return;
        }
        match &mut self.expiring {
            Expiring::Rests(told) if self.expired.elapsed() >= settings.expire_every => {
                let pass = self.plane.clone().expire(office.clone(), mem::take(told));
                self.expiring = Expiring::Goes(AbortOnDropHandle::new(tokio::spawn(pass)));
            }
            Expiring::Goes(pass) if pass.is_finished() => {
                let told = pass.await.unwrap_or_else(|error| {
                    tracing::error!(%error, "going through the archives ended in a fault");
                    Told::default()
                });
                self.expired = Instant::now();
                self.expiring = Expiring::Rests(told);
            }
            Expiring::Rests(_) | Expiring::Goes(_) => {}
        }
    }
}

impl Plane {
    async fn round(&self, office: &Office, memory: &mut Memory) -> Result<(), Failure> {
        self.leads(office);
        self.tell_ended_lives();
        self.light_fuses().await?;
        self.judge_regions(office, &mut memory.watch).await?;
        self.judge_outages(office, &mut memory.calm).await?;
        self.leave_regions().await?;
        self.account_drains(office).await
    }

    /// Notes which providers fail in which region, and which do no longer (F-112).
    async fn judge_outages(&self, office: &Office, calm: &mut Calm) -> Result<(), Failure> {
        let records = self.region_records();
        let before: BTreeMap<Region, Vec<Incident>> = records
            .into_iter()
            .map(|(region, record)| (region, record.incidents))
            .filter(|(_, incidents)| !incidents.is_empty())
            .collect();
        let now = outage::Now {
            wall: wall_clock(),
            monotonic: Monotonic::from_duration(self.shared.began.elapsed()),
        };
        let policy = self.governance().outages;
        let mut after = outage::judge(&self.sights(), &before, calm, &policy, now);
        for region in before.keys() {
            after.entry(region.clone()).or_default();
        }
        for (region, incidents) in after {
            let known = before.get(&region).map_or(&[][..], Vec::as_slice);
            if known == incidents {
                continue;
            }
            let key = keys::region(&region);
            let (record, entry) = self.read::<RegionRecord>(&key).await?;
            let record = RegionRecord {
                incidents: incidents.clone(),
                ..record.unwrap_or_default()
            };
            let is_among = |which: &Incident, all: &[Incident]| {
                let mut all = all.iter().map(|it| &it.outage);
                let it = &which.outage;
                all.any(|other| other.modality == it.modality && other.provider == it.provider)
            };
            let began = incidents.iter().filter(|it| !is_among(it, known));
            let ended = known.iter().filter(|it| !is_among(it, &incidents));
            let told = began
                .map(|it| ("provider_outage", it))
                .chain(ended.map(|it| ("provider_recovered", it)))
                .map(|(what, it)| {
                    let Outage {
                        modality,
                        provider,
                        alternate,
                    } = &it.outage;
                    let alternate = alternate.as_ref().map(tracing::field::display);
                    tracing::warn!(%region, what, modality = modality.as_str(), %provider, alternate, "providers of a region");
                    let detail = json!({ "outage": it.outage, "since_ms": it.since.0 });
                    Record::automatic(wall_clock(), what, region.as_str(), detail)
                });
            let told: Vec<_> = told.collect();
            let txn = Txn::default()
                .when(office.fence())
                .when(Compare::unchanged(&key, entry.as_ref()))
                .put(key, bytes(&record));
            let txn = if told.is_empty() {
                txn
            } else {
                self.with_audit(txn, told).await?
            };
            match self.store().commit(txn).await {
                Ok(_) => self.shared.tally.outages_changed(),
                // In the next round.
                Err(StoreError::Conflict | StoreError::Uncertain(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Who gave an order may have died before its time was counted.
    async fn light_fuses(&self) -> Result<(), Failure> {
        let unlit: Vec<SessionId> = {
            let placements = self.shared.placements.records();
            let is_unlit = |it: &&Placement| {
                matches!(
                    it.standing,
                    Standing::Revoking {
                        fuse: Fuse::Unlit,
                        ..
                    }
                )
            };
            let unlit = placements.values().filter(is_unlit).take(MOST);
            unlit.map(|it| it.session.clone()).collect()
        };
        for session in unlit {
            self.light(&session).await?;
        }
        Ok(())
    }

    /// Leaves regions that are ill, and takes back those that are well (F-096, F-112).
    async fn judge_regions(&self, office: &Office, watch: &mut Watch) -> Result<(), Failure> {
        let mut before = RegionDuties::default();
        for (region, record) in self.region_records() {
            let by = if record.by_operator {
                &mut before.decided
            } else {
                &mut before.judged
            };
            by.insert(region, record.duty);
        }
        let mut sights = self.sights();
        sights.retain(|it| {
            // One that has just joined is neither ill nor well before it says how it fares.
            it.presence != Presence::Alive || self.has_said(&it.runtime.holder.runtime)
        });
        let look = Look {
            at: Monotonic::from_duration(self.shared.began.elapsed()),
            age: self.fleet_age(),
            lease: self.settings().term.kept(),
        };
        let policy = self.governance().regions;
        let after = failover::judge_regions(&sights, &before, watch, &policy, look);
        for (region, duty) in after {
            let was = before.judged.get(&region).copied();
            let was = was.unwrap_or(RegionDuty::Serving);
            if duty == was {
                continue;
            }
            let key = keys::region(&region);
            let (record, entry) = self.read::<RegionRecord>(&key).await?;
            if record.as_ref().is_some_and(|record| record.by_operator) {
                // Somebody has decided meanwhile.
                continue;
            }
            let record = RegionRecord {
                duty,
                by_operator: false,
                ..record.unwrap_or_default()
            };
            let txn = Txn::default()
                .when(office.fence())
                .when(Compare::unchanged(&key, entry.as_ref()))
                .put(key, bytes(&record));
            let what = json!({ "from": was, "to": duty });
            let told = Record::automatic(wall_clock(), "region_judged", region.as_str(), what);
            let txn = self.with_audit(txn, vec![told]).await?;
            match self.store().commit(txn).await {
                Ok(_) => {
                    tracing::warn!(%region, duty = duty.as_str(), "the region's duty changed with its health");
                }
                // In the next round.
                Err(StoreError::Conflict | StoreError::Uncertain(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Moves sessions out of regions that are left with them (F-113).
    async fn leave_regions(&self) -> Result<(), Failure> {
        let leaves = |runtime: &RuntimeId| {
            let runtime = self.runtime(runtime)?;
            let key = keys::region(&runtime.description.region);
            match self.shared.regions.get(&key)?.duty {
                RegionDuty::Leaving(FailoverMode::Migrate) => Some(WhyRevoked::Region),
                RegionDuty::Leaving(FailoverMode::Drain) | RegionDuty::Serving => None,
            }
        };
        let records = self.region_records();
        let takes_new = |region: &Region| records.get(region).is_none_or(|it| it.duty.takes_new());
        let is_judged = |placement: &Placement| {
            let holder = placement.holder();
            let runtime = holder.and_then(|holder| self.runtime(&holder.runtime));
            let record = runtime.and_then(|it| records.get(&it.description.region));
            record.is_some_and(|it| !it.by_operator)
        };
        let residency = self.governance().residency;
        // Who may be nowhere else would only come back.
        let may_go = |placement: &&Placement| {
            residency.leaves_room(&placement.binding.tenant, takes_new) || !is_judged(placement)
        };
        let finish_within = self.settings().finish_within;
        let orders = {
            let placements = self.shared.placements.records();
            let mut orders = Vec::new();
            let movable = placements.values().filter(may_go);
            for (session, order) in failover::orders(movable, leaves, finish_within, MOST) {
                let placement = placements.get(&keys::placement(&session));
                if let Some(holder) = placement.and_then(Placement::holder) {
                    orders.push((session, order, holder.runtime.clone()));
                }
            }
            orders
        };
        for (session, order, from) in orders {
            match self.revoke(&session, &order, &from).await {
                Ok(()) => {
                    let what = json!({ "from": from, "why": order.why });
                    let record = Record::automatic(wall_clock(), "migrate", session.as_str(), what);
                    self.note(Note::happened(record));
                }
                // It has ended meanwhile.
                Err(Failure::Lease(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }
}
