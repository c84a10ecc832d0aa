//! The control plane as a program: routes, leases, rollouts and audit over gRPC, on a file or on etcd.

mod config;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};

use clap::Parser;
use rspp_controlplane::{
    store::Store,
    token::{KeyId, PublicKey, SigningKey},
};
use rspp_controlplane_server::{OpenError, Plane, Server, Settings};
use rspp_controlplane_storage::{Embedded, Etcd};
use rspp_service::{
    announce::announce,
    credentials::{Authority, Files, exports},
    health::{self, Check, Health},
    logs,
    settings::{self, Flag, Loaded},
    stop::Asked,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::Instant};

use crate::config::{Config, Key, Tls};

/// Decides for a fleet of runtimes: who runs what, where, and who speaks for a session.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    /// Settings, as YAML
    #[arg(long, value_name = "FILE", env = "RSPP_CONTROL_PLANE_CONFIG")]
    config: Option<PathBuf>,
    /// One setting, over file and environment: --set listen.grpc=127.0.0.1:7500
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Make certificates, a signing key and a store in this directory, and run on them: for trying, on
    /// one machine
    #[arg(long, value_name = "DIR")]
    dev: Option<PathBuf>,
    /// Print all settings and where each came from, and run nothing
    #[arg(long)]
    print_config: bool,
}

const EXAMPLES: &str = "\
Examples:
  rspp-control-plane --dev .rspp                  All that is needed, made in .rspp
  rspp-control-plane --config control-plane.yaml  As the file says
  rspp-control-plane --print-config               What would be, and who said so

Settings come from, each over the one before: defaults, --config, the environment
(RSPP_CONTROL_PLANE_LISTEN__GRPC is listen.grpc), --dev, --set.

SIGTERM and Ctrl-C end it in order; a second one ends it at once.
Exit codes: 0 ended in order, 1 failure, 2 bad settings.";

type Failed = Box<dyn Error + Send + Sync>;

/// Runs the program by its command line; a library so that tests can have it as a process of theirs.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let loaded = match load(&cli) {
        Ok(loaded) => loaded,
        Err(error) => return report(&*error, 2),
    };
    if cli.print_config {
        print!("{}", loaded.print());
        return ExitCode::SUCCESS;
    }
    let config = loaded.settings;
    if let Err(error) = logs::init(&config.log) {
        return report(&error, 2);
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return report(&error, 1),
    };
    match runtime.block_on(run(config, cli.dev.as_deref())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<config::ConfigError>() => report(&*error, 2),
        Err(error) => report(&*error, 1),
    }
}

