//! `rspp up`, as a person and a program find it.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose ground gives way should fail"
)]

use std::{net::SocketAddr, process::Stdio, time::Duration};

use rspp_proto::spec::PipelineSpec;
use rspp_websocket::{
    protocol::{Hello, ServerMessage},
    testing::{Client, sound, typed},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(30);

fn rspp(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rspp"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_remove("RSPP_LOG")
        .kill_on_drop(true);
    command
}

/// Starts it on a free port; its one line of output is the address.
async fn up() -> (Child, SocketAddr) {
    up_with(&[]).await
}

async fn up_with(more: &[&str]) -> (Child, SocketAddr) {
    let arguments = [&["up", "--scripted", "--port", "0"], more].concat();
    let mut process = rspp(&arguments).spawn().unwrap();
    let mut out = BufReader::new(process.stdout.take().unwrap()).lines();
    let line = timeout(PATIENCE, out.next_line()).await;
    let line = line.expect("an address is printed").unwrap().unwrap();
    let port = line
        .strip_prefix("http://localhost:")
        .and_then(|rest| rest.strip_suffix('/'))
        .and_then(|port| port.parse::<u16>().ok());
    let port = port.unwrap_or_else(|| panic!("no address: {line}"));
    (process, ([127, 0, 0, 1], port).into())
}

/// The head and the body of an answer.
async fn get(address: SocketAddr, path: &str, headers: &str) -> (String, String) {
    ask(address, "GET", path, headers).await
}

async fn ask(address: SocketAddr, how: &str, path: &str, headers: &str) -> (String, String) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("{how} {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// F-125: one command, one address; the page and a client of one's own; Ctrl-C ends it in order.
#[tokio::test]
async fn one_address_serves_page_and_clients_until_ctrl_c() {
    let (mut process, address) = up().await;
    let (head, body) = get(address, "/", "Host: localhost\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("content-security-policy"), "{head}");
    assert!(body.contains("<button id=\"call\""), "{body}");

    let mut client = Client::begin(address, Hello::default()).await;
    let (_, body) = get(address, "/v1/observe", "Host: localhost\r\n").await;
    let now: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(now["sessions"], 1);
    assert_eq!(now["server"]["sockets"], 1);
    let session = client.ready.clone().unwrap().session;
    let actors = now["actors"].as_array().unwrap();
    let is_of_session = |actor: &&Value| {
        let path = actor["path"].as_str().unwrap();
        path.contains(session.as_str())
    };
    assert!(actors.iter().filter(is_of_session).count() >= 4, "{body}");

    client.say(typed("hello")).await;
    let came = client
        .until(|message| matches!(message, ServerMessage::Audio(_)))
        .await;
    assert!(!sound(&came).is_empty());

    // In the middle of a reply: it is finished, and said to be the last.
    let pid = process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    kill_process(pid.unwrap(), Signal::INT).unwrap();
    let came = client.until(|_| false).await;
    let draining = |it: &ServerMessage| matches!(it, ServerMessage::Draining(_));
    let end = |it: &ServerMessage| matches!(it, ServerMessage::End(_));
    assert!(
        came.iter().any(draining) && came.iter().any(end),
        "{came:?}"
    );
    let status = timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}

const LOCAL: &str = "Host: localhost\r\n";

async fn says_hello(client: &mut Client) {
    client.say(typed("hello")).await;
    let is_sound = |message: &ServerMessage| matches!(message, ServerMessage::Audio(_));
    assert!(!sound(&client.until(is_sound).await).is_empty());
}

/// F-068, F-076, F-081, F-125: while it runs an operator asks for the pipeline that a session really runs, with
/// what a policy put there; for its debug events, for a while; and for latencies as metrics backends do.
#[tokio::test]
async fn an_operator_looks_at_a_session_that_runs() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = folder.path().join("pipeline.yaml");
    let template = rspp_proto::spec::PipelineSpec::simple_template();
    std::fs::write(
        &pipeline,
        format!("{template}\nobserve: {{ metrics_every_ms: 1000 }}\n"),
    )
    .unwrap();
    let policy = folder.path().join("policy.yaml");
    let text = "schema: rspp.policy.bundle.v1\npolicy_resolution_snapshot: policy/1\n\
                allowed_adaptive_actions: [retry]\ninsert_nodes:\n  - { after: segmenter, carries: text, \
                node: { id: guard, kind: guard, config: { terms: [acme] } } }\n";
    std::fs::write(&policy, text).unwrap();
    let files = [&pipeline, &policy].map(|path| path.display().to_string());
    let (_process, address) = up_with(&["--pipeline", &files[0], "--policy", &files[1]]).await;
    let mut client = Client::begin(address, Hello::default()).await;
    let session = client.ready.clone().unwrap().session;
    let of_session = |what: &str| format!("/v1/observe/sessions/{session}/{what}");

    let (_, body) = get(address, "/v1/observe", LOCAL).await;
    let now: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(now["session_ids"][0], session.as_str());
    let (_, body) = get(address, &of_session("pipeline"), LOCAL).await;
    let runs: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(runs["session_id"], session.as_str());
    let nodes = runs["graph"]["nodes"].as_array().unwrap();
    let guard = nodes.iter().find(|node| node["id"] == "guard").unwrap();
    assert_eq!(guard["inserted_by_policy"], true);
    assert_eq!(runs["policy"]["node_bindings"]["llm"][0], "scripted");
    assert!(runs["policy"]["provenance"]["budgets"]["source"].is_string());

    let path = of_session("capture?for_ms=30000&events=40");
    let capture = tokio::spawn(async move { ask(address, "POST", &path, LOCAL).await });
    while !capture.is_finished() {
        says_hello(&mut client).await;
    }
    let (head, body) = capture.await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let lines = body.lines().filter(|line| line.starts_with('{'));
    let lines: Vec<Value> = lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["ended"], &last["events"]),
        (&"events".into(), &40.into())
    );
    assert_eq!(lines.len(), 41, "{body}");
    assert!(
        lines[..40]
            .iter()
            .all(|line| line["envelope"]["session_id"] == session.as_str()
                || line["session_id"] == session.as_str()),
        "{body}"
    );

    let (head, _) = ask(address, "POST", &of_session("capture?sometimes=1"), LOCAL).await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    let (head, _) = get(address, "/v1/observe/sessions/other/pipeline", LOCAL).await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");

    // A call's own times are there once it has ended and been counted.
    let told = |body: &str| {
        let metrics = ["node_latency_ms", "edge_latency_ms", "provider_rtt_ms"];
        metrics.iter().all(|metric| {
            ["0.5", "0.95", "0.99"].iter().all(|quantile| {
                body.lines().any(|line| {
                    line.starts_with(&format!("{metric}{{pipeline_version=\""))
                        && line.contains("node_id=\"llm\"")
                        && line.contains("provider_id=\"scripted\"")
                        && line.contains(&format!("quantile=\"{quantile}\"}}"))
                })
            })
        })
    };
    let mut body = String::new();
    for _ in 0..20 {
        let head;
        (head, body) = get(address, "/metrics", LOCAL).await;
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");
        if told(&body) {
            break;
        }
        says_hello(&mut client).await;
    }
    assert!(told(&body), "{body}");
    drop(client);
}

