//! The tools that come with the runtime; they need no network.

use std::sync::Arc;

use rspp_proto::spec::SessionAction;
use rspp_provider_api::{Tool, ToolOutput, function};

/// Says what time it is.
pub(super) fn clock() -> Arc<dyn Tool> {
    function(|run| async move { Ok(ToolOutput::new(run.wall.to_utc())) })
}

/// Hangs up once the reply that asks for it has been heard (P1).
pub(super) fn end_call() -> Arc<dyn Tool> {
    function(|_run| async {
        Ok(ToolOutput {
            content: "the call ends when your reply has been heard; say goodbye".to_owned(),
            action: Some(SessionAction::EndCall),
        })
    })
}
