//! What a call measures of itself in band, and what is expected of that (F-026).

use std::collections::BTreeMap;

use rspp_proto::{MetricSample, Payload, abi::EventRecord};
use serde::Deserialize;

use super::expect::{Between, Finding};

/// Measurements of one call that are looked at; the first ones.
const MOST: usize = 100_000;

/// A measurement that is expected.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpectedMeasure {
    /// Its name, as `node_latency_ms`.
    metric: String,
    /// Labels that it has among others, as `node_id: tts`.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// How often it is made; at least once without.
    #[serde(default)]
    times: Option<usize>,
    /// Of the newest one.
    #[serde(default)]
    at_least: Option<f64>,
    /// Of the newest one.
    #[serde(default)]
    at_most: Option<f64>,
}

/// What a call has measured of itself, as whoever listens gets it.
#[derive(Debug, Default)]
pub(super) struct Measures(Vec<MetricSample>);

impl Measures {
    pub(super) fn note(&mut self, record: EventRecord) {
        if let Some(Payload::Metrics(sample)) = record.payload
            && self.0.len() < MOST
        {
            self.0.push(*sample);
        }
    }

    /// The newest value of each measurement.
    pub(super) fn newest(self) -> Vec<MetricSample> {
        let named = self.0.into_iter().map(|sample| {
            let labels = sample.labels.clone();
            ((sample.name.clone(), labels), sample)
        });
        named.collect::<BTreeMap<_, _>>().into_values().collect()
    }

    pub(super) fn check(&self, expected: &[ExpectedMeasure]) -> Vec<Finding> {
        expected.iter().map(|it| it.check(&self.0)).collect()
    }
}

impl ExpectedMeasure {
    fn check(&self, made: &[MetricSample]) -> Finding {
        let is_such = |sample: &&MetricSample| {
            let mut labels = self.labels.iter();
            sample.name == self.metric
                && labels.all(|(label, is)| sample.labels.get(label) == Some(is))
        };
        let found: Vec<f64> = made.iter().filter(is_such).map(|it| it.value).collect();
        let often = self
            .times
            .map_or(!found.is_empty(), |times| found.len() == times);
        let bounds = Between {
            at_least: self.at_least,
            at_most: self.at_most,
        };
        let within = found.last().is_none_or(|newest| bounds.holds(*newest));
        Finding::of(self.to_string(), often && within, || match found.last() {
            Some(newest) => format!("{} times, at last {newest}", found.len()),
            None => "never".to_owned(),
        })
    }
}

impl std::fmt::Display for ExpectedMeasure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "measures {}", self.metric)?;
        for (label, is) in &self.labels {
            write!(f, " {label}={is}")?;
        }
        if let Some(times) = self.times {
            write!(f, ", {times} times")?;
        }
        if let Some(least) = self.at_least {
            write!(f, ", at least {least}")?;
        }
        if let Some(most) = self.at_most {
            write!(f, ", at most {most}")?;
        }
        Ok(())
    }
}
