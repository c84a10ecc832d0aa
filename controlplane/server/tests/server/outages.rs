//! Providers that fail in one region, and where new sessions go then (F-112).

use std::{collections::BTreeMap, time::Duration};

use rspp_controlplane_api::{ControlError, ControlPlane as _, wire};
use rspp_proto::{
    ProviderId,
    control::{Load, Outage},
    spec::Modality,
};
use serde_json::json;

use crate::rig::{Node, Rig, until};

/// How long a provider must have been well.
const WELL_AFTER: u64 = 2;

fn failing(alternate: Option<&str>) -> Load {
    let provider = |name| ProviderId::new(name).unwrap();
    Load {
        ready: alternate.is_some(),
        outages: vec![Outage {
            modality: Modality::Llm,
            provider: provider("first"),
            alternate: alternate.map(provider),
        }],
        ..Load::default()
    }
}

async fn rules(rig: &Rig, more: serde_json::Value) {
    let mut document = json!({
        "outages": {
            "well_after_seconds": WELL_AFTER,
            "answers": ["alternates", "region"],
            "tenants": { "mover": ["region", "alternates"], "stayer": ["alternates"] },
        },
        // What is looked at here is what providers do, not what becomes of a region that has none.
        "regions": { "min_runtimes": 9 },
    });
    for (name, part) in more.as_object().unwrap() {
        document[name] = part.clone();
    }
    let request = wire::SetGovernanceRequest {
        document: document.to_string(),
        ..wire::SetGovernanceRequest::default()
    };
    rig.admin().set_governance(request).await.unwrap();
}

/// Where a new session of somebody near `eu` is sent, and why.
async fn near_eu(rig: &Rig, tenant: &str, session: &str) -> Result<wire::Route, ControlError> {
    let request = wire::RouteRequest {
        tenant: tenant.to_owned(),
        session: session.to_owned(),
        transport: "websocket".to_owned(),
        latencies_ms: BTreeMap::from([("eu".to_owned(), 10), ("us".to_owned(), 90)]),
        ..wire::RouteRequest::default()
    };
    rig.client("operator/otto").route_session(request).await
}

async fn goes(rig: &Rig, tenant: &str) -> (String, String) {
    let route = near_eu(rig, tenant, "new").await.unwrap();
    (route.region, route.placing)
}

async fn outages(rig: &Rig) -> Vec<wire::Outage> {
    let regions = rig.admin().list_regions(wire::ListRegionsRequest {}).await;
    let regions = regions.unwrap().regions.into_iter();
    regions
        .filter(|it| it.region == "eu")
        .flat_map(|it| it.outages)
        .collect()
}

async fn trail(rig: &Rig, operation: &str) -> Vec<(String, serde_json::Value)> {
    let request = wire::ListEntriesRequest {
        operation: operation.to_owned(),
        ..wire::ListEntriesRequest::default()
    };
    let entries = rig.admin().list_entries(request).await.unwrap().entries;
    let entries = entries.into_iter();
    entries
        .map(|it| (it.subject, serde_json::from_str(&it.detail).unwrap()))
        .collect()
}

async fn two_regions(rig: &Rig) -> (Node, Node) {
    rig.pipeline("desk-1").await;
    (rig.node_in("a", "eu").await, rig.node_in("b", "us").await)
}

fn is(region: &str, placing: &str) -> (String, String) {
    (region.to_owned(), placing.to_owned())
}

