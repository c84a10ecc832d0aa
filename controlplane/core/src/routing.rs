//! Where a session goes, and why there (F-094, F-103, F-110, F-112, F-159, F-168).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rspp_proto::{
    Monotonic, Region, RuntimeId, SessionId, TenantId,
    control::{Description, Outage},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    failover::RegionDuty,
    fleet::{Duty, Endpoint, Presence, Sight},
    outage::{Answer, Incident, Served, served},
};

/// Where a tenant's sessions, recordings and timelines may be; absent is anywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Residency {
    /// Allowed regions by tenant.
    pub tenants: BTreeMap<TenantId, BTreeSet<Region>>,
}

impl Residency {
    /// Whether a tenant's sessions may be on a runtime: where it stands, and where its archive lies.
    pub fn admits(&self, tenant: &TenantId, runtime: &Description) -> bool {
        let Some(allowed) = self.tenants.get(tenant) else {
            return true;
        };
        let may = |region: &str| allowed.iter().any(|it| it.as_str() == region);
        runtime.regions().all(may)
    }

    /// Whether a tenant's sessions may be in some region that takes new ones.
    pub fn leaves_room(&self, tenant: &TenantId, takes_new: impl Fn(&Region) -> bool) -> bool {
        let allowed = self.tenants.get(tenant);
        allowed.is_none_or(|regions| regions.iter().any(takes_new))
    }

    /// Whether a tenant's data may be there.
    pub fn allows(&self, tenant: &TenantId, region: &Region) -> bool {
        self.tenants
            .get(tenant)
            .is_none_or(|regions| regions.contains(region))
    }
}

/// All runtimes as they seemed at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Rises with whatever changed.
    pub version: u64,
    /// When it was taken, on the taker's clock.
    pub taken: Monotonic,
    /// The runtimes.
    pub runtimes: BTreeMap<RuntimeId, Sight>,
    /// Regions that operators, or their health, keep new sessions from.
    pub regions: BTreeMap<Region, RegionDuty>,
    /// Those of them that were left for their health, and not by an operator.
    pub ill: BTreeSet<Region>,
    /// Where tenants' sessions may be.
    pub residency: Residency,
    /// Providers that fail, by region.
    pub incidents: BTreeMap<Region, Vec<Incident>>,
}

impl View {
    /// Its name, as snapshots are called.
    pub fn name(&self) -> String {
        format!("routing-view/{}", self.version)
    }

    fn takes_new(&self, region: &Region) -> bool {
        self.regions.get(region).is_none_or(|it| it.takes_new())
    }

    /// Whether it is recent enough to route by.
    pub fn is_fresh(&self, now: Monotonic, max_age: Duration) -> bool {
        now.since(self.taken) <= max_age
    }
}

/// What is to be placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whose session it is.
    pub tenant: TenantId,
    /// The session.
    pub session: SessionId,
    /// How the client connects.
    pub transport: String,
    /// How long the client's packets take to each region, in milliseconds, as far as it knows.
    pub latencies_ms: BTreeMap<Region, u32>,
    /// What the pipeline needs of a runtime.
    pub needs: BTreeMap<String, String>,
    /// Not there: it has just left these, or has tried them.
    pub except: BTreeSet<RuntimeId>,
    /// What may be done where a provider fails, in this order.
    pub answers: Vec<Answer>,
}

/// Why a runtime is not chosen. In the order in which it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exclusion {
    /// The tenant's data may not be in its region.
    Residency,
    /// Its region takes nothing new.
    Region,
    /// It is dead.
    Dead,
    /// It has left in order.
    Left,
    /// It has not been heard lately.
    Suspect,
    /// It is being emptied.
    Draining,
    /// Something that it needs is missing.
    NotReady,
    /// It says that it is overloaded.
    Overloaded,
    /// It is full.
    Full,
    /// It cannot be reached that way.
    Transport,
    /// It lacks what the pipeline needs.
    Needs,
    /// It was not to be.
    Excepted,
    /// A provider fails there, and what is done about that is something else, or nothing is left to do.
    Outage,
    /// Nothing fails there, but what fails where the session would go is not answered by leaving.
    Stays,
}

