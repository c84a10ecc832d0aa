//! The audit trail, keys, and backups (F-097, F-119, F-166, F-169, F-170, NF-031).

use bytes::Bytes;
use futures::{TryStreamExt as _, stream};
use rspp_controlplane::{
    access::Role,
    audit::{Broken, Entry, verify_export},
    authority::Placement,
    keys,
    store::Txn,
    token::Keyring,
};
use rspp_controlplane_api::{ControlError, reason, wire};
use rspp_controlplane_storage::recovery::OBJECTIVES;
use rspp_proto::SessionId;

use crate::rig::{Rig, access, change, key, publish, settings};

async fn ring(rig: &Rig) -> Keyring {
    let entry = rig.store.get(&keys::keyring()).await.unwrap().unwrap();
    serde_json::from_slice(&entry.value).unwrap()
}

/// F-097, F-170: what was done can be listed, verified and exported; what is altered is found, in the
/// store and in the file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_altered_entry_is_found() {
    let rig = Rig::start().await;
    let admin = rig.admin();
    for version in ["desk-1", "desk-2"] {
        publish(&admin, version).await;
    }
    let sound = admin
        .verify_trail(wire::VerifyTrailRequest {})
        .await
        .unwrap();
    assert_eq!((sound.broken.as_str(), sound.entries), ("", 3));
    let chunks = admin.export_trail().await.unwrap();
    let chunks: Vec<String> = chunks.try_collect().await.unwrap();
    let export = chunks.concat();
    let ring = ring(&rig).await;
    assert_eq!(verify_export(&export, &ring), Ok(3));
    let altered = export.replacen("desk-1", "desk-9", 1);
    assert_eq!(
        verify_export(&altered, &ring),
        Err(Broken::Altered { sequence: 2 })
    );
    let page = wire::ListEntriesRequest {
        page_size: 2,
        ..wire::ListEntriesRequest::default()
    };
    let first = admin.list_entries(page.clone()).await.unwrap();
    assert_eq!((first.entries.len(), first.next_after), (2, 2));
    let second = wire::ListEntriesRequest {
        after: first.next_after,
        ..page
    };
    let second = admin.list_entries(second).await.unwrap();
    assert_eq!((second.entries.len(), second.next_after), (1, 0));
    // Somebody with a hand in the store.
    let stored = rig.store.get(&keys::audit(2)).await.unwrap().unwrap();
    let mut entry: Entry = serde_json::from_slice(&stored.value).unwrap();
    entry.record.subject = "desk-9".to_owned();
    let txn = Txn::default().put(keys::audit(2), serde_json::to_vec(&entry).unwrap());
    rig.store.commit(txn).await.unwrap();
    let broken = admin
        .verify_trail(wire::VerifyTrailRequest {})
        .await
        .unwrap();
    assert_eq!(broken.broken, "entry 2 was altered");
}

