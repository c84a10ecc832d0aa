//! A fleet that one command starts: `rspp up --nodes 3 --control-planes 2 --etcd …`, as a person does.

use std::{collections::BTreeMap, fs, process::Stdio, sync::Arc, time::Duration};

use rspp_controlplane_api::{Client as PlaneClient, ClientConfig, tls::TlsFiles, wire};
use rspp_proto::{PipelineVersion, SessionId, spec::PipelineSpec};
use rspp_tests::{etcd::Cluster, programs};
use rspp_websocket::{protocol::ServerMessage, testing::Client};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::{Instant, timeout},
};

use crate::processes::{Fleet, hello, reply, roll_out, says, speaks};

/// How long anything of it may take.
const PATIENCE: Duration = Duration::from_mins(1);
/// The default lease, and a second.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// What the command printed about what it runs.
struct Up {
    command: Child,
    /// The numbers of the processes.
    pids: BTreeMap<String, Pid>,
    operator: Arc<PlaneClient>,
    /// Of the control plane's replicas.
    addresses: String,
}

/// Starts it, and reads its table and how the control plane is asked.
async fn up(more: &[&str]) -> Up {
    let mut command = Command::new(programs::rspp())
        .args(["up", "--scripted"])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(command.stdout.take().unwrap()).lines();
    let mut pids = BTreeMap::new();
    let mut asked = BTreeMap::new();
    loop {
        let line = timeout(PATIENCE, lines.next_line()).await;
        let Some(line) = line.expect("it goes on").unwrap() else {
            panic!("it ended");
        };
        let mut words = line.split_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next());
        if first == "export" {
            let settings = second.into_iter().chain(words);
            let settings = settings.filter_map(|it| it.split_once('='));
            asked.extend(settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
        } else if let Some(pid) = second
            .and_then(|it| it.parse().ok())
            .and_then(Pid::from_raw)
        {
            pids.insert(first.to_owned(), pid);
        } else if line.starts_with("Ctrl-C") {
            break;
        }
    }
    let file = |name: &str| asked[name].clone().into();
    let operator = PlaneClient::new(ClientConfig {
        addresses: asked["RSPP_CONTROL_PLANE"]
            .split(',')
            .map(str::to_owned)
            .collect(),
        tls: Some(TlsFiles {
            authorities: file("RSPP_TLS_CA"),
            certificate: file("RSPP_TLS_CERT"),
            key: file("RSPP_TLS_KEY"),
        }),
        ..ClientConfig::default()
    });
    Up {
        command,
        pids,
        operator: Arc::new(operator.unwrap()),
        addresses: asked["RSPP_CONTROL_PLANE"].clone(),
    }
}

