//! The report of a conversation, as programs read it: `rspp.report.v1`.

use std::{collections::BTreeMap, io, path::Path, time::Duration};

use rspp_host::report::{SessionReport, TurnReport};
use rspp_proto::{
    Epoch, Lane, Monotonic, PipelineVersion, SessionId, TenantId, TurnId, abi::SchemaVersion,
};
use rspp_timeline::{OR02_EVIDENCE_SCHEMA_VERSION, VERSION as TIMELINE_VERSION};
use rspp_transport_api::{loopback::Moment, wire::WireReport};
use serde::{Deserialize, Serialize};

use crate::outputs;

/// What the report calls its own format.
pub(crate) const SCHEMA: &str = "rspp.report.v1";

/// A conversation that is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) schema: String,
    pub(crate) session: SessionPart,
    pub(crate) versions: Versions,
    pub(crate) turns: Vec<TurnPart>,
    pub(crate) kernel_overhead_us: Overhead,
}

/// The conversation as a whole. Times are milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SessionPart {
    pub(crate) session_id: SessionId,
    pub(crate) tenant_id: TenantId,
    pub(crate) pipeline_version: PipelineVersion,
    pub(crate) authority_epoch: Epoch,
    pub(crate) transport: String,
    /// Provider and model by modality, e.g. `stt: moonshine (base-en)`.
    pub(crate) providers: BTreeMap<String, String>,
    /// Whether the clock was virtual: waiting cost nothing, inference its real time.
    pub(crate) virtual_time: bool,
    /// Whether the user of the command line broke it off.
    pub(crate) interrupted: bool,
    /// Why it ended.
    pub(crate) ended: String,
    pub(crate) duration_ms: f64,
    /// Intents that did not become turns.
    pub(crate) refused_turns: u64,
    /// Node hosts that crashed or gave up.
    pub(crate) node_failures: u64,
    /// Ticks of the output clock that found nothing to play in the middle of a reply.
    pub(crate) underruns: u64,
    /// Frames of a turn already taken back that still reached the line; must be 0.
    pub(crate) frames_after_clear: u64,
    /// How the agent's speech crossed the line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) wire: Option<WireReport>,
}

/// What wrote the report, and in which formats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Versions {
    pub(crate) rspp: String,
    pub(crate) event_abi: String,
    pub(crate) timeline: String,
    pub(crate) or02_evidence: String,
    pub(crate) execution_profile: String,
}

/// One accepted turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TurnPart {
    pub(crate) turn_id: TurnId,
    pub(crate) plan_hash: String,
    /// `commit` or `abort`.
    pub(crate) outcome: String,
    /// Why, if it was aborted.
    pub(crate) reason: Option<String>,
    /// What the user said, as understood.
    pub(crate) user_text: String,
    /// What the agent was to say.
    pub(crate) agent_text: String,
    /// What was heard of it.
    pub(crate) agent_text_played: String,
    /// The canonical anchors, in milliseconds since the session was opened.
    pub(crate) anchors_ms: BTreeMap<String, f64>,
    /// From the end of the user's speech to the reply's first audio, as the runtime saw it.
    pub(crate) first_audio_ms: Option<f64>,
    /// The same as it could be heard on the line: from the user's last sound to the agent's first.
    pub(crate) heard_after_ms: Option<f64>,
    /// From the cancel's acceptance to the fence, in microseconds of real time.
    pub(crate) cancel_fence_us: Option<f64>,
    /// Items dropped, by lane.
    pub(crate) dropped: BTreeMap<Lane, u64>,
}

/// What the runtime itself cost per event, in microseconds of real time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Overhead {
    pub(crate) samples: u64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    /// What it may be, 99th percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) budget: Option<u64>,
    /// Times that it was found above that.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) above_budget: u64,
}

/// What the session does not know about itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Circumstances {
    pub(crate) providers: BTreeMap<String, String>,
    pub(crate) execution_profile: String,
    pub(crate) virtual_time: bool,
    pub(crate) interrupted: bool,
    pub(crate) frames_after_clear: u64,
    pub(crate) moments: Vec<Moment>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Report {
    pub(crate) fn new(session: &SessionReport, around: Circumstances) -> Self {
        let overhead = session.kernel_overhead_us;
        Self {
            schema: SCHEMA.to_owned(),
            turns: session
                .turns
                .iter()
                .map(|turn| TurnPart::new(turn, session.opened_at, &around.moments))
                .collect(),
            session: SessionPart {
                session_id: session.session_id.clone(),
                tenant_id: session.tenant_id.clone(),
                pipeline_version: session.pipeline_version.clone(),
                authority_epoch: session.epoch,
                transport: "loopback".to_owned(),
                providers: around.providers,
                virtual_time: around.virtual_time,
                interrupted: around.interrupted,
                ended: session.ended.clone(),
                duration_ms: ms(session.ended_at.since(session.opened_at)),
                refused_turns: session.refused,
                node_failures: session.node_failures,
                underruns: session.underruns,
                frames_after_clear: around.frames_after_clear,
                wire: session.line.wire,
            },
            versions: Versions {
                rspp: env!("CARGO_PKG_VERSION").to_owned(),
                event_abi: SchemaVersion::CURRENT.to_string(),
                timeline: format!("{}.{}", TIMELINE_VERSION.major, TIMELINE_VERSION.minor),
                or02_evidence: OR02_EVIDENCE_SCHEMA_VERSION.to_owned(),
                execution_profile: around.execution_profile,
            },
            kernel_overhead_us: Overhead {
                samples: overhead.samples,
                p50: overhead.p50,
                p99: overhead.p99,
                max: overhead.max,
                budget: session.kernel_overhead_budget_us,
                above_budget: session.kernel_overhead_alerts,
            },
        }
    }

    /// Writes the report, whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        outputs::write_whole(path, &text)
    }
}

