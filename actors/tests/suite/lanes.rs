//! Rank, bounds and order of the three lanes, seen through a running actor.

use std::time::Duration;

use rspp_actors::{
    Actor, Bounded, Buffer, ChildSpec, Context, ControlRefused, Failure, LaneLimits, NoTelemetry,
    Offer, Overflow,
};

use crate::kit::{Log, ask, count, finish_in, hold, lane, root, system, tell_to, worker};

/// Sends itself a control message from each data item.
struct Echo {
    log: Log,
}

impl Actor for Echo {
    type Control = u32;
    type Data = Bounded<u32>;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "echo";

    async fn on_control(&mut self, _ctx: &mut Context<Self>, n: u32) -> Result<(), Failure> {
        self.log.push(format!("control {n}"));
        Ok(())
    }

    async fn on_data(&mut self, ctx: &mut Context<Self>, n: u32) -> Result<(), Failure> {
        self.log.push(format!("data {n}"));
        ctx.control_ref().send(n)?;
        assert!(ctx.control_pending());
        Ok(())
    }

    async fn on_drained(&mut self, _ctx: &mut Context<Self>) -> Result<(), Failure> {
        self.log.push("drained");
        Ok(())
    }
}

/// F-142
#[tokio::test(start_paused = true)]
async fn control_overtakes_a_full_data_lane_between_any_two_items() {
    const ITEMS: u32 = 500;
    let (system, log) = (system(), Log::default());
    let echo = system
        .spawn_root(
            ChildSpec::temporary("echo"),
            Bounded::new(count(ITEMS as usize), Overflow::Refuse),
            {
                let log = log.clone();
                move || Echo { log: log.clone() }
            },
        )
        .await
        .unwrap();
    let mut batch = (0..=ITEMS).collect();
    assert_eq!(echo.data.offer_all(&mut batch), ITEMS as usize);
    assert_eq!(batch, [ITEMS], "the lane is full");

    let seen = log.wait_for(ITEMS as usize * 2).await;
    let items: Vec<_> = seen.iter().filter(|line| *line != "drained").collect();
    let expected: Vec<_> = (0..ITEMS)
        .flat_map(|n| [format!("data {n}"), format!("control {n}")])
        .collect();
    assert!(items.into_iter().eq(&expected));
    // A thousand items are more than one drain's budget, and batches are flushed at each drain's end.
    assert!(seen.iter().filter(|line| *line == "drained").count() > 5);
}

#[tokio::test(start_paused = true)]
async fn each_lane_answers_overflow_in_its_own_way() {
    let (system, log) = (system(), Log::default());
    let spec = ChildSpec {
        limits: LaneLimits {
            control: count(2),
            control_reserve: count(1),
            telemetry: count(2),
        },
        ..ChildSpec::temporary("worker")
    };
    let data = Bounded::new(count(2), Overflow::Refuse);
    let handle = system
        .spawn_root(spec, data, worker("worker", &log))
        .await
        .unwrap();
    let let_go = hold(&handle).await;

    for _ in 0..2 {
        assert_eq!(handle.data.offer(1), Offer::Queued);
        assert_eq!(handle.telemetry.offer(1), Offer::Queued);
        tell_to(&handle, |_| Box::pin(async { Ok(()) }));
    }
    // Each lane is full by itself and none takes another's places.
    assert_eq!(handle.data.offer(2), Offer::Full(2));
    assert_eq!(handle.telemetry.offer(2), Offer::Displaced(1));
    assert_eq!(handle.telemetry.dropped(), 1);
    let refused = handle
        .control
        .send(Box::new(|_| Box::pin(async { Ok(()) })));
    assert!(matches!(refused, Err(ControlRefused::Overflow(_))));
    // The reserve is for those who ask for it, and is bounded too.
    let last_words = log.clone();
    let reserved = handle.control.send_reserved(Box::new(move |ctx| {
        last_words.push("reserved");
        ctx.stop(rspp_actors::ExitReason::Finished);
        Box::pin(async { Ok(()) })
    }));
    assert!(reserved.is_ok());
    let refused = handle
        .control
        .send_reserved(Box::new(|_| Box::pin(async { Ok(()) })));
    assert!(matches!(refused, Err(ControlRefused::Overflow(_))));

    let_go.send(()).unwrap();
    while system.live() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(handle.data.is_closed());
    assert_eq!(handle.data.offer(3), Offer::Closed(3));
    assert_eq!(handle.telemetry.offer(3), Offer::Closed(3));
    let refused = handle
        .control
        .send(Box::new(|_| Box::pin(async { Ok(()) })));
    assert!(matches!(refused, Err(ControlRefused::Closed(_))));
    assert_eq!(
        log.take(),
        ["worker started", "reserved", "worker finished"],
        "an ending actor takes no more data"
    );
}

