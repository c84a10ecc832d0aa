//! The rules of the whole control plane, as one document that changes as a whole.

use serde::{Deserialize, Serialize};

use crate::{
    admission,
    failover::RegionPolicy,
    rollout::{ApprovalPolicy, ErrorBudget},
    routing::Residency,
};

/// What operators decide once for everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Governance {
    /// How many sessions tenants may open, and what is done when nothing can be counted.
    pub admission: admission::Policy,
    /// Where tenants' sessions may be (F-168).
    pub residency: Residency,
    /// What needs approval (F-165).
    pub approvals: ApprovalPolicy,
    /// When regions are left (F-096).
    pub regions: RegionPolicy,
    /// How many failures are too many (NF-030).
    pub error_budget: ErrorBudget,
}

impl Governance {
    /// Which version of the rules it is; 0 if nobody has set any.
    pub fn version(&self) -> u64 {
        self.admission.version
    }

    /// These rules in place of `before`.
    #[must_use]
    pub fn following(mut self, before: &Self) -> Self {
        self.admission.version = before.version() + 1;
        self
    }
}
