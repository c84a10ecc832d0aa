//! The OpenAI Realtime protocol over real sockets, with scripted providers.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_provider_api::{
    Role, ToolCall,
    scripted::{Answer, ScriptedLlm},
};
use rspp_tests::call::{Cast, LONG, REPLY, tone};
use rspp_websocket::realtime::testing::{Client, joined, kinds, of, pcm, sound};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::line::Line;

/// A second of speech and a second of silence, at 24 kHz.
fn sentence() -> Vec<i16> {
    let mut audio = speech(1_000);
    audio.extend(vec![0; 24_000]);
    audio
}

/// Speech at 24 kHz, as far as a scripted detector is concerned.
fn speech(ms: u64) -> Vec<i16> {
    // A tone is a tone at any rate.
    tone(Duration::from_millis(ms * 3 / 2))
}

fn talkative() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG])),
        ..Cast::default()
    }
}

fn place(events: &[Value], kind: &str) -> usize {
    let at = events.iter().position(|event| event["type"] == kind);
    at.unwrap_or_else(|| panic!("no {kind} among {:?}", kinds(events)))
}

fn error(events: &[Value]) -> &Value {
    &of(events, "error").last().expect("an error")["error"]
}

/// Issue 5: a recording is sent at once, as clients of this API do; what is said is found, understood and
/// answered, in the events and the order that they know.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_that_api_speaks_and_is_answered() {
    let line = Line::open(&Cast::default()).await;
    let mut client = Client::begin(line.address).await;
    let session = client
        .update(json!({
            "type": "realtime",
            "instructions": "Be brief.",
            "audio": { "input": { "turn_detection": { "type": "server_vad" } } },
        }))
        .await;
    assert_eq!(session["instructions"], "Be brief.");
    let detection = &session["audio"]["input"]["turn_detection"];
    assert_eq!(detection["silence_duration_ms"], 500);
    client.speak(&sentence()).await;
    let came = client.wait_for("response.done").await;
    let order = [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.input_audio_transcription.completed",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_audio.delta",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.done",
    ];
    let places = order.map(|kind| place(&came, kind));
    assert!(places.is_sorted(), "{:?}", kinds(&came));
    assert!(place(&came, "response.created") < place(&came, "response.output_item.added"));

    let started = &came[place(&came, "input_audio_buffer.speech_started")];
    let completed = &came[place(
        &came,
        "conversation.item.input_audio_transcription.completed",
    )];
    assert_eq!(completed["transcript"], "hello there");
    assert_eq!(completed["item_id"], started["item_id"]);
    assert_eq!(
        joined(&came, "response.output_audio_transcript.delta"),
        REPLY
    );
    // 60 ms a character is what the scripted voice takes.
    let spoken = pcm(&came).len() as f64 / 24_000.0;
    let wanted = REPLY.len() as f64 * 0.06;
    assert!((spoken - wanted).abs() < 0.1, "{spoken} s of {wanted} s");
    let done = &came.last().unwrap()["response"];
    assert_eq!(done["status"], "completed");
    assert_eq!(done["output"][0]["content"][0]["transcript"], REPLY);
    assert!(done["usage"]["total_tokens"].is_u64(), "{done}");
    let ids: Vec<&Value> = came.iter().map(|event| &event["event_id"]).collect();
    assert!(ids.iter().all(|id| id.is_string()));
    client.close().await;
    line.close().await;
}