impl TurnPart {
    /// Whether it ended otherwise than by being said or being interrupted.
    pub(crate) fn has_failed(&self) -> bool {
        self.outcome != "commit" && self.reason.as_deref() != Some("cancelled")
    }

    fn new(turn: &TurnReport, opened_at: Monotonic, moments: &[Moment]) -> Self {
        Self {
            turn_id: turn.turn_id.clone(),
            plan_hash: turn.plan_hash.clone(),
            outcome: turn.outcome.clone(),
            reason: turn.reason.clone(),
            user_text: turn.user_text.clone(),
            agent_text: turn.agent_text.clone(),
            agent_text_played: turn.agent_text_played.clone(),
            anchors_ms: turn
                .anchors_ms(opened_at)
                .into_iter()
                .map(|(anchor, at)| (anchor, rounded(at)))
                .collect(),
            first_audio_ms: turn.first_audio_ms,
            heard_after_ms: heard_after(&turn.turn_id, moments).map(ms),
            cancel_fence_us: turn.cancel_fence_us,
            dropped: turn.dropped.clone(),
        }
    }
}

/// From the user's last sound before a reply to the reply's first.
pub(crate) fn heard_after(turn: &TurnId, moments: &[Moment]) -> Option<Duration> {
    let mut user_ended = None;
    for moment in moments {
        match *moment {
            Moment::UserEnded { at, .. } => user_ended = Some(at),
            Moment::ReplyBegan { turn: number, at } if number.id() == *turn => {
                return Some(at.saturating_sub(user_ended?));
            }
            Moment::UserBegan { .. } | Moment::ReplyBegan { .. } | Moment::ReplyEnded { .. } => {}
        }
    }
    None
}

fn ms(duration: Duration) -> f64 {
    rounded(duration.as_secs_f64() * 1e3)
}

