//! Mono 16-bit audio: change of rate, downmix, and 20 ms frames.
//!
//! Everything inside the runtime is mono PCM; what differs between a microphone, a recogniser, a
//! voice and a telephone line is only the rate. Codecs belong to the carrier that speaks them.

use std::{fmt, time::Duration};

use bytes::Bytes;
use rspp_proto::SampleRate;
use rubato::{
    Async, FixedAsync, Resampler as _, SincInterpolationParameters, WindowFunction,
    audioadapter_buffers::direct::InterleavedSlice,
};
use thiserror::Error;

/// How much audio travels in one frame.
pub const FRAME: Duration = Duration::from_millis(20);

/// Lowest and highest rate that can be converted, in hertz.
pub const RATES: std::ops::RangeInclusive<u32> = 1_000..=384_000;

/// How much input the filter works on at a time; what is left over waits for more, so this bounds
/// the wait.
const BLOCKS_PER_SECOND: u32 = 100;

/// A rate outside [`RATES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("cannot convert audio at {0}: rates from {low} Hz to {high} Hz work", low = RATES.start(), high = RATES.end())]
pub struct UnsupportedRate(pub SampleRate);

/// Changes the rate of one stream of mono audio.
///
/// Takes pieces of any length. Holds back at most 10 ms of input plus half the filter's length
/// (32 samples of the lower rate: 4 ms at 8 kHz), and after [`finish`](Self::finish) has given
/// exactly `input * to / from` samples, rounded to the nearest. Equal rates pass through untouched
/// and undelayed.
pub struct Resampler {
    from: SampleRate,
    to: SampleRate,
    filter: Option<Filter>,
}

struct Filter {
    inner: Async<f32>,
    /// Input that does not fill a block yet; its first `pending` samples are valid.
    block: Vec<f32>,
    pending: usize,
    output: Vec<f32>,
    /// Samples that come out before the first of the stream, and how many of them are still due.
    delay: usize,
    skip: usize,
    taken: u64,
    given: u64,
}

impl Resampler {
    /// A converter for one stream.
    pub fn new(from: SampleRate, to: SampleRate) -> Result<Self, UnsupportedRate> {
        let filter = (from != to)
            .then(|| {
                for rate in [from, to] {
                    if !RATES.contains(&rate.hertz()) {
                        return Err(UnsupportedRate(rate));
                    }
                }
                Ok(Filter::new(from, to))
            })
            .transpose()?;
        Ok(Self { from, to, filter })
    }

    /// The rate of what goes in.
    pub fn from(&self) -> SampleRate {
        self.from
    }

    /// The rate of what comes out.
    pub fn to(&self) -> SampleRate {
        self.to
    }

    /// Takes `input` and appends to `output` what is ready.
    pub fn push(&mut self, input: &[i16], output: &mut Vec<i16>) {
        match &mut self.filter {
            Some(filter) => filter.push(input, output),
            None => output.extend_from_slice(input),
        }
    }

    /// Ends the stream: appends the rest to `output`. The converter is then ready for another.
    pub fn finish(&mut self, output: &mut Vec<i16>) {
        if let Some(filter) = &mut self.filter {
            let total = resampled_len(filter.taken, self.from, self.to);
            filter.finish(total, output);
        }
    }
}

impl fmt::Debug for Resampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resampler({} to {})", self.from, self.to)
    }
}

impl Filter {
    fn new(from: SampleRate, to: SampleRate) -> Self {
        let ratio = f64::from(to.hertz()) / f64::from(from.hertz());
        // The filter's length counts input samples. Going down, the same steepness below the
        // lower rate's band limit needs proportionally more of them.
        let length = ((64.0 / ratio.min(1.0)) as usize)
            .next_multiple_of(8)
            .min(MAX_FILTER);
        let parameters = SincInterpolationParameters::new(length, WindowFunction::BlackmanHarris2)
            .oversampling_factor(64);
        let block = (from.hertz() / BLOCKS_PER_SECOND) as usize;
        let inner = Async::new_sinc(ratio, 1.0, &parameters, block, 1, FixedAsync::Input)
            .expect("rates are in range, so the ratio is finite and the block not empty");
        // The library reports one sample too many for the first tap; rounding leaves at most half
        // a sample of shift.
        let delay = ((length as f64 * ratio / 2.0).round() as usize).saturating_sub(1);
        Self {
            block: vec![0.0; block],
            pending: 0,
            output: vec![0.0; inner.output_frames_max()],
            skip: delay,
            delay,
            taken: 0,
            given: 0,
            inner,
        }
    }

