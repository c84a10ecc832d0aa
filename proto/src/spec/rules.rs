//! What a spec has to mean, beyond its shape. Every rule reports all that break it.

mod config;
mod limits;
mod providers;
mod when;

use std::collections::{BTreeMap, BTreeSet};

use super::{
    BudgetsSpec, BufferSpec, DataHandling, EGRESS, EdgeBufferPolicy, EdgeSpec, INGRESS, Marks,
    MemoryLimits, Modality, NodeExecutionPolicy, NodeKind, NodeSpec, PipelineSpec, PolicyBundle,
    PortType, PressureAction, RecordingLevel, Strategy, SyncDropPolicy, SyncPolicy, SyncScope,
    ToolDeclaration, ToolExecutor, Watermarks, diagnostic::nearest, may_fold, parse::Check,
    smallest_frame,
};
use crate::{NodeId, ProviderId};

/// What the pseudo-nodes carry: the user's audio and text in, the agent's out.
const OUTSIDE: &[PortType] = &[PortType::Audio, PortType::Text];
/// What comes in from there: also what only a client or a transport understands, e.g. keys that were
/// pressed; that rides edges of any type.
const INSIDE: &[PortType] = &[PortType::Audio, PortType::Text, PortType::Any];

pub(super) use limits::limits;

/// The rules of a pipeline.
pub(super) fn pipeline(spec: &PipelineSpec, check: &mut Check<'_, '_>) {
    let graph = Graph::new(spec, check);
    for (index, node) in spec.nodes.iter().enumerate() {
        graph.node(&format!("nodes[{index}]"), node, check);
    }
    let mut ids = BTreeMap::new();
    for (index, edge) in spec.edges.iter().enumerate() {
        let path = format!("edges[{index}]");
        graph.edge(&path, edge, check);
        match edge.edge_id() {
            Ok(id) => {
                if let Some(first) = ids.insert(id.clone(), index) {
                    let line = check.line(&format!("edges[{first}]"));
                    check.error(
                        "duplicate_edge",
                        &path,
                        format!("edge `{id}` stands twice, first on line {line}"),
                        "remove one, or give each an `id`".to_owned(),
                    );
                }
            }
            Err(error) => check.error(
                "edge_id",
                &path,
                error.to_string(),
                "give the edge an `id`".to_owned(),
            ),
        }
    }
    graph.open_to_policy(&spec.open_to_policy, check);
    connected(spec, check);
    graph.acyclic(spec, check);
    let MemoryLimits {
        soft_bytes,
        cap_bytes,
    } = spec.memory;
    if soft_bytes > cap_bytes {
        check.error(
            "marks",
            "memory.soft_bytes",
            format!("{soft_bytes} is above cap_bytes, {cap_bytes}, so it is never reached"),
            format!("e.g. `soft_bytes: {}`", cap_bytes / 4 * 3),
        );
    }
    providers::providers("providers", &spec.providers, check);
    budgets("budgets", &spec.budgets, check);
    let connection = &spec.connection;
    if connection.max_mapping_error_p99_ms >= connection.max_skew_ms {
        let (error, skew) = (connection.max_mapping_error_p99_ms, connection.max_skew_ms);
        check.error(
            "never_reached",
            "connection.max_mapping_error_p99_ms",
            format!("{error} is not below max_skew_ms, {skew}: media time is set anew before that"),
            format!("e.g. `max_skew_ms: {}`", error.saturating_mul(2)),
        );
    }
    if let Some(degrade) = &spec.degrade {
        limits::degrade("degrade", degrade, check);
    }
    if spec.turns.max_context_messages == 0 {
        check.error(
            "out_of_range",
            "turns.max_context_messages",
            "must be at least 1",
            None,
        );
    }
}

/// A part of a turn may take no longer than the whole.
fn budgets(path: &str, spec: &BudgetsSpec, check: &mut Check<'_, '_>) {
    let Some(whole) = spec.max_turn_duration_ms else {
        return;
    };
    let parts = [
        ("turn_budget_ms", spec.turn_budget_ms),
        ("path_budget_ms_default", spec.path_budget_ms_default),
        ("node_budget_ms_default", spec.node_budget_ms_default),
        ("edge_budget_ms_default", spec.edge_budget_ms_default),
    ];
    for (name, part) in parts {
        if let Some(part) = part.filter(|part| *part > whole) {
            check.error(
                "never_reached",
                &format!("{path}.{name}"),
                format!(
                    "{part} is above max_turn_duration_ms, {whole}: the turn is over before that"
                ),
                format!("e.g. `max_turn_duration_ms: {part}` or more"),
            );
        }
    }
}

