//! Who may speak for a session (design §5).
//!
//! A [`Placement`] is the session's record. Its epoch rises with every grant and never falls; it comes
//! from the store's transaction, never from a clock. What decides whether a holder is gone is a record
//! that the *store* deletes when the holder stopped renewing, so no two clocks are ever compared. The
//! other half of the promise is the holder's: it falls silent on its own monotonic clock, counted from
//! before it asked, before the store's time can be up (`rspp_kernel::LeaseTimer`).

mod placement;
mod term;

pub use placement::{
    Acquire, Fuse, Granted, MAX_PAST, Over, Passed, Past, Placement, Refusal, Revoke, Seen,
    Standing, Vacated, abandon, acquire, after_restore, check, end, light, release, revoke,
};
pub use rspp_proto::control::{Attempt, Binding, Holder, Incarnation, WhyRevoked};
pub use term::{DEFAULT_TTL, MIN_TTL, Term, TermError};
