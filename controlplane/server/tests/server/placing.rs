//! Which runtime and region sessions go to, what happens when those fall ill, and which versions they
//! are bound to (F-094, F-096, F-102, F-103, F-110, F-111, F-113, NF-032).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rspp_controlplane_api::{
    Client, ControlError, ControlPlane as _, HeldSession, Leave, Lost, Write, wire,
};
use rspp_proto::{
    RuntimeId,
    control::{Emptying, Load, PROTOCOL, ProtocolWindow, WhyRevoked},
};

use crate::rig::{Node, Rig, change, description, emptied, only_for, publish, until};

const READY: Load = Load {
    sessions: 0,
    cpu_percent: 0,
    ready: true,
    overloaded: false,
    outages: Vec::new(),
};

/// The runtimes that so many new sessions are sent to, and how many to each.
async fn spread(rig: &Rig, sessions: u32) -> BTreeMap<String, u32> {
    let client = rig.client("operator/otto");
    let mut counts = BTreeMap::new();
    for number in 0..sessions {
        let request = wire::RouteRequest {
            tenant: "acme".to_owned(),
            session: format!("new-{number}"),
            transport: "websocket".to_owned(),
            ..wire::RouteRequest::default()
        };
        let route = client.route_session(request).await.unwrap();
        *counts.entry(route.runtime).or_default() += 1;
    }
    counts
}

fn names(counts: &BTreeMap<String, u32>) -> BTreeSet<&str> {
    counts.keys().map(String::as_str).collect()
}

/// F-094, F-108: only runtimes that are well, have room and are not being emptied get sessions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_runtimes_that_are_well_and_have_room_get_sessions() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let well = rig.node("well").await;
    let ill = rig.node("ill").await;
    let full = rig.node("full").await;
    let busy = rig.node("busy").await;
    let _leaving = rig.node("leaving").await;
    assert_eq!(
        spread(&rig, 60).await.len(),
        5,
        "all of them, while all are well"
    );
    ill.fares(Load {
        ready: false,
        ..READY
    })
    .await;
    // As many as it takes.
    full.fares(Load {
        sessions: 100,
        ..READY
    })
    .await;
    busy.fares(Load {
        overloaded: true,
        ..READY
    })
    .await;
    let otto = rig.client("operator/otto");
    otto.drain_runtime(emptied("leaving")).await.unwrap();
    until("only one is fit", async || {
        names(&spread(&rig, 20).await) == BTreeSet::from(["well"])
    })
    .await;
    well.fares(Load {
        ready: false,
        ..READY
    })
    .await;
    until("nobody is fit", async || {
        matches!(
            rig.route("new", "").await,
            Err(ControlError::NoRoute { .. })
        )
    })
    .await;
}

/// F-103: sessions spread over all replicas; those that come get some, those that go get none, and a
/// session that is held stays where it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_spread_while_replicas_come_and_go() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let a = rig.node("a").await;
    let mut b = rig.node("b").await;
    let held = a.acquire("held", 1).await.unwrap();
    let two = spread(&rig, 60).await;
    assert_eq!(names(&two), BTreeSet::from(["a", "b"]));
    assert!(two.values().all(|count| *count >= 15), "{two:?}");
    let _c = rig.node("c").await;
    let three = spread(&rig, 60).await;
    assert_eq!(names(&three), BTreeSet::from(["a", "b", "c"]));
    b.fall_silent();
    until("b gets none", async || {
        names(&spread(&rig, 20).await) == BTreeSet::from(["a", "c"])
    })
    .await;
    let again = rig.route("held", "").await.unwrap();
    assert_eq!(
        (again.runtime.as_str(), again.epoch),
        ("a", held.epoch.get())
    );
}

