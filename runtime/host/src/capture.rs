//! Keeps what comes to a session from outside, where its recording may hold that: the user's side, the
//! operators' orders, and what providers answer. Playback puts it back in its place (F-151).
//!
//! Made for recordings at L2 alone: below, nothing of this costs anything.

use rspp_actors::Clock;
use rspp_proto::{
    InvocationId, Monotonic, ProviderId, SampleRate, TurnNumber,
    spec::{Modality, RecordingLevel},
};
use rspp_provider_api::{Cost, EndOfTurnModel, Fault, LlmChunk, SttChunk, VoiceDetector};
use rspp_timeline::{CallRef, Came, CaptureEntry, Captured, Ordered, Piece, Recorder};
use rspp_transport_api::{Frame, Ingress, Receipt, Stamped};

use crate::{
    event::Chunk,
    node::CallRequest,
    session::{CancelTarget, Command},
};

/// Windows that a detector hears before they are written down: a second and a half.
const TOGETHER: usize = 50;

/// Where it is kept.
#[derive(Clone)]
pub(crate) struct Capture {
    recorder: Recorder,
    clock: Clock,
}

impl Capture {
    /// `None` if the recording was not asked to hold it.
    pub(crate) fn of(recorder: &Recorder, clock: Clock) -> Option<Self> {
        (recorder.wanted() == Some(RecordingLevel::L2)).then(|| Self {
            recorder: recorder.clone(),
            clock,
        })
    }

    fn keep(&self, turn: Option<TurnNumber>, what: Captured) {
        let entry = CaptureEntry {
            at: Monotonic::from_duration(self.clock.now()),
            turn_id: turn.map(TurnNumber::id),
            what,
        };
        // A detail: what finds no room is counted by the recorder.
        if let Err(error) = self.recorder.append(entry) {
            tracing::debug!(%error, "what came from outside was not kept");
        }
    }

    /// Something came in from the user's side; `None` when the user hung up.
    pub(crate) fn came(&self, ingress: Option<&Ingress>) {
        let came = match ingress {
            None => Some(Came::HungUp),
            Some(ingress) => came(ingress),
        };
        if let Some(came) = came {
            self.keep(None, Captured::Came(came));
        }
    }

    pub(crate) fn ordered(&self, command: &Command) {
        let ordered = match command {
            Command::Cancel { target, reason, .. } => {
                let (node, invocation) = match target {
                    CancelTarget::Session | CancelTarget::Turn => (None, None),
                    CancelTarget::Node(node) => (Some(node.clone()), None),
                    CancelTarget::Invocation(call) => (None, Some(call.clone())),
                };
                Ordered::Cancel {
                    scope: target.scope(),
                    node,
                    invocation,
                    reason: reason.as_str().to_owned(),
                }
            }
            // Who looks on changes nothing, and what is forged did not happen.
            Command::Capture | Command::Forge(_) => return,
            Command::Rotate(epoch) => Ordered::Rotate(*epoch),
            Command::Leave | Command::LetGo { .. } => Ordered::Leave,
            Command::HandOver => Ordered::HandOver,
            Command::Revoke => Ordered::Revoke,
            Command::Drain => Ordered::Drain,
        };
        self.keep(None, Captured::Ordered(ordered));
    }

    /// A node asks a provider; what comes of it is told to the answer.
    pub(crate) fn asked(
        &self,
        turn: Option<TurnNumber>,
        invocation: &InvocationId,
        provider: ProviderId,
        attempt: u32,
        request: &CallRequest,
    ) -> Answer {
        let call = CallRef {
            invocation: invocation.clone(),
            provider,
            modality: request.modality(),
            attempt,
        };
        let written = match request {
            CallRequest::Stt(dictation) => serde_json::to_value(&dictation.request),
            CallRequest::Llm(request) => serde_json::to_value(request),
            CallRequest::Tts(request) => serde_json::to_value(request),
        };
        let request = written.expect("requests are made of text and numbers");
        let asked = Captured::Asked {
            call: call.clone(),
            request,
        };
        self.keep(turn, asked);
        Answer {
            capture: self.clone(),
            turn,
            call,
            index: 0,
        }
    }

    /// A detector whose findings are kept.
    pub(crate) fn detector(
        &self,
        id: &ProviderId,
        detector: Box<dyn VoiceDetector>,
    ) -> Box<dyn VoiceDetector> {
        let (rate, window) = (detector.sample_rate(), detector.window());
        let heard = Heard::new(self, id, Modality::Vad, rate, window);
        Box::new(Detector { detector, heard })
    }

    /// An end-of-turn model whose judgements are kept.
    pub(crate) fn model(
        &self,
        id: &ProviderId,
        model: Box<dyn EndOfTurnModel>,
    ) -> Box<dyn EndOfTurnModel> {
        let (rate, window) = (model.sample_rate(), model.window());
        let heard = Heard::new(self, id, Modality::EndOfTurn, rate, window);
        Box::new(Model { model, heard })
    }
}

