//! Secrets by reference: a configuration names where a secret is, never what it is (F-061).

use std::{fmt, fs, path::PathBuf, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use thiserror::Error;

/// What stands in a text for a secret that was in it.
pub const REDACTED: &str = "***redacted***";

/// Why a secret cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SecretError {
    /// The reference is none. Its text is not repeated: it may be the secret itself.
    #[error(
        "not a secret reference; write `env://NAME`, with the secret in that variable, or `file://NAME`"
    )]
    NotAReference,
    /// It is not set, or blank.
    #[error("the secret `{0}` is not set; put it {where_to}", where_to = .0.place())]
    Unset(SecretRef),
}

/// Where a secret is: `env://NAME`, or short `NAME`, in an environment variable; `file://NAME` in the file
/// of that name in the operator's folder of secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretRef {
    source: Source,
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Environment,
    File,
}

impl SecretRef {
    /// Reads a reference; names are of upper-case letters, digits and `_`, so that a key pasted
    /// here by mistake is refused instead of printed, and no name leads out of its folder.
    pub fn parse(reference: &str) -> Result<Self, SecretError> {
        let file = reference.strip_prefix("file://");
        let variable = reference.strip_prefix("env://").unwrap_or(reference);
        let (source, name) =
            file.map_or((Source::Environment, variable), |name| (Source::File, name));
        let is_allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let starts_well = |c: char| c.is_ascii_uppercase() || c == '_';
        if name.starts_with(starts_well) && name.chars().all(is_allowed) {
            let name = name.to_owned();
            Ok(Self { source, name })
        } else {
            Err(SecretError::NotAReference)
        }
    }

    /// Its name, without where it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn place(&self) -> String {
        match self.source {
            Source::Environment => format!("into the environment variable {}", self.name),
            Source::File => format!("into the file {} of the folder of secrets", self.name),
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::Environment => "env",
            Source::File => "file",
        };
        write!(f, "{source}://{}", self.name)
    }
}

impl Serialize for SecretRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    /// A text that is no reference is not repeated in the error.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(D::Error::custom)
    }
}

type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

/// Most bytes of a file that are a secret.
const MOST_BYTES: u64 = 64 * 1024;

/// Looks secrets up; asked at each call, so that a rotated secret is used by the next one.
#[derive(Clone)]
pub struct SecretStore {
    variables: Arc<Lookup>,
    folder: Option<PathBuf>,
}

impl SecretStore {
    /// The process's environment.
    pub fn environment() -> Self {
        Self::new(|name| std::env::var(name).ok())
    }

    /// A store that answers by a function of the variable's name.
    pub fn new(lookup: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        Self {
            variables: Arc::new(lookup),
            folder: None,
        }
    }

    /// The same store, with files of secrets in that folder, as container platforms mount them.
    #[must_use]
    pub fn with_folder(self, folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: Some(folder.into()),
            ..self
        }
    }

    /// The secret as it is now.
    pub fn resolve(&self, secret: &SecretRef) -> Result<Secret, SecretError> {
        let value = match secret.source {
            Source::Environment => (self.variables)(&secret.name),
            Source::File => self.read(&secret.name),
        };
        value
            .map(|value| value.trim().to_owned())
            .filter(|value| !value.is_empty())
            .map(Secret)
            .ok_or_else(|| SecretError::Unset(secret.clone()))
    }

    fn read(&self, name: &str) -> Option<String> {
        let path = self.folder.as_ref()?.join(name);
        let is_one = fs::metadata(&path).is_ok_and(|it| it.is_file() && it.len() <= MOST_BYTES);
        is_one.then(|| fs::read_to_string(path).ok())?
    }
}

impl fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretStore")
    }
}

/// A secret, which does not print.
pub struct Secret(String);

impl Secret {
    /// The secret itself; for what is sent to whom it is for.
    pub fn expose(&self) -> &str {
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
        for good in ["env://LLM_KEY", "LLM_KEY", "_K2", "file://LLM_KEY"] {
            assert!(SecretRef::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "env://",
            "sk-abcdef",
            "file:///key",
            "file://../KEY",
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
            SecretError::Unset(reference)
        );
    }

    /// F-061: a file's secret is read anew each time; without a folder there are no such secrets.
    #[test]
    fn a_file_is_read_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let reference = SecretRef::parse("file://KEY").unwrap();
        let store = SecretStore::new(|_| None);
        let unset = store.resolve(&reference).unwrap_err();
        assert!(
            unset
                .to_string()
                .contains("the secret `file://KEY` is not set")
        );
        let store = store.with_folder(folder.path());
        for value in ["first", "second"] {
            fs::write(folder.path().join("KEY"), format!("{value}\n")).unwrap();
            assert_eq!(store.resolve(&reference).unwrap().expose(), value);
        }
    }
}
