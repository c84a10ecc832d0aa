//! How a call may be repeated and moved, as the machine needs it.

use std::{collections::BTreeSet, time::Duration};

use rspp_proto::{
    ProviderId,
    spec::{AdaptiveAction, Budgets, CallPolicy, Modality},
};

/// How a call may be repeated and moved; frozen with the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvocationPolicy {
    /// Attempts at one provider.
    pub attempts_per_provider: u32,
    /// Providers tried, at most.
    pub max_providers: usize,
    /// What the plan authorises.
    pub actions: BTreeSet<AdaptiveAction>,
    /// Whether a refused request may be put to another provider.
    pub switch_on_blocked: bool,
    /// Wait before the second attempt; doubles with each further one. A provider's own wish wins.
    pub backoff: Duration,
    /// Least time that makes another attempt worth while.
    pub least_useful: Duration,
    /// Silence after which another provider is asked as well.
    pub hedge_after: Option<Duration>,
}

/// Somebody who may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub provider: ProviderId,
    /// How long it may be silent.
    pub patience: Patience,
}

/// How long a provider may be silent before it is given up (P14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// From an attempt's start to its first chunk.
    pub first_byte: Duration,
    /// Between two chunks.
    pub inter_chunk: Duration,
}

impl InvocationPolicy {
    /// The rules of a plan for calls of one modality.
    pub fn of(calls: &CallPolicy, actions: &BTreeSet<AdaptiveAction>, modality: Modality) -> Self {
        let hedge_after = calls.hedge_after_ms.get(&modality);
        Self {
            attempts_per_provider: calls.attempts_per_provider,
            max_providers: calls.max_providers as usize,
            actions: actions.clone(),
            switch_on_blocked: calls.switch_on_blocked,
            backoff: Duration::from_millis(calls.backoff_ms),
            least_useful: Duration::from_millis(calls.least_useful_ms),
            hedge_after: hedge_after.copied().map(Duration::from_millis),
        }
    }
}

impl Patience {
    /// The patience that the plan's budgets grant a networked provider.
    pub fn of(budgets: &Budgets) -> Self {
        Self {
            first_byte: Duration::from_millis(budgets.provider_first_byte_ms),
            inter_chunk: Duration::from_millis(budgets.provider_inter_chunk_ms),
        }
    }

    /// The patience for a model on this machine, where that for a networked provider is `self`.
    #[must_use]
    pub fn local(self, calls: &CallPolicy) -> Self {
        Self {
            first_byte: self.first_byte * calls.local_patience,
            inter_chunk: self.inter_chunk * calls.local_patience,
        }
    }
}
