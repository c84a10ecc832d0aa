//! The rules of the whole control plane, as one document that changes as a whole.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    admission,
    failover::RegionPolicy,
    keeping::Keeping,
    outage::OutagePolicy,
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
    /// What is done where providers fail (F-112).
    pub outages: OutagePolicy,
    /// How many failures are too many (NF-030).
    pub error_budget: ErrorBudget,
    /// How long what sessions leave behind is kept (F-116). Only written once somebody has decided it: builds that
    /// do not know it yet read all other rules meanwhile.
    #[serde(skip_serializing_if = "Keeping::is_default")]
    pub retention: Keeping,
}

/// Rules that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{rule}: {what}")]
pub struct GovernanceError {
    /// Where, as the document has it.
    pub rule: &'static str,
    /// What is wrong.
    pub what: String,
}

impl Governance {
    /// Refuses rules that cannot be meant.
    pub fn check(&self) -> Result<(), GovernanceError> {
        let wrong = |rule, what: String| Err(GovernanceError { rule, what });
        if let Err((rule, what)) = self.regions.check() {
            return wrong(rule, what);
        }
        if let Err((rule, what)) = self.outages.check() {
            return wrong(rule, what);
        }
        let budget = &self.error_budget;
        if budget.allowed_per_10k > 10_000 {
            let what = format!("{} of 10000 cannot fail", budget.allowed_per_10k);
            return wrong("error_budget.allowed_per_10k", what);
        }
        if budget.slow_burn_tenths > budget.fast_burn_tenths {
            let what = "is above fast_burn_tenths".to_owned();
            return wrong("error_budget.slow_burn_tenths", what);
        }
        for (tenant, regions) in &self.residency.tenants {
            if regions.is_empty() {
                let what = format!("{tenant} may be nowhere; leave it out to allow all regions");
                return wrong("residency.tenants", what);
            }
        }
        self.retention
            .check()
            .or_else(|what| wrong("retention", what))
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_cannot_be_meant_are_refused() {
        let rules = |alter: fn(&mut Governance)| {
            let mut rules = Governance::default();
            alter(&mut rules);
            rules.check().map_err(|error| error.to_string())
        };
        assert_eq!(rules(|_| ()), Ok(()));
        let refused = |alter, expected: &str| assert_eq!(rules(alter), Err(expected.to_owned()));
        refused(
            |it| it.regions.ill_percent = 101,
            "regions.ill_percent: 101 is no share from 1 to 100 %",
        );
        refused(
            |it| it.regions.well_percent = 60,
            "regions.well_percent: 60 is not below ill_percent, 60: regions would flap",
        );
        refused(
            |it| it.outages.out_percent = 0,
            "outages.out_percent: 0 is no share from 1 to 100 %",
        );
        refused(
            |it| it.outages.answers.push(crate::outage::Answer::Region),
            "outages.answers: each answer comes once",
        );
        refused(
            |it| it.error_budget.allowed_per_10k = 10_001,
            "error_budget.allowed_per_10k: 10001 of 10000 cannot fail",
        );
        refused(
            |it| it.error_budget.slow_burn_tenths = 145,
            "error_budget.slow_burn_tenths: is above fast_burn_tenths",
        );
        refused(
            |it| {
                let acme = rspp_proto::TenantId::new("acme").unwrap();
                it.residency.tenants.entry(acme).or_default();
            },
            "residency.tenants: acme may be nowhere; leave it out to allow all regions",
        );
    }
}
