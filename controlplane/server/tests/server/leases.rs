//! Who speaks for a session, over the wire and against the clock (F-095, F-111, F-155..F-158).

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use rspp_controlplane::{
    keys,
    store::{Key, Query},
    token::{Keyring, LeaseClaims},
};
use rspp_controlplane_api::{
    ControlError, ControlPlane as _, HeldSession, Leave, Order, Renewed, StatusReport, Version,
    Write, wire,
};
use rspp_controlplane_server::{MAX_FINISH, Settings};
use rspp_proto::{
    Epoch, RuntimeId, SessionId, WallClock,
    control::{Attempt, SessionPhase, WhyRevoked},
};

use crate::rig::{Node, Rig, TTL, description, emptied, until};

/// A pipeline, and three runtimes that may run it.
async fn three() -> (Rig, [Node; 3]) {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let nodes = [
        rig.node("a").await,
        rig.node("b").await,
        rig.node("c").await,
    ];
    (rig, nodes)
}

async fn renew(node: &Node, held: &[(&str, Epoch)]) -> Result<Renewed, ControlError> {
    let held = held.iter().map(|(session, epoch)| HeldSession {
        session: SessionId::new(*session).unwrap(),
        epoch: *epoch,
        prove: false,
    });
    node.client.renew(&node.holder(), held.collect()).await
}

fn write(key: &str, value: &str, expected: Option<u64>) -> Write {
    Write {
        key: key.to_owned(),
        value: Arc::from(value),
        expected: expected.map(Version),
    }
}

/// Moves it; it may take so long to finish what it says, or as long as is set.
async fn moved(
    rig: &Rig,
    session: &str,
    to: &str,
    finish_within: Option<Duration>,
) -> Result<wire::SessionStatus, ControlError> {
    let request = wire::MoveSessionRequest {
        tenant: "acme".to_owned(),
        session: session.to_owned(),
        to: to.to_owned(),
        finish_within_ms: finish_within.map(|it| it.as_millis() as u64),
        ..wire::MoveSessionRequest::default()
    };
    rig.client("operator/otto").move_session(request).await
}

/// F-114, F-102, F-095, F-158: one holder; a repeated attempt gives the same lease, a later one the next epoch, an
/// earlier one nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_has_one_holder() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let (a, b) = (rig.node("a").await, rig.node("b").await);
    let first = a.acquire("s", 5).await.unwrap();
    assert_eq!((first.epoch, first.ttl), (Epoch::FIRST, TTL));
    assert_eq!(first.binding.pipeline.as_str(), "desk-1");
    assert!(!first.taken_over && !first.resumed);
    let again = a.acquire("s", 5).await.unwrap();
    assert_eq!((again.epoch, &again.binding), (first.epoch, &first.binding));
    assert!(matches!(
        a.acquire("s", 4).await,
        Err(ControlError::Overtaken)
    ));
    let held = b.acquire("s", 1).await.unwrap_err();
    assert!(
        matches!(&held, ControlError::Held { message } if message.contains("a#1")),
        "{held:?}"
    );
    let next = a.acquire("s", 6).await.unwrap();
    assert_eq!(next.epoch, first.epoch.next());
    assert!(next.resumed && !next.taken_over);
    // The proof says so to others, and expires.
    let entry = rig.store.get(&keys::keyring()).await.unwrap().unwrap();
    let ring: Keyring = serde_json::from_slice(&entry.value).unwrap();
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_millis();
    let now = WallClock(u64::try_from(now).unwrap());
    let claims = ring
        .verify::<LeaseClaims>(next.proof.expose(), now)
        .unwrap();
    assert_eq!((claims.holder(), claims.epoch), (a.holder(), next.epoch));
    // Another tenant is told of no such session.
    let mut foreign = b.ask("s", 2);
    foreign.wanted.tenant = rspp_proto::TenantId::new("other").unwrap();
    let unknown = b.client.acquire(foreign).await;
    assert!(
        matches!(unknown, Err(ControlError::UnknownSession)),
        "{unknown:?}"
    );
}

