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
use rspp_proto::{
    NodeId,
    spec::{NodeKind, NodeSpec, SandboxPolicy},
};
use thiserror::Error;

use super::{Node, Package, PackageError, ProcessCommand};

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
    /// The package that it is from, if it is from one.
    package: Option<Arc<Package>>,
}

/// Why nodes cannot be of the package that their pipeline names.
#[derive(Debug, Error)]
pub enum PinError {
    /// The package's files are others by now.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The pipeline wants another.
    #[error("`{kind}` is {found} here, and the pipeline wants {wanted}")]
    Another {
        /// The kind.
        kind: String,
        /// What the pipeline says.
        wanted: String,
        /// The package's digest.
        found: String,
    },
    /// The kind is in no package.
    #[error("`{kind}` is in no package here, and the pipeline names its digest")]
    NoPackage {
        /// The kind.
        kind: String,
    },
}

impl NodeRegistry {
    /// Adds a kind; one of the same name is replaced.
    pub fn register(&mut self, name: impl Into<String>, factory: NodeFactory) -> &mut Self {
        let kind = Kind {
            make: factory,
            command: None,
            package: None,
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
            package: None,
        };
        self.custom.insert(name.into(), kind);
        self
    }

    /// Adds the kind of a package, which pipelines name with its version (F-011, F-121).
    pub fn register_package(&mut self, package: Package) -> &mut Self {
        let command = Arc::new(package.command());
        let name = package.kind();
        let kind = Kind {
            make: command.factory(),
            command: Some(command),
            package: Some(Arc::new(package)),
        };
        self.custom.insert(name, kind);
        self
    }

    /// Writes down which package does the work of each node, as it is now. What a pipeline says itself
    /// must be so.
    pub(crate) fn pin<'a>(
        &self,
        nodes: impl IntoIterator<Item = &'a mut NodeSpec>,
    ) -> Result<(), (NodeId, PinError)> {
        for node in nodes {
            let NodeKind::Custom(name) = &node.kind else {
                continue;
            };
            let package = self.custom.get(name).and_then(|kind| kind.package.as_ref());
            let wanted = node.digest.take();
            let refused = |error| (node.id.clone(), error);
            node.digest = match (package, wanted) {
                (None, None) => None,
                // A kind that nobody knows is told of elsewhere, with those that there are.
                (None, Some(wanted)) if !self.custom.contains_key(name) => Some(wanted),
                (None, Some(_)) => {
                    return Err(refused(PinError::NoPackage { kind: name.clone() }));
                }
                (Some(package), wanted) => {
                    package.verify().map_err(|error| refused(error.into()))?;
                    let found = package.digest().to_owned();
                    if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
                        let kind = name.clone();
                        return Err(refused(PinError::Another {
                            kind,
                            wanted,
                            found,
                        }));
                    }
                    Some(found)
                }
            };
        }
        Ok(())
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
