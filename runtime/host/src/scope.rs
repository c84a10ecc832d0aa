//! Whose a log line is: the scopes that actors work in, each within its parent's (F-067, F-116, NF-008).
//!
//! Of a level that no filter leaves out, so that a warning says whose it is wherever only warnings are
//! kept. Scopes are entered when an actor is woken, not for each frame; without a subscriber they are none.

use rspp_proto::{InvocationId, NodeId, PipelineVersion, SessionId, TenantId, TurnNumber};
use tracing::{Span, error_span};

pub(crate) fn of_session(
    tenant: &TenantId,
    session: &SessionId,
    version: &PipelineVersion,
) -> Span {
    error_span!("session", tenant_id = %tenant, session_id = %session, pipeline_version = %version)
}

pub(crate) fn of_turn(turn: TurnNumber) -> Span {
    error_span!("turn", turn_id = %turn)
}

pub(crate) fn of_node(node: &NodeId) -> Span {
    error_span!("node", node_id = %node)
}

pub(crate) fn of_call(call: &InvocationId) -> Span {
    error_span!("call", %call)
}

pub(crate) fn of_tool(turn: TurnNumber, call: &str) -> Span {
    error_span!("tool", turn_id = %turn, call)
}
