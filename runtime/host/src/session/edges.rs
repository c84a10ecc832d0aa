//! What edges report, and what a loss on one of them means for the others of its sync domain.

use std::collections::BTreeMap;

use rspp_kernel::{
    edge::EdgeNotice,
    graph::{Graph, NodeIx},
    plan::ResolvedTurnPlan,
};
use rspp_proto::{EdgeId, Lane, Monotonic, SyncDomain, TurnNumber};

use super::Session;
use crate::{
    connection::ConnectionControl,
    event::Port,
    node::{NodeControl, Torn},
    turn::TurnControl,
};

/// The edges of each sync domain, by where they end.
#[derive(Debug, Default)]
pub(super) struct Domains(BTreeMap<SyncDomain, Vec<Member>>);

#[derive(Debug)]
struct Member {
    edge: EdgeId,
    to: NodeIx,
    port: Port,
}

impl Domains {
    pub(super) fn new(graph: &Graph, plan: &ResolvedTurnPlan) -> Self {
        let mut domains = BTreeMap::<_, Vec<Member>>::new();
        for (ix, edge) in graph.edges() {
            let policy = plan.edge_buffer_policies.get(&edge.id);
            let sync = policy.and_then(|policy| policy.sync_drop_policy.as_ref());
            let domain = sync.and_then(|sync| sync.sync_domain.as_deref());
            let Some(domain) = domain.and_then(|domain| SyncDomain::new(domain).ok()) else {
                continue;
            };
            let inputs = &graph.node(edge.to).inputs;
            let port = inputs.iter().position(|input| *input == ix).unwrap_or(0);
            domains.entry(domain).or_default().push(Member {
                edge: edge.id.clone(),
                to: edge.to,
                port: Port(port as u16),
            });
        }
        Self(domains)
    }
}

impl Session {
    /// Says what an edge reports, and tells the other edges of its domain what concerns them.
    pub(super) fn edge_reported(
        &mut self,
        turn: Option<TurnNumber>,
        edge: &EdgeId,
        lane: Lane,
        notice: &EdgeNotice,
        at: Monotonic,
    ) {
        let mut said_of = turn;
        match notice {
            EdgeNotice::Drop {
                count, turn: of, ..
            } => {
                // An edge that outlives turns tells of the last one's when the next may run already.
                self.ledger.dropped(of.or(turn), lane, *count);
                said_of = turn.filter(|turn| of.is_none_or(|of| of == *turn));
            }
            EdgeNotice::GroupLost { domain, group, .. } => {
                self.spread(edge, domain, Torn::Lose(*group));
            }
            EdgeNotice::Discontinuity {
                domain,
                reason,
                wide: true,
                ..
            } => self.spread(edge, domain, Torn::Reset(*reason)),
            EdgeNotice::Discontinuity { wide: false, .. }
            | EdgeNotice::Watermark { .. }
            | EdgeNotice::Act(_)
            | EdgeNotice::FlowXoff
            | EdgeNotice::FlowXon
            | EdgeNotice::Credit { .. }
            | EdgeNotice::Merge { .. } => {}
        }
        self.publisher.edge(said_of, edge, lane, notice, at);
    }

    /// Tells every other edge of a domain (`scope: plan_wide`).
    fn spread(&self, from: &EdgeId, domain: &SyncDomain, torn: Torn) {
        let members = self.domains.0.get(domain).into_iter().flatten();
        for member in members.filter(|member| member.edge != *from) {
            let Member { to, port, .. } = *member;
            let told = if to == self.setup.blueprint.graph.egress() {
                let order = ConnectionControl::Sync(port, torn);
                self.setup.connection.send_reserved(order).is_ok()
            } else if let Some(host) = self.hosts.get(to) {
                let order = NodeControl::Sync(port, torn);
                host.control.send_reserved(order).is_ok()
            } else if let Some(running) = &self.turn {
                let order = TurnControl::Sync(to, port, torn);
                running.control.send_reserved(order).is_ok()
            } else {
                continue; // An edge of a turn that is not there holds nothing.
            };
            if !told {
                tracing::debug!(edge = %member.edge, %domain, "nobody takes the news of a break");
            }
        }
    }
}
