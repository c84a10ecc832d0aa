//! Real processes: a control plane, runtimes, clients over WebSockets, and what is done to them.
//!
//! Every frame that any runtime accepts is noted on one clock; what a session said is read from these
//! notes when all is over, by [`check`].

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use rspp_controlplane::registry::VersionName;
use rspp_controlplane_api::{
    Client as PlaneClient, ClientConfig, ControlError, ControlPlane as _, Route, RouteAsk,
    tls::TlsFiles, wire,
};
use rspp_proto::{RuntimeId, SessionId, TenantId, spec::PipelineSpec};
use rspp_service::credentials::Authority;
use rspp_tests::{
    faketime,
    link::{Link, Weather},
};
use rspp_websocket::{
    protocol::{ClientMessage, Hello, ServerMessage},
    testing::{Client, typed},
};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};

/// How long a process may take to be there.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long a process may take to end when it is asked to: its drain, and what follows.
pub(crate) const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// What a runtime noted.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Note {
    pub(crate) at_us: u64,
    pub(crate) runtime: String,
    /// Its process: a runtime that is started again is another one.
    pub(crate) process: u32,
    pub(crate) what: String,
    pub(crate) session: String,
    pub(crate) epoch: Option<u64>,
    pub(crate) turn: Option<String>,
}

/// A process that is killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    name: String,
}

/// A clock on the wall that a test can set, and one process looks at.
struct WallClock {
    /// What has the process look there (libfaketime).
    library: PathBuf,
    /// By how much it is wrong.
    file: PathBuf,
}

impl WallClock {
    /// Shows the right time.
    fn right(library: PathBuf, file: PathBuf) -> Self {
        let clock = Self { library, file };
        clock.be_wrong_by(0);
        clock
    }

    /// Within a second every reader sees it. Clocks that only count (leases depend on these) stay as they are.
    fn be_wrong_by(&self, seconds: i64) {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{seconds:+}")).unwrap();
        fs::rename(&new, &self.file).unwrap();
    }
}

