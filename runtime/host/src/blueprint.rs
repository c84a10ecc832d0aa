//! What sessions run: a pipeline, compiled, with all that its plans follow from.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use rspp_kernel::{
    graph::{Graph, GraphError},
    plan::{
        KnownPolicies, LayeredSettings, PlanError, PlanInputs, ProviderInputs, ResolvedPolicy,
        ResolvedTurnPlan, TransportCapabilities,
    },
};
use rspp_proto::{
    Epoch, TurnNumber,
    spec::{PipelineSpec, PolicyBundle},
};
use rspp_timeline::{PlanFields, PlanRecord};
use serde::Serialize;
use serde_json::Value;

use crate::{
    runtime::OpenError,
    snapshots::{self, Snapshots},
};

/// Most blueprints that are kept for sessions to come, and policies that one is known to write down.
const KEPT: usize = 32;

/// What a session runs, compiled and checked before it opens; shared by sessions of one pipeline.
pub(crate) struct Blueprint {
    pub(crate) spec: PipelineSpec,
    pub(crate) graph: Arc<Graph>,
    pub(crate) instructions: Option<Arc<str>>,
    pub(crate) policy: Option<PolicyBundle>,
    pub(crate) settings: LayeredSettings,
    pub(crate) snapshots: Arc<Snapshots>,
    known: Mutex<KnownPolicies>,
    /// Policies as they are written down, those written last last.
    written: Mutex<VecDeque<(Arc<ResolvedPolicy>, Arc<PlanFields>)>>,
    /// What its first session was opened with; in a timeline's first entry, and the same for most.
    given: OnceLock<(PipelineSpec, Given)>,
}

/// What a session was opened with, as it is written down.
#[derive(Clone)]
pub(crate) struct Given {
    /// The pipeline, before a policy inserted anything.
    pub(crate) pipeline: Arc<Value>,
    pub(crate) policy: Option<Arc<Value>>,
    pub(crate) settings: Arc<Value>,
}

impl Blueprint {
    /// Compiles a pipeline, for sessions that are checked otherwise.
    pub(crate) fn new(
        spec: PipelineSpec,
        policy: Option<PolicyBundle>,
        settings: LayeredSettings,
        snapshots: Arc<Snapshots>,
    ) -> Result<Self, Vec<GraphError>> {
        Ok(Self {
            graph: Arc::new(Graph::compile(&spec)?),
            instructions: spec.instructions.as_deref().map(Into::into),
            spec,
            policy,
            settings,
            snapshots,
            known: Mutex::default(),
            written: Mutex::default(),
            given: OnceLock::new(),
        })
    }

    /// What a session of `pipeline` was opened with.
    pub(crate) fn given(&self, pipeline: &PipelineSpec) -> Given {
        let first = || (pipeline.clone(), self.write_down(pipeline));
        let (known, given) = self.given.get_or_init(first);
        if known == pipeline {
            given.clone()
        } else {
            // Two pipelines that a policy made one.
            self.write_down(pipeline)
        }
    }

    fn write_down(&self, pipeline: &PipelineSpec) -> Given {
        Given {
            pipeline: Arc::new(written(pipeline)),
            policy: self.policy.as_ref().map(|policy| Arc::new(written(policy))),
            settings: Arc::new(written(&self.settings)),
        }
    }

    /// The plan as it is written down; what it shares with other turns is there once.
    pub(crate) fn record(&self, plan: &ResolvedTurnPlan) -> Result<PlanRecord, serde_json::Error> {
        let mut written = lock(&self.written);
        let found = written
            .iter()
            .find(|(policy, _)| Arc::ptr_eq(policy, &plan.policy));
        let shared = if let Some((_, fields)) = found {
            Arc::clone(fields)
        } else {
            let fields = Arc::new(PlanFields::of(&*plan.policy)?);
            keep(
                &mut written,
                (Arc::clone(&plan.policy), Arc::clone(&fields)),
            );
            fields
        };
        drop(written);
        PlanRecord::new(&plan.turn_fields(), shared)
    }

    /// The plan of a turn.
    pub(crate) fn plan(
        &self,
        turn: TurnNumber,
        epoch: Epoch,
        transport: Option<Arc<TransportCapabilities>>,
        providers: ProviderInputs<'_>,
        degraded: bool,
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
            providers,
            degraded,
        };
        let policy = lock(&self.known).resolve(&inputs)?;
        Ok(ResolvedTurnPlan::of(policy, &turn.id(), epoch, transport))
    }
}

/// The blueprints of a node. Sessions of one pipeline, one policy and equal settings share one.
pub(crate) struct Blueprints {
    snapshots: Arc<Snapshots>,
    /// Those asked for last come last.
    kept: Mutex<VecDeque<Arc<Blueprint>>>,
}

impl Blueprints {
    pub(crate) fn new(snapshots: Arc<Snapshots>) -> Self {
        Self {
            snapshots,
            kept: Mutex::default(),
        }
    }

    /// The blueprint that equal sessions have, or a new one that `check` approves of.
    pub(crate) fn find(
        &self,
        spec: PipelineSpec,
        policy: Option<&PolicyBundle>,
        settings: &LayeredSettings,
        check: impl FnOnce(&PipelineSpec) -> Result<(), OpenError>,
    ) -> Result<Arc<Blueprint>, OpenError> {
        let fits = |known: &Arc<Blueprint>| {
            known.spec == spec && known.policy.as_ref() == policy && known.settings == *settings
        };
        let mut kept = lock(&self.kept);
        if let Some(at) = kept.iter().rposition(fits) {
            let known = kept.remove(at).expect("it was found there");
            kept.push_back(Arc::clone(&known));
            return Ok(known);
        }
        drop(kept);
        settings.check().map_err(OpenError::Plan)?;
        let snapshots = Arc::clone(&self.snapshots);
        let (policy, settings) = (policy.cloned(), settings.clone());
        let made = Blueprint::new(spec, policy, settings, snapshots).map_err(OpenError::Graph)?;
        let made = Arc::new(made);
        check(&made.spec)?;
        keep(&mut lock(&self.kept), Arc::clone(&made));
        Ok(made)
    }
}

/// A part of a spec, as it is written down.
pub(crate) fn written<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("specs are written as they are read")
}

/// Puts one more in its place, and lets the oldest go.
fn keep<T>(kept: &mut VecDeque<T>, one: T) {
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(one);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one step: whoever panicked left nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
