//! What a transport asks of whoever runs sessions, and what it hears of them.

use std::{collections::BTreeMap, fmt};

use futures::{future::BoxFuture, stream::BoxStream};
use rspp_proto::{Epoch, SessionId, TurnId, abi::ControlSignal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Admitted, Transport};

/// Runs sessions for those who were let in.
pub trait Sessions: Send + Sync + 'static {
    /// Opens a session on a transport.
    fn open(
        &self,
        admitted: Admitted,
        session: SessionId,
        transport: Transport,
    ) -> BoxFuture<'_, Result<Opened, Refusal>>;
}

/// A session that runs.
pub struct Opened {
    /// The epoch under which it may speak.
    pub epoch: Epoch,
    /// Resolves when it is over, with why.
    pub ended: BoxFuture<'static, String>,
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
            Self::Failed(_) => "not_opened",
        }
    }
}
