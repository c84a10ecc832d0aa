//! Tools that answer what they answered: their effects were had once, and are not had again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rspp_host::ToolRegistry;
use rspp_proto::{IdempotencyKey, Monotonic};
use rspp_provider_api::{Tool, ToolFault, ToolFuture, ToolOutput, ToolRun};
use rspp_timeline::ToolStep;

use super::Recorded;

/// Ends the call by an action of the session's, whose effect is in the session itself.
const OWN: &str = "end_call";

struct Answers(BTreeMap<IdempotencyKey, Answer>);

#[derive(Clone, Default)]
struct Answer {
    began: Option<Monotonic>,
    ended: Option<(Duration, ToolStep, String)>,
}

impl Tool for Answers {
    fn run(&self, run: ToolRun) -> ToolFuture {
        let answer = self.0.get(&run.key).cloned().unwrap_or_default();
        Box::pin(async move {
            let Some((after, step, content)) = answer.ended else {
                let message = "the recording holds no answer of this tool to this call";
                return Err(ToolFault::new(message));
            };
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            match step {
                ToolStep::Finished => Ok(ToolOutput::new(content)),
                ToolStep::Requested
                | ToolStep::Began
                | ToolStep::Detached
                | ToolStep::Failed
                | ToolStep::TimedOut
                | ToolStep::Abandoned
                | ToolStep::Refused
                | ToolStep::Late
                | ToolStep::ActionCommitted
                | ToolStep::ActionRefused => Err(ToolFault::new(content)),
            }
        })
    }
}

/// The tools of a recorded session.
pub(super) fn recorded(session: &Recorded) -> ToolRegistry {
    let mut answers = BTreeMap::<IdempotencyKey, Answer>::new();
    for step in &session.tools {
        let answer = answers.entry(step.idempotency_key.clone()).or_default();
        if step.step == ToolStep::Began {
            answer.began = Some(step.at);
        }
        if let Some(content) = step.result.as_ref().filter(|_| step.step.is_end()) {
            let after = answer
                .began
                .map_or(Duration::ZERO, |began| step.at.since(began));
            answer.ended = Some((after, step.step, content.clone()));
        }
    }
    let answers: Arc<dyn Tool> = Arc::new(Answers(answers));
    let mut registry = ToolRegistry::default();
    let declared = session.pipeline.nodes.iter().flat_map(|node| &node.tools);
    for tool in declared.filter(|tool| tool.name != OWN) {
        registry.register(tool.name.as_str(), Arc::clone(&answers));
    }
    registry.stand_in_for_clients(Arc::clone(&answers));
    registry.serve_http(Arc::new(move |_server| Ok(Arc::clone(&answers))));
    registry
}
