//! Language models.

use serde::{Deserialize, Serialize};

use crate::{Call, ChunkStream, Description};

/// Who speaks in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// What the agent is told it is.
    System,
    /// The person on the line.
    User,
    /// The agent, as far as it was heard.
    Assistant,
    /// A tool's result.
    Tool,
}

/// One message of the conversation so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who.
    pub role: Role,
    /// The words.
    pub content: String,
    /// The calls that an assistant message made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A plain message.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }
}

/// A tool the model may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolSpec {
    /// Its name.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// JSON Schema of its arguments.
    pub parameters: serde_json::Value,
}

/// A complete call of a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Unique within the turn.
    pub id: String,
    /// Which tool.
    pub name: String,
    /// JSON text, as the model wrote it.
    pub arguments: String,
}

/// What to generate.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LlmRequest {
    /// The conversation, instructions first.
    pub messages: Vec<Message>,
    /// Tools on offer.
    pub tools: Vec<ToolSpec>,
    /// Most tokens to generate.
    pub max_tokens: Option<u32>,
    /// 0 to 2.
    pub temperature: Option<f32>,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model was done.
    Stop,
    /// `max_tokens` was reached.
    Length,
    /// The model wants tools called.
    ToolCalls,
    /// The provider withheld the rest.
    ContentFilter,
}

impl FinishReason {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Stop,
        Self::Length,
        Self::ToolCalls,
        Self::ContentFilter,
    ];

    /// The name that recordings have for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

/// What a call cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
}

/// A piece of a model's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LlmChunk {
    /// Text since the last chunk; never empty.
    Delta(String),
    /// A tool call, complete.
    ToolCall(ToolCall),
    /// The last chunk of a successful call.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// What it cost, when the provider says.
        usage: Option<Usage>,
    },
}

/// A language model that streams its answer (F-063).
pub trait LanguageModel: Send + Sync + 'static {
    /// What this is.
    fn describe(&self) -> &Description;

    /// Generates an answer: deltas, then exactly one `Finished`.
    fn generate(&self, call: Call, request: LlmRequest) -> ChunkStream<LlmChunk>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_found_by_its_name() {
        for reason in FinishReason::ALL {
            assert_eq!(FinishReason::named(reason.as_str()), Some(reason));
        }
        assert_eq!(FinishReason::named("eos"), None);
    }
}
