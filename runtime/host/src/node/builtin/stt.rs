//! Speech recognition: audio and speech marks in, transcripts out. One call is one utterance.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use rspp_kernel::{
    CancelReason,
    cost::{Allowance, CostKind},
};
use rspp_proto::{
    AudioChunk, OutcomeClass, Payload, SampleIndex, SampleRate, Speaker, SpeechMark, TextChunk,
    spec::CapAction,
};
use rspp_provider_api::{SttChunk, SttRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    event::{CallEnd, CallKey, Chunk, Event, Port},
    node::{Node, NodeContext, NodeReport, Step},
};

/// Audio from before the speech mark that the recogniser is given too, in milliseconds: the mark
/// comes a little late, and words need their beginning.
const PRE_ROLL_MS: u64 = 200;
/// Audio kept while nobody speaks: pre-roll, and the time the detector takes to be sure.
const KEPT_FRAMES: usize = 40;
/// Longest utterance in frames; what is longer is cut.
const MAX_UTTERANCE_FRAMES: usize = 3_000;

/// The node.
#[derive(Default)]
pub(super) struct Stt {
    recent: VecDeque<(SampleIndex, Bytes)>,
    rate: Option<SampleRate>,
    /// Where the audio of the utterance in progress goes.
    speaking: Option<mpsc::Sender<Bytes>>,
    utterances: BTreeMap<CallKey, Utterance>,
    /// The call for the newest of them.
    call: Option<CallKey>,
    next_segment: u32,
    /// What of the utterance in progress may still be recognised.
    cap: Option<Allowance>,
}

struct Utterance {
    segment: u32,
    revision: u32,
    at: SampleIndex,
    concluded: bool,
}

impl Stt {
    fn take(&mut self, cx: &mut NodeContext, chunk: AudioChunk, at: SampleIndex) {
        let rate = chunk.format.sample_rate;
        self.rate = Some(rate);
        let length = rate.duration_of(chunk.data.len() as u64 / 2);
        if self.speaking.is_some() && !self.affords(length.as_millis() as u64) {
            self.speaking = None;
            if let Some(cap) = self.cap.take() {
                self.cut(cx, &cap);
            }
        }
        if let Some(speaking) = &self.speaking {
            // Full means an utterance beyond its limit: the rest of it is not recognised.
            let _cut = speaking.try_send(chunk.data.clone());
        }
        if self.recent.len() == KEPT_FRAMES {
            self.recent.pop_front();
        }
        self.recent.push_back((at, chunk.data));
    }

    /// The words so far are recognised, and the rest is not paid for; or none of them are, if that is what
    /// the cap is for.
    fn cut(&mut self, cx: &mut NodeContext, cap: &Allowance) {
        cx.report_cap(cap, true);
        if cap.effect(true) != CapAction::Refuse {
            return;
        }
        let Some(call) = self.call.take() else { return };
        if let Some(mut utterance) = self.utterances.remove(&call) {
            cx.abort(call);
            if !utterance.concluded {
                Self::tell(cx, &mut utterance, "", true, None);
            }
        }
    }

    /// The next utterance, as those count that its words go to.
    fn utterance(&mut self, at: SampleIndex) -> Utterance {
        let segment = self.next_segment;
        self.next_segment += 1;
        Utterance {
            segment,
            revision: 0,
            at,
            concluded: false,
        }
    }

    fn affords(&mut self, ms: u64) -> bool {
        let Some(cap) = &mut self.cap else {
            return true;
        };
        let left = cap.left.checked_sub(ms);
        cap.left = left.unwrap_or(cap.left);
        left.is_some()
    }

