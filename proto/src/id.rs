//! Typed identifiers: two of different kinds cannot be swapped.

use std::{borrow::Borrow, fmt, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};

use crate::{Epoch, Hex};

/// Why a text is not an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Identifiers are never blank.
    #[error("{kind} must not be blank")]
    Blank {
        /// The identifier's kind, e.g. `session id`.
        kind: &'static str,
    },
    /// Identifiers are bounded, so that they can be labels and keys.
    #[error("{kind} is {length} bytes long; at most {MAX_ID_BYTES} are allowed")]
    TooLong {
        /// The identifier's kind.
        kind: &'static str,
        /// Its length in bytes.
        length: usize,
    },
}

/// Longest identifier accepted, in bytes.
pub const MAX_ID_BYTES: usize = 256;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $kind:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// Never blank, at most [`MAX_ID_BYTES`]; cloning shares the text.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(#[schemars(with = "String", length(min = 1, max = 256))] Arc<str>);

        impl $name {
            /// Checks and wraps `text`.
            pub fn new(text: impl Into<Arc<str>>) -> Result<Self, IdError> {
                let text = text.into();
                if text.trim().is_empty() {
                    Err(IdError::Blank { kind: $kind })
                } else if text.len() > MAX_ID_BYTES {
                    Err(IdError::TooLong { kind: $kind, length: text.len() })
                } else {
                    Ok(Self(text))
                }
            }

            /// The identifier's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::new(text).map_err(serde::de::Error::custom)
            }
        }
    )*};
}

ids! {
    /// One conversation, across transports, turns and failovers.
    SessionId = "session id";
    /// One turn of a session.
    TurnId = "turn id";
    /// One event; canonical form `evt/<session>/<turn or "session">/<6-digit ordinal>`.
    EventId = "event id";
    /// A node of a pipeline graph (never a machine).
    NodeId = "node id";
    /// An edge of a pipeline graph.
    EdgeId = "edge id";
    /// One provider call; canonical form `pvi/<session>/<turn or "session">/<event>/<modality>`.
    InvocationId = "provider invocation id";
    /// A published, immutable version of a pipeline.
    PipelineVersion = "pipeline version";
    /// Who a session is accounted to.
    TenantId = "tenant id";
    /// A process that runs sessions, over its restarts: a runtime of the fleet, never a node of a graph.
    RuntimeId = "runtime id";
    /// Where runtimes stand and where data may be, e.g. `eu-central`.
    Region = "region";
    /// Who acts: a person, a service or a runtime, as their credentials name them.
    Actor = "actor";
    /// A provider in the registry, e.g. `stt-local`.
    ProviderId = "provider id";
    /// Names one effect over retry, reconnect and failover, so that it happens once.
    IdempotencyKey = "idempotency key";
    /// Ties what belongs to one turn together in logs; canonical form `corr/<session>/<turn>`.
    CorrelationId = "correlation id";
    /// Events that belong to one moment.
    SyncId = "sync id";
    /// Streams that are kept in step, e.g. `agent_av`.
    SyncDomain = "sync domain";
    /// A break that a sync domain resets at.
    DiscontinuityId = "discontinuity id";
    /// One merge of several events into one.
    MergeGroupId = "merge group id";
}

/// Replaces what would break an id's structure: `/` and blanks become `_`.
pub fn sanitize_part(part: &str) -> String {
    part.chars()
        .map(|c| {
            if c == '/' || c.is_whitespace() {
                '_'
            } else {
                c
            }
        })
        .collect()
}

impl EventId {
    /// The canonical id of the `ordinal`-th event of a turn, or of the session itself.
    pub fn canonical(session: &SessionId, turn: Option<&TurnId>, ordinal: u64) -> Self {
        let session = sanitize_part(session.as_str());
        let turn = turn.map_or_else(|| "session".to_owned(), |t| sanitize_part(t.as_str()));
        Self(format!("evt/{session}/{turn}/{ordinal:06}").into())
    }
}

impl EventId {
    /// The id of an event that stayed on an edge, by its number there.
    pub fn on_edge(
        session: &SessionId,
        turn: Option<&TurnId>,
        edge: &EdgeId,
        sequence: u64,
    ) -> Self {
        let session = sanitize_part(session.as_str());
        let turn = turn.map_or_else(|| "session".to_owned(), |t| sanitize_part(t.as_str()));
        let edge = sanitize_part(edge.as_str());
        Self(format!("evt/{session}/{turn}/{edge}:{sequence:06}").into())
    }
}

