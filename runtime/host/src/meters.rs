//! What a session measures of itself while it is asked to: latencies and depths, by node and edge
//! (F-026, F-040, F-068, F-069).
//!
//! Off unless the pipeline or the session's settings turn it on; then each handler and each event
//! costs one short lock that nobody else wants.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use rspp_kernel::edge::EdgeCounters;
use rspp_proto::{
    EdgeId, Lane, MetricSample, Monotonic, NodeId, PipelineVersion, ProviderId, SessionId,
    spec::Strategy,
};
use serde::{Deserialize, Serialize};

/// Percentiles of durations, in milliseconds of the node's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Measurements.
    pub samples: u64,
    /// Median.
    pub p50_ms: f64,
    /// 95th percentile.
    pub p95_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Largest.
    pub max_ms: f64,
}

/// What was measured of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeMeasurements {
    /// What it does.
    pub node_type: String,
    /// Who serves it, if anybody.
    pub provider: Option<ProviderId>,
    /// From the begin of a handler until all that it emitted is sent.
    pub latency: Latency,
    /// From the acceptance of a cancel until the node has let go.
    pub cancel: Latency,
}

/// What was measured of an edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EdgeMeasurements {
    /// The node it leads to.
    pub node_id: NodeId,
    /// What gives when it is full.
    pub strategy: Strategy,
    /// From an event's arrival on the edge until the node takes it.
    pub latency: Latency,
    /// Events that wait.
    pub depth: u64,
    /// The most that ever waited.
    pub deepest: u64,
    /// Events given up.
    pub dropped: u64,
    /// Events folded into others.
    pub merged: u64,
}

/// What a session has measured so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurements {
    /// The pipeline that it runs.
    pub pipeline_version: PipelineVersion,
    /// By node.
    pub nodes: BTreeMap<NodeId, NodeMeasurements>,
    /// By edge.
    pub edges: BTreeMap<EdgeId, EdgeMeasurements>,
    /// From the acceptance of a cancel until the output has let go of the turn.
    pub cancel: Latency,
    /// Cancels by their reason code (F-035).
    pub cancels: BTreeMap<String, u64>,
}

/// A session's instruments; they outlive the turns that they measure.
#[derive(Debug)]
pub(crate) struct Meters {
    version: PipelineVersion,
    nodes: Mutex<BTreeMap<NodeId, Arc<NodeMeter>>>,
    edges: Mutex<BTreeMap<EdgeId, Arc<EdgeMeter>>>,
    cancel: Spans,
    /// When work was last told to stop, in microseconds; 0 for never.
    cancelled_at: AtomicU64,
    /// Whether the output has yet to let go.
    sounds: AtomicBool,
    /// Cancels by reason; the reasons are the kernel's own words, so there are four.
    cancels: Mutex<BTreeMap<&'static str, u64>>,
}

/// A node's instruments.
#[derive(Debug)]
pub(crate) struct NodeMeter {
    kind: String,
    provider: Option<ProviderId>,
    latency: Spans,
    cancel: Spans,
}

/// An edge's instruments.
#[derive(Debug)]
pub(crate) struct EdgeMeter {
    to: NodeId,
    strategy: Strategy,
    latency: Spans,
    depth: AtomicU64,
    deepest: AtomicU64,
    /// What edges of earlier turns have lost, and what the present one has.
    lost: Mutex<Lost>,
}

#[derive(Debug, Default)]
struct Lost {
    before: (u64, u64),
    now: (u64, u64),
}

/// A histogram of durations in microseconds; takes memory as it comes to larger ones.
#[derive(Debug)]
struct Spans(Mutex<Histogram<u32>>);

impl Default for Spans {
    fn default() -> Self {
        Self(Mutex::new(
            Histogram::new(2).expect("the precision is allowed"),
        ))
    }
}

impl Spans {
    fn add(&self, span: Duration) {
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        // What takes longer than an hour counts as an hour.
        if lock(&self.0).record(micros.min(3_600_000_000)).is_err() {
            tracing::error!("a histogram that grows has refused a value");
        }
    }

    fn latency(&self) -> Latency {
        let spans = lock(&self.0);
        if spans.is_empty() {
            return Latency::default();
        }
        let ms = |micros: u64| micros as f64 / 1e3;
        Latency {
            samples: spans.len(),
            p50_ms: ms(spans.value_at_quantile(0.5)),
            p95_ms: ms(spans.value_at_quantile(0.95)),
            p99_ms: ms(spans.value_at_quantile(0.99)),
            max_ms: ms(spans.max()),
        }
    }
}

impl NodeMeter {
    pub(crate) fn handled(&self, took: Duration) {
        self.latency.add(took);
    }

    pub(crate) fn let_go(&self, took: Duration) {
        self.cancel.add(took);
    }
}

