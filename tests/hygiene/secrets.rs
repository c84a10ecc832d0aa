//! Secrets are with whom they are for, and nowhere else (F-117, NF-011).
//!
//! Each secret that the programs can be given is a canary. All programs log all that they and their libraries have to
//! say, whoever is spoken to tells back what it was told, callers show what lets nobody in; then every word that any
//! of them wrote or answered is searched.

use std::{fs, path::Path};

use rspp_proto::spec::PipelineSpec;
use rspp_service::credentials::{Authority, Files};
use rspp_tests::{
    etcd::Cluster,
    web::{Asked, Reply, Web},
};
use rspp_websocket::{
    protocol::{Hello, ServerMessage},
    testing::{Client, typed},
};
use serde_json::{Value, json};

use crate::process::{Program, Running};

const LLM_KEY: &str = "canary-llm-4711-0815";
const TOOL_KEY: &str = "canary-tool-4711-0815";
const PASSWORD: &str = "canary-etcd-4711-0815";
const WRONG_PASSWORD: &str = "canary-etcd-wrong-0815";
const BAD_TOKEN: &str = "canary-token-bad-0815";
const S3_SECRET: &str = "canary-s3-secret-0815";
const S3_SESSION: &str = "canary-s3-session-0815";
const PASTED: &str = "sk-canary-pasted-0815";

/// What all of the above have in them.
const CANARY: &str = "canary-";
/// How every token of ours begins: `{"alg":`.
const TOKEN: &str = "eyJhbGciOi";

/// All that was said anywhere, by where.
#[derive(Default)]
struct Heard(Vec<(String, String)>);

impl Heard {
    fn hear(&mut self, whence: impl Into<String>, text: impl Into<String>) {
        self.0.push((whence.into(), text.into()));
    }

    /// Looks for a secret in everything; says where and how it is told.
    fn search(&self, what: &str, secret: &str) {
        assert!(
            secret.len() >= CANARY.len(),
            "{what} is a secret of its own"
        );
        for (whence, text) in &self.0 {
            if let Some(at) = text.find(secret) {
                let from = text[..at].rfind('\n').map_or(0, |it| it + 1);
                let line: String = text[from..].chars().take(600).collect();
                panic!("{whence} tells {what}: {line}");
            }
        }
    }
}

/// Answers in all ways that tell the key back, then well; asks for a tool when told to.
fn answer(asked: &Asked) -> Reply {
    let told = asked.headers.get("authorization").cloned();
    let told = told.unwrap_or_default();
    if asked.path == "/order" {
        return Reply::new(403, format!("who is {told}?")).header("x-told", told);
    }
    if asked.path.contains("/bucket") {
        let headers: Vec<_> = asked.headers.iter().map(|it| format!("{it:?}")).collect();
        let text = format!("<Error><Message>{}</Message></Error>", headers.join(" "));
        return Reply::new(403, text);
    }
    let request: Value = serde_json::from_str(&asked.body).unwrap_or_default();
    let last = request["messages"].as_array().and_then(|it| it.last());
    let words = last
        .and_then(|it| it["content"].as_str())
        .unwrap_or_default();
    let error = json!({"error": {"message": format!("what is {told}?"), "type": told}});
    let stream = |text: String| Reply::new(200, text).header("content-type", "text/event-stream");
    match words {
        "a refusal" => Reply::new(401, error.to_string()),
        "a failure" => Reply::new(500, format!("<h1>{told}</h1>")),
        "an error on the way" => stream(format!("data: {error}\n\n")),
        "nonsense" => stream(format!("data: {told}\n\n")),
        "an order" => {
            let call = json!({"choices": [{"index": 0, "delta": {"tool_calls": [
                {"index": 0, "id": "c1", "type": "function",
                 "function": {"name": "order", "arguments": "{}"}}]}}]});
            let end =
                json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]});
            stream(format!("data: {call}\n\ndata: {end}\n\ndata: [DONE]\n\n"))
        }
        _anything_else => Reply::completion(&["Good day."]),
    }
}

/// The built-in pipeline, with a tool that a server runs for whoever knows its secret.
fn pipeline(web: &Web) -> String {
    let mut spec = serde_json::to_value(PipelineSpec::simple()).unwrap();
    let nodes = spec["nodes"].as_array_mut().unwrap();
    let llm = nodes.iter_mut().find(|node| node["kind"] == "llm").unwrap();
    llm["tools"] = json!([{
        "name": "order",
        "description": "Orders.",
        "parameters": {"type": "object", "properties": {}},
        "run": {"http": {"url": format!("{}/order", web.url), "credential": "env://TOOL_KEY"}},
    }]);
    spec["observe"] = json!({"debug": true, "metrics_every_ms": 100});
    spec["providers"]["calls"] = json!({"attempts_per_provider": 1});
    spec["providers"]["circuit"] = json!({"least_calls": 100, "window": 200});
    spec.to_string()
}

