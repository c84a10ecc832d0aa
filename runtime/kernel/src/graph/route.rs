//! Which edges an event takes (F-004, F-018).

use std::collections::BTreeMap;

use rspp_proto::{
    Payload, Speaker,
    spec::{Comparison, Condition, PortType},
};
use serde_json::Value;

use super::{EdgeIx, Graph, NodeIx, Role, Stream};

/// What an attribute is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Attribute<'a> {
    /// A number.
    Number(f64),
    /// A text.
    Text(&'a str),
    /// A truth value.
    Truth(bool),
}

impl<'a> Attribute<'a> {
    /// Reads a JSON value; `None` for null, lists and maps.
    pub fn of(value: &'a Value) -> Option<Self> {
        match value {
            Value::Number(number) => number.as_f64().map(Self::Number),
            Value::String(text) => Some(Self::Text(text)),
            Value::Bool(truth) => Some(Self::Truth(*truth)),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

/// Where conditions look attributes up.
pub trait Attributes {
    /// The attribute of that name, if there is one.
    fn attribute(&self, name: &str) -> Option<Attribute<'_>>;
}

impl Attributes for BTreeMap<String, Value> {
    fn attribute(&self, name: &str) -> Option<Attribute<'_>> {
        self.get(name).and_then(Attribute::of)
    }
}

/// An event as routing sees it: its payload's attributes before its session's.
#[derive(Clone, Copy, Debug)]
pub struct EventView<'a> {
    payload: &'a Payload,
    session: &'a BTreeMap<String, Value>,
}

impl<'a> EventView<'a> {
    /// A view of `payload` within a session that has these attributes.
    pub fn new(payload: &'a Payload, session: &'a BTreeMap<String, Value>) -> Self {
        Self { payload, session }
    }

    /// The type of edge that the event rides; `None` for what rides only edges of any type.
    fn port(&self) -> Option<PortType> {
        match self.payload {
            Payload::AudioChunk(_) | Payload::AudioEnd => Some(PortType::Audio),
            Payload::Text(_) | Payload::TextEnd => Some(PortType::Text),
            Payload::Speech(_) => Some(PortType::Speech),
            Payload::Metrics(_) => Some(PortType::Metrics),
            Payload::Debug(_) => Some(PortType::Debug),
            Payload::Error(_) => Some(PortType::Error),
            Payload::Extension(_) => None,
        }
    }

    /// The end of a stream has no attributes, and whoever might have got a piece must get the end.
    fn ends_stream(&self) -> bool {
        Stream::ended_by(self.payload).is_some()
    }
}

impl Attributes for EventView<'_> {
    fn attribute(&self, name: &str) -> Option<Attribute<'_>> {
        if let Payload::Text(chunk) = self.payload {
            let own = match name {
                "confidence" => chunk.confidence.map(|c| Attribute::Number(f64::from(c))),
                "language" => chunk.language.as_deref().map(Attribute::Text),
                "is_final" => Some(Attribute::Truth(chunk.is_final)),
                "speaker" => Some(Attribute::Text(match chunk.speaker {
                    Speaker::User => "user",
                    Speaker::Agent => "agent",
                })),
                _session_attribute => None,
            };
            if own.is_some() {
                return own;
            }
        }
        self.session.attribute(name)
    }
}

/// How it was decided whether an event takes an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The edge has no condition for this event.
    Unconditional,
    /// The condition held. To be recorded (F-018).
    Passed,
    /// The condition did not hold. To be recorded (F-018).
    Refused,
}

/// One edge that an event might take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The edge.
    pub edge: EdgeIx,
    /// Whether it is taken, and why.
    pub decision: Decision,
}

impl Route {
    /// Whether the event takes the edge.
    pub fn is_taken(&self) -> bool {
        match self.decision {
            Decision::Unconditional | Decision::Passed => true,
            Decision::Refused => false,
        }
    }

    /// Whether there was a choice, which is evidence.
    pub fn is_choice(&self) -> bool {
        match self.decision {
            Decision::Unconditional => false,
            Decision::Passed | Decision::Refused => true,
        }
    }
}

