//! SHA-256 of contents, as people and programs compare them.

use std::fmt;

use rspp_proto::Hex;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// A SHA-256, written as 64 lowercase hex digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ContentHash(String);

/// A text that is no hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a content hash has 64 lowercase hex digits")]
pub struct HashError;

impl ContentHash {
    /// What a chain of hashes begins with.
    pub fn zero() -> Self {
        Self("0".repeat(64))
    }

    /// The hash of bytes as they are.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let digest = Sha256::digest(bytes);
        Self(Hex(&digest).to_string())
    }

    /// The hash of a value's meaning: JSON with sorted keys and no blanks, so that the order in
    /// which something was written does not count.
    pub fn of_value(value: &Value) -> Self {
        Self::of_bytes(canonical(value).as_bytes())
    }

    /// Checks and wraps a hash that came from elsewhere.
    pub fn new(text: impl Into<String>) -> Result<Self, HashError> {
        let text = text.into();
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 64 && text.bytes().all(is_hex) {
            Ok(Self(text))
        } else {
            Err(HashError)
        }
    }

    /// The hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// JSON with sorted keys and no blanks.
pub(crate) fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    text
}

fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            // Sorted here and not by the map: a feature of serde_json elsewhere in a build may change it.
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| name.as_str());
            text.push('{');
            for (index, (name, value)) in fields.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push(':');
                write_canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_canonical(item, text);
            }
            text.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            text.push_str(&value.to_string());
        }
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn key_order_does_not_matter_and_values_do() {
        let a: Value =
            serde_json::from_str(r#"{"b":[1,{"y":2,"x":"\u00e9\n"}],"a":null}"#).unwrap();
        let b: Value = serde_json::from_str(r#"{"a":null,"b":[1,{"x":"é\n","y":2}]}"#).unwrap();
        assert_eq!(ContentHash::of_value(&a), ContentHash::of_value(&b));
        assert_ne!(ContentHash::of_value(&a), ContentHash::of_value(&json!({})));
        // printf '{}' | sha256sum
        assert_eq!(
            ContentHash::of_value(&json!({})).as_str(),
            "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        );
    }

    #[test]
    fn only_hashes_are_hashes() {
        assert_eq!(ContentHash::new("ab"), Err(HashError));
        assert_eq!(ContentHash::new("A".repeat(64)), Err(HashError));
        assert!(ContentHash::new("a".repeat(64)).is_ok());
    }
}
