//! A tool whose effects are counted.

use std::{future, sync::Arc, time::Duration};

use rspp_host::ToolRegistry;
use rspp_provider_api::{
    LlmRequest, Role, Tool, ToolCall, ToolFault, ToolFuture, ToolOutput, ToolRun, scripted::Answer,
};
use serde_json::json;

use super::{
    Chore, ChoreFault, Piece, Plant, Scenario,
    providers::{Watches, with_watch},
    watch::Trace,
};

/// What the tool is called.
const NAME: &str = "order";

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The scenario's tool, if it has one.
pub(super) fn chore(scenario: &Scenario) -> Option<Chore> {
    scenario.pieces.iter().find_map(|piece| match piece {
        Piece::Tool(chore) => Some(*chore),
        _something_else => None,
    })
}

/// The tool as a pipeline declares it.
pub(super) fn declared(chore: Chore) -> serde_json::Value {
    json!([{
        "name": NAME,
        "description": "Orders.",
        "parameters": {
            "type": "object",
            "properties": { "what": { "type": "integer" } },
            "required": ["what"],
        },
        "idempotent": chore.idempotent,
        "timeout_ms": chore.timeout_ms,
        "on_interruption": if chore.finishes { "finish" } else { "abandon" },
    }])
}

/// What a model says that may order: it does with every other message of the user, unless it knows of
/// such an order. Two messages each ask for the same.
pub(super) fn answer(request: &LlmRequest, answers: &[&str]) -> Answer {
    let messages = request.messages.iter();
    let said = messages.clone().filter(|it| it.role == Role::User).count();
    let nth = said.saturating_sub(1);
    let text = answers[nth % answers.len()];
    let offered = request.tools.iter().any(|tool| tool.name == NAME);
    let arguments = json!({ "what": nth / 2 }).to_string();
    let mut asked = messages.flat_map(|message| &message.tool_calls);
    if !offered || asked.any(|call| call.arguments == arguments) {
        return text.into();
    }
    Answer {
        text: text.to_owned(),
        tool_calls: vec![ToolCall {
            id: format!("call-{nth}"),
            name: NAME.to_owned(),
            arguments,
        }],
    }
}

/// The tools of a runtime.
pub(super) fn registry(
    scenario: &Scenario,
    watches: &Watches,
    trace: &Trace,
    plant: Option<Plant>,
) -> ToolRegistry {
    let mut tools = ToolRegistry::default();
    if let Some(chore) = chore(scenario) {
        let order = Order {
            chore,
            watches: Arc::clone(watches),
            trace: trace.clone(),
            plant,
        };
        tools.register(NAME, Arc::new(order));
    }
    tools
}

#[derive(Clone)]
struct Order {
    chore: Chore,
    watches: Watches,
    trace: Trace,
    plant: Option<Plant>,
}

impl Order {
    fn happened(&self, fault: &'static str) {
        self.trace.lock().tally.fault(fault);
    }

    /// It begins: from here on it may have its effect.
    fn begins(&self, run: &ToolRun) {
        with_watch(&self.watches, &run.session, run.epoch, |watch| {
            watch.begins(run, self.chore.idempotent);
        });
    }

    fn takes_effect(&self, run: &ToolRun) {
        with_watch(&self.watches, &run.session, run.epoch, |watch| {
            watch.takes_effect(run);
            if self.plant == Some(Plant::EffectTwice) {
                watch.takes_effect(run);
            }
        });
    }
}

impl Tool for Order {
    fn commits_itself(&self) -> bool {
        self.chore.prepares_ms.is_some()
    }

    fn run(&self, run: ToolRun) -> ToolFuture {
        let order = self.clone();
        if order.chore.prepares_ms.is_none() {
            order.begins(&run);
        }
        match order.chore.fault {
            ChoreFault::Stubborn => {
                let work = tokio::spawn(order.work(run));
                Box::pin(async {
                    work.await
                        .unwrap_or_else(|_| Err(ToolFault::new("crashed")))
                })
            }
            ChoreFault::None | ChoreFault::Fails { .. } | ChoreFault::Deaf | ChoreFault::Panics => {
                Box::pin(order.work(run))
            }
        }
    }
}

impl Order {
    fn work(self, run: ToolRun) -> impl Future<Output = Result<ToolOutput, ToolFault>> {
        let order = self;
        async move {
            let chore = order.chore;
            if let Some(prepares) = chore.prepares_ms {
                tokio::time::sleep(ms(prepares)).await;
                match run.commit() {
                    Ok(()) => {}
                    Err(_) if order.plant == Some(Plant::EffectOfTheDead) => {}
                    Err(refused) => {
                        order.happened("tool: refused");
                        return Err(refused);
                    }
                }
                order.begins(&run);
            }
            if let ChoreFault::Fails { attempts } = chore.fault
                && run.attempt.get() <= attempts
            {
                order.happened("tool: fails");
                return Err(ToolFault::passing("not now"));
            }
            order.takes_effect(&run);
            match chore.fault {
                ChoreFault::Deaf => {
                    order.happened("tool: deaf");
                    future::pending::<()>().await;
                }
                ChoreFault::Panics => {
                    order.happened("tool: panics");
                    panic!("scripted panic of a tool");
                }
                ChoreFault::None | ChoreFault::Fails { .. } | ChoreFault::Stubborn => {}
            }
            tokio::time::sleep(ms(chore.takes_ms)).await;
            Ok(ToolOutput::new("It is ordered."))
        }
    }
}
