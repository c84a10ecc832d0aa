//! Where inference runs: a bounded pool of blocking threads, never an async worker.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// The runtime is shutting down, or the work panicked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolClosed {
    /// No more work is taken.
    #[error("the inference pool is closed")]
    Closed,
    /// The work panicked; the pool lives on.
    #[error("inference panicked: {0}")]
    Panicked(String),
}

/// Runs blocking work on at most `size` threads at once; more waits its turn.
///
/// In virtual time (a paused tokio clock) the work is charged at what it really cost: the clock
/// stands still while it runs and is then moved on by its duration, so that latencies measured in
/// virtual time are those of this machine.
#[derive(Clone, Debug)]
pub struct InferencePool {
    slots: Arc<Semaphore>,
    cost: Cost,
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
            slots: Arc::new(Semaphore::new(size.max(1))),
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

    /// Runs `work` on the pool and waits for it. Dropping the future gives up the wait; work that
    /// has begun runs to its end and keeps its slot until then.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolClosed> {
        let slot = Arc::clone(&self.slots)
            .acquire_owned()
            .await
            .map_err(|_| PoolClosed::Closed)?;
        if let Cost::Fixed(cost) = self.cost {
            let _slot = slot;
            tokio::time::sleep(cost).await;
            return catch_unwind(AssertUnwindSafe(work))
                .map_err(|panic| PoolClosed::Panicked(panic_text(panic.as_ref())));
        }
        let joined = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            #[expect(
                clippy::disallowed_methods,
                reason = "measures what the work really cost, whatever the virtual clock says"
            )]
            let began = std::time::Instant::now();
            let result = work();
            (result, began.elapsed())
        })
        .await;
        let (result, took) = joined.map_err(|error| match error.try_into_panic() {
            Ok(panic) => PoolClosed::Panicked(panic_text(panic.as_ref())),
            Err(_) => PoolClosed::Closed,
        })?;
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
        assert_eq!(b, Err::<(), _>(PoolClosed::Panicked("bad weights".into())));
        assert_eq!(began.elapsed(), Duration::from_millis(14), "one slot");
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_and_frees_its_slot() {
        let pool = InferencePool::new(1);
        let outcome = pool.run(|| panic!("bad weights")).await;
        assert_eq!(
            outcome,
            Err::<(), _>(PoolClosed::Panicked("bad weights".into()))
        );
        assert_eq!(pool.run(|| 7).await, Ok(7));
    }
}