fn report(error: &(dyn Error + 'static), code: u8) -> ExitCode {
    logs::fail(error);
    ExitCode::from(code)
}

fn load(cli: &Cli) -> Result<Loaded<Config>, Failed> {
    let made = match &cli.dev {
        Some(dir) => made(dir)?,
        None => Vec::new(),
    };
    Ok(settings::gather(cli.config.as_deref(), made, &cli.set)?)
}

/// Makes what a control plane of this machine needs, and says where it is.
fn made(dir: &Path) -> Result<Vec<Flag>, Failed> {
    let authority = Authority::open(dir, &Config::default().domain)?;
    let server = authority.server("control-plane")?;
    authority.person("admin", "admin")?;
    let key = Key {
        id: "k1".to_owned(),
        file: authority.signing_key("k1")?,
    };
    let tls = Tls {
        authorities: authority.certificate(),
        certificate: server.certificate,
        key: server.key,
    };
    let flag = |key: &str, value: String| Flag {
        flag: "--dev".to_owned(),
        key: key.to_owned(),
        value,
    };
    let dir = dir.canonicalize()?;
    Ok(vec![
        flag("tls", json!(tls).to_string()),
        flag("keys", json!([key]).to_string()),
        flag("more_keys", authority.more_keys()?.display().to_string()),
        flag(
            "store.file",
            dir.join("control-plane.db").display().to_string(),
        ),
    ])
}

async fn run(config: Config, dev: Option<&Path>) -> Result<(), Failed> {
    let mut asked = Asked::listen()?;
    let (behaviour, door, signers) = (config.behaviour()?, config.door()?, config.signers()?);
    let health_at = config::address("listen.health", &config.listen.health)?;
    let store: Arc<dyn Store> = match config.cluster()? {
        Some(cluster) => Arc::new(Etcd::new(&cluster)?),
        None => Arc::new(Embedded::open(&config.store.file)?),
    };
    let held = publics(&signers);
    let bound = TcpListener::bind(health_at).await;
    let listener = bound.map_err(|error| format!("cannot listen on {health_at}: {error}"))?;
    let health_at = listener.local_addr()?;
    // It is alive from here on, and ready once its store answers.
    let begun = Arc::new(OnceLock::new());
    let answers = tokio::spawn(health::serve(
        listener,
        Arc::new(Answers(Arc::clone(&begun))),
    ));
    let plane = tokio::select! {
        opened = open(&config.store, store, &behaviour, &signers) => opened?,
        signal = asked.next() => {
            tracing::info!(signal, "ended before the store answered");
            return Ok(());
        }
    };
    let server = Server::start(plane.clone(), vec![door]).await?;
    let grpc = server.addresses()[0];
    let _it_is_the_first = begun.set(plane.clone());
    let keys = tokio::spawn(follow_keys(config.clone(), plane, held));
    tracing::info!(%grpc, health = %health_at, replica = %config.replica, "the control plane serves");
    if let Some(path) = &config.announce {
        announce(path, &json!({"grpc": grpc, "health": health_at}))?;
    }
    if let Some(dir) = dev {
        println!("{}", how_to_ask(dir, &grpc.to_string()));
    }
    let signal = asked.next().await;
    tracing::info!(signal, grace = %config.grace, "ending: no new calls, those under way may finish");
    tokio::select! {
        () = server.stop(config.grace.0) => {}
        again = asked.next() => tracing::warn!(signal = again, "ended at once"),
    }
    answers.abort();
    keys.abort();
    Ok(())
}

/// How long to wait before a store that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Begins on the store as soon as it answers, which is waited for a while: members of a cluster start in any
/// order, and one may be lost at this very moment.
async fn open(
    at: &config::Store,
    store: Arc<dyn Store>,
    behaviour: &Settings,
    signers: &[SigningKey],
) -> Result<Plane, Failed> {
    let until = Instant::now() + at.wait.0;
    let mut is_said = false;
    loop {
        let opened = Plane::open(Arc::clone(&store), behaviour.clone(), signers.to_vec());
        match opened.await {
            Ok(plane) => return Ok(plane),
            Err(OpenError::Store(error)) if error.is_transient() => {
                let (wait, place) = (at.wait, at.place());
                if Instant::now() >= until {
                    return Err(format!(
                        "{error}; it was asked at {place} for {wait} (store.wait)"
                    )
                    .into());
                }
                if !is_said {
                    tracing::warn!(%error, at = place, %wait, "waiting for the store");
                    is_said = true;
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What tells keys from others.
fn publics(keys: &[SigningKey]) -> Vec<(KeyId, PublicKey)> {
    let keys = keys.iter();
    keys.map(|it| (it.id().clone(), it.public())).collect()
}

/// How often there is looked for keys that have come or gone.
const LOOK_FOR_KEYS: Duration = Duration::from_secs(2);

/// Holds what keys the directory of them has, without a restart (F-169). While a file of them is broken, all stays as it
/// was, and it is said once.
async fn follow_keys(config: Config, plane: Plane, mut held: Vec<(KeyId, PublicKey)>) {
    if config.more_keys.is_none() {
        return;
    }
    let mut said = None;
    loop {
        tokio::time::sleep(LOOK_FOR_KEYS).await;
        // A few small files, and seldom.
        match config.signers() {
            Ok(keys) => {
                said = None;
                let found = publics(&keys);
                if found != held {
                    let names: Vec<_> = found.iter().map(|(id, _)| id.as_str()).collect();
                    tracing::info!(keys = names.join(", "), "other keys are held from now on");
                    held = found;
                    plane.hold_keys(keys);
                }
            }
            Err(error) => {
                let why = error.to_string();
                if said.as_ref() != Some(&why) {
                    tracing::warn!(why, "the keys stay as they were");
                    said = Some(why);
                }
            }
        }
    }
}

/// What to type to ask it something.
fn how_to_ask(dir: &Path, grpc: &str) -> String {
    let admin = Files {
        certificate: dir.join("admin.pem"),
        key: dir.join("admin.key"),
    };
    let authorities = dir.join("authority.pem");
    let exports = exports(&format!("https://{grpc}"), &authorities, &admin);
    format!("ask it as admin:\n  {exports}\n  rspp pipeline list")
}

/// What the health endpoints say; of the control plane once there is one.
struct Answers(Arc<OnceLock<Plane>>);

impl Health for Answers {
    fn checks(&self) -> Vec<Check> {
        let check = match self.0.get().map(Plane::ready) {
            Some(Ok(())) => Check::new("store", true, "is followed"),
            Some(Err(why)) => Check::new("store", false, why),
            None => Check::new("store", false, "has not answered yet"),
        };
        vec![check]
    }

    fn status(&self) -> Value {
        self.0.get().map_or_else(|| json!({}), Plane::about)
    }

    fn metrics(&self) -> String {
        let measured = self.0.get().map(Plane::measured);
        rspp_proto::metric::text(&measured.unwrap_or_default())
    }
}