/// Publishes `desk-1` and `desk-2` of policies or of provider settings.
async fn publish_two(admin: &Client, kind: wire::Kind) {
    for version in ["desk-1", "desk-2"] {
        let source = format!(
            "schema: rspp.policy.bundle.v1\npolicy_resolution_snapshot: policy/{version}\n\
             allowed_adaptive_actions: []\n"
        );
        let request = wire::PublishRequest {
            kind: kind.into(),
            version: version.to_owned(),
            source,
            ..wire::PublishRequest::default()
        };
        admin.publish(request).await.unwrap();
    }
}

/// F-102: policies and provider settings roll forward and back without a new pipeline, and each session
/// keeps those that it began with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_roll_by_themselves_and_sessions_keep_theirs() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let a = rig.node("a").await;
    let admin = rig.admin();
    for kind in [wire::Kind::Policy, wire::Kind::Providers] {
        publish_two(&admin, kind).await;
    }
    let roll = async |kind: wire::Kind, to: wire::change::Change| {
        let request = wire::ChangeRolloutRequest {
            kind: kind.into(),
            ..change("desk", to)
        };
        admin.change_rollout(request).await.unwrap();
    };
    let direct = |version: &str| wire::change::Change::Direct(version.to_owned());
    let mut number = 0;
    let mut bound = async |policy: Option<&str>, providers: Option<&str>| {
        // Until it is followed.
        for _ in 0..200 {
            number += 1;
            let granted = a.acquire(&format!("s-{number}"), 1).await.unwrap();
            let binding = granted.binding;
            assert_eq!(binding.pipeline.as_str(), "desk-1", "no new pipeline");
            if binding.policy.as_deref() == policy && binding.providers.as_deref() == providers {
                return format!("s-{number}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{policy:?} and {providers:?} were never given");
    };
    let before = bound(None, None).await;
    roll(wire::Kind::Policy, direct("desk-1")).await;
    let first = bound(Some("desk-1"), None).await;
    roll(wire::Kind::Policy, direct("desk-2")).await;
    roll(wire::Kind::Providers, direct("desk-1")).await;
    let second = bound(Some("desk-2"), Some("desk-1")).await;
    let back = wire::change::Change::RollBack(String::new());
    roll(wire::Kind::Policy, back).await;
    let third = bound(Some("desk-1"), Some("desk-1")).await;
    let kept = [
        (before, "", ""),
        (first, "desk-1", ""),
        (second, "desk-2", "desk-1"),
        (third, "desk-1", "desk-1"),
    ];
    for (session, policy, providers) in kept {
        let request = wire::GetStatusRequest {
            tenant: "acme".to_owned(),
            session,
        };
        let status = admin.get_status(request).await.unwrap();
        let binding = status.binding.unwrap();
        assert_eq!(
            (binding.policy.as_str(), binding.providers.as_str()),
            (policy, providers)
        );
    }
}

async fn rules(rig: &Rig, mode: &str) {
    let document = serde_json::json!({ "regions": {
        "min_runtimes": 1,
        "mode": mode,
        "ill_after_seconds": 1,
        "well_after_seconds": 1,
    } });
    let request = wire::SetGovernanceRequest {
        document: document.to_string(),
        ..wire::SetGovernanceRequest::default()
    };
    rig.admin().set_governance(request).await.unwrap();
}

/// Where somebody near `eu` is sent.
async fn near_eu(rig: &Rig, session: &str) -> String {
    let request = wire::RouteRequest {
        tenant: "acme".to_owned(),
        session: session.to_owned(),
        transport: "websocket".to_owned(),
        latencies_ms: BTreeMap::from([("eu".to_owned(), 10), ("us".to_owned(), 90)]),
        ..wire::RouteRequest::default()
    };
    let route = rig.client("operator/otto").route_session(request).await;
    route.unwrap().region
}

async fn is_judged(rig: &Rig, duty: wire::RegionDuty) -> bool {
    let regions = rig.admin().list_regions(wire::ListRegionsRequest {}).await;
    let regions = regions.unwrap().regions;
    regions
        .iter()
        .any(|it| it.region == "eu" && it.duty() == duty && !it.by_operator)
}

async fn trail(rig: &Rig, operation: &str) -> Vec<String> {
    let request = wire::ListEntriesRequest {
        operation: operation.to_owned(),
        ..wire::ListEntriesRequest::default()
    };
    let entries = rig.admin().list_entries(request).await.unwrap().entries;
    entries.into_iter().map(|it| it.subject).collect()
}

async fn revoked(node: &Node, granted: &rspp_controlplane_api::Granted) -> Option<WhyRevoked> {
    let held = vec![HeldSession {
        session: granted.session.clone(),
        epoch: granted.epoch,
        prove: false,
    }];
    let renewed = node.client.renew(&node.holder(), held).await.unwrap();
    assert_eq!(renewed.lost, Vec::<Lost>::new());
    renewed.revoked.first().map(|it| it.why)
}

/// F-096, F-110, F-113: the nearest region falls ill; new sessions go to the next, and come back when it
/// is well. In mode `drain` the running ones end where they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ill_region_is_drained() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    rules(&rig, "drain").await;
    let a = rig.node_in("a", "eu").await;
    let _b = rig.node_in("b", "us").await;
    let lease = a.acquire("s", 1).await.unwrap();
    assert_eq!(near_eu(&rig, "new-1").await, "eu");
    a.fares(Load {
        ready: false,
        ..READY
    })
    .await;
    until("eu is left", async || {
        is_judged(&rig, wire::RegionDuty::Drain).await
    })
    .await;
    assert_eq!(near_eu(&rig, "new-2").await, "us");
    // Several rounds of the leader later nobody has told it to let go.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(revoked(&a, &lease).await, None);
    assert_eq!(near_eu(&rig, "s").await, "eu", "it is where it was");
    assert_eq!(trail(&rig, "region_judged").await, ["eu"]);
    assert!(trail(&rig, "migrate").await.is_empty());
    a.fares(READY).await;
    until("eu serves", async || {
        is_judged(&rig, wire::RegionDuty::Serving).await
    })
    .await;
    assert_eq!(near_eu(&rig, "new-3").await, "eu");
}