/// Lines of PEM, each of which is secret.
fn lines_of(key: &Path) -> Vec<String> {
    let text = fs::read_to_string(key).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("-----"));
    lines.map(str::to_owned).collect()
}

/// Whoever asks as `files` says, at `plane`.
struct Operator {
    environment: Vec<(&'static str, String)>,
}

impl Operator {
    fn new(plane: &Running, authority: &Authority, files: &Files) -> Self {
        let at = plane.at("grpc").port();
        Self {
            environment: vec![
                ("RSPP_CONTROL_PLANE", format!("https://localhost:{at}")),
                ("RSPP_TLS_CA", authority.certificate().display().to_string()),
                ("RSPP_TLS_CERT", files.certificate.display().to_string()),
                ("RSPP_TLS_KEY", files.key.display().to_string()),
                ("RSPP_LOG", "trace".to_owned()),
            ],
        }
    }

    /// Runs `rspp`; what it says to people is heard, and its results too unless they are meant to be secret.
    fn run(&self, heard: &mut Heard, arguments: &[&str], is_result_secret: bool) -> String {
        let environment: Vec<_> = self.environment.iter().map(|(k, v)| (*k, &**v)).collect();
        let said = Program::CommandLine.run(arguments, &environment);
        heard.hear(format!("rspp {arguments:?}, its log"), said.err.clone());
        if !is_result_secret {
            heard.hear(format!("rspp {arguments:?}"), said.out.clone());
        }
        assert!(said.status.success(), "{arguments:?}: {}", said.err);
        said.out
    }
}

/// F-117, NF-011: with logs of everything and debug events on, a fleet of real programs tells nobody a key of a
/// model or tool, a private key, the seed that tokens are signed with, a session's token, a store's password, or
/// what a caller shows at a door: in no log, answer, error, status, measurement or event. Servers that tell back
/// what they were told change nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_tells_everything_tells_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let mut heard = Heard::default();
    let web = Web::start(answer).await;

    let etcd = locked().await;
    let state = dir.path().join("plane");
    let state_name = state.display().to_string();
    let password = dir.path().join("password");
    fs::write(&password, PASSWORD).unwrap();
    let store = format!(
        "store.etcd={{endpoints: [{}], user: root, password_file: {}}}",
        etcd.endpoints()[0],
        password.display()
    );
    let set = [
        "--dev",
        &state_name,
        "--set",
        "listen.grpc=127.0.0.1:0",
        "--set",
        "listen.health=127.0.0.1:0",
        "--set",
        "log={filter: trace, format: json}",
        "--set",
        &store,
    ];
    let plane = Running::start(Program::ControlPlane, dir.path(), "plane", &set, &[]).await;
    plane.ready().await;
    let authority = Authority::open(&state, "rspp.local").unwrap();
    let admin = authority.person("admin", "admin").unwrap();
    let operator = Operator::new(&plane, &authority, &admin);

    let file = dir.path().join("pipeline.json");
    fs::write(&file, pipeline(&web)).unwrap();
    let file = file.display().to_string();
    operator.run(&mut heard, &["pipeline", "publish", &file, "-vv"], false);
    operator.run(&mut heard, &["rollout", "set", "simple-1"], false);

    let own = authority.runtime("runtime-1").unwrap();
    let config = dir.path().join("runtime.json");
    let settings = json!({
        "name": "runtime-1",
        "listen": {"calls": "127.0.0.1:0", "health": "127.0.0.1:0"},
        "control_plane": {
            "addresses": [format!("https://localhost:{}", plane.at("grpc").port())],
            "authorities": authority.certificate(),
            "certificate": own.certificate,
            "key": own.key,
        },
        "providers": {
            "scripted": true,
            "llm": "openai",
            "openai": {"url": format!("{}/v1", web.url), "model": "m", "api_key": "env://LLM_KEY"},
        },
        "drain": {"deadline": "2s"},
        "log": {"filter": "trace"},
    });
    fs::write(&config, settings.to_string()).unwrap();
    let config = config.display().to_string();
    let secrets = [("LLM_KEY", LLM_KEY), ("TOOL_KEY", TOOL_KEY)];
    let set = ["--config", &*config];
    let runtime = Running::start(Program::Runtime, dir.path(), "runtime", &set, &secrets).await;
    runtime.ready().await;

