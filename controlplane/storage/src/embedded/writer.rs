//! The thread that writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, mpsc},
    time::Duration,
};

use redb::Database;
use rspp_controlplane::store::{
    Batch, Change, Compare, Granted, LeaseId, Op, Revision, StoreError, Txn,
};
use tokio::{sync::oneshot, time::Instant};

use super::{corrupt, tables::Tables, watch::Watchers};

/// Most requests that share one sync.
const MAX_GROUP: usize = 128;
/// How many revisions are kept for watchers and listings that began earlier.
const KEEP_REVISIONS: u64 = 20_000;
/// How often is looked whether there are more.
const COMPACT_EVERY: u64 = 2_000;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked for.
pub(super) enum Request {
    Commit {
        txn: Txn,
        reply: Reply<Revision>,
    },
    Grant {
        ttl: Duration,
        reply: Reply<Granted>,
    },
    KeepAlive {
        lease: LeaseId,
        reply: Reply<Duration>,
    },
    Revoke {
        lease: LeaseId,
        reply: Reply<()>,
    },
    Compact {
        before: Revision,
        reply: Reply<()>,
    },
}

/// An answer that waits for the sync.
enum Answer {
    Committed(Reply<Revision>, Result<Revision, StoreError>),
    Granted(Reply<Granted>, Result<Granted, StoreError>),
    Kept(Reply<Duration>, Result<Duration, StoreError>),
    Done(Reply<()>, Result<(), StoreError>),
}

impl Answer {
    /// Tells; `failed` if nothing of the group is on the disk. Whoever does not listen any more has
    /// given up, and will read what became of it.
    fn tell(self, failed: Option<&StoreError>) {
        fn send<T>(reply: Reply<T>, result: Result<T, StoreError>, failed: Option<&StoreError>) {
            let result = match failed {
                Some(error) => result.and(Err(error.clone())),
                None => result,
            };
            let _ = reply.send(result);
        }
        match self {
            Self::Committed(reply, result) => send(reply, result, failed),
            Self::Granted(reply, result) => send(reply, result, failed),
            Self::Kept(reply, result) => send(reply, result, failed),
            Self::Done(reply, result) => send(reply, result, failed),
        }
    }
}

/// A lease as this process counts it.
#[derive(Clone, Copy)]
struct Running {
    ttl: Duration,
    ends: Instant,
}

pub(super) struct Writer {
    database: Arc<Database>,
    watchers: Arc<Watchers>,
    leases: BTreeMap<LeaseId, Running>,
    /// The same by when they end.
    ends: BTreeSet<(Instant, LeaseId)>,
    compacted: Revision,
}

impl Writer {
    pub(super) fn new(
        database: Arc<Database>,
        watchers: Arc<Watchers>,
    ) -> Result<Self, StoreError> {
        let mut writer = Self {
            database,
            watchers,
            leases: BTreeMap::new(),
            ends: BTreeSet::new(),
            compacted: Revision(0),
        };
        let write = writer.database.begin_write().map_err(corrupt)?;
        let (leases, oldest) = {
            let tables = Tables::open(&write)?;
            (tables.leases()?, tables.oldest()?)
        };
        drop(write);
        writer.compacted = oldest;
        for (lease, ttl) in leases {
            writer.begin(lease, Duration::from_millis(ttl));
        }
        Ok(writer)
    }

    /// Serves until nobody can ask any more.
    pub(super) fn run(mut self, requests: &mpsc::Receiver<Request>) {
        loop {
            let first = match self.ends.first() {
                Some((ends, _)) => {
                    let wait = ends.saturating_duration_since(Instant::now());
                    match requests.recv_timeout(wait) {
                        Ok(request) => Some(request),
                        Err(mpsc::RecvTimeoutError::Timeout) => None,
                        Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    }
                }
                None => match requests.recv() {
                    Ok(request) => Some(request),
                    Err(mpsc::RecvError) => return,
                },
            };
            let more = std::iter::from_fn(|| requests.try_recv().ok());
            let group: Vec<_> = first.into_iter().chain(more.take(MAX_GROUP - 1)).collect();
            self.serve(group);
        }
    }