/// F-168, F-096: who may only be in a region is still sent there when it was left for its health, as long as
/// somebody there can take it, and is not moved about; where an operator left it the refusal says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn residency_binds_where_health_would_leave() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let document = serde_json::json!({
        "regions": {
            "min_runtimes": 1,
            "ill_percent": 50,
            "mode": "migrate",
            "ill_after_seconds": 1,
            "well_after_seconds": 1,
        },
        "residency": { "tenants": { "acme": ["eu"] } },
    });
    let request = wire::SetGovernanceRequest {
        document: document.to_string(),
        ..wire::SetGovernanceRequest::default()
    };
    rig.admin().set_governance(request).await.unwrap();
    let a = rig.node_in("a", "eu").await;
    let ill = rig.node_in("ill", "eu").await;
    let _us = rig.node_in("b", "us").await;
    let lease = a.acquire("s", 1).await.unwrap();
    ill.fares(Load {
        ready: false,
        ..READY
    })
    .await;
    until("eu is left", async || {
        is_judged(&rig, wire::RegionDuty::Migrate).await
    })
    .await;
    let route = rig.route("new", "").await.unwrap();
    assert_eq!(
        (route.runtime.as_str(), route.placing.as_str()),
        ("a", "only_region")
    );
    // Several rounds of the leader later it has not been told to go where it may not be.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(revoked(&a, &lease).await, None);
    let leave = wire::SetRegionRequest {
        region: "eu".to_owned(),
        duty: wire::RegionDuty::Drain.into(),
        ..wire::SetRegionRequest::default()
    };
    rig.client("operator/otto").set_region(leave).await.unwrap();
    until("an operator's word holds", async || {
        let refused = rig.route("new", "").await;
        let told = "its tenant may only be in eu, and operators keep new sessions from eu";
        matches!(&refused, Err(ControlError::NoRoute { message, .. }) if message.contains(told))
    })
    .await;
}

