//! Runtimes that are emptied: what became of each session that they had (NF-016).

use std::collections::BTreeMap;

use rspp_controlplane_api::{ControlError, ControlPlane as _, Leave, wire};
use rspp_proto::{
    SessionId,
    control::{Emptying, Load},
};

use crate::rig::{Rig, emptied, until};

async fn account(rig: &Rig, runtime: &str) -> Result<wire::DrainAccount, ControlError> {
    let request = wire::AccountDrainRequest {
        runtime: runtime.to_owned(),
        incarnation: 0,
    };
    rig.client("operator/otto").account_drain(request).await
}

/// What became of each, with where to and why.
fn became(account: &wire::DrainAccount) -> BTreeMap<&str, String> {
    let each = account.sessions.iter().map(|it| {
        let parts = [it.became.as_str(), it.to.as_str(), it.why.as_str()];
        let said: Vec<_> = parts.into_iter().filter(|it| !it.is_empty()).collect();
        (it.session.as_str(), said.join(" "))
    });
    each.collect()
}

/// The details that the trail has of an operation.
async fn trail(rig: &Rig, operation: &str) -> Vec<serde_json::Value> {
    let request = wire::ListEntriesRequest {
        operation: operation.to_owned(),
        ..wire::ListEntriesRequest::default()
    };
    let entries = rig.admin().list_entries(request).await.unwrap().entries;
    let details = entries
        .iter()
        .map(|it| serde_json::from_str(&it.detail).unwrap());
    details.collect()
}

/// NF-016, F-106: a runtime that is emptied is accounted for by each session that it had: those that moved, ended
/// and wait, and those that died with it before they had moved, which show and are not silent; in the trail as
/// well, once nothing is left there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_session_of_an_emptied_runtime_is_accounted_for() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let mut a = rig.node("a").await;
    let b = rig.node("b").await;
    let mut leases = BTreeMap::new();
    for (attempt, name) in ["ended", "lost", "moved", "taken", "waits"]
        .into_iter()
        .enumerate()
    {
        leases.insert(name, a.acquire(name, attempt as u64 + 1).await.unwrap());
    }
    let not_yet = account(&rig, "a").await.unwrap_err();
    assert!(not_yet.to_string().contains("no drain"), "{not_yet}");
    drain(&rig, "operator/otto", false, false).await;
    let mut begun = None;
    until("it is written down", async || {
        begun = account(&rig, "a")
            .await
            .ok()
            .filter(|it| it.sessions.len() == 5);
        begun.is_some()
    })
    .await;
    let begun = begun.unwrap();
    assert_eq!(
        (begun.how(), begun.by.as_str()),
        (wire::DrainHow::Wait, "otto")
    );
    assert!(
        begun.alive && became(&begun).values().all(|it| it == "remains"),
        "{begun:?}"
    );
    for (name, leave) in [
        ("ended", Leave::end("the user hung up")),
        ("moved", Leave::Release),
        ("waits", Leave::Release),
    ] {
        a.client
            .release(a.writer(&leases[name]), leave)
            .await
            .unwrap();
    }
    b.acquire("moved", 1).await.unwrap();
    until("some have gone", async || {
        let now = account(&rig, "a").await.unwrap();
        let now = became(&now);
        now["ended"] == "finished the user hung up"
            && now["moved"] == "moved b"
            && now["waits"] == "waits"
    })
    .await;
    assert_eq!(
        trail(&rig, "drain_accounted").await,
        Vec::<serde_json::Value>::new(),
        "two are left"
    );
    // The planted loss: it dies with what it has left.
    a.fall_silent();
    until("it is taken over", async || {
        b.acquire("taken", 2).await.is_ok()
    })
    .await;
    until("all are accounted for", async || {
        let now = account(&rig, "a").await.unwrap();
        let expected = [
            ("ended", "finished the user hung up"),
            ("lost", "lost its runtime died with it"),
            ("moved", "moved b"),
            ("taken", "taken_over b"),
            ("waits", "waits"),
        ];
        let expected: BTreeMap<_, _> = expected.map(|(it, what)| (it, what.to_owned())).into();
        !now.alive && became(&now) == expected
    })
    .await;
    until("the trail has it", async || {
        !trail(&rig, "drain_accounted").await.is_empty()
    })
    .await;
    let told = trail(&rig, "drain_accounted").await;
    assert_eq!(told.len(), 1, "once");
    assert_eq!(
        (&told[0]["had"], &told[0]["how"]),
        (&5.into(), &"wait".into())
    );
    let sum: u64 = told[0]["became"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(serde_json::Value::as_u64)
        .sum();
    assert_eq!(sum, 5, "it adds up: {told:?}");
    let losses = told[0]["out_of_order"].as_array().unwrap();
    let losses: Vec<_> = losses
        .iter()
        .map(|it| it["session"].as_str().unwrap())
        .collect();
    assert_eq!(losses, ["lost", "taken"]);
    // The session's own status says where it comes from.
    let request = wire::GetStatusRequest {
        tenant: "acme".to_owned(),
        session: "taken".to_owned(),
    };
    let status = rig
        .client("operator/otto")
        .get_status(request)
        .await
        .unwrap();
    let past = status.past.first().unwrap();
    assert_eq!(
        (
            past.holder.as_ref().unwrap().runtime.as_str(),
            past.how.as_str(),
            past.epoch
        ),
        ("a", "taken_over", 1)
    );
}

