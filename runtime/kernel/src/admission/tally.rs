//! What was decided, counted by tenant.

use std::collections::BTreeMap;

use rspp_proto::{
    MetricSample, TenantId,
    metric::{Metric, MetricLabel},
};
use serde::{Deserialize, Serialize};

use super::Verdict;

/// Tenants that a report names; the rest is added up.
const MAX_NAMED: usize = 100;

/// How a report calls the tenants that it does not name.
pub const OTHER_TENANTS: &str = "_other";

/// Decisions of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Let in.
    pub admitted: u64,
    /// Of these, served in the degrade posture.
    pub degraded: u64,
    /// Kept waiting, each time that they asked.
    pub throttled: u64,
    /// Told to come back.
    pub deferred: u64,
    /// Refused.
    pub rejected: u64,
}

impl Tally {
    pub(super) fn count(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Admit => self.admitted += 1,
            Verdict::Degrade => {
                self.admitted += 1;
                self.degraded += 1;
            }
            Verdict::Throttle { .. } => self.throttled += 1,
            Verdict::Defer { .. } => self.deferred += 1,
            Verdict::Reject => self.rejected += 1,
        }
    }

    fn add(&mut self, other: &Self) {
        self.admitted += other.admitted;
        self.degraded += other.degraded;
        self.throttled += other.throttled;
        self.deferred += other.deferred;
        self.rejected += other.rejected;
    }

    /// The counts, by what was decided; who was degraded was admitted too.
    fn decisions(&self) -> [(&'static str, u64); 5] {
        [
            ("admitted", self.admitted),
            ("degraded", self.degraded),
            ("throttled", self.throttled),
            ("deferred", self.deferred),
            ("rejected", self.rejected),
        ]
    }

    fn asked(&self) -> u64 {
        self.admitted + self.throttled + self.deferred + self.rejected
    }
}

/// What one tenant, or the node, has under way and has had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountReport {
    /// Sessions that are open.
    pub open_sessions: u64,
    /// Turns that are open.
    pub open_turns: u64,
    /// Decisions about sessions.
    pub sessions: Tally,
    /// Decisions about turns.
    pub turns: Tally,
    /// Tokens that language models read and wrote.
    pub tokens: u64,
    /// Work that was shed where it is scheduled.
    pub shed: u64,
}

impl AccountReport {
    pub(super) fn add(&mut self, other: &Self) {
        self.open_sessions += other.open_sessions;
        self.open_turns += other.open_turns;
        self.sessions.add(&other.sessions);
        self.turns.add(&other.turns);
        self.tokens += other.tokens;
        self.shed += other.shed;
    }
}

/// Decisions of a node, by tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmissionReport {
    /// All tenants together.
    pub node: AccountReport,
    /// The tenants that asked most, by name, and [`OTHER_TENANTS`]: never more than a metric can
    /// have labels.
    pub tenants: BTreeMap<String, AccountReport>,
}

impl AdmissionReport {
    pub(super) fn new<'a>(
        node: AccountReport,
        tenants: impl Iterator<Item = (&'a TenantId, AccountReport)>,
        mut others: AccountReport,
    ) -> Self {
        let mut ranked: Vec<_> = tenants.collect();
        ranked.sort_by_key(|(tenant, account)| {
            let asked = account.sessions.asked() + account.turns.asked();
            (std::cmp::Reverse(asked), *tenant)
        });
        let rest = ranked.split_off(ranked.len().min(MAX_NAMED));
        for (_, account) in &rest {
            others.add(account);
        }
        let mut named: BTreeMap<_, _> = ranked
            .into_iter()
            .map(|(tenant, account)| (tenant.to_string(), account))
            .collect();
        if others != AccountReport::default() {
            named.insert(OTHER_TENANTS.to_owned(), others);
        }
        Self {
            node,
            tenants: named,
        }
    }

    /// The same as measurements, by tenant (F-050); what never happened is left out.
    pub fn samples(&self) -> Vec<MetricSample> {
        use MetricLabel as L;
        let mut samples = Vec::new();
        for (tenant, account) in &self.tenants {
            for (subject, tally) in [("session", account.sessions), ("turn", account.turns)] {
                for (decision, count) in tally.decisions() {
                    let labels = [
                        (L::TenantId, tenant.as_str()),
                        (L::Subject, subject),
                        (L::Decision, decision),
                    ];
                    let metric = Metric::AdmissionDecisions;
                    samples.push(MetricSample::of(metric, count as f64, labels));
                }
            }
            let tenant = (L::TenantId, tenant.as_str());
            for (metric, count) in [
                (Metric::TenantTokens, account.tokens),
                (Metric::WorkShed, account.shed),
            ] {
                samples.push(MetricSample::of(metric, count as f64, [tenant]));
            }
        }
        samples.retain(|sample| sample.value > 0.0);
        samples
    }

    /// The account of a tenant, by name.
    pub fn tenant(&self, name: &str) -> AccountReport {
        self.tenants.get(name).copied().unwrap_or_default()
    }
}
