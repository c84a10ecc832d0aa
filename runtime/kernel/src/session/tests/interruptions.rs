//! Holding, softening, going mute: what happens to a turn short of its end, and how it still ends once.

use proptest::prelude::*;
use rspp_proto::spec::BargeInConfirm;

use super::*;

fn by_words() -> TurnPolicy {
    TurnPolicy {
        barge_in_confirm: BargeInConfirm::Words,
        ..TurnPolicy::default()
    }
}

fn speaking(policy: TurnPolicy) -> Rig {
    let mut rig = Rig::with(policy);
    rig.say("hello");
    rig.speak(50);
    rig.log.clear();
    rig
}

fn sound() -> Input {
    Input::SpeechStarted { at: SampleIndex(9) }
}

fn quiet() -> Input {
    Input::SpeechStopped { at: SampleIndex(9) }
}

fn words(text: &str) -> Input {
    Input::Recognised {
        at: SampleIndex(9),
        text: text.into(),
        is_final: false,
    }
}

fn spoken(text: &str, from: u64, until: u64) -> Input {
    Input::Spoken {
        text: text.into(),
        from: SampleIndex(from),
        until: SampleIndex(until),
    }
}

/// P11, P12: a cough holds playout and nothing else; the time that it takes is not the turn's.
#[test]
fn a_cough_holds_the_turn_and_lets_it_go_on() {
    let mut rig = speaking(by_words());
    assert!(rig.session.is_speaking());
    rig.take(sound());
    assert_eq!(rig.log, ["HOLD"]);
    assert!(
        !rig.session.is_speaking(),
        "what is held is not heard (P13)"
    );
    rig.after(300).take(quiet());
    rig.after(1_499).take(Input::Tick);
    assert_eq!(rig.log, ["HOLD"]);
    rig.after(1).take(Input::Tick);
    assert_eq!(rig.log, ["HOLD", "RELEASE false_interruption"]);
    assert_eq!(rig.session.current_turn(), Some(T1));
    // 60 s of its own, and the 1.8 s that it was held.
    rig.at_work = true;
    rig.log.clear();
    rig.after(60_000 - 1_800).take(Input::Tick);
    assert_eq!(rig.session.current_turn(), Some(T1), "{:?}", rig.log);
    rig.after(1_800).take(Input::Tick);
    assert_eq!(rig.session.current_turn(), None);
}

/// P11: a model that is still thinking is not stopped by a cough, and not timed either.
#[test]
fn a_cough_does_not_stop_a_thinking_model() {
    let mut rig = Rig::with(by_words());
    rig.say("hello");
    rig.log.clear();
    rig.after(1_900).take(sound());
    rig.after(400).take(quiet());
    rig.after(1_500).take(Input::Tick);
    rig.after(99).take(Input::Tick);
    assert!(
        !rig.log.iter().any(|line| line.contains("exhausted")),
        "{:?}",
        rig.log
    );
    rig.after(1).take(Input::Tick);
    assert!(rig.log.contains(&"abort(budget_exhausted)".to_owned()));
}

/// P12: words confirm; the fence falls, what was held is let go, and the cut is where it was held.
#[test]
fn words_confirm_an_interruption() {
    let mut rig = speaking(by_words());
    rig.take(sound());
    rig.after(600).take(words("wait"));
    assert_eq!(
        rig.log,
        [
            "HOLD",
            "FENCE",
            "RELEASE barge_in_confirmed",
            "barge_in",
            "cancel(barge_in)",
            "STOP WORK barge_in",
            "playback_cancelled(cancel_fence_applied)",
            "FENCE",
            "abort(cancelled)",
            "close",
        ]
    );
    assert_eq!(rig.heard(), ["one two"]);
}

/// P12: too few words are no interruption and no turn; enough of them are both.
#[test]
fn too_few_words_are_a_back_channel() {
    let mut rig = speaking(TurnPolicy {
        barge_in_min_words: 2,
        ..by_words()
    });
    rig.take(sound());
    rig.after(300).take(quiet());
    rig.take(spoken("mm-hm", 9, 20));
    assert_eq!(rig.log, ["HOLD", "RELEASE false_interruption"]);
    rig.take(Input::PlaybackFinished { turn: T1 });
    assert_eq!(rig.session.current_turn(), None);
    rig.take(spoken("yes", 30, 40));
    assert_eq!(rig.session.current_turn(), Some(T1.next()), "an answer");
}