    fn push(&mut self, mut input: &[i16], output: &mut Vec<i16>) {
        self.taken += input.len() as u64;
        while !input.is_empty() {
            let room = self.block.len() - self.pending;
            let (now, later) = input.split_at(room.min(input.len()));
            for (to, from) in self.block[self.pending..].iter_mut().zip(now) {
                *to = f32::from(*from) / 32_768.0;
            }
            self.pending += now.len();
            input = later;
            if self.pending == self.block.len() {
                self.process(u64::MAX, output);
            }
        }
    }

    fn finish(&mut self, total: u64, output: &mut Vec<i16>) {
        // Silence pushes the last samples out of the filter.
        while self.given < total {
            self.block[self.pending..].fill(0.0);
            self.process(total, output);
        }
        self.inner.reset();
        self.pending = 0;
        self.skip = self.delay;
        self.taken = 0;
        self.given = 0;
    }

    /// Converts the full block, never giving more than `total` samples of the stream.
    fn process(&mut self, total: u64, output: &mut Vec<i16>) {
        let frames = self.output.len();
        let input = InterleavedSlice::new(&self.block, 1, self.block.len())
            .expect("the slice is as long as it says");
        let mut out = InterleavedSlice::new_mut(&mut self.output, 1, frames)
            .expect("the slice is as long as it says");
        let (_, made) = self
            .inner
            .process_into_buffer(&input, &mut out, None)
            .expect("block and output have the sizes the filter asked for");
        self.pending = 0;
        let skipped = self.skip.min(made);
        self.skip -= skipped;
        let fresh = ((made - skipped) as u64).min(total.saturating_sub(self.given)) as usize;
        self.given += fresh as u64;
        output.extend(
            self.output[skipped..skipped + fresh]
                .iter()
                .map(|sample| (sample * 32_768.0).round() as i16), // `as` saturates
        );
    }
}

/// Longest filter, in input samples; reached when going down to an eighth of the rate or lower.
const MAX_FILTER: usize = 512;

/// How many samples `input` samples become, rounded to the nearest.
pub fn resampled_len(input: u64, from: SampleRate, to: SampleRate) -> u64 {
    let (from, to) = (u128::from(from.hertz()), u128::from(to.hertz()));
    ((u128::from(input) * to + from / 2) / from) as u64
}

/// Changes the rate of a whole clip.
pub fn resample(
    samples: &[i16],
    from: SampleRate,
    to: SampleRate,
) -> Result<Vec<i16>, UnsupportedRate> {
    let mut resampler = Resampler::new(from, to)?;
    let mut output = Vec::with_capacity(resampled_len(samples.len() as u64, from, to) as usize);
    resampler.push(samples, &mut output);
    resampler.finish(&mut output);
    Ok(output)
}

/// Mixes interleaved channels to one by their mean. An incomplete last frame is left out.
pub fn mix_to_mono(interleaved: &[i16], channels: u16) -> Vec<i16> {
    if channels <= 1 {
        return interleaved.to_vec();
    }
    interleaved
        .chunks_exact(channels.into())
        .map(|frame| {
            let sum: i64 = frame.iter().map(|&sample| i64::from(sample)).sum();
            (sum / i64::from(channels)) as i16
        })
        .collect()
}

/// Samples as the little-endian bytes that travel.
pub fn to_bytes(samples: &[i16]) -> Bytes {
    samples
        .iter()
        .flat_map(|sample| sample.to_le_bytes())
        .collect::<Vec<u8>>()
        .into()
}

/// Samples out of little-endian bytes. An incomplete last sample is left out.
pub fn samples(bytes: &[u8]) -> impl ExactSizeIterator<Item = i16> + '_ {
    bytes
        .chunks_exact(2)
        .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
}

