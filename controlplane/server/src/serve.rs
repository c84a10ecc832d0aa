//! Where callers come in: sockets in the clear or under TLS, and links within the process.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rspp_controlplane::access::Principal;
use rspp_controlplane_api::{
    Dial, Link, millis,
    tls::{Reloading, TlsError, TlsFiles},
    wire,
};
use rustls::ServerConfig;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server as Grpc, server::Connected};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    identity::{Identity, Peer},
    plane::Plane,
    services::{
        admission::AdmissionService, audit::AuditService, backup::BackupService,
        fleet::FleetService, keys::KeysService, placements::PlacementsService,
        registry::RegistryService, rollouts::RolloutsService, sessions::SessionsService,
        snapshots::SnapshotsService, state::StateService,
    },
};

/// Largest request, in bytes: an artifact with its labels, a full renewal, a commit of state.
const MAX_REQUEST: usize = 4 * 1024 * 1024;
/// Largest answer, in bytes.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// Bytes that one call may have under way; the largest request needs four rounds.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Bytes that one connection may have under way, whatever its calls.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Calls of one connection at once; a runtime has a handful.
const MAX_STREAMS: u32 = 1_024;
/// The same, of those that are being worked on.
const MAX_AT_WORK: usize = 256;
/// Headers of a call, in bytes: a token, a deadline, a trace.
const MAX_HEADERS: u32 = 16 * 1024;
/// How long a call may take at most, whatever deadline it names.
const MAX_CALL: Duration = Duration::from_mins(1);
/// How long a caller may take to show who they are.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Callers that are showing who they are, at once; more wait in the socket's own queue.
const MAX_HANDSHAKES: usize = 128;
/// Links that wait to be taken.
const MAX_WAITING: usize = 64;
/// Bytes between both ends of a link within the process.
const MEMORY_LINK: usize = 256 * 1024;
/// A connection on which nothing is said is asked after this, and given up after the next.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(5);

/// How callers prove who they are on a socket.
#[derive(Clone, Debug)]
pub enum Transport {
    /// By a token only; nobody listens in on a loopback.
    Plain,
    /// By a certificate of our authority, and perhaps a token.
    Tls(TlsFiles),
}

/// A socket.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Where; port 0 is any that is free.
    pub address: SocketAddr,
    /// How callers prove who they are.
    pub transport: Transport,
}

