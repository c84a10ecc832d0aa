//! A server whose sessions are handed to the test.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use rspp_proto::{SessionId, TenantId};
use rspp_transport_api::{
    Admitted, Elsewhere, Farewell, Guard, Opened, Refusal, Sessions, Transport, Wishes,
    audio::{FRAME, samples},
};
use rspp_websocket::{Config, Server, listen};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

/// What a client plays, at the pace of speech: of which turn or item, what, and when.
pub(crate) struct Loudspeaker<K>(Arc<Mutex<Vec<Piece<K>>>>);

struct Piece<K> {
    of: K,
    pcm: Vec<i16>,
    due: Instant,
}

impl<K> Clone for Loudspeaker<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> Default for Loudspeaker<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K> Loudspeaker<K> {
    pub(crate) fn play(&self, of: K, bytes: &[u8]) {
        let now = Instant::now();
        let mut playing = self.0.lock().unwrap();
        let after = playing.last().map(|last| last.due + FRAME);
        playing.push(Piece {
            of,
            pcm: samples(bytes).collect(),
            due: after.map_or(now, |after| after.max(now)),
        });
    }

    /// Takes back what has not been heard, but for what is `kept`.
    pub(crate) fn take_back(&self, kept: impl Fn(&K) -> bool) {
        let now = Instant::now();
        let mut playing = self.0.lock().unwrap();
        playing.retain(|piece| kept(&piece.of) || piece.due <= now);
    }

    pub(crate) fn heard(&self) -> Vec<i16> {
        let now = Instant::now();
        let playing = self.0.lock().unwrap();
        let heard = playing.iter().filter(|piece| piece.due <= now);
        heard.flat_map(|piece| piece.pcm.clone()).collect()
    }
}

/// A session that a client opened.
pub(crate) struct Session {
    pub(crate) admitted: Admitted,
    pub(crate) wishes: Wishes,
    pub(crate) transport: Transport,
    /// Ends it.
    pub(crate) end: oneshot::Sender<Farewell>,
}

struct Hands(mpsc::UnboundedSender<Session>);

impl Sessions for Hands {
    fn open(
        &self,
        admitted: Admitted,
        id: SessionId,
        wishes: Wishes,
        transport: Transport,
    ) -> BoxFuture<'_, Result<Opened, Refusal>> {
        let (end, ended) = oneshot::channel();
        async move {
            if id.as_str() == "crowded" {
                return Err(Refusal::Busy("no room".to_owned()));
            }
            if id.as_str() == "moved" {
                return Err(Refusal::Elsewhere(Elsewhere {
                    url: "ws://other:7410/v1/talk".to_owned(),
                    token: Some("for-there".to_owned()),
                }));
            }
            let session = Session {
                admitted,
                wishes,
                transport,
                end,
            };
            self.0
                .send(session)
                .map_err(|_| Refusal::Busy(String::new()))?;
            let ended = async move {
                match ended.await {
                    Ok(farewell) => farewell,
                    Err(_the_test_forgot_it) => std::future::pending().await,
                }
            };
            Ok(Opened {
                epoch: rspp_proto::Epoch::FIRST,
                ended: ended.boxed(),
                news: stream::pending().boxed(),
                drain: Box::new(|| {}),
            })
        }
        .boxed()
    }
}

/// A server and its sessions.
pub(crate) struct House {
    pub(crate) address: SocketAddr,
    pub(crate) server: Arc<Server>,
    sessions: mpsc::UnboundedReceiver<Session>,
}

pub(crate) fn local() -> Config {
    Config {
        guard: Guard::Local {
            tenant: TenantId::new("local").unwrap(),
            password: None,
        },
        ..Config::default()
    }
}

impl House {
    pub(crate) fn open(config: Config) -> Self {
        let (to, sessions) = mpsc::unbounded_channel();
        let server = Server::new(Arc::new(Hands(to)), config);
        let listener = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let router = server.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            address,
            server,
            sessions,
        }
    }

    /// The session that was opened next.
    pub(crate) async fn session(&mut self) -> Session {
        let session = tokio::time::timeout(Duration::from_secs(10), self.sessions.recv());
        session.await.expect("a session is opened").unwrap()
    }
}
