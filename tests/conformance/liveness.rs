//! A turn that claims to speak is heard, or ends; whoever hangs is found.

use std::{
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use rspp_host::{
    Event,
    node::{NodeContext, Step},
};
use rspp_proto::{Payload, abi::Signal};
use rspp_provider_api::scripted::{Conduct, Script, ScriptedLlm, ScriptedTts};
use rspp_tests::{
    call::{Builder, Cast, Ended, LONG, first, says},
    frames::buffers,
    nodes::{Probes, add, custom, forward, insert},
};
use rspp_transport_api::loopback::Start;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn storyteller() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "All right."])),
        ..Cast::default()
    }
}

/// A call whose voice leads through a node that hangs for ever at its 50th frame, in its first turn.
fn hanging(cast: &Cast, standby: bool) -> Builder {
    let mut probes = Probes::default();
    let seen = AtomicU32::new(0);
    probes.add("filter", move |_nth, cx: &mut NodeContext, event: Event| {
        let is_sound = matches!(event.payload, Payload::AudioChunk(_));
        if is_sound && add(&seen) == 50 {
            return Step::Wait(Box::pin(std::future::pending()));
        }
        cx.forward(event);
        Step::OK
    });
    probes.add("spare", forward);
    let said = vec![says(first()), says(Start::At(ms(9_000)))];
    Builder::new(cast, said)
        .pipeline(move |spec| {
            let mut filter = custom("filter");
            if standby {
                filter.fallback = Some("spare".parse().unwrap());
                // It is to hang, not to overrun.
                filter.budget_ms = Some(30_000);
                spec.nodes.push(custom("spare"));
            }
            insert(spec, "tts", filter, "egress");
            buffers(spec, 150, 2_000);
        })
        .configure(probes.install())
}

fn output_gaps(ended: &Ended, kind: Signal) -> usize {
    let reasons = ended.log.reasons_of(kind);
    reasons
        .iter()
        .filter(|reason| *reason == "output_gap")
        .count()
}

/// P13, P16, P18, T10: a stage that hangs in the middle of a reply is found 1.5 s after the last sound,
/// not at the end of a minute: warned of, given up, and the turn with it; the call goes on.
#[tokio::test(start_paused = true)]
async fn a_stage_that_hangs_ends_the_turn_in_good_time() {
    let ended = hanging(&storyteller(), false).hold().await;
    assert_eq!(ended.endings(), ["node_timeout_or_failure", "commit"]);
    assert_eq!(output_gaps(&ended, Signal::BudgetWarning), 1);
    assert_eq!(output_gaps(&ended, Signal::BudgetExhausted), 1);
    let heard = ended.heard()[0];
    // 49 frames were heard.
    assert!(heard.cut);
    let turn = ended.turn(1);
    let began = turn.anchors.assistant_audio_playback_started_ts.unwrap();
    let exhausted = ended.log.signals_of(Signal::BudgetExhausted)[0].clone();
    let after = exhausted.envelope.runtime_timestamp_ms - began.as_millis();
    assert!((980 + 1_480..=980 + 1_560).contains(&after), "{after} ms");
    // The failure names the node.
    let named = ended.log.payloads().into_iter().any(|payload| {
        matches!(payload, Payload::Error(note) if note.node_id.as_ref().is_some_and(|node| node.as_str() == "filter"))
    });
    assert!(named);
    assert_eq!(ended.turn(2).agent_text_played, "All right.");
}

/// P13, F-007: with a standby the stage is replaced and the reply goes on.
#[tokio::test(start_paused = true)]
async fn a_stage_that_hangs_is_replaced_by_its_standby() {
    let ended = hanging(&storyteller(), true)
        .pipeline(|spec| {
            for node in &mut spec.nodes {
                if node.id.as_str() == "filter" {
                    node.budget_ms = Some(400);
                }
            }
        })
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit", "commit"]);
    let fallback = ended.log.reasons_of(Signal::Fallback);
    assert_eq!(fallback.len(), 1, "{fallback:?}");
    assert!(
        fallback[0].starts_with("from=filter to=spare"),
        "{fallback:?}"
    );
    assert!(!ended.heard()[0].cut);
}

/// P13: a pause that somebody at work accounts for is none: a slow model, a slow voice, each within
/// deadlines of its own.
#[tokio::test(start_paused = true)]
async fn slow_work_is_not_taken_for_a_hang() {
    let slow_model = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG]).token_every(ms(650))),
        ..Cast::default()
    };
    let late = Script::calls([Conduct::good(), Conduct::good().late(ms(4_500))]);
    let slow_voice = Cast {
        tts: Arc::new(ScriptedTts::new("tts").script(late)),
        ..storyteller()
    };
    for cast in [slow_model, slow_voice] {
        let mut builder = Builder::new(&cast, vec![says(first())]);
        // A user who waits out the pauses.
        builder.script.reply_timeout = Duration::from_mins(1);
        builder.script.hang_up_after = Duration::from_secs(20);
        let ended = builder.hold().await;
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.turn(1).agent_text_played, LONG);
        assert_eq!(output_gaps(&ended, Signal::BudgetWarning), 0);
    }
}

/// P13: how long a reply may be mute is the pipeline's to say, and part of the plan.
#[tokio::test(start_paused = true)]
async fn a_pipeline_sets_how_long_a_reply_may_be_mute() {
    for gap in [400, 3_000] {
        let ended = hanging(&storyteller(), false)
            .pipeline(move |spec| {
                spec.budgets.output_gap_ms = Some(gap);
                // A handler within its budget is at work.
                spec.budgets.node_budget_ms_default = Some(100);
            })
            .hold()
            .await;
        assert_eq!(ended.endings()[0], "node_timeout_or_failure");
        let began = ended.turn(1).anchors.assistant_audio_playback_started_ts;
        let exhausted = ended.log.signals_of(Signal::BudgetExhausted)[0].clone();
        let after = exhausted.envelope.runtime_timestamp_ms - began.unwrap().as_millis();
        let expected = 980 + gap;
        assert!(
            (expected - 20..=expected + 60).contains(&after),
            "{after} ms"
        );
    }
}
