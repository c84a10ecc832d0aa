//! What a node may remember, by scope: a type for each, so that nobody takes one for another (F-155).
//!
//! | | turn-ephemeral | session-hot | session-durable |
//! | --- | --- | --- | --- |
//! | the node restarts | kept | kept | kept |
//! | the turn ends | gone | kept | kept |
//! | the session moves | gone | gone | kept |

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use rspp_actors::{CancellationToken, Clock, ControlRef};
use rspp_controlplane_api::{Lease, StateStore, StoreError, Version, Write};
use rspp_kernel::{
    fence::OutputFence,
    state::{HotValues, StateError, TurnValues, is_fresh},
};
use rspp_proto::{Epoch, Monotonic, NodeId, SessionId, TurnNumber, spec::StatePolicy};
use serde_json::Value;

use crate::session::SessionControl;

/// A session's state, shared by its nodes; small until somebody keeps something.
pub(crate) struct NodeStates {
    pub(crate) policy: StatePolicy,
    pub(crate) store: Arc<dyn StateStore>,
    pub(crate) hot: Mutex<HotValues>,
    /// What was read of the store, and when.
    read: Mutex<BTreeMap<String, Read>>,
}

#[derive(Clone)]
struct Read {
    at: Monotonic,
    value: Option<(Arc<str>, Version)>,
}

/// Durable values that one session remembers having read.
const MAX_READ: usize = 64;

impl NodeStates {
    pub(crate) fn new(policy: StatePolicy, store: Arc<dyn StateStore>) -> Self {
        Self {
            policy,
            store,
            hot: Mutex::default(),
            read: Mutex::default(),
        }
    }

    /// The session is over for good: what it has stored is forgotten, unless another has taken it over.
    pub(crate) async fn close(&self, lease: &Lease, why: &str) {
        if let Err(error) = self.store.close(lease, why).await {
            tracing::debug!(session_id = %lease.session, %error, "durable state is not ours to forget");
        }
    }

    pub(crate) fn hot(&self) -> MutexGuard<'_, HotValues> {
        self.hot.lock().expect("no code panics while locked")
    }
}

/// What ties the nodes of a session or turn to what they may remember; shared by all of them.
pub(crate) struct StateAccess {
    pub(crate) session: Arc<NodeStates>,
    /// The turn's own; dropped with it.
    pub(crate) turn: Option<(TurnNumber, Arc<Mutex<TurnValues>>)>,
    pub(crate) session_id: SessionId,
    pub(crate) epoch: Epoch,
    pub(crate) fence: Arc<OutputFence>,
    /// Fires when the turn, while it is a guess, is promoted.
    pub(crate) promoted: Option<CancellationToken>,
    /// Fires when the work of turn or session is no longer wanted.
    pub(crate) cancel: CancellationToken,
    pub(crate) clock: Clock,
    pub(crate) control: ControlRef<SessionControl>,
}

impl StateAccess {
    fn turn_number(&self) -> Option<TurnNumber> {
        self.turn.as_ref().map(|(turn, _)| *turn)
    }

    /// A turn writes under the epoch that it opened with, the session itself under the one in force;
    /// `None` once authority is lost.
    fn lease(&self) -> Option<Lease> {
        let epoch = match &self.turn {
            Some(_) => self.epoch,
            None => self.fence.epoch()?,
        };
        Some(Lease::new(self.session_id.clone(), epoch))
    }

    /// A dead turn changes nothing (P1).
    fn check(&self) -> Result<(), StateError> {
        match self.turn_number() {
            Some(turn) if !self.fence.is_live(turn) => Err(StateError::TurnOver),
            Some(_) | None => Ok(()),
        }
    }
}

/// Turn-ephemeral state: there while the turn is. Survives a restart of its node, nothing else.
pub struct TurnState<'a> {
    access: &'a StateAccess,
    node: &'a NodeId,
    values: &'a Mutex<TurnValues>,
}

impl<'a> TurnState<'a> {
    pub(crate) fn new(access: &'a StateAccess, node: &'a NodeId) -> Option<Self> {
        let (_, values) = access.turn.as_ref()?;
        Some(Self {
            access,
            node,
            values,
        })
    }

    fn values(&self) -> MutexGuard<'_, TurnValues> {
        self.values.lock().expect("no code panics while locked")
    }

    /// A value.
    pub fn get(&self, key: &str) -> Option<Value> {
        parse(self.values().of(self.node).get(key))
    }

    /// Keeps a value.
    pub fn put(&self, key: &str, value: &Value) -> Result<(), StateError> {
        self.access.check()?;
        let limit = self.access.session.policy.turn_max_bytes;
        let text = value.to_string().into();
        self.values().of(self.node).put(key, text, limit)
    }

    /// Forgets a value.
    pub fn remove(&self, key: &str) {
        self.values().of(self.node).remove(key);
    }

    /// Bytes that all nodes of the turn keep.
    pub fn bytes(&self) -> usize {
        self.values().bytes()
    }
}

/// Session-hot state: survives turns and restarts of its node, and may be lost when the session moves,
/// so that correctness must not depend on it. What a guess writes counts once it is right (P9).
pub struct HotState<'a> {
    access: &'a StateAccess,
    node: &'a NodeId,
}

