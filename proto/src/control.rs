//! What runtimes and the control plane talk about: who holds what, what a runtime is and how it fares,
//! what can be published.

use std::{collections::BTreeMap, fmt, num::NonZeroU64};

use serde::{Deserialize, Serialize};

use crate::{PipelineVersion, ProviderId, Region, RuntimeId, TenantId, spec::Modality};

/// Counts the times that a runtime registered, from 1: what ran before a restart is somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(NonZeroU64);

impl Incarnation {
    /// A runtime's first.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// An incarnation as received; `None` for zero, which is none.
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// As a number.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The one after.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One incarnation of a runtime.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// The runtime.
    pub runtime: RuntimeId,
    /// Which of its lives.
    pub incarnation: Incarnation,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.runtime, self.incarnation)
    }
}

/// Counts the requests for leases that one life of a runtime makes, so that one that is repeated after
/// a lost answer has no second effect, and one that was overtaken by a later one has none at all.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Attempt(pub u64);

/// Why a holder was told to let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhyRevoked {
    /// An operator moves this session.
    Transfer,
    /// Its runtime is being emptied.
    Drain,
    /// Its region is left (F-096).
    Region,
    /// An operator ends it.
    Operator,
}

impl WhyRevoked {
    /// Its name, as signals and records write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transfer => "transfer",
            Self::Drain => "drain",
            Self::Region => "region",
            Self::Operator => "operator",
        }
    }
}

/// What a session was bound to when it was first placed; it keeps that over all its placements (P26).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// Whose session it is.
    pub tenant: TenantId,
    /// The version of its pipeline (F-099).
    pub pipeline: PipelineVersion,
    /// The version of its policy (F-102).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The version of its provider configuration (F-102).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub providers: Option<String>,
}

impl Binding {
    /// The versions that go with its pipeline's.
    pub fn versions(&self) -> Versions {
        Versions {
            policy: self.policy.clone(),
            providers: self.providers.clone(),
        }
    }
}

/// What is published with versions of its own and goes with a pipeline's version (F-102).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Versions {
    /// The policy's; `None` if none was rolled out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The provider settings'; `None` if none were rolled out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub providers: Option<String>,
}

impl Versions {
    /// Whether nothing was rolled out besides the pipeline.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The versions of the control protocol that this build speaks: N and N-1 (NF-032).
pub const PROTOCOL: ProtocolWindow = ProtocolWindow {
    oldest: 1,
    newest: 1,
};

/// A stretch of protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtocolWindow {
    /// The oldest that is spoken.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

impl ProtocolWindow {
    /// The newest version that both speak.
    pub fn common(self, other: Self) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

/// How clients reach a runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// `websocket`, `telephony`, `livekit`.
    pub transport: String,
    /// Where.
    pub url: String,
}

/// What a runtime says of itself when it registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Where it stands.
    pub region: Region,
    /// How it is reached.
    pub endpoints: Vec<Endpoint>,
    /// Sessions that it takes.
    pub capacity: u32,
    /// Its build, for people.
    pub build: String,
    /// What it speaks with the control plane.
    pub protocol: ProtocolWindow,
    /// The newest event schema that it reads.
    pub events: String,
    /// What else it can: models, transports, hardware; pipelines may ask for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The label by which a runtime says in which region the archive of its timelines lies, if not in its own.
pub const ARCHIVE_REGION: &str = "archive_region";

impl Description {
    /// The regions in which it processes what sessions say, and stores it (F-168).
    pub fn regions(&self) -> impl Iterator<Item = &str> {
        let archive = self.labels.get(ARCHIVE_REGION).map(String::as_str);
        [self.region.as_str()].into_iter().chain(archive)
    }
}

/// A provider that a runtime would ask first and leaves alone because it fails (F-112).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outage {
    /// What it does.
    pub modality: Modality,
    /// Which.
    pub provider: ProviderId,
    /// Who is asked instead; `None`: nobody is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alternate: Option<ProviderId>,
}

/// Most outages that a runtime tells of.
pub const MAX_OUTAGES: usize = 16;

/// What becomes of the sessions of a runtime that is being emptied (F-106).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Emptying {
    /// They go on until their users hang up.
    Wait,
    /// Each ends once what it says is said.
    Finish,
    /// Each is let go once what it says is said, for another runtime to go on with.
    Move,
}

impl Emptying {
    /// Its name, as records and commands write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Finish => "finish",
            Self::Move => "move",
        }
    }
}

/// How far the removal of what is over has come (F-116).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RemovalStep {
    /// It is about to go.
    Planned,
    /// It is gone.
    Done,
    /// It could not be removed.
    Failed,
}

/// What a runtime removes of its timelines because it is over, for the audit trail (F-116).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// How far it has come.
    pub step: RemovalStep,
    /// Recordings by name, as archives have it; at most [`MAX_REMOVED`].
    pub recordings: Vec<String>,
    /// What is in the way, if it failed; else empty.
    pub why: String,
}

/// Most recordings that one [`Removal`] names.
pub const MAX_REMOVED: usize = 32;

/// How a runtime fares, as it says with each heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Sessions that it holds.
    pub sessions: u32,
    /// Processor time, in percent of the machine's.
    pub cpu_percent: u8,
    /// Whether all that it needs can be reached; if not it keeps what it has and gets nothing new (F-108).
    pub ready: bool,
    /// Whether it measures itself as overloaded (F-172).
    pub overloaded: bool,
    /// Providers that it would ask first and that fail (F-112).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outages: Vec<Outage>,
}

/// What the session's runtime says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionPhase {
    /// The client has connected, nothing has been said.
    Connected,
    /// It goes on.
    Running,
    /// It goes on with less.
    Degraded,
    /// Its client is gone and may come back (F-091).
    Waiting,
    /// It is over.
    Ended,
}

impl SessionPhase {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Running => "running",
            Self::Degraded => "degraded",
            Self::Waiting => "waiting",
            Self::Ended => "ended",
        }
    }
}

/// What can be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A pipeline spec.
    Pipeline,
    /// A policy bundle.
    Policy,
    /// How providers are chosen and called: a policy bundle's surface of its own, so that it rolls
    /// forward and back without the pipeline (F-102).
    Providers,
    /// What runtimes take on.
    Limits,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Pipeline, Self::Policy, Self::Providers, Self::Limits];

    /// Its name, as keys and commands write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pipeline => "pipeline",
            Self::Policy => "policy",
            Self::Providers => "providers",
            Self::Limits => "limits",
        }
    }
}
