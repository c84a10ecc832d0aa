//! Tools: nothing is done for a dead turn, nothing is done twice, and every call has one end.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use rspp_controlplane_api::LocalLeases;
use rspp_host::{Config, OpenError, ToolRegistry};
use rspp_kernel::SessionState;
use rspp_proto::{
    TurnNumber,
    abi::Signal,
    spec::{NodeKind, PipelineSpec},
};
use rspp_provider_api::{
    LlmRequest, Role, Tool, ToolCall, ToolFault, ToolFuture, ToolOutput, ToolRun, function,
    scripted::{Answer, ScriptedLlm, ScriptedTts},
};
use rspp_tests::call::{Builder, Cast, Ended, REPLY, after_reply, first, over_reply, says};
use rspp_timeline::{
    Entry,
    ToolStep::{
        self, ActionCommitted, ActionRefused, Began, Detached, Finished, Refused, Requested,
    },
};
use rspp_transport_api::{ClientResult, Ingress, Outgoing, loopback::Start};
use serde_json::{Value, json};

type Asked = Arc<Mutex<Vec<LlmRequest>>>;

/// A cast whose model answers as `respond` says; what it was asked is kept.
fn cast(respond: impl Fn(&LlmRequest) -> Answer + Send + Sync + 'static) -> (Cast, Asked) {
    let asked = Asked::default();
    let seen = Arc::clone(&asked);
    let llm = ScriptedLlm::new("llm").answer_with(move |request| {
        seen.lock().unwrap().push(request.clone());
        respond(request)
    });
    let cast = Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    };
    (cast, asked)
}

fn calls(text: &str, tool: &str, arguments: &str) -> Answer {
    Answer {
        text: text.to_owned(),
        tool_calls: vec![ToolCall {
            id: "call_0".to_owned(),
            name: tool.to_owned(),
            arguments: arguments.to_owned(),
        }],
    }
}

/// How many messages of the user there are: the turn, to a scripted model.
fn turn_of(request: &LlmRequest) -> usize {
    let roles = request.messages.iter().map(|message| message.role);
    roles.filter(|role| *role == Role::User).count()
}

fn last_result(request: &LlmRequest) -> Option<&str> {
    let last = request.messages.last()?;
    (last.role == Role::Tool).then_some(last.content.as_str())
}

fn declare(tools: Value) -> impl FnOnce(&mut PipelineSpec) {
    move |spec| {
        let llm = spec
            .nodes
            .iter_mut()
            .find(|node| node.kind == NodeKind::Llm);
        let tools = serde_json::from_value(tools).expect("a test declares valid tools");
        llm.expect("there is a model").tools = tools;
    }
}

fn run_by(name: &'static str, tool: Arc<dyn Tool>) -> impl FnOnce(&mut Config) + 'static {
    move |config| {
        let mut tools = ToolRegistry::default();
        tools.register(name, tool);
        config.tools = Arc::new(tools);
    }
}

/// The steps of a call, as recorded.
fn steps(ended: &Ended, turn: &str, call: &str) -> Vec<ToolStep> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Tool(step) if step.turn_id.as_str() == turn && step.call_id == call => {
                Some(step.step)
            }
            _something_else => None,
        })
        .collect()
}

/// A tool that has its effect at once, and takes a while to say so.
fn order(effects: &Arc<AtomicU32>, takes: Duration) -> Arc<dyn Tool> {
    let effects = Arc::clone(effects);
    function(move |_run| {
        let nth = effects.fetch_add(1, Relaxed) + 1;
        async move {
            tokio::time::sleep(takes).await;
            Ok(ToolOutput::new(format!("order {nth} is placed")))
        }
    })
}

