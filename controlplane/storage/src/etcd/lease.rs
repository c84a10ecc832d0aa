//! Leases. Asking twice does no harm to any of them: one that nobody knows of ends by itself.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use rspp_controlplane::store::StoreError;
use tonic::{Code, Response, Status};

use super::{
    client::{Client, Fate, Member, fate},
    pb, wire,
};

pub(super) struct Granted {
    pub(super) id: i64,
    pub(super) ttl: Duration,
}

pub(super) async fn grant(client: &Client, seconds: i64) -> Result<Granted, StoreError> {
    let send = |member: Member| async move {
        let request = pb::LeaseGrantRequest {
            ttl: seconds,
            id: 0,
        };
        member.lease().lease_grant(request).await
    };
    let answer = client.call(send).await;
    let answer = answer.map_err(|status| wire::failed(&status))?;
    if answer.id <= 0 {
        return Err(StoreError::Corrupt(format!("no lease: {}", answer.error)));
    }
    Ok(Granted {
        id: answer.id,
        ttl: of(answer.ttl),
    })
}

/// Begins its time again, and says how long it is; `None` if it has ended.
pub(super) async fn keep_alive(client: &Client, id: i64) -> Result<Option<Duration>, StoreError> {
    let send = |member: Member| async move {
        // The request's stream stays open until the answer is there: etcd ends the answers together
        // with it.
        let request = pb::LeaseKeepAliveRequest { id };
        let requests = stream::once(async move { request }).chain(stream::pending());
        let answers = member.lease().lease_keep_alive(requests).await?;
        let answer = answers.into_inner().message().await?;
        let answer = answer.ok_or_else(|| Status::unavailable("the stream ended"))?;
        Ok(Response::new(answer))
    };
    let answer = client.call(send).await;
    let answer = answer.map_err(|status| wire::failed(&status))?;
    Ok((answer.ttl > 0).then(|| of(answer.ttl)))
}

/// How much of it is left; `None` if it has ended.
pub(super) async fn left(client: &Client, id: i64) -> Result<Option<Duration>, StoreError> {
    let send = |member: Member| async move {
        let request = pb::LeaseTimeToLiveRequest { id };
        member.lease().lease_time_to_live(request).await
    };
    let answer = client.call(send).await;
    let answer = answer.map_err(|status| wire::failed(&status))?;
    Ok((answer.ttl >= 0).then(|| of(answer.ttl)))
}

/// Ends it; `false` if it had ended.
pub(super) async fn revoke(client: &Client, id: i64) -> Result<bool, StoreError> {
    let mut patience = client.patience();
    let mut asked = false;
    loop {
        let send = |member: Member| async move {
            member
                .lease()
                .lease_revoke(pb::LeaseRevokeRequest { id })
                .await
        };
        let status = match client.attempt(send).await {
            Ok(_) => return Ok(true),
            // If nobody answered before, it may be our own doing that it is gone.
            Err(status) if status.code() == Code::NotFound => return Ok(asked),
            Err(status) => status,
        };
        match fate(&status) {
            Fate::Refused => return Err(wire::not_done(&status)),
            Fate::NotDone => {}
            Fate::Unknown => asked = true,
        }
        if !patience.pause().await {
            return Err(if asked {
                StoreError::Uncertain(wire::text(&status))
            } else {
                wire::not_done(&status)
            });
        }
    }
}

fn of(seconds: i64) -> Duration {
    Duration::from_secs(seconds.max(0) as u64)
}
