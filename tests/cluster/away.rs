//! While the control plane is away, new clients are let in or not as the runtime's mode says.

use std::time::Duration;

use rspp_proto::SessionId;
use rspp_tests::link::Weather;
use rspp_websocket::protocol::ServerMessage;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::processes::{Fleet, Ground, reply, says};

const PATIENCE: Duration = Duration::from_secs(30);

async fn fleet(mode: &str) -> Fleet {
    let ground = Ground {
        settings: [("a", json!({ "control_plane": { "mode": mode } }))].into(),
        ..Ground::default()
    };
    Fleet::start_on(ground, &["a"]).await
}

/// Waits until the runtime has noticed that nobody answers.
async fn is_away(fleet: &Fleet) {
    let began = Instant::now();
    while !fleet.log("a").contains("left the fleet") {
        assert!(began.elapsed() < PATIENCE, "{}", fleet.logs());
        sleep(Duration::from_millis(100)).await;
    }
}

/// F-098, issue 4, 10: in availability mode a client with a valid token is let in while nobody can be asked for its
/// session: into one that nobody else can ever be given, so that the one it was routed to still has at most one
/// writer. Who has talked before is somewhere, and waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_new_is_let_in_while_the_control_plane_is_away() {
    let fleet = fleet("availability").await;
    let known = SessionId::new("known").unwrap();
    let (_, mut client) = fleet.connect(&known).await;
    says(&mut client, "My name is Ada.").await;
    assert_eq!(reply(&mut client).await.0, "commit");
    let again = fleet.route(&known).await;
    let new = SessionId::new("new").unwrap();
    let route = fleet.route(&new).await;
    fleet.set_weather("a", Weather::Silent);
    is_away(&fleet).await;

    let mut client = Fleet::follow(&route.endpoint.url, &route.token.token).await;
    let Some(ServerMessage::Ready(ready)) = client.next().await else {
        panic!("{}", fleet.logs());
    };
    assert!(ready.session.as_str().starts_with("a."), "{ready:?}");
    says(&mut client, "Hello.").await;
    assert_eq!(reply(&mut client).await.0, "commit");
    let mut client = Fleet::follow(&again.endpoint.url, &again.token.token).await;
    let refused = client.next().await;
    assert!(
        !matches!(refused, Some(ServerMessage::Ready(_))),
        "{refused:?}"
    );

    fleet.set_weather("a", Weather::Fair);
    fleet.ready("a").await;
    let (_, mut client) = fleet.connect(&new).await;
    says(&mut client, "Hello.").await;
    assert_eq!(reply(&mut client).await.0, "commit");
    assert_eq!(fleet.holder(&new).await.1.map(|it| it > 0), Some(true));
}

/// F-098: in strict mode nobody is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_let_in_unasked_in_strict_mode() {
    let fleet = fleet("strict").await;
    let route = fleet.route(&SessionId::new("new").unwrap()).await;
    fleet.set_weather("a", Weather::Silent);
    is_away(&fleet).await;
    let mut client = Fleet::follow(&route.endpoint.url, &route.token.token).await;
    let refused = client.next().await;
    assert!(
        !matches!(refused, Some(ServerMessage::Ready(_))),
        "{refused:?}"
    );
}
