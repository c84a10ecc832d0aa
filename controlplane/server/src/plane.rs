//! What all services share: the store, what is followed of it, the keys, who calls.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, RwLock},
    time::{Duration, SystemTime},
};

use futures::future::try_join_all;
use rspp_controlplane::{
    access::{Operation, Principal, Tenants},
    account::Drain,
    authority::{Placement, Term},
    failover::RegionDuty,
    fleet::{self, Duty, Load, Runtime, Sight},
    governance::Governance,
    keys,
    outage::Incident,
    retention::Retention,
    rollout::Rollout,
    routing::View,
    store::{Entry, Key, LeaseId, Page, Prefix, Query, Store, StoreError, json, list_all, parse},
    token::{AccessClaims, KeyId, Keyring, SigningKey},
};
use rspp_controlplane_api::WireError;
use rspp_controlplane_storage::{counters::Counters, election::Leader};
use rspp_proto::{
    MetricSample, Monotonic, Region, RuntimeId, TenantId, WallClock,
    control::{Holder, Kind},
    metric::{Metric, MetricLabel},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Request;

use crate::{
    about::{EndedLives, InOffice},
    audit::Note,
    expiry::KeptIn,
    failure::Failure,
    followed::{Decode, Followed},
    identity::Peer,
    services::{keys::trust_first, placements::Mark},
    tally::Tally,
};

/// The longest that a session which is told to go elsewhere may finish what it says.
pub const MAX_FINISH: Duration = Duration::from_mins(10);

/// How a control plane behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Names this replica, in logs and as leader.
    pub replica: String,
    /// Whose certificates name callers: `spiffe://<domain>/…`.
    pub domain: String,
    /// How long leases last.
    pub term: Term,
    /// How long a session that is told to go elsewhere may take to finish what it says, unless it is told
    /// otherwise; less than a lease is a lease, and [`MAX_FINISH`] the most.
    pub finish_within: Duration,
    /// How often runtimes say how busy they are.
    pub heartbeat: Duration,
    /// How long a session token is valid unless less is asked for.
    pub token_ttl: Duration,
    /// How old what is known of the fleet may be to route by it (F-159).
    pub max_view_age: Duration,
    /// How long records of what is over are kept.
    pub retention: Retention,
    /// Where the store lies, and session data with it; not asked about if `None` (F-168).
    pub region: Option<Region>,
    /// Where tenants' timelines are, so that they go when their tenant's rule says so (F-116).
    pub archives: Vec<KeptIn>,
    /// How often there is looked for what is over in them.
    pub expire_every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            replica: "replica".to_owned(),
            domain: "rspp.local".to_owned(),
            term: Term::default(),
            // A tenth of it is kept back for clocks that run apart, and by default no turn takes longer than
            // 60 s: no reply is cut.
            finish_within: Duration::from_secs(75),
            heartbeat: Duration::from_secs(1),
            token_ttl: Duration::from_mins(5),
            max_view_age: Duration::from_secs(5),
            retention: Retention::default(),
            region: None,
            archives: Vec::new(),
            expire_every: Duration::from_mins(15),
        }
    }
}

fn by_name(signers: Vec<SigningKey>) -> BTreeMap<KeyId, Arc<SigningKey>> {
    let keys = signers.into_iter();
    keys.map(|it| (it.id().clone(), Arc::new(it))).collect()
}

/// Why there is no control plane.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store holds another layout.
    #[error(
        "the store holds layout `{found}`, this build reads `{}`",
        keys::LAYOUT
    )]
    Layout {
        /// What it is.
        found: String,
    },
    /// There is no default secret.
    #[error("a control plane needs a key to sign tokens with")]
    NoKey,
}

/// What is wanted of a region, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RegionRecord {
    pub(crate) duty: RegionDuty,
    /// Not by its health.
    pub(crate) by_operator: bool,
    /// Providers that fail there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) incidents: Vec<Incident>,
}

impl Default for RegionRecord {
    /// A region of which nobody has decided anything.
    fn default() -> Self {
        Self {
            duty: RegionDuty::Serving,
            by_operator: false,
            incidents: Vec::new(),
        }
    }
}

/// What a runtime last said, and when that was seen here.
#[derive(Clone, Debug)]
pub(crate) struct SeenLoad {
    pub(crate) load: Load,
    pub(crate) at: Instant,
}

