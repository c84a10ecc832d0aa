//! The pipeline of a scenario, and the nodes that misbehave in it.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use rspp_host::{
    Event,
    node::{NodeContext, NodeError, Step},
};
use rspp_kernel::plan::LayeredSettings;
use rspp_proto::{
    ProviderId,
    spec::{
        BoundAction, BoundActions, BufferSpec, DataHandling, DegradeSpec, FlowMode,
        LateEventPolicy, Modality, PipelineSpec, SpeculationPolicy, SyncDropPolicy, SyncGroup,
        SyncPolicy, SyncScope, may_fold,
    },
};
use serde_json::json;

use super::{
    Piece, Scenario, Twist,
    scenario::{NodeFault, Tuned},
    tools,
    watch::Trace,
};
use crate::{
    call::bindings,
    nodes::{Probes, custom, edge, insert, node},
};

/// What a scenario runs.
pub(super) struct Stage {
    pub(super) spec: PipelineSpec,
    pub(super) settings: LayeredSettings,
    pub(super) probes: Probes,
}

/// Builds the pipeline; a twist of something that is not there is none.
pub(super) fn stage(scenario: &Scenario, plain: &PipelineSpec, trace: &Trace) -> Stage {
    let mut stage = Stage {
        spec: plain.clone(),
        settings: bindings(),
        probes: Probes::default(),
    };
    let twists = scenario.pieces.iter().filter_map(|piece| match piece {
        Piece::Twist(twist) => Some(twist),
        _something_else => None,
    });
    for (nth, twist) in twists.enumerate() {
        stage.twist(nth, twist, trace);
    }
    for piece in &scenario.pieces {
        stage.furnish(piece);
    }
    stage
}

impl Stage {
    fn has_edge(&self, from: &str, to: &str) -> bool {
        let mut edges = self.spec.edges.iter();
        edges.any(|edge| edge.from.as_str() == from && edge.to.as_str() == to)
    }

    /// What a piece that is no twist asks of the pipeline.
    fn furnish(&mut self, piece: &Piece) {
        match piece {
            Piece::Tool(chore) => {
                let mut nodes = self.spec.nodes.iter_mut();
                let llm = nodes.find(|node| node.id.as_str() == "llm");
                let declared = serde_json::from_value(tools::declared(*chore));
                llm.expect("there is a model").tools = declared.expect("it is valid");
            }
            Piece::Guesses {
                per_minute,
                wasted_tokens,
            } => {
                self.spec.turns.speculation = SpeculationPolicy {
                    enabled: true,
                    min_characters: 1,
                    max_per_minute: *per_minute,
                    max_wasted_tokens_per_minute: *wasted_tokens,
                };
            }
            Piece::Memory { soft_kib, cap_kib } => {
                self.spec.memory.soft_bytes = soft_kib * 1024;
                self.spec.memory.cap_bytes = cap_kib * 1024;
            }
            _asks_nothing_of_it => {}
        }
    }