    fn begin(&mut self, lease: LeaseId, ttl: Duration) {
        let ends = Instant::now() + ttl;
        if let Some(before) = self.leases.insert(lease, Running { ttl, ends }) {
            self.ends.remove(&(before.ends, lease));
        }
        self.ends.insert((ends, lease));
    }

    fn end(&mut self, lease: LeaseId) {
        if let Some(before) = self.leases.remove(&lease) {
            self.ends.remove(&(before.ends, lease));
        }
    }

    fn serve(&mut self, group: Vec<Request>) {
        let mut answers = Vec::with_capacity(group.len());
        let mut batches = Vec::new();
        let mut begun = Vec::new();
        let mut ended = Vec::new();
        let outcome = self.write(group, &mut answers, &mut batches, &mut begun, &mut ended);
        if outcome.is_ok() {
            for (lease, ttl) in begun {
                self.begin(lease, ttl);
            }
            for lease in ended {
                self.end(lease);
            }
            self.watchers.publish(&batches);
        } else {
            // What was to end is looked at again soon, not at once: the disk may be full.
            let later = Instant::now() + Duration::from_secs(1);
            for lease in ended {
                if let Some(running) = self.leases.get_mut(&lease) {
                    self.ends.remove(&(running.ends, lease));
                    running.ends = later;
                    self.ends.insert((later, lease));
                }
            }
        }
        if let Err(error) = &outcome {
            tracing::error!(%error, "the store could not be written");
        }
        for answer in answers {
            answer.tell(outcome.as_ref().err());
        }
    }

    /// Applies all in one transaction of the file. On an error nothing of it is there.
    fn write(
        &mut self,
        group: Vec<Request>,
        answers: &mut Vec<Answer>,
        batches: &mut Vec<Batch>,
        begun: &mut Vec<(LeaseId, Duration)>,
        ended: &mut Vec<LeaseId>,
    ) -> Result<(), StoreError> {
        let now = Instant::now();
        let over = self.ends.iter().take_while(|(ends, _)| *ends <= now);
        let over: Vec<_> = over.map(|(_, lease)| *lease).collect();
        // Renewals alone change nothing on the disk; a fleet's heartbeats cost no sync.
        let only_renewals = over.is_empty()
            && group
                .iter()
                .all(|request| matches!(request, Request::KeepAlive { .. }));
        if only_renewals {
            for request in group {
                if let Request::KeepAlive { lease, reply } = request {
                    answers.push(Answer::Kept(reply, self.keep_alive(lease)));
                }
            }
            return Ok(());
        }
        let database = Arc::clone(&self.database);
        (|| {
            let write = database.begin_write().map_err(corrupt)?;
            let mut compacted = self.compacted;
            {
                let mut tables = Tables::open(&write)?;
                for lease in over {
                    ended.push(lease);
                    end_lease(&mut tables, lease, batches)?;
                }
                for request in group {
                    match request {
                        Request::Commit { txn, reply } => match apply(&mut tables, txn, batches) {
                            Ok(revision) => {
                                answers.push(Answer::Committed(reply, Ok(revision)));
                            }
                            Err(Failure::Refused(error)) => {
                                answers.push(Answer::Committed(reply, Err(error)));
                            }
                            Err(Failure::Broken(error)) => {
                                answers.push(Answer::Committed(reply, Err(error.clone())));
                                return Err(error);
                            }
                        },
                        Request::Grant { ttl, reply } => {
                            let id = tables.grant(ttl.as_millis() as u64)?;
                            begun.push((id, ttl));
                            answers.push(Answer::Granted(reply, Ok(Granted { id, ttl })));
                        }
                        Request::KeepAlive { lease, reply } => {
                            let is_over = ended.contains(&lease);
                            let ttl = match self.leases.get(&lease) {
                                Some(running) if !is_over => Some(running.ttl),
                                Some(_) | None => begun
                                    .iter()
                                    .find(|(id, _)| *id == lease && !is_over)
                                    .map(|(_, ttl)| *ttl),
                            };
                            let kept = ttl.ok_or(StoreError::LeaseGone { lease });
                            if let Ok(ttl) = &kept {
                                begun.push((lease, *ttl));
                            }
                            answers.push(Answer::Kept(reply, kept));
                        }
                        Request::Revoke { lease, reply } => {
                            if tables.has_lease(lease)? {
                                ended.push(lease);
                                end_lease(&mut tables, lease, batches)?;
                                answers.push(Answer::Done(reply, Ok(())));
                            } else {
                                let gone = Err(StoreError::LeaseGone { lease });
                                answers.push(Answer::Done(reply, gone));
                            }
                        }
                        Request::Compact { before, reply } => {
                            let done = tables.compact(before);
                            if done.is_ok() {
                                compacted = compacted.max(before);
                            }
                            answers.push(Answer::Done(reply, done));
                        }
                    }
                }
                let revision = tables.revision()?;
                if revision.0 >= compacted.0 + KEEP_REVISIONS + COMPACT_EVERY {
                    compacted = Revision(revision.0 - KEEP_REVISIONS);
                    tables.compact(compacted)?;
                }
            }
            write.commit().map_err(corrupt)?;
            self.compacted = compacted;
            Ok(())
        })()
    }

