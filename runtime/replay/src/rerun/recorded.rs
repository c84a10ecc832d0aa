//! What a recording holds of a session that is to be run again, and what it lacks.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rspp_kernel::{
    Gates, Input,
    journal::Line,
    plan::{LayeredSettings, SnapshotProvenance, profile},
};
use rspp_proto::{
    Epoch, Monotonic, ProviderId, SampleRate, SessionId, TenantId, TurnId, TurnNumber,
    abi::{AbiViolation, PayloadClass},
    spec::{Modality, PipelineSpec, PolicyBundle, RecordingPolicy, ReplayMode},
};
use rspp_timeline::{
    CallRef, Came, Captured, Entry, LineNote, OpeningEntry, Ordered, Piece, ProviderNote,
    RedactionAction, ToolEntry,
};
use rspp_transport_api::{Frame, Ingress, Link, Receipt, Stamped};
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::{Attributes, Comings, notes::Notes};
use crate::{Divergence, DivergenceClass, version};

/// Why a recorded session cannot be run again.
#[derive(Debug, Error)]
pub enum RerunError {
    /// It does not say what was opened.
    #[error(
        "the recording does not hold what the session was opened with; record it with this release \
         or a newer one"
    )]
    NoOpening,
    /// Its events are of a version that this build does not read.
    #[error("{0}")]
    Version(#[from] AbiViolation),
    /// What was opened cannot be read.
    #[error("the {what} of the recording cannot be read: {error}; use the release that wrote it")]
    Unreadable {
        /// Of the opening.
        what: &'static str,
        /// What is wrong.
        error: String,
    },
    /// It holds nothing from outside.
    #[error(
        "the recording holds nothing of what came from outside, it was made at {level}; record at L2 \
         with `full_capture: [audio_raw, text_raw]` in the recording policy"
    )]
    Level {
        /// The level that it was made at.
        level: String,
    },
    /// Something was not allowed to be kept.
    #[error(
        "{what} was withheld from the recording ({class} is under `{action}`); record with `{class}` \
         in `full_capture` of the recording policy"
    )]
    Withheld {
        /// What it would have been.
        what: String,
        /// The class.
        class: PayloadClass,
        /// What was done with it.
        action: String,
    },
    /// Something found no room.
    #[error(
        "{details} details found no room when the session was recorded, so what came from outside \
         is not complete; use a faster storage or raise the recorder's capacity"
    )]
    Lost {
        /// How many.
        details: u64,
    },
    /// The turns' plans do not allow it.
    #[error(
        "`{}` is not among the allowed_replay_modes of {turn}'s plan: {allowed}", .mode.as_str()
    )]
    NotAllowed {
        /// The mode.
        mode: ReplayMode,
        /// The turn.
        turn: TurnId,
        /// What is.
        allowed: String,
    },
    /// The mode runs no nodes.
    #[error(
        "`{}` runs no nodes; choose re_simulate_nodes or playback_recorded_provider_outputs",
        .0.as_str()
    )]
    Mode(ReplayMode),
    /// The runtime or the session did not start.
    #[error("the session could not be opened again: {0}")]
    Start(String),
    /// It does not end.
    #[error("the session did not end within {most:?}, as the recorded one did")]
    Endless {
        /// How long it was given.
        most: Duration,
    },
}

/// The pieces of one recorded answer, by when after the request.
#[derive(Clone, Debug, Default)]
pub(super) struct RecordedAnswer {
    pub(super) turn: Option<TurnId>,
    pub(super) request: Value,
    pub(super) pieces: Vec<(Duration, Piece)>,
}

/// What a detector found, in order.
#[derive(Clone, Debug)]
pub(super) struct Detections {
    pub(super) sample_rate: u32,
    pub(super) window: usize,
    pub(super) values: Vec<f32>,
}

/// A session as a recording holds it.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub(super) session: SessionId,
    pub(super) tenant: TenantId,
    pub(super) epoch: Epoch,
    pub(super) taken_over: bool,
    pub(super) ttl: Option<Duration>,
    pub(super) pipeline: PipelineSpec,
    pub(super) policy: Option<PolicyBundle>,
    pub(super) settings: LayeredSettings,
    pub(super) attributes: Attributes,
    pub(super) line: LineNote,
    pub(super) source_rate: SampleRate,
    pub(super) sink_rate: SampleRate,
    pub(super) providers: Vec<ProviderNote>,
    pub(super) recording: RecordingPolicy,
    pub(super) snapshots: SnapshotProvenance,
    pub(super) seed: u64,
    pub(super) length: Duration,
    pub(super) ingress: Comings,
    pub(super) orders: Vec<(Duration, Ordered)>,
    pub(super) answers: BTreeMap<CallRef, RecordedAnswer>,
    pub(super) detections: BTreeMap<(Modality, ProviderId), Detections>,
    pub(super) tools: Vec<ToolEntry>,
    /// What was found when its turns were to open.
    pub(super) decided: BTreeMap<TurnNumber, Gates>,
    modes: Vec<(TurnId, BTreeSet<ReplayMode>)>,
    level: String,
    withheld: Option<(String, PayloadClass, RedactionAction)>,
    dropped: u64,
}