/// F-097: the trail is read backwards as well, page by page, and between two moments; an outcome that there is
/// none of is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_entries_come_first() {
    let rig = Rig::start().await;
    let admin = rig.admin();
    for minimum in 1..=420_u64 {
        let request = wire::SetGovernanceRequest {
            document: format!("error_budget: {{ min_sessions: {minimum} }}"),
            ..wire::SetGovernanceRequest::default()
        };
        admin.set_governance(request).await.unwrap();
    }
    let newest = wire::ListEntriesRequest {
        newest_first: true,
        page_size: 150,
        ..wire::ListEntriesRequest::default()
    };
    let numbers = |page: &wire::ListEntriesResponse| -> Vec<u64> {
        page.entries.iter().map(|it| it.sequence).collect()
    };
    let (mut all, mut before) = (Vec::new(), 0);
    loop {
        let ask = wire::ListEntriesRequest {
            before,
            ..newest.clone()
        };
        let page = admin.list_entries(ask).await.unwrap();
        all.extend(numbers(&page));
        before = page.next_before;
        if before == 0 {
            break;
        }
    }
    // The first key, and each change.
    assert_eq!(all, (1..=421).rev().collect::<Vec<_>>());
    let first_key = wire::ListEntriesRequest {
        operation: "first_key".to_owned(),
        ..newest.clone()
    };
    let page = admin.list_entries(first_key).await.unwrap();
    assert_eq!((numbers(&page), page.next_before), (vec![1], 0));
    let page = admin.list_entries(newest.clone()).await.unwrap();
    let at = page.entries[99].at_ms;
    let since = wire::ListEntriesRequest {
        since_ms: at,
        ..newest.clone()
    };
    let later = admin.list_entries(since).await.unwrap();
    assert!(later.entries.len() >= 100 && later.entries.iter().all(|it| it.at_ms >= at));
    let until = wire::ListEntriesRequest {
        until_ms: at,
        ..newest.clone()
    };
    let earlier = admin.list_entries(until).await.unwrap();
    assert!(earlier.entries.iter().all(|it| it.at_ms < at));
    assert_eq!(
        earlier.entries[0].sequence,
        421 - later.entries.len() as u64
    );
    let unknown = wire::ListEntriesRequest {
        outcome: "foo".to_owned(),
        ..newest
    };
    let error = admin.list_entries(unknown).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "`outcome` is none of done, denied, refused"
    );
}

