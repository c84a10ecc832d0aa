//! The language model: the user's words in, generated text out, piece by piece. Tools that it calls
//! are its session's to run; with their results it is asked again.

use rspp_kernel::{
    CancelReason,
    conversation::Said,
    cost::{Allowance, CostKind},
    tool::ToolExchange,
};
use rspp_proto::{OutcomeClass, Payload, Speaker, TextChunk, spec::CapAction};
use rspp_provider_api::{FinishReason, LlmChunk, LlmRequest, Message, Role, ToolCall, ToolSpec};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::segmenter::{Eagerness, clause_end};
use crate::{
    event::{CallEnd, CallKey, Chunk, Event, Port},
    node::{Node, NodeContext, NodeError, NodeReport, NodeSettings, Step},
};

/// Most tokens of one reply, unless the node says otherwise.
const MAX_TOKENS: f64 = 512.0;
/// Most times that a turn's model may call tools, unless the node says otherwise; then it has to answer.
const MAX_TOOL_ROUNDS: f64 = 4.0;

/// What a model is told that has to say the rest in short.
const IN_SHORT: &str = "Your answer is too long. What you have said so far has been heard. Say what is most \
    important of the rest in one short sentence, and nothing else.";

/// The node.
#[derive(Default)]
pub(super) struct Llm {
    call: Option<CallKey>,
    pieces: u32,
    /// Whether there was more than blanks.
    said: bool,
    cap: Option<Cap>,
    /// What the model is shown: the conversation, and what this turn has added.
    messages: Vec<Message>,
    /// Answers of this turn that called tools.
    rounds: u32,
    answer: Answer,
    /// Ids of this turn's calls.
    ids: BTreeSet<String>,
    /// What came of the calls of the last answer.
    results: BTreeMap<String, Option<Arc<str>>>,
}

/// A cap on what the model may write: its text is passed on clause by clause then, so that it can
/// be cut where one ends. Nothing is spoken before its clause is complete anyway.
struct Cap {
    /// Of what models write.
    tokens: Option<Part>,
    /// Of what is to be spoken: only if the rest is to be said in short. Else its voice sees to it.
    characters: Option<Part>,
    /// Text that no clause's end has come to yet.
    pending: String,
    clauses: u32,
    /// The cap that did not allow more.
    reached: Option<Allowance>,
    /// It is the summary of what a cap has cut.
    is_summary: bool,
}

/// What a call may take of a cap.
#[derive(Clone, Copy)]
struct Part {
    allowance: Allowance,
    left: u64,
    /// What is kept to say the rest in short.
    rest: Option<u64>,
}

impl Part {
    /// What a reply that wants so much may take, if the cap is tighter than that.
    fn of(allowance: Allowance, wanted: u64) -> Option<Self> {
        let summary = allowance.summary();
        (allowance.left <= wanted).then(|| Self {
            allowance,
            left: summary.map_or(allowance.left, |summary| summary.draft),
            rest: summary.map(|summary| summary.rest),
        })
    }

    /// What the summary may take.
    fn of_summary(self) -> Self {
        Self {
            left: self.rest.unwrap_or(self.left),
            rest: None,
            ..self
        }
    }
}

impl Cap {
    fn takes_token(&mut self) -> bool {
        let Some(part) = &mut self.tokens else {
            return true;
        };
        if part.left == 0 {
            self.reached = Some(part.allowance);
            return false;
        }
        part.left -= 1;
        true
    }

    /// Whether a clause, or what there is of one, may be spoken.
    fn takes_clause(&mut self, end: usize) -> bool {
        let Some(part) = &mut self.characters else {
            return true;
        };
        let characters = self.pending[..end].trim().chars().count() as u64;
        if characters > part.left {
            self.reached = Some(part.allowance);
            return false;
        }
        part.left -= characters;
        true
    }

    /// Whether what it has cut can be said in short.
    fn may_summarize(&self) -> bool {
        let Some(reached) = self.reached.filter(|_| !self.is_summary) else {
            return false;
        };
        let part = match reached.kind {
            CostKind::Tokens => self.tokens,
            CostKind::TtsCharacters => self.characters,
            CostKind::AudioMs => None,
        };
        part.is_some_and(|part| part.rest.is_some())
    }
}

