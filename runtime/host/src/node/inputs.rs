//! A node's data lane: one buffer for each edge that leads to it, and one for its provider calls.
//!
//! Edges keep their own policies; between edges, what came first is taken first. An edge of any type
//! has a queue for telemetry beside the one for data, which is looked at when all data is gone.

use std::{collections::VecDeque, sync::Arc};

use rspp_actors::{Buffer, Clock, Offer};
use rspp_kernel::{
    edge::{BreakReason, EdgeBuffer, EdgeCounters, EdgeNotice, Offered, Patience, grow},
    graph::Stream,
};
use rspp_proto::{
    Lane, Monotonic, Payload,
    spec::{EdgeBufferPolicy, FlowControl, PortType},
};

use crate::{
    event::{Arrival, Event, Keys, Port, Queued, lane_of},
    memory::Share,
    meters::EdgeMeter,
};

/// Pieces of provider answers that may wait; a provider call waits for space, it never loses any.
const MAX_WAITING_CHUNKS: usize = 64;
/// Pieces of answers taken in a row while events wait: a provider that never stops must not keep a
/// node from hearing anything else.
const CHUNKS_IN_A_ROW: usize = 64;

/// The data lane of a node.
#[derive(Debug)]
pub struct Inputs {
    clock: Clock,
    edges: Vec<Input>,
    chunks: VecDeque<Arrival>,
    chunks_full: bool,
    chunks_taken: usize,
    chunk_bytes: usize,
    share: Share,
    /// Frames of audio that may rest on an edge before the node is woken for them.
    patience: usize,
    /// Whether something waits that the node is to be woken for, or has been.
    pressing: bool,
    /// Pieces of audio that may be taken for now; what else waits is not held back with them.
    room: usize,
    /// Whether an edge has something to report that nobody has been woken for.
    news: bool,
}

/// An edge that leads to a node.
#[derive(Clone, Debug)]
pub struct InputEdge<'a> {
    /// What it may hold.
    pub policy: &'a EdgeBufferPolicy,
    /// What flows on it.
    pub carries: PortType,
    /// What it is measured with, if it is.
    pub(crate) meter: Option<Arc<EdgeMeter>>,
}

#[derive(Debug)]
struct Input {
    data: EdgeBuffer<Queued>,
    /// Only where telemetry may flow.
    telemetry: Option<Box<EdgeBuffer<Queued>>>,
    keys: Keys,
    meter: Option<Arc<EdgeMeter>>,
    is_audio: bool,
}

/// What an edge has to report.
#[derive(Debug)]
pub struct EdgeReport {
    /// Which edge.
    pub port: Port,
    /// Which of its lanes.
    pub lane: Lane,
    /// What happened.
    pub notice: EdgeNotice,
}

/// Pieces of answers that leave a full lane before the provider call is woken: each wake-up costs
/// more than what is then sent, so one for each free place would be mostly waking.
const WAKE_EVERY: usize = 8;

impl Input {
    fn new(edge: InputEdge<'_>, flow: &FlowControl) -> Self {
        let policy = edge.policy;
        let telemetry = match edge.carries {
            PortType::Any | PortType::Metrics | PortType::Debug => {
                let marks = Some(flow.telemetry_marks);
                Some(Box::new(EdgeBuffer::for_telemetry(policy, marks)))
            }
            PortType::Audio | PortType::Text | PortType::Speech | PortType::Error => None,
        };
        Self {
            data: EdgeBuffer::with_flow(policy, flow.data_mode, Some(flow.data_marks)),
            telemetry,
            keys: Keys::new(policy),
            meter: edge.meter,
            is_audio: edge.carries == PortType::Audio,
        }
    }

    /// Whether what is here can wait for what the node is next woken for.
    fn rests(&self, patience: usize) -> bool {
        self.is_audio && self.data.len() <= patience && self.data.is_roomy()
    }

    fn measure(&self) {
        if let Some(meter) = &self.meter {
            meter.stands(self.data.len(), self.data.counters());
        }
    }

    fn is_empty(&self) -> bool {
        self.data.is_empty()
            && self
                .telemetry
                .as_ref()
                .is_none_or(|buffer| buffer.is_empty())
    }

    fn len(&self) -> usize {
        self.data.len() + self.telemetry.as_ref().map_or(0, |buffer| buffer.len())
    }

