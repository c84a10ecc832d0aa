//! Talks to whichever member answers.

use std::{
    error::Error as _,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rspp_controlplane::store::MAX_PAGE_BYTES;
use tokio::{sync::Mutex, time::Instant};
use tonic::{
    Code, ConnectError, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::{
    config::{EtcdConfig, EtcdConfigError, EtcdLogin},
    pb,
};

/// Largest answer: a page, and what is around its values.
pub(super) const MAX_ANSWER_BYTES: usize = MAX_PAGE_BYTES + 1024 * 1024;
/// First pause before the next member is asked; doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// What became of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It reached nobody who could do it.
    NotDone,
    /// It was looked at and refused; asking elsewhere changes nothing.
    Refused,
    /// It may have been done, now or later.
    Unknown,
}

/// Reads a failure. Only what certainly happened before the request was proposed counts as not done:
/// a member that stops, or loses its leader, says so of requests that are on their way as well.
pub(super) fn fate(status: &Status) -> Fate {
    let message = status.message();
    match status.code() {
        Code::Unavailable if never_connected(status) || message.contains("no leader") => {
            Fate::NotDone
        }
        Code::ResourceExhausted if message.contains("too many requests") => Fate::NotDone,
        // The connection was closed, not the request refused.
        Code::ResourceExhausted if message.contains("h2 protocol error") => Fate::Unknown,
        // Asked again with a new token.
        Code::Unauthenticated => Fate::NotDone,
        Code::InvalidArgument if message.contains("revision of auth store is old") => Fate::NotDone,
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Aborted
        | Code::DataLoss => Fate::Unknown,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented => Fate::Refused,
    }
}

fn never_connected(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// All members, and the one that answered last.
#[derive(Clone, Debug)]
pub(super) struct Client {
    members: Arc<[Channel]>,
    current: Arc<AtomicUsize>,
    timeout: Duration,
    give_up: Duration,
    login: Option<Arc<Login>>,
}

/// A user, and the token that stands for its password.
#[derive(Debug)]
struct Login {
    user: EtcdLogin,
    /// Held while the token is asked for, so that only one asks.
    token: Mutex<Option<Token>>,
}

type Token = MetadataValue<Ascii>;

/// One member, with what every request to it carries.
#[derive(Clone, Debug)]
pub(super) struct Member {
    channel: Channel,
    head: Head,
}

/// What every request carries.
#[derive(Clone, Debug)]
pub(super) struct Head {
    token: Option<Token>,
    timeout: Option<Duration>,
}

impl Interceptor for Head {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        // A member that has lost the others says so, rather than to stay silent.
        let yes = MetadataValue::from_static("true");
        request.metadata_mut().insert("hasleader", yes);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        Ok(request)
    }
}

type Service = InterceptedService<Channel, Head>;

impl Member {
    pub(super) fn kv(self) -> pb::kv_client::KvClient<Service> {
        pb::kv_client::KvClient::with_interceptor(self.channel, self.head)
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(super) fn lease(self) -> pb::lease_client::LeaseClient<Service> {
        pb::lease_client::LeaseClient::with_interceptor(self.channel, self.head)
    }

    /// For a stream that outlasts every deadline.
    pub(super) fn watch(mut self) -> pb::watch_client::WatchClient<Service> {
        self.head.timeout = None;
        pb::watch_client::WatchClient::with_interceptor(self.channel, self.head)
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    fn auth(self) -> pb::auth_client::AuthClient<Service> {
        pb::auth_client::AuthClient::with_interceptor(self.channel, self.head)
    }
}

impl Client {
    pub(super) fn new(config: &EtcdConfig) -> Result<Self, EtcdConfigError> {
        config.validate()?;
        let members: Result<Vec<_>, _> = config
            .endpoints
            .iter()
            .map(|endpoint| connect(endpoint, config))
            .collect();
        let login = config.login.clone().map(|user| {
            Arc::new(Login {
                user,
                token: Mutex::new(None),
            })
        });
        Ok(Self {
            members: members?.into(),
            // Replicas begin with different members, so that not all load is one's.
            current: Arc::new(AtomicUsize::new(rand::random_range(
                0..config.endpoints.len(),
            ))),
            timeout: Duration::from_millis(config.timeout_ms),
            give_up: Duration::from_millis(config.give_up_ms),
            login,
        })
    }

    /// Asks the member that answered last, once. If it did not answer, the next one is asked next time.
    pub(super) async fn attempt<T, F>(&self, send: impl FnOnce(Member) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let at = self.current.load(Ordering::Relaxed);
        let channel = self.members[at % self.members.len()].clone();
        let asked = async {
            let token = self.token(&channel).await?;
            let head = Head {
                token,
                timeout: Some(self.timeout),
            };
            send(Member { channel, head }).await
        };
        let answer = tokio::time::timeout(self.timeout, asked).await;
        let status = match answer {
            Ok(Ok(response)) => return Ok(response.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("the member did not answer in time"),
        };
        match fate(&status) {
            Fate::Refused => {}
            Fate::NotDone | Fate::Unknown => {
                self.leave(at);
                self.forget_token(&status).await;
            }
        }
        Err(status)
    }

    /// Asks until a member answers or refuses. For what does no harm if it is done twice.
    pub(super) async fn call<T, F>(&self, send: impl Fn(Member) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut patience = self.patience();
        loop {
            let status = match self.attempt(&send).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            match fate(&status) {
                Fate::Refused => return Err(status),
                Fate::NotDone | Fate::Unknown => {
                    if !patience.pause().await {
                        return Err(status);
                    }
                }
            }
        }
    }

    pub(super) fn patience(&self) -> Patience {
        Patience {
            deadline: Instant::now() + self.give_up,
            pause: FIRST_PAUSE,
        }
    }

    /// Turns away from the member that is asked now.
    pub(super) fn leave_current(&self) {
        self.leave(self.current.load(Ordering::Relaxed));
    }

    /// Only one of those who failed together moves on.
    fn leave(&self, at: usize) {
        let (next, order) = (at.wrapping_add(1), Ordering::Relaxed);
        let _ = self.current.compare_exchange(at, next, order, order);
    }

    async fn token(&self, channel: &Channel) -> Result<Option<Token>, Status> {
        let Some(login) = &self.login else {
            return Ok(None);
        };
        let mut token = login.token.lock().await;
        if token.is_none() {
            let head = Head {
                token: None,
                timeout: Some(self.timeout),
            };
            let member = Member {
                channel: channel.clone(),
                head,
            };
            let request = pb::AuthenticateRequest {
                name: login.user.user.clone(),
                password: login.user.password.clone(),
            };
            let given = member.auth().authenticate(request).await?.into_inner();
            let parsed: Result<Token, _> = given.token.parse();
            let mut parsed = parsed.map_err(|_| Status::internal("the token is no text"))?;
            // Printed by nobody, and kept out of tables that compress headers.
            parsed.set_sensitive(true);
            *token = Some(parsed);
        }
        Ok(token.clone())
    }

    /// Tokens end, and with them nothing else: the next request asks for a new one.
    async fn forget_token(&self, status: &Status) {
        if let Some(login) = &self.login
            && matches!(status.code(), Code::Unauthenticated | Code::InvalidArgument)
        {
            *login.token.lock().await = None;
        }
    }
}

fn connect(address: &str, config: &EtcdConfig) -> Result<Channel, EtcdConfigError> {
    let timeout = Duration::from_millis(config.timeout_ms);
    let endpoint = Endpoint::from_shared(address.to_owned());
    let mut endpoint = endpoint
        .map_err(|error| EtcdConfigError::Endpoint {
            endpoint: address.to_owned(),
            what: error.to_string(),
        })?
        .connect_timeout(timeout)
        .tcp_nodelay(true)
        // A peer that vanished without a word is noticed by whoever waits for its changes. Never while
        // idle: etcd counts that as abuse and closes the connection.
        .http2_keep_alive_interval(Duration::from_millis(config.keepalive_ms))
        .keep_alive_timeout(timeout)
        .keep_alive_while_idle(false);
    if let Some(tls) = &config.tls {
        let mut with = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca));
        if let Some(identity) = &tls.identity {
            with = with.identity(Identity::from_pem(&identity.certificate, &identity.key));
        }
        if let Some(domain) = &tls.domain {
            with = with.domain_name(domain);
        }
        let endpoint_with = endpoint.tls_config(with);
        endpoint = endpoint_with.map_err(|error| EtcdConfigError::Tls(chain(&error)))?;
    }
    Ok(endpoint.connect_lazy())
}

/// An error with its causes: tonic's alone say only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Waits between attempts, up to a deadline.
pub(super) struct Patience {
    deadline: Instant,
    pause: Duration,
}

impl Patience {
    /// Waits before another attempt; `false`, at once, if there is no time left for one.
    pub(super) async fn pause(&mut self) -> bool {
        if Instant::now() + self.pause >= self.deadline {
            return false;
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_surely_not_done_is_said_not_to_be() {
        let of = |code, message: &str| fate(&Status::new(code, message));
        assert_eq!(
            of(Code::Unavailable, "etcdserver: no leader"),
            Fate::NotDone
        );
        assert_eq!(
            of(Code::ResourceExhausted, "etcdserver: too many requests"),
            Fate::NotDone
        );
        for unknown in [
            "etcdserver: request timed out",
            "etcdserver: leader changed",
            "etcdserver: server stopped",
            "connection reset",
        ] {
            assert_eq!(of(Code::Unavailable, unknown), Fate::Unknown);
        }
        assert_eq!(of(Code::DeadlineExceeded, ""), Fate::Unknown);
        assert_eq!(of(Code::Unknown, "h2 protocol error"), Fate::Unknown);
        assert_eq!(of(Code::InvalidArgument, "duplicate key"), Fate::Refused);
        assert_eq!(
            of(Code::ResourceExhausted, "database space exceeded"),
            Fate::Refused
        );
    }

    #[tokio::test]
    async fn nobody_there_means_nothing_done() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let client = Client::new(&EtcdConfig::at([format!("http://{address}")])).unwrap();
        let asked = client
            .attempt(|member| async move { member.kv().txn(pb::TxnRequest::default()).await })
            .await;
        assert_eq!(fate(&asked.unwrap_err()), Fate::NotDone);
    }
}
