//! Speech models that run on this machine: voice activity, end of turn, recognition, synthesis.

mod describe;
mod lazy;
pub mod models;
mod onnx;
pub mod phonemes;
mod piper;
mod register;
mod stt;
#[cfg(test)]
mod testing;
mod turn;
mod voice;

pub use onnx::OnnxRuntime;
pub use piper::{Piper, PiperFiles};
pub use register::{Missing, Registered, USUAL, register};
pub use stt::Moonshine;
pub use turn::{Pause, SmartTurn};
pub use voice::{Earshot, Energy, Silero};
