//! What the link tells the control plane to count: tokens of tenants with each heartbeat, what sessions have shown of
//! their versions less often (F-050, F-098, NF-030).

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use rspp_controlplane_api::{Beyond, ControlError, ControlPlane, UsageReport, millis};
use rspp_kernel::{
    admission::TokenReport,
    reading::{Heard, ReadingsReport},
};
use rspp_proto::{Monotonic, control::Holder};

use super::shared::Shared;
use crate::admission::Gatekeeper;

/// Reports of tokens with one heartbeat.
const MOST_TOKEN_REPORTS: usize = 128;
/// How often it is told what sessions have shown.
const READINGS_EVERY: Duration = Duration::from_secs(5);

/// What became of something that was told.
pub(super) enum Counted {
    Tokens(Box<TokenReport>, Result<Option<Beyond>, ControlError>),
    Readings(Box<ReadingsReport>, Result<(), ControlError>),
}

/// What is told, and when next.
pub(super) struct Teller {
    shared: Arc<Shared>,
    gatekeeper: Arc<Gatekeeper>,
    plane: Arc<dyn ControlPlane>,
    readings_at: Monotonic,
}

impl Teller {
    /// Nobody answers what an earlier link has told.
    pub(super) fn new(
        shared: &Arc<Shared>,
        gatekeeper: &Arc<Gatekeeper>,
        plane: &Arc<dyn ControlPlane>,
    ) -> Self {
        gatekeeper.fleet().nobody_answers();
        let mut readings = shared.readings();
        if readings.is_told() {
            readings.heard(Heard::NotNow);
        }
        drop(readings);
        Self {
            shared: Arc::clone(shared),
            gatekeeper: Arc::clone(gatekeeper),
            plane: Arc::clone(plane),
            readings_at: Monotonic::ZERO,
        }
    }

    /// What is to be told with a heartbeat; with the last one, all that there is.
    pub(super) fn tell(&mut self, by: &Holder, is_last: bool) -> Vec<BoxFuture<'static, Counted>> {
        let now = self.shared.now();
        let mut telling = Vec::new();
        for report in self.gatekeeper.fleet().tell(now, MOST_TOKEN_REPORTS) {
            let told = self.plane.report_usage(UsageReport {
                tenant: report.tenant.clone(),
                pipeline: report.pipeline.clone(),
                tokens: report.tokens,
                report: format!("tokens.{:x}.{}", self.shared.boot(), report.number),
            });
            let told = async move { Counted::Tokens(Box::new(report), told.await) };
            telling.push(told.boxed());
        }
        if self.readings_at <= now || is_last {
            self.readings_at = now + READINGS_EVERY;
            let report = self.shared.readings().tell(by);
            if let Some(report) = report {
                let counts = report.counts.clone();
                let told = self
                    .plane
                    .report_readings(&report.by, report.number, counts);
                let told = async move { Counted::Readings(Box::new(report), told.await) };
                telling.push(told.boxed());
            }
        }
        telling
    }

    /// Whether something was told and not answered.
    pub(super) fn waits(&self) -> bool {
        self.gatekeeper.fleet().is_told() || self.shared.readings().is_told()
    }

    pub(super) fn heard(&self, counted: Counted) {
        match counted {
            Counted::Tokens(report, told) => {
                let (tenant, tokens) = (&report.tenant, report.tokens);
                let (heard, beyond) = match told {
                    Ok(beyond) => (Heard::Counted, beyond),
                    Err(error) => (failed(&error, "tokens"), None),
                };
                if let Some(Beyond { over, wait }) = beyond {
                    tracing::info!(%tenant, tokens, over = over.as_str(), wait_ms = millis(wait), "the tenant has used up its tokens");
                }
                let beyond = beyond.map(|it| (it.over, it.wait));
                let now = self.shared.now();
                self.gatekeeper.fleet().heard(now, &report, heard, beyond);
            }
            Counted::Readings(report, told) => {
                let heard = match told {
                    Ok(()) => Heard::Counted,
                    Err(error) => failed(&error, "readings"),
                };
                let was_counted = heard == Heard::Counted;
                tracing::trace!(number = report.number, was_counted, "readings were told");
                self.shared.readings().heard(heard);
            }
        }
    }
}

fn failed(error: &ControlError, what: &'static str) -> Heard {
    if error.is_transient() {
        tracing::debug!(%error, what, "not counted yet");
        Heard::NotNow
    } else {
        tracing::warn!(%error, what, "not counted, and given up");
        Heard::Refused
    }
}
