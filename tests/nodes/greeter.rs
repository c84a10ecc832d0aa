//! A custom node as somebody else would write one: greets the user by name, once a call.
//!
//! Stands between a segmenter and a voice. The first clause of the first reply is preceded by a
//! greeting; how often the user has called is looked up in what the conversation keeps, and whoever
//! has called before is welcomed back. Settings: `name`, whom to greet.

use rspp_host::{
    Event, Port,
    node::{Node, NodeContext, NodeError, Step},
};
use rspp_proto::{Payload, SampleIndex, Speaker, TextChunk};
use serde_json::json;

/// The node.
#[derive(Default)]
pub struct Greeter {
    name: String,
    clauses: u32,
}

impl Greeter {
    async fn greet(&mut self, cx: &mut NodeContext) -> Result<(), NodeError> {
        // A restart of this node, or the next turn, greets nobody again.
        let greeted = cx.hot_state().put("greeted", &json!(true));
        greeted.map_err(|error| NodeError::new(error.to_string()))?;
        let durable = cx.durable_state();
        let calls = durable.get("calls").await;
        let calls = calls.map_err(|error| NodeError::new(error.to_string()))?;
        let calls = calls.and_then(|(calls, _)| calls.as_u64()).unwrap_or(0);
        let counted = durable.put("calls", &json!(calls + 1)).await;
        counted.map_err(|error| NodeError::new(error.to_string()))?;
        let name = &self.name;
        let greeting = if calls == 0 {
            format!("Hello {name}.")
        } else {
            format!("Welcome back, {name}.")
        };
        self.say(cx, &greeting);
        Ok(())
    }

    /// Clauses are counted anew, since there is one more of them.
    fn say(&mut self, cx: &mut NodeContext, text: &str) {
        let segment = self.clauses;
        self.clauses += 1;
        let chunk = TextChunk::whole(Speaker::Agent, segment, text);
        cx.emit_at(Payload::Text(Box::new(chunk)), SampleIndex(0), segment);
    }
}

impl Node for Greeter {
    fn init<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        let name = cx.settings().text("name").unwrap_or_default().trim();
        if name.is_empty() {
            return Step::Done(Err(NodeError::new("a greeter needs a `name`")));
        }
        name.clone_into(&mut self.name);
        Step::OK
    }

    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        let Payload::Text(clause) = event.payload else {
            cx.forward(event);
            return Step::OK;
        };
        if cx.hot_state().get("greeted").is_some() {
            self.say(cx, &clause.text);
            return Step::OK;
        }
        Step::Wait(Box::pin(async move {
            self.greet(cx).await?;
            self.say(cx, &clause.text);
            Ok(())
        }))
    }
}
