//! `rspp up --nodes N`: a fleet of processes on this machine.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rspp_controlplane_api::{Client, ClientConfig, ControlError, tls::TlsFiles, wire};
use rspp_proto::spec::PipelineSpec;
use rspp_service::credentials::{Authority, CredentialsError, Files};
use serde_json::Value;
use tokio::time::Instant;

use crate::problem::Problem;

/// How long a process may take to say where it serves.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// How long the processes may take to end: their own drains are shorter.
const ENDS_WITHIN: Duration = Duration::from_secs(15);
/// Most runtimes of one machine.
const MOST: u16 = 32;

/// What a fleet is made of.
#[derive(Debug)]
pub(super) struct Fleet {
    /// Runtimes.
    pub(super) nodes: u16,
    /// Where credentials, records and logs are kept.
    pub(super) state: PathBuf,
    /// What clients run that ask for nothing.
    pub(super) pipeline: Option<PathBuf>,
    /// Recognition and synthesis that need no models.
    pub(super) scripted: bool,
}

/// A process of the fleet.
struct Member {
    name: String,
    child: Child,
    calls: SocketAddr,
    health: SocketAddr,
    log: PathBuf,
}

impl Drop for Member {
    /// Whatever happens here, nothing is left running.
    fn drop(&mut self) {
        let _it_may_be_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Fleet {
    /// Starts everything, and stops it when somebody asks.
    pub(super) fn run(&self) -> Result<(), Problem> {
        if !(1..=MOST).contains(&self.nodes) {
            return Err(Problem::input(format!("--nodes: 1 to {MOST}, not {}", self.nodes)));
        }
        let tokio = tokio::runtime::Runtime::new().map_err(Problem::failure)?;
        tokio.block_on(self.hold())
    }

    async fn hold(&self) -> Result<(), Problem> {
        let programs = ["rspp-control-plane", "rspp-runtime"].map(beside);
        let [control_plane, runtime] = programs;
        let (control_plane, runtime) = (control_plane?, runtime?);
        let authority = Authority::open(&self.state, "rspp.local").map_err(credentials)?;
        let state = fs::canonicalize(&self.state).map_err(Problem::failure)?;
        let ended = tokio::signal::ctrl_c();
        tokio::pin!(ended);

        let mut members = Vec::new();
        let config = plane_settings(&state, &authority)?;
        let plane = start("control-plane", &control_plane, &state, &config).await?;
        let at = plane.calls;
        members.push(plane);
        let operator = authority.person("operator", "admin").map_err(credentials)?;
        let spec = match &self.pipeline {
            Some(path) => crate::specs::pipeline(path, rspp_proto::spec::Mode::Strict)
                .map_err(|refused| refused.into_problem("rspp validate spec"))?
                .0
                .spec,
            None => PipelineSpec::simple(),
        };
        publish(&client(&authority, operator, at)?, &spec).await?;
        for number in 1..=self.nodes {
            let name = format!("runtime-{number}");
            let files = authority.runtime(&name).map_err(credentials)?;
            let config = self.runtime_settings(&state, &authority, &name, &files, at);
            members.push(start(&name, &runtime, &state, &config).await?);
        }
        println!("{:<16} {:<22} {:<22} log", "", "calls", "health");
        for member in &members {
            println!(
                "{:<16} {:<22} {:<22} {}",
                member.name,
                member.calls,
                member.health,
                member.log.display()
            );
        }
        println!("credentials and records: {}", state.display());
        println!("Ctrl-C stops all of them.");

        let mut died = None;
        while died.is_none() {
            tokio::select! {
                _ = &mut ended => break,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
            died = members.iter_mut().find_map(|member| {
                let status = member.child.try_wait().ok().flatten()?;
                Some((member.name.clone(), status, member.log.clone()))
            });
        }
        stop(members).await;
        match died {
            None => Ok(()),
            Some((name, status, log)) => Err(Problem::failure(format!(
                "{name} ended by itself ({status}); see {}",
                log.display()
            ))),
        }
    }

    fn runtime_settings(
        &self,
        state: &Path,
        authority: &Authority,
        name: &str,
        files: &Files,
        plane: SocketAddr,
    ) -> String {
        let pipeline = self.pipeline.as_ref().map_or_else(String::new, |path| {
            let path = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            format!("pipeline: {}\n", path.display())
        });
        format!(
            "name: {name}\n\
             listen: {{calls: \"127.0.0.1:0\", health: \"127.0.0.1:0\"}}\n\
             control_plane:\n  addresses: [\"https://localhost:{}\"]\n  authorities: {}\n  \
             certificate: {}\n  key: {}\n\
             providers: {{scripted: {}}}\n\
             drain: {{deadline: 10s}}\n{pipeline}\
             announce: {}\n",
            plane.port(),
            authority.certificate().display(),
            files.certificate.display(),
            files.key.display(),
            self.scripted,
            state.join(format!("{name}.json")).display(),
        )
    }
}

fn credentials(error: CredentialsError) -> Problem {
    Problem::failure(format!("credentials: {error}"))
}

/// A program that was installed with this one.
fn beside(name: &str) -> Result<PathBuf, Problem> {
    let here = std::env::current_exe().map_err(Problem::failure)?;
    let program = here.with_file_name(name);
    if program.is_file() {
        return Ok(program);
    }
    Err(Problem::input(format!(
        "{} is not there: --nodes runs it; build or install it with rspp (cargo build -p {name})",
        program.display()
    )))
}

fn plane_settings(state: &Path, authority: &Authority) -> Result<String, Problem> {
    let server = authority.server("control-plane").map_err(credentials)?;
    let key = authority.signing_key("k1").map_err(credentials)?;
    Ok(format!(
        "listen: {{calls: \"127.0.0.1:0\", health: \"127.0.0.1:0\"}}\n\
         tls: {{authorities: {}, certificate: {}, key: {}}}\n\
         store: {{path: {}}}\n\
         signing_keys: [{{id: k1, file: {}}}]\n\
         announce: {}\n",
        authority.certificate().display(),
        server.certificate.display(),
        server.key.display(),
        state.join("control-plane.db").display(),
        key.display(),
        state.join("control-plane.json").display(),
    ))
}

/// Starts a process and waits until it says where it serves.
async fn start(name: &str, program: &Path, state: &Path, config: &str) -> Result<Member, Problem> {
    let (file, announced) = (
        state.join(format!("{name}.yaml")),
        state.join(format!("{name}.json")),
    );
    let log = state.join(format!("{name}.log"));
    let failed = |path: &Path, error: std::io::Error| {
        Problem::failure(format!("{}: {error}", path.display()))
    };
    fs::write(&file, config).map_err(|error| failed(&file, error))?;
    let _none_yet = fs::remove_file(&announced);
    let to = fs::File::create(&log).map_err(|error| failed(&log, error))?;
    let mut child = Command::new(program)
        .arg("--config")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(to)
        .spawn()
        .map_err(|error| failed(program, error))?;
    let until = Instant::now() + STARTS_WITHIN;
    loop {
        if let Ok(text) = fs::read_to_string(&announced)
            && let Ok(at) = serde_json::from_str::<Value>(&text)
        {
            let address = |key: &str| at[key].as_str()?.parse().ok();
            if let (Some(calls), Some(health)) = (address("calls"), address("health")) {
                return Ok(Member {
                    name: name.to_owned(),
                    child,
                    calls,
                    health,
                    log,
                });
            }
        }
        let ended: Option<ExitStatus> = child.try_wait().map_err(Problem::failure)?;
        if ended.is_some() || Instant::now() >= until {
            let _it_may_be_gone = child.kill();
            let said = fs::read_to_string(&log).unwrap_or_default();
            let last = said.lines().last().unwrap_or("it says nothing").to_owned();
            return Err(Problem::failure(format!(
                "{name} did not start: {last}; see {}",
                log.display()
            )));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn client(authority: &Authority, files: Files, at: SocketAddr) -> Result<Client, Problem> {
    Client::new(ClientConfig {
        addresses: vec![format!("https://localhost:{}", at.port())],
        tls: Some(TlsFiles {
            authorities: authority.certificate(),
            certificate: files.certificate,
            key: files.key,
        }),
        ..ClientConfig::default()
    })
    .map_err(Problem::failure)
}

/// Publishes the pipeline, if it was not, and gives it to everybody, if nobody decided otherwise.
async fn publish(operator: &Client, spec: &PipelineSpec) -> Result<(), Problem> {
    let version = spec.version.to_string();
    let kind = wire::Kind::Pipeline.into();
    let failed = |error: ControlError| Problem::failure(format!("pipeline `{version}`: {error}"));
    operator
        .publish(wire::PublishRequest {
            kind,
            version: version.clone(),
            source: serde_json::to_string(spec).map_err(Problem::failure)?,
            request_id: format!("up-publish-{version}"),
            ..wire::PublishRequest::default()
        })
        .await
        .map_err(failed)?;
    let rollouts = operator
        .list_rollouts(wire::ListRolloutsRequest {
            kind,
            ..wire::ListRolloutsRequest::default()
        })
        .await
        .map_err(failed)?;
    if !rollouts.rollouts.is_empty() {
        return Ok(());
    }
    operator
        .change_rollout(wire::ChangeRolloutRequest {
            kind,
            line: line(&version).to_owned(),
            change: Some(wire::Change {
                change: Some(wire::change::Change::Direct(version.clone())),
            }),
            reason: "rspp up".to_owned(),
            request_id: format!("up-rollout-{version}"),
            ..wire::ChangeRolloutRequest::default()
        })
        .await
        .map_err(failed)?;
    Ok(())
}

/// What all versions of one thing have in common: all but the number at the end.
fn line(version: &str) -> &str {
    let number = version.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    number.trim_end_matches(['-', 'v'])
}

/// Asks all to end, runtimes first, so that they can give up what they hold.
async fn stop(mut members: Vec<Member>) {
    let until = Instant::now() + ENDS_WITHIN;
    let runtimes = members.split_off(1);
    for mut group in [runtimes, members] {
        for member in &group {
            let pid = member.child.id().to_string();
            let _it_may_be_gone = Command::new("kill").args(["-TERM", &pid]).status();
        }
        while Instant::now() < until {
            let left = group
                .iter_mut()
                .any(|member| matches!(member.child.try_wait(), Ok(None)));
            if !left {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
