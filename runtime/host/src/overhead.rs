//! What the runtime itself costs: real time spent around the handlers of nodes, apart from what the
//! handlers themselves take (F-052, NF-002).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use hdrhistogram::Histogram;
use rspp_actors::Stopwatch;
use rspp_proto::{Monotonic, PipelineVersion};
use serde::{Deserialize, Serialize};

/// One event in this many is measured, so that measuring costs next to nothing.
const SAMPLE_EVERY: u32 = 16;
/// Measurements that make a percentile worth looking at.
const ENOUGH: u64 = 16;
/// Looks that are kept.
const SERIES: usize = 512;
/// Pipelines that are told apart.
const PIPELINES: usize = 64;

/// Histograms of real durations, in nanoseconds, sampled.
#[derive(Debug)]
pub struct Overhead {
    spent: Mutex<Spent>,
    /// What all pipelines together cost; `None` for that itself.
    whole: Option<Arc<Overhead>>,
    pipelines: Mutex<BTreeMap<PipelineVersion, Arc<Overhead>>>,
}

#[derive(Debug)]
struct Spent {
    /// Since the beginning.
    runtime: Histogram<u32>,
    /// Since the last look.
    recent: Histogram<u32>,
    /// In handlers, since the beginning.
    nodes: Histogram<u32>,
    series: VecDeque<(Monotonic, Percentiles)>,
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Measurements.
    pub samples: u64,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Percentiles {
    fn of(spent: &Histogram<u32>) -> Self {
        if spent.is_empty() {
            return Self::default();
        }
        let us = |nanos: u64| nanos as f64 / 1e3;
        Self {
            samples: spent.len(),
            p50: us(spent.value_at_quantile(0.5)),
            p99: us(spent.value_at_quantile(0.99)),
            max: us(spent.max()),
        }
    }
}

fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, 1_000_000_000, 2)
        .expect("the bounds are in order and the precision is allowed")
}

fn nanos(spent: Duration) -> u64 {
    u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX).max(1)
}

impl Default for Overhead {
    fn default() -> Self {
        Self::part_of(None)
    }
}

impl Overhead {
    fn part_of(whole: Option<Arc<Self>>) -> Self {
        Self {
            spent: Mutex::new(Spent {
                runtime: histogram(),
                recent: histogram(),
                nodes: histogram(),
                series: VecDeque::new(),
            }),
            whole,
            pipelines: Mutex::default(),
        }
    }

    /// The share of one pipeline; all those beyond a bounded number count as a whole only.
    pub(crate) fn of_pipeline(self: &Arc<Self>, version: &PipelineVersion) -> Arc<Self> {
        let mut pipelines = self.pipelines.lock().expect("no code panics while locked");
        if let Some(known) = pipelines.get(version) {
            return Arc::clone(known);
        }
        if pipelines.len() == PIPELINES {
            return Arc::clone(self);
        }
        let own = Arc::new(Self::part_of(Some(Arc::clone(self))));
        pipelines.insert(version.clone(), Arc::clone(&own));
        own
    }

    /// A running measurement, if an event of this number is one to measure.
    ///
    /// Each host numbers its own events: one count for all would be fought over by all threads.
    pub(crate) fn sample(number: u32) -> Option<Stopwatch> {
        number.is_multiple_of(SAMPLE_EVERY).then(Stopwatch::start)
    }

    /// Adds a measurement: what the runtime took, and what the node's handler did.
    pub(crate) fn add(&self, runtime: Duration, node: Duration) {
        {
            let mut spent = self.spent();
            spent.runtime.saturating_record(nanos(runtime));
            spent.recent.saturating_record(nanos(runtime));
            spent.nodes.saturating_record(nanos(node));
        }
        if let Some(whole) = &self.whole {
            whole.add(runtime, node);
        }
    }

    fn spent(&self) -> std::sync::MutexGuard<'_, Spent> {
        self.spent.lock().expect("no code panics while locked")
    }

    /// What the runtime took, as measured so far.
    pub fn percentiles(&self) -> Percentiles {
        Percentiles::of(&self.spent().runtime)
    }

    /// What the handlers of nodes took, as measured so far.
    pub fn nodes(&self) -> Percentiles {
        Percentiles::of(&self.spent().nodes)
    }

    /// What the runtime took from one look to the next, oldest first; a bounded number of looks.
    pub fn series(&self) -> Vec<(Monotonic, Percentiles)> {
        self.spent().series.iter().copied().collect()
    }

    /// The same for each pipeline.
    pub fn by_pipeline(&self) -> BTreeMap<PipelineVersion, Arc<Self>> {
        let pipelines = self.pipelines.lock().expect("no code panics while locked");
        pipelines.clone()
    }

    /// Looks at what was measured since the last look and puts it down; `None` if that is too little.
    pub(crate) fn look(&self, at: Monotonic) -> Option<Percentiles> {
        for own in self.by_pipeline().values() {
            own.look(at);
        }
        let mut spent = self.spent();
        if spent.recent.len() < ENOUGH {
            return None;
        }
        let recent = Percentiles::of(&spent.recent);
        spent.recent.reset();
        if spent.series.len() == SERIES {
            spent.series.pop_front();
        }
        spent.series.push_back((at, recent));
        Some(recent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-052, NF-002: told apart from the nodes' own time, by pipeline, look by look.
    #[test]
    fn what_the_runtime_takes_is_told_apart() {
        let whole = Arc::<Overhead>::default();
        let version = |v: &str| PipelineVersion::new(v).unwrap();
        let (a, b) = (
            whole.of_pipeline(&version("a")),
            whole.of_pipeline(&version("b")),
        );
        for _ in 0..ENOUGH {
            a.add(Duration::from_micros(5), Duration::from_millis(2));
        }
        b.add(Duration::from_micros(500), Duration::from_micros(1));
        assert!((a.percentiles().p50 - 5.0).abs() < 0.1);
        assert!((a.nodes().p50 - 2_000.0).abs() < 20.0);
        assert_eq!(whole.percentiles().samples, ENOUGH + 1);
        assert!(whole.percentiles().max >= 500.0);
        let look = whole.look(Monotonic::from_millis(1)).unwrap();
        assert_eq!(look.samples, ENOUGH + 1);
        assert_eq!(whole.look(Monotonic::from_millis(2)), None, "nothing new");
        assert_eq!(a.series().len(), 1);
        assert_eq!(b.series().len(), 0, "too little to tell");
        assert!(Arc::ptr_eq(&a, &whole.of_pipeline(&version("a"))));
    }
}
