//! Forwarding one of several inputs (F-006).

use rspp_proto::spec::Condition;

use super::{Attributes, EdgeIx, Graph, NodeIx, holds};

/// The selected input changed; to be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// What was forwarded before.
    pub from: Option<EdgeIx>,
    /// What is forwarded now; `None` when no condition holds.
    pub to: Option<EdgeIx>,
}

/// Chooses the first input in the spec whose condition holds; an input without one always does.
#[derive(Clone, Debug)]
pub struct Select {
    inputs: Vec<(EdgeIx, Option<Condition>)>,
    selected: Option<EdgeIx>,
}

impl Select {
    /// The choice that `node` makes among its inputs. Nothing is selected until [`Self::update`].
    pub fn new(graph: &Graph, node: NodeIx) -> Self {
        let inputs = graph.node(node).inputs.iter();
        Self {
            inputs: inputs
                .map(|ix| (*ix, graph.edge(*ix).when.clone()))
                .collect(),
            selected: None,
        }
    }

    /// Decides again, e.g. after a session attribute changed.
    #[must_use = "a switch is evidence"]
    pub fn update(&mut self, attributes: &impl Attributes) -> Option<Switch> {
        let to = self
            .inputs
            .iter()
            .find(|(_, when)| when.as_ref().is_none_or(|when| holds(when, attributes)))
            .map(|(edge, _)| *edge);
        let from = std::mem::replace(&mut self.selected, to);
        (from != to).then_some(Switch { from, to })
    }

    /// Whether an event from that input goes on.
    pub fn forwards(&self, input: EdgeIx) -> bool {
        self.selected == Some(input)
    }
}
