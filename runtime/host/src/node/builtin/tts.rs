//! Speech synthesis: clauses in, audio frames of 20 ms out. One call is one clause (P14).

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use rspp_kernel::{CancelReason, cost::CostKind};
use rspp_proto::{
    AudioChunk, Monotonic, OutcomeClass, Payload, SampleIndex, SampleRate, TextChunk,
    spec::CapAction,
};
use rspp_provider_api::{TtsChunk, TtsRequest};
use rspp_transport_api::audio::{Framer, Resampler, samples, to_bytes};

use crate::{
    event::{CallEnd, CallKey, Chunk, Event, Port},
    node::{Node, NodeContext, NodeError, NodeReport, Speech, Step},
};

/// Frames made of a clause that are told at once: a voice that sends one at a time would have its
/// session told of each.
const TOLD_AT_ONCE: u32 = 8;
/// The longest that a frame's making is not told: progress of the turn as well.
const TOLD_WITHIN: Duration = Duration::from_millis(100);

/// The node.
#[derive(Default)]
pub(super) struct Tts {
    waiting: VecDeque<Clause>,
    speaking: Option<Speaking>,
    previous: Option<Arc<str>>,
    text_ended: bool,
    /// Whether the voice is gone: what is to be said is shown.
    mute: bool,
    /// Whether a cap was reached: the rest of the reply is left out.
    cut: bool,
}

struct Clause {
    segment: u32,
    text: Arc<str>,
}

struct Speaking {
    call: CallKey,
    clause: Clause,
    framer: Option<(SampleRate, Framer)>,
    /// Where the voice's rate is higher than it may be.
    resampler: Option<Resampler>,
    /// Frames that the session has not been told of, and when it was last.
    untold: u32,
    told: Option<Monotonic>,
    /// Whether a part of it was said: then nobody says it again, not even its rest (P14).
    settled: bool,
}

impl Tts {
    fn next_clause(&mut self, cx: &mut NodeContext) {
        if self.speaking.is_some() {
            return;
        }
        let Some(clause) = self.waiting.pop_front() else {
            cx.rest();
            if self.text_ended {
                self.text_ended = false;
                cx.emit(Payload::AudioEnd);
            }
            return;
        };
        cx.begin_segment(clause.segment);
        if self.mute || cx.settings().speech == Speech::Text {
            Self::show(cx, &clause);
            self.next_clause(cx);
            return;
        }
        let Some(clause) = self.afforded(cx, clause) else {
            self.next_clause(cx);
            return;
        };
        cx.report(NodeReport::ClauseBegun {
            segment: clause.segment,
            text: Arc::clone(&clause.text),
        });
        let call = cx.synthesize(TtsRequest {
            text: clause.text.to_string(),
            previous_text: self.previous.take().map(|text| text.to_string()),
            voice: cx.settings().text("voice").map(ToOwned::to_owned),
        });
        self.previous = Some(Arc::clone(&clause.text));
        self.speaking = Some(Speaking {
            call,
            clause,
            framer: None,
            resampler: None,
            untold: 0,
            told: None,
            settled: false,
        });
    }

    /// Has a clause sent as text.
    fn show(cx: &mut NodeContext, clause: &Clause) {
        cx.report(NodeReport::ClauseShown {
            segment: clause.segment,
            text: Arc::clone(&clause.text),
        });
        cx.settle_input();
    }

    /// The clause, if the session can pay for it; the whole words of it that it can pay for, if
    /// nothing would be said otherwise.
    fn afforded(&mut self, cx: &mut NodeContext, clause: Clause) -> Option<Clause> {
        if self.cut {
            return None;
        }
        let Some(allowance) = cx.allowance(CostKind::TtsCharacters) else {
            return Some(clause);
        };
        let characters = clause.text.chars().count() as u64;
        if characters <= allowance.left {
            return Some(clause);
        }
        self.cut = true;
        let begun = self.previous.is_some();
        cx.report_cap(&allowance, begun);
        let alone = !begun && allowance.effect(begun) == CapAction::Truncate;
        let words = alone.then(|| whole_words(&clause.text, allowance.left as usize))?;
        (!words.is_empty()).then(|| Clause {
            segment: clause.segment,
            text: words.into(),
        })
    }

    fn take_text(&mut self, chunk: &TextChunk) {
        if chunk.is_final {
            self.waiting.push_back(Clause {
                segment: chunk.segment,
                text: Arc::clone(&chunk.text),
            });
        }
    }
}

/// The whole words at the beginning of `text` that have no more than that many characters.
fn whole_words(text: &str, most: usize) -> &str {
    let Some((cut, _)) = text.char_indices().nth(most) else {
        return text;
    };
    let head = &text[..cut];
    if text[cut..].starts_with(char::is_whitespace) {
        return head.trim_end();
    }
    head.rfind(char::is_whitespace)
        .map_or("", |at| head[..at].trim_end())
}

impl Speaking {
    /// Cuts what came into frames; whole frames share the provider's buffer.
    fn take(&mut self, cx: &mut NodeContext, chunk: TtsChunk) {
        let chunk = self.lowered(cx, chunk);
        let rate = chunk.sample_rate;
        let (_, framer) = self.framer.get_or_insert_with(|| (rate, Framer::new(rate)));
        let mut frames = Vec::with_capacity(chunk.pcm.len() / framer.frame_bytes() + 1);
        framer.push(chunk.pcm, |frame| frames.push(frame));
        self.emit(cx, rate, frames);
    }

