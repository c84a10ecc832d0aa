//! Tools that a language model may call, as a pipeline declares them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ArgumentSchema;

/// Who runs a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolExecutor {
    /// The program, which has registered a tool of that name.
    #[default]
    Registered,
    /// A server: the arguments are posted there as JSON.
    Http(HttpExecutor),
    /// The client that the session talks with: it is told of the call, and says what came of it.
    Client,
}

/// A server that runs a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpExecutor {
    /// Where the arguments are posted to.
    pub url: String,
    /// Where the secret is that the server asks for, sent as a bearer token: `env://TOOL_…` or
    /// `file://TOOL_…`. Never the secret itself, and none but those whose name begins with `TOOL_`: a
    /// pipeline's author gets at no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
}

impl HttpExecutor {
    /// What the names of secrets begin with that tools may use.
    pub const SECRETS: &'static str = "TOOL_";

    /// Whether its credential names such a secret, or there is none.
    pub fn has_good_credential(&self) -> bool {
        let Some(reference) = &self.credential else {
            return true;
        };
        let name = ["env://", "file://"]
            .iter()
            .find_map(|scheme| reference.strip_prefix(scheme));
        let is_allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        name.is_some_and(|name| name.starts_with(Self::SECRETS) && name.chars().all(is_allowed))
    }
}

/// Whether a call changes anything outside the conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolEffects {
    /// It only looks something up.
    None,
    /// It orders, books, sends or deletes.
    #[default]
    External,
}

/// What a tool may ask of the session itself. Done when its turn commits, never before (P1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionAction {
    /// Hang up once the reply has been heard.
    EndCall,
}

/// What becomes of a call that has begun when its turn ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnInterruption {
    /// It goes on, and the next turn knows its result (P7).
    Finish,
    /// It is given up.
    Abandon,
}

/// A tool that a node's model may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolDeclaration {
    /// Unique within the node: letters, digits, `_` and `-`, at most 64.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// JSON Schema of its arguments, of the part that is enforced; none means no arguments.
    #[serde(default = "no_arguments")]
    pub parameters: Value,
    /// Who runs it.
    #[serde(default)]
    pub run: ToolExecutor,
    /// How long a call may take in all, in milliseconds.
    #[serde(default = "five_seconds")]
    #[schemars(range(min = 1))]
    pub timeout_ms: u64,
    /// Whether a failed call may be repeated: the same key again has no second effect (F-158).
    #[serde(default)]
    pub idempotent: bool,
    /// Whether it changes anything.
    #[serde(default)]
    pub effects: ToolEffects,
    /// What becomes of it when its turn ends; absent means `finish` with effects, else `abandon`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_interruption: Option<OnInterruption>,
    /// Longest result that the model is shown, in bytes; what is longer is cut.
    #[serde(default = "sixteen_kib")]
    #[schemars(range(min = 64, max = 1_048_576))]
    pub max_result_bytes: usize,
}

impl ToolDeclaration {
    /// A tool without arguments that the program runs, with the defaults of a spec.
    pub fn new(name: impl Into<String>, description: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            description: description.into(),
            parameters: no_arguments(),
            run: ToolExecutor::default(),
            timeout_ms: five_seconds(),
            idempotent: false,
            effects: ToolEffects::default(),
            on_interruption: None,
            max_result_bytes: sixteen_kib(),
        }
    }

    /// What becomes of a call that has begun when its turn ends.
    pub fn on_interruption(&self) -> OnInterruption {
        self.on_interruption.unwrap_or(match self.effects {
            ToolEffects::None => OnInterruption::Abandon,
            ToolEffects::External => OnInterruption::Finish,
        })
    }

    /// What arguments have to look like.
    pub fn arguments(&self) -> ArgumentSchema<'_> {
        ArgumentSchema::new(&self.parameters)
    }

    /// Whether `name` can be a tool's name.
    pub fn is_name(name: &str) -> bool {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        !name.is_empty() && name.len() <= 64 && name.chars().all(fits)
    }
}

fn no_arguments() -> Value {
    serde_json::json!({ "type": "object", "properties": {}, "additionalProperties": false })
}

fn five_seconds() -> u64 {
    5_000
}

fn sixteen_kib() -> usize {
    16 * 1_024
}
