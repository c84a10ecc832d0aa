//! What the lanes cost: throughput, hop latency, control latency behind a full data lane, memory and life.
//!
//! `cargo bench -p rspp-actors` prints a table, `cargo bench -p rspp-actors -- --json` the same as JSON. Two worker
//! threads; numbers depend on the machine and on what else it does.
#![cfg_attr(loom, allow(unused))]

use std::convert::Infallible;
use std::future::Future;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Duration;

use futures::future::BoxFuture;
use hdrhistogram::Histogram;
use rspp_actors::{
    Actor, Bounded, ChildSpec, Clock, Context, ControlRef, DataRef, Failure, Handle, NoData,
    NoTelemetry, Offer, Overflow, Stopwatch, System,
};
use tokio::sync::oneshot;

fn main() {
    let json = std::env::args().any(|arg| arg == "--json");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let measured = runtime.block_on(measure());
    if json {
        let values: serde_json::Map<_, _> = measured
            .iter()
            .map(|m| (m.key.to_owned(), m.value.into()))
            .collect();
        println!("{}", serde_json::Value::from(values));
        return;
    }
    for m in measured {
        println!("{:<58} {:>12.3} {}", m.what, m.value, m.unit);
    }
}

/// One number of the report.
struct Measured {
    key: &'static str,
    what: &'static str,
    value: f64,
    unit: &'static str,
}

async fn measure() -> Vec<Measured> {
    let mut report = Vec::new();
    let mut note = |key, what, value, unit| {
        report.push(Measured {
            key,
            what,
            value,
            unit,
        });
    };
    // Memory first, while the process is small.
    note(
        "actor_bytes",
        "resident memory of one linked, idle actor",
        bytes_per_actor().await,
        "B",
    );
    note(
        "spawn_stop_us",
        "spawn and stop a child",
        median(7, spawn_stop).await,
        "us",
    );
    note(
        "one_to_one_mps",
        "one sender to one actor, item by item",
        median(7, || throughput(1, 1)).await,
        "M msg/s",
    );
    note(
        "one_to_one_batch_mps",
        "one sender to one actor, offered in batches of 32",
        median(7, || throughput(1, 32)).await,
        "M msg/s",
    );
    note(
        "chain_mps",
        "chain of four actors, whole chain",
        median(7, || throughput(4, 1)).await,
        "M msg/s",
    );
    let hot = hop(None, 200_000).await;
    note(
        "hop_busy_p50_us",
        "hop between two busy actors, p50",
        at(&hot, 50.0),
        "us",
    );
    note(
        "hop_busy_p99_us",
        "hop between two busy actors, p99",
        at(&hot, 99.0),
        "us",
    );
    let idle = hop(Some(Duration::from_millis(1)), 1_000).await;
    note(
        "hop_idle_p50_us",
        "hop to an actor on a sleeping thread, p50",
        at(&idle, 50.0),
        "us",
    );
    note(
        "hop_idle_p99_us",
        "hop to an actor on a sleeping thread, p99",
        at(&idle, 99.0),
        "us",
    );
    let (control, data) = behind_full_data().await;
    note(
        "control_p50_us",
        "control behind a full data lane, items of 5 us, p50",
        at(&control, 50.0),
        "us",
    );
    note(
        "control_p99_us",
        "control behind a full data lane, items of 5 us, p99",
        at(&control, 99.0),
        "us",
    );
    note(
        "saturated_p50_us",
        "data through that full lane of 1,024, p50",
        at(&data, 50.0),
        "us",
    );
    note(
        "saturated_p99_us",
        "data through that full lane of 1,024, p99",
        at(&data, 99.0),
        "us",
    );
    report
}

fn system() -> System {
    System::new(Clock::start())
}

fn lane<T>(capacity: usize) -> Bounded<T> {
    Bounded::new(
        NonZeroUsize::new(capacity).expect("not zero"),
        Overflow::Refuse,
    )
}

fn at(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    histogram.value_at_percentile(percentile) as f64 / 1000.0
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are allowed")
}

async fn median<F: Future<Output = f64>>(times: usize, mut run: impl FnMut() -> F) -> f64 {
    let mut results = Vec::new();
    for _ in 0..times {
        results.push(run().await);
    }
    results.sort_by(f64::total_cmp);
    results[times / 2]
}

async fn end(system: System) {
    assert!(system.shut_down(Duration::from_secs(10)).await, "ends");
}

/// Puts an item in, waiting for space as often as it takes.
async fn put<I>(lane: &DataRef<I>, mut item: I) {
    loop {
        match lane.offer(item) {
            Offer::Queued | Offer::Displaced(_) | Offer::Closed(_) => return,
            Offer::Full(back) => {
                item = back;
                lane.space().await;
            }
        }
    }
}

// === throughput ===

const ITEMS: u64 = 1_000_000;

