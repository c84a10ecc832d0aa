//! Speech over the agent holds it; words end it, and without them it goes on where it was held.

use std::{sync::Arc, time::Duration};

use rspp_kernel::CancelReason;
use rspp_proto::{
    TurnNumber,
    abi::Signal,
    spec::{BargeInConfirm, PipelineSpec},
};
use rspp_provider_api::scripted::{Conduct, Script, ScriptedLlm, ScriptedStt, ScriptedTts};
use rspp_tests::{
    call::{Builder, Call, Cast, LONG, Log, first, over_reply, says, tone},
    frames::{self, assert_heard, buffers, frames_of},
};
use rspp_transport_api::loopback::{Start, Utterance};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A cast that tells a story first; its user says `said`, utterance by utterance.
fn cast(said: &[&str]) -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "All right."])),
        stt: Arc::new(ScriptedStt::new("stt").utterances(said.iter().copied())),
        ..Cast::default()
    }
}

/// What wants to be confirmed by words.
fn by_words(spec: &mut PipelineSpec) {
    spec.turns.barge_in_confirm = BargeInConfirm::Words;
}

fn sound(length_ms: u64, start: Start) -> Utterance {
    Utterance {
        audio: tone(ms(length_ms)),
        start,
    }
}

/// A call in which words confirm, and in which each frame of the agent's carries its number.
fn numbered(cast: &Cast, utterances: Vec<Utterance>) -> Builder {
    frames::numbered(Builder::new(cast, utterances).pipeline(by_words))
}

/// Why the output was held, and why it was let go.
fn flow(log: &Log) -> Vec<String> {
    let ours = |reason: &String| {
        [
            "barge_in_unconfirmed",
            "barge_in_confirmed",
            "false_interruption",
            "turn_ended",
            "user_cancel",
        ]
        .contains(&reason.as_str())
    };
    let flow = log
        .signals()
        .into_iter()
        .filter(|signal| matches!(signal.signal, Signal::FlowXoff | Signal::FlowXon));
    flow.filter_map(|signal| signal.reason.map(|reason| reason.to_string()))
        .filter(ours)
        .collect()
}

const COUGHED: [&str; 2] = ["barge_in_unconfirmed", "false_interruption"];

/// P11, P12: a cough over the reply holds it at once; it goes on where it was held, nothing lost and
/// nothing repeated, and the conversation knows nothing of it.
#[tokio::test(start_paused = true)]
async fn a_cough_pauses_the_reply_and_it_goes_on() {
    let cast = cast(&["hello there", ""]);
    let ended = numbered(&cast, vec![says(first()), sound(300, over_reply(900))])
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(flow(&ended.log), COUGHED);
    assert_eq!(ended.log.signals_of(Signal::Cancel), []);
    assert_eq!(ended.log.signals_of(Signal::BargeIn), []);
    assert_eq!(cast.llm.tally().calls, 1);
    let turn = ended.turn(1);
    assert_eq!(turn.agent_text_played, LONG);
    assert_eq!(turn.dropped.values().sum::<u64>(), 0, "{turn:#?}");
    let silences = assert_heard(&ended, 1..=frames_of(&cast, LONG));
    // From 60 ms into the cough, when it counts as a sound, until its silence counts as an end
    // 240 ms after it and recognition, which needs no time here, has found no word in it.
    let [pause] = silences[..] else {
        panic!("{silences:?}");
    };
    assert!(pause >= ms(440) && pause <= ms(520), "{pause:?}");
}

/// A cast whose recogniser never says anything about the second utterance, however often it is asked.
fn unheard_cough() -> Cast {
    let stalls = || Conduct::good().stalling_after(0);
    let script = Script::calls([Conduct::good(), stalls(), stalls(), stalls()]);
    let cast = cast(&["hello there", ""]);
    cast.stt.set_script(script);
    cast
}

/// P11: recognition that never answers is waited for 1.5 s from the end of the sound.
#[tokio::test(start_paused = true)]
async fn a_cough_that_nobody_transcribes_pauses_no_longer_than_its_deadline() {
    for wait_ms in [1_500, 600] {
        let cast = unheard_cough();
        let ended = numbered(&cast, vec![says(first()), sound(300, over_reply(900))])
            .pipeline(|spec| spec.turns.false_interruption_ms = wait_ms)
            .hold()
            .await;
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(flow(&ended.log), COUGHED);
        assert_eq!(ended.log.signals_of(Signal::DropNotice), []);
        assert_eq!(
            ended.turn(1).agent_text_played,
            LONG,
            "{:#?}",
            ended.turn(1)
        );
        let silences = assert_heard(&ended, 1..=frames_of(&cast, LONG));
        let [pause] = silences[..] else {
            panic!("{silences:?}");
        };
        let expected = ms(240 + wait_ms);
        assert!(
            pause >= expected.saturating_sub(ms(40)) && pause <= expected + ms(60),
            "{pause:?} for {expected:?}"
        );
    }
}

