//! The connection actor: between a transport's two ends and the session's nodes.
//!
//! What comes in is cut into frames, stamped and handed to the listening nodes. What goes out leaves
//! on one clock of 20 ms, each frame through the output fence, so that a dead turn falls silent
//! whatever is queued (F-033, P5, P29).

mod ingress;
mod media;
mod watch;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use rspp_actors::{
    Clock, ControlRef, ExitReason, Item, NoTelemetry, Offer, Pump, PumpContext, TelemetryRef,
};
use rspp_kernel::{
    authority::AuthorityFault,
    echo::{EchoGuard, Loudness, Microphone},
    edge::Patience,
    fence::{OutputFence, Passage},
    graph::{Ends, Stream},
};
use rspp_proto::{
    AudioChunk, EdgeId, Epoch, EventType, Monotonic, NodeId, Payload, SampleIndex, SampleRate,
    SessionId, SpeechMark, TextChunk, TurnNumber, WallClock,
    abi::{OutcomeScope, SeqRange},
    spec::{ConnectionPolicy, PortType},
};
use rspp_transport_api::{
    ClientCall, ClientResult, Link, Outgoing, Receipt, Sink, SinkError, Source, Transport,
    TransportKind,
    audio::{FRAME, Framer, Resampler, samples, to_bytes},
    wire::WireReport,
};
use tokio::{sync::oneshot, time::Instant};
use tracing::Span;

use crate::{
    assembly::IngressEdge,
    capture::Capture,
    carriage::Carriage,
    event::{Arrival, Event, Port, Stamp},
    meters::Meters,
    node::{EdgeReport, Inputs, Torn, is_audio},
    observe::{Observed, Observers},
    report::{LineReport, MediaReport},
    schedule::{Scheduling, Shed},
    session::{Playback, SessionControl, TransportEvent},
};
use media::MediaStream;
use watch::Watch;

/// The runtime's own rate for the user's audio.
pub(crate) const INGRESS_RATE: SampleRate = SampleRate::HZ_16000;
/// Frames taken off the data lane ahead of the clock; the rest waits on its edge, which holds
/// synthesis back.
const AHEAD: usize = 5;
/// How often a peer that stalls is offered a frame, to see whether it takes output again.
const PROBE: Duration = Duration::from_millis(500);
/// Frames whose time of arrival is remembered: 20 s.
const REMEMBERED: usize = 1_024;

/// What a connection is told.
pub(crate) enum ConnectionControl {
    /// Begin: this is the session.
    Attach(Box<Attachment>),
    /// Forget what is queued of this turn and all before it, and tell the peer to.
    Clear {
        turn: TurnNumber,
        /// Told how many outputs that were.
        cleared: oneshot::Sender<u64>,
    },
    /// The turn's playout is held: what was committed and not played yet is not committed any more.
    Held,
    /// Nothing is held any more.
    Resume,
    /// Finish the clause of this turn that is being heard, and begin no other.
    FinishClause(TurnNumber),
    /// Something of a sync domain was lost on another of its edges.
    Sync(Port, Torn),
    /// Send a text of a turn that is not spoken, if the turn is still alive.
    Show(TurnNumber, Epoch, Box<TextChunk>),
    /// From this turn on the agent's audio goes out in this rate, as the turn's plan says (F-161).
    CarryAt(TurnNumber, SampleRate),
    /// Have the peer run a tool, if the call's turn is still alive.
    CallTool(Epoch, Box<ClientCall>),
    /// Tell the peer whether the agent has its voice.
    Voice { available: bool },
    /// Tell the peer that its user began to speak, or stopped.
    Speech(SpeechMark),
    /// The session is over: hang up.
    Close,
}

/// What ties a connection to its session.
pub(crate) struct Attachment {
    /// Dropped with the connection, however it ends.
    pub(crate) _gone: tokio_util::sync::DropGuard,
    pub(crate) session: ControlRef<SessionControl>,
    pub(crate) fence: Arc<OutputFence>,
    pub(crate) policy: ConnectionPolicy,
    pub(crate) session_id: SessionId,
    /// The calendar time at the clock's beginning.
    pub(crate) wall_origin: WallClock,
    pub(crate) ingress: Vec<IngressEdge>,
    /// The edges that lead out, by port.
    pub(crate) egress: Arc<[EdgeId]>,
    /// The ends that come by them in each turn.
    pub(crate) ends: Ends,
    pub(crate) telemetry: TelemetryRef<Observed>,
    pub(crate) observers: Arc<Observers>,
    /// What the session measures, if it does.
    pub(crate) meters: Option<Arc<Meters>>,
    /// Where the user's audio comes from, by name.
    pub(crate) ingress_node: NodeId,
    pub(crate) line: Arc<LineStats>,
    pub(crate) carriage: Arc<Carriage>,
    /// How far ahead of its playout audio is committed (F-039).
    pub(crate) commit_ahead: Duration,
    pub(crate) scheduling: Arc<Scheduling>,
    /// Keeps what comes in, if the recording may hold it.
    pub(crate) capture: Option<Capture>,
}

/// What a session may ask about its connection at any time.
#[derive(Debug, Default)]
pub(crate) struct LineStats {
    /// Outputs that were refused at the fence, or that the peer was too slow for, by their turn, since
    /// they were last asked for: a few turns at most.
    lost: Mutex<Vec<(TurnNumber, u64)>>,
    /// When the newest output frame was played, in milliseconds of the node's clock; 0 for never.
    pub(crate) played_at: AtomicU64,
    /// Output frames refused for their epoch.
    pub(crate) stale: AtomicU64,
    /// Output frames that were played under another epoch than the session's.
    pub(crate) stale_accepted: AtomicU64,
    /// Output frames that were too old.
    aged: AtomicU64,
    /// Frames of the user's that were the agent's own voice.
    echoes: AtomicU64,
    media: Mutex<Option<MediaReport>>,
    /// How the output crossed the wire, as the transport last said.
    wire: Mutex<Option<WireReport>>,
    /// Output frames that the peer was too slow for.
    unplayed: AtomicU64,
    /// Output frames that left, those that left late, and by how much at most, in milliseconds.
    left: AtomicU64,
    left_late: AtomicU64,
    latest: AtomicU64,
    /// Ticks of the output clock that found nothing to play in the middle of a reply.
    pub(crate) underruns: AtomicU64,
    /// What the client last said that its user has heard.
    receipt: Mutex<Option<Receipt>>,
    /// When the newest frames came in, by the position after their last sample.
    arrivals: Mutex<VecDeque<(SampleIndex, Monotonic)>>,
}