/// The answer in progress.
#[derive(Default)]
struct Answer {
    text: String,
    calls: Vec<ToolCall>,
}

impl Llm {
    fn begin(&mut self, cx: &mut NodeContext, words: &str) {
        if let Some(earlier) = self.call.take() {
            cx.abort(earlier);
        }
        self.messages = context(cx.settings());
        self.messages.push(Message::new(Role::User, words));
        self.pieces = 0;
        self.said = false;
        self.rounds = 0;
        self.ids.clear();
        self.results.clear();
        self.ask(cx);
    }

    fn ask(&mut self, cx: &mut NodeContext) {
        self.answer = Answer::default();
        self.cap = None;
        let allowance = cx.allowance(CostKind::Tokens);
        if let Some(spent) = allowance.filter(|allowance| allowance.left == 0) {
            self.spent(cx, &spent);
            return;
        }
        let settings = cx.settings();
        let own = settings.number("max_tokens", MAX_TOKENS) as u64;
        let wanted = settings.extent.max_tokens.map_or(own, |less| less.min(own));
        let cap = Cap {
            tokens: allowance.and_then(|allowance| Part::of(allowance, wanted)),
            characters: cx
                .allowance(CostKind::TtsCharacters)
                .and_then(|allowance| Part::of(allowance, u64::MAX))
                .filter(|part| part.rest.is_some()),
            pending: String::new(),
            clauses: 0,
            reached: None,
            is_summary: false,
        };
        let most = cap.tokens.map_or(wanted, |part| part.left);
        let temperature = settings.number("temperature", f64::NAN);
        let tools = if self.may_call(settings) {
            settings.spec.tools.iter()
        } else {
            [].iter() // Enough is enough: now it has to answer.
        };
        let request = LlmRequest {
            messages: self.messages.clone(),
            tools: tools
                .map(|tool| ToolSpec {
                    name: tool.name.clone(),
                    description: tool.description.clone(),
                    parameters: tool.parameters.clone(),
                })
                .collect(),
            max_tokens: Some(most as u32),
            temperature: (!temperature.is_nan()).then_some(temperature as f32),
        };
        let is_capped = cap.tokens.is_some() || cap.characters.is_some();
        self.cap = is_capped.then_some(cap);
        self.call = Some(cx.generate(request));
    }

    /// Has the rest of a reply that a cap has cut said in short, if that was kept room for.
    fn summarize(&mut self, cx: &mut NodeContext) -> bool {
        let Some(cap) = self.cap.take_if(|cap| cap.may_summarize()) else {
            return false;
        };
        if let Some(reached) = &cap.reached {
            cx.report_summary(reached);
        }
        let heard = self.answer.text.len() - cap.pending.len();
        self.answer.text.truncate(heard);
        let mut messages = self.messages.clone();
        if heard > 0 {
            messages.push(Message::new(Role::Assistant, self.answer.text.trim()));
        }
        messages.push(Message::new(Role::System, IN_SHORT));
        let tokens = cap.tokens.map(Part::of_summary);
        let characters = cap.characters.map(Part::of_summary);
        // A token is at least a letter.
        let most = [tokens, characters].into_iter().flatten();
        let most = most.map(|part| part.left).min();
        self.cap = Some(Cap {
            tokens,
            characters,
            pending: String::new(),
            clauses: cap.clauses,
            reached: None,
            is_summary: true,
        });
        if self.said {
            self.say(cx, " ");
        }
        self.call = Some(cx.generate(LlmRequest {
            messages,
            tools: Vec::new(),
            max_tokens: most.map(|most| most as u32),
            temperature: None,
        }));
        true
    }

    fn may_call(&self, settings: &NodeSettings) -> bool {
        f64::from(self.rounds) < settings.number("max_tool_rounds", MAX_TOOL_ROUNDS)
    }

