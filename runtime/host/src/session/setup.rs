//! What a session runs and what it needs for it.

use std::{collections::BTreeMap, sync::Arc};

use rspp_actors::{ControlRef, DataRef};
use rspp_controlplane_api::StateStore;
use rspp_kernel::{
    continuation::Continuation,
    plan::{PlanError, ProviderInputs, ProviderSignals, ResolvedTurnPlan},
};
use rspp_proto::{
    Epoch, TenantId, TraceParent, TurnNumber,
    spec::{CircuitPolicy, ObserveSpec},
};
use rspp_timeline::{OpeningEntry, Recorder, trace::SpanSink};
use tokio::sync::oneshot;

use super::{Health, SessionControl};
use crate::{
    assembly::Pools,
    blueprint::Blueprint,
    carriage::Carriage,
    clip::Clip,
    connection::ConnectionControl,
    event::Arrival,
    memory::Meter,
    meters::Meters,
    node::{WorkBook, builtin::NodeRegistry},
    observe::Observers,
    overhead::Overhead,
    plane::Tried,
    providers::{ProviderBoard, catalogue},
    report::SessionReport,
    runtime::{OpenError, Place},
    tool::ToolRegistry,
    watchdog::Watchdog,
};

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
    /// What the transport can do.
    pub(crate) carriage: Arc<Carriage>,
    pub(crate) nodes: Arc<NodeRegistry>,
    pub(crate) tools: Arc<ToolRegistry>,
    pub(crate) store: Arc<dyn StateStore>,
    /// Whether the conversation is kept there, for another placement to go on with.
    pub(crate) keeps: bool,
    /// What an earlier placement has kept, until it is gone on with.
    pub(crate) resumed: Option<Box<Continuation>>,
    pub(crate) providers: Arc<rspp_provider_api::Providers>,
    pub(crate) board: Arc<ProviderBoard>,
    pub(crate) clips: Arc<BTreeMap<String, Clip>>,
    /// When providers are left alone, by the session's own policy.
    pub(crate) circuit: CircuitPolicy,
    pub(crate) pools: Pools,
    pub(crate) recorder: Recorder,
    /// What it was opened with, until that is recorded.
    pub(crate) opening: Option<Box<OpeningEntry>>,
    pub(crate) overhead: Arc<Overhead>,
    pub(crate) observers: Arc<Observers>,
    pub(crate) observe: ObserveSpec,
    /// What the session measures, if it does.
    pub(crate) meters: Option<Arc<Meters>>,
    /// Who takes its turns as traces, if anybody does.
    pub(crate) spans: Option<Arc<dyn SpanSink>>,
    /// What its nodes do for each turn, where that is looked at.
    pub(crate) work: Option<Arc<WorkBook>>,
    /// Where in a trace whoever called is.
    pub(crate) caller: Option<TraceParent>,
    pub(crate) health: Arc<Health>,
    pub(crate) memory: Arc<Meter>,
    pub(crate) watchdog: Watchdog,
    /// How its versions are judged by it, in a fleet.
    pub(crate) tried: Option<Tried>,
    /// Told once the session listens, or why it never will.
    pub(crate) opened: Opening,
    pub(crate) done: oneshot::Sender<SessionReport>,
}

/// The answer that whoever opens a session waits for. However the session fares, it comes: a refusal
/// once its place is free again.
#[derive(Default)]
pub(crate) struct Opening {
    answer: Option<OpenAnswer>,
    failure: Option<String>,
}

/// Where the answer goes.
pub(crate) type OpenAnswer = oneshot::Sender<Result<ControlRef<SessionControl>, OpenError>>;

impl Opening {
    pub(crate) fn new(answer: OpenAnswer) -> Self {
        Self {
            answer: Some(answer),
            failure: None,
        }
    }

    /// The session listens.
    pub(super) fn succeed(&mut self, session: ControlRef<SessionControl>) {
        if let Some(answer) = self.answer.take() {
            let _caller_is_gone = answer.send(Ok(session));
        }
    }

    /// The session never will.
    pub(super) fn fail(&mut self, message: String) {
        self.failure = Some(message);
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            let why = self
                .failure
                .take()
                .map_or(OpenError::Closed, OpenError::Start);
            let _caller_is_gone = answer.send(Err(why));
        }
    }
}

impl SessionSetup {
    /// The plan of a turn, by what is known of the providers and the transport now.
    pub(crate) fn plan(
        &self,
        turn: TurnNumber,
        epoch: Epoch,
        degraded: bool,
    ) -> Result<ResolvedTurnPlan, PlanError> {
        let catalogue = catalogue(&self.providers);
        let signals: ProviderSignals = self.board.signals(self.circuit);
        let inputs = ProviderInputs {
            tenant: self.tenant.as_str(),
            attributes: &self.attributes,
            catalogue: &catalogue,
            signals: &signals,
            now: self.board.now(),
        };
        let transport = Some(self.carriage.now());
        self.blueprint
            .plan(turn, epoch, transport, inputs, degraded)
    }
}

impl Drop for SessionSetup {
    /// However the session ends, nobody is left on a dead line.
    fn drop(&mut self) {
        let _hung_up = self.connection.send_reserved(ConnectionControl::Close);
    }
}
