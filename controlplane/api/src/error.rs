//! Why a control plane did not do what it was asked for.

use std::{collections::BTreeMap, fmt::Display, time::Duration};

use rspp_proto::{Epoch, RuntimeId};
use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{WireError, reason};

/// Whose words the reasons are.
pub const DOMAIN: &str = "rspp";

/// Why it was not done.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ControlError {
    /// Somebody else speaks for the session.
    #[error("{message}")]
    Held {
        /// What people read.
        message: String,
    },
    /// Its holder has been told to let go and may not have heard of it yet: ask again soon.
    #[error("{message}")]
    LettingGo {
        /// What people read.
        message: String,
    },
    /// Somebody else is to have it next.
    #[error("the session is kept for {runtime}")]
    Reserved {
        /// Who.
        runtime: RuntimeId,
    },
    /// The caller does not hold the session at that epoch.
    #[error("the session is at {held}, not at {offered}")]
    Stale {
        /// The newest epoch.
        held: Epoch,
        /// What was offered.
        offered: Epoch,
    },
    /// There is no such session, or not for the caller.
    #[error("there is no such session")]
    UnknownSession,
    /// A later request of the same runtime came first.
    #[error("the request was overtaken")]
    Overtaken,
    /// The session is over for good.
    #[error("the session has ended")]
    Ended,
    /// This life of the runtime is over, as the control plane sees it: it holds nothing. Register anew.
    #[error("{message}")]
    HolderGone {
        /// What people read.
        message: String,
    },
    /// The tenant may not open another session, now or at all.
    #[error("{message}")]
    NotAdmitted {
        /// Why, as CP-05 says it.
        cause: String,
        /// What else was said: which limit, what is allowed, what was observed.
        details: BTreeMap<String, String>,
        /// When to ask again; `None`: not by waiting.
        retry_after: Option<Duration>,
        /// What people read.
        message: String,
    },
    /// No runtime can take the session.
    #[error("{message}")]
    NoRoute {
        /// When to ask again; `None`: not by waiting.
        retry_after: Option<Duration>,
        /// What people read.
        message: String,
    },
    /// Somebody else wrote this value first.
    #[error("`{key}` is at version {found}, not {expected}")]
    StateConflict {
        /// The key.
        key: String,
        /// What was expected.
        expected: u64,
        /// What is there; 0 if nothing is.
        found: u64,
    },
    /// The caller could not be made out.
    #[error("{message}")]
    Unauthenticated {
        /// One of [`reason`].
        reason: String,
        /// What people read.
        message: String,
    },
    /// The caller may not.
    #[error("{message}")]
    Denied {
        /// One of [`reason`].
        reason: String,
        /// What people read.
        message: String,
    },
    /// A rule is in the way, or the request is wrong.
    #[error("{message}")]
    Refused {
        /// One of [`reason`].
        reason: String,
        /// What people read.
        message: String,
        /// What it is about.
        details: BTreeMap<String, String>,
    },
    /// Nobody could be asked, or nothing could be done just now. Repeat the same.
    #[error("{message}")]
    Unavailable {
        /// One of [`reason`], if somebody was asked.
        reason: String,
        /// When to ask again, if that was said.
        retry_after: Option<Duration>,
        /// What people read.
        message: String,
    },
    /// It may have been done or not. Repeat the very same: it has one effect.
    #[error("{message}")]
    Uncertain {
        /// What people read.
        message: String,
    },
    /// The answer makes no sense: another version, or a fault.
    #[error("the control plane's answer is not understood: {0}")]
    Answer(#[from] WireError),
}

impl ControlError {
    /// Whether repeating the very same may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::LettingGo { .. } | Self::Unavailable { .. } | Self::Uncertain { .. } => true,
            Self::NotAdmitted { retry_after, .. } | Self::NoRoute { retry_after, .. } => {
                retry_after.is_some()
            }
            Self::Held { .. }
            | Self::Reserved { .. }
            | Self::Stale { .. }
            | Self::UnknownSession
            | Self::Overtaken
            | Self::Ended
            | Self::HolderGone { .. }
            | Self::StateConflict { .. }
            | Self::Unauthenticated { .. }
            | Self::Denied { .. }
            | Self::Refused { .. }
            | Self::Answer(_) => false,
        }
    }

    /// Why, in one stable word: one of [`reason`].
    pub fn reason(&self) -> &str {
        match self {
            Self::Held { .. } => reason::SESSION_HELD,
            Self::LettingGo { .. } => reason::SESSION_LETTING_GO,
            Self::Reserved { .. } => reason::SESSION_RESERVED,
            Self::Stale { .. } => reason::STALE_EPOCH,
            Self::UnknownSession => reason::SESSION_UNKNOWN,
            Self::Overtaken => reason::REQUEST_OVERTAKEN,
            Self::Ended => reason::SESSION_ENDED,
            Self::HolderGone { .. } => reason::HOLDER_GONE,
            Self::NotAdmitted { .. } => reason::NOT_ADMITTED,
            Self::NoRoute { .. } => reason::NO_ROUTE,
            Self::StateConflict { .. } => reason::STATE_CONFLICT,
            Self::Unauthenticated { reason, .. } => said(reason, reason::CREDENTIALS_INVALID),
            Self::Denied { reason, .. } => said(reason, reason::ROLE_DENIED),
            Self::Refused { reason, .. } => reason,
            Self::Unavailable { reason, .. } => said(reason, reason::UNREACHABLE),
            Self::Uncertain { .. } => reason::OUTCOME_UNKNOWN,
            Self::Answer(_) => reason::NOT_UNDERSTOOD,
        }
    }

    /// When to ask again, if that was said.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NotAdmitted { retry_after, .. }
            | Self::NoRoute { retry_after, .. }
            | Self::Unavailable { retry_after, .. } => *retry_after,
            Self::Held { .. }
            | Self::LettingGo { .. }
            | Self::Reserved { .. }
            | Self::Stale { .. }
            | Self::UnknownSession
            | Self::Overtaken
            | Self::Ended
            | Self::HolderGone { .. }
            | Self::StateConflict { .. }
            | Self::Unauthenticated { .. }
            | Self::Denied { .. }
            | Self::Refused { .. }
            | Self::Uncertain { .. }
            | Self::Answer(_) => None,
        }
    }

    /// What it is about, by name.
    pub fn details(&self) -> BTreeMap<String, String> {
        let pairs = |pairs: &[(&str, &dyn Display)]| {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| ((*name).to_owned(), value.to_string()))
                .collect()
        };
        match self {
            Self::NotAdmitted { details, .. } | Self::Refused { details, .. } => details.clone(),
            Self::Reserved { runtime } => pairs(&[("runtime", runtime)]),
            Self::Stale { held, offered } => {
                pairs(&[("held", &held.get()), ("offered", &offered.get())])
            }
            Self::StateConflict {
                key,
                expected,
                found,
            } => pairs(&[("key", key), ("expected", expected), ("found", found)]),
            Self::Answer(error) => pairs(&[("field", &error.field)]),
            Self::Held { .. }
            | Self::LettingGo { .. }
            | Self::UnknownSession
            | Self::Overtaken
            | Self::Ended
            | Self::HolderGone { .. }
            | Self::NoRoute { .. }
            | Self::Unauthenticated { .. }
            | Self::Denied { .. }
            | Self::Unavailable { .. }
            | Self::Uncertain { .. } => BTreeMap::new(),
        }
    }

    /// Whether nobody answered, or nobody could do anything: what a call is repeated for at once.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Uncertain { .. })
    }
}

