//! The program as its operators meet it: a process of its own, real sockets, signals.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose ground gives way should fail"
)]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use rspp_controlplane_api::{
    Acquire, Client, ClientConfig, ControlPlane as _, Wanted, tls::TlsFiles, wire,
};
use rspp_proto::{
    Region, RuntimeId, SessionId, TenantId,
    control::{Attempt, Description, Endpoint, Holder, Load, PROTOCOL},
    spec::PipelineSpec,
};
use rspp_service::credentials::Authority;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rspp-control-plane");

struct Running {
    child: Child,
    /// What it logs.
    log: BufReader<std::process::ChildStderr>,
    grpc: String,
    health: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn start(dir: &Path) -> Running {
    start_with(dir, &[])
}

fn start_with(dir: &Path, settings: &[&str]) -> Running {
    let mut child = Command::new(PROGRAM)
        .args(["--dev", dir.to_str().unwrap()])
        .args([
            "--set",
            "listen.grpc=127.0.0.1:0",
            "--set",
            "listen.health=127.0.0.1:0",
        ])
        .args(["--set", "log.format=json"])
        .args(settings.iter().flat_map(|it| ["--set", it]))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let serves = loop {
        let mut line = String::new();
        assert!(
            log.read_line(&mut line).unwrap() > 0,
            "it ended without serving"
        );
        if line.contains("the control plane serves") {
            break serde_json::from_str::<serde_json::Value>(&line).unwrap();
        }
    };
    let at = |name: &str| serves[name].as_str().unwrap().to_owned();
    Running {
        grpc: at("grpc"),
        health: at("health"),
        child,
        log,
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A client of the admin whose credentials were made with the directory.
fn admin(running: &Running, dir: &Path) -> Client {
    client(running, dir, "admin")
}

/// Somebody who asks with the certificate of that name.
fn client(running: &Running, dir: &Path, name: &str) -> Client {
    Client::new(ClientConfig {
        addresses: vec![format!("https://{}", running.grpc)],
        tls: Some(TlsFiles {
            authorities: dir.join("authority.pem"),
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        }),
        ..ClientConfig::default()
    })
    .unwrap()
}

/// F-108: it makes what it needs, is alive and ready, ends in order when asked to, and finds its records
/// again.
#[test]
fn it_serves_until_it_is_asked_to_end() {
    let dir = tempfile::tempdir().unwrap();
    for _life in 0..2 {
        let mut running = start(dir.path());
        assert!(get(&running.health, "/livez").starts_with("HTTP/1.1 200"));
        let ready = get(&running.health, "/readyz");
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        TcpStream::connect(&running.grpc).unwrap();
        let pid = rustix::process::Pid::from_child(&running.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let code = running.child.wait().unwrap();
        let mut rest = String::new();
        running.log.read_to_string(&mut rest).unwrap();
        assert!(code.success(), "{code}: {rest}");
        assert!(rest.contains("SIGTERM"), "{rest}");
    }
}

/// F-108: while its store does not answer yet, it is alive and not ready, and says what it waits for; it ends in
/// order when asked to, and by itself when it has waited for long enough.
#[test]
fn it_waits_for_its_store_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = nobody.local_addr().unwrap();
    drop(nobody);
    let health = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = health.local_addr().unwrap().to_string();
    drop(health);
    let begin = |wait: &str| {
        let mut child = Command::new(PROGRAM)
            .args(["--dev", dir.path().to_str().unwrap()])
            .args(["--set", "listen.grpc=127.0.0.1:0"])
            .args(["--set", &format!("listen.health={at}")])
            .args([
                "--set",
                &format!("store.etcd={{endpoints: ['http://{endpoint}']}}"),
            ])
            .args(["--set", &format!("store.wait={wait}")])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        (child, log)
    };
    let (mut child, mut log) = begin("1m");
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    assert!(line.contains("waiting for the store"), "{line}");
    assert!(get(&at, "/livez").starts_with("HTTP/1.1 200"));
    let ready = get(&at, "/readyz");
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(ready.contains("has not answered yet"), "{ready}");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    let (mut child, mut log) = begin("500ms");
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(rest.contains("error: the store does not answer"), "{rest}");
    let fix = format!("it was asked at http://{endpoint} for 500ms (store.wait)");
    assert!(rest.contains(&fix), "{rest}");
}

/// F-116: the program removes what is over from a real directory, as the rules say that an admin sets while it
/// runs, and the trail tells of it.
#[tokio::test]
async fn what_is_over_goes_from_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let calls = dir.path().join("calls");
    for recording in ["acme/call-1/0001-1", "zeta/call-1/0001-1"] {
        let folder = calls.join(recording);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("000000000000000.part"), b"what was said").unwrap();
        std::fs::write(folder.join("manifest.json"), b"{}").unwrap();
    }
    let archives = format!("archives=[{{place: {}, region: eu}}]", calls.display());
    let running = start_with(dir.path(), &[&archives, "expire_every=200ms"]);
    let client = admin(&running, dir.path());
    let rules = serde_json::json!({ "retention": { "tenants": { "acme": { "keep_ms": 1_000 } } } });
    let request = wire::SetGovernanceRequest {
        document: rules.to_string(),
        ..wire::SetGovernanceRequest::default()
    };
    client.set_governance(request).await.unwrap();
    let ask = || wire::ListEntriesRequest {
        operation: "timelines_removed".to_owned(),
        ..wire::ListEntriesRequest::default()
    };
    let mut told = Vec::new();
    for _ in 0..300 {
        told = client.list_entries(ask()).await.unwrap().entries;
        if !told.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let told: Vec<_> = told.iter().map(|it| it.tenant.as_str()).collect();
    assert_eq!(told, ["acme"]);
    assert!(!calls.join("acme").exists(), "its names go too");
    assert!(calls.join("zeta/call-1/0001-1/manifest.json").exists());
}

/// F-169: a key takes over from another while the program runs: its file is put into the directory of keys, and
/// found there. A broken file changes nothing, and what is wrong with it is said.
#[tokio::test]
async fn a_key_takes_its_turn_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = start(dir.path());
    let keys = dir.path().join("more-keys");
    let client = admin(&running, dir.path());
    let add = |kid: &str| {
        client.add_key(wire::AddKeyRequest {
            kid: kid.to_owned(),
            ..wire::AddKeyRequest::default()
        })
    };
    let refused = add("k2").await.unwrap_err().to_string();
    assert!(
        refused.contains("`k2.seed` into the directory"),
        "{refused}"
    );
    std::fs::write(keys.join("k2.seed"), "not a key").unwrap();
    let mut line = String::new();
    while !line.contains("the keys stay as they were") {
        line.clear();
        assert!(running.log.read_line(&mut line).unwrap() > 0, "it ended");
    }
    assert!(
        line.contains("does not hold 64 hexadecimal digits"),
        "{line}"
    );
    assert!(add("k2").await.is_err());
    std::fs::write(keys.join("k2.seed"), "0123456789abcdef".repeat(4)).unwrap();
    let mut added = add("k2").await;
    for _ in 0..100 {
        if added.is_ok() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        added = add("k2").await;
    }
    added.unwrap();
    let request = wire::PromoteKeyRequest {
        kid: "k2".to_owned(),
        ..wire::PromoteKeyRequest::default()
    };
    let ring = client.promote_key(request).await.unwrap();
    let signs: Vec<_> = ring.keys.iter().filter(|it| it.signs).collect();
    assert_eq!(signs.len(), 1);
    assert_eq!(signs[0].kid, "k2");
}

/// A runtime that has joined; it lives for as long as its lease is renewed.
async fn joined(running: &Running, dir: &Path, name: &str) -> (Client, Holder) {
    let authority = Authority::existing(dir, "rspp.local").unwrap();
    authority.runtime(name).unwrap();
    let client = client(running, dir, name);
    let description = Description {
        region: Region::new("eu").unwrap(),
        endpoints: vec![Endpoint {
            transport: "websocket".to_owned(),
            url: format!("ws://{name}.test/call"),
        }],
        capacity: 5,
        build: "test".to_owned(),
        protocol: PROTOCOL,
        events: "v1.0".to_owned(),
        labels: std::collections::BTreeMap::new(),
    };
    let id = RuntimeId::new(name).unwrap();
    let holder = client.register(id, description).await.unwrap().holder;
    let load = Load {
        ready: true,
        ..Load::default()
    };
    client.heartbeat(&holder, load).await.unwrap();
    (client, holder)
}

fn acquire(holder: &Holder, attempt: u64) -> Acquire {
    Acquire {
        by: holder.clone(),
        attempt: Attempt(attempt),
        session: SessionId::new("call-7").unwrap(),
        wanted: Wanted {
            tenant: TenantId::new("acme").unwrap(),
            pipeline: None,
            policy: None,
            providers: None,
        },
    }
}

/// Issue 4, F-108: operators see how it stands, and read of a runtime that died and of a session that was taken
/// over once each, with their ids as fields.
#[tokio::test]
async fn operators_see_how_it_stands_and_what_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut running = start_with(dir, &["lease=2s", "replica=cp-1"]);
    let status = |running: &Running| -> Value {
        let answer = get(&running.health, "/status");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    };
    let admin = admin(&running, dir);
    let publish = wire::PublishRequest {
        kind: wire::Kind::Pipeline.into(),
        version: "simple-1".to_owned(),
        source: PipelineSpec::simple_template().to_owned(),
        ..wire::PublishRequest::default()
    };
    admin.publish(publish).await.unwrap();
    let (first, holder) = joined(&running, dir, "eu-1").await;
    let wanted = Wanted {
        pipeline: Some("simple-1".parse().unwrap()),
        ..acquire(&holder, 1).wanted
    };
    let ask = Acquire {
        wanted,
        ..acquire(&holder, 1)
    };
    first.acquire(ask).await.unwrap();
    let (second, other) = joined(&running, dir, "eu-2").await;
    let beats = second.clone();
    let renewed = other.clone();
    tokio::spawn(async move {
        let load = Load {
            ready: true,
            ..Load::default()
        };
        loop {
            let _ = beats.renew(&renewed, Vec::new()).await;
            let _ = beats.heartbeat(&renewed, load.clone()).await;
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        }
    });
    let mut seen = Value::Null;
    for _ in 0..100 {
        seen = status(&running);
        if seen["runtimes"]["dead"] == 1 && seen["leads"] == true {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(
        (&seen["replica"], &seen["leader"], &seen["store"]["kind"]),
        (&json!("cp-1"), &json!("cp-1"), &json!("embedded")),
        "{seen}"
    );
    assert!(
        seen["leads_since_ms"].as_u64().unwrap() > 1_700_000_000_000,
        "{seen}"
    );
    assert_eq!(seen["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(seen["sessions"]["lost"], 1, "{seen}");
    let states = json!({ "serving": 1, "draining": 0, "suspect": 0, "dead": 1, "left": 0 });
    assert_eq!(seen["runtimes"], states);
    second.acquire(acquire(&other, 1)).await.unwrap();
    // Again after an answer that was lost.
    second.acquire(acquire(&other, 1)).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(status(&running)["sessions"]["held"], 1);
    // Not in order: that would wait for calls, while nobody renews any more.
    running.child.kill().unwrap();
    let mut log = String::new();
    running.log.read_to_string(&mut log).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |message: &str| -> Vec<&Value> {
        let says = |line: &&Value| line["message"].as_str().unwrap().starts_with(message);
        lines.iter().filter(says).collect()
    };
    let [died] = of("a runtime died")[..] else {
        panic!("{log}");
    };
    assert_eq!(
        (&died["level"], &died["holder"]),
        (&json!("WARN"), &json!("eu-1#1"))
    );
    assert_eq!(died["sessions"], 1);
    let [taken] = of("a session was taken over")[..] else {
        panic!("{log}");
    };
    assert_eq!(
        (
            &taken["session_id"],
            &taken["from"],
            &taken["to"],
            &taken["epoch"]
        ),
        (
            &json!("call-7"),
            &json!("eu-1#1"),
            &json!("eu-2#1"),
            &json!(2)
        )
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

/// What cannot run is told in one line, with the fix in it.
#[test]
fn settings_that_cannot_be_are_refused_with_the_fix() {
    let unknown = refused(&["--set", "listen.grcp=127.0.0.1:0"]);
    assert!(unknown.contains("did you mean `listen.grpc`"), "{unknown}");
    let secret = refused(&[]);
    assert!(secret.contains("no default secret exists"), "{secret}");
    let nowhere = refused(&["--set", "archives=[{place: 'ftp://x/y', region: eu}]"]);
    assert!(
        nowhere.contains("archives.place: `ftp://` is not supported"),
        "{nowhere}"
    );
    let missing = refused(&["--config", "/nowhere.yaml"]);
    assert!(missing.contains("no such file"), "{missing}");
}

/// Each setting says who decided it.
#[test]
fn settings_say_where_they_came_from() {
    let output = Command::new(PROGRAM)
        .args(["--print-config", "--set", "replica=a"])
        .env_clear()
        .env("RSPP_CONTROL_PLANE_LISTEN__GRPC", "127.0.0.1:7500")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        r#"replica: "a"  # --set replica"#,
        r#"grpc: "127.0.0.1:7500"  # $RSPP_CONTROL_PLANE_LISTEN__GRPC"#,
        r#"heartbeat: "1s"  # default"#,
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

/// The sample in `deploy` has no key that nobody knows.
#[test]
fn the_sample_is_understood() {
    let sample = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../deploy/config/control-plane.yaml"
    );
    let output = Command::new(PROGRAM)
        .args(["--config", sample, "--print-config"])
        .env_clear()
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(r#"lease: "4s"  # "#), "{text}");
}
