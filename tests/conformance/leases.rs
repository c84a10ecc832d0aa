//! Leases while a session runs: renewed in time, given up in time, rotated, moved, and checked wherever
//! something comes in or begins.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rspp_controlplane_api::{Lease, LeaseError, Leases, LocalLeases, Renewal, Taking, Wanted};
use rspp_host::{
    Event,
    node::{NodeContext, Step},
};
use rspp_proto::{
    Epoch, SampleIndex, SessionId,
    abi::{OutcomeKind, OutcomeScope, Signal},
};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Cast, LONG, REPLY, first, says, tone},
    nodes::{Probes, custom, insert},
    wire::{Opening, Over, Wire},
};
use rspp_timeline::Entry;
use rspp_transport_api::{Frame, Ingress, Stamped, audio::to_bytes};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const TTL: Duration = Duration::from_secs(10);

fn epoch(epoch: u64) -> Epoch {
    Epoch::new(epoch).unwrap()
}

/// How whoever has the leases answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Answers {
    #[default]
    Renewed,
    Unreachable,
    /// Somebody else has it.
    Stale,
    /// Never.
    Nothing,
}

/// Leases of ten seconds, from an epoch on, by script.
#[derive(Default)]
struct Scripted {
    first: u64,
    answers: Mutex<Answers>,
    asked: AtomicU64,
}

impl Scripted {
    fn from(first: u64) -> Arc<Self> {
        Arc::new(Self {
            first,
            ..Self::default()
        })
    }

    fn answers(&self, answers: Answers) {
        *self.answers.lock().unwrap() = answers;
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Leases for Scripted {
    fn take(&self, session: &SessionId, _wanted: &Wanted) -> Taking {
        let lease = Lease {
            ttl: Some(TTL),
            ..Lease::new(session.clone(), epoch(self.first))
        };
        Box::pin(std::future::ready(Ok(lease)))
    }

    fn check(&self, _lease: &Lease) -> Result<(), LeaseError> {
        Ok(())
    }

    fn renew(&self, lease: &Lease) -> Renewal {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (session, offered) = (lease.session.clone(), lease.epoch);
        let answer = match *self.answers.lock().unwrap() {
            Answers::Renewed => Ok(lease.clone()),
            Answers::Unreachable => Err(LeaseError::Unreachable {
                session,
                reason: "a planted fault".to_owned(),
            }),
            Answers::Stale => Err(LeaseError::Stale {
                session,
                held: offered.next(),
                offered,
            }),
            Answers::Nothing => return Box::pin(std::future::pending()),
        };
        Box::pin(async {
            tokio::time::sleep(ms(100)).await;
            answer
        })
    }

    fn release(&self, _lease: &Lease) -> Result<(), LeaseError> {
        Ok(())
    }
}

fn talkative() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG.repeat(4)])),
        ..Cast::default()
    }
}

fn under(leases: &Arc<Scripted>) -> Opening {
    let leases = Arc::clone(leases);
    Opening {
        configure: Box::new(move |config| config.leases = leases),
        ..Opening::default()
    }
}

/// A session whose lease may be rotated by whoever asks.
fn rotating() -> Opening {
    under(&Scripted::from(1))
}

fn outcomes(entries: &[Entry]) -> Vec<(OutcomeKind, OutcomeScope)> {
    let outcomes = entries.iter().filter_map(|entry| match entry {
        Entry::Outcome(outcome) => Some((outcome.outcome_kind, outcome.scope)),
        _another_entry => None,
    });
    outcomes
        .filter(|(kind, _)| *kind != OutcomeKind::Admit)
        .collect()
}

fn refusals(over: &Over) -> usize {
    let signals = over.signals().into_iter();
    signals
        .filter(|signal| *signal == "stale_epoch_reject")
        .count()
}