/// F-095: renewals compare what is held with what is written, and prolong all of it at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_says_what_is_not_held() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let a = rig.node("a").await;
    let first = a.acquire("s", 1).await.unwrap().epoch;
    let second = a.acquire("s", 2).await.unwrap().epoch;
    a.acquire("t", 1).await.unwrap();
    let good = renew(&a, &[("s", second), ("t", Epoch::FIRST)])
        .await
        .unwrap();
    assert_eq!(
        good,
        Renewed {
            ttl: TTL,
            ..Renewed::default()
        }
    );
    let renewed = renew(&a, &[("s", first), ("nowhere", first)])
        .await
        .unwrap();
    let lost: Vec<_> = renewed
        .lost
        .iter()
        .map(|it| (it.session.as_str(), it.newest))
        .collect();
    assert!(lost.contains(&("s", Some(second))), "{lost:?}");
    assert!(lost.contains(&("nowhere", None)), "{lost:?}");
    // For as long as it renews nobody else gets what it has, and longer than one lease.
    let b = rig.node("b").await;
    for _ in 0..5 {
        tokio::time::sleep(TTL * 2 / 5).await;
        renew(&a, &[("s", second)]).await.unwrap();
        assert!(matches!(
            b.acquire("s", 1).await,
            Err(ControlError::Held { .. })
        ));
    }
}

/// F-156, F-095: who stops renewing loses everything, by the store's clock and not before; what wakes up late
/// finds that out by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_runtime_is_replaced() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let (mut a, b) = (rig.node("a").await, rig.node("b").await);
    let lease = a.acquire("s", 1).await.unwrap();
    a.fall_silent();
    let silent_since = tokio::time::Instant::now();
    renew(&a, &[("s", lease.epoch)]).await.unwrap();
    let mut attempt = 0;
    let taken = loop {
        attempt += 1;
        renew(&b, &[]).await.unwrap();
        match b.acquire("s", attempt).await {
            Ok(taken) => break taken,
            Err(ControlError::Held { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{error:?}"),
        }
    };
    assert!(
        silent_since.elapsed() > TTL,
        "it may have believed in it until then"
    );
    assert!(taken.taken_over && taken.resumed);
    assert_eq!(taken.epoch, lease.epoch.next());
    // The late one: nothing of what it tries goes through.
    let late = renew(&a, &[("s", lease.epoch)]).await;
    assert!(
        matches!(late, Err(ControlError::HolderGone { .. })),
        "{late:?}"
    );
    let late = a
        .client
        .commit_state(a.writer(&lease), vec![write("k", "1", None)])
        .await;
    assert!(matches!(late, Err(ControlError::Stale { .. })), "{late:?}");
    let late = a.acquire("s", 2).await;
    assert!(
        matches!(late, Err(ControlError::HolderGone { .. })),
        "{late:?}"
    );
    // The failover is on record.
    for _ in 0..200 {
        let asked = wire::ListEntriesRequest {
            operation: "failover".to_owned(),
            ..wire::ListEntriesRequest::default()
        };
        let found = rig.admin().list_entries(asked).await.unwrap().entries;
        if let [entry] = &*found {
            assert_eq!(entry.subject, "s");
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the failover is not on record");
}

/// NF-032: a runtime that registers anew is somebody else: what it held waits until it cannot be believed in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_makes_another_holder() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let first = rig.node("a").await;
    let lease = first.acquire("s", 1).await.unwrap();
    let second = rig.node("a").await;
    assert!(second.holder().incarnation > first.holder().incarnation);
    let refused = second.acquire("s", 1).await;
    assert!(
        matches!(refused, Err(ControlError::Held { .. })),
        "{refused:?}"
    );
    let gone = renew(&first, &[("s", lease.epoch)]).await;
    assert!(
        matches!(gone, Err(ControlError::HolderGone { .. })),
        "{gone:?}"
    );
    let mut odd = description("b", "eu");
    odd.protocol.oldest = 7;
    odd.protocol.newest = 8;
    let client = rig.client("runtime/b");
    let refused = client
        .register(RuntimeId::new("b").unwrap(), odd)
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, ControlError::Refused { details, .. } if details["cause"] == "protocol")
    );
}

