//! The language model: the user's words in, generated text out, piece by piece.

use rspp_kernel::{CancelReason, conversation::Said};
use rspp_proto::{OutcomeClass, Payload, Speaker, TextChunk};
use rspp_provider_api::{LlmChunk, LlmRequest, Message, Role};

use crate::{
    event::{CallEnd, CallKey, Chunk, Event, Port},
    node::{Node, NodeContext, NodeError, NodeReport, Step},
};

/// Most tokens of one reply, unless the node says otherwise.
const MAX_TOKENS: f64 = 512.0;

/// The node.
#[derive(Default)]
pub(super) struct Llm {
    call: Option<CallKey>,
    pieces: u32,
    /// Whether there was more than blanks.
    said: bool,
}

impl Llm {
    fn ask(&mut self, cx: &mut NodeContext, words: &str) {
        if let Some(earlier) = self.call.take() {
            cx.abort(earlier);
        }
        let settings = cx.settings();
        let mut messages = Vec::new();
        if let Some(instructions) = &settings.instructions {
            messages.push(Message::new(Role::System, &**instructions));
        }
        messages.extend(settings.conversation.iter().map(|said| match said {
            Said::User { text } => Message::new(Role::User, text),
            // A cut-off reply is marked, so that the model knows that the rest was not heard.
            Said::Agent {
                text,
                interrupted: true,
            } => Message::new(Role::Assistant, format!("{text} —")),
            Said::Agent {
                text,
                interrupted: false,
            } => Message::new(Role::Assistant, text),
        }));
        messages.push(Message::new(Role::User, words));
        let temperature = settings.number("temperature", f64::NAN);
        let request = LlmRequest {
            messages,
            tools: Vec::new(),
            max_tokens: Some(settings.number("max_tokens", MAX_TOKENS) as u32),
            temperature: (!temperature.is_nan()).then_some(temperature as f32),
        };
        self.pieces = 0;
        self.said = false;
        self.call = Some(cx.generate(request));
    }

    fn say(&mut self, cx: &mut NodeContext, text: &str) {
        if !self.said && !text.trim().is_empty() {
            self.said = true;
            cx.report(NodeReport::FirstToken);
        }
        self.pieces += 1;
        let chunk = TextChunk {
            speaker: Speaker::Agent,
            text: text.into(),
            segment: 0,
            revision: self.pieces,
            is_final: false,
            confidence: None,
            language: None,
        };
        cx.emit(Payload::Text(Box::new(chunk)));
    }
}

impl Node for Llm {
    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        if let Payload::Text(chunk) = &event.payload
            && chunk.is_final
        {
            self.ask(cx, &chunk.text);
        }
        Step::OK
    }

    fn on_chunk<'a>(
        &'a mut self,
        cx: &'a mut NodeContext,
        call: CallKey,
        chunk: Chunk,
    ) -> Step<'a> {
        if self.call != Some(call) {
            return Step::OK;
        }
        match chunk {
            Chunk::Llm(LlmChunk::Delta(text)) => self.say(cx, &text),
            // No tool is offered, so none can be called; the end of the call ends the text.
            Chunk::Llm(LlmChunk::ToolCall(_) | LlmChunk::Finished { .. })
            | Chunk::Stt(_)
            | Chunk::Tts(_) => {}
        }
        Step::OK
    }

    fn on_call_end<'a>(
        &'a mut self,
        cx: &'a mut NodeContext,
        call: CallKey,
        end: CallEnd,
    ) -> Step<'a> {
        if self.call != Some(call) {
            return Step::OK;
        }
        self.call = None;
        // A cancelled call is no failure: what was said so far is the answer.
        if end.is_success() || end.class == OutcomeClass::Cancelled {
            cx.emit(Payload::TextEnd);
            return Step::OK;
        }
        Step::Done(Err(NodeError::provider(end.describe())))
    }

    fn on_cancel<'a>(&'a mut self, _cx: &'a mut NodeContext, _reason: CancelReason) -> Step<'a> {
        self.call = None;
        Step::OK
    }
}
