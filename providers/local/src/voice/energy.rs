//! Voice activity by loudness: what is well above the background is taken for speech.
//!
//! No model, no doubt, a few hundred nanoseconds: right for dense tests and for clean telephone
//! lines, wrong wherever anything but a voice is loud.

use rspp_proto::SampleRate;
use rspp_provider_api::{Cost, Description, Fault, VoiceActivity, VoiceDetector};

use crate::describe::describe;

/// Samples looked at together: 16 ms.
const WINDOW: usize = 256;
/// The background is taken to be at least this loud, in dB below full scale, so that digital
/// silence does not make a whisper of noise into speech.
const QUIETEST: f32 = -60.0;
/// What is this much above the background is as likely speech as not.
const MARGIN: f32 = 9.0;
/// dB above or below the margin that change the odds by a factor of e.
const SLOPE: f32 = 1.5;
/// How fast the background may be found to have risen: 3 dB a second.
const RISE: f32 = 3.0 * WINDOW as f32 / 16_000.0;
/// Share of the way to a quieter window that the background falls at once.
const FALL: f32 = 0.3;

/// Voice activity by loudness.
#[derive(Debug)]
pub struct Energy {
    description: Description,
}

impl Energy {
    /// The detector.
    pub fn new() -> Self {
        Self {
            description: describe("energy", "adaptive energy"),
        }
    }
}

impl Default for Energy {
    fn default() -> Self {
        Self::new()
    }
}

impl VoiceActivity for Energy {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn detector(&self) -> Result<Box<dyn VoiceDetector>, Fault> {
        Ok(Box::new(Detector { floor: QUIETEST }))
    }
}

struct Detector {
    /// How loud the background is, in dB below full scale.
    floor: f32,
}

impl VoiceDetector for Detector {
    fn sample_rate(&self) -> SampleRate {
        SampleRate::HZ_16000
    }

    fn window(&self) -> usize {
        WINDOW
    }

    fn cost(&self) -> Cost {
        Cost::Inline
    }

    fn probability(&mut self, window: &[i16]) -> f32 {
        let level = level(window);
        let above = level - self.floor;
        self.floor = if level < self.floor {
            self.floor + FALL * (level - self.floor)
        } else {
            (self.floor + RISE).min(level)
        }
        .max(QUIETEST);
        1.0 / (1.0 + ((MARGIN - above) / SLOPE).exp())
    }

    fn reset(&mut self) {
        self.floor = QUIETEST;
    }
}

/// Loudness in dB below full scale.
fn level(window: &[i16]) -> f32 {
    let squares = window.iter().map(|sample| f32::from(*sample).powi(2));
    let mean = squares.sum::<f32>() / window.len().max(1) as f32;
    10.0 * (mean / 32768.0_f32.powi(2)).max(1e-10).log10()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn detector() -> Box<dyn VoiceDetector> {
        Energy::new().detector().unwrap()
    }

    fn last(detector: &mut dyn VoiceDetector, samples: &[i16]) -> f32 {
        let windows = samples.chunks_exact(WINDOW);
        windows.fold(0.0, |_, window| detector.probability(window))
    }

    /// F-017
    #[test]
    fn a_voice_stands_out_of_silence_and_of_noise_that_lasts() {
        let mut detector = detector();
        assert!(last(&mut *detector, &vec![0; 16_000]) < 0.1);
        assert!(last(&mut *detector, &testing::vowel(8_000)) > 0.9);
        // -46 dB of noise is 14 dB above the quietest background, so it counts until it is known.
        let noise = testing::noise(16_000 * 12, 160.0);
        assert!(last(&mut *detector, &noise[..WINDOW]) > 0.5);
        assert!(last(&mut *detector, &noise) < 0.1);
        assert!(last(&mut *detector, &testing::vowel(8_000)) > 0.9);
    }

    #[test]
    fn reset_forgets_the_background() {
        let (mut used, mut fresh) = (detector(), detector());
        last(&mut *used, &testing::noise(160_000, 300.0));
        used.reset();
        let window = testing::vowel(WINDOW);
        let (used, fresh) = (used.probability(&window), fresh.probability(&window));
        assert!((used - fresh).abs() < f32::EPSILON);
    }
}
