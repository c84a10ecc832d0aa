//! What crosses the wire, and when: watched where it leaves, and recorded there if that is wanted (P29).

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use rspp_proto::{SampleRate, TurnNumber};
use rspp_transport_api::{
    loopback::Recorded,
    wire::{CUSHION, Tape, Wire, WireReport},
};
use tokio::time::Instant;

/// One call's wire.
pub(crate) struct Crossing(Mutex<State>);

struct State {
    began: Instant,
    wire: Wire,
    tape: Option<Tape>,
    /// How long a sample of the agent's lasts.
    rate: SampleRate,
}

impl Crossing {
    /// A wire between the rates of the user's audio and of the agent's, and whether it is recorded.
    pub(crate) fn new(user: SampleRate, agent: SampleRate, records: bool) -> Self {
        let tape = records.then(|| Tape::new(user, agent));
        let tape = tape.map(|tape| tape.expect("rates that are served can be converted"));
        Self(Mutex::new(State {
            began: Instant::now(),
            wire: Wire::new(CUSHION),
            tape,
            rate: agent,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked left nothing half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A frame of the agent's has left.
    pub(crate) fn left(&self, turn: TurnNumber, pcm: &Bytes) {
        let mut state = self.lock();
        let at = state.began.elapsed();
        let lasts = state.rate.duration_of((pcm.len() / 2) as u64);
        state.wire.frame(turn, at, lasts);
        if let Some(tape) = &mut state.tape {
            tape.left(turn, at, pcm.clone());
        }
    }

    /// The last frame of a turn has left.
    pub(crate) fn over(&self, turn: TurnNumber) {
        self.lock().wire.over(turn);
    }

    /// The client does not play any more of a turn and all before it.
    pub(crate) fn cleared(&self, turn: TurnNumber) {
        let mut state = self.lock();
        let at = state.began.elapsed();
        state.wire.over(turn);
        if let Some(tape) = &mut state.tape {
            tape.cleared(turn, at);
        }
    }

    /// What comes next does not join what came before.
    pub(crate) fn pause(&self) {
        self.lock().wire.pause();
    }

    /// The user's audio has come.
    pub(crate) fn came(&self, pcm: &Bytes) {
        let mut state = self.lock();
        let at = state.began.elapsed();
        if let Some(tape) = &mut state.tape {
            tape.came(at, pcm.clone());
        }
    }

    /// How the agent's speech crossed the wire so far.
    pub(crate) fn report(&self) -> WireReport {
        self.lock().wire.report()
    }

    /// Samples per second of the recording, if there is one.
    pub(crate) fn recorded_rate(&self) -> Option<SampleRate> {
        self.lock().tape.as_ref().map(Tape::rate)
    }

    /// What was recorded since the last time; all that is left of it in the end.
    pub(crate) fn take_recorded(&self, is_over: bool) -> Recorded {
        let mut state = self.lock();
        let now = state.began.elapsed();
        match &mut state.tape {
            Some(tape) if is_over => tape.take_rest(now),
            Some(tape) => tape.take(now),
            None => Recorded::default(),
        }
    }

    /// Nobody takes any more of what is heard.
    pub(crate) fn stop_recording(&self) {
        self.lock().tape = None;
    }
}

impl fmt::Debug for Crossing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Crossing")
    }
}
