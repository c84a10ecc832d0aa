//! What tenants use, counted by all replicas together (F-098).
//!
//! A tenant's usage is one record, written in the same transaction as the session that it counts: so no
//! two replicas let the last session in twice, and none is counted that was not placed. Many sessions of
//! one tenant at a time would be in each other's way at that record, so each replica writes those that
//! come together as one transaction. Whoever fails in company is tried again alone.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rspp_controlplane::{
    admission::{self, Decision, Policy, Usage},
    authority::{Placement, Standing},
    keys,
    store::{
        Compare, Entry, Key, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Revision, Store, StoreError, Txn,
        bytes, list_all, parse,
    },
};
use rspp_proto::{TenantId, WallClock, abi::OutcomeKind};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

/// Most that wait for one tenant's record; more are told to come again.
const MAX_WAITING: usize = 1_024;
/// Most tenants that somebody waits for.
const MAX_TENANTS: usize = 10_000;
/// How often it is tried anew after another replica wrote first.
const MAX_TRIES: u32 = 24;
/// Room for the usage record itself in a transaction.
const OWN_BYTES: usize = 4 * 1024;

/// Tells the wall clock: minutes are counted in it, and nothing else depends on it.
pub type WallClockNow = Arc<dyn Fn() -> WallClock + Send + Sync>;

/// What became of a session that was to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Whether it may be, and why.
    pub decision: Decision,
    /// At which revision it was written; `None` if it may not be, or could not be counted.
    pub written: Option<Revision>,
}

/// Counts for all tenants.
pub struct Counters {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

struct Shared {
    store: Arc<dyn Store>,
    now: WallClockNow,
    /// By tenant, while somebody waits or is served.
    lines: Mutex<BTreeMap<TenantId, VecDeque<Job>>>,
}

/// Something to be counted, and written with the count.
struct Job {
    what: What,
    txn: Txn,
    done: oneshot::Sender<Result<Told, StoreError>>,
}

enum What {
    Open { policy: Arc<Policy>, line: String },
    Close,
    Spend { tokens: u64 },
}

/// What a job is answered.
enum Told {
    Opened(Opened),
    Written(Revision),
}

impl Counters {
    /// Counts in this store.
    pub fn new(store: Arc<dyn Store>, now: WallClockNow) -> Self {
        let shared = Shared {
            store,
            now,
            lines: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            tasks: TaskTracker::new(),
        }
    }

    /// Writes `txn`, which places a session, and counts it, if the tenant may open one.
    /// [`StoreError::Conflict`] means that a condition of `txn` does not hold.
    pub async fn open(
        &self,
        policy: Arc<Policy>,
        tenant: &TenantId,
        line: &str,
        txn: Txn,
    ) -> Result<Opened, StoreError> {
        let what = What::Open {
            policy,
            line: line.to_owned(),
        };
        match self.ask(tenant, what, txn).await? {
            Told::Opened(opened) => Ok(opened),
            Told::Written(_) => unreachable!("who opens is told what was decided"),
        }
    }

    /// Writes `txn`, which ends a session, and counts it out.
    pub async fn close(&self, tenant: &TenantId, txn: Txn) -> Result<Revision, StoreError> {
        self.written(tenant, What::Close, txn).await
    }

    /// Counts tokens, and writes `txn`, which remembers that they were counted.
    pub async fn spend(
        &self,
        tenant: &TenantId,
        tokens: u64,
        txn: Txn,
    ) -> Result<Revision, StoreError> {
        self.written(tenant, What::Spend { tokens }, txn).await
    }

    /// Waits until all that was begun is answered.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn written(
        &self,
        tenant: &TenantId,
        what: What,
        txn: Txn,
    ) -> Result<Revision, StoreError> {
        match self.ask(tenant, what, txn).await? {
            Told::Written(revision) => Ok(revision),
            Told::Opened(_) => unreachable!("only who opens is told what was decided"),
        }
    }

    async fn ask(&self, tenant: &TenantId, what: What, txn: Txn) -> Result<Told, StoreError> {
        txn.validate()?;
        let (done, told) = oneshot::channel();
        let job = Job { what, txn, done };
        if self.shared.enqueue(tenant, job)? {
            let (shared, tenant) = (Arc::clone(&self.shared), tenant.clone());
            self.tasks.spawn(async move { shared.serve(&tenant).await });
        }
        told.await.unwrap_or_else(|_| {
            let why = "nobody counts any more".to_owned();
            Err(StoreError::Uncertain(why))
        })
    }
}