/// Issue 5: without detection the client says when it has finished, and when it wants an answer; a pause in
/// between ends nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_takes_its_turns_by_hand() {
    let line = Line::open(&Cast::default()).await;
    let mut client = Client::begin(line.address).await;
    client
        .update(json!({
            "type": "realtime",
            "audio": { "input": { "turn_detection": null } },
        }))
        .await;
    client
        .say(json!({ "type": "input_audio_buffer.commit", "event_id": "mine" }))
        .await;
    let came = client.wait_for("error").await;
    assert_eq!(error(&came)["code"], "input_audio_buffer_commit_empty");
    assert_eq!(error(&came)["event_id"], "mine");

    client.speak(&sentence()).await;
    client.speak(&sentence()).await;
    sleep(Duration::from_millis(3_600)).await;
    client
        .say(json!({ "type": "input_audio_buffer.commit" }))
        .await;
    let came = client.wait_for("input_audio_buffer.committed").await;
    assert_eq!(
        kinds(&came)
            .iter()
            .filter(|it| it.starts_with("response"))
            .count(),
        0
    );
    client
        .say(json!({ "type": "response.create", "response": { "metadata": { "n": "1" } } }))
        .await;
    let came = client.wait_for("response.done").await;
    let heard = &came[place(
        &came,
        "conversation.item.input_audio_transcription.completed",
    )];
    assert_eq!(heard["transcript"], "hello there and again");
    let done = &came.last().unwrap()["response"];
    assert_eq!(
        (&done["status"], &done["metadata"]["n"]),
        (&json!("completed"), &json!("1"))
    );

    // Audio without words in it is answered by nothing, which is said.
    client.speak(&vec![0; 12_000]).await;
    client
        .say(json!({ "type": "input_audio_buffer.commit" }))
        .await;
    client.say(json!({ "type": "response.create" })).await;
    let came = client.wait_for("response.done").await;
    let done = &came.last().unwrap()["response"];
    assert_eq!(done["status"], "failed");
    assert_eq!(done["status_details"]["error"]["code"], "turn_failed");
    client.close().await;
    line.close().await;
}

/// Issue 5: under detection without answers of its own, what was said is committed, and answered when asked.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_is_answered_only_when_asked() {
    let line = Line::open(&Cast::default()).await;
    let mut client = Client::begin(line.address).await;
    let detection = json!({ "type": "server_vad", "create_response": false });
    let input = json!({ "turn_detection": detection });
    client
        .update(json!({ "type": "realtime", "audio": { "input": input } }))
        .await;
    client.speak(&sentence()).await;
    let came = client
        .wait_for("conversation.item.input_audio_transcription.completed")
        .await;
    assert_eq!(came.last().unwrap()["transcript"], "hello there");
    assert!(place(&came, "input_audio_buffer.speech_stopped") < came.len());
    sleep(Duration::from_millis(500)).await;
    client.say(json!({ "type": "response.create" })).await;
    let came = client.wait_for("response.done").await;
    assert_eq!(kinds(&came)[0], "response.created");
    assert_eq!(
        joined(&came, "response.output_audio_transcript.delta"),
        REPLY
    );
    client.close().await;
    line.close().await;
}

/// Issue 5, P5: what is said over the agent is told at once; nothing of its audio comes after it fell silent.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_speaks_over_the_agent_is_told_so_and_hears_no_more_of_it() {
    let line = Line::open(&talkative()).await;
    let mut client = Client::begin(line.address).await;
    client.ask("tell me a story").await;
    let mut frames = 0;
    client
        .until(|event| {
            frames += usize::from(event["type"] == "response.output_audio.delta");
            frames == 40
        })
        .await;
    client.speak(&speech(500)).await;
    let came = client.wait_for("response.done").await;
    let started = place(&came, "input_audio_buffer.speech_started");
    let late = sound(&came[started..]).len() as f64 / 48_000.0;
    assert!(late <= 0.06, "{late} s of audio after it was known");
    let done = &came.last().unwrap()["response"];
    assert_eq!(done["status"], "cancelled");
    assert_eq!(done["status_details"]["reason"], "turn_detected");
    assert_eq!(done["output"][0]["status"], "incomplete");
    client.close().await;
    line.close().await;
}

/// Issue 5: an answer is given up when the client says so, and at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_response_is_over_at_once() {
    let line = Line::open(&talkative()).await;
    let mut client = Client::begin(line.address).await;
    client.say(json!({ "type": "response.cancel" })).await;
    let came = client.wait_for("error").await;
    assert_eq!(error(&came)["code"], "response_cancel_not_active");
    client.ask("tell me a story").await;
    client.wait_for("response.output_audio.delta").await;
    client.say(json!({ "type": "response.create" })).await;
    let came = client.wait_for("error").await;
    let active = "conversation_already_has_active_response";
    assert_eq!(error(&came)["code"], active);
    client.say(json!({ "type": "response.cancel" })).await;
    let asked = Instant::now();
    let came = client.wait_for("response.done").await;
    let took = asked.elapsed();
    assert!(took < Duration::from_millis(500), "{took:?}");
    let details = &came.last().unwrap()["response"]["status_details"];
    assert_eq!(details["reason"], "client_cancelled");
    client.close().await;
    line.close().await;
}

