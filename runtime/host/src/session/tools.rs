//! Running what the kernel lets run, and closing what it does not.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rspp_actors::{ActorId, CancellationToken, ChildSpec, Context, DataRef, NoData};
use rspp_kernel::{
    Input,
    tool::{MOVED, ToolEnd, ToolEvent, ToolExchange, ToolOutcome, ToolRequest, ToolStep},
};
use rspp_proto::{
    Epoch, Monotonic, NodeId, TurnNumber,
    spec::{NodeSpec, ToolEffects},
};
use rspp_provider_api::Tool;
use rspp_transport_api::{ClientCall, ClientResult};

use super::{Session, time};
use crate::{
    event::Arrival,
    tool::{CameBack, ClientCalls, ClientTool, Gate, Runner, ToolInvocation, ToolSetup},
};

type CallId = (TurnNumber, Arc<str>);

/// The calls whose executors are there; what they mean is the kernel's.
#[derive(Default)]
pub(super) struct Tools {
    running: BTreeMap<CallId, Running>,
    /// Where the answers for a turn's nodes go.
    answers: BTreeMap<(TurnNumber, NodeId), DataRef<Arrival>>,
    /// Executors of this session so far; names them among its children.
    started: u64,
    /// The calls that the client runs.
    client: Arc<ClientCalls>,
}

struct Running {
    actor: ActorId,
    gate: Arc<Gate>,
    cancel: CancellationToken,
    began_at: Option<Monotonic>,
}

impl Tools {
    /// The call that this child runs.
    pub(super) fn of(&self, child: ActorId) -> Option<(TurnNumber, Arc<str>)> {
        let mut running = self.running.iter();
        let found = running.find(|(_, running)| running.actor == child);
        found.map(|(call, _)| call.clone())
    }

    /// Its turn is over: what has not begun does not, and what is not to finish is given up. Whether it
    /// had begun.
    pub(super) fn interrupt(&mut self, turn: TurnNumber, call: &Arc<str>, finish: bool) -> bool {
        let key = (turn, Arc::clone(call));
        let Some(running) = self.running.get(&key) else {
            return false;
        };
        let began = running.gate.close();
        if !began || !finish {
            running.cancel.cancel();
            self.running.remove(&key);
        }
        began
    }

    /// A node that has ended needs no answer.
    pub(super) fn answer(
        &self,
        turn: TurnNumber,
        node: &NodeId,
        call: Arc<str>,
        content: Arc<str>,
    ) {
        if let Some(to) = self.answers.get(&(turn, node.clone())) {
            let _ended = to.offer(Arrival::ToolAnswer { call, content });
        }
    }

    /// A turn is closed: nobody waits for answers any more.
    pub(super) fn forget(&mut self, turn: TurnNumber) {
        self.answers.retain(|(of, _), _| *of != turn);
    }
}

impl Session {
    pub(super) fn tools_called(
        &mut self,
        now: Monotonic,
        turn: TurnNumber,
        node: Arc<NodeSpec>,
        calls: Vec<ToolRequest>,
        to: DataRef<Arrival>,
    ) {
        if self.kernel.current_turn() == Some(turn) {
            self.tools.answers.insert((turn, node.id.clone()), to);
        }
        self.kernel
            .handle(now, Input::ToolsCalled { turn, node, calls });
    }

    pub(super) fn tool_began(
        &mut self,
        now: Monotonic,
        turn: TurnNumber,
        call: Arc<str>,
        at: Monotonic,
    ) {
        if let Some(running) = self.tools.running.get_mut(&(turn, Arc::clone(&call))) {
            running.began_at = Some(at);
        }
        self.kernel.handle(now, Input::ToolBegan { turn, call });
    }

    pub(super) fn tool_ended(
        &mut self,
        now: Monotonic,
        turn: TurnNumber,
        call: Arc<str>,
        outcome: ToolOutcome,
    ) {
        if let Some(running) = self.tools.running.remove(&(turn, Arc::clone(&call)))
            && running.gate.has_begun()
        {
            // A crash is heard of before what its executor had said last.
            let call = Arc::clone(&call);
            self.kernel.handle(now, Input::ToolBegan { turn, call });
        }
        self.kernel.handle(
            now,
            Input::ToolEnded {
                turn,
                call,
                outcome,
            },
        );
    }

