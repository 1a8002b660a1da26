//! Every operator of which something is known: one row each.
//!
//! A row names the types, then the rule for shapes, then the one for values. To teach an operator, add its row; a rule
//! that it has in common with others is there already. `tests.rs` wants a case for each row that has rules.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::elementwise::{self as each, broadcast_all, same};
use super::rule::Shapes::{self, Each, First, Unknown};
use super::rule::Slot::{Any, By, Is, T};
use super::rule::Values::{self, Constants, OfShape, Small};
use super::rule::{Row, Slot, Types};
use super::{layout, make, pick, product, reduce};
use crate::onnx::DataType::{Bool, Float, Int32, Int64, Uint8};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

/// The domain of ONNX Runtime's own operators.
pub const MICROSOFT: &str = "com.microsoft";

/// T, T, … → T, T, …
const SAME: Types = types(&[T], &[T]);
/// T, any, … → T, any, …
const FIRST: Types = types(&[T, Any], &[T, Any]);
/// T, any, … → T, T, …
const PARTS: Types = types(&[T, Any], &[T]);
/// any, T, T → T
const CHOICE: Types = types(&[Any, T], &[T]);
/// T, any, T, any, … → T
const UPDATED: Types = types(&[T, Any, T, Any], &[T]);
/// any, any, T → T
const THIRD: Types = types(&[Any, Any, T], &[T]);
/// T, T → bool
const COMPARED: Types = types(&[T], &[Is(Bool)]);
/// any → bool
const BOOL: Types = types(&[Any], &[Is(Bool)]);
/// any, … → float32
const FLOAT: Types = types(&[Any], &[Is(Float)]);
/// any, … → int64
const INT64: Types = types(&[Any], &[Is(Int64)]);
/// any, … → int32
const INT32: Types = types(&[Any], &[Is(Int32)]);
/// T, any → T, int64
const INDEXED: Types = types(&[T, Any], &[T, Is(Int64)]);
/// any → uint8, float32, uint8
const QUANTIZED: Types = types(&[Any], &[Is(Uint8), Is(Float), Is(Uint8)]);
const CAST: Types = types(&[Any], &[By(make::cast_type)]);
const CAST_LIKE: Types = types(&[Any], &[By(make::second_type)]);
const CONSTANT: Types = types(&[], &[By(make::constant_type)]);
const FILLED: Types = types(&[Any], &[By(make::filled_type)]);
const QUANTIZE: Types = types(&[Any], &[By(make::quantized_type)]);
const DEQUANTIZE: Types = types(&[Any], &[By(make::dequantized_type)]);
const QLINEAR: Types = types(&[Any], &[By(make::output_zero_type)]);

/// No rule for values.
const NO: Values = Values::Unknown;

const fn types(inputs: &'static [Slot], outputs: &'static [Slot]) -> Types {
    Types { inputs, outputs }
}

const fn standard(op: &'static str, types: Types, shapes: Shapes, values: Values) -> Row {
    Row {
        domain: "",
        op,
        types,
        shapes,
        values,
    }
}

const fn microsoft(op: &'static str, types: Types, shapes: Shapes, values: Values) -> Row {
    Row {
        domain: MICROSOFT,
        ..standard(op, types, shapes, values)
    }
}

