//! Tools: one table of calls for a turn, held by the turn's owner, each with exactly one end (P8).
//!
//! Knows nothing of how a tool runs. What is asked for is judged here (known, well formed, not asked
//! for twice), what comes back is written down before anybody looks whether it is still wanted (P7),
//! and the end of a turn leaves no call open.

use std::sync::Arc;

use rspp_proto::{
    NodeId, TurnNumber,
    spec::{NodeSpec, OnInterruption, SessionAction, ToolDeclaration, ToolEffects},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most calls of one turn; a model that wants more is told so.
pub const MAX_CALLS: usize = 32;
/// Longest arguments of a call, in bytes.
pub const MAX_ARGUMENT_BYTES: usize = 64 * 1_024;

/// A call as a model wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolRequest {
    /// Unique within the turn.
    pub call: Arc<str>,
    /// Which tool.
    pub tool: Arc<str>,
    /// JSON text.
    pub arguments: Arc<str>,
    /// How many answers of the turn came before the one that asks for it.
    pub round: u32,
}

/// How a call ended: each has exactly one end (P8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolEnd {
    /// The tool has answered.
    Finished,
    /// It could not be run, or said that it failed.
    Failed,
    /// It took longer than it may.
    TimedOut,
    /// It had begun and was given up: it may have had its effect.
    Abandoned,
    /// It never began: its turn was over before it could commit (P1).
    Refused,
}

impl ToolEnd {
    /// The end's name in journals and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Abandoned => "abandoned",
            Self::Refused => "refused",
        }
    }
}

/// How a call came back from whoever ran it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolOutcome {
    /// How it ended; an executor never says `Abandoned`.
    pub end: ToolEnd,
    /// What the model is told: a result, or what went wrong.
    pub content: String,
    /// What it asks of the session.
    pub action: Option<SessionAction>,
    /// How often it was tried.
    pub attempts: u32,
}

/// A step of a call's life, for the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolStep {
    /// The turn that asked for it.
    pub turn: TurnNumber,
    /// The call.
    pub call: Arc<str>,
    /// Which tool.
    pub tool: Arc<str>,
    /// What happened.
    pub what: ToolEvent,
}

/// What happened to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolEvent {
    /// A model asked for it.
    Requested {
        /// JSON text.
        arguments: Arc<str>,
        /// Which answer of the turn asked for it, from 0.
        round: u32,
    },
    /// Its executor found turn and epoch in force, and began.
    Began,
    /// It has ended.
    Ended {
        /// How.
        end: ToolEnd,
        /// What the model is told.
        content: Arc<str>,
        /// How often it was tried.
        attempts: u32,
    },
    /// It goes on without its turn.
    Detached,
    /// It came back after its end; kept for whoever looks for what has happened.
    Late {
        /// What it came back with.
        content: Arc<str>,
    },
    /// What it asked of the session is done.
    ActionCommitted(SessionAction),
    /// What it asked of the session is not done: its turn was aborted (P1).
    ActionRefused(SessionAction),
}

/// A call in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// As the model wrote it.
    pub request: ToolRequest,
    /// Who asked.
    pub node: NodeId,
    /// Longest result, in bytes.
    max_result_bytes: usize,
    /// Whether it goes on when its turn ends.
    finish: bool,
    began: bool,
    state: CallState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum CallState {
    /// Under way, or waiting for it.
    Open,
    /// Under way without its turn.
    Detached,
    Ended(ToolEnd, Arc<str>),
}

impl ToolCall {
    /// How it ended; `None` while it is under way.
    pub fn end(&self) -> Option<ToolEnd> {
        match &self.state {
            CallState::Open | CallState::Detached => None,
            CallState::Ended(end, _) => Some(*end),
        }
    }

    /// Whether it is under way for its turn.
    pub fn is_open(&self) -> bool {
        self.state == CallState::Open
    }

    /// Whether it goes on without its turn.
    pub fn is_detached(&self) -> bool {
        self.state == CallState::Detached
    }

    /// Whether it goes on when its turn ends.
    pub fn finishes(&self) -> bool {
        self.finish
    }