impl InvocationId {
    /// The canonical id of a provider call that `event` caused.
    pub fn canonical(
        session: &SessionId,
        turn: Option<&TurnId>,
        event: &EventId,
        modality: &str,
    ) -> Self {
        let session = sanitize_part(session.as_str());
        let turn = turn.map_or_else(|| "session".to_owned(), |t| sanitize_part(t.as_str()));
        let event = sanitize_part(event.as_str());
        let modality = sanitize_part(modality);
        Self(format!("pvi/{session}/{turn}/{event}/{modality}").into())
    }
}

impl CorrelationId {
    /// The canonical correlation id of a turn.
    pub fn canonical(session: &SessionId, turn: &TurnId) -> Self {
        let session = sanitize_part(session.as_str());
        let turn = sanitize_part(turn.as_str());
        Self(format!("corr/{session}/{turn}").into())
    }
}

impl IdempotencyKey {
    /// The canonical key of an event: the SHA-256 of `session/turn/event`, in hexadecimal.
    pub fn canonical(session: &SessionId, turn: Option<&TurnId>, event: &EventId) -> Self {
        let session = sanitize_part(session.as_str());
        let turn = turn.map_or_else(|| "session".to_owned(), |t| sanitize_part(t.as_str()));
        let digest = Sha256::digest(format!("{session}/{turn}/{event}"));
        Self(Hex(&digest).to_string().into())
    }
}

impl IdempotencyKey {
    /// The key of a tool call: session, the epoch under which its placement began, turn and call decide
    /// it, so that it stays the same over retries and restarts (P7, F-158). A placement that takes the
    /// session over counts its turns anew: what it asks for is not what was asked for before.
    pub fn of_tool(session: &SessionId, placed: Epoch, turn: &TurnId, call: &str) -> Self {
        let event = EventId(format!("tool/{placed}/{}", sanitize_part(call)).into());
        Self::canonical(session, Some(turn), &event)
    }
}

/// Counts turns within a session, from 1; the cheap form of a [`TurnId`] on the audio path.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct TurnNumber(pub u32);

impl TurnNumber {
    /// The session's first turn.
    pub const FIRST: Self = Self(1);

    /// The turn after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The turn that an id is of, as [`id`](Self::id) writes it.
    pub fn of(id: &TurnId) -> Option<Self> {
        id.as_str().strip_prefix("turn-")?.parse().ok().map(Self)
    }

    /// The turn's id within its session: `turn-0001`.
    pub fn id(self) -> TurnId {
        TurnId(format!("turn-{:04}", self.0).into())
    }
}

impl fmt::Display for TurnNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "turn-{:04}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_ids_keep_their_structure() {
        let session = SessionId::new("call/7 a").unwrap();
        let event = EventId::canonical(&session, Some(&TurnNumber::FIRST.id()), 42);
        assert_eq!(event.as_str(), "evt/call_7_a/turn-0001/000042");
        let call = InvocationId::canonical(&session, None, &event, "stt");
        assert_eq!(
            call.as_str(),
            "pvi/call_7_a/session/evt_call_7_a_turn-0001_000042/stt"
        );
    }

    #[test]
    fn idempotency_keys_follow_the_event_and_nothing_else() {
        let session = SessionId::new("s").unwrap();
        let turn = TurnId::new("t").unwrap();
        let event = EventId::canonical(&session, Some(&turn), 1);
        let key = IdempotencyKey::canonical(&session, Some(&turn), &event);
        // printf 's/t/evt/s/t/000001' | sha256sum
        assert_eq!(
            key.as_str(),
            "535aebfb59976fed6a2945dbf1e462efc59d3ce5bcd47336a9b6681358df5f3a"
        );
        let other = EventId::canonical(&session, Some(&turn), 2);
        assert_ne!(
            key,
            IdempotencyKey::canonical(&session, Some(&turn), &other)
        );
    }

    #[test]
    fn blank_and_giant_ids_are_refused() {
        assert_eq!(
            SessionId::new("  "),
            Err(IdError::Blank { kind: "session id" })
        );
        assert!(serde_json::from_str::<TurnId>("\"\"").is_err());
        assert!(TenantId::new("x".repeat(257)).is_err());
    }
}
