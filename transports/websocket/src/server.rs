//! The server: lets clients in, keeps their calls through dropped sockets, and stops in order.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    extract::{RawQuery, State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    http::{HeaderMap, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
    routing::any,
};
use futures::StreamExt;
use rspp_proto::{SessionId, TraceParent, WallClock};
use rspp_transport_api::{
    Admitted, Elsewhere, Farewell, Grant, Guard, News, Opened, Refusal, Sessions, Transport,
    TransportKind, Unauthorized, UsedTokens, Wishes, is_same,
};
use serde::Serialize;
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpSocket},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    call::{Attached, Beginning, Call},
    codec::{CodecCounts, CodecTally},
    config::Config,
    crossing::Crossing,
    handshake::{self, PATH, Refused},
    protocol::{ErrorCode, Format, Hello, Resume, Trouble},
    realtime, recording, socket,
};

/// What the kernel keeps of one socket's output: enough for the moment, too little to go stale.
const SEND_BUFFER: u32 = 32 << 10;

/// How long clients may take to hear that it is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves conversations over WebSockets.
pub struct Server {
    pub(crate) config: Config,
    sessions: Arc<dyn Sessions>,
    held: Mutex<HashMap<SessionId, Held>>,
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
    codec: CodecCounts,
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
    /// What coding audio has saved and cost.
    pub codec: CodecTally,
}

/// A conversation that a server holds, in the words of its protocol.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    /// In our own.
    Talk(Arc<Call>),
    /// In those of the OpenAI Realtime protocol.
    Realtime(Arc<realtime::Line>),
}

impl Held {
    fn as_call(&self) -> Option<&Arc<Call>> {
        match self {
            Self::Talk(call) => Some(call),
            Self::Realtime(_) => None,
        }
    }

    /// What crosses its wire, and what says that it is over.
    fn crossing(&self) -> Option<(Arc<Crossing>, CancellationToken)> {
        match self {
            Self::Talk(call) => Some(call.crossing()),
            Self::Realtime(line) => line.crossing(),
        }
    }

    fn tell(&self, news: News) {
        match self {
            Self::Talk(call) => call.tell(news),
            Self::Realtime(line) => line.tell(&news),
        }
    }

    fn runs(&self, drain: Box<dyn Fn() + Send + Sync>) {
        match self {
            Self::Talk(call) => call.runs(drain),
            Self::Realtime(line) => line.runs(drain),
        }
    }

    fn drain(&self) {
        match self {
            Self::Talk(call) => call.drain(),
            Self::Realtime(line) => line.drain(),
        }
    }

    fn finish(&self, farewell: Farewell) {
        match self {
            Self::Talk(call) => call.finish(farewell),
            // Its clients know no other place than that which they connected to.
            Self::Realtime(line) => line.finish(&farewell.reason),
        }
    }
}

/// Why a conversation did not begin.
#[derive(Debug, Error)]
pub(crate) enum NotBegun {
    #[error("{0}")]
    Unauthorized(Unauthorized),
    #[error("the server is about to stop")]
    Stopping,
    #[error("`{0}` is there already")]
    There(SessionId),
    #[error("{0}")]
    Refused(Refusal),
}

