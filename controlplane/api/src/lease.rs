//! Leases: the right to be a session's one writer (design §5).

use std::{collections::BTreeMap, sync::Mutex};

use rspp_proto::{Epoch, SessionId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The right to write for a session, until a newer epoch is granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The session.
    pub session: SessionId,
    /// Its newest epoch.
    pub epoch: Epoch,
}

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
}

/// Grants and checks leases.
pub trait Leases: Send + Sync + 'static {
    /// Grants a lease with an epoch above every earlier one of the session.
    fn acquire(&self, session: &SessionId) -> Result<Lease, LeaseError>;

    /// Whether `lease` is still the newest.
    fn check(&self, lease: &Lease) -> Result<(), LeaseError>;

    /// Gives the lease up; the session's epoch stays spent.
    fn release(&self, lease: &Lease) -> Result<(), LeaseError>;
}

/// The authority of a process that stands alone.
#[derive(Debug, Default)]
pub struct LocalLeases {
    epochs: Mutex<BTreeMap<SessionId, Epoch>>,
}

impl Leases for LocalLeases {
    fn acquire(&self, session: &SessionId) -> Result<Lease, LeaseError> {
        let mut epochs = self.epochs.lock().expect("no code panics while locked");
        let epoch = epochs.get(session).map_or(Epoch::FIRST, |held| held.next());
        epochs.insert(session.clone(), epoch);
        Ok(Lease {
            session: session.clone(),
            epoch,
        })
    }

    fn check(&self, lease: &Lease) -> Result<(), LeaseError> {
        let epochs = self.epochs.lock().expect("no code panics while locked");
        match epochs.get(&lease.session) {
            None => Err(LeaseError::Unknown {
                session: lease.session.clone(),
            }),
            Some(held) if *held == lease.epoch => Ok(()),
            Some(held) => Err(LeaseError::Stale {
                session: lease.session.clone(),
                held: *held,
                offered: lease.epoch,
            }),
        }
    }

    fn release(&self, lease: &Lease) -> Result<(), LeaseError> {
        self.check(lease)
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
        assert_eq!(leases.check(&second), Ok(()));
        assert_eq!(
            leases.check(&first),
            Err(LeaseError::Stale {
                session,
                held: second.epoch,
                offered: first.epoch
            })
        );
    }
}
