//! Who did what, for those who may know (F-097, F-170).

use std::pin::Pin;

use futures::{Stream, StreamExt as _, stream};
use rspp_controlplane::{
    access::Operation,
    audit::{self, Entry},
    keys,
    store::{Key, Query, parse},
};
use rspp_controlplane_api::wire::{self, audit_server::Audit};
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
}

impl Plane {
    /// Entries after a number, and whether more follow.
    async fn entries(&self, after: u64, most: usize) -> Result<(Vec<Entry>, bool), Failure> {
        let after: Option<Key> = (after > 0).then(|| keys::audit(after));
        let query = Query {
            after,
            limit: most.min(rspp_controlplane::store::MAX_PAGE),
            ..Query::first(keys::audits())
        };
        let page = self.store().list(query).await?;
        let entries: Result<_, _> = page.entries.iter().map(parse).collect();
        Ok((entries?, page.more))
    }
}
