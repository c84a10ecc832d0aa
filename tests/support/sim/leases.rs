//! Leases that run out, and a way to whoever grants them that may break.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rspp_controlplane_api::{Lease, LeaseError, Leases, LocalLeases, Renewal, Taking, Wanted};
use rspp_proto::{Epoch, SessionId};
use tokio::time::Instant;

/// How long an answer is under way.
const ANSWERED_AFTER: Duration = Duration::from_millis(15);

/// Grants leases as the control plane does: to nobody else before one has run out or was given up.
#[derive(Debug)]
pub struct SimLeases {
    local: LocalLeases,
    ttl: Option<Duration>,
    /// A planted bug: grants what is held.
    generous: bool,
    sessions: Mutex<BTreeMap<SessionId, Held>>,
}

/// What is known of a session's lease.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// The newest epoch.
    epoch: Epoch,
    /// The epoch under which the newest placement began.
    placed: Epoch,
    /// Until when it is that placement's, if leases run out.
    until: Option<Instant>,
    /// The placement whose way here is cut, by the epoch under which it began.
    cut: Option<Epoch>,
}

impl SimLeases {
    /// Leases that last for `ttl`, if they run out; `generous` ones are granted though they are held.
    pub fn new(ttl: Option<Duration>, generous: bool) -> Self {
        Self {
            local: LocalLeases::default(),
            ttl,
            generous,
            sessions: Mutex::default(),
        }
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<SessionId, Held>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grants a newer epoch whoever has the session, and makes no new placement of that.
    pub(super) fn rotate(&self, session: &SessionId) -> Lease {
        let lease = self.local.acquire(session).expect("local leases are");
        if let Some(held) = self.sessions().get_mut(session) {
            held.epoch = lease.epoch;
        }
        lease
    }

    /// Whether leases run out.
    pub(super) fn run_out(&self) -> bool {
        self.ttl.is_some()
    }

    /// The session's holder reaches nobody here from now on.
    pub fn cut(&self, session: &SessionId) {
        if let Some(held) = self.sessions().get_mut(session) {
            held.cut = Some(held.placed);
        }
    }

    /// The epoch under which the session's newest placement began.
    pub(super) fn placed(&self, session: &SessionId) -> Option<Epoch> {
        self.sessions().get(session).map(|held| held.placed)
    }

    /// The epoch under which its next placement would begin.
    pub(super) fn next(&self, session: &SessionId) -> Epoch {
        let sessions = self.sessions();
        let held = sessions.get(session);
        held.map_or(Epoch::FIRST, |held| held.epoch.next())
    }

    /// Whether whoever has this lease is cut off.
    fn reach(&self, lease: &Lease) -> Result<(), LeaseError> {
        let sessions = self.sessions();
        let Some(held) = sessions.get(&lease.session) else {
            return Ok(());
        };
        let is_newest = lease.epoch >= held.placed;
        let is_cut = held
            .cut
            .is_some_and(|cut| lease.epoch >= cut && (!is_newest || held.placed == cut));
        if is_cut {
            return Err(LeaseError::Unreachable {
                session: lease.session.clone(),
                reason: "the way is cut".to_owned(),
            });
        }
        Ok(())
    }
}

impl SimLeases {
    /// Grants a lease, unless somebody holds one.
    pub fn acquire(&self, session: &SessionId) -> Result<Lease, LeaseError> {
        let now = Instant::now();
        let mut sessions = self.sessions();
        let before = sessions.get(session).copied();
        let is_held = before
            .and_then(|held| held.until)
            .is_some_and(|until| until > now);
        if is_held && !self.generous {
            return Err(LeaseError::Unreachable {
                session: session.clone(),
                reason: "it is held".to_owned(),
            });
        }
        let lease = Lease {
            ttl: self.ttl,
            ..self.local.acquire(session)?
        };
        let held = Held {
            epoch: lease.epoch,
            placed: lease.epoch,
            until: self.ttl.map(|ttl| now + ttl),
            cut: before.and_then(|held| held.cut),
        };
        sessions.insert(session.clone(), held);
        Ok(lease)
    }
}

impl Leases for SimLeases {
    fn take(&self, session: &SessionId, _wanted: &Wanted) -> Taking {
        let granted = self.acquire(session);
        Box::pin(std::future::ready(granted))
    }

    fn check(&self, lease: &Lease) -> Result<(), LeaseError> {
        self.reach(lease)?;
        self.local.check(lease)
    }

    fn renew(&self, lease: &Lease) -> Renewal {
        let answer = self.check(lease).map(|()| lease.clone());
        if answer.is_ok()
            && let Some(held) = self.sessions().get_mut(&lease.session)
        {
            held.until = self.ttl.map(|ttl| Instant::now() + ttl);
        }
        Box::pin(async {
            tokio::time::sleep(ANSWERED_AFTER).await;
            answer
        })
    }

    fn release(&self, lease: &Lease) -> Result<(), LeaseError> {
        self.reach(lease)?;
        self.local.release(lease)?;
        if let Some(held) = self.sessions().get_mut(&lease.session) {
            held.until = None;
        }
        Ok(())
    }
}