    /// The audio at the highest rate that the plan allows (F-048).
    fn lowered(&mut self, cx: &NodeContext, chunk: TtsChunk) -> TtsChunk {
        let most = cx.settings().extent.max_sample_rate;
        let Some(most) = most.and_then(SampleRate::new) else {
            return chunk;
        };
        if chunk.sample_rate.hertz() <= most.hertz() {
            return chunk;
        }
        if self.resampler.is_none() {
            self.resampler = Resampler::new(chunk.sample_rate, most).ok();
        }
        let Some(resampler) = &mut self.resampler else {
            return chunk; // A rate that no voice has.
        };
        let input: Vec<i16> = samples(&chunk.pcm).collect();
        let mut lowered = Vec::new();
        resampler.push(&input, &mut lowered);
        TtsChunk {
            sample_rate: most,
            pcm: to_bytes(&lowered),
        }
    }

    /// Fills the last frame with silence, so that clauses are counted in whole frames.
    fn finish(mut self, cx: &mut NodeContext) {
        if let (Some(resampler), Some((_, framer))) = (&mut self.resampler, &mut self.framer) {
            let mut rest = Vec::new();
            resampler.finish(&mut rest);
            let mut frames = Vec::new();
            framer.push(to_bytes(&rest), |frame| frames.push(frame));
            let rate = self.framer.as_ref().map(|(rate, _)| *rate);
            if let Some(rate) = rate {
                self.emit(cx, rate, frames);
            }
        }
        if let Some((rate, mut framer)) = self.framer.take() {
            self.emit(cx, rate, framer.finish());
        }
        self.tell(cx, cx.now());
        cx.report(NodeReport::ClauseMade {
            segment: self.clause.segment,
        });
        if !self.settled {
            cx.settle_input();
        }
    }

    fn emit(
        &mut self,
        cx: &mut NodeContext,
        rate: SampleRate,
        frames: impl IntoIterator<Item = Bytes>,
    ) {
        for frame in frames {
            let chunk = AudioChunk::pcm16(rate, frame);
            cx.emit_at(
                Payload::AudioChunk(chunk),
                SampleIndex(0),
                self.clause.segment,
            );
            self.untold += 1;
            if !std::mem::replace(&mut self.settled, true) {
                cx.settle_input();
            }
        }
        let now = cx.now();
        let is_overdue = self.told.is_none_or(|told| now.since(told) >= TOLD_WITHIN);
        if self.untold >= TOLD_AT_ONCE || is_overdue {
            self.tell(cx, now);
        }
    }

    /// Tells the session of the frames that were made.
    fn tell(&mut self, cx: &mut NodeContext, now: Monotonic) {
        let frames = std::mem::take(&mut self.untold);
        if frames > 0 {
            self.told = Some(now);
            cx.report(NodeReport::FramesMade {
                segment: self.clause.segment,
                frames,
            });
        }
    }
}

impl Node for Tts {
    fn start<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        cx.rest();
        Step::OK
    }

    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        match event.payload {
            Payload::Text(chunk) => self.take_text(&chunk),
            Payload::TextEnd => self.text_ended = true,
            Payload::AudioChunk(_)
            | Payload::AudioEnd
            | Payload::Speech(_)
            | Payload::Metrics(_)
            | Payload::Debug(_)
            | Payload::Error(_)
            | Payload::Extension(_) => {}
        }
        self.next_clause(cx);
        Step::OK
    }

    fn on_chunk<'a>(
        &'a mut self,
        cx: &'a mut NodeContext,
        call: CallKey,
        chunk: Chunk,
    ) -> Step<'a> {
        if let Chunk::Tts(chunk) = chunk
            && let Some(speaking) = self.speaking.as_mut().filter(|s| s.call == call)
        {
            speaking.take(cx, chunk);
        }
        Step::OK
    }

    fn on_call_end<'a>(
        &'a mut self,
        cx: &'a mut NodeContext,
        call: CallKey,
        end: CallEnd,
    ) -> Step<'a> {
        let Some(speaking) = self.speaking.take_if(|speaking| speaking.call == call) else {
            return Step::OK;
        };
        // A cancelled call costs the rest of its clause, not the reply.
        if !end.is_success() && end.class != OutcomeClass::Cancelled {
            if cx.settings().speech == Speech::Voice {
                return Step::Done(Err(NodeError::call(&end)));
            }
            // The rest of the reply is shown, this clause as a whole.
            self.mute = true;
            cx.report(NodeReport::VoiceLost { end });
            Self::show(cx, &speaking.clause);
            self.next_clause(cx);
            return Step::OK;
        }
        speaking.finish(cx);
        self.next_clause(cx);
        Step::OK
    }

    /// The clause in progress is spoken to its end.
    fn on_soft_cancel(&mut self, cx: &mut NodeContext, _reason: CancelReason) {
        self.waiting.clear();
        self.text_ended = true;
        self.next_clause(cx);
    }

    fn on_cancel<'a>(&'a mut self, cx: &'a mut NodeContext, _reason: CancelReason) -> Step<'a> {
        cx.rest();
        self.waiting.clear();
        self.speaking = None;
        self.previous = None;
        self.text_ended = false;
        self.cut = false;
        Step::OK
    }
}
