//! How providers are chosen, called, left alone and paid for, and what follows when none is left.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Modality;
use crate::ProviderId;

/// Providers by modality, preferred first.
pub type Bindings = BTreeMap<Modality, Vec<ProviderId>>;

/// The rules for providers as authored, part by part: what is absent comes from the layer before
/// (F-080).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProvidersSpec {
    /// Who is asked first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<Box<ChoicePolicy>>,
    /// How a call is repeated, moved and hedged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<Box<CallPolicy>>,
    /// When a provider is left alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit: Option<Box<CircuitPolicy>>,
    /// What may be spent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caps: Option<Box<CostCaps>>,
    /// What the user gets when no provider is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Box<FailurePolicy>>,
}

impl ProvidersSpec {
    /// Whether nothing is said here.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The rules for providers that a turn runs under; frozen with its plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderPolicy {
    /// Who is asked first.
    pub choice: ChoicePolicy,
    /// How a call is repeated, moved and hedged.
    pub calls: CallPolicy,
    /// When a provider is left alone.
    pub circuit: CircuitPolicy,
    /// What may be spent.
    pub caps: CostCaps,
    /// What the user gets when no provider is left.
    pub failure: FailurePolicy,
}

/// Who is asked first (providers.md §5): the first of these rules that knows the session, else what
/// is bound to the modality, else whatever there is. Those it names are ordered by health, then by
/// price, then as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChoicePolicy {
    /// By tenant.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tenant: BTreeMap<String, Bindings>,
    /// By the session's attribute `language`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub language: BTreeMap<String, Bindings>,
    /// By the session's attribute `region`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub region: BTreeMap<String, Bindings>,
    /// By the session's attribute `cost_tier`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cost_tier: BTreeMap<String, Bindings>,
    /// How old news of health and price may be, in milliseconds; older news is no news (F-066).
    #[schemars(range(min = 1))]
    pub max_signal_age_ms: u64,
}

impl Default for ChoicePolicy {
    fn default() -> Self {
        Self {
            tenant: BTreeMap::new(),
            language: BTreeMap::new(),
            region: BTreeMap::new(),
            cost_tier: BTreeMap::new(),
            max_signal_age_ms: 30_000,
        }
    }
}

/// How a call is repeated, moved and hedged (providers.md §4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CallPolicy {
    /// Attempts at one provider.
    #[schemars(range(min = 1, max = 16))]
    pub attempts_per_provider: u32,
    /// Providers tried in one call, at most.
    #[schemars(range(min = 1, max = 16))]
    pub max_providers: u32,
    /// Wait before the second attempt, in milliseconds; doubles with each further one. A provider's
    /// own wish wins.
    pub backoff_ms: u64,
    /// Least time that makes another attempt worth while, in milliseconds.
    #[schemars(range(min = 1))]
    pub least_useful_ms: u64,
    /// Whether a refused request may be put to another provider.
    pub switch_on_blocked: bool,
    /// How many times as long a model on this machine may be silent: one that is slow is busy, and
    /// asking again makes it slower.
    #[schemars(range(min = 1, max = 100))]
    pub local_patience: u32,
    /// By modality: silence after which the next provider is asked as well, in milliseconds. The
    /// first to speak wins, the other is stopped; both are paid for. Only `stt`, once the user has
    /// fallen silent, `llm` and `tts`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("propertyNames" = { "enum": ["stt", "llm", "tts"] }))]
    pub hedge_after_ms: BTreeMap<Modality, u64>,
    /// How long later calls go to others first once a provider had to be given up, in milliseconds
    /// (F-047). 0 asks it again with the next call.
    pub stay_away_ms: u64,
}

impl Default for CallPolicy {
    fn default() -> Self {
        Self {
            attempts_per_provider: 2,
            max_providers: 5,
            backoff_ms: 50,
            least_useful_ms: 100,
            switch_on_blocked: false,
            local_patience: 5,
            hedge_after_ms: BTreeMap::new(),
            stay_away_ms: 30_000,
        }
    }
}

/// When a provider's circuit opens and for how long (F-057).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(deny_unknown_fields, default)]
pub struct CircuitPolicy {
    /// Calls looked back on, at most.
    #[schemars(range(min = 1, max = 1000))]
    pub window: u32,
    /// How far back, in milliseconds.
    #[schemars(range(min = 1))]
    pub window_ms: u64,
    /// Calls needed before a rate means anything.
    #[schemars(range(min = 1, max = 1000))]
    pub least_calls: u32,
    /// Share of faults at which the circuit opens, in percent.
    #[schemars(range(min = 1, max = 100))]
    pub fault_percent: u32,
    /// How long it stays open, in milliseconds; doubles each time a trial fails, up to 16 times as
    /// long.
    #[schemars(range(min = 1))]
    pub cool_down_ms: u64,
}

impl Default for CircuitPolicy {
    fn default() -> Self {
        Self {
            window: 20,
            window_ms: 30_000,
            least_calls: 5,
            fault_percent: 50,
            cool_down_ms: 2_000,
        }
    }
}

/// What may be spent (F-058).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CostCaps {
    /// In one turn.
    pub turn: Cap,
    /// In a whole session.
    pub session: Cap,
    /// What follows when a cap is reached.
    pub action: CapAction,
}

/// Most of each thing that is paid for; absent means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cap {
    /// Tokens that models write.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub tokens: Option<u64>,
    /// Seconds of the user's audio that are recognised.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub audio_seconds: Option<u64>,
    /// Characters that voices speak.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub tts_characters: Option<u64>,
}

/// What follows when a cap is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CapAction {
    /// What fits is said, up to the end of a clause; the rest is left out.
    #[default]
    Truncate,
    /// What fits is said, and its model is asked to say the rest in short, within the cap. Where that
    /// cannot be afforded, and of what is heard, the rest is left out.
    Summarize,
    /// The turn ends.
    Refuse,
}

/// What the user gets when a turn fails for good (F-135, F-137).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FailurePolicy {
    /// What the agent says then, such as an apology and an invitation to try again; absent means
    /// nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// The runtime's recording of the reply, by name: played when it is the voice that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recording: Option<String>,
    /// Whether the session goes on in text when its voice has failed.
    pub text_only: bool,
    /// How long it does so before the voice is tried again, in milliseconds.
    #[schemars(range(min = 1))]
    pub voice_retry_ms: u64,
}

impl Default for FailurePolicy {
    fn default() -> Self {
        Self {
            reply: None,
            recording: None,
            text_only: false,
            voice_retry_ms: 15_000,
        }
    }
}
