//! The sessions of a node by name, for who has to reach them from outside.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use rspp_actors::ControlRef;
use rspp_controlplane_api::StatusReport;
use rspp_kernel::{SessionState, fence::OutputFence};
use rspp_proto::{Epoch, Monotonic, SessionId, control::SessionPhase};

use crate::session::{Command, Health, SessionControl};

/// A session where it runs.
pub(crate) struct Placed {
    pub(crate) epoch: Epoch,
    pub(crate) control: ControlRef<SessionControl>,
    pub(crate) fence: Arc<OutputFence>,
    pub(crate) health: Arc<Health>,
    /// What was last said of it to the control plane.
    pub(crate) told: Option<SessionPhase>,
}

/// All sessions that run on a node.
#[derive(Default)]
pub(crate) struct Roster {
    sessions: Mutex<BTreeMap<SessionId, Placed>>,
}

impl Roster {
    fn sessions(&self) -> MutexGuard<'_, BTreeMap<SessionId, Placed>> {
        self.sessions.lock().expect("no code panics while locked")
    }

    /// A session has begun; one of the same name under an older epoch is nobody's any more.
    pub(crate) fn enter(&self, session: SessionId, placed: Placed) {
        let older = self.sessions().insert(session, placed);
        if let Some(older) = older {
            older.silence();
        }
    }

    /// A session goes on under a newer epoch.
    pub(crate) fn rotated(&self, session: &SessionId, from: Epoch, to: Epoch) {
        if let Some(placed) = self.sessions().get_mut(session)
            && placed.epoch == from
        {
            placed.epoch = to;
        }
    }

    /// A session is over.
    pub(crate) fn leave(&self, session: &SessionId, epoch: Epoch) {
        let mut sessions = self.sessions();
        if sessions.get(session).is_some_and(|it| it.epoch == epoch) {
            sessions.remove(session);
        }
    }

    /// A session is somebody else's, or may be: silence first, then word of it.
    pub(crate) fn silence(&self, session: &SessionId, epoch: Epoch) {
        if let Some(placed) = self.sessions().get(session)
            && placed.epoch == epoch
        {
            placed.silence();
        }
    }

    /// Nobody may speak here any more.
    pub(crate) fn silence_all(&self) {
        self.sessions().values().for_each(Placed::silence);
    }

    /// A session is to let go before `until`.
    pub(crate) fn let_go(&self, session: &SessionId, epoch: Epoch, until: Monotonic) {
        if let Some(placed) = self.sessions().get(session)
            && placed.epoch == epoch
        {
            placed.tell(Command::LetGo { until });
        }
    }

    /// All sessions are to let go before `until`.
    pub(crate) fn let_all_go(&self, until: Monotonic) {
        for placed in self.sessions().values() {
            placed.tell(Command::LetGo { until });
        }
    }

    /// All sessions are to end when what they say is said.
    pub(crate) fn drain_all(&self) {
        for placed in self.sessions().values() {
            placed.tell(Command::Drain);
        }
    }

    /// Which there are.
    pub(crate) fn names(&self) -> Vec<SessionId> {
        self.sessions().keys().cloned().collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.sessions().len()
    }

    /// How sessions go that go otherwise than was last said, at most so many.
    pub(crate) fn news(&self, most: usize) -> Vec<StatusReport> {
        let mut sessions = self.sessions();
        let changed = sessions.iter_mut().filter_map(|(session, placed)| {
            let phase = placed.phase();
            let epoch = placed.epoch;
            (placed.told.replace(phase) != Some(phase)).then(|| StatusReport {
                session: session.clone(),
                epoch,
                phase,
                reason: None,
            })
        });
        changed.take(most).collect()
    }

    /// What was last said was not heard.
    pub(crate) fn say_again(&self) {
        for placed in self.sessions().values_mut() {
            placed.told = None;
        }
    }
}

impl Placed {
    fn tell(&self, command: Command) {
        let message = SessionControl::Command(command);
        if self.control.send_reserved(message).is_err() {
            tracing::debug!("a session that is ending takes no order");
        }
    }

    fn silence(&self) {
        self.fence.forfeit();
        self.tell(Command::Revoke);
    }

    fn phase(&self) -> SessionPhase {
        let status = self.health.read();
        match status.state {
            SessionState::Connecting => SessionPhase::Connected,
            SessionState::Active | SessionState::Draining if status.is_degraded() => {
                SessionPhase::Degraded
            }
            SessionState::Active | SessionState::Draining => SessionPhase::Running,
            SessionState::Ended => SessionPhase::Ended,
        }
    }
}
