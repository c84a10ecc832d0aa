//! Who may do what (F-114, F-115, NF-012).

use std::fmt::Write as _;

use futures::FutureExt as _;
use rspp_controlplane::access::Role;
use rspp_controlplane_api::{Client, ControlError, reason, wire};

use crate::rig::{Rig, access, key};

fn verdict<T>(answer: &Result<T, ControlError>) -> char {
    match answer {
        Err(ControlError::Denied { .. } | ControlError::Unauthenticated { .. }) => '-',
        Ok(_) | Err(_) => '+',
    }
}

/// Calls everything that there is with as little as can be said.
async fn tried(client: &Client) -> Vec<(&'static str, char)> {
    let mut found = Vec::new();
    macro_rules! calls {
        ($($method:ident($request:ident $({$($field:ident: $value:expr),*})?);)*) => {$(
            #[allow(clippy::needless_update, reason = "some have no other fields")]
            let request = wire::$request { $($($field: $value,)*)? ..wire::$request::default() };
            found.push((stringify!($method), verdict(&client.$method(request).boxed().await)));
        )*};
    }
    let kind: i32 = wire::Kind::Pipeline.into();
    let tenant = || "acme".to_owned();
    let session = || "s".to_owned();
    let by = || {
        Some(wire::Holder {
            runtime: "node-1".to_owned(),
            incarnation: 1,
        })
    };
    let retreat = || {
        Some(wire::Change {
            change: Some(wire::change::Change::Pause(wire::Nothing {})),
        })
    };
    calls! {
        publish(PublishRequest { kind: kind });
        get_artifact(GetArtifactRequest { kind: kind });
        list_artifacts(ListArtifactsRequest { kind: kind });
        get_rollout(GetRolloutRequest { kind: kind });
        list_rollouts(ListRolloutsRequest { kind: kind });
        change_rollout(ChangeRolloutRequest { kind: kind });
        decide_proposal(DecideProposalRequest);
        list_proposals(ListProposalsRequest);
        report_readings(ReportReadingsRequest { by: by(), number: 1 });
        resolve(ResolveRequest { kind: kind });
        evaluate(EvaluateRequest { tenant: tenant() });
        get_usage(GetUsageRequest { tenant: tenant() });
        count_usage(ReportUsageRequest { tenant: tenant() });
        get_governance(GetGovernanceRequest);
        set_governance(SetGovernanceRequest { document: "[".to_owned() });
        acquire_lease(AcquireRequest { by: by(), attempt: 1, session: session(),
            binding: Some(wire::Binding { tenant: tenant(), ..wire::Binding::default() }) });
        renew_leases(RenewRequest { by: by() });
        release_lease(ReleaseRequest { by: by(), session: session(), epoch: 1 });
        register_runtime(RegisterRequest { runtime: "node-1".to_owned() });
        beat(HeartbeatRequest { by: by() });
        list_runtimes(ListRuntimesRequest);
        drain_runtime(DrainRuntimeRequest { runtime: "nobody".to_owned() });
        list_regions(ListRegionsRequest);
        set_region(SetRegionRequest);
        route_session(RouteRequest { tenant: tenant(), session: session(), transport: "websocket".to_owned() });
        get_status(GetStatusRequest { tenant: tenant(), session: session() });
        list_sessions(ListSessionsRequest);
        move_session(MoveSessionRequest { tenant: tenant(), session: session() });
        tell_status(ReportStatusRequest { by: by() });
        load_values(LoadStateRequest { by: by(), session: session(), epoch: 1 });
        commit_values(CommitStateRequest { by: by(), session: session(), epoch: 1 });
        list_entries(ListEntriesRequest);
        verify_trail(VerifyTrailRequest);
        list_keys(ListKeysRequest);
        add_key(AddKeyRequest);
        promote_key(PromoteKeyRequest);
        retire_key(RetireKeyRequest);
    }
    let request = wire::ChangeRolloutRequest {
        kind,
        line: "desk".to_owned(),
        change: retreat(),
        ..wire::ChangeRolloutRequest::default()
    };
    found.push(("…retreat", verdict(&client.change_rollout(request).await)));
    found.push((
        "export_trail",
        verdict(&client.export_trail().await.map(|_| ())),
    ));
    found.push((
        "take_backup",
        verdict(&client.take_backup().await.map(|_| ())),
    ));
    let nothing = futures::stream::empty();
    found.push(("restore", verdict(&client.restore(nothing).await)));
    found
}