    // Callers whom nobody knows, in each way to say who one is.
    let bad = [
        format!("Bearer {BAD_TOKEN}"),
        format!("rspp.token.{BAD_TOKEN}"),
    ];
    let connect = |protocols: Vec<String>, headers: Vec<(&'static str, String)>| {
        let at = runtime.at("calls");
        async move {
            let protocols: Vec<&str> = protocols.iter().map(String::as_str).collect();
            let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, &**v)).collect();
            Client::connect(at, &protocols, &headers).await
        }
    };
    let ours = || "rspp.v1.json".to_owned();
    for (protocols, headers) in [
        (vec![ours()], vec![("authorization", bad[0].clone())]),
        (vec![ours(), bad[1].clone()], vec![]),
    ] {
        let refused = connect(protocols, headers)
            .await
            .err()
            .expect("nobody comes in");
        heard.hear("a refusal", format!("{refused:?}"));
    }

    // One who is let in.
    let arguments = ["session", "token", "call-1", "--tenant", "acme", "-vv"];
    let token = operator.run(&mut heard, &arguments, true);
    let token = token.trim();
    assert!(token.starts_with(TOKEN), "{token}");
    let shown = vec![("authorization", format!("Bearer {token}"))];
    let mut client = connect(vec![ours()], shown.clone()).await.unwrap();
    let hello = Hello {
        events: true,
        ..Hello::default()
    };
    let resume = client.hello(hello).await.key;
    for words in [
        "a refusal",
        "a failure",
        "an error on the way",
        "nonsense",
        "an order",
        "hello",
    ] {
        client.say(typed(words)).await;
        let came = client
            .until(|message| matches!(message, ServerMessage::Turn(_)))
            .await;
        let came: Vec<_> = came
            .iter()
            .map(|it| serde_json::to_string(it).unwrap())
            .collect();
        heard.hear(format!("the client, about {words}"), came.join("\n"));
    }
    // A token lets in once.
    let again = connect(vec![ours()], shown).await;
    heard.hear("a token used twice", format!("{:?}", again.err()));
    for (running, name) in [(&plane, "the control plane"), (&runtime, "the runtime")] {
        for path in ["/status", "/metrics", "/readyz", "/livez", "/nowhere"] {
            heard.hear(format!("{path} of {name}"), running.get(path).await);
        }
    }
    let known = ["session", "status", "call-1", "--tenant", "acme", "--json"];
    operator.run(&mut heard, &known, false);
    for arguments in [
        &["session", "route", "call-2", "--tenant", "acme", "-vv"][..],
        &["session", "list", "--json"],
        &["node", "list", "--json"],
        &["key", "list", "--json"],
        &["audit", "list", "--json"],
    ] {
        operator.run(&mut heard, arguments, false);
    }
    client.bye().await;

    // Whoever asks with a token that is none, or speaks no TLS.
    let shown = dir.path().join("token");
    fs::write(&shown, BAD_TOKEN).unwrap();
    let shown = shown.display().to_string();
    let said = Program::CommandLine.run(
        &["pipeline", "list", "--token-file", &shown, "-vv"],
        &operator.environment[..2]
            .iter()
            .map(|(k, v)| (*k, &**v))
            .chain([("RSPP_LOG", "trace")])
            .collect::<Vec<_>>(),
    );
    heard.hear(
        "a bad token, its answer",
        format!("{}{}", said.out, said.err),
    );

    heard.hear("the runtime's log", runtime.end().await);
    heard.hear("the control plane's log", plane.end().await);
    let asked = web.asked();
    let told = |path: &str, key: &str| {
        let mut asked = asked.iter().filter(|it| it.path == path);
        let expected = format!("Bearer {key}");
        asked.any(|it| it.headers.get("authorization") == Some(&expected))
    };
    assert!(told("/v1/chat/completions", LLM_KEY), "the canary flew");
    assert!(told("/order", TOOL_KEY), "and so did the tool's");
    let said: usize = heard.0.iter().map(|(_, text)| text.len()).sum();
    assert!(said > 100_000, "only {said} bytes were said");

    heard.search("a canary", CANARY);
    heard.search("a token", TOKEN);
    heard.search("the token", token);
    heard.search("the key to come back with", &resume);
    for key in [
        &own.key,
        &admin.key,
        &state.join("control-plane.key"),
        &state.join("authority.key"),
    ] {
        for line in lines_of(key) {
            heard.search(&format!("a line of {}", key.display()), &line);
        }
    }
    let seed = fs::read_to_string(state.join("k1.seed")).unwrap();
    heard.search("the signing key", seed.trim());
}

/// A cluster of one member that lets in only whoever knows the password.
async fn locked() -> Cluster {
    let cluster = Cluster::start(1).await;
    let user = json!({"name": "root", "password": PASSWORD});
    cluster.post(0, "/v3/auth/user/add", &user).await;
    let role = json!({"user": "root", "role": "root"});
    cluster
        .post(0, "/v3/auth/role/add", &json!({"name": "root"}))
        .await;
    cluster.post(0, "/v3/auth/user/grant", &role).await;
    cluster.post(0, "/v3/auth/enable", &json!({})).await;
    cluster
}

