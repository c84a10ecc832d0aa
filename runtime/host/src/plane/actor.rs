//! The link itself: one actor that asks, listens, and hands on what is decided.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use rspp_actors::{ExitReason, NoData, NoTelemetry, Pump, PumpContext};
use rspp_controlplane_api::{
    Claimed, ControlError, Duty as NodeDuty, Granted, Joined, Lease, LeaseError, Order, Orders,
    Revocation, Snapshot, SnapshotKind, SnapshotUpdate, Snapshots as SnapshotStream, Terms,
    Unproven, Wanted, millis,
};
use rspp_kernel::keeper::{Ask, Denial, Duty, Keeper, Parting};
use rspp_proto::{Epoch, Monotonic, SessionId, control::Load};
use tokio::{sync::oneshot, time::Instant};

use super::{
    PlaneConfig,
    carry::{Carried, Carrier},
    news::News,
    roster::Roster,
    shared::{Granting, Request, Right, Shared},
    telling::{Counted, Teller},
    view::FETCH_WITHIN,
};
use crate::{
    Snapshots,
    admission::{Gatekeeper, wall},
    capacity::CpuProbe,
};

/// Reports of one heartbeat.
const MOST_REPORTS: usize = 500;
/// How long to wait before orders or snapshots are listened to again, if listening ended.
const LISTEN_AGAIN: Duration = Duration::from_millis(500);
/// How often to say how busy the node is, until it is told.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What the node says of itself with each heartbeat, and whom it hands orders to.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) shared: Arc<Shared>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) gatekeeper: Arc<Gatekeeper>,
    pub(crate) cpu: Arc<dyn CpuProbe>,
    pub(crate) snapshots: Arc<Snapshots>,
}

/// A request of the link that the keeper knows nothing of.
enum Told {
    Request(Box<Carried>),
    Duty(Result<NodeDuty, ControlError>),
    Reported(Result<Vec<SessionId>, ControlError>),
    Going(Result<(), ControlError>),
    Counted(Counted),
    /// A view of the fleet that was fetched by itself, and how old it was when it was sent.
    View(Result<(Snapshot, Duration), String>),
}

/// A wish, while it waits and while what it led to is held.
struct Wish {
    ticket: u64,
    wanted: Wanted,
    answer: Option<Granting>,
    epoch: Option<Epoch>,
}

/// The actor.
pub(crate) struct ControlPlaneLink {
    config: PlaneConfig,
    around: Surroundings,
    keeper: Keeper,
    carrier: Carrier,
    under_way: FuturesUnordered<BoxFuture<'static, Told>>,
    wishes: BTreeMap<SessionId, Wish>,
    /// Why sessions are over that are being parted with.
    last_words: BTreeMap<(SessionId, Epoch), String>,
    news: News,
    teller: Teller,
    /// Who waits for a view that is being fetched.
    refreshing: Vec<oneshot::Sender<Result<(), String>>>,
    snapshots: Option<SnapshotStream>,
    orders: Option<Orders>,
    listen_at: Option<Monotonic>,
    heartbeat: Duration,
    beat_at: Option<Monotonic>,
    /// What came with the answer that the keeper is looking at.
    joined: Option<Joined>,
    granted: Option<Granted>,
    /// How much later than tokio's clock the one that does not stand still is.
    suspended: Duration,
}

impl ControlPlaneLink {
    pub(crate) fn new(config: PlaneConfig, around: Surroundings) -> Self {
        // Whatever an earlier incarnation of this actor held is not ours: nobody renewed it since.
        around.shared.left();
        around.roster.silence_all();
        let news = News::new(
            Arc::clone(&around.shared),
            Arc::clone(&around.snapshots),
            config.max_staleness,
        );
        let teller = Teller::new(&around.shared, &around.gatekeeper, &config.plane);
        Self {
            keeper: Keeper::new(config.keeper),
            carrier: Carrier {
                plane: Arc::clone(&config.plane),
                runtime: config.runtime.clone(),
                description: config.description.clone(),
                holder: None,
            },
            config,
            around,
            under_way: FuturesUnordered::new(),
            wishes: BTreeMap::new(),
            last_words: BTreeMap::new(),
            news,
            teller,
            refreshing: Vec::new(),
            snapshots: None,
            orders: None,
            listen_at: None,
            heartbeat: HEARTBEAT,
            beat_at: None,
            joined: None,
            granted: None,
            suspended: stood_still(),
        }
    }

