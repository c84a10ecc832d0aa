//! End of turn: decides from speech marks, the last seconds of audio and the transcript when the
//! user has finished, and says so once, with all that was said.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rspp_kernel::handoff::{Revision, RevisionAction, Revisions, STT_TO_LLM};
use rspp_proto::{Payload, SampleIndex, Speaker, SpeechMark, TextChunk};
use rspp_provider_api::{Cost, EndOfTurnModel};
use rspp_timeline::HandoffAction;
use rspp_transport_api::audio::samples;

use crate::{
    event::{Event, Port},
    node::{Node, NodeContext, NodeError, NodeReport, Step},
};

/// Probability from which a pause counts as the end of the turn.
const COMPLETE_FROM: f64 = 0.5;

/// The node.
#[derive(Default)]
pub(super) struct TurnDetector {
    model: Option<Box<dyn EndOfTurnModel>>,
    /// The newest frames: as much as the model looks at, and what the oldest of them is longer.
    audio: VecDeque<Bytes>,
    /// Bytes of them.
    kept: usize,
    state: State,
    /// Final texts since the last turn, in order.
    finals: Vec<Arc<str>>,
    /// Where the speech began that they are of.
    began: Option<SampleIndex>,
    partial: Option<Arc<str>>,
    /// Utterances so far, counted as recognition counts them.
    utterances: u32,
    /// Utterances that ended and whose final text has not come.
    unheard: BTreeSet<u32>,
    /// The utterance in progress, if its final text has come before its end: more of it is not recognised.
    heard_early: Option<u32>,
    /// The user has said that the speech in progress is over: its silence is no news.
    is_told: bool,
    speech_ended: SampleIndex,
    confidence: f32,
    turns: u32,
    /// What is handed to the model before all of it is known, if anything is.
    revisions: Option<Revisions>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing said since the last turn.
    #[default]
    Quiet,
    Speaking,
    /// Silent, but the model says that more is coming.
    Pausing,
    /// Finished; the final text may still be on its way.
    Finished,
}

impl TurnDetector {
    fn load(&mut self, cx: &NodeContext) -> Result<(), NodeError> {
        if self.model.is_none() {
            let settings = cx.settings();
            let id = settings.provider()?;
            let model = settings
                .registry
                .end_of_turn(id)
                .map_err(|error| NodeError::new(error.to_string()))?
                .model()
                .map_err(|fault| NodeError::provider(fault.to_string()))?;
            self.model = Some(match &settings.capture {
                Some(capture) => capture.model(id, model),
                None => model,
            });
        }
        Ok(())
    }

    /// Samples that the model looks at.
    fn window(&self) -> usize {
        self.model.as_ref().map_or(0, |model| model.window())
    }

    /// Keeps a frame, and lets go of those that the model will not look at.
    fn take_audio(&mut self, cx: &mut NodeContext, frame: Bytes) {
        let window = self.window() * size_of::<i16>();
        if window == 0 {
            return;
        }
        self.kept += frame.len();
        self.audio.push_back(frame);
        while let Some(oldest) = self.audio.front()
            && self.kept - oldest.len() >= window
        {
            self.kept -= oldest.len();
            self.audio.pop_front();
        }
        cx.hold(self.kept);
    }

    /// The newest audio, as much as the model looks at.
    fn heard(&self) -> Vec<i16> {
        let excess = (self.kept / size_of::<i16>()).saturating_sub(self.window());
        let frames = self.audio.iter();
        frames
            .flat_map(|frame| samples(frame))
            .skip(excess)
            .collect()
    }

    fn take_mark<'a>(&'a mut self, cx: &'a mut NodeContext, mark: SpeechMark) -> Step<'a> {
        match mark {
            SpeechMark::Started { .. } => {
                cx.forget_wake();
                self.is_told = false;
                self.state = State::Speaking;
                self.utterances += 1;
                Step::OK
            }
            SpeechMark::Stopped { .. } if self.is_told => {
                self.is_told = false;
                Step::OK
            }
            SpeechMark::Stopped { at } => {
                self.speech_ended = at;
                self.await_text();
                self.judge(cx)
            }
            // Push to talk (F-042): the user says so; what was being said is still to be understood.
            SpeechMark::EndOfTurn { at, .. } => {
                if self.state == State::Speaking {
                    self.await_text();
                    self.is_told = true;
                }
                self.speech_ended = at;
                self.finished(cx, 1.0);
                Step::OK
            }
        }
    }

