//! Storages that are slow or run out of room: what a turn leaves behind is kept all the same.

use std::{
    io::{self, Cursor, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_proto::{
    abi::{Emitter, Signal},
    spec::RecordingLevel,
};
use rspp_timeline::*;
use tokio::time::Instant;

use crate::conversation::{Script, evidence, header, turn};

/// A disk of which nobody else takes anything.
#[derive(Clone)]
struct Disk {
    state: Arc<Mutex<State>>,
    write_takes: Duration,
}

struct State {
    bytes: Vec<u8>,
    size: usize,
    given_back: bool,
}

impl Disk {
    fn of(size: usize) -> Self {
        let state = State {
            bytes: Vec::new(),
            size,
            given_back: false,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            write_takes: Duration::ZERO,
        }
    }

    fn grow(&self, by: usize) {
        self.state.lock().unwrap().size += by;
    }

    fn read(&self) -> Timeline<Cursor<Vec<u8>>> {
        Timeline::read(Cursor::new(self.state.lock().unwrap().bytes.clone())).unwrap()
    }
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap();
        if state.bytes.len() + bytes.len() > state.size {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.bytes.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Storage for Disk {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn pace(&self) -> Pace {
        Pace::Takes(self.write_takes)
    }

    fn reserve(&mut self, bytes: u64) -> io::Result<()> {
        let state = self.state.lock().unwrap();
        if (state.size - state.bytes.len()) as u64 >= bytes {
            Ok(())
        } else {
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    fn give_back(&mut self) -> io::Result<()> {
        self.state.lock().unwrap().given_back = true;
        Ok(())
    }
}

async fn begin(disk: &Disk) -> (Recorder, Recording) {
    let options = Options {
        level: RecordingLevel::L2,
        ..Options::default()
    };
    Recording::begin(disk.clone(), header(options.level), options)
        .await
        .unwrap()
}

/// What a turn says of itself before its evidence: that it opens.
fn opens(at: u64, id: u32) -> Vec<Entry> {
    let mut script = Script::new();
    script.signal(at, Some(&turn(id)), Signal::TurnOpen, Emitter::TurnArbiter);
    script.entries
}

fn ends(at: u64, id: u32) -> Vec<Entry> {
    let mut script = Script::new();
    script.sequence = 1_000_000;
    script.signal(at, Some(&turn(id)), Signal::Abort, Emitter::TurnArbiter);
    script.signal(at, Some(&turn(id)), Signal::Close, Emitter::TurnArbiter);
    script.entries
}

/// Says so much that the disk is full; how that is told.
async fn fill(recorder: &Recorder) -> AppendError {
    for at in 0..10_000 {
        let mut script = Script::new();
        script.audio(at, None, None);
        script.sequence = 10 * at;
        script.signal(at, None, Signal::Connected, Emitter::ConnectionAdapter);
        for entry in script.entries {
            recorder.append(entry).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        if let Err(error) = recorder.takes_turn() {
            return error;
        }
    }
    panic!("it is never full");
}

/// T9, F-149, F-176, invariant 16: when the disk is full, what was kept free of it holds the end of the turn
/// that runs; no other opens, and the file is whole.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_turn_has_room_on_a_full_disk() {
    let disk = Disk::of(3 * KEPT_FREE as usize);
    let (recorder, recording) = begin(&disk).await;
    let rung = Arc::new(Mutex::new(0));
    let bell = Arc::clone(&rung);
    recorder.set_alarm(Some(Box::new(move || *bell.lock().unwrap() += 1)));
    recorder.takes_turn().unwrap();
    for entry in opens(1, 1) {
        recorder.append(entry).unwrap();
    }
    let error = fill(&recorder).await;
    assert!(matches!(error, AppendError::Storage { .. }), "{error}");
    assert_eq!(*rung.lock().unwrap(), 1, "told once, when it happens");

    // From here on only the end is kept.
    let lost = recorder.append(opens(90_000, 2).remove(0));
    assert!(matches!(lost, Err(AppendError::Storage { .. })));
    recorder
        .append_terminal(evidence(&turn(1), 10, 20, false))
        .unwrap();
    for entry in ends(90_001, 1) {
        recorder.append_terminal(entry).unwrap();
    }
    let summary = recording
        .close()
        .await
        .expect("all that was taken is written");
    assert_eq!((summary.turns, summary.complete_turns), (1, 1));
    assert!(summary.details_dropped > 0, "{summary:?}");
    assert!(disk.state.lock().unwrap().given_back);

    let mut read = disk.read();
    let entries = read.entries().unwrap();
    assert_eq!(read.report().torn, None);
    let kinds: Vec<_> = entries.iter().rev().take(5).map(Entry::kind).collect();
    let footer = entries.last().map(Entry::kind);
    assert_eq!(footer, Some(EntryKind::Footer), "{kinds:?}");
    let broken = verify::verify(&entries);
    // Plan and sequences are not part of this script.
    let others = [verify::Rule::PlanRecorded, verify::Rule::SequenceRises];
    let ends = broken.iter().find(|it| !others.contains(&it.rule));
    assert_eq!(ends, None);
}

/// F-154: once there is room again turns open again, and what they say is recorded.
#[tokio::test(start_paused = true)]
async fn turns_open_again_when_there_is_room_again() {
    let disk = Disk::of(3 * KEPT_FREE as usize);
    let (recorder, recording) = begin(&disk).await;
    fill(&recorder).await;
    disk.grow(4 * KEPT_FREE as usize);
    assert!(recorder.takes_turn().is_err(), "nobody has looked yet");
    tokio::time::sleep(Duration::from_millis(100)).await;
    recorder.takes_turn().expect("asking has made it look");
    for entry in opens(90_000, 2) {
        recorder.append(entry).unwrap();
    }
    recording.close().await.unwrap();
}

/// T9: where a turn's evidence would find no room from the first, there is no recording, and the reason says
/// how much is needed.
#[tokio::test(start_paused = true)]
async fn a_disk_without_room_for_one_turn_takes_no_recording() {
    let disk = Disk::of(20_000);
    let options = Options::default();
    let error = Recording::begin(disk.clone(), header(options.level), options)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(
        error.to_string().contains(&KEPT_FREE.to_string()),
        "{error}"
    );
    assert!(disk.state.lock().unwrap().bytes.is_empty());
}

/// F-154: nobody waits for the first write either: a recording begins at once on a disk that takes seconds.
#[tokio::test(start_paused = true)]
async fn a_recording_begins_before_anything_is_written() {
    let mut disk = Disk::of(1 << 20);
    disk.write_takes = Duration::from_secs(2);
    let began = Instant::now();
    let (recorder, recording) = begin(&disk).await;
    for entry in opens(1, 1) {
        recorder.takes_turn().unwrap();
        recorder.append(entry).unwrap();
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    recording.close().await.unwrap();
    let entries = disk.read().entries().unwrap();
    let kinds: Vec<_> = entries.iter().map(Entry::kind).collect();
    let wanted = [EntryKind::Header, EntryKind::Signal, EntryKind::Footer];
    assert_eq!(kinds, wanted);
}

/// F-176: a queue that cannot hold its own reserves is refused, with the size that would do.
#[tokio::test(start_paused = true)]
async fn a_queue_smaller_than_its_reserves_is_refused() {
    let mut options = Options::default();
    options.capacity.total.entries = 100;
    let least = options.capacity.check().unwrap_err().least;
    let disk = Disk::of(1 << 20);
    let error = Recording::begin(disk.clone(), header(options.level), options.clone())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("it needs {least} or more")),
        "{error}"
    );
    options.capacity.total.entries = least;
    assert_eq!(options.capacity.check(), Ok(()));
    options.capacity.total.bytes = 1_000;
    assert_eq!(options.capacity.check().unwrap_err().unit, "bytes");
    let path = tempfile::tempdir().unwrap().path().join("call.rspp");
    let refused = Recording::create(path, header(options.level), options).await;
    assert!(matches!(refused, Err(OpenError::Capacity(_))));
}

/// Invariant 16: a turn is refused while the queue could not hold its opening and its end.
#[test]
fn a_full_queue_takes_no_turn() {
    let (recorder, memory) = Recorder::in_memory(Options::default());
    recorder.takes_turn().unwrap();
    let mut script = Script::new();
    for at in 0..3_000 {
        script.signal(at, None, Signal::Connected, Emitter::ConnectionAdapter);
    }
    let mut held = 0;
    for entry in script.entries {
        if recorder.takes_turn().is_err() {
            break;
        }
        recorder.append(entry).unwrap();
        held += 1;
    }
    assert!(held > 1_500, "{held}");
    for entry in opens(4_000, 1) {
        recorder
            .append(entry)
            .expect("there is room for an opening beyond it");
    }
    memory.take();
    recorder.takes_turn().unwrap();
}

/// T9: a file has its blocks before it has their content; what was not used goes back, and a reader finds
/// none of it, whether it was closed or not.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_file_keeps_blocks_beyond_its_end() {
    use std::os::unix::fs::MetadataExt;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("call.rspp");
    let (recorder, recording) =
        Recording::create(&path, header(RecordingLevel::L0), Options::default())
            .await
            .unwrap();
    let found = std::fs::metadata(&path).unwrap();
    assert!(
        found.blocks() * 512 >= KEPT_FREE,
        "{} blocks",
        found.blocks()
    );
    for entry in opens(1, 1) {
        recorder.append(entry).unwrap();
    }
    let summary = recording.close().await.unwrap();
    let closed = std::fs::metadata(&path).unwrap();
    assert!(
        closed.blocks() < found.blocks(),
        "it keeps {}",
        closed.blocks()
    );
    let mut read = Timeline::open(&path).unwrap();
    assert_eq!(read.entries().unwrap().len() as u64, summary.entries + 2);
    assert_eq!(read.report().torn, None);
}
