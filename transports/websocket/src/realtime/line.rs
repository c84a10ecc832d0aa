//! One client's line: what its socket and its session have in common.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use rspp_proto::{AudioChunk, SampleRate, TraceParent, TurnNumber};
use rspp_transport_api::{
    Ingress, News, Outgoing, Sink, SinkError, Transport, TransportKind, Wishes, wire::WireReport,
};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    client,
    feed::Feed,
    fields::Problem,
    machine::{Beginning, Leaves, Leaving, Machine, Order},
};
use crate::{call::ingress, crossing::Crossing};

pub(crate) struct Line {
    shared: Mutex<Shared>,
    /// Something is to be sent to the client.
    pub(super) to_send: Notify,
    /// Something is to be done for the session.
    pub(super) to_do: Notify,
    began: Instant,
    backlog: Duration,
    lead: Duration,
    /// Where in a trace its client is.
    caller: Option<TraceParent>,
    drain: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Whether the call is recorded as it crosses the wire.
    records: bool,
    /// What crosses the wire, once the conversation has begun.
    crossing: OnceLock<Arc<Crossing>>,
    /// It is over.
    done: CancellationToken,
}

struct Shared {
    machine: Machine,
    /// Audio on its way in, once the conversation has begun.
    feed: Option<Feed>,
    /// What the session is told before the audio that waits.
    now: Vec<Ingress>,
    starts: bool,
    /// Where the runtime listens; `None` before the conversation has begun, and once the user has hung up.
    to: Option<mpsc::Sender<Ingress>>,
    hung_up: bool,
    over: Option<String>,
    /// Since when the client owes an answer to a ping.
    pinged: Option<Instant>,
}

/// What is to be done for the session next.
pub(super) enum Next {
    Open,
    Tell(mpsc::Sender<Ingress>, Ingress),
    /// Nothing before this time.
    Wait(Option<Instant>),
}

