//! Forwards one of several inputs, by condition (F-006).

use rspp_kernel::graph::{EdgeIx, EventView, Graph, NodeIx, Select, Stream};

use crate::{
    event::{Event, Port},
    node::{Node, NodeContext, NodeReport, Step},
};

/// The node.
pub(super) struct SelectNode {
    select: Select,
    inputs: Vec<EdgeIx>,
    names: Vec<String>,
}

impl SelectNode {
    pub(super) fn new(graph: &Graph, ix: NodeIx) -> Self {
        let inputs = graph.node(ix).inputs.clone();
        Self {
            select: Select::new(graph, ix),
            names: inputs
                .iter()
                .map(|ix| graph.edge(*ix).id.to_string())
                .collect(),
            inputs,
        }
    }

    fn name(&self, edge: Option<EdgeIx>) -> Option<&str> {
        let at = self.inputs.iter().position(|input| Some(*input) == edge)?;
        Some(&self.names[at])
    }
}

impl Node for SelectNode {
    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, port: Port, event: Event) -> Step<'a> {
        let ends = Stream::ended_by(&event.payload).is_some();
        // The end of a stream has no attributes to judge by. Of a turn it comes when all inputs are at
        // theirs; else it goes the way of what came before.
        if !ends {
            let attributes = &cx.settings().attributes;
            let switch = self
                .select
                .update(&EventView::new(&event.payload, attributes));
            if let Some(switch) = switch {
                cx.report(NodeReport::Selected {
                    input: self.name(switch.to).map(Into::into),
                });
            }
        }
        let is_last = ends && cx.settings().turn.is_some();
        if is_last || self.select.forwards(self.inputs[usize::from(port.0)]) {
            cx.forward(event);
        }
        Step::OK
    }
}
