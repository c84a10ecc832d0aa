//! The server: lets clients in, keeps their calls through dropped sockets, and stops in order.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::{RawQuery, State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    http::{HeaderMap, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
    routing::any,
};
use futures::StreamExt;
use rspp_proto::{SessionId, WallClock};
use rspp_transport_api::{
    Admitted, Elsewhere, Farewell, Guard, Opened, Refusal, Sessions, TransportKind, Unauthorized,
    UsedTokens, is_same,
};
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpSocket},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use crate::{
    call::{Attached, Beginning, Call},
    config::Config,
    handshake::{self, PATH, Refused},
    protocol::{ErrorCode, Format, Hello, Resume, Trouble},
    socket,
};

/// What the kernel keeps of one socket's output: enough for the moment, too little to go stale.
const SEND_BUFFER: u32 = 32 << 10;

/// How long clients may take to hear that it is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves conversations over WebSockets.
pub struct Server {
    pub(crate) config: Config,
    sessions: Arc<dyn Sessions>,
    calls: Mutex<HashMap<SessionId, Arc<Call>>>,
    used: Mutex<UsedTokens>,
    sockets: AtomicUsize,
    draining: AtomicBool,
    tasks: TaskTracker,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    opened: AtomicU64,
    resumed: AtomicU64,
    refused: AtomicU64,
    errors: AtomicU64,
}

/// What has come to a server so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Calls that are held.
    pub calls: usize,
    /// Sockets that are open.
    pub sockets: usize,
    /// Sessions that were opened.
    pub opened: u64,
    /// Times that a client came back.
    pub resumed: u64,
    /// Handshakes and `hello`s that were refused.
    pub refused: u64,
    /// Messages that were wrong.
    pub errors: u64,
}

/// Who stands at the door.
pub(crate) enum Entrance {
    /// Somebody who may open a session.
    Admitted(Admitted),
    /// Somebody who knows the key of this call.
    Returning(Arc<Call>),
    /// Somebody who is expected elsewhere. Let in to be told so, for a page sees nothing of a handshake
    /// that is refused.
    Misled(Elsewhere),
}

