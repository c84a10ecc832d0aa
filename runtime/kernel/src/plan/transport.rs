//! What a session's transport can do, as the plan of a turn freezes it (F-161).

use rspp_proto::{Codec, SampleRate};
use serde::{Deserialize, Serialize};

use rspp_proto::canonical;

/// What a transport can do. A change in mid-session counts from the next turn on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportCapabilities {
    /// Names what follows by its content, as the turn's provenance.
    pub snapshot_ref: String,
    /// The transport's kind.
    pub transport: String,
    /// Rate of the user's audio, in hertz.
    pub source_rate: u32,
    /// Rate of the agent's audio, in hertz.
    pub sink_rate: u32,
    /// How the agent's audio is written on the line.
    pub sink_codec: Codec,
    /// Most audio that it may hold unplayed, in microseconds.
    pub sink_lead_us: u64,
    /// Whether a lost link may come back.
    pub reconnects: bool,
}

/// What a transport says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TransportSays<'a> {
    /// Its kind.
    pub transport: &'a str,
    /// Rate of the user's audio.
    pub source_rate: SampleRate,
    /// Rate of the agent's audio.
    pub sink_rate: SampleRate,
    /// How that is written on the line.
    pub sink_codec: Codec,
    /// Most audio that it may hold unplayed, in microseconds.
    pub sink_lead_us: u64,
    /// Whether a lost link may come back.
    pub reconnects: bool,
}

impl TransportCapabilities {
    /// Under a name that equal ones share.
    pub fn of(says: TransportSays<'_>) -> Self {
        let hash = canonical::hash(&says).expect("it is made of texts and numbers");
        let TransportSays {
            transport,
            source_rate,
            sink_rate,
            sink_codec,
            sink_lead_us,
            reconnects,
        } = says;
        Self {
            snapshot_ref: format!("transport-capability/{}", &hash[..12]),
            transport: transport.to_owned(),
            source_rate: source_rate.hertz(),
            sink_rate: sink_rate.hertz(),
            sink_codec,
            sink_lead_us,
            reconnects,
        }
    }
}