/// F-064: the model streams, a tool runs while its first words are spoken, and with the result it goes on.
#[tokio::test(start_paused = true)]
async fn a_model_is_asked_again_with_what_its_tool_has_found() {
    let (cast, asked) = cast(|request| match last_result(request) {
        Some(result) => format!("It costs {result}.").as_str().into(),
        None => calls("Let me look.", "price", r#"{"of":"tea"}"#),
    });
    let price = function(|run: ToolRun| async move {
        tokio::time::sleep(Duration::from_millis(800)).await;
        assert_eq!(run.arguments, json!({ "of": "tea" }));
        Ok(ToolOutput::new("two euros"))
    });
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(declare(json!([{
            "name": "price",
            "description": "Says what something costs.",
            "parameters": {
                "type": "object",
                "properties": { "of": { "type": "string" } },
                "required": ["of"],
            },
            "effects": "none",
        }])))
        .configure(run_by("price", price))
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    let turn = ended.turn(1);
    assert_eq!(turn.agent_text_played, "Let me look. It costs two euros.");
    // It was heard before the tool came back.
    assert!(turn.first_audio_ms.unwrap() < 800.0, "{turn:#?}");
    assert_eq!(turn.tools[0].outcome, "finished");
    assert_eq!(
        steps(&ended, "turn-0001", "call_0"),
        [Requested, Began, Finished]
    );

    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].tools.len(), 1);
    assert_eq!(asked[0].tools[0].name, "price");
    let [.., called, result] = &asked[1].messages[..] else {
        panic!("{asked:#?}");
    };
    assert_eq!(
        (called.role, called.content.as_str()),
        (Role::Assistant, "Let me look.")
    );
    assert_eq!(called.tool_calls[0].id, "call_0");
    assert_eq!(result.tool_call_id.as_deref(), Some("call_0"));
    assert_eq!(result.content, "two euros");
}

/// P1: the goodbye of an interrupted reply does not hang up on the caller.
#[tokio::test(start_paused = true)]
async fn a_stray_end_call_hangs_up_on_nobody() {
    let (cast, _) = cast(|request| match (turn_of(request), last_result(request)) {
        (1, None) => calls("", "end_call", "{}"),
        (1, Some(_)) => "Goodbye then, it was a great pleasure to talk to you today.".into(),
        _ => "No problem.".into(),
    });
    let declared = || declare(json!([{ "name": "end_call", "description": "Hangs up." }]));
    let ended = Builder::new(&cast, vec![says(first()), says(over_reply(900))])
        .pipeline(declared())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_eq!(ended.report.ended, "the user hung up");
    assert_eq!(ended.turn(2).agent_text_played, "No problem.");
    assert_eq!(
        steps(&ended, "turn-0001", "call_0"),
        [Requested, Began, Finished, ActionRefused]
    );

    // Uninterrupted it hangs up, once the goodbye has been heard whole.
    let ended = Builder::new(&cast, vec![says(first()), says(after_reply())])
        .pipeline(declared())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.report.ended, "the agent ended the call");
    assert_eq!(ended.turn(1).agent_text_played, ended.turn(1).agent_text);
    assert_eq!(
        steps(&ended, "turn-0001", "call_0"),
        [Requested, Began, Finished, ActionCommitted]
    );
}

/// Prepares for a while, then asks for leave, then has its effect.
struct Careful {
    effects: Arc<AtomicU32>,
    prepares: Duration,
}

impl Tool for Careful {
    fn commits_itself(&self) -> bool {
        true
    }

    fn run(&self, run: ToolRun) -> ToolFuture {
        let (effects, prepares) = (Arc::clone(&self.effects), self.prepares);
        Box::pin(async move {
            tokio::time::sleep(prepares).await;
            run.commit()?;
            effects.fetch_add(1, Relaxed);
            Ok(ToolOutput::new("done"))
        })
    }
}

/// P1: turn and epoch are compared where the effect happens, not where the call was queued.
#[tokio::test(start_paused = true)]
async fn an_effect_that_comes_after_the_fence_is_refused() {
    for (prepares, done) in [(Duration::ZERO, 1), (Duration::from_secs(20), 0)] {
        let (mut cast, _) = cast(|request| match (turn_of(request), last_result(request)) {
            (1, None) => calls("I am ordering it now, please wait a moment.", "order", "{}"),
            (1, Some(_)) => "It is ordered, and it will come on Monday morning.".into(),
            _ => "As you like.".into(),
        });
        cast.tts = Arc::new(ScriptedTts::new("tts").real_time_factor(0.5));
        let effects = Arc::new(AtomicU32::new(0));
        let tool = Arc::new(Careful {
            effects: Arc::clone(&effects),
            prepares,
        });
        let ended = Builder::new(&cast, vec![says(first()), says(over_reply(900))])
            .pipeline(declare(json!([
                { "name": "order", "description": "Orders.", "timeout_ms": 30_000 }
            ])))
            .configure(run_by("order", tool))
            .hold()
            .await;
        assert_eq!(ended.endings(), ["cancelled", "commit"]);
        assert_eq!(effects.load(Relaxed), done);
        let expected: &[ToolStep] = if done == 1 {
            &[Requested, Began, Finished]
        } else {
            &[Requested, Refused]
        };
        assert_eq!(steps(&ended, "turn-0001", "call_0"), expected);
    }
}

