//! The store's values as etcd writes them, and back.

use std::num::NonZeroU64;

use bytes::Bytes;
use rspp_controlplane::store::{
    Batch, Change, Compare, Entry, Key, LeaseId, Op, Prefix, Revision, StoreError, Txn,
};
use tonic::{Code, Status};

use super::{
    client::{Fate, fate},
    pb,
};

pub(super) fn revision(header: Option<&pb::ResponseHeader>) -> Revision {
    Revision(header.map_or(0, |header| header.revision.max(0) as u64))
}

pub(super) fn number(revision: Revision) -> i64 {
    revision.0.cast_signed()
}

pub(super) fn lease_number(lease: LeaseId) -> i64 {
    lease.0.get().cast_signed()
}

pub(super) fn key(key: &Key) -> Bytes {
    Bytes::copy_from_slice(key.as_str().as_bytes())
}

pub(super) fn begin(prefix: &Prefix) -> Bytes {
    Bytes::copy_from_slice(prefix.as_str().as_bytes())
}

/// The first key behind all that begin so.
pub(super) fn behind(prefix: &Prefix) -> Bytes {
    let mut end = prefix.as_str().as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end.into();
        }
    }
    // To etcd, everything.
    Bytes::from_static(&[0])
}

pub(super) fn entry(kv: pb::KeyValue) -> Result<Entry, StoreError> {
    let key = std::str::from_utf8(&kv.key);
    let key = key.map_err(|_| StoreError::Corrupt("a key is no text".to_owned()))?;
    Ok(Entry {
        key: Key::stored(key),
        value: kv.value,
        created: Revision(kv.create_revision.max(0) as u64),
        modified: Revision(kv.mod_revision.max(0) as u64),
        lease: NonZeroU64::new(kv.lease as u64).map(LeaseId),
    })
}

/// Holds while a record stands at a revision; 0: while there is none.
pub(super) fn stands_at(key: Bytes, revision: i64) -> pb::Compare {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    pb::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key,
        target_union: Some(TargetUnion::ModRevision(revision)),
    }
}

fn compare(compare: &Compare) -> pb::Compare {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    match compare {
        Compare::Absent(absent) => stands_at(key(absent), 0),
        Compare::At(at, revision) => stands_at(key(at), number(*revision)),
        Compare::Exists(exists) => pb::Compare {
            result: CompareResult::Greater.into(),
            target: CompareTarget::Create.into(),
            key: key(exists),
            target_union: Some(TargetUnion::CreateRevision(0)),
        },
    }
}

fn operation(op: Op) -> pb::RequestOp {
    use pb::request_op::Request;
    let request = match op {
        Op::Put {
            key: written,
            value,
            lease,
        } => Request::RequestPut(pb::PutRequest {
            key: key(&written),
            value,
            lease: lease.map_or(0, lease_number),
            ignore_lease: false,
        }),
        Op::Delete(deleted) => Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key: key(&deleted),
            range_end: Bytes::new(),
        }),
        Op::DeleteAll(prefix) => Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key: begin(&prefix),
            range_end: behind(&prefix),
        }),
    };
    pb::RequestOp {
        request: Some(request),
    }
}

pub(super) fn txn(txn: Txn) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: txn.when.iter().map(compare).collect(),
        success: txn.then.into_iter().map(operation).collect(),
        failure: Vec::new(),
    }
}

/// The leases that a transaction hangs records on, each once.
pub(super) fn leases(txn: &Txn) -> Vec<LeaseId> {
    let mut leases: Vec<_> = txn
        .then
        .iter()
        .filter_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete(_) | Op::DeleteAll(_) => None,
        })
        .collect();
    leases.sort_unstable();
    leases.dedup();
    leases
}

/// Takes events apart into one batch a revision.
pub(super) fn by_revision(events: Vec<pb::Event>) -> Result<Vec<Batch>, StoreError> {
    let mut batches = Vec::<Batch>::new();
    for event in events {
        let is_put = event.r#type() == pb::event::EventType::Put;
        let entry = entry(event.kv.unwrap_or_default())?;
        let revision = entry.modified;
        let change = if is_put {
            Change::Put(entry)
        } else {
            Change::Deleted(entry.key)
        };
        match batches.last_mut() {
            Some(batch) if batch.revision == revision => batch.changes.push(change),
            Some(_) | None => batches.push(Batch {
                revision,
                changes: vec![change],
            }),
        }
    }
    Ok(batches)
}

pub(super) fn text(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// Nothing was written.
pub(super) fn not_done(status: &Status) -> StoreError {
    StoreError::Unavailable(text(status))
}

/// Whatever its fate is.
pub(super) fn failed(status: &Status) -> StoreError {
    match fate(status) {
        Fate::NotDone | Fate::Refused => not_done(status),
        Fate::Unknown => StoreError::Uncertain(text(status)),
    }
}

pub(super) fn is_compacted(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("compacted")
}

pub(super) fn is_future(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("future revision")
}

pub(super) fn is_too_large(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("too large")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_a_prefix_is_behind_all_that_begins_so() {
        let below = Key::of(["a", "b"]).below();
        assert_eq!(behind(&below), "/a/b0");
        assert_eq!(behind(&Prefix::all()), "0");
    }

    #[test]
    fn events_of_one_revision_are_one_batch() {
        let event = |revision, name: &str| pb::Event {
            r#type: 0,
            kv: Some(pb::KeyValue {
                key: Bytes::copy_from_slice(name.as_bytes()),
                mod_revision: revision,
                ..pb::KeyValue::default()
            }),
        };
        let events = vec![event(3, "/a"), event(3, "/b"), event(5, "/a")];
        let batches = by_revision(events).unwrap();
        let found: Vec<_> = batches
            .iter()
            .map(|batch| (batch.revision.0, batch.changes.len()))
            .collect();
        assert_eq!(found, [(3, 2), (5, 1)]);
    }
}
