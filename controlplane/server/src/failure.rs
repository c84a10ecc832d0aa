//! Why a call was not done, and how that is said on the wire: one code, one reason, what it is about.

use std::{collections::HashMap, fmt::Write as _, time::Duration};

use rspp_controlplane::{
    access::Denied,
    admission::Decision,
    authority::Refusal,
    fleet::JoinError,
    registry::{PublishError, VersionName},
    rollout::{ApprovalError, ChangeError, NotOffered},
    routing::NoRoute,
    store::StoreError,
    token::{KeyringError, TokenError},
};
use rspp_controlplane_api::{DOMAIN, Version, WireError, reason};
use rspp_controlplane_storage::backup::BackupError;
use rspp_proto::abi::OutcomeKind;
use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::identity::IdentityError;

/// Why a call was not done.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error("no credentials were shown: a client certificate, or a token")]
    NoCredentials,
    #[error(transparent)]
    Nameless(#[from] IdentityError),
    #[error(transparent)]
    BadToken(#[from] TokenError),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("{actor} does not speak for runtime {runtime}")]
    OtherHolder { actor: String, runtime: String },
    #[error(transparent)]
    Argument(#[from] WireError),
    #[error("request id `{0}` was used for another request")]
    RequestReused(String),
    #[error("there is no {what} `{name}`")]
    NotFound { what: &'static str, name: String },
    #[error(transparent)]
    Lease(#[from] Refusal),
    #[error("runtime {0} is not registered any more; it has to register anew")]
    HolderGone(String),
    #[error("{}", not_admitted(.0))]
    NotAdmitted(Box<Decision>),
    #[error(transparent)]
    NoRoute(#[from] NoRoute),
    #[error("there are several pipelines; name one of {}", .0.join(", "))]
    Ambiguous(Vec<String>),
    #[error("no pipeline has been rolled out yet")]
    NoPipeline,
    #[error("`{key}` is at version {}, not {}", found.0, expected.0)]
    StateConflict {
        key: String,
        expected: Version,
        found: Version,
    },
    #[error("it is at version {found} by now, not {expected}")]
    VersionConflict { expected: u64, found: u64 },
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    NotOffered(#[from] NotOffered),
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error(transparent)]
    Approval(#[from] ApprovalError),
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error(
        "this replica has no private key `{0}`: put its file `{0}.seed` into the directory that `more_keys` names, \
         where it is found within seconds, or name it under `keys` and start the replica again"
    )]
    NoPrivateKey(String),
    #[error(
        "this replica's key `{0}` is not the one that is trusted by that name: give it the file of that \
         one, or give its own another id, add and promote it, and retire `{0}`"
    )]
    OtherKey(String),
    #[error("no key signs yet")]
    NoSigner,
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("the {what} is larger than {limit}")]
    TooLarge { what: &'static str, limit: usize },
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("too many write the same just now; nothing was done")]
    Busy,
    #[error("what is known of the fleet is {0:?} old")]
    StaleView(Duration),
    #[error("this replica is going down")]
    ShuttingDown,
}

fn not_admitted(decision: &Decision) -> String {
    let mut text = format!("not admitted: {}", decision.reason);
    if let Some(reached) = decision.reached {
        let limit = reached.limit.as_str();
        let (observed, allowed) = (reached.observed, reached.allowed);
        // Writing to a string cannot fail.
        let _ = write!(text, "; {observed} of {allowed} {limit}");
    }
    text
}

impl Failure {
    /// Whether a rule said no to somebody who may ask: goes into the audit trail.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Lease(_)
            | Self::NotAdmitted(_)
            | Self::VersionConflict { .. }
            | Self::Publish(_)
            | Self::Change(_)
            | Self::Approval(_)
            | Self::Keyring(_)
            | Self::NoPrivateKey(_)
            | Self::OtherKey(_)
            | Self::Join(_)
            | Self::Backup(_) => true,
            Self::NoCredentials
            | Self::Nameless(_)
            | Self::BadToken(_)
            | Self::Denied(_)
            | Self::OtherHolder { .. }
            | Self::Argument(_)
            | Self::RequestReused(_)
            | Self::NotFound { .. }
            | Self::HolderGone(_)
            | Self::NoRoute(_)
            | Self::Ambiguous(_)
            | Self::NoPipeline
            | Self::StateConflict { .. }
            | Self::NotOffered(_)
            | Self::NoSigner
            | Self::TooLarge { .. }
            | Self::Store(_)
            | Self::Busy
            | Self::StaleView(_)
            | Self::ShuttingDown => false,
        }
    }

    fn parts(&self) -> (Code, &'static str, Vec<(&'static str, String)>) {
        match self {
            Self::NoCredentials | Self::Nameless(_) => {
                (Code::Unauthenticated, reason::CREDENTIALS_MISSING, vec![])
            }
            Self::BadToken(error) => (
                Code::Unauthenticated,
                reason::CREDENTIALS_INVALID,
                vec![("cause", error.as_str().to_owned())],
            ),
            Self::Denied(denied) => of_denied(denied),
            Self::OtherHolder { runtime, .. } => (
                Code::PermissionDenied,
                reason::HOLDER_DENIED,
                vec![("runtime", runtime.clone())],
            ),
            Self::Argument(error) => (
                Code::InvalidArgument,
                reason::INVALID_ARGUMENT,
                vec![("field", error.field.to_owned())],
            ),
            Self::RequestReused(_) => (Code::InvalidArgument, reason::REQUEST_ID_REUSED, vec![]),
            Self::NotFound { what, .. } => (
                Code::NotFound,
                reason::NOT_FOUND,
                vec![("what", (*what).to_owned())],
            ),
            Self::Lease(refusal) => of_refusal(refusal),
            Self::HolderGone(_) => (Code::FailedPrecondition, reason::HOLDER_GONE, vec![]),
            Self::NotAdmitted(decision) => of_decision(decision),
            Self::NoRoute(_) => (Code::Unavailable, reason::NO_ROUTE, vec![]),
            Self::Ambiguous(lines) => (
                Code::InvalidArgument,
                reason::PIPELINE_AMBIGUOUS,
                vec![("lines", lines.join(","))],
            ),
            Self::NoPipeline => (
                Code::NotFound,
                reason::NOT_FOUND,
                vec![("what", "rollout".to_owned())],
            ),
            Self::StateConflict {
                key,
                expected,
                found,
            } => (
                Code::FailedPrecondition,
                reason::STATE_CONFLICT,
                vec![
                    ("key", key.clone()),
                    ("expected", expected.0.to_string()),
                    ("found", found.0.to_string()),
                ],
            ),
            Self::VersionConflict { expected, found } => (
                Code::FailedPrecondition,
                reason::VERSION_CONFLICT,
                vec![
                    ("expected", expected.to_string()),
                    ("found", found.to_string()),
                ],
            ),
            Self::Publish(error) => of_publish(error),
            Self::NotOffered(error) => {
                let offered: Vec<_> = error.offered.iter().map(VersionName::as_str).collect();
                (
                    Code::FailedPrecondition,
                    reason::VERSION_NOT_OFFERED,
                    vec![("offered", offered.join(","))],
                )
            }
            Self::Change(_) => (Code::FailedPrecondition, reason::ROLLOUT_REFUSED, vec![]),
            Self::Approval(_) => (Code::FailedPrecondition, reason::APPROVAL_REFUSED, vec![]),
            Self::Keyring(_) | Self::NoPrivateKey(_) | Self::OtherKey(_) | Self::NoSigner => {
                (Code::FailedPrecondition, reason::KEY_REFUSED, vec![])
            }
            Self::Join(error) => {
                let cause = match error {
                    JoinError::Protocol { .. } => "protocol",
                    JoinError::Events(_) | JoinError::ForeignEvents { .. } => "events",
                    JoinError::Endpoints(_) => "endpoints",
                    JoinError::NoCapacity => "no_capacity",
                };
                let about = vec![("cause", cause.to_owned())];
                (Code::FailedPrecondition, reason::JOIN_REFUSED, about)
            }
            Self::TooLarge { what, limit } => too_large(what, *limit),
            Self::Backup(BackupError::Store(error)) | Self::Store(error) => of_store(error),
            Self::Backup(BackupError::Io(_)) => (Code::Internal, reason::STORE_DAMAGED, vec![]),
            Self::Backup(BackupError::Malformed { .. } | BackupError::NotEmpty) => {
                (Code::FailedPrecondition, reason::RESTORE_REFUSED, vec![])
            }
            Self::Busy => (Code::Unavailable, reason::BUSY, vec![]),
            Self::StaleView(_) => (Code::Unavailable, reason::STORE_UNAVAILABLE, vec![]),
            Self::ShuttingDown => (Code::Unavailable, reason::SHUTTING_DOWN, vec![]),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NotAdmitted(decision) => decision.retry_after,
            Self::NoRoute(refused) => refused.is_transient().then_some(Duration::from_secs(1)),
            Self::Lease(Refusal::LettingGo { .. }) => Some(Duration::from_millis(200)),
            _another => None,
        }
    }
}

