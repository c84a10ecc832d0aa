//! What a whole control plane carries, over gRPC with mTLS: new sessions, and 10,000 that are held.
//!
//! `cargo bench -p rspp-tests --bench plane` prints a table for a control plane on a file and one for a
//! control plane on three etcd members of this machine, with `-- --json` JSON, with `-- --quick` hastily,
//! with `-- --sessions 500` that many sessions. Needs the program `etcd` (Debian: `apt-get install
//! etcd-server`).
//!
//! The control plane is a process of its own, so that its share of the processor is its own; it is this
//! program, started again. Members, control plane and all runtimes share the machine's cores.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rspp_controlplane::{
    authority::DEFAULT_TTL,
    store::Store,
    token::{KeyId, SigningKey},
};
use rspp_controlplane_api::{
    Acquire, Client, ClientConfig, ControlPlane as _, HeldSession, Wanted, tls::TlsFiles, wire,
};
use rspp_controlplane_server::{Listen, Plane, Server, Settings, Transport};
use rspp_controlplane_storage::{Embedded, Etcd, EtcdConfig};
use rspp_proto::{
    Epoch, Region, RuntimeId, SessionId, TenantId,
    control::{Attempt, Description, Endpoint, Holder, Load, PROTOCOL},
    spec::PipelineSpec,
};
use rspp_service::credentials::{Authority, Files};
use rspp_tests::{
    bench::{Aim, Args, Table, histogram, us, workers},
    etcd::Cluster,
};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Tells this program to be the control plane.
const SERVE: &str = "RSPP_BENCH_PLANE";
/// Sessions of one runtime.
const PER_RUNTIME: usize = 200;
/// Tenants that the sessions belong to.
const TENANTS: usize = 20;
/// New sessions under way while the many are placed.
const AT_ONCE: usize = 64;
/// Of whom the certificates say who calls.
const DOMAIN: &str = "rspp.bench";

fn main() {
    let runtime = workers();
    if let Ok(text) = std::env::var(SERVE) {
        let config = serde_json::from_str(&text).expect("this program wrote it");
        return runtime.block_on(serve(&config));
    }
    let args = Args::read();
    runtime.block_on(async {
        measure(args, None).await;
        let cluster = Cluster::start(3).await;
        measure(args, Some(&cluster)).await;
    });
}

/// Is the control plane until nobody holds its input any more.
async fn serve(config: &Value) {
    let path = |name: &str| config[name].as_str().expect("this program wrote it").into();
    let store: Arc<dyn Store> = if let Some(members) = config["etcd"].as_array() {
        let members = members.iter().filter_map(Value::as_str);
        let config = EtcdConfig {
            endpoints: members.map(str::to_owned).collect(),
            ..EtcdConfig::default()
        };
        Arc::new(Etcd::new(&config).expect("the members are there"))
    } else {
        let file: std::path::PathBuf = path("file");
        Arc::new(Embedded::open(&file).expect("a new file"))
    };
    let settings = Settings {
        domain: DOMAIN.to_owned(),
        ..Settings::default()
    };
    let key = SigningKey::from_seed(KeyId::new("k1").expect("a name"), &[7; 32]);
    let plane = Plane::open(store, settings, vec![key])
        .await
        .expect("the store answers");
    let door = Listen {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        transport: Transport::Tls(TlsFiles {
            authorities: path("authorities"),
            certificate: path("certificate"),
            key: path("key"),
        }),
    };
    let server = Server::start(plane, vec![door]).await.expect("it serves");
    println!("{}", server.addresses()[0]);
    let input = tokio::task::spawn_blocking(|| {
        let mut all = Vec::new();
        let _closed = std::io::stdin().read_to_end(&mut all);
    });
    input.await.expect("reading does not panic");
    server.stop(Duration::from_secs(1)).await;
}

/// A control plane that runs as a process of its own.
struct Serving {
    child: Child,
    /// While it is held, the process goes on.
    input: Option<ChildStdin>,
    address: String,
}