impl EdgeMeter {
    /// An event was offered or taken.
    pub(crate) fn stands(&self, depth: usize, counters: EdgeCounters) {
        self.depth.store(depth as u64, Ordering::Relaxed);
        self.deepest.fetch_max(counters.deepest, Ordering::Relaxed);
        let lost = (counters.dropped, counters.merged);
        let mut known = lock(&self.lost);
        if lost < known.now {
            // The edge of another turn: it counts anew.
            known.before.0 += known.now.0;
            known.before.1 += known.now.1;
        }
        known.now = lost;
    }

    /// The node took an event that had waited so long.
    pub(crate) fn took(&self, waited: Duration) {
        self.latency.add(waited);
    }

    fn lost(&self) -> (u64, u64) {
        let known = lock(&self.lost);
        (known.before.0 + known.now.0, known.before.1 + known.now.1)
    }
}

impl Meters {
    pub(crate) fn new(version: PipelineVersion) -> Self {
        Self {
            version,
            nodes: Mutex::default(),
            edges: Mutex::default(),
            cancel: Spans::default(),
            cancelled_at: AtomicU64::new(0),
            sounds: AtomicBool::new(false),
            cancels: Mutex::default(),
        }
    }

    /// The instruments of a node.
    pub(crate) fn node(
        &self,
        node: &NodeId,
        kind: &str,
        provider: Option<&ProviderId>,
    ) -> Arc<NodeMeter> {
        let mut nodes = lock(&self.nodes);
        let meter = nodes.entry(node.clone()).or_insert_with(|| {
            Arc::new(NodeMeter {
                kind: kind.to_owned(),
                provider: provider.cloned(),
                latency: Spans::default(),
                cancel: Spans::default(),
            })
        });
        Arc::clone(meter)
    }

    /// The instruments of an edge. Those of one turn's edge go on in the next turn.
    pub(crate) fn edge(&self, edge: &EdgeId, to: &NodeId, strategy: Strategy) -> Arc<EdgeMeter> {
        let mut edges = lock(&self.edges);
        let meter = edges.entry(edge.clone()).or_insert_with(|| {
            Arc::new(EdgeMeter {
                to: to.clone(),
                strategy,
                latency: Spans::default(),
                depth: AtomicU64::new(0),
                deepest: AtomicU64::new(0),
                lost: Mutex::default(),
            })
        });
        Arc::clone(meter)
    }

    /// Work is told to stop; `whole` if the user is to hear silence, after an accepted cancel.
    pub(crate) fn cancelled(&self, at: Monotonic, whole: bool) {
        self.sounds.fetch_or(whole, Ordering::Relaxed);
        let micros = u64::try_from(at.as_duration().as_micros()).unwrap_or(u64::MAX);
        self.cancelled_at.store(micros.max(1), Ordering::Relaxed);
    }

    /// A cancel was accepted.
    pub(crate) fn accepted(&self, reason: &'static str) {
        *lock(&self.cancels).entry(reason).or_default() += 1;
    }

    /// How long ago work was told to stop.
    pub(crate) fn since_cancel(&self, now: Monotonic) -> Option<Duration> {
        let at = self.cancelled_at.load(Ordering::Relaxed);
        (at > 0).then(|| now.as_duration().saturating_sub(Duration::from_micros(at)))
    }

    /// The output has let go of the cancelled turn. Counted once for each cancel.
    pub(crate) fn fell_silent(&self, now: Monotonic) {
        if self.sounds.swap(false, Ordering::Relaxed)
            && let Some(took) = self.since_cancel(now)
        {
            self.cancel.add(took);
        }
    }

    /// What was measured so far.
    pub(crate) fn measurements(&self) -> Measurements {
        let nodes = lock(&self.nodes);
        let edges = lock(&self.edges);
        Measurements {
            pipeline_version: self.version.clone(),
            nodes: nodes
                .iter()
                .map(|(node, meter)| {
                    let measured = NodeMeasurements {
                        node_type: meter.kind.clone(),
                        provider: meter.provider.clone(),
                        latency: meter.latency.latency(),
                        cancel: meter.cancel.latency(),
                    };
                    (node.clone(), measured)
                })
                .collect(),
            edges: edges
                .iter()
                .map(|(edge, meter)| {
                    let (dropped, merged) = meter.lost();
                    let measured = EdgeMeasurements {
                        node_id: meter.to.clone(),
                        strategy: meter.strategy,
                        latency: meter.latency.latency(),
                        depth: meter.depth.load(Ordering::Relaxed),
                        deepest: meter.deepest.load(Ordering::Relaxed),
                        dropped,
                        merged,
                    };
                    (edge.clone(), measured)
                })
                .collect(),
            cancel: self.cancel.latency(),
            cancels: lock(&self.cancels)
                .iter()
                .map(|(reason, count)| ((*reason).to_owned(), *count))
                .collect(),
        }
    }
}

