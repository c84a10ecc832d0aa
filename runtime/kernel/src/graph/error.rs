//! What can be wrong with a pipeline's graph.

use rspp_proto::{EdgeId, NodeId, spec::PortType};
use thiserror::Error;

/// One violation; compiling reports all of them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GraphError {
    /// Two nodes share an id.
    #[error("node id `{id}` is used twice; every node needs its own")]
    DuplicateNode {
        /// The id.
        id: NodeId,
    },
    /// A node is called `ingress` or `egress`.
    #[error("node id `{id}` is reserved for the pipeline's end; choose another")]
    ReservedNode {
        /// The id.
        id: NodeId,
    },
    /// Two edges share an id.
    #[error("edge id `{id}` is used twice; give one of them an `id` of its own")]
    DuplicateEdge {
        /// The id.
        id: EdgeId,
    },
    /// An edge's id would not be one.
    #[error("edge `{from}` to `{to}` needs a shorter `id` of its own")]
    UnusableEdgeId {
        /// Its beginning.
        from: NodeId,
        /// Its end.
        to: NodeId,
    },
    /// An edge's end is no node.
    #[error("edge `{edge}` names unknown node `{node}`; known: {}", known.join(", "))]
    UnknownNode {
        /// The edge.
        edge: EdgeId,
        /// What it names.
        node: NodeId,
        /// What there is.
        known: Vec<String>,
    },
    /// An edge leads back to where it begins.
    #[error("edge `{edge}` leads from `{node}` to itself")]
    SelfEdge {
        /// The edge.
        edge: EdgeId,
        /// The node.
        node: NodeId,
    },
    /// An edge ends at the ingress.
    #[error("edge `{edge}` ends at `ingress`, which only sends")]
    IntoIngress {
        /// The edge.
        edge: EdgeId,
    },
    /// An edge begins at the egress.
    #[error("edge `{edge}` begins at `egress`, which only receives")]
    OutOfEgress {
        /// The edge.
        edge: EdgeId,
    },
    /// The beginning of an edge does not send what the edge carries (F-003).
    #[error(
        "edge `{edge}` carries {carries:?}, but `{node}` sends {}",
        types(sends)
    )]
    NotSent {
        /// The edge.
        edge: EdgeId,
        /// Its beginning.
        node: NodeId,
        /// What the edge carries.
        carries: PortType,
        /// What the node sends.
        sends: Vec<PortType>,
    },
    /// The end of an edge does not take what the edge carries (F-003).
    #[error(
        "edge `{edge}` carries {carries:?}, but `{node}` takes {}",
        types(takes)
    )]
    NotTaken {
        /// The edge.
        edge: EdgeId,
        /// Its end.
        node: NodeId,
        /// What the edge carries.
        carries: PortType,
        /// What the node takes.
        takes: Vec<PortType>,
    },
    /// The graph runs in a circle.
    #[error(
        "the graph has a cycle: {}; every path must lead to `egress`",
        path(nodes)
    )]
    Cycle {
        /// The circle, from a node back to it.
        nodes: Vec<NodeId>,
    },
    /// Nothing that enters ever gets to a node.
    #[error("node `{node}` cannot be reached from `ingress`; connect it or remove it")]
    Unreachable {
        /// The node.
        node: NodeId,
    },
    /// A node would live both as long as a turn and as the session.
    #[error(
        "node `{node}` is fed both by a turn detector's text and from outside a turn; \
         route all of its input through the turn detector, or use two nodes"
    )]
    AmbiguousScope {
        /// The node.
        node: NodeId,
    },
    /// A fallback is no node.
    #[error("node `{node}` falls back to unknown node `{fallback}`")]
    UnknownFallback {
        /// The node.
        node: NodeId,
        /// What it names.
        fallback: NodeId,
    },
    /// Fallbacks lead back to where they began.
    #[error("the fallback of node `{node}` leads back to it; let the last one have none")]
    FallbackCycle {
        /// The node.
        node: NodeId,
    },
    /// A fallback has edges of its own that end at it.
    #[error("node `{fallback}` stands in for `{node}` and takes its input; remove edge `{edge}`")]
    FallbackHasInput {
        /// The primary.
        node: NodeId,
        /// The stand-in.
        fallback: NodeId,
        /// The edge.
        edge: EdgeId,
    },
    /// One node stands in for two.
    #[error("node `{fallback}` stands in for both `{first}` and `{second}`; give each its own")]
    SharedFallback {
        /// The stand-in.
        fallback: NodeId,
        /// One primary.
        first: NodeId,
        /// The other.
        second: NodeId,
    },
    /// A fallback cannot be connected as its primary is.
    #[error("node `{fallback}` cannot stand in for `{node}`: edge `{edge}` carries {carries:?}")]
    FallbackMismatch {
        /// The primary.
        node: NodeId,
        /// The stand-in.
        fallback: NodeId,
        /// The edge that does not fit.
        edge: EdgeId,
        /// What that edge carries.
        carries: PortType,
    },
    /// A condition that could never be decided.
    #[error("edge `{edge}`: {problem}")]
    Condition {
        /// The edge.
        edge: EdgeId,
        /// What is wrong and what helps.
        problem: &'static str,
    },
    /// More nodes or edges than a session can bear.
    #[error("the pipeline has {count} {what}; at most {limit} are allowed")]
    TooLarge {
        /// `nodes` or `edges`.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
}

fn types(types: &[PortType]) -> String {
    if types.is_empty() {
        return "nothing".to_owned();
    }
    let names: Vec<_> = types.iter().map(|port| format!("{port:?}")).collect();
    names.join(", ")
}

fn path(nodes: &[NodeId]) -> String {
    let names: Vec<_> = nodes.iter().map(NodeId::as_str).collect();
    names.join(" -> ")
}
