//! F-154: timelines reach an archive, whatever it does, and recording never waits for it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use rspp_proto::{Monotonic, SessionId, WallClock, spec::RecordingLevel};
use rspp_timeline::{
    export::{
        Answer, Archive, ArchiveFault, ExportPolicy, ExportStats, Exports, Fetched, Kept, Left,
        exported, fetch, list,
    },
    *,
};
use tokio::time::{Instant, sleep};

use crate::conversation::{STARTED_MS, Script, entries, header};

/// What an archive does with what it is given.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Works,
    /// Is not there.
    Fails,
    /// Does not want to.
    Refuses,
    /// Never answers.
    Hangs,
    /// Keeps it, and the answer is lost.
    KeepsAndFails,
    /// Takes so long.
    Slow(Duration),
    /// Has a fault.
    Panics,
}

#[derive(Clone)]
struct Shelf(Arc<Mutex<Shelved>>);

struct Shelved {
    mood: Mood,
    objects: BTreeMap<String, Bytes>,
    /// Every object that was given, in order.
    puts: Vec<(String, Bytes)>,
    /// Copies of the spool, one from before and one from after each `put`.
    watched: Option<(PathBuf, Vec<Disk>)>,
}

/// A directory's files by name, as a process that is killed leaves them.
type Disk = BTreeMap<String, Vec<u8>>;

impl Shelf {
    fn new(mood: Mood) -> Self {
        Self(Arc::new(Mutex::new(Shelved {
            mood,
            objects: BTreeMap::new(),
            puts: Vec::new(),
            watched: None,
        })))
    }

    fn set(&self, mood: Mood) {
        self.0.lock().unwrap().mood = mood;
    }

    fn with<T>(&self, look: impl FnOnce(&mut Shelved) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }
}

impl Shelved {
    fn photograph(&mut self) {
        if let Some((spool, disks)) = &mut self.watched {
            disks.push(disk(spool));
        }
    }

    fn keep(&mut self, key: &str, bytes: Bytes) {
        self.objects.insert(key.to_owned(), bytes);
    }
}

fn disk(spool: &Path) -> Disk {
    let files = fs::read_dir(spool).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        // Renamed under our feet: as if killed a moment later.
        Some((name, fs::read(path).ok()?))
    });
    files.collect()
}

impl Archive for Shelf {
    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        Box::pin(async move {
            let mood = self.with(|shelved| {
                shelved.photograph();
                shelved.puts.push((key.to_owned(), bytes.clone()));
                shelved.mood
            });
            match mood {
                Mood::Works => {}
                Mood::Fails => return Err(ArchiveFault::unavailable("connection refused")),
                Mood::Refuses => return Err(ArchiveFault::refused("no such bucket")),
                Mood::Hangs => std::future::pending().await,
                Mood::KeepsAndFails => {
                    self.with(|shelved| shelved.keep(key, bytes));
                    return Err(ArchiveFault::unavailable("connection reset"));
                }
                Mood::Slow(time) => sleep(time).await,
                Mood::Panics => panic!("a fault of the archive"),
            }
            self.with(|shelved| {
                shelved.keep(key, bytes);
                shelved.photograph();
            });
            Ok(())
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Bytes>> {
        Box::pin(async move { Ok(self.with(|shelved| shelved.objects.get(key).cloned())) })
    }

    fn list<'a>(&'a self, under: &'a str) -> Answer<'a, Vec<Kept>> {
        Box::pin(async move {
            let kept = self.with(|shelved| {
                let objects = shelved.objects.iter();
                let under = objects.filter(|(key, _)| key.starts_with(under));
                under
                    .map(|(key, bytes)| Kept {
                        key: key.clone(),
                        bytes: bytes.len() as u64,
                    })
                    .collect()
            });
            Ok(kept)
        })
    }

    fn place(&self) -> &'static str {
        "a shelf"
    }
}

/// An exporter that runs, as a node has one.
struct Bench {
    spool: tempfile::TempDir,
    shelf: Shelf,
    exports: Exports,
    began: Instant,
    driver: tokio::task::JoinHandle<()>,
}

fn since(began: Instant) -> Monotonic {
    Monotonic::from_millis(STARTED_MS) + began.elapsed()
}

impl Bench {
    fn new(mood: Mood, policy: ExportPolicy) -> Self {
        let spool = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(mood);
        let exports = Exports::open(Arc::new(shelf.clone()), spool.path(), policy, 1).unwrap();
        let began = Instant::now();
        let running = exports.clone();
        let driver = tokio::spawn(async move { running.run(move || since(began)).await });
        Self {
            spool,
            shelf,
            exports,
            began,
            driver,
        }
    }

