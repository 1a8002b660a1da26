//! ONNX Runtime on CPUs. All of this was measured with 1.32.0 on an x86 CPU with AVX512-VNNI, in the optimized graph and
//! by running the file with and without optimizations.

mod blocks;
mod products;

use super::facts::{Quant, elem_type};
use super::rotation;
use super::scope::Scope;
use super::{Cost, Hits, Rule, Subject};
use crate::graph::infer;
use crate::graph::{NodeId, Use, ValueId, View};
use crate::onnx::DataType;
use crate::onnx::op;
use crate::target::MIN_OPSET;

const MEASURED: &str = "ONNX Runtime 1.32.0, measured; \
     onnxruntime.ai/docs/performance/model-optimizations/quantization.html";

/// The rules of ONNX Runtime.
pub(super) const RULES: &[Rule] = &[
    Rule {
        id: "R1-one-side",
        title: "both factors of a product are quantized",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "quantize the other factor too, or leave both in float",
        find: products::one_side,
    },
    Rule {
        id: "R1-activation-scale",
        title: "one scale per activation",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "quantize the activation with one scale for the tensor",
        find: products::activation_scale,
    },
    Rule {
        id: "R2-type",
        title: "both factors have 8 bits",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "use uint8 or int8 activations and int8 weights; store weights of 4 bits behind a Cast to int8",
        find: products::types,
    },
    Rule {
        id: "R2-output",
        title: "a quantized output has no other reader",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "let all readers read the quantized output, or leave the output of the MatMul in float",
        find: products::output,
    },
    Rule {
        id: "R3-axis",
        title: "the scales of a weight lie along its output channels",
        cost: Cost::Wrong,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "use one scale per output channel (MatMul: the last axis) or one for the whole weight",
        find: products::axis,
    },
    Rule {
        id: "R3-block",
        title: "no blocks in a weight whose activation is quantized",
        cost: Cost::Wrong,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "use one scale per output channel, or leave the activation in float (MatMulNBits)",
        find: products::block,
    },
    Rule {
        id: "R3-size",
        title: "a zero point has as many elements as its scale",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: "ONNX Runtime 1.32.0, measured without optimizations (fused, the file is accepted); \
                 onnx.ai/onnx/operators/onnx__DequantizeLinear.html",
        mend: "give the zero point the shape of the scale, or leave out one that is 0",
        find: products::size,
    },
    Rule {
        id: "R4-shared",
        title: "int8 activations: a pair of Q and DQ for each MatMul",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "give each MatMul a QuantizeLinear and DequantizeLinear of its own, with constants of its own, or use \
               uint8 activations",
        find: products::shared,
    },
    Rule {
        id: "R5-bias",
        title: "a MatMul of rank 3 has its bias as [1, N], one of rank 2 is a Gemm",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "store the bias as [1, N]; where the input has rank 2, write a Gemm with an int32 bias behind a \
               DequantizeLinear",
        find: products::bias,
    },
    Rule {
        id: "R5-gemm-bias",
        title: "a quantized Gemm has an int32 bias behind a DequantizeLinear, and alpha 1 with it",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "quantize the bias to int32 with scale s_x * s_w, fold alpha into the weight's scale, or add the bias in \
               an Add after the Gemm",
        find: products::gemm_bias,
    },
    Rule {
        id: "R5-bias-scale",
        title: "the scale of an int32 bias is s_x * s_w",
        cost: Cost::Wrong,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "quantize the bias with scale s_x * s_w and zero point 0",
        find: products::bias_scale,
    },
    Rule {
        id: "R5-bias-range",
        title: "an int32 bias is not cut off at the end of its range",
        cost: Cost::Wrong,
        subject: Subject::Quantization,
        source: "arithmetic: a step of s_x * s_w is too small where a column of the weight is nearly zero",
        mend: "give that column of the weight a larger scale, or add the bias in float in an Add after the product",
        find: products::bias_range,
    },
    Rule {
        id: "R6-output-dtype",
        title: "an int8 QuantizeLinear says its type by its zero point alone",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "give the QuantizeLinear an int8 zero point and remove its attribute output_dtype",
        find: output_dtype,
    },
    Rule {
        id: "R6-opset",
        title: "scales per channel need opset 13, blocks and 4 bits 21, 2 bits 25",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: "ONNX Runtime 1.32.0, measured; onnx.ai/onnx/operators/onnx__DequantizeLinear.html",
        mend: "raise the model to that opset",
        find: opset,
    },
    Rule {
        id: "R6-opset-28",
        title: "QuantizeLinear and DequantizeLinear are of opset 27 at most",
        cost: Cost::Rejected,
        subject: Subject::Graph,
        source: "ONNX Runtime 1.32.0, measured: it reads opset 28 and has no kernel for these two",
        mend: "export the model with opset 27 or older",
        find: opset_28,
    },
    Rule {
        id: "R7-residual",
        title: "residuals read the float value",
        cost: Cost::Inaccurate,
        subject: Subject::Quantization,
        source: "measured on all-MiniLM-L6-v2: 2.2 dB of the output's SQNR",
        mend: "let the Add read what the QuantizeLinear reads",
        find: residual,
    },
    Rule {
        id: "R7-gelu",
        title: "no Q between a bias and a decomposed GELU",
        cost: Cost::Slow,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "remove the QuantizeLinear and DequantizeLinear before the GELU",
        find: gelu,
    },
    Rule {
        id: "R7-mask",
        title: "the constant of an attention mask sets no scale",
        cost: Cost::Wrong,
        subject: Subject::Graph,
        source: "arithmetic: what is below half a step becomes 0, in every runtime",
        mend: "leave masked scores in float; quantize the output of the Softmax instead",
        find: mask,
    },
    Rule {
        id: "R8-int8-operator",
        title: "integer operators have uint8 activations",
        cost: Cost::Slow,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "use uint8 activations in QLinearMatMul and QGemm, or the QDQ form",
        find: int8_operator,
    },
    Rule {
        id: "R9-types",
        title: "QLinearMatMul is u8·s8→u8, u8·u8→u8 or s8·s8→s8",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "use uint8 activations and outputs with int8 weights",
        find: qlinear_types,
    },
    Rule {
        id: "R9-row-scale",
        title: "QLinearMatMul has one scale for its activation",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "quantize the activation with one scale for the tensor",
        find: qlinear_rows,
    },
    Rule {
        id: "R10-blocks",
        title: "a weight alone is quantized per column, or along K in blocks of 16, 32, 64 …",
        cost: Cost::Slow,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "use axis 0 and a block_size that is a power of 2 and at least 16, with one reader of the DequantizeLinear",
        find: weight_only,
    },
    Rule {
        id: "R10-form",
        title: "MatMulNBits has 2, 4 or 8 bits in blocks of 16 to 256",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "use blocks of 16, 32, 64, 128 or 256; at 8 bits no g_idx, and zero points in uint8",
        find: blocks::form,
    },
    Rule {
        id: "R10-kernel",
        title: "there is a kernel for a MatMulNBits",
        cost: Cost::Slow,
        subject: Subject::Quantization,
        source: "ONNX Runtime 1.31.1, measured: 30 to 50 times slower than float for one token of 1024 channels",
        mend: "use uint8 zero points, no g_idx, and accuracy_level 4 at 8 and 2 bits; at 2 bits blocks of 32, 64 or 128",
        find: blocks::kernel,
    },
    Rule {
        id: "R10-g-idx",
        title: "a MatMulNBits with g_idx has no integer zero points",
        cost: Cost::Wrong,
        subject: Subject::Quantization,
        source: "ONNX Runtime 1.32.0, measured: 8 is read for every zero point",
        mend: "store the weight in the order of its groups, without g_idx, or quantize it symmetrically",
        find: blocks::permuted,
    },
    Rule {
        id: "R3-activation-block",
        title: "no blocks in an activation",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "use one scale per token: divide by the largest magnitude, quantize with the constant scale 1/127, multiply behind the \
               product",
        find: blocks::activation,
    },
    Rule {
        id: "R11-rotation",
        title: "rotations stay in float",
        cost: Cost::Inaccurate,
        subject: Subject::Quantization,
        source: "ONNX Runtime 1.31.1, measured: 1.6 times the error at the Linear's output",
        mend: "leave out the QuantizeLinear and DequantizeLinear before, between and behind its two MatMuls",
        find: quantized_rotation,
    },
    Rule {
        id: "R11-dense-rotation",
        title: "rotations are written in two factors",
        cost: Cost::Slow,
        subject: Subject::Graph,
        source: "ONNX Runtime 1.31.1, measured: 768 channels take a tenth of the time as 24 x 32",
        mend: "use a rotation that is a Kronecker product: Reshape to [.., A, B], MatMul from the right, MatMul from the left, \
               Reshape",
        find: dense_rotation,
    },
];