/// One open socket; counted as long as it lives.
pub(crate) struct Seat(Arc<Server>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.sockets.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    /// A server whose sessions are run by `sessions`.
    pub fn new(sessions: Arc<dyn Sessions>, config: Config) -> Arc<Self> {
        Arc::new(Self {
            config,
            sessions,
            calls: Mutex::default(),
            used: Mutex::default(),
            sockets: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            counts: Counts::default(),
        })
    }

    /// The route that clients connect to, [`PATH`].
    pub fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route(PATH, any(talk))
            .with_state(Arc::clone(self))
    }

    /// What has come so far.
    pub fn tally(&self) -> Tally {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Tally {
            calls: self.calls().len(),
            sockets: self.sockets.load(Ordering::Relaxed),
            opened: count(&self.counts.opened),
            resumed: count(&self.counts.resumed),
            refused: count(&self.counts.refused),
            errors: count(&self.counts.errors),
        }
    }

    /// Whether somebody may look at what stands beside the calls: whoever could begin one. Its answer
    /// otherwise.
    pub fn check(&self, headers: &HeaderMap, query: Option<&str>) -> Result<(), Box<Response>> {
        let looked_at =
            handshake::asked(headers, query).and_then(|asked| self.admit(&asked, headers));
        match looked_at {
            Ok(Entrance::Admitted(_) | Entrance::Returning(_)) => Ok(()),
            Ok(Entrance::Misled(to)) => Err(Box::new(
                Refused::from(Unauthorized::Elsewhere(to)).into_response(),
            )),
            Err(refused) => Err(Box::new(refused.into_response())),
        }
    }

    /// Takes nobody in any more, lets what is being said be finished, and ends all calls; those that are
    /// not over after `grace` are cut. `false` if some were.
    pub async fn drain(&self, grace: Duration) -> bool {
        self.draining.store(true, Ordering::Relaxed);
        let calls: Vec<Arc<Call>> = self.calls().values().cloned().collect();
        for call in &calls {
            call.drain();
        }
        self.tasks.close();
        let in_time = tokio::time::timeout(grace, self.tasks.wait()).await.is_ok();
        let left: Vec<Arc<Call>> = self.calls().values().cloned().collect();
        for call in &left {
            call.finish(Farewell::because("the server stopped"));
        }
        // Each is told so before its socket closes.
        let began = Instant::now();
        while self.sockets.load(Ordering::Relaxed) > 0 && began.elapsed() < LAST_WORDS {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        in_time
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Call>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn used(&self) -> MutexGuard<'_, UsedTokens> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count_error(&self) {
        self.counts.errors.fetch_add(1, Ordering::Relaxed);
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A socket's place, if there is one.
    fn seat(self: &Arc<Self>) -> Option<Seat> {
        let before = self.sockets.fetch_add(1, Ordering::Relaxed);
        let seat = Seat(Arc::clone(self));
        (before < self.config.limits.sockets).then_some(seat)
    }

    /// Looks at a client before its socket opens.
    fn admit(&self, asked: &handshake::Asked, headers: &HeaderMap) -> Result<Entrance, Refused> {
        let at_home = matches!(self.config.guard, Guard::Local { password: None, .. });
        handshake::check_origin(headers, &self.config.origins, at_home)?;
        if let Some(key) = &asked.resume {
            let calls = self.calls();
            let call = calls.values().find(|call| is_same(&call.key, key));
            return match call {
                Some(call) => Ok(Entrance::Returning(Arc::clone(call))),
                None => Err(Refused::new(
                    StatusCode::UNAUTHORIZED,
                    "cannot_resume",
                    "no session has this key",
                )),
            };
        }
        if self.is_draining() {
            return Err(Refused::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "draining",
                "the server is about to stop",
            ));
        }
        let token = asked.token.as_deref();
        let guard = &self.config.guard;
        match guard.admit(token, TransportKind::Websocket, now()) {
            Ok(admitted) => Ok(Entrance::Admitted(admitted)),
            Err(Unauthorized::Elsewhere(to)) => Ok(Entrance::Misled(to)),
            Err(unauthorized) => Err(unauthorized.into()),
        }
    }

    /// A client has said `hello`: opens its session, or brings it back.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        entrance: Entrance,
        hello: &Hello,
    ) -> Result<(Arc<Call>, Attached), Trouble> {
        let entered = match (&hello.resume, entrance) {
            (_, Entrance::Misled(to)) => Err(elsewhere(to)),
            (Some(resume), Entrance::Returning(call)) => back(call, resume),
            (Some(resume), Entrance::Admitted(_)) => {
                let call = self.calls().get(&resume.session).cloned();
                match call {
                    Some(call) => back(call, resume),
                    None => Err(trouble(
                        ErrorCode::CannotResume,
                        format!("there is no session `{}`", resume.session),
                    )),
                }
            }
            (None, Entrance::Returning(call)) => Err(trouble(
                ErrorCode::CannotResume,
                format!("`hello` has to resume `{}`", call.id),
            )),
            (None, Entrance::Admitted(admitted)) => self.open(admitted, hello).await,
        };
        let counted = match (&entered, &hello.resume) {
            (Ok(_), Some(_)) => &self.counts.resumed,
            (Ok(_), None) => &self.counts.opened,
            (Err(_), _) => &self.counts.refused,
        };
        counted.fetch_add(1, Ordering::Relaxed);
        entered
    }

    async fn open(
        self: &Arc<Self>,
        admitted: Admitted,
        hello: &Hello,
    ) -> Result<(Arc<Call>, Attached), Trouble> {
        let input = (hello.input, rate("input", hello.input)?);
        let output = (hello.output, rate("output", hello.output)?);
        if self.is_draining() {
            return Err(trouble(ErrorCode::Busy, "the server is about to stop"));
        }
        let id = match &admitted {
            Admitted::Granted(grant) => {
                let claimed = self.used().claim(grant, now());
                claimed.map_err(|error| trouble(ErrorCode::Unauthorized, error.to_string()))?;
                grant.session.clone()
            }
            Admitted::Local(_) => {
                let id = format!("ws-{:016x}", rand::random::<u64>());
                SessionId::new(id).expect("not blank, and short")
            }
        };
        let (call, transport) = Call::begin(Beginning {
            id: id.clone(),
            key: format!("{:032x}", rand::random::<u128>()),
            input,
            output,
            events: hello.events,
            lead: self.config.limits.lead,
        });
        let attached = call.attach(None).expect("a call that begins is not over");
        // Whoever drains waits for those that are on their way in.
        let _on_its_way = self.tasks.token();
        {
            let mut calls = self.calls();
            if calls.contains_key(&id) {
                if let Admitted::Granted(grant) = &admitted {
                    self.used().release(grant);
                }
                return Err(trouble(
                    ErrorCode::NotOpened,
                    format!("`{id}` is there already; come back to it with `resume`"),
                ));
            }
            calls.insert(id.clone(), Arc::clone(&call));
        }
        match self
            .sessions
            .open(admitted.clone(), id.clone(), transport)
            .await
        {
            Ok(opened) => {
                self.watch(Arc::clone(&call), opened);
                Ok((call, attached))
            }
            Err(refusal) => {
                self.calls().remove(&id);
                if let Admitted::Granted(grant) = &admitted {
                    self.used().release(grant);
                }
                Err(match refusal {
                    Refusal::Busy(message) => trouble(ErrorCode::Busy, message),
                    Refusal::NotHere(message) | Refusal::Failed(message) => {
                        trouble(ErrorCode::NotOpened, message)
                    }
                    Refusal::Elsewhere(to) => elsewhere(to),
                })
            }
        }
    }

    /// Follows a session to its end.
    fn watch(self: &Arc<Self>, call: Arc<Call>, opened: Opened) {
        let server = Arc::clone(self);
        let Opened {
            epoch: _,
            mut ended,
            mut news,
            drain,
        } = opened;
        call.runs(drain);
        if self.is_draining() {
            // It began while nobody looked: whoever drains may not have found it.
            call.drain();
        }
        self.tasks.spawn(async move {
            let mut is_told = true;
            let farewell = loop {
                tokio::select! {
                    biased;
                    told = news.next(), if is_told => match told {
                        Some(told) => call.tell(told),
                        None => is_told = false,
                    },
                    farewell = &mut ended => break farewell,
                }
            };
            call.finish(farewell);
            server.calls().remove(&call.id);
        });
    }
}