#[rustfmt::skip]
pub(super) const TABLE: &[Row] = &[
    // Elementwise, of one input.
    standard(op::Abs, SAME, First(same), Small(each::abs)),
    standard(op::Acos, SAME, First(same), NO),
    standard(op::Acosh, SAME, First(same), NO),
    standard(op::Asin, SAME, First(same), NO),
    standard(op::Asinh, SAME, First(same), NO),
    standard(op::Atan, SAME, First(same), NO),
    standard(op::Atanh, SAME, First(same), NO),
    standard(op::BitwiseNot, SAME, First(same), NO),
    standard(op::Cast, CAST, First(same), Constants(each::cast)),
    standard(op::CastLike, CAST_LIKE, First(same), Small(each::cast)),
    standard(op::Ceil, SAME, First(same), Small(each::ceil)),
    standard(op::Celu, SAME, First(same), NO),
    standard(op::Clip, SAME, First(same), NO),
    standard(op::Cos, SAME, First(same), NO),
    standard(op::Cosh, SAME, First(same), NO),
    standard(op::Dropout, FIRST, First(same), NO),
    standard(op::Elu, SAME, First(same), NO),
    standard(op::Erf, SAME, First(same), NO),
    standard(op::Exp, SAME, First(same), NO),
    standard(op::Floor, SAME, First(same), Small(each::floor)),
    standard(op::Gelu, SAME, First(same), NO),
    standard(op::HardSigmoid, SAME, First(same), NO),
    standard(op::HardSwish, SAME, First(same), NO),
    standard(op::Identity, SAME, First(same), Constants(each::identity)),
    standard(op::IsInf, BOOL, First(same), NO),
    standard(op::IsNaN, BOOL, First(same), NO),
    standard(op::LeakyRelu, SAME, First(same), NO),
    standard(op::Log, SAME, First(same), NO),
    standard(op::Mish, SAME, First(same), NO),
    standard(op::Neg, SAME, First(same), Constants(each::neg)),
    standard(op::Not, BOOL, First(same), Small(each::not)),
    standard(op::PRelu, SAME, First(same), NO),
    standard(op::Reciprocal, SAME, First(same), Constants(each::reciprocal)),
    standard(op::Relu, SAME, First(same), NO),
    standard(op::Round, SAME, First(same), NO),
    standard(op::Selu, SAME, First(same), NO),
    standard(op::Shrink, SAME, First(same), NO),
    standard(op::Sigmoid, SAME, First(same), NO),
    standard(op::Sign, SAME, First(same), NO),
    standard(op::Sin, SAME, First(same), NO),
    standard(op::Sinh, SAME, First(same), NO),
    standard(op::Softplus, SAME, First(same), NO),
    standard(op::Softsign, SAME, First(same), NO),
    standard(op::Sqrt, SAME, First(same), Constants(each::sqrt)),
    standard(op::Swish, SAME, First(same), NO),
    standard(op::Tan, SAME, First(same), NO),
    standard(op::Tanh, SAME, First(same), NO),
    standard(op::ThresholdedRelu, SAME, First(same), NO),
    // Elementwise, of several inputs.
    standard(op::Add, SAME, First(broadcast_all), Constants(each::add)),
    standard(op::And, BOOL, First(broadcast_all), Small(each::and)),
    standard(op::BitwiseAnd, SAME, First(broadcast_all), NO),
    standard(op::BitwiseOr, SAME, First(broadcast_all), NO),
    standard(op::BitwiseXor, SAME, First(broadcast_all), NO),
    standard(op::Div, SAME, First(broadcast_all), Constants(each::div)),
    standard(op::Equal, COMPARED, First(broadcast_all), Small(each::equal)),
    standard(op::Greater, COMPARED, First(broadcast_all), Small(each::greater)),
    standard(op::GreaterOrEqual, COMPARED, First(broadcast_all), Small(each::greater_or_equal)),
    standard(op::Less, COMPARED, First(broadcast_all), Small(each::less)),
    standard(op::LessOrEqual, COMPARED, First(broadcast_all), Small(each::less_or_equal)),
    standard(op::Max, SAME, First(broadcast_all), Small(each::max)),
    standard(op::Mean, SAME, First(broadcast_all), NO),
    standard(op::Min, SAME, First(broadcast_all), Small(each::min)),
    standard(op::Mod, SAME, First(broadcast_all), Small(each::modulo)),
    standard(op::Mul, SAME, First(broadcast_all), Constants(each::mul)),
    standard(op::Or, BOOL, First(broadcast_all), Small(each::or)),
    standard(op::Pow, FIRST, First(broadcast_all), Small(each::pow)),
    standard(op::Sub, SAME, First(broadcast_all), Constants(each::sub)),
    standard(op::Sum, SAME, First(broadcast_all), Small(each::add)),
    standard(op::Where, CHOICE, First(broadcast_all), Small(each::select)),
    standard(op::Xor, BOOL, First(broadcast_all), Small(each::xor)),
    // Along an axis, or in another way that keeps the shape.
    standard(op::BatchNormalization, SAME, First(same), NO),
    standard(op::CumSum, FIRST, First(same), NO),
    standard(op::DequantizeLinear, DEQUANTIZE, First(same), NO),
    standard(op::DynamicQuantizeLinear, QUANTIZED, Each(make::dynamically_quantized), NO),
    standard(op::GroupNormalization, FIRST, First(same), NO),
    standard(op::Hardmax, SAME, First(same), NO),
    standard(op::InstanceNormalization, SAME, First(same), NO),
    standard(op::LayerNormalization, FIRST, First(same), NO),
    standard(op::LogSoftmax, SAME, First(same), NO),
    standard(op::LpNormalization, SAME, First(same), NO),
    standard(op::LRN, SAME, First(same), NO),
    standard(op::MeanVarianceNormalization, SAME, First(same), NO),
    standard(op::QuantizeLinear, QUANTIZE, First(same), NO),
    standard(op::RMSNormalization, FIRST, First(same), NO),
    standard(op::ReverseSequence, FIRST, First(same), NO),
    standard(op::RotaryEmbedding, FIRST, First(same), NO),
    standard(op::Scatter, UPDATED, First(same), NO),
    standard(op::ScatterElements, UPDATED, First(same), NO),
    standard(op::ScatterND, UPDATED, First(same), NO),
    standard(op::SimplifiedLayerNormalization, FIRST, First(same), NO),
    standard(op::Softmax, SAME, First(same), NO),
    standard(op::Trilu, FIRST, First(same), NO),
    // Another shape.
    standard(op::DepthToSpace, SAME, First(layout::depth_to_space), NO),
    standard(op::Expand, FIRST, First(layout::expand), Small(layout::expanded)),
    standard(op::Flatten, SAME, First(layout::flatten), Small(layout::reordered)),
    standard(op::Reshape, FIRST, First(layout::reshape), Constants(layout::reordered)),
    standard(op::Resize, FIRST, First(layout::rank), NO),
    standard(op::SpaceToDepth, SAME, First(layout::space_to_depth), NO),
    standard(op::Squeeze, FIRST, First(layout::squeeze), Constants(layout::reordered)),
    standard(op::Tile, FIRST, First(layout::tile), Small(layout::tiled)),
    standard(op::Transpose, SAME, First(layout::transpose), Constants(layout::permuted)),
    standard(op::Unsqueeze, FIRST, First(layout::unsqueeze), Constants(layout::reordered)),
    standard(op::Upsample, FIRST, First(layout::rank), NO),
    // Parts, and values put together.
    standard(op::Concat, SAME, First(pick::concat), Small(pick::concatenated)),
    standard(op::Gather, FIRST, First(pick::gather), Small(pick::gathered)),
    standard(op::GatherElements, FIRST, First(pick::gather_elements), NO),
    standard(op::GatherND, FIRST, First(pick::gather_nd), NO),
    standard(op::OneHot, THIRD, First(pick::one_hot), NO),
    standard(op::Pad, UPDATED, First(pick::pad), NO),
    standard(op::Slice, FIRST, First(pick::slice), Small(pick::sliced)),
    standard(op::Split, PARTS, Each(pick::split), Small(pick::part)),
    standard(op::TopK, INDEXED, Each(pick::top_k), NO),
    // Reductions.
    standard(op::ArgMax, INT64, First(reduce::arg), NO),
    standard(op::ArgMin, INT64, First(reduce::arg), NO),
    standard(op::ReduceL1, FIRST, First(reduce::reduce), NO),
    standard(op::ReduceL2, FIRST, First(reduce::reduce), NO),
    standard(op::ReduceLogSum, FIRST, First(reduce::reduce), NO),
    standard(op::ReduceLogSumExp, FIRST, First(reduce::reduce), NO),
    standard(op::ReduceMax, FIRST, First(reduce::reduce), Small(reduce::max)),
    standard(op::ReduceMean, FIRST, First(reduce::reduce), NO),
    standard(op::ReduceMin, FIRST, First(reduce::reduce), Small(reduce::min)),
    standard(op::ReduceProd, FIRST, First(reduce::reduce), Small(reduce::product)),
    standard(op::ReduceSum, FIRST, First(reduce::reduce), Small(reduce::sum)),
    standard(op::ReduceSumSquare, FIRST, First(reduce::reduce), NO),
    // Products and windows.
    standard(op::Attention, FIRST, Unknown, NO),
    standard(op::AveragePool, SAME, First(product::pool), NO),
    standard(op::Conv, SAME, First(product::conv), NO),
    standard(op::ConvInteger, INT32, First(product::conv), NO),
    standard(op::ConvTranspose, SAME, First(product::conv_transpose), NO),
    standard(op::Einsum, SAME, First(product::einsum), NO),
    standard(op::Gemm, SAME, First(product::gemm), NO),
    standard(op::GlobalAveragePool, SAME, First(product::global_pool), NO),
    standard(op::GlobalMaxPool, SAME, First(product::global_pool), NO),
    standard(op::MatMul, SAME, First(product::matmul), NO),
    standard(op::MatMulInteger, INT32, First(product::matmul), NO),
    standard(op::MaxPool, INDEXED, First(product::pool), NO),
    standard(op::QLinearMatMul, QLINEAR, First(product::quantized_matmul), NO),
    // From a shape, an attribute or a few numbers.
    standard(op::Constant, CONSTANT, First(make::constant_shape), Constants(make::constant_value)),
    standard(op::ConstantOfShape, FILLED, First(make::filled), Small(make::filled_value)),
    standard(op::NonZero, INT64, First(make::non_zero), Small(make::non_zero_value)),
    standard(op::Range, SAME, First(make::range), Small(make::range_value)),
    standard(op::Shape, INT64, First(make::shape), OfShape(make::shape_value)),
    standard(op::Size, INT64, First(make::scalar), OfShape(make::size_value)),
    // Sequences: of how many tensors.
    standard(op::SequenceLength, INT64, First(make::scalar), NO),
    // ONNX Runtime's own.
    microsoft(op::BiasGelu, FIRST, First(same), NO),
    microsoft(op::DequantizeLinear, DEQUANTIZE, First(same), NO),
    microsoft(op::DynamicQuantizeMatMul, FIRST, First(product::matmul), NO),
    microsoft(op::FastGelu, FIRST, First(same), NO),
    microsoft(op::FusedConv, SAME, First(product::conv), NO),
    microsoft(op::FusedGemm, SAME, First(product::gemm), NO),
    microsoft(op::FusedMatMul, SAME, First(product::fused_matmul), NO),
    microsoft(op::Gelu, FIRST, First(same), NO),
    microsoft(op::MatMulIntegerToFloat, FLOAT, First(product::matmul), NO),
    microsoft(op::QuantizeLinear, QUANTIZE, First(same), NO),
    microsoft(op::QuickGelu, FIRST, First(same), NO),
    microsoft(op::RotaryEmbedding, FIRST, First(same), NO),
    microsoft(op::SkipLayerNormalization, FIRST, First(same), NO),
    microsoft(op::SkipSimplifiedLayerNormalization, FIRST, First(same), NO),
];

/// The row of an operator; the standard domain is `""`.
pub(super) fn row(domain: &str, op: &str) -> Option<&'static Row> {
    static ROWS: LazyLock<BTreeMap<(&str, &str), &Row>> = LazyLock::new(|| {
        TABLE
            .iter()
            .map(|row| ((row.domain, row.op), row))
            .collect()
    });
    ROWS.get(&(domain, op)).copied()
}

/// The row of a node's operator.
pub(super) fn row_of(node: &NodeProto) -> Option<&'static Row> {
    match node.domain() {
        "ai.onnx" => row("", node.op_type()),
        domain => row(domain, node.op_type()),
    }
}
