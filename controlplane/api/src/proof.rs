//! What proves to a runtime that a session was granted to it, and by whom (design §7).

use rspp_proto::{Epoch, LeaseToken, SessionId, WallClock, control::Holder};
use thiserror::Error;

use crate::Snapshot;

/// What a proof has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed<'a> {
    /// The session.
    pub session: &'a SessionId,
    /// Who holds it.
    pub holder: &'a Holder,
    /// At which epoch.
    pub epoch: Epoch,
}

/// Why a proof is not believed. Says nothing of what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unproven {
    /// Its key has not been heard of here; it may be a moment later.
    #[error("its key is not known here yet")]
    UnknownKey,
    /// It was forged, is over, or is of something else.
    #[error("{0}")]
    Refused(&'static str),
}

/// Knows which proofs are good: the control plane's public keys, in whatever form a program reads them.
pub trait Proofs: Send + Sync + 'static {
    /// Whether `proof` says what is claimed, is signed by a key of `keyring`, and its time is now.
    fn check(
        &self,
        proof: &LeaseToken,
        keyring: &Snapshot,
        claimed: Claimed<'_>,
        now: WallClock,
    ) -> Result<(), Unproven>;
}
