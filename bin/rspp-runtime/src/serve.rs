//! Serving, from the first look at the providers to the last session.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::FutureExt;
use rspp_controlplane_api::{Client, ClientConfig, millis, tls::TlsFiles};
use rspp_host::{
    Config as HostConfig, Emptying, NodeRegistry, PlaneConfig, PlaneHandle, Pools, Program,
    Reception, Runtime, Step, ToolRegistry, node::Package, scrape,
};
use rspp_otlp::{Otlp, SpanCounts};
use rspp_proto::{
    MetricSample, ProviderId, Region, RuntimeId, TenantId,
    abi::SchemaVersion,
    control::{ARCHIVE_REGION, Description, Endpoint, Outage, PROTOCOL},
    metric::{self, Metric},
    spec::{Modality, Quota},
};
use rspp_service::{
    announce::announce,
    health::{self, Check, Health},
    stop::Asked,
};
use rspp_tools::HttpTools;
use rspp_transport_api::{Guard, Sessions};
use rspp_websocket::{Config as SocketConfig, PATH, Server, listen};
use serde_json::json;
use tokio::{net::TcpListener, time::Instant};

use crate::{
    Problem,
    config::{Config, ControlPlane, DrainMode},
    outputs::Outputs,
    providers,
    published::{self, Registry},
    sessions::NotedSessions,
    telemetry,
    timelines::Timelines,
    tokens::{Signed, Tokens},
};

/// How long the actors may take to end once the sessions are gone.
const GRACE: Duration = Duration::from_secs(5);
/// How long clients may take to hear where their sessions go on, and those that are left to be cut off.
const FAREWELL: Duration = Duration::from_secs(2);
/// How often the fleet is told whether all that sessions need is there.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// How often a drain says how far it has come.
const PROGRESS: Duration = Duration::from_secs(1);

/// Serves until somebody asks it to end.
pub(crate) async fn serve(config: Config) -> Result<(), Problem> {
    let mut asked = Asked::listen().map_err(Problem::failure)?;
    let pipeline = published::own(config.pipeline.as_deref())?;
    let nodes = packages(&config)?;
    let settings = providers::settings(&config.providers)?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let pools = Pools::new(cores);
    let (offered, registered) = providers::register(&config.providers, &settings, &pools.work)?;
    tokio::select! {
        warmed = registered.warm_up() => {
            warmed.map_err(|fault| Problem::failure(fault.message))?;
        }
        signal = asked.next() => {
            tracing::info!(signal, "asked to end while models were loaded");
            return Ok(());
        }
    }

    let failed = |key: &str, at: std::net::SocketAddr, error: std::io::Error| {
        Problem::failure(format!("{key}: {at}: {error}; choose another address"))
    };
    let (calls, healths) = (config.listen.calls, config.listen.health);
    let calls = listen(calls).map_err(|error| failed("listen.calls", calls, error))?;
    let bound = TcpListener::bind(healths).await;
    let healths = bound.map_err(|error| failed("listen.health", healths, error))?;
    let at = calls.local_addr().map_err(Problem::failure)?;
    let health_at = healths.local_addr().map_err(Problem::failure)?;

    let mut host = HostConfig::new(offered, pools);
    host.tools = Arc::new(ToolRegistry::with_http(HttpTools::default().into_factory()));
    host.nodes = Arc::new(nodes);
    host.limits.node.sessions = Some(Quota::at(u64::from(config.capacity)));
    let name = RuntimeId::new(config.name.as_str())
        .map_err(|error| Problem::input(format!("name: {error}")))?;
    let timelines = Timelines::open(&config, host.clock).await?;
    host.exports = timelines.as_ref().map(Timelines::exports);
    let archive_region = timelines.as_ref().map(|it| it.region().clone());
    host.plane = fleet(&config, &name, at, archive_region.as_ref())?;
    let traces = telemetry::start(&config)?;
    host.spans = traces.as_ref().map(Otlp::sink);
    let runtime = Runtime::start(host).await.map_err(Problem::failure)?;
    let runtime = Arc::new(runtime);
    let plane = runtime.plane();
    let timelines = timelines.map(|it| Arc::new(it.following(plane.as_ref())));
    let expiring = timelines.clone().zip(plane.clone()).map(|(it, plane)| {
        let every = config.timelines.expire_every.0;
        tokio::spawn(async move { it.expire(every, &plane).await })
    });
    let sessions = sessions(
        &config,
        &runtime,
        plane.clone(),
        timelines.clone(),
        Program {
            pipeline,
            policy: None,
            settings: settings.clone(),
        },
    )?;
    let guard = match &plane {
        Some(plane) => Guard::Tokens(Arc::new(Tokens::new(name.clone(), plane))),
        None if at.ip().is_loopback() => Guard::Local {
            tenant: TenantId::new("local").map_err(Problem::failure)?,
            password: None,
        },
        None => {
            return Err(Problem::input(format!(
                "listen.calls: {at} can be reached from elsewhere, and nobody could check tokens: set \
                 control_plane.addresses, or listen on 127.0.0.1"
            )));
        }
    };
    let server = Server::new(
        sessions,
        SocketConfig {
            guard,
            ..SocketConfig::default()
        },
    );
    let router = server.router();
    let serving = tokio::spawn(async move { axum::serve(calls, router).await });
    let state = Arc::new(State {
        runtime: Arc::clone(&runtime),
        plane: plane.clone(),
        capacity: config.capacity,
        needs: settings.defaults.provider_bindings,
        spans: traces
            .as_ref()
            .map(|traces| Box::new(traces.counts()) as Box<_>),
    });
    let telling = tokio::spawn(Arc::clone(&state).tell());
    let health = tokio::spawn(health::serve(healths, state));
    tracing::info!(calls = %at, health = %health_at, name = %name, "serving");
    if let Some(path) = &config.announce {
        announce(path, &json!({"calls": at, "health": health_at})).map_err(Problem::failure)?;
    }

    let signal = asked.next().await;
    drain(&config, signal, &runtime, plane.as_ref(), &mut asked).await;
    let _all_in_time = server.drain(FAREWELL).await;
    serving.abort();
    telling.abort();
    if let Some(expiring) = expiring {
        expiring.abort();
    }
    health.abort();
    let in_order = runtime.shut_down(GRACE).await;
    if let Some(timelines) = timelines {
        timelines.drain().await;
    }
    if let Some(traces) = traces
        && !traces.finish(telemetry::FLUSH).await
    {
        tracing::warn!("some traces were not sent");
    }
    if in_order {
        tracing::info!("ended in order");
    } else {
        tracing::warn!("some actors had to be killed");
    }
    Ok(())
}