/// P12: what was held is let go for what was asked: a stop confirms no interruption.
#[test]
fn a_stop_while_held_confirms_no_interruption() {
    let mut rig = speaking(by_words());
    rig.take(sound());
    rig.after(100).take(Input::Stop);
    assert!(
        rig.log.contains(&"RELEASE user_cancel".to_owned()),
        "{:?}",
        rig.log
    );
}

/// Whatever ends a turn that is held, nothing stays held.
#[test]
fn nothing_stays_held_when_the_turn_ends() {
    for end in [
        Input::Revoked,
        Input::Disconnected,
        Input::PlaybackFinished { turn: T1 },
        Input::TurnFailed {
            turn: T1,
            ending: Ending::NodeFailed,
        },
        Input::Rotated {
            epoch: Epoch::FIRST.next(),
        },
    ] {
        let mut rig = speaking(by_words());
        rig.take(sound());
        rig.take(end);
        assert!(
            rig.log.contains(&"RELEASE turn_ended".to_owned()),
            "{:?}",
            rig.log
        );
        assert_eq!(rig.session.current_turn(), None);
        assert_eq!(rig.session.next_deadline(), None);
    }
}

/// F-041: softly, the clause in flight ends before the fence falls.
#[test]
fn a_soft_cancel_lets_the_clause_end() {
    let mut rig = Rig::new();
    rig.cancel_mode = CancelMode::Soft;
    rig.say("hello");
    rig.speak(100);
    rig.log.clear();
    rig.take(Input::Stop);
    assert_eq!(
        rig.log,
        ["stop", "cancel(user_cancel)", "SOFTEN user_cancel"]
    );
    rig.log.clear();
    rig.take(Input::ClauseOver { turn: T1 });
    let ends = [
        "FENCE",
        "STOP WORK user_cancel",
        "playback_cancelled(cancel_fence_applied)",
        "abort(cancelled)",
        "close",
    ];
    assert_eq!(rig.log, ends);

    // Bounded, and hard when asked for again, when nothing is heard yet, and when authority is lost.
    let soften = || {
        let mut rig = Rig::new();
        rig.cancel_mode = CancelMode::Soft;
        rig.say("hello");
        rig.speak(100);
        rig.take(Input::Stop);
        rig.log.clear();
        rig
    };
    let mut late = soften();
    assert_eq!(
        late.session.next_deadline(),
        Some(Monotonic::from_millis(3_000))
    );
    late.after(3_000).take(Input::Tick);
    assert_eq!(late.log, ends);
    let mut again = soften();
    again.take(Input::Stop);
    assert_eq!(again.log, ends);
    let mut failed = soften();
    failed.take(Input::TurnFailed {
        turn: T1,
        ending: Ending::ProviderFailed,
    });
    assert_eq!(failed.log, ends, "T7: the cancel was accepted first");
    let mut lost = soften();
    lost.take(Input::Revoked);
    assert!(lost.log.contains(&"abort(authority_loss)".to_owned()));
    let mut silent = Rig::new();
    silent.cancel_mode = CancelMode::Soft;
    silent.say("hello");
    silent.log.clear();
    silent.take(Input::Stop);
    assert_eq!(silent.log[..2], ["FENCE", "stop"]);
}

/// F-035: what the system ends is cancelled too, and says why.
#[test]
fn endings_by_the_system_are_cancels_with_a_reason() {
    let mut failed = speaking(TurnPolicy::default());
    failed.take(Input::TurnFailed {
        turn: T1,
        ending: Ending::ProviderFailed,
    });
    assert_eq!(
        failed.log,
        [
            "FENCE",
            "cancel(provider_error)",
            "STOP WORK provider_error",
            "playback_cancelled(cancel_fence_applied)",
            "abort(provider_failure)",
            "close",
        ]
    );
    let mut late = Rig::talking();
    late.after(2_000).take(Input::Tick);
    assert_eq!(
        late.log,
        [
            "budget_exhausted(turn_budget)",
            "FENCE",
            "cancel(timeout)",
            "STOP WORK timeout",
            "abort(budget_exhausted)",
            "close",
        ]
    );
}

