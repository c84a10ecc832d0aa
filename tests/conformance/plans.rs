//! A turn runs the plan that it opened with, and leaves the evidence.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rspp_kernel::plan::{StreamingHandoff, profile};
use rspp_proto::{
    ProviderId,
    spec::{Modality, Mode, PolicyBundle},
};
use rspp_provider_api::scripted::{ScriptedLlm, ScriptedVoice};
use rspp_tests::call::{Builder, Cast, Ended, after_reply, first, over_reply, says};
use rspp_timeline::{Entry, HandoffAction, PlanEntry, TurnBaseline};

fn plans(ended: &Ended) -> Vec<&PlanEntry> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Plan(plan) => Some(&**plan),
            _something_else => None,
        })
        .collect()
}

fn evidence(ended: &Ended) -> Vec<&TurnBaseline> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Turn(baseline) => Some(&**baseline),
            _something_else => None,
        })
        .collect()
}

/// F-078, F-149: the report, the timeline's plan and the evidence speak of the same plan.
#[tokio::test(start_paused = true)]
async fn the_plan_of_a_turn_is_recorded_under_its_hash() {
    let ended = Builder::new(&Cast::default(), vec![says(first()), says(after_reply())])
        .hold()
        .await;
    let (plans, evidence) = (plans(&ended), evidence(&ended));
    assert_eq!((plans.len(), evidence.len()), (2, 2));
    for ((plan, baseline), report) in plans.iter().zip(evidence).zip(&ended.report.turns) {
        assert_eq!(plan.turn_id, report.turn_id);
        assert_eq!(plan.plan_hash, report.plan_hash);
        assert_eq!(baseline.plan_hash, report.plan_hash);
        assert_eq!(plan.plan["plan_hash"], report.plan_hash.as_str());
        assert_eq!(plan.plan["turn_id"], report.turn_id.as_str());
        assert_eq!(plan.plan["execution_profile"], "simple/v1");
    }
    assert_ne!(
        plans[0].plan_hash, plans[1].plan_hash,
        "the turn's id is part of its plan"
    );
}

/// Gate 5, OR-02: every accepted turn leaves complete evidence, however it ends.
#[tokio::test(start_paused = true)]
async fn every_accepted_turn_leaves_complete_evidence() {
    let said = vec![says(first()), says(over_reply(500)), says(after_reply())];
    let ended = Builder::new(&Cast::default(), said).hold().await;
    assert_eq!(ended.endings(), ["cancelled", "commit", "commit"]);
    let evidence = evidence(&ended);
    assert_eq!(evidence.len(), 3);
    for baseline in evidence {
        assert!(baseline.is_complete(), "{:?}", baseline.missing());
        assert!(baseline.turn_terminal_at >= baseline.turn_open_at);
        let modalities: Vec<_> = baseline
            .invocation_outcomes
            .iter()
            .map(|o| o.modality)
            .collect();
        assert!(modalities.contains(&Modality::Llm), "{modalities:?}");
        assert!(modalities.contains(&Modality::Tts), "{modalities:?}");
    }
}

/// F-017: another detector moves the boundaries of turns, and nothing else.
#[tokio::test(start_paused = true)]
async fn another_detector_moves_boundaries_and_nothing_else() {
    let cast = Cast::default();
    let ms = Duration::from_millis;
    let hold = async |detector: &str| {
        let mut builder = Builder::new(&cast, vec![says(first())]);
        // Hears the user begin later and fall silent earlier.
        let other = ScriptedVoice::by_timeline("vad-2", [ms(500)..ms(1_000)]);
        builder.providers.add_voice(Arc::new(other));
        let chosen = vec![ProviderId::new(detector).unwrap()];
        builder.settings.session.provider_bindings = BTreeMap::from([(Modality::Vad, chosen)]);
        builder.hold().await
    };
    let (usual, other) = (hold("vad").await, hold("vad-2").await);
    let ended_after = |ended: &Ended| {
        let anchors = &ended.turn(1).anchors;
        let stopped = anchors.speech_end_ts.expect("the user fell silent");
        stopped.since(ended.report.opened_at)
    };
    let earlier = ended_after(&usual).saturating_sub(ended_after(&other));
    assert!(earlier >= ms(280) && earlier <= ms(320), "{earlier:?}");
    assert_eq!(
        usual.turn(1).agent_text_played,
        other.turn(1).agent_text_played
    );
    assert_eq!(usual.signals(), other.signals());
    // The plans differ in the detector, and so in their hashes and seeds, alone.
    let strip = |ended: &Ended| {
        let mut plan = plans(ended)[0].plan.to_value();
        for field in [
            "plan_hash",
            "policy_hash",
            "provider_bindings",
            "node_bindings",
            "provider_capabilities",
            "provider_choices",
            "determinism",
            "provenance",
        ] {
            plan[field] = serde_json::Value::Null;
        }
        plan
    };
    assert!(
        strip(&usual) == strip(&other),
        "{}\n{}",
        strip(&usual),
        strip(&other)
    );
    assert_ne!(usual.turn(1).plan_hash, other.turn(1).plan_hash);
}

