//! Moonshine's networks: from samples to tokens, one at a time.

use std::{
    borrow::Cow,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ort::{
    session::{Session, SessionInputValue},
    value::{DynValue, Tensor},
};
use rspp_provider_api::Fault;

use super::{quiet, resample::RATE, stop::Stop, vocabulary::Vocabulary};
use crate::{OnnxRuntime, models::files, onnx};

/// Layers of the decoder.
const LAYERS: usize = 8;
/// The token that a text begins with.
const BEGIN: i64 = 1;
/// The token that a text ends with.
const END: i64 = 2;
/// More tokens a second than anyone speaks; without a limit, noise can make the model loop.
const TOKENS_PER_SECOND: f32 = 6.5;
/// Tokens allowed beyond that, for short utterances.
const SPARE_TOKENS: usize = 8;

/// What was understood.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Transcript {
    pub(super) text: String,
    /// Geometric mean of the tokens' probabilities; `None` for no tokens.
    pub(super) confidence: Option<f32>,
}

/// Moonshine's networks. Shared by all conversations: each step holds one network for at most
/// 0.2 s (the encoder) or 15 ms (the decoder), so that utterances at a time take turns. Copies
/// would cost 250 MB each.
pub(super) struct Decoder {
    encoder: Mutex<Session>,
    first: Mutex<Session>,
    next: Mutex<Session>,
    vocabulary: Vocabulary,
    caches: Vec<Cache>,
}

/// One of the decoder's attention caches.
struct Cache {
    input: String,
    output: String,
    /// Caches of what the encoder heard are made by the first step and stay.
    grows: bool,
}

impl Decoder {
    pub(super) fn load(dir: &Path, runtime: &OnnxRuntime) -> Result<Self, Fault> {
        let session = |name| runtime.session(&dir.join(name)).map(Mutex::new);
        let path = dir.join(files::TOKENIZER);
        let doing = format!("loading {}", path.display());
        let words = std::fs::read(&path).map_err(|error| onnx::fault(&doing, error))?;
        let vocabulary = Vocabulary::parse(&words)
            .ok_or_else(|| onnx::fault(&doing, "not a vocabulary; run `rspp models pull`"))?;
        Ok(Self {
            encoder: session(files::ENCODER)?,
            first: session(files::DECODER_FIRST)?,
            next: session(files::DECODER_NEXT)?,
            vocabulary,
            caches: caches(),
        })
    }

    /// Understands samples at 16 kHz. `None` if `stop` fired.
    pub(super) fn transcribe(
        &self,
        samples: &[f32],
        stop: &Stop,
    ) -> Result<Option<Transcript>, Fault> {
        if stop.fired() {
            return Ok(None);
        }
        if !quiet::holds_speech(samples) {
            return Ok(Some(Transcript::default()));
        }
        self.decode(samples, stop)
    }

    /// Runs all networks once.
    pub(super) fn warm_up(&self) -> Result<(), Fault> {
        self.decode(&vec![0.0; RATE as usize / 2], &Stop::default())
            .map(drop)
    }

    fn decode(&self, samples: &[f32], stop: &Stop) -> Result<Option<Transcript>, Fault> {
        match self.run(samples, stop) {
            Ok(transcript) => Ok(transcript),
            // A stopped network says so with an error.
            Err(_) if stop.fired() => Ok(None),
            Err(error) => Err(onnx::fault("running moonshine", error)),
        }
    }

    fn run(&self, samples: &[f32], stop: &Stop) -> ort::Result<Option<Transcript>> {
        let heard = self.encode(samples, stop)?;
        let seconds = samples.len() as f32 / RATE as f32;
        let most = (seconds * TOKENS_PER_SECOND) as usize + SPARE_TOKENS;
        let mut state = Vec::with_capacity(self.caches.len());
        let mut tokens = Vec::with_capacity(most);
        let mut log_probability = 0.0;
        while tokens.len() < most {
            if stop.fired() {
                return Ok(None);
            }
            let best = match tokens.last() {
                None => self.first_step(&heard, &mut state)?,
                Some(token) => self.next_step(*token, &mut state)?,
            };
            if best.token == END {
                break;
            }
            log_probability += best.log_probability;
            tokens.push(best.token);
        }
        let confidence = (log_probability / tokens.len() as f32).exp();
        Ok(Some(Transcript {
            text: self.vocabulary.text(&tokens),
            confidence: (!tokens.is_empty()).then_some(confidence.clamp(0.0, 1.0)),
        }))
    }

    fn encode(&self, samples: &[f32], stop: &Stop) -> ort::Result<DynValue> {
        let input = Tensor::from_array(([1, samples.len()], samples.to_vec()))?;
        let mut encoder = hold(&self.encoder);
        let mut outputs =
            encoder.run_with_options(ort::inputs!["input_values" => input], stop.run_options()?)?;
        take(&mut outputs, "last_hidden_state")
    }

    fn first_step(&self, heard: &DynValue, state: &mut Vec<DynValue>) -> ort::Result<Best> {
        let inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = vec![
            ("input_ids".into(), token(BEGIN)?),
            ("encoder_hidden_states".into(), heard.into()),
        ];
        let mut first = hold(&self.first);
        let mut outputs = first.run(inputs)?;
        for cache in &self.caches {
            state.push(take(&mut outputs, &cache.output)?);
        }
        best(&take(&mut outputs, "logits_out")?)
    }

    fn next_step(&self, last: i64, state: &mut [DynValue]) -> ort::Result<Best> {
        let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> =
            vec![("input_ids".into(), token(last)?)];
        for (cache, value) in self.caches.iter().zip(&*state) {
            inputs.push((cache.input.as_str().into(), value.into()));
        }
        let mut next = hold(&self.next);
        let mut outputs = next.run(inputs)?;
        for (cache, value) in self.caches.iter().zip(state) {
            if cache.grows {
                *value = take(&mut outputs, &cache.output)?;
            }
        }
        best(&take(&mut outputs, "logits_out")?)
    }
}

/// The most probable token.
struct Best {
    token: i64,
    log_probability: f32,
}

fn best(logits: &DynValue) -> ort::Result<Best> {
    let (_, logits) = logits.try_extract_tensor::<f32>()?;
    let (token, highest) = (0..)
        .zip(logits.iter().copied())
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap_or((END, 0.0));
    let sum: f32 = logits.iter().map(|logit| (logit - highest).exp()).sum();
    Ok(Best {
        token,
        log_probability: -sum.ln(),
    })
}

fn token<'a>(token: i64) -> ort::Result<SessionInputValue<'a>> {
    Ok(Tensor::from_array(([1, 1], vec![token]))?.into())
}

fn take(outputs: &mut ort::session::SessionOutputs<'_>, name: &str) -> ort::Result<DynValue> {
    outputs
        .remove(name)
        .ok_or_else(|| ort::Error::new(format!("the model has no output `{name}`")))
}

fn hold(session: &Mutex<Session>) -> MutexGuard<'_, Session> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

fn caches() -> Vec<Cache> {
    let mut caches = Vec::with_capacity(4 * LAYERS);
    for layer in 0..LAYERS {
        for (side, grows) in [("decoder", true), ("encoder", false)] {
            for part in ["key", "value"] {
                caches.push(Cache {
                    input: format!("past_key_values.{layer}.{side}.{part}"),
                    output: format!("present.{layer}.{side}.{part}_out"),
                    grows,
                });
            }
        }
    }
    caches
}
