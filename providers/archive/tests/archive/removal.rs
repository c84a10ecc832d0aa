//! F-116: what is over is found by names and ages and really goes, from a disk and through a socket.

use bytes::Bytes;
use rspp_archive::{ObjectArchive, Place};
use rspp_proto::WallClock;
use rspp_timeline::export::{Archive, FaultKind, Look, Patrol, Perishable, Stored, list};

use crate::server::Server;

on_both!(
    a_page_goes_on_where_the_one_before_ended,
    a_patrol_sees_each_recording_once_and_whole,
    what_is_removed_is_gone_without_a_trace,
);

async fn put(archive: &dyn Archive, key: &str) {
    archive
        .put(key, Bytes::from_static(b"bytes"))
        .await
        .unwrap();
}

/// A recording in so many segments, whole.
async fn record(archive: &dyn Archive, recording: &str, segments: usize) {
    for number in 0..segments {
        put(archive, &format!("{recording}/{number:015}.part")).await;
    }
    put(archive, &format!("{recording}/manifest.json")).await;
}

async fn all(archive: &dyn Perishable) -> Vec<Stored> {
    let (mut patrol, mut found) = (Patrol::default(), Vec::new());
    loop {
        let Look {
            recordings,
            is_last,
        } = patrol.look(archive).await.unwrap();
        found.extend(recordings);
        if is_last {
            return found;
        }
    }
}

async fn a_page_goes_on_where_the_one_before_ended(archive: &ObjectArchive) {
    for key in ["b/1/x", "a/1-2/x", "a/1/x", "a/1/y", "a/10/x", "c"] {
        put(archive, key).await;
    }
    let (mut after, mut found) = (String::new(), Vec::new());
    loop {
        let page = archive.page(&after, 4).await.unwrap();
        let is_last = page.len() < 4;
        found.extend(page.into_iter().map(|it| it.key));
        if is_last {
            break;
        }
        after.clone_from(found.last().unwrap());
    }
    assert_eq!(found, ["a/1-2/x", "a/1/x", "a/1/y", "a/10/x", "b/1/x", "c"]);
    assert_eq!(archive.page("c", 4).await.unwrap(), []);
}

async fn a_patrol_sees_each_recording_once_and_whole(archive: &ObjectArchive) {
    let began = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    record(archive, "acme/a/0001-1", 2).await;
    record(archive, "acme/a/0001-10", 1).await;
    record(archive, "zeta/b/0002-1", 3).await;
    put(archive, "readme.txt").await;
    let found = all(archive).await;
    let seen: Vec<_> = found
        .iter()
        .map(|it| (it.recording.as_str(), it.objects.len(), it.bytes))
        .collect();
    assert_eq!(
        seen,
        [
            ("acme/a/0001-1", 3, 15),
            ("acme/a/0001-10", 2, 10),
            ("zeta/b/0002-1", 4, 20)
        ]
    );
    // Stores tell whole seconds.
    let began = WallClock(began.as_millis() as u64 - 1_000);
    assert!(found.iter().all(|it| it.last >= began), "{found:?}");
}

async fn what_is_removed_is_gone_without_a_trace(archive: &ObjectArchive) {
    record(archive, "acme/a/0001-1", 4).await;
    record(archive, "zeta/b/0002-1", 1).await;
    let found = all(archive).await;
    found[0].remove(archive).await.unwrap();
    let left = list(archive, "").await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].recording, "zeta/b/0002-1");
    assert_eq!(list(archive, "acme").await.unwrap(), []);
    // Again, as after a crash: what is gone is gone.
    found[0].remove(archive).await.unwrap();
    found[1].remove(archive).await.unwrap();
    assert_eq!(all(archive).await, []);
}

/// F-116: in a directory the names of tenants and sessions go with their last recording.
#[tokio::test]
async fn no_name_is_left_in_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let archive = ObjectArchive::open(&Place::Directory(dir.path().join("calls"))).unwrap();
    what_is_removed_is_gone_without_a_trace(&archive).await;
    let left = std::fs::read_dir(dir.path().join("calls")).unwrap();
    assert_eq!(left.count(), 0, "the names of tenants and sessions go too");
}

/// F-116: what a store does not let go of is told, and stays whole enough to be found again.
#[tokio::test]
async fn what_a_store_holds_on_to_is_told() {
    let server = Server::start().await;
    let archive = server.archive();
    record(&archive, "acme/a/0001-1", 1).await;
    server.lock("acme/a");
    let found = all(&archive).await;
    let fault = found[0].remove(&archive).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::Refused, "{fault}");
    assert_eq!(all(&archive).await, found);
}

/// A recording longer than a page is seen with all of its parts, and what follows it too.
#[tokio::test]
async fn a_recording_longer_than_a_page_is_seen_whole() {
    let dir = tempfile::tempdir().unwrap();
    let archive = ObjectArchive::open(&Place::Directory(dir.path().to_owned())).unwrap();
    for (recording, segments) in [("a/a/1-1", 3), ("a/b/1-1", 1_500), ("a/c/1-1", 2)] {
        let folder = dir.path().join(recording);
        std::fs::create_dir_all(&folder).unwrap();
        for number in 0..segments {
            std::fs::write(folder.join(format!("{number:015}.part")), b"x").unwrap();
        }
    }
    let found = all(&archive).await;
    let seen: Vec<_> = found.iter().map(|it| it.objects.len()).collect();
    assert_eq!(seen, [3, 1_500, 2]);
}
