//! A scripted voice.

use std::{f32::consts::TAU, time::Duration};

use bytes::Bytes;
use rspp_proto::SampleRate;

use crate::{Call, ChunkStream, Description, Fault, TextToSpeech, TtsChunk, TtsRequest};

use super::{
    Script, Tally, describe,
    performance::{Stage, play},
};

/// What a scripted voice sounds like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sound {
    /// Zeros.
    Silence,
    /// A sine; its pitch is rounded so that whole periods fill a chunk.
    Tone {
        /// Pitch, in hertz.
        hertz: f32,
        /// Peak, of 32 767.
        amplitude: i16,
    },
}

/// A voice that hums for as long as its text is.
#[derive(Debug)]
pub struct ScriptedTts {
    description: Description,
    stage: Stage,
    sample_rate: SampleRate,
    sound: Sound,
    per_character: Duration,
    chunk: Duration,
    real_time_factor: f64,
    /// One chunk of sound: all chunks share it, so that thousands of sessions cost no arithmetic.
    wave: Bytes,
}

impl ScriptedTts {
    /// A voice of that id: 16 kHz, a 440 Hz tone, 60 ms a character, chunks of 20 ms, no delay.
    pub fn new(id: &str) -> Self {
        Self {
            description: describe(id, true),
            stage: Stage::default(),
            sample_rate: SampleRate::HZ_16000,
            sound: Sound::Tone {
                hertz: 440.0,
                amplitude: 8_000,
            },
            per_character: Duration::from_millis(60),
            chunk: Duration::from_millis(20),
            real_time_factor: 0.0,
            wave: Bytes::new(),
        }
        .with_wave()
    }

    /// The rate of its audio.
    #[must_use]
    pub fn sample_rate(mut self, rate: SampleRate) -> Self {
        self.sample_rate = rate;
        self.with_wave()
    }

    /// What it sounds like.
    #[must_use]
    pub fn sound(mut self, sound: Sound) -> Self {
        self.sound = sound;
        self.with_wave()
    }

    /// How long a character of text is spoken.
    #[must_use]
    pub fn per_character(mut self, duration: Duration) -> Self {
        self.per_character = duration;
        self
    }

    /// How much audio a chunk holds; at least one sample.
    #[must_use]
    pub fn chunk(mut self, duration: Duration) -> Self {
        self.chunk = duration;
        self.with_wave()
    }

    /// Time it takes to make audio, as a share of its length: 0.1 makes a second in 100 ms.
    #[must_use]
    pub fn real_time_factor(mut self, factor: f64) -> Self {
        self.real_time_factor = factor.max(0.0);
        self
    }

    /// How attempts go.
    #[must_use]
    pub fn script(self, script: Script) -> Self {
        self.set_script(script);
        self
    }

    /// Changes how attempts from now on go.
    pub fn set_script(&self, script: Script) {
        self.stage.set_script(script);
    }

    /// What became of the calls.
    pub fn tally(&self) -> Tally {
        self.stage.tally()
    }

    /// How long that text is spoken.
    pub fn duration_of(&self, text: &str) -> Duration {
        self.per_character
            .saturating_mul(u32::try_from(text.chars().count()).unwrap_or(u32::MAX))
    }

    fn with_wave(mut self) -> Self {
        let samples = self.sample_rate.samples_in(self.chunk).max(1);
        self.wave = wave(self.sound, self.sample_rate, samples);
        self
    }
}

impl TextToSpeech for ScriptedTts {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn synthesize(&self, call: Call, request: TtsRequest) -> ChunkStream<TtsChunk> {
        let performance = self.stage.begin(&call);
        if request.text.trim().is_empty() {
            return performance.refuse(Fault::blocked(
                "provider_client_error",
                "there is nothing to say: the text is blank",
            ));
        }
        let sample_rate = self.sample_rate;
        let wave = self.wave.clone();
        let factor = self.real_time_factor;
        let samples = sample_rate
            .samples_in(self.duration_of(&request.text))
            .max(1);
        let mut bytes_left = usize::try_from(samples * 2).unwrap_or(usize::MAX);
        let chunks = std::iter::from_fn(move || {
            let take = bytes_left.min(wave.len());
            bytes_left -= take;
            let spoken = sample_rate.duration_of(take as u64 / 2);
            (take > 0).then(|| {
                let pcm = wave.slice(..take);
                (spoken.mul_f64(factor), TtsChunk { sample_rate, pcm })
            })
        });
        play(performance, chunks)
    }
}

fn wave(sound: Sound, rate: SampleRate, samples: u64) -> Bytes {
    match sound {
        Sound::Silence => vec![0; samples as usize * 2].into(),
        Sound::Tone { hertz, amplitude } => {
            let periods = (hertz * samples as f32 / rate.hertz() as f32)
                .round()
                .max(1.0);
            let sample = |at: u64| {
                let phase = TAU * periods * at as f32 / samples as f32;
                (phase.sin() * f32::from(amplitude)) as i16
            };
            (0..samples)
                .flat_map(|at| sample(at).to_le_bytes())
                .collect()
        }
    }
}