/// The nodes by name, with their places in the list.
struct Graph<'a> {
    nodes: BTreeMap<&'a str, (usize, &'a NodeKind)>,
    /// Those for whom another stands by.
    standing_by: BTreeSet<&'a str>,
}

impl<'a> Graph<'a> {
    fn new(spec: &'a PipelineSpec, check: &mut Check<'_, '_>) -> Self {
        if spec.nodes.is_empty() {
            check.error("no_nodes", "nodes", "a pipeline needs nodes", None);
        }
        let mut nodes = BTreeMap::new();
        for (index, node) in spec.nodes.iter().enumerate() {
            let path = format!("nodes[{index}].id");
            let id = node.id.as_str();
            if id == INGRESS || id == EGRESS {
                check.error(
                    "reserved_name",
                    &path,
                    format!("`{id}` is where the user is, not a node"),
                    "choose another id".to_owned(),
                );
            } else if let Some((first, _)) = nodes.get(id) {
                let line = check.line(&format!("nodes[{first}].id"));
                check.error(
                    "duplicate_node",
                    &path,
                    format!("node `{id}` stands twice, first on line {line}"),
                    "every node needs an id of its own".to_owned(),
                );
            } else {
                nodes.insert(id, (index, &node.kind));
            }
        }
        let with_standby = spec.nodes.iter().filter(|node| node.fallback.is_some());
        Self {
            nodes,
            standing_by: with_standby.map(|node| node.id.as_str()).collect(),
        }
    }

    /// What is wrong with a name that is no node.
    fn unknown(
        &self,
        path: &str,
        found: &str,
        pseudo: Option<&'static str>,
        check: &mut Check<'_, '_>,
    ) {
        let known = self.nodes.keys().copied().chain(pseudo);
        let hint = match nearest(found, known.clone()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("there are {}", known.collect::<Vec<_>>().join(", ")),
        };
        check.error(
            "unknown_node",
            path,
            format!("there is no node `{found}`"),
            hint,
        );
    }

