//! So many at once, and fair among those who wait.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use thiserror::Error;
use tokio::{sync::oneshot, time::Instant};

use crate::fair::{FairQueue, Grant, Pushed, Share};

/// Why somebody was not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GateError {
    /// Too many wait already.
    #[error("too many wait already")]
    Saturated,
    /// Nobody is let through any more.
    #[error("it is closed")]
    Closed,
}

/// What has happened at a gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateCounters {
    /// Let through so far.
    pub passed: u64,
    /// Of these, had to wait.
    pub waited: u64,
    /// Turned away: too many waited already.
    pub refused: u64,
    /// Inside now.
    pub inside: usize,
    /// Most that were inside at once.
    pub most_inside: usize,
    /// Waiting now.
    pub waiting: usize,
    /// Most that waited at once.
    pub most_waiting: usize,
}

/// Lets so many through at once; the others wait in a fair queue.
#[derive(Clone, Debug)]
pub struct FairGate {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    capacity: usize,
    closed: bool,
    queue: FairQueue<oneshot::Sender<Result<GatePermit, GateError>>>,
    counters: GateCounters,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Counters and queues are whole between any two of our own lines.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FairGate {
    /// Room for `capacity` inside and for `most_waiting` outside.
    pub fn new(capacity: usize, most_waiting: usize) -> Self {
        let state = State {
            capacity: capacity.max(1),
            closed: false,
            queue: FairQueue::new(most_waiting),
            counters: GateCounters::default(),
        };
        Self {
            inner: Arc::new(Inner {
                state: Mutex::new(state),
            }),
        }
    }

    /// Room for another number from now on; who is inside stays.
    pub fn resize(&self, capacity: usize) {
        self.inner.lock().capacity = capacity.max(1);
        dispatch(&self.inner);
    }

    /// Waits to be let through. Dropping the future gives the place in the queue up.
    pub async fn pass(&self, share: &Share) -> Result<GatePermit, GateError> {
        let answer = match self.ask(share)? {
            Asked::Passed(permit) => return Ok(permit),
            Asked::Waits(answer) => answer,
        };
        answer.await.unwrap_or(Err(GateError::Closed))
    }

    fn ask(&self, share: &Share) -> Result<Asked, GateError> {
        let mut state = self.inner.lock();
        if state.closed {
            return Err(GateError::Closed);
        }
        if state.counters.inside < state.capacity
            && let Some(grant) = state.queue.begin(share)
        {
            state.enter();
            return Ok(Asked::Passed(GatePermit::new(&self.inner, grant)));
        }
        let (waiting, answer) = oneshot::channel();
        state.queue.retain(|waiting| !waiting.is_closed());
        let pushed = state.queue.push(share, waiting);
        state.counters.waiting = state.queue.len();
        state.counters.most_waiting = state.counters.most_waiting.max(state.queue.len());
        match pushed {
            Pushed::Queued => Ok(Asked::Waits(answer)),
            Pushed::Displaced(other) => {
                state.counters.refused += 1;
                drop(state);
                let _gone_meanwhile = other.send(Err(GateError::Saturated));
                Ok(Asked::Waits(answer))
            }
            Pushed::Refused(_) => {
                state.counters.refused += 1;
                Err(GateError::Saturated)
            }
        }
    }

    /// Lets nobody through any more, and sends those who wait away.
    pub fn close(&self) {
        let waiting = {
            let mut state = self.inner.lock();
            state.closed = true;
            state.counters.waiting = 0;
            state.queue.drain()
        };
        for waiting in waiting {
            let _gone_meanwhile = waiting.send(Err(GateError::Closed));
        }
    }

    /// What has happened so far.
    pub fn counters(&self) -> GateCounters {
        self.inner.lock().counters
    }

    /// Whether nobody but the asker knows of it.
    pub fn is_unused(&self) -> bool {
        Arc::strong_count(&self.inner) == 1
    }
}

impl State {
    fn enter(&mut self) {
        self.counters.passed += 1;
        self.counters.inside += 1;
        self.counters.most_inside = self.counters.most_inside.max(self.counters.inside);
    }
}

enum Asked {
    Passed(GatePermit),
    Waits(oneshot::Receiver<Result<GatePermit, GateError>>),
}

/// A place inside, given back when it is dropped.
#[derive(Debug)]
pub struct GatePermit {
    inner: Arc<Inner>,
    grant: Option<Grant>,
    began: Instant,
}

impl GatePermit {
    fn new(inner: &Arc<Inner>, grant: Grant) -> Self {
        Self {
            inner: Arc::clone(inner),
            grant: Some(grant),
            began: Instant::now(),
        }
    }