impl Exclusion {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Residency => "residency",
            Self::Region => "region",
            Self::Dead => "dead",
            Self::Left => "left",
            Self::Suspect => "suspect",
            Self::Draining => "draining",
            Self::NotReady => "not_ready",
            Self::Overloaded => "overloaded",
            Self::Full => "full",
            Self::Transport => "transport",
            Self::Needs => "needs",
            Self::Excepted => "excepted",
            Self::Outage => "provider_outage",
            Self::Stays => "outage_not_left",
        }
    }

    /// Whether it may pass by itself soon.
    fn is_passing(self) -> bool {
        match self {
            Self::Suspect
            | Self::NotReady
            | Self::Overloaded
            | Self::Full
            | Self::Draining
            | Self::Outage => true,
            Self::Residency
            | Self::Region
            | Self::Dead
            | Self::Left
            | Self::Transport
            | Self::Needs
            | Self::Excepted
            | Self::Stays => false,
        }
    }
}

/// Why a session goes where it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Placing {
    /// Nothing nearer to its client is known.
    Nearest,
    /// What is nearer cannot take it.
    RegionPassed,
    /// A provider fails there, and somebody else is asked instead.
    OutageAlternate,
    /// A provider fails where it would have gone.
    OutageRegion,
    /// Its tenant may be nowhere else, though the region was left for its health.
    OnlyRegion,
}

impl Placing {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Nearest,
        Self::RegionPassed,
        Self::OutageAlternate,
        Self::OutageRegion,
        Self::OnlyRegion,
    ];

    /// Its name, as answers, metrics and records write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::RegionPassed => "region_passed",
            Self::OutageAlternate => "outage_alternate",
            Self::OutageRegion => "outage_region",
            Self::OnlyRegion => "only_region",
        }
    }
}

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Why there.
    pub placing: Placing,
    /// Regions that it would have gone to first, and why it did not.
    pub passed: BTreeMap<Region, Exclusion>,
    /// The provider that fails where it would have gone, if that decided.
    pub outage: Option<Outage>,
    /// To whom.
    pub runtime: RuntimeId,
    /// In which region.
    pub region: Region,
    /// How the client gets there.
    pub endpoint: Endpoint,
    /// The view that it was chosen from.
    pub view: String,
}

/// Nobody can take it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "no runtime can take the session: {}{}",
    summary(excluded),
    bounds(allowed, closed)
)]
pub struct NoRoute {
    /// Why each runtime cannot.
    pub excluded: BTreeMap<RuntimeId, Exclusion>,
    /// Where its tenant's sessions may be; nothing: anywhere.
    pub allowed: BTreeSet<Region>,
    /// Those of them that operators keep new sessions from.
    pub closed: BTreeSet<Region>,
}

impl NoRoute {
    /// Whether asking again soon may help.
    pub fn is_transient(&self) -> bool {
        self.excluded.values().any(|why| why.is_passing())
    }
}

fn summary(excluded: &BTreeMap<RuntimeId, Exclusion>) -> String {
    let mut counts = BTreeMap::<Exclusion, usize>::new();
    for why in excluded.values() {
        *counts.entry(*why).or_default() += 1;
    }
    let counts: Vec<_> = counts
        .into_iter()
        .map(|(why, count)| format!("{count} {}", why.as_str()))
        .collect();
    if counts.is_empty() {
        "there is none".to_owned()
    } else {
        counts.join(", ")
    }
}

/// Where its tenant may be, as far as that stands in the way.
fn bounds(allowed: &BTreeSet<Region>, closed: &BTreeSet<Region>) -> String {
    let listed = |regions: &BTreeSet<Region>| {
        let names: Vec<_> = regions.iter().map(Region::as_str).collect();
        names.join(", ")
    };
    if allowed.is_empty() {
        return String::new();
    }
    let closed = if closed.is_empty() {
        String::new()
    } else {
        format!(", and operators keep new sessions from {}", listed(closed))
    };
    let allowed = listed(allowed);
    format!("; its tenant may only be in {allowed}{closed}")
}

