//! A real etcd cluster on this machine, started by the test that needs it and gone with it.
//!
//! Needs the program `etcd`: the one that `RSPP_ETCD` names, one that is installed, or Debian's, which is
//! fetched. Without it a test fails and says so; none is ever left out silently.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{debian, link::Weather, peers::Peers};
use rspp_controlplane_storage::{Etcd, EtcdConfig};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// How long a cluster may take to come up. Much longer than it does, for a machine with much else to do.
const UP: Duration = Duration::from_mins(1);
/// How often quiet watches are told how far their member has looked.
pub const PROGRESS: Duration = Duration::from_millis(300);

/// Runs what follows in the background, says its number, and ends it as soon as nobody holds its input
/// any more: if a test is killed, its cluster goes as well.
const WRAPPER: &str = r#""$@" >"$0" 2>&1 & echo $!; read -r _; kill -9 $! 2>/dev/null"#;
/// Removes a directory as soon as nobody holds its input any more.
const JANITOR: &str = r#"read -r _; rm -rf "$0""#;

/// How a cluster is to be.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// How many members.
    pub members: usize,
    /// Certificates, as files.
    pub tls: Option<Tls>,
    /// Whether members can be cut off from each other.
    pub is_divisible: bool,
}

/// Certificates, as files.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Who signed the clients' certificates.
    pub ca: PathBuf,
    /// The members' certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A cluster that runs.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Member>,
    is_tls: bool,
    /// Between the members, if they can be cut off from each other.
    peers: Option<Peers>,
    /// Last, so that it cleans up behind the members.
    _dir: Dir,
}

#[derive(Debug)]
struct Member {
    client: SocketAddr,
    metrics: SocketAddr,
    flags: Vec<String>,
    log: PathBuf,
    process: Option<Process>,
}

#[derive(Debug)]
struct Process {
    wrapper: Child,
    pid: Pid,
}

#[derive(Debug)]
struct Dir {
    path: PathBuf,
    janitor: Child,
}

impl Cluster {
    /// Starts that many members, without certificates, and waits until all serve.
    pub async fn start(members: usize) -> Self {
        let setup = Setup {
            members,
            ..Setup::default()
        };
        Self::start_as(&setup).await
    }

    /// Starts a cluster and waits until all its members serve.
    ///
    /// # Panics
    /// If etcd is not installed, or does not come up.
    pub async fn start_as(setup: &Setup) -> Self {
        let program = program();
        // A port that was free may be taken by somebody else before etcd has it.
        for _ in 0..3 {
            let mut cluster = Self::lay_out(setup, &program).await;
            for index in 0..setup.members {
                cluster.spawn(index);
            }
            match cluster.wait_until_up().await {
                Ok(()) => return cluster,
                Err(why) => eprintln!("etcd did not come up, once more: {why}"),
            }
        }
        panic!("etcd did not come up");
    }

