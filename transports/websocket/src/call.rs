//! A conversation, which outlives the sockets that carry it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::stream;
use rspp_proto::{AudioChunk, SampleRate, SessionId, TenantId, TraceParent, TurnNumber};
use rspp_transport_api::{
    Farewell, Ingress, News, Outgoing, Sink, SinkError, Source, Transport, TransportKind,
    audio::FRAME, wire::WireReport,
};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    crossing::Crossing,
    outbox::{Item, Outbox},
    protocol::{Format, Nothing, Resume, Said, ServerMessage, SignalTold, ToolCall, Voice},
};

/// Things from the client that may wait for the runtime, which takes them at once.
const AHEAD: usize = 64;

/// Where a client's side puts what it says, and where the runtime hears it.
pub(crate) fn ingress() -> (mpsc::Sender<Ingress>, Source) {
    let (to, from_client) = mpsc::channel(AHEAD);
    let source = stream::unfold(from_client, |mut from| async move {
        from.recv().await.map(|ingress| (ingress, from))
    });
    (to, Box::pin(source))
}

/// Frames that so much audio has.
pub(crate) fn frames_in(lead: Duration) -> usize {
    (lead.as_millis() / FRAME.as_millis()) as usize
}

pub(crate) struct Call {
    pub(crate) id: SessionId,
    /// Whose it is, where tokens say.
    pub(crate) tenant: Option<TenantId>,
    /// Whoever knows it may come back.
    pub(crate) key: String,
    pub(crate) input: (Format, SampleRate),
    pub(crate) output: (Format, SampleRate),
    events: bool,
    shared: Mutex<Shared>,
    /// Something is to be done for the socket.
    changed: Notify,
    crossing: Arc<Crossing>,
    /// It is over.
    done: CancellationToken,
    drain: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

struct Shared {
    outbox: Outbox,
    /// Counts the sockets; 0 before the first.
    connection: u32,
    attached: bool,
    /// Messages that came on this connection.
    received: u64,
    /// The connection before, and what came on it: for a client that has not heard of this one.
    before: Option<(u32, u64)>,
    /// Sends the socket away.
    evict: CancellationToken,
    /// Where the runtime listens; `None` once the user has hung up.
    to: Option<mpsc::Sender<Ingress>>,
    /// How it ended.
    over: Option<Farewell>,
    /// Since when the client owes an answer to a ping.
    pinged: Option<Instant>,
}

/// A socket's hold on a call.
pub(crate) struct Attached {
    pub(crate) connection: u32,
    /// Messages that came on the connection that broke.
    pub(crate) received: u64,
    /// Messages to the client that are lost.
    pub(crate) lost: u64,
    pub(crate) evicted: CancellationToken,
    pub(crate) to: mpsc::Sender<Ingress>,
}

/// A client that comes back cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Impossible {
    Over,
    OtherConnection,
    NeverSent,
}

impl Impossible {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Over => "the session is over",
            Self::OtherConnection => "`connection` is not the one that broke",
            Self::NeverSent => "`received` is more than was sent",
        }
    }
}

/// What a call begins with.
pub(crate) struct Beginning {
    pub(crate) id: SessionId,
    /// Whose it is, where tokens say.
    pub(crate) tenant: Option<TenantId>,
    pub(crate) key: String,
    pub(crate) input: (Format, SampleRate),
    pub(crate) output: (Format, SampleRate),
    pub(crate) events: bool,
    pub(crate) lead: Duration,
    /// Whether it is recorded as it crosses the wire.
    pub(crate) records: bool,
    /// Where in a trace its client is.
    pub(crate) caller: Option<TraceParent>,
}

