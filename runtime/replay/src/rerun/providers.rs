//! Providers that answer what the recording holds, when they answered it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, stream};
use rspp_proto::{ProviderId, SampleRate, spec::Modality};
use rspp_provider_api::{
    AudioStream, Call, ChunkStream, Cost, Description, EndOfTurn, EndOfTurnModel, Fault,
    FinishReason, LanguageModel, LlmChunk, LlmRequest, Providers, SpeechToText, SttChunk,
    SttRequest, TextToSpeech, ToolCall, TtsChunk, TtsRequest, Usage, VoiceActivity, VoiceDetector,
};
use rspp_timeline::{CallRef, Piece};
use serde::Serialize;
use tokio::time::Instant;

use super::{
    Recorded, RerunError,
    notes::Notes,
    recorded::{Detections, RecordedAnswer},
};
use crate::DivergenceClass;

/// What all providers of a playback share.
#[derive(Clone)]
struct Script {
    answers: Arc<BTreeMap<CallRef, RecordedAnswer>>,
    notes: Notes,
}

struct Player {
    description: Description,
    modality: Modality,
    script: Script,
}

/// The providers that the recorded session had.
pub(super) fn playback(recorded: &Recorded, notes: &Notes) -> Result<Providers, RerunError> {
    let script = Script {
        answers: Arc::new(recorded.answers.clone()),
        notes: notes.clone(),
    };
    let mut providers = Providers::new();
    for note in &recorded.providers {
        let description = Description {
            id: note.id.clone(),
            model: note.model.clone(),
            streaming: note.streaming,
            networked: false,
        };
        let player = Player {
            description: description.clone(),
            modality: note.modality,
            script: script.clone(),
        };
        match note.modality {
            Modality::Stt => providers.add_stt(Arc::new(player)),
            Modality::Llm => providers.add_llm(Arc::new(player)),
            Modality::Tts => providers.add_tts(Arc::new(player)),
            Modality::Vad => {
                let listener = Listener::of(recorded, note.modality, description, notes)?;
                providers.add_voice(Arc::new(listener))
            }
            Modality::EndOfTurn => {
                let listener = Listener::of(recorded, note.modality, description, notes)?;
                providers.add_end_of_turn(Arc::new(listener))
            }
            Modality::External => continue,
        };
    }
    Ok(providers)
}

impl Player {
    /// The recorded answer, piece by piece; what is none of `chunk`'s ends it.
    fn answer<T: Send + 'static>(
        &self,
        call: Call,
        request: &impl Serialize,
        audio: Option<AudioStream>,
        chunk: fn(&Piece) -> Option<T>,
    ) -> ChunkStream<T> {
        let key = CallRef {
            invocation: call.invocation.clone(),
            provider: self.description.id.clone(),
            modality: self.modality,
            attempt: call.attempt.get(),
        };
        let notes = &self.script.notes;
        let turn = call.turn.as_ref();
        let asked = || format!("{} asked `{}`", key.invocation, key.provider);
        let Some(answer) = self.script.answers.get(&key).cloned() else {
            let others = self.script.answers.keys();
            let instead = others
                .filter(|other| other.invocation == key.invocation)
                .find(|other| other.provider != key.provider);
            let (class, baseline) = match instead {
                Some(other) => (
                    DivergenceClass::ProviderChoiceDivergence,
                    format!("{} asked `{}`", other.invocation, other.provider),
                ),
                None => (DivergenceClass::OutcomeDivergence, "nothing".to_owned()),
            };
            notes.note(class, turn, baseline, asked());
            let message = format!(
                "the recording holds no answer of `{}` to {}, attempt {}",
                key.provider, key.invocation, key.attempt
            );
            let fault = Fault::blocked("playback_not_recorded", message);
            return stream::iter([Err(fault)]).boxed();
        };
        notes.used(&key);
        let request = serde_json::to_value(request).unwrap_or_default();
        if request != answer.request {
            notes.note(
                DivergenceClass::OutcomeDivergence,
                turn,
                format!("{} {}", asked(), answer.request),
                format!("{} {request}", asked()),
            );
        }
        let state = Playing {
            began: Instant::now(),
            pieces: answer.pieces.into_iter().collect(),
            audio,
            call,
        };
        stream::unfold(Some(state), move |state| async move {
            let mut state = state?;
            match state.next().await {
                Next::Over => None,
                Next::Fault(fault) => Some((Err(fault), None)),
                Next::Piece(piece) => Some((Ok(chunk(&piece)?), Some(state))),
            }
        })
        .boxed()
    }
}

