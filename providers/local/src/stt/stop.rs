//! Stopping work that runs on another thread.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use ort::session::RunOptions;

/// Tells a decoder to stop: between two steps, and within the encoder's one long step.
#[derive(Default)]
pub(super) struct Stop {
    fired: AtomicBool,
    run: OnceLock<RunOptions>,
}

impl Stop {
    /// Stops the work, and what may follow.
    pub(super) fn fire(&self) {
        self.fired.store(true, SeqCst);
        if let Some(run) = self.run.get() {
            // It fails only where there is no run to stop.
            let _ = run.terminate();
        }
    }

    pub(super) fn fired(&self) -> bool {
        self.fired.load(SeqCst)
    }

    /// What a network must be run with to be stopped. ONNX Runtime must be loaded.
    pub(super) fn run_options(&self) -> ort::Result<&RunOptions> {
        if self.run.get().is_none() {
            // Another thread's would do as well; work is done by one thread, though.
            let _ = self.run.set(RunOptions::new()?);
        }
        let run = self.run.get().expect("it was set above");
        if self.fired() {
            // It fired before there was something to terminate.
            run.terminate()?;
        }
        Ok(run)
    }
}

/// Stops the work when it is no longer wanted.
pub(super) struct StopOnDrop(pub(super) Arc<Stop>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.fire();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_the_guard_stops_the_work() {
        let stop = Arc::new(Stop::default());
        let guard = StopOnDrop(Arc::clone(&stop));
        assert!(!stop.fired());
        drop(guard);
        assert!(stop.fired());
    }
}
