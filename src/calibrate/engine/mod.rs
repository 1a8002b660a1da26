//! Running a model on a batch: the engine trait, and tract behind it.

mod broadcast;
mod check;
pub(super) mod copy;
mod decompose;
pub(super) mod error;
mod gelu;
mod node;
#[cfg(feature = "onnxruntime")]
pub(super) mod onnxruntime;
pub(super) mod plan;
mod resolve;
mod round_blocks;
mod rounding;
mod shapes;
mod tap;
pub(super) mod tract_engine;
mod tract_plan;
mod tract_tensor;