/// The sessions of a runtime, as a log names them.
fn names(runtime: &Runtime) -> String {
    let names: Vec<_> = runtime
        .session_names()
        .iter()
        .map(ToString::to_string)
        .collect();
    names.join(", ")
}

/// Lets sessions go, and says how far that has come.
async fn drain(
    config: &Config,
    signal: &str,
    runtime: &Runtime,
    plane: Option<&PlaneHandle>,
    asked: &mut Asked,
) {
    let deadline = config.drain.deadline.0;
    let how = match (config.drain.how, plane) {
        (DrainMode::Move, Some(_)) => Emptying::Move,
        // There is nobody to go on with them.
        (DrainMode::Move, None) | (DrainMode::Finish, _) => Emptying::Finish,
        (DrainMode::Wait, _) => Emptying::Wait,
    };
    let had = runtime.sessions();
    tracing::info!(signal, sessions = had, how = how.as_str(), deadline = %config.drain.deadline, "asked to end");
    if let Some(plane) = plane {
        plane.set_ready(false);
    }
    // Nothing new from now on. What is here is told before any of it goes, and nothing is handed over before it
    // is known lately who could go on with it.
    let until = Instant::now() + deadline;
    runtime.empty(Emptying::Wait, deadline);
    if let Some(plane) = plane
        && let Err(why) = plane.begin_drain(how).await
    {
        let sessions = names(runtime);
        tracing::warn!(
            why,
            sessions,
            "of what becomes of these only this log tells"
        );
    }
    let mut moves_by = plane.filter(|_| how == Emptying::Move);
    if moves_by.is_none() {
        runtime.empty(how, deadline);
    }
    let mut told = Instant::now();
    loop {
        if let Some(plane) = moves_by
            && plane.fresh_view(Step::HandOver).await.is_ok()
        {
            moves_by = None;
            runtime.empty(how, until.saturating_duration_since(Instant::now()));
        }
        let left = runtime.sessions();
        if left == 0 {
            tracing::info!(had, "drained");
            return;
        }
        let now = Instant::now();
        if now >= until {
            tracing::warn!(
                left,
                sessions = names(runtime),
                "the time is up: they are cut off"
            );
            return;
        }
        if now >= told + PROGRESS {
            told = now;
            let remaining_ms = millis(until - now);
            tracing::info!(had, left, remaining_ms, "draining");
        }
        tokio::select! {
            signal = asked.next() => {
                tracing::warn!(signal, left, sessions = names(runtime), "asked again: they are cut off");
                return;
            }
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
}

/// Who opens sessions for clients.
fn sessions(
    config: &Config,
    runtime: &Arc<Runtime>,
    plane: Option<PlaneHandle>,
    timelines: Option<Arc<Timelines>>,
    program: Program,
) -> Result<Arc<dyn Sessions>, Problem> {
    let mut reception = Reception::new(Arc::clone(runtime), program);
    if let Some(timelines) = timelines {
        reception = reception.recording(move |begun| {
            let timelines = Arc::clone(&timelines);
            async move { timelines.begin(begun).await }.boxed()
        });
    }
    if let Some(plane) = plane {
        let registry = Arc::new(Registry::new(plane));
        reception = reception.finding(move |pipeline, versions| {
            let registry = Arc::clone(&registry);
            async move { registry.find(&pipeline, &versions).await }.boxed()
        });
    }
    let Some(path) = &config.outputs else {
        return Ok(Arc::new(reception));
    };
    let outputs = Outputs::open(path, &config.name)
        .map_err(|error| Problem::failure(format!("outputs: {}: {error}", path.display())))?;
    Ok(Arc::new(NotedSessions {
        sessions: reception,
        outputs,
    }))
}

/// The kinds of nodes that pipelines may name beside the built-in ones.
fn packages(config: &Config) -> Result<NodeRegistry, Problem> {
    let mut nodes = NodeRegistry::default();
    let Some(folder) = &config.packages else {
        return Ok(nodes);
    };
    let found =
        Package::load_all(folder).map_err(|error| Problem::input(format!("packages: {error}")))?;
    for package in found {
        tracing::info!(
            kind = package.kind(),
            digest = package.digest(),
            "a package"
        );
        nodes.register_package(package);
    }
    Ok(nodes)
}

/// The fleet that the settings name.
fn fleet(
    config: &Config,
    name: &RuntimeId,
    at: std::net::SocketAddr,
    archive: Option<&Region>,
) -> Result<Option<PlaneConfig>, Problem> {
    let ControlPlane {
        addresses,
        authorities,
        certificate,
        key,
        mode,
        max_staleness,
        max_view_age,
    } = &config.control_plane;
    if addresses.is_empty() {
        return Ok(None);
    }
    let tls = match (authorities, certificate, key) {
        (Some(authorities), Some(certificate), Some(key)) => Some(TlsFiles {
            authorities: authorities.clone(),
            certificate: certificate.clone(),
            key: key.clone(),
        }),
        (None, None, None) => None,
        _some => {
            return Err(Problem::input(
                "control_plane: authorities, certificate and key belong together; one of them is missing",
            ));
        }
    };
    let client = Client::new(ClientConfig {
        addresses: addresses.clone(),
        tls,
        ..ClientConfig::default()
    })
    .map_err(|error| Problem::input(format!("control_plane: {error}")))?;
    let url = match &config.listen.advertise {
        Some(url) => url.clone(),
        None => format!("ws://{at}{PATH}"),
    };
    let description = Description {
        region: Region::new(config.region.as_str())
            .map_err(|error| Problem::input(format!("region: {error}")))?,
        endpoints: vec![Endpoint {
            transport: "websocket".to_owned(),
            url,
        }],
        capacity: config.capacity,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL,
        events: SchemaVersion::CURRENT.to_string(),
        labels: labels(config, archive)?,
    };
    let mut fleet = PlaneConfig::new(
        name.clone(),
        description,
        Arc::new(client),
        Arc::new(Signed),
    );
    fleet.mode = *mode;
    fleet.max_staleness = max_staleness.0;
    fleet.max_view_age = max_view_age.0;
    Ok(Some(fleet))
}

/// What it says of itself, with where its archive lies.
fn labels(config: &Config, archive: Option<&Region>) -> Result<BTreeMap<String, String>, Problem> {
    let mut labels = config.labels.clone();
    if labels.contains_key(ARCHIVE_REGION) {
        return Err(Problem::input(format!(
            "labels.{ARCHIVE_REGION}: is told by timelines.region; set that"
        )));
    }
    labels.extend(archive.map(|region| (ARCHIVE_REGION.to_owned(), region.to_string())));
    Ok(labels)
}

/// How it fares.
struct State {
    runtime: Arc<Runtime>,
    plane: Option<PlaneHandle>,
    capacity: u32,
    /// Whom its sessions call, unless their pipelines say otherwise.
    needs: BTreeMap<Modality, Vec<ProviderId>>,
    /// What became of spans, where a collector is to have them.
    spans: Option<Box<dyn Fn() -> SpanCounts + Send + Sync>>,
}

impl State {
    /// What nobody serves just now: all that are asked for it are left alone after failures.
    fn unserved(&self) -> Vec<&'static str> {
        let resting = self.runtime.resting();
        let unserved = self.needs.iter().filter(|(modality, ids)| {
            ids.iter()
                .all(|id| resting.contains(&(**modality, id.clone())))
        });
        unserved.map(|(modality, _)| modality.as_str()).collect()
    }

    /// Whom its sessions would call first and leave alone because calls fail, and whom they call instead.
    fn outages(&self) -> Vec<Outage> {
        let resting = self.runtime.resting();
        let rests = |modality: Modality, id: &ProviderId| resting.contains(&(modality, id.clone()));
        let failing = self.needs.iter().filter_map(|(modality, ids)| {
            let provider = ids.first().filter(|id| rests(*modality, id))?;
            Some(Outage {
                modality: *modality,
                provider: provider.clone(),
                alternate: ids.iter().find(|id| !rests(*modality, id)).cloned(),
            })
        });
        failing.collect()
    }

    /// Tells the fleet whether sessions can be served here, and by whom not, as that changes (F-108, F-112).
    async fn tell(self: Arc<Self>) {
        let Some(plane) = &self.plane else { return };
        loop {
            plane.set_outages(self.outages());
            plane.set_ready(!self.runtime.is_emptying() && self.unserved().is_empty());
            tokio::time::sleep(TELL_EVERY).await;
        }
    }
}

impl Health for State {
    fn checks(&self) -> Vec<Check> {
        let sessions = self.runtime.sessions();
        let capacity = self.capacity as usize;
        let mut checks = vec![
            Check::new(
                "serving",
                !self.runtime.is_emptying(),
                if self.runtime.is_emptying() {
                    "is being emptied"
                } else {
                    "takes sessions"
                },
            ),
            Check::new(
                "capacity",
                sessions < capacity,
                format!("{sessions} of {capacity} sessions"),
            ),
        ];
        let unserved = self.unserved();
        checks.push(Check::new(
            "providers",
            unserved.is_empty(),
            if unserved.is_empty() {
                "nobody is left alone whom all sessions need".to_owned()
            } else {
                format!("whoever is to serve {} fails", unserved.join(", "))
            },
        ));
        if let Some(plane) = &self.plane {
            let status = plane.status();
            let status = status.borrow();
            let away = status.away.clone();
            checks.push(Check::new(
                "control_plane",
                status.holder.is_some(),
                match &status.holder {
                    Some(holder) => format!("joined as {holder}"),
                    None => away.unwrap_or_default(),
                },
            ));
            checks.push(Check::new(
                "snapshots",
                status.fresh,
                if status.fresh { "fresh" } else { "stale" },
            ));
            checks.push(Check::new(
                "duty",
                !status.draining,
                if status.draining {
                    "is to be emptied"
                } else {
                    "is to serve"
                },
            ));
        }
        checks
    }

    fn status(&self) -> serde_json::Value {
        json!({
            "timelines": self.runtime.export_stats(),
            "sessions": self.runtime.sessions(),
            "capacity": self.capacity,
            "load": self.runtime.load().as_str(),
        })
    }

    fn metrics(&self) -> String {
        let mut samples = self.runtime.admission().samples();
        let uncounted = self.runtime.uncounted();
        for (metric, count) in [
            (Metric::TokensUncounted, uncounted.tokens),
            (Metric::SessionsUncounted, uncounted.sessions),
        ] {
            if count > 0 {
                samples.push(MetricSample::of(metric, count as f64, []));
            }
        }
        if let Some(spans) = &self.spans {
            samples.extend(telemetry::samples(spans()));
        }
        let latencies = scrape::text(&self.runtime.latencies());
        metric::text(&samples) + &latencies
    }
}
