//! Where sessions go and whether they may (F-094, F-098, F-099, F-110, F-119, F-168).

use std::{collections::BTreeMap, sync::Arc};

use rspp_controlplane::{
    keys,
    token::{Keyring, SessionClaims, TokenError},
};
use rspp_controlplane_api::{
    ControlError, ControlPlane as _, Leave, RouteAsk, SnapshotKind, UsageReport, reason, wire,
};
use rspp_controlplane_server::Settings;
use rspp_proto::{
    PipelineVersion, Region, RuntimeId, SessionId, TenantId, WallClock, control::ARCHIVE_REGION,
};

use crate::rig::{Rig, change, description, direct, publish, settings};

async fn govern(rig: &Rig, document: serde_json::Value) -> wire::Governance {
    let request = wire::SetGovernanceRequest {
        document: document.to_string(),
        ..wire::SetGovernanceRequest::default()
    };
    let set = rig.admin().set_governance(request).await.unwrap();
    // Until it is followed.
    for _ in 0..200 {
        let line = wire::EvaluateRequest {
            tenant: "acme".to_owned(),
            line: "desk".to_owned(),
        };
        let decision = rig.client("operator/otto").evaluate(line).await.unwrap();
        if decision.snapshot == format!("admission-policy/{}", set.version) {
            return set;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the rules are not followed");
}

/// NF-013: a request is told from those of another kind that have its name, and no page begins outside of its
/// list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_pages_are_each_of_their_own_kind() {
    let rig = Rig::start().await;
    let report = wire::ReportUsageRequest {
        tenant: "acme".to_owned(),
        request_id: "two".to_owned(),
        ..wire::ReportUsageRequest::default()
    };
    rig.admin().count_usage(report).await.unwrap();
    let rules = wire::SetGovernanceRequest {
        document: "{}".to_owned(),
        request_id: "two".to_owned(),
        ..wire::SetGovernanceRequest::default()
    };
    rig.admin().set_governance(rules).await.unwrap();
    for page_token in ["/rspp/keyring", "/rspp/audit-head", "no key"] {
        let list = wire::ListSessionsRequest {
            page_token: page_token.to_owned(),
            ..wire::ListSessionsRequest::default()
        };
        let refused = rig.admin().list_sessions(list).await.unwrap_err();
        assert!(
            refused.to_string().contains("is of another list"),
            "{refused}"
        );
    }
}

/// F-099, F-119: an endpoint, the version that is meant, and a token that says all of it and is good for
/// nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_has_an_endpoint_a_version_and_a_token() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let none = rig.route("s", "").await.unwrap_err();
    assert!(
        matches!(
            none,
            ControlError::NoRoute {
                retry_after: None,
                ..
            }
        ),
        "{none:?}"
    );
    let a = rig.node("a").await;
    let route = rig.route("s", "").await.unwrap();
    assert_eq!(route.endpoint.as_ref().unwrap().url, "ws://a.test/call");
    assert_eq!(
        (route.pipeline.as_str(), route.why.as_str()),
        ("desk-1", "stable")
    );
    assert!(route.routing_view_snapshot.starts_with("routing-view/"));
    assert!(
        route
            .version_resolution_snapshot
            .starts_with("version-resolution/desk/")
    );
    assert_eq!(
        route.decision.as_ref().unwrap().reason,
        "cp_admission_allowed"
    );
    let token = route.token.unwrap();
    assert!(
        !format!("{token:?}").contains(&token.token),
        "it is never printed"
    );
    let entry = rig.store.get(&keys::keyring()).await.unwrap().unwrap();
    let ring: Keyring = serde_json::from_slice(&entry.value).unwrap();
    let expires = WallClock(token.expires_at_ms);
    let before = WallClock(token.expires_at_ms - 1_000);
    let claims = ring.verify::<SessionClaims>(&token.token, before).unwrap();
    let (session, runtime) = (SessionId::new("s").unwrap(), RuntimeId::new("a").unwrap());
    assert_eq!(claims.is_for(&runtime, &session, "websocket"), Ok(()));
    assert_eq!(
        claims.is_for(&runtime, &session, "telephony"),
        Err(TokenError::WrongAudience)
    );
    assert_eq!(claims.pipeline.as_str(), "desk-1");
    assert_eq!(
        ring.verify::<SessionClaims>(&token.token, expires),
        Err(TokenError::Expired)
    );
    // Once it is placed, whoever asks is told where.
    let lease = a.acquire("s", 1).await.unwrap();
    let _b = rig.node("b").await;
    for _ in 0..4 {
        let route = rig.route("s", "").await.unwrap();
        assert_eq!(
            (route.runtime.as_str(), route.epoch),
            ("a", lease.epoch.get())
        );
        assert_eq!(route.why, "bound");
    }
    // A runtime asks for a client that came to the wrong one.
    let ask = RouteAsk {
        tenant: TenantId::new("acme").unwrap(),
        session,
        transport: "websocket".to_owned(),
        pipeline: None,
        latencies_ms: BTreeMap::new(),
        needs: BTreeMap::new(),
        except: [RuntimeId::new("b").unwrap()].into(),
        token_ttl: None,
    };
    let route = rig.client("runtime/b").route(ask.clone()).await.unwrap();
    assert_eq!(
        (route.runtime.as_str(), route.epoch),
        ("a", Some(lease.epoch))
    );
    a.client
        .release(a.writer(&lease), Leave::end("the user hung up"))
        .await
        .unwrap();
    let over = rig.client("runtime/b").route(ask).await;
    assert!(matches!(over, Err(ControlError::Ended)), "{over:?}");
}