    async fn lay_out(setup: &Setup, program: &Path) -> Self {
        let dir = Dir::new();
        let held: Vec<_> = (0..setup.members * 3)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let ports = held.iter().map(|held| held.local_addr().expect("bound"));
        let ports: Vec<_> = ports.collect();
        drop(held);
        let (clients, rest) = ports.split_at(setup.members);
        let (peers, metrics) = rest.split_at(setup.members);
        let between = if setup.is_divisible {
            Some(Peers::before(peers).await)
        } else {
            None
        };
        // Where a member listens for its peers, and where they find it.
        let found = |index: usize| between.as_ref().map_or(peers[index], |it| it.door(index));
        let cluster: Vec<_> = (0..setup.members)
            .map(|index| format!("m{index}=http://{}", found(index)))
            .collect();
        let cluster = cluster.join(",");
        let scheme = if setup.tls.is_some() { "https" } else { "http" };
        let members = (0..setup.members).map(|index| {
            let client = clients[index];
            let url = format!("{scheme}://{client}");
            let peer = format!("http://{}", peers[index]);
            let data = dir.path.join(format!("m{index}")).display().to_string();
            let mut flags = vec![program.display().to_string()];
            for (flag, value) in [
                ("name", format!("m{index}")),
                ("data-dir", data),
                ("listen-client-urls", url.clone()),
                ("advertise-client-urls", url),
                ("listen-peer-urls", peer),
                (
                    "initial-advertise-peer-urls",
                    format!("http://{}", found(index)),
                ),
                ("initial-cluster", cluster.clone()),
                ("initial-cluster-state", "new".to_owned()),
                ("listen-metrics-urls", format!("http://{}", metrics[index])),
                ("heartbeat-interval", "50".to_owned()),
                ("election-timeout", "500".to_owned()),
                ("grpc-keepalive-min-time", "500ms".to_owned()),
                (
                    "experimental-watch-progress-notify-interval",
                    format!("{}ms", PROGRESS.as_millis()),
                ),
                ("logger", "zap".to_owned()),
                ("log-level", "warn".to_owned()),
            ] {
                flags.extend([format!("--{flag}"), value]);
            }
            if let Some(tls) = &setup.tls {
                flags.push("--client-cert-auth".to_owned());
                for (flag, file) in [
                    ("trusted-ca-file", &tls.ca),
                    ("cert-file", &tls.certificate),
                    ("key-file", &tls.key),
                ] {
                    flags.extend([format!("--{flag}"), file.display().to_string()]);
                }
            }
            Member {
                client,
                metrics: metrics[index],
                flags,
                log: dir.path.join(format!("m{index}.log")),
                process: None,
            }
        });
        Self {
            members: members.collect(),
            peers: between,
            is_tls: setup.tls.is_some(),
            _dir: dir,
        }
    }

