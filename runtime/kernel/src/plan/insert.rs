//! Nodes that a policy puts into a pipeline (F-062).
//!
//! Done before the graph is compiled: what a policy inserts is checked, planned, fingerprinted and
//! recorded like everything else.

use rspp_proto::{
    NodeId,
    spec::{EdgeSpec, Insertion, PipelineSpec, PolicyBundle},
};

use super::PlanError;

/// Most nodes that one policy inserts.
pub const MAX_INSERTIONS: usize = 16;

/// The pipeline with the nodes that `policy` inserts; the pipeline as authored without a policy.
///
/// A node is inserted after one that the pipeline leaves open to policies: all edges of the given type
/// that left that node leave the inserted one, under the ids that they had. Insertions after one node
/// follow each other in the policy's order.
pub fn with_insertions(
    pipeline: &PipelineSpec,
    policy: Option<&PolicyBundle>,
) -> Result<PipelineSpec, PlanError> {
    let mut effective = pipeline.clone();
    let insertions = policy.map_or(&[][..], |policy| &policy.insert_nodes);
    if insertions.len() > MAX_INSERTIONS {
        return Err(PlanError::Invalid {
            path: "policy.insert_nodes".to_owned(),
            problem: "holds more than 16 nodes",
        });
    }
    // In reverse, so that each is put directly after its anchor and the first ends up nearest to it.
    for insertion in insertions.iter().rev() {
        insert(&mut effective, pipeline, insertion)?;
    }
    Ok(effective)
}

fn insert(
    effective: &mut PipelineSpec,
    authored: &PipelineSpec,
    insertion: &Insertion,
) -> Result<(), PlanError> {
    let Insertion {
        after,
        carries,
        node,
    } = insertion;
    if !authored.open_to_policy.contains(after) {
        return Err(PlanError::NotOpen {
            node: after.clone(),
            open: authored.open_to_policy.clone(),
        });
    }
    if effective.nodes.iter().any(|known| known.id == node.id) {
        return Err(PlanError::NameTaken {
            node: node.id.clone(),
        });
    }
    let moved = effective
        .edges
        .iter_mut()
        .filter(|edge| edge.from == *after && edge.carries == *carries);
    let mut count = 0;
    for edge in moved {
        // Policies and settings know the edge by the id that it was authored with.
        edge.id = Some(edge.edge_id().map_err(|_| PlanError::NothingToFollow {
            node: after.clone(),
            carries: *carries,
        })?);
        edge.from = node.id.clone();
        count += 1;
    }
    if count == 0 {
        return Err(PlanError::NothingToFollow {
            node: after.clone(),
            carries: *carries,
        });
    }
    effective.nodes.push(node.clone());
    effective.edges.push(EdgeSpec {
        id: None,
        from: after.clone(),
        to: node.id.clone(),
        carries: *carries,
        when: None,
        buffer: None,
    });
    Ok(())
}

/// The nodes that `policy` inserts, for audits.
pub fn inserted(policy: Option<&PolicyBundle>) -> impl Iterator<Item = &NodeId> {
    let insertions = policy.map_or(&[][..], |policy| &policy.insert_nodes);
    insertions.iter().map(|insertion| &insertion.node.id)
}