    fn bytes(&self) -> usize {
        self.data.bytes() + self.telemetry.as_ref().map_or(0, |buffer| buffer.bytes())
    }

    /// Whether there is something that no event tells the receiver: what the edge has to report, or that it
    /// holds an event back and has to be asked for it again.
    fn has_news(&self, now: Monotonic) -> bool {
        self.has_notices() || self.data.next_due(now).is_some()
    }

    fn has_notices(&self) -> bool {
        self.data.has_notices() || self.telemetry.as_ref().is_some_and(|b| b.has_notices())
    }
}

impl Inputs {
    /// Buffers for edges, in port order, whose senders are held back as `flow` says.
    pub(crate) fn new<'a>(
        clock: Clock,
        share: Share,
        flow: &FlowControl,
        edges: impl IntoIterator<Item = InputEdge<'a>>,
    ) -> Self {
        let edges = edges.into_iter().map(|edge| Input::new(edge, flow));
        let mut edges: Vec<Input> = edges.collect();
        // A node has few inputs, and a buffer is large to keep room for.
        edges.shrink_to_fit();
        Self {
            clock,
            edges,
            chunks: VecDeque::new(),
            chunks_full: false,
            chunks_taken: 0,
            chunk_bytes: 0,
            share,
            patience: 0,
            pressing: false,
            room: usize::MAX,
            news: false,
        }
    }

    /// Lets so many frames of audio rest on an edge before the node is woken for them; a bound that
    /// comes near wakes it before. What rests comes in order, before whatever the node is woken for.
    pub fn rest(&mut self, patience: usize) {
        self.patience = patience;
        // What came while more was allowed to rest may not any more.
        self.pressing |= self
            .edges
            .iter()
            .any(|edge| edge.is_audio && !edge.data.is_empty() && !edge.rests(patience));
    }

    /// Lets so many more pieces of audio be taken. Until there is room for more, audio waits on its edge, and keeps
    /// nothing on other edges waiting with it.
    pub fn open(&mut self, room: usize) {
        self.pressing |= self.room == 0 && room > 0 && !self.is_empty();
        self.room = room;
    }

    /// The node has seen to what there was, or is woken now: up to here nothing was late that rested.
    fn rested(&mut self, now: Monotonic) {
        if self.patience > 0 && !self.pressing {
            for edge in self.edges.iter_mut().filter(|edge| edge.is_audio) {
                edge.data.rested(now);
            }
        }
    }

    /// Lets the session's account know what waits here.
    fn account(&mut self) {
        let events: usize = self.edges.iter().map(Input::bytes).sum();
        self.share.hold(events + self.chunk_bytes);
    }

    fn pop_chunk(&mut self) -> Option<Arrival> {
        let chunk = self.chunks.pop_front()?;
        self.chunk_bytes = self.chunk_bytes.saturating_sub(chunk.bytes());
        Some(chunk)
    }

    fn pop_next(&mut self, now: Monotonic) -> Option<Arrival> {
        // Answers before questions: they are what the node is waiting for.
        if self.chunks_taken < CHUNKS_IN_A_ROW
            && let Some(chunk) = self.pop_chunk()
        {
            self.chunks_taken += 1;
            return Some(chunk);
        }
        self.chunks_taken = 0;
        self.pop_data(now)
            .or_else(|| self.pop_chunk())
            .or_else(|| self.pop_telemetry(now))
    }

    fn now(&self) -> Monotonic {
        Monotonic::from_duration(self.clock.now())
    }

    /// Forgets everything that waits, on a cancel. Returns how many items that were.
    pub fn clear(&mut self) -> u64 {
        let chunks = self.chunks.len() as u64;
        self.chunks.clear();
        self.chunk_bytes = 0;
        self.clear_edges() + chunks
    }

    /// Forgets the events that wait, but nothing of the answers to the node's own calls.
    pub fn clear_edges(&mut self) -> u64 {
        let now = self.now();
        let events = self
            .edges
            .iter_mut()
            .map(|edge| {
                let telemetry = edge.telemetry.as_mut().map_or(0, |b| b.clear(now));
                let data = edge.data.clear(now);
                edge.measure();
                data + telemetry
            })
            .sum();
        self.account();
        events
    }

    /// Takes back the events of edges that are not wanted any more. Returns how many that were.
    pub fn forget(&mut self, mut unwanted: impl FnMut(&Event) -> bool) -> u64 {
        let now = self.now();
        let events = self.edges.iter_mut().map(|edge| {
            let forgotten = edge.data.forget(now, |queued| unwanted(&queued.event));
            edge.measure();
            forgotten
        });
        let events = events.sum();
        self.account();
        events
    }

    /// Whether an edge has something to report.
    pub fn has_notices(&self) -> bool {
        self.edges.iter().any(Input::has_notices)
    }

    /// What the edges have to report, by port.
    pub fn take_notices(&mut self) -> Vec<EdgeReport> {
        self.news = false;
        if !self.has_notices() {
            return Vec::new();
        }
        let mut reports = Vec::new();
        for (port, edge) in self.edges.iter_mut().enumerate() {
            let port = Port(port as u16);
            let report = |lane| move |notice| EdgeReport { port, lane, notice };
            reports.extend(edge.data.take_notices().map(report(Lane::Data)));
            if let Some(telemetry) = &mut edge.telemetry {
                reports.extend(telemetry.take_notices().map(report(Lane::Telemetry)));
            }
        }
        reports
    }

    /// What has happened on the edge at `port` so far.
    pub fn counters(&self, port: Port) -> EdgeCounters {
        self.edges[usize::from(port.0)].data.counters()
    }

    /// When an event that waits for more of its kind is due.
    pub fn next_due(&self) -> Option<Monotonic> {
        let now = self.now();
        let due = self.edges.iter().filter_map(|edge| edge.data.next_due(now));
        due.min()
    }

    /// Gives up what is here of a synchronised group that was lost on another edge.
    pub fn lose_group(&mut self, port: Port, group: u64) {
        let _lost_before = self.edges[usize::from(port.0)].data.lose_group(group);
    }

    /// Has the node reset before the edge's next event: its sync domain has a break.
    pub fn reset(&mut self, port: Port, reason: BreakReason) {
        self.edges[usize::from(port.0)].data.reset(reason);
    }

    /// The edge whose oldest event came first; the first of equals.
    fn oldest_edge(&self, now: Monotonic) -> Option<usize> {
        let ready = self.edges.iter().enumerate();
        let ready = ready.filter(|(_, edge)| edge.data.is_ready(now) && !self.holds(edge, now));
        let oldest = ready.min_by_key(|(_, edge)| edge.data.oldest());
        oldest.map(|(port, _)| port)
    }

    /// Whether the edge's next event is audio that there is no room for.
    fn holds(&self, edge: &Input, now: Monotonic) -> bool {
        let is_next = |queued: &Queued| is_audio(&queued.event.payload);
        self.room == 0 && edge.data.next(now).is_some_and(is_next)
    }

    fn pop_data(&mut self, now: Monotonic) -> Option<Arrival> {
        while let Some(at) = self.oldest_edge(now) {
            let (port, edge) = (Port(at as u16), &mut self.edges[at]);
            if let Some(reason) = edge.data.take_break(now) {
                return Some(Arrival::Break { port, reason });
            }
            let popped = edge.data.pop(now);
            self.news |= edge.has_news(now);
            if let Some(meter) = &edge.meter {
                meter.stands(edge.data.len(), edge.data.counters());
                if let Some(queued) = &popped {
                    meter.took(edge.data.age(now, queued));
                }
            }
            // What had waited too long has been dropped and counted; look again.
            if let Some(queued) = popped {
                if is_audio(&queued.event.payload) {
                    self.room = self.room.saturating_sub(1);
                }
                return Some(returned(port, queued));
            }
        }
        None
    }

    fn pop_telemetry(&mut self, now: Monotonic) -> Option<Arrival> {
        for (port, edge) in self.edges.iter_mut().enumerate() {
            if let Some(telemetry) = &mut edge.telemetry
                && let Some(queued) = telemetry.pop(now)
            {
                return Some(returned(Port(port as u16), queued));
            }
        }
        None
    }
}