/// P13: a turn that has begun to speak and goes mute is warned of, its stage looked for, and ended.
#[test]
fn a_turn_that_goes_mute_ends() {
    let mut rig = speaking(TurnPolicy::default());
    rig.after(1_200).take(Input::Tick);
    assert_eq!(rig.log, ["budget_warning(output_gap)"]);
    rig.after(300).take(Input::Tick);
    assert_eq!(rig.log[1..], ["budget_exhausted(output_gap)", "UNSTICK"]);
    rig.log.clear();
    rig.after(1_500).take(Input::Tick);
    assert_eq!(
        rig.log,
        [
            "budget_exhausted(output_gap)",
            "FENCE",
            "cancel(timeout)",
            "STOP WORK timeout",
            "playback_cancelled(cancel_fence_applied)",
            "abort(node_timeout_or_failure)",
            "close",
        ]
    );
}

/// P13: whoever is at work, is heard, is held or has taken over is not mute.
#[test]
fn signs_of_life_are_looked_for_before_a_turn_is_called_mute() {
    let mut rig = speaking(TurnPolicy::default());
    rig.at_work = true;
    for _ in 0..10 {
        rig.answered = Some(rig.now);
        rig.after(1_500).take(Input::Tick);
    }
    assert!(rig.log.is_empty(), "{:?}", rig.log);
    rig.at_work = false;
    rig.after(1_500).take(Input::Tick);
    assert_eq!(rig.log[..], ["budget_exhausted(output_gap)", "UNSTICK"]);
    rig.take(Input::TookOver {
        turn: T1,
        is_voice: false,
    });
    rig.log.clear();
    rig.after(1_500).take(Input::Tick);
    assert_eq!(rig.log, ["budget_exhausted(output_gap)", "UNSTICK"]);

    let mut held = speaking(by_words());
    held.after(1_400).take(sound());
    held.log.clear();
    held.after(4_000).take(Input::Tick);
    assert!(held.log.is_empty(), "{:?}", held.log);
}

/// P13, T10: whoever is at work and brings nothing is waited for as long as the policy lets the turn be
/// silent, whether it has been heard yet or not, and is then given up.
#[test]
fn work_that_brings_nothing_is_not_waited_for_for_ever() {
    #[track_caller]
    fn check(mut rig: Rig, ending: &str) {
        rig.at_work = true;
        let began = rig.now;
        let mut told = None;
        while rig.session.current_turn().is_some() {
            let due = rig.session.next_deadline().expect("a turn has deadlines");
            rig.now = rig.now.max(due);
            rig.take(Input::Tick);
            if told.is_none() && rig.log.contains(&"UNSTICK".to_owned()) {
                told = Some(rig.now.since(began));
            }
        }
        assert_eq!(told, Some(Duration::from_secs(4)));
        assert_eq!(rig.now.since(began), Duration::from_millis(5_500));
        assert!(rig.log.contains(&ending.to_owned()), "{:?}", rig.log);
    }
    let ending = "abort(node_timeout_or_failure)";
    check(speaking(TurnPolicy::default()), ending);
    let mut unheard = Rig::talking();
    unheard.take(Input::Progress { turn: T1 });
    check(unheard, ending);
}

/// T11, lifecycle invariant 9: late words of a closed turn are a new turn's, nobody's, or a note.
#[test]
fn late_words_of_a_closed_turn_are_treated_as_the_policy_says() {
    #[track_caller]
    fn check(late_events: LateEventPolicy, first: &str, opens: bool) {
        let mut rig = Rig::with(TurnPolicy {
            late_events,
            ..TurnPolicy::default()
        });
        rig.take(spoken("I would like", 100, 500));
        rig.take(Input::PlaybackFinished { turn: T1 });
        rig.log.clear();
        rig.take(spoken("to order", 300, 500));
        assert_eq!(rig.log[0], first);
        let opened = rig.session.current_turn();
        assert_eq!(opened, opens.then(|| T1.next()));
        rig.take(Input::PlaybackFinished { turn: T1.next() });
        rig.log.clear();
        rig.take(spoken("something new", 500, 900));
        assert!(rig.log.contains(&"START something new".to_owned()));
    }
    check(LateEventPolicy::Drop, "LATE drop", false);
    check(LateEventPolicy::Diagnostics, "LATE diagnostics", false);
    check(LateEventPolicy::Repropose, "LATE repropose", true);
}

