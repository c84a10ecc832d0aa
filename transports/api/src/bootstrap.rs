//! What is known before a session has a connection: whose it is, and what its transport can do
//! (transports.md §1).

use rspp_proto::{
    Epoch, PipelineVersion, SessionId, TenantId, TurnId, WallClock,
    abi::{SchemaVersion, Signal},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::TransportKind;

/// A session that is to be connected: made of a route, a checked token and the session's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionBootstrap {
    /// The version of this record.
    pub schema_version: SchemaVersion,
    /// How the client connects.
    pub transport_kind: TransportKind,
    /// Who the session is accounted to.
    pub tenant_id: TenantId,
    /// The session.
    pub session_id: SessionId,
    /// The version that it runs.
    pub pipeline_version: PipelineVersion,
    /// The turn that it had come to, if it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<TurnId>,
    /// The epoch that it is placed under, if it is placed already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority_epoch: Option<Epoch>,
    /// Which token let it in: the token's name, never the token.
    pub lease_token_ref: String,
    /// Which route led here.
    pub route_ref: String,
    /// When it was asked for.
    pub requested_at_ms: WallClock,
}

/// Why a bootstrap cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BootstrapError {
    /// It is for another transport.
    #[error("transport_kind: is `{}`, but this is `{}`", found.as_str(), wanted.as_str())]
    OtherTransport {
        /// What it is for.
        found: TransportKind,
        /// What it was shown to.
        wanted: TransportKind,
    },
    /// It was written by a build that this one does not understand.
    #[error("schema_version: `{0}` is not understood here")]
    Version(SchemaVersion),
    /// A reference is missing.
    #[error("{0}: must not be blank")]
    Blank(&'static str),
    /// A token was put where its name belongs.
    #[error("lease_token_ref: is a token; name it instead")]
    TokenInside,
}

impl SessionBootstrap {
    /// Whether a transport of `kind` may use it.
    pub fn check(&self, kind: TransportKind) -> Result<(), BootstrapError> {
        if self.schema_version.major != SchemaVersion::CURRENT.major
            || self.schema_version.minor > SchemaVersion::CURRENT.minor
        {
            return Err(BootstrapError::Version(self.schema_version));
        }
        if self.transport_kind != kind {
            return Err(BootstrapError::OtherTransport {
                found: self.transport_kind,
                wanted: kind,
            });
        }
        for (name, value) in [
            ("lease_token_ref", &self.lease_token_ref),
            ("route_ref", &self.route_ref),
        ] {
            if value.trim().is_empty() {
                return Err(BootstrapError::Blank(name));
            }
        }
        // A signed token has three parts.
        if self.lease_token_ref.split('.').count() == 3 {
            return Err(BootstrapError::TokenInside);
        }
        Ok(())
    }
}

/// What a transport can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a field of the published record"
)]
pub struct Capabilities {
    /// Which transport.
    pub transport_kind: TransportKind,
    /// What is said of its connections.
    pub supported_connection_signals: Vec<Signal>,
    /// The user's audio comes in.
    pub supports_ingress_audio: bool,
    /// The client's controls and text come in.
    pub supports_ingress_control: bool,
    /// The agent's audio goes out.
    pub supports_egress_audio: bool,
    /// A lost link may come back to its session.
    pub supports_reconnect_semantics: bool,
}

/// Why a transport cannot be what it says it is.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CapabilityError {
    /// It carries nothing.
    #[error("a transport carries at least one of ingress audio, ingress control, egress audio")]
    CarriesNothing,
    /// Nothing is said of its connections.
    #[error("supported_connection_signals: at least one is needed")]
    NoSignals,
    /// A signal is named twice.
    #[error("supported_connection_signals: `{0}` is there twice")]
    Twice(Signal),
    /// A signal says nothing of a connection.
    #[error("supported_connection_signals: `{0}` is not about a connection")]
    NoConnectionSignal(Signal),
    /// It says `reconnecting`, but never comes back, or the other way round.
    #[error("`reconnecting` is said exactly by transports that reconnect")]
    Reconnecting,
}

impl Capabilities {
    /// What transports of `kind` can do.
    pub fn of(kind: TransportKind) -> Self {
        Self {
            transport_kind: kind,
            supported_connection_signals: kind.signals().to_vec(),
            supports_ingress_audio: true,
            supports_ingress_control: true,
            supports_egress_audio: true,
            supports_reconnect_semantics: kind.reconnects(),
        }
    }

