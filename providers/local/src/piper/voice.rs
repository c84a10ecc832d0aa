//! A Piper voice: its configuration and its network.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
};

use ort::{session::Session, value::Tensor};
use rspp_proto::SampleRate;
use rspp_provider_api::Fault;
use serde::Deserialize;

use super::Noise;
use crate::{OnnxRuntime, onnx};

/// A loaded voice.
pub(super) struct Voice {
    pub(super) sample_rate: SampleRate,
    config: Config,
    // One session for all conversations: a piece holds it for 50 to 400 ms, and a second one would
    // cost another 150 MB and gain nothing on the two cores a small machine has.
    session: Mutex<Session>,
}

/// The part of a voice's `.onnx.json` that is needed to speak.
#[derive(Debug, Deserialize)]
struct Config {
    audio: Audio,
    inference: Inference,
    #[serde(default = "one_speaker")]
    num_speakers: u32,
    phoneme_id_map: HashMap<String, Vec<i64>>,
}

#[derive(Debug, Deserialize)]
struct Audio {
    sample_rate: u32,
}

#[derive(Debug, Deserialize)]
struct Inference {
    noise_scale: f32,
    length_scale: f32,
    noise_w: f32,
}

fn one_speaker() -> u32 {
    1
}

impl Voice {
    pub(super) fn load(model: &Path, config: &Path, runtime: &OnnxRuntime) -> Result<Self, Fault> {
        let doing = format!("loading {}", config.display());
        let json = fs::read(config)
            .map_err(|error| onnx::fault(&doing, format!("{error}; run `rspp models pull`")))?;
        let config: Config =
            serde_json::from_slice(&json).map_err(|error| onnx::fault(&doing, error))?;
        let sample_rate = SampleRate::new(config.audio.sample_rate)
            .ok_or_else(|| onnx::fault(&doing, "its sample rate is 0"))?;
        if config.num_speakers > 1 {
            return Err(onnx::fault(
                &doing,
                "voices of several speakers are not supported",
            ));
        }
        Ok(Self {
            sample_rate,
            config,
            session: Mutex::new(runtime.session(model)?),
        })
    }

    /// The samples of some phonemes, nominally within -1 to 1; blocks while they are made.
    pub(super) fn speak(&self, ipa: &str, noise: Noise) -> Result<Vec<f32>, Fault> {
        let ids = self.config.ids(ipa);
        self.run(ids, noise)
            .map_err(|error| onnx::fault("running the voice", error))
    }

    fn run(&self, ids: Vec<i64>, noise: Noise) -> ort::Result<Vec<f32>> {
        let length = ids.len();
        let Inference {
            noise_scale,
            length_scale,
            noise_w,
        } = self.config.inference;
        let scales = match noise {
            Noise::AsTrained => vec![noise_scale, length_scale, noise_w],
            Noise::Off => vec![0.0, length_scale, 0.0],
        };
        let inputs = ort::inputs![
            "input" => Tensor::from_array(([1, length], ids))?,
            "input_lengths" => Tensor::from_array(([1], vec![i64::try_from(length).unwrap_or(i64::MAX)]))?,
            "scales" => Tensor::from_array(([3], scales))?,
        ];
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = session.run(inputs)?;
        let (_, samples) = outputs["output"].try_extract_tensor::<f32>()?;
        Ok(samples.to_vec())
    }
}

impl Config {
    /// The voice's numbers for phonemes: a begin, each phoneme with a pad after it, an end.
    /// Phonemes it does not know are left out.
    fn ids(&self, ipa: &str) -> Vec<i64> {
        let id = |symbol: &str| {
            self.phoneme_id_map
                .get(symbol)
                .map(Vec::as_slice)
                .unwrap_or_default()
        };
        let pad = id("_");
        let mut ids = Vec::with_capacity(ipa.len() * 2 + 3);
        ids.extend_from_slice(id("^"));
        ids.extend_from_slice(pad);
        let mut buffer = [0; 4];
        for phoneme in ipa.chars() {
            let known = id(phoneme.encode_utf8(&mut buffer));
            if !known.is_empty() {
                ids.extend_from_slice(known);
                ids.extend_from_slice(pad);
            }
        }
        ids.extend_from_slice(id("$"));
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phonemes_become_padded_numbers_between_begin_and_end() {
        let json = r#"{
            "audio": {"sample_rate": 22050, "quality": "medium"},
            "inference": {"noise_scale": 0.667, "length_scale": 1, "noise_w": 0.8},
            "phoneme_id_map": {"_": [0], "^": [1], "$": [2], " ": [3], "a": [14], "ˈ": [120], "̩": [144]}
        }"#;
        let config: Config = serde_json::from_str(json).unwrap();
        assert_eq!(config.num_speakers, 1);
        assert_eq!(
            config.ids("ˈa §a̩"),
            [1, 0, 120, 0, 14, 0, 3, 0, 14, 0, 144, 0, 2]
        );
        assert_eq!(config.ids(""), [1, 0, 2]);
    }
}
