//! Actors that are one long future.

use std::future::pending;
use std::time::Duration;

use rspp_actors::{
    Bounded, ChildSpec, ExitReason, Item, NoTelemetry, Offer, Pump, PumpContext, PumpHandle,
};
use tokio::sync::mpsc;

use crate::kit::{Log, Worker, ask, at_once, lane, root, since, system};

/// Selects between its lanes and a stream that stands for I/O.
struct Player {
    log: Log,
    io: Option<mpsc::Receiver<&'static str>>,
}

/// What a player is told.
#[derive(Debug)]
enum Order {
    Panic,
    Fail,
    Deafen,
}

impl Pump for Player {
    type Control = Order;
    type Data = Bounded<u32>;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "player";

    async fn run(&mut self, ctx: &mut PumpContext<Self>) -> ExitReason {
        self.log.push("run");
        let stop = ctx.cancellation().clone();
        let (_none, nothing) = mpsc::channel(1);
        let mut io = self.io.take().unwrap_or(nothing);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    return ExitReason::Stopped(ctx.stop_reason().unwrap_or_default());
                }
                item = ctx.next() => match item {
                    Item::Control(Order::Panic) => panic!("on purpose"),
                    Item::Control(Order::Fail) => return ExitReason::Failed("as told".into()),
                    Item::Control(Order::Deafen) => {
                        self.log.push("deaf");
                        pending::<()>().await;
                    }
                    Item::Data(n) => self.log.push(format!("data {n}")),
                    Item::News => unreachable!("a plain queue has no news"),
                    Item::Telemetry(nothing) => match nothing {},
                },
                Some(frame) = io.recv() => self.log.push(frame),
            }
        }
    }
}

async fn player(
    parent: &rspp_actors::Handle<Worker>,
    spec: ChildSpec,
    log: &Log,
    io: Option<mpsc::Receiver<&'static str>>,
) -> PumpHandle<Player> {
    let (log, mut io) = (log.clone(), io);
    ask(parent, move |ctx| {
        Box::pin(async move {
            ctx.spawn_pump(spec, lane(), move || Player {
                log: log.clone(),
                io: io.take(),
            })
            .await
            .unwrap()
        })
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_pump_selects_between_its_lanes_and_its_io() {
    let (system, log) = (system(), Log::default());
    let p = root(&system, "p", &log).await;
    let (io, frames) = mpsc::channel(4);
    let pump = player(&p, ChildSpec::temporary("pump"), &log, Some(frames)).await;
    log.wait_for(2).await;
    io.send("frame").await.unwrap();
    assert_eq!(log.wait_for(1).await, ["frame"]);
    assert_eq!(pump.data.offer(1), Offer::Queued);
    assert_eq!(log.wait_for(1).await, ["data 1"]);
    let tree = system.tree();
    assert_eq!((tree[1].kind, tree[1].handled), ("player", 1));
    assert!(system.shut_down(Duration::from_secs(1)).await);
}

#[tokio::test(start_paused = true)]
async fn a_pump_is_restarted_like_any_actor_with_its_mailbox_kept() {
    let (system, log) = (system(), Log::default());
    let p = root(&system, "p", &log).await;
    let pump = player(&p, at_once(ChildSpec::transient("pump"), 5), &log, None).await;
    log.wait_for(2).await;
    pump.control.send(Order::Panic).unwrap();
    assert_eq!(pump.data.offer(1), Offer::Queued);
    let mut seen = log.wait_for(3).await;
    seen.sort();
    assert_eq!(
        seen,
        [
            "data 1",
            "p heard: pump panicked: on purpose, Restarted { attempt: 1 }",
            "run"
        ]
    );
    pump.control.send(Order::Fail).unwrap();
    let mut seen = log.wait_for(2).await;
    seen.sort();
    assert_eq!(
        seen,
        [
            "p heard: pump failed: as told, Restarted { attempt: 2 }",
            "run"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_pump_that_heeds_its_token_stops_with_the_reason_it_was_given() {
    let (system, log) = (system(), Log::default());
    let p = root(&system, "p", &log).await;
    let pump = player(&p, ChildSpec::permanent("pump"), &log, None).await;
    log.wait_for(2).await;
    ask(&p, move |ctx| {
        Box::pin(async move { ctx.stop_child(pump.id, "enough").await })
    })
    .await;
    assert_eq!(
        log.wait_for(1).await,
        ["p heard: pump stopped: enough, Ended"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_pump_that_ignores_stop_is_killed_after_its_grace() {
    let (system, log) = (system(), Log::default());
    let p = root(&system, "p", &log).await;
    let spec = ChildSpec {
        grace: Duration::from_millis(250),
        ..ChildSpec::permanent("pump")
    };
    let pump = player(&p, spec, &log, None).await;
    pump.control.send(Order::Deafen).unwrap();
    log.wait_for(3).await;
    let from = system.clock().now();
    ask(&p, move |ctx| {
        Box::pin(async move { ctx.stop_child(pump.id, "enough").await })
    })
    .await;
    assert_eq!(since(&system, from), Duration::from_millis(250));
    assert_eq!(log.wait_for(1).await, ["p heard: pump killed, Ended"]);
}

#[tokio::test(start_paused = true)]
async fn a_pump_that_is_stopped_before_it_runs_ends_all_the_same() {
    let (system, log) = (system(), Log::default());
    let p = root(&system, "p", &log).await;
    log.take();
    let seen = log.clone();
    ask(&p, move |ctx| {
        Box::pin(async move {
            let pump = ctx
                .spawn_pump(ChildSpec::permanent("pump"), lane(), move || Player {
                    log: seen.clone(),
                    io: None,
                })
                .await
                .unwrap();
            ctx.stop_child(pump.id, "changed my mind").await;
        })
    })
    .await;
    assert_eq!(
        log.wait_for(1).await,
        ["p heard: pump stopped: changed my mind, Ended"]
    );
}
