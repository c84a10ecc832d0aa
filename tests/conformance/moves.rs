//! Moves that a running session and its turns do not make: whoever asks for them is refused with the code
//! of where they stand, and nothing changes.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use rspp_host::{Snapshots, testing::forge};
use rspp_kernel::{CancelReason, Gates, Input, SessionState, admission::Decision, turn::Ending};
use rspp_proto::{
    Epoch, Payload, SessionId, TurnNumber,
    abi::{Signal, TurnState, TurnTransition, TurnTrigger},
    spec::{Quota, ReplayMode},
};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_replay::Replay;
use rspp_tests::{
    call::{Cast, LONG},
    wire::{Opening, Over, Wire},
};
use rspp_timeline::{
    Entry,
    gates::{Gate, Gates as Run},
};
use rspp_transport_api::{Ingress, Link};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn talkative() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG])),
        ..Cast::default()
    }
}

/// Every move of a turn that somebody can ask for.
fn moves(turn: u32) -> Vec<(TurnTrigger, Input)> {
    use TurnTrigger as T;
    let turn = TurnNumber(turn);
    let gates = Gates {
        snapshot_valid: true,
        admission: Decision::ADMIT,
        epoch: Epoch::FIRST,
        authorized: true,
        guess_holds: true,
        evidence: true,
    };
    let ending = Ending::NodeFailed;
    vec![
        (T::TurnOpen, Input::Gates { turn, gates }),
        (T::TurnOpen, Input::Plan { turn, facts: None }),
        (T::Commit, Input::PlaybackFinished { turn }),
        (T::Abort, Input::TurnFailed { turn, ending }),
        (T::Close, Input::Sealed { turn, stored: true }),
    ]
}

/// Has the session be told all of that; what is to be refused, as `code asked turn`.
fn forge_moves(wire: &Wire, turn: u32, code: &str, all: bool) -> Vec<String> {
    let mut expected = Vec::new();
    for (trigger, input) in moves(turn) {
        if all || !matches!(trigger, TurnTrigger::Commit | TurnTrigger::Abort) {
            forge(&wire.session, input);
            expected.push(format!("{code} {trigger} {}", TurnNumber(turn)));
        }
    }
    expected
}

/// The moves that were refused, as they were told.
fn refused(entries: &[Entry]) -> Vec<String> {
    let notes = entries.iter().filter_map(|entry| match entry {
        Entry::Event(event) => match &event.record.payload {
            Some(Payload::Debug(note)) if note.message == "move_refused" => Some(&note.fields),
            Some(_) | None => None,
        },
        _another_entry => None,
    });
    notes
        .map(|fields| {
            let (code, asked) = (&fields["code"], &fields["asked"]);
            match fields.get("turn") {
                Some(turn) => format!("{code} {asked} {turn}"),
                None => format!("{code} {asked}"),
            }
        })
        .collect()
}

/// The moves that a turn made.
fn steps(over: &Over, turn: u32) -> Vec<TurnTransition> {
    let id = TurnNumber(turn).id();
    let entries = over.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Transition(made) if made.turn_id == id => Some(made.step),
            _another_entry => None,
        })
        .collect()
}

/// A turn's whole way, with that end.
fn way(end: TurnTrigger) -> Vec<TurnTransition> {
    let moves = [
        (TurnState::Idle, TurnTrigger::TurnOpenProposed),
        (TurnState::Opening, TurnTrigger::TurnOpen),
        (TurnState::Active, end),
        (TurnState::Terminal, TurnTrigger::Close),
    ];
    let moves = moves.into_iter();
    moves
        .map(|(from, trigger)| TurnTransition::new(from, trigger).unwrap())
        .collect()
}

/// The recorded call decides again as it did, refusals included.
#[track_caller]
fn assert_decides_again(over: &Over) {
    let session = SessionId::new("call").unwrap();
    let mode = ReplayMode::RecomputeDecisions;
    let mut replay = Replay::new(session, &over.entries, mode).unwrap();
    while let Some(step) = replay.step().unwrap() {
        assert_eq!(step.divergence, None);
    }
    assert_eq!(replay.surplus(), None);
}

fn count(over: &Over, signal: &str) -> usize {
    over.signals().iter().filter(|it| **it == signal).count()
}

