//! Everything that can happen to a session.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rspp_proto::{
    Epoch, InvocationId, Monotonic, NodeId, SampleIndex, TurnNumber,
    abi::{CancelMode, CancelScope},
    spec::{AdaptiveAction, Budgets, FailurePolicy, NodeSpec},
};

use crate::{
    admission::Decision,
    continuation::Continuation,
    journal::{blurred, blurred_json},
    tool::{ToolExchange, ToolOutcome, ToolRequest},
    turn::Ending,
};

/// Why somebody cancels (F-035).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// The user spoke over the agent.
    BargeIn,
    /// The user or an operator asked for it.
    UserCancel,
    /// Something took too long.
    Timeout,
    /// A provider failed for good.
    ProviderError,
}

/// A part of the work that can be cancelled by itself (event-abi.md §1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// One node's work, and everything downstream of it.
    Node(NodeId),
    /// One provider call.
    Invocation(InvocationId),
}

impl Part {
    /// How far its cancel reaches.
    pub fn scope(&self) -> CancelScope {
        match self {
            Self::Node(_) => CancelScope::Node,
            Self::Invocation(_) => CancelScope::ProviderInvocation,
        }
    }
}

impl CancelReason {
    /// The reason as the signal carries it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BargeIn => "barge_in",
            Self::UserCancel => "user_cancel",
            Self::Timeout => "timeout",
            Self::ProviderError => "provider_error",
        }
    }
}

/// How a placement came to its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Nobody has spoken for the session before.
    Issued,
    /// Another placement spoke for it until now.
    TakenOver,
}

/// What must hold before a turn may open, judged in this order (lifecycle.md §3).
#[expect(clippy::struct_excessive_bools, reason = "each is a gate of its own")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Gates {
    /// The control plane's snapshots are present and fresh enough.
    pub snapshot_valid: bool,
    /// Whether there is room for one more turn.
    pub admission: Decision,
    /// The epoch that the caller of the turn carries.
    pub epoch: Epoch,
    /// Whether this placement still holds the session's lease.
    pub authorized: bool,
    /// Of a turn that was begun as a guess: whether it would be begun by the same plan now. True of
    /// every other turn.
    #[serde(default = "yes")]
    pub guess_holds: bool,
    /// Whether the turn's evidence can be kept, whatever becomes of it (T9).
    #[serde(default = "yes")]
    pub evidence: bool,
}

fn yes() -> bool {
    true
}

/// What the kernel needs to know of a resolved plan.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PlanFacts {
    /// 64 lowercase hex digits.
    pub hash: String,
    /// Time limits of the turn.
    pub budgets: Budgets,
    /// What may be done about running out of them.
    pub actions: BTreeSet<AdaptiveAction>,
    /// How a cancel ends what can be heard.
    pub cancel_mode: CancelMode,
    /// What the user gets when the turn fails for good.
    #[serde(default)]
    pub failure: FailurePolicy,
}

/// Why nobody knows what the user has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unrecognised {
    /// Recognition failed.
    Failed,
    /// It has not come to an end in the time that the pipeline gives it; words that come later count.
    Overdue,
    /// It may cost no more.
    Refused,
}

impl Unrecognised {
    /// The reason as the signal carries it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "utterance_not_recognised",
            Self::Overdue => "transcript_timeout",
            Self::Refused => "utterance_refused_cost_cap",
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// The transport is up, for the first time or again.
    Connected,
    /// The transport is gone for good, or the user hung up.
    Disconnected,
    /// The transport has lost its link and tries to get it back.
    Reconnecting,
    /// The transport has lost its link; it may come back.
    ConnectionLost,
    /// No audio has come from the user for a while.
    LineSilent,
    /// The peer has taken no output for a while.
    LineStalled,
    /// Media flows, for the first time or again after a silence or a stall.
    LineFlowing,
    /// The session shall end once its turn has.
    Drain,

    /// The user began to speak.
    SpeechStarted {
        /// First sample of speech.
        at: SampleIndex,
    },
    /// The user stopped speaking.
    SpeechStopped {
        /// First sample after speech.
        at: SampleIndex,
    },
    /// The user goes on after a silence that was too short to be an end.
    SpeechResumed {
        /// First sample of sound.
        at: SampleIndex,
    },
    /// The user's words so far were recognised.
    Recognised {
        /// First sample of the speech that they are of.
        at: SampleIndex,
        /// The words.
        text: Arc<str>,
        /// Whether there will be no others.
        is_final: bool,
    },
    /// The user has typed something that wants an answer: the intent to open a turn.
    UserTurn {
        /// The words.
        text: String,
    },
    /// The user has said something that wants an answer: the intent to open a turn.
    Spoken {
        /// The words.
        text: String,
        /// First sample of the speech that they are of.
        from: SampleIndex,
        /// First sample after the speech that the turn ends with.
        until: SampleIndex,
    },
    /// The user's own client stops the running turn.
    Stop,

