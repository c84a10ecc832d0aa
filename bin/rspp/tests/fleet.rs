//! `rspp up --nodes`, as a person finds it: processes, one of which is killed, and the commands that look
//! at them.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose ground gives way should fail"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use rspp_websocket::{
    protocol::{ClientMessage, Hello, ServerMessage, Typed},
    testing::Client,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// How long anything here may take, on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(90);

/// The programs that this one starts: a test of one package does not build those of others.
fn build_the_others() {
    let here = Path::new(env!("CARGO_BIN_EXE_rspp")).parent().unwrap();
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.args(["build", "--locked", "--offline", "--quiet"]);
    cargo.args(["-p", "rspp-control-plane", "-p", "rspp-runtime"]);
    if here.ends_with("release") {
        cargo.arg("--release");
    }
    // Below the directory of targets that this test came from.
    cargo.arg("--target-dir").arg(here.parent().unwrap());
    let built = cargo.stdin(Stdio::null()).status().unwrap();
    assert!(built.success());
}

struct Up {
    process: Child,
    /// By name.
    members: BTreeMap<String, Pid>,
    environment: BTreeMap<String, String>,
}

impl Up {
    async fn start(state: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_rspp"))
            .args(["up", "--nodes", "2", "--scripted", "--state"])
            .arg(state)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env_remove("RSPP_LOG")
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (mut members, mut environment) = (BTreeMap::new(), BTreeMap::new());
        loop {
            let line = timeout(PATIENCE, lines.next_line()).await;
            let line = line.expect("it says where all are").unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended: {}", logs(state)));
            let words: Vec<&str> = line.split_whitespace().collect();
            match &*words {
                ["export", set @ ..] => {
                    let pairs = set.iter().map(|it| it.split_once('=').unwrap());
                    environment.extend(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())));
                }
                [name, pid, _at, _health, _log] if pid.parse::<i32>().is_ok() => {
                    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
                    members.insert((*name).to_owned(), pid);
                }
                ["Ctrl-C", ..] => break,
                _a_heading => {}
            }
        }
        Self {
            process,
            members,
            environment,
        }
    }

    /// What a command says of the fleet.
    async fn ask(&self, arguments: &[&str]) -> Output {
        let asked = Command::new(env!("CARGO_BIN_EXE_rspp"))
            .args(arguments)
            .envs(&self.environment)
            .stdin(Stdio::null())
            .output();
        timeout(PATIENCE, asked).await.unwrap().unwrap()
    }

    async fn said(&self, arguments: &[&str]) -> String {
        let Output {
            status,
            stdout,
            stderr,
        } = self.ask(arguments).await;
        let said = String::from_utf8_lossy(&stdout).into_owned();
        assert!(
            status.success(),
            "{arguments:?}: {said}{}",
            String::from_utf8_lossy(&stderr)
        );
        said
    }

    /// A client at whoever holds the session, or is to.
    async fn connect(&self, session: &str) -> (String, Client) {
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < PATIENCE, "nobody takes the session");
            let asked = ["session", "route", session, "--tenant", "acme", "--json"];
            let route = self.ask(&asked).await;
            if let Ok(route) = serde_json::from_slice::<Value>(&route.stdout) {
                let text = |key: &str| route[key].as_str().unwrap().to_owned();
                let endpoint = text("endpoint");
                let at = endpoint.strip_prefix("ws://").unwrap();
                let at = at.split('/').next().unwrap().parse().unwrap();
                let token = format!("rspp.token.{}", text("token"));
                if let Ok(mut client) = Client::connect(at, &["rspp.v1.json", &token], &[]).await {
                    let hello = Hello {
                        events: true,
                        ..Hello::default()
                    };
                    client.say(ClientMessage::Hello(hello)).await;
                    if let Some(ServerMessage::Ready(_)) = client.next().await {
                        return (text("runtime"), client);
                    }
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Its members are its own to end; killed, it could not.
        if let Some(pid) = self.process.id() {
            let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            let _it_may_be_gone = kill_process(pid, Signal::INT);
            for _ in 0..300 {
                if self.process.try_wait().is_ok_and(|ended| ended.is_some()) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

fn logs(state: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(state).unwrap().flatten() {
        if entry.path().extension().is_some_and(|it| it == "log") {
            all.push_str(&fs::read_to_string(entry.path()).unwrap_or_default());
        }
    }
    all
}

async fn say(client: &mut Client, text: &str) {
    let text = text.to_owned();
    let typed = ClientMessage::Text(Typed { text, key: None });
    client.say(typed).await;
}

async fn reply(client: &mut Client) -> (String, String) {
    let is_over = |message: &ServerMessage| matches!(message, ServerMessage::Turn(_));
    match client.until(is_over).await.pop() {
        Some(ServerMessage::Turn(turn)) => (turn.outcome.clone(), turn.heard_text.clone()),
        other => panic!("no turn: {other:?}, {:?}", client.closed),
    }
}

/// Issue 4, P25, F-095: one command starts a fleet of processes; a runtime that is killed in the middle of
/// a reply loses no conversation; the trail of what happened is whole; Ctrl-C leaves nothing running.
#[tokio::test]
async fn a_fleet_on_one_machine_loses_a_runtime_and_no_conversation() {
    build_the_others();
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path()).await;
    let names: Vec<&str> = up.members.keys().map(String::as_str).collect();
    assert_eq!(names, ["control-plane", "runtime-1", "runtime-2"]);
    let nodes = up.said(&["node", "list"]).await;
    assert_eq!(nodes.matches("serving").count(), 2, "{nodes}");

    let (first, mut client) = up.connect("ada").await;
    say(&mut client, "My name is Ada.").await;
    assert_eq!(reply(&mut client).await.0, "commit");
    let sessions = up.said(&["session", "list"]).await;
    assert!(sessions.contains("ada") && sessions.contains(&first));
    say(&mut client, "Tell me a long story.").await;
    client
        .until(|message| matches!(message, ServerMessage::Audio(_)))
        .await;
    kill_process(up.members[&first], Signal::KILL).unwrap();
    drop(client);

    let (second, mut client) = up.connect("ada").await;
    assert_ne!(second, first);
    say(&mut client, "What is my name?").await;
    let (outcome, heard) = reply(&mut client).await;
    assert_eq!(outcome, "commit");
    assert!(heard.contains("Ada"), "{heard}");
    let verified = up.said(&["audit", "verify"]).await;
    assert!(verified.contains("none altered"), "{verified}");
    let trail = up.said(&["audit", "list"]).await;
    assert!(trail.contains("failover"), "{trail}");

    let pid = i32::try_from(up.process.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::INT).unwrap();
    let ended = timeout(PATIENCE, up.process.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}: {}", logs(dir.path()));
    for (name, pid) in &up.members {
        assert!(test_kill_process(*pid).is_err(), "{name} still runs");
    }
}