/// `None` for what is kept elsewhere: what tools came to is in their journal.
fn came(ingress: &Ingress) -> Option<Came> {
    Some(match ingress {
        Ingress::Audio(pcm) => Came::Audio(pcm.clone()),
        Ingress::Frame(Frame {
            sequence,
            position,
            epoch,
            pcm,
        }) => Came::Frame {
            sequence: *sequence,
            position: *position,
            epoch: *epoch,
            pcm: pcm.clone(),
        },
        Ingress::Stamped(stamped) => {
            let Stamped { epoch, key, event } = &**stamped;
            Came::Stamped {
                epoch: *epoch,
                key: key.clone(),
                event: Box::new(came(event)?),
            }
        }
        Ingress::Record { encoding, bytes } => Came::Record {
            encoding: *encoding,
            bytes: bytes.clone(),
        },
        Ingress::Link(link) => Came::Link(link.as_str().to_owned()),
        Ingress::EndOfUtterance => Came::EndOfUtterance,
        Ingress::Cancel => Came::Cancel,
        Ingress::Text(text) => Came::Text(text.clone()),
        Ingress::Extension(extension) => Came::Extension(extension.clone()),
        Ingress::Played(Receipt { turn, played }) => Came::Played {
            turn: *turn,
            ms: played.as_millis() as u64,
        },
        Ingress::ToolResult(_) => return None,
    })
}

/// What comes of one attempt.
pub(crate) struct Answer {
    capture: Capture,
    turn: Option<TurnNumber>,
    call: CallRef,
    index: u64,
}

impl Answer {
    /// The next piece, or `None` when all was said.
    pub(crate) fn answered(&mut self, item: Option<&Result<Chunk, Fault>>) {
        let piece = match item {
            None => Piece::Ended,
            Some(Ok(chunk)) => piece(chunk),
            Some(Err(fault)) => Piece::Fault {
                class: fault.class,
                reason: fault.reason.to_owned(),
                message: fault.message.clone(),
                retryable: fault.retryable,
                circuit_open: fault.circuit_open,
                backoff_us: fault.backoff.map(|backoff| backoff.as_micros() as u64),
                status: fault.status,
            },
        };
        let answered = Captured::Answered {
            call: self.call.clone(),
            index: self.index,
            piece,
        };
        self.index += 1;
        self.capture.keep(self.turn, answered);
    }
}

fn piece(chunk: &Chunk) -> Piece {
    match chunk {
        Chunk::Stt(SttChunk::Partial { text }) => Piece::Partial(text.clone()),
        Chunk::Stt(SttChunk::Final { text, confidence }) => Piece::Final {
            text: text.clone(),
            confidence: *confidence,
        },
        Chunk::Llm(LlmChunk::Delta(text)) => Piece::Delta(text.clone()),
        Chunk::Llm(LlmChunk::ToolCall(call)) => Piece::ToolCall {
            id: call.id.clone(),
            name: call.name.clone(),
            arguments: call.arguments.clone(),
        },
        Chunk::Llm(LlmChunk::Finished { reason, usage }) => Piece::Finished {
            reason: reason.as_str().to_owned(),
            usage: usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens)),
        },
        Chunk::Tts(audio) => Piece::Audio {
            sample_rate: audio.sample_rate.hertz(),
            pcm: audio.pcm.clone(),
        },
    }
}

/// What a detector has heard and nobody has written down.
struct Heard {
    capture: Capture,
    provider: ProviderId,
    modality: Modality,
    sample_rate: SampleRate,
    window: usize,
    first: u64,
    values: Vec<f32>,
}

impl Heard {
    fn new(
        capture: &Capture,
        provider: &ProviderId,
        modality: Modality,
        sample_rate: SampleRate,
        window: usize,
    ) -> Self {
        let mut heard = Self {
            capture: capture.clone(),
            provider: provider.clone(),
            modality,
            sample_rate,
            window,
            first: 0,
            values: Vec::new(),
        };
        // What it is, whether or not it ever hears anything.
        heard.write();
        heard
    }

    fn hear(&mut self, probability: f32, together: usize) -> f32 {
        self.values.push(probability);
        if self.values.len() >= together {
            self.write();
        }
        probability
    }

    fn write(&mut self) {
        let values = std::mem::take(&mut self.values);
        let first = self.first;
        self.first += values.len() as u64;
        let detected = Captured::Detected {
            provider: self.provider.clone(),
            modality: self.modality,
            sample_rate: self.sample_rate.hertz(),
            window: self.window as u64,
            first,
            values,
        };
        self.capture.keep(None, detected);
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        if !self.values.is_empty() {
            self.write();
        }
    }
}

struct Detector {
    detector: Box<dyn VoiceDetector>,
    heard: Heard,
}

impl VoiceDetector for Detector {
    fn sample_rate(&self) -> SampleRate {
        self.detector.sample_rate()
    }

    fn window(&self) -> usize {
        self.detector.window()
    }

    fn cost(&self) -> Cost {
        self.detector.cost()
    }

    fn probability(&mut self, window: &[i16]) -> f32 {
        let probability = self.detector.probability(window);
        self.heard.hear(probability, TOGETHER)
    }

    fn reset(&mut self) {
        self.detector.reset();
    }
}

struct Model {
    model: Box<dyn EndOfTurnModel>,
    heard: Heard,
}

impl EndOfTurnModel for Model {
    fn sample_rate(&self) -> SampleRate {
        self.model.sample_rate()
    }

    fn window(&self) -> usize {
        self.model.window()
    }

    fn cost(&self) -> Cost {
        self.model.cost()
    }

    fn complete(&mut self, audio: &[i16], transcript: Option<&str>) -> f32 {
        let probability = self.model.complete(audio, transcript);
        self.heard.hear(probability, 1)
    }
}
