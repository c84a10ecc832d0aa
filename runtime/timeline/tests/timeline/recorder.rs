use std::{
    io::{self, Cursor, Write},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use rspp_proto::{
    Monotonic,
    abi::{Emitter, Signal},
    spec::RecordingLevel,
};
use rspp_timeline::*;

use crate::conversation::{STARTED_MS, Script, entries, evidence, header, turn};

/// A storage that can be told to stand still or to fail.
#[derive(Clone, Default)]
struct Disk(Arc<(Mutex<DiskState>, Condvar)>);

#[derive(Default)]
struct DiskState {
    bytes: Vec<u8>,
    is_stuck: bool,
    room: Option<usize>,
    syncs: u32,
}

impl Disk {
    fn set(&self, change: impl FnOnce(&mut DiskState)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn get<T>(&self, look: impl FnOnce(&DiskState) -> T) -> T {
        look(&self.0.0.lock().unwrap())
    }

    fn entries(&self) -> Vec<Entry> {
        let bytes = self.get(|state| state.bytes.clone());
        Timeline::read(Cursor::new(bytes))
            .unwrap()
            .entries()
            .unwrap()
    }
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (state, changed) = &*self.0;
        let mut state = changed
            .wait_while(state.lock().unwrap(), |state| state.is_stuck)
            .unwrap();
        let room = state
            .room
            .map_or(usize::MAX, |room| room - state.bytes.len());
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let taken = bytes.len().min(room);
        state.bytes.extend(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Storage for Disk {
    fn sync(&mut self) -> io::Result<()> {
        self.set(|state| state.syncs += 1);
        Ok(())
    }
}

async fn begin(disk: &Disk, options: Options) -> (Recorder, Recording) {
    Recording::begin(disk.clone(), header(options.level), options)
        .await
        .unwrap()
}

fn small(level: RecordingLevel) -> Options {
    let bytes = 1 << 20;
    Options {
        capacity: Capacity {
            total: Room {
                entries: 100,
                bytes,
            },
            baseline_reserve: Room {
                entries: 20,
                bytes: bytes / 8,
            },
            terminal_reserve: Room {
                entries: 10,
                bytes: bytes / 8,
            },
        },
        level,
        ..Options::default()
    }
}

fn audio(count: u64) -> Vec<Entry> {
    let mut script = Script::new();
    (0..count).for_each(|index| script.audio(index, None, None));
    script.entries
}

fn signals(count: u64) -> Vec<Entry> {
    let mut script = Script::new();
    (0..count).for_each(|index| {
        script.signal(index, None, Signal::Connected, Emitter::ConnectionAdapter);
    });
    script.entries
}

/// F-154: closing loses nothing that was taken.
#[tokio::test]
async fn closing_writes_everything_that_was_taken() {
    let disk = Disk::default();
    let (recorder, recording) = begin(
        &disk,
        Options {
            level: RecordingLevel::L2,
            ..Options::default()
        },
    )
    .await;
    let mut appended = 0;
    for _ in 0..40 {
        for entry in entries() {
            recorder.append(entry).unwrap();
            appended += 1;
        }
        tokio::task::yield_now().await;
    }
    let summary = recording.close().await.unwrap();
    assert_eq!(summary.entries + summary.details_dropped, appended);
    assert_eq!(summary.details_dropped, 0);
    assert_eq!(disk.entries().len() as u64, appended + 2);
    assert_eq!(
        recorder.append(signals(1).remove(0)),
        Err(AppendError::Closed)
    );
}

/// F-154, lifecycle §4, 16: a storage that stands still never holds up an append; details go first,
/// baseline has its reserve, endings theirs.
#[tokio::test]
async fn a_stuck_storage_costs_details_first() {
    let disk = Disk::default();
    let (recorder, recording) = begin(&disk, small(RecordingLevel::L2)).await;
    disk.set(|state| state.is_stuck = true);

    for entry in audio(300) {
        recorder.append(entry).unwrap();
    }
    let dropped = recorder.stats().unwrap().details_dropped;
    assert!(dropped >= 130, "{dropped} dropped");
    // 90 places for baseline: 20 of them reserved, the others taken from the details.
    for entry in signals(90) {
        recorder.append(entry).unwrap();
    }
    let full = recorder.append(signals(1).remove(0)).unwrap_err();
    assert!(
        matches!(
            full,
            AppendError::Full {
                kind: "signal",
                waiting: 90..
            }
        ),
        "{full}"
    );
    for _ in 0..9 {
        recorder
            .append_terminal(evidence(&turn(1), 10, 20, false))
            .unwrap();
    }

    disk.set(|state| state.is_stuck = false);
    let summary = recording.close().await.unwrap();
    assert_eq!(summary.turns, 9);
    let dropped = recorder.stats().unwrap().details_dropped;
    assert_eq!(summary.details_dropped, dropped);
    let found = disk.entries();
    let written = found
        .iter()
        .filter(|entry| entry.kind() == EntryKind::Event)
        .count() as u64;
    assert_eq!(written + dropped, 300);
    assert_eq!(
        found
            .iter()
            .filter(|entry| entry.kind() == EntryKind::Signal)
            .count(),
        90
    );
}

/// T9: a full disk is an error for evidence from then on, and never a wait.
#[tokio::test]
async fn a_full_disk_fails_evidence_from_then_on() {
    let disk = Disk::default();
    let (recorder, recording) = begin(&disk, Options::default()).await;
    while disk.get(|state| state.bytes.is_empty()) {
        tokio::task::yield_now().await;
    }
    disk.set(|state| state.room = Some(state.bytes.len() + 100));
    recorder
        .append_terminal(evidence(&turn(1), 10, 20, false))
        .unwrap();
    tokio::time::timeout(Duration::from_secs(20), async {
        while !recorder.stats().unwrap().has_failed {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the failure is noticed");

    let error = recorder.append(signals(1).remove(0)).unwrap_err();
    assert!(matches!(error, AppendError::Storage { .. }), "{error}");
    assert!(
        recorder
            .append_terminal(evidence(&turn(1), 10, 20, false))
            .is_err()
    );
    recorder
        .append(audio(1).remove(0))
        .expect("a detail is only counted");
    assert!(recording.close().await.is_err());
    // What had reached the disk is a timeline that was cut.
    let bytes = disk.get(|state| state.bytes.clone());
    let mut timeline = Timeline::read(Cursor::new(bytes)).unwrap();
    assert_eq!(timeline.entries().unwrap().len(), 1);
    assert_eq!(timeline.report().torn.map(|torn| torn.lost), Some(100));
}

#[tokio::test]
async fn the_end_of_a_turn_is_forced_to_the_storage() {
    for (sync, at_least) in [(SyncPolicy::OnClose, 1), (SyncPolicy::AtTurnEnd, 2)] {
        let disk = Disk::default();
        let (recorder, recording) = begin(
            &disk,
            Options {
                sync,
                ..Options::default()
            },
        )
        .await;
        recorder
            .append_terminal(evidence(&turn(1), 10, 20, false))
            .unwrap();
        tokio::time::timeout(Duration::from_secs(20), async {
            while disk.entries().len() < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("it is written without waiting for more");
        recording.close().await.unwrap();
        assert_eq!(disk.get(|state| state.syncs), at_least, "{sync:?}");
    }
}

/// F-176: pressure lowers the level a step at a time; every step is recorded and announced, and
/// the evidence stays whole.
#[test]
fn pressure_lowers_the_level_step_by_step() {
    let (recorder, memory) = Recorder::in_memory(small(RecordingLevel::L2));
    let mut script = Script::new();
    for index in 0..400 {
        script.audio(index * 20, None, None);
    }
    for entry in script.entries {
        recorder.append(entry).unwrap();
    }
    recorder
        .append_terminal(evidence(&turn(1), 10, 20, false))
        .unwrap();
    assert_eq!(recorder.level(), RecordingLevel::L0);
    let announced: Vec<_> = std::iter::from_fn(|| recorder.poll_downgrade()).collect();
    let steps: Vec<_> = announced
        .iter()
        .map(|change| (change.from, change.to))
        .collect();
    assert_eq!(
        steps,
        [
            (RecordingLevel::L2, RecordingLevel::L1),
            (RecordingLevel::L1, RecordingLevel::L0)
        ]
    );
    let held = memory.take();
    let marks = held.iter().filter_map(|entry| match entry {
        Entry::Level(change) => Some(change.clone()),
        _ => None,
    });
    assert_eq!(marks.collect::<Vec<_>>(), announced);
    let evidence = held.iter().find_map(|entry| match entry {
        Entry::Turn(turn) => Some(turn.missing()),
        _ => None,
    });
    assert_eq!(evidence, Some(vec![]));
    assert!(matches!(held.last(), Some(Entry::Dropped(note)) if note.details > 0));
}

/// F-153: the base is the same at every level; higher ones add to it.
#[test]
fn a_higher_level_keeps_the_base() {
    let at = |level| {
        let (recorder, memory) = Recorder::in_memory(Options {
            level,
            ..Options::default()
        });
        let mut script = Script::new();
        (0..200).for_each(|index| script.audio(index, None, None));
        for entry in entries().into_iter().chain(script.entries) {
            recorder.append(entry).unwrap();
        }
        memory.take()
    };
    let base = |entries: &[Entry]| -> Vec<Entry> {
        entries
            .iter()
            .filter(|entry| entry.class() != EntryClass::Detail)
            .cloned()
            .collect()
    };
    let (l0, l1, l2) = (
        at(RecordingLevel::L0),
        at(RecordingLevel::L1),
        at(RecordingLevel::L2),
    );
    assert_eq!(base(&l0), base(&l1));
    assert_eq!(base(&l0), base(&l2));
    assert!(l0.len() < l1.len() && l1.len() < l2.len());
    assert_eq!(l2.len(), entries().len() + 200);
}

#[test]
fn more_is_recorded_again_only_from_a_turn_boundary_on() {
    let (recorder, _memory) = Recorder::in_memory(small(RecordingLevel::L1));
    let ms = |ms| Monotonic::from_millis(STARTED_MS + ms);
    recorder.set_export(ms(0), Duration::from_secs(5), 0.0);
    assert_eq!(recorder.level(), RecordingLevel::L0);
    recorder.set_export(ms(100), Duration::ZERO, 0.0);
    assert_eq!(recorder.turn_boundary(ms(5_000)), None);
    let up = recorder.turn_boundary(ms(10_100)).unwrap();
    assert_eq!(
        (up.to, recorder.level()),
        (RecordingLevel::L1, RecordingLevel::L1)
    );
}

#[test]
fn a_null_recorder_does_not_even_make_its_entries() {
    let recorder = Recorder::null();
    assert!(!recorder.is_recording());
    recorder.append_with(|| panic!("made")).unwrap();
    assert_eq!(recorder.stats(), None);
}
