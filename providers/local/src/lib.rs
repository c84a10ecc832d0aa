//! Speech models that run on this machine: voice activity, end of turn, recognition, synthesis.

mod describe;
mod lazy;
pub mod models;
mod onnx;
#[cfg(test)]
mod testing;
mod turn;
mod voice;

pub use onnx::OnnxRuntime;
pub use turn::{Pause, SmartTurn};
pub use voice::{Earshot, Energy, Silero};
