//! A test harness for nodes: events in, what came of them out, in virtual time (F-128).
//!
//! A [`Harness`] says what is put on test and where it stands; [`Harness::start`] makes it with its
//! factory and lets it begin, and the [`Rig`] that comes of it hands events in, lets time pass,
//! cancels, and tells what the node did. The node lives in the same host as in a call, between real
//! edges, under a plan that was resolved as a turn's is: budgets, hooks, panics, standbys, provider
//! calls and state are the runtime's own. Only the session around it is missing.
//!
//! A rig has a thread and a clock of its own. Time stands still but for [`Rig::advance`], nothing is
//! drawn by chance, and whatever is to be done at one moment is done before a call returns: the same
//! test goes the same way each time, and takes no time. Tests are plain `#[test]` functions; a rig is
//! not to be used inside of a tokio runtime.
//!
//! ```
//! use std::time::Duration;
//!
//! use rspp_host::{
//!     Event, Port,
//!     node::{
//!         Node, NodeContext, NodeError, NodeReport, Step,
//!         testing::{Harness, Output, generated},
//!     },
//! };
//! use rspp_kernel::CancelReason;
//! use rspp_proto::Payload;
//!
//! /// Keeps what the model says until a sentence is whole.
//! #[derive(Default)]
//! struct Sentences {
//!     pending: String,
//!     mark: char,
//! }
//!
//! impl Node for Sentences {
//!     fn init<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
//!         let mark = cx.settings().text("mark").unwrap_or(".");
//!         let Some(mark) = mark.chars().next() else {
//!             return Step::Done(Err(NodeError::new("`mark` is empty")));
//!         };
//!         self.mark = mark;
//!         Step::OK
//!     }
//!
//!     fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _: Port, event: Event) -> Step<'a> {
//!         if let Payload::Text(chunk) = &event.payload {
//!             self.pending.push_str(&chunk.text);
//!         }
//!         if self.pending.ends_with(self.mark) || event.payload == Payload::TextEnd {
//!             cx.emit(generated(&std::mem::take(&mut self.pending)));
//!         }
//!         cx.wake_in(Duration::from_secs(1));
//!         Step::OK
//!     }
//!
//!     fn on_wake<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
//!         cx.emit(generated(&std::mem::take(&mut self.pending)));
//!         Step::OK
//!     }
//!
//!     fn on_cancel<'a>(&'a mut self, _: &'a mut NodeContext, _: CancelReason) -> Step<'a> {
//!         self.pending.clear();
//!         Step::OK
//!     }
//! }
//!
//! fn harness() -> Harness {
//!     Harness::new(|_spec| Box::<Sentences>::default())
//! }
//!
//! // Events in, the expected sequence out.
//! let mut rig = harness().start().unwrap();
//! rig.feed(generated("Good "));
//! assert!(rig.texts().is_empty());
//! rig.feed(generated("day."));
//! assert_eq!(rig.texts(), ["Good day."]);
//!
//! // What waits too long goes on by itself, at its time and not before.
//! rig.feed(generated("How"));
//! rig.advance(Duration::from_millis(999));
//! assert!(rig.texts().is_empty());
//! rig.advance(Duration::from_millis(1));
//! assert_eq!(rig.texts(), ["How"]);
//!
//! // A cancelled turn leaves nothing behind.
//! rig.feed(generated("never said"));
//! rig.cancel(CancelReason::BargeIn);
//! assert!(matches!(
//!     rig.reports()[..],
//!     [NodeReport::CancelAcknowledged { is_forced: false, .. }]
//! ));
//! rig.next_turn().unwrap();
//! rig.feed(Payload::TextEnd);
//! assert_eq!(rig.texts(), [""]);
//! rig.stop();
//!
//! // Settings that make no sense are refused before anything flows.
//! let refused = harness().config("mark", "").start().unwrap_err();
//! assert!(refused.to_string().contains("`mark` is empty"));
//! ```

mod rig;
mod stand;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use rspp_kernel::plan::{LayeredSettings, Settings};
use rspp_proto::{
    AudioChunk, Extension, Payload, ProviderId, SampleRate, Speaker, TextChunk,
    spec::{EdgeSpec, Modality, NodeKind, NodeSpec, PipelineSpec, PortType},
};
use rspp_provider_api::Providers;
use serde_json::{Value, json};

use super::{Node, builtin::NodeRegistry};
use crate::runtime::OpenError;

pub use rig::Rig;
pub use stand::Output;

/// What the node on test is called.
const NODE: &str = "node";