    fn twist(&mut self, nth: usize, twist: &Twist, trace: &Trace) {
        match twist {
            Twist::Buffer {
                from,
                to,
                strategy,
                items,
                tuned,
            } => {
                let mut edges = self.spec.edges.iter_mut();
                let found =
                    edges.find(|edge| edge.from.as_str() == *from && edge.to.as_str() == *to);
                if let Some(edge) = found {
                    let strategy = match strategy {
                        // There is nothing to fold there, and it is refused.
                        DataHandling::Merge if !may_fold(edge.carries) => DataHandling::DropOldest,
                        strategy => *strategy,
                    };
                    edge.buffer = Some(buffer(strategy, *items, *tuned));
                }
            }
            Twist::Second(modality) => {
                let bound = &mut self.settings.defaults.provider_bindings;
                let second = format!("{}-2", modality.as_str());
                let id = ProviderId::new(second).expect("not blank");
                if let Some(bound) = bound.get_mut(modality)
                    && !bound.contains(&id)
                {
                    bound.push(id);
                }
            }
            Twist::Standby if self.spec.nodes.iter().any(|n| n.fallback.is_some()) => {}
            Twist::Standby => {
                let mut nodes = self.spec.nodes.iter_mut();
                let llm = nodes.find(|node| node.id.as_str() == "llm");
                llm.expect("there is a model").fallback = Some(custom("llm-standby").id);
                self.spec.nodes.push(node(json!({
                    "id": "llm-standby", "kind": "llm", "provider": "llm-2",
                })));
                self.spec.edges.push(edge(json!({
                    "from": "llm-standby", "to": "segmenter", "carries": "text",
                })));
            }
            Twist::StandbyVoice if self.spec.nodes.iter().any(|n| n.fallback.is_some()) => {}
            Twist::StandbyVoice if self.has_edge("tts", "egress") => {
                let mut nodes = self.spec.nodes.iter_mut();
                let tts = nodes.find(|node| node.id.as_str() == "tts");
                tts.expect("there is a voice").fallback = Some(custom("tts-standby").id);
                self.spec.nodes.push(node(json!({
                    "id": "tts-standby", "kind": "tts", "provider": "tts-2",
                })));
                self.spec.edges.push(edge(json!({
                    "from": "tts-standby", "to": "egress", "carries": "audio",
                })));
            }
            Twist::Branches { select } if self.has_edge("llm", "segmenter") => {
                self.branches(*select);
            }
            Twist::Beside { ms, only } if self.has_edge("segmenter", "tts") => {
                self.beside(nth, *ms, *only);
            }
            Twist::Tap { from, to } if self.has_edge(from, to) => {
                let name = format!("tap-{nth}");
                insert(&mut self.spec, from, custom(&name), to);
                let (trace, tap) = (trace.clone(), name.clone());
                self.probes
                    .add(&name, move |_nth, cx: &mut NodeContext, event: Event| {
                        trace.passes(&cx.settings().session, &tap, &event.stamp);
                        cx.forward(event);
                        Step::OK
                    });
            }
            Twist::Node {
                from,
                to,
                nth: event,
                fault,
            } if self.has_edge(from, to) => {
                let name = format!("bad-{nth}");
                insert(&mut self.spec, from, custom(&name), to);
                self.bad_node(&name, *event, *fault, trace);
            }
            Twist::StandbyVoice
            | Twist::Branches { .. }
            | Twist::Beside { .. }
            | Twist::Tap { .. }
            | Twist::Node { .. } => {}
            Twist::Posture => {
                let second = vec![ProviderId::new("llm-2").expect("not blank")];
                self.spec.degrade = Some(DegradeSpec {
                    max_context_messages: Some(2),
                    max_tokens: Some(3),
                    provider_bindings: [(Modality::Llm, second)].into(),
                    ..DegradeSpec::default()
                });
            }
            Twist::Impatience {
                silence_ms,
                stall_ms,
                cleanup_ms,
            } => {
                let connection = &mut self.spec.connection;
                connection.silence_after_ms = *silence_ms;
                connection.stall_after_ms = *stall_ms;
                connection.stall_cleanup_ms = *cleanup_ms;
                connection.cleanup_ms = *cleanup_ms;
            }
            Twist::Budget { ms } => {
                for node in &mut self.spec.nodes {
                    if node.id.as_str() == "llm" {
                        node.budget_ms = Some(*ms);
                    }
                }
            }
            Twist::Patience { ms } => {
                for node in &mut self.spec.nodes {
                    if ["stt", "llm", "tts"].contains(&node.id.as_str()) {
                        // Scripted providers count as local, which get five times as long.
                        node.config.insert("first_byte_ms".into(), (ms / 5).into());
                        node.config.insert("inter_chunk_ms".into(), (ms / 5).into());
                    }
                }
            }
            Twist::NoBargeIn => self.spec.turns.barge_in = false,
            Twist::Diagnostics => self.spec.turns.late_events = LateEventPolicy::Diagnostics,
        }
    }

    fn branches(&mut self, select: bool) {
        let spec = &mut self.spec;
        spec.edges
            .retain(|edge| !(edge.from.as_str() == "llm" && edge.to.as_str() == "segmenter"));
        let join = if select { "select" } else { "merge" };
        spec.nodes.push(node(json!({ "id": "join", "kind": join })));
        for (branch, tier) in [("left", "gold"), ("right", "blue")] {
            spec.nodes
                .push(node(json!({ "id": branch, "kind": "passthrough" })));
            let mut into = json!({ "from": "llm", "to": branch, "carries": "text" });
            let mut out = json!({ "from": branch, "to": "join", "carries": "text" });
            let when = json!({ "attribute": "tier", "is": "eq", "value": tier });
            if select {
                out["when"] = when;
            } else {
                into["when"] = when;
            }
            spec.edges.push(edge(into));
            spec.edges.push(edge(out));
        }
        spec.edges.push(edge(
            json!({ "from": "join", "to": "segmenter", "carries": "text" }),
        ));
    }