/// F-093, P26: which pipeline is meant, and that a version cannot be had by merely naming it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_must_be_offered() {
    let rig = Rig::start().await;
    let _a = rig.node("a").await;
    let none = rig.route("s", "").await.unwrap_err();
    assert!(matches!(&none, ControlError::Refused { reason, .. } if reason == reason::NOT_FOUND));
    rig.pipeline("desk-1").await;
    rig.pipeline("shop-1").await;
    publish(&rig.admin(), "desk-2").await;
    let error = rig.route("s", "").await.unwrap_err();
    assert!(
        matches!(&error, ControlError::Refused { reason, details, .. }
            if reason == reason::PIPELINE_AMBIGUOUS && details["lines"] == "desk,shop"),
        "{error:?}"
    );
    assert_eq!(rig.route("s", "shop").await.unwrap().pipeline, "shop-1");
    let error = rig.route("s", "desk-2").await.unwrap_err();
    assert!(
        matches!(&error, ControlError::Refused { reason, details, .. }
            if reason == reason::VERSION_NOT_OFFERED && details["offered"] == "desk-1"),
        "{error:?}"
    );
}

/// F-158, F-098: limits by tenant, over the wire: a refusal says which, and when to ask again; what ends is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_opens_as_many_sessions_as_it_may() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let a = rig.node("a").await;
    let quota = |over: &str| {
        serde_json::json!({ "admission": { "tenants": { "acme": {
            "sessions": { "limit": 2, "over": over } } } } })
    };
    govern(&rig, quota("reject")).await;
    let first = a.acquire("s-1", 1).await.unwrap();
    // An answer that was lost is not counted twice.
    a.acquire("s-1", 1).await.unwrap();
    a.acquire("s-2", 1).await.unwrap();
    let error = a.acquire("s-3", 1).await.unwrap_err();
    let ControlError::NotAdmitted {
        cause, retry_after, ..
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!(
        (cause.as_str(), *retry_after),
        ("cp_admission_reject_quota", None)
    );
    let routed = rig.route("s-3", "").await.unwrap_err();
    assert!(
        matches!(routed, ControlError::NotAdmitted { .. }),
        "told before anybody connects"
    );
    govern(&rig, quota("defer")).await;
    let error = a.acquire("s-3", 1).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    a.client
        .release(a.writer(&first), Leave::end("the user hung up"))
        .await
        .unwrap();
    a.acquire("s-3", 1).await.unwrap();
    let usage = wire::GetUsageRequest {
        tenant: "acme".to_owned(),
    };
    let used = rig
        .client("operator/otto")
        .get_usage(usage.clone())
        .await
        .unwrap();
    assert_eq!((used.open, used.opened_per_minute), (2, 3));
    // Tokens are counted once, however often they are reported.
    for _ in 0..3 {
        let report = UsageReport {
            tenant: TenantId::new("acme").unwrap(),
            pipeline: PipelineVersion::new("desk-1").unwrap(),
            tokens: 70,
            report: "report-1".to_owned(),
        };
        assert_eq!(a.client.report_usage(report).await.unwrap(), None);
    }
    let used = rig.client("operator/otto").get_usage(usage).await.unwrap();
    assert_eq!(used.tokens_per_minute, 70);
    // What was decided is measured: two that were not let in, one that came too early, three that were.
    let measured = rspp_proto::metric::text(&rig.plane.measured());
    for (decision, count) in [("admitted", 3), ("deferred", 1), ("rejected", 2)] {
        let line = format!(
            "admission_decisions_total{{decision=\"{decision}\",subject=\"session\",tenant_id=\"acme\"}} {count}\n"
        );
        assert!(measured.contains(&line), "{line} in {measured}");
    }
}

