//! Changes that people make: in one transaction with their audit entry and with the request's id, so
//! that repeating a request, for whatever reason, has one effect.

use std::time::Duration;

use prost::Message;
use rspp_controlplane::{
    ContentHash,
    access::Principal,
    admission::Decision,
    audit::Record,
    keys,
    store::{Compare, LeaseId, StoreError, Txn, bytes},
};
use rspp_controlplane_api::WireError;
use rspp_proto::{TenantId, abi::OutcomeKind};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    audit::Note,
    failure::Failure,
    plane::{Plane, wall_clock},
};

/// How often something is tried that others write to as well.
const MAX_TRIES: u32 = 24;
/// How long a request may be repeated.
const REMEMBERED: Duration = Duration::from_mins(15);
/// Longest request id.
const MAX_REQUEST_ID: usize = 128;

/// What is to be written, and what is answered once it is.
pub(crate) struct Decided<T> {
    pub(crate) txn: Txn,
    pub(crate) record: Record,
    pub(crate) answer: T,
}

/// What is to be written, and how it changes what a tenant uses (F-098).
pub(crate) enum Write {
    /// It does not.
    Plain(Txn),
    /// It opens a session of this line, if the tenant may have one more.
    Opens {
        txn: Txn,
        tenant: TenantId,
        line: String,
    },
    /// It ends a session.
    Closes { txn: Txn, tenant: TenantId },
}

impl From<Txn> for Write {
    fn from(txn: Txn) -> Self {
        Self::Plain(txn)
    }
}

/// Who asks for what, and by which name.
pub(crate) struct Asked<'a> {
    pub(crate) by: &'a Principal,
    pub(crate) operation: &'static str,
    pub(crate) subject: &'a str,
    pub(crate) id: &'a str,
    pub(crate) message: &'a [u8],
}

/// What became of a request.
#[derive(Serialize, Deserialize)]
struct Remembered {
    fingerprint: ContentHash,
    /// The answer's message, in its own encoding.
    answer: Vec<u8>,
}

/// Half of it is left to chance, so that those who were in each other's way are not again.
pub(crate) async fn wait_a_little(tries: u32) {
    let most = Duration::from_millis(2 << tries.min(6));
    tokio::time::sleep(rand::random_range(Duration::ZERO..=most)).await;
}

impl Plane {
    /// Decides and writes until nothing comes in between.
    pub(crate) async fn change<T, F>(
        &self,
        asked: Asked<'_>,
        mut decide: impl FnMut() -> F,
    ) -> Result<T, Failure>
    where
        T: Message + Default,
        F: Future<Output = Result<Decided<T>, Failure>>,
    {
        if asked.id.len() > MAX_REQUEST_ID {
            return Err(WireError::new("request_id", "is too long").into());
        }
        // Without a name a request can still be told from others for as long as it runs here.
        let own = format!("{:032x}", rand::random::<u128>());
        let id = if asked.id.is_empty() { &own } else { asked.id };
        let key = keys::request(asked.by.actor.as_str(), id);
        let mut named = asked.operation.as_bytes().to_vec();
        named.extend(asked.message);
        let fingerprint = ContentHash::of_bytes(&named);
        for tries in 0..MAX_TRIES {
            if tries > 0 {
                wait_a_little(tries).await;
            }
            let (before, _) = self.read::<Remembered>(&key).await?;
            if let Some(before) = before {
                if before.fingerprint != fingerprint {
                    return Err(Failure::RequestReused(asked.id.to_owned()));
                }
                return T::decode(&*before.answer)
                    .map_err(|error| StoreError::Corrupt(error.to_string()).into());
            }
            let decided = match decide().await {
                Ok(decided) => decided,
                Err(failure) => {
                    if failure.is_refusal() {
                        let what = serde_json::Value::Null;
                        let record = crate::audit::done(
                            wall_clock(),
                            asked.by,
                            asked.operation,
                            asked.subject,
                            what,
                        );
                        self.note(Note::refused(record, &failure));
                    }
                    return Err(failure);
                }
            };
            let remembered = Remembered {
                fingerprint: fingerprint.clone(),
                answer: decided.answer.encode_to_vec(),
            };
            let lease = self.requests_lease().await?;
            let txn = decided.txn.when(Compare::Absent(key.clone())).put_leased(
                key.clone(),
                bytes(&remembered),
                lease,
            );
            let txn = self.with_audit(txn, vec![decided.record]).await?;
            match self.store().commit(txn).await {
                Ok(_) => return Ok(decided.answer),
                // Whether it was done is seen by the request's own record.
                Err(StoreError::Conflict | StoreError::Uncertain(_)) => {}
                Err(StoreError::LeaseGone { .. }) => self.forget_requests_lease(),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Failure::Busy)
    }

    /// Counts tokens once, however often the request comes; leaves no audit entry.
    pub(crate) async fn spend_once(
        &self,
        by: &Principal,
        id: &str,
        tenant: &TenantId,
        tokens: u64,
    ) -> Result<(), Failure> {
        if id.len() > MAX_REQUEST_ID {
            return Err(WireError::new("request_id", "is too long").into());
        }
        // What is remembered of it is no answer: it has names of its own.
        let key = keys::request(by.actor.as_str(), &format!("counted.{id}"));
        for tries in 0..MAX_TRIES {
            if tries > 0 {
                wait_a_little(tries).await;
            }
            if self.store().get(&key).await?.is_some() {
                return Ok(());
            }
            let lease = self.requests_lease().await?;
            let txn = Txn::default()
                .when(Compare::Absent(key.clone()))
                .put_leased(key.clone(), "counted", lease);
            match self.counters().spend(tenant, tokens, txn).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict | StoreError::Uncertain(_)) => {}
                Err(StoreError::LeaseGone { .. }) => self.forget_requests_lease(),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Failure::Busy)
    }

