//! Voice activity and end of turn: small models that the runtime calls itself.

use rspp_proto::SampleRate;

use crate::{Description, Fault};

/// Where a detector may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// A few microseconds of arithmetic: may run where it is called.
    Inline,
    /// Inference: runs on the inference pool, never on an async worker (design §2).
    Offload,
}

/// A voice activity detector (F-017); makes one detector a session.
pub trait VoiceActivity: Send + Sync + 'static {
    /// What this is.
    fn describe(&self) -> &Description;

    /// A detector with a state of its own.
    fn detector(&self) -> Result<Box<dyn VoiceDetector>, Fault>;
}

/// One stream's detector.
pub trait VoiceDetector: Send {
    /// The rate it wants.
    fn sample_rate(&self) -> SampleRate;

    /// Samples it wants at a time.
    fn window(&self) -> usize;

    /// Where it may run.
    fn cost(&self) -> Cost;

    /// How probable speech is in the next `window()` samples, 0 to 1.
    fn probability(&mut self, window: &[i16]) -> f32;

    /// Forgets what it heard.
    fn reset(&mut self);
}

/// An end-of-turn model: has the user finished, or only paused?
pub trait EndOfTurn: Send + Sync + 'static {
    /// What this is.
    fn describe(&self) -> &Description;

    /// A model with a state of its own.
    fn model(&self) -> Result<Box<dyn EndOfTurnModel>, Fault>;
}

/// One session's end-of-turn model.
pub trait EndOfTurnModel: Send {
    /// The rate it wants.
    fn sample_rate(&self) -> SampleRate;

    /// Most recent samples it looks at.
    fn window(&self) -> usize;

    /// Where it may run.
    fn cost(&self) -> Cost;

    /// How probable it is that the user has finished, 0 to 1. `audio` ends where speech stopped
    /// and holds at most `window()` samples; `transcript` is what was understood so far, if anything.
    fn complete(&mut self, audio: &[i16], transcript: Option<&str>) -> f32;
}