    fn node(&self, path: &str, node: &NodeSpec, check: &mut Check<'_, '_>) {
        let takes_provider =
            Modality::of(&node.kind).is_some() || matches!(node.kind, NodeKind::Custom(_));
        if !takes_provider {
            let kind = node.kind.as_str();
            let message = format!("a {kind} node works without a provider");
            if node.provider.is_some() {
                check.error(
                    "no_provider",
                    &format!("{path}.provider"),
                    message.clone(),
                    None,
                );
            }
            if !node.fallback_providers.is_empty() {
                check.error(
                    "no_provider",
                    &format!("{path}.fallback_providers"),
                    message,
                    None,
                );
            }
        }
        if node.kind == NodeKind::Guard {
            let terms = node.config.get("terms").and_then(|it| it.as_array());
            let all_words = terms.is_some_and(|terms| {
                let word =
                    |it: &serde_json::Value| it.as_str().is_some_and(|it| !it.trim().is_empty());
                !terms.is_empty() && terms.iter().all(word)
            });
            if !all_words {
                check.error(
                    "guard_terms",
                    &format!("{path}.config"),
                    "a guard needs `terms`: the words or phrases that must not be said",
                    "write `config: { terms: [...], action: mask }`, or `action: block`".to_owned(),
                );
            }
        }
        let mut seen: BTreeSet<&ProviderId> = node.provider.iter().collect();
        for (index, provider) in node.fallback_providers.iter().enumerate() {
            if !seen.insert(provider) {
                check.error(
                    "duplicate",
                    &format!("{path}.fallback_providers[{index}]"),
                    format!("provider `{provider}` is tried twice"),
                    None,
                );
            }
        }
        if let Some(fallback) = &node.fallback {
            let path = format!("{path}.fallback");
            if fallback == &node.id {
                check.error(
                    "self_fallback",
                    &path,
                    "a node cannot stand in for itself",
                    None,
                );
            } else if !self.nodes.contains_key(fallback.as_str()) {
                self.unknown(&path, fallback.as_str(), None, check);
            }
        }
        if let NodeKind::Custom(name) = &node.kind
            && name.trim().is_empty()
        {
            check.error(
                "blank",
                &format!("{path}.kind.custom"),
                "must not be blank",
                None,
            );
        }
        if let Some(digest) = &node.digest {
            let path = format!("{path}.digest");
            if !matches!(node.kind, NodeKind::Custom(_)) {
                let message = format!("a node of kind `{}` is in no package", node.kind.as_str());
                check.error("digest", &path, message, "leave it out".to_owned());
            } else if digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
                let hint = "`rspp package list` shows it".to_owned();
                check.error("digest", &path, "is no SHA-256", hint);
            }
        }
        config::config(path, node, check);
        tools(path, node, check);
        if let Some(execution) = &node.execution {
            self::execution(&format!("{path}.execution"), execution, check);
            let is_ours = !matches!(node.kind, NodeKind::Custom(_));
            if is_ours && execution.sandbox.is_some() {
                check.error(
                    "sandbox",
                    &format!("{path}.execution.sandbox"),
                    format!(
                        "a node of kind `{}` runs in the runtime's own process",
                        node.kind.as_str()
                    ),
                    "leave it out; sandboxes are for kinds with a program of their own".to_owned(),
                );
            }
        }
    }

    fn edge(&self, path: &str, edge: &EdgeSpec, check: &mut Check<'_, '_>) {
        let (from, to) = (edge.from.as_str(), edge.to.as_str());
        let outputs = match from {
            INGRESS => Some(INSIDE),
            EGRESS => {
                let hint = "the user speaks at `ingress`".to_owned();
                check.error(
                    "direction",
                    &format!("{path}.from"),
                    "nothing comes from `egress`",
                    hint,
                );
                None
            }
            name => {
                let ports = self.nodes.get(name).map(|(_, kind)| kind.outputs());
                if ports.is_none() {
                    self.unknown(&format!("{path}.from"), name, Some(INGRESS), check);
                }
                ports
            }
        };
        let inputs = match to {
            EGRESS => Some(OUTSIDE),
            INGRESS => {
                let hint = "the user hears at `egress`".to_owned();
                check.error(
                    "direction",
                    &format!("{path}.to"),
                    "nothing goes to `ingress`",
                    hint,
                );
                None
            }
            name => {
                let ports = self.nodes.get(name).map(|(_, kind)| kind.inputs());
                if ports.is_none() {
                    self.unknown(&format!("{path}.to"), name, Some(EGRESS), check);
                }
                ports
            }
        };
        if from == to {
            check.error("self_edge", path, format!("`{from}` leads to itself"), None);
        }
        let carries = edge.carries;
        let ends = [(from, "gives out", outputs), (to, "takes in", inputs)];
        for (name, verb, ports) in ends {
            if let Some(ports) = ports
                && !carries.fits(ports)
            {
                let names: Vec<&str> = ports.iter().map(|port| port.as_str()).collect();
                check.error(
                    "port_type",
                    &format!("{path}.carries"),
                    format!("`{name}` {verb} no {}", carries.as_str()),
                    format!("it {verb} {}", names.join(", ")),
                );
            }
        }
        if let Some(when) = &edge.when {
            let from = self.nodes.get(from).map(|(_, kind)| *kind);
            when::condition(&format!("{path}.when"), when, (from, carries), check);
        }
        if let Some(buffer) = &edge.buffer {
            let path = format!("{path}.buffer");
            authored_buffer(&path, buffer, check);
            self.stands_by(&path, to, buffer, check);
            self.fits(&path, edge, buffer, check);
        }
    }

    /// Whoever is to take over under pressure stands by.
    fn stands_by(&self, path: &str, to: &str, buffer: &BufferSpec, check: &mut Check<'_, '_>) {
        let has_standby = self.standing_by.contains(to);
        if buffer.on_high == Some(PressureAction::Fallback) && !has_standby {
            let hint = if to == EGRESS {
                "write `on_high: degrade`".to_owned()
            } else {
                format!("give node `{to}` a `fallback`, or write `on_high: degrade`")
            };
            let message = format!("nobody stands by for `{to}`");
            check.error("no_standby", &format!("{path}.on_high"), message, hint);
        }
    }

    /// A policy inserts after nodes that there are.
    fn open_to_policy(&self, open: &[NodeId], check: &mut Check<'_, '_>) {
        for (index, node) in open.iter().enumerate() {
            if !self.nodes.contains_key(node.as_str()) {
                let path = format!("open_to_policy[{index}]");
                self.unknown(&path, node.as_str(), None, check);
            }
        }
    }

    /// What a buffer may hold and fold has to do with what flows there.
    fn fits(&self, path: &str, edge: &EdgeSpec, buffer: &BufferSpec, check: &mut Check<'_, '_>) {
        let carries = edge.carries;
        let from = match edge.from.as_str() {
            INGRESS => Some(None),
            name => self.nodes.get(name).map(|(_, kind)| Some(*kind)),
        };
        let frame = from.and_then(|from| smallest_frame(from, carries));
        if let (Some(frame), Some(most)) = (frame, buffer.max_queue_bytes)
            && most < frame
        {
            check.error(
                "no_frame_fits",
                &format!("{path}.max_queue_bytes"),
                format!("{most} bytes hold no frame of audio, which has {frame} at least"),
                format!("at least `max_queue_bytes: {frame}`; it takes as much for each 20 ms"),
            );
        }
        if buffer.strategy == Some(DataHandling::Merge) && !may_fold(carries) {
            check.error(
                "stray_merge",
                &format!("{path}.strategy"),
                format!("{} is never folded together", carries.as_str()),
                "use `drop_oldest`; only partial transcripts are merged".to_owned(),
            );
        }
    }

    /// Events only ever move forward.
    fn acyclic(&self, spec: &PipelineSpec, check: &mut Check<'_, '_>) {
        let mut incoming: BTreeMap<&str, usize> =
            self.nodes.keys().map(|name| (*name, 0)).collect();
        let inner: Vec<(&str, &str)> = spec
            .edges
            .iter()
            .map(|edge| (edge.from.as_str(), edge.to.as_str()))
            .filter(|(from, to)| {
                from != to && incoming.contains_key(from) && incoming.contains_key(to)
            })
            .collect();
        for (_, to) in &inner {
            if let Some(count) = incoming.get_mut(to) {
                *count += 1;
            }
        }
        // Takes away, again and again, the nodes that nothing goes to; a cycle is what stays.
        while let Some(free) = incoming
            .iter()
            .find_map(|(name, count)| (*count == 0).then_some(*name))
        {
            incoming.remove(free);
            for (_, to) in inner.iter().filter(|(from, _)| *from == free) {
                if let Some(count) = incoming.get_mut(to) {
                    *count -= 1;
                }
            }
        }
        let Some(start) = incoming.keys().next().copied() else {
            return;
        };
        // Every node that is left has a predecessor that is left, so walking back meets itself.
        let mut walk = vec![start];
        let cycle = loop {
            let here = walk[walk.len() - 1];
            let before = inner
                .iter()
                .find(|(from, to)| *to == here && incoming.contains_key(from));
            let Some((before, _)) = before else {
                return;
            };
            if let Some(at) = walk.iter().position(|name| name == before) {
                let mut cycle = walk.split_off(at);
                cycle.push(before);
                cycle.reverse();
                break cycle;
            }
            walk.push(before);
        };
        let closing = spec
            .edges
            .iter()
            .position(|edge| edge.from.as_str() == cycle[0] && edge.to.as_str() == cycle[1]);
        let path = closing.map_or_else(|| "edges".to_owned(), |index| format!("edges[{index}]"));
        check.error(
            "cycle",
            &path,
            format!("events would go round: {}", cycle.join(" -> ")),
            "remove one of these edges".to_owned(),
        );
    }
}