/// What takes a place in a player's queue: sound, and the end of it.
pub(crate) fn is_audio(payload: &Payload) -> bool {
    Stream::of(payload) == Some(Stream::Audio)
}

fn returned(port: Port, queued: Queued) -> Arrival {
    Arrival::Event {
        port,
        event: queued.event,
        arrived: queued.arrived,
        patience: Patience::Left,
    }
}

impl Buffer for Inputs {
    type Item = Arrival;

    fn offer(&mut self, item: Arrival) -> Offer<Arrival> {
        let now = self.now();
        self.rested(now);
        match item {
            Arrival::Event {
                port,
                event,
                arrived: _,
                patience,
            } => {
                let edge = &mut self.edges[usize::from(port.0)];
                let is_frame = matches!(event.payload, Payload::AudioChunk(_));
                let is_held = self.room == 0 && is_audio(&event.payload);
                let queued = edge.keys.queued(event, now);
                let lane = lane_of(&queued.event.payload);
                let offered = match &mut edge.telemetry {
                    Some(telemetry) if lane == Lane::Telemetry => telemetry.offer(now, queued),
                    Some(_) | None => edge.data.send(now, queued, patience),
                };
                edge.measure();
                self.news |= edge.has_news(now);
                // What else comes that way, the end of the audio or a mark, never rests.
                self.pressing |= !(is_held || is_frame && edge.rests(self.patience));
                self.account();
                match offered {
                    Offered::Queued | Offered::Merged => Offer::Queued,
                    Offered::Displaced(older) => Offer::Displaced(returned(port, older)),
                    Offered::Blocked(queued) => Offer::Full(returned(port, queued)),
                    // Refused and counted by the edge: for the sender it is done with.
                    Offered::Shed(queued) => Offer::Displaced(returned(port, queued)),
                }
            }
            chunk @ Arrival::Chunk { .. } => {
                self.chunks_full = self.chunks.len() >= MAX_WAITING_CHUNKS;
                self.pressing = true;
                if self.chunks_full {
                    Offer::Full(chunk)
                } else {
                    self.chunk_bytes += chunk.bytes();
                    // One more than may wait, for the end of the call.
                    grow(&mut self.chunks, MAX_WAITING_CHUNKS + 1);
                    self.chunks.push_back(chunk);
                    self.account();
                    Offer::Queued
                }
            }
            // The end of a call is never refused: its slot is the call's own. Nobody sends a break.
            end @ (Arrival::CallEnded { .. }
            | Arrival::ToolAnswer { .. }
            | Arrival::Break { .. }) => {
                self.pressing = true;
                self.chunks.push_back(end);
                Offer::Queued
            }
        }
    }