/// A client comes back to its call.
fn back(call: Arc<Call>, resume: &Resume) -> Result<(Arc<Call>, Attached), Trouble> {
    if call.id != resume.session || !is_same(&call.key, &resume.key) {
        return Err(trouble(
            ErrorCode::CannotResume,
            "the key does not belong to the session",
        ));
    }
    let attached = call.attach(Some(resume));
    match attached {
        Ok(attached) => Ok((call, attached)),
        Err(impossible) => Err(trouble(ErrorCode::CannotResume, impossible.as_str())),
    }
}

fn rate(which: &str, format: Format) -> Result<rspp_proto::SampleRate, Trouble> {
    format.checked().ok_or_else(|| {
        trouble(
            ErrorCode::BadFormat,
            format!(
                "{which}.rate: {} Hz is not served; rates from 8000 to 48000 Hz are",
                format.rate
            ),
        )
    })
}

pub(crate) fn trouble(code: ErrorCode, message: impl Into<String>) -> Trouble {
    Trouble {
        code,
        message: message.into(),
        fatal: true,
        elsewhere: None,
    }
}

fn elsewhere(to: Elsewhere) -> Trouble {
    let message = Refusal::Elsewhere(to.clone()).to_string();
    Trouble {
        elsewhere: Some(to),
        ..trouble(ErrorCode::Elsewhere, message)
    }
}

fn now() -> WallClock {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    WallClock(since.map_or(0, |since| since.as_millis() as u64))
}

async fn talk(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let looked_at = handshake::asked(&headers, query.as_deref())
        .and_then(|asked| Ok((asked.encoding, server.admit(&asked, &headers)?)))
        .and_then(|(encoding, entrance)| {
            let seat = server.seat().ok_or_else(|| {
                let message = "too many sockets are open; try again in a moment";
                Refused::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
            })?;
            Ok((encoding, entrance, seat))
        });
    let (encoding, entrance, seat) = match looked_at {
        Ok(looked_at) => looked_at,
        Err(refused) => {
            server.counts.refused.fetch_add(1, Ordering::Relaxed);
            return refused.into_response();
        }
    };
    let mut upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => return rejection.into_response(),
    };
    if headers.contains_key(axum::http::header::SEC_WEBSOCKET_PROTOCOL) {
        upgrade.set_selected_protocol(HeaderValue::from_static(encoding.as_str()));
    }
    let most = server.config.limits.message_bytes;
    upgrade
        .max_message_size(most)
        .max_frame_size(most)
        .on_upgrade(move |socket| async move {
            socket::serve(server, socket, encoding, entrance).await;
            drop(seat);
        })
}

/// Listens at an address, with sockets that hold little back.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    // What waits in the kernel cannot be taken back when the user speaks over it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(1_024)
}
