//! How much is recorded while the recorder is under pressure (observability.md §3, F-176).
//!
//! A plain state machine over observations: equal observations give an equal path. It goes down one
//! level at a time and never up by itself.

use std::{fmt, time::Duration};

use rspp_proto::{Monotonic, spec::RecordingLevel};
use serde::{Deserialize, Serialize};

/// When to record less. The default is `simple/v1`.
#[derive(Clone, Debug, PartialEq)]
pub struct FidelityPolicy {
    /// Names this policy in every marker.
    pub policy_id: &'static str,
    /// When full capture stops.
    pub leave_l2: Threshold,
    /// When sampling stops.
    pub leave_l1: Threshold,
    /// How long the pressure has to stay below both thresholds before a turn may begin one level
    /// higher. The specification asks for a window and leaves its length open.
    pub stable_window: Duration,
}

/// Pressure that costs a level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// How full the queue is, 0 to 1, …
    pub fill: f64,
    /// … for this long.
    pub hold: Duration,
    /// Or how far the durable export lags; at once.
    pub export_lag: Duration,
}

impl Default for FidelityPolicy {
    fn default() -> Self {
        let hold = Duration::from_millis(500);
        Self {
            policy_id: "recording-downgrade/simple/v1",
            leave_l2: Threshold {
                fill: 0.80,
                hold,
                export_lag: Duration::from_secs(2),
            },
            leave_l1: Threshold {
                fill: 0.90,
                hold,
                export_lag: Duration::from_secs(5),
            },
            stable_window: Duration::from_secs(10),
        }
    }
}

/// What the recorder feels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Share of the queue in use, 0 to 1.
    pub fill: f64,
    /// How old the oldest entry is that the durable store does not have.
    pub export_lag: Duration,
}

/// What moved the level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LevelTrigger {
    /// The queue stayed too full.
    QueueFill,
    /// The durable export fell behind.
    ExportLag,
    /// The pressure stayed away until a turn began.
    Stable,
}

impl fmt::Display for LevelTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::QueueFill => "queue_fill",
            Self::ExportLag => "export_lag",
            Self::Stable => "stable",
        })
    }
}

/// One step of the level; the marker that replay sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LevelChange {
    /// When.
    pub at: Monotonic,
    /// Which policy decided.
    pub policy_id: String,
    /// The level before.
    pub from: RecordingLevel,
    /// The level after: a neighbour of `from`.
    pub to: RecordingLevel,
    /// Why.
    pub trigger: LevelTrigger,
    /// How full the queue was, 0 to 1.
    pub fill: f64,
    /// How far the export lagged, in milliseconds.
    pub export_lag_ms: u64,
}

impl LevelChange {
    /// Whether less is recorded than before: OR-02 then says `recording_level_downgraded`.
    pub fn is_downgrade(&self) -> bool {
        self.to < self.from
    }
}

/// The recording level and what moves it.
#[derive(Clone, Debug)]
pub struct Fidelity {
    policy: FidelityPolicy,
    ceiling: RecordingLevel,
    level: RecordingLevel,
    /// Since when the queue is over the level's own threshold.
    full_since: Option<Monotonic>,
    /// Since when nothing is over any threshold.
    calm_since: Option<Monotonic>,
    pressure: Pressure,
}

impl Fidelity {
    /// Starts at `ceiling`, the level that the plan asks for; never goes higher.
    pub fn new(policy: FidelityPolicy, ceiling: RecordingLevel) -> Self {
        Self {
            policy,
            ceiling,
            level: ceiling,
            full_since: None,
            calm_since: None,
            pressure: Pressure::default(),
        }
    }

    /// The level now.
    pub fn level(&self) -> RecordingLevel {
        self.level
    }

    /// Takes in the pressure at `now`; at most one step down.
    #[must_use = "a change of level is evidence; record it"]
    pub fn observe(&mut self, now: Monotonic, pressure: Pressure) -> Option<LevelChange> {
        self.pressure = pressure;
        if self.is_calm(pressure) {
            self.calm_since.get_or_insert(now);
        } else {
            self.calm_since = None;
        }

        let (threshold, lower) = match self.level {
            RecordingLevel::L2 => (self.policy.leave_l2, RecordingLevel::L1),
            RecordingLevel::L1 => (self.policy.leave_l1, RecordingLevel::L0),
            RecordingLevel::L0 => return None,
        };
        if pressure.export_lag >= threshold.export_lag {
            return Some(self.step(now, lower, LevelTrigger::ExportLag));
        }
        if pressure.fill < threshold.fill {
            self.full_since = None;
            return None;
        }
        let since = *self.full_since.get_or_insert(now);
        (now.since(since) >= threshold.hold).then(|| self.step(now, lower, LevelTrigger::QueueFill))
    }

    /// Says that a turn begins at `now`: the one moment to record more again, one level.
    #[must_use = "a change of level is evidence; record it"]
    pub fn turn_boundary(&mut self, now: Monotonic) -> Option<LevelChange> {
        let higher = match self.level {
            RecordingLevel::L0 => RecordingLevel::L1,
            RecordingLevel::L1 => RecordingLevel::L2,
            RecordingLevel::L2 => return None,
        };
        let stable = self
            .calm_since
            .is_some_and(|since| now.since(since) >= self.policy.stable_window);
        (higher <= self.ceiling && stable).then(|| self.step(now, higher, LevelTrigger::Stable))
    }

    /// Below the lower of the two thresholds, so that going up is not going straight down again.
    fn is_calm(&self, pressure: Pressure) -> bool {
        let (l2, l1) = (self.policy.leave_l2, self.policy.leave_l1);
        pressure.fill < l2.fill.min(l1.fill)
            && pressure.export_lag < l2.export_lag.min(l1.export_lag)
    }

    fn step(&mut self, at: Monotonic, to: RecordingLevel, trigger: LevelTrigger) -> LevelChange {
        let from = std::mem::replace(&mut self.level, to);
        // Each level holds for its own time, up and down.
        self.full_since = None;
        self.calm_since = match trigger {
            LevelTrigger::Stable => Some(at),
            LevelTrigger::QueueFill | LevelTrigger::ExportLag => None,
        };
        LevelChange {
            at,
            policy_id: self.policy.policy_id.to_owned(),
            from,
            to,
            trigger,
            fill: self.pressure.fill,
            export_lag_ms: self.pressure.export_lag.as_millis() as u64,
        }
    }
}
