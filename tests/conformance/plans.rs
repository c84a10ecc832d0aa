//! A turn runs the plan that it opened with, and leaves the evidence.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rspp_host::Notice;
use rspp_kernel::plan::{Layer, StreamingHandoff, profile};
use rspp_proto::{
    Payload, ProviderId,
    abi::Signal,
    spec::{Modality, Mode, PipelineSpec, PolicyBundle},
};
use rspp_provider_api::scripted::{ScriptedLlm, ScriptedVoice};
use rspp_tests::{
    call::{Builder, Cast, Ended, after_reply, first, over_reply, says},
    nodes::{insert, node},
};
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

/// F-118: a guard may keep the whole clause back as well; the audit tells what it did, and where, whether
/// somebody listens in or not.
#[tokio::test(start_paused = true)]
async fn a_guard_that_blocks_is_audited() {
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers(["Ask Acme now. They know all of it."])),
        ..Cast::default()
    };
    let guard = serde_json::json!({ "id": "guard", "kind": "guard",
        "config": { "terms": ["acme"], "action": "block", "instead": "I may not say." } });
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| insert(spec, "segmenter", node(guard), "tts"))
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    let heard = "I may not say. They know all of it.";
    assert_eq!(ended.turn(1).agent_text_played, heard);
    let said = format!("{:?} {:?}", ended.log.payloads(), ended.report).to_lowercase();
    assert!(
        !said.contains("ask acme"),
        "nobody is told what was kept back"
    );
    let audit = ended
        .log
        .notices()
        .into_iter()
        .find_map(|notice| match notice {
            Notice::Event(event) => match event.payload {
                Some(Payload::Debug(note)) if note.message == "guard" => {
                    Some((event.envelope, note))
                }
                _something_else => None,
            },
            _something_else => None,
        });
    let (envelope, note) = audit.expect("it is said");
    let by = envelope.node_id.map(|node| node.to_string());
    assert_eq!(by.as_deref(), Some("guard"));
    assert_eq!(envelope.turn_id, Some(ended.turn(1).turn_id.clone()));
    assert_eq!(
        (&*note.fields["action"], &*note.fields["found"]),
        ("block", "1")
    );
}

/// F-078, F-080, F-081: a running session says what it really runs: the graph with what a policy put there,
/// who serves each node, and every value with who decided it, the profile's own included.
#[tokio::test(start_paused = true)]
async fn a_running_session_says_what_it_really_runs() {
    let text = "schema: rspp.policy.bundle.v1\npolicy_resolution_snapshot: policy/compliance-1\n\
                allowed_adaptive_actions: [retry]\ninsert_nodes:\n  - { after: segmenter, carries: text, node: \
                { id: guard, kind: guard, config: { terms: [acme] } } }\n";
    let policy = PolicyBundle::parse("policy.yaml", text, Mode::Strict)
        .unwrap()
        .spec;
    let mut builder = Builder::new(&Cast::default(), vec![says(first())]);
    builder.policy = Some(policy);
    let call = builder.start().await;
    let before = call.session.effective();
    call.log.until(Signal::TurnOpen, 1).await;
    let during = call.session.effective();
    assert_eq!(before, during, "nothing was chosen otherwise");
    let ended = call.end().await;

    assert_eq!(during.session_id.as_str(), "call");
    let nodes = during.graph.nodes.iter();
    let inserted: Vec<_> = nodes
        .filter(|node| node.inserted_by_policy)
        .map(|node| node.id.as_str())
        .collect();
    assert_eq!(inserted, ["guard"]);
    assert!(
        during
            .graph
            .edges
            .iter()
            .any(|edge| edge.to.as_str() == "guard")
    );
    let bound = |node: &str| {
        let bindings = during.policy.node_bindings.iter();
        let found = bindings.into_iter().find(|(id, _)| id.as_str() == node);
        found.map(|(_, providers)| providers[0].to_string())
    };
    assert_eq!(bound("llm").as_deref(), Some("llm"));
    assert_eq!(during.policy.execution_profile.as_str(), "simple/v1");
    let coverage = during.policy.provenance_coverage();
    assert!((coverage - 1.0).abs() < f64::EPSILON, "{coverage}");
    let budgets = during.policy.origin("budgets/turn_budget_ms").unwrap();
    assert_eq!(budgets.layer, Layer::ExecutionProfile);
    // It is what the turn's plan says, and it can be handed on.
    let plan = &plans(&ended)[0].plan;
    assert_eq!(plan["policy_hash"], during.policy.policy_hash.as_str());
    let written = serde_json::to_value(&during).unwrap();
    assert_eq!(written["session_id"], "call");
    assert_eq!(written["policy"]["budgets"], plan["budgets"]);
}

/// F-079: the built-in template as it is written, and who serves it, are enough: what is said is understood,
/// answered and heard, within the turn's budget.
#[tokio::test(start_paused = true)]
async fn the_template_and_its_providers_are_enough_for_a_turn() {
    let template =
        PipelineSpec::parse("simple.yaml", PipelineSpec::simple_template(), Mode::Strict);
    let mut builder = Builder::new(&Cast::default(), vec![says(first())]);
    builder.pipeline = template.unwrap().spec;
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    let turn = ended.turn(1);
    assert_eq!(turn.user_text, "hello there");
    assert_eq!(turn.agent_text_played, "Good day to you. How can I help?");
    let budget = profile::budgets().turn_budget_ms;
    assert!(turn.first_audio_ms.is_some_and(|ms| ms <= budget as f64));
}
