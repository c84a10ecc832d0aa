//! The nodes that come with the runtime, one per file, and the registry of all kinds.

mod guard;
mod llm;
mod merge;
mod passthrough;
mod segmenter;
mod select;
mod stt;
mod tts;
mod turn_detector;
mod vad;

use std::{collections::BTreeMap, fmt, sync::Arc};

use rspp_kernel::graph::{Graph, NodeIx};
use rspp_proto::spec::{NodeKind, NodeSpec};

use super::Node;

/// Makes a node of a registered kind from its place in the pipeline.
pub type NodeFactory = Arc<dyn Fn(&NodeSpec) -> Box<dyn Node> + Send + Sync>;

/// The kinds of nodes that a pipeline may name, beside the built-in ones (F-011).
#[derive(Clone, Default)]
pub struct NodeRegistry {
    custom: BTreeMap<String, NodeFactory>,
}

impl NodeRegistry {
    /// Adds a kind; one of the same name is replaced.
    pub fn register(&mut self, name: impl Into<String>, factory: NodeFactory) -> &mut Self {
        self.custom.insert(name.into(), factory);
        self
    }

    /// Whether nodes of this kind can be made.
    pub fn knows(&self, kind: &NodeKind) -> bool {
        match kind {
            NodeKind::Custom(name) => self.custom.contains_key(name),
            NodeKind::Vad
            | NodeKind::TurnDetector
            | NodeKind::Stt
            | NodeKind::Llm
            | NodeKind::Segmenter
            | NodeKind::Guard
            | NodeKind::Tts
            | NodeKind::Passthrough
            | NodeKind::Merge
            | NodeKind::Select => true,
        }
    }

    /// The registered names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.custom.keys().map(String::as_str)
    }

    /// A new node for a place in the graph; `None` for an unknown custom kind.
    pub(crate) fn make(&self, graph: &Graph, ix: NodeIx, spec: &NodeSpec) -> Option<Box<dyn Node>> {
        Some(match &spec.kind {
            NodeKind::Vad => Box::<vad::Vad>::default(),
            NodeKind::TurnDetector => Box::<turn_detector::TurnDetector>::default(),
            NodeKind::Stt => Box::<stt::Stt>::default(),
            NodeKind::Llm => Box::<llm::Llm>::default(),
            NodeKind::Segmenter => Box::<segmenter::Segmenter>::default(),
            NodeKind::Guard => Box::<guard::Guard>::default(),
            NodeKind::Tts => Box::<tts::Tts>::default(),
            NodeKind::Passthrough => Box::new(passthrough::Passthrough),
            NodeKind::Merge => Box::new(merge::MergeNode::new(graph, ix, spec)),
            NodeKind::Select => Box::new(select::SelectNode::new(graph, ix)),
            NodeKind::Custom(name) => return self.custom.get(name).map(|make| make(spec)),
        })
    }
}

impl fmt::Debug for NodeRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.custom.keys()).finish()
    }
}
