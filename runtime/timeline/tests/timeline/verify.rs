use rspp_proto::{
    Epoch, IdempotencyKey, Monotonic, SessionId, Speaker,
    abi::{CancelScope, Emitter, Signal, TurnState, TurnTrigger},
};
use rspp_timeline::{
    Entry, TerminalOutcome, ToolEntry, ToolStep, TurnBaseline,
    verify::{Rule, Violation, verify},
};

use crate::conversation::{STARTED_MS, Script, entries, evidence, turn};

/// A step of a call of the first turn, that long after the recording began.
fn tool(step: ToolStep, ms: u64) -> Entry {
    let session_id = SessionId::new("call-7").unwrap();
    ToolEntry {
        at: Monotonic::from_millis(STARTED_MS + ms),
        idempotency_key: IdempotencyKey::of_tool(&session_id, Epoch::FIRST, &turn(1), "a"),
        session_id,
        turn_id: turn(1),
        authority_epoch: Epoch::FIRST,
        call_id: "a".into(),
        tool: "order".into(),
        step,
        attempts: 0,
        arguments: None,
        result: None,
    }
    .into()
}

fn rules(violations: &[Violation]) -> Vec<Rule> {
    let mut rules: Vec<_> = violations.iter().map(|violation| violation.rule).collect();
    rules.dedup();
    rules
}

#[test]
fn a_sound_conversation_breaks_no_rule() {
    assert_eq!(verify(&entries()), []);
}

/// Each rule is broken alone and reported alone.
#[test]
fn every_rule_is_found_broken() {
    #[track_caller]
    fn check(rule: Rule, spoil: impl FnOnce(&mut Vec<Entry>)) -> Rule {
        let mut entries = entries();
        spoil(&mut entries);
        let violations = verify(&entries);
        assert_eq!(rules(&violations), [rule], "{violations:#?}");
        rule
    }
    fn without(entries: &mut Vec<Entry>, signal: Signal, which: usize) -> Entry {
        let mut found = 0;
        let index = entries.iter().position(|entry| {
            found += usize::from(entry.signal() == Some(signal));
            found == which
        });
        entries.remove(index.unwrap())
    }
    fn baseline(entries: &mut [Entry]) -> &mut TurnBaseline {
        let mut turns = entries.iter_mut().filter_map(|entry| match entry {
            Entry::Turn(turn) => Some(turn),
            _ => None,
        });
        turns.next().unwrap()
    }
    /// Adds what `make` says, with the sequence numbers that follow.
    fn then(entries: &mut Vec<Entry>, make: impl FnOnce(&mut Script)) {
        let mut script = Script::new();
        for _ in 0..500 {
            script.stamp(None, 0);
        }
        make(&mut script);
        entries.append(&mut script.entries);
    }
    let arbiter = Emitter::TurnArbiter;
    let (one, two) = (turn(1), turn(2));

    let found = [
        check(Rule::TerminalOnce, |e| {
            then(e, |s| {
                s.signal(3_000, Some(&one), Signal::Abort, arbiter);
            })
        }),
        check(Rule::CloseAfterTerminal, |e| {
            without(e, Signal::Close, 1);
        }),
        check(Rule::CloseAfterTerminal, |e| {
            then(e, |s| {
                s.signal(3_000, Some(&two), Signal::Close, arbiter);
            })
        }),
        check(Rule::EndWithoutOpen, |e| {
            then(e, |s| {
                s.signal(3_000, Some(&turn(3)), Signal::Abort, arbiter);
            })
        }),
        check(Rule::OpenOnce, |e| {
            then(e, |s| {
                s.signal(3_000, Some(&two), Signal::TurnOpen, arbiter);
            })
        }),
        check(Rule::TransitionLegal, |e| {
            then(e, |s| {
                s.step(3_000, &two, TurnState::Active, TurnTrigger::Commit)
            })
        }),
        check(Rule::NothingAfterFence, |e| {
            then(e, |s| {
                s.signal(
                    3_000,
                    Some(&two),
                    Signal::OutputAccepted,
                    Emitter::TransportMapping,
                );
            })
        }),
        check(Rule::NothingAfterTerminal, |e| {
            then(e, |s| {
                s.text(3_000, Some(&one), Speaker::Agent, "late", true)
            })
        }),
        check(Rule::EvidencePresent, |e| {
            e.retain(|entry| !matches!(entry, Entry::Turn(turn) if turn.turn_id == one))
        }),
        check(Rule::EvidenceComplete, |e| {
            baseline(e).determinism_seed = None
        }),
        check(Rule::EvidenceAgrees, |e| {
            let baseline = baseline(e);
            *baseline = evidence(&one, 613, 1_090, true);
            assert_eq!(baseline.terminal_outcome, Some(TerminalOutcome::Abort));
        }),
        check(Rule::PlanRecorded, |e| {
            baseline(e).plan_hash = "f".repeat(64)
        }),
        check(Rule::SequenceRises, |e| {
            let connected = e[0].clone();
            e.push(connected);
        }),
        check(Rule::EpochRises, |e| {
            let Entry::Signal(signal) = &mut e[0] else {
                panic!()
            };
            signal.envelope.authority_epoch = Epoch::new(2);
        }),
        check(Rule::NoStaleOutput, |e| {
            baseline(e).accepted_stale_epoch_outputs = 1
        }),
        check(Rule::ToolEndOnce, |e| {
            e.push(tool(ToolStep::Requested, 700))
        }),
        check(Rule::ToolEndOnce, |e| {
            let ends = [ToolStep::Finished, ToolStep::Abandoned];
            e.extend(ends.map(|end| tool(end, 700)));
        }),
        check(Rule::ToolBeginsInTime, |e| {
            let steps = [ToolStep::Began, ToolStep::Began, ToolStep::Finished];
            e.extend(steps.map(|step| tool(step, 700)));
        }),
        // P1: the turn has ended at 1,090 ms.
        check(Rule::ToolBeginsInTime, |e| {
            let steps = [ToolStep::Began, ToolStep::Finished];
            e.extend(steps.map(|step| tool(step, 1_200)));
        }),
    ];
    for rule in Rule::ALL {
        assert!(found.contains(rule), "{rule} is never broken here");
    }
}

