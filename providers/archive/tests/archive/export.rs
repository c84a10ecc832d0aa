//! F-154: exports through real sockets and to a real disk, with errors, slowness and cut connections, and by a
//! process that is killed.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rspp_archive::{ObjectArchive, Place};
use rspp_proto::{
    Epoch, Monotonic, PipelineVersion, SessionId, WallClock,
    abi::{ControlSignal, Emitter, Signal, Stamp},
    spec::RecordingLevel,
};
use rspp_timeline::{
    Entry, FileHeader, Options, Recorder, Recording, Timeline,
    export::{
        Archive as _, ArchiveFault, ExportPolicy, Exports, FaultKind, Fetched, Left, fetch, list,
    },
};
use tokio::time::{Instant, sleep};

use crate::server::{Server, Trouble};

/// As in production, but in a hurry.
fn hasty() -> ExportPolicy {
    ExportPolicy {
        linger_ms: 20,
        segment_bytes: 2_000,
        timeout_ms: 300,
        first_retry_ms: 10,
        last_retry_ms: 100,
        ..ExportPolicy::default()
    }
}

fn since(began: Instant) -> Monotonic {
    Monotonic::ZERO + began.elapsed()
}

async fn record(exports: &Exports, session: &str) -> (Recorder, Recording) {
    let header = FileHeader::new(
        SessionId::new(session).unwrap(),
        PipelineVersion::new("bot/1").unwrap(),
        "tests",
        RecordingLevel::L0,
        Monotonic::ZERO,
        WallClock(1_790_000_000_000),
    );
    exports.record(header, Options::default()).await.unwrap()
}

fn say(recorder: &Recorder, count: u64) {
    for number in 0..count {
        let stamp = Stamp {
            session_id: SessionId::new("call").unwrap(),
            turn_id: None,
            pipeline_version: PipelineVersion::new("bot/1").unwrap(),
            authority_epoch: Epoch::FIRST,
            ordinal: number,
            runtime_sequence: number,
            transport_sequence: None,
            at: Monotonic::from_millis(number),
            wall: WallClock(0),
        };
        let signal = ControlSignal::new(Signal::Connected, Emitter::ConnectionAdapter, stamp);
        recorder.append(Entry::from(signal)).unwrap();
    }
}

fn open(server: &Server, spool: &Path) -> Exports {
    Exports::open(Arc::new(server.archive()), spool, hasty(), 1).unwrap()
}

async fn fetched(archive: &ObjectArchive) -> Fetched {
    let found = list(archive, "").await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    fetch(archive, &found[0].recording).await.unwrap()
}

fn entries(fetched: &Fetched) -> usize {
    let mut timeline = Timeline::read(std::io::Cursor::new(&fetched.bytes)).unwrap();
    let entries = timeline.entries().unwrap().len();
    assert_eq!(timeline.report().torn, None);
    entries
}

