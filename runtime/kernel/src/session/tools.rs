//! The tools of a session's turns: who may begin, what is written down, what the next turn knows.

use std::sync::Arc;

use rspp_proto::{
    Monotonic, TurnNumber,
    spec::{NodeSpec, SessionAction},
};

use super::Session;
use crate::{
    effect::{Effect, SessionState},
    input::Inheritance,
    speculation::Discarded,
    tool::{
        Asked, Interrupted, MOVED, ToolCall, ToolEnd, ToolEvent, ToolExchange, ToolOutcome,
        ToolRequest, ToolStep, ToolTable, asks_for_the_same,
    },
};

/// What outlives a turn.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// Calls that go on without their turn, each within its own deadline.
    detached: Vec<Detached>,
    /// Calls that wait for the end of an earlier one, because they ask for the same.
    joined: Vec<Joined>,
    /// Calls of another placement, whose effects stand (F-158).
    inherited: Vec<ToolExchange>,
    /// The agent hangs up once its turn is over.
    hangs_up: bool,
    /// Nothing is seen through any more.
    gives_up: bool,
}

#[derive(Debug)]
struct Detached {
    turn: TurnNumber,
    call: ToolCall,
}

#[derive(Debug)]
struct Joined {
    earlier: (TurnNumber, Arc<str>),
    turn: TurnNumber,
    call: Arc<str>,
}

/// What is known of a call whose placement is gone: if it had no end, it can have none here.
pub(super) fn moved(exchange: &mut ToolExchange) {
    if exchange.end.is_none() {
        exchange.end = Some(ToolEnd::Abandoned);
        exchange.result = MOVED.into();
    }
}

impl Tools {
    /// Whether a call goes on that the session has to see through.
    pub(super) fn are_under_way(&self) -> bool {
        !self.detached.is_empty()
    }

    pub(super) fn take_hang_up(&mut self) -> bool {
        std::mem::take(&mut self.hangs_up)
    }
}

impl Session {
    /// A model asks for calls. Those of a turn that is over never begin (P1).
    pub(super) fn tools_called(
        &mut self,
        now: Monotonic,
        turn: TurnNumber,
        node: &NodeSpec,
        calls: Vec<ToolRequest>,
    ) {
        let is_live = self
            .running
            .as_ref()
            .is_some_and(|running| running.number == turn && running.is_bound());
        if let Some(running) = self.running.as_mut().filter(|_| is_live) {
            running.progress(now); // The user waits for something that is being done.
            running.show_life(now);
        }
        for request in calls {
            if is_live {
                self.tool_called(turn, node, request);
            } else {
                self.refuse_tool(turn, &request);
            }
        }
    }

    fn refuse_tool(&mut self, turn: TurnNumber, request: &ToolRequest) {
        let running = self.running.as_ref().filter(|it| it.number == turn);
        let of_turn = running.is_some_and(|it| it.tools.get(&request.call).is_some());
        if of_turn || self.conversation.has_call(turn, &request.call) {
            return; // The same call once more: it has its end.
        }
        self.requested(turn, request);
        let end = ToolEvent::Ended {
            end: ToolEnd::Refused,
            content: "not executed: its turn was over".into(),
            attempts: 0,
        };
        self.journal(turn, request, end);
    }

    fn tool_called(&mut self, turn: TurnNumber, node: &NodeSpec, request: ToolRequest) {
        let Some(running) = &mut self.running else {
            return;
        };
        match running.tools.ask(&node.id, node, request.clone()) {
            Asked::Running => {}
            Asked::Answered {
                end,
                content,
                is_new,
            } => {
                if is_new {
                    self.requested(turn, &request);
                    let attempts = 0;
                    let event = ToolEvent::Ended {
                        end,
                        content: Arc::clone(&content),
                        attempts,
                    };
                    self.journal(turn, &request, event);
                }
                self.answer(turn, node, &request, content);
            }
            Asked::Run => {
                self.requested(turn, &request);
                self.run_or_join(turn, node, request);
            }
        }
    }

    /// Runs a call, unless an interrupted turn has asked for the same and the model could not know
    /// what came of it: then this is the answer, and there is no second order (P7).
    fn run_or_join(&mut self, turn: TurnNumber, node: &NodeSpec, request: ToolRequest) {
        if let Some(outcome) = self.inherited(node, &request) {
            self.tool_ended(turn, &request.call, &outcome);
            return;
        }
        let earlier = self.conversation.unknown_call(|exchange| {
            exchange.turn != turn
                && matches!(exchange.end, None | Some(ToolEnd::Finished))
                && asks_for_the_same(node, &request, exchange)
        });
        let Some(earlier) = earlier else {
            let (epoch, node) = (self.epoch, node.id.clone());
            self.effects.push_back(Effect::RunTool {
                turn,
                epoch,
                node,
                request,
            });
            return;
        };
        match earlier.end {
            None => {
                let earlier = (earlier.turn, Arc::clone(&earlier.call));
                self.tools.joined.push(Joined {
                    earlier,
                    turn,
                    call: request.call,
                });
            }
            Some(end) => {
                let outcome = ToolOutcome {
                    end,
                    content: earlier.result.to_string(),
                    action: None,
                    attempts: 0,
                };
                self.tool_ended(turn, &request.call, &outcome);
            }
        }
    }

