//! Names of versions: a line, and a number in it.

use std::{fmt, str::FromStr, sync::Arc};

use rspp_proto::MAX_ID_BYTES;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

/// `greeter-2`, `greeter/v2.1`, `policy@2026.11.1`: a line, `-`, `/` or `@`, perhaps a `v`, and a number
/// whose first part is the major version.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct VersionName(#[serde(with = "text")] Parts);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Parts {
    text: Arc<str>,
    line_bytes: usize,
    number: Arc<[u64]>,
}

mod text {
    use super::Parts;

    pub(super) fn serialize<S: serde::Serializer>(parts: &Parts, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&parts.text)
    }
}

/// A text that names no version.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` does not name a version: write it as `greeter-2` or `greeter/v2.1`")]
pub struct VersionNameError(String);

impl VersionName {
    /// Reads a name.
    pub fn new(text: impl Into<Arc<str>>) -> Result<Self, VersionNameError> {
        let text = text.into();
        match parse(&text) {
            Some((line_bytes, number)) => Ok(Self(Parts {
                line_bytes,
                number: number.into(),
                text,
            })),
            None => Err(VersionNameError(text.chars().take(64).collect())),
        }
    }

    /// The name as it is written.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// What all versions of one thing have in common.
    pub fn line(&self) -> &str {
        &self.0.text[..self.0.line_bytes]
    }

    /// The number's parts.
    pub fn number(&self) -> &[u64] {
        &self.0.number
    }

    /// The number's first part; what breaks raises it.
    pub fn major(&self) -> u64 {
        self.0.number[0]
    }

    /// How the next major version would be written.
    pub fn next_major(&self) -> String {
        let digits: usize = self.0.text[self.0.line_bytes..]
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or_default();
        let beginning = &self.0.text[..self.0.line_bytes + digits];
        format!("{beginning}{}", self.major().saturating_add(1))
    }
}

/// The length of the line, and the number.
fn parse(text: &str) -> Option<(usize, Vec<u64>)> {
    if text.len() > MAX_ID_BYTES || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return None;
    }
    let line_bytes = text.rfind(['-', '/', '@'])?;
    let number = &text[line_bytes + 1..];
    let number = number.strip_prefix('v').unwrap_or(number);
    let part = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if digits { part.parse().ok() } else { None }
    };
    let number: Option<Vec<u64>> = number.split('.').map(part).collect();
    (line_bytes > 0).then_some((line_bytes, number?))
}

impl fmt::Display for VersionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for VersionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl FromStr for VersionName {
    type Err = VersionNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl<'de> Deserialize<'de> for VersionName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, line: &str, number: &[u64], next: &str) {
        let version = VersionName::new(text).unwrap();
        assert_eq!((version.line(), version.number()), (line, number));
        assert_eq!(version.next_major(), next);
    }

    #[test]
    fn a_name_has_a_line_and_a_number() {
        check("greeter-2", "greeter", &[2], "greeter-3");
        check("front-desk/v2.1", "front-desk", &[2, 1], "front-desk/v3");
        check("policy/2026.11.1", "policy", &[2026, 11, 1], "policy/2027");
        check("a@10", "a", &[10], "a@11");
        for wrong in [
            "greeter",
            "greeter-",
            "greeter-x",
            "-1",
            "a b-1",
            "a-1.",
            "a-v",
            "",
        ] {
            assert!(VersionName::new(wrong).is_err(), "{wrong}");
        }
    }
}
