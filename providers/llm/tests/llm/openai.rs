//! The OpenAI-compatible client against real sockets.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt;
use rspp_llm::{OpenAi, OpenAiConfig, SecretStore};
use rspp_proto::{Epoch, InvocationId, SessionId, SpanId, TraceId, TraceParent};
use rspp_provider_api::{
    Attempt, Call, Deadlines, Fault, FinishReason, LanguageModel, LlmChunk, LlmRequest, Message,
    OutcomeClass, Role, ToolCall, ToolSpec, Usage,
    conformance::{Failing, llm},
    conformance_tests,
};
use serde_json::json;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::server::{Server, Step, chunked, end, event, response, says, send, stream_head};

const CANARY: &str = "canary-key-1234";

pub(crate) fn call() -> Call {
    Call {
        invocation: InvocationId::new("pvi/s/t/e/llm").unwrap(),
        attempt: Attempt::FIRST,
        session: SessionId::new("s").unwrap(),
        turn: None,
        epoch: Epoch::FIRST,
        idempotency_key: "pvi/s/t/e/llm".to_owned(),
        deadlines: Deadlines {
            first_byte: Duration::from_secs(5),
            inter_chunk: Duration::from_secs(5),
        },
        share: Arc::default(),
        queue: Arc::default(),
        extras: Arc::default(),
        cancel: CancellationToken::new(),
    }
}

fn hurried() -> Call {
    Call {
        deadlines: Deadlines {
            first_byte: Duration::from_millis(150),
            inter_chunk: Duration::from_millis(150),
        },
        ..call()
    }
}

fn request() -> LlmRequest {
    LlmRequest {
        messages: vec![
            Message::new(Role::System, "Be brief."),
            Message::new(Role::User, "my private question"),
        ],
        ..LlmRequest::default()
    }
}

fn client(base_url: &str) -> OpenAi {
    OpenAi::new(OpenAiConfig::new("llm-openai", base_url, "tiny")).unwrap()
}

async fn ask(steps: Vec<Step>) -> Vec<Result<LlmChunk, Fault>> {
    let server = Server::start(steps).await;
    let answer = client(&server.base_url).generate(call(), request());
    answer.collect().await
}

/// P30: the server is told where in the turn's trace the request is, by the ids that the timeline's spans have.
#[tokio::test]
async fn the_request_takes_part_in_the_turns_trace() {
    let server = Server::start(chunked(&[says("Hi."), end()], Duration::ZERO)).await;
    let client = client(&server.base_url);
    let answer = client.generate(call(), request());
    let _answer: Vec<_> = answer.collect().await;
    let call = call();
    let parent = TraceParent::new(
        TraceId::of(&call.session, None),
        SpanId::of_attempt(&call.invocation, &client.describe().id, 1),
    );
    let requests = server.requests();
    let text = requests[0].to_lowercase();
    assert!(text.contains(&format!("traceparent: {parent}")), "{text}");
}

async fn fault_of(steps: Vec<Step>) -> Fault {
    let items = ask(steps).await;
    items.into_iter().next_back().unwrap().unwrap_err()
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "items of a stream, to compare with"
)]
fn delta(text: &str) -> Result<LlmChunk, Fault> {
    Ok(LlmChunk::Delta(text.to_owned()))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "items of a stream, to compare with"
)]
fn finished(reason: FinishReason, usage: Option<(u64, u64)>) -> Result<LlmChunk, Fault> {
    let usage = usage.map(|(prompt_tokens, completion_tokens)| Usage {
        prompt_tokens,
        completion_tokens,
    });
    Ok(LlmChunk::Finished { reason, usage })
}

