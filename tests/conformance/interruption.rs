//! Who speaks over the agent is listened to: the fence falls first, then everybody is told.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_kernel::CancelReason;
use rspp_proto::{TurnNumber, abi::Signal};
use rspp_provider_api::{
    LlmRequest, Role,
    scripted::{Conduct, Script, ScriptedLlm, ScriptedTts},
};
use rspp_tests::call::{Builder, Cast, Ended, after_reply, first, over_reply, says, tone};
use rspp_timeline::Entry;
use rspp_transport_api::{Ingress, loopback::Utterance};

const LONG: &str = "Well, let me tell you a very long story. It begins in a small town by the sea, where \
    nobody ever went. Then one day a stranger came along the coast road, and he carried a lamp.";

/// What the model was asked, in order.
type Asked = Arc<Mutex<Vec<LlmRequest>>>;

/// A cast that tells a long story first, and answers shortly afterwards.
fn storyteller() -> (Cast, Asked) {
    let asked = Asked::default();
    let seen = Arc::clone(&asked);
    let llm = ScriptedLlm::new("llm").answer_with(move |request| {
        seen.lock().unwrap().push(request.clone());
        let turns = request
            .messages
            .iter()
            .filter(|m| m.role == Role::User)
            .count();
        if turns == 1 { LONG } else { "All right." }
    });
    let cast = Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    };
    (cast, asked)
}

/// The fence is the first thing of a cancelled turn after its cancel, and nothing of it follows.
#[track_caller]
fn assert_cancelled(ended: &Ended, turn: u32) {
    let signals = ended.signals_of(turn);
    let cancel = signals.iter().position(|signal| *signal == "cancel");
    let cancel = cancel.unwrap_or_else(|| panic!("no cancel among {signals:?}"));
    // CF-001, CF-003: exactly abort and close, and no output any more.
    let lifecycle: Vec<_> = signals[cancel..]
        .iter()
        .filter(|signal| ["commit", "abort", "close"].contains(signal))
        .collect();
    assert_eq!(lifecycle, [&"abort", &"close"]);
    assert!(
        !signals[cancel..].contains(&"output_accepted"),
        "{signals:?}"
    );
    assert!(
        !signals[cancel..].contains(&"playback_started"),
        "{signals:?}"
    );
    assert_eq!(ended.turn(turn).reason.as_deref(), Some("cancelled"));
    // CF-004: the evidence has the stamps.
    let id = TurnNumber(turn).id();
    let evidence = ended.entries.iter().find_map(|entry| match entry {
        Entry::Turn(baseline) if baseline.turn_id == id => Some(baseline),
        _something_else => None,
    });
    let cancel = evidence.and_then(|baseline| baseline.cancel.clone());
    let cancel = cancel.expect("the evidence speaks of the cancel");
    assert!(cancel.cancel_accepted_at.is_some());
    assert!(cancel.cancel_sent_at.is_some());
    assert!(cancel.cancel_fence_applied_at >= cancel.cancel_accepted_at);
}

/// F-025, F-033, F-035, F-039, F-064, CF-001 to CF-004, P1, P2, P3, P5: the user speaks over a long
/// reply.
#[tokio::test(start_paused = true)]
async fn speaking_over_the_agent_silences_it_and_opens_the_next_turn() {
    let (mut cast, asked) = storyteller();
    // Slow enough that model and voice are still at work when they are interrupted.
    cast.tts = Arc::new(ScriptedTts::new("tts").real_time_factor(0.5));
    let llm = Arc::clone(&cast.llm);
    let call = Builder::new(&cast, vec![says(first()), says(over_reply(900))]);
    let ended = call.hold().await;
    drop(llm);

    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_cancelled(&ended, 1);
    assert_eq!(ended.log.reasons_of(Signal::Cancel), ["barge_in"]);

    // The order of things, as subscribers see it: cancel, the old turn's end, the new one's start.
    let order: Vec<_> = ended.signals();
    let at = |name: &str, nth: usize| {
        let mut found = order
            .iter()
            .enumerate()
            .filter(|(_, signal)| **signal == name);
        found
            .nth(nth)
            .unwrap_or_else(|| panic!("no {name} in {order:?}"))
            .0
    };
    assert!(at("barge_in", 0) < at("cancel", 0));
    assert!(at("cancel", 0) < at("playback_cancelled", 0));
    assert!(at("playback_cancelled", 0) < at("close", 0));
    assert!(at("close", 0) < at("turn_open", 1));

    // Silence: the line holds one frame, the detector needs 60 ms and the policy 200 ms of speech.
    let heard = ended.heard();
    assert!(heard[0].cut);
    let spoke_over = ended.user_began()[1];
    let silent_after = heard[0].ended.saturating_sub(spoke_over);
    assert!(
        silent_after <= Duration::from_millis(60 + 200 + 20 + 20),
        "{silent_after:?}"
    );

    // Everybody at work was told.
    assert_eq!(cast.tts.tally().cancelled, 1, "{:?}", cast.tts.tally());

    // What was heard is a beginning of what was to be said, and the model is told no more.
    let turn = ended.turn(1);
    assert!(!turn.agent_text_played.is_empty());
    assert!(turn.agent_text.starts_with(&turn.agent_text_played));
    assert!(
        turn.agent_text_played.len() < turn.agent_text.len() / 2,
        "{turn:#?}"
    );
    let asked = asked.lock().unwrap();
    let shown: Vec<_> = asked[1].messages[1..]
        .iter()
        .map(|m| (m.role, m.content.as_str()))
        .collect();
    let cut = format!("{} —", turn.agent_text_played);
    assert_eq!(
        shown,
        [
            (Role::User, "hello there"),
            (Role::Assistant, cut.as_str()),
            (Role::User, "and again"),
        ]
    );
    assert_eq!(ended.turn(2).agent_text_played, "All right.");
}