impl Graph {
    /// The edges of matching type that leave `node`, in the order of the spec, each with the
    /// decision whether `event` takes it.
    ///
    /// Conditions on edges into a select node are that node's business. The end of a stream takes
    /// every edge of its type: whether any of the stream went that way is seen where it comes to
    /// ([`Ended`](super::Ended)).
    pub fn routes<'a>(
        &'a self,
        node: NodeIx,
        event: &'a EventView<'a>,
    ) -> impl Iterator<Item = Route> + 'a {
        self.routes_along(&self.node(node).outputs, event)
    }

    /// The same over given edges, for a node that stands in for another.
    pub fn routes_along<'a>(
        &'a self,
        edges: &'a [EdgeIx],
        event: &'a EventView<'a>,
    ) -> impl Iterator<Item = Route> + 'a {
        let port = event.port();
        edges.iter().filter_map(move |&ix| {
            let edge = self.edge(ix);
            let rides = edge.carries == PortType::Any || port == Some(edge.carries);
            rides.then(|| Route {
                edge: ix,
                decision: match &edge.when {
                    Some(condition) if !event.ends_stream() && !self.selects(edge.to) => {
                        if holds(condition, event) {
                            Decision::Passed
                        } else {
                            Decision::Refused
                        }
                    }
                    Some(_) | None => Decision::Unconditional,
                },
            })
        })
    }

    /// Whether conditions on edges to `node` are that node's business.
    pub fn selects(&self, node: NodeIx) -> bool {
        match &self.node(node).role {
            Role::Node(spec) => spec.kind == rspp_proto::spec::NodeKind::Select,
            Role::Ingress | Role::Egress => false,
        }
    }
}

/// Whether a condition holds. An attribute that is absent passes no condition; one of another type
/// than the value is merely unequal to it.
pub fn holds(condition: &Condition, attributes: &impl Attributes) -> bool {
    let Some(is) = attributes.attribute(&condition.attribute) else {
        return false;
    };
    let Some(wanted) = Attribute::of(&condition.value) else {
        return false;
    };
    let ordering = match (is, wanted) {
        (Attribute::Number(is), Attribute::Number(wanted)) => is.partial_cmp(&wanted),
        (Attribute::Text(is), Attribute::Text(wanted)) => Some(is.cmp(wanted)),
        (Attribute::Truth(is), Attribute::Truth(wanted)) => Some(is.cmp(&wanted)),
        (Attribute::Number(_), Attribute::Text(_) | Attribute::Truth(_))
        | (Attribute::Text(_), Attribute::Number(_) | Attribute::Truth(_))
        | (Attribute::Truth(_), Attribute::Number(_) | Attribute::Text(_)) => None,
    };
    match (condition.is, ordering) {
        (Comparison::Ne, None) => true,
        (_, None) => false,
        (Comparison::Eq, Some(ordering)) => ordering.is_eq(),
        (Comparison::Ne, Some(ordering)) => ordering.is_ne(),
        (Comparison::Lt, Some(ordering)) => ordering.is_lt(),
        (Comparison::Le, Some(ordering)) => ordering.is_le(),
        (Comparison::Gt, Some(ordering)) => ordering.is_gt(),
        (Comparison::Ge, Some(ordering)) => ordering.is_ge(),
    }
}

/// What is wrong with a condition, before any event comes.
pub(super) fn problem(condition: &Condition) -> Option<&'static str> {
    if condition.attribute.trim().is_empty() {
        return Some("the condition needs an `attribute`, e.g. `confidence`");
    }
    let Some(value) = Attribute::of(&condition.value) else {
        return Some("a condition compares with a number, a text or a truth value");
    };
    match condition.is {
        Comparison::Eq | Comparison::Ne => None,
        Comparison::Lt | Comparison::Le | Comparison::Gt | Comparison::Ge => match value {
            Attribute::Number(_) => None,
            Attribute::Text(_) | Attribute::Truth(_) => {
                Some("only numbers can be compared by order; use `eq` or `ne`")
            }
        },
    }
}