/// A frame that leaves this much after its time is late: a peer with little room hears it (P29).
const LATE: Duration = Duration::from_millis(5);

impl LineStats {
    /// When the frame that holds the sample before `position` came in; the newest if it is not
    /// remembered any more.
    pub(crate) fn arrival_of(&self, position: SampleIndex) -> Option<Monotonic> {
        let arrivals = self.arrivals.lock().expect("no code panics while locked");
        arrivals
            .iter()
            .find(|(end, _)| *end >= position)
            .or_else(|| arrivals.back())
            .map(|(_, at)| *at)
    }

    /// Where the user's audio has come to.
    pub(crate) fn heard_until(&self) -> SampleIndex {
        let arrivals = self.arrivals.lock().expect("no code panics while locked");
        arrivals.back().map_or(SampleIndex(0), |(end, _)| *end)
    }

    /// An output frame left so late, by the clock that paces them.
    fn leaves(&self, late: Duration) {
        self.left.fetch_add(1, Ordering::Relaxed);
        if late >= LATE {
            self.left_late.fetch_add(1, Ordering::Relaxed);
            let late = late.as_millis() as u64;
            self.latest.fetch_max(late, Ordering::Relaxed);
        }
    }

    /// What was carried and lost so far.
    pub(crate) fn report(&self) -> LineReport {
        LineReport {
            aged: self.aged.load(Ordering::Relaxed),
            unplayed: self.unplayed.load(Ordering::Relaxed),
            left: self.left.load(Ordering::Relaxed),
            left_late: self.left_late.load(Ordering::Relaxed),
            latest_ms: self.latest.load(Ordering::Relaxed),
            echoes: self.echoes.load(Ordering::Relaxed),
            media: *self.media.lock().expect("no code panics while locked"),
            wire: *self.wire.lock().expect("no code panics while locked"),
        }
    }

    /// What the transport knows of the wire.
    fn crossed(&self, wire: Option<WireReport>) {
        *self.wire.lock().expect("no code panics while locked") = wire;
    }

    /// The client says what was heard. It never takes back what it said before.
    fn receipted(&self, receipt: Receipt) {
        let mut newest = self.receipt.lock().expect("no code panics while locked");
        let older = newest
            .is_some_and(|newest| (newest.turn, newest.played) >= (receipt.turn, receipt.played));
        if !older {
            *newest = Some(receipt);
        }
    }

    /// Frames of a turn that were heard, of those that were accepted: all of them, unless the client
    /// gives receipts and this turn's says less.
    pub(crate) fn heard_of(&self, turn: TurnNumber, accepted: u32) -> u32 {
        let newest = *self.receipt.lock().expect("no code panics while locked");
        match newest {
            Some(Receipt { turn: of, played }) if of == turn => accepted.min(frames_of(played)),
            Some(_) | None => accepted,
        }
    }

    /// An output of a turn was not played.
    fn lose(&self, of: TurnNumber) {
        let mut lost = self.lost.lock().expect("no code panics while locked");
        match lost.iter_mut().rev().find(|(turn, _)| *turn == of) {
            Some((_, count)) => *count += 1,
            None => lost.push((of, 1)),
        }
    }

    /// Outputs that were not played since the last time of asking, by their turn.
    pub(crate) fn take_lost(&self) -> Vec<(TurnNumber, u64)> {
        let mut lost = self.lost.lock().expect("no code panics while locked");
        std::mem::take(&mut *lost)
    }

    fn arrived(&self, end: SampleIndex, at: Monotonic) {
        let mut arrivals = self.arrivals.lock().expect("no code panics while locked");
        if arrivals.len() == REMEMBERED {
            arrivals.pop_front();
        }
        arrivals.push_back((end, at));
    }
}

/// Output frames that so much audio is.
pub(crate) fn frames_of(played: Duration) -> u32 {
    let frames = played.as_millis().div_ceil(FRAME.as_millis());
    u32::try_from(frames).unwrap_or(u32::MAX)
}

/// The actor.
pub(crate) struct Connection {
    transport: Option<Transport>,
    scope: Span,
}

impl Connection {
    /// The connection of the session that `scope` is of.
    pub(crate) fn new(transport: Option<Transport>, scope: Span) -> Self {
        Self { transport, scope }
    }
}

impl Pump for Connection {
    type Control = ConnectionControl;
    type Data = Inputs;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "connection";

    fn scope(&self) -> Span {
        self.scope.clone()
    }

    async fn run(&mut self, ctx: &mut PumpContext<Self>) -> ExitReason {
        let Some(transport) = self.transport.take() else {
            return ExitReason::Failed("a connection is not reopened".to_owned());
        };
        let stopped = ctx.cancellation().clone();
        let attachment = tokio::select! {
            biased;
            () = stopped.cancelled() => return ExitReason::Finished,
            attachment = attached(ctx) => attachment,
        };
        let Some(attachment) = attachment else {
            return ExitReason::Finished;
        };
        let clock = ctx.clock();
        let Transport {
            kind,
            source_rate,
            source,
            sink,
            caller: _,
        } = transport;
        let mut line = match Line::new(*attachment, kind, sink, source_rate, clock) {
            Ok(line) => line,
            Err(error) => return ExitReason::Failed(error),
        };
        line.tell(TransportEvent::Connected);
        let over = line.serve(ctx, source).await;
        line.see_to_edges(ctx);
        line.attachment.line.crossed(line.sink.wire());
        over
    }
}