/// F-155, F-157, F-113: an operator moves a session: its holder is told, keeps it until it lets go, and whom it
/// is kept for gets it, with what it kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_moved_on_order() {
    let (rig, [a, b, c]) = three().await;
    let lease = a.acquire("s", 1).await.unwrap();
    let mut orders = a.client.orders(&a.holder());
    assert_eq!(orders.next().await.unwrap().unwrap(), Order::Settled);
    let status = moved(&rig, "s", "b", None).await.unwrap();
    assert_eq!(status.reason, "letting_go_transfer");
    let Order::Revoke(revocation) = orders.next().await.unwrap().unwrap() else {
        panic!("the order is pushed");
    };
    assert_eq!(
        (revocation.why, revocation.epoch),
        (WhyRevoked::Transfer, lease.epoch)
    );
    assert_eq!(revocation.to.as_ref().unwrap().as_str(), "b");
    let set = Settings::default().finish_within;
    assert_eq!(revocation.finish_within, set, "as it is set");
    // It is named with every renewal, too, and whoever watches later is told as well.
    for _ in 0..2 {
        let renewed = renew(&a, &[("s", lease.epoch)]).await.unwrap();
        assert_eq!(renewed.revoked, std::slice::from_ref(&revocation));
    }
    let mut late = a.client.orders(&a.holder());
    assert_eq!(
        late.next().await.unwrap().unwrap(),
        Order::Revoke(revocation)
    );
    let refused = b.acquire("s", 1).await;
    assert!(
        matches!(refused, Err(ControlError::LettingGo { .. })),
        "{refused:?}"
    );
    // It still is the one writer, and keeps what is to be gone on with.
    let versions = a
        .client
        .commit_state(a.writer(&lease), vec![write("talk", "[1]", Some(0))])
        .await
        .unwrap();
    assert_eq!(versions, [Version(1)]);
    a.client
        .release(a.writer(&lease), Leave::Release)
        .await
        .unwrap();
    a.client
        .release(a.writer(&lease), Leave::Release)
        .await
        .unwrap();
    let reserved = c.acquire("s", 1).await;
    assert!(
        matches!(&reserved, Err(ControlError::Reserved { runtime }) if runtime.as_str() == "b")
    );
    let taken = b.acquire("s", 2).await.unwrap();
    assert!(!taken.taken_over && taken.resumed);
    assert_eq!(taken.binding, lease.binding);
    let kept = b
        .client
        .load_state(b.writer(&taken), Vec::new())
        .await
        .unwrap();
    assert_eq!(
        (&*kept["talk"].value, kept["talk"].epoch),
        ("[1]", lease.epoch)
    );
    let renewed = renew(&a, &[]).await.unwrap();
    assert_eq!(renewed.revoked, [], "who has let go is not told again");
}

/// F-096, F-157: a session moves to who can take it, and nobody waits for one that takes no sessions any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_who_takes_no_sessions() {
    let (rig, [a, b, c]) = three().await;
    let lease = a.acquire("s", 1).await.unwrap();
    let itself = moved(&rig, "s", "a", None).await.unwrap_err();
    assert!(itself.to_string().contains("on `a` already"), "{itself}");
    moved(&rig, "s", "b", None).await.unwrap();
    let otto = rig.client("operator/otto");
    otto.drain_runtime(emptied("b")).await.unwrap();
    let mut refused = String::new();
    until("the drain has come round", async || {
        let moved = moved(&rig, "s", "b", None).await;
        refused = moved.err().map(|it| it.to_string()).unwrap_or_default();
        !refused.is_empty()
    })
    .await;
    assert!(refused.contains("is being emptied"), "{refused}");
    a.client
        .release(a.writer(&lease), Leave::Release)
        .await
        .unwrap();
    c.acquire("s", 1).await.unwrap();
    drop(b);
}

/// F-106, F-111: a holder that does not let go is not waited for longer than it may believe in its lease or was
/// given to finish, and no shorter; the order stays for it to find.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deaf_holder_is_waited_for_and_no_longer() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let (a, b) = (rig.node("a").await, rig.node("b").await);
    let lease = a.acquire("s", 1).await.unwrap();
    let within = TTL + Duration::from_secs(1);
    moved(&rig, "s", "", Some(within)).await.unwrap();
    let ordered = tokio::time::Instant::now();
    // Another order changes nothing of what the holder counts on.
    moved(&rig, "s", "", Some(Duration::ZERO)).await.unwrap();
    let mut attempt = 0;
    let taken = loop {
        attempt += 1;
        // It renews all the while, and is told each time.
        let told = renew(&a, &[("s", lease.epoch)]).await.unwrap();
        assert_eq!(told.revoked.len(), 1);
        assert_eq!(told.revoked[0].finish_within, within);
        renew(&b, &[]).await.unwrap();
        match b.acquire("s", attempt).await {
            Ok(taken) => break taken,
            Err(ControlError::LettingGo { .. }) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    };
    assert!(ordered.elapsed() > within);
    assert!(taken.taken_over);
    let told = renew(&a, &[("s", lease.epoch)]).await.unwrap();
    assert_eq!((told.revoked.len(), told.lost.len()), (1, 1));
    // Letting go of what somebody else has by now is no error, and ends the order.
    a.client
        .release(a.writer(&lease), Leave::Release)
        .await
        .unwrap();
    assert_eq!(renew(&a, &[]).await.unwrap().revoked, []);
    let refused = a.client.release(a.writer(&lease), Leave::Release).await;
    assert!(
        matches!(refused, Err(ControlError::Stale { .. })),
        "{refused:?}"
    );
}

