//! The lanes of one actor behind one short lock, and the wake protocol.
//!
//! A consumer that finds its lanes empty leaves its waker here, under the same lock that senders put items in with. The
//! first sender takes the waker out and wakes it after unlocking; the others find none and just queue. So no item can
//! slip in between "empty" and "asleep", and at most one wake-up is outstanding. The mailbox outlives the incarnations
//! of its actor: without a consumer, items wait for the next one.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::task::{self, Poll, Waker};

use crate::lane::{Buffer, LaneLimits, Offer};
use crate::lanes::{ControlRefused, Item, Lanes, Standing};
use crate::sync::{AtomicUsize, Mutex, MutexGuard};

/// One actor's lanes, shared between its senders and itself.
pub(crate) struct Mailbox<C, D: Buffer, T> {
    shared: Mutex<Shared<C, D, T>>,
    /// Waiting control messages, for a look without the lock; written under it.
    control_waiting: AtomicUsize,
}

struct Shared<C, D: Buffer, T> {
    lanes: Lanes<C, D, T>,
    /// The consumer, asleep with nothing to do. Taken by whoever wakes it.
    sleeper: Option<Waker>,
    /// A consumer that waits for control alone, in the middle of something else.
    control_waiter: Option<Waker>,
    /// Something beside the lanes wants the consumer's attention: a timer.
    nudged: bool,
    /// Senders that wait for space.
    space_waiters: Vec<SpaceWaiter>,
    next_place: u64,
}

/// A sender that waits for space.
struct SpaceWaiter {
    place: u64,
    /// The part of the buffer that it sends to, if it named one.
    part: Option<usize>,
    waker: Waker,
}

/// What a consumer got from [`Mailbox::take_or_sleep`].
pub(crate) enum Taken<C, I, T> {
    Item(Item<C, I, T>),
    /// Look at the timers.
    Nudge,
    /// Nothing is left and the waker is in place.
    Asleep,
}

impl<C, D: Buffer, T> Mailbox<C, D, T> {
    pub(crate) fn new(limits: LaneLimits, data: D) -> Self {
        Self {
            shared: Mutex::new(Shared {
                lanes: Lanes::new(limits, data),
                sleeper: None,
                control_waiter: None,
                nudged: false,
                space_waiters: Vec::new(),
                next_place: 0,
            }),
            control_waiting: AtomicUsize::new(0),
        }
    }

    // --- senders ---

    pub(crate) fn send_control(
        &self,
        message: C,
        standing: Standing,
    ) -> Result<(), ControlRefused<C>> {
        let (sleeper, waiter) = {
            let mut shared = self.lock();
            shared.lanes.send_control(message, standing)?;
            self.publish_control(&shared);
            (shared.sleeper.take(), shared.control_waiter.take())
        };
        wake(sleeper);
        wake(waiter);
        Ok(())
    }

    pub(crate) fn offer_data(&self, item: D::Item) -> Offer<D::Item> {
        let mut shared = self.lock();
        let offer = shared.lanes.offer_data(item);
        let sleeper = shared.sleeper_for_data();
        let waiter = shared.waiter_for_news();
        let ready = shared.senders_with_space();
        drop(shared);
        wake(sleeper);
        wake(waiter);
        ready.into_iter().for_each(Waker::wake);
        offer
    }

    pub(crate) fn offer_all_data(
        &self,
        batch: &mut VecDeque<D::Item>,
        displaced: &mut Vec<D::Item>,
    ) -> usize {
        let mut taken = 0;
        let mut shared = self.lock();
        while let Some(item) = batch.pop_front() {
            match shared.lanes.offer_data(item) {
                Offer::Queued => taken += 1,
                Offer::Displaced(oldest) => {
                    taken += 1;
                    displaced.push(oldest);
                }
                Offer::Full(item) | Offer::Closed(item) => {
                    batch.push_front(item);
                    break;
                }
            }
        }
        let sleeper = shared.sleeper_for_data();
        let waiter = shared.waiter_for_news();
        let ready = shared.senders_with_space();
        drop(shared);
        wake(sleeper);
        wake(waiter);
        ready.into_iter().for_each(Waker::wake);
        taken
    }

