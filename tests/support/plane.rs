//! A control plane in memory and in virtual time: it decides as the real one does, on ways that lose,
//! delay and double what is sent.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::{FutureExt, StreamExt, stream};
use rspp_controlplane::{
    authority::{self, Placement, Refusal, Revoke, Seen, Standing, Term},
    fleet,
    token::{KeyId, Keyring, LeaseClaims, SigningKey},
};
use rspp_controlplane_api::{
    Acquire, Answer, Artifact, Beyond, ControlError, ControlPlane, Duty, Granted, HeldSession,
    Joined, Leave, Lost, Order, Orders, Renewed, Revocation, Route, RouteAsk, Snapshot,
    SnapshotKind, SnapshotUpdate, Snapshots, StatusReport, Stored, UsageReport, Version, Write,
    Writer,
};
use rspp_proto::{
    Epoch, LeaseToken, RuntimeId, SessionId, TenantId, WallClock,
    control::{
        Binding, Description, Emptying, Holder, Kind, Load, Removal, SessionPhase, WhyRevoked,
    },
    reading::VersionCount,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

/// What holders are told.
pub const TTL: Duration = Duration::from_secs(4);
/// What the store waits.
const KEPT: Duration = Duration::from_secs(5);
/// How often runtimes say how they are.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a caller waits for an answer.
const DEADLINE: Duration = Duration::from_millis(1_500);

/// What becomes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// There and back, each so long.
    Open(Duration),
    /// It does not get there.
    Cut,
    /// It gets there, and its answer does not come back.
    AnswerLost,
    /// It gets there twice, the second time much later.
    Doubled(Duration),
}

/// A control plane.
#[derive(Clone, Default)]
pub struct Plane(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    runtimes: BTreeMap<RuntimeId, fleet::Runtime>,
    /// Until when each life lasts.
    lives: BTreeMap<Holder, Instant>,
    placements: BTreeMap<SessionId, Placement>,
    fuses: BTreeMap<SessionId, Instant>,
    values: BTreeMap<SessionId, BTreeMap<String, Stored>>,
    orders: BTreeMap<Holder, mpsc::UnboundedSender<Order>>,
    loads: BTreeMap<RuntimeId, Load>,
    phases: BTreeMap<SessionId, SessionPhase>,
    /// What each runtime that went said it had.
    drained: BTreeMap<RuntimeId, Vec<SessionId>>,
    grants: Vec<(SessionId, Epoch, RuntimeId, Instant)>,
    calls: BTreeMap<&'static str, u64>,
    held: Vec<usize>,
    snapshots: Option<watch::Sender<(u64, Instant)>>,
    /// How the next leases are proven.
    proves: Proves,
    /// Whether tenants are beyond their limits.
    degrades: bool,
    /// Tokens that were told, by tenant and report; what they are together; and from how many on what is said.
    usage: BTreeMap<(TenantId, String), u64>,
    used: BTreeMap<TenantId, u64>,
    tokens: Option<(u64, Beyond)>,
    /// What was told of versions, once each.
    readings: BTreeMap<(Holder, u64), Vec<VersionCount>>,
    counted: Vec<VersionCount>,
}

/// How a lease is proven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proves {
    /// As it should be.
    #[default]
    Well,
    /// By somebody else's key of the same name.
    Forged,
    /// With a proof that was good long ago.
    Expired,
    /// With the proof of another epoch.
    Older,
    /// By a key that nobody was told of.
    Unheard,
}

/// The key that signs, by this name.
fn key(name: &str, seed: u8) -> SigningKey {
    let name = KeyId::new(name).expect("a name");
    SigningKey::from_seed(name, &[seed; 32])
}

fn term() -> Term {
    Term::new(TTL).expect("whole seconds")
}

fn wall() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    since.as_secs()
}

/// What runtimes check signatures with.
fn keyring() -> Snapshot {
    let mut ring = Keyring::default();
    let key = key("k1", 1);
    ring.add(key.id().clone(), key.public(), WallClock(0))
        .expect("the first one");
    Snapshot {
        kind: SnapshotKind::Keyring,
        name: "keyring/1".to_owned(),
        revision: 1,
        document: serde_json::to_string(&ring).expect("plain data").into(),
    }
}

