//! How much generated text is ahead of the voice: bounded, folded, on signal or on credit (turn-plan.md §7).

use std::{sync::Arc, time::Duration};

use rspp_kernel::{
    handoff::{LLM_TO_TTS, STT_TO_LLM},
    plan::{Handoff, profile},
};
use rspp_proto::{
    abi::{ControlSignal, Emitter, Signal},
    spec::{FlowMode, PolicyBundle},
};
use rspp_provider_api::scripted::{
    Conduct, Script, ScriptedEndOfTurn, ScriptedLlm, ScriptedStt, ScriptedTts,
};
use rspp_tests::{
    call::{Builder, Cast, Ended, first, over_reply, says},
    nodes::{insert, node},
};
use rspp_timeline::{Anchor, Entry, HandoffAction, HandoffRecord};
use rspp_transport_api::loopback::Start;
use serde_json::json;

const TALE: &str = "There once was a king. He had three sons. The first was brave. The second was clever. \
    The third was kind. One day the king fell ill. He called his sons. They came at once. He spoke to each.";

/// A voice that is as fast as it speaks, and a model that says all at once.
fn cast(answers: &[&'static str]) -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers(answers.to_vec())),
        tts: Arc::new(ScriptedTts::new("tts").real_time_factor(1.0)),
        ..Cast::default()
    }
}

/// A call under the usual hand-off, changed.
fn call(cast: &Cast, change: impl FnOnce(&mut Handoff)) -> Builder {
    let mut builder = Builder::new(cast, vec![says(first())]);
    let mut handoff = profile::streaming_handoff();
    handoff.llm_to_tts.max_pending_segments = 2;
    change(&mut handoff.llm_to_tts);
    builder.settings.session.streaming_handoff = Some(handoff);
    builder.script.reply_timeout = Duration::from_mins(1);
    builder
}

fn under(mut builder: Builder, mode: FlowMode) -> Builder {
    let mut flow = profile::flow_control();
    flow.data_mode = mode;
    builder.settings.session.flow_control = Some(flow);
    builder
}

fn handoffs(ended: &Ended) -> Vec<&HandoffRecord> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Handoff(handoff) => Some(&**handoff),
            _something_else => None,
        })
        .collect()
}

/// A call whose recognition tells each word as it comes, and the whole after 400 ms of thought; the model
/// thinks for 300 ms before its first word.
fn spoken(finals: &'static str, change: impl FnOnce(&mut Handoff)) -> (Cast, Builder) {
    let late = Conduct::good().late(Duration::from_millis(300));
    let cast = Cast {
        stt: Arc::new(
            ScriptedStt::new("stt")
                .utterances([finals])
                .word_every(Duration::from_millis(200))
                .final_after(Duration::from_millis(400)),
        ),
        llm: Arc::new(
            ScriptedLlm::new("llm")
                .answers(["It is noon."])
                .script(Script::always(late)),
        ),
        ..Cast::default()
    };
    let mut builder = Builder::new(&cast, vec![says(first())]);
    let mut handoff = profile::streaming_handoff();
    handoff.stt_to_llm.enabled = true;
    handoff.stt_to_llm.min_partial_chars = 8;
    change(&mut handoff.stt_to_llm);
    builder.settings.session.streaming_handoff = Some(handoff);
    (cast, builder)
}

fn of_words(ended: &Ended) -> Vec<&HandoffRecord> {
    let mut all = handoffs(ended);
    all.retain(|it| it.handoff_id.contains("stt_to_llm"));
    all
}