async fn subject() -> llm::Subject {
    let words: Vec<Step> = ["One ", "two ", "three ", "four ", "five ", "six."]
        .into_iter()
        .map(says)
        .chain([end()])
        .collect();
    let good = Server::start(chunked(&words, Duration::from_millis(5))).await;
    let mut failing: Vec<Failing<dyn LanguageModel>> = Vec::new();
    let mut broken_off = vec![stream_head(), says("One "), Step::Close];
    broken_off.insert(
        2,
        send("data: {\"error\":{\"message\":\"out of memory\"}}\n\n"),
    );
    for (what, class, steps) in [
        (
            "429",
            OutcomeClass::Overload,
            response("429 Slow", "", "{}"),
        ),
        ("401", OutcomeClass::Blocked, response("401 No", "", "")),
        (
            "404",
            OutcomeClass::Blocked,
            response("404 No", "", "no such model"),
        ),
        (
            "503",
            OutcomeClass::InfrastructureFailure,
            response("503 Busy", "", ""),
        ),
        ("504", OutcomeClass::Timeout, response("504 Late", "", "")),
        (
            "an error in the stream",
            OutcomeClass::InfrastructureFailure,
            broken_off,
        ),
        (
            "an echo of the question",
            OutcomeClass::Blocked,
            response("400 Bad", "", "cannot parse: Please tell me a long story."),
        ),
    ] {
        failing.push(Failing {
            what,
            class,
            provider: Arc::new(client(&Server::start(steps).await.base_url)),
        });
    }
    failing.push(Failing {
        what: "nobody listens",
        class: OutcomeClass::InfrastructureFailure,
        provider: Arc::new(client("http://127.0.0.1:1/v1")),
    });
    llm::Subject {
        failing,
        ..llm::Subject::new(Arc::new(client(&good.base_url)))
    }
}

conformance_tests! {
    #[tokio::test]
    mod conforms: llm = subject().await;
}

/// F-055: what is sent is what the format says, and the key only in its header.
#[tokio::test]
async fn the_request_is_the_formats_own() {
    let server = Server::start(vec![stream_head(), says("Yes."), end()]).await;
    let config = OpenAiConfig {
        api_key: Some("env://LLM_KEY".to_owned()),
        ..OpenAiConfig::new("llm", &server.base_url, "tiny")
    };
    let secrets = SecretStore::new(|name| (name == "LLM_KEY").then(|| CANARY.to_owned()));
    let model = OpenAi::with_secrets(config, secrets).unwrap();
    let tool_call = ToolCall {
        id: "t1".to_owned(),
        name: "book".to_owned(),
        arguments: "{\"for\":4}".to_owned(),
    };
    let mut full = request();
    full.messages.push(Message {
        tool_calls: vec![tool_call],
        ..Message::new(Role::Assistant, "")
    });
    full.messages.push(Message {
        tool_call_id: Some("t1".to_owned()),
        ..Message::new(Role::Tool, "done")
    });
    full.tools.push(ToolSpec {
        name: "book".to_owned(),
        description: "Books a table.".to_owned(),
        parameters: json!({"type": "object"}),
    });
    full.max_tokens = Some(64);
    full.temperature = Some(0.5);

    let items: Vec<_> = model.generate(call(), full).collect().await;
    assert_eq!(
        items,
        [delta("Yes."), finished(FinishReason::Stop, Some((7, 3)))]
    );
    assert!(!format!("{model:?}").contains(CANARY), "F-061");

    let requests = server.requests();
    let (head, body) = requests[0].split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(
        head.starts_with("post /v1/chat/completions http/1.1"),
        "{head}"
    );
    assert!(head.contains(&format!("authorization: bearer {CANARY}")));
    assert!(head.contains("idempotency-key: pvi/s/t/e/llm"));
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let function = json!({"name": "book", "arguments": "{\"for\":4}"});
    let expected = json!({
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "my private question"},
            {"role": "assistant", "content": null,
             "tool_calls": [{"id": "t1", "type": "function", "function": function}]},
            {"role": "tool", "content": "done", "tool_call_id": "t1"},
        ],
        "stream": true,
        "stream_options": {"include_usage": true},
        "tools": [{"type": "function", "function": {
            "name": "book", "description": "Books a table.", "parameters": {"type": "object"},
        }}],
        "max_tokens": 64,
        "temperature": 0.5,
    });
    assert_eq!(body, expected);
}

/// F-061: resolved at each call, so rotation works; unset is a refusal that names the variable.
#[tokio::test]
async fn keys_are_looked_up_at_each_call() {
    let server = Server::start(vec![stream_head(), says("Yes."), end()]).await;
    let config = OpenAiConfig {
        api_key: Some("LLM_KEY".to_owned()),
        ..OpenAiConfig::new("llm", &server.base_url, "tiny")
    };
    let key = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&key);
    let secrets = SecretStore::new(move |_| kept.lock().unwrap().clone());
    let model = OpenAi::with_secrets(config, secrets).unwrap();

    let unset: Vec<_> = model.generate(call(), request()).collect().await;
    let fault = unset[0].clone().unwrap_err();
    assert_eq!(fault.reason, "provider_auth_or_policy_block");
    assert!(fault.message.contains("LLM_KEY"), "{fault}");
    for value in ["first-value", "second-value"] {
        *key.lock().unwrap() = Some(value.to_owned());
        let _: Vec<_> = model.generate(call(), request()).collect().await;
        let last = server.requests().pop().unwrap();
        assert!(last.contains(&format!("Bearer {value}")), "{last}");
    }
}

