//! Where inference runs: a bounded pool of blocking threads, never an async worker.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::time::Instant;

use crate::{
    Call, Fault, QueueTime,
    fair::Share,
    gate::{FairGate, GateCounters, GateError},
    worker::{Held, Losses, Told, Waits},
};

/// Pieces of work that may wait, unless the pool is told otherwise.
const MOST_WAITING: usize = 4_096;

/// Why work was not done.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// Too much work waits already.
    #[error("too much inference waits already")]
    Saturated,
    /// No more work is taken.
    #[error("the inference pool is closed")]
    Closed,
    /// The work panicked; the pool lives on.
    #[error("inference panicked: {0}")]
    Panicked(String),
}

impl PoolError {
    /// What it means for a provider's call.
    pub fn into_fault(self) -> Fault {
        match self {
            Self::Saturated => Fault::shed("execution_pool_saturated", self.to_string()),
            Self::Closed => Fault::shed("execution_pool_closed", self.to_string()),
            Self::Panicked(panic) => Fault::model(format!("inference panicked: {panic}")),
        }
    }
}

impl From<GateError> for PoolError {
    fn from(error: GateError) -> Self {
        match error {
            GateError::Saturated => Self::Saturated,
            GateError::Closed => Self::Closed,
        }
    }
}

/// Runs blocking work on at most `size` threads at once; more waits its turn, which comes by shares
/// and not by who asked first (F-105).
///
/// In virtual time (a paused tokio clock) the work is charged at what it really cost: the clock
/// stands still while it runs and is then moved on by its duration, so that latencies measured in
/// virtual time are those of this machine.
///
/// Work that goes on for two seconds after whoever waited for it has left has lost its thread: another
/// thread takes its place, so that the capacity comes back, for at most as many as the pool has.
#[derive(Clone, Debug)]
pub struct InferencePool {
    gate: FairGate,
    share: Arc<Share>,
    /// Told how long the work of a call waits.
    queue: Option<Arc<QueueTime>>,
    losses: Arc<Losses>,
    /// Told of work that has lost its thread.
    told: Option<Told>,
    cost: Cost,
}

/// Threads of a pool that work has kept though nobody waits for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LostWorkers {
    /// Kept now.
    pub now: usize,
    /// Kept now or before.
    pub ever: usize,
}

/// What work costs on tokio's clock, and where it runs.
#[derive(Clone, Copy, Debug)]
enum Cost {
    /// On a thread; the clock is real.
    Real,
    /// On a thread; a paused clock is moved on by what it really took.
    Charged,
    /// Where it was asked for; the same time whatever it is.
    Fixed(Duration),
}

impl InferencePool {
    /// A pool for real time.
    pub fn new(size: usize) -> Self {
        Self {
            gate: FairGate::new(size, MOST_WAITING),
            share: Arc::default(),
            queue: None,
            losses: Arc::new(Losses::new(size.max(1))),
            told: None,
            cost: Cost::Real,
        }
    }

    /// A pool for a paused clock.
    pub fn in_virtual_time(size: usize) -> Self {
        Self {
            cost: Cost::Charged,
            ..Self::new(size)
        }
    }

    /// A pool without threads for a paused clock: all work takes `cost`, whatever the machine, so that
    /// a simulation goes the same way each time.
    pub fn simulated(size: usize, cost: Duration) -> Self {
        Self {
            cost: Cost::Fixed(cost),
            ..Self::new(size)
        }
    }

    /// The same pool, with room for so much work that waits; the work that waits now is not moved.
    #[must_use]
    pub fn with_waiting_room(self, size: usize, most_waiting: usize) -> Self {
        Self {
            gate: FairGate::new(size, most_waiting),
            ..self
        }
    }

    /// The same pool, for work that is accounted to `share`.
    #[must_use]
    pub fn on_behalf_of(&self, share: Arc<Share>) -> Self {
        Self {
            share,
            ..self.clone()
        }
    }

    /// The same pool, for work whose lost threads are told to `tell`, with how long they were waited for.
    #[must_use]
    pub fn telling(self, tell: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        Self {
            told: Some(Told(Arc::new(tell))),
            ..self
        }
    }

    /// The same pool, for a provider's call: accounted to whoever asks, and its waits told to the call.
    #[must_use]
    pub fn for_call(&self, call: &Call) -> Self {
        Self {
            queue: Some(Arc::clone(&call.queue)),
            ..self.on_behalf_of(Arc::clone(&call.share))
        }
    }

    /// What the pool has done so far (F-105).
    pub fn counters(&self) -> GateCounters {
        self.gate.counters()
    }

    /// The threads that it has lost, and replaced.
    pub fn lost_workers(&self) -> LostWorkers {
        let (now, ever) = self.losses.count();
        LostWorkers { now, ever }
    }

    /// Takes no more work.
    pub fn close(&self) {
        self.gate.close();
    }

