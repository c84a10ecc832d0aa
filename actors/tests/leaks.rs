//! Nothing is left of actors that have ended. A process of its own, so that its memory is its own.
#![cfg(all(target_os = "linux", not(loom)))]

use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::time::Duration;

use rspp_actors::{
    Actor, Bounded, ChildExit, ChildSpec, Clock, Context, Failure, NoData, NoTelemetry, Offer,
    Overflow, System, Verdict,
};
use tokio::sync::oneshot;

const ACTORS: usize = 10_000;
const AT_ONCE: usize = 500;

/// Starts children, stops them, and counts what it hears of their ends.
#[derive(Default)]
struct Parent {
    ends_heard: usize,
}

enum Order {
    StartAndStop(oneshot::Sender<()>),
    Count(oneshot::Sender<usize>),
}

impl Actor for Parent {
    type Control = Order;
    type Data = NoData;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "parent";

    async fn on_control(&mut self, ctx: &mut Context<Self>, order: Order) -> Result<(), Failure> {
        match order {
            Order::Count(tell) => {
                let _ = tell.send(self.ends_heard);
            }
            Order::StartAndStop(tell) => {
                let mut children = Vec::new();
                for n in 0..AT_ONCE {
                    let spec = ChildSpec::transient(format!("c{n}"));
                    let capacity = NonZeroUsize::new(64).expect("not zero");
                    let data = Bounded::new(capacity, Overflow::Refuse);
                    let child = ctx.spawn(spec, data, || Child).await?;
                    assert_eq!(child.data.offer(1), Offer::Queued);
                    assert_eq!(child.telemetry.offer(1), Offer::Queued);
                    children.push(child);
                }
                for (n, child) in children.into_iter().enumerate() {
                    // By both ways to stop one.
                    if n % 2 == 0 {
                        ctx.stop_child(child.id, "enough").await;
                    } else {
                        ctx.stop_child_soon(child.id, "enough");
                    }
                }
                let _ = tell.send(());
            }
        }
        Ok(())
    }

    async fn on_data(&mut self, _ctx: &mut Context<Self>, item: Infallible) -> Result<(), Failure> {
        match item {}
    }

    async fn on_child_exit(
        &mut self,
        _ctx: &mut Context<Self>,
        exit: ChildExit,
    ) -> Result<(), Failure> {
        assert_eq!(exit.verdict, Verdict::Ended);
        self.ends_heard += 1;
        Ok(())
    }
}

/// Has a task and a deadline, as a real one would.
struct Child;

impl Actor for Child {
    type Control = ();
    type Data = Bounded<u32>;
    type Telemetry = u32;
    const KIND: &'static str = "child";

    async fn started(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        let told = ctx.cancellation().clone();
        ctx.spawn_task("waits", async move { told.cancelled().await });
        let at = ctx.clock().instant() + Duration::from_mins(10);
        ctx.wake_at(at);
        Ok(())
    }

    async fn on_control(&mut self, _ctx: &mut Context<Self>, (): ()) -> Result<(), Failure> {
        Ok(())
    }

    async fn on_data(&mut self, _ctx: &mut Context<Self>, _item: u32) -> Result<(), Failure> {
        Ok(())
    }
}

#[tokio::test]
async fn ten_thousand_actors_come_and_go_and_leave_nothing() {
    let system = System::new(Clock::start());
    let parent = system
        .spawn_root(ChildSpec::temporary("p"), NoData, Parent::default)
        .await
        .unwrap();
    let metrics = tokio::runtime::Handle::current().metrics();
    let tasks = metrics.num_alive_tasks();

    let mut after_warm_up = 0;
    for round in 1..=ACTORS / AT_ONCE {
        let (tell, told) = oneshot::channel();
        parent.control.send(Order::StartAndStop(tell)).unwrap();
        told.await.unwrap();
        wait_until(async || {
            let (tell, told) = oneshot::channel();
            parent.control.send(Order::Count(tell)).unwrap();
            told.await.unwrap() == round * AT_ONCE
        })
        .await;
        if round == 4 {
            after_warm_up = resident();
        }
    }
    assert_eq!(system.live(), 1);
    assert_eq!(system.tree().len(), 1);
    wait_until(async || metrics.num_alive_tasks() <= tasks).await;

    let grown = resident().saturating_sub(after_warm_up);
    assert!(grown < 2 << 20, "{grown} bytes after {ACTORS} actors");
    assert!(system.shut_down(Duration::from_secs(5)).await);
}

async fn wait_until(mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .expect("it holds in time");
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux shows it");
    let pages: usize = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("the second number");
    pages * 4096
}