/// F-106: nobody is given longer to finish than ten minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_finishes_for_ever() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let a = rig.node("a").await;
    a.acquire("s", 1).await.unwrap();
    let long = Some(MAX_FINISH + Duration::from_millis(1));
    let refused = moved(&rig, "s", "", long).await.unwrap_err();
    assert!(
        refused.to_string().contains("finish_within_ms") && refused.to_string().contains("600 s"),
        "{refused}"
    );
    let request = wire::DrainRuntimeRequest {
        runtime: "a".to_owned(),
        migrate: true,
        finish_within_ms: Some(u64::MAX),
        ..wire::DrainRuntimeRequest::default()
    };
    let operator = rig.client("operator/otto");
    let refused = operator.drain_runtime(request).await.unwrap_err();
    assert!(
        refused.to_string().contains("finish_within_ms"),
        "{refused}"
    );
    assert_eq!(
        renew(&a, &[]).await.unwrap().revoked,
        [],
        "and nothing is changed"
    );
}

/// F-155, F-156: what a session keeps is written by its holder, in order, and once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_holder_writes_what_is_kept() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let (a, b) = (rig.node("a").await, rig.node("b").await);
    let lease = a.acquire("s", 1).await.unwrap();
    let commit = |writes| a.client.commit_state(a.writer(&lease), writes);
    let both = vec![write("x", "1", Some(0)), write("y", "1", None)];
    assert_eq!(commit(both).await.unwrap(), [Version(1), Version(1)]);
    // The answer was lost, and it is sent again.
    assert_eq!(
        commit(vec![write("x", "1", Some(0))]).await.unwrap(),
        [Version(1)]
    );
    assert_eq!(
        commit(vec![write("x", "2", Some(1))]).await.unwrap(),
        [Version(2)]
    );
    let conflict = commit(vec![write("y", "2", Some(1)), write("x", "3", Some(1))]).await;
    let expected = ControlError::StateConflict {
        key: "x".to_owned(),
        expected: 1,
        found: 2,
    };
    assert_eq!(conflict, Err(expected));
    let kept = a
        .client
        .load_state(a.writer(&lease), vec!["y".to_owned()])
        .await
        .unwrap();
    assert_eq!(kept["y"].version, Version(1), "all or nothing");
    // Another holder, and another epoch.
    let mut foreign = b.writer(&lease);
    foreign.by = b.holder();
    let refused = b
        .client
        .commit_state(foreign.clone(), vec![write("x", "9", None)])
        .await;
    assert!(
        matches!(refused, Err(ControlError::Stale { .. })),
        "{refused:?}"
    );
    let refused = b.client.load_state(foreign, Vec::new()).await;
    assert!(
        matches!(refused, Err(ControlError::Stale { .. })),
        "{refused:?}"
    );
    let next = a.acquire("s", 2).await.unwrap();
    let stale = commit(vec![write("x", "9", None)]).await;
    let expected = ControlError::Stale {
        held: next.epoch,
        offered: lease.epoch,
    };
    assert_eq!(stale, Err(expected));
    let large = "x".repeat(300 * 1024);
    let refused = a
        .client
        .commit_state(a.writer(&next), vec![write("x", &large, None)])
        .await;
    assert!(
        matches!(refused, Err(ControlError::Refused { .. })),
        "{refused:?}"
    );
    // Once it is over, nothing is kept and nobody has it again.
    a.client
        .release(a.writer(&next), Leave::end("the user hung up"))
        .await
        .unwrap();
    a.client
        .release(a.writer(&next), Leave::end("the user hung up"))
        .await
        .unwrap();
    let left = rig
        .store
        .list(Query::first(keys::states(&SessionId::new("s").unwrap())))
        .await
        .unwrap();
    assert_eq!(left.entries, []);
    let over = b.acquire("s", 9).await;
    assert!(matches!(over, Err(ControlError::Ended)), "{over:?}");
}