    /// Nothing is left to be written. A reply that had begun before its tools ran may end here.
    fn spent(&self, cx: &mut NodeContext, cap: &Allowance) {
        cx.report_cap(cap, self.said);
        if cap.effect(self.said) != CapAction::Refuse {
            cx.emit(Payload::TextEnd);
        }
    }

    /// Takes a token of a reply whose length is capped; what is complete is passed on.
    fn take_capped(&mut self, cx: &mut NodeContext, text: &str) {
        let Some(cap) = &mut self.cap else { return };
        if cap.reached.is_some() || !cap.takes_token() {
            return;
        }
        self.answer.text.push_str(text);
        cap.pending.push_str(text);
        while let Some(cap) = &mut self.cap
            && let Some(end) = clause_end(
                &cap.pending,
                Eagerness::of(&cx.settings().handoff, cap.clauses == 0),
            )
        {
            // With the blank after it, by which the segmenter knows that the clause is over.
            let blank = cap.pending[end..].chars().next().map_or(0, char::len_utf8);
            if !cap.takes_clause(end) {
                break;
            }
            let rest = cap.pending.split_off(end + blank);
            let clause = std::mem::replace(&mut cap.pending, rest);
            cap.clauses += 1;
            self.say(cx, &clause);
        }
        // Nothing more of this answer is wanted.
        let is_cut = self.cap.as_ref().is_some_and(Cap::may_summarize);
        if is_cut && let Some(call) = self.call.take() {
            cx.abort(call);
            self.summarize(cx);
        }
    }