    fn beside(&mut self, nth: usize, ms: u64, only: bool) {
        let name = format!("beside-{nth}");
        for direct in
            self.spec.edges.iter_mut().filter(|edge| {
                only && edge.from.as_str() == "segmenter" && edge.to.as_str() == "tts"
            })
        {
            let when = json!({ "attribute": "nobody_has", "is": "eq", "value": true });
            direct.when = serde_json::from_value(when).ok();
        }
        self.spec.nodes.push(custom(&name));
        for (from, to) in [("segmenter", &*name), (&*name, "tts")] {
            let written = json!({ "from": from, "to": to, "carries": "text" });
            self.spec.edges.push(edge(written));
        }
        self.probes
            .add(&name, move |_nth, cx: &mut NodeContext, event: Event| {
                Step::Wait(Box::pin(async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    cx.forward(event);
                    Ok(())
                }))
            });
    }

    fn bad_node(&mut self, name: &str, nth: u32, fault: NodeFault, trace: &Trace) {
        let seen = AtomicU32::new(0);
        let trace = trace.clone();
        self.probes
            .add(name, move |_nth, cx: &mut NodeContext, event: Event| {
                let seen = seen.fetch_add(1, Relaxed) + 1;
                let happened = |kind| trace.lock().tally.fault(kind);
                match fault {
                    NodeFault::Panics if seen == nth => {
                        happened("node: panics");
                        panic!("scripted panic of a node");
                    }
                    NodeFault::Fails if seen == nth => {
                        happened("node: fails");
                        return Step::Done(Err(NodeError::new("a planted fault")));
                    }
                    NodeFault::Hangs if seen == nth => {
                        happened("node: hangs");
                        return Step::Wait(Box::pin(std::future::pending()));
                    }
                    NodeFault::Slow { ms } if seen >= nth => {
                        happened("node: slow");
                        return Step::Wait(Box::pin(async move {
                            tokio::time::sleep(Duration::from_millis(ms)).await;
                            cx.forward(event);
                            Ok(())
                        }));
                    }
                    NodeFault::Panics
                    | NodeFault::Fails
                    | NodeFault::Hangs
                    | NodeFault::Slow { .. } => {}
                }
                cx.forward(event);
                Step::OK
            });
    }
}

fn buffer(strategy: DataHandling, items: u64, tuned: Tuned) -> BufferSpec {
    let waits =
        matches!(strategy, DataHandling::Block) || matches!(tuned, Tuned::Credit | Tuned::Hybrid);
    let mut buffer = BufferSpec {
        strategy: Some(strategy),
        max_queue_items: Some(items),
        max_block_time_ms: waits.then_some(60),
        ..BufferSpec::default()
    };
    // An event is a group of its own on one edge.
    let sync = |policy, scope| SyncDropPolicy {
        group_by: Some(SyncGroup::EventId),
        policy,
        scope,
        sync_domain: Some("simulated".to_owned()),
    };
    match tuned {
        Tuned::Plain => {}
        Tuned::Credit => buffer.flow_mode = Some(FlowMode::Credit),
        Tuned::Hybrid => buffer.flow_mode = Some(FlowMode::Hybrid),
        Tuned::Coalesced { ms } => {
            if matches!(strategy, DataHandling::Merge) {
                buffer.coalesce_ms = Some(ms);
            }
        }
        Tuned::Aged { ms } => {
            buffer.max_queue_ms = Some(ms);
            buffer.actions = Some(BoundActions {
                age: Some(BoundAction::DropOldest),
                ..BoundActions::default()
            });
        }
        Tuned::Atomic => {
            let scope = SyncScope::PlanWide;
            buffer.sync_drop_policy = Some(sync(SyncPolicy::AtomicDrop, scope));
        }
        Tuned::Reset => {
            let scope = SyncScope::EdgeLocal;
            buffer.sync_drop_policy = Some(sync(SyncPolicy::DropWithDiscontinuity, scope));
        }
    }
    buffer
}

/// The edges of the built-in pipeline that a twist may be about.
pub(super) const EDGES: &[(&str, &str)] = &[
    ("ingress", "vad"),
    ("ingress", "stt"),
    ("ingress", "turn"),
    ("vad", "turn"),
    ("vad", "stt"),
    ("stt", "turn"),
    ("llm", "segmenter"),
    ("segmenter", "tts"),
    ("tts", "egress"),
    ("segmenter", "egress"),
];

/// The edges of a turn.
pub(super) const TURN_EDGES: &[(&str, &str)] = &[
    ("llm", "segmenter"),
    ("segmenter", "tts"),
    ("tts", "egress"),
];

/// Modalities that may have a second provider.
pub(super) const MODALITIES: &[Modality] = &[Modality::Stt, Modality::Llm, Modality::Tts];
