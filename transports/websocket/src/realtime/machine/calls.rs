//! Tools that the client runs. In a session they are part of their turn, which waits for what they come to; to
//! the client the turn is several responses: one that ends with the calls, and one that goes on with what came
//! of them once the client asks for it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use rspp_proto::TurnNumber;
use rspp_transport_api::{ClientCall, ClientResult, Ingress};
use serde_json::{Value, json};

use super::{Ending, Machine, Order, Place, is_active};
use crate::realtime::{
    fields::Problem,
    items::{Item, Kind, Status},
};

/// How long a response may take to call another tool beside the first: they are called at once.
const GATHER: Duration = Duration::from_millis(30);
/// How long nothing more is heard of what was said before a call, once all of it has been.
const QUIET: Duration = Duration::from_millis(400);
/// Calls that are remembered; what comes of older ones nobody waits for.
const REMEMBERED: usize = 64;

/// The calls that the client was told of.
#[derive(Debug, Default)]
pub(super) struct Calls {
    told: VecDeque<Called>,
    /// The turn that waits for what they come to.
    asking: Option<TurnNumber>,
}

#[derive(Debug)]
struct Called {
    /// What the client knows it by.
    id: String,
    turn: TurnNumber,
    /// What its session knows it by.
    call: Arc<str>,
    state: State,
}

#[derive(Debug)]
enum State {
    Open,
    /// The client has said what came of it; its session is told when the client asks for a response.
    Held(String),
    Over,
}

impl Calls {
    /// The turn that waits for the client.
    pub(super) fn asking(&self) -> Option<TurnNumber> {
        self.asking
    }

    fn find(&mut self, id: &str) -> Option<&mut Called> {
        self.told.iter_mut().find(|called| called.id == id)
    }

    fn has_results(&self, turn: TurnNumber) -> bool {
        let mut of_turn = self.told.iter().filter(|called| called.turn == turn);
        of_turn.any(|called| matches!(called.state, State::Held(_)))
    }

    /// What came of a turn's calls and its session has not been told.
    fn take_results(&mut self, turn: TurnNumber) -> Vec<ClientResult> {
        let mut results = Vec::new();
        for called in self.told.iter_mut().filter(|called| called.turn == turn) {
            match std::mem::replace(&mut called.state, State::Over) {
                State::Held(output) => results.push(ClientResult {
                    turn,
                    call: Arc::clone(&called.call),
                    outcome: Ok(output),
                }),
                before @ (State::Open | State::Over) => called.state = before,
            }
        }
        results
    }
}

impl Machine {
    /// The model calls a tool of the client's.
    pub(in crate::realtime) fn called(&mut self, now: Duration, call: &ClientCall) {
        self.answered();
        if self.of(call.turn).is_none() {
            return;
        }
        let (id, item) = (self.id("call"), self.id("item"));
        let Some(response) = &mut self.response else {
            return;
        };
        let is_alone = response.text.is_empty() || !self.settings.speaks;
        response.hands_over = Some(now + if is_alone { GATHER } else { QUIET });
        response.went_on = false;
        response.items.push(item.clone());
        let place = Place {
            response: response.id.clone(),
            index: response.index_of(&item),
            item,
        };
        self.calls.asking = Some(call.turn);
        if self.calls.told.len() == REMEMBERED {
            self.calls.told.pop_front();
        }
        self.calls.told.push_back(Called {
            id: id.clone(),
            turn: call.turn,
            call: Arc::clone(&call.call),
            state: State::Open,
        });
        self.tell_call(&place, &id, call);
    }