    async fn record(&self, session: &str, options: Options) -> (Recorder, Recording) {
        let header = FileHeader {
            session_id: SessionId::new(session).unwrap(),
            ..header(options.level)
        };
        self.exports.record(header, options).await.unwrap()
    }

    fn stats(&self) -> ExportStats {
        self.exports.stats(since(self.began))
    }

    async fn drain(&self, within: Duration) -> Left {
        self.driver.abort();
        let began = self.began;
        self.exports.drain(move || since(began), within).await
    }

    fn files(&self) -> Vec<String> {
        disk(self.spool.path()).into_keys().collect()
    }

    async fn fetched(&self) -> Fetched {
        let found = list(&self.shelf, "").await.unwrap();
        let [archived] = &found[..] else {
            panic!("{found:?}")
        };
        fetch(&self.shelf, &archived.recording).await.unwrap()
    }
}

fn level(level: RecordingLevel) -> Options {
    Options {
        level,
        ..Options::default()
    }
}

fn read(bytes: &[u8]) -> (Vec<Entry>, Report) {
    let mut timeline = Timeline::read(std::io::Cursor::new(bytes)).unwrap();
    let entries = timeline.entries().unwrap();
    (entries, timeline.report().clone())
}

fn record(recorder: &Recorder, entries: Vec<Entry>) {
    for entry in entries {
        recorder.append(entry).unwrap();
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn an_archive_gets_a_recording_while_it_is_written_and_then_the_last_word() {
    let bench = Bench::new(Mood::Works, ExportPolicy::default());
    let (recorder, recording) = bench.record("call-7", level(RecordingLevel::L2)).await;
    let all = entries();
    let (first, second) = all.split_at(all.len() / 2);
    for entry in first {
        recorder.append(entry.clone()).unwrap();
    }
    sleep(seconds(2)).await;
    let early = bench.fetched().await;
    assert!(!early.is_complete, "nobody has said that this is all");
    let (found, report) = read(&early.bytes);
    assert_eq!(found.len(), first.len() + 1);
    assert!(report.torn.is_none() && report.footer.is_none());
    assert_eq!(bench.stats().lag_ms, 0);

    for entry in second {
        recorder.append(entry.clone()).unwrap();
    }
    recording.close().await.unwrap();
    sleep(seconds(2)).await;
    let all = bench.fetched().await;
    assert!(all.is_complete);
    let (found, report) = read(&all.bytes);
    assert!(report.is_whole(), "{:?}", report.problems());
    assert_eq!(found.len(), entries().len() + 2);
    let stats = bench.stats();
    assert_eq!((stats.queue_depth, stats.pending_bytes), (0, 0));
    assert_eq!((stats.recordings, stats.bytes), (1, all.bytes.len() as u64));
    assert!(bench.files().is_empty(), "{:?}", bench.files());
}

#[tokio::test(start_paused = true)]
async fn a_recording_in_a_place_of_its_own_stays_and_knows_how_far_its_export_is() {
    let bench = Bench::new(Mood::Fails, ExportPolicy::default());
    let path = bench.spool.path().join("call.rspp");
    let options = level(RecordingLevel::L0);
    let header = header(options.level);
    let (recorder, recording) = bench
        .exports
        .record_at(&path, header, options)
        .await
        .unwrap();
    record(&recorder, entries());
    recording.close().await.unwrap();
    sleep(seconds(1)).await;
    let behind = exported(&path).unwrap().unwrap();
    assert_eq!((behind.bytes, behind.is_complete), (0, false));
    bench.shelf.set(Mood::Works);
    sleep(seconds(40)).await;
    let even = exported(&path).unwrap().unwrap();
    let length = fs::metadata(&path).unwrap().len();
    assert_eq!((even.bytes, even.is_complete), (length, true));
    assert_eq!(bench.fetched().await.bytes, fs::read(&path).unwrap());
}

/// F-154: appending and closing take what they take without an archive.
#[tokio::test(start_paused = true)]
async fn recording_does_not_wait_for_an_archive_that_hangs() {
    let bench = Bench::new(Mood::Hangs, ExportPolicy::default());
    let (recorder, recording) = bench.record("call-7", level(RecordingLevel::L2)).await;
    sleep(seconds(1)).await;
    let began = Instant::now();
    for _ in 0..10 {
        record(&recorder, entries());
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    let summary = recording.close().await.unwrap();
    assert!(
        began.elapsed() < Duration::from_millis(50),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(summary.details_dropped, 0);
    sleep(seconds(60)).await;
    let stats = bench.stats();
    assert!(stats.failures > 0 && stats.lag_ms >= 60_000, "{stats:?}");
    assert!(stats.last_fault.unwrap().contains("no answer within 10s"));
}

/// F-154: slow or stopped: it comes later, and it comes whole.
#[tokio::test(start_paused = true)]
async fn after_an_outage_the_archive_has_everything() {
    for mood in [Mood::Fails, Mood::Hangs, Mood::KeepsAndFails, Mood::Panics] {
        let policy = ExportPolicy {
            segment_bytes: 700,
            ..ExportPolicy::default()
        };
        let bench = Bench::new(Mood::Works, policy);
        let (recorder, recording) = bench.record("call-7", level(RecordingLevel::L2)).await;
        recorder.append(entries().remove(0)).unwrap();
        sleep(seconds(1)).await;
        bench.shelf.set(mood);
        record(&recorder, entries());
        sleep(seconds(70)).await;
        let stats = bench.stats();
        assert!(
            stats.failures > 2 && stats.retries > 1,
            "{mood:?}: {stats:?}"
        );
        assert!(!bench.files().is_empty());
        bench.shelf.set(Mood::Works);
        recording.close().await.unwrap();
        sleep(seconds(40)).await;
        let all = bench.fetched().await;
        let (found, report) = read(&all.bytes);
        assert!(all.is_complete && report.is_whole(), "{mood:?}");
        // Two changes of level are noted: down for the lag.
        let notes = found
            .iter()
            .filter(|it| matches!(it, Entry::Level(_)))
            .count();
        assert_eq!((found.len(), notes), (entries().len() + 5, 2), "{mood:?}");
        assert!(bench.files().is_empty());
        // What was sent again was the same: no key ever had two contents.
        bench.shelf.with(|shelved| {
            for (key, bytes) in &shelved.puts {
                assert_eq!(shelved.objects.get(key), Some(bytes), "{mood:?}: {key}");
            }
            assert!(shelved.puts.len() > shelved.objects.len());
        });
    }
}

/// F-176: behind by two seconds costs full capture, by five the samples; even again, a turn may begin with more.
#[tokio::test(start_paused = true)]
async fn an_export_that_lags_lowers_the_recording_level() {
    let bench = Bench::new(Mood::Fails, ExportPolicy::default());
    let (recorder, _recording) = bench.record("call-7", level(RecordingLevel::L2)).await;
    sleep(Duration::from_millis(1_800)).await;
    assert_eq!(recorder.level(), RecordingLevel::L2);
    sleep(Duration::from_millis(700)).await;
    assert_eq!(recorder.level(), RecordingLevel::L1);
    sleep(seconds(3)).await;
    assert_eq!(recorder.level(), RecordingLevel::L0);
    let triggers: Vec<_> = std::iter::from_fn(|| recorder.poll_downgrade())
        .map(|change| (change.to, change.trigger))
        .collect();
    assert_eq!(
        triggers,
        [
            (RecordingLevel::L1, LevelTrigger::ExportLag),
            (RecordingLevel::L0, LevelTrigger::ExportLag)
        ]
    );
    bench.shelf.set(Mood::Works);
    sleep(seconds(60)).await;
    assert_eq!(bench.stats().lag_ms, 0);
    let up = recorder.turn_boundary(since(bench.began)).unwrap();
    assert_eq!(up.to, RecordingLevel::L1);
}

/// F-154: a spool is bounded: above its bound details are dropped and counted, above its reserve evidence fails (T9).
#[tokio::test(start_paused = true)]
async fn a_full_spool_keeps_evidence_before_details_and_then_neither() {
    let policy = ExportPolicy {
        spool_bytes: 6_000,
        spool_reserve_bytes: 60_000,
        ..ExportPolicy::default()
    };
    let bench = Bench::new(Mood::Fails, policy);
    let (recorder, recording) = bench.record("call-7", level(RecordingLevel::L2)).await;
    let mut appended = 0;
    while bench.stats().pending_bytes < 6_000 {
        record(&recorder, entries());
        appended += 1;
        sleep(Duration::from_millis(300)).await;
        assert!(appended < 100);
    }
    sleep(seconds(1)).await;
    let before = recorder.stats().unwrap();
    let turns = |entries: &[Entry]| {
        entries
            .iter()
            .filter(|it| matches!(it, Entry::Turn(_)))
            .count()
    };
    record(&recorder, entries());
    sleep(seconds(1)).await;
    let after = recorder.stats().unwrap();
    assert!(after.details_dropped > before.details_dropped);
    assert_eq!(after.evidence_refused, 0);
    let file = bench.files().remove(0);
    let (found, _) = read(&disk(bench.spool.path())[&file]);
    assert_eq!(turns(&found), (appended + 1) * turns(&entries()));
    assert!(found.iter().any(|it| matches!(it, Entry::Dropped(_))));

    let mut refused = None;
    for _ in 0..200 {
        refused = entries()
            .into_iter()
            .find_map(|it| recorder.append(it).err());
        sleep(Duration::from_millis(100)).await;
        if refused.is_some() {
            break;
        }
    }
    let refused = refused.expect("66 kB are soon full").to_string();
    assert!(
        refused.contains("the spool is full: 66000 bytes wait"),
        "{refused}"
    );
    recording.close().await.unwrap_err();
    assert!(bench.stats().pending_bytes <= 66_000);
    // What is there arrives as soon as it can.
    bench.shelf.set(Mood::Works);
    sleep(seconds(60)).await;
    assert_eq!((bench.stats().queue_depth, bench.files().len()), (0, 0));
    assert!(bench.fetched().await.is_complete);
}

#[tokio::test(start_paused = true)]
async fn an_archive_that_refuses_is_asked_seldom_and_named() {
    let bench = Bench::new(Mood::Refuses, ExportPolicy::default());
    let (recorder, _recording) = bench.record("call-7", level(RecordingLevel::L0)).await;
    recorder.append(entries().remove(0)).unwrap();
    sleep(seconds(100)).await;
    let stats = bench.stats();
    assert_eq!(stats.failures, 4, "at 0.5, 30.5, 60.5 and 90.5 s");
    assert_eq!(
        stats.last_fault.unwrap(),
        "the archive refuses: no such bucket"
    );
}

/// Many recordings, an archive that takes its time: no more uploads at once than are allowed, all arrive.
#[tokio::test(start_paused = true)]
async fn many_recordings_share_the_way() {
    let policy = ExportPolicy {
        segment_bytes: 2_000,
        ..ExportPolicy::default()
    };
    let bench = Bench::new(Mood::Slow(Duration::from_millis(300)), policy);
    let mut open = Vec::new();
    for number in 0..40 {
        let (recorder, recording) = bench
            .record(&format!("call-{number}"), level(RecordingLevel::L1))
            .await;
        record(&recorder, entries());
        open.push(recording);
    }
    for recording in open {
        recording.close().await.unwrap();
    }
    assert_eq!(bench.drain(seconds(60)).await, Left::default());
    let found = list(&bench.shelf, "").await.unwrap();
    assert_eq!(found.len(), 40);
    for archived in found {
        assert!(archived.is_complete && archived.segments > 1);
        let all = fetch(&bench.shelf, &archived.recording).await.unwrap();
        assert!(read(&all.bytes).1.is_whole());
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_archive_does_not_take_in_time_stays_for_the_next_process() {
    let bench = Bench::new(Mood::Fails, ExportPolicy::default());
    let (recorder, recording) = bench.record("call-7", level(RecordingLevel::L0)).await;
    record(&recorder, entries());
    recording.close().await.unwrap();
    let left = bench.drain(seconds(3)).await;
    assert_eq!(left.recordings, 1);
    assert!(left.bytes > 1_000 && bench.files().len() == 2);
    let Bench {
        spool,
        shelf,
        exports,
        began,
        ..
    } = bench;
    drop(exports);
    shelf.set(Mood::Works);
    let next = Exports::open(
        Arc::new(shelf.clone()),
        spool.path(),
        ExportPolicy::default(),
        2,
    );
    let next = next.unwrap();
    let recovery = next.recover(since(began)).await.unwrap();
    assert_eq!((recovery.resumed.len(), recovery.broken.len()), (1, 0));
    assert_eq!(
        next.drain(move || since(began), seconds(5)).await,
        Left::default()
    );
    assert!(disk(spool.path()).is_empty());
    assert!(fetch_one(&shelf).await.is_complete);
}

async fn fetch_one(shelf: &Shelf) -> Fetched {
    let found = list(shelf, "").await.unwrap();
    assert_eq!(found.len(), 1);
    fetch(shelf, &found[0].recording).await.unwrap()
}

/// F-154: whenever a process is killed, before or after the archive took a segment: the next one exports what is left,
/// a file goes only once it is acknowledged, and the archive's copy is the file's, byte for byte.
#[tokio::test(start_paused = true)]
async fn a_process_may_be_killed_at_any_step() {
    let policy = ExportPolicy {
        segment_bytes: 900,
        ..ExportPolicy::default()
    };
    let bench = Bench::new(Mood::Works, policy.clone());
    bench.shelf.with(|shelved| {
        shelved.watched = Some((bench.spool.path().to_owned(), Vec::new()));
    });
    let (recorder, recording) = bench.record("call-7", level(RecordingLevel::L1)).await;
    for chunk in entries().chunks(9) {
        record(&recorder, chunk.to_vec());
        sleep(seconds(1)).await;
    }
    recording.close().await.unwrap();
    sleep(seconds(2)).await;
    let whole = bench.fetched().await.bytes;
    let (disks, puts) = bench.shelf.with(|shelved| {
        let (_, disks) = shelved.watched.take().unwrap();
        (disks, shelved.puts.clone())
    });
    assert_eq!(disks.len(), puts.len() * 2);
    assert!(puts.len() > 6, "{}", puts.len());
    for (moment, left) in disks.iter().enumerate() {
        let spool = tempfile::tempdir().unwrap();
        for (name, bytes) in left {
            fs::write(spool.path().join(name), bytes).unwrap();
        }
        // The archive has what was put before this moment.
        let shelf = Shelf::new(Mood::Works);
        shelf.with(|shelved| {
            for (key, bytes) in &puts[..moment.div_ceil(2)] {
                shelved.keep(key, bytes.clone());
            }
        });
        let exports =
            Exports::open(Arc::new(shelf.clone()), spool.path(), policy.clone(), 3).unwrap();
        let began = Instant::now();
        let recovery = exports.recover(since(began)).await.unwrap();
        assert!(
            recovery.broken.is_empty(),
            "{moment}: {:?}",
            recovery.broken
        );
        let left = exports.drain(move || since(began), seconds(5)).await;
        assert_eq!(left, Left::default());
        assert!(disk(spool.path()).is_empty(), "{moment}");
        let found = fetch_one(&shelf).await;
        assert!(found.is_complete, "{moment}");
        assert_eq!(found.bytes, whole[..found.bytes.len()], "{moment}");
        // All that was on the disk, and what was acknowledged was not sent again.
        let sent = shelf.with(|shelved| shelved.puts.len());
        assert!(sent <= puts.len() - moment / 2 + 1, "{moment}: {sent}");
    }
}

/// A frame that the kill cut in two is not exported; what is whole before it is.
#[tokio::test(start_paused = true)]
async fn what_is_torn_stays_out_of_the_archive() {
    let bytes = crate::file::recorded(RecordingLevel::L1).await;
    let spool = tempfile::tempdir().unwrap();
    let path = spool.path().join("torn.rspp");
    fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    let shelf = Shelf::new(Mood::Works);
    let exports = Exports::open(
        Arc::new(shelf.clone()),
        spool.path(),
        ExportPolicy::default(),
        4,
    );
    let exports = exports.unwrap();
    let began = Instant::now();
    assert!(exports.adopt(&path, since(began)).await.unwrap());
    assert_eq!(
        exports.drain(move || since(began), seconds(5)).await,
        Left::default()
    );
    let (_, report) = read(&fetch_one(&shelf).await.bytes);
    assert_eq!(report.torn, None);
    assert!(report.footer.is_none(), "the frame that was cut");
    assert!(path.exists(), "it was not recorded into the spool");
    assert!(
        !exports.adopt(&path, since(began)).await.unwrap(),
        "it is there"
    );
}

#[tokio::test(start_paused = true)]
async fn recordings_of_a_process_that_lives_are_left_to_it() {
    let bench = Bench::new(Mood::Hangs, ExportPolicy::default());
    let (_recorder, _recording) = bench.record("call-7", level(RecordingLevel::L0)).await;
    let shelf = Shelf::new(Mood::Works);
    let other = Exports::open(
        Arc::new(shelf.clone()),
        bench.spool.path(),
        ExportPolicy::default(),
        5,
    );
    let recovery = other.unwrap().recover(since(bench.began)).await.unwrap();
    assert!(recovery.resumed.is_empty() && recovery.broken.is_empty());
    assert_eq!(bench.files().len(), 2);
}

#[tokio::test]
async fn what_cannot_be_exported_is_named_and_left_alone() {
    let spool = tempfile::tempdir().unwrap();
    fs::write(spool.path().join("notes.rspp"), "no timeline").unwrap();
    fs::write(
        spool.path().join("notes.rspp.export"),
        "{\"recording\":\"a/b/c\",\"acknowledged\":0}",
    )
    .unwrap();
    let shelf = Arc::new(Shelf::new(Mood::Works));
    let exports = Exports::open(shelf, spool.path(), ExportPolicy::default(), 6).unwrap();
    let recovery = exports.recover(Monotonic::ZERO).await.unwrap();
    let [(path, error)] = &recovery.broken[..] else {
        panic!("{recovery:?}")
    };
    assert!(path.ends_with("notes.rspp"));
    assert!(error.to_string().contains("not a timeline"), "{error}");
    assert_eq!(disk(spool.path()).len(), 2);
}

/// A session's placements record for themselves, and ids are whatever people choose.
#[tokio::test(start_paused = true)]
async fn recordings_do_not_share_their_keys() {
    let bench = Bench::new(Mood::Works, ExportPolicy::default());
    let mut script = Script::new();
    script.text(0, None, rspp_proto::Speaker::User, "hello", true);
    for (session, wall, epoch) in [
        ("a/../b", 1, 1),
        ("a/../b", 1, 2),
        ("a/../b", 2, 2),
        ("c", 1, 1),
    ] {
        let header = FileHeader {
            session_id: SessionId::new(session).unwrap(),
            started_wall: WallClock(wall),
            authority_epoch: rspp_proto::Epoch::new(epoch),
            ..header(RecordingLevel::L0)
        };
        let (recorder, recording) = bench
            .exports
            .record(header, Options::default())
            .await
            .unwrap();
        recorder.append(script.entries[0].clone()).unwrap();
        recording.close().await.unwrap();
    }
    sleep(seconds(2)).await;
    let found = list(&bench.shelf, "").await.unwrap();
    let names: Vec<_> = found.iter().map(|it| it.recording.as_str()).collect();
    assert_eq!(
        names,
        [
            "=none/a=2F..=2Fb/0000000000001-1",
            "=none/a=2F..=2Fb/0000000000001-2",
            "=none/a=2F..=2Fb/0000000000002-2",
            "=none/c/0000000000001-1",
        ]
    );
    assert!(found.iter().all(|it| it.is_complete));
    let of_one = list(&bench.shelf, "=none/c").await.unwrap();
    assert_eq!(of_one.len(), 1);
}