/// The instruments of all sessions that are measured.
#[derive(Debug, Default)]
pub(crate) struct Metered(Mutex<BTreeMap<SessionId, Weak<Meters>>>);

impl Metered {
    pub(crate) fn add(&self, session: SessionId, meters: &Arc<Meters>) {
        let mut sessions = lock(&self.0);
        // Sessions that are over leave: there are never more here than are open.
        sessions.retain(|_, meters| meters.strong_count() > 0);
        sessions.insert(session, Arc::downgrade(meters));
    }

    pub(crate) fn measurements(&self) -> BTreeMap<SessionId, Measurements> {
        let sessions = lock(&self.0);
        let alive = sessions
            .iter()
            .filter_map(|(session, meters)| Some((session.clone(), meters.upgrade()?)));
        let alive: Vec<_> = alive.collect();
        drop(sessions);
        let measured = alive.into_iter();
        measured
            .map(|(session, meters)| (session, meters.measurements()))
            .collect()
    }
}

/// One measurement, and what it was made of.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) node: NodeId,
    pub(crate) edge: Option<EdgeId>,
    pub(crate) sample: MetricSample,
}

/// What has changed since `before`, as in-band metrics: names, units and labels as in
/// observability.md §5. Latencies are in milliseconds, one sample for each quantile; the depth of an
/// edge is told each time, so that it is a series.
pub(crate) fn samples(before: Option<&Measurements>, now: &Measurements) -> Vec<Measured> {
    let mut list = Vec::new();
    let version = ("pipeline_version", now.pipeline_version.as_str());
    for (node, measured) in &now.nodes {
        let known = before.and_then(|before| before.nodes.get(node));
        let mut labels = vec![
            version,
            ("node_id", node.as_str()),
            ("node_type", measured.node_type.as_str()),
        ];
        if let Some(provider) = &measured.provider {
            labels.push(("provider_id", provider.as_str()));
        }
        for (name, latency, old) in [
            (
                "node_latency_ms",
                measured.latency,
                known.map(|known| known.latency),
            ),
            (
                "cancel_latency_ms",
                measured.cancel,
                known.map(|known| known.cancel),
            ),
        ] {
            if latency.samples > old.map_or(0, |old| old.samples) {
                quantiles(&mut list, node, None, name, latency, &labels);
            }
        }
    }
    for (edge, measured) in &now.edges {
        let known = before.and_then(|before| before.edges.get(edge));
        let labels = [
            version,
            ("node_id", measured.node_id.as_str()),
            ("edge_id", edge.as_str()),
            ("lane", Lane::Data.as_str()),
        ];
        let node = &measured.node_id;
        let mut tell = |name: &str, value: u64, more: &[(&str, &str)]| {
            list.push(Measured {
                node: node.clone(),
                edge: Some(edge.clone()),
                sample: sample(name, value as f64, labels.iter().chain(more)),
            });
        };
        tell(
            "edge_queue_depth",
            measured.depth,
            &[("status", "accepted")],
        );
        let strategy = strategy_name(measured.strategy);
        if measured.dropped > known.map_or(0, |known| known.dropped) {
            tell(
                "edge_drops_total",
                measured.dropped,
                &[("strategy", strategy)],
            );
        }
        if measured.merged > known.map_or(0, |known| known.merged) {
            tell("edge_merges_total", measured.merged, &[]);
        }
        if measured.latency.samples > known.map_or(0, |known| known.latency.samples) {
            let name = "edge_latency_ms";
            quantiles(&mut list, node, Some(edge), name, measured.latency, &labels);
        }
    }
    list
}

fn quantiles(
    list: &mut Vec<Measured>,
    node: &NodeId,
    edge: Option<&EdgeId>,
    name: &str,
    latency: Latency,
    labels: &[(&str, &str)],
) {
    for (quantile, value) in [
        ("0.5", latency.p50_ms),
        ("0.95", latency.p95_ms),
        ("0.99", latency.p99_ms),
    ] {
        list.push(Measured {
            node: node.clone(),
            edge: edge.cloned(),
            sample: sample(name, value, labels.iter().chain(&[("quantile", quantile)])),
        });
    }
}

fn sample<'a>(
    name: &str,
    value: f64,
    labels: impl Iterator<Item = &'a (&'a str, &'a str)>,
) -> MetricSample {
    MetricSample {
        name: name.to_owned(),
        value,
        labels: labels
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    }
}

fn strategy_name(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Block => "block",
        Strategy::DropOldest => "drop_oldest",
        Strategy::DropNewest => "drop_newest",
        Strategy::Merge => "merge",
        Strategy::Sample => "sample",
        Strategy::LatestOnly => "latest_only",
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
