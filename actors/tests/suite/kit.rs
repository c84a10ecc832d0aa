//! A worker that does what a test tells it, and writes down what happens to it.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use rspp_actors::{
    Actor, Backoff, Bounded, ChildExit, ChildSpec, Clock, Context, ExitReason, Failure, Handle,
    Overflow, System,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// What happened, in order; shared by the actors of a test.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn push(&self, line: impl Into<String>) {
        self.0.lock().unwrap().push(line.into());
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// Waits, within a virtual minute, until there are `count` lines; takes them.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<String> {
        let enough = async {
            while self.0.lock().unwrap().len() < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(Duration::from_mins(1), enough)
            .await
            .is_err()
        {
            panic!("only saw {:?}", self.take());
        }
        self.take()
    }
}

/// Something to do inside a worker.
pub(crate) type Job =
    Box<dyn for<'a> FnOnce(&'a mut Context<Worker>) -> BoxFuture<'a, Result<(), Failure>> + Send>;

pub(crate) struct Worker {
    name: String,
    log: Log,
}

impl Actor for Worker {
    type Control = Job;
    type Data = Bounded<u32>;
    type Telemetry = u32;
    const KIND: &'static str = "worker";

    async fn started(&mut self, _ctx: &mut Context<Self>) -> Result<(), Failure> {
        self.log.push(format!("{} started", self.name));
        Ok(())
    }

    async fn on_control(&mut self, ctx: &mut Context<Self>, job: Job) -> Result<(), Failure> {
        job(ctx).await
    }

    async fn on_data(&mut self, _ctx: &mut Context<Self>, item: u32) -> Result<(), Failure> {
        self.log.push(format!("{} data {item}", self.name));
        Ok(())
    }

    async fn on_telemetry(&mut self, _ctx: &mut Context<Self>, item: u32) -> Result<(), Failure> {
        self.log.push(format!("{} telemetry {item}", self.name));
        Ok(())
    }

    async fn on_child_exit(
        &mut self,
        _ctx: &mut Context<Self>,
        exit: ChildExit,
    ) -> Result<(), Failure> {
        self.log.push(format!(
            "{} heard: {} {}, {:?}",
            self.name, exit.name, exit.reason, exit.verdict
        ));
        Ok(())
    }

    async fn on_deadline(&mut self, ctx: &mut Context<Self>, now: Instant) -> Result<(), Failure> {
        assert!(now <= Instant::now());
        self.log.push(format!(
            "{} deadline at {} ms",
            self.name,
            ctx.clock().now().as_millis()
        ));
        Ok(())
    }

    async fn stopped(&mut self, _ctx: &mut Context<Self>, reason: &ExitReason) {
        self.log.push(format!("{} {reason}", self.name));
    }
}

pub(crate) fn system() -> System {
    System::seeded(Clock::start(), 7)
}

/// How long ago it was that the system's clock read `from`.
pub(crate) fn since(system: &System, from: Duration) -> Duration {
    system.clock().now().saturating_sub(from)
}

pub(crate) fn count(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).expect("not zero")
}

pub(crate) fn lane() -> Bounded<u32> {
    Bounded::new(count(16), Overflow::Refuse)
}

/// Restarts at once, as often as `restarts` in a minute.
pub(crate) fn at_once(spec: ChildSpec, restarts: u32) -> ChildSpec {
    ChildSpec {
        backoff: Backoff::none(),
        intensity: rspp_actors::Intensity {
            restarts,
            within: Duration::from_mins(1),
        },
        ..spec
    }
}

pub(crate) fn worker(name: &str, log: &Log) -> impl FnMut() -> Worker + Send + use<> {
    let (name, log) = (name.to_owned(), log.clone());
    move || Worker {
        name: name.clone(),
        log: log.clone(),
    }
}

pub(crate) async fn root(system: &System, name: &str, log: &Log) -> Handle<Worker> {
    system
        .spawn_root(ChildSpec::temporary(name), lane(), worker(name, log))
        .await
        .expect("a worker starts")
}

/// Starts a worker below another.
pub(crate) async fn child(parent: &Handle<Worker>, spec: ChildSpec, log: &Log) -> Handle<Worker> {
    let log = log.clone();
    ask(parent, move |ctx| {
        Box::pin(async move {
            let make = worker(&spec.name.clone(), &log);
            ctx.spawn(spec, lane(), make)
                .await
                .expect("a worker starts")
        })
    })
    .await
}

/// Runs something inside a worker and brings back its result.
pub(crate) async fn ask<R: Send + 'static>(
    worker: &Handle<Worker>,
    job: impl for<'a> FnOnce(&'a mut Context<Worker>) -> BoxFuture<'a, R> + Send + 'static,
) -> R {
    let (tell, told) = oneshot::channel();
    tell_to(worker, move |ctx| {
        Box::pin(async move {
            let _ = tell.send(job(ctx).await);
            Ok(())
        })
    });
    told.await.expect("the worker answers")
}

/// Runs something inside a worker.
pub(crate) fn tell_to(
    worker: &Handle<Worker>,
    job: impl for<'a> FnOnce(&'a mut Context<Worker>) -> BoxFuture<'a, Result<(), Failure>>
    + Send
    + 'static,
) {
    assert!(
        worker.control.send(Box::new(job)).is_ok(),
        "control is taken"
    );
}

pub(crate) fn panic_in(worker: &Handle<Worker>) {
    tell_to(worker, |_| Box::pin(async { panic!("on purpose") }));
}

pub(crate) fn fail_in(worker: &Handle<Worker>) {
    tell_to(worker, |_| {
        Box::pin(async { Err(Failure::new("on purpose")) })
    });
}

pub(crate) fn finish_in(worker: &Handle<Worker>) {
    tell_to(worker, |ctx| {
        Box::pin(async {
            ctx.stop(ExitReason::Finished);
            Ok(())
        })
    });
}

/// Keeps a worker in a handler until the sender returned is used or dropped.
pub(crate) async fn hold(worker: &Handle<Worker>) -> oneshot::Sender<()> {
    let (let_go, held) = oneshot::channel::<()>();
    let (tell, entered) = oneshot::channel();
    tell_to(worker, move |_| {
        Box::pin(async move {
            let _ = tell.send(());
            let _ = held.await;
            Ok(())
        })
    });
    entered.await.expect("the worker is held");
    let_go
}