    /// Runs `work` on the pool and waits for it. Dropping the future gives up the wait; work that
    /// has begun runs to its end and keeps its slot until then, unless its thread counts as lost before.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let waiting = self.queue.as_ref().map(QueueTime::wait);
        let slot = self.gate.pass(&self.share).await?;
        drop(waiting);
        if let Cost::Fixed(cost) = self.cost {
            tokio::time::sleep(cost).await;
            let outcome = catch_unwind(AssertUnwindSafe(work))
                .map_err(|panic| PoolError::Panicked(panic_text(panic.as_ref())));
            slot.done(cost);
            return outcome;
        }
        let held = Held::new(slot);
        let mut waits = Waits {
            held: held.clone(),
            losses: Arc::clone(&self.losses),
            told: self.told.clone(),
            is_over: false,
        };
        let losses = Arc::clone(&self.losses);
        let joined = tokio::task::spawn_blocking(move || {
            #[expect(
                clippy::disallowed_methods,
                reason = "measures what the work really cost, whatever the virtual clock says"
            )]
            let began = std::time::Instant::now();
            let result = catch_unwind(AssertUnwindSafe(work));
            let took = began.elapsed();
            held.done(took, &losses);
            (result, took)
        })
        .await;
        waits.is_over = true;
        let (result, took) = joined.map_err(|_| PoolError::Closed)?;
        let result = result.map_err(|panic| PoolError::Panicked(panic_text(panic.as_ref())))?;
        match self.cost {
            Cost::Charged => tokio::time::sleep_until(Instant::now() + took).await,
            Cost::Real | Cost::Fixed(_) => {}
        }
        Ok(result)
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn virtual_time_is_charged_for_real_work() {
        let pool = InferencePool::in_virtual_time(1);
        let began = Instant::now();
        #[expect(clippy::disallowed_methods, reason = "real work on a pool thread")]
        pool.run(|| std::thread::sleep(Duration::from_millis(20)))
            .await
            .unwrap();
        let charged = began.elapsed();
        assert!(charged >= Duration::from_millis(20), "{charged:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn simulated_work_takes_the_same_time_on_every_machine() {
        let pool = InferencePool::simulated(1, Duration::from_millis(7));
        let began = Instant::now();
        let here = std::thread::current().id();
        let (a, b) = tokio::join!(
            pool.run(|| std::thread::current().id()),
            pool.run(|| panic!("bad weights")),
        );
        assert_eq!(a, Ok(here));
        assert_eq!(b, Err::<(), _>(PoolError::Panicked("bad weights".into())));
        assert_eq!(began.elapsed(), Duration::from_millis(14), "one slot");
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_and_frees_its_slot() {
        let pool = InferencePool::new(1);
        let outcome = pool.run(|| panic!("bad weights")).await;
        assert_eq!(
            outcome,
            Err::<(), _>(PoolError::Panicked("bad weights".into()))
        );
        assert_eq!(pool.run(|| 7).await, Ok(7));
    }

    /// F-105, F-174: a slot goes to whoever has had least, not to whoever asked most.
    #[tokio::test(start_paused = true)]
    async fn slots_go_by_shares() {
        let pool = InferencePool::in_virtual_time(1);
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let work = |who: &'static str| {
            let order = Arc::clone(&order);
            let pool = pool.on_behalf_of(Arc::new(Share::new(who, who)));
            async move {
                let done = pool.run(move || order.lock().unwrap().push(who));
                done.await.unwrap();
            }
        };
        let mut all: Vec<_> = (0..20).map(|_| tokio::spawn(work("big"))).collect();
        tokio::task::yield_now().await;
        all.push(tokio::spawn(work("small")));
        for one in all {
            one.await.unwrap();
        }
        let order = order.lock().unwrap();
        let place = order.iter().position(|who| *who == "small").unwrap();
        assert!(place <= 2, "{order:?}");
        assert_eq!(pool.counters().most_inside, 1);
    }

    /// P16, F-105: a thread that work keeps though nobody waits for it is replaced, so that others go on;
    /// as many as the pool has, and no more; what comes back counts as lost no longer.
    #[tokio::test]
    async fn a_lost_thread_is_replaced_within_a_bound() {
        let told = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&told);
        let pool = InferencePool::new(1).telling(move |after| {
            assert_eq!(after, crate::worker::PATIENCE);
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        let (let_go, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(std::sync::Mutex::new(wait));
        let stuck = |wait: &Arc<std::sync::Mutex<std::sync::mpsc::Receiver<()>>>| {
            let wait = Arc::clone(wait);
            pool.run(move || wait.lock().unwrap().recv().is_ok())
        };
        let soon = Duration::from_millis(200);
        let given_up = tokio::time::timeout(soon, stuck(&wait)).await;
        assert!(given_up.is_err());
        let early = tokio::time::timeout(soon, pool.run(|| 1)).await;
        assert!(early.is_err(), "it may be honest work");
        assert_eq!(pool.run(|| 2).await, Ok(2));
        let lost = |now, ever| LostWorkers { now, ever };
        assert_eq!(pool.lost_workers(), lost(1, 1));
        assert_eq!(told.load(std::sync::atomic::Ordering::Relaxed), 1);

        // One more than the pool has is not replaced.
        let given_up = tokio::time::timeout(soon, stuck(&wait)).await;
        assert!(given_up.is_err());
        let late = crate::worker::PATIENCE + soon * 2;
        assert!(tokio::time::timeout(late, pool.run(|| 3)).await.is_err());
        assert_eq!(pool.lost_workers(), lost(1, 1));

        let_go.send(()).unwrap();
        let_go.send(()).unwrap();
        assert_eq!(pool.run(|| 4).await, Ok(4));
        while pool.lost_workers().now > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.lost_workers(), lost(0, 1));
    }

    /// F1: a pool with no room to wait in says so.
    #[tokio::test(start_paused = true)]
    async fn a_full_waiting_room_is_an_answer() {
        let pool = InferencePool::in_virtual_time(1).with_waiting_room(1, 0);
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let busy = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(move || wait.recv().is_ok()).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(pool.run(|| 1).await, Err(PoolError::Saturated));
        assert_eq!(
            PoolError::Saturated.into_fault().reason,
            "execution_pool_saturated"
        );
        go.send(()).unwrap();
        assert_eq!(busy.await.unwrap(), Ok(true));
    }
}
