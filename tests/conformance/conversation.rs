//! Whole conversations: listen, understand, think, speak.

use std::time::Duration;

use rspp_proto::{Lane, SampleRate, Speaker, abi::Signal};
use rspp_tests::call::{Builder, Cast, after_reply, first, says};

/// F-002, F-010, F-014, F-130.
#[tokio::test(start_paused = true)]
async fn two_turns_are_heard_answered_and_recorded() {
    let cast = Cast::default();
    let call = Builder::new(&cast, vec![says(first()), says(after_reply())]);
    let ended = call.hold().await;
    let turns = &ended.report.turns;
    assert_eq!(turns.len(), 2, "{:#?}", ended.report);
    assert_eq!(turns[0].user_text, "hello there");
    assert_eq!(turns[1].user_text, "and again");
    for turn in turns {
        assert_eq!(turn.outcome, "commit");
        assert_eq!(turn.agent_text, "Good day to you. How can I help?");
        assert_eq!(turn.agent_text_played, turn.agent_text);
        assert_eq!(turn.plan_hash.len(), 64);
        assert!(turn.first_audio_ms.is_some_and(|ms| ms > 0.0));
    }
}

/// P5, P29: a reply is heard to its last sample; committing the turn takes nothing back.
#[tokio::test(start_paused = true)]
async fn a_reply_is_heard_to_its_end() {
    let cast = Cast::default();
    let text = "Good day to you. How can I help?";
    let mut builder = Builder::new(&cast, vec![says(first())]);
    builder.script.sink_rate = SampleRate::HZ_24000;
    let ended = builder.hold().await;
    let [heard] = ended.heard()[..] else {
        panic!("one reply was to be heard: {:?}", ended.heard());
    };
    assert!(!heard.cut, "{heard:?}");
    let length = heard.length();
    let spoken: Duration = text
        .split_inclusive(". ")
        .map(|c| cast.tts.duration_of(c.trim()))
        .sum();
    assert!(length >= spoken, "{length:?} of {spoken:?}");
    assert!(length <= spoken + Duration::from_millis(60), "{length:?}");
    let samples = ended.line.take_rest().agent;
    let loud = samples
        .iter()
        .filter(|sample| sample.unsigned_abs() > 500)
        .count();
    let heard_ms = loud as f64 / 24.0;
    let spoken_ms = spoken.as_secs_f64() * 1e3;
    assert!(
        heard_ms > spoken_ms * 0.9,
        "{heard_ms} ms of {spoken_ms} ms sound"
    );
}

/// P29: a runtime that is kept from its work for longer than the peer can bridge goes on where it was: the peer heard
/// a gap, and is not handed more at once than it has room for.
#[tokio::test(start_paused = true)]
async fn a_stall_of_the_runtime_costs_no_word() {
    let call = Builder::new(&Cast::default(), vec![says(first())])
        .start()
        .await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::advance(Duration::from_millis(300)).await;
    let ended = call.end().await;
    let turn = ended.turn(1);
    assert_eq!(turn.agent_text_played, turn.agent_text);
    assert_eq!(turn.dropped[&Lane::Data], 0, "{:?}", turn.dropped);
}

/// F-025: the order of signals around turns.
#[tokio::test(start_paused = true)]
async fn a_turn_says_what_it_does_in_order() {
    let cast = Cast::default();
    let ended = Builder::new(&cast, vec![says(first())]).hold().await;
    assert_eq!(
        ended.signals(),
        [
            "lease_issued",
            "connected",
            "turn_open_proposed",
            "admit",
            "turn_open",
            "output_accepted",
            "playback_started",
            "playback_completed",
            "commit",
            "close",
            "disconnected",
            "ended",
        ]
    );
}

/// F-009, F-024: partial texts come while the user speaks, each longer than the one before; one
/// final text ends the utterance and stays.
#[tokio::test(start_paused = true)]
async fn partial_texts_grow_and_one_final_text_ends_them() {
    let cast = Cast::default();
    let call = Builder::new(&cast, vec![says(first()), says(after_reply())]);
    let ended = call.hold().await;
    let texts = ended.log.texts(Speaker::User);
    for (segment, whole) in [(0, "hello there"), (1, "and again")] {
        let of: Vec<_> = texts
            .iter()
            .filter(|text| text.segment == segment)
            .collect();
        let (last, partials) = of.split_last().expect("the utterance was transcribed");
        assert!(last.is_final);
        assert_eq!(&*last.text, whole);
        assert!(!partials.is_empty(), "nothing came while the user spoke");
        assert!(partials.iter().all(|text| !text.is_final), "{of:#?}");
        let mut shown = "";
        for partial in partials {
            assert!(
                partial.text.starts_with(shown),
                "{} after {shown}",
                partial.text
            );
            assert!(whole.starts_with(&*partial.text));
            shown = &partial.text;
        }
    }
    assert!(texts.is_sorted_by_key(|text| text.segment));
    // The agent's clauses, once each.
    let clauses: Vec<_> = ended
        .log
        .texts(Speaker::Agent)
        .iter()
        .map(|c| c.text.to_string())
        .collect();
    let reply = ["Good day to you.", "How can I help?"];
    assert_eq!(clauses, [reply, reply].concat());
}

/// F-009: a partial text is there before the user has finished.
#[tokio::test(start_paused = true)]
async fn partial_texts_come_while_the_user_still_speaks() {
    let cast = Cast::default();
    let call = Builder::new(&cast, vec![says(first())]).start().await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let texts = call.log.texts(Speaker::User);
    assert!(!texts.is_empty(), "nothing after 800 ms of speech");
    assert!(texts.iter().all(|text| !text.is_final));
    assert_eq!(call.log.signals_of(Signal::TurnOpenProposed), []);
    call.end().await;
}
