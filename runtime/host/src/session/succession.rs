//! What a session's next placement has to know so that nothing is done twice: keys of events that took
//! effect, and orders that may have been carried out (F-158). Kept with the session's durable state, under
//! its lease.
//!
//! An order is written down before it is carried out, and not carried out if the store refuses: whoever has
//! taken the session over has then read what was there. Of keys the word follows the effect, so that nobody
//! waits for it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use rspp_controlplane_api::{Lease, StateStore, StoreError, Write};
use rspp_kernel::{
    Inheritance, Input,
    tool::{ToolEnd, ToolEvent, ToolExchange, ToolStep},
};
use rspp_proto::{Epoch, EventId, IdempotencyKey, Monotonic, TurnNumber};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinHandle};

use super::Session;
use crate::node::NodeStates;

/// Where it is kept; no node's key begins like this.
const KEY: &str = "session/succession";
/// Keys and orders that are handed down, the newest: their whole list is written each time.
const MOST: usize = 64;
/// How long a new placement waits for it, and an old one for its last word.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long to wait before a store that does not answer is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// What is handed down.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Estate {
    keys: VecDeque<(IdempotencyKey, EventId)>,
    inheritance: Inheritance,
}

/// Writes it down as it changes; only the newest matters.
#[derive(Default)]
pub(super) struct Succession {
    estate: Estate,
    /// Counts changes.
    revision: u64,
    writer: Option<Writer>,
}

struct Writer {
    to: watch::Sender<Will>,
    written: watch::Receiver<Written>,
    task: JoinHandle<()>,
}

/// What is to be written.
#[derive(Clone)]
struct Will {
    revision: u64,
    epoch: Epoch,
    text: Arc<str>,
}

/// What the store has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    UpTo(u64),
    /// Somebody else speaks for the session.
    Refused,
}

/// An order's leave to be carried out.
pub(crate) struct Leave {
    revision: u64,
    written: watch::Receiver<Written>,
}

impl Leave {
    /// Waits until it is written down; `false` if it will not be.
    pub(crate) async fn given(&self) -> bool {
        let is_known = |written: &Written| match written {
            Written::UpTo(revision) => *revision >= self.revision,
            Written::Refused => true,
        };
        let mut written = self.written.clone();
        match written.wait_for(is_known).await {
            Ok(written) => *written != Written::Refused,
            // Its writer is gone without a word.
            Err(_) => false,
        }
    }
}

impl Succession {
    fn write(&mut self, states: &NodeStates, lease: &Lease, epoch: Epoch) -> Option<Leave> {
        let text: Arc<str> = match serde_json::to_string(&self.estate) {
            Ok(text) => text.into(),
            Err(error) => {
                tracing::error!(%error, "what was done could not be written down");
                return None;
            }
        };
        self.revision += 1;
        let will = Will {
            revision: self.revision,
            epoch,
            text,
        };
        // One that was refused has ended; if the session goes on under a newer epoch, so does this.
        if let Some(writer) = self.writer.as_ref().filter(|it| !it.task.is_finished()) {
            writer.to.send_replace(will);
        } else {
            let (to, from) = watch::channel(will);
            let (told, written) = watch::channel(Written::UpTo(0));
            let keep = keep(Arc::clone(&states.store), lease.clone(), from, told);
            let task = tokio::spawn(keep);
            self.writer = Some(Writer { to, written, task });
        }
        let writer = self.writer.as_ref()?;
        Some(Leave {
            revision: self.revision,
            written: writer.written.clone(),
        })
    }

