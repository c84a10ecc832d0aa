//! Restart policy, intensity and backoff, seen through running actors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rspp_actors::{
    Actor, Backoff, Bounded, ChildExit, ChildSpec, Context, ExitReason, Failure, Handle, Intensity,
    NoTelemetry, Offer, Restart, SpawnError,
};

use crate::kit::{
    Log, Worker, ask, at_once, child, fail_in, finish_in, hold, lane, panic_in, root, since,
    system, tell_to, worker,
};

#[tokio::test(start_paused = true)]
async fn a_panicking_child_is_restarted_and_its_sibling_does_not_notice() {
    let (system, log) = (system(), Log::default());
    let parent = root(&system, "p", &log).await;
    let bad = child(&parent, at_once(ChildSpec::transient("bad"), 5), &log).await;
    let good = child(&parent, ChildSpec::permanent("good"), &log).await;
    log.take();

    panic_in(&bad);
    assert_eq!(
        log.wait_for(2).await,
        [
            "bad started",
            "p heard: bad panicked: on purpose, Restarted { attempt: 1 }"
        ]
    );
    assert_eq!(good.data.offer(1), Offer::Queued);
    assert_eq!(bad.data.offer(2), Offer::Queued);
    let mut seen = log.wait_for(2).await;
    seen.sort();
    assert_eq!(seen, ["bad data 2", "good data 1"]);
    let tree = system.tree();
    let restarts: Vec<_> = tree.iter().map(|actor| actor.restarts).collect();
    assert_eq!(restarts, [0, 1, 0]);
    assert_eq!(
        tree[1].last_exit.as_deref(),
        Some("panicked: on purpose"),
        "and the reason is kept"
    );
    assert_eq!(system.live(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_mailbox_is_kept_across_a_restart() {
    let (system, log) = (system(), Log::default());
    let parent = root(&system, "p", &log).await;
    let spec = ChildSpec {
        backoff: Backoff {
            first: Duration::from_secs(1),
            jitter: 0.0,
            ..Backoff::default()
        },
        ..ChildSpec::transient("c")
    };
    let c = child(&parent, spec, &log).await;
    let let_go = hold(&c).await;
    panic_in(&c);
    assert_eq!(c.data.offer(1), Offer::Queued);
    assert_eq!(c.telemetry.offer(2), Offer::Queued);
    log.take();
    drop(let_go);
    assert_eq!(
        log.wait_for(1).await,
        ["p heard: c panicked: on purpose, Restarting { after: 1s }"]
    );
    // Between two incarnations the lanes take items as ever.
    assert_eq!(c.data.offer(3), Offer::Queued);
    assert_eq!(system.live(), 1);
    assert_eq!(
        log.wait_for(4).await,
        ["c started", "c data 1", "c data 3", "c telemetry 2"]
    );
}

#[tokio::test(start_paused = true)]
async fn every_policy_meets_every_way_to_end() {
    type End = fn(&Handle<Worker>);
    let ends: [(&str, End); 3] = [
        ("finished", finish_in),
        ("failed: on purpose", fail_in),
        ("panicked: on purpose", panic_in),
    ];
    for (restart, restarted) in [
        (Restart::Permanent, [true, true, true]),
        (Restart::Transient, [false, true, true]),
        (Restart::Temporary, [false, false, false]),
    ] {
        for ((reason, end), restarted) in ends.into_iter().zip(restarted) {
            let (system, log) = (system(), Log::default());
            let parent = root(&system, "p", &log).await;
            let spec = ChildSpec {
                restart,
                ..at_once(ChildSpec::temporary("c"), 5)
            };
            let c = child(&parent, spec, &log).await;
            end(&c);
            let verdict = if restarted {
                "Restarted { attempt: 1 }"
            } else {
                "Ended"
            };
            let heard = format!("p heard: c {reason}, {verdict}");
            let mut seen = Vec::new();
            while !seen.contains(&heard) {
                seen.extend(log.wait_for(1).await);
            }
            assert_eq!(system.live(), if restarted { 2 } else { 1 }, "{heard}");
            assert_eq!(c.data.is_closed(), !restarted, "{heard}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn too_many_restarts_in_the_window_are_given_up() {
    let (system, log) = (system(), Log::default());
    let parent = root(&system, "p", &log).await;
    let c = child(&parent, at_once(ChildSpec::permanent("c"), 2), &log).await;
    for _ in 0..3 {
        fail_in(&c);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let heard: Vec<_> = log
        .take()
        .into_iter()
        .filter(|line| line.contains("heard"))
        .collect();
    assert_eq!(
        heard,
        [
            "p heard: c failed: on purpose, Restarted { attempt: 1 }",
            "p heard: c failed: on purpose, Restarted { attempt: 2 }",
            "p heard: c failed: on purpose, GaveUp",
        ]
    );
    assert!(c.data.is_closed());
    assert_eq!(system.live(), 1, "the parent lives on");
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_left_the_window_is_forgotten() {
    let (system, log) = (system(), Log::default());
    let parent = root(&system, "p", &log).await;
    let spec = ChildSpec {
        intensity: Intensity {
            restarts: 1,
            within: Duration::from_secs(10),
        },
        backoff: Backoff::none(),
        ..ChildSpec::permanent("c")
    };
    let c = child(&parent, spec, &log).await;
    for _ in 0..5 {
        fail_in(&c);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert!(!c.data.is_closed());
    }
    assert_eq!(system.tree()[1].restarts, 5);
}

#[tokio::test(start_paused = true)]
async fn waits_between_restarts_double_with_jitter_in_virtual_time() {
    let (system, log) = (system(), Log::default());
    let parent = root(&system, "p", &log).await;
    let spec = ChildSpec {
        intensity: Intensity {
            restarts: 100,
            within: Duration::from_secs(1),
        },
        backoff: Backoff {
            first: Duration::from_secs(1),
            max: Duration::from_secs(8),
            jitter: 0.5,
            reset_after: Duration::from_secs(100),
        },
        ..ChildSpec::permanent("c")
    };
    let c = child(&parent, spec, &log).await;
    log.take();
    let mut waits = Vec::new();
    for full in [1, 2, 4, 8, 8, 8] {
        let from = system.clock().now();
        fail_in(&c);
        let mut seen = log.wait_for(3).await;
        assert_eq!(seen.pop().unwrap(), "c started");
        let waited = (since(&system, from)).as_secs_f64();
        let full = f64::from(full);
        assert!(
            (full / 2.0 - 0.01..=full + 0.01).contains(&waited),
            "{waited} of {full}"
        );
        waits.push(waited / full);
    }
    waits.sort_by(f64::total_cmp);
    waits.dedup_by(|a, b| (*a - *b).abs() < 0.01);
    assert!(waits.len() > 2, "chance is at work: {waits:?}");

    // After a healthy time the wait is short again.
    tokio::time::sleep(Duration::from_secs(101)).await;
    let from = system.clock().now();
    fail_in(&c);
    log.wait_for(3).await;
    assert!(since(&system, from) <= Duration::from_millis(1010));
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_is_an_error_of_spawn_and_leaves_nothing() {
    let (system, log) = (system(), Log::default());
    let parent = root(&system, "p", &log).await;
    let make_panics = ask(&parent, |ctx| {
        Box::pin(async {
            ctx.spawn(ChildSpec::permanent("c"), lane(), || -> Worker {
                panic!("cannot be made")
            })
            .await
        })
    })
    .await;
    assert_eq!(
        make_panics.unwrap_err(),
        SpawnError::Panicked {
            path: "p/c".into(),
            message: "cannot be made".into()
        }
    );

    for (panics, expected) in [
        (
            true,
            SpawnError::Panicked {
                path: "p/f".into(),
                message: "cannot start".into(),
            },
        ),
        (
            false,
            SpawnError::Failed {
                path: "p/f".into(),
                message: "cannot start".into(),
            },
        ),
    ] {
        let (log, seen) = (log.clone(), log.clone());
        let error = ask(&parent, move |ctx| {
            Box::pin(async move {
                ctx.spawn(ChildSpec::permanent("f"), lane(), move || Fragile {
                    panics,
                    starts: Arc::default(),
                    sound_starts: 0,
                    log: log.clone(),
                })
                .await
            })
        })
        .await
        .unwrap_err();
        assert_eq!(error, expected);
        assert_eq!(seen.take().pop().unwrap(), "grandchild started");
    }
    assert_eq!(system.tree().len(), 1);
    assert_eq!(system.live(), 1, "the grandchild is gone as well");
    assert_eq!(
        ask(&parent, |ctx| {
            let children = ctx.children().count();
            Box::pin(async move { children })
        })
        .await,
        0
    );
}

/// Starts soundly a few times, then fails, after it has started a child of its own.
struct Fragile {
    panics: bool,
    starts: Arc<AtomicU32>,
    sound_starts: u32,
    log: Log,
}

impl rspp_actors::Actor for Fragile {
    type Control = ();
    type Data = rspp_actors::Bounded<u32>;
    type Telemetry = rspp_actors::NoTelemetry;
    const KIND: &'static str = "fragile";

    async fn started(&mut self, ctx: &mut rspp_actors::Context<Self>) -> Result<(), Failure> {
        ctx.spawn(
            ChildSpec::permanent("grandchild"),
            lane(),
            worker("grandchild", &self.log),
        )
        .await?;
        if self.starts.fetch_add(1, Ordering::SeqCst) < self.sound_starts {
            return Ok(());
        }
        assert!(!self.panics, "cannot start");
        Err(Failure::new("cannot start"))
    }

    async fn on_control(
        &mut self,
        _ctx: &mut rspp_actors::Context<Self>,
        (): (),
    ) -> Result<(), Failure> {
        Err(Failure::new("as told"))
    }

    async fn on_data(
        &mut self,
        _ctx: &mut rspp_actors::Context<Self>,
        _item: u32,
    ) -> Result<(), Failure> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_fails_to_start_counts_like_any_other_exit() {
    let (system, log) = (system(), Log::default());
    let parent = root(&system, "p", &log).await;
    let seen = log.clone();
    let fragile = ask(&parent, move |ctx| {
        Box::pin(async move {
            let starts = Arc::new(AtomicU32::new(0));
            ctx.spawn(at_once(ChildSpec::permanent("f"), 3), lane(), move || {
                Fragile {
                    panics: false,
                    starts: Arc::clone(&starts),
                    sound_starts: 1,
                    log: seen.clone(),
                }
            })
            .await
            .unwrap()
        })
    })
    .await;
    fragile.control.send(()).unwrap();
    let mut heard = Vec::new();
    while heard.len() < 4 {
        let seen = log.wait_for(1).await;
        heard.extend(seen.into_iter().filter(|line| line.contains("heard")));
    }
    assert_eq!(
        heard,
        [
            "p heard: f failed: as told, Restarting { after: 0ns }",
            "p heard: f failed: cannot start, Restarting { after: 0ns }",
            "p heard: f failed: cannot start, Restarting { after: 0ns }",
            "p heard: f failed: cannot start, GaveUp",
        ]
    );
    assert_eq!(system.live(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_significant_child_ends_its_parent() {
    for (end, parent_ends) in [
        (
            finish_in as fn(&Handle<Worker>),
            "p stopped: its significant child c finished",
        ),
        (
            panic_in,
            "p failed: its significant child c panicked: on purpose",
        ),
    ] {
        let (system, log) = (system(), Log::default());
        let parent = root(&system, "p", &log).await;
        let spec = ChildSpec {
            significant: true,
            ..ChildSpec::temporary("c")
        };
        let c = child(&parent, spec, &log).await;
        log.take();
        end(&c);
        let mut seen = Vec::new();
        while seen.last().map(String::as_str) != Some(parent_ends) {
            seen.extend(log.wait_for(1).await);
        }
        assert!(seen.iter().any(|line| line.starts_with("p heard: c")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_significant_child_that_was_asked_to_stop_does_not_end_its_parent() {
    let (system, log) = (system(), Log::default());
    let parent = root(&system, "p", &log).await;
    let spec = ChildSpec {
        significant: true,
        ..ChildSpec::permanent("c")
    };
    let c = child(&parent, spec, &log).await;
    log.take();
    ask(&parent, move |ctx| {
        Box::pin(async move { ctx.stop_child(c.id, "not needed").await })
    })
    .await;
    assert_eq!(
        log.wait_for(2).await,
        [
            "c stopped: not needed",
            "p heard: c stopped: not needed, Ended"
        ],
        "and a permanent child stays stopped"
    );
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert_eq!(log.take(), [""; 0]);
    assert_eq!(system.live(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_parent_takes_its_children_along_and_only_them() {
    let (system, log) = (system(), Log::default());
    let top = root(&system, "top", &log).await;
    let middle = child(&top, at_once(ChildSpec::transient("middle"), 5), &log).await;
    let leaf = child(&middle, ChildSpec::permanent("leaf"), &log).await;
    let aside = child(&top, ChildSpec::permanent("aside"), &log).await;
    log.take();
    panic_in(&middle);
    let seen = log.wait_for(2).await;
    assert_eq!(
        seen,
        [
            "middle started",
            "top heard: middle panicked: on purpose, Restarted { attempt: 1 }"
        ],
        "no last words of the killed leaf, nor of the panicked"
    );
    assert_eq!(
        leaf.data.offer(1),
        Offer::Closed(1),
        "the leaf was its parent's"
    );
    assert_eq!(aside.data.offer(1), Offer::Queued);
    assert_eq!(system.live(), 3);
    let paths: Vec<_> = system.tree().into_iter().map(|actor| actor.path).collect();
    assert_eq!(paths, ["top", "top/middle", "top/aside"]);
}

#[tokio::test(start_paused = true)]
async fn an_ending_actor_starts_nothing() {
    let (system, log) = (system(), Log::default());
    let parent = root(&system, "p", &log).await;
    let seen = log.clone();
    tell_to(&parent, move |ctx| {
        Box::pin(async move {
            ctx.stop(ExitReason::Finished);
            let refused = ctx
                .spawn(ChildSpec::temporary("c"), lane(), worker("c", &seen))
                .await
                .unwrap_err();
            seen.push(refused.to_string());
            Ok(())
        })
    });
    assert_eq!(
        log.wait_for(3).await,
        [
            "p started",
            "p/c was not started: its parent is stopping",
            "p finished"
        ]
    );
}

/// Gives itself the next item with each one: its lanes are never empty.
struct Restless {
    log: Log,
    child: Option<Handle<Worker>>,
}

impl Actor for Restless {
    type Control = ();
    type Data = Bounded<u32>;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "restless";

    async fn started(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
        let child = ctx
            .spawn(
                ChildSpec::temporary("c"),
                lane(),
                worker("c", &self.log.clone()),
            )
            .await
            .expect("a worker starts");
        self.child = Some(child);
        assert_eq!(ctx.data_ref().offer(1), Offer::Queued);
        Ok(())
    }

    async fn on_control(&mut self, _ctx: &mut Context<Self>, (): ()) -> Result<(), Failure> {
        Ok(())
    }

    async fn on_data(&mut self, ctx: &mut Context<Self>, n: u32) -> Result<(), Failure> {
        if n == 1_000 {
            fail_in(self.child.as_ref().expect("it has started"));
        }
        assert_eq!(ctx.data_ref().offer(n + 1), Offer::Queued);
        Ok(())
    }

    async fn on_child_exit(
        &mut self,
        ctx: &mut Context<Self>,
        exit: ChildExit,
    ) -> Result<(), Failure> {
        self.log
            .push(format!("heard: {} {}", exit.name, exit.reason));
        ctx.stop(ExitReason::Finished);
        Ok(())
    }
}

/// An actor that always has something to do hears of its children all the same.
#[tokio::test(start_paused = true)]
async fn a_parent_that_is_never_idle_hears_of_its_childs_end() {
    let (system, log) = (system(), Log::default());
    let make = {
        let log = log.clone();
        move || Restless {
            log: log.clone(),
            child: None,
        }
    };
    system
        .spawn_root(ChildSpec::temporary("restless"), lane(), make)
        .await
        .unwrap();
    for _ in 0..10_000 {
        if system.live() == 0 {
            break;
        }
        tokio::task::yield_now().await;
    }
    let seen = log.take();
    assert_eq!(system.live(), 0, "{seen:?}");
    assert_eq!(seen.last().unwrap(), "heard: c failed: on purpose");
}