/// F-063: split at every byte, also inside a character and inside CRLF.
#[tokio::test]
async fn chunk_boundaries_do_not_matter() {
    let text = "Grüße — 你好 🙂";
    let Step::Send(said) = says(text) else {
        unreachable!("`says` sends")
    };
    let Step::Send(ending) = end() else {
        unreachable!("`end` sends")
    };
    let stream = [": hello\n\n".as_bytes(), &said, &ending].concat();
    let stream = String::from_utf8(stream).unwrap().replace('\n', "\r\n");
    let mut steps = vec![stream_head()];
    for byte in stream.as_bytes() {
        steps.push(Step::Send(vec![*byte]));
        steps.push(Step::Pause(Duration::from_micros(100)));
    }
    let expected = [delta(text), finished(FinishReason::Stop, Some((7, 3)))];
    assert_eq!(ask(steps).await, expected);
}

#[tokio::test]
async fn tool_calls_are_put_together() {
    let part = |calls: serde_json::Value| {
        send(event(
            &json!({"choices": [{"index": 0, "delta": {"tool_calls": calls}}]}),
        ))
    };
    let steps = vec![
        stream_head(),
        part(json!([{"index": 0, "id": "a", "function": {"name": "book", "arguments": ""}}])),
        part(json!([{"index": 0, "function": {"arguments": "{\"for\""}}])),
        part(json!([{"index": 1, "id": "b", "function": {"name": "hours"}}])),
        part(json!([{"index": 0, "function": {"arguments": ":4}"}}])),
        send(event(
            &json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
        )),
        send("data: [DONE]\n\n"),
    ];
    let tool = |id: &str, name: &str, arguments: &str| {
        Ok(LlmChunk::ToolCall(ToolCall {
            id: id.to_owned(),
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        }))
    };
    let expected = [
        tool("a", "book", "{\"for\":4}"),
        tool("b", "hours", "{}"),
        finished(FinishReason::ToolCalls, None),
    ];
    assert_eq!(ask(steps).await, expected);
}

#[tokio::test]
async fn ends_are_told_apart() {
    for (reason, expected) in [
        ("length", FinishReason::Length),
        ("content_filter", FinishReason::ContentFilter),
        ("eos", FinishReason::Stop),
    ] {
        let last = json!({"choices": [{"delta": {"content": "a"}, "finish_reason": reason}]});
        // Without `[DONE]`, as some servers end; the reason was given.
        let items = ask(vec![stream_head(), send(event(&last))]).await;
        assert_eq!(items, [delta("a"), finished(expected, None)]);
    }
}

/// F-131; providers.md §2
#[tokio::test]
async fn http_errors_keep_their_status_and_their_wait() {
    let body = json!({"error": {"type": "tokens", "message": "slow down, sk-12345"}}).to_string();
    let fault = fault_of(response("429 Too Many", "retry-after: 3\r\n", &body)).await;
    assert_eq!(
        (fault.class, fault.status),
        (OutcomeClass::Overload, Some(429))
    );
    assert_eq!(fault.backoff, Some(Duration::from_secs(3)));
    assert_eq!(
        fault.message,
        "the server answered with status 429: tokens: slow down, ***redacted***"
    );

    let late = "retry-after: Tue, 22 Nov 1994 12:00:00 GMT\r\n";
    let fault = fault_of(response("429 Too Many", late, "")).await;
    assert_eq!(fault.backoff, Some(Duration::ZERO), "a date, long past");
    let fault = fault_of(response("429 Too Many", "", "")).await;
    assert_eq!(fault.backoff, Some(Duration::from_millis(500)));

    let echo = "invalid input: my private question";
    let fault = fault_of(response("400 Bad Request", "", echo)).await;
    assert_eq!(
        (fault.class, fault.reason),
        (OutcomeClass::Blocked, "provider_client_error")
    );
    assert!(!fault.message.contains("private"), "{fault}");

    let fault = fault_of(response("500 Oops", "", &"x".repeat(100_000))).await;
    assert_eq!(fault.reason, "provider_server_error");
    assert!(fault.message.len() < 400, "{} bytes", fault.message.len());

    let moved = "location: http://127.0.0.1:1/\r\n";
    let fault = fault_of(response("302 Found", moved, "")).await;
    assert_eq!(
        fault.class,
        OutcomeClass::Blocked,
        "redirects are not followed"
    );
}

