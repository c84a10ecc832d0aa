//! The client of a control plane: deadlines, repetition, reconnection.

mod calls;
mod connect;
mod faults;
mod plane;

use std::{fmt, sync::Arc, time::Duration};

use thiserror::Error;
use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

pub use self::connect::Dial;
use self::{
    connect::{Address, Connector},
    faults::Faults,
};
use crate::tls::{Reloading, TlsError, TlsFiles};

/// Largest message that is taken, in bytes: an artifact, a page of sessions.
const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Bytes that one stream may have under way. A page fits; a flood does not.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Bytes that a connection may have under way.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// Gives the token that shows who calls; asked for each call, so that it may be replaced.
pub type Bearer = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// How to reach a control plane.
#[derive(Clone)]
pub struct ClientConfig {
    /// `http://host:port` or `https://host:port` of each replica; one is used until it fails.
    pub addresses: Vec<String>,
    /// Credentials for `https`.
    pub tls: Option<TlsFiles>,
    /// Who calls, if not who the certificate names.
    pub bearer: Option<Bearer>,
    /// How long a call may take, with its repetitions. Less than half a lease, or a renewal that is lost
    /// could not be repeated in time.
    pub deadline: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            tls: None,
            bearer: None,
            deadline: Duration::from_millis(1_500),
        }
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("addresses", &self.addresses)
            .field("tls", &self.tls)
            .field("bearer", &self.bearer.is_some())
            .field("deadline", &self.deadline)
            .finish()
    }
}

/// Why there is no client.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// No replica is named.
    #[error("no address of a control plane is given")]
    NoAddress,
    /// An address that cannot be.
    #[error("`{0}` is no address: write it as `https://host:port` or `http://host:port`")]
    Address(String),
    /// `https` without credentials.
    #[error("`{0}` needs TLS, and no certificate is given")]
    NoCredentials(String),
    /// Credentials that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Asks a control plane. Cloning shares the connection, which is made when it is needed and made anew,
/// with growing pauses, when it breaks.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    /// How many replicas there are.
    replicas: usize,
    faults: Faults,
    bearer: Option<Bearer>,
    deadline: Duration,
}

impl Client {
    /// A client that connects when it is first used. Needs a tokio runtime.
    pub fn new(config: ClientConfig) -> Result<Self, ConfigError> {
        let tls = config.tls.map(Reloading::open).transpose()?.map(Arc::new);
        let addresses = config.addresses.iter();
        let addresses: Result<Vec<_>, _> = addresses
            .map(|text| Address::parse(text, tls.as_ref()))
            .collect();
        let addresses = addresses?;
        if addresses.is_empty() {
            return Err(ConfigError::NoAddress);
        }
        let replicas = addresses.len();
        let faults = Faults::default();
        let channel = channel(Connector::new(addresses, faults.clone()));
        Ok(Self {
            channel,
            replicas,
            faults,
            bearer: config.bearer,
            deadline: config.deadline,
        })
    }

    /// A client of a control plane in the same process.
    pub fn within(dial: Dial) -> Self {
        let faults = Faults::default();
        Self {
            channel: channel(Connector::new(vec![Address::Memory(dial)], faults.clone())),
            replicas: 1,
            faults,
            bearer: None,
            deadline: ClientConfig::default().deadline,
        }
    }

    /// The same client with other deadlines.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same client with other credentials.
    #[must_use]
    pub fn with_bearer(mut self, bearer: Option<Bearer>) -> Self {
        self.bearer = bearer;
        self
    }

    fn authorization(&self) -> Option<MetadataValue<Ascii>> {
        let token = self.bearer.as_ref()?()?;
        let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

fn channel(connector: Connector) -> Channel {
    // The connector knows where; this only names the service in each request.
    Endpoint::from_static("http://control-plane.rspp")
        .user_agent(concat!("rspp/", env!("CARGO_PKG_VERSION")))
        .expect("our own name can be sent")
        // A dead link is noticed before half a lease is over.
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(1))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect_with_connector_lazy(connector)
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
