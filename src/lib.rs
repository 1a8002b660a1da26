//! onnx-osplus

pub mod graph;
pub mod onnx;
pub mod recognise;
pub mod rewrite;
pub mod site;
pub mod solve;
pub mod target;
