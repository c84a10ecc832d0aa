//! What the suites share: making calls, watching streams, judging faults.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use rspp_proto::{Epoch, EventId, InvocationId, OutcomeClass, SessionId, TurnNumber};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Attempt, AudioStream, Call, ChunkStream, Deadlines, Description, Fault};

use super::Patience;

/// More chunks than any honest answer to a fixture has; stops a stream that never ends.
const MOST_CHUNKS: usize = 100_000;

/// A call of its own session, so that calls share nothing.
pub(super) fn new_call(modality: &str) -> Call {
    static CALLS: AtomicU64 = AtomicU64::new(1);
    let number = CALLS.fetch_add(1, Relaxed);
    let session = SessionId::new(format!("conformance-{number}")).expect("a valid id");
    let turn = TurnNumber::FIRST.id();
    let event = EventId::canonical(&session, Some(&turn), number);
    let invocation = InvocationId::canonical(&session, Some(&turn), &event, modality);
    Call {
        idempotency_key: invocation.to_string(),
        invocation,
        attempt: Attempt::FIRST,
        session,
        turn: Some(turn),
        epoch: Epoch::FIRST,
        deadlines: Deadlines {
            first_byte: Duration::from_secs(20),
            inter_chunk: Duration::from_secs(10),
        },
        share: Arc::default(),
        queue: Arc::default(),
        extras: Arc::default(),
        cancel: CancellationToken::new(),
    }
}

/// What a stream gave before it ended.
#[derive(Debug)]
pub(super) struct Seen<T> {
    pub(super) chunks: Vec<T>,
    pub(super) fault: Option<Fault>,
}

impl<T> Seen<T> {
    /// The chunks of a call that had to succeed.
    pub(super) fn success(self, what: &str) -> Vec<T> {
        if let Some(fault) = self.fault {
            panic!("{what}: failed although nothing was wrong: {fault:?}");
        }
        self.chunks
    }
}

/// Reads a stream to its end, which must come `within`; an `Err` must be its last item.
pub(super) async fn drain<T>(what: &str, stream: &mut ChunkStream<T>, within: Duration) -> Seen<T> {
    let mut seen = Seen {
        chunks: Vec::new(),
        fault: None,
    };
    let reading = async {
        while let Some(item) = stream.next().await {
            assert!(
                seen.fault.is_none(),
                "{what}: something came after the error that ends a stream"
            );
            match item {
                Ok(chunk) => seen.chunks.push(chunk),
                Err(fault) => seen.fault = Some(fault),
            }
            assert!(
                seen.chunks.len() < MOST_CHUNKS,
                "{what}: more than {MOST_CHUNKS} chunks"
            );
        }
    };
    let ended = timeout(within, reading).await;
    assert!(
        ended.is_ok(),
        "{what}: the stream had not ended after {within:?}; it gave {} chunks",
        seen.chunks.len()
    );
    seen
}

/// Waits for the first chunk, which must come `within`.
pub(super) async fn first_chunk<T>(what: &str, stream: &mut ChunkStream<T>, within: Duration) -> T {
    let Ok(first) = timeout(within, stream.next()).await else {
        panic!("{what}: no chunk after {within:?}");
    };
    match first {
        Some(Ok(chunk)) => chunk,
        Some(Err(fault)) => panic!("{what}: failed before its first chunk: {fault:?}"),
        None => panic!("{what}: ended without a chunk"),
    }
}

/// Reads on after the call was cancelled: at most the chunk in flight may still come, then the end.
pub(super) async fn stops<T>(what: &str, stream: &mut ChunkStream<T>, patience: Patience) {
    let seen = drain(what, stream, patience.stop).await;
    assert!(
        seen.chunks.len() <= 1,
        "{what}: {} chunks came after the cancel; only the one in flight may",
        seen.chunks.len()
    );
    is_cancelled(what, seen.fault);
}

/// A call that was cancelled before it began gives nothing.
pub(super) async fn gives_nothing<T>(what: &str, stream: &mut ChunkStream<T>, patience: Patience) {
    let seen = drain(what, stream, patience.stop).await;
    assert!(
        seen.chunks.is_empty(),
        "{what}: {} chunks came from a call that was cancelled before it began",
        seen.chunks.len()
    );
    is_cancelled(what, seen.fault);
}

fn is_cancelled(what: &str, fault: Option<Fault>) {
    if let Some(fault) = fault {
        assert_eq!(
            fault.class,
            OutcomeClass::Cancelled,
            "{what}: a cancelled call must end with nothing or as cancelled, not with {fault:?}"
        );
        is_normal(what, &fault, &[]);
    }
}

/// A fault keeps to the taxonomy (providers.md §2) and repeats nothing of `payload`.
pub(super) fn is_normal(what: &str, fault: &Fault, payload: &[&str]) {
    let (retryable, circuit_open) = (fault.retryable, fault.circuit_open);
    let consistent = match fault.class {
        OutcomeClass::Success => false,
        OutcomeClass::Timeout => retryable && !circuit_open,
        OutcomeClass::Overload => retryable && circuit_open && fault.backoff.is_some(),
        OutcomeClass::Blocked => !retryable && !circuit_open,
        OutcomeClass::InfrastructureFailure => retryable || !circuit_open,
        OutcomeClass::Cancelled => !retryable && !circuit_open && fault.backoff.is_none(),
    };
    assert!(consistent, "{what}: not a row of the taxonomy: {fault:?}");
    let is_code = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    assert!(
        !fault.reason.is_empty() && fault.reason.chars().all(is_code),
        "{what}: the reason `{}` is not a stable code",
        fault.reason
    );
    for text in payload.iter().filter(|text| text.chars().count() >= 8) {
        assert!(
            !fault.message.contains(text),
            "{what}: the fault's message repeats what was said"
        );
    }
}

/// An input with nothing in it may be refused, but is never the provider's failure (P27).
pub(super) fn is_refusal(what: &str, fault: &Fault) {
    assert_eq!(
        fault.class,
        OutcomeClass::Blocked,
        "{what}: a blank input may be refused, but is no failure: {fault:?}"
    );
    is_normal(what, fault, &[]);
}

/// A description is complete and always the same.
pub(super) fn describes_itself<'a>(describe: impl Fn() -> &'a Description) {
    let description = describe();
    assert!(
        !description.model.trim().is_empty(),
        "describe: the model's name is blank"
    );
    assert_eq!(
        description,
        describe(),
        "describe: changed between two calls"
    );
}

/// Audio that tells when it was let go.
pub(super) struct WatchedAudio {
    pub(super) audio: AudioStream,
    released: CancellationToken,
}

impl WatchedAudio {
    /// Gives `pieces`, then ends.
    pub(super) fn ending(pieces: Vec<Bytes>) -> Self {
        Self::new(stream::iter(pieces))
    }

    /// Gives `pieces`, then nothing, without ending.
    pub(super) fn pending(pieces: Vec<Bytes>) -> Self {
        Self::new(stream::iter(pieces).chain(stream::pending()))
    }

    fn new(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        let released = CancellationToken::new();
        let guard = released.clone().drop_guard();
        Self {
            audio: Box::pin(Watched {
                pieces: Box::pin(pieces),
                _guard: guard,
            }),
            released,
        }
    }

    /// The stream, and what resolves once it was dropped.
    pub(super) fn split(self) -> (AudioStream, CancellationToken) {
        (self.audio, self.released)
    }
}

struct Watched {
    pieces: AudioStream,
    _guard: DropGuard,
}

impl Stream for Watched {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.pieces.as_mut().poll_next(context)
    }
}