async fn attached(ctx: &mut PumpContext<Connection>) -> Option<Box<Attachment>> {
    loop {
        match ctx.next_control().await {
            ConnectionControl::Attach(attachment) => return Some(attachment),
            ConnectionControl::Clear { .. }
            | ConnectionControl::Held
            | ConnectionControl::Resume
            | ConnectionControl::FinishClause(_)
            | ConnectionControl::Sync(..)
            | ConnectionControl::Show(..)
            | ConnectionControl::CarryAt(..)
            | ConnectionControl::CallTool(..)
            | ConnectionControl::Voice { .. }
            | ConnectionControl::Speech(_) => {}
            ConnectionControl::Close => return None,
        }
    }
}

/// A connection in operation.
struct Line {
    attachment: Attachment,
    kind: TransportKind,
    clock: Clock,
    sink: Box<dyn Sink>,
    watch: Watch,
    /// Whether a frame under another epoch was refused last: a run of them is told of once.
    refusing: bool,
    /// Places that the data lane knows to be free.
    opened: usize,
    /// When the edges give what they hold back for more of its kind.
    held_until: Option<Monotonic>,
    echo: Option<EchoGuard>,
    source_rate: SampleRate,
    inbound: Inbound,
    outbound: Outbound,
}

/// The user's audio on its way in.
struct Inbound {
    resampler: Option<Resampler>,
    converted: Vec<i16>,
    framer: Framer,
    position: u64,
    sequence: u64,
    /// Audio that says where it belongs; made with the first of it.
    stream: Option<Box<MediaStream>>,
    /// Whether what comes in is shed.
    shedding: bool,
}

/// The agent's audio on its way out.
struct Outbound {
    queue: VecDeque<Event>,
    /// When the next frame is due; `None` while nothing plays.
    due: Option<Instant>,
    /// Whether a reply has begun to play and its end has not come.
    in_reply: bool,
    /// Frames that are committed ahead of their playout.
    ahead: usize,
    /// How many at the front of the queue are.
    committed: usize,
    /// The turn whose first frame was accepted and has not been played: it may stand behind the last
    /// committed frames of the turn before.
    begins: Option<TurnNumber>,
    /// The clause that is being heard.
    playing: Option<(TurnNumber, u32)>,
    closing: Option<Closing>,
    /// The ends that are still to come in the turn that something came of last.
    ends: Option<(TurnNumber, Ends)>,
    /// A cleared turn whose committed frames are still to be played.
    clear_after: Option<TurnNumber>,
    /// Frames in a row that were too old, and whose.
    aged: Option<(TurnNumber, SeqRange)>,
    resampler: Option<(SampleRate, Resampler)>,
    converted: Vec<i16>,
    framer: Framer,
    /// The rate that audio goes out in, and those of turns to come where it is another.
    rate: SampleRate,
    rates: VecDeque<(TurnNumber, SampleRate)>,
}

impl Outbound {
    /// The rate of a turn's audio.
    fn rate_of(&mut self, turn: TurnNumber) -> SampleRate {
        while let Some((from, rate)) = self.rates.front().copied()
            && from <= turn
        {
            self.rates.pop_front();
            self.rate = rate;
            self.resampler = None;
            self.framer = Framer::new(rate);
        }
        self.rate
    }
}

/// A turn of which only one clause is still to be heard.
#[derive(Clone, Copy, Debug)]
struct Closing {
    turn: TurnNumber,
    segment: u32,
    /// The end of the clause is in the queue, or past it.
    ended: bool,
    over: bool,
}

impl Line {
    fn new(
        attachment: Attachment,
        kind: TransportKind,
        sink: Box<dyn Sink>,
        source_rate: SampleRate,
        clock: Clock,
    ) -> Result<Self, String> {
        let resampler = (source_rate != INGRESS_RATE)
            .then(|| Resampler::new(source_rate, INGRESS_RATE))
            .transpose()
            .map_err(|error| error.to_string())?;
        let out_rate = sink.sample_rate();
        let ahead = attachment.commit_ahead.as_millis() / FRAME.as_millis();
        let now = Monotonic::from_duration(clock.now());
        Ok(Self {
            watch: Watch::new(&attachment.policy, now),
            refusing: false,
            opened: usize::MAX,
            held_until: None,
            echo: EchoGuard::new(&attachment.policy.echo_guard, sink.lead()),
            attachment,
            kind,
            clock,
            sink,
            inbound: Inbound {
                resampler,
                converted: Vec::new(),
                framer: Framer::new(INGRESS_RATE),
                position: 0,
                sequence: 0,
                stream: None,
                shedding: false,
            },
            source_rate,
            outbound: Outbound {
                queue: VecDeque::new(),
                due: None,
                in_reply: false,
                ahead: ahead as usize,
                committed: 0,
                begins: None,
                playing: None,
                closing: None,
                ends: None,
                clear_after: None,
                aged: None,
                resampler: None,
                converted: Vec::new(),
                framer: Framer::new(out_rate),
                rate: out_rate,
                rates: VecDeque::new(),
            },
        })
    }

    fn now(&self) -> Monotonic {
        Monotonic::from_duration(self.clock.now())
    }

    fn tell(&self, event: TransportEvent) {
        let message = SessionControl::Transport { event };
        if self.attachment.session.send_reserved(message).is_err() {
            tracing::debug!("the session is gone before its connection");
        }
    }

    /// Sees to the edges that lead out: takes as much audio off them as there is room for, tells the session what
    /// they have to report, and comes back for what they hold back.
    fn see_to_edges(&mut self, ctx: &mut PumpContext<Connection>) {
        let room = self.free_places();
        self.opened = room;
        let (reports, held) = ctx.inbox().with_data(|inputs| {
            inputs.open(room);
            (inputs.take_notices(), inputs.next_due())
        });
        self.held_until = held;
        for EdgeReport { port, lane, notice } in reports {
            let edge = self.attachment.egress[usize::from(port.0)].clone();
            let message = SessionControl::Edge {
                edge,
                lane,
                notice,
                at: self.now(),
            };
            if self.attachment.session.send_reserved(message).is_err() {
                tracing::debug!("the session is gone before its connection");
            }
        }
    }

    fn tell_playback(&self, turn: TurnNumber, playback: Playback) {
        let at = self.now();
        let message = SessionControl::Playback { turn, playback, at };
        if self.attachment.session.send_reserved(message).is_err() {
            tracing::debug!("the session is gone before its connection");
        }
    }