    fn now(&self) -> Monotonic {
        self.around.shared.now()
    }

    // --- what comes in -----------------------------------------------------------------------

    fn requested(&mut self) {
        for request in self.around.shared.take_requests() {
            let now = self.now();
            match request {
                Request::Want {
                    session,
                    wanted,
                    ticket,
                    answer,
                } => {
                    // The keeper answers whoever waited for the same session before.
                    let before = self.wishes.remove(&session);
                    if let Some(answer) = before.and_then(|wish| wish.answer) {
                        let reason = "the same session was asked for again".to_owned();
                        let _nobody_waits = answer.send(Err(LeaseError::Refused {
                            session: session.clone(),
                            reason,
                            may_retry: false,
                        }));
                    }
                    let wish = Wish {
                        ticket,
                        wanted,
                        answer: Some(answer),
                        epoch: None,
                    };
                    self.keeper_denies_older(&session);
                    self.wishes.insert(session.clone(), wish);
                    self.keeper.want(now, session);
                }
                Request::Unwant { session, ticket } => {
                    let wish = self.wishes.get(&session).filter(|it| it.ticket == ticket);
                    let Some(wish) = wish else { continue };
                    match wish.epoch {
                        Some(epoch) => self.keeper.part(now, &session, epoch, Parting::Release),
                        None => self.keeper.unwant(now, &session),
                    }
                }
                Request::Part {
                    session,
                    epoch,
                    how,
                    why,
                } => {
                    self.around.shared.lost(&session, epoch);
                    if let Some(why) = why {
                        self.last_words.insert((session.clone(), epoch), why);
                    }
                    self.keeper.part(now, &session, epoch, how);
                    self.forget(&session, epoch);
                }
                Request::Refresh { answer } => self.refresh(answer),
            }
            self.carry_out();
        }
    }

    /// A wish that is replaced has been answered here already; the keeper's word of it means nobody.
    fn keeper_denies_older(&mut self, session: &SessionId) {
        let now = self.now();
        self.keeper.unwant(now, session);
        self.carry_out();
    }

    fn told(&mut self, told: Told) {
        match told {
            Told::Request(carried) => {
                let Carried {
                    request,
                    answer,
                    joined,
                    not_joined,
                    granted,
                } = *carried;
                if let Some(why) = not_joined {
                    self.stays_out(why);
                }
                self.joined = joined;
                self.granted = granted;
                self.keeper.answered(self.now(), request, answer);
                self.carry_out();
                self.joined = None;
                self.granted = None;
            }
            Told::Duty(Ok(duty)) => self.duty(duty),
            Told::Duty(Err(error)) => tracing::debug!(%error, "a heartbeat was not heard"),
            Told::Reported(Ok(stale)) => {
                tracing::trace!(stale = stale.len(), "sessions were reported");
            }
            Told::Reported(Err(error)) => {
                tracing::debug!(%error, "sessions were not reported");
                self.around.roster.say_again();
            }
            Told::Going(Ok(())) => {}
            Told::Going(Err(error)) => tracing::warn!(%error, "what is here was not told"),
            Told::Counted(counted) => self.teller.heard(counted),
            Told::View(fetched) => self.refreshed(fetched),
        }
    }

    fn duty(&self, duty: NodeDuty) {
        let draining = duty == NodeDuty::Draining;
        self.around.shared.note(|status| status.draining = draining);
    }

