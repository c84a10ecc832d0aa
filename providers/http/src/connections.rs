//! How often a client opened a connection, and how often one that was there would do (F-105).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tower_layer::Layer;
use tower_service::Service;

tokio::task_local! {
    /// Whether the request at hand has opened a connection.
    static OPENED: Arc<AtomicBool>;
}

/// Counts what a client, or several, connect. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    opened: AtomicU64,
    reused: AtomicU64,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// Connections that were opened, or were to be.
    pub opened: u64,
    /// Requests that went over a connection that was there.
    pub reused: u64,
}

impl Connections {
    /// What was counted so far.
    pub fn counts(&self) -> ConnectionCounts {
        ConnectionCounts {
            opened: self.0.opened.load(Relaxed),
            reused: self.0.reused.load(Relaxed),
        }
    }

    /// Sends a request; says beside its answer whether it went over a connection that was there.
    pub async fn count<T, E>(
        &self,
        request: impl Future<Output = Result<T, E>>,
    ) -> (Result<T, E>, bool) {
        let opened = Arc::new(AtomicBool::new(false));
        let answer = OPENED.scope(Arc::clone(&opened), request).await;
        let reused = answer.is_ok() && !opened.load(Relaxed);
        self.0.reused.fetch_add(u64::from(reused), Relaxed);
        (answer, reused)
    }

    pub(crate) fn layer(&self) -> Counting {
        Counting(self.clone())
    }
}

/// Counts what the connector below it opens.
#[derive(Clone)]
pub(crate) struct Counting(Connections);

impl<S> Layer<S> for Counting {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            connections: self.0.clone(),
        }
    }
}

/// A connector that is counted.
#[derive(Clone)]
pub(crate) struct Counted<S> {
    inner: S,
    connections: Connections,
}

impl<S: Service<R>, R> Service<R> for Counted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, to: R) -> S::Future {
        self.connections.0.opened.fetch_add(1, Relaxed);
        // Of no request: the client opens one ahead.
        let _ahead = OPENED.try_with(|opened| opened.store(true, Relaxed));
        self.inner.call(to)
    }
}
