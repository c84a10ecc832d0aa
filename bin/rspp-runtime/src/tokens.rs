//! Which tokens let a client in: those that the control plane's keys have signed for this runtime.

use rspp_controlplane::token::{Keyring, SessionClaims, TokenError};
use rspp_host::{PlaneHandle, PlaneStatus};
use rspp_proto::{RuntimeId, WallClock};
use rspp_transport_api::{Grant, TokenValidator, TransportKind, Unauthorized};
use tokio::sync::watch;

/// Checks tokens by the newest keys that were heard of.
pub(crate) struct Tokens {
    runtime: RuntimeId,
    status: watch::Receiver<PlaneStatus>,
}

impl Tokens {
    pub(crate) fn new(runtime: RuntimeId, plane: &PlaneHandle) -> Self {
        Self {
            runtime,
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
        claims
            .is_for(&self.runtime, &claims.session, kind.as_str())
            .map_err(refused)?;
        Ok(Grant {
            token_id: claims.jti,
            tenant: claims.tenant,
            session: claims.session,
            pipeline: Some(claims.pipeline),
            epoch: claims.epoch,
            expires_at: WallClock(claims.exp.saturating_mul(1_000)),
        })
    }
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
