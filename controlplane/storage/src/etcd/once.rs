//! Writes each transaction once, and learns what became of it when the answer is lost.
//!
//! A transaction that timed out may have been done, may still be under way, or may never happen; its own
//! records do not tell, because somebody else may have written the same. So each transaction also writes
//! a *receipt*: a record that nobody else writes, under the condition that it stands where it stood. Who
//! gets no answer writes the receipt once more under the same condition. If that succeeds, the
//! transaction has not been done and never will be, for its condition cannot hold any more, and it is
//! sent again. If it fails, the receipt that is found says whether it was the transaction's.
//!
//! Receipts hang on a lease, so a client that goes leaves nothing behind.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rspp_controlplane::store::{Revision, StoreError, Txn};
use tokio::{sync::Semaphore, time::Instant};
use tonic::Code;

use super::{
    client::{Client, Fate, fate},
    lease, pb, wire,
};

/// Most transactions under way at a time; others wait. Each has a receipt of its own.
const SLOTS: usize = 128;
/// How long receipts outlast their client.
const LEASE_SECONDS: i64 = 120;
/// How often the lease is renewed, by whoever writes then.
const RENEW_AFTER: Duration = Duration::from_secs(30);

/// Where receipts lie: outside of everything that is listed, watched or backed up.
const PLACE: &str = "rspp-receipts";

/// The receipts of one client.
pub(super) struct Receipts {
    free: Mutex<Vec<Slot>>,
    room: Semaphore,
    lease: tokio::sync::Mutex<Option<Lease>>,
    written: AtomicU64,
}

/// A receipt's place.
struct Slot {
    key: Bytes,
    at: At,
}

/// Where a receipt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// At this revision; 0: there is none.
    Known(i64),
    /// Whoever had it last did not learn it.
    Unknown,
}

#[derive(Clone, Copy)]
struct Lease {
    id: i64,
    renewed: Instant,
}

/// A slot while it is used; goes back whatever happens, even if nobody waits for the answer any more.
struct Taken<'a> {
    slot: Option<Slot>,
    receipts: &'a Receipts,
}

impl Taken<'_> {
    fn slot(&mut self) -> &mut Slot {
        self.slot.as_mut().expect("it is taken away only by drop")
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            let free = &self.receipts.free;
            free.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(slot);
        }
    }
}

impl Receipts {
    pub(super) fn new() -> Self {
        let client: u128 = rand::random();
        let slot = |number| Slot {
            key: format!("{PLACE}/{client:032x}/{number:03}").into(),
            at: At::Known(0),
        };
        Self {
            // The last one is taken first: few writers use few slots.
            free: Mutex::new((0..SLOTS).rev().map(slot).collect()),
            room: Semaphore::new(SLOTS),
            lease: tokio::sync::Mutex::new(None),
            written: AtomicU64::new(0),
        }
    }

    /// Writes a transaction, once. Says [`StoreError::Uncertain`] only if nobody answered for long
    /// enough after it was sent.
    pub(super) async fn commit(&self, client: &Client, txn: Txn) -> Result<Revision, StoreError> {
        let _permit = self
            .room
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let slot = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut taken = Taken {
            slot,
            receipts: self,
        };
        let leases = wire::leases(&txn);
        let txn = wire::txn(txn);
        let mut patience = client.patience();
        loop {
            let lease = self.lease(client).await?;
            let slot = taken.slot();
            let at = match slot.at {
                At::Known(at) => at,
                At::Unknown => read(client, &slot.key).await?,
            };
            slot.at = At::Unknown;
            let receipt = self.next();
            let request = with_receipt(&txn, slot, at, lease, &receipt);
            let send =
                |member: super::client::Member| async move { member.kv().txn(request).await };
            let failed = match client.attempt(send).await {
                Ok(answer) if answer.succeeded => {
                    let revision = wire::revision(answer.header.as_ref());
                    slot.at = At::Known(wire::number(revision));
                    return Ok(revision);
                }
                Ok(answer) => {
                    let stands = found(&answer).map_or(0, |found| found.mod_revision);
                    slot.at = At::Known(stands);
                    if stands == at {
                        return Err(StoreError::Conflict);
                    }
                    // It was moved by a transaction that nobody waited for, or is gone with its lease.
                    StoreError::Unavailable("its receipt stood elsewhere".to_owned())
                }
                Err(status) => match fate(&status) {
                    Fate::NotDone => {
                        slot.at = At::Known(at);
                        wire::not_done(&status)
                    }
                    Fate::Refused => {
                        slot.at = At::Known(at);
                        if status.code() != Code::NotFound {
                            return Err(wire::not_done(&status));
                        }
                        if let Some(gone) = first_gone(client, &leases).await? {
                            return Err(StoreError::LeaseGone { lease: gone });
                        }
                        // Then it is the lease that receipts hang on.
                        self.forget_lease(lease).await;
                        wire::not_done(&status)
                    }
                    Fate::Unknown => match self.resolve(client, slot, at, lease, &receipt).await? {
                        Some(revision) => return Ok(revision),
                        None => wire::not_done(&status),
                    },
                },
            };
            if !patience.pause().await {
                return Err(failed);
            }
        }
    }

