//! A frame's way through a pipeline: real connection, four real node hosts, real edges.
//!
//! `cargo bench -p rspp-tests --bench pipeline` prints a table, with `-- --json` JSON, with
//! `-- --quick` hastily. Two worker threads.
//!
//! Throughput: one session; the connection cuts pieces of 64 frames (or of one) and stamps each, three
//! pass-through hosts forward it, the fourth counts it. Edges hold 2,048 frames and at most 1,024 are
//! under way. Busy: one frame under way at a time, the next right after it. Out of idle: an outside
//! thread hands in one frame every 2 ms, with both workers parked.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::stream;
use hdrhistogram::Histogram;
use rspp_host::{
    Event, Port,
    node::{Node, NodeContext, Step, builtin::NodeFactory},
};
use rspp_proto::{AudioChunk, Payload, SampleRate, TurnNumber, spec::PipelineSpec};
use rspp_provider_api::Providers;
use rspp_tests::{
    bench::{Aim, Args, Table, Watch, histogram, us, workers},
    fleet::{self, FRAME_BYTES},
};
use rspp_timeline::Recorder;
use rspp_transport_api::{Ingress, Outgoing, Sink, SinkError, Source};
use tokio::sync::{Semaphore, mpsc};

/// Frames under way at once.
const UNDER_WAY: usize = 1_024;
/// Frames in a piece of audio.
const PIECE: usize = 64;

fn main() {
    let args = Args::read();
    workers().block_on(measure(args)).print(args);
}

async fn measure(args: Args) -> Table {
    let mut table = Table::new(
        "pipeline",
        "one session; ingress -> 3 pass-through hosts -> a counting host; 20 ms frames of 640 bytes; 2 workers",
    );
    let frames = args.pick(2_000_000, 100_000);
    let mut rates = Vec::new();
    for _ in 0..args.pick(5, 1) {
        rates.push(throughput(frames, PIECE).await);
    }
    rates.sort_by(f64::total_cmp);
    table.aim(
        "frames_per_s",
        "frames through four stages, median of runs",
        rates[rates.len() / 2],
        "frames/s",
        Aim::AtLeast(1e6),
    );
    table.note(
        "frames_per_s_singly",
        "the same, handed in one by one",
        throughput(frames / 2, 1).await,
        "frames/s",
    );
    let busy = busy(args.pick(200_000, 10_000)).await;
    table.aim(
        "hop_busy_p50_us",
        "one hop while busy, p50",
        us(&busy, 0.5) / 4.0,
        "us",
        Aim::AtMost(0.6),
    );
    table.note(
        "hop_busy_p99_us",
        "one hop while busy, p99",
        us(&busy, 0.99) / 4.0,
        "us",
    );
    let rounds = args.pick(3_000, 200);
    let one = idle(&chain(1), rounds).await;
    table.aim(
        "hop_idle_p99_us",
        "from an outside thread to the first host, workers parked, p99",
        us(&one, 0.99),
        "us",
        Aim::AtMost(80.0),
    );
    table.note("hop_idle_p50_us", "the same, p50", us(&one, 0.5), "us");
    let four = idle(&chain(4), rounds).await;
    table.note(
        "four_idle_p50_us",
        "from an outside thread to the fourth host, workers parked, p50",
        us(&four, 0.5),
        "us",
    );
    table.note("four_idle_p99_us", "the same, p99", us(&four, 0.99), "us");
    table
}

/// `stages` hosts in a row, the last of which measures.
fn chain(stages: usize) -> PipelineSpec {
    let buffer = "{ strategy: block, max_queue_items: 2048, max_queue_ms: 60000, \
         max_queue_bytes: 4194304, max_latency_contribution_ms: 60000, max_block_time_ms: 2000, \
         watermarks: { queue_items: { high: 2048, low: 1024 } } }";
    let (mut nodes, mut edges) = (String::new(), String::new());
    let mut from = "ingress".to_owned();
    for stage in 1..=stages {
        let kind = if stage == stages {
            "{ custom: last }"
        } else {
            "passthrough"
        };
        let _infallible = writeln!(nodes, "  - {{ id: p{stage}, kind: {kind} }}");
        let edge = format!("from: {from}, to: p{stage}, carries: audio");
        let _infallible = writeln!(edges, "  - {{ {edge}, buffer: {buffer} }}");
        from = format!("p{stage}");
    }
    // A pipeline has to lead somewhere; the last node sends nothing there.
    let _infallible = writeln!(edges, "  - {{ from: {from}, to: egress, carries: audio }}");
    fleet::pipeline(&format!(
        "schema: rspp.pipeline.v1\nversion: bench-1\nprofile: simple/v1\nnodes:\n{nodes}edges:\n{edges}"
    ))
}

/// The last node: calls a function with each frame.
struct Last<F>(F);

impl<F: FnMut(&Event) + Send + 'static> Node for Last<F> {
    fn on_event<'a>(&'a mut self, _cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        (self.0)(&event);
        Step::OK
    }
}

/// Nobody listens.
struct Nowhere;

impl Sink for Nowhere {
    fn sample_rate(&self) -> SampleRate {
        SampleRate::HZ_16000
    }

    fn lead(&self) -> Duration {
        Duration::from_millis(60)
    }

    fn codec(&self) -> rspp_proto::Codec {
        rspp_proto::Codec::Pcm16
    }

    fn play(&mut self, _turn: TurnNumber, _chunk: &AudioChunk) -> Result<(), SinkError> {
        Ok(())
    }

