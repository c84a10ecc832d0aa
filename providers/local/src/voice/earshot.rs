//! Earshot: a small voice activity model whose weights are part of this program.

use earshot::Detector as Model;
use rspp_proto::SampleRate;
use rspp_provider_api::{Cost, Description, Fault, VoiceActivity, VoiceDetector};

use crate::describe::describe;

/// Samples the model takes at a time: 16 ms.
const WINDOW: usize = 256;

/// The voice activity model that needs no files; less sure of itself in noise than Silero.
#[derive(Debug)]
pub struct Earshot {
    description: Description,
}

impl Earshot {
    /// The model.
    pub fn new() -> Self {
        Self {
            description: describe("earshot", "earshot 1.2"),
        }
    }
}

impl Default for Earshot {
    fn default() -> Self {
        Self::new()
    }
}

impl VoiceActivity for Earshot {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn detector(&self) -> Result<Box<dyn VoiceDetector>, Fault> {
        Ok(Box::new(Detector(Model::default_boxed())))
    }
}

struct Detector(Box<Model>);

impl VoiceDetector for Detector {
    fn sample_rate(&self) -> SampleRate {
        SampleRate::HZ_16000
    }

    fn window(&self) -> usize {
        WINDOW
    }

    /// 20 us a window.
    fn cost(&self) -> Cost {
        Cost::Inline
    }

    fn probability(&mut self, window: &[i16]) -> f32 {
        self.0.predict_i16(window)
    }

    fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// F-017
    #[test]
    fn silence_is_not_speech_and_reset_forgets() {
        let mut detector = Earshot::new().detector().unwrap();
        let first = detector.probability(&[0; WINDOW]);
        assert!(first < 0.5, "{first}");
        for window in testing::vowel(32_000).chunks_exact(WINDOW) {
            detector.probability(window);
        }
        detector.reset();
        let again = detector.probability(&[0; WINDOW]);
        assert!((first - again).abs() < 1e-6, "{first} {again}");
    }
}
