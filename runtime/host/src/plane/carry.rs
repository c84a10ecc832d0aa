//! Carries a keeper's requests to the control plane, and its answers back in the keeper's words.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use rspp_controlplane_api::{
    Acquire, ControlError, ControlPlane, Granted, HeldSession, Joined, Leave, Wanted, Writer,
};
use rspp_kernel::keeper::{Answer, Ask, Parting, RequestId};
use rspp_proto::{
    Epoch, RuntimeId, SessionId,
    control::{Attempt, Description, Holder},
};

/// What came of a request, and what the keeper does not need to know of it.
pub(super) struct Carried {
    pub(super) request: RequestId,
    pub(super) answer: Answer,
    pub(super) joined: Option<Joined>,
    /// Why the node was not let in, if it asked for that.
    pub(super) not_joined: Option<String>,
    pub(super) granted: Option<Granted>,
}

impl Carried {
    fn of(request: RequestId, answer: Answer) -> Self {
        Self {
            request,
            answer,
            joined: None,
            not_joined: None,
            granted: None,
        }
    }
}

/// Who the node is, and whom it asks.
#[derive(Clone)]
pub(super) struct Carrier {
    pub(super) plane: Arc<dyn ControlPlane>,
    pub(super) runtime: RuntimeId,
    pub(super) description: Description,
    /// The present life.
    pub(super) holder: Option<Holder>,
}

impl Carrier {
    /// Carries a request. `wanted` says what a session that is asked for is bound to, `why` why one is over.
    pub(super) fn carry(
        &self,
        request: RequestId,
        ask: Ask,
        wanted: Option<Wanted>,
        why: Option<String>,
    ) -> BoxFuture<'static, Carried> {
        if ask == Ask::Join {
            return self.join(request);
        }
        let (Some(by), plane) = (self.holder.clone(), &self.plane) else {
            let stranger = Carried::of(request, Answer::Stranger);
            return std::future::ready(stranger).boxed();
        };
        match ask {
            Ask::Join => unreachable!("it was carried above"),
            Ask::Renew { sessions } => {
                let held = sessions.iter().map(|(session, epoch)| HeldSession {
                    session: session.clone(),
                    epoch: *epoch,
                    prove: false,
                });
                let renewed = plane.renew(&by, held.collect());
                async move {
                    let answer = match renewed.await {
                        Ok(renewed) => {
                            let lost = renewed.lost.into_iter();
                            let lost = lost.filter_map(|lost| named(&sessions, &lost.session));
                            let going = renewed.revoked.into_iter();
                            let going = going.map(|it| (it.session, it.epoch, it.finish_within));
                            Answer::Renewed {
                                ttl: renewed.ttl,
                                lost: lost.collect(),
                                going: going.collect(),
                            }
                        }
                        Err(error) => failed(&error),
                    };
                    Carried::of(request, answer)
                }
                .boxed()
            }
            Ask::Acquire { session, attempt } => {
                let Some(wanted) = wanted else {
                    let reason = "nobody knows what it is bound to".to_owned();
                    let refused = Carried::of(request, Answer::Refused { reason });
                    return std::future::ready(refused).boxed();
                };
                let acquired = plane.acquire(Acquire {
                    by,
                    attempt: Attempt(attempt),
                    session,
                    wanted,
                });
                async move {
                    match acquired.await {
                        Ok(granted) => Carried {
                            granted: Some(granted.clone()),
                            ..Carried::of(
                                request,
                                Answer::Granted {
                                    epoch: granted.epoch,
                                    taken_over: granted.taken_over || granted.resumed,
                                },
                            )
                        },
                        Err(error) => Carried::of(request, failed(&error)),
                    }
                }
                .boxed()
            }
            Ask::Part {
                session,
                epoch,
                how,
            } => {
                let leave = match how {
                    Parting::Release => Leave::Release,
                    Parting::End => Leave::end(why.unwrap_or_default()),
                };
                let released = plane.release(Writer { by, session, epoch }, leave);
                async move {
                    let answer = match released.await {
                        Ok(()) => Answer::Parted,
                        Err(error) => failed(&error),
                    };
                    Carried::of(request, answer)
                }
                .boxed()
            }
        }
    }

    fn join(&self, request: RequestId) -> BoxFuture<'static, Carried> {
        let joined = self
            .plane
            .register(self.runtime.clone(), self.description.clone());
        async move {
            match joined.await {
                Ok(joined) => Carried {
                    answer: Answer::Joined { ttl: joined.ttl },
                    joined: Some(joined),
                    ..Carried::of(request, Answer::Parted)
                },
                Err(error) => Carried {
                    not_joined: Some(error.to_string()),
                    ..Carried::of(request, failed(&error))
                },
            }
        }
        .boxed()
    }
}

/// The epoch under which a session was named in a request.
fn named(sessions: &[(SessionId, Epoch)], session: &SessionId) -> Option<(SessionId, Epoch)> {
    let found = sessions.iter().find(|(named, _)| named == session);
    found.cloned()
}

/// An error in the keeper's words.
fn failed(error: &ControlError) -> Answer {
    let reason = error.to_string();
    match error {
        ControlError::Held { .. }
        | ControlError::LettingGo { .. }
        | ControlError::Reserved { .. } => Answer::Busy { reason },
        ControlError::HolderGone { .. } => Answer::Stranger,
        // It may have been done for all that is known.
        ControlError::Unavailable { .. }
        | ControlError::Uncertain { .. }
        | ControlError::Answer(_) => Answer::Unreachable { reason },
        ControlError::Stale { .. }
        | ControlError::UnknownSession
        | ControlError::Overtaken
        | ControlError::Ended
        | ControlError::NotAdmitted { .. }
        | ControlError::NoRoute { .. }
        | ControlError::StateConflict { .. }
        | ControlError::Unauthenticated { .. }
        | ControlError::Denied { .. }
        | ControlError::Refused { .. } => Answer::Refused { reason },
    }
}
