//! What each kind of node takes and sends (F-003).

use rspp_proto::spec::{NodeKind, PortType};

use super::Role;

/// The types that a node of this kind takes.
pub fn accepts(kind: &NodeKind) -> &'static [PortType] {
    match kind {
        NodeKind::Vad => &[PortType::Audio],
        NodeKind::TurnDetector => &[PortType::Audio, PortType::Text, PortType::Speech],
        NodeKind::Stt => &[PortType::Audio, PortType::Speech],
        NodeKind::Llm | NodeKind::Segmenter | NodeKind::Guard | NodeKind::Tts => &[PortType::Text],
        NodeKind::Passthrough | NodeKind::Merge | NodeKind::Select | NodeKind::Custom(_) => {
            &[PortType::Any]
        }
    }
}

/// The types that a node of this kind sends. What only forwards sends what it takes, see
/// [`super::Graph::compile`].
pub fn emits(kind: &NodeKind) -> &'static [PortType] {
    match kind {
        NodeKind::Vad => &[PortType::Speech],
        NodeKind::TurnDetector => &[PortType::Text, PortType::Speech],
        NodeKind::Stt | NodeKind::Llm | NodeKind::Segmenter | NodeKind::Guard => &[PortType::Text],
        NodeKind::Tts => &[PortType::Audio],
        NodeKind::Passthrough | NodeKind::Merge | NodeKind::Select | NodeKind::Custom(_) => {
            &[PortType::Any]
        }
    }
}

/// Whether a node of this kind sends only what came in.
pub(super) fn forwards(kind: &NodeKind) -> bool {
    match kind {
        NodeKind::Passthrough | NodeKind::Merge | NodeKind::Select => true,
        NodeKind::Vad
        | NodeKind::TurnDetector
        | NodeKind::Stt
        | NodeKind::Llm
        | NodeKind::Segmenter
        | NodeKind::Guard
        | NodeKind::Tts
        | NodeKind::Custom(_) => false,
    }
}

pub(super) fn role_accepts(role: &Role) -> &'static [PortType] {
    match role {
        Role::Ingress => &[],
        Role::Egress => &[PortType::Audio, PortType::Text],
        Role::Node(spec) => accepts(&spec.kind),
    }
}

pub(super) fn role_emits(role: &Role) -> &'static [PortType] {
    match role {
        Role::Ingress => &[PortType::Audio, PortType::Text, PortType::Any],
        Role::Egress => &[],
        Role::Node(spec) => emits(&spec.kind),
    }
}

/// Whether a port with these types lets `carried` through. Only a port of any type lets "any"
/// through.
pub(super) fn fits(port: &[PortType], carried: PortType) -> bool {
    port.contains(&PortType::Any) || port.contains(&carried)
}