/// Cuts one stream of PCM bytes into 20 ms frames.
///
/// Frames share the memory of what was pushed when a piece holds several.
#[derive(Debug)]
pub struct Framer {
    frame_bytes: usize,
    rest: Vec<u8>,
}

impl Framer {
    /// Cuts mono PCM at `rate`.
    pub fn new(rate: SampleRate) -> Self {
        let frame_bytes = (rate.samples_in(FRAME) as usize).max(1) * 2;
        Self {
            frame_bytes,
            rest: Vec::with_capacity(frame_bytes),
        }
    }

    /// Bytes of a whole frame.
    pub fn frame_bytes(&self) -> usize {
        self.frame_bytes
    }

    /// Takes a piece of any length and hands out each whole frame.
    pub fn push(&mut self, mut piece: Bytes, mut frame: impl FnMut(Bytes)) {
        if !self.rest.is_empty() {
            let missing = (self.frame_bytes - self.rest.len()).min(piece.len());
            self.rest.extend_from_slice(&piece.split_to(missing));
            if self.rest.len() < self.frame_bytes {
                return;
            }
            frame(Bytes::copy_from_slice(&self.rest));
            self.rest.clear();
        }
        while piece.len() >= self.frame_bytes {
            frame(piece.split_to(self.frame_bytes));
        }
        self.rest.extend_from_slice(&piece);
    }

    /// Ends the stream: the last frame, filled up with silence, if anything is left.
    pub fn finish(&mut self) -> Option<Bytes> {
        if self.rest.is_empty() {
            return None;
        }
        let mut frame = std::mem::take(&mut self.rest);
        frame.resize(self.frame_bytes, 0);
        Some(frame.into())
    }