fn quantized_rotation(scope: &Scope, hits: &mut Hits) {
    rotation::quantized(scope).for_each(|(node, what)| hits.at(node, what));
}

fn dense_rotation(scope: &Scope, hits: &mut Hits) {
    rotation::dense(scope).for_each(|(node, what)| hits.at(node, what));
}

fn output_dtype(scope: &Scope, hits: &mut Hits) {
    for quant in scope.facts.quants.iter().filter(|q| q.quantizes) {
        if quant.has_zero_point && quant.output_dtype == Some(DataType::Int8) {
            hits.at(
                quant.node,
                "it has output_dtype INT8 beside its zero point, which no longer agree when int8 is turned to uint8",
            );
        }
    }
}

fn opset(scope: &Scope, hits: &mut Hits) {
    let found = scope.view.model().opset();
    for quant in &scope.facts.quants {
        let standard = !scope.view.op(quant.node).is_empty();
        if standard && found < MIN_OPSET && quant.scale_count.is_some_and(|n| n > 1) {
            hits.at(
                quant.node,
                format!("it has a scale per channel, and the model opset {found}"),
            );
        }
        let needed = match quant.dtype {
            Some(DataType::Int2 | DataType::Uint2) => (25, "2 bits"),
            Some(DataType::Int4 | DataType::Uint4) => (21, "4 bits"),
            _ if quant.block_size > 0 => (21, "a scale per block"),
            _ => continue,
        };
        if standard && found < needed.0 {
            let message = format!("it has {}, and the model opset {found}", needed.1);
            hits.at(quant.node, message);
        }
    }
}

