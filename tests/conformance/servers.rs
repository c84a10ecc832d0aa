//! Tools that servers run: posted once, in time, and for nobody who is gone. Real sockets, real time.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use rspp_host::{Config, ToolRegistry};
use rspp_proto::{
    Epoch, IdempotencyKey, SessionId, SpanId, TraceId, TraceParent, TurnNumber, WallClock,
    abi::Signal,
    spec::{HttpExecutor, NodeKind},
};
use rspp_provider_api::{
    Attempt, LlmRequest, Permit, Role, ToolCall, ToolRun,
    scripted::{Answer, ScriptedLlm},
};
use rspp_provider_http::SecretStore;
use rspp_tests::{
    call::{Builder, Cast, Ended},
    web::{Asked, Reply, Web},
};
use rspp_timeline::{
    Entry,
    ToolStep::{self, Abandoned, Began, Detached, Failed, Finished, Requested, TimedOut},
};
use rspp_tools::HttpTools;
use rspp_transport_api::Ingress;
use serde_json::{Value, json};

/// A model that orders tea, and says what came of it.
fn orders() -> Cast {
    let llm = ScriptedLlm::new("llm").answer_with(|request: &LlmRequest| {
        let last = request.messages.last().unwrap();
        match last.role {
            Role::Tool => Answer::from(last.content.chars().take(40).collect::<String>()),
            Role::User if last.content == "never mind" => Answer::from("As you wish."),
            Role::User | Role::System | Role::Assistant => Answer {
                text: String::new(),
                tool_calls: vec![ToolCall {
                    id: "a".to_owned(),
                    name: "order".to_owned(),
                    arguments: "{\"item\":\"tea\"}".to_owned(),
                }],
            },
        }
    });
    Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    }
}

fn posts(config: &mut Config) {
    let http = HttpTools::default().into_factory();
    config.tools = Arc::new(ToolRegistry::with_http(http));
}

/// A call whose model may have `url` order something, declared with these changes.
fn declared(cast: &Cast, url: &str, with: &Value) -> Builder {
    let mut tool = json!({
        "name": "order",
        "description": "Orders.",
        "parameters": { "type": "object", "properties": { "item": { "type": "string" } } },
        "run": { "http": { "url": url } },
    });
    for (key, value) in with.as_object().unwrap() {
        tool[key] = value.clone();
    }
    let mut builder = Builder::new(cast, vec![])
        .configure(posts)
        .pipeline(|spec| {
            let llm = spec
                .nodes
                .iter_mut()
                .find(|node| node.kind == NodeKind::Llm);
            llm.unwrap().tools = serde_json::from_value(json!([tool])).unwrap();
            // A busy machine is no fault of the server's.
            spec.budgets.turn_budget_ms = Some(30_000);
            spec.budgets.path_budget_ms_default = Some(30_000);
        });
    builder.script.hang_up_after = Duration::from_mins(1);
    builder
}

/// Says `hello`, and waits until that is answered.
async fn one_turn(mut builder: Builder) -> Ended {
    let client = builder.client();
    let call = builder.start().await;
    let said = client.send(Ingress::Text("hello".to_owned()));
    said.expect("the call goes on");
    call.log.until(Signal::Close, 1).await;
    call.session.drain();
    call.end().await
}

fn steps(ended: &Ended) -> Vec<ToolStep> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Tool(step) => Some(step.step),
            _something_else => None,
        })
        .collect()
}

/// Tool calling, F-158, P30: what the model wrote is posted as JSON, with the key by which the server can tell
/// a repetition, and the model goes on with the answer.
#[tokio::test]
async fn a_server_runs_a_declared_tool() {
    let web = Web::start(|_| Reply::new(200, "One tea is on its way.")).await;
    let ended = one_turn(declared(
        &orders(),
        &format!("{}/order", web.url),
        &json!({}),
    ))
    .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, "One tea is on its way.");
    assert_eq!(steps(&ended), [Requested, Began, Finished]);
    let asked = web.asked();
    assert_eq!(asked.len(), 1);
    let Asked {
        method,
        path,
        headers,
        body,
        ..
    } = &asked[0];
    assert_eq!((&**method, &**path), ("POST", "/order"));
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(
        serde_json::from_str::<Value>(body).unwrap(),
        json!({ "item": "tea" })
    );
    let turn = TurnNumber::FIRST.id();
    let session = SessionId::new("call").unwrap();
    let key = IdempotencyKey::of_tool(&session, Epoch::FIRST, &turn, "a");
    assert_eq!(headers["idempotency-key"], key.as_str());
    assert_eq!(headers["x-session-id"], "call");
    assert_eq!(headers["x-turn-id"], turn.as_str());
    assert_eq!(headers["x-authority-epoch"], "1");
    // P30: it can say its part in the turn's trace.
    let trace = TraceId::of(&session, Some(&turn));
    let parent = TraceParent::new(trace, SpanId::of_tool(trace, "a"));
    assert_eq!(headers["traceparent"], parent.to_string());
    let spans = rspp_timeline::trace::spans(&ended.entries);
    let told = spans.iter().find(|span| span.id == parent.span).unwrap();
    assert_eq!((told.trace, &*told.name), (trace, "tool order"));
}