/// P7, F-158: an order that was begun when the user interrupted is kept, and not placed again, however
/// often a model asks that has not seen its result.
#[tokio::test(start_paused = true)]
async fn an_interruption_never_orders_twice() {
    for takes in [200, 1_000, 2_600, 6_000] {
        let (mut cast, asked) = cast(|request| {
            let placed = |text: &str| text.contains("is placed");
            let known = request
                .messages
                .iter()
                .any(|message| placed(&message.content));
            if known {
                "It is on its way.".into()
            } else {
                calls(
                    "I am ordering it now, please wait a moment.",
                    "order",
                    r#"{"n": 1}"#,
                )
            }
        });
        cast.tts = Arc::new(ScriptedTts::new("tts").real_time_factor(0.5));
        let effects = Arc::new(AtomicU32::new(0));
        let ended = Builder::new(&cast, vec![says(first()), says(over_reply(700))])
            .pipeline(declare(json!([{
                "name": "order",
                "description": "Orders.",
                "parameters": { "type": "object" },
                "timeout_ms": 30_000,
            }])))
            .configure(run_by(
                "order",
                order(&effects, Duration::from_millis(takes)),
            ))
            .hold()
            .await;
        assert_eq!(ended.endings(), ["cancelled", "commit"], "takes {takes} ms");
        assert_eq!(effects.load(Relaxed), 1, "takes {takes} ms");
        assert!(
            ended
                .turn(2)
                .agent_text_played
                .ends_with("It is on its way.")
        );
        // The model of the second turn was shown the order from the start, done or under way.
        let asked = asked.lock().unwrap();
        let second = asked.iter().find(|request| turn_of(request) == 2).unwrap();
        let shown = second
            .messages
            .iter()
            .find(|message| message.role == Role::Tool);
        let shown = &shown.expect("the call is part of the conversation").content;
        assert!(
            shown.contains("is placed") || shown.contains("still running"),
            "{shown}"
        );
    }
}

/// P1, P8: a call that has run out of time before it began never begins: whatever the tool has left
/// running is refused, and the model is told so.
#[tokio::test(start_paused = true)]
async fn a_call_that_timed_out_does_not_begin_afterwards() {
    struct Stubborn(Careful);
    impl Tool for Stubborn {
        fn commits_itself(&self) -> bool {
            true
        }

        fn run(&self, run: ToolRun) -> ToolFuture {
            let work = tokio::spawn(self.0.run(run));
            Box::pin(async { work.await.expect("it does not panic") })
        }
    }
    let (cast, _) = cast(|request| match last_result(request) {
        None => calls("", "order", "{}"),
        Some(result) => result.into(),
    });
    let effects = Arc::new(AtomicU32::new(0));
    let tool = Arc::new(Stubborn(Careful {
        effects: Arc::clone(&effects),
        prepares: Duration::from_millis(700),
    }));
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(declare(json!([
            { "name": "order", "description": "Orders.", "timeout_ms": 500 }
        ])))
        .configure(run_by("order", tool))
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(effects.load(Relaxed), 0);
    assert_eq!(
        steps(&ended, "turn-0001", "call_0"),
        [Requested, ToolStep::TimedOut]
    );
    let told = &ended.turn(1).agent_text;
    assert!(told.ends_with("it had not begun, and will not"), "{told}");
}

