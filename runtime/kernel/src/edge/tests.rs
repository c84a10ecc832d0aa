use proptest::{prelude::*, strategy::Strategy as _};
use rspp_proto::{
    SyncDomain,
    spec::{
        BoundAction, BoundActions, DataHandling, DefaultingSource, LaneHandling, Strategy,
        SyncDropPolicy, SyncGroup, SyncPolicy, SyncScope, TelemetryHandling, Watermarks,
    },
};

use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    sequence: u64,
    arrived: Monotonic,
    bytes: usize,
    media: Duration,
    key: Option<u64>,
    keep: bool,
    group: Option<u64>,
    fair: Option<u64>,
}

impl Load for Item {
    fn bytes(&self) -> usize {
        self.bytes
    }
    fn media(&self) -> Duration {
        self.media
    }
    fn sequence(&self) -> u64 {
        self.sequence
    }
    fn arrived(&self) -> Monotonic {
        self.arrived
    }
    fn merge_key(&self) -> Option<u64> {
        self.key
    }
    fn merge(&mut self, newer: Self) {
        *self = newer;
    }
    fn keep(&self) -> bool {
        self.keep
    }
    fn sync_group(&self) -> Option<u64> {
        self.group
    }
    fn fair_key(&self) -> Option<u64> {
        self.fair
    }
}

fn text(sequence: u64) -> Item {
    Item {
        sequence,
        arrived: Monotonic::ZERO,
        bytes: 1,
        media: Duration::ZERO,
        key: None,
        keep: false,
        group: None,
        fair: None,
    }
}

fn partial(sequence: u64, segment: u64) -> Item {
    Item {
        key: Some(segment),
        ..text(sequence)
    }
}

fn audio(sequence: u64, at: u64) -> Item {
    Item {
        arrived: ms(at),
        bytes: 640,
        media: Duration::from_millis(20),
        ..text(sequence)
    }
}

fn ms(ms: u64) -> Monotonic {
    Monotonic::from_millis(ms)
}

fn policy(strategy: Strategy, items: u64) -> EdgeBufferPolicy {
    EdgeBufferPolicy {
        strategy,
        max_queue_items: items,
        max_queue_ms: 300,
        max_queue_bytes: 262_144,
        max_latency_contribution_ms: 120,
        actions: None,
        flow_mode: None,
        coalesce_ms: None,
        on_high: None,
        max_block_time_ms: Some(2_000),
        watermarks: Watermarks {
            queue_items: None,
            queue_ms: None,
        },
        lane_handling: LaneHandling {
            data: DataHandling::DropOldest,
            telemetry: TelemetryHandling::BestEffortDrop,
        },
        fairness_key: None,
        defaulting_source: DefaultingSource::ExecutionProfileDefault,
        sync_drop_policy: None,
    }
}

fn marked(strategy: Strategy, items: u64, high: u64, low: u64) -> EdgeBufferPolicy {
    EdgeBufferPolicy {
        watermarks: Watermarks {
            queue_items: Some(Marks { high, low }),
            queue_ms: None,
        },
        ..policy(strategy, items)
    }
}

fn rest(edge: &mut EdgeBuffer<Item>, now: Monotonic) -> Vec<u64> {
    std::iter::from_fn(|| edge.pop(now))
        .map(|item| item.sequence)
        .collect()
}

fn dropped(range: (u64, u64), reason: DropReason, count: u64) -> EdgeNotice {
    EdgeNotice::Drop {
        range: SequenceSpan {
            start: range.0,
            end: range.1,
        },
        reason,
        count,
        turn: None,
    }
}

/// F-043, F-044: survivors and counters of each strategy when six items meet room for four.
#[test]
fn each_strategy_keeps_what_its_name_says() {
    #[track_caller]
    fn check(strategy: Strategy, survivors: &[u64], lost: u64) {
        let mut edge = EdgeBuffer::new(&policy(strategy, 4));
        for sequence in 1..=6 {
            let _ = edge.offer(ms(0), text(sequence));
        }
        assert_eq!(rest(&mut edge, ms(0)), survivors);
        assert_eq!(edge.counters().dropped, lost);
        assert!(edge.counters().deepest <= 4);
    }
    check(Strategy::Block, &[1, 2, 3, 4], 0); // the sender still has 5 and 6
    check(Strategy::DropOldest, &[3, 4, 5, 6], 2);
    check(Strategy::DropNewest, &[1, 2, 3, 4], 2);
    check(Strategy::Merge, &[3, 4, 5, 6], 2); // nothing of one kind to fold into
    check(Strategy::Sample, &[2, 3, 4, 6], 2); // 5 thinned out, 6 in for 1
    check(Strategy::LatestOnly, &[6], 5);
}

/// F-044: the answer says what happened to whom.
#[test]
fn the_answer_names_the_item_that_lost() {
    let mut edge = EdgeBuffer::new(&policy(Strategy::DropOldest, 1));
    assert_eq!(edge.offer(ms(0), text(1)), Offered::Queued);
    assert_eq!(edge.offer(ms(0), text(2)), Offered::Displaced(text(1)));
    let mut edge = EdgeBuffer::new(&policy(Strategy::DropNewest, 1));
    assert_eq!(edge.offer(ms(0), text(1)), Offered::Queued);
    assert_eq!(edge.offer(ms(0), text(2)), Offered::Shed(text(2)));
    let mut edge = EdgeBuffer::new(&policy(Strategy::Block, 1));
    assert_eq!(edge.offer(ms(0), text(1)), Offered::Queued);
    assert_eq!(edge.offer(ms(0), text(2)), Offered::Blocked(text(2)));
    assert_eq!(
        edge.counters().offered,
        1,
        "a blocked item is still the sender's"
    );
    assert!(!edge.has_space(ms(0)));
    assert_eq!(edge.pop(ms(0)), Some(text(1)));
    assert!(edge.has_space(ms(0)));
    assert_eq!(edge.offer(ms(0), text(2)), Offered::Queued);
}