    fn pop(&mut self) -> Option<Arrival> {
        let now = self.now();
        self.rested(now);
        let item = self.pop_next(now);
        self.pressing = item.is_some();
        self.account();
        item
    }

    fn len(&self) -> usize {
        self.chunks.len() + self.edges.iter().map(Input::len).sum::<usize>()
    }

    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.edges.iter().all(Input::is_empty)
    }

    fn is_pressing(&self) -> bool {
        self.pressing
    }

    fn has_news(&self) -> bool {
        self.news
    }

    fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// For provider calls.
    fn has_space(&self) -> bool {
        let most = if self.chunks_full {
            MAX_WAITING_CHUNKS - WAKE_EVERY
        } else {
            MAX_WAITING_CHUNKS - 1
        };
        self.chunks.len() <= most
    }

    /// For senders on the edge at port `part`.
    fn has_space_at(&self, part: usize) -> bool {
        self.edges[part].data.is_open(self.now())
    }
}

#[cfg(test)]
mod tests {
    use rspp_kernel::{graph::Graph, plan::profile};
    use rspp_proto::{
        AudioChunk, Epoch, SampleIndex, SampleRate,
        spec::{MemoryLimits, PipelineSpec},
    };

    use super::*;
    use crate::event::Stamp;

    fn arrival(port: u16, sequence: u64, payload: Payload) -> Arrival {
        let stamp = Stamp {
            turn: None,
            epoch: Epoch::FIRST,
            sequence,
            made: Monotonic::ZERO,
            media: SampleIndex(0),
            segment: 0,
        };
        Arrival::Event {
            port: Port(port),
            event: Event::new(stamp, payload),
            arrived: Monotonic::ZERO,
            patience: Patience::Left,
        }
    }

    fn frame(sequence: u64) -> Arrival {
        let audio = AudioChunk::pcm16(SampleRate::HZ_16000, vec![0; 640].into());
        arrival(0, sequence, Payload::AudioChunk(audio))
    }

