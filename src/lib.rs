//! onnx-osplus

pub mod onnx;
pub mod solve;