#[tokio::test]
async fn a_directory_gets_what_was_recorded() {
    let (spool, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = Place::Directory(dir.path().join("calls"));
    let archive = ObjectArchive::open(&place).unwrap();
    let exports = Exports::open(Arc::new(archive), spool.path(), hasty(), 1).unwrap();
    let began = Instant::now();
    let (recorder, recording) = record(&exports, "call-1").await;
    say(&recorder, 60);
    recording.close().await.unwrap();
    let left = exports
        .drain(|| since(began), Duration::from_secs(10))
        .await;
    assert_eq!(left, Left::default());
    let all = fetched(&ObjectArchive::open(&place).unwrap()).await;
    assert!(all.is_complete);
    assert_eq!(entries(&all), 62);
    assert_eq!(fs::read_dir(spool.path()).unwrap().count(), 0);
}

/// F-154: each trouble on its own and all together, while a session records.
#[tokio::test]
async fn a_store_in_trouble_gets_everything_in_the_end_and_nothing_twice() {
    let all = [
        Trouble::Status(500),
        Trouble::CutWhileSending,
        Trouble::CutBeforeAnswering,
        Trouble::Status(503),
        Trouble::Slow(Duration::from_millis(150)),
        Trouble::NeverAnswers,
        Trouble::Status(429),
    ];
    let single = all.iter().map(std::slice::from_ref);
    for troubles in single.chain([&all[..]]) {
        let spool = tempfile::tempdir().unwrap();
        let server = Server::start().await;
        server.trouble(troubles);
        let exports = open(&server, spool.path());
        let began = Instant::now();
        let (recorder, recording) = record(&exports, "call-1").await;
        let driver = {
            let exports = exports.clone();
            tokio::spawn(async move { exports.run(move || since(began)).await })
        };
        for _ in 0..5 {
            say(&recorder, 10);
            sleep(Duration::from_millis(30)).await;
        }
        recording.close().await.unwrap();
        while exports.stats(since(began)).queue_depth > 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "{troubles:?}");
            sleep(Duration::from_millis(5)).await;
        }
        driver.abort();
        assert_eq!(server.troubles_left(), 0);
        let found = fetched(&server.archive()).await;
        assert!(found.is_complete, "{troubles:?}");
        assert_eq!(entries(&found), 52, "{troubles:?}");
        // A key that came twice came with the same bytes.
        let objects = server.objects();
        for (key, bytes) in server.puts() {
            assert_eq!(objects[&key], bytes, "{troubles:?}: {key}");
        }
        let stats = exports.stats(since(began));
        let failures = troubles
            .iter()
            .filter(|it| !matches!(it, Trouble::Slow(_)))
            .count();
        assert_eq!(stats.failures, failures as u64, "{troubles:?}");
        assert_eq!(fs::read_dir(spool.path()).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_store_that_is_gone_for_a_while_is_waited_for() {
    let spool = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    let exports = open(&server, spool.path());
    let began = Instant::now();
    let (recorder, recording) = record(&exports, "call-1").await;
    say(&recorder, 10);
    let left = exports
        .drain(|| since(began), Duration::from_millis(200))
        .await;
    assert_eq!((left.recordings, left.bytes), (1, 0), "open, and even");
    let gone = server.stop().await;
    say(&recorder, 10);
    recording.close().await.unwrap();
    let left = exports
        .drain(|| since(began), Duration::from_millis(300))
        .await;
    assert!(left.bytes > 0);
    assert!(exports.stats(since(began)).failures > 1);
    assert_eq!(fs::read_dir(spool.path()).unwrap().count(), 2);
    let server = gone.start().await;
    let left = exports
        .drain(|| since(began), Duration::from_secs(20))
        .await;
    assert_eq!(left, Left::default());
    assert_eq!(entries(&fetched(&server.archive()).await), 22);
}

#[tokio::test]
async fn faults_say_whether_waiting_helps() {
    use FaultKind::{Refused, Unavailable};

    let server = Server::start().await;
    let archive = server.archive();
    let mut faults = Vec::new();
    for status in [400, 401, 403, 404, 429, 500, 503] {
        server.trouble(&[Trouble::Status(status)]);
        let fault: ArchiveFault = archive.put("a/b", "x".into()).await.unwrap_err();
        faults.push((status, fault.kind));
        assert!(
            fault.message.len() <= 400 && !fault.message.contains('\n'),
            "{fault}"
        );
    }
    assert_eq!(
        faults,
        [
            (400, Unavailable),
            (401, Refused),
            (403, Refused),
            (404, Refused),
            (429, Unavailable),
            (500, Unavailable),
            (503, Unavailable)
        ]
    );
    assert!(
        server.signatures().iter().all(Option::is_none),
        "there are no credentials"
    );
}

const CHILD_SPOOL: &str = "RSPP_TEST_SPOOL";
const CHILD_PLACE: &str = "RSPP_TEST_PLACE";

/// Not a test by itself: what [`a_killed_process_loses_nothing_that_was_written`] runs and kills.
#[tokio::test]
async fn child_that_records_until_it_is_killed() {
    let (Ok(spool), Ok(place)) = (env::var(CHILD_SPOOL), env::var(CHILD_PLACE)) else {
        return;
    };
    let place: Place = place.parse().unwrap();
    let archive = Arc::new(ObjectArchive::open(&place).unwrap());
    let exports = Exports::open(archive, spool, hasty(), 1).unwrap();
    let began = Instant::now();
    exports.recover(since(began)).await.unwrap();
    let (recorder, _recording) = record(&exports, &format!("call-{}", std::process::id())).await;
    let forever = async {
        loop {
            say(&recorder, 5);
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = exports.run(|| since(began)) => {}
        () = forever => {}
        // In case nobody kills it.
        () = sleep(Duration::from_secs(30)) => {}
    }
}

/// F-154: SIGKILL in the middle of an upload, three times over; each process goes on with what the ones before it
/// have left, and in the end the archive has all that was on the disk.
#[tokio::test]
async fn a_killed_process_loses_nothing_that_was_written() {
    let spool = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    let mut pids = Vec::new();
    for trouble in [
        Trouble::NeverAnswers,
        Trouble::Slow(Duration::from_secs(20)),
        Trouble::Status(503),
    ] {
        let before = server.puts().len();
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "export::child_that_records_until_it_is_killed",
                "--nocapture",
            ])
            .env(CHILD_SPOOL, spool.path())
            .env(CHILD_PLACE, server.place())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        pids.push(child.id());
        let started = Instant::now();
        while server.puts().len() < before + 6 {
            sleep(Duration::from_millis(5)).await;
            assert!(
                started.elapsed() < Duration::from_secs(25),
                "nothing is exported"
            );
        }
        server.trouble(&[trouble]);
        while server.troubles_left() > 0 {
            sleep(Duration::from_millis(2)).await;
            assert!(
                started.elapsed() < Duration::from_secs(25),
                "nothing is exported"
            );
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let written: Vec<(String, u64)> = fs::read_dir(spool.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "rspp"))
        .map(|path| {
            let mut timeline = Timeline::open(&path).unwrap();
            timeline.entries().unwrap();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, timeline.report().whole_bytes)
        })
        .collect();
    assert!(
        !written.is_empty(),
        "the last one has left its recording at least"
    );

    let exports = open(&server, spool.path());
    let began = Instant::now();
    let recovery = exports.recover(since(began)).await.unwrap();
    assert_eq!(
        (recovery.resumed.len(), recovery.broken.len()),
        (written.len(), 0)
    );
    let left = exports
        .drain(|| since(began), Duration::from_secs(25))
        .await;
    assert_eq!(left, Left::default());
    assert_eq!(
        fs::read_dir(spool.path())
            .unwrap()
            .filter(|it| {
                let path = it.as_ref().unwrap().path();
                path.extension().is_some_and(|it| it == "rspp")
            })
            .count(),
        0
    );
    let archive = server.archive();
    let found = list(&archive, "").await.unwrap();
    assert_eq!(found.len(), pids.len(), "{found:?}");
    for archived in &found {
        assert!(archived.is_complete, "{archived:?}");
        let all = fetch(&archive, &archived.recording).await.unwrap();
        assert!(entries(&all) > 1);
        if let Some((_, bytes)) = written.iter().find(|(name, _)| {
            archived
                .recording
                .split('/')
                .nth(1)
                .is_some_and(|session| name.starts_with(session))
        }) {
            assert_eq!(all.bytes.len() as u64, *bytes, "{archived:?}");
        }
    }
    let objects = server.objects();
    for (key, bytes) in server.puts() {
        assert!(objects[&key] == bytes, "{key} had two contents");
    }
}
