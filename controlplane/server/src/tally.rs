//! What was decided when sessions were to begin: counted by tenant, and told where it is no plain yes
//! (F-098).

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rspp_controlplane::{
    admission::Decision,
    routing::{Choice, Placing},
};
use rspp_proto::{
    MetricSample, Region, SessionId, TenantId,
    abi::OutcomeKind,
    control::Outage,
    metric::{Metric, MetricLabel},
};

/// Tenants that are counted by name; the rest is counted together.
const MAX_NAMED: usize = 100;
/// How the rest is called.
const OTHERS: &str = "_other";

/// Decisions of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    admitted: u64,
    /// Of these, to be served with less.
    degraded: u64,
    deferred: u64,
    rejected: u64,
}

/// Regions that are counted by name.
const MAX_REGIONS: usize = 64;
/// Pairs of a tenant and a region of which is remembered that the trail knows of them.
const MAX_TOLD: usize = 4_096;

/// Decisions since this replica began, by tenant; and where sessions were sent.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    decisions: Mutex<BTreeMap<String, Counts>>,
    placings: Mutex<BTreeMap<(String, Placing), u64>>,
    /// Tenants whose first session went otherwise for an outage, and what the outage was.
    told: Mutex<BTreeMap<TenantId, Vec<Answered>>>,
}

/// What was done about an outage, and where that led.
type Answered = (Region, Outage, Placing);

impl Tally {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, Counts>> {
        self.decisions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts where a new session is sent, and tells of it where something was in the way. Whether the audit
    /// trail has to know: once for each tenant and outage.
    pub(crate) fn placed(&self, tenant: &TenantId, session: &SessionId, choice: &Choice) -> bool {
        let region = choice.region.as_str();
        {
            let mut placings = self.placings.lock().unwrap_or_else(PoisonError::into_inner);
            let is_named = |it: &BTreeMap<(String, Placing), u64>| {
                it.len() < MAX_REGIONS * Placing::ALL.len()
                    || it.keys().any(|(known, _)| known == region)
            };
            let name = if is_named(&placings) { region } else { OTHERS };
            *placings
                .entry((name.to_owned(), choice.placing))
                .or_default() += 1;
        }
        let passed = choice.passed.iter();
        let passed: Vec<_> = passed
            .map(|(region, why)| format!("{region}: {}", why.as_str()))
            .collect();
        match choice.placing {
            Placing::Nearest => return false,
            Placing::RegionPassed
            | Placing::OutageAlternate
            | Placing::OutageRegion
            | Placing::OnlyRegion => {
                tracing::info!(
                    %tenant,
                    session_id = %session,
                    placing = choice.placing.as_str(),
                    %region,
                    runtime = %choice.runtime,
                    passed = passed.join(", "),
                    outage = choice.outage.as_ref().map(|it| it.provider.as_str()),
                    view = choice.view,
                    "a session was not simply sent to the nearest region"
                );
            }
        }
        let Some(outage) = &choice.outage else {
            return false;
        };
        let known = (choice.region.clone(), outage.clone(), choice.placing);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = told.values().map(Vec::len).sum();
        if total >= MAX_TOLD {
            told.clear();
        }
        let of_tenant = told.entry(tenant.clone()).or_default();
        if of_tenant.contains(&known) {
            return false;
        }
        of_tenant.push(known);
        true
    }

    /// An outage began or ended: what is done about the next is told anew.
    pub(crate) fn outages_changed(&self) {
        self.told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Counts a decision and tells of it.
    pub(crate) fn decided(&self, tenant: &TenantId, decision: &Decision) {
        let mut all = self.counts();
        let is_named = all.contains_key(tenant.as_str()) || all.len() < MAX_NAMED;
        let name = if is_named { tenant.as_str() } else { OTHERS };
        let counts = all.entry(name.to_owned()).or_default();
        let is_plain = match decision.outcome {
            OutcomeKind::Admit => {
                counts.admitted += 1;
                counts.degraded += u64::from(decision.degraded);
                !decision.degraded && decision.counted
            }
            OutcomeKind::Defer => {
                counts.deferred += 1;
                false
            }
            OutcomeKind::Reject
            | OutcomeKind::Shed
            | OutcomeKind::StaleEpochReject
            | OutcomeKind::DeauthorizedDrain => {
                counts.rejected += 1;
                false
            }
        };
        drop(all);
        if !is_plain {
            tracing::info!(
                %tenant,
                outcome = %decision.outcome,
                reason = %decision.reason,
                limit = decision.reached.map(|it| it.limit.as_str()),
                mode = decision.mode.as_str(),
                counted = decision.counted,
                "decided about a session"
            );
        }
    }

    /// The counts, as metrics.
    pub(crate) fn samples(&self) -> Vec<MetricSample> {
        let all = self.counts();
        let samples = all.iter().flat_map(|(tenant, counts)| {
            let decisions = [
                ("admitted", counts.admitted),
                ("degraded", counts.degraded),
                ("deferred", counts.deferred),
                ("rejected", counts.rejected),
            ];
            decisions.map(|(decision, count)| {
                let labels = [
                    (MetricLabel::TenantId, tenant.as_str()),
                    (MetricLabel::Subject, "session"),
                    (MetricLabel::Decision, decision),
                ];
                MetricSample::of(Metric::AdmissionDecisions, count as f64, labels)
            })
        });
        let decided: Vec<_> = samples.filter(|sample| sample.value > 0.0).collect();
        let placings = self.placings.lock().unwrap_or_else(PoisonError::into_inner);
        let placed = placings.iter().map(|((region, placing), count)| {
            let labels = [
                (MetricLabel::Region, region.as_str()),
                (MetricLabel::Reason, placing.as_str()),
            ];
            MetricSample::of(Metric::RoutePlacings, *count as f64, labels)
        });
        decided.into_iter().chain(placed).collect()
    }
}
