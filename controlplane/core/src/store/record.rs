//! Records as they lie in the store: JSON.

use serde::{Serialize, de::DeserializeOwned};

use super::{Entry, StoreError};

/// Reads a record.
pub fn parse<T: DeserializeOwned>(entry: &Entry) -> Result<T, StoreError> {
    serde_json::from_slice(&entry.value)
        .map_err(|error| StoreError::Corrupt(format!("`{}`: {error}", entry.key)))
}

/// Reads a record that somebody may have written past us: one that makes no sense is none.
pub fn json<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    parse(entry).ok()
}

/// Writes a record.
///
/// # Panics
/// Never: records are plain data.
pub fn bytes<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("records are plain data")
}
