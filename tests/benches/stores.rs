//! What a control plane's store carries: commits, leases, and 10,000 sessions that are held and renewed.
//!
//! `cargo bench -p rspp-tests --bench stores` prints a table for the file and one for a cluster of three
//! etcd members on this machine, with `-- --json` JSON, with `-- --quick` hastily, with
//! `-- --sessions 500` that many sessions. Needs the program `etcd` (Debian: `apt-get install etcd-server`).
//!
//! A runtime renews one lease of the store for all its sessions, and reads with it which of them it was
//! told to let go: so renewing costs the store no write, however many sessions there are. The members
//! share the machine's cores and its one disk with the client.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use rspp_controlplane::{
    admission::Policy,
    authority::{Attempt, Binding, DEFAULT_TTL, Holder, Incarnation, Placement, Standing, Term},
    keys,
    store::{Compare, Key, LeaseId, Query, Store, Txn},
};
use rspp_controlplane_storage::{Embedded, counters::Counters};
use rspp_proto::{Epoch, PipelineVersion, RuntimeId, SessionId, TenantId, WallClock};
use rspp_tests::{
    bench::{Args, Table, workers},
    etcd::Cluster,
};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Requests under way at a time where the rate counts.
const AT_ONCE: u64 = 32;
/// Sessions of one runtime.
const PER_RUNTIME: usize = 200;
/// Tenants that the sessions belong to.
const TENANTS: usize = 20;

fn main() {
    let args = Args::read();
    let runtime = workers();
    runtime.block_on(async {
        let dir = tempfile::tempdir().expect("a directory");
        let file: Arc<dyn Store> =
            Arc::new(Embedded::open(&dir.path().join("store")).expect("a new file"));
        measure(args, file, None).await;
        let cluster = Cluster::start(3).await;
        measure(args, Arc::new(cluster.store()), Some(&cluster)).await;
    });
}

async fn measure(args: Args, store: Arc<dyn Store>, cluster: Option<&Cluster>) {
    let input = match cluster {
        None => "a file, synced with each group of writes",
        Some(_) => "etcd, three members on this machine",
    };
    let mut table = Table::new("stores", input);
    let span = args.pick(Duration::from_secs(5), Duration::from_millis(500));
    commits(&store, span, &mut table).await;
    leases(&store, span, &mut table).await;
    let sessions = args.sessions.unwrap_or(args.pick(10_000, 400));
    hold(&store, cluster, sessions, args, &mut table).await;
    table.print(args);
}

/// One after the other, then many at once, each record on its own.
async fn commits(store: &Arc<dyn Store>, span: Duration, table: &mut Table) {
    let mut took = Histogram::<u64>::new(3).expect("three digits");
    let begun = Instant::now();
    let key = Key::of(["bench", "one"]);
    while begun.elapsed() < span {
        let before = Instant::now();
        let txn = Txn::default().put(key.clone(), vec![b'x'; 256]);
        store.commit(txn).await.expect("the store takes it");
        took.record(before.elapsed().as_micros() as u64)
            .expect("it fits");
    }
    let ms = |quantile| took.value_at_quantile(quantile) as f64 / 1_000.0;
    table.note(
        "commit_p50",
        "a commit of 256 bytes, one at a time: half",
        ms(0.5),
        "ms",
    );
    table.note("commit_p99", "99 of 100", ms(0.99), "ms");
    let rate = at_once(span, {
        let store = Arc::clone(store);
        move |number| {
            let store = Arc::clone(&store);
            async move {
                let key = Key::of(["bench", &(number % 1_000).to_string()]);
                let txn = Txn::default().put(key, vec![b'x'; 256]);
                store.commit(txn).await.expect("the store takes it");
            }
        }
    });
    table.note("commits", "commits, 32 at a time", rate.await, "/s");
}

