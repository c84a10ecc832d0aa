//! Nodes: what does the work in a pipeline, and the contract under which it does so.
//!
//! A node is called, never calls: its handlers get events and answers, and ask for things through
//! their context. What takes long is a provider call, work on the inference pool, or a future that
//! the node host drops when a cancel comes; so control never waits behind a node (P16).

mod call;
mod context;
mod effort;
mod handler;
mod hook;
mod host;
mod inputs;
mod outlet;
mod package;
mod process;
mod state;
mod succession;
mod taking;
mod work;

pub mod builtin;
pub mod testing;

use std::{future::Future, pin::Pin, sync::Arc};

use rspp_kernel::{CancelReason, edge::BreakReason, invocation::error_code};
use rspp_proto::ErrorCode;
use thiserror::Error;

pub(crate) use call::CallRequest;
pub(crate) use context::{Limits, Speech};
pub use context::{NodeContext, NodeReport, NodeSettings};
pub use hook::Hook;
pub(crate) use host::{NodeControl, NodeHost, NodeMaker, NodeSetup, OutEdge, PRESSURE, Torn};
pub(crate) use inputs::{EdgeReport, is_audio};
pub use inputs::{InputEdge, Inputs};
pub use package::{Package, PackageError, digest_of};
pub use process::{ProcessCommand, Sandbox, SandboxError};
pub use state::{DurableState, HotState, TurnState};
pub(crate) use state::{NodeStates, StateAccess};
pub(crate) use succession::{Standby, Succession};
pub(crate) use taking::{Handing, Taken, Taking};
pub(crate) use work::WorkBook;

use crate::event::{CallEnd, CallKey, Chunk, Event, Port};

/// Frames of audio that may wait for a node that has no use for them yet (see [`Node::rests`]):
/// 80 ms, so that what looks at the newest audio only when asked is never far behind.
pub const MAX_RESTING: usize = 4;

/// A failure that a node cannot deal with itself.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct NodeError {
    /// What happened, for people; no payload, no secret.
    pub message: String,
    /// Whether a provider is to blame, not the node.
    pub provider: bool,
    /// The taxonomy's word for it (F-131).
    pub code: ErrorCode,
}

impl NodeError {
    /// The node itself failed.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            provider: false,
            code: ErrorCode::RuntimeInternalError,
        }
    }

    /// A provider failed for good.
    pub fn provider(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            provider: true,
            code: ErrorCode::RuntimeInternalError,
        }
    }

    /// A provider call failed for good.
    pub fn call(end: &CallEnd) -> Self {
        Self {
            code: error_code(end.class).unwrap_or(ErrorCode::RuntimeInternalError),
            ..Self::provider(end.describe())
        }
    }
}

/// What a handler or a hook comes to: an answer at once, or work that takes its time.
///
/// `Done` costs nothing; only a node that really waits pays for a boxed future.
pub enum Step<'a> {
    /// It is done.
    Done(Result<(), NodeError>),
    /// It goes on; dropped where it waits when the node is cancelled.
    Wait(Pending<'a>),
    /// It goes on, and winds up by itself when [`NodeContext::cancellation`] fires (F-036): it has
    /// the cancel grace of the plan to return. What is deaf to its token is dropped when the grace
    /// ends, its node is stopped, and the session counts as degraded (F-037).
    Work(Pending<'a>),
}

/// The rest of a handler's work.
pub type Pending<'a> = Pin<Box<dyn Future<Output = Result<(), NodeError>> + Send + 'a>>;

impl Step<'_> {
    /// Done, without a complaint.
    pub const OK: Self = Self::Done(Ok(()));
}

/// One node of one session or turn.
///
/// Each hook is called by the node's host, one at a time. `init` and `start` once, in this order;
/// `stop` once, last, however the node ends short of a panic (F-012). A hook may wait, but no longer
/// than the plan's `hook_timeout_ms`: then its work is dropped, and it counts as failed.
pub trait Node: Send + 'static {
    /// Looks at its settings; nothing flows yet.
    fn init<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        let _ = cx;
        Step::OK
    }

    /// May begin to emit.
    fn start<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        let _ = cx;
        Step::OK
    }

    /// Takes an event in. Must not block: see [`Step`].
    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, port: Port, event: Event) -> Step<'a>;

    /// Takes in a piece of the answer to a call that it made.
    fn on_chunk<'a>(
        &'a mut self,
        cx: &'a mut NodeContext,
        call: CallKey,
        chunk: Chunk,
    ) -> Step<'a> {
        let _ = (cx, call, chunk);
        Step::OK
    }

    /// A call that it made is over. Not called for calls that the node itself aborted.
    fn on_call_end<'a>(
        &'a mut self,
        cx: &'a mut NodeContext,
        call: CallKey,
        end: CallEnd,
    ) -> Step<'a> {
        let _ = (cx, call);
        if end.is_success() {
            Step::OK
        } else {
            Step::Done(Err(NodeError::call(&end)))
        }
    }

    /// Frames of audio that it has no use for yet: while it only keeps what it hears, the host need not
    /// wake it for each. They come all the same, in order, before whatever it is woken for; asked for
    /// each time that its input is empty. At most [`MAX_RESTING`] are left to wait.
    fn rests(&self) -> usize {
        0
    }

    /// What follows on an edge does not join what came before: something of its sync domain was
    /// lost. Must reset what it decodes of that stream (F-146).
    fn on_break(&mut self, cx: &mut NodeContext, port: Port, reason: BreakReason) {
        let _ = (cx, port, reason);
    }

    /// What came of a tool call that it asked for.
    fn on_tool_answer<'a>(
        &'a mut self,
        cx: &'a mut NodeContext,
        call: &str,
        content: Arc<str>,
    ) -> Step<'a> {
        let _ = (cx, call, content);
        Step::OK
    }

    /// The time that it asked for with [`NodeContext::wake_in`] has come, or whoever takes what it
    /// hands over has taken some.
    fn on_wake<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        let _ = cx;
        Step::OK
    }

    /// Its work is cancelled: what it was doing has ended, its calls are aborted, its queues are
    /// empty. Must forget what belongs to the cancelled work (F-038).
    fn on_cancel<'a>(&'a mut self, cx: &'a mut NodeContext, reason: CancelReason) -> Step<'a> {
        let _ = (cx, reason);
        Step::OK
    }

    /// Its work is cancelled softly: what has not been begun is forgotten, what is in flight may end,
    /// and the end of its output is to follow (F-041).
    fn on_soft_cancel(&mut self, cx: &mut NodeContext, reason: CancelReason) {
        let _ = (cx, reason);
    }

    /// The user interrupts: comes before `on_cancel`, so that buffered audio can be let go.
    fn on_barge_in<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        let _ = cx;
        Step::OK
    }

    /// One of its handlers took longer than its budget; comes when that handler has ended.
    fn on_budget_exhausted<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        let _ = cx;
        Step::OK
    }

    /// Ends.
    fn stop<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        let _ = cx;
        Step::OK
    }
}