/// F-158, F-157: a placement that takes a session over counts its turns anew; what it orders is not what
/// was ordered before, and has a key of its own.
#[tokio::test(start_paused = true)]
async fn a_session_that_moved_orders_under_keys_of_its_own() {
    let leases = Arc::new(LocalLeases::default());
    let keys = Arc::new(Mutex::new(Vec::new()));
    for placement in 1..=2 {
        let (cast, _) = cast(|request| match last_result(request) {
            None => calls("", "order", "{}"),
            Some(result) => result.into(),
        });
        let seen = Arc::clone(&keys);
        let tool = function(move |run: ToolRun| {
            seen.lock().unwrap().push(run.key);
            async { Ok(ToolOutput::new("It is ordered.")) }
        });
        let (run, leases) = (run_by("order", tool), Arc::clone(&leases));
        let ended = Builder::new(&cast, vec![says(first())])
            .pipeline(declare(
                json!([{ "name": "order", "description": "Orders." }]),
            ))
            .configure(move |config| {
                run(config);
                config.leases = leases;
            })
            .hold()
            .await;
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.report.epoch.get(), placement);
        let recorded = ended.entries.iter().find_map(|entry| match entry {
            Entry::Tool(step) => Some(step.idempotency_key.clone()),
            _something_else => None,
        });
        assert_eq!(recorded.as_ref(), keys.lock().unwrap().last());
    }
    let keys = keys.lock().unwrap();
    assert_ne!(keys[0], keys[1]);
}

/// F-138, P7: what ended the session stays the reason, whatever follows while it winds up: here the agent
/// ends the call, and the user hangs up while an earlier order is still being seen through.
#[tokio::test(start_paused = true)]
async fn what_ended_the_call_first_is_the_reason() {
    let (mut cast, _) = cast(|request| match (turn_of(request), last_result(request)) {
        (1, _) => calls("I am ordering it now, please wait a moment.", "order", "{}"),
        (_, None) => calls("", "end_call", "{}"),
        (_, Some(_)) => "Goodbye.".into(),
    });
    cast.tts = Arc::new(ScriptedTts::new("tts").real_time_factor(0.5));
    let effects = Arc::new(AtomicU32::new(0));
    let call = Builder::new(&cast, vec![says(first()), says(over_reply(700))])
        .pipeline(declare(json!([
            { "name": "order", "description": "Orders.", "timeout_ms": 60_000 },
            { "name": "end_call", "description": "Hangs up." },
        ])))
        .configure(run_by("order", order(&effects, Duration::from_secs(30))))
        .start()
        .await;
    call.log.until(Signal::Commit, 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(call.session.status().state, SessionState::Draining);
    call.line.hang_up();
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_eq!(
        steps(&ended, "turn-0001", "call_0").last(),
        Some(&Finished),
        "the order was seen through"
    );
    assert_eq!(ended.report.ended, "the agent ended the call");
    assert!(ended.signals().contains(&"disconnected"));
}

/// P7, F-138: whoever hangs up after ordering has ordered; the session waits for no longer than that.
#[tokio::test(start_paused = true)]
async fn a_session_sees_its_orders_through() {
    let (cast, _) = cast(|request| match last_result(request) {
        None => calls("", "order", "{}"),
        Some(_) => "Done.".into(),
    });
    let effects = Arc::new(AtomicU32::new(0));
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(declare(json!([
            { "name": "order", "description": "Orders.", "timeout_ms": 60_000 }
        ])))
        .configure(run_by("order", order(&effects, Duration::from_secs(30))))
        .hold()
        .await;
    // The user waits for a while and hangs up.
    assert_eq!(ended.endings(), ["transport_disconnect_or_stall"]);
    assert_eq!(
        steps(&ended, "turn-0001", "call_0"),
        [Requested, Began, Detached, Finished]
    );
    assert_eq!(ended.turn(1).tools[0].outcome, "detached");
}

/// F-158: a failed call of an idempotent tool is repeated under its key; any other is not.
#[tokio::test(start_paused = true)]
async fn repeated_attempts_have_one_effect() {
    for (idempotent, tries, outcome) in [(true, 3, "finished"), (false, 1, "failed")] {
        let (cast, _) = cast(|request| match last_result(request) {
            None => calls("", "order", "{}"),
            Some(result) => result.into(),
        });
        let (tried, keys) = (
            Arc::new(AtomicU32::new(0)),
            Arc::new(Mutex::new(BTreeSet::new())),
        );
        let (attempts, seen) = (Arc::clone(&tried), Arc::clone(&keys));
        let tool = function(move |run: ToolRun| {
            let nth = attempts.fetch_add(1, Relaxed) + 1;
            assert_eq!(run.attempt.get(), nth);
            seen.lock().unwrap().insert(run.key);
            async move {
                if nth < 3 {
                    return Err(ToolFault::passing("the shop does not answer"));
                }
                Ok(ToolOutput::new("It is ordered."))
            }
        });
        let ended = Builder::new(&cast, vec![says(first())])
            .pipeline(declare(json!([
                { "name": "order", "description": "Orders.", "idempotent": idempotent }
            ])))
            .configure(run_by("order", tool))
            .hold()
            .await;
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.turn(1).tools[0].outcome, outcome);
        assert_eq!(tried.load(Relaxed), tries);
        assert_eq!(keys.lock().unwrap().len(), 1, "one effect, one key");
        let said = if idempotent {
            "It is ordered."
        } else {
            "the shop does not answer"
        };
        assert_eq!(ended.turn(1).agent_text_played, said);
    }
}

