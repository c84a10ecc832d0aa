//! Session-durable state, kept by the control plane: it refuses a writer that was replaced.

use std::sync::Arc;

use rspp_controlplane_api::{
    ControlError, ControlPlane, Lease, LeaseError, Leases, MemoryStore, StateStore, StoreError,
    StoreFuture, Stored, Version, Write, Writer,
};
use rspp_kernel::keeper::Parting;
use rspp_proto::SessionId;

use super::shared::{Request, Shared};

/// The store of a node in a fleet.
pub(crate) struct PlaneStore {
    shared: Arc<Shared>,
    plane: Arc<dyn ControlPlane>,
    /// State of sessions that were taken on while nobody granted leases: the control plane knows nothing of
    /// them, and nobody else can ever have them.
    own: MemoryStore,
}

impl PlaneStore {
    pub(crate) fn new(
        shared: Arc<Shared>,
        plane: Arc<dyn ControlPlane>,
        leases: Arc<dyn Leases>,
    ) -> Self {
        Self {
            shared,
            plane,
            own: MemoryStore::new(leases),
        }
    }

    /// Who reads; whoever reads holds the session.
    fn reader(&self, session: &SessionId) -> Result<Writer, StoreError> {
        self.shared.reader(session).ok_or_else(|| unknown(session))
    }

    fn writer(&self, lease: &Lease) -> Result<Writer, StoreError> {
        let unknown = || unknown(&lease.session);
        // What is over here is not even tried: the store would say no a moment later.
        self.shared.check(lease)?;
        self.shared
            .writer(&lease.session, lease.epoch)
            .ok_or_else(unknown)
    }
}

fn unknown(session: &SessionId) -> StoreError {
    StoreError::Lease(LeaseError::Unknown {
        session: session.clone(),
    })
}

impl StateStore for PlaneStore {
    fn read(&self, session: &SessionId, key: &str) -> StoreFuture<Option<Stored>> {
        if self.shared.is_own(session) {
            return self.own.read(session, key);
        }
        let reader = self.reader(session);
        let plane = Arc::clone(&self.plane);
        let (session, key) = (session.clone(), key.to_owned());
        Box::pin(async move {
            let loaded = plane.load_state(reader?, vec![key.clone()]).await;
            let mut values = loaded.map_err(|error| refused(error, &session))?;
            Ok(values.remove(&key))
        })
    }

    fn write(&self, lease: &Lease, write: Write) -> StoreFuture<Version> {
        if self.shared.is_own(&lease.session) {
            return self.own.write(lease, write);
        }
        let writer = self.writer(lease);
        let plane = Arc::clone(&self.plane);
        let session = lease.session.clone();
        Box::pin(async move {
            let written = plane.commit_state(writer?, vec![write]).await;
            let versions = written.map_err(|error| refused(error, &session))?;
            let version = versions.first().copied();
            version.ok_or_else(|| StoreError::Unavailable("it did not say which write".to_owned()))
        })
    }

    fn close(&self, lease: &Lease, why: &str) -> StoreFuture<()> {
        if self.shared.is_own(&lease.session) {
            return self.own.close(lease, why);
        }
        self.shared.ask(Request::Part {
            session: lease.session.clone(),
            epoch: lease.epoch,
            how: Parting::End,
            why: Some(why.to_owned()),
        });
        Box::pin(std::future::ready(Ok(())))
    }

    fn bytes(&self, session: &SessionId) -> StoreFuture<usize> {
        if self.shared.is_own(session) {
            return self.own.bytes(session);
        }
        let reader = self.reader(session);
        let plane = Arc::clone(&self.plane);
        let session = session.clone();
        Box::pin(async move {
            let loaded = plane.load_state(reader?, Vec::new()).await;
            let values = loaded.map_err(|error| refused(error, &session))?;
            let values = values.iter();
            Ok(values.map(|(key, it)| key.len() + it.value.len()).sum())
        })
    }
}

/// Why it was not done, as those who keep state know it.
fn refused(error: ControlError, session: &SessionId) -> StoreError {
    let session = || session.clone();
    match error {
        ControlError::Stale { held, offered } => StoreError::Lease(LeaseError::Stale {
            session: session(),
            held,
            offered,
        }),
        ControlError::Held { .. }
        | ControlError::LettingGo { .. }
        | ControlError::Reserved { .. }
        | ControlError::UnknownSession
        | ControlError::Overtaken
        | ControlError::Ended
        | ControlError::HolderGone { .. } => {
            StoreError::Lease(LeaseError::Unknown { session: session() })
        }
        ControlError::StateConflict {
            key,
            expected,
            found,
        } => StoreError::Conflict {
            key,
            expected: Version(expected),
            found: Version(found),
        },
        other @ (ControlError::NotAdmitted { .. }
        | ControlError::NoRoute { .. }
        | ControlError::Unauthenticated { .. }
        | ControlError::Denied { .. }
        | ControlError::Refused { .. }
        | ControlError::Unavailable { .. }
        | ControlError::Uncertain { .. }
        | ControlError::Answer(_)) => StoreError::Unavailable(other.to_string()),
    }
}
