//! How sessions and turns begin and end.

use std::{sync::Arc, time::Duration};

use rspp_host::Notice;
use rspp_kernel::SessionState;
use rspp_proto::{TurnNumber, abi::Signal};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::call::{Builder, Cast, Ended, LONG, after_reply, first, says, tone};
use rspp_timeline::Entry;
use rspp_transport_api::{Ingress, loopback::Utterance};

fn talkative() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "All right."])),
        ..Cast::default()
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn states(ended: &Ended) -> Vec<SessionState> {
    let notices = ended.log.notices().into_iter();
    notices
        .filter_map(|notice| match notice {
            Notice::State(state) => Some(state),
            Notice::Signal(_) | Notice::Event(_) | Notice::Turn(_) | Notice::Foreign(_) => None,
        })
        .collect()
}

/// What is left to tell a subscriber who came once the session was ACTIVE.
const REST_OF_LIFE: [SessionState; 2] = [SessionState::Draining, SessionState::Ended];

/// F-138: a session goes through its states once, in order.
#[tokio::test(start_paused = true)]
async fn a_session_goes_through_its_states_in_order() {
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .hold()
        .await;
    assert_eq!(states(&ended), REST_OF_LIFE);
    assert_eq!(ended.report.state, SessionState::Ended);
    assert_eq!(ended.report.ended, "the user hung up");
    let ends = |signal: &&&str| ["connected", "disconnected", "ended"].contains(signal);
    let signals = ended.signals();
    let transport: Vec<_> = signals.iter().filter(ends).collect();
    assert_eq!(transport, [&"connected", &"disconnected", &"ended"]);
}

/// F-138, P26: a session that is drained finishes its turn, opens no other, and ends once, however
/// often it is asked to.
#[tokio::test(start_paused = true)]
async fn draining_lets_the_turn_finish_and_opens_no_other() {
    let cast = talkative();
    let mut builder = Builder::new(&cast, vec![says(first())]);
    let client = builder.client();
    let call = builder
        .pipeline(|spec| spec.turns.barge_in = false)
        .start()
        .await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    call.session.drain();
    call.session.drain();
    client.send(Ingress::Text("one more thing".into())).unwrap();
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, LONG);
    assert_eq!(states(&ended), REST_OF_LIFE);
    assert_eq!(ended.report.ended, "the session was drained");
    assert_eq!(ended.log.signals_of(Signal::Ended).len(), 1);
    // The reply is heard to its end although the session hangs up with it.
    let heard = ended.heard()[0];
    let whole: Duration = LONG
        .split_inclusive(". ")
        .map(|c| cast.tts.duration_of(c.trim()))
        .sum();
    assert!(heard.length() + ms(200) >= whole, "{heard:?} of {whole:?}");
}

/// F-138: draining an idle session ends it at once.
#[tokio::test(start_paused = true)]
async fn draining_an_idle_session_ends_it_at_once() {
    let call = Builder::new(&Cast::default(), vec![]).start().await;
    tokio::time::sleep(ms(100)).await;
    call.session.drain();
    let ended = call.end().await;
    assert!(ended.report.ended_at.since(ended.report.opened_at) < ms(200));
    assert_eq!(states(&ended), REST_OF_LIFE);
}

/// F6, P17: who hangs up in the middle of a reply ends turn and session, and everything with them.
#[tokio::test(start_paused = true)]
async fn hanging_up_in_the_middle_of_a_reply_ends_everything() {
    let call = Builder::new(&talkative(), vec![says(first())])
        .start()
        .await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(ms(500)).await;
    let at = call.line.elapsed();
    call.line.hang_up();
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["transport_disconnect_or_stall"]);
    assert_eq!(states(&ended), REST_OF_LIFE);
    assert_eq!(
        ended.signals()[ended.signals().len() - 5..],
        ["disconnected", "stall", "abort", "close", "ended"]
    );
    let turn = ended.turn(1);
    assert!(!turn.agent_text_played.is_empty() && turn.agent_text_played.len() < LONG.len());
    let lasted = ended.report.ended_at.since(ended.report.opened_at);
    assert!(lasted < at + ms(100), "{lasted:?}");
}

/// F6: so does hanging up while speaking, before any turn.
#[tokio::test(start_paused = true)]
async fn hanging_up_while_speaking_leaves_no_turn() {
    let call = Builder::new(&talkative(), vec![says(first())])
        .start()
        .await;
    tokio::time::sleep(ms(700)).await;
    call.line.hang_up();
    let ended = call.end().await;
    assert!(ended.report.turns.is_empty());
    assert_eq!(states(&ended), REST_OF_LIFE);
}