/// F-143: each bound alone, with its own reason.
#[test]
fn each_bound_has_its_own_reason() {
    #[track_caller]
    fn check(policy: &EdgeBufferPolicy, items: Vec<Item>, now: u64, expected: &EdgeNotice) {
        let mut edge = EdgeBuffer::new(policy);
        let last = items.len() - 1;
        for (at, item) in items.into_iter().enumerate() {
            let when = if at == last { ms(now) } else { item.arrived };
            let _ = edge.offer(when, item);
        }
        let notices: Vec<_> = edge.take_notices().collect();
        assert_eq!(notices, std::slice::from_ref(expected));
    }
    let base = policy(Strategy::DropOldest, 64);
    check(
        &policy(Strategy::DropOldest, 2),
        vec![text(1), text(2), text(3)],
        0,
        &dropped((1, 1), DropReason::Items, 1),
    );
    check(
        &EdgeBufferPolicy {
            max_queue_bytes: 1_300,
            ..base.clone()
        },
        vec![audio(1, 0), audio(2, 0), audio(3, 0)],
        0,
        &dropped((1, 1), DropReason::Bytes, 1),
    );
    check(
        &base,
        vec![text(1), text(2), text(3)],
        301,
        // The last one arrived at 0 too, but nobody could have had it earlier.
        &dropped((1, 2), DropReason::Age, 2),
    );
    // Seven frames queued at their own pace: more than 120 ms of media, and the first has waited
    // more than 120 ms.
    let frames = (0..=7).map(|n| audio(n, n * 20)).collect();
    check(&base, frames, 140, &dropped((0, 0), DropReason::Latency, 1));
    check(
        &EdgeBufferPolicy {
            max_queue_bytes: 600,
            ..base
        },
        vec![audio(1, 0)],
        0,
        &dropped((1, 1), DropReason::Oversized, 1),
    );
}

/// F-143: what arrives in one burst has not delayed anyone yet.
#[test]
fn a_burst_of_audio_is_not_latency() {
    let mut edge = EdgeBuffer::new(&policy(Strategy::DropOldest, 64));
    for n in 0..20 {
        assert_eq!(edge.offer(ms(0), audio(n, 0)), Offered::Queued);
    }
    assert_eq!(edge.media(), Duration::from_millis(400));
    assert_eq!(rest(&mut edge, ms(5)).len(), 20);
}

/// P23: stale media is dropped and counted, on delivery too, when nobody offers any more.
#[test]
fn nothing_stale_is_delivered() {
    let mut edge = EdgeBuffer::new(&policy(Strategy::DropOldest, 64));
    for n in 0..5 {
        let _ = edge.offer(ms(n * 20), audio(n, n * 20));
    }
    assert_eq!(edge.next_expiry(), Some(ms(300)));
    assert_eq!(rest(&mut edge, ms(330)), [2, 3, 4]);
    let notices: Vec<_> = edge.take_notices().collect();
    assert_eq!(notices, [dropped((0, 1), DropReason::Age, 2)]);
}

/// P23, F-148: under `block` the producer is slowed: by media ahead of playback, and by age.
#[test]
fn block_slows_the_producer_and_drops_nothing() {
    let playback = EdgeBufferPolicy {
        max_queue_ms: 3_000,
        max_latency_contribution_ms: 3_000,
        ..policy(Strategy::Block, 400)
    };
    let mut edge = EdgeBuffer::new(&playback);
    for n in 0..150 {
        assert_eq!(edge.offer(ms(0), audio(n, 0)), Offered::Queued);
    }
    assert_eq!(
        edge.offer(ms(0), audio(150, 0)),
        Offered::Blocked(audio(150, 0))
    );
    // One frame is played, so one may follow.
    assert_eq!(edge.pop(ms(20)).map(|item| item.sequence), Some(0));
    assert_eq!(edge.offer(ms(20), audio(150, 20)), Offered::Queued);
    assert_eq!(rest(&mut edge, ms(9_000)).len(), 150);
    assert_eq!(edge.counters().dropped, 0);

    let mut edge = EdgeBuffer::new(&policy(Strategy::Block, 8));
    let _ = edge.offer(ms(0), text(1));
    assert!(matches!(edge.offer(ms(301), text(2)), Offered::Blocked(_)));
}

/// F-148: what a consumer has no use for yet is not late while it rests, however long its stream pauses;
/// from then on it ages as all else does.
#[test]
fn what_rests_does_not_age() {
    let mut edge = EdgeBuffer::new(&EdgeBufferPolicy {
        max_queue_ms: 300,
        max_latency_contribution_ms: 120,
        ..policy(Strategy::DropOldest, 64)
    });
    for n in 0..4 {
        assert_eq!(edge.offer(ms(n * 20), audio(n, n * 20)), Offered::Queued);
        assert!(edge.is_roomy(), "{n} frames are far from every bound");
    }
    // The user was mute for a minute.
    edge.rested(ms(60_000));
    assert_eq!(edge.offer(ms(60_000), audio(4, 60_000)), Offered::Queued);
    assert!(!edge.is_roomy(), "100 ms of 120 are here");
    assert_eq!(edge.waited(ms(60_010)), Duration::from_millis(10));
    assert_eq!(edge.pop(ms(60_010)).map(|item| item.sequence), Some(0));
    assert_eq!(edge.counters().dropped, 0);
    assert_eq!(edge.pop(ms(60_301)), None, "the consumer was late");
    assert_eq!(edge.counters().dropped, 4);
}