/// Whether regions that were left for their health are out of question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ill {
    /// They are.
    Avoided,
    /// The tenant may be nowhere else.
    Taken,
}

fn exclusion(view: &View, sight: &Sight, request: &Request, ill: Ill) -> Option<Exclusion> {
    let description = &sight.runtime.description;
    let region = &description.region;
    let takes_new = view.takes_new(region) || (ill == Ill::Taken && view.ill.contains(region));
    let reaches = |endpoint: &Endpoint| endpoint.transport == request.transport;
    let lacks_providers = sight.load.outages.iter().any(|it| it.alternate.is_none());
    let lacks = |(name, value): (&String, &String)| description.labels.get(name) != Some(value);
    let checks = [
        (
            !view.residency.admits(&request.tenant, description),
            Exclusion::Residency,
        ),
        (!takes_new, Exclusion::Region),
        (sight.presence == Presence::Dead, Exclusion::Dead),
        (sight.presence == Presence::Left, Exclusion::Left),
        (sight.presence == Presence::Suspect, Exclusion::Suspect),
        (sight.runtime.duty == Duty::Draining, Exclusion::Draining),
        // Whom only providers are missing is looked at as one whom providers are missing.
        (!sight.load.ready && !lacks_providers, Exclusion::NotReady),
        (sight.load.overloaded, Exclusion::Overloaded),
        (sight.load.sessions >= description.capacity, Exclusion::Full),
        (
            !description.endpoints.iter().any(reaches),
            Exclusion::Transport,
        ),
        (request.needs.iter().any(lacks), Exclusion::Needs),
        (
            request.except.contains(&sight.runtime.holder.runtime),
            Exclusion::Excepted,
        ),
    ];
    checks.into_iter().find_map(|(is, why)| is.then_some(why))
}

/// Chooses a runtime: of those that can take the session, in the region nearest to the client; there
/// two by the session's hash, and of these the less busy one. Where a provider fails in that region, what
/// the session's rules say is done, in their order (F-112).
///
/// Two choices spread nearly as evenly as looking for the least busy of all, without sending all that
/// comes between two heartbeats to the same one.
///
/// Residency binds more than health does: where a tenant may be nowhere else, a region that was left for its
/// health gets its sessions all the same, as long as a runtime there can take them (F-168). What an operator has
/// decided stands.
pub fn choose(view: &View, request: &Request) -> Result<Choice, NoRoute> {
    let refused = match choose_among(view, request, Ill::Avoided) {
        Ok(choice) => return Ok(choice),
        Err(refused) => refused,
    };
    let Some(allowed) = view.residency.tenants.get(&request.tenant) else {
        return Err(refused);
    };
    choose_among(view, request, Ill::Taken).map_err(|refused| {
        let closed = allowed.iter().filter(|it| !view.takes_new(it));
        let closed = closed.filter(|it| !view.ill.contains(*it));
        NoRoute {
            allowed: allowed.clone(),
            closed: closed.cloned().collect(),
            ..refused
        }
    })
}

fn choose_among(view: &View, request: &Request, ill: Ill) -> Result<Choice, NoRoute> {
    let mut excluded = BTreeMap::new();
    let mut able = Vec::new();
    for (id, sight) in &view.runtimes {
        match exclusion(view, sight, request, ill) {
            Some(why) => {
                excluded.insert(id.clone(), why);
            }
            None => able.push(Able {
                sight,
                latency: latency(request, &sight.runtime.description.region),
                served: served(sight, incidents(view, sight)),
            }),
        }
    }
    let Some((able, answer, outage)) = answered(&able, request, &mut excluded) else {
        return Err(NoRoute {
            excluded,
            allowed: BTreeSet::new(),
            closed: BTreeSet::new(),
        });
    };
    let chosen = least_busy(able, request);
    let description = &chosen.runtime.description;
    let endpoint = description
        .endpoints
        .iter()
        .find(|endpoint| endpoint.transport == request.transport)
        .expect("who cannot be reached was left out");
    let passed = passed(view, request, &description.region, &excluded);
    let placing = match answer {
        Some(Answer::Alternates) => Placing::OutageAlternate,
        Some(Answer::Region) => Placing::OutageRegion,
        None if !view.takes_new(&description.region) => Placing::OnlyRegion,
        None if passed.is_empty() => Placing::Nearest,
        None => Placing::RegionPassed,
    };
    Ok(Choice {
        runtime: chosen.runtime.holder.runtime.clone(),
        region: description.region.clone(),
        endpoint: endpoint.clone(),
        view: view.name(),
        placing,
        passed,
        outage,
    })
}

