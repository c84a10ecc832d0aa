//! What a client asks for its own session beside what its pipeline says.

use rspp_proto::spec::ToolDeclaration;

/// What a client may ask for, where its door lets it. What it does not ask for is the pipeline's own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wishes {
    /// What the agent is told it is.
    pub instructions: Option<String>,
    /// The voice, by the name that its provider has for it.
    pub voice: Option<String>,
    /// The language that the user speaks, as a BCP 47 tag.
    pub language: Option<String>,
    /// Most tokens of a reply; a pipeline that allows fewer still does.
    pub max_tokens: Option<u32>,
    /// How freely the model chooses its words.
    pub temperature: Option<f64>,
    /// Whether replies are written only, and not spoken.
    pub text_only: bool,
    /// Tools that the client runs, beside the pipeline's own.
    pub tools: Vec<ToolDeclaration>,
    /// Probability from which a sound counts as speech.
    pub speech_from: Option<f64>,
    /// When the user's turn is over.
    pub turn_end: TurnEnd,
    /// What becomes of the agent when the user speaks over it.
    pub interruption: Option<Interruption>,
}

/// When the user's turn is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TurnEnd {
    /// When the pipeline says so.
    #[default]
    Pipeline,
    /// After a silence of so many milliseconds, whatever was said.
    Silence(u64),
    /// When the pipeline says so, or after a silence of so many milliseconds.
    Judged {
        /// The silence.
        longest_ms: u64,
    },
    /// When the client says so, and never before.
    Client,
}

/// What becomes of the agent when the user speaks over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// It goes on.
    Never,
    /// It falls silent as soon as speech is found, if the pipeline lets it be interrupted at all.
    AtOnce,
}