/// P11: generation goes on while playout is held, and whatever waits for the held line waits longer than
/// its edge would otherwise let it.
#[tokio::test(start_paused = true)]
async fn a_pause_longer_than_the_edges_patience_loses_nothing() {
    let cast = unheard_cough();
    let ended = numbered(&cast, vec![says(first()), sound(300, over_reply(900))])
        .pipeline(|spec| buffers(spec, 10, 300))
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(flow(&ended.log), COUGHED);
    assert_eq!(ended.turn(1).agent_text_played, LONG);
    assert_eq!(ended.log.signals_of(Signal::DropNotice), []);
    assert_heard(&ended, 1..=frames_of(&cast, LONG));
}

/// P12, F-025: words confirm; the agent was silent from the first sound on, the next turn is told no
/// more than was heard until then.
#[tokio::test(start_paused = true)]
async fn words_end_the_reply_where_it_was_held() {
    let cast = cast(&["hello there", "wait a moment"]);
    let ended = numbered(&cast, vec![says(first()), says(over_reply(900))])
        .hold()
        .await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_eq!(
        flow(&ended.log),
        ["barge_in_unconfirmed", "barge_in_confirmed"]
    );
    assert_eq!(ended.log.reasons_of(Signal::Cancel), ["barge_in"]);
    let heard = ended.heard();
    let silent_after = heard[0].ended.saturating_sub(ended.user_began()[1]);
    assert!(silent_after <= ms(60 + 20 + 20), "{silent_after:?}");
    let turn = ended.turn(1);
    assert!(turn.agent_text.starts_with(&turn.agent_text_played));
    assert!(!turn.agent_text_played.is_empty());
    assert!(turn.agent_text_played.len() < LONG.len() / 2);
    // What was made and not heard is accounted for.
    let dropped: u64 = turn.dropped.values().sum();
    assert!(dropped > 0, "{turn:#?}");
    assert_eq!(ended.turn(2).user_text, "wait a moment");
    assert_eq!(ended.turn(2).agent_text_played, "All right.");
}

/// P11: a cough while the model thinks holds nothing back but the output: the call goes on and its
/// answer is heard whole.
#[tokio::test(start_paused = true)]
async fn a_cough_does_not_stop_a_model_that_thinks() {
    let mut cast = cast(&["hello there", ""]);
    let late = Script::calls([Conduct::good().late(ms(1_500))]);
    cast.llm = Arc::new(ScriptedLlm::new("llm").answers([LONG]).script(late));
    // 1.3 s of speech until 1.3 s, a turn from 1.54 s on, a cough at 2 s.
    let ended = numbered(&cast, vec![says(first()), sound(400, Start::At(ms(2_000)))])
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(flow(&ended.log), COUGHED);
    let tally = cast.llm.tally();
    assert_eq!((tally.calls, tally.completed, tally.cancelled), (1, 1, 0));
    assert_eq!(ended.turn(1).agent_text_played, LONG);
    assert_heard(&ended, 1..=frames_of(&cast, LONG));
}

/// P4, P12: an interruption before the first frame: a cough lets the reply begin, words mean that it is
/// never heard.
#[tokio::test(start_paused = true)]
async fn before_the_first_frame_a_cough_delays_and_words_cancel() {
    let late = || Script::calls([Conduct::good().late(ms(900))]);
    let mut coughed = cast(&["hello there", ""]);
    coughed.tts = Arc::new(ScriptedTts::new("tts").script(late()));
    let cough = sound(400, Start::At(ms(2_300)));
    let ended = numbered(&coughed, vec![says(first()), cough]).hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(flow(&ended.log), COUGHED);
    assert_heard(&ended, 1..=frames_of(&coughed, LONG));
    // The turn was to be heard at about 2.45 s; it was held until the cough was over.
    assert!(ended.heard()[0].began >= ms(2_900), "{:?}", ended.heard());

    let mut spoken = cast(&["hello there", "never mind"]);
    spoken.tts = Arc::new(ScriptedTts::new("tts").script(late()));
    let words = says(Start::At(ms(2_000)));
    let ended = numbered(&spoken, vec![says(first()), words]).hold().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_eq!(ended.turn(1).agent_text_played, "");
    assert!(!ended.signals_of(1).contains(&"playback_started"));
    let heard = ended.heard();
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!(heard[0].turn, TurnNumber(2));
}