impl Serving {
    fn start(dir: &Path, authority: &Authority, cluster: Option<&Cluster>) -> Self {
        let files = authority.server("control-plane").expect("it is issued");
        let config = json!({
            "file": dir.join("store"),
            "etcd": cluster.map(Cluster::endpoints),
            "authorities": authority.certificate(),
            "certificate": files.certificate,
            "key": files.key,
        });
        let program = std::env::current_exe().expect("this program has a file");
        let mut child = Command::new(program)
            .env(SERVE, config.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let output = child.stdout.take().expect("it is a pipe");
        let mut address = String::new();
        BufReader::new(output)
            .read_line(&mut address)
            .expect("it says where it is");
        Self {
            input: child.stdin.take(),
            child,
            address: format!("https://{}", address.trim()),
        }
    }

    fn client(&self, authority: &Authority, files: Files) -> Client {
        let tls = TlsFiles {
            authorities: authority.certificate(),
            certificate: files.certificate,
            key: files.key,
        };
        Client::new(ClientConfig {
            addresses: vec![self.address.clone()],
            tls: Some(tls),
            deadline: Duration::from_secs(10),
            ..ClientConfig::default()
        })
        .expect("the certificate is good")
    }

    /// Time that it has had of all cores, in seconds.
    fn cpu_seconds(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.child.id());
        let text = std::fs::read_to_string(path).expect("it runs");
        // The name, in parentheses, may hold spaces; user and system time are the 12th and 13th after it.
        let rest = text.rsplit(") ").next().expect("there is a name");
        let ticks = rest.split(' ').skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|it| it.parse::<u64>().ok()).sum();
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    fn stop(mut self) {
        drop(self.input.take());
        self.child.wait().expect("it ends");
    }
}

async fn measure(args: Args, cluster: Option<&Cluster>) {
    let input = match cluster {
        None => "a control plane on a file, mTLS",
        Some(_) => "a control plane on etcd, three members on this machine, mTLS",
    };
    let mut table = Table::new("plane", input);
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::open(&dir.path().join("tls"), DOMAIN).expect("it can be made");
    let serving = Serving::start(dir.path(), &authority, cluster);
    let admin = serving.client(
        &authority,
        authority.person("ana", "admin").expect("issued"),
    );
    publish(&admin).await;
    let router = serving.client(
        &authority,
        authority.person("otto", "operator").expect("issued"),
    );
    let sessions = args.sessions.unwrap_or(args.pick(10_000, 400));
    let aim = cluster.map_or(10.0, |_| 50.0);
    let runtimes = join(&serving, &authority, sessions.div_ceil(PER_RUNTIME) + 1).await;
    let renewing = Renewing::begin(&runtimes);
    open_one_by_one(&router, &runtimes, args.pick(1_000, 100), aim, &mut table).await;
    let writes = applied(cluster).await;
    let begun = Instant::now();
    place(&router, &runtimes, sessions).await;
    let rate = sessions as f64 / begun.elapsed().as_secs_f64();
    let label = format!("new sessions, {AT_ONCE} at a time, {sessions} in all");
    table.note("placed", label, rate, "/s");
    if let (Some(before), Some(after)) = (writes, applied(cluster).await) {
        let per_session = (after - before) / sessions as f64;
        table.note("placed_writes", "raft entries for each", per_session, "");
    }
    hold(&serving, &renewing, cluster, sessions, args, &mut table).await;
    renewing.stop();
    serving.stop();
    table.print(args);
}

async fn publish(admin: &Client) {
    let source = PipelineSpec::simple_template().replace("version: simple-1", "version: desk-1");
    let request = wire::PublishRequest {
        kind: wire::Kind::Pipeline.into(),
        version: "desk-1".to_owned(),
        source,
        ..wire::PublishRequest::default()
    };
    admin.publish(request).await.expect("it is published");
    let request = wire::ChangeRolloutRequest {
        kind: wire::Kind::Pipeline.into(),
        line: "desk".to_owned(),
        change: Some(wire::Change {
            change: Some(wire::change::Change::Direct("desk-1".to_owned())),
        }),
        ..wire::ChangeRolloutRequest::default()
    };
    admin
        .change_rollout(request)
        .await
        .expect("it is rolled out");
}

/// A runtime, with a connection of its own and what it holds.
struct Runtime {
    client: Client,
    holder: Holder,
    held: Mutex<Vec<(SessionId, Epoch)>>,
}

