//! What a session says about itself: its measurements, and what its telemetry lane could not hold.

use std::time::Duration;

use rspp_actors::Context;
use rspp_kernel::edge::{DropReason, EdgeNotice, SequenceSpan};
use rspp_proto::{EdgeId, Epoch, Lane, Monotonic, Payload, SampleIndex};
use rspp_timeline::AttemptRecord;

use super::{Session, time};
use crate::{
    event::{Event, Stamp},
    meters::{Measured, samples},
    observe::Observed,
};

/// Names the session's telemetry lane where edges are named.
const LANE: &str = "nodes->session:telemetry";

/// Items of the telemetry lane so far.
#[derive(Debug, Default)]
pub(super) struct Telemetry {
    heard: u64,
    lost: u64,
}

impl Session {
    /// Begins to debug and to measure, where the pipeline or the settings say so.
    pub(super) fn observe(&mut self, ctx: &mut Context<Self>) {
        if self.setup.observe.debug == Some(true) {
            self.setup.observers.debug();
        }
        let every = self.setup.observe.metrics_every_ms.unwrap_or(0);
        let Some(meters) = self.setup.meters.clone().filter(|_| every > 0) else {
            return;
        };
        let (clock, epoch) = (ctx.clock(), self.kernel.epoch());
        let (lane, stopped) = (ctx.telemetry_ref(), ctx.cancellation().clone());
        ctx.spawn_task("meters", async move {
            let mut before = None;
            loop {
                tokio::select! {
                    biased;
                    () = stopped.cancelled() => return,
                    () = tokio::time::sleep(Duration::from_millis(every)) => {}
                }
                let now = meters.measurements();
                let at = Monotonic::from_duration(clock.now());
                for measured in samples(before.as_ref(), &now) {
                    let _unwatched = lane.offer(measurement(measured, epoch, at));
                }
                before = Some(now);
            }
        });
    }

    /// Requests to providers are over: evidence, and measured.
    pub(super) fn attempts_ended(&mut self, attempts: &[AttemptRecord]) {
        for attempt in attempts {
            if let Some(meters) = &self.setup.meters {
                meters.asked(attempt);
            }
            self.publisher.attempt(attempt);
        }
    }

    /// Says what the telemetry lane has lost: it drops its oldest, and never holds anybody up.
    pub(super) fn count_unseen(&mut self, ctx: &Context<Self>) {
        let lost = ctx.telemetry_ref().dropped();
        let Telemetry { heard, lost: known } = &mut self.telemetry;
        let first = *heard + *known + 1;
        *heard += 1;
        let count = lost.saturating_sub(*known);
        if count == 0 {
            return;
        }
        *known = lost;
        let edge = EdgeId::new(LANE).expect("the name is not blank");
        let notice = EdgeNotice::Drop {
            range: SequenceSpan {
                start: first,
                end: first + count - 1,
            },
            reason: DropReason::Items,
            count,
            turn: None,
        };
        let turn = self.kernel.current_turn();
        self.edge_reported(turn, &edge, Lane::Telemetry, &notice, time(ctx));
    }
}

/// A measurement as it is told in band.
pub(crate) fn measurement(measured: Measured, epoch: Epoch, at: Monotonic) -> Observed {
    let stamp = Stamp {
        turn: None,
        epoch,
        sequence: 0,
        made: at,
        media: SampleIndex(0),
        segment: 0,
    };
    Observed {
        node: measured.node,
        edge: measured.edge,
        event: Event::new(stamp, Payload::Metrics(Box::new(measured.sample))),
        copied: false,
    }
}