impl Plane {
    /// The plane as one runtime sees it, on a way of its own.
    pub fn seen_by(&self, name: &str) -> Arc<Seer> {
        Arc::new(Seer {
            plane: self.clone(),
            name: name.to_owned(),
            way: Arc::new(Mutex::new(Ways {
                next: VecDeque::new(),
                usual: Way::Open(Duration::from_millis(5)),
                streams: 0,
                stalled: 0,
                asked: Vec::new(),
            })),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics here")
    }

    /// Tells a session's holder to let go, by the end of its lease.
    pub fn revoke(&self, session: &SessionId, why: WhyRevoked, to: Option<&str>) {
        self.revoke_within(session, why, to, Duration::ZERO);
    }

    /// Tells a session's holder to let go once it has finished what it says, or after so long.
    pub fn revoke_within(
        &self,
        session: &SessionId,
        why: WhyRevoked,
        to: Option<&str>,
        finish_within: Duration,
    ) {
        let mut state = self.state();
        let to = to.map(|to| RuntimeId::new(to).expect("not blank"));
        let order = Revoke {
            why,
            finish_within,
            to: to.clone(),
        };
        let current = state.placements.get(session).cloned();
        let revoked = authority::revoke(current.as_ref(), &order).expect("it is held");
        let lit = authority::light(&revoked).unwrap_or(revoked);
        let fuse = term().fuse(finish_within);
        state.fuses.insert(session.clone(), Instant::now() + fuse);
        let (holder, epoch) = (lit.holder().cloned(), lit.epoch);
        state.placements.insert(session.clone(), lit);
        if let Some(orders) = holder.and_then(|holder| state.orders.get(&holder).cloned()) {
            let _gone = orders.send(Order::Revoke(Revocation {
                session: session.clone(),
                epoch,
                why,
                finish_within,
                to,
            }));
        }
    }

    /// The session's record.
    pub fn placement(&self, session: &SessionId) -> Option<Placement> {
        self.state().placements.get(session).cloned()
    }

    /// Whether the session is over for good.
    pub fn has_ended(&self, session: &SessionId) -> bool {
        let placement = self.placement(session);
        placement.is_some_and(|it| matches!(it.standing, Standing::Ended { .. }))
    }

    /// Every grant so far, in order.
    pub fn grants(&self) -> Vec<(SessionId, Epoch, RuntimeId, Instant)> {
        self.state().grants.clone()
    }

    /// Calls of one kind so far.
    pub fn calls(&self, kind: &str) -> u64 {
        self.state().calls.get(kind).copied().unwrap_or(0)
    }

    /// Tokens of a tenant that were told, each report once.
    pub fn used(&self, tenant: &str) -> u64 {
        let tenant = TenantId::new(tenant).expect("not blank");
        self.state().used.get(&tenant).copied().unwrap_or(0)
    }

    /// Sessions that each renewal so far has named.
    pub fn held(&self) -> Vec<usize> {
        self.state().held.clone()
    }

    /// What a session keeps under a key.
    pub fn value(&self, session: &SessionId, key: &str) -> Option<Stored> {
        self.state().values.get(session)?.get(key).cloned()
    }

    /// How busy a runtime last said it is.
    pub fn load(&self, runtime: &str) -> Option<Load> {
        let runtime = RuntimeId::new(runtime).expect("not blank");
        self.state().loads.get(&runtime).cloned()
    }

    /// What a runtime said it had when it went.
    pub fn drained(&self, runtime: &str) -> Option<Vec<SessionId>> {
        let runtime = RuntimeId::new(runtime).expect("not blank");
        self.state().drained.get(&runtime).cloned()
    }

    /// How a session last was.
    pub fn phase(&self, session: &SessionId) -> Option<SessionPhase> {
        self.state().phases.get(session).copied()
    }

    /// How leases are proven from now on.
    pub fn prove(&self, how: Proves) {
        self.state().proves = how;
    }

    /// Whether tenants are beyond their limits from now on.
    pub fn degrade(&self, beyond: bool) {
        self.state().degrades = beyond;
    }

    /// Publishes the next snapshot of everything; without it, signs of life go on.
    pub fn publish(&self) {
        let mut state = self.state();
        let snapshots = state.snapshots();
        snapshots.send_modify(|(revision, at)| {
            *revision += 1;
            *at = Instant::now();
        });
    }

    /// A control plane that has lost what it knew of who lives, as after a restart whose store was
    /// away for long; records stay.
    pub fn forget_lives(&self) {
        self.state().lives.clear();
    }
}

impl State {
    fn proof(&self, session: &SessionId, by: &Holder, epoch: Epoch) -> LeaseToken {
        let now = wall();
        let (signer, issued, epoch) = match self.proves {
            Proves::Well => (key("k1", 1), now, epoch),
            Proves::Forged => (key("k1", 9), now, epoch),
            Proves::Expired => (key("k1", 1), now - 1_000, epoch),
            Proves::Older => (key("k1", 1), now, epoch.next()),
            Proves::Unheard => (key("k2", 2), now, epoch),
        };
        let claims = LeaseClaims {
            session: session.clone(),
            tenant: TenantId::new("tenant").expect("not blank"),
            runtime: by.runtime.clone(),
            incarnation: by.incarnation,
            epoch,
            iat: issued,
            exp: issued + 600,
        };
        LeaseToken::new(signer.sign(&claims)).expect("it is short")
    }

    fn snapshots(&mut self) -> &watch::Sender<(u64, Instant)> {
        self.snapshots
            .get_or_insert_with(|| watch::channel((1, Instant::now())).0)
    }

    fn is_alive(&self, holder: &Holder) -> bool {
        let until = self.lives.get(holder);
        until.is_some_and(|until| *until > Instant::now())
    }

    fn life(&self, holder: &Holder) -> Result<(), ControlError> {
        if self.is_alive(holder) {
            return Ok(());
        }
        let message = format!("{holder} holds nothing");
        Err(ControlError::HolderGone { message })
    }

    fn seen(&self, session: &SessionId) -> Seen {
        let placement = self.placements.get(session);
        let holder = placement.and_then(Placement::holder);
        let reserved = placement.and_then(Placement::reserved);
        let now = Instant::now();
        Seen {
            holder_alive: holder.is_some_and(|holder| self.is_alive(holder)),
            fuse_burns: self.fuses.get(session).is_some_and(|until| *until > now),
            reserved_alive: reserved.is_some_and(|runtime| {
                let lives = self.lives.iter();
                lives
                    .filter(|(_, until)| **until > now)
                    .any(|(holder, _)| holder.runtime == *runtime)
            }),
        }
    }

    fn check(&self, writer: &Writer) -> Result<(), ControlError> {
        let placement = self.placements.get(&writer.session);
        authority::check(placement, &writer.by, writer.epoch).map_err(refused)
    }
}

fn refused(refusal: Refusal) -> ControlError {
    let message = refusal.to_string();
    match refusal {
        Refusal::Held { .. } => ControlError::Held { message },
        Refusal::LettingGo { .. } => ControlError::LettingGo { message },
        Refusal::Reserved { runtime } => ControlError::Reserved { runtime },
        Refusal::Stale { held, offered } => ControlError::Stale { held, offered },
        Refusal::Unknown => ControlError::UnknownSession,
        Refusal::Overtaken => ControlError::Overtaken,
        Refusal::Ended => ControlError::Ended,
    }
}

struct Ways {
    next: VecDeque<Way>,
    usual: Way,
    /// Streams of snapshots that were opened so far.
    streams: u64,
    /// Those of them that say nothing any more, though nobody told them to end.
    stalled: u64,
    /// What was asked on this way, in order.
    asked: Vec<&'static str>,
}

/// Whether nothing gets through just now.
fn is_cut(way: &Mutex<Ways>) -> bool {
    way.lock().expect("nobody panics here").usual == Way::Cut
}

/// A plane at the end of a way.
pub struct Seer {
    plane: Plane,
    name: String,
    way: Arc<Mutex<Ways>>,
}

impl Seer {
    /// What becomes of calls from now on.
    pub fn set_way(&self, way: Way) {
        self.way.lock().expect("nobody panics here").usual = way;
    }

    /// What becomes of the next calls.
    pub fn then(&self, ways: impl IntoIterator<Item = Way>) {
        let mut own = self.way.lock().expect("nobody panics here");
        own.next.extend(ways);
    }

    /// Streams of snapshots that are open say nothing any more; those that are opened from now on do.
    pub fn stall_snapshots(&self) {
        let mut own = self.way.lock().expect("nobody panics here");
        own.stalled = own.streams;
    }

    /// What was asked since the last time somebody looked, in order.
    pub fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.way.lock().expect("nobody panics here").asked)
    }

