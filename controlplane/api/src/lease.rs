//! Leases: the right to be a session's one writer (design §5).

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_proto::{Epoch, Monotonic, SessionId, control::Binding};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Wanted;

/// The right to write for a session, until a newer epoch is granted or its time is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The session.
    pub session: SessionId,
    /// Its newest epoch.
    pub epoch: Epoch,
    /// How long it lasts without renewal, from when it was asked for; `None`: until a newer one is
    /// granted.
    pub ttl: Option<Duration>,
    /// Whether another placement held the session until this one was granted, or has let go of it on the
    /// way here: what it kept is gone on with.
    pub taken_over: bool,
    /// Since when the lease counts, on its holder's clock; `None`: since it was asked for.
    #[serde(skip)]
    pub asked: Option<Monotonic>,
    /// What the session is bound to, if whoever granted the lease knows.
    #[serde(skip)]
    pub binding: Option<Arc<Binding>>,
    /// On which terms the session was let in.
    #[serde(skip)]
    pub terms: Terms,
    /// The view of the fleet that it was taken on by, if there is a fleet.
    #[serde(skip)]
    pub view: Option<UsedView>,
}

/// The view of the fleet that a session was moved by (F-159).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedView {
    /// Its name; none if nothing was ever heard.
    pub name: Option<String>,
    /// How old it was then.
    pub age: Option<Duration>,
    /// Whether it was fetched for that, because the one before was too old.
    pub refreshed: bool,
}

/// On which terms a session was let in (F-098).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Terms {
    /// As it asked.
    #[default]
    Full,
    /// With less: its tenant is beyond a limit.
    Less,
    /// Nobody could be asked, and the operator wants it let in then: uncounted, and without a lease that
    /// anybody granted.
    Unasked,
}

impl Lease {
    /// A lease that lasts until a newer one is granted, of a session that nobody held.
    pub fn new(session: SessionId, epoch: Epoch) -> Self {
        Self {
            session,
            epoch,
            ttl: None,
            taken_over: false,
            asked: None,
            binding: None,
            terms: Terms::Full,
            view: None,
        }
    }
}

/// A lease that is being asked for.
pub type Taking = Pin<Box<dyn Future<Output = Result<Lease, LeaseError>> + Send>>;
/// A renewal in progress.
pub type Renewal = Pin<Box<dyn Future<Output = Result<Lease, LeaseError>> + Send>>;

/// Why there is no lease.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LeaseError {
    /// A newer lease was granted.
    #[error("session {session} is held at {held}, not {offered}")]
    Stale {
        /// The session.
        session: SessionId,
        /// The newest epoch.
        held: Epoch,
        /// The epoch that was offered.
        offered: Epoch,
    },
    /// Nobody holds the session.
    #[error("session {session} has no lease")]
    Unknown {
        /// The session.
        session: SessionId,
    },
    /// Whoever grants leases says no.
    #[error("session {session} is not to be had: {reason}")]
    Refused {
        /// The session.
        session: SessionId,
        /// Why.
        reason: String,
        /// Whether it may be had a little later.
        may_retry: bool,
    },
    /// Nobody could be asked. The lease holds for as long as it was granted, and may be asked for again.
    #[error("the lease of session {session} could not be asked for: {reason}")]
    Unreachable {
        /// The session.
        session: SessionId,
        /// What was in the way.
        reason: String,
    },
}

/// Grants and checks leases.
pub trait Leases: Send + Sync + 'static {
    /// Grants a lease with an epoch above every earlier one of the session. `wanted` is what a session
    /// that is new is bound to. Who gives up waiting has asked for nothing.
    fn take(&self, session: &SessionId, wanted: &Wanted) -> Taking;

    /// Whether `lease` is still the newest.
    fn check(&self, lease: &Lease) -> Result<(), LeaseError>;

    /// Prolongs the lease by its `ttl`, counted from now or from when the answer says. Whoever waits for
    /// the answer must not be whoever speaks for the session: it may take long.
    fn renew(&self, lease: &Lease) -> Renewal {
        let answer = self.check(lease).map(|()| lease.clone());
        Box::pin(std::future::ready(answer))
    }

    /// Gives the lease up; the session's epoch stays spent.
    fn release(&self, lease: &Lease) -> Result<(), LeaseError>;
}