/// F-096, F-113: the same, in mode `migrate`: the running session moves with its id and what it kept, and
/// the trail says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ill_region_is_migrated() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    rules(&rig, "migrate").await;
    let a = rig.node_in("a", "eu").await;
    let b = rig.node_in("b", "us").await;
    let lease = a.acquire("s", 1).await.unwrap();
    let talk = Write {
        key: "talk".to_owned(),
        value: "what was said".into(),
        expected: None,
    };
    let kept = a.client.commit_state(a.writer(&lease), vec![talk.clone()]);
    kept.await.unwrap();
    a.fares(Load {
        ready: false,
        ..READY
    })
    .await;
    until("it is told to let go", async || {
        revoked(&a, &lease).await == Some(WhyRevoked::Region)
    })
    .await;
    a.client
        .release(a.writer(&lease), Leave::Release)
        .await
        .unwrap();
    assert_eq!(near_eu(&rig, "s").await, "us");
    let next = b.acquire("s", 1).await.unwrap();
    assert_eq!(
        (&next.session, next.epoch),
        (&lease.session, lease.epoch.next())
    );
    assert!(next.resumed);
    let state = b.client.load_state(b.writer(&next), Vec::new()).await;
    assert_eq!(&*state.unwrap()["talk"].value, "what was said");
    // Who had it says nothing more.
    let late = a.client.commit_state(a.writer(&lease), vec![talk]).await;
    assert!(matches!(late, Err(ControlError::Stale { .. })), "{late:?}");
    until("the trail", async || trail(&rig, "migrate").await == ["s"]).await;
    assert_eq!(trail(&rig, "region_judged").await, ["eu"]);
}

/// F-096, F-110: a region that is left is taken back at once when nobody else can take a session any more: the
/// fleet does not end with well runtimes that serve nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_was_left_serves_again_when_the_other_dies() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    rules(&rig, "drain").await;
    let mut near = rig.node_in("near", "eu").await;
    let one = rig.node_in("one", "us").await;
    let _two = rig.node_in("two", "us").await;
    let mut three = rig.node_in("three", "us").await;
    three.fall_silent();
    one.fares(Load {
        ready: false,
        ..READY
    })
    .await;
    let is_left = async || {
        let regions = rig.admin().list_regions(wire::ListRegionsRequest {}).await;
        let regions = regions.unwrap().regions;
        let us = regions.into_iter().find(|it| it.region == "us").unwrap();
        us.duty() == wire::RegionDuty::Drain
    };
    until("us is left", async || is_left().await).await;
    one.fares(READY).await;
    // One of three is dead: too many to come back for its own health yet.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(is_left().await);
    near.fall_silent();
    until("us serves again", async || !is_left().await).await;
    let route = rig.route("new", "").await.unwrap();
    assert_eq!(route.region, "us");
}