/// A server that is bad in some way, and what is expected of a turn whose tool it runs.
struct Case {
    with: Value,
    answer: fn(&Asked) -> Reply,
    told: &'static str,
    steps: [ToolStep; 3],
    posts: usize,
}

async fn check(case: Case) {
    let web = Web::start(case.answer).await;
    let ended = one_turn(declared(&orders(), &web.url, &case.with)).await;
    assert_eq!(ended.endings(), ["commit"], "{}", case.told);
    let said = ended.turn(1).agent_text.clone();
    assert!(said.starts_with(case.told), "{said} for {}", case.told);
    assert_eq!(steps(&ended), case.steps, "{}", case.told);
    let asked = web.asked();
    assert_eq!(asked.len(), case.posts, "{}", case.told);
    let mut keys = asked.iter().map(|asked| &asked.headers["idempotency-key"]);
    let first = keys.next().unwrap();
    assert!(keys.all(|key| key == first), "one key for one call");
}

/// F-158, P7: a server that fails, refuses, breaks off or is slow breaks no turn; the model is told, and
/// only what is idempotent is posted again, under the same key.
#[tokio::test]
async fn a_server_that_fails_breaks_no_turn() {
    let once = json!({});
    let cases = [
        Case {
            with: json!({ "idempotent": true }),
            answer: |asked| match asked.nth {
                0 => Reply::new(503, "busy"),
                _ => Reply::new(200, "There it is."),
            },
            told: "There it is.",
            steps: [Requested, Began, Finished],
            posts: 2,
        },
        Case {
            with: once.clone(),
            answer: |_| Reply::new(503, "busy"),
            told: "the server refused with status 503",
            steps: [Requested, Began, Failed],
            posts: 1,
        },
        Case {
            with: json!({ "idempotent": true }),
            answer: |_| Reply::new(422, "no tea"),
            told: "the server refused with status 422",
            steps: [Requested, Began, Failed],
            posts: 1,
        },
        Case {
            with: once.clone(),
            answer: |_| Reply::new(307, "").header("location", "http://127.0.0.1:1/"),
            told: "the server refused with status 307",
            steps: [Requested, Began, Failed],
            posts: 1,
        },
        Case {
            with: once.clone(),
            answer: |_| Reply::new(200, "There it is.").cut(),
            told: "the server's answer broke off",
            steps: [Requested, Began, Failed],
            posts: 1,
        },
        Case {
            with: json!({ "timeout_ms": 200 }),
            answer: |_| Reply::new(200, "There it is.").late(Duration::from_secs(30)),
            told: "no result within 200 ms",
            steps: [Requested, Began, TimedOut],
            posts: 1,
        },
        Case {
            with: json!({ "max_result_bytes": 64 }),
            answer: |_| Reply::new(200, "tea ".repeat(1_000_000)),
            told: "tea tea tea tea",
            steps: [Requested, Began, Finished],
            posts: 1,
        },
    ];
    join_all(cases.map(check)).await;
    // Nobody is there at all.
    let ended = one_turn(declared(&orders(), "http://127.0.0.1:1/", &once)).await;
    assert_eq!(ended.endings(), ["commit"]);
    assert!(
        ended
            .turn(1)
            .agent_text
            .starts_with("the server cannot be reached")
    );
}

/// P1, P6, P7: who is interrupted takes his request back: one that only looks something up is broken off
/// at the server, and nothing of it is said; one with effects is seen through, and the next turn knows.
#[tokio::test]
async fn an_interruption_breaks_a_request_off() {
    for (with, expected) in [
        (
            json!({ "effects": "none" }),
            [Requested, Began, Abandoned].as_slice(),
        ),
        (json!({}), &[Requested, Began, Detached, Finished]),
    ] {
        let sees_through = expected.contains(&Detached);
        let web = Web::start(move |_| {
            if sees_through {
                Reply::new(200, "One tea is on its way.").late(Duration::from_millis(600))
            } else {
                Reply::silence()
            }
        })
        .await;
        let mut builder = declared(&orders(), &web.url, &with);
        let client = builder.client();
        let call = builder.start().await;
        let say = |text: &str| client.send(Ingress::Text(text.to_owned())).unwrap();
        say("hello");
        while web.asked().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        say("never mind");
        call.log.until(Signal::Close, 2).await;
        if !sees_through {
            assert!(web.client_gone().await, "the request is broken off");
        }
        call.session.drain();
        let ended = call.end().await;
        assert_eq!(ended.endings(), ["cancelled", "commit"]);
        assert_eq!(ended.turn(1).agent_text_played, "");
        assert_eq!(ended.turn(2).agent_text_played, "As you wish.");
        assert_eq!(steps(&ended), expected);
        assert_eq!(web.asked().len(), 1);
    }
}

