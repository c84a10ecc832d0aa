//! The offline dialogue runs the suite of every language model.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use rspp_llm::Dialogue;
use rspp_provider_api::{
    FinishReason, LanguageModel, LlmChunk, LlmRequest, Message, Role, conformance::llm,
    conformance_tests,
};
use tokio::time::Instant;

use crate::openai::call;

conformance_tests! {
    #[tokio::test(start_paused = true)]
    mod conforms: llm = llm::Subject::new(Arc::new(Dialogue::new()));
}

conformance_tests! {
    #[tokio::test(start_paused = true)]
    mod conforms_without_delay: llm =
        llm::Subject::new(Arc::new(Dialogue::new().token_every(Duration::ZERO)));
}

/// F-063
#[tokio::test(start_paused = true)]
async fn words_come_at_their_pace_and_end_at_the_limit() {
    let pace = Duration::from_millis(20);
    let request = LlmRequest {
        messages: vec![Message::new(Role::User, "hello")],
        max_tokens: Some(3),
        ..LlmRequest::default()
    };
    let began = Instant::now();
    let dialogue = Dialogue::new().token_every(pace);
    let chunks: Vec<_> = dialogue.generate(call(), request).collect().await;
    assert_eq!(began.elapsed(), pace * 4, "three words and the end");
    let words: String = chunks
        .iter()
        .filter_map(|chunk| match chunk {
            Ok(LlmChunk::Delta(text)) => Some(text.as_str()),
            Ok(LlmChunk::ToolCall(_) | LlmChunk::Finished { .. }) | Err(_) => None,
        })
        .collect();
    assert_eq!(words, "Hello! How can ");
    let last = chunks.last().unwrap();
    let Ok(LlmChunk::Finished { reason, usage }) = last else {
        panic!("{last:?}");
    };
    assert_eq!(*reason, FinishReason::Length);
    assert_eq!(usage.unwrap().completion_tokens, 3);
}