/// P2, issue 5: what the client says was not heard is not remembered, although it was sent, and although the
/// turn is over.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_truncated_is_not_remembered() {
    let said = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&said);
    let llm = ScriptedLlm::new("llm").answer_with(move |request| {
        let agent = request
            .messages
            .iter()
            .find(|it| it.role == Role::Assistant);
        // A reply that was cut off ends with a dash.
        let text = agent.map(|it| it.content.trim_end_matches(" —").to_owned());
        notes.lock().unwrap().push(text);
        LONG
    });
    let cast = Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    };
    let line = Line::open(&cast).await;
    for heard_ms in [None, Some(600), Some(0)] {
        let mut client = Client::begin(line.address).await;
        client.ask("tell me a story").await;
        let mut frames = 0;
        let came = client
            .until(|event| {
                frames += usize::from(event["type"] == "response.output_audio.delta");
                frames == 100
            })
            .await;
        let item = came.last().unwrap()["item_id"].clone();
        client.say(json!({ "type": "response.cancel" })).await;
        client.wait_for("response.done").await;
        if let Some(ms) = heard_ms {
            let truncate = json!({
                "type": "conversation.item.truncate",
                "item_id": item, "content_index": 0, "audio_end_ms": ms,
            });
            client.say(truncate).await;
            client.wait_for("conversation.item.truncated").await;
        }
        client.ask("go on").await;
        client.wait_for("response.output_audio.delta").await;
        client.close().await;
    }
    let said = said.lock().unwrap().clone();
    assert_eq!(said.len(), 6, "two turns each");
    let [sent, truncated, nothing] = [1, 3, 5].map(|at| said[at].clone().unwrap_or_default());
    assert!(
        LONG.starts_with(&sent) && sent.len() < LONG.len(),
        "{sent:?}"
    );
    assert!(
        truncated.len() < sent.len() / 2,
        "{truncated:?} of {sent:?}"
    );
    assert!(
        !truncated.is_empty() && sent.starts_with(&truncated),
        "{truncated:?}"
    );
    assert_eq!(nothing, "");
    line.close().await;
}

/// F-080: what a client asks for is what its model is told, and the pipeline's own otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_clients_instructions_are_its_sessions() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&told);
    let llm = ScriptedLlm::new("llm").answer_with(move |request| {
        let system = request.messages.iter().find(|it| it.role == Role::System);
        let text = system.map(|it| it.content.clone()).unwrap_or_default();
        notes.lock().unwrap().push(text);
        REPLY
    });
    let cast = Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    };
    let line = Line::open(&cast).await;
    for instructions in ["You are a pirate.", ""] {
        let mut client = Client::begin(line.address).await;
        client
            .update(json!({ "type": "realtime", "instructions": instructions }))
            .await;
        client.ask("who are you?").await;
        client.wait_for("response.done").await;
        let late = json!({ "type": "realtime", "instructions": "Be somebody else." });
        client
            .say(json!({ "type": "session.update", "session": late }))
            .await;
        let came = client.wait_for("error").await;
        assert_eq!(error(&came)["code"], "session_has_begun");
        assert_eq!(error(&came)["param"], "session.instructions");
        client.close().await;
    }
    let told = told.lock().unwrap().clone();
    assert_eq!(told[0], "You are a pirate.");
    assert!(told[1].contains("friendly voice assistant"), "{told:?}");
    line.close().await;
}

/// Issue 5: telephone audio both ways.
#[tokio::test(flavor = "multi_thread")]
async fn telephone_audio_goes_both_ways() {
    let line = Line::open(&Cast::default()).await;
    for (kind, silence) in [("audio/pcmu", 0xff), ("audio/pcma", 0xd5)] {
        let mut client = Client::begin(line.address).await;
        let format = json!({ "format": { "type": kind } });
        let audio = json!({ "input": format, "output": format });
        let session = client
            .update(json!({ "type": "realtime", "audio": audio }))
            .await;
        assert_eq!(session["audio"]["output"]["format"]["type"], kind);
        client.ask("good morning").await;
        let came = client.wait_for("response.done").await;
        let spoken = sound(&came);
        let wanted = REPLY.len() as f64 * 0.06;
        let seconds = spoken.len() as f64 / 8_000.0;
        assert!((seconds - wanted).abs() < 0.1, "{seconds} s of {wanted} s");
        assert!(spoken.iter().any(|byte| *byte != silence), "it sounds");
        client.close().await;
    }
    line.close().await;
}

