//! onnx-osplus

pub mod onnx;
