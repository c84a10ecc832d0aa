//! A scripted end-of-turn model.

use std::{fmt, sync::Arc};

use rspp_proto::SampleRate;

use crate::{Cost, Description, EndOfTurn, EndOfTurnModel, Fault};

use super::{VoiceTally, describe, tally::VoiceCounters};

type Judge = dyn Fn(u64, &[i16], Option<&str>) -> f32 + Send + Sync;

/// A model that thinks what it was told to.
pub struct ScriptedEndOfTurn {
    description: Description,
    judge: Arc<Judge>,
    window: usize,
    refusal: Option<Fault>,
    counters: Arc<VoiceCounters>,
}

impl ScriptedEndOfTurn {
    /// A model that is always this sure that the user has finished, 0 to 1.
    pub fn always(id: &str, probability: f32) -> Self {
        Self::judging(id, move |_, _, _| probability)
    }

    /// A model that gives these answers, one a question, and the last one ever after; 1 if there are none.
    pub fn answering(id: &str, probabilities: impl IntoIterator<Item = f32>) -> Self {
        let answers: Vec<f32> = probabilities.into_iter().collect();
        Self::judging(id, move |question, _, _| {
            let given = usize::try_from(question)
                .ok()
                .and_then(|at| answers.get(at));
            given.or(answers.last()).copied().unwrap_or(1.0)
        })
    }

    /// A model that answers by a function of the question's number from 0, its audio and transcript.
    pub fn judging(
        id: &str,
        judge: impl Fn(u64, &[i16], Option<&str>) -> f32 + Send + Sync + 'static,
    ) -> Self {
        Self {
            description: describe(id, false),
            judge: Arc::new(judge),
            window: 8 * 16_000,
            refusal: None,
            counters: Arc::default(),
        }
    }

    /// The most recent samples it looks at; 8 s by default.
    #[must_use]
    pub fn window(mut self, samples: usize) -> Self {
        self.window = samples.max(1);
        self
    }

    /// Makes no models.
    #[must_use]
    pub fn refusing(mut self, fault: Fault) -> Self {
        self.refusal = Some(fault);
        self
    }

    /// What became of the models.
    pub fn tally(&self) -> VoiceTally {
        self.counters.tally()
    }
}

impl EndOfTurn for ScriptedEndOfTurn {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn model(&self) -> Result<Box<dyn EndOfTurnModel>, Fault> {
        if let Some(fault) = &self.refusal {
            return Err(fault.clone());
        }
        self.counters.made.add();
        Ok(Box::new(Model {
            judge: Arc::clone(&self.judge),
            window: self.window,
            counters: Arc::clone(&self.counters),
            asked: 0,
        }))
    }
}

impl fmt::Debug for ScriptedEndOfTurn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedEndOfTurn")
            .field("description", &self.description)
            .field("tally", &self.tally())
            .finish_non_exhaustive()
    }
}

struct Model {
    judge: Arc<Judge>,
    window: usize,
    counters: Arc<VoiceCounters>,
    asked: u64,
}

impl EndOfTurnModel for Model {
    fn sample_rate(&self) -> SampleRate {
        SampleRate::HZ_16000
    }

    fn window(&self) -> usize {
        self.window
    }

    fn cost(&self) -> Cost {
        Cost::Inline
    }

    fn complete(&mut self, audio: &[i16], transcript: Option<&str>) -> f32 {
        let question = self.asked;
        self.asked += 1;
        self.counters.answered.add();
        (self.judge)(question, audio, transcript)
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.counters.gone.add();
    }
}