/// F-148: none blocks for ever; what follows is shedding, counted.
#[test]
fn a_blocked_item_is_shed_after_max_block_time() {
    let mut edge = EdgeBuffer::new(&policy(Strategy::Block, 1));
    assert_eq!(edge.max_block_time(), Duration::from_secs(2));
    let _ = edge.offer(ms(0), text(1));
    let Offered::Blocked(item) = edge.offer(ms(0), text(2)) else {
        panic!("the edge is full");
    };
    edge.give_up(&item);
    let notices: Vec<_> = edge.take_notices().collect();
    assert!(
        notices.contains(&dropped((2, 2), DropReason::BlockTimeout, 1)),
        "{notices:?}"
    );
    assert_eq!(edge.counters().dropped, 1);
    // One that could never fit is not waited for.
    let small = EdgeBufferPolicy {
        max_queue_bytes: 10,
        ..policy(Strategy::Block, 1)
    };
    let mut edge = EdgeBuffer::new(&small);
    assert!(matches!(edge.offer(ms(0), audio(1, 0)), Offered::Shed(_)));
}

/// F-024, F-053: rapid partials fold into the newest; finals and order are unharmed.
#[test]
fn partials_are_folded_and_finals_survive() {
    let mut edge = EdgeBuffer::new(&policy(Strategy::Merge, 8));
    assert_eq!(edge.offer(ms(0), partial(1, 7)), Offered::Queued);
    assert_eq!(edge.offer(ms(0), partial(2, 7)), Offered::Merged);
    assert_eq!(edge.offer(ms(0), partial(3, 8)), Offered::Queued);
    assert_eq!(edge.offer(ms(0), partial(5, 7)), Offered::Merged);
    let last = Item {
        keep: true,
        ..partial(6, 7)
    };
    assert_eq!(edge.offer(ms(0), last), Offered::Queued);
    assert_eq!(rest(&mut edge, ms(0)), [3, 5, 6]);
    let notices: Vec<_> = edge.take_notices().collect();
    let [EdgeNotice::Merge { lineage, unnamed }] = notices.as_slice() else {
        panic!("one merge, and nothing dropped: {notices:?}");
    };
    let sources: Vec<_> = lineage.sources().iter().map(|s| s.sequence).collect();
    assert_eq!((sources.as_slice(), *unnamed), ([1, 2, 5].as_slice(), 0));
    assert_eq!(lineage.span(), SequenceSpan { start: 1, end: 5 });
    assert_eq!(edge.counters().merged, 2);
}

