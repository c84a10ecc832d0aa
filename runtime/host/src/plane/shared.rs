//! What the link, the sessions and whoever opens them have in common: the rights that are held, and the
//! wishes that wait for the link.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rspp_actors::Clock;
use rspp_controlplane_api::{Lease, LeaseError, Terms, Wanted, Writer};
use rspp_kernel::{authority::LeaseTimer, keeper::Parting, reading::ReadingsBook};
use rspp_proto::{
    Epoch, Monotonic, RuntimeId, SessionId,
    control::{Holder, MAX_OUTAGES, Outage},
};
use tokio::sync::{Notify, oneshot, watch};

use super::{AwayMode, PlaneConfig, PlaneStatus, tried::Readings, view::Heard};

/// What a wish for a session leads to.
pub(crate) type Granting = oneshot::Sender<Result<Lease, LeaseError>>;

/// What is asked of the link. There is never more than the sessions that the node was let in for, and the
/// clients at its door.
pub(crate) enum Request {
    Want {
        session: SessionId,
        wanted: Wanted,
        /// Tells this wish from a later one for the same session.
        ticket: u64,
        answer: Granting,
    },
    /// Nobody waits for the wish any more.
    Unwant { session: SessionId, ticket: u64 },
    Part {
        session: SessionId,
        epoch: Epoch,
        how: Parting,
        /// Why it is over, if it is.
        why: Option<String>,
    },
    /// The view of the fleet is too old for what is to be done.
    Refresh {
        answer: oneshot::Sender<Result<(), String>>,
    },
}

/// The right of the node's present life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Right {
    pub(crate) asked: Monotonic,
    pub(crate) ttl: Duration,
}

impl Right {
    fn is_over(self, now: Monotonic) -> bool {
        now >= self.silent_at()
    }

    /// When whoever has it falls silent at the latest.
    pub(crate) fn silent_at(self) -> Monotonic {
        LeaseTimer::new(self.asked, self.ttl).silent_at()
    }

    /// The same, but no longer than `other`.
    fn within(self, other: Self) -> Self {
        let (ends, latest) = (self.silent_at(), other.silent_at());
        if ends <= latest {
            return self;
        }
        // Counted from the newer renewal: a lease takes no word for news that is older than its own.
        let timer = LeaseTimer::ending(self.asked.min(latest), latest);
        Self {
            asked: self.asked.min(latest),
            ttl: timer.ttl(),
        }
    }
}

/// What is held.
#[derive(Default)]
struct Rights {
    holder: Option<Holder>,
    held: BTreeMap<SessionId, Epoch>,
    /// Held, but not prolonged beyond this any more.
    going: BTreeMap<SessionId, Right>,
    /// Sessions that this node has named itself, and serves without a lease.
    own: BTreeSet<SessionId>,
}

pub(crate) struct Shared {
    pub(crate) clock: Clock,
    runtime: RuntimeId,
    /// What is done by a view that is too old and cannot be refreshed.
    pub(super) mode: AwayMode,
    /// How old the view may be where sessions move.
    pub(super) max_view_age: Duration,
    pub(super) heard: Mutex<Heard>,
    /// Tells this process from an earlier one of the same name.
    boot: u64,
    rights: Mutex<Rights>,
    right: watch::Sender<Option<Right>>,
    requests: Mutex<Vec<Request>>,
    wake: Notify,
    status: watch::Sender<PlaneStatus>,
    ready: AtomicBool,
    outages: Mutex<Vec<Outage>>,
    /// What sessions have shown of their versions.
    pub(crate) readings: Readings,
    count: AtomicU64,
}

impl Shared {
    pub(crate) fn new(clock: Clock, fleet: &PlaneConfig, boot: u64) -> Arc<Self> {
        let away = Some("the control plane has not answered yet".to_owned());
        let (status, _) = watch::channel(PlaneStatus {
            away,
            ..PlaneStatus::default()
        });
        Arc::new(Self {
            clock,
            runtime: fleet.runtime.clone(),
            mode: fleet.mode,
            max_view_age: fleet.max_view_age,
            heard: Mutex::default(),
            boot,
            rights: Mutex::default(),
            right: watch::Sender::new(None),
            requests: Mutex::default(),
            wake: Notify::new(),
            status,
            ready: AtomicBool::new(true),
            outages: Mutex::default(),
            readings: Readings::default(),
            count: AtomicU64::new(0),
        })
    }

    pub(super) fn runtime(&self) -> &RuntimeId {
        &self.runtime
    }

    pub(crate) fn now(&self) -> Monotonic {
        Monotonic::from_duration(self.clock.now())
    }

