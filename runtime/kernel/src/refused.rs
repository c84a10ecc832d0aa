//! Moves that a session or a turn does not make: refused, told by a code, and nothing changes (F-138,
//! F-139, F-141).

use rspp_proto::{
    TurnNumber,
    abi::{CancelScope, TurnState, TurnTrigger},
};
use serde::{Deserialize, Serialize};

use crate::effect::SessionState;

/// A move that was asked for where it cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedMove {
    /// Of the session.
    Session {
        /// Where it stands, and stays.
        from: SessionState,
        /// Where it was to go.
        to: SessionState,
    },
    /// Of a turn.
    Turn {
        /// The turn.
        turn: TurnNumber,
        /// Where it stands, and stays; `Idle` if it never opened.
        from: TurnState,
        /// What was to move it.
        trigger: TurnTrigger,
    },
    /// A cancel of a part that there is not.
    Cancel {
        /// A node or a provider call.
        scope: CancelScope,
    },
}

impl RefusedMove {
    /// Why it was refused; the same for equal moves.
    pub fn code(self) -> &'static str {
        match self {
            Self::Session { from, .. } => match from {
                SessionState::Connecting => "session_is_connecting",
                SessionState::Active => "session_is_active",
                SessionState::Draining => "session_is_draining",
                SessionState::Ended => SESSION_HAS_ENDED,
            },
            Self::Turn { from, .. } => match from {
                TurnState::Idle => "no_such_turn",
                TurnState::Opening => "turn_is_not_open",
                TurnState::Active => "turn_is_open",
                TurnState::Terminal => "turn_is_ending",
                TurnState::Closed => "turn_is_closed",
            },
            Self::Cancel { scope } => match scope {
                CancelScope::Session => SESSION_HAS_ENDED,
                CancelScope::Turn => "no_such_turn",
                CancelScope::Node => "no_such_node",
                CancelScope::ProviderInvocation => "no_such_call",
            },
        }
    }

    /// Where session or turn stands.
    pub fn stands(self) -> &'static str {
        match self {
            Self::Session { from, .. } => from.as_str(),
            Self::Turn { from, .. } => from.as_str(),
            Self::Cancel { .. } => "unknown",
        }
    }

    /// What was asked for.
    pub fn asked(self) -> &'static str {
        match self {
            Self::Session { to, .. } => to.as_str(),
            Self::Turn { trigger, .. } => trigger.as_str(),
            Self::Cancel { .. } => "cancel",
        }
    }

    /// The turn, if it is about one.
    pub fn turn(self) -> Option<TurnNumber> {
        match self {
            Self::Session { .. } | Self::Cancel { .. } => None,
            Self::Turn { turn, .. } => Some(turn),
        }
    }
}

/// The code of everything that is asked of a session that is over.
pub const SESSION_HAS_ENDED: &str = "session_has_ended";
