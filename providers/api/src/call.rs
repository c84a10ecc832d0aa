//! One call to a provider: who asks, how long it may take, how it is stopped.

use std::{fmt, num::NonZeroU32, pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use rspp_proto::{
    Epoch, InvocationId, ProviderId, SessionId, SpanId, TraceId, TraceParent, TurnId,
};
use tokio_util::sync::CancellationToken;

use crate::{Extras, Fault, QueueTime, fair::Share};

/// Counts the attempts of one call at one provider, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(pub NonZeroU32);

impl Attempt {
    /// The first attempt.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The attempt after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The attempt as a number, at least 1.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

/// How long a provider may be silent; the runtime enforces these, adapters may use them to set
/// their own time-outs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// From the request to the first chunk.
    pub first_byte: Duration,
    /// Between two chunks.
    pub inter_chunk: Duration,
}

/// Who asks, and how the call is stopped.
#[derive(Clone)]
pub struct Call {
    /// One id for the call, over all its attempts (F-160).
    pub invocation: InvocationId,
    /// Which attempt at this provider.
    pub attempt: Attempt,
    /// The asking session.
    pub session: SessionId,
    /// The asking turn; `None` for session-scoped work such as recognition.
    pub turn: Option<TurnId>,
    /// The authority under which the call is made.
    pub epoch: Epoch,
    /// Equal for all attempts, so that a vendor can refuse a duplicate.
    pub idempotency_key: String,
    /// How long the provider may be silent.
    pub deadlines: Deadlines,
    /// Who the call is accounted to where it shares something with others, such as a pool.
    pub share: Arc<Share>,
    /// Where the adapter says that the call waits for this machine and not for the provider.
    pub queue: Arc<QueueTime>,
    /// Where the adapter counts what other adapters do not.
    pub extras: Arc<Extras>,
    /// Fires when the result is no longer wanted: the stream must end promptly after it.
    pub cancel: CancellationToken,
}

impl Call {
    /// Where in the turn's trace this attempt at `provider` is, for servers that take part in traces (P30).
    pub fn traceparent(&self, provider: &ProviderId) -> TraceParent {
        TraceParent::new(
            TraceId::of(&self.session, self.turn.as_ref()),
            SpanId::of_attempt(&self.invocation, provider, self.attempt.get()),
        )
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("invocation", &self.invocation)
            .field("attempt", &self.attempt)
            .field("session", &self.session)
            .field("turn", &self.turn)
            .field("cancelled", &self.cancel.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// A provider's answer, chunk by chunk.
///
/// Ends after its last chunk on success; an `Err` is always the last item. A cancelled call ends
/// promptly, with nothing or with a fault of class `cancelled`. Dropping the stream aborts the call.
pub type ChunkStream<T> = Pin<Box<dyn Stream<Item = Result<T, Fault>> + Send>>;

/// What a provider is; constant while the process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its id in the registry, e.g. `stt-local`.
    pub id: ProviderId,
    /// The model or voice, as reports name it.
    pub model: String,
    /// Whether results arrive before the input is complete.
    pub streaming: bool,
    /// Whether the provider is reached over a network, where virtual time means nothing.
    pub networked: bool,
}
