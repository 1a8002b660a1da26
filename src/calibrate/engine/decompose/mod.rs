//! Decompositions: operators that the engine lacks, or gets wrong, written with operators that it has.
//!
//! They exist in the calibration copy alone; the user's file keeps its operators. [`TABLE`] has one row per operator and
//! one function for it. A function reads the node and what is known of the values around it, puts the nodes that stand
//! for it into a [`Build`], and says whether they replace it. They are decomposed in turn, so that one operator can be
//! written with another one of the table; a node of the same operator is final.

mod attention;
mod blocks;
mod build;
mod contrib;
mod contrib_attention;
mod contrib_rotary;
mod dynamic;
mod einsum;
mod narrow;
mod quantized;
mod scope;
mod sequence;
mod simple;

use ndarray::ArrayD;

use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::node::{is_standard, node_label};
use crate::graph::Names;
use crate::onnx::node::{make_node, tensor_attr};
use crate::onnx::op;
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{DataType, tensor};

use build::{Build, Outcome, Rule};
pub(in crate::calibrate) use scope::Scope;

/// The domain of ONNX Runtime's own operators.
const MS: &str = "com.microsoft";

/// Domain, operator, decomposition. The standard domain is `""`.
const TABLE: &[(&str, &str, Rule)] = &[
    ("", op::Attention, attention::attention),
    ("", op::ConcatFromSequence, sequence::concat),
    ("", op::ConstantOfShape, simple::constant_of_shape),
    ("", op::CumSum, simple::cumsum),
    ("", op::DequantizeLinear, blocks::dequantize),
    ("", op::Dropout, simple::dropout),
    ("", op::Einsum, einsum::without_dots),
    ("", op::GatherND, simple::nd_indices),
    ("", op::Identity, sequence::identity),
    ("", op::MatMul, blocks::matmul),
    ("", op::MatMulInteger, dynamic::matmul_integer),
    ("", op::Max, simple::of_many),
    ("", op::Min, simple::of_many),
    ("", op::QLinearMatMul, quantized::qlinear_matmul),
    ("", op::QuantizeLinear, narrow::quantize),
    ("", op::RandomNormal, simple::random),
    ("", op::RandomNormalLike, simple::random),
    ("", op::RandomUniform, simple::random),
    ("", op::RandomUniformLike, simple::random),
    ("", op::ReduceMax, simple::reduce_bool),
    ("", op::ReduceMin, simple::reduce_bool),
    ("", op::ScatterND, simple::nd_indices),
    ("", op::SequenceAt, sequence::at),
    ("", op::SequenceConstruct, sequence::construct),
    ("", op::SequenceEmpty, sequence::empty),
    ("", op::SequenceErase, sequence::erase),
    ("", op::SequenceInsert, sequence::insert),
    ("", op::SequenceLength, sequence::length),
    (
        "",
        op::SimplifiedLayerNormalization,
        contrib::simplified_norm,
    ),
    ("", op::Slice, simple::strided_slice),
    ("", op::SplitToSequence, sequence::split),
    ("", op::Sum, simple::of_many),
    ("", op::Swish, simple::swish),
    ("", op::TensorScatter, simple::tensor_scatter),
    (MS, op::Attention, contrib_attention::attention),
    (MS, op::BiasGelu, contrib::bias_gelu),
    (MS, op::DynamicQuantizeMatMul, dynamic::quantize_matmul),
    (MS, op::EmbedLayerNormalization, contrib::embed_layer_norm),
    (MS, op::FastGelu, contrib::fast_gelu),
    (MS, op::FusedConv, contrib::fused_conv),
    (MS, op::FusedGemm, contrib::fused_gemm),
    (MS, op::FusedMatMul, contrib::fused_matmul),
    (MS, op::GatherBlockQuantized, blocks::gather_blocks),
    (MS, op::Gelu, contrib::bias_gelu),
    (MS, op::GroupQueryAttention, contrib_attention::group_query),
    (MS, op::MatMulIntegerToFloat, dynamic::integer_to_float),
    (MS, op::MatMulNBits, blocks::matmul_nbits),
    (MS, op::MultiHeadAttention, contrib_attention::multi_head),
    (MS, op::QGemm, quantized::qgemm),
    (MS, op::QuickGelu, contrib::quick_gelu),
    (MS, op::RotaryEmbedding, contrib_rotary::rotary_embedding),
    (
        MS,
        op::SimplifiedLayerNormalization,
        contrib::simplified_norm,
    ),
    (MS, op::SkipLayerNormalization, contrib::skip_layer_norm),
    (
        MS,
        op::SkipSimplifiedLayerNormalization,
        contrib::skip_rms_norm,
    ),
];

/// The nodes that the engine gets for `node`, whose types and tensors are already those of the engine.
pub(super) fn decompose(
    node: NodeProto,
    scope: &mut Scope<'_>,
    names: &mut Names,
) -> Result<Vec<NodeProto>, EngineError> {
    let mut done = Vec::new();
    expand(node, scope, names, &mut Vec::new(), &mut done)?;
    Ok(done)
}

/// `behind` are the operators that led to `node`: none is decomposed twice, so that this ends.
fn expand(
    node: NodeProto,
    scope: &mut Scope<'_>,
    names: &mut Names,
    behind: &mut Vec<(&'static str, &'static str)>,
    done: &mut Vec<NodeProto>,
) -> Result<(), EngineError> {
    let domain = if is_standard(node.domain()) {
        ""
    } else {
        node.domain()
    };
    let row = TABLE
        .iter()
        .find(|row| row.0 == domain && row.1 == node.op_type())
        .filter(|row| !behind.contains(&(row.0, row.1)));
    if let Some(&(domain, op, rule)) = row {
        let mut build = Build::new(&node, scope, names);
        if rule(&node, &mut build)? == Outcome::Replaced {
            behind.push((domain, op));
            for part in build.finish() {
                expand(part, scope, names, behind, done)?;
            }
            behind.pop();
            return Ok(());
        }
    }
    match scope.learn(&node) {
        // Known sizes are given to the engine as constants: its own arithmetic of sizes is symbolic, and fails for some
        // of the forms that exporters write.
        Some(values) if !node.output.is_empty() && node.op_type() != op::Constant => {
            for (output, (dtype, ints)) in node.output.iter().zip(values) {
                let value = int_tensor(&ints, dtype);
                let name = names.derive(&node_label(&node), op::Constant);
                let value = vec![tensor_attr("value", value)];
                done.push(make_node(op::Constant, &name, &[], &[output], value));
            }
        }
        _ => done.push(node),
    }
    Ok(())
}

/// A tensor of type `dtype`, which is int64, int32 or bool.
fn int_tensor(ints: &ArrayD<i64>, dtype: DataType) -> TensorProto {
    let all: Vec<i64> = ints.iter().copied().collect();
    match dtype {
        DataType::Int32 => {
            let all: Vec<i32> = all.into_iter().map(|v| v as i32).collect();
            tensor::from_i32("", ints.shape(), &all)
        }
        DataType::Bool => {
            let all: Vec<u8> = all.into_iter().map(|v| v as u8).collect();
            TensorProto {
                data_type: Some(DataType::Bool as i32),
                ..tensor::from_u8("", ints.shape(), &all)
            }
        }
        _ => tensor::from_i64("", ints.shape(), &all),
    }
}
