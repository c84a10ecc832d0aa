//! A pipeline's graph after compilation: checked, dense, in a fixed order.
//!
//! Knows who is connected to whom and which way an event goes. What a node does, and what an edge
//! may hold, is for others.

mod compile;
mod ends;
mod error;
mod merge;
mod port;
mod route;
mod select;
mod view;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use rspp_proto::{
    EdgeId, NodeId,
    spec::{Condition, NodeKind, NodeSpec, PortType},
};

pub use ends::{Ended, Ends, Stream};
pub use error::GraphError;
pub use merge::{Made, Merge, MergeFull};
pub use port::{accepts, emits};
pub use route::{Attribute, Attributes, Decision, EventView, Route, holds};
pub use select::{Select, Switch};
pub use view::{EdgeView, GraphView, NodeView};

/// Most nodes of one pipeline.
pub const MAX_NODES: usize = 256;
/// Most edges of one pipeline.
pub const MAX_EDGES: usize = 1_024;

/// A node's place in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIx(pub u16);

/// An edge's place in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EdgeIx(pub u16);

impl NodeIx {
    /// As an index into a list of nodes.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl EdgeIx {
    /// As an index into a list of edges.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// How long a node lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// As long as the session: what listens.
    Session,
    /// One turn: what a turn detector's finished text leads to.
    Turn,
}

/// What stands at a place of the graph.
#[derive(Clone, Debug, PartialEq)]
pub enum Role {
    /// Where the user's audio and text enter.
    Ingress,
    /// Where audio and text leave for the user.
    Egress,
    /// A node of the pipeline.
    Node(Box<NodeSpec>),
}

/// One node and its connections.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its id; `ingress` and `egress` for the two pseudo-nodes.
    pub id: NodeId,
    /// What it is.
    pub role: Role,
    /// How long it lives.
    pub scope: Scope,
    /// Edges that end here, in the order of the spec.
    pub inputs: Vec<EdgeIx>,
    /// Edges that begin here, in the order of the spec, which is the order of delivery (F-004).
    pub outputs: Vec<EdgeIx>,
    /// Who takes over when it fails (F-007).
    pub fallback: Option<NodeIx>,
}

impl Node {
    /// The node as authored; `None` for ingress and egress.
    pub fn spec(&self) -> Option<&NodeSpec> {
        match &self.role {
            Role::Ingress | Role::Egress => None,
            Role::Node(spec) => Some(spec),
        }
    }

    /// What the node does; `None` for ingress and egress.
    pub fn kind(&self) -> Option<&NodeKind> {
        self.spec().map(|spec| &spec.kind)
    }
}

/// One edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Edge {
    /// Its id, as authored or `<from>-><to>:<carries>`.
    pub id: EdgeId,
    /// Where it begins.
    pub from: NodeIx,
    /// Where it ends.
    pub to: NodeIx,
    /// What flows.
    pub carries: PortType,
    /// Only events that pass flow. On an edge into a select node it says when that edge is the
    /// selected one.
    pub when: Option<Condition>,
    /// Session if both ends outlive a turn, else turn. The edge that opens turns is of the turn.
    pub scope: Scope,
}

/// A checked graph. Equal specs compile to equal graphs.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    edges: Vec<Edge>,
    order: Vec<NodeIx>,
    by_id: BTreeMap<NodeId, NodeIx>,
    fingerprint: String,
}

impl Graph {
    /// Every node: those of the pipeline in the order of the spec, then ingress, then egress.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (NodeIx, &Node)> {
        self.nodes
            .iter()
            .enumerate()
            .map(|(at, node)| (NodeIx(at as u16), node))
    }

    /// Every edge, in the order of the spec.
    pub fn edges(&self) -> impl ExactSizeIterator<Item = (EdgeIx, &Edge)> {
        self.edges
            .iter()
            .enumerate()
            .map(|(at, edge)| (EdgeIx(at as u16), edge))
    }

    /// The node at `ix`, which is one of this graph's.
    pub fn node(&self, ix: NodeIx) -> &Node {
        &self.nodes[ix.index()]
    }

    /// The edge at `ix`, which is one of this graph's.
    pub fn edge(&self, ix: EdgeIx) -> &Edge {
        &self.edges[ix.index()]
    }

    /// Where a node of that name stands.
    pub fn find(&self, id: &str) -> Option<NodeIx> {
        self.by_id.get(id).copied()
    }

    /// Where the user's audio and text enter.
    pub fn ingress(&self) -> NodeIx {
        NodeIx((self.nodes.len() - 2) as u16)
    }

    /// Where audio and text leave for the user.
    pub fn egress(&self) -> NodeIx {
        NodeIx((self.nodes.len() - 1) as u16)
    }

    /// All nodes so that each comes after what feeds it, ties in the order of the spec.
    pub fn order(&self) -> &[NodeIx] {
        &self.order
    }

    /// The nodes of one scope, in [`Self::order`], without ingress and egress.
    pub fn of_scope(&self, scope: Scope) -> impl Iterator<Item = NodeIx> {
        self.order.iter().copied().filter(move |ix| {
            let node = self.node(*ix);
            node.scope == scope && node.spec().is_some()
        })
    }

    /// Those of them that have a host of their own: a stand-in lives in its primary's.
    pub fn hosts(&self, scope: Scope) -> impl Iterator<Item = NodeIx> {
        let stand_ins: Vec<NodeIx> = self.nodes.iter().filter_map(|node| node.fallback).collect();
        self.of_scope(scope)
            .filter(move |ix| !stand_ins.contains(ix))
    }

    /// Where a node's output goes while it stands in for `primary`: its own edges if it has any,
    /// else the primary's.
    pub fn outputs_in_place_of(&self, standby: NodeIx, primary: NodeIx) -> &[EdgeIx] {
        let own = &self.node(standby).outputs;
        if own.is_empty() {
            &self.node(primary).outputs
        } else {
            own
        }
    }

    /// Everything downstream of `from`, itself included: what a cancel there reaches (F-034).
    /// In [`Self::order`].
    pub fn downstream(&self, from: NodeIx) -> Vec<NodeIx> {
        let mut reached = vec![false; self.nodes.len()];
        reached[from.index()] = true;
        for ix in &self.order {
            if reached[ix.index()] {
                let node = self.node(*ix);
                for edge in &node.outputs {
                    reached[self.edge(*edge).to.index()] = true;
                }
                if let Some(standby) = node.fallback {
                    reached[standby.index()] = true;
                }
            }
        }
        let reached_in_order = self.order.iter().filter(|ix| reached[ix.index()]);
        reached_in_order.copied().collect()
    }

    /// SHA-256, in hex, over everything of nodes and edges that alters execution; descriptions do
    /// not (F-082).
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}
