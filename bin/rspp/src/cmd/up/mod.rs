//! `rspp up`: the whole stack on this machine, in one process or as a fleet of them.

mod cluster;
mod observe;
mod page;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use rspp_archive::Place;
use rspp_host::{Config, Pools, Program, Reception, Runtime, ToolRegistry};
use rspp_kernel::plan::LayeredSettings;
use rspp_llm::SecretStore;
use rspp_otlp::{Otlp, OtlpError};
use rspp_proto::TenantId;
use rspp_provider_api::Providers;
use rspp_service::stop::Asked;
use rspp_tools::HttpTools;
use rspp_transport_api::Guard;
use rspp_websocket::{Config as Door, Server, listen};
use tokio::net::TcpListener;

use super::models::StoreOptions;
use crate::{
    call::{
        providers::{self, ProviderOptions},
        scripted,
    },
    problem::Problem,
    specs::{self, Setup, Source},
    terminal::{self, Live},
};

/// Talk to the agent in a browser: runtime, local models and a page, in one process
///
/// Prints one address; open it and press the button. The first run fetches the local models. Clients
/// of your own connect to /v1/talk below it, clients of the OpenAI Realtime API to /v1/realtime. /metrics
/// has the latencies of nodes and providers, where the pipeline measures them; /v1/observe what runs.
/// Ctrl-C lets what is being said be finished, then stops. With --nodes a control plane and runtimes are
/// started instead, each a process of its own.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp up                              The built-in agent, on http://localhost:7777
  rspp up --scripted                   Without models: a scripted agent that answers anything
  rspp up --pipeline agent.yaml --policy strict.yaml
  rspp up --nodes 3 --scripted         A fleet: kill a runtime, and its sessions go on elsewhere
  rspp up --nodes 3 --scripted --etcd http://127.0.0.1:2379 --control-planes 2
  rspp up --nodes 3 --scripted --export calls    Every session's timeline in a directory
  rspp up --record calls               What each caller heard, left the user, right the agent
  rspp up --listen 0.0.0.0             For other machines too: the address has a password in it
  rspp up --llm-url http://127.0.0.1:8080/v1 --llm-model qwen

While it runs:
  curl localhost:7777/metrics                                   Latencies, for a metrics backend
  curl localhost:7777/v1/observe                                Sessions and actors
  curl localhost:7777/v1/observe/sessions/ID/pipeline           What a session really runs
  curl -X POST 'localhost:7777/v1/observe/sessions/ID/capture?for_ms=5000&events=1000'
                                                                Its debug events, for a while")]
pub(crate) struct Up {
    /// The pipeline; the built-in one without
    #[arg(long, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    /// A policy bundle that overrides it
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Port of the page and of clients; 0 for any that is free
    #[arg(long, default_value_t = 7777)]
    port: u16,
    /// Address to listen at
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    listen: IpAddr,
    /// Record every call as it crosses the wire: a stereo WAV file each, gaps and all
    #[arg(long, value_name = "FOLDER")]
    record: Option<PathBuf>,
    /// Send each turn's trace to a collector, such as http://127.0.0.1:4317, by OTLP over gRPC
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    /// No models: a scripted agent, to try the line and your client
    #[arg(long, conflicts_with_all = ["stt", "llm", "tts", "vad", "end_of_turn", "llm_url"])]
    scripted: bool,
    /// A control plane and so many runtimes as processes, with mutual TLS between them; no page
    #[arg(long, value_name = "N", conflicts_with_all = ["policy", "port", "listen", "record"])]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=i64::from(cluster::MOST)))]
    nodes: Option<u16>,
    /// Members of an etcd cluster that keeps the fleet's records; a file without
    #[arg(long, value_name = "URL", value_delimiter = ',', requires = "nodes")]
    etcd: Vec<String>,
    /// Replicas of the fleet's control plane
    #[arg(long, value_name = "N", default_value_t = 1, requires = "etcd")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=i64::from(cluster::MOST_PLANES)))]
    control_planes: u16,
    /// Record a fleet's sessions, into an archive: a directory, `s3://bucket/prefix` or `http://host/bucket/prefix`
    #[arg(long, value_name = "PLACE", requires = "nodes")]
    export: Option<Place>,
    /// Keys that the archive is sealed with, by reference: see `rspp timeline keys --help`
    #[arg(long, value_name = "FILE", requires = "export")]
    archive_keys: Option<PathBuf>,
    /// Where a fleet keeps its credentials, records and logs
    #[arg(long, value_name = "DIR", default_value = ".rspp", requires = "nodes")]
    state: PathBuf,

