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

use hdrhistogram::{Counter, Histogram};
use rspp_kernel::edge::EdgeCounters;
use rspp_proto::{
    EdgeId, Lane, MetricSample, Monotonic, NodeId, OutcomeClass, PipelineVersion, ProviderId,
    RetryDecision, SessionId,
    metric::{Metric, MetricLabel, MetricLabel as L},
    spec::{Modality, Strategy},
};
use rspp_timeline::AttemptRecord;
use serde::{Deserialize, Serialize};

use crate::totals::{Labels, LatencySeries, Series, Totals};

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

impl Latency {
    /// Of a histogram of microseconds.
    pub(crate) fn of<C: Counter>(spans: &Histogram<C>) -> Self {
        if spans.is_empty() {
            return Self::default();
        }
        let ms = |micros: u64| micros as f64 / 1e3;
        Self {
            samples: spans.len(),
            p50_ms: ms(spans.value_at_quantile(0.5)),
            p95_ms: ms(spans.value_at_quantile(0.95)),
            p99_ms: ms(spans.value_at_quantile(0.99)),
            max_ms: ms(spans.max()),
        }
    }
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
    /// From the start of its own process until that is ready, its sandbox included (F-124).
    #[serde(default)]
    pub start: Latency,
    /// From the acceptance of a cancel until the node has let go.
    pub cancel: Latency,
    /// Cancels that took it longer than they may (NF-003).
    #[serde(default)]
    pub slow_cancels: u64,
    /// Processor time that it took, in milliseconds, if that is limited (F-107).
    #[serde(default)]
    pub cpu_ms: f64,
    /// Times that it was found beyond its processor time.
    #[serde(default)]
    pub cpu_violations: u64,
    /// Times that it was found beyond its memory.
    #[serde(default)]
    pub memory_violations: u64,
}

/// What was measured of a provider that a node asks; the same of every provider (F-065).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProviderMeasurements {
    /// What it does.
    pub modality: Modality,
    /// From a request until its answer was over.
    pub rtt: Latency,
    /// From a request until the first piece of its answer.
    pub first_chunk: Latency,
    /// What requests waited for this machine before the provider had them.
    pub queue_wait: Latency,
    /// Requests by the class of how they ended.
    pub attempts: BTreeMap<String, u64>,
    /// Requests that led to another, by what was decided.
    pub retries: BTreeMap<String, u64>,
    /// Requests that failed, by code.
    pub errors: BTreeMap<String, u64>,
    /// Bytes of what was asked: text, or audio.
    pub request_bytes: u64,
    /// Bytes of what was answered.
    pub response_bytes: u64,
    /// What this vendor counts beside that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extras: BTreeMap<String, f64>,
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
    /// By the node that asks and who was asked.
    pub providers: BTreeMap<NodeId, BTreeMap<ProviderId, ProviderMeasurements>>,
    /// From the acceptance of a cancel until the output has let go of the turn.
    pub cancel: Latency,
    /// Cancels that took longer than they may until the user heard nothing more.
    #[serde(default)]
    pub slow_cancels: u64,
    /// Cancels by their reason code (F-035).
    pub cancels: BTreeMap<String, u64>,
}

/// A session's instruments; they outlive the turns that they measure.
#[derive(Debug)]
pub(crate) struct Meters {
    version: PipelineVersion,
    nodes: Mutex<BTreeMap<NodeId, Arc<NodeMeter>>>,
    edges: Mutex<BTreeMap<EdgeId, Arc<EdgeMeter>>>,
    /// As many as nodes have candidates.
    providers: Mutex<BTreeMap<(NodeId, ProviderId), ProviderMeter>>,
    cancel: Cancels,
    /// When work was last told to stop, in microseconds; 0 for never.
    cancelled_at: AtomicU64,
    /// Whether the output has yet to let go.
    sounds: AtomicBool,
    /// Cancels by reason; the reasons are the kernel's own words, so there are four.
    cancels: Mutex<BTreeMap<&'static str, u64>>,
    /// Where all that was measured goes in the end.
    totals: Arc<Totals>,
}

/// A node's instruments.
#[derive(Debug)]
pub(crate) struct NodeMeter {
    kind: String,
    provider: Option<ProviderId>,
    latency: Spans,
    start: Spans,
    cancel: Cancels,
    /// Microseconds.
    cpu: AtomicU64,
    cpu_violations: AtomicU64,
    memory_violations: AtomicU64,
}