/// Something else that the pipeline says.
type Change = Arc<dyn Fn(&mut PipelineSpec) + Send + Sync>;

/// What is put on test, and where it stands.
///
/// By default a node of a turn with one input, which carries anything, as
/// [`PipelineSpec::simple`] would run it.
#[derive(Clone)]
pub struct Harness {
    registry: NodeRegistry,
    node: NodeSpec,
    inputs: Vec<PortType>,
    standbys: Vec<NodeSpec>,
    listens: bool,
    providers: Providers,
    changes: Vec<Change>,
}

impl Harness {
    /// A node of one's own, made as a registered kind is: anew for each turn, and after a crash.
    pub fn new(make: impl Fn(&NodeSpec) -> Box<dyn Node> + Send + Sync + 'static) -> Self {
        let mut harness = Self::of_kind(NodeKind::Custom(NODE.to_owned()));
        harness.registry.register(NODE, Arc::new(make));
        harness
    }

    /// One of the nodes that come with the runtime. It has the inputs that its kind takes, in the
    /// order of [`NodeKind::inputs`].
    pub fn of_kind(kind: NodeKind) -> Self {
        Self {
            registry: NodeRegistry::default(),
            inputs: kind.inputs().to_vec(),
            node: NodeSpec {
                kind,
                ..named(NODE, &NodeKind::Passthrough)
            },
            standbys: Vec::new(),
            listens: false,
            providers: Providers::new(),
            changes: Vec::new(),
        }
    }

    /// It lives as long as its session, not as one turn: it is restarted when it panics.
    #[must_use]
    pub fn listening(mut self) -> Self {
        self.listens = true;
        self
    }

    /// What its inputs carry, by port.
    #[must_use]
    pub fn inputs(mut self, carry: impl IntoIterator<Item = PortType>) -> Self {
        self.inputs = carry.into_iter().collect();
        self
    }

    /// One of the node's own settings.
    #[must_use]
    pub fn config(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.node.config.insert(key.to_owned(), value.into());
        self
    }

    /// How long one of its handlers may take.
    #[must_use]
    pub fn budget(mut self, budget: Duration) -> Self {
        self.node.budget_ms = Some(budget.as_millis() as u64);
        self
    }

    /// Anything else that a pipeline's author may say of the node.
    #[must_use]
    pub fn node(mut self, change: impl FnOnce(&mut NodeSpec)) -> Self {
        change(&mut self.node);
        self
    }

    /// Who takes over when the node, or the standby before this one, fails (F-007).
    #[must_use]
    pub fn standby(
        mut self,
        make: impl Fn(&NodeSpec) -> Box<dyn Node> + Send + Sync + 'static,
    ) -> Self {
        let name = format!("standby-{}", self.standbys.len() + 1);
        self.registry.register(&name, Arc::new(make));
        let standby = named(&name, &NodeKind::Custom(name.clone()));
        let before = self.standbys.last_mut().unwrap_or(&mut self.node);
        before.fallback = Some(standby.id.clone());
        self.standbys.push(standby);
        self
    }

    /// Whom it may call; scripted ones, most of the time. Those of its modality are asked in the order
    /// of their names unless the node says otherwise.
    #[must_use]
    pub fn providers(mut self, providers: Providers) -> Self {
        self.providers = providers;
        self
    }

    /// Anything else that a pipeline may say: budgets, state, turns. Not its nodes and edges.
    #[must_use]
    pub fn pipeline(mut self, change: impl Fn(&mut PipelineSpec) + Send + Sync + 'static) -> Self {
        self.changes.push(Arc::new(change));
        self
    }

    /// Makes the node and lets it begin.
    ///
    /// # Errors
    ///
    /// As a session would be refused: what is said of the node makes no sense, or the node itself says
    /// so when it is initialised or started.
    pub fn start(&self) -> Result<Rig, OpenError> {
        Rig::start(self)
    }

