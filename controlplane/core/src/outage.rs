//! Providers that fail in a region, and what is done about that for new sessions (F-112).
//!
//! Each runtime says with its heartbeats whom it leaves alone because calls fail. A region has an outage when
//! enough of its runtimes say so, and has it until nobody has said so for a while: a provider that is left
//! alone is not called, so that silence alone is no proof.

use std::{collections::BTreeMap, time::Duration};

use rspp_proto::{
    Monotonic, ProviderId, Region, TenantId, WallClock, control::Outage, spec::Modality,
};
use serde::{Deserialize, Serialize};

use crate::fleet::{Presence, Sight};

/// What may be done for a session that would go where a provider fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It goes there all the same, to be served by who is asked next there.
    Alternates,
    /// It goes to the next region in which nothing fails.
    Region,
}

/// When a provider counts as failing in a region, and what is done then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutagePolicy {
    /// Share of a region's runtimes that have to say so, in percent.
    pub out_percent: u8,
    /// For how long nobody must have said so before sessions come back.
    pub well_after_seconds: u32,
    /// What is done, in this order; what is left out is not done.
    pub answers: Vec<Answer>,
    /// The same for a line of pipelines.
    pub pipelines: BTreeMap<String, Vec<Answer>>,
    /// The same for a tenant, over that of its pipeline.
    pub tenants: BTreeMap<TenantId, Vec<Answer>>,
}

impl Default for OutagePolicy {
    fn default() -> Self {
        Self {
            out_percent: 50,
            well_after_seconds: 30,
            answers: vec![Answer::Alternates, Answer::Region],
            pipelines: BTreeMap::new(),
            tenants: BTreeMap::new(),
        }
    }
}

impl OutagePolicy {
    /// What is done for a tenant's sessions of a line.
    pub fn answers(&self, tenant: &TenantId, line: &str) -> &[Answer] {
        let own = self
            .tenants
            .get(tenant)
            .or_else(|| self.pipelines.get(line));
        own.unwrap_or(&self.answers)
    }

    /// Refuses what cannot be meant: where, and why.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if !(1..=100).contains(&self.out_percent) {
            let what = format!("{} is no share from 1 to 100 %", self.out_percent);
            return Err(("outages.out_percent", what));
        }
        let tenants = self.tenants.iter();
        let tenants = tenants.map(|(name, it)| ("outages.tenants", Some(name.as_str()), it));
        let pipelines = self.pipelines.iter();
        let pipelines = pipelines.map(|(name, it)| ("outages.pipelines", Some(name.as_str()), it));
        let all = [("outages.answers", None, &self.answers)];
        for (rule, whose, answers) in all.into_iter().chain(pipelines).chain(tenants) {
            let whose = whose.map_or_else(String::new, |it| format!("{it}: "));
            if answers.is_empty() {
                let what =
                    format!("{whose}something has to be done: `alternates`, `region`, or both");
                return Err((rule, what));
            }
            if answers.len() > 2 || (answers.len() == 2 && answers[0] == answers[1]) {
                return Err((rule, format!("{whose}each answer comes once")));
            }
        }
        Ok(())
    }
}

/// A provider that fails in a region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incident {
    /// What fails, and who is asked instead there.
    pub outage: Outage,
    /// Since when, for people.
    pub since: WallClock,
}

/// Which provider of which region.
type Which = (Region, Modality, ProviderId);

/// Since when nobody says that something fails which is still counted as failing. The memory of whoever
/// judges: another one begins to count anew.
#[derive(Clone, Debug, Default)]
pub struct Calm(BTreeMap<Which, Monotonic>);

/// The two clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Dates incidents.
    pub wall: WallClock,
    /// Counts for how long it has been calm.
    pub monotonic: Monotonic,
}