/// A control plane: decides, on what one store holds. Cloning shares it.
#[derive(Clone)]
pub struct Plane {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    /// What tenants use, counted with what is written.
    pub(crate) counters: Counters,
    pub(crate) settings: Settings,
    signers: RwLock<BTreeMap<KeyId, Arc<SigningKey>>>,
    pub(crate) began: Instant,
    pub(crate) runtimes: Arc<Followed<Runtime>>,
    pub(crate) alive: Arc<Followed<Option<LeaseId>>>,
    pub(crate) loads: Arc<Followed<SeenLoad>>,
    pub(crate) regions: Arc<Followed<RegionRecord>>,
    /// Runtimes that went, and what they had.
    pub(crate) drains: Arc<Followed<Drain>>,
    pub(crate) placements: Arc<Followed<Placement>>,
    pub(crate) revocations: Arc<Followed<Mark>>,
    pub(crate) rollouts: Arc<Followed<Rollout>>,
    pub(crate) governance: Arc<Followed<Governance>>,
    pub(crate) keyring: Arc<Followed<Keyring>>,
    /// What hangs on it may be repeated for a while.
    pub(crate) requests_lease: Mutex<Option<(LeaseId, Instant)>>,
    /// Denied calls on their way into the audit trail.
    pub(crate) notes: mpsc::Sender<Note>,
    pub(crate) notes_lost: std::sync::atomic::AtomicU64,
    /// What was decided about sessions at their start.
    pub(crate) tally: Tally,
    /// Who has the duties of all.
    pub(crate) leader: Arc<Followed<Leader>>,
    /// The same, if that is this replica.
    pub(crate) office: Mutex<Option<InOffice>>,
    /// Lives of runtimes that were seen to end.
    pub(crate) ended_lives: Mutex<EndedLives>,
    pub(crate) tasks: TaskTracker,
    /// Whoever watches has to go elsewhere.
    pub(crate) leaving: CancellationToken,
    pub(crate) stop: CancellationToken,
}

fn load(entry: &Entry) -> Option<SeenLoad> {
    json(entry).map(|load| SeenLoad {
        load,
        at: Instant::now(),
    })
}

impl Plane {
    /// Begins on a store: follows it, and trusts the given keys if it trusts none yet. The first key
    /// signs then.
    pub async fn open(
        store: Arc<dyn Store>,
        settings: Settings,
        signers: Vec<SigningKey>,
    ) -> Result<Self, OpenError> {
        let first = signers.first().ok_or(OpenError::NoKey)?;
        let stop = CancellationToken::new();
        // What follows the store already ends with this call, if the store does not answer to its end.
        let unless_opened = stop.clone().drop_guard();
        let tasks = TaskTracker::new();
        check_layout(&*store).await?;
        // Before anything is followed: whoever is called knows whom to believe.
        trust_first(&*store, first).await?;
        let follow = Following {
            store: &store,
            tasks: &tasks,
            stop: &stop,
        };
        let (notes, noted) = mpsc::channel(crate::audit::MAX_NOTES);
        let of_kinds = keys::all_rollouts();
        let of_all_holders = keys::all_revocations();
        let shared = Shared {
            counters: Counters::new(Arc::clone(&store), Arc::new(wall_clock)),
            settings,
            signers: RwLock::new(by_name(signers)),
            began: Instant::now(),
            runtimes: follow.open(keys::runtimes(), json).await?,
            alive: follow.open(keys::livenesses(), |it| Some(it.lease)).await?,
            loads: follow.open(keys::loads(), load).await?,
            regions: follow.open(keys::regions(), json).await?,
            drains: follow.open(keys::drains(), json).await?,
            placements: follow.open(keys::placements(), json).await?,
            revocations: follow.open(of_all_holders, json).await?,
            rollouts: follow.open(of_kinds, json).await?,
            governance: follow.open(Prefix::of(&keys::governance()), json).await?,
            keyring: follow.open(Prefix::of(&keys::keyring()), json).await?,
            requests_lease: Mutex::default(),
            notes,
            notes_lost: 0.into(),
            tally: Tally::default(),
            leader: follow.open(Prefix::of(&keys::leader()), json).await?,
            office: Mutex::default(),
            ended_lives: Mutex::default(),
            leaving: CancellationToken::new(),
            tasks,
            stop,
            store,
        };
        let _goes_on = unless_opened.disarm();
        let plane = Self {
            shared: Arc::new(shared),
        };
        // It ends by itself, once all is put down.
        plane.shared.tasks.spawn(plane.clone().write_notes(noted));
        plane.spawn(plane.clone().follow_lives());
        // It ends by itself as well, after it has resigned.
        plane.shared.tasks.spawn(plane.clone().have_duties());
        Ok(plane)
    }

    /// Ends its tasks and waits for them.
    pub async fn close(self) {
        self.shared.leaving.cancel();
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        self.shared.counters.finish().await;
    }

