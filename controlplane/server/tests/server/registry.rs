//! Published versions (F-015, F-028, F-082, F-092, F-102, NF-010).

use std::collections::BTreeMap;

use rspp_controlplane_api::{ControlError, reason, wire};

use crate::rig::{Rig, publication, publish, source};

#[track_caller]
fn refused(error: ControlError, expected: &str) -> BTreeMap<String, String> {
    match error {
        ControlError::Refused {
            reason, details, ..
        } => {
            assert_eq!(reason, expected);
            details
        }
        other => panic!("{other:?}"),
    }
}

/// F-015, F-092, F-082: published once, listed and fetched with who, when and what, never changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_published_once_and_stays() {
    let rig = Rig::start().await;
    let admin = rig.admin();
    let request = wire::PublishRequest {
        labels: BTreeMap::from([("team".to_owned(), "desk".to_owned())]),
        ..publication("desk-1")
    };
    let dry = wire::PublishRequest {
        dry_run: true,
        ..request.clone()
    };
    assert!(!admin.publish(dry).await.unwrap().already);
    let first = admin.publish(request.clone()).await.unwrap();
    assert!(!first.already, "a dry run publishes nothing");
    // With a comment it still means the same (F-082).
    let commented = wire::PublishRequest {
        source: format!("# a remark\n{}", request.source),
        ..request.clone()
    };
    assert!(admin.publish(commented).await.unwrap().already);
    let other = wire::PublishRequest {
        source: request.source.replace("speech_ms: 200", "speech_ms: 250"),
        ..request.clone()
    };
    assert_ne!(other.source, request.source);
    let details = refused(
        admin.publish(other).await.unwrap_err(),
        reason::VERSION_IMMUTABLE,
    );
    assert_eq!(details["published"], first.artifact.unwrap().hash);

    publish(&admin, "desk-2").await;
    let fetch = |version: &str| wire::GetArtifactRequest {
        kind: wire::Kind::Pipeline.into(),
        version: version.to_owned(),
    };
    let fetched = admin.get_artifact(fetch("desk-1")).await.unwrap();
    assert_eq!(fetched.source, source("desk-1"));
    assert_eq!((fetched.author.as_str(), fetched.hash.len()), ("ana", 64));
    assert!(fetched.created_at_ms > 0);
    let gone = admin.get_artifact(fetch("desk-9")).await.unwrap_err();
    assert_eq!(refused(gone, reason::NOT_FOUND)["what"], "pipeline");
    let list = |labels| wire::ListArtifactsRequest {
        kind: wire::Kind::Pipeline.into(),
        labels,
        ..wire::ListArtifactsRequest::default()
    };
    let all = admin.list_artifacts(list(BTreeMap::new())).await.unwrap();
    let names: Vec<_> = all.artifacts.iter().map(|it| it.version.as_str()).collect();
    assert_eq!(names, ["desk-1", "desk-2"]);
    let found = admin.list_artifacts(list(request.labels)).await.unwrap();
    assert_eq!(found.artifacts.len(), 1);
}

/// F-082: what a pipeline says of itself is kept with it, and found by it; what is said when it is published
/// stands over that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pipeline_says_of_itself_is_found() {
    let rig = Rig::start().await;
    let admin = rig.admin();
    let metadata = "metadata: { owner: ana, ticket: T-17 }\n";
    let request = wire::PublishRequest {
        source: format!("{}\n# why: see the ticket\n{metadata}", source("desk-1")),
        labels: BTreeMap::from([("owner".to_owned(), "bob".to_owned())]),
        ..publication("desk-1")
    };
    admin.publish(request).await.unwrap();
    publish(&admin, "desk-2").await;
    let found = async |name: &str, value: &str| {
        let request = wire::ListArtifactsRequest {
            kind: wire::Kind::Pipeline.into(),
            labels: BTreeMap::from([(name.to_owned(), value.to_owned())]),
            ..wire::ListArtifactsRequest::default()
        };
        let found = admin.list_artifacts(request).await.unwrap().artifacts;
        found.into_iter().map(|it| it.version).collect::<Vec<_>>()
    };
    assert_eq!(found("ticket", "T-17").await, ["desk-1"]);
    assert_eq!(found("owner", "bob").await, ["desk-1"]);
    assert_eq!(found("owner", "ana").await, [""; 0]);
    let fetch = wire::GetArtifactRequest {
        kind: wire::Kind::Pipeline.into(),
        version: "desk-1".to_owned(),
    };
    let kept = admin.get_artifact(fetch).await.unwrap().source;
    assert!(kept.contains("# why: see the ticket"), "{kept}");
}

