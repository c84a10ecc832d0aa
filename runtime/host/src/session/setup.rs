//! What a session runs and what it needs for it.

use std::{collections::BTreeMap, sync::Arc};

use rspp_actors::{ControlRef, DataRef};
use rspp_kernel::{
    graph::Graph,
    plan::{PlanError, PlanInputs, ResolvedTurnPlan, resolve},
};
use rspp_proto::{
    Epoch, TenantId, TurnNumber,
    spec::{ObserveSpec, PipelineSpec, PolicyBundle},
};
use rspp_timeline::Recorder;
use tokio::sync::oneshot;

use crate::{
    assembly::Pools,
    circuits::Circuits,
    connection::ConnectionControl,
    event::Arrival,
    meters::Meters,
    node::builtin::NodeRegistry,
    observe::Observers,
    overhead::Overhead,
    report::SessionReport,
    runtime::Place,
    snapshots::{self, Snapshots},
};

/// What a session runs, resolved and checked before it opens; shared by sessions of one pipeline.
pub(crate) struct Blueprint {
    pub(crate) spec: PipelineSpec,
    pub(crate) graph: Arc<Graph>,
    pub(crate) policy: Option<PolicyBundle>,
    pub(crate) settings: rspp_kernel::plan::LayeredSettings,
    pub(crate) snapshots: Arc<Snapshots>,
}

impl Blueprint {
    pub(crate) fn plan(
        &self,
        turn: TurnNumber,
        epoch: Epoch,
    ) -> Result<ResolvedTurnPlan, PlanError> {
        let snapshots = self.snapshots.in_force();
        let snapshots = snapshots.ok_or(PlanError::StaleSnapshots)?;
        let inputs = PlanInputs {
            spec: &self.spec,
            graph: &self.graph,
            graph_fingerprint: self.graph.fingerprint(),
            profile: self.spec.profile.as_str(),
            settings: &self.settings,
            policy: self.policy.as_ref(),
            snapshots: &snapshots::for_policy(&snapshots, self.policy.as_ref()),
            snapshots_fresh: true,
        };
        resolve(&inputs, &turn.id(), epoch)
    }
}

/// The number of the plan that a session's own nodes run under; turns count from 1.
pub(crate) const LISTENING: TurnNumber = TurnNumber(0);

/// What a session needs to run.
pub(crate) struct SessionSetup {
    pub(crate) place: Place,
    pub(crate) tenant: TenantId,
    pub(crate) blueprint: Arc<Blueprint>,
    pub(crate) attributes: Arc<BTreeMap<String, serde_json::Value>>,
    pub(crate) connection: ControlRef<ConnectionControl>,
    pub(crate) egress: DataRef<Arrival>,
    pub(crate) nodes: Arc<NodeRegistry>,
    pub(crate) providers: Arc<rspp_provider_api::Providers>,
    pub(crate) circuits: Arc<Circuits>,
    pub(crate) pools: Pools,
    pub(crate) recorder: Recorder,
    pub(crate) overhead: Arc<Overhead>,
    pub(crate) observers: Arc<Observers>,
    pub(crate) observe: ObserveSpec,
    /// What the session measures, if it does.
    pub(crate) meters: Option<Arc<Meters>>,
    pub(crate) done: oneshot::Sender<SessionReport>,
}

impl Drop for SessionSetup {
    /// However the session ends, nobody is left on a dead line.
    fn drop(&mut self) {
        let _hung_up = self.connection.send_reserved(ConnectionControl::Close);
    }
}
