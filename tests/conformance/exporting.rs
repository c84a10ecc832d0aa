//! The export of timelines beside calls that are held.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_proto::{
    Monotonic, PipelineVersion, SessionId, WallClock, abi::Signal, spec::RecordingLevel,
};
use rspp_tests::call::{Builder, Cast, Ended, after_reply, first, says};
use rspp_timeline::{
    FileHeader, Options, Timeline,
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