    #[command(flatten)]
    providers: ProviderOptions,
    #[command(flatten)]
    store: StoreOptions,
    /// Do not fetch missing models
    #[arg(long, help_heading = "Models")]
    no_pull: bool,
}

/// A place as another process is told it.
fn absolute(place: Place) -> Result<String, Problem> {
    Ok(match place {
        Place::Directory(path) => {
            let path = std::path::absolute(path).map_err(Problem::failure)?;
            path.display().to_string()
        }
        Place::Bucket { .. } | Place::Server { .. } => place.to_string(),
    })
}

/// What a scripted agent says.
const ANSWERS: [&str; 2] = [
    "I hear you, though I understand nothing: I am a script. Speak over me, and I fall silent.",
    "This line works both ways. Take the models, and I will know what you say.",
];
/// How long what is being said may take to be finished.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the runtime may take to stop.
const GRACE: Duration = Duration::from_secs(3);

impl Up {
    pub(crate) fn run(self) -> Result<(), Problem> {
        // All that can be wrong with the input is told before anything is fetched or started.
        let settings = if self.scripted {
            scripted::settings()?
        } else {
            self.providers.settings()?
        };
        let source = self.pipeline.as_deref().map(specs::source).transpose()?;
        let setup = Setup::of_source(source.as_ref(), self.policy.as_deref(), settings)?;
        setup.plan()?;
        if let Some(folder) = self.record.as_ref().filter(|folder| !folder.is_dir()) {
            let name = folder.display();
            return Err(Problem::input(format!(
                "{name}: is no folder; create it first"
            )));
        }
        if let Some(url) = &self.otlp {
            rspp_otlp::check(&rspp_otlp::Config::new(url)).map_err(not_sent)?;
        }
        if !self.scripted {
            self.fetch_models(&setup)?;
        }
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(Problem::failure)?;
        match self.nodes {
            Some(nodes) => tokio.block_on(self.fleet(nodes, source, setup)?.run()),
            None => tokio.block_on(self.serve(setup)),
        }
    }

    fn fleet(
        self,
        nodes: u16,
        source: Option<Source>,
        setup: Setup,
    ) -> Result<cluster::Plan, Problem> {
        let providers = if self.scripted {
            serde_json::json!({"scripted": true})
        } else {
            self.providers.of_a_runtime(&self.store.open()?)
        };
        Ok(cluster::Plan {
            nodes,
            control_planes: self.control_planes,
            etcd: self.etcd,
            export: self.export.map(absolute).transpose()?,
            keys: self
                .archive_keys
                .map(std::path::absolute)
                .transpose()
                .map_err(Problem::failure)?,
            state: self.state,
            pipeline: source.map(|source| source.text),
            version: setup.authored.version,
            providers,
            otlp: self.otlp,
        })
    }

    fn fetch_models(&self, setup: &Setup) -> Result<(), Problem> {
        let store = self.store.open()?;
        let (offered, registered) = self.providers.register(&store, &Pools::new(1).work)?;
        let lacking = providers::lacking(&setup.providers()?, &offered, &registered)?;
        providers::fetch(&store, &lacking, !self.no_pull)
    }

    /// Who serves speech and language, ready to.
    async fn offered(&self, pools: &Pools) -> Result<Providers, Problem> {
        if self.scripted {
            return Ok(scripted::cast(ANSWERS));
        }
        let live = Live::new(true);
        live.say("loading models");
        let (offered, registered) = self.providers.register(&self.store.open()?, &pools.work)?;
        let warmed = registered.warm_up().await;
        live.clear();
        warmed.map_err(|fault| Problem::failure(fault.message))?;
        Ok(offered)
    }