async fn join(serving: &Serving, authority: &Authority, count: usize) -> Arc<Vec<Runtime>> {
    let mut runtimes = Vec::new();
    for number in 0..count {
        let name = format!("runtime-{number}");
        let client = serving.client(authority, authority.runtime(&name).expect("issued"));
        let description = Description {
            region: Region::new("eu").expect("a name"),
            endpoints: vec![Endpoint {
                transport: "websocket".to_owned(),
                url: format!("ws://{name}.test/call"),
            }],
            capacity: u32::MAX,
            build: "bench".to_owned(),
            protocol: PROTOCOL,
            events: "v1.0".to_owned(),
            labels: std::collections::BTreeMap::new(),
        };
        let id = RuntimeId::new(name).expect("a name");
        let joined = client.register(id, description).await.expect("it joins");
        client
            .heartbeat(&joined.holder, LOAD)
            .await
            .expect("it is heard");
        runtimes.push(Runtime {
            client,
            holder: joined.holder,
            held: Mutex::default(),
        });
    }
    Arc::new(runtimes)
}

const LOAD: Load = Load {
    outages: Vec::new(),
    sessions: 0,
    cpu_percent: 10,
    ready: true,
    overloaded: false,
};

/// A session as a client and then a runtime open it: endpoint, version and token; then the lease.
async fn open(router: &Client, runtime: &Runtime, name: String, tenant: usize) {
    let tenant = format!("tenant-{}", tenant % TENANTS);
    let request = wire::RouteRequest {
        tenant: tenant.clone(),
        session: name.clone(),
        transport: "websocket".to_owned(),
        ..wire::RouteRequest::default()
    };
    let route = router.route_session(request).await.expect("there is a way");
    assert!(route.token.is_some(), "with a token");
    let session = SessionId::new(name).expect("a name");
    let ask = Acquire {
        by: runtime.holder.clone(),
        attempt: Attempt(1),
        session: session.clone(),
        wanted: Wanted {
            tenant: TenantId::new(tenant).expect("a name"),
            pipeline: None,
            policy: None,
            providers: None,
        },
    };
    let granted = runtime.client.acquire(ask).await.expect("it is granted");
    let mut held = runtime.held.lock().expect("nobody panics here");
    held.push((session, granted.epoch));
}

async fn open_one_by_one(
    router: &Client,
    runtimes: &Arc<Vec<Runtime>>,
    count: usize,
    aim: f64,
    table: &mut Table,
) {
    let runtime = runtimes.last().expect("there is one");
    // Connections are made, and what was published has reached everybody.
    for number in 0..20 {
        open(router, runtime, format!("first-{number}"), number).await;
    }
    let mut took = histogram();
    for number in 0..count {
        let begun = Instant::now();
        open(router, runtime, format!("new-{number}"), number).await;
        took.record(begun.elapsed().as_nanos() as u64)
            .expect("it fits");
    }
    let ms = |quantile| us(&took, quantile) / 1_000.0;
    let label = "route, token and lease of a new session: half";
    table.note("new_p50", label, ms(0.5), "ms");
    table.aim("new_p99", "99 of 100", ms(0.99), "ms", Aim::AtMost(aim));
}

async fn place(router: &Client, runtimes: &Arc<Vec<Runtime>>, sessions: usize) {
    let next = Arc::new(AtomicU64::new(0));
    let workers = (0..AT_ONCE).map(|_| {
        let (router, runtimes, next) = (router.clone(), Arc::clone(runtimes), Arc::clone(&next));
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed) as usize;
                if number >= sessions {
                    return;
                }
                let runtime = &runtimes[number / PER_RUNTIME];
                open(&router, runtime, format!("held-{number}"), number).await;
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.expect("a worker does not panic");
    }
}

/// Runtimes that say how they fare, and renew at two fifths of their lease all that they hold.
struct Renewing {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    sessions: AtomicU64,
    lost: AtomicU64,
    took_us: Mutex<Vec<u64>>,
}

impl Renewing {
    fn begin(runtimes: &Arc<Vec<Runtime>>) -> Self {
        let counts = Arc::new(Counts::default());
        let count = runtimes.len() as u32;
        let tasks = (0..runtimes.len()).flat_map(|number| {
            let pace = DEFAULT_TTL * 2 / 5;
            let after = pace * number as u32 / count;
            let renew = renew(Arc::clone(runtimes), number, after, Arc::clone(&counts));
            let beat = beat(Arc::clone(runtimes), number, after);
            [tokio::spawn(renew), tokio::spawn(beat)]
        });
        Self {
            tasks: tasks.collect(),
            counts,
        }
    }

