//! What every archive has to do, run by each.

use bytes::Bytes;
use rspp_archive::{KeyRing, ObjectArchive, Place, SealedArchive};
use rspp_timeline::export::Archive;

macro_rules! archive_suite {
    ($($name:ident),* $(,)?) => {
        on_both!($($name),*);
        /// The same, sealed.
        mod sealed {
            $(#[tokio::test]
            async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                let place = Place::Directory(dir.path().join("calls"));
                let keys = dir.path().join("keys.yaml");
                let text = "keys: [{ id: k1, secret: file://K1, from: 2026-01-01 }]";
                std::fs::write(&keys, text).unwrap();
                std::fs::write(dir.path().join("K1"), "5a".repeat(32)).unwrap();
                let keys = Arc::new(KeyRing::open(&keys).unwrap());
                let archive = Arc::new(ObjectArchive::open(&place).unwrap());
                super::$name(&SealedArchive::new(archive, Some(keys))).await;
            })*
            use std::sync::Arc;
            use super::{KeyRing, ObjectArchive, Place, SealedArchive};
        }
    };
}

archive_suite!(
    what_was_put_is_there,
    what_was_not_put_is_not_there,
    the_same_key_again_replaces_the_object,
    a_list_has_what_is_under_a_name_and_nothing_else,
    large_and_empty_objects_are_kept,
    puts_at_once_do_not_mix,
);

async fn put(archive: &dyn Archive, key: &str, bytes: &'static [u8]) {
    archive.put(key, Bytes::from_static(bytes)).await.unwrap();
}

async fn names(archive: &dyn Archive, under: &str) -> Vec<String> {
    let mut kept = archive.list(under).await.unwrap();
    kept.sort();
    kept.into_iter().map(|it| it.key).collect()
}

async fn what_was_put_is_there(archive: &dyn Archive) {
    put(
        archive,
        "acme/call=2F7/0001-1/000000000000000.part",
        b"hello",
    )
    .await;
    let found = archive
        .get("acme/call=2F7/0001-1/000000000000000.part")
        .await;
    assert_eq!(found.unwrap().unwrap(), "hello");
    let kept = archive.list("acme").await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].key, "acme/call=2F7/0001-1/000000000000000.part");
    // Sealed, it is longer.
    assert!(kept[0].bytes >= 5, "{kept:?}");
}

async fn what_was_not_put_is_not_there(archive: &dyn Archive) {
    assert_eq!(archive.get("acme/nothing").await.unwrap(), None);
    assert_eq!(archive.list("").await.unwrap(), []);
    assert_eq!(archive.list("acme").await.unwrap(), []);
}

async fn the_same_key_again_replaces_the_object(archive: &dyn Archive) {
    put(archive, "a/b", b"one").await;
    put(archive, "a/b", b"one").await;
    put(archive, "a/b", b"another").await;
    assert_eq!(archive.get("a/b").await.unwrap().unwrap(), "another");
    assert_eq!(names(archive, "").await, ["a/b"]);
}

async fn a_list_has_what_is_under_a_name_and_nothing_else(archive: &dyn Archive) {
    for key in [
        "a/1/x", "a/1/y", "a/10/x", "a/2/x", "a/2/y", "a/2/z", "b/1/x",
    ] {
        put(archive, key, b"bytes").await;
    }
    assert_eq!(names(archive, "a/1").await, ["a/1/x", "a/1/y"]);
    assert_eq!(names(archive, "a").await.len(), 6);
    assert_eq!(names(archive, "").await.len(), 7);
}

async fn large_and_empty_objects_are_kept(archive: &dyn Archive) {
    let large: Bytes = (0..3_000_000_u32).map(|it| it as u8).collect();
    archive.put("large", large.clone()).await.unwrap();
    put(archive, "empty", b"").await;
    assert!(archive.get("large").await.unwrap().unwrap() == large);
    assert_eq!(archive.get("empty").await.unwrap().unwrap(), "");
}

async fn puts_at_once_do_not_mix(archive: &dyn Archive) {
    let keys: Vec<String> = (0..16)
        .map(|number| format!("call-{number}/part"))
        .collect();
    let puts = keys
        .iter()
        .enumerate()
        .map(|(number, key)| archive.put(key, Bytes::from(vec![number as u8; 50_000])));
    for outcome in futures::future::join_all(puts).await {
        outcome.unwrap();
    }
    for (number, key) in keys.iter().enumerate() {
        let found = archive.get(key).await.unwrap().unwrap();
        assert!(found.len() == 50_000 && found.iter().all(|byte| *byte == number as u8));
    }
}