    /// Carries frames both ways until the user hangs up, the peer is gone or the session is over.
    async fn serve(&mut self, ctx: &mut PumpContext<Connection>, mut source: Source) -> ExitReason {
        // Both live as long as the line: making and dropping them for each frame costs more than a frame.
        let stopped = ctx.cancellation().clone().cancelled_owned();
        let timer = tokio::time::sleep_until(Instant::now());
        tokio::pin!(stopped, timer);
        loop {
            let due = self.next_due();
            if let Some(due) = due.filter(|due| *due != timer.deadline()) {
                // Timers go by whole milliseconds, rounded up: what is due needs none.
                if due <= Instant::now() {
                    if self.do_due().is_err() {
                        return ExitReason::Finished;
                    }
                    continue;
                }
                timer.as_mut().reset(due);
            }
            if self.free_places() != self.opened {
                self.see_to_edges(ctx);
            }
            tokio::select! {
                biased;
                () = &mut stopped => return ExitReason::Finished,
                () = &mut timer, if due.is_some() => {
                    if self.do_due().is_err() {
                        return ExitReason::Finished;
                    }
                }
                item = ctx.inbox().next() => match item {
                    Item::Control(ConnectionControl::Clear { turn, cleared }) => {
                        let dropped = self.clear(ctx, turn);
                        // While the turn is still the one that the edges tell of.
                        self.see_to_edges(ctx);
                        let _session_gave_up = cleared.send(dropped);
                    }
                    Item::Control(ConnectionControl::Held) => {
                        self.uncommit();
                        self.sink.pause();
                    }
                    Item::Control(ConnectionControl::Resume) => self.resume(),
                    Item::Control(ConnectionControl::FinishClause(turn)) => {
                        self.finish_clause(turn);
                    }
                    Item::Control(ConnectionControl::Sync(port, torn)) => {
                        ctx.inbox().with_data(|inputs| torn.apply(inputs, port));
                    }
                    Item::Control(ConnectionControl::Show(turn, epoch, text)) => {
                        self.show(turn, epoch, &text);
                    }
                    Item::Control(ConnectionControl::CarryAt(turn, rate)) => {
                        self.outbound.rates.push_back((turn, rate));
                    }
                    Item::Control(ConnectionControl::CallTool(epoch, call)) => {
                        self.call_tool(epoch, call);
                    }
                    Item::Control(ConnectionControl::Voice { available }) => {
                        self.send(Outgoing::Voice { available });
                    }
                    Item::Control(ConnectionControl::Speech(mark)) => {
                        self.send(Outgoing::Speech(mark));
                    }
                    Item::Control(ConnectionControl::Close) => return ExitReason::Finished,
                    // A connection belongs to one session for good.
                    Item::Control(ConnectionControl::Attach(_)) => {}
                    Item::News => self.see_to_edges(ctx),
                    Item::Data(arrival) => self.take(arrival),
                    Item::Telemetry(none) => match none {},
                },
                ingress = source.next() => {
                    if let Some(capture) = &self.attachment.capture {
                        capture.came(ingress.as_ref());
                    }
                    let Some(ingress) = ingress else {
                        return ExitReason::Finished;
                    };
                    self.come_in(ingress);
                    // A source that is always ready must not keep the thread for itself.
                    tokio::task::consume_budget().await;
                },
            }
        }
    }

    /// When something is to be done next. Nothing plays while nobody is there: what was made waits on
    /// its edge, and holds synthesis back.
    fn next_due(&self) -> Option<Instant> {
        let play = self.outbound.due.filter(|_| !self.watch.is_down());
        let silence = self.watch.silence_due();
        let held = self.inbound.stream.as_ref();
        let held = held.and_then(|stream| stream.next_deadline());
        let shown = self.held_until;
        let listen = silence.into_iter().chain(held).chain(shown).min();
        let listen = listen.map(|at| self.clock.instant_at(at.as_duration()));
        play.into_iter().chain(listen).min()
    }

    /// Places for pieces of audio that are left here; what is beyond them waits on its edge.
    fn free_places(&self) -> usize {
        self.room().saturating_sub(self.outbound.queue.len())
    }

    /// Frames taken off the data lane. While nobody takes them they wait here, where they are bounded by
    /// their age alone: a short outage loses nothing of a reply.
    fn room(&self) -> usize {
        if self.watch.is_holding() {
            let most = Duration::from_millis(self.attachment.policy.max_output_age_ms);
            (most.as_millis() / FRAME.as_millis()) as usize
        } else {
            AHEAD.max(self.outbound.ahead + 1)
        }
    }

    fn do_due(&mut self) -> Result<(), SinkError> {
        // What was held back is the next that the edges give.
        let now = self.now();
        self.held_until.take_if(|due| *due <= now);
        if let Some(event) = self.watch.check_silence(self.now()) {
            self.tell(event);
        }
        self.listen_on();
        let now = Instant::now();
        if self.watch.is_down() || self.outbound.due.is_none_or(|due| due > now) {
            return Ok(());
        }
        match self.play_due() {
            Err(SinkError::Lost) => {
                self.relink(Link::Lost);
                Ok(())
            }
            played => played,
        }
    }

    // --- in ----------------------------------------------------------------------------------

    /// The transport says what became of its link.
    fn relink(&mut self, link: Link) {
        let tries_in_vain = link == Link::Reconnecting && !self.kind.reconnects();
        let link = if tries_in_vain { Link::Lost } else { link };
        if let Some(event) = self.watch.relinked(link, self.now()) {
            self.tell(event);
        }
        match link {
            // Whoever comes back may have come over another line.
            Link::Back | Link::Changed => {
                let carriage = &self.attachment.carriage;
                carriage.changes(self.kind, self.source_rate, self.sink.as_ref());
            }
            Link::Reconnecting | Link::Lost => {}
        }
        if link == Link::Back {
            self.restart_stream();
        }
        if !self.watch.is_down() && self.outbound.due.is_some() {
            self.outbound.due = Some(Instant::now());
        }
    }