/// What fails in each region now. Regions in which nothing fails are left out.
pub fn judge<'a>(
    fleet: impl IntoIterator<Item = &'a Sight>,
    before: &BTreeMap<Region, Vec<Incident>>,
    calm: &mut Calm,
    policy: &OutagePolicy,
    now: Now,
) -> BTreeMap<Region, Vec<Incident>> {
    let mut alive = BTreeMap::<Region, u32>::new();
    let mut told = BTreeMap::<Which, (u32, Option<ProviderId>)>::new();
    for sight in fleet {
        if sight.presence != Presence::Alive {
            continue;
        }
        let region = &sight.runtime.description.region;
        *alive.entry(region.clone()).or_default() += 1;
        for outage in &sight.load.outages {
            let which = (region.clone(), outage.modality, outage.provider.clone());
            let (count, alternate) = told.entry(which).or_default();
            *count += 1;
            // One that somebody there can ask does.
            *alternate = alternate.take().or_else(|| outage.alternate.clone());
        }
    }
    let fails = |which: &Which| {
        let (count, _) = told.get(which)?;
        let all = alive.get(&which.0)?;
        (count * 100 >= all * u32::from(policy.out_percent)).then_some(())
    };
    let mut incidents = BTreeMap::<Which, Incident>::new();
    for (region, known) in before {
        for incident in known {
            let Outage {
                modality, provider, ..
            } = &incident.outage;
            let which = (region.clone(), *modality, provider.clone());
            incidents.insert(which, incident.clone());
        }
    }
    // Over is what nobody at all has told of for long enough: not what fewer tell of than had to at first.
    let well_after = Duration::from_secs(u64::from(policy.well_after_seconds));
    incidents.retain(|which, _| {
        if told.contains_key(which) {
            calm.0.remove(which);
            return true;
        }
        let since = *calm.0.entry(which.clone()).or_insert(now.monotonic);
        now.monotonic.since(since) < well_after
    });
    for (which, (_, alternate)) in &told {
        let (_, modality, provider) = which;
        let outage = Outage {
            modality: *modality,
            provider: provider.clone(),
            alternate: alternate.clone(),
        };
        match incidents.get_mut(which) {
            Some(known) => known.outage = outage,
            None if fails(which).is_some() => {
                let since = now.wall;
                incidents.insert(which.clone(), Incident { outage, since });
            }
            None => {}
        }
    }
    calm.0.retain(|which, _| incidents.contains_key(which));
    let mut by_region = BTreeMap::<Region, Vec<Incident>>::new();
    for ((region, _, _), incident) in incidents {
        by_region.entry(region).or_default().push(incident);
    }
    by_region
}