    pub(crate) fn offer_telemetry(&self, item: T) -> Offer<T> {
        let (offer, sleeper) = {
            let mut shared = self.lock();
            let offer = shared.lanes.offer_telemetry(item);
            (offer, shared.sleeper.take())
        };
        wake(sleeper);
        offer
    }

    pub(crate) fn poll_data_space(
        &self,
        cx: &mut task::Context<'_>,
        part: Option<usize>,
        place: &mut Option<u64>,
    ) -> Poll<()> {
        let mut shared = self.lock();
        if shared.lanes.is_closed() || has_space(&shared.lanes.data, part) {
            if let Some(place) = place.take() {
                shared.leave_space(place);
            }
            return Poll::Ready(());
        }
        let place = *place.get_or_insert_with(|| {
            shared.next_place += 1;
            shared.next_place
        });
        let mut waiters = shared.space_waiters.iter_mut();
        match waiters.find(|waiter| waiter.place == place) {
            Some(waiter) => waiter.waker.clone_from(cx.waker()),
            None => shared.space_waiters.push(SpaceWaiter {
                place,
                part,
                waker: cx.waker().clone(),
            }),
        }
        Poll::Pending
    }

    pub(crate) fn leave_data_space(&self, place: u64) {
        self.lock().leave_space(place);
    }

    // --- the consumer ---

    /// The next item, or a nudge; with neither, leaves `waker` to be woken by the next.
    pub(crate) fn take_or_sleep(&self, waker: &Waker) -> Taken<C, D::Item, T> {
        let mut shared = self.lock();
        if shared.nudged {
            shared.nudged = false;
            return Taken::Nudge;
        }
        let Some(item) = shared.lanes.take() else {
            match &mut shared.sleeper {
                Some(sleeper) => sleeper.clone_from(waker),
                None => shared.sleeper = Some(waker.clone()),
            }
            return Taken::Asleep;
        };
        let ready = match &item {
            Item::Control(_) => {
                self.publish_control(&shared);
                Vec::new()
            }
            Item::Data(_) => shared.senders_with_space(),
            Item::News | Item::Telemetry(_) => Vec::new(),
        };
        drop(shared);
        ready.into_iter().for_each(Waker::wake);
        Taken::Item(item)
    }

    /// Waits until the task that has left its waker is woken; not at all if that has happened meanwhile. Whatever woke
    /// it, [`take_or_sleep`](Self::take_or_sleep) finds out what for.
    pub(crate) async fn woken(&self) {
        let mut asleep = false;
        poll_fn(|_| {
            // The wake-up may have come while the task waited for something else, which then used it up.
            if asleep || self.lock().sleeper.is_none() {
                return Poll::Ready(());
            }
            asleep = true;
            Poll::Pending
        })
        .await;
    }

    pub(crate) fn try_control(&self) -> Option<C> {
        let mut shared = self.lock();
        let message = shared.lanes.take_control();
        self.publish_control(&shared);
        message
    }

    pub(crate) fn try_data(&self) -> Option<D::Item> {
        self.with_lanes(Lanes::take_data)
    }

    pub(crate) fn with_data<R>(&self, look: impl FnOnce(&mut D) -> R) -> R {
        self.with_lanes(|lanes| look(&mut lanes.data))
    }

    /// The same for a consumer that asks for the next item right after it, and need not be woken for that.
    pub(crate) fn look_at_data<R>(&self, look: impl FnOnce(&mut D) -> R) -> R {
        let mut shared = self.lock();
        let result = look(&mut shared.lanes.data);
        let ready = shared.senders_with_space();
        drop(shared);
        ready.into_iter().for_each(Waker::wake);
        result
    }

    pub(crate) fn control_depth(&self) -> usize {
        self.control_waiting.load(Ordering::Acquire)
    }

    pub(crate) fn control_pending(&self) -> bool {
        self.control_depth() > 0
    }