/// F-149, P9, turn-plan.md §7: what the user says is handed to the model while it is said, as the frozen plan
/// has it; the answer is begun before the last word is certain and is heard earlier. The evidence says which
/// revision was answered, when it came and when the model had it.
#[tokio::test(start_paused = true)]
async fn words_are_answered_before_the_last_is_certain() {
    let (_, staged) = spoken("what is the time", |words| words.enabled = false);
    let staged = staged.hold().await;
    assert_eq!(of_words(&staged), Vec::<&HandoffRecord>::new());
    let (cast, ahead) = spoken("what is the time", |_| {});
    let ahead = ahead.hold().await;
    for ended in [&staged, &ahead] {
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.report.turns[0].user_text, "what is the time");
        assert_eq!(ended.report.turns[0].agent_text_played, "It is noon.");
    }
    let first_audio = |ended: &Ended| ended.report.turns[0].first_audio_ms.unwrap();
    let saved = first_audio(&staged) - first_audio(&ahead);
    assert!(saved >= 250.0, "{saved} ms earlier");
    assert_eq!(ahead.report.speculation.promoted, 1);

    let words = of_words(&ahead);
    let [answered] = words[..] else {
        panic!("{words:?}")
    };
    assert_eq!(answered.turn_id, ahead.report.turns[0].turn_id);
    assert_eq!(
        answered
            .edge_id
            .as_str()
            .split("->")
            .last()
            .map(|it| it.starts_with("llm")),
        Some(true)
    );
    assert!(answered.partial_accepted_at <= answered.downstream_started_at);
    let anchors = &ahead.report.turns[0].anchors;
    let transcript = anchors.get(Anchor::TranscriptFinal).unwrap();
    assert!(
        answered.downstream_started_at < transcript,
        "before all was certain"
    );
    assert!(cast.is_idle());
    let plan = ahead.entries.iter().find_map(|entry| match entry {
        Entry::Plan(plan) => Some(plan),
        _another_entry => None,
    });
    let plan = &plan.unwrap().plan;
    let decided = plan.at("streaming_handoff/stt_to_llm/enabled");
    assert_eq!(decided, Some(&true.into()));
}

/// turn-plan.md §7: words that change in the end supersede what was handed over, nothing of which is heard;
/// what is never worth it is handed over when it is whole.
#[tokio::test(start_paused = true)]
async fn words_that_change_in_the_end_supersede_what_was_answered() {
    let (_, unworthy) = spoken("what is the time", |words| {
        words.min_partial_chars = 500;
        words.trigger_on_punctuation = false;
        words.max_partial_age_ms = 60_000;
    });
    let unworthy = unworthy.hold().await;
    let actions =
        |ended: &Ended| -> Vec<_> { of_words(ended).iter().map(|it| it.action).collect() };
    assert_eq!(actions(&unworthy), [HandoffAction::FinalFallback]);
    assert_eq!(unworthy.report.speculation.begun, 0);

    let (cast, mut changed) = spoken("what is the time", |_| {});
    // After a pause the user goes on, and what was said is more than what was answered.
    changed = changed.pipeline(|spec| spec.turns.max_turn_silence_ms = 2_000);
    changed.script.utterances = vec![says(first()), says(Start::At(Duration::from_millis(2_200)))];
    changed.providers = Cast {
        stt: Arc::new(
            ScriptedStt::new("stt")
                .utterances(["what is the time", "in the town"])
                .word_every(Duration::from_millis(200))
                .final_after(Duration::from_millis(400)),
        ),
        llm: Arc::new(ScriptedLlm::new("llm").answer_with(|request| {
            let asked = request.messages.last().map(|it| it.content.as_str());
            format!("You said {}.", asked.unwrap_or_default())
        })),
        end_of_turn: Arc::new(ScriptedEndOfTurn::always("eot", 0.2)),
        ..cast
    }
    .providers();
    let changed = changed.hold().await;
    assert_eq!(changed.endings(), ["commit"]);
    assert!(changed.report.speculation.begun >= 1);
    assert_eq!(
        changed.report.turns[0].agent_text_played,
        "You said what is the time in the town."
    );
    assert_eq!(actions(&changed).last(), Some(&HandoffAction::Supersede));
}

/// turn-plan.md §7: an utterance has no more revisions handed over than the plan allows, and that is said.
#[tokio::test(start_paused = true)]
async fn revisions_of_an_utterance_are_bounded() {
    let (_, builder) = spoken("what is the time in the town by the sea", |words| {
        words.min_partial_chars = 1;
        words.max_pending_revisions = 2;
    });
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert!(
        ended.report.speculation.begun <= 2,
        "{:?}",
        ended.report.speculation
    );
    let told: Vec<_> = ended
        .log
        .signals()
        .into_iter()
        .filter(|signal| {
            let edge = signal.envelope.edge_id.as_ref();
            edge.is_some_and(|edge| edge.as_str() == STT_TO_LLM)
        })
        .map(|signal| signal.signal)
        .collect();
    assert_eq!(told, [Signal::Watermark, Signal::FlowXoff, Signal::FlowXon]);
    let words = of_words(&ended);
    assert_eq!(words[0].action, HandoffAction::Supersede);
}