/// Design §5: a lease that is renewed before half its time lets a call last as long as it likes.
#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_while_the_session_lasts() {
    let leases = Scripted::from(1);
    let wire = Wire::open(&talkative(), under(&leases)).await;
    wire.types("tell me a story");
    wire.until(Signal::PlaybackCompleted, 1).await;
    tokio::time::sleep(ms(30_000)).await;
    let over = wire.end().await;
    assert_eq!(over.endings(), ["commit"]);
    assert!(leases.asked() >= 12, "{}", leases.asked());
    assert_eq!(over.signals()[0], "lease_issued");
}

/// T8, design §5: a placement that cannot renew falls silent before its lease can be another's, in the
/// middle of a sentence if need be, and drains; whether it is told no, nobody can be asked, or nobody
/// answers.
#[tokio::test(start_paused = true)]
async fn a_placement_that_cannot_renew_falls_silent_in_time() {
    for answers in [Answers::Unreachable, Answers::Nothing, Answers::Stale] {
        let leases = Scripted::from(1);
        let wire = Wire::open(&talkative(), under(&leases)).await;
        leases.answers(answers);
        let opened = tokio::time::Instant::now();
        wire.types("tell me a story");
        wire.until(Signal::Abort, 1).await;
        let silent_after = opened.elapsed();
        let taken = wire.peer.taken();
        let peer = wire.peer.clone();
        let over = wire.end_by_itself().await;
        assert_eq!(peer.taken(), taken, "{answers:?}: still speaking");
        assert_eq!(over.endings(), ["authority_loss"], "{answers:?}");
        let signals = over.signals();
        let order = ["deauthorized_drain", "abort", "close", "ended"];
        let of_the_end = signals.iter().filter(|signal| order.contains(signal));
        assert_eq!(of_the_end.copied().collect::<Vec<_>>(), order);
        let expected = match answers {
            Answers::Stale => ms(4_100),
            Answers::Renewed | Answers::Unreachable | Answers::Nothing => ms(9_000),
        };
        let late = silent_after.saturating_sub(expected);
        assert!(
            silent_after + ms(5) >= expected && late <= ms(10),
            "{answers:?}: {silent_after:?}"
        );
        if answers == Answers::Unreachable {
            assert!(leases.asked() > 3, "it has to be tried again");
        }
        assert_eq!(over.report.authority.stale_epoch_outputs_accepted, 0);
    }
}

/// F-041, F-157: words end the turn of a session that leaves, and open none there.
#[tokio::test(start_paused = true)]
async fn words_over_a_session_that_leaves_end_its_turn() {
    let wire = Wire::open(&talkative(), Opening::default()).await;
    wire.types("tell me a story");
    wire.until(Signal::PlaybackStarted, 1).await;
    wire.session.leave();
    wire.until(Signal::MigrationStart, 1).await;
    wire.types("is anybody there");
    wire.until(Signal::Abort, 1).await;
    tokio::time::sleep(ms(500)).await;
    wire.session.hand_over();
    let over = wire.end_by_itself().await;
    assert_eq!(over.endings(), ["cancelled"]);
    let signals = over.signals();
    let opened = signals.iter().filter(|signal| **signal == "turn_open");
    assert_eq!(opened.count(), 1);
}

/// F-157, F8: a session that moves keeps its id; the placement that it leaves opens nothing more and
/// ends, the one where it arrives says so and goes on under the newer epoch.
#[tokio::test(start_paused = true)]
async fn a_session_moves_from_one_placement_to_another() {
    let leases = Arc::new(LocalLeases::default());
    let opening = || {
        let leases = Arc::clone(&leases);
        Opening {
            configure: Box::new(move |config: &mut rspp_host::Config| config.leases = leases),
            ..Opening::default()
        }
    };
    let old = Wire::open(&talkative(), opening()).await;
    old.types("tell me a story");
    old.until(Signal::PlaybackStarted, 1).await;
    old.session.leave();
    old.until(Signal::MigrationStart, 1).await;
    tokio::time::sleep(ms(500)).await;

    let new = Wire::open(&Cast::default(), opening()).await;
    assert_eq!(new.session.id(), old.session.id());
    old.session.hand_over();
    new.types("hello again");
    new.until(Signal::PlaybackCompleted, 1).await;
    let (old, new) = (old.end_by_itself().await, new.end().await);

    assert_eq!(old.endings(), ["authority_loss"]);
    let moves = [
        "migration_start",
        "session_handoff",
        "deauthorized_drain",
        "abort",
        "close",
        "ended",
    ];
    let signals = old.signals();
    let of_the_move: Vec<_> = signals
        .iter()
        .filter(|signal| moves.contains(signal))
        .collect();
    assert_eq!(of_the_move, moves.iter().collect::<Vec<_>>());
    assert_eq!(
        signals
            .iter()
            .filter(|signal| **signal == "turn_open")
            .count(),
        1
    );

    assert_eq!(new.endings(), ["commit"]);
    // It has moved once its user is heard there.
    assert_eq!(
        new.signals()[..3],
        ["lease_rotated", "connected", "migration_finish"]
    );
    assert_eq!(new.report.epoch, old.report.epoch.next());
    assert_eq!(new.report.session_id, old.report.session_id);
}