    /// The smallest pipeline with the node in it: something before each input, something behind it.
    fn spec(&self) -> PipelineSpec {
        let mut spec = PipelineSpec::simple();
        for change in &self.changes {
            change(&mut spec);
        }
        spec.nodes = vec![self.node.clone()];
        spec.nodes.extend(self.standbys.iter().cloned());
        spec.edges.clear();
        if !self.listens {
            // What a turn detector's text leads to is of the turn.
            spec.nodes.push(named(OPENS, &NodeKind::TurnDetector));
            spec.edges.push(edge("ingress", OPENS, PortType::Audio));
        }
        for (port, carries) in self.inputs.iter().enumerate() {
            let source = format!("input-{port}");
            let kind = NodeKind::Custom(source.clone());
            spec.nodes.push(named(&source, &kind));
            spec.edges.push(if self.listens {
                edge("ingress", &source, PortType::Any)
            } else {
                edge(OPENS, &source, PortType::Text)
            });
            spec.edges.push(edge(&source, NODE, *carries));
        }
        let mut outputs = match self.node.kind {
            NodeKind::Passthrough | NodeKind::Merge | NodeKind::Select => self.inputs.clone(),
            NodeKind::Vad
            | NodeKind::TurnDetector
            | NodeKind::Stt
            | NodeKind::Llm
            | NodeKind::Segmenter
            | NodeKind::Guard
            | NodeKind::Tts
            | NodeKind::Custom(_) => self.node.kind.outputs().to_vec(),
        };
        outputs.sort_unstable();
        outputs.dedup();
        for carries in outputs {
            let sink = format!("output-{}", carries.as_str());
            let kind = NodeKind::Custom(sink.clone());
            spec.nodes.push(named(&sink, &kind));
            spec.edges.push(edge(NODE, &sink, carries));
        }
        spec
    }

    /// All providers of a modality are its candidates.
    fn settings(&self) -> LayeredSettings {
        let modalities = [Modality::Stt, Modality::Llm, Modality::Tts, Modality::Vad];
        let bound = modalities.map(|modality| (modality, self.providers.ids(modality)));
        let mut provider_bindings: std::collections::BTreeMap<_, _> = bound
            .into_iter()
            .filter(|(_, ids)| !ids.is_empty())
            .collect();
        // Who opens turns here has nobody to ask: no such node is ever started.
        let mut judges = self.providers.ids(Modality::EndOfTurn);
        if judges.is_empty() {
            judges.push(ProviderId::new("nobody").expect("not blank"));
        }
        provider_bindings.insert(Modality::EndOfTurn, judges);
        LayeredSettings {
            defaults: Settings {
                provider_bindings,
                ..Settings::default()
            },
            ..LayeredSettings::default()
        }
    }
}

/// The node that makes what comes after it a turn's.
const OPENS: &str = "opens-turns";

fn named(id: &str, kind: &NodeKind) -> NodeSpec {
    serde_json::from_value(json!({ "id": id, "kind": kind })).expect("a node without settings")
}

fn edge(from: &str, to: &str, carries: PortType) -> EdgeSpec {
    let written = json!({ "from": from, "to": to, "carries": carries });
    serde_json::from_value(written).expect("an edge without settings")
}

/// A piece of the model's text, as it comes from the model.
pub fn generated(text: &str) -> Payload {
    words(Speaker::Agent, text, false)
}

/// A clause of the agent's, as it goes to the voice.
pub fn clause(text: &str) -> Payload {
    words(Speaker::Agent, text, true)
}

/// The user's words, complete.
pub fn final_words(text: &str) -> Payload {
    words(Speaker::User, text, true)
}

/// The user's words so far.
pub fn partial_words(text: &str) -> Payload {
    words(Speaker::User, text, false)
}

fn words(speaker: Speaker, text: &str, is_final: bool) -> Payload {
    Payload::Text(Box::new(TextChunk {
        is_final,
        ..TextChunk::whole(speaker, 0, text)
    }))
}

/// Silence, 16 bits at 16 kHz.
pub fn silence(length: Duration) -> Payload {
    audio(&vec![0; samples(length)])
}

/// A tone of 220 Hz, which a detector of energy takes for speech.
pub fn tone(length: Duration) -> Payload {
    let wave = |n: usize| (n as f64 * 220.0 * std::f64::consts::TAU / 16_000.0).sin();
    let pcm: Vec<i16> = (0..samples(length))
        .map(|n| (wave(n) * 8_000.0) as i16)
        .collect();
    audio(&pcm)
}

/// Samples at 16 kHz.
pub fn audio(pcm: &[i16]) -> Payload {
    let bytes: Vec<u8> = pcm.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    Payload::AudioChunk(AudioChunk::pcm16(SampleRate::HZ_16000, Bytes::from(bytes)))
}

fn samples(length: Duration) -> usize {
    (length.as_secs_f64() * 16_000.0) as usize
}

/// Data of one's own, by a dotted name.
pub fn custom(name: &str, fields: Value) -> Payload {
    Payload::Extension(Box::new(Extension {
        name: name.to_owned(),
        fields,
    }))
}
