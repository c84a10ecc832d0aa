//! From a spec to a graph: every check, every violation.

use std::collections::{BTreeMap, BTreeSet};

use rspp_proto::{
    EdgeId, NodeId,
    spec::{EGRESS, EdgeSpec, INGRESS, NodeKind, NodeSpec, PipelineSpec, PortType},
};
use serde_json::json;

use super::{
    Edge, EdgeIx, Graph, GraphError, MAX_EDGES, MAX_NODES, Node, NodeIx, Role, Scope, port, route,
};
use rspp_proto::canonical;

impl Graph {
    /// Checks a pipeline's graph and gives it a fixed order. Reports all violations, in the order
    /// of the spec.
    ///
    /// A node that only forwards (pass-through, merge, select) sends what it takes. A fallback
    /// takes the input of the node it stands in for and lives as long.
    pub fn compile(spec: &PipelineSpec) -> Result<Self, Vec<GraphError>> {
        let mut errors = Vec::new();
        for (what, count, limit) in [
            ("nodes", spec.nodes.len(), MAX_NODES),
            ("edges", spec.edges.len(), MAX_EDGES),
        ] {
            if count > limit {
                errors.push(GraphError::TooLarge { what, count, limit });
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut draft = Draft::new(spec, &mut errors);
        draft.connect(spec, &mut errors);
        draft.check_ports(&mut errors);
        draft.resolve_fallbacks(&mut errors);
        let order = draft.order(&mut errors);
        draft.assign_scopes(&order, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        let fingerprint = fingerprint(&draft);
        Ok(Self {
            nodes: draft.nodes,
            edges: draft.edges,
            order,
            by_id: draft.by_id,
            fingerprint,
        })
    }
}

struct Draft {
    nodes: Vec<Node>,
    edges: Vec<Edge>,
    by_id: BTreeMap<NodeId, NodeIx>,
}

impl Draft {
    fn new(spec: &PipelineSpec, errors: &mut Vec<GraphError>) -> Self {
        let mut by_id = BTreeMap::new();
        let mut nodes = Vec::with_capacity(spec.nodes.len() + 2);
        for node in &spec.nodes {
            let id = node.id.clone();
            if [INGRESS, EGRESS].contains(&id.as_str()) {
                errors.push(GraphError::ReservedNode { id: id.clone() });
            } else if by_id.contains_key(&id) {
                errors.push(GraphError::DuplicateNode { id: id.clone() });
            } else {
                by_id.insert(id.clone(), NodeIx(nodes.len() as u16));
            }
            nodes.push(blank(id, Role::Node(Box::new(node.clone()))));
        }
        for (name, role) in [(INGRESS, Role::Ingress), (EGRESS, Role::Egress)] {
            let id = NodeId::new(name).expect("the name is not blank");
            by_id.insert(id.clone(), NodeIx(nodes.len() as u16));
            nodes.push(blank(id, role));
        }
        Self {
            nodes,
            edges: Vec::with_capacity(spec.edges.len()),
            by_id,
        }
    }

    fn connect(&mut self, spec: &PipelineSpec, errors: &mut Vec<GraphError>) {
        let mut seen = BTreeSet::new();
        for edge in &spec.edges {
            let Some(id) = edge_id(edge) else {
                errors.push(GraphError::UnusableEdgeId {
                    from: edge.from.clone(),
                    to: edge.to.clone(),
                });
                continue;
            };
            if !seen.insert(id.clone()) {
                errors.push(GraphError::DuplicateEdge { id });
                continue;
            }
            let mut known_end = |node: &NodeId| {
                let found = self.by_id.get(node).copied();
                if found.is_none() {
                    errors.push(GraphError::UnknownNode {
                        edge: id.clone(),
                        node: node.clone(),
                        known: self.by_id.keys().map(ToString::to_string).collect(),
                    });
                }
                found
            };
            let (from, to) = (known_end(&edge.from), known_end(&edge.to));
            let (Some(from), Some(to)) = (from, to) else {
                continue;
            };
            if from == to {
                let node = edge.from.clone();
                errors.push(GraphError::SelfEdge { edge: id, node });
                continue;
            }
            if self.nodes[to.index()].role == Role::Ingress {
                errors.push(GraphError::IntoIngress { edge: id });
                continue;
            }
            if self.nodes[from.index()].role == Role::Egress {
                errors.push(GraphError::OutOfEgress { edge: id });
                continue;
            }
            if let Some(problem) = edge.when.as_ref().and_then(route::problem) {
                let edge = id.clone();
                errors.push(GraphError::Condition { edge, problem });
            }
            let ix = EdgeIx(self.edges.len() as u16);
            self.nodes[from.index()].outputs.push(ix);
            self.nodes[to.index()].inputs.push(ix);
            self.edges.push(Edge {
                id,
                from,
                to,
                carries: edge.carries,
                when: edge.when.clone(),
                scope: Scope::Session,
            });
        }
    }

    fn check_ports(&self, errors: &mut Vec<GraphError>) {
        for edge in &self.edges {
            let (from, to) = (&self.nodes[edge.from.index()], &self.nodes[edge.to.index()]);
            let sends = self.sends(from);
            if !port::fits(&sends, edge.carries) {
                errors.push(GraphError::NotSent {
                    edge: edge.id.clone(),
                    node: from.id.clone(),
                    carries: edge.carries,
                    sends,
                });
            }
            let takes = port::role_accepts(&to.role);
            if !port::fits(takes, edge.carries) {
                errors.push(GraphError::NotTaken {
                    edge: edge.id.clone(),
                    node: to.id.clone(),
                    carries: edge.carries,
                    takes: takes.to_vec(),
                });
            }
        }
    }

    /// What a node sends: its kind's types, or what it takes if it only forwards.
    fn sends(&self, node: &Node) -> Vec<PortType> {
        let declared = port::role_emits(&node.role);
        let forwards = node.kind().is_some_and(port::forwards);
        if !forwards || node.inputs.is_empty() {
            return declared.to_vec();
        }
        let types: BTreeSet<_> = node
            .inputs
            .iter()
            .map(|ix| self.edges[ix.index()].carries)
            .collect();
        types.into_iter().collect()
    }

    fn resolve_fallbacks(&mut self, errors: &mut Vec<GraphError>) {
        let mut primary_of: BTreeMap<NodeIx, NodeIx> = BTreeMap::new();
        for at in 0..self.nodes.len() {
            let node = &self.nodes[at];
            let Some(name) = node.spec().and_then(|spec| spec.fallback.clone()) else {
                continue;
            };
            let standby = self.by_id.get(&name).copied();
            let standby = standby.filter(|ix| self.nodes[ix.index()].spec().is_some());
            let Some(standby) = standby else {
                errors.push(GraphError::UnknownFallback {
                    node: node.id.clone(),
                    fallback: name,
                });
                continue;
            };
            if let Some(first) = primary_of.get(&standby) {
                errors.push(GraphError::SharedFallback {
                    fallback: name,
                    first: self.nodes[first.index()].id.clone(),
                    second: node.id.clone(),
                });
                continue;
            }
            primary_of.insert(standby, NodeIx(at as u16));
            let other = &self.nodes[standby.index()];
            if let Some(ix) = other.inputs.first() {
                errors.push(GraphError::FallbackHasInput {
                    node: node.id.clone(),
                    fallback: name,
                    edge: self.edges[ix.index()].id.clone(),
                });
                continue;
            }
            self.nodes[at].fallback = Some(standby);
        }
        self.break_fallback_cycles(errors);
        let firsts =
            (0..self.nodes.len()).filter(|at| !primary_of.contains_key(&NodeIx(*at as u16)));
        for at in firsts {
            self.check_stand_ins(&self.nodes[at], errors);
        }
    }

    /// Whoever stands in for `primary`, first or last, works on its edges.
    fn check_stand_ins(&self, primary: &Node, errors: &mut Vec<GraphError>) {
        let of = |ix: NodeIx| &self.nodes[ix.index()];
        let stand_ins =
            std::iter::successors(primary.fallback.map(of), |node| node.fallback.map(of));
        for other in stand_ins {
            let unfit_input = primary.inputs.iter().find(|ix| {
                !port::fits(
                    port::role_accepts(&other.role),
                    self.edges[ix.index()].carries,
                )
            });
            // With outputs of its own the stand-in does not use the primary's.
            let unfit_output = primary.outputs.iter().find(|ix| {
                other.outputs.is_empty()
                    && !port::fits(
                        port::role_emits(&other.role),
                        self.edges[ix.index()].carries,
                    )
            });
            if let Some(ix) = unfit_input.or(unfit_output) {
                let edge = &self.edges[ix.index()];
                errors.push(GraphError::FallbackMismatch {
                    node: primary.id.clone(),
                    fallback: other.id.clone(),
                    edge: edge.id.clone(),
                    carries: edge.carries,
                });
            }
        }
    }

    fn break_fallback_cycles(&mut self, errors: &mut Vec<GraphError>) {
        for at in 0..self.nodes.len() {
            let mut next = self.nodes[at].fallback;
            // A chain longer than the list of nodes has bitten its tail.
            for _ in 0..self.nodes.len() {
                let Some(ix) = next else { break };
                if ix.index() == at {
                    let node = self.nodes[at].id.clone();
                    errors.push(GraphError::FallbackCycle { node });
                    self.nodes[at].fallback = None;
                    break;
                }
                next = self.nodes[ix.index()].fallback;
            }
        }
    }

    /// Each node after what feeds it; of those that could come next, the first in the spec.
    fn order(&self, errors: &mut Vec<GraphError>) -> Vec<NodeIx> {
        let mut missing: Vec<usize> = vec![0; self.nodes.len()];
        for at in 0..self.nodes.len() {
            for next in self.next(at) {
                missing[next] += 1;
            }
        }
        let mut ready: BTreeSet<usize> = (0..self.nodes.len())
            .filter(|at| missing[*at] == 0)
            .collect();
        let mut order = Vec::with_capacity(self.nodes.len());
        while let Some(at) = ready.pop_first() {
            order.push(NodeIx(at as u16));
            for next in self.next(at) {
                missing[next] -= 1;
                if missing[next] == 0 {
                    ready.insert(next);
                }
            }
        }
        if order.len() < self.nodes.len() {
            let nodes = self.cycle(&missing);
            errors.push(GraphError::Cycle { nodes });
        }
        order
    }

    fn next(&self, at: usize) -> impl Iterator<Item = usize> {
        let node = &self.nodes[at];
        let outputs = node.outputs.iter();
        let along_edges = outputs.map(|ix| self.edges[ix.index()].to.index());
        along_edges.chain(node.fallback.map(NodeIx::index))
    }

    /// One circle among the nodes that wait for input for ever, by walking against the edges.
    fn cycle(&self, missing: &[usize]) -> Vec<NodeId> {
        let stuck = |at: &usize| missing[*at] > 0;
        let feeder =
            |at: usize| (0..self.nodes.len()).find(|f| stuck(f) && self.next(*f).any(|n| n == at));
        let mut walk = Vec::new();
        let mut here = (0..self.nodes.len()).find(|at| stuck(at));
        while let Some(at) = here {
            if let Some(start) = walk.iter().position(|seen| *seen == at) {
                walk.drain(..start);
                walk.push(at);
                break;
            }
            walk.push(at);
            here = feeder(at);
        }
        // Walked backwards, told forwards.
        walk.iter()
            .rev()
            .map(|at| self.nodes[*at].id.clone())
            .collect()
    }

    /// Turn-scoped is what only a turn detector's text leads to.
    fn assign_scopes(&mut self, order: &[NodeIx], errors: &mut Vec<GraphError>) {
        if order.len() < self.nodes.len() {
            return;
        }
        let ingress = self.nodes.len() - 2;
        let mut in_session = vec![false; self.nodes.len()];
        let mut in_turn = vec![false; self.nodes.len()];
        in_session[ingress] = true;
        for ix in order {
            let at = ix.index();
            let node = &self.nodes[at];
            if in_session[at] && in_turn[at] && node.spec().is_some() {
                errors.push(GraphError::AmbiguousScope {
                    node: node.id.clone(),
                });
                // What comes after it is as ambiguous, and told once is enough.
                in_session[at] = false;
            }
            for edge in &node.outputs {
                let edge = &self.edges[edge.index()];
                let to = edge.to.index();
                if opens_turns(node, edge) {
                    in_turn[to] |= in_session[at] || in_turn[at];
                } else {
                    in_session[to] |= in_session[at];
                    in_turn[to] |= in_turn[at];
                }
            }
            if let Some(standby) = node.fallback {
                in_session[standby.index()] |= in_session[at];
                in_turn[standby.index()] |= in_turn[at];
            }
        }
        for at in 0..self.nodes.len() {
            let node = &mut self.nodes[at];
            // A node whose name is taken cannot be connected, and that was said already.
            let is_named = self.by_id.get(&node.id).is_some_and(|ix| ix.index() == at);
            if node.spec().is_none() || !is_named {
                continue;
            }
            match (in_session[at], in_turn[at]) {
                (false, false) => errors.push(GraphError::Unreachable {
                    node: node.id.clone(),
                }),
                (_, true) => node.scope = Scope::Turn,
                (true, false) => node.scope = Scope::Session,
            }
        }
        for at in 0..self.edges.len() {
            let edge = &self.edges[at];
            let from = &self.nodes[edge.from.index()];
            if from.scope == Scope::Turn || opens_turns(from, edge) {
                self.edges[at].scope = Scope::Turn;
            }
        }
    }
}

fn opens_turns(from: &Node, edge: &Edge) -> bool {
    from.kind() == Some(&NodeKind::TurnDetector) && edge.carries == PortType::Text
}

fn blank(id: NodeId, role: Role) -> Node {
    Node {
        id,
        role,
        scope: Scope::Session,
        inputs: Vec::new(),
        outputs: Vec::new(),
        fallback: None,
    }
}

fn edge_id(edge: &EdgeSpec) -> Option<EdgeId> {
    if let Some(id) = &edge.id {
        return Some(id.clone());
    }
    let carries = match edge.carries {
        PortType::Audio => "audio",
        PortType::Text => "text",
        PortType::Speech => "speech",
        PortType::Metrics => "metrics",
        PortType::Debug => "debug",
        PortType::Error => "error",
        PortType::Any => "any",
    };
    EdgeId::new(format!("{}->{}:{carries}", edge.from, edge.to)).ok()
}

fn fingerprint(draft: &Draft) -> String {
    let nodes: Vec<_> = draft
        .nodes
        .iter()
        .filter_map(Node::spec)
        .map(|spec| NodeSpec {
            description: None,
            ..spec.clone()
        })
        .collect();
    let edges: Vec<_> = draft
        .edges
        .iter()
        .map(|edge| {
            json!({
                "id": edge.id,
                "from": draft.nodes[edge.from.index()].id,
                "to": draft.nodes[edge.to.index()].id,
                "carries": edge.carries,
                "when": edge.when,
            })
        })
        .collect();
    canonical::hash(&json!({ "nodes": nodes, "edges": edges }))
        .expect("ids are texts and values are JSON already")
}
