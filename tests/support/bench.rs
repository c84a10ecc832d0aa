//! What all benches share: where they run, a table of what they found, and the same as JSON.

use std::{fs, future::Future, time::Duration};

use hdrhistogram::Histogram;
use rspp_actors::Clock;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// What `rspp` allocates with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How a bench was called.
#[derive(Clone, Copy, Debug)]
pub struct Args {
    /// `--json`: print JSON instead of a table.
    pub json: bool,
    /// `--quick`: a few seconds only, to see that the bench runs; its numbers mean little.
    pub quick: bool,
    /// `--sessions N`: only this many, for profiling.
    pub sessions: Option<usize>,
    /// `--memory`: only what things take up, for profiling.
    pub memory: bool,
}

impl Args {
    /// Reads the process's arguments; what cargo itself adds is ignored.
    pub fn read() -> Self {
        let has = |flag: &str| std::env::args().any(|arg| arg == flag);
        Self {
            json: has("--json"),
            quick: has("--quick"),
            memory: has("--memory"),
            sessions: std::env::args()
                .skip_while(|arg| arg != "--sessions")
                .nth(1)
                .and_then(|count| count.parse().ok()),
        }
    }

    /// One of two values: for a whole run, for a quick one.
    pub fn pick<T>(self, whole: T, quick: T) -> T {
        if self.quick { quick } else { whole }
    }
}

/// What a number should be.
#[derive(Clone, Copy, Debug)]
pub enum Aim {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Aim {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!(">= {least}"),
            Self::AtMost(most) => format!("<= {most}"),
        }
    }
}

struct Row {
    key: &'static str,
    what: String,
    value: f64,
    unit: &'static str,
    aim: Option<Aim>,
}

/// What a bench found.
pub struct Table {
    bench: &'static str,
    input: String,
    rows: Vec<Row>,
}

impl Table {
    /// An empty table of the bench; `input` says what it was fed with.
    pub fn new(bench: &'static str, input: impl Into<String>) -> Self {
        Self {
            bench,
            input: input.into(),
            rows: Vec::new(),
        }
    }

    /// Adds a number.
    pub fn note(
        &mut self,
        key: &'static str,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
    ) {
        self.push(key, what.into(), value, unit, None);
    }

    /// Adds a number that should be something.
    pub fn aim(
        &mut self,
        key: &'static str,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        aim: Aim,
    ) {
        self.push(key, what.into(), value, unit, Some(aim));
    }

    fn push(
        &mut self,
        key: &'static str,
        what: String,
        value: f64,
        unit: &'static str,
        aim: Option<Aim>,
    ) {
        self.rows.push(Row {
            key,
            what,
            value,
            unit,
            aim,
        });
    }

    /// Prints it all, as asked for.
    pub fn print(&self, args: Args) {
        if args.json {
            println!("{:#}", self.to_json());
            return;
        }
        println!("{} on {}", self.bench, machine());
        println!("{}\n", self.input);
        for row in &self.rows {
            let aim = row.aim.map_or(String::new(), |aim| {
                let verdict = if aim.holds(row.value) { "ok" } else { "MISSED" };
                format!("{:<14} {verdict}", aim.text())
            });
            let Row { what, unit, .. } = row;
            println!("{what:<66} {:>13} {unit:<9} {aim}", number(row.value));
        }
        println!();
    }

    fn to_json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "key": row.key,
                "what": row.what,
                "value": row.value,
                "unit": row.unit,
                "aim": row.aim.map(Aim::text),
                "reached": row.aim.map(|aim| aim.holds(row.value)),
            })
        });
        json!({
            "bench": self.bench,
            "machine": machine(),
            "input": self.input,
            "results": rows.collect::<Vec<_>>(),
        })
    }
}

fn number(value: f64) -> String {
    if value.abs() >= 1_000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// Processor, cores and memory of this machine.
pub fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1))
        .unwrap_or("an unnamed processor");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: f64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next())
        .and_then(|kib| kib.parse().ok())
        .unwrap_or(0.0);
    format!(
        "{cores} cores of {model}, {:.0} GiB",
        kib / f64::from(1 << 20)
    )
}

/// Memory that this process occupies, in bytes.
pub fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next())
        .and_then(|kib| kib.parse().ok())
        .unwrap_or(f64::NAN);
    kib * 1024.0
}

/// What the threads of [`workers`] are called.
pub const WORKER: &str = "rspp-worker";

/// Two worker threads.
pub fn workers() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(WORKER)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Runs a bench on two worker threads: as a task there, which is where a program's connections and its commands are.
pub fn on_workers<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let workers = workers();
    workers
        .block_on(workers.spawn(work))
        .expect("a bench does not panic")
}

/// Processor time that this process's threads of that name have used so far.
pub fn cpu_time_of(thread: &str) -> Duration {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
    let used = tasks.flatten().filter_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        if name.trim() != thread {
            return None;
        }
        let stat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(used.sum())
}

/// Durations in nanoseconds up to a minute, to three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are in order")
}

/// A quantile in microseconds.
pub fn us(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1e3
}

/// Real time on one watch for all threads of a bench, and for its runtime.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// The clock for the runtime.
    pub clock: Clock,
}

impl Watch {
    /// Starts it.
    pub fn start() -> Self {
        Self {
            clock: Clock::start(),
        }
    }

    /// Nanoseconds since the start.
    pub fn nanos(&self) -> u64 {
        u64::try_from(self.clock.now().as_nanos()).unwrap_or(u64::MAX)
    }
}
