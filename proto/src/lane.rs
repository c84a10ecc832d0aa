//! The three lanes of every mailbox and of the wire.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A priority class: control before data before telemetry, always.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Lane {
    /// Turn boundaries, cancellation, authority, flow control; never shed.
    #[serde(rename = "ControlLane")]
    Control,
    /// Audio and text.
    #[serde(rename = "DataLane")]
    Data,
    /// Metrics and debug events; the first to be dropped.
    #[serde(rename = "TelemetryLane")]
    Telemetry,
}

impl Lane {
    /// All lanes, highest priority first.
    pub const ALL: [Self; 3] = [Self::Control, Self::Data, Self::Telemetry];

    /// The lane's name in the Event ABI.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Control => "ControlLane",
            Self::Data => "DataLane",
            Self::Telemetry => "TelemetryLane",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