    fn way(&self) -> Way {
        let mut way = self.way.lock().expect("nobody panics here");
        way.next.pop_front().unwrap_or(way.usual)
    }

    fn note(&self, kind: &'static str) {
        let mut own = self.way.lock().expect("nobody panics here");
        // Heartbeats, renewals and reports come by themselves.
        let comes_by_itself = matches!(
            kind,
            "heartbeat" | "renew" | "report_status" | "report_usage" | "report_readings"
        );
        if !comes_by_itself {
            own.asked.push(kind);
        }
    }

    fn call<T: Send + 'static>(
        &self,
        kind: &'static str,
        serve: impl Fn(&mut State) -> Result<T, ControlError> + Send + 'static,
    ) -> Answer<T> {
        let way = self.way();
        self.note(kind);
        let plane = self.plane.clone();
        let lost = |message: &str| ControlError::Uncertain {
            message: message.to_owned(),
        };
        let serve = move || {
            let mut state = plane.state();
            *state.calls.entry(kind).or_default() += 1;
            serve(&mut state)
        };
        async move {
            match way {
                Way::Open(each) => {
                    tokio::time::sleep(each).await;
                    let answer = serve();
                    tokio::time::sleep(each).await;
                    answer
                }
                Way::Cut => {
                    tokio::time::sleep(DEADLINE).await;
                    Err(lost("nobody answered"))
                }
                Way::AnswerLost => {
                    let _lost = serve();
                    tokio::time::sleep(DEADLINE).await;
                    Err(lost("the answer was lost"))
                }
                Way::Doubled(later) => {
                    let answer = serve();
                    tokio::spawn(async move {
                        tokio::time::sleep(later).await;
                        let _nobody_listens = serve();
                    });
                    answer
                }
            }
        }
        .boxed()
    }
}

