//! What was decided when sessions were to begin: counted by tenant, and told where it is no plain yes
//! (F-098).

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rspp_controlplane::admission::Decision;
use rspp_proto::{
    MetricSample, TenantId,
    abi::OutcomeKind,
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

/// Decisions since this replica began, by tenant.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<BTreeMap<String, Counts>>);

impl Tally {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        samples.filter(|sample| sample.value > 0.0).collect()
    }
}