/// F-098: many sessions of one tenant that come at once are all let in and all counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_one_tenant_is_counted() {
    const CROWD: usize = 60;
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let a = rig.node("a").await;
    let names: Vec<_> = (0..CROWD).map(|n| format!("s-{n}")).collect();
    let taken = futures::future::join_all(names.iter().map(|name| a.acquire(name, 1))).await;
    for granted in taken {
        granted.unwrap();
    }
    let usage = wire::GetUsageRequest {
        tenant: "acme".to_owned(),
    };
    let used = rig.client("operator/otto").get_usage(usage).await.unwrap();
    assert_eq!(used.open, CROWD as u64);
}

/// F-094, F-168, F-110: where a tenant's sessions may be, and the nearest of those.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_stays_where_it_may_be() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let a = rig.node_in("a", "eu").await;
    let b = rig.node_in("b", "us").await;
    let near_us = wire::RouteRequest {
        tenant: "acme".to_owned(),
        session: "s".to_owned(),
        transport: "websocket".to_owned(),
        latencies_ms: BTreeMap::from([("us".to_owned(), 10), ("eu".to_owned(), 90)]),
        ..wire::RouteRequest::default()
    };
    let route = |request: wire::RouteRequest| async {
        let client = rig.client("operator/otto");
        client.route_session(request).await.map(|it| it.region)
    };
    assert_eq!(route(near_us.clone()).await.unwrap(), "us");
    govern(
        &rig,
        serde_json::json!({ "residency": { "tenants": { "acme": ["eu"] } } }),
    )
    .await;
    assert_eq!(route(near_us.clone()).await.unwrap(), "eu");
    let elsewhere = wire::RouteRequest {
        except: vec!["a".to_owned()],
        ..near_us
    };
    let error = route(elsewhere).await.unwrap_err();
    assert!(
        matches!(&error, ControlError::NoRoute { message, .. } if message.contains("1 residency"))
    );
    // Nor is it granted to who stands elsewhere, however it came there, new or moved.
    let refused = b.acquire("s", 1).await.unwrap_err();
    assert!(
        matches!(&refused, ControlError::NoRoute { message, .. } if message.contains("1 residency")),
        "{refused:?}"
    );
    let lease = a.acquire("s", 1).await.unwrap();
    a.client
        .release(a.writer(&lease), Leave::Release)
        .await
        .unwrap();
    let refused = b.acquire("s", 2).await;
    assert!(
        matches!(refused, Err(ControlError::NoRoute { .. })),
        "{refused:?}"
    );
    a.acquire("s", 2).await.unwrap();
}

/// F-168, NF-034: a runtime whose archive lies where a tenant's timelines may not gets none of its sessions, though it
/// stands where it may; one whose archive may, does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_does_not_go_where_its_timeline_may_not() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let keeps_in = |name: &str, archive: &str| {
        let mut description = description(name, "eu");
        let label = (ARCHIVE_REGION.to_owned(), archive.to_owned());
        description.labels.extend([label]);
        description
    };
    let a = rig.node_as("a", keeps_in("a", "us")).await;
    assert_eq!(rig.route("s", "desk-1").await.unwrap().region, "eu");
    govern(
        &rig,
        serde_json::json!({ "residency": { "tenants": { "acme": ["eu"] } } }),
    )
    .await;
    let is_residency = |error: &ControlError| matches!(error, ControlError::NoRoute { message, .. } if message.contains("1 residency"));
    let error = rig.route("s", "desk-1").await.unwrap_err();
    assert!(is_residency(&error), "{error:?}");
    let refused = a.acquire("s", 1).await.unwrap_err();
    assert!(is_residency(&refused), "{refused:?}");
    let b = rig.node_as("b", keeps_in("b", "eu")).await;
    let route = rig.route("s", "desk-1").await.unwrap();
    assert_eq!((route.runtime.as_str(), route.region.as_str()), ("b", "eu"));
    b.acquire("s", 1).await.unwrap();
}