/// F-094, F-106: a runtime that is drained is told, gets nothing new, and its sessions move.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_runtime_gives_all_away() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let a = rig.node("a").await;
    let leases = [
        a.acquire("s", 1).await.unwrap(),
        a.acquire("t", 1).await.unwrap(),
    ];
    // Until it is followed that both are there.
    let mut left = 0;
    let request = wire::DrainRuntimeRequest {
        runtime: "a".to_owned(),
        migrate: true,
        ..wire::DrainRuntimeRequest::default()
    };
    for _ in 0..200 {
        let fleet = rig
            .admin()
            .list_runtimes(wire::ListRuntimesRequest {})
            .await
            .unwrap();
        left = fleet.runtimes[0].placed;
        if left == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(left, 2);
    let mut orders = a.client.orders(&a.holder());
    assert_eq!(orders.next().await.unwrap().unwrap(), Order::Settled);
    let drained = rig
        .client("operator/otto")
        .drain_runtime(request)
        .await
        .unwrap();
    assert!(drained.runtime.unwrap().draining);
    let mut revoked = 0;
    let mut drain = false;
    while revoked < 2 || !drain {
        match orders.next().await.unwrap().unwrap() {
            Order::Drain => drain = true,
            Order::Revoke(it) => {
                assert_eq!(it.why, WhyRevoked::Drain);
                revoked += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    let route = rig.route("new", "").await.unwrap_err();
    assert!(
        matches!(&route, ControlError::NoRoute { message, .. } if message.contains("1 draining"))
    );
    for lease in &leases {
        a.client
            .release(a.writer(lease), Leave::Release)
            .await
            .unwrap();
    }
    let b = rig.node("b").await;
    let taken = b.acquire("s", 1).await.unwrap();
    assert!(!taken.taken_over, "it was handed over");
}

/// F-096, F-113: a region that is left with its sessions gives them away, by whichever replica has the duties.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_is_left_gives_its_sessions_away() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let a = rig.node_in("a", "eu").await;
    let _b = rig.node_in("b", "us").await;
    let lease = a.acquire("s", 1).await.unwrap();
    let mut orders = a.client.orders(&a.holder());
    let request = wire::SetRegionRequest {
        region: "eu".to_owned(),
        duty: wire::RegionDuty::Migrate.into(),
        request_id: "leave-eu".to_owned(),
    };
    rig.client("operator/otto")
        .set_region(request)
        .await
        .unwrap();
    assert_eq!(orders.next().await.unwrap().unwrap(), Order::Settled);
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        match orders.next().await.unwrap().unwrap() {
            Order::Revoke(it) => it,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(waited.await.unwrap().why, WhyRevoked::Region);
    a.client
        .release(a.writer(&lease), Leave::Release)
        .await
        .unwrap();
    let route = rig.route("s", "").await.unwrap();
    assert_eq!((route.runtime.as_str(), route.region.as_str()), ("b", "us"));
}

/// F-101: how a session goes is told by its holder and by nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_follows_its_holder() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let (a, b) = (rig.node("a").await, rig.node("b").await);
    let lease = a.acquire("s", 1).await.unwrap();
    let status = || async {
        let request = wire::GetStatusRequest {
            tenant: "acme".to_owned(),
            session: "s".to_owned(),
        };
        let viewer = rig.client("viewer/vera/tenant/acme");
        let status = viewer.get_status(request).await.unwrap();
        (status.phase(), status.reason)
    };
    assert_eq!(
        status().await,
        (wire::SessionPhase::Connected, "placed".to_owned())
    );
    let report = |phase| StatusReport {
        session: lease.session.clone(),
        epoch: lease.epoch,
        phase,
        reason: None,
    };
    let told = a
        .client
        .report_status(&a.holder(), vec![report(SessionPhase::Running)]);
    assert_eq!(told.await.unwrap(), []);
    assert_eq!(status().await.0, wire::SessionPhase::Running);
    let told = b
        .client
        .report_status(&b.holder(), vec![report(SessionPhase::Ended)]);
    assert_eq!(told.await.unwrap(), std::slice::from_ref(&lease.session));
    assert_eq!(status().await.0, wire::SessionPhase::Running);
    a.client
        .release(a.writer(&lease), Leave::end("the user hung up"))
        .await
        .unwrap();
    assert_eq!(status().await.0, wire::SessionPhase::Ended);
    let request = wire::GetStatusRequest {
        tenant: "other".to_owned(),
        session: "s".to_owned(),
    };
    let foreign = rig
        .client("viewer/vic/tenant/other")
        .get_status(request)
        .await;
    assert!(
        matches!(foreign, Err(ControlError::UnknownSession)),
        "{foreign:?}"
    );
}

/// Attempts and records lie where the layout says: nothing of a session is left in another's place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_reaches_nothing_but_itself() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let a = rig.node("a").await;
    let mut ask = a.ask("s", 1);
    ask.session = SessionId::new("../runtimes/a").unwrap();
    ask.attempt = Attempt(1);
    a.client.acquire(ask).await.unwrap();
    let key = Key::stored("/rspp/placements/..%2Fruntimes%2Fa");
    assert!(rig.store.get(&key).await.unwrap().is_some());
}