impl Process {
    fn start(
        name: &str,
        program: &str,
        config: &Path,
        log: &Path,
        clock: Option<&WallClock>,
    ) -> Self {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log can be written");
        let mut command = Command::new(program);
        command
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(clock) = clock {
            command
                .env("LD_PRELOAD", &clock.library)
                .env("FAKETIME_TIMESTAMP_FILE", &clock.file)
                .env("FAKETIME_CACHE_DURATION", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let child = command.spawn().expect("the program starts");
        Self {
            child,
            name: name.to_owned(),
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let sent = kill_process(Pid::from_child(&self.child), signal);
        sent.unwrap_or_else(|gone| panic!("{}: {gone}", self.name));
    }

    /// Whether it has ended, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is ours")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _it_may_be_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A fleet of processes in a directory of its own.
pub(crate) struct Fleet {
    dir: tempfile::TempDir,
    authority: Authority,
    /// Members of the cluster that keeps the records; a file does if there is none.
    etcd: Vec<SocketAddr>,
    /// What sets their clocks, if they can be set.
    clocks: Option<PathBuf>,
    settings: BTreeMap<&'static str, serde_json::Value>,
    pub(crate) planes: BTreeMap<String, Plane>,
    pub(crate) runtimes: BTreeMap<String, Member>,
    pub(crate) operator: Arc<PlaneClient>,
}

/// A replica of the control plane.
pub(crate) struct Plane {
    pub(crate) process: Process,
    pub(crate) at: SocketAddr,
    /// To the members of the cluster that keeps the records.
    pub(crate) ways: Vec<Link>,
}

/// A runtime of the fleet.
pub(crate) struct Member {
    pub(crate) process: Process,
    pub(crate) calls: SocketAddr,
    pub(crate) health: SocketAddr,
    /// To the replicas of the control plane.
    pub(crate) ways: Vec<Link>,
}

/// What a fleet stands on.
pub(crate) struct Ground {
    /// Members of the cluster of etcd that keeps the records; a file does if there are none.
    pub(crate) etcd: Vec<SocketAddr>,
    /// Replicas of the control plane.
    pub(crate) planes: usize,
    /// Whether the clock on each process's wall can be set.
    pub(crate) has_clocks: bool,
    /// Settings of runtimes by name, over those that all have.
    pub(crate) settings: BTreeMap<&'static str, serde_json::Value>,
}

impl Default for Ground {
    fn default() -> Self {
        Self {
            etcd: Vec::new(),
            planes: 1,
            has_clocks: false,
            settings: BTreeMap::new(),
        }
    }
}

/// The one replica of a fleet that keeps its records in a file.
pub(crate) const ALONE: &str = "plane-0";

impl Fleet {
    /// A control plane and runtimes of these names, all there and ready.
    pub(crate) async fn start(names: &[&str]) -> Self {
        Self::start_on(Ground::default(), names).await
    }

    /// The same, on more than a file.
    pub(crate) async fn start_on(ground: Ground, names: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), "rspp.local").unwrap();
        let mut at = BTreeMap::new();
        for number in 0..ground.planes {
            at.insert(format!("plane-{number}"), free_port().await);
        }
        let operator = authority.person("operator", "admin").unwrap();
        let client = PlaneClient::new(ClientConfig {
            addresses: at.values().map(url).collect(),
            tls: Some(TlsFiles {
                authorities: authority.certificate(),
                certificate: operator.certificate,
                key: operator.key,
            }),
            ..ClientConfig::default()
        });
        let mut fleet = Self {
            dir,
            authority,
            etcd: ground.etcd,
            clocks: ground.has_clocks.then(faketime::library),
            settings: ground.settings,
            planes: BTreeMap::new(),
            runtimes: BTreeMap::new(),
            operator: Arc::new(client.expect("the addresses are right")),
        };
        for (name, at) in at {
            let mut ways = Vec::new();
            for member in &fleet.etcd {
                ways.push(Link::to(*member).await);
            }
            let process = fleet.run_plane(&name, at, &ways);
            fleet
                .planes
                .insert(name.clone(), Plane { process, at, ways });
            fleet.announced(&format!("{name}.json")).await;
        }
        fleet.publish().await;
        for name in names {
            fleet.add(name).await;
        }
        fleet
    }

    /// Publishes the built-in pipeline, for everybody.
    async fn publish(&self) {
        let spec = PipelineSpec::simple();
        let source = serde_json::to_string(&spec).unwrap();
        self.roll_out(wire::Kind::Pipeline, spec.version.as_str(), source)
            .await;
    }

    /// Publishes a version and gives it to everybody.
    pub(crate) async fn roll_out(&self, kind: wire::Kind, version: &str, source: String) {
        let everybody = wire::change::Change::Direct(version.to_owned());
        roll_out(&self.operator, kind, version, source, everybody).await;
        // Until it is followed, also where the machine is busy.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a replica again on what it left.
    pub(crate) fn restart_plane(&mut self, name: &str) {
        let plane = &self.planes[name];
        let process = self.run_plane(name, plane.at, &plane.ways);
        self.planes.get_mut(name).expect("it was there").process = process;
    }

    fn run_plane(&self, name: &str, at: SocketAddr, ways: &[Link]) -> Process {
        let server = self.authority.server(name).unwrap();
        let key = self.authority.signing_key("k1").unwrap();
        let announced = self.path(&format!("{name}.json"));
        let _none_yet = fs::remove_file(&announced);
        let store = if ways.is_empty() {
            json!({"file": self.path("control-plane.db")})
        } else {
            let members = ways.iter().map(|way| format!("http://{}", way.address()));
            json!({"etcd": {"endpoints": members.collect::<Vec<_>>()}})
        };
        let config = json!({
            "replica": name,
            "listen": {"grpc": at.to_string(), "health": "127.0.0.1:0"},
            "tls": {
                "authorities": self.authority.certificate(),
                "certificate": server.certificate,
                "key": server.key,
            },
            "store": store,
            "keys": [{"id": "k1", "file": key}],
            "announce": announced,
        });
        let program = env!("CARGO_BIN_EXE_cluster-control-plane");
        self.run(name, program, &config)
    }

    fn run(&self, name: &str, program: &str, config: &serde_json::Value) -> Process {
        let file = self.path(&format!("{name}.yaml"));
        fs::write(&file, config.to_string()).unwrap();
        let log = self.path(&format!("{name}.log"));
        let library = self.clocks.clone();
        let clock = library.map(|library| WallClock::right(library, self.clock(name)));
        Process::start(name, program, &file, &log, clock.as_ref())
    }

    fn clock(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.clock"))
    }

    /// Sets the clock on a process's wall: it is wrong by that much, until it is set again or the process
    /// starts anew.
    pub(crate) fn set_clock(&self, name: &str, wrong_by_seconds: i64) {
        let library = self.clocks.clone().expect("the fleet has clocks");
        let file = self.clock(name);
        WallClock { library, file }.be_wrong_by(wrong_by_seconds);
    }

    /// Adds a runtime and waits until it is ready.
    pub(crate) async fn add(&mut self, name: &str) {
        let mut ways = Vec::new();
        for plane in self.planes.values() {
            ways.push(Link::to(plane.at).await);
        }
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let process = self.run_runtime(name, &ways);
        let member = Member {
            process,
            calls: nowhere,
            health: nowhere,
            ways,
        };
        self.runtimes.insert(name.to_owned(), member);
        self.serves(name).await;
        self.ready(name).await;
    }

    /// Starts a runtime again, and does not wait for it.
    pub(crate) fn restart_runtime(&mut self, name: &str) {
        let process = self.run_runtime(name, &self.runtimes[name].ways);
        self.runtimes.get_mut(name).expect("it was there").process = process;
    }

    /// Waits until a runtime has said where it serves.
    pub(crate) async fn serves(&mut self, name: &str) {
        let at = self.announced(&format!("{name}.json")).await;
        let address = |key: &str| at[key].as_str().unwrap().parse().unwrap();
        let member = self.runtimes.get_mut(name).expect("it was started");
        (member.calls, member.health) = (address("calls"), address("health"));
    }

    fn run_runtime(&self, name: &str, ways: &[Link]) -> Process {
        let files = self.authority.runtime(name).unwrap();
        let announced = self.path(&format!("{name}.json"));
        let _none_yet = fs::remove_file(&announced);
        let addresses: Vec<_> = ways.iter().map(|way| url(&way.address())).collect();
        let mut config = json!({
            "name": name,
            "listen": {"calls": "127.0.0.1:0", "health": "127.0.0.1:0"},
            "control_plane": {
                "addresses": addresses,
                "authorities": self.authority.certificate(),
                "certificate": files.certificate,
                "key": files.key,
            },
            "providers": {"scripted": true},
            "drain": {"deadline": "5s"},
            "outputs": self.path("outputs.jsonl"),
            "announce": announced,
            "log": {"filter": "info,rspp_host=debug"},
        });
        let own = self.settings.get(name).and_then(|it| it.as_object());
        for (part, value) in own.into_iter().flatten() {
            match (config[part].as_object_mut(), value.as_object()) {
                (Some(all), Some(own)) if !own.is_empty() => all.extend(own.clone()),
                (_, _) => config[part] = value.clone(),
            }
        }
        let program = env!("CARGO_BIN_EXE_cluster-runtime");
        self.run(name, program, &config)
    }

    /// How everything goes between a runtime and the control plane.
    pub(crate) fn set_weather(&self, name: &str, weather: Weather) {
        for way in &self.runtimes[name].ways {
            way.set(weather);
        }
    }

    /// Whether a process that was asked to end did so in order: or at once, if it had not said yet where it
    /// serves, and may not have begun to listen for that.
    pub(crate) fn is_orderly(&self, name: &str, ended: ExitStatus) -> bool {
        let has_begun = self.path(&format!("{name}.json")).exists();
        ended.success() || (!has_begun && ended.signal() == Some(Signal::TERM.as_raw()))
    }

    /// Waits until a runtime or replica that was asked to has ended, in order.
    pub(crate) async fn ends(&mut self, name: &str) {
        let by = Instant::now() + ENDS_WITHIN;
        loop {
            let process = match self.runtimes.get_mut(name) {
                Some(runtime) => &mut runtime.process,
                None => &mut self.planes.get_mut(name).expect("it was started").process,
            };
            if let Some(ended) = process.ended() {
                assert!(ended.success(), "{name}: {ended} {}", self.logs());
                return;
            }
            assert!(Instant::now() < by, "{name} does not end: {}", self.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn plane_serves(&self, name: &str) {
        self.announced(&format!("{name}.json")).await;
    }

    async fn announced(&self, name: &str) -> serde_json::Value {
        let began = Instant::now();
        loop {
            if let Ok(text) = fs::read_to_string(self.path(name)) {
                return serde_json::from_str(&text).unwrap();
            }
            assert!(began.elapsed() < PATIENCE, "{name}: {}", self.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a runtime says that it is ready.
    pub(crate) async fn ready(&self, name: &str) {
        let began = Instant::now();
        while !is_ready(self.runtimes[name].health).await {
            assert!(began.elapsed() < PATIENCE, "{name}: {}", self.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The last lines of every log, for a test that fails; all of them are kept, and where is said.
    pub(crate) fn logs(&self) -> String {
        let kept = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap()
            .keep();
        let mut all = format!("\nall logs: {}", kept.display());
        for entry in fs::read_dir(self.dir.path()).unwrap().flatten() {
            let path = entry.path();
            let is_log = |it: &std::ffi::OsStr| it == "log" || it == "jsonl";
            if path.extension().is_some_and(is_log) {
                fs::copy(&path, kept.join(entry.file_name())).unwrap();
            }
            if path.extension().is_some_and(|it| it == "log") {
                let text = fs::read_to_string(&path).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                let last = &lines[lines.len().saturating_sub(40)..];
                let _ = write!(all, "\n== {}\n{}", path.display(), last.join("\n"));
            }
        }
        all
    }

    /// Where a session runs, as its client is told.
    pub(crate) async fn route_once(
        operator: &PlaneClient,
        session: &SessionId,
    ) -> Result<Route, ControlError> {
        operator
            .route(RouteAsk {
                tenant: TenantId::new("acme").unwrap(),
                session: session.clone(),
                transport: "websocket".to_owned(),
                pipeline: None,
                latencies_ms: BTreeMap::new(),
                needs: BTreeMap::new(),
                except: std::collections::BTreeSet::new(),
                token_ttl: None,
            })
            .await
    }

    /// The same, asked until somebody can take it.
    pub(crate) async fn route(&self, session: &SessionId) -> Route {
        let began = Instant::now();
        loop {
            match Self::route_once(&self.operator, session).await {
                Ok(route) => return route,
                Err(error) => {
                    let may_help =
                        error.is_transient() || matches!(error, ControlError::Held { .. });
                    assert!(may_help, "{error:?} {}", self.logs());
                    assert!(began.elapsed() < PATIENCE, "{error:?} {}", self.logs());
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Connects to wherever the session runs, until it is let in.
    pub(crate) async fn connect(&self, session: &SessionId) -> (String, Client) {
        let began = Instant::now();
        loop {
            let route = self.route(session).await;
            let runtime = route.runtime.to_string();
            let at = self.runtimes[&runtime].calls;
            let token = format!("Bearer {}", route.token.token);
            let headers = [("authorization", token.as_str())];
            let connecting = Client::connect(at, &["rspp.v1.json"], &headers);
            let connected = tokio::time::timeout(Duration::from_secs(2), connecting).await;
            let why = match connected {
                Ok(Ok(mut client)) => {
                    client.say(hello()).await;
                    match tokio::time::timeout(Duration::from_secs(10), client.next()).await {
                        Ok(Some(ServerMessage::Ready(_))) => return (runtime, client),
                        Ok(other) => format!("{other:?}"),
                        Err(_) => "no answer".to_owned(),
                    }
                }
                Ok(Err(refused)) => format!("{refused:?}"),
                Err(_) => "no handshake".to_owned(),
            };
            assert!(
                began.elapsed() < PATIENCE,
                "{runtime}: {why} {}",
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Connects to an address that a client was told, with what it has to show there.
    pub(crate) async fn follow(url: &str, token: &str) -> Client {
        let by = Instant::now() + PATIENCE;
        let mut client = loop {
            match Self::knock(url, token).await {
                Ok(client) => break client,
                // A runtime hears of the others a moment after they have joined.
                Err(refused) => assert!(
                    refused.contains("token_wrong_audience") && Instant::now() < by,
                    "{refused}"
                ),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        client.say(hello()).await;
        client
    }

    /// Connects once; how it was refused is the error.
    pub(crate) async fn knock(url: &str, token: &str) -> Result<Client, String> {
        let at = url.strip_prefix("ws://").expect("a WebSocket's address");
        let at = at.split('/').next().expect("a host and port");
        let at = at.parse().expect("on this machine");
        let token = format!("rspp.token.{token}");
        let connected = Client::connect(at, &["rspp.v1.json", &token], &[]).await;
        connected.map_err(|refused| format!("{refused:?}"))
    }

    /// What a process has logged.
    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// The one of two runtimes that is not this one.
    pub(crate) fn other(&self, name: &str) -> String {
        let mut names = self.runtimes.keys();
        names.find(|it| *it != name).expect("there are two").clone()
    }

    /// All that was accepted so far, in the order in which it was.
    pub(crate) fn notes(&self) -> Vec<Note> {
        let text = fs::read_to_string(self.path("outputs.jsonl")).unwrap();
        let mut notes: Vec<Note> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("whole lines"))
            .collect();
        notes.sort_by_key(|note| note.at_us);
        notes
    }

    /// What the control plane has of a session now: by whom it is held, and since which epoch.
    pub(crate) async fn holder(&self, session: &SessionId) -> (RuntimeId, Option<u64>) {
        let route = self.route(session).await;
        (route.runtime, route.epoch.map(rspp_proto::Epoch::get))
    }
}

/// Publishes a version, and changes the rollout of its line.
pub(crate) async fn roll_out(
    operator: &PlaneClient,
    kind: wire::Kind,
    version: &str,
    source: String,
    change: wire::change::Change,
) {
    let name = version.parse::<VersionName>().unwrap();
    let published = operator.publish(wire::PublishRequest {
        kind: kind.into(),
        version: version.to_owned(),
        source,
        ..wire::PublishRequest::default()
    });
    published.await.expect("it is published");
    let changed = operator.change_rollout(wire::ChangeRolloutRequest {
        kind: kind.into(),
        line: name.line().to_owned(),
        change: Some(wire::Change {
            change: Some(change),
        }),
        reason: "a test has it so".to_owned(),
        ..wire::ChangeRolloutRequest::default()
    });
    changed.await.expect("it is rolled out");
}

fn url(at: &SocketAddr) -> String {
    format!("https://localhost:{}", at.port())
}

/// An address that was free a moment ago.
async fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

async fn is_ready(health: SocketAddr) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Ok(mut stream) = TcpStream::connect(health).await else {
        return false;
    };
    let mut answer = String::new();
    let asked = stream.write_all(b"GET /readyz HTTP/1.1\r\n\r\n").await;
    let read = stream.read_to_string(&mut answer);
    let read = tokio::time::timeout(Duration::from_secs(2), read).await;
    asked.is_ok() && read.is_ok() && answer.starts_with("HTTP/1.1 200")
}

/// How a client begins.
pub(crate) fn hello() -> ClientMessage {
    ClientMessage::Hello(Hello {
        events: true,
        ..Hello::default()
    })
}

/// The client types something.
pub(crate) async fn says(client: &mut Client, text: &str) {
    client.say(typed(text)).await;
}

/// What the agent said in reply, once its turn is over: the outcome, with its reason if it has one, and the
/// words that were heard.
pub(crate) async fn reply(client: &mut Client) -> (String, String) {
    while let Some(message) = client.next().await {
        if let ServerMessage::Turn(turn) = message {
            let outcome = match &turn.reason {
                Some(reason) => format!("{}: {reason}", turn.outcome),
                None => turn.outcome.clone(),
            };
            return (outcome, turn.heard_text.clone());
        }
    }
    panic!("the session ended: {:?}", client.closed);
}

/// Waits until audio of a reply comes.
pub(crate) async fn speaks(client: &mut Client) {
    while let Some(message) = client.next().await {
        if matches!(message, ServerMessage::Audio(_)) {
            return;
        }
    }
    panic!("nothing was said: {:?}", client.closed);
}

/// The promises of issue 4 over all that was accepted, by session: each epoch belongs to one process; no
/// two epochs overlap; nothing of an older epoch is accepted after a newer one was granted.
#[track_caller]
pub(crate) fn check(notes: &[Note]) {
    assert!(!notes.is_empty(), "nobody spoke");
    let mut sessions = BTreeMap::<&str, Vec<&Note>>::new();
    for note in notes {
        sessions.entry(&note.session).or_default().push(note);
    }
    for (session, notes) in sessions {
        let mut owners = BTreeMap::<u64, (&str, u32)>::new();
        let mut newest = 0;
        for note in notes {
            let epoch = note.epoch.expect("every output has an epoch");
            let writer = (note.runtime.as_str(), note.process);
            let owner = *owners.entry(epoch).or_insert(writer);
            assert_eq!(owner, writer, "{session}: two writers at epoch {epoch}");
            if note.what == "commit" || note.what == "abort" {
                // Told to the client when it was decided; nothing is played by it.
                continue;
            }
            assert!(
                epoch >= newest,
                "{session}: {} of epoch {epoch} (turn {:?}) after {newest} was granted",
                note.what,
                note.turn
            );
            newest = epoch;
        }
    }
}
