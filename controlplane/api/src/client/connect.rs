//! Where the control plane is, and how its replicas take turns.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig as RustlsConfig, pki_types::ServerName};
use tokio::{io::DuplexStream, net::TcpStream, time::Instant};
use tokio_rustls::TlsConnector;
use tonic::codegen::http::Uri;
use tower::Service;

use super::{
    ConfigError,
    faults::{Fault, Faults, Watched, told},
};
use crate::{link::Link, tls::Reloading};

/// How long making a connection may take, all in all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The first pause after every replica has failed; it doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// The longest: less than a tenth of a default lease, so that a control plane that is back is found.
const MAX_PAUSE: Duration = Duration::from_millis(350);

/// Opens a connection within the process.
pub type Dial = Arc<dyn Fn() -> io::Result<DuplexStream> + Send + Sync>;

#[derive(Clone)]
pub(super) enum Address {
    Plain(Arc<str>),
    Tls {
        authority: Arc<str>,
        name: ServerName<'static>,
        config: Arc<Reloading<RustlsConfig>>,
    },
    Memory(Dial),
}

impl Address {
    pub(super) fn parse(
        text: &str,
        tls: Option<&Arc<Reloading<RustlsConfig>>>,
    ) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::Address(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        if uri.port_u16().is_none() || authority.as_str().contains('@') {
            return Err(wrong());
        }
        match uri.scheme_str() {
            Some("http") => Ok(Self::Plain(authority.as_str().into())),
            Some("https") => {
                let host = uri.host().ok_or_else(wrong)?;
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let name = ServerName::try_from(host.to_owned()).map_err(|_| wrong())?;
                let config = tls.ok_or_else(|| ConfigError::NoCredentials(text.to_owned()))?;
                Ok(Self::Tls {
                    authority: authority.as_str().into(),
                    name,
                    config: Arc::clone(config),
                })
            }
            Some(_) | None => Err(wrong()),
        }
    }

    async fn connect(&self) -> io::Result<Link> {
        match self {
            Self::Plain(authority) => {
                let stream = TcpStream::connect(&**authority).await?;
                stream.set_nodelay(true)?;
                Ok(Link::Plain(stream))
            }
            Self::Tls {
                authority,
                name,
                config,
            } => {
                let stream = TcpStream::connect(&**authority).await?;
                stream.set_nodelay(true)?;
                let connector = TlsConnector::from(config.current());
                let stream = connector.connect(name.clone(), stream).await?;
                Ok(Link::Tls(Box::new(stream.into())))
            }
            Self::Memory(dial) => dial().map(Link::Memory),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(authority) => write!(f, "http://{authority}"),
            Self::Tls { authority, .. } => write!(f, "https://{authority}"),
            Self::Memory(_) => f.write_str("this process"),
        }
    }
}

/// Which replica is tried next, and when.
#[derive(Debug, Default)]
struct Turn {
    next: usize,
    failed: u32,
    not_before: Option<Instant>,
}

/// Makes connections to one replica after the other.
#[derive(Clone)]
pub(super) struct Connector {
    addresses: Arc<[Address]>,
    turn: Arc<Mutex<Turn>>,
    faults: Faults,
}

impl Connector {
    pub(super) fn new(addresses: Vec<Address>, faults: Faults) -> Self {
        let turn = Turn {
            // Clients that start together spread over the replicas.
            next: rand::random_range(0..addresses.len().max(1)),
            ..Turn::default()
        };
        Self {
            addresses: addresses.into(),
            turn: Arc::new(Mutex::new(turn)),
            faults,
        }
    }

    async fn connect(self) -> io::Result<TokioIo<Watched>> {
        let (index, not_before) = {
            let turn = self.turn.lock().expect("no code panics while locked");
            (turn.next % self.addresses.len(), turn.not_before)
        };
        if let Some(at) = not_before {
            tokio::time::sleep_until(at).await;
        }
        let address = &self.addresses[index];
        let made = tokio::time::timeout(CONNECT_TIMEOUT, address.connect()).await;
        let made = made.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let mut turn = self.turn.lock().expect("no code panics while locked");
        match made {
            Ok(link) => {
                turn.failed = 0;
                turn.not_before = None;
                let watched = Watched::new(link, address.to_string(), self.faults.clone());
                Ok(TokioIo::new(watched))
            }
            Err(error) => {
                turn.next = index + 1;
                turn.failed = turn.failed.saturating_add(1);
                // All others are tried at once before anybody waits.
                let rounds = turn.failed as usize / self.addresses.len();
                turn.not_before = (rounds > 0).then(|| Instant::now() + pause(rounds));
                let told = match Fault::of(&error) {
                    Some(fault) => {
                        self.faults.note(fault, &address.to_string());
                        told(address, fault)
                    }
                    None => told(address, &error),
                };
                Err(io::Error::new(error.kind(), told))
            }
        }
    }
}

/// Half of it is left to chance, so that not everybody comes back at once.
pub(super) fn pause(failures: usize) -> Duration {
    let doubled = MIN_PAUSE * 2_u32.pow(failures.min(6) as u32);
    let whole = doubled.min(MAX_PAUSE);
    whole / 2 + rand::random_range(Duration::ZERO..=whole / 2)
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Watched>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}