/// Issue 5: clients from before general availability find their own names.
#[tokio::test(flavor = "multi_thread")]
async fn old_clients_find_the_names_that_they_know() {
    let line = Line::open(&Cast::default()).await;
    let beta = [("OpenAI-Beta", "realtime=v1")];
    let mut client = Client::connect(line.address, &[], &beta).await.unwrap();
    let came = client.wait_for("conversation.created").await;
    assert_eq!(came[0]["session"]["input_audio_format"], "pcm16");
    let session = client
        .update(
            json!({ "voice": "alloy", "modalities": ["text", "audio"], "turn_detection": null }),
        )
        .await;
    assert_eq!(session["turn_detection"], Value::Null);
    client.ask("good morning").await;
    let came = client.wait_for("response.done").await;
    assert_eq!(joined(&came, "response.audio_transcript.delta"), REPLY);
    assert!(!of(&came, "response.audio.delta").is_empty());
    assert!(!of(&came, "conversation.item.created").is_empty());
    let new = ["conversation.item.added", "response.output_audio.delta"];
    assert!(!kinds(&came).iter().any(|kind| new.contains(kind)));
    let content = &came.last().unwrap()["response"]["output"][0]["content"][0];
    assert_eq!(content["type"], "audio");
    client.close().await;
    line.close().await;
}

/// NF-013: whatever comes is answered by what is wrong with it; then the session goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_and_changes_nothing() {
    let line = Line::open(&Cast::default()).await;
    let mut client = Client::begin(line.address).await;
    for text in ["{", "[]", "7", "{\"type\":\"sing\"}", "{\"event_id\":7}"] {
        client.raw(text).await;
        let came = client.wait_for("error").await;
        assert_eq!(error(&came)["type"], "invalid_request_error", "{text}");
    }
    client.ask("good morning").await;
    let came = client.wait_for("response.done").await;
    assert_eq!(came.last().unwrap()["response"]["status"], "completed");
    for _ in 0..30 {
        client.raw("{").await;
    }
    let came = client.until(|_| false).await;
    assert_eq!(error(&came)["code"], "too_many_errors");
    assert_eq!(client.closed.as_ref().unwrap().0, 1008);
    line.close().await;
}

/// Issue 5: an agent that is asked to write writes, and is not heard.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_can_be_written_only() {
    let cast = Cast::default();
    let line = Line::open(&cast).await;
    let mut client = Client::begin(line.address).await;
    let session = client
        .update(json!({ "type": "realtime", "output_modalities": ["text"] }))
        .await;
    assert_eq!(session["output_modalities"], json!(["text"]));
    for _ in 0..2 {
        client.ask("good morning").await;
        let came = client.wait_for("response.done").await;
        assert_eq!(joined(&came, "response.output_text.delta"), REPLY);
        assert!(!kinds(&came).iter().any(|kind| kind.contains("audio")));
        let done = &came.last().unwrap()["response"];
        assert_eq!(done["status"], "completed");
        assert_eq!(done["output"][0]["content"][0]["text"], REPLY);
    }
    assert_eq!(cast.tts.tally().calls, 0, "the voice is not even asked");
    client
        .say(json!({ "type": "session.update", "session": {
            "type": "realtime", "output_modalities": ["audio"],
        } }))
        .await;
    let came = client.wait_for("error").await;
    assert_eq!(error(&came)["param"], "session.output_modalities");
    client.close().await;
    line.close().await;
}

