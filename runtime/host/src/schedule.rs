//! Where work is scheduled: who shares a node's slots with whom, and what is shed (RK-25).

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_kernel::admission::Load;
use rspp_proto::{
    NodeId, PipelineVersion, SessionId, TenantId, TurnNumber,
    abi::OutcomeScope,
    spec::{NodeExecutionPolicy, NodeKind, Priority},
};
use rspp_provider_api::{FairGate, GateError, GatePermit, fair::Share};

use crate::admission::Gatekeeper;

/// Calls that may wait for each slot of a node.
const WAITING_PER_SLOT: usize = 64;

/// The slots of nodes whose concurrency is limited, shared by all sessions of a pipeline (F-109).
#[derive(Debug, Default)]
pub(crate) struct NodeGates {
    gates: Mutex<BTreeMap<(PipelineVersion, NodeId), FairGate>>,
}

impl NodeGates {
    /// The slots of a node; as many as the newest plan says.
    fn of(&self, version: &PipelineVersion, node: &NodeId, limit: u32) -> FairGate {
        let limit = limit as usize;
        let mut gates = self.gates.lock().expect("no code panics while locked");
        let key = (version.clone(), node.clone());
        if let Some(gate) = gates.get(&key) {
            gate.resize(limit);
            return gate.clone();
        }
        // Pipelines come and go; what nobody holds is of no use any more.
        gates.retain(|_, gate| !gate.is_unused());
        let gate = FairGate::new(limit, limit * WAITING_PER_SLOT);
        gates.insert(key, gate.clone());
        gate
    }

    /// Calls that wait for a slot of some node.
    pub(crate) fn waiting(&self) -> usize {
        let gates = self.gates.lock().expect("no code panics while locked");
        gates.values().map(|gate| gate.counters().waiting).sum()
    }
}

/// Who one session is where work is scheduled.
#[derive(Clone)]
pub(crate) struct Scheduling {
    pub(crate) gatekeeper: Arc<Gatekeeper>,
    /// How the session shares by default: as one of its tenant's.
    pub(crate) share: Arc<Share>,
    pub(crate) tenant: TenantId,
    pub(crate) version: PipelineVersion,
    pub(crate) priority: Priority,
}

/// How one node's work is scheduled.
#[derive(Clone)]
pub(crate) struct NodeSchedule {
    session: Arc<Scheduling>,
    share: Arc<Share>,
    gate: Option<FairGate>,
    max_wait: Duration,
}

/// Work was shed where it is scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shed {
    pub(crate) point: OutcomeScope,
    pub(crate) reason: &'static str,
}

impl fmt::Debug for NodeSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeSchedule")
            .field("share", &self.share)
            .field("gate", &self.gate)
            .finish_non_exhaustive()
    }
}

impl Scheduling {
    pub(crate) fn new(
        gatekeeper: &Arc<Gatekeeper>,
        tenant: &TenantId,
        version: &PipelineVersion,
        priority: Priority,
        session: &SessionId,
    ) -> Self {
        let share = gatekeeper.share_of(tenant, priority, session.as_str());
        Self {
            gatekeeper: Arc::clone(gatekeeper),
            share: Arc::new(share),
            tenant: tenant.clone(),
            version: version.clone(),
            priority,
        }
    }

    /// Whether this session's work is shed now.
    pub(crate) fn is_shed(&self) -> bool {
        self.gatekeeper.sheds(self.priority)
    }

    /// Whether the node has more to do than it takes newcomers for: nothing is done then that can be left.
    pub(crate) fn is_loaded(&self) -> bool {
        match self.gatekeeper.load() {
            Load::Normal => false,
            Load::High | Load::Severe => true,
        }
    }

    /// Who shares, by a policy's fairness key: `tenant`, `session`, `turn`, or a name of its own.
    fn share_by(
        &self,
        key: Option<&str>,
        session: &SessionId,
        turn: Option<TurnNumber>,
    ) -> Arc<Share> {
        let group: Arc<str> = match key {
            None | Some("tenant") => return Arc::clone(&self.share),
            Some("session") => session.as_str().into(),
            Some("turn") => match turn {
                Some(turn) => format!("{session}/{turn}").into(),
                None => session.as_str().into(),
            },
            Some(own) => own.into(),
        };
        Arc::new(Share {
            group,
            ..(*self.share).clone()
        })
    }

    /// How a node's work is scheduled under the frozen plan.
    pub(crate) fn node(
        self: &Arc<Self>,
        at: (&PipelineVersion, &NodeId),
        policy: Option<&NodeExecutionPolicy>,
        edge_key: Option<&str>,
        of: (&SessionId, Option<TurnNumber>),
        max_wait: Duration,
    ) -> NodeSchedule {
        let key = policy.and_then(|policy| policy.fairness_key.as_deref());
        let limit = policy.map_or(0, |policy| policy.concurrency_limit);
        NodeSchedule {
            share: self.share_by(key.or(edge_key), of.0, of.1),
            gate: (limit > 0).then(|| self.gatekeeper.gates.of(at.0, at.1, limit)),
            session: Arc::clone(self),
            max_wait,
        }
    }
}

impl NodeSchedule {
    /// Who the node's work is accounted to.
    pub(crate) fn share(&self) -> &Arc<Share> {
        &self.share
    }

    /// The session it belongs to.
    pub(crate) fn session(&self) -> &Arc<Scheduling> {
        &self.session
    }

    /// Whether handlers of a node of this kind wait for slots themselves: of nodes whose work is
    /// provider calls, the calls do.
    pub(crate) fn holds_handlers(&self, kind: &NodeKind) -> bool {
        match kind {
            NodeKind::Stt | NodeKind::Llm | NodeKind::Tts => false,
            NodeKind::Vad
            | NodeKind::TurnDetector
            | NodeKind::Segmenter
            | NodeKind::Guard
            | NodeKind::Passthrough
            | NodeKind::Merge
            | NodeKind::Select
            | NodeKind::Custom(_) => self.gate.is_some(),
        }
    }

    /// Waits for a slot of the node, no longer than `left`; `None` if it needs none.
    pub(crate) async fn slot(&self, left: Duration) -> Result<Option<GatePermit>, Shed> {
        let shed = |reason| Shed {
            point: OutcomeScope::NodeDispatch,
            reason,
        };
        if self.session.is_shed() {
            return Err(shed("scheduling_point_shed"));
        }
        let Some(gate) = &self.gate else {
            return Ok(None);
        };
        let passed = tokio::time::timeout(self.max_wait.min(left), gate.pass(&self.share)).await;
        match passed {
            Ok(Ok(permit)) => Ok(Some(permit)),
            Ok(Err(GateError::Saturated)) | Err(_) => Err(shed("node_concurrency_limited")),
            Ok(Err(GateError::Closed)) => Err(shed("execution_pool_closed")),
        }
    }
}