    fn ordered(&mut self, order: Order) {
        match order {
            Order::Drain => {
                self.duty(NodeDuty::Draining);
                self.say_what_is_here();
            }
            Order::Serve => self.duty(NodeDuty::Serving),
            Order::Settled => {}
            Order::Revoke(Revocation {
                session,
                epoch,
                why,
                finish_within,
                to,
            }) => {
                let to = to.as_ref().map(tracing::field::display);
                tracing::info!(session_id = %session, %epoch, why = why.as_str(), finish_within_ms = millis(finish_within), to, "a session is to be let go");
                let now = self.now();
                self.keeper
                    .told_to_let_go(now, &session, epoch, finish_within);
                self.carry_out();
            }
        }
    }

    /// An operator empties the node: what it has is accounted for, also what the control plane's own view had
    /// not shown yet. How the sessions go is the operator's word.
    fn say_what_is_here(&mut self) {
        if let Some(holder) = &self.carrier.holder {
            let sessions = self.around.shared.held();
            let told = self.config.plane.begin_drain(holder, None, sessions);
            self.under_way
                .push(Box::pin(async { Told::Going(told.await) }));
        }
    }

    // --- the view of the fleet ---------------------------------------------------------------

    /// Fetches the view, unless that is under way.
    fn refresh(&mut self, answer: oneshot::Sender<Result<(), String>>) {
        self.refreshing.retain(|waits| !waits.is_closed());
        self.refreshing.push(answer);
        if self.refreshing.len() > 1 {
            return;
        }
        let mut updates = self.config.plane.snapshots(vec![SnapshotKind::RoutingView]);
        let fetched = async move {
            let view = async {
                loop {
                    let update = updates.next().await;
                    let update = update.ok_or("the control plane ended the stream")?;
                    let SnapshotUpdate { snapshot, age } =
                        update.map_err(|error| error.to_string())?;
                    if let Some(view) = snapshot.filter(|it| it.kind == SnapshotKind::RoutingView) {
                        return Ok((view, age));
                    }
                }
            };
            let fetched = tokio::time::timeout(FETCH_WITHIN, view).await;
            let silent = || Err(format!("nobody answered within {FETCH_WITHIN:?}"));
            Told::View(fetched.unwrap_or_else(|_| silent()))
        };
        self.under_way.push(Box::pin(fetched));
    }

    fn refreshed(&mut self, fetched: Result<(Snapshot, Duration), String>) {
        let told = fetched.map(|(view, age)| {
            let now = self.now();
            self.news.take_view(now, view, age);
            // Whoever should have told it long ago is asked anew.
            self.snapshots = None;
        });
        for waits in self.refreshing.drain(..) {
            let _nobody_waits = waits.send(told.clone());
        }
    }

    // --- what the keeper decides -------------------------------------------------------------

    fn carry_out(&mut self) {
        while let Some(duty) = self.keeper.poll_duty() {
            match duty {
                Duty::Ask { request, ask } => {
                    let wanted = match &ask {
                        Ask::Acquire { session, .. } => {
                            self.wishes.get(session).map(|wish| wish.wanted.clone())
                        }
                        Ask::Join | Ask::Renew { .. } | Ask::Part { .. } => None,
                    };
                    let why = match &ask {
                        Ask::Part { session, epoch, .. } => {
                            self.last_words.get(&(session.clone(), *epoch)).cloned()
                        }
                        Ask::Join | Ask::Renew { .. } | Ask::Acquire { .. } => None,
                    };
                    let carried = self.carrier.carry(request, ask, wanted, why);
                    let told = async { Told::Request(Box::new(carried.await)) };
                    self.under_way.push(Box::pin(told));
                }
                Duty::Joined => self.began(),
                Duty::Renewed { asked, ttl } => self.around.shared.renewed(Right { asked, ttl }),
                Duty::Granted {
                    session,
                    epoch,
                    asked,
                    ttl,
                    taken_over,
                } => self.grant(&session, epoch, asked, ttl, taken_over),
                Duty::Denied { session, denial } => self.deny(session, denial),
                Duty::LetGo {
                    session,
                    epoch,
                    asked,
                    ttl,
                } => {
                    let right = Right { asked, ttl };
                    self.around.shared.going(session.clone(), right);
                    self.around
                        .roster
                        .let_go(&session, epoch, right.silent_at());
                }
                Duty::Lost { session, epoch } => {
                    tracing::warn!(session_id = %session, %epoch, "the session is no longer ours");
                    self.around.shared.lost(&session, epoch);
                    self.around.roster.silence(&session, epoch);
                    self.forget(&session, epoch);
                }
                Duty::Left { reason } => self.ended(reason),
            }
        }
    }

