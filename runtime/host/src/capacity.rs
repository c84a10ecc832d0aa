//! How loaded this node is: measured by itself, told to whoever asks (F-172, P22).

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rspp_actors::{CancellationToken, Stopwatch};
use rspp_kernel::admission::{Headroom, LATENESS_BUCKETS, LatenessWindow, LoadChange, Reading};
use rspp_proto::Monotonic;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{admission::Gatekeeper, assembly::Pools, overhead::Overhead};

/// Something became of the node's capacity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CapacityEvent {
    /// When.
    pub at: Monotonic,
    /// What.
    pub kind: CapacityKind,
}

/// What may become of a node's capacity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CapacityKind {
    /// The load became another.
    Load(LoadChange),
    /// The runtime's own cost is above its budget (F-052).
    OverheadAboveBudget {
        /// The 99th percentile since the last look, in microseconds.
        p99_us: f64,
        /// What it may be.
        budget_us: u64,
    },
    /// It is within its budget again.
    OverheadWithinBudget {
        /// The 99th percentile since the last look, in microseconds.
        p99_us: f64,
    },
}

/// Who knows how busy the processors are.
pub trait CpuProbe: Send + Sync + 'static {
    /// Processor time of this process since the last time of asking, in percent of what the machine
    /// has; `None` if nobody knows.
    fn cpu_percent(&self) -> Option<u64>;
}

/// How late frames leave for users, counted by whole milliseconds since the last look. All
/// connections count here; a frame costs one relaxed addition.
#[derive(Debug)]
pub(crate) struct OutputLateness {
    counts: [AtomicU32; LATENESS_BUCKETS],
}

impl Default for OutputLateness {
    fn default() -> Self {
        Self {
            counts: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

impl OutputLateness {
    /// A frame left so late.
    pub(crate) fn count(&self, late: Duration) {
        let bucket = (late.as_millis() as usize).min(LATENESS_BUCKETS - 1);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self) -> [u32; LATENESS_BUCKETS] {
        std::array::from_fn(|bucket| self.counts[bucket].swap(0, Ordering::Relaxed))
    }
}

/// What the monitor looks at.
pub(crate) struct Monitor {
    pub(crate) gatekeeper: Arc<Gatekeeper>,
    pub(crate) pools: Pools,
    pub(crate) overhead: Arc<Overhead>,
    pub(crate) cpu: Arc<dyn CpuProbe>,
}

impl Monitor {
    /// Looks, time and again, until it is told to stop.
    pub(crate) async fn run(self, stopped: CancellationToken) {
        let limits = self.gatekeeper.limits();
        let watches_cpu = limits.overload.cpu_percent.is_some();
        let every = Duration::from_millis(limits.overload.every_ms.max(1));
        let budget = limits.kernel_overhead_p99_us;
        let mut headroom = Headroom::new(limits.overload);
        let mut output = LatenessWindow::default();
        let mut above_budget = false;
        let mut due = Instant::now() + every;
        loop {
            tokio::select! {
                biased;
                () = stopped.cancelled() => return,
                () = tokio::time::sleep_until(due) => {}
            }
            let now = Instant::now();
            let late = now.saturating_duration_since(due);
            output.push(self.gatekeeper.output.take());
            let reading = Reading {
                cpu_percent: watches_cpu.then(|| self.cpu.cpu_percent()).flatten(),
                scheduler_late_ms: late.as_millis() as u64,
                output_late_ms: output.p99_ms(),
                queue_depth: self.queue_depth() as u64,
                provider_calls: self.gatekeeper.calls() as u64,
            };
            let at = self.gatekeeper.now();
            if let Some(change) = headroom.observe(at, reading) {
                self.gatekeeper.set_load(change.to);
                self.gatekeeper.say(CapacityKind::Load(change));
            }
            if let Some(budget_us) = budget {
                self.check_overhead(at, budget_us, &mut above_budget);
            } else {
                self.overhead.look(at);
            }
            due = (due + every).max(now);
        }
    }

    /// Work that waits for a slot, anywhere.
    fn queue_depth(&self) -> usize {
        let pools = [&self.pools.work, &self.pools.listening];
        let pools: usize = pools.iter().map(|pool| pool.counters().waiting).sum();
        pools + self.gatekeeper.gates.waiting()
    }

    fn check_overhead(&self, at: Monotonic, budget_us: u64, above: &mut bool) {
        let Some(recent) = self.overhead.look(at) else {
            return; // Too little has happened to tell.
        };
        let is_above = recent.p99 > budget_us as f64;
        if is_above {
            self.gatekeeper
                .overhead_alerts
                .fetch_add(1, Ordering::Relaxed);
        }
        if is_above != *above {
            *above = is_above;
            let p99_us = recent.p99;
            self.gatekeeper.say(if is_above {
                CapacityKind::OverheadAboveBudget { p99_us, budget_us }
            } else {
                CapacityKind::OverheadWithinBudget { p99_us }
            });
        }
    }
}

/// Reads what the system says of this process.
#[derive(Debug, Default)]
pub(crate) struct ProcessCpu {
    last: Mutex<Option<Look>>,
}

#[derive(Debug)]
struct Look {
    spent: Duration,
    since: Stopwatch,
    percent: Option<u64>,
}

/// The system counts processor time in steps of this; what is less is noise.
const TICK: Duration = Duration::from_millis(10);

impl CpuProbe for ProcessCpu {
    fn cpu_percent(&self) -> Option<u64> {
        let mut last = self.last.lock().expect("no code panics while locked");
        if let Some(look) = &*last
            && look.since.elapsed() < TICK * 10
        {
            return look.percent;
        }
        let spent = processor_time()?;
        let percent = last.as_ref().map(|look| {
            let real = look.since.elapsed().as_secs_f64() * cores();
            let used = spent.saturating_sub(look.spent).as_secs_f64();
            (used / real * 100.0) as u64
        });
        *last = Some(Look {
            spent,
            since: Stopwatch::start(),
            percent,
        });
        percent
    }
}

fn cores() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64)
}

/// User and system time of this process; `None` where there is no `/proc`.
fn processor_time() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program may hold anything, but no closing bracket after its own.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u32>().ok();
    Some(TICK * ticks(11)?.saturating_add(ticks(12)?))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// F-172: processor time is that of this process.
    #[test]
    fn work_shows_as_processor_time() {
        let before = processor_time().unwrap();
        let watch = Stopwatch::start();
        let mut sum = 0_u64;
        while watch.elapsed() < Duration::from_millis(300) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let spent = processor_time().unwrap().saturating_sub(before);
        assert!(spent >= TICK, "{spent:?}");
    }
}
