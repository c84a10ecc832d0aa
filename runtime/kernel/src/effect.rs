//! Everything the kernel can ask the host to do. Effects are carried out in order, and the ones
//! that have an answer are answered before the next is taken.

use rspp_proto::{
    Epoch, TurnNumber,
    abi::{CancelScope, Emitter, Signal, TurnTransition},
};

use crate::{
    input::CancelReason,
    turn::{Refusal, Terminal},
};

/// A session's life (F-138).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SessionState {
    /// No transport yet.
    Connecting,
    /// In conversation.
    Active,
    /// Opens no turn any more.
    Draining,
    /// Over for good.
    Ended,
}

/// A control signal, before it is stamped with ids and times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emission {
    /// Which signal.
    pub signal: Signal,
    /// Who says it.
    pub emitter: Emitter,
    /// Of which turn; `None` for the session.
    pub turn: Option<TurnNumber>,
    /// Why, where the signal has a reason.
    pub reason: Option<&'static str>,
    /// How far a cancel reaches.
    pub scope: Option<CancelScope>,
}

/// Something the host must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Stamp, record and publish a signal.
    Signal(Emission),
    /// Record that an intent was refused.
    Refused {
        /// The turn that did not open.
        turn: TurnNumber,
        /// Why.
        refusal: Refusal,
    },
    /// Record a turn's transition.
    Transition {
        /// The turn.
        turn: TurnNumber,
        /// From where to where, and why.
        step: TurnTransition,
    },
    /// Look at snapshots, capacity and authority; answer with `Input::Gates`.
    Judge {
        /// The turn to open.
        turn: TurnNumber,
    },
    /// Build the turn's plan; answer with `Input::Plan`.
    Resolve {
        /// The turn to open.
        turn: TurnNumber,
        /// The epoch it opens under.
        epoch: Epoch,
    },
    /// Start the turn's nodes and hand them the user's words.
    Start {
        /// The turn.
        turn: TurnNumber,
        /// The user's words.
        user_text: String,
    },
    /// Raise the output fence, now; answer with `Input::Fenced`.
    Fence {
        /// The turn; it and all before it are dead.
        turn: TurnNumber,
        /// Whether a cancel asked for it; else the turn has ended.
        cancelled: bool,
    },
    /// Stop the turn's nodes and provider calls and drop what is queued for the user.
    Cancel {
        /// The turn.
        turn: TurnNumber,
        /// Why.
        reason: CancelReason,
    },
    /// Append the terminal evidence; answer with `Input::Sealed`.
    Seal {
        /// The turn.
        turn: TurnNumber,
        /// How it ended.
        terminal: Terminal,
    },
    /// Tear the turn's actors down.
    Stop {
        /// The turn.
        turn: TurnNumber,
    },
    /// Something arrived for a turn that is over.
    Late {
        /// The turn.
        turn: TurnNumber,
    },
    /// Refuse everything from now on: authority is lost. Answer with `Input::Fenced` if a turn runs.
    Revoke,
    /// Accept only this epoch from now on.
    Rotate {
        /// The newer epoch.
        epoch: Epoch,
    },
    /// The session's state changed.
    Session(SessionState),
}
