//! Log-mel spectra as Whisper's models expect them.

use std::{f64::consts::TAU, sync::Arc};

use realfft::{RealFftPlanner, RealToComplex, num_complex::Complex};

/// Samples of a frame at 16 kHz: 25 ms.
const FRAME: usize = 400;
/// Samples from one frame to the next: 10 ms.
const HOP: usize = 160;
/// Frequency bins of a frame.
const BINS: usize = FRAME / 2 + 1;
/// Mel bands.
pub(super) const BANDS: usize = 80;
/// Highest frequency of the bands.
const NYQUIST: f64 = 8_000.0;

/// Makes log-mel spectra of a fixed length.
pub(super) struct MelSpectrum {
    frames: usize,
    fft: Arc<dyn RealToComplex<f64>>,
    window: [f64; FRAME],
    bands: Vec<Band>,
}

/// A triangle over some bins.
struct Band {
    first: usize,
    weights: Vec<f64>,
}

impl MelSpectrum {
    /// For `frames` times 10 ms.
    pub(super) fn new(frames: usize) -> Self {
        let hann = |i: usize| 0.5 - 0.5 * (TAU * i as f64 / FRAME as f64).cos();
        Self {
            frames,
            fft: RealFftPlanner::new().plan_fft_forward(FRAME),
            window: std::array::from_fn(hann),
            bands: bands(),
        }
    }

    /// Samples that go into one spectrum.
    pub(super) fn samples(&self) -> usize {
        self.frames * HOP
    }

    /// The spectrum of the last `samples()` of `audio`, with silence before a shorter one; band by
    /// band, `frames` values each. The audio is brought to zero mean and unit variance first.
    pub(super) fn compute(&self, audio: &[i16]) -> Vec<f32> {
        let samples = self.normalised(audio);
        let mut input = self.fft.make_input_vec();
        let mut spectrum = self.fft.make_output_vec();
        let mut log_mel = vec![0.0; BANDS * self.frames];
        for frame in 0..self.frames {
            let start = frame * HOP;
            let windowed = samples[start..start + FRAME].iter().zip(&self.window);
            for (input, (sample, weight)) in input.iter_mut().zip(windowed) {
                *input = sample * weight;
            }
            self.fft
                .process(&mut input, &mut spectrum)
                .expect("both buffers were made for this transform");
            let power: Vec<f64> = spectrum.iter().map(Complex::norm_sqr).collect();
            for (index, band) in self.bands.iter().enumerate() {
                let bins = &power[band.first..band.first + band.weights.len()];
                let energy: f64 = bins.iter().zip(&band.weights).map(|(p, w)| p * w).sum();
                log_mel[index * self.frames + frame] = energy.max(1e-10).log10();
            }
        }
        // No more than 80 dB below the loudest, scaled to about -1 to 1.
        let loudest = log_mel.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let scale = |value: &f64| ((value.max(loudest - 8.0) + 4.0) / 4.0) as f32;
        log_mel.iter().map(scale).collect()
    }

    /// Normalised samples with half a frame of mirror image at both ends.
    fn normalised(&self, audio: &[i16]) -> Vec<f64> {
        const EDGE: usize = FRAME / 2;
        let wanted = self.samples();
        let audio = &audio[audio.len().saturating_sub(wanted)..];
        let mut samples = vec![0.0; EDGE + wanted + EDGE];
        let spoken = &mut samples[EDGE + wanted - audio.len()..EDGE + wanted];
        for (sample, pcm) in spoken.iter_mut().zip(audio) {
            *sample = f64::from(*pcm) / 32768.0;
        }
        let body = &mut samples[EDGE..EDGE + wanted];
        let mean = body.iter().sum::<f64>() / wanted as f64;
        let variance = body.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / wanted as f64;
        let deviation = (variance + 1e-7).sqrt();
        for sample in body {
            *sample = (*sample - mean) / deviation;
        }
        for i in 0..EDGE {
            samples[EDGE - 1 - i] = samples[EDGE + 1 + i];
            samples[EDGE + wanted + i] = samples[EDGE + wanted - 2 - i];
        }
        samples
    }
}

/// Triangles that are evenly spaced on the mel scale and of equal area.
fn bands() -> Vec<Band> {
    let highest = mel(NYQUIST);
    let edge = |i: usize| hertz(highest * i as f64 / (BANDS + 1) as f64);
    let triangle = |band: usize| {
        let (low, peak, high) = (edge(band), edge(band + 1), edge(band + 2));
        let weight = |bin: usize| {
            let at = NYQUIST * bin as f64 / (BINS - 1) as f64;
            let height = ((at - low) / (peak - low)).min((high - at) / (high - peak));
            height.max(0.0) * 2.0 / (high - low)
        };
        let first = (0..BINS).find(|bin| weight(*bin) > 0.0).unwrap_or(0);
        let weights = (first..BINS).map(weight).take_while(|w| *w > 0.0);
        Band {
            first,
            weights: weights.collect(),
        }
    };
    (0..BANDS).map(triangle).collect()
}

/// Slaney's mel scale: linear below 1 kHz, logarithmic above.
fn mel(hertz: f64) -> f64 {
    if hertz < 1_000.0 {
        hertz * 3.0 / 200.0
    } else {
        15.0 + (hertz / 1_000.0).ln() * 27.0 / 6.4_f64.ln()
    }
}

fn hertz(mel: f64) -> f64 {
    if mel < 15.0 {
        mel * 200.0 / 3.0
    } else {
        1_000.0 * ((mel - 15.0) * 6.4_f64.ln() / 27.0).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each band must pass white noise of one power with one loudness.
    #[test]
    fn bands_have_equal_area_and_rise_in_frequency() {
        let bands = bands();
        assert_eq!(bands.len(), BANDS);
        // Wide bands only: the narrow low ones cover fewer bins than they have corners.
        let width = NYQUIST / (BINS - 1) as f64;
        for band in bands.iter().filter(|band| band.weights.len() > 8) {
            let area = band.weights.iter().sum::<f64>() * width;
            assert!((area - 1.0).abs() < 0.02, "{area}");
        }
        assert!(bands.windows(2).all(|pair| pair[0].first <= pair[1].first));
    }

    #[test]
    fn a_tone_lights_the_band_of_its_frequency() {
        let spectrum = MelSpectrum::new(100);
        let tone = |hertz: f64| -> Vec<i16> {
            let sample = |i| ((f64::from(i) * hertz * TAU / 16_000.0).sin() * 8_000.0) as i16;
            (0..16_000).map(sample).collect()
        };
        let brightest = |hertz| {
            let mel = spectrum.compute(&tone(hertz));
            let column = (0..BANDS).map(|band| mel[band * 100 + 50]);
            let (band, _) = column
                .enumerate()
                .max_by(|a, b| a.1.total_cmp(&b.1))
                .unwrap();
            band
        };
        for (hertz, expected) in [(250.0, 5), (1_000.0, 26), (4_000.0, 61)] {
            let found = brightest(hertz);
            assert!(found.abs_diff(expected) <= 1, "{hertz} Hz in band {found}");
        }
    }

    #[test]
    fn a_short_sound_sits_at_the_end_and_silence_is_flat() {
        let spectrum = MelSpectrum::new(100);
        let mel = spectrum.compute(&crate::testing::noise(1_600, 1_000.0));
        assert!(mel[50] < mel[95], "sound is not at the end");
        let silent = spectrum.compute(&[]);
        assert_eq!(silent.len(), BANDS * 100);
        assert!(silent.iter().all(|value| (value + 1.5).abs() < 1e-6));
    }
}