/// F-062, F-118: a policy's guard stands in the graph that the session runs, keeps words from being heard
/// and from being remembered, and says so.
#[tokio::test(start_paused = true)]
async fn a_guard_that_a_policy_inserts_is_heard() {
    let text = "schema: rspp.policy.bundle.v1\npolicy_resolution_snapshot: policy/compliance-1\n\
                allowed_adaptive_actions: [retry]\ninsert_nodes:\n  - { after: segmenter, carries: text, node: \
                { id: guard, kind: guard, config: { terms: [acme], instead: our partner } } }\n";
    let policy = PolicyBundle::parse("policy.yaml", text, Mode::Strict)
        .unwrap()
        .spec;
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers(["Ask Acme. They know."])),
        ..Cast::default()
    };
    let mut builder = Builder::new(&cast, vec![says(first())]);
    builder.policy = Some(policy.clone());
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(
        ended.turn(1).agent_text_played,
        "Ask our partner. They know."
    );
    let plan = &plans(&ended)[0].plan;
    let moved = plan["edge_buffer_policies"].as_object().unwrap();
    assert!(
        moved.contains_key("segmenter->guard:text") && moved.contains_key("segmenter->tts:text")
    );

    // Where the pipeline is not open to it, there is no session rather than one without a guard.
    let mut builder =
        Builder::new(&cast, vec![says(first())]).pipeline(|spec| spec.open_to_policy.clear());
    builder.policy = Some(policy);
    let runtime = builder.runtime().await;
    let refused = builder.open(&runtime).await.map(|_| ()).unwrap_err();
    assert!(
        refused.to_string().contains("does not leave open"),
        "{refused}"
    );
}

/// F-149, turn-plan.md §7: the frozen plan says when text goes on to the voice; each hand-over is evidence.
#[tokio::test(start_paused = true)]
async fn the_plan_says_when_text_is_handed_to_the_voice() {
    use HandoffAction::{FinalFallback, Forward};
    let reply = "Yes, sir. I will look at it now, and tell you.";
    let run = |change: fn(&mut StreamingHandoff)| {
        let pace = Duration::from_millis(100);
        let cast = Cast {
            llm: Arc::new(ScriptedLlm::new("llm").answers([reply]).token_every(pace)),
            ..Cast::default()
        };
        let mut builder = Builder::new(&cast, vec![says(first())]);
        let mut handoff = profile::streaming_handoff();
        change(&mut handoff);
        builder.settings.session.streaming_handoff = Some(handoff);
        builder.hold()
    };
    let streamed = run(|_| {}).await;
    let staged = run(|handoff| handoff.enabled = false).await;
    let long = run(|handoff| handoff.llm_to_tts.trigger_on_punctuation = false).await;
    let aged = run(|handoff| {
        handoff.llm_to_tts.trigger_on_punctuation = false;
        handoff.llm_to_tts.min_partial_chars = 14;
        handoff.llm_to_tts.max_partial_age_ms = 350;
    })
    .await;
    let actions = |ended: &Ended| -> Vec<HandoffAction> {
        let entries = ended.entries.iter();
        entries
            .filter_map(|entry| match entry {
                Entry::Handoff(handoff) => Some(handoff.action),
                _something_else => None,
            })
            .collect()
    };
    for ended in [&streamed, &staged, &long, &aged] {
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.turn(1).agent_text_played, reply);
    }
    assert_eq!(actions(&streamed), [Forward, Forward]);
    assert_eq!(actions(&staged)[0], FinalFallback);
    assert!(
        actions(&long).len() < actions(&aged).len(),
        "{:?} {:?}",
        actions(&long),
        actions(&aged)
    );
    let first_audio = |ended: &Ended| ended.turn(1).first_audio_ms.unwrap();
    assert!(first_audio(&streamed) < first_audio(&staged));
    assert!(first_audio(&aged) < first_audio(&long));
}
