//! Piper: a neural voice, one call a clause.
//!
//! Text becomes phonemes (`phonemes`), phonemes become the voice's numbers, and the network makes
//! the sound of a whole piece at once. It does not stream, so a long clause is cut where a speaker
//! could pause: the first sound then comes after one piece, not after all of them.
//!
//! The network draws its noise from a generator that nobody can seed. Equal text therefore gives
//! equal words but not equal samples, unless the noise is switched off: `piper-steady` is that voice.

mod pcm;
mod pieces;
mod voice;

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, stream};
use rspp_provider_api::{
    Call, ChunkStream, Description, Fault, InferencePool, PoolError, TextToSpeech, TtsChunk,
    TtsRequest,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;

use crate::{
    OnnxRuntime,
    describe::describe,
    lazy::Lazy,
    models::{ModelId, Store, files},
    phonemes::{Dictionary, Phonemizer},
};
use voice::Voice;

/// Where a voice's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PiperFiles {
    /// The network.
    pub model: PathBuf,
    /// What the network expects: its sample rate and its numbers for phonemes.
    pub config: PathBuf,
    /// CMUdict; without it words are read by their spelling.
    pub dictionary: Option<PathBuf>,
}

impl PiperFiles {
    /// The voice and the dictionary of the model store.
    pub fn in_store(store: &Store) -> Self {
        let voice = store.dir(ModelId::PiperJoe);
        Self {
            model: voice.join(files::VOICE),
            config: voice.join(files::VOICE_CONFIG),
            dictionary: Some(store.dir(ModelId::CmuDict).join(files::PRONUNCIATIONS)),
        }
    }
}

/// The Piper voice: RTF 0.1 to 0.2 on one or two cores.
#[derive(Clone, Debug)]
pub struct Piper {
    description: Description,
    parts: Arc<Parts>,
    pool: InferencePool,
    noise: Noise,
}

#[derive(Debug)]
struct Parts {
    phonemizer: Lazy<Phonemizer>,
    voice: Lazy<Voice>,
}

/// Whether the network varies its speech.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noise {
    /// As the voice was made: livelier, never twice the same.
    AsTrained,
    /// Equal text gives equal samples.
    Off,
}

impl Piper {
    /// Loads `files` when first needed and runs on `pool`.
    pub fn new(files: PiperFiles, runtime: OnnxRuntime, pool: InferencePool) -> Self {
        let name = files
            .model
            .file_stem()
            .map(|name| name.to_string_lossy().into_owned());
        let PiperFiles {
            model,
            config,
            dictionary,
        } = files;
        let parts = Parts {
            phonemizer: Lazy::new(move || Ok(phonemizer(dictionary.as_deref()))),
            voice: Lazy::new(move || Voice::load(&model, &config, &runtime)),
        };
        Self {
            description: Description {
                // The first piece is sent while later ones are made.
                streaming: true,
                ..describe("piper", name.as_deref().unwrap_or("piper"))
            },
            parts: Arc::new(parts),
            pool,
            noise: Noise::AsTrained,
        }
    }

    /// The same voice without noise, as `piper-steady`: equal text gives equal samples, a little
    /// flatter in tone. Both share what is loaded.
    #[must_use]
    pub fn steady(self) -> Self {
        let description = Description {
            streaming: self.description.streaming,
            ..describe("piper-steady", &self.description.model)
        };
        Self {
            description,
            noise: Noise::Off,
            ..self
        }
    }

    /// Loads everything and speaks a word into nowhere, so that the first caller does not wait.
    /// Blocks for a second or two.
    pub fn warm_up(&self) -> Result<(), Fault> {
        let ipa = self.parts.phonemizer.get()?.phonemize("Hello.");
        let voice = self.parts.voice.get()?;
        voice.speak(&ipa, self.noise).map(drop)
    }

    fn plan(&self, request: &TtsRequest) -> Result<VecDeque<String>, Fault> {
        let known = request
            .voice
            .as_ref()
            .is_none_or(|v| *v == self.description.model);
        if !known {
            return Err(Fault::blocked(
                "tts_unknown_voice",
                format!(
                    "this voice is `{}`; leave `voice` out",
                    self.description.model
                ),
            ));
        }
        let ipa = self.parts.phonemizer.get()?.phonemize(&request.text);
        let pieces = pieces::split(&ipa);
        if pieces.is_empty() {
            return Err(Fault::blocked(
                "tts_nothing_to_say",
                "the text holds no word that this voice can say",
            ));
        }
        Ok(pieces)
    }
}

fn phonemizer(dictionary: Option<&Path>) -> Phonemizer {
    let words = dictionary.map(|path| (path, fs::read_to_string(path)));
    let dictionary = match words {
        None => Dictionary::default(),
        Some((_, Ok(text))) => Dictionary::parse(text),
        Some((path, Err(error))) => {
            warn!(path = %path.display(), %error, "no pronouncing dictionary, reading words by their spelling; run `rspp models pull`");
            Dictionary::default()
        }
    };
    Phonemizer::new(dictionary)
}

impl TextToSpeech for Piper {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn synthesize(&self, call: Call, request: TtsRequest) -> ChunkStream<TtsChunk> {
        let stop = call.cancel.child_token();
        let piper = Self {
            pool: self.pool.for_call(&call),
            ..self.clone()
        };
        let speech = Speech {
            piper,
            pieces: Pieces::Asked(request),
            ready: VecDeque::new(),
            _stop_when_dropped: stop.clone().drop_guard(),
            stop,
        };
        stream::unfold(Some(speech), |speech| async move {
            let mut speech = speech?;
            match speech.next().await {
                Some(Ok(chunk)) => Some((Ok(chunk), Some(speech))),
                Some(Err(fault)) => Some((Err(fault), None)),
                None => None,
            }
        })
        .boxed()
    }
}

