//! A watch that outlasts the member it was opened at.
//!
//! It goes on with another member after the last revision that it has told, or that a member has
//! vouched for as free of changes, so a quiet watch is not overtaken by compaction. It ends only when
//! what comes next is forgotten, or when no member answered for as long as all are tried.

use std::collections::VecDeque;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use rspp_controlplane::store::{Batch, Changes, Prefix, Revision, StoreError, WatchError};
use tonic::{Code, Response, Status, Streaming};

use super::{
    client::{Client, Member, Patience},
    pb, wire,
};

struct Watch {
    client: Client,
    begin: Bytes,
    end: Bytes,
    /// Everything up to here was told, or is in `ready`.
    told: Revision,
    ready: VecDeque<Batch>,
    /// The newest revision, while more of it may come.
    parts: Option<Batch>,
    answers: Option<Streaming<pb::WatchResponse>>,
    /// How long members may fail still; begins anew with each answer.
    patience: Patience,
}

/// All changes of what begins so, after a revision.
pub(super) fn follow(client: Client, prefix: &Prefix, after: Revision) -> Changes {
    let watch = Watch {
        patience: client.patience(),
        client,
        begin: wire::begin(prefix),
        end: wire::behind(prefix),
        told: after,
        ready: VecDeque::new(),
        parts: None,
        answers: None,
    };
    stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match watch.next().await {
            Ok(batch) => Some((Ok(batch), Some(watch))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

impl Watch {
    async fn next(&mut self) -> Result<Batch, WatchError> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(batch);
            }
            let answers = if let Some(answers) = &mut self.answers {
                answers
            } else {
                let opened = open(&self.client, &self.begin, &self.end, self.told).await;
                let opened = opened.map_err(|status| unavailable(&status))?;
                self.answers.insert(opened)
            };
            match answers.message().await {
                Ok(Some(answer)) if answer.compact_revision > 0 => {
                    return Err(WatchError::Compacted {
                        oldest: Revision(answer.compact_revision as u64),
                    });
                }
                Ok(Some(answer)) if answer.canceled => {
                    self.again(&Status::unavailable(answer.cancel_reason))
                        .await?;
                }
                Ok(Some(answer)) => {
                    self.patience = self.client.patience();
                    let taken = self.take(answer);
                    taken.map_err(|error| WatchError::Unavailable(error.to_string()))?;
                }
                Ok(None) => {
                    self.again(&Status::unavailable("the watch was closed"))
                        .await?;
                }
                Err(status) => self.again(&status).await?,
            }
        }
    }

    fn take(&mut self, answer: pb::WatchResponse) -> Result<(), StoreError> {
        let vouched = wire::revision(answer.header.as_ref());
        // A member that has nothing to tell, and had told everything, says how far it has looked. The
        // answer that opens a watch has the newest revision too, but has not told anything yet.
        if answer.events.is_empty() && self.parts.is_none() && !answer.created && !answer.fragment {
            self.told = self.told.max(vouched);
        }
        for batch in wire::by_revision(answer.events)? {
            match &mut self.parts {
                Some(parts) if parts.revision == batch.revision => {
                    parts.changes.extend(batch.changes);
                }
                Some(_) | None => {
                    self.tell_parts();
                    self.parts = Some(batch);
                }
            }
        }
        if !answer.fragment {
            self.tell_parts();
        }
        Ok(())
    }

    fn tell_parts(&mut self) {
        if let Some(batch) = self.parts.take()
            && batch.revision > self.told
        {
            self.told = batch.revision;
            self.ready.push_back(batch);
        }
    }

    /// Goes on with another member, unless they have failed for long enough.
    async fn again(&mut self, status: &Status) -> Result<(), WatchError> {
        let is_refused = matches!(
            status.code(),
            Code::PermissionDenied | Code::InvalidArgument | Code::Unimplemented
        );
        if is_refused || !self.patience.pause().await {
            return Err(unavailable(status));
        }
        tracing::debug!(status = %wire::text(status), "the watch goes on with another member");
        self.client.leave_current();
        self.answers = None;
        self.parts = None;
        Ok(())
    }
}

fn unavailable(status: &Status) -> WatchError {
    WatchError::Unavailable(wire::text(status))
}

async fn open(
    client: &Client,
    begin: &Bytes,
    end: &Bytes,
    told: Revision,
) -> Result<Streaming<pb::WatchResponse>, Status> {
    let create = pb::WatchCreateRequest {
        key: begin.clone(),
        range_end: end.clone(),
        start_revision: wire::number(told) + 1,
        progress_notify: true,
        // One answer may be larger than what is taken at once; it comes in parts then.
        fragment: true,
    };
    let send = |member: Member| {
        let request = pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::CreateRequest(
                create.clone(),
            )),
        };
        async move {
            let requests = stream::once(async move { request }).chain(stream::pending());
            let mut answers = member.watch().watch(requests).await?.into_inner();
            // Only a member that answers is one to wait for.
            match answers.message().await? {
                Some(answer) if answer.canceled && answer.compact_revision == 0 => {
                    Err(Status::unavailable(answer.cancel_reason))
                }
                Some(answer) if answer.created => Ok(Response::new(answers)),
                Some(_) | None => Err(Status::unavailable("the watch was not opened")),
            }
        }
    };
    client.call(send).await
}