/// A runtime that can take the session.
struct Able<'a> {
    sight: &'a Sight,
    latency: u32,
    served: Served<'a>,
}

fn latency(request: &Request, region: &Region) -> u32 {
    let known = request.latencies_ms.get(region);
    known.copied().unwrap_or(u32::MAX)
}

fn incidents<'a>(view: &'a View, sight: &Sight) -> &'a [Incident] {
    let here = view.incidents.get(&sight.runtime.description.region);
    here.map_or(&[], Vec::as_slice)
}

/// Those among whom is chosen: the nearest, if all that they need serves them; else what the first answer
/// leads to that leads to anybody.
fn answered<'a>(
    able: &[Able<'a>],
    request: &Request,
    excluded: &mut BTreeMap<RuntimeId, Exclusion>,
) -> Option<(Vec<&'a Sight>, Option<Answer>, Option<Outage>)> {
    let nearest = able.iter().map(|it| it.latency).min()?;
    let is_well = |it: &&Able| it.served == Served::Well;
    let fails_near = able
        .iter()
        .filter(|it| it.latency == nearest)
        .find_map(|it| match it.served {
            Served::Well => None,
            Served::ByAlternate(outage) | Served::Unserved(outage) => Some(outage.clone()),
        });
    let at = |latency: u32, is_fit: &dyn Fn(&&Able<'a>) -> bool| -> Vec<&'a Sight> {
        let fit = able.iter().filter(|it| it.latency == latency);
        fit.filter(|it| is_fit(it)).map(|it| it.sight).collect()
    };
    // Of several that are as near, those are taken that lack nothing.
    let mut found = (at(nearest, &is_well), None);
    for answer in &request.answers {
        if !found.0.is_empty() {
            break;
        }
        let there = match answer {
            Answer::Alternates => at(nearest, &|it| matches!(it.served, Served::ByAlternate(_))),
            Answer::Region => {
                let next = able.iter().filter(is_well).map(|it| it.latency).min();
                next.map_or_else(Vec::new, |latency| at(latency, &is_well))
            }
        };
        found = (there, Some(*answer));
    }
    let (chosen, mut answer) = found;
    // Of several regions that are as near, one in which something fails was left for it.
    let is_left = |it: &Able| {
        let region = |sight: &Sight| sight.runtime.description.region.clone();
        let here = region(it.sight);
        it.latency == nearest && !chosen.iter().any(|chosen| region(chosen) == here)
    };
    if answer.is_none()
        && able
            .iter()
            .any(|it| it.served != Served::Well && is_left(it))
    {
        answer = Some(Answer::Region);
    }
    for it in able {
        if !chosen.iter().any(|chosen| std::ptr::eq(*chosen, it.sight)) {
            let why = match it.served {
                Served::Well if chosen.is_empty() => Exclusion::Stays,
                Served::Well => continue,
                Served::ByAlternate(_) | Served::Unserved(_) => Exclusion::Outage,
            };
            excluded.insert(it.sight.runtime.holder.runtime.clone(), why);
        }
    }
    if chosen.is_empty() {
        return None;
    }
    let outage = answer.and(fails_near);
    Some((chosen, answer, outage))
}

fn least_busy<'a>(mut able: Vec<&'a Sight>, request: &Request) -> &'a Sight {
    able.sort_by_key(|sight| {
        std::cmp::Reverse(weight(&sight.runtime.holder.runtime, &request.session))
    });
    let busy = |sight: &&Sight| {
        let capacity = u64::from(sight.runtime.description.capacity);
        u64::from(sight.load.sessions) * 1_000_000 / capacity
    };
    let two = able.into_iter().take(2);
    two.min_by_key(busy).expect("somebody was found")
}

