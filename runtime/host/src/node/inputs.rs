//! A node's data lane: one buffer for each edge that leads to it, and one for its provider calls.
//!
//! Edges keep their own policies; between edges, what came first is taken first.

use std::collections::VecDeque;

use rspp_actors::{Buffer, Clock, Offer};
use rspp_kernel::edge::{EdgeBuffer, EdgeCounters, EdgeNotice, Offered};
use rspp_proto::{
    Monotonic,
    spec::{EdgeBufferPolicy, Strategy},
};

use crate::event::{Arrival, Event, Port, Queued};

/// Pieces of provider answers that may wait; a provider call waits for space, it never loses any.
const MAX_WAITING_CHUNKS: usize = 64;

/// The data lane of a node.
#[derive(Debug)]
pub struct Inputs {
    clock: Clock,
    edges: Vec<EdgeBuffer<Queued>>,
    /// Edges on which senders wait instead of losing events.
    blocking: Vec<Blocking>,
    chunks: VecDeque<Arrival>,
    chunks_full: bool,
}

/// An edge on which senders wait.
#[derive(Debug)]
struct Blocking {
    port: usize,
    /// How many events it held when it last had no room; `None` once it had room again.
    full_at: Option<usize>,
}

/// Events that leave a full lane before senders are woken: each wake-up costs more than what it
/// then sends, so one for each free place would be mostly waking.
const WAKE_EVERY: usize = 8;

impl Blocking {
    fn low_mark(full_at: usize) -> usize {
        full_at - WAKE_EVERY.min(full_at / 2)
    }
}

impl Inputs {
    /// Buffers for edges under `policies`, in port order.
    pub fn new<'a>(clock: Clock, policies: impl IntoIterator<Item = &'a EdgeBufferPolicy>) -> Self {
        let mut blocking = Vec::new();
        let mut edges = Vec::new();
        for (port, policy) in policies.into_iter().enumerate() {
            if policy.strategy == Strategy::Block {
                blocking.push(Blocking {
                    port,
                    full_at: None,
                });
            }
            edges.push(EdgeBuffer::new(policy));
        }
        // A node has few inputs, and a buffer is large to keep room for.
        edges.shrink_to_fit();
        Self {
            clock,
            edges,
            blocking,
            chunks: VecDeque::new(),
            chunks_full: false,
        }
    }

    /// Notes whether an offer to the edge at `port` found room.
    fn note_room(&mut self, port: Port, has_room: bool) {
        let at = usize::from(port.0);
        let full_at = (!has_room).then(|| self.edges[at].len());
        if let Some(edge) = self.blocking.iter_mut().find(|edge| edge.port == at) {
            edge.full_at = full_at;
        }
    }

    fn now(&self) -> Monotonic {
        Monotonic::from_duration(self.clock.now())
    }

    /// Forgets everything that waits, on a cancel. Returns how many items that were.
    pub fn clear(&mut self) -> u64 {
        let now = self.now();
        let chunks = self.chunks.len() as u64;
        self.chunks.clear();
        let events: u64 = self.edges.iter_mut().map(|edge| edge.clear(now)).sum();
        events + chunks
    }

    /// Whether an edge has something to report.
    pub fn has_notices(&self) -> bool {
        self.edges.iter().any(EdgeBuffer::has_notices)
    }

    /// What the edges have to report, by port.
    pub fn take_notices(&mut self) -> Vec<(Port, EdgeNotice)> {
        let mut notices = Vec::new();
        for (port, edge) in self.edges.iter_mut().enumerate() {
            notices.extend(edge.take_notices().map(|n| (Port(port as u16), n)));
        }
        notices
    }

    /// What has happened on the edge at `port` so far.
    pub fn counters(&self, port: Port) -> EdgeCounters {
        self.edges[usize::from(port.0)].counters()
    }

    /// How long a sender may wait for space on the edge at `port`.
    pub fn max_block_time(&self, port: Port) -> std::time::Duration {
        self.edges[usize::from(port.0)].max_block_time()
    }

    /// Counts an event that waited in vain for space as dropped.
    pub fn give_up(&mut self, port: Port, event: Event) {
        let arrived = self.now();
        self.edges[usize::from(port.0)].give_up(&Queued { event, arrived });
    }

    /// The edge whose oldest event has waited longest; the first of equals.
    fn oldest_edge(&self, now: Monotonic) -> Option<usize> {
        let mut oldest = None;
        for (port, edge) in self.edges.iter().enumerate() {
            let waited = edge.waited(now);
            if !edge.is_empty() && oldest.is_none_or(|(longest, _)| waited > longest) {
                oldest = Some((waited, port));
            }
        }
        oldest.map(|(_, port)| port)
    }
}

fn returned(port: Port, queued: Queued) -> Arrival {
    Arrival::Event {
        port,
        event: queued.event,
        arrived: queued.arrived,
    }
}

impl Buffer for Inputs {
    type Item = Arrival;

    fn offer(&mut self, item: Arrival) -> Offer<Arrival> {
        let now = self.now();
        match item {
            Arrival::Event {
                port,
                event,
                arrived: _,
            } => {
                let queued = Queued {
                    event,
                    arrived: now,
                };
                let offered = self.edges[usize::from(port.0)].offer(now, queued);
                if !self.blocking.is_empty() {
                    self.note_room(port, !matches!(offered, Offered::Blocked(_)));
                }
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
                if self.chunks_full {
                    Offer::Full(chunk)
                } else {
                    self.chunks.push_back(chunk);
                    Offer::Queued
                }
            }
            // The end of a call is never refused: its slot is the call's own.
            end @ Arrival::CallEnded { .. } => {
                self.chunks.push_back(end);
                Offer::Queued
            }
        }
    }

    fn pop(&mut self) -> Option<Arrival> {
        // Answers before questions: they are what the node is waiting for.
        if let Some(chunk) = self.chunks.pop_front() {
            return Some(chunk);
        }
        let now = self.now();
        while let Some(port) = self.oldest_edge(now) {
            // What had waited too long has been dropped and counted; look again.
            if let Some(queued) = self.edges[port].pop(now) {
                return Some(returned(Port(port as u16), queued));
            }
        }
        None
    }

    fn len(&self) -> usize {
        self.chunks.len() + self.edges.iter().map(EdgeBuffer::len).sum::<usize>()
    }

    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.edges.iter().all(EdgeBuffer::is_empty)
    }

    fn has_space(&self) -> bool {
        let chunks_from = if self.chunks_full {
            Blocking::low_mark(MAX_WAITING_CHUNKS)
        } else {
            MAX_WAITING_CHUNKS - 1
        };
        if self.chunks.len() > chunks_from {
            return false;
        }
        let now = self.now();
        self.blocking.iter().all(|blocking| {
            let edge = &self.edges[blocking.port];
            let low = blocking.full_at.map(Blocking::low_mark);
            low.is_none_or(|low| edge.len() <= low) && edge.has_space(now)
        })
    }
}