/// Why there is no server.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The credentials cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The descriptors that were built in cannot be served.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A control plane that can be called.
pub struct Server {
    plane: Plane,
    addresses: Vec<SocketAddr>,
    links: mpsc::Sender<io::Result<Incoming>>,
    health: HealthReporter,
    accepting: CancellationToken,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Server {
    /// Opens the sockets and serves.
    pub async fn start(plane: Plane, listen: Vec<Listen>) -> Result<Self, ServeError> {
        let (links, incoming) = mpsc::channel(MAX_WAITING);
        let accepting = CancellationToken::new();
        let mut addresses = Vec::new();
        let mut doors = Vec::new();
        for Listen { address, transport } in listen {
            let tls = match transport {
                Transport::Plain => None,
                Transport::Tls(files) => Some(Arc::new(Reloading::open(files)?)),
            };
            let bound = TcpListener::bind(address).await;
            let listener = bound.map_err(|source| ServeError::Bind { address, source })?;
            let local = listener.local_addr();
            addresses.push(local.map_err(|source| ServeError::Bind { address, source })?);
            doors.push((listener, tls));
        }
        for (listener, tls) in doors {
            let door = Door {
                tls,
                domain: plane.settings().domain.clone(),
                links: links.clone(),
                handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            };
            let accepting = accepting.clone();
            tokio::spawn(async move {
                accepting.run_until_cancelled(door.accept(listener)).await;
            });
        }
        let (health, health_service) = tonic_health::server::health_reporter();
        say_health(&health, ServingStatus::Serving).await;
        plane.spawn(follow_health(plane.clone(), health.clone()));
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(wire::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        macro_rules! service {
            ($module:ident::$server:ident, $service:expr) => {
                wire::$module::$server::new($service)
                    .max_decoding_message_size(MAX_REQUEST)
                    .max_encoding_message_size(MAX_ANSWER)
            };
        }
        let all = || plane.clone();
        let router = Grpc::builder()
            .timeout(MAX_CALL)
            .concurrency_limit_per_connection(MAX_AT_WORK)
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(MAX_HEADERS)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
            .add_service(health_service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .add_service(service!(
                registry_server::RegistryServer,
                RegistryService(all())
            ))
            .add_service(service!(
                rollouts_server::RolloutsServer,
                RolloutsService(all())
            ))
            .add_service(service!(
                admission_server::AdmissionServer,
                AdmissionService(all())
            ))
            .add_service(service!(
                placements_server::PlacementsServer,
                PlacementsService(all())
            ))
            .add_service(service!(fleet_server::FleetServer, FleetService(all())))
            .add_service(service!(
                sessions_server::SessionsServer,
                SessionsService(all())
            ))
            .add_service(service!(
                session_state_server::SessionStateServer,
                StateService(all())
            ))
            .add_service(service!(
                snapshots_server::SnapshotsServer,
                SnapshotsService(all())
            ))
            .add_service(service!(audit_server::AuditServer, AuditService(all())))
            .add_service(service!(keys_server::KeysServer, KeysService(all())))
            .add_service(service!(backup_server::BackupServer, BackupService(all())));
        let stop = accepting.clone();
        let serving = tokio::spawn(router.serve_with_incoming_shutdown(
            ReceiverStream::new(incoming),
            async move {
                stop.cancelled().await;
            },
        ));
        Ok(Self {
            plane,
            addresses,
            links,
            health,
            accepting,
            serving,
        })
    }

    /// Where it listens, in the order in which that was asked for.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Connects within the process, as somebody who needs not prove it.
    pub fn dial(&self, principal: Principal) -> Dial {
        let links = self.links.clone();
        Arc::new(move || {
            let (ours, theirs) = tokio::io::duplex(MEMORY_LINK);
            let incoming = Incoming {
                link: Link::Memory(ours),
                peer: Peer {
                    address: None,
                    identity: Ok(principal.clone()),
                },
            };
            let taken = links.try_send(Ok(incoming));
            taken.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            Ok(theirs)
        })
    }

    /// Says that it goes, ends what is watched, lets calls end within `grace`, and closes the control
    /// plane.
    pub async fn stop(mut self, grace: Duration) {
        say_health(&self.health, ServingStatus::NotServing).await;
        self.plane.shared.leaving.cancel();
        self.accepting.cancel();
        if tokio::time::timeout(grace, &mut self.serving)
            .await
            .is_err()
        {
            let grace_ms = millis(grace);
            tracing::warn!(grace_ms, "calls were cut off: they took too long");
            self.serving.abort();
        }
        self.plane.close().await;
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// Whose health can be asked for: the whole's, the package's, each service's.
const HEALTHS: [&str; 13] = [
    "",
    "rspp.v1",
    wire::admission_server::SERVICE_NAME,
    wire::audit_server::SERVICE_NAME,
    wire::backup_server::SERVICE_NAME,
    wire::fleet_server::SERVICE_NAME,
    wire::keys_server::SERVICE_NAME,
    wire::placements_server::SERVICE_NAME,
    wire::registry_server::SERVICE_NAME,
    wire::rollouts_server::SERVICE_NAME,
    wire::session_state_server::SERVICE_NAME,
    wire::sessions_server::SERVICE_NAME,
    wire::snapshots_server::SERVICE_NAME,
];

async fn say_health(health: &HealthReporter, status: ServingStatus) {
    for service in HEALTHS {
        health.set_service_status(service, status).await;
    }
}

/// Ready as long as the store answers.
async fn follow_health(plane: Plane, health: HealthReporter) {
    let mut was = true;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let is = plane.view_age().is_ok();
        if is != was {
            let status = if is {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            say_health(&health, status).await;
            was = is;
        }
    }
}

/// One socket's way in.
struct Door {
    tls: Option<Arc<Reloading<ServerConfig>>>,
    domain: String,
    links: mpsc::Sender<io::Result<Incoming>>,
    handshakes: Arc<Semaphore>,
}

impl Door {
    async fn accept(self, listener: TcpListener) {
        let door = Arc::new(self);
        loop {
            let permit = Arc::clone(&door.handshakes).acquire_owned().await;
            let permit = permit.expect("nobody closes it");
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Too many open files, or a caller who left again: neither is helped by haste.
                    tracing::warn!(%error, "a connection was not taken");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let door = Arc::clone(&door);
            tokio::spawn(async move {
                let shown = tokio::time::timeout(HANDSHAKE, door.show(stream, address)).await;
                drop(permit);
                match shown {
                    Ok(Ok(incoming)) => {
                        // Nobody takes it: the server is going down.
                        let _ = door.links.send(Ok(incoming)).await;
                    }
                    Ok(Err(error)) => tracing::info!(%address, %error, "a caller was not let in"),
                    Err(_) => {
                        tracing::info!(%address, "a caller took too long to say who they are");
                    }
                }
            });
        }
    }

    async fn show(&self, stream: TcpStream, address: SocketAddr) -> io::Result<Incoming> {
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(Incoming {
                link: Link::Plain(stream),
                peer: Peer {
                    address: Some(address),
                    identity: Err(None),
                },
            });
        };
        let stream = TlsAcceptor::from(tls.current()).accept(stream).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let certificate = certificates.and_then(|chain| chain.first());
        // Without a name it may still show a token.
        let identity = match certificate {
            None => Err(None),
            Some(certificate) => Identity::of_certificate(certificate, &self.domain)
                .inspect_err(|error| tracing::info!(%address, %error, "a nameless caller"))
                .map(|identity| identity.0)
                .map_err(Some),
        };
        Ok(Incoming {
            link: Link::Tls(Box::new(stream.into())),
            peer: Peer {
                address: Some(address),
                identity,
            },
        })
    }
}

/// A link, and who is at its other end.
struct Incoming {
    link: Link,
    peer: Peer,
}

impl Connected for Incoming {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_read(cx, buf)
    }
}

impl AsyncWrite for Incoming {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.link).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_shutdown(cx)
    }
}