#[tokio::test(start_paused = true)]
async fn a_displacing_lane_hands_back_what_fell_out() {
    let (system, log) = (system(), Log::default());
    let data = Bounded::new(count(2), Overflow::DropOldest);
    let handle = system
        .spawn_root(ChildSpec::temporary("w"), data, worker("w", &log))
        .await
        .unwrap();
    let let_go = hold(&handle).await;
    let (mut batch, mut fell_out) = ((1..=5).collect(), Vec::new());
    assert_eq!(handle.data.offer_all_into(&mut batch, &mut fell_out), 5);
    assert_eq!(fell_out, [1, 2, 3]);
    assert_eq!(system.tree()[0].data_displaced, 3);
    drop(let_go);
    assert_eq!(log.wait_for(3).await, ["w started", "w data 4", "w data 5"]);
}

#[tokio::test(start_paused = true)]
async fn paused_data_waits_while_the_other_lanes_are_served() {
    let (system, log) = (system(), Log::default());
    let handle = root(&system, "w", &log).await;
    ask(&handle, |ctx| {
        ctx.pause_data(true);
        Box::pin(async {})
    })
    .await;
    assert_eq!(handle.data.offer(1), Offer::Queued);
    assert_eq!(handle.telemetry.offer(2), Offer::Queued);
    assert_eq!(log.wait_for(2).await, ["w started", "w telemetry 2"]);
    assert_eq!(handle.data.depth(), 1);
    ask(&handle, |ctx| {
        assert_eq!(ctx.with_data(Bounded::take_all), [1]);
        Box::pin(async {})
    })
    .await;
    assert_eq!(handle.data.offer(3), Offer::Queued);
    ask(&handle, |ctx| {
        ctx.pause_data(false);
        Box::pin(async {})
    })
    .await;
    assert_eq!(log.wait_for(1).await, ["w data 3"]);
}

