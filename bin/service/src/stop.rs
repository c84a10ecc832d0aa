//! When a program is asked to end.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for the signals that ask a program to end.
#[derive(Debug)]
pub struct Asked {
    term: Signal,
    int: Signal,
}

impl Asked {
    /// Listens from here on: before, either signal ends the program at once.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits until somebody asks; who asks a second time means now.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}