    /// Whether what comes in is shed where it would be queued (RK-25): said once each time that it
    /// begins.
    fn sheds(&mut self) -> bool {
        let shed = self.attachment.scheduling.is_shed();
        if shed && !self.inbound.shedding {
            let message = SessionControl::Shed {
                turn: None,
                node: None,
                shed: Shed {
                    point: OutcomeScope::EdgeEnqueue,
                    reason: "scheduling_point_shed",
                },
                at: self.now(),
            };
            if self.attachment.session.send_reserved(message).is_err() {
                tracing::debug!("the session is gone before its connection");
            }
        }
        self.inbound.shedding = shed;
        shed
    }

    /// Hands a piece of the user's audio on, cut into frames and stamped.
    fn hear(&mut self, pcm: Bytes) {
        let now = self.now();
        if let Some(event) = self.watch.heard(now) {
            self.tell(event);
        }
        let shed = self.sheds();
        // Under whose authority this is heard is known to the fence first of all (AE-004).
        let Some(epoch) = self.attachment.fence.epoch() else {
            return;
        };
        let Inbound {
            resampler,
            converted,
            framer,
            position,
            sequence,
            stream: _,
            shedding: _,
        } = &mut self.inbound;
        let pcm = match resampler {
            Some(resampler) => convert(resampler, &pcm, converted),
            None => pcm,
        };
        let (attachment, echo) = (&self.attachment, &mut self.echo);
        framer.push(pcm, |frame| {
            *sequence += 1;
            let length = frame.len() as u64 / 2;
            let stamp = Stamp {
                turn: None,
                epoch,
                sequence: *sequence,
                made: now,
                media: SampleIndex(*position),
                segment: 0,
            };
            *position += length;
            attachment.line.arrived(SampleIndex(*position), now);
            if shed {
                return;
            }
            let frame = match echo {
                Some(guard) => unless_echo(guard, frame, now, &attachment.line),
                None => frame,
            };
            let payload = Payload::AudioChunk(AudioChunk::pcm16(INGRESS_RATE, frame));
            hand_on(attachment, &Event::new(stamp, payload));
        });
    }

    // --- out ---------------------------------------------------------------------------------

    fn take(&mut self, arrival: Arrival) {
        if let Arrival::Event { event, .. } = &arrival
            && is_audio(&event.payload)
        {
            self.opened = self.opened.saturating_sub(1);
        }
        let (port, event) = match arrival {
            Arrival::Event { port, event, .. } => (port, event),
            Arrival::Break { .. } => {
                // What follows does not join what came before.
                self.outbound.resampler = None;
                self.outbound.framer.clear();
                return;
            }
            // A connection calls no provider and no tool.
            Arrival::Chunk { .. } | Arrival::CallEnded { .. } | Arrival::ToolAnswer { .. } => {
                return;
            }
        };
        match event.payload {
            Payload::Text(ref text) => {
                // What a turn says is checked where it leaves; the user's own words belong to none.
                match event.stamp.turn {
                    Some(turn) => self.show(turn, event.stamp.epoch, text),
                    None => self.send(Outgoing::Text {
                        turn: None,
                        text: (**text).clone(),
                    }),
                }
            }
            Payload::AudioChunk(_) => self.enqueue(event),
            Payload::AudioEnd => {
                if self.is_last_end(port, Stream::Audio, &event) {
                    self.enqueue(event);
                }
            }
            Payload::TextEnd => {
                if self.is_last_end(port, Stream::Text, &event) {
                    let payload = Payload::AudioEnd;
                    self.enqueue(Event { payload, ..event });
                }
            }
            Payload::Speech(_)
            | Payload::Metrics(_)
            | Payload::Debug(_)
            | Payload::Error(_)
            | Payload::Extension(_) => {}
        }
    }

    fn enqueue(&mut self, event: Event) {
        if self.is_of_clause(&event) {
            self.outbound.queue.push_back(event);
            self.commit_ahead();
            self.resume();
        }
    }

    /// Whether a turn is at its end here: nothing more of it comes by any edge.
    fn is_last_end(&mut self, port: Port, stream: Stream, event: &Event) -> bool {
        let Some(turn) = event.stamp.turn else {
            return false;
        };
        let closing = self.outbound.closing.as_ref();
        if closing.is_some_and(|closing| closing.turn == turn) {
            return stream == Stream::Audio; // Its last clause ends it, whatever was to follow.
        }
        let all = &self.attachment.ends;
        let (of, ends) = self
            .outbound
            .ends
            .get_or_insert_with(|| (turn, all.clone()));
        if *of < turn {
            (*of, *ends) = (turn, all.clone());
        }
        // Of a turn before that nobody waits for any more than of one that is over.
        if *of != turn || ends.is_over() {
            return stream == Stream::Audio;
        }
        ends.ended(port.0, stream);
        ends.is_over()
    }

    fn show(&mut self, turn: TurnNumber, epoch: Epoch, text: &TextChunk) {
        self.attachment.fence.expire(self.now());
        if self.attachment.fence.admits(turn, epoch) {
            let (turn, text) = (Some(turn), text.clone());
            self.send(Outgoing::Text { turn, text });
        } else {
            self.attachment.line.lose(turn);
        }
    }

    /// Has the peer run a tool; if it is not to, the session is told.
    fn call_tool(&mut self, epoch: Epoch, call: Box<ClientCall>) {
        self.attachment.fence.expire(self.now());
        let (turn, id) = (call.turn, Arc::clone(&call.call));
        let told = if self.attachment.fence.admits(turn, epoch) {
            let told = self.sink.send(Outgoing::ToolCall(call));
            told.map_err(|error| error.to_string())
        } else {
            Err("its turn was over before the client was told".to_owned())
        };
        if let Err(problem) = told {
            self.tell(TransportEvent::ToolResult(Box::new(ClientResult {
                turn,
                call: id,
                outcome: Err(format!("not executed: {problem}")),
            })));
        }
    }

    fn send(&mut self, outgoing: Outgoing) {
        if let Err(error) = self.sink.send(outgoing) {
            tracing::trace!(%error, "a text was not sent");
        }
    }