/// event-abi §2: lineage names at most 64 sources.
#[test]
fn a_merge_takes_in_at_most_64_sources() {
    let mut edge = EdgeBuffer::new(&policy(Strategy::Merge, 8));
    for n in 0..100 {
        let _ = edge.offer(ms(0), partial(n, 1));
    }
    assert_eq!(rest(&mut edge, ms(0)), [63, 99]);
    let sizes: Vec<_> = edge
        .take_notices()
        .map(|notice| match notice {
            EdgeNotice::Merge { lineage, .. } => lineage.sources().len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sizes, [64, 36]);
}

/// F-144: marks with hysteresis; crossings report once.
#[test]
fn watermarks_report_each_crossing_once() {
    let mut edge = EdgeBuffer::new(&marked(Strategy::DropOldest, 8, 4, 2));
    for n in 0..6 {
        let _ = edge.offer(ms(0), text(n));
    }
    let notices: Vec<_> = edge.take_notices().collect();
    let watermark = EdgeNotice::Watermark {
        mark: Mark::Items,
        level: 4,
    };
    assert_eq!(notices, [watermark, EdgeNotice::FlowXoff]);
    while edge.len() > 3 {
        edge.pop(ms(0));
    }
    assert!(!edge.has_notices(), "between the marks nothing changes");
    edge.pop(ms(0));
    assert_eq!(
        edge.take_notices().collect::<Vec<_>>(),
        [EdgeNotice::FlowXon]
    );
}

/// F-144: waiting counts as pressure too.
#[test]
fn the_time_mark_is_crossed_by_waiting() {
    let policy = EdgeBufferPolicy {
        watermarks: Watermarks {
            queue_items: None,
            queue_ms: Some(Marks { high: 100, low: 50 }),
        },
        ..policy(Strategy::DropOldest, 8)
    };
    let mut edge = EdgeBuffer::new(&policy);
    let _ = edge.offer(ms(0), audio(1, 0));
    let _ = edge.offer(ms(110), audio(2, 110));
    assert!(edge.is_pressed());
    edge.pop(ms(120));
    assert!(!edge.is_pressed());
    let notices: Vec<_> = edge.take_notices().collect();
    assert_eq!(notices.len(), 3, "{notices:?}");
}

/// F-145: signal, credit, and hybrid, which enforces both.
#[test]
fn each_flow_mode_holds_its_sender_back() {
    fn run(mode: FlowMode) -> (u64, NoCredit) {
        let mut edge = EdgeBuffer::with_flow(&marked(Strategy::DropNewest, 8, 4, 1), mode, None);
        let mut sender = Credit::new(mode);
        for sent in 0..100 {
            for notice in edge.take_notices() {
                sender.note(&notice);
            }
            if let Err(wait) = sender.spend() {
                return (sent, wait);
            }
            assert!(!matches!(edge.offer(ms(0), text(sent)), Offered::Shed(_)));
        }
        panic!("nobody held the sender back");
    }
    assert_eq!(run(FlowMode::Signal), (4, NoCredit::Stopped));
    assert_eq!(run(FlowMode::Credit), (8, NoCredit::Spent));
    assert_eq!(run(FlowMode::Hybrid), (4, NoCredit::Stopped));

    let mut edge = EdgeBuffer::with_flow(&policy(Strategy::DropNewest, 4), FlowMode::Credit, None);
    let mut sender = Credit::new(FlowMode::Credit);
    assert_eq!(
        sender.spend(),
        Err(NoCredit::Spent),
        "nothing was granted yet"
    );
    let mut sent = 0;
    for _ in 0..50 {
        for notice in edge.take_notices() {
            sender.note(&notice);
        }
        while sender.spend().is_ok() {
            assert_eq!(edge.offer(ms(0), text(sent)), Offered::Queued);
            sent += 1;
        }
        edge.pop(ms(0));
    }
    assert!(sent >= 50, "credit comes back: {sent}");
}

/// F-145: a sender whose time is up is granted what has left the edge since, however little of a batch that is;
/// nothing is granted that is not free.
#[test]
fn a_sender_out_of_time_is_granted_what_is_free() {
    let policy = EdgeBufferPolicy {
        max_latency_contribution_ms: 60_000,
        max_queue_ms: 60_000,
        ..policy(Strategy::Block, 8)
    };
    let mut edge = EdgeBuffer::with_flow(&policy, FlowMode::Credit, None);
    for sequence in 0..8 {
        assert_eq!(
            edge.send(ms(0), text(sequence), Patience::Left),
            Offered::Queued
        );
    }
    assert_eq!(
        edge.send(ms(0), text(8), Patience::Left),
        Offered::Blocked(text(8))
    );
    assert_eq!(
        edge.send(ms(0), text(8), Patience::Spent),
        Offered::Shed(text(8))
    );
    assert_eq!(edge.pop(ms(20)), Some(text(0)));
    assert_eq!(
        edge.send(ms(20), text(9), Patience::Left),
        Offered::Blocked(text(9))
    );
    assert_eq!(edge.send(ms(20), text(9), Patience::Spent), Offered::Queued);
    let granted = edge.take_notices().map(|notice| match notice {
        EdgeNotice::Credit { amount } => amount,
        _another => 0,
    });
    // What was lost frees a place, too.
    assert_eq!(granted.sum::<u64>(), 8 + 2);
}

/// F-044, F-145: what a cancel takes back leaves the rest where it is, and lets the sender go.
#[test]
fn what_is_forgotten_leaves_the_rest() {
    let mut edge = EdgeBuffer::new(&marked(Strategy::Block, 8, 4, 1));
    for sequence in 0..4 {
        assert_eq!(edge.offer(ms(0), text(sequence)), Offered::Queued);
    }
    assert!(edge.is_pressed());
    assert_eq!(edge.forget(ms(0), |item| item.sequence != 2), 3);
    assert!(!edge.is_pressed());
    assert_eq!(edge.take_notices().next_back(), Some(EdgeNotice::FlowXon));
    assert_eq!((edge.len(), edge.bytes()), (1, 1));
    assert_eq!(edge.next(ms(0)), Some(&text(2)));
    assert_eq!(rest(&mut edge, ms(0)), [2]);
    let EdgeCounters {
        offered,
        popped,
        cleared,
        ..
    } = edge.counters();
    assert_eq!((offered, popped, cleared), (4, 1, 3));
}

/// F-144: of an edge's own marks and its lane's the lower ones count, and the notice says whose they are.
#[test]
fn the_lower_marks_count() {
    let first = |own, lane: Option<u64>| {
        let lane = lane.map(|high| Marks { high, low: 1 });
        let mut edge = EdgeBuffer::with_flow(&own, FlowMode::Signal, lane);
        for sequence in 0..8 {
            assert_eq!(edge.offer(ms(0), text(sequence)), Offered::Queued);
        }
        edge.take_notices().next()
    };
    let marked = || marked(Strategy::DropOldest, 8, 4, 1);
    let at = |mark, level| Some(EdgeNotice::Watermark { mark, level });
    assert_eq!(first(marked(), None), at(Mark::Items, 4));
    assert_eq!(first(marked(), Some(5)), at(Mark::Items, 4));
    assert_eq!(first(marked(), Some(3)), at(Mark::Lane, 3));
    assert_eq!(
        first(policy(Strategy::DropOldest, 8), Some(6)),
        at(Mark::Lane, 6)
    );
    assert_eq!(first(policy(Strategy::DropOldest, 8), None), None);
}

/// F-146: a group goes as a whole, its late members included; or downstream is told to reset.
#[test]
fn synchronised_groups_are_dropped_together() {
    let of = |sequence, group| Item {
        group: Some(group),
        ..text(sequence)
    };
    let sync = |drop| EdgeBufferPolicy {
        sync_drop_policy: Some(SyncDropPolicy {
            group_by: Some(SyncGroup::SyncId),
            policy: drop,
            scope: SyncScope::EdgeLocal,
            sync_domain: Some("av".into()),
        }),
        ..policy(Strategy::DropOldest, 4)
    };
    let mut edge = EdgeBuffer::new(&sync(SyncPolicy::AtomicDrop));
    for (sequence, group) in [(1, 1), (2, 2), (3, 1), (4, 2)] {
        let _ = edge.offer(ms(0), of(sequence, group));
    }
    assert_eq!(edge.offer(ms(0), of(5, 3)), Offered::Displaced(of(1, 1)));
    assert_eq!(edge.offer(ms(0), of(6, 1)), Offered::Shed(of(6, 1)));
    assert_eq!(rest(&mut edge, ms(0)), [2, 4, 5]);
    assert_eq!(edge.counters().dropped, 3);

    let mut edge = EdgeBuffer::new(&sync(SyncPolicy::DropWithDiscontinuity));
    for sequence in 1..=5 {
        let _ = edge.offer(ms(0), of(sequence, 1));
    }
    let notices: Vec<_> = edge.take_notices().collect();
    let expected = [
        dropped((1, 1), DropReason::Items, 1),
        EdgeNotice::Discontinuity {
            domain: SyncDomain::new("av").unwrap(),
            at: 1,
            reason: BreakReason::DropWithDiscontinuity,
            wide: false,
        },
    ];
    assert_eq!(notices, expected);
}

/// F-147: the telemetry side of an edge never blocks, whatever the data side does.
#[test]
fn telemetry_never_blocks() {
    let mut edge = EdgeBuffer::for_telemetry(&policy(Strategy::Block, 2), None);
    for n in 0..5 {
        assert!(!matches!(edge.offer(ms(0), text(n)), Offered::Blocked(_)));
    }
    assert_eq!(edge.counters().dropped, 3);
}

/// F-038: a cancel takes everything back and releases the sender.
#[test]
fn clearing_releases_the_sender() {
    let mut edge = EdgeBuffer::new(&marked(Strategy::Block, 4, 3, 1));
    for n in 0..4 {
        let _ = edge.offer(ms(0), text(n));
    }
    assert!(edge.is_pressed());
    assert_eq!(edge.clear(ms(1)), 4);
    assert!(!edge.is_pressed() && edge.is_empty() && edge.bytes() == 0);
    assert_eq!(edge.pop(ms(1)), None);
}

#[derive(Clone, Debug)]
enum Step {
    Offer {
        keep: bool,
        key: Option<u64>,
        bytes: usize,
        media: u64,
        group: Option<u64>,
    },
    Pop,
    Wait(u64),
    Clear,
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    let offer = (
        prop::bool::weighted(0.1),
        prop::option::of(0u64..3),
        0usize..400,
        0u64..40,
        prop::option::of(0u64..6),
    )
        .prop_map(|(keep, key, bytes, media, group)| Step::Offer {
            keep,
            key,
            bytes,
            media,
            group,
        });
    let step = prop_oneof![
        8 => offer,
        4 => Just(Step::Pop),
        2 => (0u64..80).prop_map(Step::Wait),
        1 => prop::bool::weighted(0.1).prop_map(|clear| if clear { Step::Clear } else { Step::Pop }),
    ];
    prop::collection::vec(step, 0..400)
}

fn policies() -> impl proptest::strategy::Strategy<Value = EdgeBufferPolicy> {
    let strategy = prop::sample::select(vec![
        Strategy::Block,
        Strategy::DropOldest,
        Strategy::DropNewest,
        Strategy::Merge,
        Strategy::Sample,
        Strategy::LatestOnly,
    ]);
    let marks = (1u64..12, 0u64..12).prop_map(|(high, low)| Marks {
        high,
        low: low.min(high - 1),
    });
    let sync = prop::sample::select(vec![
        None,
        Some(SyncPolicy::AtomicDrop),
        Some(SyncPolicy::DropWithDiscontinuity),
        Some(SyncPolicy::NoSync),
    ]);
    (strategy, 1u64..12, 1u64..1_500, marks, sync).prop_map(
        |(strategy, items, bytes, marks, sync)| EdgeBufferPolicy {
            max_queue_bytes: bytes,
            watermarks: Watermarks {
                queue_items: Some(marks),
                queue_ms: Some(Marks { high: 90, low: 40 }),
            },
            sync_drop_policy: sync.map(|policy| SyncDropPolicy {
                group_by: Some(SyncGroup::SyncId),
                policy,
                scope: SyncScope::EdgeLocal,
                sync_domain: Some("av".into()),
            }),
            ..policy(strategy, items)
        },
    )
}

proptest! {
    /// F-008, F-043, F-044, P23: over any history the bounds hold, order is kept, nothing is
    /// delivered twice, every loss is in a notice, and the sender's stop and go alternate.
    #[test]
    fn an_edge_keeps_its_contract(
        policy in policies(),
        steps in steps(),
        drain_each in any::<bool>(),
    ) {
        let mut edge = EdgeBuffer::new(&policy);
        let mut now = Monotonic::ZERO;
        let mut sequence = 0;
        let mut delivered = Vec::new();
        let mut notices = Vec::new();
        for step in steps {
            match step {
                Step::Offer { keep, key, bytes, media, group } => {
                    sequence += 1;
                    let item = Item {
                        sequence,
                        arrived: now,
                        bytes,
                        media: Duration::from_millis(media),
                        key,
                        keep,
                        group,
                        fair: None,
                    };
                    match edge.offer(now, item) {
                        Offered::Blocked(item) => edge.give_up(&item),
                        Offered::Queued
                        | Offered::Merged
                        | Offered::Displaced(_)
                        | Offered::Shed(_) => {}
                    }
                }
                Step::Pop => {
                    if let Some(item) = edge.pop(now) {
                        let age = now.since(item.arrived);
                        prop_assert!(
                            item.keep
                                || policy.strategy == Strategy::Block
                                || age <= Duration::from_millis(policy.max_queue_ms)
                        );
                        delivered.push(item.sequence);
                    }
                }
                Step::Wait(more) => now = now + Duration::from_millis(more),
                Step::Clear => {
                    edge.clear(now);
                }
            }
            prop_assert!(edge.len() as u64 <= policy.max_queue_items);
            prop_assert!(edge.bytes() as u64 <= policy.max_queue_bytes);
            let c = edge.counters();
            prop_assert_eq!(
                c.offered,
                c.popped + c.dropped + c.merged + c.cleared + edge.len() as u64
            );
            if drain_each {
                notices.extend(edge.take_notices());
            } else {
                prop_assert!(edge.notices.len() <= 96, "left alone, notices stay bounded");
            }
        }
        notices.extend(edge.take_notices());
        prop_assert!(delivered.is_sorted_by(|a, b| a < b), "order: {delivered:?}");

        let counted: u64 = notices.iter().map(|notice| match notice {
            EdgeNotice::Drop { count, .. } => *count,
            _ => 0,
        }).sum();
        prop_assert_eq!(counted, edge.counters().dropped, "notices sum to drops");
        if drain_each {
            for notice in &notices {
                if let EdgeNotice::Drop { range, count, .. } = notice {
                    prop_assert!(range.end - range.start + 1 >= *count);
                    prop_assert!(
                        !delivered.iter().any(|s| (range.start..=range.end).contains(s)),
                        "a delivered item lies in a drop's range"
                    );
                }
            }
        }
        let flow: Vec<bool> = notices.iter().filter_map(|notice| match notice {
            EdgeNotice::FlowXoff => Some(true),
            EdgeNotice::FlowXon => Some(false),
            _ => None,
        }).collect();
        prop_assert!(flow.iter().enumerate().all(|(at, off)| *off == (at % 2 == 0)), "{flow:?}");
        prop_assert_eq!(flow.len() % 2 == 1, edge.is_pressed());
    }

    /// F-024, F-053: as long as finals alone fit, every final offered to a merging, sampling or
    /// latest-only edge is delivered, whatever else is thrown at it.
    #[test]
    fn final_text_survives(
        strategy in prop::sample::select(vec![
            Strategy::Merge, Strategy::Sample, Strategy::LatestOnly,
            Strategy::DropOldest, Strategy::DropNewest,
        ]),
        items in prop::collection::vec((prop::bool::weighted(0.2), 0u64..3, 0u64..200), 1..200),
    ) {
        let mut edge = EdgeBuffer::new(&policy(strategy, 8));
        let mut now = Monotonic::ZERO;
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        let mut waiting = 0;
        for (n, (is_final, key, wait)) in items.into_iter().enumerate() {
            now = now + Duration::from_millis(wait);
            let item = Item { keep: is_final, arrived: now, ..partial(n as u64, key) };
            if is_final {
                sent.push(item.sequence);
            }
            let _ = edge.offer(now, item);
            waiting += u32::from(is_final);
            if waiting == 7 {
                got.extend(std::iter::from_fn(|| edge.pop(now)));
                waiting = 0;
            }
        }
        got.extend(std::iter::from_fn(|| edge.pop(now)));
        let finals: Vec<_> = got.iter().filter(|item| item.keep).map(|item| item.sequence).collect();
        prop_assert_eq!(finals, sent);
    }
}

/// P23: once warm, audio goes through without touching the queue's memory.
#[test]
fn the_queue_stops_growing_once_warm() {
    let mut edge = EdgeBuffer::new(&marked(Strategy::DropOldest, 64, 48, 24));
    let mut now = 0;
    for n in 0..64 {
        let _ = edge.offer(ms(now), audio(n, now));
    }
    let warm = edge.slots.capacity();
    for n in 64..10_000 {
        now += 20;
        let _ = edge.offer(ms(now), audio(n, now));
        edge.take_notices();
        if n % 3 == 0 {
            edge.pop(ms(now));
        }
    }
    assert_eq!(edge.slots.capacity(), warm);
}

fn of(sequence: u64, group: u64) -> Item {
    Item {
        group: Some(group),
        ..text(sequence)
    }
}

fn sync(policy_of: SyncPolicy, scope: SyncScope) -> EdgeBufferPolicy {
    EdgeBufferPolicy {
        sync_drop_policy: Some(SyncDropPolicy {
            group_by: Some(SyncGroup::SyncId),
            policy: policy_of,
            scope,
            sync_domain: Some("av".into()),
        }),
        ..policy(Strategy::DropOldest, 4)
    }
}

/// F-143: each of the four bounds may have an action of its own, whatever the edge's strategy.
#[test]
fn each_bound_gives_in_its_own_way() {
    let with = |actions| EdgeBufferPolicy {
        max_queue_bytes: 100,
        max_queue_ms: 50,
        max_latency_contribution_ms: 60,
        actions: Some(actions),
        ..policy(Strategy::DropOldest, 3)
    };
    let none = BoundActions::default();
    let sized = |sequence, bytes| Item {
        bytes,
        ..text(sequence)
    };

    let refuses = Some(BoundAction::DropNewest);
    let mut edge = EdgeBuffer::new(&with(BoundActions {
        items: refuses,
        ..none
    }));
    for n in 1..=4 {
        let _ = edge.offer(ms(0), text(n));
    }
    assert_eq!(
        rest(&mut edge, ms(0)),
        [1, 2, 3],
        "the fourth found no room"
    );

    let mut edge = EdgeBuffer::new(&with(BoundActions {
        bytes: Some(BoundAction::Block),
        ..none
    }));
    let _ = edge.offer(ms(0), sized(1, 60));
    let blocked = edge.offer(ms(0), sized(2, 60));
    assert_eq!(blocked, Offered::Blocked(sized(2, 60)));
    assert!(!edge.has_space(ms(0)));
    for n in 3..=5 {
        let _ = edge.offer(ms(0), sized(n, 1));
    }
    assert_eq!(rest(&mut edge, ms(0)), [3, 4, 5], "items still displace");

    let mut edge = EdgeBuffer::new(&with(BoundActions {
        age: refuses,
        ..none
    }));
    let _ = edge.offer(ms(0), text(1));
    let late = Item {
        arrived: ms(60),
        ..text(2)
    };
    assert!(matches!(edge.offer(ms(60), late), Offered::Shed(_)));
    assert_eq!(rest(&mut edge, ms(60)), [1], "what waits is kept");

    let listening = EdgeBufferPolicy {
        max_queue_items: 8,
        max_queue_bytes: 10_000,
        ..with(BoundActions {
            latency: Some(BoundAction::Block),
            ..none
        })
    };
    let mut edge = EdgeBuffer::new(&listening);
    for n in 1..=3 {
        let _ = edge.offer(ms(0), audio(n, 0));
    }
    let fourth = edge.offer(ms(0), audio(4, 0));
    assert_eq!(fourth, Offered::Blocked(audio(4, 0)), "60 ms are queued");
    assert_eq!(
        rest(&mut edge, ms(60)),
        Vec::<u64>::new(),
        "age still drops"
    );
}

/// F-145: without credit nothing is sent, except what must not be lost; and that is owed.
#[test]
fn a_sender_without_patience_needs_credit() {
    let mut edge = EdgeBuffer::with_flow(&policy(Strategy::DropOldest, 4), FlowMode::Credit, None);
    for n in 1..=4 {
        assert_eq!(edge.send(ms(0), text(n), Patience::Left), Offered::Queued);
    }
    let held = edge.send(ms(0), text(5), Patience::Left);
    assert_eq!(held, Offered::Blocked(text(5)));
    assert!(!edge.is_open(ms(0)));
    let shed = edge.send(ms(0), text(5), Patience::Spent);
    assert_eq!(shed, Offered::Shed(text(5)));
    assert_eq!(edge.counters().dropped, 1);
    for _ in 0..2 {
        edge.pop(ms(0));
    }
    assert!(edge.is_open(ms(0)), "what left was granted again");
    let last = Item {
        keep: true,
        ..text(6)
    };
    for n in [6, 7, 8, 9] {
        let item = Item {
            sequence: n,
            ..last.clone()
        };
        assert!(!matches!(
            edge.send(ms(0), item, Patience::Spent),
            Offered::Shed(_)
        ));
    }
    assert!(!edge.is_open(ms(0)), "what was sent on credit is owed");
}

/// F-145, F-148: a stop is heeded by who can wait, from the high mark to the low one; a sender that
/// has waited long enough leaves it to the strategy.
#[test]
fn a_stop_holds_a_patient_sender_until_the_low_mark() {
    let mut edge = EdgeBuffer::new(&marked(Strategy::DropOldest, 8, 4, 1));
    for n in 1..=4 {
        assert_eq!(edge.send(ms(0), text(n), Patience::Left), Offered::Queued);
    }
    assert!(matches!(
        edge.send(ms(0), text(5), Patience::Left),
        Offered::Blocked(_)
    ));
    assert_eq!(edge.send(ms(0), text(5), Patience::Spent), Offered::Queued);
    while edge.len() > 2 {
        edge.pop(ms(0));
    }
    assert!(!edge.is_open(ms(0)), "not before the low mark");
    edge.pop(ms(0));
    assert!(edge.is_open(ms(0)));
}

/// F-053: partials come at most once in the cadence; the final text comes at once, and takes in the
/// partial that waited.
#[test]
fn partials_are_coalesced_to_a_cadence() {
    let policy = EdgeBufferPolicy {
        coalesce_ms: Some(100),
        ..policy(Strategy::Merge, 8)
    };
    let mut edge = EdgeBuffer::new(&policy);
    let mut delivered = Vec::new();
    for n in 0..30 {
        let now = ms(n * 10);
        let item = Item {
            arrived: now,
            ..partial(n, 7)
        };
        let _ = edge.offer(now, item);
        delivered.extend(edge.pop(now).map(|item| (item.sequence, n * 10)));
    }
    assert_eq!(delivered, [(0, 0), (10, 100), (20, 200)]);
    assert_eq!(edge.next_due(ms(295)), Some(ms(300)));
    let last = Item {
        keep: true,
        arrived: ms(295),
        ..partial(30, 7)
    };
    let _ = edge.offer(ms(295), last);
    let end = edge.pop(ms(295)).unwrap();
    assert_eq!((end.sequence, end.keep), (30, true));
    assert!(edge.is_empty());
    let c = edge.counters();
    assert_eq!(c.offered, c.popped + c.merged);
}

/// F-146, ML-004: a lost group is reported once for the other edges, and each consumer is told
/// to reset where the stream is broken and not before.
#[test]
fn a_break_is_told_where_it_is() {
    let mut edge = EdgeBuffer::new(&sync(
        SyncPolicy::DropWithDiscontinuity,
        SyncScope::EdgeLocal,
    ));
    for n in 1..=6 {
        let _ = edge.offer(ms(0), of(n, n));
    }
    let expected = BreakReason::DropWithDiscontinuity;
    assert_eq!(edge.take_break(ms(0)), Some(expected));
    assert_eq!(edge.take_break(ms(0)), None, "it is said once");
    assert_eq!(rest(&mut edge, ms(0)), [3, 4, 5, 6]);

    // What is refused at the end is missing behind what still waits.
    let newest = EdgeBufferPolicy {
        strategy: Strategy::DropNewest,
        ..sync(SyncPolicy::DropWithDiscontinuity, SyncScope::EdgeLocal)
    };
    let mut edge = EdgeBuffer::new(&newest);
    for n in 1..=5 {
        let _ = edge.offer(ms(0), of(n, n));
    }
    for n in 1..=4 {
        assert_eq!(edge.take_break(ms(0)), None, "before {n}");
        assert_eq!(edge.pop(ms(0)).unwrap().sequence, n);
    }
    let _ = edge.offer(ms(0), of(6, 6));
    assert_eq!(edge.take_break(ms(0)), Some(expected));

    let mut edge = EdgeBuffer::new(&sync(SyncPolicy::AtomicDrop, SyncScope::PlanWide));
    for (sequence, group) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)] {
        let _ = edge.offer(ms(0), of(sequence, group));
    }
    let domain = SyncDomain::new("av").unwrap();
    let notices: Vec<_> = edge.take_notices().collect();
    let lost = notices.iter().filter_map(|notice| match notice {
        EdgeNotice::GroupLost { group, .. } => Some(*group),
        _other => None,
    });
    assert_eq!(lost.collect::<Vec<_>>(), [1]);
    assert!(notices.contains(&EdgeNotice::Discontinuity {
        domain,
        at: 1,
        reason: BreakReason::AtomicDrop,
        wide: true,
    }));
}

