//! Tools that a client of `rspp.v1` runs.

use std::sync::Arc;

use rspp_proto::spec::{NodeKind, PipelineSpec};
use rspp_provider_api::{
    Role, ToolCall,
    scripted::{Answer, ScriptedLlm},
};
use rspp_tests::call::Cast;
use rspp_websocket::{
    protocol::{ClientMessage, Hello, ServerMessage, ToolResult},
    testing::{Client, typed},
};
use serde_json::json;

use crate::line::Line;

/// Issue 5: in both encodings a client is told of a call that its pipeline has it run, and the reply goes on with
/// what came of it, or with what went wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_of_a_call_and_says_what_came_of_it() {
    let llm = ScriptedLlm::new("llm").answer_with(|request| {
        let last = request.messages.last().filter(|it| it.role == Role::Tool);
        match last {
            Some(result) => result.content.as_str().into(),
            None => Answer {
                text: "Let me see.".to_owned(),
                tool_calls: vec![ToolCall {
                    id: "call_0".to_owned(),
                    name: "book".to_owned(),
                    arguments: json!({ "seats": 2 }).to_string(),
                }],
            },
        }
    });
    let cast = Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    };
    let mut pipeline = PipelineSpec::simple();
    let model = pipeline
        .nodes
        .iter_mut()
        .find(|it| it.kind == NodeKind::Llm);
    let tools = json!([{
        "name": "book",
        "description": "Books seats.",
        "parameters": { "type": "object", "properties": { "seats": { "type": "integer" } } },
        "run": "client",
    }]);
    model.unwrap().tools = serde_json::from_value(tools).unwrap();
    let line = Line::of(&cast, pipeline).await;
    for (protocol, failed) in [("rspp.v1.json", false), ("rspp.v1.msgpack", true)] {
        let client = Client::connect(line.address, &[protocol], &[]).await;
        let mut client = client.unwrap();
        let hello = Hello {
            events: true,
            ..Hello::default()
        };
        client.hello(hello).await;
        client.say(typed("two seats, please")).await;
        let came = client
            .until(|message| matches!(message, ServerMessage::ToolCall(_)))
            .await;
        let Some(ServerMessage::ToolCall(call)) = came.last() else {
            panic!("no call: {came:?}")
        };
        assert_eq!(
            (&*call.tool, &call.arguments),
            ("book", &json!({ "seats": 2 }))
        );
        client
            .say(ClientMessage::ToolResult(ToolResult {
                turn: call.turn,
                call: call.call.clone(),
                content: "We are full.".to_owned(),
                failed,
                key: None,
            }))
            .await;
        let came = client
            .until(|message| matches!(message, ServerMessage::Turn(_)))
            .await;
        let Some(ServerMessage::Turn(turn)) = came.last() else {
            panic!("no turn: {came:?}")
        };
        assert_eq!(turn.outcome, "commit");
        assert_eq!(turn.heard_text, "Let me see. We are full.");
        client.bye().await;
    }
    line.close().await;
}
