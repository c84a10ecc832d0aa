//! How a session goes, as somebody who asks is told (F-101).

pub use rspp_proto::control::SessionPhase as Phase;
use rspp_proto::{Epoch, PipelineVersion, Region, RuntimeId, SessionId, TenantId, WallClock};
use serde::{Deserialize, Serialize};

use crate::authority::{Over, Past, Placement, Standing};

/// A report of a session's runtime, written under its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// How it goes.
    pub phase: Phase,
    /// Since when, as the reporter's wall clock has it.
    pub at: WallClock,
    /// Why, if there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Under which epoch.
    pub epoch: Epoch,
}

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The session.
    pub session: SessionId,
    /// Whose it is.
    pub tenant: TenantId,
    /// How it goes.
    pub phase: Phase,
    /// Why, if there is more to say than how it goes.
    pub reason: String,
    /// Its version.
    pub pipeline: PipelineVersion,
    /// Its newest epoch.
    pub epoch: Epoch,
    /// Who speaks for it; once it has ended, who did last.
    pub runtime: Option<RuntimeId>,
    /// Where that is.
    pub region: Option<Region>,
    /// Since when.
    pub since: WallClock,
    /// Who had it before, oldest first.
    pub past: Vec<Past>,
}

/// How a session goes, from its record and its runtime's last report. `alive`: whether its holder renews.
///
/// A report of an earlier epoch is about a placement that is gone. A session without a holder that
/// renews waits: somebody may take it over.
pub fn of(
    placement: &Placement,
    report: Option<&Report>,
    alive: bool,
    region: Option<Region>,
) -> View {
    let report = report.filter(|report| report.epoch == placement.epoch);
    let reported = |fallback: &'static str| match report {
        Some(report) => (report.phase, report.reason.clone().unwrap_or_default()),
        None => (Phase::Connected, fallback.to_owned()),
    };
    let mut since = report.map_or(placement.since, |report| report.at.max(placement.since));
    let (phase, reason) = match &placement.standing {
        // Who is told to let go and dies has let go of nothing.
        Standing::Held { .. } | Standing::Revoking { .. } if !alive => {
            (Phase::Waiting, "runtime_lost".to_owned())
        }
        Standing::Held { .. } => reported("placed"),
        Standing::Revoking { why, .. } => (Phase::Degraded, format!("letting_go_{}", why.as_str())),
        Standing::Vacant { .. } => (Phase::Waiting, "unplaced".to_owned()),
        Standing::Ended { at, .. } => {
            since = *at;
            let reason = match &placement.over {
                Some(Over::Ended { why }) if !why.is_empty() => why.clone(),
                Some(Over::Abandoned) => "abandoned".to_owned(),
                Some(Over::Ended { .. }) | None => "ended".to_owned(),
            };
            (Phase::Ended, reason)
        }
    };
    View {
        session: placement.session.clone(),
        tenant: placement.binding.tenant.clone(),
        phase,
        reason,
        pipeline: placement.binding.pipeline.clone(),
        epoch: placement.epoch,
        runtime: placement.spokesman().map(|holder| holder.runtime.clone()),
        region: placement.spokesman().and(region),
        since,
        past: placement.past.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::authority::{Fuse, Holder, Incarnation, Vacated, WhyRevoked};

    fn placement(standing: Standing) -> Placement {
        Placement {
            epoch: Epoch::new(2).unwrap(),
            since: WallClock(50),
            ..Placement::of_acme(standing)
        }
    }

    fn report(epoch: u64, phase: Phase) -> Report {
        Report {
            phase,
            at: WallClock(60),
            reason: None,
            epoch: Epoch::new(epoch).unwrap(),
        }
    }

    /// F-101: the table of what is told.
    #[test]
    fn a_status_follows_record_report_and_renewals() {
        let holder = Holder {
            runtime: RuntimeId::new("a").unwrap(),
            incarnation: Incarnation::FIRST,
        };
        let held = placement(Standing::Held { by: holder.clone() });
        let revoking = placement(Standing::Revoking {
            from: holder.clone(),
            why: WhyRevoked::Drain,
            fuse: Fuse::Lit,
            finish_within: Duration::ZERO,
            to: None,
        });
        let vacant = placement(Standing::Vacant {
            last: holder.clone(),
            how: Vacated::Released,
            to: None,
        });
        let ended = placement(Standing::Ended {
            last: holder,
            at: WallClock(70),
        });
        let told = |placement: &Placement, report: Option<Report>, alive| {
            let view = of(placement, report.as_ref(), alive, None);
            (view.phase, view.reason)
        };
        let is = |phase, reason: &str| (phase, reason.to_owned());
        assert_eq!(told(&held, None, true), is(Phase::Connected, "placed"));
        let running = Some(report(2, Phase::Running));
        assert_eq!(told(&held, running.clone(), true), is(Phase::Running, ""));
        let slow = Some(Report {
            reason: Some("provider_slow".to_owned()),
            ..report(2, Phase::Degraded)
        });
        assert_eq!(
            told(&held, slow, true),
            is(Phase::Degraded, "provider_slow")
        );
        let stale = Some(report(1, Phase::Ended));
        assert_eq!(told(&held, stale, true), is(Phase::Connected, "placed"));
        assert_eq!(
            told(&held, running.clone(), false),
            is(Phase::Waiting, "runtime_lost")
        );
        assert_eq!(
            told(&revoking, running.clone(), true),
            is(Phase::Degraded, "letting_go_drain")
        );
        assert_eq!(
            told(&revoking, running.clone(), false),
            is(Phase::Waiting, "runtime_lost")
        );
        assert_eq!(
            told(&vacant, running.clone(), true),
            is(Phase::Waiting, "unplaced")
        );
        assert_eq!(
            of(&ended, running.as_ref(), true, None).since,
            WallClock(70)
        );
        assert_eq!(told(&ended, running, true), is(Phase::Ended, "ended"));
        let speaks = |placement: &Placement| {
            let view = of(placement, None, false, Some(Region::new("eu").unwrap()));
            let region = view.region.map(|it| it.to_string());
            (view.runtime.map(|it| it.to_string()), region)
        };
        let by_a = (Some("a".to_owned()), Some("eu".to_owned()));
        for placement in [&held, &revoking, &ended] {
            assert_eq!(speaks(placement), by_a);
        }
        assert_eq!(speaks(&vacant), (None, None));
    }
}
