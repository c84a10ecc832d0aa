//! The protocol alone: what comes out of what goes in.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use proptest::prelude::*;
use rspp_proto::{
    SampleIndex, Speaker, SpeechMark, Spending, TextChunk, TurnNumber, spec::ToolExecutor,
};
use rspp_transport_api::{
    ClientCall, ClientResult, Ingress, Interruption, News, Receipt, SinkError, TurnEnd, TurnNews,
    audio::to_bytes,
};
use serde_json::{Value, json};

use super::{
    machine::{Beginning, Machine, Order},
    settings::{Allowed, Dialect},
};

const T1: TurnNumber = TurnNumber(1);
const T2: TurnNumber = TurnNumber(2);

fn machine_of(dialect: Dialect, allowed: Allowed) -> Machine {
    let mut machine = Machine::new(Beginning {
        stamp: "0badcafe".to_owned(),
        dialect,
        model: "realtime".to_owned(),
        allowed,
        text_bytes: 1_000,
        room: 10,
    });
    let _greeting = events(&mut machine);
    machine
}

fn machine() -> Machine {
    machine_of(Dialect::Current, Allowed::default())
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn events(machine: &mut Machine) -> Vec<Value> {
    let texts = std::iter::from_fn(|| machine.next());
    texts
        .map(|it| serde_json::from_str(&it.text).unwrap())
        .collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect()
}

fn orders(machine: &mut Machine) -> Vec<Order> {
    std::iter::from_fn(|| machine.order()).collect()
}

fn say(machine: &mut Machine, event: &Value) -> Vec<Value> {
    machine.client(at(0), &event.to_string());
    events(machine)
}

fn ask(machine: &mut Machine, text: &str) {
    let content = json!([{ "type": "input_text", "text": text }]);
    let item = json!({ "type": "message", "role": "user", "content": content });
    say(
        machine,
        &json!({ "type": "conversation.item.create", "item": item }),
    );
    say(machine, &json!({ "type": "response.create" }));
}

fn clause(segment: u32, text: &str) -> TextChunk {
    TextChunk::whole(Speaker::Agent, segment, text)
}

fn heard(segment: u32, text: &str, is_final: bool) -> TextChunk {
    TextChunk {
        is_final,
        ..TextChunk::whole(Speaker::User, segment, text)
    }
}

fn frame() -> Bytes {
    to_bytes(&[7; 480])
}

fn over(turn: TurnNumber, outcome: &str, reason: Option<&str>) -> News {
    News::Turn(Box::new(TurnNews {
        turn: turn.id(),
        outcome: outcome.to_owned(),
        reason: reason.map(str::to_owned),
        user_text: String::new(),
        agent_text: String::new(),
        heard_text: String::new(),
        anchors_ms: BTreeMap::new(),
        first_audio_ms: None,
        spending: Spending::default(),
    }))
}

const STARTED: SpeechMark = SpeechMark::Started {
    at: SampleIndex(16_000),
};
const STOPPED: SpeechMark = SpeechMark::Stopped {
    at: SampleIndex(32_000),
};
const FINISHED: SpeechMark = SpeechMark::EndOfTurn {
    at: SampleIndex(32_000),
    confidence: 1.0,
};

/// Issue 5: each refusal says what, where, and of which event.
#[test]
fn what_is_refused_is_refused_precisely() {
    let session = |session: Value| json!({ "type": "session.update", "session": session });
    let realtime = |key: &str, value: Value| session(json!({ "type": "realtime", key: value }));
    let input = |key: &str, value: Value| realtime("audio", json!({ "input": { key: value } }));
    let output = |key: &str, value: Value| realtime("audio", json!({ "output": { key: value } }));
    let item = |item: Value| json!({ "type": "conversation.item.create", "item": item });
    let response =
        |key: &str, value: Value| json!({ "type": "response.create", "response": { key: value } });
    let part = |kind: &str| {
        let content = json!([{ "type": kind, "text": "a", "audio": "", "image_url": "" }]);
        item(json!({ "type": "message", "role": "user", "content": content }))
    };
    let tool = |fields: Value| realtime("tools", json!([fields]));
    let parameters =
        |schema: Value| tool(json!({ "type": "function", "name": "f", "parameters": schema }));
    let assistant = json!({ "type": "message", "role": "assistant", "content": [] });
    let output_of_tool = json!({ "type": "function_call_output", "call_id": "c", "output": "" });
    let truncate = |content: u64, ms: i64| {
        json!({
            "type": "conversation.item.truncate",
            "item_id": "none", "content_index": content, "audio_end_ms": ms,
        })
    };
    let append = |audio: &str| json!({ "type": "input_audio_buffer.append", "audio": audio });
    let unsupported = "unsupported_value";
    let table = [
        (json!({}), "missing_required_parameter", "type"),
        (json!({ "type": 7 }), "invalid_type", "type"),
        (json!({ "type": "sing" }), "invalid_value", "type"),
        (
            json!({ "type": "output_audio_buffer.clear" }),
            "unsupported_event",
            "type",
        ),
        (
            json!({ "type": "session.update" }),
            "missing_required_parameter",
            "session",
        ),
        (
            session(json!({})),
            "missing_required_parameter",
            "session.type",
        ),
        (
            session(json!({ "type": "transcription" })),
            unsupported,
            "session.type",
        ),
        (
            realtime("voice", json!("alloy")),
            "unknown_parameter",
            "session.voice",
        ),
        (
            realtime("instructions", json!(7)),
            "invalid_type",
            "session.instructions",
        ),
        (
            realtime("instructions", json!("a".repeat(1_001))),
            "string_above_max_length",
            "session.instructions",
        ),
        (
            tool(json!({ "type": "mcp" })),
            unsupported,
            "session.tools[0].type",
        ),
        (
            tool(json!({ "type": "function" })),
            "missing_required_parameter",
            "session.tools[0].name",
        ),
        (
            tool(json!({ "type": "function", "name": "a b" })),
            "invalid_value",
            "session.tools[0].name",
        ),
        (
            parameters(json!({ "type": "string" })),
            unsupported,
            "session.tools[0].parameters",
        ),
        (
            parameters(json!({ "type": "object", "oneOf": [] })),
            unsupported,
            "session.tools[0].parameters.oneOf",
        ),
        (
            realtime(
                "tools",
                json!([
                    { "type": "function", "name": "f" }, { "type": "function", "name": "f" },
                ]),
            ),
            "invalid_value",
            "session.tools[1].name",
        ),
        (
            realtime("tool_choice", json!("required")),
            unsupported,
            "session.tool_choice",
        ),
        (
            realtime("output_modalities", json!([])),
            "invalid_value",
            "session.output_modalities",
        ),
        (
            realtime("output_modalities", json!(["smell"])),
            "invalid_value",
            "session.output_modalities",
        ),
        (
            realtime("prompt", json!({ "id": "p" })),
            unsupported,
            "session.prompt",
        ),
        (
            realtime("include", json!(["x"])),
            unsupported,
            "session.include",
        ),
        (
            realtime("max_output_tokens", json!(0)),
            "invalid_value",
            "session.max_output_tokens",
        ),
        (
            input("format", json!({ "type": "audio/pcm", "rate": 16_000 })),
            unsupported,
            "session.audio.input.format.rate",
        ),
        (
            input("format", json!({ "type": "opus" })),
            "invalid_value",
            "session.audio.input.format.type",
        ),
        (
            input(
                "turn_detection",
                json!({ "type": "server_vad", "threshold": 2 }),
            ),
            "invalid_value",
            "session.audio.input.turn_detection.threshold",
        ),
        (
            input(
                "turn_detection",
                json!({ "type": "server_vad", "idle_timeout_ms": 5_000 }),
            ),
            unsupported,
            "session.audio.input.turn_detection.idle_timeout_ms",
        ),
        (
            input(
                "turn_detection",
                json!({ "type": "semantic_vad", "eagerness": "wild" }),
            ),
            "invalid_value",
            "session.audio.input.turn_detection.eagerness",
        ),
        (
            output("speed", json!(1.2)),
            unsupported,
            "session.audio.output.speed",
        ),
        (
            output("voice", json!("bob")),
            unsupported,
            "session.audio.output.voice",
        ),
        (
            output("voice", json!({})),
            "missing_required_parameter",
            "session.audio.output.voice.id",
        ),
        (append("AA=A"), "invalid_value", "audio"),
        (append("AAAA"), "invalid_value", "audio"),
        (
            json!({ "type": "input_audio_buffer.append" }),
            "missing_required_parameter",
            "audio",
        ),
        (
            json!({ "type": "input_audio_buffer.commit" }),
            "input_audio_buffer_commit_empty",
            "",
        ),
        (
            item(json!({ "type": "poem" })),
            "invalid_value",
            "item.type",
        ),
        (item(assistant), unsupported, "item.role"),
        (item(output_of_tool), "item_not_found", "item.call_id"),
        (
            item(json!({ "type": "function_call", "call_id": "c" })),
            unsupported,
            "item.type",
        ),
        (part("input_audio"), unsupported, "item.content[0].type"),
        (part("input_image"), unsupported, "item.content[0].type"),
        (part("output_text"), "invalid_value", "item.content[0].type"),
        (
            json!({ "type": "conversation.item.retrieve", "item_id": "none" }),
            "item_not_found",
            "item_id",
        ),
        (truncate(0, 5), "item_not_found", "item_id"),
        (truncate(1, 5), "invalid_value", "content_index"),
        (truncate(0, -5), "invalid_type", "audio_end_ms"),
        (
            json!({ "type": "response.create" }),
            "nothing_to_answer",
            "",
        ),
        (
            response("instructions", json!("x")),
            unsupported,
            "response.instructions",
        ),
        (
            response("output_modalities", json!(["text"])),
            unsupported,
            "response.output_modalities",
        ),
        (
            response("conversation", json!("none")),
            unsupported,
            "response.conversation",
        ),
        (
            response("input", json!([{}])),
            unsupported,
            "response.input",
        ),
        (
            response("colour", json!("red")),
            "unknown_parameter",
            "response.colour",
        ),
        (
            json!({ "type": "response.cancel" }),
            "response_cancel_not_active",
            "",
        ),
    ];
    let mut machine = machine();
    for (mut event, code, param) in table {
        event["event_id"] = json!("mine");
        let came = say(&mut machine, &event);
        assert_eq!(kinds(&came), ["error"], "{event}");
        let error = &came[0]["error"];
        assert_eq!(error["code"], code, "{event}: {error}");
        assert_eq!(
            error["param"].as_str().unwrap_or_default(),
            param,
            "{event}"
        );
        assert_eq!(error["event_id"], "mine", "{event}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    assert_eq!(
        orders(&mut machine),
        [],
        "nothing of it reached the session"
    );
}

/// Issue 5: a session update is taken whole or not at all, and what is asked of the runtime follows from it.
#[test]
fn settings_become_wishes() {
    let mut machine = machine();
    let wishes = machine.wishes();
    assert_eq!(wishes.turn_end, TurnEnd::Pipeline);
    assert_eq!(wishes.interruption, Some(Interruption::AtOnce));
    let table = [
        (json!(null), TurnEnd::Client, Interruption::Never),
        (
            json!({ "type": "server_vad" }),
            TurnEnd::Silence(500),
            Interruption::AtOnce,
        ),
        (
            json!({ "type": "server_vad", "silence_duration_ms": 900, "interrupt_response": false }),
            TurnEnd::Silence(900),
            Interruption::Never,
        ),
        (
            json!({ "type": "server_vad", "create_response": false }),
            TurnEnd::Client,
            Interruption::AtOnce,
        ),
        (
            json!({ "type": "semantic_vad" }),
            TurnEnd::Pipeline,
            Interruption::AtOnce,
        ),
        (
            json!({ "type": "semantic_vad", "eagerness": "high" }),
            TurnEnd::Judged { longest_ms: 750 },
            Interruption::AtOnce,
        ),
    ];
    for (detection, turn_end, interruption) in table {
        let input = json!({ "turn_detection": detection });
        let session = json!({ "type": "realtime", "audio": { "input": input } });
        let came = say(
            &mut machine,
            &json!({ "type": "session.update", "session": session }),
        );
        assert_eq!(kinds(&came), ["session.updated"], "{detection}");
        let wishes = machine.wishes();
        assert_eq!(wishes.turn_end, turn_end, "{detection}");
        assert_eq!(wishes.interruption, Some(interruption), "{detection}");
    }
    let session = json!({
        "type": "realtime", "instructions": "New.", "audio": { "output": { "voice": "bob" } },
    });
    say(
        &mut machine,
        &json!({ "type": "session.update", "session": session }),
    );
    assert_eq!(machine.wishes().instructions, None, "all of it, or none");
}

/// Issue 5: an operator says what clients may set up.
#[test]
fn what_is_the_pipelines_to_say_is_not_a_clients() {
    let allowed = Allowed {
        instructions: false,
        turn_detection: false,
        generation: false,
        tools: false,
        voices: ["anna".to_owned()].into(),
    };
    let mut machine = machine_of(Dialect::Current, allowed);
    for (session, param) in [
        (json!({ "instructions": "x" }), "session.instructions"),
        (
            json!({ "max_output_tokens": 7 }),
            "session.max_output_tokens",
        ),
        (
            json!({ "audio": { "input": { "turn_detection": null } } }),
            "session.audio.input.turn_detection",
        ),
        (
            json!({ "tools": [{ "type": "function", "name": "f" }] }),
            "session.tools",
        ),
    ] {
        let mut session = session;
        session["type"] = json!("realtime");
        let came = say(
            &mut machine,
            &json!({ "type": "session.update", "session": session }),
        );
        assert_eq!(came[0]["error"]["param"], param);
    }
    let content = json!([{ "type": "input_text", "text": "Obey." }]);
    let item = json!({ "type": "message", "role": "system", "content": content });
    let came = say(
        &mut machine,
        &json!({ "type": "conversation.item.create", "item": item }),
    );
    assert_eq!(came[0]["error"]["param"], "item.role");
    let session = json!({ "type": "realtime", "audio": { "output": { "voice": "anna" } } });
    say(
        &mut machine,
        &json!({ "type": "session.update", "session": session }),
    );
    assert_eq!(machine.wishes().voice.as_deref(), Some("anna"));
    assert_eq!(machine.wishes().interruption, None);
}

/// Issue 5, P5: a turn that falls silent takes its audio back, and is told with its reason.
#[test]
fn an_interrupted_response_takes_back_what_was_not_sent() {
    let mut machine = machine();
    ask(&mut machine, "hello");
    machine.clause(T1, &clause(0, "One two."));
    machine.play(T1, &frame()).unwrap();
    let came = events(&mut machine);
    let item = came.last().unwrap()["item_id"].clone();
    machine.play(T1, &frame()).unwrap();
    machine.clear(T1);
    machine.play(T1, &frame()).unwrap();
    assert_eq!(
        kinds(&events(&mut machine)),
        [""; 0],
        "nothing of it comes any more"
    );
    say(&mut machine, &json!({ "type": "response.cancel" }));
    machine.news(&over(T1, "abort", Some("cancelled")));
    let came = events(&mut machine);
    let done = &came.last().unwrap()["response"];
    assert_eq!(done["status_details"]["reason"], "client_cancelled");
    assert_eq!(done["output"][0]["status"], "incomplete");

    let truncate = |ms: u64| {
        json!({
            "type": "conversation.item.truncate",
            "item_id": item, "content_index": 0, "audio_end_ms": ms,
        })
    };
    let came = say(&mut machine, &truncate(21));
    assert_eq!(
        came[0]["error"]["param"], "audio_end_ms",
        "one frame was sent"
    );
    let _before = orders(&mut machine);
    let came = say(&mut machine, &truncate(12));
    assert_eq!(came[0]["audio_end_ms"], 12);
    let played = at(12);
    let receipt = Ingress::Played(Receipt { turn: T1, played });
    assert_eq!(orders(&mut machine), [Order::Now(receipt)]);
}

/// P23: a client that does not read is told by `Full`.
#[test]
fn audio_that_waits_is_bounded() {
    let mut machine = machine();
    for _ in 0..10 {
        assert_eq!(machine.play(T1, &frame()), Ok(()));
    }
    assert_eq!(machine.play(T1, &frame()), Err(SinkError::Full));
    let _sent = events(&mut machine);
    assert_eq!(machine.play(T1, &frame()), Ok(()));
    machine.stalled = true;
    assert_eq!(machine.play(T1, &frame()), Err(SinkError::Full));
}

/// Issue 5: words come as they are recognised; what changes afterwards comes with the whole.
#[test]
fn words_are_told_once_and_completed() {
    let mut machine = machine();
    machine.speech(at(0), STARTED);
    machine.words(&heard(0, "he", false));
    machine.words(&heard(0, "hello", false));
    machine.words(&heard(0, "yellow", false));
    machine.words(&heard(0, "hello there", false));
    machine.speech(at(900), STOPPED);
    machine.words(&heard(0, "hello there", true));
    machine.speech(at(1_000), FINISHED);
    machine.tick(at(1_100));
    let came = events(&mut machine);
    let deltas = came.iter().filter_map(|event| event["delta"].as_str());
    assert_eq!(deltas.collect::<Vec<_>>(), ["he", "llo", " there"]);
    assert_eq!(came[0]["audio_start_ms"], 1_000);
    let completed = came.last().unwrap();
    assert_eq!(completed["transcript"], "hello there");
    assert_eq!(completed["item_id"], came[0]["item_id"]);
    // Nothing follows: it was noise. The next may be asked for.
    machine.tick(at(2_100));
    ask(&mut machine, "typed");
    assert_eq!(kinds(&events(&mut machine)), [""; 0]);
}

/// Issue 5: the transcript of a sentence in pieces is the whole sentence.
#[test]
fn a_sentence_with_a_pause_is_one_item() {
    let mut machine = machine();
    machine.speech(at(0), STARTED);
    machine.words(&heard(0, "I would like", true));
    machine.speech(at(500), STOPPED);
    machine.speech(at(800), STARTED);
    machine.words(&heard(1, "a beer", false));
    machine.speech(at(1_200), FINISHED);
    machine.words(&heard(1, "a beer", true));
    machine.clause(T1, &clause(0, "Here you are."));
    let came = events(&mut machine);
    let started = kinds(&came)
        .iter()
        .filter(|it| it.ends_with("speech_started"))
        .count();
    assert_eq!(started, 1);
    let completed = came.iter().find(|it| !it["transcript"].is_null()).unwrap();
    assert_eq!(completed["transcript"], "I would like a beer");
}

/// Issue 5: a response that was given up before its turn opened is stopped as soon as it does.
#[test]
fn a_cancel_overtakes_the_turn() {
    let mut machine = machine();
    ask(&mut machine, "hello");
    let before = orders(&mut machine);
    assert_eq!(
        before,
        [Order::Start, Order::Now(Ingress::Text("hello".to_owned()))]
    );
    say(&mut machine, &json!({ "type": "response.cancel" }));
    assert_eq!(orders(&mut machine), []);
    machine.clause(T1, &clause(0, "Well"));
    assert_eq!(orders(&mut machine), [Order::Now(Ingress::Cancel)]);
}

/// Issue 5: a response that was given up and whose turn never opens has been cancelled, and has not failed.
#[test]
fn a_cancelled_response_without_a_turn_is_cancelled() {
    let mut machine = machine();
    ask(&mut machine, "hello");
    say(&mut machine, &json!({ "type": "response.cancel" }));
    machine.tick(Duration::from_mins(1));
    let came = events(&mut machine);
    let done = came.iter().find(|it| it["type"] == "response.done");
    let status = &done.expect("it is over")["response"]["status_details"];
    assert_eq!(
        *status,
        json!({ "type": "cancelled", "reason": "client_cancelled" })
    );
}

/// Issue 5: without an end told, a response ends with the next; late audio of it is nobody's.
#[test]
fn a_response_ends_at_the_latest_with_the_next() {
    let mut machine = machine();
    machine.play(T1, &frame()).unwrap();
    machine.play(T2, &frame()).unwrap();
    machine.play(T1, &frame()).unwrap();
    let came = events(&mut machine);
    let of = |kind: &str| came.iter().filter(|it| it["type"] == kind).count();
    assert_eq!((of("response.created"), of("response.done")), (2, 1));
    assert_eq!(of("response.output_audio.delta"), 2);
}

#[test]
fn a_text_that_waits_can_be_taken_back() {
    let mut machine = machine();
    let content = json!([{ "type": "input_text", "text": "oops" }]);
    let item = json!({ "id": "mine", "type": "message", "role": "user", "content": content });
    let create = json!({ "type": "conversation.item.create", "item": item });
    let came = say(&mut machine, &create);
    assert_eq!(
        kinds(&came),
        ["conversation.item.added", "conversation.item.done"]
    );
    assert_eq!(came[0]["item"]["id"], "mine");
    let again = say(&mut machine, &create);
    assert_eq!(again[0]["error"]["param"], "item.id");
    let retrieve = json!({ "type": "conversation.item.retrieve", "item_id": "mine" });
    let came = say(&mut machine, &retrieve);
    assert_eq!(came[0]["item"]["content"][0]["text"], "oops");
    let delete = json!({ "type": "conversation.item.delete", "item_id": "mine" });
    assert_eq!(
        kinds(&say(&mut machine, &delete)),
        ["conversation.item.deleted"]
    );
    let came = say(&mut machine, &json!({ "type": "response.create" }));
    assert_eq!(came[0]["error"]["code"], "nothing_to_answer");
}

fn set_up(machine: &mut Machine, mut session: Value) -> Vec<Value> {
    session["type"] = json!("realtime");
    say(
        machine,
        &json!({ "type": "session.update", "session": session }),
    )
}

/// Issue 5: an agent that is asked to write does not speak; what it writes comes as text, in both dialects.
#[test]
fn a_written_answer_comes_as_text() {
    for (dialect, session, names, content) in [
        (
            Dialect::Current,
            json!({ "type": "realtime", "output_modalities": ["text"] }),
            ["response.output_text.delta", "response.output_text.done"],
            "output_text",
        ),
        (
            Dialect::Beta,
            json!({ "modalities": ["text"] }),
            ["response.text.delta", "response.text.done"],
            "text",
        ),
    ] {
        let mut machine = machine_of(dialect, Allowed::default());
        assert!(!machine.wishes().text_only);
        let update = json!({ "type": "session.update", "session": session });
        let came = say(&mut machine, &update);
        assert_eq!(kinds(&came), ["session.updated"]);
        assert!(machine.wishes().text_only);
        ask(&mut machine, "hello");
        machine.clause(T1, &clause(0, "One two."));
        machine.play(T1, &frame()).unwrap();
        machine.clause(T1, &clause(1, "Three."));
        machine.audio_end(T1);
        machine.news(&over(T1, "commit", None));
        let came = events(&mut machine);
        let deltas = came.iter().filter(|event| event["type"] == names[0]);
        let text: String = deltas.filter_map(|event| event["delta"].as_str()).collect();
        assert_eq!(text, "One two. Three.");
        let done = came.iter().find(|event| event["type"] == names[1]).unwrap();
        assert_eq!(done["text"], text);
        assert!(!kinds(&came).iter().any(|kind| kind.contains("audio")));
        let response = &came.last().unwrap()["response"];
        let part = json!([{ "type": content, "text": text }]);
        assert_eq!(response["output"][0]["content"], part);
        let truncate = json!({
            "type": "conversation.item.truncate",
            "item_id": response["output"][0]["id"], "content_index": 0, "audio_end_ms": 0,
        });
        let came = say(&mut machine, &truncate);
        assert_eq!(came[0]["error"]["code"], "unsupported_content_type");
    }
}

fn call(turn: TurnNumber, tool: &str) -> ClientCall {
    ClientCall {
        turn,
        call: format!("of-{tool}").into(),
        tool: tool.into(),
        arguments: "{}".into(),
    }
}

fn result(turn: TurnNumber, tool: &str, output: &str) -> Order {
    Order::Now(Ingress::ToolResult(Box::new(ClientResult {
        turn,
        call: format!("of-{tool}").into(),
        outcome: Ok(output.to_owned()),
    })))
}

fn output(id: &str) -> Value {
    let item = json!({ "type": "function_call_output", "call_id": id, "output": "sunny" });
    json!({ "type": "conversation.item.create", "item": item })
}

fn id_of_call(came: &[Value]) -> String {
    let mut ids = came.iter().filter_map(|event| event["call_id"].as_str());
    ids.next_back().expect("a tool was called").to_owned()
}

const GO_ON: &str = r#"{ "type": "response.create" }"#;

/// Issue 5: a response ends with the calls of the client's tools; the session is told what came of them when the
/// client asks for the next, which is of the same turn.
#[test]
fn a_tool_of_the_clients_ends_a_response_and_begins_another() {
    let mut machine = machine();
    let tools = json!([
        { "type": "function", "name": "weather", "parameters": { "type": "object" } },
        { "type": "function", "name": "time" },
    ]);
    let came = set_up(&mut machine, json!({ "tools": tools }));
    assert_eq!(came[0]["session"]["tools"][0]["name"], "weather");
    let wished: Vec<_> = machine.wishes().tools.into_iter().collect();
    assert_eq!(wished.len(), 2);
    assert_eq!(wished[0].run, ToolExecutor::Client);
    ask(&mut machine, "How is the weather, and what is the time?");
    let _before = orders(&mut machine);
    let _told = events(&mut machine);
    machine.called(at(0), &call(T1, "weather"));
    machine.called(at(10), &call(T1, "time"));
    let came = events(&mut machine);
    assert_eq!(
        kinds(&came),
        [
            "response.output_item.added",
            "conversation.item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "conversation.item.done",
        ]
        .repeat(2)
    );
    assert_eq!(came[3]["name"], "weather");
    assert_eq!(came[9]["output_index"], 1);
    let (weather, time) = (id_of_call(&came[..6]), id_of_call(&came));
    assert_eq!(machine.next_due(), Some(at(40)));
    machine.tick(at(40));
    let came = events(&mut machine);
    assert_eq!(kinds(&came), ["response.done"]);
    let response = &came[0]["response"];
    assert_eq!(response["status"], "completed");
    let names = [0, 1].map(|nth| response["output"][nth]["name"].as_str());
    assert_eq!(names, [Some("weather"), Some("time")]);

    machine.client(at(50), GO_ON);
    let came = events(&mut machine);
    assert_eq!(came[0]["error"]["code"], "nothing_to_answer");
    let came = say(&mut machine, &output(&weather));
    assert_eq!(came[0]["item"]["type"], "function_call_output");
    assert_eq!(
        orders(&mut machine),
        [],
        "the client has not asked for more"
    );
    let again = say(&mut machine, &output(&weather));
    assert_eq!(again[0]["error"]["param"], "item.call_id");
    machine.client(at(60), GO_ON);
    assert_eq!(kinds(&events(&mut machine)), ["response.created"]);
    assert_eq!(orders(&mut machine), [result(T1, "weather", "sunny")]);
    // The response waits for the other one.
    say(&mut machine, &output(&time));
    assert_eq!(orders(&mut machine), [result(T1, "time", "sunny")]);
    machine.clause(T1, &clause(0, "It is sunny."));
    machine.play(T1, &frame()).unwrap();
    machine.news(&over(T1, "commit", None));
    let came = events(&mut machine);
    let response = &came.last().unwrap()["response"];
    assert_eq!(response["status"], "completed");
    let said = &response["output"][0]["content"][0]["transcript"];
    assert_eq!(said, "It is sunny.");
    machine.client(at(70), GO_ON);
    let came = events(&mut machine);
    assert_eq!(came[0]["error"]["code"], "nothing_to_answer");
}

/// Issue 5: what is said before a call is part of its response, however late it is heard; a client that does not
/// wait for its end is served too.
#[test]
fn what_is_said_before_a_call_is_heard_to_its_end() {
    let mut machine = machine();
    ask(&mut machine, "Order a beer.");
    machine.clause(T1, &clause(0, "I am ordering."));
    machine.called(at(0), &call(T1, "order"));
    let came = events(&mut machine);
    let id = id_of_call(&came);
    machine.play(T1, &frame()).unwrap();
    machine.tick(at(400));
    assert!(!kinds(&events(&mut machine)).contains(&"response.done"));
    machine.tick(at(800));
    let came = events(&mut machine);
    let response = &came.last().unwrap()["response"];
    let kinds_of = [0, 1].map(|nth| response["output"][nth]["type"].as_str());
    assert_eq!(kinds_of, [Some("message"), Some("function_call")]);
    let first = response["output"][0]["id"].clone();

    // More of it comes after all: it is a response of its own, which the client's request is for.
    machine.play(T1, &frame()).unwrap();
    say(&mut machine, &output(&id));
    machine.client(at(900), GO_ON);
    let came = events(&mut machine);
    assert!(!kinds(&came).contains(&"error"), "{came:?}");
    assert!(orders(&mut machine).contains(&result(T1, "order", "sunny")));
    machine.clause(T1, &clause(1, "Done."));
    machine.news(&over(T1, "commit", None));
    let came = events(&mut machine);
    let second = came.last().unwrap()["response"]["output"][0]["id"].clone();
    // What was heard is counted from the beginning of the turn.
    for (item, ms, heard) in [(&second, 10, 30), (&first, 10, 10)] {
        let truncate = json!({
            "type": "conversation.item.truncate",
            "item_id": item, "content_index": 0, "audio_end_ms": ms,
        });
        say(&mut machine, &truncate);
        let played = at(heard);
        let receipt = Ingress::Played(Receipt { turn: T1, played });
        assert_eq!(orders(&mut machine), [Order::Now(receipt)]);
    }

    // A client that answers at once need not wait.
    ask(&mut machine, "And another.");
    machine.called(at(1_000), &call(T2, "order"));
    let id = id_of_call(&events(&mut machine));
    say(&mut machine, &output(&id));
    machine.client(at(1_001), GO_ON);
    let came = events(&mut machine);
    assert_eq!(kinds(&came), ["response.done", "response.created"]);
}

/// P7, issue 5: a turn that is interrupted while the client's tool runs tells no response of its end, and what
/// came of the call reaches the session all the same.
#[test]
fn a_turn_that_is_over_takes_what_came_of_its_calls() {
    let mut machine = machine();
    ask(&mut machine, "Order a beer.");
    machine.called(at(0), &call(T1, "order"));
    machine.tick(at(100));
    let id = id_of_call(&events(&mut machine));
    machine.news(&over(T1, "abort", Some("cancelled")));
    assert_eq!(kinds(&events(&mut machine)), [""; 0]);
    let _before = orders(&mut machine);
    let came = say(&mut machine, &output(&id));
    assert_eq!(came[0]["type"], "conversation.item.added");
    assert_eq!(orders(&mut machine), [result(T1, "order", "sunny")]);
    machine.play(T1, &frame()).unwrap();
    assert_eq!(
        kinds(&events(&mut machine)),
        [""; 0],
        "its audio is nobody's"
    );

    // What the client had said before, and not asked to go on with, is told with the next turn.
    ask(&mut machine, "Order a beer.");
    machine.called(at(200), &call(T2, "order"));
    machine.tick(at(300));
    let id = id_of_call(&events(&mut machine));
    say(&mut machine, &output(&id));
    let _before = orders(&mut machine);
    machine.clause(TurnNumber(3), &clause(0, "Something else."));
    assert_eq!(orders(&mut machine), [result(T2, "order", "sunny")]);
    let came = events(&mut machine);
    assert_eq!(kinds(&came)[0], "response.created");
}

/// Any JSON, of the words of this protocol as of others.
fn anything() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "type",
        "event_id",
        "session",
        "realtime",
        "session.update",
        "audio",
        "input",
        "output",
        "format",
        "audio/pcm",
        "turn_detection",
        "server_vad",
        "semantic_vad",
        "threshold",
        "conversation.item.create",
        "conversation.item.truncate",
        "conversation.item.delete",
        "item",
        "message",
        "role",
        "user",
        "system",
        "content",
        "input_text",
        "text",
        "item_id",
        "content_index",
        "audio_end_ms",
        "response.create",
        "response.cancel",
        "response",
        "input_audio_buffer.append",
        "input_audio_buffer.commit",
        "input_audio_buffer.clear",
        "AAAA",
        "voice",
        "tools",
        "tool_choice",
        "function",
        "name",
        "parameters",
        "function_call_output",
        "call_id",
        "output_modalities",
        "instructions",
        "max_output_tokens",
        "inf",
        "language",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        words.clone().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        let key = prop_oneof![words.clone().prop_map(str::to_owned), "\\PC{0,6}"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// An event of a known type, with fields of any kind.
fn event() -> impl Strategy<Value = Value> {
    let kinds = prop::sample::select(vec![
        "session.update",
        "input_audio_buffer.append",
        "input_audio_buffer.commit",
        "input_audio_buffer.clear",
        "conversation.item.create",
        "conversation.item.retrieve",
        "conversation.item.delete",
        "conversation.item.truncate",
        "response.create",
        "response.cancel",
    ]);
    let fields = prop::sample::select(vec!["session", "audio", "item", "item_id", "response"]);
    let fields = prop::collection::vec((fields, anything()), 0..4);
    (kinds, fields).prop_map(|(kind, fields)| {
        let mut event = json!({ "type": kind });
        for (name, value) in fields {
            event[name] = value;
        }
        event
    })
}

/// What a session may do in between.
fn happen(machine: &mut Machine, what: u8, now: Duration) {
    let turn = TurnNumber(u32::from(what % 3) + 1);
    match what % 10 {
        0 => machine.speech(now, STARTED),
        1 => machine.speech(now, STOPPED),
        2 => machine.speech(now, FINISHED),
        3 => machine.words(&heard(u32::from(what) % 5, "so", what.is_multiple_of(2))),
        4 => machine.clause(turn, &clause(u32::from(what) % 4, "well")),
        5 => drop(machine.play(turn, &frame())),
        6 => machine.audio_end(turn),
        7 => machine.clear(turn),
        8 => machine.called(now, &call(turn, "f")),
        _rest => machine.news(&over(turn, "commit", None)),
    }
}

proptest! {
    /// NF-013: no message brings it down: each is answered by an error with a code, or by what it asks for.
    #[test]
    fn any_json_is_answered(messages in prop::collection::vec(
        prop_oneof![anything(), event()], 1..12,
    ), beta: bool, between in prop::collection::vec(any::<u8>(), 12)) {
        let dialect = if beta { Dialect::Beta } else { Dialect::Current };
        let mut machine = machine_of(dialect, Allowed::default());
        for (nth, message) in messages.iter().enumerate() {
            let now = at(nth as u64 * 100);
            let was_right = machine.client(now, &message.to_string());
            let came = events(&mut machine);
            let errors = came.iter().filter(|event| event["type"] == "error");
            for error in errors.clone() {
                prop_assert!(error["error"]["code"].is_string());
                prop_assert!(!error["error"]["message"].as_str().unwrap().is_empty());
            }
            prop_assert_eq!(errors.count(), usize::from(!was_right));
            happen(&mut machine, between[nth], now);
            machine.tick(now);
            for event in events(&mut machine) {
                prop_assert!(event["event_id"].is_string());
            }
        }
    }

    /// NF-013: nor any bytes that are text.
    #[test]
    fn any_text_is_answered(text in "\\PC{0,60}") {
        let mut machine = machine();
        let was_right = machine.client(at(0), &text);
        prop_assert!(was_right || kinds(&events(&mut machine)) == ["error"]);
    }

    /// Every response that begins ends once, whatever happens in which order.
    #[test]
    fn every_response_ends_once(what in prop::collection::vec(any::<u8>(), 0..60)) {
        let mut machine = machine();
        let mut came = Vec::new();
        for (nth, what) in what.into_iter().enumerate() {
            let now = at(nth as u64 * 300);
            if what % 11 == 0 {
                machine.client(now, &json!({ "type": "response.create" }).to_string());
            }
            if what % 7 == 0 {
                let called: &Vec<Value> = &came;
                let mut calls = called.iter().filter_map(|event| event["call_id"].as_str());
                if let Some(id) = calls.next_back() {
                    machine.client(now, &output(id).to_string());
                }
            }
            happen(&mut machine, what, now);
            machine.tick(now);
            came.extend(events(&mut machine));
        }
        machine.over("the user hung up");
        came.extend(events(&mut machine));
        let ids = |kind: &str| {
            let of = came.iter().filter(move |event| event["type"] == kind);
            of.map(|event| event["response"]["id"].clone()).collect::<Vec<_>>()
        };
        prop_assert_eq!(ids("response.created"), ids("response.done"));
    }
}
