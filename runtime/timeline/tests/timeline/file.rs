use std::{
    io::{Cursor, Write},
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use rspp_proto::spec::RecordingLevel;
use rspp_timeline::*;

use crate::conversation::{entries, header};

fn options(level: RecordingLevel) -> Options {
    Options {
        level,
        ..Options::default()
    }
}

/// The conversation, recorded and closed.
pub(crate) async fn recorded(level: RecordingLevel) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("call.rspp");
    let (recorder, recording) = Recording::create(&path, header(level), options(level))
        .await
        .unwrap();
    for entry in entries() {
        recorder.append(entry).unwrap();
    }
    recording.close().await.unwrap();
    std::fs::read(path).unwrap()
}

fn read(bytes: &[u8]) -> (Vec<Entry>, Report) {
    let mut timeline = Timeline::read(Cursor::new(bytes)).unwrap();
    let entries = timeline.entries().unwrap();
    (entries, timeline.report().clone())
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1.0.rspp")
}

#[tokio::test]
async fn what_was_recorded_reads_back() {
    let (found, report) = read(&recorded(RecordingLevel::L2).await);
    assert!(report.is_whole(), "{:?}", report.problems());
    assert_eq!(found.len(), entries().len() + 2);
    assert_eq!(found[0], header(RecordingLevel::L2).into());
    let Some(Entry::Footer(summary)) = found.last() else {
        panic!("no footer")
    };
    assert_eq!(summary.entries, entries().len() as u64);
    assert_eq!(
        (
            summary.turns,
            summary.accepted_turns,
            summary.complete_turns
        ),
        (2, 2, 2)
    );
    let untouched = |entry: &&Entry| !matches!(entry, Entry::Event(_) | Entry::Attempt(_));
    let expected = entries();
    let kept: Vec<_> = found[1..found.len() - 1].iter().filter(untouched).collect();
    assert_eq!(kept, expected.iter().filter(untouched).collect::<Vec<_>>());
}

/// A file of the first release still loads, whatever is added to the format.
#[test]
fn the_golden_file_still_loads() {
    let bytes = std::fs::read(golden()).unwrap();
    let mut timeline = Timeline::read(Cursor::new(&bytes)).unwrap();
    assert_eq!(timeline.version(), FormatVersion { major: 1, minor: 0 });
    assert_eq!(timeline.header().unwrap().session_id.as_str(), "call-7");
    let found = timeline.entries().unwrap();
    assert!(
        timeline.report().is_whole(),
        "{:?}",
        timeline.report().problems()
    );
    assert_eq!(found.len(), 37);
    assert_eq!(verify::verify(&found), []);
    // Every kind that a recorder writes in normal operation is in it.
    for kind in EntryKind::ALL {
        let rare = [EntryKind::Handoff, EntryKind::Level, EntryKind::Dropped];
        let newer = [
            EntryKind::Journal,
            EntryKind::Tool,
            EntryKind::Opening,
            EntryKind::Capture,
        ];
        assert!(
            rare.contains(kind)
                || newer.contains(kind)
                || found.iter().any(|entry| entry.kind() == *kind),
            "{kind:?}"
        );
    }
}

/// Writes the golden file anew; only for a new format: `cargo test -- --ignored golden`.
#[tokio::test]
#[ignore = "writes the golden file"]
async fn write_the_golden_file() {
    std::fs::write(golden(), recorded(RecordingLevel::L2).await).unwrap();
}

proptest! {
    /// A recording cut at any byte gives its whole entries and says that something is lost.
    #[test]
    fn a_recording_cut_anywhere_opens(cut in any::<prop::sample::Index>()) {
        let bytes = std::fs::read(golden()).unwrap();
        let (all, _) = read(&bytes);
        let cut = cut.index(bytes.len());
        let (found, report) = read(&bytes[..cut]);
        prop_assert_eq!(&found[..], &all[..found.len()]);
        prop_assert!(found.len() < all.len());
        prop_assert!(!report.is_whole());
        let lost = report.torn.map_or(0, |torn| torn.lost);
        prop_assert_eq!(report.whole_bytes + lost, cut as u64);
    }

    /// A flipped bit is detected and named with its offset; one entry is lost at most.
    #[test]
    fn a_bit_flipped_anywhere_is_named(byte in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let mut bytes = std::fs::read(golden()).unwrap();
        let (all, _) = read(&bytes);
        let byte = byte.index(bytes.len());
        bytes[byte] ^= 1 << bit;
        match Timeline::read(Cursor::new(&bytes)) {
            Err(ReadError::Preamble(_)) => prop_assert!(byte < PREAMBLE_BYTES),
            Err(ReadError::Io(error)) => panic!("{error}"),
            Ok(mut timeline) => {
                let found = timeline.entries().unwrap();
                prop_assert_eq!(found.len() + 1, all.len());
                let [damage] = timeline.report().damages[..] else {
                    panic!("{:?}", timeline.report());
                };
                prop_assert!((damage.offset..damage.end).contains(&(byte as u64)));
                let problem = format!("the frame at byte {}", damage.offset);
                prop_assert!(timeline.report().problems()[0].contains(&problem));
            }
        }
    }
}

