//! A graph as people and programs look at it (F-081).

use std::{collections::BTreeSet, fmt};

use rspp_proto::{
    EdgeId, NodeId,
    spec::{Condition, PortType},
};
use serde::Serialize;

use super::{Graph, Node, Role, Scope};

/// Every node and edge that a session runs, in the order of the spec.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GraphView {
    /// The graph's fingerprint, as plans name it.
    pub fingerprint: String,
    /// The nodes, without ingress and egress.
    pub nodes: Vec<NodeView>,
    /// The edges.
    pub edges: Vec<EdgeView>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeView {
    /// Its id.
    pub id: NodeId,
    /// What it does.
    pub kind: String,
    /// How long it lives.
    pub scope: Scope,
    /// Who takes over when it fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<NodeId>,
    /// Whether a policy put it there (F-062).
    pub inserted_by_policy: bool,
}

/// One edge.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EdgeView {
    /// Its id.
    pub id: EdgeId,
    /// Where it begins.
    pub from: NodeId,
    /// Where it ends.
    pub to: NodeId,
    /// What flows.
    pub carries: PortType,
    /// Only what passes flows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<Condition>,
    /// How long it lives.
    pub scope: Scope,
}

impl Graph {
    /// The graph to look at; `inserted` are the nodes that a policy put there.
    pub fn view<'a>(&self, inserted: impl IntoIterator<Item = &'a NodeId>) -> GraphView {
        let inserted: BTreeSet<&NodeId> = inserted.into_iter().collect();
        let name = |ix| self.node(ix).id.clone();
        let node = |node: &Node| match &node.role {
            Role::Ingress | Role::Egress => None,
            Role::Node(spec) => Some(NodeView {
                id: node.id.clone(),
                kind: spec.kind.as_str().to_owned(),
                scope: node.scope,
                fallback: node.fallback.map(name),
                inserted_by_policy: inserted.contains(&node.id),
            }),
        };
        GraphView {
            fingerprint: self.fingerprint().to_owned(),
            nodes: self.nodes().filter_map(|(_, it)| node(it)).collect(),
            edges: self
                .edges()
                .map(|(_, edge)| EdgeView {
                    id: edge.id.clone(),
                    from: name(edge.from),
                    to: name(edge.to),
                    carries: edge.carries,
                    when: edge.when.clone(),
                    scope: edge.scope,
                })
                .collect(),
        }
    }
}

impl GraphView {
    /// The graph as a Mermaid flowchart; what lives for one turn is in a box of its own.
    pub fn mermaid(&self) -> String {
        let mut lines = vec!["flowchart LR".to_owned()];
        lines.push("  ingress([ingress])".to_owned());
        for (scope, title) in [(Scope::Session, "session"), (Scope::Turn, "turn")] {
            lines.push(format!("  subgraph {title}"));
            let nodes = self.nodes.iter().filter(|node| node.scope == scope);
            lines.extend(nodes.map(|node| {
                let note = if node.inserted_by_policy {
                    ", by policy"
                } else {
                    ""
                };
                format!("    {}[\"{}: {}{note}\"]", node.id, node.id, node.kind)
            }));
            lines.push("  end".to_owned());
        }
        lines.push("  egress([egress])".to_owned());
        lines.extend(self.edges.iter().map(|edge| {
            let arrow = if edge.when.is_some() { "-.->" } else { "-->" };
            format!(
                "  {} {arrow}|{}| {}",
                edge.from,
                edge.carries.as_str(),
                edge.to
            )
        }));
        let standby = |node: &NodeView| {
            let fallback = node.fallback.as_ref()?;
            Some(format!("  {} -. fallback .-> {fallback}", node.id))
        };
        lines.extend(self.nodes.iter().filter_map(standby));
        lines.push(String::new());
        lines.join("\n")
    }
}

impl fmt::Display for GraphView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "graph  {}", self.fingerprint)?;
        for node in &self.nodes {
            let scope = match node.scope {
                Scope::Session => "session",
                Scope::Turn => "turn",
            };
            write!(f, "node   {:<16} {:<14} {scope:<8}", node.id, node.kind)?;
            if let Some(fallback) = &node.fallback {
                write!(f, " fallback {fallback}")?;
            }
            if node.inserted_by_policy {
                write!(f, " inserted by policy")?;
            }
            writeln!(f)?;
        }
        for edge in &self.edges {
            let ends = format!("{} -> {}", edge.from, edge.to);
            let conditional = if edge.when.is_some() {
                " conditional"
            } else {
                ""
            };
            writeln!(
                f,
                "edge   {ends:<32} {}{conditional}",
                edge.carries.as_str()
            )?;
        }
        Ok(())
    }
}