    /// Decides and writes what is safe to repeat by itself, until nothing comes in between. An outcome
    /// that is not known is found out by deciding again.
    pub(crate) async fn settle<W, T, F>(&self, decide: impl FnMut() -> F) -> Result<T, Failure>
    where
        W: Into<Write>,
        F: Future<Output = Result<(Option<W>, T), Failure>>,
    {
        Ok(self.settle_counted(decide).await?.0)
    }

    /// The same; says too what was decided of a session that was opened.
    pub(crate) async fn settle_counted<W, T, F>(
        &self,
        mut decide: impl FnMut() -> F,
    ) -> Result<(T, Option<Decision>), Failure>
    where
        W: Into<Write>,
        F: Future<Output = Result<(Option<W>, T), Failure>>,
    {
        for tries in 0..MAX_TRIES {
            if tries > 0 {
                wait_a_little(tries).await;
            }
            let (write, answer) = decide().await?;
            let Some(write) = write else {
                return Ok((answer, None));
            };
            match self.write(write.into()).await {
                Ok(decision) => return Ok((answer, decision)),
                Err(Failure::Store(StoreError::Conflict | StoreError::Uncertain(_))) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Failure::Busy)
    }

    async fn write(&self, write: Write) -> Result<Option<Decision>, Failure> {
        match write {
            Write::Plain(txn) => {
                self.store().commit(txn).await?;
                Ok(None)
            }
            Write::Closes { txn, tenant } => {
                self.counters().close(&tenant, txn).await?;
                Ok(None)
            }
            Write::Opens { txn, tenant, line } => {
                let policy = std::sync::Arc::new(self.governance().admission);
                let opened = self.counters().open(policy, &tenant, &line, txn.clone());
                let opened = opened.await?;
                self.shared.tally.decided(&tenant, &opened.decision);
                if opened.decision.outcome != OutcomeKind::Admit {
                    return Err(Failure::NotAdmitted(Box::new(opened.decision)));
                }
                if opened.written.is_none() {
                    // It could not be counted, and the operator chose to let it in then.
                    self.store().commit(txn).await?;
                }
                Ok(Some(opened.decision))
            }
        }
    }

    /// A lease for what is remembered of requests; each serves for a third of its time.
    async fn requests_lease(&self) -> Result<LeaseId, Failure> {
        let known = *self.lock_requests_lease();
        if let Some((lease, since)) = known
            && since.elapsed() < REMEMBERED / 3
        {
            return Ok(lease);
        }
        let lease = self.store().grant(REMEMBERED).await?.id;
        *self.lock_requests_lease() = Some((lease, Instant::now()));
        Ok(lease)
    }

    fn forget_requests_lease(&self) {
        *self.lock_requests_lease() = None;
    }

    fn lock_requests_lease(&self) -> std::sync::MutexGuard<'_, Option<(LeaseId, Instant)>> {
        let lease = self.shared.requests_lease.lock();
        lease.expect("no code panics while locked")
    }
}
