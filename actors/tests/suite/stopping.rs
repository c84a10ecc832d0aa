//! Stopping: in reverse start order, with grace, then by force; tasks too.

use std::future::pending;
use std::time::Duration;

use rspp_actors::{ChildSpec, ExitReason};

use crate::kit::{
    Log, ask, child, fail_in, finish_in, hold, panic_in, root, since, system, tell_to,
};

fn with_grace(name: &str, grace: Duration) -> ChildSpec {
    ChildSpec {
        grace,
        ..ChildSpec::temporary(name)
    }
}

#[tokio::test(start_paused = true)]
async fn a_tree_stops_in_reverse_start_order() {
    let (system, log) = (system(), Log::default());
    let a = root(&system, "a", &log).await;
    let b = root(&system, "b", &log).await;
    let a1 = child(&a, ChildSpec::permanent("a1"), &log).await;
    child(&a, ChildSpec::permanent("a2"), &log).await;
    child(&a1, ChildSpec::permanent("a1x"), &log).await;
    child(&a1, ChildSpec::permanent("a1y"), &log).await;
    child(&b, ChildSpec::permanent("b1"), &log).await;
    log.take();
    assert!(system.shut_down(Duration::from_secs(10)).await);
    let order: Vec<_> = log
        .take()
        .into_iter()
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(order, ["b1", "b", "a2", "a1y", "a1x", "a1", "a"]);
    assert_eq!(system.live(), 0);
    assert!(system.tree().is_empty());
    assert_eq!(system.clock().now(), Duration::ZERO, "and at once");
}