/// Passes items on, or counts them at the end of the chain.
struct Stage {
    next: Option<DataRef<u64>>,
    seen: u64,
    done: Option<oneshot::Sender<()>>,
}

impl Actor for Stage {
    type Control = ();
    type Data = Bounded<u64>;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "stage";

    async fn on_control(&mut self, _ctx: &mut Context<Self>, (): ()) -> Result<(), Failure> {
        Ok(())
    }

    async fn on_data(&mut self, _ctx: &mut Context<Self>, item: u64) -> Result<(), Failure> {
        if let Some(next) = &self.next {
            put(next, item).await;
            return Ok(());
        }
        self.seen += 1;
        if self.seen == ITEMS
            && let Some(done) = self.done.take()
        {
            let _ = done.send(());
        }
        Ok(())
    }
}

/// Million items a second through a chain of so many actors.
async fn throughput(stages: usize, batch_size: usize) -> f64 {
    let system = system();
    let (tell, done) = oneshot::channel();
    let mut tell = Some(tell);
    let mut next: Option<DataRef<u64>> = None;
    for _ in 0..stages {
        let (to, mut done) = (next.take(), tell.take());
        let stage = system
            .spawn_root(ChildSpec::temporary("stage"), lane(1024), move || Stage {
                next: to.clone(),
                seen: 0,
                done: done.take(),
            })
            .await
            .expect("a stage starts");
        next = Some(stage.data);
    }
    let first = next.expect("at least one stage");
    let watch = Stopwatch::start();
    tokio::spawn(async move {
        if batch_size == 1 {
            for n in 0..ITEMS {
                put(&first, n).await;
            }
            return;
        }
        let mut batch = std::collections::VecDeque::with_capacity(batch_size);
        let mut n = 0;
        while n < ITEMS || !batch.is_empty() {
            while n < ITEMS && batch.len() < batch_size {
                batch.push_back(n);
                n += 1;
            }
            if first.offer_all(&mut batch) == 0 {
                first.space().await;
            }
        }
    })
    .await
    .expect("the sender ends");
    done.await.expect("the last stage tells");
    let took = watch.elapsed();
    end(system).await;
    ITEMS as f64 / took.as_secs_f64() / 1e6
}

// === hop ===

/// One of two actors that pass a ball to each other.
struct Player {
    other: Option<ControlRef<Ball>>,
    pause: Option<Duration>,
    left: u64,
    hops: Histogram<u64>,
    done: Option<oneshot::Sender<Histogram<u64>>>,
}

enum Ball {
    Meet(ControlRef<Ball>),
    Serve,
    /// When it was hit, on the server's watch.
    Hit(Stopwatch),
}

impl Actor for Player {
    type Control = Ball;
    type Data = NoData;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "player";

    async fn on_control(&mut self, _ctx: &mut Context<Self>, ball: Ball) -> Result<(), Failure> {
        match ball {
            Ball::Meet(other) => {
                self.other = Some(other);
                return Ok(());
            }
            Ball::Serve => {}
            Ball::Hit(hit) => self.hops.record(nanos(hit.elapsed()))?,
        }
        if self.left == 0 {
            if let Some(done) = self.done.take() {
                let _ = done.send(self.hops.clone());
            }
            return Ok(());
        }
        self.left -= 1;
        if let Some(pause) = self.pause {
            tokio::time::sleep(pause).await;
        }
        if let Some(other) = &self.other {
            let now = Stopwatch::start();
            other
                .send(Ball::Hit(now))
                .map_err(|_| Failure::new("the other has left"))?;
        }
        Ok(())
    }

    async fn on_data(&mut self, _ctx: &mut Context<Self>, item: Infallible) -> Result<(), Failure> {
        match item {}
    }
}

/// From one actor's send to the other's handler.
async fn hop(pause: Option<Duration>, rounds: u64) -> Histogram<u64> {
    let system = system();
    let (tell, told) = oneshot::channel();
    let mut players: Vec<Handle<Player>> = Vec::new();
    let mut tell = Some(tell);
    for _ in 0..2 {
        let mut done = tell.take();
        let player = system
            .spawn_root(ChildSpec::temporary("player"), NoData, move || Player {
                other: None,
                pause,
                left: rounds,
                hops: histogram(),
                done: done.take(),
            })
            .await
            .expect("a player starts");
        players.push(player);
    }
    let [a, b] = [&players[0].control, &players[1].control];
    let sent = a
        .send(Ball::Meet(b.clone()))
        .and_then(|()| b.send(Ball::Meet(a.clone())))
        .and_then(|()| a.send(Ball::Serve));
    assert!(sent.is_ok(), "an empty lane takes it");
    let hops = told.await.expect("the first player tells");
    end(system).await;
    hops
}

// === control behind data ===