/// F-119, F-169: keys take turns while tokens are out; a key that nobody here has is not believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_take_turns() {
    let rig = Rig::start().await;
    let admin = rig.admin();
    let old = access(&key("k1", 1), Role::Viewer, None, 0);
    let new = access(&key("k2", 2), Role::Viewer, None, 0);
    let is_good = |token: &str| {
        let client = rig.with_token(Some(token.to_owned()));
        async move { client.list_keys(wire::ListKeysRequest {}).await.is_ok() }
    };
    assert!(is_good(&old).await && !is_good(&new).await);
    let add = |kid: &str| wire::AddKeyRequest {
        kid: kid.to_owned(),
        request_id: String::new(),
    };
    let error = admin.add_key(add("k9")).await.unwrap_err();
    assert!(
        matches!(&error, ControlError::Refused { reason, .. } if reason == reason::KEY_REFUSED)
    );
    admin.add_key(add("k2")).await.unwrap();
    let promote = wire::PromoteKeyRequest {
        kid: "k2".to_owned(),
        request_id: "turn".to_owned(),
    };
    let ring = admin.promote_key(promote).await.unwrap();
    let signs: Vec<_> = ring
        .keys
        .iter()
        .map(|it| (it.kid.as_str(), it.signs))
        .collect();
    assert_eq!(signs, [("k1", false), ("k2", true)]);
    assert!(ring.keys[0].retires_ms > 0);
    for _ in 0..200 {
        if is_good(&new).await {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(
        is_good(&old).await && is_good(&new).await,
        "both, for a while"
    );
}

/// F-166, NF-031: everything comes back in an empty place, with nobody holding anything and epochs far
/// ahead; a place where somebody has written is not overwritten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_comes_back_in_an_empty_place() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let policy = "schema: rspp.policy.bundle.v1\npolicy_resolution_snapshot: policy/one\n\
                  allowed_adaptive_actions: []\n";
    let policy = wire::PublishRequest {
        kind: wire::Kind::Policy.into(),
        version: "desk-1".to_owned(),
        source: policy.to_owned(),
        ..wire::PublishRequest::default()
    };
    rig.admin().publish(policy).await.unwrap();
    let direct = wire::change::Change::Direct("desk-1".to_owned());
    let direct = wire::ChangeRolloutRequest {
        kind: wire::Kind::Policy.into(),
        ..change("desk", direct)
    };
    rig.admin().change_rollout(direct).await.unwrap();
    let rules = wire::SetGovernanceRequest {
        document: "admission: {default: {sessions: {limit: 2}}}".to_owned(),
        ..wire::SetGovernanceRequest::default()
    };
    rig.admin().set_governance(rules).await.unwrap();
    let a = rig.node("a").await;
    let lease = a.acquire("s", 1).await.unwrap();
    let taken = rig.admin().take_backup().await.unwrap();
    let taken: Vec<Bytes> = taken.try_collect().await.unwrap();
    let refused = rig
        .admin()
        .restore(stream::iter(taken.clone()))
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, ControlError::Refused { reason, .. } if reason == reason::RESTORE_REFUSED),
        "{refused:?}"
    );
    let fresh = Rig::start().await;
    let mut damaged = taken.clone();
    damaged.truncate(taken.len() - 1);
    damaged.push(taken[taken.len() - 1].slice(..10));
    let refused = fresh.admin().restore(stream::iter(damaged)).await;
    assert!(refused.is_err());
    assert!(
        fresh
            .admin()
            .list_keys(wire::ListKeysRequest {})
            .await
            .is_ok(),
        "a damaged backup takes nothing away"
    );
    let lost = tokio::time::Instant::now();
    let restored = fresh.admin().restore(stream::iter(taken)).await.unwrap();
    assert!(restored.records > 5);
    let trail = fresh
        .admin()
        .verify_trail(wire::VerifyTrailRequest {})
        .await
        .unwrap();
    assert_eq!(trail.broken, "");
    let session = SessionId::new("s").unwrap();
    let entry = fresh
        .store
        .get(&keys::placement(&session))
        .await
        .unwrap()
        .unwrap();
    let placement: Placement = serde_json::from_slice(&entry.value).unwrap();
    assert_eq!(placement.holder(), None);
    let b = fresh.node("b").await;
    let next = b.acquire("s", 1).await.unwrap();
    assert!(next.epoch.get() > lease.epoch.get() + 1_000);
    assert_eq!(next.binding, lease.binding, "on the version that it had");
    // New sessions are let in again, on the versions and within the limits of before.
    let mut route = fresh.route("new", "").await;
    while route.is_err() && lost.elapsed() < OBJECTIVES.time {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        route = fresh.route("new", "").await;
    }
    let route = route.unwrap();
    assert_eq!(
        (route.pipeline.as_str(), route.runtime.as_str()),
        ("desk-1", "b")
    );
    let new = b.acquire("new", 1).await.unwrap();
    assert_eq!(new.binding.policy.as_deref(), Some("desk-1"));
    assert!(!new.resumed);
    assert!(lost.elapsed() < OBJECTIVES.time);
    let beyond = b.acquire("third", 1).await;
    assert!(
        matches!(beyond, Err(ControlError::NotAdmitted { .. })),
        "{beyond:?}"
    );
}

/// F-166, F-169: a control plane whose key only has the name of the one that is trusted signs nothing that
/// nobody would believe: it says what to do, and with another key that takes its turn all goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_the_same_name_is_not_the_same_key() {
    let before = Rig::start().await;
    before.pipeline("desk-1").await;
    let store = std::sync::Arc::clone(&before.store);
    let dir = tempfile::tempdir().unwrap();
    let keys = vec![key("k1", 7), key("k3", 3)];
    let after = Rig::signing(dir, store, settings(), keys).await;
    let _a = after.node("a").await;
    let refused = after.route("s", "").await.unwrap_err();
    assert!(
        matches!(&refused, ControlError::Refused { reason, message, .. }
            if reason == reason::KEY_REFUSED && message.contains("give its own another id")),
        "{refused:?}"
    );
    let admin = after.admin();
    let add = wire::AddKeyRequest {
        kid: "k3".to_owned(),
        request_id: String::new(),
    };
    admin.add_key(add).await.unwrap();
    let promote = wire::PromoteKeyRequest {
        kid: "k3".to_owned(),
        request_id: String::new(),
    };
    admin.promote_key(promote).await.unwrap();
    crate::rig::until("the other key signs", async || {
        after.route("s", "").await.is_ok()
    })
    .await;
}
