//! One text for one value: JSON with sorted keys and no blanks, and its SHA-256.

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::Hex;

/// The SHA-256 of a value's canonical JSON, as 64 lowercase hex digits.
///
/// `serde_json` writes maps in key order and numbers in their shortest form, so equal values have
/// equal texts whatever order they were built in.
pub fn hash(value: &impl Serialize) -> Result<String, serde_json::Error> {
    // By way of `Value`, so that struct fields are sorted too and may be reordered in the code.
    let value = sorted(serde_json::to_value(value)?);
    Ok(Hex(&Sha256::digest(serde_json::to_vec(&value)?)).to_string())
}

/// Sorts every map, in case some crate of the build turns on `preserve_order`.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().collect();
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
            Value::Object(fields.into_iter().map(|(k, v)| (k, sorted(v))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn key_order_does_not_matter_and_values_do() {
        let a: Value = serde_json::from_str(r#"{"b":1,"a":{"d":[1,2],"c":null}}"#).unwrap();
        let b: Value = serde_json::from_str(r#"{"a":{"c":null,"d":[1,2]},"b":1}"#).unwrap();
        assert_eq!(hash(&a).unwrap(), hash(&b).unwrap());
        assert_ne!(hash(&a).unwrap(), hash(&json!({"a": 1})).unwrap());
        assert_eq!(hash(&a).unwrap().len(), 64);
    }

    /// The digest of `{}`, computed elsewhere.
    #[test]
    fn the_hash_is_plain_sha_256() {
        assert_eq!(
            hash(&json!({})).unwrap(),
            "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        );
    }
}
