//! How a call can go wrong: a closed, normalised taxonomy (F-131, F-160; providers.md §2).

use std::time::Duration;

use rspp_proto::OutcomeClass;
use thiserror::Error;

/// Why a call did not succeed. Its text holds no payload and no secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reason}: {message}")]
pub struct Fault {
    /// The class; never `Success`.
    pub class: OutcomeClass,
    /// Whether another attempt may succeed.
    pub retryable: bool,
    /// A stable code, e.g. `provider_overload`.
    pub reason: &'static str,
    /// What happened, for people.
    pub message: String,
    /// The provider asked not to be called for a while.
    pub circuit_open: bool,
    /// How long to wait before the next attempt.
    pub backoff: Option<Duration>,
    /// HTTP status, where there was one.
    pub status: Option<u16>,
}

/// The codes that faults carry: those of the constructors below, and what providers are blocked and shed for.
const REASONS: [&str; 16] = [
    "provider_timeout",
    "provider_overload",
    "provider_cancelled",
    "provider_transport_error",
    "provider_stream_error",
    "provider_server_error",
    "provider_client_error",
    "provider_auth_or_policy_block",
    "provider_endpoint_missing",
    "adapter_invoke_error",
    "execution_pool_saturated",
    "execution_pool_closed",
    "playback_not_recorded",
    "tts_nothing_to_say",
    "tts_unknown_voice",
    "unsupported_language",
];

impl Fault {
    /// The code of that name, as of a fault that was written down; one that this build does not know goes by
    /// the fault's class.
    pub fn reason(class: OutcomeClass, name: &str) -> &'static str {
        let known = REASONS.into_iter().find(|known| *known == name);
        known.unwrap_or(match class {
            OutcomeClass::Timeout => "provider_timeout",
            OutcomeClass::Overload => "provider_overload",
            OutcomeClass::Blocked => "provider_client_error",
            OutcomeClass::InfrastructureFailure | OutcomeClass::Success => "provider_stream_error",
            OutcomeClass::Cancelled => "provider_cancelled",
        })
    }

    fn new(
        class: OutcomeClass,
        retryable: bool,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            class,
            retryable,
            reason,
            message: message.into(),
            circuit_open: false,
            backoff: None,
            status: None,
        }
    }

    /// The provider was too slow.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(OutcomeClass::Timeout, true, "provider_timeout", message)
    }

    /// The provider has no capacity; 500 ms of backoff unless it said otherwise.
    pub fn overload(message: impl Into<String>, backoff: Option<Duration>) -> Self {
        Self {
            circuit_open: true,
            backoff: Some(backoff.unwrap_or(Duration::from_millis(500))),
            ..Self::new(OutcomeClass::Overload, true, "provider_overload", message)
        }
    }

    /// There was no room for the call on this machine; nothing is wrong with the provider.
    pub fn shed(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(OutcomeClass::Overload, false, reason, message)
    }

    /// Whether it was [`shed`](Self::shed) by a pool.
    pub fn is_shed(&self) -> bool {
        let by_pool = ["execution_pool_saturated", "execution_pool_closed"];
        self.class == OutcomeClass::Overload && by_pool.contains(&self.reason)
    }

    /// The call was stopped by us.
    pub fn cancelled() -> Self {
        Self::new(
            OutcomeClass::Cancelled,
            false,
            "provider_cancelled",
            "the call was cancelled",
        )
    }

    /// The connection broke.
    pub fn transport(message: impl Into<String>) -> Self {
        Self::new(
            OutcomeClass::InfrastructureFailure,
            true,
            "provider_transport_error",
            message,
        )
    }

    /// The stream broke after it had begun.
    pub fn stream(message: impl Into<String>) -> Self {
        Self::new(
            OutcomeClass::InfrastructureFailure,
            true,
            "provider_stream_error",
            message,
        )
    }

    /// The provider's server failed.
    pub fn server(message: impl Into<String>) -> Self {
        Self {
            circuit_open: true,
            ..Self::new(
                OutcomeClass::InfrastructureFailure,
                true,
                "provider_server_error",
                message,
            )
        }
    }

    /// A local model failed.
    pub fn model(message: impl Into<String>) -> Self {
        Self::new(
            OutcomeClass::InfrastructureFailure,
            false,
            "adapter_invoke_error",
            message,
        )
    }

    /// The request was refused and would be again.
    pub fn blocked(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(OutcomeClass::Blocked, false, reason, message)
    }

    /// What an HTTP error status means (providers.md §2). `status` is not a success.
    pub fn from_http(
        status: u16,
        retry_after: Option<Duration>,
        message: impl Into<String>,
    ) -> Self {
        let fault = match status {
            429 => Self::overload(message, retry_after),
            408 | 504 => Self::timeout(message),
            401 | 403 => Self::blocked("provider_auth_or_policy_block", message),
            500..=599 => Self::server(message),
            _ => Self::blocked("provider_client_error", message),
        };
        Self {
            status: Some(status),
            ..fault
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// providers.md §2, row by row.
    #[test]
    fn http_statuses_map_to_the_taxonomy() {
        #[track_caller]
        fn check(status: u16, class: OutcomeClass, retryable: bool, opens: bool, reason: &str) {
            let fault = Fault::from_http(status, None, "");
            assert_eq!(
                (
                    fault.class,
                    fault.retryable,
                    fault.circuit_open,
                    fault.reason
                ),
                (class, retryable, opens, reason)
            );
            assert_eq!(fault.status, Some(status));
        }
        check(429, OutcomeClass::Overload, true, true, "provider_overload");
        check(408, OutcomeClass::Timeout, true, false, "provider_timeout");
        check(504, OutcomeClass::Timeout, true, false, "provider_timeout");
        check(
            401,
            OutcomeClass::Blocked,
            false,
            false,
            "provider_auth_or_policy_block",
        );
        check(
            403,
            OutcomeClass::Blocked,
            false,
            false,
            "provider_auth_or_policy_block",
        );
        check(
            404,
            OutcomeClass::Blocked,
            false,
            false,
            "provider_client_error",
        );
        check(
            503,
            OutcomeClass::InfrastructureFailure,
            true,
            true,
            "provider_server_error",
        );
    }

    /// F-151: a fault that is read back is the fault that was written down.
    #[test]
    fn every_constructor_has_a_code_that_reads_back() {
        let faults = [
            Fault::timeout(""),
            Fault::overload("", None),
            Fault::cancelled(),
            Fault::transport(""),
            Fault::stream(""),
            Fault::server(""),
            Fault::model(""),
            Fault::from_http(401, None, ""),
            Fault::from_http(404, None, ""),
        ];
        for Fault { class, reason, .. } in faults {
            assert_eq!(Fault::reason(class, reason), reason);
        }
        let newer = |class| Fault::reason(class, "a_code_of_a_newer_build");
        assert_eq!(newer(OutcomeClass::Overload), "provider_overload");
        assert_eq!(newer(OutcomeClass::Blocked), "provider_client_error");
    }

    #[test]
    fn overload_honours_retry_after() {
        let backoff = Duration::from_secs(3);
        assert_eq!(
            Fault::from_http(429, Some(backoff), "").backoff,
            Some(backoff)
        );
        assert_eq!(
            Fault::from_http(429, None, "").backoff,
            Some(Duration::from_millis(500))
        );
    }
}
