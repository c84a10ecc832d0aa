//! A note of every accepted frame, on a clock that all processes of a machine share: what is needed to
//! show that nobody else spoke for a session at the same time.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::Path,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use rspp_proto::{AudioChunk, Codec, Epoch, SampleRate, SessionId, TurnNumber};
use rspp_transport_api::{Outgoing, Sink, SinkError};
use serde_json::json;

/// Where notes go.
#[derive(Clone)]
pub(crate) struct Outputs {
    runtime: Arc<str>,
    file: Arc<Mutex<File>>,
}

impl Outputs {
    pub(crate) fn open(path: &Path, runtime: &str) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self {
            runtime: runtime.into(),
            file: Arc::new(Mutex::new(file)),
        })
    }

    /// Notes what became of a session or turn, at a moment of [`now_us`].
    pub(crate) fn note(
        &self,
        at_us: u64,
        what: &str,
        session: &SessionId,
        epoch: Option<Epoch>,
        turn: Option<&str>,
    ) {
        let line = json!({
            "at_us": at_us,
            "runtime": &*self.runtime,
            "process": std::process::id(),
            "what": what,
            "session": session,
            "epoch": epoch,
            "turn": turn,
        });
        let mut file = self.file.lock().expect("no code panics while locked");
        // One write a line: whatever kills this process leaves whole lines.
        if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
            tracing::error!(%error, "an output was not noted");
        }
    }
}

/// Microseconds since the machine was started, the same in every process.
pub(crate) fn now_us() -> u64 {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    at.tv_sec as u64 * 1_000_000 + at.tv_nsec as u64 / 1_000
}

/// A sink whose frames are noted.
pub(crate) struct Noted {
    pub(crate) sink: Box<dyn Sink>,
    pub(crate) outputs: Outputs,
    pub(crate) session: SessionId,
    /// Known once the session is open, before which nothing is played.
    pub(crate) epoch: Arc<OnceLock<Epoch>>,
}

impl Sink for Noted {
    fn sample_rate(&self) -> SampleRate {
        self.sink.sample_rate()
    }

    fn codec(&self) -> Codec {
        self.sink.codec()
    }

    fn lead(&self) -> Duration {
        self.sink.lead()
    }

    fn play(&mut self, turn: TurnNumber, chunk: &AudioChunk) -> Result<(), SinkError> {
        // From before: a process that is stopped between this and the note was not late with the frame.
        let at = now_us();
        self.sink.play(turn, chunk)?;
        let epoch = self.epoch.get().copied();
        let turn = turn.id();
        self.outputs
            .note(at, "frame", &self.session, epoch, Some(turn.as_str()));
        Ok(())
    }

    fn clear(&mut self, turn: TurnNumber) {
        self.sink.clear(turn);
    }

    fn send(&mut self, outgoing: Outgoing) -> Result<(), SinkError> {
        self.sink.send(outgoing)
    }

    fn pause(&mut self) {
        self.sink.pause();
    }

    fn wire(&self) -> Option<rspp_transport_api::wire::WireReport> {
        self.sink.wire()
    }
}