    /// The reply is over. Of one that was cut the last clause, which is not complete, is left out,
    /// unless there is no other: whole words then.
    fn end(&mut self, cx: &mut NodeContext) {
        if let Some(mut cap) = self.cap.take() {
            if let Some(reached) = &cap.reached {
                cx.report_cap(reached, true);
                if reached.effect(true) == CapAction::Refuse {
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

    /// Providers number the calls of each answer anew; a turn tells them all apart.
    fn take_call(&mut self, mut call: ToolCall) {
        let (id, mut nth) = (call.id.clone(), 1);
        while !self.ids.insert(call.id.clone()) {
            nth += 1;
            call.id = format!("{id}.{nth}");
        }
        self.answer.calls.push(call);
    }

    fn call_tools(&mut self, cx: &mut NodeContext) {
        let Answer { text, calls } = std::mem::take(&mut self.answer);
        if let Some(cap) = self.cap.take()
            && !cap.pending.is_empty()
        {
            self.say(cx, &cap.pending);
        }
        if !text.trim().is_empty() {
            // What was said so far is spoken while the tools run.
            self.say(cx, "\n");
        }
        self.results = calls.iter().map(|call| (call.id.clone(), None)).collect();
        self.messages.push(Message {
            tool_calls: calls.clone(),
            ..Message::new(Role::Assistant, text)
        });
        cx.call_tools(calls, self.rounds);
        self.rounds += 1;
    }
}

/// The conversation before the turn, instructions first.
fn context(settings: &NodeSettings) -> Vec<Message> {
    let instructions = settings.instructions.iter();
    let instructions = instructions.map(|text| Message::new(Role::System, &**text));
    let said = settings.conversation.iter().flat_map(|said| match said {
        Said::User { text } => vec![Message::new(Role::User, text)],
        // A cut-off reply is marked, so that the model knows that the rest was not heard.
        Said::Agent {
            text,
            interrupted: true,
        } => vec![Message::new(Role::Assistant, format!("{text} —"))],
        Said::Agent {
            text,
            interrupted: false,
        } => vec![Message::new(Role::Assistant, text)],
        Said::Tool(exchange) => called(exchange),
    });
    instructions.chain(said).collect()
}

/// An earlier turn's call, as models expect it: the call, and its result.
fn called(exchange: &ToolExchange) -> Vec<Message> {
    // Ids are unique within a turn; here turns meet.
    let id = format!("{}.{}", exchange.turn, exchange.call);
    let call = ToolCall {
        id: id.clone(),
        name: exchange.tool.to_string(),
        arguments: exchange.arguments.to_string(),
    };
    vec![
        Message {
            tool_calls: vec![call],
            ..Message::new(Role::Assistant, "")
        },
        Message {
            tool_call_id: Some(id),
            ..Message::new(Role::Tool, &*exchange.result)
        },
    ]
}

impl Node for Llm {
    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        match &event.payload {
            Payload::Text(chunk) if chunk.is_final => self.begin(cx, &chunk.text),
            // The turn's words went another way: it has nothing to say.
            Payload::TextEnd if self.messages.is_empty() => cx.emit(Payload::TextEnd),
            Payload::Text(_)
            | Payload::TextEnd
            | Payload::AudioChunk(_)
            | Payload::AudioEnd
            | Payload::Speech(_)
            | Payload::Metrics(_)
            | Payload::Debug(_)
            | Payload::Error(_)
            | Payload::Extension(_) => {}
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
            Chunk::Llm(LlmChunk::Delta(text)) => {
                self.answer.text.push_str(&text);
                self.say(cx, &text);
            }
            // A model that was offered none, and calls one all the same, is not listened to.
            Chunk::Llm(LlmChunk::ToolCall(call)) => {
                let settings = cx.settings();
                if !settings.spec.tools.is_empty() && self.may_call(settings) {
                    self.take_call(call);
                }
            }
            Chunk::Llm(LlmChunk::Finished {
                reason: FinishReason::Length,
                ..
            }) => {
                if let Some(cap) = &mut self.cap {
                    cap.reached = cap.reached.or(cap.tokens.map(|part| part.allowance));
                }
            }
            // The end of the call ends the text.
            Chunk::Llm(LlmChunk::Finished { .. }) | Chunk::Stt(_) | Chunk::Tts(_) => {}
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
        if let Some(cap) = &mut self.cap
            && cap.reached.is_none()
        {
            cap.takes_clause(cap.pending.len()); // Its last, which no other follows.
        }
        // Calls of an answer that a cap cut are not made: there is nothing left to answer with.
        let is_cut = self.cap.as_ref().is_some_and(|cap| cap.reached.is_some());
        if end.is_success() && !self.answer.calls.is_empty() && !is_cut {
            self.call_tools(cx);
            return Step::OK;
        }
        // A cancelled call is no failure: what was said so far is the answer.
        if end.is_success() || end.class == OutcomeClass::Cancelled {
            if !(end.is_success() && self.summarize(cx)) {
                self.end(cx);
            }
            return Step::OK;
        }
        // Nor is a summary that fails: the rest is left out.
        if let Some(cap) = self.cap.take_if(|cap| cap.is_summary) {
            let cut_by = [cap.tokens, cap.characters].into_iter().flatten().next();
            if let Some(part) = cut_by {
                cx.report_cap(&part.allowance, true);
            }
            cx.emit(Payload::TextEnd);
            return Step::OK;
        }
        Step::Done(Err(NodeError::call(&end)))
    }

    /// Once all calls of an answer have come back the model is asked again, results in its own order.
    fn on_tool_answer<'a>(
        &'a mut self,
        cx: &'a mut NodeContext,
        call: &str,
        content: Arc<str>,
    ) -> Step<'a> {
        let Some(result) = self.results.get_mut(call) else {
            return Step::OK;
        };
        *result = Some(content);
        if self.results.values().any(Option::is_none) {
            return Step::OK;
        }
        let mut results = std::mem::take(&mut self.results);
        let calls = self.messages.last().map(|asked| asked.tool_calls.clone());
        for ToolCall { id, .. } in calls.into_iter().flatten() {
            let content = results.remove(&id).flatten();
            let message = Message::new(Role::Tool, content.as_deref().unwrap_or_default());
            self.messages.push(Message {
                tool_call_id: Some(id),
                ..message
            });
        }
        self.ask(cx);
        Step::OK
    }

    fn on_cancel<'a>(&'a mut self, _cx: &'a mut NodeContext, _reason: CancelReason) -> Step<'a> {
        self.call = None;
        self.answer = Answer::default();
        self.results.clear();
        Step::OK
    }
}
