//! Time budgets: what is late is said, what takes too long is ended.

use std::{sync::Arc, time::Duration};

use rspp_host::{Event, node::NodeContext, node::Step};
use rspp_proto::abi::Signal;
use rspp_provider_api::scripted::{Conduct, Script, ScriptedLlm, ScriptedTts};
use rspp_tests::{
    call::{Builder, Cast, Ended, LONG, first, says},
    nodes::{Probes, custom, insert},
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// F-045: a turn whose first output is late but on its way goes on; warning and exhaustion are
/// said once each.
#[tokio::test(start_paused = true)]
async fn a_late_first_output_is_warned_of_and_waited_for() {
    let late = Script::calls([Conduct::good().late(ms(2_600))]);
    let cast = Cast {
        tts: Arc::new(ScriptedTts::new("tts").script(late)),
        ..Cast::default()
    };
    let ended = Builder::new(&cast, vec![says(first())]).hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(told(&ended, "turn_budget"), [1, 1]);
    assert!(ended.turn(1).first_audio_ms.is_some_and(|ms| ms > 2_600.0));
}

/// F-045, T10: a turn may not run for longer than its plan allows.
#[tokio::test(start_paused = true)]
async fn a_turn_that_never_ends_is_ended() {
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG])),
        ..Cast::default()
    };
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| spec.budgets.max_turn_duration_ms = Some(1_500))
        .hold()
        .await;
    assert_eq!(ended.endings(), ["budget_exhausted"]);
    assert_eq!(ended.log.signals_of(Signal::BudgetExhausted).len(), 1);
    let heard = ended.heard()[0];
    assert!(heard.cut);
    let lasted = heard.length();
    assert!(lasted <= ms(1_520), "{lasted:?}");
    let turn = ended.turn(1);
    assert!(turn.agent_text.starts_with(&turn.agent_text_played));
    assert!(!turn.agent_text_played.is_empty());
}

/// P14: a pipeline may allow its turns more or less time than the profile.
#[tokio::test(start_paused = true)]
async fn a_pipeline_sets_its_own_budget() {
    for budget in [300, 3_000] {
        let stall = || Conduct::good().stalling_after(0);
        let cast = Cast {
            llm: Arc::new(ScriptedLlm::new("llm").script(Script::always(stall()))),
            ..Cast::default()
        };
        let ended = Builder::new(&cast, vec![says(first())])
            .pipeline(|spec| {
                spec.budgets.turn_budget_ms = Some(budget);
                spec.budgets.path_budget_ms_default = Some(budget);
            })
            .hold()
            .await;
        assert_eq!(ended.endings(), ["budget_exhausted"]);
        let anchors = &ended.turn(1).anchors;
        let opened = anchors
            .turn_open_emitted_ts
            .expect("the turn opened")
            .as_millis();
        let exhausted = ended.log.signals_of(Signal::BudgetExhausted)[0].clone();
        let waited = exhausted.envelope.runtime_timestamp_ms - opened;
        assert!(
            waited >= budget - 1 && waited <= budget + 5,
            "{waited} of {budget}"
        );
    }
}

/// How often a budget was said to run low, and to be spent.
fn told(ended: &Ended, reason: &str) -> [usize; 2] {
    [Signal::BudgetWarning, Signal::BudgetExhausted].map(|kind| {
        let reasons = ended.log.reasons_of(kind);
        reasons.iter().filter(|told| *told == reason).count()
    })
}

fn set(node: &'static str, budget_ms: u64) -> impl FnOnce(&mut rspp_proto::spec::PipelineSpec) {
    move |spec| {
        let node = spec.nodes.iter_mut().find(|it| it.id.as_str() == node);
        node.unwrap().budget_ms = Some(budget_ms);
    }
}

/// F-045, F-046: a node that asks a provider is held to its budget by when the answer begins: what is late is
/// warned of and told when it is spent, and waited for if there is nobody else.
#[tokio::test(start_paused = true)]
async fn a_budget_of_a_node_that_asks_a_provider_is_told_of() {
    let late = || Script::calls([Conduct::good().late(ms(300))]);
    // Each is late once.
    let slow = || Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG]).script(late())),
        tts: Arc::new(ScriptedTts::new("tts").script(late())),
        ..Cast::default()
    };
    for node in ["llm", "tts"] {
        for (budget, expected) in [(50, [1, 1]), (350, [1, 0]), (5_000, [0, 0])] {
            let call = Builder::new(&slow(), vec![says(first())]);
            let ended = call.pipeline(set(node, budget)).hold().await;
            assert_eq!(ended.endings(), ["commit"], "{node} {budget}");
            assert_eq!(told(&ended, "provider_budget"), expected, "{node} {budget}");
        }
    }
}

/// A call whose clauses go through a node that takes 100 ms for each.
fn slow_node() -> Builder {
    let mut probes = Probes::default();
    probes.add("slow", |_nth, cx: &mut NodeContext, event: Event| {
        Step::Wait(Box::pin(async move {
            tokio::time::sleep(ms(100)).await;
            cx.forward(event);
            Ok(())
        }))
    });
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers(["One. Two. Three. Four. Five. Six."])),
        ..Cast::default()
    };
    Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| insert(spec, "segmenter", custom("slow"), "tts"))
        .configure(probes.install())
}

/// F-045: words that wait on an edge for longer than its budget are told of, with the edge; what a line that
/// plays no faster than one speaks holds back is not.
#[tokio::test(start_paused = true)]
async fn words_that_wait_too_long_on_an_edge_are_told_of() {
    let ended = slow_node()
        .pipeline(|spec| spec.budgets.edge_budget_ms_default = Some(150))
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(told(&ended, "edge_budget")[1], 1);
    let signals = ended.log.signals_of(Signal::BudgetExhausted);
    let edge = signals[0].envelope.edge_id.as_ref().unwrap();
    assert_eq!(edge.as_str(), "segmenter->slow:text");

    let long = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([[LONG; 6].join(" ")])),
        ..Cast::default()
    };
    let mut builder = Builder::new(&long, vec![says(first())]);
    builder.script.reply_timeout = Duration::from_mins(2);
    builder.script.hang_up_after = Duration::from_mins(2);
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(told(&ended, "edge_budget"), [0, 0]);
}

/// F-045, turn-plan §3: the way from the user's words to the first that is heard of the answer has a budget
/// of its own, which is told of and ends nothing.
#[tokio::test(start_paused = true)]
async fn the_path_of_an_answer_has_a_budget() {
    for (budget, expected) in [(50, [1, 1]), (1_800, [0, 0])] {
        let ended = slow_node()
            .pipeline(|spec| spec.budgets.path_budget_ms_default = Some(budget))
            .hold()
            .await;
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(told(&ended, "path_budget"), expected);
    }
}