    fn spawn(&mut self, index: usize) {
        let member = &mut self.members[index];
        let mut wrapper = Command::new("sh")
            .args(["-c", WRAPPER])
            .arg(&member.log)
            .args(&member.flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let said = wrapper.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(said)
            .read_line(&mut line)
            .expect("it says its number");
        let number = line.trim().parse().expect("a process has a number");
        let pid = Pid::from_raw(number).expect("which is not 0");
        member.process = Some(Process { wrapper, pid });
        if let Some(peers) = &self.peers {
            peers.is_run_by(index, pid);
        }
    }

    async fn wait_until_up(&self) -> Result<(), String> {
        let deadline = Instant::now() + UP;
        for member in &self.members {
            let Some(process) = &member.process else {
                continue;
            };
            loop {
                let answer = http(member.metrics, "GET", "/health", "", "").await;
                if answer.is_some_and(|body| body.contains("\"true\"")) {
                    break;
                }
                if Instant::now() > deadline || !process.is_running() {
                    let log = fs::read_to_string(&member.log).unwrap_or_default();
                    return Err(log);
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// How many members it has.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// Where a member listens for clients.
    pub fn address(&self, index: usize) -> SocketAddr {
        self.members[index].client
    }

    /// Where clients connect to.
    pub fn endpoints(&self) -> Vec<String> {
        let scheme = if self.is_tls { "https" } else { "http" };
        let endpoints = self.members.iter();
        endpoints
            .map(|member| format!("{scheme}://{}", member.client))
            .collect()
    }

    /// A configuration that reaches it, and notices soon if a member is gone.
    pub fn config(&self) -> EtcdConfig {
        EtcdConfig {
            keepalive_ms: 1_000,
            ..EtcdConfig::at(self.endpoints())
        }
    }

    /// A store in it.
    pub fn store(&self) -> Etcd {
        Etcd::new(&self.config()).expect("the endpoints are addresses")
    }

    /// Which member leads.
    ///
    /// # Panics
    /// If none does for long.
    pub async fn leader(&self) -> usize {
        let deadline = Instant::now() + UP;
        loop {
            for (index, member) in self.members.iter().enumerate() {
                let status = json!({});
                let Some(status) = post(member.client, "/v3/maintenance/status", &status).await
                else {
                    continue;
                };
                let is_leader = status["leader"].is_string()
                    && status["leader"] == status["header"]["member_id"];
                if is_leader {
                    return index;
                }
            }
            assert!(Instant::now() < deadline, "nobody leads");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills a member as a crash would.
    pub fn kill(&mut self, index: usize) {
        self.signal(index, Signal::KILL);
        self.members[index].process = None;
    }

    /// Stops a member in the middle of whatever it does.
    pub fn freeze(&self, index: usize) {
        self.signal(index, Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self, index: usize) {
        self.signal(index, Signal::CONT);
    }

    /// Cuts a member off from the others, not from its clients, until it is [`rejoined`](Self::rejoin).
    ///
    /// # Panics
    /// If the cluster is not divisible.
    pub fn cut_off(&self, index: usize) {
        self.between().set(index, Weather::Silent);
    }

    /// Lets a member and the others hear each other again.
    ///
    /// # Panics
    /// If the cluster is not divisible.
    pub fn rejoin(&self, index: usize) {
        self.between().set(index, Weather::Fair);
    }

    fn between(&self) -> &Peers {
        self.peers.as_ref().expect("the cluster is divisible")
    }

    fn signal(&self, index: usize, signal: Signal) {
        let process = self.members[index].process.as_ref();
        let pid = process.expect("the member runs").pid;
        kill_process(pid, signal).expect("the process is ours");
    }

    /// Starts a killed member again with what it had, and waits until all that run serve.
    pub async fn restart(&mut self, index: usize) {
        self.spawn(index);
        self.wait_until_up().await.expect("it comes up again");
    }

    /// Asks a member over its HTTP gateway, for what the store's client cannot do.
    ///
    /// # Panics
    /// If it does not answer with JSON.
    pub async fn post(&self, index: usize, path: &str, body: &Value) -> Value {
        let answer = post(self.members[index].client, path, body).await;
        answer.unwrap_or_else(|| panic!("{path}: no answer"))
    }

    /// The same, as whom a token was given to.
    ///
    /// # Panics
    /// If it does not answer with JSON.
    pub async fn post_as(&self, index: usize, path: &str, body: &Value, token: &str) -> Value {
        let head = format!("Grpc-Metadata-Token: {token}\r\n");
        let address = self.members[index].client;
        let answer = http(address, "POST", path, &head, &body.to_string()).await;
        let answer = answer.unwrap_or_else(|| panic!("{path}: no answer"));
        serde_json::from_str(&answer).expect("it answers with JSON")
    }

    /// A number of a member's own metrics; 0 if it has none of that name.
    pub async fn metric(&self, index: usize, name: &str) -> f64 {
        let text = http(self.members[index].metrics, "GET", "/metrics", "", "").await;
        let text = text.unwrap_or_default();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or(0.0)
    }
}

/// The program: the one that `RSPP_ETCD` names, the one that is installed, or else Debian's, unpacked below
/// `target` without being installed.
///
/// # Panics
/// If there is none.
fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("RSPP_ETCD") {
        assert!(
            runs(Path::new(&named)),
            "RSPP_ETCD: `{}` does not run",
            named.display()
        );
        return named.into();
    }
    let installed = PathBuf::from("etcd");
    if runs(&installed) {
        return installed;
    }
    let unpacked = debian::unpacked("etcd-server", "usr/bin/etcd");
    assert!(
        runs(&unpacked),
        "this test starts a real etcd cluster, there is no `etcd`, and Debian's could not be fetched: install it \
         (apt-get install etcd-server) or set RSPP_ETCD to the program",
    );
    unpacked
}

fn runs(program: &Path) -> bool {
    debian::succeeds(Command::new(program).arg("--version"))
}

async fn post(address: SocketAddr, path: &str, body: &Value) -> Option<Value> {
    let answer = http(address, "POST", path, "", &body.to_string()).await?;
    serde_json::from_str(&answer).ok()
}

/// HTTP/1.0, so that the answer comes in one piece and ends with the connection.
async fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    head: &str,
    body: &str,
) -> Option<String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.0\r\n{head}Content-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        Some(body.to_owned())
    };
    timeout(Duration::from_secs(2), ask).await.ok().flatten()
}

impl Process {
    fn is_running(&self) -> bool {
        // Nobody has waited for it yet, so it has a number even after its end.
        let stat = format!("/proc/{}/stat", self.pid.as_raw_nonzero());
        fs::read_to_string(stat).is_ok_and(|stat| !stat.contains(") Z "))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.wrapper.stdin.take());
        let _ = self.wrapper.wait();
    }
}

impl Dir {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("rspp-etcd-").tempdir();
        let path = dir.expect("a directory for its data").keep();
        let janitor = Command::new("sh")
            .args(["-c", JANITOR])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh starts");
        Self { path, janitor }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}
