//! When a place in the graph is at its end for a turn: when all that leads there is.

use std::collections::BTreeSet;

use rspp_proto::{
    Payload,
    spec::{NodeKind, PortType},
};

use super::{EdgeIx, Graph, NodeIx, Scope, port};

/// What has an end of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Ends with `text_end`.
    Text,
    /// Ends with `audio_end`.
    Audio,
}

impl Stream {
    /// The stream that `payload` is part of, be it a piece or the end; `None` for what stands by itself.
    pub fn of(payload: &Payload) -> Option<Self> {
        match payload {
            Payload::Text(_) | Payload::TextEnd => Some(Self::Text),
            Payload::AudioChunk(_) | Payload::AudioEnd => Some(Self::Audio),
            Payload::Speech(_)
            | Payload::Metrics(_)
            | Payload::Debug(_)
            | Payload::Error(_)
            | Payload::Extension(_) => None,
        }
    }

    /// The stream that `payload` ends, if it ends one.
    pub fn ended_by(payload: &Payload) -> Option<Self> {
        Self::of(payload).filter(|stream| stream.end() == *payload)
    }

    /// What ends it.
    pub fn end(self) -> Payload {
        match self {
            Self::Text => Payload::TextEnd,
            Self::Audio => Payload::AudioEnd,
        }
    }

    fn port(self) -> PortType {
        match self {
            Self::Text => PortType::Text,
            Self::Audio => PortType::Audio,
        }
    }
}

/// What an end means at the place that it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The stream goes on by another edge.
    Early,
    /// The stream is over.
    Over,
    /// Nothing more comes of a stream of which nothing came, since it went another way (F-018). Whoever stands
    /// there has nothing to end.
    Unbegun,
}

/// The ends that are still to come to one place in one turn, by the ports that they come by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    due: BTreeSet<(Stream, u16)>,
    /// What may go another way, and has so far.
    left_out: BTreeSet<(Stream, u16)>,
    /// The same after an end, where streams begin anew: what listens outlives a turn.
    again: BTreeSet<(Stream, u16)>,
    /// The streams that have come here.
    begun: BTreeSet<Stream>,
}

impl Ends {
    /// Takes in a piece that came by `port`.
    pub fn came(&mut self, port: u16, stream: Stream) {
        self.left_out.remove(&(stream, port));
        self.begun.insert(stream);
    }

    /// Takes in an end that came by `port`, and says what it means.
    pub fn ended(&mut self, port: u16, stream: Stream) -> Ended {
        let end = (stream, port);
        let has_come = !self.left_out.contains(&end);
        self.due.remove(&end);
        if has_come {
            self.begun.insert(stream);
        }
        if self.due.iter().any(|(of, _)| *of == stream) {
            return Ended::Early;
        }
        let has_begun = if self.again.contains(&end) {
            self.left_out.insert(end);
            has_come
        } else {
            self.begun.contains(&stream)
        };
        if has_begun {
            Ended::Over
        } else {
            Ended::Unbegun
        }
    }

    /// The ends that are still to come.
    pub fn due(&self) -> impl Iterator<Item = (Stream, u16)> + '_ {
        self.due.iter().copied()
    }

    /// Whether none is.
    pub fn is_over(&self) -> bool {
        self.due.is_empty()
    }
}

impl Graph {
    /// The ends that come to `node` in each turn. By an edge that the turn's words are handed in by none
    /// comes: they are handed in as a whole.
    pub fn ends(&self, node: NodeIx) -> Ends {
        let inputs = self.node(node).inputs.iter();
        let due = inputs.enumerate().flat_map(|(at, ix)| {
            let streams = [Stream::Text, Stream::Audio].into_iter();
            let brought = streams.filter(|stream| self.brings_end(*ix, *stream));
            brought.map(move |stream| (stream, at as u16))
        });
        let due = due.collect();
        let left_out: BTreeSet<_> = self.left_out(node).collect();
        let again = match self.node(node).scope {
            Scope::Session => left_out.clone(),
            Scope::Turn => BTreeSet::new(),
        };
        Ends {
            due,
            left_out,
            again,
            begun: BTreeSet::new(),
        }
    }

    /// Whether a whole stream that could come to `node` may go another way.
    pub fn may_be_left_out(&self, node: NodeIx) -> bool {
        self.left_out(node).next().is_some()
    }

    fn left_out(&self, node: NodeIx) -> impl Iterator<Item = (Stream, u16)> + '_ {
        let silent = self.may_be_silent();
        let inputs = self.node(node).inputs.iter().enumerate();
        inputs.flat_map(move |(at, ix)| {
            let edge = self.edge(*ix);
            let is_guarded = edge.when.is_some() || silent[edge.from.index()];
            let streams = [Stream::Text, Stream::Audio].into_iter();
            let carried = streams.filter(move |stream| {
                is_guarded && (edge.carries == PortType::Any || edge.carries == stream.port())
            });
            carried.map(move |stream| (stream, at as u16))
        })
    }

    /// Which nodes may have nothing to do although their turn has: all that comes to them has passed a
    /// condition, or another stands in for them and goes its own way.
    fn may_be_silent(&self) -> Vec<bool> {
        let mut silent = vec![false; self.nodes.len()];
        for ix in &self.order {
            let node = self.node(*ix);
            let guarded = |ix: &EdgeIx| {
                let edge = self.edge(*ix);
                edge.when.is_some() || silent[edge.from.index()]
            };
            let is_guarded = !node.inputs.is_empty() && node.inputs.iter().all(guarded);
            let parts = node
                .fallback
                .is_some_and(|standby| !self.node(standby).outputs.is_empty());
            silent[ix.index()] |= is_guarded || parts;
            if let Some(standby) = node.fallback {
                silent[standby.index()] = true;
            }
        }
        silent
    }

    /// Whether `node` is told of each end by itself: a merge knows its sources apart.
    pub fn sees_each_end(&self, node: NodeIx) -> bool {
        self.node(node).kind() == Some(&NodeKind::Merge)
    }

    /// Whether the end of a turn's stream comes along an edge.
    pub fn brings_end(&self, edge: EdgeIx, stream: Stream) -> bool {
        let edge = self.edge(edge);
        let from = self.node(edge.from);
        if from.scope != Scope::Turn {
            return false;
        }
        if edge.carries == stream.port() {
            return true;
        }
        // On an edge of any type comes what its beginning makes, or has itself been brought.
        edge.carries == PortType::Any
            && (port::role_emits(&from.role).contains(&stream.port())
                || from.inputs.iter().any(|ix| self.brings_end(*ix, stream)))
    }
}