/// Who stands at the door.
pub(crate) enum Entrance {
    /// Somebody who may open a session, and where in a trace.
    Admitted(Admitted, Option<TraceParent>),
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
            held: Mutex::default(),
            used: Mutex::default(),
            sockets: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            counts: Counts::default(),
        })
    }

    /// The routes that clients connect to: [`PATH`], and [`realtime::PATH`].
    pub fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route(PATH, any(talk))
            .with_state(Arc::clone(self))
            .merge(realtime::router(self))
    }

    /// What has come so far.
    pub fn tally(&self) -> Tally {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Tally {
            calls: self.held().len(),
            sockets: self.sockets.load(Ordering::Relaxed),
            opened: count(&self.counts.opened),
            resumed: count(&self.counts.resumed),
            refused: count(&self.counts.refused),
            errors: count(&self.counts.errors),
            codec: self.counts.codec.tally(),
        }
    }

    /// Whether somebody may look at what stands beside the calls: whoever could begin one. Its answer
    /// otherwise.
    pub fn check(&self, headers: &HeaderMap, query: Option<&str>) -> Result<(), Box<Response>> {
        let looked_at =
            handshake::asked(headers, query).and_then(|asked| self.admit(&asked, headers));
        match looked_at {
            Ok(Entrance::Admitted(..) | Entrance::Returning(_)) => Ok(()),
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
        let all = || self.held().values().cloned().collect::<Vec<Held>>();
        for held in all() {
            held.drain();
        }
        self.tasks.close();
        let in_time = tokio::time::timeout(grace, self.tasks.wait()).await.is_ok();
        for held in all() {
            held.finish(Farewell::because("the server stopped"));
        }
        // Each is told so before its socket closes.
        let began = Instant::now();
        while self.sockets.load(Ordering::Relaxed) > 0 && began.elapsed() < LAST_WORDS {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        in_time
    }

    fn held(&self) -> MutexGuard<'_, HashMap<SessionId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn used(&self) -> MutexGuard<'_, UsedTokens> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count_error(&self) {
        self.counts.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_opened(&self) {
        self.counts.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_refused(&self) {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn codec(&self) -> &CodecCounts {
        &self.counts.codec
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A socket's place, if there is one.
    pub(crate) fn seat(self: &Arc<Self>) -> Result<Seat, Refused> {
        let before = self.sockets.fetch_add(1, Ordering::Relaxed);
        let seat = Seat(Arc::clone(self));
        if before < self.config.limits.sockets {
            Ok(seat)
        } else {
            let message = "too many sockets are open; try again in a moment";
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Err(Refused::new(status, "busy", message))
        }
    }

    /// Looks at a client before its socket opens.
    fn admit(&self, asked: &handshake::Asked, headers: &HeaderMap) -> Result<Entrance, Refused> {
        if let Some(key) = &asked.resume {
            self.check_origin(headers)?;
            let held = self.held();
            let mut calls = held.values().filter_map(Held::as_call);
            return match calls.find(|call| is_same(&call.key, key)) {
                Some(call) => Ok(Entrance::Returning(Arc::clone(call))),
                None => Err(Refused::new(
                    StatusCode::UNAUTHORIZED,
                    "cannot_resume",
                    "no session has this key",
                )),
            };
        }
        match self.admit_new(asked.token.as_deref(), headers)? {
            Ok(admitted) => Ok(Entrance::Admitted(admitted, asked.caller)),
            Err(Unauthorized::Elsewhere(to)) => Ok(Entrance::Misled(to)),
            Err(unauthorized) => Err(unauthorized.into()),
        }
    }

    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let at_home = matches!(self.config.guard, Guard::Local { password: None, .. });
        handshake::check_origin(headers, &self.config.origins, at_home)
    }

    /// Before somebody is looked at who may have come to the wrong place.
    pub(crate) async fn freshen(&self, token: Option<&str>) {
        let guard = &self.config.guard;
        guard.freshen(token, TransportKind::Websocket, now()).await;
    }

    /// Looks at a client that comes for the first time.
    pub(crate) fn admit_new(
        &self,
        token: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Result<Admitted, Unauthorized>, Refused> {
        self.check_origin(headers)?;
        if self.is_draining() {
            return Err(Refused::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "draining",
                "the server is about to stop",
            ));
        }
        let guard = &self.config.guard;
        Ok(guard.admit(token, TransportKind::Websocket, now()))
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
            (Some(resume), Entrance::Admitted(..)) => {
                let call = self
                    .held()
                    .get(&resume.session)
                    .and_then(Held::as_call)
                    .cloned();
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
            (None, Entrance::Admitted(admitted, caller)) => {
                self.open(admitted, caller, hello).await
            }
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
        caller: Option<TraceParent>,
        hello: &Hello,
    ) -> Result<(Arc<Call>, Attached), Trouble> {
        let input = (hello.input, rate("input", hello.input)?);
        let output = (hello.output, rate("output", hello.output)?);
        let tenant = match &admitted {
            Admitted::Granted(grant) => {
                let call = self.held_for(grant);
                if let Some(call) = call {
                    return self.take_over(grant, call, hello);
                }
                Some(grant.tenant.clone())
            }
            Admitted::Local(_) => None,
        };
        let mut entered = None;
        let begun = self.begin(admitted, Wishes::default(), |id| {
            let (call, transport) = Call::begin(Beginning {
                id,
                tenant,
                key: format!("{:032x}", rand::random::<u128>()),
                input,
                output,
                events: hello.events,
                lead: self.config.limits.lead,
                records: self.config.recordings.is_some(),
                caller,
            });
            let attached = call.attach(None).expect("a call that begins is not over");
            entered = Some((Arc::clone(&call), attached));
            (Held::Talk(call), transport)
        });
        begun.await.map_err(|refused| match refused {
            NotBegun::Unauthorized(why) => trouble(ErrorCode::Unauthorized, why.to_string()),
            NotBegun::Stopping => trouble(ErrorCode::Busy, "the server is about to stop"),
            NotBegun::There(id) => trouble(
                ErrorCode::NotOpened,
                format!("`{id}` is there already; come back to it with `resume`"),
            ),
            NotBegun::Refused(Refusal::Busy(message)) => trouble(ErrorCode::Busy, message),
            NotBegun::Refused(Refusal::NotHere(message) | Refusal::Failed(message)) => {
                trouble(ErrorCode::NotOpened, message)
            }
            NotBegun::Refused(Refusal::Elsewhere(to)) => elsewhere(to),
        })?;
        Ok(entered.expect("what has begun was made"))
    }

    /// The call of the session that a token is for, if it is here.
    fn held_for(&self, grant: &Grant) -> Option<Arc<Call>> {
        let held = self.held();
        let call = held.get(&grant.session)?.as_call()?;
        (call.tenant.as_ref() == Some(&grant.tenant)).then(|| Arc::clone(call))
    }

    /// A client that lost the session's key, but was given a new token for it, takes its call over: whoever may
    /// open a session may go on with it.
    fn take_over(
        &self,
        grant: &Grant,
        call: Arc<Call>,
        hello: &Hello,
    ) -> Result<(Arc<Call>, Attached), Trouble> {
        if (hello.input, hello.output) != (call.input.0, call.output.0) {
            let says = "the session is here already, with other formats; say `hello` with the ones that it has";
            return Err(trouble(ErrorCode::BadFormat, says));
        }
        let claimed = self.used().claim(grant, now());
        claimed.map_err(|why| trouble(ErrorCode::Unauthorized, why.to_string()))?;
        match call.attach(None) {
            Ok(attached) => Ok((call, attached)),
            Err(impossible) => {
                self.used().release(grant);
                Err(trouble(ErrorCode::NotOpened, impossible.as_str()))
            }
        }
    }

    /// Begins a conversation for somebody who was admitted: `make` makes it, and the runtime's side of it.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        admitted: Admitted,
        wishes: Wishes,
        make: impl FnOnce(SessionId) -> (Held, Transport),
    ) -> Result<(), NotBegun> {
        if self.is_draining() {
            return Err(NotBegun::Stopping);
        }
        let id = match &admitted {
            Admitted::Granted(grant) => {
                let claimed = self.used().claim(grant, now());
                claimed.map_err(NotBegun::Unauthorized)?;
                self.sessions.session_of(grant)
            }
            Admitted::Local(_) => {
                let id = format!("ws-{:016x}", rand::random::<u64>());
                SessionId::new(id).expect("not blank, and short")
            }
        };
        let release = || {
            if let Admitted::Granted(grant) = &admitted {
                self.used().release(grant);
            }
        };
        // Whoever drains waits for those that are on their way in.
        let _on_its_way = self.tasks.token();
        let (held, transport) = make(id.clone());
        {
            let mut all = self.held();
            if all.contains_key(&id) {
                release();
                return Err(NotBegun::There(id));
            }
            all.insert(id.clone(), held.clone());
        }
        let opened = self
            .sessions
            .open(admitted.clone(), id.clone(), wishes, transport)
            .await;
        match opened {
            Ok(opened) => {
                if let (Some(folder), Some((crossing, done))) =
                    (&self.config.recordings, held.crossing())
                {
                    let path = recording::path(folder, &id);
                    let keep = recording::keep(id.clone(), crossing, done, path);
                    self.tasks.spawn(keep);
                }
                self.watch(id, held, opened);
                Ok(())
            }
            Err(refusal) => {
                self.held().remove(&id);
                release();
                Err(NotBegun::Refused(refusal))
            }
        }
    }

    /// Follows a session to its end.
    fn watch(self: &Arc<Self>, id: SessionId, held: Held, opened: Opened) {
        let server = Arc::clone(self);
        let Opened {
            epoch: _,
            mut ended,
            mut news,
            drain,
        } = opened;
        held.runs(drain);
        if self.is_draining() {
            // It began while nobody looked: whoever drains may not have found it.
            held.drain();
        }
        self.tasks.spawn(async move {
            let mut is_told = true;
            let farewell = loop {
                tokio::select! {
                    biased;
                    told = news.next(), if is_told => match told {
                        Some(told) => held.tell(told),
                        None => is_told = false,
                    },
                    farewell = &mut ended => break farewell,
                }
            };
            held.finish(farewell);
            server.held().remove(&id);
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
    format.checked().map_err(|served| {
        let says = format!("{which}.rate: {} Hz is not served; {served}", format.rate);
        trouble(ErrorCode::BadFormat, says)
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
    SystemTime::now().into()
}

async fn talk(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let asked = handshake::asked(&headers, query.as_deref());
    if let Ok(asked) = &asked {
        server.freshen(asked.token.as_deref()).await;
    }
    let looked_at = asked
        .and_then(|asked| Ok((asked.encoding, server.admit(&asked, &headers)?)))
        .and_then(|(encoding, entrance)| Ok((encoding, entrance, server.seat()?)));
    let (encoding, entrance, seat) = match looked_at {
        Ok(looked_at) => looked_at,
        Err(refused) => {
            server.count_refused();
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