impl ControlPlane for Seer {
    fn register(&self, runtime: RuntimeId, description: Description) -> Answer<Joined> {
        assert_eq!(runtime.as_str(), self.name, "each on its own way");
        self.call("register", move |state| {
            let before = state.runtimes.get(&runtime);
            let joined = fleet::register(
                before,
                None,
                runtime.clone(),
                description.clone(),
                WallClock(0),
            );
            let joined = joined.map_err(|error| ControlError::Refused {
                reason: "JOIN_REFUSED".to_owned(),
                message: error.to_string(),
                details: BTreeMap::new(),
            })?;
            let holder = joined.holder.clone();
            state.runtimes.insert(runtime.clone(), joined);
            state.lives.insert(holder.clone(), Instant::now() + KEPT);
            Ok(Joined {
                holder,
                ttl: TTL,
                heartbeat: HEARTBEAT,
                protocol: 1,
            })
        })
    }

    fn heartbeat(&self, by: &Holder, load: Load) -> Answer<Duty> {
        let by = by.clone();
        self.call("heartbeat", move |state| {
            state.loads.insert(by.runtime.clone(), load.clone());
            let runtime = state.runtimes.get(&by.runtime);
            let draining = runtime.is_some_and(|it| it.duty == fleet::Duty::Draining);
            Ok(if draining {
                Duty::Draining
            } else {
                Duty::Serving
            })
        })
    }

    fn begin_drain(
        &self,
        by: &Holder,
        _how: Option<Emptying>,
        sessions: Vec<SessionId>,
    ) -> Answer<()> {
        let by = by.clone();
        self.call("begin_drain", move |state| {
            state.drained.insert(by.runtime.clone(), sessions.clone());
            Ok(())
        })
    }

