//! Custom nodes that count what is done to them, and do what a test tells them to.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use rspp_host::{
    Config, Event, NodeRegistry, Port,
    node::{Hook, Node, NodeContext, Step},
};
use rspp_kernel::{CancelReason, edge::BreakReason};
use rspp_proto::{
    Payload, Speaker, TextChunk,
    spec::{EdgeSpec, NodeSpec, PipelineSpec},
};
use serde_json::{Value, json};
use tokio::time::Instant;

/// How often each hook was called, over all nodes of a kind.
#[derive(Debug, Default)]
pub struct Hooks {
    /// `init`.
    pub init: AtomicU32,
    /// `start`.
    pub start: AtomicU32,
    /// `on_event`.
    pub events: AtomicU32,
    /// `on_barge_in`.
    pub barge_in: AtomicU32,
    /// `on_cancel`.
    pub cancel: AtomicU32,
    /// `on_break`, by reason.
    pub breaks: Mutex<Vec<(Port, BreakReason)>>,
    /// `on_budget_exhausted`.
    pub budget: AtomicU32,
    /// `stop`.
    pub stop: AtomicU32,
}

/// Counts one up.
pub fn add(counter: &AtomicU32) -> u32 {
    counter.fetch_add(1, Relaxed) + 1
}

/// Reads a count.
pub fn get(counter: &AtomicU32) -> u32 {
    counter.load(Relaxed)
}

/// What a probe does with an event: its node's n-th, counted from 1.
type Handle = dyn for<'a> Fn(u32, &'a mut NodeContext, Event) -> Step<'a> + Send + Sync;

/// What a probe does in a hook, after it has counted it.
type OnHook = dyn for<'a> Fn(Hook, &'a mut NodeContext) -> Step<'a> + Send + Sync;

/// Passes every event on.
pub fn forward(_nth: u32, cx: &mut NodeContext, event: Event) -> Step<'_> {
    cx.forward(event);
    Step::OK
}

/// A node that counts and does as it is told.
struct Probe {
    hooks: Arc<Hooks>,
    handle: Arc<Handle>,
    on_hook: Option<Arc<OnHook>>,
    seen: u32,
}

impl Node for Probe {
    fn init<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        add(&self.hooks.init);
        self.hook(cx, Hook::Init)
    }

    fn start<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        add(&self.hooks.start);
        self.hook(cx, Hook::Start)
    }

    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        add(&self.hooks.events);
        self.seen += 1;
        (self.handle)(self.seen, cx, event)
    }

    fn on_cancel<'a>(&'a mut self, cx: &'a mut NodeContext, reason: CancelReason) -> Step<'a> {
        add(&self.hooks.cancel);
        self.hook(cx, Hook::Cancel(reason))
    }

    fn on_barge_in<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        add(&self.hooks.barge_in);
        self.hook(cx, Hook::BargeIn)
    }

    fn on_break(&mut self, _cx: &mut NodeContext, port: Port, reason: BreakReason) {
        let mut breaks = self.hooks.breaks.lock().expect("nobody panics here");
        breaks.push((port, reason));
    }

    fn on_budget_exhausted<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        add(&self.hooks.budget);
        self.hook(cx, Hook::BudgetExhausted)
    }

    fn stop<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        add(&self.hooks.stop);
        self.hook(cx, Hook::Stop)
    }
}

impl Probe {
    fn hook<'a>(&self, cx: &'a mut NodeContext, hook: Hook) -> Step<'a> {
        match &self.on_hook {
            Some(on_hook) => on_hook(hook, cx),
            None => Step::OK,
        }
    }
}

fn slowly(taken: &Taken, event: Event, pace: Duration) -> Step<'static> {
    let mut list = taken.0.lock().expect("nobody panics here");
    list.push((Instant::now(), event));
    drop(list);
    if pace.is_zero() {
        return Step::OK;
    }
    Step::Wait(Box::pin(async move {
        tokio::time::sleep(pace).await;
        Ok(())
    }))
}

/// What a sink was given, and when.
#[derive(Clone, Default)]
pub struct Taken(Arc<Mutex<Vec<(Instant, Event)>>>);

impl Taken {
    /// Everything so far, in order.
    pub fn events(&self) -> Vec<(Instant, Event)> {
        self.0.lock().expect("nobody panics here").clone()
    }

    /// The numbers of the events so far, in order.
    pub fn sequences(&self) -> Vec<u64> {
        let events = self.events().into_iter();
        events.map(|(_, event)| event.stamp.sequence).collect()
    }
}

