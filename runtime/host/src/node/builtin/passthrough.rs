//! Forwards what it gets: for measurements, tests and as the smallest example of a node.

use crate::{
    event::{Event, Port},
    node::{Node, NodeContext, Step},
};

/// The node.
pub(super) struct Passthrough;

impl Node for Passthrough {
    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        cx.forward(event);
        Step::OK
    }
}