    /// What a wish has led to is over; a newer wish for the same session is not.
    fn forget(&mut self, session: &SessionId, epoch: Epoch) {
        let wish = self.wishes.get(session);
        if wish.is_some_and(|wish| wish.epoch == Some(epoch)) {
            self.wishes.remove(session);
        }
    }

    fn began(&mut self) {
        let Some(joined) = self.joined.take() else {
            return;
        };
        tracing::info!(holder = %joined.holder, ttl_ms = millis(joined.ttl), "joined the fleet");
        self.heartbeat = joined.heartbeat;
        self.beat_at = Some(self.now());
        self.carrier.holder = Some(joined.holder.clone());
        self.around.shared.joined(joined.holder.clone());
        self.orders = Some(self.config.plane.orders(&joined.holder));
        self.around.shared.note(|status| {
            status.holder = Some(joined.holder);
            status.away = None;
            // What was ordered of an earlier life is ordered anew if it still holds.
            status.draining = false;
        });
    }

    /// The node was not let in. Said once for as long as it is for the same reason.
    fn stays_out(&mut self, why: String) {
        let status = self.around.shared.status();
        if status.borrow().holder.is_some() || status.borrow().away.as_ref() == Some(&why) {
            return;
        }
        tracing::warn!(why, "could not join the fleet; it is tried again and again");
        self.around.shared.note(|status| status.away = Some(why));
    }

    fn ended(&mut self, reason: String) {
        tracing::warn!(reason, "left the fleet: no session is ours any more");
        self.carrier.holder = None;
        self.orders = None;
        self.beat_at = None;
        self.around.shared.left();
        self.wishes.retain(|_, wish| wish.answer.is_some());
        self.around.shared.note(|status| {
            status.holder = None;
            status.away = Some(reason);
        });
    }

    fn grant(
        &mut self,
        session: &SessionId,
        epoch: Epoch,
        asked: Monotonic,
        ttl: Duration,
        taken_over: bool,
    ) {
        let granted = self.granted.take();
        if let Err(unproven) = self.proven(session, epoch, granted.as_ref()) {
            tracing::warn!(session_id = %session, %epoch, %unproven, "the lease's proof is refused, and so is the lease");
            let now = self.now();
            self.keeper.part(now, session, epoch, Parting::Release);
            let wish = self.wishes.remove(session);
            if let Some(answer) = wish.and_then(|wish| wish.answer) {
                let _nobody_waits = answer.send(Err(LeaseError::Refused {
                    session: session.clone(),
                    reason: format!("the proof of its lease is refused: {unproven}"),
                    may_retry: unproven == Unproven::UnknownKey,
                }));
            }
            return;
        }
        let degraded = granted.as_ref().is_some_and(|granted| granted.degraded);
        if degraded {
            tracing::info!(session_id = %session, "its tenant is beyond a limit");
        }
        let lease = Lease {
            ttl: Some(ttl),
            taken_over,
            asked: Some(asked),
            terms: if degraded { Terms::Less } else { Terms::Full },
            binding: granted.map(|granted| Arc::new(granted.binding)),
            ..Lease::new(session.clone(), epoch)
        };
        let Some(wish) = self.wishes.get_mut(session) else {
            let now = self.now();
            self.keeper.part(now, session, epoch, Parting::Release);
            return;
        };
        wish.epoch = Some(epoch);
        self.around.shared.granted(session.clone(), epoch);
        let answer = wish.answer.take();
        if answer.is_none_or(|answer| answer.send(Ok(lease)).is_err()) {
            self.around.shared.lost(session, epoch);
            let now = self.now();
            self.keeper.part(now, session, epoch, Parting::Release);
        }
    }