fn anything() -> impl Strategy<Value = Input> {
    let turn = (1u32..4).prop_map(TurnNumber);
    let text = prop_oneof![Just(""), Just("mm"), Just("wait a moment")];
    let reason = prop_oneof![
        Just(CancelReason::BargeIn),
        Just(CancelReason::UserCancel),
        Just(CancelReason::Timeout),
        Just(CancelReason::ProviderError),
    ];
    let scope = prop_oneof![4 => Just(CancelScope::Turn), 1 => Just(CancelScope::Session)];
    let ending = prop_oneof![
        Just(Ending::TransportLost),
        Just(Ending::NodeFailed),
        Just(Ending::ProviderFailed),
    ];
    let user = prop_oneof![
        text.clone()
            .prop_map(|text| Input::UserTurn { text: text.into() }),
        (text.clone(), 0u64..50, 0u64..50).prop_map(|(text, from, length)| Input::Spoken {
            text: text.into(),
            from: SampleIndex(from),
            until: SampleIndex(from + length),
        }),
        (text, any::<bool>()).prop_map(|(text, is_final)| Input::Recognised {
            at: SampleIndex(9),
            text: text.into(),
            is_final,
        }),
        Just(sound()),
        Just(quiet()),
        Just(Input::SpeechResumed { at: SampleIndex(9) }),
        Just(Input::Stop),
        (reason, scope).prop_map(|(reason, scope)| Input::Cancel { reason, scope }),
    ];
    let work =
        (turn, ending, 0u32..6, any::<bool>()).prop_map(
            |(turn, ending, kind, at_work)| match kind {
                0 => Input::Progress { turn },
                1 => Input::PlaybackStarted { turn },
                2 => Input::PlaybackFinished { turn },
                3 => Input::ClauseOver { turn },
                4 => Input::TurnFailed { turn, ending },
                _ => Input::Pulse {
                    turn,
                    heard: None,
                    answered: None,
                    at_work,
                },
            },
        );
    let other = prop_oneof![
        6 => Just(Input::Tick),
        1 => Just(Input::Revoked),
        1 => Just(Input::Disconnected),
        1 => Just(Input::Drain),
        1 => (1u64..5).prop_map(|n| Input::Rotated { epoch: Epoch::new(n).expect("not zero") }),
    ];
    prop_oneof![5 => user, 4 => work, 2 => other]
}

proptest! {
    /// NF-029, F-139, lifecycle invariants 1 to 3, 8 and 12, P11: whatever happens, in whatever order,
    /// each accepted turn ends exactly once and then closes; a hold is let go before the next turn
    /// opens; and time alone brings every session to rest.
    #[test]
    fn an_accepted_turn_ends_exactly_once_and_then_closes(
        confirm in prop_oneof![Just(BargeInConfirm::Speech), Just(BargeInConfirm::Words)],
        soft in any::<bool>(),
        min_words in 1u32..3,
        history in prop::collection::vec((0u64..700, prop::collection::vec(anything(), 1..4)), 1..60),
    ) {
        let mut rig = Rig::with(TurnPolicy {
            barge_in_confirm: confirm,
            barge_in_min_words: min_words,
            ..TurnPolicy::default()
        });
        rig.cancel_mode = if soft { CancelMode::Soft } else { CancelMode::Hard };
        for (wait, inputs) in history {
            rig.after(wait);
            rig.gates.epoch = rig.session.epoch();
            rig.take_together(inputs);
        }
        // Then nothing happens any more.
        for _ in 0..200 {
            let Some(due) = rig.session.next_deadline() else { break };
            rig.now = rig.now.max(due);
            rig.take(Input::Tick);
        }
        prop_assert_eq!(rig.session.next_deadline(), None);
        prop_assert_eq!(rig.session.current_turn(), None);
        let (mut open, mut ended, mut held) = (false, false, false);
        for line in &rig.log {
            let name = line.split('(').next().unwrap_or_default();
            match name {
                "turn_open" => {
                    prop_assert!(!open && !held, "{:#?}", rig.log);
                    (open, ended) = (true, false);
                }
                "commit" | "abort" => {
                    prop_assert!(open && !ended, "{:#?}", rig.log);
                    ended = true;
                }
                "close" => {
                    prop_assert!(open && ended, "{:#?}", rig.log);
                    open = false;
                }
                "HOLD" => {
                    prop_assert!(open && !ended && !held, "{:#?}", rig.log);
                    held = true;
                }
                _ if line.starts_with("RELEASE") => {
                    prop_assert!(held, "{:#?}", rig.log);
                    held = false;
                }
                // After its terminal nothing of the turn comes but its close.
                "cancel" | "playback_started" | "output_accepted" => {
                    prop_assert!(line.contains("cancel") || (open && !ended), "{:#?}", rig.log);
                }
                _ => {}
            }
        }
        prop_assert!(!open && !held, "{:#?}", rig.log);
    }
}
