//! How loaded a node is: measured loads against thresholds, with hysteresis (F-172, P22).

use std::time::Duration;

use rspp_proto::{
    Monotonic,
    spec::{OverloadSpec, Threshold},
};
use serde::{Deserialize, Serialize};

/// How loaded a node is; ordered.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// There is headroom.
    #[default]
    Normal,
    /// No headroom is left for newcomers.
    High,
    /// Those who are here suffer unless something is shed.
    Severe,
}

impl Load {
    /// The level's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::High => "high",
            Self::Severe => "severe",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Processor time, in percent of the machine.
    Cpu,
    /// How late a task wakes, in milliseconds.
    Scheduler,
    /// How late frames leave for users, in milliseconds.
    Output,
    /// Work that waits for a slot.
    Queue,
    /// Provider calls under way.
    ProviderCalls,
}

impl Resource {
    /// The resource's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu_percent",
            Self::Scheduler => "scheduler_late_ms",
            Self::Output => "output_late_ms",
            Self::Queue => "queue_depth",
            Self::ProviderCalls => "provider_calls",
        }
    }
}

/// One look at everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// See [`Resource::Cpu`]; `None` where the system does not say.
    pub cpu_percent: Option<u64>,
    /// See [`Resource::Scheduler`].
    pub scheduler_late_ms: u64,
    /// See [`Resource::Output`].
    pub output_late_ms: u64,
    /// See [`Resource::Queue`].
    pub queue_depth: u64,
    /// See [`Resource::ProviderCalls`].
    pub provider_calls: u64,
}

/// The load became another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadChange {
    /// What it was.
    pub from: Load,
    /// What it is.
    pub to: Load,
    /// What was measured: the resource that is worst off, or, when all have recovered, that was.
    pub resource: Resource,
    /// The measured value.
    pub value: u64,
}

/// Judges readings.
#[derive(Clone, Debug)]
pub struct Headroom {
    spec: OverloadSpec,
    load: Load,
    worst: Resource,
    /// Since when everything has been low.
    low_since: Option<Monotonic>,
}

impl Headroom {
    /// No load yet.
    pub fn new(spec: OverloadSpec) -> Self {
        Self {
            spec,
            load: Load::Normal,
            worst: Resource::Scheduler,
            low_since: None,
        }
    }

    /// How loaded the node is.
    pub fn load(&self) -> Load {
        self.load
    }

    /// Takes a reading in. Load rises at once; it falls, to the lower level, once no resource has
    /// been above its low mark for a while.
    pub fn observe(&mut self, now: Monotonic, reading: Reading) -> Option<LoadChange> {
        let measured = self.measured(reading);
        let rank = |threshold: &Threshold, value: u64| {
            if value >= threshold.severe {
                Load::Severe
            } else if value >= threshold.high {
                Load::High
            } else {
                Load::Normal
            }
        };
        let worst = measured
            .iter()
            .flatten()
            .max_by_key(|(_, threshold, value)| (rank(threshold, *value), *value));
        let (resource, to, value) = worst.map_or(
            (self.worst, Load::Normal, 0),
            |(resource, threshold, value)| (*resource, rank(threshold, *value), *value),
        );
        if to > self.load {
            self.low_since = None;
            self.worst = resource;
            return Some(self.change(to, resource, value));
        }
        if self.load == Load::Normal {
            return None;
        }
        let all_low = measured
            .iter()
            .flatten()
            .all(|(_, threshold, value)| *value <= threshold.low);
        if !all_low {
            self.low_since = None;
            return None;
        }
        let since = *self.low_since.get_or_insert(now);
        if now.since(since) < Duration::from_millis(self.spec.recover_after_ms) {
            return None;
        }
        self.low_since = Some(now);
        let lower = match self.load {
            Load::Severe => Load::High,
            Load::High | Load::Normal => Load::Normal,
        };
        let resource = self.worst;
        let value = measured
            .iter()
            .flatten()
            .find(|(of, _, _)| *of == resource)
            .map_or(0, |(_, _, value)| *value);
        Some(self.change(lower, resource, value))
    }

    fn change(&mut self, to: Load, resource: Resource, value: u64) -> LoadChange {
        let from = std::mem::replace(&mut self.load, to);
        LoadChange {
            from,
            to,
            resource,
            value,
        }
    }

