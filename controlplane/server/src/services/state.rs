//! Session-durable state: every write in one transaction with the check of who holds the session (F-155, F-156).

use std::collections::BTreeSet;

use futures::future::try_join_all;
use rspp_controlplane::{
    access::Operation,
    authority::{self, Placement},
    keys,
    store::{Compare, Entry, MAX_TXN_OPS, Txn, bytes, list_all, parse},
};
use rspp_controlplane_api::{
    Stored, Version, WireError, Write, Writer,
    wire::{self, session_state_server::SessionState},
};
use rspp_proto::Epoch;
use serde::{Deserialize, Serialize};
use tonic::{Request, Response, Status};

use crate::{failure::Failure, plane::Plane};

pub(crate) struct StateService(pub(crate) Plane);

/// Largest value, in bytes.
const MAX_VALUE: usize = 256 * 1024;
/// Longest key, in bytes.
const MAX_KEY: usize = 256;
/// Most writes of one commit; each is compared, as is the session's record.
const MAX_WRITES: usize = MAX_TXN_OPS / 2;

/// A value as the store has it.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    version: u64,
    epoch: Epoch,
    value: String,
}

#[tonic::async_trait]
impl SessionState for StateService {
    async fn load_values(
        &self,
        request: Request<wire::LoadStateRequest>,
    ) -> Result<Response<wire::LoadStateResponse>, Status> {
        let plane = &self.0;
        let message = request.get_ref();
        let reader = Writer::from_wire(message.by.clone(), &message.session, message.epoch);
        let reader = reader.map_err(Failure::from)?;
        plane.admit_holder(&request, Operation::WriteState, &reader.by.runtime)?;
        let keys = request.into_inner().keys;
        let values = plane.values(&reader, &keys).await?;
        Ok(Response::new(wire::LoadStateResponse { values }))
    }

    async fn commit_values(
        &self,
        request: Request<wire::CommitStateRequest>,
    ) -> Result<Response<wire::CommitStateResponse>, Status> {
        let plane = &self.0;
        let message = request.get_ref();
        let writer = Writer::from_wire(message.by.clone(), &message.session, message.epoch);
        let writer = writer.map_err(Failure::from)?;
        plane.admit_holder(&request, Operation::WriteState, &writer.by.runtime)?;
        let writes: Vec<Write> = request
            .into_inner()
            .writes
            .into_iter()
            .map(Into::into)
            .collect();
        check(&writes)?;
        let versions = plane.settle(|| plane.written(&writer, &writes)).await?;
        Ok(Response::new(wire::CommitStateResponse { versions }))
    }
}

fn check(writes: &[Write]) -> Result<(), Failure> {
    if writes.len() > MAX_WRITES {
        return Err(Failure::TooLarge {
            what: "commit",
            limit: MAX_WRITES,
        });
    }
    let mut seen = BTreeSet::new();
    for write in writes {
        if write.key.is_empty() || write.key.len() > MAX_KEY || !seen.insert(&write.key) {
            return Err(WireError::new("key", "is empty, too long, or named twice").into());
        }
        if write.value.len() > MAX_VALUE {
            return Err(Failure::TooLarge {
                what: "value",
                limit: MAX_VALUE,
            });
        }
    }
    Ok(())
}

impl Plane {
    /// The session's record, if `writer` holds it.
    async fn held(&self, writer: &Writer) -> Result<Compare, Failure> {
        let key = keys::placement(&writer.session);
        let (placement, entry) = self.read::<Placement>(&key).await?;
        authority::check(placement.as_ref(), &writer.by, writer.epoch)?;
        Ok(Compare::unchanged(&key, entry.as_ref()))
    }

    async fn values(
        &self,
        reader: &Writer,
        wanted: &[String],
    ) -> Result<Vec<wire::StateValue>, Failure> {
        let session = &reader.session;
        let entries: Vec<Entry> = if wanted.is_empty() {
            let found = list_all(self.store(), &keys::states(session), None).await?;
            found.records.into_values().collect()
        } else {
            let keys: Vec<_> = wanted.iter().map(|it| keys::state(session, it)).collect();
            let found = try_join_all(keys.iter().map(|key| self.store().get(key))).await?;
            found.into_iter().flatten().collect()
        };
        // After the values: whoever held the session while they were read reads what was there then.
        self.held(reader).await?;
        let value = |entry: &Entry| {
            let kept: Kept = parse(entry)?;
            let stored = Stored {
                value: kept.value.into(),
                version: Version(kept.version),
                epoch: kept.epoch,
            };
            Ok(wire::StateValue::of(entry.key.last(), &stored))
        };
        entries.iter().map(value).collect()
    }

    async fn written(
        &self,
        writer: &Writer,
        writes: &[Write],
    ) -> Result<(Option<Txn>, Vec<u64>), Failure> {
        let mut txn = Txn::default().when(self.held(writer).await?);
        let keys: Vec<_> = writes
            .iter()
            .map(|it| keys::state(&writer.session, &it.key))
            .collect();
        let found = try_join_all(keys.iter().map(|key| self.store().get(key))).await?;
        let mut versions = Vec::with_capacity(writes.len());
        let mut repeated = 0;
        for ((write, key), entry) in writes.iter().zip(keys).zip(found) {
            let before: Option<Kept> = entry.as_ref().map(parse).transpose()?;
            let version = before.as_ref().map_or(0, |it| it.version);
            if let Some(expected) = write.expected.filter(|expected| expected.0 != version) {
                // The same write once more, because its answer was lost.
                let is_there = before.is_some_and(|it| {
                    it.version == expected.0 + 1
                        && it.epoch == writer.epoch
                        && it.value == *write.value
                });
                if is_there {
                    versions.push(version);
                    repeated += 1;
                    continue;
                }
                return Err(Failure::StateConflict {
                    key: write.key.clone(),
                    expected,
                    found: Version(version),
                });
            }
            let kept = Kept {
                version: version + 1,
                epoch: writer.epoch,
                value: write.value.to_string(),
            };
            versions.push(kept.version);
            txn = txn
                .when(Compare::unchanged(&key, entry.as_ref()))
                .put(key, bytes(&kept));
        }
        let nothing_new = repeated == writes.len();
        Ok(((!nothing_new).then_some(txn), versions))
    }
}