impl<'a> HotState<'a> {
    pub(crate) fn new(access: &'a StateAccess, node: &'a NodeId) -> Self {
        Self { access, node }
    }

    /// A value.
    pub fn get(&self, key: &str) -> Option<Value> {
        let hot = self.access.session.hot();
        let values = hot.of(self.node, self.access.turn_number());
        parse(values.and_then(|values| values.get(key)))
    }

    /// Keeps a value.
    pub fn put(&self, key: &str, value: &Value) -> Result<(), StateError> {
        self.access.check()?;
        let limit = self.access.session.policy.hot_max_bytes;
        let mut hot = self.access.session.hot();
        let values = hot.of_mut(self.node, self.access.turn_number());
        values.put(key, value.to_string().into(), limit)
    }

    /// Forgets a value.
    pub fn remove(&self, key: &str) -> Result<(), StateError> {
        self.access.check()?;
        let mut hot = self.access.session.hot();
        hot.of_mut(self.node, self.access.turn_number()).remove(key);
        Ok(())
    }

    /// Bytes that all nodes of the session keep.
    pub fn bytes(&self) -> usize {
        self.access.session.hot().bytes()
    }
}

/// Session-durable state: survives everything but the end of the conversation. Written by the holder of
/// the newest lease and nobody else; a write of a guess waits until it is right, or fails (P9).
#[derive(Clone)]
pub struct DurableState {
    access: Arc<StateAccess>,
    node: NodeId,
}

impl DurableState {
    pub(crate) fn new(access: Arc<StateAccess>, node: NodeId) -> Self {
        Self { access, node }
    }

    fn key(&self, key: &str) -> String {
        format!("{}/{key}", self.node)
    }

    fn now(&self) -> Monotonic {
        Monotonic::from_duration(self.access.clock.now())
    }

    /// A value and its version, as fresh as the pipeline declares.
    pub async fn get(&self, key: &str) -> Result<Option<(Value, Version)>, StateError> {
        let session = &self.access.session;
        let (key, now) = (self.key(key), self.now());
        let known = {
            let read = session.read.lock().expect("no code panics while locked");
            read.get(&key).cloned()
        };
        let fresh = known.filter(|it| is_fresh(session.policy.durable_consistency, it.at, now));
        let value = if let Some(read) = fresh {
            read.value
        } else {
            let stored = session.store.read(&self.access.session_id, &key).await;
            let stored = stored.map_err(|error| StateError::Store(error.to_string()))?;
            let value = stored.map(|stored| (stored.value, stored.version));
            self.remember(key, value.clone());
            value
        };
        Ok(value.and_then(|(text, version)| parse(Some(text)).map(|value| (value, version))))
    }

    /// Writes a value whatever is there; see [`replace`](Self::replace).
    pub async fn put(&self, key: &str, value: &Value) -> Result<Version, StateError> {
        self.write(key, value, None).await
    }

    /// Writes a value if what is there is of that version; version 0 is nothing.
    pub async fn replace(
        &self,
        key: &str,
        value: &Value,
        expected: Version,
    ) -> Result<Version, StateError> {
        self.write(key, value, Some(expected)).await
    }

    async fn write(
        &self,
        key: &str,
        value: &Value,
        expected: Option<Version>,
    ) -> Result<Version, StateError> {
        let text: Arc<str> = value.to_string().into();
        let limit = self.access.session.policy.durable_max_bytes;
        if text.len() > limit {
            return Err(StateError::TooLarge {
                key: key.to_owned(),
                bytes: text.len(),
                limit,
            });
        }
        if let Some(promoted) = &self.access.promoted {
            tokio::select! {
                biased;
                () = promoted.cancelled() => {}
                () = self.access.cancel.cancelled() => return Err(StateError::TurnOver),
            }
        }
        // At the commit, not when the node decided to write.
        self.access.check()?;
        let key = self.key(key);
        let lease = self.access.lease().ok_or(StateError::TurnOver)?;
        let write = Write {
            key: key.clone(),
            value: Arc::clone(&text),
            expected,
        };
        match self.access.session.store.write(&lease, write).await {
            Ok(version) => {
                self.remember(key, Some((text, version)));
                Ok(version)
            }
            Err(error) => {
                if let StoreError::Lease(_) = &error {
                    // A writer that was replaced is told of, not only refused (T12).
                    let stale = SessionControl::StaleWrite {
                        node: self.node.clone(),
                        at: self.now(),
                    };
                    if self.access.control.send_reserved(stale).is_err() {
                        tracing::debug!(%key, "the session takes no report of a stale write");
                    }
                }
                Err(StateError::Store(error.to_string()))
            }
        }
    }

    fn remember(&self, key: String, value: Option<(Arc<str>, Version)>) {
        let at = self.now();
        let session = &self.access.session;
        let mut read = session.read.lock().expect("no code panics while locked");
        if read.len() == MAX_READ && !read.contains_key(&key) {
            read.pop_first();
        }
        read.insert(key, Read { at, value });
    }
}

fn parse(text: Option<Arc<str>>) -> Option<Value> {
    serde_json::from_str(&text?).ok()
}

impl fmt::Debug for DurableState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableState")
            .field("session", &self.access.session_id)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}
