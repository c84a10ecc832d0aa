//! Everything the kernel can ask the host to do. Effects are carried out in order, and the ones
//! that have an answer are answered before the next is taken.

use std::sync::Arc;

use rspp_proto::{
    Epoch, NodeId, TurnNumber,
    abi::{CancelMode, CancelScope, Emitter, Signal, TurnTransition},
    spec::SessionAction,
};

use crate::{
    admission::Decision,
    input::{CancelReason, Part},
    invocation::TurnDeadlines,
    recovery::Task,
    refused::RefusedMove,
    speculation::Discarded,
    tool::{ToolRequest, ToolStep},
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

impl SessionState {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "CONNECTING",
            Self::Active => "ACTIVE",
            Self::Draining => "DRAINING",
            Self::Ended => "ENDED",
        }
    }
}

/// A control signal, before it is stamped with ids and times.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The one part of the work that a cancel is of.
    pub part: Option<Part>,
    /// How a cancel ends what it reaches.
    pub mode: Option<CancelMode>,
}

/// What became of something that arrived for a turn that is over (T11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateAction {
    /// Nothing.
    Drop,
    /// It proposes a turn of its own.
    Repropose,
    /// It is noted.
    Diagnostics,
}

impl LateAction {
    /// The action as the timeline writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Repropose => "repropose",
            Self::Diagnostics => "diagnostics",
        }
    }
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
        /// The limit that was reached, and when to ask again.
        decision: Decision,
    },
    /// Note that somebody asked for a move that is not made.
    RefuseMove(RefusedMove),
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
        /// Whether it runs in the pipeline's degrade posture.
        degraded: bool,
    },
    /// Tell the user whether the session has its voice; it goes on in text without.
    Voice {
        /// Whether it has.
        available: bool,
    },
    /// Start the turn's nodes and hand them their task.
    Start {
        /// The turn.
        turn: TurnNumber,
        /// What it is for.
        task: Task,
        /// Whether it is to be said in text only (F-137).
        mute: bool,
        /// By when its work has to be done.
        deadlines: TurnDeadlines,
    },
    /// Begin an answer on a guess, under a provisional number: nothing of it leaves, is kept or is done
    /// before `Effect::Promote` (P9). If that cannot be, answer with `Input::GuessFailed`.
    Speculate {
        /// Its provisional number.
        turn: TurnNumber,
        /// The epoch it is begun under.
        epoch: Epoch,
        /// The user's words so far.
        user_text: String,
    },
    /// The guess was right, and its turn has opened: what it has made so far counts, and what it still
    /// works on is held to the turn's deadlines from here on.
    Promote {
        /// The turn.
        turn: TurnNumber,
        /// By when its work has to be done.
        deadlines: TurnDeadlines,
    },
    /// The guess came to nothing: abort its work, and say what it has cost with `Input::GuessSpent`.
    Discard {
        /// Its provisional number.
        turn: TurnNumber,
        /// Why.
        reason: Discarded,
    },
    /// Raise the output fence, now; answer with `Input::Fenced`.
    Fence {
        /// The turn; it and all before it are dead.
        turn: TurnNumber,
        /// Whether a cancel asked for it; else the turn has ended.
        cancelled: bool,
    },
    /// Stop the turn's nodes and provider calls.
    Cancel {
        /// The turn.
        turn: TurnNumber,
        /// Why.
        reason: CancelReason,
    },
    /// Drop what is queued for the user, and count it, before the turn's evidence is sealed.
    Flush {
        /// The turn; it and all before it are dead.
        turn: TurnNumber,
    },
    /// Finish what is in flight and begin nothing else: a soft cancel was accepted. Answer with
    /// `Input::ClauseOver` when the clause that is being heard is over.
    Soften {
        /// The turn.
        turn: TurnNumber,
        /// Why.
        reason: CancelReason,
    },
    /// Let nothing more of the turn be heard for now; work on it goes on.
    Hold {
        /// The turn.
        turn: TurnNumber,
    },
    /// The turn may be heard again, from where it was held.
    Release {
        /// The turn.
        turn: TurnNumber,
        /// Why.
        reason: &'static str,
    },
    /// Look for signs of life of the turn; answer with `Input::Pulse`.
    Probe {
        /// The turn.
        turn: TurnNumber,
    },
    /// The turn has gone mute: have the stage that hangs replaced.
    Unstick {
        /// The turn.
        turn: TurnNumber,
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
    /// Write a step of a call down; before it is looked at whether anybody still wants it (P7).
    Journal(ToolStep),
    /// Run a tool; answer with `Input::ToolEnded`, once.
    RunTool {
        /// The turn that asks for it.
        turn: TurnNumber,
        /// The epoch it asks under.
        epoch: Epoch,
        /// Who asks.
        node: NodeId,
        /// What for.
        request: ToolRequest,
    },
    /// A turn is over: a call of it that has not begun must not, and one that is not to finish is
    /// given up. Answer with `Input::ToolInterrupted`.
    InterruptTool {
        /// The turn.
        turn: TurnNumber,
        /// The call.
        call: Arc<str>,
        /// Whether it goes on if it has begun.
        finish: bool,
    },
    /// Hand a call's result to the node that asked.
    AnswerTool {
        /// The turn.
        turn: TurnNumber,
        /// Who asked.
        node: NodeId,
        /// The call.
        call: Arc<str>,
        /// What the model is told.
        content: Arc<str>,
    },
    /// A tool asked something of the session, and its turn has committed.
    Act(SessionAction),
    /// Something arrived for a turn that is over.
    Late {
        /// The turn.
        turn: TurnNumber,
        /// What became of it.
        action: LateAction,
    },
    /// Refuse everything from now on: authority is lost. Answer with `Input::Fenced` if a turn runs.
    Revoke,
    /// Ask for a renewal of the lease; answer with `Input::Renewed`, or `Input::Revoked` if somebody
    /// else has it.
    Renew,
    /// The session is moving, and what was begun here is over: keep what the next placement needs, then
    /// answer with `Input::HandedOver`.
    HandOver,
    /// Accept only this epoch from now on.
    Rotate {
        /// The newer epoch.
        epoch: Epoch,
    },
    /// The session's state changed.
    Session(SessionState),
}
