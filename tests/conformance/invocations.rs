//! Provider calls: an id, a scope and one normalised outcome each.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rspp_proto::{InvocationId, OutcomeClass, spec::Modality};
use rspp_provider_api::{
    Fault,
    scripted::{Conduct, Script, ScriptedLlm, ScriptedStt, ScriptedTts},
};
use rspp_tests::call::{Builder, Cast, Ended, REPLY, first, says};
use rspp_timeline::{AttemptRecord, Entry, InvocationOutcome};

fn outcomes(ended: &Ended) -> Vec<&InvocationOutcome> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Invocation(outcome) => Some(outcome.as_ref()),
            _another_entry => None,
        })
        .collect()
}

fn attempts(ended: &Ended) -> Vec<&AttemptRecord> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Attempt(attempt) => Some(attempt.as_ref()),
            _another_entry => None,
        })
        .collect()
}

/// Every attempt belongs to exactly one call that has exactly one end.
#[track_caller]
fn assert_one_end_each(ended: &Ended) {
    let mut ends: BTreeMap<&InvocationId, u32> = BTreeMap::new();
    for outcome in outcomes(ended) {
        assert!(outcome.is_valid(), "{outcome:?}");
        *ends.entry(&outcome.provider_invocation_id).or_default() += 1;
    }
    assert!(ends.values().all(|count| *count == 1), "{ends:?}");
    let called: BTreeSet<_> = attempts(ended)
        .iter()
        .map(|attempt| &attempt.provider_invocation_id)
        .collect();
    assert_eq!(called, ends.keys().copied().collect());
}

/// A call whose provider of one modality behaves so.
async fn with(modality: Modality, conduct: Conduct) -> Ended {
    let script = || Script::calls([conduct.clone(), conduct.clone(), conduct.clone()]);
    let mut cast = Cast::default();
    match modality {
        Modality::Stt => {
            cast.stt = Arc::new(ScriptedStt::new("stt").script(script()));
        }
        Modality::Llm => {
            let llm = ScriptedLlm::new("llm").answers([REPLY]);
            cast.llm = Arc::new(llm.script(script()));
        }
        Modality::Tts => {
            cast.tts = Arc::new(ScriptedTts::new("tts").script(script()));
        }
        Modality::Vad | Modality::EndOfTurn | Modality::External => unreachable!("no call"),
    }
    Builder::new(&cast, vec![says(first())]).hold().await
}

/// F-160: calls of all three modalities, that succeed, are too slow, are turned away and are refused: each has an id of
/// its own and one end, whose class is one of the normalised ones.
#[tokio::test(start_paused = true)]
async fn every_call_has_an_id_and_one_normalised_outcome() {
    let cases = [
        (Conduct::good(), OutcomeClass::Success),
        (
            Conduct::good().failing_after(0, Fault::timeout("slow")),
            OutcomeClass::Timeout,
        ),
        (
            Conduct::good().failing_after(0, Fault::overload("busy", None)),
            OutcomeClass::Overload,
        ),
        (
            Conduct::good().failing_after(0, Fault::from_http(403, None, "not for you")),
            OutcomeClass::Blocked,
        ),
    ];
    for modality in [Modality::Stt, Modality::Llm, Modality::Tts] {
        for (conduct, class) in &cases {
            let ended = with(modality, conduct.clone()).await;
            assert_one_end_each(&ended);
            let of_it: Vec<_> = outcomes(&ended)
                .into_iter()
                .filter(|outcome| outcome.modality == modality)
                .collect();
            assert!(!of_it.is_empty(), "{modality:?} {class:?}");
            for outcome in of_it {
                assert_eq!(outcome.outcome_class, *class, "{modality:?}: {outcome:?}");
                assert_eq!(outcome.reason.is_empty(), *class == OutcomeClass::Success);
            }
        }
    }
}