/// A provider's instruments at one node.
#[derive(Debug)]
struct ProviderMeter {
    modality: Modality,
    rtt: Spans,
    first_chunk: Spans,
    queue_wait: Spans,
    attempts: BTreeMap<&'static str, u64>,
    retries: BTreeMap<&'static str, u64>,
    errors: BTreeMap<String, u64>,
    request_bytes: u64,
    response_bytes: u64,
    extras: BTreeMap<String, f64>,
}

/// Codes and names of one provider that are told apart; the others are told together.
const MOST_NAMES: usize = 32;
const OTHERS: &str = "others";

impl ProviderMeter {
    fn new(modality: Modality) -> Self {
        Self {
            modality,
            rtt: Spans::default(),
            first_chunk: Spans::default(),
            queue_wait: Spans::default(),
            attempts: BTreeMap::new(),
            retries: BTreeMap::new(),
            errors: BTreeMap::new(),
            request_bytes: 0,
            response_bytes: 0,
            extras: BTreeMap::new(),
        }
    }

    fn asked(&mut self, attempt: &AttemptRecord) {
        self.rtt.add(attempt.latency());
        if let Some(latency) = attempt.first_chunk_latency() {
            self.first_chunk.add(latency);
        }
        self.queue_wait
            .add(Duration::from_millis(attempt.queue_wait_ms));
        let outcome = attempt.outcome_class.as_str();
        *self.attempts.entry(outcome).or_default() += 1;
        match attempt.retry_decision {
            RetryDecision::None => {}
            RetryDecision::Retry | RetryDecision::ProviderSwitch | RetryDecision::Fallback => {
                let decision = attempt.retry_decision.as_str();
                *self.retries.entry(decision).or_default() += 1;
            }
        }
        match attempt.outcome_class {
            OutcomeClass::Success | OutcomeClass::Cancelled => {}
            OutcomeClass::Timeout
            | OutcomeClass::Overload
            | OutcomeClass::Blocked
            | OutcomeClass::InfrastructureFailure => {
                *named(&mut self.errors, &attempt.reason) += 1;
            }
        }
        self.request_bytes += attempt.bytes_in;
        self.response_bytes += attempt.bytes_out;
        for (name, amount) in &attempt.extras {
            *named(&mut self.extras, name) += amount;
        }
    }

    fn measurements(&self) -> ProviderMeasurements {
        let counts = |of: &BTreeMap<&'static str, u64>| {
            let counts = of.iter();
            counts
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect()
        };
        ProviderMeasurements {
            modality: self.modality,
            rtt: self.rtt.latency(),
            first_chunk: self.first_chunk.latency(),
            queue_wait: self.queue_wait.latency(),
            attempts: counts(&self.attempts),
            retries: counts(&self.retries),
            errors: self.errors.clone(),
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            extras: self.extras.clone(),
        }
    }
}

/// The count under a name, or under that of all others once there are many: names become labels.
fn named<'a, T: Default>(counts: &'a mut BTreeMap<String, T>, name: &str) -> &'a mut T {
    let known = counts.len() < MOST_NAMES || counts.contains_key(name);
    let name = if known { name } else { OTHERS };
    counts.entry(name.to_owned()).or_default()
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
        Latency::of(&lock(&self.0))
    }

    fn add_to(&self, series: &mut Series, metric: Metric, labels: &Labels) {
        series.add(metric, labels.clone(), &lock(&self.0));
    }
}

/// How long cancels take, and how many take longer than they may.
#[derive(Debug)]
struct Cancels {
    spans: Spans,
    limit: Duration,
    slow: AtomicU64,
}

impl Cancels {
    fn within(limit: Duration) -> Self {
        Self {
            spans: Spans::default(),
            limit,
            slow: AtomicU64::new(0),
        }
    }