struct Playing {
    began: Instant,
    pieces: std::collections::VecDeque<(Duration, Piece)>,
    audio: Option<AudioStream>,
    call: Call,
}

enum Next {
    Piece(Piece),
    Fault(Fault),
    Over,
}

impl Playing {
    async fn next(&mut self) -> Next {
        let Some((after, piece)) = self.pieces.pop_front() else {
            // The provider had not said more when it was given up.
            self.call.cancel.cancelled().await;
            return Next::Fault(Fault::cancelled());
        };
        let cancel = self.call.cancel.clone();
        let waited = tokio::select! {
            biased;
            () = cancel.cancelled() => false,
            () = self.wait(after, &piece) => true,
        };
        if !waited {
            return Next::Fault(Fault::cancelled());
        }
        match piece {
            Piece::Ended => Next::Over,
            Piece::Fault {
                class,
                reason,
                message,
                retryable,
                circuit_open,
                backoff_us,
                status,
            } => Next::Fault(Fault {
                class,
                retryable,
                // One that this build does not know goes by its class.
                reason: Fault::reason(class, &reason),
                message,
                circuit_open,
                backoff: backoff_us.map(Duration::from_micros),
                status,
            }),
            piece @ (Piece::Partial(_)
            | Piece::Final { .. }
            | Piece::Delta(_)
            | Piece::ToolCall { .. }
            | Piece::Finished { .. }
            | Piece::Audio { .. }) => Next::Piece(piece),
        }
    }

    /// Until the piece is due. An utterance is listened to meanwhile, and its final text follows its end.
    async fn wait(&mut self, after: Duration, piece: &Piece) {
        let due = self.began + after;
        let is_final = matches!(piece, Piece::Final { .. });
        while let Some(audio) = &mut self.audio {
            tokio::select! {
                biased;
                heard = audio.next() => if heard.is_none() {
                    self.audio = None;
                },
                () = tokio::time::sleep_until(due), if !is_final => break,
            }
        }
        // A sleep of no time takes up to a millisecond, the timer's step.
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
    }
}

impl SpeechToText for Player {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn transcribe(
        &self,
        call: Call,
        request: SttRequest,
        audio: AudioStream,
    ) -> ChunkStream<SttChunk> {
        self.answer(call, &request, Some(audio), |piece| match piece {
            Piece::Partial(text) => Some(SttChunk::Partial { text: text.clone() }),
            Piece::Final { text, confidence } => Some(SttChunk::Final {
                text: text.clone(),
                confidence: *confidence,
            }),
            // Of another modality, or an end.
            Piece::Delta(_)
            | Piece::ToolCall { .. }
            | Piece::Finished { .. }
            | Piece::Audio { .. }
            | Piece::Fault { .. }
            | Piece::Ended => None,
        })
    }
}

impl LanguageModel for Player {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn generate(&self, call: Call, request: LlmRequest) -> ChunkStream<LlmChunk> {
        self.answer(call, &request, None, |piece| match piece {
            Piece::Delta(text) => Some(LlmChunk::Delta(text.clone())),
            Piece::ToolCall {
                id,
                name,
                arguments,
            } => Some(LlmChunk::ToolCall(ToolCall {
                id: id.clone(),
                name: name.clone(),
                arguments: arguments.clone(),
            })),
            Piece::Finished { reason, usage } => Some(LlmChunk::Finished {
                reason: FinishReason::named(reason).unwrap_or(FinishReason::Stop),
                usage: usage.map(|(prompt_tokens, completion_tokens)| Usage {
                    prompt_tokens,
                    completion_tokens,
                }),
            }),
            // Of another modality, or an end.
            Piece::Partial(_)
            | Piece::Final { .. }
            | Piece::Audio { .. }
            | Piece::Fault { .. }
            | Piece::Ended => None,
        })
    }
}

