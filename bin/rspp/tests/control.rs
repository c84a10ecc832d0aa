//! The commands that ask a control plane, as their users meet them: a control plane that listens, the
//! program as a process of its own, what it prints.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose ground gives way should fail"
)]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
};

use insta::assert_snapshot;
use rspp_controlplane::{
    access::{Principal, Role, Tenants},
    token::{AccessClaims, KeyId, SigningKey},
};
use rspp_controlplane_api::{Acquire, Client, ControlPlane as _, Wanted, tls::TlsFiles};
use rspp_controlplane_server::{Listen, Plane, Server, Settings, Transport};
use rspp_controlplane_storage::Embedded;
use rspp_proto::{
    Actor, Region, RuntimeId, SessionId, TenantId,
    control::{Attempt, Description, Endpoint, Load, PROTOCOL},
    spec::PipelineSpec,
};
use rspp_service::credentials::Authority;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Whose certificates name callers.
const DOMAIN: &str = "rspp.local";

/// A control plane, a directory, and people's tokens.
struct Place {
    dir: tempfile::TempDir,
    runtime: Runtime,
    server: Server,
    client: Client,
}

fn key(name: &str, seed: u8) -> SigningKey {
    SigningKey::from_seed(KeyId::new(name).unwrap(), &[seed; 32])
}