    fn measured(&self, reading: Reading) -> [Option<(Resource, Threshold, u64)>; 5] {
        let of = |resource, threshold: Option<Threshold>, value: Option<u64>| {
            Some((resource, threshold?, value?))
        };
        let spec = &self.spec;
        [
            of(Resource::Cpu, spec.cpu_percent, reading.cpu_percent),
            of(
                Resource::Scheduler,
                spec.scheduler_late_ms,
                Some(reading.scheduler_late_ms),
            ),
            of(
                Resource::Output,
                spec.output_late_ms,
                Some(reading.output_late_ms),
            ),
            of(Resource::Queue, spec.queue_depth, Some(reading.queue_depth)),
            of(
                Resource::ProviderCalls,
                spec.provider_calls,
                Some(reading.provider_calls),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headroom() -> Headroom {
        let threshold = Some(Threshold {
            low: 8,
            high: 15,
            severe: 60,
        });
        Headroom::new(OverloadSpec {
            output_late_ms: threshold,
            recover_after_ms: 1_000,
            ..OverloadSpec::default()
        })
    }

    fn late(output_late_ms: u64) -> Reading {
        Reading {
            output_late_ms,
            ..Reading::default()
        }
    }

    /// F-172, P22: refused from the high mark on, let in again only well below it and after a while.
    #[test]
    fn load_rises_at_once_and_falls_with_hysteresis() {
        let mut headroom = headroom();
        let at = Monotonic::from_millis;
        assert_eq!(headroom.observe(at(0), late(14)), None);
        let change = headroom.observe(at(250), late(15)).unwrap();
        assert_eq!((change.to, change.resource), (Load::High, Resource::Output));
        assert_eq!(headroom.observe(at(500), late(9)), None, "not low enough");
        assert_eq!(headroom.observe(at(750), late(8)), None, "not long enough");
        assert_eq!(headroom.observe(at(1_000), late(16)), None);
        assert_eq!(
            headroom.observe(at(1_250), late(2)),
            None,
            "counted from anew"
        );
        assert_eq!(headroom.observe(at(2_249), late(2)), None);
        let change = headroom.observe(at(2_250), late(2)).unwrap();
        assert_eq!((change.from, change.to), (Load::High, Load::Normal));
    }

    /// F-173: a severe load is left step by step.
    #[test]
    fn a_severe_load_falls_by_one_level_at_a_time() {
        let mut headroom = headroom();
        let at = Monotonic::from_millis;
        assert_eq!(headroom.observe(at(0), late(99)).unwrap().to, Load::Severe);
        assert_eq!(headroom.observe(at(10), late(0)), None);
        assert_eq!(headroom.observe(at(1_010), late(0)).unwrap().to, Load::High);
        assert_eq!(headroom.observe(at(1_500), late(0)), None);
        assert_eq!(
            headroom.observe(at(2_010), late(0)).unwrap().to,
            Load::Normal
        );
    }

    /// F-172: each resource has its own threshold; what is not watched is never too much.
    #[test]
    fn every_resource_trips_its_own_threshold() {
        let spec = |resource: Resource| {
            let threshold = Some(Threshold {
                low: 1,
                high: 5,
                severe: 9,
            });
            let mut spec = OverloadSpec {
                scheduler_late_ms: None,
                output_late_ms: None,
                ..OverloadSpec::default()
            };
            match resource {
                Resource::Cpu => spec.cpu_percent = threshold,
                Resource::Scheduler => spec.scheduler_late_ms = threshold,
                Resource::Output => spec.output_late_ms = threshold,
                Resource::Queue => spec.queue_depth = threshold,
                Resource::ProviderCalls => spec.provider_calls = threshold,
            }
            spec
        };
        let all = Reading {
            cpu_percent: Some(6),
            scheduler_late_ms: 6,
            output_late_ms: 6,
            queue_depth: 6,
            provider_calls: 6,
        };
        for resource in [
            Resource::Cpu,
            Resource::Scheduler,
            Resource::Output,
            Resource::Queue,
            Resource::ProviderCalls,
        ] {
            let mut headroom = Headroom::new(spec(resource));
            let change = headroom.observe(Monotonic::ZERO, all).unwrap();
            assert_eq!((change.to, change.resource), (Load::High, resource));
        }
    }

    proptest! {
        /// The load never falls unless everything was low for the whole time before, and never stays
        /// below what a reading asks for.
        #[test]
        fn the_load_follows_no_flutter(readings in prop::collection::vec(0_u64..80, 1..200)) {
            let mut headroom = headroom();
            let mut calm = 0;
            for (tick, value) in readings.into_iter().enumerate() {
                let before = headroom.load();
                headroom.observe(Monotonic::from_millis(tick as u64 * 250), late(value));
                calm = if value <= 8 { calm + 1 } else { 0 };
                let asked = match value {
                    0..15 => Load::Normal,
                    15..60 => Load::High,
                    60.. => Load::Severe,
                };
                prop_assert!(headroom.load() >= asked);
                if headroom.load() < before {
                    prop_assert!(calm > 4, "fell after {calm} calm readings");
                }
            }
        }
    }
}