    pub(crate) fn poll_control(&self, cx: &mut task::Context<'_>) -> Poll<C> {
        let mut shared = self.lock();
        if let Some(message) = shared.lanes.take_control() {
            self.publish_control(&shared);
            return Poll::Ready(message);
        }
        shared.control_waiter = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Waits for control, or for news of the data lane.
    pub(crate) fn poll_stirred(&self, cx: &mut task::Context<'_>) -> Poll<()> {
        let mut shared = self.lock();
        if shared.lanes.has_control() || shared.lanes.data.has_news() {
            return Poll::Ready(());
        }
        shared.control_waiter = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn pause_data(&self, paused: bool) {
        self.lock().lanes.pause_data(paused);
    }

    fn with_lanes<R>(&self, look: impl FnOnce(&mut Lanes<C, D, T>) -> R) -> R {
        let mut shared = self.lock();
        let result = look(&mut shared.lanes);
        // What did not press may do so now.
        let sleeper = shared.sleeper_for_data();
        let ready = shared.senders_with_space();
        drop(shared);
        wake(sleeper);
        ready.into_iter().for_each(Waker::wake);
        result
    }

    // --- supervision ---

    /// Wakes the consumer for something that is not in the lanes.
    pub(crate) fn nudge(&self) {
        let sleeper = {
            let mut shared = self.lock();
            shared.nudged = true;
            shared.sleeper.take()
        };
        wake(sleeper);
    }

    /// Forgets a consumer that has ended. What waits is kept for the next one, which starts with data flowing.
    pub(crate) fn detach(&self) {
        let gone = {
            let mut shared = self.lock();
            shared.nudged = false;
            shared.lanes.pause_data(false);
            (shared.sleeper.take(), shared.control_waiter.take())
        };
        // A waker may hold the last reference to its actor: never dropped under the lock.
        drop(gone);
    }

    /// Refuses everything from now on, drops what was waiting and lets waiting senders go.
    pub(crate) fn close(&self) {
        let (waiting, ready) = {
            let mut shared = self.lock();
            let waiting = shared.lanes.close();
            self.publish_control(&shared);
            (waiting, std::mem::take(&mut shared.space_waiters))
        };
        for waiter in ready {
            waiter.waker.wake();
        }
        // Dropped unlocked: an item's destructor may itself send.
        drop(waiting);
    }

    pub(crate) fn closed(&self) -> bool {
        self.lock().lanes.is_closed()
    }

    pub(crate) fn depths(&self) -> (usize, usize, usize) {
        self.lock().lanes.depths()
    }

    pub(crate) fn losses(&self) -> (u64, u64) {
        self.lock().lanes.losses()
    }

    fn publish_control(&self, shared: &Shared<C, D, T>) {
        self.control_waiting
            .store(shared.lanes.depths().0, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Shared<C, D, T>> {
        // A buffer that panicked in one sender's hands must not take the receiver and all other senders with it.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C, D: Buffer, T> Shared<C, D, T> {
    /// The sleeper, if there is data it may look at and is to be woken for.
    fn sleeper_for_data(&mut self) -> Option<Waker> {
        let presses = !self.lanes.data_paused() && self.lanes.data.is_pressing();
        if presses || self.lanes.data.has_news() {
            self.sleeper.take()
        } else {
            None
        }
    }

    /// The consumer that waits in the middle of something else, if the data lane has news for it.
    fn waiter_for_news(&mut self) -> Option<Waker> {
        if self.lanes.data.has_news() {
            self.control_waiter.take()
        } else {
            None
        }
    }

    /// All senders that wait for space, once there is some: they race for it, so none is left behind.
    fn senders_with_space(&mut self) -> Vec<Waker> {
        if self.space_waiters.is_empty() {
            return Vec::new();
        }
        let data = &self.lanes.data;
        self.space_waiters
            .extract_if(.., |waiter| has_space(data, waiter.part))
            .map(|waiter| waiter.waker)
            .collect()
    }

    fn leave_space(&mut self, place: u64) {
        self.space_waiters.retain(|waiter| waiter.place != place);
    }
}

fn has_space<D: Buffer>(data: &D, part: Option<usize>) -> bool {
    match part {
        None => data.has_space(),
        Some(part) => data.has_space_at(part),
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
