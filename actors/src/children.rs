//! The children of one actor: started in order, restarted by policy, stopped in reverse order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::exit::ExitReason;
use crate::id::ActorId;
use crate::incarnation::{Respawn, Running, Start, Supervisor};
use crate::supervisor::{ChildExit, ChildSpec, Decision, History, Verdict};
use crate::system::System;
use crate::tree::{ActorState, Node, Place};

/// One child as its parent sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildInfo {
    /// Its identity, kept over restarts.
    pub id: ActorId,
    /// Its name among its siblings.
    pub name: String,
    /// What it is.
    pub kind: &'static str,
    /// The names from the root to it, joined by `/`.
    pub path: String,
}

/// Why a child could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpawnError {
    /// `started` returned an error.
    #[error("{path} failed to start: {message}")]
    Failed {
        /// Who.
        path: String,
        /// Its error.
        message: String,
    },
    /// Making it, or `started`, panicked.
    #[error("{path} panicked while starting: {message}")]
    Panicked {
        /// Who.
        path: String,
        /// The panic's message.
        message: String,
    },
    /// The parent, or the whole system, is stopping.
    #[error("{path} was not started: its parent is stopping")]
    Stopping {
        /// Who.
        path: String,
    },
}

/// A child to be started, with its mailbox and its place in the tree.
pub(crate) struct NewChild {
    pub(crate) spec: ChildSpec,
    pub(crate) node: Arc<Node>,
    pub(crate) respawn: Box<dyn Respawn>,
}

struct Child {
    info: ChildInfo,
    spec: ChildSpec,
    place: Place,
    /// A mutex only so that a parent may be looked at from several threads; never contended.
    respawn: Mutex<Box<dyn Respawn>>,
    running: Option<Running>,
    history: History,
    /// The parent asked for the end, so it is not restarted.
    stopping: bool,
    last_exit: Option<ExitReason>,
}

/// The children of one incarnation. Dropping it closes their mailboxes and takes them out of the tree.
pub(crate) struct Children {
    system: System,
    supervisor: Option<Supervisor>,
    /// Ends that ractor has told of.
    ends_heard: u64,
    /// In start order, as ids ascend; a restart keeps the id and so the place.
    /// Boxed: a map's leaf has room for eleven, and most parents have few.
    all: BTreeMap<ActorId, Box<Child>>,
    by_cell: BTreeMap<ractor::ActorId, ActorId>,
    restarts: BTreeSet<(Instant, ActorId)>,
    /// Exits the actor has not been told of yet.
    exits: VecDeque<ChildExit>,
    /// Why the actor itself has to end: a significant child did.
    verdict_on_parent: Option<ExitReason>,
    /// Kills children that were asked to stop and not waited for.
    reapers: JoinSet<()>,
    /// Once set, nothing is started any more.
    closed: bool,
}

impl Children {
    pub(crate) fn new(system: System) -> Self {
        Self {
            system,
            supervisor: None,
            ends_heard: 0,
            all: BTreeMap::new(),
            by_cell: BTreeMap::new(),
            restarts: BTreeSet::new(),
            exits: VecDeque::new(),
            verdict_on_parent: None,
            reapers: JoinSet::new(),
            closed: false,
        }
    }

    pub(crate) fn supervised_by(&mut self, supervisor: Supervisor) {
        self.supervisor = Some(supervisor);
    }

    /// Whether ractor has still to tell of the end of a child that has gone.
    pub(crate) fn end_unheard(&self) -> bool {
        self.supervisor
            .as_ref()
            .is_some_and(|own| own.line.children_gone() > self.ends_heard)
    }

    pub(crate) fn infos(&self) -> impl Iterator<Item = &ChildInfo> {
        self.all
            .values()
            .filter(|child| !child.stopping)
            .map(|child| &child.info)
    }

    pub(crate) fn take_exit(&mut self) -> Option<ChildExit> {
        self.exits.pop_front()
    }

    pub(crate) fn take_verdict_on_parent(&mut self) -> Option<ExitReason> {
        self.verdict_on_parent.take()
    }