    /// Another placement had the session before.
    pub(super) fn inherit(&mut self, inheritance: Inheritance) {
        let Inheritance { next_turn, tools } = inheritance;
        self.next_turn = self.next_turn.max(next_turn);
        for mut tool in tools {
            moved(&mut tool);
            tool.is_known = false;
            if self.conversation.has_call(tool.turn, &tool.call) {
                // It came with what was said; what is known of its end is fresher here.
                let end = tool.end.unwrap_or(ToolEnd::Abandoned);
                let result = Arc::clone(&tool.result);
                self.conversation
                    .tool_ended(tool.turn, &tool.call, end, result);
            } else {
                self.conversation.tool_was_called(tool.clone());
            }
            self.tools.inherited.push(tool);
        }
    }

    /// What another placement has had done of what is asked for, once: the effect stands, though nobody
    /// was told. After a reply that stands, the model means what it asks for.
    fn inherited(&mut self, node: &NodeSpec, request: &ToolRequest) -> Option<ToolOutcome> {
        let inherited = &mut self.tools.inherited;
        let at = inherited.iter().position(|exchange| {
            let had_none = matches!(exchange.end, Some(ToolEnd::Failed | ToolEnd::Refused));
            !had_none && asks_for_the_same(node, request, exchange)
        })?;
        let exchange = inherited.remove(at);
        Some(ToolOutcome {
            end: exchange.end?,
            content: exchange.result.to_string(),
            action: None,
            attempts: 0,
        })
    }

    /// With its last answer the turn has to speak again.
    pub(super) fn tool_answered(&mut self, now: Monotonic, turn: TurnNumber) {
        if let Some(running) = self.running.as_mut().filter(|it| it.number == turn) {
            running.show_life(now);
        }
    }

    pub(super) fn tool_began(&mut self, turn: TurnNumber, call: &str) {
        let Some(running) = self.running.as_mut().filter(|it| it.number == turn) else {
            return; // Its turn was told when it was interrupted.
        };
        if running.tools.began(call)
            && let Some(request) = running.tools.get(call).map(|call| call.request.clone())
        {
            self.journal(turn, &request, ToolEvent::Began);
        }
    }

    /// A call has come back. First it is written down, then it is looked at whether its turn lives (P7).
    pub(super) fn tool_ended(&mut self, turn: TurnNumber, call: &str, outcome: &ToolOutcome) {
        if let Some(at) = self
            .tools
            .detached
            .iter()
            .position(|detached| detached.turn == turn && &*detached.call.request.call == call)
        {
            let detached = self.tools.detached.swap_remove(at);
            self.detached_ended(detached, outcome);
            return;
        }
        let Some(running) = self.running.as_mut().filter(|it| it.number == turn) else {
            self.tool_came_late(turn, call, outcome);
            return;
        };
        let content = running.tools.ended(call, outcome);
        let Some(found) = running.tools.get(call) else {
            return;
        };
        let (request, node) = (found.request.clone(), found.node.clone());
        let Some(content) = content else {
            let content = outcome.content.as_str().into();
            self.journal(turn, &request, ToolEvent::Late { content });
            return;
        };
        let event = ToolEvent::Ended {
            end: outcome.end,
            content: Arc::clone(&content),
            attempts: outcome.attempts,
        };
        self.journal(turn, &request, event);
        self.effects.push_back(Effect::AnswerTool {
            turn,
            node,
            call: request.call,
            content,
        });
    }

    /// It was given up with its turn, and has had its end; what came of it all the same is worth knowing.
    fn tool_came_late(&mut self, turn: TurnNumber, call: &str, outcome: &ToolOutcome) {
        let content: Arc<str> = outcome.content.as_str().into();
        let known = self
            .conversation
            .tool_came_late(turn, call, Arc::clone(&content));
        let Some(exchange) = known else { return };
        let request = ToolRequest {
            call: Arc::clone(&exchange.call),
            tool: Arc::clone(&exchange.tool),
            arguments: Arc::clone(&exchange.arguments),
            round: 0,
        };
        self.discard(Discarded::ContextChanged);
        self.journal(turn, &request, ToolEvent::Late { content });
    }

    fn detached_ended(&mut self, detached: Detached, outcome: &ToolOutcome) {
        let Detached { turn, call } = detached;
        let request = call.request.clone();
        if let Some(running) = self.running.as_mut().filter(|it| it.number == turn) {
            // It ended while its turn was being closed.
            let outcome = ToolOutcome {
                action: None,
                ..outcome.clone()
            };
            running.tools.ended(&request.call, &outcome);
        }
        let mut alone = ToolTable::of(call);
        let content = alone
            .ended(&request.call, outcome)
            .expect("a detached call has not ended");
        let event = ToolEvent::Ended {
            end: outcome.end,
            content: Arc::clone(&content),
            attempts: outcome.attempts,
        };
        self.journal(turn, &request, event);
        for (request, action) in alone.take_actions() {
            // What an interrupted reply asks of the session is not done (P1).
            self.journal(turn, &request, ToolEvent::ActionRefused(action));
        }
        self.conversation
            .tool_ended(turn, &request.call, outcome.end, content);
        self.discard(Discarded::ContextChanged);
        self.answer_joined(turn, &request.call, outcome);
        if self.state == SessionState::Draining && self.running.is_none() {
            self.end();
        }
    }

