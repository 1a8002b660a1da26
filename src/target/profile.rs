//! The rules of one target: one field per decision that differs between runtimes.
//!
//! What does not differ is not here. Every target has Q/DQ at the inputs of its Linears and nowhere else but where a field
//! says so; activations have one scale per tensor, a constant scalar, with their zero point written out (R1, T3); weights
//! are int8, symmetric, with one scale per output channel (axis 1 of [K, N], axis 0 behind `transB`; R3, T3, T5) or one in
//! all; the type is told by the zero point and never by the attribute `output_dtype` (R6); and a Linear in float16 or
//! bfloat16 is computed in float32 between two Casts. The values are in the table beside this file.

use super::Target;

/// How the constant bias of a Linear is written. It is named after the Gemm, where runtimes differ most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GemmBias {
    /// For ONNX Runtime alone (R5): a Linear over rank 2 is a Gemm with an int32 bias behind a DequantizeLinear of scale
    /// s_x · s_w, which fuses to QGemm; over rank 3 and more, an Add of a [1, N] float bias.
    Int32,
    /// A float Add behind the product, [1, N] over rank 3 and more: fuses in ONNX Runtime and is accepted everywhere.
    SeparateAdd,
    /// In float, where it was: the runtime fuses it in any form.
    AsItWas,
}

/// What a rule of a profile rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The rules, R1 to R10 and T1 to T9, that the document is about.
    pub rules: &'static str,
    /// What it says, or what was measured.
    pub says: &'static str,
    /// Where: the address of a document, or the test that shows it on the real runtime.
    pub document: &'static str,
}

/// The rules of one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Profile {
    /// The target this profile describes.
    pub target: Target,
    /// Its name on the command line and in reports.
    pub name: &'static str,
    /// The runtimes that load the result.
    pub runtimes: &'static str,
    /// int8 activations with zero point 0 (`true`), or uint8 with any zero point (`false`).
    pub symmetric: bool,
    /// Whether several Linears may read one QuantizeLinear, or each has a Q → DQ pair of its own.
    pub share_activations: bool,
    /// The form of a bias.
    pub gemm_bias: GemmBias,
    /// Whether the scales of a weight per output channel stand behind the product of a Linear whose output is cut into
    /// parts (q, k and v of one Linear).
    pub scales_behind_split: bool,
    /// Whether a weight of at most 4 bits may be stored as INT4 with a Cast to int8 before its DequantizeLinear (from
    /// operator set 21 on); elsewhere its levels are stored as int8.
    pub int4_weights: bool,
    /// Why com.microsoft.MatMulNBits ([`Format::MatMulNBits`](crate::Format::MatMulNBits)) cannot be written for it, if it cannot.
    pub no_matmulnbits: Option<&'static str>,
    /// Whether the last group of the channels of a weight may be smaller than the others.
    pub ragged_groups: bool,
    /// Whether groups may have zero points.
    pub zero_points_of_groups: bool,
    /// Whether the integers of a weight behind a DequantizeLinear with blocks are unsigned.
    pub unsigned_blocks: bool,
    /// Bits of the integers that a DequantizeLinear with blocks may have before a product that the runtime does fast.
    pub bits_of_blocks: &'static [u8],
    /// Whether the runtime quantizes the activations before a weight in groups by itself.
    pub quantizes_behind_blocks: bool,
    /// Whether the products of attention get Q/DQ by default.
    pub int8_attention: bool,
    /// Whether rows of int8 tables can be gathered without widening the table
    /// ([`Options::embeddings`](crate::Options::embeddings)).
    pub int8_gather: bool,
    /// Whether it has com.microsoft.GatherBlockQuantized, for tables in blocks.
    pub gathers_blocks: bool,
    /// Whether a guard `Where(IsNaN(P), 0, P)` behind the softmax keeps the runtime from fusing attention
    /// (TensorRT-RTX 1.7.1, OpenVINO 2026.4). It is left out then, if no calibration row needs it.
    pub nan_guard_stops_attention: bool,
    /// Whether a value per channel behind a Reduce without kept axes is computed rightly before a QuantizeLinear
    /// ([`pool`](super::pool)). Where it is not, no Mul is placed there, and a Linear behind one that the model has stays in float.
    pub pools_keep_channels: bool,
    /// Why QLinearMatMul and QGemm ([`Format::QOperator`](crate::Format::QOperator)) cannot be written for it, if they cannot.
    pub no_qoperator: Option<&'static str>,
    /// Whether some of its processors saturate sums of uint8 · int8 products in 16 bits, so that 7-bit weights
    /// ([`Options::reduce_range`](crate::Options::reduce_range)) have a use.
    pub saturates: bool,
    /// The newest operator set with which the form has been run. A newer one is written all the same, with a note.
    pub newest_opset: i64,
    /// What the above rests on.
    pub sources: &'static [Source],
}