/// F-033: a model that is still generating is told to stop.
#[tokio::test(start_paused = true)]
async fn a_model_at_work_is_told_to_stop() {
    let (mut cast, _) = storyteller();
    let slow = ScriptedLlm::new("llm").answers([LONG, "All right."]);
    cast.llm = Arc::new(slow.token_every(Duration::from_millis(250)));
    let call = Builder::new(&cast, vec![says(first()), says(over_reply(900))]);
    let ended = call.hold().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_cancelled(&ended, 1);
    assert_eq!(cast.llm.tally().cancelled, 1, "{:?}", cast.llm.tally());
    assert_eq!(cast.llm.tally().chunks_after_cancel, 0);
}

/// F-037, CF-002, P1, P4: providers that ignore a cancel are not heard, not spoken, not remembered.
#[tokio::test(start_paused = true)]
async fn what_a_deaf_provider_says_after_the_cancel_goes_nowhere() {
    let (cast, _) = storyteller();
    let deaf = || Script::always(Conduct::good().deaf());
    let llm = ScriptedLlm::new("llm").answers([LONG, "All right."]);
    let cast = Cast {
        llm: Arc::new(llm.token_every(Duration::from_millis(100)).script(deaf())),
        tts: Arc::new(ScriptedTts::new("tts").real_time_factor(0.8).script(deaf())),
        ..cast
    };
    let call = Builder::new(&cast, vec![says(first()), says(over_reply(900))]);
    let ended = call.hold().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_cancelled(&ended, 1);
    let heard = ended.heard();
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(heard[0].ended < heard[1].began);
    // Dropping the stream is what ends such a call.
    assert!(cast.tts.tally().dropped >= 1, "{:?}", cast.tts.tally());
    assert_eq!(ended.turn(2).agent_text_played, "All right.");
}

/// P4: an interruption before the first frame silences the turn just as well.
#[tokio::test(start_paused = true)]
async fn a_turn_that_is_interrupted_before_its_first_frame_is_never_heard() {
    let (mut cast, asked) = storyteller();
    let late = Conduct::good().late(Duration::from_millis(900));
    cast.tts = Arc::new(ScriptedTts::new("tts").script(Script::calls([late])));
    let again = Utterance {
        audio: tone(Duration::from_secs(1)),
        start: rspp_transport_api::loopback::Start::At(Duration::from_millis(1_800)),
    };
    let ended = Builder::new(&cast, vec![says(first()), again]).hold().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_cancelled(&ended, 1);
    assert_eq!(ended.turn(1).agent_text_played, "");
    assert!(!ended.signals_of(1).contains(&"playback_cancelled"));
    let heard = ended.heard();
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!(heard[0].turn, TurnNumber(2));
    // What nobody heard is not part of the conversation (P3).
    let asked = asked.lock().unwrap();
    let shown: Vec<_> = asked[1].messages[1..].iter().map(|m| m.role).collect();
    assert_eq!(shown, [Role::User, Role::User]);
}

/// F-035: a client cancels by its handle; the answer comes once the fence has fallen.
#[tokio::test(start_paused = true)]
async fn a_cancel_is_answered_when_the_fence_has_fallen() {
    let (cast, _) = storyteller();
    let call = Builder::new(&cast, vec![says(first()), says(after_reply())])
        .start()
        .await;
    let nothing = call.session.cancel(CancelReason::UserCancel).await;
    assert_eq!(nothing.expect("the session is there").turn, None);

    call.log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let at = call.line.elapsed();
    let receipt = call.session.cancel(CancelReason::UserCancel).await;
    let receipt = receipt.expect("the session is there");
    assert_eq!(receipt.turn, Some(TurnNumber(1)));
    // Real time, so generous: this says that it is measured, a bench says how fast it is.
    assert!(receipt.fence > Duration::ZERO && receipt.fence < Duration::from_millis(50));
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_cancelled(&ended, 1);
    assert_eq!(ended.log.reasons_of(Signal::Cancel), ["user_cancel"]);
    assert_eq!(ended.log.signals_of(Signal::BargeIn), []);
    let silent_after = ended.heard()[0].ended.saturating_sub(at);
    assert!(
        silent_after <= Duration::from_millis(20),
        "{silent_after:?}"
    );
    assert!(ended.turn(1).cancel_fence_us.is_some_and(|us| us > 0.0));
}