/// P12: a cough is forgiven, the words after it are heard; each hold is its own.
#[tokio::test(start_paused = true)]
async fn a_cough_and_then_words() {
    let cast = cast(&["hello there", "", "wait a moment"]);
    let said = vec![
        says(first()),
        sound(200, over_reply(600)),
        says(Start::At(ms(4_200))),
    ];
    let ended = numbered(&cast, said).hold().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_eq!(
        flow(&ended.log),
        [
            "barge_in_unconfirmed",
            "false_interruption",
            "barge_in_unconfirmed",
            "barge_in_confirmed",
        ]
    );
    assert_eq!(ended.turn(2).user_text, "wait a moment");
    let played = &ended.turn(1).agent_text_played;
    assert!(LONG.starts_with(played.as_str()) && !played.is_empty());
}

/// P11: noise without a word in it holds the agent for as long as the policy says, and no longer.
#[tokio::test(start_paused = true)]
async fn noise_does_not_hold_the_agent_for_ever() {
    let cast = cast(&["hello there", ""]);
    let ended = numbered(&cast, vec![says(first()), sound(6_000, over_reply(900))])
        .pipeline(|spec| spec.turns.max_hold_ms = 2_000)
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(flow(&ended.log), COUGHED);
    assert_eq!(ended.turn(1).agent_text_played, LONG);
    let silences = assert_heard(&ended, 1..=frames_of(&cast, LONG));
    let [pause] = silences[..] else {
        panic!("{silences:?}");
    };
    assert!(pause >= ms(1_960) && pause <= ms(2_040), "{pause:?}");
}

/// P12: fewer words than the policy asks for are no interruption and open no turn.
#[tokio::test(start_paused = true)]
async fn a_back_channel_neither_interrupts_nor_opens_a_turn() {
    let cast = cast(&["hello there", "right"]);
    let ended = numbered(&cast, vec![says(first()), sound(400, over_reply(900))])
        .pipeline(|spec| spec.turns.barge_in_min_words = 2)
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(flow(&ended.log), COUGHED);
    assert_eq!(ended.turn(1).agent_text_played, LONG);
    assert_heard(&ended, 1..=frames_of(&cast, LONG));
}

/// The time that a turn is held is none of its own budget.
#[tokio::test(start_paused = true)]
async fn held_time_is_not_spent() {
    let cast = cast(&["hello there", ""]);
    let whole = u64::from(frames_of(&cast, LONG).unsigned_abs()) * 20 + 200;
    let ended = numbered(&cast, vec![says(first()), sound(300, over_reply(900))])
        .pipeline(move |spec| spec.budgets.max_turn_duration_ms = Some(whole))
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, LONG);
}

/// A call that is held in the middle of its reply, by a sound that goes on.
async fn held() -> Call {
    let cast = cast(&["hello there", ""]);
    let call = numbered(&cast, vec![says(first()), sound(3_000, over_reply(900))])
        .start()
        .await;
    while flow(&call.log).is_empty() {
        tokio::time::sleep(ms(5)).await;
    }
    tokio::time::sleep(ms(200)).await;
    call
}

/// F-175, T7, T8, F6: a turn that is held can be cancelled, revoked, hung up on and drained like any
/// other; what was heard is what was heard when it was held.
#[tokio::test(start_paused = true)]
async fn whatever_ends_a_call_ends_a_held_one() {
    for (how, ending) in [
        ("cancel", "cancelled"),
        ("revoke", "authority_loss"),
        ("hang up", "transport_disconnect_or_stall"),
        ("drain", "commit"),
    ] {
        let call = held().await;
        match how {
            "cancel" => {
                let receipt = call.session.cancel(CancelReason::UserCancel).await;
                assert_eq!(receipt.expect("it is there").turn, Some(TurnNumber::FIRST));
            }
            "revoke" => call.session.revoke(),
            "hang up" => call.line.hang_up(),
            _ => call.session.drain(),
        }
        let ended = call.end().await;
        assert_eq!(ended.endings(), [ending], "{how}");
        let flow = flow(&ended.log);
        assert_eq!(
            (flow[0].as_str(), flow.len()),
            (COUGHED[0], 2),
            "{how}: {flow:?}"
        );
        if how == "drain" {
            continue;
        }
        let played = &ended.turn(1).agent_text_played;
        assert!(LONG.starts_with(played.as_str()) && played.len() < LONG.len() / 3);
        if how != "hang up" {
            let lasted = ended.heard()[0].length();
            assert!(lasted <= ms(900 + 100), "{how}: {lasted:?}");
        }
    }
}

/// Without words to ask for nothing is ever held: speech is what it was.
#[tokio::test(start_paused = true)]
async fn where_speech_confirms_nothing_is_held() {
    let cast = cast(&["hello there", "wait a moment"]);
    let ended = Builder::new(&cast, vec![says(first()), says(over_reply(900))])
        .hold()
        .await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert!(flow(&ended.log).is_empty());
}
