//! What every end-of-turn model must do.

use std::{fmt, sync::Arc};

use crate::{EndOfTurn, EndOfTurnModel};

use super::{
    Failing,
    support::{describes_itself, is_normal},
};

/// The model under test and what to have it judge.
pub struct Subject {
    /// The provider.
    pub provider: Arc<dyn EndOfTurn>,
    /// Speech at the model's rate; silence by default.
    pub speech: Vec<i16>,
    /// The same provider set up to fail.
    pub failing: Vec<Failing<dyn EndOfTurn>>,
}

impl Subject {
    /// A model that judges two seconds of silence at 16 kHz.
    pub fn new(provider: Arc<dyn EndOfTurn>) -> Self {
        Self {
            provider,
            speech: vec![0; 32_000],
            failing: Vec::new(),
        }
    }

    fn model(&self) -> Box<dyn EndOfTurnModel> {
        match self.provider.model() {
            Ok(model) => model,
            Err(fault) => panic!("model: failed although nothing was wrong: {fault:?}"),
        }
    }

    /// The end of the speech, as much as the model looks at.
    fn recent(&self, window: usize) -> &[i16] {
        &self.speech[self.speech.len().saturating_sub(window)..]
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

/// Descriptions and needs do not change; probabilities are probabilities, also of very little.
#[expect(clippy::unused_async, reason = "all suites are called alike")]
pub async fn contract_shape(subject: &Subject) {
    describes_itself(|| subject.provider.describe());
    let mut model = subject.model();
    let needs = (model.sample_rate(), model.window(), model.cost());
    assert!(model.window() > 0, "model: a window of no samples");
    let recent = subject.recent(needs.1);
    for (what, audio, transcript) in [
        ("speech", recent, Some("I would like to book a table")),
        ("speech without words", recent, None),
        ("no audio", &[][..], None),
        ("one sample and a blank text", &[1][..], Some("")),
    ] {
        let probability = model.complete(audio, transcript);
        assert!(
            (0.0..=1.0).contains(&probability),
            "{what}: {probability} is no probability"
        );
    }
    let again = (model.sample_rate(), model.window(), model.cost());
    assert_eq!(needs, again, "model: its needs changed");
}

/// Two models that hear the same think the same, question by question.
#[expect(clippy::unused_async, reason = "all suites are called alike")]
pub async fn streaming_lifecycle(subject: &Subject) {
    let ask = |model: &mut dyn EndOfTurnModel| -> Vec<f32> {
        let recent = subject.recent(model.window());
        let halves = [&recent[..recent.len() / 2], recent, recent];
        halves.map(|audio| model.complete(audio, None)).to_vec()
    };
    let first = ask(&mut *subject.model());
    let second = ask(&mut *subject.model());
    assert_eq!(first, second, "two models: their answers differ");
}

/// A model dropped between questions disturbs no other.
#[expect(clippy::unused_async, reason = "all suites are called alike")]
pub async fn cancel_path(subject: &Subject) {
    let mut alone = subject.model();
    let recent = subject.recent(alone.window());
    let expected = vec![alone.complete(recent, None), alone.complete(recent, None)];

    let mut kept = subject.model();
    let mut dropped = subject.model();
    dropped.complete(&[], Some("and"));
    let before = kept.complete(recent, None);
    drop(dropped);
    let after = kept.complete(recent, None);
    assert_eq!(
        vec![before, after],
        expected,
        "two models at a time: they share a state"
    );
}

/// Faults keep to the taxonomy.
#[expect(clippy::unused_async, reason = "all suites are called alike")]
pub async fn outcome_normalization(subject: &Subject) {
    for case in &subject.failing {
        let Err(fault) = case.provider.model() else {
            panic!(
                "{}: went well, but must fail as {:?}",
                case.what, case.class
            );
        };
        assert_eq!(fault.class, case.class, "{}: {fault:?}", case.what);
        is_normal(case.what, &fault, &[]);
    }
}