#[tokio::test(start_paused = true)]
async fn a_long_wait_inside_a_handler_can_be_preempted_by_control() {
    let (system, log) = (system(), Log::default());
    let handle = root(&system, "w", &log).await;
    let seen = log.clone();
    tell_to(&handle, move |ctx| {
        Box::pin(async move {
            tokio::select! {
                biased;
                () = ctx.stirred() => seen.push("preempted"),
                () = tokio::time::sleep(Duration::from_hours(1)) => seen.push("slept"),
            }
            let job = ctx.try_control().expect("control has arrived");
            seen.push("taken inside the handler");
            job(ctx).await
        })
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    // Data alone does not end the wait.
    assert_eq!(handle.data.offer(1), Offer::Queued);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(log.take(), ["w started"]);
    finish_in(&handle);
    assert_eq!(
        log.wait_for(3).await,
        ["preempted", "taken inside the handler", "w finished"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_waiting_sender_goes_on_when_data_is_cleared_and_when_the_receiver_ends() {
    let (system, log) = (system(), Log::default());
    let handle = root(&system, "w", &log).await;
    let let_go = hold(&handle).await;
    let mut batch = (0..16).collect();
    assert_eq!(handle.data.offer_all(&mut batch), 16);
    let wait = || {
        let data = handle.data.clone();
        tokio::spawn(async move { data.space().await })
    };
    let waiting = [wait(), wait()];
    tokio::task::yield_now().await;
    assert!(waiting.iter().all(|wait| !wait.is_finished()));
    tell_to(&handle, |ctx| {
        ctx.with_data(Bounded::take_all);
        Box::pin(async { Ok(()) })
    });
    drop(let_go);
    for wait in waiting {
        wait.await.unwrap();
    }

    let _held = hold(&handle).await;
    let mut batch = (0..16).collect();
    assert_eq!(handle.data.offer_all(&mut batch), 16);
    let waiting = wait();
    tokio::task::yield_now().await;
    system.shut_down(Duration::from_secs(10)).await;
    waiting.await.unwrap();
    assert_eq!(handle.data.offer(1), Offer::Closed(1));
}

#[tokio::test(start_paused = true)]
async fn data_offered_while_starting_is_handled_after_it() {
    struct Slow(Log);
    impl Actor for Slow {
        type Control = rspp_actors::DataRef<u32>;
        type Data = Bounded<u32>;
        type Telemetry = NoTelemetry;
        const KIND: &'static str = "slow";
        async fn started(&mut self, ctx: &mut Context<Self>) -> Result<(), Failure> {
            assert_eq!(ctx.data_ref().offer(1), Offer::Queued);
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.0.push("started");
            Ok(())
        }
        async fn on_control(
            &mut self,
            _ctx: &mut Context<Self>,
            _message: Self::Control,
        ) -> Result<(), Failure> {
            Ok(())
        }
        async fn on_data(&mut self, _ctx: &mut Context<Self>, n: u32) -> Result<(), Failure> {
            self.0.push(format!("data {n}"));
            Ok(())
        }
    }
    let (system, log) = (system(), Log::default());
    let seen = log.clone();
    system
        .spawn_root(ChildSpec::temporary("slow"), lane(), move || {
            Slow(seen.clone())
        })
        .await
        .unwrap();
    assert_eq!(log.wait_for(2).await, ["started", "data 1"]);
}

/// Takes its time once its lanes are empty.
struct Thorough {
    log: Log,
}

impl Actor for Thorough {
    type Control = u32;
    type Data = Bounded<u32>;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "thorough";

    async fn on_control(&mut self, _ctx: &mut Context<Self>, n: u32) -> Result<(), Failure> {
        self.log.push(format!("control {n}"));
        Ok(())
    }

    async fn on_data(&mut self, _ctx: &mut Context<Self>, n: u32) -> Result<(), Failure> {
        self.log.push(format!("data {n}"));
        Ok(())
    }

    async fn on_drained(&mut self, _ctx: &mut Context<Self>) -> Result<(), Failure> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        Ok(())
    }
}

/// What comes while an actor waits for something of its own, its lanes empty, wakes that wait and is used up by it:
/// the item is taken all the same.
#[tokio::test(start_paused = true)]
async fn nothing_is_missed_that_comes_between_the_last_item_and_sleep() {
    let (system, log) = (system(), Log::default());
    let make = {
        let log = log.clone();
        move || Thorough { log: log.clone() }
    };
    let thorough = system
        .spawn_root(ChildSpec::temporary("thorough"), lane(), make)
        .await
        .unwrap();
    for n in 0..3 {
        assert_eq!(thorough.data.offer(n), Offer::Queued);
        tokio::time::sleep(Duration::from_millis(5)).await;
        thorough.control.send(n).unwrap();
        assert_eq!(
            log.wait_for(2).await,
            [format!("data {n}"), format!("control {n}")]
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A lane whose items are worth waking for only three at a time.
#[derive(Default)]
struct Threes(std::collections::VecDeque<u32>);

impl Buffer for Threes {
    type Item = u32;

    fn offer(&mut self, item: u32) -> Offer<u32> {
        self.0.push_back(item);
        Offer::Queued
    }

    fn pop(&mut self) -> Option<u32> {
        self.0.pop_front()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn has_space(&self) -> bool {
        true
    }

    fn is_pressing(&self) -> bool {
        self.0.len() >= 3
    }
}

struct Patient(Log);

impl Actor for Patient {
    type Control = u32;
    type Data = Threes;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "patient";

    async fn on_control(&mut self, _ctx: &mut Context<Self>, n: u32) -> Result<(), Failure> {
        self.0.push(format!("control {n}"));
        Ok(())
    }

    async fn on_data(&mut self, _ctx: &mut Context<Self>, n: u32) -> Result<(), Failure> {
        self.0.push(format!("data {n}"));
        Ok(())
    }
}

/// F-142: what does not press waits for what does, or for control; nothing is lost or out of order.
#[tokio::test(start_paused = true)]
async fn a_receiver_sleeps_until_its_data_presses() {
    let (system, log) = (system(), Log::default());
    let patient = system
        .spawn_root(ChildSpec::temporary("patient"), Threes::default(), {
            let log = log.clone();
            move || Patient(log.clone())
        })
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(patient.data.offer(1), Offer::Queued);
    assert_eq!(patient.data.offer(2), Offer::Queued);
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(log.wait_for(0).await, [""; 0]);
    assert_eq!(patient.data.offer(3), Offer::Queued);
    assert_eq!(log.wait_for(3).await, ["data 1", "data 2", "data 3"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(patient.data.offer(4), Offer::Queued);
    tokio::time::sleep(Duration::from_mins(1)).await;
    patient.control.send(5).unwrap();
    assert_eq!(log.wait_for(2).await, ["control 5", "data 4"]);
}
