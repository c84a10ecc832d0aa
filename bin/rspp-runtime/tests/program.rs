//! The program as its operators meet it: a process of its own, real sockets, signals.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose ground gives way should fail"
)]

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rspp_archive::{KeyRing, ObjectArchive, Place, SealedArchive};
use rspp_timeline::{
    Entry, Timeline,
    export::{fetch, list},
};
use rspp_websocket::{
    protocol::{Hello, ServerMessage},
    testing::{Client, typed},
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rspp-runtime");
const PATIENCE: Duration = Duration::from_mins(1);

struct Running {
    child: Child,
    calls: SocketAddr,
    health: SocketAddr,
}

impl Running {
    /// A client that is told of everything.
    async fn client(&self) -> Client {
        let hello = Hello {
            events: true,
            ..Hello::default()
        };
        Client::begin(self.calls, hello).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Starts it alone, without models.
async fn start(dir: &Path) -> Running {
    start_with(dir, &[]).await
}

/// The same, with more settings.
async fn start_with(dir: &Path, settings: &[&str]) -> Running {
    let announced = dir.join("at.json");
    let mut child = Command::new(PROGRAM)
        .args(["--set", "listen.calls=127.0.0.1:0"])
        .args(["--set", "listen.health=127.0.0.1:0"])
        .args(["--set", "providers.scripted=true"])
        .args(["--set", &format!("announce={}", announced.display())])
        .args(settings.iter().flat_map(|setting| ["--set", setting]))
        .stderr(fs::File::create(dir.join("log")).unwrap())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !announced.exists() {
        let log = || fs::read_to_string(dir.join("log")).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "{}", log());
        assert!(began.elapsed() < PATIENCE, "{}", log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let text = fs::read_to_string(&announced).unwrap();
    let at: serde_json::Value = serde_json::from_str(&text).unwrap();
    let address = |key: &str| at[key].as_str().unwrap().parse().unwrap();
    Running {
        calls: address("calls"),
        health: address("health"),
        child,
    }
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// F-106, F-108, NF-016: alone it serves this machine, says that it is ready, and when it is asked to end
/// lets the reply be said, tells its client, and ends in order.
#[tokio::test]
async fn it_talks_until_it_is_asked_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = start(dir.path()).await;
    assert!(
        get(running.health, "/livez")
            .await
            .starts_with("HTTP/1.1 200")
    );
    let ready = get(running.health, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    let mut client = running.client().await;
    let status = get(running.health, "/status").await;
    assert!(status.contains(r#""sessions":1"#), "{status}");
    client.say(typed("My name is Ada.")).await;
    client
        .until(|message| matches!(message, ServerMessage::Audio(_)))
        .await;
    let pid = Pid::from_child(&running.child);
    kill_process(pid, Signal::TERM).unwrap();
    let rest = client.until(|_| false).await;
    let turn = rest.iter().find_map(|message| match message {
        ServerMessage::Turn(turn) => Some(turn.outcome.as_str()),
        _another_message => None,
    });
    let log = || fs::read_to_string(dir.path().join("log")).unwrap();
    assert_eq!(turn, Some("commit"), "{rest:?} {}", log());
    let code = running.child.wait().unwrap();
    assert!(code.success(), "{code}: {}", log());
    assert!(log().contains("SIGTERM"), "{}", log());
}

/// F-108: a model's server that cannot be reached fails readiness, and readiness only, by name; the session
/// goes on, and who recovers is given sessions again.
#[tokio::test]
async fn an_unreachable_provider_fails_readiness_only() {
    let dir = tempfile::tempdir().unwrap();
    let running = start_with(
        dir.path(),
        &[
            "providers.openai.url=http://127.0.0.1:1/v1",
            "providers.openai.model=none",
            "providers.llm=openai",
        ],
    )
    .await;
    let ready = get(running.health, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    let mut client = running.client().await;
    let mut lost = None;
    for turn in 0..8 {
        client.say(typed(format!("Hello, number {turn}."))).await;
        client
            .until(|message| matches!(message, ServerMessage::Turn(_)))
            .await;
        let ready = get(running.health, "/readyz").await;
        if ready.starts_with("HTTP/1.1 503") {
            lost = Some(ready);
            break;
        }
    }
    let lost = lost.expect("it is not ready without a model");
    assert!(lost.contains("whoever is to serve llm fails"), "{lost}");
    let alive = get(running.health, "/livez").await;
    assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
    let status = get(running.health, "/status").await;
    assert!(status.contains(r#""sessions":1"#), "{status}");
    let measured = get(running.health, "/metrics").await;
    assert!(
        measured.contains(r#"decision="admitted",subject="session""#),
        "{measured}"
    );
    // It is left alone for a while and then tried anew: sessions may come again.
    let began = Instant::now();
    while !get(running.health, "/readyz")
        .await
        .starts_with("HTTP/1.1 200")
    {
        assert!(began.elapsed() < PATIENCE, "it never recovers");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// F-116, F-169: with an archive each session is recorded into it, sealed with a key that is named and never said,
/// and whole when the program has ended in order; nothing is left in the spool.
#[tokio::test]
async fn sessions_are_recorded_into_a_sealed_archive() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    fs::write(file("CALLS_K1"), "a5".repeat(32)).unwrap();
    let keys = "keys: [{ id: k1, secret: file://CALLS_K1, from: 2026-01-01 }]";
    fs::write(file("keys.yaml"), keys).unwrap();
    let settings = [
        format!("timelines.to={}", file("calls").display()),
        format!("timelines.spool={}", file("spool").display()),
        format!("timelines.keys={}", file("keys.yaml").display()),
    ];
    let settings = settings.each_ref().map(String::as_str);
    let mut running = start_with(dir.path(), &settings).await;
    let mut client = running.client().await;
    client.say(typed("My name is Ada.")).await;
    client
        .until(|message| matches!(message, ServerMessage::Turn(_)))
        .await;
    let status = get(running.health, "/status").await;
    assert!(status.contains(r#""queue_depth":1"#), "{status}");
    let pid = Pid::from_child(&running.child);
    kill_process(pid, Signal::TERM).unwrap();
    client.until(|_| false).await;
    let code = running.child.wait().unwrap();
    let log = fs::read_to_string(file("log")).unwrap();
    assert!(code.success(), "{code}: {log}");
    assert_eq!(fs::read_dir(file("spool")).unwrap().count(), 0, "{log}");
    let place = Place::Directory(file("calls"));
    let plain = Arc::new(ObjectArchive::open(&place).unwrap());
    let found = list(&*plain, "local").await.unwrap();
    assert_eq!(found.len(), 1, "{found:?} {log}");
    let name = &found[0].recording;
    let refused = fetch(&SealedArchive::new(plain.clone(), None), name).await;
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("sealed under key `k1`"), "{refused}");
    let keys = Arc::new(KeyRing::open(&file("keys.yaml")).unwrap());
    let fetched = fetch(&SealedArchive::new(plain, Some(keys)), name)
        .await
        .unwrap();
    assert!(fetched.is_complete);
    let mut timeline = Timeline::read(std::io::Cursor::new(fetched.bytes)).unwrap();
    assert_eq!(
        timeline
            .header()
            .unwrap()
            .tenant_id
            .as_ref()
            .unwrap()
            .as_str(),
        "local"
    );
    let entries = timeline.entries().unwrap();
    let turns = entries
        .iter()
        .filter(|it| matches!(it, Entry::Turn(_)))
        .count();
    assert_eq!(turns, 1, "{log}");
}

/// The samples in `deploy` are good ones.
#[test]
fn the_sample_is_understood() {
    let sample = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../deploy/config/runtime.yaml"
    );
    let output = Command::new(PROGRAM)
        .args(["--config", sample, "--print-config"])
        .env_clear()
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains(r#"keys: "/etc/rspp/archive-keys.yaml"  # "#),
        "{text}"
    );
}

fn refused(arguments: &[&str]) -> String {
    let output = Command::new(PROGRAM)
        .args(arguments)
        .env_clear()
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8(output.stderr).unwrap()
}

/// What cannot run is told in one line, with the fix in it; nobody is served from elsewhere unchecked.
#[test]
fn settings_that_cannot_be_are_refused_with_the_fix() {
    let unknown = refused(&["--set", "listen.cals=127.0.0.1:0"]);
    assert!(unknown.contains("did you mean `listen.calls`"), "{unknown}");
    let none = refused(&["--set", "capacity=0"]);
    assert!(
        none.contains("capacity: 0 takes no session at all: set how many"),
        "{none}"
    );
    let open = refused(&[
        "--set",
        "providers.scripted=true",
        "--set",
        "listen.calls=0.0.0.0:0",
        "--set",
        "listen.health=127.0.0.1:0",
    ]);
    assert!(open.contains("set control_plane.addresses"), "{open}");
    let archive = refused(&[
        "--set",
        "providers.scripted=true",
        "--set",
        "listen.calls=127.0.0.1:0",
        "--set",
        "listen.health=127.0.0.1:0",
        "--set",
        "timelines.to=s3://",
    ]);
    assert!(
        archive.contains("timelines.to: `s3://` names no bucket"),
        "{archive}"
    );
    let half = refused(&[
        "--set",
        "providers.scripted=true",
        "--set",
        "listen.calls=127.0.0.1:0",
        "--set",
        "listen.health=127.0.0.1:0",
        "--set",
        "control_plane.addresses=[https://localhost:1]",
        "--set",
        "control_plane.key=k",
    ]);
    assert!(half.contains("belong together"), "{half}");
}