/// Other people's pages may not look at what runs here, under no name.
#[tokio::test]
async fn pages_from_elsewhere_do_not_look_in() {
    let (_process, address) = up().await;
    for headers in [
        "Host: localhost\r\nOrigin: https://evil.example\r\n",
        "Host: evil.example\r\n",
    ] {
        let capture = "/v1/observe/sessions/any/capture";
        for (how, path) in [
            ("GET", "/v1/observe"),
            ("GET", "/metrics"),
            ("POST", capture),
        ] {
            let (head, _) = ask(address, how, path, headers).await;
            assert!(head.starts_with("HTTP/1.1 403"), "{head}");
        }
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_with_the_way_out() {
    let taken = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = rspp(&["up", "--scripted", "--port", &port]).output();
    let output = timeout(PATIENCE, output).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("--port"), "{told}");
}

/// Issue 5: a fleet's pipeline may come by the standard input, which is read once and kept for its runtimes; what
/// is not installed is told with how to build it.
#[tokio::test]
async fn a_fleet_takes_its_pipeline_from_the_standard_input() {
    let place = tempfile::tempdir().unwrap();
    let program = place.path().join("rspp");
    std::fs::copy(env!("CARGO_BIN_EXE_rspp"), &program).unwrap();
    let spec = PipelineSpec::simple_template().as_bytes();
    let run = async || {
        let mut process = Command::new(&program)
            .args(["up", "--scripted", "--nodes", "1", "--pipeline", "-"])
            .current_dir(place.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut to = process.stdin.take().unwrap();
        to.write_all(spec).await.unwrap();
        drop(to);
        let output = timeout(PATIENCE, process.wait_with_output()).await;
        let output = output.expect("it ends").unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let told = run().await;
    assert!(told.contains("rspp-control-plane is not there"), "{told}");
    assert!(told.contains("cargo build "), "{told}");
    // Programs of those names that end at once.
    for name in ["rspp-control-plane", "rspp-runtime"] {
        std::os::unix::fs::symlink("/bin/false", place.path().join(name)).unwrap();
    }
    let told = run().await;
    assert!(told.contains("control-plane"), "{told}");
    let kept = std::fs::read(place.path().join(".rspp/pipeline.yaml")).unwrap();
    assert_eq!(kept, spec, "{told}");
}