/// F-103, F-106: most of a region's runtimes are taken out in order, and the region goes on serving.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_is_scaled_in_goes_on_serving() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    rules(&rig, "drain").await;
    let _one = rig.node_in("one", "eu").await;
    let mut two = rig.node_in("two", "eu").await;
    let mut three = rig.node_in("three", "eu").await;
    let _far = rig.node_in("far", "us").await;
    // The leader has had the time to judge.
    tokio::time::sleep(crate::rig::TTL * 2).await;
    for leaves in [&two, &three] {
        let told = leaves
            .client
            .begin_drain(&leaves.holder(), Some(Emptying::Finish), Vec::new());
        told.await.unwrap();
        leaves
            .fares(Load {
                ready: false,
                ..READY
            })
            .await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    two.fall_silent();
    three.fall_silent();
    until("they have left", async || {
        let answer = rig
            .admin()
            .list_runtimes(wire::ListRuntimesRequest {})
            .await;
        let runtimes = answer.unwrap().runtimes;
        runtimes.iter().filter(|it| it.presence == "left").count() == 2
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(trail(&rig, "region_judged").await, Vec::<String>::new());
    assert_eq!(near_eu(&rig, "new").await, "eu");
}

/// F-096: an operator's word about a region that is none is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_regions_that_there_are_can_be_left() {
    let rig = Rig::start().await;
    let _near = rig.node_in("near", "eu").await;
    let set = async |region: &str| {
        let request = wire::SetRegionRequest {
            region: region.to_owned(),
            duty: wire::RegionDuty::Drain.into(),
            ..wire::SetRegionRequest::default()
        };
        rig.client("operator/otto").set_region(request).await
    };
    let refused = set("mars").await.unwrap_err();
    assert!(
        refused.to_string().contains("no region `mars`"),
        "{refused}"
    );
    assert_eq!(set("eu").await.unwrap().duty(), wire::RegionDuty::Drain);
}

/// F-094, F-101: a client that asks where its session is while the runtime that holds it is dead and its lease
/// still runs is told so, and when to ask again; then it is sent to somebody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_to_a_silent_runtime_says_when_to_ask_again() {
    let rig = Rig::start_as(rspp_controlplane_server::Settings {
        heartbeat: Duration::from_millis(500),
        ..crate::rig::settings()
    })
    .await;
    rig.pipeline("desk-1").await;
    let mut a = rig.node("a").await;
    let _b = rig.node("b").await;
    a.acquire("s", 1).await.unwrap();
    let fresh = rig.route("another", "").await.unwrap();
    assert_eq!(
        (fresh.silent_ms, fresh.again_after_ms),
        (0, 0),
        "nobody holds it"
    );
    let held = rig.route("s", "").await.unwrap();
    assert_eq!((held.runtime.as_str(), held.silent_ms), ("a", 0));
    assert!((200..=3_500).contains(&held.again_after_ms), "{held:?}");
    a.fall_silent();
    let mut silent = None;
    until("it says that it is silent", async || {
        silent = rig.route("s", "").await.ok().filter(|it| it.silent_ms > 0);
        silent.is_some()
    })
    .await;
    let silent = silent.unwrap();
    assert_eq!(silent.runtime, "a", "nobody else may have it yet");
    assert!(silent.silent_ms >= 1_000, "{silent:?}");
    // The store counts in whole seconds, and looks now and then.
    let patience = Duration::from_millis(silent.again_after_ms) + Duration::from_secs(1);
    tokio::time::sleep(patience).await;
    let after = rig.route("s", "").await.unwrap();
    assert_eq!((after.runtime.as_str(), after.again_after_ms), ("b", 0));
}

/// F-111: of two regions that both take sessions on, one runs a session; the other is refused, and when
/// it has taken over, the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_regions_never_run_one_session() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let mut a = rig.node_in("a", "eu").await;
    let b = rig.node_in("b", "us").await;
    let write = || {
        vec![Write {
            key: "said".to_owned(),
            value: "something".into(),
            expected: None,
        }]
    };
    let lease = a.acquire("s", 1).await.unwrap();
    let refused = b.acquire("s", 1).await;
    assert!(
        matches!(refused, Err(ControlError::Held { .. })),
        "{refused:?}"
    );
    let mut guessed = b.writer(&lease);
    for _ in 0..2 {
        let forged = b.client.commit_state(guessed.clone(), write()).await;
        assert!(
            matches!(forged, Err(ControlError::Stale { .. })),
            "{forged:?}"
        );
        guessed.epoch = guessed.epoch.next();
    }
    a.client
        .commit_state(a.writer(&lease), write())
        .await
        .unwrap();
    a.fall_silent();
    let mut attempt = 1;
    let taken = loop {
        attempt += 1;
        match b.acquire("s", attempt).await {
            Ok(taken) => break taken,
            Err(ControlError::Held { .. }) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    };
    assert!(taken.taken_over);
    let late = a.client.commit_state(a.writer(&lease), write()).await;
    assert!(
        matches!(
            late,
            Err(ControlError::Stale { .. } | ControlError::HolderGone { .. })
        ),
        "{late:?}"
    );
    b.client
        .commit_state(b.writer(&taken), write())
        .await
        .unwrap();
}

