//! Signed tokens: who may connect to which session, who holds which lease, who may operate what.
//!
//! Compact JWS (RFC 7515) with Ed25519 (RFC 8037), so that any JWT library verifies them. The header's
//! `typ` keeps one kind from being used as another, its `kid` lets keys rotate while tokens are out.
//! Keys come from outside; there is no default secret.

mod claims;
mod keyring;

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rspp_proto::WallClock;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

pub use claims::{AccessClaims, LeaseClaims, SessionClaims};
pub use keyring::{KeyId, KeyIdError, KeyRecord, Keyring, KeyringError, PublicKey};

/// Longest token that is looked at, in bytes: what a lease token may have.
pub const MAX_TOKEN_BYTES: usize = rspp_proto::MAX_LEASE_TOKEN_BYTES;
/// How far clocks of different machines may be apart before a fresh token counts as one of the future.
pub const LEEWAY_MS: u64 = 5_000;

/// What a token says. Times are whole seconds since the Unix epoch, as JWT has them.
pub trait Claims: Serialize + DeserializeOwned {
    /// The header's `typ`: what kind of token it is.
    const TYPE: &'static str;

    /// When it was issued.
    fn issued_at(&self) -> u64;

    /// From when on it is worth nothing.
    fn expires_at(&self) -> u64;
}

/// Why a token is refused. Says nothing of what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum TokenError {
    /// Not a token, or not of this kind.
    #[error("the token is malformed")]
    Malformed,
    /// Another kind of token.
    #[error("the token is of another kind")]
    WrongType,
    /// Its key is not, or no longer, trusted.
    #[error("the token's key is not trusted")]
    UnknownKey,
    /// It was altered, or signed by somebody else.
    #[error("the token's signature is wrong")]
    BadSignature,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYet,
    /// It was issued for another tenant, session, version or runtime than it is shown for.
    #[error("the token is for something else")]
    WrongAudience,
}

impl TokenError {
    /// A stable word for records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "token_malformed",
            Self::WrongType => "token_wrong_type",
            Self::UnknownKey => "token_unknown_key",
            Self::BadSignature => "token_bad_signature",
            Self::Expired => "token_expired",
            Self::NotYet => "token_not_yet_valid",
            Self::WrongAudience => "token_wrong_audience",
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    kid: KeyId,
    typ: String,
}

/// A private key and its name. Cloning shares it; prints redacted.
#[derive(Clone)]
pub struct SigningKey {
    id: KeyId,
    pair: Arc<Ed25519KeyPair>,
}

impl SigningKey {
    /// The key that 32 secret bytes make.
    ///
    /// # Panics
    /// Never: any 32 bytes make a key.
    pub fn from_seed(id: KeyId, seed: &[u8; 32]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).expect("any 32 bytes make a key");
        let pair = Arc::new(pair);
        Self { id, pair }
    }

    /// Its name.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// What others check its signatures with.
    pub fn public(&self) -> PublicKey {
        let bytes = self.pair.public_key().as_ref();
        PublicKey::new(bytes.try_into().expect("a public key has 32 bytes"))
    }

    /// Signs claims.
    ///
    /// # Panics
    /// Never: claims are plain data.
    pub fn sign<C: Claims>(&self, claims: &C) -> String {
        let header = Header {
            alg: "EdDSA".to_owned(),
            kid: self.id.clone(),
            typ: C::TYPE.to_owned(),
        };
        let encode = |json: serde_json::Result<Vec<u8>>| {
            URL_SAFE_NO_PAD.encode(json.expect("plain data becomes JSON"))
        };
        let signed = format!(
            "{}.{}",
            encode(serde_json::to_vec(&header)),
            encode(serde_json::to_vec(claims))
        );
        let signature = self.sign_bytes(signed.as_bytes());
        format!("{signed}.{signature}")
    }

    /// Signs bytes as they are; the signature in base64url.
    pub(crate) fn sign_bytes(&self, bytes: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(self.pair.sign(bytes).as_ref())
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Keyring {
    /// What a token says, if it was signed by a trusted key and its time is now.
    pub fn verify<C: Claims>(&self, token: &str, now: WallClock) -> Result<C, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = decode(header)?;
        // Ours is the only algorithm: a token has no say in how it is checked.
        if header.alg != "EdDSA" {
            return Err(TokenError::Malformed);
        }
        if header.typ != C::TYPE {
            return Err(TokenError::WrongType);
        }
        self.verify_bytes(&header.kid, signed.as_bytes(), signature, now)?;
        let claims: C = decode(claims)?;
        let (issued, expires) = (claims.issued_at(), claims.expires_at());
        if issued.saturating_mul(1_000) > now.0.saturating_add(LEEWAY_MS) {
            return Err(TokenError::NotYet);
        }
        if expires <= issued || expires.saturating_mul(1_000) <= now.0 {
            return Err(TokenError::Expired);
        }
        Ok(claims)
    }

    /// Whether a trusted key made this signature, in base64url.
    pub(crate) fn verify_bytes(
        &self,
        key: &KeyId,
        bytes: &[u8],
        signature: &str,
        now: WallClock,
    ) -> Result<(), TokenError> {
        let public = self.trusted(key, now).ok_or(TokenError::UnknownKey)?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| TokenError::Malformed)?;
        UnparsedPublicKey::new(&ED25519, public.as_bytes())
            .verify(bytes, &signature)
            .map_err(|_| TokenError::BadSignature)
    }
}