    /// Calls that wait for this one end as it has ended.
    fn answer_joined(&mut self, turn: TurnNumber, call: &str, outcome: &ToolOutcome) {
        let joined = std::mem::take(&mut self.tools.joined);
        for waits in joined {
            if waits.earlier.0 == turn && &*waits.earlier.1 == call {
                let outcome = ToolOutcome {
                    action: None,
                    attempts: 0,
                    ..outcome.clone()
                };
                self.tool_ended(waits.turn, &waits.call, &outcome);
            } else {
                self.tools.joined.push(waits);
            }
        }
    }

    // --- the end of a turn -------------------------------------------------------------------

    /// The running turn ends: each of its calls that is open gets its end, or goes on as it is to (P8).
    pub(super) fn interrupt_tools(&mut self) {
        let Some(running) = &self.running else { return };
        let turn = running.number;
        let open = running.tools.calls().iter().filter(|call| call.is_open());
        let asks: Vec<_> = open
            .map(|call| Effect::InterruptTool {
                turn,
                call: Arc::clone(&call.request.call),
                finish: call.finishes() && !self.tools.gives_up,
            })
            .collect();
        self.effects.extend(asks);
    }

    pub(super) fn tool_interrupted(&mut self, turn: TurnNumber, call: &str, began: bool) {
        if began {
            // Its executor may have said so in a message that is still under way.
            self.tool_began(turn, call);
        }
        let may_finish = !self.tools.gives_up;
        let Some(running) = self.running.as_mut().filter(|it| it.number == turn) else {
            return;
        };
        let Some(became) = running.tools.interrupted(call, began, may_finish) else {
            return;
        };
        let Some(found) = running.tools.get(call).cloned() else {
            return;
        };
        self.tools
            .joined
            .retain(|waits| waits.turn != turn || &*waits.call != call);
        let event = match became {
            Interrupted::Ended(end, content) => ToolEvent::Ended {
                end,
                content,
                attempts: u32::from(began),
            },
            Interrupted::Detached => {
                let call = found.clone();
                self.tools.detached.push(Detached { turn, call });
                ToolEvent::Detached
            }
        };
        self.journal(turn, &found.request, event);
    }

    /// Nothing is seen through any more: authority is lost, or the session is stopped.
    pub(super) fn give_tools_up(&mut self) {
        self.tools.gives_up = true;
        for detached in std::mem::take(&mut self.tools.detached) {
            self.effects.push_back(Effect::InterruptTool {
                turn: detached.turn,
                call: Arc::clone(&detached.call.request.call),
                finish: false,
            });
            let outcome = ToolOutcome {
                end: ToolEnd::Abandoned,
                content: "given up with its session; it may or may not have taken effect".into(),
                action: None,
                attempts: 1,
            };
            self.detached_ended(detached, &outcome);
        }
    }

    /// What tools asked of the session is done if their turn commits, and refused if not (P1).
    pub(super) fn act(&mut self, turn: TurnNumber, commits: bool) {
        if commits {
            self.tools.inherited.clear();
        }
        let Some(running) = &mut self.running else {
            return;
        };
        for (request, action) in running.tools.take_actions() {
            let event = if commits {
                match action {
                    SessionAction::EndCall => self.tools.hangs_up = true,
                }
                self.effects.push_back(Effect::Act(action));
                ToolEvent::ActionCommitted(action)
            } else {
                ToolEvent::ActionRefused(action)
            };
            self.journal(turn, &request, event);
        }
    }

    /// A closed turn's calls are part of the conversation, before the words that followed them.
    pub(super) fn keep_tools(&mut self, turn: TurnNumber, table: &ToolTable) {
        for call in table.calls() {
            debug_assert!(!call.is_open(), "a closed turn has an open call");
            self.conversation.tool_was_called(call.exchange(turn));
        }
    }

    // --- writing down ------------------------------------------------------------------------

    fn requested(&mut self, turn: TurnNumber, request: &ToolRequest) {
        let event = ToolEvent::Requested {
            arguments: Arc::clone(&request.arguments),
            round: request.round,
        };
        self.journal(turn, request, event);
    }

    fn journal(&mut self, turn: TurnNumber, request: &ToolRequest, what: ToolEvent) {
        self.effects.push_back(Effect::Journal(ToolStep {
            turn,
            call: Arc::clone(&request.call),
            tool: Arc::clone(&request.tool),
            what,
        }));
    }

    fn answer(
        &mut self,
        turn: TurnNumber,
        node: &NodeSpec,
        request: &ToolRequest,
        content: Arc<str>,
    ) {
        self.effects.push_back(Effect::AnswerTool {
            turn,
            node: node.id.clone(),
            call: Arc::clone(&request.call),
            content,
        });
    }
}
