//! Which version a new session gets, and how that may change (F-093, F-100, F-165, NF-030).
//!
//! A running session keeps what it was bound to; a rollout decides about new ones only.

mod approval;
mod budget;
mod change;
mod cohort;
mod gate;
mod readings;

use std::collections::BTreeSet;

use rspp_proto::{SessionId, TenantId, WallClock};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use approval::{ApprovalError, ApprovalPolicy, Proposal, ProposalState, Proposed};
pub use budget::{BudgetReading, BurnAlert, ErrorBudget, Freeze, Window};
pub use change::{Change, ChangeError};
pub use cohort::{COHORTS, Cohort};
pub use gate::{Breach, Gate, Judgement, Reading};
pub use readings::{Judged, Readings, Reported};

use crate::registry::{Kind, VersionName};

/// Most earlier versions that a rollout remembers to go back to.
pub const MAX_HISTORY: usize = 16;
/// Most tenants of an allowlist; more are better served by a rollout of their own.
pub const MAX_ALLOWLIST: usize = 1_000;

/// Who gets the candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Strategy {
    /// These tenants, whatever else they ask for.
    Allowlist {
        /// Who.
        tenants: BTreeSet<TenantId>,
    },
    /// That share of all sessions, the same sessions whenever they ask.
    Percentage {
        /// 0 is nobody, 100 everybody.
        percent: u8,
    },
    /// These tenants, and that share of all others: watched by a gate, which ends it on a breach.
    Canary {
        /// Who, in any case.
        tenants: BTreeSet<TenantId>,
        /// 0 is nobody, 100 everybody.
        percent: u8,
        /// What must not happen.
        gate: Gate,
    },
}

impl Strategy {
    /// Its name.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Allowlist { .. } => "allowlist",
            Self::Percentage { .. } => "percentage",
            Self::Canary { .. } => "canary",
        }
    }

    fn parts(&self) -> (Option<&BTreeSet<TenantId>>, u8) {
        match self {
            Self::Allowlist { tenants } => (Some(tenants), 0),
            Self::Percentage { percent } => (None, *percent),
            Self::Canary {
                tenants, percent, ..
            } => (Some(tenants), *percent),
        }
    }
}

/// A version on trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// The version.
    pub version: VersionName,
    /// Who gets it.
    pub strategy: Strategy,
    /// While paused, nobody new gets it.
    #[serde(default)]
    pub paused: bool,
    /// Since when it has been tried.
    pub since: WallClock,
}

/// Which version of a line new sessions get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Of what.
    pub kind: Kind,
    /// What all its versions have in common.
    pub line: String,
    /// What everybody gets who does not get the candidate.
    pub stable: VersionName,
    /// What is on trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Candidate>,
    /// What was stable before, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<VersionName>,
    /// Why nothing new may be rolled out, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Freeze>,
    /// Counts changes; names the snapshot that a session was resolved by.
    pub generation: u64,
}

/// Why a session gets the version that it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// It is what everybody gets.
    Stable,
    /// Its tenant is on the list.
    Allowlisted,
    /// It falls into the share.
    Cohort,
    /// It asked for it.
    Requested,
}

impl Why {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Allowlisted => "allowlisted",
            Self::Cohort => "cohort",
            Self::Requested => "requested",
        }
    }
}

/// The version of a session, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The version.
    pub version: VersionName,
    /// Why.
    pub why: Why,
    /// Names the state of the rollout that it was resolved by, e.g. `version-resolution/greeter/7`.
    pub snapshot: String,
}

/// A version was asked for that new sessions cannot get.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "new sessions cannot ask for `{requested}`; they can for {}",
    list(offered)
)]
pub struct NotOffered {
    /// What was asked for.
    pub requested: VersionName,
    /// What can be.
    pub offered: Vec<VersionName>,
}

fn list(versions: &[VersionName]) -> String {
    let names: Vec<_> = versions.iter().map(VersionName::as_str).collect();
    names.join(", ")
}

impl Rollout {
    /// A line's first version, for everybody.
    pub fn first(kind: Kind, version: VersionName) -> Self {
        Self {
            kind,
            line: version.line().to_owned(),
            stable: version,
            candidate: None,
            history: Vec::new(),
            frozen: None,
            generation: 1,
        }
    }