    fn add(&self, took: Duration) {
        self.spans.add(took);
        if took > self.limit {
            self.slow.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn slow(&self) -> u64 {
        self.slow.load(Ordering::Relaxed)
    }
}

impl NodeMeter {
    pub(crate) fn handled(&self, took: Duration) {
        self.latency.add(took);
    }

    pub(crate) fn started(&self, took: Duration) {
        self.start.add(took);
    }

    pub(crate) fn let_go(&self, took: Duration) {
        self.cancel.add(took);
    }

    pub(crate) fn computed(&self, busy: Duration) {
        let micros = u64::try_from(busy.as_micros()).unwrap_or(u64::MAX);
        self.cpu.fetch_add(micros, Ordering::Relaxed);
    }

    pub(crate) fn was_throttled(&self) {
        self.cpu_violations.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn kept_too_much(&self) {
        self.memory_violations.fetch_add(1, Ordering::Relaxed);
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
    /// Instruments that tell cancels which take longer than `slow_cancel`.
    fn new(version: PipelineVersion, slow_cancel: Duration, totals: Arc<Totals>) -> Self {
        Self {
            version,
            nodes: Mutex::default(),
            edges: Mutex::default(),
            providers: Mutex::default(),
            cancel: Cancels::within(slow_cancel),
            cancelled_at: AtomicU64::new(0),
            sounds: AtomicBool::new(false),
            cancels: Mutex::default(),
            totals,
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
                start: Spans::default(),
                cancel: Cancels::within(self.cancel.limit),
                cpu: AtomicU64::new(0),
                cpu_violations: AtomicU64::new(0),
                memory_violations: AtomicU64::new(0),
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

    /// A request to a provider is over.
    pub(crate) fn asked(&self, attempt: &AttemptRecord) {
        let Some(node) = attempt.node_id.clone() else {
            return;
        };
        let mut providers = lock(&self.providers);
        let meter = providers
            .entry((node, attempt.provider_id.clone()))
            .or_insert_with(|| ProviderMeter::new(attempt.modality));
        meter.asked(attempt);
    }

    fn providers(&self) -> BTreeMap<NodeId, BTreeMap<ProviderId, ProviderMeasurements>> {
        let mut measured = BTreeMap::<NodeId, BTreeMap<_, _>>::new();
        for ((node, provider), meter) in &*lock(&self.providers) {
            let of_node = measured.entry(node.clone()).or_default();
            of_node.insert(provider.clone(), meter.measurements());
        }
        measured
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

    /// How far the user's media time was from the node's clock, where it comes in (NF-018).
    pub(crate) fn mapping(&self, ingress: &NodeId, p99_ms: u64) -> Measured {
        let labels = [
            (L::PipelineVersion, self.version.as_str()),
            (L::NodeId, ingress.as_str()),
            (L::Quantile, "0.99"),
        ];
        Measured {
            node: ingress.clone(),
            edge: None,
            sample: MetricSample::of(Metric::MappingError, p99_ms as f64, labels),
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
                        start: meter.start.latency(),
                        cancel: meter.cancel.spans.latency(),
                        slow_cancels: meter.cancel.slow(),
                        cpu_ms: meter.cpu.load(Ordering::Relaxed) as f64 / 1e3,
                        cpu_violations: meter.cpu_violations.load(Ordering::Relaxed),
                        memory_violations: meter.memory_violations.load(Ordering::Relaxed),
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
            providers: self.providers(),
            cancel: self.cancel.spans.latency(),
            slow_cancels: self.cancel.slow(),
            cancels: lock(&self.cancels)
                .iter()
                .map(|(reason, count)| ((*reason).to_owned(), *count))
                .collect(),
        }
    }
}

impl Meters {
    /// Adds what was measured to the series of all sessions.
    fn add_to(&self, series: &mut Series) {
        let version = &self.version;
        let nodes = lock(&self.nodes);
        for (node, meter) in &*nodes {
            let labels = of_node(version, node, &meter.kind, meter.provider.as_ref());
            for (metric, spans) in [
                (Metric::NodeLatency, &meter.latency),
                (Metric::NodeStart, &meter.start),
                (Metric::CancelLatency, &meter.cancel.spans),
            ] {
                spans.add_to(series, metric, &labels);
            }
        }
        for (edge, meter) in &*lock(&self.edges) {
            let served = nodes.get(&meter.to);
            let provider = served.and_then(|node| node.provider.as_ref());
            let labels = of_edge(version, edge, &meter.to, provider);
            meter.latency.add_to(series, Metric::EdgeLatency, &labels);
        }
        for ((node, provider), meter) in &*lock(&self.providers) {
            let labels = of_provider(version, node, provider, meter.modality);
            for (metric, spans) in [
                (Metric::ProviderRtt, &meter.rtt),
                (Metric::ProviderFirstChunk, &meter.first_chunk),
                (Metric::ProviderQueueWait, &meter.queue_wait),
            ] {
                spans.add_to(series, metric, &labels);
            }
        }
    }
}

impl Drop for Meters {
    fn drop(&mut self) {
        let totals = Arc::clone(&self.totals);
        totals.close(|series| self.add_to(series));
    }
}

/// What a node's metrics are labelled with, each in its own order.
fn of_node(
    version: &PipelineVersion,
    node: &NodeId,
    kind: &str,
    provider: Option<&ProviderId>,
) -> Labels {
    let mut labels = vec![
        (L::PipelineVersion, version.to_string()),
        (L::NodeId, node.to_string()),
        (L::NodeType, kind.to_owned()),
    ];
    labels.extend(provider.map(served_by));
    labels
}

/// The same of an edge. Who serves the node that it leads to is one of them: a slow provider is seen on
/// the edge before it.
fn of_edge(
    version: &PipelineVersion,
    edge: &EdgeId,
    to: &NodeId,
    provider: Option<&ProviderId>,
) -> Labels {
    let mut labels = vec![
        (L::PipelineVersion, version.to_string()),
        (L::NodeId, to.to_string()),
        (L::EdgeId, edge.to_string()),
        (L::Lane, Lane::Data.as_str().to_owned()),
    ];
    labels.extend(provider.map(served_by));
    labels
}

/// The same of a provider at one node.
fn of_provider(
    version: &PipelineVersion,
    node: &NodeId,
    provider: &ProviderId,
    modality: Modality,
) -> Labels {
    vec![
        (L::PipelineVersion, version.to_string()),
        (L::NodeId, node.to_string()),
        served_by(provider),
        (L::Modality, modality.as_str().to_owned()),
    ]
}

fn served_by(provider: &ProviderId) -> (MetricLabel, String) {
    (L::ProviderId, provider.to_string())
}

/// The instruments of all sessions that are measured, and what those before them have measured.
#[derive(Debug, Default)]
pub(crate) struct Metered {
    sessions: Mutex<BTreeMap<SessionId, Weak<Meters>>>,
    totals: Arc<Totals>,
}

impl Metered {
    /// Instruments for a session that is measured.
    pub(crate) fn add(
        &self,
        session: SessionId,
        version: PipelineVersion,
        slow_cancel: Duration,
    ) -> Arc<Meters> {
        let totals = Arc::clone(&self.totals);
        let meters = Arc::new(Meters::new(version, slow_cancel, totals));
        let mut sessions = lock(&self.sessions);
        // Sessions that are over leave: there are never more here than are open.
        sessions.retain(|_, meters| meters.strong_count() > 0);
        sessions.insert(session, Arc::downgrade(&meters));
        meters
    }

    fn alive(&self) -> Vec<(SessionId, Arc<Meters>)> {
        let sessions = lock(&self.sessions);
        let alive = sessions
            .iter()
            .filter_map(|(session, meters)| Some((session.clone(), meters.upgrade()?)));
        alive.collect()
    }

    pub(crate) fn measurements(&self) -> BTreeMap<SessionId, Measurements> {
        let measured = self.alive().into_iter();
        measured
            .map(|(session, meters)| (session, meters.measurements()))
            .collect()
    }

    /// Latencies over all sessions so far.
    pub(crate) fn latencies(&self) -> Vec<LatencySeries> {
        // Those first that run: one that ends meanwhile is counted once, or not yet.
        let alive = self.alive();
        let mut series = self.totals.series();
        for (_, meters) in &alive {
            meters.add_to(&mut series);
        }
        series.told()
    }
}

/// One measurement, and what it was made of.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) node: NodeId,
    pub(crate) edge: Option<EdgeId>,
    pub(crate) sample: MetricSample,
}

/// What has changed since `before`, as in-band metrics in the words of [`rspp_proto::metric`].
/// Latencies are in milliseconds, one sample for each quantile; the depth of an edge is told each time,
/// so that it is a series.
pub(crate) fn samples(before: Option<&Measurements>, now: &Measurements) -> Vec<Measured> {
    let mut list = Vec::new();
    let version = &now.pipeline_version;
    for (node, measured) in &now.nodes {
        let known = before.and_then(|before| before.nodes.get(node));
        let provider = measured.provider.as_ref();
        let labels = of_node(version, node, &measured.node_type, provider);
        let mut told = Telling {
            list: &mut list,
            node,
            edge: None,
            labels: &labels,
        };
        let old = known.map(|known| known.latency);
        told.latency(Metric::NodeLatency, measured.latency, old);
        let old = known.map(|known| known.start);
        told.latency(Metric::NodeStart, measured.start, old);
        let old = known.map(|known| known.cancel);
        told.latency(Metric::CancelLatency, measured.cancel, old);
        let old = known.map_or(0, |known| known.slow_cancels);
        told.count(Metric::SlowCancels, measured.slow_cancels, old, None);
        let (cpu, memory) = known.map_or((0, 0), |it| (it.cpu_violations, it.memory_violations));
        for (limit, count, old) in [
            ("cpu", measured.cpu_violations, cpu),
            ("memory", measured.memory_violations, memory),
        ] {
            let limit = Some((L::Limit, limit));
            told.count(Metric::NodeLimitViolations, count, old, limit);
        }
    }
    for (edge, measured) in &now.edges {
        let known = before.and_then(|before| before.edges.get(edge));
        let served = now.nodes.get(&measured.node_id);
        let provider = served.and_then(|node| node.provider.as_ref());
        let labels = of_edge(version, edge, &measured.node_id, provider);
        let mut told = Telling {
            list: &mut list,
            node: &measured.node_id,
            edge: Some(edge),
            labels: &labels,
        };
        let accepted = (L::Status, "accepted");
        told.value(
            Metric::EdgeQueueDepth,
            measured.depth as f64,
            Some(accepted),
        );
        let strategy = (L::Strategy, strategy_name(measured.strategy));
        let old = known.map_or(0, |known| known.dropped);
        told.count(Metric::EdgeDrops, measured.dropped, old, Some(strategy));
        let old = known.map_or(0, |known| known.merged);
        told.count(Metric::EdgeMerges, measured.merged, old, None);
        let old = known.map(|known| known.latency);
        told.latency(Metric::EdgeLatency, measured.latency, old);
    }
    for (node, providers) in &now.providers {
        for (provider, measured) in providers {
            let known = before.and_then(|before| before.providers.get(node)?.get(provider));
            let labels = of_provider(version, node, provider, measured.modality);
            let mut told = Telling {
                list: &mut list,
                node,
                edge: None,
                labels: &labels,
            };
            told.provider(measured, known);
        }
    }
    list
}

/// Measurements that have their node and most of their labels in common.
struct Telling<'a> {
    list: &'a mut Vec<Measured>,
    node: &'a NodeId,
    edge: Option<&'a EdgeId>,
    labels: &'a Labels,
}

impl Telling<'_> {
    fn value(&mut self, metric: Metric, value: f64, more: Option<(MetricLabel, &str)>) {
        let labels = self
            .labels
            .iter()
            .map(|(label, text)| (*label, text.as_str()));
        let labels = labels.chain(more);
        self.list.push(Measured {
            node: self.node.clone(),
            edge: self.edge.cloned(),
            sample: MetricSample::of(metric, value, labels),
        });
    }

    /// A total, if it has grown.
    fn count(&mut self, metric: Metric, now: u64, old: u64, more: Option<(MetricLabel, &str)>) {
        if now > old {
            self.value(metric, now as f64, more);
        }
    }

    /// Quantiles, if there are more measurements than before.
    fn latency(&mut self, metric: Metric, latency: Latency, old: Option<Latency>) {
        if latency.samples <= old.map_or(0, |old| old.samples) {
            return;
        }
        for (quantile, value) in [
            ("0.5", latency.p50_ms),
            ("0.95", latency.p95_ms),
            ("0.99", latency.p99_ms),
        ] {
            self.value(metric, value, Some((L::Quantile, quantile)));
        }
    }

    /// The same of every provider, whatever it does.
    fn provider(&mut self, now: &ProviderMeasurements, old: Option<&ProviderMeasurements>) {
        for (metric, latency, old) in [
            (Metric::ProviderRtt, now.rtt, old.map(|old| old.rtt)),
            (
                Metric::ProviderFirstChunk,
                now.first_chunk,
                old.map(|old| old.first_chunk),
            ),
            (
                Metric::ProviderQueueWait,
                now.queue_wait,
                old.map(|old| old.queue_wait),
            ),
        ] {
            self.latency(metric, latency, old);
        }
        for (metric, label, counts, old) in [
            (
                Metric::ProviderAttempts,
                L::Outcome,
                &now.attempts,
                old.map(|old| &old.attempts),
            ),
            (
                Metric::ProviderRetries,
                L::RetryDecision,
                &now.retries,
                old.map(|old| &old.retries),
            ),
            (
                Metric::ProviderErrors,
                L::ErrorCode,
                &now.errors,
                old.map(|old| &old.errors),
            ),
        ] {
            for (name, count) in counts {
                let old = old.and_then(|old| old.get(name)).copied().unwrap_or(0);
                self.count(metric, *count, old, Some((label, name)));
            }
        }
        let bytes = old.map_or(0, |old| old.request_bytes);
        self.count(Metric::ProviderRequestBytes, now.request_bytes, bytes, None);
        let bytes = old.map_or(0, |old| old.response_bytes);
        self.count(
            Metric::ProviderResponseBytes,
            now.response_bytes,
            bytes,
            None,
        );
        for (name, amount) in &now.extras {
            let old = old.and_then(|old| old.extras.get(name));
            if old != Some(amount) {
                self.value(Metric::ProviderExtra, *amount, Some((L::Extra, name)));
            }
        }
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
