//! Why a call was not done, in one stable word: the `reason` of its `google.rpc.ErrorInfo`.
//!
//! Programs match these; what a person reads is the status message.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* pub const $name: &str = stringify!($name);)*
    };
}

reasons! {
    /// Somebody else speaks for the session. `by`, `epoch`.
    SESSION_HELD;
    /// Its holder has been told to let go. `by`, `epoch`.
    SESSION_LETTING_GO;
    /// Somebody else is to have it next. `runtime`.
    SESSION_RESERVED;
    /// Another epoch is the newest, or another holder has it. `held`, `offered`.
    STALE_EPOCH;
    /// There is no such session, or not for the one who asks.
    SESSION_UNKNOWN;
    /// The same runtime has made a later request.
    REQUEST_OVERTAKEN;
    /// The session is over for good.
    SESSION_ENDED;
    /// The runtime has not renewed in time, or has registered anew since: this life of it holds nothing.
    HOLDER_GONE;
    /// Not now, or never. `outcome`, `cause`, `limit`.
    NOT_ADMITTED;
    /// No runtime can take the session.
    NO_ROUTE;
    /// Somebody else wrote first. `key`, `expected`, `found`.
    STATE_CONFLICT;
    /// Somebody else changed it first. `expected`, `found`.
    VERSION_CONFLICT;
    /// No credentials were shown, or none that are known.
    CREDENTIALS_MISSING;
    /// A token was shown that is not good. `cause`.
    CREDENTIALS_INVALID;
    /// The role does not do that. `operation`, `role`.
    ROLE_DENIED;
    /// Not for that tenant.
    TENANT_DENIED;
    /// It concerns everybody, and the caller acts for some.
    FLEET_DENIED;
    /// A runtime speaks for itself only.
    HOLDER_DENIED;
    /// A part of the request is not what it must be. `field`.
    INVALID_ARGUMENT;
    /// The request id was used for another request.
    REQUEST_ID_REUSED;
    /// Nothing of that name is there. `what`.
    NOT_FOUND;
    /// A published version never changes. `published`, `offered`.
    VERSION_IMMUTABLE;
    /// It is wrong in itself.
    SPEC_INVALID;
    /// It breaks who uses the version before. `before`, `suggestion`.
    BREAKING_CHANGE;
    /// New sessions cannot ask for that version. `offered`.
    VERSION_NOT_OFFERED;
    /// There are several lines of pipelines; one has to be named. `lines`.
    PIPELINE_AMBIGUOUS;
    /// The rollout stays as it is, by its rules.
    ROLLOUT_REFUSED;
    /// The proposal cannot be decided so.
    APPROVAL_REFUSED;
    /// The key ring stays as it is, by its rules.
    KEY_REFUSED;
    /// The runtime may not join. `cause`.
    JOIN_REFUSED;
    /// Larger than is taken. `what`, `limit`.
    TOO_LARGE;
    /// The store is not empty, or the backup is damaged.
    RESTORE_REFUSED;
    /// The store does not answer; nothing was done.
    STORE_UNAVAILABLE;
    /// The store did not say what became of it; repeat the same request.
    OUTCOME_UNKNOWN;
    /// Too many write the same at once; nothing was done.
    BUSY;
    /// The server is going down; ask another one.
    SHUTTING_DOWN;
    /// What is stored is not what it should be.
    STORE_DAMAGED;
    /// No control plane could be asked; said by whoever wanted to ask.
    UNREACHABLE;
    /// Its certificate is of no authority that is trusted on this side; this and what follows is said by
    /// whoever wanted to ask.
    TLS_SERVER_UNTRUSTED;
    /// Its certificate is for other names.
    TLS_SERVER_MISNAMED;
    /// Its certificate is not valid now.
    TLS_SERVER_EXPIRED;
    /// It does not trust who issued the certificate of this side.
    TLS_CLIENT_UNTRUSTED;
    /// The certificate of this side is not valid now.
    TLS_CLIENT_EXPIRED;
    /// It speaks TLS and was called in the clear.
    TLS_EXPECTED;
    /// It was called with TLS and speaks something else.
    TLS_NOT_SPOKEN;
    /// The answer makes no sense; said by whoever asked.
    NOT_UNDERSTOOD;
}
