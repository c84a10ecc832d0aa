//! What is taken away of a recording although its class is kept (F-073).

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most terms of one policy.
const MOST_TERMS: usize = 64;

/// What of a recording's payloads is made unreadable. Order, times and sizes stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RedactSpec {
    /// What is masked in texts that are otherwise kept whole.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub patterns: BTreeSet<PiiPattern>,
    /// Words and phrases that are masked too, in whatever case.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(length(max = 64))]
    pub terms: BTreeSet<String>,
    /// What becomes of audio that is otherwise kept whole, or hashed.
    #[serde(skip_serializing_if = "AudioRedaction::is_none")]
    pub audio: AudioRedaction,
}

impl RedactSpec {
    /// Whether nothing is taken away.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with a term, if something is.
    pub fn problem(&self) -> Option<&'static str> {
        if self.terms.len() > MOST_TERMS {
            return Some("has more than 64 terms");
        }
        let blank = |term: &String| !term.chars().any(char::is_alphanumeric);
        self.terms
            .iter()
            .any(blank)
            .then_some("has a term without a letter or digit")
    }
}

/// Something personal that is told by its shape.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum PiiPattern {
    /// An address for electronic mail.
    Email,
    /// 7 to 15 digits, in groups or not.
    Phone,
    /// 13 to 19 digits whose check digit is right.
    Card,
    /// An international bank account number whose check digits are right.
    Iban,
    /// 4 digits or more: codes, and all the numbers above.
    Digits,
}

/// What becomes of audio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AudioRedaction {
    /// What its class says.
    #[default]
    None,
    /// Silence of the same length.
    Mask,
}

impl AudioRedaction {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde hands over a reference"
    )]
    fn is_none(&self) -> bool {
        match self {
            Self::None => true,
            Self::Mask => false,
        }
    }
}
