//! Sends traces to a collector while calls go on.
//!
//! OTLP (F-070) over gRPC or over HTTP. A session hands its spans over and goes on: what the queue has no room for is lost
//! and counted, a collector that is away costs spans and nothing else, and what waits when the program ends is still
//! sent, for so long and no longer.

mod message;
mod send;
mod worker;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rspp_provider_http::{SecretError, SecretRef, SecretStore};
use rspp_timeline::trace::{SpanBatch, SpanSink};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    task::JoinHandle,
};

use send::Sender;
use worker::Worker;

/// How a collector is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// gRPC in the clear, which collectors take on port 4317.
    #[default]
    Grpc,
    /// HTTP, also over TLS, which collectors take on port 4318.
    Http,
}

/// Where traces go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The collector, such as `http://127.0.0.1:4317`.
    pub url: String,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Where the token is that it wants to see, if it does.
    pub token: Option<SecretRef>,
    /// Who sends, by OpenTelemetry's names: `service.name` and the like.
    pub resource: Vec<(&'static str, String)>,
    /// Turns whose spans may wait.
    pub queue: usize,
    /// How long spans wait for others, so that they travel together.
    pub gather: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

impl Config {
    /// 1,024 turns may wait, for half a second at most while all goes well; an answer may take 5 s.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            protocol: Protocol::default(),
            token: None,
            resource: Vec::new(),
            queue: 1_024,
            gather: Duration::from_millis(500),
            timeout: Duration::from_secs(5),
        }
    }
}

/// Why traces cannot be sent.
#[derive(Debug, Error)]
pub enum OtlpError {
    /// The address is none.
    #[error("url: must be like `http://127.0.0.1:4317`, without path, credentials or query")]
    Url,
    /// gRPC goes in the clear only.
    #[error("url: gRPC goes without TLS here; with `https` set protocol to `http`, and port 4318")]
    Tls,
    /// The HTTP client could not be set up.
    #[error("HTTP could not be set up")]
    Http(#[source] reqwest::Error),
    /// The token is given as such.
    #[error("token: {0}")]
    Token(#[from] SecretError),
}

/// What became of spans so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanCounts {
    /// The collector has them.
    pub exported: u64,
    /// There was no room.
    pub dropped: u64,
    /// The collector refused them, or could not be reached for too long.
    pub failed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    exported: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

/// Sends traces until it is finished.
#[derive(Debug)]
pub struct Otlp {
    queue: Queue,
    worker: JoinHandle<()>,
    /// Tells the worker to take nothing more.
    end: oneshot::Sender<()>,
}

/// Where sessions hand their spans over.
#[derive(Clone, Debug)]
struct Queue {
    to: mpsc::Sender<SpanBatch>,
    counters: Arc<Counters>,
}

impl SpanSink for Queue {
    fn offer(&self, batch: SpanBatch) {
        match self.to.try_send(batch) {
            Ok(()) => {}
            Err(TrySendError::Full(lost) | TrySendError::Closed(lost)) => {
                let lost = lost.spans.len() as u64;
                self.counters.dropped.fetch_add(lost, Ordering::Relaxed);
            }
        }
    }
}

/// Whether traces could be sent so; the collector is not asked.
pub fn check(config: &Config) -> Result<(), OtlpError> {
    send::check(config)
}

impl Otlp {
    /// Begins to send; the collector need not be there yet.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(config: &Config, secrets: SecretStore) -> Result<Self, OtlpError> {
        let sender = Sender::new(config, secrets)?;
        let (to, from) = mpsc::channel(config.queue.max(1));
        let counters = Arc::<Counters>::default();
        let (end, ending) = oneshot::channel();
        let worker = Worker {
            from,
            ending: Some(ending),
            sender,
            gather: config.gather,
            counters: Arc::clone(&counters),
            is_away: false,
        };
        Ok(Self {
            queue: Queue { to, counters },
            worker: tokio::spawn(worker.run()),
            end,
        })
    }

    /// Where sessions hand their spans over.
    pub fn sink(&self) -> Arc<dyn SpanSink> {
        Arc::new(self.queue.clone())
    }

    /// What became of spans so far.
    pub fn counts(&self) -> impl Fn() -> SpanCounts + Send + Sync + use<> {
        let counters = Arc::clone(&self.queue.counters);
        move || {
            let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
            SpanCounts {
                exported: count(&counters.exported),
                dropped: count(&counters.dropped),
                failed: count(&counters.failed),
            }
        }
    }

    /// Takes nothing more, and sends what waits; `false` if that took too long.
    pub async fn finish(self, within: Duration) -> bool {
        let Self {
            queue: _,
            mut worker,
            end,
        } = self;
        let _it_has_ended = end.send(());
        let ended = tokio::time::timeout(within, &mut worker).await;
        worker.abort();
        ended.is_ok()
    }
}