type Parts = (Code, &'static str, Vec<(&'static str, String)>);

fn of_denied(denied: &Denied) -> Parts {
    match denied {
        Denied::Role {
            role, operation, ..
        } => (
            Code::PermissionDenied,
            reason::ROLE_DENIED,
            vec![
                ("role", role.to_string()),
                ("operation", (*operation).to_owned()),
            ],
        ),
        Denied::Tenant { .. } => (Code::PermissionDenied, reason::TENANT_DENIED, vec![]),
        Denied::Fleet { operation, .. } => (
            Code::PermissionDenied,
            reason::FLEET_DENIED,
            vec![("operation", (*operation).to_owned())],
        ),
    }
}

fn of_refusal(refusal: &Refusal) -> Parts {
    match refusal {
        Refusal::Held { by, epoch } => (
            Code::FailedPrecondition,
            reason::SESSION_HELD,
            vec![
                ("by", by.runtime.to_string()),
                ("epoch", epoch.get().to_string()),
            ],
        ),
        Refusal::LettingGo { from, epoch } => (
            Code::Unavailable,
            reason::SESSION_LETTING_GO,
            vec![
                ("by", from.runtime.to_string()),
                ("epoch", epoch.get().to_string()),
            ],
        ),
        Refusal::Reserved { runtime } => (
            Code::FailedPrecondition,
            reason::SESSION_RESERVED,
            vec![("runtime", runtime.to_string())],
        ),
        Refusal::Stale { held, offered } => (
            Code::FailedPrecondition,
            reason::STALE_EPOCH,
            vec![
                ("held", held.get().to_string()),
                ("offered", offered.get().to_string()),
            ],
        ),
        Refusal::Unknown => (Code::NotFound, reason::SESSION_UNKNOWN, vec![]),
        Refusal::Overtaken => (Code::FailedPrecondition, reason::REQUEST_OVERTAKEN, vec![]),
        Refusal::Ended => (Code::FailedPrecondition, reason::SESSION_ENDED, vec![]),
    }
}

