//! F-169, NF-035: archives are sealed under keys that take turns while everything goes on.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rspp_archive::{KeyDuty, KeyRing, ObjectArchive, Place, SealedArchive, sealed_under};
use rspp_proto::WallClock;
use rspp_provider_http::SecretStore;
use rspp_timeline::export::{Archive, ArchiveFault, FaultKind, fetch, list};
use tokio::time::sleep;

use crate::server::Server;

const DAY: u64 = 86_400_000;
/// 2026-11-01.
const NOVEMBER: u64 = 1_793_491_200_000;

/// A file of keys in a directory, and a clock that the test sets.
struct Ground {
    dir: tempfile::TempDir,
    now: Arc<AtomicU64>,
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, digit) in [("K1", '1'), ("K2", '2'), ("K3", '3')] {
            let digits = String::from(digit).repeat(64);
            fs::write(dir.path().join(name), digits + "\n").unwrap();
        }
        let now = Arc::new(AtomicU64::new(NOVEMBER));
        Self { dir, now }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the file anew, so that it is seen to have changed.
    fn write(&self, text: &str) {
        let draft = self.path("draft");
        fs::write(&draft, text).unwrap();
        fs::rename(draft, self.path("keys.yaml")).unwrap();
    }

    fn ring(&self) -> Arc<KeyRing> {
        let now = Arc::clone(&self.now);
        let path = self.path("keys.yaml");
        let ring = KeyRing::open_with(&path, SecretStore::new(|_| None), move || {
            WallClock(now.load(Ordering::Relaxed))
        });
        Arc::new(ring.unwrap())
    }

    fn pass(&self, days: u64) {
        self.now.fetch_add(days * DAY, Ordering::Relaxed);
    }

    fn directory(&self) -> Arc<ObjectArchive> {
        let place = Place::Directory(self.path("calls"));
        Arc::new(ObjectArchive::open(&place).unwrap())
    }
}

