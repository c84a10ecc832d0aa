//! Time for actors, which follows tokio's clock, and real time for measuring work.

use std::time::Duration;

use tokio::time::Instant;

/// Time since an origin, on tokio's clock: virtual when that is paused.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that reads zero now.
    pub fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    /// Time since the origin.
    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The same moment as tokio's timers name it.
    pub fn instant(&self) -> Instant {
        Instant::now()
    }

    /// The moment `since_origin` after the origin.
    pub fn instant_at(&self, since_origin: Duration) -> Instant {
        self.origin + since_origin
    }
}

/// Measures how long work really took, whatever the clock says.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    started: std::time::Instant,
}

impl Stopwatch {
    /// Starts measuring.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the measure of real work"
    )]
    pub fn start() -> Self {
        Self {
            started: std::time::Instant::now(),
        }
    }

    /// Real time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_is_virtual_and_the_stopwatch_is_not() {
        let clock = Clock::start();
        let watch = Stopwatch::start();
        tokio::time::sleep(Duration::from_hours(1)).await;
        assert_eq!(clock.now(), Duration::from_hours(1));
        assert_eq!(clock.instant(), clock.instant_at(clock.now()));
        assert!(watch.elapsed() < Duration::from_mins(1));
    }
}