    /// Plays the frame that is due. The clock runs while a reply plays; ends of turns and refused
    /// frames take no time.
    fn play_due(&mut self) -> Result<(), SinkError> {
        self.clear_what_was_committed();
        loop {
            let next = self.outbound.queue.front();
            if next.is_some_and(|event| self.is_held(event)) {
                self.outbound.due = None; // Until `Resume` or `Clear`.
                return Ok(());
            }
            let Some(event) = self.outbound.queue.pop_front() else {
                break;
            };
            let Some(turn) = event.stamp.turn else {
                continue; // Only turns speak.
            };
            match event.payload {
                Payload::AudioChunk(chunk) => {
                    if self.is_too_old(turn, &event.stamp) {
                        continue;
                    }
                    let played = self.play(turn, &event.stamp, &chunk)?;
                    self.commit_ahead();
                    if played {
                        let now = Instant::now();
                        let due = self.outbound.due.unwrap_or(now);
                        let late = now.saturating_duration_since(due);
                        self.attachment.scheduling.gatekeeper.output.count(late);
                        self.attachment.line.leaves(late);
                        // A peer that had to wait for longer than it can bridge is silent already. It is handed what it
                        // has room for, and the clock goes on from there.
                        let lead = self.sink.lead().saturating_sub(FRAME).max(FRAME);
                        let bridged = now.checked_sub(lead).unwrap_or(now);
                        self.outbound.due = Some(due.max(bridged) + self.watch.pace());
                        return Ok(());
                    }
                }
                Payload::AudioEnd => self.finish(turn)?,
                Payload::Text(_)
                | Payload::TextEnd
                | Payload::Speech(_)
                | Payload::Metrics(_)
                | Payload::Debug(_)
                | Payload::Error(_)
                | Payload::Extension(_) => {}
            }
        }
        self.tell_aged();
        // Nothing left: the clock starts anew with the next frame.
        self.outbound.due = None;
        if self.outbound.in_reply {
            self.attachment
                .line
                .underruns
                .fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// What has waited too long would only be heard too late: it makes room for what is to be heard now
    /// (P23). What was committed is heard.
    fn is_too_old(&mut self, turn: TurnNumber, stamp: &Stamp) -> bool {
        let most = Duration::from_millis(self.attachment.policy.max_output_age_ms);
        if self.outbound.committed > 0 || self.now().since(stamp.made) <= most {
            self.tell_aged();
            return false;
        }
        self.attachment.line.aged.fetch_add(1, Ordering::Relaxed);
        let sequence = stamp.sequence;
        match &mut self.outbound.aged {
            Some((of, range)) if *of == turn && sequence > range.end => range.end = sequence,
            _another_turn_or_none => {
                self.tell_aged();
                let range = SeqRange {
                    start: sequence,
                    end: sequence,
                };
                self.outbound.aged = Some((turn, range));
            }
        }
        true
    }

    /// A run of frames that were too old is over.
    fn tell_aged(&mut self) {
        if let Some((turn, range)) = self.outbound.aged.take() {
            self.tell(TransportEvent::Aged { turn, range });
        }
    }

    /// Whether the event is one that may not be heard for now. The end of a reply is no sound.
    fn is_held(&self, event: &Event) -> bool {
        let audible = matches!(event.payload, Payload::AudioChunk(_));
        let fence = &self.attachment.fence;
        audible && event.stamp.turn.is_some_and(|turn| fence.is_held(turn))
    }

    /// Starts the output clock, if there is something to play and it stands still.
    fn resume(&mut self) {
        if !self.outbound.queue.is_empty() {
            self.outbound.due.get_or_insert_with(Instant::now);
        }
    }

    /// Asks the fence for one frame, to be played now.
    fn accept(&mut self, turn: TurnNumber, epoch: Epoch) -> bool {
        self.attachment.fence.expire(self.now());
        let held = self.attachment.fence.epoch();
        let passage = self.attachment.fence.accept(turn, epoch);
        self.passed(turn, epoch, held, passage)
    }

    /// Asks the fence for one frame, to be played soon.
    fn commit(&mut self, turn: TurnNumber, epoch: Epoch) -> bool {
        self.attachment.fence.expire(self.now());
        let held = self.attachment.fence.epoch();
        let passage = self.attachment.fence.commit(turn, epoch);
        self.passed(turn, epoch, held, passage)
    }

    /// Asks the fence whether a frame that was committed may be played now that its moment has come.
    fn redeem(&mut self, turn: TurnNumber, epoch: Epoch) -> bool {
        self.attachment.fence.expire(self.now());
        match self.attachment.fence.play(turn, epoch) {
            Ok(()) => true,
            Err(fault) => {
                self.outbound.begins.take_if(|of| *of == turn);
                self.attachment.line.lose(turn);
                self.refuse_output(turn, fault);
                false
            }
        }
    }

    /// `held` is the epoch that was in force before the fence was asked.
    fn passed(
        &mut self,
        turn: TurnNumber,
        epoch: Epoch,
        held: Option<Epoch>,
        passage: Passage,
    ) -> bool {
        match passage {
            Passage::Accepted { ordinal } => {
                // What the fence is for; counted on its own account.
                if held != Some(epoch) {
                    let stale = &self.attachment.line.stale_accepted;
                    stale.fetch_add(1, Ordering::Relaxed);
                }
                if ordinal == 1 {
                    self.outbound.begins = Some(turn);
                }
                true
            }
            // Nothing of a guess comes here before its promotion; if it did, this would stop it (P9).
            Passage::Fenced | Passage::Provisional => {
                self.attachment.line.lose(turn);
                false
            }
            Passage::StaleEpoch { current } => {
                self.refuse_output(turn, AuthorityFault::of(current, epoch));
                false
            }
        }
    }

    /// A frame was made under another epoch than the session's; the first is told of.
    fn refuse_output(&mut self, turn: TurnNumber, fault: AuthorityFault) {
        let before = self.attachment.line.stale.fetch_add(1, Ordering::Relaxed);
        if before == 0 {
            self.tell_playback(turn, Playback::Stale(fault));
        }
    }

    /// Commits what is due soon: past this point it is heard although its turn is cancelled (F-039), unless
    /// the session loses its lease.
    fn commit_ahead(&mut self) {
        while self.outbound.committed < self.outbound.ahead {
            let at = self.outbound.committed;
            let Some(event) = self.outbound.queue.get(at) else {
                return;
            };
            let (Some(turn), Payload::AudioChunk(_)) = (event.stamp.turn, &event.payload) else {
                return; // The next reply's frames wait for the end of this one.
            };
            let epoch = event.stamp.epoch;
            if self.attachment.fence.is_held(turn) {
                return;
            }
            if self.commit(turn, epoch) {
                self.outbound.committed += 1;
            } else {
                self.outbound.queue.remove(at);
            }
        }
    }

    fn uncommit(&mut self) {
        while let Some(last) = self.outbound.committed.checked_sub(1) {
            let turn = self.outbound.queue.get(last).and_then(|e| e.stamp.turn);
            // A turn that was cancelled at this very moment has been told what is heard of it.
            if !turn.is_some_and(|turn| self.attachment.fence.uncommit(turn)) {
                return;
            }
            self.outbound.committed = last;
        }
    }

    /// Plays, with the fence's leave. `false` if the frame was refused.
    fn play(
        &mut self,
        turn: TurnNumber,
        stamp: &Stamp,
        chunk: &AudioChunk,
    ) -> Result<bool, SinkError> {
        if self.outbound.committed > 0 {
            self.outbound.committed -= 1;
            if !self.redeem(turn, stamp.epoch) {
                return Ok(false);
            }
        } else if !self.accept(turn, stamp.epoch) {
            return Ok(false);
        }
        self.outbound.in_reply = true;
        self.outbound.playing = Some((turn, stamp.segment));
        let taken = match self.convert_and_play(turn, chunk) {
            Ok(taken) => taken,
            Err(error) => {
                // Nor was what came to a peer that is gone.
                self.attachment.fence.take_back(turn);
                return Err(error);
            }
        };
        if let Some(event) = self.watch.offered(taken) {
            self.tell(event);
        }
        if taken {
            let now = self.now();
            let played_at = &self.attachment.line.played_at;
            played_at.store(now.as_millis(), Ordering::Relaxed);
            if let Some(guard) = &mut self.echo {
                guard.played(now, Loudness::of(samples(&chunk.data)));
            }
            if self.outbound.begins.take_if(|of| *of == turn).is_some() {
                self.tell_playback(turn, Playback::Started);
            }
        } else {
            // What the peer had no room for was not heard (P2).
            self.attachment.fence.take_back(turn);
        }
        Ok(true)
    }

    /// `false` if the peer had no room for it.
    fn convert_and_play(
        &mut self,
        turn: TurnNumber,
        chunk: &AudioChunk,
    ) -> Result<bool, SinkError> {
        let from = chunk.format.sample_rate;
        let to = self.outbound.rate_of(turn);
        if from == to {
            return played(self.sink.play(turn, chunk), turn, &self.attachment.line);
        }
        let Outbound {
            resampler,
            converted,
            framer,
            ..
        } = &mut self.outbound;
        if resampler.as_ref().is_none_or(|(rate, _)| *rate != from) {
            *resampler = Resampler::new(from, to).ok().map(|fresh| (from, fresh));
        }
        let Some((_, resampler)) = resampler else {
            return Ok(false); // A rate that no voice has.
        };
        let pcm = convert(resampler, &chunk.data, converted);
        let mut outcome = Ok(true);
        framer.push(pcm, |frame| {
            let chunk = AudioChunk::pcm16(to, frame);
            let frame = played(self.sink.play(turn, &chunk), turn, &self.attachment.line);
            outcome = outcome.and_then(|so_far| frame.map(|taken| so_far && taken));
        });
        outcome
    }

    /// The turn's audio is complete: what the converter holds back is played too.
    fn finish(&mut self, turn: TurnNumber) -> Result<(), SinkError> {
        if !self.attachment.fence.is_live(turn) {
            return Ok(());
        }
        self.outbound.in_reply = false;
        let mut lost = false;
        let to = self.outbound.rate_of(turn);
        if let Some((_, mut resampler)) = self.outbound.resampler.take() {
            self.outbound.converted.clear();
            resampler.finish(&mut self.outbound.converted);
            let rest = to_bytes(&self.outbound.converted);
            let mut frames = Vec::new();
            self.outbound.framer.push(rest, |frame| frames.push(frame));
            frames.extend(self.outbound.framer.finish());
            for frame in frames {
                let chunk = AudioChunk::pcm16(to, frame);
                match played(self.sink.play(turn, &chunk), turn, &self.attachment.line) {
                    Ok(_) => {}
                    Err(SinkError::Lost) => lost = true,
                    Err(error @ (SinkError::Closed | SinkError::Full | SinkError::Unsupported)) => {
                        return Err(error);
                    }
                }
            }
        }
        if let Err(error) = self.sink.send(Outgoing::AudioEnd(turn)) {
            tracing::trace!(%error, "the end of the audio was not sent");
        }
        self.attachment.line.crossed(self.sink.wire());
        self.outbound.playing = None;
        let closing = self.outbound.closing.as_mut();
        if let Some(closing) = closing.filter(|closing| closing.turn == turn) {
            closing.over = true;
            self.tell_playback(turn, Playback::ClauseOver);
        } else {
            self.tell_playback(turn, Playback::Finished);
        }
        if lost { Err(SinkError::Lost) } else { Ok(()) }
    }

    /// From here on nothing but the clause that is being heard is played of `turn`.
    fn finish_clause(&mut self, turn: TurnNumber) {
        let Some((_, segment)) = self.outbound.playing.filter(|(of, _)| *of == turn) else {
            self.tell_playback(turn, Playback::ClauseOver); // Nothing is in flight.
            return;
        };
        self.outbound.closing = Some(Closing {
            turn,
            segment,
            ended: false,
            over: false,
        });
        self.uncommit();
        let committed = self.outbound.committed;
        let queue = std::mem::take(&mut self.outbound.queue);
        for (at, event) in queue.into_iter().enumerate() {
            if at < committed || self.is_of_clause(&event) {
                self.outbound.queue.push_back(event);
            }
        }
        self.commit_ahead();
        self.resume();
    }

    /// Whether the event may be played. Of a turn that is closing only its last clause may; the first
    /// sound after it ends it.
    fn is_of_clause(&mut self, event: &Event) -> bool {
        let turn = event.stamp.turn;
        let closing = self.outbound.closing.as_mut();
        let Some(closing) = closing.filter(|closing| turn == Some(closing.turn)) else {
            return true;
        };
        let audible = matches!(event.payload, Payload::AudioChunk(_));
        let first_end = !closing.ended;
        if audible && first_end && event.stamp.segment == closing.segment {
            return true;
        }
        closing.ended = true;
        if !audible {
            return first_end;
        }
        if first_end {
            let end = Event {
                payload: Payload::AudioEnd,
                ..event.clone()
            };
            self.outbound.queue.push_back(end);
            self.resume();
        }
        if let Some(turn) = turn {
            self.attachment.line.lose(turn);
        }
        false
    }

    /// Forgets a turn, but for what is committed under an epoch that is still in force. Returns how many
    /// outputs that were.
    fn clear(&mut self, ctx: &mut PumpContext<Connection>, turn: TurnNumber) -> u64 {
        let in_force = self.attachment.fence.epoch();
        let committed = self.outbound.queue.iter().take(self.outbound.committed);
        let committed = committed.filter(|event| Some(event.stamp.epoch) == in_force);
        let committed = committed.count();
        if committed < self.outbound.committed {
            self.outbound.begins = None;
        }
        self.outbound.committed = committed;
        let stale = |event: &Event| event.stamp.turn.is_some_and(|of| of <= turn);
        let is_output = |event: &Event| event.payload != Payload::AudioEnd;
        let mut dropped = 0;
        let committed = self.outbound.committed;
        let mut at = 0;
        self.outbound.queue.retain(|event| {
            let keep = at < committed || !stale(event);
            at += 1;
            dropped += u64::from(!keep && is_output(event));
            keep
        });
        // A busy connection comes to this late: the next turn may speak already, and what the user
        // said is of no turn.
        ctx.inbox().with_data(|inputs| {
            inputs.forget(|event| {
                let goes = stale(event);
                dropped += u64::from(goes && is_output(event));
                goes
            })
        });
        if let Some(meters) = &self.attachment.meters {
            meters.fell_silent(self.now());
        }
        let closing = self
            .outbound
            .closing
            .take_if(|closing| closing.turn <= turn);
        // What a soft cancel let end has ended by itself.
        if !closing.is_some_and(|closing| closing.over) {
            self.outbound.clear_after = Some(turn);
            self.clear_what_was_committed();
        }
        if self.outbound.queue.is_empty() {
            self.outbound.due = None;
        }
        self.resume();
        dropped
    }

    /// Has the peer forget a cleared turn, once all that was committed of it has been played.
    fn clear_what_was_committed(&mut self) {
        let next = self.outbound.queue.front().and_then(|e| e.stamp.turn);
        let waits = |turn: TurnNumber| self.outbound.committed > 0 && next <= Some(turn);
        let Some(turn) = self.outbound.clear_after.filter(|turn| !waits(*turn)) else {
            return;
        };
        self.outbound.clear_after = None;
        self.outbound.begins.take_if(|of| *of <= turn);
        self.outbound.playing = None;
        self.outbound.resampler = None;
        self.outbound.framer.clear();
        self.outbound.in_reply = false;
        self.sink.clear(turn);
        self.attachment.line.crossed(self.sink.wire());
    }
}

/// Offers the user's audio to every edge that carries it.
fn hand_on(attachment: &Attachment, event: &Event) {
    let node = &attachment.ingress_node;
    if attachment.observers.taps(node, EventType::Audio) {
        let _unwatched = attachment.telemetry.offer(Observed {
            node: node.clone(),
            edge: None,
            event: event.clone(),
            copied: true,
        });
    }
    for edge in &attachment.ingress {
        match edge.carries {
            PortType::Audio | PortType::Any => {}
            PortType::Text
            | PortType::Speech
            | PortType::Metrics
            | PortType::Debug
            | PortType::Error => continue,
        }
        let arrival = Arrival::Event {
            port: edge.port,
            event: event.clone(),
            arrived: event.stamp.made,
            // A microphone cannot wait.
            patience: Patience::Spent,
        };
        match edge.to.offer(arrival) {
            // The edge counts and reports what it displaces; a microphone cannot wait, so what a
            // blocking edge has no room for is lost there too.
            Offer::Queued | Offer::Displaced(_) | Offer::Full(_) | Offer::Closed(_) => {}
        }
    }
}

/// A frame of the microphone, or as much silence if it holds nothing but the agent's own voice.
fn unless_echo(guard: &mut EchoGuard, frame: Bytes, now: Monotonic, line: &LineStats) -> Bytes {
    match guard.judge(now, Loudness::of(samples(&frame))) {
        Microphone::Open => frame,
        Microphone::Echo => {
            line.echoes.fetch_add(1, Ordering::Relaxed);
            silence(frame.len())
        }
    }
}

/// So many bytes of silence.
fn silence(bytes: usize) -> Bytes {
    const SECOND: &[u8] = &[0; 96_000];
    match SECOND.get(..bytes) {
        Some(silence) => Bytes::from_static(silence),
        None => Bytes::from(vec![0; bytes]),
    }
}

/// Changes the rate of a piece of audio; `scratch` is reused from piece to piece.
fn convert(resampler: &mut Resampler, pcm: &[u8], scratch: &mut Vec<i16>) -> Bytes {
    let input: Vec<i16> = samples(pcm).collect();
    scratch.clear();
    resampler.push(&input, scratch);
    to_bytes(scratch)
}

/// A frame that a slow peer has no room for is lost and counted: `false`. A peer that is gone ends the
/// call; one that may come back is told apart.
fn played(
    outcome: Result<(), SinkError>,
    turn: TurnNumber,
    line: &LineStats,
) -> Result<bool, SinkError> {
    let not_taken = || {
        line.unplayed.fetch_add(1, Ordering::Relaxed);
        line.lose(turn);
    };
    match outcome {
        Ok(()) => Ok(true),
        Err(SinkError::Full | SinkError::Unsupported) => {
            not_taken();
            Ok(false)
        }
        Err(SinkError::Lost) => {
            not_taken();
            Err(SinkError::Lost)
        }
        Err(SinkError::Closed) => Err(SinkError::Closed),
    }
}