    /// Gives the place back and says what the work has cost, where that is not the time that it was
    /// held.
    pub fn done(mut self, cost: Duration) {
        if let Some(grant) = self.grant.take() {
            let mut state = self.inner.lock();
            state.counters.inside -= 1;
            state.queue.release(grant, cost);
            drop(state);
            dispatch(&self.inner);
        }
    }
}

impl Drop for GatePermit {
    fn drop(&mut self) {
        if let Some(grant) = self.grant.take() {
            let mut state = self.inner.lock();
            state.counters.inside -= 1;
            state.queue.release(grant, self.began.elapsed());
            drop(state);
            dispatch(&self.inner);
        }
    }
}

/// Lets through whoever's turn it is.
fn dispatch(inner: &Arc<Inner>) {
    loop {
        let (waiting, permit) = {
            let mut state = inner.lock();
            if state.counters.inside >= state.capacity {
                return;
            }
            let Some((grant, waiting)) = state.queue.pop() else {
                return;
            };
            state.counters.waiting = state.queue.len();
            if waiting.is_closed() {
                state.queue.give_back(grant);
                continue;
            }
            state.enter();
            state.counters.waited += 1;
            (waiting, GatePermit::new(inner, grant))
        };
        // Who has left since gives the place back at once.
        if let Err(Ok(mut permit)) = waiting.send(Ok(permit))
            && let Some(grant) = permit.grant.take()
        {
            let mut state = inner.lock();
            state.counters.inside -= 1;
            state.queue.give_back(grant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(of: &str) -> Share {
        Share::new(of, of)
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_inside_and_no_more() {
        let gate = FairGate::new(2, 10);
        let first = gate.pass(&share("a")).await.unwrap();
        let _second = gate.pass(&share("a")).await.unwrap();
        let a = share("a");
        let third = gate.pass(&a);
        tokio::pin!(third);
        let soon = tokio::time::timeout(Duration::from_secs(1), &mut third).await;
        assert!(soon.is_err());
        assert_eq!(gate.counters().waiting, 1);
        drop(first);
        third.await.unwrap();
        let counters = gate.counters();
        assert_eq!((counters.passed, counters.waited), (3, 1));
        assert_eq!((counters.inside, counters.most_inside), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_waiting_is_passed_over() {
        let gate = FairGate::new(1, 10);
        let held = gate.pass(&share("a")).await.unwrap();
        {
            let b = share("b");
            let given_up = gate.pass(&b);
            tokio::pin!(given_up);
            let soon = tokio::time::timeout(Duration::from_secs(1), &mut given_up).await;
            assert!(soon.is_err());
        }
        drop(held);
        assert_eq!(gate.counters().inside, 0);
        gate.pass(&share("c")).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_are_turned_away_and_a_closed_gate_turns_all_away() {
        let gate = FairGate::new(1, 1);
        let _held = gate.pass(&share("a")).await.unwrap();
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.pass(&share("a")).await.map(|_| ()) }
        });
        tokio::task::yield_now().await;
        let refused = gate.pass(&share("a")).await.map(|_| ());
        assert_eq!(refused, Err(GateError::Saturated));
        gate.close();
        assert_eq!(waiting.await.unwrap(), Err(GateError::Closed));
        let refused = gate.pass(&share("a")).await.map(|_| ());
        assert_eq!(refused, Err(GateError::Closed));
    }
}
