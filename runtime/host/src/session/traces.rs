//! A session's turns as spans, for a collector that gets them while the call goes on (F-070).

use std::sync::Arc;

use rspp_proto::{Monotonic, WallClock};
use rspp_timeline::{
    AttemptRecord, ToolEntry, TurnBaseline,
    trace::{SpanBatch, SpanSink, Tracer, Whose},
};

use super::SessionSetup;

/// Makes spans and hands them over.
pub(super) struct Traces {
    tracer: Tracer,
    sink: Arc<dyn SpanSink>,
    tied: (Monotonic, WallClock),
    /// A turn whose end is decided; what is asked for it may still be ending.
    sealed: Option<Box<TurnBaseline>>,
}

impl Traces {
    /// Those of a session, where anybody takes them.
    pub(super) fn of(setup: &SessionSetup, wall_origin: WallClock) -> Option<Self> {
        let sink = Arc::clone(setup.spans.as_ref()?);
        let whose = Whose {
            tenant: Some(setup.tenant.clone()),
            session: setup.place.lease.session.clone(),
            version: setup.blueprint.spec.version.clone(),
        };
        Some(Self {
            tracer: Tracer::new(whose, setup.caller),
            sink,
            tied: (Monotonic::ZERO, wall_origin),
            sealed: None,
        })
    }

    pub(super) fn attempt(&mut self, attempt: &AttemptRecord) {
        self.tracer.attempt(attempt);
        self.hand_over();
    }

    pub(super) fn tool(&mut self, step: &ToolEntry) {
        self.tracer.tool(step);
    }

    pub(super) fn sealed(&mut self, turn: &TurnBaseline) {
        self.sealed = Some(Box::new(turn.clone()));
    }

    /// The turn that was sealed is closed.
    pub(super) fn closed(&mut self) {
        if let Some(turn) = self.sealed.take() {
            self.tracer.turn(&turn);
            self.hand_over();
        }
    }

    /// The session is over.
    pub(super) fn end(&mut self) {
        self.closed();
        self.tracer.end();
        self.hand_over();
    }

    fn hand_over(&mut self) {
        let spans = self.tracer.take();
        if !spans.is_empty() {
            let tied = self.tied;
            self.sink.offer(SpanBatch { spans, tied });
        }
    }
}
