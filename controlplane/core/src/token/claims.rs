//! What tokens say.

use rspp_proto::{
    Actor, Epoch, PipelineVersion, RuntimeId, SessionId, TenantId, control::Versions,
};
use serde::{Deserialize, Serialize};

use super::{Claims, TokenError};
use crate::{
    access::Role,
    authority::{Holder, Incarnation},
};

/// A client may connect to this session, at this runtime (F-099).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionClaims {
    /// The token's own name.
    pub jti: String,
    /// The session.
    #[serde(rename = "sub")]
    pub session: SessionId,
    /// Whose session it is.
    #[serde(rename = "rspp/tenant")]
    pub tenant: TenantId,
    /// The version that it is meant to run.
    #[serde(rename = "rspp/pipeline")]
    pub pipeline: PipelineVersion,
    /// The versions of policy and provider settings that it is meant to run with (F-102).
    #[serde(
        rename = "rspp/versions",
        default,
        skip_serializing_if = "Versions::is_empty"
    )]
    pub versions: Versions,
    /// The runtime that it was routed to.
    #[serde(rename = "aud")]
    pub runtime: RuntimeId,
    /// The epoch at which that runtime holds it, if it does already.
    #[serde(
        rename = "rspp/epoch",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub epoch: Option<Epoch>,
    /// How the client connects: `websocket`, `telephony`, `livekit`.
    #[serde(rename = "rspp/transport")]
    pub transport: String,
    /// When it was issued.
    pub iat: u64,
    /// When it is over.
    pub exp: u64,
}

impl SessionClaims {
    /// Whether it was issued for this use; a client at the wrong runtime has to be told where to go.
    pub fn is_for(
        &self,
        runtime: &RuntimeId,
        session: &SessionId,
        transport: &str,
    ) -> Result<(), TokenError> {
        let is_for =
            self.runtime == *runtime && self.session == *session && self.transport == transport;
        is_for.then_some(()).ok_or(TokenError::WrongAudience)
    }
}

/// A runtime holds a session at an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseClaims {
    /// The session.
    #[serde(rename = "sub")]
    pub session: SessionId,
    /// Whose session it is.
    #[serde(rename = "rspp/tenant")]
    pub tenant: TenantId,
    /// Who holds it.
    #[serde(rename = "aud")]
    pub runtime: RuntimeId,
    /// In which of its lives.
    #[serde(rename = "rspp/incarnation")]
    pub incarnation: Incarnation,
    /// At which epoch.
    #[serde(rename = "rspp/epoch")]
    pub epoch: Epoch,
    /// When it was issued.
    pub iat: u64,
    /// When the proof, not the lease, is over: whoever renews proves it anew.
    pub exp: u64,
}

impl LeaseClaims {
    /// Whether it says that this holder has this session at this epoch.
    pub fn is_of(
        &self,
        session: &SessionId,
        holder: &Holder,
        epoch: Epoch,
    ) -> Result<(), TokenError> {
        let is_of = self.session == *session && self.holder() == *holder && self.epoch == epoch;
        is_of.then_some(()).ok_or(TokenError::WrongAudience)
    }

    /// Who holds.
    pub fn holder(&self) -> Holder {
        Holder {
            runtime: self.runtime.clone(),
            incarnation: self.incarnation,
        }
    }
}

/// Somebody may operate the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessClaims {
    /// Who.
    pub sub: Actor,
    /// What they may do.
    #[serde(rename = "rspp/role")]
    pub role: Role,
    /// For whom; `None`: for all tenants.
    #[serde(
        rename = "rspp/tenants",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub tenants: Option<Vec<TenantId>>,
    /// When it was issued.
    pub iat: u64,
    /// When it is over.
    pub exp: u64,
}

macro_rules! claims {
    ($($claims:ident = $type:literal;)*) => {$(
        impl Claims for $claims {
            const TYPE: &'static str = $type;

            fn issued_at(&self) -> u64 {
                self.iat
            }

            fn expires_at(&self) -> u64 {
                self.exp
            }
        }
    )*};
}

claims! {
    SessionClaims = "rspp-session+jwt";
    LeaseClaims = "rspp-lease+jwt";
    AccessClaims = "rspp-access+jwt";
}