    /// Whether they go together.
    pub fn check(&self) -> Result<(), CapabilityError> {
        let carries = [
            self.supports_ingress_audio,
            self.supports_ingress_control,
            self.supports_egress_audio,
        ];
        if !carries.contains(&true) {
            return Err(CapabilityError::CarriesNothing);
        }
        let signals = &self.supported_connection_signals;
        if signals.is_empty() {
            return Err(CapabilityError::NoSignals);
        }
        let known = TransportKind::Websocket.signals();
        for (at, signal) in signals.iter().enumerate() {
            if !known.contains(signal) {
                return Err(CapabilityError::NoConnectionSignal(*signal));
            }
            if signals[..at].contains(signal) {
                return Err(CapabilityError::Twice(*signal));
            }
        }
        if signals.contains(&Signal::Reconnecting) != self.supports_reconnect_semantics {
            return Err(CapabilityError::Reconnecting);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [TransportKind; 4] = [
        TransportKind::Loopback,
        TransportKind::Websocket,
        TransportKind::Telephony,
        TransportKind::Livekit,
    ];

    fn bootstrap() -> SessionBootstrap {
        SessionBootstrap {
            schema_version: SchemaVersion::CURRENT,
            transport_kind: TransportKind::Websocket,
            tenant_id: TenantId::new("tenant").unwrap(),
            session_id: SessionId::new("session").unwrap(),
            pipeline_version: PipelineVersion::new("simple-1").unwrap(),
            turn_id: None,
            authority_epoch: Some(Epoch::FIRST),
            lease_token_ref: "jti-1".to_owned(),
            route_ref: "route-1".to_owned(),
            requested_at_ms: WallClock(1),
        }
    }

    /// transports.md §1: each transport takes what is its own, and says what is wrong with the rest.
    #[test]
    fn a_bootstrap_is_checked_before_it_is_used() {
        type Change = fn(&mut SessionBootstrap);
        let wrong: [(Change, &str); 5] = [
            (
                |it| it.transport_kind = TransportKind::Telephony,
                "transport_kind: is `telephony`, but this is `websocket`",
            ),
            (
                |it| it.schema_version.major = 2,
                "schema_version: `v2.0` is not understood here",
            ),
            (
                |it| it.lease_token_ref = " ".to_owned(),
                "lease_token_ref: must not be blank",
            ),
            (|it| it.route_ref.clear(), "route_ref: must not be blank"),
            (
                |it| it.lease_token_ref = "aaa.bbb.ccc".to_owned(),
                "lease_token_ref: is a token; name it instead",
            ),
        ];
        assert_eq!(bootstrap().check(TransportKind::Websocket), Ok(()));
        for (change, says) in wrong {
            let mut changed = bootstrap();
            change(&mut changed);
            let error = changed.check(TransportKind::Websocket).unwrap_err();
            assert_eq!(error.to_string(), says);
        }
    }

    #[test]
    fn every_transport_can_do_what_it_says() {
        for kind in KINDS {
            assert_eq!(Capabilities::of(kind).check(), Ok(()));
        }
        let telephony = Capabilities::of(TransportKind::Telephony);
        assert!(!telephony.supports_reconnect_semantics);
        assert_eq!(telephony.supported_connection_signals.len(), 5);
    }

    #[test]
    fn capabilities_that_do_not_go_together_are_refused() {
        type Change = fn(&mut Capabilities);
        let wrong: [(Change, CapabilityError); 5] = [
            (
                |it| {
                    it.supports_ingress_audio = false;
                    it.supports_ingress_control = false;
                    it.supports_egress_audio = false;
                },
                CapabilityError::CarriesNothing,
            ),
            (
                |it| it.supported_connection_signals.clear(),
                CapabilityError::NoSignals,
            ),
            (
                |it| it.supported_connection_signals.push(Signal::Ended),
                CapabilityError::Twice(Signal::Ended),
            ),
            (
                |it| it.supported_connection_signals.push(Signal::Commit),
                CapabilityError::NoConnectionSignal(Signal::Commit),
            ),
            (
                |it| it.supports_reconnect_semantics = false,
                CapabilityError::Reconnecting,
            ),
        ];
        for (change, error) in wrong {
            let mut changed = Capabilities::of(TransportKind::Websocket);
            change(&mut changed);
            assert_eq!(changed.check(), Err(error));
        }
    }
}
