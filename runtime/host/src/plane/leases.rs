//! Leases as sessions know them, granted by the control plane.

use std::sync::Arc;

use rspp_controlplane_api::{Lease, LeaseError, Leases, Renewal, Taking, Wanted};
use rspp_kernel::keeper::Parting;
use rspp_proto::SessionId;
use tokio::sync::oneshot;

use super::{
    AwayMode, Step,
    shared::{Request, Shared},
};

/// The leases of a node in a fleet.
pub(crate) struct PlaneLeases {
    shared: Arc<Shared>,
    mode: AwayMode,
}

impl PlaneLeases {
    pub(crate) fn new(shared: Arc<Shared>, mode: AwayMode) -> Self {
        Self { shared, mode }
    }
}

/// Somebody waits for a session. However the waiting ends, nothing is held for nobody.
struct Wish {
    shared: Arc<Shared>,
    session: SessionId,
    ticket: u64,
    settled: bool,
}

impl Drop for Wish {
    fn drop(&mut self) {
        if !self.settled {
            let (session, ticket) = (self.session.clone(), self.ticket);
            self.shared.ask(Request::Unwant { session, ticket });
        }
    }
}

impl Leases for PlaneLeases {
    fn take(&self, session: &SessionId, wanted: &Wanted) -> Taking {
        let (answer, granted) = oneshot::channel();
        let ticket = self.shared.next_number();
        let wish = Wish {
            shared: Arc::clone(&self.shared),
            session: session.clone(),
            ticket,
            settled: false,
        };
        let mode = self.mode;
        let wanted = wanted.clone();
        Box::pin(async move {
            let mut wish = wish; // All of it, so that it is dropped with the wait.
            let (shared, session) = (Arc::clone(&wish.shared), wish.session.clone());
            let unreachable = |reason: String| LeaseError::Unreachable {
                session: session.clone(),
                reason,
            };
            // It may come from elsewhere.
            let view = match shared.fresh_view(Step::Accept).await {
                Ok(view) => view,
                Err(stale) => {
                    wish.settled = true; // Nothing was asked for yet.
                    return Err(unreachable(stale.to_string()));
                }
            };
            shared.ask(Request::Want {
                session: session.clone(),
                wanted,
                ticket,
                answer,
            });
            let answer = granted.await;
            let answer = answer.unwrap_or_else(|_| {
                let reason = "the node is shutting down".to_owned();
                Err(unreachable(reason))
            });
            wish.settled = true;
            let taken = match (answer, mode) {
                (Err(LeaseError::Unreachable { session, reason }), AwayMode::Availability) => {
                    let own = shared.own(&session);
                    if own.is_some() {
                        tracing::warn!(session_id = %session, reason, mode = mode.as_str(), "taken on without a lease");
                    }
                    own.ok_or(LeaseError::Unreachable { session, reason })
                }
                (answer, AwayMode::Availability | AwayMode::Strict) => answer,
            };
            taken.map(|lease| Lease {
                view: Some(view),
                ..lease
            })
        })
    }

    fn check(&self, lease: &Lease) -> Result<(), LeaseError> {
        self.shared.check(lease)
    }

    fn renew(&self, lease: &Lease) -> Renewal {
        let shared = Arc::clone(&self.shared);
        let lease = lease.clone();
        Box::pin(async move { shared.prolonged(&lease).await })
    }

    fn release(&self, lease: &Lease) -> Result<(), LeaseError> {
        if !self.shared.is_own(&lease.session) {
            self.shared.ask(Request::Part {
                session: lease.session.clone(),
                epoch: lease.epoch,
                how: Parting::Release,
                why: None,
            });
        }
        Ok(())
    }
}