/// A piece of text, as a node of a test says it.
pub fn words(segment: u32, text: &str, is_final: bool) -> Payload {
    Payload::Text(Box::new(TextChunk {
        is_final,
        ..TextChunk::whole(Speaker::User, segment, text)
    }))
}

/// Puts a node that hears the user beside the pipeline, and edges from it to others.
pub fn branch(spec: &mut PipelineSpec, source: &str, edges: &[Value]) {
    spec.nodes.push(custom(source));
    spec.edges.push(edge(json!({
        "from": "ingress", "to": source, "carries": "audio",
        // Whatever the source does, it hears every frame.
        "buffer": { "max_queue_items": 10_000, "max_queue_ms": 600_000,
                    "max_queue_bytes": 100_000_000, "max_latency_contribution_ms": 600_000 },
    })));
    for written in edges {
        let edge = edge(written.clone());
        if !spec.nodes.iter().any(|node| node.id == edge.to) {
            spec.nodes.push(custom(edge.to.as_str()));
        }
        spec.edges.push(edge);
    }
}

/// Kinds of probes for a runtime.
#[derive(Default)]
pub struct Probes {
    registry: NodeRegistry,
}

impl Probes {
    /// Adds a kind.
    pub fn add(
        &mut self,
        kind: &str,
        handle: impl for<'a> Fn(u32, &'a mut NodeContext, Event) -> Step<'a> + Send + Sync + 'static,
    ) -> Arc<Hooks> {
        self.register(kind, Arc::new(handle), None)
    }

    /// Adds a kind that passes every event on and does as it is told in its hooks.
    pub fn add_hooked(
        &mut self,
        kind: &str,
        on_hook: impl for<'a> Fn(Hook, &'a mut NodeContext) -> Step<'a> + Send + Sync + 'static,
    ) -> Arc<Hooks> {
        self.register(kind, Arc::new(forward), Some(Arc::new(on_hook)))
    }

    fn register(
        &mut self,
        kind: &str,
        handle: Arc<Handle>,
        on_hook: Option<Arc<OnHook>>,
    ) -> Arc<Hooks> {
        let hooks = Arc::new(Hooks::default());
        let counted = Arc::clone(&hooks);
        self.registry.register(
            kind,
            Arc::new(move |_spec| {
                Box::new(Probe {
                    hooks: Arc::clone(&counted),
                    handle: Arc::clone(&handle),
                    on_hook: on_hook.clone(),
                    seen: 0,
                })
            }),
        );
        hooks
    }

    /// Adds a kind that makes something of each frame that it hears, and keeps no frame itself.
    pub fn source(
        &mut self,
        kind: &str,
        make: impl Fn(u32, &mut NodeContext) + Send + Sync + 'static,
    ) -> Arc<Hooks> {
        self.add(kind, move |nth, cx: &mut NodeContext, event| {
            if let Payload::AudioChunk(_) = event.payload {
                make(nth, cx);
            }
            Step::OK
        })
    }

    /// Adds a kind that takes its time over each event.
    pub fn sink(&mut self, kind: &str, pace: Duration) -> (Taken, Arc<Hooks>) {
        let taken = Taken::default();
        let noted = taken.clone();
        let hooks = self.add(kind, move |_nth, _cx: &mut NodeContext, event| {
            slowly(&noted, event, pace)
        });
        (taken, hooks)
    }

    /// Lets the runtime make them.
    pub fn install(self) -> impl FnOnce(&mut Config) + 'static {
        move |config| config.nodes = Arc::new(self.registry)
    }
}

/// A node as a pipeline's author writes it.
pub fn node(written: Value) -> NodeSpec {
    serde_json::from_value(written).expect("a test writes valid nodes")
}

/// An edge as a pipeline's author writes it.
pub fn edge(written: Value) -> EdgeSpec {
    serde_json::from_value(written).expect("a test writes valid edges")
}

/// A custom node.
pub fn custom(id: &str) -> NodeSpec {
    node(json!({ "id": id, "kind": { "custom": id } }))
}

/// Puts a node on the edge between two others.
pub fn insert(spec: &mut PipelineSpec, from: &str, between: NodeSpec, to: &str) {
    let found = spec
        .edges
        .iter_mut()
        .find(|edge| edge.from.as_str() == from && edge.to.as_str() == to);
    let found = found.expect("there is such an edge");
    let carries = found.carries;
    found.to = between.id.clone();
    let onward = json!({ "from": between.id, "to": to, "carries": carries });
    spec.edges.push(edge(onward));
    spec.nodes.push(between);
}