/// F-112: a provider fails in one region only. New sessions are served there by who is asked next, or go to the
/// next region, as the rules of their tenant say; the answer, the trail and the measurements say what and why.
/// They come back once the provider has been well for long enough, and not before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_in_one_region_is_answered_by_the_tenants_rules() {
    let rig = Rig::start().await;
    let (a, _b) = two_regions(&rig).await;
    rules(&rig, json!({})).await;
    for tenant in ["acme", "mover", "stayer"] {
        assert_eq!(goes(&rig, tenant).await, is("eu", "nearest"));
    }
    a.fares(failing(Some("next"))).await;
    until("eu has an outage", async || outages(&rig).await.len() == 1).await;
    assert_eq!(outages(&rig).await[0].alternate, "next");
    assert_eq!(goes(&rig, "acme").await, is("eu", "outage_alternate"));
    assert_eq!(goes(&rig, "stayer").await, is("eu", "outage_alternate"));
    let moved = near_eu(&rig, "mover", "new").await.unwrap();
    assert_eq!(
        (moved.region.as_str(), moved.placing.as_str()),
        ("us", "outage_region")
    );
    let passed: Vec<_> = moved
        .passed
        .iter()
        .map(|it| (it.region.as_str(), it.why.as_str()))
        .collect();
    assert_eq!(passed, [("eu", "provider_outage")]);
    assert_eq!(moved.outage.unwrap().provider, "first");
    assert!(moved.routing_view_snapshot.starts_with("routing-view/"));
    // Nobody is left to ask there: whoever may leave leaves.
    a.fares(failing(None)).await;
    until("nobody is left", async || {
        goes(&rig, "acme").await == is("us", "outage_region")
    })
    .await;
    let stayed = near_eu(&rig, "stayer", "new").await.unwrap_err();
    assert!(
        stayed
            .to_string()
            .contains("1 provider_outage, 1 outage_not_left"),
        "{stayed}"
    );
    // It is said once, of each tenant and answer, whatever comes.
    until("the trail", async || {
        trail(&rig, "outage_answered").await.len() >= 4
    })
    .await;
    let answered = trail(&rig, "outage_answered").await;
    let told = answered.iter().map(|(_, it)| {
        format!(
            "{} {}",
            it["region"].as_str().unwrap(),
            it["placing"].as_str().unwrap()
        )
    });
    let told: Vec<_> = told.collect();
    assert!(told.contains(&"us outage_region".to_owned()), "{told:?}");
    let before = answered.len();
    for _again in 0..10 {
        goes(&rig, "acme").await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(trail(&rig, "outage_answered").await.len(), before);
    let began = trail(&rig, "provider_outage").await;
    assert_eq!(began.len(), 1);
    assert_eq!(
        (began[0].0.as_str(), &began[0].1["outage"]["provider"]),
        ("eu", &"first".into())
    );
    let measured = rig.plane.measured();
    let count = |name: &str, label: &str| -> f64 {
        let of = measured.iter().filter(|it| it.name.as_str() == name);
        let of = of.filter(|it| it.labels.values().any(|value| value == label));
        of.map(|it| it.value).sum()
    };
    assert!(count("route_placings_total", "outage_region") >= 2.0);
    assert!(count("route_placings_total", "outage_alternate") >= 2.0);
    assert!((count("provider_outages", "first") - 1.0).abs() < f64::EPSILON);
    // It says nothing of it any more: that is believed after a while.
    a.fares(Load {
        ready: true,
        ..Load::default()
    })
    .await;
    let well = tokio::time::Instant::now();
    assert_eq!(
        goes(&rig, "mover").await,
        is("us", "outage_region"),
        "not at once"
    );
    until("they come back", async || {
        goes(&rig, "mover").await == is("eu", "nearest")
    })
    .await;
    assert!(
        well.elapsed() >= Duration::from_secs(WELL_AFTER - 1),
        "{:?}",
        well.elapsed()
    );
    assert_eq!(outages(&rig).await, []);
    assert_eq!(trail(&rig, "provider_recovered").await.len(), 1);
}

/// F-112, F-168: no outage sends a session where its tenant's may not be, and none takes a session away that is
/// held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn residency_wins_over_any_answer() {
    let rig = Rig::start().await;
    let (a, b) = two_regions(&rig).await;
    rules(
        &rig,
        json!({ "residency": { "tenants": { "mover": ["eu"] } } }),
    )
    .await;
    let held = a.acquire("held", 1).await.unwrap();
    a.fares(failing(Some("next"))).await;
    until("eu has an outage", async || outages(&rig).await.len() == 1).await;
    assert_eq!(goes(&rig, "mover").await, is("eu", "outage_alternate"));
    let route = near_eu(&rig, "acme", "held").await.unwrap();
    assert_eq!(
        (route.placing.as_str(), route.epoch),
        ("held", held.epoch.get())
    );
    a.fares(failing(None)).await;
    until("nobody is left", async || {
        matches!(
            near_eu(&rig, "mover", "new").await,
            Err(ControlError::NoRoute { .. })
        )
    })
    .await;
    let mut ask = b.ask("new", 1);
    ask.wanted.tenant = rspp_proto::TenantId::new("mover").unwrap();
    assert!(b.client.acquire(ask).await.is_err(), "nor by itself");
}
