//! The built-in template, a server's address and its key: nothing else is set (F-079).

use std::time::Duration;

use rspp_proto::{abi::Signal, spec::PipelineSpec};
use rspp_tests::{
    call::tone,
    web::{Asked, Reply, Web},
};
use rspp_websocket::{
    protocol::{Hello, ServerMessage},
    testing::Client,
};
use serde_json::json;
use tokio::time::Instant;

use crate::process::{Program, Running};

const KEY: &str = "canary-of-the-template";

/// A server of OpenAI's protocol that serves nobody without its key.
async fn server() -> Web {
    Web::start(|asked: &Asked| {
        let key = asked.headers.get("authorization").map(String::as_str);
        if key != Some(&format!("Bearer {KEY}")) {
            let error = json!({"error": {"message": "no key", "type": "invalid_request_error"}});
            return Reply::new(401, error.to_string());
        }
        assert_eq!(
            (&*asked.method, &*asked.path),
            ("POST", "/v1/chat/completions")
        );
        Reply::completion(&["Good day", " to you."])
    })
    .await
}

async fn runtime(dir: &std::path::Path, web: &Web, key: Option<&str>) -> Running {
    let settings = [
        "listen.calls=127.0.0.1:0".to_owned(),
        "listen.health=127.0.0.1:0".to_owned(),
        // Recognition and synthesis: who has no models does without.
        "providers.scripted=true".to_owned(),
        "providers.llm=openai".to_owned(),
        format!("providers.openai.url={}/v1", web.url),
        "providers.openai.model=any".to_owned(),
        "providers.openai.api_key=env://LLM_API_KEY".to_owned(),
    ];
    let arguments: Vec<&str> = settings.iter().flat_map(|it| ["--set", it]).collect();
    let environment = key.map(|key| ("LLM_API_KEY", key));
    let environment: Vec<_> = environment.into_iter().collect();
    let name = if key.is_some() { "keyed" } else { "keyless" };
    Running::start(Program::Runtime, dir, name, &arguments, &environment).await
}

/// Speaks for a second, is silent, and takes what comes until the turn is over.
async fn one_turn(running: &Running) -> (Vec<(Instant, ServerMessage)>, Client) {
    let hello = Hello {
        events: true,
        ..Hello::default()
    };
    let mut client = Client::begin(running.at("calls"), hello).await;
    client.speak_slowly(&tone(Duration::from_secs(1))).await;
    client.speak_slowly(&vec![0; 16_000 * 2]).await;
    let mut came = Vec::new();
    while let Some(message) = client.next().await {
        let is_last = matches!(message, ServerMessage::Turn(_));
        came.push((Instant::now(), message));
        if is_last {
            break;
        }
    }
    (came, client)
}

/// F-079: with the built-in template, a server's address and its key, and nothing else set, a spoken sentence
/// becomes a final transcript, an answer of the server that wants the key, and its speech, within the turn's
/// budget; without the key it becomes a turn that says why not, and nothing is heard.
#[tokio::test(flavor = "multi_thread")]
async fn the_template_and_a_key_are_enough() {
    let dir = tempfile::tempdir().unwrap();
    let web = server().await;
    let running = runtime(dir.path(), &web, Some(KEY)).await;
    let (came, mut client) = one_turn(&running).await;
    let told = || format!("{came:?}\n{}", running.log());
    let at = |is_it: &dyn Fn(&ServerMessage) -> bool| {
        let found = came.iter().find(|(_, message)| is_it(message));
        found.map(|(at, _)| *at)
    };
    let heard = at(
        &|it| matches!(it, ServerMessage::Text(it) if it.is_final && &*it.text == "utterance 1"),
    );
    let audio = at(&|it| matches!(it, ServerMessage::Audio(_)));
    let opened = at(&|it| matches!(it, ServerMessage::Signal(it) if it.signal == Signal::TurnOpen));
    let (Some(_), Some(audio), Some(opened)) = (heard, audio, opened) else {
        panic!("no transcript, turn or speech: {}", told());
    };
    let budget = PipelineSpec::simple()
        .budgets
        .turn_budget_ms
        .unwrap_or(2_000);
    let took = audio.saturating_duration_since(opened);
    assert!(took < Duration::from_millis(budget), "{took:?}: {}", told());
    let Some((_, ServerMessage::Turn(turn))) = came.last() else {
        panic!("no turn: {}", told())
    };
    assert_eq!(turn.outcome, "commit", "{}", told());
    assert_eq!(turn.heard_text.trim(), "Good day to you.");
    client.bye().await;
    assert_eq!(web.asked().len(), 1);

    let running = runtime(dir.path(), &web, None).await;
    let (came, _client) = one_turn(&running).await;
    let told = || format!("{came:?}\n{}", running.log());
    let Some((_, ServerMessage::Turn(turn))) = came.last() else {
        panic!("no turn: {}", told())
    };
    assert_eq!(
        turn.reason.as_deref(),
        Some("provider_failure"),
        "{}",
        told()
    );
    let speaks = |(_, it): &(Instant, ServerMessage)| matches!(it, ServerMessage::Audio(_));
    assert!(!came.iter().any(speaks), "{}", told());
    assert_eq!(web.asked().len(), 1, "nobody is asked without the key");
}

/// F-079: the same with the local models, from one command.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the local models: `rspp models pull`"]
async fn the_template_a_key_and_the_local_models_are_enough() {
    let web = server().await;
    let url = format!("{}/v1", web.url);
    let report = tempfile::tempdir().unwrap();
    let report = report.path().join("report.json");
    let mut command = tokio::process::Command::new(Program::CommandLine.path());
    command
        .args([
            "loopback",
            "--no-pull",
            "--say",
            "Good morning, who are you?",
        ])
        .args(["--llm-url", &url, "--llm-model", "any"])
        .args(["--llm-api-key", "env://LLM_API_KEY", "--json", "--report"])
        .arg(&report)
        .env("LLM_API_KEY", KEY);
    let ran = command.output().await.unwrap();
    let told = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success(), "{told}");
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    let turn = &report["turns"][0];
    assert_eq!(turn["outcome"], "commit", "{report}");
    let said = turn["user_text"].as_str().unwrap().to_lowercase();
    assert!(said.contains("who are you"), "{said}");
    assert_eq!(
        turn["agent_text_played"].as_str().unwrap().trim(),
        "Good day to you."
    );
    assert_eq!(web.asked().len(), 1);
}