    fn tell_removal(&self, by: &Holder, _removal: Removal) -> Answer<()> {
        let by = by.clone();
        self.call("tell_removal", move |state| state.life(&by))
    }

    fn acquire(&self, ask: Acquire) -> Answer<Granted> {
        self.call("acquire", move |state| {
            state.life(&ask.by)?;
            let current = state.placements.get(&ask.session);
            let wanted = authority::Acquire {
                session: ask.session.clone(),
                by: ask.by.clone(),
                attempt: ask.attempt,
                binding: Binding {
                    tenant: ask.wanted.tenant.clone(),
                    pipeline: ask
                        .wanted
                        .pipeline
                        .clone()
                        .expect("sessions say what they run"),
                    policy: ask.wanted.policy.clone(),
                    providers: ask.wanted.providers.clone(),
                },
            };
            let seen = state.seen(&ask.session);
            let granted = authority::acquire(current, seen, &wanted, WallClock(0));
            let granted = granted.map_err(refused)?;
            let placement = granted.placement;
            if !granted.repeated {
                state.grants.push((
                    ask.session.clone(),
                    placement.epoch,
                    ask.by.runtime.clone(),
                    Instant::now(),
                ));
            }
            let epoch = placement.epoch;
            let binding = placement.binding.clone();
            state.placements.insert(ask.session.clone(), placement);
            Ok(Granted {
                session: ask.session.clone(),
                epoch,
                proof: state.proof(&ask.session, &ask.by, epoch),
                ttl: TTL,
                taken_over: granted.taken_over,
                resumed: epoch > Epoch::FIRST,
                degraded: state.degrades,
                binding,
            })
        })
    }

    fn renew(&self, by: &Holder, held: Vec<HeldSession>) -> Answer<Renewed> {
        let by = by.clone();
        self.call("renew", move |state| {
            state.life(&by)?;
            state.lives.insert(by.clone(), Instant::now() + KEPT);
            state.held.push(held.len());
            let mut renewed = Renewed {
                ttl: TTL,
                ..Renewed::default()
            };
            for HeldSession { session, epoch, .. } in &held {
                let placement = state.placements.get(session);
                if authority::check(placement, &by, *epoch).is_err() {
                    renewed.lost.push(Lost {
                        session: session.clone(),
                        newest: placement.map(|it| it.epoch),
                    });
                } else if let Some(Standing::Revoking {
                    why,
                    finish_within,
                    to,
                    ..
                }) = placement.map(|it| &it.standing)
                {
                    renewed.revoked.push(Revocation {
                        session: session.clone(),
                        epoch: *epoch,
                        why: *why,
                        finish_within: *finish_within,
                        to: to.clone(),
                    });
                }
            }
            Ok(renewed)
        })
    }

    fn release(&self, writer: Writer, leave: Leave) -> Answer<()> {
        self.call("release", move |state| {
            let current = state.placements.get(&writer.session);
            let left = match &leave {
                Leave::Release => authority::release(current, &writer.by, writer.epoch),
                Leave::End { why } => {
                    authority::end(current, &writer.by, writer.epoch, why, WallClock(0))
                }
            };
            if let Some(left) = left.map_err(refused)? {
                state.placements.insert(writer.session.clone(), left);
                if matches!(leave, Leave::End { .. }) {
                    state.values.remove(&writer.session);
                }
            }
            Ok(())
        })
    }

    fn load_state(&self, reader: Writer, keys: Vec<String>) -> Answer<BTreeMap<String, Stored>> {
        self.call("load_state", move |state| {
            state.check(&reader)?;
            let values = state.values.get(&reader.session).cloned();
            let mut values = values.unwrap_or_default();
            values.retain(|key, _| keys.is_empty() || keys.contains(key));
            Ok(values)
        })
    }