impl Up {
    /// Connects to wherever a session runs, until it is let in: the runtime's name, and the connection.
    async fn connect(&self, session: &SessionId) -> (String, Client) {
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < PATIENCE, "nobody takes {session}");
            if let Ok(route) = Fleet::route_once(&self.operator, session).await
                && let Some(client) = enter(&route.endpoint.url, &route.token.token).await
            {
                return (route.runtime.to_string(), client);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What a command says, and whether it succeeds.
async fn rspp(arguments: &[&str], environment: &[(&str, String)]) -> (bool, String) {
    let mut command = Command::new(programs::rspp());
    command.args(arguments);
    command.envs(environment.iter().map(|(name, value)| (*name, value)));
    let output = command.output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

/// A connection, if somebody is there who lets it in.
async fn enter(url: &str, token: &str) -> Option<Client> {
    let at = url.strip_prefix("ws://")?.split('/').next()?.parse().ok()?;
    let token = format!("rspp.token.{token}");
    let protocols = ["rspp.v1.json", &token];
    let mut client = Client::connect(at, &protocols, &[]).await.ok()?;
    client.say(hello()).await;
    let first = client.next().await;
    matches!(first, Some(ServerMessage::Ready(_))).then_some(client)
}

/// Issue 4, F-092, F-093, F-095, F-155: three runtimes and two replicas of the control plane on three members of etcd,
/// from one command. A runtime and a replica are killed in mid-reply; the conversation goes on elsewhere
/// within the lease and a second, with what was said before; a version that is rolled out to a tenth gets
/// a tenth of new sessions; the trail is whole; and Ctrl-C ends all of it in order.
#[tokio::test(flavor = "multi_thread")]
async fn one_command_starts_a_fleet_that_outlives_its_parts() {
    let cluster = Cluster::start(3).await;
    let state = tempfile::tempdir().unwrap();
    let (members, state) = (cluster.endpoints().join(","), state.path().join("fleet"));
    let mut up = up(&[
        "--nodes",
        "3",
        "--control-planes",
        "2",
        "--etcd",
        &members,
        "--state",
        state.to_str().unwrap(),
    ])
    .await;
    assert_eq!(up.pids.len(), 5, "{:?}", up.pids);
    let id = SessionId::new("somebody").unwrap();
    let (first, mut client) = up.connect(&id).await;
    says(&mut client, "My name is Ada.").await;
    assert_eq!(reply(&mut client).await.0, "commit");
    says(&mut client, "Tell me a long story.").await;
    speaks(&mut client).await;
    for name in [&*first, "control-plane-1"] {
        kill_process(up.pids[name], Signal::KILL).unwrap();
    }
    let killed = Instant::now();
    drop(client);
    let (second, mut client) = up.connect(&id).await;
    let back = killed.elapsed();
    println!("{first} was killed, {second} went on after {back:?}");
    assert_ne!(first, second);
    assert!(back < BACK_WITHIN + Duration::from_secs(1), "{back:?}");
    says(&mut client, "What is my name?").await;
    let (outcome, heard) = reply(&mut client).await;
    assert_eq!(outcome, "commit");
    assert!(heard.contains("Ada"), "{heard}");

    let mut newer = PipelineSpec::simple();
    newer.version = PipelineVersion::new("simple-2").unwrap();
    let tenth = wire::change::Change::Try(wire::Try {
        version: newer.version.to_string(),
        strategy: Some(wire::Strategy {
            strategy: Some(wire::strategy::Strategy::Percent(10)),
        }),
    });
    let source = serde_json::to_string(&newer).unwrap();
    roll_out(
        &up.operator,
        wire::Kind::Pipeline,
        "simple-2",
        source,
        tenth,
    )
    .await;
    let mut newer = 0;
    for number in 0..1_000 {
        let session = SessionId::new(format!("new-{number}")).unwrap();
        let route = Fleet::route_once(&up.operator, &session).await.unwrap();
        newer += u32::from(route.pipeline.as_str() == "simple-2");
    }
    println!("{newer} of 1,000 routes are to the new version");
    assert!((70..=130).contains(&newer), "{newer}");
    let trail = up.operator.verify_trail(wire::VerifyTrailRequest {});
    let trail = trail.await.unwrap();
    assert_eq!(trail.broken, "");

    // What died is there again. When both control planes die at once nobody notices, and they come back too.
    let pid_of = |name: &str| fs::read_to_string(state.join(format!("{name}.pid"))).unwrap();
    let old = pid_of("control-plane-2");
    for name in ["control-plane-1", "control-plane-2"] {
        let pid = Pid::from_raw(pid_of(name).parse().unwrap()).unwrap();
        let _is_it_there = kill_process(pid, Signal::KILL);
    }
    says(&mut client, "Are you still there?").await;
    assert_eq!(reply(&mut client).await.0, "commit");
    let began = Instant::now();
    while Fleet::route_once(&up.operator, &id).await.is_err() {
        assert!(began.elapsed() < PATIENCE, "no control plane came back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_ne!(pid_of("control-plane-2"), old);
    says(&mut client, "And now?").await;
    assert_eq!(reply(&mut client).await.0, "commit");
    // Somebody who may only look.
    let state_at = state.to_str().unwrap();
    let issue = [
        "credential",
        "vera",
        "--role",
        "viewer",
        "--json",
        "--state",
        state_at,
    ];
    let (_, issued) = rspp(&issue, &[]).await;
    let files: serde_json::Value = serde_json::from_str(&issued).unwrap();
    let file = |name: &str| files[name].as_str().unwrap().to_owned();
    let addresses = up.addresses.clone();
    let as_vera = [
        ("RSPP_CONTROL_PLANE", addresses),
        ("RSPP_TLS_CA", file("authorities")),
        ("RSPP_TLS_CERT", file("certificate")),
        ("RSPP_TLS_KEY", file("key")),
    ];
    let (may, seen) = rspp(&["node", "list"], &as_vera).await;
    assert!(may && seen.contains("runtime-1"), "{seen}");
    let (may, told) = rspp(&["node", "drain", "runtime-1"], &as_vera).await;
    assert!(
        !may && told.contains("vera") && told.contains("operator"),
        "{told}"
    );
    let denied = || wire::ListEntriesRequest {
        actor: "vera".to_owned(),
        outcome: "denied".to_owned(),
        ..wire::ListEntriesRequest::default()
    };
    let began = Instant::now();
    while up
        .operator
        .list_entries(denied())
        .await
        .unwrap()
        .entries
        .len()
        != 1
    {
        assert!(began.elapsed() < PATIENCE, "it is not in the trail");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Nobody else may write into its files.
    let again = ["up", "--scripted", "--nodes", "1", "--state", state_at];
    let (_, said) = rspp(&again, &[]).await;
    assert!(
        said.contains("is in use") && said.contains("--state"),
        "{said}"
    );

    drop(client);
    let command = Pid::from_raw(up.command.id().unwrap().cast_signed()).unwrap();
    kill_process(command, Signal::INT).unwrap();
    let ended = timeout(PATIENCE, up.command.wait()).await;
    assert!(ended.unwrap().unwrap().success());
}