/// event-abi §5, 2: a racing output that is marked late is the fence at work.
#[test]
fn a_late_output_marked_as_such_is_no_breach() {
    let mut script = Script::new();
    let one = turn(1);
    script.open(0, &one);
    script
        .signal(10, Some(&one), Signal::Cancel, Emitter::CancellationManager)
        .scope = Some(CancelScope::Turn);
    script.audio(11, Some(&one), Some("tts"));
    let breached = verify(&script.entries);
    assert!(
        rules(&breached).contains(&Rule::NothingAfterFence),
        "{breached:?}"
    );

    let Some(Entry::Event(event)) = script.entries.last_mut() else {
        panic!()
    };
    event.record.envelope.late_after_cancel = true;
    let marked = verify(&script.entries);
    assert!(
        !rules(&marked).contains(&Rule::NothingAfterFence),
        "{marked:?}"
    );
}

/// A cancelled node or call is silent; its siblings may go on.
#[test]
fn a_fence_reaches_as_far_as_its_scope() {
    for (node, breaches) in [("tts", true), ("other", false)] {
        let mut script = Script::new();
        let one = turn(1);
        script.open(0, &one);
        let cancel = script.signal(10, Some(&one), Signal::Cancel, Emitter::CancellationManager);
        cancel.scope = Some(CancelScope::Node);
        cancel.envelope.node_id = Some("tts".parse().unwrap());
        script.audio(11, Some(&one), Some(node));
        let found = rules(&verify(&script.entries));
        assert_eq!(found.contains(&Rule::NothingAfterFence), breaches, "{node}");
    }
}

#[test]
fn the_users_audio_may_follow_the_end_of_a_turn() {
    let mut entries = entries();
    let mut script = Script::new();
    for _ in 0..500 {
        script.stamp(None, 0);
    }
    script.audio(3_000, Some(&turn(1)), None);
    entries.append(&mut script.entries);
    assert_eq!(verify(&entries), []);
}

#[test]
fn a_turn_that_just_stops_is_neither_ended_nor_closed() {
    let mut script = Script::new();
    script.open(0, &turn(1));
    assert_eq!(
        rules(&verify(&script.entries)),
        [
            Rule::TerminalOnce,
            Rule::CloseAfterTerminal,
            Rule::EvidencePresent
        ]
    );
}