    fn tell_call(&mut self, place: &Place, id: &str, call: &ClientCall) {
        let item = |arguments: &str, status| Item {
            id: place.item.clone(),
            kind: Kind::Call {
                call: id.to_owned(),
                tool: call.tool.to_string(),
                arguments: arguments.to_owned(),
                status,
            },
        };
        let begun = item("", Status::InProgress);
        self.say_of_item("response.output_item.added", place, &begun);
        self.add(begun);
        let of_call = |name: &str, value: &str| {
            json!({
                "response_id": place.response,
                "item_id": place.item,
                "output_index": place.index,
                "call_id": id,
                name: value,
            })
        };
        let delta = of_call("delta", &call.arguments);
        self.say("response.function_call_arguments.delta", delta);
        let mut done = of_call("arguments", &call.arguments);
        done["name"] = json!(&*call.tool);
        self.say("response.function_call_arguments.done", done);
        let whole = item(&call.arguments, Status::Completed);
        if let Some(known) = self.items.find_mut(&place.item) {
            *known = whole.clone();
        }
        self.item_done(place, &whole);
    }

    /// The client says what came of a call.
    pub(super) fn came_back(
        &mut self,
        id: String,
        call: &str,
        output: String,
    ) -> Result<(), Problem> {
        let Some(called) = self.calls.find(call) else {
            let says = format!("'item.call_id': there is no call '{call}'");
            return Err(Problem::new("item_not_found", says).at("item.call_id"));
        };
        match called.state {
            State::Open => called.state = State::Held(output.clone()),
            State::Held(_) | State::Over => {
                let says = format!("'item.call_id': what came of '{call}' was said before");
                return Err(Problem::new("invalid_value", says).at("item.call_id"));
            }
        }
        let turn = called.turn;
        let call = call.to_owned();
        let kind = Kind::Output { call, output };
        self.add(Item { id, kind });
        // A response that was asked for already waits for it; so may the next turn, if this one is over.
        let response = self.response.as_ref();
        let goes_on = response.is_some_and(|it| it.turn == Some(turn) && it.hands_over.is_none());
        if goes_on || self.calls.asking != Some(turn) {
            self.release(turn);
        }
        Ok(())
    }

    /// The client asks for what follows its tools' results.
    pub(super) fn go_on(&mut self, turn: TurnNumber, metadata: Value) -> Result<(), Problem> {
        let has_results = self.calls.has_results(turn);
        match &mut self.response {
            Some(response) if response.hands_over.is_some() => {}
            // What was said before the calls took longer than was waited for.
            Some(response) if response.unasked => {
                response.unasked = false;
                response.metadata = metadata;
                self.release(turn);
                return Ok(());
            }
            Some(_active) => return Err(is_active()),
            None => {}
        }
        if !has_results {
            let says =
                "a response goes on with what tools came to: create a function_call_output before";
            return Err(Problem::new("nothing_to_answer", says));
        }
        self.hand_over();
        self.release(turn);
        self.open(Some(turn), metadata).unasked = false;
        Ok(())
    }

    /// A response that has called tools is over once all of it has been heard.
    pub(super) fn hand_over_when_due(&mut self, now: Duration) {
        let Some(response) = &mut self.response else {
            return;
        };
        if response.hands_over.is_none_or(|due| due > now) {
            return;
        }
        if std::mem::take(&mut response.went_on) {
            response.hands_over = Some(now + QUIET);
        } else {
            self.hand_over();
        }
    }

    /// The running response, if there is one, is over, though its turn is not.
    pub(super) fn hand_over(&mut self) {
        self.finish(&Ending::Completed, None);
    }

    /// Whether a turn waits for the client between two responses.
    pub(super) fn is_between_responses(&self, turn: TurnNumber) -> bool {
        self.calls.asking == Some(turn) && self.response.is_none()
    }

    /// A turn that called tools is over. What came of them is for the next.
    pub(super) fn asked_in_vain(&mut self, turn: TurnNumber) {
        self.calls.asking.take_if(|asking| *asking == turn);
        self.release(turn);
        if self.response.is_none() {
            self.done = self.done.max(turn);
        }
    }

    /// Something else is to be answered than what came of calls: their turn is over, whenever it says so.
    pub(super) fn supersede(&mut self) {
        if let Some(before) = self.calls.asking() {
            self.asked_in_vain(before);
        }
    }

    fn release(&mut self, turn: TurnNumber) {
        for result in self.calls.take_results(turn) {
            let result = Ingress::ToolResult(Box::new(result));
            self.orders.push_back(Order::Now(result));
        }
    }
}
