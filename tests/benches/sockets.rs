//! What conversations over WebSockets cost, with their clients on the same machine.
//!
//! `cargo bench -p rspp-tests --bench sockets` prints a table, with `-- --json` JSON, with `-- --quick`
//! hastily, with `-- --sessions 100` only that many. Two worker threads, real time, real sockets.
//!
//! Each client sends a frame of 20 ms every 20 ms and plays what comes: the agent speaks without a pause.
//! A frame is as late as it comes after its time, by a schedule that the first frame of the measurement began.
//! Then the agents are interrupted one after the other, in mid-reply, by a cancel on the socket; timed until the
//! last frame of audio that comes, which is none if nothing was under way. Memory is the whole process's, clients too,
//! before and after the measurement.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{SinkExt, StreamExt, stream::SplitSink};
use hdrhistogram::Histogram;
use rspp_host::{Config, Pools, Program, Reception, Runtime};
use rspp_proto::{TenantId, spec::PipelineSpec};
use rspp_provider_api::scripted::ScriptedVoice;
use rspp_tests::{
    bench::{Aim, Args, Table, Watch, histogram, resident, us, workers},
    call::bindings,
    fleet::{self, FRAME, FRAME_BYTES},
};
use rspp_transport_api::Guard;
use rspp_websocket::{Config as Door, Server, listen, protocol::Hello, testing::Client};
use tokio::{net::TcpStream, task::JoinSet, time::MissedTickBehavior};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Latest that 99 of 100 frames may come, in microseconds.
const LATE_US: f64 = 20_000.0;
/// Longest that audio may come after a cancel, in microseconds, in 99 of 100.
const SILENT_US: f64 = 5_000.0;

/// Longest that an agent who speaks is not heard.
const SPEAKS: Duration = Duration::from_millis(500);

fn main() {
    let args = Args::read();
    workers().block_on(measure(args)).print(args);
}

/// What all clients are timed by and add up in.
struct Meters {
    watch: Watch,
    counting: AtomicBool,
    late: Mutex<Histogram<u64>>,
    frames: AtomicU64,
}

/// One client.
struct Caller {
    to: Arc<tokio::sync::Mutex<SplitSink<Socket, Message>>>,
    /// When its newest frame of audio came, in nanoseconds.
    newest: Arc<AtomicU64>,
}

impl Caller {
    async fn say(&self, text: &str) {
        let message = Message::Text(text.into());
        let sent = self.to.lock().await.send(message).await;
        sent.expect("the socket is open");
    }
}

