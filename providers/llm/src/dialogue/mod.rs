//! A conversation partner without a network: rules instead of a model, always the same answer.

mod conversation;
mod pattern;
mod rules;
mod template;

use std::time::Duration;

use futures::stream;
use rspp_proto::ProviderId;
use rspp_provider_api::{
    Call, ChunkStream, Description, Fault, FinishReason, LanguageModel, LlmChunk, LlmRequest, Usage,
};
use tokio::time::sleep;

pub use rules::{DialogueError, Rule, Rules};

/// The pace of tokens unless another is set: about that of a fast hosted model.
const TOKEN_EVERY: Duration = Duration::from_millis(15);

/// The offline dialogue, in the registry as `dialogue`.
///
/// Streams word by word. Calls no tools.
#[derive(Clone, Debug)]
pub struct Dialogue {
    description: Description,
    rules: Rules,
    token_every: Duration,
}

impl Dialogue {
    /// Its id in the registry.
    pub const ID: &'static str = "dialogue";

    /// A partner by the built-in rules, with 15 ms a token.
    pub fn new() -> Self {
        Self::with_rules(Rules::built_in())
    }

    /// A partner by these rules.
    pub fn with_rules(rules: Rules) -> Self {
        Self {
            description: Description {
                id: ProviderId::new(Self::ID).expect("a valid id"),
                model: "dialogue rules".to_owned(),
                streaming: true,
                networked: false,
            },
            rules,
            token_every: TOKEN_EVERY,
        }
    }

    /// The pace of tokens; zero streams them at once.
    #[must_use]
    pub fn token_every(mut self, pace: Duration) -> Self {
        self.token_every = pace;
        self
    }
}

impl Default for Dialogue {
    fn default() -> Self {
        Self::new()
    }
}

impl LanguageModel for Dialogue {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn generate(&self, call: Call, request: LlmRequest) -> ChunkStream<LlmChunk> {
        let text = conversation::reply(&self.rules, &request.messages);
        let chunks = chunks(&text, &request).into_iter();
        let pace = self.token_every;
        Box::pin(stream::unfold(
            Some((chunks, call)),
            move |state| async move {
                let (mut chunks, call) = state?;
                let chunk = chunks.next()?;
                let pause = async {
                    if !pace.is_zero() {
                        sleep(pace).await;
                    }
                };
                let cancelled = tokio::select! {
                    biased;
                    () = call.cancel.cancelled() => true,
                    () = pause => false,
                };
                if cancelled {
                    return Some((Err(Fault::cancelled()), None));
                }
                Some((Ok(chunk), Some((chunks, call))))
            },
        ))
    }
}

/// The answer as it is streamed: a word with its blank is a token.
fn chunks(text: &str, request: &LlmRequest) -> Vec<LlmChunk> {
    let most = request.max_tokens.map_or(usize::MAX, |most| most as usize);
    let mut tokens = text.split_inclusive(' ');
    let said = tokens.by_ref().take(most).map(str::to_owned);
    let mut chunks: Vec<LlmChunk> = said.map(LlmChunk::Delta).collect();
    let completion_tokens = chunks.len() as u64;
    let reason = match tokens.next() {
        Some(_) => FinishReason::Length,
        None => FinishReason::Stop,
    };
    let words = |text: &str| text.split_whitespace().count() as u64;
    let usage = Some(Usage {
        prompt_tokens: request.messages.iter().map(|m| words(&m.content)).sum(),
        completion_tokens,
    });
    chunks.push(LlmChunk::Finished { reason, usage });
    chunks
}