/// A call under way. Dropping it keeps pieces that have not begun from being made.
struct Speech {
    piper: Piper,
    pieces: Pieces,
    ready: VecDeque<TtsChunk>,
    stop: CancellationToken,
    _stop_when_dropped: DropGuard,
}

enum Pieces {
    /// Not yet looked at: reading the dictionary is work for the pool.
    Asked(TtsRequest),
    Planned(VecDeque<String>),
}

impl Speech {
    async fn next(&mut self) -> Option<Result<TtsChunk, Fault>> {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => Some(Err(Fault::cancelled())),
            chunk = self.make_next() => chunk,
        }
    }

    async fn make_next(&mut self) -> Option<Result<TtsChunk, Fault>> {
        while self.ready.is_empty() {
            match self.make_piece().await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(fault) => return Some(Err(fault)),
            }
        }
        self.ready.pop_front().map(Ok)
    }

    /// Plans, or speaks the next piece; `false` when all is said.
    async fn make_piece(&mut self) -> Result<bool, Fault> {
        let piper = self.piper.clone();
        let stop = self.stop.clone();
        match &mut self.pieces {
            Pieces::Asked(request) => {
                let request = request.clone();
                let pieces = self.piper.pool.run(move || piper.plan(&request)).await;
                self.pieces = Pieces::Planned(pieces.map_err(PoolError::into_fault)??);
            }
            Pieces::Planned(pieces) => {
                let Some(ipa) = pieces.pop_front() else {
                    return Ok(false);
                };
                let work = move || {
                    // The slot may have come long after the caller left.
                    if stop.is_cancelled() {
                        return Err(Fault::cancelled());
                    }
                    let voice = piper.parts.voice.get()?;
                    let samples = voice.speak(&ipa, piper.noise)?;
                    Ok(pcm::chunks(&samples, voice.sample_rate))
                };
                let chunks = self
                    .piper
                    .pool
                    .run(work)
                    .await
                    .map_err(PoolError::into_fault)??;
                self.ready.extend(chunks);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rspp_proto::{Epoch, EventId, InvocationId, SessionId};
    use rspp_provider_api::{Attempt, Deadlines, OutcomeClass};

    use super::*;

    fn call() -> Call {
        let session = SessionId::new("s-1").unwrap();
        let event = EventId::canonical(&session, None, 1);
        Call {
            invocation: InvocationId::canonical(&session, None, &event, "tts"),
            attempt: Attempt::FIRST,
            session,
            turn: None,
            epoch: Epoch::FIRST,
            idempotency_key: "key".into(),
            deadlines: Deadlines {
                first_byte: Duration::from_secs(1),
                inter_chunk: Duration::from_secs(1),
            },
            share: Arc::default(),
            queue: Arc::default(),
            extras: Arc::default(),
            cancel: CancellationToken::new(),
        }
    }

    fn piper() -> Piper {
        let files = PiperFiles {
            model: "/nonexistent/voice.onnx".into(),
            config: "/nonexistent/voice.onnx.json".into(),
            dictionary: None,
        };
        let runtime = OnnxRuntime::new("/nonexistent/libonnxruntime.so", 1);
        Piper::new(files, runtime, InferencePool::new(1))
    }

    fn request(text: &str) -> TtsRequest {
        TtsRequest {
            text: text.into(),
            previous_text: None,
            voice: None,
        }
    }

    async fn only_fault(mut chunks: ChunkStream<TtsChunk>) -> Fault {
        let fault = chunks.next().await.unwrap().unwrap_err();
        assert!(chunks.next().await.is_none(), "an error ends the stream");
        fault
    }

    /// F-131: a refusal that would be the same again.
    #[tokio::test]
    async fn text_without_words_is_blocked() {
        for text in ["", "  ", "...", "👋", "漢字", "?!", "\u{0}"] {
            let fault = only_fault(piper().synthesize(call(), request(text))).await;
            assert_eq!(
                (fault.class, fault.reason, fault.retryable),
                (OutcomeClass::Blocked, "tts_nothing_to_say", false),
                "{text:?}"
            );
        }
    }

    #[tokio::test]
    async fn an_unknown_voice_is_blocked_and_told_the_known_one() {
        let asked = TtsRequest {
            voice: Some("amy".into()),
            ..request("Hello.")
        };
        let fault = only_fault(piper().synthesize(call(), asked)).await;
        assert_eq!(fault.reason, "tts_unknown_voice");
        assert!(fault.message.contains("`voice`"), "{fault}");
    }

    #[tokio::test]
    async fn a_missing_model_says_how_to_get_it() {
        let fault = only_fault(piper().synthesize(call(), request("Hello."))).await;
        assert_eq!(fault.class, OutcomeClass::InfrastructureFailure);
        assert!(fault.message.contains("rspp models pull"), "{fault}");
    }

    /// F-046: a cancelled call ends with that and nothing else.
    #[tokio::test]
    async fn a_cancelled_call_says_so_at_once() {
        let call = call();
        call.cancel.cancel();
        let fault = only_fault(piper().synthesize(call, request("Hello."))).await;
        assert_eq!(fault.class, OutcomeClass::Cancelled);
    }
}
