//! What a transport asks of whoever runs sessions, and what it hears of them.

use std::{collections::BTreeMap, fmt};

use futures::{future::BoxFuture, stream::BoxStream};
use rspp_proto::{Epoch, SessionId, Spending, TurnId, abi::ControlSignal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Admitted, Grant, Transport, Wishes};

/// Runs sessions for those who were let in.
pub trait Sessions: Send + Sync + 'static {
    /// The session that a client gets: the one that its grant is for. Where new sessions are taken on while nobody
    /// can be asked for that one, another that nobody else can ever be given (F-098).
    fn session_of(&self, grant: &Grant) -> SessionId {
        grant.session.clone()
    }

    /// Opens a session on a transport, as its client wishes it.
    fn open(
        &self,
        admitted: Admitted,
        session: SessionId,
        wishes: Wishes,
        transport: Transport,
    ) -> BoxFuture<'_, Result<Opened, Refusal>>;
}

/// A session that runs.
pub struct Opened {
    /// The epoch under which it may speak.
    pub epoch: Epoch,
    /// Resolves when it is over here.
    pub ended: BoxFuture<'static, Farewell>,
    /// What it says of itself, until it is over.
    pub news: BoxStream<'static, News>,
    /// Lets it finish what it says, then end.
    pub drain: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened")
    }
}

/// How a session ends here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Farewell {
    /// Why.
    pub reason: String,
    /// Where it goes on, if it does.
    pub elsewhere: Option<Elsewhere>,
}

impl Farewell {
    /// It is over for good.
    pub fn because(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            elsewhere: None,
        }
    }
}

/// Where a session is to be had instead. Prints without the token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Elsewhere {
    /// What to connect to.
    pub url: String,
    /// What to show there; without, what was shown here is good there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Elsewhere")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// What a session says of itself, for clients that want to know.
#[derive(Clone, Debug)]
pub enum News {
    /// A control signal.
    Signal(Box<ControlSignal>),
    /// A turn is over.
    Turn(Box<TurnNews>),
}

/// A turn that is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TurnNews {
    /// The turn.
    pub turn: TurnId,
    /// `commit` or `abort`.
    pub outcome: String,
    /// Why, if it was aborted.
    pub reason: Option<String>,
    /// What the user said, as understood.
    pub user_text: String,
    /// What the agent was to say.
    pub agent_text: String,
    /// What was heard of it.
    pub heard_text: String,
    /// When things happened, in milliseconds of the session's clock, by the names of the anchors.
    pub anchors_ms: BTreeMap<String, f64>,
    /// From the end of the user's speech to the reply's first audio, in milliseconds.
    pub first_audio_ms: Option<f64>,
    /// What its provider calls cost.
    #[serde(default)]
    pub spending: Spending,
}

/// Why a session was not opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// There is no room; it may come back.
    #[error("{0}")]
    Busy(String),
    /// It asks for something that is not served here.
    #[error("{0}")]
    NotHere(String),
    /// It is to be had elsewhere.
    #[error("the session is to be had at {}", .0.url)]
    Elsewhere(Elsewhere),
    /// It cannot be opened at all.
    #[error("{0}")]
    Failed(String),
}

impl Refusal {
    /// A stable word for clients, records and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Busy(_) => "busy",
            Self::NotHere(_) => "not_served_here",
            Self::Elsewhere(_) => "elsewhere",
            Self::Failed(_) => "not_opened",
        }
    }
}
