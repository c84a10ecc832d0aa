//! Deadlines of an actor, in virtual time.

use std::time::Duration;

use rspp_actors::Offer;

use crate::kit::{Log, ask, root, system};

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn of_two_deadlines_the_earlier_wins_and_rings_once() {
    let (system, log) = (system(), Log::default());
    let w = root(&system, "w", &log).await;
    log.take();
    ask(&w, |ctx| {
        let clock = ctx.clock();
        ctx.wake_at(clock.instant_at(50 * MS));
        ctx.wake_at(clock.instant_at(20 * MS));
        ctx.wake_at(clock.instant_at(80 * MS));
        Box::pin(async {})
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(log.take(), ["w deadline at 20 ms"]);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_can_be_taken_back_and_set_later() {
    let (system, log) = (system(), Log::default());
    let w = root(&system, "w", &log).await;
    log.take();
    ask(&w, |ctx| {
        let clock = ctx.clock();
        ctx.wake_at(clock.instant_at(20 * MS));
        ctx.clear_wake();
        ctx.wake_at(clock.instant_at(70 * MS));
        Box::pin(async {})
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        log.take(),
        ["w deadline at 70 ms"],
        "the early bell is not heard"
    );
    ask(&w, |ctx| {
        let at = ctx.clock().instant_at(1_500 * MS);
        ctx.wake_at(at);
        ctx.clear_wake();
        Box::pin(async {})
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(log.take(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_has_passed_rings_before_the_next_item() {
    let (system, log) = (system(), Log::default());
    let w = root(&system, "w", &log).await;
    log.take();
    let data = w.data.clone();
    ask(&w, move |ctx| {
        let at = ctx.clock().instant_at(10 * MS);
        ctx.wake_at(at);
        assert_eq!(data.offer(1), Offer::Queued);
        // The handler is still at work when its own deadline passes.
        Box::pin(tokio::time::sleep(30 * MS))
    })
    .await;
    assert_eq!(log.wait_for(2).await, ["w deadline at 30 ms", "w data 1"]);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_set_again_each_time_keeps_a_steady_beat() {
    let (system, log) = (system(), Log::default());
    let w = root(&system, "w", &log).await;
    log.take();
    for beat in 1..=5 {
        ask(&w, move |ctx| {
            let at = ctx.clock().instant_at(20 * MS * beat);
            ctx.wake_at(at);
            Box::pin(async {})
        })
        .await;
        assert_eq!(
            log.wait_for(1).await,
            [format!("w deadline at {} ms", 20 * beat)]
        );
    }
}