fn opset_28(scope: &Scope, hits: &mut Hits) {
    let found = scope.view.model().opset();
    // A DequantizeLinear of a stored weight is mostly fused before kernels are looked for.
    let stays = |quant: &&Quant| quant.quantizes || quant.constant.is_none();
    for quant in scope.facts.quants.iter().filter(stays) {
        if found >= 28 && !scope.view.op(quant.node).is_empty() {
            hits.at(quant.node, format!("the model has opset {found}"));
        }
    }
}

fn residual(scope: &Scope, hits: &mut Hits) {
    let view = &scope.view;
    for quant in scope.facts.quants.iter().filter(|q| q.is_activation()) {
        let Some(output) = view.output(quant.node, 0) else {
            continue;
        };
        let readers = || {
            view.uses(output).iter().filter_map(|u| match u {
                Use::Node { node, .. } => Some(*node),
                _ => None,
            })
        };
        let adds = |node: &NodeId| {
            let operator = view.node(*node).op_type();
            matches!(
                operator,
                op::Add | op::SkipLayerNormalization | op::SkipSimplifiedLayerNormalization
            )
        };
        let multiplies = readers().any(|node| matches!(view.op(node), op::MatMul | op::Gemm));
        if let Some(add) = readers().find(adds).filter(|_| multiplies) {
            let name = view.node_name(quant.node);
            hits.at(
                add,
                format!(
                    "it reads the dequantized value of `{name}`, which a product reads as well"
                ),
            );
        }
    }
}

