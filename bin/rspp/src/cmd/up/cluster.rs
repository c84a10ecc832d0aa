//! `rspp up --nodes N`: a fleet of processes on this machine.

use std::{
    fs,
    net::SocketAddr,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rspp_controlplane::registry::VersionName;
use rspp_controlplane_api::{Client, ClientConfig, ControlError, tls::TlsFiles, wire};
use rspp_proto::{PipelineVersion, spec::PipelineSpec};
use rspp_service::{
    credentials::{Authority, CredentialsError, Files, exports},
    stop::Asked,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    problem::{Problem, Reader},
    terminal,
};

/// How long a process may take to say where it serves: a runtime loads its models first.
const STARTS_WITHIN: Duration = Duration::from_mins(1);
/// After how long somebody who waits for that is told what it last said.
const IS_LATE_AFTER: Duration = Duration::from_secs(10);
/// How long the processes may take to end: their own drains are shorter.
const ENDS_WITHIN: Duration = Duration::from_secs(15);
/// How long a control plane is left dead: less than a lease lasts, so that nobody notices.
const PLANE_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How long a runtime is: others take up its sessions meanwhile.
const RUNTIME_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How often one process is started again.
const MOST_RESTARTS: u32 = 10;
/// Most runtimes of one machine.
pub(super) const MOST: u16 = 32;
/// Most replicas of its control plane.
pub(super) const MOST_PLANES: u16 = 5;
/// Whose certificates name the members.
const DOMAIN: &str = "rspp.local";

/// What a fleet is made of.
#[derive(Debug)]
pub(super) struct Plan {
    /// Runtimes.
    pub(super) nodes: u16,
    /// Replicas of the control plane.
    pub(super) control_planes: u16,
    /// The members of the cluster that keeps its records; a file does without.
    pub(super) etcd: Vec<String>,
    /// Where credentials, records and logs are kept.
    pub(super) state: PathBuf,
    /// What clients run that ask for nothing, as its author wrote it; the built-in pipeline without.
    pub(super) pipeline: Option<String>,
    /// What it is called.
    pub(super) version: PipelineVersion,
    /// `providers` of each runtime's settings.
    pub(super) providers: Value,
    /// The collector that each runtime sends traces to.
    pub(super) otlp: Option<String>,
    /// Where sessions' timelines go; they are not recorded without.
    pub(super) export: Option<String>,
    /// What they are sealed with there.
    pub(super) keys: Option<PathBuf>,
}

/// What a process of the fleet is, so that it can be started again.
#[derive(Clone)]
struct Launch {
    name: String,
    program: PathBuf,
    /// Where its files are.
    state: PathBuf,
    settings: Value,
    /// What it calls the address that it serves at.
    serves: &'static str,
}

/// A process of the fleet.
struct Member {
    launch: Launch,
    child: Child,
    at: SocketAddr,
    health: SocketAddr,
    /// When it is started again, if it is not there.
    again_at: Option<Instant>,
    /// How often it was.
    restarts: u32,
}

/// All of them.
struct Fleet {
    control_planes: Vec<Member>,
    runtimes: Vec<Member>,
}

impl Plan {
    /// Starts everything, and stops it when somebody asks.
    pub(super) async fn run(self) -> Result<(), Problem> {
        let mut stop = Asked::listen().map_err(Problem::failure)?;
        let mut fleet = tokio::select! {
            fleet = self.start() => fleet?,
            // Those that were started end with this.
            _signal = stop.next() => return Err(Problem::Interrupted),
        };
        let held = tokio::select! {
            held = fleet.hold() => held,
            _signal = stop.next() => Ok(()),
        };
        terminal::note("\nstopping; Ctrl-C again to stop at once");
        tokio::select! {
            () = fleet.end() => {}
            _signal = stop.next() => {}
        }
        held
    }

    async fn start(&self) -> Result<Fleet, Problem> {
        let (plane, runtime) = (beside("rspp-control-plane")?, beside("rspp-runtime")?);
        let authority = Authority::open(&self.state, DOMAIN).map_err(credentials)?;
        let state = fs::canonicalize(&self.state).map_err(Problem::failure)?;
        nobody_else(&state)?;
        let pipeline = self.keep_pipeline(&state)?;
        let mut control_planes = Vec::new();
        for number in 1..=self.control_planes {
            let name = match self.control_planes {
                1 => "control-plane".to_owned(),
                _several => format!("control-plane-{number}"),
            };
            let settings = self.plane_settings(&name, &state, &authority)?;
            let launch = Launch {
                name,
                program: plane.clone(),
                state: state.clone(),
                settings,
                serves: "grpc",
            };
            control_planes.push(launch.spawn()?.serves().await?);
        }
        let planes: Vec<String> = control_planes.iter().map(|it| url(it.at)).collect();
        let admin = authority.person("admin", "admin").map_err(credentials)?;
        let source = match &self.pipeline {
            Some(source) => source.clone(),
            None => PipelineSpec::simple_template().to_owned(),
        };
        let asked = client(&authority, &admin, planes.clone())?;
        publish(&asked, &self.version, source).await?;
        // They load their models at the same time.
        let mut starting = Vec::new();
        for number in 1..=self.nodes {
            let name = format!("runtime-{number}");
            let files = authority.runtime(&name).map_err(credentials)?;
            let settings = self.runtime_settings(
                &state,
                &authority,
                (&name, &files),
                &planes,
                pipeline.as_deref(),
            );
            let launch = Launch {
                name,
                program: runtime.clone(),
                state: state.clone(),
                settings,
                serves: "calls",
            };
            starting.push(launch.spawn()?);
        }
        let mut runtimes = Vec::new();
        for member in starting {
            runtimes.push(member.serves().await?);
        }
        let fleet = Fleet {
            control_planes,
            runtimes,
        };
        terminal::print(fleet.shown(&authority, &admin))?;
        Ok(fleet)
    }

    /// Leaves the pipeline where runtimes find it: what it was read from may be gone, or change.
    fn keep_pipeline(&self, state: &Path) -> Result<Option<PathBuf>, Problem> {
        let Some(source) = &self.pipeline else {
            return Ok(None);
        };
        let file = state.join("pipeline.yaml");
        fs::write(&file, source)
            .map_err(|error| Problem::failure(format!("{}: {error}", file.display())))?;
        Ok(Some(file))
    }

    fn plane_settings(
        &self,
        name: &str,
        state: &Path,
        authority: &Authority,
    ) -> Result<Value, Problem> {
        let server = authority.server(name).map_err(credentials)?;
        let key = authority.signing_key("k1").map_err(credentials)?;
        let more_keys = authority.more_keys().map_err(credentials)?;
        let store = match &*self.etcd {
            [] => json!({"file": state.join("control-plane.db")}),
            // Somebody sits and waits.
            members => json!({"etcd": {"endpoints": members}, "wait": "10s"}),
        };
        Ok(json!({
            "replica": name,
            "domain": DOMAIN,
            "listen": {"grpc": "127.0.0.1:0", "health": "127.0.0.1:0"},
            "tls": {
                "authorities": authority.certificate(),
                "certificate": server.certificate,
                "key": server.key,
            },
            "store": store,
            "keys": [{"id": "k1", "file": key}],
            "more_keys": more_keys,
            "archives": self.export.iter().map(|place| json!({"place": place, "region": "local"})).collect::<Vec<_>>(),
            "expire_every": "10s",
            "announce": state.join(format!("{name}.json")),
        }))
    }

    fn runtime_settings(
        &self,
        state: &Path,
        authority: &Authority,
        (name, files): (&str, &Files),
        planes: &[String],
        pipeline: Option<&Path>,
    ) -> Value {
        json!({
            "name": name,
            "listen": {"calls": "127.0.0.1:0", "health": "127.0.0.1:0"},
            "control_plane": {
                "addresses": planes,
                "authorities": authority.certificate(),
                "certificate": files.certificate,
                "key": files.key,
            },
            "pipeline": pipeline,
            "providers": self.providers,
            "telemetry": {"otlp": {"url": self.otlp}},
            "timelines": {
                "to": self.export,
                "spool": state.join(format!("{name}.spool")),
                "keys": self.keys,
            },
            "drain": {"deadline": "10s"},
            "announce": state.join(format!("{name}.json")),
        })
    }
}

impl Fleet {
    /// Watches over the processes. One that ends is started again after a while, with what it left and at the same
    /// address; until then, others go on with what it had. One that ends again and again is given up, and with the
    /// last of its kind all of them.
    async fn hold(&mut self) -> Result<(), Problem> {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            for (what, pause, members) in [
                ("control plane", PLANE_AGAIN_AFTER, &mut self.control_planes),
                ("runtime", RUNTIME_AGAIN_AFTER, &mut self.runtimes),
            ] {
                for member in &mut *members {
                    member.look_after(pause).await;
                }
                members.retain(|member| member.restarts <= MOST_RESTARTS);
                if members.is_empty() {
                    return Err(Problem::failure(format!("no {what} is left")));
                }
            }
        }
    }

    /// Asks all to end, runtimes first, so that they can give up what they hold.
    async fn end(&mut self) {
        end(&mut self.runtimes).await;
        end(&mut self.control_planes).await;
    }

    fn shown(&self, authority: &Authority, admin: &Files) -> String {
        let mut rows: Vec<[String; 5]> = vec![["", "pid", "at", "health", "log"].map(Into::into)];
        for member in self.control_planes.iter().chain(&self.runtimes) {
            rows.push([
                member.launch.name.clone(),
                member.child.id().to_string(),
                member.at.to_string(),
                member.health.to_string(),
                member.launch.log().display().to_string(),
            ]);
        }
        let mut lines: Vec<String> = rows
            .iter()
            .map(|[name, pid, at, health, log]| {
                format!("{name:<15} {pid:<7} {at:<16} {health:<16} {log}")
            })
            .collect();
        let planes = self.control_planes.iter().map(|it| url(it.at));
        let planes: Vec<_> = planes.collect();
        let exports = exports(&planes.join(","), &authority.certificate(), admin);
        lines.push(format!("ask the control plane as admin:\n  {exports}"));
        lines.push("Ctrl-C stops all of them.".to_owned());
        terminal::of_lines(&lines)
    }
}