    /// The utterance is over: its text is waited for, unless it is known.
    fn await_text(&mut self) {
        let utterance = self.utterance();
        if self.heard_early.take() != Some(utterance) {
            self.unheard.insert(utterance);
        }
    }

    /// Asks the model whether the pause is the end.
    fn judge<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        self.state = State::Pausing;
        let transcript = self.words();
        let audio = self.heard();
        let Some(model) = &mut self.model else {
            self.finished(cx, 1.0);
            return Step::OK;
        };
        match model.cost() {
            Cost::Inline => {
                let p = model.complete(&audio, transcript.as_deref());
                self.judged(cx, p);
                Step::OK
            }
            Cost::Offload => Step::Wait(Box::pin(self.ask(cx, audio, transcript))),
        }
    }

    async fn ask(
        &mut self,
        cx: &mut NodeContext,
        audio: Vec<i16>,
        transcript: Option<String>,
    ) -> Result<(), NodeError> {
        let Some(mut model) = self.model.take() else {
            return Ok(());
        };
        let (model, p) = cx
            .pool()
            .run(move || {
                let p = model.complete(&audio, transcript.as_deref());
                (model, p)
            })
            .await
            .map_err(|error| NodeError::provider(error.to_string()))?;
        self.model = Some(model);
        self.judged(cx, p);
        Ok(())
    }

    fn judged(&mut self, cx: &mut NodeContext, p: f32) {
        let settings = cx.settings();
        if f64::from(p) >= settings.number("complete_from", COMPLETE_FROM) {
            self.finished(cx, p);
        } else {
            let patience = Duration::from_millis(settings.turns.max_turn_silence_ms);
            self.confidence = p;
            cx.wake_in(patience);
            self.guess(cx);
        }
    }

    /// The user pauses and may have finished: with all words known, an answer may be begun on a guess.
    fn guess(&self, cx: &mut NodeContext) {
        let is_pausing = self.state == State::Pausing && self.unheard.is_empty();
        if !is_pausing || !cx.settings().turns.speculation.enabled {
            return;
        }
        let text = self.finals.join(" ");
        if !text.trim().is_empty() {
            let text = text.trim().into();
            cx.report(NodeReport::UserPaused { text });
        }
    }

    fn finished(&mut self, cx: &mut NodeContext, confidence: f32) {
        self.confidence = confidence;
        self.state = State::Finished;
        let patience = Duration::from_millis(cx.settings().turns.transcript_timeout_ms);
        cx.wake_in(patience);
        self.conclude(cx, false);
    }

    /// Says what was said, once the turn is over and all of it is known; `force` does not wait for
    /// texts that are overdue.
    fn conclude(&mut self, cx: &mut NodeContext, force: bool) {
        if self.state != State::Finished || (!self.unheard.is_empty() && !force) {
            return;
        }
        cx.forget_wake();
        let text = self.finals.join(" ");
        let text = text.trim();
        let mark = SpeechMark::EndOfTurn {
            at: self.speech_ended,
            confidence: self.confidence,
        };
        if let Some(revisions) = &mut self.revisions {
            revisions.conclude();
            self.tell(cx);
        }
        cx.report(NodeReport::Speech(mark));
        cx.emit_at(Payload::Speech(mark), self.speech_ended, self.turns);
        if text.is_empty() {
            let is_overdue = !self.unheard.is_empty();
            cx.report(NodeReport::NothingHeard { is_overdue });
        } else {
            let text: Arc<str> = text.into();
            let chunk = TextChunk::whole(Speaker::User, self.turns, Arc::clone(&text));
            cx.emit_at(
                Payload::Text(Box::new(chunk)),
                self.speech_ended,
                self.turns,
            );
            let from = self.began.unwrap_or(self.speech_ended);
            let until = self.speech_ended.max(from);
            cx.report(NodeReport::UserTurn { text, from, until });
            self.turns += 1;
        }
        self.finals.clear();
        self.began = None;
        self.partial = None;
        self.unheard.clear();
        self.state = State::Quiet;
    }

    fn words(&self) -> Option<String> {
        let mut words: Vec<&str> = self.finals.iter().map(AsRef::as_ref).collect();
        words.extend(self.partial.as_deref());
        let words = words.join(" ");
        (!words.trim().is_empty()).then_some(words)
    }

    fn take_text(&mut self, cx: &mut NodeContext, chunk: &TextChunk, at: SampleIndex) {
        if chunk.speaker != Speaker::User {
            return;
        }
        if !chunk.is_final {
            self.partial = Some(Arc::clone(&chunk.text));
            self.hand_over(cx);
            return;
        }
        self.partial = None;
        self.unheard.remove(&chunk.segment);
        if self.state == State::Speaking && chunk.segment == self.utterance() {
            self.heard_early = Some(chunk.segment);
        }
        if !chunk.text.is_empty() {
            self.finals.push(Arc::clone(&chunk.text));
            self.began = Some(self.began.map_or(at, |began| began.min(at)));
            if self.state == State::Quiet {
                // Its turn was given up waiting for it; it is still to be answered.
                self.state = State::Finished;
            }
        }
        let is_known = self.state == State::Finished && self.unheard.is_empty();
        if !is_known {
            self.hand_over(cx);
        }
        self.guess(cx);
        self.conclude(cx, false);
    }

    /// Hands the words so far to the model, as far as the plan has that done.
    fn hand_over(&mut self, cx: &mut NodeContext) {
        let words = self.words();
        let Some(revisions) = &mut self.revisions else {
            return;
        };
        let handed = revisions.heard(cx.now(), words.as_deref().unwrap_or_default());
        self.handed(cx, handed);
    }

    fn handed(&mut self, cx: &mut NodeContext, revision: Option<Revision>) {
        if let Some(revision) = revision {
            let Revision {
                text,
                number,
                action,
                accepted,
                pending,
                is_full,
            } = revision;
            cx.report(NodeReport::WordsHanded {
                text: text.into(),
                revision: number,
                action: match action {
                    RevisionAction::Forward => HandoffAction::Forward,
                    RevisionAction::Supersede => HandoffAction::Supersede,
                    RevisionAction::Coalesce => HandoffAction::Coalesce,
                },
                accepted,
                pending,
                is_full,
            });
        }
        self.tell(cx);
        // In a pause the clock waits for the end of the turn; while the user speaks it is free.
        let due = self.revisions.as_ref().and_then(Revisions::due);
        if let (State::Speaking, Some(due)) = (self.state, due) {
            cx.wake_in(due.since(cx.now()));
        }
    }

    /// Says what the hand-over has to say.
    fn tell(&mut self, cx: &mut NodeContext) {
        if let Some(revisions) = &mut self.revisions {
            cx.report_notices(STT_TO_LLM, revisions.take_notices());
        }
    }

    fn utterance(&self) -> u32 {
        self.utterances.saturating_sub(1)
    }
}