    /// The client says what came of a call. It ends none but those that it was told of.
    pub(super) fn client_called_back(&mut self, now: Monotonic, result: ClientResult) {
        match self.tools.client.came_back(result) {
            CameBack::Taken => {}
            CameBack::Late(ClientResult {
                turn,
                call,
                outcome,
            }) => {
                let (end, content) = match outcome {
                    Ok(content) => (ToolEnd::Finished, content),
                    Err(problem) => (ToolEnd::Failed, problem),
                };
                let outcome = ToolOutcome {
                    end,
                    content,
                    action: None,
                    attempts: 1,
                };
                self.tool_ended(now, turn, call, outcome);
            }
            CameBack::Unasked => {
                let message = "tool result: the client was told of no such call";
                self.publisher.malformed(message, now);
            }
        }
    }

    pub(super) fn journal(&mut self, now: Monotonic, step: &ToolStep) {
        let key = (step.turn, Arc::clone(&step.call));
        let began_at = self.tools.running.get(&key).and_then(|it| it.began_at);
        let at = match step.what {
            // It began where its executor passed the gate, not when that was heard of.
            ToolEvent::Began => began_at.unwrap_or(now),
            ToolEvent::Requested { .. }
            | ToolEvent::Ended { .. }
            | ToolEvent::Detached
            | ToolEvent::Late { .. }
            | ToolEvent::ActionCommitted(_)
            | ToolEvent::ActionRefused(_) => now,
        };
        self.ledger.tool(step);
        self.order_stepped(step);
        self.publisher.tool(step, at);
    }

    pub(super) async fn run_tool(
        &mut self,
        ctx: &mut Context<Self>,
        turn: TurnNumber,
        epoch: Epoch,
        node: &NodeId,
        request: ToolRequest,
    ) {
        let call = Arc::clone(&request.call);
        if let Err(problem) = self.start_tool(ctx, turn, epoch, node, request).await {
            let outcome = ToolOutcome {
                end: ToolEnd::Failed,
                content: problem,
                action: None,
                attempts: 0,
            };
            self.tool_ended(time(ctx), turn, call, outcome);
        }
    }

    async fn start_tool(
        &mut self,
        ctx: &mut Context<Self>,
        turn: TurnNumber,
        epoch: Epoch,
        node: &NodeId,
        request: ToolRequest,
    ) -> Result<(), String> {
        let nodes = &self.setup.blueprint.spec.nodes;
        let tools = nodes.iter().filter(|spec| spec.id == *node);
        let declared = tools
            .flat_map(|spec| &spec.tools)
            .find(|tool| *tool.name == *request.tool)
            .ok_or_else(|| format!("no tool `{}` is declared", request.tool))?
            .clone();
        let leave = match declared.effects {
            ToolEffects::External => {
                let order = ToolExchange {
                    turn,
                    call: Arc::clone(&request.call),
                    tool: Arc::clone(&request.tool),
                    arguments: Arc::clone(&request.arguments),
                    end: None,
                    result: MOVED.into(),
                    is_known: false,
                };
                self.order_begins(order)
            }
            ToolEffects::None => None,
        };
        let tool: Arc<dyn Tool> = match self.setup.tools.find(&declared)? {
            Runner::Program(tool) => tool,
            Runner::Client => Arc::new(ClientTool {
                calls: Arc::clone(&self.tools.client),
                line: self.setup.connection.clone(),
                epoch,
                call: ClientCall {
                    turn,
                    call: Arc::clone(&request.call),
                    tool: Arc::clone(&request.tool),
                    arguments: Arc::clone(&request.arguments),
                },
            }),
        };
        let gate = Arc::new(Gate::new(Arc::clone(&self.fence), self.clock, turn, epoch));
        let cancel = CancellationToken::new();
        let setup = ToolSetup {
            tool,
            leave,
            session_id: self.setup.place.lease.session.clone(),
            turn,
            epoch,
            placed: self.publisher.placed(),
            call: Arc::clone(&request.call),
            arguments: request.arguments,
            timeout: Duration::from_millis(declared.timeout_ms),
            idempotent: declared.idempotent,
            gate: Arc::clone(&gate),
            session: ctx.control_ref(),
            cancel: cancel.clone(),
            clock: ctx.clock(),
            wall_origin: self.publisher.wall(Monotonic::ZERO),
        };
        self.tools.started += 1;
        let spec = ChildSpec::temporary(format!("tool-{}", self.tools.started));
        let mut setup = Some(setup);
        let handle = ctx
            .spawn_pump(spec, NoData, move || ToolInvocation::new(setup.take()))
            .await
            .map_err(|error| format!("the tool could not be started: {error}"))?;
        let running = Running {
            actor: handle.id,
            gate,
            cancel,
            began_at: None,
        };
        self.tools.running.insert((turn, request.call), running);
        Ok(())
    }
}
