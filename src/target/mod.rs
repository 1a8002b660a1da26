//! What each runtime accepts and fuses, as data: [`Profile`] says what can differ, the table what does, and
//! [`lint`] holds any file to it.
//!
//! Adding a runtime is adding a profile: a variant of [`Target`], and its rules in `table.rs`.

pub mod lint;
pub mod pool;
mod profile;
mod table;

pub use profile::{GemmBias, Profile, Source};
pub use table::markdown;

/// The name of a target on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// ONNX Runtime on CPUs.
    Ort,
    /// TensorRT and TensorRT-RTX.
    Tensorrt,
    /// OpenVINO.
    Openvino,
    /// One file for ONNX Runtime, TensorRT and OpenVINO.
    Portable,
}

/// The oldest operator set that has a per-axis DequantizeLinear.
pub const MIN_OPSET: i64 = 13;

impl Target {
    /// Every target.
    pub const ALL: [Target; 4] = [
        Target::Ort,
        Target::Tensorrt,
        Target::Openvino,
        Target::Portable,
    ];

    /// The rules of this target.
    pub fn profile(self) -> Profile {
        match self {
            Target::Ort => table::ORT,
            Target::Tensorrt => table::TENSORRT,
            Target::Openvino => table::OPENVINO,
            Target::Portable => table::PORTABLE,
        }
    }

    /// The target of that name.
    pub fn named(name: &str) -> Option<Target> {
        Target::ALL
            .into_iter()
            .find(|target| target.profile().name == name)
    }
}