impl TextToSpeech for Player {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn synthesize(&self, call: Call, request: TtsRequest) -> ChunkStream<TtsChunk> {
        self.answer(call, &request, None, |piece| match piece {
            Piece::Audio { sample_rate, pcm } => Some(TtsChunk {
                sample_rate: SampleRate::new(*sample_rate)?,
                pcm: pcm.clone(),
            }),
            // Of another modality, or an end.
            Piece::Partial(_)
            | Piece::Final { .. }
            | Piece::Delta(_)
            | Piece::ToolCall { .. }
            | Piece::Finished { .. }
            | Piece::Fault { .. }
            | Piece::Ended => None,
        })
    }
}

/// Detectors that find what was found.
struct Listener {
    description: Description,
    modality: Modality,
    rate: SampleRate,
    detections: Option<Detections>,
    /// How much was handed out: a detector that is made anew goes on where its forerunner was.
    next: Arc<Mutex<usize>>,
    notes: Notes,
}

impl Listener {
    fn of(
        recorded: &Recorded,
        modality: Modality,
        description: Description,
        notes: &Notes,
    ) -> Result<Self, RerunError> {
        let key: (Modality, ProviderId) = (modality, description.id.clone());
        let detections = recorded.detections.get(&key).cloned();
        let hertz = detections.as_ref().map_or(16_000, |of| of.sample_rate);
        let rate = SampleRate::new(hertz).ok_or_else(|| RerunError::Unreadable {
            what: "sample rate of a detector",
            error: format!("{hertz} Hz is none"),
        })?;
        Ok(Self {
            description,
            modality,
            rate,
            detections,
            next: Arc::default(),
            notes: notes.clone(),
        })
    }

    fn detector(&self) -> Result<Ear, Fault> {
        let detections = self.detections.clone().ok_or_else(|| {
            let id = &self.description.id;
            let what = self.modality.as_str();
            let message = format!("the recording holds nothing that the {what} `{id}` found");
            self.notes.note(
                DivergenceClass::ProviderChoiceDivergence,
                None,
                "another",
                format!("{what} `{id}`"),
            );
            Fault::blocked("playback_not_recorded", message)
        })?;
        Ok(Ear {
            provider: self.description.id.clone(),
            rate: self.rate,
            detections,
            next: Arc::clone(&self.next),
            notes: self.notes.clone(),
        })
    }
}

struct Ear {
    provider: ProviderId,
    rate: SampleRate,
    detections: Detections,
    next: Arc<Mutex<usize>>,
    notes: Notes,
}

impl Ear {
    fn hear(&self) -> f32 {
        let mut next = self.next.lock().expect("no code panics while locked");
        let found = self.detections.values.get(*next).copied();
        if found.is_none() && *next == self.detections.values.len() {
            // Said once; then silence.
            self.notes.note(
                DivergenceClass::OutcomeDivergence,
                None,
                format!("`{}` heard {next} windows", self.provider),
                "more of them",
            );
        }
        *next += 1;
        found.unwrap_or(0.0)
    }
}

impl VoiceActivity for Listener {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn detector(&self) -> Result<Box<dyn VoiceDetector>, Fault> {
        Ok(Box::new(Self::detector(self)?))
    }
}

impl EndOfTurn for Listener {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn model(&self) -> Result<Box<dyn EndOfTurnModel>, Fault> {
        Ok(Box::new(Self::detector(self)?))
    }
}

impl VoiceDetector for Ear {
    fn sample_rate(&self) -> SampleRate {
        self.rate
    }

    fn window(&self) -> usize {
        self.detections.window
    }

    fn cost(&self) -> Cost {
        Cost::Inline
    }

    fn probability(&mut self, _window: &[i16]) -> f32 {
        self.hear()
    }

    fn reset(&mut self) {}
}

impl EndOfTurnModel for Ear {
    fn sample_rate(&self) -> SampleRate {
        self.rate
    }

    fn window(&self) -> usize {
        self.detections.window
    }

    fn cost(&self) -> Cost {
        Cost::Inline
    }

    fn complete(&mut self, _audio: &[i16], _transcript: Option<&str>) -> f32 {
        self.hear()
    }
}