/// To the microsecond, which is as much as anybody can use.
fn rounded(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use rspp_host::Percentiles;
    use rspp_kernel::SessionState;
    use rspp_proto::{Spending, TurnNumber};
    use rspp_timeline::{Anchor, Anchors};

    use super::*;

    /// A session of one turn that was interrupted.
    pub(crate) fn session() -> SessionReport {
        let mut anchors = Anchors::default();
        for (anchor, ms) in [
            (Anchor::AudioInputIngress, 1_900),
            (Anchor::EndOfTurn, 2_300),
            (Anchor::LlmFirstToken, 2_400),
            (Anchor::PlaybackStarted, 2_600),
            (Anchor::CancelAccepted, 3_600),
            (Anchor::CancelFence, 3_600),
        ] {
            anchors.mark(anchor, Monotonic::from_millis(ms));
        }
        SessionReport {
            session_id: SessionId::new("call-7").unwrap(),
            tenant_id: TenantId::new("local").unwrap(),
            pipeline_version: PipelineVersion::new("simple-1").unwrap(),
            epoch: Epoch::FIRST,
            state: SessionState::Ended,
            ended: "the user hung up".to_owned(),
            opened_at: Monotonic::from_millis(100),
            ended_at: Monotonic::from_millis(5_100),
            turns: vec![TurnReport {
                turn_id: TurnNumber::FIRST.id(),
                plan_hash: "0f".repeat(32),
                outcome: "abort".to_owned(),
                reason: Some("cancelled".to_owned()),
                user_text: "Tell me a story.".to_owned(),
                agent_text: "Once upon a time there was a lighthouse.".to_owned(),
                agent_text_played: "Once upon a time".to_owned(),
                anchors,
                first_audio_ms: Some(700.0),
                cancel_fence_us: Some(12.5),
                dropped: Lane::ALL.map(|lane| (lane, 0)).into(),
                spending: Spending::default(),
                tools: Vec::new(),
            }],
            spending: Spending::default(),
            moves_refused: BTreeMap::new(),
            refused: 0,
            speculation: rspp_kernel::speculation::SpeculationStats::default(),
            hot_state_bytes: 0,
            node_failures: 0,
            degraded: Vec::new(),
            dead_letters: Vec::new(),
            dead_lettered: 0,
            memory: None,
            underruns: 0,
            authority: rspp_host::report::AuthorityReport::default(),
            line: rspp_host::report::LineReport::default(),
            kernel_overhead_us: Percentiles {
                samples: 10,
                p50: 0.5,
                p99: 17.5,
                max: 20.0,
            },
            measurements: None,
            node_handlers_us: Percentiles::default(),
            kernel_overhead_budget_us: None,
            kernel_overhead_alerts: 0,
            shed: 0,
        }
    }

    pub(crate) fn report() -> Report {
        let around = Circumstances {
            providers: [("stt".to_owned(), "moonshine (base-en)".to_owned())].into(),
            execution_profile: "simple/v1".to_owned(),
            virtual_time: true,
            ..Circumstances::default()
        };
        Report::new(&session(), around)
    }

    /// The format is a promise: a changed line here is a changed schema version.
    #[test]
    fn the_report_keeps_its_format() {
        insta::assert_json_snapshot!(report(), @r#"
        {
          "schema": "rspp.report.v1",
          "session": {
            "session_id": "call-7",
            "tenant_id": "local",
            "pipeline_version": "simple-1",
            "authority_epoch": 1,
            "transport": "loopback",
            "providers": {
              "stt": "moonshine (base-en)"
            },
            "virtual_time": true,
            "interrupted": false,
            "ended": "the user hung up",
            "duration_ms": 5000.0,
            "refused_turns": 0,
            "node_failures": 0,
            "underruns": 0,
            "frames_after_clear": 0
          },
          "versions": {
            "rspp": "0.1.0",
            "event_abi": "v1.0",
            "timeline": "1.1",
            "or02_evidence": "or02/v1.0",
            "execution_profile": "simple/v1"
          },
          "turns": [
            {
              "turn_id": "turn-0001",
              "plan_hash": "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f",
              "outcome": "abort",
              "reason": "cancelled",
              "user_text": "Tell me a story.",
              "agent_text": "Once upon a time there was a lighthouse.",
              "agent_text_played": "Once upon a time",
              "anchors_ms": {
                "assistant_audio_playback_started_ts": 2500.0,
                "audio_input_ingress_ts": 1800.0,
                "cancel_accepted_ts": 3500.0,
                "cancel_fence_applied_ts": 3500.0,
                "end_of_turn_ts": 2200.0,
                "llm_first_token_ts": 2300.0
              },
              "first_audio_ms": 700.0,
              "heard_after_ms": null,
              "cancel_fence_us": 12.5,
              "dropped": {
                "ControlLane": 0,
                "DataLane": 0,
                "TelemetryLane": 0
              }
            }
          ],
          "kernel_overhead_us": {
            "samples": 10,
            "p50": 0.5,
            "p99": 17.5,
            "max": 20.0
          }
        }
        "#);
    }

    #[test]
    fn a_report_is_written_whole_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("call.json");
        fs::write(&path, "an older and longer report").unwrap();
        report().write(&path).unwrap();
        let read: Report = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, report());
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn an_interruption_is_no_failure_and_a_dead_provider_is() {
        let turn = |outcome: &str, reason: Option<&str>| TurnPart {
            outcome: outcome.to_owned(),
            reason: reason.map(str::to_owned),
            ..report().turns.remove(0)
        };
        assert!(!turn("commit", None).has_failed());
        assert!(!turn("abort", Some("cancelled")).has_failed());
        assert!(turn("abort", Some("provider_failure")).has_failed());
    }

    #[test]
    fn a_reply_is_timed_from_the_last_sound_before_it() {
        let at = Duration::from_millis;
        let moments = [
            Moment::UserBegan {
                utterance: 0,
                at: at(0),
            },
            Moment::UserEnded {
                utterance: 0,
                at: at(900),
            },
            Moment::ReplyBegan {
                turn: TurnNumber(1),
                at: at(1_500),
            },
            Moment::UserBegan {
                utterance: 1,
                at: at(2_000),
            },
            Moment::ReplyEnded {
                turn: TurnNumber(1),
                at: at(2_200),
                cut: true,
            },
            Moment::UserEnded {
                utterance: 1,
                at: at(3_000),
            },
            Moment::ReplyBegan {
                turn: TurnNumber(2),
                at: at(3_450),
            },
        ];
        assert_eq!(heard_after(&TurnNumber(1).id(), &moments), Some(at(600)));
        assert_eq!(heard_after(&TurnNumber(2).id(), &moments), Some(at(450)));
        assert_eq!(heard_after(&TurnNumber(3).id(), &moments), None);
    }
}