/// NF-032: every cell of the matrix of protocol versions, over the wire: who speaks one of ours joins and
/// holds a session, all others are told which side to upgrade.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_cell_of_the_version_matrix_is_as_it_says() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let (ours, newer) = (PROTOCOL.newest, PROTOCOL.newest + 1);
    let window = |oldest, newest| ProtocolWindow { oldest, newest };
    let upgrade = |who: &str| Some(format!("upgrade the {who} first"));
    let table = [
        (window(ours, ours), "v1.0", None),
        // A runtime of the next release, which still speaks ours.
        (window(ours, newer), "v1.0", None),
        (window(PROTOCOL.oldest, ours), "v1.0", None),
        (window(newer, newer), "v1.0", upgrade("control plane")),
        (window(0, PROTOCOL.oldest - 1), "v1.0", upgrade("runtime")),
        (window(ours, ours), "v1.1", None),
        (window(ours, ours), "v2.0", upgrade("control plane")),
        (window(ours, ours), "v0.9", upgrade("runtime")),
        (
            window(ours, ours),
            "one",
            Some("`one` is no event schema version".to_owned()),
        ),
    ];
    for (number, (protocol, events, refusal)) in table.into_iter().enumerate() {
        let name = format!("node-{number}");
        let client = rig.client(&format!("runtime/{name}"));
        let mut says = description(&name, "eu");
        says.protocol = protocol;
        events.clone_into(&mut says.events);
        let joined = client.register(RuntimeId::new(&*name).unwrap(), says).await;
        match (joined, refusal) {
            (Ok(joined), None) => {
                assert_eq!(joined.protocol, ours, "the newest that both speak");
                let ask = rspp_controlplane_api::Acquire {
                    by: joined.holder,
                    attempt: rspp_proto::control::Attempt(1),
                    session: rspp_proto::SessionId::new(format!("s-{number}")).unwrap(),
                    wanted: rspp_controlplane_api::Wanted {
                        tenant: rspp_proto::TenantId::new("acme").unwrap(),
                        pipeline: None,
                        policy: None,
                        providers: None,
                    },
                };
                client.acquire(ask).await.unwrap();
            }
            (Err(error), Some(told)) => {
                assert!(error.to_string().contains(&told), "{error}");
            }
            (answer, refusal) => panic!("{protocol:?} {events}: {answer:?}, not {refusal:?}"),
        }
    }
}

/// F-101, F-114: a tenant's people see their sessions, and of others' not even that they are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_sees_its_own_sessions_only() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    publish(&rig.admin(), "desk-2").await;
    let a = rig.node("a").await;
    for (tenant, session) in [("acme", "s-1"), ("acme", "s-2"), ("other", "t-1")] {
        let mut ask = a.ask(session, 1);
        ask.wanted.tenant = rspp_proto::TenantId::new(tenant).unwrap();
        a.client.acquire(ask).await.unwrap();
    }
    let viewer = rig.client("viewer/vera/tenant/acme");
    let list = |tenant: &str| wire::ListSessionsRequest {
        tenant: tenant.to_owned(),
        ..wire::ListSessionsRequest::default()
    };
    let mine = viewer.list_sessions(list("acme")).await.unwrap().sessions;
    let mine: Vec<_> = mine.iter().map(|it| it.session.as_str()).collect();
    assert_eq!(mine, ["s-1", "s-2"]);
    for tenant in ["other", ""] {
        let denied = viewer.list_sessions(list(tenant)).await;
        assert!(
            matches!(denied, Err(ControlError::Denied { .. })),
            "{tenant}: {denied:?}"
        );
    }
    let peek = |tenant: &str, session: &str| wire::GetStatusRequest {
        tenant: tenant.to_owned(),
        session: session.to_owned(),
    };
    assert!(viewer.get_status(peek("acme", "s-1")).await.is_ok());
    // Under its own name, it is told the same of another's session as of none.
    let theirs = viewer.get_status(peek("acme", "t-1")).await.unwrap_err();
    let nobodys = viewer.get_status(peek("acme", "x-1")).await.unwrap_err();
    assert_eq!(theirs.to_string(), nobodys.to_string());
    assert!(matches!(theirs, ControlError::UnknownSession));
}

