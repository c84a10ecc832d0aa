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
    /// The stream that `payload` ends, if it ends one.
    pub fn ended_by(payload: &Payload) -> Option<Self> {
        match payload {
            Payload::TextEnd => Some(Self::Text),
            Payload::AudioEnd => Some(Self::Audio),
            Payload::AudioChunk(_)
            | Payload::Text(_)
            | Payload::Speech(_)
            | Payload::Metrics(_)
            | Payload::Debug(_)
            | Payload::Error(_)
            | Payload::Extension(_) => None,
        }
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

/// The ends that are still to come to one place in one turn, by the ports that they come by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    due: BTreeSet<(Stream, u16)>,
}

impl Ends {
    /// Takes in an end that came by `port`. Whether the stream is over there: no other end of it is due.
    pub fn ended(&mut self, port: u16, stream: Stream) -> bool {
        self.due.remove(&(stream, port));
        !self.due.iter().any(|(of, _)| *of == stream)
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
        Ends { due: due.collect() }
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
