//! What became of each tool call, step by step.

use rspp_proto::{Epoch, IdempotencyKey, Monotonic, SessionId, TurnId};
use serde::{Deserialize, Serialize};

/// What happened to a call. One that was requested has exactly one of the five ends (P8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolStep {
    /// A model asked for it.
    Requested,
    /// Its executor found turn and epoch in force, and began.
    Began,
    /// It goes on without its turn.
    Detached,
    /// End: the tool has answered.
    Finished,
    /// End: it could not be run, or said that it failed.
    Failed,
    /// End: it took longer than it may.
    TimedOut,
    /// End: it had begun and was given up.
    Abandoned,
    /// End: it never began, since its turn was over (P1).
    Refused,
    /// It came back after its end.
    Late,
    /// What it asked of the session is done.
    ActionCommitted,
    /// What it asked of the session is not done: its turn was aborted (P1).
    ActionRefused,
}

impl ToolStep {
    /// The step's name, as recordings write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Began => "began",
            Self::Detached => "detached",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Abandoned => "abandoned",
            Self::Refused => "refused",
            Self::Late => "late",
            Self::ActionCommitted => "action_committed",
            Self::ActionRefused => "action_refused",
        }
    }

    /// Whether the call has ended with it.
    pub fn is_end(self) -> bool {
        match self {
            Self::Finished | Self::Failed | Self::TimedOut | Self::Abandoned | Self::Refused => {
                true
            }
            Self::Requested
            | Self::Began
            | Self::Detached
            | Self::Late
            | Self::ActionCommitted
            | Self::ActionRefused => false,
        }
    }
}

/// One step of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolEntry {
    /// When.
    pub at: Monotonic,
    /// The conversation.
    pub session_id: SessionId,
    /// The turn whose model asked for it.
    pub turn_id: TurnId,
    /// The epoch it was written down under.
    pub authority_epoch: Epoch,
    /// The call, unique within its turn.
    pub call_id: String,
    /// Names its effect: session, turn and call, over retries and failovers (F-158).
    pub idempotency_key: IdempotencyKey,
    /// Which tool.
    pub tool: String,
    /// What happened.
    pub step: ToolStep,
    /// How often it was tried; with an end.
    #[serde(default)]
    pub attempts: u32,
    /// Its arguments, redacted as text is; with its request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
    /// What the model is told, redacted as text is; with an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
}
