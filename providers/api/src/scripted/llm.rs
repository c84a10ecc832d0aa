//! A scripted language model.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    Call, ChunkStream, Description, FinishReason, LanguageModel, LlmChunk, LlmRequest, Role,
    ToolCall, Usage,
};

use super::{
    Script, Tally, describe,
    performance::{Stage, play},
};

/// What a scripted language model answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The text, streamed word by word.
    pub text: String,
    /// Tool calls that follow it; if there are any the answer finishes with `tool_calls`.
    pub tool_calls: Vec<ToolCall>,
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self {
            text,
            tool_calls: Vec::new(),
        }
    }
}

impl From<&str> for Answer {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

type Respond = dyn Fn(&LlmRequest) -> Answer + Send + Sync;

/// A language model that answers what it was told to; it echoes the user until told otherwise.
pub struct ScriptedLlm {
    description: Description,
    stage: Stage,
    respond: Arc<Respond>,
    token_every: Duration,
}

impl ScriptedLlm {
    /// A model of that id; tokens come at once.
    pub fn new(id: &str) -> Self {
        Self {
            description: describe(id, true),
            stage: Stage::default(),
            respond: Arc::new(|request| format!("You said: {}", last_user_text(request)).into()),
            token_every: Duration::ZERO,
        }
    }

    /// The n-th user message of a conversation gets the n-th answer, and round again.
    ///
    /// Depends on the request alone, so that sessions and attempts do not disturb each other.
    #[must_use]
    pub fn answers<A: Into<Answer>>(self, answers: impl IntoIterator<Item = A>) -> Self {
        let answers: Vec<Answer> = answers.into_iter().map(Into::into).collect();
        self.answer_with(move |request| {
            let said = request.messages.iter().filter(|m| m.role == Role::User);
            match answers.len() {
                0 => Answer::default(),
                total => answers[said.count().saturating_sub(1) % total].clone(),
            }
        })
    }

    /// Answers by a function of the request.
    #[must_use]
    pub fn answer_with<A: Into<Answer>>(
        mut self,
        respond: impl Fn(&LlmRequest) -> A + Send + Sync + 'static,
    ) -> Self {
        self.respond = Arc::new(move |request| respond(request).into());
        self
    }

    /// The pace of tokens.
    #[must_use]
    pub fn token_every(mut self, pace: Duration) -> Self {
        self.token_every = pace;
        self
    }

    /// How attempts go.
    #[must_use]
    pub fn script(self, script: Script) -> Self {
        self.set_script(script);
        self
    }

    /// Changes how attempts from now on go.
    pub fn set_script(&self, script: Script) {
        self.stage.set_script(script);
    }

    /// What became of the calls.
    pub fn tally(&self) -> Tally {
        self.stage.tally()
    }
}

impl LanguageModel for ScriptedLlm {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn generate(&self, call: Call, request: LlmRequest) -> ChunkStream<LlmChunk> {
        let performance = self.stage.begin(&call);
        let chunks = chunks((self.respond)(&request), &request);
        let pace = self.token_every;
        play(
            performance,
            chunks.into_iter().map(move |chunk| (pace, chunk)),
        )
    }
}

impl fmt::Debug for ScriptedLlm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedLlm")
            .field("description", &self.description)
            .field("tally", &self.tally())
            .finish_non_exhaustive()
    }
}

/// The answer as it is streamed; a word with its following blank is a token.
fn chunks(answer: Answer, request: &LlmRequest) -> Vec<LlmChunk> {
    let allowed = request.max_tokens.map_or(usize::MAX, |most| most as usize);
    let mut tokens = answer.text.split_inclusive(char::is_whitespace);
    let mut chunks: Vec<LlmChunk> = tokens
        .by_ref()
        .take(allowed)
        .map(|token| LlmChunk::Delta(token.to_owned()))
        .collect();
    let completion_tokens = chunks.len() as u64;
    let reason = if tokens.next().is_some() {
        FinishReason::Length
    } else if answer.tool_calls.is_empty() {
        FinishReason::Stop
    } else {
        chunks.extend(answer.tool_calls.into_iter().map(LlmChunk::ToolCall));
        FinishReason::ToolCalls
    };
    let words = |text: &str| text.split_whitespace().count() as u64;
    chunks.push(LlmChunk::Finished {
        reason,
        usage: Some(Usage {
            prompt_tokens: request.messages.iter().map(|m| words(&m.content)).sum(),
            completion_tokens,
        }),
    });
    chunks
}

fn last_user_text(request: &LlmRequest) -> &str {
    let said = request.messages.iter().rev().find(|m| m.role == Role::User);
    said.map_or("", |message| message.content.as_str())
}