    /// What the next turn is told of it.
    pub fn exchange(&self, turn: TurnNumber) -> ToolExchange {
        let (end, result) = match &self.state {
            CallState::Ended(end, content) => (Some(*end), Arc::clone(content)),
            CallState::Open | CallState::Detached => (None, STILL_RUNNING.into()),
        };
        ToolExchange {
            turn,
            call: Arc::clone(&self.request.call),
            tool: Arc::clone(&self.request.tool),
            arguments: Arc::clone(&self.request.arguments),
            end,
            result,
            is_known: false,
        }
    }

    fn settle(&mut self, end: ToolEnd, content: &str) -> Arc<str> {
        let content: Arc<str> = bounded(content, self.max_result_bytes).into();
        self.state = CallState::Ended(end, Arc::clone(&content));
        content
    }
}

const STILL_RUNNING: &str =
    "still running; its result will follow. Do not call it again for the same purpose.";
const NEVER_BEGAN: &str = "not executed: the user interrupted before it began";
const GIVEN_UP: &str = "given up when the user interrupted; it may or may not have taken effect";
/// What the model is told of a call that another placement of its session had begun.
pub const MOVED: &str = "begun before the session moved; it may or may not have taken effect. Do not call it again for the same purpose.";

/// A call and its result, as the conversation keeps them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolExchange {
    /// The turn that asked for it.
    pub turn: TurnNumber,
    /// The call, unique within its turn.
    pub call: Arc<str>,
    /// Which tool.
    pub tool: Arc<str>,
    /// JSON text.
    pub arguments: Arc<str>,
    /// How it ended; `None` while it goes on without its turn.
    pub end: Option<ToolEnd>,
    /// What the model is told.
    pub result: Arc<str>,
    /// Whether a turn has been opened that was shown its end.
    pub is_known: bool,
}

/// What is to be done about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Run it.
    Run,
    /// It runs already under this id; whoever asked will be answered.
    Running,
    /// The answer is there.
    Answered {
        /// How it ended.
        end: ToolEnd,
        /// What the model is told.
        content: Arc<str>,
        /// Whether it has ended just now, without having been run.
        is_new: bool,
    },
}

/// A turn's calls.
#[derive(Clone, Debug, Default)]
pub struct ToolTable {
    calls: Vec<ToolCall>,
    /// What committed calls ask of the session, in order.
    actions: Vec<(usize, SessionAction)>,
}

impl ToolTable {
    /// A table of one call.
    pub fn of(call: ToolCall) -> Self {
        Self {
            calls: vec![call],
            actions: Vec::new(),
        }
    }

    /// Takes a request in. The same call asked for again is the same call, not another (F-158).
    pub fn ask(&mut self, node: &NodeId, spec: &NodeSpec, request: ToolRequest) -> Asked {
        if let Some(known) = self.find(&request.call) {
            return match &self.calls[known].state {
                CallState::Open | CallState::Detached => Asked::Running,
                CallState::Ended(end, content) => Asked::Answered {
                    end: *end,
                    content: Arc::clone(content),
                    is_new: false,
                },
            };
        }
        let declared = spec.tools.iter().find(|tool| *tool.name == *request.tool);
        let verdict = judge(spec, declared, &request, self.calls.len());
        let mut call = ToolCall {
            request,
            node: node.clone(),
            max_result_bytes: declared.map_or(1_024, |tool| tool.max_result_bytes),
            finish: declared.is_some_and(|tool| tool.on_interruption() == OnInterruption::Finish),
            began: false,
            state: CallState::Open,
        };
        let asked = match verdict {
            Ok(()) => Asked::Run,
            Err(problem) => Asked::Answered {
                end: ToolEnd::Failed,
                content: call.settle(ToolEnd::Failed, &problem),
                is_new: true,
            },
        };
        // A model without measure is told so, but not remembered without measure.
        if self.calls.len() < MAX_CALLS {
            self.calls.push(call);
        }
        asked
    }

    /// Notes that a call has begun; `false` if that was known, or there is no such call.
    pub fn began(&mut self, call: &str) -> bool {
        let Some(at) = self.find(call) else {
            return false;
        };
        !std::mem::replace(&mut self.calls[at].began, true)
    }

    /// Ends a call with what its executor says. `None` if there is no such call, or it has ended: an
    /// end is an end.
    pub fn ended(&mut self, call: &str, outcome: &ToolOutcome) -> Option<Arc<str>> {
        let at = self.find(call)?;
        let found = &mut self.calls[at];
        if found.end().is_some() {
            return None;
        }
        let content = found.settle(outcome.end, &outcome.content);
        if let Some(action) = outcome.action {
            self.actions.push((at, action));
        }
        Some(content)
    }

