//! Tools that a session's client runs: it is told of the call over its connection, and says what came of it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rspp_actors::ControlRef;
use rspp_proto::{Epoch, TurnNumber};
use rspp_provider_api::{Tool, ToolFault, ToolFuture, ToolOutput, ToolRun};
use rspp_transport_api::{ClientCall, ClientResult};
use tokio::sync::oneshot;

use crate::connection::ConnectionControl;

/// Calls that are remembered after their end, so that what comes late is known for what it is.
const REMEMBERED: usize = 64;

type Key = (TurnNumber, Arc<str>);
type Outcome = Result<String, String>;

/// The calls of one session that its client was told of.
#[derive(Debug, Default)]
pub(crate) struct ClientCalls(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: BTreeMap<Key, oneshot::Sender<Outcome>>,
    asked: VecDeque<Key>,
}

/// What became of what a client said of a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CameBack {
    /// Who waited for it has it.
    Taken,
    /// The call had its end before.
    Late(ClientResult),
    /// The client was told of no such call.
    Unasked,
}

impl ClientCalls {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked left nothing half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, key: Key) -> oneshot::Receiver<Outcome> {
        let (to, waits) = oneshot::channel();
        let mut state = self.lock();
        if state.asked.len() == REMEMBERED {
            state.asked.pop_front();
        }
        state.asked.push_back(key.clone());
        state.waiting.insert(key, to);
        waits
    }

    /// The client says what came of a call.
    pub(crate) fn came_back(&self, result: ClientResult) -> CameBack {
        let key = (result.turn, Arc::clone(&result.call));
        let mut state = self.lock();
        if let Some(waits) = state.waiting.remove(&key) {
            return match waits.send(result.outcome) {
                Ok(()) => CameBack::Taken,
                Err(outcome) => CameBack::Late(ClientResult { outcome, ..result }),
            };
        }
        if state.asked.contains(&key) {
            CameBack::Late(result)
        } else {
            CameBack::Unasked
        }
    }
}

/// One call, as a tool.
pub(crate) struct ClientTool {
    pub(crate) calls: Arc<ClientCalls>,
    pub(crate) line: ControlRef<ConnectionControl>,
    pub(crate) epoch: Epoch,
    pub(crate) call: ClientCall,
}

/// Somebody waits; forgotten with whoever does.
struct Waiting {
    calls: Arc<ClientCalls>,
    key: Key,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.calls.lock().waiting.remove(&self.key);
    }
}

impl Tool for ClientTool {
    fn run(&self, _run: ToolRun) -> ToolFuture {
        let key = (self.call.turn, Arc::clone(&self.call.call));
        let answer = self.calls.ask(key.clone());
        let waiting = Waiting {
            calls: Arc::clone(&self.calls),
            key,
        };
        let call = ConnectionControl::CallTool(self.epoch, Box::new(self.call.clone()));
        let told = self.line.send_reserved(call);
        Box::pin(async move {
            let _forgotten_with_us = waiting;
            if told.is_err() {
                return Err(ToolFault::new("not executed: the client is gone"));
            }
            match answer.await {
                Ok(Ok(content)) => Ok(ToolOutput::new(content)),
                Ok(Err(problem)) => Err(ToolFault::new(problem)),
                Err(_nobody_answers) => Err(ToolFault::new("the client is gone")),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(turn: u32, call: &str) -> ClientResult {
        ClientResult {
            turn: TurnNumber(turn),
            call: call.into(),
            outcome: Ok("done".to_owned()),
        }
    }

    /// P8: a client ends the calls that it was told of, once, and no others.
    #[test]
    fn a_client_ends_its_own_calls_and_no_others() {
        let calls = ClientCalls::default();
        let mut waits = calls.ask((TurnNumber(1), "a".into()));
        assert_eq!(calls.came_back(result(1, "b")), CameBack::Unasked);
        assert_eq!(calls.came_back(result(2, "a")), CameBack::Unasked);
        assert_eq!(calls.came_back(result(1, "a")), CameBack::Taken);
        assert_eq!(waits.try_recv(), Ok(Ok("done".to_owned())));
        let late = result(1, "a");
        assert_eq!(calls.came_back(late.clone()), CameBack::Late(late));
    }

    /// NF-013: what is remembered is bounded.
    #[test]
    fn old_calls_are_forgotten() {
        let calls = ClientCalls::default();
        for turn in 1..=100 {
            drop(calls.ask((TurnNumber(turn), "a".into())));
            calls.lock().waiting.clear();
        }
        assert_eq!(calls.lock().asked.len(), REMEMBERED);
        assert_eq!(calls.came_back(result(1, "a")), CameBack::Unasked);
    }
}