impl Node for TurnDetector {
    fn start<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        let settings = cx.settings();
        let hands_over = settings.handoff.enabled;
        self.revisions = hands_over.then(|| Revisions::new(&settings.handoff, settings.flow_mode));
        self.tell(cx);
        Step::Done(self.load(cx))
    }

    /// Audio is looked at when a pause has been found.
    fn rests(&self) -> usize {
        usize::MAX
    }

    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        match event.payload {
            Payload::AudioChunk(chunk) => self.take_audio(cx, chunk.data),
            Payload::Speech(mark) => return self.take_mark(cx, mark),
            Payload::Text(chunk) => self.take_text(cx, &chunk, event.stamp.media),
            Payload::AudioEnd
            | Payload::TextEnd
            | Payload::Metrics(_)
            | Payload::Debug(_)
            | Payload::Error(_)
            | Payload::Extension(_) => {}
        }
        Step::OK
    }

    fn on_wake<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        match self.state {
            // Silent for long enough, whatever the model expected.
            State::Pausing => self.finished(cx, self.confidence),
            State::Finished => self.conclude(cx, true),
            State::Speaking => {
                let now = cx.now();
                let handed = self.revisions.as_mut().and_then(|it| it.tick(now));
                self.handed(cx, handed);
            }
            State::Quiet => {}
        }
        Step::OK
    }
}