/// P1: the look at turn and epoch is the last thing before a request leaves: whoever's turn is over by
/// then asks nothing of any server.
#[tokio::test]
async fn nothing_is_posted_for_a_turn_that_is_over() {
    let web = Web::start(|_| Reply::new(200, "")).await;
    let server = HttpExecutor {
        url: web.url.clone(),
        credential: None,
    };
    let tool = HttpTools::default().tool(&server).unwrap();
    let turn = TurnNumber::FIRST.id();
    let session = SessionId::new("call").unwrap();
    let run = |permit: Permit| ToolRun {
        key: IdempotencyKey::of_tool(&session, Epoch::FIRST, &turn, "a"),
        session: session.clone(),
        turn: turn.clone(),
        epoch: Epoch::FIRST,
        call: "a".to_owned(),
        arguments: json!({}),
        attempt: Attempt::FIRST,
        within: Duration::from_secs(5),
        wall: WallClock(0),
        cancel: rspp_actors::CancellationToken::new(),
        permit,
    };
    assert!(tool.commits_itself());
    assert!(tool.run(run(Permit::new(|| false))).await.is_err());
    assert_eq!((web.connections(), web.asked().len()), (0, 0));
    // Nor for one that is given up.
    let given_up = run(Permit::always());
    given_up.cancel.cancel();
    assert!(tool.run(given_up).await.is_err());
    assert_eq!(web.asked().len(), 0);
    assert!(tool.run(run(Permit::always())).await.is_ok());
    assert!(tool.run(run(Permit::always())).await.is_ok());
    assert_eq!((web.connections(), web.asked().len()), (1, 2), "kept");
}

/// F-061: a server is told the secret that its tool names, looked up at each call; whatever it says with
/// it, neither model nor timeline gets to see it. F-105: its connection is kept.
#[tokio::test]
async fn a_tool_s_secret_is_told_to_its_server_alone() {
    const CANARY: &str = "tool-canary-4711";
    let web = Web::start(|asked| {
        let told = asked.headers["authorization"].clone();
        if asked.nth == 0 {
            Reply::new(403, format!("who is {told}?"))
        } else {
            Reply::new(200, format!("{told} has tea."))
        }
    })
    .await;
    let secrets = SecretStore::new(|name| (name == "TOOL_ORDERS").then(|| CANARY.to_owned()));
    let http = HttpTools::with_secrets(secrets);
    let counted = http.clone();
    let url = format!("{}/order", web.url);
    let with = json!({ "run": { "http": { "url": url, "credential": "env://TOOL_ORDERS" } } });
    let mut texts = Vec::new();
    for _ in 0..2 {
        let http = http.clone();
        let builder = declared(&orders(), &url, &with).configure(move |config| {
            config.tools = Arc::new(ToolRegistry::with_http(http.into_factory()));
        });
        let ended = one_turn(builder).await;
        assert_eq!(ended.endings(), ["commit"]);
        let left = format!(
            "{:?} {:?} {:?}",
            ended.entries,
            ended.report,
            ended.log.notices()
        );
        assert!(!left.contains("canary"), "{left}");
        texts.push(ended.turn(1).agent_text.clone());
    }
    assert!(texts[1].contains("***redacted*** has tea"), "{texts:?}");
    let sent = web.asked();
    assert!(
        sent.iter()
            .all(|asked| asked.headers["authorization"] == format!("Bearer {CANARY}"))
    );
    let counts = counted.connections();
    assert_eq!((counts.opened, counts.reused), (1, 1));
    assert_eq!((web.connections(), sent.len()), (1, 2));

    // Another's secret is nobody's to name: there is no such session.
    let with = json!({ "run": { "http": { "url": url, "credential": "env://LLM_KEY" } } });
    let mut builder = declared(&orders(), &url, &with);
    let runtime = builder.runtime().await;
    let refused = builder.open(&runtime).await.err().unwrap().to_string();
    assert!(refused.contains("names no secret of a tool"), "{refused}");
}

/// F-105: sessions that go on at once share a server's connections: those of the second round open none, and none of
/// them is answered late for it.
#[tokio::test]
async fn sessions_at_once_share_connections() {
    const CALLS: u64 = 2;
    let web = Web::start(|_| Reply::new(200, "It is on its way.")).await;
    let http = HttpTools::default();
    for round in 1..=2 {
        let calls = (0..CALLS).map(|n| {
            let http = http.clone();
            let mut call = declared(&orders(), &web.url, &json!({})).configure(move |config| {
                config.tools = Arc::new(ToolRegistry::with_http(http.into_factory()));
            });
            call.session = SessionId::new(format!("call-{round}-{n}")).unwrap();
            one_turn(call)
        });
        for ended in join_all(calls).await {
            assert_eq!(ended.endings(), ["commit"]);
            assert_eq!(ended.turn(1).agent_text, "It is on its way.");
        }
    }
    let counts = http.connections();
    assert!(counts.opened <= CALLS, "{counts:?}");
    assert_eq!(counts.opened + counts.reused, 2 * CALLS);
    assert!(web.connections() as u64 <= counts.opened);
    assert_eq!(web.asked().len() as u64, 2 * CALLS);
}