/// NF-016: a runtime that goes by itself says what it has; saying it again changes nothing, what the control plane
/// knows nothing of is told as lost, and only the runtime itself may say it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_goes_by_itself_says_what_it_has() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let a = rig.node("a").await;
    let lease = a.acquire("s", 1).await.unwrap();
    let names = || {
        vec![
            SessionId::new("s").unwrap(),
            SessionId::new("unheard-of").unwrap(),
        ]
    };
    for _twice in 0..2 {
        let told = a
            .client
            .begin_drain(&a.holder(), Some(Emptying::Move), names());
        told.await.unwrap();
    }
    a.client
        .release(a.writer(&lease), Leave::Release)
        .await
        .unwrap();
    until("it waits", async || {
        let now = account(&rig, "a").await.unwrap();
        assert_eq!((now.how(), now.by.as_str()), (wire::DrainHow::Move, ""));
        let expected = [
            ("s", "waits"),
            ("unheard-of", "lost its record says nothing of it"),
        ];
        became(&now) == expected.map(|(it, what)| (it, what.to_owned())).into()
    })
    .await;
    let foreign =
        rig.client("runtime/b")
            .begin_drain(&a.holder(), Some(Emptying::Move), Vec::new());
    assert!(matches!(foreign.await, Err(ControlError::Denied { .. })));
    let unknown = account(&rig, "nobody").await.unwrap_err();
    assert!(
        unknown.to_string().contains("no drain `nobody`"),
        "{unknown}"
    );
}

async fn drain(rig: &Rig, by: &str, migrate: bool, undo: bool) -> wire::DrainRuntimeResponse {
    let request = wire::DrainRuntimeRequest {
        serve: undo,
        migrate,
        ..emptied("a")
    };
    rig.client(by).drain_runtime(request).await.unwrap()
}

async fn runtimes(rig: &Rig) -> BTreeMap<String, wire::Runtime> {
    let answer = rig
        .admin()
        .list_runtimes(wire::ListRuntimesRequest {})
        .await;
    let runtimes = answer.unwrap().runtimes.into_iter();
    let named = runtimes.map(|it| (it.holder.clone().unwrap_or_default().runtime, it));
    named.collect()
}

/// NF-016: the account is of the drain that goes on: the newest operator's word holds, and one that was undone is
/// closed, with what came of it in the trail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_of_the_drain_that_goes_on() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let a = rig.node("a").await;
    a.acquire("s", 1).await.unwrap();
    let otto = drain(&rig, "operator/otto", false, false).await;
    assert!(otto.runtime.unwrap().draining);
    let first = account(&rig, "a").await.unwrap();
    assert_eq!(
        (first.how(), first.by.as_str()),
        (wire::DrainHow::Wait, "otto")
    );
    // Said again it is the same drain.
    drain(&rig, "operator/otto", false, false).await;
    assert_eq!(account(&rig, "a").await.unwrap().since_ms, first.since_ms);
    // Somebody else decides otherwise.
    drain(&rig, "admin/ana", true, false).await;
    let second = account(&rig, "a").await.unwrap();
    assert_eq!(
        (second.how(), second.by.as_str()),
        (wire::DrainHow::Move, "ana")
    );
    assert!(second.since_ms > first.since_ms);
    assert_eq!(
        became(&second),
        BTreeMap::from([("s", "remains".to_owned())])
    );
    let back = drain(&rig, "operator/otto", false, true).await;
    assert!(!back.runtime.unwrap().draining);
    let undone = account(&rig, "a").await.unwrap_err();
    assert!(undone.to_string().contains("no drain `a`"), "{undone}");
    until("everybody sees it serve", async || {
        !runtimes(&rig).await["a"].draining
    })
    .await;
    let mut undone = trail(&rig, "drain_runtime").await;
    undone.retain(|it| it.get("undone").is_some());
    assert_eq!(undone.len(), 1);
    assert_eq!(
        (&undone[0]["undone"]["by"], &undone[0]["undone"]["became"]),
        (&"ana".into(), &serde_json::json!({ "remains": 1 }))
    );
    // What the runtime had in the drain that was undone comes late: it serves all the same.
    let names = vec![SessionId::new("s").unwrap()];
    let late = a.client.begin_drain(&a.holder(), None, names.clone());
    late.await.unwrap();
    assert!(account(&rig, "a").await.is_err());
    assert!(!runtimes(&rig).await["a"].draining);
    assert_eq!(rig.route("new", "").await.unwrap().runtime, "a");
    // Anew, by somebody else: nothing of the first is left.
    drain(&rig, "admin/ana", false, false).await;
    let third = account(&rig, "a").await.unwrap();
    assert_eq!(
        (third.how(), third.by.as_str()),
        (wire::DrainHow::Wait, "ana")
    );
    assert!(third.since_ms > second.since_ms);
    // What it names then is under that word.
    let named = a.client.begin_drain(&a.holder(), None, names);
    named.await.unwrap();
    let still = account(&rig, "a").await.unwrap();
    assert_eq!((still.how(), still.by.as_str()), (third.how(), "ana"));
    // The trail does not say that it went by itself.
    assert!(trail(&rig, "runtime_goes").await.is_empty());
}