impl Line {
    pub(super) fn new(
        beginning: Beginning,
        backlog: Duration,
        lead: Duration,
        records: bool,
        caller: Option<TraceParent>,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared: Mutex::new(Shared {
                machine: Machine::new(beginning),
                feed: None,
                now: Vec::new(),
                starts: false,
                to: None,
                hung_up: false,
                over: None,
                pinged: None,
            }),
            to_send: Notify::new(),
            to_do: Notify::new(),
            began: Instant::now(),
            backlog,
            lead,
            caller,
            drain: OnceLock::new(),
            records,
            crossing: OnceLock::new(),
            done: CancellationToken::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Whoever panicked left nothing half-done.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clock(&self) -> Duration {
        self.began.elapsed()
    }

    /// Lets the machine take something in, and has done what follows.
    fn with<T>(&self, act: impl FnOnce(&mut Machine, Duration) -> T) -> T {
        let now = self.clock();
        let mut shared = self.lock();
        let outcome = act(&mut shared.machine, now);
        let does = shared.sort(self.backlog);
        drop(shared);
        if does {
            self.to_do.notify_one();
        }
        self.to_send.notify_one();
        outcome
    }

    // --- the socket's side -------------------------------------------------------------------

    /// Takes a client's message; `false` if it was wrong.
    pub(super) fn client(&self, text: &str) -> bool {
        // Read before the line is locked, which audio on its way out waits for.
        let said = client::read(text);
        let is_right = self.with(|machine, now| machine.read(now, said));
        // Deadlines may have come nearer.
        self.to_do.notify_one();
        is_right
    }

    pub(super) fn wrong(&self, kind: &str, problem: &Problem) {
        self.with(|machine, _| machine.wrong(kind, problem, None));
    }

    pub(super) fn next(&self) -> Option<Leaving> {
        self.lock().machine.next()
    }

    /// A message has left.
    pub(super) fn left(&self, what: &Leaves) {
        let Some(crossing) = self.crossing.get() else {
            return;
        };
        match what {
            Leaves::Event => {}
            Leaves::Frame { turn, pcm, .. } => crossing.left(*turn, pcm),
            Leaves::End(turn) => crossing.over(*turn),
        }
    }

    /// What crosses its wire, and what says that it is over.
    pub(crate) fn crossing(&self) -> Option<(Arc<Crossing>, CancellationToken)> {
        let crossing = self.crossing.get()?;
        Some((Arc::clone(crossing), self.done.clone()))
    }

    pub(super) fn is_flooded(&self) -> bool {
        self.lock().machine.is_flooded()
    }

    /// Why it is over, if it is.
    pub(super) fn over(&self) -> Option<String> {
        self.lock().over.clone()
    }

    /// What is to be done for the session next.
    pub(super) fn to_do(&self) -> Next {
        let now = self.clock();
        let mut shared = self.lock();
        shared.machine.tick(now);
        let _sorted = shared.sort(self.backlog);
        if std::mem::take(&mut shared.starts) {
            return Next::Open;
        }
        if let Some(to) = shared.to.clone() {
            if !shared.now.is_empty() {
                return Next::Tell(to, shared.now.remove(0));
            }
            if let Some(ingress) = shared.feed.as_mut().and_then(|feed| feed.next(now)) {
                // What is sent faster than it is spoken is heard, and recorded, at the pace of speech.
                if let (Ingress::Audio(pcm), Some(crossing)) = (&ingress, self.crossing.get()) {
                    crossing.came(pcm);
                }
                return Next::Tell(to, ingress);
            }
        }
        let due = shared.feed.as_ref().and_then(Feed::due);
        let due = due.into_iter().chain(shared.machine.next_due()).min();
        self.to_send.notify_one();
        Next::Wait(due.map(|due| self.began + due))
    }

    /// The conversation begins: what is asked of it, and the runtime's side of the line.
    pub(super) fn begin(self: &Arc<Self>) -> Transport {
        let (to, source) = ingress();
        let mut shared = self.lock();
        if !shared.hung_up {
            shared.to = Some(to);
        }
        let (user, agent) = (
            shared.machine.input().rate(),
            shared.machine.output().rate(),
        );
        let crossing = self
            .crossing
            .get_or_init(|| Arc::new(Crossing::new(user, agent, self.records)));
        Transport {
            kind: TransportKind::Websocket,
            source_rate: user,
            source,
            sink: Box::new(LineSink {
                line: Arc::clone(self),
                crossing: Arc::clone(crossing),
                rate: agent,
                codec: shared.machine.output().into(),
                lead: self.lead,
            }),
            caller: self.caller,
        }
    }

    pub(super) fn wishes(&self) -> Wishes {
        self.lock().machine.wishes()
    }

    /// Whether there is a session.
    pub(super) fn has_begun(&self) -> bool {
        self.drain.get().is_some()
    }

    /// The user hangs up.
    pub(super) fn hang_up(&self) {
        let mut shared = self.lock();
        shared.to = None;
        shared.hung_up = true;
    }

    /// A ping goes out; a client that owes the answer for `stalled` takes no more audio.
    pub(super) fn pinged(&self, now: Instant, stalled: Duration) {
        let mut shared = self.lock();
        let since = *shared.pinged.get_or_insert(now);
        if now.duration_since(since) >= stalled {
            shared.machine.stalled = true;
        }
    }

    /// The client answers.
    pub(super) fn answered(&self) {
        let mut shared = self.lock();
        shared.pinged = None;
        shared.machine.stalled = false;
    }

    // --- the runtime's side ------------------------------------------------------------------

    /// The session says something of itself.
    pub(crate) fn tell(&self, news: &News) {
        self.with(|machine, _| machine.news(news));
    }

    pub(crate) fn runs(&self, drain: Box<dyn Fn() + Send + Sync>) {
        // Set once, by whoever opened it.
        let _ = self.drain.set(drain);
    }

    /// Lets it finish what it says, then end.
    pub(crate) fn drain(&self) {
        match self.drain.get() {
            Some(drain) => drain(),
            None => self.finish("the server is about to stop"),
        }
    }

    /// It is over.
    pub(crate) fn finish(&self, reason: &str) {
        let mut shared = self.lock();
        shared.machine.over(reason);
        shared.over.get_or_insert_with(|| reason.to_owned());
        shared.to = None;
        drop(shared);
        self.done.cancel();
        self.to_send.notify_one();
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

impl Shared {
    /// Puts what is to be done where it is done. Whether there is anything.
    fn sort(&mut self, backlog: Duration) -> bool {
        let mut does = false;
        while let Some(order) = self.machine.order() {
            does = true;
            let rate = self.machine.input().rate();
            let feed = self.feed.get_or_insert_with(|| Feed::new(rate, backlog));
            match order {
                Order::Start => self.starts = true,
                Order::Audio(pcm) => {
                    if feed.push(pcm).is_err() {
                        let says = format!(
                            "more than {} s of audio wait to be heard; this was not taken",
                            backlog.as_secs()
                        );
                        let full = Problem::new("input_audio_buffer_full", says).at("audio");
                        self.machine.wrong("invalid_request_error", &full, None);
                    }
                }
                Order::AfterAudio(ingress) => feed.then(ingress),
                Order::Now(ingress) => self.now.push(ingress),
                Order::Forget => feed.forget(),
            }
        }
        does
    }

    /// Whether somebody is there who takes audio.
    fn takes(&self) -> Result<(), SinkError> {
        if self.hung_up || self.over.is_some() {
            Err(SinkError::Closed)
        } else {
            Ok(())
        }
    }
}

struct LineSink {
    line: Arc<Line>,
    crossing: Arc<Crossing>,
    rate: SampleRate,
    codec: rspp_proto::Codec,
    lead: Duration,
}

impl Sink for LineSink {
    fn sample_rate(&self) -> SampleRate {
        self.rate
    }

    fn codec(&self) -> rspp_proto::Codec {
        self.codec
    }

    fn lead(&self) -> Duration {
        self.lead
    }

    fn play(&mut self, turn: TurnNumber, chunk: &AudioChunk) -> Result<(), SinkError> {
        self.line.lock().takes()?;
        self.line.with(|machine, _| machine.play(turn, &chunk.data))
    }

    fn clear(&mut self, turn: TurnNumber) {
        self.line.with(|machine, _| machine.clear(turn));
        self.crossing.cleared(turn);
    }

    fn send(&mut self, outgoing: Outgoing) -> Result<(), SinkError> {
        self.line.lock().takes()?;
        self.line.with(|machine, now| match outgoing {
            Outgoing::AudioEnd(turn) => machine.audio_end(turn),
            Outgoing::Text { turn, text } => match turn {
                Some(turn) => machine.clause(turn, &text),
                None => machine.words(&text),
            },
            Outgoing::Speech(mark) => machine.speech(now, mark),
            // An answer without a voice comes as its words.
            Outgoing::Voice { .. } => {}
            Outgoing::ToolCall(call) => machine.called(now, &call),
        });
        // A mark brings a deadline with it.
        self.line.to_do.notify_one();
        Ok(())
    }

    fn pause(&mut self) {
        self.crossing.pause();
    }

    fn wire(&self) -> Option<WireReport> {
        Some(self.crossing.report())
    }
}