/// A model that asks for the weather in two places at once before it answers.
fn curious() -> Cast {
    let llm = ScriptedLlm::new("llm").answer_with(|request| {
        let known: Vec<&str> = request
            .messages
            .iter()
            .filter(|it| it.role == Role::Tool)
            .map(|it| it.content.as_str())
            .collect();
        if !known.is_empty() {
            return format!("It is {}.", known.join(" and ")).as_str().into();
        }
        assert_eq!(request.tools[0].name, "weather");
        let call = |nth: u32, place: &str| ToolCall {
            id: format!("call_{nth}"),
            name: "weather".to_owned(),
            arguments: json!({ "place": place }).to_string(),
        };
        Answer {
            text: String::new(),
            tool_calls: vec![call(0, "Rome"), call(1, "Oslo")],
        }
    });
    Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    }
}

fn weather() -> Value {
    json!([{
        "type": "function",
        "name": "weather",
        "description": "How the weather is in a place.",
        "parameters": {
            "type": "object",
            "properties": { "place": { "type": "string" } },
            "required": ["place"],
        },
    }])
}

/// Issue 5: a client's tools are the model's to call: the response ends with the calls, and the next one goes on
/// with what the client says came of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_clients_tools_are_called_and_their_results_answered_with() {
    let line = Line::open(&curious()).await;
    let mut client = Client::begin(line.address).await;
    let session = client
        .update(json!({ "type": "realtime", "tools": weather() }))
        .await;
    assert_eq!(session["tools"], weather());
    client.ask("how is the weather in Rome and Oslo?").await;
    let came = client.wait_for("response.done").await;
    let first = came.last().unwrap()["response"].clone();
    assert_eq!(first["status"], "completed");
    let calls = first["output"].as_array().unwrap();
    assert_eq!(calls.len(), 2);
    let done = of(&came, "response.function_call_arguments.done");
    for (call, done) in calls.iter().zip(done) {
        assert_eq!(
            (&call["type"], &call["name"]),
            (&json!("function_call"), &json!("weather"))
        );
        assert_eq!(call["arguments"], done["arguments"]);
    }
    for call in calls {
        let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
        let output = match arguments["place"].as_str().unwrap() {
            "Rome" => "sunny",
            _oslo => "snowing",
        };
        let item = json!({
            "type": "function_call_output", "call_id": call["call_id"], "output": output,
        });
        client
            .say(json!({ "type": "conversation.item.create", "item": item }))
            .await;
    }
    client.say(json!({ "type": "response.create" })).await;
    let came = client.wait_for("response.done").await;
    let said = joined(&came, "response.output_audio_transcript.delta");
    assert_eq!(said, "It is sunny and snowing.");
    assert!(!sound(&came).is_empty());
    assert_ne!(came.last().unwrap()["response"]["id"], first["id"]);

    // The next turn is answered as any.
    client.ask("and now?").await;
    let came = client.wait_for("response.done").await;
    assert_eq!(came.last().unwrap()["response"]["status"], "completed");
    client.close().await;
    line.close().await;
}

/// P7, issue 5: whoever speaks over an agent that waits for a tool is answered; the call was made once.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_spoken_over_while_it_works_is_not_stuck() {
    let llm = ScriptedLlm::new("llm").answer_with(|request| {
        let users = request.messages.iter().filter(|it| it.role == Role::User);
        if users.count() > 1 {
            return "As you like.".into();
        }
        Answer {
            text: String::new(),
            tool_calls: vec![ToolCall {
                id: "call_0".to_owned(),
                name: "weather".to_owned(),
                arguments: json!({ "place": "Rome" }).to_string(),
            }],
        }
    });
    let cast = Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    };
    let line = Line::open(&cast).await;
    let mut client = Client::begin(line.address).await;
    client
        .update(json!({ "type": "realtime", "tools": weather() }))
        .await;
    client.ask("how is the weather in Rome?").await;
    let came = client.wait_for("response.done").await;
    let call = came.last().unwrap()["response"]["output"][0]["call_id"].clone();
    client.ask("never mind").await;
    let came = client.wait_for("response.done").await;
    assert_eq!(
        joined(&came, "response.output_audio_transcript.delta"),
        "As you like."
    );
    let item = json!({ "type": "function_call_output", "call_id": call, "output": "sunny" });
    client
        .say(json!({ "type": "conversation.item.create", "item": item }))
        .await;
    let came = client.wait_for("conversation.item.done").await;
    assert!(of(&came, "error").is_empty());
    client.close().await;
    line.close().await;
}