/// F-115, NF-012: every call, in every role, over the wire: viewer, operator, admin, runtime, nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_may_exactly_what_it_is_for() {
    let rig = Rig::start().await;
    let callers = [
        rig.client("viewer/vera"),
        rig.client("operator/otto"),
        rig.client("admin/ana"),
        rig.client("runtime/node-1"),
        rig.with_token(None),
    ];
    let mut columns = Vec::new();
    for caller in &callers {
        columns.push(tried(caller).await);
    }
    let mut table = String::new();
    for (row, (name, _)) in columns[0].iter().enumerate() {
        let marks: String = columns.iter().map(|column| column[row].1).collect();
        writeln!(table, "{name:<18} {marks}").unwrap();
    }
    let expected = "\
publish            --+--
get_artifact       ++++-
list_artifacts     ++++-
get_rollout        ++++-
list_rollouts      ++++-
change_rollout     --+--
decide_proposal    --+--
list_proposals     ++++-
report_readings    ---+-
resolve            ++++-
evaluate           -+++-
get_usage          -+++-
count_usage        -+++-
get_governance     --+--
set_governance     --+--
acquire_lease      ---+-
renew_leases       ---+-
release_lease      ---+-
register_runtime   ---+-
beat               ---+-
list_runtimes      ++++-
drain_runtime      -++--
list_regions       ++++-
set_region         -++--
route_session      -+++-
get_status         ++++-
list_sessions      ++++-
move_session       -++--
tell_status        ---+-
load_values        ---+-
commit_values      ---+-
list_entries       --+--
verify_trail       --+--
list_keys          ++++-
add_key            --+--
promote_key        --+--
retire_key         --+--
…retreat           -++--
export_trail       --+--
take_backup        --+--
restore            --+--
";
    assert_eq!(table, expected);
    // Each denial is on record, with who, as what, and what.
    let denied = || wire::ListEntriesRequest {
        outcome: "denied".to_owned(),
        ..wire::ListEntriesRequest::default()
    };
    let count = expected.lines().flat_map(|line| line[19..].chars());
    let count = count.filter(|mark| *mark == '-').count();
    let mut entries = Vec::new();
    for _ in 0..200 {
        entries = rig.admin().list_entries(denied()).await.unwrap().entries;
        if entries.len() == count {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(entries.len(), count);
    let veras = entries.iter().find(|it| it.actor == "vera").unwrap();
    assert_eq!(
        (veras.role.as_str(), veras.operation.as_str()),
        ("viewer", "publish")
    );
    assert!(
        entries.iter().any(|it| it.actor.is_empty()),
        "nobody is on record too"
    );
}

fn route_of(tenant: &str) -> wire::RouteRequest {
    wire::RouteRequest {
        tenant: tenant.to_owned(),
        session: "s".to_owned(),
        transport: "websocket".to_owned(),
        ..wire::RouteRequest::default()
    }
}

/// F-114: who acts for one tenant does nothing for others, by certificate and by token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_people_stay_with_their_tenant() {
    let rig = Rig::start().await;
    let token = access(&key("k1", 1), Role::Operator, Some(&["acme"]), 0);
    for client in [
        rig.client("operator/olga/tenant/acme"),
        rig.with_token(Some(token)),
    ] {
        let own = client.route_session(route_of("acme")).await.unwrap_err();
        assert!(!matches!(own, ControlError::Denied { .. }), "{own:?}");
        for denied in [
            client.route_session(route_of("other")).await.map(|_| ()),
            client
                .list_sessions(wire::ListSessionsRequest::default())
                .await
                .map(|_| ()),
            client
                .drain_runtime(wire::DrainRuntimeRequest::default())
                .await
                .map(|_| ()),
        ] {
            let denied = denied.unwrap_err();
            assert!(
                matches!(&denied, ControlError::Denied { reason, .. }
                    if [reason::TENANT_DENIED, reason::FLEET_DENIED].contains(&reason.as_str())),
                "{denied:?}"
            );
        }
    }
}

/// F-119: only a good token shows who calls, and it is not printed by whoever refuses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_token_shows_nobody() {
    let rig = Rig::start().await;
    let good = access(&key("k1", 1), Role::Viewer, None, 0);
    let list = |token: &str| {
        let client = rig.with_token(Some(token.to_owned()));
        async move { client.list_keys(wire::ListKeysRequest {}).await }
    };
    list(&good).await.unwrap();
    let mut altered = good.clone();
    altered.truncate(good.len() - 4);
    altered.push_str("AAAA");
    for (bad, what) in [
        (access(&key("k9", 9), Role::Admin, None, 0), "not trusted"),
        (
            access(&key("k1", 9), Role::Admin, None, 0),
            "signature is wrong",
        ),
        (access(&key("k1", 1), Role::Admin, None, 600), "expired"),
        (
            access(&key("k1", 1), Role::Admin, None, -600),
            "not valid yet",
        ),
        (altered, "signature is wrong"),
        ("garbage".to_owned(), "malformed"),
    ] {
        let error = list(&bad).await.unwrap_err();
        let ControlError::Unauthenticated { reason, message } = error else {
            panic!("{error:?}");
        };
        assert_eq!(reason, reason::CREDENTIALS_INVALID);
        assert!(message.contains(what), "{message}");
        assert!(!message.contains(&bad[..7]), "{message}");
    }
    let nobody = rig
        .with_token(None)
        .list_keys(wire::ListKeysRequest {})
        .await;
    assert!(
        matches!(nobody, Err(ControlError::Unauthenticated { ref reason, .. })
            if reason == reason::CREDENTIALS_MISSING)
    );
}

/// Design §5: a runtime speaks for itself only, whatever certificate its neighbour has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_does_not_speak_for_another() {
    let rig = Rig::start().await;
    let node = rig.node("a").await;
    let other = rig.client("runtime/b");
    let renew = wire::RenewRequest {
        by: Some((&node.holder()).into()),
        held: Vec::new(),
    };
    let error = other.renew_leases(renew).await.unwrap_err();
    assert!(
        matches!(&error, ControlError::Denied { reason, .. } if reason == reason::HOLDER_DENIED),
        "{error:?}"
    );
}
