//! The audit trail as it is written.

use std::sync::atomic::Ordering;

use rspp_controlplane::{
    access::Principal,
    audit::{Outcome, Record},
    store::{StoreError, Txn},
};
use rspp_controlplane_storage::trail;
use rspp_proto::{TenantId, WallClock};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    failure::Failure,
    identity::Peer,
    plane::{Plane, wall_clock},
};

/// Most notes that wait to be put down; more are counted only.
pub(crate) const MAX_NOTES: usize = 4_096;
/// Most that are put down at once.
const MAX_BATCH: usize = 64;

/// Something to be put down beside what a transaction did.
#[derive(Debug)]
pub(crate) struct Note(Record);

impl Note {
    /// A call that was not let in.
    pub(crate) fn denied(
        at: WallClock,
        principal: Option<Principal>,
        operation: &str,
        subject: &str,
        tenant: Option<&TenantId>,
        failure: &Failure,
        peer: Option<&Peer>,
    ) -> Self {
        let from = peer.map_or_else(String::new, ToString::to_string);
        Self(Record {
            at,
            actor: principal.as_ref().map(|it| it.actor.clone()),
            role: principal.map(|it| it.role),
            tenant: tenant.cloned(),
            operation: operation.to_owned(),
            subject: subject.chars().take(256).collect(),
            outcome: Outcome::Denied,
            detail: json!({ "why": failure.to_string(), "from": from }),
        })
    }

    /// Something that was done by a transaction of its own.
    pub(crate) fn happened(record: Record) -> Self {
        Self(record)
    }

    /// A call that a rule was in the way of.
    pub(crate) fn refused(mut record: Record, failure: &Failure) -> Self {
        record.outcome = Outcome::Refused;
        record.detail = json!({ "why": failure.to_string(), "asked": record.detail });
        Self(record)
    }
}

/// What somebody did.
pub(crate) fn done(
    at: WallClock,
    principal: &Principal,
    operation: &str,
    subject: &str,
    detail: Value,
) -> Record {
    Record {
        at,
        actor: Some(principal.actor.clone()),
        role: Some(principal.role),
        tenant: None,
        operation: operation.to_owned(),
        subject: subject.to_owned(),
        outcome: Outcome::Done,
        detail,
    }
}

impl Plane {
    /// Puts something down soon. If too much waits, it is only counted.
    pub(crate) fn note(&self, note: Note) {
        if self.shared.notes.try_send(note).is_err() {
            self.shared.notes_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Adds records to the trail's end, in the transaction of what they tell of.
    pub(crate) async fn with_audit(
        &self,
        txn: Txn,
        records: Vec<Record>,
    ) -> Result<Txn, StoreError> {
        trail::append(self.store(), txn, records).await
    }

    /// Puts down what was denied and refused, several at once.
    pub(crate) async fn write_notes(self, mut noted: mpsc::Receiver<Note>) {
        let mut notes = Vec::with_capacity(MAX_BATCH);
        let stop = self.shared.stop.clone();
        loop {
            let received = stop
                .run_until_cancelled(noted.recv_many(&mut notes, MAX_BATCH))
                .await;
            if received.is_none() {
                // What is left is put down before it ends.
                noted.close();
                noted.recv_many(&mut notes, MAX_BATCH).await;
            }
            if notes.is_empty() {
                return;
            }
            let mut records: Vec<_> = notes.drain(..).map(|Note(record)| record).collect();
            let lost = self.shared.notes_lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                let what = json!({ "calls": lost });
                records.push(Record::automatic(
                    wall_clock(),
                    "denied_beyond_count",
                    "audit",
                    what,
                ));
            }
            loop {
                let written = match self.with_audit(Txn::default(), records.clone()).await {
                    Ok(txn) => self.store().commit(txn).await.map(|_| ()),
                    Err(error) => Err(error),
                };
                match written {
                    Ok(()) => break,
                    Err(StoreError::Conflict) => crate::commit::wait_a_little(1).await,
                    // It may be there already; twice is better than not at all.
                    Err(error) if error.is_transient() && !stop.is_cancelled() => {
                        crate::commit::wait_a_little(6).await;
                    }
                    Err(error) => {
                        tracing::error!(%error, "what was denied or done cannot be put down");
                        break;
                    }
                }
            }
        }
    }
}