impl Shared {
    fn lines(&self) -> MutexGuard<'_, BTreeMap<TenantId, VecDeque<Job>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a job into its tenant's line; `true` if nobody serves that yet.
    fn enqueue(&self, tenant: &TenantId, job: Job) -> Result<bool, StoreError> {
        let busy = |what: &str| Err(StoreError::Unavailable(what.to_owned()));
        let mut lines = self.lines();
        if let Some(line) = lines.get_mut(tenant) {
            if line.len() >= MAX_WAITING {
                return busy("too many wait for this tenant to be counted");
            }
            line.push_back(job);
            return Ok(false);
        }
        if lines.len() >= MAX_TENANTS {
            return busy("too many tenants wait to be counted");
        }
        lines.insert(tenant.clone(), VecDeque::from([job]));
        Ok(true)
    }

    async fn serve(&self, tenant: &TenantId) {
        loop {
            let batch = {
                let mut lines = self.lines();
                let line = lines.get_mut(tenant).expect("it is served only here");
                let batch = take(line);
                if batch.is_empty() {
                    lines.remove(tenant);
                    return;
                }
                batch
            };
            for alone in self.write(tenant, batch).await {
                let left = self.write(tenant, vec![alone]).await;
                debug_assert!(left.is_empty(), "who is alone is answered");
            }
        }
    }

    /// Writes what comes together, and answers it. Returns those who have to be tried alone: one of
    /// them is in the way of the others.
    async fn write(&self, tenant: &TenantId, batch: Vec<Job>) -> Vec<Job> {
        let key = keys::usage(tenant);
        let mut seen: Option<Option<Revision>> = None;
        for tries in 0..MAX_TRIES {
            let (mut usage, entry) = match self.read(&key).await {
                Ok(read) => read,
                Err(error) => {
                    uncounted(batch, tenant, (self.now)(), &error);
                    return Vec::new();
                }
            };
            let stands = entry.as_ref().map(|entry| entry.modified);
            if seen == Some(stands) {
                // Nobody else counted, so it was a condition of one of these.
                if batch.len() > 1 {
                    return batch;
                }
                fail(batch, &StoreError::Conflict);
                return Vec::new();
            }
            seen = Some(stands);
            if tries > 0 {
                // Half of it is left to chance, so that replicas do not meet again.
                let most = Duration::from_millis(2 << tries.min(6));
                tokio::time::sleep(rand::random_range(Duration::ZERO..=most)).await;
            }
            let verdicts = count(&mut usage, &batch, tenant, (self.now)());
            let written: Vec<_> = batch
                .iter()
                .zip(&verdicts)
                .filter_map(|(job, verdict)| match verdict {
                    Verdict::Write(_) => Some(&job.txn),
                    Verdict::Deny(_) => None,
                })
                .collect();
            if written.is_empty() {
                answer(batch, verdicts, entry.map_or(Revision(0), |it| it.modified));
                return Vec::new();
            }
            let txn = merged(&written)
                .when(Compare::unchanged(&key, entry.as_ref()))
                .put(key.clone(), bytes(&usage));
            match self.store.commit(txn).await {
                // Who was denied stood behind those who were written, so is answered with them.
                Ok(revision) => {
                    answer(batch, verdicts, revision);
                    return Vec::new();
                }
                Err(StoreError::Conflict) => {}
                Err(StoreError::LeaseGone { .. }) if batch.len() > 1 => return batch,
                Err(error) => {
                    fail(batch, &error);
                    return Vec::new();
                }
            }
        }
        let why = "other replicas count for this tenant all the time".to_owned();
        fail(batch, &StoreError::Unavailable(why));
        Vec::new()
    }

    async fn read(&self, key: &Key) -> Result<(Usage, Option<Entry>), StoreError> {
        let entry = self.store.get(key).await?;
        let usage = entry.as_ref().map(parse).transpose()?;
        Ok((usage.unwrap_or_default(), entry))
    }
}

/// As many from the front of the line as fit into one transaction.
fn take(line: &mut VecDeque<Job>) -> Vec<Job> {
    let mut batch = Vec::new();
    let (mut whens, mut thens, mut size) = (1, 1, OWN_BYTES);
    let mut written = BTreeSet::new();
    while let Some(job) = line.front() {
        let txn = &job.txn;
        let mut is_plain = true;
        let mut bytes = 0;
        for op in &txn.then {
            match op {
                Op::Put { key, value, .. } => {
                    is_plain &= !written.contains(key);
                    bytes += key.as_str().len() + value.len();
                }
                Op::Delete(key) => is_plain &= !written.contains(key),
                // Nobody looks into what it deletes.
                Op::DeleteAll(_) => is_plain = false,
            }
        }
        let fits = whens + txn.when.len() <= MAX_TXN_OPS
            && thens + txn.then.len() <= MAX_TXN_OPS
            && size + bytes <= MAX_TXN_BYTES
            && is_plain;
        if !fits && !batch.is_empty() {
            break;
        }
        whens += txn.when.len();
        thens += txn.then.len();
        size += bytes;
        written.extend(txn.then.iter().filter_map(|op| match op {
            Op::Put { key, .. } | Op::Delete(key) => Some(key.clone()),
            Op::DeleteAll(_) => None,
        }));
        batch.extend(line.pop_front());
        if !fits {
            break;
        }
    }
    batch
}