    fn taken(inputs: &mut Inputs) -> Vec<u64> {
        std::iter::from_fn(|| inputs.pop())
            .map(|arrival| match arrival {
                Arrival::Event { event, .. } => event.stamp.sequence,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// F-142, F-148: a node that only keeps audio for now is woken for every fifth frame, and for whatever
    /// else comes; it gets everything, in the order in which it came.
    #[tokio::test(start_paused = true)]
    async fn audio_rests_until_something_presses() {
        let graph = Graph::compile(&PipelineSpec::simple()).expect("the template is good");
        let (_, heard) = graph.edges().next().expect("the user is heard");
        let policy = profile::edge_buffer(&graph, heard);
        let edges = [PortType::Audio, PortType::Text].map(|carries| InputEdge {
            policy: &policy,
            carries,
            meter: None,
        });
        let share = Share::of(&Arc::new(
            crate::memory::Meter::new(MemoryLimits::default()),
        ));
        let mut inputs = Inputs::new(Clock::start(), share, &profile::flow_control(), edges);
        let offer = |inputs: &mut Inputs, arrival| assert_eq!(inputs.offer(arrival), Offer::Queued);

        offer(&mut inputs, frame(1));
        assert!(
            inputs.is_pressing(),
            "nothing rests unless the node says so"
        );
        assert_eq!(taken(&mut inputs), [1]);

        inputs.rest(4);
        for n in 2..=5 {
            offer(&mut inputs, frame(n));
            assert!(!inputs.is_pressing(), "{n}");
            tokio::time::advance(std::time::Duration::from_millis(20)).await;
        }
        offer(&mut inputs, frame(6));
        assert!(inputs.is_pressing());
        assert_eq!(taken(&mut inputs), [2, 3, 4, 5, 6]);

        // What rests is wanted at once when the node says so.
        offer(&mut inputs, frame(6));
        assert!(!inputs.is_pressing());
        inputs.rest(0);
        assert!(inputs.is_pressing());
        inputs.rest(4);
        assert_eq!(taken(&mut inputs), [6]);

        // What is no frame presses, whichever way it comes.
        offer(&mut inputs, arrival(0, 7, Payload::AudioEnd));
        assert!(inputs.is_pressing());
        assert_eq!(taken(&mut inputs), [7]);

        // A long pause, and then something that the node is woken for.
        offer(&mut inputs, frame(8));
        tokio::time::advance(std::time::Duration::from_mins(1)).await;
        offer(&mut inputs, frame(9));
        assert!(!inputs.is_pressing());
        offer(&mut inputs, arrival(1, 10, Payload::TextEnd));
        assert!(inputs.is_pressing());
        assert_eq!(taken(&mut inputs), [8, 9, 10]);
        assert_eq!(inputs.counters(Port(0)).dropped, 0);
    }

    /// P23, F-142: audio that there is no room for waits on its own edge, wakes nobody, and keeps no text waiting.
    #[tokio::test(start_paused = true)]
    async fn audio_without_room_keeps_no_text_waiting() {
        let graph = Graph::compile(&PipelineSpec::simple()).expect("the template is good");
        let (_, heard) = graph.edges().next().expect("the user is heard");
        let policy = profile::edge_buffer(&graph, heard);
        let edges = [PortType::Audio, PortType::Text].map(|carries| InputEdge {
            policy: &policy,
            carries,
            meter: None,
        });
        let share = Share::of(&Arc::new(
            crate::memory::Meter::new(MemoryLimits::default()),
        ));
        let mut inputs = Inputs::new(Clock::start(), share, &profile::flow_control(), edges);
        inputs.open(2);
        for n in 1..=3 {
            assert_eq!(inputs.offer(frame(n)), Offer::Queued);
        }
        assert_eq!(taken(&mut inputs), [1, 2]);
        assert_eq!(inputs.offer(frame(4)), Offer::Queued);
        assert!(!inputs.is_pressing());
        assert_eq!(inputs.offer(arrival(1, 5, Payload::TextEnd)), Offer::Queued);
        assert!(inputs.is_pressing());
        assert_eq!(taken(&mut inputs), [5]);
        inputs.open(1);
        assert!(inputs.is_pressing());
        assert_eq!(taken(&mut inputs), [3]);
        assert_eq!(inputs.forget(|event| event.stamp.sequence == 4), 1);
        assert!(inputs.is_empty());
    }
}
