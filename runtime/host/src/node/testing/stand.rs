//! What stands around a node on test: whoever it reports to, and whoever takes what it emits.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use rspp_actors::{Actor, Bounded, ChildExit, Clock, Context, Failure, NoTelemetry, Verdict};
use rspp_kernel::tool::ToolRequest;
use rspp_timeline::InvocationOutcome;

use crate::{
    event::{Arrival, Event},
    node::{NodeControl, NodeReport},
    observe::Observed,
    session::SessionControl,
};

/// Something that a node on test did.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// It emitted an event, and an edge carries it on.
    Emitted(Event),
    /// It emitted an event that no edge carries; who listens in on a session sees it.
    Shown(Event),
    /// It, or its host for it, told its session something.
    Reported(NodeReport),
    /// It had tools called; [`Rig::answer_tool`](super::Rig::answer_tool) answers.
    Tools(Vec<ToolRequest>),
    /// One of its provider calls is over.
    Called(Box<InvocationOutcome>),
    /// It panicked, or could not begin again: its host is gone.
    Crashed {
        /// How.
        reason: String,
        /// Whether the host is started again.
        is_restarted: bool,
    },
}

/// What a node on test did so far and nobody has looked at, with when it did it.
#[derive(Clone)]
pub(super) struct Record {
    clock: Clock,
    outputs: Arc<Mutex<Vec<(Duration, Output)>>>,
}

impl Record {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            outputs: Arc::default(),
        }
    }

    fn keep(&self, output: Output) {
        let mut outputs = self.outputs.lock().expect("no code panics while locked");
        outputs.push((self.clock.now(), output));
    }

    /// Takes those out that are wanted, in order.
    pub(super) fn take<T>(
        &self,
        mut wanted: impl FnMut(Duration, Output) -> Result<T, Output>,
    ) -> Vec<T> {
        let mut outputs = self.outputs.lock().expect("no code panics while locked");
        let mut taken = Vec::new();
        for (at, output) in std::mem::take(&mut *outputs) {
            match wanted(at, output) {
                Ok(wanted) => taken.push(wanted),
                Err(kept) => outputs.push((at, kept)),
            }
        }
        taken
    }
}

/// Something that the stand is to do.
pub(super) type Order = Box<dyn for<'a> FnOnce(&'a mut Context<Stand>) -> BoxFuture<'a, ()> + Send>;

/// In a session's place: supervises the node's host, and hears its reports.
pub(super) struct Stand {
    pub(super) record: Record,
}

impl Actor for Stand {
    type Control = SessionControl;
    type Data = Bounded<Order>;
    type Telemetry = Observed;
    const KIND: &'static str = "test-stand";

    async fn on_control(
        &mut self,
        _ctx: &mut Context<Self>,
        message: SessionControl,
    ) -> Result<(), Failure> {
        match message {
            SessionControl::Node { report, .. } => self.record.keep(Output::Reported(report)),
            SessionControl::Invocation { outcome, .. } => {
                self.record.keep(Output::Called(outcome));
            }
            SessionControl::Tools { calls, .. } => self.record.keep(Output::Tools(calls)),
            // What is beside the node: told to a session by others, or about them.
            SessionControl::Begin
            | SessionControl::ProviderSignal { .. }
            | SessionControl::Shed { .. }
            | SessionControl::Playback { .. }
            | SessionControl::Transport { .. }
            | SessionControl::Edge { .. }
            | SessionControl::Memory { .. }
            | SessionControl::EvidenceLost
            | SessionControl::Blocked { .. }
            | SessionControl::Lease(_)
            | SessionControl::ToolBegan { .. }
            | SessionControl::ToolEnded { .. }
            | SessionControl::StaleWrite { .. }
            | SessionControl::Command(_) => {}
        }
        Ok(())
    }

    async fn on_data(&mut self, ctx: &mut Context<Self>, order: Order) -> Result<(), Failure> {
        order(ctx).await;
        Ok(())
    }

    async fn on_telemetry(
        &mut self,
        _ctx: &mut Context<Self>,
        shown: Observed,
    ) -> Result<(), Failure> {
        if !shown.copied {
            self.record.keep(Output::Shown(shown.event));
        }
        Ok(())
    }

    async fn on_child_exit(
        &mut self,
        _ctx: &mut Context<Self>,
        exit: ChildExit,
    ) -> Result<(), Failure> {
        if !exit.reason.is_orderly() {
            let is_restarted = match exit.verdict {
                Verdict::Restarted { .. } | Verdict::Restarting { .. } => true,
                Verdict::Ended | Verdict::GaveUp => false,
            };
            self.record.keep(Output::Crashed {
                reason: exit.reason.to_string(),
                is_restarted,
            });
        }
        Ok(())
    }
}

/// Behind the node: takes what its edges bring. It has the lanes of a node's host, so that edges can
/// lead to it.
pub(super) struct Receiver {
    pub(super) record: Record,
}

impl Actor for Receiver {
    type Control = NodeControl;
    type Data = Bounded<Arrival>;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "test-receiver";

    async fn on_control(
        &mut self,
        _ctx: &mut Context<Self>,
        _message: NodeControl,
    ) -> Result<(), Failure> {
        Ok(())
    }

    async fn on_data(&mut self, _ctx: &mut Context<Self>, item: Arrival) -> Result<(), Failure> {
        match item {
            Arrival::Event { event, .. } => self.record.keep(Output::Emitted(event)),
            // Only a node's own host is told of these.
            Arrival::Break { .. }
            | Arrival::Chunk { .. }
            | Arrival::CallEnded { .. }
            | Arrival::ToolAnswer { .. } => {}
        }
        Ok(())
    }
}
