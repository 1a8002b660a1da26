//! onnx-osplus

pub mod onnx;
pub mod graph;