/// NF-016: an operator takes back their own word only. A runtime that ends by itself goes on doing so, whichever
/// came first, and its account stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ends_by_itself_is_not_taken_back() {
    use Emptying::{Finish, Wait};
    for (operator_first, how) in [(true, Finish), (true, Wait), (false, Finish), (false, Wait)] {
        let rig = Rig::start().await;
        rig.pipeline("desk-1").await;
        let a = rig.node("a").await;
        a.acquire("s", 1).await.unwrap();
        let names = || vec![SessionId::new("s").unwrap()];
        if operator_first {
            drain(&rig, "operator/otto", false, false).await;
        }
        let told = a.client.begin_drain(&a.holder(), Some(how), names());
        told.await.unwrap();
        if !operator_first {
            drain(&rig, "operator/otto", false, false).await;
        }
        assert_eq!(account(&rig, "a").await.unwrap().by, "otto");
        a.fares(Load::default()).await;
        until("it is seen to go", async || {
            let a = runtimes(&rig).await["a"].clone();
            a.draining && !a.load.unwrap_or_default().ready
        })
        .await;
        let back = drain(&rig, "operator/otto", false, true).await;
        assert!(back.runtime.unwrap().draining, "it takes nothing");
        until("its own word holds", async || {
            let now = account(&rig, "a").await.unwrap();
            (now.how(), now.by.as_str()) == (wire::DrainHow::from(how), "")
        })
        .await;
        let now = account(&rig, "a").await.unwrap();
        assert_eq!(became(&now), BTreeMap::from([("s", "remains".to_owned())]));
        assert!(runtimes(&rig).await["a"].draining);
        assert_eq!(trail(&rig, "runtime_goes").await.len(), 1);
    }
}

/// F-103, F-106: who goes in order is drained while it is there and has left afterwards; who dies is dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_in_order_has_left() {
    let rig = Rig::start().await;
    let mut a = rig.node("a").await;
    let mut b = rig.node("b").await;
    let _c = rig.node("c").await;
    let told = a
        .client
        .begin_drain(&a.holder(), Some(Emptying::Move), Vec::new());
    told.await.unwrap();
    a.fares(Load::default()).await;
    until("it is seen to go", async || {
        let seen = runtimes(&rig).await;
        seen["a"].draining && seen["a"].presence == "alive" && !seen["b"].draining
    })
    .await;
    a.fall_silent();
    b.fall_silent();
    until("their leases end", async || {
        let seen = runtimes(&rig).await;
        (seen["a"].presence.as_str(), seen["b"].presence.as_str()) == ("left", "dead")
    })
    .await;
    let regions = rig.admin().list_regions(wire::ListRegionsRequest {}).await;
    let eu = regions.unwrap().regions.remove(0);
    // Who left is not missed, and who died is not there any more.
    assert_eq!((eu.runtimes, eu.well, eu.dead), (1, 1, 1));
    // In its next life it is somebody else.
    let _again = rig.node("a").await;
    let seen = runtimes(&rig).await;
    assert!(
        !seen["a"].draining && seen["a"].presence == "alive",
        "{seen:?}"
    );
}

/// F-101, NF-016: a session whose runtime dies while it was to let go is lost, and no longer counted there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_lost_in_a_drain_is_told_as_lost() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let mut a = rig.node("a").await;
    a.acquire("s", 1).await.unwrap();
    drain(&rig, "operator/otto", true, false).await;
    let status = async || {
        let request = wire::GetStatusRequest {
            tenant: "acme".to_owned(),
            session: "s".to_owned(),
        };
        let status = rig.admin().get_status(request).await.unwrap();
        (status.phase(), status.reason, status.runtime)
    };
    until("it is told to let go", async || {
        let (phase, reason, _) = status().await;
        (phase, reason.as_str()) == (wire::SessionPhase::Degraded, "letting_go_drain")
    })
    .await;
    assert_eq!(runtimes(&rig).await["a"].placed, 1);
    a.fall_silent();
    let lost = (
        wire::SessionPhase::Waiting,
        "runtime_lost".to_owned(),
        "a".to_owned(),
    );
    until("it is lost", async || status().await == lost).await;
    assert_eq!(runtimes(&rig).await["a"].placed, 0);
    // Its next life does not have it either.
    let _again = rig.node("a").await;
    assert_eq!(status().await, lost);
    assert_eq!(runtimes(&rig).await["a"].placed, 0);
    drain(&rig, "operator/otto", true, false).await;
    assert_eq!(account(&rig, "a").await.unwrap().sessions, []);
}