fn decode<T: DeserializeOwned>(part: &str) -> Result<T, TokenError> {
    let bytes = URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}

#[cfg(test)]
mod tests {
    use rspp_proto::{
        Actor, Epoch, PipelineVersion, RuntimeId, SessionId, TenantId, control::Versions,
    };

    use super::*;

    const NOW: WallClock = WallClock(1_000_000_000);

    pub(crate) fn key(name: &str, seed: u8) -> SigningKey {
        SigningKey::from_seed(KeyId::new(name).unwrap(), &[seed; 32])
    }

    fn ring_of(keys: &[&SigningKey]) -> Keyring {
        keys.iter().fold(Keyring::default(), |mut ring, key| {
            ring.add(key.id().clone(), key.public(), NOW).unwrap();
            ring
        })
    }

    fn claims() -> SessionClaims {
        SessionClaims {
            jti: "t-1".to_owned(),
            session: SessionId::new("s").unwrap(),
            tenant: TenantId::new("acme").unwrap(),
            pipeline: PipelineVersion::new("greeter-1").unwrap(),
            versions: Versions::default(),
            runtime: RuntimeId::new("a").unwrap(),
            epoch: Some(Epoch::FIRST),
            transport: "websocket".to_owned(),
            iat: 1_000_000,
            exp: 1_000_300,
        }
    }

    /// F-119: what is signed is believed, until its time is over.
    #[test]
    fn a_token_is_worth_what_it_says_until_it_expires() {
        let key = key("k1", 1);
        let ring = ring_of(&[&key]);
        let token = key.sign(&claims());
        assert_eq!(ring.verify::<SessionClaims>(&token, NOW), Ok(claims()));
        let last = WallClock(1_000_300_000 - 1);
        assert!(ring.verify::<SessionClaims>(&token, last).is_ok());
        let at = |now| ring.verify::<SessionClaims>(&token, WallClock(now));
        assert_eq!(at(1_000_300_000), Err(TokenError::Expired));
        assert_eq!(at(999_990_000), Err(TokenError::NotYet));
        assert!(at(999_996_000).is_ok(), "clocks may be a little apart");
    }

