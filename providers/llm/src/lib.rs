//! Language models: OpenAI-compatible endpoints, and an offline dialogue partner.
//!
//! [`OpenAi`] speaks the chat completions format to any server that does, near or far.
//! [`Dialogue`] answers by rules, reproducibly and without a network, so that a pipeline can be
//! tried, tested and replayed on any machine.

mod dialogue;
mod openai;

pub use dialogue::{Dialogue, DialogueError, Rule, Rules};
pub use openai::{OpenAi, OpenAiConfig, OpenAiError, SecretError, SecretRef, SecretStore};
