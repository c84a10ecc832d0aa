//! A model's server fails in one region, for real, and new sessions go where the rules say.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use rspp_controlplane_api::wire;
use rspp_tests::web::{Reply, Web};
use rspp_websocket::{protocol::ServerMessage, testing::Client};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::processes::{Fleet, Ground, reply, says};

/// How long a provider must have been well.
const WELL_AFTER: u64 = 8;
/// How long it may take until the fleet has noticed.
const SOON: Duration = Duration::from_secs(30);

/// A runtime in a region, whose first language model is behind that address.
fn stands(region: &str, url: &str) -> serde_json::Value {
    json!({
        "region": region,
        "providers": {
            "scripted": true,
            "llm": "openai",
            "openai": { "url": format!("{url}/v1"), "model": "m" },
            "alternates": { "llm": ["dialogue"] },
        },
    })
}

async fn rules(fleet: &Fleet, answers: &[&str]) {
    let document = json!({
        "outages": { "well_after_seconds": WELL_AFTER, "tenants": { "acme": answers } },
    });
    let request = wire::SetGovernanceRequest {
        document: document.to_string(),
        ..wire::SetGovernanceRequest::default()
    };
    fleet.operator.set_governance(request).await.unwrap();
}

/// Where a new session of somebody near `eu` goes.
async fn route(fleet: &Fleet, session: &str) -> wire::Route {
    let request = wire::RouteRequest {
        tenant: "acme".to_owned(),
        session: session.to_owned(),
        transport: "websocket".to_owned(),
        latencies_ms: BTreeMap::from([("eu".to_owned(), 10), ("us".to_owned(), 90)]),
        ..wire::RouteRequest::default()
    };
    fleet.operator.route_session(request).await.unwrap()
}

/// Connects as somebody near `eu`, who is sent to `region`. A machine that is busy with other things may have
/// its runtime say "later", or be passed by: that is asked again, as another session.
async fn connect(fleet: &Fleet, name: &str, region: &str) -> Client {
    let began = Instant::now();
    let mut times = 0;
    loop {
        times += 1;
        let route = route(fleet, &format!("{name}-{times}")).await;
        let (url, token) = (route.endpoint.unwrap().url, route.token.unwrap().token);
        let mut client = Fleet::follow(&url, &token).await;
        let first = client.next().await;
        let is_open = matches!(first, Some(ServerMessage::Ready(_)));
        if is_open && route.region == region {
            return client;
        }
        let where_to = (&route.region, &route.placing, &route.passed);
        assert!(began.elapsed() < SOON, "{first:?} {where_to:?}");
        if is_open {
            client.bye().await;
        }
        sleep(Duration::from_millis(500)).await;
    }
}

async fn says_and_hears(client: &mut Client, text: &str) -> String {
    says(client, text).await;
    let (outcome, heard) = reply(client).await;
    assert_eq!(outcome, "commit", "{heard}");
    heard
}

async fn becomes(fleet: &Fleet, what: (&str, &str)) -> wire::Route {
    let began = Instant::now();
    loop {
        let route = route(fleet, "new").await;
        if (route.region.as_str(), route.placing.as_str()) == what {
            return route;
        }
        assert!(
            began.elapsed() < SOON,
            "{what:?}: {route:?} {}",
            fleet.logs()
        );
        sleep(Duration::from_millis(100)).await;
    }
}

/// F-112: the server of a region's language model fails, and only there. Who talks there is answered by the next
/// model within the turn; new sessions stay with that one, or go to the other region, as their tenant's rules say,
/// and come back when the server has been well for long enough.
#[tokio::test(flavor = "multi_thread")]
async fn a_models_server_fails_in_one_region_only() {
    let fails = Arc::new(AtomicBool::new(false));
    let is_out = Arc::clone(&fails);
    let eu = Web::start(move |_asked| {
        if is_out.load(Relaxed) {
            Reply::new(503, "overloaded")
        } else {
            Reply::completion(&["Hello from the first model."])
        }
    })
    .await;
    let us = Web::start(|_asked| Reply::completion(&["Hello from the other region."])).await;
    let ground = Ground {
        settings: BTreeMap::from([("a", stands("eu", &eu.url)), ("b", stands("us", &us.url))]),
        ..Ground::default()
    };
    let fleet = Fleet::start_on(ground, &["a", "b"]).await;
    rules(&fleet, &["alternates", "region"]).await;
    let mut client = connect(&fleet, "talks", "eu").await;
    let heard = says_and_hears(&mut client, "Hello.").await;
    assert!(heard.contains("first model"), "{heard}");

    fails.store(true, Relaxed);
    let began = Instant::now();
    let mut found_out = 0;
    let stays = loop {
        // A session does not ask again whom it had to give up: the first of several find it out, and none
        // goes without an answer.
        found_out += 1;
        let mut client = connect(&fleet, &format!("finds-out-{found_out}"), "eu").await;
        assert!(!says_and_hears(&mut client, "Hello.").await.is_empty());
        client.bye().await;
        let route = route(&fleet, "new").await;
        if route.placing == "outage_alternate" {
            break route;
        }
        let asked = eu.asked().len();
        assert!(
            began.elapsed() < SOON * 2,
            "asked {asked} times; {route:?} {}",
            fleet.logs()
        );
    };
    assert_eq!(stays.region, "eu");
    let outage = stays.outage.unwrap();
    assert_eq!(
        (outage.provider.as_str(), outage.alternate.as_str()),
        ("openai", "dialogue")
    );
    rules(&fleet, &["region", "alternates"]).await;
    let left = becomes(&fleet, ("us", "outage_region")).await;
    assert_eq!(left.passed[0].why, "provider_outage");
    let mut moved = connect(&fleet, "moved", "us").await;
    let heard = says_and_hears(&mut moved, "Hello.").await;
    assert!(heard.contains("other region"), "{heard}");

    fails.store(false, Relaxed);
    becomes(&fleet, ("eu", "nearest")).await;
    let mut back = connect(&fleet, "back", "eu").await;
    let heard = says_and_hears(&mut back, "Hello.").await;
    assert!(heard.contains("first model"), "{heard}");
}