    /// Whether a grant is the control plane's own: signed by a key of the newest ring, for this life of the
    /// node and this epoch, and not over.
    fn proven(
        &self,
        session: &SessionId,
        epoch: Epoch,
        granted: Option<&Granted>,
    ) -> Result<(), Unproven> {
        let status = self.around.shared.status();
        let status = status.borrow();
        let (Some(granted), Some(holder)) = (granted, &self.carrier.holder) else {
            return Err(Unproven::Refused("nobody said so"));
        };
        let keyring = status.keyring.as_ref().ok_or(Unproven::UnknownKey)?;
        let claimed = Claimed {
            session,
            holder,
            epoch,
        };
        self.config
            .proofs
            .check(&granted.proof, keyring, claimed, wall())
    }

    fn deny(&mut self, session: SessionId, denial: Denial) {
        let Some(wish) = self.wishes.get_mut(&session) else {
            return;
        };
        let answer = wish.answer.take();
        // One that may have been granted all the same is asked for until that is known, to be given back.
        if !self.keeper.knows(&session) {
            self.wishes.remove(&session);
        }
        let Some(answer) = answer else {
            return;
        };
        let error = match denial {
            Denial::Away { reason } => LeaseError::Unreachable { session, reason },
            Denial::Busy { reason } => LeaseError::Refused {
                session,
                reason,
                may_retry: true,
            },
            Denial::Refused { reason } => LeaseError::Refused {
                session,
                reason,
                may_retry: false,
            },
        };
        let _nobody_waits = answer.send(Err(error));
    }

    // --- time --------------------------------------------------------------------------------

    fn tick(&mut self) {
        let now = self.now();
        // tokio's clock stands still while the machine is suspended; the world's does not.
        let suspended = stood_still();
        if suspended > self.suspended + Duration::from_millis(500) {
            self.keeper.clock_stood_still(now);
        }
        self.suspended = self.suspended.max(suspended);
        self.keeper.tick(now);
        self.carry_out();
        self.news.tick(now);
        if self.listen_at.is_none_or(|at| at <= now) {
            self.listen_at = None;
            if self.snapshots.is_none() {
                self.snapshots = Some(self.config.plane.snapshots(Vec::new()));
            }
            if self.orders.is_none()
                && let Some(holder) = &self.carrier.holder
            {
                self.orders = Some(self.config.plane.orders(holder));
            }
        }
        if self.beat_at.is_some_and(|at| at <= now) {
            self.beat_at = Some(now + self.heartbeat);
            self.beat();
        }
    }

    fn beat(&mut self) {
        let Some(holder) = &self.carrier.holder else {
            return;
        };
        // Wishes that came to nothing while nobody waited.
        let keeper = &self.keeper;
        self.wishes.retain(|session, _| keeper.knows(session));
        self.last_words
            .retain(|(session, _), _| keeper.knows(session));
        let counting = self.teller.tell(holder, false);
        let counting = counting.into_iter().map(counted);
        self.under_way.extend(counting);
        let load = self.load();
        let beat = self.config.plane.heartbeat(holder, load);
        self.under_way
            .push(Box::pin(async { Told::Duty(beat.await) }));
        let reports = self.around.roster.news(MOST_REPORTS);
        if !reports.is_empty() {
            let reported = self.config.plane.report_status(holder, reports);
            self.under_way
                .push(Box::pin(async { Told::Reported(reported.await) }));
        }
    }