fn token(role: Role, name: &str) -> String {
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs();
    key("k1", 1).sign(&AccessClaims {
        sub: Actor::new(name).unwrap(),
        role,
        tenants: None,
        iat: now,
        exp: now + 600,
    })
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let (server, client) = runtime.block_on(async {
            let store = Arc::new(Embedded::open(&dir.path().join("store")).unwrap());
            let keys = vec![key("k1", 1), key("k2", 2)];
            let plane = Plane::open(store, Settings::default(), keys).await.unwrap();
            let authority = Authority::open(&dir.path().join("tls"), DOMAIN).unwrap();
            let server = authority.server("control-plane").unwrap();
            let tls = TlsFiles {
                authorities: authority.certificate(),
                certificate: server.certificate,
                key: server.key,
            };
            let listen = [Transport::Plain, Transport::Tls(tls)].map(|transport| Listen {
                address: "127.0.0.1:0".parse().unwrap(),
                transport,
            });
            let server = Server::start(plane, listen.into()).await.unwrap();
            let node = Principal {
                actor: Actor::new("eu-1").unwrap(),
                role: Role::Runtime,
                tenants: Tenants::All,
            };
            let client = Client::within(server.dial(node));
            (server, client)
        });
        let place = Self {
            dir,
            runtime,
            server,
            client,
        };
        place.file("ana", &token(Role::Admin, "ana"));
        place.file("alma", &token(Role::Admin, "alma"));
        place.file("otto", &token(Role::Operator, "otto"));
        place.file("vera", &token(Role::Viewer, "vera"));
        for version in ["greeter-1", "greeter-2"] {
            let line = format!("version: {version}");
            let text = PipelineSpec::simple_template().replace("version: simple-1", &line);
            place.file(&format!("{version}.yaml"), &text);
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// What somebody's command prints, and how it ends. What differs from run to run is named.
    fn run(&self, who: &str, arguments: &str) -> (i32, String) {
        let url = format!("http://{}", self.server.addresses()[0]);
        let output = Command::new(env!("CARGO_BIN_EXE_rspp"))
            .args(arguments.split(' '))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .env("COLUMNS", "100")
            .env("RSPP_CONTROL_PLANE", url)
            .env("RSPP_TOKEN_FILE", who)
            .env_remove("RSPP_LOG")
            .output()
            .unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), format!("{out}{err}"))
    }

    #[track_caller]
    fn ok(&self, who: &str, arguments: &str) -> String {
        let (code, text) = self.run(who, arguments);
        assert_eq!(code, 0, "{text}");
        stable(&text)
    }

    #[track_caller]
    fn json(&self, who: &str, arguments: &str) -> Value {
        let (code, text) = self.run(who, &format!("{arguments} --json"));
        assert_eq!(code, 0, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// A runtime that has joined and holds `call-7` of acme.
    fn node(&self) {
        self.runtime.block_on(async {
            let description = Description {
                region: Region::new("eu").unwrap(),
                endpoints: vec![Endpoint {
                    transport: "websocket".to_owned(),
                    url: "ws://eu-1.test/call".to_owned(),
                }],
                capacity: 50,
                build: "0.1.0".to_owned(),
                protocol: PROTOCOL,
                events: "v1.0".to_owned(),
                labels: BTreeMap::new(),
            };
            let id = RuntimeId::new("eu-1").unwrap();
            let holder = self.client.register(id, description).await.unwrap().holder;
            let ask = Acquire {
                by: holder.clone(),
                attempt: Attempt(1),
                session: SessionId::new("call-7").unwrap(),
                wanted: Wanted {
                    tenant: TenantId::new("acme").unwrap(),
                    pipeline: None,
                    policy: None,
                    providers: None,
                },
            };
            self.client.acquire(ask).await.unwrap();
            let (client, load) = (
                self.client.clone(),
                Load {
                    sessions: 1,
                    cpu_percent: 12,
                    ready: true,
                    overloaded: false,
                    outages: Vec::new(),
                },
            );
            client.heartbeat(&holder, load.clone()).await.unwrap();
            tokio::spawn(async move {
                loop {
                    let _ = client.renew(&holder, Vec::new()).await;
                    let _ = client.heartbeat(&holder, load.clone()).await;
                    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                }
            });
            // Until it is followed.
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        });
    }
}

/// Times, hashes and ids by name.
fn stable(text: &str) -> String {
    let is_time = |word: &str| word.len() == 10 && word.as_bytes()[4] == b'-';
    let is_clock = |word: &str| word.ends_with('Z') && word.len() == 9;
    let is_hash = |word: &str| {
        word.len() >= 12
            && word
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let mut lines = String::new();
    for line in text.lines() {
        let words = line.split(' ').map(|word| match word {
            _ if is_hash(word) => "HASH",
            _ if is_time(word) => "DATE",
            _ if is_clock(word.trim_end_matches(';')) => "TIME",
            word => word,
        });
        lines += &words.collect::<Vec<_>>().join(" ");
        lines.push('\n');
    }
    lines
}

/// Issue 4, F-092, F-093, F-100: publish, look, roll out, roll back; tables for people.
#[test]
fn a_pipeline_is_published_and_rolled_out() {
    let place = Place::new();
    assert_snapshot!(place.ok("ana", "pipeline publish greeter-1.yaml --label team=desk"), @r"
    greeter-1 published
    hash HASH
    ");
    assert_snapshot!(place.ok("ana", "pipeline publish greeter-2.yaml --dry-run"), @r"
    greeter-2 would be published
    hash HASH
    ");
    place.ok("ana", "pipeline publish greeter-2.yaml");
    assert_snapshot!(place.ok("vera", "pipeline list"), @r"
    VERSION    PUBLISHED             AUTHOR  HASH          LABELS
    greeter-1  DATE TIME  ana     HASH  team=desk
    greeter-2  DATE TIME  ana     HASH
    ");
    let source = fs::read_to_string(place.path("greeter-1.yaml")).unwrap();
    let (_, got) = place.run("vera", "pipeline get greeter-1");
    assert_eq!(got, source);
    assert_snapshot!(place.ok("vera", "pipeline diff greeter-1 greeter-2"), @r"
    --- greeter-1
    +++ greeter-2
    @@ -5,7 +5,7 @@
     schema: rspp.pipeline.v1
     
     # A published version never changes; give a changed pipeline a new one.
    -version: greeter-1
    +version: greeter-2
     
     # Budgets and queue limits for everything not said here. `simple/v1` is the only profile.
     profile: simple/v1
    ");
    assert_snapshot!(place.ok("ana", "rollout set greeter-1"), @r"
    LINE     STABLE     CANDIDATE  WHO  BEFORE  FROZEN
    greeter  greeter-1  -          -    -       -
    ");
    assert_snapshot!(place.ok("ana", "rollout set greeter-2 --percent 10"), @r"
    LINE     STABLE     CANDIDATE  WHO   BEFORE  FROZEN
    greeter  greeter-1  greeter-2  10 %  -       -
    ");
    assert_snapshot!(place.ok("otto", "rollout pause greeter"), @r"
    LINE     STABLE     CANDIDATE  WHO           BEFORE  FROZEN
    greeter  greeter-1  greeter-2  10 %, paused  -       -
    ");
    assert_snapshot!(place.ok("otto", "rollout rollback greeter --reason coughs"), @r"
    LINE     STABLE     CANDIDATE  WHO  BEFORE  FROZEN
    greeter  greeter-1  -          -    -       -
    ");
    let status = place.json("vera", "rollout status");
    assert_eq!(status[0]["stable"], "greeter-1");
    assert_eq!(status[0]["generation"], 4);
}

/// NF-030, F-093: what an operator has frozen takes in nothing new, and lets go of what is on trial; thawed, it
/// goes on, and the audit log has both.
#[test]
fn a_frozen_line_takes_in_nothing_new() {
    let place = Place::new();
    for version in ["greeter-1", "greeter-2"] {
        place.ok("ana", &format!("pipeline publish {version}.yaml"));
    }
    place.ok("ana", "rollout set greeter-1");
    place.ok("ana", "rollout set greeter-2 --percent 10");
    assert_snapshot!(place.ok("otto", "rollout freeze greeter --reason incident"), @r"
    LINE     STABLE     CANDIDATE  WHO   BEFORE  FROZEN
    greeter  greeter-1  greeter-2  10 %  -       operator
    ");
    for refused in ["rollout promote greeter", "rollout set greeter-2"] {
        let (code, said) = place.run("ana", refused);
        assert_eq!(code, 2, "{said}");
        let why = "error: rollouts are frozen: an operator said so; pausing and rolling back are still possible";
        assert!(said.starts_with(why), "{said}");
    }
    assert_eq!(
        place.json("vera", "rollout status greeter")[0]["frozen"],
        "operator"
    );
    assert_snapshot!(place.ok("otto", "rollout rollback greeter"), @r"
    LINE     STABLE     CANDIDATE  WHO  BEFORE  FROZEN
    greeter  greeter-1  -          -    -       operator
    ");
    // To let new things through takes more than to keep them back.
    let (code, said) = place.run("otto", "rollout thaw greeter");
    assert_eq!(code, 2, "{said}");
    assert_snapshot!(place.ok("ana", "rollout thaw greeter --reason over"), @r"
    LINE     STABLE     CANDIDATE  WHO  BEFORE  FROZEN
    greeter  greeter-1  -          -    -       -
    ");
    place.ok("ana", "rollout set greeter-2 --percent 10");
    let log = place.ok("ana", "audit list");
    for operation in ["rollout_freeze", "rollout_thaw"] {
        assert!(log.contains(operation), "{log}");
    }
}

/// Issue 4: refusals say what to do, and end with the code that says whose fault it is.
#[test]
fn refusals_say_what_to_do() {
    let place = Place::new();
    place.ok("ana", "pipeline publish greeter-1.yaml");
    let refusals = [
        ("vera", "pipeline publish greeter-2.yaml"),
        ("ana", "pipeline get greeter-9"),
        ("ana", "rollout set greeter-9"),
        ("ana", "rollout set greeter"),
        ("ana", "rollout pause greeter"),
        ("ana", "session status nobody --tenant acme"),
        ("ana", "session route call-1 --tenant acme"),
        ("ana", "node drain nobody"),
        ("ana", "audit verify nothing.jsonl"),
    ];
    let mut text = String::new();
    for (who, arguments) in refusals {
        let (code, said) = place.run(who, arguments);
        write!(text, "{who}: {arguments}\n{code} {said}").unwrap();
    }
    assert_snapshot!(text, @r"
    vera: pipeline publish greeter-2.yaml
    2 error: vera is viewer, and publish needs admin; ask somebody who may, or use their credentials
    ana: pipeline get greeter-9
    2 error: there is no pipeline `greeter-9`; the `list` commands show what is there
    ana: rollout set greeter-9
    2 error: there is no pipeline `greeter-9`; the `list` commands show what is there
    ana: rollout set greeter
    2 error: `greeter` does not name a version: write it as `greeter-2` or `greeter/v2.1`
    ana: rollout pause greeter
    2 error: there is no rollout `greeter`; the `list` commands show what is there
    ana: session status nobody --tenant acme
    2 error: there is no such session; one that has only a route and a token begins when its client connects, and what is known of one that has ended goes after a while
    ana: session route call-1 --tenant acme
    2 error: no pipeline has been rolled out yet; the `list` commands show what is there
    ana: node drain nobody
    2 error: there is no runtime `nobody`; the `list` commands show what is there
    ana: audit verify nothing.jsonl
    2 error: cannot read nothing.jsonl: No such file or directory (os error 2)
    ");
    place.file(
        "greeter-1.yaml",
        &PipelineSpec::simple_template()
            .replace("version: simple-1", "version: greeter-1")
            .replace("speech_ms: 200", "speech_ms: 250"),
    );
    let (code, said) = place.run("ana", "pipeline publish greeter-1.yaml");
    assert_eq!(code, 2);
    assert!(said.contains("publish the next version instead"), "{said}");
    place.file("eve", "garbage");
    let (code, said) = place.run("eve", "node list");
    assert_eq!(code, 2);
    assert!(
        said.contains("token is malformed") && said.contains("--token-file"),
        "{said}"
    );
}

/// Issue 4: a program that asks for JSON is told in JSON as well why nothing was done, by a stable word.
#[test]
fn programs_are_told_why_in_json() {
    let place = Place::new();
    let told = |who: &str, arguments: &str, expected: i32| {
        let (code, text) = place.run(who, &format!("{arguments} --json"));
        assert_eq!(code, expected, "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        value["error"].clone()
    };
    assert_eq!(
        told("ana", "pipeline get greeter-9", 2),
        json!({
            "code": "NOT_FOUND",
            "message": "there is no pipeline `greeter-9`",
            "fix": "the `list` commands show what is there",
            "details": { "what": "pipeline" },
        })
    );
    let denied = told("vera", "pipeline publish greeter-1.yaml", 2);
    assert_eq!(denied["code"], "ROLE_DENIED");
    // What never came to the control plane is told in the same way.
    let missing = told("ana", "audit verify nothing.jsonl", 2);
    assert_eq!(missing["code"], "INPUT");
    let usage = told("ana", "session status call-7 --tenat acme", 2);
    assert_eq!(
        (&usage["code"], &usage["message"]),
        (
            &json!("USAGE"),
            &json!("unexpected argument '--tenat' found")
        )
    );
    let fix = usage["fix"].as_str().unwrap();
    assert!(fix.contains("'--tenant'"), "{fix}");
}

/// F-098, issue 4: who is asked to wait is told how long.
#[test]
fn who_is_deferred_is_told_when_to_ask_again() {
    let place = Place::new();
    place.ok("ana", "pipeline publish greeter-1.yaml");
    place.ok("ana", "rollout set greeter-1");
    place.node();
    place.file(
        "rules.yaml",
        "admission: {tenants: {acme: {sessions: {limit: 1, over: defer}}}}\n",
    );
    place.ok("ana", "rules set rules.yaml");
    let deferred = |what: &str| {
        let (code, said) = place.run("otto", &format!("session {what} call-9 --tenant acme"));
        assert_eq!(code, 1, "{said}");
        said
    };
    let said = deferred("route");
    assert_snapshot!(said, @"error: not admitted: cp_admission_defer_capacity; 1 of 1 sessions; run the same command again in 1 s");
    assert_eq!(deferred("token"), said);
    let (_, said) = place.run("otto", "session route call-9 --tenant acme --json");
    let said: Value = serde_json::from_str(&said).unwrap();
    let error = &said["error"];
    assert_eq!(
        (&error["code"], &error["retry_after_ms"]),
        (&json!("NOT_ADMITTED"), &json!(1_000))
    );
    assert_eq!(error["details"]["outcome"], "defer");
    // Waiting does not help against a no.
    place.file(
        "rules.yaml",
        "admission: {tenants: {acme: {sessions: {limit: 1, over: reject}}}}\n",
    );
    place.ok("ana", "rules set rules.yaml");
    let (_, said) = place.run("otto", "session route call-9 --tenant acme");
    assert!(said.contains("not by waiting"), "{said}");
}

/// F-120, issue 4: where the two sides do not come together it is told which one is at fault, and which flag or
/// file puts it right.
#[test]
fn faults_of_certificates_name_the_flag_or_the_file() {
    let place = Place::new();
    let of = |dir: &str| {
        let authority = Authority::open(&place.path(dir), DOMAIN).unwrap();
        authority.person("ana", "admin").unwrap();
    };
    of("tls");
    of("else");
    let [plain, tls] = *place.server.addresses() else {
        panic!("two sockets");
    };
    let ask = |url: &str, ca: &str, who: &str| {
        let files = format!("--ca {ca}/authority.pem --cert {who}/ana.pem --key {who}/ana.key");
        let (code, said) = place.run(
            "ana",
            &format!("pipeline list --control-plane {url} {files}"),
        );
        assert_eq!(code, 1, "{said}");
        said.replace(&tls.to_string(), "TLS")
            .replace(&plain.to_string(), "PLAIN")
    };
    let https = format!("https://{tls}");
    assert_snapshot!(ask(&https, "else", "tls"), @"error: cannot reach the control plane at https://TLS: its certificate is of no authority that is trusted on this side; --ca (or RSPP_TLS_CA) has to name the file of the authority that issued the control plane's certificate");
    assert_snapshot!(ask(&https, "tls", "else"), @"error: cannot reach the control plane at https://TLS: it does not trust who issued the certificate of this side; --cert and --key (or RSPP_TLS_CERT and RSPP_TLS_KEY) have to be of an authority in the file that its setting `tls.authorities` names");
    assert_snapshot!(ask(&format!("http://{tls}"), "tls", "tls"), @"error: cannot reach the control plane at http://TLS: it speaks TLS, and was called in the clear; write https:// in --control-plane, and give --ca, --cert and --key");
    assert_snapshot!(ask(&format!("https://{plain}"), "tls", "tls"), @"error: cannot reach the control plane at https://PLAIN: it was called with TLS, and speaks something else; write http:// in --control-plane if it speaks in the clear, else check the port");
    let (code, said) = place.run("ana", &format!("pipeline list --control-plane {https}"));
    assert_eq!(code, 2, "{said}");
    assert_snapshot!(said.replace(&tls.to_string(), "TLS"), @"error: `https://TLS` needs TLS, and no certificate is given; give --ca, --cert and --key (or RSPP_TLS_CA, RSPP_TLS_CERT and RSPP_TLS_KEY)");
    let files = "--ca tls/authority.pem --cert tls/ana.pem --key tls/ana.key";
    place.ok(
        "ana",
        &format!("pipeline list --control-plane {https} {files}"),
    );
}

/// Issue 4, F-099, F-101, F-106: where sessions run, how they go, away with them.
#[test]
fn sessions_and_runtimes_are_seen_and_moved() {
    let place = Place::new();
    place.ok("ana", "pipeline publish greeter-1.yaml");
    place.ok("ana", "rollout set greeter-1");
    place.node();
    assert_snapshot!(place.ok("vera", "node list"), @r"
    RUNTIME  REGION  STATE    SESSIONS  CPU   LIFE  BUILD
    eu-1     eu      serving  1/50      12 %  #1    0.1.0
    ");
    assert_snapshot!(place.ok("otto", "session route call-7 --tenant acme"), @r"
    endpoint  ws://eu-1.test/call
    runtime   eu-1 (eu), held at e1
    placed    held
    pipeline  greeter-1 (bound)
    token     until DATE TIME `rspp session token` prints it
    ");
    assert_snapshot!(place.ok("vera", "session list"), @r"
    SESSION  TENANT  PHASE      REASON  PIPELINE   RUNTIME  EPOCH  SINCE                 BEFORE
    call-7   acme    connected  placed  greeter-1  eu-1     e1     DATE TIME  -
    ");
    let token = place.ok("otto", "session token call-8 --tenant acme");
    assert_eq!(token.trim().split('.').count(), 3);
    let status = place.json("vera", "session status call-7 --tenant acme");
    assert_eq!(
        (&status["runtime"], &status["epoch"]),
        (&"eu-1".into(), &1.into())
    );
    assert_snapshot!(place.ok("otto", "session migrate call-7 --tenant acme"), @r"
    SESSION  TENANT  PHASE     REASON               PIPELINE   RUNTIME  EPOCH  SINCE                 BEFORE
    call-7   acme    degraded  letting_go_transfer  greeter-1  eu-1     e1     DATE TIME  -
    its runtime was told, and lets go once it has finished what it says; `rspp session status` shows where it goes on
    ");
    assert_snapshot!(place.ok("otto", "node drain eu-1"), @r"
    RUNTIME  REGION  STATE     SESSIONS  CPU   LIFE  BUILD
    eu-1     eu      draining  1/50      12 %  #1    0.1.0

    eu-1 #1, wait (otto) since DATE TIME 1 session: 1 remains
    SESSION  TENANT  BECAME   TO  WHY
    call-7   acme    remains  -
    ");
    let account = place.json("vera", "node account eu-1");
    assert_eq!(
        (&account["had"], &account["became"]["remains"]),
        (&1.into(), &1.into())
    );
    assert_eq!(place.json("vera", "node list")[0]["draining"], true);
}

/// Issue 4, F-097, F-166, F-170: what was done is listed, verified, exported; all of it is kept and comes
/// back.
#[test]
fn what_was_done_is_proved_and_kept() {
    let place = Place::new();
    place.ok("ana", "pipeline publish greeter-1.yaml");
    place.ok("ana", "rollout set greeter-1");
    assert_snapshot!(place.ok("ana", "audit list"), @r"
    NR  AT                    WHO  WHAT            TO                OUTCOME
    3   DATE TIME  ana  rollout_direct  pipeline/greeter  done
    2   DATE TIME  ana  publish         greeter-1         done
    1   DATE TIME  -    first_key       k1                done
    ");
    assert_snapshot!(place.ok("ana", "audit list --limit 1 --since 1h"), @r"
    NR  AT                    WHO  WHAT            TO                OUTCOME
    3   DATE TIME  ana  rollout_direct  pipeline/greeter  done
    there are more: --before 3
    ");
    assert_snapshot!(place.ok("ana", "audit list --limit 1 --before 3"), @r"
    NR  AT                    WHO  WHAT     TO         OUTCOME
    2   DATE TIME  ana  publish  greeter-1  done
    there are more: --before 2
    ");
    assert_snapshot!(place.ok("ana", "audit list --after 2"), @r"
    NR  AT                    WHO  WHAT            TO                OUTCOME
    3   DATE TIME  ana  rollout_direct  pipeline/greeter  done
    ");
    assert_snapshot!(place.ok("ana", "audit list --until 1h"), @"nothing found");
    assert_snapshot!(place.ok("ana", "audit list --until 2020-02-29T12:00:00Z"), @"nothing found");
    assert_eq!(
        place.json("ana", "audit list --since 2020-02-29T12:00:00"),
        place.json("ana", "audit list")
    );
    assert_snapshot!(place.ok("ana", "audit verify"), @"3 entries, none altered");
    assert_snapshot!(place.ok("ana", "audit export --out audit.jsonl"), @"3 entries in audit.jsonl");
    assert_snapshot!(place.ok("ana", "audit verify audit.jsonl"), @"3 entries, none altered");
    let export = fs::read_to_string(place.path("audit.jsonl")).unwrap();
    place.file(
        "altered.jsonl",
        &export.replacen("greeter-1", "greeter-9", 1),
    );
    let (code, said) = place.run("ana", "audit verify altered.jsonl");
    assert_eq!((code, said.as_str()), (1, "broken: entry 2 was altered\n"));
    place.ok("ana", "backup --out all.jsonl");
    let (code, said) = place.run("ana", "restore all.jsonl");
    assert_eq!(code, 2, "{said}");
    assert_snapshot!(said, @"error: the store is not empty; start a control plane on a new store and restore into that");
    let (code, said) = place.run("ana", "restore audit.jsonl");
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("a whole file of `rspp backup`"), "{said}");
    // What is no file stays what it is, and what only looks like an unfinished backup is left alone.
    place.file("letter.part", "somebody's own");
    std::os::unix::fs::symlink("letter.part", place.path("link")).unwrap();
    let (code, said) = place.run("ana", "backup --out link");
    assert_eq!(code, 2, "{said}");
    place.ok("ana", "backup --out letter.jsonl");
    let letter = fs::read_to_string(place.path("letter.part")).unwrap();
    assert_eq!(letter, "somebody's own");
    assert!(place.path("link").is_symlink());
    let fresh = Place::new();
    let kept = fs::read_to_string(place.path("all.jsonl")).unwrap();
    fresh.file("altered.jsonl", &kept.replacen("greeter-1", "greeter-9", 1));
    let (code, said) = fresh.run("ana", "restore altered.jsonl");
    assert_eq!(code, 2, "{said}");
    assert!(
        said.ends_with("nothing was restored: name a whole file of `rspp backup`\n"),
        "{said}"
    );
    fs::copy(place.path("all.jsonl"), fresh.path("all.jsonl")).unwrap();
    let restored = fresh.ok("ana", "restore all.jsonl");
    for word in ["records, as of", "RPO ", "RTO "] {
        assert!(restored.contains(word), "{restored}");
    }
    assert_eq!(
        fresh.json("vera", "rollout status")[0]["stable"],
        "greeter-1"
    );
    let fresh = Place::new();
    fs::copy(place.path("all.jsonl"), fresh.path("all.jsonl")).unwrap();
    let restored = fresh.json("ana", "restore all.jsonl");
    assert!(restored["rpo_ms"].as_u64().unwrap() < 600_000, "{restored}");
    assert!(restored["rto_ms"].is_u64(), "{restored}");
}

/// Issue 4: what cannot be meant is refused with what there is, before anything is done.
#[test]
fn what_cannot_be_meant_is_refused_with_what_there_is() {
    let place = Place::new();
    place.ok("ana", "pipeline publish greeter-1.yaml");
    place.ok("ana", "rollout set greeter-1");
    place.node();
    let refused = |arguments: &str| {
        let (code, said) = place.run("ana", arguments);
        assert_eq!(code, 2, "{said}");
        said
    };
    assert_snapshot!(refused("session route call-9 --tenant acme --near nowhere=20"), @"error: --near nowhere: there is no such region; known: eu");
    place.ok("ana", "session route call-9 --tenant acme --near eu=20");
    assert_snapshot!(refused("session token call\t9 --tenant acme"), @"error: session `call	9`: an id has no blanks: write `call-9`");
    let blank = refused("session status  --tenant acme");
    assert!(blank.contains("session id must not be blank"), "{blank}");
    let outcome = refused("audit list --outcome foo");
    assert!(outcome.contains("done, denied, refused"), "{outcome}");
    place.file(
        "rules.yaml",
        "approvals: {approvals: 1}\nresidency: {}\napprovals: {}\n",
    );
    assert_snapshot!(refused("rules set rules.yaml"), @"error: rules.yaml: line 3 column 1: `approvals` stands twice; keep one of the two");
}

/// Issue 4: what changed between versions is told to programs too.
#[test]
fn a_difference_is_told_in_json() {
    let place = Place::new();
    place.ok("ana", "pipeline publish greeter-1.yaml");
    place.ok("ana", "pipeline publish greeter-2.yaml");
    let told = place.json("vera", "pipeline diff greeter-1 greeter-2");
    assert_eq!(
        (&told["old"], &told["new"], &told["same"]),
        (&json!("greeter-1"), &json!("greeter-2"), &json!(false))
    );
    assert!(
        told["diff"]
            .as_str()
            .unwrap()
            .contains("+version: greeter-2"),
        "{told}"
    );
    let told = place.json("vera", "pipeline diff greeter-1 greeter-1");
    assert_eq!(told["same"], true);
}

/// Issue 4: the samples that help shows are taken as they stand.
#[test]
fn samples_in_help_are_taken() {
    let place = Place::new();
    // A sample stands below its heading, two columns in.
    let sample = |help: &str, heading: &str| {
        let (_, below) = help.split_once(heading).unwrap_or_else(|| panic!("{help}"));
        let (_, below) = below.split_once("\n\n").unwrap();
        let lines = below.lines().take_while(|line| line.starts_with("  "));
        let lines: Vec<_> = lines.map(|line| &line[2..]).collect();
        lines.join("\n") + "\n"
    };
    let (_, help) = place.run("ana", "rules set --help");
    place.file("rules.yaml", &sample(&help, "A file of rules"));
    place.ok("ana", "rules set rules.yaml");
    let rules = place.json("ana", "rules show");
    assert_eq!(
        rules["admission"]["tenants"]["acme"]["sessions"]["limit"],
        20
    );
    assert_eq!(rules["retention"]["tenants"]["acme"]["hold"][0], "call-7");
    let (_, help) = place.run("ana", "policy publish --help");
    place.file("policy.yaml", &sample(&help, "A policy"));
    place.file("models.yaml", &sample(&help, "A provider configuration"));
    place.ok("ana", "policy publish policy.yaml --version greeter-1");
    place.ok(
        "ana",
        "policy publish models.yaml --version greeter-1 --providers",
    );
}

/// Issue 4: no help says that nothing is a default.
#[test]
fn help_has_no_empty_defaults() {
    let place = Place::new();
    for name in [
        "pipeline list",
        "policy list",
        "rollout set",
        "rollout rollback",
        "session list",
        "session route",
        "session migrate",
        "audit list",
        "timeline fetch",
    ] {
        let (_, help) = place.run("ana", &format!("{name} --help"));
        assert!(
            help.contains("Usage:") && !help.contains("[default: ]"),
            "{name}: {help}"
        );
        assert!(!help.contains("[default: \"\"]"), "{name}: {help}");
    }
}

/// F-169, issue 4: keys take turns; one that signs is not taken away, one that nobody holds is not added.
#[test]
fn keys_take_turns() {
    let place = Place::new();
    assert_snapshot!(place.ok("vera", "key list"), @r"
    KEY  STATE  SINCE                 UNTIL
    k1   signs  DATE TIME  -
    ");
    assert_snapshot!(place.ok("ana", "key add k2"), @r"
    KEY  STATE    SINCE                 UNTIL
    k1   signs    DATE TIME  -
    k2   trusted  DATE TIME  -
    ");
    let (code, said) = place.run("ana", "key retire k1");
    assert_eq!(code, 2, "{said}");
    assert_snapshot!(said, @"error: key `k1` signs; promote another one first");
    assert_snapshot!(place.ok("ana", "key rotate k2 --wait 0"), @r"
    KEY  STATE     SINCE                 UNTIL
    k1   retiring  DATE TIME  DATE TIME
    k2   signs     DATE TIME  -
    k2 is trusted; it signs in 0 s, when all runtimes have heard of it
    ");
    // Not for the admin's own token, which k1 signed.
    let keys = place.json("ana", "key list");
    assert_eq!(
        (&keys[1]["kid"], &keys[1]["signs"]),
        (&"k2".into(), &true.into())
    );
    assert_eq!(keys[1]["public"].as_str().unwrap().len(), 64);
    let (code, said) = place.run("ana", "key add k9");
    assert_eq!(code, 2, "{said}");
    assert_snapshot!(said, @"error: this replica has no private key `k9`: put its file `k9.seed` into the directory that `more_keys` names, where it is found within seconds, or name it under `keys` and start the replica again");
    let (code, said) = place.run("otto", "key promote k1");
    assert_eq!(code, 2, "{said}");
    assert_snapshot!(said, @"error: otto is operator, and rotate_keys needs admin; ask somebody who may, or use their credentials");
    place.ok("ana", "key retire k1");
    place.runtime.block_on(async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    });
    let (code, said) = place.run("ana", "key list");
    assert_eq!(code, 2, "what k1 signed is believed no more: {said}");
}

/// F-098, F-116, F-165, F-168, NF-030, issue 4: the rules are shown, changed in part or as a whole, and bad ones
/// are refused with where and why.
#[test]
fn rules_are_shown_and_set() {
    let place = Place::new();
    assert_snapshot!(place.ok("ana", "rules show regions"), @r"
    version 0
    RULE                  VALUE
    regions.ill_percent   60
    regions.min_runtimes  2
    regions.mode          drain
    regions.well_percent  25
    ");
    assert_snapshot!(place.ok("ana", "rules approvals 1 --within 24"), @r"
    version 1
    RULE                        VALUE
    approvals.approvals         1
    approvals.expires_after_ms  86400000
    ");
    assert_snapshot!(place.ok("ana", "rules slo 99.5 --after 10"), @r"
    version 2
    RULE                           VALUE
    error_budget.allowed_per_10k   50
    error_budget.fast_burn_tenths  144
    error_budget.min_sessions      10
    error_budget.slow_burn_tenths  60
    ");
    place.file(
        "rules.yaml",
        "admission:\n  default: {sessions: {limit: 2}}\nresidency:\n  tenants: {acme: [eu, us]}\napprovals: {approvals: 1}\n",
    );
    assert_snapshot!(place.ok("ana", "rules diff rules.yaml"), @r#"
    --- version 2
    +++ file
    @@ -2,16 +2,26 @@
       "admission": {
         "version": 2,
         "mode": "strict",
    -    "default": {},
    +    "default": {
    +      "sessions": {
    +        "limit": 2,
    +        "over": "reject"
    +      }
    +    },
         "pipelines": {},
         "tenants": {}
       },
       "residency": {
    -    "tenants": {}
    +    "tenants": {
    +      "acme": [
    +        "eu",
    +        "us"
    +      ]
    +    }
       },
       "approvals": {
         "approvals": 1,
    -    "expires_after_ms": 86400000
    +    "expires_after_ms": 0
       },
       "regions": {
         "ill_percent": 60,
    @@ -30,8 +40,8 @@
         "tenants": {}
       },
       "error_budget": {
    -    "allowed_per_10k": 50,
    -    "min_sessions": 10,
    +    "allowed_per_10k": 100,
    +    "min_sessions": 50,
         "fast_burn_tenths": 144,
         "slow_burn_tenths": 60
       }
    "#);
    let (code, said) = place.run("ana", "rules set rules.yaml --if-version 1");
    assert_eq!(code, 2, "{said}");
    assert_snapshot!(said, @"error: it is at version 2 by now, not 1; look at what it is now, then decide again");
    assert_snapshot!(place.ok("ana", "rules set rules.yaml --if-version 2"), @r"
    version 3
    RULE                              VALUE
    admission.default.sessions.limit  2
    admission.default.sessions.over   reject
    admission.mode                    strict
    admission.pipelines               -
    admission.tenants                 -
    admission.version                 3
    approvals.approvals               1
    approvals.expires_after_ms        0
    error_budget.allowed_per_10k      100
    error_budget.fast_burn_tenths     144
    error_budget.min_sessions         50
    error_budget.slow_burn_tenths     60
    outages.answers                   alternates, region
    outages.out_percent               50
    outages.pipelines                 -
    outages.tenants                   -
    outages.well_after_seconds        30
    regions.ill_percent               60
    regions.min_runtimes              2
    regions.mode                      drain
    regions.well_percent              25
    residency.tenants.acme            eu, us
    ");
    assert_eq!(place.json("ana", "rules show")["approvals"]["approvals"], 1);
    assert_snapshot!(place.ok("otto", "rules usage acme"), @r"
    TENANT  OPEN  OPENED/MIN  TOKENS/MIN
    acme    0     0           0
    ");
    assert_snapshot!(place.ok("ana", "rules retention 30d --at-least 1d"), @r"
    version 4
    RULE                   VALUE
    retention.at_least_ms  86400000
    retention.keep_ms      2592000000
    retention.tenants      -
    ");
    let held = "rules retention 7d --tenant acme --hold call-7 --hold call-8";
    assert_snapshot!(place.ok("ana", held), @r"
    version 5
    RULE                            VALUE
    retention.at_least_ms           86400000
    retention.keep_ms               2592000000
    retention.tenants.acme.hold     call-7, call-8
    retention.tenants.acme.keep_ms  604800000
    ");
    let as_all = "rules retention --tenant acme --for-ever --release call-7";
    assert_snapshot!(place.ok("ana", as_all), @r"
    version 6
    RULE                         VALUE
    retention.at_least_ms        86400000
    retention.keep_ms            2592000000
    retention.tenants.acme.hold  call-8
    ");
    let (code, said) = place.run("ana", "rules retention 12h --tenant acme");
    assert_eq!(code, 2, "{said}");
    assert_snapshot!(said, @"error: retention: acme: 43200000 ms are less than at_least_ms, 86400000, which has to be kept");
    let (code, said) = place.run("ana", "rules retention --tenant acme");
    assert_eq!(code, 2, "{said}");
    place.file("bad.yaml", "regions: {ill_percent: 10}\n");
    let (code, said) = place.run("ana", "rules set bad.yaml");
    assert_eq!(code, 2, "{said}");
    assert_snapshot!(said, @"error: regions.well_percent: 25 is not below ill_percent, 10: regions would flap");
    place.file("worse.yaml", "approval: {approvals: 1}\n");
    place.file("good.yaml", "approvals: {approvals: 1}\n");
    let checked = place.json("ana", "rules set good.yaml --dry-run");
    assert_eq!(checked["valid"], true);
    let (code, said) = place.run("ana", "rules set worse.yaml --dry-run");
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("approval"), "{said}");
    let (code, said) = place.run("vera", "rules show");
    assert_eq!(code, 2, "{said}");
}

/// F-165, issue 4: who wants fewer approvals proposes that, and somebody else agrees.
#[test]
fn fewer_approvals_are_proposed() {
    let place = Place::new();
    place.ok("ana", "rules approvals 1");
    let said = place.ok("ana", "rules approvals 0");
    let (told, id) = said.trim().rsplit_once(' ').unwrap();
    assert_snapshot!(told, @"fewer approvals have to be approved: proposed, and waits for somebody else: rspp rollout approve");
    assert_eq!(place.json("ana", "rules show")["approvals"]["approvals"], 1);
    let waiting = place.json("alma", "rollout proposals");
    assert_eq!(
        (&waiting[0]["id"], &waiting[0]["approvals"]["approvals"]),
        (&json!(id), &json!(0))
    );
    let (code, said) = place.run("ana", &format!("rollout approve {id}"));
    assert_eq!(code, 2, "{said}");
    let said = place.ok("alma", &format!("rollout approve {id}"));
    assert_eq!(said, format!("proposal {id} is activated\n"));
    assert_eq!(place.json("ana", "rules show")["approvals"]["approvals"], 0);
    place.ok("ana", "rules approvals 1");
    place.file("rules.yaml", "residency: {tenants: {acme: [eu]}}\n");
    let (code, said) = place.run("ana", "rules set rules.yaml");
    assert_eq!(code, 2, "{said}");
    assert_snapshot!(said, @"error: `document` approvals.approvals: 1 are in force and 0 asked for, which has to be approved: change that by itself (`rspp rules approvals 0`), or leave it at 1 here");
}

/// F-165: whoever is to approve a change sees which it is.
#[test]
fn what_is_proposed_is_said() {
    let place = Place::new();
    place.ok("ana", "pipeline publish greeter-1.yaml");
    place.ok("ana", "rollout set greeter-1");
    place.ok("ana", "pipeline publish greeter-2.yaml");
    place.ok("ana", "rules approvals 1");
    place.ok("ana", "rollout set greeter-2 --percent 10");
    place.ok("ana", "rollout set greeter-2");
    place.ok("ana", "rules approvals 0");
    let waiting = place.json("alma", "rollout proposals");
    let told = |nr: usize| (waiting[nr]["of"].as_str(), waiting[nr]["change"].as_str());
    let of = Some("pipeline greeter");
    assert_eq!(told(0), (of, Some("greeter-2 to 10 %")));
    assert_eq!(told(1), (of, Some("greeter-2 to everybody")));
    assert_eq!(told(2), (Some("rules"), Some("0 approvals")));
    let said = place.ok("alma", "rollout proposals");
    assert!(said.contains("greeter-2 to everybody"), "{said}");
}

/// F-096, F-113, issue 4: regions are seen with their health, left and taken back.
#[test]
fn regions_are_seen_and_left() {
    let place = Place::new();
    place.ok("ana", "pipeline publish greeter-1.yaml");
    place.ok("ana", "rollout set greeter-1");
    place.node();
    assert_snapshot!(place.ok("vera", "region list"), @r"
    REGION  DUTY     DECIDED BY  WELL  DEAD  FAILING PROVIDERS
    eu      serving  health      1/1   -     -
    ");
    assert_snapshot!(place.ok("otto", "region drain eu"), @r"
    REGION  DUTY      DECIDED BY  WELL  DEAD  FAILING PROVIDERS
    eu      draining  operator    1/1   -     -
    ");
    assert_snapshot!(place.ok("otto", "region drain eu --migrate"), @r"
    REGION  DUTY       DECIDED BY  WELL  DEAD  FAILING PROVIDERS
    eu      migrating  operator    1/1   -     -
    ");
    assert_snapshot!(place.ok("otto", "region serve eu"), @r"
    REGION  DUTY     DECIDED BY  WELL  DEAD  FAILING PROVIDERS
    eu      serving  operator    1/1   -     -
    ");
    assert_snapshot!(place.ok("otto", "region auto eu"), @r"
    REGION  DUTY     DECIDED BY  WELL  DEAD  FAILING PROVIDERS
    eu      serving  health      1/1   -     -
    ");
    let (code, said) = place.run("otto", "region drain mars");
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("there is no region `mars`"), "{said}");
    let regions = place.json("vera", "region list");
    assert_eq!(
        (&regions[0]["region"], &regions[0]["well"]),
        (&"eu".into(), &1.into())
    );
    let (code, said) = place.run("vera", "region drain eu");
    assert_eq!(code, 2, "{said}");
}

/// Issue 4: a policy is compared with another version of itself.
#[test]
fn a_policy_is_compared() {
    let place = Place::new();
    let policy = |name: &str| {
        format!(
            "schema: rspp.policy.bundle.v1\npolicy_resolution_snapshot: policy/{name}\nallowed_adaptive_actions: []\n"
        )
    };
    place.file("one.yaml", &policy("one"));
    place.file("two.yaml", &policy("two"));
    place.ok("ana", "policy publish one.yaml --version greeter-1");
    place.ok("ana", "policy publish two.yaml --version greeter-2");
    assert_snapshot!(place.ok("vera", "policy diff greeter-1 greeter-2"), @r"
    --- greeter-1
    +++ greeter-2
    @@ -1,3 +1,3 @@
     schema: rspp.policy.bundle.v1
    -policy_resolution_snapshot: policy/one
    +policy_resolution_snapshot: policy/two
     allowed_adaptive_actions: []
    ");
}

/// Issue 4: every command says what it is for, with examples.
#[test]
fn every_command_has_examples() {
    let place = Place::new();
    for name in [
        "pipeline", "policy", "rollout", "session", "node", "region", "rules", "key", "audit",
        "backup", "restore",
    ] {
        let (code, help) = place.run("ana", &format!("{name} --help"));
        assert_eq!(code, 0);
        assert!(help.contains("Examples:"), "{name}: {help}");
        assert!(help.contains(&format!("rspp {name}")), "{name}: {help}");
    }
}