/// What becomes of a job.
enum Verdict {
    /// It is written; of one that opens, what was decided.
    Write(Option<Decision>),
    /// It may not open.
    Deny(Decision),
}

/// Counts one after the other.
fn count(usage: &mut Usage, batch: &[Job], tenant: &TenantId, now: WallClock) -> Vec<Verdict> {
    let verdict = |job: &Job| match &job.what {
        What::Open { policy, line } => {
            let decision = admission::admit(policy, tenant, line, Some(usage), now);
            if decision.outcome == OutcomeKind::Admit {
                usage.open(now);
                Verdict::Write(Some(decision))
            } else {
                Verdict::Deny(decision)
            }
        }
        What::Close => {
            usage.close();
            Verdict::Write(None)
        }
        What::Spend { tokens } => {
            usage.spend(now, *tokens);
            Verdict::Write(None)
        }
    };
    batch.iter().map(verdict).collect()
}

fn merged(txns: &[&Txn]) -> Txn {
    let mut merged = Txn::default();
    for txn in txns {
        merged.when.extend(txn.when.iter().cloned());
        merged.then.extend(txn.then.iter().cloned());
    }
    merged
}

// Whoever does not listen any more has given up, and will read what became of it.

fn answer(batch: Vec<Job>, verdicts: Vec<Verdict>, revision: Revision) {
    for (job, verdict) in batch.into_iter().zip(verdicts) {
        let told = match verdict {
            Verdict::Write(Some(decision)) => Told::Opened(Opened {
                decision,
                written: Some(revision),
            }),
            Verdict::Write(None) => Told::Written(revision),
            Verdict::Deny(decision) => Told::Opened(Opened {
                decision,
                written: None,
            }),
        };
        let _ = job.done.send(Ok(told));
    }
}

fn fail(batch: Vec<Job>, error: &StoreError) {
    for job in batch {
        let _ = job.done.send(Err(error.clone()));
    }
}

/// What is decided when nothing can be counted is the operator's choice, and on the record.
fn uncounted(batch: Vec<Job>, tenant: &TenantId, now: WallClock, error: &StoreError) {
    for job in batch {
        let told = match &job.what {
            What::Open { policy, line } => Ok(Told::Opened(Opened {
                decision: admission::admit(policy, tenant, line, None, now),
                written: None,
            })),
            What::Close | What::Spend { .. } => Err(error.clone()),
        };
        let _ = job.done.send(told);
    }
}

/// A count that was not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recounted {
    /// Whose.
    pub tenant: TenantId,
    /// What was counted as open.
    pub before: u64,
    /// What is.
    pub after: u64,
}

/// Sets right what is counted as open, by the sessions there are: after a restore, or when somebody
/// wrote past the count. A duty of the leader's; `fence` keeps a deposed one from it. A tenant that
/// somebody counts for meanwhile is left for the next time.
pub async fn recount(store: &dyn Store, fence: &Compare) -> Result<Vec<Recounted>, StoreError> {
    let mut open = BTreeMap::<TenantId, u64>::new();
    let placements = list_all(store, &keys::placements(), None).await?;
    for entry in placements.records.values() {
        let placement: Placement = parse(entry)?;
        match placement.standing {
            Standing::Ended { .. } => {}
            Standing::Held { .. } | Standing::Revoking { .. } | Standing::Vacant { .. } => {
                *open.entry(placement.binding.tenant).or_default() += 1;
            }
        }
    }
    let usages = list_all(store, &keys::usages(), Some(placements.revision)).await?;
    let mut seen = BTreeMap::new();
    for entry in usages.records.into_values() {
        let tenant = TenantId::new(entry.key.last())
            .map_err(|error| StoreError::Corrupt(format!("{}: {error}", entry.key)))?;
        open.entry(tenant.clone()).or_default();
        seen.insert(tenant, entry);
    }
    let mut recounted = Vec::new();
    for (tenant, after) in open {
        let entry = seen.get(&tenant);
        let usage: Usage = entry.map(parse).transpose()?.unwrap_or_default();
        if usage.open == after {
            continue;
        }
        let key = keys::usage(&tenant);
        let right = Usage {
            open: after,
            ..usage
        };
        // The sessions were listed as of the same moment, and none comes or goes without its count.
        let txn = Txn::default()
            .when(fence.clone())
            .when(Compare::unchanged(&key, entry))
            .put(key, bytes(&right));
        match store.commit(txn).await {
            Ok(_) => recounted.push(Recounted {
                tenant,
                before: usage.open,
                after,
            }),
            Err(StoreError::Conflict) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(recounted)
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counters")
            .field("tenants_waiting", &self.shared.lines().len())
            .finish_non_exhaustive()
    }
}
