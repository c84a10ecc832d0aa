//! A turn runs the plan that it opened with, and leaves the evidence.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rspp_proto::{ProviderId, spec::Modality};
use rspp_provider_api::scripted::ScriptedVoice;
use rspp_tests::call::{Builder, Cast, Ended, after_reply, first, over_reply, says};
use rspp_timeline::{Entry, PlanEntry, TurnBaseline};

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
        let mut plan = plans(ended)[0].plan.clone();
        for field in [
            "plan_hash",
            "policy_hash",
            "provider_bindings",
            "node_bindings",
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