    /// Whether it can decide: it knows the fleet as it was a moment ago. Else, what is in the way.
    pub fn ready(&self) -> Result<(), String> {
        let age = self.view_age();
        age.map(drop).map_err(|failure| failure.to_string())
    }

    /// What this replica has decided about sessions at their start, by tenant (F-098), where it sent them, and
    /// which providers fail where (F-112).
    pub fn measured(&self) -> Vec<MetricSample> {
        let mut samples = self.shared.tally.samples();
        for (region, record) in self.region_records() {
            for Incident { outage, .. } in record.incidents {
                let labels = [
                    (MetricLabel::Region, region.as_str()),
                    (MetricLabel::Modality, outage.modality.as_str()),
                    (MetricLabel::ProviderId, outage.provider.as_str()),
                ];
                samples.push(MetricSample::of(Metric::ProviderOutages, 1.0, labels));
            }
        }
        samples
    }

    /// Runs something until the control plane is closed.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.shared.stop.clone();
        self.shared.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.shared.store
    }

    /// A record as it is now, with the entry that a transaction compares.
    pub(crate) async fn read<T: DeserializeOwned>(
        &self,
        key: &Key,
    ) -> Result<(Option<T>, Option<Entry>), Failure> {
        let entry = self.store().get(key).await?;
        let value = entry.as_ref().map(parse).transpose()?;
        Ok((value, entry))
    }

    /// One page of records.
    pub(crate) async fn page<T: DeserializeOwned>(
        &self,
        prefix: Prefix,
        after: &str,
        size: u32,
    ) -> Result<(Vec<T>, String), Failure> {
        let limit = page_size(size);
        let query = Query {
            after: page_after(&prefix, after)?,
            limit,
            ..Query::first(prefix)
        };
        let page = self.store().list(query).await?;
        let next = next_page(&page);
        let values = page.entries.iter().map(parse);
        Ok((values.collect::<Result<_, StoreError>>()?, next))
    }

    /// All records that begin so.
    pub(crate) async fn all<T: DeserializeOwned>(&self, prefix: Prefix) -> Result<Vec<T>, Failure> {
        let found = list_all(self.store(), &prefix, None).await?;
        let values = found.records.values().map(parse);
        Ok(values.collect::<Result<_, StoreError>>()?)
    }

    pub(crate) fn governance(&self) -> Governance {
        let found = self.shared.governance.get(&keys::governance());
        found.unwrap_or_default()
    }

    pub(crate) fn keyring(&self) -> Keyring {
        self.shared
            .keyring
            .get(&keys::keyring())
            .unwrap_or_default()
    }

    /// Has these keys to sign with from now on, and no others (F-169). Which of them signs is for the ring to say.
    pub fn hold_keys(&self, signers: Vec<SigningKey>) {
        let held = self.shared.signers.write();
        *held.expect("no code panics while locked") = by_name(signers);
    }

    /// A key that is held here.
    pub(crate) fn private_key(&self, id: &KeyId) -> Result<Arc<SigningKey>, Failure> {
        let held = self.shared.signers.read();
        let held = held.expect("no code panics while locked");
        let key = held.get(id).map(Arc::clone);
        key.ok_or_else(|| Failure::NoPrivateKey(id.to_string()))
    }

    /// The key that signs.
    pub(crate) fn signer(&self) -> Result<Arc<SigningKey>, Failure> {
        let ring = self.keyring();
        let signs = ring.signs().ok_or(Failure::NoSigner)?;
        let key = self.private_key(signs)?;
        let believed = ring.keys().get(signs).map(|record| record.public);
        if believed != Some(key.public()) {
            return Err(Failure::OtherKey(signs.to_string()));
        }
        Ok(key)
    }

    /// Rollouts of a kind.
    pub(crate) fn rollout(&self, kind: Kind, line: &str) -> Option<Rollout> {
        self.shared.rollouts.get(&keys::rollout(kind, line))
    }

    /// How old what is known of the fleet is.
    pub(crate) fn fleet_age(&self) -> Duration {
        let shared = &self.shared;
        let ages = [
            shared.runtimes.age(),
            shared.alive.age(),
            shared.loads.age(),
            shared.regions.age(),
            shared.drains.age(),
        ];
        ages.into_iter().max().unwrap_or_default()
    }

    /// How old what is known of the fleet is; too old is a failure.
    pub(crate) fn view_age(&self) -> Result<Duration, Failure> {
        let age = self.fleet_age();
        if age > self.shared.settings.max_view_age {
            return Err(Failure::StaleView(age));
        }
        Ok(age)
    }

    /// Numbers how the fleet seems to be. Each part is followed by itself, and two of them may change with
    /// one write: so that none of what is seen in between has the same number, they are added up.
    pub(crate) fn view_version(&self) -> u64 {
        let shared = &self.shared;
        let parts = [
            shared.runtimes.revision(),
            shared.alive.revision(),
            shared.regions.revision(),
            shared.drains.revision(),
        ];
        parts.into_iter().sum()
    }

    /// The fleet as it seems to be.
    pub(crate) fn view(&self) -> Result<View, Failure> {
        let age = self.view_age()?;
        let shared = &self.shared;
        let records = self.region_records();
        let regions = records.iter();
        let regions = regions.map(|(region, record)| (region.clone(), record.duty));
        let judged = records.iter().filter(|(_, record)| !record.by_operator);
        let ill = judged.filter(|(_, record)| !record.duty.takes_new());
        let ill = ill.map(|(region, _)| region.clone()).collect();
        Ok(View {
            version: self.view_version(),
            taken: Monotonic::from_duration(shared.began.elapsed().saturating_sub(age)),
            runtimes: self
                .sights()
                .into_iter()
                .map(|sight| (sight.runtime.holder.runtime.clone(), sight))
                .collect(),
            regions: regions.collect(),
            ill,
            residency: self.governance().residency,
            incidents: records
                .into_iter()
                .map(|(region, record)| (region, record.incidents))
                .collect(),
        })
    }

    /// What is wanted of regions, where somebody or their health wants something.
    pub(crate) fn region_records(&self) -> BTreeMap<Region, RegionRecord> {
        let records = self.shared.regions.records();
        let records = records.iter();
        records
            .filter_map(|(key, record)| Some((Region::new(key.last()).ok()?, record.clone())))
            .collect()
    }

    /// All runtimes.
    pub(crate) fn sights(&self) -> Vec<Sight> {
        let runtimes: Vec<Runtime> = self.shared.runtimes.records().values().cloned().collect();
        runtimes.into_iter().map(|it| self.sight(it)).collect()
    }

    /// Whether a runtime has said how it fares.
    pub(crate) fn has_said(&self, runtime: &RuntimeId) -> bool {
        let key = keys::load(runtime);
        self.shared.loads.records().contains_key(&key)
    }

    /// How long ago a runtime was last heard here; `None` if never.
    pub(crate) fn silent_for(&self, runtime: &RuntimeId) -> Option<Duration> {
        let seen = self.shared.loads.get(&keys::load(runtime));
        seen.map(|seen| seen.at.elapsed())
    }

    /// A runtime as it seems to be. One that goes by itself is drained like one that an operator empties.
    pub(crate) fn sight(&self, mut runtime: Runtime) -> Sight {
        let shared = &self.shared;
        let seen = shared.loads.get(&keys::load(&runtime.holder.runtime));
        // One that has just registered has said nothing yet and takes nothing yet.
        let (load, silent_for) = match seen {
            Some(seen) => (seen.load, seen.at.elapsed()),
            None => (Load::default(), Duration::ZERO),
        };
        let goes = self.goes_away(&runtime.holder);
        // Who says that it goes takes nothing any more.
        if goes {
            runtime.duty = Duty::Draining;
        }
        let presence = fleet::presence(
            self.seems_alive(&runtime.holder),
            goes,
            silent_for,
            shared.settings.heartbeat,
        );
        Sight {
            runtime,
            load,
            presence,
        }
    }

    /// Whether a holder's liveness was there lately. Whether it is there now, only the store knows.
    pub(crate) fn seems_alive(&self, holder: &Holder) -> bool {
        self.shared
            .alive
            .records()
            .contains_key(&keys::liveness(holder))
    }

    /// Whether a life of a runtime has said that it goes, or an operator empties it.
    pub(crate) fn goes_away(&self, holder: &Holder) -> bool {
        let drains = self.shared.drains.records();
        drains.contains_key(&keys::drain(holder, 0))
    }

    pub(crate) fn runtime(&self, id: &RuntimeId) -> Option<Runtime> {
        self.shared.runtimes.get(&keys::runtime(id))
    }

    /// Who calls, if they may do that. What is denied goes into the audit trail.
    pub(crate) fn admit<Q>(
        &self,
        request: &Request<Q>,
        operation: Operation,
        tenant: Option<&TenantId>,
        subject: &str,
    ) -> Result<Principal, Failure> {
        let peer = request.extensions().get::<Peer>();
        let found = self.principal(request, peer);
        let allowed = found.and_then(|principal| {
            let allowed = principal.may(operation, tenant);
            allowed.map_err(|denied| Box::new((Some(principal.clone()), denied.into())))?;
            Ok(principal)
        });
        allowed.map_err(|unknown| {
            let (principal, failure) = *unknown;
            self.note(Note::denied(
                wall_clock(),
                principal,
                operation.as_str(),
                subject,
                tenant,
                &failure,
                peer,
            ));
            failure
        })
    }

    /// The same for a runtime, which speaks for itself only.
    pub(crate) fn admit_holder<Q>(
        &self,
        request: &Request<Q>,
        operation: Operation,
        runtime: &RuntimeId,
    ) -> Result<Principal, Failure> {
        let principal = self.admit(request, operation, None, runtime.as_str())?;
        if principal.actor.as_str() == runtime.as_str() {
            return Ok(principal);
        }
        let failure = Failure::OtherHolder {
            actor: principal.actor.to_string(),
            runtime: runtime.to_string(),
        };
        self.note(Note::denied(
            wall_clock(),
            Some(principal),
            operation.as_str(),
            runtime.as_str(),
            None,
            &failure,
            request.extensions().get::<Peer>(),
        ));
        Err(failure)
    }

    /// A token says who calls; without one the connection does.
    fn principal<Q>(
        &self,
        request: &Request<Q>,
        peer: Option<&Peer>,
    ) -> Result<Principal, Box<(Option<Principal>, Failure)>> {
        let header = request.metadata().get("authorization");
        let Some(header) = header else {
            let identity = peer.map_or(Err(None), |peer| peer.identity.clone());
            return identity.map_err(|wrong| {
                let failure = wrong.map_or(Failure::NoCredentials, Failure::Nameless);
                Box::new((None, failure))
            });
        };
        let token = header.to_str().ok();
        let token = token.and_then(|text| text.strip_prefix("Bearer "));
        let token = token.ok_or_else(|| Box::new((None, Failure::NoCredentials)))?;
        let claims = self.keyring().verify::<AccessClaims>(token, wall_clock());
        let claims = claims.map_err(|error| Box::new((None, error.into())))?;
        Ok(Principal {
            actor: claims.sub,
            role: claims.role,
            tenants: match claims.tenants {
                None => Tenants::All,
                Some(tenants) => Tenants::Only(tenants.into_iter().collect()),
            },
        })
    }
}

