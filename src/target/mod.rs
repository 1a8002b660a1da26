//! What each runtime accepts and fuses, as data; [`lint`] holds any file to it.

pub mod lint;

/// The name of a target on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// How the constant bias of a Gemm has to be written so that the Gemm still fuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GemmBias {
    /// int32 behind a DequantizeLinear with scale s_x · s_w: fuses to QGemm in ONNX Runtime, rejected by TensorRT.
    Int32,
    /// A float Add after the Gemm: fuses everywhere.
    SeparateAdd,
}

/// The rules of one target. A new runtime is a new profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The target this profile describes.
    pub target: Target,
    /// Its name on the command line and in reports.
    pub name: &'static str,
    /// int8 activations with zero point 0 (`true`), or uint8 with any zero point.
    pub symmetric: bool,
    /// Whether several Linears may read one QuantizeLinear. With int8 activations ONNX Runtime fuses only a
    /// Q → DQ pair of its own per Linear; TensorRT merges the copies again.
    pub share_activations: bool,
    /// The form of a Gemm's bias.
    pub gemm_bias: GemmBias,
    /// The newest operator set the runtime accepts with this form. ONNX Runtime 1.31 cannot create a session for
    /// int8 Q/DQ from opset 21 on.
    pub max_opset: Option<i64>,
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
            Target::Ort => Profile {
                target: self,
                name: "ort",
                symmetric: false,
                share_activations: true,
                gemm_bias: GemmBias::Int32,
                max_opset: None,
            },
            Target::Tensorrt => Profile {
                target: self,
                name: "tensorrt",
                symmetric: true,
                share_activations: true,
                gemm_bias: GemmBias::SeparateAdd,
                max_opset: None,
            },
            Target::Openvino => Profile {
                target: self,
                name: "openvino",
                symmetric: true,
                share_activations: true,
                gemm_bias: GemmBias::SeparateAdd,
                max_opset: None,
            },
            Target::Portable => Profile {
                target: self,
                name: "portable",
                symmetric: true,
                share_activations: false,
                gemm_bias: GemmBias::SeparateAdd,
                max_opset: Some(20),
            },
        }
    }
}