fn of_decision(decision: &Decision) -> Parts {
    let outcome = match decision.outcome {
        OutcomeKind::Defer => "defer",
        _a_refusal => "reject",
    };
    let mut about = vec![
        ("outcome", outcome.to_owned()),
        ("cause", decision.reason.to_string()),
        ("mode", decision.mode.as_str().to_owned()),
        ("snapshot", decision.snapshot.clone()),
    ];
    if let Some(reached) = decision.reached {
        about.push(("limit", reached.limit.as_str().to_owned()));
        about.push(("allowed", reached.allowed.to_string()));
        about.push(("observed", reached.observed.to_string()));
    }
    (Code::ResourceExhausted, reason::NOT_ADMITTED, about)
}

fn of_publish(error: &PublishError) -> Parts {
    match error {
        PublishError::Immutable {
            published, offered, ..
        } => (
            Code::AlreadyExists,
            reason::VERSION_IMMUTABLE,
            vec![
                ("published", published.to_string()),
                ("offered", offered.to_string()),
            ],
        ),
        PublishError::OtherVersion { says, .. } => (
            Code::InvalidArgument,
            reason::SPEC_INVALID,
            vec![("says", says.clone())],
        ),
        PublishError::OtherSurfaces { surfaces, .. } => (
            Code::InvalidArgument,
            reason::SPEC_INVALID,
            vec![("surfaces", surfaces.join(", "))],
        ),
        PublishError::Invalid(_) => (Code::InvalidArgument, reason::SPEC_INVALID, vec![]),
        PublishError::Breaking { before, .. } => (
            Code::FailedPrecondition,
            reason::BREAKING_CHANGE,
            vec![
                ("before", before.to_string()),
                ("suggestion", before.next_major()),
            ],
        ),
        PublishError::TooLarge { what, limit } => too_large(what, *limit),
    }
}

fn too_large(what: &str, limit: usize) -> Parts {
    let about = vec![("what", what.to_owned()), ("limit", limit.to_string())];
    (Code::OutOfRange, reason::TOO_LARGE, about)
}

fn of_store(error: &StoreError) -> Parts {
    match error {
        StoreError::Unavailable(_) => (Code::Unavailable, reason::STORE_UNAVAILABLE, vec![]),
        StoreError::Uncertain(_) => (Code::Aborted, reason::OUTCOME_UNKNOWN, vec![]),
        StoreError::Conflict => (Code::Unavailable, reason::BUSY, vec![]),
        StoreError::TooLarge { what, limit, .. } => too_large(what, *limit),
        StoreError::TooManyOps { .. } => (Code::OutOfRange, reason::TOO_LARGE, vec![]),
        StoreError::LeaseGone { .. } => (Code::FailedPrecondition, reason::HOLDER_GONE, vec![]),
        StoreError::Compacted { .. }
        | StoreError::Future { .. }
        | StoreError::WrittenTwice { .. }
        | StoreError::Corrupt(_) => (Code::DataLoss, reason::STORE_DAMAGED, vec![]),
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let (code, reason, about) = failure.parts();
        let about: HashMap<_, _> = about
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, about);
        if let Some(after) = failure.retry_after() {
            details.set_retry_info(Some(after));
        }
        Status::with_error_details(code, failure.to_string(), details)
    }
}