/// P8: whatever a tool does, its call ends, the model is told why, and the turn goes on.
#[tokio::test(start_paused = true)]
async fn a_broken_tool_breaks_no_turn() {
    #[track_caller]
    fn check(ended: &Ended, end: ToolStep, told: &str) {
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(steps(ended, "turn-0001", "call_0").last(), Some(&end));
        assert_eq!(ended.turn(1).agent_text, told);
    }
    async fn with(tool: Arc<dyn Tool>, arguments: &'static str) -> Ended {
        let (cast, _) = cast(move |request| match last_result(request) {
            None => calls("", "order", arguments),
            Some(result) => result.into(),
        });
        Builder::new(&cast, vec![says(first())])
            .pipeline(declare(json!([{
                "name": "order",
                "description": "Orders.",
                "parameters": {
                    "type": "object",
                    "properties": { "count": { "type": "integer" } },
                    "additionalProperties": false,
                },
                "timeout_ms": 700,
            }])))
            .configure(run_by("order", tool))
            .hold()
            .await
    }
    let slow = function(|_run| std::future::pending());
    let ended = with(slow, "{}").await;
    let told = "no result within 700 ms; it may or may not have taken effect";
    check(&ended, ToolStep::TimedOut, told);

    let crash = function(|_run| async { panic!("a bug in a tool") });
    let ended = with(crash, "{}").await;
    let told = "the tool crashed; it may or may not have taken effect";
    check(&ended, ToolStep::Failed, told);

    let never = || function(|_run| async { unreachable!("nothing valid was asked for") });
    let ended = with(never(), r#"{"count": "two", "colour": "red"}"#).await;
    let told = "invalid arguments: `colour` is unknown; there are count; `count` must be of type \
        integer, not string";
    check(&ended, ToolStep::Failed, told);
    assert!(!steps(&ended, "turn-0001", "call_0").contains(&ToolStep::Began));
}

/// Rounds are bounded: a model that only ever calls tools has to answer in the end.
#[tokio::test(start_paused = true)]
async fn a_model_cannot_call_tools_for_ever() {
    let (cast, asked) = cast(|request| {
        if request.tools.is_empty() {
            "Enough.".into()
        } else {
            calls("", "clock", "{}")
        }
    });
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(declare(json!([
            { "name": "clock", "description": "Says what time it is.", "effects": "none" }
        ])))
        .pipeline(|spec| {
            let llm = spec
                .nodes
                .iter_mut()
                .find(|node| node.kind == NodeKind::Llm)
                .unwrap();
            llm.config.insert("max_tool_rounds".to_owned(), json!(3));
        })
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, "Enough.");
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 4);
    // Providers number each answer's calls anew; the turn tells them apart.
    let ids: Vec<_> = ended
        .turn(1)
        .tools
        .iter()
        .map(|tool| tool.call.as_str())
        .collect();
    assert_eq!(ids, ["call_0", "call_0.2", "call_0.3"]);
    let times = asked[3]
        .messages
        .iter()
        .filter(|message| message.role == Role::Tool);
    assert!(times.clone().all(|time| time.content.ends_with('Z')));
    assert_eq!(times.count(), 3);
}

