//! What waits for an archive that is away goes when its tenant's time is over, and leaves a trace.

use std::{fs, time::Duration};

use rspp_controlplane_api::wire;
use rspp_proto::SessionId;
use rspp_tests::link::Weather;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::processes::{Fleet, Ground, reply, says};

/// How long it may take on a busy machine.
const SOON: Duration = Duration::from_secs(30);

async fn trail(fleet: &Fleet) -> Vec<(String, Value)> {
    let request = wire::ListEntriesRequest {
        tenant: "acme".to_owned(),
        page_size: 500,
        ..wire::ListEntriesRequest::default()
    };
    let entries = fleet.operator.list_entries(request).await.unwrap().entries;
    let of_timelines = entries
        .into_iter()
        .filter(|it| it.operation.starts_with("timelines"));
    of_timelines
        .map(|it| (it.operation, serde_json::from_str(&it.detail).unwrap()))
        .collect()
}

/// F-116: an archive that cannot be reached keeps nothing for longer than the tenant's rule says: the runtime removes it
/// from its spool, tells the audit trail before and after, and touches nothing while it cannot tell it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_too_long_for_an_archive_goes_with_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    let timelines = json!({
        // Nobody listens there.
        "to": "http://127.0.0.1:9/calls",
        "region": "default",
        "spool": spool,
        "expire_every": "500ms",
    });
    let ground = Ground {
        settings: [("a", json!({ "timelines": timelines }))].into(),
        ..Ground::default()
    };
    let fleet = Fleet::start_on(ground, &["a"]).await;
    let spooled = || fs::read_dir(&spool).unwrap().count();
    let session = SessionId::new("call-1").unwrap();
    let (_at, mut client) = fleet.connect(&session).await;
    says(&mut client, "Hello.").await;
    reply(&mut client).await;
    assert!(spooled() > 0, "it is recorded");
    let rules = json!({ "retention": { "tenants": { "acme": { "keep_ms": 2_000 } } } });
    let request = wire::SetGovernanceRequest {
        document: rules.to_string(),
        ..wire::SetGovernanceRequest::default()
    };
    fleet.operator.set_governance(request).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert!(spooled() > 0, "what is still said is not over");
    client.bye().await;
    // Nobody is there to be told what goes.
    fleet.set_weather("a", Weather::Silent);
    sleep(Duration::from_secs(5)).await;
    assert!(spooled() > 0, "nothing goes without a trace");
    assert_eq!(trail(&fleet).await, []);
    fleet.set_weather("a", Weather::Fair);
    let give_up = Instant::now() + SOON;
    while trail(&fleet).await.len() < 2 && Instant::now() < give_up {
        sleep(Duration::from_millis(100)).await;
    }
    let told = trail(&fleet).await;
    let operations: Vec<_> = told
        .iter()
        .map(|(operation, _)| operation.as_str())
        .collect();
    assert_eq!(
        operations,
        ["timelines_expire", "timelines_removed"],
        "{}",
        fleet.logs()
    );
    for (_, detail) in &told {
        let recording = detail["recordings"][0].as_str().unwrap();
        assert!(recording.starts_with("acme/call-1/"), "{detail}");
        assert_eq!(detail["spool"]["runtime"], "a");
    }
    assert_eq!(spooled(), 0);
}
