//! A model that was switched away from says nothing more, however deaf it is.

use std::{sync::Arc, time::Duration};

use rspp_kernel::plan::{Health, News, ProviderNews};
use rspp_proto::{
    ProviderId, Speaker,
    abi::Signal,
    spec::{CallPolicy, Modality},
};
use rspp_provider_api::scripted::{Conduct, Script, ScriptedLlm};
use rspp_tests::{
    call::{Builder, Cast, Ended, LONG, first, over_reply, says},
    nodes::{Probes, words},
};
use rspp_timeline::Entry;
use rspp_transport_api::loopback::Utterance;

/// What the model says that takes over.
const NEW: &str = "It is the other one.";

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn id(id: &str) -> ProviderId {
    ProviderId::new(id).unwrap()
}

/// An old model of that conduct, which hears no cancel, and a new one.
fn call(conduct: Conduct, said: Vec<Utterance>) -> (Builder, Arc<ScriptedLlm>) {
    let script = Script::always(conduct.deaf());
    let old = ScriptedLlm::new("old").answers([LONG]).token_every(ms(60));
    let old = Arc::new(old.script(script));
    let mut builder = Builder::new(&Cast::default(), said);
    builder.providers.add_llm(old.clone());
    builder
        .providers
        .add_llm(Arc::new(ScriptedLlm::new("new").answers([NEW])));
    let bound = &mut builder.settings.defaults.provider_bindings;
    bound.insert(Modality::Llm, ["old", "new"].map(id).into());
    (builder, old)
}

/// Everything that a turn has said, shown and remembered is the new model's.
#[track_caller]
fn assert_only_the_new_one(ended: &Ended, turn: u32) {
    let report = ended.turn(turn);
    assert_eq!(report.outcome, "commit");
    assert_eq!(report.agent_text, NEW);
    assert_eq!(report.agent_text_played, NEW);
    let mut of_turn = ended.entries.iter().filter_map(|entry| match entry {
        Entry::Invocation(call) if call.modality == Modality::Llm => Some(call),
        _another_entry => None,
    });
    let last = of_turn.next_back().expect("a model was asked");
    assert_eq!(last.provider_id.as_str(), "new");
}

/// P6, F-133: a model that is given up for its silence is switched away from within the turn; when its
/// words come after all, none of them is spoken, shown or remembered, though it does not stop.
#[tokio::test(start_paused = true)]
async fn late_words_of_a_model_that_was_given_up_go_nowhere() {
    for late in [400, 600, 900, 1_500] {
        let (builder, old) = call(Conduct::good().late(ms(late)), vec![says(first())]);
        let ended = builder
            .pipeline(|spec| {
                let model = spec.nodes.iter_mut().find(|it| it.id.as_str() == "llm");
                let config = &mut model.unwrap().config;
                // A local provider gets five times as long.
                config.insert("first_byte_ms".into(), 60.into());
                spec.providers.calls = Some(Box::new(CallPolicy {
                    attempts_per_provider: 1,
                    ..CallPolicy::default()
                }));
            })
            .hold()
            .await;
        assert_eq!(
            ended.log.reasons_of(Signal::ProviderSwitch),
            ["from=old to=new"]
        );
        assert_only_the_new_one(&ended, 1);
        let spoken: String = ended
            .log
            .texts(Speaker::Agent)
            .iter()
            .map(|text| text.text.to_string())
            .collect();
        assert!(!spoken.contains("Well"), "{late}: {spoken}");
        assert_eq!(old.tally().running(), 0, "{late}");
    }
}

/// P6, P14: of two models that speak at the same time, since the first was slow, only the first to speak
/// is heard: words of both never mix, whichever it is and however close they are.
#[tokio::test(start_paused = true)]
async fn words_of_two_models_never_mix() {
    for late in [340, 350, 360, 380, 420] {
        let (builder, _old) = call(Conduct::good().late(ms(late)), vec![says(first())]);
        let ended = builder
            .pipeline(|spec| {
                spec.providers.calls = Some(Box::new(CallPolicy {
                    hedge_after_ms: [(Modality::Llm, 350)].into(),
                    ..CallPolicy::default()
                }));
            })
            .hold()
            .await;
        let said = &ended.turn(1).agent_text;
        assert!(said == LONG || said == NEW, "{late}: {said:?}");
        assert_eq!(&ended.turn(1).agent_text_played, said, "{late}");
    }
}

/// P6: an operator switches models in the middle of a reply: the reply goes on as it was, and when the user
/// interrupts it, the next one is the new model's alone, while the old one still streams.
#[tokio::test(start_paused = true)]
async fn a_model_that_still_streams_is_not_heard_in_the_next_turn() {
    let (builder, old) = call(Conduct::good(), vec![says(first()), says(over_reply(600))]);
    let call = builder.start().await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    let unhealthy = ProviderNews {
        health: Health::Unhealthy,
        price_micros: None,
    };
    let news: News = [((Modality::Llm, id("old")), unhealthy)].into();
    call.runtime.provider_board().publish(news);
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert!(LONG.starts_with(&ended.turn(1).agent_text_played));
    assert_only_the_new_one(&ended, 2);
    assert_eq!(old.tally().running(), 0);
}

/// P6, F-007: a standby that takes over in the middle of an answer: what the node before it still sends
/// is not routed any more.
#[tokio::test(start_paused = true)]
async fn what_a_replaced_node_still_sends_is_not_routed() {
    use rspp_host::{
        Event,
        node::{NodeContext, NodeError, Step},
    };
    use rspp_tests::nodes::{branch, custom};
    use serde_json::json;

    let mut probes = Probes::default();
    probes.source("source", |nth, cx| cx.emit(words(nth, "word", false)));
    // Slower and slower, until its time is up; then it goes on as if nothing had happened.
    probes.add("old", |nth, cx: &mut NodeContext, event: Event| {
        Step::Wait(Box::pin(async move {
            if nth == 30 {
                tokio::time::sleep(ms(400)).await;
                for n in 0..20 {
                    cx.emit(words(n, "of the old one", false));
                }
            }
            cx.forward(event);
            Ok::<(), NodeError>(())
        }))
    });
    probes.add("standby", |_nth, cx: &mut NodeContext, event: Event| {
        cx.forward(event);
        Step::OK
    });
    let (taken, _) = probes.sink("sink", Duration::ZERO);
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            branch(
                spec,
                "source",
                &[json!({ "from": "source", "to": "old", "carries": "text" })],
            );
            spec.nodes.push(custom("standby"));
            spec.nodes.push(custom("sink"));
            let old = spec
                .nodes
                .iter_mut()
                .find(|it| it.id.as_str() == "old")
                .unwrap();
            old.fallback = Some("standby".parse().unwrap());
            old.budget_ms = Some(150);
            spec.edges.push(rspp_tests::nodes::edge(
                json!({ "from": "old", "to": "sink", "carries": "text" }),
            ));
        })
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.log.signals_of(Signal::Fallback).len(), 1);
    let events = taken.events();
    let texts = events.iter().filter_map(|(_, event)| match &event.payload {
        rspp_proto::Payload::Text(text) => Some(text.text.to_string()),
        _the_end => None,
    });
    let old = texts
        .clone()
        .filter(|text| text == "of the old one")
        .count();
    assert_eq!(old, 0, "of a node that has been replaced");
    assert!(texts.count() > 100, "the standby goes on");
    let sequences = taken.sequences();
    assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
}