/// A pipeline that promises what nobody does is not run at all.
#[tokio::test(start_paused = true)]
async fn a_tool_that_nobody_runs_is_refused_before_the_session_opens() {
    let open = async |tool: Value| {
        let mut builder = Builder::new(&Cast::default(), Vec::new());
        builder = builder.pipeline(declare(json!([tool])));
        let runtime = builder.runtime().await;
        let error = builder.open(&runtime).await.err().expect("it is refused");
        assert!(matches!(error, OpenError::UnknownTool { .. }), "{error}");
        error.to_string()
    };
    assert_eq!(
        open(json!({ "name": "order", "description": "Orders." })).await,
        "node `llm`, tool `order`: it is not registered; known: clock, end_call"
    );
    let server = json!({ "http": { "url": "https://shop.example/order" } });
    assert_eq!(
        open(json!({ "name": "order", "description": "Orders.", "run": server })).await,
        "node `llm`, tool `order`: this runtime posts to no servers"
    );
}

/// A client that answers every call it is told of after `takes`, or not at all.
fn client_that_answers(builder: &mut Builder, takes: Option<Duration>) -> Arc<Mutex<Vec<String>>> {
    let (mut screen, client) = (builder.screen(), builder.client());
    let told = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&told);
    tokio::spawn(async move {
        while let Some(outgoing) = screen.recv().await {
            let Outgoing::ToolCall(call) = outgoing else {
                continue;
            };
            notes.lock().unwrap().push(call.arguments.to_string());
            let Some(takes) = takes else { continue };
            tokio::time::sleep(takes).await;
            let result = ClientResult {
                turn: call.turn,
                call: call.call,
                outcome: Ok("the table is booked".to_owned()),
            };
            let _hung_up = client.send(Ingress::ToolResult(Box::new(result)));
        }
    });
    told
}

