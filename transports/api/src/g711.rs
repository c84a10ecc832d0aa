//! G.711 in its mu-law: what a telephone line makes of a voice, a byte a sample.

use bytes::Bytes;

use crate::audio::{samples, to_bytes};

const BIAS: u32 = 0x84;
const CLIP: u32 = 32_635;

/// The byte for a sample.
pub fn encode(sample: i16) -> u8 {
    let sign = if sample < 0 { 0x80 } else { 0 };
    let magnitude = u32::from(sample.unsigned_abs()).min(CLIP) + BIAS;
    // Between 2^7 and 2^15, thanks to the bias.
    let exponent = magnitude.ilog2() - 7;
    let mantissa = (magnitude >> (exponent + 3)) & 0x0f;
    !(sign | (exponent << 4) as u8 | mantissa as u8)
}

/// The sample for a byte.
pub fn decode(byte: u8) -> i16 {
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

/// PCM as it comes out of a line of mu-law.
pub fn through(pcm: &[u8]) -> Bytes {
    let heard: Vec<i16> = samples(pcm).map(|sample| decode(encode(sample))).collect();
    to_bytes(&heard)
}

#[cfg(test)]
mod tests {
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
            assert_eq!(encode(sample), byte, "{sample}");
        }
        assert_eq!(
            (decode(0x80), decode(0x00), decode(0xff)),
            (32_124, -32_124, 0)
        );
    }

    #[test]
    fn every_byte_comes_back_and_no_sample_is_far_off() {
        for byte in 0..=u8::MAX {
            let again = encode(decode(byte));
            // There are two zeros.
            assert!(again == byte || decode(byte) == 0, "{byte:#x}");
        }
        for sample in (i16::MIN..=i16::MAX).step_by(7) {
            let off = (i32::from(decode(encode(sample))) - i32::from(sample)).abs();
            let most = (i32::from(sample).abs() / 16).max(8) + 1;
            assert!(
                off <= most || sample.unsigned_abs() > 32_124,
                "{sample}: {off}"
            );
        }
    }
}