async fn leases(store: &Arc<dyn Store>, span: Duration, table: &mut Table) {
    let granted = {
        let store = Arc::clone(store);
        move |_| {
            let store = Arc::clone(&store);
            async move {
                let lease = store.grant(Duration::from_mins(1)).await;
                lease.expect("it is granted");
            }
        }
    };
    table.note(
        "grants",
        "leases granted, 32 at a time",
        at_once(span, granted).await,
        "/s",
    );
    let lease = store
        .grant(Duration::from_mins(1))
        .await
        .expect("granted")
        .id;
    let renewed = {
        let store = Arc::clone(store);
        move |_| {
            let store = Arc::clone(&store);
            async move {
                store.keep_alive(lease).await.expect("it is renewed");
            }
        }
    };
    table.note(
        "renewals",
        "leases renewed, 32 at a time",
        at_once(span, renewed).await,
        "/s",
    );
}

/// How often something is done in a second.
async fn at_once<F: Future<Output = ()> + Send + 'static>(
    span: Duration,
    job: impl Fn(u64) -> F + Clone + Send + 'static,
) -> f64 {
    let done = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let workers = (0..AT_ONCE).map(|worker| {
        let (done, job) = (Arc::clone(&done), job.clone());
        tokio::spawn(async move {
            let mut number = worker;
            while begun.elapsed() < span {
                job(number).await;
                number += AT_ONCE;
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.expect("a worker does not panic");
    }
    done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
}

struct Runtime {
    holder: Holder,
    lease: LeaseId,
}

/// Places the sessions, counted, and then renews them all at the default pace.
async fn hold(
    store: &Arc<dyn Store>,
    cluster: Option<&Cluster>,
    sessions: usize,
    args: Args,
    table: &mut Table,
) {
    let mut runtimes = Vec::new();
    for number in 0..sessions.div_ceil(PER_RUNTIME) {
        let holder = Holder {
            runtime: RuntimeId::new(format!("runtime-{number}")).expect("a name"),
            incarnation: Incarnation::FIRST,
        };
        let kept = Term::default().kept();
        let lease = store.grant(kept).await.expect("it is granted").id;
        let key = keys::liveness(&holder);
        let txn = Txn::default().put_leased(key, "alive", lease);
        store.commit(txn).await.expect("the lease is there");
        runtimes.push(Runtime { holder, lease });
    }
    let runtimes = Arc::new(runtimes);
    let renewing = renew(store, &runtimes);

    let writes = applied(cluster).await;
    let begun = Instant::now();
    place(store, &runtimes, sessions).await;
    let rate = sessions as f64 / begun.elapsed().as_secs_f64();
    table.note(
        "placed",
        format!("sessions placed and counted, {sessions} in all"),
        rate,
        "/s",
    );
    if let Some(before) = writes {
        let writes = applied(cluster).await.unwrap_or(0.0) - before;
        table.note("placed_writes", "raft entries for all of them", writes, "");
    }

    let span = args.pick(Duration::from_secs(20), Duration::from_secs(2));
    let (writes, cpu) = (applied(cluster).await, cpu_seconds());
    renewing.reset();
    tokio::time::sleep(span).await;
    let seconds = span.as_secs_f64();
    let counted = renewing.counted();
    table.note(
        "sessions_renewed",
        format!("sessions renewed, at a TTL of {} s", DEFAULT_TTL.as_secs()),
        counted.renewed as f64 * PER_RUNTIME as f64 / seconds,
        "/s",
    );
    table.note(
        "renewal_p99",
        "99 of 100 renewals of a runtime",
        counted.p99_ms,
        "ms",
    );
    table.note(
        "lost",
        "runtimes that lost their lease",
        counted.lost as f64,
        "",
    );
    let share = (cpu_seconds() - cpu) / seconds * 100.0;
    table.note("cpu", "this process, of one core", share, "%");
    if let Some(before) = writes {
        let writes = applied(cluster).await.unwrap_or(0.0) - before;
        table.note(
            "write_rate",
            "raft entries while they are renewed",
            writes / seconds,
            "/s",
        );
    }
    renewing.stop().await;
}

async fn place(store: &Arc<dyn Store>, runtimes: &Arc<Vec<Runtime>>, sessions: usize) {
    let now = Arc::new(|| WallClock(1));
    let counters = Arc::new(Counters::new(Arc::clone(store), now));
    let policy = Arc::new(Policy::default());
    let next = Arc::new(AtomicU64::new(0));
    // As many as a busy replica has under way.
    let workers = (0..512).map(|_| {
        let (counters, policy) = (Arc::clone(&counters), Arc::clone(&policy));
        let (next, runtimes) = (Arc::clone(&next), Arc::clone(runtimes));
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed) as usize;
                if number >= sessions {
                    return;
                }
                let tenant = format!("tenant-{}", number % TENANTS);
                let tenant = TenantId::new(tenant).expect("a name");
                let holder = runtimes[number / PER_RUNTIME].holder.clone();
                let txn = placement(number, &tenant, holder);
                let opened = counters.open(Arc::clone(&policy), &tenant, "desk", txn);
                opened.await.expect("it is placed");
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.expect("a worker does not panic");
    }
    counters.finish().await;
}

fn placement(number: usize, tenant: &TenantId, by: Holder) -> Txn {
    let session = SessionId::new(format!("session-{number}")).expect("a name");
    let alive = keys::liveness(&by);
    let key = keys::placement(&session);
    let placement = Placement {
        session,
        binding: Binding {
            tenant: tenant.clone(),
            pipeline: PipelineVersion::new("desk-v1").expect("a name"),
            policy: None,
            providers: None,
        },
        epoch: Epoch::FIRST,
        attempt: Attempt(1),
        standing: Standing::Held { by },
        since: WallClock(1),
        past: Vec::new(),
        over: None,
    };
    let text = serde_json::to_vec(&placement).expect("plain data");
    Txn::default()
        .when(Compare::Absent(key.clone()))
        .when(Compare::Exists(alive))
        .put(key, text)
}

/// Runtimes that renew, each at two fifths of its lease.
struct Renewing {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    renewed: AtomicU64,
    lost: AtomicU64,
    took_us: std::sync::Mutex<Vec<u64>>,
}

struct Counted {
    renewed: u64,
    lost: u64,
    p99_ms: f64,
}

fn renew(store: &Arc<dyn Store>, runtimes: &Arc<Vec<Runtime>>) -> Renewing {
    let counts = Arc::new(Counts::default());
    let count = runtimes.len();
    let tasks = (0..count).map(|number| {
        let (store, runtimes) = (Arc::clone(store), Arc::clone(runtimes));
        let counts = Arc::clone(&counts);
        tokio::spawn(async move {
            let pace = DEFAULT_TTL * 2 / 5;
            tokio::time::sleep(pace * number as u32 / count as u32).await;
            let mut ticks = interval(pace);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let runtime = &runtimes[number];
            loop {
                ticks.tick().await;
                let begun = Instant::now();
                let kept = store.keep_alive(runtime.lease).await;
                let orders = Query::first(keys::revocations(&runtime.holder));
                let orders = store.list(orders).await;
                if kept.is_err() || orders.is_err() {
                    counts.lost.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                counts.renewed.fetch_add(1, Ordering::Relaxed);
                let took = begun.elapsed().as_micros() as u64;
                counts
                    .took_us
                    .lock()
                    .expect("nobody panics here")
                    .push(took);
            }
        })
    });
    Renewing {
        tasks: tasks.collect(),
        counts,
    }
}

impl Renewing {
    fn reset(&self) {
        self.counts.renewed.store(0, Ordering::Relaxed);
        self.counts.lost.store(0, Ordering::Relaxed);
        let mut took = self.counts.took_us.lock().expect("nobody panics here");
        took.clear();
    }

    fn counted(&self) -> Counted {
        let mut took = self.counts.took_us.lock().expect("nobody panics here");
        took.sort_unstable();
        let p99 = took.get(took.len() * 99 / 100).copied().unwrap_or(0);
        Counted {
            renewed: self.counts.renewed.load(Ordering::Relaxed),
            lost: self.counts.lost.load(Ordering::Relaxed),
            p99_ms: p99 as f64 / 1_000.0,
        }
    }

    async fn stop(self) {
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
    }
}

/// What the members agreed on so far, each change of the store once; only of a cluster.
async fn applied(cluster: Option<&Cluster>) -> Option<f64> {
    let cluster = cluster?;
    let name = "etcd_server_proposals_applied_total";
    Some(cluster.metric(0, name).await)
}

/// Time that this process has had of all cores, in seconds; the members are processes of their own.
fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}