    fn keep_alive(&mut self, lease: LeaseId) -> Result<Duration, StoreError> {
        match self.leases.get(&lease) {
            Some(running) => {
                let ttl = running.ttl;
                self.begin(lease, ttl);
                Ok(ttl)
            }
            None => Err(StoreError::LeaseGone { lease }),
        }
    }
}

fn end_lease(
    tables: &mut Tables<'_>,
    lease: LeaseId,
    batches: &mut Vec<Batch>,
) -> Result<(), StoreError> {
    let keys = tables.end_lease(lease)?;
    let (revision, changes) = tables.write(keys.into_iter().map(|key| (key, None)).collect())?;
    note(batches, revision, changes);
    Ok(())
}

fn note(batches: &mut Vec<Batch>, revision: Revision, changes: Vec<Change>) {
    if !changes.is_empty() {
        batches.push(Batch { revision, changes });
    }
}

enum Failure {
    /// A condition does not hold; nothing was written.
    Refused(StoreError),
    /// The file cannot be read or written.
    Broken(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Broken(error)
    }
}

fn apply(tables: &mut Tables<'_>, txn: Txn, batches: &mut Vec<Batch>) -> Result<Revision, Failure> {
    for compare in &txn.when {
        let found = tables.get(compare.key())?;
        let holds = match compare {
            Compare::Absent(_) => found.is_none(),
            Compare::Exists(_) => found.is_some(),
            Compare::At(_, revision) => found.is_some_and(|entry| entry.modified == *revision),
        };
        if !holds {
            return Err(Failure::Refused(StoreError::Conflict));
        }
    }
    let mut changes = Vec::with_capacity(txn.then.len());
    for op in txn.then {
        match op {
            Op::Put { key, value, lease } => {
                if let Some(lease) = lease
                    && !tables.has_lease(lease)?
                {
                    return Err(Failure::Refused(StoreError::LeaseGone { lease }));
                }
                changes.push((key, Some((value, lease))));
            }
            Op::Delete(key) => changes.push((key, None)),
            Op::DeleteAll(prefix) => {
                changes.extend(tables.keys(&prefix)?.into_iter().map(|key| (key, None)));
            }
        }
    }
    let (revision, changes) = tables.write(changes)?;
    note(batches, revision, changes);
    Ok(revision)
}
