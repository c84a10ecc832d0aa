//! Two replicas of a control plane on one store: whichever is asked, there is one answer.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use rspp_controlplane::{keys, store::Store};
use rspp_controlplane_api::{ControlError, ControlPlane as _, HeldSession, Leave, Order, wire};
use rspp_controlplane_server::Settings;
use rspp_controlplane_storage::election::Leader;
use rspp_proto::{SessionId, control::WhyRevoked};

use crate::{
    ground::Place,
    rig::{Rig, TTL, change, direct, publish, settings, until},
};

/// Two servers with stores of their own, in one place.
async fn pair() -> (Rig, Rig) {
    let place = Place::fresh().await;
    let replica = async |name: &str| {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(place.store().await);
        let settings = Settings {
            replica: name.to_owned(),
            ..settings()
        };
        Rig::with(dir, store, settings).await
    };
    (replica("one").await, replica("two").await)
}

async fn leader(rig: &Rig) -> Option<String> {
    let entry = rig.store.get(&keys::leader()).await.unwrap()?;
    let leader: Leader = serde_json::from_slice(&entry.value).unwrap();
    Some(leader.replica)
}

/// NF-016, F-095: what one replica granted the other renews, revokes and hands on; orders reach a
/// runtime at whichever it listens to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_is_asked_there_is_one_holder() {
    let (one, two) = pair().await;
    one.pipeline("desk-1").await;
    let a = one.node("a").await;
    let b = two.node("b").await;
    // Both ask at once, each at another replica.
    let (by_a, by_b) = tokio::join!(a.acquire("s", 1), b.acquire("s", 1));
    let (held, refused, holder, other) = match (by_a, by_b) {
        (Ok(held), Err(refused)) => (held, refused, &a, &b),
        (Err(refused), Ok(held)) => (held, refused, &b, &a),
        both => panic!("one of them: {both:?}"),
    };
    assert!(matches!(refused, ControlError::Held { .. }), "{refused:?}");
    // Who holds it renews at the other replica.
    let elsewhere = if holder.holder() == a.holder() {
        two.client("runtime/a")
    } else {
        one.client("runtime/b")
    };
    let session = SessionId::new("s").unwrap();
    let renewal = vec![HeldSession {
        session: session.clone(),
        epoch: held.epoch,
        prove: true,
    }];
    let renewed = elsewhere.renew(&holder.holder(), renewal).await.unwrap();
    assert!(renewed.lost.is_empty() && renewed.proofs.len() == 1);
    // An order that is given at one is heard at the other, and followed there.
    let mut orders = elsewhere.orders(&holder.holder());
    let request = wire::MoveSessionRequest {
        tenant: "acme".to_owned(),
        session: "s".to_owned(),
        to: other.holder().runtime.to_string(),
        ..wire::MoveSessionRequest::default()
    };
    let operator = if holder.holder() == a.holder() {
        one.client("operator/otto")
    } else {
        two.client("operator/otto")
    };
    operator.move_session(request).await.unwrap();
    let revoked = tokio::time::timeout(Duration::from_secs(5), async {
        loop {
            if let Order::Revoke(revocation) = orders.next().await.unwrap().unwrap() {
                return revocation;
            }
        }
    });
    let revoked = revoked.await.unwrap();
    assert_eq!(
        (&revoked.session, revoked.why),
        (&session, WhyRevoked::Transfer)
    );
    elsewhere
        .release(holder.writer(&held), Leave::Release)
        .await
        .unwrap();
    let next = other.acquire("s", 2).await.unwrap();
    assert_eq!(next.epoch, held.epoch.next());
    let stale = elsewhere
        .load_state(holder.writer(&held), Vec::new())
        .await
        .unwrap_err();
    assert!(matches!(stale, ControlError::Stale { .. }), "{stale:?}");
}