/// A tool has a name of its own, a model to call it, and arguments that can be checked.
fn tools(node_path: &str, node: &NodeSpec, check: &mut Check<'_, '_>) {
    if !node.tools.is_empty() && !matches!(node.kind, NodeKind::Llm | NodeKind::Custom(_)) {
        check.error(
            "no_tools",
            &format!("{node_path}.tools"),
            format!("a {} node calls no tools", node.kind.as_str()),
            "declare them at the node that has the language model".to_owned(),
        );
    }
    let mut seen = BTreeSet::new();
    for (index, tool) in node.tools.iter().enumerate() {
        let path = format!("{node_path}.tools[{index}]");
        let name = tool.name.as_str();
        if !ToolDeclaration::is_name(name) {
            let hint = "letters, digits, `_` and `-`, at most 64".to_owned();
            let message = format!("`{name}` is no tool's name");
            check.error("tool_name", &format!("{path}.name"), message, hint);
        } else if !seen.insert(name) {
            let message = format!("tool `{name}` is declared twice");
            check.error("duplicate", &format!("{path}.name"), message, None);
        }
        if tool.description.trim().is_empty() {
            check.error(
                "blank",
                &format!("{path}.description"),
                "must not be blank",
                "the model chooses by it".to_owned(),
            );
        }
        for problem in tool.arguments().problems() {
            let at = if problem.path.is_empty() {
                format!("{path}.parameters")
            } else {
                format!("{path}.parameters.{}", problem.path)
            };
            check.error("tool_parameters", &at, problem.message, None);
        }
        if let ToolExecutor::Http(http) = &tool.run
            && !http.has_good_credential()
        {
            // Not repeated: it may be the secret itself.
            check.error(
                "secret",
                &format!("{path}.run.http.credential"),
                "is no reference to a tool's secret",
                "e.g. `env://TOOL_ORDERS_KEY`, with the secret in that variable".to_owned(),
            );
        }
        if let ToolExecutor::Http(http) = &tool.run
            && !["http://", "https://"]
                .iter()
                .any(|scheme| http.url.starts_with(scheme))
        {
            check.error(
                "tool_url",
                &format!("{path}.run.http.url"),
                format!("`{}` is no address of a server", http.url),
                "e.g. `https://tools.example.com/order`".to_owned(),
            );
        }
    }
}

