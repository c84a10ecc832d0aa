//! The export of timelines beside calls that are held.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_proto::{
    Monotonic, Payload, PipelineVersion, SessionId, WallClock,
    abi::{PayloadClass, Signal},
    spec::{AudioRedaction, PiiPattern, RecordingLevel, RecordingPolicy, RedactSpec, ReplayMode},
};
use rspp_provider_api::scripted::{ScriptedLlm, ScriptedStt};
use rspp_tests::call::{Builder, Cast, Ended, after_reply, first, says};
use rspp_timeline::{
    Came, Captured, Entry, FileHeader, Options, RedactionAction, Timeline,
    export::{
        Answer, Archive, ArchiveFault, ExportPolicy, ExportStats, Exports, Kept, Left, fetch, list,
    },
};
use tokio::time::Instant;

/// An archive that does not answer, or does.
#[derive(Default)]
struct Shelf {
    hangs: Mutex<bool>,
    objects: Mutex<BTreeMap<String, bytes::Bytes>>,
}

impl Archive for Shelf {
    fn put<'a>(&'a self, key: &'a str, bytes: bytes::Bytes) -> Answer<'a, ()> {
        Box::pin(async move {
            if *self.hangs.lock().unwrap() {
                std::future::pending::<()>().await;
            }
            self.objects.lock().unwrap().insert(key.to_owned(), bytes);
            Ok::<_, ArchiveFault>(())
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<bytes::Bytes>> {
        Box::pin(async move { Ok(self.objects.lock().unwrap().get(key).cloned()) })
    }

    fn list<'a>(&'a self, under: &'a str) -> Answer<'a, Vec<Kept>> {
        Box::pin(async move {
            let objects = self.objects.lock().unwrap();
            let under = objects.iter().filter(|(key, _)| key.starts_with(under));
            let kept = under.map(|(key, bytes)| Kept {
                key: key.clone(),
                bytes: bytes.len() as u64,
            });
            Ok(kept.collect())
        })
    }

    fn place(&self) -> &'static str {
        "a shelf"
    }
}

/// A call of three turns, exported to `shelf`: how it went, how far the export was at its end, and what it left.
async fn held(shelf: &Arc<Shelf>) -> (Ended, ExportStats, Left) {
    let began = Instant::now();
    let now = move || Monotonic::ZERO + began.elapsed();
    let spool = tempfile::tempdir().unwrap();
    let archive: Arc<dyn Archive> = Arc::clone(shelf) as _;
    let exports = Exports::open(archive, spool.path(), ExportPolicy::default(), 1).unwrap();
    let header = FileHeader::new(
        SessionId::new("call").unwrap(),
        PipelineVersion::new("simple/1").unwrap(),
        "tests",
        RecordingLevel::L2,
        Monotonic::ZERO,
        WallClock(1_790_000_000_000),
    );
    let options = Options {
        level: RecordingLevel::L2,
        ..Options::default()
    };
    let (recorder, recording) = exports.record(header, options).await.unwrap();
    let said = vec![says(first()), says(after_reply()), says(after_reply())];
    let beside = exports.clone();
    let mut builder =
        Builder::new(&Cast::default(), said).configure(move |config| config.exports = Some(beside));
    builder.recorder = Some(recorder);
    let call = builder.start().await;
    let exporter = call
        .runtime
        .tree()
        .into_iter()
        .find(|actor| actor.kind == "timeline_exporter");
    assert_eq!(
        exporter.map(|it| it.path),
        Some("node/timeline-exporter".to_owned())
    );
    let ended = call.end().await;
    let stats = exports.stats(now());
    let summary = recording.close().await.unwrap();
    assert_eq!((summary.turns, summary.complete_turns), (3, 3));
    *shelf.hangs.lock().unwrap() = false;
    let left = exports.drain(now, Duration::from_mins(1)).await;
    assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0);
    (ended, stats, left)
}

/// A call whose agent says what is personal, recorded whole but for what `redact` takes away, as an archive
/// has it in the end.
async fn archived(redact: RedactSpec) -> (Vec<u8>, Vec<Entry>, Ended) {
    let shelf = Arc::new(Shelf::default());
    let began = Instant::now();
    let now = move || Monotonic::ZERO + began.elapsed();
    let spool = tempfile::tempdir().unwrap();
    let archive: Arc<dyn Archive> = Arc::clone(&shelf) as _;
    let exports = Exports::open(archive, spool.path(), ExportPolicy::default(), 1).unwrap();
    let policy = RecordingPolicy {
        recording_level: RecordingLevel::L2,
        allowed_replay_modes: BTreeSet::from([ReplayMode::ReplayDecisions]),
        full_capture: BTreeSet::from([PayloadClass::AudioRaw, PayloadClass::TextRaw]),
        redact,
    };
    let header = FileHeader::new(
        SessionId::new("call").unwrap(),
        PipelineVersion::new("simple/1").unwrap(),
        "tests",
        RecordingLevel::L2,
        Monotonic::ZERO,
        WallClock(1_790_000_000_000),
    );
    let options = Options::under(&policy);
    let (recorder, recording) = exports.record(header, options).await.unwrap();
    let cast = Cast {
        stt: Arc::new(ScriptedStt::new("stt").utterances([USER, "thanks"])),
        llm: Arc::new(ScriptedLlm::new("llm").answers([AGENT])),
        ..Cast::default()
    };
    let mut builder = Builder::new(&cast, vec![says(first()), says(after_reply())]);
    builder.settings.session.recording_policy = Some(policy);
    builder.recorder = Some(recorder);
    let ended = builder.hold().await;
    recording.close().await.unwrap();
    exports.drain(now, Duration::from_mins(1)).await;
    let found = list(&*shelf, "").await.unwrap();
    let all = fetch(&*shelf, &found[0].recording).await.unwrap();
    assert!(all.is_complete);
    let mut timeline = Timeline::read(std::io::Cursor::new(all.bytes.clone())).unwrap();
    let entries = timeline.entries().unwrap();
    (all.bytes, entries, ended)
}

const USER: &str = "my card is 4111 1111 1111 1111";
const AGENT: &str = "I wrote to j.doe@example.com about Acme. Anything else?";

fn can_be_read(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

/// What is left of an entry without its payload: what it is, when it was, and how large.
fn shape(entry: &Entry) -> String {
    let envelope = entry.envelope();
    let event = envelope.map(|it| (it.event_id.clone(), it.runtime_sequence, it.turn_id.clone()));
    let length = match entry {
        Entry::Event(event) => match &event.record.payload {
            Some(Payload::Text(chunk)) => chunk.text.chars().count(),
            Some(Payload::AudioChunk(chunk)) => chunk.data.len(),
            Some(_) | None => 0,
        },
        _another_entry => 0,
    };
    format!("{:?} {:?} {event:?} {length}", entry.kind(), entry.at())
}

/// F-073: the settings of a session have what is personal masked, and audio silenced, from the recorder
/// through the export to the archive: nothing of it can be read there. The recordings with and without
/// differ in payloads alone: the same entries in the same order at the same times, of the same length, and
/// each turn's times are the same. What was taken away is said, entry by entry and turn by turn.
#[tokio::test(start_paused = true)]
async fn what_is_personal_never_reaches_the_archive() {
    let secrets = ["4111 1111", "j.doe@example.com", "Acme"];
    let (bytes, plain, undisturbed) = archived(RedactSpec::default()).await;
    for secret in secrets {
        assert!(can_be_read(&bytes, secret), "{secret}");
    }
    let (bytes, masked, ended) = archived(RedactSpec {
        patterns: BTreeSet::from([PiiPattern::Card, PiiPattern::Email]),
        terms: BTreeSet::from(["acme".to_owned()]),
        audio: AudioRedaction::Mask,
    })
    .await;
    for secret in secrets {
        assert!(!can_be_read(&bytes, secret), "{secret}");
    }
    assert!(can_be_read(&bytes, "my card is **** **** **** ****"));

    let shapes = |entries: &[Entry]| -> Vec<String> { entries.iter().map(shape).collect() };
    let (plain_shapes, masked_shapes) = (shapes(&plain), shapes(&masked));
    assert_eq!(plain_shapes.len(), masked_shapes.len());
    for (plain, masked) in plain_shapes.iter().zip(&masked_shapes) {
        assert_eq!(plain, masked);
    }
    let times = |ended: &Ended| -> Vec<_> {
        let turns = ended.report.turns.iter();
        turns
            .map(|turn| (turn.first_audio_ms, turn.agent_text_played.clone()))
            .collect()
    };
    assert_eq!(
        times(&ended),
        times(&undisturbed),
        "the user hears all of it"
    );

    let loud = masked.iter().any(|entry| match entry {
        Entry::Capture(capture) => match &capture.what {
            Captured::Came(Came::Audio(pcm)) => pcm.iter().any(|byte| *byte != 0),
            _something_else => false,
        },
        _another_entry => false,
    });
    assert!(!loud, "what the user sounds like is not kept");
    let told = masked.iter().filter(|entry| match entry {
        Entry::Event(event) => event
            .redacted
            .as_ref()
            .is_some_and(|redacted| redacted.action == RedactionAction::Mask),
        _another_entry => false,
    });
    assert!(told.count() >= 2);
    let decided = masked.iter().find_map(|entry| match entry {
        Entry::Turn(turn) => Some(turn.redaction_decisions.clone()),
        _another_entry => None,
    });
    let of_text = decided
        .unwrap()
        .into_iter()
        .find(|it| it.payload_class == PayloadClass::TextRaw);
    assert_eq!(of_text.unwrap().action, RedactionAction::Mask);
}

/// F-154: an archive that hangs costs a call nothing of what is heard; full capture stops, and that is said;
/// afterwards the archive has the call as whole as one that was there all the time.
#[tokio::test(start_paused = true)]
async fn an_archive_that_hangs_costs_a_call_no_time_and_no_evidence() {
    let good = Arc::new(Shelf::default());
    let (undisturbed, stats, left) = held(&good).await;
    assert_eq!(left, Left::default());
    assert!(stats.segments > 5 && stats.failures == 0, "{stats:?}");
    assert!(stats.lag_ms < 1_000, "{stats:?}");
    assert!(
        undisturbed
            .log
            .signals_of(Signal::RecordingLevelDowngraded)
            .is_empty()
    );

    let hanging = Arc::new(Shelf::default());
    *hanging.hangs.lock().unwrap() = true;
    let (disturbed, stats, left) = held(&hanging).await;
    assert_eq!(left, Left::default());
    assert!(stats.lag_ms > 5_000 && stats.segments == 0, "{stats:?}");
    assert_eq!(
        disturbed.log.reasons_of(Signal::RecordingLevelDowngraded),
        ["durable_export_lag", "durable_export_lag"]
    );
    let heard = |ended: &Ended| -> Vec<_> {
        let heard = ended.heard();
        heard
            .iter()
            .map(|it| (it.turn, it.began, it.ended, it.cut))
            .collect()
    };
    assert_eq!(heard(&disturbed), heard(&undisturbed));
    assert_eq!(disturbed.endings(), undisturbed.endings());

    for shelf in [good, hanging] {
        let found = list(&*shelf, "").await.unwrap();
        assert_eq!(found.len(), 1);
        let all = fetch(&*shelf, &found[0].recording).await.unwrap();
        assert!(all.is_complete);
        let mut timeline = Timeline::read(std::io::Cursor::new(all.bytes)).unwrap();
        let entries = timeline.entries().unwrap();
        assert!(timeline.report().is_whole());
        let violations = rspp_timeline::verify::verify(&entries);
        assert!(violations.is_empty(), "{violations:#?}");
    }
}
