//! Sounds for the unit tests.

/// Something like a vowel: the harmonics of a 120 Hz voice, at speaking loudness, swelling.
pub(crate) fn vowel(samples: usize) -> Vec<i16> {
    let sample = |i: usize| {
        let time = i as f32 / 16_000.0;
        let swell = 0.75 + 0.25 * (time * 4.0 * std::f32::consts::TAU).sin();
        let harmonic = |n: f32| (time * 120.0 * n * std::f32::consts::TAU).sin() / n;
        let sum: f32 = (1..12).map(|n| harmonic(n as f32)).sum();
        (sum * swell * 6_000.0) as i16
    };
    (0..samples).map(sample).collect()
}

/// White noise of that amplitude (root mean square, of 32768), always the same.
pub(crate) fn noise(samples: usize, rms: f32) -> Vec<i16> {
    let mut state = 0x2545_f491_u32;
    let sample = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let uniform = state as f32 / u32::MAX as f32 - 0.5;
        (uniform * rms * 12.0_f32.sqrt()) as i16
    };
    (0..samples).map(sample).collect()
}
