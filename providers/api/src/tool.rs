//! Tools: what somebody else does on a model's behalf.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use rspp_proto::{
    Epoch, IdempotencyKey, SessionId, SpanId, TraceId, TraceParent, TurnId, WallClock,
    spec::SessionAction,
};
use serde_json::Value;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::Attempt;

/// What a tool has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolOutput {
    /// What the model is told; JSON or plain words.
    pub content: String,
    /// What it asks of the session, if anything.
    pub action: Option<SessionAction>,
}

impl ToolOutput {
    /// A result that asks nothing of the session.
    pub fn new(content: impl Into<String>) -> Self {
        Self {
            content: content.into(),
            action: None,
        }
    }
}

/// Why a tool could not do what it was asked for; the model is told.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct ToolFault {
    /// What happened, in words that a model understands; never a secret.
    pub message: String,
    /// Whether the same again may go well.
    pub retryable: bool,
}

impl ToolFault {
    /// It fails, and would fail again.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            retryable: false,
        }
    }

    /// It fails now, but may go well later.
    pub fn passing(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            retryable: true,
        }
    }
}

/// Says whether a call may have its effect now: its turn lives and its epoch holds (P1).
#[derive(Clone)]
pub struct Permit(Arc<dyn Fn() -> bool + Send + Sync>);

impl Permit {
    /// A permit that asks `holds`.
    pub fn new(holds: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(holds))
    }

    /// A permit for tests of a tool alone.
    pub fn always() -> Self {
        Self::new(|| true)
    }
}

/// One attempt at one call.
#[derive(Clone)]
pub struct ToolRun {
    /// The asking session.
    pub session: SessionId,
    /// The asking turn.
    pub turn: TurnId,
    /// The authority under which it asks.
    pub epoch: Epoch,
    /// The call, unique within its turn.
    pub call: String,
    /// Equal for all attempts, so that the effect happens once (F-158).
    pub key: IdempotencyKey,
    /// What the model wrote; fits the tool's declared parameters.
    pub arguments: Value,
    /// Which attempt.
    pub attempt: Attempt,
    /// How long it may still take; the runtime enforces it.
    pub within: Duration,
    /// What the calendar and the clock say.
    pub wall: WallClock,
    /// Fires when the call is given up; its future is dropped then.
    pub cancel: CancellationToken,
    /// Whether it may have its effect.
    pub permit: Permit,
}

impl ToolRun {
    /// Where in the turn's trace the call is, for servers that take part in traces (P30).
    pub fn traceparent(&self) -> TraceParent {
        let trace = TraceId::of(&self.session, Some(&self.turn));
        TraceParent::new(trace, SpanId::of_tool(trace, &self.call))
    }

    /// Asks for leave to have the effect, right before it: a call of a turn that is over is refused, and
    /// has to return with the fault (P1). For tools that prepare first; see [`Tool::commits_itself`].
    pub fn commit(&self) -> Result<(), ToolFault> {
        if (self.permit.0)() {
            Ok(())
        } else {
            Err(ToolFault::new("its turn was over before it began"))
        }
    }
}

impl fmt::Debug for ToolRun {
    /// Leaves the arguments out: people's words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToolRun")
            .field("session", &self.session)
            .field("turn", &self.turn)
            .field("call", &self.call)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// What a tool comes to.
pub type ToolFuture = Pin<Box<dyn Future<Output = Result<ToolOutput, ToolFault>> + Send>>;

/// Something that a model may have done.
pub trait Tool: Send + Sync + 'static {
    /// Whether it asks for leave itself, by [`ToolRun::commit`], right before its effect. Else the runtime
    /// does before it runs at all.
    fn commits_itself(&self) -> bool {
        false
    }

    /// Does it. Dropping the future gives the attempt up.
    fn run(&self, run: ToolRun) -> ToolFuture;
}

/// A function as a tool.
pub fn function<F, R>(run: F) -> Arc<dyn Tool>
where
    F: Fn(ToolRun) -> R + Send + Sync + 'static,
    R: Future<Output = Result<ToolOutput, ToolFault>> + Send + 'static,
{
    Arc::new(Function(run))
}

struct Function<F>(F);

impl<F, R> Tool for Function<F>
where
    F: Fn(ToolRun) -> R + Send + Sync + 'static,
    R: Future<Output = Result<ToolOutput, ToolFault>> + Send + 'static,
{
    fn run(&self, run: ToolRun) -> ToolFuture {
        Box::pin((self.0)(run))
    }
}