impl Recorded {
    /// What these entries hold.
    pub fn of(entries: &[Entry]) -> Result<Self, RerunError> {
        version::check(entries)?;
        let opening = entries.iter().find_map(|entry| match entry {
            Entry::Opening(opening) => Some(&**opening),
            _something_else => None,
        });
        let opening = opening.ok_or(RerunError::NoOpening)?;
        let mut recorded = Self::opened(opening)?;
        let mut began = BTreeMap::new();
        for entry in entries {
            recorded.length = recorded.length.max(entry.at().since(opening.at));
            match entry {
                Entry::Header(header) => recorded.level = format!("{:?}", header.recording_level),
                Entry::Plan(plan) => {
                    let fields = &plan.plan;
                    let policy: RecordingPolicy =
                        read("recording policy", &fields["recording_policy"])?;
                    let modes = policy.allowed_replay_modes.clone();
                    if recorded.modes.is_empty() {
                        recorded.recording = policy;
                        recorded.snapshots = read("snapshots", &fields["snapshot_provenance"])?;
                        recorded.seed = fields["determinism"]["seed"].as_u64().unwrap_or(0);
                    }
                    recorded.modes.push((plan.turn_id.clone(), modes));
                }
                Entry::Dropped(note) => recorded.dropped += note.details,
                Entry::Journal(line) => recorded.decided.extend(decided(&line.line)),
                Entry::Tool(step) => recorded.tools.push((**step).clone()),
                Entry::Capture(capture) => {
                    let (at, turn) = (capture.at, capture.turn_id.clone());
                    recorded.captured(at, at.since(opening.at), turn, &capture.what, &mut began);
                }
                _says_nothing_of_what_came => {}
            }
        }
        Ok(recorded)
    }

    fn opened(opening: &OpeningEntry) -> Result<Self, RerunError> {
        let rate = |what, hertz| {
            SampleRate::new(hertz).ok_or_else(|| RerunError::Unreadable {
                what,
                error: format!("{hertz} Hz is no sample rate"),
            })
        };
        let settings: LayeredSettings = read("settings", &opening.settings)?;
        let policy = opening.policy.as_ref();
        let policy: Option<PolicyBundle> =
            policy.map(|policy| read("policy", policy)).transpose()?;
        let recording = wanted(&settings, policy.as_ref());
        Ok(Self {
            session: opening.session_id.clone(),
            tenant: opening.tenant_id.clone(),
            epoch: opening.authority_epoch,
            taken_over: opening.taken_over,
            ttl: opening.lease_ttl_us.map(Duration::from_micros),
            pipeline: read("pipeline", &opening.pipeline)?,
            policy,
            settings,
            attributes: match &opening.attributes {
                Some(attributes) => read("attributes", attributes)?,
                None => Attributes::new(),
            },
            line: opening.line.clone(),
            source_rate: rate("source_rate", opening.line.source_rate)?,
            sink_rate: rate("sink_rate", opening.line.sink_rate)?,
            providers: opening.providers.clone(),
            recording,
            snapshots: SnapshotProvenance::local(),
            seed: 0,
            length: Duration::ZERO,
            ingress: Vec::new(),
            orders: Vec::new(),
            answers: BTreeMap::new(),
            detections: BTreeMap::new(),
            tools: Vec::new(),
            decided: BTreeMap::new(),
            modes: Vec::new(),
            level: String::new(),
            withheld: None,
            dropped: 0,
        })
    }

    fn captured(
        &mut self,
        at: Monotonic,
        after: Duration,
        turn: Option<TurnId>,
        what: &Captured,
        began: &mut BTreeMap<CallRef, Monotonic>,
    ) {
        match what {
            Captured::Came(came) => self.ingress.push((after, ingress(came))),
            Captured::Ordered(order) => self.orders.push((after, order.clone())),
            Captured::Asked { call, request } => {
                began.insert(call.clone(), at);
                let answer = self.answers.entry(call.clone()).or_default();
                answer.turn = turn;
                answer.request.clone_from(request);
            }
            Captured::Answered { call, index, piece } => {
                let Some(began) = began.get(call) else {
                    self.dropped += 1;
                    return;
                };
                let answer = self.answers.entry(call.clone()).or_default();
                let missing = index.saturating_sub(answer.pieces.len() as u64);
                self.dropped += missing;
                answer.pieces.push((at.since(*began), piece.clone()));
            }
            Captured::Detected {
                provider,
                modality,
                sample_rate,
                window,
                first: _,
                values,
            } => {
                let key = (*modality, provider.clone());
                let of = self.detections.entry(key).or_insert_with(|| Detections {
                    sample_rate: *sample_rate,
                    window: *window as usize,
                    values: Vec::new(),
                });
                of.values.extend(values);
            }
            Captured::Withheld {
                what,
                class,
                action,
            } => {
                self.withheld
                    .get_or_insert_with(|| (what.clone(), *class, *action));
            }
        }
    }