/// How a runtime stands with providers, by what it and its region say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served<'a> {
    /// By whom it asks first.
    Well,
    /// By somebody else.
    ByAlternate(&'a Outage),
    /// By nobody.
    Unserved(&'a Outage),
}

/// How a runtime stands with providers.
pub(crate) fn served<'a>(sight: &'a Sight, incidents: &'a [Incident]) -> Served<'a> {
    let own = &sight.load.outages;
    let of_region = incidents.iter().map(|it| &it.outage);
    // What it says itself is newer than what was made of it, and of what others say.
    let of_region = of_region.filter(|it| {
        let mut own = own.iter();
        !own.any(|own| own.modality == it.modality && own.provider == it.provider)
    });
    let mut all = own.iter().chain(of_region);
    let first = all.clone().next();
    match (all.find(|it| it.alternate.is_none()), first) {
        (Some(unserved), _) => Served::Unserved(unserved),
        (None, Some(outage)) => Served::ByAlternate(outage),
        (None, None) => Served::Well,
    }
}

#[cfg(test)]
mod tests {
    use rspp_proto::RuntimeId;

    use super::*;
    use crate::fleet::{Load, register, tests::description};

    fn provider(name: &str) -> ProviderId {
        ProviderId::new(name).unwrap()
    }

    fn outage(alternate: Option<&str>) -> Outage {
        Outage {
            modality: Modality::Llm,
            provider: provider("first"),
            alternate: alternate.map(provider),
        }
    }

    fn sight(name: &str, outages: Vec<Outage>) -> Sight {
        let region = name.split('-').next().unwrap();
        let id = RuntimeId::new(name).unwrap();
        Sight {
            runtime: register(None, None, id, description(region, 10), WallClock(0)).unwrap(),
            load: Load {
                ready: true,
                outages,
                ..Load::default()
            },
            presence: Presence::Alive,
        }
    }

    /// F-112: an incident begins with enough who say so, stays while anybody does and for a while after, and
    /// one that comes back meanwhile begins that while anew.
    #[test]
    fn an_outage_is_believed_at_once_and_its_end_after_a_while() {
        let policy = OutagePolicy::default();
        let mut calm = Calm::default();
        let mut known = BTreeMap::new();
        let mut judge_at = |second: u64, ill: usize| {
            let fleet: Vec<_> = (0..4)
                .map(|n| {
                    let outages = if n < ill {
                        vec![outage(Some("next"))]
                    } else {
                        Vec::new()
                    };
                    sight(&format!("eu-{n}"), outages)
                })
                .chain([sight("us-0", Vec::new())])
                .collect();
            let now = Now {
                wall: WallClock(second * 1_000),
                monotonic: Monotonic::from_millis(second * 1_000),
            };
            known = judge(&fleet, &known, &mut calm, &policy, now);
            let regions = known.iter().map(|(region, incidents)| {
                let Incident { outage: it, since } = &incidents[0];
                assert_eq!(*it, outage(Some("next")));
                format!("{region} since {}", since.0 / 1_000)
            });
            regions.collect::<Vec<_>>()
        };
        assert_eq!(judge_at(0, 1), [""; 0], "one of four is not the region");
        assert_eq!(judge_at(1, 2), ["eu since 1"]);
        assert_eq!(judge_at(2, 1), ["eu since 1"], "one of them still says so");
        assert_eq!(judge_at(3, 0), ["eu since 1"]);
        assert_eq!(judge_at(32, 0), ["eu since 1"], "not yet for long enough");
        assert_eq!(judge_at(32, 1), ["eu since 1"]);
        assert_eq!(judge_at(33, 0), ["eu since 1"], "counted anew");
        assert_eq!(judge_at(62, 0), ["eu since 1"]);
        assert_eq!(judge_at(63, 0), [""; 0]);
    }

    #[test]
    fn the_dead_say_nothing() {
        let mut dead = sight("eu-0", vec![outage(None)]);
        dead.presence = Presence::Dead;
        let (policy, mut calm) = (OutagePolicy::default(), Calm::default());
        let now = Now {
            wall: WallClock(0),
            monotonic: Monotonic::ZERO,
        };
        let found = judge([&dead], &BTreeMap::new(), &mut calm, &policy, now);
        assert_eq!(found, BTreeMap::new());
    }

    #[test]
    fn what_a_runtime_says_itself_counts_first() {
        let incident = |alternate| Incident {
            outage: outage(alternate),
            since: WallClock(0),
        };
        let none = outage(None);
        let well = sight("eu-0", Vec::new());
        assert_eq!(served(&well, &[]), Served::Well);
        assert_eq!(served(&well, &[incident(None)]), Served::Unserved(&none));
        let ill = sight("eu-0", vec![outage(Some("next"))]);
        let by = outage(Some("next"));
        assert_eq!(served(&ill, &[incident(None)]), Served::ByAlternate(&by));
    }

    #[test]
    fn a_tenants_answers_come_before_its_pipelines() {
        let acme = TenantId::new("acme").unwrap();
        let mut policy = OutagePolicy::default();
        assert_eq!(
            policy.answers(&acme, "desk"),
            [Answer::Alternates, Answer::Region]
        );
        policy
            .pipelines
            .insert("desk".to_owned(), vec![Answer::Region]);
        assert_eq!(policy.answers(&acme, "desk"), [Answer::Region]);
        policy
            .tenants
            .insert(acme.clone(), vec![Answer::Alternates]);
        assert_eq!(policy.answers(&acme, "desk"), [Answer::Alternates]);
        assert_eq!(policy.check(), Ok(()));
        policy.tenants.insert(acme, Vec::new());
        let (rule, what) = policy.check().unwrap_err();
        assert_eq!(rule, "outages.tenants");
        assert!(what.starts_with("acme: something has to be done"), "{what}");
    }
}
