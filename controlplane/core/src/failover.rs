//! When a region or a runtime is left, and what becomes of its sessions (F-096, F-111..F-113).

use std::collections::BTreeMap;

use rspp_proto::{Region, RuntimeId, SessionId};
use serde::{Deserialize, Serialize};

use crate::{
    authority::{Placement, Revoke, Standing, WhyRevoked},
    fleet::{Presence, Sight},
};

/// What becomes of the sessions of a place that is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailoverMode {
    /// They end where they are; only new ones go elsewhere.
    #[default]
    Drain,
    /// They move, each with its id.
    Migrate,
}

impl FailoverMode {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Migrate => "migrate",
        }
    }
}

/// What is wanted of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionDuty {
    /// It serves.
    Serving,
    /// It takes nothing new.
    Leaving(FailoverMode),
}

impl RegionDuty {
    /// Whether new sessions may go there.
    pub fn takes_new(self) -> bool {
        match self {
            Self::Serving => true,
            Self::Leaving(_) => false,
        }
    }
}

/// When a region counts as ill, and what is done then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegionPolicy {
    /// Share of runtimes that are dead, suspect or not ready from which on it is left, in percent.
    pub ill_percent: u8,
    /// Share below which it serves again: less, so that it does not flap.
    pub well_percent: u8,
    /// Runtimes that it must have for a share to say anything.
    pub min_runtimes: u32,
    /// What becomes of its sessions.
    pub mode: FailoverMode,
}

impl Default for RegionPolicy {
    fn default() -> Self {
        Self {
            ill_percent: 60,
            well_percent: 25,
            min_runtimes: 2,
            mode: FailoverMode::Drain,
        }
    }
}

/// What should be wanted of each region now. Regions that an operator decided about are not asked for.
///
/// The last region that serves is never left for its health: ill is better than nowhere.
pub fn judge_regions<'a>(
    fleet: impl IntoIterator<Item = &'a Sight>,
    before: &BTreeMap<Region, RegionDuty>,
    policy: &RegionPolicy,
) -> BTreeMap<Region, RegionDuty> {
    let mut counts = BTreeMap::<Region, (u32, u32)>::new();
    for sight in fleet {
        let (all, ill) = counts
            .entry(sight.runtime.description.region.clone())
            .or_default();
        *all += 1;
        *ill += u32::from(sight.presence != Presence::Alive || !sight.load.ready);
    }
    let mut duties = BTreeMap::new();
    for (region, (all, ill)) in &counts {
        let percent = ill * 100 / all;
        let was = before.get(region).copied().unwrap_or(RegionDuty::Serving);
        let duty = match was {
            RegionDuty::Serving
                if *all >= policy.min_runtimes && percent >= u32::from(policy.ill_percent) =>
            {
                RegionDuty::Leaving(policy.mode)
            }
            RegionDuty::Leaving(_) if percent < u32::from(policy.well_percent) => {
                RegionDuty::Serving
            }
            RegionDuty::Serving | RegionDuty::Leaving(_) => was,
        };
        duties.insert(region.clone(), duty);
    }
    let any_serves = duties.values().any(|duty| duty.takes_new());
    if !any_serves {
        for (region, duty) in &mut duties {
            *duty = before.get(region).copied().unwrap_or(RegionDuty::Serving);
        }
        if !duties.values().any(|duty| duty.takes_new()) {
            let best = counts.iter().min_by_key(|(_, (all, ill))| ill * 100 / all);
            if let Some((region, _)) = best {
                duties.insert(region.clone(), RegionDuty::Serving);
            }
        }
    }
    duties
}

/// The orders that a place's leaving asks for: which of its sessions have to be let go. Those that are
/// being let go already are left out.
pub fn orders<'a>(
    placements: impl IntoIterator<Item = &'a Placement>,
    leaving: impl Fn(&RuntimeId) -> Option<WhyRevoked>,
    most: usize,
) -> Vec<(SessionId, Revoke)> {
    placements
        .into_iter()
        .filter_map(|placement| match &placement.standing {
            Standing::Held { by } => {
                let why = leaving(&by.runtime)?;
                Some((placement.session.clone(), Revoke { why, to: None }))
            }
            Standing::Revoking { .. } | Standing::Vacant { .. } | Standing::Ended { .. } => None,
        })
        .take(most)
        .collect()
}

#[cfg(test)]
mod tests {
    use rspp_proto::WallClock;

    use super::*;
    use crate::fleet::{Load, register, tests::description};

    fn fleet(regions: &[(&str, &[bool])]) -> Vec<Sight> {
        let mut sights = Vec::new();
        for (region, well) in regions {
            for (index, well) in well.iter().enumerate() {
                let id = RuntimeId::new(format!("{region}-{index}")).unwrap();
                sights.push(Sight {
                    runtime: register(None, None, id, description(region, 10), WallClock(0))
                        .unwrap(),
                    load: Load {
                        ready: true,
                        ..Load::default()
                    },
                    presence: if *well {
                        Presence::Alive
                    } else {
                        Presence::Dead
                    },
                });
            }
        }
        sights
    }

    #[track_caller]
    fn check(regions: &[(&str, &[bool])], left_before: &[&str], left: &[&str]) {
        let policy = RegionPolicy::default();
        let leaving = RegionDuty::Leaving(policy.mode);
        let names = |names: &[&str]| -> BTreeMap<_, _> {
            let regions = names.iter().map(|name| Region::new(*name).unwrap());
            regions.map(|region| (region, leaving)).collect()
        };
        let found = judge_regions(&fleet(regions), &names(left_before), &policy);
        let found: BTreeMap<_, _> = found
            .into_iter()
            .filter(|(_, duty)| !duty.takes_new())
            .collect();
        assert_eq!(found, names(left));
    }

    /// F-096, F-112: a region is left when most of it is ill, and not taken back at once.
    #[test]
    fn an_ill_region_is_left_and_taken_back_when_it_is_well() {
        let well: &[bool] = &[true, true, true];
        check(&[("eu", well), ("us", well)], &[], &[]);
        check(&[("eu", &[true, true, false]), ("us", well)], &[], &[]);
        check(&[("eu", &[true, false, false]), ("us", well)], &[], &["eu"]);
        check(
            &[("eu", &[true, true, false]), ("us", well)],
            &["eu"],
            &["eu"],
        );
        check(&[("eu", well), ("us", well)], &["eu"], &[]);
        // One runtime is no region's health.
        check(&[("eu", &[false]), ("us", well)], &[], &[]);
    }

    #[test]
    fn the_last_region_is_not_left() {
        let ill: &[bool] = &[false, false];
        check(&[("eu", ill)], &[], &[]);
        check(&[("eu", ill), ("us", ill)], &[], &[]);
        check(&[("eu", ill), ("us", ill)], &["eu"], &["eu"]);
        check(
            &[("eu", ill), ("us", &[true, false])],
            &["eu", "us"],
            &["eu"],
        );
    }
}