    fn begin(&mut self, cx: &mut NodeContext, at: SampleIndex) {
        let rate = self.rate.unwrap_or(SampleRate::HZ_16000);
        self.cap = cx.allowance(CostKind::AudioMs);
        if let Some(spent) = self.cap.filter(|cap| cap.left == 0) {
            cx.report_cap(&spent, false);
            let mut refused = self.utterance(at);
            Self::tell(cx, &mut refused, "", true, None);
            return;
        }
        let (sender, receiver) = mpsc::channel(MAX_UTTERANCE_FRAMES);
        let from =
            at.0.saturating_sub(u64::from(rate.hertz()) * PRE_ROLL_MS / 1000);
        for (_, data) in self.recent.iter().filter(|(at, _)| at.0 >= from) {
            let _roomy = sender.try_send(data.clone());
        }
        let before = self.recent.iter().filter(|(at, _)| at.0 >= from);
        let before: usize = before.map(|(_, data)| data.len()).sum();
        let before = rate.duration_of(before as u64 / 2).as_millis() as u64;
        if let Some(cap) = &mut self.cap {
            cap.left = cap.left.saturating_sub(before);
        }
        self.speaking = Some(sender);
        let request = SttRequest {
            sample_rate: rate,
            language: cx.settings().text("language").map(ToOwned::to_owned),
            partials: true,
        };
        let call = cx.transcribe(request, Box::pin(ReceiverStream::new(receiver)));
        let utterance = self.utterance(at);
        self.utterances.insert(call, utterance);
        self.call = Some(call);
    }

    fn tell(
        cx: &mut NodeContext,
        utterance: &mut Utterance,
        text: &str,
        is_final: bool,
        confidence: Option<f32>,
    ) {
        let text: Arc<str> = text.trim().into();
        utterance.revision += 1;
        utterance.concluded = is_final;
        cx.report(NodeReport::Transcript {
            segment: utterance.segment,
            at: utterance.at,
            text: Arc::clone(&text),
            is_final,
        });
        let chunk = TextChunk {
            speaker: Speaker::User,
            text,
            segment: utterance.segment,
            revision: utterance.revision,
            is_final,
            confidence,
            language: None,
        };
        cx.emit_at(
            Payload::Text(Box::new(chunk)),
            utterance.at,
            utterance.segment,
        );
    }
}

impl Node for Stt {
    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        match event.payload {
            Payload::AudioChunk(chunk) => {
                // Frames are of one length.
                cx.hold(self.recent.len() * chunk.data.len());
                self.take(cx, chunk, event.stamp.media);
            }
            Payload::Speech(SpeechMark::Started { at }) => self.begin(cx, at),
            // Closing the audio asks for the final text.
            Payload::Speech(SpeechMark::Stopped { .. } | SpeechMark::EndOfTurn { .. })
            | Payload::AudioEnd => self.speaking = None,
            Payload::Text(_)
            | Payload::TextEnd
            | Payload::Metrics(_)
            | Payload::Debug(_)
            | Payload::Error(_)
            | Payload::Extension(_) => {}
        }
        Step::OK
    }

    /// Audio before an utterance is only kept, for its beginning.
    fn rests(&self) -> usize {
        if self.speaking.is_none() {
            usize::MAX
        } else {
            0
        }
    }

    fn on_chunk<'a>(
        &'a mut self,
        cx: &'a mut NodeContext,
        call: CallKey,
        chunk: Chunk,
    ) -> Step<'a> {
        let Some(utterance) = self.utterances.get_mut(&call) else {
            return Step::OK;
        };
        match chunk {
            Chunk::Stt(SttChunk::Partial { text }) => Self::tell(cx, utterance, &text, false, None),
            Chunk::Stt(SttChunk::Final { text, confidence }) => {
                Self::tell(cx, utterance, &text, true, confidence);
            }
            Chunk::Llm(_) | Chunk::Tts(_) => {}
        }
        Step::OK
    }

    /// What was being recognised is lost; the next utterance is heard again.
    fn on_cancel<'a>(&'a mut self, _cx: &'a mut NodeContext, _reason: CancelReason) -> Step<'a> {
        self.speaking = None;
        self.utterances.clear();
        Step::OK
    }

    /// An utterance always gets a final text, blank if recognition failed, so that nobody waits for
    /// it (P11). The session goes on: the next utterance is a new call.
    fn on_call_end<'a>(
        &'a mut self,
        cx: &'a mut NodeContext,
        call: CallKey,
        end: CallEnd,
    ) -> Step<'a> {
        if let Some(mut utterance) = self.utterances.remove(&call) {
            if !utterance.concluded {
                Self::tell(cx, &mut utterance, "", true, None);
            }
            if !end.is_success() && end.class != OutcomeClass::Cancelled {
                cx.report(NodeReport::CallFailed { end });
            }
        }
        Step::OK
    }
}
