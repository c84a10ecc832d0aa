//! The scripted providers pass the suites (F-055; providers.md §8).

use std::{sync::Arc, time::Duration};

use rspp_provider_api::{
    Fault, LanguageModel, OutcomeClass,
    conformance::{Failing, end_of_turn, llm, stt, tts, voice},
    conformance_tests,
    scripted::{
        Conduct, Script, ScriptedEndOfTurn, ScriptedLlm, ScriptedStt, ScriptedTts, ScriptedVoice,
    },
};

const TOKEN: Duration = Duration::from_millis(30);

fn faults() -> [(&'static str, Fault); 5] {
    [
        ("too slow", Fault::timeout("no answer in time")),
        ("overloaded", Fault::overload("try later", None)),
        ("refused", Fault::blocked("provider_client_error", "no")),
        ("server broken", Fault::server("status 500")),
        ("connection broken", Fault::transport("reset by peer")),
    ]
}

/// One provider a fault: at once, and in mid-stream.
fn failing<P: ?Sized>(make: impl Fn(Script) -> Arc<P>) -> Vec<Failing<P>> {
    let at = |after: u32| {
        faults().map(|(what, fault)| Failing {
            what,
            class: fault.class,
            provider: make(Script::always(Conduct::good().failing_after(after, fault))),
        })
    };
    at(0).into_iter().chain(at(1)).collect()
}

fn llm_subject() -> llm::Subject {
    let make = || {
        ScriptedLlm::new("llm-scripted")
            .token_every(TOKEN)
            .answers(["One two three four five six seven eight nine ten eleven twelve."])
    };
    llm::Subject {
        failing: failing(|script| Arc::new(make().script(script)) as Arc<dyn LanguageModel>),
        ..llm::Subject::new(Arc::new(make()))
    }
}

fn stt_subject() -> stt::Subject {
    let make = || {
        ScriptedStt::new("stt-scripted")
            .utterances(["please book a table"])
            .confidence(0.9)
            .final_after(TOKEN)
    };
    stt::Subject {
        words: vec!["book".to_owned(), "table".to_owned()],
        failing: failing(|script| Arc::new(make().script(script)) as _),
        ..stt::Subject::new(Arc::new(make()))
    }
}

fn tts_subject() -> tts::Subject {
    let make = || ScriptedTts::new("tts-scripted").real_time_factor(0.1);
    tts::Subject {
        failing: failing(|script| Arc::new(make().script(script)) as _),
        ..tts::Subject::new(Arc::new(make()))
    }
}

fn voice_subject() -> voice::Subject {
    voice::Subject {
        failing: vec![Failing {
            what: "no model file",
            provider: Arc::new(
                ScriptedVoice::by_energy("vad-scripted").refusing(Fault::model("no model file")),
            ),
            class: OutcomeClass::InfrastructureFailure,
        }],
        ..voice::Subject::new(Arc::new(ScriptedVoice::by_energy("vad-scripted")))
    }
}

fn end_of_turn_subject() -> end_of_turn::Subject {
    end_of_turn::Subject {
        failing: vec![Failing {
            what: "no model file",
            provider: Arc::new(
                ScriptedEndOfTurn::always("eot-scripted", 1.0)
                    .refusing(Fault::model("no model file")),
            ),
            class: OutcomeClass::InfrastructureFailure,
        }],
        ..end_of_turn::Subject::new(Arc::new(ScriptedEndOfTurn::answering(
            "eot-scripted",
            [0.2, 0.9],
        )))
    }
}

conformance_tests! {
    #[tokio::test(start_paused = true)]
    mod scripted_llm: llm = llm_subject();
}
conformance_tests! {
    #[tokio::test(start_paused = true)]
    mod scripted_stt: stt = stt_subject();
}
conformance_tests! {
    #[tokio::test(start_paused = true)]
    mod scripted_tts: tts = tts_subject();
}
conformance_tests! {
    #[tokio::test(start_paused = true)]
    mod scripted_voice: voice = voice_subject();
}
conformance_tests! {
    #[tokio::test(start_paused = true)]
    mod scripted_end_of_turn: end_of_turn = end_of_turn_subject();
}

/// One provider instance also passes all categories in a row.
#[tokio::test(start_paused = true)]
async fn all_categories_run_on_one_instance() {
    llm::run_all(&llm_subject()).await;
    stt::run_all(&stt_subject()).await;
    tts::run_all(&tts_subject()).await;
    voice::run_all(&voice_subject()).await;
    end_of_turn::run_all(&end_of_turn_subject()).await;
}