impl std::fmt::Debug for Plane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plane")
            .field("store", &self.shared.store.name())
            .field("settings", &self.shared.settings)
            .finish_non_exhaustive()
    }
}

struct Following<'a> {
    store: &'a Arc<dyn Store>,
    tasks: &'a TaskTracker,
    stop: &'a CancellationToken,
}

impl Following<'_> {
    async fn open<T: Send + Sync + 'static>(
        &self,
        prefix: Prefix,
        decode: Decode<T>,
    ) -> Result<Arc<Followed<T>>, StoreError> {
        Followed::open(self.store, prefix, decode, self.tasks, self.stop.clone()).await
    }
}

/// A store of another layout is refused; an empty one is left empty, so that a backup can be restored.
async fn check_layout(store: &dyn Store) -> Result<(), OpenError> {
    match store.get(&keys::layout()).await? {
        Some(entry) if entry.value != keys::LAYOUT.as_bytes() => Err(OpenError::Layout {
            found: String::from_utf8_lossy(&entry.value).into_owned(),
        }),
        Some(_) | None => Ok(()),
    }
}

/// The wall clock: for people, for tokens and for quotas; no lease depends on it.
pub(crate) fn wall_clock() -> WallClock {
    SystemTime::now().into()
}

/// As many as were asked for, and no more than the store gives.
pub(crate) fn page_size(asked: u32) -> usize {
    let most = rspp_controlplane::store::MAX_PAGE;
    match asked as usize {
        0 => most,
        size => size.min(most),
    }
}

/// The record after which a page begins; its token is a key of the same list.
pub(crate) fn page_after(prefix: &Prefix, token: &str) -> Result<Option<Key>, WireError> {
    let after = (!token.is_empty()).then(|| Key::stored(token));
    if after.as_ref().is_some_and(|key| !prefix.holds(key)) {
        return Err(WireError::new("page_token", "is of another list"));
    }
    Ok(after)
}

pub(crate) fn next_page(page: &Page) -> String {
    let last = page.entries.last().filter(|_| page.more);
    last.map_or_else(String::new, |entry| entry.key.as_str().to_owned())
}

/// Several records as they are now, in the order of their keys.
pub(crate) async fn exist(store: &dyn Store, keys: &[Key]) -> Result<Vec<bool>, StoreError> {
    let found = try_join_all(keys.iter().map(|key| store.get(key))).await?;
    Ok(found.iter().map(Option::is_some).collect())
}
