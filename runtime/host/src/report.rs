//! What a session leaves for people and programs: one record a turn, with times and what was said.

use std::collections::BTreeMap;

use rspp_kernel::{SessionState, speculation::SpeculationStats};
use rspp_proto::{
    Epoch, EventId, Lane, Monotonic, NodeId, PipelineVersion, SessionId, Spending, TenantId,
    TurnId, abi::EventRecord,
};
use rspp_timeline::{Anchors, Redacted, TerminalOutcome};
use rspp_transport_api::wire::WireReport;
use serde::{Deserialize, Serialize};

use crate::{memory::MemoryUse, meters::Measurements, overhead::Percentiles};

/// One accepted turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnReport {
    /// The turn.
    pub turn_id: TurnId,
    /// Hash of the plan that it ran, 64 hex digits.
    pub plan_hash: String,
    /// `commit` or `abort`.
    pub outcome: String,
    /// Why, if it was aborted.
    pub reason: Option<String>,
    /// What the user said, as understood.
    pub user_text: String,
    /// What the agent was to say.
    pub agent_text: String,
    /// What was heard of it.
    pub agent_text_played: String,
    /// When things happened.
    pub anchors: Anchors,
    /// From the end of the user's speech to the reply's first audio, in milliseconds.
    pub first_audio_ms: Option<f64>,
    /// From the cancel's acceptance to the fence, in microseconds of real time.
    pub cancel_fence_us: Option<f64>,
    /// Items dropped, by lane; those of the data lane include output refused at the fence.
    pub dropped: BTreeMap<Lane, u64>,
    /// What its provider calls cost, and those of the utterance before it.
    #[serde(default)]
    pub spending: Spending,
    /// The tool calls of its model, in order, with what had become of them when it closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<ToolReport>,
}

/// One tool call of a turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolReport {
    /// The call, unique within its turn.
    pub call: String,
    /// Which tool.
    pub tool: String,
    /// `finished`, `failed`, `timed_out`, `abandoned`, `refused`, or `detached` if it went on.
    pub outcome: String,
}

impl TurnReport {
    /// Whether the turn ended well.
    pub fn is_commit(&self) -> bool {
        self.outcome == TerminalOutcome::Commit.as_str()
    }

    /// Anchors in milliseconds from `origin`, by name; for reports.
    pub fn anchors_ms(&self, origin: Monotonic) -> BTreeMap<String, f64> {
        let anchors = rspp_timeline::Anchor::ALL.iter();
        anchors
            .filter_map(|anchor| {
                let at = self.anchors.get(*anchor)?;
                Some((
                    anchor.as_str().to_owned(),
                    at.since(origin).as_secs_f64() * 1e3,
                ))
            })
            .collect()
    }
}

/// Something of a session is not as it should be; the call goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degradation {
    /// The reason that its `degrade` signal carried.
    pub reason: String,
    /// The node that it is about.
    pub node: Option<NodeId>,
    /// Since when.
    pub at: Monotonic,
}

/// An event that a node could not deal with (F-132).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The event's id on the timeline.
    pub event_id: EventId,
    /// The node.
    pub node: NodeId,
    /// The turn that it worked for.
    pub turn_id: Option<TurnId>,
    /// Why it could not.
    pub reason: String,
    /// When.
    pub at: Monotonic,
    /// The event, as far as the recording level lets it be seen.
    pub event: EventRecord,
    /// What of it may not be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redacted: Option<Redacted>,
}

