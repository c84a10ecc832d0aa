//! Whole conversations: listen, understand, think, speak.

use std::time::Duration;

use rspp_tests::call::{Builder, Cast, says};
use rspp_transport_api::loopback::Start;

fn first() -> Start {
    Start::At(Duration::from_millis(300))
}

fn after_reply() -> Start {
    Start::AfterReply {
        pause: Duration::from_millis(400),
    }
}

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
    assert_eq!(ended.line.leaked(), 0);
    let violations = rspp_timeline::verify::verify(ended.entries.iter());
    assert!(violations.is_empty(), "{violations:#?}");
}