    /// What was recorded of it, by the plan of its first turn.
    pub fn recording_policy(&self) -> &RecordingPolicy {
        &self.recording
    }

    /// Whether it holds enough for `mode`, and its plans allow it.
    pub(super) fn allows(&self, mode: ReplayMode) -> Result<(), RerunError> {
        let refused = self.modes.iter().find(|(_, modes)| !modes.contains(&mode));
        if let Some((turn, modes)) = refused {
            let allowed: Vec<_> = modes.iter().map(|mode| mode.as_str()).collect();
            return Err(RerunError::NotAllowed {
                mode,
                turn: turn.clone(),
                allowed: allowed.join(", "),
            });
        }
        if let Some((what, class, action)) = &self.withheld {
            return Err(RerunError::Withheld {
                what: what.clone(),
                class: *class,
                action: format!("{action:?}").to_lowercase(),
            });
        }
        if self.ingress.is_empty() {
            return Err(RerunError::Level {
                level: self.level.clone(),
            });
        }
        if self.dropped > 0 {
            return Err(RerunError::Lost {
                details: self.dropped,
            });
        }
        Ok(())
    }

    /// Recorded calls that the replay did not make.
    pub(super) fn unused(&self, notes: &Notes) -> Vec<Divergence> {
        let unused = self
            .answers
            .iter()
            .filter(|(call, _)| !notes.was_used(call));
        unused
            .map(|(call, answer)| Divergence {
                class: DivergenceClass::OutcomeDivergence,
                scope: answer
                    .turn
                    .as_ref()
                    .map_or_else(|| "trace".to_owned(), |turn| format!("turn:{turn}")),
                baseline: format!("{} asked `{}`", call.invocation, call.provider),
                candidate: "nothing".to_owned(),
                diff_ms: None,
            })
            .collect()
    }
}

/// What was to be recorded, of a session whose turns do not say so: it may have had none.
fn wanted(settings: &LayeredSettings, policy: Option<&PolicyBundle>) -> RecordingPolicy {
    let layers = [
        &settings.session,
        &settings.tenant,
        &settings.environment,
        &settings.defaults,
    ];
    let of_layers = layers.into_iter().map(|layer| &layer.recording_policy);
    let of_bundle = policy.map(|bundle| &bundle.recording_policy);
    let first = of_bundle.into_iter().chain(of_layers).flatten().next();
    first.cloned().unwrap_or_else(profile::recording_policy)
}

/// What was found before a turn opened, if the line is of that.
fn decided(line: &Value) -> Option<(TurnNumber, Gates)> {
    line.get("input")?.get("gates")?; // The others need not be read.
    match serde_json::from_value(line.clone()).ok()? {
        Line::Input(input) => match *input {
            Input::Gates { turn, gates } => Some((turn, gates)),
            _something_else => None,
        },
        Line::Opened { .. } | Line::Settled | Line::Decided(_) | Line::Lost => None,
    }
}

fn read<T: DeserializeOwned>(what: &'static str, value: &Value) -> Result<T, RerunError> {
    T::deserialize(value).map_err(|error| RerunError::Unreadable {
        what,
        error: error.to_string(),
    })
}

/// What came in, as the transport handed it over; `None` for a user who hung up.
fn ingress(came: &Came) -> Option<Ingress> {
    Some(match came {
        Came::Audio(pcm) => Ingress::Audio(pcm.clone()),
        Came::Frame {
            sequence,
            position,
            epoch,
            pcm,
        } => Ingress::Frame(Frame {
            sequence: *sequence,
            position: *position,
            epoch: *epoch,
            pcm: pcm.clone(),
        }),
        Came::Stamped { epoch, key, event } => Ingress::Stamped(Box::new(Stamped {
            epoch: *epoch,
            key: key.clone(),
            event: ingress(event)?,
        })),
        Came::Record { encoding, bytes } => Ingress::Record {
            encoding: *encoding,
            bytes: bytes.clone(),
        },
        Came::Link(news) => Ingress::Link(Link::named(news).unwrap_or(Link::Lost)),
        Came::EndOfUtterance => Ingress::EndOfUtterance,
        Came::Cancel => Ingress::Cancel,
        Came::Text(text) => Ingress::Text(text.clone()),
        Came::Extension(extension) => Ingress::Extension(extension.clone()),
        Came::Played { turn, ms } => Ingress::Played(Receipt {
            turn: *turn,
            played: Duration::from_millis(*ms),
        }),
        Came::HungUp => return None,
    })
}