    /// Finds out what became of a transaction, and sees to it that it stays so: at which revision it was
    /// done, or `None` if it never will be.
    async fn resolve(
        &self,
        client: &Client,
        slot: &mut Slot,
        at: i64,
        lease: i64,
        receipt: &Bytes,
    ) -> Result<Option<Revision>, StoreError> {
        let nothing = pb::TxnRequest::default();
        let fence = with_receipt(&nothing, slot, at, lease, &self.next());
        let send = |member: super::client::Member| {
            let fence = fence.clone();
            async move { member.kv().txn(fence).await }
        };
        let uncertain = |what: &str| StoreError::Uncertain(what.to_owned());
        // Fencing twice does no harm.
        let answer = client.call(send).await;
        let answer = answer.map_err(|status| uncertain(&wire::text(&status)))?;
        if answer.succeeded {
            slot.at = At::Known(wire::number(wire::revision(answer.header.as_ref())));
            return Ok(None);
        }
        let found = found(&answer).ok_or_else(|| uncertain("its receipt is gone"))?;
        slot.at = At::Known(found.mod_revision);
        // If it is not the transaction's, somebody moved it before: the fence, whose own answer was
        // lost, or a transaction that nobody waited for.
        Ok((found.value == receipt).then_some(Revision(found.mod_revision.max(0) as u64)))
    }

    /// No two receipts of a client are alike.
    fn next(&self) -> Bytes {
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        Bytes::copy_from_slice(&number.to_be_bytes())
    }

    async fn lease(&self, client: &Client) -> Result<i64, StoreError> {
        let mut lease = self.lease.lock().await;
        if let Some(held) = *lease {
            if held.renewed.elapsed() < RENEW_AFTER {
                return Ok(held.id);
            }
            let renewed = Instant::now();
            match lease::keep_alive(client, held.id).await {
                Ok(Some(_)) => {
                    *lease = Some(Lease { renewed, ..held });
                    return Ok(held.id);
                }
                Ok(None) => {}
                // What is to be written will show whether anybody answers; there is time yet.
                Err(_) => return Ok(held.id),
            }
        }
        let renewed = Instant::now();
        let granted = lease::grant(client, LEASE_SECONDS).await?;
        *lease = Some(Lease {
            id: granted.id,
            renewed,
        });
        Ok(granted.id)
    }

    async fn forget_lease(&self, id: i64) {
        let mut lease = self.lease.lock().await;
        if lease.is_some_and(|lease| lease.id == id) {
            *lease = None;
        }
    }
}

/// The first of these leases that has ended.
async fn first_gone(
    client: &Client,
    leases: &[rspp_controlplane::store::LeaseId],
) -> Result<Option<rspp_controlplane::store::LeaseId>, StoreError> {
    for lease in leases {
        if lease::left(client, wire::lease_number(*lease))
            .await?
            .is_none()
        {
            return Ok(Some(*lease));
        }
    }
    Ok(None)
}

/// Where the receipt stands; 0 if there is none.
async fn read(client: &Client, key: &Bytes) -> Result<i64, StoreError> {
    let send = |member: super::client::Member| {
        let request = read_request(key);
        async move { member.kv().range(request).await }
    };
    let answer = client.call(send).await;
    let answer = answer.map_err(|status| wire::not_done(&status))?;
    Ok(answer.kvs.first().map_or(0, |kv| kv.mod_revision))
}

fn read_request(key: &Bytes) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.clone(),
        ..pb::RangeRequest::default()
    }
}

fn with_receipt(
    txn: &pb::TxnRequest,
    slot: &Slot,
    at: i64,
    lease: i64,
    receipt: &Bytes,
) -> pb::TxnRequest {
    use pb::request_op::Request;
    let op = |request| pb::RequestOp {
        request: Some(request),
    };
    let is_new = at == 0;
    let mut txn = txn.clone();
    txn.compare.push(wire::stands_at(slot.key.clone(), at));
    txn.success.push(op(Request::RequestPut(pb::PutRequest {
        key: slot.key.clone(),
        value: receipt.clone(),
        lease: if is_new { lease } else { 0 },
        ignore_lease: !is_new,
    })));
    txn.failure
        .push(op(Request::RequestRange(read_request(&slot.key))));
    txn
}

/// The receipt that a refused transaction found.
fn found(answer: &pb::TxnResponse) -> Option<&pb::KeyValue> {
    answer.responses.iter().find_map(|response| {
        let pb::response_op::Response::ResponseRange(range) = response.response.as_ref()?;
        range.kvs.first()
    })
}
