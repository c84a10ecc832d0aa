//! How long a call has waited for this machine, which is not its provider's fault.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The time that one attempt spends in queues of this machine, such as a pool's.
///
/// Whoever makes the attempt reads it: a provider that is waited for by its own call, because it has
/// not been given the work yet, is not slow.
#[derive(Debug, Default)]
pub struct QueueTime(Mutex<Waits>);

#[derive(Debug, Default)]
struct Waits {
    over: Duration,
    since: Option<Instant>,
    waiting: u32,
}

/// A wait in progress; over when it is dropped.
#[derive(Debug)]
#[must_use = "the wait is over when this is dropped"]
pub struct Queueing(Arc<QueueTime>);

impl QueueTime {
    /// A wait begins. Waits at the same time count once.
    pub fn wait(self: &Arc<Self>) -> Queueing {
        let mut waits = self.lock();
        waits.waiting += 1;
        waits.since.get_or_insert_with(Instant::now);
        drop(waits);
        Queueing(Arc::clone(self))
    }

    /// How long it has been, a wait in progress included.
    pub fn total(&self) -> Duration {
        let waits = self.lock();
        waits.over + waits.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Waits> {
        // The counts are whole between any two of our own lines.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Queueing {
    fn drop(&mut self) {
        let mut waits = self.0.lock();
        waits.waiting -= 1;
        if waits.waiting == 0
            && let Some(since) = waits.since.take()
        {
            waits.over += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_at_the_same_time_count_once() {
        let queue = Arc::<QueueTime>::default();
        let pass = async |ms| tokio::time::sleep(Duration::from_millis(ms)).await;
        let first = queue.wait();
        pass(100).await;
        let second = queue.wait();
        pass(100).await;
        drop(first);
        pass(100).await;
        assert_eq!(queue.total(), Duration::from_millis(300), "and goes on");
        drop(second);
        pass(500).await;
        let third = queue.wait();
        pass(50).await;
        drop(third);
        assert_eq!(queue.total(), Duration::from_millis(350));
    }
}
