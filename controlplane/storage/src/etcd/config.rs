//! How a cluster is reached.

use std::fmt;

use serde::Deserialize;
use thiserror::Error;

/// Most members; etcd itself advises against more than seven.
const MAX_ENDPOINTS: usize = 16;
/// Shortest deadline that is accepted: a commit of a healthy cluster takes milliseconds.
const MIN_TIMEOUT_MS: u64 = 100;

/// How a cluster is reached.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EtcdConfig {
    /// All members, e.g. `http://127.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// How long one member is waited for, in milliseconds.
    pub timeout_ms: u64,
    /// How long all of them are tried, in milliseconds.
    pub give_up_ms: u64,
    /// How often a connection that waits for something is asked whether it is still there, in
    /// milliseconds. Members close connections that ask more often than every 5 s, unless they were
    /// started with a shorter `--grpc-keepalive-min-time`.
    pub keepalive_ms: u64,
    /// Certificates, if the members ask for them; then all endpoints are `https://`.
    pub tls: Option<EtcdTls>,
    /// Who we are, if the cluster has users. The role needs to read and write `/rspp/` and
    /// `rspp-receipts/`.
    pub login: Option<EtcdLogin>,
}

/// PEM texts.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdTls {
    /// Who signed the members' certificates.
    pub ca: String,
    /// Our certificate and its key, if the members want to know who we are.
    #[serde(default)]
    pub identity: Option<EtcdIdentity>,
    /// The name that the members' certificates are made out to, if it is not the endpoints' host.
    #[serde(default)]
    pub domain: Option<String>,
}

/// PEM texts.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdIdentity {
    /// Our certificate, and those up to the one that the members trust.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// A user of etcd.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdLogin {
    /// The user's name.
    pub user: String,
    /// The user's password.
    pub password: String,
}

/// Why a cluster cannot be reached in that way.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EtcdConfigError {
    /// None, or more than a cluster has.
    #[error("1 to {MAX_ENDPOINTS} endpoints are named, not {0}")]
    Endpoints(usize),
    /// An endpoint is no address, or not of the kind that goes with `tls`.
    #[error("endpoint `{endpoint}`: {what}")]
    Endpoint {
        /// The endpoint.
        endpoint: String,
        /// What is wrong.
        what: String,
    },
    /// A deadline is too short, or longer than the one around it.
    #[error("{key}: {what}")]
    Deadline {
        /// The setting.
        key: &'static str,
        /// What is wrong.
        what: String,
    },
    /// A certificate or key cannot be used.
    #[error("tls: {0}")]
    Tls(String),
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            // A healthy commit takes milliseconds, an election a second; whoever waits for a member
            // that hangs loses this much before the next one is asked.
            timeout_ms: 1_000,
            give_up_ms: 8_000,
            keepalive_ms: 6_000,
            tls: None,
            login: None,
        }
    }
}

impl EtcdConfig {
    /// A cluster without certificates and users.
    pub fn at(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// Says what is wrong with it.
    pub fn validate(&self) -> Result<(), EtcdConfigError> {
        if !(1..=MAX_ENDPOINTS).contains(&self.endpoints.len()) {
            return Err(EtcdConfigError::Endpoints(self.endpoints.len()));
        }
        let scheme = match self.tls {
            Some(_) => "https://",
            None => "http://",
        };
        for endpoint in &self.endpoints {
            if !endpoint.starts_with(scheme) {
                return Err(EtcdConfigError::Endpoint {
                    endpoint: endpoint.clone(),
                    what: format!(
                        "begins with `{scheme}`, because `tls` is {}",
                        match self.tls {
                            Some(_) => "set",
                            None => "not set",
                        }
                    ),
                });
            }
        }
        for (key, value, least) in [
            ("timeout_ms", self.timeout_ms, MIN_TIMEOUT_MS),
            ("give_up_ms", self.give_up_ms, self.timeout_ms),
            ("keepalive_ms", self.keepalive_ms, MIN_TIMEOUT_MS),
        ] {
            if value < least {
                let what = format!("{value} is less than {least}");
                return Err(EtcdConfigError::Deadline { key, what });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdTls")
            .field("identity", &self.identity)
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for EtcdIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdIdentity").finish_non_exhaustive()
    }
}

impl fmt::Debug for EtcdLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdLogin")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_with_its_reason() {
        let refused = |change: fn(&mut EtcdConfig)| {
            let mut config = EtcdConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert_eq!(EtcdConfig::default().validate(), Ok(()));
        assert_eq!(
            refused(|it| it.endpoints.clear()),
            "1 to 16 endpoints are named, not 0"
        );
        assert_eq!(
            refused(|it| it.endpoints = vec!["https://a:1".to_owned()]),
            "endpoint `https://a:1`: begins with `http://`, because `tls` is not set"
        );
        assert_eq!(
            refused(|it| it.give_up_ms = 10),
            "give_up_ms: 10 is less than 1000"
        );
    }

    /// No secret gets into a log.
    #[test]
    fn passwords_and_keys_are_not_printed() {
        let config = EtcdConfig {
            tls: Some(EtcdTls {
                ca: "public".to_owned(),
                identity: Some(EtcdIdentity {
                    certificate: "public".to_owned(),
                    key: "hush".to_owned(),
                }),
                domain: None,
            }),
            login: Some(EtcdLogin {
                user: "rspp".to_owned(),
                password: "hush".to_owned(),
            }),
            ..EtcdConfig::default()
        };
        let printed = format!("{config:?}");
        assert!(
            printed.contains("rspp") && !printed.contains("hush"),
            "{printed}"
        );
    }
}