    /// Until the last word is written, or is known not to be.
    async fn finish(&mut self) {
        if let Some(Writer { to, mut task, .. }) = self.writer.take() {
            drop(to);
            if tokio::time::timeout(PATIENCE, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

async fn keep(
    store: Arc<dyn StateStore>,
    lease: Lease,
    mut from: watch::Receiver<Will>,
    told: watch::Sender<Written>,
) {
    loop {
        let Will {
            revision,
            epoch,
            text,
        } = from.borrow_and_update().clone();
        let lease = Lease {
            epoch,
            ..lease.clone()
        };
        let write = Write {
            key: KEY.to_owned(),
            value: text,
            expected: None,
        };
        match store.write(&lease, write).await {
            Ok(_) => {
                told.send_replace(Written::UpTo(revision));
            }
            // Somebody else speaks for the session, and has read what was there.
            Err(StoreError::Lease(error)) => {
                told.send_replace(Written::Refused);
                return tracing::debug!(%error, "what was done is another's to write");
            }
            Err(error @ (StoreError::Conflict { .. } | StoreError::Unavailable(_))) => {
                tracing::warn!(%error, "what was done could not be written down yet");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        }
        if from.changed().await.is_err() {
            return;
        }
    }
}

impl Session {
    /// Takes over what the placement before this one has done, if there was one.
    pub(super) async fn succeed(&mut self, now: Monotonic) {
        let lease = &self.setup.place.lease;
        if lease.epoch == Epoch::FIRST {
            return;
        }
        let read = self.state.store.read(&lease.session, KEY);
        let stored = match tokio::time::timeout(PATIENCE, read).await {
            Ok(Ok(Some(stored))) => stored,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => {
                return tracing::warn!(%error, "what was done before could not be read");
            }
            Err(_) => return tracing::warn!("what was done before was not read in time"),
        };
        let mut estate: Estate = match serde_json::from_str(&stored.value) {
            Ok(estate) => estate,
            Err(error) => return tracing::error!(%error, "what was done before is not understood"),
        };
        for (key, event) in &estate.keys {
            let _new = self.keys.see(key.clone(), || event.clone());
        }
        self.publisher.took_over(
            &[
                ("version", stored.version.0.to_string()),
                ("written_under", stored.epoch.to_string()),
                ("keys", estate.keys.len().to_string()),
                ("tool_calls", estate.inheritance.tools.len().to_string()),
            ],
            now,
        );
        let inherited = Box::new(estate.inheritance.clone());
        self.kernel.handle(now, Input::Inherited(inherited));
        for tool in &mut estate.inheritance.tools {
            tool.end.get_or_insert(ToolEnd::Abandoned);
        }
        self.succession.estate = estate;
    }

    /// An event took effect under a key.
    pub(super) fn key_took_effect(&mut self, key: IdempotencyKey, event: EventId) {
        let keys = &mut self.succession.estate.keys;
        if keys.len() == MOST {
            keys.pop_front();
        }
        keys.push_back((key, event));
        let _nobody_waits = self.hand_down();
    }

    /// An order is about to be carried out, once it has leave.
    pub(super) fn order_begins(&mut self, order: ToolExchange) -> Option<Leave> {
        let Inheritance { next_turn, tools } = &mut self.succession.estate.inheritance;
        if tools.len() == MOST {
            tools.remove(0);
        }
        *next_turn = (*next_turn).max(order.turn.next());
        tools.push(order);
        self.hand_down()
    }

    /// A step of a call, if it is an order.
    pub(super) fn order_stepped(&mut self, step: &ToolStep) {
        let tools = &mut self.succession.estate.inheritance.tools;
        let is_it = |it: &ToolExchange| it.turn == step.turn && it.call == step.call;
        let Some(at) = tools.iter().position(is_it) else {
            return; // It has no effects.
        };
        match &step.what {
            ToolEvent::Ended {
                end: ToolEnd::Refused,
                ..
            } => {
                tools.remove(at);
            }
            ToolEvent::Ended { end, content, .. } => {
                tools[at].end = Some(*end);
                tools[at].result = Arc::clone(content);
            }
            ToolEvent::Late { content } => {
                tools[at].end = Some(ToolEnd::Finished);
                tools[at].result = Arc::clone(content);
            }
            ToolEvent::Requested { .. }
            | ToolEvent::Began
            | ToolEvent::Detached
            | ToolEvent::ActionCommitted(_)
            | ToolEvent::ActionRefused(_) => return,
        }
        let _nobody_waits = self.hand_down();
    }

    /// A reply stands: the model had been shown the orders of earlier turns, and has told of its own. What
    /// it asks for from now on is meant.
    pub(super) fn orders_are_told(&mut self, turn: TurnNumber) {
        let tools = &mut self.succession.estate.inheritance.tools;
        let before = tools.len();
        tools.retain(|it| it.turn > turn || it.end.is_none());
        if tools.len() < before {
            let _nobody_waits = self.hand_down();
        }
    }

    /// The last word of this placement is written before it is gone.
    pub(super) async fn finish_succession(&mut self) {
        self.succession.finish().await;
    }

    fn hand_down(&mut self) -> Option<Leave> {
        let epoch = self.kernel.epoch();
        self.succession
            .write(&self.state, &self.setup.place.lease, epoch)
    }
}
