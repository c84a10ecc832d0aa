//! What is stored survives; what is lost comes back from a backup, whole and in time.

use std::time::Duration;

use rspp_controlplane::{
    audit::{self, Broken, Head, Outcome, Record},
    authority::{Attempt, Binding, Holder, Incarnation, Placement, Standing},
    keys,
    store::{Compare, Store, Txn},
};
use rspp_controlplane_storage::{
    backup,
    recovery::{OBJECTIVES, Unsound, recover, verify_trail},
};
use rspp_proto::{Actor, Epoch, PipelineVersion, RuntimeId, SessionId, TenantId, WallClock};
use serde_json::json;
use tokio::time::Instant;

use super::both::{on_both, wall_clock};

/// Adds an entry to the trail, in one transaction with its end.
async fn put_down(store: &dyn Store, number: u64) {
    let key = keys::audit_head();
    let before = store.get(&key).await.unwrap();
    let head = before.as_ref().map_or_else(Head::empty, |entry| {
        serde_json::from_slice(&entry.value).unwrap()
    });
    let record = Record {
        at: wall_clock(),
        actor: Some(Actor::new("ana").unwrap()),
        role: None,
        tenant: None,
        operation: "publish".to_owned(),
        subject: format!("greeter-{number}"),
        outcome: Outcome::Done,
        detail: json!({ "number": number }),
    };
    let (entry, head) = audit::append(&head, record);
    let txn = Txn::default()
        .when(Compare::unchanged(&key, before.as_ref()))
        .put(
            keys::audit(entry.sequence),
            serde_json::to_vec(&entry).unwrap(),
        )
        .put(key, serde_json::to_vec(&head).unwrap());
    store.commit(txn).await.unwrap();
}

async fn place(store: &dyn Store, number: u64) {
    let placement = Placement {
        session: SessionId::new(format!("session-{number}")).unwrap(),
        binding: Binding {
            tenant: TenantId::new("acme").unwrap(),
            pipeline: PipelineVersion::new("desk-v1").unwrap(),
            policy: None,
            providers: None,
        },
        epoch: Epoch::new(number + 1).unwrap(),
        attempt: Attempt(1),
        standing: Standing::Held {
            by: Holder {
                runtime: RuntimeId::new("runtime-a").unwrap(),
                incarnation: Incarnation::FIRST,
            },
        },
        since: WallClock(1),
        past: Vec::new(),
        over: None,
    };
    let key = keys::placement(&placement.session);
    let txn = Txn::default().put(key, serde_json::to_vec(&placement).unwrap());
    store.commit(txn).await.unwrap();
}

/// F-097, F-170: the trail is there after a restart, goes on where it ended, and still shows where
/// somebody tampers with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trail_survives_a_restart_and_shows_who_tampers() {
    on_both(async |mut stage| {
        {
            let store = stage.store();
            for number in 1..=40 {
                put_down(&*store, number).await;
            }
            assert_eq!(verify_trail(&*store).await.unwrap().sequence, 40);
        }
        stage.restart().await;
        let store = stage.store();
        assert_eq!(verify_trail(&*store).await.unwrap().sequence, 40);
        put_down(&*store, 41).await;
        assert_eq!(verify_trail(&*store).await.unwrap().sequence, 41);

        let key = keys::audit(17);
        let entry = store.get(&key).await.unwrap().unwrap();
        let text = String::from_utf8(entry.value.to_vec()).unwrap();
        let put = |text: String| Txn::default().put(key.clone(), text);
        store
            .commit(put(text.replace("\"ana\"", "\"bob\"")))
            .await
            .unwrap();
        let found = verify_trail(&*store).await;
        let altered = Broken::Altered { sequence: 17 };
        assert!(matches!(found, Err(Unsound::Trail(broken)) if broken == altered));
        store
            .commit(Txn::default().delete(key.clone()))
            .await
            .unwrap();
        let found = verify_trail(&*store).await;
        let gap = Broken::Gap {
            expected: 17,
            found: 18,
        };
        assert!(matches!(found, Err(Unsound::Trail(broken)) if broken == gap));
        store.commit(put(text)).await.unwrap();
        verify_trail(&*store).await.unwrap();
        let cut = Txn::default().delete(keys::audit(41));
        store.commit(cut).await.unwrap();
        assert!(matches!(
            verify_trail(&*store).await,
            Err(Unsound::Trail(Broken::End { .. }))
        ));
    })
    .await;
}

/// F-166, NF-031: the drill. A store under load is backed up again and again and then lost whole. An
/// empty one gets the newest backup: all that was answered before it is there, the trail is unbroken, no
/// session has a writer, and both objectives are kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_store_comes_back_within_its_objectives() {
    on_both(async |stage| {
        let store = stage.store();
        let (mut file, mut backed_up, mut number) = (Vec::new(), 0, 0);
        let begun = Instant::now();
        let mut last_backup = begun;
        while begun.elapsed() < Duration::from_secs(3) {
            number += 1;
            put_down(&*store, number).await;
            place(&*store, number).await;
            if file.is_empty() || last_backup.elapsed() > Duration::from_secs(1) {
                file.clear();
                backup::write(&*store, wall_clock().0, &mut file)
                    .await
                    .unwrap();
                (last_backup, backed_up) = (Instant::now(), number);
            }
        }
        let lost_at = wall_clock().0;
        drop(store);
        let stage = stage.lose().await;
        let store = stage.store();
        let recovery = recover(&*store, &file, lost_at).await.unwrap();
        println!("{recovery}");
        println!("{} of {number} changes were lost", number - backed_up);
        assert!(recovery.keeps(OBJECTIVES));
        assert!(
            recovery.lost < Duration::from_secs(3),
            "{:?}",
            recovery.lost
        );
        assert_eq!(recovery.trail.sequence, backed_up);
        assert_eq!(recovery.sessions, backed_up);

        // And it goes on from there.
        put_down(&*store, 0).await;
        let head = verify_trail(&*store).await.unwrap();
        assert_eq!(head.sequence, backed_up + 1);
    })
    .await;
}

/// F-166, NF-031: a recovery that went wrong is noticed, whatever it is that is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsound_recovery_is_noticed() {
    on_both(async |stage| {
        let store = stage.store();
        put_down(&*store, 1).await;
        put_down(&*store, 2).await;
        // The trail was tampered with before it was backed up.
        let cut = Txn::default().delete(keys::audit(1));
        store.commit(cut).await.unwrap();
        let mut file = Vec::new();
        backup::write(&*store, 7, &mut file).await.unwrap();
        drop(store);
        let stage = stage.lose().await;
        let store = stage.store();
        let refused = recover(&*store, &file, 8).await;
        assert!(matches!(refused, Err(Unsound::Trail(Broken::Gap { .. }))));
        // And a second one does not go over the first.
        let refused = recover(&*store, &file, 8).await;
        assert!(matches!(
            refused,
            Err(Unsound::Backup(backup::BackupError::NotEmpty))
        ));
    })
    .await;
}