    /// What becomes of a call whose turn has ended; `began` says whether it had. `None` if it had ended
    /// or is detached already.
    pub fn interrupted(
        &mut self,
        call: &str,
        began: bool,
        may_finish: bool,
    ) -> Option<Interrupted> {
        let at = self.find(call)?;
        let found = &mut self.calls[at];
        if found.state != CallState::Open {
            return None;
        }
        Some(if !began {
            Interrupted::Ended(
                ToolEnd::Refused,
                found.settle(ToolEnd::Refused, NEVER_BEGAN),
            )
        } else if found.finish && may_finish {
            found.state = CallState::Detached;
            Interrupted::Detached
        } else {
            Interrupted::Ended(
                ToolEnd::Abandoned,
                found.settle(ToolEnd::Abandoned, GIVEN_UP),
            )
        })
    }

    /// The calls, as they were asked for.
    pub fn calls(&self) -> &[ToolCall] {
        &self.calls
    }

    /// Whether a call is under way for the turn.
    pub fn is_waiting(&self) -> bool {
        self.calls.iter().any(ToolCall::is_open)
    }

    /// A call by its id.
    pub fn get(&self, call: &str) -> Option<&ToolCall> {
        self.find(call).map(|at| &self.calls[at])
    }

    /// Takes what finished calls ask of the session.
    pub fn take_actions(&mut self) -> Vec<(ToolRequest, SessionAction)> {
        let actions = std::mem::take(&mut self.actions).into_iter();
        actions
            .map(|(at, action)| (self.calls[at].request.clone(), action))
            .collect()
    }

    fn find(&self, call: &str) -> Option<usize> {
        self.calls
            .iter()
            .position(|known| &*known.request.call == call)
    }
}

/// What became of an interrupted call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// It has ended, and this is what the model is told.
    Ended(ToolEnd, Arc<str>),
    /// It goes on without its turn.
    Detached,
}

/// Whether a call may run; else what the model is told.
fn judge(
    spec: &NodeSpec,
    declared: Option<&ToolDeclaration>,
    request: &ToolRequest,
    before: usize,
) -> Result<(), String> {
    let Some(tool) = declared else {
        let known: Vec<_> = spec.tools.iter().map(|tool| tool.name.as_str()).collect();
        let tool = &request.tool;
        return Err(format!(
            "there is no tool `{tool}`; there are {}",
            known.join(", ")
        ));
    };
    if before >= MAX_CALLS {
        return Err(format!(
            "a turn makes at most {MAX_CALLS} calls; answer with what you have"
        ));
    }
    if request.arguments.len() > MAX_ARGUMENT_BYTES {
        return Err(format!(
            "the arguments are longer than {MAX_ARGUMENT_BYTES} bytes"
        ));
    }
    let arguments: Value = serde_json::from_str(&request.arguments)
        .map_err(|error| format!("the arguments are no JSON: {error}"))?;
    let problems = tool.arguments().check(&arguments);
    if problems.is_empty() {
        return Ok(());
    }
    let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
    Err(format!("invalid arguments: {}", problems.join("; ")))
}

/// Whether two calls ask for the same effect: one tool, equal arguments, however they are written.
pub fn asks_for_the_same(spec: &NodeSpec, request: &ToolRequest, earlier: &ToolExchange) -> bool {
    let has_effects = spec
        .tools
        .iter()
        .any(|tool| *tool.name == *request.tool && tool.effects == ToolEffects::External);
    let value = |text: &str| serde_json::from_str::<Value>(text).ok();
    has_effects
        && request.tool == earlier.tool
        && (request.arguments == earlier.arguments
            || value(&request.arguments)
                .is_some_and(|arguments| Some(arguments) == value(&earlier.arguments)))
}

/// `text`, cut to `limit` bytes and marked if it was longer.
fn bounded(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mark = format!("… [cut: {} bytes in all]", text.len());
    let end = text.floor_char_boundary(limit.saturating_sub(mark.len()));
    format!("{}{mark}", &text[..end])
}

#[cfg(test)]
mod tests;