/// F-042: push to talk ends the utterance without silence; the next one, spoken the usual way, is
/// answered as fast as ever.
#[tokio::test(start_paused = true)]
async fn push_to_talk_needs_no_silence() {
    let cast = Cast::default();
    let talks = Utterance {
        audio: tone(Duration::from_secs(2)),
        start: first(),
    };
    let mut builder = Builder::new(&cast, vec![talks, says(after_reply())]);
    // The user still speaks when the reply begins: it is not an answer to all of it.
    builder.script.reply_timeout = Duration::from_secs(4);
    let client = builder.client();
    let call = builder.start().await;
    tokio::time::sleep(ms(1_500)).await;
    assert_eq!(call.log.signals_of(Signal::TurnOpen), []);
    let at = call.line.elapsed();
    client.send(Ingress::EndOfUtterance).unwrap();
    tokio::time::sleep(ms(60)).await;
    assert_eq!(
        call.log.signals_of(Signal::TurnOpen).len(),
        1,
        "no turn 60 ms after {at:?}"
    );
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["commit", "commit"]);
    assert_eq!(ended.turn(1).user_text, "hello there");
    assert_eq!(ended.turn(2).user_text, "and again");
    let second = ended.turn(2).first_audio_ms.expect("it was answered");
    assert!(second < 500.0, "{second} ms");
}

/// Push to talk without a word opens nothing, and leaves nothing behind.
#[tokio::test(start_paused = true)]
async fn push_to_talk_without_a_word_opens_nothing() {
    let mut builder = Builder::new(&Cast::default(), vec![says(first())]);
    let client = builder.client();
    let call = builder.start().await;
    client.send(Ingress::EndOfUtterance).unwrap();
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert!(ended.turn(1).first_audio_ms.is_some_and(|ms| ms < 500.0));
}

/// Typed text opens a turn like spoken words, and interrupts like them.
#[tokio::test(start_paused = true)]
async fn typed_text_opens_turns_and_interrupts() {
    let mut builder = Builder::new(&talkative(), vec![]);
    builder.script.reply_timeout = Duration::from_secs(2);
    let client = builder.client();
    let call = builder.start().await;
    client
        .send(Ingress::Text("tell me a story".into()))
        .unwrap();
    call.log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(ms(400)).await;
    client.send(Ingress::Text("  ".into())).unwrap();
    tokio::time::sleep(ms(100)).await;
    assert_eq!(
        call.log.signals_of(Signal::Cancel),
        [],
        "blank text is no text"
    );
    client.send(Ingress::Text("that is enough".into())).unwrap();
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_eq!(ended.turn(1).user_text, "tell me a story");
    assert_eq!(ended.turn(2).user_text, "that is enough");
    assert_eq!(ended.turn(2).agent_text_played, "All right.");
}

/// F-013: whatever is recorded says which session, and which turn if it is of one.
#[tokio::test(start_paused = true)]
async fn everything_recorded_says_whose_it_is() {
    let ended = Builder::new(&Cast::default(), vec![says(first()), says(after_reply())])
        .hold()
        .await;
    let ids = [TurnNumber(1).id(), TurnNumber(2).id()];
    let mut seen = 0;
    let mut events = std::collections::BTreeSet::new();
    for envelope in ended.entries.iter().filter_map(Entry::envelope) {
        assert_eq!(envelope.session_id.as_str(), "call");
        assert!(
            envelope
                .turn_id
                .as_ref()
                .is_none_or(|turn| ids.contains(turn))
        );
        assert!(
            events.insert(envelope.event_id.clone()),
            "{} twice",
            envelope.event_id
        );
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
    for signal in ended.log.signals() {
        let of_turn = signal.envelope.turn_id.is_some();
        let must = matches!(
            signal.signal,
            Signal::TurnOpen | Signal::Commit | Signal::Close | Signal::PlaybackStarted
        );
        assert!(of_turn || !must, "{signal:?}");
    }
}

/// F-140, P22: equal calls take equal courses, to the millisecond.
#[tokio::test(start_paused = true)]
async fn equal_calls_take_equal_courses() {
    let mut courses = Vec::new();
    for _ in 0..2 {
        let said = vec![
            says(first()),
            says(rspp_tests::call::over_reply(700)),
            says(after_reply()),
        ];
        let ended = Builder::new(&talkative(), said).hold().await;
        let began = ended.report.opened_at;
        let course: Vec<_> = ended
            .log
            .signals()
            .into_iter()
            .map(|signal| {
                let at = signal.envelope.runtime_timestamp_ms - began.as_millis();
                (signal.signal, signal.reason, signal.envelope.turn_id, at)
            })
            .collect();
        let hashes: Vec<_> = ended
            .report
            .turns
            .iter()
            .map(|turn| turn.plan_hash.clone())
            .collect();
        courses.push((course, hashes));
    }
    assert_eq!(courses[0], courses[1]);
}