impl From<Status> for ControlError {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN);
        let retry_after = details.retry_info().and_then(|info| info.retry_delay);
        let message = status.message().to_owned();
        let Some(info) = info else {
            return without_details(&status, retry_after);
        };
        let reason = info.reason.clone();
        let get = |name: &str| info.metadata.get(name).cloned().unwrap_or_default();
        let epoch = |name: &str| get(name).parse().ok().and_then(Epoch::new);
        let number = |name: &str| get(name).parse().unwrap_or_default();
        let refused = || Self::Refused {
            reason: reason.clone(),
            message: message.clone(),
            details: info.metadata.clone().into_iter().collect(),
        };
        match info.reason.as_str() {
            reason::SESSION_HELD => Self::Held { message },
            reason::SESSION_LETTING_GO => Self::LettingGo { message },
            reason::SESSION_RESERVED => match RuntimeId::new(get("runtime")) {
                Ok(runtime) => Self::Reserved { runtime },
                Err(_) => refused(),
            },
            reason::STALE_EPOCH => match (epoch("held"), epoch("offered")) {
                (Some(held), Some(offered)) => Self::Stale { held, offered },
                (None | Some(_), None) | (None, Some(_)) => refused(),
            },
            reason::SESSION_UNKNOWN => Self::UnknownSession,
            reason::REQUEST_OVERTAKEN => Self::Overtaken,
            reason::SESSION_ENDED => Self::Ended,
            reason::HOLDER_GONE => Self::HolderGone { message },
            reason::NOT_ADMITTED => Self::NotAdmitted {
                cause: get("cause"),
                details: info.metadata.clone().into_iter().collect(),
                retry_after,
                message,
            },
            reason::NO_ROUTE => Self::NoRoute {
                retry_after,
                message,
            },
            reason::STATE_CONFLICT => Self::StateConflict {
                key: get("key"),
                expected: number("expected"),
                found: number("found"),
            },
            reason::OUTCOME_UNKNOWN => Self::Uncertain { message },
            // Reasons of a newer server are told apart by their codes.
            _by_code => match status.code() {
                Code::Unauthenticated => Self::Unauthenticated { reason, message },
                Code::PermissionDenied => Self::Denied { reason, message },
                Code::Unavailable => Self::Unavailable {
                    reason,
                    retry_after,
                    message,
                },
                Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => {
                    Self::Uncertain { message }
                }
                _a_refusal => refused(),
            },
        }
    }
}

/// A reason; what it must have been if none was said.
fn said<'a>(reason: &'a str, otherwise: &'static str) -> &'a str {
    if reason.is_empty() { otherwise } else { reason }
}

/// What gRPC itself, or what lies between, has to say.
fn without_details(status: &Status, retry_after: Option<Duration>) -> ControlError {
    let message = status.message().to_owned();
    let reason = String::new();
    match status.code() {
        Code::Unauthenticated => ControlError::Unauthenticated { reason, message },
        Code::PermissionDenied => ControlError::Denied { reason, message },
        Code::Unavailable | Code::ResourceExhausted if !is_size(&message) => {
            ControlError::Unavailable {
                reason,
                retry_after,
                message,
            }
        }
        // A connection that broke under way, a deadline that passed: it may have arrived.
        Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal => {
            ControlError::Uncertain { message }
        }
        Code::OutOfRange | Code::ResourceExhausted => ControlError::Refused {
            reason: reason::TOO_LARGE.to_owned(),
            message,
            details: BTreeMap::new(),
        },
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unimplemented
        | Code::Unavailable
        | Code::DataLoss => ControlError::Refused {
            reason: status.code().to_string(),
            message,
            details: BTreeMap::new(),
        },
    }
}

/// Whether tonic says that a message is larger than its limit.
fn is_size(message: &str) -> bool {
    message.contains("message length too large")
}