#[tokio::test]
async fn broken_answers_are_stream_errors_after_what_was_good() {
    let oversized = format!("data: {}", "x".repeat(300_000));
    for (what, steps) in [
        (
            "malformed JSON",
            vec![send("data: {\"choices\": my private question\n\n")],
        ),
        (
            "an event that is no text",
            vec![send(b"data: \xff\xfe\n\n")],
        ),
        ("an oversized line", vec![send(oversized)]),
        ("an early end", vec![]),
        (
            "an error object",
            vec![send("data: {\"error\":{\"message\":\"gone\"}}\n\n")],
        ),
    ] {
        let steps = [vec![stream_head(), says("Well, ")], steps].concat();
        let items = ask(steps).await;
        assert_eq!(items.first(), Some(&delta("Well, ")), "{what}");
        let fault = items.last().unwrap().clone().unwrap_err();
        assert_eq!(fault.reason, "provider_stream_error", "{what}");
        assert!(!fault.message.contains("private"), "{what}: {fault}");
        assert_eq!(items.len(), 2, "{what}");
    }
    let page = response("200 OK", "content-type: text/html\r\n", "<html>");
    assert_eq!(fault_of(page).await.reason, "provider_stream_error");
    let cut = vec![
        send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 999\r\n\r\n"),
        says("a"),
        Step::Close,
    ];
    assert_eq!(fault_of(cut).await.reason, "provider_stream_error");
    let hung_up = vec![Step::Close];
    assert_eq!(fault_of(hung_up).await.reason, "provider_transport_error");
}

/// P14: silence is noticed in each phase, keep-alive comments or not, and the socket is closed.
#[tokio::test]
async fn silence_is_a_timeout_and_closes_the_connection() {
    let comments = (0..50).flat_map(|_| {
        [
            send(": still here\n\n"),
            Step::Pause(Duration::from_millis(20)),
        ]
    });
    for (what, steps) in [
        ("no head", vec![Step::Hold]),
        ("no event", vec![stream_head(), Step::Hold]),
        (
            "comments only",
            [stream_head()].into_iter().chain(comments).collect(),
        ),
        ("no more events", vec![stream_head(), says("a"), Step::Hold]),
    ] {
        let server = Server::start(steps).await;
        let model = client(&server.base_url);
        let began = Instant::now();
        let items: Vec<_> = model.generate(hurried(), request()).collect().await;
        let fault = items.last().unwrap().clone().unwrap_err();
        assert_eq!(fault.reason, "provider_timeout", "{what}");
        assert!(began.elapsed() < Duration::from_secs(1), "{what}");
        assert!(
            server.client_gone().await,
            "{what}: the connection is still open"
        );
    }
}

/// F-033, F-063, P10: the server sees that its work is no longer wanted.
#[tokio::test]
async fn cancel_and_drop_close_the_connection() {
    for (what, head) in [
        ("before the head", vec![]),
        ("mid-stream", vec![stream_head(), says("a")]),
    ] {
        for dropped in [false, true] {
            let steps = [head.clone(), vec![Step::Hold]].concat();
            let server = Server::start(steps).await;
            let call = call();
            let cancel = call.cancel.clone();
            let mut stream = client(&server.base_url).generate(call, request());
            if head.is_empty() {
                let nothing = timeout(Duration::from_millis(100), stream.next()).await;
                assert!(nothing.is_err(), "{what}");
            } else {
                assert_eq!(stream.next().await, Some(delta("a")), "{what}");
            }
            if dropped {
                drop(stream);
            } else {
                cancel.cancel();
                assert_eq!(stream.next().await, Some(Err(Fault::cancelled())), "{what}");
                assert_eq!(stream.next().await, None, "{what}");
            }
            assert!(
                server.client_gone().await,
                "{what}: the connection is still open"
            );
        }
    }
}

#[tokio::test]
async fn a_finished_answer_leaves_its_connection_to_the_next() {
    let answer = chunked(&[says("a"), end()], Duration::ZERO);
    let server = Server::start(answer).await;
    let model = client(&server.base_url);
    for _ in 0..3 {
        let items: Vec<_> = model.generate(call(), request()).collect().await;
        assert_eq!(items.len(), 2);
    }
    assert_eq!(server.requests().len(), 3);
    assert_eq!(server.connections(), 1);
}
