//! Speech models that run on this machine: voice activity, end of turn, recognition, synthesis.

mod lazy;
mod onnx;

pub use onnx::OnnxRuntime;