    /// Forgets what does not fill a frame yet.
    pub fn clear(&mut self) {
        self.rest.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hz(rate: u32) -> SampleRate {
        SampleRate::new(rate).unwrap()
    }

    fn sine(hertz: f64, rate: u32, samples: usize) -> Vec<i16> {
        (0..samples)
            .map(|n| {
                let phase = std::f64::consts::TAU * hertz * n as f64 / f64::from(rate);
                (phase.sin() * 12_000.0) as i16
            })
            .collect()
    }

    fn rms(samples: impl Iterator<Item = f64> + Clone) -> f64 {
        let count = samples.clone().count() as f64;
        (samples.map(|sample| sample * sample).sum::<f64>() / count).sqrt()
    }

    #[test]
    fn equal_rates_pass_through_untouched() {
        let input = sine(440.0, 16_000, 777);
        assert_eq!(resample(&input, hz(16_000), hz(16_000)).unwrap(), input);
    }

    /// A tone keeps its level, its pitch and its place in time, to half a sample.
    #[test]
    fn a_tone_survives_every_usual_change_of_rate() {
        for (from, to) in [
            (8_000, 16_000),
            (16_000, 8_000),
            (22_050, 16_000),
            (22_050, 24_000),
            (24_000, 48_000),
            (44_100, 16_000),
            (48_000, 16_000),
            (96_000, 8_000),
            (11_025, 24_000),
            (12_347, 16_000),
        ] {
            let output = resample(&sine(200.0, from, from as usize), hz(from), hz(to)).unwrap();
            let wanted = sine(200.0, to, to as usize);
            assert_eq!(output.len(), wanted.len(), "{from} to {to}");
            // The ends meet silence, where any filter rings.
            let inner = to as usize / 50..to as usize * 49 / 50;
            let error = rms(inner
                .clone()
                .map(|n| f64::from(output[n]) - f64::from(wanted[n])));
            let level = rms(inner.map(|n| f64::from(wanted[n])));
            let half_a_sample = std::f64::consts::TAU * 200.0 * 0.5 / f64::from(to);
            assert!(
                error / level < half_a_sample + 0.005,
                "{from} to {to}: {}",
                error / level
            );
        }
    }

    #[test]
    fn what_the_lower_rate_cannot_hold_is_filtered_out_not_folded() {
        let output = resample(&sine(6_000.0, 48_000, 48_000), hz(48_000), hz(8_000)).unwrap();
        let level = rms(output[400..7_600].iter().map(|&sample| f64::from(sample)));
        assert!(level < 12.0, "{level} of 8485");
    }

    #[test]
    fn loud_audio_saturates_and_never_wraps() {
        let square: Vec<i16> = (0..4_000)
            .map(|n| if n / 40 % 2 == 0 { i16::MAX } else { i16::MIN })
            .collect();
        let output = resample(&square, hz(8_000), hz(16_000)).unwrap();
        // Inside a plateau the sign must hold, whatever the overshoot at its edges.
        for (n, sample) in output.iter().enumerate() {
            if (20..60).contains(&(n % 80)) {
                let high = n / 80 % 2 == 0;
                assert_eq!(*sample > 0, high, "sample {n} is {sample}");
            }
        }
    }

    #[test]
    fn little_is_held_back() {
        let mut resampler = Resampler::new(hz(8_000), hz(16_000)).unwrap();
        let mut output = Vec::new();
        resampler.push(&sine(440.0, 8_000, 800), &mut output);
        let held = 1_600 - output.len();
        assert!(held <= 16 * 18, "{held} samples of 16 kHz are held back");
    }

    #[test]
    fn absurd_rates_are_refused() {
        let error = Resampler::new(hz(10), hz(16_000)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot convert audio at 10 Hz: rates from 1000 Hz to 384000 Hz work"
        );
    }

    #[test]
    fn channels_are_mixed_by_their_mean() {
        assert_eq!(mix_to_mono(&[100, 200, -100, 100, 7], 2), [150, 0]);
        assert_eq!(
            mix_to_mono(&[i16::MAX, i16::MAX, i16::MIN, i16::MIN], 2),
            [i16::MAX, i16::MIN]
        );
        assert_eq!(mix_to_mono(&[1, 2, 3], 1), [1, 2, 3]);
    }

    proptest! {
        /// However a stream is cut up, the same samples come out, and exactly as many as it is due.
        #[test]
        fn pieces_do_not_matter(
            from in 4_000u32..50_000,
            to in 4_000u32..50_000,
            pieces in prop::collection::vec(0usize..1_500, 0..6),
        ) {
            let (from, to) = (hz(from), hz(to));
            let input = sine(300.0, from.hertz(), pieces.iter().sum());
            let whole = resample(&input, from, to).unwrap();
            prop_assert_eq!(whole.len() as u64, resampled_len(input.len() as u64, from, to));

            let mut resampler = Resampler::new(from, to).unwrap();
            for _ in 0..2 { // The second time proves that `finish` leaves nothing behind.
                let mut output = Vec::new();
                let mut rest = &input[..];
                for piece in &pieces {
                    let (now, later) = rest.split_at(*piece);
                    resampler.push(now, &mut output);
                    rest = later;
                }
                resampler.finish(&mut output);
                prop_assert_eq!(&output, &whole);
            }
        }

        #[test]
        fn frames_hold_the_stream_in_order(pieces in prop::collection::vec(0usize..2_000, 0..8)) {
            let mut framer = Framer::new(SampleRate::HZ_16000);
            let mut stream = Vec::new();
            let mut frames = Vec::new();
            for length in pieces {
                let piece: Vec<u8> = (0..length).map(|n| (stream.len() + n) as u8).collect();
                stream.extend_from_slice(&piece);
                framer.push(piece.into(), |frame| frames.push(frame));
            }
            let whole = frames.len();
            frames.extend(framer.finish());
            prop_assert!(frames.iter().all(|frame| frame.len() == 640));
            prop_assert_eq!(whole, stream.len() / 640);
            let joined: Vec<u8> = frames.concat();
            prop_assert_eq!(&joined[..stream.len()], &stream[..]);
            prop_assert!(joined[stream.len()..].iter().all(|&byte| byte == 0));
            prop_assert!(framer.finish().is_none());
        }

        #[test]
        fn bytes_and_samples_convert_both_ways(wave in prop::collection::vec(any::<i16>(), 0..100)) {
            prop_assert_eq!(samples(&to_bytes(&wave)).collect::<Vec<_>>(), wave);
        }
    }
}
