//! Which tokens let a client in, and which prove a lease: those that the control plane's keys have signed
//! for this runtime.

use futures::{FutureExt as _, future::BoxFuture};
use rspp_controlplane::token::{Keyring, LeaseClaims, SessionClaims, TokenError};
use rspp_controlplane_api::{Claimed, Proofs, Snapshot, Unproven};
use rspp_host::{PlaneHandle, PlaneStatus, Step};
use rspp_proto::{
    LeaseToken, RuntimeId, WallClock,
    control::{Endpoint, Holder},
};
use rspp_transport_api::{Elsewhere, Grant, TokenValidator, TransportKind, Unauthorized};
use serde::Deserialize;
use tokio::sync::watch;

/// Checks tokens by the newest keys that were heard of.
pub(crate) struct Tokens {
    runtime: RuntimeId,
    plane: PlaneHandle,
    status: watch::Receiver<PlaneStatus>,
}

impl Tokens {
    pub(crate) fn new(runtime: RuntimeId, plane: &PlaneHandle) -> Self {
        Self {
            runtime,
            plane: plane.clone(),
            status: plane.status(),
        }
    }
}

impl TokenValidator for Tokens {
    fn validate(
        &self,
        token: &str,
        kind: TransportKind,
        now: WallClock,
    ) -> Result<Grant, Unauthorized> {
        let keyring = {
            let status = self.status.borrow();
            let snapshot = status.keyring.as_ref().ok_or(Unauthorized::NoValidator)?;
            serde_json::from_str::<Keyring>(&snapshot.document)
                .map_err(|_| Unauthorized::NoValidator)?
        };
        let claims: SessionClaims = keyring.verify(token, now).map_err(refused)?;
        if claims.runtime != self.runtime {
            let view = self.plane.view().ok_or(Unauthorized::ViewStale)?;
            if let Some(url) = endpoint(&view, &claims, kind) {
                return Err(Unauthorized::Elsewhere(Elsewhere { url, token: None }));
            }
        }
        claims
            .is_for(&self.runtime, &claims.session, kind.as_str())
            .map_err(refused)?;
        Ok(Grant {
            token_id: claims.jti,
            tenant: claims.tenant,
            session: claims.session,
            pipeline: Some(claims.pipeline),
            versions: claims.versions,
            epoch: claims.epoch,
            expires_at: WallClock(claims.exp.saturating_mul(1_000)),
        })
    }

    fn refresh_view(&self) -> BoxFuture<'_, ()> {
        async {
            if let Err(stale) = self.plane.fresh_view(Step::Redirect).await {
                tracing::debug!(%stale, "a client is not told where to go");
            }
        }
        .boxed()
    }
}

/// Believes what the newest keys have signed.
#[derive(Clone, Copy, Debug)]
pub struct Signed;

impl Proofs for Signed {
    fn check(
        &self,
        proof: &LeaseToken,
        keyring: &Snapshot,
        claimed: Claimed<'_>,
        now: WallClock,
    ) -> Result<(), Unproven> {
        let Claimed {
            session,
            holder,
            epoch,
        } = claimed;
        let keyring = serde_json::from_str::<Keyring>(&keyring.document)
            .map_err(|_| Unproven::Refused("the key ring cannot be read"))?;
        let claims: Result<LeaseClaims, TokenError> = keyring.verify(proof.expose(), now);
        claims
            .and_then(|claims| claims.is_of(session, holder, epoch))
            .map_err(|error| match error {
                TokenError::UnknownKey => Unproven::UnknownKey,
                TokenError::Malformed
                | TokenError::WrongType
                | TokenError::BadSignature
                | TokenError::Expired
                | TokenError::NotYet
                | TokenError::WrongAudience => Unproven::Refused(error.as_str()),
            })
    }
}

/// What of a snapshot of the fleet says where a runtime is.
#[derive(Deserialize)]
struct Fleet {
    runtimes: Vec<Member>,
}

#[derive(Deserialize)]
struct Member {
    holder: Holder,
    endpoints: Vec<Endpoint>,
    alive: bool,
}

/// Where the runtime is that a token is for, if it lives.
fn endpoint(seen: &Snapshot, claims: &SessionClaims, kind: TransportKind) -> Option<String> {
    let fleet: Fleet = serde_json::from_str(&seen.document).ok()?;
    let is_it = |it: &Member| it.holder.runtime == claims.runtime && it.alive;
    let member = fleet.runtimes.into_iter().find(is_it)?;
    let mut endpoints = member.endpoints.into_iter();
    let found =
        endpoints.find(|it| it.transport == claims.transport && it.transport == kind.as_str());
    found.map(|it| it.url)
}

fn refused(error: TokenError) -> Unauthorized {
    match error {
        TokenError::Expired => Unauthorized::Expired,
        TokenError::Malformed
        | TokenError::WrongType
        | TokenError::UnknownKey
        | TokenError::BadSignature
        | TokenError::NotYet
        | TokenError::WrongAudience => Unauthorized::Refused(error.as_str()),
    }
}
