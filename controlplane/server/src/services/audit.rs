//! Who did what, for those who may know (F-097, F-170).

use std::pin::Pin;

use futures::{Stream, StreamExt as _, stream};
use rspp_controlplane::{
    access::Operation,
    audit::{self, Entry, Outcome},
    keys,
    store::{Key, MAX_PAGE, Query, parse},
};
use rspp_controlplane_api::{
    WireError,
    wire::{self, audit_server::Audit},
};
use rspp_controlplane_storage::trail;
use tonic::{Request, Response, Status};

use crate::{
    failure::Failure,
    plane::{Plane, page_size, wall_clock},
    wire as to,
};

pub(crate) struct AuditService(pub(crate) Plane);

/// Entries of one chunk of an export.
const CHUNK: usize = 200;
/// Entries that are looked at in one step backwards.
const BACKWARDS: usize = 200;

#[tonic::async_trait]
impl Audit for AuditService {
    type ExportTrailStream = Pin<Box<dyn Stream<Item = Result<wire::ExportChunk, Status>> + Send>>;

    async fn list_entries(
        &self,
        request: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        let plane = &self.0;
        plane.admit(&request, Operation::ReadAudit, None, "audit")?;
        let asked = request.into_inner();
        let size = page_size(asked.page_size);
        let outcomes = Outcome::ALL.map(Outcome::as_str);
        if !asked.outcome.is_empty() && !outcomes.contains(&asked.outcome.as_str()) {
            let what = format!("is none of {}", outcomes.join(", "));
            return Err(Failure::from(WireError::new("outcome", what)).into());
        }
        if asked.newest_first {
            return Ok(Response::new(plane.newest_entries(&asked, size).await?));
        }
        let (mut after, mut found) = (asked.after, Vec::new());
        loop {
            let (entries, more) = plane.entries(after, size).await?;
            let looked_at = entries.last().map(|entry| entry.sequence);
            for entry in entries {
                if found.len() < size {
                    after = entry.sequence;
                    if is_wanted(&entry, &asked) {
                        found.push(to::entry(entry));
                    }
                }
            }
            let is_over = !more && looked_at.is_none_or(|last| last == after);
            if is_over || found.len() == size {
                return Ok(Response::new(wire::ListEntriesResponse {
                    entries: found,
                    next_after: if is_over { 0 } else { after },
                    next_before: 0,
                }));
            }
        }
    }

    async fn verify_trail(
        &self,
        request: Request<wire::VerifyTrailRequest>,
    ) -> Result<Response<wire::VerifyTrailResponse>, Status> {
        let plane = &self.0;
        plane.admit(&request, Operation::ReadAudit, None, "audit")?;
        let followed = trail::follow(plane.store()).await;
        let followed = followed.map_err(Failure::from)?;
        Ok(Response::new(wire::VerifyTrailResponse {
            entries: followed.last,
            broken: followed
                .broken
                .map_or_else(String::new, |it| it.to_string()),
            head: followed.head.hash.to_string(),
        }))
    }

    async fn export_trail(
        &self,
        request: Request<wire::ExportTrailRequest>,
    ) -> Result<Response<Self::ExportTrailStream>, Status> {
        let plane = self.0.clone();
        plane.admit(&request, Operation::ReadAudit, None, "audit")?;
        let (head, _) = trail::head(plane.store()).await.map_err(Failure::from)?;
        let seal = audit::seal(&head, wall_clock(), &*plane.signer()?);
        let seal = serde_json::to_string(&seal).expect("a seal is plain data") + "\n";
        let until = head.sequence;
        let entries = stream::unfold(Some(0), move |after| {
            let plane = plane.clone();
            async move {
                let after = after?;
                if after >= until {
                    return None;
                }
                let chunk = plane.entries(after, CHUNK).await;
                Some(match chunk {
                    Ok((mut entries, _)) => {
                        entries.retain(|entry| entry.sequence <= until);
                        let next = entries.last().map(|entry| entry.sequence);
                        (Ok(lines(&entries)), next)
                    }
                    Err(failure) => (Err(Status::from(failure)), None),
                })
            }
        });
        let end = stream::once(async move { Ok(seal) });
        let all = entries.chain(end);
        let all = all.map(|it| it.map(|lines| wire::ExportChunk { lines }));
        Ok(Response::new(Box::pin(all)))
    }
}

fn lines(entries: &[Entry]) -> String {
    let line = |entry| serde_json::to_string(entry).expect("an entry is plain data") + "\n";
    entries.iter().map(line).collect()
}

fn is_wanted(entry: &Entry, asked: &wire::ListEntriesRequest) -> bool {
    let record = &entry.record;
    let is = |asked: &str, found: Option<&str>| asked.is_empty() || found == Some(asked);
    is(
        &asked.actor,
        record.actor.as_ref().map(rspp_proto::Actor::as_str),
    ) && is(&asked.operation, Some(&record.operation))
        && is(&asked.subject, Some(&record.subject))
        && is(
            &asked.tenant,
            record.tenant.as_ref().map(rspp_proto::TenantId::as_str),
        )
        && is(&asked.outcome, Some(record.outcome.as_str()))
        && record.at.0 >= asked.since_ms
        && (asked.until_ms == 0 || record.at.0 < asked.until_ms)
}

impl Plane {
    /// What is asked for, from the end of the trail backwards.
    async fn newest_entries(
        &self,
        asked: &wire::ListEntriesRequest,
        size: usize,
    ) -> Result<wire::ListEntriesResponse, Failure> {
        let (head, _) = trail::head(self.store()).await?;
        let end = head.sequence + 1;
        let mut before = match asked.before {
            0 => end,
            before => before.min(end),
        };
        let mut found = Vec::new();
        while before > 1 && found.len() < size {
            let after = before.saturating_sub(1 + BACKWARDS as u64);
            let (mut entries, _) = self.entries(after, BACKWARDS).await?;
            entries.retain(|entry| entry.sequence < before);
            before = after + 1;
            // Replicas' clocks differ by less than so many entries take.
            let is_older = entries
                .iter()
                .all(|entry| entry.record.at.0 < asked.since_ms);
            if is_older {
                before = 1;
            }
            for entry in entries.into_iter().rev() {
                if !is_wanted(&entry, asked) {
                    continue;
                }
                let sequence = entry.sequence;
                found.push(to::entry(entry));
                if found.len() == size {
                    before = sequence;
                    break;
                }
            }
        }
        Ok(wire::ListEntriesResponse {
            entries: found,
            next_after: 0,
            next_before: if before > 1 { before } else { 0 },
        })
    }

    /// Entries after a number, and whether more follow.
    async fn entries(&self, after: u64, most: usize) -> Result<(Vec<Entry>, bool), Failure> {
        let after: Option<Key> = (after > 0).then(|| keys::audit(after));
        let query = Query {
            after,
            limit: most.min(MAX_PAGE),
            ..Query::first(keys::audits())
        };
        let page = self.store().list(query).await?;
        let entries: Result<_, _> = page.entries.iter().map(parse).collect();
        Ok((entries?, page.more))
    }
}
