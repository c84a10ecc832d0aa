//! The public keys that signatures are believed by, and how they take turns.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rspp_proto::WallClock;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::LEEWAY_MS;

/// Most keys that are trusted at once: the one that signs, the next, and some on their way out.
const MAX_KEYS: usize = 16;

/// Names a key: letters, digits, `.`, `_` and `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct KeyId(String);

/// A text that names no key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a key id has 1 to 64 letters, digits, `.`, `_` or `-`")]
pub struct KeyIdError;

impl KeyId {
    /// Checks and wraps a name.
    pub fn new(name: impl Into<String>) -> Result<Self, KeyIdError> {
        let name = name.into();
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if (1..=64).contains(&name.len()) && name.bytes().all(is_plain) {
            Ok(Self(name))
        } else {
            Err(KeyIdError)
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::new(name).map_err(serde::de::Error::custom)
    }
}

/// An Ed25519 public key; written in base64url.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Wraps a key's bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = URL_SAFE_NO_PAD.decode(text);
        let bytes = bytes.map_err(serde::de::Error::custom)?;
        let bytes = bytes.try_into();
        bytes
            .map(Self)
            .map_err(|_| serde::de::Error::custom("an Ed25519 public key has 32 bytes"))
    }
}

/// A key that is or was trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// The key.
    pub public: PublicKey,
    /// Since when it has been trusted.
    pub added: WallClock,
    /// From when on it no longer is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retires: Option<WallClock>,
}

/// Why a ring was not changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyringError {
    /// Another key has that name.
    #[error("another key is called `{0}`")]
    Taken(KeyId),
    /// No such key.
    #[error("no key is called `{0}`")]
    Unknown(KeyId),
    /// The key is on its way out.
    #[error("key `{0}` is being retired")]
    Retiring(KeyId),
    /// The key that signs is not retired.
    #[error("key `{0}` signs; promote another one first")]
    Signs(KeyId),
    /// Enough.
    #[error("{MAX_KEYS} keys are trusted already; retire one first")]
    Full,
}

/// All trusted keys, and which of them signs.
///
/// A rotation has three steps: the next key is [added](Self::add) and reaches every verifier; then it is
/// [promoted](Self::promote) and signs; then, when no token of the old one can be valid any more, that
/// one is no longer trusted. It is kept for as long as there is room, for what was signed with it in its
/// time, like exports of the audit trail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keyring {
    keys: BTreeMap<KeyId, KeyRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signs: Option<KeyId>,
}

impl Keyring {
    /// Trusts a key from now on. The first one signs. Adding the same again changes nothing.
    pub fn add(
        &mut self,
        id: KeyId,
        public: PublicKey,
        now: WallClock,
    ) -> Result<(), KeyringError> {
        if let Some(known) = self.keys.get(&id) {
            return if known.public != public {
                Err(KeyringError::Taken(id))
            } else if known.retires.is_some() {
                Err(KeyringError::Retiring(id))
            } else {
                Ok(())
            };
        }
        if self.keys.len() == MAX_KEYS {
            self.make_room(now)?;
        }
        let record = KeyRecord {
            public,
            added: now,
            retires: None,
        };
        self.keys.insert(id.clone(), record);
        self.signs.get_or_insert(id);
        Ok(())
    }

    /// Lets a key sign from now on; the one before retires once the last token that it may have signed,
    /// valid for `longest_ms`, is over.
    pub fn promote(
        &mut self,
        id: &KeyId,
        now: WallClock,
        longest_ms: u64,
    ) -> Result<(), KeyringError> {
        match self.keys.get(id) {
            None => return Err(KeyringError::Unknown(id.clone())),
            Some(record) if record.retires.is_some() => {
                return Err(KeyringError::Retiring(id.clone()));
            }
            Some(_) => {}
        }
        if let Some(before) = self.signs.replace(id.clone())
            && before != *id
            && let Some(record) = self.keys.get_mut(&before)
        {
            record.retires = Some(WallClock(now.0 + longest_ms + LEEWAY_MS));
        }
        Ok(())
    }

    /// Trusts a key no more from now on, whatever it has signed: for one that somebody else may have.
    /// Doing it again changes nothing.
    pub fn retire(&mut self, id: &KeyId, now: WallClock) -> Result<(), KeyringError> {
        if self.signs.as_ref() == Some(id) {
            return Err(KeyringError::Signs(id.clone()));
        }
        let record = self.keys.get_mut(id);
        let record = record.ok_or_else(|| KeyringError::Unknown(id.clone()))?;
        record.retires = Some(record.retires.map_or(now, |at| at.min(now)));
        Ok(())
    }

    /// Forgets the key that retired longest ago.
    fn make_room(&mut self, now: WallClock) -> Result<(), KeyringError> {
        let over = self.keys.iter().filter_map(|(id, record)| {
            let at = record.retires.filter(|at| *at <= now)?;
            Some((at, id.clone()))
        });
        let (_, oldest) = over.min().ok_or(KeyringError::Full)?;
        self.keys.remove(&oldest);
        Ok(())
    }

    /// The key that signs.
    pub fn signs(&self) -> Option<&KeyId> {
        self.signs.as_ref()
    }

    /// All keys.
    pub fn keys(&self) -> &BTreeMap<KeyId, KeyRecord> {
        &self.keys
    }

    pub(super) fn trusted(&self, id: &KeyId, now: WallClock) -> Option<PublicKey> {
        let record = self.keys.get(id)?;
        let is_over = record.retires.is_some_and(|at| at <= now);
        (!is_over).then_some(record.public)
    }
}
