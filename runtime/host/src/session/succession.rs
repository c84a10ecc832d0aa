//! What a session's next placement has to know so that nothing is done twice: keys of events that took
//! effect, and orders that may have been carried out (F-158). Kept with the session's durable state, under
//! its lease.
//!
//! An order is written down before it is carried out, and not carried out if the store refuses: whoever has
//! taken the session over has then read what was there. Of keys the word follows the effect, so that nobody
//! waits for it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use rspp_kernel::{
    Inheritance, Input,
    tool::{ToolEnd, ToolEvent, ToolExchange, ToolStep},
};
use rspp_proto::{Epoch, EventId, IdempotencyKey, Monotonic, TurnNumber};
use serde::{Deserialize, Serialize};

use super::{
    Session,
    latest::{Latest, Receipt},
};

/// Where it is kept; no node's key begins like this.
const KEY: &str = "session/succession";
/// Keys that are handed down, the newest: their whole list is written each time.
const MOST_KEYS: usize = 256;
/// Orders that are.
const MOST_ORDERS: usize = 64;
/// How long a new placement waits for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is handed down.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Estate {
    keys: VecDeque<(IdempotencyKey, EventId)>,
    inheritance: Inheritance,
}

/// Writes it down as it changes.
pub(super) struct Succession {
    estate: Estate,
    latest: Latest,
}

impl Default for Succession {
    fn default() -> Self {
        Self {
            estate: Estate::default(),
            latest: Latest::new(KEY),
        }
    }
}

impl Succession {
    /// Until the last word of this placement is written, or is known not to be.
    pub(super) async fn finish(&mut self) {
        self.latest.finish().await;
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
        if keys.len() == MOST_KEYS {
            keys.pop_front();
        }
        keys.push_back((key, event));
        let _nobody_waits = self.hand_down();
    }

    /// An order is about to be carried out, once it has leave.
    pub(super) fn order_begins(&mut self, order: ToolExchange) -> Option<Receipt> {
        let Inheritance { next_turn, tools } = &mut self.succession.estate.inheritance;
        if tools.len() == MOST_ORDERS {
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

    fn hand_down(&mut self) -> Option<Receipt> {
        let Succession { estate, latest } = &mut self.succession;
        let text = match serde_json::to_string(estate) {
            Ok(text) => text.into(),
            Err(error) => {
                tracing::error!(%error, "what was done could not be written down");
                return None;
            }
        };
        let epoch = self.kernel.epoch();
        Some(latest.write(&self.state.store, &self.setup.place.lease, epoch, text))
    }
}