/// F-146: a group of which a part was delivered already is not lost as a whole, and that is said.
#[test]
fn a_group_that_was_partly_delivered_is_a_partial_loss() {
    let mut edge = EdgeBuffer::new(&sync(SyncPolicy::AtomicDrop, SyncScope::PlanWide));
    let _ = edge.offer(ms(0), of(1, 1));
    edge.pop(ms(0));
    let _ = edge.offer(ms(0), of(2, 1));
    assert!(edge.lose_group(1));
    assert!(!edge.lose_group(1), "once is enough");
    let reasons: Vec<_> = edge
        .take_notices()
        .filter_map(|notice| match notice {
            EdgeNotice::Discontinuity { reason, .. } => Some(reason.as_str()),
            _other => None,
        })
        .collect();
    assert_eq!(reasons, ["sync_domain_partial_loss"]);
    let _ = edge.offer(ms(0), of(3, 2));
    assert_eq!(edge.take_break(ms(0)), Some(BreakReason::PartialLoss));
}

proptest! {
    /// Several who share an edge are served in turn: in any history, whoever has something waiting
    /// is passed over at most once by each of the others, keeps its own order, and is not crowded
    /// out by a busier one.
    #[test]
    fn those_who_share_an_edge_are_served_in_turn(
        steps in prop::collection::vec((prop::bool::weighted(0.6), 0u64..4), 1..300),
        strategy in prop::sample::select(vec![Strategy::DropOldest, Strategy::DropNewest]),
    ) {
        let policy = EdgeBufferPolicy {
            fairness_key: Some("speaker".into()),
            ..policy(strategy, 12)
        };
        let mut edge = EdgeBuffer::new(&policy);
        let mut waiting: [Vec<u64>; 4] = Default::default();
        let mut passed = [[0u32; 4]; 4];
        let mut dropped = 0;
        for (sequence, (offers, key)) in (1u64..).zip(steps) {
            if offers {
                let item = Item { fair: Some(key), ..text(sequence) };
                let outcome = edge.offer(ms(0), item);
                let mine = key as usize;
                let gone = match outcome {
                    Offered::Queued => None,
                    Offered::Displaced(other) => Some(other),
                    Offered::Shed(item) => {
                        dropped += 1;
                        let most = waiting.iter().map(Vec::len).max().unwrap();
                        prop_assert!(waiting[mine].len() + 1 >= most, "not the greediest");
                        prop_assert_eq!(item.fair, Some(key));
                        continue;
                    }
                    other => return Err(TestCaseError::fail(format!("{other:?}"))),
                };
                if let Some(gone) = gone {
                    dropped += 1;
                    let of = gone.fair.unwrap() as usize;
                    let most = waiting.iter().map(Vec::len).max().unwrap();
                    prop_assert_eq!(waiting[of].len(), most, "the greediest gives");
                    waiting[of].retain(|s| *s != gone.sequence);
                }
                if waiting[mine].is_empty() {
                    passed[mine] = [0; 4];
                }
                waiting[mine].push(sequence);
            } else if let Some(item) = edge.pop(ms(0)) {
                let served = item.fair.unwrap() as usize;
                prop_assert_eq!(waiting[served].remove(0), item.sequence, "its own order");
                for other in (0..4).filter(|other| *other != served) {
                    if waiting[other].is_empty() {
                        passed[other] = [0; 4];
                    } else {
                        passed[other][served] += 1;
                        prop_assert!(passed[other][served] <= 2, "{other} waits for {served}");
                    }
                }
                passed[served] = [0; 4];
            }
        }
        prop_assert_eq!(edge.counters().dropped, dropped);
    }

    /// F-145, F-148: under any flow mode, over any history of a sender that is patient or not, credit
    /// is neither made nor lost, and an empty edge lets its sender go on.
    #[test]
    fn credit_is_neither_made_nor_lost(
        mode in prop::sample::select(vec![FlowMode::Signal, FlowMode::Credit, FlowMode::Hybrid]),
        policy in policies(),
        steps in prop::collection::vec((0u8..4, prop::bool::weighted(0.1), 0u64..40), 1..300),
    ) {
        let mut edge = EdgeBuffer::with_flow(&policy, mode, None);
        let items = policy.max_queue_items;
        let mut now = Monotonic::ZERO;
        for (sequence, (step, keep, wait)) in (1u64..).zip(steps) {
            match step {
                0 | 1 => {
                    let patience = if step == 0 { Patience::Left } else { Patience::Spent };
                    // What has grown too old leaves, and what left is granted again.
                    edge.expire(now);
                    // Whose time is up is granted it at once.
                    let freed = patience == Patience::Spent && edge.freed > 0;
                    let open = freed || edge.sender.may_send().is_ok();
                    let item = Item { keep, arrived: now, ..text(sequence) };
                    let outcome = edge.send(now, item, patience);
                    if let Offered::Blocked(_) = outcome {
                        prop_assert_eq!(patience, Patience::Left);
                    } else if !open && mode == FlowMode::Credit && !keep {
                        prop_assert!(matches!(outcome, Offered::Shed(_)), "{outcome:?}");
                    }
                }
                2 => { edge.pop(now); }
                _wait => now = now + Duration::from_millis(wait),
            }
            if mode != FlowMode::Signal {
                let (left, owed) = (edge.sender.left(), edge.sender.owed());
                prop_assert_eq!(left + edge.freed + edge.len() as u64, items + owed);
            }
        }
        while !edge.is_empty() {
            now = now + Duration::from_millis(1);
            edge.pop(now);
        }
        edge.clear(now);
        prop_assert!(edge.sender.may_send().is_ok(), "nobody waits for an empty edge");
    }
}