async fn measure(args: Args) -> Table {
    let count = args.sessions.unwrap_or(args.pick(500, 20));
    let mut table = Table::new(
        "sockets",
        format!(
            "simple/v1, scripted providers, {count} WebSocket sessions at 50 frames/s each way; \
             2 workers, the clients on them too"
        ),
    );
    let (address, server, runtime) = serve().await;
    let meters = Arc::new(Meters {
        watch: Watch::start(),
        counting: AtomicBool::new(false),
        late: Mutex::new(histogram()),
        frames: AtomicU64::new(0),
    });
    let mut tasks = JoinSet::new();
    let mut callers = Vec::with_capacity(count);
    for _ in 0..count {
        let caller = call(address, &meters, &mut tasks).await;
        caller
            .say(r#"{"type":"text","text":"Tell me everything."}"#)
            .await;
        callers.push(caller);
    }
    // All of it within the minute that the longest turn may take.
    tokio::time::sleep(Duration::from_secs(args.pick(5, 2))).await;
    let before = resident();
    meters.counting.store(true, Ordering::Relaxed);
    let length = Duration::from_secs(args.pick(35, 3));
    tokio::time::sleep(length).await;
    meters.counting.store(false, Ordering::Relaxed);
    let after = resident();
    let silence = interrupted(&callers, &meters).await;
    report(&mut table, &meters, &silence, count, length);
    table.aim(
        "growth",
        format!("memory: {:.0} MiB, and its growth", before / MIB),
        (after / before - 1.0) * 100.0,
        "%",
        Aim::AtMost(5.0),
    );
    tasks.shutdown().await;
    server.drain(Duration::from_secs(5)).await;
    runtime.shut_down(Duration::from_secs(5)).await;
    table
}

const MIB: f64 = 1_048_576.0;

fn report(
    table: &mut Table,
    meters: &Meters,
    silence: &Histogram<u64>,
    count: usize,
    length: Duration,
) {
    let late = meters.late.lock().expect("nobody panics");
    let wanted = count as f64 * length.as_secs_f64() * 50.0;
    let came = meters.frames.load(Ordering::Relaxed) as f64;
    table.note(
        "missing",
        "frames that did not come",
        (1.0 - came / wanted).max(0.0) * 100.0,
        "%",
    );
    table.note(
        "late_p50_us",
        "frame late at the client, p50",
        us(&late, 0.5),
        "us",
    );
    table.aim(
        "late_p99_us",
        "frame late at the client, p99",
        us(&late, 0.99),
        "us",
        Aim::AtMost(LATE_US),
    );
    table.note(
        "silent_p50_us",
        "cancel sent to last frame on the socket, p50",
        us(silence, 0.5),
        "us",
    );
    table.aim(
        "silent_p99_us",
        "cancel sent to last frame on the socket, p99",
        us(silence, 0.99),
        "us",
        Aim::AtMost(SILENT_US),
    );
}

async fn serve() -> (SocketAddr, Arc<Server>, Arc<Runtime>) {
    let voice = ScriptedVoice::by_timeline("vad", []);
    let providers = fleet::providers(Duration::from_mins(3), voice);
    let mut config = Config::new(providers, Pools::new(2));
    // What this measures is not to be refused.
    config.limits.overload.scheduler_late_ms = None;
    config.limits.overload.output_late_ms = None;
    config.limits.node = rspp_proto::spec::QuotasSpec::default();
    let runtime = Arc::new(Runtime::start(config).await.expect("it starts"));
    let program = Program {
        pipeline: PipelineSpec::simple(),
        policy: None,
        settings: bindings(),
    };
    let reception = Reception::new(Arc::clone(&runtime), program);
    let door = Door {
        guard: Guard::Local {
            tenant: TenantId::new("bench").expect("not blank"),
            password: None,
        },
        ..Door::default()
    };
    let server = Server::new(Arc::new(reception), door);
    let listener = listen(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = listener.local_addr().expect("an address");
    let router = server.router();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, server, runtime)
}

/// Connects a client, which speaks and plays from then on.
async fn call(address: SocketAddr, meters: &Arc<Meters>, tasks: &mut JoinSet<()>) -> Caller {
    let client = Client::begin(address, Hello::default()).await;
    let (to, mut from) = client.socket.split();
    let caller = Caller {
        to: Arc::new(tokio::sync::Mutex::new(to)),
        newest: Arc::default(),
    };
    let to = Arc::clone(&caller.to);
    tasks.spawn(async move {
        let frame = bytes::Bytes::from_static(&[0; FRAME_BYTES]);
        let mut pace = tokio::time::interval(FRAME);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            pace.tick().await;
            let message = Message::Binary(frame.clone());
            if to.lock().await.send(message).await.is_err() {
                return;
            }
        }
    });
    let (meters, newest) = (Arc::clone(meters), Arc::clone(&caller.newest));
    tasks.spawn(async move {
        let mut due = None;
        while let Some(Ok(message)) = from.next().await {
            if !matches!(message, Message::Binary(_)) {
                continue;
            }
            let now = meters.watch.nanos();
            newest.store(now, Ordering::Relaxed);
            if !meters.counting.load(Ordering::Relaxed) {
                due = None;
                continue;
            }
            let at = due.unwrap_or(now);
            let mut late = meters.late.lock().expect("nobody panics");
            late.saturating_record(now.saturating_sub(at).max(1));
            drop(late);
            meters.frames.fetch_add(1, Ordering::Relaxed);
            due = Some(at + FRAME.as_nanos() as u64);
        }
    });
    caller
}

/// Cancels each agent in turn; from the cancel to the last frame that came, at least a microsecond.
async fn interrupted(callers: &[Caller], meters: &Meters) -> Histogram<u64> {
    let mut asked = Vec::with_capacity(callers.len());
    for caller in callers {
        let at = meters.watch.nanos();
        let quiet = Duration::from_nanos(at - caller.newest.load(Ordering::Relaxed));
        assert!(quiet < SPEAKS, "nothing to interrupt for {quiet:?}");
        caller.say(r#"{"type":"cancel"}"#).await;
        asked.push(at);
        // Not in step with the output clock.
        tokio::time::sleep(Duration::from_micros(3_300)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut silence = histogram();
    for (caller, asked) in callers.iter().zip(asked) {
        let last = caller.newest.load(Ordering::Relaxed);
        silence.saturating_record(last.saturating_sub(asked).max(1_000));
    }
    silence
}
