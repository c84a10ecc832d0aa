//! The envelope's schema version.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{AbiRule, AbiViolation};

/// A version of the Event ABI: `v1.0` or `v1.0.3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SchemaVersion {
    /// Readers of another major refuse.
    pub major: u32,
    /// Rises when optional things are added.
    pub minor: u32,
    /// Rises when only words change.
    pub patch: Option<u32>,
}

impl SchemaVersion {
    /// What this build writes.
    pub const CURRENT: Self = Self {
        major: 1,
        minor: 0,
        patch: None,
    };
}

impl fmt::Display for SchemaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}", self.major, self.minor)?;
        match self.patch {
            Some(patch) => write!(f, ".{patch}"),
            None => Ok(()),
        }
    }
}

/// The versions that a reader understands: one major, any minor up to a highest.
///
/// A higher minor may hold fields and signals that this build does not know, and unknown fields are
/// refused everywhere, so the window ends at what was known when it was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionWindow {
    /// The only major that is read.
    pub major: u32,
    /// The lowest minor that is read.
    pub min_minor: u32,
    /// The highest minor that is read.
    pub max_minor: u32,
}

impl VersionWindow {
    /// What this build reads.
    pub const CURRENT: Self = Self {
        major: SchemaVersion::CURRENT.major,
        min_minor: 0,
        max_minor: SchemaVersion::CURRENT.minor,
    };

    /// Refuses a version outside the window and says what to do (F-021).
    pub fn check(self, found: SchemaVersion) -> Result<(), AbiViolation> {
        let hint = if (found.major, found.minor) > (self.major, self.max_minor) {
            format!("upgrade this reader, or have the writer write {self}")
        } else if (found.major, found.minor) < (self.major, self.min_minor) {
            format!("convert the recording to {self}, or read it with a build of its time")
        } else {
            return Ok(());
        };
        Err(AbiViolation {
            path: "schema_version".into(),
            rule: AbiRule::UnsupportedVersion { found, hint },
        })
    }
}

impl fmt::Display for VersionWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            major,
            min_minor,
            max_minor,
        } = self;
        if min_minor == max_minor {
            write!(f, "v{major}.{max_minor}")
        } else {
            write!(f, "v{major}.{min_minor} to v{major}.{max_minor}")
        }
    }
}

/// A text that is no schema version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a schema version; write it as `v1.0` or `v1.0.0`")]
pub struct SchemaVersionError(String);

impl FromStr for SchemaVersion {
    type Err = SchemaVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |part: &str| -> Option<u32> {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if digits { part.parse().ok() } else { None }
        };
        let parse = || {
            let mut parts = text.strip_prefix('v')?.split('.');
            let version = Self {
                major: number(parts.next()?)?,
                minor: number(parts.next()?)?,
                patch: match parts.next() {
                    Some(part) => Some(number(part)?),
                    None => None,
                },
            };
            parts.next().is_none().then_some(version)
        };
        parse().ok_or_else(|| SchemaVersionError(text.chars().take(32).collect()))
    }
}

impl Serialize for SchemaVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SchemaVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for SchemaVersion {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SchemaVersion".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": r"^v\d+\.\d+(\.\d+)?$",
            "description": "version of the Event ABI"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_back_as_written() {
        for text in ["v1.0", "v1.0.3", "v12.34.56"] {
            assert_eq!(text.parse::<SchemaVersion>().unwrap().to_string(), text);
        }
        for text in ["", "1.0", "v1", "v1.", "v1.0.0.0", "v1.x", "v+1.0", "v1.0 "] {
            assert!(text.parse::<SchemaVersion>().is_err(), "{text} was read");
        }
    }
}
