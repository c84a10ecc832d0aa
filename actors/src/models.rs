//! Loom models of the wake protocol: every interleaving of a few senders and one consumer.
//!
//! A lost wake-up shows as a deadlock, which loom reports. Run with
//! `RUSTFLAGS="--cfg loom" cargo test -p rspp-actors --lib --target-dir target/loom`.

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::{Poll, Wake, Waker};

use loom::future::block_on;
use loom::sync::{Condvar, Mutex};
use loom::thread;

use crate::lane::{Bounded, LaneLimits, Offer, Overflow};
use crate::lanes::{Item, Standing};
use crate::mailbox::{Mailbox, Taken};
use crate::refs::DataRef;

type Box3 = Mailbox<u32, Bounded<u32>, u32>;

fn mailbox(capacity: usize) -> Arc<Box3> {
    let capacity = NonZeroUsize::new(capacity).expect("not zero");
    Arc::new(Mailbox::new(
        LaneLimits::default(),
        Bounded::new(capacity, Overflow::Refuse),
    ))
}

async fn next(mailbox: &Box3) -> Item<u32, u32, u32> {
    poll_fn(|cx| match mailbox.take_or_sleep(cx.waker()) {
        Taken::Item(item) => Poll::Ready(item),
        Taken::Nudge => panic!("nobody nudges in these models"),
        Taken::Asleep => Poll::Pending,
    })
    .await
}

/// A coordinator's wake-up port, which counts what is outstanding.
#[derive(Default)]
struct Port {
    outstanding: Mutex<u32>,
    rung: Condvar,
}

impl Wake for Port {
    fn wake(self: Arc<Self>) {
        let mut outstanding = self.outstanding.lock().unwrap();
        *outstanding += 1;
        assert_eq!(*outstanding, 1, "two wake-ups were outstanding");
        self.rung.notify_one();
    }
}

impl Port {
    fn wait(&self) {
        let mut outstanding = self.outstanding.lock().unwrap();
        while *outstanding == 0 {
            outstanding = self.rung.wait(outstanding).unwrap();
        }
        *outstanding -= 1;
    }
}

#[test]
fn a_pump_gets_every_item_of_every_lane() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let mailbox = mailbox(4);
        let control = thread::spawn({
            let mailbox = Arc::clone(&mailbox);
            move || mailbox.send_control(1, Standing::Ordinary).unwrap()
        });
        let others = thread::spawn({
            let mailbox = Arc::clone(&mailbox);
            move || {
                assert_eq!(mailbox.offer_data(2), Offer::Queued);
                assert_eq!(mailbox.offer_telemetry(3), Offer::Queued);
            }
        });
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(match block_on(next(&mailbox)) {
                Item::Control(n) | Item::Data(n) | Item::Telemetry(n) => n,
                Item::News => panic!("a plain queue has no news"),
            });
        }
        seen.sort_unstable();
        assert_eq!(seen, [1, 2, 3]);
        control.join().unwrap();
        others.join().unwrap();
    });
}

#[test]
fn a_coordinator_never_sleeps_on_an_item_and_is_never_woken_twice() {
    loom::model(|| {
        let mailbox = mailbox(4);
        let port = Arc::new(Port::default());
        let waker = Waker::from(Arc::clone(&port));
        assert!(matches!(mailbox.take_or_sleep(&waker), Taken::Asleep));
        let senders = [1, 2].map(|n| {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || assert_eq!(mailbox.offer_data(n), Offer::Queued))
        });
        let mut seen = 0;
        while seen < 2 {
            port.wait();
            while let Taken::Item(_) = mailbox.take_or_sleep(&waker) {
                seen += 1;
            }
        }
        for sender in senders {
            sender.join().unwrap();
        }
    });
}

#[test]
fn a_nudge_is_not_lost_between_two_looks() {
    loom::model(|| {
        let mailbox = mailbox(4);
        let port = Arc::new(Port::default());
        let waker = Waker::from(Arc::clone(&port));
        assert!(matches!(mailbox.take_or_sleep(&waker), Taken::Asleep));
        let timer = thread::spawn({
            let mailbox = Arc::clone(&mailbox);
            move || mailbox.nudge()
        });
        let sender = thread::spawn({
            let mailbox = Arc::clone(&mailbox);
            move || mailbox.send_control(1, Standing::Reserved).unwrap()
        });
        let (mut nudged, mut told) = (false, false);
        while !(nudged && told) {
            port.wait();
            loop {
                match mailbox.take_or_sleep(&waker) {
                    Taken::Item(_) => told = true,
                    Taken::Nudge => nudged = true,
                    Taken::Asleep => break,
                }
            }
        }
        timer.join().unwrap();
        sender.join().unwrap();
    });
}

#[test]
fn space_never_strands_a_sender() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let mailbox = mailbox(1);
        assert_eq!(mailbox.offer_data(0), Offer::Queued);
        let senders = [1, 2].map(|n| {
            let lane = DataRef::new(Arc::clone(&mailbox));
            thread::spawn(move || {
                let mut item = n;
                while let Offer::Full(back) = lane.offer(item) {
                    item = back;
                    block_on(lane.space());
                }
            })
        });
        let mut seen: Vec<_> = (0..3)
            .map(|_| match block_on(next(&mailbox)) {
                Item::Data(n) => n,
                item @ (Item::Control(_) | Item::News | Item::Telemetry(_)) => {
                    panic!("{item:?}")
                }
            })
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2]);
        for sender in senders {
            sender.join().unwrap();
        }
    });
}

#[test]
fn closing_lets_a_waiting_sender_go() {
    loom::model(|| {
        let mailbox = mailbox(1);
        assert_eq!(mailbox.offer_data(0), Offer::Queued);
        let sender = thread::spawn({
            let lane = DataRef::new(Arc::clone(&mailbox));
            move || {
                block_on(lane.space());
                assert_eq!(lane.offer(1), Offer::Closed(1));
            }
        });
        mailbox.close();
        sender.join().unwrap();
    });
}

#[test]
fn a_wait_for_control_alone_is_always_ended_by_control() {
    loom::model(|| {
        let mailbox = mailbox(1);
        let sender = thread::spawn({
            let mailbox = Arc::clone(&mailbox);
            move || {
                assert_eq!(mailbox.offer_data(7), Offer::Queued);
                mailbox.send_control(1, Standing::Ordinary).unwrap();
            }
        });
        block_on(poll_fn(|cx| mailbox.poll_control_pending(cx)));
        assert!(mailbox.control_pending());
        assert_eq!(block_on(poll_fn(|cx| mailbox.poll_control(cx))), 1);
        assert!(!mailbox.control_pending());
        sender.join().unwrap();
    });
}

#[test]
fn what_is_sent_around_a_restart_reaches_the_next_incarnation() {
    loom::model(|| {
        let mailbox = mailbox(4);
        let before = Waker::from(Arc::new(Port::default()));
        assert!(matches!(mailbox.take_or_sleep(&before), Taken::Asleep));
        let sender = thread::spawn({
            let mailbox = Arc::clone(&mailbox);
            move || mailbox.send_control(1, Standing::Ordinary).unwrap()
        });
        mailbox.detach();
        // The next incarnation looks once when it starts, then sleeps like any other.
        assert_eq!(block_on(next(&mailbox)), Item::Control(1));
        sender.join().unwrap();
    });
}
