//! Where a session goes (F-094, F-103, F-110, F-159, F-168).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rspp_proto::{Monotonic, Region, RuntimeId, SessionId, TenantId, control::Description};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    failover::RegionDuty,
    fleet::{Duty, Endpoint, Presence, Sight},
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
    /// Where tenants' sessions may be.
    pub residency: Residency,
}

impl View {
    /// Its name, as snapshots are called.
    pub fn name(&self) -> String {
        format!("routing-view/{}", self.version)
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
}

impl Exclusion {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Residency => "residency",
            Self::Region => "region",
            Self::Dead => "dead",
            Self::Suspect => "suspect",
            Self::Draining => "draining",
            Self::NotReady => "not_ready",
            Self::Overloaded => "overloaded",
            Self::Full => "full",
            Self::Transport => "transport",
            Self::Needs => "needs",
            Self::Excepted => "excepted",
        }
    }

    /// Whether it may pass by itself soon.
    fn is_passing(self) -> bool {
        match self {
            Self::Suspect | Self::NotReady | Self::Overloaded | Self::Full | Self::Draining => true,
            Self::Residency
            | Self::Region
            | Self::Dead
            | Self::Transport
            | Self::Needs
            | Self::Excepted => false,
        }
    }
}

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
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
#[error("no runtime can take the session: {}", summary(excluded))]
pub struct NoRoute {
    /// Why each runtime cannot.
    pub excluded: BTreeMap<RuntimeId, Exclusion>,
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

fn exclusion(view: &View, sight: &Sight, request: &Request) -> Option<Exclusion> {
    let description = &sight.runtime.description;
    let region = &description.region;
    let takes_new = view.regions.get(region).is_none_or(|duty| duty.takes_new());
    let reaches = |endpoint: &Endpoint| endpoint.transport == request.transport;
    let lacks = |(name, value): (&String, &String)| description.labels.get(name) != Some(value);
    let checks = [
        (
            !view.residency.admits(&request.tenant, description),
            Exclusion::Residency,
        ),
        (!takes_new, Exclusion::Region),
        (sight.presence == Presence::Dead, Exclusion::Dead),
        (sight.presence == Presence::Suspect, Exclusion::Suspect),
        (sight.runtime.duty == Duty::Draining, Exclusion::Draining),
        (!sight.load.ready, Exclusion::NotReady),
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
/// two by the session's hash, and of these the less busy one.
///
/// Two choices spread nearly as evenly as looking for the least busy of all, without sending all that
/// comes between two heartbeats to the same one.
pub fn choose(view: &View, request: &Request) -> Result<Choice, NoRoute> {
    let mut excluded = BTreeMap::new();
    let mut able = Vec::new();
    for (id, sight) in &view.runtimes {
        match exclusion(view, sight, request) {
            Some(why) => {
                excluded.insert(id.clone(), why);
            }
            None => able.push(sight),
        }
    }
    let latency = |sight: &&Sight| {
        let region = &sight.runtime.description.region;
        request
            .latencies_ms
            .get(region)
            .copied()
            .unwrap_or(u32::MAX)
    };
    let Some(nearest) = able.iter().map(latency).min() else {
        return Err(NoRoute { excluded });
    };
    able.retain(|sight| latency(sight) == nearest);
    able.sort_by_key(|sight| {
        std::cmp::Reverse(weight(&sight.runtime.holder.runtime, &request.session))
    });
    let two = able.iter().take(2);
    let busy = |sight: &&&Sight| {
        let capacity = u64::from(sight.runtime.description.capacity);
        u64::from(sight.load.sessions) * 1_000_000 / capacity
    };
    let chosen = two.min_by_key(busy).expect("somebody is nearest");
    let description = &chosen.runtime.description;
    let endpoint = description
        .endpoints
        .iter()
        .find(|endpoint| endpoint.transport == request.transport)
        .expect("who cannot be reached was left out");
    Ok(Choice {
        runtime: chosen.runtime.holder.runtime.clone(),
        region: description.region.clone(),
        endpoint: endpoint.clone(),
        view: view.name(),
    })
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
            residency: Residency::default(),
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
