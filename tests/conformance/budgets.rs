//! Time budgets: what is late is said, what takes too long is ended.

use std::{sync::Arc, time::Duration};

use rspp_proto::abi::Signal;
use rspp_provider_api::scripted::{Conduct, Script, ScriptedLlm, ScriptedTts};
use rspp_tests::call::{Builder, Cast, LONG, first, says};

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
    let warnings = ended.log.reasons_of(Signal::BudgetWarning);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(
        ended.log.reasons_of(Signal::BudgetExhausted),
        ["turn_budget"]
    );
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
            .pipeline(|spec| spec.budgets.turn_budget_ms = Some(budget))
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