    /// The user pauses and may have finished, or not: a guess may be begun with these words.
    UserPaused {
        /// The words so far.
        text: String,
    },
    /// The user still speaks, and what was said so far is handed to the model (turn-plan.md §7).
    WordsHanded {
        /// The words so far.
        text: String,
    },
    /// Answers [`Effect::Speculate`](crate::Effect::Speculate) if it cannot be begun, or has failed since.
    GuessFailed {
        /// Its provisional number.
        turn: TurnNumber,
    },
    /// What a guess that came to nothing has cost.
    GuessSpent {
        /// Tokens that models had streamed.
        tokens: u64,
        /// Characters that had been given to synthesis.
        characters: u64,
    },

    /// What the user has said was not recognised, and is given up (P5).
    Unrecognised {
        /// Why.
        why: Unrecognised,
        /// What the user gets instead of an answer.
        apology: Option<String>,
    },

    /// Somebody cancels the running turn, or something that the turn cannot go on without.
    Cancel {
        /// Why.
        reason: CancelReason,
        /// What was to be cancelled.
        scope: CancelScope,
    },
    /// Somebody cancels a part of the work.
    CancelPart {
        /// Why.
        reason: CancelReason,
        /// What was cancelled.
        part: Part,
        /// Whether the user would hear of it: then that is the turn (F-034).
        silences: bool,
    },
    /// Another placement has spoken for the session before: what it left, before anything is said here.
    Resumed(Box<Continuation>),
    /// This placement speaks for the session now.
    Placed(Placement),
    /// The lease lasts for `ttl` from when it was asked for; before that it has to be renewed.
    Leased {
        /// When it was asked for.
        asked: Monotonic,
        /// For how long.
        ttl: Duration,
    },
    /// Answers [`Effect::Renew`](crate::Effect::Renew); `None` if nobody could be asked.
    Renewed {
        /// For how long, counted from when it was asked for.
        ttl: Option<Duration>,
    },
    /// The session begins to move to another placement: no turn opens here any more. Once what was begun
    /// is over, [`Effect::HandOver`](crate::Effect::HandOver) asks for the rest.
    Leaving,
    /// Another placement had the session before, and this is what it has done.
    Inherited(Box<Inheritance>),
    /// The session has moved: another placement speaks for it.
    HandedOver,
    /// The lease moved on; this placement may go on under `epoch`.
    Rotated {
        /// The newer epoch.
        epoch: Epoch,
    },
    /// This placement may no longer speak for the session.
    Revoked,

    /// Answers [`Effect::Judge`](crate::Effect::Judge).
    Gates {
        /// The turn being opened.
        turn: TurnNumber,
        /// What was found.
        gates: Gates,
    },
    /// Answers [`Effect::Resolve`](crate::Effect::Resolve); `None` if the plan cannot be built.
    Plan {
        /// The turn being opened.
        turn: TurnNumber,
        /// What the plan says.
        facts: Option<PlanFacts>,
    },
    /// Answers [`Effect::Fence`](crate::Effect::Fence).
    Fenced {
        /// The turn.
        turn: TurnNumber,
        /// Output frames that were accepted of it.
        accepted: u32,
    },
    /// The client says how much was heard of a turn whose fence has fallen: what was sent may not have been
    /// played (P2).
    Heard {
        /// The turn.
        turn: TurnNumber,
        /// Output frames that were heard of it.
        frames: u32,
    },
    /// Answers [`Effect::Seal`](crate::Effect::Seal).
    Sealed {
        /// The turn.
        turn: TurnNumber,
        /// Whether the evidence is kept.
        stored: bool,
    },