/// Works 5 us on each data item and notes how late each control message is.
struct Worker {
    control: Histogram<u64>,
    data: Histogram<u64>,
}

enum Order {
    Stamp(Stopwatch),
    Report(oneshot::Sender<(Histogram<u64>, Histogram<u64>)>),
}

impl Actor for Worker {
    type Control = Order;
    type Data = Bounded<Stopwatch>;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "worker";

    async fn on_control(&mut self, _ctx: &mut Context<Self>, order: Order) -> Result<(), Failure> {
        match order {
            Order::Stamp(sent) => self.control.record(nanos(sent.elapsed()))?,
            Order::Report(to) => {
                let _ = to.send((self.control.clone(), self.data.clone()));
            }
        }
        Ok(())
    }

    async fn on_data(&mut self, _ctx: &mut Context<Self>, sent: Stopwatch) -> Result<(), Failure> {
        self.data.record(nanos(sent.elapsed()))?;
        let watch = Stopwatch::start();
        while watch.elapsed() < Duration::from_micros(5) {
            black_box(&watch);
        }
        Ok(())
    }
}

async fn behind_full_data() -> (Histogram<u64>, Histogram<u64>) {
    let system = system();
    let worker = system
        .spawn_root(ChildSpec::temporary("worker"), lane(1024), || Worker {
            control: histogram(),
            data: histogram(),
        })
        .await
        .expect("a worker starts");
    let data = worker.data.clone();
    let feeder = tokio::spawn(async move {
        while !data.is_closed() {
            put(&data, Stopwatch::start()).await;
        }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    for _ in 0..2_000 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(
            worker
                .control
                .send(Order::Stamp(Stopwatch::start()))
                .is_ok()
        );
    }
    let (tell, told) = oneshot::channel();
    assert!(worker.control.send(Order::Report(tell)).is_ok());
    let report = told.await.expect("the worker tells");
    end(system).await;
    feeder.await.expect("the feeder ends");
    report
}

// === memory and life ===

/// An actor with nothing to do.
struct Idle;

impl Actor for Idle {
    type Control = u64;
    type Data = Bounded<u64>;
    type Telemetry = u64;
    const KIND: &'static str = "idle";

    async fn on_control(&mut self, _ctx: &mut Context<Self>, _: u64) -> Result<(), Failure> {
        Ok(())
    }

    async fn on_data(&mut self, _ctx: &mut Context<Self>, _: u64) -> Result<(), Failure> {
        Ok(())
    }
}

/// Runs what it is told with its own context.
struct Parent;

type Job = Box<dyn for<'a> FnOnce(&'a mut Context<Parent>) -> BoxFuture<'a, ()> + Send>;

impl Actor for Parent {
    type Control = Job;
    type Data = NoData;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "parent";

    async fn on_control(&mut self, ctx: &mut Context<Self>, job: Job) -> Result<(), Failure> {
        job(ctx).await;
        Ok(())
    }

    async fn on_data(&mut self, _ctx: &mut Context<Self>, item: Infallible) -> Result<(), Failure> {
        match item {}
    }
}

async fn in_parent(
    system: &System,
    job: impl for<'a> FnOnce(&'a mut Context<Parent>) -> BoxFuture<'a, f64> + Send + 'static,
) -> f64 {
    let parent = system
        .spawn_root(ChildSpec::temporary("parent"), NoData, || Parent)
        .await
        .expect("a parent starts");
    let (tell, told) = oneshot::channel();
    let sent = parent.control.send(Box::new(move |ctx| {
        Box::pin(async move {
            let _ = tell.send(job(ctx).await);
        })
    }));
    assert!(sent.is_ok(), "an empty lane takes it");
    told.await.expect("the job ends")
}

fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(f64::NAN);
    pages * 4096.0
}

async fn bytes_per_actor() -> f64 {
    const ACTORS: u32 = 20_000;
    let system = system();
    let bytes = in_parent(&system, |ctx| {
        Box::pin(async move {
            let before = resident();
            for _ in 0..ACTORS {
                ctx.spawn(ChildSpec::temporary("idle"), lane(256), || Idle)
                    .await
                    .expect("an actor starts");
            }
            (resident() - before) / f64::from(ACTORS)
        })
    })
    .await;
    end(system).await;
    bytes
}

async fn spawn_stop() -> f64 {
    const ACTORS: u32 = 5_000;
    let system = system();
    let each = in_parent(&system, |ctx| {
        Box::pin(async move {
            let watch = Stopwatch::start();
            for _ in 0..ACTORS {
                let idle = ctx
                    .spawn(ChildSpec::temporary("idle"), lane(256), || Idle)
                    .await
                    .expect("an actor starts");
                ctx.stop_child(idle.id, "measured").await;
            }
            watch.elapsed().as_secs_f64() * 1e6 / f64::from(ACTORS)
        })
    })
    .await;
    end(system).await;
    each
}