impl Call {
    /// A call and its runtime's side.
    pub(crate) fn begin(beginning: Beginning) -> (Arc<Self>, Transport) {
        let Beginning {
            id,
            tenant,
            key,
            input,
            output,
            events,
            lead,
            records,
            caller,
        } = beginning;
        let (to, source) = ingress();
        let call = Arc::new(Self {
            id,
            tenant,
            key,
            input,
            output,
            events,
            shared: Mutex::new(Shared {
                outbox: Outbox::new(frames_in(lead)),
                connection: 0,
                attached: false,
                received: 0,
                before: None,
                evict: CancellationToken::new(),
                to: Some(to),
                over: None,
                pinged: None,
            }),
            changed: Notify::new(),
            crossing: Arc::new(Crossing::new(input.1, output.1, records)),
            done: CancellationToken::new(),
            drain: OnceLock::new(),
        });
        let transport = Transport {
            kind: TransportKind::Websocket,
            source_rate: input.1,
            source,
            sink: Box::new(CallSink {
                call: Arc::clone(&call),
                rate: output.1,
                lead,
            }),
            caller,
        };
        (call, transport)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Whoever panicked left nothing half-done.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- the socket's side -------------------------------------------------------------------

    /// A socket takes the call over, that of a client which comes back or of one that knows nothing of what was; one
    /// that held it is sent away.
    pub(crate) fn attach(&self, resume: Option<&Resume>) -> Result<Attached, Impossible> {
        let mut shared = self.lock();
        let Some(to) = shared.to.clone().filter(|_| shared.over.is_none()) else {
            return Err(Impossible::Over);
        };
        let (mut received, mut lost) = (0, 0);
        if let Some(resume) = resume {
            let (connection, before) = (shared.connection, shared.before);
            let came = if resume.connection == connection {
                received = shared.received;
                shared.before = Some((connection, received));
                resume.received
            } else if let Some((_, came)) = before.filter(|(nth, _)| *nth == resume.connection) {
                // It has not heard of the last connection, so nothing that was sent on it came.
                received = came;
                0
            } else {
                return Err(Impossible::OtherConnection);
            };
            lost = shared
                .outbox
                .resume(came)
                .map_err(|_| Impossible::NeverSent)?;
        } else {
            shared.outbox.begin_anew();
            shared.before = None;
        }
        shared.evict.cancel();
        shared.evict = CancellationToken::new();
        shared.connection += 1;
        shared.attached = true;
        shared.received = 0;
        shared.pinged = None;
        Ok(Attached {
            connection: shared.connection,
            received,
            lost,
            evicted: shared.evict.clone(),
            to,
        })
    }

    /// A socket lets go of the call. `false` if another has it already.
    pub(crate) fn detach(&self, connection: u32) -> bool {
        let mut shared = self.lock();
        let holds = shared.connection == connection;
        if holds {
            shared.attached = false;
            drop(shared);
            // A link that is lost is no gap in what was said over it.
            self.crossing.pause();
        }
        holds
    }

    /// The user hangs up.
    pub(crate) fn hang_up(&self) {
        self.lock().to = None;
    }

    /// A message came.
    pub(crate) fn count(&self) {
        self.lock().received += 1;
    }

    pub(crate) fn next(&self) -> Option<Item> {
        self.lock().outbox.next()
    }

    /// How it ended, if it has.
    pub(crate) fn over(&self) -> Option<Farewell> {
        self.lock().over.clone()
    }

    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// A ping goes out; a client that owes the answer for `stalled` takes no more audio.
    pub(crate) fn pinged(&self, now: Instant, stalled: Duration) {
        let mut shared = self.lock();
        let since = *shared.pinged.get_or_insert(now);
        if now.duration_since(since) >= stalled {
            shared.outbox.stalled = true;
        }
    }

    /// The client answers.
    pub(crate) fn answered(&self) {
        let mut shared = self.lock();
        shared.pinged = None;
        shared.outbox.stalled = false;
    }

    // --- the wire ----------------------------------------------------------------------------

    /// Something has left.
    pub(crate) fn left(&self, item: &Item) {
        match item {
            Item::Frame { turn, pcm } => self.crossing.left(*turn, pcm),
            Item::End(turn) => self.crossing.over(*turn),
            Item::Clear(turn) => self.crossing.cleared(*turn),
            Item::Start(_) | Item::Message(_) => {}
        }
    }

    /// The user's audio has come.
    pub(crate) fn came(&self, pcm: &Bytes) {
        self.crossing.came(pcm);
    }

    /// What crosses its wire, and what says that it is over.
    pub(crate) fn crossing(&self) -> (Arc<Crossing>, CancellationToken) {
        (Arc::clone(&self.crossing), self.done.clone())
    }

    // --- the runtime's side ------------------------------------------------------------------

    /// Tells the client something; `Full` if it does not keep up.
    pub(crate) fn say(&self, message: ServerMessage) -> Result<(), SinkError> {
        let said = self.lock().outbox.say(message);
        self.changed.notify_one();
        said
    }

    /// Tells a client that wants to know what the session says of itself.
    pub(crate) fn tell(&self, news: News) {
        if !self.events {
            return;
        }
        let message = match news {
            News::Signal(signal) => ServerMessage::Signal(SignalTold {
                signal: signal.signal,
                turn: signal.envelope.turn_id.clone(),
                reason: signal.reason.as_ref().map(ToString::to_string),
                at_ms: signal.envelope.runtime_timestamp_ms,
            }),
            News::Turn(turn) => ServerMessage::Turn(turn),
        };
        if self.say(message).is_err() {
            tracing::debug!(session_id = %self.id, "the client is too slow for news");
        }
    }

    pub(crate) fn runs(&self, drain: Box<dyn Fn() + Send + Sync>) {
        // Set once, by whoever opened it.
        let _ = self.drain.set(drain);
    }

    /// Lets it finish what it says, then end.
    pub(crate) fn drain(&self) {
        if self.say(ServerMessage::Draining(Nothing {})).is_err() {
            tracing::debug!(session_id = %self.id, "the client is too slow to be told");
        }
        if let Some(drain) = self.drain.get() {
            drain();
        }
    }

    /// It is over.
    pub(crate) fn finish(&self, farewell: Farewell) {
        let mut shared = self.lock();
        shared.over.get_or_insert(farewell);
        shared.to = None;
        drop(shared);
        self.done.cancel();
        self.changed.notify_one();
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Call({})", self.id)
    }
}

struct CallSink {
    call: Arc<Call>,
    rate: SampleRate,
    lead: Duration,
}

impl Sink for CallSink {
    fn sample_rate(&self) -> SampleRate {
        self.rate
    }