fn gelu(scope: &Scope, hits: &mut Hits) {
    let view = &scope.view;
    let readers = |value: Option<ValueId>| {
        let uses = value.map_or(&[][..], |v| view.uses(v)).iter();
        uses.filter_map(|u| match u {
            Use::Node { node, .. } => Some(*node),
            _ => None,
        })
    };
    for quant in scope.facts.quants.iter().filter(|q| !q.quantizes) {
        let source = quant.source.and_then(|s| scope.facts.quant(s));
        let data = source.and_then(|q| q.data);
        let biased = data.is_some_and(|d| view.producer_is(d, op::Add).is_some());
        let scaled = || {
            readers(view.output(quant.node, 0)).filter(|&n| matches!(view.op(n), op::Div | op::Mul))
        };
        let mut erf = scaled().flat_map(|n| readers(view.output(n, 0)));
        if biased && erf.any(|n| view.op(n) == op::Erf) {
            hits.at(
                quant.node,
                "a decomposed GELU reads it, which is fused with its bias only in float",
            );
        }
    }
}

/// The smallest scale that no activation needs: ±127 steps of it are 254 000, and masks are −65504 (float16: 257 a step
/// of 255 steps) to −3.4e38. Trained activations stay below 30 000, the largest channels of large language models.
const MASK_SCALE: f32 = 250.0;

fn mask(scope: &Scope, hits: &mut Hits) {
    for quant in scope.facts.quants.iter().filter(|q| q.quantizes) {
        let largest = quant.scale.iter().flatten().copied().fold(0.0, f32::max);
        if largest >= MASK_SCALE {
            hits.at(
                quant.node,
                format!("its scale is {largest:e}: a mask has set it, and every ordinary value becomes 0"),
            );
        }
    }
}

/// The types of the given inputs.
fn input_types<const N: usize>(
    view: &View,
    node: NodeId,
    slots: [usize; N],
) -> [Option<DataType>; N] {
    slots.map(|slot| elem_type(view, view.input(node, slot)?))
}

fn int8_operator(scope: &Scope, hits: &mut Hits) {
    for (id, node) in scope.nodes() {
        let slot = match (node.domain(), node.op_type()) {
            ("" | "ai.onnx", op::QLinearMatMul) | ("com.microsoft", op::QGemm) => 2,
            _ => continue,
        };
        if input_types(&scope.view, id, [slot]) == [Some(DataType::Int8)] {
            hits.at(
                id,
                "its activation is int8, for which there is no fast kernel on x86",
            );
        }
    }
}

fn qlinear_types(scope: &Scope, hits: &mut Hits) {
    use DataType::{Int8, Uint8};
    const RUN: [[DataType; 3]; 3] = [
        [Uint8, Int8, Uint8],
        [Uint8, Uint8, Uint8],
        [Int8, Int8, Int8],
    ];
    for (id, _) in scope.nodes() {
        if scope.view.op(id) != op::QLinearMatMul {
            continue;
        }
        if let [Some(a), Some(b), Some(y)] = input_types(&scope.view, id, [2, 5, 7])
            && !RUN.contains(&[a, b, y])
        {
            let [a, b, y] = [a, b, y].map(|t| t.as_str_name());
            hits.at(id, format!("there is no kernel for {a} · {b} → {y}"));
        }
    }
}

fn qlinear_rows(scope: &Scope, hits: &mut Hits) {
    let view = &scope.view;
    for (id, _) in scope.nodes() {
        let shape = || view.shape(view.input(id, 1)?);
        let count = || infer::product(&shape()?);
        if view.op(id) == op::QLinearMatMul
            && let Some(n) = count().filter(|&n| n > 1)
        {
            hits.at(id, format!("its activation has {n} scales"));
        }
    }
}

fn weight_only(scope: &Scope, hits: &mut Hits) {
    let view = &scope.view;
    for product in scope.facts.products.iter().filter(|p| !p.gemm) {
        let [None, Some(w)] = &product.factors else {
            continue;
        };
        if product.dequantized[0] || w.constant.is_none() {
            continue;
        }
        let readers = view.output(w.node, 0).map_or(0, |o| view.uses(o).len());
        let block = w.block_size;
        let power = u64::try_from(block).is_ok_and(u64::is_power_of_two);
        if block > 0 && (w.axis != 0 || block < 16 || !power) {
            hits.at(
                product.node,
                format!("its weight has blocks of {block} along axis {}", w.axis),
            );
        } else if block > 0 && readers > 1 {
            hits.at(product.node, format!("its weight has {readers} readers"));
        }
    }
}
