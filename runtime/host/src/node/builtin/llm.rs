//! The language model: the user's words in, generated text out, piece by piece.

use rspp_kernel::{
    CancelReason,
    conversation::Said,
    cost::{Allowance, CostKind},
};
use rspp_proto::{OutcomeClass, Payload, Speaker, TextChunk, spec::CapAction};
use rspp_provider_api::{FinishReason, LlmChunk, LlmRequest, Message, Role};

use super::segmenter::{Eagerness, clause_end};
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
    cap: Option<Cap>,
}

/// A cap on what the model may write: its text is passed on clause by clause then, so that it can
/// be cut where one ends. Nothing is spoken before its clause is complete anyway.
struct Cap {
    allowance: Allowance,
    /// Most tokens of this call.
    tokens: u64,
    /// Text that no clause's end has come to yet.
    pending: String,
    clauses: u32,
    reached: bool,
}

impl Llm {
    fn ask(&mut self, cx: &mut NodeContext, words: &str) {
        if let Some(earlier) = self.call.take() {
            cx.abort(earlier);
        }
        let allowance = cx.allowance(CostKind::Tokens);
        if let Some(spent) = allowance.filter(|allowance| allowance.left == 0) {
            cx.report_cap(&spent, false);
            return;
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
        let wanted = settings.number("max_tokens", MAX_TOKENS) as u64;
        let most = allowance.map_or(wanted, |allowance| allowance.left.min(wanted));
        let request = LlmRequest {
            messages,
            tools: Vec::new(),
            max_tokens: Some(most as u32),
            temperature: (!temperature.is_nan()).then_some(temperature as f32),
        };
        self.pieces = 0;
        self.said = false;
        self.cap = allowance
            .filter(|allowance| allowance.left <= wanted)
            .map(|allowance| Cap {
                allowance,
                tokens: most,
                pending: String::new(),
                clauses: 0,
                reached: false,
            });
        self.call = Some(cx.generate(request));
    }

    /// Takes a token of a reply whose length is capped; what is complete is passed on.
    fn take_capped(&mut self, cx: &mut NodeContext, text: &str) {
        let Some(cap) = &mut self.cap else { return };
        if cap.reached || cap.tokens == 0 {
            cap.reached = true;
            return;
        }
        cap.tokens -= 1;
        cap.pending.push_str(text);
        while let Some(cap) = &mut self.cap
            && let Some(end) = clause_end(
                &cap.pending,
                Eagerness::of(&cx.settings().handoff, cap.clauses == 0),
            )
        {
            // With the blank after it, by which the segmenter knows that the clause is over.
            let blank = cap.pending[end..].chars().next().map_or(0, char::len_utf8);
            let rest = cap.pending.split_off(end + blank);
            let clause = std::mem::replace(&mut cap.pending, rest);
            cap.clauses += 1;
            self.say(cx, &clause);
        }
    }

    /// The reply is over. Of one that was cut the last clause, which is not complete, is left out,
    /// unless there is no other: whole words then.
    fn end(&mut self, cx: &mut NodeContext) {
        if let Some(mut cap) = self.cap.take() {
            if cap.reached {
                cx.report_cap(&cap.allowance, true);
                if cap.allowance.effect(true) == CapAction::Refuse {
                    return;
                }
                if cap.clauses > 0 {
                    cap.pending.clear();
                }
            }
            if !cap.pending.is_empty() {
                self.say(cx, &cap.pending);
            }
        }
        cx.emit(Payload::TextEnd);
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
            Chunk::Llm(LlmChunk::Delta(text)) if self.cap.is_some() => {
                self.take_capped(cx, &text);
            }
            Chunk::Llm(LlmChunk::Delta(text)) => self.say(cx, &text),
            Chunk::Llm(LlmChunk::Finished {
                reason: FinishReason::Length,
                ..
            }) => {
                if let Some(cap) = &mut self.cap {
                    cap.reached = true;
                }
            }
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
            self.end(cx);
            return Step::OK;
        }
        Step::Done(Err(NodeError::call(&end)))
    }

    fn on_cancel<'a>(&'a mut self, _cx: &'a mut NodeContext, _reason: CancelReason) -> Step<'a> {
        self.call = None;
        Step::OK
    }
}
