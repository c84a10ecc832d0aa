//! How many conversations one core carries, and what each costs in memory.
//!
//! `cargo bench -p rspp-tests --bench sessions` prints a table, with `-- --json` JSON, with
//! `-- --quick` hastily, with `-- --sessions 500` only that many, with `-- --memory` only the latter.
//!
//! The runtime has one worker thread. Each session gets a frame of 20 ms from its user every 20 ms,
//! which voice activity, recognition, turn detection and a probe each take in, and has its agent
//! speak without a pause, a frame every 20 ms. What a network would do, and taking the timelines
//! away, is done by a thread on the other core. A number of sessions is carried if 99 of 100 frames
//! are at most 20 ms late both ways (inward from the send to the probe, outward against the schedule
//! that a reply's first frame of the measurement began), and if no reply lacks more than 2 of 100 frames.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rspp_provider_api::scripted::ScriptedVoice;
use rspp_tests::{
    bench::{Aim, Args, Table, cpu_time_of, resident, us},
    fleet::{self, Caller, Meters, Metronome, Sound},
};

/// What the worker thread is called.
const WORKER: &str = "rspp-worker";
/// Latest that 99 of 100 frames may be, in microseconds.
const LATE_US: f64 = 20_000.0;

fn main() {
    let args = Args::read();
    let mut table = Table::new(
        "sessions",
        "simple/v1 and a probe, scripted providers, 50 frames/s each way; 1 worker, the users on the other core",
    );
    if let Some(count) = args.sessions {
        report(&mut table, Some(&on_one_worker(carry(count, args))), None);
        table.print(args);
        return;
    }
    // Fewer than a worker carries: what waits because it is too many is not what a session takes.
    on_one_worker(memory(args.pick(400, 50), &mut table));
    if args.memory {
        table.print(args);
        return;
    }
    let mut carried = None;
    let mut refused: Option<Load> = None;
    let mut count = args.pick(500, 20);
    // Doubles up to the first failure, then halves the rest.
    for _ in 0..args.pick(9, 1) {
        let load = on_one_worker(carry(count, args));
        eprintln!("{load:?}");
        if load.is_carried() {
            carried = Some(load);
        } else {
            refused = Some(load);
        }
        let least = carried.as_ref().map_or(0, |load: &Load| load.sessions);
        count = match &refused {
            None => least * 2,
            Some(load) => least.midpoint(load.sessions),
        };
        if refused.is_some() && count - least < 50 {
            break;
        }
    }
    report(&mut table, carried.as_ref(), refused.as_ref());
    table.print(args);
}

fn on_one_worker<T>(work: impl Future<Output = T>) -> T {
    let worker = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(WORKER)
        // Frames come from a thread outside: a busy worker looks there every eighth time, not every 61st.
        .global_queue_interval(8)
        .enable_all()
        .build()
        .expect("a runtime");
    worker.block_on(work)
}

fn report(table: &mut Table, carried: Option<&Load>, refused: Option<&Load>) {
    table.aim(
        "sessions",
        "most sessions that one worker carries",
        carried.map_or(0.0, |load| load.sessions as f64),
        "sessions",
        Aim::AtLeast(2_000.0),
    );
    for (load, name) in [(carried, "carried"), (refused, "too many")] {
        let Some(load) = load else { continue };
        let n = load.sessions;
        let cost = load.busy * 1e6 / (n as f64 * 50.0);
        table.note(
            "in_p50_us",
            format!("{n} ({name}): inward, p50"),
            load.inward.0,
            "us",
        );
        table.note(
            "in_p99_us",
            format!("{n} ({name}): inward, p99"),
            load.inward.1,
            "us",
        );
        table.note(
            "out_p99_us",
            format!("{n} ({name}): outward late, p99"),
            load.outward,
            "us",
        );
        table.note(
            "missing",
            format!("{n} ({name}): frames missing"),
            load.missing * 100.0,
            "%",
        );
        table.note(
            "busy",
            format!("{n} ({name}): the worker is busy"),
            load.busy * 100.0,
            "%",
        );
        table.note(
            "frame_us",
            format!("{n} ({name}): work a frame each way"),
            cost,
            "us",
        );
    }
}