/// A session that is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionReport {
    /// The session.
    pub session_id: SessionId,
    /// Who it is accounted to.
    pub tenant_id: TenantId,
    /// The pipeline it ran.
    pub pipeline_version: PipelineVersion,
    /// The authority it ended under.
    pub epoch: Epoch,
    /// How it stood in the end.
    pub state: SessionState,
    /// Why it ended.
    pub ended: String,
    /// When it was opened.
    pub opened_at: Monotonic,
    /// When it ended.
    pub ended_at: Monotonic,
    /// Its accepted turns, in order.
    pub turns: Vec<TurnReport>,
    /// What its provider calls cost (F-075).
    #[serde(default)]
    pub spending: Spending,
    /// Intents that did not become turns.
    pub refused: u64,
    /// Moves that were asked for and could not be made, by code.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub moves_refused: BTreeMap<String, u64>,
    /// What became of answers that were begun on a guess (P10).
    #[serde(default)]
    pub speculation: SpeculationStats,
    /// Bytes of session-hot state in the end.
    #[serde(default)]
    pub hot_state_bytes: usize,
    /// Node hosts that crashed or gave up.
    pub node_failures: u64,
    /// What was not as it should be, first things first, each once.
    #[serde(default)]
    pub degraded: Vec<Degradation>,
    /// The first events that nodes could not deal with.
    #[serde(default)]
    pub dead_letters: Vec<DeadLetter>,
    /// How many of these there were.
    #[serde(default)]
    pub dead_lettered: u64,
    /// What it held in memory in the end, and the most that it did.
    #[serde(default)]
    pub memory: Option<MemoryUse>,
    /// Ticks of the output clock that found nothing to play.
    pub underruns: u64,
    /// What the checks of epochs came to.
    #[serde(default)]
    pub authority: AuthorityReport,
    /// What the connection carried and lost.
    #[serde(default)]
    pub line: LineReport,
    /// What the runtime itself cost per event, in microseconds of real time.
    pub kernel_overhead_us: Percentiles,
    /// Latencies and depths by node and edge, if they were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measurements: Option<Measurements>,
    /// What the handlers of nodes took per event, in microseconds of real time.
    pub node_handlers_us: Percentiles,
    /// What the runtime itself may cost per event, 99th percentile (F-052).
    pub kernel_overhead_budget_us: Option<u64>,
    /// Times that it was found to cost more, in the whole process.
    pub kernel_overhead_alerts: u64,
    /// Pieces of work that were shed where they are scheduled.
    pub shed: u64,
}

/// A count at each checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByCheckpoint {
    /// Where events come in.
    pub ingress: u64,
    /// Where nodes and provider calls begin to work.
    pub dispatch: u64,
    /// Where something would be heard or shown.
    pub egress: u64,
}

/// What the checks of epochs came to (F-156).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityReport {
    /// Epochs that were compared with the session's.
    pub authority_epoch_check_total: ByCheckpoint,
    /// Those that were another's, and refused.
    pub authority_epoch_reject_total: ByCheckpoint,
    /// Outputs that were played though their epoch was not the session's: never any.
    pub stale_epoch_outputs_accepted: u64,
}

/// What a connection carried and lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineReport {
    /// Output frames that were too old to be played (P23).
    pub aged: u64,
    /// Output frames that the peer was too slow for.
    pub unplayed: u64,
    /// Output frames that left, one every 20 ms (P29).
    #[serde(default)]
    pub left: u64,
    /// Of these, frames that left 5 ms after their time or later.
    #[serde(default)]
    pub left_late: u64,
    /// The most that a frame left after its time, in milliseconds; 0 if none was late.
    #[serde(default)]
    pub latest_ms: u64,
    /// Frames of the user's that held nothing but the agent's own voice (P28).
    pub echoes: u64,
    /// The user's audio, where it says where it belongs.
    pub media: Option<MediaReport>,
    /// How the agent's speech crossed the wire, where the transport watches that (P29).
    #[serde(default)]
    pub wire: Option<WireReport>,
}

/// How the user's audio came in over a transport that may lose it or change its order (F-087, NF-018).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaReport {
    /// Frames that went on, in order.
    pub delivered: u64,
    /// Frames that came after later ones.
    pub reordered: u64,
    /// Frames that came twice.
    pub duplicates: u64,
    /// Frames that came when they had been given up.
    pub late: u64,
    /// Frames that were given up.
    pub lost: u64,
    /// The longest that a frame was held back, in milliseconds.
    pub longest_held_ms: u64,
    /// How often media time had to be tied to the runtime's clock anew.
    pub rebases: u64,
    /// How far media time and the runtime's clock were apart, 99th percentile, in milliseconds.
    pub media_runtime_mapping_error_ms: u64,
    /// Stretches of ten seconds in which that was more than it may be.
    #[serde(default)]
    pub mapping_beyond_bound: u64,
}