/// F-168: a tenant whose session data may not be where the control plane keeps it cannot be given such a rule; where
/// the rule was there before, its sessions are not granted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_data_stays_where_it_may() {
    let only_us = serde_json::json!({ "residency": { "tenants": { "acme": ["us"] } } });
    let dir = tempfile::tempdir().unwrap();
    let store = crate::ground::fresh(dir.path()).await;
    let rig = Rig::on(dir, Arc::clone(&store)).await;
    govern(&rig, only_us.clone()).await;
    let in_eu = Settings {
        region: Some(Region::new("eu").unwrap()),
        ..settings()
    };
    let rig = Rig::with(tempfile::tempdir().unwrap(), store, in_eu).await;
    rig.pipeline("desk-1").await;
    let us = rig.node_in("a", "us").await;
    let refused = us.acquire("s", 1).await.unwrap_err();
    assert!(
        matches!(&refused, ControlError::NoRoute { message, .. } if message.contains("1 residency")),
        "{refused:?}"
    );
    let request = wire::SetGovernanceRequest {
        document: only_us.to_string(),
        ..wire::SetGovernanceRequest::default()
    };
    let error = rig.admin().set_governance(request).await.unwrap_err();
    let told = "residency.tenants: acme: session data is kept in eu by this control plane";
    assert!(error.to_string().contains(told), "{error}");
}

/// Rules are changed as a whole, by whoever has seen what they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_change_one_version_at_a_time() {
    let rig = Rig::start().await;
    let admin = rig.admin();
    let set = |document: &str, if_version| wire::SetGovernanceRequest {
        document: document.to_owned(),
        if_version,
        request_id: String::new(),
    };
    let first = admin
        .set_governance(set("approvals: { approvals: 1 }", 0))
        .await
        .unwrap();
    assert_eq!(first.version, 1);
    let error = admin.set_governance(set("{}", 7)).await.unwrap_err();
    assert!(
        matches!(&error, ControlError::Refused { reason, details, .. }
            if reason == reason::VERSION_CONFLICT && details["found"] == "1"),
        "{error:?}"
    );
    let error = admin
        .set_governance(set("aproval: 1", 0))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ControlError::Refused { details, .. } if details["field"] == "document")
    );
    let found = admin
        .get_governance(wire::GetGovernanceRequest {})
        .await
        .unwrap();
    assert_eq!(found, first);
}

/// F-159: snapshots come as they are, then as they change, named and rising, with a sign of life between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_follow_what_changes() {
    use futures::StreamExt as _;
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let a = rig.node("a").await;
    let kinds = vec![SnapshotKind::VersionResolution, SnapshotKind::Keyring];
    let mut snapshots = a.client.snapshots(kinds);
    let mut told = Vec::new();
    while told.len() < 2 {
        told.extend(snapshots.next().await.unwrap().unwrap().snapshot);
    }
    told.sort_by_key(|it| it.kind);
    assert!(told[0].document.contains("desk-1"));
    assert!(told[1].document.contains("k1"));
    publish(&rig.admin(), "desk-2").await;
    direct(&rig.admin(), "desk-2").await;
    let newer = loop {
        if let Some(it) = snapshots.next().await.unwrap().unwrap().snapshot {
            break it;
        }
    };
    assert!(newer.revision > told[0].revision && newer.document.contains("desk-2"));
    let quiet = snapshots.next().await.unwrap().unwrap();
    assert_eq!(quiet.snapshot, None, "a sign of life");
    let pause = wire::change::Change::Pause(wire::Nothing {});
    let refused = rig.admin().change_rollout(change("desk", pause)).await;
    assert!(refused.is_err(), "nothing is on trial, and nothing is told");
}