    /// F-119: each altered claim, each altered byte, is noticed.
    #[test]
    fn an_altered_token_is_refused() {
        let key = key("k1", 1);
        let ring = ring_of(&[&key]);
        let token = key.sign(&claims());
        let mut parts = token.split('.');
        let header = parts.next().unwrap();
        let signature = parts.nth(1).unwrap();
        for altered in [
            SessionClaims {
                tenant: TenantId::new("other").unwrap(),
                ..claims()
            },
            SessionClaims {
                pipeline: PipelineVersion::new("greeter-2").unwrap(),
                ..claims()
            },
            SessionClaims {
                exp: 2_000_000,
                ..claims()
            },
            SessionClaims {
                epoch: Epoch::new(9),
                ..claims()
            },
        ] {
            let body = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&altered).unwrap());
            let forged = format!("{header}.{body}.{signature}");
            let found = ring.verify::<SessionClaims>(&forged, NOW);
            assert_eq!(found, Err(TokenError::BadSignature));
        }
        for index in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
            let broken = String::from_utf8(bytes).unwrap();
            let found = ring.verify::<SessionClaims>(&broken, NOW);
            assert!(found.is_err(), "byte {index} may be altered");
        }
        for nonsense in ["", ".", "..", "a.b.c", "e30.e30.e30", &"x".repeat(5_000)] {
            assert!(ring.verify::<SessionClaims>(nonsense, NOW).is_err());
        }
    }

    /// A token that claims to need no signature, or another kind of it, is not listened to.
    #[test]
    fn a_token_does_not_choose_how_it_is_checked() {
        let key = key("k1", 1);
        let ring = ring_of(&[&key]);
        for alg in ["none", "HS256", "ES256"] {
            let header = format!(
                r#"{{"alg":"{alg}","kid":"k1","typ":"{}"}}"#,
                SessionClaims::TYPE
            );
            let body = serde_json::to_vec(&claims()).unwrap();
            let signed = format!(
                "{}.{}",
                URL_SAFE_NO_PAD.encode(header),
                URL_SAFE_NO_PAD.encode(body)
            );
            let token = format!("{signed}.{}", key.sign_bytes(signed.as_bytes()));
            let found = ring.verify::<SessionClaims>(&token, NOW);
            assert_eq!(found, Err(TokenError::Malformed));
        }
        let operator = key.sign(&AccessClaims {
            sub: Actor::new("ana").unwrap(),
            role: crate::access::Role::Admin,
            tenants: None,
            iat: 1_000_000,
            exp: 1_000_300,
        });
        let found = ring.verify::<SessionClaims>(&operator, NOW);
        assert_eq!(found, Err(TokenError::WrongType));
    }

    /// F-169: a key is replaced while tokens signed by the old one are out, and nobody notices.
    #[test]
    fn keys_rotate_without_a_token_being_refused_too_early() {
        let (old, new) = (key("k1", 1), key("k2", 2));
        let mut ring = ring_of(&[&old]);
        let ttl = 300_000;
        let by_old = old.sign(&claims());
        let found = ring.verify::<SessionClaims>(&new.sign(&claims()), NOW);
        assert_eq!(found, Err(TokenError::UnknownKey));
        ring.add(new.id().clone(), new.public(), NOW).unwrap();
        let by_new = new.sign(&claims());
        ring.promote(new.id(), NOW, ttl).unwrap();
        for token in [&by_old, &by_new] {
            assert!(ring.verify::<SessionClaims>(token, NOW).is_ok());
        }
        // Nothing that the old key signed in time is still valid when it is no longer trusted.
        let later = WallClock(NOW.0 + ttl + LEEWAY_MS);
        let found = ring.verify::<SessionClaims>(&by_old, later);
        assert_eq!(found, Err(TokenError::UnknownKey));
        let again = ring.add(old.id().clone(), old.public(), later);
        assert_eq!(again, Err(KeyringError::Retiring(old.id().clone())));
    }

    /// F-169: a key that somebody else may have is believed no more at once, but what was signed before
    /// stays good; the key that signs is not taken away.
    #[test]
    fn a_stolen_key_is_believed_no_more() {
        let (old, new) = (key("k1", 1), key("k2", 2));
        let mut ring = ring_of(&[&old, &new]);
        let signs = ring.retire(old.id(), NOW);
        assert_eq!(signs, Err(KeyringError::Signs(old.id().clone())));
        ring.promote(new.id(), NOW, 300_000).unwrap();
        let by_old = old.sign(&claims());
        assert!(ring.verify::<SessionClaims>(&by_old, NOW).is_ok());
        ring.retire(old.id(), NOW).unwrap();
        let found = ring.verify::<SessionClaims>(&by_old, NOW);
        assert_eq!(found, Err(TokenError::UnknownKey));
        let before = WallClock(NOW.0 - 1);
        let signature = old.sign_bytes(b"sealed");
        assert!(
            ring.verify_bytes(old.id(), b"sealed", &signature, before)
                .is_ok()
        );
        let unknown = KeyId::new("k9").unwrap();
        assert!(ring.retire(&unknown, NOW).is_err());
    }

    /// Keys that retired are kept while there is room, the oldest going first; those in use stay.
    #[test]
    fn there_is_always_room_for_the_next_key() {
        let mut ring = ring_of(&[&key("k0", 0)]);
        for n in 1..40_u8 {
            let next = key(&format!("k{n}"), n);
            let now = WallClock(NOW.0 + u64::from(n) * 1_000_000);
            ring.add(next.id().clone(), next.public(), now).unwrap();
            ring.promote(next.id(), now, 1_000).unwrap();
        }
        assert_eq!(ring.keys().len(), 16);
        assert!(!ring.keys().contains_key(&KeyId::new("k0").unwrap()));
        assert!(ring.keys().contains_key(&KeyId::new("k38").unwrap()));
        let mut full = Keyring::default();
        let add = |ring: &mut Keyring, n: u8| {
            let key = key(&format!("t{n}"), n);
            ring.add(key.id().clone(), key.public(), NOW)
        };
        for n in 0..16 {
            add(&mut full, n).unwrap();
        }
        assert_eq!(add(&mut full, 16), Err(KeyringError::Full));
    }

    /// F-117: no secret is in what is printed.
    #[test]
    fn private_keys_print_redacted() {
        assert_eq!(
            format!("{:?}", key("k1", 1)),
            r#"SigningKey { id: "k1", .. }"#
        );
    }
}
