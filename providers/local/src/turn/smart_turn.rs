//! Smart-turn: hears from how something was said whether more is to come.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use ort::{session::Session, value::Tensor};
use rspp_proto::SampleRate;
use rspp_provider_api::{Cost, Description, EndOfTurn, EndOfTurnModel, Fault};
use tracing::warn;

use super::mel::{BANDS, MelSpectrum};
use crate::{OnnxRuntime, describe::describe, lazy::Lazy};

/// Frames of 10 ms that the model looks at: 8 s.
const FRAMES: usize = 800;
/// What is answered when the model fails: as likely as not, so that the pause decides.
const UNDECIDED: f32 = 0.5;

/// The smart-turn v3 model: 60 to 80 ms a call.
#[derive(Debug)]
pub struct SmartTurn {
    description: Description,
    network: Lazy<Network>,
}

struct Network {
    spectrum: MelSpectrum,
    // One session for all conversations: a call holds it for less than a tenth of a second.
    session: Mutex<Session>,
}

impl SmartTurn {
    /// Loads the model at `path` when first needed.
    pub fn new(path: PathBuf, runtime: OnnxRuntime) -> Self {
        let load = move || {
            Ok(Network {
                spectrum: MelSpectrum::new(FRAMES),
                session: Mutex::new(runtime.session(&path)?),
            })
        };
        Self {
            description: describe("smart-turn", "smart-turn v3.2"),
            network: Lazy::new(load),
        }
    }

    pub(crate) fn warm_up(&self) -> Result<(), Fault> {
        self.network.get()?.probability(&[]).map(drop)
    }
}

impl EndOfTurn for SmartTurn {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn model(&self) -> Result<Box<dyn EndOfTurnModel>, Fault> {
        Ok(Box::new(Model(self.network.get()?)))
    }
}

struct Model(Arc<Network>);

impl EndOfTurnModel for Model {
    fn sample_rate(&self) -> SampleRate {
        SampleRate::HZ_16000
    }

    fn window(&self) -> usize {
        self.0.spectrum.samples()
    }

    fn cost(&self) -> Cost {
        Cost::Offload
    }

    fn complete(&mut self, audio: &[i16], _transcript: Option<&str>) -> f32 {
        self.0.probability(audio).unwrap_or_else(|fault| {
            warn!(%fault, "the end-of-turn model failed");
            UNDECIDED
        })
    }
}

impl Network {
    fn probability(&self, audio: &[i16]) -> Result<f32, Fault> {
        let features = self.spectrum.compute(audio);
        self.run(features)
            .map_err(|error| crate::onnx::fault("running smart-turn", error))
    }

    fn run(&self, features: Vec<f32>) -> ort::Result<f32> {
        let input = Tensor::from_array(([1, BANDS, FRAMES], features))?;
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = session.run(ort::inputs!["input_features" => input])?;
        // Named logits, but the model ends in a sigmoid.
        let (_, values) = outputs["logits"].try_extract_tensor::<f32>()?;
        Ok(values.first().copied().unwrap_or(UNDECIDED))
    }
}
