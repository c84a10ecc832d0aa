//! G.711: 16-bit samples in one byte each, by the law of North America and Japan and by that of everybody else.

use bytes::Bytes;

use crate::audio::{samples, to_bytes};

/// What is added to a magnitude under the mu-law, so that its logarithm has a floor.
const BIAS: u32 = 0x84;
/// The largest magnitude that the mu-law has.
const CLIP: u32 = 32_635;

/// One sample under the mu-law.
pub fn to_ulaw(sample: i16) -> u8 {
    let sign = if sample < 0 { 0x80 } else { 0 };
    let magnitude = u32::from(sample.unsigned_abs()).min(CLIP) + BIAS;
    // Between 2^7 and 2^15, thanks to the bias.
    let exponent = magnitude.ilog2() - 7;
    let mantissa = (magnitude >> (exponent + 3)) & 0x0f;
    !(sign | (exponent << 4) as u8 | mantissa as u8)
}

/// The sample that a byte stands for under the mu-law.
pub fn from_ulaw(byte: u8) -> i16 {
    let byte = !byte;
    let exponent = u32::from(byte >> 4) & 0x07;
    let mantissa = u32::from(byte & 0x0f);
    let magnitude = (((mantissa << 3) + BIAS) << exponent) - BIAS;
    let magnitude = i16::try_from(magnitude).expect("the largest is 32124");
    if byte & 0x80 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

/// One sample under the A-law.
pub fn to_alaw(sample: i16) -> u8 {
    let sample = i32::from(sample) >> 3;
    let (mask, magnitude) = if sample >= 0 {
        (0xd5, sample)
    } else {
        (0x55, -sample - 1)
    };
    let segment = if magnitude < 0x20 {
        0
    } else {
        magnitude.ilog2().cast_signed() - 4
    };
    let mantissa = if segment < 2 {
        (magnitude >> 1) & 0x0f
    } else {
        (magnitude >> segment) & 0x0f
    };
    (((segment << 4) | mantissa) ^ mask) as u8
}

/// The sample that a byte stands for under the A-law.
pub fn from_alaw(byte: u8) -> i16 {
    let byte = i32::from(byte ^ 0x55);
    let mantissa = (byte & 0x0f) << 4;
    let magnitude = match (byte & 0x70) >> 4 {
        0 => mantissa + 8,
        1 => mantissa + 0x108,
        segment => (mantissa + 0x108) << (segment - 1),
    };
    let sample = if byte & 0x80 == 0 {
        -magnitude
    } else {
        magnitude
    };
    sample as i16
}

/// PCM as it comes out of a line of mu-law.
pub fn through(pcm: &[u8]) -> Bytes {
    let heard: Vec<i16> = samples(pcm)
        .map(|sample| from_ulaw(to_ulaw(sample)))
        .collect();
    to_bytes(&heard)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The values that the recommendation's table has.
    #[test]
    fn the_table_is_the_recommendations() {
        for (sample, byte) in [
            (0, 0xff),
            (-1, 0x7f),
            (32_124, 0x80),
            (-32_124, 0x00),
            (1_884, 0xc0),
            (-8, 0x7e),
            (31_100, 0x81),
        ] {
            assert_eq!(to_ulaw(sample), byte, "{sample}");
        }
        assert_eq!(
            (from_ulaw(0x80), from_ulaw(0x00), from_ulaw(0xff)),
            (32_124, -32_124, 0)
        );
    }

    #[test]
    fn every_byte_comes_back_and_no_sample_is_far_off() {
        for byte in 0..=u8::MAX {
            let again = to_ulaw(from_ulaw(byte));
            // There are two zeros.
            assert!(again == byte || from_ulaw(byte) == 0, "{byte:#x}");
        }
        for sample in (i16::MIN..=i16::MAX).step_by(7) {
            let off = (i32::from(from_ulaw(to_ulaw(sample))) - i32::from(sample)).abs();
            let most = (i32::from(sample).abs() / 16).max(8) + 1;
            assert!(
                off <= most || sample.unsigned_abs() > 32_124,
                "{sample}: {off}"
            );
        }
    }

    /// The ends and the middle of both scales, by the tables of the recommendation.
    #[test]
    fn known_bytes_are_known_samples() {
        for (byte, sample) in [(0x00, -32_124), (0x80, 32_124), (0xff, 0), (0x7f, 0)] {
            assert_eq!(from_ulaw(byte), sample, "{byte:#x}");
        }
        for (byte, sample) in [(0x2a, -32_256), (0xaa, 32_256), (0xd5, 8), (0x55, -8)] {
            assert_eq!(from_alaw(byte), sample, "{byte:#x}");
        }
    }

    #[test]
    fn every_byte_survives_both_ways() {
        for byte in 0..=u8::MAX {
            assert_eq!(to_alaw(from_alaw(byte)), byte, "{byte:#x}");
            // Two bytes stand for silence.
            let again = to_ulaw(from_ulaw(byte));
            assert!(
                again == byte || (byte == 0x7f && again == 0xff),
                "{byte:#x}"
            );
        }
    }

    proptest! {
        /// A logarithmic code errs by a share of the sample, whatever its size.
        #[test]
        fn a_sample_comes_back_nearly_as_it_was(sample: i16) {
            let near = |other: i16| {
                let off = (i32::from(sample) - i32::from(other)).abs();
                off <= i32::from(sample).abs() / 16 + 16 || sample.unsigned_abs() > 32_000
            };
            prop_assert!(near(from_ulaw(to_ulaw(sample))));
            prop_assert!(near(from_alaw(to_alaw(sample))));
        }
    }
}