const ONE: &str = "keys:\n  - { id: k1, secret: file://K1, from: 2026-11-01 }\n";
const TWO: &str = "\
max_age: 30d
keys:
  - { id: k1, secret: file://K1, from: 2026-11-01 }
  - { id: k2, secret: file://K2, from: 2026-11-20 }
";

async fn put(archive: &SealedArchive, key: &str) -> Result<(), ArchiveFault> {
    archive.put(key, Bytes::from_static(b"what was said")).await
}

async fn said(archive: &SealedArchive, key: &str) -> Result<Bytes, ArchiveFault> {
    Ok(archive.get(key).await?.unwrap())
}

async fn kid(archive: &ObjectArchive, key: &str) -> Option<String> {
    sealed_under(&archive.get(key).await.unwrap().unwrap()).unwrap()
}

/// NF-035: the next key takes over at its time by itself, before the one before it is too old; the old one goes
/// on opening what it has sealed.
#[tokio::test]
async fn the_next_key_takes_over_by_itself() {
    let place = Ground::new();
    place.write(TWO);
    let ring = place.ring();
    let plain = place.directory();
    let archive = SealedArchive::new(plain.clone(), Some(Arc::clone(&ring)));
    let duties = || -> Vec<_> {
        let states = ring.states();
        states.into_iter().map(|it| (it.kid, it.duty)).collect()
    };
    let named = |one, two| vec![("k1".to_owned(), one), ("k2".to_owned(), two)];
    assert_eq!(duties(), named(KeyDuty::Seals, KeyDuty::Next));
    put(&archive, "acme/a/1-1/0.part").await.unwrap();
    place.pass(19);
    put(&archive, "acme/a/1-1/1.part").await.unwrap();
    assert_eq!(duties(), named(KeyDuty::Opens, KeyDuty::Seals));
    assert_eq!(
        kid(&plain, "acme/a/1-1/0.part").await.as_deref(),
        Some("k1")
    );
    assert_eq!(
        kid(&plain, "acme/a/1-1/1.part").await.as_deref(),
        Some("k2")
    );
    for key in ["acme/a/1-1/0.part", "acme/a/1-1/1.part"] {
        assert_eq!(said(&archive, key).await.unwrap(), "what was said");
    }
    let stored = fs::read(place.path("calls/acme/a/1-1/0.part")).unwrap();
    assert!(!stored.windows(8).any(|it| it == b"what was"));
}

/// NF-035: a key that is too old seals nothing more, and says what to do; it still opens.
#[tokio::test]
async fn a_key_that_is_too_old_seals_nothing() {
    let place = Ground::new();
    place.write(TWO);
    let archive = SealedArchive::new(place.directory(), Some(place.ring()));
    place.pass(48);
    put(&archive, "a/b/1-1/0.part").await.unwrap();
    place.pass(1);
    let fault = put(&archive, "a/b/1-1/1.part").await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::Refused);
    assert!(
        fault
            .message
            .contains("key `k2` is 30 days old, and 30 days is the most: put a newer one into"),
        "{fault}"
    );
    assert_eq!(archive.get("a/b/1-1/1.part").await.unwrap(), None);
    assert_eq!(
        said(&archive, "a/b/1-1/0.part").await.unwrap(),
        "what was said"
    );
}

/// F-169: a missing key is told by its name, whether the ring lacks it or there is none; a key that is added is
/// used without a restart.
#[tokio::test]
async fn a_missing_key_is_named_and_may_be_added() {
    let place = Ground::new();
    place.write(TWO);
    place.pass(20);
    let plain = place.directory();
    let full = SealedArchive::new(plain.clone(), Some(place.ring()));
    put(&full, "acme/a/1-1/0.part").await.unwrap();
    let without = SealedArchive::new(plain.clone(), None);
    let fault = said(&without, "acme/a/1-1/0.part").await.unwrap_err();
    assert!(
        fault
            .message
            .starts_with("acme/a/1-1/0.part: sealed under key `k2`: name the file of keys"),
        "{fault}"
    );
    place.write(ONE);
    let lacking = SealedArchive::new(plain, Some(place.ring()));
    let fault = said(&lacking, "acme/a/1-1/0.part").await.unwrap_err();
    let told = "sealed under key `k2`, which ";
    assert!(
        fault.message.contains(told)
            && fault
                .message
                .ends_with("keys.yaml does not have: add it there"),
        "{fault}"
    );
    place.write(TWO);
    assert_eq!(
        said(&lacking, "acme/a/1-1/0.part").await.unwrap(),
        "what was said"
    );
    fs::remove_file(place.path("K2")).unwrap();
    let fault = said(&lacking, "acme/a/1-1/0.part").await.unwrap_err();
    assert!(
        fault
            .message
            .contains("key `k2`: the secret `file://K2` is not set"),
        "{fault}"
    );
    fs::write(place.path("K2"), "12345").unwrap();
    let fault = said(&lacking, "acme/a/1-1/0.part").await.unwrap_err();
    assert!(
        fault
            .message
            .contains("`file://K2` holds no 64 hexadecimal digits"),
        "{fault}"
    );
    assert!(!fault.message.contains("12345"), "{fault}");
    fs::write(place.path("K2"), "4".repeat(64)).unwrap();
    let fault = said(&lacking, "acme/a/1-1/0.part").await.unwrap_err();
    assert!(
        fault.message.contains("does not open with key `k2`"),
        "{fault}"
    );
}

/// F-169: a file of keys that cannot be read changes nothing while it runs.
#[tokio::test]
async fn a_broken_file_of_keys_changes_nothing() {
    let place = Ground::new();
    place.write(ONE);
    let archive = SealedArchive::new(place.directory(), Some(place.ring()));
    put(&archive, "a/b/1-1/0.part").await.unwrap();
    place.write("keys: [");
    sleep(Duration::from_millis(1_100)).await;
    put(&archive, "a/b/1-1/1.part").await.unwrap();
    fs::remove_file(place.path("keys.yaml")).unwrap();
    sleep(Duration::from_millis(1_100)).await;
    put(&archive, "a/b/1-1/2.part").await.unwrap();
    assert_eq!(
        said(&archive, "a/b/1-1/0.part").await.unwrap(),
        "what was said"
    );
}

#[test]
fn files_of_keys_that_cannot_be_meant_are_refused_by_their_field() {
    let place = Ground::new();
    let digits = "f".repeat(64);
    let table = [
        ("keys: []", "keys: from 1 to 64"),
        ("key: []", "keys.yaml: "),
        (
            "max_age: 9w\nkeys: [{id: a, secret: env://A, from: 2026-11-01}]",
            "max_age: `9w`",
        ),
        (
            "keys: [{id: a, secret: env://A, from: tomorrow}]",
            "key `a`: from: `tomorrow` is no date",
        ),
        (
            "keys: [{id: 'a b', secret: env://A, from: 2026-11-01}]",
            "an `id` has up to 64",
        ),
        (
            "keys: [{id: a, secret: env://A, from: 2026-11-01}, {id: a, secret: env://B, from: 2026-11-02}]",
            "key `a` is named twice",
        ),
        (
            "keys: [{id: a, secret: env://A, from: 2026-11-01}, {id: b, secret: env://B, from: 2026-11-01}]",
            "key `b` seals from the same moment on",
        ),
    ];
    let refused = |text: &str| {
        place.write(text);
        KeyRing::open(&place.path("keys.yaml"))
            .unwrap_err()
            .to_string()
    };
    for (text, expected) in table {
        let error = refused(text);
        assert!(error.contains(expected), "{error}");
    }
    let pasted = refused(&format!(
        "keys: [{{id: a, secret: {digits}, from: 2026-11-01}}]"
    ));
    assert!(
        pasted.contains("not a secret reference") && !pasted.contains(&digits),
        "{pasted}"
    );
}

/// An object that is put where another belongs is not taken for it, and one in the clear is read as before.
#[tokio::test]
async fn objects_are_what_their_keys_say() {
    let place = Ground::new();
    place.write(ONE);
    let plain = place.directory();
    plain
        .put("old/a/1-1/0.part", Bytes::from_static(b"from before"))
        .await
        .unwrap();
    let archive = SealedArchive::new(plain.clone(), Some(place.ring()));
    assert_eq!(
        said(&archive, "old/a/1-1/0.part").await.unwrap(),
        "from before"
    );
    put(&archive, "acme/a/1-1/0.part").await.unwrap();
    let object = plain.get("acme/a/1-1/0.part").await.unwrap().unwrap();
    plain.put("zeta/b/1-1/0.part", object).await.unwrap();
    let fault = said(&archive, "zeta/b/1-1/0.part").await.unwrap_err();
    assert!(
        fault
            .message
            .contains("it was sealed as `acme/a/1-1/0.part`"),
        "{fault}"
    );
}

/// F-169: keys take turns, again and again, while one records through a socket and another reads: nothing fails,
/// nothing waits, and all of it opens in the end with what the ring still has.
#[tokio::test]
async fn keys_take_turns_without_a_failed_read() {
    let place = Ground::new();
    let server = Server::start().await;
    let ring = |keys: &[(&str, &str)]| {
        let lines = keys.iter().map(|(id, from)| {
            let name = id.to_uppercase();
            format!("  - {{ id: {id}, secret: file://{name}, from: {from} }}\n")
        });
        place.write(&format!("keys:\n{}", lines.collect::<String>()));
    };
    ring(&[("k1", "2026-10-01")]);
    let (writes, reads) = (place.ring(), place.ring());
    let writer = SealedArchive::new(Arc::new(server.archive()), Some(writes));
    let reader = SealedArchive::new(Arc::new(server.archive()), Some(reads));
    let mut expected = Vec::new();
    let mut kids = std::collections::BTreeSet::new();
    let steps: [&[(&str, &str)]; 4] = [
        &[("k1", "2026-10-01")],
        // The next one is known to all before it seals.
        &[("k1", "2026-10-01"), ("k2", "2026-11-05")],
        &[
            ("k1", "2026-10-01"),
            ("k2", "2026-11-05"),
            ("k3", "2026-11-15"),
        ],
        // Nothing is left that the first one has sealed.
        &[("k2", "2026-11-05"), ("k3", "2026-11-15")],
    ];
    for (step, keys) in steps.into_iter().enumerate() {
        if step == 3 {
            let raw = server.archive();
            for number in 0..expected.len() {
                let key = format!("acme/a/1-1/{:015}.part", number * 13);
                if kid(&raw, &key).await.as_deref() == Some("k1") {
                    let bytes = said(&reader, &key).await.unwrap();
                    writer.put(&key, bytes).await.unwrap();
                }
            }
        }
        ring(keys);
        let until = tokio::time::Instant::now() + Duration::from_millis(1_200);
        while tokio::time::Instant::now() < until {
            let number = expected.len();
            let key = format!("acme/a/1-1/{:015}.part", number * 13);
            put(&writer, &key).await.unwrap();
            expected.extend([()]);
            kids.extend(kid(&server.archive(), &key).await);
            for back in [0, number / 2, number] {
                let key = format!("acme/a/1-1/{:015}.part", back * 13);
                assert_eq!(said(&reader, &key).await.unwrap(), "what was said");
            }
            sleep(Duration::from_millis(20)).await;
        }
        place.pass(10);
    }
    assert_eq!(kids.into_iter().collect::<Vec<_>>(), ["k1", "k2", "k3"]);
    let found = list(&reader, "acme").await.unwrap();
    let all = fetch(&reader, &found[0].recording).await.unwrap();
    assert_eq!(all.bytes, b"what was said".repeat(expected.len()));
}

/// A download that was cut opens as far as it goes; nobody takes it for the whole.
#[tokio::test]
async fn a_cut_object_is_read_up_to_the_cut() {
    let place = Ground::new();
    place.write(ONE);
    let archive = SealedArchive::new(place.directory(), Some(place.ring()));
    let bytes: Bytes = (0..200_000_u32).map(|it| it as u8).collect();
    archive
        .put("acme/a/1-1/000000000000000.part", bytes.clone())
        .await
        .unwrap();
    let file = place.path("calls/acme/a/1-1/000000000000000.part");
    cut(&file, 150_000);
    let beginning = fetch(&archive, "acme/a/1-1").await.unwrap();
    assert!(!beginning.is_complete);
    assert_eq!(beginning.bytes.len(), 2 * 64 * 1024);
    assert!(bytes.starts_with(&beginning.bytes));
}

fn cut(file: &Path, length: u64) {
    let file = fs::OpenOptions::new().write(true).open(file).unwrap();
    file.set_len(length).unwrap();
}

/// The sample in `deploy` is a good one, and has no key that nobody knows.
#[test]
fn the_sample_is_understood() {
    let sample = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../deploy/config/archive-keys.yaml"
    );
    let november = || WallClock(NOVEMBER + 20 * DAY);
    let ring = KeyRing::open_with(Path::new(sample), SecretStore::new(|_| None), november).unwrap();
    let states = ring.states();
    let duties: Vec<_> = states.iter().map(|it| (it.kid.as_str(), it.duty)).collect();
    assert_eq!(duties, [("k1", KeyDuty::Opens), ("k2", KeyDuty::Seals)]);
    let fault = states[1].fault.as_deref().unwrap();
    assert!(
        fault.contains("key `k2`: the secret `file://CALLS_K2` is not set"),
        "{fault}"
    );
}