fn booking(more: &Value) -> impl FnOnce(&mut PipelineSpec) {
    let mut tool = json!({
        "name": "book",
        "description": "Books a table.",
        "parameters": { "type": "object", "properties": { "n": { "type": "integer" } } },
        "run": "client",
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        tool[name] = value.clone();
    }
    declare(json!([tool]))
}

/// Issue 5, P8: a tool that the client runs is a tool as any: judged before anybody is told of it, written down,
/// answered within its time, and its result goes to the model that asked.
#[tokio::test(start_paused = true)]
async fn a_client_runs_a_tool_as_any_other_is_run() {
    let (cast, asked) = cast(|request| match last_result(request) {
        Some("the table is booked") => "It is booked.".into(),
        Some(_problem) => calls("", "book", r#"{"n": 2}"#),
        None => calls("Let me see.", "book", r#"{"n": "two"}"#),
    });
    let mut builder = Builder::new(&cast, vec![says(first())]).pipeline(booking(&json!({})));
    let told = client_that_answers(&mut builder, Some(Duration::from_millis(700)));
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    let turn = ended.turn(1);
    assert_eq!(turn.agent_text_played, "Let me see. It is booked.");
    assert_eq!(
        *told.lock().unwrap(),
        [r#"{"n": 2}"#],
        "what does not fit is the model's to mend, not the client's to see"
    );
    let outcomes: Vec<_> = turn.tools.iter().map(|tool| &*tool.outcome).collect();
    assert_eq!(outcomes, ["failed", "finished"]);
    assert_eq!(
        steps(&ended, "turn-0001", "call_0.2"),
        [Requested, Began, Finished]
    );
    assert_eq!(asked.lock().unwrap().len(), 3);
}

/// P7: what a client's tool comes to after the user has interrupted is known to the next turn, and is not asked
/// for again.
#[tokio::test(start_paused = true)]
async fn what_a_client_did_for_an_interrupted_turn_is_known_to_the_next() {
    let (mut cast, asked) = cast(|request| {
        let known = request.messages.iter();
        let known = known.filter(|message| message.role == Role::Tool);
        if known.clone().any(|it| it.content == "the table is booked") {
            return "It is booked.".into();
        }
        calls("I am booking it now, please wait a moment.", "book", "{}")
    });
    cast.tts = Arc::new(ScriptedTts::new("tts").real_time_factor(0.5));
    let said = vec![says(first()), says(over_reply(700))];
    let mut builder = Builder::new(&cast, said).pipeline(booking(&json!({})));
    let told = client_that_answers(&mut builder, Some(Duration::from_millis(2_600)));
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_eq!(told.lock().unwrap().len(), 1, "it is asked once");
    let finished = steps(&ended, "turn-0001", "call_0");
    assert_eq!(finished, [Requested, Began, Detached, Finished]);
    assert!(asked.lock().unwrap().len() >= 2);
    assert!(ended.turn(2).agent_text_played.ends_with("It is booked."));
}

/// P8, F-140: a client that says nothing costs a call its time and not the turn; and a line whose client runs no
/// tools says so at once.
#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_not_waited_for_without_end() {
    for has_client in [true, false] {
        let (cast, asked) = cast(|request| match last_result(request) {
            Some(_) => "I could not book it.".into(),
            None => calls("", "book", "{}"),
        });
        let mut builder = Builder::new(&cast, vec![says(first())])
            .pipeline(booking(&json!({ "timeout_ms": 2_000 })));
        if has_client {
            let _told = client_that_answers(&mut builder, None);
        }
        let ended = builder.hold().await;
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.turn(1).agent_text_played, "I could not book it.");
        let outcome = if has_client { "timed_out" } else { "failed" };
        assert_eq!(ended.turn(1).tools[0].outcome, outcome);
        let asked = asked.lock().unwrap();
        let says = if has_client {
            "no result within 2000 ms"
        } else {
            "not executed: the peer cannot take it"
        };
        let result = last_result(&asked[1]).unwrap();
        assert!(result.starts_with(says), "{result}");
    }
}

/// NF-013: a client does not answer for tools that others run.
#[tokio::test(start_paused = true)]
async fn a_client_ends_no_call_of_the_programs() {
    let (cast, _) = cast(|request| match last_result(request) {
        Some(result) => format!("It costs {result}.").as_str().into(),
        None => calls("", "price", "{}"),
    });
    let price = function(|_run: ToolRun| async move {
        tokio::time::sleep(Duration::from_millis(800)).await;
        Ok(ToolOutput::new("two euros"))
    });
    let mut builder = Builder::new(&cast, vec![says(first())])
        .pipeline(declare(json!([
            { "name": "price", "description": "Says what it costs." }
        ])))
        .configure(run_by("price", price));
    let client = builder.client();
    tokio::spawn(async move {
        loop {
            let result = ClientResult {
                turn: TurnNumber::FIRST,
                call: "call_0".into(),
                outcome: Ok("nothing".to_owned()),
            };
            if client.send(Ingress::ToolResult(Box::new(result))).is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let ended = builder.hold().await;
    assert_eq!(ended.turn(1).agent_text_played, "It costs two euros.");
}

/// Issue 5: a voice that its pipeline has write is never asked to speak; what it would say is shown, and
/// remembered as said.
#[tokio::test(start_paused = true)]
async fn a_pipeline_may_write_instead_of_speaking() {
    let cast = Cast::default();
    let said = vec![says(first()), says(Start::At(Duration::from_secs(6)))];
    let mut builder = Builder::new(&cast, said).pipeline(|spec| {
        let voice = spec.nodes.iter_mut().find(|it| it.kind == NodeKind::Tts);
        let voice = voice.expect("it has a voice");
        voice.config.insert("speaks".to_owned(), json!(false));
    });
    builder.script.reply_timeout = Duration::from_secs(3);
    let mut screen = builder.screen();
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit", "commit"]);
    assert_eq!(cast.tts.tally().calls, 0);
    let (mut shown, mut ends) = (String::new(), 0);
    while let Ok(outgoing) = screen.try_recv() {
        match outgoing {
            Outgoing::Text {
                turn: Some(_),
                text,
            } => shown.push_str(&text.text),
            Outgoing::AudioEnd(_) => ends += 1,
            Outgoing::Text { turn: None, .. }
            | Outgoing::Speech(_)
            | Outgoing::Voice { .. }
            | Outgoing::ToolCall(_) => {}
        }
    }
    assert!(shown.contains("Good day to you."), "{shown}");
    assert_eq!(ends, 2);
    for turn in 1..=2 {
        assert_eq!(ended.turn(turn).agent_text_played, REPLY);
    }
    assert!(ended.log.reasons_of(Signal::Degrade).is_empty());
}