/// F-114: two tenants in parallel: each has the quotas, the policy and the provider settings that are its
/// own, what one uses up is no business of the other's, and what each is shown names nothing of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_in_parallel_have_what_is_their_own() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let a = rig.node("a").await;
    let admin = rig.admin();
    for kind in [wire::Kind::Policy, wire::Kind::Providers] {
        publish_two(&admin, kind).await;
        let everybody = wire::change::Change::Direct("desk-1".to_owned());
        for to in [everybody, only_for("desk-2", &["bold"])] {
            let request = wire::ChangeRolloutRequest {
                kind: kind.into(),
                ..change("desk", to)
            };
            admin.change_rollout(request).await.unwrap();
        }
    }
    let rules = serde_json::json!({ "admission": { "tenants": {
        "acme": { "sessions": { "limit": 1 } },
        "bold": { "sessions": { "limit": 2 } },
    } } });
    let request = wire::SetGovernanceRequest {
        document: rules.to_string(),
        ..wire::SetGovernanceRequest::default()
    };
    admin.set_governance(request).await.unwrap();
    let take = async |tenant: &str, session: &str| {
        let mut ask = a.ask(session, 1);
        ask.wanted.tenant = rspp_proto::TenantId::new(tenant).unwrap();
        a.client.acquire(ask).await
    };
    let route = async |tenant: &str| {
        let request = wire::RouteRequest {
            tenant: tenant.to_owned(),
            session: format!("probe-of-{tenant}"),
            transport: "websocket".to_owned(),
            ..wire::RouteRequest::default()
        };
        rig.client("operator/otto").route_session(request).await
    };
    until("the rules are followed", async || {
        let decision = route("acme").await.ok().and_then(|it| it.decision);
        decision.is_some_and(|it| it.snapshot == "admission-policy/1")
    })
    .await;
    let (of_acme, of_bold) = tokio::join!(take("acme", "acme-1"), take("bold", "bold-1"));
    let (of_acme, of_bold) = (of_acme.unwrap().binding, of_bold.unwrap().binding);
    assert_eq!(of_acme.versions().policy.as_deref(), Some("desk-1"));
    assert_eq!(of_acme.versions().providers.as_deref(), Some("desk-1"));
    assert_eq!(of_bold.versions().policy.as_deref(), Some("desk-2"));
    assert_eq!(of_bold.versions().providers.as_deref(), Some("desk-2"));
    // One has used up what it may; the other has not.
    let (beyond, within) = tokio::join!(take("acme", "acme-2"), take("bold", "bold-2"));
    assert!(matches!(beyond, Err(ControlError::NotAdmitted { .. })));
    within.unwrap();
    // Nothing of one is in anything that the other's people are shown, nor under its name.
    for (tenant, other) in [("acme", "bold"), ("bold", "acme")] {
        let viewer = rig.client(&format!("viewer/vera/tenant/{tenant}"));
        let request = wire::ListSessionsRequest {
            tenant: tenant.to_owned(),
            ended: true,
            ..wire::ListSessionsRequest::default()
        };
        let shown = format!("{:?}", viewer.list_sessions(request).await.unwrap());
        assert!(shown.contains(tenant) && !shown.contains(other), "{shown}");
        let peek = wire::GetStatusRequest {
            tenant: tenant.to_owned(),
            session: format!("{other}-1"),
        };
        let refused = viewer.get_status(peek).await;
        assert!(matches!(refused, Err(ControlError::UnknownSession)));
        let trail = viewer
            .list_entries(wire::ListEntriesRequest::default())
            .await;
        assert!(matches!(trail, Err(ControlError::Denied { .. })));
    }
}