/// The regions nearer than where it goes, and why it does not go there; of those as near, the ones that are
/// left because something fails there.
fn passed(
    view: &View,
    request: &Request,
    chosen: &Region,
    excluded: &BTreeMap<RuntimeId, Exclusion>,
) -> BTreeMap<Region, Exclusion> {
    // Why not its fittest runtime: what is asked last. `None` where one could have taken it.
    let mut regions = BTreeMap::<&Region, Option<Exclusion>>::new();
    for (id, sight) in &view.runtimes {
        let why = excluded.get(id).copied();
        let region = &sight.runtime.description.region;
        let known = regions.entry(region).or_insert(why);
        *known = known.zip(why).map(|(known, why)| known.max(why));
    }
    let own = latency(request, chosen);
    let is_passed = |region: &Region, why: Exclusion| {
        let its = latency(request, region);
        its < own || (its == own && why == Exclusion::Outage)
    };
    let regions = regions.into_iter().filter(|(region, _)| *region != chosen);
    let regions = regions.filter_map(|(region, why)| Some((region.clone(), why?)));
    regions
        .filter(|(region, why)| is_passed(region, *why))
        .collect()
}

/// Rendezvous hashing: a session's order of runtimes stays as runtimes come and go, but for those.
fn weight(runtime: &RuntimeId, session: &SessionId) -> u64 {
    let bytes = runtime
        .as_str()
        .bytes()
        .chain(*b"\0")
        .chain(session.as_str().bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // FNV's high bits hardly depend on the last bytes; a multiply and a shift mix them in.
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rspp_proto::WallClock;

    use super::*;
    use crate::{
        failover::FailoverMode,
        fleet::{Load, register, tests::description},
    };

    fn id(name: &str) -> RuntimeId {
        RuntimeId::new(name).unwrap()
    }

    fn region(name: &str) -> Region {
        Region::new(name).unwrap()
    }

    fn sight(name: &str, region: &str, sessions: u32) -> Sight {
        Sight {
            runtime: register(None, None, id(name), description(region, 100), WallClock(0))
                .unwrap(),
            load: Load {
                sessions,
                ready: true,
                ..Load::default()
            },
            presence: Presence::Alive,
        }
    }

    fn view(sights: impl IntoIterator<Item = Sight>) -> View {
        View {
            version: 7,
            taken: Monotonic::ZERO,
            runtimes: sights
                .into_iter()
                .map(|sight| (sight.runtime.holder.runtime.clone(), sight))
                .collect(),
            regions: BTreeMap::new(),
            ill: BTreeSet::new(),
            residency: Residency::default(),
            incidents: BTreeMap::new(),
        }
    }

    fn request(session: &str) -> Request {
        Request {
            tenant: TenantId::new("acme").unwrap(),
            session: SessionId::new(session).unwrap(),
            transport: "websocket".to_owned(),
            latencies_ms: BTreeMap::new(),
            needs: BTreeMap::new(),
            except: BTreeSet::new(),
            answers: vec![Answer::Alternates, Answer::Region],
        }
    }

    /// F-094, F-108, F-168: each reason for which a runtime gets nothing.
    #[test]
    fn only_runtimes_that_can_serve_get_sessions() {
        #[track_caller]
        fn check(break_it: impl FnOnce(&mut View, &mut Request), expected: Exclusion) {
            let mut view = view([sight("a", "eu", 0)]);
            let mut request = request("s");
            assert!(choose(&view, &request).is_ok());
            break_it(&mut view, &mut request);
            let refused = choose(&view, &request).unwrap_err();
            assert_eq!(refused.excluded, BTreeMap::from([(id("a"), expected)]));
        }
        fn a(view: &mut View) -> &mut Sight {
            view.runtimes.get_mut("a").unwrap()
        }
        check(|v, _| a(v).presence = Presence::Dead, Exclusion::Dead);
        check(|v, _| a(v).presence = Presence::Left, Exclusion::Left);
        check(|v, _| a(v).presence = Presence::Suspect, Exclusion::Suspect);
        check(
            |v, _| a(v).runtime.duty = Duty::Draining,
            Exclusion::Draining,
        );
        check(|v, _| a(v).load.ready = false, Exclusion::NotReady);
        check(|v, _| a(v).load.overloaded = true, Exclusion::Overloaded);
        check(|v, _| a(v).load.sessions = 100, Exclusion::Full);
        check(
            |_, r| r.transport = "telephony".to_owned(),
            Exclusion::Transport,
        );
        let needs = |_: &mut View, r: &mut Request| {
            r.needs.insert("gpu".to_owned(), "yes".to_owned());
        };
        check(needs, Exclusion::Needs);
        check(
            |_, r| r.except = BTreeSet::from([id("a")]),
            Exclusion::Excepted,
        );
        let leave = |v: &mut View, _: &mut Request| {
            v.regions
                .insert(region("eu"), RegionDuty::Leaving(FailoverMode::Drain));
        };
        check(leave, Exclusion::Region);
        let stay_out = |v: &mut View, r: &mut Request| {
            let allowed = BTreeSet::from([region("us")]);
            v.residency.tenants.insert(r.tenant.clone(), allowed);
        };
        check(stay_out, Exclusion::Residency);
    }

    /// F-110: the nearest region that is well, then the next.
    #[test]
    fn a_session_goes_to_the_nearest_region_that_is_well() {
        let mut view = view([
            sight("a", "eu", 90),
            sight("b", "us", 0),
            sight("c", "asia", 0),
        ]);
        let near = Request {
            latencies_ms: BTreeMap::from([(region("eu"), 20), (region("us"), 90)]),
            ..request("s")
        };
        assert_eq!(choose(&view, &near).unwrap().runtime, id("a"));
        view.runtimes.get_mut("a").unwrap().load.sessions = 100;
        assert_eq!(choose(&view, &near).unwrap().runtime, id("b"));
        view.runtimes.get_mut("b").unwrap().presence = Presence::Dead;
        assert_eq!(choose(&view, &near).unwrap().runtime, id("c"));
    }

    fn outage(alternate: Option<&str>) -> Outage {
        let provider = |name| rspp_proto::ProviderId::new(name).unwrap();
        Outage {
            modality: rspp_proto::spec::Modality::Llm,
            provider: provider("first"),
            alternate: alternate.map(provider),
        }
    }

    /// F-112: a provider that fails where a session would go is answered as its rules say: where, why, and
    /// what it would have gone to first.
    #[test]
    fn an_outage_is_answered_in_the_order_of_the_rules() {
        use Answer::{Alternates, Region as Leave};
        let near = |answers: &[Answer]| Request {
            latencies_ms: BTreeMap::from([(region("eu"), 20), (region("us"), 90)]),
            answers: answers.to_vec(),
            ..request("s")
        };
        let fleet = |alternate: Option<&str>| {
            let mut view = view([sight("a", "eu", 0), sight("b", "us", 0)]);
            let incident = Incident {
                outage: outage(alternate),
                since: WallClock(0),
            };
            view.incidents.insert(region("eu"), vec![incident]);
            view
        };
        let go = |view: &View, answers: &[Answer]| {
            let chosen = choose(view, &near(answers)).map_err(|refused| refused.to_string())?;
            let passed = chosen
                .passed
                .iter()
                .map(|(region, why)| format!("{region} {}", why.as_str()));
            let passed: Vec<_> = passed.collect();
            assert_eq!(chosen.outage.is_some(), chosen.placing != Placing::Nearest);
            Ok((
                chosen.runtime.to_string(),
                chosen.placing,
                passed.join(", "),
            ))
        };
        let at =
            |name: &str, placing, passed: &str| Ok((name.to_owned(), placing, passed.to_owned()));
        let stays = at("a", Placing::OutageAlternate, "");
        let leaves = at("b", Placing::OutageRegion, "eu provider_outage");
        let some = fleet(Some("next"));
        assert_eq!(go(&some, &[Alternates, Leave]), stays);
        assert_eq!(go(&some, &[Alternates]), stays);
        assert_eq!(go(&some, &[Leave, Alternates]), leaves);
        assert_eq!(go(&some, &[Leave]), leaves);
        // Nobody is left to ask there.
        let none = fleet(None);
        assert_eq!(go(&none, &[Alternates, Leave]), leaves);
        let refused = "no runtime can take the session: 1 provider_outage, 1 outage_not_left";
        assert_eq!(go(&none, &[Alternates]), Err(refused.to_owned()));
        // It fails everywhere: who may stay stays, who may only leave is put off.
        let mut both = fleet(Some("next"));
        both.incidents
            .insert(region("us"), both.incidents[&region("eu")].clone());
        assert_eq!(go(&both, &[Leave, Alternates]), stays);
        let refused = "no runtime can take the session: 2 provider_outage";
        assert_eq!(go(&both, &[Leave]), Err(refused.to_owned()));
        // Residency wins over any answer.
        let mut bound = fleet(Some("next"));
        let tenants = [(
            TenantId::new("acme").unwrap(),
            BTreeSet::from([region("eu")]),
        )];
        bound.residency.tenants = BTreeMap::from(tenants);
        assert_eq!(go(&bound, &[Leave, Alternates]), stays);
        assert!(go(&bound, &[Leave]).is_err());
        // What a runtime says itself counts before its region does, and without being ready.
        let mut own = view([sight("a", "eu", 0), sight("b", "us", 0)]);
        let load = &mut own.runtimes.get_mut("a").unwrap().load;
        (load.ready, load.outages) = (false, vec![outage(None)]);
        assert_eq!(go(&own, &[Alternates, Leave]), leaves);
        // Over: back to the nearest.
        let mut well = fleet(Some("next"));
        well.incidents.clear();
        assert_eq!(go(&well, &[Leave]), at("a", Placing::Nearest, ""));
    }

    /// F-112: capacity and incidents of regions count as well, and the answer says which.
    #[test]
    fn a_region_that_is_passed_is_named_with_its_reason() {
        let near = Request {
            latencies_ms: BTreeMap::from([(region("eu"), 20), (region("us"), 90)]),
            ..request("s")
        };
        let mut view = view([sight("a", "eu", 100), sight("b", "us", 0)]);
        let chosen = choose(&view, &near).unwrap();
        assert_eq!(chosen.placing, Placing::RegionPassed);
        assert_eq!(
            chosen.passed,
            BTreeMap::from([(region("eu"), Exclusion::Full)])
        );
        view.regions
            .insert(region("eu"), RegionDuty::Leaving(FailoverMode::Drain));
        let chosen = choose(&view, &near).unwrap();
        assert_eq!(
            chosen.passed,
            BTreeMap::from([(region("eu"), Exclusion::Region)])
        );
    }

    /// F-168, F-110: who may be nowhere else goes where its health was given up as long as somebody there can take
    /// it; an operator's no stands, and is told.
    #[test]
    fn residency_binds_more_than_health() {
        let mut view = view([sight("a", "eu", 0), sight("b", "us", 0)]);
        let eu = region("eu");
        let drain = RegionDuty::Leaving(FailoverMode::Drain);
        view.regions.insert(eu.clone(), drain);
        view.ill.insert(eu.clone());
        let only_eu = BTreeSet::from([eu.clone()]);
        view.residency
            .tenants
            .insert(TenantId::new("acme").unwrap(), only_eu);
        let chosen = choose(&view, &request("s")).unwrap();
        assert_eq!(
            (chosen.runtime, chosen.placing),
            (id("a"), Placing::OnlyRegion)
        );
        let anybody = Request {
            tenant: TenantId::new("zeta").unwrap(),
            ..request("s")
        };
        assert_eq!(choose(&view, &anybody).unwrap().runtime, id("b"));
        view.ill.clear();
        assert_eq!(
            choose(&view, &request("s")).unwrap_err().to_string(),
            "no runtime can take the session: 1 residency, 1 region; its tenant may only be in eu, and operators \
             keep new sessions from eu"
        );
        view.ill.insert(eu);
        view.runtimes.get_mut("a").unwrap().presence = Presence::Dead;
        assert_eq!(
            choose(&view, &request("s")).unwrap_err().to_string(),
            "no runtime can take the session: 1 residency, 1 dead; its tenant may only be in eu"
        );
    }

    #[test]
    fn a_refusal_says_why_and_whether_to_ask_again() {
        let mut view = view([
            sight("a", "eu", 100),
            sight("b", "eu", 100),
            sight("c", "eu", 0),
        ]);
        view.runtimes.get_mut("c").unwrap().presence = Presence::Dead;
        let refused = choose(&view, &request("s")).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "no runtime can take the session: 1 dead, 2 full"
        );
        assert!(refused.is_transient());
        view.runtimes.retain(|name, _| name.as_str() == "c");
        assert!(!choose(&view, &request("s")).unwrap_err().is_transient());
    }

    /// F-103: sessions spread, and few move when a runtime comes or goes.
    #[test]
    fn sessions_spread_over_replicas_and_mostly_stay() {
        let full = view(["a", "b", "c", "d"].map(|name| sight(name, "eu", 0)));
        let mut three = full.clone();
        three.runtimes.remove("d");
        let mut counts = BTreeMap::<RuntimeId, usize>::new();
        let mut moved = 0;
        for number in 0..4_000 {
            let request = request(&format!("call-{number}"));
            let before = choose(&full, &request).unwrap().runtime;
            let after = choose(&three, &request).unwrap().runtime;
            moved += usize::from(before != after && before.as_str() != "d");
            *counts.entry(before).or_default() += 1;
        }
        assert!(
            counts.values().all(|count| (850..1_150).contains(count)),
            "{counts:?}"
        );
        assert_eq!(counts.len(), 4);
        assert_eq!(moved, 0, "whoever was not on the one that left stays");
    }

    #[test]
    fn a_view_grows_old() {
        let view = view([]);
        let bound = Duration::from_secs(2);
        assert!(view.is_fresh(Monotonic::from_millis(2_000), bound));
        assert!(!view.is_fresh(Monotonic::from_millis(2_001), bound));
    }

    proptest! {
        /// F-094: whatever the fleet looks like, who is chosen could serve, and nobody is refused
        /// while somebody could.
        #[test]
        fn the_chosen_can_serve(fleet in proptest::collection::vec((0..3u8, 0..3u8, 0..110u32, any::<bool>(), any::<bool>()), 0..8)) {
            let sights = fleet.iter().enumerate().map(|(index, (where_, how, sessions, ready, drains))| {
                let mut it = sight(&format!("r{index}"), ["eu", "us", "asia"][usize::from(*where_)], *sessions);
                it.presence = [Presence::Alive, Presence::Suspect, Presence::Dead][usize::from(*how)];
                it.load.ready = *ready;
                if *drains { it.runtime.duty = Duty::Draining; }
                it
            });
            let view = view(sights);
            let able = |it: &Sight| {
                it.presence == Presence::Alive && it.load.ready && it.load.sessions < 100
                    && it.runtime.duty == Duty::Serving
            };
            match choose(&view, &request("s")) {
                Ok(choice) => prop_assert!(able(&view.runtimes[&choice.runtime])),
                Err(refused) => {
                    prop_assert!(!view.runtimes.values().any(able));
                    prop_assert_eq!(refused.excluded.len(), view.runtimes.len());
                }
            }
        }
    }
}