/// Something goes in, something comes out, and every node has a part in it.
fn connected(spec: &PipelineSpec, check: &mut Check<'_, '_>) {
    if !spec.edges.iter().any(|edge| edge.from.as_str() == INGRESS) {
        check.error("no_ingress", "edges", "nothing comes from `ingress`", None);
    }
    if !spec.edges.iter().any(|edge| edge.to.as_str() == EGRESS) {
        check.error("no_egress", "edges", "nothing goes to `egress`", None);
    }
    // A stand-in works on the edges of the node that it stands in for.
    let stand_ins: BTreeSet<&str> = spec
        .nodes
        .iter()
        .filter_map(|node| node.fallback.as_ref().map(NodeId::as_str))
        .collect();
    for (index, node) in spec.nodes.iter().enumerate() {
        let id = node.id.as_str();
        if stand_ins.contains(id) {
            continue;
        }
        let path = format!("nodes[{index}].id");
        if !spec.edges.iter().any(|edge| edge.to.as_str() == id) {
            check.warn("unconnected", &path, format!("nothing goes to `{id}`"));
        }
        if !spec.edges.iter().any(|edge| edge.from.as_str() == id) {
            check.warn("unconnected", &path, format!("nothing comes from `{id}`"));
        }
    }
}

fn authored_buffer(path: &str, buffer: &BufferSpec, check: &mut Check<'_, '_>) {
    let bound_blocks = buffer.actions.is_some_and(|actions| actions.block());
    let blocks = match buffer.strategy {
        Some(strategy) => Some(strategy == DataHandling::Block || bound_blocks),
        None => bound_blocks.then_some(true),
    };
    // Flow control of the edge's own may hold its sender back under any strategy.
    let waits = match blocks {
        Some(false) if buffer.flow_mode.is_some() => None,
        Some(_) | None => blocks,
    };
    block_time(path, waits, buffer.max_block_time_ms, check);
    let merges = buffer
        .strategy
        .map(|strategy| strategy == DataHandling::Merge);
    cadence(path, merges, buffer.coalesce_ms, check);
    if let Some(marks) = &buffer.watermarks {
        watermarks(
            path,
            marks,
            buffer.max_queue_items,
            buffer.max_queue_ms,
            check,
        );
    }
    if let Some(sync) = &buffer.sync_drop_policy {
        sync_drop(&format!("{path}.sync_drop_policy"), sync, check);
    }
    fairness(path, buffer.fairness_key.as_deref(), check);
}

