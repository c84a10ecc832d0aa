//! How much is recorded under pressure, and that it is said.

use std::time::Duration;

use rspp_proto::{
    abi::{Emitter, Signal},
    spec::RecordingLevel,
};
use rspp_tests::call::{Builder, Cast, after_reply, first, says};
use rspp_timeline::{Capacity, Entry, LevelTrigger, Options, Recorder, Room};

/// F-176, F-153, AC-176-1, AC-176-2: a full queue lowers the level step by step, each step is announced by
/// the recorder, evidence stays complete, and a turn that begins after a calm records more again.
#[tokio::test(start_paused = true)]
async fn pressure_on_the_timeline_is_announced_and_costs_no_evidence() {
    use RecordingLevel::{L0, L1, L2};
    let room = |entries| Room {
        entries,
        bytes: entries << 14,
    };
    let (recorder, recording) = Recorder::in_memory(Options {
        level: RecordingLevel::L2,
        capacity: Capacity {
            total: room(240),
            baseline_reserve: room(12),
            terminal_reserve: room(12),
        },
        ..Options::default()
    });
    let cast = Cast::default();
    let mut said = vec![says(first())];
    said.extend((0..7).map(|_| says(after_reply())));
    let mut builder = Builder::new(&cast, said);
    builder.recorder = Some(recorder.clone());
    let call = builder.start().await;
    let mut kept = Vec::new();
    // A storage that stands still until the level is at its lowest, and keeps up from then on.
    let mut stands_still = true;
    while call.runtime.sessions() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let stats = recorder.stats().expect("it records");
        stands_still &= stats.downgrades < 2;
        if !stands_still {
            kept.extend(recording.take());
        }
    }
    let log = call.log.clone();
    let report = call.session.wait().await.expect("a report");
    kept.extend(recording.take());
    assert_eq!(report.turns.len(), 8);
    assert!(
        report
            .turns
            .iter()
            .all(rspp_host::report::TurnReport::is_commit),
        "{report:#?}"
    );

    let steps: Vec<_> = kept
        .iter()
        .filter_map(|entry| match entry {
            Entry::Level(change) => Some((change.from, change.to, change.trigger)),
            _another => None,
        })
        .collect();
    assert_eq!(
        steps[..2],
        [
            (L2, L1, LevelTrigger::QueueFill),
            (L1, L0, LevelTrigger::QueueFill),
        ]
    );
    assert!(
        steps[2..].contains(&(L0, L1, LevelTrigger::Stable)),
        "{steps:?}"
    );

    let announced = log.signals_of(Signal::RecordingLevelDowngraded);
    let lowered = steps.iter().filter(|(from, to, _)| to < from).count();
    assert_eq!(announced.len(), lowered);
    for signal in announced {
        assert_eq!(signal.emitted_by, Emitter::TimelineRecorder);
        assert_eq!(
            signal.reason.map(|reason| reason.to_string()).as_deref(),
            Some("stage_a_detail_overflow")
        );
    }
    let evidence = kept.iter().filter_map(|entry| match entry {
        Entry::Turn(baseline) => Some(baseline.missing()),
        _another => None,
    });
    assert_eq!(evidence.collect::<Vec<_>>(), vec![Vec::<&str>::new(); 8]);
}
