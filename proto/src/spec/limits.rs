//! What a node of the runtime takes on: quotas by tenant, thresholds of overload, and what is done
//! about either.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ProviderId, TenantId};

/// Who comes first when there is not enough for all (F-173).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Somebody is waiting for an answer.
    #[default]
    Interactive,
    /// Nobody is on the line: summaries, evaluations, outbound dialling. Shed first.
    Background,
}

impl Priority {
    /// The class's name, as labels write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Background => "background",
        }
    }
}

/// What is done about something beyond a limit (F-049, F-050).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OverLimit {
    /// It is refused.
    #[default]
    Reject,
    /// It is refused for now, with a time after which to ask again.
    Defer,
    /// It waits here until there is room, for `max_wait_ms` at most.
    Throttle,
    /// It is let in and served in the pipeline's `degrade` posture; without one it is deferred.
    Degrade,
}

impl OverLimit {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Reject, Self::Defer, Self::Throttle, Self::Degrade];

    /// Its name, as specs write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reject => "reject",
            Self::Defer => "defer",
            Self::Throttle => "throttle",
            Self::Degrade => "degrade",
        }
    }
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// How many.
    pub limit: u64,
    /// What is done about more.
    #[serde(default)]
    pub over: OverLimit,
}

impl Quota {
    /// So many; more is refused.
    pub const fn at(limit: u64) -> Self {
        Self {
            limit,
            over: OverLimit::Reject,
        }
    }

    /// Something else is done about more.
    #[must_use]
    pub const fn then(self, over: OverLimit) -> Self {
        Self { over, ..self }
    }
}

/// The limits of a tenant, or of a node for all tenants together; what is absent is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QuotasSpec {
    /// Sessions at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<Quota>,
    /// Sessions opened in a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions_per_minute: Option<Quota>,
    /// Turns at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turns: Option<Quota>,
    /// Turns opened in a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turns_per_minute: Option<Quota>,
    /// Tokens that language models read and write in a minute. Known only afterwards: what a turn
    /// takes beyond it is owed by the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<Quota>,
    /// Share of shared queues, against that of other tenants (F-174); 1 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub weight: Option<u32>,
    /// Most of one shared pool or node that a tenant may hold at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub slots: Option<u32>,
}

/// When a measured load counts as too high (F-172). With hysteresis: what rose to `high` has to fall
/// to `low` again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// At most this: recovered.
    pub low: u64,
    /// From here on: no newcomers, and the degrade posture.
    pub high: u64,
    /// From here on: background work is shed (F-173).
    pub severe: u64,
}

impl Threshold {
    const fn new(low: u64, high: u64, severe: u64) -> Self {
        Self { low, high, severe }
    }
}

/// What overload is measured by; what is absent is not watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OverloadSpec {
    /// Processor time of the process, in percent of the machine's.
    pub cpu_percent: Option<Threshold>,
    /// How late a task wakes that only measures that, in milliseconds: the worst of a reading.
    pub scheduler_late_ms: Option<Threshold>,
    /// How late frames leave for users, 99th percentile in milliseconds (P22).
    pub output_late_ms: Option<Threshold>,
    /// Calls and inference that wait for a slot.
    pub queue_depth: Option<Threshold>,
    /// Provider calls under way.
    pub provider_calls: Option<Threshold>,
    /// How often is measured, in milliseconds.
    #[schemars(range(min = 1))]
    pub every_ms: u64,
    /// How long all has to be low before the load counts as lower.
    pub recover_after_ms: u64,
    /// What newcomers are told.
    pub newcomers: OverLimit,
}

impl Default for OverloadSpec {
    fn default() -> Self {
        Self {
            cpu_percent: None,
            scheduler_late_ms: Some(Threshold::new(25, 100, 500)),
            output_late_ms: Some(Threshold::new(8, 15, 60)),
            queue_depth: None,
            provider_calls: None,
            every_ms: 250,
            recover_after_ms: 2_000,
            newcomers: OverLimit::Defer,
        }
    }
}

/// Gathering calls of several sessions into one (F-051).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchingSpec {
    /// Longest that a call waits for others, in milliseconds; less if its deadline asks for it.
    #[schemars(range(min = 1))]
    pub window_ms: u64,
    /// Most calls of one batch.
    #[schemars(range(min = 2))]
    pub max_calls: u32,
}

/// What a node of the runtime takes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSpec {
    /// For all tenants together.
    pub node: QuotasSpec,
    /// For each tenant that is not named.
    pub tenant: QuotasSpec,
    /// For tenants by name, in place of `tenant`.
    pub tenants: BTreeMap<TenantId, QuotasSpec>,
    /// Longest that a session or turn waits where the policy is to throttle.
    pub max_wait_ms: u64,
    /// Sessions that may wait at once.
    pub max_waiting: u32,
    /// When the node counts as overloaded.
    pub overload: OverloadSpec,
    /// What the runtime itself may cost per event, 99th percentile in microseconds (F-052).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_overhead_p99_us: Option<u64>,
    /// Batching by language model; off where absent.
    pub batching: BTreeMap<ProviderId, BatchingSpec>,
}

impl Default for LimitsSpec {
    fn default() -> Self {
        Self {
            node: QuotasSpec {
                sessions: Some(Quota::at(10_000)),
                turns: Some(Quota::at(10_000)),
                ..QuotasSpec::default()
            },
            tenant: QuotasSpec::default(),
            tenants: BTreeMap::new(),
            max_wait_ms: 5_000,
            max_waiting: 1_024,
            overload: OverloadSpec::default(),
            kernel_overhead_p99_us: None,
            batching: BTreeMap::new(),
        }
    }
}

/// What a pipeline does without under overload, from the next turn on (F-048).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DegradeSpec {
    /// Messages of the conversation that the model is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_context_messages: Option<u64>,
    /// Most tokens of a reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_tokens: Option<u64>,
    /// Rate of the agent's audio, in hertz, where the voice's own is higher.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 8000))]
    pub sample_rate: Option<u32>,
    /// Cheaper providers by modality, in place of all others.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("propertyNames" = { "enum": ["llm", "tts"] }))]
    pub provider_bindings: BTreeMap<super::Modality, Vec<ProviderId>>,
    /// Less evidence than asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recording_level: Option<super::RecordingLevel>,
}
