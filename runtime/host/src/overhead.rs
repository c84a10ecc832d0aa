//! What the runtime itself costs: real time spent around the handlers of nodes (F-052, NF-002).

use std::{sync::Mutex, time::Duration};

use hdrhistogram::Histogram;
use rspp_actors::Stopwatch;
use serde::{Deserialize, Serialize};

/// One event in this many is measured, so that measuring costs next to nothing.
const SAMPLE_EVERY: u32 = 16;

/// A histogram of real durations, in nanoseconds, sampled.
#[derive(Debug)]
pub struct Overhead {
    spent: Mutex<Histogram<u32>>,
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

impl Default for Overhead {
    fn default() -> Self {
        let spent = Histogram::new_with_bounds(1, 1_000_000_000, 2)
            .expect("the bounds are in order and the precision is allowed");
        Self {
            spent: Mutex::new(spent),
        }
    }
}

impl Overhead {
    /// A running measurement, if an event of this number is one to measure.
    ///
    /// Each host numbers its own events: one count for all would be fought over by all threads.
    pub(crate) fn sample(number: u32) -> Option<Stopwatch> {
        number.is_multiple_of(SAMPLE_EVERY).then(Stopwatch::start)
    }

    /// Adds a measurement.
    pub(crate) fn add(&self, spent: Duration) {
        let nanos = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
        self.spent
            .lock()
            .expect("no code panics while locked")
            .saturating_record(nanos.max(1));
    }

    /// What was measured so far.
    pub fn percentiles(&self) -> Percentiles {
        let spent = self.spent.lock().expect("no code panics while locked");
        if spent.is_empty() {
            return Percentiles::default();
        }
        let us = |nanos: u64| nanos as f64 / 1e3;
        Percentiles {
            samples: spent.len(),
            p50: us(spent.value_at_quantile(0.5)),
            p99: us(spent.value_at_quantile(0.99)),
            max: us(spent.max()),
        }
    }
}