#[test]
fn frames_of_a_newer_minor_are_skipped_and_counted() {
    let mut bytes = std::fs::read(golden()).unwrap();
    let newer = preamble(FormatVersion {
        major: VERSION.major,
        minor: 9,
    });
    bytes[..PREAMBLE_BYTES].copy_from_slice(&newer);
    let (all, _) = read(&bytes);
    let mut extended = bytes[..PREAMBLE_BYTES].to_vec();
    write_frame(&mut extended, 200, b"from the future").unwrap();
    extended.extend(&bytes[PREAMBLE_BYTES..]);
    let (found, report) = read(&extended);
    assert_eq!(found, all);
    assert_eq!(report.skipped_unknown, 1);
}

#[test]
fn another_major_is_refused_with_what_to_do() {
    let mut bytes = std::fs::read(golden()).unwrap();
    bytes[..PREAMBLE_BYTES].copy_from_slice(&preamble(FormatVersion { major: 2, minor: 0 }));
    let error = Timeline::read(Cursor::new(bytes)).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("use the `rspp` release that wrote it"),
        "{error}"
    );
}

/// A whole frame that says what this build does not understand costs itself alone.
#[test]
fn an_entry_that_cannot_be_read_is_named() {
    let mut bytes = std::fs::read(golden()).unwrap();
    let offset = bytes.len() as u64;
    write_frame(&mut bytes, EntryKind::Playout.number(), b"\x80").unwrap();
    let (_, report) = read(&bytes);
    assert_eq!(report.unreadable.len(), 1);
    assert_eq!(report.unreadable[0].0, offset);
    assert!(!report.is_whole());
}

#[tokio::test]
async fn a_recording_goes_on_behind_its_last_whole_frame() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("call.rspp");
    let whole = std::fs::read(golden()).unwrap();
    let (all, _) = read(&whole);
    // The crash came in the middle of the footer.
    std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();

    let (recorder, recording, recovered) = Recording::reopen(&path, options(RecordingLevel::L2))
        .await
        .unwrap();
    assert_eq!(recovered.entries, all.len() as u64 - 1);
    assert_eq!(recovered.torn.and_then(|torn| torn.missing), Some(3));
    assert_eq!(recovered.header.session_id.as_str(), "call-7");
    recorder.append(entries()[0].clone()).unwrap();
    let summary = recording.close().await.unwrap();
    assert_eq!((summary.entries, summary.turns), (all.len() as u64 - 1, 2));

    let (found, report) = read(&std::fs::read(&path).unwrap());
    assert!(report.is_whole(), "{:?}", report.problems());
    assert_eq!(found[..all.len() - 1], all[..all.len() - 1]);
    assert_eq!(found.len(), all.len() + 1);
}

#[tokio::test]
async fn a_file_without_a_header_is_not_appended_to() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&preamble(VERSION)).unwrap();
    let error = Recording::reopen(file.path(), Options::default())
        .await
        .unwrap_err();
    assert!(matches!(error, OpenError::NoHeader { .. }), "{error}");
}

#[tokio::test]
async fn an_existing_file_is_never_overwritten() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let begun =
        Recording::create(file.path(), header(RecordingLevel::L0), Options::default()).await;
    assert!(matches!(begun, Err(OpenError::Io { .. })));
}

#[cfg(unix)]
#[tokio::test]
async fn a_recording_is_readable_by_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("call.rspp");
    let (_, recording) = Recording::create(&path, header(RecordingLevel::L0), Options::default())
        .await
        .unwrap();
    recording.close().await.unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