/// F-139, CT-003: a turn that was never proposed, that is open, or that is closed makes no move but those
/// of the table, whoever asks: each is refused by its code, the turns go their way undisturbed, and a
/// replay refuses the same.
#[tokio::test(start_paused = true)]
async fn every_other_move_of_a_turn_is_refused_and_changes_nothing() {
    let wire = Wire::open(&Cast::default(), Opening::default()).await;
    let mut expected = forge_moves(&wire, 1, "no_such_turn", true);
    wire.types("hello");
    wire.until(Signal::PlaybackStarted, 1).await;
    expected.extend(forge_moves(&wire, 1, "turn_is_open", false));
    wire.until(Signal::Close, 1).await;
    expected.extend(forge_moves(&wire, 1, "turn_is_closed", true));
    // Nobody speaks: there is nothing to cancel.
    let receipt = wire.session.cancel(CancelReason::UserCancel).await.unwrap();
    assert_eq!(receipt.turn, None);
    wire.send(Ingress::Cancel);
    expected.extend(vec!["no_such_turn abort turn-0002".to_owned(); 2]);
    tokio::time::sleep(ms(50)).await;
    wire.types("and again");
    wire.until(Signal::Close, 2).await;
    expected.extend(forge_moves(&wire, 1, "turn_is_closed", true));
    tokio::time::sleep(ms(50)).await;
    let over = wire.end().await;
    assert_eq!(over.endings(), ["commit", "commit"]);
    assert_eq!(refused(&over.entries), expected);
    let told: u64 = over.report.moves_refused.values().sum();
    assert_eq!(told, expected.len() as u64);
    for turn in [1, 2] {
        assert_eq!(steps(&over, turn), way(TurnTrigger::Commit), "{turn}");
    }
    for once_a_turn in ["turn_open", "commit", "close", "playback_completed"] {
        assert_eq!(count(&over, once_a_turn), 2, "{once_a_turn}");
    }
    for never in ["abort", "cancel", "stop"] {
        assert_eq!(count(&over, never), 0, "{never}");
    }
    assert_decides_again(&over);
}

/// F-141, lifecycle.md §4, 3: of an intent that was rejected, deferred or admitted nothing can be forced:
/// who was refused has no turn to end, and who was admitted ends once.
#[tokio::test(start_paused = true)]
async fn a_refused_intent_cannot_be_ended() {
    let stale = Arc::new(Snapshots::default());
    let read = Arc::clone(&stale);
    let rejecting = Opening {
        configure: Box::new(|config| config.limits.node.turns = Some(Quota::at(0))),
        ..Opening::default()
    };
    let deferring = Opening {
        configure: Box::new(move |config| config.snapshots = read),
        ..Opening::default()
    };
    for (opening, answer, code, turns) in [
        (rejecting, Signal::Reject, "no_such_turn", 0),
        (deferring, Signal::Defer, "no_such_turn", 0),
        (Opening::default(), Signal::Close, "turn_is_closed", 1),
    ] {
        let wire = Wire::open(&Cast::default(), opening).await;
        if answer == Signal::Defer {
            stale.expire();
        }
        wire.types("hello");
        wire.until(answer, 1).await;
        let expected = forge_moves(&wire, 1, code, true);
        tokio::time::sleep(ms(50)).await;
        let over = wire.end().await;
        assert_eq!(refused(&over.entries), expected, "{answer}");
        assert_eq!(over.report.turns.len(), turns, "{answer}");
        assert_eq!(over.report.refused, 1 - turns as u64, "{answer}");
        for of_a_turn in ["turn_open", "commit", "close"] {
            assert_eq!(count(&over, of_a_turn), turns, "{answer}: {of_a_turn}");
        }
        assert_eq!(count(&over, "abort"), 0, "{answer}");
        let evidence = |entry: &&Entry| matches!(entry, Entry::Turn(_));
        assert_eq!(over.entries.iter().filter(evidence).count(), turns);
        assert_decides_again(&over);
    }
}

/// One call whose link is lost and comes back; then it is drained more often than it can be, and asked
/// for everything once it is over.
async fn whole_life() -> Over {
    let wire = Wire::open(&talkative(), Opening::default()).await;
    wire.types("tell me a story");
    wire.until(Signal::PlaybackStarted, 1).await;
    wire.send(Ingress::Link(Link::Reconnecting));
    tokio::time::sleep(ms(700)).await;
    wire.send(Ingress::Link(Link::Back));
    tokio::time::sleep(ms(200)).await;
    wire.session.drain();
    wire.session.drain();
    wire.session.leave();
    wire.types("is anybody there");
    tokio::time::sleep(ms(200)).await;
    assert_eq!(wire.session.status().state, SessionState::Draining);
    while wire.session.status().state != SessionState::Ended {
        tokio::time::sleep(ms(50)).await;
    }
    tokio::time::sleep(ms(500)).await;
    // ENDED is for good.
    let before = wire.session.status();
    wire.session.drain();
    wire.session.revoke();
    wire.session.hand_over();
    wire.session.rotate(Epoch::FIRST.next());
    forge(&wire.session, Input::Connected);
    assert_eq!(wire.session.cancel(CancelReason::UserCancel).await, None);
    let after = wire.session.status();
    assert_eq!(after.state, SessionState::Ended);
    let of_the_ended = |status: &rspp_host::SessionStatus| {
        let count = status.moves_refused.get("session_has_ended");
        count.copied().unwrap_or(0)
    };
    assert_eq!(of_the_ended(&after) - of_the_ended(&before), 6);
    wire.end_by_itself().await
}

