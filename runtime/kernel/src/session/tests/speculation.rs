//! Guesses of a session: begun, promoted, discarded.

use rspp_proto::spec::SpeculationPolicy;

use super::*;

fn guessing() -> Rig {
    Rig::with(TurnPolicy {
        speculation: SpeculationPolicy {
            enabled: true,
            ..SpeculationPolicy::default()
        },
        ..TurnPolicy::default()
    })
}

impl Rig {
    fn pause(&mut self, text: &str) {
        self.take(Input::UserPaused { text: text.into() });
    }
}

/// P9: a guess that is right becomes the turn, by the same gates as any other.
#[test]
fn the_words_that_were_guessed_promote_the_guess() {
    let mut rig = guessing();
    rig.pause("hello");
    assert_eq!(rig.log, ["GUESS hello"]);
    assert_eq!(rig.session.current_turn(), None, "a guess is no turn");
    assert_eq!(rig.session.conversation().iter().count(), 0);
    rig.after(700).say("hello");
    assert_eq!(
        rig.log,
        [
            "GUESS hello",
            "turn_open_proposed(session_turn_intent)",
            "admit(admission_capacity_allow)",
            "turn_open",
            "PROMOTE turn-0001 within 2000",
        ]
    );
    let stats = rig.session.speculation();
    assert_eq!((stats.promoted, stats.head_start_ms), (1, 700));
    rig.speak(100);
    rig.take(Input::PlaybackFinished { turn: T1 });
    assert_eq!(rig.heard(), ["one two three four"]);
}

/// turn-plan.md §7: words that the plan hands to the model while the user speaks are a guess like any other,
/// though nothing is guessed in pauses: a revision takes the place of the one before, the budgets hold, and
/// the final words decide.
#[test]
fn words_that_are_handed_over_are_answered_if_they_stay() {
    let mut rig = Rig::with(TurnPolicy::default());
    rig.pause("hello");
    assert_eq!(
        rig.log,
        Vec::<String>::new(),
        "nothing is guessed in pauses"
    );
    let hand = |rig: &mut Rig, text: &str| rig.take(Input::WordsHanded { text: text.into() });
    hand(&mut rig, "what is");
    hand(&mut rig, "what is the time");
    assert_eq!(
        rig.log,
        [
            "GUESS what is",
            "DISCARD turn-0001 words_differ",
            "GUESS what is the time",
        ]
    );
    rig.after(400).say("what is the time");
    assert!(rig.log.iter().any(|it| it.starts_with("PROMOTE turn-0002")));
    let stats = rig.session.speculation();
    assert_eq!(
        (stats.begun, stats.promoted, stats.head_start_ms),
        (2, 1, 400)
    );

    let mut rig = Rig::with(TurnPolicy::default());
    for nth in 0..9 {
        hand(&mut rig, &format!("word {nth}"));
    }
    let stats = rig.session.speculation();
    assert_eq!((stats.begun, stats.withheld), (6, 3), "six a minute");
}

/// P9: whatever shows that a guess is wrong discards it, and its number is not used again.
#[test]
fn a_guess_that_is_wrong_comes_to_nothing() {
    #[track_caller]
    fn check(disprove: impl FnOnce(&mut Rig), reason: &str) -> Rig {
        let mut rig = guessing();
        rig.pause("hello");
        disprove(&mut rig);
        let discarded = format!("DISCARD turn-0001 {reason}");
        assert!(rig.log.contains(&discarded), "{:?}", rig.log);
        assert_eq!(rig.session.speculation().discarded, 1);
        rig
    }
    let at = SampleIndex(0);
    check(|rig| rig.take(Input::SpeechStarted { at }), "user_went_on");
    let rig = check(|rig| rig.say("hello there"), "words_differ");
    assert_eq!(rig.session.current_turn(), Some(TurnNumber(2)));
    assert!(rig.log.contains(&"START hello there".to_owned()));
    let rig = check(|rig| rig.pause("hello there"), "words_differ");
    assert_eq!(rig.log.last().unwrap(), "GUESS hello there");
    check(|rig| rig.take(Input::GuessFailed { turn: T1 }), "failed");
    check(|rig| rig.take(Input::Disconnected), "session_over");
    let epoch = Epoch::FIRST.next();
    check(|rig| rig.take(Input::Rotated { epoch }), "session_over");
    check(|rig| rig.take(Input::Revoked), "session_over");
    check(
        |rig| {
            rig.gates.admission = refused(admission::Verdict::Reject);
            rig.say("hello");
        },
        "refused",
    );
    check(
        |rig| {
            let due = rig.session.next_deadline().unwrap();
            rig.after(due.since(rig.now).as_millis() as u64);
            rig.take(Input::Tick);
        },
        "too_late",
    );
}

/// P9, F-048, F-149: a guess whose turn would run by another plan now comes to nothing; its turn
/// begins anew, under a number of its own and in the posture that was decided.
#[test]
fn a_guess_by_another_plan_than_its_turn_is_begun_anew() {
    let mut rig = guessing();
    rig.pause("hello");
    rig.gates.admission.verdict = admission::Verdict::Degrade;
    rig.gates.guess_holds = false;
    rig.say("hello");
    assert_eq!(
        rig.log,
        [
            "GUESS hello",
            "DISCARD turn-0001 plan_differs",
            "turn_open_proposed(session_turn_intent)",
            "admit(admission_capacity_allow)",
            "turn_open",
            "degrade(overload_degrade_posture)",
            "START hello",
        ]
    );
    assert_eq!(rig.session.current_turn(), Some(TurnNumber(2)));
    let stats = rig.session.speculation();
    assert_eq!((stats.promoted, stats.discarded), (0, 1));
    // Whoever loses the session before the answer comes opens nothing.
    let mut rig = guessing();
    rig.pause("hello");
    rig.session.handle(
        rig.now,
        Input::UserTurn {
            text: "hello".into(),
        },
    );
    rig.take(Input::Revoked);
    assert!(
        !rig.log.iter().any(|line| line == "turn_open"),
        "{:?}",
        rig.log
    );
    assert_eq!(rig.session.state(), SessionState::Ended);
}

/// A guess is only made while nobody speaks, and not at all unless the policy says so.
#[test]
fn there_are_no_guesses_while_a_turn_runs() {
    let mut rig = guessing();
    rig.say("hello");
    rig.log.clear();
    rig.pause("and more");
    assert!(rig.log.is_empty());
    let mut rig = Rig::new();
    rig.pause("hello");
    assert!(rig.log.is_empty());
}

/// F-137: nothing is guessed without the voice, and a guess whose voice fails is discarded.
#[test]
fn without_the_voice_nothing_is_guessed() {
    let mut rig = guessing();
    rig.pause("hello");
    rig.take(Input::VoiceLost { turn: T1 });
    assert_eq!(rig.log, ["GUESS hello", "DISCARD turn-0001 failed"]);
    rig.failure.text_only = true;
    rig.say("hello");
    let turn = T1.next();
    rig.take(Input::VoiceLost { turn });
    rig.take(Input::PlaybackFinished { turn });
    rig.log.clear();
    rig.pause("and again");
    assert_eq!(rig.log, [""; 0]);
    rig.say("and again");
    assert!(rig.log.contains(&"START and again in text".to_owned()));
}
