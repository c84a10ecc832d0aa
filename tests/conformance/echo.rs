//! A loudspeaker in front of the microphone: the agent must not take itself for the user (P28).

use std::{sync::Arc, time::Duration};

use rspp_proto::abi::Signal;
use rspp_provider_api::scripted::{ScriptedLlm, ScriptedStt};
use rspp_tests::call::{Builder, Cast, Ended, LONG, first, over_reply, says};
use rspp_transport_api::loopback::{EchoPath, Utterance};

fn on_speakerphone(guarded: bool, gain: f32, delay_ms: u64, says: Vec<Utterance>) -> Builder {
    let cast = Cast {
        stt: Arc::new(ScriptedStt::new("stt").utterances(["tell me a story", "stop that"])),
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "All right."])),
        ..Cast::default()
    };
    let mut builder = Builder::new(&cast, says);
    builder.script.echo = Some(EchoPath {
        gain,
        delay: Duration::from_millis(delay_ms),
    });
    builder.pipeline.connection.echo_guard.enabled = guarded;
    builder
}

fn interruptions(ended: &Ended) -> usize {
    ended.log.signals_of(Signal::BargeIn).len()
}

/// P28: without the guard the agent hears itself and stops; this is what the guard is for.
#[tokio::test(start_paused = true)]
async fn without_a_guard_the_agent_interrupts_itself() {
    let call = on_speakerphone(false, 0.4, 120, vec![says(first())])
        .start()
        .await;
    call.log.until(Signal::BargeIn, 1).await;
    call.line.hang_up();
    let ended = call.end().await;
    assert!(interruptions(&ended) > 0);
    assert!(ended.heard()[0].cut);
}

/// P28: with the guard it speaks to its end, on loud and soft loudspeakers, near and far, and nothing of
/// what it said is taken for words of the user.
#[tokio::test(start_paused = true)]
async fn the_agent_does_not_interrupt_itself() {
    for (gain, delay) in [(0.1, 20), (0.4, 120), (0.9, 60), (0.6, 340)] {
        let ended = on_speakerphone(true, gain, delay, vec![says(first())])
            .hold()
            .await;
        assert_eq!(interruptions(&ended), 0, "gain {gain}, delay {delay}");
        assert_eq!(ended.endings(), ["commit"], "gain {gain}, delay {delay}");
        assert_eq!(ended.turn(1).agent_text_played, LONG);
        assert!(ended.report.line.echoes > 200);
    }
}

/// P28, F-033: double talk. A user who speaks over the agent's echo interrupts as promptly as without
/// one, and is understood.
#[tokio::test(start_paused = true)]
async fn a_user_interrupts_over_the_echo() {
    let mut cut_after = Vec::new();
    for gain in [0.0, 0.3] {
        let talk = vec![says(first()), says(over_reply(2_000))];
        let ended = on_speakerphone(true, gain, 120, talk).hold().await;
        assert_eq!(interruptions(&ended), 1, "gain {gain}");
        assert_eq!(ended.endings(), ["cancelled", "commit"], "gain {gain}");
        assert_eq!(ended.turn(2).user_text, "stop that");
        let spoke = ended.user_began()[1];
        cut_after.push(ended.heard()[0].ended.saturating_sub(spoke));
    }
    let [without, with] = cut_after[..] else {
        panic!("two calls")
    };
    assert!(
        with <= without + Duration::from_millis(60),
        "{with:?} after {without:?}"
    );
}

/// P28: a guard that is on costs a user without a loudspeaker nothing.
#[tokio::test(start_paused = true)]
async fn a_headset_notices_nothing() {
    let ended = on_speakerphone(true, 0.0, 20, vec![says(first())])
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).user_text, "tell me a story");
}
