//! What the promises are worth under pressure: 50 calls in which the agent speaks, while every call's
//! telemetry lane, one of its data edges and its disk are saturated.
//!
//! `cargo bench -p rspp-tests --bench pressure` prints a table, with `-- --json` JSON, with
//! `-- --quick` hastily. Two worker threads, real time.
//!
//! Each call has a node that floods the session with measurements, a node that is ten times too slow for
//! its edge, and a timeline at full fidelity on a disk that takes milliseconds for each write. Turns are
//! opened by typing and cancelled from outside; the control lane is timed from the request to its
//! answer. What was recorded is judged by the gates.

use std::{
    io::{self, Cursor, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_host::{
    Event, Port,
    node::{Node, NodeContext, Step, builtin::NodeFactory},
};
use rspp_kernel::CancelReason;
use rspp_proto::{
    MetricSample, Monotonic, Payload, PipelineVersion, SessionId, TurnNumber, WallClock,
    spec::{PipelineSpec, RecordingLevel},
};
use rspp_provider_api::scripted::ScriptedVoice;
use rspp_tests::{
    bench::{Aim, Args, Table, histogram, on_workers, us},
    fleet::{self, Caller, Meters, Metronome, Sound},
};
use rspp_timeline::{
    FileHeader, Options, Recording, Storage, Timeline,
    gates::{Gate, Gates},
};

/// Calls in which the agent speaks.
const CALLS: usize = 50;
/// Measurements that a flooding node says for each frame.
const FLOOD: usize = 20;
/// What a write to the disk takes.
const WRITE_TAKES: Duration = Duration::from_millis(5);

fn main() {
    let args = Args::read();
    on_workers(measure(args)).print(args);
}

async fn measure(args: Args) -> Table {
    let meters = Arc::new(Meters::default());
    let voice = ScriptedVoice::by_timeline("vad", []);
    let providers = fleet::providers(Duration::from_secs(40), voice);
    let flood: NodeFactory = Arc::new(|_| Box::new(Flood));
    let slow: NodeFactory = Arc::new(|_| Box::new(Slow));
    let nodes = [("flood", flood), ("slow", slow)];
    let runtime = fleet::runtime_with(providers, nodes, meters.watch).await;
    let pipeline = pressed();
    let mut callers = Vec::with_capacity(CALLS);
    let mut disks = Vec::with_capacity(CALLS);
    for n in 0..CALLS {
        let name = format!("call-{n}");
        let disk = Disk::default();
        let (recorder, recording) = record(&name, &pipeline, disk.clone()).await;
        callers.push(fleet::call_with(&runtime, &name, &pipeline, &meters, recorder).await);
        disks.push((disk, recording));
    }
    let metronome = Metronome::start(&callers, Sound::Stamped, &meters);

    let (mut control, mut fence) = (histogram(), histogram());
    let mut turns = vec![TurnNumber(0); CALLS];
    let mut leaked = 0;
    for _ in 0..args.pick(20, 2) {
        for (caller, turn) in callers.iter().zip(&mut turns) {
            caller.types("Tell me everything.");
            *turn = replied(caller, *turn).await;
        }
        for caller in &callers {
            let asked = meters.watch.nanos();
            let receipt = caller.session.cancel(CancelReason::UserCancel).await;
            control.saturating_record(meters.watch.nanos() - asked);
            let receipt = receipt.expect("the session lives");
            fence.saturating_record(receipt.fence.as_nanos() as u64);
            // Not in step with the output clock.
            tokio::time::sleep(Duration::from_micros(3_300)).await;
        }
        // Whoever goes on playing is found out.
        tokio::time::sleep(Duration::from_millis(60)).await;
        for (caller, turn) in callers.iter().zip(&turns) {
            leaked += caller.heard.reply(*turn).map_or(0, |reply| reply.leaked);
        }
    }
    drop(metronome);
    fleet::end(runtime, callers).await;
    let mut gates = Gates::default();
    for (disk, recording) in disks {
        recording
            .close()
            .await
            .expect("the disk is slow, not broken");
        let bytes = disk.bytes.lock().expect("nobody panics").clone();
        let mut timeline = Timeline::read(Cursor::new(bytes)).expect("a timeline");
        gates.add(&timeline.entries().expect("it is all there"));
    }
    report(&control, &fence, leaked, &gates.report())
}

fn report(
    control: &hdrhistogram::Histogram<u64>,
    fence: &hdrhistogram::Histogram<u64>,
    leaked: u64,
    gates: &rspp_timeline::gates::GateReport,
) -> Table {
    let mut table = Table::new(
        "pressure",
        "simple/v1, 50 calls that speak; telemetry, a data edge and the disk of each saturated; 2 workers",
    );
    let accepted = gates.accepted_turns as f64;
    table.note("turns", "turns, each cancelled", accepted, "turns");
    for (key, quantile) in [("control_p50_us", 0.5), ("control_max_us", 1.0)] {
        let what = format!("control lane, asked for to answered, q{quantile}");
        table.note(key, what, us(control, quantile), "us");
    }
    table.aim(
        "control_p99_us",
        "control lane, asked for to answered, p99",
        us(control, 0.99),
        "us",
        Aim::AtMost(1_000.0),
    );
    table.aim(
        "fence_p99_us",
        "accepted to fence, p99",
        us(fence, 0.99),
        "us",
        Aim::AtMost(100.0),
    );
    table.aim(
        "leaked",
        "outputs accepted after the fence",
        leaked as f64,
        "frames",
        Aim::AtMost(0.0),
    );
    for (key, what, gate) in [
        ("stale", "stale outputs accepted", Gate::AuthoritySafety),
        ("open_ended", "turns without a terminal", Gate::Terminals),
        (
            "unexplained",
            "turns without complete evidence",
            Gate::Evidence,
        ),
    ] {
        let measured = gates.measured.iter().find(|it| it.gate == gate);
        let value = measured.and_then(|it| it.value);
        let bad = match gate {
            Gate::Terminals | Gate::Evidence => value.map(|ratio| (1.0 - ratio) * accepted),
            Gate::TurnOpenDecision
            | Gate::FirstOutput
            | Gate::CancelFence
            | Gate::AuthoritySafety
            | Gate::EndToEnd => value,
        };
        let bad = bad.unwrap_or(f64::NAN);
        table.aim(key, what, bad, "", Aim::AtMost(0.0));
    }
    table
}

/// Waits until a reply after `turn` is heard.
async fn replied(caller: &Caller, turn: TurnNumber) -> TurnNumber {
    loop {
        if let Some(reply) = caller.heard.newest().filter(|reply| reply.turn > turn) {
            return reply.turn;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The built-in pipeline with a flood and a jam.
fn pressed() -> PipelineSpec {
    let text = PipelineSpec::simple_template();
    let nodes = "nodes:\n  - { id: flood, kind: { custom: flood } }\n  - { id: slow, kind: { custom: slow } }";
    let edges = "edges:\n  - { from: ingress, to: flood, carries: audio }\n  - { from: ingress, to: slow, carries: audio, \
                 buffer: { strategy: drop_oldest, max_queue_items: 8 } }";
    fleet::pipeline(
        &text
            .replacen("nodes:", nodes, 1)
            .replacen("edges:", edges, 1),
    )
}

/// Says more than anybody wants to know.
struct Flood;

impl Node for Flood {
    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        if matches!(event.payload, Payload::AudioChunk(_)) {
            for n in 0..FLOOD {
                cx.emit(Payload::Metrics(Box::new(MetricSample {
                    name: "flood".to_owned(),
                    value: n as f64,
                    labels: [].into(),
                })));
            }
        }
        Step::OK
    }
}

/// Takes ten times as long for a frame as it has.
struct Slow;

impl Node for Slow {
    fn on_event<'a>(
        &'a mut self,
        _cx: &'a mut NodeContext,
        _port: Port,
        _event: Event,
    ) -> Step<'a> {
        Step::Wait(Box::pin(async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            Ok(())
        }))
    }
}

/// A disk that keeps everything, slowly.
#[derive(Clone, Default)]
struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Write for Disk {
    #[expect(
        clippy::disallowed_methods,
        reason = "a slow disk blocks the thread that writes to it, which is no worker"
    )]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        std::thread::sleep(WRITE_TAKES);
        self.bytes.lock().expect("nobody panics").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Storage for Disk {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn record(
    name: &str,
    pipeline: &PipelineSpec,
    disk: Disk,
) -> (rspp_timeline::Recorder, Recording) {
    let options = Options {
        level: RecordingLevel::L2,
        ..Options::default()
    };
    let version: PipelineVersion = pipeline.version.clone();
    let header = FileHeader::new(
        SessionId::new(name).expect("not blank"),
        version,
        "pressure",
        options.level,
        Monotonic::ZERO,
        WallClock(0),
    );
    Recording::begin(disk, header, options)
        .await
        .expect("the header is written")
}