impl Member {
    /// How it has ended, if it has.
    fn ended(&mut self) -> Option<String> {
        let status: ExitStatus = self.child.try_wait().ok().flatten()?;
        let how = match status.signal() {
            Some(signal) => format!("was ended by signal {signal}"),
            None => format!("ended ({status})"),
        };
        let launch = &self.launch;
        Some(format!(
            "{} {how}; see {}",
            launch.name,
            launch.log().display()
        ))
    }

    /// Starts it again if it has ended, and it is time.
    async fn look_after(&mut self, pause: Duration) {
        match self.again_at {
            None => {
                let Some(why) = self.ended() else {
                    return;
                };
                self.restarts += 1;
                let what = if self.restarts > MOST_RESTARTS {
                    "it is given up".to_owned()
                } else {
                    format!("it is started again in {} s", pause.as_secs_f32())
                };
                terminal::note(format!("{why}; {what}"));
                self.again_at = Some(Instant::now() + pause);
            }
            Some(at) if Instant::now() < at => {}
            Some(_) => {
                let mut launch = self.launch.clone();
                launch.settings["listen"] = json!({
                    launch.serves: self.at.to_string(),
                    "health": self.health.to_string(),
                });
                let restarts = self.restarts;
                let started = match launch.spawn() {
                    Ok(starting) => starting.serves().await,
                    Err(problem) => Err(problem),
                };
                match started {
                    Ok(mut member) => {
                        let (name, pid) = (&member.launch.name, member.child.id());
                        terminal::note(format!("{name} serves again, as process {pid}"));
                        member.restarts = restarts;
                        *self = member;
                    }
                    Err(problem) => {
                        let _only_said = problem.report(Reader::Person);
                        self.restarts += 1;
                        self.again_at = Some(Instant::now() + pause);
                    }
                }
            }
        }
    }

