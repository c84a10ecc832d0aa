//! Folds several inputs into one ordered stream (F-005).

use std::time::Duration;

use rspp_kernel::graph::{Graph, Made, Merge, NodeIx, Stream};
use rspp_proto::spec::{MergeOrder, NodeSpec};

use crate::{
    event::{Event, Port},
    node::{Node, NodeContext, Step},
};

/// How long an event waits for earlier ones from other sources, unless the node says otherwise.
const HOLD_MS: u64 = 40;
/// Events held of one source.
const CAPACITY: usize = 64;

/// The node.
pub(super) struct MergeNode {
    merge: Merge<Event>,
    sources: usize,
    ended: usize,
}

impl MergeNode {
    pub(super) fn new(graph: &Graph, ix: NodeIx, spec: &NodeSpec) -> Self {
        let order = spec
            .config
            .get("order")
            .and_then(|value| serde_json::from_value(value.clone()).ok())
            .unwrap_or(MergeOrder::Timestamp);
        let hold = spec
            .config
            .get("hold_ms")
            .and_then(serde_json::Value::as_u64);
        let sources = graph.node(ix).inputs.len();
        let hold = Duration::from_millis(hold.unwrap_or(HOLD_MS));
        Self {
            merge: Merge::new(order, sources, hold, CAPACITY),
            sources,
            ended: 0,
        }
    }

    fn drain(&mut self, cx: &mut NodeContext) {
        while let Some((_, event)) = self.merge.poll(cx.now()) {
            cx.forward(event);
        }
        match self.merge.next_deadline() {
            Some(at) => cx.wake_in(at.since(cx.now())),
            None => cx.forget_wake(),
        }
    }
}

impl Node for MergeNode {
    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, port: Port, event: Event) -> Step<'a> {
        let source = usize::from(port.0);
        if Stream::ended_by(&event.payload).is_some() {
            self.merge.end(source);
            self.ended += 1;
            self.drain(cx);
            if self.ended == self.sources {
                cx.forward(event); // The stream ends when all of its sources have.
            }
            return Step::OK;
        }
        let made = Made {
            at: event.stamp.made,
            sequence: event.stamp.sequence,
        };
        if let Err(full) = self.merge.push(cx.now(), source, made, event) {
            // A source far ahead of the others is not held up for them any longer.
            cx.forward(full.event);
        }
        self.drain(cx);
        Step::OK
    }

    fn on_wake<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        self.drain(cx);
        Step::OK
    }
}
