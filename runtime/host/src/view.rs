//! Open sessions as operators see them, whoever holds their handles (F-076, F-081).

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use rspp_actors::{Clock, ControlRef};
use rspp_kernel::{plan::inserted, refused::SESSION_HAS_ENDED};
use rspp_proto::{Monotonic, SessionId};

use crate::{
    blueprint::Blueprint,
    effective::EffectivePipeline,
    meters::{Measurements, Meters},
    observe::{Capture, CaptureBounds, Observers},
    session::{Command, Health, SessionControl, SessionStatus},
};

/// One open session. Keeping it keeps nothing of the session alive but what it says about itself.
pub struct SessionView {
    pub(crate) session: SessionId,
    pub(crate) clock: Clock,
    pub(crate) control: ControlRef<SessionControl>,
    pub(crate) blueprint: Arc<Blueprint>,
    pub(crate) observers: Arc<Observers>,
    pub(crate) meters: Option<Arc<Meters>>,
    pub(crate) health: Arc<Health>,
}

impl SessionView {
    /// Its id.
    pub fn id(&self) -> &SessionId {
        &self.session
    }

    /// The pipeline that it really runs, as it runs it now (F-081).
    pub fn effective(&self) -> EffectivePipeline {
        let policy = self.blueprint.policy.as_ref();
        EffectivePipeline {
            session_id: self.session.clone(),
            graph: self.blueprint.graph.view(inserted(policy)),
            policy: self
                .health
                .policy()
                .expect("it is set before a session opens"),
        }
    }

    /// Has debug events made, and hands them out, until one of the bounds is met (F-076). Other sessions
    /// are not touched; of this one, what its user hears is not.
    pub fn capture(&self, bounds: CaptureBounds) -> Capture {
        let now = Monotonic::from_duration(self.clock.now());
        let capture = self.observers.capture(now, bounds);
        self.command(Command::Capture);
        capture
    }

    /// Latencies and depths so far, by node, by edge and of the whole session (F-040); `None` unless
    /// pipeline or settings have it measured.
    pub fn measurements(&self) -> Option<Measurements> {
        self.meters.as_ref().map(|meters| meters.measurements())
    }

    /// How it stands; also once it is over.
    pub fn status(&self) -> SessionStatus {
        self.health.read()
    }

    /// Who is over refuses whatever it is asked for (F-138).
    pub(crate) fn command(&self, command: Command) {
        let message = SessionControl::Command(command);
        if self.control.send_reserved(message).is_err() {
            self.health.refuse_move(SESSION_HAS_ENDED);
            tracing::debug!(session_id = %self.session, "the session takes no command");
        }
    }
}

impl fmt::Debug for SessionView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionView({})", self.session)
    }
}

/// The open sessions of a runtime, by id. One that takes over from another of its id takes its place.
#[derive(Debug, Default)]
pub(crate) struct Views(Mutex<BTreeMap<SessionId, Weak<SessionView>>>);

/// A session's place among the views; given back with the handle.
#[derive(Debug)]
pub(crate) struct Viewed {
    pub(crate) view: Arc<SessionView>,
    among: Arc<Views>,
}

impl Views {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SessionId, Weak<SessionView>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn enter(self: &Arc<Self>, view: SessionView) -> Viewed {
        let view = Arc::new(view);
        let mut views = self.lock();
        views.insert(view.session.clone(), Arc::downgrade(&view));
        drop(views);
        Viewed {
            view,
            among: Arc::clone(self),
        }
    }

    pub(crate) fn find(&self, session: &SessionId) -> Option<Arc<SessionView>> {
        self.lock().get(session)?.upgrade()
    }

    /// The ids of at most `most` of them.
    pub(crate) fn ids(&self, most: usize) -> Vec<SessionId> {
        self.lock().keys().take(most).cloned().collect()
    }
}

impl Drop for Viewed {
    fn drop(&mut self) {
        let mut views = self.among.lock();
        let mine = Arc::downgrade(&self.view);
        if views
            .get(&self.view.session)
            .is_some_and(|known| known.ptr_eq(&mine))
        {
            views.remove(&self.view.session);
        }
    }
}
