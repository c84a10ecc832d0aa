//! The store in a file: the suite of all stores, and what only a file has to stand.

use std::{path::Path, sync::Arc, time::Duration};

use futures::StreamExt as _;
use rspp_controlplane::store::{Compare, Key, Query, Store, StoreError, Txn};
use rspp_controlplane_storage::{Embedded, OpenError, backup, conformance};

fn open(path: &Path) -> Arc<dyn Store> {
    Arc::new(Embedded::open(path).expect("the file is free"))
}

fn key(name: &str) -> Key {
    Key::of(["rspp", "test", name])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_a_store() {
    let dir = tempfile::tempdir().unwrap();
    conformance::all(&open(&dir.path().join("store"))).await;
}

/// F-166: what was answered is there after a restart, revisions go on, and leases begin anew in full.
#[tokio::test]
async fn what_was_answered_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = open(&path);
    let lease = store.grant(Duration::from_secs(2)).await.unwrap().id;
    let txn = Txn::default()
        .put(key("kept"), "1")
        .put_leased(key("leased"), "2", lease);
    let written = store.commit(txn).await.unwrap();
    drop(store);

    let store = open(&path);
    let kept = store.get(&key("kept")).await.unwrap().unwrap();
    assert_eq!(kept.modified, written);
    assert!(store.get(&key("leased")).await.unwrap().is_some());
    let next = store
        .commit(Txn::default().put(key("kept"), "2"))
        .await
        .unwrap();
    assert_eq!(next.0, written.0 + 1);
    let mut changes = store.watch(key("leased").below(), written);
    let ended = tokio::time::timeout(Duration::from_secs(1), changes.next()).await;
    assert!(ended.is_err(), "nothing below it changes: {ended:?}");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(store.get(&key("leased")).await.unwrap().is_none());
    // The number of an ended lease is not given again.
    assert!(store.grant(Duration::from_secs(2)).await.unwrap().id > lease);
}

#[test]
fn a_file_has_one_user_and_must_be_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let first = Embedded::open(&path).unwrap();
    assert!(matches!(Embedded::open(&path), Err(OpenError::Open { .. })));
    drop(first);
    Embedded::open(&path).unwrap();
    let nonsense = dir.path().join("nonsense");
    std::fs::write(
        &nonsense,
        "not a store, but long enough to be looked at".repeat(100),
    )
    .unwrap();
    assert!(matches!(
        Embedded::open(&nonsense),
        Err(OpenError::Open { .. })
    ));
}

/// F-166: a backup shows one moment and is checked whole before anything of it is used.
#[tokio::test]
async fn a_backup_comes_back_into_an_empty_store_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    for number in 0..1_200 {
        let txn = Txn::default().put(key(&format!("{number:04}")), format!("value {number}"));
        store.commit(txn).await.unwrap();
    }
    store
        .commit(Txn::default().put(key("bytes"), vec![0, 255, 7]))
        .await
        .unwrap();
    let lease = store.grant(Duration::from_mins(1)).await.unwrap().id;
    store
        .commit(Txn::default().put_leased(key("alive"), "x", lease))
        .await
        .unwrap();

    let mut file = Vec::new();
    let summary = backup::write(&*store, 5, &mut file).await.unwrap();
    assert_eq!(summary.records, 1_201);

    let other = open(&dir.path().join("other"));
    let restored = backup::restore(&*other, &mut file.as_slice())
        .await
        .unwrap();
    assert_eq!(restored, summary);
    let found = other.get(&key("0777")).await.unwrap().unwrap();
    assert_eq!(found.value, "value 777");
    assert_eq!(
        other.get(&key("bytes")).await.unwrap().unwrap().value,
        vec![0, 255, 7]
    );
    assert_eq!(other.get(&key("alive")).await.unwrap(), None);
    let again = backup::restore(&*other, &mut file.as_slice()).await;
    assert!(matches!(again, Err(backup::BackupError::NotEmpty)));

    let third = open(&dir.path().join("third"));
    let cut = &file[..file.len() / 2];
    let mut altered = String::from_utf8(file.clone()).unwrap();
    altered = altered.replace("value 777", "value 778");
    for broken in [cut, altered.as_bytes(), b"", b"{}\n"] {
        let refused = backup::restore(&*third, &mut &*broken).await;
        assert!(matches!(
            refused,
            Err(backup::BackupError::Malformed { .. })
        ));
    }
    let left = third
        .list(Query::first(rspp_controlplane::keys::all()))
        .await
        .unwrap();
    assert!(
        left.entries.is_empty(),
        "nothing of a broken backup is used"
    );
}

/// Many writers share one sync of the disk; each is answered for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_come_together_are_answered_each_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    let writes = (0..300).map(|number| {
        let store = Arc::clone(&store);
        // Every third wants what another one has already.
        let name = if number % 3 == 0 {
            "same".to_owned()
        } else {
            number.to_string()
        };
        tokio::spawn(async move {
            let txn = Txn::default()
                .when(Compare::Absent(key(&name)))
                .put(key(&name), number.to_string());
            store.commit(txn).await
        })
    });
    let writes: Vec<_> = writes.collect();
    let mut revisions = std::collections::BTreeSet::new();
    let mut conflicts = 0;
    for write in writes {
        match write.await.unwrap() {
            Ok(revision) => assert!(revisions.insert(revision), "each has a revision of its own"),
            Err(StoreError::Conflict) => conflicts += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((revisions.len(), conflicts), (201, 99));
}

/// F-117, issue 4, 7: what people said is in sessions' state, and its file is read by its owner only.
#[cfg(unix)]
#[test]
fn a_file_is_its_owners_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control-plane.db");
    let _store = Embedded::open(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