#[tokio::test(start_paused = true)]
async fn a_restarted_child_keeps_its_place_in_the_stop_order() {
    let (system, log) = (system(), Log::default());
    let p = root(&system, "p", &log).await;
    let first = child(&p, ChildSpec::permanent("first"), &log).await;
    child(&p, ChildSpec::permanent("second"), &log).await;
    fail_in(&first);
    tokio::time::sleep(Duration::from_secs(1)).await;
    log.take();
    assert!(system.shut_down(Duration::from_secs(10)).await);
    let seen = log.take();
    assert!(
        seen[0].starts_with("second") && seen[1].starts_with("first"),
        "{seen:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_handler_stuck_in_an_await_is_killed_after_its_grace() {
    let (system, log) = (system(), Log::default());
    let p = root(&system, "p", &log).await;
    let c = child(&p, with_grace("c", Duration::from_millis(300)), &log).await;
    let _held = hold(&c).await;
    log.take();
    let from = system.clock().now();
    ask(&p, move |ctx| {
        Box::pin(async move { ctx.stop_child(c.id, "enough").await })
    })
    .await;
    assert_eq!(since(&system, from), Duration::from_millis(300));
    assert_eq!(log.wait_for(1).await, ["p heard: c killed, Ended"]);
    assert_eq!(system.live(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_heeds_its_token_stops_at_once() {
    let (system, log) = (system(), Log::default());
    let p = root(&system, "p", &log).await;
    let c = child(&p, ChildSpec::permanent("c"), &log).await;
    let seen = log.clone();
    tell_to(&c, move |ctx| {
        Box::pin(async move {
            ctx.cancellation().cancelled().await;
            seen.push("c was told");
            Ok(())
        })
    });
    log.take();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let from = system.clock().now();
    ask(&p, move |ctx| {
        Box::pin(async move { ctx.stop_child(c.id, "enough").await })
    })
    .await;
    assert_eq!(system.clock().now(), from);
    assert_eq!(
        log.wait_for(3).await,
        [
            "c was told",
            "c stopped: enough",
            "p heard: c stopped: enough, Ended"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_stop_without_waiting_reports_the_end_and_kills_as_well() {
    let (system, log) = (system(), Log::default());
    let p = root(&system, "p", &log).await;
    let quick = child(&p, ChildSpec::permanent("quick"), &log).await;
    let stuck = child(&p, with_grace("stuck", Duration::from_millis(200)), &log).await;
    let _held = hold(&stuck).await;
    log.take();
    let left = ask(&p, move |ctx| {
        ctx.stop_child_soon(quick.id, "enough");
        ctx.stop_child_soon(stuck.id, "enough");
        let left = ctx.children().count();
        Box::pin(async move { left })
    })
    .await;
    assert_eq!(left, 0);
    assert_eq!(
        log.wait_for(3).await,
        [
            "quick stopped: enough",
            "p heard: quick stopped: enough, Ended",
            "p heard: stuck killed, Ended"
        ]
    );
    assert_eq!(system.live(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_child_that_waits_for_its_restart_can_be_stopped() {
    let (system, log) = (system(), Log::default());
    let p = root(&system, "p", &log).await;
    let c = child(&p, ChildSpec::permanent("c"), &log).await;
    fail_in(&c);
    let mut seen = Vec::new();
    while !seen.iter().any(|line: &String| line.contains("Restarting")) {
        seen.extend(log.wait_for(1).await);
    }
    let data = c.data.clone();
    ask(&p, move |ctx| {
        Box::pin(async move { ctx.stop_child(c.id, "enough").await })
    })
    .await;
    assert_eq!(
        log.wait_for(1).await,
        ["p heard: c failed: on purpose, Ended"]
    );
    assert!(data.is_closed());
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(log.take(), [""; 0], "it is not started after all");
}

#[tokio::test(start_paused = true)]
async fn tasks_are_told_waited_for_and_aborted_after_the_grace() {
    let (system, log) = (system(), Log::default());
    let p = root(&system, "p", &log).await;
    let grace = Duration::from_millis(1600);
    let c = child(&p, with_grace("c", grace), &log).await;
    let seen = log.clone();
    ask(&c, move |ctx| {
        let told = ctx.cancellation().clone();
        let polite = seen.clone();
        ctx.spawn_task("polite", async move {
            told.cancelled().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            polite.push("polite task ended");
        });
        let deaf = OnDrop(seen.clone(), "deaf task dropped");
        ctx.spawn_task("deaf", async move {
            let _deaf = deaf;
            pending::<()>().await;
        });
        ctx.spawn_task("panics", async { panic!("in a task") });
        Box::pin(async {})
    })
    .await;
    log.take();
    let from = system.clock().now();
    ask(&p, move |ctx| {
        Box::pin(async move { ctx.stop_child(c.id, "enough").await })
    })
    .await;
    // One sixteenth of the grace is kept for the actor's own last words.
    let took = since(&system, from);
    assert!(took >= grace * 15 / 16 && took < grace, "{took:?}");
    assert_eq!(
        log.wait_for(4).await,
        [
            "polite task ended",
            "deaf task dropped",
            "c stopped: enough",
            "p heard: c stopped: enough, Ended"
        ]
    );
}

struct OnDrop(Log, &'static str);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.push(self.1);
    }
}

#[tokio::test(start_paused = true)]
async fn tasks_of_a_panicked_or_killed_actor_are_aborted_at_once() {
    for kill in [false, true] {
        let (system, log) = (system(), Log::default());
        let p = root(&system, "p", &log).await;
        let c = child(&p, with_grace("c", Duration::ZERO), &log).await;
        let dropped = OnDrop(log.clone(), "task dropped");
        ask(&c, move |ctx| {
            ctx.spawn_task("deaf", async move {
                let _dropped = dropped;
                pending::<()>().await;
            });
            Box::pin(async {})
        })
        .await;
        log.take();
        if kill {
            let _held = hold(&c).await;
            let id = c.id;
            ask(&p, move |ctx| {
                Box::pin(async move { ctx.stop_child(id, "enough").await })
            })
            .await;
        } else {
            panic_in(&c);
        }
        let mut seen = log.wait_for(2).await;
        seen.sort();
        let reason = if kill {
            "killed"
        } else {
            "panicked: on purpose"
        };
        assert_eq!(
            seen,
            [format!("p heard: c {reason}, Ended"), "task dropped".into()]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_fails_stops_its_children_gently_first() {
    let (system, log) = (system(), Log::default());
    let p = root(&system, "p", &log).await;
    child(&p, ChildSpec::permanent("c"), &log).await;
    log.take();
    fail_in(&p);
    assert_eq!(
        log.wait_for(2).await,
        [
            "c stopped: its parent failed: on purpose",
            "p failed: on purpose"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn last_words_that_never_end_are_cut_short() {
    struct Talker;
    impl rspp_actors::Actor for Talker {
        type Control = ();
        type Data = rspp_actors::NoData;
        type Telemetry = rspp_actors::NoTelemetry;
        const KIND: &'static str = "talker";
        async fn on_control(
            &mut self,
            ctx: &mut rspp_actors::Context<Self>,
            (): (),
        ) -> Result<(), rspp_actors::Failure> {
            ctx.stop(ExitReason::Finished);
            Ok(())
        }
        async fn on_data(
            &mut self,
            _ctx: &mut rspp_actors::Context<Self>,
            item: std::convert::Infallible,
        ) -> Result<(), rspp_actors::Failure> {
            match item {}
        }
        async fn stopped(&mut self, _ctx: &mut rspp_actors::Context<Self>, _reason: &ExitReason) {
            pending::<()>().await;
        }
    }
    let (system, log) = (system(), Log::default());
    let p = root(&system, "p", &log).await;
    let talker = ask(&p, |ctx| {
        Box::pin(async {
            let spec = with_grace("talker", Duration::from_millis(500));
            ctx.spawn(spec, rspp_actors::NoData, || Talker)
                .await
                .unwrap()
        })
    })
    .await;
    log.take();
    talker.control.send(()).unwrap();
    assert_eq!(log.wait_for(1).await, ["p heard: talker killed, Ended"]);
    let took = system.clock().now();
    assert!(
        took >= Duration::from_millis(500) && took < Duration::from_millis(520),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_shut_down_that_runs_out_of_time_says_so_and_leaves_nothing() {
    let (system, log) = (system(), Log::default());
    let stuck = system
        .spawn_root(
            with_grace("stuck", Duration::from_hours(1)),
            crate::kit::lane(),
            crate::kit::worker("stuck", &log),
        )
        .await
        .unwrap();
    let _held = hold(&stuck).await;
    let from = system.clock().now();
    assert!(!system.shut_down(Duration::from_secs(2)).await);
    assert!(since(&system, from) <= Duration::from_secs(2));
    assert_eq!(system.live(), 0);
    let refused = system
        .spawn_root(
            ChildSpec::temporary("late"),
            crate::kit::lane(),
            crate::kit::worker("late", &log),
        )
        .await;
    assert!(refused.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_actor_may_finish_by_itself() {
    let (system, log) = (system(), Log::default());
    let p = root(&system, "p", &log).await;
    let c = child(&p, ChildSpec::transient("c"), &log).await;
    log.take();
    finish_in(&c);
    assert_eq!(
        log.wait_for(2).await,
        ["c finished", "p heard: c finished, Ended"]
    );
}