/// F-028, NF-010: a tool's payload that loses a field fails the check, with the field, and is not published;
/// under the next number it passes both, and tenants on either version run side by side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_field_fails_check_and_publishing() {
    let rig = Rig::start().await;
    let admin = rig.admin();
    let _a = rig.node("a").await;
    let of = |version: &str, fields: serde_json::Value| {
        let mut spec = rspp_proto::spec::PipelineSpec::simple();
        spec.version = rspp_proto::PipelineVersion::new(version).unwrap();
        let llm = spec
            .nodes
            .iter_mut()
            .find(|it| it.kind == rspp_proto::spec::NodeKind::Llm);
        llm.unwrap().tools = serde_json::from_value(serde_json::json!([{
            "name": "order",
            "description": "Orders.",
            "parameters": { "type": "object", "properties": fields },
            "effects": "external",
        }]))
        .unwrap();
        wire::PublishRequest {
            source: serde_json::to_string(&spec).unwrap(),
            ..publication(version)
        }
    };
    let (text, number) = (
        serde_json::json!({ "type": "string" }),
        serde_json::json!({ "type": "integer" }),
    );
    let both = serde_json::json!({ "dish": text, "count": number });
    let one = serde_json::json!({ "dish": text });
    admin.publish(of("desk-1.0", both)).await.unwrap();
    for dry_run in [true, false] {
        let request = wire::PublishRequest {
            dry_run,
            ..of("desk-1.1", one.clone())
        };
        let error = admin.publish(request).await.unwrap_err();
        assert!(error.to_string().contains("count"), "{error}");
        let details = refused(error, reason::BREAKING_CHANGE);
        assert_eq!(details["suggestion"], "desk-2");
        let bumped = wire::PublishRequest {
            dry_run,
            ..of("desk-2", one.clone())
        };
        admin.publish(bumped).await.unwrap();
    }
    crate::rig::direct(&admin, "desk-1.0").await;
    let some = crate::rig::only_for("desk-2", &["bold"]);
    admin
        .change_rollout(crate::rig::change("desk", some))
        .await
        .unwrap();
    let routed = async |tenant: &str| {
        let request = wire::RouteRequest {
            tenant: tenant.to_owned(),
            session: format!("of-{tenant}"),
            transport: "websocket".to_owned(),
            ..wire::RouteRequest::default()
        };
        let route = rig.client("operator/otto").route_session(request).await;
        route.map(|it| it.pipeline).unwrap_or_default()
    };
    crate::rig::until("both are given", async || {
        routed("bold").await == "desk-2" && routed("acme").await == "desk-1.0"
    })
    .await;
}

/// F-028, NF-010: what breaks is refused with what to call it instead; under that name both stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_break_needs_the_next_number() {
    let rig = Rig::start().await;
    let admin = rig.admin();
    publish(&admin, "desk-1.0").await;
    let mut broken = rspp_proto::spec::PipelineSpec::simple();
    broken.edges.retain(|edge| {
        edge.carries != rspp_proto::spec::PortType::Audio
            || edge.to.as_str() != rspp_proto::spec::EGRESS
    });
    broken.version = rspp_proto::PipelineVersion::new("desk-1.1").unwrap();
    let request = |version: &str| wire::PublishRequest {
        source: serde_json::to_string(&broken)
            .unwrap()
            .replace("desk-1.1", version),
        ..publication(version)
    };
    let error = admin.publish(request("desk-1.1")).await.unwrap_err();
    if let ControlError::Refused { reason, .. } = &error
        && reason == reason::SPEC_INVALID
    {
        panic!("the example must break others, not itself: {error}");
    }
    let details = refused(error, reason::BREAKING_CHANGE);
    assert_eq!(
        (&*details["before"], &*details["suggestion"]),
        ("desk-1.0", "desk-2")
    );
    admin.publish(request("desk-2")).await.unwrap();
}

/// What is wrong is refused with its field or its place, and nothing is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_refused() {
    let rig = Rig::start().await;
    let admin = rig.admin();
    let unnamed = wire::PublishRequest {
        version: "desk".to_owned(),
        ..publication("desk-1")
    };
    let details = refused(
        admin.publish(unnamed).await.unwrap_err(),
        reason::INVALID_ARGUMENT,
    );
    assert_eq!(details["field"], "version");
    let of_nothing = wire::PublishRequest {
        kind: 0,
        ..publication("desk-1")
    };
    let details = refused(
        admin.publish(of_nothing).await.unwrap_err(),
        reason::INVALID_ARGUMENT,
    );
    assert_eq!(details["field"], "kind");
    let other_name = wire::PublishRequest {
        version: "desk-2".to_owned(),
        ..publication("desk-1")
    };
    let details = refused(
        admin.publish(other_name).await.unwrap_err(),
        reason::SPEC_INVALID,
    );
    assert_eq!(details["says"], "desk-1");
    let unreadable = wire::PublishRequest {
        source: "nodes: [".to_owned(),
        ..publication("desk-1")
    };
    refused(
        admin.publish(unreadable).await.unwrap_err(),
        reason::SPEC_INVALID,
    );
    let large = wire::PublishRequest {
        source: "#".repeat(300 * 1024),
        ..publication("desk-1")
    };
    refused(admin.publish(large).await.unwrap_err(), reason::TOO_LARGE);
    // More than a message may have.
    let huge = wire::PublishRequest {
        source: "#".repeat(5 * 1024 * 1024),
        ..publication("desk-1")
    };
    refused(admin.publish(huge).await.unwrap_err(), reason::TOO_LARGE);
}

/// F-158: issue 4: a request that is repeated has one effect, and its id is not another's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_is_answered_alike() {
    let rig = Rig::start().await;
    let admin = rig.admin();
    let request = wire::PublishRequest {
        request_id: "r-1".to_owned(),
        ..publication("desk-1")
    };
    let first = admin.publish(request.clone()).await.unwrap();
    let again = admin.publish(request.clone()).await.unwrap();
    assert_eq!(first, again, "the answer of the first, not of a second try");
    let other = wire::PublishRequest {
        request_id: "r-1".to_owned(),
        ..publication("desk-2")
    };
    refused(
        admin.publish(other.clone()).await.unwrap_err(),
        reason::REQUEST_ID_REUSED,
    );
    // Ids are each caller's own.
    rig.client("admin/alma").publish(other).await.unwrap();
}