    /// The model produced something for the turn.
    Progress {
        /// The turn.
        turn: TurnNumber,
    },
    /// A clause is about to be spoken.
    ClauseBegun {
        /// The turn.
        turn: TurnNumber,
        /// Counts clauses within the turn.
        segment: u32,
        /// Its words.
        text: String,
    },
    /// Audio of a clause was made.
    FramesMade {
        /// The turn.
        turn: TurnNumber,
        /// Which clause.
        segment: u32,
        /// How many output frames.
        frames: u32,
    },
    /// All audio of a clause was made.
    ClauseMade {
        /// The turn.
        turn: TurnNumber,
        /// Which clause.
        segment: u32,
    },
    /// Answers [`Effect::Soften`](crate::Effect::Soften): what was in flight has been heard.
    ClauseOver {
        /// The turn.
        turn: TurnNumber,
    },
    /// Answers [`Effect::Probe`](crate::Effect::Probe).
    Pulse {
        /// The turn.
        turn: TurnNumber,
        /// When something was last heard of it.
        heard: Option<Monotonic>,
        /// When a provider last brought a piece of an answer.
        #[serde(default)]
        answered: Option<Monotonic>,
        /// Whether something is at work that keeps time itself: a provider's or tool's call, or a
        /// node within its budget.
        at_work: bool,
    },
    /// A clause was sent to the user as text, since there is no voice for it.
    ClauseShown {
        /// The turn.
        turn: TurnNumber,
        /// Which clause.
        segment: u32,
        /// Its words.
        text: String,
    },
    /// The turn's voice has failed for good.
    VoiceLost {
        /// The turn.
        turn: TurnNumber,
    },
    /// A node's standby took its place in the turn.
    TookOver {
        /// The turn.
        turn: TurnNumber,
        /// Whether that was its voice: what it had broken off is not said again.
        is_voice: bool,
    },
    /// The turn's first frame was accepted at egress.
    PlaybackStarted {
        /// The turn.
        turn: TurnNumber,
    },
    /// The turn's last frame was accepted at egress, or it ended without any.
    PlaybackFinished {
        /// The turn.
        turn: TurnNumber,
    },
    /// Nothing legal is left for the turn.
    TurnFailed {
        /// The turn.
        turn: TurnNumber,
        /// What ended it.
        ending: Ending,
    },
    /// A node's model calls tools.
    ToolsCalled {
        /// The turn.
        turn: TurnNumber,
        /// The node, with the tools that it declares.
        node: Arc<NodeSpec>,
        /// What it asks for.
        calls: Vec<ToolRequest>,
    },
    /// A tool's executor found turn and epoch in force, and has begun.
    ToolBegan {
        /// The turn that asked for it.
        turn: TurnNumber,
        /// The call.
        call: Arc<str>,
    },
    /// Answers [`Effect::RunTool`](crate::Effect::RunTool).
    ToolEnded {
        /// The turn that asked for it.
        turn: TurnNumber,
        /// The call.
        call: Arc<str>,
        /// What came back.
        outcome: ToolOutcome,
    },
    /// Answers [`Effect::InterruptTool`](crate::Effect::InterruptTool).
    ToolInterrupted {
        /// The turn that asked for it.
        turn: TurnNumber,
        /// The call.
        call: Arc<str>,
        /// Whether it had begun.
        began: bool,
    },
    /// The session is stopped now: no call is waited for any more.
    ToolsGivenUp,
    /// A deadline has passed.
    Tick,
}

impl Input {
    /// Takes out the words that were said; see [`crate::journal`].
    pub(crate) fn blur(&mut self) {
        match self {
            Self::UserTurn { text }
            | Self::UserPaused { text }
            | Self::WordsHanded { text }
            | Self::Spoken { text, .. }
            | Self::ClauseBegun { text, .. }
            | Self::ClauseShown { text, .. } => {
                *text = blurred(text);
            }
            Self::Resumed(continuation) => continuation.blur(),
            Self::Recognised { text, .. } => *text = blurred(text).into(),
            Self::ToolsCalled { calls, .. } => {
                for call in calls {
                    call.arguments = blurred_json(&call.arguments).into();
                }
            }
            Self::ToolEnded { outcome, .. } => outcome.content = blurred(&outcome.content),
            Self::Inherited(inheritance) => {
                for tool in &mut inheritance.tools {
                    tool.arguments = blurred_json(&tool.arguments).into();
                    tool.result = blurred(&tool.result).into();
                }
            }
            Self::Connected
            | Self::Disconnected
            | Self::Reconnecting
            | Self::ConnectionLost
            | Self::LineSilent
            | Self::LineStalled
            | Self::LineFlowing
            | Self::Placed(_)
            | Self::Leased { .. }
            | Self::Renewed { .. }
            | Self::Leaving
            | Self::HandedOver
            | Self::Drain
            | Self::SpeechStarted { .. }
            | Self::SpeechStopped { .. }
            | Self::SpeechResumed { .. }
            | Self::Stop
            | Self::Unrecognised { .. }
            | Self::Cancel { .. }
            | Self::CancelPart { .. }
            | Self::Rotated { .. }
            | Self::Revoked
            | Self::Gates { .. }
            | Self::Plan { .. }
            | Self::Fenced { .. }
            | Self::Heard { .. }
            | Self::Sealed { .. }
            | Self::Progress { .. }
            | Self::FramesMade { .. }
            | Self::ClauseMade { .. }
            | Self::ClauseOver { .. }
            | Self::Pulse { .. }
            | Self::TookOver { .. }
            | Self::VoiceLost { .. }
            | Self::PlaybackStarted { .. }
            | Self::PlaybackFinished { .. }
            | Self::TurnFailed { .. }
            | Self::GuessFailed { .. }
            | Self::GuessSpent { .. }
            | Self::ToolBegan { .. }
            | Self::ToolInterrupted { .. }
            | Self::ToolsGivenUp
            | Self::Tick => {}
        }
    }
}

/// What a placement takes over of the one before it, so that no effect is had twice (F-158).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Inheritance {
    /// The first turn of this placement: none goes by the number of one whose tools have begun.
    pub next_turn: TurnNumber,
    /// Tool calls that had begun in turns whose reply does not stand.
    pub tools: Vec<ToolExchange>,
}

impl Default for Inheritance {
    fn default() -> Self {
        Self {
            next_turn: TurnNumber::FIRST,
            tools: Vec::new(),
        }
    }
}
