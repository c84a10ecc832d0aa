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
use rspp_proto::spec::{NodeKind, NodeSpec, SandboxPolicy};

use super::{Node, ProcessCommand};

/// Makes a node of a registered kind from its place in the pipeline.
pub type NodeFactory = Arc<dyn Fn(&NodeSpec) -> Box<dyn Node> + Send + Sync>;

/// The kinds of nodes that a pipeline may name, beside the built-in ones (F-011).
#[derive(Clone, Default)]
pub struct NodeRegistry {
    custom: BTreeMap<String, Kind>,
}

/// A registered kind.
#[derive(Clone)]
struct Kind {
    make: NodeFactory,
    /// The program that serves it, if it is none of this process.
    command: Option<Arc<ProcessCommand>>,
}

impl NodeRegistry {
    /// Adds a kind; one of the same name is replaced.
    pub fn register(&mut self, name: impl Into<String>, factory: NodeFactory) -> &mut Self {
        let kind = Kind {
            make: factory,
            command: None,
        };
        self.custom.insert(name.into(), kind);
        self
    }

    /// Adds a kind whose nodes run in processes of their own; one of the same name is replaced (F-122).
    pub fn register_process(
        &mut self,
        name: impl Into<String>,
        command: ProcessCommand,
    ) -> &mut Self {
        let command = Arc::new(command);
        let kind = Kind {
            make: command.factory(),
            command: Some(command),
        };
        self.custom.insert(name.into(), kind);
        self
    }

    /// Whether nodes of this kind can be kept as a plan asks for, on this machine; says why not (F-124).
    pub(crate) fn check_sandbox(
        &self,
        kind: &NodeKind,
        asked: Option<SandboxPolicy>,
    ) -> Result<(), String> {
        let command = match kind {
            NodeKind::Custom(name) => self.custom.get(name).and_then(|kind| kind.command.as_ref()),
            NodeKind::Vad
            | NodeKind::TurnDetector
            | NodeKind::Stt
            | NodeKind::Llm
            | NodeKind::Segmenter
            | NodeKind::Guard
            | NodeKind::Tts
            | NodeKind::Passthrough
            | NodeKind::Merge
            | NodeKind::Select => None,
        };
        match command {
            Some(command) => command
                .sandbox_under(asked)
                .map_or(Ok(()), |sandbox| sandbox.check(&command.program))
                .map_err(|error| error.to_string()),
            None if asked.is_none() => Ok(()),
            None => Err("runs in the runtime's own process, where no sandbox holds it".to_owned()),
        }
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
            NodeKind::Custom(name) => {
                return self.custom.get(name).map(|kind| (kind.make)(spec));
            }
        })
    }
}

impl fmt::Debug for NodeRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.custom.keys()).finish()
    }
}