/// What a session costs that is connected and silent, and one that listens and speaks.
async fn memory(count: usize, table: &mut Table) {
    let meters = Arc::new(Meters::default());
    let runtime = fleet::runtime(providers(), &meters).await;
    let pipeline = fleet::probed();
    // What the first session pays for all.
    let mut callers = fleet::calls(&runtime, 1, &pipeline, &meters).await;
    let before = resident();
    callers.extend(more(&runtime, count, &pipeline, &meters).await);
    callers.iter().for_each(Caller::store);
    let idle = resident();
    table.aim(
        "idle_kib",
        "memory of a session that is connected and silent",
        (idle - before) / count as f64 / 1024.0,
        "KiB",
        Aim::AtMost(64.0),
    );
    let metronome = Metronome::start(&callers, Sound::Stamped, &meters);
    start_talking(&callers).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    table.aim(
        "active_kib",
        "memory of a session that listens and speaks",
        (resident() - before) / count as f64 / 1024.0,
        "KiB",
        Aim::AtMost(256.0),
    );
    drop(metronome);
    fleet::end(runtime, callers).await;
}

async fn more(
    runtime: &rspp_host::Runtime,
    count: usize,
    pipeline: &rspp_proto::spec::PipelineSpec,
    meters: &Arc<Meters>,
) -> Vec<Caller> {
    let mut callers = Vec::with_capacity(count);
    for n in 0..count {
        let caller = fleet::call(runtime, &format!("more-{n}"), pipeline, meters).await;
        // What is recorded of the opening, before the next call: as a disk would.
        caller.store();
        callers.push(caller);
    }
    callers
}

/// Nobody is ever heard to speak, and every reply takes long.
fn providers() -> rspp_provider_api::Providers {
    fleet::providers(
        Duration::from_secs(50),
        ScriptedVoice::by_timeline("vad", []),
    )
}

/// Everybody asks something, not all at once: the frames of their replies are spread over the 20 ms.
async fn start_talking(callers: &[Caller]) {
    for some in callers.chunks(25) {
        for caller in some {
            caller.types("Tell me everything.");
        }
        tokio::time::sleep(Duration::from_millis(21)).await;
    }
}

/// How a number of sessions fared.
#[derive(Debug)]
struct Load {
    sessions: usize,
    /// Microseconds, p50 and p99.
    inward: (f64, f64),
    /// Microseconds, p99.
    outward: f64,
    /// Share of the replies' frames that did not come.
    missing: f64,
    /// Share of the time that the worker worked.
    busy: f64,
}

impl Load {
    fn is_carried(&self) -> bool {
        self.inward.1 <= LATE_US && self.outward <= LATE_US && self.missing <= 0.02
    }
}

async fn carry(count: usize, args: Args) -> Load {
    let meters = Arc::new(Meters::default());
    let runtime = fleet::runtime(providers(), &meters).await;
    let pipeline = fleet::probed();
    let callers = fleet::calls(&runtime, count, &pipeline, &meters).await;
    let metronome = Metronome::start(&callers, Sound::Stamped, &meters);
    start_talking(&callers).await;
    tokio::time::sleep(args.pick(Duration::from_secs(3), Duration::from_secs(1))).await;

    let frames = || callers.iter().map(|c| c.heard.frames()).sum::<u64>();
    let (frames_before, cpu_before) = (frames(), cpu_time_of(WORKER));
    let began = meters.watch.nanos();
    meters.counting.store(true, Ordering::Relaxed);
    tokio::time::sleep(args.pick(Duration::from_secs(5), Duration::from_secs(1))).await;
    meters.counting.store(false, Ordering::Relaxed);
    let took = (meters.watch.nanos() - began) as f64 / 1e9;
    let came = (frames() - frames_before) as f64;
    let busy = cpu_time_of(WORKER).saturating_sub(cpu_before).as_secs_f64();
    drop(metronome);

    let inward = meters.inward.lock().expect("nobody panics").clone();
    let outward = meters.outward.lock().expect("nobody panics").clone();
    let load = Load {
        sessions: count,
        inward: (us(&inward, 0.5), us(&inward, 0.99)),
        outward: us(&outward, 0.99),
        missing: (1.0 - came / (count as f64 * 50.0 * took)).max(0.0),
        busy: busy / took,
    };
    fleet::end(runtime, callers).await;
    load
}
