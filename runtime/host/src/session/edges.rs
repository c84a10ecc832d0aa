//! What edges report, and what a loss on one of them means for the others of its sync domain.

use std::collections::BTreeMap;

use rspp_kernel::{
    edge::{EdgeNotice, Gauge},
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

/// The lane that the session is told by. It is no edge's and nobody may be kept from it; how deep it is, is said all
/// the same.
#[derive(Debug)]
pub(super) struct ControlLane {
    /// Named as turn-plan.md §6 has it.
    name: EdgeId,
    gauge: Gauge,
}

impl ControlLane {
    pub(super) fn new(plan: &ResolvedTurnPlan) -> Option<Self> {
        let plan_hash = plan.plan_hash.get(..12)?;
        let name = EdgeId::new(format!("plan/{plan_hash}/control")).ok()?;
        let gauge = Gauge::new(plan.flow_control.control_marks);
        Some(Self { name, gauge })
    }
}

/// The turns in which edges stopped their senders: letting them go again is of the same turn.
#[derive(Debug, Default)]
pub(super) struct Stops(BTreeMap<(EdgeId, Lane), TurnNumber>);

impl Stops {
    /// A sender was stopped while this turn ran.
    fn stopped(&mut self, edge: &EdgeId, lane: Lane, turn: Option<TurnNumber>) {
        let key = (edge.clone(), lane);
        match turn {
            Some(turn) => self.0.insert(key, turn),
            None => self.0.remove(&key),
        };
    }

    /// It is let go. Which turn that is told of, though another may run by now.
    fn let_go(&mut self, edge: &EdgeId, lane: Lane) -> Option<TurnNumber> {
        self.0.remove(&(edge.clone(), lane))
    }
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
    /// Says when the session's own control lane fills, and when it has emptied again (F-144).
    pub(super) fn gauge_control(&mut self, now: Monotonic, depth: usize) {
        let Some(lane) = &mut self.control_lane else {
            return;
        };
        let mut said = lane.gauge.read(depth as u64).peekable();
        if said.peek().is_none() {
            return;
        }
        let (name, turn) = (lane.name.clone(), self.kernel.current_turn());
        for notice in said {
            self.edge_reported(turn, &name, Lane::Control, &notice, now);
        }
    }

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
            EdgeNotice::FlowXoff => self.stops.stopped(edge, lane, turn),
            EdgeNotice::FlowXon => said_of = self.stops.let_go(edge, lane),
            EdgeNotice::Discontinuity { wide: false, .. }
            | EdgeNotice::Watermark { .. }
            | EdgeNotice::Act(_)
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
