//! Latencies over all sessions of a runtime, those that are over included: what a metrics backend asks
//! for (F-068).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hdrhistogram::Histogram;
use rspp_proto::metric::{Metric, MetricLabel};

use crate::meters::Latency;

/// Most series that are told apart: nodes are named by pipelines, and these by whoever publishes them.
const MOST_SERIES: usize = 4_096;

/// The labels of a series, in the metric's order.
pub(crate) type Labels = Vec<(MetricLabel, String)>;

/// One metric under one set of labels, over all sessions.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencySeries {
    /// What was measured.
    pub metric: Metric,
    /// By what.
    pub labels: Vec<(MetricLabel, String)>,
    /// Quantiles, and how many measurements there were.
    pub latency: Latency,
    /// All measurements together, in milliseconds.
    pub sum_ms: f64,
}

/// What sessions that are over have measured.
#[derive(Debug, Default)]
pub(crate) struct Totals(Mutex<Series>);

/// Histograms of microseconds, by metric and labels.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(BTreeMap<(Metric, Labels), Histogram<u64>>);

impl Series {
    /// Adds what one session has measured.
    pub(crate) fn add(&mut self, metric: Metric, labels: Labels, spans: &Histogram<u32>) {
        let key = (metric, labels);
        if spans.is_empty() || (self.0.len() == MOST_SERIES && !self.0.contains_key(&key)) {
            return;
        }
        let total = self
            .0
            .entry(key)
            .or_insert_with(|| Histogram::new(2).expect("the precision is allowed"));
        for recorded in spans.iter_recorded() {
            let count = u64::from(recorded.count_at_value());
            if total.record_n(recorded.value_iterated_to(), count).is_err() {
                tracing::error!("a histogram that grows has refused a value");
            }
        }
    }

    /// As it is told.
    pub(crate) fn told(&self) -> Vec<LatencySeries> {
        let each = self
            .0
            .iter()
            .map(|((metric, labels), spans)| LatencySeries {
                metric: *metric,
                labels: labels.clone(),
                latency: Latency::of(spans),
                sum_ms: spans.mean() * spans.len() as f64 / 1e3,
            });
        each.collect()
    }
}

impl Totals {
    /// What was measured by sessions that are over; those that run are added by whoever knows them.
    pub(crate) fn series(&self) -> Series {
        self.lock().clone()
    }

    /// A session that measured is over.
    pub(crate) fn close(self: &Arc<Self>, each: impl FnOnce(&mut Series)) {
        each(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Series> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(micros: &[u64]) -> Histogram<u32> {
        let mut spans = Histogram::new(2).unwrap();
        for value in micros {
            spans.record(*value).unwrap();
        }
        spans
    }

    fn labels(node: usize) -> Labels {
        vec![(MetricLabel::NodeId, format!("node-{node}"))]
    }

    /// F-068: what several sessions measured is one series, by the same labels.
    #[test]
    fn sessions_of_one_pipeline_share_their_series() {
        let mut series = Series::default();
        series.add(Metric::NodeLatency, labels(1), &spans(&[1_000, 2_000]));
        series.add(Metric::NodeLatency, labels(1), &spans(&[3_000, 100_000]));
        series.add(Metric::NodeLatency, labels(2), &spans(&[]));
        let told = series.told();
        assert_eq!(told.len(), 1, "nothing is told of what was not measured");
        let latency = told[0].latency;
        assert_eq!(latency.samples, 4);
        assert!((latency.p50_ms - 2.0).abs() < 0.1 && (latency.p99_ms - 100.0).abs() < 1.5);
        assert!((told[0].sum_ms - 106.0).abs() < 2.0, "{}", told[0].sum_ms);
    }

    /// F-068, NF-004: names that pipelines make up do not fill the memory.
    #[test]
    fn there_is_an_end_to_names() {
        let mut series = Series::default();
        for node in 0..MOST_SERIES + 10 {
            series.add(Metric::NodeLatency, labels(node), &spans(&[1_000]));
        }
        series.add(Metric::NodeLatency, labels(0), &spans(&[1_000]));
        let told = series.told();
        assert_eq!(told.len(), MOST_SERIES);
        let first = told.iter().find(|it| it.labels == labels(0)).unwrap();
        assert_eq!(first.latency.samples, 2);
    }
}
