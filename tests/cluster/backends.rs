//! A turn begins alike whatever says what it runs: a file beside the runtime, or a control plane that keeps its
//! records in a file or in etcd.

use std::{collections::BTreeSet, io::Cursor, net::SocketAddr, path::Path, time::Duration};

use rspp_archive::{ObjectArchive, Place};
use rspp_proto::{SessionId, abi::TurnState, spec::PipelineSpec};
use rspp_tests::etcd::Cluster;
use rspp_timeline::{
    Entry, Timeline,
    export::{fetch, list},
};
use rspp_websocket::{protocol::Hello, testing::Client};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use crate::processes::{Fleet, Ground, reply, says};

const PATIENCE: Duration = Duration::from_secs(30);

/// How the first turn of a call began: the plan that it was frozen with, and every step and decision up to the
/// turn's being active.
#[derive(Debug)]
struct Beginning {
    plan: Map<String, Value>,
    steps: Vec<String>,
}

impl Beginning {
    #[track_caller]
    fn is_like(&self, other: &Self) {
        assert_eq!(self.steps, other.steps);
        let names: BTreeSet<_> = self.plan.keys().chain(other.plan.keys()).collect();
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            assert_eq!(self.plan.get(name), other.plan.get(name), "{name}");
        }
    }
}

/// The settings of a runtime that records into a directory.
fn records(dir: &Path) -> Value {
    json!({ "to": dir.join("calls"), "spool": dir.join("spool") })
}

/// How the only call began that was recorded there.
async fn beginning(dir: &Path) -> Beginning {
    let archive = ObjectArchive::open(&Place::Directory(dir.join("calls"))).unwrap();
    let began = Instant::now();
    let recording = loop {
        let found = list(&archive, "").await.unwrap();
        if let [one] = &*found
            && one.is_complete
        {
            break one.recording.clone();
        }
        assert!(began.elapsed() < PATIENCE, "{found:?}");
        sleep(Duration::from_millis(50)).await;
    };
    let bytes = fetch(&archive, &recording).await.unwrap().bytes;
    let mut entries = Timeline::read(Cursor::new(bytes)).unwrap();
    let entries = entries.entries().unwrap();
    let mut plan = None;
    let mut steps = Vec::new();
    for entry in entries {
        match entry {
            Entry::Plan(entry) if plan.is_none() => {
                plan = Some(serde_json::to_value(&entry.plan).unwrap());
            }
            Entry::Outcome(decision) => {
                steps.push(format!("{:?} {}", decision.outcome_kind, decision.reason));
            }
            Entry::Transition(step) => {
                let step = step.step;
                steps.push(format!("{:?} by {:?}", step.to_state, step.trigger));
                if step.to_state == TurnState::Active {
                    break;
                }
            }
            _what_was_said => {}
        }
    }
    let Some(Value::Object(mut plan)) = plan else {
        panic!("a turn has a plan, which is a map: {plan:?}");
    };
    // Whose word it was differs and is put down, so that hashes and what follows from them differ.
    for of_whom in [
        "snapshot_provenance",
        "policy_hash",
        "plan_hash",
        "determinism",
    ] {
        assert!(plan.remove(of_whom).is_some(), "{of_whom} in {plan:?}");
    }
    Beginning { plan, steps }
}

/// What a call says, whoever serves it.
async fn talks(client: &mut Client) {
    says(client, "Hello.").await;
    assert_eq!(reply(client).await.0, "commit");
    client.bye().await;
}

async fn in_a_fleet(etcd: Vec<SocketAddr>) -> Beginning {
    let dir = tempfile::tempdir().unwrap();
    let ground = Ground {
        etcd,
        settings: [("a", json!({ "timelines": records(dir.path()) }))].into(),
        ..Ground::default()
    };
    let fleet = Fleet::start_on(ground, &["a"]).await;
    let session = SessionId::new("call-1").unwrap();
    let (_at, mut client) = fleet.connect(&session).await;
    talks(&mut client).await;
    beginning(dir.path()).await
}

/// CT-006: the same plan but for whose word it rests on, by the same steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_begins_alike_whatever_says_what_it_runs() {
    let by_file = in_a_fleet(Vec::new()).await;
    let cluster = Cluster::start(1).await;
    let by_etcd = in_a_fleet(vec![cluster.address(0)]).await;
    by_file.is_like(&by_etcd);

    let dir = tempfile::tempdir().unwrap();
    let pipeline = dir.path().join("pipeline.json");
    let spec = serde_json::to_string(&PipelineSpec::simple()).unwrap();
    std::fs::write(&pipeline, spec).unwrap();
    let alone = json!({
        "control_plane": {},
        "pipeline": pipeline,
        "timelines": records(dir.path()),
    });
    let ground = Ground {
        settings: [("alone", alone)].into(),
        ..Ground::default()
    };
    let fleet = Fleet::start_on(ground, &["alone"]).await;
    let hello = Hello {
        events: true,
        ..Hello::default()
    };
    let mut client = Client::begin(fleet.runtimes["alone"].calls, hello).await;
    talks(&mut client).await;
    let by_itself = beginning(dir.path()).await;
    by_file.is_like(&by_itself);
    let expected = [
        "Admit admission_capacity_allow",
        "Opening by TurnOpenProposed",
        "Admit admission_capacity_allow",
        "Active by TurnOpen",
    ];
    assert_eq!(by_itself.steps, expected);
}
