//! What is over is forgotten, by the replica that has the duties.

use std::time::Duration;

use rspp_controlplane::{keys, retention::Retention};
use rspp_controlplane_api::{ControlError, ControlPlane as _, Leave, wire};
use rspp_controlplane_server::Settings;
use rspp_proto::{RuntimeId, SessionId};

use crate::rig::{Rig, settings};

/// Issue 4: sessions that ended and runtimes that are gone leave their records after their time, and an
/// entry in the trail; who renews keeps its session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_over_is_forgotten() {
    let short = Duration::from_secs(1);
    let retention = Retention {
        ended: short,
        abandoned: short,
        runtimes: short,
    };
    let settings = Settings {
        retention,
        ..settings()
    };
    let rig = Rig::start_as(settings).await;
    rig.pipeline("desk-1").await;
    let (a, mut b) = (rig.node("a").await, rig.node("b").await);
    a.acquire("kept", 1).await.unwrap();
    b.acquire("orphan", 1).await.unwrap();
    let over = a.acquire("over", 1).await.unwrap();
    a.client
        .release(a.writer(&over), Leave::end("the user hung up"))
        .await
        .unwrap();
    b.fall_silent();
    let is_there = async |key| rig.store.get(&key).await.unwrap().is_some();
    let session = |name: &str| keys::placement(&SessionId::new(name).unwrap());
    let gone_runtime = || keys::runtime(&RuntimeId::new("b").unwrap());
    for _ in 0..200 {
        let left = is_there(session("over")).await
            || is_there(session("orphan")).await
            || is_there(gone_runtime()).await;
        if !left {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!is_there(session("over")).await, "it ended");
    assert!(!is_there(session("orphan")).await, "nobody speaks for it");
    assert!(!is_there(gone_runtime()).await, "it is gone");
    assert!(is_there(session("kept")).await);
    a.acquire("kept", 2).await.unwrap();
    let again = a.acquire("over", 3).await.unwrap();
    assert!(!again.resumed, "it is as if it never was");
    // A process that comes back under the name is somebody else than those before.
    let back = rig.node("b").await;
    assert!(back.holder().incarnation > b.holder().incarnation);
    let status = wire::GetStatusRequest {
        tenant: "acme".to_owned(),
        session: "orphan".to_owned(),
    };
    let unknown = rig.admin().get_status(status).await;
    assert!(
        matches!(unknown, Err(ControlError::UnknownSession)),
        "{unknown:?}"
    );
    let list = wire::ListEntriesRequest {
        operation: "session_abandoned".to_owned(),
        ..wire::ListEntriesRequest::default()
    };
    let entries = rig.admin().list_entries(list).await.unwrap().entries;
    let subjects: Vec<_> = entries.iter().map(|it| it.subject.as_str()).collect();
    assert_eq!(subjects, ["orphan"]);
}