/// The authority of a process that stands alone.
#[derive(Debug, Default)]
pub struct LocalLeases {
    epochs: Mutex<BTreeMap<SessionId, Held>>,
}

/// The newest lease of a session.
#[derive(Clone, Copy, Debug)]
struct Held {
    epoch: Epoch,
    /// Whether its holder has given it up.
    released: bool,
}

impl LocalLeases {
    /// Grants a lease, at once.
    pub fn acquire(&self, session: &SessionId) -> Result<Lease, LeaseError> {
        self.grant(session, None)
    }

    /// Grants a lease at `epoch`, which is above every earlier one of the session: what an authority that has
    /// counted elsewhere goes on with.
    pub fn acquire_at(&self, session: &SessionId, epoch: Epoch) -> Result<Lease, LeaseError> {
        self.grant(session, Some(epoch))
    }

    fn grant(&self, session: &SessionId, epoch: Option<Epoch>) -> Result<Lease, LeaseError> {
        let mut epochs = self.epochs.lock().expect("no code panics while locked");
        let before = epochs.get(session);
        let next = before.map_or(Epoch::FIRST, |held| held.epoch.next());
        let epoch = epoch.unwrap_or(next);
        if let Some(held) = before.map(|held| held.epoch)
            && epoch < next
        {
            return Err(LeaseError::Stale {
                session: session.clone(),
                held,
                offered: epoch,
            });
        }
        let lease = Lease {
            taken_over: before.is_some_and(|held| !held.released),
            ..Lease::new(session.clone(), epoch)
        };
        let held = Held {
            epoch,
            released: false,
        };
        epochs.insert(session.clone(), held);
        Ok(lease)
    }
}

impl Leases for LocalLeases {
    fn take(&self, session: &SessionId, _wanted: &Wanted) -> Taking {
        let granted = self.acquire(session);
        Box::pin(std::future::ready(granted))
    }

    fn check(&self, lease: &Lease) -> Result<(), LeaseError> {
        let epochs = self.epochs.lock().expect("no code panics while locked");
        match epochs.get(&lease.session) {
            None => Err(LeaseError::Unknown {
                session: lease.session.clone(),
            }),
            Some(held) if held.epoch == lease.epoch => Ok(()),
            Some(held) => Err(LeaseError::Stale {
                session: lease.session.clone(),
                held: held.epoch,
                offered: lease.epoch,
            }),
        }
    }

    fn release(&self, lease: &Lease) -> Result<(), LeaseError> {
        self.check(lease)?;
        let mut epochs = self.epochs.lock().expect("no code panics while locked");
        if let Some(held) = epochs.get_mut(&lease.session) {
            held.released |= held.epoch == lease.epoch;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lease_outdates_the_first() {
        let leases = LocalLeases::default();
        let session = SessionId::new("s").unwrap();
        let first = leases.acquire(&session).unwrap();
        let second = leases.acquire(&session).unwrap();
        assert!(second.epoch > first.epoch);
        assert!(!first.taken_over && second.taken_over);
        assert_eq!(leases.check(&second), Ok(()));
        assert_eq!(
            leases.check(&first),
            Err(LeaseError::Stale {
                session: session.clone(),
                held: second.epoch,
                offered: first.epoch
            })
        );
        // What was given up is not taken over.
        leases.release(&second).unwrap();
        let third = leases.acquire(&second.session).unwrap();
        assert!(!third.taken_over);
        // Epochs may leap, and only rise.
        let seventh = Epoch::new(7).unwrap();
        assert_eq!(leases.acquire_at(&session, seventh).unwrap().epoch, seventh);
        for held in [seventh, third.epoch] {
            let refused = leases.acquire_at(&session, held);
            assert!(matches!(refused, Err(LeaseError::Stale { .. })));
        }
        assert_eq!(leases.acquire(&session).unwrap().epoch, seventh.next());
    }
}