/// Signals of the hand-over, in order.
fn signals(ended: &Ended) -> Vec<ControlSignal> {
    let mut signals = ended.log.signals();
    signals.retain(|signal| {
        let edge = signal.envelope.edge_id.as_ref();
        edge.is_some_and(|edge| edge.as_str() == LLM_TO_TTS)
    });
    signals
}

fn names(signals: &[ControlSignal]) -> Vec<Signal> {
    signals.iter().map(|signal| signal.signal).collect()
}

/// F-128, F-145, turn-plan.md §7: no more segments are ahead of the voice than the plan allows; the stages
/// tell each other to stop and to go, with the edge and the reasons of event-abi.md §4; nothing is lost.
#[tokio::test(start_paused = true)]
async fn no_more_text_is_ahead_of_the_voice_than_allowed() {
    let cast = cast(&[TALE]);
    let ended = call(&cast, |handoff| handoff.coalesce_latest_only = false)
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, TALE);
    let handoffs = handoffs(&ended);
    assert_eq!(handoffs.len(), 9, "sentence by sentence");
    assert!(handoffs.iter().all(|handoff| handoff.queue_depth <= 2));
    assert!(handoffs.iter().any(|handoff| handoff.watermark_high));
    // It waited for the voice, which takes over a second for each of them.
    let last = handoffs[8].downstream_started_at;
    assert!(last.since(handoffs[0].downstream_started_at) > Duration::from_secs(5));

    let signals = signals(&ended);
    assert_eq!(
        names(&signals)[..4],
        [
            Signal::Watermark,
            Signal::FlowXoff,
            Signal::FlowXon,
            Signal::Watermark
        ]
    );
    for signal in &signals {
        let expected = match signal.signal {
            Signal::Watermark => (Emitter::WatermarkEngine, Some("edge_watermark_high")),
            Signal::FlowXoff => (Emitter::FlowControl, Some("backpressure_asserted")),
            Signal::FlowXon => (Emitter::FlowControl, None),
            other => panic!("{other}"),
        };
        let reason = signal.reason.as_ref().map(ToString::to_string);
        assert_eq!((signal.emitted_by, reason.as_deref()), expected);
    }
}

/// F-128, turn-plan.md §7: where the plan says so, what has to wait goes on as one segment; its words are
/// the same.
#[tokio::test(start_paused = true)]
async fn what_waits_for_the_voice_is_folded() {
    let cast = cast(&[TALE]);
    let ended = call(&cast, |_| {}).hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, TALE);
    let handoffs = handoffs(&ended);
    assert!(handoffs.len() < 6, "{handoffs:#?}");
    let actions = handoffs.iter().map(|handoff| handoff.action);
    assert!(actions.clone().any(|it| it == HandoffAction::Coalesce));
    let mut first = actions.take(2);
    assert!(first.all(|it| it == HandoffAction::Forward));
    assert!(handoffs.iter().all(|handoff| handoff.queue_depth <= 2));
    assert_eq!(cast.tts.tally().calls as usize, handoffs.len());
}

/// F-145, F-148, turn-plan.md §7: under `credit` the voice grants what it takes, `hybrid` says both; without
/// signals the same bound holds in silence.
#[tokio::test(start_paused = true)]
async fn the_voice_grants_what_it_takes() {
    for (mode, says_so) in [
        (FlowMode::Credit, true),
        (FlowMode::Hybrid, true),
        (FlowMode::Credit, false),
        (FlowMode::Signal, false),
    ] {
        let cast = cast(&[TALE]);
        let builder = call(&cast, |handoff| {
            handoff.coalesce_latest_only = false;
            handoff.emit_flow_control_signals = says_so;
        });
        let ended = under(builder, mode).hold().await;
        assert_eq!(ended.turn(1).agent_text_played, TALE, "{mode:?}");
        let handoffs = handoffs(&ended);
        assert_eq!(handoffs.len(), 9);
        assert!(handoffs.iter().all(|handoff| handoff.queue_depth <= 2));
        let signals = signals(&ended);
        if !says_so {
            assert_eq!(signals, []);
            continue;
        }
        let grants = signals.iter().filter(|it| it.signal == Signal::CreditGrant);
        let amounts: Vec<_> = grants.filter_map(|grant| grant.amount).collect();
        // Two to begin with, then as many as were taken: enough for all nine.
        assert_eq!(amounts[0], 2);
        let granted: u64 = amounts.iter().sum();
        assert!((9..=2 + 9).contains(&granted), "{mode:?}: {amounts:?}");
        let stops = names(&signals).contains(&Signal::FlowXoff);
        assert_eq!(stops, mode == FlowMode::Hybrid);
    }
}