    /// Refuses new children and restarts from now on.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.restarts.clear();
    }

    /// When the next delayed restart is due.
    pub(crate) fn next_restart(&self) -> Option<Instant> {
        self.restarts.first().map(|&(at, _)| at)
    }

    pub(crate) async fn spawn(&mut self, new: NewChild) -> Result<(), SpawnError> {
        let NewChild {
            spec,
            node,
            respawn,
        } = new;
        let path = node.path.to_string();
        if self.closed {
            return Err(SpawnError::Stopping { path });
        }
        let id = node.id;
        let mut child = Child {
            info: ChildInfo {
                id,
                name: spec.name.clone(),
                kind: node.kind,
                path: path.clone(),
            },
            spec,
            place: Place::take(node),
            respawn: Mutex::new(respawn),
            running: None,
            history: History::default(),
            stopping: false,
            last_exit: None,
        };
        match child.start(&self.system, self.supervisor.clone()).await {
            Ok(cell) => {
                debug!(actor = path, "started");
                self.by_cell.insert(cell, id);
                self.all.insert(id, Box::new(child));
                Ok(())
            }
            Err(ExitReason::Panicked(message)) => Err(SpawnError::Panicked { path, message }),
            Err(ExitReason::Failed(message)) => Err(SpawnError::Failed { path, message }),
            Err(ExitReason::Finished | ExitReason::Stopped(_) | ExitReason::Killed) => {
                Err(SpawnError::Stopping { path })
            }
        }
    }

    /// Asks a child to stop, waits for its end and kills it after its grace.
    pub(crate) async fn stop(&mut self, id: ActorId, reason: &str, latest: Option<Instant>) {
        let Some(child) = self.all.get_mut(&id) else {
            return;
        };
        child.stopping = true;
        if let Some(running) = &mut child.running {
            let own = Instant::now() + child.spec.grace;
            let deadline = latest.map_or(own, |latest| latest.min(own));
            child.place.node.set_state(ActorState::Stopping);
            running.ask_to_stop(reason, deadline);
            if !running.ended_by(&child.info.path, deadline).await {
                self.system.count_killed();
            }
            self.by_cell.remove(&running.cell.get_id());
            child.last_exit = Some(running.line.exit());
            child.running = None;
        }
        let reason = child
            .last_exit
            .clone()
            .unwrap_or_else(|| ExitReason::Stopped(reason.to_owned()));
        self.let_go(id, reason, Verdict::Ended);
    }

    /// Asks a child to stop; it is killed after its grace. Its end arrives as an exit.
    pub(crate) fn stop_soon(&mut self, id: ActorId, reason: &str) {
        let Some(child) = self.all.get_mut(&id) else {
            return;
        };
        if child.stopping {
            return;
        }
        child.stopping = true;
        let Some(running) = &child.running else {
            // It was waiting to be restarted.
            let reason = child
                .last_exit
                .clone()
                .unwrap_or_else(|| ExitReason::Stopped(reason.to_owned()));
            self.let_go(id, reason, Verdict::Ended);
            return;
        };
        let deadline = Instant::now() + child.spec.grace;
        child.place.node.set_state(ActorState::Stopping);
        running.ask_to_stop(reason, deadline);

        while self.reapers.try_join_next().is_some() {}
        let cell = running.cell.clone();
        let path = child.info.path.clone();
        self.reapers.spawn(async move {
            let ended = async { cell.wait(None).await.is_ok() };
            if tokio::time::timeout_at(deadline, ended).await.is_err() {
                warn!(actor = path, "did not stop within its grace: killed");
                cell.kill();
            }
        });
    }

    /// Stops all children, the last started first, none later than `latest`.
    pub(crate) async fn stop_all(&mut self, reason: &str, latest: Instant) {
        self.close();
        while let Some((&id, _)) = self.all.last_key_value() {
            self.stop(id, reason, Some(latest)).await;
        }
    }

    /// Kills all children, the last started first, and waits until they are gone.
    pub(crate) async fn kill_all(&mut self) {
        self.close();
        for child in self.all.values().rev() {
            if let Some(running) = &child.running {
                running.kill();
            }
        }
        while let Some((_, mut child)) = self.all.pop_last() {
            if let Some(running) = &mut child.running {
                running.gone().await;
            }
        }
        self.by_cell.clear();
    }

    /// A child's ractor actor has ended: applies the restart policy.
    pub(crate) async fn ended(&mut self, cell: ractor::ActorId) {
        self.ends_heard += 1;
        // Unknown when its end was already waited for.
        let Some(id) = self.by_cell.remove(&cell) else {
            return;
        };
        let Some(child) = self.all.get_mut(&id) else {
            return;
        };
        let Some(mut running) = child.running.take() else {
            return;
        };
        // ractor reports an end a moment before the last of it is dropped; two incarnations must not overlap.
        running.gone().await;
        let reason = running.line.exit();
        self.decide(id, reason).await;
    }

    /// Starts the children whose wait is over.
    pub(crate) async fn restart_due(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.restarts.first()
            && at <= now
        {
            self.restarts.pop_first();
            if let Err(reason) = self.restart(id).await {
                self.decide(id, reason).await;
            }
        }
    }

    async fn decide(&mut self, id: ActorId, mut reason: ExitReason) {
        loop {
            let now = self.system.clock().now();
            let chance = self.system.chance();
            let Some(child) = self.all.get_mut(&id) else {
                return;
            };
            child.place.node.set_last_exit(&reason);
            child.last_exit = Some(reason.clone());
            let decision = if child.stopping || self.closed {
                Decision::End
            } else {
                child.history.decide(&child.spec, &reason, now, chance)
            };
            match decision {
                Decision::End => return self.let_go(id, reason, Verdict::Ended),
                Decision::GiveUp => return self.let_go(id, reason, Verdict::GaveUp),
                Decision::Restart { attempt, after } => {
                    if after > Duration::ZERO {
                        let restarts_at = Instant::now() + after;
                        child.place.node.set_state(ActorState::Restarting);
                        warn!(actor = child.info.path, %reason, ?after, "ended: restarts later");
                        self.restarts.insert((restarts_at, id));
                        return self.report(id, reason, Verdict::Restarting { after });
                    }
                    warn!(actor = child.info.path, %reason, attempt, "ended: restarts");
                    match self.restart(id).await {
                        Ok(()) => return self.report(id, reason, Verdict::Restarted { attempt }),
                        Err(next) => {
                            self.report(id, reason, Verdict::Restarting { after });
                            reason = next;
                        }
                    }
                }
            }
        }
    }

    async fn restart(&mut self, id: ActorId) -> Result<(), ExitReason> {
        let Some(child) = self.all.get_mut(&id) else {
            return Ok(());
        };
        child.place.node.count_restart();
        let cell = child.start(&self.system, self.supervisor.clone()).await?;
        self.by_cell.insert(cell, id);
        Ok(())
    }

    fn report(&mut self, id: ActorId, reason: ExitReason, verdict: Verdict) {
        if let Some(child) = self.all.get(&id) {
            self.exits.push_back(child.exit(reason, verdict));
        }
    }

    fn let_go(&mut self, id: ActorId, reason: ExitReason, verdict: Verdict) {
        let Some(child) = self.all.remove(&id) else {
            return;
        };
        self.restarts.retain(|&(_, waiting)| waiting != id);
        let path = &child.info.path;
        match (verdict, reason.is_orderly()) {
            (Verdict::GaveUp, _) => error!(actor = path, %reason, "too many restarts: given up"),
            (_, true) => debug!(actor = path, %reason, "ended"),
            (_, false) => warn!(actor = path, %reason, "ended"),
        }
        if child.spec.significant && !child.stopping {
            let name = &child.info.name;
            self.verdict_on_parent = Some(if reason.is_orderly() {
                ExitReason::Stopped(format!("its significant child {name} {reason}"))
            } else {
                ExitReason::Failed(format!("its significant child {name} {reason}"))
            });
        }
        self.exits.push_back(child.exit(reason, verdict));
    }
}

impl Child {
    /// Starts an incarnation and says which ractor actor it is.
    async fn start(
        &mut self,
        system: &System,
        supervisor: Option<Supervisor>,
    ) -> Result<ractor::ActorId, ExitReason> {
        self.place.node.set_state(ActorState::Starting);
        let start = Start {
            supervisor,
            system: system.clone(),
            node: Arc::clone(&self.place.node),
            grace: self.spec.grace,
        };
        self.history.started(system.clock().now());
        let running = self
            .respawn
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .spawn(start)
            .await?;
        let cell = running.cell.get_id();
        self.running = Some(running);
        Ok(cell)
    }

    fn exit(&self, reason: ExitReason, verdict: Verdict) -> ChildExit {
        ChildExit {
            child: self.info.id,
            name: self.info.name.clone(),
            kind: self.info.kind,
            reason,
            verdict,
        }
    }
}