/// AE-003: what the old placement would still say once another has the session is refused.
#[tokio::test(start_paused = true)]
async fn of_two_placements_only_one_speaks() {
    let leases = Arc::new(LocalLeases::default());
    let granted = Arc::clone(&leases);
    let opening = Opening {
        configure: Box::new(move |config| config.leases = granted),
        ..Opening::default()
    };
    let wire = Wire::open(&talkative(), opening).await;
    wire.types("tell me a story");
    wire.until(Signal::PlaybackStarted, 1).await;
    leases.acquire(wire.session.id()).unwrap();
    wire.session.hand_over();
    wire.until(Signal::Abort, 1).await;
    let taken = wire.peer.taken();
    let peer = wire.peer.clone();
    let over = wire.end_by_itself().await;
    assert_eq!(peer.taken(), taken);
    assert_eq!(over.report.authority.stale_epoch_outputs_accepted, 0);
}

/// AE-004: what comes in without an epoch is taken to be under the session's, and opens its turn.
#[tokio::test(start_paused = true)]
async fn a_missing_epoch_is_filled_in() {
    let leases = Scripted::from(14);
    let wire = Wire::open(&Cast::default(), under(&leases)).await;
    let stamped = |epoch| {
        Ingress::Stamped(Box::new(Stamped {
            epoch,
            key: None,
            event: Ingress::Text("hello".to_owned()),
        }))
    };
    wire.send(stamped(None));
    wire.until(Signal::Close, 1).await;
    wire.send(stamped(Some(epoch(14))));
    wire.until(Signal::Close, 2).await;
    let over = wire.end().await;
    assert_eq!(over.endings(), ["commit", "commit"]);
    assert_eq!(over.report.epoch, epoch(14));
    assert_eq!(refusals(&over), 0);
    assert_eq!(over.report.authority.authority_epoch_check_total.ingress, 1);
}

/// T12, F-156, AE-003: after a rotation everything that comes in under the older epoch is refused, each
/// with its event, and so is what claims an epoch that nobody was granted; nothing of a turn changes.
#[tokio::test(start_paused = true)]
async fn stale_ingress_is_refused_after_a_rotation() {
    let wire = Wire::open(&Cast::default(), rotating()).await;
    let typed = |of: u64| {
        Ingress::Stamped(Box::new(Stamped {
            epoch: Some(epoch(of)),
            key: None,
            event: Ingress::Text("hello".to_owned()),
        }))
    };
    wire.send(typed(1));
    wire.until(Signal::Close, 1).await;
    wire.session.rotate(epoch(2));
    wire.until(Signal::LeaseRotated, 1).await;
    for _ in 0..5 {
        wire.send(typed(1));
    }
    wire.send(typed(3));
    let cancel = Stamped {
        epoch: Some(epoch(1)),
        key: None,
        event: Ingress::Cancel,
    };
    wire.send(typed(2));
    wire.until(Signal::PlaybackStarted, 2).await;
    wire.send(Ingress::Stamped(Box::new(cancel)));
    wire.until(Signal::Close, 2).await;
    let over = wire.end().await;
    assert_eq!(over.endings(), ["commit", "commit"]);
    assert_eq!(refusals(&over), 7);
    let refused = (OutcomeKind::StaleEpochReject, OutcomeScope::EdgeEnqueue);
    assert_eq!(outcomes(&over.entries), [refused; 7]);
    let report = over.report.authority;
    assert_eq!(report.authority_epoch_reject_total.ingress, 7);
    assert_eq!(report.authority_epoch_check_total.ingress, 9);
    assert_eq!(report.stale_epoch_outputs_accepted, 0);
}