fn resolved_buffer(path: &str, buffer: &EdgeBufferPolicy, check: &mut Check<'_, '_>) {
    let blocks = buffer.strategy == Strategy::Block
        || buffer.lane_handling.data == DataHandling::Block
        || buffer.actions.is_some_and(|actions| actions.block());
    // What the bundle's flow control is, the edge may not say itself.
    let waits = if blocks { Some(true) } else { None };
    block_time(path, waits, buffer.max_block_time_ms, check);
    let merges = buffer.strategy == Strategy::Merge;
    cadence(path, Some(merges), buffer.coalesce_ms, check);
    watermarks(
        path,
        &buffer.watermarks,
        Some(buffer.max_queue_items),
        Some(buffer.max_queue_ms),
        check,
    );
    if let Some(sync) = &buffer.sync_drop_policy {
        sync_drop(&format!("{path}.sync_drop_policy"), sync, check);
    }
    fairness(path, buffer.fairness_key.as_deref(), check);
}

/// Waiting has an end: `block` goes with a time, and the time with `block`.
fn block_time(path: &str, blocks: Option<bool>, time: Option<u64>, check: &mut Check<'_, '_>) {
    match (blocks, time) {
        (Some(true), None) => check.error(
            "missing_block_time",
            path,
            "strategy `block` needs max_block_time_ms",
            "e.g. `max_block_time_ms: 40`; without it a full edge would stall its sender"
                .to_owned(),
        ),
        (Some(false), Some(_)) => check.error(
            "stray_block_time",
            &format!("{path}.max_block_time_ms"),
            "only strategy `block` waits",
            "remove it, or write `strategy: block`; an edge with a `flow_mode` of its own may wait too"
                .to_owned(),
        ),
        // Without a strategy the profile's applies, and it may be `block`.
        (Some(true) | None, Some(_)) | (Some(false) | None, None) => {}
    }
}

/// Only what is merged can be held back for more.
fn cadence(path: &str, merges: Option<bool>, every: Option<u64>, check: &mut Check<'_, '_>) {
    if merges == Some(false) && every.is_some() {
        check.error(
            "stray_cadence",
            &format!("{path}.coalesce_ms"),
            "only strategy `merge` folds partials together",
            "remove it, or write `strategy: merge`".to_owned(),
        );
    }
}

fn watermarks(
    path: &str,
    both: &Watermarks,
    most_items: Option<u64>,
    most_ms: Option<u64>,
    check: &mut Check<'_, '_>,
) {
    let path = format!("{path}.watermarks");
    if both.queue_items.is_none() && both.queue_ms.is_none() {
        let hint = "e.g. `queue_items: {high: 48, low: 24}`".to_owned();
        check.error(
            "missing_marks",
            &path,
            "needs queue_items or queue_ms",
            hint,
        );
    }
    let named = [
        (
            "queue_items",
            both.queue_items,
            "max_queue_items",
            most_items,
        ),
        ("queue_ms", both.queue_ms, "max_queue_ms", most_ms),
    ];
    for (name, marks, limit_name, limit) in named {
        let Some(marks) = marks else { continue };
        let path = format!("{path}.{name}");
        low_below_high(&path, marks, check);
        if let Some(limit) = limit.filter(|limit| marks.high > *limit) {
            check.error(
                "marks",
                &format!("{path}.high"),
                format!(
                    "{} is above {limit_name}, {limit}, so it is never reached",
                    marks.high
                ),
                None,
            );
        }
    }
}

fn low_below_high(path: &str, marks: Marks, check: &mut Check<'_, '_>) {
    let Marks { high, low } = marks;
    if low >= high {
        check.error(
            "marks",
            &format!("{path}.low"),
            format!("{low} is not below high, {high}"),
            format!("e.g. `low: {}`", high / 2),
        );
    }
}

fn sync_drop(path: &str, sync: &SyncDropPolicy, check: &mut Check<'_, '_>) {
    let wide = sync.scope == SyncScope::PlanWide;
    let (needs_group, needs_domain) = match sync.policy {
        SyncPolicy::AtomicDrop => (true, wide),
        SyncPolicy::DropWithDiscontinuity => (true, true),
        SyncPolicy::NoSync => (false, false),
    };
    if let Some(problem) = sync.stray_group() {
        check.error(
            "stray_group",
            &format!("{path}.group_by"),
            problem,
            "leave group_by out, or group by `sync_id`, or let it reach the plan".to_owned(),
        );
    }
    if needs_group && sync.group_by.is_none() {
        let hint = "one of sync_id, event_id, custom".to_owned();
        check.error("missing_field", path, "this policy needs group_by", hint);
    }
    let has_domain = sync
        .sync_domain
        .as_ref()
        .is_some_and(|domain| !domain.trim().is_empty());
    if needs_domain && !has_domain {
        let hint = "name the streams that have to reset together".to_owned();
        check.error("missing_field", path, "this policy needs sync_domain", hint);
    }
}

