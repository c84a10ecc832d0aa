//! What every language model must do.

use std::{collections::HashSet, fmt, sync::Arc};

use futures::future;

use crate::{ChunkStream, FinishReason, LanguageModel, LlmChunk, LlmRequest, Message, Role};

use super::{
    Failing, Patience,
    support::{
        describes_itself, drain, first_chunk, gives_nothing, is_normal, is_refusal, new_call, stops,
    },
};

/// The model under test and what to ask it.
pub struct Subject {
    /// The model.
    pub provider: Arc<dyn LanguageModel>,
    /// A request whose answer takes at least three chunks.
    pub request: LlmRequest,
    /// The same model set up to fail.
    pub failing: Vec<Failing<dyn LanguageModel>>,
    /// How long to wait.
    pub patience: Patience,
}

impl Subject {
    /// A model that is asked to tell a long story.
    pub fn new(provider: Arc<dyn LanguageModel>) -> Self {
        let messages = vec![
            Message::new(Role::System, "You are a friendly voice assistant."),
            Message::new(Role::User, "Please tell me a long story."),
        ];
        Self {
            provider,
            request: LlmRequest {
                messages,
                max_tokens: Some(64),
                ..LlmRequest::default()
            },
            failing: Vec::new(),
            patience: Patience::default(),
        }
    }

    fn ask(&self) -> ChunkStream<LlmChunk> {
        self.provider
            .generate(new_call("llm"), self.request.clone())
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("provider", self.provider.describe())
            .field("failing", &self.failing)
            .finish_non_exhaustive()
    }
}

/// Runs every category.
pub async fn run_all(subject: &Subject) {
    contract_shape(subject).await;
    streaming_lifecycle(subject).await;
    cancel_path(subject).await;
    outcome_normalization(subject).await;
}

/// Descriptions do not change; text is never empty, tool calls are whole.
pub async fn contract_shape(subject: &Subject) {
    describes_itself(|| subject.provider.describe());
    let seen = drain("an answer", &mut subject.ask(), subject.patience.answer).await;
    let chunks = seen.success("an answer");
    assert!(
        chunks.iter().any(|chunk| !is_finished(chunk)),
        "an answer: nothing was said and no tool was called"
    );
    check_chunks("an answer", &chunks);
}

/// Deltas, then exactly one end, nothing after it; calls at the same time do not mix.
pub async fn streaming_lifecycle(subject: &Subject) {
    let patience = subject.patience;
    let seen = drain("an answer", &mut subject.ask(), patience.answer).await;
    let chunks = seen.success("an answer");
    ends_once("an answer", &chunks);
    if subject.provider.describe().streaming {
        assert!(
            chunks.len() >= 3,
            "an answer: {} chunks are not a stream; give the suite a longer answer",
            chunks.len()
        );
    }

    let mut streams: Vec<_> = (0..3).map(|_| subject.ask()).collect();
    let answers = streams
        .iter_mut()
        .map(|stream| drain("one of three answers", stream, patience.answer));
    for seen in future::join_all(answers).await {
        ends_once(
            "one of three answers",
            &seen.success("one of three answers"),
        );
    }
}

/// Stops promptly: before it starts, mid-stream, on drop; and only the call that was cancelled.
pub async fn cancel_path(subject: &Subject) {
    let patience = subject.patience;

    let call = new_call("llm");
    call.cancel.cancel();
    let mut stream = subject.provider.generate(call, subject.request.clone());
    gives_nothing("cancelled before the start", &mut stream, patience).await;

    let call = new_call("llm");
    let cancel = call.cancel.clone();
    let mut stream = subject.provider.generate(call, subject.request.clone());
    let mut other = subject.ask();
    first_chunk("cancelled mid-stream", &mut stream, patience.answer).await;
    cancel.cancel();
    stops("cancelled mid-stream", &mut stream, patience).await;
    let seen = drain("beside a cancelled call", &mut other, patience.answer).await;
    ends_once(
        "beside a cancelled call",
        &seen.success("beside a cancelled call"),
    );

    let mut stream = subject.ask();
    first_chunk("dropped mid-stream", &mut stream, patience.answer).await;
    drop(stream);
    drop(subject.ask());
    let seen = drain("after a drop", &mut subject.ask(), patience.answer).await;
    ends_once("after a drop", &seen.success("after a drop"));
}

/// Faults keep to the taxonomy; a conversation without words is no failure.
pub async fn outcome_normalization(subject: &Subject) {
    let patience = subject.patience;
    let blank = vec![Message::new(Role::User, " ")];
    for (what, messages) in [("no messages", Vec::new()), ("a blank message", blank)] {
        let request = LlmRequest {
            messages,
            max_tokens: subject.request.max_tokens,
            ..LlmRequest::default()
        };
        let mut stream = subject.provider.generate(new_call("llm"), request);
        let seen = drain(what, &mut stream, patience.answer).await;
        match seen.fault {
            Some(fault) => is_refusal(what, &fault),
            None => ends_once(what, &seen.chunks),
        }
    }

    let said: Vec<&str> = subject
        .request
        .messages
        .iter()
        .map(|m| m.content.as_str())
        .collect();
    for case in &subject.failing {
        let mut stream = case
            .provider
            .generate(new_call("llm"), subject.request.clone());
        let seen = drain(case.what, &mut stream, patience.answer).await;
        let Some(fault) = seen.fault else {
            panic!(
                "{}: ended well, but must fail as {:?}",
                case.what, case.class
            );
        };
        assert_eq!(fault.class, case.class, "{}: {fault:?}", case.what);
        is_normal(case.what, &fault, &said);
        assert!(
            !seen.chunks.iter().any(is_finished),
            "{}: finished, and failed after it",
            case.what
        );
    }
}

fn is_finished(chunk: &LlmChunk) -> bool {
    matches!(chunk, LlmChunk::Finished { .. })
}

fn ends_once(what: &str, chunks: &[LlmChunk]) {
    let ends = chunks.iter().filter(|chunk| is_finished(chunk)).count();
    assert_eq!(ends, 1, "{what}: must finish exactly once");
    assert!(
        chunks.last().is_some_and(is_finished),
        "{what}: something came after `Finished`"
    );
    check_chunks(what, chunks);
}

fn check_chunks(what: &str, chunks: &[LlmChunk]) {
    let mut calls = HashSet::new();
    for chunk in chunks {
        match chunk {
            LlmChunk::Delta(text) => assert!(!text.is_empty(), "{what}: an empty delta"),
            LlmChunk::ToolCall(call) => {
                assert!(
                    !call.name.trim().is_empty(),
                    "{what}: a tool without a name"
                );
                assert!(
                    !call.id.trim().is_empty(),
                    "{what}: a tool call without an id"
                );
                assert!(
                    calls.insert(&call.id),
                    "{what}: two tool calls have the id {}",
                    call.id
                );
            }
            LlmChunk::Finished { reason, .. } => assert!(
                *reason != FinishReason::ToolCalls || !calls.is_empty(),
                "{what}: finished for tool calls, but there were none"
            ),
        }
    }
}
