//! Exports timelines for as long as the node lives (F-154).

use std::convert::Infallible;

use rspp_actors::{ExitReason, NoData, NoTelemetry, Pump, PumpContext};
use rspp_proto::Monotonic;
use rspp_timeline::export::Exports;

/// Ships what is recorded; restarted if it dies, since what it has to do is remembered beside the files.
pub(crate) struct TimelineExporter {
    pub(crate) exports: Exports,
}

impl Pump for TimelineExporter {
    type Control = Infallible;
    type Data = NoData;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "timeline_exporter";

    async fn run(&mut self, ctx: &mut PumpContext<Self>) -> ExitReason {
        let clock = ctx.clock();
        let stopped = ctx.cancellation().clone();
        let export = self.exports.run(|| Monotonic::from_duration(clock.now()));
        tokio::select! {
            biased;
            () = stopped.cancelled() => {}
            () = export => {}
        }
        ExitReason::Finished
    }
}
