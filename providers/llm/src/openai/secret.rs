//! Secrets by reference: a configuration names where a secret is, never what it is (F-061).

use std::{fmt, sync::Arc};

use thiserror::Error;

/// What stands in a text for a secret that was in it.
pub(super) const REDACTED: &str = "***redacted***";

/// Why a secret cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SecretError {
    /// The reference is none. Its text is not repeated: it may be the secret itself.
    #[error("not a secret reference; write `env://NAME`, with the secret in that variable")]
    NotAReference,
    /// The variable is not set, or blank.
    #[error("the secret `env://{0}` is not set; put it into the environment variable {0}")]
    Unset(String),
}

/// Where a secret is: `env://NAME`, or short `NAME`, names an environment variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretRef {
    variable: String,
}

impl SecretRef {
    /// Reads a reference; names are of upper-case letters, digits and `_`, so that a key pasted
    /// here by mistake is refused instead of printed.
    pub fn parse(reference: &str) -> Result<Self, SecretError> {
        let variable = reference.strip_prefix("env://").unwrap_or(reference);
        let is_allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let starts_well = |c: char| c.is_ascii_uppercase() || c == '_';
        if variable.starts_with(starts_well) && variable.chars().all(is_allowed) {
            Ok(Self {
                variable: variable.to_owned(),
            })
        } else {
            Err(SecretError::NotAReference)
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "env://{}", self.variable)
    }
}

type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

/// Looks secrets up; asked at each call, so that a rotated secret is used by the next one.
#[derive(Clone)]
pub struct SecretStore(Arc<Lookup>);

impl SecretStore {
    /// The process's environment.
    pub fn environment() -> Self {
        Self::new(|name| std::env::var(name).ok())
    }

    /// A store that answers by a function of the variable's name.
    pub fn new(lookup: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(lookup))
    }

    pub(super) fn resolve(&self, secret: &SecretRef) -> Result<Secret, SecretError> {
        (self.0)(&secret.variable)
            .map(|value| value.trim().to_owned())
            .filter(|value| !value.is_empty())
            .map(Secret)
            .ok_or_else(|| SecretError::Unset(secret.variable.clone()))
    }
}

impl fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretStore")
    }
}

/// A secret, which does not print.
pub(super) struct Secret(String);

impl Secret {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-061
    #[test]
    fn references_name_variables_and_nothing_else() {
        for good in ["env://LLM_KEY", "LLM_KEY", "_K2"] {
            assert!(SecretRef::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "env://",
            "sk-abcdef",
            "file:///key",
            "llm_key",
            "A B",
            "2K",
        ] {
            assert_eq!(
                SecretRef::parse(bad),
                Err(SecretError::NotAReference),
                "{bad}"
            );
        }
        let shown = SecretRef::parse("LLM_KEY").unwrap().to_string();
        assert_eq!(shown, "env://LLM_KEY");
    }

    /// F-061
    #[test]
    fn secrets_are_resolved_trimmed_and_never_printed() {
        let reference = SecretRef::parse("KEY").unwrap();
        let store = SecretStore::new(|_| Some(" canary\n".to_owned()));
        let secret = store.resolve(&reference).unwrap();
        assert_eq!(secret.expose(), "canary");
        assert!(!format!("{secret:?} {store:?}").contains("canary"));
        let empty = SecretStore::new(|_| Some(" ".to_owned()));
        assert_eq!(
            empty.resolve(&reference).unwrap_err(),
            SecretError::Unset("KEY".to_owned())
        );
    }
}