    fn rights(&self) -> MutexGuard<'_, Rights> {
        self.rights.lock().expect("no code panics while locked")
    }

    // --- requests ----------------------------------------------------------------------------

    pub(crate) fn ask(&self, request: Request) {
        let mut requests = self.requests.lock().expect("no code panics while locked");
        requests.push(request);
        drop(requests);
        self.wake.notify_one();
    }

    pub(super) fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.requests.lock().expect("no code panics while locked"))
    }

    pub(super) async fn requested(&self) {
        self.wake.notified().await;
    }

    pub(super) fn next_number(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed)
    }

    // --- rights ------------------------------------------------------------------------------

    /// A life has begun.
    pub(super) fn joined(&self, holder: Holder) {
        self.rights().holder = Some(holder);
    }

    /// It is over, and nothing is held any more but what needs no lease.
    pub(super) fn left(&self) {
        let mut rights = self.rights();
        rights.holder = None;
        rights.held.clear();
        rights.going.clear();
        drop(rights);
        self.right.send_replace(None);
    }

    pub(super) fn renewed(&self, right: Right) {
        self.right.send_replace(Some(right));
    }

    pub(super) fn granted(&self, session: SessionId, epoch: Epoch) {
        let mut rights = self.rights();
        rights.going.remove(&session);
        rights.held.insert(session, epoch);
    }

    pub(super) fn going(&self, session: SessionId, right: Right) {
        self.rights().going.insert(session, right);
    }

    pub(super) fn lost(&self, session: &SessionId, epoch: Epoch) {
        let mut rights = self.rights();
        if rights.held.get(session) == Some(&epoch) {
            rights.held.remove(session);
            rights.going.remove(session);
        }
    }

    /// Who writes for a session.
    pub(crate) fn writer(&self, session: &SessionId, epoch: Epoch) -> Option<Writer> {
        let by = self.rights().holder.clone()?;
        Some(Writer {
            by,
            session: session.clone(),
            epoch,
        })
    }

    /// Who reads what a session keeps: its holder, at the epoch in force.
    pub(super) fn reader(&self, session: &SessionId) -> Option<Writer> {
        let epoch = *self.rights().held.get(session)?;
        self.writer(session, epoch)
    }

    pub(crate) fn check(&self, lease: &Lease) -> Result<(), LeaseError> {
        let session = || lease.session.clone();
        let rights = self.rights();
        if rights.own.contains(&lease.session) {
            return Ok(());
        }
        let right = *self.right.borrow();
        let over = right.is_none_or(|right| right.is_over(self.now()));
        match rights.held.get(&lease.session) {
            Some(held) if *held != lease.epoch => Err(LeaseError::Stale {
                session: session(),
                held: *held,
                offered: lease.epoch,
            }),
            Some(_) if !over => Ok(()),
            Some(_) | None => Err(LeaseError::Unknown { session: session() }),
        }
    }

    /// Waits until the lease lasts longer than it did, or is gone.
    pub(super) async fn prolonged(&self, lease: &Lease) -> Result<Lease, LeaseError> {
        let mut right = self.right.subscribe();
        loop {
            self.check(lease)?;
            let newer = *right.borrow_and_update();
            let newer = newer.filter(|newer| lease.asked.is_none_or(|asked| newer.asked > asked));
            let going = self.rights().going.get(&lease.session).copied();
            let newer = match going {
                None => newer,
                // Its last is told once; no later renewal prolongs that.
                Some(last) => newer.map(|newer| newer.within(last)).filter(|newer| {
                    let known = lease.asked.zip(lease.ttl);
                    let known = known.map(|(asked, ttl)| Right { asked, ttl });
                    known.is_none_or(|known| newer.silent_at() > known.silent_at())
                }),
            };
            if let Some(Right { asked, ttl }) = newer {
                return Ok(Lease {
                    ttl: Some(ttl),
                    asked: Some(asked),
                    ..lease.clone()
                });
            }
            if right.changed().await.is_err() {
                return Err(LeaseError::Unknown {
                    session: lease.session.clone(),
                });
            }
        }
    }

    // --- sessions without a lease ------------------------------------------------------------

    pub(crate) fn mode(&self) -> AwayMode {
        self.mode
    }

    pub(crate) fn name_session(&self) -> SessionId {
        let number = self.next_number();
        SessionId::new(format!("{}{number}", self.prefix())).expect("it is not blank")
    }

    fn prefix(&self) -> String {
        format!("{}.{:x}.", self.runtime, self.boot)
    }

    /// A lease of what nobody else can have, if this node has named it.
    pub(super) fn own(&self, session: &SessionId) -> Option<Lease> {
        if !session.as_str().starts_with(&self.prefix()) {
            return None;
        }
        // Once: what was ever held under an epoch is not begun again under the same one.
        let is_new = self.rights().own.insert(session.clone());
        is_new.then(|| Lease {
            terms: Terms::Unasked,
            ..Lease::new(session.clone(), Epoch::FIRST)
        })
    }

    pub(crate) fn is_own(&self, session: &SessionId) -> bool {
        self.rights().own.contains(session)
    }

    // --- standing ----------------------------------------------------------------------------

    pub(crate) fn status(&self) -> watch::Receiver<PlaneStatus> {
        self.status.subscribe()
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut PlaneStatus)) {
        self.status.send_modify(change);
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    pub(super) fn outages(&self) -> Vec<Outage> {
        self.outages
            .lock()
            .expect("no code panics while locked")
            .clone()
    }

    pub(super) fn set_outages(&self, mut outages: Vec<Outage>) {
        outages.truncate(MAX_OUTAGES);
        *self.outages.lock().expect("no code panics while locked") = outages;
    }

    /// What sessions have shown of their versions.
    pub(crate) fn readings(&self) -> MutexGuard<'_, ReadingsBook> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what is told by this process from what an earlier one told.
    pub(super) fn boot(&self) -> u64 {
        self.boot
    }

    /// The sessions that are held.
    pub(super) fn held(&self) -> Vec<SessionId> {
        self.rights().held.keys().cloned().collect()
    }
}
