//! Speech models that run on this machine: voice activity, end of turn, recognition, synthesis.

mod lazy;
pub mod models;
mod onnx;

pub use onnx::OnnxRuntime;