/// F-098: a limit is kept over both replicas, however requests fall.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_is_kept_by_both_together() {
    const LIMIT: usize = 5;
    let (one, two) = pair().await;
    one.pipeline("desk-1").await;
    let rules =
        serde_json::json!({ "admission": { "default": { "sessions": { "limit": LIMIT } } } });
    let request = wire::SetGovernanceRequest {
        document: rules.to_string(),
        ..wire::SetGovernanceRequest::default()
    };
    one.admin().set_governance(request).await.unwrap();
    for rig in [&one, &two] {
        until("the rules", async || {
            let request = wire::EvaluateRequest {
                tenant: "acme".to_owned(),
                line: "desk".to_owned(),
            };
            let decision = rig.client("operator/otto").evaluate(request).await.unwrap();
            decision.snapshot == "admission-policy/1"
        })
        .await;
    }
    let (a, b) = (one.node("a").await, two.node("b").await);
    let asks = (0..20).map(|number| {
        let node = if number % 2 == 0 { &a } else { &b };
        let name = format!("s-{number}");
        async move { node.acquire(&name, 1).await }
    });
    let answers = futures::future::join_all(asks).await;
    let granted = answers.iter().filter(|it| it.is_ok()).count();
    assert_eq!(granted, LIMIT);
    let others = answers.into_iter().filter_map(Result::err);
    for refused in others {
        assert!(
            matches!(refused, ControlError::NotAdmitted { .. }),
            "{refused:?}"
        );
    }
}

/// F-093, F-100, F-097: a rollout that is changed at one is what the other gives, and the trail is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_changed_at_one_counts_at_both() {
    let (one, two) = pair().await;
    one.pipeline("desk-1").await;
    let _a = two.node("a").await;
    until("the runtime", async || one.route("s", "").await.is_ok()).await;
    publish(&two.admin(), "desk-2").await;
    direct(&two.admin(), "desk-2").await;
    for rig in [&one, &two] {
        until("the version", async || {
            rig.route("new", "").await.unwrap().pipeline == "desk-2"
        })
        .await;
    }
    let back = wire::change::Change::RollBack(String::new());
    one.admin()
        .change_rollout(change("desk", back))
        .await
        .unwrap();
    for rig in [&one, &two] {
        until("the rollback", async || {
            rig.route("new", "").await.unwrap().pipeline == "desk-1"
        })
        .await;
        let trail = rig.admin().verify_trail(wire::VerifyTrailRequest {}).await;
        let trail = trail.unwrap();
        assert_eq!(trail.broken, "");
        assert!(trail.entries >= 6, "{trail:?}");
    }
}

/// NF-016, F-095: the replica that has the duties ends; the other takes them over, and nobody who renews
/// loses anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_ends_and_its_duties_go_on() {
    let (one, two) = pair().await;
    one.pipeline("desk-1").await;
    until("an election", async || leader(&one).await.is_some()).await;
    let (leads, follows) = if leader(&one).await.as_deref() == Some("one") {
        (one, two)
    } else {
        (two, one)
    };
    let name = leader(&leads).await;
    let mut gone = follows.node("gone").await;
    let stays = follows.node("stays").await;
    let kept = stays.acquire("kept", 1).await.unwrap();
    gone.acquire("orphan", 1).await.unwrap();
    let begun = tokio::time::Instant::now();
    leads.server.stop(Duration::from_secs(1)).await;
    until("another leader", async || {
        let now = leader(&follows).await;
        now.is_some() && now != name
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(5), "it resigned");
    // A duty of the leader's: whoever revokes may have died before the time was counted.
    gone.fall_silent();
    tokio::time::sleep(TTL + Duration::from_secs(2)).await;
    let taken = stays.acquire("orphan", 1).await.unwrap();
    assert!(taken.taken_over);
    let held = vec![HeldSession {
        session: kept.session.clone(),
        epoch: kept.epoch,
        prove: false,
    }];
    let renewed = stays.client.renew(&stays.holder(), held).await.unwrap();
    assert!(renewed.lost.is_empty());
}
