//! onnx-osplus

pub mod calibrate;
pub mod onnx;
pub mod progress;
