//! How things ended: provider calls, admissions, turns.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a provider call ended (F-160; providers.md §1).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeClass {
    /// The whole answer came.
    Success,
    /// Too slow.
    Timeout,
    /// No capacity, or a rate limit.
    Overload,
    /// Refused: credentials, policy, or a request that cannot work.
    Blocked,
    /// Broken: connection, server, model.
    InfrastructureFailure,
    /// Stopped by us; never the provider's fault.
    Cancelled,
}

impl OutcomeClass {
    /// The class's name, as reasons and labels write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Timeout => "timeout",
            Self::Overload => "overload",
            Self::Blocked => "blocked",
            Self::InfrastructureFailure => "infrastructure_failure",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What followed a failed attempt at a provider (providers.md §4).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum RetryDecision {
    /// Nothing: it succeeded, or nothing was left to try.
    None,
    /// The same provider again.
    Retry,
    /// The next provider.
    ProviderSwitch,
    /// The next provider, as the plan's alternative path.
    Fallback,
}

impl RetryDecision {
    /// The decision's name, as reports write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Retry => "retry",
            Self::ProviderSwitch => "provider_switch",
            Self::Fallback => "fallback",
        }
    }
}