/// F-138: sessions go CONNECTING, ACTIVE, DRAINING, ENDED, many at once and over links that come and go;
/// a second end, and everything that comes after it, is refused by its code and changes nothing.
#[tokio::test(start_paused = true)]
async fn a_session_ends_once_and_for_good() {
    for over in join_all((0..4).map(|_| whole_life())).await {
        assert_eq!(over.endings(), ["commit"]);
        assert_eq!(over.report.state, SessionState::Ended);
        assert_eq!(over.report.ended, "the session was drained");
        let told = refused(&over.entries);
        assert_eq!(told, ["session_is_draining DRAINING"; 2]);
        assert_eq!(count(&over, "ended"), 1);
        assert_eq!(count(&over, "migration_start"), 0);
        assert_eq!(count(&over, "turn_open"), 1);
        assert_decides_again(&over);
    }
}

/// A reply in which the user interrupts, a budget runs out and an operator cancels, at one moment; the
/// rest comes late.
async fn contended() -> Over {
    let wire = Wire::open(&talkative(), Opening::default()).await;
    wire.types("tell me a story");
    wire.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(ms(300)).await;
    let turn = TurnNumber(1);
    let ending = Ending::BudgetTerminated;
    forge(&wire.session, Input::TurnFailed { turn, ending });
    let _receipt = wire.session.cancel(CancelReason::UserCancel).await;
    wire.types("stop");
    wire.until(Signal::Close, 1).await;
    for (_, input) in moves(1) {
        forge(&wire.session, input);
    }
    wire.until(Signal::Close, 2).await;
    wire.end().await
}

/// F-140: a cancel against a budget that runs out, an interruption and what comes late are arbitrated
/// alike each time: same decisions in same order, same plans, in run and replay.
#[tokio::test(start_paused = true)]
async fn contention_is_arbitrated_alike_each_time() {
    let course = |over: &Over| {
        let began = over.report.opened_at.as_millis();
        let signals = over.entries.iter().filter_map(|entry| match entry {
            Entry::Signal(signal) => Some((
                signal.signal,
                signal.reason.clone(),
                signal.envelope.turn_id.clone(),
                signal.envelope.runtime_timestamp_ms - began,
            )),
            _another_entry => None,
        });
        let plans = over.report.turns.iter().map(|turn| turn.plan_hash.clone());
        let signals: Vec<_> = signals.collect();
        (signals, plans.collect::<Vec<_>>(), refused(&over.entries))
    };
    let first = contended().await;
    assert_eq!(first.endings(), ["cancelled", "commit"]);
    assert_decides_again(&first);
    for _ in 0..3 {
        let again = contended().await;
        assert_eq!(course(&again), course(&first));
        assert_decides_again(&again);
    }
}

/// NF-029, F-139: over many turns that end in every way, each with forged second ends while it runs and
/// after it, every accepted turn has one terminal and then its close: gate 6 is at one.
#[tokio::test(start_paused = true)]
async fn second_ends_leave_every_turn_with_one() {
    let mut run = Run::default();
    for nth in 0..6 {
        let wire = Wire::open(&talkative(), Opening::default()).await;
        for turn in 1..=4 {
            let turns = TurnNumber(turn);
            wire.types("tell me a story");
            wire.until(Signal::PlaybackStarted, turn as usize).await;
            tokio::time::sleep(ms(100 * nth)).await;
            let fails = |ending| Input::TurnFailed {
                turn: turns,
                ending,
            };
            match (turn + nth as u32) % 4 {
                0 => wire.send(Ingress::Cancel),
                1 => forge(&wire.session, fails(Ending::NodeFailed)),
                2 => forge(&wire.session, fails(Ending::ProviderFailed)),
                _ => {
                    forge(&wire.session, fails(Ending::Finished));
                    forge(&wire.session, fails(Ending::BudgetTerminated));
                }
            }
            forge_moves(&wire, turn, "", true);
            wire.until(Signal::Close, turn as usize).await;
            forge_moves(&wire, turn, "", true);
            tokio::time::sleep(ms(20)).await;
        }
        let over = wire.end().await;
        assert_eq!(over.report.turns.len(), 4);
        assert!(over.report.moves_refused.values().sum::<u64>() >= 20);
        run.add(&over.entries);
    }
    let report = run.report();
    let terminals = report.measured.iter().find(|it| it.gate == Gate::Terminals);
    let terminals = terminals.expect("it is measured");
    assert_eq!((terminals.value, terminals.samples), (Some(1.0), 24));
    let broken = report.violations.iter();
    let broken: Vec<_> = broken.filter(|it| it.gate == Gate::Terminals).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}
