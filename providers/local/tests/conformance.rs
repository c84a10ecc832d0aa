//! The models that need no files, checked by the suites that every provider must pass.

use std::{f32::consts::TAU, path::PathBuf, sync::Arc};

use rspp_local::{Earshot, Energy, OnnxRuntime, Pause, Silero, SmartTurn};
use rspp_proto::SampleRate;
use rspp_provider_api::{
    EndOfTurn, OutcomeClass, VoiceActivity,
    conformance::{Failing, end_of_turn, voice},
    conformance_tests,
};

/// F-017: each of them, and one whose weights are gone.
fn voice(provider: impl VoiceActivity) -> voice::Subject {
    let mut subject = voice::Subject::new(Arc::new(provider));
    subject.speech = Box::new(babble);
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

/// Two seconds that a model takes for speech: a voice whose pitch and vowels wander, four
/// syllables a second.
fn babble(rate: SampleRate) -> Vec<i16> {
    const FORMANT_GAINS: [f32; 3] = [1.0, 0.6, 0.3];
    let rate = rate.hertz() as f32;
    let mut phase = 0.0_f32;
    let sample = |i: u32| {
        let time = i as f32 / rate;
        let pitch = 120.0 + 20.0 * (TAU * 0.7 * time).sin();
        phase = (phase + pitch / rate).fract();
        let open = (TAU * 2.0 * time).sin();
        let formants = [600.0 + 150.0 * open, 1_300.0 - 300.0 * open, 2_600.0];
        let gain = |hertz: f32| -> f32 {
            let resonances = formants.iter().zip(FORMANT_GAINS);
            resonances
                .map(|(formant, gain)| gain / (1.0 + ((hertz - formant) / 90.0).powi(2)))
                .sum()
        };
        let harmonics = (1..30).map(|n| n as f32);
        let voice: f32 = harmonics
            .map(|n| gain(n * pitch) * (TAU * phase * n).sin())
            .sum();
        let syllable = (TAU * 4.0 * time).sin().max(-0.2) + 0.3;
        (voice * syllable * 4_000.0) as i16
    };
    (0..2 * rate as u32).map(sample).collect()
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