    fn codec(&self) -> rspp_proto::Codec {
        self.call.output.0.codec.into()
    }

    fn lead(&self) -> Duration {
        self.lead
    }

    fn play(&mut self, turn: TurnNumber, chunk: &AudioChunk) -> Result<(), SinkError> {
        let mut shared = self.call.lock();
        shared.takes()?;
        shared.outbox.play(turn, chunk.data.clone())?;
        drop(shared);
        self.call.changed.notify_one();
        Ok(())
    }

    fn clear(&mut self, turn: TurnNumber) {
        self.call.lock().outbox.clear(turn);
        self.call.changed.notify_one();
    }

    fn send(&mut self, outgoing: Outgoing) -> Result<(), SinkError> {
        let mut shared = self.call.lock();
        let said = match outgoing {
            Outgoing::AudioEnd(turn) => {
                shared.outbox.end(turn);
                Ok(())
            }
            Outgoing::Text { turn: _, text } => shared.outbox.say(ServerMessage::Text(Said {
                speaker: text.speaker,
                text: text.text,
                segment: text.segment,
                is_final: text.is_final,
            })),
            // Whoever speaks this protocol hears of it by signals.
            Outgoing::Speech(_) => Ok(()),
            Outgoing::Voice { available } => {
                let voice = Voice { available };
                shared.outbox.say(ServerMessage::Voice(voice))
            }
            Outgoing::ToolCall(call) => shared.outbox.say(ServerMessage::ToolCall(ToolCall {
                turn: call.turn,
                call: call.call.to_string(),
                tool: call.tool.to_string(),
                arguments: serde_json::from_str(&call.arguments).unwrap_or_default(),
            })),
        };
        drop(shared);
        self.call.changed.notify_one();
        said
    }

    fn pause(&mut self) {
        self.call.crossing.pause();
    }

    fn wire(&self) -> Option<WireReport> {
        Some(self.call.crossing.report())
    }
}

impl Shared {
    /// Whether somebody is there who takes audio.
    fn takes(&self) -> Result<(), SinkError> {
        if self.to.is_none() || self.over.is_some() {
            Err(SinkError::Closed)
        } else if self.attached {
            Ok(())
        } else {
            Err(SinkError::Lost)
        }
    }
}