    fn load(&self) -> Load {
        use rspp_kernel::admission::Load as Felt;
        let cpu = self.around.cpu.cpu_percent().unwrap_or(0);
        Load {
            sessions: u32::try_from(self.around.roster.len()).unwrap_or(u32::MAX),
            cpu_percent: cpu.min(100) as u8,
            ready: self.around.shared.is_ready(),
            overloaded: match self.around.gatekeeper.load() {
                Felt::Severe => true,
                Felt::Normal | Felt::High => false,
            },
            outages: self.around.shared.outages(),
        }
    }

    fn next_deadline(&self) -> Option<Monotonic> {
        let listen = self
            .listen_at
            .or_else(|| self.snapshots.is_none().then(|| self.now()));
        [
            self.keeper.next_deadline(),
            self.news.deadline(),
            listen,
            self.beat_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Gives up what is held, so that others can go on at once; not longer than the grace allows.
    async fn wind_up(&mut self) {
        let deadline = Instant::now() + Duration::from_millis(1_500);
        // What the last sessions have shown and used is nobody's to tell later.
        if let Some(holder) = &self.carrier.holder {
            let counting = self.teller.tell(holder, true);
            self.under_way.extend(counting.into_iter().map(counted));
        }
        loop {
            self.requested();
            if self.keeper.is_idle() && !self.teller.waits() {
                break;
            }
            let told = tokio::time::timeout_at(deadline, self.under_way.next());
            match told.await {
                Ok(Some(told)) => self.told(told),
                Ok(None) | Err(_) => break,
            }
        }
        self.keeper.retire(self.now());
        self.carry_out();
    }
}

impl Pump for ControlPlaneLink {
    type Control = std::convert::Infallible;
    type Data = NoData;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "control_plane_link";

    async fn run(&mut self, ctx: &mut PumpContext<Self>) -> ExitReason {
        let stopped = ctx.cancellation().clone();
        let clock = ctx.clock();
        let shared = Arc::clone(&self.around.shared);
        loop {
            self.tick();
            let due = self.next_deadline();
            let due = due.map_or(Duration::from_secs(1), Monotonic::as_duration);
            // Also looked at without a reason: the machine may have been suspended.
            let latest = clock.now() + Duration::from_millis(500);
            let due = clock.instant_at(due.min(latest));
            tokio::select! {
                biased;
                () = stopped.cancelled() => {
                    self.wind_up().await;
                    return ExitReason::Stopped(ctx.stop_reason().unwrap_or_default());
                }
                Some(told) = self.under_way.next() => self.told(told),
                () = shared.requested() => self.requested(),
                order = next(&mut self.orders) => match order {
                    Some(Ok(order)) => self.ordered(order),
                    Some(Err(error)) => tracing::debug!(%error, "orders were interrupted"),
                    None => self.orders_ended(),
                },
                update = next(&mut self.snapshots) => match update {
                    Some(Ok(update)) => self.news.take(self.around.shared.now(), update),
                    Some(Err(error)) => tracing::debug!(%error, "snapshots were interrupted"),
                    None => self.snapshots_ended(),
                },
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }
}

impl ControlPlaneLink {
    fn orders_ended(&mut self) {
        self.orders = None;
        self.listen_at = Some(self.now() + LISTEN_AGAIN);
    }

    fn snapshots_ended(&mut self) {
        self.snapshots = None;
        self.listen_at = Some(self.now() + LISTEN_AGAIN);
    }
}

fn counted(counting: BoxFuture<'static, Counted>) -> BoxFuture<'static, Told> {
    Box::pin(async { Told::Counted(counting.await) })
}

/// The next item of a stream, if there is a stream.
async fn next<S: futures::Stream + Unpin>(stream: &mut Option<S>) -> Option<S::Item> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

/// How much longer the machine has been up than its processors have run.
fn stood_still() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let read = |clock| {
        let at = clock_gettime(clock);
        Duration::new(at.tv_sec as u64, at.tv_nsec as u32)
    };
    read(ClockId::Boottime).saturating_sub(read(ClockId::Monotonic))
}
