//! The models that need no files, checked by the suites that every provider must pass.

use std::{path::PathBuf, sync::Arc};

use rspp_local::{Earshot, Energy, OnnxRuntime, Pause, Silero, SmartTurn};
use rspp_provider_api::{
    EndOfTurn, OutcomeClass, VoiceActivity,
    conformance::{Failing, end_of_turn, voice},
    conformance_tests,
};

/// F-017: each of them, and one whose weights are gone.
fn voice(provider: impl VoiceActivity) -> voice::Subject {
    let mut subject = voice::Subject::new(Arc::new(provider));
    subject.failing.push(Failing {
        what: "weights that are not there",
        provider: Arc::new(Silero::new(PathBuf::from("/nonexistent.onnx"))),
        class: OutcomeClass::InfrastructureFailure,
    });
    subject
}

fn end_of_turn(provider: impl EndOfTurn) -> end_of_turn::Subject {
    let mut subject = end_of_turn::Subject::new(Arc::new(provider));
    let runtime = OnnxRuntime::new("/nonexistent.so", 1);
    subject.failing.push(Failing {
        what: "a model that is not there",
        provider: Arc::new(SmartTurn::new(PathBuf::from("/nonexistent.onnx"), runtime)),
        class: OutcomeClass::InfrastructureFailure,
    });
    subject
}

conformance_tests! {
    #[tokio::test]
    mod energy_detector: voice = voice(Energy::new());
}

conformance_tests! {
    #[tokio::test]
    mod earshot_detector: voice = voice(Earshot::new());
}

conformance_tests! {
    #[tokio::test]
    mod pause_rule: end_of_turn = end_of_turn(Pause::new());
}