    async fn serve(self, setup: Setup) -> Result<(), Problem> {
        // Before the models, which take a while: a port that is taken is told at once.
        let listener = self.bind()?;
        let address = listener.local_addr().map_err(Problem::failure)?;
        let mut stop = Asked::listen().map_err(Problem::failure)?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let pools = Pools::new(cores);
        let offered = tokio::select! {
            offered = self.offered(&pools) => offered?,
            _signal = stop.next() => return Err(Problem::Interrupted),
        };
        let mut config = Config::new(offered, pools);
        config.tools = Arc::new(ToolRegistry::with_http(HttpTools::default().into_factory()));
        // A machine that is slow is no reason to refuse its owner.
        config.limits.overload.scheduler_late_ms = None;
        config.limits.overload.output_late_ms = None;
        let traces = self.traces()?;
        config.spans = traces.as_ref().map(Otlp::sink);
        let runtime = Runtime::start(config).await.map_err(Problem::failure)?;
        let runtime = Arc::new(runtime);

        let password =
            (!address.ip().is_loopback()).then(|| format!("{:016x}", rand::random::<u64>()));
        let reception = Reception::new(Arc::clone(&runtime), program(setup));
        let door = Door {
            guard: Guard::Local {
                tenant: TenantId::new("local").map_err(Problem::failure)?,
                password: password.clone(),
            },
            recordings: self.record.clone(),
            ..Door::default()
        };
        let server = Server::new(Arc::new(reception), door);
        let app = server
            .router()
            .merge(page::router())
            .merge(observe::router(Arc::clone(&runtime), Arc::clone(&server)));
        let serving = tokio::spawn(async move { axum::serve(listener, app).await });

        terminal::print(shown(address, password.as_deref()))?;
        terminal::note(clients(address, password.as_deref()));
        tokio::select! {
            _signal = stop.next() => {}
            failed = serving => {
                return Err(Problem::failure(format!("the server stopped: {failed:?}")));
            }
        }
        terminal::note("\nstopping; Ctrl-C again to stop at once");
        tokio::spawn(async move {
            stop.next().await;
            std::process::exit(130);
        });
        if !server.drain(DRAIN).await {
            terminal::note("some calls were cut off");
        }
        if !runtime.shut_down(GRACE).await {
            tracing::warn!("some actors had to be killed");
        }
        if let Some(traces) = traces
            && !traces.finish(GRACE).await
        {
            terminal::note("some traces were not sent");
        }
        Ok(())
    }

    /// Who sends traces, if somebody is to have them.
    fn traces(&self) -> Result<Option<Otlp>, Problem> {
        let Some(url) = &self.otlp else {
            return Ok(None);
        };
        let config = rspp_otlp::Config {
            resource: vec![
                ("service.name", "rspp".to_owned()),
                ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            ],
            ..rspp_otlp::Config::new(url)
        };
        let started = Otlp::start(&config, SecretStore::environment());
        Ok(Some(started.map_err(not_sent)?))
    }

    fn bind(&self) -> Result<TcpListener, Problem> {
        let address = SocketAddr::new(self.listen, self.port);
        listen(address).map_err(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => Problem::input(format!(
                "port {} is taken; stop what listens there, or choose another with --port",
                self.port
            )),
            _ => Problem::input(format!("cannot listen at {address}: {error}")),
        })
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the form that `map_err` takes"
)]
fn not_sent(error: OtlpError) -> Problem {
    Problem::input(format!("--otlp: {error}"))
}

fn program(setup: Setup) -> Program {
    let Setup {
        authored,
        policy,
        settings,
        spec: _,
        graph: _,
    } = setup;
    let settings: LayeredSettings = settings;
    Program {
        pipeline: authored,
        policy,
        settings,
    }
}

/// The address that a person opens.
fn shown(address: SocketAddr, password: Option<&str>) -> String {
    let ip = address.ip();
    let host = if ip == IpAddr::V4(Ipv4Addr::LOCALHOST) {
        "localhost".to_owned()
    } else if ip.is_unspecified() {
        "<this machine>".to_owned()
    } else {
        match ip {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        }
    };
    let password = password.map(|it| format!("#{it}")).unwrap_or_default();
    format!("http://{host}:{}/{password}", address.port())
}

/// Where programs connect, for people; the address alone is for programs to read.
fn clients(address: SocketAddr, password: Option<&str>) -> String {
    let base = shown(address, None).replacen("http", "ws", 1);
    let base = base.trim_end_matches('/');
    let key = password.map_or_else(|| "any".to_owned(), |it| format!("`{it}`"));
    format!(
        "your own clients: {base}{talk}\nclients of the OpenAI Realtime API: {base}{realtime} (API key: {key})",
        talk = rspp_websocket::PATH,
        realtime = rspp_websocket::realtime::PATH,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_one_to_open() {
        let at = |address: &str| address.parse::<SocketAddr>().unwrap();
        assert_eq!(shown(at("127.0.0.1:7777"), None), "http://localhost:7777/");
        assert_eq!(shown(at("10.0.0.7:80"), Some("x")), "http://10.0.0.7:80/#x");
        assert_eq!(shown(at("[::1]:80"), None), "http://[::1]:80/");
    }

    #[test]
    fn programs_are_told_where_to_connect() {
        let told = clients("10.0.0.7:80".parse().unwrap(), Some("x"));
        assert!(told.contains("ws://10.0.0.7:80/v1/talk"), "{told}");
        let realtime = "ws://10.0.0.7:80/v1/realtime (API key: `x`)";
        assert!(told.contains(realtime), "{told}");
    }
}