fn fairness(path: &str, key: Option<&str>, check: &mut Check<'_, '_>) {
    if key.is_some_and(|key| key.trim().is_empty()) {
        let hint = "tenant, session, turn or a name of your own".to_owned();
        check.error(
            "blank",
            &format!("{path}.fairness_key"),
            "must not be blank",
            hint,
        );
    }
}

/// The rules of a policy bundle.
pub(super) fn policy(bundle: &PolicyBundle, check: &mut Check<'_, '_>) {
    if bundle.policy_resolution_snapshot.trim().is_empty() {
        let hint = "name this version of the policy, e.g. `policy/2026-11-01`".to_owned();
        check.error(
            "blank",
            "policy_resolution_snapshot",
            "must not be blank",
            hint,
        );
    }
    let surfaces = [
        ("budgets", bundle.budgets.is_some()),
        ("provider_bindings", bundle.provider_bindings.is_some()),
        (
            "edge_buffer_policies",
            bundle.edge_buffer_policies.is_some(),
        ),
        ("flow_control", bundle.flow_control.is_some()),
        ("recording_policy", bundle.recording_policy.is_some()),
    ];
    let names = |given: bool| -> Vec<&str> {
        let of = surfaces.iter().filter(|(_, is_given)| *is_given == given);
        of.map(|(name, _)| *name).collect()
    };
    let (given, missing) = (names(true), names(false));
    if let Some(first) = given.first().filter(|_| !missing.is_empty()) {
        check.error(
            "partial_override",
            first,
            format!("without {}", missing.join(", ")),
            "the five surfaces are overridden all together or not at all".to_owned(),
        );
    }
    if let Some(bindings) = &bundle.provider_bindings {
        providers::bindings("provider_bindings", bindings, check);
    }
    providers::providers("providers", &bundle.providers, check);
    if let Some(policies) = &bundle.edge_buffer_policies {
        if policies.is_empty() {
            let hint = "`default` stands for every edge".to_owned();
            check.error(
                "too_few",
                "edge_buffer_policies",
                "needs at least 1 entry",
                hint,
            );
        }
        for (edge, policy) in policies {
            resolved_buffer(&format!("edge_buffer_policies.{edge}"), policy, check);
        }
    }
    if let Some(recording) = &bundle.recording_policy
        && !recording.full_capture.is_empty()
        && recording.recording_level < RecordingLevel::L2
    {
        check.error(
            "full_capture",
            "recording_policy.full_capture",
            "payloads are kept whole at L2 only",
            "set `recording_level: L2`, or leave `full_capture` out".to_owned(),
        );
    }
    if let Some(problem) = bundle
        .recording_policy
        .as_ref()
        .and_then(|recording| recording.redact.problem())
    {
        check.error(
            "redact",
            "recording_policy.redact.terms",
            problem,
            "name at most 64 words or phrases".to_owned(),
        );
    }
    if let Some(flow) = &bundle.flow_control {
        low_below_high("flow_control.data_marks", flow.data_marks, check);
        low_below_high("flow_control.control_marks", flow.control_marks, check);
        low_below_high("flow_control.telemetry_marks", flow.telemetry_marks, check);
    }
    for (index, insertion) in bundle.insert_nodes.iter().enumerate() {
        let path = format!("insert_nodes[{index}].node");
        config::config(&path, &insertion.node, check);
    }
    for (node, execution) in &bundle.node_execution_policies {
        let path = format!("node_execution_policies.{node}");
        self::execution(&path, execution, check);
    }
}

/// The rules of how a node's work is scheduled and limited.
fn execution(path: &str, policy: &NodeExecutionPolicy, check: &mut Check<'_, '_>) {
    fairness(path, policy.fairness_key.as_deref(), check);
    for (name, limit) in [
        ("cpu_ms_per_second", policy.cpu_ms_per_second),
        ("memory_bytes", policy.memory_bytes),
    ] {
        if limit == Some(0) {
            let hint = "leave it out for no limit".to_owned();
            check.error(
                "range",
                &format!("{path}.{name}"),
                "must be at least 1",
                hint,
            );
        }
    }
}