/// F-117, NF-011: what is refused is refused without being told back: a key that was pasted where its place belongs,
/// a file that holds no key, a wrong password, an archive that tells its visitor's credentials back.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_not_told_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut heard = Heard::default();
    let web = Web::start(answer).await;
    let mut run = |program: Program, arguments: &[&str], environment: &[(&str, &str)]| {
        let said = program.run(arguments, environment);
        assert!(!said.status.success(), "{arguments:?}: {said:?}");
        heard.hear(
            format!("{program:?} {arguments:?}"),
            format!("{}{}", said.out, said.err),
        );
    };

    // A key in the place of a reference: in a flag, a file, the environment.
    let pasted = format!("providers.openai.api_key={PASTED}");
    let server = [
        "--set",
        "providers.openai.url=http://a/v1",
        "--set",
        "providers.openai.model=m",
    ];
    let set = [
        "--set",
        "providers.scripted=true",
        "--set",
        "log.filter=trace",
    ];
    let flags: Vec<&str> = set
        .into_iter()
        .chain(server)
        .chain(["--set", &pasted])
        .collect();
    run(Program::Runtime, &flags, &[]);
    let printed: Vec<&str> = flags.iter().copied().chain(["--print-config"]).collect();
    run(Program::Runtime, &printed, &[]);
    let file = dir.path().join("runtime.yaml");
    fs::write(
        &file,
        format!("providers:\n  openai:\n    api_key: {PASTED}\n"),
    )
    .unwrap();
    let file = file.display().to_string();
    run(Program::Runtime, &["--config", &file], &[]);
    let environment = [("RSPP_RUNTIME_PROVIDERS__OPENAI__API_KEY", PASTED)];
    run(Program::Runtime, &["--print-config"], &environment);
    let state = dir.path().join("fleet");
    let state_name = state.display().to_string();
    let given = [
        "--llm-url",
        "http://a/v1",
        "--llm-model",
        "m",
        "--llm-api-key",
        PASTED,
    ];
    for command in [
        &["up"][..],
        &["up", "--nodes", "1", "--state", &state_name],
        &["loopback", "--say", "hello"],
    ] {
        let arguments: Vec<&str> = command.iter().copied().chain(given).collect();
        run(Program::CommandLine, &arguments, &[("RSPP_LOG", "trace")]);
    }
    assert!(!state.exists(), "nothing was begun, and nothing written");

    // Files that hold something else than they should.
    let seed = dir.path().join("seed");
    fs::write(&seed, PASTED).unwrap();
    let keys = format!("keys=[{{id: k1, file: {}}}]", seed.display());
    run(Program::ControlPlane, &["--set", &keys], &[]);

    // A wrong password, on a cluster that asks for one.
    let etcd = locked().await;
    let password = dir.path().join("password");
    fs::write(&password, WRONG_PASSWORD).unwrap();
    fs::write(&seed, "07".repeat(32)).unwrap();
    let store = format!(
        "store.etcd={{endpoints: [{}], user: root, password_file: {}}}",
        etcd.endpoints()[0],
        password.display()
    );
    let set = ["--set", &keys, "--set", &store, "--set", "log.filter=trace"];
    run(Program::ControlPlane, &set, &[]);

    // An archive that tells back all that it was told.
    let place = format!("{}/bucket/calls", web.url);
    let credentials = [
        ("AWS_ACCESS_KEY_ID", "AKIAHYGIENE"),
        ("AWS_SECRET_ACCESS_KEY", S3_SECRET),
        ("AWS_SESSION_TOKEN", S3_SESSION),
        ("RSPP_LOG", "trace"),
    ];
    run(
        Program::CommandLine,
        &["timeline", "list", &place, "-vv"],
        &credentials,
    );
    let out = dir.path().join("call.rspp").display().to_string();
    let fetch = [
        "timeline",
        "fetch",
        &place,
        "acme/call/1-1",
        "--out",
        &out,
        "-vv",
    ];
    run(Program::CommandLine, &fetch, &credentials);
    let asked = web.asked();
    let shown = asked.iter().any(|it| it.text.contains(S3_SESSION));
    assert!(shown, "the canary flew: {asked:?}");
    let signature = asked.iter().find_map(|it| {
        let shown = it.headers.get("authorization")?;
        shown.split("Signature=").nth(1).map(str::to_owned)
    });
    heard.search("a signature", &signature.expect("it was signed"));

    heard.search("a canary", CANARY);
}