/// F-048, turn-plan.md §7: a voice that falls behind makes the rest of the turn go stage by stage, where
/// the plan says so and allows it; the next turn begins anew.
#[tokio::test(start_paused = true)]
async fn a_voice_that_falls_behind_makes_the_turn_go_stage_by_stage() {
    let policy: PolicyBundle = serde_json::from_value(json!({
        "schema": "rspp.policy.bundle.v1", "policy_resolution_snapshot": "policy/test",
        "allowed_adaptive_actions": ["degrade"] }))
    .unwrap();
    let paced = |degrades: bool| {
        let cast = Cast {
            llm: Arc::new(
                ScriptedLlm::new("llm")
                    .answers([TALE])
                    .token_every(Duration::from_millis(50)),
            ),
            ..cast(&[])
        };
        let mut builder = call(&cast, |handoff| {
            handoff.coalesce_latest_only = false;
            handoff.degrade_on_threshold_breach = degrades;
        });
        builder.policy = Some(policy.clone());
        builder.hold()
    };
    let (streamed, staged) = (paced(false).await, paced(true).await);
    for ended in [&streamed, &staged] {
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.turn(1).agent_text_played, TALE);
    }
    assert!(!names(&signals(&streamed)).contains(&Signal::Degrade));
    let said = signals(&staged);
    let degrades: Vec<_> = said
        .iter()
        .filter(|it| it.signal == Signal::Degrade)
        .collect();
    assert_eq!(degrades.len(), 1);
    assert_eq!(degrades[0].emitted_by, Emitter::WatermarkEngine);
    let reason = degrades[0].reason.as_ref().map(ToString::to_string);
    assert_eq!(reason.as_deref(), Some("edge_watermark_high"));
    // After the breach nothing goes on before all of the text is there.
    let actions: Vec<_> = handoffs(&staged).iter().map(|it| it.action).collect();
    let breach = actions
        .iter()
        .position(|action| *action == HandoffAction::FinalFallback)
        .unwrap();
    assert!((2..5).contains(&breach), "{actions:?}");
    let (before, after) = actions.split_at(breach);
    assert!(before.iter().all(|it| *it == HandoffAction::Forward));
    // The last sentence is what is left when the text is cut.
    let cut = &after[..after.len() - 1];
    assert!(
        cut.iter().all(|it| *it == HandoffAction::FinalFallback),
        "{actions:?}"
    );

    // Where nothing may be degraded, no such plan is made.
    let cast = cast(&[TALE]);
    let mut builder = call(&cast, |handoff| handoff.degrade_on_threshold_breach = true);
    let runtime = builder.runtime().await;
    let refused = builder.open(&runtime).await.err().unwrap().to_string();
    assert!(
        refused.contains("llm_to_tts.degrade_on_threshold_breach")
            && refused.contains("allowed_adaptive_actions"),
        "{refused}"
    );
}

/// F-118, F-044: segments that a guard keeps from the voice are never taken; the turn goes on all the same.
#[tokio::test(start_paused = true)]
async fn what_a_guard_keeps_from_the_voice_does_not_hold_the_rest_up() {
    let cast = cast(&["Acme is first. Acme is best. Acme is ours. That is all."]);
    let ended = call(&cast, |handoff| {
        handoff.max_pending_segments = 1;
        handoff.coalesce_latest_only = false;
        handoff.max_partial_age_ms = 500;
    })
    .pipeline(|spec| {
        let guard = json!({ "id": "guard", "kind": "guard",
                            "config": { "terms": ["acme"], "action": "block" } });
        insert(spec, "segmenter", node(guard), "tts");
    })
    .hold()
    .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, "That is all.");
}

/// F-038, F-033: what waits for the voice when the user interrupts is said in no turn.
#[tokio::test(start_paused = true)]
async fn what_waits_for_the_voice_is_forgotten_with_its_turn() {
    let cast = cast(&[TALE, "As you wish. I am silent. I am. Really. I mean it."]);
    let mut builder = call(&cast, |_| {});
    builder.script.utterances.push(says(over_reply(2_000)));
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_eq!(
        ended.turn(2).agent_text_played,
        "As you wish. I am silent. I am. Really. I mean it."
    );
}
