//! Whether there is anything to recognise, and where an utterance may be cut.
//!
//! Recognisers invent words for silence and for noise, so they are not asked about it.

use earshot::Detector;

use super::resample::RATE;

/// Samples looked at together: 16 ms.
const WINDOW: usize = 256;
/// Shortest sound that can be a word: 100 ms.
const SHORTEST: usize = RATE as usize / 10;
/// How probable speech must be: noise alone reaches 0.65, the shortest words 0.9.
const PROBABLE: f32 = 0.7;
/// For how many windows. Few: a word lost is worse than one invented.
const VOICED: usize = 2;
/// Loudness below which nobody speaks, -60 dB of full scale as a mean square.
const SILENCE: f32 = 1e-6;

/// Whether someone may be speaking.
pub(super) fn holds_speech(samples: &[f32]) -> bool {
    if samples.len() < SHORTEST {
        return false;
    }
    let loud = samples.chunks(WINDOW).any(|window| power(window) > SILENCE);
    let mut detector = Detector::default_boxed();
    let speech = |window: &&[f32]| detector.predict_f32(window) > PROBABLE;
    loud && samples
        .chunks_exact(WINDOW)
        .filter(speech)
        .take(VOICED)
        .count()
        == VOICED
}

/// The middle of the quietest 100 ms within `range` of samples: the best place for a cut.
pub(super) fn quietest(samples: &[f32], range: std::ops::Range<usize>) -> usize {
    let steps = (range.start..range.end.saturating_sub(SHORTEST)).step_by(WINDOW);
    let quietest = steps.min_by(|a, b| {
        let [a, b] = [*a, *b].map(|from| power(&samples[from..from + SHORTEST]));
        a.total_cmp(&b)
    });
    quietest.unwrap_or(range.start) + SHORTEST / 2
}

fn power(window: &[f32]) -> f32 {
    window.iter().map(|s| s * s).sum::<f32>() / window.len().max(1) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn float(pcm: &[i16]) -> Vec<f32> {
        pcm.iter().map(|s| f32::from(*s) / 32768.0).collect()
    }

    #[test]
    fn silence_noise_and_clicks_hold_no_speech() {
        assert!(!holds_speech(&[]));
        assert!(!holds_speech(&vec![0.0; 32_000]));
        assert!(!holds_speech(&float(&testing::noise(32_000, 20.0))));
        assert!(!holds_speech(&float(&testing::noise(32_000, 600.0))));
        assert!(!holds_speech(&float(&testing::vowel(800))), "50 ms");
    }

    #[test]
    fn an_utterance_is_cut_where_it_is_quietest() {
        let mut samples = float(&testing::vowel(64_000));
        samples[40_000..44_000].fill(0.0);
        let cut = quietest(&samples, 16_000..60_000);
        assert!((40_000..44_000).contains(&cut), "{cut}");
        assert_eq!(quietest(&samples, 100..200), 100 + SHORTEST / 2);
    }
}
