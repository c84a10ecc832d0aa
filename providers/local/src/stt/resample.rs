//! Bringing an utterance to the recogniser's rate.

use std::f32::consts::PI;

use rspp_proto::SampleRate;

/// The recogniser's rate.
pub(super) const RATE: u32 = 16_000;
/// Zero crossings of the filter on each side: more is sharper and slower.
const CROSSINGS: usize = 16;
/// Share of the possible bandwidth that is kept, so that nothing folds back.
const BANDWIDTH: f32 = 0.92;

/// Samples from -1 to 1 at 16 kHz, by a windowed sinc.
pub(super) fn resample(pcm: &[i16], rate: SampleRate) -> Vec<f32> {
    let samples: Vec<f32> = pcm.iter().map(|s| f32::from(*s) / 32768.0).collect();
    if rate.hertz() == RATE {
        return samples;
    }
    let common = gcd(rate.hertz(), RATE);
    // Output sample `n` lies at input position `n * step / phases`.
    let (step, phases) = ((rate.hertz() / common) as usize, (RATE / common) as usize);
    let cutoff = BANDWIDTH * (RATE as f32 / rate.hertz() as f32).min(1.0);
    let reach = (CROSSINGS as f32 / cutoff).ceil() as usize;
    let filters: Vec<Vec<f32>> = (0..phases)
        .map(|phase| filter(phase as f32 / phases as f32, cutoff, reach))
        .collect();

    let count = samples.len() * phases / step;
    let at = |n: usize| {
        let (whole, phase) = (n * step / phases, n * step % phases);
        // The filter covers inputs `whole + 1 - reach ..= whole + reach`.
        let first = (whole + 1).saturating_sub(reach);
        let skipped = first + reach - whole - 1;
        let taps = &filters[phase][skipped..];
        samples[first..]
            .iter()
            .zip(taps)
            .map(|(s, tap)| s * tap)
            .sum()
    };
    (0..count).map(at).collect()
}

/// Weights of the inputs around a position that is `offset` after one of them.
fn filter(offset: f32, cutoff: f32, reach: usize) -> Vec<f32> {
    let weight = |i: usize| {
        let distance = i as f32 + 1.0 - reach as f32 - offset;
        let x = PI * distance * cutoff;
        let sinc = if x.abs() < 1e-6 { 1.0 } else { x.sin() / x };
        let hann = 0.5 + 0.5 * (PI * distance / (reach as f32 + 1.0)).cos();
        cutoff * sinc * hann
    };
    (0..2 * reach).map(weight).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(hertz: f32, rate: SampleRate) -> Vec<i16> {
        let turn = hertz * 2.0 * PI / rate.hertz() as f32;
        let sample = |i: u32| ((i as f32 * turn).sin() * 16_000.0) as i16;
        (0..rate.hertz()).map(sample).collect()
    }

    #[test]
    fn a_tone_keeps_its_pitch_length_and_loudness() {
        for hertz in [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000] {
            let rate = SampleRate::new(hertz).unwrap();
            let found = resample(&tone(1_000.0, rate), rate);
            assert_eq!(found.len(), 16_000, "{hertz}");
            let expected = resample(&tone(1_000.0, SampleRate::HZ_16000), SampleRate::HZ_16000);
            // Both ends know only half of their neighbours.
            let middle = 100..15_900;
            let worst = found[middle.clone()]
                .iter()
                .zip(&expected[middle])
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(worst < 0.01, "{hertz}: {worst}");
        }
    }

    #[test]
    fn what_the_lower_rate_cannot_hold_is_removed() {
        let found = resample(&tone(11_000.0, SampleRate::HZ_48000), SampleRate::HZ_48000);
        let loudest = found[100..15_900]
            .iter()
            .fold(0.0, |a: f32, b| a.max(b.abs()));
        assert!(loudest < 0.01, "{loudest}");
    }

    #[test]
    fn nothing_becomes_nothing() {
        assert!(resample(&[], SampleRate::HZ_8000).is_empty());
        assert!(resample(&[5], SampleRate::HZ_48000).is_empty());
    }
}