    fn commit_state(&self, writer: Writer, writes: Vec<Write>) -> Answer<Vec<Version>> {
        self.call("commit_state", move |state| {
            state.check(&writer)?;
            let values = state.values.entry(writer.session.clone()).or_default();
            let written = writes.iter().map(|write| {
                let version = values.get(&write.key).map_or(0, |it| it.version.0) + 1;
                let stored = Stored {
                    value: Arc::clone(&write.value),
                    version: Version(version),
                    epoch: writer.epoch,
                };
                values.insert(write.key.clone(), stored);
                Version(version)
            });
            Ok(written.collect())
        })
    }

    fn report_status(&self, _by: &Holder, reports: Vec<StatusReport>) -> Answer<Vec<SessionId>> {
        self.call("report_status", move |state| {
            for report in &reports {
                state.phases.insert(report.session.clone(), report.phase);
            }
            Ok(Vec::new())
        })
    }

    fn report_usage(&self, report: UsageReport) -> Answer<Option<Beyond>> {
        self.call("report_usage", move |state| {
            let name = (report.tenant.clone(), report.report.clone());
            let is_new = state.usage.insert(name, report.tokens).is_none();
            let used = state.used.entry(report.tenant.clone()).or_default();
            *used += if is_new { report.tokens } else { 0 };
            let used = *used;
            Ok(state
                .tokens
                .filter(|(limit, _)| used >= *limit)
                .map(|(_, it)| it))
        })
    }

    fn report_readings(&self, by: &Holder, number: u64, counts: Vec<VersionCount>) -> Answer<()> {
        let by = by.clone();
        self.call("report_readings", move |state| {
            if state
                .readings
                .insert((by.clone(), number), counts.clone())
                .is_none()
            {
                state.counted.extend(counts.iter().cloned());
            }
            Ok(())
        })
    }

    fn route(&self, _ask: RouteAsk) -> Answer<Route> {
        self.call("route", |_| Err(ControlError::UnknownSession))
    }

    fn artifact(&self, _kind: Kind, _version: String) -> Answer<Artifact> {
        self.call("artifact", |_| Err(ControlError::UnknownSession))
    }

    fn orders(&self, by: &Holder) -> Orders {
        let (sender, orders) = mpsc::unbounded_channel();
        let _settled = sender.send(Order::Settled);
        self.plane.state().orders.insert(by.clone(), sender);
        let orders = stream::unfold(orders, |mut orders| async move {
            orders.recv().await.map(|order| (Ok(order), orders))
        });
        orders.boxed()
    }

    fn snapshots(&self, kinds: Vec<SnapshotKind>) -> Snapshots {
        self.note("snapshots");
        let changes = self.plane.state().snapshots().subscribe();
        let way = Arc::clone(&self.way);
        let number = {
            let mut own = way.lock().expect("nobody panics here");
            own.streams += 1;
            own.streams
        };
        let is_silent = move |way: &Mutex<Ways>| {
            is_cut(way) || way.lock().expect("nobody panics here").stalled >= number
        };
        let state = (changes, 0, way);
        let keys = SnapshotUpdate {
            snapshot: Some(keyring()),
            age: Duration::ZERO,
        };
        let changing = stream::unfold(state, move |(mut changes, told, way)| async move {
            loop {
                let (revision, _) = *changes.borrow_and_update();
                if revision > told && !is_silent(&way) {
                    let snapshot = Snapshot {
                        kind: SnapshotKind::RoutingView,
                        name: format!("routing-view/{revision}"),
                        revision,
                        document: "{}".into(),
                    };
                    let update = SnapshotUpdate {
                        snapshot: Some(snapshot),
                        age: Duration::ZERO,
                    };
                    return Some((Ok(update), (changes, revision, way)));
                }
                tokio::select! {
                    _ = changes.changed() => {}
                    () = tokio::time::sleep(Duration::from_secs(1)) => {
                        if !is_silent(&way) {
                            let update = SnapshotUpdate {
                                snapshot: None,
                                age: Duration::ZERO,
                            };
                            return Some((Ok(update), (changes, told, way)));
                        }
                    }
                }
            }
        });
        let keys = (kinds.is_empty() || kinds.contains(&SnapshotKind::Keyring)).then_some(Ok(keys));
        stream::iter(keys).chain(changing).boxed()
    }
}