    fn ask_to_end(&self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _it_may_be_gone = kill_process(pid, Signal::TERM);
        }
    }
}

impl Drop for Member {
    /// Whatever happens here, nothing is left running.
    fn drop(&mut self) {
        let _it_may_be_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

async fn end(members: &mut [Member]) {
    for member in &*members {
        member.ask_to_end();
    }
    let until = Instant::now() + ENDS_WITHIN;
    while Instant::now() < until && members.iter_mut().any(|member| member.ended().is_none()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is what `map_err` hands over"
)]
fn credentials(error: CredentialsError) -> Problem {
    Problem::failure(format!("credentials: {error}"))
}

fn url(at: SocketAddr) -> String {
    format!("https://localhost:{}", at.port())
}

/// A program that was installed with this one.
fn beside(name: &str) -> Result<PathBuf, Problem> {
    let here = std::env::current_exe().map_err(Problem::failure)?;
    let program = here.with_file_name(name);
    if program.is_file() {
        return Ok(program);
    }
    let profile = if cfg!(debug_assertions) {
        ""
    } else {
        "--release "
    };
    Err(Problem::input(format!(
        "{} is not there: --nodes runs it; build or install it with rspp (cargo build {profile}-p {name})",
        program.display()
    )))
}

/// A process that has not said yet where it serves.
struct Starting {
    member: Member,
    announced: PathBuf,
}

impl Launch {
    fn file(&self, kind: &str) -> PathBuf {
        self.state.join(format!("{}.{kind}", self.name))
    }

    /// Where it logs.
    fn log(&self) -> PathBuf {
        self.file("log")
    }

    /// Starts it.
    fn spawn(self) -> Result<Starting, Problem> {
        let (file, announced) = (self.file("yaml"), self.file("json"));
        let failed = |path: &Path, error: std::io::Error| {
            Problem::failure(format!("{}: {error}", path.display()))
        };
        // JSON is YAML.
        fs::write(&file, self.settings.to_string()).map_err(|error| failed(&file, error))?;
        let _none_yet = fs::remove_file(&announced);
        let log = self.log();
        let to = fs::OpenOptions::new().create(true).append(true).open(&log);
        let to = to.map_err(|error| failed(&log, error))?;
        let child = Command::new(&self.program)
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(to)
            // Ctrl-C is for this process, which asks the others in their order.
            .process_group(0)
            .spawn()
            .map_err(|error| failed(&self.program, error))?;
        let pid = self.file("pid");
        fs::write(&pid, child.id().to_string()).map_err(|error| failed(&pid, error))?;
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let member = Member {
            launch: self,
            child,
            at: nowhere,
            health: nowhere,
            again_at: None,
            restarts: 0,
        };
        Ok(Starting { member, announced })
    }
}

/// Whether processes of another fleet still run on what is in a directory: two would write into the same files.
fn nobody_else(state: &Path) -> Result<(), Problem> {
    let mut others = Vec::new();
    for entry in fs::read_dir(state).map_err(Problem::failure)? {
        let path = entry.map_err(Problem::failure)?.path();
        if path.extension().is_none_or(|it| it != "pid") {
            continue;
        }
        let pid = fs::read_to_string(&path).unwrap_or_default();
        let name = path.file_stem().unwrap_or_default().display();
        let settings = path.with_extension("yaml");
        let told = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // Its number may be somebody else's by now.
        if String::from_utf8_lossy(&told).contains(&*settings.to_string_lossy()) {
            others.push(format!("{name} (process {pid})"));
        }
    }
    if others.is_empty() {
        return Ok(());
    }
    Err(Problem::input(format!(
        "{} is in use: {} of another `rspp up` still run; stop them, or name another directory with --state",
        state.display(),
        others.join(", ")
    )))
}

impl Starting {
    /// Waits until it says where it serves.
    async fn serves(self) -> Result<Member, Problem> {
        let Self {
            mut member,
            announced,
        } = self;
        let began = Instant::now();
        let mut is_said = false;
        loop {
            if let Ok(text) = fs::read_to_string(&announced)
                && let Ok(said) = serde_json::from_str::<Value>(&text)
            {
                let address = |key: &str| said[key].as_str()?.parse().ok();
                if let (Some(at), Some(health)) = (address(member.launch.serves), address("health"))
                {
                    (member.at, member.health) = (at, health);
                    return Ok(member);
                }
            }
            let waited = began.elapsed();
            let is_over = member.ended().is_some() || waited >= STARTS_WITHIN;
            if is_over || (waited >= IS_LATE_AFTER && !is_said) {
                let log = member.launch.log();
                let said = fs::read_to_string(&log).unwrap_or_default();
                let last = said.lines().last().unwrap_or("it says nothing");
                let (name, log) = (&member.launch.name, log.display());
                if is_over {
                    return Err(Problem::failure(format!(
                        "{name} did not start: {last}; see {log}"
                    )));
                }
                terminal::note(format!("{name} is still starting: {last}"));
                is_said = true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn client(authority: &Authority, files: &Files, addresses: Vec<String>) -> Result<Client, Problem> {
    Client::new(ClientConfig {
        addresses,
        tls: Some(TlsFiles {
            authorities: authority.certificate(),
            certificate: files.certificate.clone(),
            key: files.key.clone(),
        }),
        ..ClientConfig::default()
    })
    .map_err(Problem::failure)
}

/// Publishes the pipeline, if it was not, and gives it to everybody, if nobody decided otherwise.
async fn publish(admin: &Client, version: &PipelineVersion, source: String) -> Result<(), Problem> {
    let version = version.to_string();
    let name = version.parse::<VersionName>().map_err(Problem::input)?;
    let kind = wire::Kind::Pipeline.into();
    let failed = |error: ControlError| Problem::failure(format!("pipeline `{version}`: {error}"));
    admin
        .publish(wire::PublishRequest {
            kind,
            version: version.clone(),
            source,
            request_id: format!("up-publish-{version}"),
            ..wire::PublishRequest::default()
        })
        .await
        .map_err(failed)?;
    let rollouts = admin
        .list_rollouts(wire::ListRolloutsRequest {
            kind,
            ..wire::ListRolloutsRequest::default()
        })
        .await
        .map_err(failed)?
        .rollouts;
    if let Some(decided) = rollouts.iter().find(|it| it.line == name.line()) {
        if decided.stable != version {
            let stable = &decided.stable;
            terminal::note(format!(
                "clients get `{stable}`, as was decided before; `{version}` is published, to be rolled out"
            ));
        }
        return Ok(());
    }
    admin
        .change_rollout(wire::ChangeRolloutRequest {
            kind,
            line: name.line().to_owned(),
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