/// F-156: a microphone under the older epoch is not listened to, all of it; a run of refused frames is
/// told of once.
#[tokio::test(start_paused = true)]
async fn stale_frames_are_not_listened_to() {
    let wire = Wire::open(&Cast::default(), rotating()).await;
    wire.session.rotate(epoch(2));
    wire.until(Signal::LeaseRotated, 1).await;
    let speech = tone(ms(1_000));
    for of in [1, 2] {
        for (n, samples) in speech
            .chunks(320)
            .chain([[0; 320].as_slice(); 100])
            .enumerate()
        {
            let sequence = n as u64;
            wire.send(Ingress::Frame(Frame {
                sequence,
                position: SampleIndex(sequence * 320),
                epoch: Some(epoch(of)),
                pcm: to_bytes(samples),
            }));
            tokio::time::sleep(ms(20)).await;
        }
        let opened = wire
            .signals()
            .iter()
            .filter(|signal| **signal == Signal::TurnOpen)
            .count();
        assert_eq!(opened, usize::from(of == 2), "epoch {of}");
    }
    wire.until(Signal::Close, 1).await;
    let over = wire.end().await;
    assert_eq!(over.endings(), ["commit"]);
    assert_eq!(refusals(&over), 1);
    assert_eq!(
        over.report.authority.authority_epoch_reject_total.ingress,
        150
    );
}

/// T12, turn-plan.md §5 rule 6: work under another epoch than the plan's is refused where it would
/// begin, before any provider is asked; the turn goes on undisturbed.
#[tokio::test(start_paused = true)]
async fn work_of_another_epoch_is_not_begun() {
    let mut probes = Probes::default();
    probes.add("forger", |_nth, cx: &mut NodeContext, event: Event| {
        for other in [event.stamp.epoch.next(), epoch(1)] {
            let mut forged = event.clone();
            forged.stamp.epoch = other;
            cx.forward(forged);
        }
        cx.forward(event);
        Step::OK
    });
    let cast = Cast::default();
    let call = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| insert(spec, "segmenter", custom("forger"), "tts"))
        .configure({
            let install = probes.install();
            move |config| {
                install(config);
                config.leases = Scripted::from(5);
            }
        })
        .start()
        .await;
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, REPLY);
    let refused = (OutcomeKind::StaleEpochReject, OutcomeScope::NodeDispatch);
    assert_eq!(outcomes(&ended.entries), [refused]);
    let report = ended.report.authority;
    assert!(
        report.authority_epoch_reject_total.dispatch >= 4,
        "{report:?}"
    );
    assert_eq!(report.authority_epoch_reject_total.egress, 0);
}

/// T3, AE-001: a session whose lease is another's refuses the intent as stale, and opens nothing.
#[tokio::test(start_paused = true)]
async fn an_intent_under_a_lost_lease_is_stale() {
    let leases = Arc::new(LocalLeases::default());
    let granted = Arc::clone(&leases);
    let opening = Opening {
        configure: Box::new(move |config| config.leases = granted),
        ..Opening::default()
    };
    let wire = Wire::open(&Cast::default(), opening).await;
    leases.acquire(wire.session.id()).unwrap();
    wire.types("hello");
    wire.until(Signal::StaleEpochReject, 1).await;
    let over = wire.end().await;
    assert!(over.report.turns.is_empty());
    assert_eq!(over.report.refused, 1);
    for never in ["turn_open", "abort", "close", "admit", "deauthorized_drain"] {
        assert!(!over.signals().contains(&never), "{never}");
    }
}