    /// The version that a new session gets.
    ///
    /// An allowlist goes over a request (a tenant on it gets the candidate); a request goes over the
    /// share, but only for what is offered: the stable version, those before it and, if the rollout is
    /// not paused, the candidate. A version that is merely published cannot be had by naming it.
    pub fn resolve(
        &self,
        tenant: &TenantId,
        session: &SessionId,
        requested: Option<&VersionName>,
    ) -> Result<Resolution, NotOffered> {
        let resolution = |version: &VersionName, why| Resolution {
            version: version.clone(),
            why,
            snapshot: format!("version-resolution/{}/{}", self.line, self.generation),
        };
        let candidate = self.candidate.as_ref().filter(|it| !it.paused);
        if let Some(candidate) = candidate
            && let (Some(tenants), _) = candidate.strategy.parts()
            && tenants.contains(tenant)
        {
            return Ok(resolution(&candidate.version, Why::Allowlisted));
        }
        if let Some(requested) = requested {
            let offered: Vec<_> = std::iter::once(&self.stable)
                .chain(candidate.map(|candidate| &candidate.version))
                .chain(&self.history)
                .cloned()
                .collect();
            return if offered.contains(requested) {
                Ok(resolution(requested, Why::Requested))
            } else {
                Err(NotOffered {
                    requested: requested.clone(),
                    offered,
                })
            };
        }
        if let Some(candidate) = candidate {
            let (_, percent) = candidate.strategy.parts();
            if Cohort::of(tenant, session).is_within(percent) {
                return Ok(resolution(&candidate.version, Why::Cohort));
            }
        }
        Ok(resolution(&self.stable, Why::Stable))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn version(name: &str) -> VersionName {
        VersionName::new(name).unwrap()
    }

    pub(crate) fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    pub(crate) fn trying(strategy: Strategy) -> Rollout {
        Rollout {
            candidate: Some(Candidate {
                version: version("desk-2"),
                strategy,
                paused: false,
                since: WallClock(0),
            }),
            history: vec![version("desk-0")],
            ..Rollout::first(Kind::Pipeline, version("desk-1"))
        }
    }

    fn session(number: usize) -> SessionId {
        SessionId::new(format!("call-{number}")).unwrap()
    }

    /// F-093: one session in ten, give or take, and the same ones every time.
    #[test]
    fn a_tenth_of_the_sessions_gets_the_candidate() {
        let rollout = trying(Strategy::Percentage { percent: 10 });
        let resolve = |number| {
            let found = rollout.resolve(&tenant("acme"), &session(number), None);
            found.unwrap().version
        };
        let got: Vec<_> = (0..10_000)
            .filter(|n| resolve(*n) == version("desk-2"))
            .collect();
        assert!((900..=1_100).contains(&got.len()), "{} of 10000", got.len());
        let again: Vec<_> = (0..10_000)
            .filter(|n| resolve(*n) == version("desk-2"))
            .collect();
        assert_eq!(got, again);
        // Who is in at a tenth is in at a fifth.
        let wider = trying(Strategy::Percentage { percent: 20 });
        for number in got {
            let found = wider
                .resolve(&tenant("acme"), &session(number), None)
                .unwrap();
            assert_eq!(found.version, version("desk-2"));
        }
    }

    #[track_caller]
    fn check(rollout: &Rollout, by: &str, requested: Option<&str>, expected: Option<(&str, Why)>) {
        let requested = requested.map(version);
        let found = rollout.resolve(&tenant(by), &session(1), requested.as_ref());
        let found = found.ok().map(|found| (found.version, found.why));
        assert_eq!(found, expected.map(|(name, why)| (version(name), why)));
    }

    /// F-093: those on the list, the part of all others that the cohort says, and nobody else.
    #[test]
    fn who_gets_what() {
        let tenants = BTreeSet::from([tenant("acme")]);
        let list = trying(Strategy::Allowlist {
            tenants: tenants.clone(),
        });
        check(&list, "acme", None, Some(("desk-2", Why::Allowlisted)));
        check(
            &list,
            "acme",
            Some("desk-1"),
            Some(("desk-2", Why::Allowlisted)),
        );
        check(&list, "other", None, Some(("desk-1", Why::Stable)));
        check(
            &list,
            "other",
            Some("desk-2"),
            Some(("desk-2", Why::Requested)),
        );
        check(
            &list,
            "other",
            Some("desk-0"),
            Some(("desk-0", Why::Requested)),
        );
        check(&list, "other", Some("desk-9"), None);

        let all = trying(Strategy::Percentage { percent: 100 });
        check(&all, "other", None, Some(("desk-2", Why::Cohort)));
        check(
            &all,
            "other",
            Some("desk-1"),
            Some(("desk-1", Why::Requested)),
        );
        let none = trying(Strategy::Percentage { percent: 0 });
        check(&none, "other", None, Some(("desk-1", Why::Stable)));

        let canary = trying(Strategy::Canary {
            tenants,
            percent: 0,
            gate: Gate::default(),
        });
        check(&canary, "acme", None, Some(("desk-2", Why::Allowlisted)));
        check(&canary, "other", None, Some(("desk-1", Why::Stable)));

        let mut paused = all;
        paused.candidate.as_mut().unwrap().paused = true;
        check(&paused, "other", None, Some(("desk-1", Why::Stable)));
        check(&paused, "other", Some("desk-2"), None);
    }
}