    fn clear(&mut self, _turn: TurnNumber) {}

    fn send(&mut self, _outgoing: Outgoing) -> Result<(), SinkError> {
        Ok(())
    }

    fn pause(&mut self) {}

    fn wire(&self) -> Option<rspp_transport_api::wire::WireReport> {
        None
    }
}

/// Runs a session over `source` until the user hangs up.
async fn run(pipeline: &PipelineSpec, source: Source, last: NodeFactory, watch: Watch) {
    let runtime = fleet::runtime_with(Providers::new(), [("last", last)], watch).await;
    let sink = Box::new(Nowhere);
    let session = fleet::open(&runtime, "bench", pipeline, source, sink, Recorder::null()).await;
    let report = session.wait().await.expect("the session leaves a report");
    assert_eq!(report.node_failures, 0);
    assert!(runtime.shut_down(Duration::from_secs(5)).await, "it ends");
}

/// Frames a second through four stages.
async fn throughput(frames: usize, piece: usize) -> f64 {
    let credit = Arc::new(Semaphore::new(UNDER_WAY / piece));
    let counted = Arc::new(Semaphore::new(0));
    let watch = Watch::start();
    let source = {
        let credit = Arc::clone(&credit);
        let counted = Arc::clone(&counted);
        let audio = Bytes::from(vec![0; FRAME_BYTES * piece]);
        stream::unfold(0, move |sent| {
            let (credit, counted, audio) = (credit.clone(), counted.clone(), audio.clone());
            async move {
                if sent == frames / piece {
                    // Hangs up when all has arrived.
                    counted.acquire().await.expect("never closed").forget();
                    return None;
                }
                credit.acquire().await.expect("never closed").forget();
                Some((Ingress::Audio(audio), sent + 1))
            }
        })
    };
    let took = Arc::new(Mutex::new(0));
    let last: NodeFactory = {
        let took = Arc::clone(&took);
        Arc::new(move |_| {
            let (credit, counted, took) = (credit.clone(), counted.clone(), took.clone());
            let mut seen = 0;
            Box::new(Last(move |_: &Event| {
                seen += 1;
                if seen % piece == 0 {
                    credit.add_permits(1);
                }
                if seen == frames / piece * piece {
                    *took.lock().expect("nobody panics") = watch.nanos();
                    counted.add_permits(1);
                }
            }))
        })
    };
    let before = watch.nanos();
    run(&chain(4), Box::pin(source), last, watch).await;
    let took = *took.lock().expect("nobody panics") - before;
    frames as f64 / (took as f64 / 1e9)
}

/// From the connection's stamp to the fourth host, one frame under way at a time.
async fn busy(rounds: usize) -> Histogram<u64> {
    let watch = Watch::start();
    let credit = Arc::new(Semaphore::new(1));
    let source = {
        let credit = Arc::clone(&credit);
        let audio = Bytes::from(vec![0; FRAME_BYTES]);
        stream::unfold(0, move |sent| {
            let (credit, audio) = (credit.clone(), audio.clone());
            async move {
                credit.acquire().await.expect("never closed").forget();
                (sent < rounds).then_some((Ingress::Audio(audio), sent + 1))
            }
        })
    };
    let spent = Arc::new(Mutex::new(histogram()));
    let last: NodeFactory = {
        let spent = Arc::clone(&spent);
        Arc::new(move |_| {
            let (credit, spent) = (credit.clone(), spent.clone());
            Box::new(Arrived { credit, spent })
        })
    };
    run(&chain(4), Box::pin(source), last, watch).await;
    let spent = spent.lock().expect("nobody panics");
    spent.clone()
}

/// Measures from the stamp of the connection, and lets the next frame come.
struct Arrived {
    credit: Arc<Semaphore>,
    spent: Arc<Mutex<Histogram<u64>>>,
}

impl Node for Arrived {
    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        let took = cx.now().since(event.stamp.made);
        let mut spent = self.spent.lock().expect("nobody panics");
        spent.saturating_record(took.as_nanos() as u64);
        self.credit.add_permits(1);
        Step::OK
    }
}

/// From an outside thread's send to the last host, with parked workers.
async fn idle(pipeline: &PipelineSpec, rounds: usize) -> Histogram<u64> {
    let watch = Watch::start();
    let (microphone, frames) = mpsc::channel(8);
    let sender = std::thread::spawn(move || {
        let own = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime of its own");
        own.block_on(async {
            for _ in 0..rounds {
                tokio::time::sleep(Duration::from_millis(2)).await;
                let frame = Ingress::Audio(fleet::stamped(&watch));
                assert!(microphone.send(frame).await.is_ok(), "the line listens");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        });
    });
    let spent = Arc::new(Mutex::new(histogram()));
    let last: NodeFactory = {
        let spent = Arc::clone(&spent);
        Arc::new(move |_| {
            let spent = Arc::clone(&spent);
            Box::new(Last(move |event: &Event| {
                let Payload::AudioChunk(chunk) = &event.payload else {
                    return;
                };
                let sent = fleet::sent_at(chunk).expect("the frame is stamped");
                let took = watch.nanos().saturating_sub(sent);
                spent.lock().expect("nobody panics").saturating_record(took);
            }))
        })
    };
    run(pipeline, fleet::listen(frames), last, watch).await;
    sender.join().expect("the sender ends");
    let spent = spent.lock().expect("nobody panics");
    spent.clone()
}