/// F-035: the client's own cancel, by the transport.
#[tokio::test(start_paused = true)]
async fn a_client_cancels_by_its_transport() {
    let (cast, _) = storyteller();
    let mut builder = Builder::new(&cast, vec![says(first())]);
    let client = builder.client();
    let call = builder.start().await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.send(Ingress::Cancel).expect("the call goes on");
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["cancelled"]);
    assert_cancelled(&ended, 1);
    assert_eq!(ended.log.reasons_of(Signal::Cancel), ["user_cancel"]);
}

/// Cancelling twice is cancelling once.
#[tokio::test(start_paused = true)]
async fn a_second_cancel_changes_nothing() {
    let (cast, _) = storyteller();
    let call = Builder::new(&cast, vec![says(first())]).start().await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    let cancel = || call.session.cancel(CancelReason::UserCancel);
    let (_, _, _) = tokio::join!(cancel(), cancel(), cancel());
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["cancelled"]);
    assert_cancelled(&ended, 1);
    assert_eq!(ended.log.signals_of(Signal::Cancel).len(), 1);
}

/// P11: a cough is shorter than the policy's least speech; the agent goes on, and is heard whole.
#[tokio::test(start_paused = true)]
async fn a_cough_interrupts_nobody() {
    let (mut cast, _) = storyteller();
    // Nobody can make words of a cough.
    let stt = rspp_provider_api::scripted::ScriptedStt::new("stt").utterances(["hello there", ""]);
    cast.stt = Arc::new(stt);
    for cough_ms in [40, 100, 180] {
        let cough = Utterance {
            audio: tone(Duration::from_millis(cough_ms)),
            start: over_reply(900),
        };
        let ended = Builder::new(&cast, vec![says(first()), cough]).hold().await;
        assert_eq!(ended.endings(), ["commit"], "a cough of {cough_ms} ms");
        let turn = ended.turn(1);
        assert_eq!(turn.agent_text_played, turn.agent_text);
        assert!(!ended.heard()[0].cut);
    }
}

/// F-025: with barge-in switched off the agent finishes; what was said meanwhile is answered then.
#[tokio::test(start_paused = true)]
async fn without_barge_in_the_agent_finishes_and_answers_afterwards() {
    let (cast, asked) = storyteller();
    let call = Builder::new(&cast, vec![says(first()), says(over_reply(900))]);
    let ended = call
        .pipeline(|spec| spec.turns.barge_in = false)
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit", "commit"]);
    assert_eq!(ended.log.signals_of(Signal::Cancel), []);
    assert_eq!(ended.turn(2).user_text, "and again");
    let heard = ended.heard();
    assert!(
        !heard[0].cut && heard[0].ended <= heard[1].began,
        "{heard:?}"
    );
    let asked = asked.lock().unwrap();
    assert_eq!(asked[1].messages[2].content, ended.turn(1).agent_text);
}

/// F-033, F-038: interrupted again and again, each turn starts clean.
#[tokio::test(start_paused = true)]
async fn every_interrupted_turn_leaves_the_next_one_clean() {
    let asked = Asked::default();
    let seen = Arc::clone(&asked);
    let llm = ScriptedLlm::new("llm").answer_with(move |request| {
        seen.lock().unwrap().push(request.clone());
        LONG
    });
    let cast = Cast {
        llm: Arc::new(llm),
        stt: Arc::new(rspp_provider_api::scripted::ScriptedStt::new("stt")),
        ..Cast::default()
    };
    let over = |ms| says(over_reply(ms));
    let said = vec![says(first()), over(700), over(40), over(1_500), over(300)];
    let ended = Builder::new(&cast, said).hold().await;
    assert_eq!(
        ended.endings(),
        ["cancelled", "cancelled", "cancelled", "cancelled", "commit"]
    );
    for turn in 1..=4 {
        assert_cancelled(&ended, turn);
        let report = ended.turn(turn);
        assert!(report.agent_text.starts_with(&report.agent_text_played));
        assert_eq!(report.user_text, format!("utterance {turn}"));
    }
    // Each turn speaks from its own beginning.
    let last = ended.turn(5);
    assert_eq!(last.agent_text_played, LONG);
    let heard = ended.heard();
    assert!(heard.is_sorted_by(|a, b| a.ended <= b.began), "{heard:?}");
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 5);
    for (at, request) in asked.iter().enumerate() {
        let users = request
            .messages
            .iter()
            .filter(|m| m.role == Role::User)
            .count();
        assert_eq!(users, at + 1);
    }
}