    fn reset(&self) {
        self.counts.sessions.store(0, Ordering::Relaxed);
        self.counts.lost.store(0, Ordering::Relaxed);
        self.took().clear();
    }

    fn took(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.counts.took_us.lock().expect("nobody panics here")
    }

    fn stop(self) {
        for task in self.tasks {
            task.abort();
        }
    }
}

async fn renew(runtimes: Arc<Vec<Runtime>>, number: usize, after: Duration, counts: Arc<Counts>) {
    let runtime = &runtimes[number];
    tokio::time::sleep(after).await;
    let mut ticks = interval(DEFAULT_TTL * 2 / 5);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let held: Vec<_> = {
            let held = runtime.held.lock().expect("nobody panics here");
            let held = held.iter().map(|(session, epoch)| HeldSession {
                session: session.clone(),
                epoch: *epoch,
                prove: false,
            });
            held.collect()
        };
        let sessions = held.len() as u64;
        let begun = Instant::now();
        let renewed = runtime.client.renew(&runtime.holder, held).await;
        match renewed {
            Ok(renewed) if begun.elapsed() < DEFAULT_TTL => {
                let lost = renewed.lost.len() as u64;
                counts.lost.fetch_add(lost, Ordering::Relaxed);
                counts
                    .sessions
                    .fetch_add(sessions - lost, Ordering::Relaxed);
            }
            Ok(_) | Err(_) => {
                counts.lost.fetch_add(sessions, Ordering::Relaxed);
            }
        }
        let took = begun.elapsed().as_micros() as u64;
        counts
            .took_us
            .lock()
            .expect("nobody panics here")
            .push(took);
    }
}

async fn beat(runtimes: Arc<Vec<Runtime>>, number: usize, after: Duration) {
    let runtime = &runtimes[number];
    tokio::time::sleep(after).await;
    let mut ticks = interval(Settings::default().heartbeat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let _late = runtime.client.heartbeat(&runtime.holder, LOAD).await;
    }
}

/// What it costs to hold them all.
async fn hold(
    serving: &Serving,
    renewing: &Renewing,
    cluster: Option<&Cluster>,
    sessions: usize,
    args: Args,
    table: &mut Table,
) {
    let span = args.pick(Duration::from_secs(20), Duration::from_secs(4));
    let (writes, cpu) = (applied(cluster).await, serving.cpu_seconds());
    renewing.reset();
    let begun = Instant::now();
    tokio::time::sleep(span).await;
    let seconds = begun.elapsed().as_secs_f64();
    let share = (serving.cpu_seconds() - cpu) / seconds * 100.0;
    let counts = &renewing.counts;
    table.note(
        "sessions_renewed",
        format!(
            "sessions renewed, {sessions} held, TTL {} s",
            DEFAULT_TTL.as_secs()
        ),
        counts.sessions.load(Ordering::Relaxed) as f64 / seconds,
        "/s",
    );
    let p99 = {
        let mut took = renewing.took();
        took.sort_unstable();
        let at = took.len() * 99 / 100;
        took.get(at).copied().unwrap_or_default() as f64 / 1_000.0
    };
    let label = format!("99 of 100 renewals of a runtime with {PER_RUNTIME}");
    table.note("renewal_p99", label, p99, "ms");
    let lost = counts.lost.load(Ordering::Relaxed);
    table.note("lost", "sessions not renewed in time", lost as f64, "");
    table.note(
        "cpu",
        "the control plane's process, of one core",
        share,
        "%",
    );
    if let (Some(before), Some(after)) = (writes, applied(cluster).await) {
        let rate = (after - before) / seconds;
        let label = "raft entries: one heartbeat of each runtime a second";
        table.note("write_rate", label, rate, "/s");
    }
}

/// What the members agreed on so far, each change of the store once; only of a cluster.
async fn applied(cluster: Option<&Cluster>) -> Option<f64> {
    let cluster = cluster?;
    let name = "etcd_server_proposals_applied_total";
    Some(cluster.metric(0, name).await)
}
