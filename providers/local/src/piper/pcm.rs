//! From the network's samples to chunks of 16-bit PCM.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use rspp_proto::SampleRate;
use rspp_provider_api::TtsChunk;

/// How much a chunk holds.
const CHUNK: Duration = Duration::from_millis(160);
/// Silence that stays at either end.
const MARGIN: Duration = Duration::from_millis(80);
/// What is silence: 46 dB below full scale, under the voice's softest consonants.
const SILENCE: f32 = 0.005;
/// Brings the voice from -25 to about -22 dB of full scale. One gain for all pieces: levelling each
/// to its own peak would make short words shout.
const GAIN: f32 = 1.5;
/// The highest peak; louder speech is made softer as a whole, never clipped.
const CEILING: f32 = 0.97;

/// The samples as chunks that share one buffer. Silence at the ends is cut to 80 ms.
pub(super) fn chunks(samples: &[f32], sample_rate: SampleRate) -> VecDeque<TtsChunk> {
    let margin = sample_rate.samples_in(MARGIN) as usize;
    let mut rest = to_pcm(trimmed(samples, margin));
    let chunk_bytes = 2 * sample_rate.samples_in(CHUNK).max(1) as usize;
    let mut chunks = VecDeque::with_capacity(rest.len() / chunk_bytes + 1);
    while !rest.is_empty() {
        let pcm = rest.split_to(chunk_bytes.min(rest.len()));
        chunks.push_back(TtsChunk { sample_rate, pcm });
    }
    chunks
}

/// The samples from `margin` before the first sound to `margin` after the last.
fn trimmed(samples: &[f32], margin: usize) -> &[f32] {
    let is_sound = |sample: &f32| sample.abs() > SILENCE;
    let (Some(first), Some(last)) = (
        samples.iter().position(is_sound),
        samples.iter().rposition(is_sound),
    ) else {
        return &samples[..samples.len().min(margin)];
    };
    let end = samples.len().min(last + 1 + margin);
    &samples[first.saturating_sub(margin)..end]
}

/// Little-endian 16-bit samples. What is not a number is silence.
fn to_pcm(samples: &[f32]) -> Bytes {
    let peak = samples
        .iter()
        .filter(|sample| sample.is_finite())
        .fold(0.0_f32, |peak, sample| peak.max(sample.abs()));
    let gain = if peak * GAIN > CEILING {
        CEILING / peak
    } else {
        GAIN
    };
    let mut pcm = Vec::with_capacity(samples.len() * 2);
    for sample in samples {
        let sample = if sample.is_finite() {
            sample * gain
        } else {
            0.0
        };
        let value = (sample * f32::from(i16::MAX)).round() as i16;
        pcm.extend_from_slice(&value.to_le_bytes());
    }
    pcm.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: SampleRate = SampleRate::HZ_22050;

    fn samples_of(chunks: &VecDeque<TtsChunk>) -> Vec<i16> {
        let pair = |bytes: &[u8]| i16::from_le_bytes([bytes[0], bytes[1]]);
        chunks
            .iter()
            .flat_map(|chunk| chunk.pcm.chunks_exact(2).map(pair))
            .collect()
    }

    #[test]
    fn silence_at_the_ends_is_cut_to_80_ms() {
        let mut samples = vec![0.001; 22_050];
        samples.extend(vec![0.5; 2205]);
        samples.extend(vec![-0.001; 22_050]);
        let margin = RATE.samples_in(MARGIN) as usize;
        assert_eq!(trimmed(&samples, margin).len(), 2205 + 2 * margin);
        assert_eq!(trimmed(&samples[22_050..24_255], margin).len(), 2205);
        assert_eq!(trimmed(&vec![0.0; 9000], margin).len(), margin);
    }

    #[test]
    fn chunks_are_160_ms_slices_of_one_buffer() {
        let chunks = chunks(&vec![0.25; 8000], RATE);
        let lengths: Vec<usize> = chunks.iter().map(|chunk| chunk.pcm.len()).collect();
        assert_eq!(lengths, [7056, 7056, 1888]);
        let end_of_first = chunks[0].pcm.as_ptr_range().end;
        assert_eq!(end_of_first, chunks[1].pcm.as_ptr_range().start);
    }

    #[test]
    fn a_peak_over_full_scale_softens_the_whole() {
        let loud = samples_of(&chunks(&[0.5, -2.0, 1.0, f32::NAN, f32::INFINITY], RATE));
        assert_eq!(loud, [7946, -31784, 15892, 0, 0]);
        let soft = samples_of(&chunks(&[0.5, -0.5], RATE));
        assert_eq!(soft, [24_575, -24_575]);
    }

    proptest! {
        /// No sample clips, wraps or changes its sign.
        #[test]
        fn any_samples_become_pcm_of_the_same_sign(samples in prop::collection::vec(-1.0e3_f32..1.0e3, 0..500)) {
            let pcm = to_pcm(&samples);
            prop_assert_eq!(pcm.len(), samples.len() * 2);
            for (sample, bytes) in samples.iter().zip(pcm.chunks_exact(2)) {
                let value = i16::from_le_bytes([bytes[0], bytes[1]]);
                prop_assert!(value.unsigned_abs() <= 31_785);
                prop_assert!(value == 0 || (value > 0) == (*sample > 0.0));
            }
        }
    }
}
