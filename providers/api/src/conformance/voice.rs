//! What every voice activity detector must do.

use std::{f32::consts::TAU, fmt, sync::Arc, time::Duration};

use rspp_proto::SampleRate;

use crate::{VoiceActivity, VoiceDetector};

use super::{
    Failing,
    support::{describes_itself, is_normal},
};

type Speech = dyn Fn(SampleRate) -> Vec<i16> + Send + Sync;

/// The detector under test and what to have it hear.
pub struct Subject {
    /// The provider.
    pub provider: Arc<dyn VoiceActivity>,
    /// At least a second of speech at the given rate.
    pub speech: Box<Speech>,
    /// The same provider set up to fail.
    pub failing: Vec<Failing<dyn VoiceActivity>>,
}

impl Subject {
    /// A detector that takes a loud hum for speech; set `speech` for one that is more choosy.
    pub fn new(provider: Arc<dyn VoiceActivity>) -> Self {
        Self {
            provider,
            speech: Box::new(hum),
            failing: Vec::new(),
        }
    }

    fn detector(&self) -> Box<dyn VoiceDetector> {
        match self.provider.detector() {
            Ok(detector) => detector,
            Err(fault) => panic!("detector: failed although nothing was wrong: {fault:?}"),
        }
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("provider", self.provider.describe())
            .field("failing", &self.failing)
            .finish_non_exhaustive()
    }
}

/// Runs every category.
pub async fn run_all(subject: &Subject) {
    contract_shape(subject).await;
    streaming_lifecycle(subject).await;
    cancel_path(subject).await;
    outcome_normalization(subject).await;
}

/// Descriptions and needs do not change; probabilities are probabilities.
#[expect(clippy::unused_async, reason = "all suites are called alike")]
pub async fn contract_shape(subject: &Subject) {
    describes_itself(|| subject.provider.describe());
    let mut detector = subject.detector();
    let needs = (detector.sample_rate(), detector.window(), detector.cost());
    assert!(detector.window() > 0, "detector: a window of no samples");
    let window = detector.sample_rate().duration_of(detector.window() as u64);
    assert!(
        window <= Duration::from_millis(100),
        "detector: windows of {window:?} are too long to interrupt anybody with"
    );
    let speech = (subject.speech)(needs.0);
    let loudest = vec![i16::MIN; speech.len()];
    for sound in [speech, vec![0; loudest.len()], loudest] {
        listen(&mut *detector, &sound);
    }
    let again = (detector.sample_rate(), detector.window(), detector.cost());
    assert_eq!(needs, again, "detector: its needs changed");
}

/// Speech is told from silence, and a reset forgets everything.
#[expect(clippy::unused_async, reason = "all suites are called alike")]
pub async fn streaming_lifecycle(subject: &Subject) {
    let mut detector = subject.detector();
    let speech = (subject.speech)(detector.sample_rate());
    let silence = vec![0; speech.len()];

    let quiet = listen(&mut *detector, &silence);
    let peak_in_silence = peak(&quiet);
    detector.reset();
    let fresh = listen(&mut *detector, &speech);
    assert!(
        peak(&fresh) > 0.5,
        "speech: at most {} probable",
        peak(&fresh)
    );
    assert!(
        peak_in_silence < 0.5,
        "silence: speech is {peak_in_silence} probable"
    );

    let after = listen(&mut *detector, &silence);
    let last = after.last().copied().unwrap_or_default();
    assert!(last < 0.5, "silence after speech: still {last} probable");
    detector.reset();
    assert_eq!(
        listen(&mut *detector, &speech),
        fresh,
        "reset: it did not forget what it had heard"
    );
}

/// A detector dropped in mid-speech disturbs no other.
#[expect(clippy::unused_async, reason = "all suites are called alike")]
pub async fn cancel_path(subject: &Subject) {
    let mut alone = subject.detector();
    let speech = (subject.speech)(alone.sample_rate());
    let expected = listen(&mut *alone, &speech);

    let mut dropped = Some(subject.detector());
    let mut kept = subject.detector();
    let mut heard = Vec::new();
    for (at, window) in speech.chunks_exact(kept.window()).enumerate() {
        if at == 5 {
            dropped = None;
        }
        if let Some(detector) = &mut dropped {
            detector.probability(&vec![0; window.len()]);
        }
        heard.push(kept.probability(window));
    }
    assert_eq!(
        heard, expected,
        "two detectors at a time: they share a state"
    );
}

/// Faults keep to the taxonomy.
#[expect(clippy::unused_async, reason = "all suites are called alike")]
pub async fn outcome_normalization(subject: &Subject) {
    for case in &subject.failing {
        let Err(fault) = case.provider.detector() else {
            panic!(
                "{}: went well, but must fail as {:?}",
                case.what, case.class
            );
        };
        assert_eq!(fault.class, case.class, "{}: {fault:?}", case.what);
        is_normal(case.what, &fault, &[]);
    }
}

/// The probability of each window; the rest that fills none is left out.
fn listen(detector: &mut dyn VoiceDetector, sound: &[i16]) -> Vec<f32> {
    let windows = sound.chunks_exact(detector.window());
    let heard: Vec<f32> = windows.map(|window| detector.probability(window)).collect();
    assert!(!heard.is_empty(), "the fixture is shorter than one window");
    for probability in &heard {
        assert!(
            (0.0..=1.0).contains(probability),
            "detector: {probability} is no probability"
        );
    }
    heard
}

fn peak(probabilities: &[f32]) -> f32 {
    probabilities.iter().copied().fold(0.0, f32::max)
}

fn hum(rate: SampleRate) -> Vec<i16> {
    let hertz = rate.hertz();
    let sample = |at: u32| (TAU * 150.0 * at as f32 / hertz as f32).sin() * 10_000.0;
    (0..hertz).map(|at| sample(at) as i16).collect()
}
